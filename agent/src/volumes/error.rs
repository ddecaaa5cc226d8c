//! What can go wrong with a pod's files.

use std::io;
use std::path::{Path, PathBuf};

use beelet_core::content::ContentError;
use beelet_core::spec::Volume;

/// Why a pod's files could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that could lead out of its folder.
    #[error("{0:?} is no name for a folder: it must be 1 to 255 bytes without a slash, and not `.` or `..`")]
    Name(String),
    /// The disk is full.
    #[error(
        "cannot {what} {path}: no space left on its file system; free some there (unused images, old logs, emptyDir volumes), beelet tries again"
    )]
    Full {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A hostPath is not of its type; the kubelet's text (pkg/volume/hostpath/host_path.go).
    #[error("hostPath type check failed: {path} is not a {expected}")]
    HostPathType {
        /// The path.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
    },
    /// What should be in a written volume is not to be had; the kubelet's text (pkg/kubelet/volumemanager, FailedMount).
    #[error("MountVolume.SetUp failed for volume {volume:?} : {source}")]
    Content {
        /// The volume's name.
        volume: String,
        /// Why.
        source: ContentError,
    },
    /// A `type` of a hostPath that there is not.
    #[error(
        "{kind} is an invalid volume type of hostPath {path}; there are \"\", DirectoryOrCreate, Directory, FileOrCreate, File, Socket, CharDevice, BlockDevice"
    )]
    HostPathKind {
        /// The path.
        path: PathBuf,
        /// The value.
        kind: String,
    },
    /// What of a volume a container is to see cannot be mounted without leaving the volume, or not at all. As the kubelet's text it
    /// says no more, as more could tell of the node; the log does.
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    SubPath {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// It is not there, and cannot be made.
    #[error("failed to create subPath directory for volumeMount {volume:?} of container {container:?}")]
    MakeSubPath {
        /// The volume.
        volume: String,
        /// The container.
        container: String,
    },
    /// Volumes that are not there; in the kubelet's words (pkg/kubelet/kubelet.go, pkg/kubelet/volumemanager), with the causes where
    /// it says that it has waited.
    #[error(
        "Unable to attach or mount volumes: unmounted volumes=[{}], unattached volumes=[], failed to process volumes=[]: {}",
        names(.0),
        causes(.0)
    )]
    Volumes(Vec<(String, Error)>),
    /// A mount is left, so nothing was removed.
    #[error(
        "{0} is still mounted, so nothing below the pod's folder was removed; find who uses it with `fuser -vm`, then `umount` it"
    )]
    Mounted(PathBuf),
}

impl Error {
    pub(super) fn content(volume: &str, source: ContentError) -> Self {
        Self::Content { volume: volume.to_owned(), source }
    }

    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { what, path: path.to_owned() },
            _ => Self::Io { what, path: path.to_owned(), source },
        }
    }

    pub(super) fn sub_path(volume: &Volume, container: &str) -> Self {
        Self::SubPath { volume: volume.name.clone(), container: container.to_owned() }
    }

    pub(super) fn make_sub_path(volume: &Volume, container: &str) -> Self {
        Self::MakeSubPath { volume: volume.name.clone(), container: container.to_owned() }
    }
}

fn names(volumes: &[(String, Error)]) -> String {
    volumes.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(" ")
}

fn causes(volumes: &[(String, Error)]) -> String {
    let cause = |(name, error): &(String, Error)| match error {
        // It says so itself.
        Error::Content { .. } => error.to_string(),
        _ => format!("MountVolume.SetUp failed for volume {name:?} : {error}"),
    };
    volumes.iter().map(cause).collect::<Vec<_>>().join("; ")
}
