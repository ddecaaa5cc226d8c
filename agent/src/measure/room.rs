//! The room on the node's file systems and among its process ids.
//!
//! **Approach.** `statvfs` of the agent's root folder (nodefs) and of the folders where the runtime says that it keeps images and
//! writable layers (`ImageFsInfo`); their devices tell which of them are the same. /proc/loadavg, kernel.pid_max and
//! kernel.threads-max for process ids, as the kubelet (pkg/kubelet/stats/pidlimit). Some 20 µs in all.
//!
//! **Properties.** A file system that does not answer hides none of the others, holds up a reading for [`LIMIT`] at most, and occupies
//! one thread however long it does not. What cannot be read is `None`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use beelet_core::evict::disk::{FsRoom, Layout, Pids, Reading};
use beelet_core::units::Bytes;
use rustix::fs::statvfs;
use tokio::task::JoinHandle;

use super::Slow;
use crate::clock::Clock;

/// A file system that takes longer is not known.
const LIMIT: Duration = Duration::from_secs(2);

/// The device of a file system and its room.
type Found = Option<(u64, FsRoom)>;

/// Reads rooms, again and again.
#[derive(Debug)]
pub struct Rooms {
    root: PathBuf,
    slow: Slow,
    node: Probe,
    images: Probe,
    containers: Probe,
}

impl Rooms {
    /// Of the agent's root folder, and of what `slow` knows from the runtime.
    #[must_use]
    pub fn new(root: PathBuf, slow: Slow) -> Self {
        Self { root, slow, node: Probe::default(), images: Probe::default(), containers: Probe::default() }
    }

    /// A reading. Its moment is that of its begin.
    pub async fn read(&mut self) -> Reading {
        let at = Clock.now().mono;
        let places = self.slow.image_places();
        let (images, containers) = places.unzip();
        let (node, images, containers) = tokio::join!(
            self.node.ask(Some(&self.root), LIMIT),
            self.images.ask(images.as_deref(), LIMIT),
            self.containers.ask(containers.as_deref(), LIMIT),
        );
        let device = |found: Found| found.map(|(device, _)| device);
        let devices = device(node).zip(device(images)).zip(device(containers));
        let room = |found: Found| found.map(|(_, room)| room);
        Reading {
            at,
            layout: devices.map(|((node, images), containers)| Layout::of(node, images, containers)),
            node: room(node),
            images: room(images),
            containers: room(containers),
            pids: pids(),
        }
    }
}

/// A file system, asked on a thread that may wait for it.
#[derive(Debug, Default)]
struct Probe(Option<JoinHandle<Found>>);

impl Probe {
    async fn ask(&mut self, path: Option<&Path>, limit: Duration) -> Found {
        let asked = match self.0.take() {
            // The last question is not answered yet.
            Some(asked) => asked,
            None => {
                let path = path?.to_owned();
                tokio::task::spawn_blocking(move || room_of(&path))
            }
        };
        let asked = self.0.insert(asked);
        let answer = tokio::time::timeout(limit, asked).await.ok()?;
        self.0 = None;
        answer.ok()?
    }
}

fn room_of(path: &Path) -> Found {
    let device = rustix::fs::stat(path).ok()?.st_dev;
    let vfs = statvfs(path).ok()?;
    let room = FsRoom {
        available: Bytes(vfs.f_bavail.saturating_mul(vfs.f_frsize)),
        capacity: Bytes(vfs.f_blocks.saturating_mul(vfs.f_frsize)),
        inodes_free: vfs.f_ffree,
        inodes: vfs.f_files,
    };
    Some((device, room))
}

/// So many tasks there can be and are: the fourth field of /proc/loadavg is `running/all`.
pub(super) fn pids() -> Option<Pids> {
    let number = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse::<u64>().ok();
    // The kernel knows both; one that cannot be read does not hide the other.
    let most = [number("pid_max"), number("threads-max")].into_iter().flatten().min()?;
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let (_, all) = load.split(' ').nth(3)?.split_once('/')?;
    Some(Pids { most, running: all.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{DiskStats, DiskUse};

    #[tokio::test]
    async fn what_the_runtime_has_not_told_is_unknown_and_what_is_the_same_is_known_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let slow = Slow::default();
        let mut rooms = Rooms::new(dir.path().to_owned(), slow.clone());
        let first = rooms.read().await;
        assert_eq!((first.layout, first.images, first.containers), (None, None, None));
        let node = first.node.unwrap();
        assert!(node.capacity > Bytes::ZERO && node.available <= node.capacity && node.inodes_free <= node.inodes);
        let used = |path: &Path| Some(DiskUse { mountpoint: path.to_owned(), ..DiskUse::default() });
        slow.publish_disk_stats(DiskStats { images: used(dir.path()), ..DiskStats::default() });
        let second = rooms.read().await;
        assert_eq!(second.layout, Some(Layout::One), "a runtime that tells of images only keeps both together");
        assert!(second.at > first.at);
        // procfs is a file system of its own.
        slow.publish_disk_stats(DiskStats {
            images: used(Path::new("/proc")),
            containers: used(dir.path()),
            ..DiskStats::default()
        });
        assert_eq!(rooms.read().await.layout, Some(Layout::ImagesApart));
        slow.publish_disk_stats(DiskStats { images: used(Path::new("/does/not/exist")), ..DiskStats::default() });
        let gone = rooms.read().await;
        assert_eq!((gone.layout, gone.images, gone.node.is_some()), (None, None, true));
    }

    #[tokio::test]
    async fn a_file_system_that_hangs_is_asked_once_and_is_unknown_meanwhile() {
        let (answer, hangs) = tokio::sync::oneshot::channel::<()>();
        let mut probe = Probe(Some(tokio::spawn(async move {
            hangs.await.ok();
            Some((7, FsRoom::default()))
        })));
        let (path, limit) = (PathBuf::from("/"), Duration::from_millis(50));
        assert_eq!(probe.ask(Some(&path), limit).await, None);
        assert_eq!(probe.ask(Some(&path), limit).await, None);
        answer.send(()).unwrap();
        assert_eq!(probe.ask(Some(&path), limit).await, Some((7, FsRoom::default())), "the first question's answer");
        assert!(probe.0.is_none());
    }

    #[test]
    fn tasks_are_counted() {
        let pids = pids().unwrap();
        let most: u64 = fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
        assert!(pids.most <= most && pids.running > 0 && pids.running < pids.most, "{pids:?}");
    }
}
