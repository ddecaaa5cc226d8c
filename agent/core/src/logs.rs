//! When a container's log is looked at, and which of its rotated files stay.
//!
//! **Problem.** The kubelet looks at logs every 10 s (containerLogMonitorInterval): who writes 1 GiB/s has written 10 GiB by then. To
//! look at each log all the time costs, and most logs are quiet.
//! **Approach.** A log that grows is looked at again after half of the time that it takes to be full at the rate it grew since the
//! last look, within [`SOONEST`] and [`LATEST`]. One that does not grow rests, until the kernel tells of a write. After a rotation
//! the oldest files go until both their number and their size are within the policy: a file that outgrew the maximum before
//! anybody looked takes the place of more than one.
//!
//! **Terms.** A *rotated* file is one that the runtime does not write to any more; the *current* one it does.
//!
//! **Properties** (tested). A log that is written at a steady rate is rotated with at most what is written in [`SOONEST`] above the
//! maximum, however fast; at a rate that changes, with at most what is written in [`LATEST`]. The rotated files of a run are together
//! never larger than `max_files - 1` times `max_size` and a quarter, or they are one file. A log that rests costs no look.

use crate::units::{Bytes, Micros};

/// No two looks at a log are closer.
pub const SOONEST: Micros = Micros::millis(20);
/// A log that grows is looked at after this time, however slowly it grows: it may begin to grow faster.
pub const LATEST: Micros = Micros::millis(100);

/// How large the logs of a run of a container may be: `containerLogMaxSize` and `containerLogMaxFiles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A log of this size is rotated; above zero.
    pub max_size: Bytes,
    /// So many files there may be of a run, the current one among them; two at least.
    pub max_files: u32,
}

impl Default for Policy {
    /// pkg/kubelet/apis/config/v1beta1/defaults.go, release 1.37.
    fn default() -> Self {
        Self { max_size: Bytes::mib(10), max_files: 5 }
    }
}

/// What is to be done with a log that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is full.
    Rotate,
    /// Look again after this time.
    Look(Micros),
    /// It does not grow: no look until it is written to.
    Rest,
}

/// How a log grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// When it was looked at last, and how large it was.
    last: Option<(Micros, Bytes)>,
    /// Bytes in a second, by the last two looks; `None` while there were no two.
    rate: Option<u64>,
}

impl Growth {
    /// The log has this size now (monotonic).
    pub fn look(&mut self, now: Micros, size: Bytes, policy: &Policy) -> Next {
        let before = self.last.replace((now, size));
        // Of one that somebody cut, nothing is known.
        let grown = before.filter(|(_, held)| *held <= size).map(|(at, held)| (size - held, now - at));
        self.rate = grown.map(|(grown, took)| per_second(grown, took));
        if size >= policy.max_size {
            return Next::Rotate;
        }
        match self.rate {
            Some(0) if grown.is_some_and(|(grown, _)| grown == Bytes::ZERO) => Next::Rest,
            Some(rate) => Next::Look(distance(policy.max_size - size, rate)),
            None => Next::Look(SOONEST),
        }
    }

    /// The log, which rested, was written to, and has this size now. Its rate counts from here.
    pub fn wake(&mut self, now: Micros, size: Bytes, policy: &Policy) -> Next {
        self.last = None;
        self.look(now, size, policy)
    }

    /// The log was rotated, so it is empty; when to look again, if it grows on as it did.
    pub fn rotated(&mut self, now: Micros, policy: &Policy) -> Micros {
        self.last = Some((now, Bytes::ZERO));
        self.rate.map_or(SOONEST, |rate| distance(policy.max_size, rate))
    }

    /// Whether it has another size than when it was looked at.
    #[must_use]
    pub fn differs(&self, size: Bytes) -> bool {
        self.last.is_none_or(|(_, held)| held != size)
    }
}

fn per_second(grown: Bytes, took: Micros) -> u64 {
    let rate = u128::from(grown.get()) * 1_000_000 / u128::from(took.get().max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// Half of the time until so much is written.
fn distance(headroom: Bytes, rate: u64) -> Micros {
    let time = u128::from(headroom.get()) * 1_000_000 / u128::from(rate.max(1)) / 2;
    Micros(u64::try_from(time).unwrap_or(u64::MAX)).clamp(SOONEST, LATEST)
}

/// How many of the rotated files have to go, the oldest first; `sizes` are theirs, the oldest's first. The newest always stays: whoever
/// collects logs is still reading it.
#[must_use]
pub fn excess(sizes: &[Bytes], policy: &Policy) -> usize {
    let room = u64::from(policy.max_files.max(2) - 1);
    let mut taken = 0_u64;
    let stay = sizes.iter().rev().enumerate().take_while(|(index, size)| {
        taken = taken.saturating_add(places(**size, policy.max_size));
        *index == 0 || taken <= room
    });
    sizes.len() - stay.count()
}

/// How many files' places a file takes.
fn places(size: Bytes, max_size: Bytes) -> u64 {
    let max = max_size.get().max(1);
    size.get().saturating_sub(max / 4).div_ceil(max).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: Policy = Policy { max_size: Bytes::mib(10), max_files: 5 };

    /// Follows a log that is written at `rates` (bytes in a microsecond; each for 10 ms, the last for ever) until `until`; the sizes
    /// at which it was rotated, and how often it was looked at. A rotation takes no time.
    fn follow(rates: &[u64], until: Micros) -> (Vec<Bytes>, u32) {
        let rate = |at: u64| rates[usize::try_from(at / 10_000).unwrap().min(rates.len() - 1)];
        let (mut growth, mut size, mut looks, mut rotated) = (Growth::default(), 0_u64, 0, Vec::new());
        let (mut due, mut resting) = (0, false);
        for at in (0..until.get()).step_by(1_000) {
            let grown = rate(at) * 1_000;
            size += grown;
            let now = Micros(at + 1_000);
            let next = match (resting, grown > 0) {
                (true, true) => growth.wake(now, Bytes(size), &MAX),
                (false, _) if now.get() >= due => growth.look(now, Bytes(size), &MAX),
                _ => continue,
            };
            looks += 1;
            resting = next == Next::Rest;
            due = now.get()
                + match next {
                    Next::Rotate => {
                        rotated.push(Bytes(size));
                        size = 0;
                        growth.rotated(now, &MAX).get()
                    }
                    Next::Look(after) => after.get(),
                    Next::Rest => 0,
                };
        }
        (rotated, looks)
    }

    #[test]
    fn a15_4d_looks_follow_the_growth() {
        // Bytes in a microsecond; the sizes are of 20 s.
        for (rate, looks, files) in [(0, 2..=2, 0..=0), (1, 190..=210, 1..=2), (100, 500..=900, 160..=190)] {
            let (rotated, made) = follow(&[rate], Micros::secs(20));
            assert!(looks.contains(&made), "{rate} MB/s: {made} looks");
            assert!(files.contains(&rotated.len()), "{rate} MB/s: {} files", rotated.len());
        }
        let mut growth = Growth::default();
        let mut look = |ms: u64, mib: u64| growth.look(Micros::millis(ms), Bytes::mib(mib), &MAX);
        assert_eq!(look(0, 0), Next::Look(SOONEST), "its rate is not known yet");
        assert_eq!(look(20, 2), Next::Look(Micros::millis(40)), "100 MiB/s: the other 8 MiB take 80 ms");
        assert_eq!(look(60, 6), Next::Look(SOONEST));
        assert_eq!(look(80, 6), Next::Rest);
        assert_eq!(look(90, 1), Next::Look(SOONEST), "somebody cut it");
        assert_eq!(look(100, 10), Next::Rotate);
    }

    #[test]
    fn a15_4a_the_oldest_go_by_number_and_by_size() {
        let mib = |sizes: &[u64]| sizes.iter().map(|mib| Bytes::mib(*mib)).collect::<Vec<_>>();
        for (sizes, gone) in [
            (vec![], 0),
            (vec![10], 0),
            (vec![10, 10, 10, 10], 0),
            (vec![1, 10, 10, 10, 10], 1),
            (vec![1, 1, 1, 1, 1, 1], 2),
            (vec![12, 12, 12, 12], 0),
            (vec![10, 10, 13, 10], 1),
            (vec![10, 10, 25], 1),
            (vec![10, 300], 1),
            (vec![300], 0),
        ] {
            assert_eq!(excess(&mib(&sizes), &MAX), gone, "{sizes:?}");
        }
        assert_eq!(excess(&mib(&[10, 10]), &Policy { max_files: 2, ..MAX }), 1);
    }

    proptest! {
        #[test]
        fn a15_4d_a_steady_log_outgrows_the_maximum_by_what_is_written_in_the_soonest_look(rate in 1_u64..4_000) {
            let (rotated, _) = follow(&[rate], Micros::secs(2));
            let bound = MAX.max_size.get() + rate * (SOONEST.get() + 1_000);
            for size in rotated {
                prop_assert!(size.get() <= bound, "{size} at {rate} MB/s");
            }
        }

        #[test]
        fn a15_4d_a_log_of_any_rate_outgrows_the_maximum_by_what_is_written_in_the_latest_look(
            rates in prop::collection::vec(prop_oneof![Just(0), 0_u64..50, 0_u64..1_100], 1..200),
        ) {
            let (rotated, _) = follow(&rates, Micros::secs(2));
            let fastest = rates.iter().max().unwrap();
            for size in rotated {
                prop_assert!(size.get() <= MAX.max_size.get() + fastest * (LATEST.get() + 1_000), "{size}");
            }
        }

        #[test]
        fn a15_4a_what_stays_is_within_the_policy_and_nothing_more_goes(
            sizes in prop::collection::vec(0_u64..40, 0..12),
            max_files in 2_u32..8,
        ) {
            let policy = Policy { max_files, ..MAX };
            let sizes: Vec<Bytes> = sizes.into_iter().map(Bytes::mib).collect();
            let gone = excess(&sizes, &policy);
            let (stay, room) = (&sizes[gone..], u64::from(max_files - 1));
            let sum: Bytes = stay.iter().copied().sum();
            prop_assert!(stay.len() <= 1 || stay.len() as u64 <= room && sum.get() <= policy.max_size.get() * room * 5 / 4);
            prop_assert_eq!(stay.is_empty(), sizes.is_empty());
            let full: u64 = stay.iter().map(|size| places(*size, policy.max_size)).sum();
            prop_assert!(gone == 0 || full + places(sizes[gone - 1], policy.max_size) > room);
        }
    }
}
