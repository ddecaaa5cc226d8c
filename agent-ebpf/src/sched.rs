//! CPU: run time per cgroup.
//!
//! **Approach.** The scheduler itself keeps what each task has run (`se.sum_exec_runtime`), up to date whenever it switches, and
//! adds the same amounts to `cpu.stat`. Each CPU remembers the task that it switched to, and what that had run then; when it
//! switches away from it, the difference belongs to the task's cgroup (at this tracepoint the task that leaves still is
//! `current`). A clock read here instead would be off by the time that a switch takes, which at 100 000 switches a second is
//! some percent, and would count time that the hypervisor stole.
//! The idle task (pid 0) is not charged.
//!
//! A kernel may leave out a program now and then (a hardened one was seen to, for threads that it protects). Then the task that
//! leaves is not the one remembered; what it had run when it was picked is in `se.prev_sum_exec_runtime`, which only the fair
//! class keeps, and which starts anew when the task's class or group changes.
//!
//! **Properties.** Equal to `cpu.stat` after every switch; a task that runs on without one is not charged yet (the agent takes
//! the file for that). So does a process that ends: its parent may hear of the end some milliseconds before the last switch.
//! The very first switch on each CPU only remembers.

use aya_ebpf::{
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid},
    macros::{btf_tracepoint, map},
    maps::{PerCpuArray, PerCpuHashMap},
    programs::BtfTracePointContext,
};
use beelet_ebpf::{Counts as _, CpuRecord, Lost};

use crate::{
    kernel::{self, Object},
    record,
};

#[map]
static CPU: PerCpuHashMap<u64, CpuRecord> = PerCpuHashMap::with_max_entries(8192, 0);

/// Priorities below are of real-time classes (`MAX_RT_PRIO` of the kernel).
const FIRST_FAIR_PRIORITY: i32 = 100;

/// What a CPU remembers between two switches.
#[derive(Clone, Copy)]
struct Stint {
    /// Thread id of the task that was switched to.
    pid: u64,
    /// What the task had run then, in nanoseconds.
    before_ns: u64,
}

#[map]
static STINT: PerCpuArray<Stint> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let Some(stint) = STINT.get_ptr_mut(0) else { return 0 };
    // SAFETY: by BTF the arguments are whether it is a preemption, the task that leaves, the task that comes. The element is
    // this CPU's own, and this tracepoint does not nest.
    let (last, ran, prev) = unsafe {
        let (prev, next): (Object, Object) = (ctx.arg(1), ctx.arg(2));
        let Some(ran) = kernel::get::<u64>(prev, &kernel::TASK_SUM_EXEC) else { return 0 };
        let now = Stint {
            pid: u64::from(kernel::get::<u32>(next, &kernel::TASK_PID).unwrap_or(0)),
            before_ns: kernel::get(next, &kernel::TASK_SUM_EXEC).unwrap_or(0),
        };
        (core::mem::replace(&mut *stint, now), ran, prev)
    };
    let pid = u64::from(bpf_get_current_pid_tgid() as u32);
    if pid == 0 || !kernel::current_is_in_pods() {
        return 0;
    }
    // SAFETY: prev is the task_struct of the context.
    let before = if pid == last.pid { Some(last.before_ns) } else { unsafe { picked_at(prev) } };
    if let Some(before) = before {
        // SAFETY: a helper without pointers.
        charge(unsafe { bpf_get_current_cgroup_id() }, ran.wrapping_sub(before));
    }
    0
}

/// What a task of the fair class had run when it was picked.
///
/// # Safety
/// `task` is a `task_struct` of the context.
#[inline(always)]
unsafe fn picked_at(task: Object) -> Option<u64> {
    // SAFETY: task_struct.prio is an int, the other a u64.
    unsafe {
        let priority: i32 = kernel::get(task, &kernel::TASK_PRIO)?;
        if priority < FIRST_FAIR_PRIORITY { None } else { kernel::get(task, &kernel::TASK_PREV_SUM_EXEC) }
    }
}

#[inline(always)]
fn charge(cgroup: u64, run_ns: u64) {
    let step = CpuRecord { run_ns, switches: 1, ..bytemuck::Zeroable::zeroed() };
    match CPU.get_ptr_mut(cgroup) {
        // SAFETY: the map gave a valid pointer to this CPU's own record.
        Some(record) => unsafe { *record = (*record).plus(step) },
        None => {
            // Two CPUs may come here at once: the second finds the key and sets its own record only.
            if CPU.insert(cgroup, step, 0).is_err() {
                record::lost(Lost::Cpu);
            }
        }
    }
}
