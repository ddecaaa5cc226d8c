//! Wake-ups when the kernel counts a memory event of a cgroup (`memory.events` of v2).
//!
//! **Approach.** One inotify instance watches the files of all cgroups: the kernel reports a modification when a counter
//! changes, at most about every 10 ms.
//!
//! **Properties.** A wake-up is a hint: read the counters. v1 has no such file; [`MemoryEvents::watch`] says so by name, and
//! the adaptive sampling and pressure triggers have to do.

use std::{collections::HashMap, io, path::Path};

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};

use super::cgroup::CgroupLayout;

/// Events cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum MemoryEventsError {
    /// The layout has no such file.
    #[error("memory.events is missing: the memory controller of this machine is on cgroup v1 (hybrid)")]
    Hybrid,
    /// inotify cannot be used, for example because its limits are reached.
    #[error("cannot watch by inotify: {0}")]
    Inotify(io::Error),
    /// This file cannot be watched.
    #[error("cannot watch {path}: {source}")]
    Watch {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Watches the memory events of many cgroups.
pub struct MemoryEvents {
    stream: EventStream<Vec<u8>>,
    watches: Watches,
    cgroups: HashMap<WatchDescriptor, u64>,
}

impl MemoryEvents {
    /// Watches nothing yet. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the layout is hybrid, or inotify cannot be used.
    pub fn new(layout: &CgroupLayout) -> Result<Self, MemoryEventsError> {
        if layout.is_hybrid() {
            return Err(MemoryEventsError::Hybrid);
        }
        let stream = Inotify::init()
            .and_then(|inotify| inotify.into_event_stream(vec![0; 4096]))
            .map_err(MemoryEventsError::Inotify)?;
        Ok(Self { watches: stream.watches(), stream, cgroups: HashMap::new() })
    }

    /// Watches a cgroup by its directory; its id comes back from [`next`](Self::next). Watching twice changes nothing. The
    /// watch ends with the cgroup.
    ///
    /// # Errors
    /// If the file is not there.
    pub fn watch(&mut self, id: u64, directory: &Path) -> Result<(), MemoryEventsError> {
        let file = directory.join("memory.events");
        let watch = self
            .watches
            .add(&file, WatchMask::MODIFY)
            .map_err(|source| MemoryEventsError::Watch { path: file.display().to_string(), source })?;
        self.cgroups.insert(watch, id);
        Ok(())
    }

    /// Id of the next cgroup whose counters changed. Pending until one does; may be cancelled.
    ///
    /// # Errors
    /// If inotify fails.
    pub async fn next(&mut self) -> Result<u64, MemoryEventsError> {
        loop {
            match self.stream.next().await {
                Some(Ok(event)) if event.mask.contains(EventMask::IGNORED) => {
                    self.cgroups.remove(&event.wd);
                }
                Some(Ok(event)) => {
                    if let Some(id) = self.cgroups.get(&event.wd) {
                        return Ok(*id);
                    }
                }
                Some(Err(error)) => return Err(MemoryEventsError::Inotify(error)),
                None => return Err(MemoryEventsError::Inotify(io::ErrorKind::UnexpectedEof.into())),
            }
        }
    }
}

impl std::fmt::Debug for MemoryEvents {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("MemoryEvents").field("cgroups", &self.cgroups.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;

    #[tokio::test]
    async fn a_change_is_told_with_the_id_and_the_end_of_the_file_ends_the_watch() {
        let root = tempfile::tempdir().unwrap();
        let layout = CgroupLayout::V2 { root: root.path().to_owned() };
        let mut events = MemoryEvents::new(&layout).unwrap();
        assert!(matches!(events.watch(7, root.path()), Err(MemoryEventsError::Watch { .. })));
        let file = root.path().join("memory.events");
        std::fs::write(&file, "oom 0\n").unwrap();
        events.watch(7, root.path()).unwrap();
        std::fs::write(&file, "oom 1\n").unwrap();
        assert_eq!(events.next().await.unwrap(), 7);
        std::fs::remove_file(&file).unwrap();
        let quiet = tokio::time::timeout(Duration::from_millis(200), async { while events.next().await.is_ok() {} });
        assert!(quiet.await.is_err());
        assert!(events.cgroups.is_empty());
    }

    #[tokio::test]
    async fn hybrid_is_named_as_missing() {
        let layout = CgroupLayout::Hybrid { unified: "/u".into(), controllers: BTreeMap::new() };
        assert!(MemoryEvents::new(&layout).unwrap_err().to_string().contains("v1"));
    }
}
