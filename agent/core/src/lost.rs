//! Runs of containers that the runtime does not have any more.
//!
//! Problem: a runtime that lost its state, or somebody with its command line, takes a run away together with the word of how it
//! ended: a container that may run once only would run twice, and a count of restarts would begin anew. Approach: what was seen
//! running and is not there any more has ended, with the kubelet's code for that (137, `ContainerStatusUnknown`); and what was run
//! before this life of the agent is counted by the logs that it left.
//!
//! Rules: pkg/kubelet/kubelet_pods.go, `convertToAPIContainerStatuses`; pkg/kubelet/kuberuntime/kuberuntime_container.go,
//! `calcRestartCountByLogDir` (release 1.36). Other than upstream, such an end has its times: that of its start, and that at which it
//! was missed.
//!
//! Property (tested): a container that may not run again does not, whether or not its end was seen.

use crate::event::{ContainerFact, ContainerFactState, Exit};
use crate::pod::Pod;
use crate::restart;
use crate::spec::{ContainerSpec, PodUid};
use crate::units::Now;
use crate::world::World;

/// The reason of an end that nobody saw (pkg/kubelet/container, ContainerReasonStatusUnknown).
const REASON: &str = "ContainerStatusUnknown";
/// Its code: killed, which is an error.
const CODE: i32 = 137;

impl World {
    /// These runs were running and are not there any more.
    pub(crate) fn on_lost(&mut self, uid: &PodUid, runs: &[ContainerFact], now: Now) {
        for fact in runs {
            let Some(pod) = self.pods.get_mut(uid) else { return };
            let ContainerFactState::Running { started } = fact.state else { continue };
            let live = pod.state.is_live();
            // The kernel may have told how it ended before the runtime lost it.
            let early = pod.early_end(fact).cloned();
            let newer = pod.latest(&fact.name).is_some_and(|latest| latest.attempt > fact.attempt);
            let Some(track) = pod.tracks.get_mut(&fact.name).filter(|_| !newer && !pod.foreign) else { continue };
            let message = match live {
                true => {
                    "The container could not be located when the pod was deleted.  The container used to be Running"
                }
                false => "The container could not be located when the pod was terminated",
            };
            let exit = early.unwrap_or_else(|| Exit {
                started,
                finished: now.wall,
                code: CODE,
                reason: REASON.to_owned(),
                message: message.to_owned(),
            });
            track.lose(&fact.id, &exit, live, now.mono);
            if live {
                let restarts = track.restarts();
                pod.health.on_exit(&fact.name, &exit, restarts, false, now);
                self.say(uid, Some(fact.name.clone()), now, true, REASON, message.to_owned());
            }
        }
    }

    /// So often each container was run before, by its logs: those of which the runtime knows nothing go on from there.
    pub(crate) fn on_counted(&mut self, uid: &PodUid, runs: Vec<(String, u32)>) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        for (name, count) in runs {
            let known = pod.latest(&name).is_some();
            if let Some(track) = pod.tracks.get_mut(&name).filter(|_| !known) {
                track.next_attempt = track.next_attempt.max(count);
            }
        }
    }
}

impl Pod {
    /// How a main container ended that is not run again, and of whose runs the runtime has none any more.
    pub(crate) fn ended_unseen(&self, container: &ContainerSpec) -> Option<&Exit> {
        if self.latest(&container.name).is_some() || !self.spec.containers.iter().any(|c| c.name == container.name) {
            return None;
        }
        let exit = self.tracks.get(&container.name)?.last_exit.as_ref()?;
        (!restart::runs_again(&self.spec, container, exit.code)).then_some(exit)
    }
}

/// Those that run: what can be lost.
pub(crate) fn running(facts: &[ContainerFact]) -> Vec<ContainerFact> {
    facts.iter().filter(|fact| matches!(fact.state, ContainerFactState::Running { .. })).cloned().collect()
}
