use super::*;
use crate::forecast::Forecast;
use crate::sample::MemoryReading;
use crate::units::{Micros, Ppm};

const MIB: u64 = 1 << 20;

fn memory(unreclaimable: u64, cache: u64, limit: Option<u64>) -> MemoryReading {
    MemoryReading {
        usage: Bytes::mib(unreclaimable + cache),
        anon: Bytes::mib(unreclaimable),
        inactive_file: Bytes::mib(cache),
        limit: limit.map(Bytes::mib),
        ..MemoryReading::default()
    }
}

/// A pod of one container that would be the first to go.
fn pod(uid: &str, unreclaimable: u64) -> Subject {
    Subject {
        uid: uid.into(),
        cgroup: format!("kubepods/pod{uid}"),
        wishes: Wishes::default(),
        live: true,
        place: Some(0),
        exceeds: true,
        memory: memory(unreclaimable, 0, None),
        given: None,
        growth: None,
        stalled: None,
        strangled: 0,
        containers: Vec::new(),
    }
}

fn growing(uid: &str, unreclaimable: u64, mib_per_second: i64) -> Subject {
    Subject { growth: Some(mib_per_second * (1 << 20)), ..pod(uid, unreclaimable) }
}

fn wishes(of: &[(Rung, &str)]) -> Wishes {
    Wishes::read(&of.iter().map(|(rung, v)| (rung.annotation().to_owned(), (*v).to_owned())).collect()).unwrap()
}

fn ends_in(seconds: u64) -> Situation {
    let left = Some(Ppm(300_000));
    let (time_to_oom, slope) = (Some(Micros::secs(seconds)), 120 * MIB);
    Situation { left, time_to_oom, slope, room: Bytes::gib(1), ..Situation::default() }
}

fn calm() -> Situation {
    Situation { left: Some(Ppm(500_000)), room: Bytes::gib(1), ..Situation::default() }
}

fn ladder() -> Ladder {
    Ladder::new(Rungs::default())
}

fn kinds(moves: &[Move]) -> Vec<(Rung, Turn)> {
    moves.iter().map(|m| (m.rung, m.turn)).collect()
}

#[test]
fn a_rung_is_for_whom_the_policy_and_the_pod_agree_and_where_the_kernel_can() {
    let (yes, no, silent) = (wishes(&[(Rung::Raise, "true")]), wishes(&[(Rung::Raise, "false")]), Wishes::default());
    for (allow, wanted) in [
        (Allow::Never, [false, false, false]),
        (Allow::OnRequest, [true, false, false]),
        (Allow::Always, [true, false, true]),
    ] {
        let rungs = Rungs::none().with(Rung::Raise, allow);
        assert_eq!([&yes, &no, &silent].map(|w| rungs.permits(Rung::Raise, w)), wanted, "{allow:?}");
        assert!(!rungs.lacking(Rung::Raise, "no such file").permits(Rung::Raise, &yes));
    }
    let states: Vec<_> =
        Rungs::default().with(Rung::Freeze, Allow::Never).lacking(Rung::Throttle, "v1").states().collect();
    let wanted = [None, Some("v1"), None, Some("switched off"), None].map(|why| why.map(str::to_owned));
    assert_eq!(states, Rung::ALL.into_iter().zip(wanted).collect::<Vec<_>>());
}

#[test]
fn an_annotation_that_says_neither_yes_nor_no_is_an_error_that_names_it() {
    let of = |value: &str| Wishes::read(&[("beelet.dev/raise".to_owned(), value.to_owned())].into());
    let error = of("yes").unwrap_err().to_string();
    assert_eq!(error, "metadata.annotations[beelet.dev/raise]: \"yes\" must be \"true\" or \"false\"");
    assert!(of("true").is_ok() && of("false").is_ok());
}

#[test]
fn page_cache_is_freed_slowly_and_not_where_it_hurts() {
    let hog = || Subject { memory: memory(100, 4_000, None), ..pod("a", 100) };
    let short = Situation { left: Some(Ppm(140_000)), ..calm() };
    let mut it = ladder();
    assert!(it.step(Micros::secs(1), &calm(), &[hog()]).is_empty());
    let modest = Subject { exceeds: false, ..hog() };
    assert!(it.step(Micros::secs(2), &short, &[modest]).is_empty());
    let moves = it.step(Micros::secs(3), &short, &[hog()]);
    assert_eq!(moves[0].acts, [("kubepods/poda".to_owned(), Act::Reclaim(Bytes::mib(32)))]);
    // Not more often than each second.
    assert!(it.step(Micros::millis(3_500), &short, &[hog()]).is_empty());
    assert_eq!(kinds(&it.step(Micros::secs(4), &short, &[hog()])), [(Rung::Reclaim, Turn::Again)]);
    let hurt = Subject { stalled: Some(Ppm(20_000)), ..hog() };
    assert_eq!(kinds(&it.step(Micros::secs(5), &short, &[hurt])), [(Rung::Reclaim, Turn::Leave)]);
    assert!(it.step(Micros::secs(6), &short, &[hog()]).is_empty(), "it rests");
    assert_eq!(kinds(&it.step(Micros::secs(66), &short, &[hog()])), [(Rung::Reclaim, Turn::Enter)]);
    // 90 pages of 4 KiB are more than a hundredth of 32 MiB.
    let mut back = hog();
    back.memory.more.refaults_file = Some(7);
    let mut it = ladder();
    it.step(Micros::secs(1), &short, std::slice::from_ref(&back));
    back.memory.more.refaults_file = Some(97);
    assert_eq!(kinds(&it.step(Micros::secs(2), &short, &[back])), [(Rung::Reclaim, Turn::Leave)]);
}

#[test]
fn only_the_aggressor_is_slowed_down_and_only_for_a_while() {
    let mut it = ladder();
    let others = || [growing("quiet", 500, 0), growing("small", 100, 20)];
    let all = |leak: Subject| [leak].into_iter().chain(others()).collect::<Vec<_>>();
    assert!(it.step(Micros::secs(1), &ends_in(61), &all(growing("leak", 300, 100))).is_empty());
    let moves = it.step(Micros::secs(2), &ends_in(50), &all(growing("leak", 300, 100)));
    // 100 MiB/s for the reaction time of 400 ms.
    assert_eq!(moves[0].acts, [("kubepods/podleak".to_owned(), Act::High(Some(Bytes::mib(340))))]);
    assert_eq!(kinds(&moves), [(Rung::Throttle, Turn::Enter)]);
    assert_eq!(it.rungs_of(&"leak".into()), [Rung::Throttle]);
    for second in 3..32 {
        assert!(it.step(Micros::secs(second), &ends_in(50), &all(growing("leak", 340, 100))).is_empty(), "{second}");
    }
    let moves = it.step(Micros::secs(32), &ends_in(50), &all(growing("leak", 340, 100)));
    assert_eq!((kinds(&moves), &moves[0].acts[0].1), (vec![(Rung::Throttle, Turn::Leave)], &Act::High(None)));
    assert!(it.step(Micros::secs(91), &ends_in(50), &all(growing("leak", 340, 100))).is_empty(), "it rests");
    assert_eq!(it.step(Micros::secs(92), &ends_in(50), &all(growing("leak", 340, 100))).len(), 1);
    // Held up at the bound it does not grow, and it is not the end of it.
    assert!(it.step(Micros::secs(95), &calm(), &all(growing("leak", 378, 0))).is_empty());
    // Growth that has ended, and a pod that stands still, are left alone.
    assert!(it.step(Micros::secs(98), &calm(), &all(growing("leak", 340, 0))).is_empty());
    assert_eq!(
        kinds(&it.step(Micros::secs(100), &calm(), &all(growing("leak", 340, 0)))),
        [(Rung::Throttle, Turn::Leave)]
    );
    let mut it = ladder();
    it.step(Micros::secs(1), &ends_in(50), &all(growing("leak", 300, 100)));
    let strangled = Subject { strangled: 4_000, ..growing("leak", 340, 100) };
    assert_eq!(kinds(&it.step(Micros::secs(2), &ends_in(50), &all(strangled))), [(Rung::Throttle, Turn::Leave)]);
}

#[test]
fn who_grows_a_little_while_the_wall_comes_nearer_by_much_is_left_alone() {
    let mut it = ladder();
    // Somebody outside of the pods leaks; of the pods this one grows most.
    let bystander = growing("a", 300, 10);
    assert!(it.step(Micros::secs(1), &ends_in(10), std::slice::from_ref(&bystander)).is_empty());
    let slow = Situation { slope: 20_000, ..ends_in(10) };
    let crumbs = Subject { growth: Some(20_000), ..bystander };
    assert!(it.step(Micros::secs(2), &slow, &[crumbs]).is_empty());
    let mut theirs = growing("b", 300, 100);
    theirs.memory.more.high = Some(Bytes::mib(500));
    assert!(it.step(Micros::secs(3), &ends_in(10), &[theirs]).is_empty(), "a bound of somebody else's");
}

#[test]
fn what_is_given_is_given_once_and_a_resize_ends_it() {
    let mut it = ladder();
    let room = Situation { room: Bytes::mib(150), ..calm() };
    let other = |uid: &str| Subject { uid: uid.into(), ..bounded(150, 200, forecast(5_000)) };
    assert_eq!(it.step(Micros::secs(1), &room, &[other("a"), other("b")]).len(), 1);
    // Of the 100 MiB 50 are not used yet: they are in the room still, and are not given again.
    let first = Subject { uid: "a".into(), ..bounded(250, 300, None) };
    let less = Situation { room: Bytes::mib(140), ..room };
    assert!(it.step(Micros::secs(2), &less, &[first.clone(), other("b")]).is_empty());
    assert_eq!(it.step(Micros::secs(3), &room, &[first.clone(), other("b")]).len(), 1);
    let mut resized = first;
    (resized.containers[0].given, resized.given) = (Some(Bytes::mib(300)), Some(Bytes::mib(300)));
    let moves = it.step(Micros::secs(4), &room, &[resized]);
    assert_eq!((kinds(&moves), moves[0].acts.len()), (vec![(Rung::Raise, Turn::Leave)], 0));
    // After a restart of the agent the limit is a raised one; what comes back is what was given.
    let mut it = ladder();
    let moves = it.step(Micros::secs(1), &calm(), &[bounded(290, 300, forecast(5_000))]);
    assert_eq!(moves[0].acts[1].1, Act::Max(Bytes::mib(400)));
    let moves = it.step(Micros::secs(60), &calm(), &[bounded(100, 400, None)]);
    assert_eq!(moves[0].acts[0].1, Act::Max(Bytes::mib(200)));
}

#[test]
fn who_may_not_go_is_neither_slowed_down_nor_frozen() {
    let critical = Subject { place: None, ..growing("a", 300, 100) };
    let modest = Subject { exceeds: false, ..growing("a", 300, 100) };
    let mut it = ladder();
    let met = Situation { met: true, ..ends_in(1) };
    for (second, subject) in [(1, &critical), (2, &critical), (3, &modest), (4, &modest)] {
        let subject = Subject { memory: memory(300 + second * 10, 0, None), ..subject.clone() };
        assert!(it.step(Micros::secs(second), &met, &[subject]).is_empty());
    }
}

fn forecast(milliseconds: u64) -> Option<Forecast> {
    Some(Forecast { time_to_oom: Micros::millis(milliseconds), slope: 10 * MIB, scales: 2, samples: 5 })
}

/// A pod that wants its limit raised, whose container `c` has a limit of 200 MiB.
fn bounded(held: u64, limit: u64, forecast: Option<Forecast>) -> Subject {
    let memory = memory(held, 0, Some(limit));
    let cgroup = "kubepods/poda/c".to_owned();
    let given = Some(Bytes::mib(200));
    // Read long after whatever was written.
    let container = Held { name: "c".to_owned(), cgroup, memory, at: Micros::secs(1_000), given, forecast };
    let wishes = wishes(&[(Rung::Raise, "true")]);
    Subject { wishes, memory, given, containers: vec![container], ..pod("a", held) }
}

#[test]
fn a_limit_is_raised_where_there_is_room_and_comes_back_when_it_fits_again() {
    let mut it = ladder();
    assert!(it.step(Micros::secs(1), &calm(), &[bounded(150, 200, forecast(11_000))]).is_empty());
    let unasked = Subject { wishes: Wishes::default(), ..bounded(150, 200, forecast(5_000)) };
    assert!(it.step(Micros::secs(2), &calm(), &[unasked]).is_empty());
    let full = Situation { room: Bytes::mib(99), ..calm() };
    assert!(it.step(Micros::secs(3), &full, &[bounded(150, 200, forecast(5_000))]).is_empty());
    let moves = it.step(Micros::secs(4), &calm(), &[bounded(150, 200, forecast(5_000))]);
    let wanted = [
        ("kubepods/poda".to_owned(), Act::Max(Bytes::mib(300))),
        ("kubepods/poda/c".to_owned(), Act::Max(Bytes::mib(300))),
    ];
    assert_eq!((moves[0].acts.as_slice(), moves[0].container.as_deref()), (&wanted[..], Some("c")));
    // To twice its limit at most.
    assert_eq!(
        kinds(&it.step(Micros::secs(5), &calm(), &[bounded(250, 300, forecast(5_000))])),
        [(Rung::Raise, Turn::Again)]
    );
    assert!(it.step(Micros::secs(6), &calm(), &[bounded(350, 400, forecast(5_000))]).is_empty());
    // What it holds is never cut into, and not at once.
    assert!(it.step(Micros::secs(60), &calm(), &[bounded(190, 400, None)]).is_empty());
    assert_eq!(it.rungs_of(&"a".into()), [Rung::Raise]);
    let moves = it.step(Micros::secs(61), &calm(), &[bounded(150, 400, None)]);
    let wanted = [
        ("kubepods/poda/c".to_owned(), Act::Max(Bytes::mib(200))),
        ("kubepods/poda".to_owned(), Act::Max(Bytes::mib(200))),
    ];
    assert_eq!((kinds(&moves), moves[0].acts.as_slice()), (vec![(Rung::Raise, Turn::Leave)], &wanted[..]));
    assert!(it.rungs_of(&"a".into()).is_empty());
}

#[test]
fn a_raised_limit_that_somebody_else_has_changed_is_theirs() {
    let mut it = ladder();
    it.step(Micros::secs(1), &calm(), &[bounded(150, 200, forecast(5_000))]);
    let old = |mut subject: Subject| {
        subject.containers[0].at = Micros::millis(1_900);
        subject
    };
    assert!(
        it.step(Micros::secs(2), &calm(), &[old(bounded(150, 200, None))]).is_empty(),
        "read before it was written"
    );
    let near = old(bounded(190, 200, forecast(100)));
    assert!(it.step(Micros::millis(2_100), &calm(), &[near]).is_empty(), "one at a time");
    let moves = it.step(Micros::secs(3), &calm(), &[bounded(150, 500, None)]);
    assert_eq!((kinds(&moves), moves[0].acts.len()), (vec![(Rung::Raise, Turn::Leave)], 0));
    // It could not be written; the pod's could, and goes back. Then it rests.
    let mut it = ladder();
    it.step(Micros::secs(1), &calm(), &[bounded(150, 200, forecast(5_000))]);
    let half = || Subject { memory: memory(150, 0, Some(300)), ..bounded(150, 200, forecast(5_000)) };
    let moves = it.step(Micros::secs(3), &calm(), &[half()]);
    assert_eq!(moves[0].acts, [("kubepods/poda".to_owned(), Act::Max(Bytes::mib(200)))]);
    assert!(it.step(Micros::secs(62), &calm(), &[bounded(150, 200, forecast(5_000))]).is_empty());
    assert_eq!(it.step(Micros::secs(63), &calm(), &[bounded(150, 200, forecast(5_000))]).len(), 1);
}

#[test]
fn the_pods_own_limit_goes_back_when_the_raised_container_has_ended() {
    let mut it = ladder();
    it.step(Micros::secs(1), &calm(), &[bounded(150, 200, forecast(5_000))]);
    let ended = || Subject { containers: Vec::new(), ..bounded(10, 300, None) };
    let moves = it.step(Micros::secs(2), &calm(), &[ended()]);
    assert_eq!(moves[0].acts, [("kubepods/poda".to_owned(), Act::Max(Bytes::mib(200)))]);
    assert!(it.step(Micros::secs(3), &calm(), &[ended()]).is_empty() && it.rungs_of(&"a".into()).is_empty());
}

#[test]
fn a_container_that_may_be_raised_is_looked_at_as_often_as_its_room_needs() {
    let mut it = ladder();
    it.step(Micros::secs(1), &calm(), &[bounded(50, 200, None)]);
    assert_eq!(it.interval(), Micros::secs(1));
    // 50 MiB in a second, and 100 MiB left: two seconds, a quarter of it.
    it.step(Micros::secs(2), &calm(), &[bounded(100, 200, None)]);
    assert_eq!(it.interval(), Micros::millis(500));
    let unasked = Subject { wishes: Wishes::default(), ..bounded(150, 200, None) };
    it.step(Micros::secs(3), &calm(), &[unasked]);
    assert_eq!(it.interval(), Micros::secs(1));
}

#[test]
fn the_first_victim_stands_still_until_it_is_decided_and_not_for_long() {
    let met = Situation { met: true, ..calm() };
    let mut it = ladder();
    assert!(it.step(Micros::millis(20), &met, &[pod("a", 300)]).is_empty(), "nobody knows yet whether it grows");
    assert!(it.step(Micros::millis(40), &met, &[pod("a", 300)]).is_empty());
    let moves = it.step(Micros::millis(60), &met, &[pod("a", 320)]);
    assert_eq!(moves[0].acts, [("kubepods/poda".to_owned(), Act::Freeze(true))]);
    assert!(it.step(Micros::millis(80), &met, &[pod("a", 320)]).is_empty());
    let decided = Situation { decided: true, ..met };
    let moves = it.step(Micros::millis(100), &decided, &[pod("a", 320)]);
    assert_eq!(moves[0].acts, [("kubepods/poda".to_owned(), Act::Freeze(false))]);
    it.step(Micros::millis(120), &met, &[pod("a", 340)]);
    let moves = it.step(Micros::millis(2_120), &met, &[pod("a", 340)]);
    assert_eq!(kinds(&moves), [(Rung::Freeze, Turn::Leave)]);
    it.step(Micros::secs(3), &met, &[pod("a", 340)]);
    assert!(it.step(Micros::secs(4), &met, &[pod("a", 360)]).is_empty(), "it rests");
    // Where it is decided already there is nothing to stand still for.
    let mut it = ladder();
    it.step(Micros::millis(20), &decided, &[pod("a", 300)]);
    assert!(it.step(Micros::millis(40), &decided, &[pod("a", 320)]).is_empty());
    // To and fro about the threshold: once.
    let mut it = ladder();
    let mut frozen = 0;
    for n in 0..1_000 {
        let situation = if n % 2 == 0 { met } else { calm() };
        let moves = it.step(Micros::millis(20 * n), &situation, &[pod("a", 300 + n)]);
        frozen += moves.iter().filter(|m| m.turn == Turn::Enter).count();
    }
    assert_eq!(frozen, 1);
}

#[test]
fn a_pod_that_goes_is_let_go_of() {
    let met = Situation { met: true, ..ends_in(10) };
    let mut it = ladder();
    it.step(Micros::secs(1), &met, &[growing("a", 300, 100)]);
    let moves = it.step(Micros::secs(2), &met, &[growing("a", 350, 100)]);
    assert_eq!(kinds(&moves), [(Rung::Freeze, Turn::Enter)]);
    assert_eq!(it.rungs_of(&"a".into()), [Rung::Throttle, Rung::Freeze]);
    let going = Subject { live: false, ..growing("a", 350, 100) };
    let acts: Vec<Act> =
        it.step(Micros::secs(3), &met, &[going]).into_iter().flat_map(|m| m.acts).map(|a| a.1).collect();
    assert_eq!(acts, [Act::High(None), Act::Freeze(false)]);
    it.step(Micros::secs(4), &met, &[]);
    assert_eq!(it.size(), 1, "it could not be read, that is all");
    it.forget(&"a".into());
    assert_eq!(it.size(), 0);
}

#[test]
fn whatever_happens_no_rung_is_held_for_longer_than_its_limit() {
    // A small generator of our own: the same looks each time.
    let mut seed = 7_u64;
    let mut random = |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % n
    };
    let mut it = ladder();
    let mut since: BTreeMap<Rung, Micros> = BTreeMap::new();
    let mut entered = BTreeMap::new();
    let mut now = Micros::ZERO;
    for _ in 0..20_000 {
        now += Micros::millis(20 + random(980));
        let situation = Situation {
            left: Some(Ppm(random(300_000))),
            slope: random(150) * MIB,
            time_to_oom: (random(3) > 0).then(|| Micros::secs(random(90))),
            room: Bytes::mib(random(400)),
            met: random(3) == 0,
            decided: random(40) == 0,
        };
        let cache = random(100);
        let subject = Subject { memory: memory(200 + random(200), cache, None), ..growing("a", 0, 50) };
        for step in it.step(now, &situation, &[subject]) {
            match step.turn {
                Turn::Enter => {
                    *entered.entry(step.rung).or_insert(0) += 1;
                    assert_eq!(since.insert(step.rung, now), None, "twice on {}", step.rung);
                }
                Turn::Again => assert!(since.contains_key(&step.rung)),
                Turn::Leave => assert!(since.remove(&step.rung).is_some(), "left {} without being on it", step.rung),
            }
        }
        for (rung, at) in &since {
            let limit = match rung {
                Rung::Reclaim => RECLAIM_LIMIT,
                Rung::Throttle => THROTTLE_LIMIT,
                Rung::Freeze => FREEZE_LIMIT,
                Rung::Raise | Rung::Leave => unreachable!("nobody asked for it"),
            };
            // Until the next look.
            assert!(now - *at <= limit + Micros::secs(1), "{rung} since {at}, now {now}");
        }
    }
    assert!([Rung::Reclaim, Rung::Throttle, Rung::Freeze].iter().all(|rung| entered[rung] > 10), "{entered:?}");
}
