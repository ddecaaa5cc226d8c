//! Reclaim and what it costs: watermarks, scanning, refaults, stalls and PSI.
//!
//! Problem: rules of others act on what reclaim does to tasks (PSI `full`, pgscan, refaults, free memory below a watermark), which a
//! kernel that gives back cache for nothing does not show. Approach: each process has a *hot* set of files (its code, what it serves)
//! that it goes through once in [`TURN`]. What reclaim took of it comes back as refaults, through one disk of [`DISK`]. Reclaim takes
//! cache that was read once before hot cache. Near the node's watermarks kswapd takes up to [`KSWAPD`] in the background; what it does
//! not manage, and all at the limit of `kubepods`, is taken by those that allocate, at [`DIRECT`]. Time waited for either is a
//! stall: it counts in PSI, and the process falls behind by it, so that a leak slows down in a node that thrashes.
//!
//! Terms: *some*: at least one task waits; *full*: at least one waits and none runs. A process runs for its curve's share of a CPU and
//! while it goes through its hot set, at [`WORK`], as far as it does not wait. Processes wait and run independently of each other.
//!
//! Simplified, and what that does to the results: no swap (so rules by swap never act); what is hot is known to the kernel, so
//! a scan of files takes nothing of it; a process is one task; OOM comes when all cache is gone, where a real
//! kernel may go round in refaults for minutes before (which gives a slow rule time that it does not have here); there is no lock that
//! everybody waits for, and the node's own daemons do not stall.
//!
//! Properties (tested): without need nothing is taken and nobody stalls; stalls are at most the time that passed; `full` is at most
//! `some`.

use beelet_core::sample::Stall;
use beelet_core::units::{Bytes, Micros, MilliCpu};

use super::{Kernel, Proc};

/// A hot set is gone through in this time: a server that is asked all the time touches its code and its files each second.
pub const TURN: Micros = Micros::secs(1);
/// The disk, bytes per second: the baseline of a gp3 volume of AWS (125 MiB/s).
pub const DISK: Bytes = Bytes::mib(125);
/// How fast a process works through what is hot and in memory, bytes per second: a core reads memory at some GiB/s and does something
/// with it.
pub const WORK: Bytes = Bytes::gib(1);
/// What kswapd takes of clean cache, bytes per second. Assumed: about a core's work at 250 000 pages per second.
pub const KSWAPD: Bytes = Bytes::gib(1);
/// What an allocating task takes in direct reclaim, bytes per second. Assumed to be as fast as kswapd.
pub const DIRECT: Bytes = Bytes::gib(1);
/// Watermarks of a node of 4 GiB with transparent huge pages, as almost all have it: khugepaged raises min_free_kbytes to 67584
/// (`set_recommended_min_free_kbytes`, mm/khugepaged.c: 512 pages × 3 zones × (2 + 9)).
pub const MIN: Bytes = Bytes(67_584 << 10);
/// min + min/4 (`__setup_per_zone_wmarks`, mm/page_alloc.c).
pub const LOW: Bytes = Bytes(84_480 << 10);
/// min + min/2.
pub const HIGH: Bytes = Bytes(101_376 << 10);
/// Averages of PSI are brought up to date each 2 s (`PSI_FREQ`, kernel/sched/psi.c).
const AVERAGE: Micros = Micros::secs(2);
/// `EXP_10s` of 2048: what is left of avg10 after 2 s (kernel/sched/psi.c).
const DECAY: u64 = 1_677;
const FIXED: u64 = 2_048;
const MILLION: u64 = 1_000_000;
const PAGE: u64 = 4_096;

/// A process's files and what reclaim did to it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files {
    /// The hot set.
    pub hot: Bytes,
    /// What of it is in memory.
    pub resident: Bytes,
    /// The time by which it is behind.
    pub(super) lost: Micros,
    /// What it took since the last pass.
    pub(super) demand: Bytes,
    /// Pages that reclaim took from it.
    pub(super) scanned: u64,
    /// Pages that came back.
    pub(super) refaults: u64,
}

/// What the node's reclaim did: /proc/vmstat and /proc/zoneinfo as far as the rules of others need them. Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmStat {
    /// `nr_free_pages`.
    pub free: Bytes,
    /// `nr_inactive_file`.
    pub inactive_file: Bytes,
    /// `nr_active_file`.
    pub active_file: Bytes,
    /// `workingset_refault_file`, pages.
    pub refaults: u64,
    /// `pgscan_direct`, pages.
    pub scanned_direct: u64,
    /// `pgscan_kswapd`, pages.
    pub scanned_kswapd: u64,
}

/// The node's reclaim.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reclaim {
    awake: bool,
    direct: u64,
    kswapd: u64,
    full: Stall,
    averaged: Micros,
    full_then: Micros,
}

/// What a process waits in a pass, and for how long it would run if it did not.
struct Wait {
    stall: Micros,
    work: Micros,
}

impl Reclaim {
    /// PSI `full` of memory, of all pods together.
    #[must_use]
    pub fn full(&self) -> Stall {
        self.full
    }

    /// Lets the pages move that moved within `span`, which is over now.
    pub(super) fn pass(&mut self, kernel: &mut Kernel, span: Micros) {
        let disk = DISK.scale(span.get(), MILLION);
        let missing = |p: &Proc| (p.files.hot - p.files.resident).scale(span.get(), TURN.get());
        let asked: Bytes = kernel.procs.values().map(missing).sum();
        let mut waits: Vec<Wait> = Vec::with_capacity(kernel.procs.len());
        for proc in kernel.procs.values_mut() {
            let miss = missing(proc);
            let came = if asked > disk { miss.scale(disk.get(), asked.get()) } else { miss };
            proc.files.resident += came;
            proc.files.refaults += pages(came);
            proc.files.demand += came;
            // In a turn it waits for each page that is missing, and in the queue of a disk that is asked for more than it gives.
            let missed = (proc.files.hot - proc.files.resident).scale(asked.max(disk).get(), disk.get());
            let wait = Micros(missed.scale(MILLION, DISK.get()).get());
            let stall = span.scale(wait.get(), (TURN + wait).get());
            let work = MilliCpu(proc.files.hot.scale(1_000, WORK.scale(TURN.get(), MILLION).get()).get());
            let work = span.scale((work + proc.curve.cpu()).get().min(1_000), 1_000);
            waits.push(Wait { stall, work });
        }
        let by_tasks = self.take(kernel, span);
        let demand: Bytes = kernel.procs.values().map(|p| p.files.demand).sum();
        for (proc, wait) in kernel.procs.values_mut().zip(&mut waits) {
            let own = by_tasks.scale(proc.files.demand.get(), demand.get());
            wait.stall = (wait.stall + Micros(own.scale(MILLION, DIRECT.get()).get())).min(span);
            proc.files.lost += wait.stall;
            proc.files.demand = Bytes::ZERO;
            if let Some(group) = kernel.groups.get_mut(&proc.uid) {
                group.stalled.1 += wait.stall;
            }
        }
        let (some, full) = together(span, &waits);
        kernel.stalled += some;
        self.full.total += full;
        self.average(kernel.now);
    }

    /// Takes cache as far as there is need; says what was taken by those that allocate.
    fn take(&mut self, kernel: &mut Kernel, span: Micros) -> Bytes {
        let used = kernel.held() + kernel.cache();
        let over = kernel.limit.map_or(Bytes::ZERO, |limit| used - limit);
        let room = kernel.total - kernel.system;
        let short_of = |mark: Bytes| used - over + mark - room;
        self.awake = short_of(LOW) > Bytes::ZERO || self.awake && short_of(HIGH) > Bytes::ZERO;
        let most = if self.awake { KSWAPD.scale(span.get(), MILLION) } else { Bytes::ZERO };
        let background = short_of(HIGH).min(most);
        let direct = over + (short_of(MIN) - background);
        let mut left = background + direct;
        let all = kernel.cache();
        let (background, direct) = if left > all {
            (all.scale(background.get(), left.get()), all.scale(direct.get(), left.get()))
        } else {
            (background, direct)
        };
        self.kswapd += pages(background);
        self.direct += pages(direct);
        // What was read once goes first.
        for hot in [false, true] {
            let part = |p: &Proc| if hot { p.files.resident } else { p.cache };
            let whole: Bytes = kernel.procs.values().map(part).sum();
            let now = left.min(whole);
            for proc in kernel.procs.values_mut() {
                let goes = part(proc).scale(now.get(), whole.get());
                proc.files.scanned += pages(goes);
                let from = if hot { &mut proc.files.resident } else { &mut proc.cache };
                *from = *from - goes;
            }
            left = left - now;
        }
        direct
    }

    /// `avg10`, as `calc_avgs` of kernel/sched/psi.c does it; in hundredths of a percent.
    fn average(&mut self, now: Micros) {
        while now - self.averaged >= AVERAGE {
            let share = (self.full.total - self.full_then).scale(10_000, (now - self.averaged).get()).get().min(10_000);
            let next = (u64::from(self.full.avg10) * DECAY + share * (FIXED - DECAY)) / FIXED;
            self.full.avg10 = u32::try_from(next).unwrap_or(10_000);
            // The first time after a start.
            self.averaged = if self.averaged == Micros::ZERO { now } else { self.averaged + AVERAGE };
            self.full_then = self.full.total;
        }
    }
}

/// `some` and `full` of processes that wait and run independently.
fn together(span: Micros, waits: &[Wait]) -> (Micros, Micros) {
    let share = |time: Micros| time.scale(MILLION, span.get()).get().min(MILLION);
    let (mut no_wait, mut no_run) = (MILLION, MILLION);
    for wait in waits {
        let stall = share(wait.stall);
        no_wait = no_wait * (MILLION - stall) / MILLION;
        no_run = no_run * (MILLION - share(wait.work) * (MILLION - stall) / MILLION) / MILLION;
    }
    let some = span.scale(MILLION - no_wait, MILLION);
    (some, some.scale(no_run, MILLION))
}

fn pages(bytes: Bytes) -> u64 {
    bytes.get() / PAGE
}

impl Kernel {
    /// Gives the process of a container a hot set of files, all of it in memory.
    pub fn warm(&mut self, id: &str, hot: Bytes) {
        if let Some(proc) = self.procs.get_mut(id) {
            (proc.files.hot, proc.files.resident) = (hot, hot);
        }
    }

    /// All file cache of pods.
    pub(super) fn cache(&self) -> Bytes {
        self.procs.values().map(|p| p.cache + p.files.resident).sum()
    }

    /// What is left before the OOM killer comes: at the node down to the lowest watermark, or below the limit of `kubepods`.
    #[must_use]
    pub fn room(&self) -> Bytes {
        self.wall() - self.held()
    }

    /// The node's counters.
    #[must_use]
    pub fn vmstat(&self) -> VmStat {
        let reclaim = self.reclaim.unwrap_or_default();
        let (once, hot) = self.files();
        let active_file = super::active(once, hot);
        VmStat {
            free: self.total - self.system - self.held() - once - hot,
            inactive_file: once + hot - active_file,
            active_file,
            refaults: self.procs.values().map(|p| p.files.refaults).sum(),
            scanned_direct: reclaim.direct,
            scanned_kswapd: reclaim.kswapd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Curve;

    /// A node of 1 GiB with pods that hold so many MiB, and so many of files, for `seconds`.
    fn node(pods: &[(&str, u64, u64)], seconds: u64) -> Kernel {
        let mut kernel = Kernel::new(Micros::secs(100), Bytes::gib(1), Bytes::ZERO, MilliCpu(2_000));
        kernel.reclaim = Some(Reclaim::default());
        for &(name, holds, hot) in pods {
            let uid = name.into();
            kernel.make_group(&uid, "", None);
            kernel.start(name, &uid, "c", Curve::Idle { holds: Bytes::mib(holds) }, (None, None), 0);
            kernel.warm(name, Bytes::mib(hot));
        }
        kernel.advance(Micros::secs(100 + seconds));
        kernel
    }

    fn full(kernel: &Kernel) -> Stall {
        kernel.reclaim.expect("it has one").full()
    }

    #[test]
    fn without_need_nothing_is_taken_and_nobody_stalls() {
        let kernel = node(&[("a", 600, 100), ("b", 100, 100)], 30);
        let vm = kernel.vmstat();
        assert_eq!((vm.refaults, vm.scanned_direct, vm.scanned_kswapd, kernel.stalled), (0, 0, 0, Micros::ZERO));
        assert!(kernel.procs.values().all(|p| p.files.lost == Micros::ZERO && p.files.resident == p.files.hot));
        // Free memory fell from 90 MiB to some 86: kswapd sleeps until the low watermark, at 82.
        let vm = node(&[("a", 734, 100), ("b", 0, 100)], 30).vmstat();
        assert_eq!((vm.free < HIGH, vm.scanned_kswapd), (true, 0), "{vm:?}");
    }

    #[test]
    fn what_does_not_fit_comes_back_and_costs_time() {
        // 1024 less 858 held leave 166, of which 82 and more stay free: half of the 160 are always missing.
        let kernel = node(&[("a", 800, 100), ("b", 58, 60)], 30);
        let vm = kernel.vmstat();
        assert!(vm.refaults > 30 * 10_000 && vm.scanned_kswapd > vm.refaults, "{vm:?}");
        assert!(vm.free >= MIN && vm.free <= HIGH, "{vm:?}");
        assert!(full(&kernel).total > Micros::secs(1) && full(&kernel).total <= kernel.stalled, "{:?}", full(&kernel));
        assert!(kernel.stalled <= Micros::secs(30));
        assert_eq!(kernel.ooms.shared(), 0);
    }

    #[test]
    fn full_is_at_most_some_and_some_at_most_the_time() {
        let wait = |stall, work| Wait { stall: Micros(stall), work: Micros(work) };
        let cases: [(&[Wait], u64, u64); 5] = [
            (&[wait(500, 0), wait(500, 0)], 750, 750),
            (&[wait(1_000, 1_000), wait(0, 1_000)], 1_000, 0),
            (&[wait(1_000, 1_000), wait(0, 100)], 1_000, 900),
            (&[wait(500, 1_000)], 500, 250),
            (&[wait(0, 0)], 0, 0),
        ];
        for (waits, some, full) in cases {
            assert_eq!(together(Micros(1_000), waits), (Micros(some), Micros(full)));
        }
    }

    #[test]
    fn avg10_follows_as_the_kernels_does() {
        let mut reclaim = Reclaim::default();
        let mut seen = Vec::new();
        for s in 0..20 {
            reclaim.average(Micros::secs(100 + s));
            seen.push(reclaim.full.avg10);
            reclaim.full.total += Micros::secs(1);
        }
        // All the time in full: 1 - exp(-t/10) after t = 2, 10 and 18 s is 18 %, 63 % and 83 %.
        assert!([(2, 1_812), (10, 6_310), (18, 8_340)].iter().all(|&(s, avg)| seen[s].abs_diff(avg) < 20), "{seen:?}");
    }
}
