//! What goes into [`crate::World::step`] and what comes out.
//!
//! Problem: a decision that talks to the world cannot be tested or replayed. Approach: everything that happens is an [`Event`],
//! everything that is to be done is an [`Action`]; the edges turn one into the other. Both are plain, serialisable data.
//!
//! Terms: *facts* are a full listing of what the runtime has (level-triggered: a lost notification costs time, never truth);
//! an *operation* is a unit of work for one pod. At most one operation of a pod is under way, so its operations are in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::evict::disk;
use crate::probe::Answer;
use crate::sample::{KernelEvent, Sample};
use crate::security::RuntimeFeatures;
use crate::spec::{Handler, Hook, PodSpec, PodUid, ProbeKind, Resources};
use crate::status::PodNote;
use crate::stop::Stop;
use crate::units::{Bytes, Micros, MilliCpu};

/// Something that happened.
#[expect(clippy::large_enum_variant, reason = "moved once for each step")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// All that the pod source wants now; what is missing is to go.
    Pods {
        /// The wanted pods.
        pods: Vec<Arc<PodSpec>>,
        /// What was refused, and why.
        rejected: Vec<Rejected>,
    },
    /// All that the runtime has now.
    Runtime(RuntimeFacts),
    /// The runtime does not answer.
    RuntimeDown {
        /// Why.
        reason: String,
    },
    /// An operation ended.
    Done {
        /// Whose.
        uid: PodUid,
        /// Which.
        op: OpId,
        /// How.
        result: Result<Done, OpError>,
    },
    /// [`Action::Probe`] ended.
    Probe {
        /// Whose.
        uid: PodUid,
        /// The container's name.
        container: String,
        /// The run that was asked: the runtime's id.
        run: String,
        /// Which of its probes.
        kind: ProbeKind,
        /// What came of it.
        answer: Answer,
        /// How long it took.
        took: Micros,
    },
    /// A measurement.
    Sample(Sample),
    /// The room on the node's file systems and among its process ids. Sent every [`Action::LookAtDisks`], or earlier.
    Disks {
        /// What was read.
        reading: disk::Reading,
        /// [`Action::Reclaim`] ended, before that reading.
        reclaimed: Option<disk::Reclaimed>,
    },
    /// The kernel told something at the moment it happened.
    Kernel(KernelEvent),
    /// What an earlier life of the agent wrote down by [`Action::Remember`]; sent before the first [`Event::Pods`].
    Remembered(Vec<Terminal>),
    /// The pods that had to go when an earlier life of the agent ended, by [`Action::Going`]; sent before the first [`Event::Pods`].
    Going(Vec<(PodUid, Micros)>),
    /// What an earlier life of the agent wrote down by [`Action::Note`]; sent before the first [`Event::Pods`].
    Noted(Vec<PodNote>),
    /// What the agent itself has cost since its start; sent about once a second.
    OwnCost {
        /// CPU time of the agent's process, user and kernel.
        cpu: Micros,
        /// The part of it that goes with the number of full looks: reading, and judging what was read.
        looking: Micros,
        /// Run time of its eBPF programs, on all CPUs; `None` where the kernel's statistics are off, then only `cpu` counts.
        bpf: Option<Micros>,
    },
    /// Time passed. Sent at the moment that [`Action::WakeAt`] asked for, or earlier.
    Tick,
    /// An image is not there, or asked for anew: its pull begins.
    Pulling {
        /// For which pod.
        uid: PodUid,
        /// The image.
        image: String,
    },
    /// What was noticed of a pod while something was done for it, for people.
    Told {
        /// The pod.
        uid: PodUid,
        /// The container, where it is about one.
        container: Option<String>,
        /// As of an event: `DNSConfigForming`.
        reason: String,
        /// In the kubelet's words.
        message: String,
    },
}

/// A manifest that cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rejected {
    /// The file, or another name of the place it came from.
    pub origin: String,
    /// `namespace/name`, where it could be read.
    pub pod: Option<String>,
    /// What is wrong: field, value, and what would be right.
    pub error: String,
}

/// What the runtime has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeFacts {
    /// When the listing was asked for (monotonic): what was done later need not be in it.
    pub asked: Micros,
    /// The sandboxes.
    pub sandboxes: Vec<SandboxFact>,
    /// The containers.
    pub containers: Vec<ContainerFact>,
    /// Pods of which an earlier life of the agent left a cgroup (its path; "" where only folders are left). Told once, at start.
    #[serde(default)]
    pub leftovers: Vec<(PodUid, String)>,
    /// What the runtime says it can do.
    #[serde(default)]
    pub features: RuntimeFeatures,
}

/// A pod sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxFact {
    /// The runtime's id.
    pub id: String,
    /// The pod's UID, from its metadata.
    pub uid: PodUid,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// `metadata.attempt`.
    pub attempt: u32,
    /// It is up and has its network.
    pub ready: bool,
    /// Its address, "" for none (host network), or if it could not be found out.
    pub ip: String,
    /// Its other addresses.
    #[serde(default)]
    pub other_ips: Vec<String>,
    /// The runtime says that it has none.
    #[serde(default)]
    pub no_address: bool,
    /// When it was made (wall clock).
    pub created: Micros,
    /// beelet made it (it carries our annotation), so beelet may remove it.
    pub ours: bool,
    /// The cgroup parent it was given, "" where the runtime does not tell.
    pub cgroup_parent: String,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// What was known of the pod's containers, by name, when it was made, from our annotation.
    #[serde(default)]
    pub given: BTreeMap<String, Kept>,
}

/// What a sandbox keeps of a container for the next life of the agent, which may find no run of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What it was admitted with.
    pub resources: Resources,
    /// The attempt of its next run. The runtime forgets runs with the sandbox that they were in.
    pub next_attempt: u32,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFact {
    /// The runtime's id.
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// The pod's UID.
    pub uid: PodUid,
    /// The container's name in the pod.
    pub name: String,
    /// `metadata.attempt`: 0 for the first, so this is also its restart count.
    pub attempt: u32,
    /// The image as it was asked for.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// What it does.
    pub state: ContainerFactState,
    /// The resources it was created with or last updated to, from our annotation.
    pub resources: Option<Resources>,
    /// The grace period of its pod, from our annotation.
    #[serde(default)]
    pub grace: Option<Micros>,
    /// Its first process on the node while it runs; `None` where the runtime does not tell.
    #[serde(default)]
    pub pid: Option<u32>,
    /// Its hook `preStop`, from our annotation.
    #[serde(default)]
    pub pre_stop: Option<Hook>,
    /// Who its first process runs as; `None` where the runtime does not tell.
    #[serde(default)]
    pub user: Option<LinuxUser>,
}

/// Who a container's first process runs as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxUser {
    /// The user's id.
    pub uid: i64,
    /// The id of its first group.
    pub gid: i64,
    /// The ids of its other groups.
    pub groups: Vec<i64>,
}

impl ContainerFact {
    /// The code it ended with; `None` while it has not.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        match &self.state {
            ContainerFactState::Exited(exit) => Some(exit.code),
            _ => None,
        }
    }
}

/// The state of a container in the runtime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerFactState {
    /// Made, not started.
    Created,
    /// Started.
    Running {
        /// When (wall clock).
        started: Micros,
    },
    /// Ended.
    Exited(Exit),
    /// The runtime does not know.
    Unknown,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// When it was started (wall clock).
    pub started: Micros,
    /// When it ended (wall clock).
    pub finished: Micros,
    /// The exit code; 128 + n for signal n.
    pub code: i32,
    /// The runtime's word: `Completed`, `Error`, `OOMKilled`, ...
    pub reason: String,
    /// The runtime's message.
    pub message: String,
}

/// Numbers the operations of the agent's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OpId(pub u64);

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// An operation of a pod; ends with [`Event::Done`].
    Pod {
        /// Which pod.
        uid: PodUid,
        /// Its number.
        op: OpId,
        /// What.
        what: PodOp,
    },
    /// Ask a container whether it is well. Ends with [`Event::Probe`]. Of a run and a kind there is one under way at most.
    Probe {
        /// Which pod.
        uid: PodUid,
        /// The container's name.
        container: String,
        /// The run: the runtime's id.
        run: String,
        /// For what.
        kind: ProbeKind,
        /// How.
        handler: Handler,
        /// One try ends after this time.
        timeout: Micros,
        /// The pod's address, "" for none (host network).
        ip: String,
    },
    /// See that the written files of a running pod say what it says now ([`crate::content`]). Nothing is awaited; it may be done any number
    /// of times.
    Refresh(Arc<PodSpec>),
    /// Kill every process of a pod now, past all queues: the kernel's OOM killer is near. Nothing is awaited.
    Kill {
        /// Which pod.
        uid: PodUid,
        /// The pod's cgroup, relative to the hierarchies' roots.
        cgroup: String,
    },
    /// Give up what is under way for this pod if it may take long (an image pull, a stop); it ends as failed, with the reason
    /// [`CANCELLED`].
    Cancel {
        /// Which pod.
        uid: PodUid,
    },
    /// Make these cgroups (`kubepods` and the QoS classes) with these values.
    Cgroups(Vec<PodCgroup>),
    /// Write a knob of a cgroup.
    Knob(KnobWrite),
    /// Free so much of a cgroup's memory, if the kernel can (`memory.reclaim`).
    ReclaimMemory {
        /// The cgroup, relative to the hierarchies' roots.
        cgroup: String,
        /// At most so much.
        bytes: Bytes,
    },
    /// List what the runtime has.
    Relist,
    /// Take samples this far apart from now on, until told otherwise.
    SampleEvery {
        /// The distance.
        interval: Micros,
        /// Look at every pod, not only at the node and `kubepods`.
        all_pods: bool,
        /// The factor on the distance of full looks and of looks at details, in thousandths: 1000 for none. More than that only
        /// while `all_pods` is false.
        #[serde(default = "no_stretch")]
        stretch: u32,
    },
    /// Read the room on file systems and among process ids this far apart from now on ([`Event::Disks`]). At less than 10 s the use of
    /// pods is found out more often as well, and first of all at once.
    LookAtDisks {
        /// The distance.
        interval: Micros,
    },
    /// Free what the node itself can. Ends with an [`Event::Disks`] that says what came of it, whatever happens.
    Reclaim {
        /// Dead containers to be removed: the runtime's ids.
        containers: Vec<String>,
        /// Dead sandboxes to be removed.
        sandboxes: Vec<String>,
        /// Remove the images that nobody uses.
        images: bool,
    },
    /// Send [`Event::Tick`] at this moment (monotonic). A later one replaces an earlier one.
    WakeAt(Micros),
    /// Write down how a pod ended, so that a restarted agent does not run it again.
    Remember(Terminal),
    /// Write down what is shown of a pod, so that a restarted agent shows no change where there was none. It replaces an older one.
    Note(PodNote),
    /// Forget what [`Action::Remember`] and [`Action::Note`] wrote down: the pod is gone.
    Forget(PodUid),
    /// Write down by when a pod has to be gone, so that a restarted agent does not give it its time again.
    Going {
        /// Which pod.
        uid: PodUid,
        /// When its last process is killed at the latest (wall clock); `None` to forget it.
        until: Option<Micros>,
    },
    /// Tell people.
    Record(Record),
}

fn no_stretch() -> u32 {
    crate::budget::NONE
}

/// A pull that ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// How long the runtime took.
    pub took: Micros,
    /// And with the wait for a turn.
    pub in_all: Micros,
    /// The image's size; zero where it is not known.
    pub size: Bytes,
}

/// The end of a pod that is still wanted: it will not run again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Which pod.
    pub uid: PodUid,
    /// `Succeeded` or `Failed`.
    pub phase: crate::snapshot::Phase,
    /// `status.reason`, "" for none.
    pub reason: String,
    /// `status.message`.
    pub message: String,
    /// The message of its condition `DisruptionTarget`; `None` where it did not have to make room.
    #[serde(default)]
    pub disruption: Option<String>,
    /// The last end of each container, with its restart count.
    pub exits: Vec<(String, u32, Exit)>,
}

/// An operation of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodOp {
    /// Make the pod's cgroup (and its QoS class's) with these values, and its folders and volumes.
    Prepare {
        /// The pod.
        spec: Arc<PodSpec>,
        /// The cgroup to make.
        cgroup: PodCgroup,
    },
    /// Run the sandbox. Ends with [`Done::Sandbox`].
    StartSandbox {
        /// The pod.
        spec: Arc<PodSpec>,
        /// What it is to keep of the pod's containers.
        #[serde(default)]
        given: BTreeMap<String, Kept>,
        /// The pod's cgroup.
        cgroup: String,
        /// Counts the sandboxes of this pod.
        attempt: u32,
    },
    /// See that the image is there, pulling it if the policy says so. Ends with [`Done::Image`].
    EnsureImage {
        /// The image.
        image: String,
        /// The policy.
        pull: crate::spec::PullPolicy,
    },
    /// Create and start a container. Ends with [`Done::Container`].
    StartContainer {
        /// The pod.
        spec: Arc<PodSpec>,
        /// The container's name.
        container: String,
        /// Counts the runs of this container.
        attempt: u32,
        /// The sandbox.
        sandbox_id: String,
        /// The sandbox's address, for `status.podIP`.
        pod_ip: String,
        /// The pod's cgroup.
        cgroup: String,
        /// What the runtime is told.
        linux: LinuxResources,
    },
    /// Run the hook `postStart` of a container.
    PostStart {
        /// The pod.
        spec: Arc<PodSpec>,
        /// The container's name.
        container: String,
        /// The run: the runtime's id.
        id: String,
        /// The pod's address, "" for none (host network).
        ip: String,
    },
    /// Stop these containers, each by itself: first its hook, for at most `grace`, then its stop signal, then SIGKILL after what the hook
    /// left of the grace ([`crate::stop::after_hook`]).
    StopContainers {
        /// Which.
        stops: Vec<Stop>,
        /// The time for all of it.
        grace: Micros,
        /// The pod's address, "" for none (host network).
        ip: String,
    },
    /// Remove dead containers.
    RemoveContainers {
        /// The runtime's ids.
        ids: Vec<String>,
    },
    /// Stop and remove these sandboxes with everything in them.
    RemoveSandboxes {
        /// The runtime's ids.
        ids: Vec<String>,
    },
    /// Remove the pod's cgroup, folders and volumes.
    Cleanup {
        /// Its UID, which names its folders.
        uid: PodUid,
        /// The pod's cgroup, relative to the hierarchies' roots.
        cgroup: String,
        /// Its logs stay: it has ended, and is still wanted.
        keep_logs: bool,
    },
    /// Apply changed resources in place, in the given order.
    Resize {
        /// The pod with its new resources.
        spec: Arc<PodSpec>,
        /// What to write to the pod's cgroup.
        pod: PodCgroup,
        /// Write the pod's cgroup before its containers (a raise) or after them (a cut).
        pod_first: bool,
        /// Running containers: id, name, values.
        containers: Vec<(String, String, LinuxResources)>,
    },
}

impl PodOp {
    /// A short name for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Prepare { .. } => "prepare",
            Self::StartSandbox { .. } => "start_sandbox",
            Self::EnsureImage { .. } => "ensure_image",
            Self::StartContainer { .. } => "start_container",
            Self::PostStart { .. } => "post_start",
            Self::StopContainers { .. } => "stop_containers",
            Self::RemoveContainers { .. } => "remove_containers",
            Self::RemoveSandboxes { .. } => "remove_sandboxes",
            Self::Cleanup { .. } => "cleanup",
            Self::Resize { .. } => "resize",
        }
    }
}

/// How an operation succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// Nothing to tell.
    Ok,
    /// Folders and volumes are there.
    Prepared {
        /// How often each container was run before, by the logs that are there; those without any are left out.
        runs: Vec<(String, u32)>,
    },
    /// The image is there.
    Image {
        /// It was pulled just now, and this is how long it took.
        pulled: Option<Pulled>,
    },
    /// The sandbox runs.
    Sandbox(SandboxFact),
    /// The container runs (or ran already to its end: the next facts tell).
    Container {
        /// The runtime's id.
        id: String,
        /// When it was started (wall clock).
        started: Micros,
    },
}

/// The reason of an operation that was given up by [`Action::Cancel`].
pub const CANCELLED: &str = "Cancelled";

/// How an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpError {
    /// The kubelet's reason where it has one (`ErrImagePull`, `CreateContainerError`, `RunContainerError`, ...).
    pub reason: String,
    /// What happened, for people.
    pub message: String,
}

/// The cgroup of a pod and the values of its knobs. `None` leaves a knob at the kernel's default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCgroup {
    /// Relative to the hierarchies' roots, without a leading slash: `kubepods/burstable/pod<uid>`.
    pub path: String,
    /// The knobs.
    pub knobs: CgroupKnobs,
}

/// The knobs of a cgroup, in the v1 unit for CPU (shares), from which a v2 weight is made where it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupKnobs {
    /// `cpu.shares`, 2..=262144.
    pub cpu_shares: Option<u64>,
    /// `cpu.max` quota per period; `None` for no limit.
    pub cpu_quota: Option<Micros>,
    /// `cpu.max` period.
    pub cpu_period: Micros,
    /// `memory.max`; `None` for no limit.
    pub memory_max: Option<Bytes>,
}

/// What the runtime is told of a container (CRI LinuxContainerResources).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxResources {
    /// The same knobs as a pod's.
    pub knobs: CgroupKnobs,
    /// `oom_score_adj`, -1000..=1000.
    pub oom_score_adj: i32,
    /// What they were made from, for the annotation that a restarted agent reads.
    pub resources: Resources,
}

/// A write to a knob outside the life of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnobWrite {
    /// The cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// The pod and container it is for.
    pub target: (PodUid, String),
    /// What to write.
    pub knob: Knob,
    /// Why, for the journal.
    pub why: String,
}

/// Knobs that beelet turns by its own decision, each with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Knob {
    /// `cpu.max.burst`, v1 `cpu.cfs_burst_us`: unused quota that may be spent later.
    CpuBurst(Micros),
    /// `memory.high` (v2 only): above it allocations are slowed down; `None` for no such bound.
    MemoryHigh(Option<Bytes>),
    /// `memory.max`, v1 `memory.limit_in_bytes`; `None` for no limit. It is never cut below what is held.
    MemoryMax(Option<Bytes>),
    /// `cgroup.freeze`: nothing in it runs.
    Freeze(bool),
}

/// Something that people should know: goes to the log, to `/debug/explain` and to counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When.
    pub at: crate::units::Now,
    /// About which pod; `None` for the node.
    pub uid: Option<PodUid>,
    /// `namespace/name` of the pod, or the node's name.
    pub name: String,
    /// The container, where it is about one.
    pub container: Option<String>,
    /// It is a warning.
    pub warning: bool,
    /// The kubelet's event reason where it has one: `Started`, `BackOff`, `Evicted`, ...
    pub reason: String,
    /// What happened, in the kubelet's words where it has them.
    pub message: String,
    /// What was seen that led to it: name and value.
    pub evidence: Vec<(String, String)>,
}

/// CPU and memory, for reservations and capacity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceList {
    /// CPU.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
}
