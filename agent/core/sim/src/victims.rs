//! Fifty nodes with several pods, each with who has to go written down beforehand.
//!
//! Problem: the [`crate::corpus`] says whether an eviction was in time and needed; with three neighbours that never change it says little
//! about *who*. Approach: each [`Case`] is a cast of pods of which some leak, some suffer and some only look guilty, with the right
//! victims in their order and the reason. The victims were written down from the principles below before any rules ran on them.
//!
//! The principles, first to last:
//! 1. Critical and terminating pods never go.
//! 2. Who uses more than it requests goes before who does not (the kubelet's order: pkg/kubelet/eviction/helpers.go, `rankMemoryPressure`).
//!    What is used is what reclaim cannot free: page cache never counts.
//! 3. Then lower priority goes first (the kubelet's order).
//! 4. Then the aggressor, never the sufferer: whose growth is what eats the room. Growth that comes and goes (a collector, a build) is
//!    none, nor is a stall of one's own.
//! 5. Then who uses most above its request (the kubelet's order).
//! 6. Nobody goes where no wall is near that pods share.
//!
//! All walls are limits of `kubepods` but where a case says otherwise, and most leaks take seconds from the threshold to the wall, so that
//! slow rules have a chance to be judged by whom they take. `database`, Guaranteed, within its request and of high priority, fills
//! the node up to the room. Each case is looked at from the five moments of [`PHASES`].
//!
//! Terms: a run is *right* if the kills are the first of [`Case::goes`] in that order, at least one where somebody has to go, and the
//! OOM killer never comes to a wall that pods share; *wrong* if anybody else is killed; else *kernel* if the OOM killer came; else
//! *nobody*: somebody had to go and nobody did.
//!
//! Simplified: pods are not started again, so a crash loop is a curve that begins anew within its container.

mod cases;

pub use cases::cases;

use std::fmt::Write as _;

use beelet_core::units::Micros;

use crate::compare::{Kill, Outcome, PHASES, contenders, run};
use crate::corpus::Scene;

/// A cast, and who of it has to go.
#[derive(Clone, Debug)]
pub struct Case {
    /// What happens.
    pub scene: Scene,
    /// Who goes, in this order, until the scene is over; empty: nobody.
    pub goes: Vec<&'static str>,
    /// Why these.
    pub why: &'static str,
    /// The rules begin to look then, since the start.
    pub from: Micros,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As written down.
    Right,
    /// Somebody had to go and nobody did.
    Nobody,
    /// The OOM killer came.
    Kernel,
    /// Somebody else was killed.
    Wrong,
}

impl Case {
    /// Judges a run.
    #[must_use]
    pub fn verdict(&self, outcome: &Outcome) -> Verdict {
        let name = |kill: &Kill| {
            self.scene.pods.iter().find(|p| p.spec.uid == kill.victim).map_or("", |p| p.spec.name.as_str())
        };
        let killed: Vec<&str> = outcome.kills.iter().map(name).collect();
        if !self.goes.starts_with(&killed) {
            Verdict::Wrong
        } else if outcome.oom.is_some() {
            Verdict::Kernel
        } else if killed.is_empty() && !self.goes.is_empty() {
            Verdict::Nobody
        } else {
            Verdict::Right
        }
    }

    /// A run of these rules (an index into [`contenders`]) from one of [`PHASES`].
    #[must_use]
    pub fn run(&self, rules: usize, phase: Micros) -> Outcome {
        run(&self.scene, &mut *contenders(&self.scene, phase).swap_remove(rules), self.from + phase)
    }
}

// === the table ===

/// Every case with every set of rules.
#[derive(Clone, Debug)]
pub struct Victims {
    names: Vec<&'static str>,
    /// By rules, then by [`PHASES`].
    rows: Vec<(Case, Vec<Vec<Verdict>>)>,
}

impl Victims {
    /// Runs all.
    #[must_use]
    pub fn of_all() -> Self {
        let cases = cases();
        let names: Vec<_> = cases
            .first()
            .map(|c| contenders(&c.scene, Micros::ZERO).iter().map(|r| r.name()).collect())
            .unwrap_or_default();
        let judge = |case: &Case, i| PHASES.iter().map(|&phase| case.verdict(&case.run(i, phase))).collect();
        let rows = cases
            .into_iter()
            .map(|case| {
                let verdicts = (0..names.len()).map(|i| judge(&case, i)).collect();
                (case, verdicts)
            })
            .collect();
        Self { names, rows }
    }

    /// A row for each set of rules.
    #[must_use]
    pub fn by_rules(&self) -> String {
        let mut text =
            "| rules | scenes right in all runs | runs right | wrong victim | nobody | killed by the kernel |\n\
            |---|---:|---:|---:|---:|---:|\n"
                .to_owned();
        for (i, name) in self.names.iter().enumerate() {
            let runs = |v| self.rows.iter().flat_map(|(_, by)| &by[i]).filter(|&&seen| seen == v).count();
            let scenes = self.rows.iter().filter(|(_, by)| by[i].iter().all(|&v| v == Verdict::Right)).count();
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {name} | {scenes} of {} | {} of {} | {} | {} | {} |",
                self.rows.len(),
                runs(Verdict::Right),
                self.rows.len() * PHASES.len(),
                runs(Verdict::Wrong),
                runs(Verdict::Nobody),
                runs(Verdict::Kernel),
            );
        }
        text
    }

    /// A row for each case.
    #[must_use]
    pub fn by_case(&self) -> String {
        let mut text = format!("| scene | who has to go | why | {} |\n|---|---|---|", self.names.join(" | "));
        text += &"---|".repeat(self.names.len());
        text.push('\n');
        for (case, by) in &self.rows {
            let goes = if case.goes.is_empty() { "nobody".to_owned() } else { case.goes.join(", ") };
            let cells: Vec<String> = by.iter().map(|verdicts| cell(verdicts)).collect();
            let _ = writeln!(text, "| {} | {goes} | {} | {} |", case.scene.name, case.why, cells.join(" | "));
        }
        text
    }
}

/// `right`, or how many of the runs were what.
fn cell(verdicts: &[Verdict]) -> String {
    let all = [
        (Verdict::Right, "right"),
        (Verdict::Wrong, "**wrong**"),
        (Verdict::Nobody, "nobody"),
        (Verdict::Kernel, "kernel"),
    ];
    let seen = all.map(|(v, name)| (verdicts.iter().filter(|&&s| s == v).count(), name));
    let seen = seen.iter().filter(|(n, _)| *n > 0);
    let texts: Vec<String> =
        seen.map(|&(n, name)| if n == verdicts.len() { name.to_owned() } else { format!("{n} {name}") }).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::cases::{case, idle, pod};
    use super::*;
    use crate::corpus::START;
    use crate::kernel::reclaim::MIN;
    use beelet_core::spec::PodUid;
    use beelet_core::units::Bytes;

    #[test]
    fn there_are_fifty_with_names_of_their_own_and_victims_that_exist() {
        let cases = cases();
        assert_eq!(cases.len(), 50);
        let names: std::collections::BTreeSet<_> = cases.iter().map(|c| &c.scene.name).collect();
        assert_eq!(names.len(), 50);
        for case in cases {
            for name in &case.goes {
                assert!(case.scene.pods.iter().any(|p| p.spec.name == *name), "{}: {name}", case.scene.name);
            }
        }
    }

    /// Where somebody has to go the threshold is crossed if nobody acts, and where nobody has to it is not; not even a wall of one's own
    /// is hit.
    #[test]
    fn each_case_needs_somebody_or_nobody_as_it_says() {
        let mut wrong = Vec::new();
        for case in cases() {
            let mut kernel = case.scene.kernel();
            let end = START + case.scene.lasts;
            let (mut least, mut crossed) = (kernel.room(), None);
            while kernel.now() < end && kernel.ooms.shared() == 0 {
                kernel.advance(end.min(kernel.now() + Micros::millis(50)));
                least = least.min(kernel.room());
                let kept = if case.scene.limit.is_some() { Bytes::ZERO } else { MIN };
                if kernel.room() + kept < Bytes::mib(100) {
                    crossed.get_or_insert(kernel.now() - START);
                }
                let dead = kernel.take_deaths().into_iter().any(|d| d.oom);
                assert!(!dead || kernel.ooms.own == 0, "{}: a limit of its own", case.scene.name);
            }
            println!("{}: crossed {crossed:?}, least {}", case.scene.name, least.get() >> 20);
            // Whoever looks late still has time.
            let seen = crossed.is_none_or(|at| at < Micros::secs(1) || at > case.from + PHASES[4]);
            if crossed.is_some() == case.goes.is_empty() || !seen {
                wrong.push(case.scene.name);
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn a_run_is_judged_by_who_was_killed_in_which_order() {
        let pods = || vec![pod("a", &idle(1)), pod("b", &idle(1)), pod("c", &idle(1))];
        let expects = |goes: &[&'static str]| case("any", 500, 60, pods(), goes, "because");
        let outcome = |kills: &[&str], oom: bool| Outcome {
            oom: oom.then_some(START),
            kills: kills
                .iter()
                .map(|name| Kill {
                    at: START,
                    victim: PodUid::from(format!("uid-{name}").as_str()),
                    right: true,
                    lead: None,
                    unused: Bytes::ZERO,
                })
                .collect(),
        };
        let cases: [(&[&'static str], &[&str], bool, Verdict); 9] = [
            (&["a", "b"], &["a", "b"], false, Verdict::Right),
            (&["a", "b"], &["a"], false, Verdict::Right),
            (&["a", "b"], &["b", "a"], false, Verdict::Wrong),
            (&["a", "b"], &["a", "c"], false, Verdict::Wrong),
            (&["a"], &["c"], true, Verdict::Wrong),
            (&["a"], &["a"], true, Verdict::Kernel),
            (&["a"], &[], false, Verdict::Nobody),
            (&[], &[], false, Verdict::Right),
            (&[], &["a"], false, Verdict::Wrong),
        ];
        for (goes, kills, oom, expected) in cases {
            assert_eq!(expects(goes).verdict(&outcome(kills, oom)), expected, "{goes:?} {kills:?} {oom}");
        }
        assert_eq!(cell(&[Verdict::Right; 5]), "right");
        assert_eq!(cell(&[Verdict::Wrong, Verdict::Kernel, Verdict::Wrong]), "2 **wrong**, 1 kernel");
    }
}
