//! Thresholds that have to be met for a while.
//!
//! Problem: a soft threshold is for shortage that lasts, not for a peak. Approach: as the kubelet's (pkg/kubelet/eviction, release
//! 1.37, `thresholdsFirstObservedAt`, `thresholdsMetGracePeriod`): [`Watch`] notes since when a threshold is met; one reading above it,
//! a wall that cannot be read, or no look for [`LOOK`] ends that. Once its grace period has passed a threshold is *due*, and then it
//! stays met until the minimum reclaim is available too (`thresholdsMet` with `enforceMinReclaim`), so that pod after pod goes without
//! another grace period between them.
//!
//! Upstream copies only hard thresholds of `memory.available` to `allocatableMemory.available` (`addAllocatableThresholds`); a soft one
//! stands for the signal that it names and no other.
//!
//! Properties (tested): due only after the whole grace period by the times of the readings; what is not due has no minimum reclaim.

use serde::{Deserialize, Serialize};

use super::Threshold;
use crate::units::{Bytes, Micros};

/// What was not looked at for longer than the kubelet's own interval was not met without a break
/// (`evictionMonitoringPeriod`, pkg/kubelet/kubelet.go, release 1.37).
const LOOK: Micros = Micros::secs(10);
/// The shortest time that a victim is given: upstream's floor for every pod that is ended (`calculateEffectiveGracePeriod`,
/// pkg/kubelet/pod_workers.go, release 1.37).
const LEAST_GRACE: Micros = Micros::secs(1);

/// A soft threshold: an entry of `evictionSoft` with its `evictionSoftGracePeriod`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Soft {
    /// Where it is.
    pub threshold: Threshold,
    /// For how long it has to be met, >= 0.
    pub grace: Micros,
}

/// The time that a victim of a soft threshold is given: its own, `evictionMaxPodGracePeriod` at most, and a second at least.
pub(super) fn pod_grace(own: Micros, most: Micros) -> Micros {
    own.min(most).max(LEAST_GRACE)
}

/// A soft threshold that is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    /// In bytes of this wall.
    pub(super) threshold: Bytes,
    /// Its grace period.
    pub(super) grace: Micros,
    /// For how long it has been met without a break.
    pub(super) met_for: Micros,
}

impl Due {
    /// Its grace period has passed.
    pub(super) fn is_due(&self) -> bool {
        self.met_for >= self.grace
    }
}

/// Since when a soft threshold is met. Default: it is not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// The first and the last reading of this time.
    met: Option<(Micros, Micros)>,
}

impl Watch {
    /// Takes a reading at `at`, later than the last: `available` of a wall at `limit`. Says whether the threshold is met.
    pub(super) fn observe(
        &mut self,
        soft: &Soft,
        at: Micros,
        limit: Bytes,
        available: Bytes,
        reclaim: Bytes,
    ) -> Option<Due> {
        let threshold = soft.threshold.quantity(limit);
        let seen = self.met.filter(|(_, last)| at - *last <= LOOK);
        let was_due = seen.is_some_and(|(since, last)| last - since >= soft.grace);
        let until = threshold + if was_due { reclaim } else { Bytes::ZERO };
        self.met = (available < until).then(|| (seen.map_or(at, |(since, _)| since), at));
        self.met.map(|(since, _)| Due { threshold, grace: soft.grace, met_for: at - since })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: fn(u64) -> Bytes = Bytes::mib;

    /// Readings (seconds, MiB available) of a threshold of 500 MiB with 60 s and a minimum reclaim of 100 MiB; for how long it is met.
    fn watch(readings: &[(u64, u64)]) -> Vec<Option<u64>> {
        let soft = Soft { threshold: Threshold::Quantity(MIB(500)), grace: Micros::secs(60) };
        let mut watch = Watch::default();
        let met = |(at, left): &(u64, u64)| {
            watch
                .observe(&soft, Micros::secs(*at), MIB(4_096), MIB(*left), MIB(100))
                .map(|d| d.met_for.get() / 1_000_000)
        };
        readings.iter().map(met).collect()
    }

    #[test]
    fn one_break_begins_anew() {
        assert_eq!(watch(&[(1, 500), (2, 499), (10, 400), (20, 499)]), [None, Some(0), Some(8), Some(18)]);
        assert_eq!(watch(&[(1, 400), (10, 400), (11, 500), (12, 400)]), [Some(0), Some(9), None, Some(0)]);
        assert_eq!(watch(&[(1, 400), (11, 400), (22, 400)]), [Some(0), Some(10), Some(0)], "not looked at for 11 s");
    }

    #[test]
    fn the_minimum_reclaim_counts_only_once_it_was_due() {
        assert_eq!(watch(&[(1, 400), (9, 550)]), [Some(0), None]);
        let mut readings: Vec<_> = (0..=6).map(|i| (1 + i * 10, 400)).collect();
        readings.extend([(62, 550), (63, 599), (64, 600), (65, 550)]);
        assert_eq!(watch(&readings)[6..], [Some(60), Some(61), Some(62), None, None]);
    }

    #[test]
    fn a_victim_is_given_the_lesser_of_both_times_and_a_second() {
        for (own, most, given) in [(30, 10, 10), (10, 30, 10), (30, 0, 1), (0, 30, 1), (30, 30, 30)] {
            assert_eq!(pod_grace(Micros::secs(own), Micros::secs(most)), Micros::secs(given), "{own} {most}");
        }
    }
}
