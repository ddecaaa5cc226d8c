//! What an eviction gained.
//!
//! Problem: an eviction that frees nothing is worse than none, and nobody sees it: the pod is gone, and what its death was good for
//! stands nowhere. Approach: each victim is watched by the samples that come anyway until it holds nothing more, or for [`WATCH`]
//! beyond the time that it was given; then one [`Gained`] says what was freed, and how long that took.
//!
//! Terms: it is *free* when four fifths of what the victim held are, as for the wait of the [`Decider`](super::Decider); what it took
//! after the decision counts as held.
//!
//! Properties (tested): one [`Gained`] for each victim, also for one that does not go; only samples from after the decision count.

use serde::{Deserialize, Serialize};

use super::Signal;
use super::rank::LEAST_GAIN;
use crate::sample::Sample;
use crate::spec::PodUid;
use crate::units::{Bytes, Micros};

/// Who still holds something after this long does not go by itself: the sandbox and the volumes are removed within a second or two.
pub const WATCH: Micros = Micros::secs(10);

/// What an eviction gained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gained {
    /// Who went.
    pub victim: PodUid,
    /// `namespace/name`.
    pub name: String,
    /// For which wall.
    pub signal: Signal,
    /// The most that it held, of what reclaim cannot free.
    pub held: Bytes,
    /// What of that is free.
    pub freed: Bytes,
    /// From the decision until the sample that shows four fifths of it to be free; `None`: they are not.
    pub free_after: Option<Micros>,
    /// What was left below the wall at the decision.
    pub available_before: Bytes,
    /// What is left now; `None` where it cannot be read any more.
    pub available_after: Option<Bytes>,
}

impl Gained {
    /// For people.
    #[must_use]
    pub fn message(&self) -> String {
        let time = match self.free_after {
            Some(after) => format!("most of it within {after}"),
            None => "and the rest did not go in time".to_owned(),
        };
        let now = self.available_after.map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string());
        let Self { freed, held, signal, available_before, .. } = self;
        format!("its eviction freed {freed} of {held}, {time}; {signal}: {available_before} before, {now} now")
    }

    /// The same as data.
    #[must_use]
    pub fn evidence(&self) -> Vec<(String, String)> {
        let or = |value: Option<String>, none: &str| value.unwrap_or_else(|| none.to_owned());
        [
            ("signal", self.signal.to_string()),
            ("held", self.held.to_string()),
            ("freed", self.freed.to_string()),
            ("free_after", or(self.free_after.map(|t| t.to_string()), "not free")),
            ("available_before", self.available_before.to_string()),
            ("available_after", or(self.available_after.map(|b| b.to_string()), "unknown")),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// A victim that is watched.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    pub(super) victim: PodUid,
    pub(super) name: String,
    pub(super) signal: Signal,
    /// When it was decided (monotonic).
    pub(super) since: Micros,
    /// The time it was given to end.
    pub(super) grace: Micros,
    /// The most that it held, and what it holds by the last look.
    pub(super) held: Bytes,
    pub(super) holds: Bytes,
    /// What `kubepods` held at the decision, victim included.
    pub(super) base: Option<Bytes>,
    /// What was left below the wall at the decision.
    pub(super) available: Bytes,
    pub(super) free_after: Option<Micros>,
}

impl Watched {
    /// Takes a sample; `available` is what is left below its wall. What was gained, when that is known for good.
    pub(super) fn observe(&mut self, now: Micros, sample: &Sample, available: Option<Bytes>) -> Option<Gained> {
        if sample.at <= self.since {
            return None;
        }
        let total = sample.kubepods_memory().map(|m| m.unreclaimable());
        if let Some(pods) = &sample.pods {
            let pod = pods.iter().find(|p| p.uid == self.victim);
            match pod.map(|p| p.cgroup.memory) {
                None => self.holds = Bytes::ZERO,
                Some(Some(memory)) => self.holds = memory.unreclaimable(),
                // It cannot be read: not known.
                Some(None) => {}
            }
            self.held = self.held.max(self.holds);
        }
        let most = self.held.scale(4, 5);
        let by_total = self.base.zip(total).is_some_and(|(base, total)| base - total >= most);
        if self.free_after.is_none() && (by_total || self.held - self.holds >= most) {
            self.free_after = Some(sample.at - self.since);
        }
        let over = now - self.since >= self.grace + WATCH;
        (over || self.holds < LEAST_GAIN).then(|| Gained {
            victim: self.victim.clone(),
            name: self.name.clone(),
            signal: self.signal,
            held: self.held,
            freed: self.held - self.holds,
            free_after: self.free_after,
            available_before: self.available,
            available_after: available,
        })
    }
}

/// How long things took, in buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Durations {
    /// How many up to each of [`Durations::BOUNDS`] and above the one before it; the last: above all.
    pub counts: [u64; 13],
    /// Their sum.
    pub sum: Micros,
}

impl Durations {
    /// Upper bounds: those of upstream's histograms (`metrics.DefBuckets`, pkg/kubelet/metrics/metrics.go, release 1.37), and 30 s for
    /// who was given time.
    pub const BOUNDS: [Micros; 12] = [
        Micros::millis(5),
        Micros::millis(10),
        Micros::millis(25),
        Micros::millis(50),
        Micros::millis(100),
        Micros::millis(250),
        Micros::millis(500),
        Micros::secs(1),
        Micros::millis(2_500),
        Micros::secs(5),
        Micros::secs(10),
        Micros::secs(30),
    ];

    /// Counts one.
    pub fn count(&mut self, time: Micros) {
        let slot = Self::BOUNDS.iter().position(|bound| time <= *bound).unwrap_or(Self::BOUNDS.len());
        self.counts[slot] = self.counts[slot].saturating_add(1);
        self.sum += time;
    }
}

/// What is counted of evictions for one signal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictionCounts {
    /// How old the reading was that decided.
    pub age: Durations,
    /// What was freed.
    pub freed: Bytes,
    /// From the decision until most of it was free; of evictions after which it was.
    pub free: Durations,
    /// How many freed too little in their time.
    pub in_vain: u64,
    /// How many by what decided between the first and the second ([`super::By::as_str`]).
    pub decided: std::collections::BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{CgroupReading, MemoryReading, PodReading};

    fn sample(ms: u64, total: u64, victim: Option<u64>) -> Sample {
        let reading = |mib: u64| {
            let memory = MemoryReading { usage: Bytes::mib(mib), anon: Bytes::mib(mib), ..MemoryReading::default() };
            CgroupReading { memory: Some(memory), ..CgroupReading::default() }
        };
        Sample {
            at: Micros::millis(ms),
            kubepods: Some(reading(total)),
            pods: Some(victim.map(|mib| PodReading::of("a".into(), reading(mib))).into_iter().collect()),
            ..Sample::default()
        }
    }

    fn watched() -> Watched {
        Watched {
            victim: "a".into(),
            name: "default/a".into(),
            signal: Signal::AllocatableMemory,
            since: Micros::millis(1_000),
            grace: Micros::ZERO,
            held: Bytes::mib(300),
            holds: Bytes::mib(300),
            base: Some(Bytes::mib(2_000)),
            available: Bytes::mib(99),
            free_after: None,
        }
    }

    /// What comes of samples with their ms, the total and what the victim holds.
    fn gained(samples: &[(u64, u64, Option<u64>)]) -> Option<Gained> {
        let mut watched = watched();
        let last = samples.len() - 1;
        let mut seen = samples.iter().enumerate().filter_map(|(i, &(ms, total, victim))| {
            let available = Some(Bytes::mib(2_099 - total));
            let gained = watched.observe(Micros::millis(ms), &sample(ms, total, victim), available)?;
            assert_eq!(i, last, "too early");
            Some(gained)
        });
        seen.next()
    }

    #[test]
    fn it_is_told_once_it_is_gone_with_the_time_until_most_was_free() {
        // It grows by 20 until it is killed; the sample of the decision itself does not count.
        let samples = [(1_000, 0, None), (1_020, 2_020, Some(320)), (1_060, 1_740, Some(40)), (1_300, 1_700, None)];
        let gained = gained(&samples).expect("it is gone");
        assert_eq!((gained.held, gained.freed), (Bytes::mib(320), Bytes::mib(320)));
        assert_eq!(gained.free_after, Some(Micros::millis(60)));
        assert_eq!((gained.available_before, gained.available_after), (Bytes::mib(99), Some(Bytes::mib(399))));
        let text = gained.message();
        assert!(text.starts_with("its eviction freed ") && text.contains("most of it within"), "{text}");
    }

    #[test]
    fn the_sum_of_all_pods_tells_of_it_before_the_pod_is_looked_at() {
        let mut watched = watched();
        let quick = Sample { pods: None, ..sample(1_040, 1_700, None) };
        assert_eq!(watched.observe(Micros::millis(1_041), &quick, None), None, "what it holds is not known");
        assert_eq!(watched.free_after, Some(Micros::millis(40)));
    }

    #[test]
    fn who_does_not_go_is_told_of_too() {
        let samples: Vec<_> = (1..=10).map(|s| (1_000 + s * 1_000, 1_900, Some(200))).collect();
        let gained = gained(&samples).expect("its time is over");
        assert_eq!((gained.freed, gained.free_after), (Bytes::mib(100), None));
        assert!(gained.message().contains("the rest did not go in time"), "{}", gained.message());
        let mut with_time = Watched { grace: Micros::secs(30), ..watched() };
        assert_eq!(with_time.observe(Micros::secs(12), &sample(12_000, 1_900, Some(200)), None), None);
    }

    #[test]
    fn durations_count_up_to_their_bounds() {
        let mut d = Durations::default();
        for ms in [5, 6, 10_000, 30_001] {
            d.count(Micros::millis(ms));
        }
        assert_eq!((d.counts[0], d.counts[1], d.counts[10], d.counts[12]), (1, 1, 1, 1));
        assert_eq!(d.sum, Micros::millis(40_012));
    }
}
