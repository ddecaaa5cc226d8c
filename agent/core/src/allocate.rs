//! What a node, a pod and a container are given.
//!
//! Problem: the same requests and limits must become the same numbers as the kubelet's, or a pod behaves differently under beelet;
//! and a changed limit must never push a running container into the OOM killer.
//! Approach: pure functions from settings and specs to knob values (pkg/kubelet/cm/helpers_linux.go,
//! pkg/kubelet/kuberuntime/kuberuntime_container_linux.go, pkg/kubelet/qos/policy.go, release 1.37), a check for admission, a plan for
//! an in-place resize, and [`BurstController`], which lends unused CPU to throttled cgroups.
//!
//! Terms: *shares* are the v1 unit 2..=262144, 1024 for a core; a v2 weight is made from them where it is written
//! ([`weight_from_shares`]). *Unlimited* is `None`.
//!
//! Properties (tested): what is admitted never exceeds allocatable; a pod's knobs cover those of each of its containers; a planned
//! memory limit is never below what reclaim cannot free plus a margin; burst never exceeds quota and flips at most once per
//! [`BURST_HOLD`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::event::{CgroupKnobs, LinuxResources, PodCgroup, ResourceList};
use crate::node::NodeConfig;
use crate::restart;
use crate::sample::MemoryReading;
use crate::spec::{ContainerSpec, PodSpec, QosClass, Resources};
use crate::units::{Bytes, Micros, MilliCpu, Ppm};

/// `MinShares` of the kernel.
pub const MIN_SHARES: u64 = 2;
/// `MaxShares` of the kernel.
pub const MAX_SHARES: u64 = 262_144;
/// The kernel refuses a quota of less (`minQuotaPeriod`).
pub const MIN_QUOTA: Micros = Micros::millis(1);
/// The priority of `system-node-critical` (pkg/apis/scheduling/types.go).
pub const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;
/// `oom_score_adj` of Guaranteed and node-critical pods (pkg/kubelet/qos/policy.go).
pub const GUARANTEED_OOM_SCORE: i32 = -997;
/// `oom_score_adj` of BestEffort pods.
pub const BEST_EFFORT_OOM_SCORE: i32 = 1_000;
/// A memory limit is cut only to where at least this, or a sixteenth of what reclaim cannot free, stays free.
pub const RESIZE_MARGIN: Bytes = Bytes::mib(16);

/// Shares of a request (`MilliCPUToShares`): `cpu * 1024 / 1000` within the kernel's range.
#[must_use]
pub fn shares(cpu: MilliCpu) -> u64 {
    cpu.scale(1_024, 1_000).get().clamp(MIN_SHARES, MAX_SHARES)
}

/// The quota of a limit (`MilliCPUToQuota`): at least 1 ms; `None` for a limit of zero.
#[must_use]
pub fn quota(cpu: MilliCpu, period: Micros) -> Option<Micros> {
    (cpu > MilliCpu::ZERO).then(|| Micros(cpu.scale(period.get(), 1_000).get()).max(MIN_QUOTA))
}

/// `cpu.weight` (1..=10000) of shares, by the linear rule of runc before 1.3.2 and crun before 1.23, which the container runtimes of
/// our beds use too: a pod's weight must be on the same scale as its containers'. Newer runtimes use a curve by which 1024 shares
/// are a weight of 100 and not of 39.
#[must_use]
pub fn weight_from_shares(shares: u64) -> u64 {
    1 + (shares.clamp(MIN_SHARES, MAX_SHARES) - MIN_SHARES) * 9_999 / 262_142
}

/// The path of a QoS class's cgroup: Guaranteed pods are directly in `kubepods`.
#[must_use]
pub fn qos_path(node: &NodeConfig, qos: QosClass) -> String {
    match qos {
        QosClass::Guaranteed => node.kubepods.clone(),
        QosClass::Burstable => format!("{}/burstable", node.kubepods),
        QosClass::BestEffort => format!("{}/besteffort", node.kubepods),
    }
}

/// The path of a pod's cgroup.
#[must_use]
pub fn pod_path(node: &NodeConfig, pod: &PodSpec) -> String {
    format!("{}/pod{}", qos_path(node, pod.qos()), pod.uid)
}

/// The path of a container's cgroup with the cgroupfs driver.
#[must_use]
pub fn container_path(pod_path: &str, id: &str) -> String {
    format!("{pod_path}/{id}")
}

/// What a pod asks for: per resource the sum over its containers and sidecars, or the largest of its init containers with the sidecars
/// before it if that is more (`resource.PodRequests` of k8s.io/component-helpers).
#[must_use]
pub fn pod_requests(pod: &PodSpec) -> ResourceList {
    ResourceList {
        cpu: sum_or_max(pod, |c| cpu_request(&c.resources)).map(MilliCpu).unwrap_or_default(),
        memory: sum_or_max(pod, |c| memory_request(&c.resources)).map(Bytes).unwrap_or_default(),
    }
}

/// The pod's CPU limit, by the same rule; `None` if a container has none.
#[must_use]
pub fn pod_cpu_limit(pod: &PodSpec) -> Option<MilliCpu> {
    let limit = |c: &ContainerSpec| c.resources.cpu_limit.map(MilliCpu::get).filter(|&l| l > 0);
    pod.all_containers().all(|c| limit(c).is_some()).then(|| sum_or_max(pod, limit).map(MilliCpu))?
}

/// The pod's memory limit, by the same rule; `None` if a container has none.
#[must_use]
pub fn pod_memory_limit(pod: &PodSpec) -> Option<Bytes> {
    let limit = |c: &ContainerSpec| c.resources.memory_limit.map(Bytes::get).filter(|&l| l > 0);
    pod.all_containers().all(|c| limit(c).is_some()).then(|| sum_or_max(pod, limit).map(Bytes))?
}

/// What a pod asks for of the node's disk, by the same rule.
#[must_use]
pub fn pod_storage_request(pod: &PodSpec) -> Bytes {
    sum_or_max(pod, |c| c.storage.request.or(c.storage.limit).map(Bytes::get)).map(Bytes).unwrap_or_default()
}

/// What a pod may use of it, by the same rule over the containers that have a limit; `None` if none has one (`resource.PodLimits` of k8s.io/component-helpers: containers without a limit add nothing).
#[must_use]
pub fn pod_storage_limit(pod: &PodSpec) -> Option<Bytes> {
    sum_or_max(pod, |c| c.storage.limit.map(Bytes::get)).map(Bytes)
}

fn cpu_request(r: &Resources) -> Option<u64> {
    r.cpu_request.or(r.cpu_limit).map(MilliCpu::get)
}

fn memory_request(r: &Resources) -> Option<u64> {
    r.memory_request.or(r.memory_limit).map(Bytes::get)
}

fn sum_or_max(pod: &PodSpec, of: impl Fn(&ContainerSpec) -> Option<u64>) -> Option<u64> {
    let add = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    };
    let (mut sidecars, mut most) = (None, None);
    for init in &pod.init_containers {
        let with = add(sidecars, of(init));
        most = most.max(with);
        if restart::is_sidecar(pod, init) {
            sidecars = with;
        }
    }
    most.max(pod.containers.iter().fold(sidecars, |sum, c| add(sum, of(c))))
}

/// `kubepods`: shares and memory limit of capacity less reservations (pkg/kubelet/cm/node_container_manager_linux.go).
#[must_use]
pub fn kubepods(node: &NodeConfig) -> PodCgroup {
    let limit = node.kubepods_limit();
    let knobs = CgroupKnobs {
        cpu_shares: Some(shares(limit.cpu)),
        cpu_quota: None,
        cpu_period: node.cpu_period,
        memory_max: node.enforce_pods.then_some(limit.memory),
    };
    PodCgroup { path: node.kubepods.clone(), knobs }
}

/// The cgroups of the classes Burstable (shares of what its pods ask for together) and BestEffort (least shares), in this order
/// (pkg/kubelet/cm/qos_container_manager_linux.go). `pods` are the pods that have cgroups; those of other classes are not counted.
#[must_use]
pub fn qos_cgroups<'a>(node: &NodeConfig, pods: impl IntoIterator<Item = &'a PodSpec>) -> [PodCgroup; 2] {
    let burstable = pods.into_iter().filter(|p| p.qos() == QosClass::Burstable).map(|p| pod_requests(p).cpu).sum();
    let with = |qos, cpu_shares| PodCgroup {
        path: qos_path(node, qos),
        knobs: CgroupKnobs { cpu_shares: Some(cpu_shares), cpu_period: node.cpu_period, ..CgroupKnobs::default() },
    };
    [with(QosClass::Burstable, shares(burstable)), with(QosClass::BestEffort, MIN_SHARES)]
}

/// A pod's cgroup (`ResourceConfigForPod`): shares of its requests; quota and memory limit only if every container has one.
#[must_use]
pub fn pod_cgroup(node: &NodeConfig, pod: &PodSpec) -> PodCgroup {
    let knobs = CgroupKnobs {
        cpu_shares: Some(shares(pod_requests(pod).cpu)),
        cpu_quota: pod_cpu_limit(pod).filter(|_| node.cpu_quota).and_then(|l| quota(l, node.cpu_period)),
        cpu_period: node.cpu_period,
        memory_max: pod_memory_limit(pod),
    };
    PodCgroup { path: pod_path(node, pod), knobs }
}

/// What the runtime is told of a container (`generateLinuxContainerResources`).
#[must_use]
pub fn linux_resources(node: &NodeConfig, pod: &PodSpec, container: &ContainerSpec) -> LinuxResources {
    let resources = container.resources;
    let knobs = CgroupKnobs {
        cpu_shares: Some(shares(cpu_request(&resources).map(MilliCpu).unwrap_or_default())),
        cpu_quota: resources.cpu_limit.filter(|_| node.cpu_quota).and_then(|l| quota(l, node.cpu_period)),
        cpu_period: node.cpu_period,
        memory_max: resources.memory_limit.filter(|&l| l > Bytes::ZERO),
    };
    LinuxResources { knobs, oom_score_adj: oom_score_adj(node, pod, container), resources }
}

/// `GetContainerOOMScoreAdjust` of pkg/kubelet/qos/policy.go: node-critical and Guaranteed -997, BestEffort 1000, Burstable
/// `1000 - 1000 * request / capacity` in 3..=999. A sidecar of a Burstable pod has no more than the main container that asks for least.
#[must_use]
pub fn oom_score_adj(node: &NodeConfig, pod: &PodSpec, container: &ContainerSpec) -> i32 {
    if pod.priority >= NODE_CRITICAL_PRIORITY {
        return GUARANTEED_OOM_SCORE;
    }
    match pod.qos() {
        QosClass::Guaranteed => GUARANTEED_OOM_SCORE,
        QosClass::BestEffort => BEST_EFFORT_OOM_SCORE,
        QosClass::Burstable => {
            let request = |c: &ContainerSpec| memory_request(&c.resources).map(Bytes).unwrap_or_default();
            let score = |request: Bytes| {
                let share = request.scale(1_000, node.capacity.memory.get()).get().min(1_000);
                BEST_EFFORT_OOM_SCORE - i32::try_from(share).unwrap_or(BEST_EFFORT_OOM_SCORE)
            };
            let least = || pod.containers.iter().map(request).min().unwrap_or_default();
            let own = score(request(container));
            let score = if restart::is_sidecar(pod, container) { own.min(score(least())) } else { own };
            score.clamp(BEST_EFFORT_OOM_SCORE + GUARANTEED_OOM_SCORE, BEST_EFFORT_OOM_SCORE - 1)
        }
    }
}

/// Why a pod cannot be admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}")]
pub struct Insufficient {
    /// `pods`, `cpu` (in millicores), `memory` or `ephemeral-storage` (in bytes).
    pub resource: &'static str,
    /// What the pod asks for.
    pub requested: u64,
    /// What others were given.
    pub used: u64,
    /// What may be given.
    pub capacity: u64,
}

impl Insufficient {
    /// `status.reason`: `OutOfpods`, `OutOfcpu`, `OutOfmemory`, `OutOfephemeral-storage`.
    #[must_use]
    pub fn reason(&self) -> String {
        format!("OutOf{}", self.resource)
    }
}

/// What is short for the pod beside `others` (the pods that were admitted and have not ended). The order is the kubelet's
/// (`noderesources.Fits`); a resource that is not asked for is not checked.
#[must_use]
pub fn short<'a>(node: &NodeConfig, others: impl IntoIterator<Item = &'a PodSpec>, pod: &PodSpec) -> Vec<Insufficient> {
    let (mut count, mut used, mut used_storage) = (0_u64, ResourceList::default(), Bytes::ZERO);
    for other in others {
        let requests = pod_requests(other);
        count += 1;
        used.cpu += requests.cpu;
        used.memory += requests.memory;
        used_storage += pod_storage_request(other);
    }
    let (allocatable, wanted) = (node.allocatable(), pod_requests(pod));
    let all = [
        ("pods", 1, count, u64::from(node.max_pods)),
        ("cpu", wanted.cpu.get(), used.cpu.get(), allocatable.cpu.get()),
        ("memory", wanted.memory.get(), used.memory.get(), allocatable.memory.get()),
        ("ephemeral-storage", pod_storage_request(pod).get(), used_storage.get(), node.storage.get()),
    ];
    let is_short = |&(_, requested, used, capacity): &(_, u64, u64, u64)| {
        requested != 0 && requested > capacity.saturating_sub(used)
    };
    let why = |(resource, requested, used, capacity)| Insufficient { resource, requested, used, capacity };
    all.into_iter().filter(is_short).map(why).collect()
}

/// Does the pod fit beside `others`?
///
/// # Errors
/// The first resource that is short.
pub fn admit<'a>(
    node: &NodeConfig,
    others: impl IntoIterator<Item = &'a PodSpec>,
    pod: &PodSpec,
) -> Result<(), Insufficient> {
    short(node, others, pod).into_iter().next().map_or(Ok(()), Err)
}

/// What to do about changed resources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResizePlan {
    /// Nothing differs.
    Nothing,
    /// Write these values.
    Apply {
        /// The pod's cgroup before its containers (more CPU, or more memory at equal CPU), or after them.
        pod_first: bool,
        /// The pod's cgroup.
        pod: PodCgroup,
        /// The changed containers by name.
        containers: Vec<(String, LinuxResources)>,
    },
    /// Not now; ask again with later readings.
    Deferred {
        /// Why, for people.
        why: String,
    },
    /// Never on this node.
    Infeasible {
        /// Why, for people.
        why: String,
    },
}

/// The memory in use at present, for [`resize`].
#[derive(Clone, Debug, Default)]
pub struct InUse {
    /// Of the pod's cgroup.
    pub pod: Option<MemoryReading>,
    /// Of the running containers by name. A container that is not in here does not run and may get any limit.
    pub containers: BTreeMap<String, Option<MemoryReading>>,
}

/// Plans a change of a running pod's resources in place (KEP-1287): `new` differs from `old` only in resources.
///
/// A pod that would not fit the empty node, or would change its QoS class (its cgroup's path), is infeasible. One that does not fit
/// beside `others` now, or whose memory limit would come below what reclaim cannot free plus [`RESIZE_MARGIN`], is deferred; so is
/// a cut of a limit without a reading. On mixed changes the order follows CPU, because only there the kernel refuses a child
/// with more than its parent (v1 `cpu.cfs_quota_us`); memory limits may pass each other for a moment, and each is safe by itself.
#[must_use]
pub fn resize<'a>(
    node: &NodeConfig,
    others: impl IntoIterator<Item = &'a PodSpec>,
    old: &PodSpec,
    new: &PodSpec,
    in_use: &InUse,
) -> ResizePlan {
    if old.qos() != new.qos() {
        let why = format!("Pod QOS Class may not change as a result of resizing ({:?} to {:?})", old.qos(), new.qos());
        return ResizePlan::Infeasible { why };
    }
    let (before, pod) = (pod_cgroup(node, old), pod_cgroup(node, new));
    let mut containers = Vec::new();
    for container in new.all_containers() {
        let linux = linux_resources(node, new, container);
        if old.container(&container.name).map(|c| linux_resources(node, old, c)) != Some(linux) {
            containers.push((container.name.clone(), linux));
        }
    }
    if containers.is_empty() && before.knobs == pod.knobs {
        return ResizePlan::Nothing;
    }
    if let Err(short) = admit(node, [], new) {
        return ResizePlan::Infeasible { why: short.to_string() };
    }
    // A cut always fits, also on a node whose reservations grew under its pods.
    let (asked, had) = (pod_requests(new), pod_requests(old));
    if (asked.cpu > had.cpu || asked.memory > had.memory)
        && let Err(short) = admit(node, others, new)
    {
        return ResizePlan::Deferred { why: short.to_string() };
    }
    if let Err(why) = room("the pod", before.knobs.memory_max, pod.knobs.memory_max, in_use.pod) {
        return ResizePlan::Deferred { why };
    }
    for (name, linux) in &containers {
        let Some(reading) = in_use.containers.get(name) else { continue };
        let was = old.container(name).and_then(|c| c.resources.memory_limit);
        if let Err(why) = room(&format!("container {name}"), was, linux.knobs.memory_max, *reading) {
            return ResizePlan::Deferred { why };
        }
    }
    let no_limit = |v: Option<u64>| v.unwrap_or(u64::MAX);
    let cpu = |k: &CgroupKnobs| no_limit(k.cpu_quota.map(Micros::get));
    let memory = |k: &CgroupKnobs| no_limit(k.memory_max.map(Bytes::get));
    let (a, b) = (&before.knobs, &pod.knobs);
    let pod_first = cpu(b) > cpu(a) || (cpu(b) == cpu(a) && memory(b) >= memory(a));
    ResizePlan::Apply { pod_first, pod, containers }
}

/// The lowest memory limit that may be written to a cgroup that holds this.
#[must_use]
pub fn lowest_limit(memory: &MemoryReading) -> Bytes {
    let held = memory.unreclaimable();
    held + RESIZE_MARGIN.max(held.scale(1, 16))
}

fn room(what: &str, before: Option<Bytes>, after: Option<Bytes>, reading: Option<MemoryReading>) -> Result<(), String> {
    let Some(after) = after else { return Ok(()) };
    // A limit that was raised for a while (the ladder) is cut by any resize. The kernel keeps whole pages.
    let raised = reading.and_then(|r| r.limit).is_some_and(|now| now > after + Bytes::mib(1));
    if !raised && before.is_some_and(|before| before <= after) {
        return Ok(());
    }
    let Some(reading) = reading else {
        return Err(format!("no reading of the memory of {what}, and a limit is not cut blindly to {after}"));
    };
    let lowest = lowest_limit(&reading);
    if after >= lowest {
        return Ok(());
    }
    let held = reading.unreclaimable();
    Err(format!(
        "{what} holds {held} that cannot be reclaimed; a limit of {after} leaves too little (at least {lowest})"
    ))
}

/// Burst is given while at least this share of the node's CPU time is idle: what is lent must be there, with room for the lender to
/// be wrong by half until [`BURST_IDLE_LOW`].
pub const BURST_IDLE: Ppm = Ppm(100_000);
/// Burst is taken back when less than this share is idle.
pub const BURST_IDLE_LOW: Ppm = Ppm(50_000);
/// Throttling counts as present for this long after it was last seen.
pub const BURST_RECENT: Micros = Micros::secs(1);
/// Without throttling for this long, burst is taken back.
pub const BURST_UNNEEDED: Micros = Micros::secs(30);
/// The least time between two flips.
pub const BURST_HOLD: Micros = Micros::secs(5);

/// A change of `cpu.max.burst`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BurstChange {
    /// The new value; zero takes it back.
    pub burst: Micros,
    /// Why, for the journal.
    pub why: String,
}

/// Lends unused CPU to one throttled cgroup (a container's, or a pod's that has a quota of its own: both throttle).
///
/// The kernel lets a cgroup save unused quota up to `cpu.max.burst` (at most its quota; since 5.14) and spend it later.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BurstController {
    given: Micros,
    flipped: Option<Micros>,
    needed: Option<Micros>,
}

impl BurstController {
    /// Goes on with a burst that an earlier run of the agent gave.
    #[must_use]
    pub fn adopt(given: Micros, now: Micros) -> Self {
        Self { given, flipped: Some(now), needed: Some(now) }
    }

    /// What is given at present.
    #[must_use]
    pub fn given(&self) -> Micros {
        self.given
    }

    /// Decides anew. `throttled_at`: when throttling was last seen ([`crate::model::CgroupModel::throttled_at`]); `idle`: the idle
    /// share of the node's CPU time, `None` where it is not known (then nothing is given, and nothing is taken); `quota`: the
    /// cgroup's present quota. A burst above a lowered quota, or without one, is corrected at once. The
    /// kernel refuses a quota below the burst, so before a resize call this with the quota to come and write the result first.
    pub fn step(
        &mut self,
        now: Micros,
        throttled_at: Option<Micros>,
        idle: Option<Ppm>,
        quota: Option<Micros>,
    ) -> Option<BurstChange> {
        let highest = quota.unwrap_or_default();
        if self.given > highest {
            return Some(self.change(now, highest, format!("quota is now {highest}")));
        }
        let recent = throttled_at.filter(|&at| now - at <= BURST_RECENT);
        self.needed = self.needed.max(throttled_at);
        if self.flipped.is_some_and(|at| now - at < BURST_HOLD) {
            return None;
        }
        let idle = idle?;
        if self.given == Micros::ZERO {
            if recent.is_none() || highest == Micros::ZERO || idle < BURST_IDLE {
                return None;
            }
            return Some(self.change(
                now,
                highest,
                format!("throttled while {}% of the node's CPU is idle", idle.get() / 10_000),
            ));
        }
        if idle < BURST_IDLE_LOW {
            return Some(self.change(
                now,
                Micros::ZERO,
                format!("only {}% of the node's CPU is idle", idle.get() / 10_000),
            ));
        }
        if self.needed.is_none_or(|at| now - at >= BURST_UNNEEDED) {
            return Some(self.change(now, Micros::ZERO, format!("not throttled for {BURST_UNNEEDED}")));
        }
        None
    }

    fn change(&mut self, now: Micros, burst: Micros, why: String) -> BurstChange {
        self.given = burst;
        self.flipped = Some(now);
        if burst > Micros::ZERO {
            self.needed = self.needed.max(Some(now));
        }
        BurstChange { burst, why }
    }
}

#[cfg(test)]
mod tests;
