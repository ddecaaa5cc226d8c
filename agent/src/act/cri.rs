//! The runtime's operations as the executor wants them.

use std::sync::Arc;
use std::time::Duration;

use beelet_core::event::{Done, LinuxResources, OpError, PodOp};

use super::pod_ops::PodRuntime;
use crate::runtime::{ContainerStart, ExecError, ExecOutput, NodeEnv, Runtime};

/// [`Runtime`] with what of the node goes into pods.
#[derive(Clone, Debug)]
pub struct CriRuntime {
    /// The client.
    pub runtime: Arc<Runtime>,
    /// The node.
    pub node: Arc<NodeEnv>,
}

impl PodRuntime for CriRuntime {
    async fn perform(&self, what: &PodOp) -> Result<Done, OpError> {
        match what {
            PodOp::StartSandbox { spec, cgroup, attempt } => {
                self.runtime.start_sandbox(&self.node, spec, cgroup, *attempt).await
            }
            PodOp::EnsureImage { image, pull } => self.runtime.ensure_image(image, *pull).await,
            PodOp::StartContainer { spec, container, attempt, sandbox_id, pod_ip, cgroup, linux } => {
                let attempt = *attempt;
                let start = ContainerStart { spec, container, attempt, sandbox_id, pod_ip, cgroup, linux };
                self.runtime.start_container(&self.node, &start).await
            }
            PodOp::StopContainers { ids, grace } => self.runtime.stop_containers(ids, *grace).await,
            PodOp::RemoveContainers { ids } => self.runtime.remove_containers(ids).await,
            PodOp::RemoveSandboxes { ids } => self.runtime.remove_sandboxes(ids).await,
            // These are of cgroups and files; the executor does them.
            PodOp::Prepare { .. } | PodOp::Cleanup { .. } | PodOp::Resize { .. } => Ok(Done::Ok),
        }
    }

    async fn update_container(&self, id: &str, linux: &LinuxResources) -> Result<(), OpError> {
        self.runtime.update_resources(id, linux).await.map(drop)
    }

    async fn exec(&self, id: &str, command: &[String], timeout: Duration) -> Result<ExecOutput, ExecError> {
        self.runtime.exec(id, command, timeout).await
    }
}
