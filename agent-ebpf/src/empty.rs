//! Programs that do nothing: what a hook itself costs.
//!
//! **Problem.** The kernel measures the time of a program with its own entry, exit and two readings of the clock in it, so a
//! figure of nanoseconds says little. **Approach.** A program that does nothing, at the same hook, in the same run, is measured
//! alike; the difference is what ours does. Only `agent/examples/program_cost.rs` loads these.

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_skb},
    programs::{BtfTracePointContext, SkBuffContext},
};

#[btf_tracepoint]
pub fn empty_tp(_: BtfTracePointContext) -> i32 {
    0
}

#[cgroup_skb]
pub fn empty_skb(_: SkBuffContext) -> i32 {
    // The packet passes.
    1
}
