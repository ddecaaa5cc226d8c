//! The thread that writes the cgroups above pods, and the knobs that beelet turns by its own decision.
//!
//! One thread, so that the journal's lines are in the order of the writes. A knob that somebody else has changed twice since
//! beelet wrote it is a fight: it is left alone from then on, counted, and said.
//!
//! A knob that holds a pod up is turned only while a [`Guard`] watches, who turns it back in time should the agent be killed. A raised
//! memory limit goes back when what is held fits below it, and is *held* until then. Whatever becomes of those who decide, what holds a pod
//! up is turned back when its time is over: the thread has the *deadline* of each.
//!
//! A memory limit above pods that is lower than what they hold would make the kernel kill at once, anyone of them. So it is cut to
//! what they hold and a little more, and cut again, until the wanted value stands; so is a write that failed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use beelet_core::event::{Knob, KnobWrite, PodCgroup};
use beelet_core::units::Bytes;

use super::guard::{self, Guard};
use super::journal::{Journal, Restore, name};
use crate::cgroup::{Error, Tree};

/// Somebody else's changes of a knob after which it is left to them.
const FIGHT: u32 = 2;
/// What does not stand yet is tried again after this long.
const RETRY: Duration = if cfg!(test) { Duration::from_millis(100) } else { Duration::from_secs(10) };
/// How long those who decide may be late to turn back what holds a pod up.
const GRACE: Duration = Duration::from_secs(2);
/// A memory limit is not cut closer to what is held than this, or than a sixteenth of it.
const SLACK: Bytes = Bytes::mib(16);

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KnobCounts {
    /// Knobs written.
    pub(super) writes: u64,
    /// Writes that failed.
    pub(super) failures: u64,
    /// Knobs set back to their value before.
    pub(super) restored: u64,
    /// Knobs left to somebody else who keeps changing them.
    pub(super) fights: u64,
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
    Resized(String),
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
    pub(super) fn spawn(tree: Arc<Tree>, journal: Journal, guard: Option<Guard>) -> std::io::Result<Self> {
        let (jobs, queue) = channel();
        let mut worker = Worker::new(tree, journal);
        worker.guard = guard;
        let counters = Arc::clone(&worker.counters);
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

    /// A cgroup was given another limit, by beelet itself: that one counts, and is no fight.
    pub(super) fn resized(&self, cgroup: String) {
        self.send(Job::Resized(cgroup));
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

/// Turns knobs, and turns them back.
pub(super) struct Worker {
    tree: Arc<Tree>,
    journal: Journal,
    counters: Arc<Counters>,
    /// Who turns back what holds pods up if the agent is killed; `None`: nobody, and then nothing may.
    guard: Option<Guard>,
    /// How often somebody else changed a knob.
    fights: HashMap<(String, &'static str), u32>,
    /// Cgroups whose wanted values do not stand yet, by path. That was told.
    pending: BTreeMap<String, PodCgroup>,
    /// Raised limits that could not go back yet, because more is held.
    held: Vec<Restore>,
    /// When what holds a pod up is turned back at the latest.
    pub(super) deadlines: BTreeMap<(String, &'static str), Instant>,
}

impl Worker {
    pub(super) fn new(tree: Arc<Tree>, journal: Journal) -> Self {
        Self {
            tree,
            journal,
            counters: Arc::default(),
            guard: None,
            fights: HashMap::new(),
            pending: BTreeMap::new(),
            held: Vec::new(),
            deadlines: BTreeMap::new(),
        }
    }

    fn work(mut self, queue: &Receiver<Job>) {
        if self.journal.unreadable() > 0 {
            tracing::warn!(lines = self.journal.unreadable(), "lines of the journal cannot be read and were skipped");
        }
        self.restore_all();
        let mut retry = Instant::now();
        loop {
            self.expire();
            let idle = self.pending.is_empty() && self.held.is_empty();
            let next = self.deadlines.values().min().copied().into_iter().chain((!idle).then_some(retry)).min();
            let wait = next.map_or(Duration::MAX, |next| next.saturating_duration_since(Instant::now()));
            let job = match queue.recv_timeout(wait) {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) if retry > Instant::now() => continue,
                Err(RecvTimeoutError::Timeout) => {
                    let pending: Vec<PodCgroup> = self.pending.values().cloned().collect();
                    self.ensure(pending);
                    for restore in std::mem::take(&mut self.held) {
                        self.restore(&restore);
                    }
                    retry = Instant::now() + RETRY;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match job {
                Job::Cgroups(cgroups) => {
                    self.ensure(cgroups);
                    retry = Instant::now() + RETRY;
                }
                Job::Write(write) => self.write(&write),
                Job::Gone(cgroup) => self.gone(&cgroup),
                Job::Resized(cgroup) => self.resized(&cgroup),
                Job::Stop(done) => {
                    self.restore_all();
                    // Nobody waits any more: as well.
                    let _gone = done.send(());
                }
            }
        }
    }

    /// Turns back what holds a pod up and has had its time. What cannot be is tried again a moment later.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        let over: Vec<_> = self.deadlines.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in over {
            tracing::warn!(cgroup = key.0, knob = key.1, "its time is over, and nobody has turned it back");
            self.restore_if(|restore| restore.cgroup == key.0 && name(restore.before) == key.1);
            let open = self.journal.recover().iter().any(|r| r.cgroup == key.0 && name(r.before) == key.1);
            if open {
                self.deadlines.insert(key, now + Duration::from_secs(1));
            } else {
                self.deadlines.remove(&key);
            }
        }
    }

    /// What does not stand after it is kept for another try.
    fn ensure(&mut self, cgroups: Vec<PodCgroup>) {
        for wanted in cgroups {
            let before = self.pending.remove(&wanted.path);
            let told = before.is_some_and(|before| before == wanted);
            match self.cut(&wanted) {
                Ok(None) if told => tracing::info!(cgroup = wanted.path, "a cgroup above pods is as it should be now"),
                Ok(None) => {}
                Ok(Some(limit)) => {
                    if !told {
                        tracing::warn!(
                            cgroup = wanted.path, wanted = ?wanted.knobs.memory_max, %limit,
                            "pods hold more than the new memory limit; a higher one holds until they need less"
                        );
                    }
                    self.pending.insert(wanted.path.clone(), wanted);
                }
                Err(error) => {
                    self.counters.failures.fetch_add(1, Ordering::Relaxed);
                    if !told {
                        tracing::error!(cgroup = wanted.path, %error, "cannot set up a cgroup above pods; beelet tries again");
                    }
                    self.pending.insert(wanted.path.clone(), wanted);
                }
            }
        }
    }

    /// Sets the cgroup, with a higher memory limit than the wanted one where that would kill; gives that one back.
    fn cut(&self, wanted: &PodCgroup) -> Result<Option<Bytes>, Error> {
        let held = self.tree.read(&wanted.path).and_then(|now| Ok((now, self.tree.unreclaimable(&wanted.path)?)));
        let limit = match held {
            Ok((now, held)) => safe_limit(wanted.knobs.memory_max, now.memory_max, held),
            // Made just now, it holds nothing.
            Err(error) if error.is_gone() => wanted.knobs.memory_max,
            Err(error) => return Err(error),
        };
        let mut set = wanted.clone();
        set.knobs.memory_max = limit;
        self.tree.ensure(&set)?;
        Ok(limit.filter(|_| limit != wanted.knobs.memory_max))
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
        let now = self.tree.read_knob(&write.cgroup, write.knob)?;
        let key = (write.cgroup.clone(), name(write.knob));
        self.held.retain(|held| (&held.cgroup, name(held.before)) != (&key.0, key.1));
        let mut first = self.journal.turned(&write.cgroup, write.knob).cloned();
        if let Some(turned) = &first
            && ![turned.after, turned.previous, turned.before].iter().any(|ours| same(now, *ours))
        {
            // What somebody else wrote is what it is to go back to from here.
            self.journal.close(&write.cgroup, write.knob, wall())?;
            first = None;
            let lost = self.fights.entry(key.clone()).or_default();
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
        if self.fights.get(&key).is_some_and(|lost| *lost >= FIGHT) {
            return Ok(());
        }
        // Going back needs no line before it: should a crash come between, the journal still says where back is. So a full
        // disk cannot keep a knob turned.
        let back = first.as_ref().is_some_and(|first| same(first.before, write.knob));
        if back && let Some(restore) = first {
            // The same rules as at the end: it is written if it kills nobody, and held where it would.
            self.restore(&restore);
            return Ok(());
        }
        if same(now, write.knob) {
            return Ok(());
        }
        if !self.fits(&write.cgroup, write.knob, now)? {
            tracing::info!(cgroup = write.cgroup, wanted = ?write.knob, "more is held; the limit stays as it is");
            return Ok(());
        }
        if strangles(write.knob) {
            self.guard.as_mut().ok_or(Failure::Unguarded)?.watch().map_err(Failure::Guard)?;
        }
        self.journal.intend(write, now, wall())?;
        if strangles(write.knob) {
            self.deadlines.insert(key, Instant::now() + guard::limit(write.knob) + GRACE);
        }
        self.tree.put_knob(&write.cgroup, write.knob)?;
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        tracing::info!(cgroup = write.cgroup, before = ?now, after = ?write.knob, why = write.why, "turned a knob");
        Ok(())
    }

    fn restore_all(&mut self) {
        self.restore_if(|_| true);
    }

    /// Turns back the knobs for which this says so.
    pub(super) fn restore_if(&mut self, wanted: impl Fn(&Restore) -> bool) {
        for restore in self.journal.recover().into_iter().filter(wanted) {
            self.restore(&restore);
        }
    }

    /// Back to the first value, if it holds what beelet wrote; what somebody else wrote since is theirs.
    fn restore(&mut self, restore: &Restore) {
        let done = match self.tree.read_knob(&restore.cgroup, restore.before) {
            Ok(now) if !same(now, restore.before) && (same(now, restore.after) || same(now, restore.previous)) => {
                match self.fits(&restore.cgroup, restore.before, now) {
                    Ok(true) => self.tree.put_knob(&restore.cgroup, restore.before).map(|()| true),
                    Ok(false) => {
                        tracing::warn!(
                            cgroup = restore.cgroup, raised = ?now, before = ?restore.before,
                            "more is held than the limit was; it stays raised until that fits"
                        );
                        self.held.push(restore.clone());
                        return;
                    }
                    Err(e) => Err(e),
                }
            }
            Ok(_) => Ok(false),
            Err(e) => Err(e),
        };
        match done {
            Ok(written) => {
                if written {
                    self.counters.restored.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(cgroup = restore.cgroup, after = ?restore.before, "turned a knob back");
                }
                self.close(&restore.cgroup, restore.before);
            }
            Err(e) if e.is_gone() => self.close(&restore.cgroup, restore.before),
            Err(error) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(cgroup = restore.cgroup, before = ?restore.before, %error, "cannot set a knob back");
            }
        }
    }

    /// Whether writing this kills nobody.
    fn fits(&self, cgroup: &str, wanted: Knob, now: Knob) -> Result<bool, Error> {
        let (Knob::MemoryMax(wanted @ Some(_)), Knob::MemoryMax(now)) = (wanted, now) else { return Ok(true) };
        Ok(safe_limit(wanted, now, self.tree.unreclaimable(cgroup)?) == wanted)
    }

    fn gone(&mut self, cgroup: &str) {
        let below = format!("{cgroup}/");
        self.fights.retain(|(path, _), _| path != cgroup && !path.starts_with(&below));
        self.held.retain(|held| held.cgroup != cgroup && !held.cgroup.starts_with(&below));
        for restore in self.journal.recover() {
            if restore.cgroup == cgroup || restore.cgroup.starts_with(&below) {
                self.close(&restore.cgroup, restore.before);
            }
        }
    }

    fn resized(&mut self, cgroup: &str) {
        let limit = Knob::MemoryMax(None);
        self.held.retain(|held| held.cgroup != cgroup || name(held.before) != name(limit));
        if self.journal.turned(cgroup, limit).is_some() {
            self.close(cgroup, limit);
        }
    }

    fn close(&mut self, cgroup: &str, knob: Knob) {
        self.deadlines.remove(&(cgroup.to_owned(), name(knob)));
        if let Err(error) = self.journal.close(cgroup, knob, wall()) {
            tracing::error!(%error, "the journal keeps a knob open that is not");
        }
    }
}

/// Whether a pod is held up by it, so that it must not stay without an agent.
pub(super) fn strangles(knob: Knob) -> bool {
    match knob {
        Knob::MemoryHigh(high) => high.is_some(),
        Knob::Freeze(frozen) => frozen,
        Knob::CpuBurst(_) | Knob::MemoryMax(_) => false,
    }
}

/// Whether a knob holds what was written: of memory the kernel keeps whole pages.
fn same(now: Knob, wrote: Knob) -> bool {
    let pages = |bytes: Option<Bytes>| bytes.map(|bytes| bytes.get() / 4_096);
    match (now, wrote) {
        (Knob::MemoryHigh(a), Knob::MemoryHigh(b)) | (Knob::MemoryMax(a), Knob::MemoryMax(b)) => pages(a) == pages(b),
        (a, b) => a == b,
    }
}

/// The memory limit that is nearest to the wanted one and makes nobody be killed. A raise is always safe.
pub(super) fn safe_limit(wanted: Option<Bytes>, now: Option<Bytes>, held: Bytes) -> Option<Bytes> {
    let wanted = wanted?;
    let least = held + SLACK.max(Bytes(held.get() / 16));
    let raised = now.is_some_and(|now| now <= wanted);
    if raised || least <= wanted {
        return Some(wanted);
    }
    Some(now.map_or(least, |now| now.min(least)))
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Cgroup(#[from] Error),
    #[error(transparent)]
    Journal(#[from] super::journal::JournalError),
    #[error("nobody would turn it back if the agent were killed")]
    Unguarded,
    #[error("the guard, who would turn it back if the agent were killed, cannot be started: {0}")]
    Guard(std::io::Error),
}

fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
