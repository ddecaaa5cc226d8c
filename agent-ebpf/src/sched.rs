//! CPU: run time, waiting for a CPU and preemptions per cgroup.
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
//! Waiting is the scheduler's account as well: `sched_info.run_delay`, what `/proc/PID/schedstat` shows. It grows when a task is
//! given a CPU, after this tracepoint, and when one that waits is moved to another CPU. So what it has grown between two
//! switches away from a task is the wait before the stint between them, and no hook where tasks wake is needed. The value
//! of the switch before is kept with the task; a task's first stint began with 0. Without either (a task that is older than
//! the program) the value of when this CPU switched to it stands in, which misses waiting on another CPU before.
//! Before 6.4 memory for the value must not be taken here, under the scheduler's lock: it could wake kswapd, which wants that
//! lock. There the fork takes it, and for tasks that were not born in the pods the walk over tasks.
//!
//! A task that leaves though it would run on was preempted, or yielded: as `nonvoluntary_ctxt_switches` counts. If another task
//! comes, and it is not that the quota of the group is used up, that task's cgroup has taken the CPU.
//!
//! **Properties.** Equal to `cpu.stat` after every switch; a task that runs on without one is not charged yet (the agent takes
//! the file for that). So does a process that ends: its parent may hear of the end some milliseconds before the last switch.
//! The very first switch on each CPU only remembers. Time that a task was runnable but its group throttled is waiting, too.

use aya_ebpf::{
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid},
    macros::{btf_map, btf_tracepoint, map},
    maps::{LruHashMap, PerCpuArray, PerCpuHashMap},
    programs::BtfTracePointContext,
};
use beelet_ebpf::{CpuRecord, Lost, PreemptKey};

use crate::{
    kernel::{self, Object},
    record,
    storage::TaskStorage,
};

#[map]
static CPU: PerCpuHashMap<u64, CpuRecord> = PerCpuHashMap::with_max_entries(8192, 0);

#[map]
static PREEMPT: LruHashMap<PreemptKey, u64> = LruHashMap::with_max_entries(8192, 0);

/// `run_delay` of a task at the last switch away from it, plus 1; 0 if there was none.
#[btf_map]
static WAITED: TaskStorage<u64> = TaskStorage::new();

/// Priorities below are of real-time classes (`MAX_RT_PRIO` of the kernel).
const FIRST_FAIR_PRIORITY: i32 = 100;
/// `TASK_DEAD` of the kernel: the task never runs again.
const DEAD: u32 = 0x80;

/// What a CPU remembers between two switches.
#[derive(Clone, Copy)]
struct Stint {
    /// Thread id of the task that was switched to.
    pid: u64,
    /// What the task had run then, in nanoseconds.
    ran_ns: u64,
    /// What it had waited then, in nanoseconds, without the wait that ended then.
    waited_ns: u64,
}

#[map]
static STINT: PerCpuArray<Stint> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let Some(stint) = STINT.get_ptr_mut(0) else { return 0 };
    let (prev, next): (Object, Object) = (ctx.arg(1), ctx.arg(2));
    // SAFETY: by BTF the arguments are whether it is a preemption, the task that leaves, the task that comes. The element is
    // this CPU's own, and this tracepoint does not nest.
    let (last, next_pid) = unsafe {
        let pid = u64::from(kernel::get::<u32>(next, &kernel::TASK_PID).unwrap_or(0));
        let now = Stint {
            pid,
            ran_ns: kernel::get(next, &kernel::TASK_SUM_EXEC).unwrap_or(0),
            waited_ns: kernel::get(next, &kernel::TASK_RUN_DELAY).unwrap_or(0),
        };
        (core::mem::replace(&mut *stint, now), pid)
    };
    let pid = u64::from(bpf_get_current_pid_tgid() as u32);
    if pid == 0 || !kernel::current_is_in_pods() {
        return 0;
    }
    let last = if pid == last.pid { Some(last) } else { None };
    // SAFETY: a helper without pointers.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: prev and next are the task_structs of the context; the record is this CPU's own.
    unsafe {
        let state = state(&ctx, prev);
        let waited = waited(prev, state, last);
        let Some(ran) = kernel::get::<u64>(prev, &kernel::TASK_SUM_EXEC) else { return 0 };
        let before = last.map_or_else(|| picked_at(prev), |last| Some(last.ran_ns));
        let Some(record) = record::of_cpu(&CPU, &cgroup, Lost::Cpu) else { return 0 };
        if let Some(before) = before {
            (*record).run_ns += ran.wrapping_sub(before);
            (*record).switches += 1;
        }
        if let Some(wait) = waited {
            record::observe_own(&raw mut (*record).wait, wait);
        }
        let preempted = ctx.arg::<u64>(0) as u8 != 0;
        if preempted || state == 0 {
            (*record).involuntary += 1;
            if next_pid != 0 && !throttled(prev) {
                preemption(PreemptKey { victim: cgroup, by: kernel::task_cgroup_id(next).unwrap_or(0) });
            }
        }
    }
    0
}

/// The state in which a task leaves; 0 is runnable. Where the tracepoint does not tell, a task that was about to sleep and is
/// kept awake by a signal counts as runnable.
///
/// # Safety
/// `prev` is the `task_struct` of the context.
#[inline(always)]
unsafe fn state(ctx: &BtfTracePointContext, prev: Object) -> u32 {
    if kernel::SWITCH_HAS_STATE.load() == 1 {
        return ctx.arg::<u64>(3) as u32;
    }
    // SAFETY: task_struct.__state is an unsigned int, the low half of the long that it was before 5.14.
    unsafe { kernel::get(prev, &kernel::TASK_STATE).unwrap_or(1) }
}

/// The wait before the stint that ends; keeps what the next one begins with.
///
/// # Safety
/// `prev` is the `task_struct` of the context.
#[inline(always)]
unsafe fn waited(prev: Object, state: u32, last: Option<Stint>) -> Option<u64> {
    // SAFETY: sched_info.run_delay is a u64, pcount a long; the value in the storage is the task's, which leaves on this CPU.
    unsafe {
        let now: u64 = kernel::get(prev, &kernel::TASK_RUN_DELAY)?;
        let create = if state & DEAD == 0 { kernel::STORAGE_IN_SWITCH.load() } else { 0 };
        let before = match WAITED.get(prev, create) {
            Some(kept) => core::mem::replace(&mut *kept, now + 1),
            None => 0,
        };
        if before != 0 {
            return Some(now.saturating_sub(before - 1));
        }
        if kernel::get::<u64>(prev, &kernel::TASK_STINTS) == Some(1) {
            return Some(now);
        }
        last.map(|last| now.saturating_sub(last.waited_ns))
    }
}

/// Makes room for what a task has waited, where a switch must not do it: for a task that begins, and for one that a walk finds.
/// Of a task that sleeps it is known: it has waited for nothing since it left its CPU.
///
/// # Safety
/// `task` is a `task_struct` of the context, in the pods.
#[inline(always)]
pub unsafe fn expect(task: Object, sleeps: bool) {
    if kernel::STORAGE_IN_SWITCH.load() == 1 {
        return;
    }
    // SAFETY: the caller's word; the value is of a map. Where there is no memory the task goes without. A task that wakes, runs
    // and leaves just now may be set back, once.
    unsafe {
        if let Some(kept) = WAITED.get(task, 1)
            && *kept == 0
            && sleeps
            && let Some(now) = kernel::get::<u64>(task, &kernel::TASK_RUN_DELAY)
        {
            *kept = now + 1;
        }
    }
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

/// Whether a task leaves because the quota of its group is used up. Since 6.18 the task itself says so; before, its run queue.
///
/// # Safety
/// `task` is a `task_struct` of the context.
#[inline(always)]
unsafe fn throttled(task: Object) -> bool {
    // SAFETY: task_struct.throttled is a bool, se.cfs_rq a pointer to a cfs_rq, whose throttle_count is an int.
    unsafe {
        match kernel::get::<u8>(task, &kernel::TASK_THROTTLED) {
            Some(throttled) => throttled != 0,
            None => kernel::follow(task, &kernel::TASK_CFS_RQ)
                .and_then(|queue| kernel::get::<u32>(queue, &kernel::CFS_RQ_THROTTLED))
                .is_some_and(|count| count != 0),
        }
    }
}

/// Counts a preemption. The map forgets what was not seen for longest.
#[inline(always)]
fn preemption(key: PreemptKey) {
    // SAFETY: the map gave a valid pointer.
    let add = || PREEMPT.get_ptr_mut(&key).map(|count| unsafe { record::add(count, 1) });
    // An insertion fails if another CPU was quicker, and seldom for want of an entry that can be forgotten at once.
    if add().is_none() && PREEMPT.insert(&key, &1, record::NO_REPLACE).is_err() && add().is_none() {
        record::lost(Lost::Cpu);
    }
}
