//! The thread that looks.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use beelet_core::event::Event;
use beelet_core::forecast::MIN_INTERVAL;
use beelet_core::units::Micros;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::health::Health;
use super::look::Looker;
use super::slot::SampleSender;
use super::{Slow, Target};
use crate::clock::Clock;
use crate::kernel::cgroup::CgroupLayout;
use crate::kernel::drop_reasons::DropReasons;
use crate::kernel::events::KernelEvent as RawEvent;
use crate::kernel::maps::Counters;

/// Looks that were asked for are this far apart at least, and messages have so much time between two looks that take long.
const BREATH: Micros = Micros::millis(5);
/// Looks at a pod of which the kernel told something are this far apart at least: one that thrashes at its limit makes an event
/// every 10 ms.
const ASKED_APART: Micros = Micros::millis(100);

/// What the thread is told.
#[derive(Debug)]
pub enum Command {
    /// Measure these pods.
    Aim(Vec<Target>),
    /// Look this often.
    Pace {
        /// The distance of looks.
        interval: Micros,
        /// Make all of them full ones.
        all_pods: bool,
        /// Take full looks and looks at details this many thousandths of their distance apart: 1000 for no more than usual.
        stretch: u32,
    },
    /// Look now: something woke us.
    Now,
    /// The kernel counted a memory event of this cgroup: look at its pod now.
    MemoryEvent(u64),
    /// The kernel told something.
    Kernel(RawEvent),
    /// End.
    Stop,
}

/// What the thread works with.
pub struct SamplerParts {
    /// Where the cgroups are.
    pub layout: CgroupLayout,
    /// The `kubepods` cgroup, relative to the hierarchies' roots.
    pub kubepods: PathBuf,
    /// The eBPF counters; empty where no program could be loaded.
    pub counters: Counters,
    /// The clock that all of the agent shares.
    pub clock: Clock,
    /// Where samples go.
    pub samples: SampleSender,
    /// Where kernel events go.
    pub events: mpsc::UnboundedSender<Event>,
    /// What the slow reader publishes.
    pub slow: Slow,
    /// Names for why packets are dropped.
    pub drop_reasons: DropReasons,
    /// Who wants to know of new containers' cgroups: id, and path from the roots of the hierarchies.
    pub born: Option<mpsc::UnboundedSender<(u64, PathBuf)>>,
}

/// A handle on the thread.
#[derive(Clone, Debug)]
pub struct Sampler {
    commands: Sender<Command>,
    health: Arc<Health>,
}

/// The thread itself.
#[derive(Debug)]
pub struct SamplerThread {
    /// To be joined at the end.
    pub thread: JoinHandle<()>,
    /// Resolves (with an error, for nobody sends) when the thread has ended, in whatever way.
    pub ended: oneshot::Receiver<()>,
}

impl Sampler {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn spawn(parts: SamplerParts) -> std::io::Result<(Self, SamplerThread)> {
        let (commands, inbox) = channel();
        let (alive, ended) = oneshot::channel::<()>();
        let health = Arc::new(Health::default());
        let looker = Looker::new(parts, Arc::clone(&health));
        let thread = std::thread::Builder::new().name("beelet-sampler".to_owned()).spawn(move || {
            // Measuring must go on when the node is busy; where nice values may not be lowered it goes on as it can.
            if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -10) {
                debug!(%error, "the sampler keeps its ordinary priority");
            }
            let _alive = alive;
            looker.run(&inbox);
        })?;
        Ok((Self { commands, health }, SamplerThread { thread, ended }))
    }

    /// Tells the thread something. A thread that has ended is told nothing.
    pub fn tell(&self, command: Command) {
        if self.commands.send(command).is_err() {
            debug!("the sampler has ended");
        }
    }

    /// What it counts of itself.
    #[must_use]
    pub fn health(&self) -> &Health {
        &self.health
    }
}

impl Looker {
    fn run(mut self, inbox: &Receiver<Command>) {
        let (mut next, mut began) = (self.now(), Micros::ZERO);
        loop {
            let now = self.now();
            // First: an inbox that is never empty would never time out.
            if now >= next {
                began = now;
                self.look(began);
                self.retry_events();
                self.keep_house(began);
                let ended = self.now();
                next = (began + self.interval).max(ended + BREATH);
            }
            let wait = Duration::from_micros((next - self.now()).0);
            let told = inbox.recv_timeout(wait);
            self.health.wakeups.fetch_add(1, Ordering::Relaxed);
            match told {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Aim(targets)) => self.aim(targets),
                Ok(Command::Pace { interval, all_pods, stretch }) => {
                    (self.interval, self.all_pods, self.stretch) = (interval, all_pods, stretch);
                    self.health.urgent.store(interval <= MIN_INTERVAL, Ordering::Relaxed);
                    next = next.min(self.now() + interval);
                }
                Ok(Command::Now) => next = next.min(self.now().max(began + BREATH)),
                Ok(Command::MemoryEvent(cgroup)) => {
                    // Of kubepods itself, or of a pod that nobody told of yet: a quick look at the node.
                    if !self.ask(cgroup) {
                        next = next.min(self.now().max(began + BREATH));
                    }
                }
                Ok(Command::Kernel(event)) => self.on_event(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.is_asked() {
                next = next.min(self.now().max(began + ASKED_APART));
            }
        }
    }

    /// Runs until it is told to stop, for tests.
    #[cfg(test)]
    pub(super) fn run_here(self, inbox: &Receiver<Command>) {
        self.run(inbox);
    }
}
