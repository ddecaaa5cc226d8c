//! Rules for evictions: beelet's, and those of others, on the same signals.
//!
//! Problem: "better than" needs the others at their best, on the same node. Approach: one small trait, [`Rules`]: it is shown the node
//! when it wants to look, says who goes, and when it looks next. Beelet's is the real core; the others are their algorithms, with
//! the numbers of their sources, reduced to what can happen on a node without swap. What each does after its decision, and how long
//! that takes, is in [`Rules::kills_after`] and [`Rules::cleans_after`].
//!
//! What is in favour of the others: their looks cost no time and are never late, and lmkd kills all of a pod where it would kill one
//! process.

mod beelet;
mod kubelet;
mod lmkd;
mod oomd;

pub use beelet::Beelet;
pub use kubelet::Kubelet;
pub use lmkd::Lmkd;
pub use oomd::Oomd;

use beelet_core::sample::{MemoryReading, PodReading, Pressure, Sample};
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;

use crate::kernel::Kernel;
use crate::kernel::reclaim::VmStat;

/// What is there to be seen.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// The node, `kubepods` and all pods with a cgroup.
    pub sample: Sample,
    /// The node's reclaim.
    pub vm: VmStat,
}

impl Look {
    /// Now.
    #[must_use]
    pub fn at(kernel: &Kernel) -> Self {
        let pods = kernel.groups.keys().filter_map(|uid| kernel.pod(uid)).collect();
        let sample = Sample {
            at: kernel.now(),
            node: kernel.node(),
            kubepods: Some(kernel.kubepods(false, false)),
            pods: Some(pods),
            node_detail: None,
        };
        Self { sample, vm: kernel.vmstat() }
    }

    fn pods(&self) -> &[PodReading] {
        self.sample.pods.as_deref().unwrap_or_default()
    }

    fn memory(&self, uid: &PodUid) -> Option<MemoryReading> {
        self.pods().iter().find(|p| p.uid == *uid)?.cgroup.memory
    }

    /// Of `kubepods`, and in this model of the node, too: nothing else waits.
    fn pressure(&self) -> Pressure {
        self.sample.kubepods.and_then(|k| k.pressure).map(|p| p.memory).unwrap_or_default()
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Who goes, if anybody.
    pub kill: Option<PodUid>,
    /// The next look (monotonic), later than this one.
    pub next: Micros,
}

/// Rules for evictions.
pub trait Rules {
    /// Their name, in tables.
    fn name(&self) -> &'static str;
    /// From a look that decides until all processes of the victim have SIGKILL: 1 ms for who sends it in the same step.
    fn kills_after(&self) -> Micros {
        Micros::millis(1)
    }
    /// From then until the pod's memory volumes are gone, too; `None` for who does not remove them.
    fn cleans_after(&self) -> Option<Micros> {
        None
    }
    /// Looks.
    fn look(&mut self, look: &Look) -> Verdict;
}
