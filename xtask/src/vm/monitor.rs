//! The process that a VM lives under.
//!
//! Problem: a VM started in the background must end when whoever it was started for ends, even by `kill -9`, and when
//! the command that started it has long gone.
//!
//! Approach: two small processes of this same program. The *monitor* (`xtask vm monitor`) has a session of its own,
//! starts QEMU and waits for whichever ends first: QEMU or the owner. QEMU is started through `xtask vm tied`, which
//! asks the kernel to kill it when the monitor dies, and then becomes QEMU. So killing the monitor ends the VM, and
//! nothing has to run for that.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// This program, also when its file has been replaced by a newer build.
pub(super) const SELF: &str = "/proc/self/exe";

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    pid: i32,
    /// In clock ticks since boot.
    started: u64,
}

impl Process {
    /// The process with that number, if there is one now.
    pub(super) fn now(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything; after it come the state and the fields from 4 on.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let dead = matches!(*fields.first()?, "Z" | "X");
        let started = fields.get(19)?.parse().ok()?;
        (!dead).then_some(Self { pid: pid.try_into().ok()?, started })
    }

    /// Whether it still runs.
    pub(super) fn is_alive(self) -> bool {
        self.pid.try_into().ok().and_then(Self::now) == Some(self)
    }

    /// A descriptor that becomes readable when it ends; none if it has ended.
    fn watch(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(fd)
    }

    /// Kills it and waits until it is gone.
    pub(super) fn kill(self, limit: Duration) -> Result<()> {
        let Some(fd) = self.watch() else { return Ok(()) };
        let _ = pidfd_send_signal(&fd, Signal::KILL);
        self.wait_gone(limit)
    }

    /// Waits until it is gone.
    pub(super) fn wait_gone(self, limit: Duration) -> Result<()> {
        match self.watch() {
            Some(fd) if wait_any(&[&fd], Some(limit))?.is_none() => bail!("process {} does not end", self.pid),
            _ => Ok(()),
        }
    }
}

/// Waits until one of the descriptors is readable; returns which, or nothing after `limit`.
fn wait_any(fds: &[&OwnedFd], limit: Option<Duration>) -> Result<Option<usize>> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(Timespec::try_from).transpose()?;
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(polled.iter().position(|fd| !fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// What the monitor is told, in `monitor.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// QEMU's command line.
    pub(super) command: Vec<String>,
    /// The VM ends with this process; without it, when it is told to.
    pub(super) owner: Option<Process>,
}

/// Starts a monitor in the background. `dir` gets the order, the log of QEMU and `qemu.json`, the emulator's process.
pub(super) fn start(dir: &Path, order: &Order) -> Result<Process> {
    fs::write(dir.join("monitor.json"), serde_json::to_vec(order)?)?;
    let log = File::create(dir.join("qemu.log"))?;
    let child = Command::new(SELF)
        .args(["vm", "monitor"])
        .arg(dir)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start the VM's monitor")?;
    Process::now(child.id()).context("the VM's monitor ended at once")
}

/// `xtask vm monitor DIR`: starts QEMU, and ends it with its owner.
pub(super) fn run(dir: &Path) -> Result<()> {
    // Ctrl-C in the terminal is for the owner, who decides what becomes of the VM.
    let _ = rustix::process::setsid();
    let order: Order = serde_json::from_slice(&fs::read(dir.join("monitor.json"))?)?;
    let mut qemu = Command::new(SELF)
        .args(["vm", "tied", &std::process::id().to_string(), "--"])
        .args(&order.command)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start QEMU")?;
    let emulator = Process::now(qemu.id());
    fs::write(dir.join("qemu.json"), serde_json::to_vec(&emulator)?)?;
    let Some(end_of_qemu) = emulator.and_then(Process::watch) else {
        bail!("QEMU ended at once: {}", qemu.wait()?);
    };
    let ended = match order.owner.map(Process::watch) {
        None => wait_any(&[&end_of_qemu], None)?,
        Some(Some(end_of_owner)) => wait_any(&[&end_of_qemu, &end_of_owner], None)?,
        Some(None) => Some(1),
    };
    if ended == Some(1) {
        eprintln!("monitor: the owner is gone, so the VM ends");
        qemu.kill()?;
    }
    eprintln!("monitor: QEMU: {}", qemu.wait()?);
    Ok(())
}

/// `xtask vm tied PARENT -- COMMAND`: becomes the command, which the kernel kills when its parent dies.
pub(super) fn tied(parent: i32, command: &[String]) -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the kernel was asked.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(parent) {
        bail!("the monitor is gone");
    }
    let Some((program, args)) = command.split_first() else { bail!("no command") };
    Err(Command::new(program).args(args).exec()).with_context(|| format!("cannot start {program}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start() {
        let me = Process::now(std::process::id()).unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }

    #[test]
    fn a_killed_process_is_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::now(child.id()).unwrap();
        assert!(process.wait_gone(Duration::from_millis(50)).is_err());
        process.kill(Duration::from_secs(5)).unwrap();
        assert!(!process.is_alive());
        assert!(child.wait().is_ok());
    }
}
