//! Life: processes that begin, become another program, and end.
//!
//! **Approach.** Each is counted for its cgroup; the child of a fork for the cgroup that it begins in, which `clone3` may choose.
//! How a process ended is counted by status. An event is sent only for an end that somebody acts on at once: that of a
//! container's first process, by a signal, or after the OOM killer's mark. A loop that forks does not fill the ring buffer.
//!
//! A process has ended when its last thread exits. Newer kernels say so in the tracepoint's second argument; elsewhere
//! `signal->live` is 0 then, which two threads that exit at once may both see: there the first one leaves its mark in [`ENDED`].
//! The status is what `wait` will report: that of the whole group if something ended the group, else that of the leader.
//!
//! A process is a container's first one if it is the reaper of its pid namespace. Its pid there is 1, too, but kernels before
//! 6.6 or so let no program read that.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_comm},
    macros::{btf_tracepoint, map},
    maps::{HashMap, LruHashMap},
    programs::BtfTracePointContext,
};
use beelet_ebpf::{Event, ExitKey, LifeRecord, Lost, flag, kind};

use crate::{
    kernel::{self, Object},
    record, sched,
};

/// `SIGNAL_GROUP_EXIT` of the kernel: the whole process was ended, with `group_exit_code`.
const GROUP_EXIT: u32 = 4;
/// The part of a status that is a signal.
const SIGNAL: u32 = 0x7f;

#[map]
static LIFE: HashMap<u64, LifeRecord> = HashMap::with_max_entries(1024, 0);

#[map]
static EXITS: LruHashMap<ExitKey, u64> = LruHashMap::with_max_entries(4096, 0);

/// Processes that ended lately, by id and start.
#[map]
static ENDED: LruHashMap<[u64; 2], u32> = LruHashMap::with_max_entries(1024, 0);

#[btf_tracepoint(function = "sched_process_fork")]
pub fn process_fork(ctx: BtfTracePointContext) -> i32 {
    let child: Object = ctx.arg(1);
    // SAFETY: by BTF the arguments are the task that forks and the new one; a record that a map gave.
    unsafe {
        let Some(cgroup) = kernel::task_cgroup(child) else { return 0 };
        let Some(id) = kernel::cgroup_id(cgroup) else { return 0 };
        let record = match LIFE.get_ptr_mut(id) {
            Some(record) => record,
            // Whoever has a record is in the pods, which is dear to find out.
            None if !kernel::is_in_pods(cgroup) => return 0,
            None => match record::shared(&LIFE, &id, Lost::Life) {
                Some(record) => record,
                None => return 0,
            },
        };
        sched::expect(child, false);
        let pid: Option<u32> = kernel::get(child, &kernel::TASK_PID);
        if pid == kernel::get(child, &kernel::TASK_TGID) {
            record::add(&raw mut (*record).forks, 1);
        } else {
            record::add(&raw mut (*record).threads, 1);
        }
    }
    0
}

#[btf_tracepoint(function = "sched_process_exec")]
pub fn process_exec(_ctx: BtfTracePointContext) -> i32 {
    if !kernel::current_is_in_pods() {
        return 0;
    }
    // SAFETY: a helper without pointers; a record that a map gave.
    unsafe {
        if let Some(record) = record::shared(&LIFE, &bpf_get_current_cgroup_id(), Lost::Life) {
            record::add(&raw mut (*record).execs, 1);
        }
    }
    0
}

#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: Object = ctx.arg(0);
    // SAFETY: by BTF the first argument is the exiting task, which is `current`.
    unsafe {
        let Some(signal) = kernel::follow(task, &kernel::TASK_SIGNAL) else { return 0 };
        let is_told = kernel::EXIT_HAS_GROUP_DEAD.load() == 1;
        let dead = if is_told {
            ctx.arg::<u64>(1) as u8 != 0
        } else {
            kernel::get::<u32>(signal, &kernel::SIGNAL_LIVE) == Some(0)
        };
        if !dead || !kernel::current_is_in_pods() {
            return 0;
        }
        let leader = kernel::follow(task, &kernel::TASK_GROUP_LEADER).unwrap_or(task);
        let start_ns: u64 = kernel::get(leader, &kernel::TASK_START_TIME).unwrap_or(0);
        if !is_told && ENDED.insert([u64::from(ctx.tgid()), start_ns], 1, record::NO_REPLACE).is_err() {
            return 0;
        }
        let status: u32 = match kernel::get::<u32>(signal, &kernel::SIGNAL_FLAGS) {
            Some(flags) if flags & GROUP_EXIT != 0 => kernel::get(signal, &kernel::SIGNAL_GROUP_EXIT_CODE),
            _ => kernel::get(leader, &kernel::TASK_EXIT_CODE),
        }
        .unwrap_or(0);
        let cgroup = bpf_get_current_cgroup_id();
        count_end(cgroup, status);

        let oom_marked = kernel::get::<u64>(signal, &kernel::SIGNAL_OOM_MM).unwrap_or(0) != 0;
        let ns_pid = ns_pid(leader);
        let is_first = is_reaper(task, ctx.tgid()).or(ns_pid.map(|pid| pid == 1));
        if is_first == Some(false) && status & SIGNAL == 0 && !oom_marked {
            return 0;
        }
        let mut event = record::event(kind::PROCESS_EXIT);
        describe_current(&ctx, &mut event);
        event.cgroup_id = cgroup;
        event.exit_code = status;
        event.start_ns = start_ns;
        event.ns_pid = match (ns_pid, is_first) {
            (Some(pid), _) => pid,
            (None, Some(true)) => 1,
            (None, _) => 0,
        };
        if oom_marked {
            event.flags |= flag::OOM_MARKED;
        }
        record::emit(&event);
    }
    0
}

/// Counts the end of a process.
#[inline(always)]
fn count_end(cgroup: u64, status: u32) {
    // SAFETY: records that maps gave.
    unsafe {
        if let Some(record) = record::shared(&LIFE, &cgroup, Lost::Life) {
            record::add(&raw mut (*record).exits, 1);
        }
        let key = ExitKey { cgroup, status: u64::from(status) };
        if let Some(number) = EXITS.get_ptr_mut(key) {
            return record::add(number, 1);
        }
        // Another CPU may have made it meanwhile, so a failure says nothing yet.
        let _ = EXITS.insert(key, 0, record::NO_REPLACE);
        match EXITS.get_ptr_mut(key) {
            Some(number) => record::add(number, 1),
            None => record::lost(Lost::Life),
        }
    }
}

/// Pid, tgid and name of the current task.
#[inline(always)]
fn describe_current(ctx: &BtfTracePointContext, event: &mut Event) {
    event.pid = ctx.pid();
    event.tgid = ctx.tgid();
    if let Ok(comm) = bpf_get_current_comm() {
        event.comm = comm;
    }
}

/// Whether a process is the one that orphans of its pid namespace are given to; `None` where the kernel's structs do not tell.
/// One of its threads has this office, not always the leader.
///
/// # Safety
/// `task` is the `task_struct` of the context, a thread of the process `tgid`.
#[inline(always)]
unsafe fn is_reaper(task: Object, tgid: u32) -> Option<bool> {
    // SAFETY: task_struct.nsproxy is one, whose pid_ns_for_children is a pid_namespace, whose child_reaper is a task_struct.
    unsafe {
        let namespace = kernel::follow(kernel::follow(task, &kernel::TASK_NSPROXY)?, &kernel::NSPROXY_PID_NS)?;
        let reaper = kernel::follow(namespace, &kernel::PID_NS_REAPER)?;
        Some(kernel::get::<u32>(reaper, &kernel::TASK_TGID)? == tgid)
    }
}

/// The pid in the task's innermost pid namespace, for up to three levels of them.
///
/// # Safety
/// `task` is a `task_struct`, from [`kernel::follow`].
#[inline(always)]
unsafe fn ns_pid(task: Object) -> Option<u32> {
    // SAFETY: task_struct.thread_pid is a struct pid; pid.numbers holds level + 1 elements that begin with a pid_t.
    unsafe {
        let pid = kernel::follow(task, &kernel::TASK_THREAD_PID)?;
        let level: u32 = kernel::get(pid, &kernel::PID_LEVEL)?;
        let step = kernel::UPID_SIZE.load() as usize;
        // The verifier wants constant offsets, hence the arms.
        match level {
            0 => kernel::get(pid, &kernel::PID_NUMBERS),
            1 => kernel::get(pid.add(step), &kernel::PID_NUMBERS),
            2 => kernel::get(pid.add(2 * step), &kernel::PID_NUMBERS),
            3 => kernel::get(pid.add(3 * step), &kernel::PID_NUMBERS),
            _ => None,
        }
    }
}
