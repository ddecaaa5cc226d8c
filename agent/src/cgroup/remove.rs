//! Removes cgroups.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cgroups_rs::fs::Controller;

use super::error::Error;
use super::kill::processes;
use super::layout::check;
use super::tree::{Tree, folder};

/// A cgroup that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// Its folder.
    pub dir: PathBuf,
    /// Processes that are still in it or below it.
    pub pids: Vec<i32>,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (processes: {:?})", self.dir.display(), self.pids)
    }
}

impl Tree {
    /// Removes the cgroup and all below it in every hierarchy, leaves first; a cgroup that is busy is tried again until
    /// `limit` (dead processes leave their cgroup a little after they have died). What is not there is removed.
    ///
    /// # Errors
    /// [`Error::Leftovers`] with the folders that are left and who is in them; the others are removed then.
    pub fn remove(&self, path: &str, limit: Duration) -> Result<(), Error> {
        check(path)?;
        let begun = Instant::now();
        loop {
            // The crate's own call goes depth first and tries five times in 150 ms; its error does not tell which folder, so
            // look at what is left instead.
            let left: Vec<PathBuf> = self
                .hierarchies
                .roots()
                .map(|root| root.join(path))
                .filter(|dir| dir.exists())
                .filter(|dir| folder(dir.clone()).delete().is_err() || dir.exists())
                .collect();
            if left.is_empty() {
                return Ok(());
            }
            if begun.elapsed() >= limit {
                let left = left.into_iter().map(|dir| {
                    let mut pids = Vec::new();
                    processes(&dir, &mut pids);
                    Leftover { dir, pids }
                });
                return Err(Error::Leftovers {
                    waited_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
                    left: left.collect(),
                });
            }
        }
    }
}
