//! The thread that kills.
//!
//! Problem: at the moment a kill is needed the machine is out of memory: tasks stall in page faults, queues are full, a runtime
//! that is asked answers after the OOM killer. Approach: a thread that waits on a channel and has the files open; the kill is one
//! `write`. Telling people comes after it, and then the thread frees the victim's memory on its own time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use beelet_core::spec::PodUid;

use crate::cgroup::{Error, KillHandle, Reaped, Tree};

/// What the kill thread has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KillCounts {
    /// Kills done.
    pub(super) kills: u64,
    /// Kills that the kernel refused.
    pub(super) failures: u64,
    /// From the request to the end of the write, the longest, in microseconds.
    pub(super) longest_us: u64,
}

struct Job {
    uid: PodUid,
    cgroup: String,
    asked: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    armed: Mutex<HashMap<String, Arc<KillHandle>>>,
    kills: AtomicU64,
    failures: AtomicU64,
    longest_us: AtomicU64,
}

impl Shared {
    fn armed(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<KillHandle>>> {
        // A map of files is right after a panic, too.
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the kill thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Killer {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    tree: Arc<Tree>,
}

impl Killer {
    /// Starts the thread.
    pub(super) fn spawn(tree: Arc<Tree>) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let shared = Arc::new(Shared::default());
        let (of_thread, its_tree) = (Arc::clone(&shared), Arc::clone(&tree));
        std::thread::Builder::new()
            .name("beelet-kill".to_owned())
            .spawn(move || work(&queue, &of_thread, &its_tree))?;
        Ok(Self { jobs, shared, tree })
    }

    /// Kills everything in the cgroup, soon, on the thread.
    pub(super) fn kill(&self, uid: PodUid, cgroup: String) {
        let asked = Instant::now();
        // Only if the thread has panicked; the work is short enough to do it here.
        if let Err(SendError(job)) = self.jobs.send(Job { uid, cgroup, asked }) {
            let _killed = kill(job, &self.shared, &self.tree);
        }
    }

    /// Opens beforehand what a kill of this cgroup needs.
    pub(super) fn arm(&self, cgroup: &str) -> Result<(), Error> {
        if self.shared.armed().contains_key(cgroup) {
            return Ok(());
        }
        let handle = self.tree.kill_handle(cgroup)?;
        self.shared.armed().insert(cgroup.to_owned(), Arc::new(handle));
        Ok(())
    }

    /// Closes them.
    pub(super) fn disarm(&self, cgroup: &str) {
        self.shared.armed().remove(cgroup);
    }

    pub(super) fn counts(&self) -> KillCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        KillCounts {
            kills: of(&self.shared.kills),
            failures: of(&self.shared.failures),
            longest_us: of(&self.shared.longest_us),
        }
    }
}

fn work(queue: &Receiver<Job>, shared: &Shared, tree: &Tree) {
    while let Ok(job) = queue.recv() {
        let mut killed: Vec<_> = kill(job, shared, tree).into_iter().collect();
        // To free memory takes longer than to kill; whoever else is to go goes first.
        while let Ok(job) = queue.try_recv() {
            killed.extend(kill(job, shared, tree));
        }
        for (cgroup, handle) in killed {
            let Reaped { released, gone, left } = handle.reap();
            tracing::info!(cgroup, released, gone, left, "freed the memory of what was killed");
        }
    }
}

/// Kills; what was killed, for its memory is to be freed.
fn kill(Job { uid, cgroup, asked }: Job, shared: &Shared, tree: &Tree) -> Option<(String, Arc<KillHandle>)> {
    let armed = shared.armed().get(&cgroup).map(Arc::clone);
    let handle = armed.map_or_else(|| tree.kill_handle(&cgroup).map(Arc::new), Ok);
    let killed = handle.and_then(|handle| handle.kill().map(|killed| (handle, killed)));
    let took_us = u64::try_from(asked.elapsed().as_micros()).unwrap_or(u64::MAX);
    shared.longest_us.fetch_max(took_us, Ordering::Relaxed);
    match killed {
        Ok((handle, killed)) => {
            shared.kills.fetch_add(1, Ordering::Relaxed);
            let (tasks, at_once) = (killed.tasks, killed.at_once);
            tracing::warn!(%uid, %cgroup, took_us, tasks, at_once, "killed the pod's processes");
            Some((cgroup, handle))
        }
        Err(error) => {
            shared.failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%uid, %cgroup, %error, "cannot kill the pod's processes");
            None
        }
    }
}
