//! What the outside gets to see.
//!
//! Problem: a report that can reach into the agent's state can change a decision, slow one down, or show half of a step.
//! Approach: after each step the agent publishes an immutable picture ([`Published`]), and facts about itself
//! ([`AgentReport`]); everything here and in [`crate::server`] reads those and nothing else.
//!
//! Terms: a *picture* is a [`Snapshot`]; *latest* is the newest value of something that is replaced whole.
//!
//! Properties: a reader never waits for a writer nor a writer for a reader; a reader sees one step, never a mix of two.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use beelet_core::snapshot::Snapshot;
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

pub mod cadvisor;
pub mod dropin_table;
mod evictions;
pub mod explain;
pub mod exposition;
mod itself;
pub mod machine;
pub mod metrics;
pub mod podlist;
pub mod probes;
pub mod process;
pub mod resource;
#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
pub(crate) mod samples_detail;
#[cfg(test)]
pub(crate) mod samples_dropin;
pub mod scrapes;
pub mod sources;
#[cfg(test)]
pub(crate) mod strict;
pub mod summary;
pub mod table;
mod telemetry;
pub mod words;

/// The newest value of something that is replaced whole. Clones share it.
#[derive(Debug)]
pub struct Latest<T>(Arc<ArcSwap<T>>);

impl<T> Latest<T> {
    /// Starts with this value.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// Replaces the value.
    pub fn publish(&self, value: T) {
        self.0.store(Arc::new(value));
    }

    /// The value at this moment; it stays as it is while the caller holds it.
    #[must_use]
    pub fn current(&self) -> Arc<T> {
        self.0.load_full()
    }
}

impl<T> Clone for Latest<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Latest<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// The picture after the newest step.
pub type Published = Latest<Snapshot>;

/// The newest facts about the agent itself.
pub type AgentReport = Latest<SelfReport>;

/// The manifests that pods came from, for `/pods`; pods that somebody else started are not in it.
pub type Manifests = Latest<BTreeMap<PodUid, Arc<Pod>>>;

/// What the agent knows about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfReport {
    /// The release.
    pub version: String,
    /// The commit it was built from, "" where unknown.
    pub revision: String,
    /// How it runs: `standalone`, `kubelet`, `beside`.
    pub mode: String,
    /// The node's address, for `status.hostIP`; "" where unknown.
    pub host_ip: String,
    /// The cgroup of all pods, relative to the hierarchies' roots: `kubepods`.
    pub kubepods: String,
    /// The image of sandboxes, by the runtime; "" where it does not tell.
    #[serde(default)]
    pub sandbox_image: String,
    /// What was probed at start: what the kernel, the machine and the runtime can do.
    pub capabilities: Vec<Capability>,
    /// The eBPF programs.
    pub programs: Vec<Program>,
    /// The eBPF maps.
    pub maps: Vec<MapUse>,
    /// Kernel events and records that did not fit and were dropped, by what they were about.
    pub events_lost: Vec<(String, u64)>,
    /// Runtime calls that the runtime does not have.
    pub unimplemented_rpcs: Vec<String>,
    /// Calls to the runtime, by kind.
    #[serde(default)]
    pub runtime_operations: Vec<RuntimeOperation>,
    /// What its looks cost, by kind.
    #[serde(default)]
    pub looks: Vec<LookReport>,
    /// Cgroups in looks, by whether their files were read: `made`, `held`.
    #[serde(default)]
    pub readings: Vec<(String, u64)>,
    /// Container logs: `rotated`, `compressed`, `removed`.
    #[serde(default)]
    pub logs: Vec<(String, u64)>,
    /// What failed with them: `look`, `rename`, `reopen`, `compress`, `remove`, `link`.
    #[serde(default)]
    pub log_faults: Vec<(String, u64)>,
    /// How often its threads went to sleep and were woken, since its start.
    #[serde(default)]
    pub wakeups: u64,
    /// When the agent began (monotonic).
    pub started: Micros,
    /// When the last look was taken (monotonic); 0 before the first.
    pub last_sample: Micros,
    /// When the runtime last answered whether it has pods, even if with an error (monotonic); 0 before the first.
    pub last_listing: Micros,
}

impl SelfReport {
    /// Loaded eBPF programs, of how many.
    #[must_use]
    pub fn programs_loaded(&self) -> (usize, usize) {
        (self.programs.iter().filter(|p| p.loaded).count(), self.programs.len())
    }
}

/// Something that may or may not be there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// Its name: `btf`, `cgroup_v2`, `psi`, ...
    pub name: String,
    /// It is there.
    pub available: bool,
    /// Why not, or what takes its place; "" where there is nothing to say.
    pub reason: String,
}

/// Calls of one kind to the runtime, since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeOperation {
    /// The kubelet's name of it: `run_podsandbox`, ...
    pub kind: String,
    /// How many failed.
    pub errors: u64,
    /// How many took so long, by the bounds of [`crate::runtime::operations`]; the last: longer than all of them.
    pub counts: Vec<u64>,
    /// All of them together.
    pub time: Micros,
}

impl RuntimeOperation {
    /// How many there were.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.counts.iter().sum()
    }
}

/// An eBPF program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// It is loaded and attached.
    pub loaded: bool,
    /// Why not; "" if it is.
    pub reason: String,
    /// Verified instructions.
    pub instructions: u64,
    /// Time spent in it, nanoseconds, estimated from one second in thirty.
    pub run_time_ns: u64,
    /// How often it ran.
    pub run_count: u64,
    /// Nanoseconds for one event, when it was last measured; `None` before it first ran.
    #[serde(default)]
    pub ns_per_event: Option<u64>,
    /// Events that the kernel did not hand over.
    #[serde(default)]
    pub missed: u64,
}

/// What looks of one kind cost since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookReport {
    /// `quick`, `full`, `detail`, `asked`, `network`, `storage`.
    pub kind: String,
    /// So many.
    pub count: u64,
    /// The time of all of them.
    pub total: Micros,
    /// The time of the last; `None` where it is not kept, or before the first.
    pub last: Option<Micros>,
}

/// How full an eBPF map is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapUse {
    /// Its name.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that fit.
    pub max_entries: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_the_picture_it_took() {
        let latest = Latest::new(1);
        let other = latest.clone();
        let held = latest.current();
        other.publish(2);
        assert_eq!((*held, *latest.current()), (1, 2));
    }
}
