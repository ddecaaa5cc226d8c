//! The table of the eBPF programs: where each is attached, what it needs of the kernel, and which maps it writes.
//!
//! **Problem.** A program that the kernel accepts may still say nothing, because a field or an argument that it lives on is
//! not there; and a map that no program writes must not be read as "nothing happened".
//!
//! **Approach.** One row per program and one per map that grows with the number of pods. The [loader](super::loader) walks the
//! first, sizes maps by the second, and takes only the maps that a loaded program writes.
//!
//! **Properties.** The rows are those of [`program::ALL`], in its order (a test holds them together).

use aya::programs::CgroupSkbAttachType;
use beelet_ebpf_common::{global, map, program};

/// Where a program is attached.
#[derive(Debug, Clone, Copy)]
pub enum Hook {
    /// A tracepoint by BTF (`tp_btf`): the first of these names that the kernel has.
    TracePoint(&'static [&'static str]),
    /// The packets of all sockets below the pods' root.
    CgroupSkb(CgroupSkbAttachType),
    /// An iterator (`bpf_iter_NAME`), which runs when the agent reads it.
    Iterator(&'static str),
}

/// What a program cannot do without, as the globals of [`super::offsets`] have it.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// A field.
    Field(&'static str),
    /// A field, unless a flag says that the kernel tells otherwise: (field, flag).
    FieldUnless(&'static str, &'static str),
}

/// One program.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name in the object, one of [`program::ALL`].
    pub name: &'static str,
    /// Where it is attached.
    pub hook: Hook,
    /// Without any of these it is not loaded.
    pub needs: &'static [Need],
    /// A tracepoint has to pass so many arguments at least, else the program is not loaded.
    pub arguments: usize,
    /// The maps that it writes.
    pub writes: &'static [&'static str],
}

/// What tells whose a socket is.
const SOCKET: &[Need] = &[Need::Field(global::SOCK_CGROUP), Need::Field(global::SOCK_STATE)];

/// All programs, in the order in which they are loaded.
pub const TABLE: &[Row] = &[
    Row {
        name: program::SCHED_SWITCH,
        hook: Hook::TracePoint(&["sched_switch"]),
        needs: &[Need::Field(global::TASK_SUM_EXEC), Need::Field(global::TASK_PID)],
        arguments: 3,
        writes: &[map::CPU, map::PREEMPT],
    },
    Row {
        name: program::SKB_INGRESS,
        hook: Hook::CgroupSkb(CgroupSkbAttachType::Ingress),
        needs: &[],
        arguments: 0,
        writes: &[map::NET, map::TCP, map::PORTS, map::DNS],
    },
    Row {
        name: program::SKB_EGRESS,
        hook: Hook::CgroupSkb(CgroupSkbAttachType::Egress),
        needs: &[],
        arguments: 0,
        writes: &[map::NET, map::PORTS, map::DNS],
    },
    Row {
        name: program::OOM_VICTIM,
        hook: Hook::TracePoint(&["mark_victim"]),
        needs: &[],
        arguments: 1,
        writes: &[map::EVENTS],
    },
    Row {
        name: program::PROCESS_EXIT,
        hook: Hook::TracePoint(&["sched_process_exit"]),
        needs: &[Need::Field(global::TASK_SIGNAL), Need::FieldUnless(global::SIGNAL_LIVE, global::EXIT_HAS_GROUP_DEAD)],
        arguments: 1,
        writes: &[map::EVENTS, map::LIFE, map::EXITS],
    },
    Row {
        name: program::SOCKET_STATE,
        hook: Hook::TracePoint(&["inet_sock_set_state"]),
        needs: &[],
        arguments: 3,
        writes: &[map::EVENTS, map::TCP, map::PORTS],
    },
    Row {
        name: program::TCP_RETRANSMIT,
        hook: Hook::TracePoint(&["tcp_retransmit_skb"]),
        needs: SOCKET,
        arguments: 2,
        writes: &[map::TCP],
    },
    Row {
        name: program::TCP_SEND_RESET,
        hook: Hook::TracePoint(&["tcp_send_reset"]),
        needs: SOCKET,
        arguments: 1,
        writes: &[map::TCP],
    },
    Row {
        name: program::TCP_RECEIVE_RESET,
        hook: Hook::TracePoint(&["tcp_receive_reset"]),
        needs: SOCKET,
        arguments: 1,
        writes: &[map::TCP],
    },
    Row {
        name: program::PACKET_DROP,
        hook: Hook::TracePoint(&["kfree_skb"]),
        needs: &[
            Need::Field(global::SOCK_CGROUP),
            Need::Field(global::SOCK_STATE),
            Need::Field(global::SOCK_FAMILY),
            Need::Field(global::SKB_SOCK),
        ],
        arguments: 1,
        writes: &[map::DROPS],
    },
    Row {
        name: program::PROCESS_FORK,
        hook: Hook::TracePoint(&["sched_process_fork"]),
        needs: &[
            Need::Field(global::TASK_PID),
            Need::Field(global::TASK_TGID),
            Need::Field(global::TASK_CGROUPS),
            Need::Field(global::CSS_SET_DFL_CGRP),
        ],
        arguments: 2,
        writes: &[map::LIFE],
    },
    Row {
        name: program::PROCESS_EXEC,
        hook: Hook::TracePoint(&["sched_process_exec"]),
        needs: &[],
        arguments: 1,
        writes: &[map::LIFE],
    },
    Row {
        name: program::DISK_REQUEST,
        hook: Hook::TracePoint(&["block_rq_complete"]),
        needs: &[
            Need::Field(global::RQ_BIO),
            Need::Field(global::RQ_FLAGS),
            Need::Field(global::RQ_BYTES),
            Need::Field(global::RQ_SEGMENTS),
            Need::Field(global::RQ_START),
            Need::Field(global::BIO_BLKG),
            Need::Field(global::BLKG_BLKCG),
            Need::Field(global::BLKCG_CGROUP),
        ],
        arguments: 3,
        writes: &[map::DISK],
    },
    Row {
        name: program::RECLAIM_BEGIN,
        hook: Hook::TracePoint(&["mm_vmscan_direct_reclaim_begin"]),
        needs: &[],
        arguments: 1,
        writes: &[map::RECLAIM],
    },
    Row {
        name: program::RECLAIM_END,
        hook: Hook::TracePoint(&["mm_vmscan_direct_reclaim_end"]),
        needs: &[],
        arguments: 1,
        writes: &[map::RECLAIM],
    },
    Row {
        name: program::LIMIT_BEGIN,
        hook: Hook::TracePoint(&["mm_vmscan_memcg_reclaim_begin"]),
        needs: &[],
        arguments: 1,
        writes: &[map::RECLAIM],
    },
    Row {
        name: program::LIMIT_END,
        hook: Hook::TracePoint(&["mm_vmscan_memcg_reclaim_end"]),
        needs: &[],
        arguments: 1,
        writes: &[map::RECLAIM],
    },
    Row {
        name: program::TASK_WALK,
        hook: Hook::Iterator("task"),
        needs: &[
            Need::Field(global::TASK_CGROUPS),
            Need::Field(global::CSS_SET_DFL_CGRP),
            Need::Field(global::TASK_STATE),
            Need::Field(global::TASK_EXIT_STATE),
        ],
        arguments: 0,
        writes: &[map::TASKS],
    },
];

/// Maps that grow with the node: name, and entries per cgroup for which there is room.
///
/// Preallocated (programs that run in the scheduler must not allocate), so each entry costs its record whether used or not; in
/// a per-CPU map once per possible CPU.
pub const SIZED: &[(&str, u32)] = &[
    (map::CPU, 1),
    (map::NET, 1),
    (map::PREEMPT, 4),
    (map::RECLAIM, 1),
    (map::TASKS, 1),
    (map::TCP, 1),
    (map::DNS, 1),
    (map::PORTS, 2),
    (map::DROPS, 4),
    (map::DISK, 4),
    (map::LIFE, 1),
    (map::EXITS, 4),
];

/// Cgroups for which there is to be room on a node that may run so many pods: a pod has its own, its sandbox's, those of its
/// containers, and for a while those of the containers that were before. 1024..=16384, a power of two.
#[must_use]
pub fn entries(max_pods: u32) -> u32 {
    max_pods.saturating_mul(8).clamp(1_024, 16_384).next_power_of_two()
}

/// The programs that write a map.
pub fn writers(map: &str) -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(move |row| row.writes.contains(&map)).map(|row| row.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_program_has_a_row_and_every_row_a_program() {
        let rows: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(rows, program::ALL);
    }

    #[test]
    fn every_row_can_be_attached_and_writes_something() {
        for row in TABLE {
            assert!(!row.writes.is_empty(), "{}", row.name);
            match row.hook {
                Hook::TracePoint(names) => assert!(!names.is_empty() && row.arguments > 0, "{}", row.name),
                Hook::CgroupSkb(_) | Hook::Iterator(_) => assert_eq!(row.arguments, 0, "{}", row.name),
            }
        }
        let sized: BTreeSet<&str> = SIZED.iter().map(|(name, _)| *name).collect();
        assert_eq!(sized.len(), SIZED.len());
    }

    #[test]
    fn there_is_room_for_eight_cgroups_per_pod_within_bounds() {
        for (pods, room) in [(0, 1_024), (110, 1_024), (128, 1_024), (129, 2_048), (500, 4_096), (u32::MAX, 16_384)] {
            assert_eq!(entries(pods), room, "{pods} pods");
        }
    }
}
