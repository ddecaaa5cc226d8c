//! `/metrics`: the details that only beelet measures.
//!
//! Problem: one pod's CPU waits, requests and disks are dozens of series, and most pods do next to nothing. Approach: what was
//! never seen gives no series (an empty histogram, a kind of memory that the kernel does not tell, a port without requests), so
//! that their number follows what happens.
//!
//! Terms: a *place* is namespace, pod and container, the container "" for the whole pod.

use std::collections::BTreeMap;

use beelet_core::sample::{CgroupReading, CpuReading, MemoryReading, NetworkReading};
use beelet_core::snapshot::{NodeView, PodView};
use beelet_core::telemetry::{CgroupDetail, Device, DiskOp, PodDetail, Preemptor};
use beelet_core::units::Micros;

use super::metrics::{Rows, bytes, seconds};

/// So many other pods are named as those that took the CPU.
const PREEMPTORS: usize = 5;

type Place<'a> = [&'a str; 3];

/// Of the pod and of each of its containers.
pub(super) fn pod(rows: &mut Rows, view: &PodView, now: Micros) {
    let (namespace, name) = (view.spec.namespace.as_str(), view.spec.name.as_str());
    for slow in &view.slow {
        let culprit = slow.cause.culprit();
        let labels = [namespace, name, slow.cause.kind().name(), culprit];
        rows.put("beelet_pod_lost_time_ratio", &labels, slow.lost.get() as f64 / 1e6);
    }
    let readings = view.reading.iter().chain(view.containers.iter().filter_map(|c| c.reading.as_ref()));
    if let Some(oldest) = readings.map(|r| r.at).filter(|at| *at > Micros::ZERO).min() {
        rows.put("beelet_pod_reading_age_seconds", &[namespace, name], seconds(now - oldest));
    }
    if let Some(detail) = &view.cgroup_detail {
        rows.put("beelet_pod_detail_age_seconds", &[namespace, name], seconds(now - detail.at));
        cgroup(rows, [namespace, name, ""], detail);
    }
    for container in &view.containers {
        if let Some(detail) = &container.detail {
            cgroup(rows, [namespace, name, &container.name], detail);
        }
    }
    if let Some(detail) = &view.detail {
        network(rows, [namespace, name], detail);
        storage(rows, [namespace, name], view.uid().as_str(), detail);
    }
}

/// The reading of a pod or a container.
pub(super) fn reading(rows: &mut Rows, place: Place<'_>, reading: &CgroupReading) {
    if let Some(of) = &reading.cpu {
        cpu(rows, place, of);
    }
    if let Some(of) = &reading.memory {
        rows.put("beelet_memory_unreclaimable_bytes", &place, bytes(of.unreclaimable()));
        memory(rows, place, of);
    }
}

/// CPU of a pod or a container.
fn cpu(rows: &mut Rows, place: Place<'_>, cpu: &CpuReading) {
    if let Some(run) = cpu.run {
        rows.put("beelet_cpu_ebpf_seconds_total", &place, seconds(run));
    }
    if let Some(wait) = cpu.wait {
        rows.put("beelet_runq_wait_seconds_total", &place, seconds(wait));
    }
    if let Some((all, involuntary)) = cpu.switches.zip(cpu.involuntary) {
        for (kind, count) in [("involuntary", involuntary), ("voluntary", all.saturating_sub(involuntary))] {
            rows.put("beelet_context_switches_total", &with(place, kind), count as f64);
        }
    }
}

/// Memory of a pod or a container.
fn memory(rows: &mut Rows, place: Place<'_>, memory: &MemoryReading) {
    let more = &memory.more;
    for (kind, size) in [
        ("anon", Some(memory.anon)),
        ("shmem", Some(memory.shmem)),
        ("file", more.file),
        ("mapped_file", more.mapped_file),
        ("dirty", more.dirty),
        ("writeback", more.writeback),
        ("unevictable", more.unevictable),
        // v1 does not tell: what is left at zero there stays out.
        ("slab_reclaimable", Some(memory.slab_reclaimable).filter(|_| more.slab_unreclaimable.is_some())),
        ("slab_unreclaimable", more.slab_unreclaimable),
        ("kernel", more.kernel),
        ("kernel_stack", more.kernel_stack),
        ("page_tables", more.page_tables),
        ("percpu", more.percpu),
        ("sock", more.sock),
        ("swap", more.swap),
    ] {
        if let Some(size) = size {
            rows.put("beelet_memory_kind_bytes", &with(place, kind), bytes(size));
        }
    }
    if let Some(peak) = more.peak {
        rows.put("beelet_memory_peak_bytes", &place, bytes(peak));
    }
    if let Some(faults) = more.major_faults {
        rows.put("beelet_memory_major_faults_total", &place, faults as f64);
    }
    for (name, kind, count) in [
        ("beelet_memory_refaults_total", "file", more.refaults_file),
        ("beelet_memory_refaults_total", "anon", more.refaults_anon),
        ("beelet_memory_reclaim_pages_total", "scanned", more.scanned),
        ("beelet_memory_reclaim_pages_total", "stolen", more.stolen),
        ("beelet_memory_events_total", "high", more.high_events),
        ("beelet_memory_events_total", "max", more.max_events),
        ("beelet_memory_events_total", "oom", more.oom_events),
    ] {
        if let Some(count) = count {
            rows.put(name, &with(place, kind), count as f64);
        }
    }
}

fn with<'a>([namespace, pod, container]: Place<'a>, last: &'a str) -> [&'a str; 4] {
    [namespace, pod, container, last]
}

fn cgroup(rows: &mut Rows, place: Place<'_>, detail: &CgroupDetail) {
    let [namespace, pod, container] = place;
    if let Some(wait) = &detail.wait {
        rows.put_histogram("beelet_runq_latency_seconds", &place, wait);
    }
    preempted(rows, place, &detail.preempted);
    for (scope, stall) in [("node", &detail.reclaim_node), ("limit", &detail.reclaim_limit)] {
        if let Some(stall) = stall {
            rows.put_histogram("beelet_reclaim_stall_seconds", &with(place, scope), stall);
        }
    }
    if let Some(reclaimed) = detail.reclaimed {
        rows.put("beelet_reclaimed_bytes_total", &place, bytes(reclaimed));
    }
    for disk in &detail.disk {
        let device = device(&disk.device);
        let operation = match disk.op {
            DiskOp::Read => "read",
            DiskOp::Write => "write",
            DiskOp::Other => "other",
        };
        let labels = [namespace, pod, container, &device, operation];
        rows.put_histogram("beelet_disk_latency_seconds", &labels, &disk.latency);
        rows.put("beelet_disk_bytes_total", &labels, disk.bytes as f64);
        rows.put("beelet_disk_errors_total", &labels, disk.errors as f64);
    }
    if let Some(life) = detail.life {
        for (what, count) in [("fork", life.forks), ("thread", life.threads), ("exec", life.execs)] {
            rows.put("beelet_process_starts_total", &with(place, what), count as f64);
        }
    }
    if let Some(tasks) = detail.tasks {
        for (state, count) in [
            ("running", tasks.running),
            ("sleeping", tasks.sleeping),
            ("uninterruptible", tasks.uninterruptible),
            ("stopped", tasks.stopped),
            ("zombie", tasks.zombie),
        ] {
            rows.put("beelet_tasks", &with(place, state), f64::from(count));
        }
        rows.put("beelet_processes", &place, f64::from(tasks.processes));
    }
    if let Some(files) = detail.open_files {
        rows.put("beelet_open_files", &place, files as f64);
    }
    if let Some(limit) = detail.open_files_limit {
        rows.put("beelet_open_files_limit", &place, if limit == u64::MAX { f64::INFINITY } else { limit as f64 });
    }
}

/// `/dev/vda`, or the numbers of a device that has no name.
fn device(device: &Device) -> String {
    if device.name.is_empty() { format!("{}:{}", device.major, device.minor) } else { device.name.clone() }
}

fn preempted(rows: &mut Rows, place: Place<'_>, by: &[(Preemptor, u64)]) {
    let mut classes: BTreeMap<&str, u64> = BTreeMap::new();
    for (who, count) in by {
        let class = match who {
            Preemptor::Own => "own",
            Preemptor::Pod(_) => "pod",
            Preemptor::System => "system",
        };
        *classes.entry(class).or_default() += count;
    }
    for (class, count) in classes {
        rows.put("beelet_preempted_total", &with(place, class), count as f64);
    }
}

/// The pods that took the CPU from a pod most often, by name.
pub(super) fn preemptors(rows: &mut Rows, view: &PodView, pods: &BTreeMap<&str, &PodView>) {
    let Some(detail) = &view.cgroup_detail else { return };
    let others = detail.preempted.iter().filter_map(|(who, count)| match who {
        Preemptor::Pod(uid) if *uid != view.spec.uid => Some((pods.get(uid.as_str())?, *count)),
        _ => None,
    });
    let mut others: Vec<(&&PodView, u64)> = others.collect();
    others.sort_by(|(a, n), (b, m)| m.cmp(n).then_with(|| a.spec.uid.cmp(&b.spec.uid)));
    for (by, count) in others.into_iter().take(PREEMPTORS) {
        let labels = [&view.spec.namespace, &view.spec.name, &by.spec.namespace, &by.spec.name].map(String::as_str);
        rows.put("beelet_preempted_by_pod_total", &labels, count as f64);
    }
}

fn network(rows: &mut Rows, place: [&str; 2], detail: &PodDetail) {
    let [namespace, pod] = place;
    for (protocol, traffic) in [("tcp", detail.tcp), ("udp", detail.udp), ("other", detail.other)] {
        let Some(NetworkReading { rx_bytes, rx_packets, tx_bytes, tx_packets }) = traffic else { continue };
        for (direction, bytes, packets) in [("receive", rx_bytes, rx_packets), ("transmit", tx_bytes, tx_packets)] {
            let labels = [namespace, pod, protocol, direction];
            rows.put("beelet_network_bytes_total", &labels, bytes as f64);
            rows.put("beelet_network_packets_total", &labels, packets as f64);
        }
    }
    for (reason, count) in &detail.drops {
        rows.put("beelet_network_drops_total", &[namespace, pod, reason], *count as f64);
    }
    if let Some(tcp) = &detail.connections {
        rows.put("beelet_tcp_connects_total", &place, tcp.connects as f64);
        rows.put("beelet_tcp_connect_failures_total", &place, tcp.connect_failures as f64);
        rows.put("beelet_tcp_retransmits_total", &place, tcp.retransmits as f64);
        rows.put("beelet_tcp_accepts_total", &place, tcp.accepts as f64);
        rows.put("beelet_tcp_resets_total", &[namespace, pod, "transmit"], tcp.resets_sent as f64);
        rows.put("beelet_tcp_resets_total", &[namespace, pod, "receive"], tcp.resets_received as f64);
        rows.put_histogram("beelet_tcp_connect_seconds", &place, &tcp.connect);
        rows.put_histogram("beelet_tcp_rtt_seconds", &place, &tcp.rtt);
    }
    if let Some(stack) = &detail.stack {
        rows.put("beelet_tcp_timeouts_total", &place, stack.timeouts as f64);
        rows.put("beelet_tcp_sockets", &place, stack.tcp_sockets as f64);
        rows.put("beelet_udp_receive_errors_total", &place, stack.udp_receive_errors as f64);
        rows.put("beelet_udp_no_port_total", &place, stack.udp_no_port as f64);
        rows.put("beelet_tcp_segments_sent_total", &place, stack.segments_sent as f64);
        rows.put("beelet_listen_overflows_total", &place, stack.listen_overflows as f64);
        rows.put("beelet_listen_drops_total", &place, stack.listen_drops as f64);
    }
    if let Some(dns) = detail.dns.filter(|dns| dns.queries > 0) {
        rows.put("beelet_dns_queries_total", &place, dns.queries as f64);
        let ok = dns.answers.saturating_sub(dns.errors).saturating_sub(dns.no_such_name);
        for (result, count) in [("ok", ok), ("no_such_name", dns.no_such_name), ("error", dns.errors)] {
            rows.put("beelet_dns_answers_total", &[namespace, pod, result], count as f64);
        }
        rows.put_histogram("beelet_dns_latency_seconds", &place, &dns.latency);
    }
    for served in &detail.ports {
        let port = if served.port == 0 { "other".to_owned() } else { served.port.to_string() };
        let labels = [namespace, pod, &port];
        for (name, value) in
            [("beelet_listen_backlog", served.backlog), ("beelet_listen_backlog_max", served.backlog_max)]
        {
            if let Some(value) = value {
                rows.put(name, &labels, f64::from(value));
            }
        }
        if served.requests == 0 {
            continue;
        }
        rows.put("beelet_port_requests_total", &labels, served.requests as f64);
        rows.put("beelet_port_unanswered_total", &labels, served.unanswered as f64);
        for (class, count) in ["1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(served.http) {
            if count > 0 {
                rows.put("beelet_port_http_responses_total", &[namespace, pod, &port, class], count as f64);
            }
        }
        rows.put_histogram("beelet_port_latency_seconds", &labels, &served.latency);
    }
}

fn storage(rows: &mut Rows, [namespace, pod]: [&str; 2], uid: &str, detail: &PodDetail) {
    let Some(storage) = &detail.storage else { return };
    for (container, used) in &storage.logs {
        let labels = [namespace, pod, container, uid];
        rows.put("kubelet_container_log_filesystem_used_bytes", &labels, bytes(used.used));
    }
    for (kind, uses) in [("rootfs", &storage.rootfs), ("logs", &storage.logs), ("volume", &storage.volumes)] {
        for (name, used) in uses {
            let labels = [namespace, pod, kind, name];
            rows.put("beelet_storage_used_bytes", &labels, bytes(used.used));
            if let Some(inodes) = used.inodes_used {
                rows.put("beelet_storage_used_inodes", &labels, inodes as f64);
            }
        }
    }
}

/// The node.
pub(super) fn node(rows: &mut Rows, node: &NodeView) {
    if let Some(reading) = &node.reading {
        for (mode, time) in [("busy", reading.cpu_busy), ("idle", reading.cpu_idle)] {
            rows.put("beelet_node_cpu_seconds_total", &[mode], seconds(time));
        }
    }
    let Some(detail) = &node.detail else { return };
    for (mode, time) in [("steal", detail.steal), ("interrupts", detail.interrupts)] {
        if let Some(time) = time {
            rows.put("beelet_node_cpu_seconds_total", &[mode], seconds(time));
        }
    }
    if let Some(switches) = detail.switches {
        rows.put("beelet_node_context_switches_total", &[], switches as f64);
    }
    if let Some(pressure) = detail.pressure {
        for (resource, pressure) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)] {
            for (kind, stall) in [("some", pressure.some), ("full", pressure.full)] {
                rows.put("beelet_node_pressure_seconds_total", &[resource, kind], seconds(stall.total));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use beelet_core::snapshot::Snapshot;

    use super::super::exposition::Format;
    use super::super::metrics::{Bounds, Metrics};
    use super::super::scrapes::Scrapes;
    use super::super::{AgentReport, Published, samples_detail};

    fn text_of(picture: Snapshot) -> String {
        let (published, agent) = (Published::new(picture), AgentReport::default());
        let metrics = Metrics::new(published, agent, Scrapes::default(), Bounds::DEFAULT).unwrap();
        String::from_utf8(metrics.render(Format::Text).0).unwrap()
    }

    #[test]
    fn no_limit_is_infinite_and_ports_that_are_counted_together_are_other() {
        let mut picture = samples_detail::detailed_node();
        for pod in &mut picture.pods {
            let pod = Arc::make_mut(pod);
            if let Some(detail) = &mut pod.cgroup_detail {
                Arc::make_mut(detail).open_files_limit = Some(u64::MAX);
            }
            if let Some(detail) = &mut pod.detail {
                Arc::make_mut(detail).ports[0].port = 0;
            }
        }
        let text = text_of(picture);
        let web = r#"namespace="default",pod="web-node""#;
        for (container, limit) in [("", f64::INFINITY), ("web", 1_024.0)] {
            let row = format!(r#"beelet_open_files_limit{{{web},container="{container}"}} "#);
            let value = text.lines().find_map(|line| line.strip_prefix(&row)).map(str::parse);
            assert_eq!(value, Some(Ok(limit)), "{row}in:\n{text}");
        }
        assert!(text.contains(&format!(r#"beelet_port_requests_total{{{web},port="other"}}"#)), "{text}");
    }
}
