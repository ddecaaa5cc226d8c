//! Keeps the logs of running containers small.
//!
//! Problem: see [`crate::logs`]. Approach: one task owns what is known of each log. It looks at those that grow when
//! [`beelet_core::logs`] says so; for one that rests the kernel tells of the next write, once (inotify), so that a thousand quiet logs
//! cost nothing and one that is written all the time no event per write. A rotation is a task of its own: rename, let the runtime
//! reopen, remove what is too much. Compressing comes after that, on a thread for what blocks, `workers` at a time; no rotation waits
//! for it.
//!
//! The kubelet's order (compress, then rotate; `containerLogMaxWorkers` logs at a time) lets a log grow for as long as the compressing
//! takes, or while another log's call to the runtime hangs.
//!
//! Properties (tested): a log that a killed agent renamed and did not have reopened is reopened; one that cannot be reopened gets its
//! name back, and is tried again after 1 s, 2 s and so on up to [`Settings::interval`]; where the kernel tells of no writes, logs that
//! rest are looked at every [`LATEST`].

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use beelet_core::logs::{Growth, LATEST, Next, Policy};
use beelet_core::units::{Bytes, Micros};
use futures::StreamExt as _;
use inotify::{EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};

use super::compress::{Compressed, compress};
use super::files::{LogFiles, second_now};
use super::{Deed, Fault, Health};
use crate::blocking::blocking;

/// Looks that are due within this time are made together.
const TOGETHER: Duration = Duration::from_millis(5);
/// A log that is not there is looked for so often,
const MISSING: Duration = Duration::from_millis(100);
/// and after this time the runtime is asked to open it.
const PATIENCE: Duration = Duration::from_secs(1);
/// So long the runtime may take to reopen a log.
const REOPEN: Duration = Duration::from_secs(10);
/// So often it may fail without a word, as the container may not run yet.
const SLOW_START: u32 = 3;
/// After the first failure; twice as long after each further one.
const AGAIN: Duration = Duration::from_secs(1);

/// The logs of the containers that run: where they are, by the runtime's ids.
pub type Running = BTreeMap<String, PathBuf>;

/// Who writes the logs. Tests have another one.
pub trait Writer: Send + Sync + 'static {
    /// Has a container's log opened anew by its name.
    fn reopen(&self, id: &str) -> impl Future<Output = Result<(), String>> + Send;
}

/// How logs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How large they may be.
    pub policy: Policy,
    /// `containerLogMaxWorkers`: so many are compressed at a time.
    pub workers: usize,
    /// `containerLogMonitorInterval`: logs that rest are looked at so often, for what the kernel does not tell.
    pub interval: Duration,
}

/// Keeps the logs that are in `running`, until that ends.
pub async fn keep<W: Writer>(
    writer: Arc<W>,
    settings: Settings,
    health: Arc<Health>,
    mut running: watch::Receiver<Running>,
) {
    let mut keeper = Keeper::new(writer, settings, health);
    running.mark_changed();
    loop {
        keeper.look().await;
        keeper.compress();
        let due = keeper.due();
        tokio::select! {
            changed = running.changed() => {
                if changed.is_err() {
                    return;
                }
                let logs = running.borrow_and_update().clone();
                keeper.aim(&logs);
            }
            Some(woken) = next(&mut keeper.news) => keeper.wake(&woken),
            Some(done) = keeper.jobs.join_next(), if !keeper.jobs.is_empty() => keeper.ended(done),
            () = sleep_until(due) => {}
        }
    }
}

/// What is being done with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It is looked at when it is due.
    Looking,
    /// The kernel tells when it is written to.
    Resting,
    /// A job has it.
    Busy,
}

struct Kept {
    files: Arc<LogFiles>,
    growth: Growth,
    doing: Doing,
    due: Instant,
    woken: bool,
    missing: Option<Instant>,
    /// In a row, and when to try again.
    failures: u32,
    not_before: Instant,
    told: bool,
    compressing: bool,
    /// Since when there may be something to compress.
    to_compress: Option<Instant>,
}

/// The kernel's word of writes.
struct News {
    stream: EventStream<[u8; 4096]>,
    watches: Watches,
    logs: HashMap<WatchDescriptor, String>,
}

/// The job of a log, and how it ended.
struct Ended {
    id: String,
    job: Job,
}

enum Job {
    /// Left-overs were cleaned up.
    Cleaned(Result<u64, (Fault, String)>),
    /// It was rotated, or only reopened where it was missing.
    Rotated { reopened_only: bool, outcome: Result<u64, (Fault, String)> },
    /// One file was compressed, if there was one.
    Compressed(io::Result<Option<Compressed>>),
}

struct Keeper<W> {
    writer: Arc<W>,
    settings: Settings,
    health: Arc<Health>,
    logs: BTreeMap<String, Kept>,
    news: Option<News>,
    jobs: JoinSet<Ended>,
    compressing: usize,
    began: Instant,
    /// When all that rest are looked at.
    round: Instant,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl<W: Writer> Keeper<W> {
    fn new(writer: Arc<W>, settings: Settings, health: Arc<Health>) -> Self {
        let stream = Inotify::init().and_then(|inotify| inotify.into_event_stream([0; 4096]));
        let news = match stream {
            Ok(stream) => Some(News { watches: stream.watches(), stream, logs: HashMap::new() }),
            Err(error) => {
                warn!(%error, "the kernel cannot tell of writes to logs; all are looked at, ten times a second");
                None
            }
        };
        let (now, stop) = (Instant::now(), CancellationToken::new());
        let _stop = stop.clone().drop_guard();
        Self {
            writer,
            settings,
            health,
            logs: BTreeMap::new(),
            news,
            jobs: JoinSet::new(),
            compressing: 0,
            began: now,
            round: now + settings.interval,
            stop,
            _stop,
        }
    }

    fn now(&self) -> Micros {
        Micros(u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    /// Keeps these logs from now on.
    fn aim(&mut self, running: &Running) {
        self.logs.retain(|id, _| running.contains_key(id));
        let now = Instant::now();
        for (id, log) in running {
            let Some(files) = LogFiles::of(log).filter(|_| !self.logs.contains_key(id)).map(Arc::new) else { continue };
            let kept = Kept {
                files: Arc::clone(&files),
                growth: Growth::default(),
                doing: Doing::Looking,
                due: now,
                woken: false,
                missing: None,
                failures: 0,
                not_before: now,
                told: false,
                compressing: false,
                to_compress: None,
            };
            self.logs.insert(id.clone(), kept);
            let (id, policy) = (id.clone(), self.settings.policy);
            self.jobs.spawn(async move {
                let cleaned = blocking(move || files.clean(&policy, false)).await;
                Ended { id, job: Job::Cleaned(cleaned.map_err(|error| (Fault::Remove, error.to_string()))) }
            });
        }
    }

    /// When something is to be done next.
    fn due(&self) -> Instant {
        let looking = self.logs.values().filter(|log| log.doing == Doing::Looking).map(|log| log.due);
        looking.min().map_or(self.round, |due| due.min(self.round))
    }

    /// The kernel told of a write.
    fn wake(&mut self, woken: &WatchDescriptor) {
        let id = self.news.as_mut().and_then(|news| news.logs.remove(woken));
        let log = id.and_then(|id| self.logs.get_mut(&id)).filter(|log| log.doing == Doing::Resting);
        if let Some(log) = log {
            (log.doing, log.woken, log.due) = (Doing::Looking, true, Instant::now());
        }
    }

    /// Looks at what is due, and does what comes of it.
    async fn look(&mut self) {
        let now = Instant::now();
        let everyone = now >= self.round;
        if everyone {
            self.round = now + self.settings.interval;
        }
        let due = self.logs.iter().filter(|(_, log)| match log.doing {
            Doing::Looking => log.due <= now + TOGETHER,
            Doing::Resting => everyone || self.news.is_none(),
            Doing::Busy => false,
        });
        let due: Vec<(String, Arc<LogFiles>)> = due.map(|(id, log)| (id.clone(), Arc::clone(&log.files))).collect();
        if due.is_empty() {
            return;
        }
        let sizes = blocking(move || due.into_iter().map(|(id, files)| (id, files.size())).collect::<Vec<_>>()).await;
        let mut quiet = Vec::new();
        for (id, size) in sizes {
            if self.looked(&id, size) == Some(Next::Rest)
                && let Some(log) = self.logs.get(&id)
            {
                quiet.push((id, Arc::clone(&log.files)));
            }
        }
        self.rest(quiet).await;
    }

    /// A log was looked at; says what that means, if something.
    fn looked(&mut self, id: &str, size: io::Result<Bytes>) -> Option<Next> {
        let (moment, now) = (self.now(), Instant::now());
        let log = self.logs.get_mut(id)?;
        let size = match size {
            Ok(size) => size,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let since = *log.missing.get_or_insert(now);
                (log.doing, log.due) = (Doing::Looking, (now + MISSING).max(log.not_before));
                if now.duration_since(since) >= PATIENCE && now >= log.not_before {
                    self.reopen(id);
                }
                return None;
            }
            Err(error) => {
                self.health.failed(Fault::Look);
                if !std::mem::replace(&mut log.told, true) {
                    warn!(log = %log.files.current().display(), %error, "a log cannot be looked at");
                }
                (log.doing, log.due) = (Doing::Looking, now + self.settings.interval);
                return None;
            }
        };
        log.missing = None;
        let policy = &self.settings.policy;
        let next = if std::mem::take(&mut log.woken) {
            log.growth.wake(moment, size, policy)
        } else {
            log.growth.look(moment, size, policy)
        };
        match next {
            Next::Rotate if now < log.not_before => (log.doing, log.due) = (Doing::Looking, log.not_before),
            Next::Rotate => self.rotate(id),
            Next::Look(after) => (log.doing, log.due) = (Doing::Looking, now + duration(after)),
            Next::Rest => {}
        }
        Some(next)
    }

    /// From now on the kernel tells of writes to these logs. What was written before it does is seen here.
    async fn rest(&mut self, quiet: Vec<(String, Arc<LogFiles>)>) {
        let Some(watches) = self.news.as_ref().map(|news| news.watches.clone()) else {
            let due = Instant::now() + duration(LATEST);
            for (id, _) in quiet {
                if let Some(log) = self.logs.get_mut(&id) {
                    (log.doing, log.due) = (Doing::Looking, due);
                }
            }
            return;
        };
        if quiet.is_empty() {
            return;
        }
        let watched = blocking(move || {
            let mut watches = watches;
            let watch = |(id, files): (String, Arc<LogFiles>)| {
                let mask = WatchMask::MODIFY | WatchMask::ONESHOT | WatchMask::DONT_FOLLOW;
                (id, watches.add(files.current(), mask), files.size())
            };
            quiet.into_iter().map(watch).collect::<Vec<_>>()
        })
        .await;
        for (id, watch, size) in watched {
            let Some(log) = self.logs.get_mut(&id) else { continue };
            match watch {
                Ok(watch) => {
                    if let Some(news) = &mut self.news {
                        news.logs.insert(watch, id.clone());
                    }
                    log.doing = Doing::Resting;
                    if !size.as_ref().is_ok_and(|size| !log.growth.differs(*size)) {
                        self.looked(&id, size);
                    }
                }
                Err(error) => {
                    // It went, which the next look sees; or there are no more watches.
                    if error.kind() != ErrorKind::NotFound && !std::mem::replace(&mut log.told, true) {
                        let log = log.files.current();
                        warn!(log = %log.display(), %error, "the kernel cannot tell of writes to this log; it is looked at ten times a second");
                    }
                    (log.doing, log.due) = (Doing::Looking, Instant::now() + duration(LATEST));
                }
            }
        }
    }

    fn rotate(&mut self, id: &str) {
        let Some(log) = self.logs.get_mut(id) else { return };
        log.doing = Doing::Busy;
        let (id, writer, files) = (id.to_owned(), Arc::clone(&self.writer), Arc::clone(&log.files));
        let (policy, compressing) = (self.settings.policy, log.compressing);
        self.jobs.spawn(async move {
            let outcome = rotate(&*writer, &id, files, policy, compressing).await;
            Ended { id, job: Job::Rotated { reopened_only: false, outcome } }
        });
    }

    fn reopen(&mut self, id: &str) {
        let Some(log) = self.logs.get_mut(id) else { return };
        log.doing = Doing::Busy;
        let (id, writer) = (id.to_owned(), Arc::clone(&self.writer));
        self.jobs.spawn(async move {
            let outcome = reopen(&*writer, &id).await.map(|()| 0).map_err(|error| (Fault::Reopen, error));
            Ended { id, job: Job::Rotated { reopened_only: true, outcome } }
        });
    }

    /// Starts compressing, if there is something to compress and a worker. Who waits longest is first.
    fn compress(&mut self) {
        while self.compressing < self.settings.workers {
            let waiting = self.logs.iter_mut().filter(|(_, log)| log.to_compress.is_some() && !log.compressing);
            let Some((id, log)) = waiting.min_by_key(|(_, log)| log.to_compress) else { return };
            (log.to_compress, log.compressing) = (None, true);
            self.compressing += 1;
            let (id, files, stop) = (id.clone(), Arc::clone(&log.files), self.stop.clone());
            self.jobs.spawn(async move {
                let work = move || match files.uncompressed()? {
                    Some(stamp) => compress(&files, &stamp, &stop).map(Some),
                    None => Ok(None),
                };
                Ended { id, job: Job::Compressed(blocking(work).await) }
            });
        }
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ended { id, job } = match ended {
            Ok(ended) => ended,
            // As any task of the agent that panics.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        };
        let (moment, now) = (self.now(), Instant::now());
        if matches!(job, Job::Compressed(_)) {
            self.compressing -= 1;
        }
        let log = self.logs.get_mut(&id);
        match job {
            Job::Cleaned(Ok(removed)) => {
                self.health.did(Deed::Removed, removed);
                if let Some(log) = log {
                    log.to_compress = Some(now);
                }
            }
            Job::Rotated { reopened_only: true, outcome: Ok(_) } => {
                if let Some(log) = log {
                    (log.doing, log.due, log.failures, log.missing) = (Doing::Looking, now, 0, None);
                }
            }
            Job::Rotated { outcome: Ok(removed), .. } => {
                self.health.did(Deed::Rotated, 1);
                self.health.did(Deed::Removed, removed);
                if let Some(log) = log {
                    debug!(log = %log.files.current().display(), removed, "a log was rotated");
                    let after = log.growth.rotated(moment, &self.settings.policy);
                    (log.doing, log.due, log.failures) = (Doing::Looking, now + duration(after), 0);
                    (log.to_compress, log.told) = (Some(now), false);
                }
            }
            Job::Cleaned(Err(failed)) => {
                self.health.failed(failed.0);
                if log.is_some() {
                    warn!(container = id, fault = failed.0.name(), error = failed.1, "left-overs of logs stay");
                }
            }
            Job::Rotated { reopened_only, outcome: Err((fault, error)) } => {
                // A container that is slow to start has no log yet.
                if !reopened_only || log.as_ref().is_some_and(|log| log.failures >= SLOW_START) {
                    self.health.failed(fault);
                }
                if let Some(log) = log {
                    let wait = AGAIN.saturating_mul(1 << log.failures.min(16)).min(self.settings.interval.max(AGAIN));
                    log.failures += 1;
                    log.not_before = now + wait;
                    (log.doing, log.due) = (Doing::Looking, log.not_before);
                    let path = log.files.current();
                    // An end of the container that was not listed yet is the usual reason for the first.
                    let expected = if reopened_only { SLOW_START } else { 1 };
                    if log.failures > expected && !std::mem::replace(&mut log.told, true) {
                        warn!(log = %path.display(), container = id, fault = fault.name(), error, "a log cannot be rotated");
                    } else {
                        debug!(log = %path.display(), container = id, fault = fault.name(), error, "a log was not rotated");
                    }
                }
            }
            Job::Compressed(outcome) => {
                if let Some(log) = log {
                    log.compressing = false;
                    // There may be more of them.
                    if matches!(outcome, Ok(Some(_))) {
                        log.to_compress = Some(now);
                    }
                }
                match outcome {
                    Ok(Some(Compressed::Done)) => self.health.did(Deed::Compressed, 1),
                    Ok(_) => {}
                    // The folder went with its pod.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => {
                        self.health.failed(Fault::Compress);
                        warn!(container = id, %error, "a rotated log cannot be compressed; it stays as it is");
                    }
                }
            }
        }
    }
}

/// Renames the log, has it reopened, and removes what is too much; how many files that were.
async fn rotate<W: Writer>(
    writer: &W,
    id: &str,
    files: Arc<LogFiles>,
    policy: Policy,
    compressing: bool,
) -> Result<u64, (Fault, String)> {
    let fail = |fault| move |error: io::Error| (fault, error.to_string());
    let of = Arc::clone(&files);
    let stamp = blocking(move || of.rotate(&second_now())).await.map_err(fail(Fault::Rename))?;
    if let Err(error) = reopen(writer, id).await {
        let of = Arc::clone(&files);
        if blocking(move || of.undo(&stamp)).await.map_err(fail(Fault::Rename))? {
            return Err((Fault::Reopen, error));
        }
    }
    blocking(move || files.clean(&policy, compressing)).await.map_err(fail(Fault::Remove))
}

async fn reopen<W: Writer>(writer: &W, id: &str) -> Result<(), String> {
    timeout(REOPEN, writer.reopen(id)).await.unwrap_or_else(|_| Err(format!("no answer within {} s", REOPEN.as_secs())))
}

/// The next log that was written to; pending for ever without news.
async fn next(news: &mut Option<News>) -> Option<WatchDescriptor> {
    let Some(watched) = news else { return std::future::pending().await };
    match watched.stream.next().await {
        Some(Ok(event)) => Some(event.wd),
        Some(Err(error)) => {
            warn!(%error, "the kernel tells of no more writes to logs; all are looked at, ten times a second");
            *news = None;
            None
        }
        None => std::future::pending().await,
    }
}

fn duration(micros: Micros) -> Duration {
    Duration::from_micros(micros.get())
}

#[cfg(test)]
mod tests;
