//! One operation of a pod, from its beginning to its end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use beelet_core::event::{CgroupKnobs, Done, Event, LinuxResources, OpError, PodCgroup, PodOp};
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use tokio::sync::mpsc::UnboundedSender;

use super::killer::Killer;
use super::knobs::Knobs;
use crate::blocking::blocking;
use crate::cgroup::{self, Tree};
use crate::runtime::{ExecError, ExecOutput};
use crate::volumes::{self, Volumes};

/// How long the processes of a pod that is removed may take to die after SIGKILL.
const DIE: Duration = Duration::from_secs(10);
/// How long its empty cgroups may stay busy.
const EMPTY: Duration = Duration::from_secs(5);

/// What the executor needs of a container runtime. Tests have another one.
pub trait PodRuntime: Send + Sync + 'static {
    /// An operation on sandboxes, images or containers: all but `Prepare`, `PostStart`, `StopContainers`,
    /// `Cleanup` and `Resize`.
    fn perform(&self, uid: &PodUid, what: &PodOp) -> impl Future<Output = Result<Done, OpError>> + Send;

    /// Gives a running container other resources.
    fn update_container(&self, id: &str, linux: &LinuxResources) -> impl Future<Output = Result<(), OpError>> + Send;

    /// Tells a container to stop; after `grace` it is killed. One that is not there is stopped.
    fn stop_container(&self, id: &str, grace: Micros) -> impl Future<Output = Result<(), OpError>> + Send;

    /// Runs a command in a running container.
    fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Duration,
    ) -> impl Future<Output = Result<ExecOutput, ExecError>> + Send;
}

/// How long an operation may take before it counts as failed. Longer than the runtime client's own limits, which give better
/// messages; this one is for what hangs in spite of them. A stop has its grace period and two minutes.
#[must_use]
pub fn time_limit(what: &PodOp) -> Duration {
    let minutes = |n: u64| Duration::from_secs(n * 60);
    match what {
        // As long as the kubelet waits for volumes (pkg/kubelet/volumemanager, podAttachAndMountTimeout).
        PodOp::Prepare { .. } => Duration::from_secs(123),
        PodOp::StartSandbox { .. } | PodOp::StartContainer { .. } => minutes(6),
        // A pull may be large; the runtime ends one that makes no progress.
        PodOp::EnsureImage { .. } => minutes(60),
        // It goes on until its pod has to go, as upstream.
        PodOp::PostStart { .. } => crate::probe::FOREVER,
        PodOp::StopContainers { grace, .. } => Duration::from_micros(grace.get()).saturating_add(minutes(2)),
        PodOp::RemoveContainers { .. } | PodOp::Cleanup { .. } => minutes(3),
        PodOp::RemoveSandboxes { .. } | PodOp::Resize { .. } => minutes(5),
    }
}

/// The reason of an error for which the operation has none of its own, in the kubelet's words.
pub(super) fn reason(what: &PodOp) -> &'static str {
    match what {
        PodOp::Prepare { .. } => "FailedCreatePodContainer",
        PodOp::StartSandbox { .. } => "FailedCreatePodSandBox",
        PodOp::EnsureImage { .. } => "ErrImagePull",
        PodOp::StartContainer { .. } => "RunContainerError",
        PodOp::PostStart { .. } => "PostStartHookError",
        PodOp::StopContainers { .. } => "KillContainerError",
        PodOp::RemoveContainers { .. } => "RemoveContainerError",
        PodOp::RemoveSandboxes { .. } => "KillPodSandboxError",
        PodOp::Cleanup { .. } => "FailedKillPod",
        PodOp::Resize { .. } => "ResizeError",
    }
}

/// What operations work on.
#[derive(Debug)]
pub(super) struct Context<R> {
    pub(super) tree: Arc<Tree>,
    pub(super) volumes: Arc<Volumes>,
    pub(super) runtime: Arc<R>,
    pub(super) killer: Arc<Killer>,
    pub(super) knobs: Arc<Knobs>,
    /// The node's address, where hooks reach pods in its network.
    pub(super) host_ip: Arc<str>,
    /// Where is told what was noticed of a pod.
    pub(super) events: UnboundedSender<Event>,
}

fn cgroup_error(error: &cgroup::Error) -> OpError {
    OpError { reason: "FailedCreatePodContainer".to_owned(), message: error.to_string() }
}

fn mount_error(error: &volumes::Error) -> OpError {
    OpError { reason: "FailedMount".to_owned(), message: error.to_string() }
}

fn kill_error(message: &dyn ToString) -> OpError {
    OpError { reason: "FailedKillPod".to_owned(), message: message.to_string() }
}

fn resize_error(message: &dyn ToString) -> OpError {
    OpError { reason: "ResizeError".to_owned(), message: message.to_string() }
}

impl<R: PodRuntime> Context<R> {
    /// Does it.
    pub(super) async fn perform(&self, uid: &PodUid, what: PodOp) -> Result<Done, OpError> {
        match what {
            PodOp::Prepare { spec, cgroup } => {
                let (tree, files, path) = (Arc::clone(&self.tree), Arc::clone(&self.volumes), cgroup.path.clone());
                blocking(move || {
                    // First of all, so that a leftover is known for ours wherever the agent is killed.
                    files.mark(&spec).map_err(|e| mount_error(&e))?;
                    tree.ensure(&cgroup).map_err(|e| cgroup_error(&e))?;
                    files.setup(&spec).map_err(|e| mount_error(&e))?;
                    Ok(Done::Prepared { runs: files.runs(&spec) })
                })
                .await
                .inspect(|_| self.arm(&path))
            }
            PodOp::Cleanup { uid: of, cgroup, keep_logs } => {
                debug_assert_eq!(&of, uid);
                self.clean(of, cgroup, keep_logs).await
            }
            PodOp::PostStart { spec, container, id, ip } => self.post_start(uid, &spec, &container, &id, &ip).await,
            PodOp::StopContainers { stops, grace, ip } => self.stop(uid, &stops, grace, &ip).await,
            PodOp::Resize { pod, pod_first, containers, .. } => self.resize(pod, pod_first, containers).await,
            other => {
                if let PodOp::StartContainer { spec, container, attempt, pod_ip, .. } = &other {
                    let (files, spec, ip) = (Arc::clone(&self.volumes), Arc::clone(spec), pod_ip.clone());
                    let (container, attempt) = (container.clone(), *attempt);
                    let made = blocking(move || {
                        files.write_hosts(&spec, &ip)?;
                        files.forget_runs(&spec, &container, attempt)?;
                        files.termination_log(&spec.uid, &container, attempt)
                    });
                    made.await.map_err(|e| mount_error(&e))?;
                }
                if let PodOp::StartSandbox { cgroup, .. } | PodOp::StartContainer { cgroup, .. } = &other {
                    self.arm(cgroup);
                }
                self.runtime.perform(uid, &other).await
            }
        }
    }

    /// A pod that cannot be armed is killed all the same, only a little later.
    fn arm(&self, cgroup: &str) {
        if let Err(error) = self.killer.arm(cgroup) {
            tracing::warn!(cgroup, %error, "cannot open beforehand what a kill needs");
        }
    }

    async fn clean(&self, uid: PodUid, cgroup: String, keep_logs: bool) -> Result<Done, OpError> {
        let (tree, files, path) = (Arc::clone(&self.tree), Arc::clone(&self.volumes), cgroup.clone());
        blocking(move || {
            if !tree.kill_until_empty(&path, DIE).map_err(|e| kill_error(&e))? {
                tracing::warn!(%uid, cgroup = path, "processes of a removed pod do not die");
            }
            tree.remove(&path, EMPTY).map_err(|e| kill_error(&e))?;
            files.teardown(&uid, keep_logs).map_err(|e| kill_error(&e))
        })
        .await?;
        self.killer.disarm(&cgroup);
        self.knobs.gone(cgroup);
        Ok(Done::Ok)
    }

    /// A raise goes from the pod to its containers, a cut the other way: at no moment is a container's limit above its pod's.
    async fn resize(
        &self,
        pod: PodCgroup,
        pod_first: bool,
        containers: Vec<(String, String, LinuxResources)>,
    ) -> Result<Done, OpError> {
        self.refuse_cut_below_use(&pod.path, &pod.knobs, "pod").await?;
        for (id, name, linux) in &containers {
            self.refuse_cut_below_use(&format!("{}/{id}", pod.path), &linux.knobs, name).await?;
        }
        if pod_first {
            self.set(&pod).await?;
        }
        for (id, name, linux) in &containers {
            self.runtime.update_container(id, linux).await?;
            let path = format!("{}/{id}", pod.path);
            self.knobs.resized(path.clone());
            self.verify(path, linux.knobs, name).await?;
        }
        if !pod_first {
            self.set(&pod).await?;
        }
        Ok(Done::Ok)
    }

    async fn set(&self, pod: &PodCgroup) -> Result<(), OpError> {
        let (tree, pod) = (Arc::clone(&self.tree), pod.clone());
        let path = pod.path.clone();
        blocking(move || tree.set(&pod.path, &pod.knobs)).await.map(drop).map_err(|e| resize_error(&e))?;
        self.knobs.resized(path);
        Ok(())
    }

    /// The runtime said yes; the files say whether it did.
    async fn verify(&self, path: String, knobs: CgroupKnobs, container: &str) -> Result<(), OpError> {
        let tree = Arc::clone(&self.tree);
        match blocking(move || tree.verify(&path, &knobs)).await {
            // It ended meanwhile: the next listing tells.
            Err(e) if e.is_gone() => Ok(()),
            checked => checked
                .map_err(|e| resize_error(&format!("container {container}: the new resources did not arrive: {e}"))),
        }
    }

    /// A limit below what is in use and cannot be reclaimed makes the kernel kill. The words are the kubelet's
    /// (pkg/kubelet/kuberuntime/kuberuntime_manager.go, validateMemoryResizeAction).
    async fn refuse_cut_below_use(&self, path: &str, knobs: &CgroupKnobs, whose: &str) -> Result<(), OpError> {
        let Some(limit) = knobs.memory_max else { return Ok(()) };
        let (tree, path) = (Arc::clone(&self.tree), path.to_owned());
        match blocking(move || tree.unreclaimable(&path)).await {
            Ok(used) if used > limit => Err(resize_error(&format!(
                "attempting to set {whose} memory limit ({limit}) below current usage ({used})"
            ))),
            Ok(_) => Ok(()),
            Err(e) if e.is_gone() => Ok(()),
            Err(e) => Err(resize_error(&e)),
        }
    }
}
