//! What reclaim cannot free, without what only seems so for a moment.
//!
//! Problem: usage and the parts of it that reclaim can free are told by different counters, and these are not one moment's. Where a
//! file is deleted the kernel takes its pages from the cache first and gives their memory back later: for some looks, up to some
//! 60 ms, 540 MiB of nothing looked like 540 MiB that nobody can free (measured on 6.18 while files of 1 GiB were deleted), and where
//! cache is dropped between two reads of a look there is as much wrong in that look. Approach: what is *counted* by itself (anonymous
//! and shared memory) is believed at once. The rest, which is only a difference of counters, is believed once it has lasted: of it the least of
//! the last [`LASTS`] and of the last [`LOOKS`] looks counts.
//!
//! Properties (tested): counted memory is never delayed; the rest is believed after [`LASTS`] and [`LOOKS`] at the latest; it is never
//! more than what was read; a gap of more than [`GAP`] begins anew.

use std::collections::VecDeque;

use crate::units::{Bytes, Micros};

/// For so long the rest has to be there: three times what a deleted file of 1 GiB was seen to take.
pub const LASTS: Micros = Micros::millis(200);
/// In so many looks it has to be there.
pub const LOOKS: usize = 3;
/// After a gap of this the past says nothing.
pub const GAP: Micros = Micros::secs(5);

/// The recent past of what is not counted by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    rest: VecDeque<(Micros, Bytes)>,
}

impl Settled {
    /// Takes a reading: what reclaim cannot free, and what of it is counted by itself (`None`: nobody tells; then it is believed as it
    /// is). Gives what is believed. A reading that is not newer than the last is not remembered.
    pub fn observe(&mut self, at: Micros, unreclaimable: Bytes, counted: Option<Bytes>) -> Bytes {
        let Some(counted) = counted else { return unreclaimable };
        let rest = unreclaimable - counted;
        match self.rest.back() {
            Some(&(last, _)) if at <= last => {}
            Some(&(last, _)) if at - last > GAP => self.rest = [(at, rest)].into(),
            _ => self.rest.push_back((at, rest)),
        }
        while self.rest.len() > LOOKS && self.rest.get(1).is_some_and(|(second, _)| at - *second >= LASTS) {
            self.rest.pop_front();
        }
        let least = self.rest.iter().map(|(_, rest)| *rest).min().unwrap_or(rest).min(rest);
        (counted + least).min(unreclaimable)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Looks (ms, unreclaimable, counted) in MiB, and what is believed.
    fn believed(looks: &[(u64, u64, u64)]) -> Vec<u64> {
        let mut settled = Settled::default();
        let look = |(ms, all, counted): &(u64, u64, u64)| {
            let counted = Some(Bytes::mib(*counted));
            settled.observe(Micros::millis(*ms), Bytes::mib(*all), counted).get() >> 20
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn what_is_counted_is_believed_at_once_and_the_rest_when_it_lasts() {
        let leak: Vec<_> = (0..20).map(|n| (n * 20, 100 + 50 * n, 90 + 50 * n)).collect();
        assert_eq!(believed(&leak), leak.iter().map(|(_, all, _)| *all).collect::<Vec<_>>());
        // 500 MiB for three looks, and then no more.
        let deleted = [(0, 110, 100), (20, 610, 100), (40, 610, 100), (60, 400, 100), (80, 112, 100)];
        assert_eq!(believed(&deleted), [110, 110, 110, 110, 110]);
        // It stays: from 200 ms on it counts.
        let slab: Vec<_> = [(0, 110, 100)].into_iter().chain((1..=12).map(|n| (n * 20, 610, 100))).collect();
        let of = believed(&slab);
        assert_eq!((of[10], of[11], of[12]), (110, 610, 610));
        // Looks each second: in the third.
        assert_eq!(
            believed(&[(0, 110, 100), (1_000, 610, 100), (2_000, 610, 100), (3_000, 610, 100)]),
            [110, 110, 110, 610]
        );
        // What falls is believed at once.
        assert_eq!(believed(&[(0, 610, 100), (20, 110, 100)]), [610, 110]);
        // After a gap nothing is known of before.
        assert_eq!(believed(&[(0, 110, 100), (6_000, 610, 100)]), [110, 610]);
    }

    proptest! {
        #[test]
        fn never_more_than_read_nor_less_than_counted(looks in prop::collection::vec((1_u64..400, 0_u64..1_000, 0_u64..1_000), 1..60)) {
            let (mut settled, mut ms) = (Settled::default(), 0);
            let mut all: Vec<(u64, u64)> = Vec::new();
            for (step, counted, rest) in looks {
                ms += step;
                all.push((ms, rest));
                let it = settled.observe(Micros::millis(ms), Bytes(counted + rest), Some(Bytes(counted))).get();
                prop_assert!(it >= counted && it <= counted + rest);
                // What was there in each look of twice the time is believed.
                let lasting = all.iter().rev().take_while(|(at, _)| ms - at <= 600).map(|(_, rest)| *rest).min();
                if all.len() > 3 && all[all.len() - 4].0 + 600 >= ms {
                    prop_assert!(it >= counted + lasting.unwrap_or(0));
                }
            }
        }
    }
}
