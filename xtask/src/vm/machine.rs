//! One VM: start it, run commands in it, end it.
//!
//! A VM has a name and a folder `target/vm/NAME` with its state (ports, processes), its console and QEMU's log. The
//! folder is enough for another process to find it again. QEMU runs under a [monitor](super::monitor).
//!
//! Emulation only (TCG): it behaves the same on every host, with or without KVM. It is about twenty times slower than
//! the host, so deadlines in the VM are scaled and nothing is timed there.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::monitor::{self, Order, Process};
use super::parts::Parts;
use super::wire;
use crate::ctx::{self, Ctx};

/// Where the command agent listens in the guest.
pub(super) const AGENT_PORT: u16 = 1;
/// Where beelet's server listens in the guest; always forwarded.
pub(crate) const SERVER_PORT: u16 = 10255;
/// The kernel of a VM for which none is asked.
pub(crate) const DEFAULT_KERNEL: &str = "6.12";
/// How long a process may take to die of SIGKILL.
const DEATH: Duration = Duration::from_secs(10);

/// A port of this machine's loopback that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Forward {
    /// 0 asks for a free one.
    pub(crate) host: u16,
    pub(crate) guest: u16,
}

impl std::str::FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, guest) = text.split_once(':').ok_or("want HOST:GUEST")?;
        let port = |text: &str| text.parse::<u16>().map_err(|error| format!("`{text}`: {error}"));
        Ok(Self { host: port(host)?, guest: port(guest)? })
    }
}

/// A file that is in the guest from the start.
#[derive(Debug, Clone)]
pub(crate) struct Payload {
    pub(crate) from: PathBuf,
    /// Absolute path in the guest.
    pub(crate) to: String,
    pub(crate) mode: u32,
}

/// What kind of VM is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) name: String,
    /// As QEMU takes it: `2G`.
    pub(crate) memory: String,
    pub(crate) cpus: u32,
    pub(crate) kernel: String,
    pub(crate) forwards: Vec<Forward>,
    /// The VM ends with this process.
    pub(crate) owner: Option<u32>,
    pub(crate) payload: Vec<Payload>,
    /// How long it may take until it is ready.
    pub(crate) limit: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "default".into(),
            memory: "2G".into(),
            cpus: 2,
            kernel: DEFAULT_KERNEL.into(),
            forwards: Vec::new(),
            owner: None,
            payload: Vec::new(),
            limit: Duration::from_secs(180),
        }
    }
}

/// What `state.json` keeps of a running VM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    name: String,
    kernel: String,
    monitor: Process,
    agent: u16,
    pub(crate) forwards: Vec<Forward>,
    /// From start to ready.
    pub(crate) boot_ms: u64,
}

/// How a command in the guest ended, and what it said.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running VM.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    dir: PathBuf,
    pub(crate) state: State,
}

impl Vm {
    /// Starts a VM and waits until containerd and the command agent in it answer.
    pub(crate) fn up(ctx: &Ctx, options: &Options) -> Result<Self> {
        let parts = Parts::ready(ctx, &options.kernel)?;
        let owner = match options.owner {
            Some(pid) => Some(Process::now(pid).with_context(|| format!("the owner {pid} does not run"))?),
            None => None,
        };
        let dir = folder(ctx, &options.name)?;
        let _lock = ctx.lock(&format!("vm-{}", options.name))?;
        if let Ok(vm) = Self::at(&dir)
            && vm.state.monitor.is_alive()
        {
            bail!("the VM `{0}` runs already: `cargo xtask vm down --name {0}` ends it", options.name);
        }
        // Another process may take a port between our looking for it and QEMU's binding it.
        for attempt in 1.. {
            match Self::start(&dir, &parts, options, owner) {
                Err(error) if attempt < 3 && log_of(&dir).contains("host forwarding rule") => {
                    ctx::note(format!("a port was taken meanwhile, trying others ({error})"));
                }
                result => return result,
            }
        }
        unreachable!("the third attempt returns")
    }

    fn start(dir: &Path, parts: &Parts, options: &Options, owner: Option<Process>) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        write_payload(&dir.join("payload.tar"), &options.payload)?;

        let mut wanted = vec![Forward { host: 0, guest: AGENT_PORT }, Forward { host: 0, guest: SERVER_PORT }];
        wanted.retain(|fixed| options.forwards.iter().all(|own| own.guest != fixed.guest));
        wanted.extend(&options.forwards);
        let mut forwards = with_free_ports(&wanted)?;
        let command = command_line(dir, parts, options, &forwards);
        let agent = forwards.iter().position(|f| f.guest == AGENT_PORT).map(|at| forwards.remove(at).host);
        let started = Instant::now();
        let monitor = monitor::start(dir, &Order { command, owner })?;
        let mut state = State {
            name: options.name.clone(),
            kernel: options.kernel.clone(),
            monitor,
            agent: agent.context("the agent's port is always forwarded")?,
            forwards,
            boot_ms: 0,
        };
        // Written before it is ready, so that `vm down` finds one that hangs.
        fs::write(dir.join("state.json"), serde_json::to_vec_pretty(&state)?)?;
        if let Err(error) = wait_ready(dir, monitor, options.limit) {
            let _ = monitor.kill(DEATH);
            return Err(error);
        }
        state.boot_ms = u64::try_from(started.elapsed().as_millis())?;
        fs::write(dir.join("state.json"), serde_json::to_vec_pretty(&state)?)?;
        let vm = Self { dir: dir.to_path_buf(), state };
        vm.exec(&["true"])?;
        Ok(vm)
    }

    /// The running VM of that name.
    pub(crate) fn find(ctx: &Ctx, name: &str) -> Result<Self> {
        let dir = folder(ctx, name)?;
        let vm = Self::at(&dir).ok().filter(|vm| vm.state.monitor.is_alive());
        vm.with_context(|| format!("no VM `{name}` runs: `cargo xtask vm up --name {name}` starts one"))
    }

    fn at(dir: &Path) -> Result<Self> {
        let state = serde_json::from_slice(&fs::read(dir.join("state.json"))?)?;
        Ok(Self { dir: dir.to_path_buf(), state })
    }

    /// Ends the VMs of this checkout whose owner or QEMU has gone, by removing what is left of them.
    pub(crate) fn sweep(ctx: &Ctx) {
        let Ok(folders) = fs::read_dir(ctx.target.join("vm")) else { return };
        for entry in folders.flatten() {
            let vm = Self::at(&entry.path());
            if vm.is_ok_and(|vm| !vm.state.monitor.is_alive()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Runs a command and returns what it said; an error unless it exits with 0. At most a minute.
    pub(crate) fn exec(&self, argv: &[&str]) -> Result<Ended> {
        let ended = self.try_exec(argv, None, Duration::from_secs(60))?;
        if ended.code != 0 {
            bail!("in the VM: `{}` ended with {}\n{}{}", argv.join(" "), ended.code, ended.stdout, ended.stderr);
        }
        Ok(ended)
    }

    /// Runs a command with this input and returns how it ended.
    pub(crate) fn try_exec(
        &self,
        argv: &[&str],
        stdin: Option<Box<dyn Read + Send>>,
        limit: Duration,
    ) -> Result<Ended> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let argv: Vec<String> = argv.iter().map(|word| (*word).to_owned()).collect();
        let code = self.stream(&argv, stdin, &mut stdout, &mut stderr, limit)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ended { code, stdout: text(stdout), stderr: text(stderr) })
    }

    /// Runs a command with its output going to the writers as it comes; returns the exit code.
    pub(crate) fn stream(
        &self,
        argv: &[String],
        stdin: Option<Box<dyn Read + Send>>,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
        limit: Duration,
    ) -> Result<i32> {
        wire::run(loopback(self.state.agent), argv, stdin, stdout, stderr, limit)
    }

    /// Copies a file to that path of the guest, or a folder's content into that folder.
    pub(crate) fn push(&self, local: &Path, remote: &str) -> Result<()> {
        ensure!(remote.starts_with('/'), "`{remote}` is not an absolute path");
        let (reader, writer) = io::pipe()?;
        let (local_owned, remote_owned) = (local.to_path_buf(), remote.trim_matches('/').to_owned());
        let writing = std::thread::spawn(move || -> Result<()> {
            let mut tar = tar::Builder::new(BufWriter::new(writer));
            tar.follow_symlinks(false);
            // The guest's tar knows no holes.
            tar.sparse(false);
            if local_owned.is_dir() {
                tar.append_dir_all(remote_owned, &local_owned)?;
            } else {
                tar.append_path_with_name(&local_owned, remote_owned)?;
            }
            tar.into_inner()?.flush()?;
            Ok(())
        });
        let limit = Duration::from_secs(300);
        let ended = self.try_exec(&["tar", "-x", "-o", "-C", "/"], Some(Box::new(reader)), limit)?;
        let written = writing.join().map_err(|_| anyhow::anyhow!("the copying thread panicked"))?;
        // Its refusal first: it is what breaks the pipe that is read from here.
        ensure!(ended.code == 0, "cannot copy {} into the VM: {}", local.display(), ended.stderr);
        written.with_context(|| format!("cannot read {}", local.display()))
    }

    /// Its name, for the command line.
    pub(crate) fn name(&self) -> &str {
        &self.state.name
    }

    /// Its kernel, as it was asked for.
    pub(crate) fn kernel(&self) -> &str {
        &self.state.kernel
    }

    /// The host's port that leads to that port of the guest.
    pub(crate) fn port(&self, guest: u16) -> Result<u16> {
        let forward = self.state.forwards.iter().find(|forward| forward.guest == guest);
        forward.map(|forward| forward.host).with_context(|| format!("port {guest} of the VM is not forwarded"))
    }

    /// Ends it at once. Its disk was a snapshot: nothing of it stays.
    pub(crate) fn down(&self) -> Result<()> {
        self.state.monitor.kill(DEATH)?;
        let emulator: Option<Process> =
            fs::read(self.dir.join("qemu.json")).ok().and_then(|json| serde_json::from_slice(&json).ok()).flatten();
        if let Some(emulator) = emulator {
            emulator.wait_gone(DEATH)?;
        }
        fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

fn folder(ctx: &Ctx, name: &str) -> Result<PathBuf> {
    let fits = !name.is_empty() && name.len() <= 32 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    ensure!(fits, "`{name}` is no name for a VM: letters, digits and dashes, at most 32");
    Ok(ctx.target.join("vm").join(name))
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The same forwards, with free ports where any would do.
fn with_free_ports(wanted: &[Forward]) -> Result<Vec<Forward>> {
    // All are held until the last is known, so that they differ.
    let mut held = Vec::new();
    let mut forwards = Vec::new();
    for forward in wanted {
        let listener = TcpListener::bind(loopback(forward.host))
            .with_context(|| format!("port {} of this machine is taken", forward.host))?;
        forwards.push(Forward { host: listener.local_addr()?.port(), guest: forward.guest });
        held.push(listener);
    }
    Ok(forwards)
}

fn command_line(dir: &Path, parts: &Parts, options: &Options, forwards: &[Forward]) -> Vec<String> {
    let mut command = parts.qemu();
    let mut add = |words: &[&str]| command.extend(words.iter().map(|word| (*word).to_owned()));
    add(&["-name", &options.name, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    add(&["-M", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,la57=off"]);
    add(&["-m", &options.memory, "-smp", &options.cpus.to_string()]);
    add(&["-serial", &format!("file:{}", dir.join("console.log").display())]);
    add(&["-kernel", &parts.vmlinuz().display().to_string(), "-initrd", &parts.initrd().display().to_string()]);
    add(&["-append", "console=ttyS0 quiet mitigations=off nokaslr psi=1 apparmor=0 audit=0 panic=-1"]);
    let disks =
        [(parts.root(), "snapshot=on"), (parts.modules(), "readonly=on"), (dir.join("payload.tar"), "readonly=on")];
    for (number, (file, how)) in disks.iter().enumerate() {
        // A comma in a path is doubled in QEMU's option syntax.
        let file = file.display().to_string().replace(',', ",,");
        add(&["-drive", &format!("file={file},format=raw,if=none,id=disk{number},cache=unsafe,{how}")]);
        add(&["-device", &format!("virtio-blk-pci,drive=disk{number}")]);
    }
    let mut net = "user,id=net0".to_owned();
    for Forward { host, guest } in forwards {
        net += &format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}");
    }
    add(&["-netdev", &net, "-device", "virtio-net-pci,netdev=net0,romfile="]);
    command
}

/// Writes the archive that the guest unpacks at boot: this program as its command agent, and what the caller adds.
fn write_payload(file: &Path, payload: &[Payload]) -> Result<()> {
    let agent = Payload { from: monitor::SELF.into(), to: "/usr/local/bin/beelet-guest".into(), mode: 0o755 };
    let mut tar = tar::Builder::new(BufWriter::new(File::create(file)?));
    for Payload { from, to, mode } in std::iter::once(&agent).chain(payload) {
        let mut source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
        let mut header = tar::Header::new_gnu();
        header.set_size(source.metadata()?.len());
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, to.trim_start_matches('/'), &mut source)
            .with_context(|| format!("cannot read {}", from.display()))?;
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

fn wait_ready(dir: &Path, monitor: Process, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    loop {
        let console = console_of(dir);
        let said = |text: &str| console.lines().any(|line| line.contains("beelet-vm: ") && line.contains(text));
        if said("beelet-vm: ready") {
            return Ok(());
        }
        let failed = if said("FAILED") {
            "the guest gave up"
        } else if !monitor.is_alive() {
            "QEMU ended"
        } else if Instant::now() > deadline {
            "time is up"
        } else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let tail: Vec<&str> = console.lines().rev().take(20).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        bail!("the VM did not get ready: {failed}\n{}{}", log_of(dir), tail.join("\n"));
    }
}

fn console_of(dir: &Path) -> String {
    let bytes = fs::read(dir.join("console.log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("qemu.log")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_read() {
        assert_eq!("0:80".parse(), Ok(Forward { host: 0, guest: 80 }));
        assert!("80".parse::<Forward>().is_err());
        assert!("1:70000".parse::<Forward>().is_err());
    }

    #[test]
    fn free_ports_differ() {
        let any = Forward { host: 0, guest: 1 };
        let found = with_free_ports(&[any, any]).unwrap();
        assert_ne!(found[0].host, found[1].host);
    }
}
