use proptest::prelude::*;

use super::*;

/// What happens to the limit of `kubepods`, each at its millisecond.
#[derive(Clone, Copy, Debug)]
enum Do {
    /// A sample with so many seconds left.
    Left(u64),
    /// A sample without growth.
    Still,
    /// A sample of a wall that is hit, with so many seconds left.
    Hit(u64),
    /// A sample in which it is missing.
    Missing,
    /// An OOM kill.
    Kill,
}

use Do::{Hit, Kill, Left, Missing, Still};

/// A name, what happens at which millisecond, and the counts in the end.
type Row = (&'static str, &'static [(u64, Do)], [u64; 3]);

fn apply(scores: &mut Scores, wall: &Wall, ms: u64, what: Do) {
    let at = Micros::millis(ms);
    let look = |left: Option<u64>, hit| Look { wall: wall.clone(), time_to_oom: left.map(Micros::secs), hit };
    match what {
        Left(left) => scores.observe(at, [look(Some(left), false)], true),
        Still => scores.observe(at, [look(None, false)], true),
        Hit(left) => scores.observe(at, [look(Some(left), true)], true),
        Missing => scores.observe(at, [], true),
        Kill => scores.oom_kill(wall.clone(), at),
    }
}

/// True and false positives, false negatives.
fn counts(scores: &Scores, scope: Scope) -> [u64; 3] {
    let score = scores.scores[scope as usize];
    [score.true_positive, score.false_positive, score.false_negative]
}

#[test]
fn what_is_true_and_what_is_false() {
    let table: &[Row] = &[
        ("nothing", &[(0, Still), (90_000, Left(31))], [0, 0, 0]),
        ("an alarm is yet to be scored", &[(1, Left(29)), (45_001, Left(1))], [0, 0, 0]),
        ("a kill in time", &[(1, Left(29)), (20_000, Kill)], [1, 0, 0]),
        ("a kill within the tolerance", &[(1, Left(29)), (45_001, Kill)], [1, 0, 0]),
        ("a kill too late is one that nobody foresaw", &[(1, Left(29)), (45_002, Kill)], [0, 1, 1]),
        ("the threshold", &[(1, Left(29)), (9_000, Left(9)), (10_000, Hit(8))], [1, 0, 0]),
        ("no kill", &[(1, Left(29)), (2_000, Still), (45_002, Still)], [0, 1, 0]),
        ("withdrawn, and right all the same", &[(1, Left(29)), (2_000, Still), (9_000, Kill)], [1, 0, 0]),
        ("raised again it is the same alarm", &[(1, Left(9)), (2, Still), (3, Left(9)), (9_000, Kill)], [1, 0, 0]),
        ("it stands too long and is false once", &[(1, Left(9)), (46_000, Left(9)), (190_000, Left(9))], [0, 1, 0]),
        ("after that it must be raised anew", &[(1, Left(9)), (46_000, Left(9)), (50_000, Kill)], [0, 1, 1]),
        ("which it may", &[(1, Left(9)), (46_000, Still), (47_000, Left(9)), (50_000, Kill)], [1, 1, 0]),
        ("a kill without an alarm", &[(1, Left(31)), (2_000, Kill)], [0, 0, 1]),
        ("kills of one incident", &[(1, Kill), (2_900, Kill), (5_800, Kill)], [0, 0, 1]),
        ("kills of two", &[(1, Kill), (3_001, Kill)], [0, 0, 2]),
        ("a threshold without an alarm", &[(1, Left(90)), (2_000, Hit(80)), (90_000, Still)], [0, 0, 0]),
        ("a wall that is hit raises none", &[(1, Hit(9)), (2_000, Left(9)), (90_000, Still)], [0, 0, 0]),
        ("the kill after the threshold is the same", &[(1, Left(9)), (3_000, Hit(5)), (5_900, Kill)], [1, 0, 0]),
        ("a wall that is gone", &[(1, Left(9)), (2_000, Missing), (45_002, Missing)], [0, 1, 0]),
        ("a sample that is not newer", &[(9, Still), (9, Left(9)), (8, Left(9)), (90_000, Still)], [0, 0, 0]),
    ];
    for wall in [Wall::Node, Wall::Kubepods, Wall::Container("u".into(), "c".to_owned())] {
        for (name, happens, expected) in table {
            let mut scores = Scores::default();
            happens.iter().for_each(|(ms, what)| apply(&mut scores, &wall, *ms, *what));
            assert_eq!(counts(&scores, wall.scope()), *expected, "{name}: {scores:?}");
        }
    }
}

#[test]
fn leads_are_counted_by_their_length() {
    let mut scores = Scores::default();
    for (start, lead) in [(1_000, 100), (100_000, 101), (200_000, 45_000), (300_000, 12_000)] {
        apply(&mut scores, &Wall::Node, start, Left(9));
        apply(&mut scores, &Wall::Node, start + lead, Kill);
        apply(&mut scores, &Wall::Node, start + lead + 20_000, Still);
    }
    let score = scores.scores[Scope::Node as usize];
    assert_eq!(score.leads, [1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0]);
    assert_eq!(score.lead_sum, Micros::millis(57_201));
    assert_eq!(scores.size(), 0);
}

#[test]
fn a_look_without_containers_says_nothing_of_them() {
    let wall = Wall::Container("u".into(), "c".to_owned());
    let mut scores = Scores::default();
    apply(&mut scores, &wall, 1, Left(9));
    scores.observe(Micros::secs(46), [], false);
    assert_eq!((counts(&scores, Scope::Container), scores.size()), ([0, 1, 0], 1), "it stands still");
    apply(&mut scores, &wall, 47_000, Left(9));
    scores.observe(Micros::secs(100), [], true);
    assert_eq!((counts(&scores, Scope::Container), scores.size()), ([0, 1, 0], 0));
}

fn any() -> impl Strategy<Value = Do> {
    prop_oneof![(0_u64..60).prop_map(Left), Just(Still), (0_u64..60).prop_map(Hit), Just(Missing), Just(Kill)]
}

proptest! {
    /// By a list of all alarms that were raised and of all hits, kept to the end.
    #[test]
    fn each_alarm_is_scored_exactly_once(
        happens in prop::collection::vec((0_usize..4, any(), 1_u64..20_000), 1..300),
    ) {
        let walls: Vec<Wall> = (0..4)
            .map(|i| match i {
                0 => Wall::Node,
                1 => Wall::Kubepods,
                i => Wall::Container("u".into(), format!("c{i}")),
            })
            .collect();
        let mut scores = Scores::default();
        let mut stood = [false; 4];
        // Of each wall: the beginnings of its alarms and when each was hit, and the kills.
        let mut alarms: Vec<Vec<(u64, Option<u64>)>> = vec![Vec::new(); 4];
        let mut kills = [0_u64; 4];
        let mut ms = 0;
        for (i, what, wait) in happens {
            ms += wait;
            if let Kill = what {
                scores.oom_kill(walls[i].clone(), Micros::millis(ms));
                kills[i] += 1;
            } else {
                // A sample has all walls; the others are missing from it.
                apply(&mut scores, &walls[i], ms, what);
            }
            let is_open = |alarm: &&mut (u64, Option<u64>)| alarm.1.is_none() && ms - alarm.0 <= 45_000;
            let open = alarms[i].last_mut().filter(is_open);
            if let (Kill | Hit(_), Some(alarm)) = (what, open) {
                alarm.1 = Some(ms);
            } else if let (Left(0..=29), None, false) = (what, alarms[i].last_mut().filter(is_open), stood[i]) {
                alarms[i].push((ms, None));
            }
            match what {
                Kill => {}
                _ => stood = std::array::from_fn(|j| j == i && matches!(what, Left(0..=29) | Hit(0..=29))),
            }
            prop_assert!(scores.size() <= walls.len());
        }
        scores.observe(Micros::millis(ms + 45_001), [], true);
        prop_assert_eq!(scores.size(), 0);
        for scope in Scope::ALL {
            let of = |i: &usize| walls[*i].scope() == scope;
            let all: Vec<_> = (0..4).filter(of).flat_map(|i| alarms[i].clone()).collect();
            let hits = all.iter().filter(|a| a.1.is_some()).count() as u64;
            let [right, wrong, missed] = counts(&scores, scope);
            prop_assert_eq!((right, right + wrong), (hits, all.len() as u64), "{:?}", all);
            prop_assert!(missed <= (0..4).filter(of).map(|i| kills[i]).sum::<u64>());
            let score = scores.scores[scope as usize];
            prop_assert_eq!(score.leads.iter().sum::<u64>(), right);
            let leads: u64 = all.iter().filter_map(|(since, hit)| Some((*hit)? - since)).sum();
            prop_assert_eq!(score.lead_sum, Micros::millis(leads));
        }
    }
}
