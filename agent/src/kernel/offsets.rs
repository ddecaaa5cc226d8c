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
    // An array of per-CPU counters since 6.2, a struct of atomics before. Elements: file 0, anonymous 1, swap 2, shmem 3.
    (global::MM_RSS_FILE, "mm_struct", &["rss_stat[0].count", "rss_stat.count[0]"]),
    (global::MM_RSS_ANON, "mm_struct", &["rss_stat[1].count", "rss_stat.count[1]"]),
    (global::MM_RSS_SHMEM, "mm_struct", &["rss_stat[3].count", "rss_stat.count[3]"]),
    (global::CSS_SET_DFL_CGRP, "css_set", &["dfl_cgrp"]),
    (global::CGROUP_KN, "cgroup", &["kn"]),
    (global::KERNFS_NODE_ID, "kernfs_node", &["id"]),
    (global::PID_LEVEL, "pid", &["level"]),
    (global::SOCK_PORT, "sock", &["__sk_common.skc_num"]),
    (global::SOCK_FAMILY, "sock", &["__sk_common.skc_family"]),
    (global::SOCK_CGROUP, "sock", &["sk_cgrp_data.cgroup"]),
    (global::TCP_SOCK_SPORT, "tcp_sock", &["inet_conn.icsk_inet.inet_sport"]),
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

fn is_task(argument: Option<&Argument>) -> bool {
    matches!(argument, Some(Argument::Struct(name)) if name == "task_struct")
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
