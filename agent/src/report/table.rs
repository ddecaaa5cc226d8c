//! Every metric that beelet serves, once.
//!
//! Problem: a metric's name lives in the code that fills it, in the documentation, in dashboards, in alerts and in their tests;
//! five copies drift. Approach: one table. [`super::metrics`] can only emit what stands here; `docs/metrics.md` is rendered from
//! it; a test compares dashboards, rules and alerts with it.
//!
//! Terms: *kubelet names* are names that the stock kubelet or its cAdvisor serve with the same meaning; *own names* begin with
//! `beelet_`.
//!
//! Properties: counters end in `_total` (but for `kubelet_evictions`, which upstream named otherwise); units are base units and
//! stand in the name; container rows have a non-empty `container`, rows of a whole pod have `container=""`, so that a sum over
//! `container!=""` counts nothing twice.

use std::fmt::Write as _;

use super::exposition::Caps;
use super::metrics::Bounds;

/// Counter, gauge or histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; starts again at zero.
    Counter,
    /// A value at this moment.
    Gauge,
    /// Counts by size; each only grows.
    Histogram,
}

impl Kind {
    /// As Prometheus writes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Under which heading it is documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Names and meanings of cAdvisor.
    Container,
    /// Names and meanings of the kubelet.
    Kubelet,
    /// beelet's own, about pods: their state and what is expected of them.
    Pod,
    /// beelet's own, about the CPU of containers.
    Cpu,
    /// beelet's own, about the memory of containers.
    Memory,
    /// beelet's own, about the network of pods.
    Network,
    /// beelet's own, about disks.
    Disk,
    /// beelet's own, about processes.
    Processes,
    /// beelet's own, about the node.
    Node,
    /// beelet's own, about the agent.
    Agent,
    /// The process.
    Process,
}

impl Group {
    /// Where its metrics come from, how often that is read, and what it costs. Numbers are those of the modules that are named.
    #[must_use]
    pub const fn cost(self) -> &'static str {
        match self {
            Self::Container => {
                "The readings of the groups above by other names: `cpu.stat`, `memory.stat` and the like, `io.stat`, `/proc/PID/fd`, \
                 the pods' network devices. Nothing is read for a scrape."
            }
            Self::Kubelet => "What the agent decided and did, counted as it happens. Nothing is read for it.",
            Self::Pod => {
                "State, health and restarts: what the agent decided, with each step. Memory: the pod's cgroup files with each full look, \
                 every second, and down to every 20 ms while memory is short; 1 us for a cgroup in which nothing ran, 15 us for one in \
                 which something did (measure/watched.rs). CPU by eBPF: program `sched_switch`, its table read with each full look. \
                 Kills: program `oom_victim`, once for each kill. Listening ports: program `socket_state`, and a visit to the pod's \
                 network namespace (see Network)."
            }
            Self::Cpu => {
                "Program `sched_switch`, once for each context switch of the node: the dearest of all programs, for nothing happens as \
                 often. Its tables are read every 5 s, sums with each full look; histograms and preemptions come with a pod's details, \
                 every 10 s, every 30 s where nothing runs."
            }
            Self::Memory => {
                "`memory.stat`, `memory.events` and the like of each cgroup with a full look, `memory.stat`, the dearest file of a \
                 cgroup, only if enough ran since to change it (measure/watched.rs). Stalls and memory freed: programs `reclaim_begin`, \
                 `reclaim_end`, `limit_begin`, `limit_end`, which run only when a task must free memory itself; their table is read \
                 every 5 s."
            }
            Self::Network => {
                "Programs `skb_ingress` and `skb_egress`, once for each packet of a pod's sockets; `socket_state`, `tcp_retransmit`, \
                 `tcp_send_reset`, `tcp_receive_reset`, `packet_drop`, once for each such event; their tables are read every 5 s. \
                 Listeners and the stack's counters: a visit to the pod's network namespace every 10 s, and soon after a new listener \
                 was told of; 155 us each by netlink, 8.2 ms by files (measure/network.rs)."
            }
            Self::Disk => {
                "Requests: program `disk_request`, once for each request that ends; its table is read every 5 s. Disk space of \
                 logs and volumes: a walk over their files, again 15 s after it ended, at 1 % of a core at most while it goes on \
                 (measure/storage.rs); of writable layers the runtime's word, about a millisecond of the runtime's for each container."
            }
            Self::Processes => {
                "Programs `process_fork` and `process_exec`, once for each. Threads by state: the iterator `task_walk` over all tasks. \
                 Open files: `/proc/PID/fd` of each process; a container with more than 256 is left out. \
                 All come with a pod's details, every 10 s, every 30 s where nothing runs."
            }
            Self::Node => {
                "`/proc/meminfo` and the cgroup of all pods with each look, 0.09 ms (benchmarks.md); `/proc/stat` with full ones; switches \
                 and pressure every 10 s. The rest is what the agent decided; \
                 forecasts are scored with each look from what it has read anyway."
            }
            Self::Agent => {
                "Counted as it happens. Times of eBPF programs: the kernel measures them for one second in every thirty, in which each \
                 run costs 60 ns more. How full the maps are: each is gone through every 10 s."
            }
            Self::Process => "`/proc/self`, read for each scrape of `/metrics`.",
        }
    }
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct MetricDef {
    /// Its heading.
    pub group: Group,
    /// The full name.
    pub name: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// The base unit, "" for a bare number.
    pub unit: &'static str,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

impl MetricDef {
    /// So many labels, the first ones, say which pod or container it is about.
    #[must_use]
    pub fn place(&self) -> usize {
        self.labels.iter().zip(CONTAINER).take_while(|(label, of)| label == of).count()
    }
}

const fn def(
    group: Group,
    kind: Kind,
    name: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricDef {
    MetricDef { group, name, kind, unit, labels, help }
}

const CONTAINER: &[&str] = &["namespace", "pod", "container"];
const POD: &[&str] = &["namespace", "pod"];

use Group::{Agent, Cpu, Disk, Kubelet, Memory, Network, Node, Pod, Process, Processes};
use Kind::{Counter, Gauge, Histogram};

/// The table.
#[rustfmt::skip]
pub static METRICS: &[MetricDef] = &[
    def(Kubelet, Gauge, "kubelet_node_name", "", &["node"], "The node's name; always 1."),
    def(Kubelet, Gauge, "kubelet_running_pods", "", &[], "Pods with at least one running container."),
    def(Kubelet, Gauge, "kubelet_running_containers", "", &["container_state"], "Containers by state: created, exited, running."),
    def(Kubelet, Gauge, "kubelet_container_log_filesystem_used_bytes", "bytes", &["namespace", "pod", "container", "uid"], "Bytes used by the container's logs on the file system."),
    def(Kubelet, Counter, "kubelet_evictions", "", &["eviction_signal"], "Pods evicted, by signal."),
    def(Kubelet, Histogram, "kubelet_eviction_stats_age_seconds", "seconds", &["eviction_signal"], "Age of the reading that an eviction was decided on, by signal."),
    def(Kubelet, Counter, "kubelet_runtime_operations_total", "", &["operation_type"], "Calls to the container runtime, by kind."),
    def(Kubelet, Counter, "kubelet_runtime_operations_errors_total", "", &["operation_type"], "Calls to the container runtime that failed, by kind."),
    def(Kubelet, Histogram, "kubelet_runtime_operations_duration_seconds", "seconds", &["operation_type"], "How long calls to the container runtime took, by kind."),
    def(Kubelet, Counter, "kubelet_started_pods_total", "", &[], "Sandboxes that the agent tried to start."),
    def(Kubelet, Counter, "kubelet_started_pods_errors_total", "", &[], "Sandboxes that could not be started."),
    def(Kubelet, Counter, "kubelet_started_containers_total", "", &[], "Containers that the agent tried to start."),
    def(Kubelet, Counter, "kubelet_started_containers_errors_total", "", &[], "Containers that could not be started."),

    def(Pod, Gauge, "beelet_pod_info", "", &["namespace", "pod", "uid", "node", "qos_class", "pod_ip", "foreign"], "A pod on this node; always 1. foreign=\"true\": somebody else started it."),
    def(Pod, Gauge, "beelet_pod_phase", "", &["namespace", "pod", "phase"], "1 for the pod's phase, 0 for the others."),
    def(Pod, Gauge, "beelet_pod_start_time_seconds", "seconds", POD, "When the pod was first seen, since 1970-01-01 UTC."),
    def(Pod, Gauge, "beelet_pod_health_state", "", &["namespace", "pod", "state", "reason"], "1 for the pod's verdict (Unknown, Healthy, Suspect, Unhealthy) with its reason."),
    def(Pod, Gauge, "beelet_pod_time_to_oom_seconds", "seconds", POD, "Time until the pod's own memory limit is hit at the present growth; +Inf for no limit or no growth."),
    def(Pod, Gauge, "beelet_pod_rung", "", &["namespace", "pod", "rung"], "1 while the pod is on a rung of the ladder: reclaim, throttle, raise, freeze, leave."),
    def(Pod, Gauge, "beelet_pod_listening_ports", "", POD, "TCP ports that the pod listens on; none of pods in the host's network, and before the first visit to the pod's."),
    def(Pod, Gauge, "beelet_pod_resize_pending", "", POD, "1 while a change of resources is deferred or under way."),
    def(Pod, Gauge, "beelet_memory_unreclaimable_bytes", "bytes", CONTAINER, "Memory that reclaim cannot free: usage less file cache and reclaimable slab."),
    def(Pod, Gauge, "beelet_memory_growth_bytes_per_second", "bytes per second", POD, "Growth of what reclaim cannot free."),
    def(Pod, Counter, "beelet_cpu_ebpf_seconds_total", "seconds", CONTAINER, "CPU time by eBPF at sched_switch."),
    def(Pod, Gauge, "beelet_container_cpu_burst_seconds", "seconds", CONTAINER, "Unused CPU quota that the container may spend later, given by beelet."),
    def(Pod, Gauge, "beelet_container_restarts", "", CONTAINER, "Restarts of the container in the pod as it is now."),
    def(Pod, Counter, "beelet_container_restarts_total", "", CONTAINER, "Restarts; outlives the pod."),
    def(Pod, Counter, "beelet_process_exits_total", "", &["namespace", "pod", "container", "reason", "value"], "Ends of containers by exit code (reason=\"code\") or fatal signal (reason=\"signal\"); outlives the pod."),
    def(Pod, Counter, "beelet_oom_kills_total", "", CONTAINER, "Kills by the kernel's OOM killer; outlives container and pod."),
    def(Pod, Counter, "beelet_oom_kills_by_process_total", "", &["namespace", "pod", "container", "comm"], "Processes that the OOM killer chose, by name (16 of a container, then comm=\"other\"), by eBPF; outlives the pod."),

    def(Pod, Gauge, "beelet_pod_lost_time_ratio", "ratio", &["namespace", "pod", "cause", "culprit"], "Share of wall-clock time that the pod lost to a cause of slowness, while it stands: OwnCpuLimit, NoisyNeighbour (culprit: the pod), NodeOverload, OwnMemoryLimit, NodeMemory, SlowDisk (culprit: the device), OwnIoLimit, PacketLoss."),
    def(Pod, Gauge, "beelet_pod_reading_age_seconds", "seconds", POD, "Age of the oldest cgroup reading of the pod in this picture; a pod in which nothing runs keeps its readings for up to 10 s."),
    def(Pod, Gauge, "beelet_pod_detail_age_seconds", "seconds", POD, "Age of the pod's histograms and other details in this picture."),

    def(Cpu, Histogram, "beelet_runq_latency_seconds", "seconds", CONTAINER, "Waits for a CPU before each stint on one, throttling included, by eBPF from the scheduler's own clock."),
    def(Cpu, Counter, "beelet_runq_wait_seconds_total", "seconds", CONTAINER, "Time that tasks waited for a CPU, throttling included, by eBPF."),
    def(Cpu, Counter, "beelet_context_switches_total", "", &["namespace", "pod", "container", "kind"], "Switches away from the container's tasks: kind=\"involuntary\" (preempted) or \"voluntary\"."),
    def(Cpu, Counter, "beelet_preempted_total", "", &["namespace", "pod", "container", "by"], "Preemptions by who took the CPU: by=\"own\" (same container), \"pod\" (a pod, the same one's other containers included), \"system\"."),
    def(Cpu, Counter, "beelet_preempted_by_pod_total", "", &["namespace", "pod", "by_namespace", "by_pod"], "Preemptions by other pods, the five most frequent that are still here."),

    def(Memory, Gauge, "beelet_memory_kind_bytes", "bytes", &["namespace", "pod", "container", "kind"], "Memory by what it is: anon, file, shmem, mapped_file, dirty, writeback, unevictable, slab_reclaimable, slab_unreclaimable, kernel, kernel_stack, page_tables, percpu, sock, swap; what the kernel does not tell is left out. They overlap."),
    def(Memory, Gauge, "beelet_memory_peak_bytes", "bytes", CONTAINER, "The highest usage since the start."),
    def(Memory, Counter, "beelet_memory_refaults_total", "", &["namespace", "pod", "container", "kind"], "Pages that came back soon after reclaim had dropped them: kind=\"file\" or \"anon\"."),
    def(Memory, Counter, "beelet_memory_major_faults_total", "", CONTAINER, "Page faults that had to read."),
    def(Memory, Counter, "beelet_memory_reclaim_pages_total", "", &["namespace", "pod", "container", "what"], "Pages that reclaim looked at (what=\"scanned\") and freed (what=\"stolen\"), by the cgroup's files."),
    def(Memory, Counter, "beelet_memory_events_total", "", &["namespace", "pod", "container", "event"], "Times that memory.high was exceeded (event=\"high\"), the limit reached (\"max\"), nothing could be freed (\"oom\")."),
    def(Memory, Histogram, "beelet_reclaim_stall_seconds", "seconds", &["namespace", "pod", "container", "scope"], "Spells in which a task had to free memory itself: scope=\"node\" for the whole node, \"limit\" for a limit of its cgroup or one above; by eBPF."),
    def(Memory, Counter, "beelet_reclaimed_bytes_total", "bytes", CONTAINER, "Memory freed in these spells."),

    def(Network, Counter, "beelet_network_bytes_total", "bytes", &["namespace", "pod", "protocol", "direction"], "Bytes of the pod's sockets, IP headers and up, by eBPF; host-network pods too."),
    def(Network, Counter, "beelet_network_packets_total", "", &["namespace", "pod", "protocol", "direction"], "Packets of the pod's sockets."),
    def(Network, Counter, "beelet_network_drops_total", "", &["namespace", "pod", "reason"], "Packets of the pod's sockets that the kernel dropped, by its reason, by eBPF."),
    def(Network, Counter, "beelet_tcp_connects_total", "", POD, "TCP connections begun by the pod."),
    def(Network, Counter, "beelet_tcp_connect_failures_total", "", POD, "TCP connections begun by the pod that were refused, timed out or given up."),
    def(Network, Counter, "beelet_tcp_accepts_total", "", POD, "TCP connections to the pod that were established."),
    def(Network, Counter, "beelet_tcp_resets_total", "", &["namespace", "pod", "direction"], "TCP resets sent (direction=\"transmit\") and received."),
    def(Network, Counter, "beelet_tcp_retransmits_total", "", POD, "TCP segments sent again."),
    def(Network, Counter, "beelet_tcp_segments_sent_total", "", POD, "TCP segments sent, by the pod's network namespace."),
    def(Network, Histogram, "beelet_tcp_connect_seconds", "seconds", POD, "From SYN to established, of connections begun by the pod."),
    def(Network, Histogram, "beelet_tcp_rtt_seconds", "seconds", POD, "Smoothed round-trip times, seen at one of 16 packets received."),
    def(Network, Counter, "beelet_tcp_timeouts_total", "", POD, "Retransmission timers of TCP that ran out, by the pod's network namespace."),
    def(Network, Gauge, "beelet_tcp_sockets", "", POD, "TCP sockets in use in the pod's network namespace."),
    def(Network, Counter, "beelet_udp_receive_errors_total", "", POD, "Datagrams that could not be delivered, for want of room in a socket's buffer and for other reasons, by the pod's network namespace."),
    def(Network, Counter, "beelet_udp_no_port_total", "", POD, "Datagrams to ports at which nobody listens, by the pod's network namespace."),
    def(Network, Counter, "beelet_listen_overflows_total", "", POD, "Connections refused because too many waited to be accepted, by the pod's network namespace."),
    def(Network, Counter, "beelet_listen_drops_total", "", POD, "These, and connections dropped at a listener for other reasons."),
    def(Network, Gauge, "beelet_listen_backlog", "", &["namespace", "pod", "port"], "Connections that wait to be accepted."),
    def(Network, Gauge, "beelet_listen_backlog_max", "", &["namespace", "pod", "port"], "So many may wait."),
    def(Network, Counter, "beelet_dns_queries_total", "", POD, "DNS queries over UDP."),
    def(Network, Counter, "beelet_dns_answers_total", "", &["namespace", "pod", "result"], "Answers to them: result=\"ok\", \"no_such_name\", \"error\"; what is missing to the queries was lost or is under way."),
    def(Network, Histogram, "beelet_dns_latency_seconds", "seconds", POD, "From DNS query to answer."),
    def(Network, Counter, "beelet_port_requests_total", "", &["namespace", "pod", "port"], "Requests that began at a port that the pod serves over TCP (of pipelined ones the first); port=\"other\" for all but the first 32 ports that a container was asked at."),
    def(Network, Counter, "beelet_port_unanswered_total", "", &["namespace", "pod", "port"], "Connections that ended with a request unanswered."),
    def(Network, Counter, "beelet_port_http_responses_total", "", &["namespace", "pod", "port", "code"], "Answers in clear HTTP/1, by class of the status: 1xx to 5xx."),
    def(Network, Histogram, "beelet_port_latency_seconds", "seconds", &["namespace", "pod", "port"], "From a request's first byte to its answer's first byte, of any protocol in which the client speaks first."),

    def(Disk, Histogram, "beelet_disk_latency_seconds", "seconds", &["namespace", "pod", "container", "device", "operation"], "Requests to block devices, from their making to their end, by eBPF; its count is that of requests."),
    def(Disk, Counter, "beelet_disk_bytes_total", "bytes", &["namespace", "pod", "container", "device", "operation"], "Bytes of these requests."),
    def(Disk, Counter, "beelet_disk_errors_total", "", &["namespace", "pod", "container", "device", "operation"], "Requests that failed."),
    def(Disk, Gauge, "beelet_storage_used_bytes", "bytes", &["namespace", "pod", "kind", "name"], "Disk space in use: kind=\"rootfs\" (a container's writable layer), \"logs\" (a container's), \"volume\"."),
    def(Disk, Gauge, "beelet_storage_used_inodes", "", &["namespace", "pod", "kind", "name"], "Inodes in use there."),

    def(Processes, Counter, "beelet_process_starts_total", "", &["namespace", "pod", "container", "what"], "Processes made (what=\"fork\"), threads made (\"thread\"), programs begun (\"exec\"), by eBPF."),
    def(Processes, Counter, "beelet_process_ends_total", "", &["namespace", "pod", "container", "reason", "value"], "Ends of processes, whether or not a container ended with them, by exit code (reason=\"code\") or fatal signal (reason=\"signal\"); 16 kinds of a container, then reason=\"other\"; by eBPF; outlives the pod."),
    def(Processes, Gauge, "beelet_tasks", "", &["namespace", "pod", "container", "state"], "Threads by state: running, sleeping, uninterruptible (D), stopped; and zombie processes."),
    def(Processes, Gauge, "beelet_processes", "", CONTAINER, "Processes, zombies included."),
    def(Processes, Gauge, "beelet_open_files", "", CONTAINER, "Open file descriptors of its processes."),
    def(Processes, Gauge, "beelet_open_files_limit", "", CONTAINER, "The lowest soft limit of open files among its processes; +Inf for none."),

    def(Node, Gauge, "beelet_node_time_to_oom_seconds", "seconds", &[], "Time until the pods' cgroup or the node runs out of memory at the present growth; +Inf for no growth."),
    def(Node, Gauge, "beelet_node_memory_available_bytes", "bytes", &[], "memory.available of the node, by what reclaim cannot free."),
    def(Node, Gauge, "beelet_allocatable_memory_available_bytes", "bytes", &[], "What is left below the limit of the pods' cgroup, by what reclaim cannot free."),
    def(Node, Gauge, "beelet_node_memory_pressure", "", &[], "1 while the node has the condition MemoryPressure."),
    def(Node, Gauge, "beelet_node_disk_pressure", "", &[], "1 while the node has the condition DiskPressure."),
    def(Node, Gauge, "beelet_node_pid_pressure", "", &[], "1 while the node has the condition PIDPressure."),
    def(Node, Gauge, "beelet_node_cpu_cores", "cores", &["state"], "CPU in use (state=\"busy\") and idle (state=\"idle\"), all of the node."),
    def(Node, Counter, "beelet_node_cpu_seconds_total", "seconds", &["mode"], "CPU time since boot, all CPUs: mode=\"busy\", \"idle\"; of busy: \"steal\" (taken by the hypervisor), \"interrupts\"."),
    def(Node, Counter, "beelet_node_context_switches_total", "", &[], "Context switches since boot."),
    def(Node, Counter, "beelet_node_pressure_seconds_total", "seconds", &["resource", "kind"], "Time in which some (kind=\"some\") or all (\"full\") tasks of the node waited for cpu, memory, io."),
    def(Node, Gauge, "beelet_allocatable_cpu_cores", "cores", &[], "CPU that pods may request."),
    def(Node, Gauge, "beelet_allocatable_memory_bytes", "bytes", &[], "Memory that pods may request."),
    def(Node, Counter, "beelet_oom_forecasts_total", "", &["scope", "outcome"], "Forecasts of memory running out within 30 s, scored afterwards, by wall (scope=\"node\", \"kubepods\", \"container\": containers' own limits): hit within 45 s by an OOM kill, the hard eviction threshold or an eviction (outcome=\"true_positive\"), not hit (\"false_positive\"); and OOM kills that no such forecast preceded (\"false_negative\")."),
    def(Node, Histogram, "beelet_oom_forecast_lead_seconds", "seconds", &["scope"], "Of the forecasts that came true, the time from the first of them to the hit; from 100 ms to 45 s."),
    def(Node, Counter, "beelet_rung_moves_total", "", &["rung", "result"], "Pods put on a rung of the ladder (`reclaim`, `throttle`, `raise`, `freeze`, `leave`), or that would have been where nothing may be done (`would`)."),
    def(Node, Counter, "beelet_evictions_total", "", &["signal"], "Pods evicted, by signal."),
    def(Node, Counter, "beelet_eviction_decided_total", "", &["signal", "by"], "Evictions by what put the victim before the next in the ranking: by=\"request\" (it held more than it requests, the next did not), \"priority\", \"aggressor\" (it ate the room), \"excess\" (it held more above its request), \"growth\", \"name\"; \"alone\" where there was no next."),
    def(Node, Counter, "beelet_eviction_freed_bytes_total", "bytes", &["signal"], "Memory that evictions freed, of what reclaim cannot free, measured after the kill."),
    def(Node, Histogram, "beelet_eviction_free_seconds", "seconds", &["signal"], "From the decision to evict until a sample showed four fifths of the victim's memory to be free."),
    def(Node, Counter, "beelet_evictions_in_vain_total", "", &["signal"], "Evictions after which less than four fifths of the victim's memory were free within 10 s (and the time it was given)."),
    def(Node, Gauge, "beelet_runtime_up", "", &[], "1 if the container runtime answers."),
    def(Node, Gauge, "beelet_manifest_rejected", "", &["origin"], "Manifests that cannot be run, by file."),

    def(Agent, Gauge, "beelet_build_info", "", &["version", "revision", "mode"], "What runs; always 1."),
    def(Agent, Gauge, "beelet_last_step_timestamp_seconds", "seconds", &[], "When the agent last took a step, since 1970-01-01 UTC."),
    def(Agent, Gauge, "beelet_sample_interval_seconds", "seconds", &[], "The distance of samples at present."),
    def(Agent, Counter, "beelet_actions_total", "", &["action", "result"], "Actions done, by result: success, failure."),
    def(Agent, Counter, "beelet_orphaned_runtime_pods_total", "", &[], "Pods that the runtime had and nobody wanted, found after a start: their manifests went while no agent looked."),
    def(Agent, Counter, "beelet_illegal_transitions_total", "", &[], "Events that did not fit a pod's state and changed nothing."),
    def(Agent, Gauge, "beelet_capability", "", &["name", "reason"], "1 if the kernel, the machine or the runtime can do it; else why not."),
    def(Agent, Gauge, "beelet_runtime_rpc_missing", "", &["rpc"], "A call that the container runtime does not have; always 1."),
    def(Agent, Gauge, "beelet_bpf_program_loaded", "", &["program", "reason"], "1 if the eBPF program is attached; else why not."),
    def(Agent, Gauge, "beelet_bpf_program_instructions", "", &["program"], "Verified instructions of the eBPF program."),
    def(Agent, Counter, "beelet_bpf_program_run_seconds_total", "seconds", &["program"], "Time spent in the eBPF program, estimated from one second in thirty."),
    def(Agent, Counter, "beelet_bpf_program_runs_total", "", &["program"], "Runs of the eBPF program, estimated from one second in thirty."),
    def(Agent, Counter, "beelet_bpf_program_missed_total", "", &["program"], "Events that the kernel did not hand to the eBPF program: they came in an interrupt of the same program (recursion_misses). Its sums lack them."),
    def(Agent, Gauge, "beelet_bpf_program_event_seconds", "seconds", &["program"], "Time of one run of the eBPF program, when it was last measured; some 60 ns of it are the measuring."),
    def(Agent, Gauge, "beelet_own_cpu_cores", "cores", &[], "CPU that the agent and its eBPF programs use, over the last 10 s."),
    def(Agent, Gauge, "beelet_own_looking_cores", "cores", &[], "The part of it that goes with the number of full looks: reading, and judging what was read."),
    def(Agent, Gauge, "beelet_own_budget_cores", "cores", &[], "CPU that they may use: 1 % of a core for each 100 pods, at least 1 %; full looks are taken further apart when they use more than the rest leaves of it, and more than a quarter of it."),
    def(Agent, Gauge, "beelet_sampling_stretch_ratio", "ratio", &[], "Factor on the distance of looks by which the agent saves its own cost; 1 for none."),
    def(Agent, Counter, "beelet_wakeups_total", "", &[], "Times that a thread of the agent was woken."),
    def(Agent, Counter, "beelet_looks_total", "", &["kind"], "Looks: kind=\"quick\" (the node's memory), \"full\" (all pods), \"detail\" (histograms and the like), \"asked\" (the kernel told something), \"network\" (a visit to a pod's network namespace), \"storage\" (a walk over its files)."),
    def(Agent, Counter, "beelet_look_seconds_total", "seconds", &["kind"], "Time spent on them; of network and storage CPU time only."),
    def(Agent, Gauge, "beelet_look_duration_seconds", "seconds", &["kind"], "Time of the last look of this kind."),
    def(Agent, Counter, "beelet_cgroup_readings_total", "", &["how"], "Cgroups in a look: how=\"made\" (files were read), \"held\" (nothing ran in it, so the last reading still holds)."),
    def(Agent, Gauge, "beelet_state_entries", "", &["what"], "Entries that the agent remembers, by what they are of; bounded, so what grows for days is a mistake."),
    def(Agent, Counter, "beelet_scrapes_total", "", &["path"], "Answers given, by path."),
    def(Agent, Gauge, "beelet_scrape_duration_seconds", "seconds", &["path"], "Time that the last answer took: rendering and compressing."),
    def(Agent, Gauge, "beelet_scrape_size_bytes", "bytes", &["path"], "Size of the last answer before compression."),
    def(Agent, Counter, "beelet_series_dropped_total", "", &["path"], "Series left out of answers, because there were too many of a container or in all."),
    def(Agent, Counter, "beelet_series_forgotten_total", "", &[], "Series of counters that outlive their pods that were forgotten, because there were too many of pods that are gone."),
    def(Agent, Gauge, "beelet_bpf_map_entries", "", &["map"], "Entries in the eBPF map."),
    def(Agent, Gauge, "beelet_bpf_map_max_entries", "", &["map"], "Entries that fit into the eBPF map."),
    def(Agent, Counter, "beelet_container_logs_total", "", &["how"], "Container logs: how=\"rotated\" (one was full), \"compressed\" (a rotated file), \"removed\" (a rotated file, because there were too many)."),
    def(Agent, Counter, "beelet_container_log_errors_total", "", &["what"], "What failed with container logs: what=\"look\" (its size), \"rename\", \"reopen\" (the runtime did not), \"compress\", \"remove\", \"link\" (in /var/log/containers)."),
    def(Agent, Counter, "beelet_events_lost_total", "", &["what"], "What was lost, by what it was: kernel events (what=\"events\" for a full ring buffer, \"flood\" for too many at once) and counts (\"cpu\", \"net\", \"reclaim\", \"tcp\", \"dns\", \"ports\", \"drops\", \"disk\", \"life\", \"tasks\" for a full eBPF map). No loss: \"sample\" (looks that nobody took), \"stranger\" (kernel events of cgroups that were no pod's)."),

    def(Process, Counter, "process_cpu_seconds_total", "seconds", &[], "User and system CPU time of the agent."),
    def(Process, Gauge, "process_resident_memory_bytes", "bytes", &[], "Resident memory of the agent."),
    def(Process, Gauge, "process_virtual_memory_bytes", "bytes", &[], "Virtual memory of the agent."),
    def(Process, Gauge, "process_start_time_seconds", "seconds", &[], "Start of the agent, since 1970-01-01 UTC."),
    def(Process, Gauge, "process_open_fds", "", &[], "Open file descriptors of the agent."),
    def(Process, Gauge, "process_max_fds", "", &[], "Limit of open file descriptors of the agent."),
    def(Process, Gauge, "process_threads", "", &[], "Threads of the agent."),
];

/// The metric of that name.
#[must_use]
pub fn find(name: &str) -> Option<&'static MetricDef> {
    METRICS.iter().find(|m| m.name == name)
}

/// `docs/metrics.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         <!-- Rendered from agent/src/report/table.rs; a test compares them. To write it anew:\n\
         BEELET_WRITE_DOCS=1 cargo test -p beelet --lib report::table -->\n\n\
         Each scrape is made from the picture after the agent's newest step, so a series ends when its pod is gone; counters that\n\
         say so outlive it.\n\n\
         **Formats.** All endpoints serve the Prometheus text format 0.0.4, or OpenMetrics 1.0.0 where `Accept` asks for it, and gzip\n\
         where `Accept-Encoding` takes it. Series have the same names in both formats; in OpenMetrics, `kubelet_evictions` and\n\
         `beelet_container_restarts_total` are of type `unknown`: the one does not end in `_total`, the other would share its name\n\
         with a gauge. One answer is made at a time, off the threads that serve.\n\n\
         Rows of containers have a non-empty `container`, rows of whole pods `container=\"\"`: filter with `container!=\"\"`, or sum one\n\
         kind only. A histogram of a pod, container or device in which nothing was counted yet, and a kind that the kernel does not tell, give no series.\n\
         The `container_*` series are at `/metrics/cadvisor`, as with the stock kubelet; see below.\n",
    );
    let Bounds { per_place, whole } = Bounds::DEFAULT;
    let _ = write!(
        out,
        "\n**Bounds.** `GET /metrics` has at most {per_place} series of a metric about one pod or container (the node and the agent count \
         as\none), and {whole} in all; a histogram is 15 series, and whole or not there. `/metrics/cadvisor` and `/metrics/resource`\n\
         have at most {} series of a cgroup and {} cgroups. What is left out is counted in\n\
         `beelet_series_dropped_total`.\n\n\
         **Cost.** Below each heading stands where its metrics come from, how often that is read and what it costs. Looks are taken\n\
         further apart where they would cost more than the agent's budget (`beelet_own_budget_cores`). What each eBPF program costs\n\
         on this node is in `beelet_bpf_program_event_seconds` and `beelet_bpf_program_run_seconds_total`, what looks, visits and\n\
         walks cost in `beelet_look_seconds_total`, what a scrape costs in `beelet_scrape_duration_seconds`.\n",
        Caps::DEFAULT.series_per_row,
        Caps::DEFAULT.rows,
    );
    for (group, heading) in [
        (Kubelet, "The kubelet's names"),
        (Pod, "Pods: what only beelet knows"),
        (Cpu, "CPU, in the kernel"),
        (Memory, "Memory, in the kernel"),
        (Network, "Network, in the kernel"),
        (Disk, "Disks"),
        (Processes, "Processes"),
        (Node, "Node"),
        (Agent, "The agent"),
        (Process, "The agent's process"),
    ] {
        let _ = write!(
            out,
            "\n## {heading}\n\n*Cost:* {}\n\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n",
            group.cost()
        );
        for m in METRICS.iter().filter(|m| m.group == group) {
            let kind = m.kind.as_str();
            let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
            let _ = writeln!(out, "| `{}` | {kind} | {} | {} | {} |", m.name, m.unit, labels.join(" "), m.help);
        }
    }
    out.push_str(&super::dropin_table::markdown_section());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for m in METRICS {
            assert!(seen.insert(m.name), "{} stands twice", m.name);
            assert!(m.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{}", m.name);
            assert!(m.help.ends_with('.') && !m.help.contains('|'), "help of {}", m.name);
            assert_eq!(
                m.kind == Counter,
                m.name.ends_with("_total") || m.name == "kubelet_evictions",
                "{}: counters end in _total",
                m.name
            );
            let stem = m.name.strip_suffix("_total").unwrap_or(m.name);
            match m.unit {
                "" => assert!(!stem.ends_with("_seconds") && !stem.ends_with("_bytes"), "{} needs a unit", m.name),
                unit => assert!(stem.ends_with(&unit.replace(' ', "_")), "{} does not end in its unit {unit}", m.name),
            }
            if ![Kubelet, Process].contains(&m.group) {
                assert!(m.name.starts_with("beelet_"), "{} is not a kubelet name", m.name);
            }
        }
    }

    #[test]
    fn what_a_metric_is_about_is_in_its_first_labels() {
        for m in METRICS {
            let named = CONTAINER.iter().filter(|label| m.labels.contains(label)).count();
            assert_eq!(m.place(), named, "{}", m.name);
        }
    }

    #[test]
    fn each_heading_says_what_its_metrics_cost() {
        let document = markdown();
        for section in document.split("\n## ").skip(1).filter(|section| section.contains("\n| name |")) {
            assert!(section.contains("*Cost:* "), "{section}");
        }
        for m in METRICS.iter().chain(super::super::dropin_table::CADVISOR) {
            assert!(document.contains(m.group.cost()), "{:?}", m.group);
        }
    }

    #[test]
    fn the_document_is_this_table() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        if std::env::var_os("BEELET_WRITE_DOCS").is_some() {
            std::fs::write(&path, markdown()).expect("docs/metrics.md is writable");
        }
        let written = std::fs::read_to_string(&path).expect("docs/metrics.md");
        assert!(written == markdown(), "docs/metrics.md differs from the table: BEELET_WRITE_DOCS=1 writes it anew");
    }
}
