//! The thread that frees page cache: the kernel makes whoever asks for it do the work, which may take long.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};

use beelet_core::units::Bytes;

use crate::cgroup::Tree;

/// Portions that wait. More would be of an old look.
const WAITING: usize = 16;

/// The way to the thread. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Reclaimer {
    jobs: SyncSender<(String, Bytes)>,
}

impl Reclaimer {
    pub(super) fn spawn(tree: Arc<Tree>) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<(String, Bytes)>(WAITING);
        std::thread::Builder::new().name("beelet-reclaim".to_owned()).spawn(move || {
            while let Ok((cgroup, bytes)) = queue.recv() {
                match tree.reclaim(&cgroup, bytes) {
                    Ok(()) => tracing::debug!(cgroup, %bytes, "freed page cache"),
                    Err(error) if error.is_gone() => {}
                    Err(error) => tracing::warn!(cgroup, %bytes, %error, "cannot free page cache"),
                }
            }
        })?;
        Ok(Self { jobs })
    }

    pub(super) fn reclaim(&self, cgroup: String, bytes: Bytes) {
        match self.jobs.try_send((cgroup, bytes)) {
            Ok(()) => {}
            Err(TrySendError::Full((cgroup, _))) => {
                tracing::debug!(cgroup, "the kernel is slow to free page cache; left out");
            }
            Err(TrySendError::Disconnected((cgroup, _))) => {
                tracing::error!(cgroup, "the thread that frees page cache is gone");
            }
        }
    }
}
