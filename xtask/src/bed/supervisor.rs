//! The process that a bed belongs to, and the handle that its owner has.
//!
//! `start` runs this same program as `xtask bed supervise`, in a session of its own so that Ctrl-C in the terminal does
//! not reach it. It writes `ready` when the bed is up, or the error. It then sleeps in poll(2) on the owner's pidfd, and
//! wakes for SIGTERM. Its stdin is a pipe from the starter: if the starter dies before the owner could be watched,
//! that is seen as well.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::{Info, Lock, RUN, cgroups, check_name, net, runtime, sweep, take_down, take_down_by_name};
use crate::ctx::Ctx;
use crate::{images, setup};

const UP_WITHIN: Duration = Duration::from_secs(120);
const DOWN_WITHIN: Duration = Duration::from_secs(60);

/// Whose end is the bed's end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner(pub(crate) u32);

/// A bed that this process started. Dropping it does not take it down; the owner's end does.
#[derive(Debug)]
pub(crate) struct BedHandle {
    pub(crate) info: Info,
}

impl BedHandle {
    /// Starts a bed and waits until it is up. `dir` is for its data; without it, a folder in the cache that goes with the bed.
    pub(crate) fn start(ctx: &Ctx, name: &str, dir: Option<&Path>, owner: Owner) -> Result<Self> {
        check_name(name)?;
        if !rustix::process::geteuid().is_root() {
            bail!("a native bed needs root (network namespaces, cgroups, mounts): use sudo, or `--vm`");
        }
        sweep()?;
        // Made here, in view of the user, not in the supervisor.
        setup::native(ctx)?;
        images::all(ctx)?;
        let (log_dir, keep) = match dir {
            Some(dir) => (dir.join("logs"), true),
            None => (ctx.cache.join("logs").join(name), false),
        };
        let dir = match dir {
            Some(dir) => std::path::absolute(dir)?,
            None => ctx.cache.join("beds").join(name),
        };
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(&log_dir)?;
        let log_path = log_dir.join("supervisor.log");
        let log = File::create(&log_path)?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["bed", "supervise", "--name", name, "--dir"]).arg(&dir).arg("--log-dir").arg(&log_dir);
        command.args(["--owner", &owner.0.to_string()]);
        if keep {
            command.arg("--keep-logs");
        }
        let mut child = command
            .env("CARGO_MANIFEST_DIR", ctx.root.join("xtask"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start the bed's supervisor")?;
        let deadline = Instant::now() + UP_WITHIN;
        let ready = Path::new(RUN).join(name).join("ready");
        loop {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(&log_path).unwrap_or_default();
                bail!("the bed `{name}` did not come up ({status}):\n{said}");
            }
            if fs::read_to_string(&ready).is_ok_and(|pid| pid == child.id().to_string()) {
                return Ok(Self { info: Info::read(name)? });
            }
            if Instant::now() > deadline {
                child.kill().ok();
                bail!("the bed `{name}` was not up within {UP_WITHIN:?}; see {}", log_path.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes the bed down and waits for it.
    pub(crate) fn stop(self) -> Result<()> {
        down(&self.info.name)
    }
}

/// Takes a bed down by name and waits until nothing is left. A bed that is not there is down already.
pub(crate) fn down(name: &str) -> Result<()> {
    check_name(name)?;
    let deadline = Instant::now() + DOWN_WITHIN;
    let mut asked = false;
    loop {
        if let Some(lock) = Lock::take(name)? {
            if Path::new(RUN).join(name).exists() {
                take_down_by_name(name)?;
            }
            lock.retire();
            return Ok(());
        }
        if !asked && let Ok(info) = Info::read(name) {
            let pid = i32::try_from(info.supervisor_pid).ok().and_then(Pid::from_raw);
            kill_process(pid.context("the bed names no supervisor")?, Signal::TERM).ok();
            asked = true;
        }
        if Instant::now() > deadline {
            bail!("the bed `{name}` was not down within {DOWN_WITHIN:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the supervisor is told.
#[derive(Debug, clap::Args)]
pub(crate) struct SuperviseArgs {
    #[arg(long)]
    name: String,
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    log_dir: PathBuf,
    #[arg(long)]
    owner: u32,
    #[arg(long)]
    keep_logs: bool,
}

/// The supervisor's life.
pub(crate) fn supervise(ctx: &Ctx, args: &SuperviseArgs) -> Result<()> {
    rustix::process::setsid().ok();
    // Shims and their containers become this process's children when containerd ends: not every process 1 reaps.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).ok();
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&asked))?;
    }
    let owner = watch(args.owner)?;
    let Some(lock) = Lock::take(&args.name)? else { bail!("there is a bed `{}` already", args.name) };
    if Path::new(RUN).join(&args.name).exists() {
        take_down_by_name(&args.name)?;
    }
    let mut info = claim(args)?;
    let up = bring_up(ctx, &mut info);
    let done = match &up {
        Ok(()) => {
            println!("up");
            wait(&owner, &asked)
        }
        Err(_) => Ok(()),
    };
    println!("going down");
    let down = take_down(&info);
    reap();
    lock.retire();
    up.and(done).and(down)
}

/// A descriptor that becomes readable when the process ends.
fn watch(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("the owner's pid is no pid")?;
    pidfd_open(pid, PidfdFlags::empty()).with_context(|| format!("the owner {} is not there", pid.as_raw_nonzero()))
}

/// Creates the bed's folder with an index that no other bed has.
fn claim(args: &SuperviseArgs) -> Result<Info> {
    let lock = File::create(Path::new(RUN).join("index.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    let taken: Vec<u8> =
        super::names().iter().filter_map(|name| Info::read(name).ok()).map(|info| info.index).collect();
    let index = (1..=250).find(|index| !taken.contains(index)).context("250 beds are up: no index is left")?;
    let mut info = Info::new(&args.name, index, &args.dir);
    info.log_dir.clone_from(&args.log_dir);
    info.containerd_log = args.log_dir.join("containerd.log");
    info.keep_logs = args.keep_logs;
    info.owner_pid = args.owner;
    fs::create_dir_all(&info.run_dir)?;
    info.write()?;
    Ok(info)
}

fn bring_up(ctx: &Ctx, info: &mut Info) -> Result<()> {
    let native = setup::native(ctx)?;
    info.containerd = native.containerd;
    info.ctr = native.ctr;
    info.runc = native.runc;
    info.cni_bin_dir = native.cni_bin;
    fs::create_dir_all(&info.root_dir)?;
    info.write()?;
    net::create(info)?;
    for group in ["", "/runtime", "/agent"] {
        cgroups::create(&format!("{}{group}", info.cgroup_root))?;
    }
    runtime::configure(info)?;
    info.containerd_pid = runtime::start(info)?.id();
    runtime::import(info, &images::all(ctx)?)?;
    info.images = [images::PAUSE, images::BUSYBOX, images::WORKLOAD].map(str::to_owned).to_vec();
    info.write()?;
    fs::write(info.run_dir.join("ready"), std::process::id().to_string())?;
    Ok(())
}

/// Sleeps until the owner has ended or somebody asked.
fn wait(owner: &OwnedFd, asked: &AtomicBool) -> Result<()> {
    while !asked.load(Ordering::Relaxed) {
        reap();
        let mut fds = [PollFd::new(owner, PollFlags::IN)];
        // A signal interrupts the wait; the time limit covers one that came just before it.
        match poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => {
                println!("the owner has ended");
                return Ok(());
            }
            Err(error) => return Err(error).context("cannot wait for the owner"),
        }
    }
    println!("asked to end");
    Ok(())
}

/// Collects the ends of children, wanted or adopted.
fn reap() {
    while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
        println!("process {pid} ended: {status:?}");
    }
}

/// Stops or starts the bed's containerd, for tests of a runtime that goes away. Pods go on.
pub(crate) fn restart_runtime(name: &str, stop: bool, start: bool, signal: Signal) -> Result<()> {
    let mut info = Info::read(name)?;
    if stop {
        let pid =
            i32::try_from(info.containerd_pid).ok().and_then(Pid::from_raw).context("no containerd was started")?;
        if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
            // The number may have been given to another process since.
            if !cgroups::processes(&format!("{}/runtime", info.cgroup_root))?.contains(&pid.as_raw_nonzero().get()) {
                bail!("containerd ({}) is not running", info.containerd_pid);
            }
            pidfd_send_signal(&pidfd, signal)?;
            poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&Timespec { tv_sec: 20, tv_nsec: 0 }))?;
        }
    }
    if start {
        info.containerd_pid = runtime::start(&info)?.id();
        info.write()?;
    }
    Ok(())
}
