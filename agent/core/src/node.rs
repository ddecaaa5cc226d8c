//! The node's settings, as far as decisions depend on them.
//!
//! The edge (`beelet::config`) fills this from the KubeletConfiguration, the EnforcementPolicy and the machine.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::ResourceList;
use crate::evict::{Signal, Soft, Threshold, disk};
use crate::ladder::Rungs;
use crate::security::NodeSecurity;
use crate::spec::placement::Taint;
use crate::units::{Bytes, Micros, MilliCpu, Ppm};

/// The node's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// The node's name.
    pub name: String,
    /// The kubepods cgroup, relative to the hierarchies' roots, without slashes at its ends: `kubepods`, `bed/kubepods`.
    pub kubepods: String,
    /// What the machine has.
    pub capacity: ResourceList,
    /// `kubeReserved`.
    pub kube_reserved: ResourceList,
    /// `systemReserved`.
    pub system_reserved: ResourceList,
    /// `enforceNodeAllocatable` names `pods`: `kubepods` gets its memory limit.
    pub enforce_pods: bool,
    /// `evictionHard`.
    pub eviction_hard: Vec<Threshold>,
    /// `evictionSoft` with `evictionSoftGracePeriod`, by the signal that they name.
    #[serde(default)]
    pub eviction_soft: BTreeMap<Signal, Soft>,
    /// `evictionMaxPodGracePeriod`: what a victim of a soft threshold is given at most.
    #[serde(default)]
    pub max_pod_grace: Micros,
    /// `evictionMinimumReclaim` of memory.available.
    pub minimum_reclaim: Bytes,
    /// `evictionHard`, `evictionSoft` and `evictionMinimumReclaim` of all signals but memory's.
    #[serde(default)]
    pub eviction_disk: disk::Thresholds,
    /// `localStorageCapacityIsolation`: pods over their own limits of the node's disk are evicted.
    #[serde(default = "yes")]
    pub storage_limits: bool,
    /// `evictionPressureTransitionPeriod`.
    pub pressure_transition: Micros,
    /// `cpuCFSQuota`.
    pub cpu_quota: bool,
    /// `cpuCFSQuotaPeriod`.
    pub cpu_period: Micros,
    /// `maxPods`.
    pub max_pods: u32,
    /// `crashLoopBackOff.maxContainerRestartPeriod`.
    pub max_backoff: Micros,
    /// Pods belong to a kubelet: measure, judge and report, write nothing.
    pub beside: bool,
    /// What beelet may do by its own judgement.
    pub enforce: Enforce,
    /// What may be done before somebody has to go.
    #[serde(default)]
    pub rungs: Rungs,
    /// Burst is given to throttled containers while the node has idle CPU.
    pub burst: bool,
    /// The runtime is told `memory.oom.group`-like behaviour by the kernel only on cgroup v2; here for messages.
    pub cgroup_v2: bool,
    /// What pods may ask for of the node's disk in all: what there is, less what is reserved and the hard threshold of `nodefs.available`.
    #[serde(default = "storage")]
    pub storage: Bytes,
    /// The node's labels: the standard ones and `--node-labels`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `registerWithTaints`.
    #[serde(default)]
    pub taints: Vec<Taint>,
    /// What the node can do for the security of pods.
    #[serde(default)]
    pub security: NodeSecurity,
    /// What the agent itself may use for each 100 pods (at least that much in all), of one core; zero for no budget.
    #[serde(default = "own_budget")]
    pub own_budget: Ppm,
}

fn yes() -> bool {
    true
}

fn storage() -> Bytes {
    Bytes::gib(90)
}

fn own_budget() -> Ppm {
    crate::budget::PER_100_PODS
}

/// `spec.mode` of the EnforcementPolicy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Enforce {
    /// Evict, burst: act.
    #[default]
    Act,
    /// Record what would have been done, and do nothing.
    Observe,
}

impl NodeConfig {
    /// The memory limit of `kubepods`: capacity less reservations (enforceNodeAllocatable: [pods],
    /// pkg/kubelet/cm/node_container_manager_linux.go, release 1.37). The eviction threshold is not subtracted here.
    #[must_use]
    pub fn kubepods_limit(&self) -> ResourceList {
        ResourceList {
            cpu: self.capacity.cpu - self.kube_reserved.cpu - self.system_reserved.cpu,
            memory: self.capacity.memory - self.kube_reserved.memory - self.system_reserved.memory,
        }
    }

    /// What may be given to pods: the limit of `kubepods` less the hard eviction threshold of memory.
    #[must_use]
    pub fn allocatable(&self) -> ResourceList {
        let limit = self.kubepods_limit();
        let threshold =
            self.eviction_hard.iter().map(|t| t.quantity(self.capacity.memory)).max().unwrap_or(Bytes::ZERO);
        ResourceList { cpu: limit.cpu, memory: limit.memory - threshold }
    }
}

impl Default for NodeConfig {
    /// A node of two cores, 4 GiB and 90 GiB of disk for pods with the kubelet's defaults; tests start from here.
    fn default() -> Self {
        Self {
            name: "node".to_owned(),
            kubepods: "kubepods".to_owned(),
            capacity: ResourceList { cpu: MilliCpu(2_000), memory: Bytes::gib(4) },
            kube_reserved: ResourceList::default(),
            system_reserved: ResourceList::default(),
            enforce_pods: true,
            eviction_hard: vec![Threshold::default()],
            eviction_soft: BTreeMap::new(),
            max_pod_grace: Micros::ZERO,
            minimum_reclaim: Bytes::ZERO,
            eviction_disk: disk::Thresholds::default(),
            storage_limits: true,
            pressure_transition: Micros::secs(300),
            cpu_quota: true,
            cpu_period: Micros::millis(100),
            max_pods: 110,
            max_backoff: Micros::secs(300),
            beside: false,
            enforce: Enforce::Act,
            rungs: Rungs::default(),
            burst: true,
            cgroup_v2: true,
            storage: storage(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            security: NodeSecurity::default(),
            own_budget: own_budget(),
        }
    }
}
