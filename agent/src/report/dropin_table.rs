//! Every metric of the endpoints that stand in for the stock kubelet's, and where they differ from it.
//!
//! **Problem.** Dashboards, HPA and billing were made for what the stock kubelet serves at `/metrics/cadvisor`, `/metrics/resource`
//! and `/stats/summary`. A family that is missing, or means something else, is found out by somebody with an empty panel.
//!
//! **Approach.** One table of families as in [`super::table`], with the labels in the kubelet's order (sorted by name), and one list
//! of all differences with the reason for each. docs/compatibility-metrics.md is rendered from it. A test takes the answers of a
//! stock kubelet that were recorded: what it serves is in the table, or in the list.
//!
//! **Terms.** The *stock kubelet* is release 1.36 with cAdvisor 0.56.
//!
//! **Properties** (tested). Tables are sorted by name; no family is both served and listed as missing; the document is this list.

use std::fmt::Write as _;

use super::table::Kind::{self, Counter, Gauge};
use super::table::{Group, MetricDef};

const fn def(
    kind: Kind,
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricDef {
    MetricDef { group: Group::Container, name, kind, unit, labels, help }
}

/// The labels of a row: a cgroup.
pub const ROW: &[&str] = &["container", "id", "image", "name", "namespace", "pod"];
const MACHINE: &[&str] = &["boot_id", "machine_id", "system_uuid"];
const ROW_CPU: &[&str] = &["container", "cpu", "id", "image", "name", "namespace", "pod"];
const ROW_DEVICE: &[&str] = &["container", "device", "id", "image", "name", "namespace", "pod"];
const ROW_DEVICE_MAJOR_MINOR_OPERATION: &[&str] =
    &["container", "device", "id", "image", "major", "minor", "name", "namespace", "operation", "pod"];
const ROW_FAILURE_TYPE_SCOPE: &[&str] =
    &["container", "failure_type", "id", "image", "name", "namespace", "pod", "scope"];
const ROW_INTERFACE: &[&str] = &["container", "id", "image", "interface", "name", "namespace", "pod"];
const ROW_ULIMIT: &[&str] = &["container", "id", "image", "name", "namespace", "pod", "ulimit"];
const VERSION: &[&str] = &["cadvisorRevision", "cadvisorVersion", "dockerVersion", "kernelVersion", "osVersion"];
const CONTAINER: &[&str] = &["container", "namespace", "pod"];
const POD: &[&str] = &["namespace", "pod"];
const PROBE: &[&str] = &["container", "namespace", "pod", "probe_type"];
const PROBE_RESULT: &[&str] = &["container", "namespace", "pod", "pod_uid", "probe_type", "result"];

/// `/metrics/cadvisor`.
#[rustfmt::skip]
pub static CADVISOR: &[MetricDef] = &[
    def(Gauge, "cadvisor_version_info", "", VERSION, "Kernel and system of the node; always 1. There is no cAdvisor: its version is empty, as the kubelet's is."),
    def(Counter, "container_blkio_device_usage_total", "bytes", ROW_DEVICE_MAJOR_MINOR_OPERATION, "Bytes read and written by device, by io.stat or blkio.throttle."),
    def(Counter, "container_cpu_cfs_burst_periods_total", "", ROW, "Scheduling periods in which CPU burst was used."),
    def(Counter, "container_cpu_cfs_burst_seconds_total", "seconds", ROW, "CPU burst used."),
    def(Counter, "container_cpu_cfs_periods_total", "", ROW, "Scheduling periods in which something ran; only with a quota."),
    def(Counter, "container_cpu_cfs_throttled_periods_total", "", ROW, "Of these, the throttled ones."),
    def(Counter, "container_cpu_cfs_throttled_seconds_total", "seconds", ROW, "Time throttled, summed over CPUs."),
    def(Counter, "container_cpu_system_seconds_total", "seconds", ROW, "CPU time in the kernel."),
    def(Counter, "container_cpu_usage_seconds_total", "seconds", ROW_CPU, "CPU time by cpu.stat; where it cannot be read, by eBPF. None while it is 0."),
    def(Counter, "container_cpu_user_seconds_total", "seconds", ROW, "CPU time in user space."),
    def(Gauge, "container_file_descriptors", "", ROW, "Open file descriptors of its processes."),
    def(Gauge, "container_fs_inodes_free", "", ROW_DEVICE, "Free inodes of a file system of the node."),
    def(Gauge, "container_fs_inodes_total", "", ROW_DEVICE, "Inodes of a file system of the node."),
    def(Gauge, "container_fs_limit_bytes", "bytes", ROW_DEVICE, "Size of a file system of the node."),
    def(Counter, "container_fs_reads_bytes_total", "bytes", ROW_DEVICE, "Bytes read by device."),
    def(Counter, "container_fs_reads_total", "", ROW_DEVICE, "Reads by device."),
    def(Gauge, "container_fs_usage_bytes", "bytes", ROW_DEVICE, "What is in use of a file system of the node."),
    def(Counter, "container_fs_writes_bytes_total", "bytes", ROW_DEVICE, "Bytes written by device."),
    def(Counter, "container_fs_writes_total", "", ROW_DEVICE, "Writes by device."),
    def(Gauge, "container_last_seen", "seconds", ROW, "The time of this answer, whole seconds since 1970-01-01 UTC."),
    def(Gauge, "container_memory_cache", "bytes", ROW, "File cache, with shared memory and tmpfs."),
    def(Counter, "container_memory_failcnt", "", ROW, "Times that the memory limit was reached."),
    def(Counter, "container_memory_failures_total", "", ROW_FAILURE_TYPE_SCOPE, "Page faults, and those that had to read (pgmajfault); both scopes show the same."),
    def(Gauge, "container_memory_kernel_usage", "bytes", ROW, "Memory of the kernel."),
    def(Gauge, "container_memory_mapped_file", "bytes", ROW, "Files that are mapped."),
    def(Gauge, "container_memory_max_usage_bytes", "bytes", ROW, "The highest usage."),
    def(Gauge, "container_memory_rss", "bytes", ROW, "Anonymous memory."),
    def(Gauge, "container_memory_swap", "bytes", ROW, "Swap in use."),
    def(Gauge, "container_memory_total_active_file_bytes", "bytes", ROW, "Active file cache."),
    def(Gauge, "container_memory_total_inactive_file_bytes", "bytes", ROW, "Inactive file cache."),
    def(Gauge, "container_memory_usage_bytes", "bytes", ROW, "Memory in use, file cache included."),
    def(Gauge, "container_memory_working_set_bytes", "bytes", ROW, "Memory in use less inactive file cache: what the kubelet compares with thresholds."),
    def(Counter, "container_network_receive_bytes_total", "bytes", ROW_INTERFACE, "Bytes received by interface, once per pod, on its sandbox's row."),
    def(Counter, "container_network_receive_errors_total", "", ROW_INTERFACE, "Errors with packets to be received."),
    def(Counter, "container_network_receive_packets_dropped_total", "", ROW_INTERFACE, "Packets to be received that were dropped."),
    def(Counter, "container_network_receive_packets_total", "", ROW_INTERFACE, "Packets received."),
    def(Counter, "container_network_transmit_bytes_total", "bytes", ROW_INTERFACE, "Bytes sent by interface, once per pod, on its sandbox's row."),
    def(Counter, "container_network_transmit_errors_total", "", ROW_INTERFACE, "Errors with packets to be sent."),
    def(Counter, "container_network_transmit_packets_dropped_total", "", ROW_INTERFACE, "Packets to be sent that were dropped."),
    def(Counter, "container_network_transmit_packets_total", "", ROW_INTERFACE, "Packets sent."),
    def(Counter, "container_oom_events_total", "", ROW, "OOM kills of containers; goes on over restarts, also while the container does not run."),
    def(Counter, "container_pressure_cpu_stalled_seconds_total", "seconds", ROW, "Time in which all tasks waited for a CPU."),
    def(Counter, "container_pressure_cpu_waiting_seconds_total", "seconds", ROW, "Time in which some task waited for a CPU."),
    def(Counter, "container_pressure_io_stalled_seconds_total", "seconds", ROW, "Time in which all tasks waited for a disk."),
    def(Counter, "container_pressure_io_waiting_seconds_total", "seconds", ROW, "Time in which some task waited for a disk."),
    def(Counter, "container_pressure_memory_stalled_seconds_total", "seconds", ROW, "Time in which all tasks waited for memory."),
    def(Counter, "container_pressure_memory_waiting_seconds_total", "seconds", ROW, "Time in which some task waited for memory."),
    def(Gauge, "container_processes", "", ROW, "Processes."),
    def(Gauge, "container_scrape_error", "", &[], "1 if the containers could not be measured."),
    def(Gauge, "container_sockets", "", ROW, "Open sockets of its processes."),
    def(Gauge, "container_spec_cpu_period", "", ROW, "Period of the CPU quota, microseconds."),
    def(Gauge, "container_spec_cpu_quota", "", ROW, "CPU time per period, microseconds; only with a quota."),
    def(Gauge, "container_spec_cpu_shares", "", ROW, "CPU shares (1024 is one core's request)."),
    def(Gauge, "container_spec_memory_limit_bytes", "bytes", ROW, "Memory limit, 0 for none."),
    def(Gauge, "container_spec_memory_reservation_limit_bytes", "bytes", ROW, "Soft limit (v1) or memory.min (v2), 0 for none."),
    def(Gauge, "container_spec_memory_swap_limit_bytes", "bytes", ROW, "Limit of swap, 0 for none."),
    def(Gauge, "container_start_time_seconds", "seconds", ROW, "Start, whole seconds since 1970-01-01 UTC."),
    def(Gauge, "container_threads", "", ROW, "Processes and threads."),
    def(Gauge, "container_threads_max", "", ROW, "So many there may be, 0 for no limit."),
    def(Gauge, "container_ulimits_soft", "", ROW_ULIMIT, "The lowest soft limit of open files among its processes (ulimit=\"max_open_files\"); -1 for none."),
    def(Gauge, "machine_cpu_cores", "", MACHINE, "CPUs."),
    def(Gauge, "machine_cpu_physical_cores", "", MACHINE, "Cores of the CPUs' packages."),
    def(Gauge, "machine_cpu_sockets", "", MACHINE, "Packages of CPUs."),
    def(Gauge, "machine_memory_bytes", "bytes", MACHINE, "Memory."),
    def(Gauge, "machine_scrape_error", "", &[], "1 if the machine could not be read."),
    def(Gauge, "machine_swap_bytes", "bytes", MACHINE, "Swap."),
];

/// `/metrics/resource`.
#[rustfmt::skip]
pub static RESOURCE: &[MetricDef] = &[
    def(Counter, "container_cpu_usage_seconds_total", "seconds", CONTAINER, "CPU time of the container."),
    def(Gauge, "container_memory_working_set_bytes", "bytes", CONTAINER, "Working set of the container."),
    def(Gauge, "container_start_time_seconds", "seconds", CONTAINER, "Start of the container, since 1970-01-01 UTC."),
    def(Gauge, "container_swap_limit_bytes", "bytes", CONTAINER, "Limit of swap of the container; only where there is one."),
    def(Gauge, "container_swap_usage_bytes", "bytes", CONTAINER, "Swap in use by the container."),
    def(Counter, "node_cpu_usage_seconds_total", "seconds", &[], "CPU time of the node, since boot."),
    def(Gauge, "node_memory_working_set_bytes", "bytes", &[], "Working set of the node."),
    def(Gauge, "node_swap_usage_bytes", "bytes", &[], "Swap in use on the node."),
    def(Counter, "pod_cpu_usage_seconds_total", "seconds", POD, "CPU time of the pod."),
    def(Gauge, "pod_memory_working_set_bytes", "bytes", POD, "Working set of the pod."),
    def(Gauge, "pod_swap_usage_bytes", "bytes", POD, "Swap in use by the pod."),
    def(Gauge, "resource_scrape_error", "", &[], "1 if the node or its containers could not be measured."),
];

/// `/metrics/probes`.
#[rustfmt::skip]
pub static PROBES: &[MetricDef] = &[
    def(Kind::Histogram, "prober_probe_duration_seconds", "seconds", PROBE, "Time of successful probes."),
    def(Counter, "prober_probe_total", "", PROBE_RESULT, "Answers to probes: `successful` or `failed`. Probes that could not be made are not counted."),
];

/// A difference from the stock kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs: names of families or fields.
    pub what: &'static [&'static str],
    /// How, and why.
    pub why: &'static str,
    /// How it shows where both answer at the same time; nothing where that cannot be seen so.
    pub shows: &'static [Shows],
}

const fn diff(what: &'static [&'static str], why: &'static str) -> Difference {
    Difference { what, why, shows: &[] }
}

impl Difference {
    const fn shows(self, shows: &'static [Shows]) -> Self {
        Self { shows, ..self }
    }
}

/// How a difference shows to who compares two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shows {
    /// A series, or field, that only the stock kubelet has.
    OnlyStock,
    /// One that only beelet has.
    OnlyBeelet,
    /// The type, or the image, is another.
    Labels,
    /// The value is another.
    Values,
}

/// What stands in for the stock kubelet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/metrics/cadvisor`.
    Cadvisor,
    /// `/metrics/resource`.
    Resource,
    /// `/stats/summary`.
    Summary,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Cadvisor, Self::Resource, Self::Summary];

    /// The path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Cadvisor => "/metrics/cadvisor",
            Self::Resource => "/metrics/resource",
            Self::Summary => "/stats/summary",
        }
    }
}

const ONLY_STOCK: &[Shows] = &[Shows::OnlyStock];
const ONLY_BEELET: &[Shows] = &[Shows::OnlyBeelet];
const ONLY_ONE: &[Shows] = &[Shows::OnlyStock, Shows::OnlyBeelet];
const VALUES: &[Shows] = &[Shows::Values];

const OTHER_SLICES: &[&str] = &["cgroups outside of kubepods"];

/// Families of `/metrics/cadvisor` that the stock kubelet serves and beelet does not.
#[rustfmt::skip]
pub const CADVISOR_MISSING: &[Difference] = &[
    diff(&["container_cpu_load_average_10s", "container_cpu_load_d_average_10s", "container_health_state", "container_tasks_state"], "The stock kubelet's values never change (0, 0, -1, 0): nothing measures them there. `beelet_runq_latency_seconds`, `beelet_pod_health_state` and `beelet_tasks` say what these names promise.").shows(ONLY_STOCK),
    diff(&["container_fs_io_current", "container_fs_io_time_seconds_total", "container_fs_io_time_weighted_seconds_total", "container_fs_read_seconds_total", "container_fs_reads_merged_total", "container_fs_sector_reads_total", "container_fs_sector_writes_total", "container_fs_write_seconds_total", "container_fs_writes_merged_total"], "The stock kubelet has them for the node's disks only (`id=\"/\"`), the times too small by a factor of a million. They are copies of /proc/diskstats, which node_exporter serves rightly; per container and pod there is `beelet_disk_latency_seconds`.").shows(ONLY_STOCK),
    diff(&["container_fs_io_cost_indebt_seconds_total", "container_fs_io_cost_indelay_seconds_total", "container_fs_io_cost_usage_seconds_total", "container_fs_io_cost_wait_seconds_total"], "Only with the io.cost controller switched on, which beelet does not read.").shows(ONLY_STOCK),
    diff(&["machine_cpu_books", "machine_cpu_drawers"], "0 on all machines but s390x.").shows(ONLY_STOCK),
    diff(&["machine_dimm_capacity_bytes", "machine_dimm_count", "machine_nvm_avg_power_budget_watts", "machine_nvm_capacity"], "Memory modules do not concern pods; without ipmctl the stock kubelet says 0 of non-volatile ones.").shows(ONLY_STOCK),
];

/// Families of `/metrics/cadvisor` of which the values or the rows differ.
#[rustfmt::skip]
pub const CADVISOR_OTHER: &[Difference] = &[
    diff(&["timestamps"], "Each cgroup has the time of its last reading, which is at most 10 s old; the stock kubelet's is up to 30 s old."),
    diff(&["container_file_descriptors", "container_processes", "container_sockets"], "Of the cgroup and all below, where the stock kubelet counts the processes directly in it: pods have their sum instead of 0.").shows(VALUES),
    diff(&["container_memory_failcnt", "container_memory_kernel_usage"], "On cgroup v2 the stock kubelet says 0; beelet has the kernel's numbers (`max` of memory.events, `kernel` of memory.stat)."),
    diff(&["container_memory_failures_total"], "With cgroup v1 controllers the stock kubelet's numbers of pods lack their containers; beelet's have them.").shows(VALUES),
    diff(&["container_oom_events_total"], "Counted in the kernel per container, over its restarts; the row stays while the container is down, when the stock kubelet's is gone with the cgroup. Pods and slices have no row, so that a sum counts nothing twice."),
    diff(&["container_pressure_cpu_stalled_seconds_total", "container_pressure_cpu_waiting_seconds_total", "container_pressure_io_stalled_seconds_total", "container_pressure_io_waiting_seconds_total", "container_pressure_memory_stalled_seconds_total", "container_pressure_memory_waiting_seconds_total"], "On machines with cgroup v1 controllers too, where the v2 hierarchy beside them tells the pressure; the stock kubelet has none there.").shows(ONLY_BEELET),
    diff(&["container_blkio_device_usage_total"], "`operation` is Read or Write everywhere; with cgroup v1 controllers the stock kubelet has Async, Discard, Sync and Total, too.").shows(ONLY_ONE),
    diff(&["container_fs_inodes_free", "container_fs_inodes_total", "container_fs_limit_bytes", "container_fs_usage_bytes", "container_memory_total_active_file_bytes", "container_memory_mapped_file"], "Left out of a row where the kernel does not tell, where the stock kubelet writes 0. File systems are those mounted now but pods' own; the stock kubelet keeps to those that were mounted when it started, pods' own among them.").shows(ONLY_ONE),
    diff(&["container_network_receive_bytes_total", "container_network_receive_errors_total", "container_network_receive_packets_dropped_total", "container_network_receive_packets_total", "container_network_transmit_bytes_total", "container_network_transmit_errors_total", "container_network_transmit_packets_dropped_total", "container_network_transmit_packets_total"], "Pods of the node's network have none: the stock kubelet repeats the node's interfaces for each of them. `beelet_network_bytes_total` has their own traffic. The node's are those of the network namespace that beelet runs in; the stock kubelet's are those of process 1, the same where both run on the node itself.").shows(&[Shows::OnlyStock, Shows::OnlyBeelet, Shows::Values]),
    diff(&["container_spec_cpu_period", "container_spec_cpu_quota", "container_spec_cpu_shares", "container_spec_memory_reservation_limit_bytes", "container_spec_memory_swap_limit_bytes", "container_threads_max"], "Left out of rows of which the cgroup's knobs are not read.").shows(ONLY_STOCK),
    diff(&["container_start_time_seconds"], "Of a container the time at which the runtime started it; the stock kubelet takes the time at which the cgroup's folder was made, a little earlier.").shows(VALUES),
    diff(&["container_ulimits_soft"], "The lowest limit among the container's processes, not that of its first; pods have that of all of theirs.").shows(&[Shows::OnlyBeelet, Shows::Values]),
    diff(&["container_last_seen"], "In OpenMetrics, too, which the stock kubelet does not serve."),
    diff(&["container_spec_memory_swap_limit_bytes"], "The limit of swap alone; with cgroup v1 controllers the stock kubelet gives memory and swap together.").shows(VALUES),
    diff(OTHER_SLICES, "Rows are `/`, the pods' cgroup and the QoS classes', pods, sandboxes, containers, the cgroups of beelet itself and of the runtime, and the node's first-level cgroups; the stock kubelet has those that its configuration names. A container that is found but not yet read has no row."),
];

/// Rows that the stock kubelet has in some families of `/metrics/cadvisor` and beelet has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowsLeftOut {
    /// Families whose names begin so.
    pub families: &'static str,
    /// Which rows: `R` the node (`id="/"`), `S` slices, `P` pods, `B` sandboxes, `C` containers.
    pub rows: &'static str,
    /// Why.
    pub why: &'static str,
}

const fn no_rows(families: &'static str, rows: &'static str, why: &'static str) -> RowsLeftOut {
    RowsLeftOut { families, rows, why }
}

const NO_DETAILS: &str = "Open files, processes, devices and knobs are read of containers and pods; a sandbox has one process that does \
nothing, a slice is the sum of its pods, and of the whole node node_exporter tells.";

/// These rows.
#[rustfmt::skip]
pub const CADVISOR_ROWS: &[RowsLeftOut] = &[
    no_rows("container_blkio_device_usage_total", "RSB", NO_DETAILS),
    no_rows("container_file_descriptors", "RSB", NO_DETAILS),
    no_rows("container_fs_reads_", "RSB", NO_DETAILS),
    no_rows("container_fs_writes_", "RSB", NO_DETAILS),
    no_rows("container_memory_cache", "R", "The root cgroup's memory is told by /proc/meminfo alone: its use, working set, anonymous memory, swap and faults."),
    no_rows("container_memory_failcnt", "R", "The node has no limit."),
    no_rows("container_memory_kernel_usage", "R", "As container_memory_cache."),
    no_rows("container_memory_mapped_file", "R", "As container_memory_cache."),
    no_rows("container_memory_max_usage_bytes", "R", "As container_memory_cache."),
    no_rows("container_memory_total_", "R", "As container_memory_cache."),
    no_rows("container_oom_events_total", "RSPB", "An OOM kill counts in its container's row, once."),
    no_rows("container_processes", "RSB", NO_DETAILS),
    no_rows("container_sockets", "RSB", NO_DETAILS),
    no_rows("container_spec_cpu_", "RB", NO_DETAILS),
    no_rows("container_spec_memory_reservation_limit_bytes", "RB", NO_DETAILS),
    no_rows("container_spec_memory_swap_limit_bytes", "R", "The node has no limit; `machine_swap_bytes` has its swap."),
    no_rows("container_threads", "R", "The root cgroup does not count them; the stock kubelet says 0 with cgroup v1 controllers."),
    no_rows("container_threads_max", "RB", NO_DETAILS),
    no_rows("container_ulimits_soft", "RSB", NO_DETAILS),
];

/// Differences of `/metrics/resource`.
#[rustfmt::skip]
pub const RESOURCE_OTHER: &[Difference] = &[
    diff(&["container_swap_limit_bytes"], "The limit of swap alone; with cgroup v1 controllers the stock kubelet gives memory and swap together.").shows(VALUES),
    diff(&["container_start_time_seconds"], "When the runtime started the container; the stock kubelet takes when it was created, some milliseconds before.").shows(VALUES),
    diff(&["container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "pod_cpu_usage_seconds_total", "pod_memory_working_set_bytes"], "What could not be read is left out; the stock kubelet asks the runtime, or writes 0."),
];

/// Differences of `/stats/summary`.
#[rustfmt::skip]
pub const SUMMARY_OTHER: &[Difference] = &[
    diff(&["usageNanoCores"], "From the rate that beelet acts on, over a second or more, in steps of a thousandth of a core; of system containers between two requests, so it is missing in the first answer.").shows(VALUES),
    diff(&["usageBytes", "workingSetBytes", "rssBytes", "pageFaults", "majorPageFaults", "availableBytes", "inodesUsed"], "Left out where the kernel does not tell; the stock kubelet may write 0."),
    diff(&["pageFaults", "majorPageFaults"], "With cgroup v1 controllers the stock kubelet's numbers of the node, slices and pods lack what is below; beelet's have it.").shows(VALUES),
    diff(&["psi"], "Left out where the kernel has none, instead of zeros; with cgroup v1 controllers the v2 hierarchy's. `total` is in microseconds, as the stock kubelet's is, whatever its documentation says.").shows(&[Shows::OnlyStock, Shows::Values]),
    diff(&["swapAvailableBytes"], "Limit of swap less use; with cgroup v1 controllers the stock kubelet forgets to take memory off.").shows(VALUES),
    diff(&["network"], "Pods of the node's network have none; the node's is that of the network namespace that beelet runs in.").shows(&[Shows::OnlyStock, Shows::OnlyBeelet, Shows::Values]),
    diff(&["volume", "ephemeral-storage"], "emptyDir volumes only, and those made from the API; ephemeral storage is the sum of writable layers, logs and those of the volumes that are not in memory. Beside a kubelet, whose folder of volumes beelet does not read, there are no volumes.").shows(&[Shows::OnlyStock, Shows::Values]),
    diff(&["process_stats"], "Processes of all containers, by the details, which may be some seconds older than the rest."),
    diff(&["systemContainers"], "kubelet (beelet itself, so the numbers are others), runtime and pods, as far as they could be found.").shows(&[Shows::OnlyStock, Shows::OnlyBeelet, Shows::Values]),
    diff(&["whitespace"], "One line, not indented."),
    diff(&["startTime"], "Of a container when the runtime started it, not when it was created; with `only_cpu_and_memory` the node's is the boot time, too.").shows(VALUES),
];

/// Differences of all of them.
#[rustfmt::skip]
pub const ALL_OTHER: &[Difference] = &[
    diff(&["OpenMetrics"], "Served where the client asks for it; the stock kubelet's text endpoints know the text format (and protobuf, which beelet does not serve)."),
    diff(&["Process-Start-Time-Unix"], "The header is not sent; `process_start_time_seconds` stands in /metrics."),
    diff(&["bounds"], "At most 256 series per row and 4000 rows; what is left out is counted in `beelet_series_dropped_total`. The bounds of `/metrics` are in [metrics.md](metrics.md)."),
    diff(&["/metrics/probes"], "Empty beside a kubelet, whose probes are its own."),
];

/// Whether that family of `/metrics/cadvisor` is left out on purpose.
#[must_use]
pub fn is_left_out(family: &str) -> bool {
    CADVISOR_MISSING.iter().any(|difference| difference.what.contains(&family))
}

/// Why a difference that was seen is there: `what` is a family, of `/stats/summary` the path of a field (`pods.memory.rssBytes`); `row` is
/// `R`, `S`, `P`, `B` or `C`. `None` for a difference that is not in the lists.
#[must_use]
pub fn why_differs(endpoint: Endpoint, what: &str, shows: Shows, row: char) -> Option<&'static str> {
    let listed = |lists: &[&[Difference]]| {
        let is_of = |it: &&Difference| it.what.contains(&what) || what.split('.').any(|part| it.what.contains(&part));
        lists.iter().flat_map(|list| *list).filter(|it| it.shows.contains(&shows)).find(is_of).map(|it| it.why)
    };
    match endpoint {
        Endpoint::Cadvisor => {
            let left_out = |it: &&RowsLeftOut| what.starts_with(it.families) && it.rows.contains(row);
            let rows = CADVISOR_ROWS.iter().find(left_out).filter(|_| shows == Shows::OnlyStock).map(|it| it.why);
            let other_slices = || {
                let list = CADVISOR_OTHER.iter().find(|it| it.what == OTHER_SLICES);
                list.filter(|_| row == 'S' && shows <= Shows::OnlyBeelet).map(|it| it.why)
            };
            rows.or_else(|| listed(&[CADVISOR_MISSING, CADVISOR_OTHER])).or_else(other_slices)
        }
        Endpoint::Resource => listed(&[RESOURCE_OTHER]),
        Endpoint::Summary => listed(&[SUMMARY_OTHER]),
    }
}

/// The rows of a table, for docs/metrics.md.
fn rows(out: &mut String, table: &[MetricDef]) {
    out.push_str("\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
    for m in table {
        let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
        let _ =
            writeln!(out, "| `{}` | {} | {} | {} | {} |", m.name, m.kind.as_str(), m.unit, labels.join(" "), m.help);
    }
}

/// The section of docs/metrics.md on these endpoints.
#[must_use]
pub fn markdown_section() -> String {
    let mut out = String::from(
        "\n## What stands in for the stock kubelet's\n\n\
         Names, labels and timestamps are the stock kubelet's, so that what was made for it goes on working;\n\
         [compatibility-metrics.md](compatibility-metrics.md) lists the differences.\n\n",
    );
    let _ = write!(out, "*Cost:* {}\n\n### GET /metrics/cadvisor\n", Group::Container.cost());
    rows(&mut out, CADVISOR);
    out.push_str("\n### GET /metrics/resource\n");
    rows(&mut out, RESOURCE);
    out.push_str("\n### GET /metrics/probes\n");
    rows(&mut out, PROBES);
    out
}

/// `docs/compatibility-metrics.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Where beelet's metrics differ from the stock kubelet's\n\n\
         <!-- Rendered from agent/src/report/dropin_table.rs; a test compares them. To write it anew:\n\
         BEELET_WRITE_DOCS=1 cargo test -p beelet --lib report::dropin_table -->\n\n\
         `/metrics/cadvisor`, `/metrics/resource` and `/stats/summary` answer as the stock kubelet's do: the same names, labels,\n\
         units and timestamps. Measured against release 1.36 with cAdvisor 0.56. What is not named here is the same.\n",
    );
    for (heading, list) in [
        ("All of them", ALL_OTHER),
        ("/metrics/cadvisor: not served", CADVISOR_MISSING),
        ("/metrics/cadvisor: served, but not quite the same", CADVISOR_OTHER),
        ("/metrics/resource", RESOURCE_OTHER),
        ("/stats/summary", SUMMARY_OTHER),
    ] {
        let _ = write!(out, "\n## {heading}\n\n| what | how and why |\n|---|---|\n");
        for difference in list {
            let what: Vec<String> = difference.what.iter().map(|name| format!("`{name}`")).collect();
            let _ = writeln!(out, "| {} | {} |", what.join(" "), difference.why);
        }
    }
    out.push_str(
        "\n## /metrics/cadvisor: rows left out\n\n\
         Rows: R the node (`id=\"/\"`), S slices, P pods, B sandboxes, C containers.\n\n\
         | families | rows | why |\n|---|---|---|\n",
    );
    for rows in CADVISOR_ROWS {
        let _ = writeln!(out, "| `{}` | {} | {} |", rows.families, rows.rows, rows.why);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_follow_the_conventions() {
        for table in [CADVISOR, RESOURCE, PROBES] {
            assert!(table.is_sorted_by(|a, b| a.name < b.name), "sorted, none twice");
            for m in table {
                assert!(m.labels.is_sorted_by(|a, b| a < b), "labels of {}", m.name);
                assert!(m.help.ends_with('.') && !m.help.contains('|'), "help of {}", m.name);
                // All of upstream's counters do.
                assert_eq!(
                    m.kind == Counter,
                    m.name.ends_with("_total") && m.name != "container_fs_inodes_total"
                        || m.name == "container_memory_failcnt",
                    "{}",
                    m.name
                );
            }
        }
    }

    #[test]
    fn no_family_is_served_and_left_out() {
        let served = |name: &str| CADVISOR.iter().any(|m| m.name == name);
        for name in CADVISOR_MISSING.iter().flat_map(|d| d.what) {
            assert!(!served(name), "{name} is served");
        }
        for name in CADVISOR_OTHER.iter().flat_map(|d| d.what).filter(|name| name.starts_with("container_")) {
            assert!(served(name), "{name} is not served");
        }
        for name in RESOURCE_OTHER.iter().flat_map(|d| d.what) {
            assert!(RESOURCE.iter().any(|m| m.name == *name), "{name} is not served");
        }
    }

    #[test]
    fn the_document_is_this_list() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/compatibility-metrics.md");
        if std::env::var_os("BEELET_WRITE_DOCS").is_some() {
            std::fs::write(&path, markdown()).expect("docs/compatibility-metrics.md is writable");
        }
        let written = std::fs::read_to_string(&path).expect("docs/compatibility-metrics.md");
        assert!(written == markdown(), "docs/compatibility-metrics.md differs: BEELET_WRITE_DOCS=1 writes it anew");
    }
}
