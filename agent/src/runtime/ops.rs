//! What the core's operations do in the runtime.
//!
//! Problem: the agent may die between a call and its answer, and will then order the same again. Approach: each operation looks
//! first whether its result is there already; names (pod UID, container name, attempt) make that certain. What is half made
//! under the same name is removed, and the operation tried once more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use beelet_core::dns::Told;
use beelet_core::event::{ContainerFactState, Done, Kept, LinuxResources, OpError, Pulled, SandboxFact};
use beelet_core::security::RuntimeFeatures;
use beelet_core::spec::{PodSpec, PullPolicy};
use beelet_core::units::{Bytes, Micros};
use beelet_proto::cri;
use futures::future::join_all;
use tokio::time::Instant;

use super::client::Runtime;
use super::env::Given;
use super::error::RuntimeError;
use super::facts::state_of;
use super::spec_to_cri::{
    ImageUser, NodeEnv, changed_resources, container_config, json, needs_image_user, resolver, sandbox_config,
    wants_recursive_read_only, whole_secs,
};
use super::{names, paths, reference};
use crate::images::Puller;
use crate::images::keyring::Credentials;
use crate::logs::links;

/// How often a name that is taken is tried again. The holder may be a call of an earlier life of the agent that the runtime is
/// still busy with.
const TRIES: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(300);

/// A run of a container, to be started.
#[derive(Clone, Copy, Debug)]
pub struct ContainerStart<'a> {
    /// The pod.
    pub spec: &'a PodSpec,
    /// The container's name.
    pub container: &'a str,
    /// Counts the runs of this container.
    pub attempt: u32,
    /// The sandbox.
    pub sandbox_id: &'a str,
    /// The sandbox's address, "" for none.
    pub pod_ip: &'a str,
    /// The pod's cgroup, relative to the hierarchies' roots.
    pub cgroup: &'a str,
    /// What the runtime is told.
    pub linux: &'a LinuxResources,
    /// What of the node is mounted for each of the container's mounts, in their order (`crate::volumes::Volumes::sources`).
    pub sources: &'a [PathBuf],
}

impl Runtime {
    /// Sees that the pod's sandbox of this attempt is ready. Ends with [`Done::Sandbox`] and what people are told of it.
    ///
    /// # Errors
    /// `FailedCreatePodSandBox`.
    pub async fn start_sandbox(
        &self,
        node: &NodeEnv,
        spec: &PodSpec,
        given: &BTreeMap<String, Kept>,
        cgroup: &str,
        attempt: u32,
    ) -> Result<(Done, Vec<Told>), OpError> {
        let failed = |error: &dyn std::fmt::Display| OpError {
            reason: "FailedCreatePodSandBox".to_owned(),
            message: format!("Failed to create pod sandbox: {error}"),
        };
        let (dns, told) = resolver(node, spec).map_err(|error| failed(&error))?;
        let mut config = sandbox_config(node, spec, cgroup, attempt, dns).map_err(|error| failed(&error))?;
        config.annotations.insert(names::GIVEN.to_owned(), json(given));
        let made = self.ready_sandbox(&config).await.map_err(|error| failed(&error))?;
        Ok((Done::Sandbox(made), told))
    }

    /// Sees that the image is there; a pull waits for its turn. Ends with [`Done::Image`]. `pulling` is called when a pull begins.
    ///
    /// # Errors
    /// `InvalidImageName`, `ImageInspectError`, `ErrImageNeverPull`, `ErrImagePull`, `RegistryUnavailable`,
    /// `SignatureValidationFailed`.
    pub async fn ensure_image(
        &self,
        puller: &Puller,
        image: &str,
        pull: PullPolicy,
        pulling: impl FnOnce() + Send,
    ) -> Result<Done, OpError> {
        let fail = |reason: &str, message: String| Err(OpError { reason: reason.to_owned(), message });
        if let Some(fault) = reference::fault(image) {
            let message =
                format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {fault}");
            return fail("InvalidImageName", message);
        }
        let present = match self.image(image).await {
            Ok(found) => found.is_some(),
            Err(error) => return fail("ImageInspectError", format!("Failed to inspect image {image:?}: {error}")),
        };
        match (present, pull) {
            (true, PullPolicy::IfNotPresent | PullPolicy::Never) => return Ok(Done::Image { pulled: None }),
            (false, PullPolicy::Never) => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                return fail("ErrImageNeverPull", message);
            }
            (_, PullPolicy::Always) | (false, PullPolicy::IfNotPresent) => {}
        }
        // A program that hangs holds up nobody else's turn.
        let found = puller.credentials(image).await;
        let asked = Instant::now();
        let _turn = puller.turn().await;
        // The one before may have brought it.
        if pull == PullPolicy::IfNotPresent && matches!(self.image(image).await, Ok(Some(_))) {
            return Ok(Done::Image { pulled: None });
        }
        if !puller.may_begin() {
            return fail("ErrImagePull", "pull QPS exceeded".to_owned());
        }
        pulling();
        let began = Instant::now();
        if let Err(text) = self.pull_with_any(found, image).await {
            // Runtimes tell these two by a word at the head of the message (k8s.io/cri-api/pkg/errors).
            for (reason, why) in [
                ("RegistryUnavailable", "the registry is unavailable"),
                ("SignatureValidationFailed", "the signature validation failed"),
            ] {
                if let Some(rest) = text.strip_prefix(reason) {
                    return fail(reason, format!("image pull failed for {image} because {why}{rest}"));
                }
            }
            return fail("ErrImagePull", text);
        }
        let size = self.image(image).await.ok().flatten().map_or(0, |image| image.size);
        let micros = |since: Instant| Micros(u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX));
        Ok(Done::Image { pulled: Some(Pulled { took: micros(began), in_all: micros(asked), size: Bytes(size) }) })
    }

    /// Pulls with one set of credentials after the other, and without any where there is none. Else the runtime's words.
    async fn pull_with_any(&self, found: Vec<Credentials>, image: &str) -> Result<(), String> {
        let auth = |credentials: Credentials| {
            let Credentials { username, password } = credentials;
            Some(cri::AuthConfig { username, password, ..cri::AuthConfig::default() })
        };
        let tries = if found.is_empty() { vec![None] } else { found.into_iter().map(auth).collect() };
        let mut failures: Vec<String> = Vec::new();
        for auth in tries {
            let request = cri::PullImageRequest { image: Some(image_spec(image)), auth, sandbox_config: None };
            let asked = Instant::now();
            let answer = self.images().pull_image(request).await;
            self.operations().note("PullImage", asked.elapsed(), answer.is_ok());
            match self.judge("PullImage", answer) {
                Ok(_) => return Ok(()),
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures.dedup();
        Err(if failures.len() == 1 { failures.remove(0) } else { format!("[{}]", failures.join(", ")) })
    }

    /// Makes and starts a container, or finds it made or started. Ends with [`Done::Container`].
    ///
    /// # Errors
    /// `CreateContainerConfigError`, `CreateContainerError`, `RunContainerError`.
    pub async fn start_container(
        &self,
        node: &NodeEnv,
        start: &ContainerStart<'_>,
        given: &Given,
    ) -> Result<Done, OpError> {
        let user = match start.spec.container(start.container) {
            Some(container) if needs_image_user(container) => {
                let image = self.image(&container.image).await.map_err(|e| e.because("ImageInspectError"))?;
                image.map(|image| ImageUser { uid: image.uid.map(|uid| uid.value), name: image.username })
            }
            _ => None,
        };
        let features = match start.spec.container(start.container) {
            Some(container) if wants_recursive_read_only(container) => {
                self.features().await.map_err(|e| e.because("CreateContainerConfigError"))?
            }
            _ => RuntimeFeatures::default(),
        };
        let config = container_config(node, start, user.as_ref(), given, features)?;
        // The sandbox has its resolver; a file of the node's that was broken since is no reason not to start.
        let dns = resolver(node, start.spec).map(|(dns, _)| dns).unwrap_or_default();
        let attempt = self.sandbox_attempt(start.sandbox_id);
        let sandbox_config = sandbox_config(node, start.spec, start.cgroup, attempt, dns)
            .map_err(|error| OpError { reason: "CreateContainerConfigError".to_owned(), message: error.to_string() })?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: start.sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let (id, state) = self.made_container(&request).await.map_err(|e| e.because("CreateContainerError"))?;
        let log = paths::log_dir(&node.pod_logs_dir, start.spec).join(paths::log_path(start.container, start.attempt));
        self.log_begins(&id, log.clone());
        if state == cri::ContainerState::ContainerCreated {
            let request = cri::StartContainerRequest { container_id: id.clone() };
            self.call("StartContainer", self.timeout, self.pods().start_container(request))
                .await
                .map_err(|e| e.because("RunContainerError"))?;
        }
        let link = links::name(&start.spec.name, &start.spec.namespace, start.container, &id);
        self.link_log(log, link).await;
        // It runs. When it was started can be learnt later too, so a failure here is none of the container.
        let started = match self.container_status(&id).await.map(|(status, _)| state_of(status)) {
            Ok(ContainerFactState::Running { started }) => started,
            Ok(ContainerFactState::Exited(exit)) => exit.started,
            _ => Micros::ZERO,
        };
        Ok(Done::Container { id, started })
    }

    /// Stops a container: its stop signal, after `grace` SIGKILL. No grace is SIGKILL at once.
    ///
    /// # Errors
    /// `KillContainerError`, naming the container.
    pub async fn stop_container(&self, id: &str, grace: Micros) -> Result<(), OpError> {
        let secs = whole_secs(grace);
        let timeout = i64::try_from(secs).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout };
        let within = self.timeout.saturating_add(Duration::from_secs(secs));
        let answer = self.call("StopContainer", within, self.pods().stop_container(request)).await;
        gone_is_done(answer)
            .map_err(|error| OpError { reason: "KillContainerError".to_owned(), message: format!("{id}: {error}") })
    }

    /// Removes dead containers.
    ///
    /// # Errors
    /// `RemoveContainerError`, naming each that could not be removed.
    pub async fn remove_containers(&self, ids: &[String]) -> Result<Done, OpError> {
        let remove = async |id: &String| self.remove_container(id).await;
        all_of("RemoveContainerError", ids, join_all(ids.iter().map(remove)).await)
    }

    /// Stops and removes sandboxes with everything in them.
    ///
    /// # Errors
    /// `KillPodSandboxError`, naming each that could not be removed.
    pub async fn remove_sandboxes(&self, ids: &[String]) -> Result<Done, OpError> {
        let remove = async |id: &String| self.remove_sandbox(id).await;
        all_of("KillPodSandboxError", ids, join_all(ids.iter().map(remove)).await)
    }

    /// Gives a running container other resources.
    ///
    /// # Errors
    /// `ResizeContainerInPlaceError`.
    pub async fn update_resources(&self, id: &str, linux: &LinuxResources) -> Result<Done, OpError> {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(changed_resources(linux)),
            ..cri::UpdateContainerResourcesRequest::default()
        };
        self.call("UpdateContainerResources", self.timeout, self.pods().update_container_resources(request))
            .await
            .map_err(|e| e.because("ResizeContainerInPlaceError"))?;
        self.resources_changed(id, linux.resources);
        Ok(Done::Ok)
    }

    /// The image, if it is there.
    async fn image(&self, image: &str) -> Result<Option<cri::Image>, RuntimeError> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        match self.call("ImageStatus", self.timeout, self.images().image_status(request)).await {
            Ok(answer) => Ok(answer.image),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ready sandbox of this config's names: found, or made.
    async fn ready_sandbox(&self, config: &cri::PodSandboxConfig) -> Result<SandboxFact, RuntimeError> {
        let metadata = config.metadata.clone().unwrap_or_default();
        let mut tries = 0;
        loop {
            if let Some(adopted) = self.adopt_sandbox(&metadata).await? {
                return self.sandbox_fact(adopted).await;
            }
            tries += 1;
            let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
            // Like the kubelet, twice the time of other calls: the network plugins work in it.
            let made = self.call("RunPodSandbox", self.timeout * 2, self.pods().run_pod_sandbox(request)).await;
            match made {
                Ok(answer) => return self.new_sandbox(&answer.pod_sandbox_id).await,
                Err(error) => match error.reserved_for() {
                    Some(holder) if tries < TRIES => {
                        self.remove_sandbox(holder).await?;
                        tokio::time::sleep(BETWEEN_TRIES).await;
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// The ready sandbox of these names. One that is down is removed: its name is needed.
    async fn adopt_sandbox(&self, wanted: &cri::PodSandboxMetadata) -> Result<Option<cri::PodSandbox>, RuntimeError> {
        let label_selector = [(names::POD_UID.to_owned(), wanted.uid.clone())].into();
        let filter = cri::PodSandboxFilter { label_selector, ..cri::PodSandboxFilter::default() };
        for found in self.list_sandboxes(filter).await? {
            if found.metadata.as_ref() != Some(wanted) {
                continue;
            }
            if found.annotations.get(names::MANAGED).is_none_or(|value| *value != self.instance) {
                let message = format!("sandbox {} of this pod was made by somebody else", found.id);
                return Err(RuntimeError::Rejected { code: tonic::Code::AlreadyExists, message });
            }
            if found.state() == cri::PodSandboxState::SandboxReady {
                tracing::info!(sandbox = found.id, pod = wanted.name, "adopted a sandbox");
                return Ok(Some(found));
            }
            self.remove_sandbox(&found.id).await?;
        }
        Ok(None)
    }

    async fn new_sandbox(&self, id: &str) -> Result<SandboxFact, RuntimeError> {
        let filter = cri::PodSandboxFilter { id: id.to_owned(), ..cri::PodSandboxFilter::default() };
        let message = format!("sandbox {id} went away as soon as it was made");
        let listed = self.list_sandboxes(filter).await?.into_iter().find(|found| found.id == id);
        self.sandbox_fact(listed.ok_or(RuntimeError::NotFound { message })?).await
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(self.call("StopPodSandbox", self.timeout, self.pods().stop_pod_sandbox(stop)).await)?;
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        gone_is_done(self.call("RemovePodSandbox", self.timeout, self.pods().remove_pod_sandbox(remove)).await)
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        // Before the container, which is removed again if the agent dies in between.
        self.remove_log(id).await;
        self.log_ends(id);
        let request = cri::RemoveContainerRequest { container_id: id.to_owned() };
        gone_is_done(self.call("RemoveContainer", self.timeout, self.pods().remove_container(request)).await)
    }

    /// The container of this request's names, with its state: found, or made.
    async fn made_container(
        &self,
        request: &cri::CreateContainerRequest,
    ) -> Result<(String, cri::ContainerState), RuntimeError> {
        use cri::ContainerState::{ContainerCreated, ContainerUnknown};
        let wanted = request.config.as_ref().and_then(|config| config.metadata.clone()).unwrap_or_default();
        let mut tries = 0;
        loop {
            let filter = cri::ContainerFilter {
                pod_sandbox_id: request.pod_sandbox_id.clone(),
                ..cri::ContainerFilter::default()
            };
            let found = self.list_containers(filter).await?.into_iter();
            let found = found.filter(|c| c.pod_sandbox_id == request.pod_sandbox_id);
            if let Some(container) = found.into_iter().find(|c| c.metadata.as_ref() == Some(&wanted)) {
                if container.state() != ContainerUnknown {
                    tracing::info!(container = container.id, name = wanted.name, "adopted a container");
                    return Ok((container.id.clone(), container.state()));
                }
                self.remove_container(&container.id).await?;
            }
            tries += 1;
            let made = self.call("CreateContainer", self.timeout, self.pods().create_container(request.clone())).await;
            match made {
                Ok(answer) => return Ok((answer.container_id, ContainerCreated)),
                Err(error) => match error.reserved_for() {
                    Some(holder) if tries < TRIES => {
                        self.remove_container(holder).await?;
                        tokio::time::sleep(BETWEEN_TRIES).await;
                    }
                    _ => return Err(error),
                },
            }
        }
    }
}

fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.to_owned(), user_specified_image: image.to_owned(), ..cri::ImageSpec::default() }
}

/// What is not there need not be stopped or removed.
fn gone_is_done<T>(answer: Result<T, RuntimeError>) -> Result<(), RuntimeError> {
    match answer {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// One result for many objects.
fn all_of(reason: &str, ids: &[String], results: Vec<Result<(), RuntimeError>>) -> Result<Done, OpError> {
    let failures = ids.iter().zip(results).filter_map(|(id, result)| result.err().map(|e| format!("{id}: {e}")));
    let failures: Vec<String> = failures.collect();
    if failures.is_empty() {
        return Ok(Done::Ok);
    }
    Err(OpError { reason: reason.to_owned(), message: failures.join("; ") })
}
