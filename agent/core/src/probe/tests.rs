use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::spec::Handler;

const SECOND: Micros = Micros::secs(1);
/// The agent is old: no delay of first probes.
const OLD: Micros = Micros::secs(1_000);

fn at(mono: Micros) -> Now {
    Now { mono, wall: Micros::secs(1_700_000_000) + mono }
}

fn probe(period: u64) -> Probe {
    Probe {
        handler: Handler::Tcp { host: String::new(), port: 80 },
        initial_delay: Micros::ZERO,
        timeout: SECOND,
        period: Micros::secs(period),
        success_threshold: 1,
        failure_threshold: 3,
        grace: None,
    }
}

fn container(startup: Option<Probe>, readiness: Option<Probe>, liveness: Option<Probe>) -> ContainerSpec {
    let mut spec = ContainerSpec::unknown("main");
    spec.probes.startup = startup.map(Box::new);
    spec.probes.readiness = readiness.map(Box::new);
    spec.probes.liveness = liveness.map(Box::new);
    spec
}

/// A container that answers as it is told, and what it was asked and when.
struct Bed {
    spec: ContainerSpec,
    probing: Probing,
    now: Micros,
    agent: Micros,
    run: Option<(String, Micros)>,
    going: bool,
    /// What each kind answers.
    well: [bool; 3],
    asked: Vec<(ProbeKind, u64)>,
    told: Vec<(&'static str, String)>,
}

impl Bed {
    /// The pod is looked after from second 2,000 on.
    fn new(spec: ContainerSpec) -> Self {
        let mut bed = Self {
            spec,
            probing: Probing::default(),
            now: Micros::secs(2_000),
            agent: Micros::secs(2_000) - OLD,
            run: None,
            going: false,
            well: [true; 3],
            asked: Vec::new(),
            told: Vec::new(),
        };
        bed.look();
        bed
    }

    fn start(&mut self, run: &str) {
        self.run = Some((run.to_owned(), at(self.now).wall));
        self.look();
    }

    /// Starts, and answers one after the other, 10 s apart.
    fn answer_in_turn(&mut self, kind: usize, answers: &str, mut then: impl FnMut(&Self)) {
        for (n, answer) in answers.chars().enumerate() {
            self.well[kind] = answer == 'y';
            if n == 0 {
                self.start("r1");
            }
            self.until(u64::try_from(n).expect("small") * 10);
            then(self);
        }
    }

    fn look(&mut self) -> Option<Micros> {
        loop {
            let run = self.run.as_ref().map(|(run, started)| (run.as_str(), *started));
            let life = Life { uid: "u", run, going: self.going, agent: self.agent };
            let (due, wake) = self.probing.plan(&self.spec, life, at(self.now));
            if due.is_empty() {
                return wake;
            }
            for kind in due {
                self.asked.push((kind, (self.now.get() - 2_000_000_000) / 1_000_000));
                let index = ProbeKind::ALL.iter().position(|k| *k == kind).expect("a kind");
                let answer = if self.well[index] { Answer::Success } else { Answer::Failure("no".to_owned()) };
                let run = self.run.as_ref().map(|(run, _)| run.clone()).expect("it runs");
                let news = self.probing.answer(&self.spec, &run, kind, &answer, SECOND, self.going, at(self.now));
                self.told.extend(news.tell);
            }
        }
    }

    /// Time passes to this second after the beginning.
    fn until(&mut self, second: u64) {
        let end = Micros::secs(2_000 + second);
        while let Some(wake) = self.look().filter(|wake| *wake <= end) {
            self.now = wake;
        }
        self.now = end;
        self.look();
    }

    fn seconds(&self, kind: ProbeKind) -> Vec<u64> {
        self.asked.iter().filter(|(k, _)| *k == kind).map(|(_, second)| *second).collect()
    }

    fn status(&self) -> (bool, bool) {
        let run = self.run.as_ref().map_or("", |(run, _)| run);
        self.probing.status(&self.spec, run)
    }

    fn failed(&self) -> Option<ProbeKind> {
        self.probing.failed(self.run.as_ref().map_or("", |(run, _)| run))
    }
}

#[test]
fn a5_2_liveness_is_asked_at_ticks_from_the_pods_beginning_and_readiness_at_once() {
    let mut bed = Bed::new(container(None, Some(probe(10)), Some(probe(10))));
    bed.until(3);
    bed.start("r1");
    bed.until(34);
    assert_eq!(bed.seconds(ProbeKind::Liveness), [10, 20, 30]);
    assert_eq!(bed.seconds(ProbeKind::Readiness), [3, 13, 23, 33]);
}

#[test]
fn a5_1a_nothing_is_asked_before_the_initial_delay_and_ticks_do_not_move() {
    let slow = Probe { initial_delay: Micros::secs(15), ..probe(10) };
    let mut bed = Bed::new(container(None, Some(slow.clone()), Some(slow)));
    bed.until(3);
    bed.start("r1");
    bed.until(45);
    assert_eq!(bed.seconds(ProbeKind::Liveness), [20, 30, 40], "the first tick at 18 s or later");
    assert_eq!(bed.seconds(ProbeKind::Readiness), [23, 33, 43]);
}

#[test]
fn a5_2_a_young_agent_spreads_first_probes_over_their_period() {
    let spec = container(None, Some(probe(10)), Some(probe(10)));
    let delay = |uid: &str, kind, agent| {
        let life = Life { uid, run: None, going: false, agent: Micros::secs(agent) };
        first_delay(&probe(10), kind, &spec.name, life, at(Micros::secs(100)))
    };
    let delays: Vec<Micros> = (0..200).map(|n| delay(&format!("uid-{n}"), ProbeKind::Liveness, 95)).collect();
    assert!(delays.iter().all(|d| *d < Micros::secs(10)));
    for half in 0..4_u64 {
        let part = Micros::millis(2_500 * half)..Micros::millis(2_500 * (half + 1));
        let n = delays.iter().filter(|d| part.contains(d)).count();
        assert!((25..80).contains(&n), "{n} of 200 in {part:?}");
    }
    assert_ne!(delay("u", ProbeKind::Liveness, 95), delay("u", ProbeKind::Readiness, 95));
    assert_eq!(delay("u", ProbeKind::Liveness, 90), Micros::ZERO, "the agent is as old as a period");
}

#[test]
fn a5_3a_a5_3d_startup_has_the_others_wait_and_readiness_follows_at_once() {
    let startup = Probe { failure_threshold: 30, ..probe(2) };
    let mut bed = Bed::new(container(Some(startup), Some(probe(10)), Some(probe(10))));
    bed.well[0] = false;
    bed.start("r1");
    bed.until(7);
    assert_eq!(bed.asked.iter().filter(|(k, _)| *k != ProbeKind::Startup).count(), 0, "{:?}", bed.asked);
    assert_eq!(bed.status(), (false, false));
    bed.well[0] = true;
    bed.until(25);
    assert_eq!(bed.seconds(ProbeKind::Startup), [0, 2, 4, 6, 8], "nothing more once it has started");
    assert_eq!(bed.seconds(ProbeKind::Readiness), [8, 18]);
    assert_eq!(bed.seconds(ProbeKind::Liveness), [10, 20]);
    assert_eq!(bed.status(), (true, true));
    // Another run has to come up anew.
    bed.well[0] = false;
    bed.run = None;
    bed.until(26);
    bed.start("r2");
    assert_eq!(bed.status(), (false, false));
    bed.until(30);
    assert_eq!(bed.seconds(ProbeKind::Startup)[5..], [26, 28, 30]);
}

#[test]
fn a5_3a_the_initial_values() {
    let mut bed = Bed::new(container(None, Some(probe(10)), Some(probe(10))));
    bed.well = [false; 3];
    bed.start("r1");
    assert_eq!((bed.status(), bed.failed()), ((true, false), None), "not ready, and not failed");
    let mut bed = Bed::new(container(Some(probe(10)), None, None));
    bed.well = [false; 3];
    bed.start("r1");
    assert_eq!((bed.status(), bed.failed()), ((false, false), None));
    let mut bed = Bed::new(container(None, None, Some(probe(10))));
    bed.start("r1");
    assert_eq!(bed.status(), (true, true), "without a readiness probe it is ready as soon as it runs");
}

#[test]
fn a5_1a_a_verdict_needs_its_threshold_in_a_row() {
    for (answers, failed) in
        [("nn", false), ("nnn", true), ("nnynn", false), ("nnynnn", true), ("ynny", false), ("nnnn", true)]
    {
        let mut bed = Bed::new(container(None, None, Some(probe(10))));
        bed.answer_in_turn(2, answers, |_| {});
        assert_eq!(bed.failed().is_some(), failed, "{answers}");
    }
    // Readiness has both thresholds, and goes back and forth.
    let both = Probe { success_threshold: 2, failure_threshold: 2, ..probe(10) };
    let mut bed = Bed::new(container(None, Some(both), None));
    let mut seen = String::new();
    bed.answer_in_turn(1, "yynyynnyny", |bed| seen.push(if bed.status().1 { 'Y' } else { 'N' }));
    assert_eq!(seen, "NYYYYYNNNN", "{:?}", bed.asked);
}

#[test]
fn a5_3b_after_a_failure_of_liveness_nothing_is_asked_until_another_run() {
    let mut bed = Bed::new(container(None, None, Some(probe(10))));
    bed.well[2] = false;
    bed.start("r1");
    bed.until(100);
    assert_eq!(bed.seconds(ProbeKind::Liveness), [0, 10, 20]);
    assert_eq!(bed.failed(), Some(ProbeKind::Liveness));
    bed.start("r2");
    assert_eq!(bed.failed(), None);
    bed.until(130);
    assert_eq!(bed.seconds(ProbeKind::Liveness)[3..], [100, 110, 120]);
    assert_eq!(bed.failed(), Some(ProbeKind::Liveness));
}

#[test]
fn a5_6c_a_startup_probe_that_fails_fails_the_run() {
    let mut bed = Bed::new(container(Some(probe(1)), None, Some(probe(1))));
    bed.well[0] = false;
    bed.start("r1");
    bed.until(10);
    assert_eq!((bed.failed(), bed.asked.len()), (Some(ProbeKind::Startup), 3));
}

#[test]
fn a5_3c_a_pod_that_goes_is_asked_for_readiness_only() {
    let mut bed = Bed::new(container(None, Some(probe(10)), Some(probe(10))));
    bed.start("r1");
    bed.until(10);
    bed.going = true;
    bed.well = [false; 3];
    bed.until(45);
    assert_eq!(bed.seconds(ProbeKind::Liveness), [0, 10]);
    assert_eq!(bed.seconds(ProbeKind::Readiness), [0, 10, 20, 30, 40]);
    assert_eq!((bed.status(), bed.failed()), ((true, false), None));
}

#[test]
fn a5_3e_what_ran_before_the_agent_stays_started_and_ready_until_its_probes_say_otherwise() {
    let mut bed = Bed::new(container(None, Some(probe(10)), Some(probe(10))));
    bed.agent = bed.now;
    bed.run = Some(("r1".to_owned(), at(bed.now - Micros::secs(11)).wall));
    bed.well = [false; 3];
    bed.look();
    assert_eq!((bed.status(), bed.asked.len()), ((true, true), 2), "both were asked");
    bed.until(19);
    assert_eq!(bed.status(), (true, true));
    bed.until(21);
    assert_eq!(bed.status(), (true, false));
    // One that came up with the agent starts from nothing.
    let mut bed = Bed::new(container(None, Some(probe(10)), None));
    bed.agent = bed.now;
    bed.run = Some(("r1".to_owned(), at(bed.now - Micros::secs(9)).wall));
    bed.well = [false; 3];
    bed.look();
    assert_eq!(bed.status(), (true, false));
}

#[test]
fn a5_3b_answers_of_another_run_and_unasked_ones_are_nothing() {
    let spec = container(None, None, Some(Probe { failure_threshold: 1, ..probe(10) }));
    let mut probing = Probing::default();
    let no = Answer::Failure("no".to_owned());
    let look = |probing: &mut Probing, run: &str, second: u64| {
        let now = at(Micros::secs(2_000 + second));
        let life = Life { uid: "u", run: Some((run, now.wall)), going: false, agent: Micros::secs(1) };
        probing.plan(&spec, life, now).0.len()
    };
    assert_eq!(look(&mut probing, "r1", 0), 1);
    assert_eq!(look(&mut probing, "r1", 60), 0, "one is under way");
    assert_eq!(look(&mut probing, "r2", 60), 1);
    let mut hear = |run: &str| {
        probing.answer(&spec, run, ProbeKind::Liveness, &no, SECOND, false, at(Micros::secs(2_061)));
        probing.failed("r2")
    };
    assert_eq!(hear("r1"), None);
    assert_eq!(hear("r2"), Some(ProbeKind::Liveness));
    assert_eq!(probing.counts(&spec).map(|(_, counts)| counts.failed).sum::<u64>(), 1);
    let mut fresh = Probing::default();
    fresh.answer(&spec, "", ProbeKind::Liveness, &no, SECOND, false, at(Micros::secs(2_061)));
    assert_eq!(fresh.failed(""), None);
}

#[test]
fn a5_3_a_question_that_takes_longer_than_the_period_is_followed_by_the_next_at_once() {
    let spec = container(None, None, Some(probe(2)));
    let mut probing = Probing::default();
    let plan = |probing: &mut Probing, millis: u64| {
        let now = at(Micros::secs(2_000) + Micros::millis(millis));
        let life = Life { uid: "u", run: Some(("r1", at(Micros::secs(2_000)).wall)), going: false, agent: SECOND };
        probing.plan(&spec, life, now)
    };
    assert_eq!(plan(&mut probing, 0).0.len(), 1);
    assert_eq!(plan(&mut probing, 2_000), (Vec::new(), None), "its answer comes first");
    probing.answer(&spec, "r1", ProbeKind::Liveness, &Answer::Success, SECOND, false, at(Micros::secs(2_003)));
    assert_eq!(plan(&mut probing, 3_000).0, [ProbeKind::Liveness]);
    probing.answer(&spec, "r1", ProbeKind::Liveness, &Answer::Success, SECOND, false, at(Micros::secs(2_003)));
    assert_eq!(plan(&mut probing, 3_001), (Vec::new(), Some(Micros::secs(2_004))), "the ticks stay where they were");
}

#[test]
fn a5_6b_what_is_told_is_in_the_kubelets_words_and_not_all_the_time() {
    let spec = container(None, Some(probe(1)), None);
    for (answer, told) in [
        (
            Answer::Failure("HTTP probe failed with statuscode: 500".to_owned()),
            Some(("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500")),
        ),
        (Answer::Warning("moved".to_owned()), Some(("ProbeWarning", "Readiness probe warning: moved"))),
        (
            Answer::Error { state: "unknown".to_owned(), message: "rpc error".to_owned() },
            Some(("Unhealthy", "Readiness probe errored and resulted in unknown state: rpc error")),
        ),
        (Answer::Success, None),
    ] {
        let mut worker = Worker::default();
        let told = told.map(|(reason, message)| (reason, message.to_owned()));
        assert_eq!(worker.tell(ProbeKind::Readiness, &answer, at(SECOND)), told);
        assert_eq!(worker.tell(ProbeKind::Readiness, &answer, at(Micros::secs(60))), None);
        assert_eq!(worker.tell(ProbeKind::Readiness, &answer, at(Micros::secs(61))), told);
    }
    let mut probing = Probing::default();
    let life = Life { uid: "u", run: Some(("r1", Micros::ZERO)), going: false, agent: SECOND };
    probing.plan(&spec, life, at(OLD));
    let error = Answer::Error { state: "unknown".to_owned(), message: String::new() };
    let news = probing.answer(&spec, "r1", ProbeKind::Readiness, &error, SECOND, false, at(OLD));
    assert!(!news.changed && probing.status(&spec, "r1") == (true, false), "an error is no answer");
}

#[test]
fn a5_7_successes_and_failures_are_counted_and_the_time_of_successes() {
    let mut bed = Bed::new(container(None, Some(probe(1)), None));
    bed.start("r1");
    bed.until(2);
    bed.well[1] = false;
    bed.until(4);
    bed.start("r2");
    let (kind, counts) = bed.probing.counts(&bed.spec).next().expect("one probe");
    assert_eq!((kind, counts.successful, counts.failed, counts.time), (ProbeKind::Readiness, 3, 3, Micros::secs(3)));
    assert_eq!(counts.buckets, [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0], "1 s is within the bound of 1 s");
}

proptest! {
    #[test]
    fn a5_3_there_is_one_question_for_a_tick_and_a_verdict_has_its_answers(
        period in 1_u64..12,
        delay in 0_u64..20,
        threshold in 1_u32..4,
        with_startup in any::<bool>(),
        agent in 1_990_u64..2_000,
        steps in prop::collection::vec((0_u8..8, 1_u64..4_000), 1..200),
    ) {
        let one = Probe { initial_delay: Micros::secs(delay), failure_threshold: threshold, ..probe(period) };
        let spec = container(with_startup.then(|| one.clone()), Some(one.clone()), Some(one.clone()));
        let (mut probing, mut now, mut run, mut going) = (Probing::default(), Micros::secs(2_000), None::<(String, Micros)>, false);
        let mut under_way: Vec<(String, ProbeKind)> = Vec::new();
        let mut asked: BTreeMap<(String, ProbeKind), (Micros, u64)> = BTreeMap::new();
        let mut fails: BTreeMap<(String, ProbeKind), u32> = BTreeMap::new();
        for (n, (what, millis)) in steps.into_iter().enumerate() {
            now += Micros::millis(millis);
            match what {
                0 => run = Some((format!("r{n}"), at(now).wall)),
                1 if n % 5 == 0 => run = None,
                2 if n % 9 == 0 => going = true,
                3..=6 if !under_way.is_empty() => {
                    let (of, kind) = under_way.remove(n % under_way.len());
                    let answer = if what < 5 { Answer::Failure(String::new()) } else { Answer::Success };
                    let current = run.as_ref().is_some_and(|(run, _)| *run == of);
                    let before = (probing.status(&spec, run.as_ref().map_or("", |(r, _)| r)), probing.failed(run.as_ref().map_or("", |(r, _)| r)));
                    probing.answer(&spec, &of, kind, &answer, SECOND, going, at(now));
                    let after = (probing.status(&spec, run.as_ref().map_or("", |(r, _)| r)), probing.failed(run.as_ref().map_or("", |(r, _)| r)));
                    prop_assert!(current || run.is_none() || before == after, "{of} is not the run");
                    let count = fails.entry((of, kind)).or_default();
                    *count = if what < 5 { *count + 1 } else { 0 };
                }
                _ => {}
            }
            let life_run = run.as_ref().map(|(run, started)| (run.as_str(), *started));
            let life = Life { uid: "u", run: life_run, going, agent: Micros::secs(agent) };
            let (due, wake) = probing.plan(&spec, life, at(now));
            prop_assert!(wake.is_none_or(|wake| wake > now));
            for kind in due {
                let key = (run.clone().expect("only what runs is asked").0, kind);
                prop_assert!(!under_way.contains(&key), "two under way");
                prop_assert!(!going || kind == ProbeKind::Readiness);
                let (started, _) = probing.status(&spec, &key.0);
                prop_assert!(kind == ProbeKind::Startup || started || !with_startup);
                prop_assert!(at(now).wall >= run.as_ref().expect("it runs").1 + Micros::secs(delay));
                let (first, count) = asked.entry(key.clone()).or_insert((now, 0));
                *count += 1;
                let ticks = (now - *first).get() / (period * 1_000_000) + 1;
                prop_assert!(*count <= ticks + 1, "{count} questions in {ticks} periods");
                under_way.push(key);
            }
            if let Some((run, _)) = &run
                && let Some(kind) = probing.failed(run)
            {
                let count = fails.get(&(run.clone(), kind)).copied().unwrap_or(0);
                prop_assert!(count >= threshold, "{kind:?} failed {run} after {count} answers");
            }
        }
    }
}
