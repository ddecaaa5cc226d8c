//! The one clock of the agent.
//!
//! The core takes `now` from outside; this is the outside. The monotonic side is CLOCK_MONOTONIC, which is also what eBPF's
//! `bpf_ktime_get_ns` tells, so that kernel events and samples can be compared. And the clocks of CPU time, for the agent's own cost.

use beelet_core::units::{Micros, Now};
use rustix::time::{ClockId, Timespec, clock_gettime};

/// Tells the time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// Now, on both clocks.
    #[must_use]
    pub fn now(self) -> Now {
        Now { mono: micros(clock_gettime(ClockId::Monotonic)), wall: micros(clock_gettime(ClockId::Realtime)) }
    }
}

/// CPU time that this thread has used, user and kernel.
#[must_use]
pub fn thread_cpu() -> Micros {
    micros(clock_gettime(ClockId::ThreadCPUTime))
}

/// CPU time that this process has used, user and kernel, all threads.
#[must_use]
pub fn process_cpu() -> Micros {
    micros(clock_gettime(ClockId::ProcessCPUTime))
}

fn micros(time: Timespec) -> Micros {
    let secs = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Micros(secs.saturating_mul(1_000_000).saturating_add(nanos / 1_000))
}
