//! How good the forecasts were.
//!
//! Problem: a forecast of running out of memory is worth as much as it is right, and nobody can tell from outside. Approach: each is
//! scored afterwards against what happened. [`Scores`] takes the forecasts of every wall with each sample, and the hits as they come.
//!
//! Terms:
//! * a *wall* is what memory can hit: the node's memory, the limit of `kubepods`, a container's own limit;
//! * a forecast is an *alarm* from the sample that shows less than [`HORIZON`] until the wall is hit, and it *stands* until a sample
//!   shows more, or no growth;
//! * a *hit* of the node or of `kubepods` is an OOM kill there, a sample below the hard threshold of eviction, or an eviction that
//!   beelet made for it: without that it would come, and an alarm must not count as false because it was heeded. A container's own
//!   limit has no threshold and nobody is evicted for it: only an OOM kill is a hit;
//! * hits less than [`INCIDENT`] apart are one: an OOM killer that must kill three processes does not make three of it;
//! * an alarm is a *true positive* if its wall is hit within [`HORIZON`] + [`TOLERANCE`] of its beginning, also if it was withdrawn
//!   meanwhile (it was raised, and it was right), else a *false positive*. One whose wall is gone before counts as false, for what
//!   cannot be known must not flatter;
//! * an OOM kill that finds no alarm that is yet to be scored is a *false negative*. A threshold that is crossed without an alarm is
//!   none: a leak of 1 MiB/s crosses one of 100 MiB a hundred seconds before its end, and no alarm is the right answer;
//! * the *lead* is the time from the beginning of an alarm to the hit that makes it true.
//!
//! An alarm that goes on standing after it was scored is not another one: the wall must first be out of sight. A wall that is hit
//! already raises none, for that is no forecast.
//!
//! Properties (tested): each alarm is scored exactly once; at most one of a wall is open; of a wall without an alarm, a hit or an
//! incident nothing is remembered, so there are never more entries than walls; a sample that is not newer changes nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::evict::Signal;
use crate::spec::PodUid;
use crate::units::Micros;

/// A forecast of less is an alarm: the default `terminationGracePeriodSeconds` (30 s, pkg/apis/core/v1/defaults.go, release 1.37), that
/// is the time in which a pod can be ended in good order. What is foreseen earlier changes nothing that can be done; what is foreseen
/// later is too late for all but a kill.
pub const HORIZON: Micros = Micros::secs(30);
/// And half as much again: forecasts take the steepest of steps that agree (see [`crate::forecast`]), so they come early rather than
/// late.
pub const TOLERANCE: Micros = Micros::secs(15);
/// Hits closer than this belong together: of several processes that are killed at once the first is known by the kernel's event, the
/// others perhaps only by the counter, with the next look at all pods (each second near a wall). Not longer, for a container that is
/// restarted at once may run into its limit again some seconds later.
pub const INCIDENT: Micros = Micros::secs(3);
/// Upper bounds of [`Score::leads`].
pub const LEADS: [Micros; 12] = [
    Micros::millis(100),
    Micros::millis(250),
    Micros::millis(500),
    Micros::secs(1),
    Micros::secs(2),
    Micros::secs(3),
    Micros::secs(5),
    Micros::secs(10),
    Micros::secs(15),
    Micros::secs(20),
    Micros::secs(30),
    Micros::secs(45),
];

/// What kind of wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// The node's memory.
    Node,
    /// The limit of `kubepods`.
    Kubepods,
    /// Containers' own limits, all together.
    Container,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Node, Self::Kubepods, Self::Container];

    /// For a label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Kubepods => "kubepods",
            Self::Container => "container",
        }
    }
}

/// A wall.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wall {
    /// The node's memory.
    Node,
    /// The limit of `kubepods`.
    Kubepods,
    /// A container's own limit, by its name in the pod.
    Container(PodUid, String),
}

impl Wall {
    /// Of which kind.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self {
            Self::Node => Scope::Node,
            Self::Kubepods => Scope::Kubepods,
            Self::Container(..) => Scope::Container,
        }
    }
}

impl From<Signal> for Wall {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Memory => Self::Node,
            Signal::AllocatableMemory => Self::Kubepods,
        }
    }
}

/// A wall in a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Which.
    pub wall: Wall,
    /// The forecast; `None` for no confirmed growth.
    pub time_to_oom: Option<Micros>,
    /// It is hit.
    pub hit: bool,
}

/// How the forecasts of a scope were. Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// Alarms that came true.
    pub true_positive: u64,
    /// Alarms that did not.
    pub false_positive: u64,
    /// OOM kills without an alarm.
    pub false_negative: u64,
    /// Of the true ones, by lead: at most [`LEADS`], and more.
    pub leads: [u64; LEADS.len() + 1],
    /// The sum of leads.
    pub lead_sum: Micros,
}

/// What is remembered of a wall.
#[derive(Clone, Copy, Debug, Default)]
struct Alarm {
    /// The beginning of an alarm that is yet to be scored.
    open: Option<Micros>,
    /// The last sample has one.
    stands: bool,
    /// The last hit.
    hit: Option<Micros>,
    /// The last sample that it was in.
    seen: Micros,
}

/// Scores forecasts.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    alarms: BTreeMap<Wall, Alarm>,
    scores: [Score; Scope::ALL.len()],
    last: Option<Micros>,
}

impl Scores {
    /// Takes the walls of a sample at `at`; of containers only those with an alarm need be there, if the sample has all of them
    /// (`full`), and none otherwise. What is missing has no alarm.
    pub fn observe(&mut self, at: Micros, looks: impl IntoIterator<Item = Look>, full: bool) {
        if self.last.is_some_and(|last| at <= last) {
            return;
        }
        self.last = Some(at);
        for Look { wall, time_to_oom, hit } in looks {
            let stands = time_to_oom.is_some_and(|t| t < HORIZON);
            if !(stands || hit || self.alarms.contains_key(&wall)) {
                continue;
            }
            let score = &mut self.scores[wall.scope() as usize];
            let alarm = self.alarms.entry(wall).or_default();
            alarm.expire(at, score);
            if hit {
                alarm.hit(at, score);
            } else if stands && !alarm.stands && alarm.open.is_none() {
                alarm.open = Some(at);
            }
            (alarm.stands, alarm.seen) = (stands, at);
        }
        for (wall, alarm) in &mut self.alarms {
            if alarm.seen < at && (full || wall.scope() != Scope::Container) {
                alarm.stands = false;
            }
            alarm.expire(at, &mut self.scores[wall.scope() as usize]);
        }
        self.alarms.retain(|_, alarm| alarm.matters(at));
    }

    /// An OOM kill at a wall, known at `at`.
    pub fn oom_kill(&mut self, wall: Wall, at: Micros) {
        let score = &mut self.scores[wall.scope() as usize];
        let alarm = self.alarms.entry(wall).or_default();
        alarm.expire(at, score);
        if !alarm.hit(at, score) {
            score.false_negative += 1;
        }
    }

    /// By scope.
    #[must_use]
    pub fn view(&self) -> Vec<(Scope, Score)> {
        Scope::ALL.into_iter().zip(self.scores).collect()
    }

    /// How many walls are remembered.
    #[must_use]
    pub fn size(&self) -> usize {
        self.alarms.len()
    }
}

impl Alarm {
    /// Its time is over.
    fn expire(&mut self, at: Micros, score: &mut Score) {
        if self.open.is_some_and(|since| at - since > HORIZON + TOLERANCE) {
            self.open = None;
            score.false_positive += 1;
        }
    }

    /// The wall is hit. `false` if that is news for which there was no alarm.
    fn hit(&mut self, at: Micros, score: &mut Score) -> bool {
        let before = self.hit.replace(at);
        let Some(since) = self.open.take() else { return before.is_some_and(|before| at - before < INCIDENT) };
        let lead = at - since;
        score.true_positive += 1;
        score.lead_sum += lead;
        let slot = LEADS.iter().position(|bound| lead <= *bound).unwrap_or(LEADS.len());
        score.leads[slot] += 1;
        true
    }

    fn matters(&self, at: Micros) -> bool {
        self.open.is_some() || self.stands || self.hit.is_some_and(|hit| at - hit < INCIDENT)
    }
}

#[cfg(test)]
mod tests;
