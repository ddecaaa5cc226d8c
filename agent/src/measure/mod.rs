//! Merges all sources of measurement into samples.
//!
//! Problem: run time and traffic come from eBPF maps by cgroup id, memory and throttling from cgroup files by path, what lies in
//! network namespaces and on disks from system calls that may wait; a container is known by name to the core, by id to the runtime
//! and by inode to the kernel; and any of them may vanish between two reads. Near an OOM the look must come every 20 ms, on a busy
//! node.
//! Approach: one thread of its own (not a task: it must run when the executor is busy) owns all readers that never wait. It is
//! told which pods there are ([`Target`]) and how often to look ([`Command::Pace`]), finds the containers' cgroups by scanning the
//! pods' directories, and sends [`Sample`](beelet_core::sample::Sample)s. Events of the kernel pass through it, because only it
//! knows which cgroup id is whose. What may wait is read by the slow reader ([`Slow`]), of which it takes the newest word.
//!
//! Terms: a *full* look is at every pod; a *quick* look is at the node's memory and `kubepods` only; a look at *details* is a
//! full one that also makes the details of some pods. A reading is *held* if nothing ran since. *Retired*: counters of cgroups
//! that are gone, kept so that a pod's totals never fall.
//!
//! Properties: a value that nobody could read is `None`, never zero; per field, the file leads and eBPF adds; a core that is
//! behind gets the newest samples ([`slot()`]); no flood of messages keeps the thread from looking, nor looks from messages.

mod health;
mod look;
mod network;
mod node;
mod node_detail;
mod open_files;
mod owners;
mod pods;
mod room;
mod slot;
mod slow;
mod storage;
mod suspects;
mod tally;
mod thread;
mod tree;
mod walk;
mod watched;

pub use health::{Health, LookCost};
pub use node_detail::{NodeSources, project_quota};
pub use room::Rooms;
pub use slot::{SampleReceiver, SampleSender, slot};
pub use slow::{NetworkPart, Parts, Slow, SlowHealth, SlowParts};
pub use thread::{Command, Sampler, SamplerParts, SamplerThread};

use beelet_core::spec::PodUid;

/// A pod that is to be measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which pod.
    pub uid: PodUid,
    /// Its cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// Its containers: runtime's id and name. Ids that are not named here are the sandbox's, or not known yet.
    pub containers: Vec<(String, String)>,
    /// It shares the node's network namespace.
    pub host_network: bool,
    /// The name of its log folder; "" where it is not known.
    pub logs: String,
}
