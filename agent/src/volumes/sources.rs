//! What of the node is mounted into a container: whole volumes by their folder, parts of them by a place of their own.
//!
//! Problem: the runtime is told a path, and opens it later, when a program in the volume may have put a link there (the class of
//! CVE-2017-1002101 and CVE-2021-25741). Approach: what is to be mounted is opened without leaving the volume ([`super::safe`]),
//! and what was opened is bind-mounted to `pods/<uid>/volume-subpaths/<volume>/<container>/<index>`, below a folder that only beelet
//! writes; that is what the runtime is told. A hostPath whose type was asked for is given in the same way, so that what is mounted is
//! what was checked.
//!
//! Two hostPaths are given by their name after the check: a folder in which something else is mounted (or in which the pods
//! themselves are), because without what is mounted there it would be another one; and one that is mounted in both ways, which
//! only a privileged container may do, for which there is nothing to escape from.
//!
//! Terms: a *place* is such a mount point, numbered by its mount in the container's list.
//!
//! Properties (tested): a place shows what is in the volume, whatever its programs do at the same time, or the container does not
//! start; a place that is there is used again if it shows the same, and else made anew; mounts below a place do not reach those of the
//! node when they go.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use beelet_core::spec::{Mount, PodSpec, PodUid, Propagation, Volume, VolumeKind};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::{Errno, Result as Outcome};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

use super::remove::mounts_below;
use super::safe::{self, Links};
use super::{Error, Volumes, host_path, plain};
use crate::runtime::paths;

/// The mode of the folders that lead to a place, and of an empty folder or file below it.
const FOLDER: u32 = 0o750;
const FILE: u32 = 0o640;
/// More mounts than this are not on top of each other on a place.
const MOST_MOUNTS: u32 = 64;

impl Volumes {
    /// The path on the node of each of the container's mounts, in their order; `sub_paths` are what of its volume each shows, "" for
    /// all. Of a container or volume that there is not the list ends there: the container's configuration says so.
    ///
    /// # Errors
    /// If a name is not plain, a part of a volume cannot be had without leaving it, or a hostPath is not of its type.
    pub fn sources(&self, spec: &PodSpec, container: &str, sub_paths: &[String]) -> Result<Vec<PathBuf>, Error> {
        plain(spec.uid.as_str())?;
        plain(container)?;
        let mounts = spec.container(container).map_or(&[][..], |container| &container.mounts);
        let mut sources = Vec::with_capacity(mounts.len());
        for (index, (mount, sub_path)) in mounts.iter().zip(sub_paths).enumerate() {
            let Some(volume) = spec.volumes.iter().find(|v| v.name == mount.volume) else { break };
            plain(&volume.name)?;
            let whole = paths::volume(&self.root, &spec.uid, volume);
            let Some(found) = self.part(&spec.uid, volume, mount, container, sub_path)? else {
                sources.push(whole);
                continue;
            };
            let place = paths::sub_path(&self.root, &spec.uid, &volume.name, container, index);
            self.bind(&found, &place, mount.propagation).map_err(|error| {
                tracing::warn!(place = %place.display(), %error, "cannot mount what a container is to see of a volume");
                Error::sub_path(volume, container)
            })?;
            sources.push(place);
        }
        Ok(sources)
    }

    /// What a mount shows, opened, if it needs a place of its own.
    fn part(
        &self,
        uid: &PodUid,
        volume: &Volume,
        mount: &Mount,
        container: &str,
        sub_path: &str,
    ) -> Result<Option<OwnedFd>, Error> {
        let base = match &volume.kind {
            VolumeKind::HostPath { path, kind } if !sub_path.is_empty() || !kind.is_empty() => {
                host_path::open(Path::new(path), kind)?
            }
            VolumeKind::HostPath { .. } => return Ok(None),
            _ if sub_path.is_empty() => return Ok(None),
            _ => {
                let path = paths::volume(&self.root, uid, volume);
                self.own(&path).map_err(|e| Error::io("open", &path, e.into()))?
            }
        };
        if sub_path.is_empty() {
            return Ok(self.as_it_is(&base, mount)?.then_some(base));
        }
        // The details could tell of the node what the pod's author need not know; the log has them.
        let told = |error: Errno, or: fn(&Volume, &str) -> Error| {
            tracing::warn!(%uid, container, volume = volume.name, sub_path, %error, "cannot open a subPath");
            or(volume, container)
        };
        let open = || safe::open(&base, sub_path, Links::Beneath, OFlags::PATH);
        match open() {
            Err(Errno::NOENT) => {
                let mode = fstat(&base).map_err(|e| told(e, Error::make_sub_path))?.st_mode & 0o7777;
                safe::make_folders(&base, sub_path, mode).map_err(|e| told(e, Error::make_sub_path))?;
                open()
            }
            opened => opened,
        }
        .map(Some)
        .map_err(|e| told(e, Error::sub_path))
    }

    /// Whether a bind mount of this alone shows all that is seen there.
    fn as_it_is(&self, found: &OwnedFd, mount: &Mount) -> Result<bool, Error> {
        let itself = safe::itself(found.as_fd());
        let itself = itself.path();
        let stat = fstat(found).map_err(|e| Error::io("look at", itself, e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(true);
        }
        if mount.propagation == Propagation::Bidirectional {
            return Ok(false);
        }
        let path = std::fs::read_link(itself).map_err(|e| Error::io("read", itself, e))?;
        let root = std::fs::canonicalize(&self.root).map_err(|e| Error::io("resolve", &self.root, e))?;
        Ok(!paths::pods(&root).starts_with(&path) && mounts_below(&path)?.iter().all(|point| *point == path))
    }

    /// Opens a folder of beelet's own. There is no link on the way to it.
    fn own(&self, path: &Path) -> Outcome<OwnedFd> {
        let root = safe::open_named(&self.root, OFlags::PATH | OFlags::DIRECTORY)?;
        let below = path.strip_prefix(&self.root).map_err(|_| Errno::XDEV)?;
        safe::open(root, below, Links::Refused, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Sees that a place shows what was opened.
    fn bind(&self, found: &OwnedFd, place: &Path, propagation: Propagation) -> Outcome<()> {
        let below = place.strip_prefix(&self.root).ok().and_then(Path::parent).and_then(Path::to_str);
        let name = place.file_name().ok_or(Errno::INVAL)?;
        let mut folder = safe::open_named(&self.root, OFlags::PATH | OFlags::DIRECTORY)?;
        for part in below.ok_or(Errno::INVAL)?.split('/') {
            folder = safe::make_folder(&folder, part, FOLDER)?;
        }
        let open = || safe::open(&folder, name, Links::Refused, OFlags::PATH | OFlags::NOFOLLOW);
        let wanted = fstat(found)?;
        let shows =
            open().and_then(fstat).is_ok_and(|there| (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino));
        // A name in an open folder, as the kernel takes it.
        let at = safe::itself(folder.as_fd()).path().join(name);
        if !shows {
            clear(&folder, name, &at)?;
            if FileType::from_raw_mode(wanted.st_mode) == FileType::Directory {
                rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(FOLDER))?;
            } else {
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&folder, name, new, Mode::from_raw_mode(FILE))?;
            }
            let under = open()?;
            mount_bind(safe::itself(found.as_fd()).path(), safe::itself(under.as_fd()).path())?;
        }
        // Mounts made below it must not be taken away from the node when it goes.
        match propagation {
            Propagation::None => mount_change(&at, MountPropagationFlags::PRIVATE),
            Propagation::HostToContainer => mount_change(&at, MountPropagationFlags::DOWNSTREAM),
            // Until it goes: `remove` sees to it.
            Propagation::Bidirectional => Ok(()),
        }
    }
}

/// Takes away what is at a place: mounts, and the empty folder or file below them.
fn clear(folder: &OwnedFd, name: &std::ffi::OsStr, at: &Path) -> Outcome<()> {
    for _ in 0..MOST_MOUNTS {
        match mount_change(at, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC) {
            Ok(()) => unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?,
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(error),
        }
    }
    match unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => unlinkat(folder, name, AtFlags::REMOVEDIR),
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}
