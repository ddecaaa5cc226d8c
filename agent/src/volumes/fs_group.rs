//! Gives a volume to the pod's group.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, chmod, chownat, fstat};
use rustix::io::Result as Outcome;

use super::Error;
use super::safe::{self, Links};

/// What the group may do: to files, and to folders besides (pkg/volume/volume_linux.go, changeFilePermission). New files in a folder
/// belong to the group, too.
const FILE: u32 = 0o660;
const FOLDER: u32 = 0o2110;

/// Gives what is in a folder, and last the folder itself, to `group`, which may read and write it then. Links are given as such and
/// never followed; what is mounted below is left alone.
pub(super) fn give(folder: &Path, group: u32) -> Result<(), Error> {
    let group = Gid::from_raw(group);
    safe::open_named(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
        .and_then(|opened| give_all(&opened, group))
        .map_err(|e| Error::io("give to the fsGroup", folder, e.into()))
}

fn give_all(folder: &OwnedFd, group: Gid) -> Outcome<()> {
    for name in safe::names(folder)? {
        let name = OsStr::from_bytes(name.as_bytes());
        let found = safe::open(folder, name, Links::Refused, OFlags::PATH | OFlags::NOFOLLOW)?;
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::Directory {
            give_one(&found, group)?;
            continue;
        }
        match safe::open_folder_here(folder, name) {
            Ok(opened) => give_all(&opened, group)?,
            Err(rustix::io::Errno::XDEV) => {}
            Err(error) => return Err(error),
        }
    }
    give_one(folder, group)
}

fn give_one(file: impl AsFd, group: Gid) -> Outcome<()> {
    let file = file.as_fd();
    chownat(file, "", None, Some(group), AtFlags::EMPTY_PATH)?;
    let mode = fstat(file)?.st_mode;
    let more = match FileType::from_raw_mode(mode) {
        // A link has no mode of its own.
        FileType::Symlink => return Ok(()),
        FileType::Directory => FILE | FOLDER,
        _ => FILE,
    };
    chmod(safe::itself(file).path(), Mode::from_raw_mode(mode & 0o7777 | more))
}
