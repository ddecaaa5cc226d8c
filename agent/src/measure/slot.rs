//! Where a look waits for the core.
//!
//! Problem: a core that is behind wants what is newest, and a queue keeps what is oldest. But near an OOM most looks are quick
//! ones, and a full one must not be lost to a quick one that came after it.
//! Approach: one place for each of the two kinds, and the newest wins: a full look takes both places over, a quick one only
//! that of the quick. They are taken in the order in which they were made.
//!
//! Property: at most two samples wait, and the newest is always among them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beelet_core::sample::Sample;
use tokio::sync::Notify;

/// A pair of ends.
#[must_use]
pub fn slot() -> (SampleSender, SampleReceiver) {
    let shared = Arc::new(Shared::default());
    (SampleSender(Arc::clone(&shared)), SampleReceiver(shared))
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    full: Option<Sample>,
    /// Newer than `full`.
    quick: Option<Sample>,
}

impl Shared {
    /// Nothing that could be half done happens under the lock, so a holder that panicked does no harm.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sampler's end.
#[derive(Debug)]
pub struct SampleSender(Arc<Shared>);

impl SampleSender {
    /// Puts a sample in place of those that it outdates; how many of these had not been taken.
    pub fn put(&self, sample: Sample) -> u64 {
        let outdated = {
            let mut waiting = self.0.waiting();
            if sample.pods.is_some() {
                let old = std::mem::replace(&mut *waiting, Waiting { full: Some(sample), quick: None });
                u64::from(old.full.is_some()) + u64::from(old.quick.is_some())
            } else {
                u64::from(waiting.quick.replace(sample).is_some())
            }
        };
        self.0.news.notify_one();
        outdated
    }
}

/// The core's end.
#[derive(Debug)]
pub struct SampleReceiver(Arc<Shared>);

impl SampleReceiver {
    /// The next sample, when there is one. May be cancelled without losing it.
    pub async fn next(&mut self) -> Sample {
        loop {
            let waiting = {
                let mut waiting = self.0.waiting();
                waiting.full.take().or_else(|| waiting.quick.take())
            };
            match waiting {
                Some(sample) => return sample,
                None => self.0.news.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use beelet_core::units::Micros;

    use super::*;

    fn look(at: u64, full: bool) -> Sample {
        Sample { at: Micros(at), pods: full.then(Vec::new), ..Sample::default() }
    }

    #[tokio::test]
    async fn the_newest_wins_and_a_quick_look_does_not_cost_a_full_one() {
        let (to, mut from) = slot();
        let outdated: Vec<u64> =
            [look(1, true), look(2, true), look(3, false), look(4, false)].into_iter().map(|it| to.put(it)).collect();
        assert_eq!(outdated, [0, 1, 0, 1]);
        assert_eq!((from.next().await, from.next().await), (look(2, true), look(4, false)));
        to.put(look(5, false));
        assert_eq!(to.put(look(6, true)), 1);
        assert_eq!(from.next().await, look(6, true));
        let nothing = tokio::time::timeout(std::time::Duration::from_millis(20), from.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let (to, mut from) = slot();
        let waiting = tokio::spawn(async move { from.next().await });
        tokio::task::yield_now().await;
        to.put(look(1, false));
        assert_eq!(waiting.await.unwrap(), look(1, false));
    }
}
