//! systemd-oomd's by pressure (src/oom/oomd-manager.{c,h} and oomd-util.{c,h}, the main branch that has rules.d), with
//! `ManagedOOMMemoryPressure=kill` on `kubepods`. Its other rule acts on swap, of which there is none.
//!
//! Each second: if `full` avg10 of the watched cgroup has been above 60 % for 30 s, and the cgroup had reclaim within the last 30 s,
//! the leaf with the highest pgscan of the last second goes, among equals the one that uses more memory; then nothing for 15 s.

use std::collections::BTreeMap;

use beelet_core::sample::PodReading;
use beelet_core::spec::PodUid;
use beelet_core::units::{Bytes, Micros};

use super::{Look, Rules, Verdict};

/// `MEM_PRESSURE_INTERVAL_USEC`.
const INTERVAL: Micros = Micros::secs(1);
/// `DEFAULT_MEM_PRESSURE_LIMIT_PERCENT`, in hundredths of a percent.
const LIMIT: u32 = 6_000;
/// `DEFAULT_MEM_PRESSURE_DURATION_USEC`.
const DURATION: Micros = Micros::secs(30);
/// `RECLAIM_DURATION_USEC`.
const RECLAIM: Micros = Micros::secs(30);
/// `POST_ACTION_DELAY_USEC`.
const DELAY: Micros = Micros::secs(15);

/// systemd-oomd.
#[derive(Default)]
pub struct Oomd {
    above_since: Option<Micros>,
    reclaimed: Option<Micros>,
    acted: Option<Micros>,
    /// `pgscan` of `kubepods` and of each pod, at the last look.
    scanned: u64,
    pods: BTreeMap<PodUid, u64>,
}

fn scanned(pod: &PodReading) -> u64 {
    pod.cgroup.memory.and_then(|m| m.more.scanned).unwrap_or(0)
}

impl Oomd {
    fn first(&self, look: &Look) -> Option<PodUid> {
        let usage = |p: &PodReading| p.cgroup.memory.map_or(Bytes::ZERO, |m| m.usage);
        let rate = |p: &PodReading| {
            let (now, before) = (scanned(p), self.pods.get(&p.uid).copied().unwrap_or(0));
            // Made anew.
            if before > now { now } else { now - before }
        };
        let candidates = look.pods().iter().filter(|p| scanned(p) > 0 || usage(p) > Bytes::ZERO);
        candidates.max_by_key(|p| (rate(p), usage(p))).map(|p| p.uid.clone())
    }
}

impl Rules for Oomd {
    fn name(&self) -> &'static str {
        "systemd-oomd"
    }

    fn look(&mut self, look: &Look) -> Verdict {
        let now = look.sample.at;
        let kubepods = look.sample.kubepods.and_then(|k| k.memory);
        let total = kubepods.and_then(|m| m.more.scanned).unwrap_or(0);
        if total > self.scanned {
            self.reclaimed = Some(now);
        }
        self.scanned = total;
        self.above_since = (look.pressure().full.avg10 > LIMIT).then(|| self.above_since.unwrap_or(now));
        self.acted = self.acted.filter(|at| now - *at < DELAY);
        let lasts = self.above_since.is_some_and(|since| now - since >= DURATION);
        let reclaims = self.reclaimed.is_some_and(|at| now - at <= RECLAIM);
        let kill = if lasts && reclaims && self.acted.is_none() { self.first(look) } else { None };
        if kill.is_some() {
            self.acted = Some(now);
        }
        self.pods = look.pods().iter().map(|p| (p.uid.clone(), scanned(p))).collect();
        Verdict { kill, next: now + INTERVAL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beelet_core::sample::{CgroupReading, MemoryMore, MemoryReading, PressureReading, Sample};

    /// A pod with its pgscan and MiB.
    type Pod = (&'static str, u64, u64);

    /// `full` avg10 in percent.
    fn look(second: u64, full: u32, pods: &[Pod]) -> Look {
        let memory = |scanned, mib| MemoryReading {
            usage: Bytes::mib(mib),
            more: MemoryMore { scanned: Some(scanned), ..MemoryMore::default() },
            ..MemoryReading::default()
        };
        let reading = |&(name, scanned, mib): &Pod| {
            PodReading::of(
                name.into(),
                CgroupReading { memory: Some(memory(scanned, mib)), ..CgroupReading::default() },
            )
        };
        let mut pressure = PressureReading::default();
        pressure.memory.full.avg10 = full * 100;
        let all = memory(pods.iter().map(|p| p.1).sum(), 0);
        let kubepods = CgroupReading { memory: Some(all), pressure: Some(pressure), ..CgroupReading::default() };
        let sample = Sample {
            at: Micros::secs(second),
            kubepods: Some(kubepods),
            pods: Some(pods.iter().map(reading).collect()),
            ..Sample::default()
        };
        Look { sample, ..Look::default() }
    }

    /// The seconds at which somebody goes, and who.
    fn kills(seconds: std::ops::Range<u64>, at: impl Fn(u64) -> Look) -> Vec<(u64, String)> {
        let mut oomd = Oomd::default();
        seconds.filter_map(|s| Some((s, oomd.look(&at(s)).kill?.to_string()))).collect()
    }

    #[test]
    fn acts_after_30_s_above_60_percent_with_reclaim_and_then_each_15_s() {
        let busy = |s: u64| [("a", s * 10, 500), ("b", s * 20, 100)];
        let acts = kills(100..165, |s| look(s, 61, &busy(s)));
        assert_eq!(acts, [(130, "b".to_owned()), (145, "b".to_owned()), (160, "b".to_owned())]);
        assert!(kills(100..165, |s| look(s, 60, &busy(s))).is_empty(), "60 % is not above 60 %");
        let dip = |s| look(s, if s == 120 { 50 } else { 90 }, &busy(s));
        assert_eq!(kills(100..160, dip), [(151, "b".to_owned())], "a dip starts it anew");
        // Reclaim ended at 105: until 135 it counts.
        let ended = |s: u64| look(s, 90, &busy(s.min(105)));
        assert_eq!(kills(100..160, ended), [(130, "a".to_owned())]);
        let never = |s| look(s, 90, &[("a", 0, 500)]);
        assert!(kills(100..160, never).is_empty(), "pressure without reclaim");
    }

    #[test]
    fn takes_who_is_scanned_most_not_who_is_largest() {
        let cases: [(&[Pod], &str); 3] = [
            (&[("sufferer", 900, 50), ("aggressor", 10, 3_000)], "sufferer"),
            (&[("small", 10, 50), ("large", 10, 3_000)], "large"),
            (&[("gone", 0, 0), ("there", 0, 1), ("scanned", 1, 0)], "scanned"),
        ];
        for (pods, expected) in cases {
            let at = |s: u64| {
                let grown: Vec<_> = pods.iter().map(|&(n, rate, mib)| (n, rate * s, mib)).collect();
                look(s, 99, &grown)
            };
            assert_eq!(kills(100..131, at), [(130, expected.to_owned())]);
        }
    }
}
