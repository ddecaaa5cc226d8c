//! Pictures with every detail filled, for tests of reports.

use std::sync::Arc;

use beelet_core::attribute::{Cause, Slowness};
use beelet_core::sample::{CpuReading, MemoryMore, NetworkReading, NodeReading, Pressure, PressureReading, Stall};
use beelet_core::snapshot::{OwnCost, Snapshot};
use beelet_core::telemetry::{
    CgroupDetail, Device, DeviceIo, DiskOp, DiskReading, DnsReading, ExitKind, FsUse, Histogram, InterfaceReading,
    Life, NodeDetail, PodDetail, PortReading, Preemptor, StackReading, StorageReading, TaskStates, TcpReading,
};
use beelet_core::units::{Bytes, Micros, Ppm};

use super::samples;

/// `count` of 3 us and one of 5 s.
pub(crate) fn histogram(count: u64) -> Histogram {
    let mut it = Histogram::default();
    (it.counts[2], it.counts[23]) = (count, 1);
    it.sum_ns = count * 3_000 + 5_000_000_000;
    it
}

fn vda() -> Device {
    Device { major: 254, minor: 0, name: "/dev/vda".into() }
}

fn traffic(n: u64) -> NetworkReading {
    NetworkReading { rx_bytes: 100 * n, rx_packets: n, tx_bytes: 200 * n, tx_packets: 2 * n }
}

fn space(used: u64) -> FsUse {
    FsUse {
        at: samples::WALL,
        used: Bytes(used),
        inodes_used: Some(7),
        capacity: Some(Bytes::gib(100)),
        available: Some(Bytes::gib(60)),
        inodes: Some(1_000_000),
        inodes_free: Some(900_000),
    }
}

pub(crate) fn cgroup_detail() -> CgroupDetail {
    let disk = |op| DiskReading { device: vda(), op, bytes: 4096, errors: 1, latency: histogram(4) };
    CgroupDetail {
        at: Micros::secs(995),
        wait: Some(histogram(9)),
        preempted: vec![(Preemptor::Own, 1), (Preemptor::Pod("3333".into()), 5), (Preemptor::System, 2)],
        reclaim_node: Some(histogram(1)),
        reclaim_limit: Some(histogram(2)),
        reclaimed: Some(Bytes(8192)),
        disk: vec![disk(DiskOp::Read), disk(DiskOp::Write)],
        io: vec![DeviceIo { device: vda(), read_bytes: 4096, write_bytes: 8192, reads: 1, writes: 2 }],
        life: Some(Life { forks: 3, threads: 4, execs: 2, exits: 1 }),
        exits: vec![(ExitKind::Code(0), 1), (ExitKind::Signal(9), 2)],
        tasks: Some(TaskStates { running: 1, sleeping: 2, uninterruptible: 3, stopped: 4, zombie: 5, processes: 6 }),
        open_files: Some(12),
        sockets: Some(3),
        open_files_limit: Some(1024),
        limits: None,
    }
}

pub(crate) fn pod_detail() -> PodDetail {
    PodDetail {
        at: Micros::secs(995),
        tcp: Some(traffic(10)),
        udp: Some(traffic(2)),
        other: Some(traffic(1)),
        connections: Some(TcpReading {
            connects: 5,
            connect_failures: 1,
            accepts: 7,
            resets_sent: 2,
            resets_received: 3,
            retransmits: 4,
            connect: histogram(5),
            rtt: histogram(6),
        }),
        dns: Some(DnsReading { queries: 9, answers: 8, errors: 1, no_such_name: 2, latency: histogram(8) }),
        ports: vec![PortReading {
            port: 80,
            listening: true,
            backlog: Some(1),
            backlog_max: Some(128),
            requests: 11,
            unanswered: 1,
            http: [0, 8, 0, 2, 0],
            latency: histogram(10),
        }],
        drops: vec![("SOCKET_RCVBUFF".into(), 3)],
        network_at: Some(Micros::secs(994)),
        interfaces: vec![InterfaceReading {
            name: "eth0".into(),
            traffic: traffic(20),
            rx_errors: 1,
            rx_dropped: 2,
            tx_errors: 3,
            tx_dropped: 4,
        }],
        stack: Some(StackReading {
            listen_overflows: 1,
            listen_drops: 2,
            segments_sent: 500,
            ..StackReading::default()
        }),
        storage: Some(StorageReading {
            rootfs: vec![("web".into(), space(1 << 20))],
            logs: vec![("web".into(), space(4096))],
            volumes: vec![("scratch".into(), space(8192))],
        }),
    }
}

pub(crate) fn node_detail() -> NodeDetail {
    let stall = Pressure { some: Stall::total(Micros::secs(4)), full: Stall::total(Micros::secs(1)) };
    NodeDetail {
        at: Micros::secs(995),
        booted: samples::WALL - Micros::secs(1_000),
        memory_usage: Some(Bytes::gib(2)),
        memory_rss: Some(Bytes::gib(1)),
        page_faults: Some((1_000, 10)),
        swap: Some((Bytes::ZERO, Bytes::ZERO)),
        steal: Some(Micros::secs(1)),
        interrupts: Some(Micros::secs(2)),
        switches: Some(12_345),
        pressure: Some(PressureReading { cpu: stall, memory: stall, io: stall }),
        fs: Some(space(10 << 30)),
        image_fs: Some(space(5 << 30)),
        container_fs: Some(space(5 << 30)),
        interfaces: pod_detail().interfaces,
        pids: Some((4_194_304, 321)),
        services: Vec::new(),
        ..NodeDetail::default()
    }
}

/// [`detailed_node`] whose pod `web-node` lost packets for so many reasons.
pub(crate) fn dropping_node(reasons: u32) -> Snapshot {
    let mut picture = detailed_node();
    for pod in picture.pods.iter_mut().map(Arc::make_mut) {
        if let Some(detail) = &mut pod.detail {
            Arc::make_mut(detail).drops = (0..reasons).map(|n| (format!("REASON_{n:03}"), 1)).collect();
        }
    }
    picture
}

/// [`samples::busy_node`] with all details of the pod `web-node` and of the node.
pub(crate) fn detailed_node() -> Snapshot {
    let mut picture = samples::busy_node();
    picture.node.own_cost =
        OwnCost { share: Some(Ppm(5_000)), looking: Some(Ppm(2_000)), budget: Ppm(10_000), stretch: 1_500 };
    picture.node.remembers = vec![("pods", 2)];
    picture.node.detail = Some(Arc::new(node_detail()));
    picture.node.reading =
        Some(NodeReading { cpu_busy: Micros::secs(100), cpu_idle: Micros::secs(900), ..NodeReading::default() });
    for pod in &mut picture.pods {
        let pod = Arc::make_mut(pod);
        if pod.spec.name != "web-node" {
            continue;
        }
        pod.detail = Some(Arc::new(pod_detail()));
        pod.slow = vec![Slowness {
            cause: Cause::NoisyNeighbour { pod: "default/leak-node".into(), share: Ppm(800_000) },
            since: samples::WALL,
            lost: Ppm(250_000),
            evidence: vec![("waited".into(), "25 % of the time".into())],
        }];
        pod.cgroup_detail = Some(Arc::new(cgroup_detail()));
        for container in &mut pod.containers {
            container.detail = Some(Arc::new(cgroup_detail()));
            let Some(reading) = &mut container.reading else { continue };
            if let Some(cpu) = &mut reading.cpu {
                *cpu = CpuReading {
                    wait: Some(Micros::secs(2)),
                    switches: Some(10),
                    involuntary: Some(4),
                    user: Some(Micros::secs(10)),
                    system: Some(Micros::secs(2)),
                    ..*cpu
                };
            }
            if let Some(memory) = &mut reading.memory {
                memory.more = MemoryMore {
                    file: Some(Bytes::mib(16)),
                    peak: Some(Bytes::mib(70)),
                    swap: Some(Bytes::ZERO),
                    page_tables: Some(Bytes(4096)),
                    slab_unreclaimable: Some(Bytes(4096)),
                    page_faults: Some(100),
                    major_faults: Some(5),
                    refaults_file: Some(6),
                    scanned: Some(70),
                    stolen: Some(60),
                    max_events: Some(3),
                    ..MemoryMore::default()
                };
            }
        }
    }
    picture
}
