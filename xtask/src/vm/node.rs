//! beelet in the VM: `cargo xtask run --vm`, and the VM part of `cargo xtask test`.
//!
//! The agent is built on the host (compiling in emulation would take an hour) and handed to the VM at boot, with the
//! eBPF object, the configuration and the test images. Its server is reached through a forwarded port, so the table and
//! `curl` run on the host.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::machine::{DEFAULT_KERNEL, Ended, Options, Payload, SERVER_PORT, Vm};
use super::truth;
use crate::ctx::{self, Ctx};
use crate::run::{self, RunArgs};
use crate::{ebpf, images};

const CONFIG: &str = include_str!("guest/config.yaml");
const TEST_CONFIG: &str = include_str!("guest/test.yaml");
/// Where things are in the guest.
const AGENT: &str = "/usr/local/bin/beelet";
const OBJECT: &str = "/usr/lib/beelet/beelet-ebpf";
const CONFIG_FILE: &str = "/etc/beelet/config.yaml";
pub(super) const MANIFESTS: &str = "/etc/beelet/manifests";
pub(super) const ROOT_DIR: &str = "/var/lib/beelet";
const LOG: &str = "/var/log/beelet.log";
/// The guest's address in QEMU's user network.
const ADDRESS: &str = "10.0.2.15";
/// Probes that compare what eBPF programs tell with the kernel's own files; examples of the agent.
pub(crate) const PROBES: [&str; 3] = ["kernel_probe", "network_probe", "disk_probe"];
const PROBE_DIR: &str = "/usr/local/bin";
/// The probe that compares what a running agent tells; one more example.
pub(super) const SANDWICH: &str = "/usr/local/bin/sandwich_probe";
const IMAGES: &str = "/var/lib/images";
/// Emulation is slow: the agent may take this long until its server answers.
const START_LIMIT: Duration = Duration::from_secs(90);

/// A VM in which beelet owns the node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) vm: Vm,
}

impl Node {
    /// Boots a VM that ends with this process, imports the test images and starts the agent on these manifests.
    pub(crate) fn up(ctx: &Ctx, agent: &Path, manifests: &Path, config: Option<&Path>) -> Result<Self> {
        let (vm, _) = boot(ctx, "node", DEFAULT_KERNEL, &node_payload(ctx, agent, config)?)?;
        let node = Self { vm };
        node.vm.exec(&["mkdir", "-p", MANIFESTS, ROOT_DIR])?;
        node.vm.push(manifests, MANIFESTS)?;
        node.start_agent()?;
        node.wait_healthy(START_LIMIT)?;
        Ok(node)
    }

    /// Starts the agent in a cgroup of its own, as a service manager would.
    pub(crate) fn start_agent(&self) -> Result<()> {
        let script = format!(
            "cgroup=/sys/fs/cgroup/system.slice/beelet.service; mkdir -p $cgroup; echo 0 > $cgroup/cgroup.procs
             exec {AGENT} run --manifests {MANIFESTS} --config {CONFIG_FILE} --root-dir {ROOT_DIR} --bpf-object {OBJECT} \
             --node-ip {ADDRESS} >> {LOG} 2>&1 < /dev/null"
        );
        // Until it is there, so that who asks for its process next does not take it for gone.
        let start = "setsid sh -c \"$0\" > /dev/null 2>&1 &
            for _ in $(seq 100); do if pidof beelet > /dev/null; then break; fi; sleep 0.1; done";
        self.vm.exec(&["sh", "-c", start, &script])?;
        Ok(())
    }

    /// Where the agent's server is on this machine.
    pub(crate) fn server(&self) -> Result<SocketAddr> {
        Ok((Ipv4Addr::LOCALHOST, self.vm.port(SERVER_PORT)?).into())
    }

    /// Waits until `/healthz` says 200; the error shows the end of the agent's log.
    pub(crate) fn wait_healthy(&self, limit: Duration) -> Result<()> {
        let server = self.server()?;
        let deadline = Instant::now() + limit;
        loop {
            if get(server, "/healthz").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(());
            }
            let gone = self.vm.try_exec(&["pidof", "beelet"], None, Duration::from_secs(10))?.code != 0;
            if gone || Instant::now() > deadline {
                let how = if gone { "ended" } else { "does not answer on /healthz" };
                bail!("the agent in the VM {how}; its log ends:\n{}", self.log_tail(30)?);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until no agent runs.
    pub(super) fn wait_gone(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.vm.try_exec(&["pidof", "beelet"], None, Duration::from_secs(10))?.code == 0 {
            ensure!(
                Instant::now() < deadline,
                "the agent in the VM does not end; its log ends:\n{}",
                self.log_tail(30)?
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// A plain GET; the whole answer, head included.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        get(self.server()?, path)
    }

    /// The last lines of the agent's log.
    pub(crate) fn log_tail(&self, lines: u32) -> Result<String> {
        let limit = Duration::from_secs(10);
        Ok(self.vm.try_exec(&["tail", "-n", &lines.to_string(), LOG], None, limit)?.stdout)
    }
}

/// Boots a VM for this process. A name per process lets several run side by side.
fn boot(ctx: &Ctx, purpose: &str, kernel: &str, payload: &[Payload]) -> Result<(Vm, Duration)> {
    Vm::sweep(ctx);
    let me = std::process::id();
    let (name, kernel) = (format!("{purpose}-{me}"), kernel.to_owned());
    let vm = Vm::up(ctx, &Options { name, kernel, owner: Some(me), payload: payload.to_vec(), ..Options::default() })?;
    let time = Duration::from_millis(vm.state.boot_ms);
    let import = format!("for image in {IMAGES}/*.tar; do ctr -n k8s.io images import \"$image\" || exit 1; done");
    let ended = vm.try_exec(&["sh", "-c", &import], None, Duration::from_secs(120))?;
    ensure!(ended.code == 0, "cannot import the test images in the VM:\n{}{}", ended.stdout, ended.stderr);
    Ok((vm, time))
}

fn image_payload(ctx: &Ctx) -> Result<Vec<Payload>> {
    let name =
        |file: &Path| file.file_name().map(|name| name.to_string_lossy().into_owned()).context("a file has a name");
    let to_payload =
        |file: &PathBuf| Ok(Payload { from: file.clone(), to: format!("{IMAGES}/{}", name(file)?), mode: 0o644 });
    images::all(ctx)?.iter().map(to_payload).collect()
}

fn node_payload(ctx: &Ctx, agent: &Path, config: Option<&Path>) -> Result<Vec<Payload>> {
    let mut payload = image_payload(ctx)?;
    let own_config = own_config(ctx, "vm-config.yaml", CONFIG)?;
    let config = config.unwrap_or(&own_config);
    for (from, to, mode) in [(agent, AGENT, 0o755), (&ebpf::object(ctx), OBJECT, 0o644), (config, CONFIG_FILE, 0o644)] {
        payload.push(Payload { from: from.to_path_buf(), to: to.to_owned(), mode });
    }
    Ok(payload)
}

/// A configuration of ours as a file of this machine.
fn own_config(ctx: &Ctx, name: &str, content: &str) -> Result<PathBuf> {
    let file = ctx.target.join(name);
    fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// A plain GET; the whole answer, head included.
fn get(server: SocketAddr, path: &str) -> Result<String> {
    let limit = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&server, limit)?;
    stream.set_read_timeout(Some(limit))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// `cargo xtask run --vm`: the samples, or one's own manifests, on a node in the VM, with a live table.
pub(crate) fn run_in_vm(ctx: &Ctx, args: &RunArgs) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let time = args.time.as_deref().map(run::duration).transpose()?;
    let manifests = args.manifests.clone().unwrap_or_else(|| run::samples(ctx));
    ensure!(manifests.is_dir(), "there is no folder {}", manifests.display());

    let step = ctx::step("building the agent and its eBPF object");
    let agent = run::build_agent(ctx, run::Profile::Debug)?;
    ebpf::build(ctx)?;
    step.done();
    let step = ctx::step("starting a node in the VM");
    let node = Node::up(ctx, &agent, &manifests, args.config.as_deref())?;
    step.done();
    let server = node.server()?;
    ctx::note(format!("metrics: curl http://{server}/metrics"));
    ctx::note(format!("a shell command on the node: cargo xtask vm exec --name {} -- COMMAND", node.vm.name()));

    let mut table = Command::new(&agent).args(["top", "--server", &format!("http://{server}")]).spawn()?;
    let ended = watch(&node, &mut table, time, &stop);
    let _ = table.kill();
    let _ = table.wait();
    let down = node.vm.down();
    ended.and(down)
}

/// Waits for the end of the time, of the table, or for a signal. An agent that ends by itself is an error.
fn watch(node: &Node, table: &mut Child, time: Option<Duration>, stop: &AtomicBool) -> Result<()> {
    let started = Instant::now();
    let mut checked = Instant::now();
    let mut table_runs = true;
    while !stop.load(Ordering::Relaxed) && time.is_none_or(|time| started.elapsed() < time) {
        if table_runs && let Some(status) = table.try_wait()? {
            table_runs = false;
            if status.success() && io::stdout().is_terminal() {
                return Ok(());
            }
            ctx::note(format!("`beelet top` ended ({status}); the node goes on"));
        }
        if checked.elapsed() > Duration::from_secs(5) {
            checked = Instant::now();
            let alive = node.vm.try_exec(&["pidof", "beelet"], None, Duration::from_secs(30))?.code == 0;
            ensure!(alive, "the agent in the VM ended; its log ends:\n{}", node.log_tail(30)?);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A debug build of something in the workspace. Cargo decides whether it is up to date.
fn build(ctx: &Ctx, what: &[&str], file: &str) -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    cargo.current_dir(&ctx.root).env("CARGO_TARGET_DIR", &ctx.target).args(["build", "--quiet"]).args(what);
    ctx::run(&mut cargo).with_context(|| format!("{} does not build", what.join(" ")))?;
    Ok(ctx.target.join("debug").join(file))
}

/// A named check of a running VM.
type Check = (&'static str, fn(&Vm) -> Result<String>);

/// What everything else in the VM stands on.
const CHECKS: &[Check] = &[
    ("vm_kernel_describes_its_types", |vm| said_nothing(vm.exec(&["test", "-s", "/sys/kernel/btf/vmlinux"]))),
    ("vm_has_only_cgroup_v2_with_its_controllers", only_cgroup_v2),
    ("vm_measures_pressure", |vm| said_nothing(vm.exec(&["cat", "/proc/pressure/memory", "/proc/pressure/cpu"]))),
    ("vm_containerd_answers", |vm| said_nothing(vm.exec(&["ctr", "version"]))),
    ("vm_container_runs_under_crun", |vm| container_runs(vm, "/usr/bin/crun")),
    ("vm_container_runs_under_runc", |vm| container_runs(vm, "/usr/sbin/runc")),
    ("vm_kernel_oom_kill_is_counted_in_the_pod", oom_kill_is_counted),
    ("vm_ebpf_programs_load_and_tell_the_truth", ebpf_tells_the_truth),
    ("vm_files_arrive_unchanged", files_arrive_unchanged),
    ("vm_command_dies_with_its_caller", command_dies_with_its_caller),
];

fn said_nothing(ended: Result<Ended>) -> Result<String> {
    ended.map(|_| String::new())
}

/// A VM with the configuration of the tests, and with the probes, in which no agent runs yet.
pub(super) fn ready(ctx: &Ctx, kernel: &str, probes: bool) -> Result<Node> {
    let step = ctx::step("building the agent and the eBPF object");
    let agent = run::build_agent(ctx, run::Profile::Debug)?;
    ebpf::build(ctx)?;
    step.done();
    let config = own_config(ctx, "vm-test-config.yaml", TEST_CONFIG)?;
    let mut payload = node_payload(ctx, &agent, Some(&config))?;
    for probe in PROBES.into_iter().chain(["sandwich_probe"]).filter(|_| probes) {
        let from = build(ctx, &["-p", "beelet", "--example", probe], &format!("examples/{probe}"))?;
        payload.push(Payload { from, to: format!("{PROBE_DIR}/{probe}"), mode: 0o755 });
    }
    let step = ctx::step(format!("starting a VM with kernel {kernel}"));
    let (vm, boot_time) = boot(ctx, "test", kernel, &payload)?;
    step.done();
    ctx::note(format!("the VM was ready after {}", ctx::seconds(boot_time)));
    vm.exec(&["mkdir", "-p", MANIFESTS, ROOT_DIR])?;
    Ok(Node { vm })
}

/// The VM part of `cargo xtask test`: what everything in the VM stands on, then the agent there.
pub(crate) fn test(ctx: &Ctx, kernel: &str, only: &[String]) -> Result<()> {
    let names = || CHECKS.iter().map(|(name, _)| *name).chain(truth::CHECKS.iter().map(|(name, _)| *name));
    for part in only {
        let all = names().collect::<Vec<_>>().join(", ");
        ensure!(
            names().any(|name| name.contains(part.as_str())),
            "--only {part}: no check has this in its name; {all}"
        );
    }
    let node = ready(ctx, kernel, true)?;
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    let mut run = |name: &str, check: &dyn Fn() -> Result<String>| {
        let chosen = only.is_empty() || name == truth::START || only.iter().any(|part| name.contains(part.as_str()));
        if !chosen {
            left_out += 1;
            return;
        }
        let started = Instant::now();
        let result = check();
        let time = ctx::seconds(started.elapsed());
        match result {
            Ok(said) => {
                passed += 1;
                println!("test {name} ... ok ({time}){}{said}", if said.is_empty() { "" } else { ": " });
            }
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED ({time}): {error:#}");
            }
        }
    };
    for (name, check) in CHECKS {
        run(name, &|| check(&node.vm));
    }
    for (name, check) in truth::CHECKS {
        run(name, &|| check(&node));
    }
    node.vm.down()?;
    println!("vm: {passed} passed, {failed} failed, {left_out} left out on the command line");
    ensure!(failed == 0, "{failed} of the VM's tests failed");
    Ok(())
}

fn only_cgroup_v2(vm: &Vm) -> Result<String> {
    ensure!(!vm.exec(&["cat", "/proc/mounts"])?.stdout.contains(" cgroup "), "a cgroup v1 hierarchy is mounted");
    let enabled = vm.exec(&["cat", "/sys/fs/cgroup/cgroup.subtree_control"])?.stdout;
    for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
        ensure!(enabled.split_whitespace().any(|c| c == controller), "no {controller} in `{enabled}`");
    }
    Ok(String::new())
}

fn container_runs(vm: &Vm, runtime: &str) -> Result<String> {
    let cgroup = "/kubepods/burstable/podtest/container";
    let script = "cat /proc/self/cgroup; exit 7";
    let words = ["ctr", "-n", "k8s.io", "run", "--rm", "--runc-binary", runtime, "--cgroup", cgroup];
    let words = [words.as_slice(), &[images::BUSYBOX, "test", "sh", "-c", script]].concat();
    let ended = vm.try_exec(&words, None, Duration::from_secs(60))?;
    ensure!(ended.code == 7 && ended.stdout.trim() == format!("0::{cgroup}"), "{ended:?}");
    Ok(String::new())
}

fn oom_kill_is_counted(vm: &Vm) -> Result<String> {
    let words =
        ["ctr", "-n", "k8s.io", "run", "--rm", "--cgroup", "/kubepods/podoom/container", "--memory-limit", "33554432"];
    let words = [words.as_slice(), &[images::WORKLOAD, "oom", "/workload", "step", "--size", "128Mi"]].concat();
    let ended = vm.try_exec(&words, None, Duration::from_secs(60))?;
    let events = vm.exec(&["cat", "/sys/fs/cgroup/kubepods/podoom/memory.events"])?.stdout;
    ensure!(ended.code == 137 && events.contains("oom_kill 1\n"), "{ended:?}, memory.events: {events}");
    Ok(String::new())
}

/// The probes compare what each program tells with the kernel's own files.
fn ebpf_tells_the_truth(vm: &Vm) -> Result<String> {
    let mut said = format!("kernel {}:", vm.kernel());
    for probe in PROBES {
        let ended = vm.try_exec(&[&format!("{PROBE_DIR}/{probe}"), OBJECT], None, Duration::from_secs(400))?;
        ensure!(ended.code == 0, "{probe}: exit code {}\n{}{}", ended.code, ended.stdout, ended.stderr);
        // What each program costs, for people.
        let table = ended.stdout.split_once("\nprograms\n").map_or("", |(_, table)| table.trim_end());
        said = format!("{said}\n{probe}\n{table}");
    }
    Ok(said)
}

fn files_arrive_unchanged(vm: &Vm) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::create_dir(dir.path().join("sub"))?;
    fs::write(dir.path().join("sub/file"), &content)?;
    // A linker's output has holes, which not every tar knows.
    fs::File::create(dir.path().join("sub/hole"))?.set_len(1 << 20)?;
    vm.push(dir.path(), "/tmp/pushed")?;
    let sum = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let there = sum(&vm.exec(&["sha256sum", "/tmp/pushed/sub/file"])?.stdout);
    let here = ctx::hex(&<sha2::Sha256 as sha2::Digest>::digest(&content));
    ensure!(here == there, "sent {here}, arrived {there}");
    Ok(String::new())
}

fn command_dies_with_its_caller(vm: &Vm) -> Result<String> {
    let gave_up = vm.try_exec(&["sleep", "4711"], None, Duration::from_secs(1));
    ensure!(gave_up.is_err(), "it should have given up");
    let deadline = Instant::now() + Duration::from_secs(10);
    while vm.exec(&["ps"])?.stdout.contains("sleep 4711") {
        ensure!(Instant::now() < deadline, "the command still runs");
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(String::new())
}
