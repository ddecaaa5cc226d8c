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
//! stand in the name; container rows have a non-empty `container`; rows of a whole pod have `container=""` and `image=""`, so
//! that a sum over `container!=""` counts nothing twice.

use std::fmt::Write as _;

/// Counter or gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; starts again at zero.
    Counter,
    /// A value at this moment.
    Gauge,
}

/// Under which heading it is documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Names and meanings of cAdvisor.
    Container,
    /// Names and meanings of the kubelet.
    Kubelet,
    /// beelet's own, about pods.
    Pod,
    /// beelet's own, about the node.
    Node,
    /// beelet's own, about the agent.
    Agent,
    /// The process.
    Process,
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

const CADVISOR: &[&str] = &["container", "id", "image", "name", "namespace", "pod"];
const CADVISOR_CPU: &[&str] = &["container", "cpu", "id", "image", "name", "namespace", "pod"];
const CADVISOR_NET: &[&str] = &["container", "id", "image", "interface", "name", "namespace", "pod"];
const CONTAINER: &[&str] = &["namespace", "pod", "container"];
const POD: &[&str] = &["namespace", "pod"];

use Group::{Agent, Container, Kubelet, Node, Pod, Process};
use Kind::{Counter, Gauge};

/// The table.
#[rustfmt::skip]
pub static METRICS: &[MetricDef] = &[
    def(Container, Counter, "container_cpu_usage_seconds_total", "seconds", CADVISOR_CPU, "CPU time by cpu.stat; where it cannot be read, by eBPF at sched_switch."),
    def(Container, Counter, "container_cpu_cfs_periods_total", "", CADVISOR, "Scheduling periods in which something ran."),
    def(Container, Counter, "container_cpu_cfs_throttled_periods_total", "", CADVISOR, "Scheduling periods in which it was throttled."),
    def(Container, Counter, "container_cpu_cfs_throttled_seconds_total", "seconds", CADVISOR, "Time throttled, summed over CPUs."),
    def(Container, Gauge, "container_memory_usage_bytes", "bytes", CADVISOR, "Memory in use, file cache included."),
    def(Container, Gauge, "container_memory_working_set_bytes", "bytes", CADVISOR, "Memory in use less inactive file cache: what the kubelet compares with thresholds."),
    def(Container, Gauge, "container_memory_rss", "bytes", CADVISOR, "Anonymous memory."),
    def(Container, Gauge, "container_memory_cache", "bytes", CADVISOR, "File cache, with shared memory and tmpfs."),
    def(Container, Gauge, "container_spec_memory_limit_bytes", "bytes", CADVISOR, "Memory limit of the cgroup, 0 for none."),
    def(Container, Gauge, "container_threads", "", CADVISOR, "Processes and threads."),
    def(Container, Gauge, "container_start_time_seconds", "seconds", CADVISOR, "Start of the running container, since 1970-01-01 UTC."),
    def(Container, Counter, "container_oom_events_total", "", CADVISOR, "OOM kills; goes on over restarts of the container."),
    def(Container, Counter, "container_pressure_cpu_waiting_seconds_total", "seconds", CADVISOR, "Time in which some task waited for CPU."),
    def(Container, Counter, "container_pressure_memory_waiting_seconds_total", "seconds", CADVISOR, "Time in which some task waited for memory."),
    def(Container, Counter, "container_pressure_memory_stalled_seconds_total", "seconds", CADVISOR, "Time in which all tasks waited for memory."),
    def(Container, Counter, "container_pressure_io_waiting_seconds_total", "seconds", CADVISOR, "Time in which some task waited for IO."),
    def(Container, Counter, "container_network_receive_bytes_total", "bytes", CADVISOR_NET, "Bytes received by the pod's sockets, IP headers and up; once per pod, interface=\"all\"."),
    def(Container, Counter, "container_network_receive_packets_total", "", CADVISOR_NET, "Packets received by the pod's sockets."),
    def(Container, Counter, "container_network_transmit_bytes_total", "bytes", CADVISOR_NET, "Bytes sent by the pod's sockets, IP headers and up; once per pod, interface=\"all\"."),
    def(Container, Counter, "container_network_transmit_packets_total", "", CADVISOR_NET, "Packets sent by the pod's sockets."),
    def(Container, Gauge, "machine_cpu_cores", "", &[], "CPUs of the node."),
    def(Container, Gauge, "machine_memory_bytes", "bytes", &[], "Memory of the node."),

    def(Kubelet, Gauge, "kubelet_node_name", "", &["node"], "The node's name; always 1."),
    def(Kubelet, Gauge, "kubelet_running_pods", "", &[], "Pods with at least one running container."),
    def(Kubelet, Gauge, "kubelet_running_containers", "", &["container_state"], "Containers by state: created, exited, running."),
    def(Kubelet, Counter, "kubelet_evictions", "", &["eviction_signal"], "Pods evicted, by signal."),
    def(Kubelet, Counter, "kubelet_started_pods_total", "", &[], "Sandboxes that the agent tried to start."),
    def(Kubelet, Counter, "kubelet_started_pods_errors_total", "", &[], "Sandboxes that could not be started."),
    def(Kubelet, Counter, "kubelet_started_containers_total", "", &[], "Containers that the agent tried to start."),
    def(Kubelet, Counter, "kubelet_started_containers_errors_total", "", &[], "Containers that could not be started."),

    def(Pod, Gauge, "beelet_pod_info", "", &["namespace", "pod", "uid", "node", "qos_class", "pod_ip", "foreign"], "A pod on this node; always 1. foreign=\"true\": somebody else started it."),
    def(Pod, Gauge, "beelet_pod_phase", "", &["namespace", "pod", "phase"], "1 for the pod's phase, 0 for the others."),
    def(Pod, Gauge, "beelet_pod_start_time_seconds", "seconds", POD, "When the pod was first seen, since 1970-01-01 UTC."),
    def(Pod, Gauge, "beelet_pod_health_state", "", &["namespace", "pod", "state", "reason"], "1 for the pod's verdict (Unknown, Healthy, Suspect, Unhealthy) with its reason."),
    def(Pod, Gauge, "beelet_pod_time_to_oom_seconds", "seconds", POD, "Time until the pod's own memory limit is hit at the present growth; +Inf for no limit or no growth."),
    def(Pod, Gauge, "beelet_pod_listening_ports", "", POD, "TCP ports that the pod listens on."),
    def(Pod, Gauge, "beelet_pod_resize_pending", "", POD, "1 while a change of resources is deferred or under way."),
    def(Pod, Gauge, "beelet_memory_unreclaimable_bytes", "bytes", CONTAINER, "Memory that reclaim cannot free: usage less file cache and reclaimable slab."),
    def(Pod, Gauge, "beelet_memory_growth_bytes_per_second", "bytes per second", POD, "Growth of what reclaim cannot free."),
    def(Pod, Counter, "beelet_cpu_ebpf_seconds_total", "seconds", CONTAINER, "CPU time by eBPF at sched_switch."),
    def(Pod, Gauge, "beelet_container_cpu_burst_seconds", "seconds", CONTAINER, "Unused CPU quota that the container may spend later, given by beelet."),
    def(Pod, Gauge, "beelet_container_restarts", "", CONTAINER, "Restarts of the container in the pod as it is now."),
    def(Pod, Counter, "beelet_container_restarts_total", "", CONTAINER, "Restarts; outlives the pod."),
    def(Pod, Counter, "beelet_process_exits_total", "", &["namespace", "pod", "container", "reason", "value"], "Ends of containers by exit code (reason=\"code\") or fatal signal (reason=\"signal\"); outlives the pod."),
    def(Pod, Counter, "beelet_oom_kills_total", "", CONTAINER, "Kills by the kernel's OOM killer; outlives container and pod."),

    def(Node, Gauge, "beelet_node_time_to_oom_seconds", "seconds", &[], "Time until the pods' cgroup or the node runs out of memory at the present growth; +Inf for no growth."),
    def(Node, Gauge, "beelet_node_memory_available_bytes", "bytes", &[], "memory.available of the node, by what reclaim cannot free."),
    def(Node, Gauge, "beelet_allocatable_memory_available_bytes", "bytes", &[], "What is left below the limit of the pods' cgroup, by what reclaim cannot free."),
    def(Node, Gauge, "beelet_node_memory_pressure", "", &[], "1 while the node has the condition MemoryPressure."),
    def(Node, Gauge, "beelet_node_cpu_cores", "cores", &["state"], "CPU in use (state=\"busy\") and idle (state=\"idle\"), all of the node."),
    def(Node, Gauge, "beelet_allocatable_cpu_cores", "cores", &[], "CPU that pods may request."),
    def(Node, Gauge, "beelet_allocatable_memory_bytes", "bytes", &[], "Memory that pods may request."),
    def(Node, Counter, "beelet_evictions_total", "", &["signal"], "Pods evicted, by signal."),
    def(Node, Gauge, "beelet_runtime_up", "", &[], "1 if the container runtime answers."),
    def(Node, Gauge, "beelet_manifest_rejected", "", &["origin"], "Manifests that cannot be run, by file."),

    def(Agent, Gauge, "beelet_build_info", "", &["version", "revision", "mode"], "What runs; always 1."),
    def(Agent, Gauge, "beelet_last_step_timestamp_seconds", "seconds", &[], "When the agent last took a step, since 1970-01-01 UTC."),
    def(Agent, Gauge, "beelet_sample_interval_seconds", "seconds", &[], "The distance of samples at present."),
    def(Agent, Counter, "beelet_actions_total", "", &["action", "result"], "Actions done, by result: success, failure."),
    def(Agent, Counter, "beelet_illegal_transitions_total", "", &[], "Events that did not fit a pod's state and changed nothing."),
    def(Agent, Gauge, "beelet_capability", "", &["name", "reason"], "1 if the kernel, the machine or the runtime can do it; else why not."),
    def(Agent, Gauge, "beelet_runtime_rpc_missing", "", &["rpc"], "A call that the container runtime does not have; always 1."),
    def(Agent, Gauge, "beelet_bpf_program_loaded", "", &["program", "reason"], "1 if the eBPF program is attached; else why not."),
    def(Agent, Gauge, "beelet_bpf_program_instructions", "", &["program"], "Verified instructions of the eBPF program."),
    def(Agent, Counter, "beelet_bpf_program_run_seconds_total", "seconds", &["program"], "Time spent in the eBPF program (needs kernel.bpf_stats_enabled)."),
    def(Agent, Counter, "beelet_bpf_program_runs_total", "", &["program"], "Runs of the eBPF program (needs kernel.bpf_stats_enabled)."),
    def(Agent, Gauge, "beelet_bpf_map_entries", "", &["map"], "Entries in the eBPF map."),
    def(Agent, Gauge, "beelet_bpf_map_max_entries", "", &["map"], "Entries that fit into the eBPF map."),
    def(Agent, Counter, "beelet_events_lost_total", "", &["what"], "Kernel events and records that did not fit and were dropped."),

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
         `GET /metrics` serves the Prometheus text format 0.0.4. Each scrape is made from the picture after the agent's newest\n\
         step, so a series ends when its pod is gone; counters that say so outlive it.\n\n\
         Rows of containers have a non-empty `container` and `image`; rows of whole pods have `container=\"\"` and `image=\"\"`, and\n\
         the row of all pods together has also `pod=\"\"`. Filter with `container!=\"\"` or sum one kind only.\n",
    );
    for (group, heading) in [
        (Container, "Containers and pods, by cAdvisor's names"),
        (Kubelet, "The kubelet's names"),
        (Pod, "Pods: what only beelet knows"),
        (Node, "Node"),
        (Agent, "The agent"),
        (Process, "The agent's process"),
    ] {
        let _ = write!(out, "\n## {heading}\n\n| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
        for m in METRICS.iter().filter(|m| m.group == group) {
            let kind = if m.kind == Counter { "counter" } else { "gauge" };
            let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
            let _ = writeln!(out, "| `{}` | {kind} | {} | {} | {} |", m.name, m.unit, labels.join(" "), m.help);
        }
    }
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
                // cAdvisor named these without their unit.
                "bytes" if ["container_memory_rss", "container_memory_cache"].contains(&m.name) => {}
                unit => assert!(stem.ends_with(&unit.replace(' ', "_")), "{} does not end in its unit {unit}", m.name),
            }
            if [Pod, Node, Agent].contains(&m.group) {
                assert!(m.name.starts_with("beelet_"), "{} is not a kubelet name", m.name);
            }
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
