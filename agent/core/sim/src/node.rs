//! The simulated node: time, the agent, and all that comes between its actions and their results.
//!
//! Problem: most bugs of an agent are in the order of things: a listing that was asked for before an operation ended, an operation
//! that goes on after the agent died, a sample that comes too late. Approach: everything that will happen is in one queue, ordered
//! by virtual time and then by the order in which it was put there; delays are drawn from the seed. After each step of the core
//! every invariant is checked.
//!
//! Terms: a *life* is the time from an agent's start to its end; what was meant for an earlier life is dropped.

pub mod fate;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use beelet_core::World;
use beelet_core::event::{
    Action, ContainerFact, ContainerFactState, Event, OpId, PodOp, Rejected, RuntimeFacts, SandboxFact, Terminal,
};
use beelet_core::forecast::Pace;
use beelet_core::probe::Answer;
use beelet_core::sample::{KernelEvent, KernelEventKind, Sample};
use beelet_core::spec::{PodSpec, PodUid};
use beelet_core::status::PodNote;
use beelet_core::units::{Micros, Now};

use crate::invariants::{Checker, Look, Violation};
use crate::kernel::{Death, Kernel, OomKills};
use crate::rng::Rng;
use crate::runtime::{Runtime, error};
use crate::scenario::{Disturbance, Faults, Scenario};
use crate::trace::Line;
use fate::Fate;

/// Steps kept for the report of a failure.
const KEEP: usize = 2_000;
/// Moments of them that are told.
const TOLD: usize = 150;
/// Virtual time starts here.
pub const START: Micros = Micros::secs(1_000);
/// The wall clock then.
const WALL: u64 = 1_700_000_000_000_000;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Steps of the core.
    pub steps: u64,
    /// Operations begun.
    pub operations: u64,
    /// Evictions that are a kill.
    pub evictions: u64,
    /// Evictions for a soft threshold.
    pub soft: u64,
    /// Agents that died.
    pub crashes: u64,
    /// In-place changes of resources.
    pub resizes: u64,
    /// Questions to containers, and how often a container was stopped for its answers.
    pub probes: (u64, u64),
    /// Causes of slowness told, and of these those that name a neighbour.
    pub slow: (u64, u64),
    /// Agents that slowed themselves.
    pub slowed: u64,
    /// Virtual time.
    pub time: Micros,
    /// The kernel's OOM kills.
    pub ooms: OomKills,
}

/// A run that broke an invariant.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// Which invariant, and how.
    pub violation: Violation,
    /// When, since the start of virtual time.
    pub at: Micros,
    /// The last steps.
    pub tail: Vec<Line>,
}

impl Failure {
    /// Which invariant, when and how, without what led to it.
    #[must_use]
    pub fn headline(&self) -> String {
        format!("seed {} broke {} at {}: {}", self.seed, self.violation.invariant, self.at, self.violation.what)
    }
}

/// The last moments, and the invariant.
impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::story::tell(&self.tail, START, TOLD))?;
        writeln!(f, "{}", self.headline())
    }
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "a queue holds some dozens of them")]
enum Item {
    Script(usize),
    Calm,
    AgentStart(u64),
    Deliver(u64, Event),
    Wishes(u64),
    Tick(u64, u64),
    Effect(Box<Operation>),
    Kill(PodUid),
    End { id: String, code: i32 },
    Noticed { id: String, finished: Micros, code: i32, oom: bool },
    SandboxDown(PodUid),
    Sample(u64, u64),
    List(u64, u64),
    ListContainers(u64, Micros, Vec<SandboxFact>),
}

#[derive(Debug)]
struct Operation {
    life: u64,
    uid: PodUid,
    op: OpId,
    what: PodOp,
    /// It is done although the agent that wanted it has died.
    survives: bool,
    /// Fails before it did anything.
    fails_before: bool,
    /// Fails after it was done.
    fails_after: bool,
}

/// A node with an agent.
pub struct Sim {
    scenario: Scenario,
    now: Micros,
    wall_off: i64,
    rng: Rng,
    /// For the answers of probes, which are to leave the other draws as they are.
    probe_rng: Rng,
    queue: BTreeMap<(Micros, u64), Item>,
    queued: u64,
    world: Option<World>,
    /// Another world that is asked the same.
    twin: Option<World>,
    with_twin: bool,
    life: u64,
    /// Numbers what was scheduled last, so that an earlier one is ignored: tick, sample, listing.
    latest: [u64; 3],
    faults: Faults,
    pace: Pace,
    /// Thousandths.
    stretch: u32,
    /// What the agent has cost, and when it was told.
    cost: Micros,
    told_cost: Micros,
    sampled: Micros,
    looked: Micros,
    listing: bool,
    list_again: bool,
    kernel: Kernel,
    runtime: Runtime,
    remembered: BTreeMap<PodUid, Terminal>,
    going: BTreeMap<PodUid, Micros>,
    noted: BTreeMap<PodUid, PodNote>,
    /// What an agent finds of an earlier life when it starts, until it has told.
    leftovers: Vec<(PodUid, String)>,
    wanted: (Vec<Arc<PodSpec>>, Vec<Rejected>),
    crash_soon: bool,
    /// Since the start or the last of the deaths.
    acts: u64,
    deaths: Vec<(u64, Fate)>,
    /// Operations that can be given up, with the containers that they stop.
    long: BTreeMap<PodUid, (OpId, Vec<String>)>,
    checker: Checker,
    tail: VecDeque<Line>,
    all: Option<Vec<Line>>,
    /// What has been done so far.
    pub stats: Stats,
}

impl Sim {
    /// A node at the beginning of its scenario.
    #[must_use]
    pub fn new(scenario: Scenario) -> Self {
        let kernel = Kernel::new(START, scenario.node.capacity.memory, scenario.system, scenario.node.capacity.cpu);
        let mut sim = Self {
            now: START,
            wall_off: 0,
            rng: Rng::new(scenario.seed, 2),
            probe_rng: Rng::new(scenario.seed, 6),
            queue: BTreeMap::new(),
            queued: 0,
            world: None,
            twin: None,
            with_twin: scenario.seed.is_multiple_of(4),
            life: 0,
            latest: [0; 3],
            faults: scenario.faults,
            pace: Pace::default(),
            stretch: beelet_core::budget::NONE,
            cost: Micros::ZERO,
            told_cost: Micros::ZERO,
            sampled: Micros::ZERO,
            looked: Micros::ZERO,
            listing: false,
            list_again: false,
            kernel,
            runtime: Runtime::new(),
            remembered: BTreeMap::new(),
            going: BTreeMap::new(),
            noted: BTreeMap::new(),
            leftovers: Vec::new(),
            wanted: (Vec::new(), Vec::new()),
            crash_soon: false,
            acts: 0,
            deaths: Vec::new(),
            long: BTreeMap::new(),
            checker: Checker::new(&scenario.node),
            tail: VecDeque::new(),
            all: None,
            stats: Stats::default(),
            scenario,
        };
        for (i, at) in sim.scenario.script.iter().map(|(at, _)| *at).enumerate().collect::<Vec<_>>() {
            sim.put(START + at - sim.now, Item::Script(i));
        }
        sim.put(sim.scenario.disturbed, Item::Calm);
        sim.put(Micros::ZERO, Item::AgentStart(0));
        sim
    }

    /// Keep the whole trace from now on.
    pub fn record(&mut self) {
        self.all = Some(Vec::new());
    }

    /// The recorded trace.
    #[must_use]
    pub fn recorded(&self) -> &[Line] {
        self.all.as_deref().unwrap_or_default()
    }

    /// The agent's world.
    #[must_use]
    pub fn world(&self) -> Option<&World> {
        self.world.as_ref()
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The time, as the agent sees it.
    #[must_use]
    pub fn clock(&self) -> Now {
        let wall = i64::try_from(WALL + (self.now - START).get()).unwrap_or(i64::MAX).saturating_add(self.wall_off);
        Now { mono: self.now, wall: Micros(u64::try_from(wall).unwrap_or(0)) }
    }

    /// Runs to the end of the scenario, or to the first broken invariant.
    ///
    /// # Errors
    /// The broken invariant with the last steps.
    pub fn run(&mut self) -> Result<Stats, Box<Failure>> {
        let end = START + self.scenario.disturbed + self.scenario.settle;
        let result = self.run_until(end).and_then(|()| {
            let Some(world) = &self.world else { return Ok(()) };
            self.checker.at_rest(world, self.clock(), &self.kernel, &self.runtime, &self.wanted.0, &self.remembered)
        });
        self.outcome(result)
    }

    /// Runs on for so long.
    ///
    /// # Errors
    /// The broken invariant with the last steps.
    pub fn run_for(&mut self, time: Micros) -> Result<Stats, Box<Failure>> {
        let result = self.run_until(self.now + time);
        self.outcome(result)
    }

    fn outcome(&mut self, result: Result<(), Violation>) -> Result<Stats, Box<Failure>> {
        self.stats.time = self.now - START;
        self.stats.ooms = self.kernel.ooms;
        result.map(|()| self.stats).map_err(|violation| self.failure(violation))
    }

    fn failure(&self, violation: Violation) -> Box<Failure> {
        let tail = self.tail.iter().cloned().collect();
        Box::new(Failure { seed: self.scenario.seed, violation, at: self.now - START, tail })
    }

    fn run_until(&mut self, end: Micros) -> Result<(), Violation> {
        loop {
            let next = self.queue.first_key_value().map_or(end, |((at, _), _)| (*at).min(end));
            self.kernel.advance(next);
            self.now = self.kernel.now();
            let deaths = self.kernel.take_deaths();
            if !deaths.is_empty() {
                self.on_deaths(deaths);
                continue;
            }
            if self.now >= end {
                return Ok(());
            }
            if let Some((_, item)) = self.queue.pop_first() {
                self.handle(item)?;
            }
        }
    }

    fn put(&mut self, after: Micros, item: Item) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), item);
    }

    fn millis(&mut self, low: u64, high: u64) -> Micros {
        Micros(self.rng.range(low * 1_000, high * 1_000))
    }

    fn on_deaths(&mut self, deaths: Vec<Death>) {
        for death in deaths {
            let finished = self.clock().wall;
            let noticed = self.millis(1, 60);
            let Death { id, uid, name, code, oom, .. } = death;
            self.put(noticed, Item::Noticed { id, finished, code, oom });
            let (pid, comm) = (4_711, name.clone());
            let mut kinds = Vec::new();
            if oom {
                kinds.push(KernelEventKind::OomVictim { pid, comm: comm.clone() });
            }
            let signal = u8::try_from((code - 128).max(0)).unwrap_or(0);
            let code = if signal > 0 { 0 } else { u8::try_from(code).unwrap_or(1) };
            kinds.push(KernelEventKind::Exit { pid, comm, code, signal, is_init: true });
            for kind in kinds {
                if !self.rng.chance(self.faults.kernel) {
                    let event = KernelEvent { at: self.now, uid: uid.clone(), container: Some(name.clone()), kind };
                    self.put(Micros(500), Item::Deliver(self.life, Event::Kernel(event)));
                }
            }
        }
    }

    fn handle(&mut self, item: Item) -> Result<(), Violation> {
        match item {
            Item::Script(i) => self.disturb(i),
            Item::Calm => {
                self.note("nothing fails or is disturbed from now on".to_owned());
                self.faults = Faults::default();
                self.runtime.down_until = self.now;
                self.checker.disturbed(self.now);
            }
            Item::AgentStart(life) if life == self.life => return self.start_agent(),
            Item::Deliver(life, event) if life == self.life => return self.step(event),
            // A source tells what it sees when it looks, never something older.
            Item::Wishes(life) if life == self.life => {
                let (pods, rejected) = self.wanted.clone();
                return self.step(Event::Pods { pods, rejected });
            }
            Item::Tick(life, n) if (life, n) == (self.life, self.latest[0]) => return self.step(Event::Tick),
            Item::Sample(life, n) if (life, n) == (self.life, self.latest[1]) => self.sample(),
            Item::List(life, n) if (life, n) == (self.life, self.latest[2]) => self.list(),
            Item::ListContainers(life, asked, sandboxes) if life == self.life => self.list_containers(asked, sandboxes),
            Item::Effect(operation) => self.effect(*operation),
            Item::Kill(uid) => {
                self.kernel.kill(&uid);
                let down = self.millis(10, 50);
                self.put(down, Item::SandboxDown(uid));
            }
            Item::End { id, code } => self.kernel.end(&id, code, false),
            Item::Noticed { id, finished, code, oom } => {
                self.runtime.notice(&id, finished, code, oom);
                // The runtime tells of it, or does not.
                if self.rng.chance(500) {
                    self.relist();
                }
            }
            Item::SandboxDown(uid) => {
                for sandbox in self.runtime.sandboxes.values_mut().filter(|s| s.uid == uid) {
                    sandbox.ready = false;
                }
            }
            // Meant for an earlier life, or replaced by a later one.
            Item::AgentStart(_)
            | Item::Deliver(..)
            | Item::Wishes(_)
            | Item::Tick(..)
            | Item::Sample(..)
            | Item::List(..)
            | Item::ListContainers(..) => {}
        }
        Ok(())
    }

    fn note(&mut self, what: String) {
        self.keep(Line::Note { at: self.now, what });
    }

    fn disturb(&mut self, i: usize) {
        let Some((_, what)) = self.scenario.script.get(i).cloned() else { return };
        self.checker.disturbed(self.now);
        match &what {
            Disturbance::Want(..) => self.note("the wishes change".to_owned()),
            what => self.note(format!("{what:?}")),
        }
        match what {
            Disturbance::Want(pods, rejected) => {
                self.wanted = (pods, rejected);
                let seen = self.millis(1, 100);
                self.put(seen, Item::Wishes(self.life));
            }
            Disturbance::Crash(down) => self.crash(down),
            Disturbance::Jump(by) => self.wall_off = self.wall_off.saturating_add(by),
            Disturbance::Outage(time) => self.runtime.down_until = self.now + time,
            Disturbance::LoseSandbox => {
                let up: Vec<String> =
                    self.runtime.sandboxes.values().filter(|s| s.ready && s.ours).map(|s| s.id.clone()).collect();
                let chosen = up.get(self.rng.index(up.len()));
                if let Some(sandbox) = chosen.and_then(|id| self.runtime.sandboxes.get_mut(id)) {
                    sandbox.ready = false;
                }
            }
            Disturbance::VanishSandbox => {
                let ours: Vec<String> =
                    self.runtime.sandboxes.values().filter(|s| s.ours).map(|s| s.id.clone()).collect();
                let gone = ours.get(self.rng.index(ours.len())).cloned();
                self.lose(&PodOp::RemoveSandboxes { ids: gone.into_iter().collect() });
            }
            Disturbance::VanishContainer => {
                let main = |c: &&ContainerFact| {
                    let pods = || self.wanted.0.iter().filter(|p| p.uid == c.uid);
                    pods().any(|p| p.containers.iter().any(|own| own.name == c.name))
                };
                let all: Vec<String> = self.runtime.containers.values().filter(main).map(|c| c.id.clone()).collect();
                let gone = all.get(self.rng.index(all.len())).cloned();
                self.lose(&PodOp::RemoveContainers { ids: gone.into_iter().collect() });
            }
            Disturbance::KillContainer => {
                let ids: Vec<String> = self.kernel.procs.keys().cloned().collect();
                if let Some(id) = ids.get(self.rng.index(ids.len())) {
                    self.kernel.end(id, 137, false);
                }
            }
            Disturbance::Foreign => self.foreign(),
            Disturbance::Image(there) => self.runtime.image = there,
        }
    }

    /// The runtime loses something that nobody told it to remove.
    fn lose(&mut self, what: &PodOp) {
        let wall = self.clock().wall;
        self.runtime.perform(what, &mut self.kernel, wall, &mut self.rng);
    }

    fn foreign(&mut self) {
        let (sandbox_id, id) = (self.runtime.id(), self.runtime.id());
        let uid: PodUid = format!("foreign-{sandbox_id}").as_str().into();
        let wall = self.clock().wall;
        let sandbox = SandboxFact {
            id: sandbox_id.clone(),
            uid: uid.clone(),
            namespace: "default".to_owned(),
            name: "foreign".to_owned(),
            attempt: 0,
            ready: true,
            ip: "10.0.1.1".to_owned(),
            created: wall,
            ours: false,
            cgroup_parent: String::new(),
            labels: BTreeMap::new(),
            other_ips: Vec::new(),
            no_address: false,
            given: BTreeMap::new(),
        };
        self.runtime.sandboxes.insert(sandbox_id.clone(), sandbox);
        let fact = ContainerFact {
            grace: None,
            pid: None,
            pre_stop: None,
            id: id.clone(),
            sandbox_id,
            uid,
            name: "c".to_owned(),
            attempt: 0,
            image: String::new(),
            image_id: String::new(),
            state: ContainerFactState::Running { started: wall },
            resources: None,
            user: None,
        };
        self.runtime.containers.insert(id, fact);
    }

    // === the agent ===

    fn crash(&mut self, down: Micros) {
        self.note("the agent dies".to_owned());
        self.life += 1;
        self.stats.crashes += 1;
        (self.world, self.twin) = (None, None);
        (self.listing, self.list_again) = (false, false);
        self.long.clear();
        self.checker.restarted(self.now, &self.remembered);
        self.put(down, Item::AgentStart(self.life));
    }

    fn start_agent(&mut self) -> Result<(), Violation> {
        let config = self.scenario.node.clone();
        self.world = Some(World::new(config.clone()));
        self.twin = self.with_twin.then(|| World::new(config.clone()));
        self.keep(Line::Start { config });
        self.stretch = beelet_core::budget::NONE;
        (self.pace, self.sampled, self.looked) = (Pace::default(), self.now, Micros::ZERO);
        self.leftovers = self.kernel.groups.iter().map(|(uid, group)| (uid.clone(), group.path.clone())).collect();
        self.step(Event::Remembered(self.remembered.values().cloned().collect()))?;
        self.step(Event::Going(self.going.iter().map(|(uid, until)| (uid.clone(), *until)).collect()))?;
        self.step(Event::Noted(self.noted.values().cloned().collect()))?;
        let seen = self.millis(1, 300);
        self.put(seen, Item::Wishes(self.life));
        self.relist();
        self.schedule_sample(Micros::millis(50));
        Ok(())
    }

    fn keep(&mut self, line: Line) {
        if let Some(all) = &mut self.all {
            all.push(line.clone());
        }
        if self.tail.len() >= KEEP {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    fn step(&mut self, event: Event) -> Result<(), Violation> {
        let now = self.clock();
        let Some(world) = &mut self.world else { return Ok(()) };
        let actions = world.step(event.clone(), now);
        self.stats.steps += 1;
        let again = self.twin.as_mut().map(|twin| twin.step(event.clone(), now));
        let line = Line::Step { now, event, actions: actions.clone() };
        let Some(world) = &self.world else { return Ok(()) };
        let Line::Step { event, .. } = &line else { return Ok(()) };
        let look = Look {
            world,
            now,
            event,
            actions: &actions,
            again: again.as_deref(),
            kernel: &self.kernel,
            runtime: &self.runtime,
        };
        let holds = self.checker.check(&look);
        self.keep(line);
        holds?;
        for action in actions {
            if self.dies_of(&action) {
                return Ok(());
            }
            self.act(action);
        }
        if std::mem::take(&mut self.crash_soon) {
            self.checker.disturbed(self.now);
            let down = self.millis(10, 2_000);
            self.crash(down);
        }
        Ok(())
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Pod { uid, op, what } => self.begin(uid, op, what),
            Action::Kill { uid, .. } => {
                self.stats.evictions += 1;
                let soon = self.millis(1, 5);
                self.put(soon, Item::Kill(uid));
            }
            Action::Cgroups(groups) => {
                let kubepods = groups.iter().find(|g| g.path == self.scenario.node.kubepods);
                self.kernel.limit = kubepods.and_then(|g| g.knobs.memory_max);
            }
            Action::Probe { uid, container, run, kind, timeout, .. } => {
                self.stats.probes.0 += 1;
                let takes = Micros(self.probe_rng.range(500, timeout.get()));
                let answer = self.answer(&run);
                let event = Event::Probe { uid, container, run, kind, answer, took: takes };
                self.put(takes, Item::Deliver(self.life, event));
            }
            Action::Cancel { uid } => self.cancel(&uid),
            // The simulated node has memory and no disks.
            Action::Knob(_)
            | Action::Refresh(_)
            | Action::LookAtDisks { .. }
            | Action::Reclaim { .. }
            | Action::ReclaimMemory { .. } => {}
            Action::Record(record) => match record.reason.as_str() {
                "Slow" => {
                    self.stats.slow.0 += 1;
                    self.stats.slow.1 += u64::from(record.message.starts_with("NoisyNeighbour"));
                }
                "Killing" => self.stats.probes.1 += u64::from(record.message.contains(" probe")),
                "SlowedItself" => self.stats.slowed += 1,
                "Evicted" => {
                    let is = |(name, value): &(String, String)| name == "threshold_kind" && value == "soft";
                    self.stats.soft += u64::from(record.evidence.iter().any(is));
                }
                _ => {}
            },
            Action::Relist => self.relist(),
            Action::SampleEvery { interval, all_pods, stretch } => {
                self.pace = Pace { interval, all_pods };
                self.stretch = stretch;
                self.checker.paced(interval);
                self.schedule_sample(self.sampled + interval - self.now);
            }
            Action::WakeAt(at) => {
                self.latest[0] += 1;
                self.put(at - self.now, Item::Tick(self.life, self.latest[0]));
            }
            Action::Remember(end) => {
                self.remembered.insert(end.uid.clone(), end);
            }
            Action::Note(note) => {
                self.noted.insert(note.uid.clone(), note);
            }
            Action::Forget(uid) => {
                self.remembered.remove(&uid);
                self.noted.remove(&uid);
            }
            Action::Going { uid, until } => match until {
                Some(until) => _ = self.going.insert(uid, until),
                None => _ = self.going.remove(&uid),
            },
        }
    }

    /// What a container says when it is asked.
    fn answer(&mut self, run: &str) -> Answer {
        if !self.kernel.procs.contains_key(run) {
            return Answer::Failure("connection refused".to_owned());
        }
        match self.probe_rng.range(0, 999) {
            n if n < self.faults.probe => Answer::Failure("no".to_owned()),
            n if n < self.faults.probe + 20 && self.faults.probe > 0 => {
                Answer::Error { state: "unknown".to_owned(), message: "it cannot be asked".to_owned() }
            }
            999 => Answer::Warning("moved".to_owned()),
            _ => Answer::Success,
        }
    }

    fn begin(&mut self, uid: PodUid, op: OpId, what: PodOp) {
        self.stats.operations += 1;
        self.stats.resizes += u64::from(matches!(what, PodOp::Resize { .. }));
        match &what {
            PodOp::StopContainers { stops, .. } => {
                let ids = stops.iter().map(|stop| stop.id.clone()).collect();
                self.long.insert(uid.clone(), (op, ids));
            }
            PodOp::EnsureImage { .. } | PodOp::PostStart { .. } => _ = self.long.insert(uid.clone(), (op, Vec::new())),
            _ => _ = self.long.remove(&uid),
        }
        let (low, high) = match &what {
            PodOp::StartSandbox { .. } => (50, 500),
            PodOp::StartContainer { .. } | PodOp::RemoveSandboxes { .. } => (30, 300),
            PodOp::Cleanup { .. } => (2, 60),
            _ => (1, 20),
        };
        let mut takes = self.millis(low, high);
        if self.rng.chance(self.faults.slow) {
            takes = takes.scale(10, 1);
        }
        let fails = self.rng.chance(self.faults.operation);
        let after = self.rng.chance(300);
        self.crash_soon |= self.rng.chance(self.faults.crash);
        if fails {
            self.checker.faulted(self.now);
        }
        let survives = Runtime::is_asked_by(&what) && self.rng.chance(500);
        let operation = Operation {
            life: self.life,
            uid,
            op,
            what,
            survives,
            fails_before: fails && !after,
            fails_after: fails && after,
        };
        self.put(takes, Item::Effect(Box::new(operation)));
    }

    fn effect(&mut self, o: Operation) {
        if o.life != self.life {
            if !o.survives {
                return;
            }
            self.note(format!("{}: {}, told by an agent that has died", o.uid, crate::story::operation(&o.what)));
        }
        let wall = self.clock().wall;
        let down = self.now < self.runtime.down_until && Runtime::is_asked_by(&o.what);
        let mut outcome = if down {
            Err(error("RuntimeUnavailable", "connection refused")).into()
        } else if o.fails_before {
            Err(error("Fault", "failed by the scenario")).into()
        } else {
            self.runtime.perform(&o.what, &mut self.kernel, wall, &mut self.rng)
        };
        for (id, after, code) in std::mem::take(&mut outcome.ends) {
            self.put(after, Item::End { id, code });
        }
        if o.fails_after {
            outcome.result = Err(error("Timeout", "it was done, but nobody heard of it"));
        }
        let heard = outcome.longer + Micros(200);
        self.put(heard, Item::Deliver(o.life, Event::Done { uid: o.uid, op: o.op, result: outcome.result }));
    }

    // === looking ===

    fn relist(&mut self) {
        if self.listing {
            self.list_again = true;
        } else {
            self.schedule_list(Micros::millis(5));
        }
    }

    fn schedule_list(&mut self, after: Micros) {
        self.latest[2] += 1;
        self.put(after, Item::List(self.life, self.latest[2]));
    }

    fn list(&mut self) {
        self.listing = true;
        let sandboxes = self.runtime.sandboxes.values().cloned().collect();
        let takes = if self.rng.chance(self.faults.slow) { self.millis(100, 3_000) } else { self.millis(1, 20) };
        self.put(takes, Item::ListContainers(self.life, self.now, sandboxes));
    }

    fn list_containers(&mut self, asked: Micros, sandboxes: Vec<SandboxFact>) {
        self.listing = false;
        let event = if self.now < self.runtime.down_until || self.rng.chance(self.faults.listing) {
            self.checker.faulted(self.now);
            Event::RuntimeDown { reason: "connection refused".to_owned() }
        } else {
            let containers = self.runtime.containers.values().cloned().collect();
            let leftovers = std::mem::take(&mut self.leftovers);
            Event::Runtime(RuntimeFacts { asked, sandboxes, containers, leftovers, ..RuntimeFacts::default() })
        };
        let down = matches!(event, Event::RuntimeDown { .. });
        let late = self.millis(1, 20);
        self.put(late, Item::Deliver(self.life, event));
        let again = std::mem::take(&mut self.list_again) && !down;
        let period = if down { Micros::secs(1) } else { self.scenario.listings };
        self.schedule_list(if again { Micros::millis(5) } else { period });
    }

    fn schedule_sample(&mut self, after: Micros) {
        self.latest[1] += 1;
        self.put(after, Item::Sample(self.life, self.latest[1]));
    }

    fn sample(&mut self) {
        let Some(world) = &self.world else { return };
        let full = self.pace.all_pods || self.now - self.looked >= Micros::millis(u64::from(self.stretch));
        let known = world.pods().iter().filter(|(_, p)| !p.sandboxes.is_empty() || !p.containers.is_empty());
        let mut pods: Option<Vec<_>> = full.then(|| known.filter_map(|(uid, _)| self.kernel.pod(uid)).collect());
        if full {
            self.looked = self.now;
            // A full look of every third agent is too dear: it slows itself.
            self.cost += if self.scenario.seed.is_multiple_of(3) { Micros::millis(30) } else { Micros::millis(5) };
        }
        if self.now - self.told_cost >= Micros::secs(1) {
            self.told_cost = self.now;
            let cost = Event::OwnCost { cpu: self.cost, looking: self.cost, bpf: None };
            self.put(Micros(100), Item::Deliver(self.life, cost));
        }
        let torn = self.rng.chance(self.faults.torn);
        let mut kubepods = Some(self.kernel.kubepods(torn, !full));
        if self.rng.chance(self.faults.missing) {
            match self.rng.range(0, 3) {
                0 => kubepods = None,
                1 => kubepods = kubepods.map(|k| beelet_core::sample::CgroupReading { memory: None, ..k }),
                _ => {
                    for pod in pods.iter_mut().flatten() {
                        if self.rng.chance(500) {
                            pod.cgroup.memory = None;
                        }
                    }
                }
            }
        }
        let sample = Sample { at: self.now, node: self.kernel.node(), kubepods, pods, node_detail: None };
        let late = if self.rng.chance(self.faults.stale) { self.millis(400, 6_000) } else { self.millis(1, 8) };
        self.put(late, Item::Deliver(self.life, Event::Sample(sample)));
        self.sampled = self.now;
        // One thread looks: while a look takes long there is no other.
        self.schedule_sample(self.pace.interval.max(late));
    }
}
