//! When one goes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gain::{Gained, Watched};
use super::rank::{Candidate, Place, Ranked, rank};
use super::soft::{Due, Soft, Watch, pod_grace};
use super::why::{By, before};
use super::{Available, Kind, Signal, Threshold, available, message};
use crate::forecast::{Forecast, MIN_INTERVAL, Pace, REACTION, Trend, pace};
use crate::node::NodeConfig;
use crate::sample::Sample;
use crate::settle::Settled;
use crate::spec::PodUid;
use crate::units::{Bytes, Micros};

/// A wall that stays met for so many samples ...
pub const PERSIST_SAMPLES: u32 = 3;
/// ... and for so long is a sign of its own.
pub const PERSIST_TIME: Micros = Micros::millis(200);
/// One is asked to leave when the forecast has said so for this long without a break.
pub const LEAVE_CONFIRM: Micros = Micros::secs(1);
/// The longest that one who is asked to leave is given.
pub const LEAVE_MOST: Micros = Micros::secs(30);
/// A reading older than this, or than three intervals, is stale.
pub(crate) const STALE: Micros = Micros::millis(500);
/// The longest wait for a victim's memory (lmkd waits 100 ms per process, oomd 15 s per cgroup; a cgroup of some GiB takes up to
/// half a second on a busy node).
const WAIT: Micros = Micros::secs(2);
/// Before this a victim cannot be said not to go.
const GOING: Micros = Micros::millis(100);
/// A pod's growth stays unknown for at least so long.
const UNKNOWN_FOR: Micros = Micros::millis(100);
/// How many ranked pods an eviction tells of.
const TELL: usize = 8;

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// Somebody must go: take a sample with all pods at once.
    LookAtPods,
    /// This one goes.
    Evict(Box<Eviction>),
}

/// One pod's eviction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// Who goes.
    pub victim: PodUid,
    /// `namespace/name`.
    pub name: String,
    /// Which wall.
    pub signal: Signal,
    /// What sends it away.
    pub kind: Kind,
    /// The threshold, in bytes of this wall.
    pub threshold: Bytes,
    /// The time that the victim is given to end; zero for none: it is killed at once.
    pub grace: Micros,
    /// The victim was evicted before, and its time is taken away.
    pub hastened: bool,
    /// What was left when it was decided: limit less what reclaim cannot free.
    pub available: Bytes,
    /// When memory would have run out.
    pub forecast: Option<Forecast>,
    /// The kubelet's text.
    pub message: String,
    /// How old the reading was that decided.
    pub age: Micros,
    /// What decided between the first and the second of the ranking.
    pub by: By,
    /// The same for people.
    pub why: String,
    /// What was seen: name and value.
    pub evidence: Vec<(String, String)>,
    /// The order of victims, this one first, at most eight.
    pub ranking: Vec<Ranked>,
}

/// How things stand, for reports and for the next look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What is left of the node's memory.
    pub memory_available: Option<Bytes>,
    /// What is left below the limit of `kubepods`.
    pub allocatable_available: Option<Bytes>,
    /// The nearest end at confirmed growth.
    pub time_to_oom: Option<Micros>,
    /// `MemoryPressure`.
    pub memory_pressure: bool,
    /// A victim is awaited.
    pub waiting: bool,
    /// How to look next.
    pub pace: Pace,
}

/// A wall in the last sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub signal: Signal,
    /// When it is hit at confirmed growth.
    pub time_to_oom: Option<Micros>,
    /// Less is left than the hard threshold.
    pub below: bool,
    /// What is left, and of how much.
    pub available: Bytes,
    /// The wall.
    pub limit: Bytes,
    /// The hard threshold, in bytes of this wall.
    pub threshold: Bytes,
}

#[derive(Clone, Debug)]
struct Pending {
    uid: PodUid,
    since: Micros,
    kind: Kind,
    /// The time it was given to end, zero for none.
    grace: Micros,
    /// What the victim held.
    held: Bytes,
    /// What it holds by the last look.
    holds: Bytes,
    /// What `kubepods` held, victim included.
    base: Option<Bytes>,
    /// What was held below each wall.
    walls: Vec<(Signal, Bytes)>,
}

#[derive(Clone, Copy, Debug)]
struct Met {
    since: Micros,
    samples: u32,
}

/// Decides on evictions. One per node; [`Decider::step`] takes every sample, in order.
#[derive(Clone, Debug)]
pub struct Decider {
    thresholds: Vec<Threshold>,
    soft: BTreeMap<Signal, Soft>,
    max_pod_grace: Micros,
    minimum_reclaim: Bytes,
    transition: Micros,
    last: Option<Micros>,
    /// Until then waiting for memory is no sign: it is of beelet's own making.
    deaf_until: Micros,
    /// The cgroup id of `kubepods` and its total of waiting for memory.
    kubepods: Option<(u64, Option<Micros>)>,
    trends: BTreeMap<Signal, Trend>,
    settled: BTreeMap<Signal, Settled>,
    met: BTreeMap<Signal, Met>,
    soft_met: BTreeMap<Signal, Watch>,
    /// Since when a wall would be met before the first victim could end by itself.
    leaving: BTreeMap<Signal, Micros>,
    last_met: Option<Micros>,
    pending: Option<Pending>,
    /// Victims of which it is not known yet what they freed, and those of which it is.
    watched: Vec<Watched>,
    gained: Vec<Gained>,
    standing: Standing,
    seen: Vec<Seen>,
}

/// A wall with what is known of it.
struct Wall {
    at: Available,
    threshold: Bytes,
    forecast: Option<Forecast>,
    /// The hard threshold is met.
    met: Option<Met>,
    /// The soft one is.
    soft: Option<Due>,
}

/// When and on what a decision is made.
struct Moment<'a> {
    now: Micros,
    sample: &'a Sample,
    walls: &'a [Wall],
}

/// Why somebody has to go: what stands in the evidence.
struct Cause<'a> {
    wall: &'a Wall,
    /// The time that the victim is given to end.
    grace: Micros,
    kind: Kind,
    threshold: Bytes,
    /// For how long the threshold has been met; `None` before it is.
    met_for: Option<Micros>,
    first_sign: &'static str,
    second_sign: String,
    /// All pods that were looked at.
    pods: &'a [Candidate],
}

impl Decider {
    /// A decider that has seen nothing. Without a threshold it watches and never acts.
    #[must_use]
    pub fn new(node: &NodeConfig) -> Self {
        Self {
            thresholds: node.eviction_hard.clone(),
            soft: node.eviction_soft.clone(),
            max_pod_grace: node.max_pod_grace,
            minimum_reclaim: node.minimum_reclaim,
            transition: node.pressure_transition,
            last: None,
            deaf_until: Micros::ZERO,
            kubepods: None,
            trends: BTreeMap::new(),
            settled: BTreeMap::new(),
            met: BTreeMap::new(),
            soft_met: BTreeMap::new(),
            leaving: BTreeMap::new(),
            last_met: None,
            pending: None,
            watched: Vec::new(),
            gained: Vec::new(),
            standing: Standing::default(),
            seen: Vec::new(),
        }
    }

    /// How things stand after the last sample.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// The walls that could be read in the last sample.
    #[must_use]
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Tasks that wait for memory say nothing until then (monotonic): a pod is slowed down on purpose, and its waits are counted above
    /// it, too.
    pub fn ignore_stalls(&mut self, until: Micros) {
        self.deaf_until = until;
    }

    /// The pod whose end is awaited.
    #[must_use]
    pub fn awaited(&self) -> Option<&PodUid> {
        self.pending.as_ref().map(|p| &p.uid)
    }

    /// The pod that was asked to leave, until it has left or is killed.
    #[must_use]
    pub fn asked_to_leave(&self) -> Option<&PodUid> {
        self.pending.as_ref().filter(|p| p.kind == Kind::Forecast).map(|p| &p.uid)
    }

    /// Takes a sample at `now` (monotonic). `candidates`: the pods of this very sample, `None` if it was a quick look. A sample that
    /// is not newer than the last changes nothing; a stale one is remembered and never acted on.
    pub fn step(&mut self, now: Micros, sample: &Sample, candidates: Option<&[Candidate]>) -> Decision {
        if self.last.is_some_and(|last| sample.at <= last) {
            return Decision::Nothing;
        }
        self.last = Some(sample.at);
        let stalled = self.observe_kubepods(sample);
        let stalled = if sample.at < self.deaf_until { Micros::ZERO } else { stalled };
        let walls = self.observe_walls(sample);
        self.report(&walls);
        self.observe_gains(now, sample, &walls);
        let limit = STALE.max(Micros(self.standing.pace.interval.get().saturating_mul(3)));
        if now - sample.at > limit {
            return Decision::Nothing;
        }
        let walls = self.meet(now, sample.at, walls, candidates.is_some());
        let decision = self.decide(&Moment { now, sample, walls: &walls }, candidates, stalled);
        self.plan(&walls, stalled, &decision);
        decision
    }

    /// Notes `kubepods`; says for how long some task of it waited for memory since the last sample.
    fn observe_kubepods(&mut self, sample: &Sample) -> Micros {
        let Some(reading) = &sample.kubepods else { return Micros::ZERO };
        let total = reading.pressure.map(|p| p.memory.some.total);
        match self.kubepods {
            Some((id, before)) if id == reading.id => {
                // A quick look may leave the pressure out.
                self.kubepods = Some((id, total.or(before)));
                total.zip(before).map(|(now, before)| now - before).unwrap_or_default()
            }
            before => {
                if before.is_some() {
                    self.trends.remove(&Signal::AllocatableMemory);
                    self.settled.remove(&Signal::AllocatableMemory);
                    self.met.remove(&Signal::AllocatableMemory);
                    self.soft_met.remove(&Signal::AllocatableMemory);
                }
                self.kubepods = Some((reading.id, total));
                Micros::ZERO
            }
        }
    }

    fn observe_walls(&mut self, sample: &Sample) -> Vec<Wall> {
        let wall = |mut at: Available| {
            let settled = self.settled.entry(at.signal).or_default();
            at.unreclaimable = settled.observe(sample.at, at.unreclaimable, at.counted);
            let trend = self.trends.entry(at.signal).or_default();
            trend.observe(sample.at, at.unreclaimable);
            let threshold = self.thresholds.iter().map(|t| t.quantity(at.limit)).max().unwrap_or(Bytes::ZERO);
            Wall { forecast: trend.forecast(at.available()), threshold, met: None, soft: None, at }
        };
        available(sample).into_iter().map(wall).collect()
    }

    /// Which walls are met, and with that the condition. What a look without pods (`!full`) says of their limit may be old: nothing begins
    /// with it.
    fn meet(&mut self, now: Micros, at: Micros, mut walls: Vec<Wall>, full: bool) -> Vec<Wall> {
        // What cannot be read is not met, but it is not cleared either: it starts to count anew.
        for met in self.met.values_mut() {
            met.samples = met.samples.saturating_add(1);
        }
        for (signal, met) in &mut self.met {
            if walls.iter().all(|w| w.at.signal != *signal) {
                *met = Met { since: at, samples: 0 };
            }
        }
        self.soft_met.retain(|signal, _| walls.iter().any(|w| w.at.signal == *signal));
        for wall in &mut walls {
            let available = wall.at.available();
            let signal = wall.at.signal;
            if let Some(soft) = self.soft.get(&signal) {
                let watch = self.soft_met.entry(signal).or_default();
                wall.soft = watch.observe(soft, at, wall.at.limit, available, self.minimum_reclaim);
            }
            let until =
                wall.threshold + if self.met.contains_key(&signal) { self.minimum_reclaim } else { Bytes::ZERO };
            let sure = full || signal == Signal::Memory || self.met.contains_key(&signal);
            if wall.threshold > Bytes::ZERO && available < until && sure {
                wall.met = Some(*self.met.entry(signal).or_insert(Met { since: at, samples: 1 }));
            } else {
                self.met.remove(&signal);
            }
        }
        if walls.iter().any(|w| w.met.is_some() || w.soft.is_some()) {
            self.last_met = Some(now);
            self.standing.memory_pressure = true;
        } else if !walls.is_empty() && self.last_met.is_none_or(|met| now - met >= self.transition) {
            self.standing.memory_pressure = false;
        }
        walls
    }

    fn decide(&mut self, moment: &Moment<'_>, candidates: Option<&[Candidate]>, stalled: Micros) -> Decision {
        let Moment { now, sample, walls } = *moment;
        let waiting = self.still_waiting(now, sample, walls);
        let given_time = self.pending.as_ref().is_some_and(|p| p.grace > Micros::ZERO);
        if waiting && !given_time {
            return Decision::Nothing;
        }
        if candidates.is_none() && walls.iter().any(|w| w.met.is_none() && w.at.available() < w.threshold) {
            return Decision::LookAtPods;
        }
        for wall in walls.iter().filter(|w| w.threshold > Bytes::ZERO) {
            let Some(second_sign) = second_sign(wall, sample.at, stalled) else { continue };
            let Some(candidates) = candidates else { return Decision::LookAtPods };
            let order = self.order(candidates, waiting);
            if order.is_empty() {
                return Decision::Nothing;
            }
            if wall.met.is_none() && !unasked_for(&order, wall.forecast) {
                continue;
            }
            let first_sign = if wall.met.is_some() { "threshold met" } else { "runs out within the reaction time" };
            let (met_for, pods) = (wall.met.map(|met| sample.at - met.since), candidates);
            let (kind, threshold, grace) = (Kind::Hard, wall.threshold, Micros::ZERO);
            let cause = Cause { wall, grace, kind, threshold, met_for, first_sign, second_sign, pods };
            return self.evict(moment, &cause, &order);
        }
        if waiting {
            return Decision::Nothing;
        }
        for wall in walls {
            let Some(due) = wall.soft.filter(Due::is_due) else { continue };
            let Some(candidates) = candidates else { return Decision::LookAtPods };
            let order = self.order(candidates, false);
            let Some(victim) = order.first() else { return Decision::Nothing };
            let grace = pod_grace(victim.pod.grace, self.max_pod_grace);
            let second_sign = format!("met for {} without a break, its grace period is {}", due.met_for, due.grace);
            let (kind, threshold, met_for, pods) = (Kind::Soft, due.threshold, Some(due.met_for), candidates);
            let first_sign = "threshold met";
            let cause = Cause { wall, grace, kind, threshold, met_for, first_sign, second_sign, pods };
            return self.evict(moment, &cause, &order);
        }
        candidates.map_or(Decision::Nothing, |candidates| self.ask_to_leave(moment, candidates))
    }

    /// Asks the first in the order of victims to leave, if it wants that and would not be done before a threshold is met otherwise. Only
    /// looks at all pods count, of which there is one each second.
    fn ask_to_leave(&mut self, moment: &Moment<'_>, pods: &[Candidate]) -> Decision {
        let order = self.order(pods, false);
        let Some(victim) = order.first().map(|place| place.pod).filter(|pod| pod.leaves) else {
            self.leaving.clear();
            return Decision::Nothing;
        };
        let (at, grace) = (moment.sample.at, pod_grace(victim.grace, LEAVE_MOST));
        for wall in moment.walls {
            let left = wall.forecast.map(|f| {
                let room = wall.at.available() - wall.threshold;
                Micros(room.scale(1_000_000, f.slope).get())
            });
            let near = wall.threshold > Bytes::ZERO && left.is_some_and(|left| left <= grace + REACTION);
            if !near || !unasked_for(&order, wall.forecast) {
                self.leaving.remove(&wall.at.signal);
                continue;
            }
            let since = *self.leaving.entry(wall.at.signal).or_insert(at);
            if at - since < LEAVE_CONFIRM {
                continue;
            }
            let second_sign = format!("forecast for {} without a break", at - since);
            let first_sign = "the threshold would be met before it could end by itself";
            let (kind, threshold, met_for) = (Kind::Forecast, wall.threshold, None);
            let cause = Cause { wall, grace, kind, threshold, met_for, first_sign, second_sign, pods };
            return self.evict(moment, &cause, &order);
        }
        Decision::Nothing
    }

    /// Who goes first. Whose end is awaited does not go again; if its time is to be taken away (`hasten`) it goes before all others,
    /// and as long as it cannot be read nobody does.
    fn order<'a>(&self, candidates: &'a [Candidate], hasten: bool) -> Vec<Place<'a>> {
        let awaited = self.awaited();
        let mut order: Vec<_> = rank(candidates).into_iter().filter(|p| Some(&p.pod.uid) != awaited).collect();
        if hasten {
            match candidates.iter().find(|c| Some(&c.uid) == awaited) {
                Some(pod) => order.insert(0, Place { pod, aggressor: false }),
                None => order.clear(),
            }
        }
        order
    }

    /// The first of `order` goes.
    fn evict(&mut self, moment: &Moment<'_>, cause: &Cause<'_>, order: &[Place<'_>]) -> Decision {
        let Moment { now, sample, walls } = *moment;
        let Some(&Place { pod: victim, .. }) = order.first() else { return Decision::Nothing };
        let (wall, grace) = (cause.wall, cause.grace);
        let hastened = self.awaited() == Some(&victim.uid);
        self.pending = Some(Pending {
            uid: victim.uid.clone(),
            since: now,
            kind: cause.kind,
            grace,
            held: victim.unreclaimable,
            holds: victim.unreclaimable,
            base: sample.kubepods_memory().map(|m| m.unreclaimable()),
            walls: walls.iter().map(|w| (w.at.signal, w.at.unreclaimable)).collect(),
        });
        self.last_met = Some(now);
        self.standing.memory_pressure = true;
        match self.watched.iter_mut().find(|w| w.victim == victim.uid) {
            // The time that it was given ends now; what it gains is that of its eviction, counted from then.
            Some(watched) => watched.grace = now - watched.since,
            None => self.watched.push(Watched {
                victim: victim.uid.clone(),
                name: victim.name.clone(),
                signal: wall.at.signal,
                since: now,
                grace,
                held: victim.unreclaimable,
                holds: victim.unreclaimable,
                base: sample.kubepods_memory().map(|m| m.unreclaimable()),
                available: wall.at.available(),
                free_after: None,
            }),
        }
        let ranking: Vec<Ranked> = order.iter().take(TELL).map(|&place| Ranked::from(place)).collect();
        let (by, why) = if hastened {
            (By::Hastened, "it was evicted before, and the time that it was given is taken away".to_owned())
        } else {
            before(&ranking)
        };
        Decision::Evict(Box::new(Eviction {
            victim: victim.uid.clone(),
            name: victim.name.clone(),
            signal: wall.at.signal,
            kind: cause.kind,
            threshold: cause.threshold,
            grace,
            hastened,
            available: wall.at.available(),
            forecast: wall.forecast,
            message: message(cause.threshold, wall.at.available(), &victim.containers),
            age: now - sample.at,
            by,
            evidence: evidence(cause, now - sample.at, victim, (by, &why)),
            why,
            ranking,
        }))
    }

    /// A victim's memory is not free yet. On the sample that shows it to be free the answer is still yes: the next is measured anew.
    fn still_waiting(&mut self, now: Micros, sample: &Sample, walls: &[Wall]) -> bool {
        let Some(pending) = &mut self.pending else { return false };
        let mut gone = false;
        if let Some(pods) = &sample.pods {
            match pods.iter().find(|p| p.uid == pending.uid) {
                None => gone = true,
                Some(pod) => {
                    if let Some(memory) = pod.cgroup.memory {
                        pending.holds = memory.unreclaimable();
                    }
                }
            }
        }
        gone |= pending.holds <= pending.held.scale(1, 5);
        let total = sample.kubepods_memory().map(|m| m.unreclaimable());
        gone |= pending.base.zip(total).is_some_and(|(base, total)| base - total >= pending.held.scale(4, 5));
        if gone {
            self.pending = None;
            self.trends.values_mut().for_each(Trend::forget);
            for met in self.met.values_mut() {
                *met = Met { since: sample.at, samples: 0 };
            }
            return true;
        }
        let waited = now - pending.since;
        if waited >= pending.grace + WAIT {
            self.pending = None;
            return false;
        }
        if pending.grace > Micros::ZERO {
            return true;
        }
        // Only what others took since then counts: a victim that dies takes no more, and nobody goes for what it took.
        let own = pending.holds - pending.held;
        let soon = walls.iter().any(|w| {
            let base =
                pending.walls.iter().find(|(signal, _)| *signal == w.at.signal).map_or(w.at.unreclaimable, |b| b.1);
            let others = w.at.unreclaimable - base - own;
            others > Bytes::ZERO && Micros(w.at.available().scale(waited.get(), others.get()).get()) <= REACTION
        });
        let stuck = sample.pods.is_some() && waited >= GOING && pending.holds >= pending.held.scale(9, 10);
        !(soon && stuck)
    }

    fn observe_gains(&mut self, now: Micros, sample: &Sample, walls: &[Wall]) {
        let (watched, gained) = (&mut self.watched, &mut self.gained);
        watched.retain_mut(|w| {
            let available = walls.iter().find(|wall| wall.at.signal == w.signal).map(|wall| wall.at.available());
            let known = w.observe(now, sample, available);
            let goes_on = known.is_none();
            gained.extend(known);
            goes_on
        });
    }

    /// What evictions gained, of those of which it is known since the last call.
    pub fn take_gained(&mut self) -> Vec<Gained> {
        std::mem::take(&mut self.gained)
    }

    /// It was not really sent away: nothing of what happens to it is a gain.
    pub fn was_not_done(&mut self, uid: &PodUid) {
        self.watched.retain(|w| w.victim != *uid);
    }

    fn report(&mut self, walls: &[Wall]) {
        let left = |signal| walls.iter().find(|w| w.at.signal == signal).map(|w| w.at.available());
        self.standing.memory_available = left(Signal::Memory);
        self.standing.allocatable_available = left(Signal::AllocatableMemory);
        let seen = |w: &Wall| Seen {
            signal: w.at.signal,
            time_to_oom: w.forecast.map(|f| f.time_to_oom),
            below: w.at.available() < w.threshold,
            available: w.at.available(),
            limit: w.at.limit,
            threshold: w.threshold,
        };
        self.seen = walls.iter().map(seen).collect();
        self.standing.time_to_oom = self.seen.iter().filter_map(|s| s.time_to_oom).min();
    }

    fn plan(&mut self, walls: &[Wall], stalled: Micros, decision: &Decision) {
        self.standing.waiting = self.pending.is_some();
        let met = walls.iter().any(|w| w.met.is_some());
        // Who was given time to end is not looked for each moment.
        let waiting = self.pending.as_ref().is_some_and(|p| p.grace == Micros::ZERO);
        let urgent = waiting || met || stalled > Micros::ZERO || *decision == Decision::LookAtPods;
        let paces = walls.iter().map(|w| pace(w.at.available(), w.forecast.map_or(0, |f| f.slope), urgent));
        let mut next = paces.min_by_key(|p| (p.interval, !p.all_pods)).unwrap_or_default();
        let rushes = |w: &Wall| self.trends.get(&w.at.signal).is_some_and(|trend| trend.rushes(w.at.available()));
        if waiting || *decision == Decision::LookAtPods {
            next.interval = MIN_INTERVAL;
        } else if walls.iter().any(rushes) {
            next = Pace { interval: MIN_INTERVAL, all_pods: true };
        }
        self.standing.pace = next;
    }
}

/// Why a wall allows to act, if it does.
fn second_sign(wall: &Wall, at: Micros, stalled: Micros) -> Option<String> {
    let growth = wall
        .forecast
        .map(|f| format!("grows by up to {} per second, confirmed on {} scales", Bytes(f.slope), f.scales));
    let Some(met) = wall.met else {
        // Before the threshold only what is certain to be past it, and to hit the wall, before anything could be done.
        return growth.filter(|_| wall.forecast.is_some_and(|f| f.time_to_oom <= REACTION));
    };
    let near = wall.at.limit - (wall.threshold + wall.threshold);
    let counted = wall.at.counted.filter(|&c| c >= near);
    growth
        .or_else(|| {
            let twice = met.samples >= 2 && stalled > Micros::ZERO;
            twice.then(|| format!("tasks waited {stalled} for memory since the last sample"))
        })
        .or_else(|| counted.map(|c| format!("anonymous and shared memory alone are {c}")))
        .or_else(|| {
            let long = met.samples >= PERSIST_SAMPLES && at - met.since >= PERSIST_TIME;
            long.then(|| format!("met in {} samples of {}", met.samples, at - met.since))
        })
}

/// Whether a forecast is of growth that nobody asked for. A pod that fills what it requests as fast as it can (a heap touched at
/// start) is no reason to act before the threshold: all requests together end there. At least half of the slope must be of
/// pods above their request; one whose growth is not known yet may be all of it, if it holds what such growth makes in
/// [`UNKNOWN_FOR`].
fn unasked_for(order: &[Place<'_>], forecast: Option<Forecast>) -> bool {
    let slope = forecast.map_or(0, |f| f.slope);
    let mut growth = 0_u64;
    for pod in order.iter().map(|place| place.pod).filter(|pod| pod.exceeds()) {
        match pod.growth {
            Some(known) => growth = growth.saturating_add(u64::try_from(known).unwrap_or(0)),
            None if pod.unreclaimable.get() >= Bytes(slope).scale(UNKNOWN_FOR.get(), 1_000_000).get() => return true,
            None => {}
        }
    }
    growth > 0 && growth >= slope / 2
}

fn evidence(cause: &Cause<'_>, age: Micros, victim: &Candidate, why: (By, &str)) -> Vec<(String, String)> {
    let count = |of: fn(&Candidate) -> bool| cause.pods.iter().filter(|c| of(c)).count();
    let (critical, terminating) = (count(|c| c.critical), count(|c| c.terminating && !c.critical));
    let wall = cause.wall;
    let forecast = wall.forecast.map_or_else(|| "none".to_owned(), |f| f.time_to_oom.to_string());
    let growth = victim.growth.map_or_else(|| "unknown".to_owned(), |g| format!("{g} B/s"));
    [
        ("signal", wall.at.signal.to_string()),
        ("limit", wall.at.limit.to_string()),
        ("unreclaimable", wall.at.unreclaimable.to_string()),
        ("available", wall.at.available().to_string()),
        ("available_as_the_kubelet_counts", wall.at.kubelet.to_string()),
        ("threshold_kind", cause.kind.to_string()),
        ("threshold", cause.threshold.to_string()),
        ("met_for", cause.met_for.map_or_else(|| "not met yet".to_owned(), |t| t.to_string())),
        ("first_sign", cause.first_sign.to_owned()),
        ("second_sign", cause.second_sign.clone()),
        ("time_to_oom", forecast),
        ("sample_age", age.to_string()),
        ("victim_unreclaimable", victim.unreclaimable.to_string()),
        ("victim_request", victim.request.to_string()),
        ("victim_priority", victim.priority.to_string()),
        ("victim_growth", growth),
        ("victim_taken_lately", victim.taken.to_string()),
        ("victim_grace", cause.grace.to_string()),
        ("pods_looked_at", cause.pods.len().to_string()),
        ("never_victims", format!("{critical} critical, {terminating} terminating")),
        ("decided_by", why.0.to_string()),
        ("why_this_one", why.1.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
