//! Who goes first.
//!
//! The kubelet orders by: uses more than it asks for; lower priority; more above its request (`rankMemoryPressure`,
//! pkg/kubelet/eviction/helpers.go, release 1.37). The same here, with two changes for the same aim. Usage is what reclaim cannot
//! free, because killing a pod for its page cache frees nothing that was short. And among pods of which the kubelet would take the
//! largest, the *aggressors* go first: those that ate the room, by what they took lately and had not had before
//! ([`crate::ground`]) and what they will take at their present growth. Where nobody took anything, the order is the kubelet's.
//!
//! Not used, on purpose: a pod's own stalls, refaults or reclaim. They are what the aggressor does to the others.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::allocate::pod_requests;
use crate::model::CgroupModel;
use crate::sample::PodReading;
use crate::spec::{PodSpec, PodUid};
use crate::units::{Bytes, Micros};

/// How far growth counts: where two have taken the same so far, who will take more goes first.
pub const HORIZON: Micros = Micros::secs(10);
/// A pace that was seen for a moment is no plan: growth counts for at most so many times what was taken.
const FORESIGHT: u64 = 4;
/// Who took less lately ate no room: allocators and small caches of any server do as much.
const LEAST_TAKEN: Bytes = Bytes::mib(4);
/// Killing a pod that holds less frees nothing worth a kill.
pub(super) const LEAST_GAIN: Bytes = Bytes::mib(1);

/// A pod that might go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which pod.
    pub uid: PodUid,
    /// `namespace/name`.
    pub name: String,
    /// `spec.priority`.
    pub priority: i32,
    /// Never a victim.
    pub critical: bool,
    /// Is going anyway: never a victim.
    pub terminating: bool,
    /// `spec.terminationGracePeriodSeconds`.
    pub grace: Micros,
    /// It may be sent away before a threshold is met ([`crate::ladder::Rung::Leave`]).
    pub leaves: bool,
    /// What it asks for.
    pub request: Bytes,
    /// What it holds that reclaim cannot free, as far as it is believed ([`crate::settle`]).
    pub unreclaimable: Bytes,
    /// Growth of that, bytes per second; `None` where it is not known yet.
    pub growth: Option<i64>,
    /// What it took lately of that and had not had before ([`crate::ground`]).
    pub taken: Bytes,
    /// Its containers with a reading, for the message.
    pub containers: Vec<CandidateContainer>,
}

/// A container of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CandidateContainer {
    /// Its name.
    pub name: String,
    /// What it asks for.
    pub request: Bytes,
    /// Its working set, as the kubelet counts.
    pub usage: Bytes,
}

impl Candidate {
    /// From a pod and its reading; `None` if its memory could not be read: what is not known is not killed for it.
    #[must_use]
    pub fn new(
        pod: &PodSpec,
        reading: &PodReading,
        model: &CgroupModel,
        terminating: bool,
        leaves: bool,
    ) -> Option<Self> {
        let memory = reading.cgroup.memory?;
        let containers = reading.containers.iter().filter_map(|c| {
            let request = pod.container(&c.name).and_then(|s| s.resources.memory_request.or(s.resources.memory_limit));
            let usage = c.cgroup.memory?.working_set();
            Some(CandidateContainer { name: c.name.clone(), request: request.unwrap_or_default(), usage })
        });
        Some(Self {
            uid: pod.uid.clone(),
            name: pod.full_name(),
            priority: pod.priority,
            critical: pod.is_critical(),
            terminating,
            grace: pod.termination_grace,
            leaves,
            request: pod_requests(pod).memory,
            unreclaimable: model.held().unwrap_or_else(|| memory.unreclaimable()),
            growth: model.growth(),
            taken: model.taken(),
            containers: containers.collect(),
        })
    }

    /// It holds more than it asks for.
    #[must_use]
    pub fn exceeds(&self) -> bool {
        self.unreclaimable > self.request
    }

    /// Bytes above its request, negative below.
    #[must_use]
    pub fn excess(&self) -> i128 {
        i128::from(self.unreclaimable.get()) - i128::from(self.request.get())
    }

    /// How much of the room it eats: what it took lately, and what it will take within [`HORIZON`] at its present growth. Zero for who
    /// took nothing to speak of.
    #[must_use]
    pub fn appetite(&self) -> Bytes {
        if self.taken < LEAST_TAKEN {
            return Bytes::ZERO;
        }
        let growth = Bytes(u64::try_from(self.growth.unwrap_or(0)).unwrap_or(0));
        self.taken + growth.scale(HORIZON.get(), 1_000_000).min(self.taken.scale(FORESIGHT, 1))
    }

    /// May it be a victim at all?
    #[must_use]
    pub fn eligible(&self) -> bool {
        !self.critical && !self.terminating && self.unreclaimable >= LEAST_GAIN
    }
}

/// A place in the ranking, for evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranked {
    /// Which pod.
    pub uid: PodUid,
    /// `namespace/name`.
    pub name: String,
    /// It holds more than it asks for.
    pub exceeds: bool,
    /// `spec.priority`.
    pub priority: i32,
    /// What it holds that reclaim cannot free.
    pub unreclaimable: Bytes,
    /// What it asks for.
    pub request: Bytes,
    /// Bytes per second.
    pub growth: Option<i64>,
    /// What it took lately and had not had before.
    #[serde(default)]
    pub taken: Bytes,
    /// It eats at least half as much of the room as who eats most, of those that are alike in request and priority.
    #[serde(default)]
    pub aggressor: bool,
}

/// A candidate in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Who.
    pub pod: &'a Candidate,
    /// See [`Ranked::aggressor`].
    pub aggressor: bool,
}

/// The pods that may be victims, the first victim first. Names and UIDs break ties, so the order does not depend on the input's.
#[must_use]
pub fn rank(candidates: &[Candidate]) -> Vec<Place<'_>> {
    let eligible = || candidates.iter().filter(|c| c.eligible());
    // Of those that request and priority do not tell apart, what the largest appetite is.
    let mut most: BTreeMap<(bool, i32), Bytes> = BTreeMap::new();
    for c in eligible() {
        let largest = most.entry((c.exceeds(), c.priority)).or_default();
        *largest = c.appetite().max(*largest);
    }
    let mut order: Vec<Place<'_>> = eligible()
        .map(|pod| {
            let largest = most.get(&(pod.exceeds(), pod.priority)).copied().unwrap_or_default();
            let appetite = pod.appetite();
            Place { pod, aggressor: appetite > Bytes::ZERO && appetite >= largest.scale(1, 2) }
        })
        .collect();
    order.sort_by(|a, b| {
        let key = |p: &Place<'_>| {
            (!p.pod.exceeds(), p.pod.priority, !p.aggressor, Reverse(p.pod.excess()), Reverse(p.pod.growth))
        };
        key(a).cmp(&key(b)).then_with(|| (&a.pod.name, &a.pod.uid).cmp(&(&b.pod.name, &b.pod.uid)))
    });
    order
}

impl From<Place<'_>> for Ranked {
    fn from(Place { pod: c, aggressor }: Place<'_>) -> Self {
        Self {
            uid: c.uid.clone(),
            name: c.name.clone(),
            exceeds: c.exceeds(),
            priority: c.priority,
            unreclaimable: c.unreclaimable,
            request: c.request,
            growth: c.growth,
            taken: c.taken,
            aggressor,
        }
    }
}
