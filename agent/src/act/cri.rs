//! The runtime's operations as the executor wants them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use beelet_core::event::{Done, Event, LinuxResources, OpError, PodOp};
use beelet_core::spec::{PodSpec, PodUid};
use beelet_core::units::Micros;
use tokio::io::AsyncReadExt as _;
use tokio::sync::mpsc;

use super::pod_ops::PodRuntime;
use crate::blocking::blocking;
use crate::images::Puller;
use crate::runtime::{ContainerStart, ExecError, ExecOutput, Given, NodeEnv, Runtime, sub_paths};
use crate::volumes::{Objects, Volumes};

/// [`Runtime`] with what of the node goes into pods.
#[derive(Clone, Debug)]
pub struct CriRuntime {
    /// The client.
    pub runtime: Arc<Runtime>,
    /// The node, but for the text of its resolv.conf.
    pub node: Arc<NodeEnv>,
    /// The files of pods.
    pub volumes: Arc<Volumes>,
    /// `resolvConf`, read anew for each pod; `None` where it is "".
    pub resolv_conf: Option<PathBuf>,
    /// Who has ConfigMaps and Secrets.
    pub objects: Arc<dyn Objects>,
    /// The gate of pulls.
    pub puller: Arc<Puller>,
    /// Where it is told what was noticed of a pod.
    pub events: mpsc::UnboundedSender<Event>,
}

/// Of a resolv.conf so many bytes are read (pkg/kubelet/network/dns, maxResolvConfLength: 10 MB).
const MAX_RESOLV_CONF: u64 = 10 << 20;

impl CriRuntime {
    /// The node as it is now.
    async fn node_now(&self) -> std::io::Result<NodeEnv> {
        let mut node = NodeEnv::clone(&self.node);
        if let Some(path) = &self.resolv_conf {
            let named =
                |error: std::io::Error| std::io::Error::new(error.kind(), format!("open {}: {error}", path.display()));
            let file = tokio::fs::File::open(path).await.map_err(named)?;
            let mut text = Vec::new();
            file.take(MAX_RESOLV_CONF).read_to_end(&mut text).await.map_err(named)?;
            node.dns.resolv_conf = Some(String::from_utf8_lossy(&text).into_owned());
        }
        Ok(node)
    }
}

impl CriRuntime {
    /// What the container's variables refer to.
    async fn given(&self, spec: &Arc<PodSpec>, container: &str) -> Given {
        if !spec.container(container).is_some_and(Given::is_needed) {
            return Given::default();
        }
        let (spec, container) = (Arc::clone(spec), container.to_owned());
        let (root, objects) = (self.node.root.clone(), Arc::clone(&self.objects));
        blocking(move || Given::look_up(&spec, &container, &root, &*objects)).await
    }
}

impl PodRuntime for CriRuntime {
    async fn perform(&self, uid: &PodUid, what: &PodOp) -> Result<Done, OpError> {
        match what {
            PodOp::StartSandbox { spec, given, cgroup, attempt } => {
                let node = self.node_now().await.map_err(|error| OpError {
                    reason: "FailedCreatePodSandBox".to_owned(),
                    message: format!("Failed to create pod sandbox: {error}"),
                })?;
                let (done, told) = self.runtime.start_sandbox(&node, spec, given, cgroup, *attempt).await?;
                for (reason, message) in told {
                    // Nobody listens while the agent ends.
                    let _ = self.events.send(Event::Told {
                        uid: spec.uid.clone(),
                        container: None,
                        reason: reason.to_owned(),
                        message,
                    });
                }
                Ok(done)
            }
            PodOp::EnsureImage { image, pull } => {
                let pulling = || {
                    let _ = self.events.send(Event::Pulling { uid: uid.clone(), image: image.clone() });
                };
                self.runtime.ensure_image(&self.puller, image, *pull, pulling).await
            }
            PodOp::StartContainer { spec, container, attempt, sandbox_id, pod_ip, cgroup, linux } => {
                let attempt = *attempt;
                let start =
                    ContainerStart { spec, container, attempt, sandbox_id, pod_ip, cgroup, linux, sources: &[] };
                // What it lacks of the node's names is the sandbox's business, which has it.
                let node = self.node_now().await.unwrap_or_else(|_| NodeEnv::clone(&self.node));
                let given = self.given(spec, container).await;
                let sub_paths = sub_paths(&node, &start, &given)?;
                let (files, spec, container) = (Arc::clone(&self.volumes), Arc::clone(spec), container.clone());
                let sources = blocking(move || files.sources(&spec, &container, &sub_paths)).await;
                let sources = sources.map_err(|error| OpError {
                    reason: "CreateContainerConfigError".to_owned(),
                    message: error.to_string(),
                })?;
                self.runtime.start_container(&node, &ContainerStart { sources: &sources, ..start }, &given).await
            }
            PodOp::RemoveContainers { ids } => self.runtime.remove_containers(ids).await,
            PodOp::RemoveSandboxes { ids } => self.runtime.remove_sandboxes(ids).await,
            // These are of cgroups and files, or more than one call; the executor does them.
            PodOp::Prepare { .. }
            | PodOp::PostStart { .. }
            | PodOp::StopContainers { .. }
            | PodOp::Cleanup { .. }
            | PodOp::Resize { .. } => Ok(Done::Ok),
        }
    }

    async fn update_container(&self, id: &str, linux: &LinuxResources) -> Result<(), OpError> {
        self.runtime.update_resources(id, linux).await.map(drop)
    }

    async fn stop_container(&self, id: &str, grace: Micros) -> Result<(), OpError> {
        self.runtime.stop_container(id, grace).await
    }

    async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput, ExecError> {
        self.runtime.exec(id, command, timeout).await
    }
}
