//! A picture of a node with everything filled in, of any size, for tests of what stands in for the stock kubelet's endpoints.

use std::sync::Arc;

use beelet_core::sample::{
    CgroupReading, CpuReading, MemoryMore, MemoryReading, NodeReading, Pressure, PressureReading, Stall,
};
use beelet_core::snapshot::{ContainerState, ContainerView, PodView, Snapshot};
use beelet_core::spec::{Volume, VolumeKind};
use beelet_core::telemetry::{CgroupDetail, CgroupLimits, FsUse, NodeDetail, SliceReading, StorageReading};
use beelet_core::units::{Bytes, Micros};

use super::samples::{WALL, busy_node};
use super::samples_detail::{cgroup_detail, node_detail, pod_detail};

/// When everything was read, 5 s before the picture.
pub(crate) const READ: Micros = Micros::secs(995);

fn reading(n: u64) -> CgroupReading {
    let stall = Pressure {
        some: Stall { total: Micros(n + 7), avg10: 1_25, avg60: 50, avg300: 1 },
        full: Stall::total(Micros(n)),
    };
    let some = Some(Bytes(n * 4096));
    CgroupReading {
        id: n,
        at: READ,
        cpu: Some(CpuReading {
            usage: Some(Micros(n * 1_234 + 1)),
            user: Some(Micros(n * 1_000)),
            system: Some(Micros(n * 234)),
            periods: Some(n + 1),
            throttled_periods: Some(n),
            throttled: Some(Micros(n * 77)),
            bursts: Some(1),
            burst: Some(Micros(5)),
            ..CpuReading::default()
        }),
        memory: Some(MemoryReading {
            usage: Bytes::mib(60 + n),
            inactive_file: Bytes::mib(10),
            active_file: Bytes::mib(5),
            anon: Bytes::mib(40),
            shmem: Bytes::mib(1),
            slab_reclaimable: Bytes::mib(2),
            limit: Some(Bytes::mib(128 + n)),
            oom_kills: Some(0),
            more: MemoryMore {
                file: some,
                mapped_file: some,
                kernel: some,
                swap: Some(Bytes::ZERO),
                swap_limit: Some(Bytes::mib(64)),
                peak: some,
                page_faults: Some(n * 31),
                major_faults: Some(n),
                max_events: Some(0),
                ..MemoryMore::default()
            },
        }),
        pressure: Some(PressureReading { cpu: stall, memory: stall, io: stall }),
        pids: Some(3),
    }
}

fn detail() -> CgroupDetail {
    let limits = CgroupLimits {
        made: Some(WALL - Micros::secs(121)),
        cpu_shares: Some(256),
        cpu_quota: Some(Micros(50_000)),
        cpu_period: Some(Micros(100_000)),
        memory_reservation: Some(Bytes(u64::MAX)),
        pids_max: Some(u64::MAX),
    };
    CgroupDetail { at: READ, limits: Some(limits), ..cgroup_detail() }
}

/// Without a CPU quota.
fn unlimited(mut reading: CgroupReading) -> CgroupReading {
    reading.cpu = reading.cpu.map(|cpu| CpuReading { periods: Some(0), ..cpu });
    reading
}

fn space() -> FsUse {
    node_detail().fs.unwrap_or_default()
}

fn pod(template: &PodView, n: u64, name: &str, containers: &[&str]) -> PodView {
    let mut pod = template.clone();
    let spec = Arc::make_mut(&mut pod.spec);
    let hex = |salt: u64| format!("{:064x}", u128::from(n) * 0x9e37_79b9_7f4a_7c15_f39c_0cc5 + u128::from(salt));
    spec.uid = format!("{n:032x}").as_str().into();
    spec.name = name.into();
    let first = spec.containers.remove(0);
    spec.containers = containers
        .iter()
        .map(|c| {
            let mut s = first.clone();
            s.name = (*c).into();
            s
        })
        .collect();
    spec.volumes = vec![
        Volume { name: "scratch".into(), kind: VolumeKind::EmptyDir { memory: false, size_limit: None } },
        Volume { name: "shm".into(), kind: VolumeKind::EmptyDir { memory: true, size_limit: None } },
    ];
    pod.cgroup = format!("kubepods/burstable/pod{}", spec.uid);
    pod.sandbox_id = hex(0);
    pod.reading = Some(reading(n));
    pod.sandbox = Some(unlimited(reading(n + 1)));
    pod.cgroup_detail = Some(Arc::new(detail()));
    let mut shared = pod_detail();
    let of_each = |used| containers.iter().map(|c| ((*c).to_owned(), FsUse { used: Bytes(used), ..space() })).collect();
    shared.storage = Some(StorageReading {
        rootfs: of_each(1_000),
        logs: of_each(200),
        volumes: vec![
            ("scratch".into(), FsUse { used: Bytes(30), ..space() }),
            ("shm".into(), FsUse { used: Bytes(9), ..space() }),
        ],
    });
    pod.detail = Some(Arc::new(shared));
    let container = pod.containers.remove(0);
    pod.containers = containers
        .iter()
        .zip(1..)
        .map(|(name, salt)| ContainerView {
            name: (*name).into(),
            id: hex(salt),
            state: ContainerState::Running { started: WALL - Micros::secs(120) },
            reading: Some(reading(n + salt)),
            detail: Some(Arc::new(detail())),
            ..container.clone()
        })
        .collect();
    pod
}

fn node(picture: &mut Snapshot) {
    // Of a slice its limits are read, and nothing else that is slow.
    let limits = detail().limits.map(|limits| CgroupLimits { cpu_quota: None, ..limits });
    let bare = Arc::new(CgroupDetail { at: detail().at, limits, ..CgroupDetail::default() });
    let slice = |path: &str| SliceReading {
        path: path.into(),
        reading: unlimited(reading(9)),
        detail: Some(Arc::clone(&bare)),
    };
    let service = |name: &str| (name.to_owned(), WALL - Micros::secs(500), reading(11));
    picture.node.reading = Some(NodeReading {
        cpu_at: picture.at.mono - Micros::millis(700),
        cpu_busy: Micros::secs(100),
        cpu_idle: Micros::secs(900),
        memory_total: Bytes::gib(4),
        memory_unreclaimable: Bytes::gib(1),
        memory_counted: Some(Bytes::mib(900)),
        memory_working_set: Bytes::mib(1_500),
    });
    picture.node.kubepods = Some(unlimited(reading(8)));
    picture.node.detail = Some(Arc::new(NodeDetail {
        at: READ,
        cpu: Some((Micros::secs(70), Micros::secs(30))),
        slices: vec![
            slice("kubepods"),
            slice("kubepods/besteffort"),
            slice("kubepods/burstable"),
            slice("system.slice/beelet.service"),
        ],
        services: vec![service("kubelet"), service("runtime"), service("pods")],
        filesystems: vec![("/dev/shm".into(), space()), ("/dev/vda".into(), space())],
        ..node_detail()
    }));
}

/// The pods of the recorded kubelet that matter: one and two containers, and the node's network.
pub(crate) fn recorded_node() -> Snapshot {
    let mut picture = busy_node();
    let template = picture.pods.iter().find(|p| p.spec.name == "web-node").map(|p| PodView::clone(p)).unwrap();
    let mut hostnet = pod(&template, 300, "hostnet-node", &["main"]);
    Arc::make_mut(&mut hostnet.spec).host_network = true;
    let bare = pod_detail();
    hostnet.detail = Some(Arc::new(beelet_core::telemetry::PodDetail { interfaces: vec![], stack: None, ..bare }));
    picture.pods = vec![
        Arc::new(pod(&template, 100, "holder-node", &["anon", "files"])),
        Arc::new(hostnet),
        Arc::new(pod(&template, 500, "web-node", &["main"])),
    ];
    node(&mut picture);
    picture
}

/// So many pods of one container, each with one sandbox.
pub(crate) fn large_node(pods: u64) -> Snapshot {
    let mut picture = recorded_node();
    let template = PodView::clone(&picture.pods[2]);
    picture.pods = (0..pods)
        .map(|n| Arc::new(pod(&template, 1_000_000 + n * 977, &format!("load-{n:03}-node"), &["main"])))
        .collect();
    picture
}
