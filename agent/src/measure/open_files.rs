//! Open files of a container's processes.
//!
//! Problem: the kernel counts open files per process only. Approach: `/proc/PID/fd`, whose size is the number of its entries since
//! Linux 6.2 (fs/proc/fd.c), and is listed before that; the limit from `/proc/PID/limits`.
//!
//! Properties: a process that is gone counts nothing; of more than [`MOST`] processes nothing is said, for the sum would be wrong.

use std::fs;
use std::path::Path;

/// A container with more processes than this is left out: each costs some system calls.
const MOST: usize = 256;

/// What the processes have open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OpenFiles {
    /// File descriptors of all of them.
    pub(super) count: u64,
    /// The lowest soft limit; `None` where none is known. `u64::MAX` is no limit.
    pub(super) limit: Option<u64>,
}

/// Counts for these processes below `proc`; `None` if there are none, or too many.
pub(super) fn count(proc: &Path, processes: &[u32]) -> Option<OpenFiles> {
    if processes.is_empty() || processes.len() > MOST {
        return None;
    }
    let mut found = OpenFiles::default();
    for pid in processes {
        let directory = proc.join(pid.to_string());
        let Some(count) = descriptors(&directory.join("fd")) else { continue };
        found.count += count;
        let limit = fs::read_to_string(directory.join("limits")).ok().and_then(|text| soft_limit(&text));
        found.limit = found.limit.into_iter().chain(limit).min();
    }
    Some(found)
}

fn descriptors(directory: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let size = fs::metadata(directory).ok()?.size();
    // Before 6.2 the size is 0, and so it is of a process without files.
    if size > 0 { Some(size) } else { fs::read_dir(directory).ok().map(|entries| entries.count() as u64) }
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
    use super::*;

    #[test]
    fn files_of_this_process_are_counted() {
        let me = std::process::id();
        let before = count(Path::new("/proc"), &[me]).unwrap();
        let held: Vec<fs::File> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = count(Path::new("/proc"), &[me, u32::MAX]).unwrap();
        drop(held);
        // Other tests of this process open and close files, too.
        assert!(after.count >= before.count + 25, "{before:?} {after:?}");
        assert!(after.limit.is_some_and(|limit| limit >= after.count));
        assert_eq!(count(Path::new("/proc"), &[]), None);
        assert_eq!(count(Path::new("/proc"), &[1; MOST + 1]), None);
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
