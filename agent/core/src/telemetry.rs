//! What is measured for people and for judging the cause of slowness, beyond what decisions about memory need.
//!
//! Problem: histograms, per-device and per-port figures are large, change slowly for most pods, and most steps do not look at
//! them. Approach: the edge puts them into immutable records behind an `Arc` ([`CgroupDetail`], [`PodDetail`], [`NodeDetail`]),
//! read at a pace of their own; each carries the moment at which it was read, so its age is visible.
//!
//! Terms: all counters are cumulative since the cgroup (or the pod, as the agent saw it first) was made. `None` or an empty list
//! is what nobody could tell here; it is never zero for want of knowledge.
//!
//! Properties (tested): merging histograms is adding; the difference of two readings of the same counter is never negative; a
//! quantile lies within a factor of two of the true one.

use serde::{Deserialize, Serialize};

use crate::sample::NetworkReading;
use crate::spec::PodUid;
use crate::units::{Bytes, Micros};

/// Slots of a [`Histogram`].
pub const SLOTS: usize = 24;

/// Durations by powers of two of a microsecond: slot 0 holds those below 1 us, slot i those from 2^(i-1) us to below 2^i us, the
/// last one all from 2^22 us (4.2 s) up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// How many in each slot.
    pub counts: [u64; SLOTS],
    /// Their sum, nanoseconds.
    pub sum_ns: u64,
}

impl Histogram {
    /// The upper bound of a slot; `None` for the last, which has none.
    #[must_use]
    pub const fn upper_bound(slot: usize) -> Option<Micros> {
        if slot + 1 < SLOTS { Some(Micros(1 << slot)) } else { None }
    }

    /// How many in all.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = *self;
        for (mine, more) in sum.counts.iter_mut().zip(other.counts) {
            *mine = mine.saturating_add(more);
        }
        sum.sum_ns = sum.sum_ns.saturating_add(other.sum_ns);
        sum
    }

    /// What came since an earlier reading of the same counter. A counter that began anew is all new.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut new = *self;
        for (mine, old) in new.counts.iter_mut().zip(before.counts) {
            let Some(more) = mine.checked_sub(old) else { return *self };
            *mine = more;
        }
        new.sum_ns = self.sum_ns.saturating_sub(before.sum_ns);
        new
    }

    /// The mean; `None` of nothing.
    #[must_use]
    pub fn mean(&self) -> Option<Micros> {
        self.sum_ns.checked_div(self.count()).map(|ns| Micros(ns / 1_000))
    }

    /// The upper bound of the slot in which the given share of all lies, in parts per million (500 000 is the median); the last slot
    /// counts as 8.4 s. `None` of nothing.
    #[must_use]
    pub fn quantile(&self, ppm: u64) -> Option<Micros> {
        let all = self.count();
        let wanted = u128::from(all) * u128::from(ppm.min(1_000_000));
        let mut seen: u128 = 0;
        for (slot, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count) * 1_000_000;
            if *count > 0 && seen >= wanted {
                return Some(Micros(1 << slot));
            }
        }
        None
    }
}

/// Who took the CPU from a task that would have run on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Preemptor {
    /// Another task of the same container.
    Own,
    /// A pod: the same one's other containers, or another one.
    Pod(PodUid),
    /// Anything outside of pods: the node's services, the kernel's threads.
    System,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ExitKind {
    /// By itself with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

/// Details of one cgroup: a container, or a whole pod (then the sum of what is below, for counters).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupDetail {
    /// When it was read (monotonic).
    pub at: Micros,
    /// Waits for a CPU, one for each stint, by eBPF.
    pub wait: Option<Histogram>,
    /// Preemptions by who took the CPU, by eBPF; sorted.
    pub preempted: Vec<(Preemptor, u64)>,
    /// Spells of direct reclaim because the node was short of memory, by eBPF.
    pub reclaim_node: Option<Histogram>,
    /// Spells of direct reclaim because of a limit, by eBPF.
    pub reclaim_limit: Option<Histogram>,
    /// Memory freed in both.
    pub reclaimed: Option<Bytes>,
    /// Finished requests to block devices, by eBPF; sorted by device and kind.
    pub disk: Vec<DiskReading>,
    /// `io.stat`, v1 `blkio.throttle.*_recursive`; sorted by device.
    pub io: Vec<DeviceIo>,
    /// Processes and threads made, programs begun, processes ended, by eBPF.
    pub life: Option<Life>,
    /// Processes that ended, by how; sorted.
    pub exits: Vec<(ExitKind, u64)>,
    /// Tasks by state.
    pub tasks: Option<TaskStates>,
    /// Open files of its processes (cAdvisor's `container_file_descriptors`); of a pod, the sum of its containers' and its sandbox's.
    pub open_files: Option<u64>,
    /// Of these, sockets; `None`, too, where there are too many files to look at each.
    pub sockets: Option<u64>,
    /// The lowest soft limit of open files among its processes.
    pub open_files_limit: Option<u64>,
    /// What it was given, and when it was made.
    #[serde(default)]
    pub limits: Option<CgroupLimits>,
}

/// What a cgroup was given, and when it was made. `None` where it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupLimits {
    /// When its directory was made (wall clock).
    pub made: Option<Micros>,
    /// v1 `cpu.shares`; of v2's `cpu.weight` as the kubelet shows it: 2 + (weight - 1) * 262142 / 9999, rounded down.
    pub cpu_shares: Option<u64>,
    /// CPU time per period; `None` for no quota, too.
    pub cpu_quota: Option<Micros>,
    /// The period.
    pub cpu_period: Option<Micros>,
    /// v1 `memory.soft_limit_in_bytes`, v2 `memory.min`; `u64::MAX` for v1's "no limit".
    pub memory_reservation: Option<Bytes>,
    /// `pids.max`; `u64::MAX` for no limit.
    pub pids_max: Option<u64>,
}

/// A block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Device {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// `/dev/vda`; "" where it has no name.
    pub name: String,
}

/// The kind of a request to a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DiskOp {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Flushes, discards.
    Other,
}

/// Finished requests to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReading {
    /// The device.
    pub device: Device,
    /// The kind.
    pub op: DiskOp,
    /// Bytes.
    pub bytes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// From the making of the request to its end; its count is that of requests.
    pub latency: Histogram,
}

/// What went to and from a device, by the IO controller's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceIo {
    /// The device.
    pub device: Device,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Comings and goings of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Processes made.
    pub forks: u64,
    /// Threads made.
    pub threads: u64,
    /// Programs begun.
    pub execs: u64,
    /// Processes ended.
    pub exits: u64,
}

/// Tasks by state, at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStates {
    /// Running or runnable.
    pub running: u32,
    /// Sleeping.
    pub sleeping: u32,
    /// Sleeping and deaf to signals (D).
    pub uninterruptible: u32,
    /// Stopped or traced.
    pub stopped: u32,
    /// Dead processes that nobody waited for.
    pub zombie: u32,
    /// Processes, zombies included.
    pub processes: u32,
}

/// Details of a pod that its containers share: the network and the storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDetail {
    /// When it was read (monotonic).
    pub at: Micros,
    /// Traffic of TCP sockets.
    pub tcp: Option<NetworkReading>,
    /// Traffic of UDP sockets.
    pub udp: Option<NetworkReading>,
    /// All other traffic.
    pub other: Option<NetworkReading>,
    /// TCP connections, by eBPF.
    pub connections: Option<TcpReading>,
    /// DNS, by eBPF.
    pub dns: Option<DnsReading>,
    /// Ports that the pod serves, by port; at most [`SHOWN_PORTS`].
    pub ports: Vec<PortReading>,
    /// Packets that the kernel dropped, by its reason, by eBPF; sorted.
    pub drops: Vec<(String, u64)>,
    /// When the pod's network namespace was visited (monotonic): the moment of its devices, counters and listeners; `None` before.
    #[serde(default)]
    pub network_at: Option<Micros>,
    /// The devices of the pod's network namespace but loopback, as the kernel counts them; empty for host-network pods.
    pub interfaces: Vec<InterfaceReading>,
    /// The counters of the network namespace; `None` for host-network pods.
    pub stack: Option<StackReading>,
    /// Disk space; `None` before it was first found out.
    pub storage: Option<StorageReading>,
}

/// So many ports of a pod are shown, those with the most requests: all that the programs count apart in two containers.
pub const SHOWN_PORTS: usize = 66;

/// TCP connections of a pod's sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpReading {
    /// Connections begun from here.
    pub connects: u64,
    /// Of these, those that failed.
    pub connect_failures: u64,
    /// Connections from outside.
    pub accepts: u64,
    /// Resets sent.
    pub resets_sent: u64,
    /// Resets received.
    pub resets_received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// From SYN to established.
    pub connect: Histogram,
    /// Smoothed round-trip times.
    pub rtt: Histogram,
}

/// DNS queries over UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsReading {
    /// Sent.
    pub queries: u64,
    /// Answered.
    pub answers: u64,
    /// Answered with an error other than "no such name".
    pub errors: u64,
    /// Answered with "no such name".
    pub no_such_name: u64,
    /// From query to answer.
    pub latency: Histogram,
}

/// A port that a pod listens on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortReading {
    /// The port; 0 for those together that were too many to be counted apart.
    pub port: u16,
    /// Somebody listens there now.
    pub listening: bool,
    /// Connections that wait to be accepted, now.
    pub backlog: Option<u32>,
    /// So many may wait.
    pub backlog_max: Option<u32>,
    /// Requests that began, by eBPF.
    pub requests: u64,
    /// Connections that ended with a request unanswered.
    pub unanswered: u64,
    /// Answers by the class of their HTTP/1 status, 1xx to 5xx.
    pub http: [u64; 5],
    /// From a request's first byte to its answer's first byte; its count is that of answers.
    pub latency: Histogram,
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceReading {
    /// Its name in the namespace: `eth0`.
    pub name: String,
    /// Bytes and packets, link layer included.
    pub traffic: NetworkReading,
    /// Errors on receiving.
    pub rx_errors: u64,
    /// Dropped on receiving.
    pub rx_dropped: u64,
    /// Errors on sending.
    pub tx_errors: u64,
    /// Dropped on sending.
    pub tx_dropped: u64,
}

/// Counters of a network namespace (/proc/net/snmp and netstat).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackReading {
    /// `TcpExt.ListenOverflows`: connections refused because too many waited to be accepted.
    pub listen_overflows: u64,
    /// `TcpExt.ListenDrops`: these, and those dropped for other reasons.
    pub listen_drops: u64,
    /// `Tcp.OutSegs`.
    pub segments_sent: u64,
    /// `Tcp.RetransSegs`.
    pub retransmits: u64,
    /// `TcpExt.TCPTimeouts`.
    pub timeouts: u64,
    /// `Tcp.AttemptFails`.
    pub connect_failures: u64,
    /// `Udp.InErrors` with `RcvbufErrors`.
    pub udp_receive_errors: u64,
    /// `Udp.NoPorts`.
    pub udp_no_port: u64,
    /// TCP sockets in use.
    pub tcp_sockets: u64,
}

/// Disk space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsUse {
    /// When it was found out (wall clock).
    pub at: Micros,
    /// Bytes in use.
    pub used: Bytes,
    /// Inodes in use.
    pub inodes_used: Option<u64>,
    /// The file system's size.
    pub capacity: Option<Bytes>,
    /// What is free there for ordinary users.
    pub available: Option<Bytes>,
    /// The file system's inodes.
    pub inodes: Option<u64>,
    /// Of these, free.
    pub inodes_free: Option<u64>,
}

/// Disk space that a pod uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageReading {
    /// Writable layers, by container name; sorted.
    pub rootfs: Vec<(String, FsUse)>,
    /// Logs, by container name; sorted.
    pub logs: Vec<(String, FsUse)>,
    /// Volumes on this node's disks or in memory (emptyDir, and those made from the API), by name; sorted.
    pub volumes: Vec<(String, FsUse)>,
}

/// Details of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// When it was read (monotonic).
    pub at: Micros,
    /// When the node was booted (wall clock).
    pub booted: Micros,
    /// Memory charged in all: the root cgroup's usage, as the kubelet shows it.
    pub memory_usage: Option<Bytes>,
    /// Of it, what is not inactive file cache: what the kubelet shows as the node's working set, without what the kernel has outside of
    /// cgroups.
    #[serde(default)]
    pub memory_working_set: Option<Bytes>,
    /// Anonymous memory of the root cgroup.
    pub memory_rss: Option<Bytes>,
    /// Page faults, and major ones, since boot.
    pub page_faults: Option<(u64, u64)>,
    /// Swap in use and free.
    pub swap: Option<(Bytes, Bytes)>,
    /// CPU time stolen by the hypervisor, all CPUs, since boot.
    pub steal: Option<Micros>,
    /// CPU time in interrupts (hard and soft).
    pub interrupts: Option<Micros>,
    /// Context switches since boot.
    pub switches: Option<u64>,
    /// Pressure of the whole node (/proc/pressure).
    pub pressure: Option<crate::sample::PressureReading>,
    /// The file system of beelet's root directory (nodefs).
    pub fs: Option<FsUse>,
    /// The file system of images, and what the images use.
    pub image_fs: Option<FsUse>,
    /// The file system of writable layers, and what they use.
    pub container_fs: Option<FsUse>,
    /// The node's network devices; the first is the one of the default route.
    pub interfaces: Vec<InterfaceReading>,
    /// So many processes and threads there can be, and are.
    pub pids: Option<(u64, u64)>,
    /// Cgroups of the node's services, by the names of the kubelet's `systemContainers`: `kubelet` (this agent), `runtime`, `pods`;
    /// with their start (wall clock).
    pub services: Vec<(String, Micros, crate::sample::CgroupReading)>,
    /// CPU time in user space and in the kernel, all CPUs, since boot.
    #[serde(default)]
    pub cpu: Option<(Micros, Micros)>,
    /// Cgroups above pods (that of all pods, those of the QoS classes) and of the node's services; sorted by path.
    #[serde(default)]
    pub slices: Vec<SliceReading>,
    /// Mounted file systems on disks or in memory, each once, by the mount's source (`/dev/vda1`; of a tmpfs its mount point).
    #[serde(default)]
    pub filesystems: Vec<(String, FsUse)>,
}

/// A cgroup that is neither a pod's nor in one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceReading {
    /// Relative to the hierarchies' roots, without a leading slash: `kubepods/burstable`.
    pub path: String,
    /// Its reading.
    pub reading: crate::sample::CgroupReading,
    /// Its details, where they are read.
    pub detail: Option<std::sync::Arc<CgroupDetail>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(us: &[u64]) -> Histogram {
        let mut h = Histogram::default();
        for us in us {
            let slot = (u64::BITS - us.leading_zeros()) as usize;
            h.counts[slot.min(SLOTS - 1)] += 1;
            h.sum_ns += us * 1_000;
        }
        h
    }

    #[test]
    fn quantiles_are_within_a_factor_of_two() {
        let h = of(&[3, 5, 9, 17, 1000]);
        assert_eq!(h.quantile(500_000), Some(Micros(16)));
        assert_eq!(h.quantile(1_000_000), Some(Micros(1024)));
        assert_eq!(Histogram::default().quantile(500_000), None);
        assert_eq!(h.mean(), Some(Micros(206)));
    }

    #[test]
    fn the_difference_of_a_counter_that_began_anew_is_all_of_it() {
        let (old, new) = (of(&[1, 2, 3]), of(&[1, 2, 3, 100]));
        assert_eq!(new.since(&old), of(&[100]));
        assert_eq!(of(&[7]).since(&new), of(&[7]));
        assert_eq!(old.plus(&of(&[100])), new);
    }
}
