//! hostPath: checks that a path on the node is of its type, and makes it where the type says so.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FileType, OFlags, fstat};

use super::{Error, make_dir, safe};

/// Opens the path and looks at what was opened, so that what is given on is what was checked. The types are those of
/// pkg/apis/core/types.go (HostPathType), "" for any. Links are followed, as the runtime's mount does.
pub(super) fn open(path: &Path, kind: &str) -> Result<OwnedFd, Error> {
    let expected = match kind {
        "" => None,
        "DirectoryOrCreate" | "Directory" => Some((FileType::Directory, "directory")),
        "FileOrCreate" | "File" => Some((FileType::RegularFile, "file")),
        "Socket" => Some((FileType::Socket, "socket file")),
        "CharDevice" => Some((FileType::CharacterDevice, "character device")),
        "BlockDevice" => Some((FileType::BlockDevice, "block device")),
        _ => return Err(Error::HostPathKind { path: path.to_owned(), kind: kind.to_owned() }),
    };
    if !path.exists() {
        match kind {
            "DirectoryOrCreate" => make_dir(path, 0o755)?,
            // The folder above it is not made: the type promises one empty file.
            "FileOrCreate" => fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path)
                .map(drop)
                .map_err(|e| Error::io("make the file", path, e))?,
            _ => {}
        }
    }
    let opened = safe::open_named(path, OFlags::PATH);
    let Some((expected, words)) = expected else {
        return opened.map_err(|e| Error::io("open", path, e.into()));
    };
    let fits = |found: &OwnedFd| fstat(found).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == expected);
    opened.ok().filter(fits).ok_or_else(|| Error::HostPathType { path: path.to_owned(), expected: words })
}
