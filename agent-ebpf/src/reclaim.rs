//! Direct reclaim: time that a task spends freeing memory before it gets some.
//!
//! **Approach.** The kernel marks the begin and the end of each spell, apart for a node that is short of memory and for a limit
//! of a memory cgroup. The begin is kept with the task, which may sleep and move to another CPU meanwhile. The end says how
//! many pages were freed.
//!
//! **Properties.** Charged to the task's own cgroup, whichever limit above it was reached. Spells of one task do not nest. Who
//! has memory freed on purpose (`memory.reclaim`, a lowered limit) does it outside the pods, and is not charged.

use aya_ebpf::{
    helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns, generated::bpf_get_current_task_btf},
    macros::{btf_map, btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};
use beelet_ebpf::{Lost, ReclaimRecord};

use crate::{
    kernel::{self, Object},
    record,
    storage::TaskStorage,
};

#[map]
static RECLAIM: HashMap<u64, ReclaimRecord> = HashMap::with_max_entries(1024, 0);

/// When the task began, in ktime; 0: it does not reclaim.
#[btf_map]
static RECLAIMS: TaskStorage<u64> = TaskStorage::new();

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_begin")]
pub fn reclaim_begin(_ctx: BtfTracePointContext) -> i32 {
    begin();
    0
}

#[btf_tracepoint(function = "mm_vmscan_direct_reclaim_end")]
pub fn reclaim_end(ctx: BtfTracePointContext) -> i32 {
    end(ctx.arg(0), false);
    0
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_begin")]
pub fn limit_begin(_ctx: BtfTracePointContext) -> i32 {
    begin();
    0
}

#[btf_tracepoint(function = "mm_vmscan_memcg_reclaim_end")]
pub fn limit_end(ctx: BtfTracePointContext) -> i32 {
    end(ctx.arg(0), true);
    0
}

#[inline(always)]
fn begin() {
    if !kernel::current_is_in_pods() {
        return;
    }
    // SAFETY: the helper gives the current task; the value is the task's own.
    unsafe {
        match RECLAIMS.get(current(), 1) {
            Some(began) => *began = bpf_ktime_get_ns(),
            None => record::lost(Lost::Reclaim),
        }
    }
}

/// By BTF the first argument is the number of pages that were freed.
#[inline(always)]
fn end(pages: u64, of_limit: bool) {
    // SAFETY: the helper gives the current task; the value is the task's own; the record is of a map.
    unsafe {
        let Some(began) = RECLAIMS.get(current(), 0) else { return };
        let began = core::mem::replace(&mut *began, 0);
        if began == 0 {
            return;
        }
        let Some(record) = record::shared(&RECLAIM, &bpf_get_current_cgroup_id(), Lost::Reclaim) else { return };
        let histogram = if of_limit { &raw mut (*record).limit } else { &raw mut (*record).node };
        record::observe(histogram, bpf_ktime_get_ns().wrapping_sub(began));
        record::add(&raw mut (*record).pages, pages);
    }
}

#[inline(always)]
fn current() -> Object {
    // SAFETY: a helper without pointers.
    unsafe { bpf_get_current_task_btf() }.cast::<u8>().cast_const()
}
