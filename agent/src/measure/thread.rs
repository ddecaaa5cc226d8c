//! The thread that looks.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use beelet_core::event::Event;
use beelet_core::forecast::MIN_INTERVAL;
use beelet_core::sample::{KernelEvent, KernelEventKind, Sample};
use beelet_core::units::Micros;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use super::Target;
use super::node::NodeReader;
use super::pods::{Pods, read_cgroup, read_quick};
use super::slot::SampleSender;
use super::suspects::Suspects;
use crate::clock::Clock;
use crate::kernel::cgroup::{Buffer, Cgroup, CgroupLayout};
use crate::kernel::events::{KernelEvent as RawEvent, Listen, OomVictim, ProcessExit};
use crate::kernel::maps::{Counters, MapFill};

/// A full look at least this often.
const FULL_EVERY: Micros = Micros::secs(1);
/// Listening ports are looked up this often, and no oftener however many sockets come and go: a table may be long.
const LISTENERS_EVERY: Micros = Micros::secs(1);
/// What is not urgent waits while looks are as close as they get: then memory matters and every millisecond counts. A small node
/// lives with close looks, though, so only the closest are a sign of urgency, and nothing waits for longer than this.
const WAITS_AT_MOST: Micros = Micros::secs(10);
/// An event of a cgroup that nobody knows yet is kept this long.
const UNKNOWN_FOR: Micros = Micros::secs(3);
/// And so many of them are kept.
const UNKNOWN_MOST: usize = 1_024;
/// Looks that were asked for are this far apart at least, and messages have so much time between two looks that take long.
const BREATH: Micros = Micros::millis(5);
/// How full the eBPF maps are is counted this often.
const FILL_EVERY: Micros = Micros::secs(10);
/// Counters of cgroups that are no pod's are removed this often.
const SWEEP_EVERY: Micros = Micros::secs(60);

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
    /// Looks dropped, because the core had not taken them when the next came.
    pub dropped: AtomicU64,
    /// Microseconds spent looking.
    pub busy_us: AtomicU64,
    /// Kernel events of cgroups that turned out to be no pod's, or came in such a flood that nobody could find out.
    pub strangers: AtomicU64,
    /// Events, CPU charges and traffic charges that the eBPF programs could not record.
    pub lost: AtomicU64,
    /// When the last look was taken: microseconds of the monotonic clock, 0 before the first.
    pub last_sample_us: AtomicU64,
    /// How full the eBPF maps are, from time to time.
    pub maps: ArcSwap<Vec<MapFill>>,
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

struct Looker {
    parts: SamplerParts,
    health: Arc<Health>,
    pods: Pods,
    node: NodeReader,
    kubepods: Option<Cgroup>,
    buffer: Buffer,
    interval: Micros,
    all_pods: bool,
    /// The factor on the distance of full looks, in thousandths.
    stretch: u32,
    last_full: Micros,
    last_cpu: Micros,
    last_listeners: Micros,
    last_fill: Micros,
    last_sweep: Micros,
    /// When an event last made us look for new cgroups.
    last_search: Micros,
    waiting: VecDeque<(Micros, RawEvent)>,
    suspects: Suspects,
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
            stretch: beelet_core::budget::NONE,
            last_full: Micros::ZERO,
            last_cpu: Micros::ZERO,
            last_listeners: Micros::ZERO,
            last_fill: Micros::ZERO,
            last_sweep: Micros::ZERO,
            last_search: Micros::ZERO,
            waiting: VecDeque::new(),
            suspects: Suspects::default(),
        }
    }

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
                self.health.busy_us.fetch_add((ended - began).0, Ordering::Relaxed);
                next = (began + self.interval).max(ended + BREATH);
            }
            let wait = Duration::from_micros((next - self.now()).0);
            match inbox.recv_timeout(wait) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Aim(targets)) => {
                    self.pods.aim(targets, &mut self.parts.counters);
                    self.pods.scan(&mut self.parts.counters);
                    self.retry_events();
                }
                Ok(Command::Pace { interval, all_pods, stretch }) => {
                    (self.interval, self.all_pods, self.stretch) = (interval, all_pods, stretch);
                    next = next.min(self.now() + interval);
                }
                Ok(Command::Now) => next = next.min(self.now().max(began + BREATH)),
                Ok(Command::Kernel(event)) => self.on_event(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn now(&self) -> Micros {
        self.parts.clock.now().mono
    }

    fn look(&mut self, at: Micros) {
        let full = self.all_pods || at - self.last_full >= FULL_EVERY.scale(u64::from(self.stretch), 1_000);
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
        let kubepods = self.kubepods.as_mut().and_then(|c| read(c, &mut self.buffer));
        let pods = full.then(|| {
            self.pods.scan(&mut self.parts.counters);
            let listeners = self.is_due(at, self.last_listeners, LISTENERS_EVERY);
            if listeners {
                self.last_listeners = at;
            }
            self.last_full = at;
            self.pods.read(&self.parts.counters, &mut self.buffer, listeners)
        });
        if full {
            if let Err(error) = self.parts.counters.refresh_fast() {
                debug!(%error, "eBPF counters are not known");
            }
            self.health.lost.store(self.parts.counters.lost().iter().map(|(_, count)| count).sum(), Ordering::Relaxed);
        }
        self.health.samples.fetch_add(1, Ordering::Relaxed);
        self.health.last_sample_us.store(at.0, Ordering::Relaxed);
        let outdated = self.parts.samples.put(Sample { at, node, kubepods, pods, node_detail: None });
        self.health.dropped.fetch_add(outdated, Ordering::Relaxed);
    }

    /// Whether something that is not urgent and was last done at `last` is to be done now.
    fn is_due(&self, at: Micros, last: Micros, every: Micros) -> bool {
        let urgent = self.interval <= MIN_INTERVAL;
        at - last >= if urgent { every + WAITS_AT_MOST } else { every }
    }

    /// What is not urgent.
    fn keep_house(&mut self, at: Micros) {
        if self.is_due(at, self.last_fill, FILL_EVERY) {
            self.last_fill = at;
            self.health.maps.store(Arc::new(self.parts.counters.fill()));
        }
        if self.is_due(at, self.last_sweep, SWEEP_EVERY) {
            self.last_sweep = at;
            self.pods.sweep(&mut self.parts.counters);
        }
    }

    // === kernel events ===

    fn on_event(&mut self, event: RawEvent) {
        match event {
            RawEvent::Oom(victim) if victim.cgroup_is_guess => return self.suspects.wait_for(victim),
            // A port that is not known is found in the next listing, at most `LISTENERS_EVERY` away.
            RawEvent::Listen(Listen { port: 0, .. }) => return,
            RawEvent::Exit(ref exit) => {
                if let Some(victim) = self.suspects.ended(exit) {
                    self.trace(RawEvent::Oom(victim));
                }
            }
            RawEvent::Oom(_) | RawEvent::Listen(_) => {}
        }
        self.trace(event);
    }

    /// Passes an event on if it is known whose it is, else keeps it.
    fn trace(&mut self, event: RawEvent) {
        if self.pass_on(&event) {
            return;
        }
        let now = self.now();
        // Perhaps a container that was made since the last look; a look looks for it, too.
        if now - self.last_search >= self.interval {
            self.last_search = now;
            self.pods.scan(&mut self.parts.counters);
            if self.pass_on(&event) {
                return;
            }
        }
        if self.waiting.len() >= UNKNOWN_MOST {
            self.waiting.pop_front();
            self.health.strangers.fetch_add(1, Ordering::Relaxed);
        }
        self.waiting.push_back((now, event));
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

#[cfg(test)]
mod tests {
    use super::super::slot::{SampleReceiver, slot};
    use super::*;

    fn looker(root: &Path) -> (Looker, SampleReceiver, mpsc::UnboundedReceiver<Event>) {
        let ((samples, taken), (events, told)) = (slot(), mpsc::unbounded_channel());
        let parts = SamplerParts {
            layout: CgroupLayout::V2 { root: root.to_owned() },
            kubepods: PathBuf::from("kubepods"),
            counters: Counters::default(),
            clock: Clock,
            samples,
            events,
        };
        (Looker::new(parts, Arc::default()), taken, told)
    }

    fn listen(cgroup: u64, port: u16) -> RawEvent {
        let comm = "app".to_owned();
        RawEvent::Listen(Listen { cgroup, port, ipv6: false, opened: true, pid: 1, comm, at_ns: 1_000 })
    }

    /// A looker that knows one pod with its own cgroup.
    fn with_a_pod(root: &Path) -> (Looker, u64, mpsc::UnboundedReceiver<Event>) {
        std::fs::create_dir_all(root.join("kubepods/pod")).unwrap();
        let (mut looker, _, told) = looker(root);
        let target = Target {
            uid: "u".into(),
            cgroup: "kubepods/pod".to_owned(),
            containers: Vec::new(),
            host_network: false,
            logs: String::new(),
        };
        looker.pods.aim(vec![target], &mut looker.parts.counters);
        looker.pods.scan(&mut looker.parts.counters);
        let id = Cgroup::open(&looker.parts.layout, Path::new("kubepods/pod")).unwrap().unwrap().id();
        (looker, id, told)
    }

    #[test]
    fn a_flood_of_events_does_not_keep_it_from_looking() {
        let root = tempfile::tempdir().unwrap();
        let (looker, _taken, _told) = looker(root.path());
        let health = Arc::clone(&looker.health);
        let (commands, inbox) = channel();
        commands.send(Command::Pace { interval: Micros::millis(20), all_pods: false, stretch: 1_000 }).unwrap();
        // The inbox is never empty until the end.
        for n in 0..300_000 {
            commands.send(Command::Kernel(listen(n, 80))).unwrap();
        }
        commands.send(Command::Stop).unwrap();
        let began = std::time::Instant::now();
        looker.run(&inbox);
        let most = u64::try_from(began.elapsed().as_millis()).unwrap() / 20;
        let samples = health.samples.load(Ordering::Relaxed);
        assert!(samples >= (most / 3).max(1), "{samples} looks, at most {most} were possible");
        assert!(health.strangers.load(Ordering::Relaxed) >= 300_000 - 2 * UNKNOWN_MOST as u64);
    }

    #[test]
    fn events_of_nobody_are_bounded_and_search_once_an_interval() {
        let root = tempfile::tempdir().unwrap();
        let (mut looker, _taken, _told) = looker(root.path());
        looker.interval = Micros::secs(3_600);
        looker.on_event(listen(1, 80));
        let searched = looker.last_search;
        for n in 0..2_000 {
            looker.on_event(listen(n, 80));
        }
        assert_eq!((looker.last_search, looker.waiting.len()), (searched, UNKNOWN_MOST));
        assert_eq!(looker.health.strangers.load(Ordering::Relaxed), 2_001 - UNKNOWN_MOST as u64);
    }

    #[test]
    fn a_port_that_is_not_known_is_not_told() {
        let root = tempfile::tempdir().unwrap();
        let (mut looker, id, mut told) = with_a_pod(root.path());
        looker.on_event(listen(id, 0));
        assert!(told.try_recv().is_err() && looker.waiting.is_empty());
        looker.on_event(listen(id, 80));
        assert!(told.try_recv().is_ok());
    }

    #[test]
    fn a_guess_of_the_oom_killers_victim_blames_nobody_until_its_end() {
        let root = tempfile::tempdir().unwrap();
        let (mut looker, id, mut told) = with_a_pod(root.path());
        let guess = |pid| {
            RawEvent::Oom(OomVictim {
                cgroup: id,
                cgroup_is_guess: true,
                pid,
                comm: String::new(),
                oom_score_adj: 0,
                memory: None,
                at_ns: 5_000,
            })
        };
        looker.on_event(guess(6));
        looker.on_event(guess(7));
        assert!(told.try_recv().is_err(), "the pod that asked for memory is blamed");
        looker.on_event(RawEvent::Exit(ProcessExit {
            cgroup: id,
            pid: 7,
            ns_pid: None,
            status: crate::kernel::events::ExitStatus(9),
            oom_marked: true,
            comm: "hog".to_owned(),
            started_ns: 0,
            at_ns: 9_000,
        }));
        let kinds: Vec<KernelEventKind> = std::iter::from_fn(|| told.try_recv().ok())
            .filter_map(|event| if let Event::Kernel(event) = event { Some(event.kind) } else { None })
            .collect();
        assert_eq!(kinds[0], KernelEventKind::OomVictim { pid: 7, comm: "hog".to_owned() });
        assert!(matches!(kinds[1..], [KernelEventKind::Exit { pid: 7, .. }]), "{kinds:?}");
    }
}
