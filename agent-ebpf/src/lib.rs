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
    /// `tp_btf/sched_switch`: run time, run-queue wait and preemptions per cgroup.
    pub const SCHED_SWITCH: &str = "sched_switch";
    /// `cgroup_skb/ingress`: bytes and packets received per cgroup, requests that begin, DNS answers.
    pub const SKB_INGRESS: &str = "skb_ingress";
    /// `cgroup_skb/egress`: bytes and packets sent per cgroup, first bytes of answers, DNS queries.
    pub const SKB_EGRESS: &str = "skb_egress";
    /// `tp_btf/mark_victim`: victims of the kernel's OOM killer.
    pub const OOM_VICTIM: &str = "oom_victim";
    /// `tp_btf/sched_process_exit`: processes that ended.
    pub const PROCESS_EXIT: &str = "process_exit";
    /// `tp_btf/inet_sock_set_state`: TCP sockets that listen, connect, are accepted, close.
    pub const SOCKET_STATE: &str = "socket_state";
    /// `tp_btf/tcp_retransmit_skb`: segments sent again.
    pub const TCP_RETRANSMIT: &str = "tcp_retransmit";
    /// `tp_btf/tcp_send_reset`: connections that this side broke off.
    pub const TCP_SEND_RESET: &str = "tcp_send_reset";
    /// `tp_btf/tcp_receive_reset`: connections that the other side broke off.
    pub const TCP_RECEIVE_RESET: &str = "tcp_receive_reset";
    /// `tp_btf/kfree_skb`: packets of sockets that were dropped, by reason.
    pub const PACKET_DROP: &str = "packet_drop";
    /// `tp_btf/sched_process_fork`: processes and threads that begin.
    pub const PROCESS_FORK: &str = "process_fork";
    /// `tp_btf/sched_process_exec`: programs that begin.
    pub const PROCESS_EXEC: &str = "process_exec";
    /// `tp_btf/block_rq_complete`: requests that a disk has done.
    pub const DISK_REQUEST: &str = "disk_request";
    /// `tp_btf/mm_vmscan_direct_reclaim_begin`: a task begins to free memory, for the node is short of it.
    pub const RECLAIM_BEGIN: &str = "reclaim_begin";
    /// `tp_btf/mm_vmscan_direct_reclaim_end`: it is done.
    pub const RECLAIM_END: &str = "reclaim_end";
    /// `tp_btf/mm_vmscan_memcg_reclaim_begin`: a task begins to free memory, for a limit is reached.
    pub const LIMIT_BEGIN: &str = "limit_begin";
    /// `tp_btf/mm_vmscan_memcg_reclaim_end`: it is done.
    pub const LIMIT_END: &str = "limit_end";
    /// `iter/task`: tasks by state.
    pub const TASK_WALK: &str = "task_walk";
    /// `tp_btf` that does nothing, for the cost of a hook; not one of [`ALL`].
    pub const EMPTY_TP: &str = "empty_tp";
    /// `cgroup_skb` that does nothing, likewise.
    pub const EMPTY_SKB: &str = "empty_skb";
    /// Those that the agent loads, in the order in which it does.
    pub const ALL: [&str; 18] = [
        SCHED_SWITCH,
        SKB_INGRESS,
        SKB_EGRESS,
        OOM_VICTIM,
        PROCESS_EXIT,
        SOCKET_STATE,
        TCP_RETRANSMIT,
        TCP_SEND_RESET,
        TCP_RECEIVE_RESET,
        PACKET_DROP,
        PROCESS_FORK,
        PROCESS_EXEC,
        DISK_REQUEST,
        RECLAIM_BEGIN,
        RECLAIM_END,
        LIMIT_BEGIN,
        LIMIT_END,
        TASK_WALK,
    ];
}

/// Names of the maps.
pub mod map {
    /// Per-CPU hash: cgroup id -> [`CpuRecord`](super::CpuRecord).
    pub const CPU: &str = "CPU";
    /// Per-CPU hash: cgroup id -> [`NetRecord`](super::NetRecord).
    pub const NET: &str = "NET";
    /// LRU hash: [`PreemptKey`](super::PreemptKey) -> `u64`, a number of preemptions.
    pub const PREEMPT: &str = "PREEMPT";
    /// Hash: cgroup id -> [`ReclaimRecord`](super::ReclaimRecord).
    pub const RECLAIM: &str = "RECLAIM";
    /// Hash: cgroup id -> [`TaskRecord`](super::TaskRecord), as the last walk over all tasks found it.
    pub const TASKS: &str = "TASKS";
    /// Hash: cgroup id -> [`TcpRecord`](super::TcpRecord).
    pub const TCP: &str = "TCP";
    /// Hash: cgroup id -> [`DnsRecord`](super::DnsRecord).
    pub const DNS: &str = "DNS";
    /// Hash: [`PortKey`](super::PortKey) -> [`PortRecord`](super::PortRecord).
    pub const PORTS: &str = "PORTS";
    /// Hash: [`DropKey`](super::DropKey) -> `u64`, a number of packets.
    pub const DROPS: &str = "DROPS";
    /// Hash: [`DiskKey`](super::DiskKey) -> [`DiskRecord`](super::DiskRecord).
    pub const DISK: &str = "DISK";
    /// Hash: cgroup id -> [`LifeRecord`](super::LifeRecord).
    pub const LIFE: &str = "LIFE";
    /// LRU hash: [`ExitKey`](super::ExitKey) -> `u64`, a number of processes.
    pub const EXITS: &str = "EXITS";
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
    /// 1 if `sched_switch` says by a fourth argument in which state the task leaves (5.18 on).
    pub const SWITCH_HAS_STATE: &str = "SWITCH_HAS_STATE";
    /// 1 if task storage may be made while the scheduler holds its lock (6.4 on: it comes from memory set aside).
    pub const STORAGE_IN_SWITCH: &str = "STORAGE_IN_SWITCH";
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
    /// `task_struct.sched_info.run_delay`: nanoseconds that the task was runnable and waited for a CPU.
    pub const TASK_RUN_DELAY: &str = "TASK_RUN_DELAY";
    /// `task_struct.sched_info.pcount`: how often it was given a CPU.
    pub const TASK_STINTS: &str = "TASK_STINTS";
    /// `task_struct.__state` (`state` before 5.14).
    pub const TASK_STATE: &str = "TASK_STATE";
    /// `task_struct.exit_state`.
    pub const TASK_EXIT_STATE: &str = "TASK_EXIT_STATE";
    /// `task_struct.throttled`: the task was taken off its CPU by the quota of its group (6.18 on).
    pub const TASK_THROTTLED: &str = "TASK_THROTTLED";
    /// `task_struct.se.cfs_rq`.
    pub const TASK_CFS_RQ: &str = "TASK_CFS_RQ";
    /// `cfs_rq.throttle_count`: groups from here up whose quota is used up.
    pub const CFS_RQ_THROTTLED: &str = "CFS_RQ_THROTTLED";
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
    /// `sock.sk_protocol`.
    pub const SOCK_PROTOCOL: &str = "SOCK_PROTOCOL";
    /// `sock.__sk_common.skc_state`.
    pub const SOCK_STATE: &str = "SOCK_STATE";
    /// `sk_buff.sk`.
    pub const SKB_SOCK: &str = "SKB_SOCK";
    /// `tcp_skb_cb.tcp_gso_segs` in `sk_buff.cb`: segments of a buffer that TCP sends.
    pub const SKB_TCP_SEGMENTS: &str = "SKB_TCP_SEGMENTS";
    /// `cgroup.self.parent`.
    pub const CGROUP_PARENT: &str = "CGROUP_PARENT";
    /// `cgroup_subsys_state.cgroup`.
    pub const CSS_CGROUP: &str = "CSS_CGROUP";
    /// 1 if `tcp_retransmit_skb` says by its third argument whether the sending failed.
    pub const RETRANSMIT_HAS_ERROR: &str = "RETRANSMIT_HAS_ERROR";
    /// 1 if `kfree_skb` gives a reason (5.17 on).
    pub const DROP_HAS_REASON: &str = "DROP_HAS_REASON";
    /// 1 if `kfree_skb` names the receiving socket (6.11 on).
    pub const DROP_HAS_SOCKET: &str = "DROP_HAS_SOCKET";
    /// `task_struct.nsproxy`.
    pub const TASK_NSPROXY: &str = "TASK_NSPROXY";
    /// `nsproxy.pid_ns_for_children`.
    pub const NSPROXY_PID_NS: &str = "NSPROXY_PID_NS";
    /// `pid_namespace.child_reaper`.
    pub const PID_NS_REAPER: &str = "PID_NS_REAPER";
    /// `request.q`.
    pub const RQ_QUEUE: &str = "RQ_QUEUE";
    /// `request.cmd_flags`: kind and flags.
    pub const RQ_FLAGS: &str = "RQ_FLAGS";
    /// `request.__data_len`: what is left to do.
    pub const RQ_BYTES: &str = "RQ_BYTES";
    /// `request.nr_phys_segments`.
    pub const RQ_SEGMENTS: &str = "RQ_SEGMENTS";
    /// `request.bio`.
    pub const RQ_BIO: &str = "RQ_BIO";
    /// `request.start_time_ns`: when it was made.
    pub const RQ_START: &str = "RQ_START";
    /// `bio.bi_blkg`.
    pub const BIO_BLKG: &str = "BIO_BLKG";
    /// `blkcg_gq.blkcg`.
    pub const BLKG_BLKCG: &str = "BLKG_BLKCG";
    /// `blkcg.css.cgroup`.
    pub const BLKCG_CGROUP: &str = "BLKCG_CGROUP";
    /// `request_queue.disk`.
    pub const QUEUE_DISK: &str = "QUEUE_DISK";
    /// `gendisk.major`.
    pub const DISK_MAJOR: &str = "DISK_MAJOR";
    /// `gendisk.first_minor`.
    pub const DISK_MINOR: &str = "DISK_MINOR";
}

/// Value of an offset global whose field this kernel's BTF does not have.
pub const OFFSET_UNKNOWN: u64 = u64::MAX;

/// Slots of a [`Histogram`].
pub const SLOTS: usize = 24;

/// Durations by powers of two of a microsecond.
///
/// Slot 0 holds those below 1 us, slot i those of 2^(i-1) us and more but below 2^i us, the last slot (2^22 us = 4.2 s and
/// more) all above.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Histogram {
    /// How many in each slot.
    pub counts: [u64; SLOTS],
    /// Their sum in nanoseconds.
    pub sum_ns: u64,
}
const _: () = assert!(size_of::<Histogram>() == 200);

impl Histogram {
    /// The slot of a duration.
    #[inline(always)]
    #[must_use]
    pub const fn slot(ns: u64) -> usize {
        let slot = (u64::BITS - (ns / 1_000).leading_zeros()) as usize;
        if slot < SLOTS { slot } else { SLOTS - 1 }
    }
}

/// CPU use of one cgroup (its own tasks, not its children's), on one CPU or summed over CPUs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct CpuRecord {
    /// Nanoseconds that the scheduler charged to tasks of the cgroup, up to the last switch away from each of them.
    pub run_ns: u64,
    /// Switches away from a task of the cgroup.
    pub switches: u64,
    /// Of these, those in which the task would have run on (it was preempted, or yielded).
    pub involuntary: u64,
    /// Time that tasks were runnable and waited for a CPU before each stint, as the scheduler itself accounts it
    /// (`task_struct.sched_info.run_delay`); recorded when the stint ends. Its count is that of stints.
    pub wait: Histogram,
}
const _: () = assert!(size_of::<CpuRecord>() == 224);

/// Who took the CPU from whom.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct PreemptKey {
    /// Cgroup of the task that would have run on.
    pub victim: u64,
    /// Cgroup of the task that ran instead; 0 where it is not known.
    pub by: u64,
}
const _: () = assert!(size_of::<PreemptKey>() == 16);

/// Direct reclaim on behalf of one cgroup's tasks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ReclaimRecord {
    /// Time that tasks spent freeing memory because the whole node was short of it.
    pub node: Histogram,
    /// Time that tasks spent freeing memory because a limit of their cgroup or one above was reached.
    pub limit: Histogram,
    /// Pages freed by both.
    pub pages: u64,
}
const _: () = assert!(size_of::<ReclaimRecord>() == 408);

/// Tasks (threads) of one cgroup by state, at the time of the last walk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TaskRecord {
    /// Number of the walk that wrote this; records of earlier walks are stale.
    pub walk: u64,
    /// Running or runnable.
    pub running: u32,
    /// Sleeping, can be woken by a signal.
    pub sleeping: u32,
    /// Sleeping, cannot (D state), idle kernel threads left out.
    pub uninterruptible: u32,
    /// Stopped or traced.
    pub stopped: u32,
    /// Thread-group leaders that are dead and not yet waited for.
    pub zombie: u32,
    /// Thread-group leaders, zombies included: processes.
    pub processes: u32,
}
const _: () = assert!(size_of::<TaskRecord>() == 32);

/// Bytes and packets, as [`NetRecord`] counts them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
}
const _: () = assert!(size_of::<Traffic>() == 32);

/// Traffic of the sockets of one cgroup (its own, not its children's), on one CPU or summed over CPUs.
///
/// Bytes are those of IP packets (header included, link layer not). A segment that the card or the stack merged or has yet
/// to split counts as its packets, but its headers once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NetRecord {
    /// Of TCP sockets.
    pub tcp: Traffic,
    /// Of UDP sockets.
    pub udp: Traffic,
    /// Of all others, and of packets without a full socket.
    pub other: Traffic,
}
const _: () = assert!(size_of::<NetRecord>() == 96);

impl NetRecord {
    /// All protocols together.
    #[must_use]
    pub fn total(self) -> Traffic {
        self.tcp.plus(self.udp).plus(self.other)
    }
}

/// TCP connections of one cgroup's sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TcpRecord {
    /// Connections that were begun from here (SYN sent).
    pub connects: u64,
    /// Of these, those that ended before they were established: refused, timed out, given up.
    pub connect_failures: u64,
    /// Connections from outside that were established (whether or not `accept` has taken them yet).
    pub accepts: u64,
    /// Resets sent on a socket of the cgroup.
    pub resets_sent: u64,
    /// Resets received.
    pub resets_received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// From SYN to established, of connections begun from here.
    pub connect: Histogram,
    /// Smoothed round-trip time (`tcp_sock.srtt_us`), seen at one of [`RTT_SAMPLING`] packets received.
    pub rtt: Histogram,
}
const _: () = assert!(size_of::<TcpRecord>() == 448);

/// One of so many received TCP packets tells its socket's round-trip time.
pub const RTT_SAMPLING: u32 = 16;

/// DNS over UDP, of one cgroup's sockets: what went to port 53 and came back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DnsRecord {
    /// Queries sent.
    pub queries: u64,
    /// Answers that belong to a query.
    pub answers: u64,
    /// Of these, those with an error other than "no such name".
    pub errors: u64,
    /// Of these, those that say that there is no such name.
    pub no_such_name: u64,
    /// From query to answer.
    pub latency: Histogram,
}
const _: () = assert!(size_of::<DnsRecord>() == 232);

/// So many ports of a cgroup have a [`PortRecord`] of their own, those that were asked first.
pub const MOST_PORTS: u64 = 32;
/// Stands in [`PortKey::port`] for all further ones.
pub const OTHER_PORTS: u64 = 0;

/// A port that a cgroup serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct PortKey {
    /// Cgroup of the accepted socket.
    pub cgroup: u64,
    /// Local port, host byte order; or [`OTHER_PORTS`].
    pub port: u64,
}
const _: () = assert!(size_of::<PortKey>() == 16);

/// Requests over TCP at one port. A request begins with the first bytes that come after an answer (or the accept) and is
/// answered with the first bytes that go out after them; of pipelined requests only the first is seen.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortRecord {
    /// Requests that began.
    pub requests: u64,
    /// Connections that ended with a request unanswered.
    pub unanswered: u64,
    /// Answers that begin with an HTTP/1 status line, by the first digit of the status: 1xx to 5xx.
    pub http: [u64; 5],
    /// From the first byte of the request to the first byte of the answer; its count is that of answers.
    pub latency: Histogram,
}
const _: () = assert!(size_of::<PortRecord>() == 256);

/// Dropped packets of a cgroup's sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct DropKey {
    /// Cgroup of the packet's socket.
    pub cgroup: u64,
    /// The kernel's reason (`enum skb_drop_reason`, numbered differently by each release); 0 where it does not tell (before 5.17).
    pub reason: u64,
}
const _: () = assert!(size_of::<DropKey>() == 16);

/// Requests of one cgroup to one block device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct DiskKey {
    /// The cgroup in the hierarchy that has the IO controller: on hybrid layouts the inode of the directory in v1's `blkio`.
    pub cgroup: u64,
    /// The kernel's device number: major << 20 | minor.
    pub device: u32,
    /// One of [`disk`].
    pub op: u32,
}
const _: () = assert!(size_of::<DiskKey>() == 16);

/// Kinds of requests, in [`DiskKey::op`].
pub mod disk {
    /// Reads.
    pub const READ: u32 = 0;
    /// Writes.
    pub const WRITE: u32 = 1;
    /// Everything else: flushes, discards.
    pub const OTHER: u32 = 2;
}

/// Finished requests.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DiskRecord {
    /// Bytes of them.
    pub bytes: u64,
    /// Of these, those that failed.
    pub errors: u64,
    /// From the making of the request to its end: waiting in the block layer and the time of the device. Its count is that of
    /// requests.
    pub latency: Histogram,
}
const _: () = assert!(size_of::<DiskRecord>() == 216);

/// Processes of one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LifeRecord {
    /// Processes made (`fork`, `clone` without `CLONE_THREAD`).
    pub forks: u64,
    /// Threads made.
    pub threads: u64,
    /// Programs begun (`execve`).
    pub execs: u64,
    /// Processes that ended.
    pub exits: u64,
}
const _: () = assert!(size_of::<LifeRecord>() == 32);

/// How processes of a cgroup ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct ExitKey {
    /// Their cgroup.
    pub cgroup: u64,
    /// The status as `wait` gives it: signal in the low 7 bits, 0x80 if a core was dumped, exit code << 8.
    pub status: u64,
}
const _: () = assert!(size_of::<ExitKey>() == 16);

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

/// Index into the `LOST` map: what could not be recorded, because the map of that name was full.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Events dropped because the ring buffer was full.
    Events = 0,
    /// Switches not charged.
    Cpu = 1,
    /// Packets not counted.
    Net = 2,
    /// Spells of reclaim.
    Reclaim = 3,
    /// Facts of TCP sockets.
    Tcp = 4,
    /// DNS queries or answers.
    Dns = 5,
    /// Requests at a port.
    Ports = 6,
    /// Dropped packets.
    Drops = 7,
    /// Disk requests.
    Disk = 8,
    /// Starts and ends of processes.
    Life = 9,
    /// Tasks in a walk.
    Tasks = 10,
}

impl Lost {
    /// Entries of the `LOST` map.
    pub const COUNT: u32 = 11;
    /// Every variant, in index order.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Events,
        Self::Cpu,
        Self::Net,
        Self::Reclaim,
        Self::Tcp,
        Self::Dns,
        Self::Ports,
        Self::Drops,
        Self::Disk,
        Self::Life,
        Self::Tasks,
    ];

    /// Its name in the label of a metric.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Cpu => "cpu",
            Self::Net => "net",
            Self::Reclaim => "reclaim",
            Self::Tcp => "tcp",
            Self::Dns => "dns",
            Self::Ports => "ports",
            Self::Drops => "drops",
            Self::Disk => "disk",
            Self::Life => "life",
            Self::Tasks => "tasks",
        }
    }
}

/// A record that is an array of `u64`, each the count of something: what CPUs counted apart can be added.
pub trait Counts: Pod + Default {
    /// Adds what another CPU counted.
    #[must_use]
    fn plus(mut self, other: Self) -> Self {
        let words: &mut [u64] = bytemuck::cast_slice_mut(core::slice::from_mut(&mut self));
        for (word, more) in words.iter_mut().zip(bytemuck::cast_slice::<Self, u64>(core::slice::from_ref(&other))) {
            *word = word.wrapping_add(*more);
        }
        self
    }
}

impl Counts for u64 {}
impl Counts for Histogram {}
impl Counts for CpuRecord {}
impl Counts for NetRecord {}
impl Counts for Traffic {}
impl Counts for ReclaimRecord {}
impl Counts for TcpRecord {}
impl Counts for DnsRecord {}
impl Counts for PortRecord {}
impl Counts for DiskRecord {}
impl Counts for LifeRecord {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_powers_of_two_of_a_microsecond() {
        for (ns, slot) in [(0, 0), (999, 0), (1_000, 1), (1_999, 1), (2_000, 2), (4_194_304_000, 23), (u64::MAX, 23)] {
            assert_eq!(Histogram::slot(ns), slot, "{ns}");
        }
    }

    #[test]
    fn records_add_up_word_by_word() {
        let mut a = CpuRecord { run_ns: 1, switches: 2, involuntary: 3, ..CpuRecord::default() };
        a.wait.counts[23] = u64::MAX;
        let mut b = a;
        b.wait.counts[23] = 2;
        let sum = a.plus(b);
        assert_eq!((sum.run_ns, sum.switches, sum.involuntary, sum.wait.counts[23]), (2, 4, 6, 1));
    }
}
