//! The state of the node, and the one way to change it.
//!
//! Problem: state that many tasks may touch is state that nobody can reason about. Approach: [`World::step`] takes one event
//! and gives the actions that follow from it; whoever owns the `World` calls it, one event at a time. After each event every
//! pod that it may concern is planned anew ([`Pod::plan`]).
//!
//! Properties: the same events give the same actions (no clock, no randomness, ordered maps only); while the wishes or the
//! facts are not known yet nothing is started and nothing is stopped; a pod of another owner is never acted on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::allocate;
use crate::attribute::Attributor;
use crate::budget::{self, Budget, Spent};
use crate::disks::{self, Disks};
use crate::event::{Action, Event, OpId, PodCgroup, PodOp, Record, Rejected, Terminal};
use crate::evict;
use crate::forecast::Pace;
use crate::ladder::{Ladder, Rung};
use crate::model::NodeModel;
use crate::node::NodeConfig;
use crate::pod::{Pod, PodState, Step};
use crate::probes::Answered;
use crate::sample::{KernelEvent, KernelEventKind, Sample};
use crate::score::{Scope, Score, Scores};
use crate::security::{self, RuntimeFeatures};
use crate::spec::{PodSpec, PodUid};
use crate::status::PodNote;
use crate::totals::Counts;
use crate::units::{Micros, Now};
use crate::why::Why;

/// Records kept for `/debug/explain`.
const RECORDS: usize = 1_000;
/// The reason under which fields are told that have no effect.
const LEFT_OUT: &str = "FieldsLeftOut";
/// A pod that plans more steps than this in one go is in a loop: stop and say so.
const STEPS_AT_ONCE: usize = 32;

/// How much the world remembers: entries, by what they are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Pods.
    pub pods: usize,
    /// What is remembered of containers by name.
    pub tracks: usize,
    /// Sandboxes and containers of the runtime.
    pub facts: usize,
    /// Signs, listeners and notes of health.
    pub health: usize,
    /// Manifests that cannot be run.
    pub rejected: usize,
    /// Ends of pods that are still wanted.
    pub remembered: usize,
    /// Leftovers of an earlier life.
    pub leftovers: usize,
    /// Records.
    pub records: usize,
    /// Counters that outlive their pods.
    pub series: usize,
    /// Names of pods that are gone and have such counters.
    pub gone: usize,
    /// Pods that would have been evicted.
    pub told: usize,
    /// What the search for slowness remembers.
    pub slow: usize,
    /// Walls of which forecasts are scored.
    pub scores: usize,
    /// Pods that the ladder knows.
    pub ladder: usize,
}

impl Sizes {
    /// Each with its name, for a metric.
    #[must_use]
    pub fn all(&self) -> [(&'static str, usize); 14] {
        [
            ("pods", self.pods),
            ("tracks", self.tracks),
            ("facts", self.facts),
            ("health", self.health),
            ("rejected", self.rejected),
            ("remembered", self.remembered),
            ("leftovers", self.leftovers),
            ("records", self.records),
            ("series", self.series),
            ("gone", self.gone),
            ("told", self.told),
            ("slow", self.slow),
            ("scores", self.scores),
            ("ladder", self.ladder),
        ]
    }
}

/// Which pods are planned after an event.
enum Plans {
    /// All: any of them may be concerned.
    All,
    /// That one only.
    Of(PodUid),
    /// Those whose time has come.
    Due,
    /// None, unless the event led to an action.
    Hardly,
}

/// The state of the node.
#[derive(Debug)]
pub struct World {
    pub(crate) config: NodeConfig,
    pub(crate) pods: BTreeMap<PodUid, Pod>,
    pub(crate) wishes_known: bool,
    pub(crate) facts_known: bool,
    pub(crate) runtime_down: Option<String>,
    /// What the runtime said it can do.
    pub(crate) features: RuntimeFeatures,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) remembered: BTreeMap<PodUid, Terminal>,
    /// By when pods have to be gone that had to go when an earlier life ended (wall clock), until they are found or wanted anew.
    pub(crate) going: BTreeMap<PodUid, Micros>,
    /// What an earlier life wrote down of pods, until the wishes are known.
    pub(crate) noted: BTreeMap<PodUid, PodNote>,
    /// Pods of an earlier life of which only a cgroup or folders are left, until the wishes are known.
    pub(crate) leftovers: Vec<(PodUid, String)>,
    pub(crate) records: VecDeque<Record>,
    pub(crate) totals: Counts,
    pub(crate) node: NodeModel,
    pub(crate) last_sample: Option<Sample>,
    pub(crate) evict: evict::Decider,
    /// Pressure on what is not memory.
    pub(crate) disks: Disks,
    pub(crate) pace: Option<Pace>,
    /// When a pod was last told of as one that would have been evicted.
    pub(crate) told: BTreeMap<PodUid, Micros>,
    /// What is done before somebody has to go.
    pub(crate) ladder: Ladder,
    /// When a pod was last told of as one that would have been put on a rung.
    pub(crate) told_rungs: BTreeMap<(PodUid, Rung), Micros>,
    /// Why pods are slow.
    pub(crate) slow: Attributor,
    /// How good the forecasts were.
    pub(crate) scores: Scores,
    /// What the agent itself costs.
    pub(crate) budget: Budget,
    /// The stretch that was last asked for.
    pub(crate) stretched: u32,
    /// When the first event came (monotonic).
    pub(crate) born: Micros,
    /// The event was a look at what pods use.
    looked: bool,
    /// How often an answer to a probe changed what is shown of a container.
    pub(crate) probe_news: u64,
    /// The cgroups above the pods' as they were last asked for.
    tree: Vec<PodCgroup>,
    next_op: u64,
    waking: Option<Micros>,
    pub(crate) out: Vec<Action>,
}

impl World {
    /// A node of which nothing is known yet.
    #[must_use]
    pub fn new(config: NodeConfig) -> Self {
        let (evict, disks) = (evict::Decider::new(&config), Disks::new(&config));
        let budget = Budget::new(config.own_budget);
        let ladder = Ladder::new(config.rungs.clone());
        Self {
            config,
            pods: BTreeMap::new(),
            wishes_known: false,
            facts_known: false,
            runtime_down: None,
            features: RuntimeFeatures::default(),
            rejected: Vec::new(),
            remembered: BTreeMap::new(),
            going: BTreeMap::new(),
            noted: BTreeMap::new(),
            leftovers: Vec::new(),
            records: VecDeque::new(),
            // Known signals stand at 0 from the start, so that a first eviction is an increase.
            totals: Counts::new(disks::all_signals()),
            node: NodeModel::default(),
            last_sample: None,
            evict,
            disks,
            pace: None,
            told: BTreeMap::new(),
            ladder,
            told_rungs: BTreeMap::new(),
            slow: Attributor::default(),
            scores: Scores::default(),
            budget,
            stretched: budget::NONE,
            born: Micros::ZERO,
            looked: false,
            probe_news: 0,
            tree: Vec::new(),
            next_op: 0,
            waking: None,
            out: Vec::new(),
        }
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }

    /// The pods by UID, for invariants and reports.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<PodUid, Pod> {
        &self.pods
    }

    /// The condition `MemoryPressure`.
    #[must_use]
    pub fn memory_pressure(&self) -> bool {
        self.evict.standing().memory_pressure
    }

    /// Steps of the state machine that were not allowed, and changed nothing: each of them is a bug.
    #[must_use]
    pub fn illegal_transitions(&self) -> u64 {
        self.totals.illegal_transitions
    }

    /// Why a pod is slow, most lost time first; empty if it is not.
    #[must_use]
    pub fn slowness(&self, uid: &PodUid) -> Vec<crate::attribute::Slowness> {
        self.slow.of(uid)
    }

    /// How good forecasts of running out of memory were.
    #[must_use]
    pub fn forecast_scores(&self) -> Vec<(Scope, Score)> {
        self.scores.view()
    }

    /// How much is remembered, by what it is: for a test and a metric that show that nothing grows for ever.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        let of_pods = |of: fn(&Pod) -> usize| self.pods.values().map(of).sum();
        Sizes {
            pods: self.pods.len(),
            tracks: of_pods(|p| p.tracks.len()),
            facts: of_pods(|p| p.sandboxes.len() + p.containers.len()),
            health: of_pods(|p| p.health.size()),
            rejected: self.rejected.len(),
            remembered: self.remembered.len() + self.noted.len(),
            leftovers: self.leftovers.len(),
            records: self.records.len(),
            series: self.totals.size(),
            gone: self.totals.gone(),
            told: self.told.len() + self.told_rungs.len(),
            slow: self.slow.size(),
            scores: self.scores.size(),
            ladder: self.ladder.size(),
        }
    }

    /// One event in, the actions that follow from it out.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.out = Vec::new();
        if self.born == Micros::ZERO {
            self.born = now.mono;
        }
        let plans = match &event {
            // A look at the node alone changes no plan, unless it led to a decision; nor does one at its disks, or the agent's own cost.
            Event::Sample(sample) if sample.pods.is_none() => Plans::Hardly,
            Event::OwnCost { .. } | Event::Disks { .. } => Plans::Hardly,
            Event::Probe { uid, .. } => Plans::Of(uid.clone()),
            Event::Tick => Plans::Due,
            _ => Plans::All,
        };
        self.looked = matches!(event, Event::Sample(_));
        match event {
            Event::Pods { pods, rejected } => self.on_wishes(pods, rejected, now),
            Event::Runtime(facts) => self.on_facts(facts, now),
            Event::RuntimeDown { reason } => self.on_runtime_down(reason, now),
            Event::Done { uid, op, result } => self.on_done(&uid, op, result, now),
            Event::Sample(sample) => self.on_sample(sample, now),
            Event::Disks { reading, reclaimed } => self.on_disks(&reading, reclaimed.as_ref(), now),
            Event::Kernel(event) => self.on_kernel(&event, now),
            Event::Remembered(ends) => self.remembered = ends.into_iter().map(|t| (t.uid.clone(), t)).collect(),
            Event::Going(pods) => self.going = pods.into_iter().collect(),
            Event::Noted(notes) => self.noted = notes.into_iter().map(|note| (note.uid.clone(), note)).collect(),
            Event::OwnCost { cpu, looking, bpf } => {
                self.on_own_cost(Spent { all: cpu + bpf.unwrap_or_default(), looking }, now);
            }
            Event::Pulling { uid, image } => self.tell_pulling(&uid, &image, now),
            Event::Told { uid, container, reason, message } => self.say(&uid, container, now, true, &reason, message),
            Event::Probe { uid, container, run, kind, answer, took } => {
                self.on_probe(&uid, Answered { container, run, kind, answer, took }, now);
            }
            Event::Tick => self.waking = None,
        }
        match plans {
            Plans::All => self.plan_all(now),
            Plans::Hardly if self.out.is_empty() => {}
            Plans::Hardly => self.plan_all(now),
            Plans::Of(uid) => self.plan_some(now, &|other, _| *other == uid),
            Plans::Due => self.plan_some(now, &|_, pod| pod.wake.is_some_and(|wake| wake <= now.mono)),
        }
        std::mem::take(&mut self.out)
    }

    // === wishes ===

    fn on_wishes(&mut self, pods: Vec<Arc<PodSpec>>, rejected: Vec<Rejected>, now: Now) {
        if !self.wishes_known && self.facts_known {
            // What was listed before could not be kept: it was not known whose it is.
            self.facts_known = false;
            self.out.push(Action::Relist);
        }
        self.wishes_known = true;
        for pod in self.pods.values_mut().filter(|p| !p.foreign) {
            pod.wanted = false;
        }
        let (mut anew, mut news) = (Vec::new(), Vec::new());
        for spec in pods {
            let known = self.pods.get(&spec.uid).map(|pod| pod.next_spec.as_ref().unwrap_or(&pod.spec));
            if !spec.left_out.is_empty() && known.is_none_or(|known| known.left_out != spec.left_out) {
                news.push(Arc::clone(&spec));
            }
            if let Some(pod) = self.pods.get_mut(&spec.uid) {
                // A pod on its way out stays so; when it is gone it is made anew.
                pod.wanted = true;
                if pod.spec == spec {
                    pod.next_spec = None;
                    continue;
                }
                match &pod.state {
                    PodState::Observed | PodState::Rejected { .. } if pod.sandboxes.is_empty() => {
                        *pod = Pod::new(spec, now);
                        continue;
                    }
                    // It ended with the old values, or (a UID given by hand) it is another pod but for its UID.
                    PodState::Terminal(_) => anew.push(spec.uid.clone()),
                    state if state.is_live() && !pod.spec.can_become(&spec) => anew.push(spec.uid.clone()),
                    _ => {}
                }
                pod.next_spec = Some(spec);
            } else {
                let mut pod = Pod::new(Arc::clone(&spec), now);
                if let Some(note) = self.noted.remove(&spec.uid) {
                    pod.recall(note);
                }
                if let Some(end) = self.remembered.get(&spec.uid) {
                    for (name, restarts, exit) in &end.exits {
                        if let Some(track) = pod.tracks.get_mut(name) {
                            track.last_exit = Some(exit.clone());
                            track.next_attempt = restarts + 1;
                        }
                    }
                    pod.state = PodState::Terminal(end.clone());
                    pod.until = self.going.remove(&spec.uid);
                } else if self.going.remove(&spec.uid).is_some() {
                    // It was wanted again while no agent looked: it goes on, and has all its time when it goes another time.
                    self.out.push(Action::Going { uid: spec.uid.clone(), until: None });
                }
                self.pods.insert(spec.uid.clone(), pod);
            }
        }
        for spec in news {
            let message = spec.left_out.join("; ");
            self.record(now, Some(spec.uid.clone()), spec.full_name(), None, true, LEFT_OUT, message, Vec::new());
        }
        for bad in &rejected {
            if !self.rejected.contains(bad) {
                let name = bad.pod.clone().unwrap_or_else(|| bad.origin.clone());
                let message = format!("{}: {}", bad.origin, bad.error);
                self.record(now, None, name, None, true, "FailedValidation", message, Vec::new());
            }
        }
        self.rejected = rejected;
        for uid in anew {
            let Some(pod) = self.pods.get(&uid) else { continue };
            let next = pod.terminating(Why::Removed, now);
            self.go(&uid, next, now);
        }
        let notes = self.remembered.keys().chain(self.noted.keys()).filter(|uid| !self.pods.contains_key(*uid));
        let notes: BTreeSet<PodUid> = notes.cloned().collect();
        for uid in notes {
            self.remembered.remove(&uid);
            self.noted.remove(&uid);
            self.out.push(Action::Forget(uid));
        }
        let unwanted: Vec<PodUid> =
            self.pods.iter().filter(|(_, p)| !p.wanted && !p.foreign).map(|(uid, _)| uid.clone()).collect();
        for uid in unwanted {
            self.remove(&uid, now);
        }
    }

    fn remove(&mut self, uid: &PodUid, now: Now) {
        let Some(pod) = self.pods.get(uid) else { return };
        let next = match &pod.state {
            // Nothing of it is anywhere, as far as is known.
            PodState::Rejected { .. } => PodState::Gone,
            PodState::Observed if pod.sandboxes.is_empty() && self.facts_known => PodState::Gone,
            state if state.is_live() => pod.terminating(Why::Removed, now),
            _ => return,
        };
        self.go(uid, next, now);
    }

    // === the kernel ===

    fn on_kernel(&mut self, event: &KernelEvent, now: Now) {
        let Some(pod) = self.pods.get_mut(&event.uid) else { return };
        if pod.state.is_live() {
            pod.health.on_kernel(event);
        }
        match &event.kind {
            KernelEventKind::OomVictim { pid, comm } => {
                if let Some(track) = event.container.as_ref().and_then(|c| pod.tracks.get_mut(c)) {
                    track.oom.event();
                    track.watched = true;
                }
                let container = event.container.clone();
                let message = format!("the kernel's OOM killer chose process {comm} ({pid})");
                let name = container.clone().unwrap_or_default();
                let key = (pod.spec.namespace.clone(), pod.spec.name.clone(), name);
                self.totals.oom_victim(key, comm);
                self.count_oom_kills(&event.uid.clone(), now.mono);
                self.say(&event.uid.clone(), container, now, true, "OOMKilling", message);
            }
            KernelEventKind::Exit { .. } => self.on_process_exit(event, now),
            KernelEventKind::Listen { .. } => {}
        }
    }

    /// Counts the OOM kills of a pod that are known by now, and scores the forecasts by what is new.
    pub(crate) fn count_oom_kills(&mut self, uid: &PodUid, now: Micros) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let mut killed = Vec::new();
        for (name, track) in &mut pod.tracks {
            let total = track.oom.total();
            if total > 0 {
                let key = (pod.spec.namespace.clone(), pod.spec.name.clone(), name.clone());
                let seen = self.totals.oom_kills.entry(key).or_default();
                *seen = total.max(*seen);
            }
            if track.oom.news() && track.watched {
                killed.push(name.clone());
            }
        }
        for name in killed {
            let wall = self.wall_that_killed(uid, name);
            self.scores.oom_kill(wall, now);
        }
    }

    // === planning ===

    fn plan_all(&mut self, now: Now) {
        if !self.may_plan() {
            return;
        }
        self.take_leftovers(now);
        // Those that are there have theirs since they were found.
        for uid in std::mem::take(&mut self.going).into_keys() {
            self.out.push(Action::Going { uid, until: None });
        }
        let is_there = |ns: &str, name: &str| self.pods.values().any(|p| p.spec.namespace == ns && p.spec.name == name);
        self.totals.prune(now.mono, is_there);
        self.plan_tree();
        self.plan_some(now, &|_, _| true);
    }

    /// Plans some of the pods, and says when to come back.
    pub(crate) fn plan_some(&mut self, now: Now, concerned: &dyn Fn(&PodUid, &Pod) -> bool) {
        if !self.may_plan() {
            return;
        }
        let mut uids: Vec<PodUid> =
            self.pods.iter().filter(|(uid, pod)| concerned(uid, pod)).map(|(uid, _)| uid.clone()).collect();
        uids.sort_by_key(|uid| self.pods.get(uid).is_some_and(|pod| !pod.let_in));
        let before = self.pods.len();
        for uid in &uids {
            let wakes = [self.plan_deadline(uid, now), self.plan_pod(uid, now), self.plan_probes(uid, now)];
            if let Some(pod) = self.pods.get_mut(uid) {
                pod.wake = wakes.into_iter().flatten().min();
            }
            self.show(uid, self.looked, now);
        }
        // A pod that is forgotten makes its name free for another one.
        if self.pods.len() != before {
            return self.plan_some(now, &|_, _| true);
        }
        let wake = self.pods.values().filter_map(|pod| pod.wake).min();
        if let Some(wake) = wake
            && self.waking != Some(wake)
        {
            self.waking = Some(wake);
            self.out.push(Action::WakeAt(wake));
        }
    }

    fn may_plan(&self) -> bool {
        self.config.beside || self.wishes_known && self.facts_known
    }

    /// `kubepods` and the QoS classes, whose weights follow from the pods in them.
    fn plan_tree(&mut self) {
        if self.config.beside {
            return;
        }
        let pods = self.pods.values().filter(|p| p.state.is_live()).map(|p| &*p.spec);
        let mut tree = vec![allocate::kubepods(&self.config)];
        tree.extend(allocate::qos_cgroups(&self.config, pods));
        if self.tree != tree {
            self.tree.clone_from(&tree);
            self.out.push(Action::Cgroups(tree));
        }
    }

    fn plan_pod(&mut self, uid: &PodUid, now: Now) -> Option<Micros> {
        for _ in 0..STEPS_AT_ONCE {
            let pod = self.pods.get(uid)?;
            if pod.state == PodState::Gone {
                self.forget(uid, now);
                continue;
            }
            let name_taken = pod.state == PodState::Observed
                && self.pods.values().any(|other| {
                    other.spec.uid != *uid
                        && other.spec.name == pod.spec.name
                        && other.spec.namespace == pod.spec.namespace
                        && other.state != PodState::Observed
                        && !matches!(other.state, PodState::Rejected { .. })
                });
            if pod.state == PodState::Observed && pod.wanted && !pod.foreign && !name_taken {
                let ignored = security::ignored(&self.config.security, &pod.spec);
                let next = self.admit(uid, now)?;
                let ignored = ignored.filter(|_| next == PodState::Admitted);
                self.go(uid, next, now);
                if let Some(ignored) = ignored {
                    self.say(uid, None, now, true, LEFT_OUT, ignored);
                }
                continue;
            }
            self.note_resize(uid, now);
            let pod = self.pods.get(uid)?;
            match pod.plan(&self.config, name_taken, now) {
                Step::Become(next) => self.go(uid, next, now),
                Step::Do(op) => {
                    self.begin(uid, op, now);
                    return None;
                }
                Step::Wait(until) => return Some(until),
                Step::Idle => return None,
            }
        }
        self.totals.illegal_transitions += 1;
        self.say(uid, None, now, true, "Internal", "the plan of this pod goes in a circle; waiting".to_owned());
        Some(now.mono + Micros::secs(10))
    }

    fn forget(&mut self, uid: &PodUid, now: Now) {
        self.told.remove(uid);
        self.told_rungs.retain(|(told, _), _| told != uid);
        self.ladder.forget(uid);
        let gone = self.pods.remove(uid);
        if let Some(pod) = &gone {
            self.totals.pod_gone(&pod.spec, now.mono);
        }
        if gone.as_ref().is_some_and(|pod| pod.until.is_some()) {
            self.out.push(Action::Going { uid: uid.clone(), until: None });
        }
        let noted = gone.as_ref().is_some_and(|pod| pod.noted.is_some());
        if self.remembered.remove(uid).is_some() || noted {
            self.out.push(Action::Forget(uid.clone()));
        }
        if let Some(pod) = gone.filter(|p| p.wanted && !p.foreign) {
            // The same manifest came back while it went.
            let spec = pod.next_spec.unwrap_or(pod.spec);
            self.pods.insert(uid.clone(), Pod::new(spec, now));
        }
    }

    /// Has the pod's written files say what is so now: labels as they are wished for, resources as they were given.
    pub(crate) fn refresh(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid).filter(|pod| pod.spec.has_written()) else { return };
        self.out.push(Action::Refresh(pod.actuated().map_or_else(|| Arc::clone(&pod.spec), Arc::new)));
    }

    fn note_resize(&mut self, uid: &PodUid, now: Now) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if pod.state != PodState::Running || pod.foreign || pod.in_flight.is_some() {
            return;
        }
        // Until then it starts with what it was admitted with.
        let started = |name: &str| pod.tracks.get(name).is_some_and(|t| t.actuated.is_some());
        if pod.next_spec.is_some() && pod.spec.containers.iter().all(|c| started(&c.name)) {
            pod.spec = pod.next_spec.take().unwrap_or_else(|| Arc::clone(&pod.spec));
            self.refresh(uid);
        }
        let Some(pod) = self.pods.get(uid) else { return };
        let plan = pod
            .actuated()
            .map(|old| {
                let others = self.beside_of(uid);
                allocate::resize(&self.config, others.iter().map(AsRef::as_ref), &old, &pod.spec, &pod.in_use())
            })
            .filter(|plan| *plan != allocate::ResizePlan::Nothing);
        let note = match &plan {
            None | Some(allocate::ResizePlan::Nothing) => String::new(),
            Some(allocate::ResizePlan::Apply { .. }) => "InProgress".to_owned(),
            Some(allocate::ResizePlan::Deferred { why }) => format!("Deferred: {why}"),
            Some(allocate::ResizePlan::Infeasible { why }) => format!("Infeasible: {why}"),
        };
        let kind = |note: &str| note.split(": ").next().unwrap_or_default().to_owned();
        let news = kind(&pod.resize) != kind(&note);
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.resize_plan = plan;
        pod.resize.clone_from(&note);
        if news && note.contains(": ") {
            let reason = format!("Resize{}", kind(&note));
            self.say(uid, None, now, true, &reason, note);
        }
    }

    fn begin(&mut self, uid: &PodUid, what: PodOp, now: Now) {
        if matches!(what, PodOp::RemoveSandboxes { .. }) {
            self.write_down_ends(uid);
        }
        let Some(pod) = self.pods.get_mut(uid) else { return };
        self.next_op += 1;
        let op = OpId(self.next_op);
        pod.in_flight = Some((op, what.name()));
        pod.doing = Some(what.clone());
        let mut said = Vec::new();
        match &what {
            PodOp::Prepare { cgroup, .. } => pod.home = Some(cgroup.path.clone()),
            PodOp::StartContainer { container, .. } => {
                if let Some(track) = pod.tracks.get_mut(container) {
                    track.start(self.config.max_backoff, now);
                }
            }
            PodOp::StopContainers { stops, .. } => {
                said = pod.tell_of_stops(stops);
                if matches!(pod.state, PodState::Terminating { why: Why::Removed, .. }) {
                    let names: Vec<&str> = stops.iter().map(|stop| stop.name.as_str()).collect();
                    pod.last_action = format!("Stopping {}", names.join(", "));
                }
            }
            _ => {}
        }
        self.out.push(Action::Pod { uid: uid.clone(), op, what });
        for (container, message) in said {
            self.say(uid, Some(container), now, false, "Killing", message);
        }
    }

    /// Go to another state, if that is allowed.
    pub(crate) fn go(&mut self, uid: &PodUid, next: PodState, now: Now) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if !pod.state.may_become(&next) {
            self.totals.illegal_transitions += 1;
            let message = format!("a pod that is {} may not become {}", pod.state.name(), next.name());
            self.say(uid, None, now, true, "Internal", message);
            return;
        }
        let rejected = match &next {
            PodState::Rejected { reason, message } => Some((reason.clone(), message.clone())),
            _ => None,
        };
        let lived = pod.state.is_live();
        // Also of one that goes already and has less time now: what it was told first would be waited for.
        let hurried = match (&pod.state, &next) {
            (PodState::Terminating { deadline, .. }, PodState::Terminating { deadline: next, .. }) => next < deadline,
            (_, PodState::Terminating { .. }) => lived,
            _ => false,
        };
        let renewed = next == PodState::SandboxStarting
            && matches!(pod.state, PodState::Initializing { .. } | PodState::Running)
            && !pod.sandboxes.is_empty();
        pod.state = next;
        pod.retry_at = Micros::ZERO;
        let mut also = Vec::new();
        if let PodState::Terminating { why, told: 0, .. } = &pod.state {
            // A pull, a hook, or a stop with another time.
            let long = |name| matches!(name, "ensure_image" | "post_start") || name == "stop_containers" && hurried;
            if pod.in_flight.is_some_and(|(_, name)| long(name)) {
                also.push(Action::Cancel { uid: uid.clone() });
            }
            // Written down before anything is removed: an agent that is killed meanwhile must not run it again.
            if let Some(end) = why.end().filter(|_| pod.wanted) {
                let end = pod.terminal(&end);
                self.remembered.insert(uid.clone(), end.clone());
                also.push(Action::Remember(end));
            }
            pod.health.on_stopping();
        }
        also.extend(pod.note_deadline(now));
        self.out.extend(also);
        if renewed {
            self.tell_new_sandbox(uid, now);
        }
        if let Some((reason, message)) = rejected {
            self.say(uid, None, now, true, &reason, message);
        }
    }

    // === records ===

    /// Tell people something about a pod.
    pub(crate) fn say(
        &mut self,
        uid: &PodUid,
        container: Option<String>,
        now: Now,
        warning: bool,
        reason: &str,
        message: String,
    ) {
        self.say_why(uid, container, now, warning, reason, message, Vec::new());
    }

    /// The same, with what was seen.
    #[expect(clippy::too_many_arguments, reason = "each is a field of the record")]
    pub(crate) fn say_why(
        &mut self,
        uid: &PodUid,
        container: Option<String>,
        now: Now,
        warning: bool,
        reason: &str,
        message: String,
        evidence: Vec<(String, String)>,
    ) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        // Why a pod goes says more than that its containers are stopped and end with it.
        if pod.state.is_live() || !matches!(reason, "Exited" | "Killing") {
            pod.last_action = format!("{reason}: {message}");
        }
        let name = pod.spec.full_name();
        self.record(now, Some(uid.clone()), name, container, warning, reason, message, evidence);
    }

    #[expect(clippy::too_many_arguments, reason = "each is a field of the record")]
    pub(crate) fn record(
        &mut self,
        at: Now,
        uid: Option<PodUid>,
        name: String,
        container: Option<String>,
        warning: bool,
        reason: &str,
        message: String,
        evidence: Vec<(String, String)>,
    ) {
        let record = Record { at, uid, name, container, warning, reason: reason.to_owned(), message, evidence };
        if self.records.len() >= RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(record.clone());
        self.out.push(Action::Record(record));
    }

    pub(crate) fn act(&mut self, action: Action) {
        self.out.push(action);
    }
}
