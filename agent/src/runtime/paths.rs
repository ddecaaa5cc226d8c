//! Where a pod's files are, in the kubelet's layout. Pure; `crate::volumes` makes the files.
//!
//! `root` is `/var/lib/kubelet` or what takes its place; `uid`, names and so on are checked when a manifest is read, so that
//! none has a slash in it.

use std::path::{Path, PathBuf};

use beelet_core::spec::{PodSpec, PodUid, Volume, VolumeKind, WrittenKind};

/// `<root>/pods`.
#[must_use]
pub fn pods(root: &Path) -> PathBuf {
    root.join("pods")
}

/// `<root>/pods/<uid>`.
#[must_use]
pub fn pod_dir(root: &Path, uid: &PodUid) -> PathBuf {
    pods(root).join(uid.as_str())
}

/// The note that beelet made this pod's folder and cgroup. Not in the pod's folder, so that it is the last to go.
#[must_use]
pub fn mark(root: &Path, uid: &PodUid) -> PathBuf {
    marks(root).join(uid.as_str())
}

/// Where the notes are.
#[must_use]
pub fn marks(root: &Path) -> PathBuf {
    root.join("beelet-pods")
}

/// The file that becomes `/etc/hosts` of each container.
#[must_use]
pub fn etc_hosts(root: &Path, uid: &PodUid) -> PathBuf {
    pod_dir(root, uid).join("etc-hosts")
}

/// The file that becomes `/dev/termination-log` of a run of a container.
#[must_use]
pub fn termination_log(root: &Path, uid: &PodUid, container: &str, attempt: u32) -> PathBuf {
    pod_dir(root, uid).join("containers").join(container).join(attempt.to_string())
}

/// Where the node's seccomp profiles are.
#[must_use]
pub fn seccomp(root: &Path) -> PathBuf {
    root.join("seccomp")
}

/// The folder of an emptyDir volume.
#[must_use]
pub fn empty_dir(root: &Path, uid: &PodUid, volume: &str) -> PathBuf {
    volume_dir(root, uid, "empty-dir", volume)
}

fn volume_dir(root: &Path, uid: &PodUid, plugin: &str, volume: &str) -> PathBuf {
    pod_dir(root, uid).join("volumes").join(format!("kubernetes.io~{plugin}")).join(volume)
}

/// The place of a part of a volume that a container mounts, by the place of the mount in its list.
#[must_use]
pub fn sub_path(root: &Path, uid: &PodUid, volume: &str, container: &str, index: usize) -> PathBuf {
    pod_dir(root, uid).join("volume-subpaths").join(volume).join(container).join(index.to_string())
}

/// Where a volume is, as a whole.
#[must_use]
pub fn volume(root: &Path, uid: &PodUid, volume: &Volume) -> PathBuf {
    match &volume.kind {
        VolumeKind::EmptyDir { .. } => empty_dir(root, uid, &volume.name),
        VolumeKind::HostPath { path, .. } => PathBuf::from(path),
        VolumeKind::Written(written) => {
            let plugin = match written.kind {
                WrittenKind::DownwardApi => "downward-api",
                WrittenKind::Projected => "projected",
                WrittenKind::ConfigMap => "configmap",
                WrittenKind::Secret => "secret",
            };
            volume_dir(root, uid, plugin, &volume.name)
        }
    }
}

/// `<namespace>_<name>_<uid>`, the name of the pod's log folder.
#[must_use]
pub fn log_dir_name(spec: &PodSpec) -> String {
    format!("{}_{}_{}", spec.namespace, spec.name, spec.uid)
}

/// The pod's log folder.
#[must_use]
pub fn log_dir(pod_logs_dir: &Path, spec: &PodSpec) -> PathBuf {
    pod_logs_dir.join(log_dir_name(spec))
}

/// The log file of a run of a container, relative to the pod's log folder.
#[must_use]
pub fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}
