//! Asking the containers of the node's pods, and what their answers change.
//!
//! The rules are in [`crate::probe`]; here they meet the pods. Beside a kubelet nobody is asked: its probes are its own.

use crate::event::{Action, ContainerFactState};
use crate::pod::{Pod, PodState};
use crate::probe::{Answer, Life};
use crate::spec::{PodUid, ProbeKind};
use crate::units::{Micros, Now};
use crate::world::World;

/// An answer as it comes from the edge.
pub(crate) struct Answered {
    pub(crate) container: String,
    pub(crate) run: String,
    pub(crate) kind: ProbeKind,
    pub(crate) answer: Answer,
    pub(crate) took: Micros,
}

impl World {
    /// Asks what is due of a pod. Returns when to look again (monotonic).
    pub(crate) fn plan_probes(&mut self, uid: &PodUid, now: Now) -> Option<Micros> {
        let (agent, pod) = (self.born, self.pods.get_mut(uid)?);
        if pod.foreign || pod.spec.all_containers().all(|c| c.probes.is_empty()) {
            return None;
        }
        let going = match pod.state {
            // One that has ended, or is as good as ended, is asked nothing.
            PodState::Terminating { ref why, .. } if why.end().is_none() => true,
            ref state if state.is_live() => false,
            _ => return None,
        };
        let ip = pod.ready_sandbox().map(|s| s.ip.clone()).unwrap_or_default();
        let (mut wake, mut questions) = (None::<Micros>, Vec::new());
        let spec = std::sync::Arc::clone(&pod.spec);
        for container in spec.all_containers() {
            let run = pod.running(&container.name).map(|(id, started)| (id.to_owned(), started));
            let run = run.as_ref().map(|(id, started)| (id.as_str(), *started));
            let Some(track) = pod.tracks.get_mut(&container.name) else { continue };
            let (due, next) = track.probes.plan(container, Life { uid: uid.as_str(), run, going, agent }, now);
            wake = [wake, next].into_iter().flatten().min();
            for (kind, probe) in due.into_iter().filter_map(|kind| Some((kind, container.probes.get(kind)?))) {
                questions.push(Action::Probe {
                    uid: uid.clone(),
                    container: container.name.clone(),
                    run: run.map(|(id, _)| id.to_owned()).unwrap_or_default(),
                    kind,
                    handler: probe.handler.clone(),
                    timeout: probe.timeout,
                    ip: ip.clone(),
                });
            }
        }
        for question in questions {
            self.act(question);
        }
        wake
    }

    pub(crate) fn on_probe(&mut self, uid: &PodUid, answered: Answered, now: Now) {
        let Answered { container, run, kind, answer, took } = answered;
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let (going, spec) = (!pod.state.is_live(), std::sync::Arc::clone(&pod.spec));
        let Some((spec, track)) = spec.container(&container).zip(pod.tracks.get_mut(&container)) else { return };
        let news = track.probes.answer(spec, &run, kind, &answer, took, going, now);
        self.probe_news += u64::from(news.changed);
        if let Some((reason, message)) = news.tell {
            self.say(uid, Some(container), now, true, reason, message);
        }
    }

    /// How often a container became ready or started, or ceased to be, by an answer: who publishes looks at this.
    #[must_use]
    pub fn probe_news(&self) -> u64 {
        self.probe_news
    }
}

impl Pod {
    /// The run of a container, if it runs: its id, and when it was started (wall clock).
    #[must_use]
    pub fn running(&self, name: &str) -> Option<(&str, Micros)> {
        let fact = self.latest(name).filter(|fact| self.early_end(fact).is_none())?;
        match fact.state {
            ContainerFactState::Running { started } => Some((&fact.id, started)),
            _ => None,
        }
    }

    /// The run of a container that a probe has failed, while it runs: its id, and which probe.
    #[must_use]
    pub fn failed_probe(&self, name: &str) -> Option<(&str, ProbeKind)> {
        let (run, _) = self.running(name)?;
        Some((run, self.tracks.get(name)?.probes.failed(run)?))
    }
}
