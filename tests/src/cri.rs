//! A bare CRI client: what containerd has, asked past the agent.

use std::path::PathBuf;
use std::time::Duration;

use beelet_proto::cri;
use beelet_proto::cri::image_service_client::ImageServiceClient;
use beelet_proto::cri::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

use crate::Bed;

/// A pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub uid: String,
    /// It runs.
    pub ready: bool,
}

/// A container, also one that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// Its sandbox's id.
    pub sandbox: String,
    /// Its number among the runs of this container, from 0.
    pub attempt: u32,
    /// It runs.
    pub running: bool,
}

/// A connection to a bed's containerd; most calls panic with what containerd said when they fail.
#[derive(Debug)]
pub struct Cri {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    /// containerd's socket.
    pub socket: PathBuf,
}

impl Cri {
    /// Connects at the first call.
    ///
    /// # Panics
    /// If there can be no client at all.
    #[must_use]
    pub fn new(bed: &Bed) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a tokio runtime");
        let entered = runtime.enter();
        let endpoint = Endpoint::from_shared(format!("unix://{}", bed.socket.display())).expect("a socket's address");
        let channel = endpoint.timeout(Duration::from_secs(120)).connect_lazy();
        drop(entered);
        Self { runtime, channel, socket: bed.socket.clone() }
    }

    /// Makes any call of the runtime service.
    ///
    /// # Panics
    /// If it fails.
    pub fn call<T, F: Future<Output = Result<tonic::Response<T>, tonic::Status>>>(
        &self,
        call: impl FnOnce(RuntimeServiceClient<Channel>) -> F,
    ) -> T {
        self.try_call(call).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes any call of the runtime service.
    ///
    /// # Errors
    /// What containerd says.
    pub fn try_call<T, F: Future<Output = Result<tonic::Response<T>, tonic::Status>>>(
        &self,
        call: impl FnOnce(RuntimeServiceClient<Channel>) -> F,
    ) -> Result<T, String> {
        let client = RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20);
        let answer = self.runtime.block_on(call(client));
        let said = |status: tonic::Status| format!("containerd says {:?}: {}", status.code(), status.message());
        answer.map(tonic::Response::into_inner).map_err(said)
    }

    /// Runs what makes its own calls, many at a time perhaps, to its end.
    pub fn block_on<T, F: Future<Output = T>>(&self, calls: impl FnOnce(Channel) -> F) -> T {
        self.runtime.block_on(calls(self.channel.clone()))
    }

    /// The tags of all images.
    ///
    /// # Panics
    /// If containerd does not say.
    #[must_use]
    pub fn images(&self) -> Vec<String> {
        let mut client = ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(16 << 20);
        let listed = self.runtime.block_on(client.list_images(cri::ListImagesRequest::default()));
        let images = listed.unwrap_or_else(|status| panic!("containerd says {status}")).into_inner().images;
        images.into_iter().flat_map(|image| image.repo_tags).collect()
    }

    /// All sandboxes.
    ///
    /// # Panics
    /// If containerd does not say.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Sandbox> {
        self.try_sandboxes().unwrap_or_else(|error| panic!("{error}"))
    }

    /// All sandboxes.
    ///
    /// # Errors
    /// What containerd says.
    pub fn try_sandboxes(&self) -> Result<Vec<Sandbox>, String> {
        let request = cri::ListPodSandboxRequest::default();
        let answer = self.try_call(|mut c| async move { c.list_pod_sandbox(request).await })?;
        let view = |item: cri::PodSandbox| {
            let meta = item.metadata.clone().unwrap_or_default();
            let ready = item.state == cri::PodSandboxState::SandboxReady as i32;
            Sandbox { id: item.id, pod: meta.name, namespace: meta.namespace, uid: meta.uid, ready }
        };
        Ok(answer.items.into_iter().map(view).collect())
    }

    /// All containers, also those that have ended, the oldest run of each first.
    ///
    /// # Panics
    /// If containerd does not say.
    #[must_use]
    pub fn containers(&self) -> Vec<Container> {
        self.try_containers().unwrap_or_else(|error| panic!("{error}"))
    }

    /// All containers, also those that have ended, the oldest run of each first.
    ///
    /// # Errors
    /// What containerd says.
    pub fn try_containers(&self) -> Result<Vec<Container>, String> {
        let request = cri::ListContainersRequest::default();
        let answer = self.try_call(|mut c| async move { c.list_containers(request).await })?;
        let view = |item: cri::Container| {
            let meta = item.metadata.clone().unwrap_or_default();
            let label = |key: &str| item.labels.get(key).cloned().unwrap_or_default();
            Container {
                pod: label("io.kubernetes.pod.name"),
                uid: label("io.kubernetes.pod.uid"),
                sandbox: item.pod_sandbox_id.clone(),
                running: item.state == cri::ContainerState::ContainerRunning as i32,
                name: meta.name,
                attempt: meta.attempt,
                id: item.id.clone(),
            }
        };
        let mut all: Vec<Container> = answer.containers.into_iter().map(view).collect();
        all.sort_by(|a, b| (&a.pod, &a.name, a.attempt).cmp(&(&b.pod, &b.name, b.attempt)));
        Ok(all)
    }

    /// The running containers of a pod, by its manifest's name or its full one.
    ///
    /// # Panics
    /// If containerd does not say.
    #[must_use]
    pub fn running(&self, pod: &str) -> Vec<Container> {
        let full = format!("{pod}-{}", crate::NODE);
        self.containers().into_iter().filter(|c| c.running && (c.pod == pod || c.pod == full)).collect()
    }

    /// The container's first process, as this machine counts; `None` if it does not run.
    ///
    /// # Panics
    /// If containerd does not know the container.
    #[must_use]
    pub fn pid(&self, id: &str) -> Option<i32> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = self.call(|mut c| async move { c.container_status(request).await });
        let info: serde_json::Value = serde_json::from_str(answer.info.get("info")?).ok()?;
        info["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
    }
}
