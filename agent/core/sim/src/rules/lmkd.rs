//! lmkd's of Android (`mp_event_psi` of lmkd.cpp as it was ported from system/memory/lmkd to Linux; newer ones add reasons for swap and
//! for direct reclaim that takes long, off by default), with its defaults for a device that is not low on RAM, and with a pod's
//! `oom_score_adj` in the place of an app's.
//!
//! It sleeps until PSI tells of 70 ms of *some* or 700 ms of *full* within a second; then it polls for a second, and longer while there
//! is direct reclaim or a kill: each 100 ms, after a kill each 10 ms. Of its chain of reasons four can be true without swap:
//! the lowest watermark is breached although a process was just killed; tasks are fully stalled; the low watermark is breached, or
//! there is direct reclaim, and the page cache thrashes (more than 100 % of it refaulted within a second, 10 % less after each kill
//! for that). `filecache_min_kb` and `stall_limit_critical` are off by default, and without swap nothing makes it poll faster.
//! The process with the highest score goes, among equals the largest; below 0 nobody, and none up to 200 unless thrashing is twice the
//! limit.

use std::collections::BTreeMap;

use beelet_core::spec::PodUid;
use beelet_core::units::{Bytes, Micros};

use super::{Look, Rules, Verdict};
use crate::kernel::reclaim::{LOW, MIN};

/// `PSI_WINDOW_SIZE_MS`, and how long it polls after an event.
const WINDOW: Micros = Micros::secs(1);
/// `DEF_PARTIAL_STALL`.
const PARTIAL: Micros = Micros::millis(70);
/// `DEF_COMPLETE_STALL`.
const COMPLETE: Micros = Micros::millis(700);
/// `PSI_POLL_PERIOD_SHORT_MS`.
const SHORT: Micros = Micros::millis(10);
/// `PSI_POLL_PERIOD_LONG_MS`; also a tenth of the window, in which the kernel looks at triggers (kernel/sched/psi.c,
/// `UPDATES_PER_WINDOW`).
const LONG: Micros = Micros::millis(100);
/// `kill_timeout_ms`.
const KILL_TIMEOUT: Micros = Micros::millis(100);
/// `DEF_THRASHING`, percent.
const THRASHING: u64 = 100;
/// `DEF_THRASHING_DECAY`, percent.
const DECAY: u64 = 10;
/// `thrashing_limit_critical`, percent.
const CRITICAL: u64 = 2 * THRASHING;
/// `THRASHING_RESET_INTERVAL_MS`.
const RESET: Micros = Micros::secs(1);
/// `PERCEPTIBLE_APP_ADJ`.
const PERCEPTIBLE: i32 = 200;

/// A PSI trigger (`window_update` of kernel/sched/psi.c): growth in the last window, of which the part before it began is estimated.
#[derive(Clone, Copy, Debug, Default)]
struct Trigger {
    start: Micros,
    value: Micros,
    before: Micros,
    told: Option<Micros>,
}

impl Trigger {
    /// Whether it tells now; at most once in a window.
    fn fires(&mut self, now: Micros, value: Micros, threshold: Micros) -> bool {
        let (elapsed, mut growth) = (now - self.start, value - self.value);
        if elapsed > WINDOW {
            (self.start, self.value, self.before) = (now, value, growth);
        } else {
            growth += self.before.scale((WINDOW - elapsed).get(), WINDOW.get());
        }
        let fires = growth >= threshold && self.told.is_none_or(|at| now - at >= WINDOW);
        if fires {
            self.told = Some(now);
        }
        fires
    }
}

/// lmkd.
pub struct Lmkd {
    scores: BTreeMap<PodUid, i32>,
    some: Trigger,
    full: Trigger,
    checked: Micros,
    polls_until: Micros,
    /// `init_pgscan_direct`, `init_pgscan_kswapd`, `prev_workingset_refault`.
    scanned: (u64, u64),
    refaulted: u64,
    /// `init_ws_refault`, `base_file_lru` in pages, `thrashing_reset_tm`, `prev_thrash_growth`.
    base: (u64, u64, Micros),
    carried: u64,
    limit: u64,
    /// The last victim, and when.
    killing: Option<(Micros, PodUid)>,
}

impl Lmkd {
    /// `scores`: each pod's `oom_score_adj`.
    #[must_use]
    pub fn new(scores: BTreeMap<PodUid, i32>) -> Self {
        Self {
            scores,
            some: Trigger::default(),
            full: Trigger::default(),
            checked: Micros::ZERO,
            polls_until: Micros::ZERO,
            scanned: (0, 0),
            refaulted: 0,
            base: (0, 0, Micros::ZERO),
            carried: 0,
            limit: THRASHING,
            killing: None,
        }
    }

    /// `mp_event_psi`. `stalled`: the event is of *full*.
    fn event(&mut self, look: &Look, event: bool, stalled: bool) -> Option<PodUid> {
        let (now, vm) = (look.sample.at, look.vm);
        let pages = (vm.inactive_file + vm.active_file).get() / 4_096;
        let pending = |uid: &PodUid| look.memory(uid).is_some_and(|m| m.anon > Bytes::ZERO);
        if self.killing.as_ref().is_some_and(|(at, uid)| now - *at < KILL_TIMEOUT && pending(uid)) {
            return None;
        }
        let after_kill = self.killing.take().is_some();
        if after_kill {
            self.base = (vm.refaults, pages, now);
            self.carried = 0;
        }
        let direct = vm.scanned_direct > self.scanned.0;
        let reclaims = direct || vm.scanned_kswapd > self.scanned.1;
        let same = vm.refaults == self.refaulted;
        self.scanned = (vm.scanned_direct, vm.scanned_kswapd);
        if event || direct {
            self.polls_until = now + WINDOW;
        }
        if !reclaims && same {
            return None;
        }
        self.refaulted = vm.refaults;
        let share = (vm.refaults - self.base.0) * 100 / (self.base.1 + 1);
        let windows = (now - self.base.2).get() / RESET.get();
        let mut thrashing = 0;
        if now - self.base.2 > RESET {
            self.carried = share;
            if windows > 1 || share < self.limit {
                self.carried >>= windows.min(63);
            }
            self.base = (vm.refaults, pages, now);
            self.limit = THRASHING;
        } else {
            thrashing = share;
        }
        thrashing += self.carried;
        let thrashes = thrashing > self.limit;
        let least = if after_kill && vm.free < MIN || stalled {
            0
        } else if thrashes && (vm.free < LOW || direct) {
            if thrashing < CRITICAL { PERCEPTIBLE + 1 } else { 0 }
        } else {
            return None;
        };
        let victim = self.first(look, least)?;
        if thrashes && !stalled {
            self.limit = self.limit * (100 - DECAY) / 100;
        }
        self.killing = Some((now, victim.clone()));
        self.polls_until = now + WINDOW;
        Some(victim)
    }

    fn first(&self, look: &Look, least: i32) -> Option<PodUid> {
        let candidates = look.pods().iter().filter_map(|p| {
            let score = *self.scores.get(&p.uid)?;
            let size = p.cgroup.memory?.anon;
            // Without a process there is nothing to kill, whatever its volumes hold.
            (score >= least && !p.containers.is_empty()).then_some((score, size, &p.uid))
        });
        candidates.max().map(|(.., uid)| uid.clone())
    }
}

impl Rules for Lmkd {
    fn name(&self) -> &'static str {
        "lmkd"
    }

    fn look(&mut self, look: &Look) -> Verdict {
        let now = look.sample.at;
        let (mut some, mut full) = (false, false);
        // The kernel's work, not lmkd's.
        if now - self.checked >= LONG {
            let pressure = look.pressure();
            some = self.some.fires(now, pressure.some.total, PARTIAL);
            full = self.full.fires(now, pressure.full.total, COMPLETE);
            self.checked = now;
        }
        let event = some || full;
        let kill = if event || now < self.polls_until { self.event(look, event, full) } else { None };
        let next = if self.killing.is_some() { SHORT } else { LONG };
        Verdict { kill, next: now + next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::reclaim::VmStat;
    use beelet_core::sample::{CgroupReading, ContainerReading, MemoryReading, PodReading, PressureReading, Sample};

    /// What an instant shows, after one second of quiet; pages, MiB and milliseconds.
    #[derive(Clone, Copy, Default)]
    struct Instant {
        some: u64,
        full: u64,
        free: u64,
        refaults: u64,
        direct: u64,
        kswapd: u64,
    }

    fn look(at: Micros, i: Instant) -> Look {
        let reading = |name: &str, mib: u64| {
            let memory = MemoryReading { anon: Bytes::mib(mib), ..MemoryReading::default() };
            let cgroup = CgroupReading { memory: Some(memory), ..CgroupReading::default() };
            let container = ContainerReading { name: "c".to_owned(), id: name.to_owned(), cgroup, detail: None };
            PodReading { containers: vec![container], ..PodReading::of(name.into(), cgroup) }
        };
        let mut pressure = PressureReading::memory_some(Micros::millis(i.some));
        pressure.memory.full.total = Micros::millis(i.full);
        let kubepods = CgroupReading { pressure: Some(pressure), ..CgroupReading::default() };
        let pods =
            vec![reading("guaranteed", 2_000), reading("burstable", 900), reading("small", 10), reading("big", 80)];
        let sample = Sample { at, kubepods: Some(kubepods), pods: Some(pods), ..Sample::default() };
        let vm = VmStat {
            free: Bytes::mib(i.free),
            inactive_file: Bytes::mib(50),
            active_file: Bytes::mib(50),
            refaults: i.refaults,
            scanned_direct: i.direct,
            scanned_kswapd: i.kswapd,
        };
        Look { sample, vm }
    }

    fn lmkd() -> Lmkd {
        let scores = [("guaranteed", -997), ("burstable", 800), ("small", 1_000), ("big", 1_000)];
        Lmkd::new(scores.map(|(name, score)| (name.into(), score)).into())
    }

    /// Who goes at the event that comes of this 500 ms after a quiet look. 25600 pages are file cache.
    fn victim(i: Instant) -> Option<String> {
        let mut lmkd = lmkd();
        assert_eq!(lmkd.look(&look(Micros::secs(100), Instant::default())).kill, None);
        lmkd.base = (0, 25_600, Micros::secs(100));
        lmkd.look(&look(Micros::millis(100_500), i)).kill.map(|uid| uid.to_string())
    }

    #[test]
    fn the_chain_of_reasons_without_swap() {
        let thrashing = Instant { some: 100, free: 80, refaults: 30_000, kswapd: 1, ..Instant::default() };
        let cases = [
            ("thrashing below the low watermark", thrashing, Some("big")),
            ("69 ms of some wake nobody", Instant { some: 69, ..thrashing }, None),
            ("not below the low watermark", Instant { free: 83, ..thrashing }, None),
            ("unless there is direct reclaim", Instant { free: 83, direct: 1, ..thrashing }, Some("big")),
            ("100 % is not above 100 %", Instant { refaults: 25_700, ..thrashing }, None),
            (
                "700 ms of full, whatever is free",
                Instant { full: 700, free: 500, kswapd: 1, ..Instant::default() },
                Some("big"),
            ),
            ("699 ms of full", Instant { full: 699, free: 500, kswapd: 1, ..Instant::default() }, None),
            ("full without reclaim or refaults", Instant { full: 700, free: 500, ..Instant::default() }, None),
        ];
        for (what, instant, expected) in cases {
            assert_eq!(victim(instant).as_deref(), expected, "{what}");
        }
    }

    #[test]
    fn below_zero_nobody_goes_and_perceptible_ones_only_when_it_thrashes_badly() {
        let i = |refaults| Instant { some: 100, free: 80, refaults, kswapd: 1, ..Instant::default() };
        for (refaults, expected) in [(30_000, None), (60_000, Some("perceptible"))] {
            let mut lmkd = Lmkd::new([("big".into(), -1), ("small".into(), 200)].into());
            lmkd.look(&look(Micros::secs(100), Instant::default()));
            lmkd.base = (0, 25_600, Micros::secs(100));
            let kill = lmkd.look(&look(Micros::millis(100_500), i(refaults))).kill;
            assert_eq!(kill.is_some(), expected.is_some(), "{refaults}");
            assert!(kill.is_none_or(|uid| uid.as_str() == "small"));
        }
    }

    #[test]
    fn after_a_kill_it_waits_100_ms_and_kills_again_below_the_lowest_watermark() {
        let mut lmkd = lmkd();
        lmkd.look(&look(Micros::secs(100), Instant::default()));
        lmkd.base = (0, 25_600, Micros::secs(100));
        let low = |ms, n| {
            let i = Instant { some: 100, free: 60, refaults: 30_000 + n, direct: n, ..Instant::default() };
            look(Micros::millis(100_500 + ms), i)
        };
        let verdict = lmkd.look(&low(0, 1));
        assert_eq!((verdict.kill.is_some(), verdict.next), (true, Micros::millis(100_510)));
        for ms in (10..100).step_by(10) {
            assert_eq!(lmkd.look(&low(ms, ms)).kill, None, "{ms}");
        }
        assert!(lmkd.look(&low(100, 100)).kill.is_some());
    }

    #[test]
    fn a_trigger_tells_once_in_a_window() {
        let mut trigger = Trigger::default();
        let at = |ms: u64| Micros::millis(10_000 + ms);
        let told: Vec<u64> =
            (0..30).map(|i| i * 100).filter(|&ms| trigger.fires(at(ms), Micros::millis(ms / 5), PARTIAL)).collect();
        // 20 ms in each 100: 70 ms are full after four looks, and then there is one in each window.
        assert_eq!(told, [400, 1_400, 2_400]);
    }
}
