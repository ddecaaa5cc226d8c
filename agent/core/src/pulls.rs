//! How fast and how many images are pulled.
//!
//! Problem: a node that starts a hundred pods at once asks a registry for a hundred images, each of them slowly. Approach: the kubelet's
//! (pkg/kubelet/images, release 1.36): pulls wait for their turn, and a bucket of tokens says whether one may begin; one that may not
//! fails, and is tried again by its back-off.
//!
//! Property (tested): in any stretch of time no more pulls begin than the burst and what the rate gives meanwhile.

use crate::units::Micros;

/// How images are pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// So many at a time (`serializeImagePulls`, `maxParallelImagePulls`); `None` for no limit.
    pub parallel: Option<usize>,
    /// `registryPullQPS`: so many begin in a second; `None` for no limit.
    pub per_second: Option<u32>,
    /// `registryBurst`: so many may begin at once.
    pub burst: u32,
}

impl Default for Policy {
    /// The kubelet's.
    fn default() -> Self {
        Self { parallel: Some(1), per_second: Some(5), burst: 10 }
    }
}

/// A pull that began at this moment is one of so many.
#[derive(Clone, Debug)]
pub struct Bucket {
    policy: Policy,
    /// In parts of [`WHOLE`] of a pull.
    tokens: u64,
    at: Micros,
}

/// A token's parts: so many that a microsecond adds a whole number of them.
const WHOLE: u64 = 1_000_000;

impl Bucket {
    /// A full one.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { policy, tokens: u64::from(policy.burst) * WHOLE, at: Micros::ZERO }
    }

    /// Whether one more may begin (`now` is monotonic); if so it counts.
    pub fn take(&mut self, now: Micros) -> bool {
        let Some(rate) = self.policy.per_second else { return true };
        let new = (now - self.at).get().saturating_mul(u64::from(rate));
        self.tokens = self.tokens.saturating_add(new).min(u64::from(self.policy.burst) * WHOLE);
        self.at = self.at.max(now);
        match self.tokens.checked_sub(WHOLE) {
            Some(left) => self.tokens = left,
            None => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a6_2b_ten_at_once_and_five_a_second_after_that() {
        let mut bucket = Bucket::new(Policy::default());
        let mut begun = |at: Micros| (0..100).filter(|_| bucket.take(at)).count();
        assert_eq!((begun(Micros::secs(50)), begun(Micros::secs(50))), (10, 0));
        assert_eq!(
            (begun(Micros::secs(50) + Micros::millis(199)), begun(Micros::secs(50) + Micros::millis(200))),
            (0, 1)
        );
        assert_eq!((begun(Micros::secs(51)), begun(Micros::secs(1_000))), (4, 10));
        let mut unlimited = Bucket::new(Policy { per_second: None, ..Policy::default() });
        assert!((0..100).all(|_| unlimited.take(Micros::secs(1))));
        assert!(!Bucket::new(Policy { burst: 0, ..Policy::default() }).take(Micros::secs(1_000)), "as upstream");
    }

    proptest! {
        #[test]
        fn a6_2b_no_more_begin_than_the_rate_gives(
            gaps in prop::collection::vec(0_u64..500_000, 1..200), rate in 1_u32..20, burst in 0_u32..20,
        ) {
            let mut bucket = Bucket::new(Policy { parallel: None, per_second: Some(rate), burst });
            let (mut now, mut begun) = (Micros::secs(1), 0_u64);
            for gap in gaps {
                now += Micros(gap);
                begun += u64::from(bucket.take(now));
                let given = (now - Micros::secs(1)).get() * u64::from(rate) / 1_000_000;
                prop_assert!(begun <= u64::from(burst) + given + 1);
            }
        }
    }
}
