//! What the eBPF programs cost, measured for a second now and then.
//!
//! Problem: the kernel can tell the run time of each program, but telling costs some 60 ns for every event of every program on the
//! machine, as much as the programs themselves. Approach: the statistics are on for [`WINDOW`] in every [`EVERY`]; what was seen
//! there stands for the time in between.
//!
//! Terms: a *window* is the time in which statistics are on.
//!
//! Properties (tested): totals only grow; a program that is loaded and never runs costs nothing; the first window begins at once.

use std::collections::BTreeMap;

use beelet_core::units::Micros;

use crate::kernel::loader::ProgramCost;

/// The length of a window.
pub(super) const WINDOW: Micros = Micros::secs(1);
/// From the beginning of one window to the next.
pub(super) const EVERY: Micros = Micros::secs(30);

/// What one program costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Time in the program since the agent began, nanoseconds, estimated from the windows.
    pub(super) run_ns: u64,
    /// How often it ran, estimated likewise.
    pub(super) runs: u64,
    /// Nanoseconds for one event in the last window in which it ran; `None` before.
    pub(super) ns_per_event: Option<u64>,
    /// Events that the kernel did not hand over, exactly, up to the end of the last window.
    pub(super) missed: u64,
}

/// The programs' costs.
#[derive(Debug, Default)]
pub(super) struct BpfMeter {
    /// When the window that is open began, and what the kernel said then.
    open: Option<(Micros, BTreeMap<&'static str, ProgramCost>)>,
    /// When the last window ended.
    closed: Option<Micros>,
    next: Micros,
    costs: BTreeMap<&'static str, Cost>,
    /// Nanoseconds in all programs for each second, as in the last window.
    per_second: u64,
}

impl BpfMeter {
    /// Whether there is anything to observe now: a window to open or to close.
    pub(super) fn is_due(&self, at: Micros) -> bool {
        self.open.as_ref().map_or(at >= self.next, |(began, _)| at - *began >= WINDOW)
    }

    /// Takes what the kernel says now; whether the statistics are to be on from here.
    pub(super) fn observe(&mut self, at: Micros, said: &[ProgramCost]) -> bool {
        match self.open.take() {
            Some((began, before)) if at - began >= WINDOW => {
                self.close(at, at - began, &before, said);
                false
            }
            Some(open) => {
                self.open = Some(open);
                true
            }
            None if at >= self.next => {
                self.next = at + EVERY;
                self.open = Some((at, said.iter().map(|c| (c.name, *c)).collect()));
                true
            }
            None => false,
        }
    }

    fn close(&mut self, at: Micros, window: Micros, before: &BTreeMap<&str, ProgramCost>, said: &[ProgramCost]) {
        // The window stands for the time since the one before.
        let stands_for = self.closed.map_or(window, |closed| at - closed);
        let spread = |n: u64| {
            let wide = u128::from(n) * u128::from(stands_for.get()) / u128::from(window.get().max(1));
            u64::try_from(wide).unwrap_or(u64::MAX)
        };
        let mut all = 0_u64;
        for cost in said {
            let ns = |cost: &ProgramCost| u64::try_from(cost.run_time.as_nanos()).unwrap_or(u64::MAX);
            let base = before.get(cost.name);
            let run_ns = ns(cost).saturating_sub(base.map_or(0, ns));
            let runs = cost.run_count.saturating_sub(base.map_or(0, |c| c.run_count));
            all = all.saturating_add(run_ns);
            let total = self.costs.entry(cost.name).or_default();
            total.run_ns = total.run_ns.saturating_add(spread(run_ns));
            total.runs = total.runs.saturating_add(spread(runs));
            total.ns_per_event = run_ns.checked_div(runs).or(total.ns_per_event);
            total.missed = cost.missed;
        }
        self.per_second =
            u64::try_from(u128::from(all) * 1_000_000 / u128::from(window.get().max(1))).unwrap_or(u64::MAX);
        self.closed = Some(at);
    }

    /// Whether there was a window yet.
    pub(super) fn has_measured(&self) -> bool {
        self.closed.is_some()
    }

    /// What a program costs.
    pub(super) fn cost(&self, name: &str) -> Cost {
        self.costs.get(name).copied().unwrap_or_default()
    }

    /// Time in all programs for each second of the last window, nanoseconds.
    pub(super) fn ns_per_second(&self) -> u64 {
        self.per_second
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said(run_us: u64, run_count: u64) -> [ProgramCost; 2] {
        [
            ProgramCost { name: "busy", run_time: Duration::from_micros(run_us), run_count, missed: run_us / 100 },
            ProgramCost { name: "idle", run_time: Duration::ZERO, run_count: 0, missed: 0 },
        ]
    }

    #[test]
    fn a_window_stands_for_the_time_since_the_last() {
        let mut meter = BpfMeter::default();
        assert!(meter.observe(Micros::secs(5), &said(7, 7)), "the first window begins at once");
        assert!(meter.observe(Micros::millis(5_500), &said(8, 8)), "it is not over yet");
        assert!(!meter.observe(Micros::secs(6), &said(107, 1_007)));
        let first = Cost { run_ns: 100_000, runs: 1_000, ns_per_event: Some(100), missed: 1 };
        assert_eq!((meter.cost("busy"), meter.ns_per_second()), (first, 100_000));
        assert!(!meter.observe(Micros::secs(34), &said(107, 1_007)), "off in between");
        assert!(meter.observe(Micros::secs(35), &said(107, 1_007)));
        assert!(!meter.observe(Micros::secs(36), &said(307, 2_007)));
        // 200 us in one second stand for the 30 s since the window before.
        let both =
            Cost { run_ns: 100_000 + 30 * 200_000, runs: 1_000 + 30 * 1_000, ns_per_event: Some(200), missed: 3 };
        assert_eq!((meter.cost("busy"), meter.ns_per_second()), (both, 200_000));
        assert_eq!(meter.cost("idle"), Cost::default());
    }
}
