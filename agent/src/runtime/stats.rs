//! What the runtime says of disks: writable layers, and the file systems of images and containers.
//!
//! **Approach.** One listing of all containers (`ListContainerStats`) and one `ImageFsInfo`; CPU and memory in the listing are left
//! out, as they are measured at the source.
//!
//! **Properties.** A runtime that lacks one of the calls is asked for the other; what it did not tell is `None` or not listed. Of a
//! container's runs the last one counts, as for the kubelet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use beelet_core::units::{Bytes, Micros};
use beelet_proto::cri;

use super::client::Runtime;
use super::error::RuntimeError;

/// Disk space by the runtime's account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Writable layers, by container id.
    pub layers: BTreeMap<String, LayerUse>,
    /// What images use.
    pub images: Option<DiskUse>,
    /// What writable layers use, where the runtime keeps them apart (newer runtimes tell both, often the same).
    pub containers: Option<DiskUse>,
}

/// A container's writable layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerUse {
    /// Counts the runs of the container.
    pub attempt: u32,
    /// What it uses.
    pub used: DiskUse,
}

/// What something uses of a file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// When the runtime found it out (wall clock).
    pub at: Micros,
    /// A folder on the file system; the mount point or the snapshotter's folder.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used: Bytes,
    /// Inodes.
    pub inodes: Option<u64>,
}

impl Runtime {
    /// Disk space by the runtime's account. Costs the runtime about a millisecond per container.
    ///
    /// # Errors
    /// See [`RuntimeError`]; not for a call that the runtime lacks.
    pub async fn disk_stats(&self) -> Result<DiskStats, RuntimeError> {
        let request = cri::ListContainerStatsRequest::default();
        let listed = self.call("ListContainerStats", self.timeout, self.pods().list_container_stats(request)).await;
        let listed = unless_lacking(listed)?.map(|answer| answer.stats).unwrap_or_default();
        let filesystems =
            self.call("ImageFsInfo", self.timeout, self.images().image_fs_info(cri::ImageFsInfoRequest {})).await;
        let filesystems = unless_lacking(filesystems)?.unwrap_or_default();
        let layers = listed.iter().filter_map(|stats| {
            let attributes = stats.attributes.as_ref()?;
            let attempt = attributes.metadata.as_ref().map_or(0, |metadata| metadata.attempt);
            let used = stats.writable_layer.as_ref().and_then(disk_use)?;
            Some((attributes.id.clone(), LayerUse { attempt, used }))
        });
        Ok(DiskStats {
            layers: layers.collect(),
            images: filesystems.image_filesystems.first().and_then(disk_use),
            containers: filesystems.container_filesystems.first().and_then(disk_use),
        })
    }
}

fn unless_lacking<T>(answer: Result<T, RuntimeError>) -> Result<Option<T>, RuntimeError> {
    match answer {
        Err(RuntimeError::Unimplemented { .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// `None` where the runtime has not counted yet.
fn disk_use(usage: &cri::FilesystemUsage) -> Option<DiskUse> {
    Some(DiskUse {
        at: Micros(u64::try_from(usage.timestamp).unwrap_or(0) / 1_000),
        mountpoint: usage.fs_id.as_ref().map(|id| PathBuf::from(&id.mountpoint)).unwrap_or_default(),
        used: Bytes(usage.used_bytes.as_ref()?.value),
        inodes: usage.inodes_used.as_ref().map(|inodes| inodes.value),
    })
}

#[cfg(test)]
mod tests {
    use super::super::DEFAULT_TIMEOUT;
    use super::super::fake::Fake;
    use super::*;

    fn usage(at_ns: i64, bytes: u64, mountpoint: &str) -> cri::FilesystemUsage {
        cri::FilesystemUsage {
            timestamp: at_ns,
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: mountpoint.to_owned() }),
            used_bytes: Some(cri::UInt64Value { value: bytes }),
            inodes_used: Some(cri::UInt64Value { value: 7 }),
        }
    }

    #[tokio::test]
    async fn layers_and_file_systems_are_told_and_a_call_that_is_lacking_is_none() {
        let fake = Fake::start();
        let runtime = Runtime::connect(&fake.endpoint(), DEFAULT_TIMEOUT, "i1").expect("a handle");
        let stats = |id: &str, attempt, layer| cri::ContainerStats {
            attributes: Some(cri::ContainerAttributes {
                id: id.to_owned(),
                metadata: Some(cri::ContainerMetadata { name: "app".to_owned(), attempt }),
            }),
            writable_layer: layer,
        };
        let uncounted = cri::FilesystemUsage { used_bytes: None, ..usage(1, 1, "/x") };
        let all = vec![
            stats("c1", 2, Some(usage(5_000_000, 4096, "/snapshots"))),
            stats("c2", 0, None),
            stats("c3", 0, Some(uncounted)),
            cri::ContainerStats::default(),
        ];
        fake.with(|world| world.stats = all);
        let used = DiskUse { at: Micros(5_000), mountpoint: "/snapshots".into(), used: Bytes(4096), inodes: Some(7) };
        let layers = BTreeMap::from([("c1".to_owned(), LayerUse { attempt: 2, used: used.clone() })]);
        let without = DiskStats { layers, images: None, containers: None };
        assert_eq!(runtime.disk_stats().await.expect("an answer"), without);
        assert_eq!(runtime.unimplemented(), ["ImageFsInfo"]);

        let both = cri::ImageFsInfoResponse {
            image_filesystems: vec![usage(5_000_000, 4096, "/snapshots")],
            container_filesystems: Vec::new(),
        };
        fake.with(|world| world.filesystems = Some(both));
        assert_eq!(runtime.disk_stats().await.expect("an answer"), DiskStats { images: Some(used), ..without });
        assert_eq!(fake.with(|world| (world.count("ListContainerStats"), world.count("ImageFsInfo"))), (2, 2));
    }

    #[tokio::test]
    async fn a_runtime_that_is_away_is_an_error() {
        let mut fake = Fake::start();
        let runtime = Runtime::connect(&fake.endpoint(), DEFAULT_TIMEOUT, "i1").expect("a handle");
        fake.kill();
        assert!(matches!(runtime.disk_stats().await, Err(RuntimeError::Unavailable { .. })));
    }
}
