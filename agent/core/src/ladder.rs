//! What is done before somebody has to go: from mild to hard, each for a short time only.
//!
//! Problem: between watching and killing there is much that helps, and each of it may harm a healthy pod when it lasts. Approach: a
//! ladder of *rungs*. Each has a condition to enter, one to leave, a time limit after which the pod rests from it, and a record of
//! why; each can be switched off for the node ([`Rungs`], the EnforcementPolicy) and for a pod ([`Wishes`], annotations). Sending
//! away, with time to end (*leave*) or without, comes last and is [`crate::evict`]'s.
//!
//! | Rung | Entered when | Does | Left when | At most |
//! |---|---|---|---|---|
//! | reclaim | a shared wall has less than 15 % left, or would be hit within 10 min, and the pod is above its request | `memory.reclaim`: 1 % of its usage each second, 32 MiB at most | there is room again; its tasks wait; pages come back | 60 s |
//! | throttle | a shared wall would be hit within 60 s, and at least half of the growth is this pod's, above its request | `memory.high` a little above its usage | the growth has ended; all its tasks wait 40 % of the time | 30 s |
//! | raise | the container would hit its own limit within 10 s, and the shared walls have room | `memory.max` up by 20 %, 100 MiB at least, to twice the limit at most | it fits below its limit again | raised further for 10 min |
//! | freeze | a hard threshold is met, what is to go is not decided yet, and the first in the order of victims still grows | `cgroup.freeze` | it is decided; the threshold is not met any more | 2 s |
//! | leave | a hard threshold would be met before the pod could end by itself, and growth above requests is why | an eviction with the pod's own grace period | it has ended; the threshold is met: it is killed | its grace period, 30 s |
//!
//! Numbers: reclaim's share and bounds are those of Meta's senpai and Katalyst (1 % of usage, PSI below 1 %), 20 % and 100 MiB are
//! the VPA's answer to an OOM kill (vertical-pod-autoscaler, `oom-bump-up-ratio`, `oom-min-bump-up-bytes`, 1.7).
//!
//! Terms: a *shared wall* is the node's memory or the limit of `kubepods`; to *rest* is not to be put on the rung again for a while.
//!
//! Properties (tested): what holds a pod up is held for no longer than its limit; a pod that is going is on none; critical pods are neither throttled nor
//! frozen; what the kernel lacks, the policy forbids or the pod does not want is never done; a raised limit is never cut below what
//! is held; the same looks give the same moves.

mod climb;

pub use climb::{FREEZE_LIMIT, Held, Ladder, RAISE_LIMIT, RECLAIM_LIMIT, Situation, Subject, THROTTLE_LIMIT};

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::spec::{PodSpec, PodUid};
use crate::units::Bytes;

/// A rung of the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Page cache of the pod is freed, a little at a time.
    Reclaim,
    /// The pod's allocations are slowed down.
    Throttle,
    /// A container's own limit is raised.
    Raise,
    /// The pod stands still until it is decided who goes.
    Freeze,
    /// The pod is evicted before a threshold is met, with time to end.
    Leave,
}

impl Rung {
    /// All of them, the mildest first.
    pub const ALL: [Self; 5] = [Self::Reclaim, Self::Throttle, Self::Raise, Self::Freeze, Self::Leave];

    /// Its name in the policy, in annotations and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reclaim => "reclaim",
            Self::Throttle => "throttle",
            Self::Raise => "raise",
            Self::Freeze => "freeze",
            Self::Leave => "leave",
        }
    }

    /// The annotation by which a pod says whether it wants it: `"true"` or `"false"`.
    #[must_use]
    pub const fn annotation(self) -> &'static str {
        match self {
            Self::Reclaim => "beelet.dev/reclaim",
            Self::Throttle => "beelet.dev/throttle",
            Self::Raise => "beelet.dev/raise",
            Self::Freeze => "beelet.dev/freeze",
            Self::Leave => "beelet.dev/leave",
        }
    }

    /// The reasons of its records: when it begins, when it ends, and what would have begun.
    #[must_use]
    pub const fn reasons(self) -> [&'static str; 3] {
        match self {
            Self::Reclaim => ["MemoryReclaim", "MemoryReclaimEnded", "WouldReclaimMemory"],
            Self::Throttle => ["MemoryThrottled", "MemoryThrottledEnded", "WouldThrottle"],
            Self::Raise => ["MemoryLimitRaised", "MemoryLimitRestored", "WouldRaise"],
            Self::Freeze => ["Frozen", "Thawed", "WouldFreeze"],
            Self::Leave => ["Evicted", "EvictionGained", "WouldEvict"],
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// For whom a rung may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Allow {
    /// Nobody.
    Never,
    /// Pods whose annotation says `"true"`.
    OnRequest,
    /// All but those whose annotation says `"false"`.
    Always,
}

/// Which rungs may be used on this node (`spec.ladder` of the EnforcementPolicy), and which the kernel lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rungs {
    allow: BTreeMap<Rung, Allow>,
    lacks: BTreeMap<Rung, String>,
}

impl Default for Rungs {
    /// Raising a limit gives what was not granted, and a kubelet sends nobody away before a threshold is met: these are for those
    /// who ask for it; all else is for all.
    fn default() -> Self {
        let allow = |rung| if matches!(rung, Rung::Raise | Rung::Leave) { Allow::OnRequest } else { Allow::Always };
        Self { allow: Rung::ALL.map(|rung| (rung, allow(rung))).into(), lacks: BTreeMap::new() }
    }
}

impl Rungs {
    /// None at all: what a test of something else starts from.
    #[must_use]
    pub fn none() -> Self {
        Self { allow: BTreeMap::new(), lacks: BTreeMap::new() }
    }

    /// With another rule for a rung.
    #[must_use]
    pub fn with(mut self, rung: Rung, allow: Allow) -> Self {
        self.allow.insert(rung, allow);
        self
    }

    /// The kernel lacks what a rung needs.
    #[must_use]
    pub fn lacking(mut self, rung: Rung, reason: impl Into<String>) -> Self {
        self.lacks.insert(rung, reason.into());
        self
    }

    /// Each rung, with why it cannot be used here; `None` if it can.
    pub fn states(&self) -> impl Iterator<Item = (Rung, Option<String>)> + '_ {
        Rung::ALL.into_iter().map(|rung| {
            let off = self.rule(rung) == Allow::Never;
            (rung, self.lacks.get(&rung).cloned().or_else(|| off.then(|| "switched off".to_owned())))
        })
    }

    fn rule(&self, rung: Rung) -> Allow {
        self.allow.get(&rung).copied().unwrap_or(Allow::Never)
    }

    /// Whether a rung may be used for a pod of these wishes.
    #[must_use]
    pub fn permits(&self, rung: Rung, wishes: &Wishes) -> bool {
        let wish = wishes.0.get(&rung).copied();
        !self.lacks.contains_key(&rung)
            && match self.rule(rung) {
                Allow::Never => false,
                Allow::OnRequest => wish == Some(true),
                Allow::Always => wish != Some(false),
            }
    }
}

/// What a pod's annotations say of the rungs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes(BTreeMap<Rung, bool>);

/// An annotation of ours with a value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("metadata.annotations[{key}]: {value:?} must be \"true\" or \"false\"")]
pub struct WishError {
    /// Which.
    pub key: &'static str,
    /// Its value.
    pub value: String,
}

impl Wishes {
    /// Reads the annotations of the rungs.
    ///
    /// # Errors
    /// A value that is neither `true` nor `false`.
    pub fn read(annotations: &BTreeMap<String, String>) -> Result<Self, WishError> {
        let wish = |rung: Rung| {
            let key = rung.annotation();
            let value = annotations.get(key)?;
            Some(value.parse().map(|wish| (rung, wish)).map_err(|_| WishError { key, value: value.clone() }))
        };
        Rung::ALL.into_iter().filter_map(wish).collect::<Result<_, _>>().map(Self)
    }

    /// A pod's; what cannot be read was refused where its manifest was.
    #[must_use]
    pub fn of(pod: &PodSpec) -> Self {
        Self::read(&pod.annotations).unwrap_or_default()
    }
}

/// What is done to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// So much of its memory is freed.
    Reclaim(Bytes),
    /// `memory.high`; `None` for none.
    High(Option<Bytes>),
    /// `memory.max`.
    Max(Bytes),
    /// `cgroup.freeze`.
    Freeze(bool),
}

/// The beginning of a rung, its going on, or its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A pod is put on it.
    Enter,
    /// More of the same.
    Again,
    /// A pod is taken off it.
    Leave,
}

/// A step on the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which pod.
    pub uid: PodUid,
    /// Which of its containers; `None` for the pod.
    pub container: Option<String>,
    /// Which rung.
    pub rung: Rung,
    /// Onto it or off it.
    pub turn: Turn,
    /// What is done, in order: cgroup, relative to the hierarchies' roots, and what.
    pub acts: Vec<(String, Act)>,
    /// Why, for people and for the journal.
    pub why: String,
    /// What was seen: name and value.
    pub evidence: Vec<(String, String)>,
}

#[cfg(test)]
mod tests;
