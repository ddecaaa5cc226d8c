//! The VM bed: a node with pure cgroup v2 and a kernel of our choice, in software emulation, without privileges.
//!
//! Problem: what beelet does on cgroup v2, and what its eBPF programs do on other kernels, must be tried on machines
//! that have neither, and a node that runs out of memory must not be the machine one works on.
//!
//! Approach: [parts] makes emulator, kernel and guest from Debian's packages; [machine] starts a VM from them, runs
//! commands in it over the [wire] and ends it; [monitor] sees to it that it never outlives its owner; [agent] is the
//! guest's end of the wire; [node] runs beelet in it, for `xtask run --vm` and `xtask test`; [truth] checks it there; [race] has it
//! race the OOM killer.

mod agent;
mod cpio;
mod ladder;
mod machine;
mod monitor;
mod node;
mod parts;
mod race;
mod sandwich;
mod truth;
mod wire;

use std::io::{self, IsTerminal, Read};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use crate::ctx::{self, Ctx};
pub(crate) use machine::{Forward, Options, Vm};
pub(crate) use node::{PROBES, run_in_vm};
pub(crate) use race::bench;

/// What can be done with the VM.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum VmCommand {
    /// Start a VM in the background, and wait until containerd in it answers
    Up {
        #[arg(long, default_value = "default")]
        name: String,
        /// As QEMU takes it
        #[arg(long, default_value = "2G")]
        memory: String,
        #[arg(long, default_value_t = 2)]
        cpus: u32,
        /// 6.1, 6.12 or sid
        #[arg(long, default_value = machine::DEFAULT_KERNEL)]
        kernel: String,
        /// End the VM when this process ends
        #[arg(long, value_name = "PID")]
        owner: Option<u32>,
        /// Lead a port of this machine's loopback to a port of the VM; HOST 0 finds a free one. 10255 is always forwarded
        #[arg(long, value_name = "HOST:GUEST")]
        port_forward: Vec<Forward>,
        /// Print name, ports and boot time as JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command in the VM, with its output and exit code
    Exec {
        #[arg(long, default_value = "default")]
        name: String,
        /// Pass this command's input on
        #[arg(long, short = 'i')]
        stdin: bool,
        /// Give up, and kill the command, after this many seconds
        #[arg(long, default_value_t = 600, value_name = "SECONDS")]
        limit: u64,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Copy a file to a path of the VM, or a folder's content into a folder of it
    Push {
        #[arg(long, default_value = "default")]
        name: String,
        local: PathBuf,
        remote: String,
    },
    /// End the VM
    Down {
        #[arg(long, default_value = "default")]
        name: String,
    },
    /// Check what everything in the VM stands on, and the agent there: what it measures, evicts, resizes, survives
    Test {
        /// 6.1, 6.12 or sid
        #[arg(long, default_value = machine::DEFAULT_KERNEL)]
        kernel: String,
        /// Only the checks whose names contain one of these, and the start of the agent, which they stand on
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
    },
    #[command(hide = true)]
    Monitor { dir: PathBuf },
    #[command(hide = true)]
    Tied {
        parent: i32,
        #[arg(last = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    GuestAgent,
}

impl VmCommand {
    /// Does it.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        match self {
            Self::Up { name, memory, cpus, kernel, owner, port_forward, json } => {
                Vm::sweep(ctx);
                let options =
                    Options { name, memory, cpus, kernel, owner, forwards: port_forward, ..Options::default() };
                let vm = Vm::up(ctx, &options)?;
                if json {
                    let state = &vm.state;
                    println!("{}", json!({"name": options.name, "ports": state.forwards, "boot_ms": state.boot_ms}));
                } else {
                    ctx::note(format!("ready after {}", ctx::seconds(Duration::from_millis(vm.state.boot_ms))));
                    for Forward { host, guest } in &vm.state.forwards {
                        ctx::note(format!("127.0.0.1:{host} leads to port {guest} of the VM"));
                    }
                }
                Ok(())
            }
            Self::Exec { name, stdin, limit, command } => {
                let vm = Vm::find(ctx, &name)?;
                if stdin && io::stdin().is_terminal() {
                    ctx::note("input from the terminal is passed on line by line; there is no terminal in the VM");
                }
                let input = stdin.then(|| Box::new(io::stdin()) as Box<dyn Read + Send>);
                let limit = Duration::from_secs(limit);
                let code = vm.stream(&command, input, &mut io::stdout(), &mut io::stderr(), limit)?;
                std::process::exit(code)
            }
            Self::Push { name, local, remote } => Vm::find(ctx, &name)?.push(&local, &remote),
            Self::Down { name } => Vm::find(ctx, &name)?.down(),
            Self::Test { kernel, only } => node::test(ctx, &kernel, &only),
            Self::Monitor { dir } => monitor::run(&dir),
            Self::Tied { parent, command } => monitor::tied(parent, &command),
            Self::GuestAgent => agent::serve((Ipv4Addr::UNSPECIFIED, machine::AGENT_PORT).into()),
        }
    }
}

/// The VM part of `cargo xtask test`.
pub(crate) fn test(ctx: &Ctx) -> Result<()> {
    node::test(ctx, machine::DEFAULT_KERNEL, &[])
}

/// Fetches and builds what the VM needs.
pub(crate) fn setup(ctx: &Ctx) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the VM is for x86-64 so far");
    }
    parts::Parts::ready(ctx, machine::DEFAULT_KERNEL)?;
    Ok(())
}
