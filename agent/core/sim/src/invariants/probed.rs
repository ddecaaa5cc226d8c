//! What must hold of probes. Answers are counted here anew, from the events alone.

use std::collections::{BTreeMap, BTreeSet};

use beelet_core::World;
use beelet_core::event::{Action, Event};
use beelet_core::probe::Answer;
use beelet_core::spec::{PodUid, ProbeKind};

use super::{Holds, Look, is_going, must};

/// What was asked and answered.
#[derive(Debug, Default)]
pub(super) struct Probed {
    under_way: BTreeSet<(String, ProbeKind)>,
    /// Answers of no in a row, by run and kind.
    failures: BTreeMap<(String, ProbeKind), u32>,
    /// Runs whose startup probe has succeeded.
    started: BTreeSet<String>,
}

impl Probed {
    pub(super) fn check(&mut self, look: &Look<'_>) -> Holds {
        if let Event::Probe { run, kind, answer, .. } = look.event {
            let key = (run.clone(), *kind);
            self.under_way.remove(&key);
            let row = self.failures.entry(key).or_default();
            match answer {
                Answer::Failure(_) => *row += 1,
                Answer::Success | Answer::Warning(_) => {
                    *row = 0;
                    if *kind == ProbeKind::Startup {
                        self.started.insert(run.clone());
                    }
                }
                Answer::Error { .. } => {}
            }
        }
        if let Event::Noted(notes) = look.event {
            // What had started stays so over a restart of the agent.
            let runs = notes.iter().flat_map(|note| &note.runs).filter(|run| run.started);
            self.started.extend(runs.map(|run| run.run.clone()));
        }
        for action in look.actions {
            let Action::Probe { uid, container, run, kind, .. } = action else { continue };
            let name = "invariant_one_question_of_a_run_and_kind";
            must(self.under_way.insert((run.clone(), *kind)), name, || format!("{kind:?} of {container} of {uid}"))?;
            let pod = look.world.pods().get(uid);
            let name = "invariant_only_what_runs_and_has_started_is_asked";
            let gated = *kind != ProbeKind::Startup
                && pod.and_then(|p| p.spec.container(container)).is_some_and(|c| c.probes.startup.is_some());
            let fine = pod.is_some_and(|p| p.running(container).is_some_and(|(id, _)| id == run))
                && (!gated || self.started.contains(run));
            must(fine, name, || format!("{kind:?} of {container} of {uid}"))?;
            // One that has to go since this very step, for another pod, was asked before.
            let now = |a: &Action| matches!(a, Action::Going { uid: going, until: Some(_) } if going == uid);
            let lives = pod.is_some_and(|p| !is_going(&p.state)) || look.actions.iter().any(now);
            let quiet = *kind == ProbeKind::Readiness || lives;
            must(quiet, "invariant_a_pod_that_goes_is_asked_for_readiness_only", || format!("{kind:?} of {uid}"))?;
        }
        if self.failures.len() > 10_000 {
            self.forget(look);
        }
        Ok(())
    }

    fn forget(&mut self, look: &Look<'_>) {
        self.failures.retain(|(run, _), _| look.runtime.containers.contains_key(run));
        self.started.retain(|run| look.runtime.containers.contains_key(run));
    }

    /// Liveness or startup of this run answered no as often in a row as it takes.
    pub(super) fn has_failed(&self, world: &World, uid: &PodUid, run: &str) -> bool {
        let Some(pod) = world.pods().get(uid) else { return false };
        let spec = pod.containers.iter().find(|c| c.id == run).and_then(|c| pod.spec.container(&c.name));
        spec.is_some_and(|spec| {
            [ProbeKind::Startup, ProbeKind::Liveness].into_iter().any(|kind| {
                let row = self.failures.get(&(run.to_owned(), kind)).copied().unwrap_or(0);
                spec.probes.get(kind).is_some_and(|probe| row >= probe.failure_threshold)
            })
        })
    }
}
