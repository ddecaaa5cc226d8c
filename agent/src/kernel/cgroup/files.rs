//! The files of one cgroup, held open.
//!
//! **Problem.** To open a file by its path costs several times what it costs to read it, and a path may lead to a later cgroup of
//! the same name. **Approach.** A directory is opened once for each hierarchy; files that every look reads stay open, too, and are
//! read by `pread` at 0, upon which the kernel writes them anew. What is read seldom is opened for each reading.
//!
//! **Terms.** The *budget* is how many descriptors all cgroups together may hold: three quarters of `RLIMIT_NOFILE`. An open
//! file of this kind also holds a page of the kernel's memory (the buffer of its `seq_file`).
//!
//! **Properties.** No allocation once a file is open. A missing file is looked for again after 1, 2, 4 ... 64 readings, and named
//! once in the log. Beyond the budget files are opened for each reading.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use log::{info, warn};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Buffer, CgroupLayout};

/// The hierarchy that a file is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// v2.
    Unified,
    /// v1: the index into [`CONTROLLERS`].
    V1(usize),
}

/// The v1 controllers whose files are read; the directory of the first is held.
pub(super) const CONTROLLERS: [&str; 5] = ["memory", "cpu", "blkio", "cpuacct", "pids"];
const HELD: usize = 1;
pub(super) const CPU: Place = Place::V1(1);
pub(super) const MEMORY: Place = Place::V1(0);
pub(super) const BLKIO: Place = Place::V1(2);
const CPUACCT: Place = Place::V1(3);
pub(super) const PIDS: Place = Place::V1(4);

/// A file that every look reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Where its descriptor is, below [`KEPT`].
    index: usize,
    place: Place,
    name: &'static str,
}

const fn kept(index: usize, place: Place, name: &'static str) -> Kept {
    Kept { index, place, name }
}

/// Files that every look reads, at most (v1 and v2 never have both of one index).
const KEPT: usize = 10;
pub(super) const CPU_STAT: Kept = kept(0, Place::Unified, "cpu.stat");
pub(super) const CPU_PRESSURE: Kept = kept(1, Place::Unified, "cpu.pressure");
pub(super) const MEMORY_PRESSURE: Kept = kept(2, Place::Unified, "memory.pressure");
pub(super) const IO_PRESSURE: Kept = kept(3, Place::Unified, "io.pressure");
pub(super) const MEMORY_CURRENT: Kept = kept(4, Place::Unified, "memory.current");
pub(super) const MEMORY_MAX: Kept = kept(5, Place::Unified, "memory.max");
pub(super) const MEMORY_STAT: Kept = kept(6, Place::Unified, "memory.stat");
pub(super) const MEMORY_EVENTS: Kept = kept(7, Place::Unified, "memory.events");
pub(super) const PIDS_CURRENT: Kept = kept(8, Place::Unified, "pids.current");
pub(super) const V1_CPU_STAT: Kept = kept(9, CPU, "cpu.stat");
pub(super) const V1_MEMORY_USAGE: Kept = kept(4, MEMORY, "memory.usage_in_bytes");
pub(super) const V1_MEMORY_LIMIT: Kept = kept(5, MEMORY, "memory.limit_in_bytes");
pub(super) const V1_MEMORY_STAT: Kept = kept(6, MEMORY, "memory.stat");
pub(super) const V1_OOM_CONTROL: Kept = kept(7, MEMORY, "memory.oom_control");
pub(super) const V1_PIDS_CURRENT: Kept = kept(8, PIDS, "pids.current");

/// A file that is read seldom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seldom(pub(super) Place, pub(super) &'static str);

pub(super) const PROCS: Seldom = Seldom(Place::Unified, "cgroup.procs");
pub(super) const V1_CPUACCT_USAGE: Seldom = Seldom(CPUACCT, "cpuacct.usage");

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Unopened,
    Open(OwnedFd),
    /// To be looked for again after so many readings; so many were waited the last time.
    Absent {
        left: u8,
        waited: u8,
    },
}

/// Held descriptors of all cgroups.
static HELD_NOW: AtomicUsize = AtomicUsize::new(0);
/// How many may be held; 0 before it was found out.
static BUDGET: AtomicUsize = AtomicUsize::new(0);
/// Which files' absence was told, by [`Kept::index`] and version.
static TOLD: AtomicU32 = AtomicU32::new(0);

/// How many files this process may have open: raised to what the system allows. Three quarters of it are for cgroups.
///
/// # Errors
/// If the system refuses; the limit stays as it was.
pub fn raise_open_files() -> std::io::Result<u64> {
    let now = getrlimit(Resource::Nofile);
    let soft = now.current.unwrap_or(u64::MAX);
    let hard = now.maximum.unwrap_or(u64::MAX);
    let raised = if hard > soft {
        setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum })
    } else {
        Ok(())
    };
    let limit = if raised.is_ok() { hard } else { soft };
    set_budget(limit);
    raised?;
    Ok(limit)
}

fn set_budget(limit: u64) {
    BUDGET.store(usize::try_from(limit / 4 * 3).unwrap_or(usize::MAX).max(1), Ordering::Relaxed);
}

/// Descriptors that readers of cgroups hold, and how many they may.
#[must_use]
pub fn descriptors() -> (usize, usize) {
    (HELD_NOW.load(Ordering::Relaxed), budget())
}

fn budget() -> usize {
    match BUDGET.load(Ordering::Relaxed) {
        0 => {
            set_budget(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX));
            BUDGET.load(Ordering::Relaxed)
        }
        known => known,
    }
}

/// The descriptors of one cgroup.
#[derive(Debug)]
pub(super) struct Files {
    unified: OwnedFd,
    v1: [Slot; HELD],
    kept: [Slot; KEPT],
    /// So many of these are counted in [`HELD_NOW`].
    counted: usize,
}

impl Drop for Files {
    fn drop(&mut self) {
        HELD_NOW.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

/// Whose files they are.
pub(super) struct Owner<'a> {
    pub(super) layout: &'a CgroupLayout,
    pub(super) relative: &'a std::path::Path,
}

impl Owner<'_> {
    fn directory(&self, place: Place) -> Option<PathBuf> {
        match place {
            Place::Unified => Some(self.layout.unified().join(self.relative)),
            Place::V1(index) => self.layout.directory(CONTROLLERS[index], self.relative),
        }
    }
}

impl Files {
    pub(super) fn new(unified: OwnedFd) -> Self {
        HELD_NOW.fetch_add(1, Ordering::Relaxed);
        Self { unified, v1: Default::default(), kept: Default::default(), counted: 1 }
    }

    pub(super) fn unified(&self) -> &OwnedFd {
        &self.unified
    }

    /// Closes all but the directory of the unified hierarchy.
    pub(super) fn close(&mut self) {
        HELD_NOW.fetch_sub(self.counted - 1, Ordering::Relaxed);
        self.counted = 1;
        (self.v1, self.kept) = (Default::default(), Default::default());
    }

    /// Reads a file that every look reads into the buffer. `false`: it is not there.
    pub(super) fn load(&mut self, file: Kept, owner: &Owner<'_>, buffer: &mut Buffer) -> rustix::io::Result<bool> {
        match &mut self.kept[file.index] {
            Slot::Open(fd) => {
                let read = present(buffer.pread(fd));
                if let Ok(false) = read {
                    // The cgroup is gone, or its controller was taken away.
                    self.kept[file.index] = Slot::Unopened;
                    self.counted -= 1;
                    HELD_NOW.fetch_sub(1, Ordering::Relaxed);
                }
                return read;
            }
            Slot::Absent { left, .. } if *left > 0 => {
                *left -= 1;
                return Ok(false);
            }
            Slot::Absent { .. } | Slot::Unopened => {}
        }
        match self.open(file.place, file.name, owner) {
            Ok(Some(fd)) => {
                let read = present(buffer.pread(&fd))?;
                if read && HELD_NOW.load(Ordering::Relaxed) < budget() {
                    HELD_NOW.fetch_add(1, Ordering::Relaxed);
                    self.counted += 1;
                    self.kept[file.index] = Slot::Open(fd);
                }
                Ok(read)
            }
            Ok(None) => {
                let waited = if let Slot::Absent { waited, .. } = self.kept[file.index] { waited } else { 0 };
                let waited = (waited * 2).clamp(1, 64);
                self.kept[file.index] = Slot::Absent { left: waited, waited };
                if waited >= 8 {
                    tell_absent(file);
                }
                Ok(false)
            }
            Err(error) => Err(self.without_descriptors(error)),
        }
    }

    /// Reads a file that is read seldom. `false`: it is not there.
    pub(super) fn load_seldom(
        &mut self,
        file: Seldom,
        owner: &Owner<'_>,
        buffer: &mut Buffer,
    ) -> rustix::io::Result<bool> {
        match self.open(file.0, file.1, owner) {
            Ok(Some(fd)) => present(buffer.pread(&fd)),
            Ok(None) => Ok(false),
            Err(error) => Err(self.without_descriptors(error)),
        }
    }

    /// Reads a list that is read seldom. `false`: it is not there.
    pub(super) fn load_list(
        &mut self,
        file: Seldom,
        owner: &Owner<'_>,
        buffer: &mut Buffer,
    ) -> rustix::io::Result<bool> {
        match self.open(file.0, file.1, owner) {
            Ok(Some(fd)) => present(buffer.read_list(&fd)),
            Ok(None) => Ok(false),
            Err(error) => Err(self.without_descriptors(error)),
        }
    }

    /// Gives its own descriptors back where there are no more.
    fn without_descriptors(&mut self, error: Errno) -> Errno {
        if matches!(error, Errno::MFILE | Errno::NFILE) {
            self.close();
            let held = HELD_NOW.load(Ordering::Relaxed);
            warn!("no more files can be opened; from now on at most {held} files of cgroups stay open");
            BUDGET.store(held.max(1), Ordering::Relaxed);
        }
        error
    }

    fn open(&mut self, place: Place, name: &str, owner: &Owner<'_>) -> rustix::io::Result<Option<OwnedFd>> {
        const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);
        let index = match place {
            Place::Unified => return gone(rustix::fs::openat(&self.unified, name, FLAGS, Mode::empty())),
            Place::V1(index) => index,
        };
        let Some(directory) = owner.directory(place) else { return Ok(None) };
        if index >= HELD {
            return gone(rustix::fs::open(directory.join(name), FLAGS, Mode::empty()));
        }
        if let Slot::Open(directory) = &self.v1[index] {
            return gone(rustix::fs::openat(directory, name, FLAGS, Mode::empty()));
        }
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let Some(directory) = gone(rustix::fs::open(&directory, flags, Mode::empty()))? else { return Ok(None) };
        let file = gone(rustix::fs::openat(&directory, name, FLAGS, Mode::empty()));
        if HELD_NOW.load(Ordering::Relaxed) < budget() {
            HELD_NOW.fetch_add(1, Ordering::Relaxed);
            self.counted += 1;
            self.v1[index] = Slot::Open(directory);
        }
        file
    }

    /// The directory in a v1 hierarchy, opened if need be.
    pub(super) fn inode(&mut self, place: Place, owner: &Owner<'_>) -> Option<u64> {
        if let Place::V1(index) = place
            && let Some(Slot::Open(directory)) = self.v1.get(index)
        {
            return rustix::fs::fstat(directory).ok().map(|status| status.st_ino);
        }
        rustix::fs::stat(&owner.directory(place)?).ok().map(|status| status.st_ino)
    }
}

/// The whole path of a file, for messages.
pub(super) fn path(place: Place, name: &str, owner: &Owner<'_>) -> String {
    owner.directory(place).unwrap_or_default().join(name).display().to_string()
}

impl From<Kept> for Seldom {
    fn from(file: Kept) -> Self {
        Self(file.place, file.name)
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Unified => f.write_str(self.name),
            Place::V1(index) => write!(f, "{} (v1 {})", self.name, CONTROLLERS[index]),
        }
    }
}

fn tell_absent(file: Kept) {
    let bit = 1 << (file.index * 2 + usize::from(file.place != Place::Unified));
    if TOLD.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        info!("some cgroup has no {file}; what it would tell is not known there");
    }
}

/// What is not there, or no longer, is `None`.
pub(super) fn gone<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        // Not supported: a file that exists but whose feature is off, such as pressure with PSI disabled at boot.
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

fn present(result: rustix::io::Result<()>) -> rustix::io::Result<bool> {
    gone(result).map(|read| read.is_some())
}

impl Buffer {
    /// Reads a file that the kernel shows in one piece.
    fn pread(&mut self, file: impl AsFd) -> rustix::io::Result<()> {
        self.reads += 1;
        loop {
            match rustix::io::pread(&file, &mut self.data[..], 0) {
                Ok(length) if length == self.data.len() => self.data.resize(2 * length, 0),
                Ok(length) => {
                    self.length = length;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads a list, which the kernel shows page by page.
    fn read_list(&mut self, file: impl AsFd) -> rustix::io::Result<()> {
        self.length = 0;
        self.reads += 1;
        loop {
            if self.length == self.data.len() {
                self.data.resize(2 * self.length, 0);
            }
            match rustix::io::read(&file, &mut self.data[self.length..]) {
                Ok(0) => return Ok(()),
                Ok(more) => self.length += more,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}
