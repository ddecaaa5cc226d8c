//! Open files of a container's processes, and how many of them are sockets.
//!
//! Problem: the kernel counts open files per process only, and sockets not at all. Approach: `/proc/PID/fd`, whose size is the number
//! of its entries since Linux 6.2 (fs/proc/fd.c), and is listed before that; each entry is a link, that of a socket begins with
//! `socket:[`. The limit from `/proc/PID/limits`.
//!
//! Properties: a process that is gone counts nothing; of more than [`MOST`] processes nothing is said, for the sum would be wrong, and
//! nothing of sockets where there are more than [`MOST_LINKS`] files or one cannot be looked at.

use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;

use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat_raw};
use rustix::io::Errno;

/// A container with more processes than this is left out: each costs some system calls.
pub(super) const MOST: usize = 256;
/// So many links of a container's files are read, each for less than 1 us.
const MOST_LINKS: u64 = 2_048;
/// With what the link of a socket begins.
const SOCKET: &[u8] = b"socket:[";

/// What the processes have open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenFiles {
    /// File descriptors of all of them.
    pub(super) count: u64,
    /// Of these, sockets; `None` if they were not counted.
    pub(super) sockets: Option<u64>,
    /// The lowest soft limit; `None` where none is known. `u64::MAX` is no limit.
    pub(super) limit: Option<u64>,
}

impl OpenFiles {
    /// Of nobody.
    pub(super) const NONE: Self = Self { count: 0, sockets: Some(0), limit: None };

    /// Those of both.
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            count: self.count.saturating_add(other.count),
            sockets: self.sockets.zip(other.sockets).map(|(a, b)| a.saturating_add(b)),
            limit: self.limit.into_iter().chain(other.limit).min(),
        }
    }
}

/// Counts for these processes below `proc`; `None` if there are too many.
pub(super) fn count(proc: &Path, processes: &[u32]) -> Option<OpenFiles> {
    if processes.len() > MOST {
        return None;
    }
    let (mut found, mut left) = (OpenFiles::NONE, MOST_LINKS);
    for pid in processes {
        let directory = proc.join(pid.to_string());
        let files = directory.join("fd");
        let Some(count) = descriptors(&files) else { continue };
        let sockets = found.sockets.and_then(|_| {
            left = left.checked_sub(count)?;
            sockets(&files)
        });
        let limit = fs::read_to_string(directory.join("limits")).ok().and_then(|text| soft_limit(&text));
        found = found.plus(OpenFiles { count, sockets, limit });
    }
    Some(found)
}

fn descriptors(directory: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let size = fs::metadata(directory).ok()?.size();
    // Before 6.2 the size is 0, and so it is of a process without files.
    if size > 0 { Some(size) } else { fs::read_dir(directory).ok().map(|entries| entries.count() as u64) }
}

/// Sockets among the links in this directory; `None` if one may not be looked at.
fn sockets(directory: &Path) -> Option<u64> {
    let directory = match openat(CWD, directory, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(directory) => directory,
        Err(error) => return is_gone(error).then_some(0),
    };
    let mut count = 0;
    for entry in Dir::read_from(&directory).ok()? {
        match entry.and_then(|entry| is_socket(&directory, entry.file_name())) {
            Ok(is_socket) => count += u64::from(is_socket),
            Err(error) if is_gone(error) => {}
            Err(_) => return None,
        }
    }
    Some(count)
}

fn is_socket(directory: &impl std::os::fd::AsFd, name: &CStr) -> Result<bool, Errno> {
    if name.to_bytes().first() == Some(&b'.') {
        return Ok(false);
    }
    // What does not fit is cut off.
    let mut start = [MaybeUninit::uninit(); SOCKET.len()];
    let (start, _) = readlinkat_raw(directory, name, &mut start)?;
    Ok(start == SOCKET)
}

/// The process has ended, or has closed the file.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::SRCH)
}

fn soft_limit(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_ascii_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn files_and_sockets_of_this_process_are_counted() {
        let me = std::process::id();
        let before = count(Path::new("/proc"), &[me]).unwrap();
        let held: Vec<fs::File> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let sockets: Vec<UdpSocket> = (0..40).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let after = count(Path::new("/proc"), &[me, u32::MAX]).unwrap();
        drop((held, sockets));
        // Other tests of this process open and close files, too.
        assert!(after.count >= before.count + 65, "{before:?} {after:?}");
        let (before, sockets) = (before.sockets.unwrap(), after.sockets.unwrap());
        assert!(sockets >= before + 30 && sockets + 25 <= after.count, "{before} {after:?}");
        assert!(after.limit.is_some_and(|limit| limit >= after.count));
        assert_eq!(count(Path::new("/proc"), &[]), Some(OpenFiles::NONE));
        assert_eq!(count(Path::new("/proc"), &[1; MOST + 1]), None);
    }

    #[test]
    fn of_too_many_files_the_sockets_are_not_counted() {
        let root = tempfile::tempdir().unwrap();
        for (pid, files) in [(7, 3), (8, MOST_LINKS)] {
            let directory = root.path().join(pid.to_string()).join("fd");
            fs::create_dir_all(&directory).unwrap();
            for fd in 0..files {
                std::os::unix::fs::symlink("socket:[123]", directory.join(fd.to_string())).unwrap();
            }
        }
        assert_eq!(sockets(&root.path().join("7/fd")), Some(3));
        let told = |processes: &[u32]| count(root.path(), processes).unwrap().sockets;
        assert_eq!((told(&[9]), told(&[7, 8])), (Some(0), None));
    }

    #[test]
    fn sums_are_of_what_is_known_of_all() {
        let one = OpenFiles { count: 3, sockets: Some(1), limit: Some(1_024) };
        let all = one.plus(OpenFiles { count: 4, sockets: Some(2), limit: Some(u64::MAX) }).plus(OpenFiles::NONE);
        assert_eq!(all, OpenFiles { count: 7, sockets: Some(3), limit: Some(1_024) });
        assert_eq!(one.plus(OpenFiles { sockets: None, ..one }).sockets, None);
    }

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let text = "Limit Soft Hard Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(soft_limit(text), Some(1024));
        assert_eq!(
            soft_limit("Max open files            unlimited            unlimited            files\n"),
            Some(u64::MAX)
        );
        assert_eq!(soft_limit("Max cpu time unlimited"), None);
    }
}
