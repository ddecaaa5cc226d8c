//! When memory runs out.
//!
//! Problem: `memory.current` of a healthy pod always reaches its limit (page cache), so its slope foretells nothing; and a poller
//! with a fixed period is too slow for a leak of 1 GiB/s and too dear for a quiet node.
//! Approach: a [`Trend`] follows only what reclaim cannot free. It looks at the newest four samples on several scales (as they came,
//! 100 ms and 400 ms apart). Growth is *confirmed* where the three steps between four samples all go up and agree within a
//! factor of four: a single step has two flat neighbours, a staircase (allocate, sleep) is even on a wider scale. The upper slope is
//! the steepest step of the narrowest scale that confirms. [`pace`] turns headroom into the time of the next look.
//!
//! Terms: *headroom* is limit less what reclaim cannot free; *regrowth* is growth below a recent peak (the saw-tooth of a garbage
//! collector), which is no growth of the set and is not forecast; the *reaction time* is what passes from a look that shows the
//! danger until the victim's memory is free.
//!
//! Properties (tested): three even steps give a forecast that is not later than the truth; one step gives none; a saw-tooth gives
//! none from its second tooth on; stale and repeated samples change nothing; the interval is in [`MIN_INTERVAL`]..=[`MAX_INTERVAL`]
//! and does not fall as headroom grows.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Micros};

/// From a look that shows the danger until the victim's memory is free: up to 20 ms until the look, 20 ms for a look at all pods,
/// some 10 ms to SIGKILL a cgroup, and the time in which the kernel unmaps some GiB on a busy node (100 ms to 300 ms).
pub const REACTION: Micros = Micros::millis(400);
/// The closest distance of two looks: one look costs well below 1 ms, so this is a few percent of one core, and only near the wall.
pub const MIN_INTERVAL: Micros = Micros::millis(20);
/// The widest distance of two looks: health and rates want one each second.
pub const MAX_INTERVAL: Micros = Micros::secs(1);
/// The growth that is assumed when none is seen, bytes per second. One core faults in and zeroes 4 KiB pages at some 1 GiB/s to
/// 2 GiB/s. nohang assumes 6 GiB/s for whole machines; the four looks per headroom of [`pace`] leave one look even then.
pub const ASSUMED_GROWTH: u64 = 2 << 30;
/// Below this headroom every look is at all pods: a quarter of a second at [`ASSUMED_GROWTH`].
pub const NEAR: Bytes = Bytes::mib(512);

/// Scales: the closest distance of two samples kept in each ring. The first keeps all.
const SPACING: [Micros; 3] = [Micros::ZERO, Micros::millis(100), Micros::millis(400)];
const RING: usize = 16;
/// Steps that must agree.
const STEPS: usize = 3;
/// The largest factor between steps that agree.
const AGREE: u64 = 4;
/// Steps of less than this per sample are noise of per-CPU counters (a batch of 64 pages on each of 16 CPUs).
const NOISE: u64 = 64 << 10;
/// How long a peak is remembered: some cycles of a garbage collector.
const PEAK_MEMORY: Micros = Micros::secs(10);
/// A fall of less than this is no tooth, and teeth differ by this much.
const TOOTH: Bytes = Bytes::mib(8);
/// A gap after which the history says nothing of the present any more.
const GAP: Micros = Micros::secs(5);

/// When memory runs out at the present growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Headroom divided by the slope.
    pub time_to_oom: Micros,
    /// Upper bound of the growth, bytes per second, > 0.
    pub slope: u64,
    /// How many scales confirm it, 1..=3.
    pub scales: u32,
    /// Samples that it rests on.
    pub samples: u32,
}

/// The recent past of a value that reclaim cannot lower.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trend {
    rings: [VecDeque<(Micros, Bytes)>; 3],
    /// The highest value before the last fall, and when it was seen.
    peak: Option<(Micros, Bytes)>,
    /// The highest value since the last fall.
    top: Option<(Micros, Bytes)>,
}

impl Trend {
    /// Takes a sample. One that is not newer than the last is ignored (`false`). After a gap of more than 5 s the past is forgotten.
    pub fn observe(&mut self, at: Micros, value: Bytes) -> bool {
        if let Some(&(last, _)) = self.rings[0].back() {
            if at <= last {
                return false;
            }
            if at - last > GAP {
                self.forget();
            }
        }
        for (ring, spacing) in self.rings.iter_mut().zip(SPACING) {
            if ring.back().is_none_or(|&(last, _)| at - last >= spacing) {
                if ring.len() == RING {
                    ring.pop_front();
                }
                ring.push_back((at, value));
            }
        }
        if self.peak.is_some_and(|(seen, peak)| at - seen > PEAK_MEMORY || value > peak + TOOTH) {
            self.peak = None;
        }
        match self.top {
            Some((seen, top)) if top - value >= TOOTH => {
                if self.peak.is_none_or(|(_, peak)| top >= peak) {
                    self.peak = Some((seen, top));
                }
                self.top = Some((at, value));
            }
            Some((_, top)) if value < top => {}
            _ => self.top = Some((at, value)),
        }
        true
    }

    /// Forgets everything: what was measured has been changed on purpose (a victim was killed), or is another cgroup.
    pub fn forget(&mut self) {
        *self = Self::default();
    }

    /// When the last sample was taken.
    #[must_use]
    pub fn last_at(&self) -> Option<Micros> {
        self.rings[0].back().map(|&(at, _)| at)
    }

    /// Growth in bytes per second, negative for shrinking: the median of the slopes between all pairs of samples (Theil-Sen) of the
    /// last seconds. `None` before there are 200 ms of samples. For people and for ranking; forecasts use the upper slope.
    #[must_use]
    pub fn growth(&self) -> Option<i64> {
        let ring = self.rings[1..].iter().find(|r| span(r) >= Micros::millis(200) && r.len() > STEPS);
        let ring = ring.unwrap_or(&self.rings[0]);
        if span(ring) < Micros::millis(200) {
            return None;
        }
        let points: Vec<_> = ring.iter().copied().collect();
        let mut slopes: Vec<i64> = Vec::with_capacity(points.len() * points.len() / 2);
        for (i, &a) in points.iter().enumerate() {
            slopes.extend(points[i + 1..].iter().map(|&b| slope(a, b)));
        }
        slopes.sort_unstable();
        slopes.get(slopes.len() / 2).copied()
    }

    /// The upper bound of confirmed growth in bytes per second and the number of scales (1..=3) that confirm it; `None` for none,
    /// for a single step, and for regrowth below a peak of the last 10 s.
    #[must_use]
    pub fn confirmed(&self) -> Option<(u64, u32)> {
        let &(_, value) = self.rings[0].back()?;
        if self.peak.is_some_and(|(_, peak)| value <= peak + TOOTH) {
            return None;
        }
        let [narrow, middle, wide] = [&self.rings[0], &self.rings[1], &self.rings[2]].map(|ring| self.steepest(ring));
        // The narrowest scale that is sure knows best; the wide one alone may tell of growth that has ended.
        let upper = narrow.or(middle)?;
        Some((upper, [narrow, middle, wide].iter().map(|s| u32::from(s.is_some())).sum()))
    }

    /// Whether the newest step alone, confirmed or not, would use up `headroom` within three reaction times. That foretells nothing, but
    /// the looks that tell whether it goes on must come at once.
    #[must_use]
    pub fn rushes(&self, headroom: Bytes) -> bool {
        let ring = &self.rings[0];
        let (Some(&last), Some(&before)) = (ring.back(), ring.len().checked_sub(2).and_then(|at| ring.get(at))) else {
            return false;
        };
        let step = last.1 - before.1;
        step.get() >= NOISE && step.scale(REACTION.get().saturating_mul(3), (last.0 - before.0).get()) >= headroom
    }

    /// When `headroom` is used up at the confirmed growth.
    #[must_use]
    pub fn forecast(&self, headroom: Bytes) -> Option<Forecast> {
        let (slope, scales) = self.confirmed()?;
        let time_to_oom = Micros(headroom.scale(1_000_000, slope).get());
        Some(Forecast { time_to_oom, slope, scales, samples: u32::try_from(self.rings[0].len()).unwrap_or(u32::MAX) })
    }

    /// The steepest of the newest steps of a ring if they agree.
    fn steepest(&self, ring: &VecDeque<(Micros, Bytes)>) -> Option<u64> {
        // The newest sample belongs to every scale only once it is far enough from the one before; an old ring says nothing of now.
        let newest = self.last_at()?;
        let points: Vec<_> = ring.iter().rev().take(STEPS + 1).rev().copied().collect();
        if points.len() <= STEPS || points.last().is_none_or(|&(at, _)| newest - at > SPACING[2]) {
            return None;
        }
        let mut rates = [0_u64; STEPS];
        for (rate, pair) in rates.iter_mut().zip(points.windows(2)) {
            if (pair[1].1 - pair[0].1).get() < NOISE {
                return None;
            }
            *rate = u64::try_from(slope(pair[0], pair[1])).ok()?;
        }
        let (low, high) = (rates.iter().copied().min()?, rates.iter().copied().max()?);
        // What came after the ring's newest sample must not contradict it.
        let now = self.rings[0].back()?.1;
        (low > 0 && high <= low.saturating_mul(AGREE) && now >= points[STEPS].1).then_some(high)
    }
}

fn span(ring: &VecDeque<(Micros, Bytes)>) -> Micros {
    match (ring.front(), ring.back()) {
        (Some(first), Some(last)) => last.0 - first.0,
        _ => Micros::ZERO,
    }
}

/// Bytes per second from `a` to the later `b`.
fn slope(a: (Micros, Bytes), b: (Micros, Bytes)) -> i64 {
    let difference = i128::from(b.1.get()) - i128::from(a.1.get());
    let time = i128::from((b.0 - a.0).get().max(1));
    let per_second = difference * 1_000_000 / time;
    i64::try_from(per_second).unwrap_or(if per_second < 0 { i64::MIN } else { i64::MAX })
}

/// How to look next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The distance of looks, [`MIN_INTERVAL`]..=[`MAX_INTERVAL`].
    pub interval: Micros,
    /// Look at every pod. Otherwise the caller still looks at every pod at least each [`MAX_INTERVAL`].
    pub all_pods: bool,
}

impl Default for Pace {
    /// Each second, at all.
    fn default() -> Self {
        Self { interval: MAX_INTERVAL, all_pods: true }
    }
}

/// The time of the next look: a quarter of the time in which the fastest growth (seen, or else [`ASSUMED_GROWTH`]) uses up the
/// headroom, so that at least three looks see it coming. `growth` in bytes per second, 0 for none; `pressure` says that the kernel
/// signalled pressure or that something is awaited.
#[must_use]
pub fn pace(headroom: Bytes, growth: u64, pressure: bool) -> Pace {
    let worst = growth.max(ASSUMED_GROWTH);
    let quarter = Micros(headroom.scale(1_000_000, worst).get() / 4);
    let interval = quarter.clamp(MIN_INTERVAL, MAX_INTERVAL);
    // Within three reaction times of the growth that is seen, or near the wall whatever is seen.
    let soon = Bytes(growth).scale(REACTION.get().saturating_mul(3), 1_000_000);
    Pace { interval, all_pods: pressure || interval == MAX_INTERVAL || headroom <= NEAR.max(soon) }
}

#[cfg(test)]
mod tests;
