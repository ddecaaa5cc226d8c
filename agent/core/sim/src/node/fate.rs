//! Agents that die at a certain action, and what is left in the end.
//!
//! An *act* is an action that changes the node: an operation of a pod, a kill, a note that is written or removed.

use beelet_core::event::{Action, CANCELLED, ContainerFactState, Event, OpId, PodOp};
use beelet_core::restart;
use beelet_core::snapshot::ContainerState;
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;

use super::{Item, Operation, START, Sim};
use crate::invariants::Violation;
use crate::runtime::{Runtime, error};
use crate::workload::Curve;
use crate::{Failure, story};

/// What becomes of the act at which an agent dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was not done.
    NotDone,
    /// It was done, and nobody heard of it.
    Unheard,
    /// The runtime does it so long after the agent's death. What is not the runtime's is not done.
    Late(Micros),
}

/// How long an agent is away that died of its fate.
const AWAY: Micros = Micros::millis(100);

impl Sim {
    /// Agents are to die at these acts: each counted from 1, from the start or the death before.
    pub fn die(&mut self, deaths: &[(u64, Fate)]) {
        self.deaths = deaths.to_vec();
    }

    /// Deaths that have not come.
    #[must_use]
    pub fn spared(&self) -> usize {
        self.deaths.len()
    }

    /// Acts since the start or the last death.
    #[must_use]
    pub fn acts(&self) -> u64 {
        self.acts
    }

    /// Whether the agent dies now, with what becomes of this action.
    pub(super) fn dies_of(&mut self, action: &Action) -> bool {
        let notes = matches!(action, Action::Remember(_) | Action::Forget(_) | Action::Going { .. });
        let acts = notes || matches!(action, Action::Pod { .. } | Action::Kill { .. });
        // Afterwards there is no time for the next agent to come to rest.
        if !acts || self.now > START + self.scenario.disturbed {
            return false;
        }
        self.acts += 1;
        let Some((_, fate)) = self.deaths.first().copied().filter(|(at, _)| *at == self.acts) else { return false };
        self.deaths.remove(0);
        self.acts = 0;
        match (fate, action) {
            (Fate::NotDone, _) => self.note("the agent dies before the first of these".to_owned()),
            (Fate::Unheard, Action::Pod { uid, op, what }) => {
                self.note(format!("{uid}: {}, and the agent dies", story::operation(what)));
                let operation = self.operation(uid, *op, what);
                self.effect(operation);
            }
            (Fate::Unheard, action) => {
                self.note("the agent dies after the first of these".to_owned());
                self.act(action.clone());
            }
            (Fate::Late(after), Action::Pod { uid, op, what }) if Runtime::is_asked_by(what) => {
                let operation = self.operation(uid, *op, what);
                self.put(after, Item::Effect(Box::new(operation)));
            }
            (Fate::Late(_), _) => {}
        }
        self.checker.disturbed(self.now);
        self.crash(AWAY);
        true
    }

    fn operation(&self, uid: &PodUid, op: OpId, what: &PodOp) -> Operation {
        let (life, uid, what) = (self.life, uid.clone(), what.clone());
        Operation { life, uid, op, what, survives: true, fails_before: false, fails_after: false }
    }

    /// Gives up a pull or a stop. A stop that was told already goes on without its last resort, as a runtime's does whose caller has gone.
    pub(super) fn cancel(&mut self, uid: &PodUid) {
        let life = self.life;
        let found = self.queue.values().find_map(|item| match item {
            Item::Effect(o) if o.life == life && o.uid == *uid => Some(o.op),
            Item::Deliver(of, Event::Done { uid: whose, op, .. }) if *of == life && whose == uid => Some(*op),
            _ => None,
        });
        let Some((op, ids)) = self.long.remove(uid).filter(|(op, _)| found == Some(*op)) else { return };
        self.queue.retain(|_, item| match item {
            Item::Effect(o) => o.life != life || o.op != op,
            Item::Deliver(of, Event::Done { op: done, .. }) => *of != life || *done != op,
            Item::End { id, code: 137 } => !ids.contains(id),
            _ => true,
        });
        let result = Err(error(CANCELLED, "given up"));
        self.put(Micros::millis(1), Item::Deliver(life, Event::Done { uid: uid.clone(), op, result }));
    }

    /// What there is of pods, in the runtime, in cgroups and in notes: without ids and times, and without how often something ran that
    /// runs again and again.
    #[must_use]
    pub fn rest(&self) -> Vec<String> {
        let specs = &self.wanted.0;
        let loops = |uid: &PodUid, name: &str| {
            let pod = specs.iter().find(|pod| pod.uid == *uid);
            let container = pod.and_then(|pod| Some((pod, pod.container(name)?)));
            container.is_some_and(|(pod, container)| {
                Curve::of(container).end().is_some_and(|(_, code)| restart::runs_again(pod, container, code))
            })
        };
        let mut rest = Vec::new();
        for pod in self.world.iter().flat_map(|world| world.snapshot(self.clock()).pods) {
            rest.push(format!("{}: {} {:?} {}", pod.spec.uid, pod.state, pod.phase, pod.reason));
            for c in pod.containers.iter().filter(|c| !loops(&pod.spec.uid, &c.name)) {
                let state = match &c.state {
                    ContainerState::Waiting { reason, .. } => reason.clone(),
                    ContainerState::Running { .. } => "runs".to_owned(),
                    // How it takes a stop is drawn anew in each run.
                    ContainerState::Terminated(exit) if [137, 143].contains(&exit.code) => "stopped".to_owned(),
                    ContainerState::Terminated(exit) => format!("ended {} {}", exit.code, exit.reason),
                };
                rest.push(format!("{}/{}: {state}, {} restarts", pod.spec.uid, c.name, c.restarts));
            }
        }
        rest.extend(self.runtime.sandboxes.values().map(|s| format!("sandbox of {}, ready: {}", s.uid, s.ready)));
        for c in self.runtime.containers.values().filter(|c| !loops(&c.uid, &c.name)) {
            let runs = matches!(c.state, ContainerFactState::Running { .. });
            rest.push(format!("container {}/{}#{}, runs: {runs}", c.uid, c.name, c.attempt));
        }
        rest.extend(self.kernel.groups.keys().map(|uid| format!("cgroup of {uid}")));
        rest.extend(self.remembered.values().map(|end| format!("note of {}: {:?} {}", end.uid, end.phase, end.reason)));
        rest.sort();
        rest
    }

    /// The failure of a run that broke something that the checker does not know.
    #[must_use]
    pub fn broken(&self, invariant: &'static str, what: String) -> Box<Failure> {
        self.failure(Violation { invariant, what })
    }
}
