//! Each workload curve on a quiet node of 4 GiB with 3 GiB for pods and a threshold of 100 MiB: what must come of it.

use std::sync::Arc;

use beelet_core::World;
use beelet_core::evict::{Signal, Soft, Threshold};
use beelet_core::node::Enforce;
use beelet_core::pod::PodState;
use beelet_core::score::Scope;
use beelet_core::spec::{PodSpec, RestartPolicy};
use beelet_core::units::{Bytes, Micros, MilliCpu, Now};
use beelet_sim::scenario::{Disturbance, bare_container, bare_pod};
use beelet_sim::workload::Curve;
use beelet_sim::{Scenario, Sim, Stats};

fn pod(name: &str, curve: &Curve) -> PodSpec {
    let mut pod = bare_pod(name);
    pod.containers = vec![bare_container("c", curve)];
    pod
}

/// The pods beside a quiet pod of 400 MiB that asks for nothing.
fn scenario(seed: u64, pods: &[PodSpec]) -> Scenario {
    let mut scenario = Scenario::quiet(seed);
    let mut all = vec![Arc::new(pod("quiet", &Curve::Idle { holds: Bytes::mib(400) }))];
    all.extend(pods.iter().cloned().map(Arc::new));
    scenario.script = vec![(Micros::millis(10), Disturbance::Want(all, Vec::new()))];
    scenario.disturbed = Micros::secs(120);
    scenario
}

/// Runs that. Returns what happened and who is Evicted.
fn run(seed: u64, pods: &[PodSpec]) -> (Stats, Vec<String>, Sim) {
    run_scenario(scenario(seed, pods))
}

fn run_scenario(scenario: Scenario) -> (Stats, Vec<String>, Sim) {
    let mut sim = Sim::new(scenario);
    let stats = sim.run().unwrap_or_else(|failure| panic!("{failure}"));
    let evicted = sim.world().into_iter().flat_map(|w| w.pods().values()).filter_map(|p| match &p.state {
        PodState::Terminal(end) if end.reason == "Evicted" => Some(p.spec.name.clone()),
        _ => None,
    });
    let evicted = evicted.collect();
    (stats, evicted, sim)
}

fn untouched(curve: &Curve) {
    for seed in 0..8 {
        let (stats, evicted, _) = run(seed, &[pod("it", curve)]);
        assert_eq!((stats.evictions, stats.ooms.kubepods), (0, 0), "seed {seed}: {evicted:?}");
    }
}

fn evicted_before_the_oom_killer(curve: &Curve) {
    for seed in 0..8 {
        let (stats, evicted, _) = run(seed, &[pod("it", curve)]);
        assert_eq!(evicted, ["it"], "seed {seed}: {stats:?}");
        assert_eq!((stats.evictions, stats.ooms.kubepods, stats.ooms.node), (1, 0, 0), "seed {seed}");
    }
}

#[test]
fn linear_leaks_up_to_400_mib_per_second_are_evicted_before_the_oom_killer() {
    for rate in [25, 50, 100, 200, 300, 400] {
        evicted_before_the_oom_killer(&Curve::Leak { after: Micros::secs(5), rate: Bytes::mib(rate) });
    }
}

#[test]
fn a_leak_below_its_request_is_still_the_victim_only_after_one_that_exceeds() {
    let leak = Curve::Leak { after: Micros::ZERO, rate: Bytes::mib(20) };
    let mut modest = pod("modest", &leak);
    modest.containers[0].resources.memory_request = Some(Bytes::mib(2_900));
    let (stats, evicted, _) = run(1, &[modest]);
    // The quiet pod asks for nothing and so exceeds: the kubelet's order. Then the leak goes on and goes itself.
    assert_eq!(evicted, ["modest", "quiet"]);
    assert_eq!(stats.ooms.kubepods, 0);
}

#[test]
fn a_step_to_most_of_the_memory_is_left_alone() {
    untouched(&Curve::Step { at: Micros::secs(20), to: Bytes::mib(2_000) });
}

#[test]
fn a_step_to_just_below_the_wall_is_evicted() {
    evicted_before_the_oom_killer(&Curve::Step { at: Micros::secs(20), to: Bytes::mib(2_620) });
}

#[test]
fn what_meets_a_soft_threshold_for_its_grace_period_is_told_to_stop() {
    for (seed, grace, evictions) in [(0, 30, 1), (1, 60, 1), (2, 200, 0)] {
        let mut scenario = scenario(seed, &[pod("it", &Curve::Step { at: Micros::secs(20), to: Bytes::mib(2_400) })]);
        let soft = Soft { threshold: Threshold::Quantity(Bytes::mib(500)), grace: Micros::secs(grace) };
        scenario.node.eviction_soft.insert(Signal::AllocatableMemory, soft);
        scenario.node.max_pod_grace = Micros::secs(5);
        let (stats, evicted, sim) = run_scenario(scenario);
        assert_eq!((stats.soft, stats.evictions, stats.ooms.kubepods), (evictions, 0, 0), "seed {seed}");
        assert_eq!(evicted.len() as u64, evictions, "seed {seed}: {evicted:?}");
        assert!(sim.world().is_some_and(World::memory_pressure), "seed {seed}");
    }
}

#[test]
fn a_leak_past_a_soft_threshold_is_killed_at_the_hard_one() {
    for seed in 0..4 {
        let leak = Curve::Leak { after: Micros::secs(5), rate: Bytes::mib(50) };
        let mut it = pod("it", &leak);
        it.termination_grace = Micros::secs(60);
        let mut scenario = scenario(seed, &[it]);
        let soft = Soft { threshold: Threshold::Quantity(Bytes::mib(500)), grace: Micros::secs(2) };
        scenario.node.eviction_soft.insert(Signal::AllocatableMemory, soft);
        scenario.node.max_pod_grace = Micros::secs(60);
        let (stats, evicted, _) = run_scenario(scenario);
        assert_eq!(evicted, ["it"], "seed {seed}: {stats:?}");
        assert_eq!((stats.soft, stats.ooms.kubepods), (1, 0), "seed {seed}: {stats:?}");
    }
}

/// What stands in the evidence of the records of a reason, about the pod `it`.
fn told(sim: &Sim, reason: &str, name: &str) -> Vec<String> {
    let world = sim.world().expect("the agent runs");
    let picture = world.snapshot(Now { mono: Micros::secs(1), wall: Micros::secs(1) });
    let records = picture.records.iter().filter(|r| r.reason == reason && r.name == "default/it");
    records.flat_map(|r| r.evidence.clone()).filter(|(n, _)| n == name).map(|(_, value)| value).collect()
}

#[test]
fn an_eviction_says_why_this_one_and_afterwards_what_it_gained() {
    for seed in 0..8 {
        let leak = Curve::Leak { after: Micros::secs(5), rate: Bytes::mib(50) };
        let (stats, _, sim) = run(seed, &[pod("it", &leak)]);
        assert_eq!(stats.evictions, 1, "seed {seed}");
        assert_eq!(told(&sim, "Evicted", "decided_by"), ["aggressor"], "seed {seed}");
        let why = told(&sim, "Evicted", "why_this_one").concat();
        assert!(why.starts_with("before default/quiet: it is the one that eats the room (took "), "{why}");
        let [held, freed] = ["held", "freed"].map(|name| told(&sim, "EvictionGained", name));
        assert!(held.len() == 1 && held == freed, "seed {seed}: {held:?} {freed:?}");
        assert_ne!(told(&sim, "EvictionGained", "free_after"), ["not free"], "seed {seed}");
        let picture = sim.world().expect("the agent runs").snapshot(Now { mono: Micros::secs(1), wall: Micros::ZERO });
        let (_, counts) =
            picture.totals.eviction_counts.iter().find(|(s, _)| s == "allocatableMemory.available").expect("counted");
        // It held 2.5 GiB and more, and that is free within the time that the simulated runtime takes.
        assert!(counts.freed > Bytes::gib(2) && counts.in_vain == 0, "seed {seed}: {counts:?}");
        assert_eq!(counts.free.counts[..9].iter().sum::<u64>(), 1, "within 2.5 s: seed {seed}: {counts:?}");
        assert_eq!(counts.age.counts.iter().sum::<u64>(), 1, "seed {seed}: {counts:?}");
        assert_eq!(counts.decided.get("aggressor"), Some(&1), "seed {seed}: {counts:?}");
    }
}

#[test]
fn where_nothing_is_done_nothing_is_gained() {
    let mut scenario = scenario(0, &[pod("it", &Curve::Leak { after: Micros::secs(5), rate: Bytes::mib(50) })]);
    scenario.node.enforce = Enforce::Observe;
    let (stats, evicted, sim) = run_scenario(scenario);
    assert!(stats.evictions == 0 && evicted.is_empty(), "{stats:?}");
    assert!(told(&sim, "WouldEvict", "decided_by").contains(&"aggressor".to_owned()));
    assert!(told(&sim, "EvictionGained", "freed").is_empty());
}

#[test]
fn a_fork_bomb_is_evicted_before_the_oom_killer() {
    evicted_before_the_oom_killer(&Curve::ForkBomb { each: Bytes::mib(3), doubling: Micros::secs(5), most: 2_000 });
}

#[test]
fn a_memory_volume_that_fills_is_evicted_before_the_oom_killer() {
    evicted_before_the_oom_killer(&Curve::Tmpfs { rate: Bytes::mib(100), most: Bytes::gib(4) });
}

#[test]
fn a_scan_of_files_causes_no_action() {
    untouched(&Curve::Scan { rate: Bytes::mib(500), drop_every: Micros::secs(20) });
}

#[test]
fn a_heap_that_grows_to_its_plateau_is_left_alone() {
    untouched(&Curve::Jvm { plateau: Bytes::mib(2_200), half: Micros::secs(5) });
}

#[test]
fn a_saw_tooth_to_95_percent_of_its_own_limit_is_left_alone() {
    for seed in 0..8 {
        let limit = Bytes::mib(1_000);
        let saw = Curve::Saw { low: Bytes::mib(200), high: limit.scale(95, 100), period: Micros::secs(4) };
        let mut it = pod("it", &saw);
        it.containers[0].resources.memory_limit = Some(limit);
        let (stats, ..) = run(seed, &[it]);
        assert_eq!((stats.evictions, stats.ooms.own, stats.ooms.kubepods), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn a_leak_in_its_own_limit_is_the_kernels_and_no_eviction() {
    let mut it = pod("it", &Curve::Leak { after: Micros::ZERO, rate: Bytes::mib(100) });
    it.containers[0].resources.memory_limit = Some(Bytes::mib(500));
    let (stats, evicted, _) = run(2, &[it]);
    assert_eq!((stats.evictions, stats.ooms.kubepods, evicted.len()), (0, 0, 0));
    assert!(stats.ooms.own >= 2, "{stats:?}");
}

/// True and false positives, false negatives.
fn score(sim: &Sim, scope: Scope) -> [u64; 3] {
    let scores = sim.world().map(World::forecast_scores).unwrap_or_default();
    let of = scores.into_iter().find(|(s, _)| *s == scope).map(|(_, score)| score).unwrap_or_default();
    [of.true_positive, of.false_positive, of.false_negative]
}

#[test]
fn forecasts_are_scored_by_what_happens() {
    for seed in 0..4 {
        // Foreseen, and heeded: the leak is evicted for the limit of all pods.
        let leak = |rate| pod("it", &Curve::Leak { after: Micros::secs(5), rate: Bytes::mib(rate) });
        // The faster one before the threshold is met.
        for rate in [100, 400] {
            let (_, evicted, sim) = run(seed, &[leak(rate)]);
            assert_eq!((score(&sim, Scope::Kubepods), evicted.len()), ([1, 0, 0], 1), "seed {seed}, {rate} MiB/s");
        }
        // Foreseen, each time anew, and left to the kernel: its own limit. One may be under way at the end.
        let mut own = leak(20);
        own.containers[0].resources.memory_limit = Some(Bytes::mib(500));
        let (stats, _, sim) = run(seed, &[own]);
        let [right, wrong, missed] = score(&sim, Scope::Container);
        assert_eq!((right, missed), (stats.ooms.own, 0), "seed {seed}: {wrong} were wrong");
        assert!(right >= 2 && wrong <= 1, "seed {seed}: {right} {wrong}");
        // Too fast for anybody: four samples see nothing of it.
        let mut jump = pod("it", &Curve::Step { at: Micros::secs(9), to: Bytes::mib(900) });
        jump.containers[0].resources.memory_limit = Some(Bytes::mib(500));
        let (stats, _, sim) = run(seed, &[jump]);
        assert_eq!(score(&sim, Scope::Container), [0, 0, stats.ooms.own], "seed {seed}");
        // Nobody is warned of page cache.
        let scan = Curve::Scan { rate: Bytes::mib(500), drop_every: Micros::secs(20) };
        let (_, _, sim) = run(seed, &[pod("it", &scan)]);
        assert!(Scope::ALL.iter().all(|scope| score(&sim, *scope) == [0, 0, 0]), "seed {seed}");
    }
}

#[test]
fn an_idle_pod_and_a_burner_are_left_alone() {
    untouched(&Curve::Idle { holds: Bytes::mib(10) });
    untouched(&Curve::Burn { cpu: MilliCpu(1_500) });
}

#[test]
fn a_crash_loop_is_restarted_with_back_off() {
    let (_, _, sim) = run(3, &[pod("it", &Curve::Crash { after: Micros::millis(500), code: 1 })]);
    let world = sim.world().expect("an agent");
    let restarts = world.pods().values().find(|p| p.spec.name == "it").map_or(0, |p| p.tracks["c"].restarts());
    // 0, 10, 20, 40, 80 s: the fifth comes 70 s after the start, the sixth after 150 s.
    assert!((4..=5).contains(&restarts), "{restarts}");
}

#[test]
fn a_job_runs_to_its_end_once() {
    let mut it = pod("it", &Curve::Job { takes: Micros::secs(20) });
    it.restart_policy = RestartPolicy::OnFailure;
    let (stats, _, sim) = run(4, &[it]);
    let world = sim.world().expect("an agent");
    let state = world.pods().values().find(|p| p.spec.name == "it").map(|p| p.state.clone());
    assert!(matches!(state, Some(PodState::Terminal(end)) if end.phase.as_str() == "Succeeded"));
    assert_eq!(stats.evictions, 0);
}
