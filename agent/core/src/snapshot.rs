//! What the outside may see: an immutable picture of the world after a step.
//!
//! Reports read this and nothing else, so no report can change a decision.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use crate::attribute::{Cause, Slowness};
pub use crate::budget::OwnCost;
use crate::event::{LinuxUser, Record, Rejected, ResourceList};
use crate::evict::EvictionCounts;
use crate::health::Verdict;
use crate::ladder::Rung;
use crate::probe::ProbeCounts;
use crate::sample::{CgroupReading, NetworkReading, NodeReading};
pub use crate::score::{Scope, Score};
use crate::spec::{PodSpec, PodUid, ProbeKind, QosClass, Resources};
use crate::status::PodCondition;
pub use crate::telemetry::ExitKind;
use crate::telemetry::{CgroupDetail, NodeDetail, PodDetail};
use crate::units::{Bytes, Micros, MilliCpu, Now};

/// The world after a step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// When.
    pub at: Now,
    /// The node.
    pub node: NodeView,
    /// All pods, by namespace and name.
    pub pods: Vec<Arc<PodView>>,
    /// Manifests that cannot be run.
    pub rejected: Vec<Rejected>,
    /// The newest records last, bounded.
    pub records: Vec<Record>,
    /// Counters that outlive their pods.
    pub totals: Totals,
}

/// The node.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// What it has.
    pub capacity: ResourceList,
    /// What pods may use.
    pub allocatable: ResourceList,
    /// The runtime answers; else why not.
    pub runtime_down: Option<String>,
    /// `MemoryPressure`.
    pub memory_pressure: bool,
    /// `DiskPressure`.
    #[serde(default)]
    pub disk_pressure: bool,
    /// `PIDPressure`.
    #[serde(default)]
    pub pid_pressure: bool,
    /// `memory.available` of the node, by what reclaim cannot free.
    pub memory_available: Option<Bytes>,
    /// `allocatableMemory.available`: what is left below the limit of `kubepods`, by what reclaim cannot free.
    pub allocatable_available: Option<Bytes>,
    /// Time until `kubepods` or the node runs out at the present growth; `None` for no growth.
    pub time_to_oom: Option<Micros>,
    /// The distance of samples at present.
    pub sample_interval: Micros,
    /// CPU in use, all of the node.
    pub cpu: Option<MilliCpu>,
    /// CPU idle, all of the node.
    pub cpu_idle: Option<MilliCpu>,
    /// The reading of `kubepods`.
    pub kubepods: Option<CgroupReading>,
    /// The last reading of the node, with CPU time since boot.
    pub reading: Option<NodeReading>,
    /// Its details.
    #[serde(skip)]
    pub detail: Option<Arc<NodeDetail>>,
    /// What the agent itself costs, and how much further apart it looks for that.
    #[serde(default)]
    pub own_cost: OwnCost,
    /// How much the agent remembers: entries, by what they are of.
    #[serde(skip)]
    pub remembers: Vec<(&'static str, usize)>,
}

/// A pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodView {
    /// What is wanted; of a pod that beelet did not start, what could be found out.
    pub spec: Arc<PodSpec>,
    /// Started by somebody else (beside a kubelet).
    pub foreign: bool,
    /// `status.phase`.
    pub phase: Phase,
    /// `status.reason`: `Evicted`, ...
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// `status.conditions`, but for that of its health.
    #[serde(default)]
    pub conditions: Vec<PodCondition>,
    /// `status.qosClass`.
    pub qos: QosClass,
    /// The state's name, for people: `Running`, `Terminating`, ...
    pub state: String,
    /// `status.podIP`, "" for none of its own.
    pub ip: String,
    /// Its other addresses.
    #[serde(default)]
    pub other_ips: Vec<String>,
    /// When it was first seen (wall clock).
    pub since: Micros,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// Its containers, the initialising ones first.
    pub containers: Vec<ContainerView>,
    /// The pod's whole cgroup, last reading.
    pub reading: Option<CgroupReading>,
    /// The sandbox's cgroup, last reading.
    pub sandbox: Option<CgroupReading>,
    /// The runtime's id of the sandbox, "" for none.
    pub sandbox_id: String,
    /// When the sandbox was made (wall clock); `None` without one.
    #[serde(default)]
    pub sandbox_created: Option<Micros>,
    /// Details of the pod's whole cgroup. Not in what `/debug/snapshot` serves: they are large.
    #[serde(skip)]
    pub cgroup_detail: Option<Arc<CgroupDetail>>,
    /// Details of network and storage.
    #[serde(skip)]
    pub detail: Option<Arc<PodDetail>>,
    /// CPU in use, from two readings of the same cgroup.
    pub cpu: Option<MilliCpu>,
    /// Cumulative bytes and packets.
    pub network: Option<NetworkReading>,
    /// Bytes per second received and sent.
    pub network_rate: Option<(u64, u64)>,
    /// Growth of what reclaim cannot free, bytes per second.
    pub memory_growth: Option<i64>,
    /// Time until the pod's own limit is hit; `None` for no limit or no growth.
    pub time_to_oom: Option<Micros>,
    /// Why it is slow, most lost time first; empty if it is not, or if nobody can tell.
    #[serde(default)]
    pub slow: Vec<Slowness>,
    /// The rungs of the ladder that it is on, the mildest first.
    #[serde(default)]
    pub rungs: Vec<Rung>,
    /// Listening TCP ports; `None` where nobody could tell, as of pods in the host's network.
    pub listening: Option<Vec<u16>>,
    /// Healthy or not, and why.
    pub health: Verdict,
    /// A resize under way: `Deferred: ...`, `InProgress`; "" for none.
    pub resize: String,
    /// The last thing done or decided, for people.
    pub last_action: String,
    /// OOM kills in this pod by container, cumulative over restarts.
    pub oom_kills: u64,
}

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerView {
    /// Its name.
    pub name: String,
    /// The runtime's id of the newest run, "" for none.
    pub id: String,
    /// It is an init container.
    pub init: bool,
    /// One that runs as long as the pod.
    #[serde(default)]
    pub sidecar: bool,
    /// The image as asked for.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// `status.state`.
    pub state: ContainerState,
    /// `status.lastState`, if it ran before.
    pub last: Option<crate::event::Exit>,
    /// The runtime's id of the run that `last` is the end of, "" for unknown.
    #[serde(default)]
    pub last_id: String,
    /// Who it runs as; `None` where the runtime does not tell.
    #[serde(default)]
    pub user: Option<LinuxUser>,
    /// `status.resources`: what it was given.
    #[serde(default)]
    pub given: Resources,
    /// `status.allocatedResources`: what it holds of the node, and is given when that can be done.
    #[serde(default)]
    pub allocated: Resources,
    /// `status.restartCount`.
    pub restarts: u32,
    /// Ready (without a readiness probe: it has started).
    pub ready: bool,
    /// It has started (without a startup probe: it runs).
    #[serde(default)]
    pub started: bool,
    /// What is counted of its probes.
    #[serde(default)]
    pub probes: Vec<(ProbeKind, ProbeCounts)>,
    /// The last reading of its cgroup.
    pub reading: Option<CgroupReading>,
    /// Its details.
    #[serde(skip)]
    pub detail: Option<Arc<CgroupDetail>>,
    /// CPU in use.
    pub cpu: Option<MilliCpu>,
    /// Burst given at present.
    pub burst: Micros,
    /// OOM kills, cumulative over restarts.
    pub oom_kills: u64,
}

/// `containerStatuses[].state`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running yet, or not any more.
    Waiting {
        /// `ContainerCreating`, `CrashLoopBackOff`, `ErrImagePull`, ...
        reason: String,
        /// More.
        message: String,
    },
    /// Running.
    Running {
        /// Since (wall clock).
        started: Micros,
    },
    /// Ended.
    Terminated(crate::event::Exit),
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Not all containers have run yet.
    #[default]
    Pending,
    /// At least one runs or will run again.
    Running,
    /// All ended well and none will run again.
    Succeeded,
    /// All ended, at least one badly, or beelet gave the pod up.
    Failed,
}

impl Phase {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// Namespace, pod and container.
pub type ContainerKey = (String, String, String);

/// Counters that only grow and outlive their pods. Lists are sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Evictions by signal: `memory.available`, `allocatableMemory.available`, ...
    pub evictions: Vec<(String, u64)>,
    /// Beginnings of rungs of the ladder, and whether they were done (or only told).
    #[serde(default)]
    pub rungs: Vec<((Rung, bool), u64)>,
    /// What more is counted of evictions, by signal.
    #[serde(default)]
    pub eviction_counts: Vec<(String, EvictionCounts)>,
    /// How good forecasts of running out of memory were, by scope.
    #[serde(default)]
    pub forecasts: Vec<(Scope, Score)>,
    /// OOM kills by namespace, pod, container.
    pub oom_kills: Vec<(ContainerKey, u64)>,
    /// OOM kills by namespace, pod, container and name of the process, at most 16 names and `other` for each container.
    #[serde(default)]
    pub oom_kills_by_process: Vec<(ContainerKey, String, u64)>,
    /// Ends of containers by namespace, pod, container and how: `code` or `signal` with the number.
    pub exits: Vec<(ContainerKey, ExitKind, u64)>,
    /// Ends of all processes by namespace, pod, container and how, at most 16 kinds for each container and `None` for the rest.
    #[serde(default)]
    pub process_exits: Vec<(ContainerKey, Option<ExitKind>, u64)>,
    /// Restarts by namespace, pod, container.
    pub restarts: Vec<(ContainerKey, u64)>,
    /// Actions by name and whether they succeeded.
    pub actions: Vec<((String, bool), u64)>,
    /// Steps of the state machine that were not allowed, and changed nothing.
    pub illegal_transitions: u64,
    /// Pods that the runtime had and nobody wanted, or ever did in this life of the agent.
    #[serde(default)]
    pub orphans: u64,
    /// Series of pods that are gone that were dropped, because there were too many.
    #[serde(default)]
    pub forgotten: u64,
}

impl NodeView {
    /// The names of the pressure conditions that are true, as the API writes them.
    #[must_use]
    pub fn pressures(&self) -> Vec<&'static str> {
        let all = [
            ("MemoryPressure", self.memory_pressure),
            ("DiskPressure", self.disk_pressure),
            ("PIDPressure", self.pid_pressure),
        ];
        all.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
    }

    /// The node's working set as the stock kubelet shows it; where it is not known, by /proc/meminfo, with what the kernel has outside
    /// of cgroups.
    #[must_use]
    pub fn memory_working_set(&self) -> Option<Bytes> {
        let told = self.detail.as_deref().and_then(|detail| detail.memory_working_set);
        told.or_else(|| self.reading.map(|reading| reading.memory_working_set))
    }

    /// When that was read (monotonic): with the details, which are older than the picture. `None`: with the picture.
    #[must_use]
    pub fn memory_at(&self) -> Option<Micros> {
        self.detail.as_deref().filter(|detail| detail.memory_working_set.is_some()).map(|detail| detail.at)
    }

    /// When its CPU times were read (monotonic); `None`: with the picture.
    #[must_use]
    pub fn cpu_at(&self) -> Option<Micros> {
        self.reading.map(|reading| reading.cpu_at).filter(|at| *at > Micros::ZERO)
    }
}

/// Which pod a view is of.
impl PodView {
    /// The UID.
    #[must_use]
    pub fn uid(&self) -> &PodUid {
        &self.spec.uid
    }

    /// Restarts of all containers together, as `kubectl get pods` shows them.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.containers.iter().map(|c| c.restarts).fold(0, u32::saturating_add)
    }

    /// What `kubectl get pods` shows in STATUS: the most telling reason.
    #[must_use]
    pub fn status_word(&self) -> String {
        if self.state == "Terminating" && self.reason.is_empty() {
            return "Terminating".to_owned();
        }
        if !self.reason.is_empty() {
            return self.reason.clone();
        }
        let waiting = self.containers.iter().find_map(|c| match &c.state {
            ContainerState::Waiting { reason, .. } if !reason.is_empty() => Some(reason.clone()),
            _ => None,
        });
        let ended = || {
            self.containers.iter().filter(|c| !c.init).find_map(|c| match &c.state {
                ContainerState::Terminated(exit) => Some(exit.reason.clone()),
                _ => None,
            })
        };
        match self.phase {
            Phase::Pending | Phase::Running => waiting.unwrap_or_else(|| self.phase.as_str().to_owned()),
            Phase::Succeeded | Phase::Failed => ended().unwrap_or_else(|| self.phase.as_str().to_owned()),
        }
    }
}
