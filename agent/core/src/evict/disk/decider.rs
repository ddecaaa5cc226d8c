//! What is to be done about a reading.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::rank::{Candidate, rank};
use super::{Condition, Layout, Reading, Reclaimed, Room, Signal, Thresholds, message};
use crate::evict::soft::{Watch, pod_grace};
use crate::evict::{Kind, Threshold};
use crate::node::NodeConfig;
use crate::spec::PodUid;
use crate::units::{Bytes, Micros, Ppm};

/// A reading that is older says nothing.
const STALE: Micros = Micros::secs(30);
/// The distance of readings while something is met or near ...
const LOOK_CLOSELY: Micros = Micros::secs(1);
/// ... and else (`evictionMonitoringPeriod`, pkg/kubelet/kubelet.go, release 1.36).
const LOOK: Micros = Micros::secs(10);
/// A hard threshold without node-level reclaim has to be met in so many readings in a row.
const PERSIST: u32 = 2;
/// The node is not tidied again within this time after it was of use ...
const REST: Micros = Micros::secs(10);
/// ... and within this while nobody can go.
const NOBODY: Micros = Micros::secs(60);
/// A signal that is not known for so long is missing. The runtime tells where images are within seconds.
const MISSING: Micros = Micros::secs(30);
/// The runtime removes containers and images for at most so long; then pods are looked at.
const RECLAIM_LIMIT: Micros = Micros::secs(120);
/// A victim is awaited for at most so long (`podCleanupTimeout`).
const WAIT: Micros = Micros::secs(30);
/// The time that a victim of a hard threshold is given (`immediateEvictionGracePeriodSeconds`): other than memory, disks leave it.
const HARD_GRACE: Micros = Micros::secs(1);
/// So long the use of all pods is awaited to be found out anew once a file system is short; then what is known has to do. Folders are
/// walked within seconds then, the runtime tells of layers every 15 s or so.
const ANEW: Micros = Micros::secs(30);
/// How many ranked pods an eviction tells of.
const TELL: usize = 8;

/// What there is to decide on.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The present (monotonic).
    pub now: Micros,
    /// The newest reading.
    pub reading: &'a Reading,
    /// The pods that are there, those on their way out among them.
    pub pods: &'a [Candidate],
    /// Memory is short, and has precedence as upstream (`byEvictionPriority`): no pod goes for anything else.
    pub held: bool,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// Free what the node itself can; to be answered by [`Decider::reclaimed`].
    Reclaim(Reclaim),
    /// This one goes.
    Evict(Box<Eviction>),
}

/// What the node itself can free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reclaim {
    /// For which signal.
    pub signal: Signal,
    /// Remove dead containers and sandboxes.
    pub containers: bool,
    /// Remove unused images.
    pub images: bool,
    /// What was seen: name and value.
    pub evidence: Vec<(String, String)>,
}

/// One pod's eviction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Who goes.
    pub victim: PodUid,
    /// For which signal.
    pub signal: Signal,
    /// The time that it is given to end.
    pub grace: Micros,
    /// The node was tidied before, and so the node's event was told.
    pub tidied: bool,
    /// The kubelet's text.
    pub message: String,
    /// What was seen: name and value; the order of victims last, this one first.
    pub evidence: Vec<(String, String)>,
}

/// How things stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The conditions that are true.
    pub conditions: Vec<Condition>,
    /// Signals with a threshold and without a reading, and why.
    pub missing: Vec<(Signal, &'static str)>,
    /// How to look next.
    pub look: Micros,
}

impl Default for Standing {
    fn default() -> Self {
        Self { conditions: Vec::new(), missing: Vec::new(), look: LOOK }
    }
}

/// What became of node-level reclaim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tried {
    /// Not asked for yet.
    #[default]
    No,
    /// Under way.
    Asked {
        /// Since when.
        since: Micros,
    },
    /// It ended, or took too long.
    Done {
        /// When.
        at: Micros,
        /// What came of it, for evidence.
        outcome: String,
    },
}

#[derive(Clone, Copy, Debug)]
struct Met {
    since: Micros,
    readings: u32,
}

/// A threshold that is to be acted on.
#[derive(Clone, Copy, Debug)]
struct Due {
    signal: Signal,
    room: Room,
    kind: Kind,
    threshold: Threshold,
    met_for: Micros,
    readings: u32,
}

impl Due {
    fn amount(&self) -> u64 {
        self.threshold.quantity(Bytes(self.room.capacity)).get()
    }

    /// As upstream: what was given as a number stays one, a share is a quantity of the format BinarySI.
    fn say_threshold(&self) -> String {
        match self.threshold {
            Threshold::Quantity(amount) => self.signal.say(amount.get()),
            Threshold::Share(Ppm(_)) => Bytes(self.amount()).to_string(),
        }
    }
}

/// Decides on pressure. One per node; [`Decider::step`] takes every reading, in order.
#[derive(Clone, Debug)]
pub struct Decider {
    thresholds: Thresholds,
    max_pod_grace: Micros,
    transition: Micros,
    last: Option<Micros>,
    met: BTreeMap<Signal, Met>,
    soft: BTreeMap<Signal, Watch>,
    last_met: BTreeMap<Condition, Micros>,
    /// Since when signals with a threshold have no reading.
    unknown: BTreeMap<Signal, Micros>,
    tried: Tried,
    /// What was tried: dead containers, unused images.
    scope: (bool, bool),
    /// Node-level reclaim is not asked for before.
    rest_until: Micros,
    /// A reading says something only if it is later: what happened then is not in earlier ones.
    after: Micros,
    victim: Option<(PodUid, Micros)>,
    standing: Standing,
}

impl Decider {
    /// A decider that has seen nothing.
    #[must_use]
    pub fn new(node: &NodeConfig) -> Self {
        Self {
            thresholds: node.eviction_disk.clone(),
            max_pod_grace: node.max_pod_grace,
            transition: node.pressure_transition,
            last: None,
            met: BTreeMap::new(),
            soft: BTreeMap::new(),
            last_met: BTreeMap::new(),
            unknown: BTreeMap::new(),
            tried: Tried::No,
            scope: (false, false),
            rest_until: Micros::ZERO,
            after: Micros::ZERO,
            victim: None,
            standing: Standing::default(),
        }
    }

    /// How things stand after the last reading.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// What became of node-level reclaim.
    #[must_use]
    pub fn tried(&self) -> &Tried {
        &self.tried
    }

    /// Node-level reclaim has ended.
    pub fn reclaimed(&mut self, outcome: &Reclaimed) {
        // One that took too long may answer after all: what it says is still true.
        if self.tried != Tried::No {
            self.tried = Tried::Done { at: outcome.at, outcome: outcome.to_string() };
        }
    }

    /// Takes a reading. One that is not newer than the last, or stale, leads to nothing.
    pub fn step(&mut self, pass: &Pass<'_>) -> Decision {
        if self.last.is_some_and(|last| pass.reading.at <= last) {
            return Decision::Nothing;
        }
        self.last = Some(pass.reading.at);
        let due = self.observe(pass);
        self.decide(pass, due).unwrap_or(Decision::Nothing)
    }

    /// What is met, and what of it is to be acted on: the first hard threshold, else the first soft one.
    fn observe(&mut self, pass: &Pass<'_>) -> Option<Due> {
        let (reading, at) = (pass.reading, pass.reading.at);
        let stale = pass.now - at > STALE;
        // Before the runtime has told where images are, containerfs has no thresholds of its own, and nothing is acted on.
        let layout = reading.layout.unwrap_or(Layout::One);
        let (mut hard, mut soft) = (None, None);
        let mut near = self.victim.is_some() || self.tried != Tried::No;
        self.standing.missing.clear();
        for signal in Signal::ALL {
            let source = Thresholds::source(signal, layout);
            let hard_at = self.thresholds.hard.get(&source).copied();
            let soft_at = self.thresholds.soft.get(&source).copied();
            let room = reading.room(signal).filter(|_| !stale);
            let (Some(room), true) = (room, hard_at.is_some() || soft_at.is_some()) else {
                self.met.remove(&signal);
                self.soft.remove(&signal);
                let configured = source == signal && (hard_at.is_some() || soft_at.is_some());
                if configured && (stale || !reading.counts_no_inodes(signal)) {
                    let why = if stale { "the last reading is too old" } else { "there is no reading" };
                    if pass.now - *self.unknown.entry(signal).or_insert(at) >= MISSING {
                        self.standing.missing.push((signal, why));
                    }
                } else {
                    self.unknown.remove(&signal);
                }
                continue;
            };
            self.unknown.remove(&signal);
            let capacity = Bytes(room.capacity);
            let reclaim = self.thresholds.reclaim.get(&source).map_or(Bytes::ZERO, |r| r.quantity(capacity));
            if let Some(threshold) = hard_at {
                let below = threshold.quantity(capacity);
                let until = if self.met.contains_key(&signal) { below + reclaim } else { below };
                if room.available < until.get() {
                    let met = self.met.entry(signal).or_insert(Met { since: at, readings: 0 });
                    met.readings += 1;
                    let (met_for, readings) = (at - met.since, met.readings);
                    let due = Due { signal, room, kind: Kind::Hard, threshold, met_for, readings };
                    hard = hard.or(Some(due));
                } else {
                    self.met.remove(&signal);
                }
                near |= room.available < (below + below + reclaim).get();
            }
            if let Some(wanted) = soft_at {
                let watch = self.soft.entry(signal).or_default();
                if let Some(seen) = watch.observe(&wanted, at, capacity, Bytes(room.available), reclaim) {
                    self.last_met.insert(signal.condition(), pass.now);
                    near = true;
                    if seen.is_due() {
                        let (threshold, met_for) = (wanted.threshold, seen.met_for);
                        let due = Due { signal, room, kind: Kind::Soft, threshold, met_for, readings: PERSIST };
                        soft = soft.or(Some(due));
                    }
                }
            }
            if self.met.contains_key(&signal) {
                self.last_met.insert(signal.condition(), pass.now);
            }
        }
        let holds = |c: &Condition| self.last_met.get(c).is_some_and(|at| pass.now - *at < self.transition);
        self.standing.conditions = Condition::ALL.into_iter().filter(holds).collect();
        self.standing.look = if near { LOOK_CLOSELY } else { LOOK };
        hard.or(soft)
    }

    /// `None`: nothing is to be done now.
    fn decide(&mut self, pass: &Pass<'_>, due: Option<Due>) -> Option<Decision> {
        if let Some((uid, since)) = &self.victim {
            let there = pass.pods.iter().any(|pod| pod.uid == *uid);
            if there && pass.now - *since < WAIT {
                return None;
            }
            // Measured again: what it held is in no reading before the next one.
            (self.victim, self.after) = (None, pass.now);
        }
        let Some(due) = due else {
            if matches!(self.tried, Tried::Done { .. }) {
                // It was enough.
                (self.tried, self.rest_until) = (Tried::No, pass.now + REST);
            }
            return None;
        };
        let layout = pass.reading.layout.or((due.signal == Signal::Pid).then_some(Layout::One))?;
        if pass.reading.at <= self.after || pass.held {
            return None;
        }
        let (containers, images) = layout.reclaim(due.signal);
        let tried = if containers || images {
            match self.try_reclaim(pass, &due, (containers, images))? {
                Ok(outcome) => outcome,
                Err(reclaim) => return Some(Decision::Reclaim(reclaim)),
            }
        } else if due.readings < PERSIST {
            return None;
        } else {
            "there is nothing that the node could free for it".to_owned()
        };
        // Who filled it a moment ago may have been small when it was last looked at.
        let since = pass.reading.at - due.met_for;
        let anew = |pod: &Candidate| pod.age(due.signal, layout).is_some_and(|age| pass.now - age >= since);
        let looked_at = || pass.pods.iter().all(|pod| pod.critical || pod.terminating || anew(pod));
        if due.signal != Signal::Pid && pass.now - since < ANEW && !looked_at() {
            return None;
        }
        let order = rank(pass.pods, due.signal, layout);
        let Some((victim, used)) = order.first() else {
            // Nobody can go; the node is tidied again in a while.
            (self.tried, self.rest_until) = (Tried::No, pass.now + NOBODY);
            return None;
        };
        let grace = if due.kind == Kind::Soft { pod_grace(victim.grace, self.max_pod_grace) } else { HARD_GRACE };
        let mut evidence = seen(pass, &due);
        let signal = due.signal;
        let mut add = |name: &str, value: String| evidence.push((name.to_owned(), value));
        add("node_level_reclaim", tried);
        add("victim_used", signal.say(*used));
        add("victim_request", signal.say(victim.requested(signal)));
        add("victim_priority", victim.priority.to_string());
        add("victim_grace", grace.to_string());
        add("pods_looked_at", pass.pods.len().to_string());
        for (place, (pod, used)) in order.iter().take(TELL).enumerate() {
            let (used, asks) = (signal.say(*used), signal.say(pod.requested(signal)));
            let text = format!("{}: uses {used}, asks for {asks}, priority {}", pod.name, pod.priority);
            add(&format!("rank_{}", place + 1), text);
        }
        let eviction = Eviction {
            victim: victim.uid.clone(),
            signal,
            grace,
            tidied: containers || images,
            message: message(signal, &due.say_threshold(), due.room.available, victim),
            evidence,
        };
        // What the victim leaves behind is to be tidied before another one goes.
        (self.victim, self.tried) = (Some((eviction.victim.clone(), pass.now)), Tried::No);
        Some(Decision::Evict(Box::new(eviction)))
    }

    /// What node-level reclaim came to; `Err`: it is to be asked for; `None`: wait.
    fn try_reclaim(&mut self, pass: &Pass<'_>, due: &Due, scope: (bool, bool)) -> Option<Result<String, Reclaim>> {
        let covered = (self.scope.0 || !scope.0) && (self.scope.1 || !scope.1);
        match &self.tried {
            Tried::Asked { since } if pass.now - *since < RECLAIM_LIMIT => None,
            Tried::Asked { .. } => {
                let outcome = format!("did not end within {RECLAIM_LIMIT}");
                self.tried = Tried::Done { at: pass.now, outcome };
                None
            }
            Tried::Done { at, outcome } if covered => (pass.reading.at > *at).then(|| Ok(outcome.clone())),
            Tried::No if pass.now < self.rest_until => None,
            Tried::No | Tried::Done { .. } => {
                (self.tried, self.scope) = (Tried::Asked { since: pass.now }, scope);
                let evidence = seen(pass, due);
                Some(Err(Reclaim { signal: due.signal, containers: scope.0, images: scope.1, evidence }))
            }
        }
    }
}

fn seen(pass: &Pass<'_>, due: &Due) -> Vec<(String, String)> {
    [
        ("signal", due.signal.to_string()),
        ("capacity", due.signal.say(due.room.capacity)),
        ("available", due.signal.say(due.room.available)),
        ("threshold_kind", due.kind.to_string()),
        ("threshold", due.say_threshold()),
        ("met_for", due.met_for.to_string()),
        ("reading_age", (pass.now - pass.reading.at).to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
