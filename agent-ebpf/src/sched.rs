//! CPU: run time per cgroup.
//!
//! **Approach.** Each CPU remembers when it last switched. At a switch the time since then belongs to the task that leaves
//! (at this tracepoint it still is `current`), and so to its cgroup. The idle task (pid 0) is not charged.
//!
//! **Properties.** Exact at every switch; a task that runs on without one is not charged yet (the agent takes the file
//! `cpu.stat` for that). The very first switch on each CPU only sets the clock.

use aya_ebpf::{
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns},
    macros::{btf_tracepoint, map},
    maps::{PerCpuArray, PerCpuHashMap},
    programs::BtfTracePointContext,
};
use beelet_ebpf::{CpuRecord, Lost};

use crate::{kernel, record};

#[map]
static CPU: PerCpuHashMap<u64, CpuRecord> = PerCpuHashMap::with_max_entries(8192, 0);

#[map]
static LAST_SWITCH: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

#[btf_tracepoint(function = "sched_switch")]
pub fn sched_switch(_ctx: BtfTracePointContext) -> i32 {
    let Some(last) = LAST_SWITCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: a helper without pointers.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the element is this CPU's own, and this tracepoint does not nest.
    let before = unsafe { core::mem::replace(&mut *last, now) };
    if before == 0 || bpf_get_current_pid_tgid() as u32 == 0 || !kernel::current_is_in_pods() {
        return 0;
    }
    // SAFETY: a helper without pointers.
    charge(unsafe { bpf_get_current_cgroup_id() }, now.wrapping_sub(before));
    0
}

#[inline(always)]
fn charge(cgroup: u64, run_ns: u64) {
    let step = CpuRecord { run_ns, switches: 1 };
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
