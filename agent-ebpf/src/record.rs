//! Where records go: the ring buffer, records by key, and the counters of what was lost.

use core::arch::asm;

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::map,
    maps::{HashMap, PerCpuArray, PerCpuHashMap, RingBuf},
};
use beelet_ebpf::{Event, Histogram, Lost, SLOTS};
use bytemuck::Pod;

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

/// `BPF_F_NO_PREALLOC` of the kernel: an entry takes memory when it is made. For maps of large records that are made seldom, by
/// programs that may allocate.
pub const NO_PREALLOC: u32 = 1;

/// `BPF_NOEXIST` of the kernel: insert, but never replace what another CPU was quicker to make.
pub const NO_REPLACE: u64 = 1;

/// What a new record begins as. Kept here, for the larger ones would not fit on the stack of 512 bytes.
static ZEROS: [u64; 64] = [0; 64];

/// A record of zeros.
#[inline(always)]
fn zeros<V: Pod>() -> &'static V {
    const { assert!(size_of::<V>() <= size_of_val(&ZEROS) && align_of::<V>() <= align_of::<u64>()) };
    // SAFETY: large enough and aligned, by the line above; any bytes are a value of a Pod.
    unsafe { &*ZEROS.as_ptr().cast::<V>() }
}

/// The record of a key that all CPUs share, made if it is not there; `None` if there is no room, which is counted.
#[inline(always)]
pub fn shared<K, V: Pod>(map: &HashMap<K, V>, key: &K, what: Lost) -> Option<*mut V> {
    if let Some(record) = map.get_ptr_mut(key) {
        return Some(record);
    }
    // Another CPU may have made it meanwhile, so a failure says nothing yet.
    let _ = map.insert(key, zeros::<V>(), NO_REPLACE);
    let record = map.get_ptr_mut(key);
    if record.is_none() {
        lost(what);
    }
    record
}

/// This CPU's record of a key, made if it is not there; `None` if there is no room, which is counted.
#[inline(always)]
pub fn of_cpu<K, V: Pod>(map: &PerCpuHashMap<K, V>, key: &K, what: Lost) -> Option<*mut V> {
    if let Some(record) = map.get_ptr_mut(key) {
        return Some(record);
    }
    // As above.
    let _ = map.insert(key, zeros::<V>(), NO_REPLACE);
    let record = map.get_ptr_mut(key);
    if record.is_none() {
        lost(what);
    }
    record
}

/// Adds to a number that other CPUs may be adding to.
///
/// # Safety
/// `number` is a field of a record that a map gave.
#[inline(always)]
pub unsafe fn add(number: *mut u64, step: u64) {
    // The target's core has loads and stores of atomics only.
    // SAFETY: valid by the caller's word, and a u64 in a map is aligned.
    unsafe { asm!("lock *(u64 *)({number} + 0) += {step}", number = in(reg) number, step = in(reg) step) };
}

/// An index that the verifier knows to be below `LENGTH`. The compiler may know it already, and leaves out what the verifier
/// has to see; so the index is hidden from it first.
#[inline(always)]
pub fn bounded<const LENGTH: usize>(mut index: usize) -> Option<usize> {
    // An assembler block without an instruction has a line number without one, which the kernel refuses.
    // SAFETY: a move of a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) index, options(pure, nomem, preserves_flags, nostack)) };
    if index < LENGTH { Some(index) } else { None }
}

/// Puts a duration into a histogram that all CPUs share.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub unsafe fn observe(histogram: *mut Histogram, ns: u64) {
    // SAFETY: the caller's word; the slot is one of the histogram's.
    unsafe {
        if let Some(slot) = bounded::<SLOTS>(Histogram::slot(ns)) {
            add((&raw mut (*histogram).counts).cast::<u64>().add(slot), 1);
            add(&raw mut (*histogram).sum_ns, ns);
        }
    }
}

/// Puts a duration into a histogram of this CPU's own.
///
/// # Safety
/// `histogram` lies in a record that a per-CPU map gave.
#[inline(always)]
pub unsafe fn observe_own(histogram: *mut Histogram, ns: u64) {
    // SAFETY: the caller's word; the slot is one of the histogram's.
    unsafe {
        if let Some(slot) = bounded::<SLOTS>(Histogram::slot(ns)) {
            *(&raw mut (*histogram).counts).cast::<u64>().add(slot) += 1;
            (*histogram).sum_ns += ns;
        }
    }
}
