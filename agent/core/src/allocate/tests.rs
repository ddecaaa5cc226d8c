use super::*;
use crate::restart::ContainerRestart;
use crate::spec::{ContainerSecurity, LastWords, PodUid, PullPolicy, RestartPolicy, StorageResources};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// CPU request and limit in millicores, memory request and limit in MiB; 0 for none.
type Four = (u64, u64, u64, u64);

fn container(name: &str, (cpu_request, cpu_limit, memory_request, memory_limit): Four) -> ContainerSpec {
    let cpu = |v: u64| (v > 0).then_some(MilliCpu(v));
    let memory = |v: u64| (v > 0).then_some(Bytes::mib(v));
    ContainerSpec {
        name: name.to_owned(),
        image: "image".to_owned(),
        pull: PullPolicy::IfNotPresent,
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        env_from: Vec::new(),
        env: Vec::new(),
        ports: Vec::new(),
        mounts: Vec::new(),
        resources: Resources {
            cpu_request: cpu(cpu_request).or(cpu(cpu_limit)),
            cpu_limit: cpu(cpu_limit),
            memory_request: memory(memory_request).or(memory(memory_limit)),
            memory_limit: memory(memory_limit),
        },
        storage: StorageResources::default(),
        security: ContainerSecurity::default(),
        stdin: false,
        tty: false,
        restart: None,
        last_words: LastWords::default(),
        lifecycle: Default::default(),
        probes: Default::default(),
    }
}

fn pod(init: &[Four], main: &[Four]) -> PodSpec {
    let named = |prefix: &str, list: &[Four]| {
        list.iter().enumerate().map(|(i, &four)| container(&format!("{prefix}{i}"), four)).collect()
    };
    PodSpec { init_containers: named("i", init), containers: named("c", main), ..PodSpec::unknown(PodUid::from("u1")) }
}

fn holds(anon: u64, cache: u64) -> MemoryReading {
    MemoryReading {
        usage: Bytes::mib(anon + cache),
        anon: Bytes::mib(anon),
        inactive_file: Bytes::mib(cache),
        ..MemoryReading::default()
    }
}

fn in_use(anon: u64, cache: u64) -> InUse {
    let reading = Some(holds(anon, cache));
    InUse { pod: reading, containers: [("c0".to_owned(), reading)].into() }
}

#[test]
fn shares_quota_and_weight() {
    for (cpu, expected) in
        [(0, 2), (1, 2), (100, 102), (250, 256), (1_000, 1_024), (2_000, 2_048), (1_000_000, 262_144)]
    {
        assert_eq!(shares(MilliCpu(cpu)), expected);
    }
    let period = Micros::millis(100);
    for (cpu, expected) in [(0, None), (1, Some(1_000)), (10, Some(1_000)), (20, Some(2_000)), (1_500, Some(150_000))] {
        assert_eq!(quota(MilliCpu(cpu), period), expected.map(Micros));
    }
    for (shares, weight) in [(0, 1), (2, 1), (102, 4), (1_024, 39), (262_144, 10_000), (u64::MAX, 10_000)] {
        assert_eq!(weight_from_shares(shares), weight);
    }
}

#[test]
fn paths() {
    let node = NodeConfig { kubepods: "bed/kubepods".to_owned(), ..NodeConfig::default() };
    for (four, path) in [
        ((0, 0, 0, 0), "bed/kubepods/besteffort/podu1"),
        ((100, 0, 0, 0), "bed/kubepods/burstable/podu1"),
        ((0, 100, 0, 100), "bed/kubepods/podu1"),
    ] {
        assert_eq!(pod_path(&node, &pod(&[], &[four])), path);
    }
    assert_eq!(container_path("bed/kubepods/podu1", "abc"), "bed/kubepods/podu1/abc");
}

#[test]
fn a_pods_cgroup() {
    let node = NodeConfig::default();
    // Init containers count by their largest; a limit that one container lacks is none for the pod.
    for (init, main, cpu_shares, quota_ms, memory) in [
        (&[][..], &[(0, 0, 0, 0)][..], 2, None, None),
        (&[], &[(500, 0, 64, 0), (250, 500, 64, 128)], 768, None, None),
        (&[], &[(500, 1_000, 64, 128), (250, 500, 64, 128)], 768, Some(150), Some(256)),
        (&[(2_000, 2_000, 512, 512)], &[(500, 1_000, 64, 128), (250, 500, 64, 128)], 2_048, Some(200), Some(512)),
        (&[(2_000, 0, 0, 0)], &[(0, 1_000, 0, 128)], 2_048, None, None),
    ] {
        let knobs = pod_cgroup(&node, &pod(init, main)).knobs;
        assert_eq!(knobs.cpu_shares, Some(cpu_shares));
        assert_eq!(knobs.cpu_quota, quota_ms.map(Micros::millis));
        assert_eq!(knobs.memory_max, memory.map(Bytes::mib));
    }
    let off = NodeConfig { cpu_quota: false, ..node };
    assert_eq!(pod_cgroup(&off, &pod(&[], &[(0, 1_000, 0, 0)])).knobs.cpu_quota, None);
}

#[test]
fn class_cgroups_and_kubepods() {
    let node = NodeConfig {
        system_reserved: ResourceList { cpu: MilliCpu(500), memory: Bytes::gib(1) },
        ..NodeConfig::default()
    };
    assert_eq!(kubepods(&node).knobs.memory_max, Some(Bytes::gib(3)));
    assert_eq!(kubepods(&node).knobs.cpu_shares, Some(1_536));
    let pods = [
        pod(&[], &[(500, 0, 0, 0)]),
        pod(&[], &[(250, 0, 0, 0)]),
        pod(&[], &[(0, 1_000, 0, 100)]),
        pod(&[], &[(0, 0, 0, 0)]),
    ];
    let [burstable, best_effort] = qos_cgroups(&node, &pods);
    assert_eq!((burstable.path.as_str(), burstable.knobs.cpu_shares), ("kubepods/burstable", Some(768)));
    assert_eq!((best_effort.path.as_str(), best_effort.knobs.cpu_shares), ("kubepods/besteffort", Some(2)));
    assert_eq!((burstable.knobs.cpu_quota, burstable.knobs.memory_max), (None, None));
}

#[test]
fn oom_scores() {
    let node = NodeConfig::default();
    for (four, priority, score) in [
        ((0, 0, 0, 0), 0, 1_000),
        ((0, 100, 0, 100), 0, -997),
        ((100, 0, 0, 0), 0, 999),
        ((0, 0, 1, 0), 0, 999),
        ((0, 0, 1_024, 0), 0, 750),
        ((0, 0, 4_096, 0), 0, 3),
        ((0, 0, 0, 0), NODE_CRITICAL_PRIORITY, -997),
        ((0, 0, 0, 0), crate::spec::CRITICAL_PRIORITY, 1_000),
    ] {
        let mut pod = pod(&[], &[four]);
        pod.priority = priority;
        assert_eq!(linux_resources(&node, &pod, &pod.containers[0]).oom_score_adj, score, "{four:?} {priority}");
    }
}

#[test]
fn a4_5h_a_sidecar_counts_beside_the_others_and_is_as_safe_as_they_are() {
    let always = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
    // Init containers in millicores, `true` for a sidecar; main containers; what the pod asks for.
    for (init, main, wanted) in [
        (&[(100, true)][..], &[200, 300][..], 600),
        (&[(100, true), (900, false)], &[200], 1_000),
        (&[(900, false), (100, true)], &[200], 900),
        (&[(100, true), (500, false), (200, true)], &[400], 700),
        (&[(100, true), (0, true)], &[0], 100),
        (&[(0, false)], &[0], 0),
    ] {
        let fours = |list: &[u64]| list.iter().map(|cpu| (*cpu, 0, 0, 0)).collect::<Vec<_>>();
        let mut spec = pod(&fours(&init.iter().map(|(cpu, _)| *cpu).collect::<Vec<_>>()), &fours(main));
        for (container, (_, sidecar)) in spec.init_containers.iter_mut().zip(init) {
            container.restart = always.clone().filter(|_| *sidecar);
        }
        assert_eq!(pod_requests(&spec).cpu, MilliCpu(wanted), "{init:?} {main:?}");
    }
    // Of a Burstable pod on 4 GiB: the sidecar asks for nothing, the least main container for a quarter.
    let node = NodeConfig {
        capacity: ResourceList { memory: Bytes::gib(4), ..ResourceList::default() },
        ..NodeConfig::default()
    };
    let mut spec = pod(&[(0, 0, 0, 0), (0, 0, 3_072, 0)], &[(0, 0, 1_024, 0), (0, 0, 2_048, 0)]);
    assert_eq!(oom_score_adj(&node, &spec, &spec.init_containers[0]), 999);
    for container in &mut spec.init_containers {
        container.restart.clone_from(&always);
    }
    assert_eq!([0, 1].map(|i| oom_score_adj(&node, &spec, &spec.init_containers[i])), [750, 250]);
}

#[test]
fn a4_16a_admission() {
    let node = NodeConfig { max_pods: 2, ..NodeConfig::default() };
    let big = pod(&[], &[(1_500, 0, 3_000, 0)]);
    assert_eq!(admit(&node, [], &big), Ok(()));
    let short = admit(&node, [&big], &big).unwrap_err();
    assert_eq!(short.reason(), "OutOfcpu");
    assert_eq!(short.to_string(), "Node didn't have enough resource: cpu, requested: 1500, used: 1500, capacity: 2000");
    let hungry = pod(&[], &[(0, 0, 1_000, 0)]);
    let short = admit(&node, [&big], &hungry).unwrap_err();
    let expected = format!(
        "Node didn't have enough resource: memory, requested: {}, used: {}, capacity: {}",
        1_000 * MIB,
        3_000 * MIB,
        3_996 * MIB
    );
    assert_eq!((short.reason().as_str(), short.to_string()), ("OutOfmemory", expected));
    let small = pod(&[], &[(0, 0, 0, 0)]);
    assert_eq!(admit(&node, [&big, &big], &small).unwrap_err().reason(), "OutOfpods");
    assert_eq!(admit(&node, [&big], &small), Ok(()));
}

#[test]
fn resizes() {
    let node = NodeConfig::default();
    let old = pod(&[], &[(500, 1_000, 256, 512)]);
    let plan = |new: Four, others: &[PodSpec], use_: &InUse| resize(&node, others, &old, &pod(&[], &[new]), use_);
    assert_eq!(plan((500, 1_000, 256, 512), &[], &in_use(100, 0)), ResizePlan::Nothing);
    for (new, first) in [
        ((500, 1_500, 256, 512), true),
        ((500, 1_000, 256, 600), true),
        ((500, 700, 256, 512), false),
        ((500, 1_000, 256, 400), false),
        ((500, 1_500, 256, 400), true),
        ((500, 700, 256, 600), false),
        ((500, 0, 256, 512), true),
    ] {
        let ResizePlan::Apply { pod_first, pod, containers } = plan(new, &[], &in_use(100, 300)) else {
            panic!("{new:?}")
        };
        assert_eq!((pod_first, containers.len()), (first, 1), "{new:?}");
        assert_eq!(pod.knobs.cpu_quota, containers[0].1.knobs.cpu_quota);
    }
    // Page cache does not stand in the way, anonymous memory does.
    assert!(matches!(plan((500, 1_000, 256, 300), &[], &in_use(200, 300)), ResizePlan::Apply { .. }));
    let deferred = plan((500, 1_000, 256, 300), &[], &in_use(290, 0));
    assert!(matches!(&deferred, ResizePlan::Deferred { why } if why.contains("290Mi")), "{deferred:?}");
    assert!(matches!(plan((500, 1_000, 256, 300), &[], &InUse::default()), ResizePlan::Deferred { .. }));
    // The ladder raised the limit for a while, and more is held than the pod was given: a change of CPU alone would cut it.
    let mut raised = in_use(700, 0);
    raised.pod = raised.pod.map(|memory| MemoryReading { limit: Some(Bytes::mib(1_024)), ..memory });
    assert!(matches!(plan((700, 1_000, 256, 512), &[], &raised), ResizePlan::Deferred { .. }));
    assert!(matches!(plan((700, 1_000, 256, 512), &[], &in_use(700, 0)), ResizePlan::Apply { .. }));
    assert!(matches!(plan((3_000, 3_000, 256, 512), &[], &in_use(1, 0)), ResizePlan::Infeasible { .. }));
    assert!(matches!(plan((0, 0, 0, 0), &[], &in_use(1, 0)), ResizePlan::Infeasible { .. }));
    let other = pod(&[], &[(1_400, 0, 0, 0)]);
    assert!(matches!(plan((700, 1_000, 256, 512), &[other], &in_use(1, 0)), ResizePlan::Deferred { .. }));
}

#[test]
fn burst_is_given_and_taken() {
    let quota = Some(Micros::millis(50));
    let idle = |percent: u64| Some(Ppm(percent * 10_000));
    let at = Micros::secs;
    let mut burst = BurstController::default();
    assert_eq!(burst.step(at(10), None, idle(90), quota), None, "not throttled");
    assert_eq!(burst.step(at(10), Some(at(8)), idle(90), quota), None, "throttled too long ago");
    assert_eq!(burst.step(at(10), Some(at(10)), None, quota), None, "who knows what is idle");
    assert_eq!(burst.step(at(10), Some(at(10)), idle(9), quota), None, "too busy");
    assert_eq!(burst.step(at(10), Some(at(10)), idle(90), None), None, "no quota");
    assert_eq!(burst.step(at(10), Some(at(10)), idle(10), quota).map(|c| c.burst), quota);
    assert_eq!(burst.step(at(14), Some(at(14)), idle(1), quota), None, "held");
    assert_eq!(burst.step(at(15), Some(at(14)), idle(7), quota), None, "between the marks");
    assert_eq!(burst.step(at(15), Some(at(14)), idle(1), quota).map(|c| c.burst), Some(Micros::ZERO));
    assert_eq!(burst.step(at(19), Some(at(19)), idle(90), quota), None, "held");
    assert_eq!(burst.step(at(20), Some(at(20)), idle(90), quota).map(|c| c.burst), quota);
    assert_eq!(burst.step(at(49), Some(at(20)), idle(90), quota), None);
    assert_eq!(burst.step(at(50), Some(at(20)), idle(90), quota).map(|c| c.burst), Some(Micros::ZERO));
    assert_eq!(burst.step(at(60), Some(at(60)), idle(90), quota).map(|c| c.burst), quota);
    assert_eq!(
        burst.step(at(61), None, idle(90), Some(Micros::millis(20))).map(|c| c.burst),
        Some(Micros::millis(20)),
        "cut quota"
    );
    assert_eq!(burst.step(at(61), None, idle(90), None).map(|c| c.burst), Some(Micros::ZERO), "quota removed");
}

fn any_four() -> impl Strategy<Value = Four> {
    (0_u64..1_500, 0_u64..1_500, 0_u64..2_000, 0_u64..2_000)
        .prop_map(|(a, b, c, d)| (a, if b == 0 { 0 } else { a + b }, c, if d == 0 { 0 } else { c + d }))
}

fn any_pod() -> impl Strategy<Value = PodSpec> {
    (prop::collection::vec(any_four(), 0..3), prop::collection::vec(any_four(), 1..4)).prop_map(|(i, m)| pod(&i, &m))
}

proptest! {
    #[test]
    fn allocation_is_conserved(pods in prop::collection::vec(any_pod(), 0..20)) {
        let node = NodeConfig::default();
        let mut admitted: Vec<PodSpec> = Vec::new();
        for pod in pods {
            if admit(&node, &admitted, &pod).is_ok() {
                admitted.push(pod);
            }
        }
        let allocatable = node.allocatable();
        let cpu: MilliCpu = admitted.iter().map(|p| pod_requests(p).cpu).sum();
        let memory: Bytes = admitted.iter().map(|p| pod_requests(p).memory).sum();
        prop_assert!(cpu <= allocatable.cpu && memory <= allocatable.memory);
    }

    #[test]
    fn a_pods_knobs_cover_its_containers(pod in any_pod()) {
        let node = NodeConfig::default();
        let whole = pod_cgroup(&node, &pod).knobs;
        for c in pod.all_containers() {
            let part = linux_resources(&node, &pod, c).knobs;
            prop_assert!(whole.cpu_shares >= part.cpu_shares);
            prop_assert!(whole.cpu_quota.is_none_or(|w| part.cpu_quota.is_some_and(|p| p <= w)));
            prop_assert!(whole.memory_max.is_none_or(|w| part.memory_max.is_some_and(|p| p <= w)));
        }
    }

    #[test]
    fn a_planned_limit_is_never_below_what_reclaim_cannot_free_plus_the_margin(
        old in any_four(), new in any_four(), anon in 0_u64..3_000, cache in 0_u64..3_000,
    ) {
        let node = NodeConfig::default();
        let (old, new) = (pod(&[], &[old]), pod(&[], &[new]));
        let held = holds(anon, cache);
        if let ResizePlan::Apply { pod, containers, .. } = resize(&node, [], &old, &new, &in_use(anon, cache)) {
            let before = |k: &CgroupKnobs| k.memory_max.map_or(u64::MAX, Bytes::get);
            for (was, is) in [
                (before(&pod_cgroup(&node, &old).knobs), before(&pod.knobs)),
                (before(&linux_resources(&node, &old, &old.containers[0]).knobs), before(&containers[0].1.knobs)),
            ] {
                prop_assert!(is >= was || is >= lowest_limit(&held).get());
            }
        }
    }

    #[test]
    fn burst_never_exceeds_quota_and_flips_at_most_once_per_hold(
        steps in prop::collection::vec((1_u64..4_000, any::<bool>(), proptest::option::of(0_u64..300_000), 1_u64..3), 1..200),
    ) {
        let mut burst = BurstController::default();
        let (mut ms, mut last, mut quota, mut throttled_at): (u64, Option<u64>, u64, Option<Micros>) = (0, None, 50, None);
        for (i, (wait, throttled, idle, factor)) in steps.into_iter().enumerate() {
            ms += wait;
            if throttled {
                throttled_at = Some(Micros::millis(ms));
            }
            // The quota changes now and then.
            let resized = i % 17 == 16;
            if resized {
                quota = 50 * factor;
            }
            let had = burst.given();
            let change = burst.step(Micros::millis(ms), throttled_at, idle.map(Ppm), Some(Micros::millis(quota)));
            prop_assert!(burst.given() <= Micros::millis(quota));
            if let Some(change) = change {
                prop_assert_eq!(change.burst, burst.given());
                prop_assert!(change.burst != had && !change.why.is_empty());
                let corrected = had > Micros::millis(quota);
                prop_assert!(corrected || last.is_none_or(|last| ms - last >= 5_000));
                last = Some(ms);
            }
        }
    }
}
