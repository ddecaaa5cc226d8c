//! Tasks by state from `/proc`, for comparison with what the eBPF iterator tells.
//!
//! **Approach.** `/proc/PID/cgroup` says whose a process is, and does so for zombies, which `cgroup.procs` leaves out. Of processes
//! below the pods' root every thread's `stat` is read. One letter there is the state.
//!
//! **Terms.** A *path* is that of a cgroup below the mount of the v2 hierarchy, with a leading slash, as `/proc/PID/cgroup` has it.
//!
//! **Properties.** A process that ends meanwhile is left out. Same meaning as the iterator's records.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use beelet_ebpf_common::TaskRecord;

/// Files of one walk are short: a longer command name or path is cut off.
const MAX_FILE: usize = 4096;

/// Counts the tasks below a cgroup by the path of their own cgroup.
///
/// `below` is the path of the pods' root. [`TaskRecord::walk`] stays 0.
pub(crate) fn walk(below: &str) -> io::Result<BTreeMap<String, TaskRecord>> {
    let mut found: BTreeMap<String, TaskRecord> = BTreeMap::new();
    let mut text = String::with_capacity(MAX_FILE);
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        if !is_number(&process) {
            continue;
        }
        // What cannot be read has ended.
        if read(&process.join("cgroup"), &mut text).is_err() {
            continue;
        }
        let Some(path) = unified_path(&text).filter(|path| is_below(path, below)) else { continue };
        let path = path.to_owned();
        let Ok(threads) = fs::read_dir(process.join("task")) else { continue };
        for thread in threads.flatten() {
            if read(&thread.path().join("stat"), &mut text).is_err() {
                continue;
            }
            let Some(state) = state(&text) else { continue };
            let is_leader = Some(&*thread.file_name()) == process.file_name();
            count(found.entry(path.clone()).or_default(), state, is_leader);
        }
    }
    // A cgroup all of whose tasks ended in between.
    found.retain(|_, record| *record != TaskRecord::default());
    Ok(found)
}

fn is_number(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

fn read(path: &Path, text: &mut String) -> io::Result<()> {
    text.clear();
    File::open(path)?.take(MAX_FILE as u64).read_to_string(text)?;
    Ok(())
}

/// The path in the v2 hierarchy, from the line `0::/path` (with ` (deleted)` behind it once the directory is gone).
fn unified_path(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(path.strip_suffix(" (deleted)").unwrap_or(path))
}

fn is_below(path: &str, root: &str) -> bool {
    let root = root.trim_end_matches('/');
    path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The letter behind the command name, which may hold spaces and brackets itself.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The letters are those of the kernel's `task_state_array` (`fs/proc/array.c`).
fn count(record: &mut TaskRecord, state: char, is_leader: bool) {
    match state {
        // A thread that is dead and no leader is about to vanish.
        'X' | 'x' => return,
        'Z' if !is_leader => return,
        'Z' => record.zombie += 1,
        'R' => record.running += 1,
        'S' => record.sleeping += 1,
        'D' => record.uninterruptible += 1,
        'T' | 't' => record.stopped += 1,
        // Idle kernel threads, and letters of kernels to come.
        _ => {}
    }
    if is_leader {
        record.processes += 1;
    }
}
