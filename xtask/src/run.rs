//! `cargo xtask run`: the main job. A test node, the agent on it, sample pods, a live table.
//!
//! Problem: one command must show the whole thing on a machine where nothing is set up, and leave nothing behind,
//! however it ends.
//!
//! Approach: set-up parts, builds, then a native bed that belongs to this process, the agent inside it, and `beelet top`
//! on the terminal. Ctrl-C, SIGTERM and the end of `--for` lead through the same orderly way out; SIGKILL is the bed's
//! supervisor's business. `--vm` hands over to the VM; `--system` takes the machine's own containerd, and removes
//! the pods it started by removing their manifests.

use std::fs::{self, File};
use std::io::{IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::bed::{self, BedHandle, Info, Owner};
use crate::ctx::{self, Ctx};
use crate::{ebpf, images};

/// The agent's plain HTTP port.
const PORT: u16 = 10255;
const HEALTHY_WITHIN: Duration = Duration::from_secs(30);
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// What the pods of a bed may use together.
const KUBEPODS_KIB: u64 = 2560 * 1024;

/// Arguments of `cargo xtask run`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RunArgs {
    /// End after this time (`90s`, `5m`); without it, at Ctrl-C
    #[arg(long = "for", value_name = "TIME")]
    pub(crate) time: Option<String>,
    /// Folder of pod manifests instead of the samples
    #[arg(long, value_name = "DIR")]
    pub(crate) manifests: Option<PathBuf>,
    /// Run in the VM
    #[arg(long, conflicts_with = "system")]
    pub(crate) vm: bool,
    /// Use this machine's own containerd and cgroup v2
    #[arg(long)]
    pub(crate) system: bool,
    /// A kubelet configuration; what it does not set comes from the bed
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl RunArgs {
    /// Does it.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        if self.vm {
            return crate::vm::run_in_vm(ctx, &self);
        }
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        let time = self.time.as_deref().map(duration).transpose()?;
        let manifests = self.manifests.clone().unwrap_or_else(|| samples(ctx));
        ensure!(manifests.is_dir(), "there is no folder {}", manifests.display());
        let object = ebpf::build(ctx)?;
        let step = ctx::step("building the agent");
        let agent = build_agent(ctx, Profile::Debug)?;
        step.done();
        if self.system {
            return on_system(ctx, &self, &manifests, &agent, &object, time, &stop);
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        let step = ctx::step("starting a test node (native bed)");
        let name = format!("run-{}", std::process::id());
        let bed = BedHandle::start(ctx, &name, None, Owner(std::process::id()))?;
        step.done();
        let ended = on_bed(ctx, &self, &bed.info, &manifests, &agent, &object, time, &stop);
        let step = ctx::step("cleaning up");
        let stopped = bed.stop();
        step.done();
        ended.and(stopped)
    }
}

/// The folder of the sample pods.
pub(crate) fn samples(ctx: &Ctx) -> PathBuf {
    ctx.root.join("tests/manifests/sample")
}

/// How the agent is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quickly.
    Debug,
    /// As people run it: for whatever is measured of it.
    Release,
}

/// Builds the agent. Cargo decides whether it is up to date.
pub(crate) fn build_agent(ctx: &Ctx, profile: Profile) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    cargo.current_dir(&ctx.root).env("CARGO_TARGET_DIR", &ctx.target);
    cargo.args(["build", "-p", "beelet", "--bins"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    if !std::io::stderr().is_terminal() {
        cargo.arg("--quiet");
    }
    ctx::run(&mut cargo).context("the agent does not build")?;
    Ok(ctx.target.join(match profile {
        Profile::Debug => "debug/beelet",
        Profile::Release => "release/beelet",
    }))
}

#[expect(clippy::too_many_arguments, reason = "the parts of one run, used once")]
fn on_bed(
    ctx: &Ctx,
    args: &RunArgs,
    bed: &Info,
    manifests: &Path,
    agent: &Path,
    object: &Path,
    time: Option<Duration>,
    stop: &AtomicBool,
) -> Result<()> {
    let text = config(args, &bed_settings(bed)?)?;
    let config_file = bed.run_dir.join("kubelet.yaml");
    fs::write(&config_file, &text)?;
    let folder = if args.manifests.is_some() { manifests.canonicalize()? } else { bed.run_dir.join("manifests") };
    if args.manifests.is_none() {
        copy_manifests(manifests, &folder)?;
    }
    let log = ctx.log_file(&format!("agent-{}", bed.name))?;
    let mut command = bed.inside("agent", agent)?;
    command.args(["run", "--manifests"]).arg(&folder).arg("--config").arg(&config_file);
    command.arg("--root-dir").arg(&bed.root_dir).arg("--bpf-object").arg(object).args(["--node-ip", &bed.node_ip]);
    let server = SocketAddr::new(bed.node_ip.parse()?, port_of(&text));
    watch_agent(&mut command, bed.inside("table", agent)?, &log, server, &folder, time, stop, |_| Ok(()))
}

fn on_system(
    ctx: &Ctx,
    args: &RunArgs,
    manifests: &Path,
    agent: &Path,
    object: &Path,
    time: Option<Duration>,
    stop: &AtomicBool,
) -> Result<()> {
    const SOCKET: &str = "/run/containerd/containerd.sock";
    ensure!(rustix::process::geteuid().is_root(), "--system needs root");
    ensure!(
        Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        "--system needs cgroup v2 at /sys/fs/cgroup; this machine has v1 or hybrid: leave --system away, or take --vm"
    );
    ensure!(Path::new(SOCKET).exists(), "--system needs this machine's containerd at {SOCKET}: start it first");
    let ctr = ctx::which("ctr").context("ctr is not on PATH; it comes with containerd")?;
    for archive in images::all(ctx)? {
        ctx::quiet(Command::new(&ctr).args(["-n", "k8s.io", "images", "import"]).arg(archive))?;
    }
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("manifests");
    copy_manifests(manifests, &folder)?;
    let settings = [
        ("address", "127.0.0.1".to_owned()),
        ("readOnlyPort", PORT.to_string()),
        ("containerRuntimeEndpoint", format!("unix://{SOCKET}")),
        ("evictionHard", "\n  memory.available: 100Mi".to_owned()),
    ];
    let text = config(args, &settings)?;
    let config_file = dir.path().join("kubelet.yaml");
    fs::write(&config_file, &text)?;
    let mut command = Command::new(agent);
    command.args(["run", "--manifests"]).arg(&folder).arg("--config").arg(&config_file);
    command.arg("--root-dir").arg(dir.path().join("kubelet")).arg("--bpf-object").arg(object);
    let server: SocketAddr = ([127, 0, 0, 1], port_of(&text)).into();
    // Here nobody kills a cgroup at the end: the agent itself must take its pods away.
    let table = Command::new(agent);
    watch_agent(&mut command, table, &ctx.log_file("agent-system")?, server, &folder, time, stop, |server| {
        for entry in fs::read_dir(&folder)?.flatten() {
            fs::remove_file(entry.path())?;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while !get(server, "/pods").is_ok_and(|answer| answer.contains("\"items\":[]")) {
            ensure!(Instant::now() < deadline, "the pods did not go within 60 s; `ctr -n k8s.io tasks ls` shows them");
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    })
}

/// Starts the agent and the table, waits for the end, and stops both.
#[expect(clippy::too_many_arguments, reason = "the parts of one run, used by two callers")]
fn watch_agent(
    command: &mut Command,
    mut table: Command,
    log: &Path,
    server: SocketAddr,
    folder: &Path,
    time: Option<Duration>,
    stop: &AtomicBool,
    before_stop: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let step = ctx::step("starting the agent");
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    // A process group of its own: Ctrl-C must not reach it before it has been told in order.
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0).env_remove("LD_LIBRARY_PATH");
    let mut child = command.spawn().with_context(|| format!("cannot start {}", ctx::shown(command)))?;
    let healthy = wait_healthy(&mut child, server, log, stop);
    let ended = healthy.and_then(|()| {
        step.done();
        ctx::note(format!("metrics:   curl http://{server}/metrics"));
        ctx::note(format!("pods:      curl http://{server}/pods"));
        ctx::note(format!("manifests: {} (edit them, add some)", folder.display()));
        ctx::note(format!("the agent's log: {}", log.display()));
        table.args(["top", "--server", &format!("http://{server}")]).env_remove("LD_LIBRARY_PATH");
        let mut table = table.spawn().context("cannot start `beelet top`")?;
        let ended = wait(&mut child, &mut table, log, time, stop);
        end(&mut table, Duration::from_secs(2)).ok();
        ended.and_then(|()| before_stop(server))
    });
    let status = end(&mut child, STOPPED_WITHIN);
    ended?;
    let status = status?;
    ensure!(status.success(), "the agent ended with {status}:\n{}", tail(log));
    Ok(())
}

/// Waits for the end of the time, for a signal, or until the table is left.
fn wait(agent: &mut Child, table: &mut Child, log: &Path, time: Option<Duration>, stop: &AtomicBool) -> Result<()> {
    let started = Instant::now();
    let mut table_runs = true;
    while !stop.load(Ordering::Relaxed) && time.is_none_or(|time| started.elapsed() < time) {
        if let Some(status) = agent.try_wait()? {
            bail!("the agent ended by itself ({status}):\n{}", tail(log));
        }
        if table_runs && let Some(status) = table.try_wait()? {
            table_runs = false;
            if status.success() && std::io::stdout().is_terminal() {
                return Ok(());
            }
            ctx::note(format!("`beelet top` ended ({status}); the node goes on"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn wait_healthy(agent: &mut Child, server: SocketAddr, log: &Path, stop: &AtomicBool) -> Result<()> {
    let deadline = Instant::now() + HEALTHY_WITHIN;
    loop {
        if get(server, "/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
            return Ok(());
        }
        if let Some(status) = agent.try_wait()? {
            bail!("the agent ended at once ({status}):\n{}", tail(log));
        }
        if Instant::now() > deadline {
            bail!("the agent does not answer at http://{server}/healthz:\n{}", tail(log));
        }
        if stop.load(Ordering::Relaxed) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Asks a child to end, and kills it when it does not.
fn end(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child without a pid")?;
    kill_process(pid, Signal::TERM).ok();
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            child.kill().ok();
            return Ok(child.wait()?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A plain GET; the whole answer, head included.
fn get(server: SocketAddr, path: &str) -> Result<String> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn copy_manifests(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
            && let Some(name) = path.file_name()
        {
            fs::copy(&path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// What the bed says about the node: keys and values of a KubeletConfiguration.
fn bed_settings(bed: &Info) -> Result<Vec<(&'static str, String)>> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let total: u64 = total.context("/proc/meminfo has no MemTotal")?.trim().parse()?;
    let mut settings = vec![
        ("address", bed.node_ip.clone()),
        ("readOnlyPort", PORT.to_string()),
        ("containerRuntimeEndpoint", format!("unix://{}", bed.containerd_socket.display())),
        ("cgroupRoot", bed.cgroup_root.clone()),
        ("cgroupDriver", "cgroupfs".to_owned()),
        ("enforceNodeAllocatable", "[pods]".to_owned()),
        ("evictionHard", "\n  memory.available: 100Mi".to_owned()),
    ];
    // The rest of the machine belongs to others.
    if let Some(reserved) = total.checked_sub(KUBEPODS_KIB).filter(|reserved| *reserved > 0) {
        settings.push(("systemReserved", format!("\n  memory: {reserved}Ki")));
    }
    if bed::is_hybrid()? {
        settings.push(("failCgroupV1", "false".to_owned()));
    }
    Ok(settings)
}

/// The configuration file: the user's, completed with what the bed says, or the bed's alone.
fn config(args: &RunArgs, settings: &[(&str, String)]) -> Result<String> {
    let own = match &args.config {
        Some(file) => fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        None => "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n".to_owned(),
    };
    Ok(complete(&own, settings))
}

/// Adds to the KubeletConfiguration in `text` the settings that it lacks. Those that isolate the bed it may not set.
fn complete(text: &str, settings: &[(&str, String)]) -> String {
    const ISOLATION: [&str; 2] = ["containerRuntimeEndpoint", "cgroupRoot"];
    let mut done = false;
    let complete = |document: &str| {
        if done || !document.lines().any(|line| line.trim_end() == "kind: KubeletConfiguration") {
            return document.to_owned();
        }
        done = true;
        let has = |key: &str| document.lines().any(|line| line.split(':').next() == Some(key));
        let isolates = |key: &str| ISOLATION.contains(&key) && settings.iter().any(|(name, _)| *name == key);
        let mut out = String::new();
        for line in document.lines().filter(|line| !line.split(':').next().is_some_and(isolates)) {
            out += line;
            out.push('\n');
        }
        for (key, value) in settings.iter().filter(|(key, _)| isolates(key) || !has(key)) {
            let blank = if value.starts_with('\n') { "" } else { " " };
            out += &format!("{key}:{blank}{value}\n");
        }
        out
    };
    text.split("\n---\n").map(complete).collect::<Vec<_>>().join("---\n")
}

fn port_of(config: &str) -> u16 {
    let line = config.lines().find_map(|line| line.strip_prefix("readOnlyPort:"));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(PORT)
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("{}\n(the whole log: {})", lines[lines.len().saturating_sub(25)..].join("\n"), log.display())
}

/// `90s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("`{text}` is no time: want 90s, 5m or 1h");
    let unit = text.chars().last().with_context(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => bail!(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().with_context(wrong)?;
    Ok(Duration::from_secs(number * factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_completed_but_not_overruled() {
        let own =
            "apiVersion: x\nkind: KubeletConfiguration\ncgroupRoot: /\nreadOnlyPort: 7\n---\nkind: EnforcementPolicy\n";
        let settings =
            [("cgroupRoot", "/bed".to_owned()), ("readOnlyPort", "1".to_owned()), ("address", "a".to_owned())];
        let text = complete(own, &settings);
        assert!(text.contains("cgroupRoot: /bed\n") && !text.contains("cgroupRoot: /\n"), "{text}");
        assert!(text.contains("readOnlyPort: 7\n") && !text.contains("readOnlyPort: 1\n"), "{text}");
        assert!(text.contains("address: a\n---\nkind: EnforcementPolicy\n"), "{text}");
        assert_eq!(port_of(&text), 7);
    }

    #[test]
    fn times_are_read() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("2m").unwrap(), Duration::from_secs(120));
        assert!(duration("90").is_err() && duration("").is_err() && duration("é").is_err());
    }
}
