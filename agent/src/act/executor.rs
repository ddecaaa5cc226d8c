//! Takes actions and gives results.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beelet_core::event::{Action, CANCELLED, Done, Event, OpError, OpId, PodOp};
use beelet_core::spec::{PodUid, ProbeKind};
use beelet_core::units::Micros;
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use super::guard::Guard;
use super::journal::Journal;
use super::killer::Killer;
use super::knobs::Knobs;
use super::pod_ops::{Context, PodRuntime, reason, time_limit};
use super::reclaim::Reclaimer;
use crate::cgroup::Tree;
use crate::probe::{self, Question};
use crate::volumes::{Volumes, refresh};

/// What an executor is made of.
#[derive(Debug)]
pub struct Parts<R> {
    /// The cgroups.
    pub tree: Arc<Tree>,
    /// The files.
    pub volumes: Arc<Volumes>,
    /// The container runtime.
    pub runtime: Arc<R>,
    /// The journal of knobs.
    pub journal: Journal,
    /// Who turns back what holds pods up if the agent is killed; without one such knobs are not turned.
    pub guard: Option<Guard>,
    /// The node's address, where pods in its network are asked whether they are well; "" where unknown.
    pub host_ip: String,
    /// Where results go. Without a bound, so that an operation that has ended never waits for the loop and the loop, which starts
    /// operations, never waits for one: a bound on both ways could deadlock, and losing a result would hang its pod. It cannot
    /// grow without end, as the core has at most one operation of a pod under way.
    pub events: UnboundedSender<Event>,
}

/// An operation that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    op: OpId,
    what: PodOp,
    cancel: CancellationToken,
}

/// The operations of a pod.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// The one under way, if it can be cancelled.
    running: Option<CancellationToken>,
}

/// What may take long and leaves nothing half made: a stop that is given up can be ordered anew. All else ends by its own limits.
fn can_be_cancelled(what: &PodOp) -> bool {
    matches!(what, PodOp::EnsureImage { .. } | PodOp::PostStart { .. } | PodOp::StopContainers { .. })
}

type Limit = fn(&PodOp) -> Duration;

/// Does actions. Clones share everything.
#[derive(Debug)]
pub struct Executor<R> {
    context: Arc<Context<R>>,
    /// A pod is in here while its task runs; the value is what waits.
    queues: Arc<Mutex<HashMap<PodUid, Queue>>>,
    events: UnboundedSender<Event>,
    reclaimer: Arc<Reclaimer>,
    limit: Limit,
}

impl<R> Clone for Executor<R> {
    fn clone(&self) -> Self {
        Self {
            context: Arc::clone(&self.context),
            queues: Arc::clone(&self.queues),
            events: self.events.clone(),
            reclaimer: Arc::clone(&self.reclaimer),
            limit: self.limit,
        }
    }
}

impl<R: PodRuntime> Executor<R> {
    /// Starts the threads for kills and knobs. Knobs that an earlier life of the agent left turned are turned back.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn spawn(parts: Parts<R>) -> io::Result<Self> {
        Self::spawn_with(parts, time_limit)
    }

    pub(super) fn spawn_with(parts: Parts<R>, limit: Limit) -> io::Result<Self> {
        let killer = Arc::new(Killer::spawn(Arc::clone(&parts.tree))?);
        let knobs = Arc::new(Knobs::spawn(Arc::clone(&parts.tree), parts.journal, parts.guard)?);
        let reclaimer = Arc::new(Reclaimer::spawn(Arc::clone(&parts.tree))?);
        let host_ip: Arc<str> = if parts.host_ip.is_empty() { "127.0.0.1" } else { &parts.host_ip }.into();
        let context = Arc::new(Context {
            tree: parts.tree,
            volumes: parts.volumes,
            runtime: parts.runtime,
            killer,
            knobs,
            host_ip,
            events: parts.events.clone(),
        });
        Ok(Self { context, queues: Arc::default(), events: parts.events, reclaimer, limit })
    }

    /// Takes an action and returns at once; gives back one that is not for it. To be called within a tokio runtime.
    #[must_use = "what is given back is still to be done"]
    pub fn execute(&self, action: Action) -> Option<Action> {
        match action {
            Action::Pod { uid, op, what } => self.enqueue(uid, op, what),
            Action::Cancel { uid } => self.cancel(&uid),
            Action::Probe { uid, container, run, kind, handler, timeout, ip } => {
                let address = if ip.is_empty() { self.context.host_ip.to_string() } else { ip };
                let timeout = Duration::from_micros(timeout.get());
                self.probe(uid, container, kind, Question { run, handler, timeout, address });
            }
            Action::Refresh(spec) => {
                let volumes = Arc::clone(&self.context.volumes);
                volumes.becomes(&spec);
                tokio::task::spawn_blocking(move || refresh::one(&volumes, &spec, None));
            }
            Action::Kill { uid, cgroup } => self.context.killer.kill(uid, cgroup),
            Action::Cgroups(cgroups) => self.context.knobs.cgroups(cgroups),
            Action::ReclaimMemory { cgroup, bytes } => self.reclaimer.reclaim(cgroup, bytes),
            Action::Knob(write) => self.context.knobs.write(write),
            other => return Some(other),
        }
        None
    }

    /// Turns all knobs back, and returns when that is done. Running operations are left to their end: pods go on without beelet.
    pub async fn stop(&self) {
        self.context.knobs.stop().await;
        let (kills, knobs) = (self.context.killer.counts(), self.context.knobs.counts());
        tracing::info!(?kills, ?knobs, "knobs are turned back");
    }

    #[cfg(test)]
    pub(super) fn context(&self) -> &Context<R> {
        &self.context
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, HashMap<PodUid, Queue>> {
        // No code that panics runs under this lock.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enqueue(&self, uid: PodUid, op: OpId, what: PodOp) {
        let next = Waiting { op, what, cancel: CancellationToken::new() };
        match self.queues().entry(uid) {
            Entry::Occupied(mut running) => running.get_mut().waiting.push_back(next),
            Entry::Vacant(free) => {
                let uid = free.key().clone();
                free.insert(Queue { waiting: VecDeque::from([next]), running: None });
                let executor = self.clone();
                tokio::spawn(async move { executor.work(uid).await });
            }
        }
    }

    /// On a task of its own: the core has at most one of a run and kind under way, and each ends by its own limits.
    fn probe(&self, uid: PodUid, container: String, kind: ProbeKind, question: Question) {
        let (context, events) = (Arc::clone(&self.context), self.events.clone());
        tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            let answer = probe::ask(&*context.runtime, &question).await;
            let took = Micros(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
            tracing::trace!(%uid, container, ?kind, ?answer, "probed");
            // Nobody takes it any more while the agent stops.
            let _ = events.send(Event::Probe { uid, container, run: question.run, kind, answer, took });
        });
    }

    /// The one under way and those that wait, too: which of them the core meant cannot be told apart, and need not be.
    fn cancel(&self, uid: &PodUid) {
        let queues = self.queues();
        let Some(queue) = queues.get(uid) else { return };
        let waiting = queue.waiting.iter().filter(|w| can_be_cancelled(&w.what)).map(|w| &w.cancel);
        waiting.chain(&queue.running).for_each(CancellationToken::cancel);
    }

    /// Looking for the next operation and leaving when there is none happen under one lock, so that none is left behind.
    fn next(&self, uid: &PodUid) -> Option<Waiting> {
        let mut queues = self.queues();
        let next = queues.get_mut(uid).and_then(|queue| {
            let next = queue.waiting.pop_front();
            queue.running = next.as_ref().filter(|w| can_be_cancelled(&w.what)).map(|w| w.cancel.clone());
            next
        });
        if next.is_none() {
            queues.remove(uid);
        }
        next
    }

    async fn work(&self, uid: PodUid) {
        while let Some(Waiting { op, what, cancel }) = self.next(&uid) {
            let name = what.name();
            let result = self.run(&uid, what, &cancel).await;
            match &result {
                Ok(_) => tracing::debug!(%uid, op = op.0, name, "done"),
                Err(error) => {
                    tracing::warn!(%uid, op = op.0, name, reason = error.reason, message = error.message, "failed");
                }
            }
            if self.events.send(Event::Done { uid: uid.clone(), op, result }).is_err() {
                tracing::debug!(%uid, "nobody takes results any more: the agent stops");
            }
        }
    }

    /// Runs it on a task of its own, so that a panic is a result like any other, for at most its time.
    async fn run(&self, uid: &PodUid, what: PodOp, cancel: &CancellationToken) -> Result<Done, OpError> {
        let (name, reason, limit) = (what.name(), reason(&what), (self.limit)(&what));
        let failed = |message| Err(OpError { reason: reason.to_owned(), message });
        let (context, of) = (Arc::clone(&self.context), uid.clone());
        let mut task = tokio::spawn(async move { context.perform(&of, what).await });
        let ended = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                task.abort();
                let message = format!("{name} was given up: its pod has to go");
                return Err(OpError { reason: CANCELLED.to_owned(), message });
            }
            ended = tokio::time::timeout(limit, &mut task) => ended,
        };
        match ended {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => failed(format!("a fault in beelet: {name} panicked: {}", text_of(panic))),
            Err(_) => {
                // What blocks in a system call goes on on its thread; it is bounded by its own limits.
                task.abort();
                failed(format!("{name} did not end within {} s", limit.as_secs_f64()))
            }
        }
    }
}

fn text_of(failed: tokio::task::JoinError) -> String {
    match failed.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "without a message".to_owned()),
        Err(cancelled) => cancelled.to_string(),
    }
}
