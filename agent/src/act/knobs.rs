//! The thread that writes the cgroups above pods, and the knobs that beelet turns by its own decision.
//!
//! One thread, so that the journal's lines are in the order of the writes. A knob that somebody else has changed twice since
//! beelet wrote it is a fight: it is left alone from then on, counted, and said.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{SystemTime, UNIX_EPOCH};

use beelet_core::event::{Knob, KnobWrite, PodCgroup};

use super::journal::{Journal, Restore, name};
use crate::cgroup::{Error, Tree};

/// Somebody else's changes of a knob after which it is left to them.
const FIGHT: u32 = 2;

/// What was written, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnobCounts {
    /// Knobs written.
    pub writes: u64,
    /// Writes that failed.
    pub failures: u64,
    /// Knobs set back to their value before.
    pub restored: u64,
    /// Knobs left to somebody else who keeps changing them.
    pub fights: u64,
}

#[derive(Debug, Default)]
struct Counters {
    writes: AtomicU64,
    failures: AtomicU64,
    restored: AtomicU64,
    fights: AtomicU64,
}

enum Job {
    Cgroups(Vec<PodCgroup>),
    Write(KnobWrite),
    /// The cgroup and all below it are gone.
    Gone(String),
    Stop(tokio::sync::oneshot::Sender<()>),
}

/// The way to the thread. It ends when this is dropped, without restoring.
#[derive(Debug)]
pub(super) struct Knobs {
    jobs: Sender<Job>,
    counters: Arc<Counters>,
}

impl Knobs {
    /// Starts the thread, which first restores what an earlier life of the agent left.
    pub(super) fn spawn(tree: Arc<Tree>, journal: Journal) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let counters = Arc::new(Counters::default());
        let worker = Worker { tree, journal, counters: Arc::clone(&counters), fights: HashMap::new() };
        std::thread::Builder::new().name("beelet-knobs".to_owned()).spawn(move || worker.work(&queue))?;
        Ok(Self { jobs, counters })
    }

    pub(super) fn cgroups(&self, cgroups: Vec<PodCgroup>) {
        self.send(Job::Cgroups(cgroups));
    }

    pub(super) fn write(&self, write: KnobWrite) {
        self.send(Job::Write(write));
    }

    pub(super) fn gone(&self, cgroup: String) {
        self.send(Job::Gone(cgroup));
    }

    fn send(&self, job: Job) {
        if self.jobs.send(job).is_err() {
            self.counters.failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!("the thread that writes knobs is gone");
        }
    }

    /// Restores everything, and returns when that is done.
    pub(super) async fn stop(&self) {
        let (done, wait) = tokio::sync::oneshot::channel();
        self.send(Job::Stop(done));
        // An error means that the thread is gone; that was logged.
        let _gone = wait.await;
    }

    pub(super) fn counts(&self) -> KnobCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        KnobCounts {
            writes: of(&c.writes),
            failures: of(&c.failures),
            restored: of(&c.restored),
            fights: of(&c.fights),
        }
    }
}

struct Worker {
    tree: Arc<Tree>,
    journal: Journal,
    counters: Arc<Counters>,
    /// How often somebody else changed a knob.
    fights: HashMap<(String, &'static str), u32>,
}

impl Worker {
    fn work(mut self, queue: &Receiver<Job>) {
        if self.journal.unreadable() > 0 {
            tracing::warn!(lines = self.journal.unreadable(), "lines of the journal cannot be read and were skipped");
        }
        self.restore_all();
        while let Ok(job) = queue.recv() {
            match job {
                Job::Cgroups(cgroups) => self.ensure(&cgroups),
                Job::Write(write) => self.write(&write),
                Job::Gone(cgroup) => self.gone(&cgroup),
                Job::Stop(done) => {
                    self.restore_all();
                    // Nobody waits any more: as well.
                    let _gone = done.send(());
                }
            }
        }
    }

    fn ensure(&self, cgroups: &[PodCgroup]) {
        for cgroup in cgroups {
            if let Err(error) = self.tree.ensure(cgroup) {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(cgroup = cgroup.path, %error, "cannot set up a cgroup above pods");
            }
        }
    }

    fn read(&self, cgroup: &str, knob: Knob) -> Result<Knob, Error> {
        match knob {
            Knob::CpuBurst(_) => self.tree.read_burst(cgroup).map(Knob::CpuBurst),
        }
    }

    fn put(&self, cgroup: &str, knob: Knob) -> Result<(), Error> {
        match knob {
            Knob::CpuBurst(burst) => self.tree.burst(cgroup, burst).map(drop),
        }
    }

    fn write(&mut self, write: &KnobWrite) {
        match self.try_write(write) {
            Ok(()) => {}
            // The container ended meanwhile.
            Err(Failure::Cgroup(e)) if e.is_gone() => self.close(&write.cgroup, write.knob),
            Err(error) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(cgroup = write.cgroup, knob = name(write.knob), %error, "cannot turn a knob");
            }
        }
    }

    fn try_write(&mut self, write: &KnobWrite) -> Result<(), Failure> {
        let now = self.read(&write.cgroup, write.knob)?;
        if now == write.knob {
            return Ok(());
        }
        let first = self.journal.turned(&write.cgroup, write.knob).map(|turned| {
            let others = now != turned.after && now != turned.previous && now != turned.before;
            (turned.before, others)
        });
        let key = (write.cgroup.clone(), name(write.knob));
        let lost = self.fights.entry(key).or_default();
        if first.is_some_and(|(_, others)| others) {
            *lost += 1;
            if *lost == FIGHT {
                self.counters.fights.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    cgroup = write.cgroup,
                    knob = name(write.knob),
                    "something else keeps changing this knob; beelet leaves it alone"
                );
            }
        }
        if *lost >= FIGHT {
            return Ok(());
        }
        // Going back needs no line before it: should a crash come between, the journal still says where back is. So a full
        // disk cannot keep a knob turned.
        let back = first.is_some_and(|(before, _)| before == write.knob);
        if !back {
            self.journal.intend(write, now, wall())?;
        }
        self.put(&write.cgroup, write.knob)?;
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        tracing::info!(cgroup = write.cgroup, before = ?now, after = ?write.knob, why = write.why, "turned a knob");
        if back {
            self.journal.close(&write.cgroup, write.knob, wall())?;
        }
        Ok(())
    }

    fn restore_all(&mut self) {
        for restore in self.journal.recover() {
            self.restore(&restore);
        }
    }

    /// Back to the first value, if it holds what beelet wrote; what somebody else wrote since is theirs.
    fn restore(&mut self, restore: &Restore) {
        let done = match self.read(&restore.cgroup, restore.before) {
            Ok(now) if now != restore.before && (now == restore.after || now == restore.previous) => {
                self.put(&restore.cgroup, restore.before).map(|()| true)
            }
            Ok(_) => Ok(false),
            Err(e) => Err(e),
        };
        match done {
            Ok(written) => {
                self.counters.restored.fetch_add(u64::from(written), Ordering::Relaxed);
                self.close(&restore.cgroup, restore.before);
            }
            Err(e) if e.is_gone() => self.close(&restore.cgroup, restore.before),
            Err(error) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(cgroup = restore.cgroup, before = ?restore.before, %error, "cannot set a knob back");
            }
        }
    }

    fn gone(&mut self, cgroup: &str) {
        let below = format!("{cgroup}/");
        self.fights.retain(|(path, _), _| path != cgroup && !path.starts_with(&below));
        for restore in self.journal.recover() {
            if restore.cgroup == cgroup || restore.cgroup.starts_with(&below) {
                self.close(&restore.cgroup, restore.before);
            }
        }
    }

    fn close(&mut self, cgroup: &str, knob: Knob) {
        if let Err(error) = self.journal.close(cgroup, knob, wall()) {
            tracing::error!(%error, "the journal keeps a knob open that is not");
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Cgroup(#[from] Error),
    #[error(transparent)]
    Journal(#[from] super::journal::JournalError),
}

fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
