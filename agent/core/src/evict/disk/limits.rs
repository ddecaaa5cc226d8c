//! What a pod may use of the node's disk by its own word.
//!
//! As the kubelet (pkg/kubelet/eviction/eviction_manager.go, release 1.36, `localStorageEviction`): first each emptyDir against its
//! `sizeLimit`, then the pod against the sum of its containers' limits of ephemeral storage, then each container against its own.
//! What is not known, or not lately, counts as nothing: a pod over its limit by what is known is over it in any case.

use serde::{Deserialize, Serialize};

use super::Layout;
use super::rank::{is_fresh, on_disk};
use crate::allocate::pod_storage_limit;
use crate::spec::{PodSpec, VolumeKind};
use crate::telemetry::{FsUse, StorageReading};
use crate::units::{Bytes, Micros};

/// Which limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalLimit {
    /// An emptyDir's `sizeLimit`.
    EmptyDir,
    /// The sum of the containers' limits.
    Pod,
    /// A container's.
    Container,
}

impl LocalLimit {
    /// All.
    pub const ALL: [Self; 3] = [Self::EmptyDir, Self::Pod, Self::Container];

    /// As in `kubelet_evictions{eviction_signal}`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EmptyDir => "emptydirfs.limit",
            Self::Pod => "ephemeralpodfs.limit",
            Self::Container => "ephemeralcontainerfs.limit",
        }
    }
}

/// A pod that is over a limit of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverLimit {
    /// Which.
    pub limit: LocalLimit,
    /// The kubelet's text.
    pub message: String,
    /// What was seen: name and value.
    pub evidence: Vec<(String, String)>,
}

fn found(limit: LocalLimit, of: &str, used: Bytes, most: Bytes, message: String) -> OverLimit {
    let evidence = [("signal", limit.as_str()), ("of", of), ("used", &used.to_string()), ("limit", &most.to_string())]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    OverLimit { limit, message, evidence: evidence.into() }
}

/// The first limit that a pod is over. `since` and `now` are when the pod was first seen and the present, by the wall clock. Without
/// a layout, containers' layers are not counted as theirs: with images on a file system of their own they are not.
#[must_use]
pub fn over_limit(
    pod: &PodSpec,
    storage: &StorageReading,
    layout: Option<Layout>,
    (since, now): (Micros, Micros),
) -> Option<OverLimit> {
    let known = |list: &[(String, FsUse)], name: &str| {
        let part = list.iter().find(|(of, _)| of == name).map(|(_, part)| part);
        part.filter(|part| is_fresh(part, since, now)).map_or(Bytes::ZERO, |part| part.used)
    };
    for volume in &pod.volumes {
        let VolumeKind::EmptyDir { size_limit: Some(most), .. } = volume.kind else { continue };
        let used = known(&storage.volumes, &volume.name);
        if most > Bytes::ZERO && used > most {
            let message = format!("Usage of EmptyDir volume {:?} exceeds the limit \"{most}\". ", volume.name);
            return Some(found(LocalLimit::EmptyDir, &volume.name, used, most, message));
        }
    }
    if let Some(most) = pod_storage_limit(pod) {
        let volumes = storage.volumes.iter().filter(|(name, _)| on_disk(pod, name));
        let parts = storage.rootfs.iter().chain(&storage.logs).chain(volumes);
        let used: Bytes = parts.filter(|(_, part)| is_fresh(part, since, now)).map(|(_, part)| part.used).sum();
        if used > most {
            let message = format!("Pod ephemeral local storage usage exceeds the total limit of containers {most}. ");
            return Some(found(LocalLimit::Pod, &pod.full_name(), used, most, message));
        }
    }
    for container in &pod.containers {
        let Some(most) = container.storage.limit.filter(|most| *most > Bytes::ZERO) else { continue };
        let layer = if layout == Some(Layout::One) { known(&storage.rootfs, &container.name) } else { Bytes::ZERO };
        let used = layer + known(&storage.logs, &container.name);
        if used > most {
            let message =
                format!("Container {} exceeded its local ephemeral storage limit \"{most}\". ", container.name);
            return Some(found(LocalLimit::Container, &container.name, used, most, message));
        }
    }
    None
}
