//! What people are told of the steps of a pod's life, in the words of the kubelet's events.
//!
//! Rules: pkg/kubelet/events/event.go, pkg/kubelet/images/image_manager.go, pkg/kubelet/kuberuntime (release 1.36). The kubelet sends
//! its events again at each look and has equal ones counted; here each is told once for each thing that happened.

use crate::event::{CANCELLED, Exit, OpError, PodOp, Pulled};
use crate::spec::PodUid;
use crate::status::{go_duration, pod_words};
use crate::units::Now;
use crate::world::World;

impl World {
    /// A container was made and started.
    pub(crate) fn tell_started(&mut self, uid: &PodUid, container: String, now: Now) {
        self.say(uid, Some(container.clone()), now, false, "Created", "Container created".to_owned());
        self.say(uid, Some(container), now, false, "Started", "Container started".to_owned());
    }

    /// An image is being pulled.
    pub(crate) fn tell_pulling(&mut self, uid: &PodUid, image: &str, now: Now) {
        let Some(pod) = self.pods.get(uid) else { return };
        let lacks = |name: &str| pod.tracks.get(name).is_some_and(|track| !track.image_ready);
        let user = pod.spec.all_containers().find(|c| c.image == image && lacks(&c.name)).map(|c| c.name.clone());
        self.say(uid, user, now, false, "Pulling", format!("Pulling image \"{image}\""));
    }

    /// An image is there; `None`: it was there before.
    pub(crate) fn tell_image(
        &mut self,
        uid: &PodUid,
        container: Option<String>,
        image: &str,
        pulled: Option<Pulled>,
        now: Now,
    ) {
        let message = match pulled {
            Some(Pulled { took, in_all, size }) => format!(
                "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                go_duration(took),
                go_duration(in_all),
                size.get()
            ),
            None => format!("Container image \"{image}\" already present on machine"),
        };
        self.say(uid, container, now, false, "Pulled", message);
    }

    /// The sandbox of a pod whose containers run, or should, is of no use any more.
    pub(crate) fn tell_new_sandbox(&mut self, uid: &PodUid, now: Now) {
        let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
        self.say(uid, None, now, false, "SandboxChanged", message);
    }

    /// A container that ended waits before it is run again, if it `waits`.
    pub(crate) fn tell_back_off(&mut self, uid: &PodUid, container: String, exit: &Exit, waits: bool, now: Now) {
        let Some(pod) = self.pods.get(uid) else { return };
        let again = || {
            let (spec, fact) = (pod.spec.container(&container)?, pod.latest(&container)?);
            Some(pod.runs_again(fact, spec, exit.code))
        };
        if waits && again() == Some(true) {
            let message = format!("Back-off restarting failed container {container} in pod {}", pod_words(&pod.spec));
            self.say(uid, Some(container), now, true, "BackOff", message);
        }
    }

    /// An operation failed. `backs_off`: the image is not asked for again before the kubelet would say that it backs off.
    pub(crate) fn tell_failure(
        &mut self,
        uid: &PodUid,
        container: Option<&String>,
        op: Option<&PodOp>,
        error: &OpError,
        backs_off: bool,
        now: Now,
    ) {
        if error.reason == CANCELLED {
            return;
        }
        let (reason, message) = (error.reason.as_str(), error.message.as_str());
        let plain = |event: &'static str| (event, message.to_owned());
        let (event, text) = match op {
            Some(PodOp::StartSandbox { .. }) => plain("FailedCreatePodSandBox"),
            Some(PodOp::Prepare { .. }) if reason == "FailedMount" => plain("FailedMount"),
            Some(PodOp::Prepare { .. }) => {
                ("FailedCreatePodContainer", format!("unable to ensure pod container exists: {message}"))
            }
            Some(PodOp::Resize { .. }) => plain("ResizeError"),
            Some(PodOp::EnsureImage { image, .. }) => match reason {
                "ErrImageNeverPull" => plain("ErrImageNeverPull"),
                "InvalidImageName" | "ImageInspectError" => plain("InspectFailed"),
                _ => ("Failed", format!("Failed to pull image \"{image}\": {message}")),
            },
            Some(PodOp::StartContainer { .. }) => ("Failed", format!("Error: {message}")),
            Some(_) => ("FailedKillPod", format!("error killing pod: {message}")),
            None => ("Failed", format!("Error: {reason}: {message}")),
        };
        self.say(uid, container.cloned(), now, true, event, text);
        if let Some(PodOp::EnsureImage { image, .. }) = op {
            self.say(uid, container.cloned(), now, true, "Failed", format!("Error: {reason}"));
            if backs_off {
                let message = format!("Back-off pulling image \"{image}\"");
                self.say(uid, container.cloned(), now, false, "BackOff", message);
            }
        }
    }
}
