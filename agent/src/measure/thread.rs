//! The thread that looks.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use beelet_core::event::Event;
use beelet_core::sample::{KernelEvent, KernelEventKind, Sample};
use beelet_core::units::Micros;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::Target;
use super::node::NodeReader;
use super::pods::{Pods, read_cgroup, read_quick};
use crate::clock::Clock;
use crate::kernel::cgroup::{Buffer, Cgroup, CgroupLayout};
use crate::kernel::events::{KernelEvent as RawEvent, Listen, OomVictim, ProcessExit};
use crate::kernel::maps::CgroupCounters;

/// A full look at least this often.
const FULL_EVERY: Micros = Micros::secs(1);
/// Listening ports are looked up at most this often, unless the kernel told of a change.
const LISTENERS_EVERY: Micros = Micros::secs(1);
/// An event of a cgroup that nobody knows yet is kept this long.
const UNKNOWN_FOR: Micros = Micros::secs(3);

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
    },
    /// Look now: something woke us.
    Now,
    /// The kernel told something.
    Kernel(RawEvent),
    /// End.
    Stop,
}

/// What the thread counts of itself.
#[derive(Debug, Default)]
pub struct Health {
    /// Looks taken.
    pub samples: AtomicU64,
    /// Looks dropped, because the core had not taken the one before.
    pub dropped: AtomicU64,
    /// Microseconds spent looking.
    pub busy_us: AtomicU64,
    /// Kernel events of cgroups that turned out to be no pod's.
    pub strangers: AtomicU64,
    /// Events, CPU charges and traffic charges that the eBPF programs could not record.
    pub lost: AtomicU64,
}

/// What the thread works with.
pub struct SamplerParts {
    /// Where the cgroups are.
    pub layout: CgroupLayout,
    /// The `kubepods` cgroup, relative to the hierarchies' roots.
    pub kubepods: PathBuf,
    /// The eBPF counters; empty where no program could be loaded.
    pub counters: CgroupCounters,
    /// The clock that all of the agent shares.
    pub clock: Clock,
    /// Where samples go. Its capacity is one: a core that is behind wants the newest only.
    pub samples: mpsc::Sender<Sample>,
    /// Where kernel events go.
    pub events: mpsc::UnboundedSender<Event>,
}

/// A handle on the thread.
#[derive(Clone, Debug)]
pub struct Sampler {
    commands: Sender<Command>,
    health: Arc<Health>,
}

impl Sampler {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn spawn(parts: SamplerParts) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (commands, inbox) = channel();
        let health = Arc::new(Health::default());
        let looker = Looker::new(parts, Arc::clone(&health));
        let thread = std::thread::Builder::new().name("beelet-sampler".to_owned()).spawn(move || {
            // Measuring must go on when the node is busy; where nice values may not be lowered it goes on as it can.
            if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), -10) {
                debug!(%error, "the sampler keeps its ordinary priority");
            }
            looker.run(&inbox);
        })?;
        Ok((Self { commands, health }, thread))
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

struct Looker {
    parts: SamplerParts,
    health: Arc<Health>,
    pods: Pods,
    node: NodeReader,
    kubepods: Option<Cgroup>,
    buffer: Buffer,
    interval: Micros,
    all_pods: bool,
    last_full: Micros,
    last_cpu: Micros,
    last_listeners: Micros,
    listeners_changed: bool,
    waiting: VecDeque<(Micros, RawEvent)>,
}

impl Looker {
    fn new(parts: SamplerParts, health: Arc<Health>) -> Self {
        Self {
            pods: Pods::new(parts.layout.clone()),
            parts,
            health,
            node: NodeReader::default(),
            kubepods: None,
            buffer: Buffer::default(),
            interval: FULL_EVERY,
            all_pods: true,
            last_full: Micros::ZERO,
            last_cpu: Micros::ZERO,
            last_listeners: Micros::ZERO,
            listeners_changed: true,
            waiting: VecDeque::new(),
        }
    }

    fn run(mut self, inbox: &Receiver<Command>) {
        let mut next = self.now();
        loop {
            let wait = Duration::from_micros((next - self.now()).0);
            match inbox.recv_timeout(wait) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Aim(targets)) => {
                    self.pods.aim(targets, &mut self.parts.counters);
                    self.pods.scan(&mut self.parts.counters);
                    self.retry_events();
                }
                Ok(Command::Pace { interval, all_pods }) => {
                    (self.interval, self.all_pods) = (interval, all_pods);
                    next = next.min(self.now() + interval);
                }
                Ok(Command::Now) => next = self.now(),
                Ok(Command::Kernel(event)) => self.on_event(event),
                Err(RecvTimeoutError::Timeout) => {
                    let began = self.now();
                    self.look(began);
                    self.retry_events();
                    let ended = self.now();
                    self.health.busy_us.fetch_add((ended - began).0, Ordering::Relaxed);
                    next = (began + self.interval).max(ended);
                }
            }
        }
    }

    fn now(&self) -> Micros {
        self.parts.clock.now().mono
    }

    fn look(&mut self, at: Micros) {
        let full = self.all_pods || at - self.last_full >= FULL_EVERY;
        let cpu = at - self.last_cpu >= Micros::millis(500);
        let node = match self.node.read(cpu) {
            Ok(node) => node,
            Err(error) => {
                warn!(%error, "the node's memory cannot be read");
                return;
            }
        };
        if cpu {
            self.last_cpu = at;
        }
        if self.kubepods.as_ref().is_none_or(|c| !c.exists()) {
            self.kubepods = Cgroup::open(&self.parts.layout, Path::new(&self.parts.kubepods)).ok().flatten();
        }
        let read = if full { read_cgroup } else { read_quick };
        let kubepods = self.kubepods.as_ref().and_then(|c| read(c, &mut self.buffer));
        let pods = full.then(|| {
            self.pods.scan(&mut self.parts.counters);
            let listeners = self.listeners_changed || at - self.last_listeners >= LISTENERS_EVERY;
            if listeners {
                (self.last_listeners, self.listeners_changed) = (at, false);
            }
            self.last_full = at;
            self.pods.read(&self.parts.counters, &mut self.buffer, listeners)
        });
        if full && let Ok(lost) = self.parts.counters.lost() {
            self.health.lost.store(lost.events + lost.cpu + lost.network, Ordering::Relaxed);
        }
        self.health.samples.fetch_add(1, Ordering::Relaxed);
        if self.parts.samples.try_send(Sample { at, node, kubepods, pods }).is_err() {
            self.health.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    // === kernel events ===

    fn on_event(&mut self, event: RawEvent) {
        if matches!(event, RawEvent::Listen(_)) {
            self.listeners_changed = true;
        }
        if !self.pass_on(&event) {
            // Perhaps a container that was made since the last look.
            self.pods.scan(&mut self.parts.counters);
            if !self.pass_on(&event) {
                self.waiting.push_back((self.now(), event));
            }
        }
    }

    /// Events whose container had no name yet.
    fn retry_events(&mut self) {
        let now = self.now();
        for (since, event) in std::mem::take(&mut self.waiting) {
            if self.pass_on(&event) {
                continue;
            }
            if now - since < UNKNOWN_FOR {
                self.waiting.push_back((since, event));
            } else if let Some((uid, name, _)) = self.pods.owner(cgroup_of(&event)) {
                // The sandbox, whose id is not a container's.
                self.send(&event, uid, name);
            } else {
                self.health.strangers.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn pass_on(&self, event: &RawEvent) -> bool {
        match self.pods.owner(cgroup_of(event)) {
            Some((uid, name, true)) => {
                self.send(event, uid, name);
                true
            }
            _ => false,
        }
    }

    fn send(&self, event: &RawEvent, uid: beelet_core::spec::PodUid, container: Option<String>) {
        let (at_ns, kind) = match event {
            RawEvent::Exit(ProcessExit { pid, ns_pid, status, comm, at_ns, .. }) => {
                let kind = KernelEventKind::Exit {
                    pid: *pid,
                    comm: comm.clone(),
                    code: status.code().unwrap_or(0),
                    signal: status.signal().unwrap_or(0),
                    is_init: *ns_pid == Some(1),
                };
                (*at_ns, kind)
            }
            RawEvent::Oom(OomVictim { pid, comm, at_ns, .. }) => {
                (*at_ns, KernelEventKind::OomVictim { pid: *pid, comm: comm.clone() })
            }
            RawEvent::Listen(Listen { port, opened, at_ns, .. }) => {
                (*at_ns, KernelEventKind::Listen { port: *port, open: *opened })
            }
        };
        let event = KernelEvent { at: Micros(at_ns / 1_000), uid, container, kind };
        if self.parts.events.send(Event::Kernel(event)).is_err() {
            debug!("the core has ended");
        }
    }
}

fn cgroup_of(event: &RawEvent) -> u64 {
    match event {
        RawEvent::Exit(exit) => exit.cgroup,
        RawEvent::Oom(victim) => victim.cgroup,
        RawEvent::Listen(listen) => listen.cgroup,
    }
}
