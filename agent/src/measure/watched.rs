//! A cgroup that is looked at again and again.
//!
//! **Problem.** To read all files of a cgroup costs 15 us, and most cgroups of a node sleep. **Approach.** One file, `cpu.stat`, tells
//! for 1 us whether anything ran in it or below; if nothing did, the last reading is *held*: it stays as it is, with its moment.
//! `memory.stat`, the dearest file, is left out while what ran cannot have changed much.
//!
//! **Properties** (tested). A reading is held only after one that found nothing run since the one before, so that rates fall to 0
//! first; for [`HOLD`] at most; and never when the look is urgent. What `memory.stat` told is outdated by less than 1 MiB, if the
//! usage is the same, and by 10 s.

use beelet_core::sample::CgroupReading;
use beelet_core::telemetry::{CgroupLimits, DeviceIo};
use beelet_core::units::{Bytes, Micros};
use tracing::debug;

use crate::clock::Clock;
use crate::kernel::cgroup::{Buffer, Cgroup, Depth, Devices};

/// A reading is held for so long.
pub(super) const HOLD: Micros = Micros::secs(10);
/// What is run in this time changes less than 1 MiB of memory, at 2 GiB/s ([`beelet_core::forecast::ASSUMED_GROWTH`]).
const LITTLE: Micros = Micros(400);
/// What a cgroup was given is asked for this often.
const LIMITS_EVERY: Micros = Micros::secs(30);
/// A cgroup that was first read less than this ago may get a quota yet.
const YOUNG: Micros = Micros::secs(30);

/// How to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Everything, whether or not it ran.
    All,
    /// What decisions need; all of it, for every millisecond counts.
    Urgent,
    /// What decisions need, and only where something ran.
    Calm,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// There is a new reading.
    Read,
    /// Nothing ran: the old one holds.
    Held,
    /// The cgroup is gone.
    Gone,
}

/// The cgroup and its last reading.
#[derive(Debug)]
pub(super) struct Watched {
    cgroup: Cgroup,
    last: CgroupReading,
    first: Micros,
    /// The last reading found that nothing had run since the one before.
    quiet: bool,
    /// When `memory.stat` was read, and how much had been run by then.
    stat: (Micros, Option<Micros>),
    /// The inode of its directory where the IO controller is, once known.
    io_id: Option<u64>,
    /// What it was given: when that was read, and the memory's limit then.
    limits: Option<(Micros, Option<Bytes>, CgroupLimits)>,
}

impl Watched {
    pub(super) fn new(cgroup: Cgroup) -> Self {
        let last = CgroupReading { id: cgroup.id(), ..CgroupReading::default() };
        Self { cgroup, last, first: Micros::ZERO, quiet: false, stat: (Micros::ZERO, None), io_id: None, limits: None }
    }

    pub(super) fn id(&self) -> u64 {
        self.cgroup.id()
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The last reading.
    pub(super) fn last(&self) -> &CgroupReading {
        &self.last
    }

    /// Nothing ran between the last two readings.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Its id in the hierarchy of the IO controller.
    pub(super) fn io_id(&mut self) -> Option<u64> {
        if self.io_id.is_none() {
            self.io_id = self.cgroup.io_id();
        }
        self.io_id
    }

    /// Looks.
    pub(super) fn look(&mut self, clock: Clock, mode: Mode, buffer: &mut Buffer) -> Looked {
        let at = clock.now().mono;
        let cpu = self.cgroup.run_time(buffer);
        let usage = cpu.as_ref().ok().and_then(|cpu| cpu.usage);
        if cpu.is_ok() && usage.is_none() && !self.cgroup.exists() {
            return Looked::Gone;
        }
        let before = self.last.cpu.and_then(|cpu| cpu.usage);
        let idle = usage.is_some() && usage == before;
        if idle && self.quiet && mode == Mode::Calm && at - self.last.at < HOLD {
            return Looked::Held;
        }
        self.quiet = idle;
        if self.first == Micros::ZERO {
            self.first = at;
        }
        let ran = usage.zip(self.stat.1).map(|(now, then)| now - then);
        let depth = match mode {
            Mode::All => Depth::All,
            Mode::Urgent => Depth::Decide { stat: true, quota: false },
            Mode::Calm => Depth::Decide {
                stat: ran.is_none_or(|ran| ran > LITTLE) || at - self.stat.0 >= HOLD,
                quota: at - self.first < YOUNG,
            },
        };
        let memory = self.last.memory.map(|memory| memory.usage);
        if let Err(error) = self.cgroup.read_after(cpu, depth, buffer, &mut self.last) {
            debug!(%error, "a reading is not whole");
        }
        let same = memory.is_some() && memory == self.last.memory.map(|memory| memory.usage);
        if !matches!(depth, Depth::Decide { stat: false, .. }) || !same {
            self.stat = (at, usage);
        }
        self.last.at = at;
        Looked::Read
    }

    /// Reads memory only.
    pub(super) fn look_at_memory(&mut self, clock: Clock, buffer: &mut Buffer) -> Option<CgroupReading> {
        let mut it = CgroupReading { id: self.id(), at: clock.now().mono, ..CgroupReading::default() };
        self.cgroup.read(Depth::Memory, buffer, &mut it).is_ok_and(|there| there).then_some(it)
    }

    /// Lets the reading say what eBPF counted.
    pub(super) fn with(&mut self, count: impl FnOnce(&mut CgroupReading)) -> CgroupReading {
        count(&mut self.last);
        self.last
    }

    /// What went to and from devices, and what the cgroup was given. The latter is asked for every [`LIMITS_EVERY`], and when the
    /// memory's limit changed.
    pub(super) fn details(
        &mut self,
        now: Micros,
        buffer: &mut Buffer,
        devices: &mut Devices,
    ) -> (Vec<DeviceIo>, Option<CgroupLimits>) {
        let io = self.cgroup.io(buffer, devices).unwrap_or_else(|error| {
            debug!(%error, "a detail is not known");
            Vec::new()
        });
        let memory = self.last.memory.and_then(|memory| memory.limit);
        if self.limits.is_none_or(|(at, then, _)| now - at >= LIMITS_EVERY || then != memory) {
            let limits = self.cgroup.limits(buffer).inspect_err(|error| debug!(%error, "a detail is not known"));
            self.limits = limits.ok().map(|limits| (now, memory, limits));
        }
        (io, self.limits.map(|(_, _, limits)| limits))
    }

    /// Its processes, those in cgroups below it left out; `None` where they are not known.
    pub(super) fn processes(&mut self, buffer: &mut Buffer) -> Option<Vec<u32>> {
        self.cgroup.processes(buffer).ok().flatten()
    }

    /// Closes its files until the next reading.
    pub(super) fn close(&mut self) {
        self.cgroup.close();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::kernel::cgroup::CgroupLayout;

    struct Bed {
        root: tempfile::TempDir,
        watched: Watched,
        buffer: Buffer,
    }

    impl Bed {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("a")).unwrap();
            let layout = CgroupLayout::V2 { root: root.path().to_owned() };
            let cgroup = Cgroup::open(&layout, Path::new("a")).unwrap().unwrap();
            let mut bed = Self { root, watched: Watched::new(cgroup), buffer: Buffer::default() };
            bed.put("memory.current", "100000\n");
            bed.put("memory.stat", "anon 1\ninactive_file 2\nactive_file 3\n");
            bed.ran(0);
            bed
        }

        fn put(&mut self, file: &str, text: &str) {
            fs::write(self.root.path().join("a").join(file), text).unwrap();
        }

        fn ran(&mut self, us: u64) {
            self.put("cpu.stat", &format!("usage_usec {us}\n"));
        }

        fn look(&mut self, mode: Mode) -> Looked {
            self.watched.look(Clock, mode, &mut self.buffer)
        }

        fn anon(&self) -> Bytes {
            self.watched.last().memory.unwrap().anon
        }
    }

    #[test]
    fn who_sleeps_is_held_after_a_reading_without_change() {
        let mut bed = Bed::new();
        assert_eq!(bed.look(Mode::Calm), Looked::Read);
        bed.ran(1_000);
        assert_eq!(bed.look(Mode::Calm), Looked::Read, "it ran");
        assert_eq!(bed.look(Mode::Calm), Looked::Read, "so that its rate falls to 0");
        let at = bed.watched.last().at;
        let reads = bed.buffer.reads();
        assert_eq!(bed.look(Mode::Calm), Looked::Held);
        assert_eq!((bed.watched.last().at, bed.buffer.reads()), (at, reads + 1));
        bed.ran(1_001);
        assert_eq!(bed.look(Mode::Calm), Looked::Read, "it ran again");
    }

    #[test]
    fn nothing_is_held_when_it_is_urgent_or_too_old() {
        let mut bed = Bed::new();
        for _ in 0..3 {
            bed.look(Mode::Calm);
        }
        assert_eq!(bed.look(Mode::Calm), Looked::Held);
        assert_eq!((bed.look(Mode::Urgent), bed.look(Mode::All)), (Looked::Read, Looked::Read));
        bed.watched.last.at = Clock.now().mono - HOLD;
        assert_eq!(bed.look(Mode::Calm), Looked::Read);
    }

    #[test]
    fn memory_stat_is_left_out_while_little_was_run_and_the_usage_is_the_same() {
        let mut bed = Bed::new();
        bed.look(Mode::Calm);
        bed.put("memory.stat", "anon 7\ninactive_file 2\nactive_file 3\n");
        bed.ran(300);
        bed.look(Mode::Calm);
        assert_eq!(bed.anon(), Bytes(1), "300 us");
        bed.ran(600);
        bed.look(Mode::Calm);
        assert_eq!(bed.anon(), Bytes(7), "600 us since it was read");
        bed.put("memory.stat", "anon 8\ninactive_file 2\nactive_file 3\n");
        bed.ran(601);
        bed.put("memory.current", "100001\n");
        bed.look(Mode::Calm);
        assert_eq!(bed.anon(), Bytes(8), "another usage");
        bed.put("memory.stat", "anon 9\ninactive_file 2\nactive_file 3\n");
        bed.ran(602);
        bed.look(Mode::Urgent);
        assert_eq!(bed.anon(), Bytes(9), "urgent");
    }

    #[test]
    fn limits_are_asked_for_now_and_then_and_when_memory_is_given() {
        let mut bed = Bed::new();
        let shares = |bed: &mut Bed, at| {
            bed.look(Mode::All);
            let (_, limits) = bed.watched.details(Micros::secs(at), &mut bed.buffer, &mut Devices::default());
            limits.unwrap().pids_max
        };
        bed.put("pids.max", "1\n");
        bed.put("memory.max", "100\n");
        assert_eq!(shares(&mut bed, 100), Some(1));
        bed.put("pids.max", "2\n");
        assert_eq!((shares(&mut bed, 110), shares(&mut bed, 130)), (Some(1), Some(2)));
        bed.put("pids.max", "3\n");
        bed.put("memory.max", "200\n");
        assert_eq!(shares(&mut bed, 131), Some(3));
    }

    #[test]
    fn a_cgroup_that_is_gone_is_told() {
        let mut bed = Bed::new();
        fs::remove_dir_all(bed.root.path().join("a")).unwrap();
        assert_eq!(bed.look(Mode::Calm), Looked::Gone);
    }
}
