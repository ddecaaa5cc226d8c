//! Memory: victims of the OOM killer.
//!
//! **Approach.** `mark_victim` tells the victim before it is killed. Since Linux 6.8 it passes the task, from which cgroup,
//! name and memory are read; before, only the pid, and then the cgroup is that of the task whose allocation failed (in a
//! limit's OOM that is the same limit, not always the same container); the exit event of the victim corrects it.
//!
//! **Property.** A victim that is known to be outside of the pods is not told.

use aya_ebpf::{helpers::bpf_get_current_cgroup_id, macros::btf_tracepoint, programs::BtfTracePointContext};
use aya_log_ebpf::debug;
use beelet_ebpf::{Event, flag, kind};

use crate::{
    kernel::{self, Object},
    record,
};

#[btf_tracepoint(function = "mark_victim")]
pub fn oom_victim(ctx: BtfTracePointContext) -> i32 {
    let mut event = record::event(kind::OOM_VICTIM);
    if kernel::VICTIM_IS_TASK.load() == 1 {
        let task: Object = ctx.arg(0);
        // SAFETY: by BTF the first argument is the victim's task_struct.
        unsafe {
            if kernel::task_cgroup(task).is_some_and(|cgroup| !kernel::is_in_pods(cgroup)) {
                return 0;
            }
            describe(task, &mut event);
        }
    } else {
        let pid = ctx.arg::<u64>(0) as u32;
        event.pid = pid;
        event.tgid = pid;
    }
    if event.cgroup_id == 0 {
        // SAFETY: a helper without pointers.
        event.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
        event.flags |= flag::CGROUP_OF_CURRENT;
    }
    record::emit(&event);
    debug!(&ctx, "OOM victim {} in cgroup {}", event.tgid, event.cgroup_id);
    0
}

/// # Safety
/// `task` is the `task_struct *` of the context.
#[inline(always)]
unsafe fn describe(task: Object, event: &mut Event) {
    // SAFETY: fields of task_struct, signal_struct and mm_struct by their own offsets and sizes.
    unsafe {
        event.cgroup_id = kernel::task_cgroup_id(task).unwrap_or(0);
        event.pid = kernel::get(task, &kernel::TASK_PID).unwrap_or(0);
        event.tgid = kernel::get(task, &kernel::TASK_TGID).unwrap_or(0);
        event.start_ns = kernel::get(task, &kernel::TASK_START_TIME).unwrap_or(0);
        if let Some(comm) = kernel::get::<[u64; 2]>(task, &kernel::TASK_COMM) {
            event.comm = bytemuck::cast(comm);
        }
        if let Some(signal) = kernel::follow(task, &kernel::TASK_SIGNAL) {
            event.oom_score_adj = i32::from(kernel::get::<i16>(signal, &kernel::SIGNAL_OOM_SCORE_ADJ).unwrap_or(0));
        }
        if let Some(mm) = kernel::follow(task, &kernel::TASK_MM)
            && let Some(anon) = kernel::get::<i64>(mm, &kernel::MM_RSS_ANON)
        {
            event.anon_pages = pages(anon);
            event.file_pages = pages(kernel::get(mm, &kernel::MM_RSS_FILE).unwrap_or(0));
            event.shmem_pages = pages(kernel::get(mm, &kernel::MM_RSS_SHMEM).unwrap_or(0));
            event.flags |= flag::HAS_MEMORY;
        }
    }
}

/// A per-CPU counter's shared part may be below 0 for a moment.
#[inline(always)]
fn pages(count: i64) -> u64 {
    if count < 0 { 0 } else { count as u64 }
}
