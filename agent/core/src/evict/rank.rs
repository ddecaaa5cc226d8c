//! Who goes first.
//!
//! The kubelet orders by: uses more than it asks for; lower priority; more above its request (`rankMemoryPressure`,
//! pkg/kubelet/eviction/helpers.go, release 1.37). The same here, with two changes for the same aim. Usage is what reclaim cannot
//! free, because killing a pod for its page cache frees nothing that was short; and to what a pod has above its request is added
//! what it will take within [`HORIZON`] at its present growth, so that the aggressor goes before a quiet pod of similar size. Where
//! nothing grows, the order is the kubelet's.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use crate::allocate::pod_requests;
use crate::sample::PodReading;
use crate::spec::{PodSpec, PodUid};
use crate::units::{Bytes, Micros};

/// How far growth counts: a leak that is looked at for a second and would go on for ten is worth as much as ten seconds of it.
pub const HORIZON: Micros = Micros::secs(10);
/// Killing a pod that holds less frees nothing worth a kill.
const LEAST_GAIN: Bytes = Bytes::mib(1);

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
    /// What it asks for.
    pub request: Bytes,
    /// What it holds that reclaim cannot free.
    pub unreclaimable: Bytes,
    /// Growth of that, bytes per second; `None` where it is not known yet.
    pub growth: Option<i64>,
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
    pub fn new(pod: &PodSpec, reading: &PodReading, growth: Option<i64>, terminating: bool) -> Option<Self> {
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
            request: pod_requests(pod).memory,
            unreclaimable: memory.unreclaimable(),
            growth,
            containers: containers.collect(),
        })
    }

    /// It holds more than it asks for.
    #[must_use]
    pub fn exceeds(&self) -> bool {
        self.unreclaimable > self.request
    }

    /// Bytes above its request (negative: below) within [`HORIZON`].
    #[must_use]
    pub fn score(&self) -> i128 {
        let over = i128::from(self.unreclaimable.get()) - i128::from(self.request.get());
        let growth = i128::from(self.growth.unwrap_or(0).max(0));
        over + growth * i128::from(HORIZON.get()) / 1_000_000
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
}

/// The pods that may be victims, the first victim first. Names and UIDs break ties, so the order does not depend on the input's.
#[must_use]
pub fn rank(candidates: &[Candidate]) -> Vec<&Candidate> {
    let mut order: Vec<&Candidate> = candidates.iter().filter(|c| c.eligible()).collect();
    order.sort_by(|a, b| {
        let key = |c: &Candidate| (!c.exceeds(), c.priority, Reverse(c.score()), Reverse(c.growth));
        key(a).cmp(&key(b)).then_with(|| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)))
    });
    order
}

impl From<&Candidate> for Ranked {
    fn from(c: &Candidate) -> Self {
        Self {
            uid: c.uid.clone(),
            name: c.name.clone(),
            exceeds: c.exceeds(),
            priority: c.priority,
            unreclaimable: c.unreclaimable,
            request: c.request,
            growth: c.growth,
        }
    }
}
