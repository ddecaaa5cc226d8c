//! Waiting for a file descriptor, in the one place that needs `unsafe`.
//!
//! **Approach.** tokio asks for a promise: the descriptor stays open, and the same, as long as it is watched. [`Watch`] owns a
//! descriptor, never gives it away and never replaces it, so that everybody else can wait without `unsafe`.

#![expect(unsafe_code, reason = "tokio's AsyncFd is registered by an unsafe function since 1.54")]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use tokio::{
    io::{Interest, unix::AsyncFd},
    runtime::Handle,
};

/// A descriptor that can be waited for.
#[derive(Debug)]
pub(super) struct Watch {
    fd: AsyncFd<OwnedFd>,
    interest: Interest,
}

impl Watch {
    /// Watches a descriptor of its own.
    pub(super) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        Handle::try_current().map_err(io::Error::other)?;
        // SAFETY: an OwnedFd is open until it is dropped. It is dropped with the AsyncFd, as the field is private to this
        // module, and nothing here takes it out or gives a mutable reference to it.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(Self { fd, interest })
    }

    /// Waits until something happened since the last call. May be cancelled.
    ///
    /// Look at the descriptor after each call, and before the first: what happened in between makes the next call return.
    pub(super) async fn woken(&self) -> io::Result<()> {
        self.fd.ready(self.interest).await?.clear_ready();
        Ok(())
    }

    /// The descriptor.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}
