//! New ground: what a cgroup took lately and had not had before.
//!
//! Problem: when room runs out, somebody ate it. The slope of a moment does not tell who: a collector or a build rises faster than most
//! leaks and gives all of it back, a leak that rests has none, and a slow leak beside a burst has little. Approach: the highest value
//! of each [`SLOT`] is kept for [`SLOTS`] of them. What is held now above all that was held before the last slot or two is *taken*:
//! the node was well while this pod held that much, so what it holds up to there is not what is short now.
//!
//! Properties (tested): a constant value, and one that comes and goes below its former peaks, has taken nothing; a leak has taken what
//! it grew by in the last one or two slots, however it is spread over them; readings that do not come leave no trace.

use crate::units::{Bytes, Micros};

/// The last slot and the one that runs are "lately": the present danger is made within 10 s to 20 s, or it is no hurry.
pub const SLOT: Micros = Micros::secs(10);
/// Peaks are remembered for five minutes: a collector with a longer cycle is taken for a leak on its way up, once per cycle.
pub const SLOTS: usize = 30;

/// Where a value has been.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ground {
    /// The highest value of each slot, at its number modulo [`SLOTS`]; zero where nothing was read.
    slots: [Bytes; SLOTS],
    /// The number of the newest slot, and the first value of all that is known.
    newest: Option<(u64, Bytes)>,
    last: Bytes,
}

impl Ground {
    fn index(number: u64) -> usize {
        // Below `SLOTS`, so it fits.
        usize::try_from(number % SLOTS as u64).unwrap_or(0)
    }

    /// Takes a value. Time does not go back.
    pub fn observe(&mut self, at: Micros, value: Bytes) {
        let number = at.get() / SLOT.get();
        match self.newest {
            Some((newest, first)) if number - newest.min(number) < SLOTS as u64 => {
                for skipped in newest + 1..=number {
                    self.slots[Self::index(skipped)] = Bytes::ZERO;
                }
                self.newest = Some((number.max(newest), first));
            }
            // Nothing that is remembered is recent enough, or nothing is.
            _ => *self = Self { newest: Some((number, value)), ..Self::default() },
        }
        let slot = &mut self.slots[Self::index(number)];
        *slot = value.max(*slot);
        self.last = value;
    }

    /// What is held now above all that was held before the last slot; since the first value where that is later.
    #[must_use]
    pub fn taken(&self) -> Bytes {
        let Some((newest, first)) = self.newest else { return Bytes::ZERO };
        let older = newest.checked_sub(2).map(|oldest| {
            let before = (0..SLOTS as u64 - 2).filter_map(|back| oldest.checked_sub(back));
            before.map(|number| self.slots[Self::index(number)]).max().unwrap_or_default()
        });
        let had = older.filter(|&b| b > Bytes::ZERO).unwrap_or(first);
        self.last - had
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is taken after so many seconds of a value in MiB, read each second.
    fn taken(seconds: std::ops::Range<u64>, value: impl Fn(u64) -> u64) -> u64 {
        let mut ground = Ground::default();
        for s in seconds {
            ground.observe(Micros::secs(s), Bytes::mib(value(s)));
        }
        ground.taken().get() >> 20
    }

    #[test]
    fn only_what_was_not_held_before_is_taken() {
        let saw = |s: u64| 100 + s % 9 * 30;
        let stutter = |s: u64| 100 + s / 12 * 60 + (s % 12).min(3) * 20;
        let cases: [(&str, u64, std::ops::RangeInclusive<u64>); 8] = [
            ("constant", taken(0..200, |_| 500), 0..=0),
            ("constant and then a step", taken(0..200, |s| if s < 195 { 500 } else { 800 }), 300..=300),
            ("a step a while ago", taken(0..200, |s| if s < 100 { 500 } else { 800 }), 0..=0),
            ("a saw-tooth, at any point", (100..200).map(|end| taken(0..end, saw)).max().unwrap_or(999), 0..=0),
            ("a leak of 5 MiB/s", taken(0..200, |s| s * 5), 50..=100),
            ("a leak since four seconds", taken(100..105, |s| 300 + (s - 100) * 5), 20..=20),
            ("a leak that rests", taken(0..199, stutter), 60..=120),
            ("a fall", taken(0..200, |s| 1_000 - s), 0..=0),
        ];
        for (what, got, expected) in cases {
            assert!(expected.contains(&got), "{what}: {got}");
        }
    }

    #[test]
    fn peaks_are_forgotten_after_five_minutes_and_gaps_are_no_values() {
        let peak = |s: u64| if s == 5 { 900 } else { 100 + s };
        assert_eq!(taken(0..285, peak), 0);
        assert_eq!(taken(0..320, peak), 20);
        let mut ground = Ground::default();
        ground.observe(Micros::secs(5), Bytes::mib(100));
        ground.observe(Micros::secs(200), Bytes::mib(130));
        assert_eq!(ground.taken(), Bytes::mib(30), "what was held before a gap is known");
        ground.observe(Micros::secs(900), Bytes::mib(700));
        assert_eq!(ground.taken(), Bytes::ZERO, "until it is forgotten");
    }
}
