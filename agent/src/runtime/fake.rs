//! A runtime that keeps its sandboxes and containers in memory, behind a real unix socket. For tests.
//!
//! It keeps containerd's rules that matter to a client: names are reserved, stopping and removing what is gone succeeds or
//! answers NotFound as told, a method it does not have answers Unimplemented.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use beelet_proto::cri;
use beelet_proto::cri::image_service_server::{ImageService, ImageServiceServer};
use beelet_proto::cri::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use futures::stream::{self, Stream, StreamExt};
use tokio::net::UnixListener;
use tokio::sync::broadcast;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::client::lock;

/// What the fake has, and how it is to behave.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) sandboxes: BTreeMap<String, cri::PodSandbox>,
    pub(super) containers: BTreeMap<String, cri::ContainerStatus>,
    /// The sandbox of each container.
    pub(super) homes: BTreeMap<String, String>,
    pub(super) images: BTreeMap<String, cri::Image>,
    /// Names held by something that is not listed, with its id: what a crash in the middle leaves.
    pub(super) reserved: BTreeMap<String, String>,
    pub(super) pull_error: Option<Status>,
    /// Who pulled, "" for nobody.
    pub(super) pulled_by: Vec<String>,
    /// The only one whom the registry knows, if it asks.
    pub(super) registry_user: Option<String>,
    pub(super) start_error: Option<Status>,
    /// Stop and remove answer NotFound for what is gone.
    pub(super) strict: bool,
    pub(super) no_events: bool,
    /// The status of these is never told.
    pub(super) hangs: std::collections::BTreeSet<String>,
    /// Calls, in order.
    pub(super) calls: Vec<String>,
    pub(super) sandbox_configs: Vec<cri::PodSandboxConfig>,
    pub(super) updates: Vec<cri::UpdateContainerResourcesRequest>,
    pub(super) stats: Vec<cri::ContainerStats>,
    /// `None`: the call `Status` is not there.
    pub(super) groups_policy: Option<bool>,
    /// `None`: the call is not there.
    pub(super) filesystems: Option<cri::ImageFsInfoResponse>,
    next: u32,
}

impl World {
    fn id(&mut self, kind: &str) -> String {
        self.next += 1;
        format!("{kind}{}", self.next)
    }

    pub(super) fn count(&self, call: &str) -> usize {
        self.calls.iter().filter(|made| made.split(' ').next() == Some(call)).count()
    }

    fn gone(&self, what: &str) -> Result<(), Status> {
        if self.strict { Err(Status::not_found(format!("{what}: not found"))) } else { Ok(()) }
    }
}

/// The server; it can be killed and started again with the same world.
pub(super) struct Fake {
    pub(super) world: Arc<Mutex<World>>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
    dir: tempfile::TempDir,
    server: Option<tokio::runtime::Runtime>,
}

#[derive(Clone)]
struct Service {
    world: Arc<Mutex<World>>,
    events: broadcast::Sender<cri::ContainerEventResponse>,
}

impl Service {
    async fn hang(&self, id: &str) {
        let hangs = lock(&self.world).hangs.contains(id);
        if hangs {
            std::future::pending::<()>().await;
        }
    }
}

impl Fake {
    pub(super) fn start() -> Self {
        let mut fake = Self {
            world: Arc::default(),
            events: broadcast::channel(64).0,
            dir: tempfile::tempdir().expect("a folder for the socket"),
            server: None,
        };
        fake.resume();
        fake
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("cri.sock")
    }

    pub(super) fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Serves again.
    pub(super) fn resume(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime for the server");
        let listener = std::os::unix::net::UnixListener::bind(self.socket()).expect("the socket");
        listener.set_nonblocking(true).expect("the socket");
        let service = Service { world: self.world.clone(), events: self.events.clone() };
        runtime.spawn(async move {
            let listener = UnixListener::from_std(listener).expect("the socket");
            let incoming = stream::unfold(listener, |listener| async move {
                let accepted = listener.accept().await.map(|(stream, _)| stream);
                Some((accepted, listener))
            });
            let server = Server::builder()
                .add_service(RuntimeServiceServer::new(service.clone()))
                .add_service(ImageServiceServer::new(service));
            server.serve_with_incoming(incoming).await
        });
        self.server = Some(runtime);
    }

    /// Breaks every connection and stops listening, as a killed process does.
    pub(super) fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.shutdown_background();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    pub(super) fn emit(&self) {
        // Nobody listening is no fault.
        let _ = self.events.send(cri::ContainerEventResponse::default());
    }

    pub(super) fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut lock(&self.world))
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.kill();
    }
}

fn reserved(kind: &str, name: &str, holder: &str) -> Status {
    Status::unknown(format!("failed to reserve {kind} name {name:?}: name {name:?} is reserved for {holder:?}"))
}

fn lacks<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("unknown method"))
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("{what} is missing"))
}

fn matches(
    labels: &std::collections::HashMap<String, String>,
    wanted: &std::collections::HashMap<String, String>,
) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<cri::VersionRequest>) -> Result<Response<cri::VersionResponse>, Status> {
        lock(&self.world).calls.push("Version".to_owned());
        Ok(Response::new(cri::VersionResponse { runtime_name: "fake".to_owned(), ..Default::default() }))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<cri::RunPodSandboxRequest>,
    ) -> Result<Response<cri::RunPodSandboxResponse>, Status> {
        let mut world = lock(&self.world);
        world.calls.push("RunPodSandbox".to_owned());
        let config = request.into_inner().config.ok_or_else(|| missing("config"))?;
        let metadata = config.metadata.clone().ok_or_else(|| missing("metadata"))?;
        let name = format!("{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt);
        let listed = world.sandboxes.values().find(|s| s.metadata.as_ref() == Some(&metadata)).map(|s| s.id.clone());
        if let Some(holder) = world.reserved.get(&name).cloned().or(listed) {
            return Err(reserved("sandbox", &name, &holder));
        }
        let id = world.id("sandbox");
        let sandbox = cri::PodSandbox {
            id: id.clone(),
            metadata: Some(metadata),
            created_at: 5_000_000_000,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            ..Default::default()
        };
        world.sandboxes.insert(id.clone(), sandbox);
        world.sandbox_configs.push(config);
        Ok(Response::new(cri::RunPodSandboxResponse { pod_sandbox_id: id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<cri::StopPodSandboxRequest>,
    ) -> Result<Response<cri::StopPodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let mut world = lock(&self.world);
        world.calls.push(format!("StopPodSandbox {id}"));
        match world.sandboxes.get_mut(&id) {
            Some(sandbox) => sandbox.set_state(cri::PodSandboxState::SandboxNotready),
            None => world.gone(&id)?,
        }
        Ok(Response::new(Default::default()))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<cri::RemovePodSandboxRequest>,
    ) -> Result<Response<cri::RemovePodSandboxResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        let mut world = lock(&self.world);
        world.calls.push(format!("RemovePodSandbox {id}"));
        let held = world.reserved.len();
        world.reserved.retain(|_, holder| *holder != id);
        if world.sandboxes.remove(&id).is_none() && held == world.reserved.len() {
            world.gone(&id)?;
        }
        let inside: Vec<String> = world.homes.iter().filter(|(_, home)| **home == id).map(|(c, _)| c.clone()).collect();
        for container in inside {
            world.containers.remove(&container);
        }
        Ok(Response::new(Default::default()))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<cri::PodSandboxStatusRequest>,
    ) -> Result<Response<cri::PodSandboxStatusResponse>, Status> {
        let id = request.into_inner().pod_sandbox_id;
        self.hang(&id).await;
        let mut world = lock(&self.world);
        world.calls.push(format!("PodSandboxStatus {id}"));
        let sandbox = world.sandboxes.get(&id).ok_or_else(|| Status::not_found("no such sandbox"))?;
        let status = cri::PodSandboxStatus {
            id,
            state: sandbox.state,
            network: Some(cri::PodSandboxNetworkStatus { ip: "10.0.0.7".to_owned(), additional_ips: Vec::new() }),
            ..Default::default()
        };
        let info = [(
            "info".to_owned(),
            r#"{"image":"registry.k8s.io/pause:3.10","config":{"linux":{"cgroup_parent":"/kubepods/podu1"}}}"#
                .to_owned(),
        )];
        Ok(Response::new(cri::PodSandboxStatusResponse { status: Some(status), info: info.into() }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<cri::ListPodSandboxRequest>,
    ) -> Result<Response<cri::ListPodSandboxResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut world = lock(&self.world);
        world.calls.push("ListPodSandbox".to_owned());
        let wanted = |s: &&cri::PodSandbox| {
            (filter.id.is_empty() || filter.id == s.id) && matches(&s.labels, &filter.label_selector)
        };
        let items = world.sandboxes.values().filter(wanted).cloned().collect();
        Ok(Response::new(cri::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<cri::CreateContainerRequest>,
    ) -> Result<Response<cri::CreateContainerResponse>, Status> {
        let mut world = lock(&self.world);
        world.calls.push("CreateContainer".to_owned());
        let request = request.into_inner();
        let config = request.config.ok_or_else(|| missing("config"))?;
        let sandbox_config = request.sandbox_config.ok_or_else(|| missing("sandbox_config"))?;
        let log_path = format!("{}/{}", sandbox_config.log_directory, config.log_path);
        world.sandbox_configs.push(sandbox_config);
        let metadata = config.metadata.clone().ok_or_else(|| missing("metadata"))?;
        let name = format!("{}_{}_{}", metadata.name, request.pod_sandbox_id, metadata.attempt);
        if let Some(holder) = world.reserved.get(&name).cloned() {
            return Err(reserved("container", &name, &holder));
        }
        let id = world.id("container");
        let status = cri::ContainerStatus {
            id: id.clone(),
            metadata: Some(metadata),
            image: config.image,
            labels: config.labels,
            annotations: config.annotations,
            log_path,
            resources: Some(cri::ContainerResources { linux: config.linux.and_then(|linux| linux.resources) }),
            ..Default::default()
        };
        world.containers.insert(id.clone(), status);
        world.homes.insert(id.clone(), request.pod_sandbox_id);
        Ok(Response::new(cri::CreateContainerResponse { container_id: id }))
    }

    async fn start_container(
        &self,
        request: Request<cri::StartContainerRequest>,
    ) -> Result<Response<cri::StartContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let mut world = lock(&self.world);
        world.calls.push(format!("StartContainer {id}"));
        if let Some(error) = world.start_error.clone() {
            return Err(error);
        }
        let container = world.containers.get_mut(&id).ok_or_else(|| Status::not_found("no such container"))?;
        if container.state() != cri::ContainerState::ContainerCreated {
            return Err(Status::unknown("container is not in created state"));
        }
        container.set_state(cri::ContainerState::ContainerRunning);
        container.started_at = 7_000_000_000;
        Ok(Response::new(Default::default()))
    }

    async fn stop_container(
        &self,
        request: Request<cri::StopContainerRequest>,
    ) -> Result<Response<cri::StopContainerResponse>, Status> {
        let request = request.into_inner();
        let mut world = lock(&self.world);
        world.calls.push(format!("StopContainer {} {}", request.container_id, request.timeout));
        match world.containers.get_mut(&request.container_id) {
            Some(container) => {
                container.set_state(cri::ContainerState::ContainerExited);
                container.finished_at = 9_000_000_000;
                container.exit_code = 143;
                container.reason = "Error".to_owned();
            }
            None => world.gone(&request.container_id)?,
        }
        Ok(Response::new(Default::default()))
    }

    async fn remove_container(
        &self,
        request: Request<cri::RemoveContainerRequest>,
    ) -> Result<Response<cri::RemoveContainerResponse>, Status> {
        let id = request.into_inner().container_id;
        let mut world = lock(&self.world);
        world.calls.push(format!("RemoveContainer {id}"));
        world.reserved.retain(|_, holder| *holder != id);
        if world.containers.remove(&id).is_none() {
            world.gone(&id)?;
        }
        Ok(Response::new(Default::default()))
    }

    async fn list_containers(
        &self,
        request: Request<cri::ListContainersRequest>,
    ) -> Result<Response<cri::ListContainersResponse>, Status> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut world = lock(&self.world);
        world.calls.push("ListContainers".to_owned());
        let listed = world.containers.values().map(|c| cri::Container {
            id: c.id.clone(),
            pod_sandbox_id: world.homes.get(&c.id).cloned().unwrap_or_default(),
            metadata: c.metadata.clone(),
            image: c.image.clone(),
            state: c.state,
            labels: c.labels.clone(),
            annotations: c.annotations.clone(),
            created_at: c.created_at,
            ..Default::default()
        });
        let containers =
            listed.filter(|c| filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == c.pod_sandbox_id).collect();
        Ok(Response::new(cri::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<cri::ContainerStatusRequest>,
    ) -> Result<Response<cri::ContainerStatusResponse>, Status> {
        let id = request.into_inner().container_id;
        self.hang(&id).await;
        let mut world = lock(&self.world);
        world.calls.push(format!("ContainerStatus {id}"));
        let status = world.containers.get(&id).cloned().ok_or_else(|| Status::not_found("no such container"))?;
        Ok(Response::new(cri::ContainerStatusResponse { status: Some(status), info: Default::default() }))
    }

    async fn update_container_resources(
        &self,
        request: Request<cri::UpdateContainerResourcesRequest>,
    ) -> Result<Response<cri::UpdateContainerResourcesResponse>, Status> {
        let request = request.into_inner();
        let mut world = lock(&self.world);
        let container = world.containers.get_mut(&request.container_id);
        let container = container.ok_or_else(|| Status::not_found("no such container"))?;
        container.resources = Some(cri::ContainerResources { linux: request.linux.clone() });
        world.updates.push(request);
        Ok(Response::new(Default::default()))
    }

    async fn status(&self, _: Request<cri::StatusRequest>) -> Result<Response<cri::StatusResponse>, Status> {
        let mut world = lock(&self.world);
        let Some(supplemental_groups_policy) = world.groups_policy else { return lacks() };
        world.calls.push("Status".to_owned());
        let features = Some(cri::RuntimeFeatures { supplemental_groups_policy });
        let handler = |name: &str, recursive_read_only_mounts| cri::RuntimeHandler {
            name: name.to_owned(),
            features: Some(cri::RuntimeHandlerFeatures { recursive_read_only_mounts }),
        };
        let runtime_handlers =
            vec![handler("other", !supplemental_groups_policy), handler("", supplemental_groups_policy)];
        Ok(Response::new(cri::StatusResponse { features, runtime_handlers, ..cri::StatusResponse::default() }))
    }

    async fn runtime_config(
        &self,
        _: Request<cri::RuntimeConfigRequest>,
    ) -> Result<Response<cri::RuntimeConfigResponse>, Status> {
        lacks()
    }

    async fn list_container_stats(
        &self,
        _: Request<cri::ListContainerStatsRequest>,
    ) -> Result<Response<cri::ListContainerStatsResponse>, Status> {
        let mut world = lock(&self.world);
        world.calls.push("ListContainerStats".to_owned());
        Ok(Response::new(cri::ListContainerStatsResponse { stats: world.stats.clone() }))
    }

    async fn exec_sync(
        &self,
        request: Request<cri::ExecSyncRequest>,
    ) -> Result<Response<cri::ExecSyncResponse>, Status> {
        let request = request.into_inner();
        lock(&self.world).calls.push(format!(
            "ExecSync {} {} {}",
            request.container_id,
            request.cmd.join(" "),
            request.timeout
        ));
        self.hang(&request.cmd.join(" ")).await;
        match request.cmd.first().map(String::as_str) {
            Some("slow") => Err(Status::deadline_exceeded("timeout 1s exceeded")),
            Some("missing") => Err(Status::unknown("no such program")),
            Some("fail") => {
                Ok(Response::new(cri::ExecSyncResponse { stdout: b"out ".into(), stderr: b"err".into(), exit_code: 3 }))
            }
            _ => Ok(Response::new(cri::ExecSyncResponse { stdout: b"fine".into(), ..Default::default() })),
        }
    }

    async fn reopen_container_log(
        &self,
        request: Request<cri::ReopenContainerLogRequest>,
    ) -> Result<Response<cri::ReopenContainerLogResponse>, Status> {
        let id = request.into_inner().container_id;
        let mut world = lock(&self.world);
        world.calls.push(format!("ReopenContainerLog {id}"));
        match world.containers.get(&id).map(cri::ContainerStatus::state) {
            Some(cri::ContainerState::ContainerRunning) => Ok(Response::new(Default::default())),
            Some(_) => Err(Status::unknown("container is not running")),
            None => Err(Status::not_found("no such container")),
        }
    }

    type GetContainerEventsStream = Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(
        &self,
        _: Request<cri::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        if lock(&self.world).no_events {
            return Err(Status::unimplemented("unknown method GetContainerEvents"));
        }
        lock(&self.world).calls.push("GetContainerEvents".to_owned());
        let events = stream::unfold(self.events.subscribe(), |mut events| async move {
            let event = events.recv().await.map_err(|error| Status::data_loss(error.to_string()));
            Some((event, events))
        });
        Ok(Response::new(events.boxed()))
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        _: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let mut world = lock(&self.world);
        world.calls.push("ListImages".to_owned());
        Ok(Response::new(cri::ListImagesResponse { images: world.images.values().cloned().collect() }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let id = request.into_inner().image.unwrap_or_default().image;
        let mut world = lock(&self.world);
        world.calls.push(format!("RemoveImage {id}"));
        if world.hangs.contains(&id) {
            return Err(Status::internal("the image cannot be removed"));
        }
        world.images.retain(|_, image| image.id != id);
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let mut world = lock(&self.world);
        world.calls.push("ImageFsInfo".to_owned());
        world.filesystems.clone().map_or_else(lacks, |answer| Ok(Response::new(answer)))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let mut world = lock(&self.world);
        world.calls.push("ImageStatus".to_owned());
        let image = world.images.get(&name).cloned();
        Ok(Response::new(cri::ImageStatusResponse { image, info: Default::default() }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let (name, user) = (request.image.unwrap_or_default().image, request.auth.unwrap_or_default().username);
        let mut world = lock(&self.world);
        world.calls.push("PullImage".to_owned());
        world.pulled_by.push(user.clone());
        if world.registry_user.as_ref().is_some_and(|known| *known != user) {
            return Err(Status::unknown(format!("{user:?} is not known")));
        }
        if let Some(error) = world.pull_error.clone() {
            return Err(error);
        }
        world.images.insert(name.clone(), cri::Image { id: name.clone(), ..Default::default() });
        Ok(Response::new(cri::PullImageResponse { image_ref: name }))
    }
}
