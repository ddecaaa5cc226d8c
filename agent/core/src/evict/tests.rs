use super::*;
use crate::event::ResourceList;
use crate::forecast::{MIN_INTERVAL, REACTION};
use crate::node::NodeConfig;
use crate::sample::{CgroupReading, ContainerReading, MemoryReading, NodeReading, PodReading, PressureReading, Sample};
use crate::spec::PodUid;
use crate::units::{Micros, MilliCpu};
use proptest::prelude::*;

mod leave;

const LIMIT: u64 = 2_560;

fn config() -> NodeConfig {
    NodeConfig { capacity: ResourceList { cpu: MilliCpu(2_000), memory: Bytes::gib(64) }, ..NodeConfig::default() }
}

/// A pod of the little world of these tests; MiB.
#[derive(Clone, Debug)]
struct Pod {
    name: String,
    anon: u64,
    request: u64,
    priority: i32,
    critical: bool,
    terminating: bool,
    growth: Option<i64>,
}

fn pod(name: &str, anon: u64) -> Pod {
    Pod { name: name.to_owned(), anon, request: 0, priority: 0, critical: false, terminating: false, growth: None }
}

fn memory(anon: u64, cache: u64) -> MemoryReading {
    MemoryReading {
        usage: Bytes::mib(anon + cache),
        anon: Bytes::mib(anon),
        active_file: Bytes::mib(cache / 2),
        inactive_file: Bytes::mib(cache - cache / 2),
        limit: Some(Bytes::mib(LIMIT)),
        ..MemoryReading::default()
    }
}

fn sample(ms: u64, anon: u64, cache: u64, pods: Option<&[Pod]>) -> Sample {
    let cgroup = |p: &Pod| CgroupReading { id: 2, memory: Some(memory(p.anon, 0)), ..CgroupReading::default() };
    let reading = |p: &Pod| PodReading::of(PodUid::from(p.name.as_str()), cgroup(p));
    Sample {
        at: Micros::millis(ms),
        node: NodeReading {
            memory_total: Bytes::gib(64),
            memory_unreclaimable: Bytes::gib(8),
            memory_working_set: Bytes::gib(9),
            ..NodeReading::default()
        },
        kubepods: Some(CgroupReading { id: 1, memory: Some(memory(anon, cache)), ..CgroupReading::default() }),
        pods: pods.map(|pods| pods.iter().map(reading).collect()),
        node_detail: None,
    }
}

fn candidate(p: &Pod) -> Candidate {
    Candidate {
        uid: PodUid::from(p.name.as_str()),
        name: p.name.clone(),
        priority: p.priority,
        critical: p.critical,
        terminating: p.terminating,
        grace: Micros::secs(30),
        leaves: false,
        request: Bytes::mib(p.request),
        unreclaimable: Bytes::mib(p.anon),
        growth: p.growth,
        // As if it had grown so for two seconds.
        taken: Bytes(2 * u64::try_from(p.growth.unwrap_or(0)).unwrap_or(0)),
        containers: vec![CandidateContainer {
            name: "c".to_owned(),
            request: Bytes::mib(p.request),
            usage: Bytes::mib(p.anon),
        }],
    }
}

fn candidates(pods: &[Pod]) -> Vec<Candidate> {
    pods.iter().map(candidate).collect()
}

/// Takes a sample of all pods at its own time.
fn look(decider: &mut Decider, ms: u64, cache: u64, pods: &[Pod]) -> Decision {
    let total = pods.iter().map(|p| p.anon).sum();
    decider.step(Micros::millis(ms), &sample(ms, total, cache, Some(pods)), Some(&candidates(pods)))
}

fn victim(decision: &Decision) -> Option<&str> {
    match decision {
        Decision::Evict(eviction) => Some(eviction.victim.as_str()),
        _ => None,
    }
}

#[test]
fn thresholds_are_read() {
    for (text, expected) in [
        ("100Mi", Ok(Some(Threshold::Quantity(Bytes::mib(100))))),
        ("1Gi", Ok(Some(Threshold::Quantity(Bytes::gib(1))))),
        ("5%", Ok(Some(Threshold::Share(Ppm(50_000))))),
        ("7.5%", Ok(Some(Threshold::Share(Ppm(75_000))))),
        ("0%", Ok(None)),
        ("100%", Ok(None)),
        ("0", Err(ThresholdError::Zero("0".to_owned()))),
        ("101%", Err(ThresholdError::Percentage("101%".to_owned()))),
        ("-5%", Err(ThresholdError::Percentage("-5%".to_owned()))),
        ("%", Err(ThresholdError::Percentage("%".to_owned()))),
        ("5.00001%", Err(ThresholdError::Percentage("5.00001%".to_owned()))),
    ] {
        assert_eq!(Threshold::parse(text), expected, "{text}");
    }
    assert!(matches!(Threshold::parse("100Mx"), Err(ThresholdError::Quantity(..))));
}

#[test]
fn the_text_is_the_kubelets() {
    let containers = [
        CandidateContainer { name: "leak".to_owned(), request: Bytes::ZERO, usage: Bytes::mib(2_455) },
        CandidateContainer { name: "quiet".to_owned(), request: Bytes::mib(64), usage: Bytes::mib(10) },
        CandidateContainer { name: "big".to_owned(), request: Bytes::mib(128), usage: Bytes(4_395_616 << 10) },
    ];
    assert_eq!(
        message(Bytes::mib(100), Bytes(225_800 << 10), &containers),
        "The node was low on resource: memory. Threshold quantity: 100Mi, available: 225800Ki. Container leak was using 2455Mi, \
         request is 0, has larger consumption of memory. Container big was using 4395616Ki, request is 128Mi, has larger \
         consumption of memory. "
    );
}

#[test]
fn ranking() {
    let mut pods = [pod("a-below", 900), pod("b-over", 100), pod("c-over", 200), pod("d-low", 10), pod("e-leak", 150)];
    pods[0].request = 1_000;
    pods[3].priority = -1;
    pods[4].growth = Some(20 << 20);
    let all = candidates(&pods);
    let order: Vec<&str> = rank(&all).iter().map(|p| p.pod.name.as_str()).collect();
    // Lower priority first, then who eats the room, then who holds most above its request; the one below its request last.
    assert_eq!(order, ["d-low", "e-leak", "c-over", "b-over", "a-below"]);
}

#[test]
fn a_leak_of_100_mib_per_second_is_evicted_at_the_threshold() {
    let mut decider = Decider::new(&config());
    let (mut ms, mut anon) = (1_000, 500_u64);
    let eviction = loop {
        let pods = [pod("leak", anon), pod("quiet", 200)];
        match look(&mut decider, ms, 300, &pods) {
            Decision::Evict(eviction) => break eviction,
            other => assert_eq!(other, Decision::Nothing),
        }
        let wait = decider.standing().pace.interval.get() / 1_000;
        ms += wait;
        anon = 500 + (ms - 1_000) / 10;
        assert!(anon + 200 < LIMIT, "too late");
    };
    assert_eq!(eviction.victim.as_str(), "leak");
    assert_eq!(eviction.signal, Signal::AllocatableMemory);
    assert!(eviction.available >= Bytes::mib(90) && eviction.available <= Bytes::mib(100), "{}", eviction.available);
    assert!(eviction.evidence.iter().any(|(k, v)| k == "second_sign" && v.starts_with("grows by")), "{eviction:?}");
    assert!(
        eviction.message.starts_with("The node was low on resource: memory. Threshold quantity: 100Mi, available: ")
    );
    assert_eq!(eviction.ranking.len(), 2);
}

#[test]
fn a_leak_of_1_gib_per_second_is_evicted_before_the_threshold() {
    let mut decider = Decider::new(&config());
    let (mut ms, mut anon) = (1_000, 100_u64);
    loop {
        let decision = look(&mut decider, ms, 0, &[pod("leak", anon)]);
        if let Decision::Evict(eviction) = decision {
            assert!(eviction.available > Bytes::mib(200), "{}", eviction.available);
            assert!(eviction.forecast.is_some_and(|f| f.time_to_oom <= REACTION));
            break;
        }
        ms += decider.standing().pace.interval.get() / 1_000;
        anon = 100 + (ms - 1_000) * 1_024 / 1_000;
        assert!(anon < LIMIT, "too late");
    }
}

#[test]
fn a_quick_look_asks_for_a_full_one() {
    let mut decider = Decider::new(&config());
    for i in 1..=4 {
        let at = 1_000 + 20 * i;
        let decision = decider.step(Micros::millis(at), &sample(at, 2_480 + 2 * i, 0, None), None);
        assert_eq!(decision, Decision::LookAtPods);
        assert_eq!(decider.standing().pace.interval, MIN_INTERVAL);
        assert!(decider.standing().pace.all_pods);
    }
    assert_eq!(victim(&look(&mut decider, 1_100, 0, &[pod("leak", 2_490)])), Some("leak"));
}

#[test]
fn page_cache_is_never_a_reason() {
    let mut decider = Decider::new(&config());
    for i in 0..2_000_u64 {
        // The cache fills the limit, memory pressure rises from reclaim, the rest stands still.
        let mut s = sample(1_000 + 50 * i, 300, (i * 64).min(LIMIT - 300), Some(&[pod("scan", 300)]));
        let stall = Micros::millis(i * 10);
        s.kubepods.as_mut().unwrap().pressure = Some(PressureReading::memory_some(stall));
        let decision = decider.step(s.at, &s, Some(&candidates(&[pod("scan", 300)])));
        assert_eq!(decision, Decision::Nothing);
        assert!(!decider.standing().memory_pressure);
    }
}

#[test]
fn one_crossing_without_a_second_sign_is_not_enough() {
    // Slab and page tables, not counted as anonymous, cross the threshold: no growth, no pressure, not yet for long.
    let at = |ms| {
        let mut s = sample(ms, 100, 0, Some(&[pod("a", 100)]));
        s.kubepods.as_mut().unwrap().memory.as_mut().unwrap().usage = Bytes::mib(2_500);
        s
    };
    let mut decider = Decider::new(&config());
    let all = candidates(&[pod("a", 100)]);
    for ms in [1_000, 1_020, 1_040, 1_100] {
        assert_eq!(decider.step(Micros::millis(ms), &at(ms), Some(&all)), Decision::Nothing, "{ms}");
        assert!(decider.standing().memory_pressure);
    }
    assert_eq!(victim(&decider.step(Micros::millis(1_200), &at(1_200), Some(&all))), Some("a"));
}

#[test]
fn one_torn_reading_under_pressure_is_not_enough() {
    // A file is deleted between the reading of usage and of memory.stat: for one sample its cache looks unreclaimable.
    let mut decider = Decider::new(&config());
    let all = candidates(&[pod("a", 300)]);
    for i in 0..200_u64 {
        let mut s = sample(1_000 + 20 * i, 300, if i % 20 == 10 { 0 } else { 2_200 }, Some(&[pod("a", 300)]));
        let kubepods = s.kubepods.as_mut().unwrap();
        kubepods.memory.as_mut().unwrap().usage = Bytes::mib(2_500);
        let memory_some = Micros::millis(10 * i);
        kubepods.pressure = Some(PressureReading::memory_some(memory_some));
        assert_eq!(decider.step(s.at, &s, Some(&all)), Decision::Nothing, "{i}");
    }
}

/// Runs leaks until one is evicted or the limit is hit: MiB/s of each, how long a look and a kill take. Says how much was left.
fn race(rates: &[u64], start: u64, look_ms: u64, kill_ms: u64) -> Option<u64> {
    race_after(0, rates, start, look_ms, kill_ms)
}

/// The same of growth that begins so long after a look.
fn race_after(rest_ms: u64, rates: &[u64], start: u64, look_ms: u64, kill_ms: u64) -> Option<u64> {
    let mut decider = Decider::new(&config());
    let mut full = false;
    let (mut next, mut ms) = (1_000, 1_000);
    let mut killed: Option<(usize, u64)> = None;
    let mut least = LIMIT;
    let held = |i: usize, ms: u64| start + rates[i] * (ms - 1_000).saturating_sub(rest_ms) / 1_000;
    let mut done_until = None;
    loop {
        // A victim grows on until its kill has had its effect, and then is gone.
        let pods: Vec<Pod> = (0..rates.len())
            .filter(|i| killed.is_none_or(|(k, at)| k != *i || ms < at + kill_ms))
            .map(|i| Pod { terminating: killed.is_some_and(|(k, _)| k == i), ..pod(&format!("p{i}"), held(i, ms)) })
            .collect();
        let total: u64 = pods.iter().map(|p| p.anon).sum();
        if total >= LIMIT {
            return None;
        }
        least = least.min(LIMIT - total);
        if pods.len() < rates.len() {
            return Some(least);
        }
        if ms >= next {
            let all = full.then(|| candidates(&pods));
            let s = sample(ms, total, 50, full.then_some(&pods[..]));
            if let Decision::Evict(e) = decider.step(Micros::millis(ms + look_ms), &s, all.as_deref()) {
                let index: usize = e.victim.as_str()[1..].parse().unwrap();
                assert_eq!((index, killed), (0, None), "the aggressor, and nobody else");
                killed = Some((index, ms + look_ms));
                done_until = Some(ms + kill_ms + 10_000);
            }
            let pace = decider.standing().pace;
            next = ms + look_ms + pace.interval.get() / 1_000;
            full = pace.all_pods;
        }
        ms += 1;
        assert!(done_until.is_none_or(|until| ms < until) && ms < 3_000_000);
    }
}

#[test]
fn leaks_lose_the_race() {
    for (rate, look_ms, kill_ms) in
        [(5, 5, 300), (25, 5, 300), (100, 5, 300), (100, 20, 700), (400, 5, 200), (400, 20, 200), (1_024, 5, 200)]
    {
        for start in [10, 300, 1_000, 2_000] {
            assert!(
                race(&[rate], start, look_ms, kill_ms).is_some(),
                "{rate} MiB/s from {start} MiB, kill {kill_ms} ms"
            );
        }
        assert!(race(&[rate, 1, 1], 300, look_ms, kill_ms).is_some(), "{rate} MiB/s among others");
    }
}

/// A core fills 2,400 MiB each second: from 2,000 MiB it takes 233 ms until the wall, and looks are 68 ms apart when it begins.
#[test]
fn whenever_a_burst_begins_there_is_time_for_three_looks_and_a_kill() {
    for rest_ms in 0..200 {
        let left = race_after(rest_ms, &[2_400], 2_000, 3, 60);
        assert!(left >= Some(100), "it begins {rest_ms} ms after the first look: {left:?} MiB are left");
    }
}

#[test]
fn stale_and_missing_readings_cause_no_kill() {
    let pods = [pod("leak", 2_550)];
    let all = candidates(&pods);
    let s = |ms| sample(ms, 2_550, 0, Some(&pods));
    let mut decider = Decider::new(&config());
    assert_eq!(decider.step(Micros::millis(4_001), &s(1_000), Some(&all)), Decision::Nothing, "three intervals old");
    assert_eq!(decider.step(Micros::millis(1_000), &s(1_000), Some(&all)), Decision::Nothing, "the same again");
    let mut blind = s(1_030);
    blind.kubepods = None;
    assert_eq!(decider.step(Micros::millis(1_030), &blind, Some(&all)), Decision::Nothing);
    let mut without = s(1_040);
    without.kubepods.as_mut().unwrap().memory = None;
    assert_eq!(decider.step(Micros::millis(1_040), &without, Some(&all)), Decision::Nothing);
    let mut unlimited = s(1_050);
    unlimited.kubepods.as_mut().unwrap().memory.as_mut().unwrap().limit = None;
    assert_eq!(decider.step(Micros::millis(1_050), &unlimited, Some(&all)), Decision::Nothing);
    assert_eq!(decider.step(Micros::millis(1_060), &s(1_060), Some(&[])), Decision::Nothing, "nobody could be read");
    assert_eq!(victim(&decider.step(Micros::millis(1_080), &s(1_080), Some(&all))), Some("leak"));
}

#[test]
fn without_a_threshold_nothing_is_done() {
    let mut decider = Decider::new(&NodeConfig { eviction_hard: Vec::new(), ..config() });
    for i in 0..20 {
        assert_eq!(look(&mut decider, 1_000 + 20 * i, 0, &[pod("leak", 2_300 + 10 * i)]), Decision::Nothing);
    }
}

#[test]
fn one_victim_at_a_time_and_measured_again() {
    let mut decider = Decider::new(&config());
    let mut pods = vec![pod("a", 1_300), pod("b", 1_200)];
    assert_eq!(victim(&look(&mut decider, 1_000, 0, &pods)), Some("a"));
    assert_eq!(decider.awaited().map(PodUid::as_str), Some("a"));
    pods[0].terminating = true;
    // It goes slowly; nobody else does.
    for (ms, anon) in [(1_020, 1_300), (1_100, 1_000), (1_200, 500)] {
        pods[0].anon = anon;
        assert_eq!(look(&mut decider, ms, 0, &pods), Decision::Nothing);
        assert_eq!((decider.standing().waiting, decider.standing().pace.interval), (true, MIN_INTERVAL));
    }
    pods[0].anon = 200;
    assert_eq!(look(&mut decider, 1_220, 0, &pods), Decision::Nothing);
    assert_eq!(decider.awaited(), None);
    pods.remove(0);
    assert_eq!(look(&mut decider, 1_240, 0, &pods), Decision::Nothing, "enough is free");
}

#[test]
fn a_victim_that_does_not_go() {
    // Nothing grows: wait two seconds.
    let mut decider = Decider::new(&config());
    let mut pods = vec![pod("a", 1_300), pod("b", 1_200)];
    assert_eq!(victim(&look(&mut decider, 1_000, 0, &pods)), Some("a"));
    pods[0].terminating = true;
    for i in 1..100 {
        assert_eq!(look(&mut decider, 1_000 + 20 * i, 0, &pods), Decision::Nothing);
    }
    assert_eq!(victim(&look(&mut decider, 3_000, 0, &pods)), Some("b"));
    // The other leaks on, with less than the reaction time left: take it after 100 ms.
    let mut decider = Decider::new(&config());
    let mut pods = vec![pod("a", 1_300), pod("b", 1_162)];
    assert_eq!(victim(&look(&mut decider, 1_000, 0, &pods)), Some("a"));
    pods[0].terminating = true;
    for i in 1..5 {
        pods[1].anon += 5;
        assert_eq!(look(&mut decider, 1_000 + 20 * i, 0, &pods), Decision::Nothing);
    }
    pods[1].anon += 5;
    assert_eq!(victim(&look(&mut decider, 1_100, 0, &pods)), Some("b"));
}

#[test]
fn eviction_stops_when_the_minimum_reclaim_is_met() {
    let mut decider = Decider::new(&NodeConfig { minimum_reclaim: Bytes::mib(500), ..config() });
    let mut pods: Vec<Pod> = (0..9).map(|i| pod(&format!("p{i}"), 280)).collect();
    let (mut ms, mut victims) = (1_000, 0);
    while ms < 20_000 {
        if let Decision::Evict(eviction) = look(&mut decider, ms, 0, &pods) {
            victims += 1;
            pods.retain(|p| p.name != eviction.victim.as_str());
        }
        ms += 50;
    }
    // 2560 - 2520 = 40 MiB are left at first and 600 are wanted: two pods of 280 are exactly enough.
    assert_eq!((victims, pods.len()), (2, 7));
    assert!(decider.standing().allocatable_available >= Some(Bytes::mib(600)));
}

#[test]
fn the_condition_holds_for_its_time() {
    let mut decider = Decider::new(&config());
    look(&mut decider, 1_000, 0, &[pod("a", 2_500)]);
    assert!(decider.standing().memory_pressure);
    let mut ms = 2_000;
    while ms < 301_000 {
        look(&mut decider, ms, 0, &[pod("b", 100)]);
        assert!(decider.standing().memory_pressure, "{ms}");
        ms += 1_000;
    }
    look(&mut decider, 302_000, 0, &[pod("b", 100)]);
    assert!(!decider.standing().memory_pressure);
}

fn any_pod(index: usize) -> impl Strategy<Value = Pod> {
    (0_u64..900, 0_u64..900, -2_i32..3, 0_u8..6, 0_u8..6, proptest::option::of(-300_i64..300)).prop_map(
        move |(anon, request, priority, critical, terminating, growth)| Pod {
            name: format!("p{index}"),
            anon,
            request,
            priority,
            critical: critical == 0,
            terminating: terminating == 0,
            growth: growth.map(|g| g << 20),
        },
    )
}

fn any_pods() -> impl Strategy<Value = Vec<Pod>> {
    (1_usize..8).prop_flat_map(|n| (0..n).map(any_pod).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn critical_and_terminating_pods_are_never_victims_and_no_victim_while_a_worse_ranked_one_exists(
        looks in prop::collection::vec((any_pods(), 1_u64..700), 1..60),
    ) {
        let mut decider = Decider::new(&config());
        let mut ms = 1_000;
        for (pods, wait) in looks {
            ms += wait;
            let awaited = decider.awaited().cloned();
            if let Decision::Evict(eviction) = look(&mut decider, ms, 0, &pods) {
                let v = pods.iter().find(|p| p.name == eviction.victim.as_str()).unwrap();
                prop_assert!(!v.critical && !v.terminating);
                for other in pods.iter().filter(|p| !p.critical && !p.terminating && p.anon > 0) {
                    if Some(other.name.as_str()) == awaited.as_ref().map(PodUid::as_str) {
                        continue;
                    }
                    let over = |p: &Pod| p.anon > p.request;
                    prop_assert!(over(v) || !over(other), "{v:?} before {other:?}");
                    prop_assert!(over(v) != over(other) || v.priority <= other.priority, "{v:?} before {other:?}");
                }
                // Every kill has evidence: two signs, and the numbers.
                for name in ["first_sign", "second_sign", "limit", "unreclaimable", "available", "threshold", "sample_age"] {
                    prop_assert!(eviction.evidence.iter().any(|(n, v)| n == name && !v.is_empty()), "{name}");
                }
                prop_assert_eq!(&eviction.ranking[0].uid, &eviction.victim);
                // The counter is the truth: the threshold is crossed, or will be within the reaction time.
                prop_assert!(eviction.available < eviction.threshold || eviction.forecast.is_some_and(|f| f.time_to_oom <= REACTION));
            }
        }
    }

    #[test]
    fn the_same_trace_gives_the_same_decisions_whatever_the_order_of_pods(
        looks in prop::collection::vec((any_pods(), 1_u64..300), 1..30),
    ) {
        let (mut one, mut other) = (Decider::new(&config()), Decider::new(&config()));
        let mut ms = 1_000;
        for (mut pods, wait) in looks {
            ms += wait;
            let first = look(&mut one, ms, 0, &pods);
            pods.reverse();
            prop_assert_eq!(first, look(&mut other, ms, 0, &pods));
            prop_assert_eq!(one.standing(), other.standing());
        }
    }

    #[test]
    fn stale_samples_never_kill(anon in 0_u64..2_560, age in 3_001_u64..100_000, n in 1_u64..20) {
        let mut decider = Decider::new(&config());
        for i in 0..n {
            let s = sample(1_000 + i, anon, 0, Some(&[]));
            let all = candidates(&[pod("a", anon)]);
            prop_assert_eq!(decider.step(Micros::millis(1_000 + i + age), &s, Some(&all)), Decision::Nothing);
        }
    }

    #[test]
    fn at_most_one_rise_of_memory_pressure_per_hold_window(
        looks in prop::collection::vec((any::<bool>(), 100_u64..100_000), 1..80),
    ) {
        let mut decider = Decider::new(&config());
        let (mut ms, mut was, mut rises, mut falls) = (1_000, false, Vec::new(), Vec::new());
        for (full, wait) in looks {
            ms += wait;
            look(&mut decider, ms, 0, &[pod("a", if full { 2_500 } else { 100 })]);
            let is = decider.standing().memory_pressure;
            if is != was {
                if is { rises.push(ms) } else { falls.push(ms) }
            }
            was = is;
        }
        prop_assert!(rises.windows(2).all(|w| w[1] - w[0] >= 300_000), "{rises:?}");
        prop_assert!(falls.windows(2).all(|w| w[1] - w[0] >= 300_000), "{falls:?}");
    }

    #[test]
    fn between_two_victims_the_first_is_gone_or_two_seconds_pass_or_the_end_is_near(
        looks in prop::collection::vec((any_pods(), 1_u64..700), 2..60),
    ) {
        let mut decider = Decider::new(&config());
        let mut ms = 1_000;
        let mut last: Option<(String, u64, u64)> = None;
        for (pods, wait) in looks {
            ms += wait;
            if let Some((name, _, _)) = &last && decider.awaited().is_none_or(|uid| uid.as_str() != name) {
                last = None;
            }
            if let Decision::Evict(eviction) = look(&mut decider, ms, 0, &pods) {
                if let Some((name, at, held)) = &last {
                    let still = pods.iter().find(|p| p.name == *name).map_or(0, |p| p.anon);
                    let near = still * 10 >= held * 9 && ms - at >= 100;
                    prop_assert!(ms - at >= 2_000 || near, "{name} {still} of {held}");
                }
                let held = pods.iter().find(|p| p.name == eviction.victim.as_str()).map_or(0, |p| p.anon);
                last = Some((eviction.victim.to_string(), ms, held));
            }
        }
    }
}

/// A soft threshold of 500 MiB with a grace period of 60 s.
fn soft(signal: Signal, max_pod_grace: u64) -> NodeConfig {
    let soft = Soft { threshold: Threshold::Quantity(Bytes::mib(500)), grace: Micros::secs(60) };
    NodeConfig { eviction_soft: [(signal, soft)].into(), max_pod_grace: Micros::secs(max_pod_grace), ..config() }
}

/// Looks each second at the pods, from `from` up to before `to` seconds; the first eviction and when.
fn seconds(decider: &mut Decider, from: u64, to: u64, pods: &[Pod]) -> Option<(u64, Box<Eviction>)> {
    (from..to).find_map(|s| match look(decider, s * 1_000, 0, pods) {
        Decision::Evict(eviction) => Some((s, eviction)),
        _ => None,
    })
}

#[test]
fn a_soft_threshold_acts_after_its_grace_period_and_gives_time() {
    for (cap, given) in [(0, 1), (10, 10), (300, 30)] {
        let mut decider = Decider::new(&soft(Signal::AllocatableMemory, cap));
        let pods = [pod("a", 1_300), pod("b", 900)];
        look(&mut decider, 10_000, 0, &pods);
        assert!(decider.standing().memory_pressure, "as upstream before the grace period has passed");
        let (at, eviction) = seconds(&mut decider, 11, 200, &pods).expect("evicted");
        assert_eq!((at, eviction.victim.as_str(), eviction.grace), (70, "a", Micros::secs(given)));
        assert_eq!((eviction.threshold, eviction.hastened), (Bytes::mib(500), false));
        assert!(eviction.message.contains("Threshold quantity: 500Mi, available: 360Mi. "), "{}", eviction.message);
        let told = |name: &str| eviction.evidence.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((told("threshold_kind"), told("met_for")), (Some("soft"), Some("60s")));
        assert_eq!(told("second_sign"), Some("met for 60s without a break, its grace period is 60s"));
    }
}

#[test]
fn a_soft_threshold_is_for_the_signal_that_it_names() {
    // Upstream copies only hard ones to allocatableMemory.available.
    let mut decider = Decider::new(&soft(Signal::Memory, 0));
    assert_eq!(seconds(&mut decider, 10, 300, &[pod("a", 2_200)]), None);
    assert!(!decider.standing().memory_pressure);
}

#[test]
fn a_soft_threshold_must_be_met_without_a_break() {
    let mut decider = Decider::new(&soft(Signal::AllocatableMemory, 0));
    let low = [pod("a", 2_200)];
    assert_eq!(seconds(&mut decider, 10, 69, &low), None);
    assert_eq!(look(&mut decider, 69_000, 0, &[pod("a", 2_000)]), Decision::Nothing);
    assert_eq!(seconds(&mut decider, 70, 130, &low), None);
    // Nor is it met while nobody can read the wall.
    let mut blind = sample(130_000, 2_200, 0, Some(&low));
    blind.kubepods = None;
    assert_eq!(decider.step(blind.at, &blind, Some(&candidates(&low))), Decision::Nothing);
    assert_eq!(seconds(&mut decider, 131, 300, &low).map(|(at, _)| at), Some(191));
}

#[test]
fn a_soft_victim_is_waited_for_and_then_the_next_goes_at_once() {
    let mut decider = Decider::new(&soft(Signal::AllocatableMemory, 20));
    let mut pods = vec![pod("a", 1_300), pod("b", 500), pod("c", 900)];
    (pods[1].anon, pods[2].anon) = (400, 500);
    assert_eq!(seconds(&mut decider, 10, 100, &pods).map(|(at, e)| (at, e.victim.to_string())), Some((70, "a".into())));
    pods[0].terminating = true;
    assert_eq!(seconds(&mut decider, 71, 92, &pods), None, "within its time and two seconds");
    assert_eq!(decider.awaited().map(PodUid::as_str), Some("a"));
    // Another one has taken what it gave back: no second grace period, as upstream.
    pods.remove(0);
    pods[1].anon = 1_700;
    assert_eq!(look(&mut decider, 91_500, 0, &pods), Decision::Nothing, "measured anew");
    assert_eq!(victim(&look(&mut decider, 91_600, 0, &pods)), Some("c"));
}

#[test]
fn a_hard_threshold_takes_the_time_of_a_soft_victim_away() {
    let mut decider = Decider::new(&soft(Signal::AllocatableMemory, 30));
    let mut pods = vec![pod("a", 1_300), pod("b", 900)];
    assert_eq!(seconds(&mut decider, 10, 71, &pods).map(|(_, e)| e.victim.to_string()).as_deref(), Some("a"));
    (pods[0].terminating, pods[1].anon) = (true, 1_200);
    let Decision::Evict(eviction) = look(&mut decider, 71_000, 0, &pods) else { panic!("the hard one is met") };
    assert_eq!((eviction.victim.as_str(), eviction.hastened, eviction.grace), ("a", true, Micros::ZERO));
    assert_eq!(eviction.threshold, Bytes::mib(100));
    assert_eq!(eviction.ranking[0].name, "a");
    // One at a time: it is waited for as after any kill.
    assert_eq!(look(&mut decider, 71_020, 0, &pods), Decision::Nothing);
    // What it gains is told once, and counts from when it was evicted first, 70 s.
    look(&mut decider, 71_100, 0, &pods[1..]);
    let gained = decider.take_gained();
    let told: Vec<_> = gained.iter().map(|g| (g.name.as_str(), g.freed, g.free_after)).collect();
    assert_eq!(told, [("a", Bytes::mib(1_300), Some(Micros::millis(1_100)))]);
    assert_eq!(decider.take_gained(), []);
}

#[test]
fn a_hard_threshold_goes_first() {
    let mut decider = Decider::new(&soft(Signal::AllocatableMemory, 30));
    assert_eq!(seconds(&mut decider, 10, 70, &[pod("a", 2_200)]), None);
    let (at, eviction) = seconds(&mut decider, 70, 80, &[pod("a", 2_500)]).expect("both are due");
    assert_eq!((at, eviction.threshold, eviction.grace), (70, Bytes::mib(100), Micros::ZERO));
}

proptest! {
    #[test]
    fn nobody_goes_for_a_soft_threshold_before_it_was_met_for_its_grace_period(
        looks in prop::collection::vec((0_u64..12, 1_u64..12_000), 1..200),
    ) {
        let mut decider = Decider::new(&NodeConfig { eviction_hard: Vec::new(), ..soft(Signal::AllocatableMemory, 5) });
        let (mut ms, mut since, mut last) = (1_000, None, 0);
        for (kind, wait) in looks {
            ms += wait;
            let met = kind > 0;
            since = met.then(|| since.filter(|_| ms - last <= 10_000).unwrap_or(ms));
            last = ms;
            if let Decision::Evict(eviction) = look(&mut decider, ms, 0, &[pod("a", if met { 2_200 } else { 1_000 })]) {
                prop_assert!(since.is_some_and(|since| ms - since >= 60_000), "{since:?} {ms} {eviction:?}");
                prop_assert_eq!(eviction.grace, Micros::secs(5));
            }
        }
    }
}

/// A pod of `request` MiB that grows by 2000 MiB/s, looked at each 20 ms, beside another one of `other` MiB without a request.
fn fast_start(request: u64, other: u64, quiet: Option<i64>) -> Option<(String, u64)> {
    let mut decider = Decider::new(&config());
    (0..70).find_map(|step| {
        let start = Pod { request, growth: Some(2_000 << 20), ..pod("start", 40 + step * 40) };
        let small = Pod { growth: quiet, ..pod("small", other) };
        let decision = look(&mut decider, 1_000 + step * 20, 0, &[start, small]);
        victim(&decision).map(|name| (name.to_owned(), 40 + step * 40))
    })
}

#[test]
fn growth_within_a_request_is_no_reason_to_act_early() {
    let wall = LIMIT - 100 - 20;
    let (name, held) = fast_start(0, 20, Some(0)).expect("a leak is evicted");
    assert!(name == "start" && held < wall, "foreseen: {name} at {held}");
    // It asks for what it takes: nobody goes before the threshold, neither it nor the small one that asks for nothing.
    let (_, held) = fast_start(2_300, 20, Some(0)).expect("past its request and the threshold somebody goes");
    assert!(held >= 2_300, "too early: at {held}");
    // What is not known of a pod above its request is not taken for innocence, unless it is far too small to be the cause.
    assert!(fast_start(2_300, 300, None).is_some_and(|(name, held)| name == "small" && held < 2_100));
    let (_, held) = fast_start(2_300, 20, None).expect("past its request and the threshold somebody goes");
    assert!(held >= 2_300, "a small one goes for another's start: at {held}");
}

/// Files of 500 MiB that are deleted: for some looks they are no cache any more, and their memory is not free yet.
#[test]
fn files_that_are_being_deleted_are_no_leak() {
    let pods = [pod("writer", 20), pod("ballast", 2_000)];
    let candidates: Vec<Candidate> = pods.iter().map(candidate).collect();
    let mut decider = Decider::new(&config());
    for n in 0..50 {
        decider.step(Micros::millis(n * 20), &sample(n * 20, 2_020, 520, Some(&pods)), Some(&candidates));
    }
    for (n, gone) in [60, 180, 300, 440, 500, 510, 515].into_iter().enumerate() {
        let at = 1_000 + n as u64 * 20;
        let mut look = sample(at, 2_020, 520 - gone, Some(&pods));
        let kubepods = look.kubepods.as_mut().unwrap();
        kubepods.memory.as_mut().unwrap().usage = Bytes::mib(2_540);
        // Who writes files waits for memory all the time.
        kubepods.pressure = Some(PressureReading::memory_some(Micros::millis(at)));
        let decision = decider.step(Micros::millis(at), &look, Some(&candidates));
        assert!(!matches!(decision, Decision::Evict(_)), "{gone} MiB gone: {decision:?}");
        assert!(
            !decider.standing().memory_pressure && decider.seen().iter().all(|wall| !wall.below),
            "{gone} MiB gone"
        );
    }
}

/// A sample in which the kernel has not added up yet what the pods' containers have of files.
fn late(ms: u64, anon: u64, files: u64, full: bool) -> Sample {
    let pods = [pod("scan", 20), pod("other", anon - 20)];
    let mut late = sample(ms, anon, files, full.then_some(&pods));
    let whole = late.kubepods.as_mut().and_then(|k| k.memory.as_mut()).unwrap();
    (whole.inactive_file, whole.active_file) = (Bytes::ZERO, Bytes::ZERO);
    let container = |memory| ContainerReading {
        name: "c".to_owned(),
        id: "id".to_owned(),
        cgroup: CgroupReading { id: 3, at: Micros::millis(ms), memory: Some(memory), ..CgroupReading::default() },
        detail: None,
    };
    for (reading, files) in late.pods.iter_mut().flatten().zip([files, 0]) {
        let anon = reading.cgroup.memory.unwrap().anon.get() >> 20;
        reading.containers = vec![container(memory(anon, files))];
    }
    late
}

#[test]
fn files_that_the_kernel_has_not_added_up_yet_are_no_leak() {
    let mut decider = Decider::new(&config());
    let scan = [pod("scan", 20), pod("other", 1_760)];
    for n in 1..=60 {
        // The first look is without pods: that one cannot be believed.
        let (full, at) = (n > 1, n * 20);
        let mut look = late(at, 1_780, 780, full);
        look.kubepods.as_mut().unwrap().pressure = Some(PressureReading::memory_some(Micros::millis(at)));
        let decision = decider.step(Micros::millis(at), &look, full.then_some(&candidates(&scan)));
        assert_eq!(decision, if full { Decision::Nothing } else { Decision::LookAtPods }, "after {at} ms");
        assert!(!decider.standing().memory_pressure);
    }
    // The same with a leak beside it: what it holds leaves no room, however late the rest is.
    let goes = (61..=120).find_map(|n| {
        let anon = 1_780 + (n - 60) * 20;
        let pods = [pod("scan", 20), Pod { growth: Some(1_000 << 20), ..pod("other", anon - 20) }];
        let look = late(n * 20, anon, LIMIT - anon, true);
        let decision = decider.step(Micros::millis(n * 20), &look, Some(&candidates(&pods)));
        victim(&decision).map(|name| (name.to_owned(), LIMIT - anon))
    });
    assert!(matches!(&goes, Some((name, left)) if name == "other" && *left >= 60), "{goes:?}");
}

#[test]
fn kubepods_is_held_to_what_is_known_of_its_parts() {
    let files = |sample: &Sample| {
        let memory = sample.kubepods_memory().unwrap();
        (memory.inactive_file + memory.active_file).get() >> 20
    };
    let look = late(20, 1_780, 780, true);
    assert_eq!((files(&look), look.kubepods_memory().unwrap().unreclaimable()), (780, Bytes::mib(1_780)));
    // What was read before this look says nothing of it.
    assert_eq!(files(&Sample { at: Micros::millis(21), ..look.clone() }), 0);
    // Nor do parts that are a little apart.
    let mut near = late(20, 1_780, 10, true);
    assert_eq!(files(&near), 0);
    // Files that are gone, and still counted: they cannot be where something else is.
    near.kubepods.as_mut().unwrap().memory = Some(MemoryReading { usage: Bytes::mib(1_800), ..memory(1_000, 800) });
    assert_eq!(near.kubepods_memory().unwrap().unreclaimable(), Bytes::mib(1_780));
    // Anonymous memory that is not added up yet.
    assert_eq!(near.kubepods_memory().unwrap().anon, Bytes::mib(1_780));
}
