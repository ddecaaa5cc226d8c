//! Wake-ups when a cgroup stalls (PSI triggers).
//!
//! **Problem.** Polling pressure often costs CPU, polling seldom comes too late.
//!
//! **Approach.** The kernel watches: "wake me when tasks were stalled for so long within such a window". One open file per
//! trigger; the kernel refuses a second one on it. Windows that are not a multiple of 2 s need CAP_SYS_RESOURCE; without it
//! the window grows to the next multiple, and the stall with it in proportion.
//!
//! **Properties.** A wake-up is a hint: read the counters before acting. At most one wake-up per window. The file is always
//! "readable", so only priority events are waited for. The end of the cgroup ends the stream.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;

use super::watch::Watch;

/// The step of windows that need no privilege, in microseconds.
const FREE_WINDOW_US: u64 = 2_000_000;

/// A trigger cannot be set or watched.
#[derive(Debug, thiserror::Error)]
pub enum PsiError {
    /// The pressure file cannot be opened for writing.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel refuses the trigger.
    #[error("the kernel refuses the trigger \"{trigger}\" on {path}: {source}")]
    Refused {
        /// The file.
        path: String,
        /// The trigger.
        trigger: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file descriptor cannot be watched.
    #[error("cannot watch {path}: {source}")]
    Watch {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
}

/// Whose stall counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stalled {
    /// At least one task.
    Some,
    /// All tasks that are not idle.
    Full,
}

/// When to wake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Whose stall counts.
    pub stalled: Stalled,
    /// Microseconds of stall within the window; more than 0, at most the window.
    pub stall_us: u64,
    /// Microseconds, 500 000 to 10 000 000.
    pub window_us: u64,
}

impl Threshold {
    /// The same share of the next window that needs no privilege.
    #[must_use]
    pub fn unprivileged(self) -> Self {
        let window_us = self.window_us.max(1).div_ceil(FREE_WINDOW_US).saturating_mul(FREE_WINDOW_US);
        let stall = u128::from(self.stall_us) * u128::from(window_us) / u128::from(self.window_us.max(1));
        Self { stall_us: u64::try_from(stall).unwrap_or(u64::MAX).min(window_us), window_us, ..self }
    }

    fn text(self) -> String {
        let word = match self.stalled {
            Stalled::Some => "some",
            Stalled::Full => "full",
        };
        format!("{word} {} {}", self.stall_us, self.window_us)
    }
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The threshold was crossed.
    Stalled,
    /// The cgroup is gone; no wake-up will follow.
    Gone,
}

/// One trigger.
#[derive(Debug)]
pub struct PsiTrigger {
    file: Watch,
    path: String,
    threshold: Threshold,
}

impl PsiTrigger {
    /// Sets a trigger on a pressure file of a cgroup (`memory.pressure`) or of the machine (`/proc/pressure/memory`). Needs a
    /// tokio runtime.
    ///
    /// # Errors
    /// If the file is not there, or the kernel refuses the trigger with and without the privileged window.
    pub fn set(path: &Path, threshold: Threshold) -> Result<Self, PsiError> {
        let name = path.display().to_string();
        let mut accepted = threshold;
        let file = match write(path, threshold) {
            Ok(file) => file,
            // EPERM or EINVAL, as the kernel's version has it.
            Err(PsiError::Refused { .. }) if threshold.unprivileged() != threshold => {
                accepted = threshold.unprivileged();
                write(path, accepted)?
            }
            Err(error) => return Err(error),
        };
        let file = Watch::new(file.into(), Interest::PRIORITY)
            .map_err(|source| PsiError::Watch { path: name.clone(), source })?;
        Ok(Self { file, path: name, threshold: accepted })
    }

    /// What the kernel accepted.
    #[must_use]
    pub const fn threshold(&self) -> Threshold {
        self.threshold
    }

    /// Waits for the next wake-up. May be cancelled.
    ///
    /// # Errors
    /// If the runtime cannot watch any more.
    pub async fn wait(&self) -> Result<Wake, PsiError> {
        let failed = |source| PsiError::Watch { path: self.path.clone(), source };
        self.file.woken().await.map_err(failed)?;
        // The runtime's own poll took the event; this one only tells a stall from the end of the cgroup.
        let mut fds = [PollFd::from_borrowed_fd(self.file.fd(), PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now)).map_err(|error| failed(error.into()))?;
        Ok(if fds[0].revents().contains(PollFlags::ERR) { Wake::Gone } else { Wake::Stalled })
    }
}

fn write(path: &Path, threshold: Threshold) -> Result<File, PsiError> {
    let name = || path.display().to_string();
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| PsiError::Open { path: name(), source })?;
    let trigger = threshold.text();
    // The kernel wants the terminating NUL in the same write.
    match file.write_all(format!("{trigger}\0").as_bytes()) {
        Ok(()) => Ok(file),
        Err(source) => Err(PsiError::Refused { path: name(), trigger, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_privilege_the_window_grows_and_the_share_stays() {
        let wanted = Threshold { stalled: Stalled::Some, stall_us: 70_000, window_us: 1_000_000 };
        let free = wanted.unprivileged();
        assert_eq!((free.stall_us, free.window_us), (140_000, 2_000_000));
        assert_eq!(free.unprivileged(), free);
        assert_eq!(free.text(), "some 140000 2000000");
        let odd = Threshold { stalled: Stalled::Full, stall_us: u64::MAX, window_us: 0 };
        assert_eq!(odd.unprivileged().stall_us, odd.unprivileged().window_us);
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_an_error_with_its_path() {
        let threshold = Threshold { stalled: Stalled::Some, stall_us: 1, window_us: FREE_WINDOW_US };
        let error = PsiTrigger::set(Path::new("/nonexistent/memory.pressure"), threshold).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/memory.pressure"), "{error}");
    }
}
