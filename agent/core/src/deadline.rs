//! Pods that may run for so long only: `activeDeadlineSeconds`.
//!
//! The time counts from when the pod was first seen (`status.startTime`), whatever it did since, and a pull or a hook does not hold it up
//! (pkg/kubelet/active_deadline.go, release 1.36). Then the pod has its grace period, and stays `Failed`.

use crate::pod::{Pod, PodState};
use crate::spec::PodUid;
use crate::units::{Micros, Now};
use crate::why::Why;
use crate::world::World;

/// The kubelet's reason and message.
const REASON: &str = "DeadlineExceeded";
const MESSAGE: &str = "Pod was active on the node longer than the specified deadline";

impl Pod {
    /// When its time is over (wall clock); `None` where that is not watched.
    fn active_until(&self) -> Option<Micros> {
        let active = self.state.is_live() && self.state != PodState::Observed && !self.foreign;
        self.spec.active_deadline.filter(|_| active).map(|time| self.since + time)
    }
}

impl World {
    /// Sends a pod away whose time is over. Returns when to look again (monotonic).
    pub(crate) fn plan_deadline(&mut self, uid: &PodUid, now: Now) -> Option<Micros> {
        let pod = self.pods.get(uid)?;
        let until = pod.active_until()?;
        if now.wall < until {
            return Some(now.mono + (until - now.wall));
        }
        let why = Why::Failed { reason: REASON.to_owned(), message: MESSAGE.to_owned(), grace: None, disruption: None };
        let next = pod.terminating(why, now);
        self.go(uid, next, now);
        self.say(uid, None, now, false, REASON, MESSAGE.to_owned());
        None
    }
}
