//! What was measured.
//!
//! Problem: values come from eBPF maps, cgroup files and /proc, and each of them may be missing on some kernel.
//! Approach: the edge merges its sources into one [`Sample`], with `None` for what nobody could tell; the core never guesses.
//! All counters are cumulative since the cgroup was made; rates are the model's business.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::spec::PodUid;
use crate::telemetry::{CgroupDetail, NodeDetail, PodDetail};
use crate::units::{Bytes, Micros};

/// One look at the node and its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// When it was taken (monotonic).
    pub at: Micros,
    /// The node as a whole.
    pub node: NodeReading,
    /// The cgroup that holds all pods (`kubepods`); `None` where it could not be read.
    pub kubepods: Option<CgroupReading>,
    /// Every pod that has a cgroup, or `None` for a quick look that read only the node and `kubepods`.
    pub pods: Option<Vec<PodReading>>,
    /// What changes slowly about the node; the newest there is, `None` before the first.
    #[serde(default)]
    pub node_detail: Option<Arc<NodeDetail>>,
}

/// A cgroup and what is below it may be so far apart: they are not read in one moment.
const APART: Bytes = Bytes::mib(16);

impl Sample {
    /// The memory of `kubepods`, held to what is known of its parts ([`MemoryReading::held_to`]).
    #[must_use]
    pub fn kubepods_memory(&self) -> Option<MemoryReading> {
        let parts = self.pods.iter().flatten().flat_map(|pod| pod.leaves(self.at));
        Some(self.kubepods?.memory?.held_to(parts))
    }
}

impl PodReading {
    /// The memory of the pod's cgroup, held to what is known of its parts ([`MemoryReading::held_to`]); `at`: when the look was.
    #[must_use]
    pub fn memory(&self, at: Micros) -> Option<MemoryReading> {
        Some(self.cgroup.memory?.held_to(self.leaves(at)))
    }

    /// The memory of what has no cgroups below it, as far as it was read in this very look.
    fn leaves(&self, at: Micros) -> impl Iterator<Item = MemoryReading> {
        let all = self.containers.iter().map(|container| &container.cgroup).chain(&self.sandbox);
        all.filter(move |part| part.at >= at).filter_map(|part| part.memory)
    }
}

impl MemoryReading {
    /// This reading, held to what is known of the cgroups below.
    ///
    /// The kernel counts usage at once, but adds up a cgroup's `memory.stat` from those below it when it sees fit: Linux 6.18
    /// left out a GiB of one pod's files for up to 1.6 s, and usage less files looked like a leak. A container has no cgroups below
    /// it, so its own are true. What containers have of files the whole has, too, and no more than what they do not hold otherwise;
    /// and it has at least their anonymous and shared memory.
    #[must_use]
    fn held_to(mut self, parts: impl Iterator<Item = Self>) -> Self {
        let mut sum = Self::default();
        for part in parts {
            sum.usage += part.usage;
            sum.inactive_file += part.inactive_file;
            sum.active_file += part.active_file;
            sum.slab_reclaimable += part.slab_reclaimable;
            sum.anon += part.anon;
            sum.shmem += part.shmem;
        }
        let (files, most) = (self.usage - self.unreclaimable(), self.usage - sum.unreclaimable());
        if sum.usage - sum.unreclaimable() > files + APART {
            self.inactive_file = self.inactive_file.max(sum.inactive_file);
            self.active_file = self.active_file.max(sum.active_file);
            self.slab_reclaimable = self.slab_reclaimable.max(sum.slab_reclaimable);
        } else if files > most + APART {
            let mut over = files - most;
            for part in [&mut self.inactive_file, &mut self.active_file, &mut self.slab_reclaimable] {
                let less = over.min(*part);
                (*part, over) = (*part - less, over - less);
            }
        }
        if sum.counted() > self.counted() {
            (self.anon, self.shmem) = (self.anon.max(sum.anon), self.shmem.max(sum.shmem));
        }
        self
    }
}

/// The node as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReading {
    /// CPU time spent busy by all CPUs together since boot.
    pub cpu_busy: Micros,
    /// CPU time idle (idle and iowait) by all CPUs together since boot.
    pub cpu_idle: Micros,
    /// When these were read (monotonic): not at each look. Zero: with the sample.
    #[serde(default)]
    pub cpu_at: Micros,
    /// `MemTotal`.
    pub memory_total: Bytes,
    /// What is in use and not reclaimable file cache, and what the kernel never gives to user space. In terms of /proc/meminfo:
    /// `MemTotal - MemFree - Active(file) - Inactive(file) - SReclaimable`, with shmem counted as used; and the zones' lowest
    /// watermarks (`min` of /proc/zoneinfo; tens of MiB), below which an allocation ends in the OOM killer.
    pub memory_unreclaimable: Bytes,
    /// Of that, `AnonPages + Shmem`; `None` where it was not read.
    #[serde(default)]
    pub memory_counted: Option<Bytes>,
    /// The kubelet's working set of the root cgroup: `MemTotal - MemFree - Inactive(file)`.
    pub memory_working_set: Bytes,
}

/// A pod's cgroup and what is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodReading {
    /// Which pod.
    pub uid: PodUid,
    /// The pod's own cgroup (all its containers together).
    pub cgroup: CgroupReading,
    /// Its containers with a live cgroup.
    pub containers: Vec<ContainerReading>,
    /// The cgroup of the sandbox (the `pause` process), where it has one.
    #[serde(default)]
    pub sandbox: Option<CgroupReading>,
    /// Details of the whole pod's cgroup, the newest there are.
    #[serde(default)]
    pub cgroup_detail: Option<Arc<CgroupDetail>>,
    /// Details of network and storage, the newest there are.
    #[serde(default)]
    pub detail: Option<Arc<PodDetail>>,
    /// Bytes and packets of all its sockets, living and dead, since the agent first saw the pod.
    pub network: Option<NetworkReading>,
    /// TCP ports that something listens on in the pod's network namespace (a host-network pod: `None`).
    pub listening: Option<BTreeSet<u16>>,
}

impl PodReading {
    /// A pod of which only its cgroup is known.
    #[must_use]
    pub const fn of(uid: PodUid, cgroup: CgroupReading) -> Self {
        Self {
            uid,
            cgroup,
            containers: Vec::new(),
            sandbox: None,
            cgroup_detail: None,
            detail: None,
            network: None,
            listening: None,
        }
    }
}

/// A container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerReading {
    /// The container's name in the pod.
    pub name: String,
    /// The runtime's id.
    pub id: String,
    /// Its cgroup.
    pub cgroup: CgroupReading,
    /// Its details, the newest there are.
    #[serde(default)]
    pub detail: Option<Arc<CgroupDetail>>,
}

/// A cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupReading {
    /// The cgroup's id: the inode of its directory in the v2 hierarchy. Another id is another cgroup, whatever its path.
    pub id: u64,
    /// When its files were read (monotonic). A cgroup in which nothing ran since keeps its last reading for a while.
    #[serde(default)]
    pub at: Micros,
    /// CPU time.
    pub cpu: Option<CpuReading>,
    /// Memory.
    pub memory: Option<MemoryReading>,
    /// Pressure, cumulative.
    pub pressure: Option<PressureReading>,
    /// Processes and threads in it and below.
    pub pids: Option<u64>,
}

/// CPU time of a cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuReading {
    /// Run time by `cpu.stat` (v2) or `cpuacct.usage` (v1).
    pub usage: Option<Micros>,
    /// Run time by eBPF at sched_switch.
    pub run: Option<Micros>,
    /// Scheduling periods in which something ran.
    pub periods: Option<u64>,
    /// Of these, the throttled ones.
    pub throttled_periods: Option<u64>,
    /// Time throttled, summed over CPUs.
    pub throttled: Option<Micros>,
    /// Of `usage`, in user space.
    #[serde(default)]
    pub user: Option<Micros>,
    /// Of `usage`, in the kernel.
    #[serde(default)]
    pub system: Option<Micros>,
    /// Periods in which burst was used.
    #[serde(default)]
    pub bursts: Option<u64>,
    /// Burst used.
    #[serde(default)]
    pub burst: Option<Micros>,
    /// Time that tasks waited for a CPU, by eBPF (throttling included).
    #[serde(default)]
    pub wait: Option<Micros>,
    /// Switches away from its tasks, by eBPF.
    #[serde(default)]
    pub switches: Option<u64>,
    /// Of these, preemptions, by eBPF.
    #[serde(default)]
    pub involuntary: Option<u64>,
}

impl CpuReading {
    /// The run time of the best source. `cpu.stat` also counts the slice a task is in the middle of, so it leads.
    #[must_use]
    pub fn best(&self) -> Option<Micros> {
        self.usage.or(self.run)
    }
}

/// Memory of a cgroup, all below included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReading {
    /// `memory.current`, `memory.usage_in_bytes`.
    pub usage: Bytes,
    /// `inactive_file` of memory.stat.
    pub inactive_file: Bytes,
    /// `active_file`.
    pub active_file: Bytes,
    /// `anon`, v1 `total_rss`.
    pub anon: Bytes,
    /// `shmem`.
    pub shmem: Bytes,
    /// `slab_reclaimable`; 0 on v1, which does not tell.
    pub slab_reclaimable: Bytes,
    /// `memory.max`, `memory.limit_in_bytes`; `None` for no limit.
    pub limit: Option<Bytes>,
    /// Processes killed by the kernel's OOM killer in this cgroup (v2: and below).
    pub oom_kills: Option<u64>,
    /// The rest of what the kernel tells.
    #[serde(default)]
    pub more: MemoryMore,
}

/// What the kernel tells of a cgroup's memory beyond what decisions need; each `None` where it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryMore {
    /// File cache, shared memory and tmpfs included (`file`, v1 `total_cache`).
    pub file: Option<Bytes>,
    /// Files that are mapped.
    pub mapped_file: Option<Bytes>,
    /// File cache that is to be written.
    pub dirty: Option<Bytes>,
    /// File cache that is being written.
    pub writeback: Option<Bytes>,
    /// Locked or otherwise pinned.
    pub unevictable: Option<Bytes>,
    /// All kernel memory (5.18; v1 `memory.kmem.usage_in_bytes`).
    pub kernel: Option<Bytes>,
    /// Kernel stacks.
    pub kernel_stack: Option<Bytes>,
    /// Page tables.
    pub page_tables: Option<Bytes>,
    /// Per-CPU data.
    pub percpu: Option<Bytes>,
    /// Buffers of sockets.
    pub sock: Option<Bytes>,
    /// Kernel objects that cannot be freed.
    pub slab_unreclaimable: Option<Bytes>,
    /// Swap in use.
    pub swap: Option<Bytes>,
    /// Limit of swap; `None` for none, too.
    pub swap_limit: Option<Bytes>,
    /// The highest usage (5.19; v1 `memory.max_usage_in_bytes`).
    pub peak: Option<Bytes>,
    /// `memory.high`; `None` for none, too.
    pub high: Option<Bytes>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Of these, those that had to read.
    pub major_faults: Option<u64>,
    /// Pages of files that came back soon after they had been dropped.
    pub refaults_file: Option<u64>,
    /// The same of anonymous pages (swap).
    pub refaults_anon: Option<u64>,
    /// Pages that reclaim looked at.
    pub scanned: Option<u64>,
    /// Pages that reclaim freed.
    pub stolen: Option<u64>,
    /// Times that `memory.high` was exceeded.
    pub high_events: Option<u64>,
    /// Times that the limit was reached (v1 `memory.failcnt`).
    pub max_events: Option<u64>,
    /// Times that the limit was reached and nothing could be freed.
    pub oom_events: Option<u64>,
}

impl MemoryReading {
    /// The kubelet's working set: usage less inactive file cache (pkg/kubelet/stats, cAdvisor's container/libcontainer/handler.go).
    #[must_use]
    pub fn working_set(&self) -> Bytes {
        self.usage - self.inactive_file
    }

    /// What reclaim cannot free: usage less file cache and reclaimable slab. Without swap this is what leads to an OOM kill.
    #[must_use]
    pub fn unreclaimable(&self) -> Bytes {
        self.usage - self.inactive_file - self.active_file - self.slab_reclaimable
    }

    /// What of that is counted by itself: anonymous and shared memory ([`crate::settle`]).
    #[must_use]
    pub fn counted(&self) -> Bytes {
        self.anon + self.shmem
    }
}

/// Pressure of a cgroup: by what its tasks waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PressureReading {
    /// For a CPU.
    pub cpu: Pressure,
    /// For memory.
    pub memory: Pressure,
    /// For a block device.
    pub io: Pressure,
}

/// Pressure of one resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    /// Some task waited.
    pub some: Stall,
    /// All tasks that had something to do waited.
    pub full: Stall,
}

/// One line of a pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stall {
    /// Time waited since the cgroup was made.
    pub total: Micros,
    /// Share of the last 10 s, in hundredths of a percent.
    pub avg10: u32,
    /// Share of the last 60 s.
    pub avg60: u32,
    /// Share of the last 300 s.
    pub avg300: u32,
}

impl Stall {
    /// Only the total is known.
    #[must_use]
    pub const fn total(total: Micros) -> Self {
        Self { total, avg10: 0, avg60: 0, avg300: 0 }
    }
}

impl PressureReading {
    /// Only this total of `memory` `some` is known.
    #[must_use]
    pub fn memory_some(total: Micros) -> Self {
        Self { memory: Pressure { some: Stall::total(total), full: Stall::default() }, ..Self::default() }
    }
}

/// What went through the sockets: bytes with IP headers and up, one header for each buffer of the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkReading {
    /// Received bytes.
    pub rx_bytes: u64,
    /// Received packets, as on a wire: a buffer that holds several (GRO) counts as so many.
    pub rx_packets: u64,
    /// Sent bytes.
    pub tx_bytes: u64,
    /// Sent packets, as on a wire: a buffer that is cut up later (GSO) counts as so many.
    pub tx_packets: u64,
}

/// Something that the kernel told at the moment it happened, already traced to its pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelEvent {
    /// When (monotonic).
    pub at: Micros,
    /// In which pod.
    pub uid: PodUid,
    /// In which of its containers; `None` for the sandbox or where it is not known any more.
    pub container: Option<String>,
    /// What.
    pub kind: KernelEventKind,
}

/// What the kernel told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KernelEventKind {
    /// A process (thread group) ended.
    Exit {
        /// Its pid on the node.
        pid: u32,
        /// Its name.
        comm: String,
        /// Exit code, 0 if a signal ended it.
        code: u8,
        /// The signal that ended it, 0 for none.
        signal: u8,
        /// It was the container's first process.
        is_init: bool,
    },
    /// The OOM killer chose a process.
    OomVictim {
        /// Its pid on the node.
        pid: u32,
        /// Its name.
        comm: String,
    },
    /// A listening TCP socket appeared (`open`) or went.
    Listen {
        /// The port.
        port: u16,
        /// Appeared, or gone.
        open: bool,
    },
}
