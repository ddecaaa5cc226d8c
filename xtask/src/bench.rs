//! `cargo xtask bench`: what is measured for docs/benchmarks.md.
//!
//! Problem: a number in a document is worth what its command is worth. Approach: each benchmark is an ignored test of the
//! end-to-end tests, so that it measures what the tests check, with the same bed and the same referee; this command sets up,
//! builds, runs it and lets its table through. `oom --sim` measures no machine: it compares rules in the simulator.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::ctx::{self, Ctx};
use crate::{bed, ebpf, images, run, setup, vm};

/// What can be measured.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Leaks against the eviction: how often beelet comes before the kernel's OOM killer
    Oom {
        /// Runs of each rate
        #[arg(long, default_value_t = 10)]
        runs: u32,
        /// Rates, in MiB/s (default: 10,50,100,400,1000; in the VM 5,10,25,50)
        #[arg(long, value_delimiter = ',')]
        rates: Vec<u32>,
        /// In the VM, on cgroup v2: there also leaks in a limit of their own that may be raised
        #[arg(long)]
        vm: bool,
        /// A stock kubelet instead of beelet, on the same bed; it also sets the machine's sysctls as it wants them
        #[arg(long, value_name = "PATH", conflicts_with = "vm")]
        kubelet: Option<PathBuf>,
        /// Not here but in the simulator: beelet's rules, the kubelet's, systemd-oomd's and lmkd's on the same corpus
        #[arg(long, conflicts_with_all = ["runs", "rates", "kubelet", "vm"])]
        sim: bool,
    },
    /// Loads that look like the way to an OOM kill and are none: whether somebody is evicted, and which rungs are used
    Alarms {
        #[arg(long, default_value_t = 30)]
        minutes: u32,
    },
    /// What watched pods lose, and what the agent uses beside 100 idle pods
    Cost {
        /// Turns with and without the agent, of each load
        #[arg(long, default_value_t = 5)]
        runs: u32,
    },
    /// Known situations, and what beelet says is the cause; then an idle node, on which it should say nothing
    Attribution {
        /// Runs of each situation
        #[arg(long, default_value_t = 3)]
        runs: u32,
        /// Length of the idle run
        #[arg(long, default_value_t = 10)]
        minutes: u32,
    },
    /// From a death to its published status, and from manifests to running pods, beside a bare client of the runtime
    Speed {
        /// Deaths
        #[arg(long, default_value_t = 50)]
        deaths: u32,
        /// Pods that start together
        #[arg(long, default_value_t = 100)]
        pods: u32,
        /// Rounds of them, with beelet and bare
        #[arg(long, default_value_t = 3)]
        runs: u32,
    },
    /// Pods that come and go, so many in a row: whether all is afterwards as it was before
    Churn {
        #[arg(long, default_value_t = 1_000)]
        pods: u32,
    },
    /// Pods that come and go, for so long: what grows in the agent
    Soak {
        #[arg(long, default_value_t = 60)]
        minutes: u32,
    },
}

impl BenchCommand {
    /// The test that measures it, and the variables that it reads.
    fn test(&self) -> Result<(&'static str, Vec<(&'static str, OsString)>)> {
        Ok(match self {
            Self::Oom { runs, rates, kubelet, .. } => {
                let rates: Vec<String> = rates.iter().map(ToString::to_string).collect();
                let mut variables = vec![
                    ("BEELET_BENCH_RUNS", runs.to_string().into()),
                    ("BEELET_BENCH_RATES", rates.join(",").into()),
                ];
                if let Some(kubelet) = kubelet {
                    let path = kubelet.canonicalize().with_context(|| format!("no kubelet {}", kubelet.display()))?;
                    variables.push(("BEELET_BENCH_KUBELET", path.into()));
                }
                ("oom", variables)
            }
            Self::Alarms { minutes } => ("alarms", vec![("BEELET_BENCH_MINUTES", minutes.to_string().into())]),
            Self::Cost { runs } => ("cost", vec![("BEELET_BENCH_RUNS", runs.to_string().into())]),
            Self::Attribution { runs, minutes } => {
                let minutes = ("BEELET_BENCH_MINUTES", minutes.to_string().into());
                ("attribution", vec![("BEELET_BENCH_RUNS", runs.to_string().into()), minutes])
            }
            Self::Speed { deaths, pods, runs } => (
                "speed",
                vec![
                    ("BEELET_BENCH_DEATHS", deaths.to_string().into()),
                    ("BEELET_BENCH_PODS", pods.to_string().into()),
                    ("BEELET_BENCH_RUNS", runs.to_string().into()),
                ],
            ),
            Self::Churn { pods } => ("churn", vec![("BEELET_BENCH_PODS", pods.to_string().into())]),
            Self::Soak { minutes } => ("soak", vec![("BEELET_BENCH_MINUTES", minutes.to_string().into())]),
        })
    }

    /// Does it.
    pub(crate) fn run(mut self, ctx: &Ctx) -> Result<()> {
        if let Self::Oom { runs, rates, vm, .. } = &mut self {
            if rates.is_empty() {
                rates.extend(if *vm { &[5, 10, 25, 50][..] } else { &[10, 50, 100, 400, 1000] });
            }
            ensure!(*runs > 0 && !rates.contains(&0), "nothing to run");
        }
        if matches!(self, Self::Oom { sim: true, .. }) {
            return ctx::run(cargo(ctx).args([
                "run",
                "--release",
                "--locked",
                "--quiet",
                "-p",
                "beelet-sim",
                "--",
                "corpus",
            ]));
        }
        if let Self::Oom { runs, rates, vm: true, .. } = &self {
            return vm::bench(ctx, *runs, rates);
        }
        ensure!(
            rustix::process::geteuid().is_root(),
            "the benchmarks need a native bed, and that needs root: use sudo"
        );
        let (name, variables) = self.test()?;
        setup::native(ctx)?;
        images::all(ctx)?;
        bed::sweep()?;
        let mut test = cargo(ctx);
        test.args(["test", "--locked", "--quiet", "-p", "e2e", "--test", name, "--"]);
        test.args(["--ignored", "--exact", "bench", "--nocapture", "--test-threads", "1"]);
        test.envs(variables);
        test.env("BEELET_XTASK", std::env::current_exe()?);
        // A stock kubelet needs nothing of ours.
        if !matches!(self, Self::Oom { kubelet: Some(_), .. }) {
            test.env("BEELET_BPF_OBJECT", ebpf::build(ctx)?);
            test.env("BEELET_AGENT", run::build_agent(ctx, run::Profile::Release)?);
        }
        if matches!(self, Self::Cost { .. }) {
            let example = ["build", "--release", "--locked", "--quiet", "-p", "beelet", "--example", "program_cost"];
            ctx::run(cargo(ctx).args(example))?;
            test.env("BEELET_PROGRAM_COST", ctx.target.join("release/examples/program_cost"));
        }
        ctx::run(&mut test)
    }
}

/// Cargo, in the workspace, for the host.
pub(crate) fn cargo(ctx: &Ctx) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    cargo.current_dir(&ctx.root).env("CARGO_TARGET_DIR", &ctx.target);
    cargo
}
