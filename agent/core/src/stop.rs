//! How containers are stopped: in which order, after which hook, in which time.
//!
//! Problem: a pod that goes has one time for all that is to be done (hooks, signals, one sidecar after the other), may be told to hurry,
//! and may be found half stopped by an agent that did not begin it. Approach: the state [`PodState::Terminating`] has one deadline, which
//! only ever comes nearer and is written down; from what still runs follows what is told to stop now, and with how much time.
//!
//! Terms: the *grace* of a stop is what is left of that time. The *hook* is `lifecycle.preStop`, which takes from the grace.
//!
//! Rules: pkg/kubelet/kuberuntime/kuberuntime_container.go (killContainer, setTerminationGracePeriod) and pkg/kubelet/pod_workers.go
//! (calculateEffectiveGracePeriod), release 1.36: all hooks begin at once, also those of sidecars, whose signal waits for their turn
//! ([`restart::stage`]); without any grace no hook is run; between the signal and the kill there are 2 s at least.
//! Other than upstream: a sidecar's signal waits for the hooks of all containers that are told with it.
//!
//! Properties (tested): a deadline never moves away; a hook that was done is not done again for the same run.

use serde::{Deserialize, Serialize};

use crate::event::{Action, ContainerFact, PodOp};
use crate::pod::{Pod, PodState, Step};
use crate::restart;
use crate::spec::{ContainerSpec, Hook, ProbeKind, RestartPolicy};
use crate::units::{Micros, Now};
use crate::why::Why;

/// Between the signal to stop and the kill a container has this long at least (minimumGracePeriodInSeconds).
pub const LEAST_GRACE: Micros = Micros::secs(2);
/// A pod's own grace period counts as this long at least (calculateEffectiveGracePeriod).
const LEAST_POD_GRACE: Micros = Micros::secs(1);

/// What is left between the signal and the kill when a hook has `spent` so much of the grace.
#[must_use]
pub fn after_hook(grace: Micros, spent: Micros) -> Micros {
    (grace - spent).max(LEAST_GRACE)
}

/// One container that is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The runtime's id.
    pub id: String,
    /// The container's name.
    pub name: String,
    /// Done first, for at most the grace.
    pub hook: Option<Hook>,
    /// It is told to stop as well; else its turn comes later.
    pub signal: bool,
}

/// Why one container is stopped while the others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// That probe of it failed.
    Probe(ProbeKind),
    /// Its hook `postStart` failed.
    PostStart,
}

impl Pod {
    /// The state of a pod that has to go from now on. If it has to go already, its time only gets shorter.
    #[must_use]
    pub fn terminating(&self, why: Why, now: Now) -> PodState {
        let grace = why.grace().unwrap_or(self.spec.termination_grace.max(LEAST_POD_GRACE));
        let mut deadline = now.mono + grace;
        if let PodState::Terminating { deadline: before, .. } = self.state {
            deadline = deadline.min(before);
        }
        if let Some(until) = self.until {
            deadline = deadline.min(now.mono + (until - now.wall));
        }
        PodState::Terminating { why, deadline, told: 0 }
    }

    /// The state of a pod that has ended, and is tidied away again.
    #[must_use]
    pub fn tidying(&self, now: Now) -> PodState {
        match &self.state {
            PodState::Terminal(end) => self.terminating(Why::of(end), now),
            state => state.clone(),
        }
    }

    /// Has its deadline written down, if it came nearer or is new.
    pub(crate) fn note_deadline(&mut self, now: Now) -> Option<Action> {
        let PodState::Terminating { deadline, .. } = self.state else { return None };
        let until = now.wall + (deadline - now.mono);
        if self.foreign || self.until.is_some_and(|before| before <= until) {
            return None;
        }
        self.until = Some(until);
        Some(Action::Going { uid: self.spec.uid.clone(), until: self.until })
    }

    /// The run of a container that is to be stopped by itself: its id, and why.
    pub(crate) fn faulty(&self, name: &str) -> Option<(&str, Fault)> {
        if let Some((run, kind)) = self.failed_probe(name) {
            return Some((run, Fault::Probe(kind)));
        }
        let (run, _) = self.running(name)?;
        self.tracks.get(name).filter(|track| track.hook_failed == run).map(|_| (run, Fault::PostStart))
    }

    /// Stops a container that is at fault. The others go on.
    pub(crate) fn plan_stop_of_one(&self) -> Option<PodOp> {
        self.spec.all_containers().find_map(|container| {
            let (run, fault) = self.faulty(&container.name)?;
            let own = match fault {
                Fault::Probe(kind) => container.probes.get(kind).and_then(|probe| probe.grace),
                Fault::PostStart => None,
            };
            let grace = own.unwrap_or(self.spec.termination_grace);
            Some(self.stop(vec![self.stop_of(self.fact(run)?, grace, true)], grace))
        })
    }

    /// All of a pod that goes: containers first, then sandboxes.
    pub(crate) fn plan_termination(&self, why: &Why, deadline: Micros, told: usize, now: Now) -> Step {
        // The first stage of which something lives; without time to end all of them are one.
        let stage_of = |c: &ContainerFact| restart::stage(&self.spec, &c.name);
        let untold = |c: &&ContainerFact| stage_of(c) >= told;
        if let Some(stage) = self.live_containers().filter(untold).map(stage_of).min() {
            let grace = deadline - now.mono;
            let together = |c: &ContainerFact| grace == Micros::ZERO || stage_of(c) == stage;
            let stops = self.live_containers().filter(untold).map(|c| self.stop_of(c, grace, together(c)));
            let stops = stops.filter(|stop| stop.signal || stop.hook.is_some()).collect();
            return self.after_trouble(now, || Step::Do(self.stop(stops, grace)));
        }
        if !self.sandboxes.is_empty() {
            let ids = self.sandboxes.iter().map(|s| s.id.clone()).collect();
            return self.after_trouble(now, || Step::Do(PodOp::RemoveSandboxes { ids }));
        }
        Step::Become(PodState::Cleaning { why: why.clone() })
    }

    fn fact(&self, id: &str) -> Option<&ContainerFact> {
        self.containers.iter().find(|c| c.id == id)
    }

    fn stop_of(&self, fact: &ContainerFact, grace: Micros, signal: bool) -> Stop {
        let done = self.tracks.get(&fact.name).is_some_and(|track| track.pre_stopped == fact.id);
        let hook = self.spec.container(&fact.name).and_then(|c| c.lifecycle.pre_stop.as_deref());
        let hook = hook.filter(|_| !done && grace > Micros::ZERO).cloned();
        Stop { id: fact.id.clone(), name: fact.name.clone(), hook, signal }
    }

    fn stop(&self, stops: Vec<Stop>, grace: Micros) -> PodOp {
        PodOp::StopContainers { stops, grace, ip: self.ready_sandbox().map(|s| s.ip.clone()).unwrap_or_default() }
    }

    /// What to say of containers that an operation begins to stop: of each run once for the same reason.
    pub(crate) fn tell_of_stops(&mut self, stops: &[Stop]) -> Vec<(String, String)> {
        let live = self.state.is_live();
        let about: Vec<(String, String)> = if live {
            stops.iter().map(|stop| (stop.name.clone(), stop.id.clone())).collect()
        } else {
            // Who waits for its turn is stopping as well.
            self.live_containers().map(|c| (c.name.clone(), c.id.clone())).collect()
        };
        let mut said = Vec::new();
        for (name, id) in about {
            let fault = self.faulty(&name).map(|(_, fault)| fault).filter(|_| live);
            let message = match fault {
                Some(Fault::Probe(kind)) => {
                    let never = |c: &ContainerSpec| restart::policy(&self.spec, c) == RestartPolicy::Never;
                    let never = self.spec.container(&name).is_some_and(never);
                    let (kind, again) = (kind.as_str().to_lowercase(), if never { "" } else { ", will be restarted" });
                    format!("Container {name} failed {kind} probe{again}")
                }
                Some(Fault::PostStart) => "FailedPostStartHook".to_owned(),
                None => format!("Stopping container {name}"),
            };
            if let Some(track) = self.tracks.get_mut(&name) {
                if matches!(fault, Some(Fault::Probe(_))) {
                    track.stopped_by_probe.clone_from(&id);
                }
                if !live && std::mem::replace(&mut track.stop_told, id.clone()) == id {
                    continue;
                }
            }
            said.push((name, message));
        }
        said
    }

    /// Takes note of hooks that were done.
    pub(crate) fn on_hooks_done(&mut self, stops: &[Stop]) {
        for stop in stops.iter().filter(|stop| stop.hook.is_some()) {
            if let Some(track) = self.tracks.get_mut(&stop.name) {
                track.pre_stopped.clone_from(&stop.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::OpId;
    use crate::node::NodeConfig;
    use crate::spec::{PodSpec, PodUid};
    use crate::world::World;

    #[test]
    fn a4_7c_a_stop_under_way_is_told_anew_if_there_is_less_time_now_and_only_then() {
        let (uid, now) = (PodUid::from("u"), Now { mono: Micros::secs(100), wall: Micros::secs(1_000) });
        for (given, left, anew) in [(600, 600, false), (20, 20, true), (0, 0, true)] {
            let mut world = World::new(NodeConfig::default());
            let spec = PodSpec { termination_grace: Micros::secs(600), ..PodSpec::unknown(uid.clone()) };
            let mut pod = Pod::new(Arc::new(spec), now);
            pod.state = pod.terminating(Why::Removed, now);
            pod.in_flight = Some((OpId(1), "stop_containers"));
            assert_eq!(
                pod.note_deadline(now),
                Some(Action::Going { uid: uid.clone(), until: Some(Micros::secs(1_600)) })
            );
            let next = pod.terminating(Why::evicted("m", Micros::secs(given)), now);
            let until = |grace| match pod.terminating(Why::evicted("m", Micros::secs(grace)), now) {
                PodState::Terminating { deadline, .. } => deadline,
                other => panic!("{other:?}"),
            };
            assert_eq!((until(9_000), until(600)), (Micros::secs(700), Micros::secs(700)), "it only shrinks");
            world.pods.insert(uid.clone(), pod);
            world.go(&uid, next, now);
            let is = |action: &Action| matches!(action, Action::Cancel { .. });
            assert_eq!(world.out.iter().any(is), anew, "{given}");
            let until = world.out.iter().find_map(|action| match action {
                Action::Going { until, .. } => *until,
                _ => None,
            });
            assert_eq!(until, anew.then_some(Micros::secs(1_000 + left)), "{given}");
        }
    }
}
