//! Network: bytes and packets per cgroup and direction.
//!
//! **Approach.** Attached once at the pods' root; the kernel runs the programs for every socket below it, and the helper
//! names the socket's own cgroup. The length is that of the IP packet.

use aya_ebpf::{
    helpers::generated::bpf_skb_cgroup_id,
    macros::{cgroup_skb, map},
    maps::PerCpuHashMap,
    programs::SkBuffContext,
};
use aya_log_ebpf::debug;
use beelet_ebpf::{Counts as _, Lost, NetRecord, Traffic};

use crate::record;

/// The packet passes.
const PASS: i32 = 1;

#[map]
static NET: PerCpuHashMap<u64, NetRecord> = PerCpuHashMap::with_max_entries(8192, 0);

#[cgroup_skb(ingress)]
pub fn skb_ingress(ctx: SkBuffContext) -> i32 {
    let (bytes, packets) = size(&ctx);
    count(&ctx, Traffic { rx_bytes: bytes, rx_packets: packets, ..bytemuck::Zeroable::zeroed() });
    PASS
}

#[cgroup_skb(egress)]
pub fn skb_egress(ctx: SkBuffContext) -> i32 {
    let (bytes, packets) = size(&ctx);
    count(&ctx, Traffic { tx_bytes: bytes, tx_packets: packets, ..bytemuck::Zeroable::zeroed() });
    PASS
}

/// Bytes and packets of a buffer that may stand for many packets.
#[inline(always)]
fn size(ctx: &SkBuffContext) -> (u64, u64) {
    // SAFETY: the context is valid while the program runs; the verifier turns this into a load of the kernel's field.
    let segments = unsafe { (*ctx.skb.skb).gso_segs };
    (u64::from(ctx.len()), if segments == 0 { 1 } else { u64::from(segments) })
}

#[inline(always)]
fn count(ctx: &SkBuffContext, step: Traffic) {
    // SAFETY: the context's own pointer.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    if cgroup == 0 {
        return;
    }
    match NET.get_ptr_mut(cgroup) {
        // SAFETY: the map gave a valid pointer to this CPU's own record; softirqs are off while the program runs.
        Some(record) => unsafe { (*record).other = (*record).other.plus(step) },
        None => {
            let first = NetRecord { other: step, ..bytemuck::Zeroable::zeroed() };
            if NET.insert(cgroup, first, 0).is_err() {
                record::lost(Lost::Net);
                debug!(ctx, "NET map is full: cgroup {} is not counted", cgroup);
            }
        }
    }
}
