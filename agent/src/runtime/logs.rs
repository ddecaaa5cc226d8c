//! Where the logs of containers are, as the runtime has them.
//!
//! Problem: who keeps logs small has to know of one from its first byte on, which is before any listing tells. Approach: a log is noted
//! when its container is about to be started, and from then on the listings say what runs.
//!
//! Property: a log is noted as long as its container may write to it, and no longer than until the next listing.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beelet_proto::cri;
use tokio::sync::watch;

use super::client::Runtime;
use super::error::RuntimeError;
use super::names;
use crate::blocking::blocking;
use crate::logs::files::LogFiles;
use crate::logs::keeper::{Running, Writer};
use crate::logs::{Fault, Health, links};

/// What the client knows of logs.
#[derive(Debug)]
pub(super) struct Logs {
    running: watch::Sender<Running>,
    health: Arc<Health>,
}

impl Default for Logs {
    fn default() -> Self {
        Self { running: watch::Sender::new(BTreeMap::new()), health: Arc::default() }
    }
}

impl Runtime {
    /// The logs that beelet's containers write to.
    #[must_use]
    pub fn running_logs(&self) -> watch::Receiver<Running> {
        self.logs.running.subscribe()
    }

    /// What was done with logs.
    #[must_use]
    pub fn log_health(&self) -> Arc<Health> {
        Arc::clone(&self.logs.health)
    }

    /// From now on the container may write to this log.
    pub(super) fn log_begins(&self, id: &str, log: PathBuf) {
        self.logs.running.send_modify(|running| {
            running.insert(id.to_owned(), log);
        });
    }

    /// The container writes no more.
    pub(super) fn log_ends(&self, id: &str) {
        self.logs.running.send_if_modified(|running| running.remove(id).is_some());
    }

    /// A listing tells of beelet's containers: those that run with their logs, and the state of all. `before` are those that were noted
    /// before it began: what came since then cannot be in it.
    pub(super) fn logs_listed(
        &self,
        before: &Running,
        states: &HashMap<String, cri::ContainerState>,
        logs: Vec<(String, PathBuf)>,
    ) {
        use cri::ContainerState::{ContainerCreated, ContainerRunning};
        self.logs.running.send_if_modified(|running| {
            let mut now = running.clone();
            now.retain(|id, _| match states.get(id) {
                Some(state) => matches!(state, ContainerCreated | ContainerRunning),
                None => !before.contains_key(id),
            });
            now.extend(logs);
            let changed = now != *running;
            *running = now;
            changed
        });
    }

    pub(super) fn noted_logs(&self) -> Running {
        self.logs.running.borrow().clone()
    }

    /// Links a log of a container that was started, for collectors. One that fails is told and changes nothing.
    pub(super) async fn link_log(&self, log: PathBuf, name: String) {
        let path = log.clone();
        if let Err(error) = blocking(move || links::link(&log, &name)).await {
            self.logs.health.failed(Fault::Link);
            tracing::warn!(log = %path.display(), %error, "no link to a container's log");
        }
    }

    /// Removes the log of a container that is about to be removed, and the link to it. What cannot be removed goes when the
    /// container is started next, or with the pod.
    pub(super) async fn remove_log(&self, id: &str) {
        let status = match self.container_status(id).await {
            Ok((status, _)) => status,
            Err(error) if error.is_not_found() => return,
            Err(error) => {
                tracing::warn!(container = id, %error, "the log of a container that is removed stays");
                return;
            }
        };
        let log = PathBuf::from(&status.log_path);
        // Made by beelet, each is in a folder of its container's.
        let ours = status.annotations.get(names::MANAGED).is_some_and(|value| *value == self.instance);
        let Some(files) = LogFiles::of(&log).filter(|_| ours && log.is_absolute()) else { return };
        let link = link_name(&status.labels, id);
        let path = log.clone();
        let removed = blocking(move || {
            (files.remove_all().map_err(|e| (Fault::Remove, e)))
                .and_then(|()| links::unlink(&log, &link).map_err(|e| (Fault::Link, e)))
        });
        if let Err((fault, error)) = removed.await {
            self.logs.health.failed(fault);
            tracing::warn!(log = %path.display(), %error, "the log of a container that is removed stays");
        }
    }

    /// Removes links to logs that are gone.
    pub async fn remove_dangling_links(&self, pod_logs: &Path) {
        let pod_logs = pod_logs.to_owned();
        for dangling in blocking(move || links::dangling(&pod_logs)).await {
            if let Some(id) = &dangling.ask {
                let ended = match self.container_status(id).await {
                    Ok((status, _)) => status.state() == cri::ContainerState::ContainerExited,
                    Err(error) => error.is_not_found(),
                };
                if !ended {
                    continue;
                }
            }
            let link = dangling.link.clone();
            if let Err(error) = blocking(move || std::fs::remove_file(link)).await {
                self.logs.health.failed(Fault::Link);
                tracing::warn!(link = %dangling.link.display(), %error, "a link to a log that is gone stays");
            }
        }
    }
}

/// The name of a container's link, by its labels.
fn link_name(labels: &HashMap<String, String>, id: &str) -> String {
    let label = |name: &str| labels.get(name).map(String::as_str).unwrap_or_default();
    links::name(label(names::POD_NAME), label(names::POD_NAMESPACE), label(names::CONTAINER_NAME), id)
}

impl Writer for Runtime {
    async fn reopen(&self, id: &str) -> Result<(), String> {
        let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
        let answer = self.call("ReopenContainerLog", self.timeout, self.pods().reopen_container_log(request)).await;
        answer.map(drop).map_err(|error: RuntimeError| error.to_string())
    }
}
