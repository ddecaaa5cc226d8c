//! The kubelet's back-off: 10 s after the second failure, doubling to a maximum, forgotten after a good run.
//!
//! Source: client-go util/flowcontrol/backoff.go and pkg/kubelet/kuberuntime/kuberuntime_manager.go (doBackOff), release
//! 1.37. The first restart is at once: there is no entry yet, and making one is what that restart does.

use serde::{Deserialize, Serialize};

use crate::units::Micros;

/// The first delay.
pub const INITIAL: Micros = Micros::secs(10);

/// The longest delay of an image (`MaxImageBackOff`, pkg/kubelet/kubelet.go, release 1.36).
pub const MAX_IMAGE: Micros = Micros::secs(300);

/// The back-off of one thing that may fail again and again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// The delay after the failure that comes next; zero before the first.
    delay: Micros,
    /// When `delay` was last set (monotonic).
    set_at: Micros,
}

impl Backoff {
    /// As an agent that was restarted has to assume it after `failures` restarts, the last of them at `at`.
    #[must_use]
    pub fn rebuilt(failures: u32, at: Micros, max: Micros) -> Self {
        let delay = match failures {
            0 => Micros::ZERO,
            n => INITIAL.scale(1 << u64::from(n - 1).min(20), 1).min(max),
        };
        Self { delay, set_at: at }
    }

    /// When the next try may begin, for a failure at `failed`: at once after a good run of more than twice `max`.
    #[must_use]
    pub fn ready_at(&self, failed: Micros, max: Micros) -> Micros {
        if self.forgiven(failed, max) { failed } else { failed + self.delay }
    }

    fn forgiven(&self, failed: Micros, max: Micros) -> bool {
        failed - self.set_at > max + max
    }

    /// The delay that is waited for now.
    #[must_use]
    pub fn delay(&self) -> Micros {
        self.delay
    }

    /// A try begins after a failure at `failed`: the next one will wait longer, or [`INITIAL`] if the last failure was more
    /// than twice `max` ago.
    pub fn next(&mut self, failed: Micros, now: Micros, max: Micros) {
        self.delay = if self.delay == Micros::ZERO || self.forgiven(failed, max) {
            INITIAL.min(max)
        } else {
            (self.delay + self.delay).min(max)
        };
        self.set_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A container that runs for one second each time: 0, 10, 20, 40, 80, 160, 300, 300 s between end and start.
    #[test]
    fn a4_8f_doubles_from_ten_seconds_to_the_maximum() {
        let max = Micros::secs(300);
        let (mut backoff, mut now, mut waits) = (Backoff::default(), Micros::secs(1_000), Vec::new());
        for _ in 0..8 {
            let failed = now;
            now = backoff.ready_at(failed, max).max(now);
            waits.push((now - failed).0 / 1_000_000);
            backoff.next(failed, now, max);
            now += Micros::secs(1);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a4_8g_a_run_of_more_than_twice_the_maximum_is_forgiven() {
        let max = Micros::secs(300);
        let mut backoff = Backoff::rebuilt(5, Micros::secs(100), max);
        assert_eq!(backoff.delay(), Micros::secs(160));
        assert_eq!(backoff.ready_at(Micros::secs(701), max), Micros::secs(701));
        backoff.next(Micros::secs(100 + 601), Micros::secs(702), max);
        assert_eq!(backoff.delay(), INITIAL);
    }

    #[test]
    fn a4_8h_a_smaller_maximum_also_caps_the_first_delay() {
        let mut backoff = Backoff::default();
        backoff.next(Micros::ZERO, Micros::ZERO, Micros::secs(1));
        assert_eq!(backoff.delay(), Micros::secs(1));
    }
}
