//! Turns back what holds pods up when the agent is killed and does not come back.
//!
//! Problem: an agent that is killed while a pod is frozen leaves it frozen for ever. Approach: a second, small process of the same
//! program, started before the first such knob is turned, whose standard input is a pipe from the agent. When the agent ends, however
//! that is, the pipe ends. Then the guard waits for the time that each knob may stay turned, and turns back those in the journal that
//! still are; if another agent holds the lock of the folder by then, that one has seen to it.
//!
//! Properties: while the agent lives the guard does nothing; it touches only what the journal says that beelet turned, and what it finds
//! as beelet left it; it ends by itself.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beelet_core::event::Knob;
use beelet_core::ladder::{FREEZE_LIMIT, THROTTLE_LIMIT};
use rustix::fs::{FlockOperation, flock};

use super::journal::{Journal, Restore};
use super::knobs::{Worker, strangles};
use crate::cgroup::{Hierarchies, Tree};

/// So often it tries to turn back what cannot be, and in between it takes a breath.
const TRIES: u32 = 50;
const BREATH: Duration = Duration::from_millis(100);
/// So often it asks for the lock.
const LOCK_TRIES: u32 = 20;

/// The way to the guard.
#[derive(Debug)]
pub struct Guard {
    root: PathBuf,
    child: Option<Child>,
}

impl Guard {
    /// A guard of an agent's folder; it is started when it is first needed.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self { root, child: None }
    }

    /// Sees that the guard is there.
    ///
    /// # Errors
    /// If it cannot be started.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        if let Some(child) = &mut self.child {
            if matches!(child.try_wait(), Ok(None)) {
                return Ok(());
            }
            tracing::warn!(pid = child.id(), "the guard has ended; another one is started");
        }
        let child = Command::new("/proc/self/exe")
            .arg("guard")
            .arg("--root-dir")
            .arg(&self.root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .current_dir("/")
            // What a terminal sends to the agent's group is not for it.
            .process_group(0)
            .spawn()?;
        tracing::info!(pid = child.id(), "a guard turns knobs back should the agent be killed");
        self.child = Some(child);
        Ok(())
    }
}

/// How long a knob may stay turned without an agent.
pub(super) fn limit(knob: Knob) -> Duration {
    let limit = if matches!(knob, Knob::Freeze(_)) { FREEZE_LIMIT } else { THROTTLE_LIMIT };
    Duration::from_micros(limit.get())
}

/// What is left until a knob is to be turned back.
fn left(restore: &Restore) -> Duration {
    let until = UNIX_EPOCH + Duration::from_micros(restore.at) + limit(restore.after);
    // A clock that was set back must not make it wait for longer.
    until.duration_since(SystemTime::now()).unwrap_or_default().min(limit(restore.after))
}

/// The lock of the folder; `None` if another agent has it. Of one that is killed the kernel closes the pipe before the lock, and the
/// programs in between take their time.
fn lock(root: &Path) -> io::Result<Option<File>> {
    let file = File::open(root.join("lock"))?;
    for _ in 0..LOCK_TRIES {
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(Some(file));
        }
        std::thread::sleep(BREATH);
    }
    tracing::info!("another agent is there; it has seen to what was turned");
    Ok(None)
}

/// Turns back at once what an agent that was killed left turned and what holds pods up: an agent that takes the folder over does so
/// before all else, for until it can decide again nobody knows whether there is a reason.
///
/// # Errors
/// If the journal or the cgroups cannot be used.
pub fn let_go(root: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if root.join("journal").exists() {
        let mut worker = Worker::new(Arc::new(Tree::new(Hierarchies::detect()?)), Journal::open(root.join("journal"))?);
        worker.restore_if(|restore| strangles(restore.after));
    }
    Ok(())
}

/// The guard's whole life.
///
/// # Errors
/// If the folder, its journal or the cgroups cannot be used.
pub fn run(root: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    if let Err(error) = rustix::thread::set_name(c"beelet-guard") {
        tracing::debug!(%error, "the guard keeps the name of the file it was started from");
    }
    // What is read is nothing; what counts is that it ends.
    io::stdin().lock().read_to_end(&mut Vec::new())?;
    let tree = Arc::new(Tree::new(Hierarchies::detect()?));
    let mut failures = 0;
    while failures < TRIES {
        let Some(lock) = lock(root)? else { return Ok(()) };
        let journal = Journal::open(root.join("journal"))?;
        let turned = journal.recover().into_iter().filter(|restore| strangles(restore.after));
        let Some(wait) = turned.map(|restore| left(&restore)).min() else { return Ok(()) };
        if wait.is_zero() {
            let mut worker = Worker::new(Arc::clone(&tree), journal);
            worker.restore_if(|restore| strangles(restore.after) && left(restore).is_zero());
            failures += 1;
        }
        // Another agent may come meanwhile.
        drop(lock);
        std::thread::sleep(wait.max(BREATH));
    }
    Err("some knobs cannot be turned back; see above".into())
}
