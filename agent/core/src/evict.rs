//! Eviction before the kernel's OOM killer has to.
//!
//! Problem: the kubelet looks each 10 s at a working set in which page cache counts as used. So it comes too late for a leak and may
//! come without need. Approach: [`Decider`] looks at what reclaim cannot free, as often as [`crate::forecast::pace`] says, and acts
//! only with two independent signs; the ranking, the thresholds, the minimum reclaim and the texts are the kubelet's
//! (pkg/kubelet/eviction/{eviction_manager,helpers}.go, release 1.37).
//!
//! Terms: a *signal* is a wall: the node's memory, or the limit of `kubepods`. *Available* is limit less what reclaim cannot free.
//! A *hard* threshold sends one away at once; a [`Soft`] one only after it was met for its grace period without a break, and its victim
//! is given time to end. Hard ones go first, and take the time away again from a victim that has been given it.
//! A signal is *met* from when available falls below a threshold until it is above threshold plus minimum reclaim; that of `kubepods`
//! begins with a look at all pods, as the kernel may be late with what a cgroup without them says ([`Sample::kubepods_memory`]). The *second sign*
//! is confirmed growth, tasks that wait for memory in the second sample that is met, anonymous and shared memory that alone come near the wall, or a wall
//! that stays met for [`PERSIST_SAMPLES`] samples and [`PERSIST_TIME`]. Before the threshold only growth that would hit the wall within the
//! reaction time counts, and only of pods above their request. The second sign of a soft threshold is its grace period. A pod that
//! wants it is *asked to leave* when the hard threshold would be met before it could end by itself; the second sign is that this was
//! so for [`LEAVE_CONFIRM`] without a break.
//!
//! Properties (tested): critical and terminating pods are never victims; no victim while a worse-ranked one exists; a stale or
//! missing reading causes no kill; page cache alone causes no kill; one victim at a time and measured again after it, unless it
//! does not go while less than the reaction time is left; eviction stops when the minimum reclaim is met; MemoryPressure is set at
//! most once per hold window; nobody goes for a soft threshold before its grace period has passed without a break, nor while an earlier
//! victim is within the time it was given; every decision has evidence, and what it gained is told of afterwards; the same samples give the same decisions.

mod decider;
pub mod disk;
mod gain;
mod rank;
mod soft;
mod why;

pub(crate) use decider::STALE;
pub use decider::{
    Decider, Decision, Eviction, LEAVE_CONFIRM, LEAVE_MOST, PERSIST_SAMPLES, PERSIST_TIME, Seen, Standing,
};
pub use gain::{Durations, EvictionCounts, Gained, WATCH};
pub use rank::{Candidate, CandidateContainer, HORIZON, Place, Ranked, rank};
pub use soft::Soft;
pub use why::{By, before};

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::quantity::{self, QuantityError};
use crate::sample::Sample;
use crate::units::{Bytes, Ppm};

/// An eviction threshold of a [`Signal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Threshold {
    /// `memory.available<100Mi`.
    Quantity(Bytes),
    /// `memory.available<5%`, of the capacity.
    Share(Ppm),
}

impl Default for Threshold {
    /// The kubelet's: 100Mi.
    fn default() -> Self {
        Self::Quantity(Bytes::mib(100))
    }
}

/// What is wrong with the text of a threshold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// A percentage that is no number, or not in 0..=100.
    #[error("eviction threshold {0:?}: a percentage is a number from 0% to 100%, for example 5% or 7.5%")]
    Percentage(String),
    /// Zero. A threshold is switched off by `0%`.
    #[error("eviction threshold {0:?} must be positive; `0%` switches it off")]
    Zero(String),
    /// Not a quantity.
    #[error("eviction threshold {0:?}: {1}")]
    Quantity(String, QuantityError),
}

impl Threshold {
    /// Reads `100Mi` or `5%` (up to four decimals). `0%` and `100%` switch a threshold off and give `None`
    /// (pkg/kubelet/eviction/helpers.go, `parseThresholdStatement`).
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Option<Self>, ThresholdError> {
        if let Some(number) = text.strip_suffix('%') {
            let Ppm(ppm) = percentage(number).ok_or_else(|| ThresholdError::Percentage(text.to_owned()))?;
            return Ok((ppm > 0 && ppm < 1_000_000).then_some(Self::Share(Ppm(ppm))));
        }
        match quantity::parse_bytes(text) {
            Ok(Bytes::ZERO) => Err(ThresholdError::Zero(text.to_owned())),
            Ok(bytes) => Ok(Some(Self::Quantity(bytes))),
            Err(error) => Err(ThresholdError::Quantity(text.to_owned(), error)),
        }
    }

    /// In bytes.
    #[must_use]
    pub fn quantity(&self, capacity: Bytes) -> Bytes {
        match *self {
            Self::Quantity(bytes) => bytes,
            Self::Share(Ppm(ppm)) => capacity.scale(ppm, 1_000_000),
        }
    }
}

fn percentage(number: &str) -> Option<Ppm> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || whole.len() > 3 || decimals.len() > 4 || !digits(whole) || !digits(decimals) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let decimals: u64 = format!("{decimals:0<4}").parse().ok()?;
    Some(Ppm(whole * 10_000 + decimals)).filter(|&ppm| ppm <= Ppm(1_000_000))
}

/// What sends one away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A hard threshold that is met.
    Hard,
    /// A soft threshold that was met for its grace period.
    Soft,
    /// A hard threshold that would be met before one could end by itself: the rung [`crate::ladder::Rung::Leave`].
    Forecast,
}

impl Kind {
    /// Its name in the evidence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hard => "hard",
            Self::Soft => "soft",
            Self::Forecast => "forecast",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A wall that memory can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Signal {
    /// The node's memory.
    Memory,
    /// The memory limit of `kubepods`.
    AllocatableMemory,
}

impl Signal {
    /// The kubelet's name, as in `kubelet_evictions{eviction_signal}`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory.available",
            Self::AllocatableMemory => "allocatableMemory.available",
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much is left below a wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Available {
    /// Which wall.
    pub signal: Signal,
    /// Where the wall is.
    pub limit: Bytes,
    /// What reclaim cannot free below it.
    pub unreclaimable: Bytes,
    /// Anonymous and shared memory, counted by themselves; `None` where nobody tells.
    pub counted: Option<Bytes>,
    /// What the kubelet would say: limit less working set.
    pub kubelet: Bytes,
}

impl Available {
    /// What decides here: limit less what reclaim cannot free.
    #[must_use]
    pub fn available(&self) -> Bytes {
        self.limit - self.unreclaimable
    }
}

/// The walls that can be read: the node's memory, then the limit of `kubepods`. One without a reading, or without a limit, is left
/// out.
#[must_use]
pub fn available(sample: &Sample) -> Vec<Available> {
    let (mut walls, node) = (Vec::with_capacity(2), &sample.node);
    if node.memory_total > Bytes::ZERO && node.memory_working_set > Bytes::ZERO {
        walls.push(Available {
            signal: Signal::Memory,
            limit: node.memory_total,
            unreclaimable: node.memory_unreclaimable,
            counted: node.memory_counted,
            kubelet: node.memory_total - node.memory_working_set,
        });
    }
    if let Some(memory) = sample.kubepods_memory()
        && let Some(limit) = memory.limit
    {
        walls.push(Available {
            signal: Signal::AllocatableMemory,
            limit,
            unreclaimable: memory.unreclaimable(),
            // Without the pods it may be old, while usage is new: the difference would say nothing.
            counted: sample.pods.is_some().then(|| memory.counted()),
            kubelet: limit - memory.working_set(),
        });
    }
    walls
}

/// The kubelet's text for a pod's `status.message` and its `Evicted` event. `available` is what decided. Containers are named that
/// use more than they ask for, by working set as the kubelet counts.
#[must_use]
pub fn message(threshold: Bytes, available: Bytes, containers: &[CandidateContainer]) -> String {
    let over = containers.iter().filter(|c| c.usage > c.request);
    let over = over.map(|c| (c.name.as_str(), c.usage, c.request));
    low_on("memory", &threshold.to_string(), &available.to_string(), over)
}

/// The same of any resource; containers by name, use and request.
fn low_on<'a>(
    resource: &str,
    threshold: &str,
    available: &str,
    over: impl Iterator<Item = (&'a str, Bytes, Bytes)>,
) -> String {
    use fmt::Write as _;
    let mut text =
        format!("The node was low on resource: {resource}. Threshold quantity: {threshold}, available: {available}. ");
    for (name, used, request) in over {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "Container {name} was using {used}, request is {request}, has larger consumption of {resource}. "
        );
    }
    text
}

#[cfg(test)]
mod tests;
