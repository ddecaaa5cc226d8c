//! Kills everything in a cgroup.
//!
//! Problem: when memory is about to run out, a kill that allocates, waits or asks another process comes too late. Approach:
//! one write of one byte to a file that was opened long before (`cgroup.kill` of the unified tree, Linux 5.14; a hybrid machine
//! has it too). The kernel then kills the whole subtree, forks in flight included. Only where that file is missing are the
//! processes signalled one by one, in rounds until a round finds nobody new.
//!
//! Properties: [`KillHandle::kill`] waits for nothing; processes that are not in the cgroup are never signalled (except, in
//! the fallback, within the kernel's unavoidable window between listing a pid and signalling it).

use std::collections::HashSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

use super::error::Error;
use super::layout::check;
use super::reap::{self, Reaped};
use super::tree::Tree;

/// Rounds of the fallback: a fork bomb that survives as many is left to the next kill.
const ROUNDS: usize = 32;

/// What a kill did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Killed {
    /// Tasks that were there by `pids.current` (processes and threads), or processes signalled where they were one by one.
    pub tasks: u64,
    /// By one write to `cgroup.kill`, which catches forks in flight.
    pub at_once: bool,
}

/// A cgroup with its files opened beforehand.
#[derive(Debug)]
pub struct KillHandle {
    kill: Option<OwnedFd>,
    /// `memory.high`, where there is one.
    high: Option<OwnedFd>,
    count: Option<OwnedFd>,
    unified: PathBuf,
    v1: Option<PathBuf>,
}

impl Tree {
    /// Opens what a later kill of this cgroup needs. Missing files are no error: they are looked for again at the kill.
    ///
    /// # Errors
    /// If the path is not plain and relative.
    pub fn kill_handle(&self, path: &str) -> Result<KillHandle, Error> {
        check(path)?;
        let unified = self.hierarchies.unified.join(path);
        let count = self.hierarchies.home("pids", path).dir.join("pids.current");
        let open = |file: &Path, flags| rustix::fs::open(file, flags | OFlags::CLOEXEC, Mode::empty()).ok();
        Ok(KillHandle {
            kill: open(&unified.join("cgroup.kill"), OFlags::WRONLY),
            high: open(&unified.join("memory.high"), OFlags::WRONLY),
            count: open(&count, OFlags::RDONLY),
            v1: self.hierarchies.v1_root("memory").map(|root| root.join(path)),
            unified,
        })
    }

    /// Kills everything in the cgroup and below it, and waits for nothing. A cgroup that is not there has nobody to kill.
    ///
    /// # Errors
    /// If the path is not plain, or the kernel refuses.
    pub fn kill(&self, path: &str) -> Result<Killed, Error> {
        self.kill_handle(path)?.kill()
    }

    /// Kills until nobody is left in any hierarchy, for at most `limit`; thaws what is frozen on v1, where a frozen process
    /// does not die. Returns whether it is empty.
    ///
    /// # Errors
    /// As [`Tree::kill`].
    pub fn kill_until_empty(&self, path: &str, limit: Duration) -> Result<bool, Error> {
        let begun = Instant::now();
        let handle = self.kill_handle(path)?;
        let mut pause = Duration::from_millis(1);
        loop {
            handle.kill()?;
            if let Some(root) = self.hierarchies.v1_root("freezer") {
                each_folder(&root.join(path), &mut |dir| {
                    let _not_frozen_or_gone = fs::write(dir.join("freezer.state"), "THAWED");
                });
            }
            let mut pids = Vec::new();
            for root in self.hierarchies.roots() {
                processes(&root.join(path), &mut pids);
            }
            if pids.is_empty() {
                return Ok(true);
            }
            if begun.elapsed() >= limit {
                return Ok(false);
            }
            signal(&pids, &mut HashSet::new());
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl KillHandle {
    /// Kills everything in the cgroup and below it, now.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn kill(&self) -> Result<Killed, Error> {
        if let Some(high) = &self.high {
            // A task that is held up above it would die late (mm/memcontrol.c, `mem_cgroup_handle_over_high`, before 6.9). Where it
            // cannot be written nothing is held up.
            let _not_held_up = rustix::io::write(high, b"max");
        }
        let tasks = self.count.as_ref().map_or(0, current);
        let file = || self.unified.join("cgroup.kill");
        let written = match &self.kill {
            Some(fd) => rustix::io::write(fd, b"1").map(drop),
            None => Err(rustix::io::Errno::NODEV),
        };
        let written = match written {
            // The cgroup was made again under the same name, or was not there when the handle was opened.
            Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOENT) => {
                rustix::fs::open(file(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                    .and_then(|fd| rustix::io::write(fd, b"1").map(drop))
            }
            other => other,
        };
        match written {
            Ok(()) => Ok(Killed { tasks, at_once: true }),
            Err(rustix::io::Errno::NODEV | rustix::io::Errno::NOENT) => Ok(self.one_by_one()),
            Err(e) => Err(Error::write(&file(), "1", &e.into())),
        }
    }

    /// Frees the memory of what was killed, for whoever waits for it; after [`kill`](Self::kill), which waits for nothing.
    #[must_use]
    pub fn reap(&self) -> Reaped {
        let mut pids = Vec::new();
        processes(&self.unified, &mut pids);
        reap::reap(&pids)
    }

    fn one_by_one(&self) -> Killed {
        let mut signalled = HashSet::new();
        for _ in 0..ROUNDS {
            let mut pids = Vec::new();
            processes(&self.unified, &mut pids);
            if let Some(dir) = &self.v1 {
                processes(dir, &mut pids);
            }
            if signal(&pids, &mut signalled) == 0 {
                break;
            }
        }
        Killed { tasks: signalled.len() as u64, at_once: false }
    }
}

/// Sends SIGKILL to those not signalled before; how many.
fn signal(pids: &[i32], signalled: &mut HashSet<i32>) -> usize {
    let own = rustix::process::getpid();
    let mut fresh = 0;
    // 0 is a process of another pid namespace; beelet in a pod's cgroup would be a mistake, but not one to die of.
    for pid in pids.iter().filter_map(|&raw| Pid::from_raw(raw)).filter(|&pid| pid != own && pid != Pid::INIT) {
        if signalled.insert(pid.as_raw_nonzero().get()) {
            fresh += 1;
            // Already gone is as good as killed.
            let _gone = kill_process(pid, Signal::KILL);
        }
    }
    fresh
}

/// `pids.current`, without an allocation; 0 if it cannot be read.
fn current(fd: &OwnedFd) -> u64 {
    let mut buffer = [0_u8; 24];
    let length = rustix::io::pread(fd, &mut buffer, 0).unwrap_or(0);
    let digits = buffer[..length].iter().take_while(|b| b.is_ascii_digit());
    digits.fold(0_u64, |sum, digit| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

/// The processes of a cgroup and of those below it. What is gone has none.
pub(super) fn processes(dir: &Path, into: &mut Vec<i32>) {
    each_folder(dir, &mut |dir| {
        if let Ok(text) = fs::read_to_string(dir.join("cgroup.procs")) {
            into.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
    });
}

/// Calls `with` for a folder that is there and all below it.
fn each_folder(dir: &Path, with: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    with(dir);
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())) {
        each_folder(&entry.path(), with);
    }
}
