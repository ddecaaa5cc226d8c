//! Life: processes that end.
//!
//! **Approach.** A process has ended when its last thread exits. Newer kernels say so in the tracepoint's second argument;
//! elsewhere `signal->live` is 0 then, which two threads that exit at once may both see: the agent drops the second event by
//! (tgid, start time). The status is what `wait` will report: that of the whole group if something ended the group, else
//! that of the leader.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_comm},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use beelet_ebpf::{Event, flag, kind};

use crate::{
    kernel::{self, Object},
    record,
};

/// `SIGNAL_GROUP_EXIT` of the kernel: the whole process was ended, with `group_exit_code`.
const GROUP_EXIT: u32 = 4;

#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: Object = ctx.arg(0);
    // SAFETY: by BTF the first argument is the exiting task, which is `current`.
    unsafe {
        let Some(signal) = kernel::follow(task, &kernel::TASK_SIGNAL) else { return 0 };
        let dead = if kernel::EXIT_HAS_GROUP_DEAD.load() == 1 {
            ctx.arg::<u64>(1) as u8 != 0
        } else {
            kernel::get::<u32>(signal, &kernel::SIGNAL_LIVE) == Some(0)
        };
        if !dead || !kernel::current_is_in_pods() {
            return 0;
        }
        let mut event = record::event(kind::PROCESS_EXIT);
        describe_current(&ctx, &mut event);
        event.cgroup_id = bpf_get_current_cgroup_id();
        let leader = kernel::follow(task, &kernel::TASK_GROUP_LEADER);
        event.exit_code = match kernel::get::<u32>(signal, &kernel::SIGNAL_FLAGS) {
            Some(flags) if flags & GROUP_EXIT != 0 => kernel::get(signal, &kernel::SIGNAL_GROUP_EXIT_CODE),
            _ => kernel::get(leader.unwrap_or(task), &kernel::TASK_EXIT_CODE),
        }
        .unwrap_or(0);
        if let Some(leader) = leader {
            event.start_ns = kernel::get(leader, &kernel::TASK_START_TIME).unwrap_or(0);
            event.ns_pid = ns_pid(leader).unwrap_or(0);
        }
        if kernel::get::<u64>(signal, &kernel::SIGNAL_OOM_MM).unwrap_or(0) != 0 {
            event.flags |= flag::OOM_MARKED;
        }
        record::emit(&event);
    }
    0
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
