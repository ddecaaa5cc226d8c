//! A kubelet for programs: make one for a node name, give it pods, take them away.
//!
//! Problem: tests and tools want a node without writing files. Approach: [`Kubelet`] runs the same agent as the binary, with a
//! set of pods in memory for its source; a pod goes through the same checks as one from a file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use beelet_core::snapshot::PodView;
use beelet_core::spec::{API, PodUid};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::agent::{self, AgentError, Handles, Options, PodSource};
use crate::config::Config;
use crate::sources::manifest::{self, ManifestError};
use crate::sources::{Parsed, SourceState};
use crate::volumes::Objects;

/// Why a request of a program cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The pod's specification is not one that can be run.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It cannot be written as JSON.
    #[error("the pod cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// There is a pod of that name.
    #[error("pods \"{0}\" already exists")]
    Exists(String),
    /// There is no pod of that name.
    #[error("pods \"{0}\" not found")]
    NotFound(String),
    /// It did not come to be in time.
    #[error("waited {waited:?} for {what}; it is now: {now}")]
    Timeout {
        /// For what.
        what: String,
        /// How long.
        waited: Duration,
        /// How things are instead.
        now: String,
    },
    /// The agent cannot run.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent's task is gone.
    #[error("the agent has ended")]
    Ended,
}

/// How to make a [`Kubelet`].
#[derive(Clone, Debug)]
pub struct KubeletBuilder {
    options: Options,
}

impl KubeletBuilder {
    /// With these settings.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.options.config = config;
        self
    }

    /// With its files in this folder.
    #[must_use]
    pub fn root(mut self, root: impl Into<PathBuf>) -> Self {
        self.options.root = root.into();
        self
    }

    /// With these eBPF programs.
    #[must_use]
    pub fn bpf_object(mut self, object: impl Into<PathBuf>) -> Self {
        self.options.bpf_object = object.into();
        self
    }

    /// With somebody who has the `ConfigMap`s and `Secret`s that its pods may refer to. Without, a pod that does is refused.
    #[must_use]
    pub fn objects(mut self, objects: impl Objects) -> Self {
        self.options.objects = Some(Arc::new(objects));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// What keeps the agent from running.
    pub async fn start(mut self) -> Result<Kubelet, KubeletError> {
        let (wishes, source) = watch::channel(Arc::new(SourceState { ready: true, ..SourceState::default() }));
        self.options.source = PodSource::Channel(source);
        let (node_name, references) = (self.options.node_name.clone(), self.options.objects.is_some());
        let (stop, (told, started)) = (CancellationToken::new(), oneshot::channel());
        let task = tokio::spawn(agent::run(self.options, Some(told), stop.clone()));
        match started.await {
            Ok(handles) => Ok(Kubelet { node_name, references, wishes, handles, stop, task }),
            Err(_) => match task.await {
                Ok(Err(error)) => Err(error.into()),
                Ok(Ok(())) | Err(_) => Err(KubeletError::Ended),
            },
        }
    }
}

/// A running kubelet.
#[derive(Debug)]
pub struct Kubelet {
    node_name: String,
    references: bool,
    wishes: watch::Sender<Arc<SourceState>>,
    handles: Handles,
    stop: CancellationToken,
    task: JoinHandle<Result<(), AgentError>>,
}

impl Kubelet {
    /// A kubelet for the node of this name, with the kubelet's own defaults.
    #[must_use]
    pub fn builder(node_name: &str) -> KubeletBuilder {
        KubeletBuilder {
            options: Options {
                node_name: node_name.to_owned(),
                node_ip: None,
                source: PodSource::None,
                config: Config::default(),
                root: PathBuf::from("/var/lib/beelet"),
                bpf_object: PathBuf::from("/usr/lib/beelet/beelet-ebpf"),
                beside: false,
                objects: None,
            },
        }
    }

    /// Creates a pod, and returns at once; [`Kubelet::wait_for`] waits until it runs. Like a static pod it gets the node's name
    /// as a suffix of its own; like one of an API server it is turned away for pressure and taints of the node, too.
    ///
    /// # Errors
    /// If the specification cannot be run, or there is a pod of that name.
    pub fn create_pod(&self, pod: &Pod) -> Result<PodUid, KubeletError> {
        let json = serde_json::to_vec(pod)?;
        let mut parsed = manifest::parse_with(
            &json,
            &manifest::From { origin: API, node_name: &self.node_name, references: self.references },
        );
        let Parsed { spec, pod } = parsed.pop().ok_or(KubeletError::Ended)??;
        let name = spec.full_name();
        if self.wishes.borrow().pods.iter().any(|p| p.full_name() == name) {
            return Err(KubeletError::Exists(name));
        }
        let uid = spec.uid.clone();
        self.wishes.send_modify(|state| {
            let state = Arc::make_mut(state);
            state.originals.insert(uid.clone(), pod);
            state.pods.push(spec);
        });
        Ok(uid)
    }

    /// Deletes a pod, and returns at once: it is stopped within its grace period and then removed.
    ///
    /// # Errors
    /// If there is no such pod.
    pub fn delete_pod(&self, uid: &PodUid) -> Result<(), KubeletError> {
        let deleted = self.wishes.send_if_modified(|state| {
            let state = Arc::make_mut(state);
            let before = state.pods.len();
            state.pods.retain(|p| p.uid != *uid);
            state.originals.remove(uid);
            state.pods.len() < before
        });
        if deleted { Ok(()) } else { Err(KubeletError::NotFound(uid.to_string())) }
    }

    /// A pod as it is now; `None` once nothing is left of it.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Option<Arc<PodView>> {
        self.handles.published.current().pods.iter().find(|p| p.uid() == uid).cloned()
    }

    /// Waits until `is_so` holds of the pod.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub async fn wait_for(
        &self,
        uid: &PodUid,
        what: &str,
        limit: Duration,
        is_so: impl Fn(Option<&PodView>) -> bool,
    ) -> Result<(), KubeletError> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let pod = self.pod(uid);
            if is_so(pod.as_deref()) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= end {
                let now =
                    pod.map_or_else(|| "not there".to_owned(), |p| format!("{}, {}", p.status_word(), p.last_action));
                return Err(KubeletError::Timeout { what: what.to_owned(), waited: limit, now });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where it serves `/metrics` and the rest.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        self.handles.address
    }

    /// Stops the kubelet. Its pods go on.
    ///
    /// # Errors
    /// If it did not end in order.
    pub async fn stop(self) -> Result<(), KubeletError> {
        self.stop.cancel();
        match self.task.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(KubeletError::Ended),
        }
    }
}
