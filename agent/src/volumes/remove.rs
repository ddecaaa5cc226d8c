//! Removes a folder with everything in it, safely.
//!
//! Problem: below a pod's folder the node's own files may be mounted, and its programs put links and anything else there. Approach: all
//! mounts below go first, each cut off from its copies elsewhere, so that nothing of the node is unmounted with them; then the kernel
//! walks (openat2): into no link and into no mount, also not one that somebody makes meanwhile.
//!
//! Properties (tested): what is mounted below is unmounted and never emptied; mounts of the node outlive those of a pod; no depth of
//! folders is too deep.

use std::ffi::{CStr, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, OFlags, RenameFlags, renameat_with, unlinkat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};

use super::{Error, safe};
use crate::cgroup::unescape_bytes;

/// How often something busy is tried again.
const TRIES: u32 = 5;
/// How long to wait between tries.
const PAUSE: Duration = Duration::from_millis(40);
/// Folders in each other of which so many are open at a time; deeper ones are moved up first.
const DEEP: usize = 64;

/// The mount points at and below a folder, deepest first.
pub(super) fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let file = Path::new("/proc/self/mountinfo");
    // Names in it need not be UTF-8: those of pods could stop all tidying otherwise.
    let text = fs::read(file).map_err(|e| Error::io("read", file, e))?;
    // The kernel lists resolved paths.
    let real = match fs::canonicalize(dir) {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("resolve", dir, e)),
    };
    Ok(points_below(&text, &real, dir))
}

/// Those of a mount table at and below `real`, by its other name `dir`.
pub(super) fn points_below(table: &[u8], real: &Path, dir: &Path) -> Vec<PathBuf> {
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    let points = points.map(|point| PathBuf::from(OsString::from_vec(unescape_bytes(point))));
    let mut found: Vec<PathBuf> = points
        .filter_map(|point| {
            point
                .strip_prefix(real)
                .ok()
                .map(|rest| if rest.as_os_str().is_empty() { dir.to_owned() } else { dir.join(rest) })
        })
        .collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    found
}

/// Unmounts what is mounted below the folder, then removes it. What is not there is removed; a link is removed, not followed.
pub(super) fn tree(dir: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("look at", dir, e)),
        Ok(found) if !found.is_dir() => return fs::remove_file(dir).map_err(|e| Error::io("remove", dir, e)),
        Ok(_) => {}
    }
    let mounts = mounts_below(dir)?;
    // Before the first goes, as what is mounted on a mount is cut off there.
    mounts.iter().try_for_each(|mount| cut_off(mount))?;
    for mount in &mounts {
        // What was hidden below another one comes to light only now.
        cut_off(mount)?;
        detach(mount)?;
    }
    if let Some(mount) = mounts_below(dir)?.pop() {
        return Err(Error::Mounted(mount));
    }
    let mut tries = 0;
    loop {
        match unmounted(dir) {
            // Somebody who is about to die still writes there.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::DirectoryNotEmpty && tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// Removes a folder in which nothing is mounted; `EXDEV` and `EBUSY` say that something is.
pub(super) fn unmounted(dir: &Path) -> Result<(), Error> {
    let mut removal = match safe::open_named(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(Error::io("open", dir, e.into())),
        Ok(top) => Removal { top, at: dir.to_owned(), moved: 0 },
    };
    let mut moved = None;
    while moved != Some(removal.moved) {
        moved = Some(removal.moved);
        let top = safe::open_folder_here(&removal.top, ".").map_err(|e| removal.error(e))?;
        removal.empty(&top, 0).map_err(|e| removal.error(e))?;
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
        _ => Ok(()),
    }
}

struct Removal {
    top: OwnedFd,
    /// What is looked at, for messages.
    at: PathBuf,
    /// So many folders were moved up.
    moved: u64,
}

impl Removal {
    fn error(&self, error: Errno) -> Error {
        match error {
            Errno::XDEV | Errno::BUSY => Error::Mounted(self.at.clone()),
            error => Error::io("remove", &self.at, error.into()),
        }
    }

    /// On an error `at` stays where it was met.
    fn empty(&mut self, folder: &OwnedFd, depth: usize) -> rustix::io::Result<()> {
        for name in safe::names(folder)? {
            self.at.push(OsStr::from_bytes(name.as_bytes()));
            self.remove(folder, &name, depth)?;
            self.at.pop();
        }
        Ok(())
    }

    fn remove(&mut self, folder: &OwnedFd, name: &CStr, depth: usize) -> rustix::io::Result<()> {
        let refused = match unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
            Err(error) => return Err(error),
        };
        if depth == DEEP {
            // Its name is free, as those of an earlier pass are gone.
            let up = format!(".removed-{}", self.moved);
            self.moved += 1;
            return renameat_with(folder, name, &self.top, up, RenameFlags::NOREPLACE);
        }
        // A file that may not be removed says so, and not that it is no folder.
        let child = safe::open_folder_here(folder, OsStr::from_bytes(name.to_bytes()))
            .map_err(|error| if error == Errno::NOTDIR { refused } else { error })?;
        self.empty(&child, depth + 1)?;
        match unlinkat(folder, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            done => done,
        }
    }
}

/// Else what is mounted on it would go wherever it has copies, on the node as well.
fn cut_off(mount: &Path) -> Result<(), Error> {
    match mount_change(mount, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::io("cut off", mount, e.into())),
    }
}

/// Unmounts. One that stays busy is detached: the pod's processes were killed before, so that nobody is to miss it.
fn detach(mount: &Path) -> Result<(), Error> {
    for _ in 0..TRIES {
        match unmount(mount, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY) => std::thread::sleep(PAUSE),
            Err(e) => return Err(Error::io("unmount", mount, e.into())),
        }
    }
    unmount(mount, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map_err(|e| Error::io("unmount", mount, e.into()))
}
