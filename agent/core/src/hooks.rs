//! The hook of a container that has just started.
//!
//! Problem: nothing else of a pod may be started before the hook `postStart` is done, and it may take long, fail, or hang. Approach: it is
//! an operation of its own after the start, given up when the pod has to go. A failure has the container stopped by itself, and it is run
//! again by the rules for its end (pkg/kubelet/kuberuntime/kuberuntime_container.go, startContainer, release 1.36).
//!
//! Property (tested): the hook of a run is begun once at most. One that an agent was killed over is not done again, as upstream.

use crate::event::{CANCELLED, ContainerFact, OpError, PodOp};
use crate::pod::Pod;
use crate::spec::PodUid;
use crate::units::Now;
use crate::world::World;

impl Pod {
    /// What is to be done for a run that has started.
    pub(crate) fn plan_post_start(&self, run: &ContainerFact) -> Option<PodOp> {
        let due = self.tracks.get(&run.name).is_some_and(|track| track.post_start == run.id);
        due.then(|| PodOp::PostStart {
            spec: self.spec.clone(),
            container: run.name.clone(),
            id: run.id.clone(),
            ip: self.ready_sandbox().map(|s| s.ip.clone()).unwrap_or_default(),
        })
    }

    /// A run of a container was started: its hook is to be done.
    pub(crate) fn owe_post_start(&mut self, container: &str, run: &str) {
        let hook = self.spec.container(container).and_then(|c| c.lifecycle.post_start.as_ref());
        if let Some(track) = self.tracks.get_mut(container).filter(|_| hook.is_some()) {
            track.post_start = run.to_owned();
        }
    }

    /// It is done, in whatever way.
    pub(crate) fn post_start_done(&mut self, container: &str) {
        if let Some(track) = self.tracks.get_mut(container) {
            track.post_start.clear();
        }
    }
}

impl World {
    /// The hook of that run failed.
    pub(crate) fn on_post_start_failed(&mut self, uid: &PodUid, container: &str, run: &str, error: &OpError, now: Now) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.post_start_done(container);
        // It was given up: its pod has to go.
        if error.reason == CANCELLED {
            return;
        }
        if let Some(track) = pod.tracks.get_mut(container) {
            track.hook_failed = run.to_owned();
            track.trouble = Some(error.clone());
        }
        // The message may hold what a server answered: it is shown with the container only.
        let message = "PostStartHook failed".to_owned();
        self.say(uid, Some(container.to_owned()), now, true, "FailedPostStartHook", message);
    }
}
