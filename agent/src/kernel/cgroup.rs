//! Reads cgroup files, on v2 and on hybrid.
//!
//! **Problem.** The same fact lies in different files, units and hierarchies on v2 and v1; a file may be missing because of the
//! kernel, and a cgroup may vanish between two reads.
//!
//! **Approach.** [`CgroupLayout`] tells once where hierarchies are mounted. A [`Cgroup`] holds its directory in the unified
//! hierarchy open, so that every reading through it is of that cgroup and no later one of the same name; files of v1 are read
//! by path (names of pods and containers are never used again). Each reading fills what is there and leaves the rest `None`.
//!
//! **Terms.** *Relative path*: of a cgroup from the root of the hierarchies, without a leading slash; the same in all of them.
//!
//! **Properties.** Missing file or vanished cgroup: `None`. Anything else is an error with its path. Units are bytes and
//! microseconds. One [`Buffer`] serves all readings of a task, and grows to the largest file once.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::parse::{self, BadLine, Pressure};

/// A cgroup file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The system refused.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not in the format that the kernel documents.
    #[error("cannot understand {path}: {source}")]
    Format {
        /// The file.
        path: String,
        /// The line.
        source: BadLine,
    },
    /// There is no v2 hierarchy: per-cgroup eBPF and pressure are impossible.
    #[error("no cgroup2 file system is mounted: beelet needs the unified hierarchy, alone or beside v1 (hybrid)")]
    NoUnified,
    /// The list of mounts cannot be read.
    #[error("cannot read the list of mounts: {0}")]
    Mounts(String),
}

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Pure v2.
    V2 {
        /// Mount point.
        root: PathBuf,
    },
    /// Controllers on v1, and a v2 hierarchy beside them.
    Hybrid {
        /// Mount point of the v2 hierarchy.
        unified: PathBuf,
        /// v1 controller (`cpu`, `memory` ...) -> mount point.
        controllers: BTreeMap<String, PathBuf>,
    },
}

impl CgroupLayout {
    /// Finds the mounts of this process' mount namespace.
    ///
    /// # Errors
    /// If there is no v2 hierarchy, or the mounts cannot be read.
    pub fn detect() -> Result<Self, CgroupError> {
        let mounts = procfs::process::Process::myself()
            .and_then(|process| process.mountinfo())
            .map_err(|error| CgroupError::Mounts(error.to_string()))?;
        let mut unified: Option<PathBuf> = None;
        let mut controllers = BTreeMap::new();
        for mount in mounts {
            match mount.fs_type.as_str() {
                // The one under the usual place wins over copies elsewhere.
                "cgroup2" if unified.is_none() || mount.mount_point.starts_with("/sys/fs/cgroup") => {
                    unified = Some(mount.mount_point);
                }
                "cgroup" => {
                    for name in mount.super_options.keys().filter(|name| is_controller(name)) {
                        controllers.entry(name.clone()).or_insert_with(|| mount.mount_point.clone());
                    }
                }
                _ => {}
            }
        }
        let unified = unified.ok_or(CgroupError::NoUnified)?;
        // A stray v1 hierarchy (net_cls, a named one) beside full v2 changes nothing.
        if controllers.contains_key("memory") || controllers.contains_key("cpu") {
            Ok(Self::Hybrid { unified, controllers })
        } else {
            Ok(Self::V2 { root: unified })
        }
    }

    /// Mount point of the v2 hierarchy.
    #[must_use]
    pub fn unified(&self) -> &Path {
        match self {
            Self::V2 { root } => root,
            Self::Hybrid { unified, .. } => unified,
        }
    }

    /// Directory of a cgroup in the hierarchy that has this controller; `None` if none has it on hybrid.
    #[must_use]
    pub fn directory(&self, controller: &str, relative: &Path) -> Option<PathBuf> {
        match self {
            Self::V2 { root } => Some(root.join(relative)),
            Self::Hybrid { controllers, .. } => controllers.get(controller).map(|root| root.join(relative)),
        }
    }

    /// Whether controllers are on v1.
    #[must_use]
    pub const fn is_hybrid(&self) -> bool {
        matches!(self, Self::Hybrid { .. })
    }
}

/// Super options of a v1 mount are controllers and a few switches.
fn is_controller(option: &str) -> bool {
    const KNOWN: [&str; 11] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "pids",
        "blkio",
        "devices",
        "freezer",
        "hugetlb",
        "perf_event",
        "net_cls",
    ];
    KNOWN.contains(&option)
}

/// Where a file's text is put.
#[derive(Debug, Default)]
pub struct Buffer(Vec<u8>);

/// CPU time of a cgroup with its children, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuReading {
    /// Microseconds on a CPU: unified `cpu.stat` `usage_usec`, else v1 `cpuacct.usage`.
    pub usage_us: Option<u64>,
    /// Of these in user space.
    pub user_us: Option<u64>,
    /// Of these in the kernel.
    pub system_us: Option<u64>,
    /// Enforcement periods in which the cgroup was runnable; only under a limit.
    pub nr_periods: Option<u64>,
    /// Periods in which it was throttled.
    pub nr_throttled: Option<u64>,
    /// Microseconds throttled, summed over CPUs.
    pub throttled_us: Option<u64>,
    /// Periods in which it used burst.
    pub nr_bursts: Option<u64>,
    /// Microseconds of burst used.
    pub burst_us: Option<u64>,
}

/// Memory of a cgroup with its children. Bytes, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReading {
    /// Everything charged: `memory.current`, v1 `memory.usage_in_bytes`.
    pub usage: Option<u64>,
    /// Hard limit; `None` for no limit, too.
    pub limit: Option<u64>,
    /// `memory.high`; v2 only; `None` for no limit, too.
    pub high: Option<u64>,
    /// Highest usage: `memory.peak` (5.19), v1 `memory.max_usage_in_bytes`.
    pub peak: Option<u64>,
    /// Swap used; on v1 not told.
    pub swap: Option<u64>,
    /// Page cache of files that was used once.
    pub inactive_file: Option<u64>,
    /// Page cache of files that was used again.
    pub active_file: Option<u64>,
    /// Anonymous memory.
    pub anon: Option<u64>,
    /// Shared memory and tmpfs.
    pub shmem: Option<u64>,
    /// Page cache, tmpfs included.
    pub file: Option<u64>,
    /// Kernel objects that can be freed; v2 only.
    pub slab_reclaimable: Option<u64>,
    /// Kernel objects that cannot; v2 only.
    pub slab_unreclaimable: Option<u64>,
    /// Locked or otherwise pinned.
    pub unevictable: Option<u64>,
    /// Kernel memory: `kernel` (5.18), v1 `memory.kmem.usage_in_bytes`.
    pub kernel: Option<u64>,
    /// Major page faults, a number.
    pub pgmajfault: Option<u64>,
    /// OOM kills, a number: `memory.events` (with children); on v1 of this cgroup alone. A kill of a whole cgroup
    /// (`memory.oom.group`) counts once: the kernel's `oom_kill` counts each process then, and the chosen one twice.
    pub oom_kills: Option<u64>,
    /// Times that the limit was about to be exceeded, a number: `memory.events` `max`, v1 `memory.failcnt`.
    pub max_events: Option<u64>,
    /// Times that `memory.high` was exceeded, a number; v2 only.
    pub high_events: Option<u64>,
}

impl MemoryReading {
    /// What reclaim cannot free without swap: usage less page cache and reclaimable slab (not told on v1, counted as 0), not
    /// below 0. `None` unless usage and both sizes of page cache are known.
    #[must_use]
    pub fn unreclaimable(&self) -> Option<u64> {
        let reclaimable =
            self.active_file?.saturating_add(self.inactive_file?).saturating_add(self.slab_reclaimable.unwrap_or(0));
        Some(self.usage?.saturating_sub(reclaimable))
    }
}

/// Pressure of a cgroup with its children; each `None` where the kernel does not measure it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PsiReading {
    /// Waiting for a CPU.
    pub cpu: Option<Pressure>,
    /// Waiting for memory.
    pub memory: Option<Pressure>,
    /// Waiting for block devices.
    pub io: Option<Pressure>,
}

/// One cgroup.
#[derive(Debug)]
pub struct Cgroup {
    unified: OwnedFd,
    id: u64,
    relative: PathBuf,
    layout: CgroupLayout,
}

impl Cgroup {
    /// Opens a cgroup; `None` if it is not (or not any more) in the unified hierarchy.
    ///
    /// # Errors
    /// If the system refuses for another reason.
    pub fn open(layout: &CgroupLayout, relative: &Path) -> Result<Option<Self>, CgroupError> {
        let path = layout.unified().join(relative);
        let error =
            |source: rustix::io::Errno| CgroupError::Read { path: path.display().to_string(), source: source.into() };
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let Some(unified) = gone(rustix::fs::open(&path, flags, Mode::empty())).map_err(error)? else {
            return Ok(None);
        };
        let id = rustix::fs::fstat(&unified).map_err(error)?.st_ino;
        Ok(Some(Self { unified, id, relative: relative.to_owned(), layout: layout.clone() }))
    }

    /// Its id, as eBPF tells it.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Its path from the root of the hierarchies.
    #[must_use]
    pub fn relative(&self) -> &Path {
        &self.relative
    }

    /// Whether the directory that was opened is still there.
    #[must_use]
    pub fn exists(&self) -> bool {
        rustix::fs::stat(self.layout.unified().join(&self.relative)).is_ok_and(|status| status.st_ino == self.id)
    }

    /// CPU time and throttling.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn cpu(&self, buffer: &mut Buffer) -> Result<CpuReading, CgroupError> {
        let mut it = CpuReading::default();
        self.keyed(buffer, Place::Unified, "cpu.stat", |key, value| match key {
            "usage_usec" => it.usage_us = Some(value),
            "user_usec" => it.user_us = Some(value),
            "system_usec" => it.system_us = Some(value),
            "nr_periods" => it.nr_periods = Some(value),
            "nr_throttled" => it.nr_throttled = Some(value),
            "throttled_usec" => it.throttled_us = Some(value),
            "nr_bursts" => it.nr_bursts = Some(value),
            "burst_usec" => it.burst_us = Some(value),
            _ => {}
        })?;
        if self.layout.is_hybrid() {
            self.keyed(buffer, Place::V1("cpu"), "cpu.stat", |key, value| match key {
                "nr_periods" => it.nr_periods = Some(value),
                "nr_throttled" => it.nr_throttled = Some(value),
                "throttled_time" => it.throttled_us = Some(value / 1000),
                "nr_bursts" => it.nr_bursts = Some(value),
                "burst_time" => it.burst_us = Some(value / 1000),
                _ => {}
            })?;
            if it.usage_us.is_none() {
                it.usage_us = self.number(buffer, Place::V1("cpuacct"), "cpuacct.usage")?.map(|ns| ns / 1000);
            }
        }
        Ok(it)
    }

    /// Memory.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn memory(&self, buffer: &mut Buffer) -> Result<MemoryReading, CgroupError> {
        if self.layout.is_hybrid() { self.memory_v1(buffer) } else { self.memory_v2(buffer) }
    }

    fn memory_v2(&self, buffer: &mut Buffer) -> Result<MemoryReading, CgroupError> {
        let at = Place::Unified;
        let mut it = MemoryReading {
            usage: self.number(buffer, at, "memory.current")?,
            limit: self.limit(buffer, at, "memory.max")?,
            high: self.limit(buffer, at, "memory.high")?,
            peak: self.number(buffer, at, "memory.peak")?,
            swap: self.number(buffer, at, "memory.swap.current")?,
            ..MemoryReading::default()
        };
        self.keyed(buffer, at, "memory.stat", |key, value| match key {
            "anon" => it.anon = Some(value),
            "file" => it.file = Some(value),
            "kernel" => it.kernel = Some(value),
            "shmem" => it.shmem = Some(value),
            "inactive_file" => it.inactive_file = Some(value),
            "active_file" => it.active_file = Some(value),
            "unevictable" => it.unevictable = Some(value),
            "slab_reclaimable" => it.slab_reclaimable = Some(value),
            "slab_unreclaimable" => it.slab_unreclaimable = Some(value),
            "pgmajfault" => it.pgmajfault = Some(value),
            _ => {}
        })?;
        let mut group_kills = 0;
        self.keyed(buffer, at, "memory.events", |key, value| match key {
            "oom_kill" => it.oom_kills = Some(value),
            "oom_group_kill" => group_kills = value,
            "max" => it.max_events = Some(value),
            "high" => it.high_events = Some(value),
            _ => {}
        })?;
        if group_kills > 0 {
            it.oom_kills = Some(group_kills);
        }
        Ok(it)
    }

    fn memory_v1(&self, buffer: &mut Buffer) -> Result<MemoryReading, CgroupError> {
        let at = Place::V1("memory");
        let mut it = MemoryReading {
            usage: self.number(buffer, at, "memory.usage_in_bytes")?,
            limit: self.limit(buffer, at, "memory.limit_in_bytes")?,
            peak: self.number(buffer, at, "memory.max_usage_in_bytes")?,
            kernel: self.number(buffer, at, "memory.kmem.usage_in_bytes")?,
            max_events: self.number(buffer, at, "memory.failcnt")?,
            ..MemoryReading::default()
        };
        // "total_" is with children, as on v2.
        self.keyed(buffer, at, "memory.stat", |key, value| match key {
            "total_rss" => it.anon = Some(value),
            "total_cache" => it.file = Some(value),
            "total_shmem" => it.shmem = Some(value),
            "total_inactive_file" => it.inactive_file = Some(value),
            "total_active_file" => it.active_file = Some(value),
            "total_unevictable" => it.unevictable = Some(value),
            "total_swap" => it.swap = Some(value),
            "total_pgmajfault" => it.pgmajfault = Some(value),
            _ => {}
        })?;
        self.keyed(buffer, at, "memory.oom_control", |key, value| {
            if key == "oom_kill" {
                it.oom_kills = Some(value);
            }
        })?;
        Ok(it)
    }

    /// Pressure, from the unified hierarchy on both layouts.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn pressure(&self, buffer: &mut Buffer) -> Result<PsiReading, CgroupError> {
        let mut one = |name| self.parsed(buffer, Place::Unified, name, parse::pressure);
        Ok(PsiReading { cpu: one("cpu.pressure")?, memory: one("memory.pressure")?, io: one("io.pressure")? })
    }

    /// Process ids in this cgroup (without its children); `None` if it is gone.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn processes(&self, buffer: &mut Buffer) -> Result<Option<Vec<u32>>, CgroupError> {
        self.parsed(buffer, Place::Unified, "cgroup.procs", |text| {
            text.lines().map(|line| parse::number(line).map(|pid| u32::try_from(pid).unwrap_or(0))).collect()
        })
    }

    /// Number of tasks in this cgroup with its children.
    ///
    /// # Errors
    /// If a file that is there cannot be read or understood.
    pub fn tasks(&self, buffer: &mut Buffer) -> Result<Option<u64>, CgroupError> {
        let at = if self.layout.is_hybrid() { Place::V1("pids") } else { Place::Unified };
        self.number(buffer, at, "pids.current")
    }

    fn number(&self, buffer: &mut Buffer, at: Place, file: &str) -> Result<Option<u64>, CgroupError> {
        self.parsed(buffer, at, file, parse::number)
    }

    fn limit(&self, buffer: &mut Buffer, at: Place, file: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self.parsed(buffer, at, file, parse::limit)?.flatten())
    }

    fn keyed(
        &self,
        buffer: &mut Buffer,
        at: Place,
        file: &str,
        take: impl FnMut(&str, u64),
    ) -> Result<(), CgroupError> {
        self.parsed(buffer, at, file, |text| parse::flat_keyed(text, take)).map(|_| ())
    }

    fn parsed<T>(
        &self,
        buffer: &mut Buffer,
        at: Place,
        file: &str,
        parse: impl FnOnce(&str) -> Result<T, BadLine>,
    ) -> Result<Option<T>, CgroupError> {
        let read = match at {
            Place::Unified => read(&self.unified, Path::new(file), buffer),
            Place::V1(controller) => match self.layout.directory(controller, &self.relative) {
                Some(directory) => read(rustix::fs::CWD, &directory.join(file), buffer),
                None => return Ok(None),
            },
        };
        match gone(read) {
            Ok(None) => Ok(None),
            Ok(Some(())) => {
                let text = String::from_utf8_lossy(&buffer.0);
                parse(&text).map(Some).map_err(|source| CgroupError::Format { path: self.path(at, file), source })
            }
            Err(source) => Err(CgroupError::Read { path: self.path(at, file), source: source.into() }),
        }
    }

    fn path(&self, at: Place, file: &str) -> String {
        let directory = match at {
            Place::Unified => Some(self.layout.unified().join(&self.relative)),
            Place::V1(controller) => self.layout.directory(controller, &self.relative),
        };
        directory.unwrap_or_default().join(file).display().to_string()
    }
}

/// The hierarchy that a file is in.
#[derive(Debug, Clone, Copy)]
enum Place {
    Unified,
    V1(&'static str),
}

/// What is not there, or no longer, is `None`.
fn gone<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // Not supported: a file that exists but whose feature is off, such as pressure with PSI disabled at boot.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NODEV | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a whole file into the buffer.
fn read(directory: impl std::os::fd::AsFd, file: &Path, buffer: &mut Buffer) -> rustix::io::Result<()> {
    const FIRST: usize = 4096;
    let file = rustix::fs::openat(directory, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let data = &mut buffer.0;
    data.resize(data.capacity().max(FIRST), 0);
    let mut length = 0;
    loop {
        if length == data.len() {
            data.resize(2 * length, 0);
        }
        match rustix::io::read(&file, &mut data[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    data.truncate(length);
    Ok(())
}

#[cfg(test)]
mod tests;
