//! Records and map layouts that the eBPF programs and the agent share.
//!
//! **Problem.** The programs of this package write into maps and a ring buffer that another program, built by another
//! compiler for another machine, reads. Nothing checks that both agree on where a field lies.
//!
//! **Approach.** Each layout is written once, here: `repr(C)`, no implicit padding, every bit pattern valid
//! ([`bytemuck::Pod`] proves both), its size asserted at compile time. Names of programs, maps and globals are constants.
//!
//! **Terms.** A *cgroup id* is the id of the cgroup in the v2 hierarchy: the inode number of its directory. A *ktime* is
//! nanoseconds of `CLOCK_MONOTONIC`.
//!
//! **Properties.** `no_std`, no allocation. Per-CPU records are written by their own CPU only, so the sum over CPUs never
//! decreases as long as nobody removes the key.
#![cfg_attr(not(test), no_std)]

use bytemuck::{Pod, Zeroable};

/// Names of the programs, as the loader looks them up in the object.
pub mod program {
    /// `tp_btf/sched_switch`: run time per cgroup.
    pub const SCHED_SWITCH: &str = "sched_switch";
    /// `cgroup_skb/ingress`: bytes and packets received per cgroup.
    pub const SKB_INGRESS: &str = "skb_ingress";
    /// `cgroup_skb/egress`: bytes and packets sent per cgroup.
    pub const SKB_EGRESS: &str = "skb_egress";
    /// `tp_btf/mark_victim`: victims of the kernel's OOM killer.
    pub const OOM_VICTIM: &str = "oom_victim";
    /// `tp_btf/sched_process_exit`: processes that ended.
    pub const PROCESS_EXIT: &str = "process_exit";
    /// `tp_btf/inet_sock_set_state`: TCP sockets that begin or cease to listen.
    pub const LISTEN_STATE: &str = "listen_state";
    /// All of them, in the order in which they are loaded.
    pub const ALL: [&str; 6] = [SCHED_SWITCH, SKB_INGRESS, SKB_EGRESS, OOM_VICTIM, PROCESS_EXIT, LISTEN_STATE];
}

/// Names of the maps.
pub mod map {
    /// Per-CPU hash: cgroup id -> [`CpuRecord`](super::CpuRecord).
    pub const CPU: &str = "CPU";
    /// Per-CPU hash: cgroup id -> [`NetRecord`](super::NetRecord).
    pub const NET: &str = "NET";
    /// Ring buffer of [`Event`](super::Event).
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array of `u64`, indexed by [`Lost`](super::Lost).
    pub const LOST: &str = "LOST";
}

/// Names of the globals that the agent sets before it loads the programs. All are `u64`.
///
/// An offset is in bytes from the start of the kernel's struct, as its BTF has it; [`OFFSET_UNKNOWN`](super::OFFSET_UNKNOWN)
/// makes the program leave the field out.
pub mod global {
    /// Cgroup id of the pods' root; processes outside it make no exit events. 0: no filter.
    pub const PODS_ROOT_ID: &str = "PODS_ROOT_ID";
    /// Depth of the pods' root below the root of the hierarchy (whose depth is 0).
    pub const PODS_ROOT_LEVEL: &str = "PODS_ROOT_LEVEL";
    /// 1 if the first argument of `mark_victim` is a `task_struct *`, 0 if it is the pid as an integer.
    pub const VICTIM_IS_TASK: &str = "VICTIM_IS_TASK";
    /// 1 if `sched_process_exit` says by its second argument whether the whole process is dead.
    pub const EXIT_HAS_GROUP_DEAD: &str = "EXIT_HAS_GROUP_DEAD";
    /// `task_struct.pid`.
    pub const TASK_PID: &str = "TASK_PID";
    /// `task_struct.tgid`.
    pub const TASK_TGID: &str = "TASK_TGID";
    /// `task_struct.se.sum_exec_runtime`: nanoseconds that the task has run.
    pub const TASK_SUM_EXEC: &str = "TASK_SUM_EXEC";
    /// `task_struct.se.prev_sum_exec_runtime`: what it had run when it was picked (fair class only).
    pub const TASK_PREV_SUM_EXEC: &str = "TASK_PREV_SUM_EXEC";
    /// `task_struct.prio`.
    pub const TASK_PRIO: &str = "TASK_PRIO";
    /// `task_struct.comm`.
    pub const TASK_COMM: &str = "TASK_COMM";
    /// `task_struct.exit_code`.
    pub const TASK_EXIT_CODE: &str = "TASK_EXIT_CODE";
    /// `task_struct.start_time`.
    pub const TASK_START_TIME: &str = "TASK_START_TIME";
    /// `task_struct.group_leader`.
    pub const TASK_GROUP_LEADER: &str = "TASK_GROUP_LEADER";
    /// `task_struct.signal`.
    pub const TASK_SIGNAL: &str = "TASK_SIGNAL";
    /// `task_struct.mm`.
    pub const TASK_MM: &str = "TASK_MM";
    /// `task_struct.cgroups`.
    pub const TASK_CGROUPS: &str = "TASK_CGROUPS";
    /// `task_struct.thread_pid`.
    pub const TASK_THREAD_PID: &str = "TASK_THREAD_PID";
    /// `signal_struct.live`.
    pub const SIGNAL_LIVE: &str = "SIGNAL_LIVE";
    /// `signal_struct.flags`.
    pub const SIGNAL_FLAGS: &str = "SIGNAL_FLAGS";
    /// `signal_struct.group_exit_code`.
    pub const SIGNAL_GROUP_EXIT_CODE: &str = "SIGNAL_GROUP_EXIT_CODE";
    /// `signal_struct.oom_mm`.
    pub const SIGNAL_OOM_MM: &str = "SIGNAL_OOM_MM";
    /// `signal_struct.oom_score_adj`.
    pub const SIGNAL_OOM_SCORE_ADJ: &str = "SIGNAL_OOM_SCORE_ADJ";
    /// `mm_struct.rss_stat`, the counter of file pages; this one and the next two only where each counter is a struct (6.2 on).
    pub const MM_RSS_FILE: &str = "MM_RSS_FILE";
    /// `mm_struct.rss_stat`, the counter of anonymous pages.
    pub const MM_RSS_ANON: &str = "MM_RSS_ANON";
    /// `mm_struct.rss_stat`, the counter of shared-memory pages.
    pub const MM_RSS_SHMEM: &str = "MM_RSS_SHMEM";
    /// `css_set.dfl_cgrp`.
    pub const CSS_SET_DFL_CGRP: &str = "CSS_SET_DFL_CGRP";
    /// `cgroup.kn`.
    pub const CGROUP_KN: &str = "CGROUP_KN";
    /// `kernfs_node.id`.
    pub const KERNFS_NODE_ID: &str = "KERNFS_NODE_ID";
    /// `pid.level`.
    pub const PID_LEVEL: &str = "PID_LEVEL";
    /// `pid.numbers`, only where BTF has it as a flexible array: else the verifier refuses a second element.
    pub const PID_NUMBERS: &str = "PID_NUMBERS";
    /// Size of `upid`, the element of `pid.numbers`.
    pub const UPID_SIZE: &str = "UPID_SIZE";
    /// `sock.__sk_common.skc_num`: the local port in host byte order.
    pub const SOCK_PORT: &str = "SOCK_PORT";
    /// `sock.__sk_common.skc_family`.
    pub const SOCK_FAMILY: &str = "SOCK_FAMILY";
    /// `sock.sk_cgrp_data.cgroup`.
    pub const SOCK_CGROUP: &str = "SOCK_CGROUP";
    /// `tcp_sock.inet_conn.icsk_inet.inet_sport`: the local port in network byte order.
    pub const TCP_SOCK_SPORT: &str = "TCP_SOCK_SPORT";
}

/// Value of an offset global whose field this kernel's BTF does not have.
pub const OFFSET_UNKNOWN: u64 = u64::MAX;

/// CPU time of one cgroup (its own tasks, not its children's), on one CPU or summed over CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuRecord {
    /// Nanoseconds that the scheduler charged to tasks of the cgroup, up to the last switch away from each of them.
    pub run_ns: u64,
    /// Switches away from a task of the cgroup.
    pub switches: u64,
}
const _: () = assert!(size_of::<CpuRecord>() == 16);

/// Traffic of the sockets of one cgroup (its own, not its children's), on one CPU or summed over CPUs.
///
/// Bytes are those of IP packets (header included, link layer not). A segment that the card or the stack merged or has yet
/// to split counts as its packets, but its headers once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NetRecord {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
}
const _: () = assert!(size_of::<NetRecord>() == 32);

/// What an [`Event`] tells, in [`Event::kind`].
pub mod kind {
    /// A process ended (its last thread).
    pub const PROCESS_EXIT: u32 = 1;
    /// The OOM killer chose a victim.
    pub const OOM_VICTIM: u32 = 2;
    /// A TCP socket began to listen.
    pub const LISTEN_OPENED: u32 = 3;
    /// A TCP socket ceased to listen.
    pub const LISTEN_CLOSED: u32 = 4;
}

/// Bits of [`Event::flags`].
pub mod flag {
    /// The process that ended had been marked by the OOM killer (`signal_struct.oom_mm` is set).
    pub const OOM_MARKED: u32 = 1;
    /// The cgroup id is that of the task on whose behalf the kernel ran, for want of the subject's own.
    pub const CGROUP_OF_CURRENT: u32 = 2;
    /// The memory counters are valid.
    pub const HAS_MEMORY: u32 = 4;
}

/// One record of the ring buffer. Which fields are meaningful depends on `kind`; all others are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Event {
    /// One of [`kind`].
    pub kind: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Cgroup of the subject: the exiting process, the victim, the socket.
    pub cgroup_id: u64,
    /// When, in ktime.
    pub ktime_ns: u64,
    /// Exit, victim: when the process started, in ktime. With `tgid` it names a process for ever.
    pub start_ns: u64,
    /// Thread id of the subject, in the root pid namespace.
    pub pid: u32,
    /// Process id of the subject, in the root pid namespace.
    pub tgid: u32,
    /// Exit: process id in the innermost pid namespace; 1 is a container's init. 0 where it is not known.
    pub ns_pid: u32,
    /// Exit: the status as `wait` gives it: signal in the low 7 bits, 0x80 if a core was dumped, exit code << 8.
    pub exit_code: u32,
    /// Victim: anonymous pages, to within the kernel's per-CPU batches.
    pub anon_pages: u64,
    /// Victim: pages of files.
    pub file_pages: u64,
    /// Victim: pages of shared memory.
    pub shmem_pages: u64,
    /// Listen: local port, host byte order; 0 if the socket had none yet (`listen` without `bind`) or any more.
    pub port: u16,
    /// Listen: address family (2 IPv4, 10 IPv6).
    pub family: u16,
    /// Victim: its `oom_score_adj`, -1000..=1000.
    pub oom_score_adj: i32,
    /// Command name, padded with NUL.
    pub comm: [u8; 16],
}
const _: () = assert!(size_of::<Event>() == 96);

/// Index into the `LOST` map: what could not be recorded.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Events dropped because the ring buffer was full.
    Events = 0,
    /// Switches not charged because the `CPU` map was full.
    Cpu = 1,
    /// Packets not counted because the `NET` map was full.
    Net = 2,
}

impl Lost {
    /// Entries of the `LOST` map.
    pub const COUNT: u32 = 3;
    /// Every variant, in index order.
    pub const ALL: [Self; 3] = [Self::Events, Self::Cpu, Self::Net];
}

impl CpuRecord {
    /// Adds what another CPU counted.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { run_ns: self.run_ns.wrapping_add(other.run_ns), switches: self.switches.wrapping_add(other.switches) }
    }
}

impl NetRecord {
    /// Adds what another CPU counted.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            rx_bytes: self.rx_bytes.wrapping_add(other.rx_bytes),
            rx_packets: self.rx_packets.wrapping_add(other.rx_packets),
            tx_bytes: self.tx_bytes.wrapping_add(other.tx_bytes),
            tx_packets: self.tx_packets.wrapping_add(other.tx_packets),
        }
    }
}
