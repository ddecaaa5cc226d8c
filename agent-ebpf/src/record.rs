//! Where records go: the ring buffer, and the counters of what was lost.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{PerCpuArray, RingBuf},
};
use beelet_ebpf::{Event, Lost};

#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(Lost::COUNT, 0);

/// An event of this kind at this moment, all else 0.
#[inline(always)]
pub fn event(kind: u32) -> Event {
    // SAFETY: a helper without pointers.
    Event { kind, ktime_ns: unsafe { bpf_ktime_get_ns() }, ..bytemuck::Zeroable::zeroed() }
}

/// Hands an event to the agent, or counts it as lost.
#[inline(always)]
pub fn emit(event: &Event) {
    if EVENTS.output::<Event>(event, 0).is_err() {
        lost(Lost::Events);
    }
}

/// Counts something that could not be recorded.
#[inline(always)]
pub fn lost(what: Lost) {
    if let Some(count) = LOST.get_ptr_mut(what as u32) {
        // SAFETY: the element is this CPU's own; the map gave a valid pointer.
        unsafe { *count = (*count).wrapping_add(1) };
    }
}
