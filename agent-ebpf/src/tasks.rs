//! Tasks by state, as a walk over all of them finds them.
//!
//! **Approach.** An iterator (`iter/task`, since 5.8): the kernel runs it for every thread of the reader's pid namespace when the
//! agent reads it, and once more at the end. A record carries the number of its walk (the kernel's number of the reading), so
//! the first task of a cgroup in a walk begins it anew, and nothing must be emptied before. The end of a walk is marked in the
//! record of the pods' root, so that a walk that finds no task is known as well.
//!
//! A task's state is as `/proc/PID/stat` shows it (`task_state_index` of the kernel): its life first (zombie, dead), then what it
//! sleeps in. A thread that is dead and not the leader of its group is about to vanish and is not counted.
//!
//! **Properties.** Only cgroups inside the pods' root. One walk at a time (the agent's). On kernels where task storage must not be
//! made while the scheduler switches (module [`sched`](crate::sched)), the walk makes it for the tasks that it finds.

use aya_ebpf::{macros::map, maps::HashMap};
use beelet_ebpf::{Lost, TaskRecord};

use crate::{
    kernel::{self, Object},
    record, sched,
};

#[map]
static TASKS: HashMap<u64, TaskRecord> = HashMap::with_max_entries(1024, 0);

/// What the kernel hands to the program: `struct bpf_iter__task`.
#[repr(C)]
pub struct Step {
    /// `struct bpf_iter_meta`: a pointer, then the number of the reading.
    meta: *const [u64; 2],
    /// `struct task_struct`; null at the end.
    task: Object,
}

/// `TASK_INTERRUPTIBLE` of the kernel.
const SLEEPING: u32 = 0x1;
/// `TASK_UNINTERRUPTIBLE`, `TASK_RTLOCK_WAIT`, and `TASK_FROZEN` (6.1 on; before, a frozen task is just uninterruptible).
const UNINTERRUPTIBLE: u32 = 0x2 | 0x1000 | 0x8000;
/// `__TASK_STOPPED`, `__TASK_TRACED`.
const STOPPED: u32 = 0x4 | 0x8;
/// `TASK_NOLOAD`: kernel threads that have nothing to do.
const NO_LOAD: u32 = 0x400;
/// `EXIT_DEAD` and `EXIT_ZOMBIE`, in `exit_state`.
const DEAD: u32 = 0x10;
const ZOMBIE: u32 = 0x20;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
pub fn task_walk(step: *const Step) -> i32 {
    // SAFETY: the context has this form on all kernels; the first two words of the meta are a pointer and the number.
    let (walk, task) = unsafe { ((*(*step).meta)[1], (*step).task) };
    if task.is_null() {
        // SAFETY: the record is of a map.
        unsafe { begun(kernel::PODS_ROOT_ID.load(), walk) };
        return 0;
    }
    // SAFETY: task is a task_struct, as tested not null; the record is of a map.
    unsafe {
        let Some(cgroup) = kernel::task_cgroup(task) else { return 0 };
        if !kernel::is_in_pods(cgroup) {
            return 0;
        }
        let Some(id) = kernel::cgroup_id(cgroup) else { return 0 };
        let is_leader = kernel::get::<u32>(task, &kernel::TASK_PID) == kernel::get::<u32>(task, &kernel::TASK_TGID);
        let ended: u32 = kernel::get(task, &kernel::TASK_EXIT_STATE).unwrap_or(0);
        if ended & DEAD != 0 || (ended != 0 && !is_leader) {
            return 0;
        }
        let Some(record) = begun(id, walk) else { return 0 };
        if is_leader {
            (*record).processes += 1;
        }
        if ended & ZOMBIE != 0 {
            (*record).zombie += 1;
            return 0;
        }
        let Some(state) = kernel::get::<u32>(task, &kernel::TASK_STATE) else { return 0 };
        sched::expect(task, state & (SLEEPING | UNINTERRUPTIBLE) != 0);
        if state & STOPPED != 0 {
            (*record).stopped += 1;
        } else if state & UNINTERRUPTIBLE != 0 {
            if state & NO_LOAD == 0 {
                (*record).uninterruptible += 1;
            }
        } else if state & SLEEPING != 0 {
            (*record).sleeping += 1;
        } else {
            (*record).running += 1;
        }
    }
    0
}

/// The record of a cgroup, empty at its first task in this walk.
///
/// # Safety
/// None but that of the map: the walk is the only writer.
#[inline(always)]
unsafe fn begun(cgroup: u64, walk: u64) -> Option<*mut TaskRecord> {
    let record = record::shared(&TASKS, &cgroup, Lost::Tasks)?;
    // SAFETY: the map gave a valid pointer.
    unsafe {
        if (*record).walk != walk {
            *record = TaskRecord { walk, ..bytemuck::Zeroable::zeroed() };
        }
    }
    Some(record)
}
