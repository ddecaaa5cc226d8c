//! What must hold after every step, by name.
//!
//! Problem: an example shows that one run is right; a bug is in the run that nobody thought of. Approach: each property is a function
//! `invariant_*` of what the agent knows, what it did, and what is really so in the kernel and the runtime. It is written from the
//! property, not from the code that keeps it (the ranking, for one, is computed anew here).
//!
//! Terms: *time to work* is time in which the agent lives, the runtime answers and nothing is disturbed or fails on purpose.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use beelet_core::World;
use beelet_core::allocate::pod_requests;
use beelet_core::attribute::Cause;
use beelet_core::event::{Action, ContainerFact, ContainerFactState, Event, OpId, PodOp, ResourceList, Terminal};
use beelet_core::evict::{Signal, available};
use beelet_core::node::NodeConfig;
use beelet_core::pod::{Pod, PodState};
use beelet_core::restart;
use beelet_core::sample::{PodReading, Sample};
use beelet_core::spec::{PodSpec, PodUid};
use beelet_core::units::{Bytes, Micros, Now};
use beelet_core::why::Why;

use crate::kernel::Kernel;
use crate::runtime::Runtime;
use crate::workload::Curve;

mod order;
mod probed;
use order::Order;
use probed::Probed;

/// How long a pod may need to go beyond its grace period, while all works.
const GOING: Micros = Micros::secs(45);
/// And while operations fail now and then, or the runtime is down.
const GOING_AT_ALL: Micros = Micros::secs(240);
/// How long a thing that can be done may be left undone.
const LEFT: Micros = Micros::secs(15);

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// How.
    pub what: String,
}

type Holds = Result<(), Violation>;

fn must(holds: bool, invariant: &'static str, what: impl FnOnce() -> String) -> Holds {
    if holds { Ok(()) } else { Err(Violation { invariant, what: what() }) }
}

/// A step, with what is so.
pub struct Look<'a> {
    /// The agent's world after it.
    pub world: &'a World,
    /// When.
    pub now: Now,
    /// What happened.
    pub event: &'a Event,
    /// What follows.
    pub actions: &'a [Action],
    /// What followed in another world that was asked the same.
    pub again: Option<&'a [Action]>,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The runtime.
    pub runtime: &'a Runtime,
}

/// Remembers what the invariants are about.
#[derive(Debug)]
pub struct Checker {
    node: NodeConfig,
    under_way: BTreeMap<PodUid, OpId>,
    going: BTreeMap<PodUid, (Micros, Micros)>,
    pressure: bool,
    pressed: Option<Micros>,
    /// Which walls were met by the last sample.
    met: BTreeSet<Signal>,
    /// The first and the last sample of the time in which a soft threshold has been met without a break.
    soft: BTreeMap<Signal, (Micros, Micros)>,
    /// Until when pods that go for a soft threshold were given time.
    promised: BTreeMap<PodUid, Micros>,
    interval: Micros,
    /// The last thing that was done to the node.
    disturbed: Micros,
    /// The CPU time of pods by the last full looks.
    used: VecDeque<(Micros, BTreeMap<PodUid, Micros>)>,
    probes: Probed,
    order: Order,
}

impl Checker {
    /// For a node.
    #[must_use]
    pub fn new(node: &NodeConfig) -> Self {
        Self {
            node: node.clone(),
            under_way: BTreeMap::new(),
            going: BTreeMap::new(),
            pressure: false,
            pressed: None,
            met: BTreeSet::new(),
            soft: BTreeMap::new(),
            promised: BTreeMap::new(),
            interval: Micros::secs(1),
            disturbed: Micros::ZERO,
            used: VecDeque::new(),
            probes: Probed::default(),
            order: Order::default(),
        }
    }

    /// The agent died; these ends are written down.
    pub fn restarted(&mut self, now: Micros, notes: &BTreeMap<PodUid, Terminal>) {
        *self = Self { disturbed: now, order: Order::of(notes.values()), ..Self::new(&self.node) };
    }

    /// The scenario did something.
    pub fn disturbed(&mut self, now: Micros) {
        self.disturbed = now;
    }

    /// Something failed on purpose.
    pub fn faulted(&mut self, now: Micros) {
        self.disturbed = now;
    }

    /// The agent asked for samples so far apart.
    pub fn paced(&mut self, interval: Micros) {
        self.interval = interval;
    }

    /// All of them, after a step.
    ///
    /// # Errors
    /// The first that is broken.
    pub fn check(&mut self, look: &Look<'_>) -> Holds {
        invariant_same_trace_same_actions(look)?;
        invariant_no_illegal_transition(look)?;
        self.invariant_one_operation_of_a_pod(look)?;
        invariant_foreign_pods_are_left_alone(look)?;
        self.probes.check(look)?;
        self.order.check(look)?;
        invariant_running_containers_are_left_alone(look, &self.probes)?;
        invariant_one_live_sandbox(look)?;
        self.invariant_allocation_is_conserved(look)?;
        invariant_memory_max_is_above_what_is_held(look)?;
        if let Event::Sample(sample) = look.event {
            self.observe(look, sample);
            self.invariant_no_noisy_neighbour_within_its_request(look, sample)?;
        }
        for action in look.actions {
            match action {
                Action::Kill { uid, .. } => self.check_kill(look, uid)?,
                Action::Record(r) if r.reason == "Evicted" => {
                    invariant_an_eviction_is_told_of_the_node_too(look)?;
                    let uid = r.uid.as_ref().filter(|uid| evidence(look, uid, "threshold_kind") == Some("soft"));
                    uid.map_or(Ok(()), |uid| self.invariant_soft_evictions_wait_and_give_time(look, uid))?;
                }
                _ => {}
            }
        }
        self.invariant_time_is_given_as_promised(look)?;
        self.invariant_one_flip_of_memory_pressure(look)?;
        self.invariant_terminating_pods_end(look)
    }

    fn check_kill(&self, look: &Look<'_>, uid: &PodUid) -> Holds {
        let pod = look.world.pods().get(uid);
        must(pod.is_some(), "invariant_kill_has_evidence", || format!("{uid} is not known"))?;
        let Some(pod) = pod else { return Ok(()) };
        if let (PodState::Terminating { deadline, .. }, Event::Done { .. }) = (&pod.state, look.event) {
            // No eviction: the runtime could not stop it in its time.
            return must(look.now.mono >= *deadline, "invariant_kill_has_evidence", || {
                format!("{uid} before its deadline")
            });
        }
        invariant_critical_pods_are_never_evicted(pod)?;
        let sample = self.invariant_fresh_readings_cause_kills(look, uid)?;
        invariant_kill_has_evidence(look, uid)?;
        // Who goes anyway, and only has its time taken away, is the mildest choice whatever its rank.
        if !self.promised.contains_key(uid) {
            invariant_no_victim_while_a_worse_one_exists(look, pod, sample)?;
        }
        self.invariant_eviction_stops_at_the_minimum_reclaim(look, uid, sample)
    }

    fn observe(&mut self, look: &Look<'_>, sample: &Sample) {
        if look.now.mono - sample.at > self.stale() {
            return;
        }
        for wall in available(sample) {
            let threshold = self.threshold(wall.limit);
            let reclaim = if self.met.contains(&wall.signal) { self.node.minimum_reclaim } else { Bytes::ZERO };
            if wall.available() < threshold + reclaim {
                self.met.insert(wall.signal);
            } else {
                self.met.remove(&wall.signal);
            }
        }
        self.observe_soft(sample);
    }

    fn observe_soft(&mut self, sample: &Sample) {
        let walls = available(sample);
        for (signal, soft) in &self.node.eviction_soft {
            let before = self.soft.remove(signal).filter(|(_, last)| sample.at - *last <= Micros::secs(10));
            let Some(wall) = walls.iter().find(|w| w.signal == *signal) else { continue };
            let was_due = before.is_some_and(|(since, last)| last - since >= soft.grace);
            let reclaim = if was_due { self.node.minimum_reclaim } else { Bytes::ZERO };
            if wall.available() < soft.threshold.quantity(wall.limit) + reclaim {
                self.soft.insert(*signal, (before.map_or(sample.at, |(since, _)| since), sample.at));
            }
        }
    }

    /// Nobody goes for a soft threshold before it was met for its grace period, by fresh samples that are not far apart; who goes is the
    /// worst, and is given the lesser of its own time and the most that is given, and a second at least.
    fn invariant_soft_evictions_wait_and_give_time(&mut self, look: &Look<'_>, uid: &PodUid) -> Holds {
        let name = "invariant_soft_evictions_wait_and_give_time";
        let Some(pod) = look.world.pods().get(uid) else { return Ok(()) };
        invariant_critical_pods_are_never_evicted(pod)?;
        let sample = self.invariant_fresh_readings_cause_kills(look, uid)?;
        invariant_kill_has_evidence(look, uid)?;
        invariant_no_victim_while_a_worse_one_exists(look, pod, sample)?;
        let signal = evidence(look, uid, "signal");
        let due = self.node.eviction_soft.iter().any(|(s, soft)| {
            let met = self.soft.get(s).map(|(since, last)| *last - *since);
            Some(s.as_str()) == signal && met.is_some_and(|met| met >= soft.grace)
        });
        must(due, name, || format!("{uid} goes for {signal:?} while {:?} at {}", self.soft, sample.at))?;
        let killed = look.actions.iter().any(|a| matches!(a, Action::Kill { uid: killed, .. } if killed == uid));
        must(!killed, name, || format!("{uid} is killed"))?;
        let grace = pod.spec.termination_grace.min(self.node.max_pod_grace).max(Micros::secs(1));
        if let PodState::Terminating { deadline, .. } = &pod.state {
            let given = *deadline - look.now.mono;
            must(given == grace, name, || format!("{uid} is given {given} and not {grace}"))?;
        }
        self.promised.insert(uid.clone(), look.now.mono + grace);
        Ok(())
    }

    /// Who was given time has it when it is told to stop, unless a hard threshold takes it away.
    fn invariant_time_is_given_as_promised(&mut self, look: &Look<'_>) -> Holds {
        let name = "invariant_time_is_given_as_promised";
        for action in look.actions {
            match action {
                Action::Kill { uid, .. } if matches!(look.event, Event::Sample(_)) => {
                    let kind = evidence(look, uid, "threshold_kind");
                    must(kind == Some("hard"), name, || format!("{uid} is killed for a {kind:?} threshold"))?;
                    self.promised.remove(uid);
                }
                Action::Pod { uid, what: PodOp::StopContainers { grace, .. }, .. } => {
                    let promised = self.promised.get(uid).map(|until| *until - look.now.mono);
                    let kept = promised.is_none_or(|promised| promised == *grace);
                    must(kept, name, || format!("{uid} is given {grace} and not {promised:?}"))?;
                }
                _ => {}
            }
        }
        let world = look.world;
        self.promised.retain(|uid, _| world.pods().get(uid).is_some_and(|p| is_going(&p.state)));
        Ok(())
    }

    /// Who is named uses more than it asks for: at the moment it is told, over one of the windows that may have been judged.
    fn invariant_no_noisy_neighbour_within_its_request(&mut self, look: &Look<'_>, sample: &Sample) -> Holds {
        let Some(pods) = &sample.pods else { return Ok(()) };
        let of = |p: &PodReading| Some((p.uid.clone(), p.cgroup.cpu?.usage?));
        self.used.push_back((sample.at, pods.iter().filter_map(of).collect()));
        while self.used.front().is_some_and(|(at, _)| sample.at - *at > Micros::secs(61)) {
            self.used.pop_front();
        }
        let told = |a: &&Action| matches!(a, Action::Record(r) if r.reason == "Slow");
        if look.actions.iter().filter(told).count() == 0 {
            return Ok(());
        }
        for uid in look.world.pods().keys() {
            for slow in look.world.slowness(uid) {
                let Cause::NoisyNeighbour { pod: name, .. } = &slow.cause else { continue };
                if slow.since != look.now.wall {
                    continue;
                }
                let over = look.world.pods().values().filter(|p| p.spec.full_name() == *name).any(|p| {
                    let request = pod_requests(&p.spec).cpu;
                    let now = self.used.back().and_then(|(_, used)| used.get(&p.spec.uid).copied());
                    self.used.iter().any(|(at, used)| {
                        let span = sample.at - *at;
                        let grown = now.zip(used.get(&p.spec.uid)).map(|(now, before)| now - *before);
                        span >= Micros::secs(5)
                            && grown.is_some_and(|g| g.scale(1_000, span.get()).get() > request.get())
                    })
                });
                must(over, "invariant_no_noisy_neighbour_within_its_request", || {
                    format!("{name} is blamed for {uid}: {:?}", slow.evidence)
                })?;
            }
        }
        Ok(())
    }

    fn threshold(&self, limit: Bytes) -> Bytes {
        self.node.eviction_hard.iter().map(|t| t.quantity(limit)).max().unwrap_or_default()
    }

    fn stale(&self) -> Micros {
        Micros::millis(500).max(self.interval.scale(3, 1))
    }

    fn invariant_one_operation_of_a_pod(&mut self, look: &Look<'_>) -> Holds {
        let name = "invariant_one_operation_of_a_pod";
        if let Event::Done { uid, op, .. } = look.event
            && self.under_way.get(uid) == Some(op)
        {
            self.under_way.remove(uid);
        }
        for action in look.actions {
            if let Action::Pod { uid, op, what } = action {
                let before = self.under_way.insert(uid.clone(), *op);
                must(before.is_none(), name, || format!("{} of {uid} while {before:?} is under way", what.name()))?;
            }
        }
        Ok(())
    }

    /// What pods were given fits the node.
    fn invariant_allocation_is_conserved(&self, look: &Look<'_>) -> Holds {
        let holds = |p: &&Pod| {
            !matches!(
                p.state,
                PodState::Observed
                    | PodState::Rejected { .. }
                    | PodState::Terminal(_)
                    | PodState::Gone
                    | PodState::Terminating { why: Why::Orphan, .. }
                    | PodState::Cleaning { why: Why::Orphan }
            )
        };
        let mut sum = ResourceList::default();
        for pod in look.world.pods().values().filter(holds) {
            // Sent away before it was let in.
            if is_going(&pod.state) && pod.sandboxes.is_empty() {
                continue;
            }
            let given = pod.actuated().map_or_else(|| pod_requests(&pod.spec), |old| pod_requests(&old));
            sum.cpu += given.cpu;
            sum.memory += given.memory;
        }
        let all = self.node.allocatable();
        must(sum.cpu <= all.cpu && sum.memory <= all.memory, "invariant_allocation_is_conserved", || {
            let of = |(uid, p): (&PodUid, &Pod)| {
                format!("{uid} {} {:?} {:?}", p.state.name(), pod_requests(&p.allocated()), p.resize)
            };
            let pods: Vec<String> = look.world.pods().iter().map(of).collect();
            format!("given {sum:?}, allocatable {all:?}: {pods:?}")
        })
    }

    fn invariant_fresh_readings_cause_kills<'a>(&self, look: &Look<'a>, uid: &PodUid) -> Result<&'a Sample, Violation> {
        let name = "invariant_stale_or_missing_readings_cause_no_kill";
        let Event::Sample(sample) = look.event else {
            return Err(Violation { invariant: name, what: format!("{uid} killed without a sample") });
        };
        let age = look.now.mono - sample.at;
        must(age <= self.stale(), name, || format!("{uid} killed by a sample of age {age}"))?;
        let reading = sample.pods.iter().flatten().find(|p| p.uid == *uid).and_then(|p| p.cgroup.memory);
        must(reading.is_some(), name, || format!("{uid} killed without a reading of it"))?;
        Ok(sample)
    }

    /// A victim is needed only below the threshold (or the minimum reclaim after it), or if the wall is hit at once.
    fn invariant_eviction_stops_at_the_minimum_reclaim(&self, look: &Look<'_>, uid: &PodUid, sample: &Sample) -> Holds {
        let name = "invariant_eviction_stops_at_the_minimum_reclaim";
        let soon = evidence(look, uid, "first_sign").is_some_and(|v| v.contains("runs out"));
        let walls = available(sample);
        let needed = walls.iter().any(|w| {
            // What 4 GiB/s would take in the reaction time.
            if soon { w.available() < Bytes::mib(1_640) } else { self.met.contains(&w.signal) }
        });
        must(needed, name, || format!("{uid} killed while {walls:?}"))
    }

    fn invariant_one_flip_of_memory_pressure(&mut self, look: &Look<'_>) -> Holds {
        let now = look.world.memory_pressure();
        if now != self.pressure {
            self.pressure = now;
            let before = self.pressed;
            if now {
                self.pressed = Some(look.now.mono);
            }
            let apart = before.is_none_or(|at| look.now.mono - at >= self.node.pressure_transition);
            let name = "invariant_one_flip_of_memory_pressure_per_hold_window";
            must(apart, name, || format!("MemoryPressure is {now}, it was set at {before:?}"))?;
        }
        Ok(())
    }

    fn invariant_terminating_pods_end(&mut self, look: &Look<'_>) -> Holds {
        let now = look.now.mono;
        let world = look.world;
        self.going.retain(|uid, _| world.pods().get(uid).is_some_and(|p| is_going(&p.state)));
        for (uid, pod) in world.pods().iter().filter(|(_, p)| is_going(&p.state)) {
            let (since, grace) = *self.going.entry(uid.clone()).or_insert_with(|| match &pod.state {
                PodState::Terminating { deadline, .. } => (now, *deadline - now),
                _ => (now, Micros::ZERO),
            });
            let working = now - since.max(self.disturbed);
            let late = working > grace + GOING || now - since > grace + GOING_AT_ALL;
            must(!late, "invariant_terminating_pods_end", || format!("{uid} is {:?} since {since}", pod.state))?;
        }
        Ok(())
    }

    /// After the last disturbance and the time to settle: all that is wanted runs, waits for its back-off or has ended; all that
    /// is not wanted is gone.
    ///
    /// # Errors
    /// What is not at rest.
    pub fn at_rest(
        &self,
        world: &World,
        now: Now,
        kernel: &Kernel,
        runtime: &Runtime,
        wanted: &[Arc<PodSpec>],
        remembered: &BTreeMap<PodUid, Terminal>,
    ) -> Holds {
        let name = "invariant_convergence";
        let wished = |uid: &PodUid| wanted.iter().any(|p| p.uid == *uid);
        for sandbox in runtime.sandboxes.values().filter(|s| s.ours) {
            must(wished(&sandbox.uid), name, || format!("a sandbox of {} is left", sandbox.uid))?;
        }
        for uid in kernel.groups.keys().chain(world.pods().keys()) {
            must(wished(uid), name, || format!("a cgroup or a pod {uid} is left"))?;
        }
        for uid in remembered.keys() {
            must(wished(uid), name, || format!("a note of the end of {uid} is left"))?;
        }
        for spec in wanted {
            let pod = world.pods().get(&spec.uid);
            must(pod.is_some(), name, || format!("{} is not known", spec.uid))?;
            if let Some(pod) = pod {
                self.pod_at_rest(pod, now, kernel, runtime)?;
            }
        }
        Ok(())
    }

    fn pod_at_rest(&self, pod: &Pod, now: Now, kernel: &Kernel, runtime: &Runtime) -> Holds {
        let name = "invariant_convergence";
        let uid = &pod.spec.uid;
        must(pod.wanted, name, || format!("{uid} is not known to be wanted"))?;
        if matches!(pod.state, PodState::Terminal(_) | PodState::Rejected { .. }) {
            let left = runtime.sandboxes.values().any(|s| s.uid == *uid);
            return must(!left, name, || format!("{uid} is {} and has a sandbox", pod.state.name()));
        }
        if is_going(&pod.state) || pod.in_flight.is_some() || now.mono < pod.retry_at + LEFT {
            return Ok(());
        }
        let up = matches!(pod.state, PodState::Running | PodState::Initializing { .. });
        must(up, name, || format!("{uid} is {:?}, {:?}", pod.state, pod.trouble))?;
        if let PodState::Initializing { .. } = pod.state {
            let ended = |c: &ContainerFact| matches!(&c.state, ContainerFactState::Exited(exit) if now.wall < exit.finished + LEFT);
            let busy = runtime.running(uid).next().is_some()
                || pod.tracks.values().any(|t| recent(t, &self.node, now))
                || runtime.containers.values().any(|c| c.uid == *uid && ended(c));
            return must(busy, name, || format!("{uid} is stuck in {:?}", pod.state));
        }
        for container in &pod.spec.containers {
            let newest = runtime
                .containers
                .values()
                .filter(|c| c.uid == *uid && c.name == container.name)
                .max_by_key(|c| c.attempt);
            let rests = newest.is_some_and(|c| match &c.state {
                ContainerFactState::Running { .. } => kernel.procs.contains_key(&c.id),
                ContainerFactState::Exited(exit) => !restart::runs_again(&pod.spec, container, exit.code),
                _ => false,
            });
            // The runtime has lost it, and how it ended was not seen: it counts as killed.
            let unseen = pod.tracks.get(&container.name).and_then(|t| t.last_exit.as_ref());
            let lost = newest.is_none() && unseen.is_some_and(|e| !restart::runs_again(&pod.spec, container, e.code));
            let waits = pod.tracks.get(&container.name).is_some_and(|t| recent(t, &self.node, now));
            let died = newest.is_some_and(|c| match &c.state {
                ContainerFactState::Exited(exit) => now.wall < exit.finished + LEFT,
                ContainerFactState::Running { .. } => true,
                _ => false,
            });
            must(rests || lost || waits || died, name, || format!("{} of {uid} is {newest:?}", container.name))?;
        }
        Ok(())
    }
}

/// It waits for its back-off, or that ended a moment ago.
fn recent(track: &beelet_core::track::ContainerTrack, node: &NodeConfig, now: Now) -> bool {
    now.mono < track.retry_at.max(track.crash.ready_at(track.exit_seen, node.max_backoff)) + LEFT
}

fn is_going(state: &PodState) -> bool {
    matches!(state, PodState::Terminating { .. } | PodState::Cleaning { .. })
}

fn evidence<'a>(look: &Look<'a>, uid: &PodUid, name: &str) -> Option<&'a str> {
    look.actions.iter().find_map(|a| match a {
        Action::Record(r) if r.uid.as_ref() == Some(uid) && r.reason == "Evicted" => {
            r.evidence.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
        }
        _ => None,
    })
}

fn invariant_same_trace_same_actions(look: &Look<'_>) -> Holds {
    let same = look.again.is_none_or(|again| again == look.actions);
    must(same, "invariant_same_trace_same_actions", || format!("{:?} and {:?}", look.again, look.actions))
}

fn invariant_no_illegal_transition(look: &Look<'_>) -> Holds {
    must(look.world.illegal_transitions() == 0, "invariant_no_illegal_transition", || {
        let told = look.actions.iter().find_map(|a| match a {
            Action::Record(r) if r.reason == "Internal" => Some(r.message.clone()),
            _ => None,
        });
        told.unwrap_or_default()
    })
}

fn invariant_foreign_pods_are_left_alone(look: &Look<'_>) -> Holds {
    let name = "invariant_foreign_pods_are_left_alone";
    for action in look.actions {
        let (uid, ids) = match action {
            Action::Pod { uid, what: PodOp::RemoveSandboxes { ids }, .. } => (uid, ids.as_slice()),
            Action::Pod { uid, .. } | Action::Kill { uid, .. } => (uid, &[][..]),
            Action::Knob(write) => (&write.target.0, &[][..]),
            _ => continue,
        };
        let foreign = look.runtime.sandboxes.values().any(|s| !s.ours && (s.uid == *uid || ids.contains(&s.id)));
        must(!foreign, name, || format!("{action:?}"))?;
    }
    Ok(())
}

/// What runs is stopped only if its pod has to go, its sandbox is dead or a probe has failed it, and nothing is started beside it. A restart of the agent is
/// no reason.
fn invariant_running_containers_are_left_alone(look: &Look<'_>, probes: &Probed) -> Holds {
    let name = "invariant_restart_changes_no_running_container";
    for action in look.actions {
        let Action::Pod { uid, what, .. } = action else { continue };
        let going = look.world.pods().get(uid).is_none_or(|p| is_going(&p.state));
        let touched = |id: &String, sandbox_id: &String| match what {
            PodOp::StopContainers { stops, .. } => {
                stops.iter().any(|s| s.id == *id) && !probes.has_failed(look.world, uid, id)
            }
            PodOp::RemoveContainers { ids } => ids.contains(id),
            PodOp::RemoveSandboxes { ids } => ids.contains(sandbox_id),
            PodOp::Cleanup { .. } => true,
            _ => false,
        };
        for c in look.runtime.running(uid).filter(|_| !going) {
            let alive = look.runtime.sandboxes.get(&c.sandbox_id).is_some_and(|s| s.ready);
            let really = look.kernel.procs.contains_key(&c.id);
            let harmed = touched(&c.id, &c.sandbox_id) && alive && really;
            must(!harmed, name, || format!("{} takes {} of {uid}", what.name(), c.id))?;
            // One that an agent which has died told the runtime to start may have come since the last listing; the runtime
            // refuses the same attempt.
            let doubled = matches!(what, PodOp::StartContainer { container, attempt, .. }
                if *container == c.name && *attempt != c.attempt);
            must(!(doubled && alive && really), name, || format!("{} of {uid} is started twice", c.name))?;
        }
    }
    Ok(())
}

fn invariant_one_live_sandbox(look: &Look<'_>) -> Holds {
    let mut seen = BTreeSet::new();
    for sandbox in look.runtime.sandboxes.values().filter(|s| s.ready) {
        must(seen.insert(&sandbox.uid), "invariant_one_live_sandbox", || format!("two of {}", sandbox.uid))?;
    }
    Ok(())
}

/// A cut never goes below what is held. Pods that grow are left out: what they held at the last look is less than now.
fn invariant_memory_max_is_above_what_is_held(look: &Look<'_>) -> Holds {
    let name = "invariant_memory_max_is_above_what_is_held";
    for action in look.actions {
        let Action::Pod { uid, what, .. } = action else { continue };
        let (spec, cgroup, containers) = match what {
            PodOp::Prepare { spec, cgroup } => (spec, cgroup, &[][..]),
            PodOp::Resize { spec, pod, containers, .. } => (spec, pod, containers.as_slice()),
            _ => continue,
        };
        let steady = |c: &Curve| !c.grows() && !matches!(c, Curve::Saw { .. });
        if !spec.all_containers().all(|c| steady(&Curve::of(c))) {
            continue;
        }
        let cut = |before: Option<Bytes>, after: Option<Bytes>| {
            after.filter(|&after| before.is_none_or(|before| after < before))
        };
        let group = look.kernel.groups.get(uid);
        if let Some(after) = group.and_then(|g| cut(g.limit, cgroup.knobs.memory_max)) {
            let held = look.kernel.kept_by(uid);
            must(after >= held, name, || format!("{} cuts {uid} to {after}, it holds {held}", what.name()))?;
        }
        for (id, _, linux) in containers {
            let Some(proc) = look.kernel.procs.get(id) else { continue };
            if let Some(after) = cut(proc.limit, linux.knobs.memory_max) {
                let held = proc.held();
                must(after >= held, name, || format!("{id} of {uid} is cut to {after}, it holds {held}"))?;
            }
        }
    }
    Ok(())
}

fn invariant_critical_pods_are_never_evicted(pod: &Pod) -> Holds {
    let critical = pod.spec.priority >= 2_000_000_000;
    must(!critical, "invariant_critical_pods_are_never_evicted", || pod.spec.uid.to_string())
}

/// As the kubelet does, before it tells of the pod.
fn invariant_an_eviction_is_told_of_the_node_too(look: &Look<'_>) -> Holds {
    let told = |reason: &str| look.actions.iter().position(|a| matches!(a, Action::Record(r) if r.reason == reason));
    let before = told("EvictionThresholdMet").is_some_and(|node| Some(node) < told("Evicted"));
    must(before, "invariant_an_eviction_is_told_of_the_node_too", || format!("{:?}", look.actions))
}

fn invariant_kill_has_evidence(look: &Look<'_>, uid: &PodUid) -> Holds {
    let told = |name: &str| evidence(look, uid, name).is_some_and(|v| !v.is_empty());
    let all = [
        "signal",
        "limit",
        "unreclaimable",
        "available",
        "threshold_kind",
        "threshold",
        "met_for",
        "first_sign",
        "second_sign",
        "rank_1",
    ];
    must(all.iter().all(|n| told(n)), "invariant_kill_has_evidence", || format!("{uid}: {:?}", look.actions))
}

/// Over request, then priority, then what it has above its request with ten seconds of its growth.
fn invariant_no_victim_while_a_worse_one_exists(look: &Look<'_>, victim: &Pod, sample: &Sample) -> Holds {
    // Of those alike in request and priority, who ate at least half as much of the room as who ate most goes before the others.
    let place = |pod: &Pod, reading: &PodReading| {
        let held = i128::from(reading.cgroup.memory?.unreclaimable().get());
        let request = i128::from(pod_requests(&pod.spec).memory.get());
        let (model, least) = (&pod.meter.model, Bytes::mib(4));
        let growth = u64::try_from(model.growth().unwrap_or(0)).unwrap_or(0).saturating_mul(10);
        let taken = model.taken();
        let ate = if taken < least { 0 } else { taken.get() + growth.min(taken.get().saturating_mul(4)) };
        (held >= 1 << 20).then_some(((held <= request, pod.spec.priority), ate, request - held))
    };
    let readings = sample.pods.as_deref().unwrap_or_default();
    let of = |uid: &PodUid| readings.iter().find(|r| r.uid == *uid);
    let Some(mine) = of(&victim.spec.uid).and_then(|r| place(victim, r)) else { return Ok(()) };
    let others = look.world.pods().values().filter(|other| {
        other.spec.uid != victim.spec.uid && other.state.is_live() && other.spec.priority < 2_000_000_000
    });
    let others: Vec<_> =
        others.filter_map(|other| Some((&other.spec.uid, place(other, of(&other.spec.uid)?)?))).collect();
    let alike = others.iter().map(|(_, theirs)| theirs).filter(|theirs| theirs.0 == mine.0);
    let most = alike.map(|theirs| theirs.1).max().unwrap_or(0).max(mine.1);
    let order = |(class, ate, under): (_, u64, i128)| (class, ate == 0 || ate < most / 2, under);
    for (uid, theirs) in others {
        must(order(theirs) >= order(mine), "invariant_no_victim_while_a_worse_one_exists", || {
            format!("{} {mine:?}, but {uid} {theirs:?}", victim.spec.uid)
        })?;
    }
    Ok(())
}
