//! What a container says of its end: `status.containerStatuses[].state.terminated.message`.
//!
//! As the kubelet (pkg/kubelet/kuberuntime/kuberuntime_container.go, getTerminationMessage, release 1.36): the end of the file that it was
//! given for that (`terminationMessagePath`); where the file is empty and the container failed, with `FallbackToLogsOnError` the end of
//! its log.
//!
//! Property: both are written by the container: no link is followed, no pipe waited for, and what is read is bounded.

use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};

use beelet_core::spec;
use beelet_proto::cri;

use super::names;
use crate::logs::tail;

/// Of the file this much is taken, from the end (pkg/kubelet/container, MaxContainerTerminationMessageLength).
const MOST: u64 = 4_096;
/// `terminationMessagePolicy`, the default.
pub(super) const FROM_FILE: &str = "File";
/// `terminationMessagePolicy`.
pub(super) const FROM_LOG: &str = "FallbackToLogsOnError";

/// Where a container's last words are.
#[derive(Debug)]
pub(super) struct LastWords {
    file: Option<PathBuf>,
    log: Option<PathBuf>,
}

impl LastWords {
    /// Of a container, by its mounts and by what it was made with.
    pub(super) fn of(status: &cri::ContainerStatus) -> Self {
        let path = status.annotations.get(names::TERMINATION_MESSAGE_PATH).cloned();
        let path = path.unwrap_or_else(|| spec::LastWords::default().path);
        let file = status.mounts.iter().find(|mount| mount.container_path == path);
        let log = status.annotations.get(names::TERMINATION_MESSAGE_POLICY).is_some_and(|policy| policy == FROM_LOG);
        Self {
            file: file.map(|mount| PathBuf::from(&mount.host_path)),
            log: log.then(|| PathBuf::from(&status.log_path)),
        }
    }

    /// Reads them; what cannot be read was not said. Blocks.
    pub(super) fn read(&self, failed: bool) -> String {
        let said = self.file.as_deref().and_then(|file| end_of(file).ok()).unwrap_or_default();
        match &self.log {
            Some(log) if failed && said.is_empty() => tail::last_words(log).unwrap_or_else(|error| {
                format!("Error on reading termination message from logs: {}: {error}", log.display())
            }),
            _ => said,
        }
    }
}

fn end_of(file: &Path) -> io::Result<String> {
    let mut file = tail::open(file)?;
    file.seek(io::SeekFrom::Start(file.metadata()?.len().saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
