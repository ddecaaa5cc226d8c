//! Frees the memory of processes that have been killed, on the agent's own time.
//!
//! **Problem.** A killed process frees its memory itself, on its own share of the CPU: one that has used up its quota, or that waits
//! behind others, or for a disk, takes seconds for what another needs out of its way now. **Approach.** `process_mrelease` (Linux
//! 5.15, mm/oom_kill.c), as Android's lmkd and the kernel's own OOM reaper do: whoever calls it frees the anonymous memory of a
//! process that is dying.
//!
//! **Properties.** Only what is dying is touched: the kernel refuses (`EINVAL`) any other, also one whose memory a living process
//! shares. It comes after the kill and may allocate and wait. At most [`MOST`] processes: a fork bomb's are small.

#![expect(unsafe_code, reason = "process_mrelease(2) has no wrapper yet")]

use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// So many processes are helped.
const MOST: usize = 64;
/// Another thread of the process holds its address space: tried so often ...
const TRIES: usize = 10;
/// ... and so far apart.
const PAUSE: Duration = Duration::from_millis(2);

/// What became of the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Their memory was freed for them.
    pub released: u64,
    /// They were gone, or had freed it themselves.
    pub gone: u64,
    /// They could not be helped: the kernel cannot, they share their memory with somebody who lives, or they are too many.
    pub left: u64,
}

/// Frees the memory of those of these processes that are dying.
pub(super) fn reap(pids: &[i32]) -> Reaped {
    let mut reaped = Reaped { left: pids.len().saturating_sub(MOST) as u64, ..Reaped::default() };
    for pid in pids.iter().take(MOST).filter_map(|&raw| Pid::from_raw(raw)) {
        let released = pidfd_open(pid, PidfdFlags::empty()).and_then(|process| patiently(&process));
        match released {
            Ok(()) => reaped.released += 1,
            Err(Errno::SRCH) => reaped.gone += 1,
            Err(_) => reaped.left += 1,
        }
    }
    reaped
}

fn patiently(process: &impl AsFd) -> rustix::io::Result<()> {
    for _ in 1..TRIES {
        match release(process) {
            Err(Errno::AGAIN) => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
    release(process)
}

fn release(process: &impl AsFd) -> rustix::io::Result<()> {
    // SAFETY: takes a file descriptor, which is borrowed for the call, and flags, of which there are none; no memory of this process
    // is involved.
    let result = unsafe { libc::syscall(libc::SYS_process_mrelease, process.as_fd().as_raw_fd(), 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::NOSYS))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_lives_is_left_and_what_has_ended_is_gone() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert_eq!(reap(&[pid]), Reaped { left: 1, ..Reaped::default() });
        assert!(child.try_wait().unwrap().is_none(), "it lives on");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(reap(&[pid, 0]), Reaped { gone: 1, ..Reaped::default() });
        let many: Vec<i32> = std::iter::repeat_n(pid, MOST + 3).collect();
        assert_eq!(reap(&many), Reaped { gone: MOST as u64, left: 3, ..Reaped::default() });
    }
}
