//! hostPath: checks that a path on the node is of its type, and makes it where the type says so.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::{Error, make_dir};

/// The types of pkg/apis/core/types.go (HostPathType). Links are followed, as the runtime's mount does.
pub(super) fn check(path: &Path, kind: &str) -> Result<(), Error> {
    let expected = match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" | "Directory" => "directory",
        "FileOrCreate" | "File" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
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
    let fits = fs::metadata(path).map(|m| m.file_type()).is_ok_and(|found| match expected {
        "directory" => found.is_dir(),
        "file" => found.is_file(),
        "socket file" => found.is_socket(),
        "character device" => found.is_char_device(),
        _ => found.is_block_device(),
    });
    if fits { Ok(()) } else { Err(Error::HostPathType { path: path.to_owned(), expected }) }
}
