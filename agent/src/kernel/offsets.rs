//! The globals of the eBPF object, filled for this kernel.
//!
//! **Approach.** A table of (global, struct, path). A field that the kernel lacks becomes
//! [`OFFSET_UNKNOWN`], which makes the programs leave it out, and is named in [`Offsets::missing`].

use beelet_ebpf_common::{OFFSET_UNKNOWN, global};

use super::btf::{Argument, Btf};

/// Values of the globals, and what could not be found.
#[derive(Debug, Default)]
pub struct Offsets {
    /// Global -> value.
    pub values: Vec<(&'static str, u64)>,
    /// Fields that this kernel's BTF does not have, as text.
    pub missing: Vec<String>,
}

/// Global, struct, and paths of which the first that exists is taken (names moved between kernels).
const FIELDS: &[(&str, &str, &[&str])] = &[
    (global::TASK_PID, "task_struct", &["pid"]),
    (global::TASK_TGID, "task_struct", &["tgid"]),
    (global::TASK_SUM_EXEC, "task_struct", &["se.sum_exec_runtime"]),
    (global::TASK_PREV_SUM_EXEC, "task_struct", &["se.prev_sum_exec_runtime"]),
    (global::TASK_RUN_DELAY, "task_struct", &["sched_info.run_delay"]),
    (global::TASK_STINTS, "task_struct", &["sched_info.pcount"]),
    (global::TASK_STATE, "task_struct", &["__state", "state"]),
    (global::TASK_EXIT_STATE, "task_struct", &["exit_state"]),
    (global::TASK_CFS_RQ, "task_struct", &["se.cfs_rq"]),
    (global::CFS_RQ_THROTTLED, "cfs_rq", &["throttle_count"]),
    (global::TASK_PRIO, "task_struct", &["prio"]),
    (global::TASK_COMM, "task_struct", &["comm"]),
    (global::TASK_EXIT_CODE, "task_struct", &["exit_code"]),
    (global::TASK_START_TIME, "task_struct", &["start_time"]),
    (global::TASK_GROUP_LEADER, "task_struct", &["group_leader"]),
    (global::TASK_SIGNAL, "task_struct", &["signal"]),
    (global::TASK_MM, "task_struct", &["mm"]),
    (global::TASK_CGROUPS, "task_struct", &["cgroups"]),
    (global::TASK_THREAD_PID, "task_struct", &["thread_pid"]),
    (global::SIGNAL_LIVE, "signal_struct", &["live"]),
    (global::SIGNAL_FLAGS, "signal_struct", &["flags"]),
    (global::SIGNAL_GROUP_EXIT_CODE, "signal_struct", &["group_exit_code"]),
    (global::SIGNAL_OOM_MM, "signal_struct", &["oom_mm"]),
    (global::SIGNAL_OOM_SCORE_ADJ, "signal_struct", &["oom_score_adj"]),
    // Elements: file 0, anonymous 1, swap 2, shmem 3. Only where each is a struct of its own (since 6.2): before, they are an
    // array of a typedef, into which the verifier lets nobody look, and the event goes without memory figures.
    (global::MM_RSS_FILE, "mm_struct", &["rss_stat[0].count"]),
    (global::MM_RSS_ANON, "mm_struct", &["rss_stat[1].count"]),
    (global::MM_RSS_SHMEM, "mm_struct", &["rss_stat[3].count"]),
    (global::CSS_SET_DFL_CGRP, "css_set", &["dfl_cgrp"]),
    (global::CGROUP_KN, "cgroup", &["kn"]),
    (global::KERNFS_NODE_ID, "kernfs_node", &["id"]),
    (global::PID_LEVEL, "pid", &["level"]),
    (global::SOCK_PORT, "sock", &["__sk_common.skc_num"]),
    (global::SOCK_FAMILY, "sock", &["__sk_common.skc_family"]),
    (global::SOCK_CGROUP, "sock", &["sk_cgrp_data.cgroup"]),
    (global::TCP_SOCK_SPORT, "tcp_sock", &["inet_conn.icsk_inet.inet_sport"]),
    (global::SOCK_PROTOCOL, "sock", &["sk_protocol"]),
    (global::SOCK_STATE, "sock", &["__sk_common.skc_state"]),
    (global::SKB_SOCK, "sk_buff", &["sk"]),
    (global::CGROUP_PARENT, "cgroup", &["self.parent"]),
    (global::CSS_CGROUP, "cgroup_subsys_state", &["cgroup"]),
    (global::TASK_NSPROXY, "task_struct", &["nsproxy"]),
    (global::NSPROXY_PID_NS, "nsproxy", &["pid_ns_for_children"]),
    (global::PID_NS_REAPER, "pid_namespace", &["child_reaper"]),
    (global::RQ_QUEUE, "request", &["q"]),
    (global::RQ_FLAGS, "request", &["cmd_flags"]),
    (global::RQ_BYTES, "request", &["__data_len"]),
    (global::RQ_SEGMENTS, "request", &["nr_phys_segments"]),
    (global::RQ_BIO, "request", &["bio"]),
    (global::RQ_START, "request", &["start_time_ns"]),
    (global::BIO_BLKG, "bio", &["bi_blkg"]),
    (global::BLKG_BLKCG, "blkcg_gq", &["blkcg"]),
    (global::BLKCG_CGROUP, "blkcg", &["css.cgroup"]),
    (global::QUEUE_DISK, "request_queue", &["disk"]),
    (global::DISK_MAJOR, "gendisk", &["major"]),
    (global::DISK_MINOR, "gendisk", &["first_minor"]),
];

impl Offsets {
    /// Looks everything up.
    #[must_use]
    pub fn of(btf: &Btf) -> Self {
        let mut offsets = Self::default();
        for (global, strukt, paths) in FIELDS {
            let found = paths.iter().find_map(|path| btf.member_offset(strukt, path).ok());
            offsets.put(global, found.map(u64::from), || format!("{strukt}.{}", paths[0]));
        }
        let numbers = match btf.array_len("pid", "numbers") {
            // The verifier lets a program behind the first element only if the array is flexible.
            Ok(0) => btf.member_offset("pid", "numbers").ok().map(u64::from),
            _ => None,
        };
        offsets.put(global::PID_NUMBERS, numbers, || "pid.numbers as a flexible array".into());
        offsets.values.push((global::UPID_SIZE, btf.struct_size("upid").map_or(16, u64::from)));

        // Not missing where it is not there: before 6.18 `cfs_rq.throttle_count` tells the same.
        let throttled = btf.member_offset("task_struct", "throttled").map_or(OFFSET_UNKNOWN, u64::from);
        offsets.values.push((global::TASK_THROTTLED, throttled));
        let switch_has_state = btf.tracepoint("sched_switch").is_ok_and(|arguments| arguments.len() >= 4);
        offsets.values.push((global::SWITCH_HAS_STATE, switch_has_state.into()));
        // Before 6.4 task storage comes from kmalloc, which may wake kswapd, which takes the lock that the scheduler holds. Since
        // then it comes from an allocator of its own (`selem_ma`), later from one that takes no locks. A kernel that shows
        // neither (7.2) is taken for one that must not: there it is made by the fork and the walk.
        let in_switch = ["selem_ma", "use_kmalloc_nolock"]
            .iter()
            .any(|member| btf.member_offset("bpf_local_storage_map", member).is_ok());
        offsets.values.push((global::STORAGE_IN_SWITCH, in_switch.into()));
        let segments = match (btf.member_offset("sk_buff", "cb"), btf.member_offset("tcp_skb_cb", "tcp_gso_segs")) {
            (Ok(block), Ok(field)) => Some(u64::from(block) + u64::from(field)),
            _ => None,
        };
        offsets.put(global::SKB_TCP_SEGMENTS, segments, || "tcp_skb_cb.tcp_gso_segs".into());

        let passes = |name, count| u64::from(btf.tracepoint(name).is_ok_and(|arguments| arguments.len() >= count));
        offsets.values.extend([
            (global::RETRANSMIT_HAS_ERROR, passes("tcp_retransmit_skb", 3)),
            (global::DROP_HAS_REASON, passes("kfree_skb", 3)),
            (global::DROP_HAS_SOCKET, passes("kfree_skb", 4)),
        ]);
        let victim_is_task = btf.tracepoint("mark_victim").is_ok_and(|arguments| is_task(arguments.first()));
        offsets.values.push((global::VICTIM_IS_TASK, victim_is_task.into()));
        let exit_has_group_dead = btf.tracepoint("sched_process_exit").is_ok_and(|arguments| arguments.len() >= 2);
        offsets.values.push((global::EXIT_HAS_GROUP_DEAD, exit_has_group_dead.into()));
        offsets
    }

    /// The value of one global.
    #[must_use]
    pub fn get(&self, global: &str) -> Option<u64> {
        self.values.iter().find(|(name, _)| *name == global).map(|(_, value)| *value)
    }

    fn put(&mut self, global: &'static str, value: Option<u64>, describe: impl FnOnce() -> String) {
        if value.is_none() {
            self.missing.push(describe());
        }
        self.values.push((global, value.unwrap_or(OFFSET_UNKNOWN)));
    }
}

/// What a global stands for: the field with its struct; of other globals the name.
#[must_use]
pub fn describe(global: &str) -> String {
    let field = FIELDS.iter().find(|(name, _, _)| *name == global);
    field.map_or_else(|| global.to_owned(), |(_, strukt, paths)| format!("{strukt}.{}", paths[0]))
}

fn is_task(argument: Option<&Argument>) -> bool {
    matches!(argument, Some(Argument::Struct(name)) if name == "task_struct")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::tests::Maker;

    #[test]
    fn a_kernel_without_these_types_gives_unknown_offsets_and_names_them() {
        let mut empty = 0xeb9f_u16.to_ne_bytes().to_vec();
        empty.extend([1, 0]);
        for word in [24_u32, 0, 0, 0, 1] {
            empty.extend(word.to_ne_bytes());
        }
        empty.push(0);
        let offsets = Offsets::of(&Btf::parse(empty).unwrap());
        assert_eq!(offsets.get(global::SOCK_PORT), Some(OFFSET_UNKNOWN));
        assert_eq!(offsets.get(global::VICTIM_IS_TASK), Some(0));
        assert!(offsets.missing.contains(&"task_struct.exit_code".to_owned()));
    }

    /// `mm_struct` with its counters as before 6.2 (a struct around an array of a typedef) and since (an array of structs).
    fn counters(array_of_structs: bool) -> Offsets {
        // Kinds of BTF.
        const INT: u32 = 1;
        const ARRAY: u32 = 3;
        const STRUCT: u32 = 4;
        const TYPEDEF: u32 = 8;
        let mut btf = Maker::default();
        let (counter, count, rss_stat) = (btf.name("counter"), btf.name("count"), btf.name("rss_stat"));
        btf.add("long long", INT, 0, 8, &[64]); // 1
        if array_of_structs {
            btf.add("percpu_counter", STRUCT, 1, 40, &[count, 1, 64]); // 2
            btf.add("", ARRAY, 0, 0, &[2, 1, 4]); // 3
            btf.add("mm_struct", STRUCT, 1, 1024, &[rss_stat, 3, 640]); // 4
        } else {
            btf.add("", STRUCT, 1, 8, &[counter, 1, 0]); // 2
            btf.add("atomic_long_t", TYPEDEF, 0, 2, &[]); // 3
            btf.add("", ARRAY, 0, 0, &[3, 1, 4]); // 4
            btf.add("mm_rss_stat", STRUCT, 1, 32, &[count, 4, 0]); // 5
            btf.add("mm_struct", STRUCT, 1, 1024, &[rss_stat, 5, 640]); // 6
        }
        Offsets::of(&Btf::parse(btf.finish()).unwrap())
    }

    #[test]
    fn memory_counters_are_read_only_where_the_verifier_lets() {
        let new = counters(true);
        assert_eq!(new.get(global::MM_RSS_ANON), Some(80 + 40 + 8));
        assert_eq!(new.get(global::MM_RSS_SHMEM), Some(80 + 3 * 40 + 8));
        let old = counters(false);
        assert_eq!(old.get(global::MM_RSS_ANON), Some(OFFSET_UNKNOWN));
        assert!(old.missing.contains(&"mm_struct.rss_stat[1].count".to_owned()));
    }
}
