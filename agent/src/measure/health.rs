//! What the sampler counts of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use beelet_core::units::Micros;
use beelet_ebpf_common::Lost;

use crate::kernel::maps::MapFill;

/// What looks of one kind cost.
#[derive(Debug, Default)]
pub struct LookCost {
    /// So many.
    pub looks: AtomicU64,
    /// Microseconds of all of them.
    pub total_us: AtomicU64,
    /// Microseconds of the last.
    pub last_us: AtomicU64,
    /// Microseconds of the longest.
    pub longest_us: AtomicU64,
}

impl LookCost {
    pub(super) fn add(&self, time: Micros) {
        self.looks.fetch_add(1, Ordering::Relaxed);
        self.total_us.fetch_add(time.0, Ordering::Relaxed);
        self.last_us.store(time.0, Ordering::Relaxed);
        self.longest_us.fetch_max(time.0, Ordering::Relaxed);
    }

    /// The mean; `None` before the first.
    #[must_use]
    pub fn mean(&self) -> Option<Micros> {
        let (total, looks) = (self.total_us.load(Ordering::Relaxed), self.looks.load(Ordering::Relaxed));
        total.checked_div(looks).map(Micros)
    }
}

/// What the thread counts of itself, all since its start unless said otherwise.
#[derive(Debug, Default)]
pub struct Health {
    /// Looks taken.
    pub samples: AtomicU64,
    /// Looks dropped, because the core had not taken them when the next came.
    pub dropped: AtomicU64,
    /// Looks are as close as they get.
    pub urgent: AtomicBool,
    /// When the last full look was taken: microseconds of the monotonic clock.
    pub full_at_us: AtomicU64,
    /// Microseconds of CPU time of full looks, those with details among them.
    pub full_us: AtomicU64,
    /// Microseconds of CPU time in which the core judged what these saw.
    pub judged_us: AtomicU64,
    /// Kernel events of cgroups that turned out to be no pod's.
    pub strangers: AtomicU64,
    /// Kernel events that came in such a flood that nobody could find out whose they are.
    pub flooded: AtomicU64,
    /// What the eBPF programs could not record, in the order of [`Lost::ALL`].
    pub lost: [AtomicU64; Lost::COUNT as usize],
    /// When the last look was taken: microseconds of the monotonic clock, 0 before the first.
    pub last_sample_us: AtomicU64,
    /// How full the eBPF maps are, from time to time.
    pub maps: ArcSwap<Vec<MapFill>>,
    /// Looks at the node and `kubepods` only.
    pub quick: LookCost,
    /// Looks at all pods, details left out.
    pub full: LookCost,
    /// Looks that also made details of some pods.
    pub detail: LookCost,
    /// Looks at some pods at once, because the kernel told something of them.
    pub asked: LookCost,
    /// Times that the thread woke up.
    pub wakeups: AtomicU64,
    /// Readings of cgroups that were made.
    pub readings: AtomicU64,
    /// Readings of cgroups that were held, because nothing ran.
    pub held: AtomicU64,
    /// Files of cgroups that were read.
    pub files: AtomicU64,
    /// Pods in the last full look.
    pub pods: AtomicU64,
    /// Pods whose details were made.
    pub details: AtomicU64,
}

impl Health {
    /// Looks are as close as they get: memory is short, and every millisecond counts.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::Relaxed)
    }

    /// So much could not be recorded.
    pub(crate) fn set_lost(&self, lost: &[(Lost, u64)]) {
        for (what, count) in lost {
            if let Some(known) = self.lost.get(*what as usize) {
                known.store(*count, Ordering::Relaxed);
            }
        }
    }

    /// The maps are as full as this.
    pub(super) fn set_maps(&self, fill: Vec<MapFill>) {
        self.maps.store(Arc::new(fill));
    }
}
