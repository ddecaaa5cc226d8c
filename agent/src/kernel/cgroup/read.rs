//! What the files of a cgroup say, in the core's terms.

use beelet_core::sample::{CgroupReading, CpuReading, MemoryReading, Pressure, PressureReading, Stall};
use beelet_core::telemetry::{CgroupLimits, DeviceIo};
use beelet_core::units::{Bytes, Micros};

use super::devices::Devices;
use super::files::{self, Kept, Place, Seldom};
use super::{Buffer, Cgroup, CgroupError};
use crate::kernel::parse::{self, BadLine, PressureLine};

/// How much of a cgroup to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Only memory: usage, limit, `memory.stat`.
    Memory,
    /// What decisions need: CPU, memory with its OOM kills, pressure, number of tasks.
    Decide {
        /// Whether to read `memory.stat`, the dearest of them, even if the usage is what it was.
        stat: bool,
        /// Whether to look for throttling where the last reading said that there is no quota (v1, where it is a file of its own).
        quota: bool,
    },
    /// Everything.
    All,
}

impl Cgroup {
    /// Reads files into a reading of this cgroup, whose other fields stay. `false`, and no change, if the cgroup is gone.
    ///
    /// # Errors
    /// The first file that is there and cannot be read or understood; what it would have told is `None`, the others are read.
    pub fn read(&mut self, depth: Depth, buffer: &mut Buffer, it: &mut CgroupReading) -> Result<bool, CgroupError> {
        if depth == Depth::Memory {
            self.begin(it);
            it.memory = self.memory_since(it.memory, depth, buffer).inspect_err(|_| it.memory = None)?;
            return Ok(it.memory.is_some());
        }
        let cpu = self.run_time(buffer);
        if matches!(&cpu, Ok(cpu) if cpu.usage.is_none()) && !self.exists() {
            return Ok(false);
        }
        self.read_after(cpu, depth, buffer, it).map(|()| true)
    }

    /// The same when [`run_time`](Self::run_time) was read already.
    ///
    /// # Errors
    /// See [`read`](Self::read).
    pub fn read_after(
        &mut self,
        run_time: Result<CpuReading, CgroupError>,
        depth: Depth,
        buffer: &mut Buffer,
        it: &mut CgroupReading,
    ) -> Result<(), CgroupError> {
        self.begin(it);
        let before = it.cpu.unwrap_or_default();
        let unlimited = before.periods == Some(0) && matches!(depth, Depth::Decide { quota: false, .. });
        let cpu = run_time.and_then(|mut cpu| {
            if self.is_hybrid() && unlimited {
                let (throttled_periods, throttled) = (before.throttled_periods, before.throttled);
                let (bursts, burst) = (before.bursts, before.burst);
                cpu = CpuReading { periods: before.periods, throttled_periods, throttled, bursts, burst, ..cpu };
            } else if self.is_hybrid() {
                self.throttling_v1(buffer, &mut cpu)?;
            }
            // Those by eBPF are not ours.
            let (run, wait, switches, involuntary) = (before.run, before.wait, before.switches, before.involuntary);
            Ok(CpuReading { run, wait, switches, involuntary, ..cpu })
        });
        let mut first = Ok(());
        it.cpu = keep(cpu.map(Some), &mut first);
        it.memory = keep(self.memory_since(it.memory, depth, buffer), &mut first);
        it.pressure = keep(self.pressure(buffer), &mut first);
        it.pids = keep(self.tasks(buffer), &mut first);
        first
    }

    fn begin(&self, it: &mut CgroupReading) {
        if it.id != self.id() {
            *it = CgroupReading { id: self.id(), ..CgroupReading::default() };
        }
    }

    /// What `cpu.stat` of the unified hierarchy says: the cheapest sign that something ran here or below. It counts a task that has
    /// not been switched away from, too, up to its last tick.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn run_time(&mut self, buffer: &mut Buffer) -> Result<CpuReading, CgroupError> {
        let mut it = CpuReading::default();
        self.keyed(buffer, files::CPU_STAT, |key, value| match key {
            b"usage_usec" => it.usage = Some(Micros(value)),
            b"user_usec" => it.user = Some(Micros(value)),
            b"system_usec" => it.system = Some(Micros(value)),
            b"nr_periods" => it.periods = Some(value),
            b"nr_throttled" => it.throttled_periods = Some(value),
            b"throttled_usec" => it.throttled = Some(Micros(value)),
            b"nr_bursts" => it.bursts = Some(value),
            b"burst_usec" => it.burst = Some(Micros(value)),
            _ => {}
        })?;
        if it.usage.is_none() && self.is_hybrid() {
            it.usage = self.seldom(buffer, files::V1_CPUACCT_USAGE, parse::number)?.map(|ns| Micros(ns / 1_000));
        }
        Ok(it)
    }

    fn throttling_v1(&mut self, buffer: &mut Buffer, it: &mut CpuReading) -> Result<(), CgroupError> {
        self.keyed(buffer, files::V1_CPU_STAT, |key, value| match key {
            b"nr_periods" => it.periods = Some(value),
            b"nr_throttled" => it.throttled_periods = Some(value),
            b"throttled_time" => it.throttled = Some(Micros(value / 1_000)),
            b"nr_bursts" => it.bursts = Some(value),
            b"burst_time" => it.burst = Some(Micros(value / 1_000)),
            _ => {}
        })
    }

    /// CPU time and throttling by files.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn cpu(&mut self, buffer: &mut Buffer) -> Result<CpuReading, CgroupError> {
        let mut it = self.run_time(buffer)?;
        if self.is_hybrid() {
            self.throttling_v1(buffer, &mut it)?;
        }
        Ok(it)
    }

    /// Memory, all that is told.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn memory(&mut self, buffer: &mut Buffer) -> Result<Option<MemoryReading>, CgroupError> {
        self.memory_since(None, Depth::All, buffer)
    }

    /// `before`: the last reading, of which is kept what this depth does not read.
    fn memory_since(
        &mut self,
        before: Option<MemoryReading>,
        depth: Depth,
        buffer: &mut Buffer,
    ) -> Result<Option<MemoryReading>, CgroupError> {
        let (hybrid, mut it) = (self.is_hybrid(), before.unwrap_or_default());
        let of = |v1: Kept, v2: Kept| if hybrid { v1 } else { v2 };
        let usage_file = of(files::V1_MEMORY_USAGE, files::MEMORY_CURRENT);
        let Some(usage) = self.file(buffer, usage_file, parse::number)? else { return Ok(None) };
        let changed = before.is_none() || it.usage != Bytes(usage);
        it.usage = Bytes(usage);
        let limit = of(files::V1_MEMORY_LIMIT, files::MEMORY_MAX);
        it.limit = self.file(buffer, limit, parse::limit)?.flatten().map(Bytes);
        if changed || !matches!(depth, Depth::Decide { stat: false, .. }) {
            // Usage comes first, so that cache that grows in between makes what reclaim cannot free look smaller, not larger. Cache that
            // is dropped in between makes it look larger by as much: the core's `settle` does not believe that.
            let known = if hybrid { self.memory_stat_v1(buffer, &mut it)? } else { self.memory_stat(buffer, &mut it)? };
            if !known {
                return Ok(None);
            }
        }
        if depth == Depth::Memory {
            return Ok(Some(it));
        }
        if hybrid {
            self.keyed(buffer, files::V1_OOM_CONTROL, |key, value| {
                if key == b"oom_kill" {
                    it.oom_kills = Some(value);
                }
            })?;
        } else {
            self.memory_events(buffer, &mut it)?;
        }
        if depth == Depth::All {
            self.memory_seldom(buffer, &mut it)?;
        }
        Ok(Some(it))
    }

    /// A kill of a whole cgroup (`memory.oom.group`) counts once: the kernel's `oom_kill` counts each process then, and the chosen
    /// one twice.
    fn memory_events(&mut self, buffer: &mut Buffer, it: &mut MemoryReading) -> Result<(), CgroupError> {
        let mut group_kills = 0;
        self.keyed(buffer, files::MEMORY_EVENTS, |key, value| match key {
            b"oom_kill" => it.oom_kills = Some(value),
            b"oom_group_kill" => group_kills = value,
            b"max" => it.more.max_events = Some(value),
            b"high" => it.more.high_events = Some(value),
            b"oom" => it.more.oom_events = Some(value),
            _ => {}
        })?;
        if group_kills > 0 {
            it.oom_kills = Some(group_kills);
        }
        Ok(())
    }

    /// Limits and peaks.
    fn memory_seldom(&mut self, buffer: &mut Buffer, it: &mut MemoryReading) -> Result<(), CgroupError> {
        let at = if self.is_hybrid() { files::MEMORY } else { Place::Unified };
        let mut number = |name| self.seldom(buffer, Seldom(at, name), parse::number);
        if at == Place::Unified {
            it.more.peak = number("memory.peak")?.map(Bytes);
            it.more.swap = number("memory.swap.current")?.map(Bytes);
            let mut limit = |name| self.seldom(buffer, Seldom(at, name), parse::limit);
            it.more.high = limit("memory.high")?.flatten().map(Bytes);
            it.more.swap_limit = limit("memory.swap.max")?.flatten().map(Bytes);
        } else {
            it.more.peak = number("memory.max_usage_in_bytes")?.map(Bytes);
            it.more.kernel = number("memory.kmem.usage_in_bytes")?.map(Bytes);
            it.more.max_events = number("memory.failcnt")?;
            // Of memory and swap together.
            let both = self.seldom(buffer, Seldom(at, "memory.memsw.limit_in_bytes"), parse::limit)?.flatten();
            it.more.swap_limit = both.zip(it.limit).map(|(both, memory)| Bytes(both) - memory);
        }
        Ok(())
    }

    fn memory_stat(&mut self, buffer: &mut Buffer, it: &mut MemoryReading) -> Result<bool, CgroupError> {
        let (more, mut seen) = (&mut it.more, Seen::default());
        self.keyed(buffer, files::MEMORY_STAT, |key, value| {
            let bytes = Some(Bytes(value));
            match key {
                b"anon" => it.anon = seen.anon(value),
                b"file" => more.file = bytes,
                b"kernel" => more.kernel = bytes,
                b"kernel_stack" => more.kernel_stack = bytes,
                b"pagetables" => more.page_tables = bytes,
                b"percpu" => more.percpu = bytes,
                b"sock" => more.sock = bytes,
                b"shmem" => it.shmem = Bytes(value),
                b"file_mapped" => more.mapped_file = bytes,
                b"file_dirty" => more.dirty = bytes,
                b"file_writeback" => more.writeback = bytes,
                b"inactive_file" => it.inactive_file = seen.inactive(value),
                b"active_file" => it.active_file = seen.active(value),
                b"unevictable" => more.unevictable = bytes,
                b"slab_reclaimable" => it.slab_reclaimable = Bytes(value),
                b"slab_unreclaimable" => more.slab_unreclaimable = bytes,
                b"workingset_refault_file" | b"workingset_refault" => more.refaults_file = Some(value),
                b"workingset_refault_anon" => more.refaults_anon = Some(value),
                b"pgscan" => more.scanned = Some(value),
                b"pgsteal" => more.stolen = Some(value),
                b"pgfault" => more.page_faults = Some(value),
                b"pgmajfault" => more.major_faults = Some(value),
                _ => {}
            }
        })?;
        Ok(seen.all())
    }

    /// Each value comes twice on v1: of the cgroup alone, and further down as `total_` with all below it, as v2 has it. The latter
    /// wins; a hierarchy without `use_hierarchy` (before 5.11) tells the former, too.
    fn memory_stat_v1(&mut self, buffer: &mut Buffer, it: &mut MemoryReading) -> Result<bool, CgroupError> {
        let (more, mut seen) = (&mut it.more, Seen::default());
        self.keyed(buffer, files::V1_MEMORY_STAT, |key, value| {
            let bytes = Some(Bytes(value));
            match key.strip_prefix(b"total_").unwrap_or(key) {
                b"rss" => it.anon = seen.anon(value),
                b"cache" => more.file = bytes,
                b"shmem" => it.shmem = Bytes(value),
                b"mapped_file" => more.mapped_file = bytes,
                b"dirty" => more.dirty = bytes,
                b"writeback" => more.writeback = bytes,
                b"inactive_file" => it.inactive_file = seen.inactive(value),
                b"active_file" => it.active_file = seen.active(value),
                b"unevictable" => more.unevictable = bytes,
                b"swap" => more.swap = bytes,
                b"workingset_refault_file" => more.refaults_file = Some(value),
                b"workingset_refault_anon" => more.refaults_anon = Some(value),
                b"pgfault" => more.page_faults = Some(value),
                b"pgmajfault" => more.major_faults = Some(value),
                _ => {}
            }
        })?;
        Ok(seen.all())
    }

    /// Pressure, from the unified hierarchy on both layouts; `None` where the kernel does not measure it.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn pressure(&mut self, buffer: &mut Buffer) -> Result<Option<PressureReading>, CgroupError> {
        let mut one = |file| Ok::<_, CgroupError>(self.file(buffer, file, parse::pressure)?.map(pressure));
        let (cpu, memory, io) = (one(files::CPU_PRESSURE)?, one(files::MEMORY_PRESSURE)?, one(files::IO_PRESSURE)?);
        let measured = cpu.is_some() || memory.is_some() || io.is_some();
        Ok(measured.then(|| PressureReading {
            cpu: cpu.unwrap_or_default(),
            memory: memory.unwrap_or_default(),
            io: io.unwrap_or_default(),
        }))
    }

    /// Number of tasks in this cgroup and below.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn tasks(&mut self, buffer: &mut Buffer) -> Result<Option<u64>, CgroupError> {
        let file = if self.is_hybrid() { files::V1_PIDS_CURRENT } else { files::PIDS_CURRENT };
        self.file(buffer, file, parse::number)
    }

    /// What went to and from block devices, sorted by device; empty where the IO controller is off or nothing went.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn io(&mut self, buffer: &mut Buffer, devices: &mut Devices) -> Result<Vec<DeviceIo>, CgroupError> {
        let mut all = Vec::new();
        if self.is_hybrid() {
            // "254:0 Read 4096", and a total at the end.
            let file = Seldom(files::BLKIO, "blkio.throttle.io_service_bytes_recursive");
            self.seldom(buffer, file, |text| {
                v1_io(text, |device, kind, value| match kind {
                    b"Read" => io_of(&mut all, device).read_bytes = value,
                    b"Write" => io_of(&mut all, device).write_bytes = value,
                    _ => {}
                })
            })?;
            self.seldom(buffer, Seldom(files::BLKIO, "blkio.throttle.io_serviced_recursive"), |text| {
                v1_io(text, |device, kind, value| match kind {
                    b"Read" => io_of(&mut all, device).reads = value,
                    b"Write" => io_of(&mut all, device).writes = value,
                    _ => {}
                })
            })?;
        } else {
            self.seldom(buffer, Seldom(Place::Unified, "io.stat"), |text| {
                parse::nested_keyed(text, |key, name, value| {
                    let Some(device) = parse::device(key) else { return };
                    let it = io_of(&mut all, device);
                    match name {
                        b"rbytes" => it.read_bytes = value,
                        b"wbytes" => it.write_bytes = value,
                        b"rios" => it.reads = value,
                        b"wios" => it.writes = value,
                        _ => {}
                    }
                })
            })?;
        }
        for it in &mut all {
            it.device = devices.get(it.device.major, it.device.minor);
        }
        all.sort_by(|a, b| a.device.cmp(&b.device));
        Ok(all)
    }

    /// What it was given, and when it was made.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn limits(&mut self, buffer: &mut Buffer) -> Result<CgroupLimits, CgroupError> {
        let mut it = CgroupLimits { made: Some(self.made()), ..CgroupLimits::default() };
        let no_limit = |limit: Option<Option<u64>>| limit.map(|limit| limit.unwrap_or(u64::MAX));
        if self.is_hybrid() {
            let (cpu, memory) = (|name| Seldom(files::CPU, name), |name| Seldom(files::MEMORY, name));
            it.cpu_shares = self.seldom(buffer, cpu("cpu.shares"), parse::number)?;
            // -1 for none.
            it.cpu_quota = self
                .seldom(buffer, cpu("cpu.cfs_quota_us"), |text| Ok(parse::number(text).ok()))?
                .flatten()
                .map(Micros);
            it.cpu_period = self.seldom(buffer, cpu("cpu.cfs_period_us"), parse::number)?.map(Micros);
            let reserved = self.seldom(buffer, memory("memory.soft_limit_in_bytes"), parse::limit)?;
            it.memory_reservation = no_limit(reserved).map(Bytes);
            it.pids_max = no_limit(self.seldom(buffer, Seldom(files::PIDS, "pids.max"), parse::limit)?);
        } else {
            let at = |name| Seldom(Place::Unified, name);
            let weight = self.seldom(buffer, at("cpu.weight"), parse::number)?;
            it.cpu_shares = weight.map(|weight| 2 + weight.saturating_sub(1).saturating_mul(262_142) / 9_999);
            let max = self.seldom(buffer, at("cpu.max"), parse::quota)?;
            (it.cpu_quota, it.cpu_period) =
                max.map_or((None, None), |(quota, period)| (quota.map(Micros), Some(Micros(period))));
            it.memory_reservation = self.seldom(buffer, at("memory.min"), parse::limit).map(no_limit)?.map(Bytes);
            it.pids_max = no_limit(self.seldom(buffer, at("pids.max"), parse::limit)?);
        }
        Ok(it)
    }

    /// Process ids in this cgroup (without its children); `None` if it is gone.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn processes(&mut self, buffer: &mut Buffer) -> Result<Option<Vec<u32>>, CgroupError> {
        self.list(buffer, files::PROCS, |text| {
            parse::lines(text).map(|line| parse::number(line).map(|pid| u32::try_from(pid).unwrap_or(0))).collect()
        })
    }

    fn keyed(&mut self, buffer: &mut Buffer, file: Kept, take: impl FnMut(&[u8], u64)) -> Result<(), CgroupError> {
        self.file(buffer, file, |text| parse::flat_keyed(text, take)).map(|_| ())
    }
}

/// The value, or `None` and the error if it is the first.
fn keep<T>(result: Result<Option<T>, CgroupError>, first: &mut Result<(), CgroupError>) -> Option<T> {
    result.unwrap_or_else(|error| {
        if first.is_ok() {
            *first = Err(error);
        }
        None
    })
}

/// Whether `memory.stat` had what a reading is nothing without.
#[derive(Default)]
struct Seen(u8);

impl Seen {
    fn anon(&mut self, value: u64) -> Bytes {
        self.0 |= 1;
        Bytes(value)
    }

    fn inactive(&mut self, value: u64) -> Bytes {
        self.0 |= 2;
        Bytes(value)
    }

    fn active(&mut self, value: u64) -> Bytes {
        self.0 |= 4;
        Bytes(value)
    }

    fn all(&self) -> bool {
        self.0 == 7
    }
}

/// The entry of a device, made if need be.
fn io_of(all: &mut Vec<DeviceIo>, (major, minor): (u32, u32)) -> &mut DeviceIo {
    let found = all.iter().position(|it| it.device.major == major && it.device.minor == minor);
    let index = found.unwrap_or_else(|| {
        let device = beelet_core::telemetry::Device { major, minor, name: String::new() };
        all.push(DeviceIo { device, ..DeviceIo::default() });
        all.len() - 1
    });
    &mut all[index]
}

/// Lines of a device, a kind and a number; others (the total of all devices) are left out.
fn v1_io(text: &[u8], mut take: impl FnMut((u32, u32), &[u8], u64)) -> Result<(), BadLine> {
    for line in parse::lines(text) {
        let Some((device, rest)) = parse::split(line, b' ').and_then(|(key, rest)| Some((parse::device(key)?, rest)))
        else {
            continue;
        };
        if let Some((kind, value)) = parse::split(rest, b' ') {
            take(device, kind, parse::number(value)?);
        }
    }
    Ok(())
}

fn pressure(it: parse::Pressure) -> Pressure {
    let stall = |line: PressureLine| Stall {
        total: Micros(line.total_us),
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    Pressure { some: stall(it.some), full: it.full.map(stall).unwrap_or_default() }
}
