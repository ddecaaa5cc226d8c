//! Visits to the network namespaces of other processes.
//!
//! **Problem.** What listens, what a device carried and what a stack counted is told per network namespace, and `/proc/PID/net`
//! tells only part of it.
//!
//! **Approach.** A thread steps into the namespace (`setns`), looks, and steps back. The namespace is held open for the time of the
//! visit only.
//!
//! **Terms.** *Home*: the namespace that the thread began in.
//!
//! **Properties.** A process that is gone is [`Visit::Gone`]; one that shares the thread's own namespace is [`Visit::Home`] and
//! nothing is done. A thread that cannot step back gets [`NetnsError::Stranded`] and must end: whatever it did next, it would do in
//! somebody else's network. Nothing keeps a namespace alive after the visit. Works without root only for processes of the same
//! user namespace rights (CAP_SYS_ADMIN in both).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, fstat, open};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A namespace cannot be visited.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// A namespace cannot be opened.
    #[error("cannot open the network namespace of {of}: {source}")]
    Open {
        /// Whose.
        of: String,
        /// What the system said.
        source: io::Error,
    },
    /// A namespace cannot be entered. The thread is where it was.
    #[error("cannot enter the network namespace of process {pid}: {source}; this needs CAP_SYS_ADMIN")]
    Enter {
        /// Whose.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
    /// The thread is in the namespace of a pod and cannot leave it. It must end.
    #[error("cannot return from the network namespace of process {pid}: {source}")]
    Stranded {
        /// Whose.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
}

/// What became of a visit.
#[derive(Debug, PartialEq, Eq)]
pub enum Visit<T> {
    /// The process is gone.
    Gone,
    /// The process is in the thread's own namespace.
    Home,
    /// What was seen, and the namespace's number.
    Seen(T, u64),
}

/// The namespace that a thread began in. It is the thread's: not to be taken along to another one.
#[derive(Debug)]
pub struct Home {
    namespace: OwnedFd,
    id: u64,
    /// Kept out of `Send` and `Sync`.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Home {
    /// Of the calling thread.
    ///
    /// # Errors
    /// If /proc does not tell.
    pub fn of_this_thread() -> Result<Self, NetnsError> {
        let failed =
            |source: rustix::io::Errno| NetnsError::Open { of: "this thread".to_owned(), source: source.into() };
        let namespace = open_namespace("/proc/thread-self/ns/net").map_err(failed)?;
        let id = fstat(&namespace).map_err(failed)?.st_ino;
        Ok(Self { namespace, id, _thread: std::marker::PhantomData })
    }

    /// Runs `look` in the network namespace of a process. With `expected`, a process in a namespace of another number counts as
    /// gone: its pid was used again. If `look` panics, the thread unwinds where it is and must end, as
    /// threads that panic do.
    ///
    /// # Errors
    /// See [`NetnsError`]; after [`NetnsError::Stranded`] the thread is to do nothing but end.
    pub fn visit<T>(&self, pid: u32, expected: Option<u64>, look: impl FnOnce() -> T) -> Result<Visit<T>, NetnsError> {
        let failed =
            |source: rustix::io::Errno| NetnsError::Open { of: format!("process {pid}"), source: source.into() };
        let theirs = match open_namespace(&format!("/proc/{pid}/ns/net")) {
            Ok(namespace) => namespace,
            // A zombie has no namespaces any more; ESRCH comes when it goes between the look-up and the opening.
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH) => return Ok(Visit::Gone),
            Err(error) => return Err(failed(error)),
        };
        let id = fstat(&theirs).map_err(failed)?.st_ino;
        if expected.is_some_and(|expected| expected != id) {
            return Ok(Visit::Gone);
        }
        if id == self.id {
            return Ok(Visit::Home);
        }
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(theirs.as_fd(), kind)
            .map_err(|source| NetnsError::Enter { pid, source: source.into() })?;
        let seen = look();
        move_into_link_name_space(self.namespace.as_fd(), kind)
            .map_err(|source| NetnsError::Stranded { pid, source: source.into() })?;
        Ok(Visit::Seen(seen, id))
    }
}

fn open_namespace(path: &str) -> rustix::io::Result<OwnedFd> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}
