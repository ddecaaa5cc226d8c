//! The logs of containers: rotated before they are large, removed with their runs, linked for collectors, read at their ends.
//!
//! Problem: what containers say goes to the node's disk without a bound. The kubelet looks every 10 s and compresses before it
//! rotates, so that a container that writes 1 GiB/s fills a disk. Approach: [`keeper`] looks at each log as fast as it grows, rotates
//! first and compresses afterwards, beside everything else; [`beelet_core::logs`] says when to look and what goes.
//!
//! Terms: a *run*'s log is `<podLogsDir>/<namespace>_<name>_<uid>/<container>/<n>.log`, written by the runtime; see [`files`] for what
//! else there is of it.

pub mod compress;
pub mod cri_line;
pub mod files;
pub mod keeper;
pub mod links;
pub mod tail;

use std::sync::atomic::{AtomicU64, Ordering};

/// What can fail with a log, by the name that metrics have for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its size cannot be found out.
    Look,
    /// It cannot be renamed.
    Rename,
    /// The runtime does not reopen it.
    Reopen,
    /// A rotated file cannot be compressed.
    Compress,
    /// A file cannot be removed.
    Remove,
    /// A link cannot be made or removed.
    Link,
}

impl Fault {
    /// All, in the order of the counters.
    pub const ALL: [Self; 6] = [Self::Look, Self::Rename, Self::Reopen, Self::Compress, Self::Remove, Self::Link];

    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Rename => "rename",
            Self::Reopen => "reopen",
            Self::Compress => "compress",
            Self::Remove => "remove",
            Self::Link => "link",
        }
    }
}

/// What was done with logs since the agent's start.
#[derive(Debug, Default)]
pub struct Health {
    done: [AtomicU64; 3],
    faults: [AtomicU64; Fault::ALL.len()],
}

/// What is done with logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// One was rotated.
    Rotated,
    /// A rotated file was compressed.
    Compressed,
    /// A rotated file was removed, because there were too many.
    Removed,
}

impl Deed {
    const ALL: [Self; 3] = [Self::Rotated, Self::Compressed, Self::Removed];

    const fn name(self) -> &'static str {
        match self {
            Self::Rotated => "rotated",
            Self::Compressed => "compressed",
            Self::Removed => "removed",
        }
    }
}

impl Health {
    /// Counts what was done.
    pub fn did(&self, deed: Deed, times: u64) {
        self.done[deed as usize].fetch_add(times, Ordering::Relaxed);
    }

    /// Counts what failed.
    pub fn failed(&self, fault: Fault) {
        self.faults[fault as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was done, by name.
    #[must_use]
    pub fn done(&self) -> Vec<(String, u64)> {
        Deed::ALL.map(|deed| (deed.name().to_owned(), self.done[deed as usize].load(Ordering::Relaxed))).into()
    }

    /// What failed, by name.
    #[must_use]
    pub fn faults(&self) -> Vec<(String, u64)> {
        Fault::ALL.map(|fault| (fault.name().to_owned(), self.faults[fault as usize].load(Ordering::Relaxed))).into()
    }
}
