//! Removes a folder with everything in it, safely.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use super::Error;
use crate::cgroup::unescape;

/// How often something busy is tried again.
const TRIES: u32 = 5;
/// How long to wait between tries.
const PAUSE: Duration = Duration::from_millis(40);

/// The mount points at and below a folder, deepest first.
pub(super) fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let file = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
    // The kernel lists resolved paths.
    let real = match fs::canonicalize(dir) {
        Ok(real) => real,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("resolve", dir, e)),
    };
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| PathBuf::from(unescape(point)));
    let mut found: Vec<PathBuf> = points
        .filter_map(|point| {
            point
                .strip_prefix(&real)
                .ok()
                .map(|rest| if rest.as_os_str().is_empty() { dir.to_owned() } else { dir.join(rest) })
        })
        .collect();
    found.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    Ok(found)
}

/// Unmounts what is mounted below the folder, then removes it. What is not there is removed; a link is removed, not followed.
pub(super) fn tree(dir: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io("look at", dir, e)),
        Ok(found) if !found.is_dir() => return fs::remove_file(dir).map_err(|e| Error::io("remove", dir, e)),
        Ok(_) => {}
    }
    for mount in mounts_below(dir)? {
        detach(&mount)?;
    }
    if let Some(mount) = mounts_below(dir)?.pop() {
        return Err(Error::Mounted(mount));
    }
    let mut tries = 0;
    loop {
        match fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !dir.exists() => return Ok(()),
            // Somebody who is about to die still writes there.
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            Err(e) => return Err(Error::io("remove", dir, e)),
        }
    }
}

/// Unmounts. One that stays busy is detached: the pod's processes were killed before, so that nobody is to miss it.
fn detach(mount: &Path) -> Result<(), Error> {
    for _ in 0..TRIES {
        match unmount(mount, UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(PAUSE),
            Err(e) => return Err(Error::io("unmount", mount, e.into())),
        }
    }
    unmount(mount, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH).map_err(|e| Error::io("unmount", mount, e.into()))
}
