//! Tasks by state from `/proc`, where the kernel takes no iterator.
//!
//! **Problem.** How many of a pod's tasks run, hang in the kernel or are dead and not waited for: the eBPF iterator tells
//! (`task_walk` in the programs' table). Where it cannot be loaded, `/proc` has to.
//!
//! **Approach.** `/proc/PID/cgroup` says whose a process is, and does so for zombies, which `cgroup.procs` leaves out. Of processes
//! below the pods' root every thread's `stat` is read. One letter there is the state.
//!
//! **Terms.** A *path* is that of a cgroup below the mount of the v2 hierarchy, with a leading slash, as `/proc/PID/cgroup` has it.
//!
//! **Properties.** Some 15 us for each process of the node and each thread of a pod; a budget ends a walk that would take too
//! long, and then nothing is known. A process that ends meanwhile is left out. Same meaning as the iterator's records.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use beelet_ebpf_common::TaskRecord;

/// Files of one walk are short: a longer command name or path is cut off.
const MAX_FILE: usize = 4096;

/// Why a walk has no result.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// `/proc` cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// There are more tasks than the budget allows to look at.
    #[error("there are more than {0} processes and threads to look at")]
    TooMany(usize),
}

/// Counts the tasks below a cgroup by the path of their own cgroup.
///
/// `proc` is the directory of a `proc` file system; `below` the path of the pods' root, `/` for all; `budget` the number of
/// processes and threads that may be looked at. [`TaskRecord::walk`] stays 0.
///
/// # Errors
/// If `proc` cannot be listed, or the budget is used up.
pub fn walk(proc: &Path, below: &str, budget: usize) -> Result<BTreeMap<String, TaskRecord>, WalkError> {
    let failed = |source| WalkError::Read { path: proc.display().to_string(), source };
    let mut found: BTreeMap<String, TaskRecord> = BTreeMap::new();
    let mut left = budget;
    let mut spend = || {
        left = left.checked_sub(1).ok_or(WalkError::TooMany(budget))?;
        Ok(())
    };
    let mut text = String::with_capacity(MAX_FILE);
    for process in fs::read_dir(proc).map_err(failed)? {
        let process = process.map_err(failed)?.path();
        if !is_number(&process) {
            continue;
        }
        spend()?;
        // What cannot be read has ended.
        if read(&process.join("cgroup"), &mut text).is_err() {
            continue;
        }
        let Some(path) = unified_path(&text).filter(|path| is_below(path, below)) else { continue };
        let path = path.to_owned();
        let Ok(threads) = fs::read_dir(process.join("task")) else { continue };
        for thread in threads.flatten() {
            spend()?;
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Proc(PathBuf);

    impl Proc {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("beelet-walk-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("sys")).unwrap();
            Self(path)
        }

        fn process(&self, pid: u32, cgroup: &str, threads: &[(u32, char)]) {
            let process = self.0.join(pid.to_string());
            fs::create_dir_all(&process).unwrap();
            for (tid, state) in threads {
                let thread = process.join("task").join(tid.to_string());
                fs::create_dir_all(&thread).unwrap();
                fs::write(thread.join("stat"), format!("{tid} (a) R (b)) {state} 1 1 1 0 -1")).unwrap();
            }
            fs::write(process.join("cgroup"), format!("4:memory:/other\n0::{cgroup}\n")).unwrap();
        }
    }

    impl Drop for Proc {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn tasks_are_counted_for_their_own_cgroup_by_state() {
        let proc = Proc::new("states");
        proc.process(10, "/pods/a", &[(10, 'S'), (11, 'R'), (12, 'D'), (13, 'Z'), (14, 'X')]);
        proc.process(20, "/pods/a", &[(20, 'Z')]);
        proc.process(30, "/pods/a/b", &[(30, 'T'), (31, 't'), (32, 'I')]);
        proc.process(40, "/pods-not", &[(40, 'R')]);
        proc.process(50, "/pods/gone (deleted)", &[(50, 'D')]);
        let found = walk(&proc.0, "/pods", 100).unwrap();
        let a =
            TaskRecord { sleeping: 1, running: 1, uninterruptible: 1, zombie: 1, processes: 2, ..Default::default() };
        let b = TaskRecord { stopped: 2, processes: 1, ..Default::default() };
        let gone = TaskRecord { uninterruptible: 1, processes: 1, ..Default::default() };
        let expected = [("/pods/a", a), ("/pods/a/b", b), ("/pods/gone", gone)];
        assert_eq!(found, expected.map(|(path, record)| (path.to_owned(), record)).into());
        assert_eq!(walk(&proc.0, "/", 100).unwrap().len(), 4);
    }

    #[test]
    fn a_walk_that_would_take_too_long_says_nothing() {
        let proc = Proc::new("budget");
        proc.process(10, "/pods/a", &[(10, 'S'), (11, 'R')]);
        assert!(matches!(walk(&proc.0, "/pods", 2), Err(WalkError::TooMany(2))));
        assert_eq!(walk(&proc.0, "/pods", 3).unwrap()["/pods/a"].processes, 1);
    }

    #[test]
    fn a_process_that_is_half_gone_or_broken_is_left_out() {
        let proc = Proc::new("gone");
        proc.process(10, "/pods/a", &[(10, 'S')]);
        fs::remove_file(proc.0.join("10/task/10/stat")).unwrap();
        fs::create_dir(proc.0.join("11")).unwrap();
        proc.process(12, "/pods/b", &[]);
        proc.process(13, "/pods/c", &[(13, 'S')]);
        fs::write(proc.0.join("13/task/13/stat"), "13 (no end").unwrap();
        assert!(walk(&proc.0, "/pods", 100).unwrap().is_empty());
        assert!(matches!(walk(&proc.0.join("none"), "/pods", 100), Err(WalkError::Read { .. })));
    }
}
