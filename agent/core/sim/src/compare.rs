//! Rules on the corpus, and their scores.
//!
//! Problem: "it evicted" says nothing: was it in time, was it needed, was it the right one, how early? Approach: each set of rules
//! runs through each [`Scene`] from [`PHASES`] moments within its polling period. At each kill the node is copied and runs on
//! without it; whether the OOM killer comes there, and when, says whether the kill was needed and how much lead it had.
//!
//! Terms: an OOM is *averted* if the OOM killer never came in a scene where it would have come without anybody; *needed* is a kill
//! without which (those before it kept) the OOM killer would have come; *lead* is from the look that decided until then, of the first
//! kill of a run; *unused* is the least room that there was from a needed kill's decision until its memory was free: by so much
//! the kill could have been later. Kills in scenes that are [`Truth::Tight`] are counted in their row only.
//!
//! Properties: integers only; the same corpus gives the same tables.

use std::collections::BTreeMap;
use std::collections::btree_map::OccupiedEntry;
use std::fmt::Write as _;

use beelet_core::spec::PodUid;
use beelet_core::units::{Bytes, Micros};

use crate::corpus::{START, Scene, Truth, scenes};
use crate::kernel::Kernel;
use crate::rules::{Beelet, Kubelet, Lmkd, Look, Oomd, Rules};

/// When rules start to look, since the start of a scene: even over the kubelet's 10 s, and odd for those that look more often.
pub const PHASES: [Micros; 5] =
    [Micros::ZERO, Micros::millis(2_137), Micros::millis(4_289), Micros::millis(6_411), Micros::millis(8_573)];
/// How close the room is followed, and for how long after a kill: the slowest takes 2 s.
const FOLLOW: (Micros, Micros) = (Micros::millis(10), Micros::secs(3));

/// A kill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// When it was decided (monotonic).
    pub at: Micros,
    /// Who.
    pub victim: PodUid,
    /// One that grew.
    pub right: bool,
    /// From the decision until the OOM killer would have come; `None` for a kill that was not needed.
    pub lead: Option<Micros>,
    /// The least room until the victim's memory was free.
    pub unused: Bytes,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// When the OOM killer came, and the run ended (monotonic).
    pub oom: Option<Micros>,
    /// What the rules did.
    pub kills: Vec<Kill>,
}

#[derive(Clone, Debug)]
enum Due {
    Kill(PodUid),
    Clean(PodUid),
}

/// Whether a kill was needed is looked at for so long past the scene's end: what grows there goes on growing.
const BEYOND: Micros = Micros::secs(30);

/// A node on its way, with what is already decided.
#[derive(Clone, Debug)]
struct Course {
    kernel: Kernel,
    due: BTreeMap<(Micros, usize), Due>,
}

impl Course {
    /// Runs on to then, or until the OOM killer comes at a wall that pods share: when.
    fn run(&mut self, to: Micros) -> Option<Micros> {
        loop {
            let next = self.due.first_key_value().map_or(to, |((at, _), _)| to.min(*at));
            while self.kernel.now() < next {
                self.kernel.advance(next);
                self.kernel.take_deaths();
                if self.kernel.ooms.shared() > 0 {
                    return Some(self.kernel.now());
                }
            }
            match self.due.first_entry().filter(|e| e.key().0 <= next).map(OccupiedEntry::remove) {
                Some(Due::Kill(uid)) => self.kernel.kill(&uid),
                Some(Due::Clean(uid)) => self.kernel.remove_group(&uid),
                None => return None,
            }
        }
    }
}

/// Runs a scene with rules that start to look at `phase`.
#[must_use]
pub fn run(scene: &Scene, rules: &mut dyn Rules, phase: Micros) -> Outcome {
    let mut course = Course { kernel: scene.kernel(), due: BTreeMap::new() };
    let (mut next, end) = (START + phase, START + scene.lasts);
    let mut outcome = Outcome::default();
    loop {
        let now = course.kernel.now();
        let mut to = next.min(end);
        if outcome.kills.last().is_some_and(|k| now - k.at < FOLLOW.1) {
            to = to.min(now + FOLLOW.0);
        }
        outcome.oom = course.run(to);
        if outcome.oom.is_some() || to >= end {
            return outcome;
        }
        let room = course.kernel.room();
        for kill in outcome.kills.iter_mut().filter(|k| to - k.at < FOLLOW.1) {
            if course.kernel.held_by(&kill.victim) > Bytes::ZERO {
                kill.unused = kill.unused.min(room);
            }
        }
        if to < next {
            continue;
        }
        let verdict = rules.look(&Look::at(&course.kernel));
        next = verdict.next;
        if let Some(victim) = verdict.kill {
            let oom = course.clone().run(end + BEYOND);
            let dead = to + rules.kills_after();
            let number = outcome.kills.len();
            course.due.insert((dead, number), Due::Kill(victim.clone()));
            if let Some(after) = rules.cleans_after() {
                course.due.insert((dead + after, number), Due::Clean(victim.clone()));
            }
            let (right, lead) = (scene.is_culprit(&victim), oom.map(|oom| oom - to));
            outcome.kills.push(Kill { at: to, victim, right, lead, unused: room });
        }
    }
}

/// All sets of rules, for a scene; `phase` decides how old the kubelet's statistics are, too.
#[must_use]
pub fn contenders(scene: &Scene, phase: Micros) -> Vec<Box<dyn Rules>> {
    let specs = scene.specs();
    let leaving = scene.pods.iter().filter(|p| p.leaving).map(|p| p.spec.uid.clone()).collect();
    let scores = specs.iter().map(|s| (s.uid.clone(), scene.adj(s))).collect();
    let age = Micros(phase.scale(3, 1).get() % Micros::secs(10).get());
    vec![
        Box::new(Beelet::new(&scene.node, &specs).leaving(leaving)),
        Box::new(Kubelet::new(&scene.node, &specs, age)),
        Box::new(Oomd::default()),
        Box::new(Lmkd::new(scores)),
    ]
}

/// What some runs of some rules sum up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Runs in which the OOM killer would have come.
    pub runs: usize,
    /// Of these, those in which it did not.
    pub averted: usize,
    /// Runs in which nobody was to be evicted.
    pub quiet: usize,
    /// Of these, those in which somebody was.
    pub disturbed: usize,
    /// Kills.
    pub kills: usize,
    /// Of these, the needed ones.
    pub needed: usize,
    /// Of the needed ones, those of a pod that grew.
    pub right: usize,
    /// Of averted runs.
    pub leads: Vec<Micros>,
    /// Of needed kills in averted runs.
    pub unused: Vec<Bytes>,
}

impl Tally {
    /// Counts a run.
    pub fn count(&mut self, truth: Truth, outcome: &Outcome) {
        let needed = || outcome.kills.iter().filter(|k| k.lead.is_some());
        self.kills += outcome.kills.len();
        self.needed += needed().count();
        self.right += needed().filter(|k| k.right).count();
        match truth {
            Truth::Oom { .. } => {
                self.runs += 1;
                if outcome.oom.is_none() {
                    self.averted += 1;
                    self.leads.extend(needed().next().and_then(|k| k.lead));
                    self.unused.extend(needed().map(|k| k.unused));
                }
            }
            Truth::Quiet => {
                self.quiet += 1;
                self.disturbed += usize::from(!outcome.kills.is_empty());
            }
            Truth::Tight => {}
        }
    }

    /// Takes another's.
    pub fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.averted += other.averted;
        self.quiet += other.quiet;
        self.disturbed += other.disturbed;
        self.kills += other.kills;
        self.needed += other.needed;
        self.right += other.right;
        self.leads.extend(&other.leads);
        self.unused.extend(&other.unused);
    }
}

fn median<T: Ord + Copy>(values: &[T]) -> Option<T> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn share(part: usize, whole: usize) -> String {
    let percent = (part * 100).checked_div(whole);
    percent.map_or_else(|| "none".to_owned(), |percent| format!("{part} of {whole} ({percent} %)"))
}

fn millis(time: Option<Micros>) -> String {
    time.map_or_else(|| "none".to_owned(), |t| format!("{} ms", t.get() / 1_000))
}

/// Every scene with every set of rules.
#[derive(Clone, Debug)]
pub struct Comparison {
    names: Vec<&'static str>,
    rows: Vec<(Scene, Vec<Tally>)>,
}

impl Comparison {
    /// Runs all.
    #[must_use]
    pub fn of_the_corpus() -> Self {
        let mut names = Vec::new();
        let mut rows = Vec::new();
        for scene in scenes() {
            let mut tallies: Vec<Tally> = Vec::new();
            for phase in PHASES {
                let all = contenders(&scene, phase);
                names = all.iter().map(|r| r.name()).collect();
                tallies.resize(all.len(), Tally::default());
                for (tally, mut rules) in tallies.iter_mut().zip(all) {
                    tally.count(scene.truth, &run(&scene, &mut *rules, phase));
                }
            }
            rows.push((scene, tallies));
        }
        Self { names, rows }
    }

    /// A table with a row for each set of rules.
    #[must_use]
    pub fn by_rules(&self) -> String {
        let mut text =
            "| rules | OOMs averted (recall) | kills that were needed (precision) | of these, the right victim | \
            quiet runs disturbed | lead, median | unused, median |\n|---|---:|---:|---:|---:|---:|---:|\n"
                .to_owned();
        for (i, name) in self.names.iter().enumerate() {
            let mut t = Tally::default();
            for (_, tallies) in self.rows.iter().filter(|(scene, _)| scene.truth != Truth::Tight) {
                t.add(&tallies[i]);
            }
            let unused = median(&t.unused).map_or_else(|| "none".to_owned(), |b| format!("{} MiB", b.get() >> 20));
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {} | {} | {} | {unused} |",
                share(t.averted, t.runs),
                share(t.needed, t.kills),
                share(t.right, t.needed),
                share(t.disturbed, t.quiet),
                millis(median(&t.leads)),
            );
        }
        text
    }

    /// A table with a row for each scene.
    #[must_use]
    pub fn by_scene(&self) -> String {
        let mut text = format!("| scene | if nobody acts | {} |\n|---|---|", self.names.join(" | "));
        text += &"---|".repeat(self.names.len());
        text.push('\n');
        for (scene, tallies) in &self.rows {
            let truth = match scene.truth {
                Truth::Oom { at } => format!("OOM after {} s", at.get() / 1_000_000),
                Truth::Quiet => "nothing".to_owned(),
                Truth::Tight => "tight, no OOM".to_owned(),
            };
            let cells: Vec<String> = tallies.iter().map(|t| cell(scene.truth, t)).collect();
            let _ = writeln!(text, "| {} | {truth} | {} |", scene.name, cells.join(" | "));
        }
        text
    }
}

fn cell(truth: Truth, t: &Tally) -> String {
    let Truth::Oom { .. } = truth else {
        return match t.kills {
            0 => "no kill".to_owned(),
            1 => "**1 kill**".to_owned(),
            n => format!("**{n} kills**"),
        };
    };
    let mut text = format!("{}/{}", t.averted, t.runs);
    if let Some(lead) = median(&t.leads) {
        let _ = write!(text, ", {}", millis(Some(lead)));
    }
    let (wrong, idle) = (t.needed - t.right, t.kills - t.needed);
    if wrong > 0 {
        let _ = write!(text, ", {wrong} wrong");
    }
    if idle > 0 {
        let _ = write!(text, ", {idle} unneeded");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kill(right: bool, lead: Option<u64>, unused: u64) -> Kill {
        let lead = lead.map(Micros::millis);
        Kill { at: START, victim: "a".into(), right, lead, unused: Bytes::mib(unused) }
    }

    #[test]
    fn kills_are_counted_by_need_and_victim_and_leads_only_of_what_was_averted() {
        let coming = Truth::Oom { at: Micros::secs(9) };
        let kills = vec![kill(false, Some(900), 50), kill(true, Some(700), 30), kill(true, None, 10)];
        let averted = Outcome { oom: None, kills: kills.clone() };
        let late = Outcome { oom: Some(START), kills };
        let mut t = Tally::default();
        t.count(coming, &averted);
        assert_eq!((t.runs, t.averted, t.kills, t.needed, t.right), (1, 1, 3, 2, 1));
        assert_eq!((t.leads.clone(), t.unused.len()), (vec![Micros::millis(900)], 2));
        assert_eq!(cell(coming, &t), "1/1, 900 ms, 1 wrong, 1 unneeded");
        t.count(coming, &late);
        assert_eq!((t.runs, t.averted, t.leads.len()), (2, 1, 1));
        let mut quiet = Tally::default();
        quiet.count(Truth::Quiet, &Outcome::default());
        assert_eq!((quiet.quiet, quiet.disturbed, cell(Truth::Quiet, &quiet)), (1, 0, "no kill".to_owned()));
        quiet.count(Truth::Quiet, &Outcome { oom: None, kills: vec![kill(false, None, 0)] });
        assert_eq!((quiet.quiet, quiet.disturbed, cell(Truth::Quiet, &quiet)), (2, 1, "**1 kill**".to_owned()));
        t.add(&quiet);
        assert_eq!((t.kills, share(t.needed, t.kills)), (7, "4 of 7 (57 %)".to_owned()));
    }
}
