//! What a pod's status says: its phase, its containers and its conditions.
//!
//! Problem: what is shown of a pod is a set of rules of its own, which tools rely on to the word; and a condition has a time, that of
//! its last change, which cannot be found out afterwards. Approach: everything is derived from the state and the facts, by the
//! kubelet's rules (release 1.36), in three steps: containers, phase, conditions. At the end of each step of the world the result is
//! held against what was shown before ([`World::show`]), so that times are those of the change.
//!
//! Properties (tested): a phase that is over never becomes another one; a condition that does not change keeps its time, also over a
//! restart of the agent, which writes down what it shows ([`PodNote`]).

use serde::{Deserialize, Serialize};

use crate::event::Action;
use crate::pod::Pod;
use crate::probe::RunNote;
use crate::snapshot::Phase;
use crate::spec::PodUid;
use crate::units::{Micros, Now};
use crate::world::World;

mod conditions;
mod container;
mod phase;

pub use conditions::{ConditionKind, PodCondition};
pub(crate) use container::{ContainerStatus, State, go_duration, of as containers, pod_words};
pub(crate) use phase::of as phase;

/// What was shown of a pod last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its phase.
    pub phase: Phase,
    /// Its conditions, in the kubelet's order; empty before it was looked at for the first time.
    pub conditions: Vec<PodCondition>,
}

impl Shown {
    /// It was over already.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }
}

/// What is shown of a pod, for a later life of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNote {
    /// Which pod.
    pub uid: PodUid,
    /// `status.startTime` (wall clock).
    pub since: Micros,
    /// Its conditions: which, whether it holds, and since when (wall clock).
    pub conditions: Vec<(ConditionKind, bool, Micros)>,
    /// Its containers that run.
    pub runs: Vec<RunNote>,
}

impl World {
    /// Brings what is shown of a pod up to date, and has it written down if it changed. `looked`: nothing has happened but a look at
    /// what pods use, which many times a second changes nothing here unless it led to a decision.
    pub(crate) fn show(&mut self, uid: &PodUid, looked: bool, now: Now) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let stands = (pod.state.name(), pod.in_flight.map(|(op, _)| op), pod.resize.len());
        if pod.stood.replace(stands) == Some(stands) && looked {
            return;
        }
        let statuses = containers(self.config.max_backoff, pod, now);
        let (phase, ..) = phase(pod, &statuses, None);
        let conditions = conditions::of(pod, &statuses, phase, now);
        let run = |c: &ContainerStatus<'_>| {
            let run = c.run.filter(|_| c.is_running())?.id.clone();
            Some(RunNote { container: c.spec.name.clone(), run, started: c.started, ready: c.ready })
        };
        let note = PodNote {
            uid: uid.clone(),
            since: pod.since,
            conditions: conditions.iter().map(|c| (c.kind, c.holds, c.since)).collect(),
            runs: statuses.iter().filter_map(run).collect(),
        };
        pod.shown = Shown { phase, conditions };
        // Beside a kubelet there is nobody who would write it down.
        if !pod.foreign && pod.noted.as_ref() != Some(&note) {
            pod.noted = Some(note.clone());
            self.act(Action::Note(note));
        }
    }
}

impl Pod {
    /// Goes on from what an earlier life of the agent wrote down.
    pub(crate) fn recall(&mut self, note: PodNote) {
        self.since = note.since;
        let known = |&(kind, holds, since)| PodCondition {
            kind,
            holds,
            reason: String::new(),
            message: String::new(),
            since,
            generation: 0,
        };
        self.shown.conditions = note.conditions.iter().map(known).collect();
        for run in &note.runs {
            if let Some(track) = self.tracks.get_mut(&run.container) {
                track.probes.recall(run.clone());
            }
        }
        self.noted = Some(note);
    }
}
