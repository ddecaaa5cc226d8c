//! Pictures for tests of reports.

use std::sync::Arc;

use beelet_core::event::{Exit, Record, Rejected, ResourceList};
use beelet_core::evict::EvictionCounts;
use beelet_core::health::{Health, Verdict};
use beelet_core::ladder::Rung;
use beelet_core::sample::{CgroupReading, CpuReading, MemoryReading, NetworkReading, Pressure, PressureReading, Stall};
use beelet_core::score::{self, Scope, Score};
use beelet_core::snapshot::{
    ContainerState, ContainerView, ExitKind, NodeView, OwnCost, Phase, PodView, Snapshot, Totals,
};
use beelet_core::spec::{ContainerSpec, PodSpec, QosClass, Resources};
use beelet_core::status::{ConditionKind, PodCondition};
use beelet_core::units::{Bytes, Micros, MilliCpu, Now, Ppm};

use super::{Capability, MapUse, Program, SelfReport};

/// 2026-11-23T10:00:00Z.
pub(crate) const WALL: Micros = Micros::secs(1_795_428_000);

pub(crate) fn spec(uid: &str, name: &str, container: &str) -> PodSpec {
    PodSpec {
        namespace: "default".into(),
        name: name.into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        origin: format!("/pods/{container}.yaml"),
        hostname: name.into(),
        containers: vec![ContainerSpec {
            image: format!("docker.io/library/{container}:1"),
            command: vec!["/serve".into()],
            resources: resources(),
            ..ContainerSpec::unknown(container)
        }],
        ..PodSpec::unknown(uid.into())
    }
}

fn resources() -> Resources {
    Resources {
        cpu_request: Some(MilliCpu(250)),
        cpu_limit: Some(MilliCpu(500)),
        memory_request: Some(Bytes::mib(64)),
        memory_limit: Some(Bytes::mib(128)),
    }
}

/// So many seconds of waiting by some and by all.
fn stalled(some: u64, full: u64) -> Pressure {
    Pressure { some: Stall::total(Micros::secs(some)), full: Stall::total(Micros::secs(full)) }
}

fn reading(cpu: Micros) -> CgroupReading {
    CgroupReading {
        id: 77,
        at: Micros::secs(1),
        cpu: Some(CpuReading {
            usage: Some(cpu),
            run: Some(cpu),
            periods: Some(100),
            throttled_periods: Some(7),
            throttled: Some(Micros::millis(350)),
            ..CpuReading::default()
        }),
        memory: Some(MemoryReading {
            usage: Bytes::mib(60),
            inactive_file: Bytes::mib(10),
            active_file: Bytes::mib(5),
            anon: Bytes::mib(40),
            shmem: Bytes::mib(1),
            slab_reclaimable: Bytes::mib(2),
            limit: Some(Bytes::mib(128)),
            oom_kills: Some(0),
            ..MemoryReading::default()
        }),
        pressure: Some(PressureReading { cpu: stalled(1, 0), memory: stalled(2, 1), io: stalled(3, 0) }),
        pids: Some(3),
    }
}

fn container(name: &str, id: &str, state: ContainerState) -> ContainerView {
    ContainerView {
        name: name.into(),
        id: id.into(),
        init: false,
        sidecar: false,
        image: format!("docker.io/library/{name}:1"),
        image_id: format!("sha256:{id}"),
        state,
        last: None,
        last_id: String::new(),
        user: None,
        given: resources(),
        allocated: resources(),
        restarts: 0,
        ready: true,
        started: true,
        probes: Vec::new(),
        reading: Some(reading(Micros::millis(12_500))),
        detail: None,
        cpu: Some(MilliCpu(120)),
        burst: Micros::millis(50),
        oom_kills: 0,
    }
}

fn condition(holds: bool, reason: &str, message: &str) -> PodCondition {
    PodCondition {
        kind: ConditionKind::Ready,
        holds,
        reason: reason.into(),
        message: message.into(),
        since: WALL - Micros::secs(120),
        generation: 0,
    }
}

fn pod(spec: PodSpec, containers: Vec<ContainerView>) -> PodView {
    let qos = spec.qos();
    let cgroup = format!("kubepods/burstable/pod{}", spec.uid);
    PodView {
        spec: Arc::new(spec),
        foreign: false,
        phase: Phase::Running,
        reason: String::new(),
        message: String::new(),
        conditions: vec![condition(true, "", "")],
        qos,
        state: "Running".into(),
        ip: "10.88.0.5".into(),
        other_ips: Vec::new(),
        since: WALL - Micros::secs(125),
        cgroup,
        containers,
        reading: Some(reading(Micros::secs(13))),
        sandbox: None,
        sandbox_id: "s1".into(),
        sandbox_created: Some(WALL - Micros::secs(124)),
        cgroup_detail: None,
        detail: None,
        cpu: Some(MilliCpu(123)),
        network: Some(NetworkReading { rx_bytes: 1000, rx_packets: 10, tx_bytes: 2000, tx_packets: 20 }),
        network_rate: Some((1_500, 2_500_000)),
        memory_growth: Some(0),
        time_to_oom: None,
        slow: vec![],
        rungs: vec![],
        listening: Some(vec![80]),
        health: Verdict {
            state: Health::Healthy,
            reason: String::new(),
            evidence: vec![],
            since: WALL - Micros::secs(60),
        },
        resize: String::new(),
        last_action: "started web".into(),
        oom_kills: 0,
    }
}

/// A web server that is well and a leak that was killed and waits.
pub(crate) fn busy_node() -> Snapshot {
    let web = pod(
        spec("1111", "web-node", "web"),
        vec![container("web", "c1", ContainerState::Running { started: WALL - Micros::secs(120) })],
    );
    let waiting = ContainerState::Waiting {
        reason: "CrashLoopBackOff".into(),
        message: "back-off 10s restarting failed container=leak".into(),
    };
    let mut leak = pod(
        spec("3333", "leak-node", "leak"),
        vec![ContainerView { ready: false, ..container("leak", "c2", waiting) }],
    );
    leak.containers[0].last = Some(Exit {
        started: WALL - Micros::secs(30),
        finished: WALL - Micros::secs(5),
        code: 137,
        reason: "OOMKilled".into(),
        message: String::new(),
    });
    leak.containers[0].last_id = "c2".into();
    leak.conditions = vec![condition(false, "ContainersNotReady", "containers with unready status: [leak]")];
    (leak.containers[0].restarts, leak.containers[0].oom_kills, leak.oom_kills) = (3, 3, 3);
    (leak.network, leak.network_rate, leak.listening) = (None, None, None);
    leak.rungs = vec![Rung::Throttle];
    (leak.memory_growth, leak.time_to_oom) = (Some(2 << 20), Some(Micros::secs(42)));
    leak.health = Verdict {
        state: Health::Unhealthy,
        reason: "OOMVictim".into(),
        evidence: vec!["the OOM killer chose leak (pid 4711)".into()],
        since: WALL - Micros::secs(5),
    };
    leak.last_action = "back-off 10s".into();
    let key = |pod: &str, container: &str| ("default".to_owned(), pod.to_owned(), container.to_owned());
    Snapshot {
        at: Now { mono: Micros::secs(1_000), wall: WALL },
        node: NodeView {
            name: "node".into(),
            capacity: ResourceList { cpu: MilliCpu(2_000), memory: Bytes::gib(4) },
            allocatable: ResourceList { cpu: MilliCpu(1_500), memory: Bytes::gib(3) },
            runtime_down: None,
            memory_pressure: false,
            disk_pressure: false,
            pid_pressure: false,
            memory_available: Some(Bytes::gib(2)),
            allocatable_available: Some(Bytes::mib(1_500)),
            time_to_oom: Some(Micros::secs(90)),
            sample_interval: Micros::millis(250),
            cpu: Some(MilliCpu(700)),
            cpu_idle: Some(MilliCpu(1_300)),
            kubepods: Some(reading(Micros::secs(20))),
            reading: None,
            detail: None,
            own_cost: OwnCost {
                share: Some(Ppm(2_500)),
                looking: Some(Ppm(2_000)),
                budget: Ppm(10_000),
                stretch: 1_000,
            },
            remembers: vec![("pods", 2), ("records", 1)],
        },
        pods: vec![Arc::new(leak), Arc::new(web)],
        rejected: vec![Rejected {
            origin: "/pods/bad.yaml".into(),
            pod: None,
            error: "spec.containers: missing".into(),
        }],
        records: vec![Record {
            at: Now { mono: Micros::secs(995), wall: WALL - Micros::secs(5) },
            uid: Some("3333".into()),
            name: "default/leak-node".into(),
            container: Some("leak".into()),
            warning: true,
            reason: "BackOff".into(),
            message: "Back-off restarting failed container leak in pod leak-node".into(),
            evidence: vec![("exit code".into(), "137".into())],
        }],
        totals: Totals {
            evictions: vec![("memory.available".into(), 1)],
            rungs: vec![((Rung::Throttle, true), 2), ((Rung::Freeze, false), 1)],
            eviction_counts: vec![("memory.available".into(), eviction_counts())],
            forecasts: forecasts(),
            oom_kills: vec![(key("gone", "leak"), 2)],
            oom_kills_by_process: vec![(key("gone", "leak"), "leak".into(), 2)],
            exits: vec![
                (key("leak-node", "leak"), ExitKind::Code(1), 1),
                (key("leak-node", "leak"), ExitKind::Signal(9), 3),
            ],
            process_exits: vec![
                (key("leak-node", "leak"), None, 1),
                (key("leak-node", "leak"), Some(ExitKind::Signal(9)), 4),
            ],
            restarts: vec![(key("leak-node", "leak"), 3)],
            actions: vec![
                (("start_container".into(), false), 1),
                (("start_container".into(), true), 4),
                (("start_sandbox".into(), true), 2),
            ],
            illegal_transitions: 0,
            orphans: 0,
            forgotten: 0,
        },
    }
}

/// Leads of 400 ms, 30 s and 45 s at the limit of the pods, nothing elsewhere.
/// One eviction of 320 MiB, decided 2 ms after the look, its memory free after 60 ms.
fn eviction_counts() -> EvictionCounts {
    let mut counts = EvictionCounts { freed: Bytes::mib(320), ..EvictionCounts::default() };
    counts.age.count(Micros::millis(2));
    counts.free.count(Micros::millis(60));
    counts.decided.insert("aggressor".into(), 1);
    counts
}

fn forecasts() -> Vec<(Scope, Score)> {
    let mut leads = [0; score::LEADS.len() + 1];
    (leads[2], leads[10], leads[11]) = (1, 1, 1);
    let lead_sum = Micros::millis(75_400);
    let kubepods = Score { true_positive: 3, false_positive: 2, false_negative: 1, leads, lead_sum };
    Scope::ALL.map(|scope| (scope, if scope == Scope::Kubepods { kubepods } else { Score::default() })).into()
}

/// An agent with one program loaded of two.
pub(crate) fn agent() -> SelfReport {
    let program = |name: &str, loaded: bool, reason: &str| Program {
        name: name.into(),
        loaded,
        reason: reason.into(),
        instructions: 100,
        run_time_ns: 2_000_000,
        run_count: 10_000,
        ns_per_event: Some(200),
        missed: 3,
    };
    SelfReport {
        wakeups: 4_321,
        looks: vec![super::LookReport {
            kind: "full".into(),
            count: 10,
            total: Micros::millis(20),
            last: Some(Micros::millis(2)),
        }],
        readings: vec![("made".into(), 5), ("held".into(), 50)],
        version: "0.1.0".into(),
        revision: "abc".into(),
        mode: "standalone".into(),
        host_ip: "192.0.2.1".into(),
        kubepods: "kubepods".into(),
        sandbox_image: "registry.k8s.io/pause:3.10".into(),
        capabilities: vec![Capability { name: "btf".into(), available: true, reason: String::new() }],
        programs: vec![program("sched_switch", true, ""), program("mark_victim", false, "no such tracepoint")],
        maps: vec![MapUse { name: "CPU".into(), entries: 3, max_entries: 8192 }],
        logs: vec![("rotated".into(), 3)],
        log_faults: vec![("reopen".into(), 1)],
        events_lost: vec![("exit".into(), 0)],
        runtime_operations: vec![super::RuntimeOperation {
            kind: "run_podsandbox".into(),
            errors: 1,
            counts: vec![0, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            time: Micros::millis(550),
        }],
        unimplemented_rpcs: vec!["UpdatePodSandboxResources".into()],
        started: Micros::secs(900),
        last_sample: Micros::secs(1_000),
        last_listing: Micros::secs(995),
    }
}

/// What a picture shows of a pod's QoS class, so that a change of the samples is noticed.
#[test]
fn the_samples_are_burstable() {
    assert!(busy_node().pods.iter().all(|p| p.qos == QosClass::Burstable));
}
