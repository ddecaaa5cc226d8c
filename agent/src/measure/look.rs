//! Looking, and tracing the kernel's events to their pods.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use beelet_core::event::Event;
use beelet_core::forecast::MIN_INTERVAL;
use beelet_core::sample::{CgroupReading, KernelEvent, KernelEventKind, PodReading, Sample};
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use tracing::{debug, warn};

use super::health::Health;
use super::node::NodeReader;
use super::pods::{Cost, DETAIL_EVERY, Look, Pods};
use super::suspects::Suspects;
use super::thread::SamplerParts;
use super::watched::{Looked, Mode, Watched};
use crate::clock::thread_cpu;
use crate::kernel::cgroup::{Buffer, Cgroup, Devices};
use crate::kernel::events::{KernelEvent as RawEvent, Listen, OomVictim, ProcessExit};

/// A full look at least this often.
pub(super) const FULL_EVERY: Micros = Micros::secs(1);
/// The tables that details are made of are read this often, while there are any to be made.
const TABLES_EVERY: Micros = Micros::secs(5);
/// And so often while there are pods without any.
const TABLES_FOR_NEW: Micros = Micros::millis(500);
/// What is not urgent waits while looks are as close as they get: then memory matters and every millisecond counts. A small node
/// lives with close looks, though, so only the closest are a sign of urgency, and nothing waits for longer than this.
const WAITS_AT_MOST: Micros = Micros::secs(10);
/// An event of a cgroup that nobody knows yet is kept this long.
const UNKNOWN_FOR: Micros = Micros::secs(3);
/// And so many of them are kept.
pub(super) const UNKNOWN_MOST: usize = 1_024;
/// The node's CPU time is read this often.
const CPU_EVERY: Micros = Micros::millis(900);
/// How full the eBPF maps are is counted this often.
const FILL_EVERY: Micros = Micros::secs(10);
/// Counters of cgroups that are no pod's are removed this often.
const SWEEP_EVERY: Micros = Micros::secs(60);

/// When something was last done.
#[derive(Debug, Default)]
struct Last {
    full: Micros,
    cpu: Micros,
    tables: Micros,
    details: Micros,
    fill: Micros,
    sweep: Micros,
    /// `kubepods` was read as a whole.
    kubepods: Micros,
}

pub(super) struct Looker {
    pub(super) parts: SamplerParts,
    pub(super) health: Arc<Health>,
    pub(super) pods: Pods,
    node: NodeReader,
    kubepods: Option<Watched>,
    buffer: Buffer,
    devices: Devices,
    pub(super) interval: Micros,
    pub(super) all_pods: bool,
    /// Factor on the distance of full and detail looks, in thousandths.
    pub(super) stretch: u32,
    last: Last,
    /// Pods of which the kernel told something: the next look reads them, whatever kind it is of.
    asked: BTreeSet<PodUid>,
    /// When an event last made us look for new cgroups.
    pub(super) last_search: Micros,
    pub(super) waiting: VecDeque<(Micros, RawEvent)>,
    suspects: Suspects,
}

impl Looker {
    pub(super) fn new(parts: SamplerParts, health: Arc<Health>) -> Self {
        Self {
            pods: Pods::new(parts.layout.clone()),
            parts,
            health,
            node: NodeReader::default(),
            kubepods: None,
            buffer: Buffer::default(),
            devices: Devices::default(),
            interval: FULL_EVERY,
            all_pods: true,
            stretch: 1_000,
            last: Last::default(),
            asked: BTreeSet::new(),
            last_search: Micros::ZERO,
            waiting: VecDeque::new(),
            suspects: Suspects::default(),
        }
    }

    pub(super) fn now(&self) -> Micros {
        self.parts.clock.now().mono
    }

    /// Measures these pods from now on.
    pub(super) fn aim(&mut self, targets: Vec<super::Target>) {
        self.parts.slow.aim(&targets);
        self.pods.aim(targets, &mut self.parts.counters);
        self.scan(self.now(), false);
        self.retry_events();
    }

    /// Looks at the pod of this cgroup at the next opportunity; whether it is known.
    pub(super) fn ask(&mut self, cgroup: u64) -> bool {
        let Some((uid, ..)) = self.pods.owner(cgroup) else { return false };
        self.asked.insert(uid);
        true
    }

    pub(super) fn look(&mut self, at: Micros) {
        let full = self.all_pods || at - self.last.full >= self.stretched(FULL_EVERY);
        let spent = full.then(thread_cpu);
        if full {
            self.health.full_at_us.store(at.0, Ordering::Relaxed);
        }
        let cpu = at - self.last.cpu >= CPU_EVERY;
        let node = match self.node.read(cpu) {
            Ok(node) => node,
            Err(error) => {
                warn!(%error, "the node's memory cannot be read");
                return;
            }
        };
        if cpu {
            self.last.cpu = at;
        }
        let files = self.buffer.reads();
        let kubepods = self.look_at_kubepods(at, full);
        let asked = std::mem::take(&mut self.asked);
        let mut cost = Cost::default();
        let pods = (full || !asked.is_empty()).then(|| {
            let (pods, read) = self.look_at_pods(at, if full { None } else { Some(&asked) });
            cost = read;
            pods
        });
        let health = &self.health;
        let kind = match (full, pods.is_some(), cost.details > 0) {
            (true, _, true) => &health.detail,
            (true, _, false) => &health.full,
            (false, true, _) => &health.asked,
            (false, false, _) => &health.quick,
        };
        kind.add(self.parts.clock.now().mono - at);
        health.readings.fetch_add(cost.read, Ordering::Relaxed);
        health.held.fetch_add(cost.held, Ordering::Relaxed);
        health.details.fetch_add(cost.details, Ordering::Relaxed);
        health.files.fetch_add(self.buffer.reads() - files, Ordering::Relaxed);
        if full {
            health.pods.store(cost.pods, Ordering::Relaxed);
        }
        health.samples.fetch_add(1, Ordering::Relaxed);
        health.last_sample_us.store(at.0, Ordering::Relaxed);
        let node_detail = self.parts.slow.node();
        let outdated = self.parts.samples.put(Sample { at, node, kubepods, pods, node_detail });
        health.dropped.fetch_add(outdated, Ordering::Relaxed);
        if let Some(before) = spent {
            health.full_us.fetch_add((thread_cpu() - before).0, Ordering::Relaxed);
        }
    }

    fn look_at_kubepods(&mut self, at: Micros, full: bool) -> Option<CgroupReading> {
        let clock = self.parts.clock;
        if self.kubepods.is_none() {
            let cgroup = Cgroup::open(&self.parts.layout, Path::new(&self.parts.kubepods));
            self.kubepods = cgroup.ok().flatten().map(Watched::new);
        }
        let kubepods = self.kubepods.as_mut()?;
        let reading = if full {
            let all = at - self.last.kubepods >= DETAIL_EVERY;
            if all {
                self.last.kubepods = at;
            }
            let mode = if all { Mode::All } else { Mode::Urgent };
            (kubepods.look(clock, mode, &mut self.buffer) != Looked::Gone).then(|| *kubepods.last())
        } else {
            kubepods.look_at_memory(clock, &mut self.buffer)
        };
        if reading.is_none() {
            self.kubepods = None;
        }
        reading
    }

    /// Reads all pods, or only some anew.
    fn look_at_pods(&mut self, at: Micros, only: Option<&BTreeSet<PodUid>>) -> (Vec<PodReading>, Cost) {
        let urgent = self.interval <= MIN_INTERVAL;
        self.scan(at, false);
        let mut details = false;
        if only.is_none() {
            self.last.full = at;
            let (due, new) = self.pods.details_due(at);
            details = due && self.is_due(at, self.last.details, Micros::ZERO);
            if details {
                self.last.details = at;
            }
            self.refresh(at, details, new);
        }
        let (network, storage) = (self.parts.slow.network(), self.parts.slow.storage());
        let mut look = Look {
            clock: self.parts.clock,
            counters: &mut self.parts.counters,
            tables_at: self.last.tables,
            buffer: &mut self.buffer,
            devices: &mut self.devices,
            network: &network,
            storage: &storage,
            drop_reasons: &self.parts.drop_reasons,
            mode: if urgent { Mode::Urgent } else { Mode::Calm },
            details,
            only,
            stretch: self.stretch,
            cost: Cost::default(),
            visit: Vec::new(),
        };
        let readings = self.pods.read(&mut look);
        let Look { cost, visit, .. } = look;
        if !visit.is_empty() {
            self.parts.slow.look(visit);
        }
        self.tell_born();
        (readings, cost)
    }

    /// Reads the eBPF tables.
    fn refresh(&mut self, at: Micros, details: bool, new: bool) {
        let counters = &mut self.parts.counters;
        if let Err(error) = counters.refresh_fast() {
            debug!(%error, "eBPF counters are not known");
        }
        self.health.set_lost(counters.lost());
        let age = at - self.last.tables;
        if details && (age >= self.stretched(TABLES_EVERY) || (new && age >= TABLES_FOR_NEW)) {
            if let Err(error) = self.parts.counters.refresh_slow() {
                debug!(%error, "eBPF details are not known");
            }
            self.last.tables = at;
            self.pods.settle(&mut self.parts.counters, at);
        }
    }

    /// Finds new cgroups, of all pods or of those whose turn it is.
    fn scan(&mut self, at: Micros, all: bool) {
        self.pods.scan(at, all);
        self.tell_born();
    }

    fn tell_born(&mut self) {
        for born in self.pods.take_born() {
            if let Some(tell) = &self.parts.born {
                // Nobody listens where memory events cannot be watched.
                let _ = tell.send(born);
            }
        }
    }

    fn stretched(&self, every: Micros) -> Micros {
        every.scale(u64::from(self.stretch.max(1_000)), 1_000)
    }

    /// Whether something that is not urgent and was last done at `last` is to be done now.
    fn is_due(&self, at: Micros, last: Micros, every: Micros) -> bool {
        let urgent = self.interval <= MIN_INTERVAL;
        at - last >= if urgent { every + WAITS_AT_MOST } else { every }
    }

    /// What is not urgent.
    pub(super) fn keep_house(&mut self, at: Micros) {
        if self.is_due(at, self.last.fill, FILL_EVERY) {
            self.last.fill = at;
            self.health.set_maps(self.parts.counters.fill());
        }
        if self.is_due(at, self.last.sweep, SWEEP_EVERY) {
            self.last.sweep = at;
            self.devices.forget();
            self.pods.sweep(&mut self.parts.counters);
        }
    }

    // === kernel events ===

    pub(super) fn on_event(&mut self, event: RawEvent) {
        match event {
            RawEvent::Oom(victim) if victim.cgroup_is_guess => return self.suspects.wait_for(victim),
            // A port that is not known is looked up.
            RawEvent::Listen(Listen { port: 0, cgroup, .. }) => {
                if let Some((uid, ..)) = self.pods.owner(cgroup) {
                    self.parts.slow.look([uid]);
                }
                return;
            }
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
            self.scan(now, true);
            if self.pass_on(&event) {
                return;
            }
        }
        if self.waiting.len() >= UNKNOWN_MOST {
            self.waiting.pop_front();
            self.health.flooded.fetch_add(1, Ordering::Relaxed);
        }
        self.waiting.push_back((now, event));
    }

    /// Events whose container had no name yet.
    pub(super) fn retry_events(&mut self) {
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

    fn pass_on(&mut self, event: &RawEvent) -> bool {
        match self.pods.owner(cgroup_of(event)) {
            Some((uid, name, true)) => {
                self.send(event, uid, name);
                true
            }
            _ => false,
        }
    }

    fn send(&mut self, event: &RawEvent, uid: PodUid, container: Option<String>) {
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
                // The cgroup's own counter of kills follows at once.
                self.asked.insert(uid.clone());
                (*at_ns, KernelEventKind::OomVictim { pid: *pid, comm: comm.clone() })
            }
            RawEvent::Listen(Listen { port, opened, at_ns, .. }) => {
                self.pods.listen(&uid, Micros(at_ns / 1_000), *port, *opened);
                if !opened {
                    // Another socket may listen on it still.
                    self.parts.slow.look([uid.clone()]);
                }
                (*at_ns, KernelEventKind::Listen { port: *port, open: *opened })
            }
        };
        let event = KernelEvent { at: Micros(at_ns / 1_000), uid, container, kind };
        if self.parts.events.send(Event::Kernel(event)).is_err() {
            debug!("the core has ended");
        }
    }

    /// Something was asked for that a quick look does not bring.
    pub(super) fn is_asked(&self) -> bool {
        !self.asked.is_empty()
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
mod tests;
