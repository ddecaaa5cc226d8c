//! `cargo xtask test`: everything that must hold, in the order of its price, in one command.
//!
//! Problem: a person before a push and CI on a fresh machine want the same answer from one line, and want to know what
//! was not tested.
//!
//! Approach: named steps, each timed. All of them run even when one failed, but for those that need its result.
//! The last line counts, and the lines before it name what failed and what was skipped and why.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::ctx::{self, Ctx};
use crate::{bed, ebpf, images, licences, run, setup, vm};

/// A step of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// rustfmt
    Fmt,
    /// clippy, warnings denied
    Clippy,
    /// Licences of the dependencies
    Licences,
    /// Unit tests, properties, simulator
    Unit,
    /// The eBPF object builds, and what it counts is true
    Ebpf,
    /// Recording and alerting rules, by promtool
    Rules,
    /// deploy/ against the API's schema, by kubectl
    Deploy,
    /// End to end on the native bed
    E2e,
    /// The VM: cgroup v2, another kernel
    Vm,
}

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Leave these steps out
    #[arg(long, value_enum, value_delimiter = ',')]
    skip: Vec<Step>,
    /// Only these steps
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Step>,
}

/// How a step ended when it did not fail.
enum Done {
    Passed(String),
    Skipped(String),
}

fn passed() -> Result<Done> {
    Ok(Done::Passed(String::new()))
}

impl TestArgs {
    /// Does it.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        let mut report = Vec::new();
        for step in Step::value_variants() {
            let name = format!("{step:?}").to_lowercase();
            let started = Instant::now();
            let chosen = (self.only.is_empty() || self.only.contains(step)) && !self.skip.contains(step);
            let result = if chosen {
                ctx::step(format!("test: {name}"));
                step.run(ctx)
            } else {
                Ok(Done::Skipped("left out on the command line".to_owned()))
            };
            let time = started.elapsed();
            if let Err(error) = &result {
                eprintln!("FAILED {name}: {error:#}");
            }
            report.push((name, result, time));
        }
        summary(&report)
    }
}

fn summary(report: &[(String, Result<Done>, Duration)]) -> Result<()> {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    println!();
    for (name, result, time) in report {
        let time = ctx::seconds(*time);
        match result {
            Ok(Done::Passed(how)) => {
                passed += 1;
                println!("  passed   {name:<9} {time:>8}  {how}");
            }
            Ok(Done::Skipped(why)) => {
                skipped += 1;
                println!("  skipped  {name:<9} {:>8}  {why}", "");
            }
            Err(error) => {
                failed += 1;
                let first = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
                println!("  FAILED   {name:<9} {time:>8}  {first}");
            }
        }
    }
    println!("steps: {passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} of the steps failed");
    }
    Ok(())
}

impl Step {
    fn run(self, ctx: &Ctx) -> Result<Done> {
        match self {
            Self::Fmt => {
                ctx::run(cargo(ctx).args(["fmt", "--all", "--check"]))?;
                ctx::run(cargo(ctx).args(["fmt", "--check"]).current_dir(ctx.root.join("agent-ebpf")))?;
                passed()
            }
            Self::Clippy => {
                let lint = ["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "-D", "warnings"];
                ctx::run(cargo(ctx).args(lint))?;
                passed()
            }
            Self::Licences => licences::check(ctx).map(Done::Passed),
            Self::Unit => unit(ctx),
            Self::Ebpf => probes(ctx),
            Self::Rules => rules(ctx),
            Self::Deploy => deploy(ctx),
            Self::E2e => e2e(ctx),
            Self::Vm => {
                ebpf::build(ctx)?;
                vm::setup(ctx)?;
                vm::test(ctx)?;
                passed()
            }
        }
    }
}

/// Cargo in the repository, without what `cargo run` says of xtask's own build.
fn cargo(ctx: &Ctx) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    cargo.current_dir(&ctx.root).env("CARGO_TARGET_DIR", &ctx.target);
    cargo
}

fn unit(ctx: &Ctx) -> Result<Done> {
    let rest = ["--workspace", "--exclude", "e2e", "--locked"];
    if ctx::which("cargo-nextest").is_some() {
        ctx::run(cargo(ctx).args(["nextest", "run", "--no-tests", "pass"]).args(rest))?;
        ctx::run(cargo(ctx).args(["test", "--doc", "--quiet"]).args(rest))?;
        return Ok(Done::Passed("by nextest, and the examples in the documentation".to_owned()));
    }
    ctx::run(cargo(ctx).arg("test").args(rest))?;
    Ok(Done::Passed("by cargo test".to_owned()))
}

/// The files with these endings in a folder of the repository.
fn files(ctx: &Ctx, folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(ctx.root.join(folder)) else { return Vec::new() };
    let all = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> =
        all.filter(|path| path.to_str().is_some_and(|name| endings.iter().any(|e| name.ends_with(e)))).collect();
    found.sort();
    found
}

fn rules(ctx: &Ctx) -> Result<Done> {
    let mut all = files(ctx, "dashboards", &[".yml", ".yaml"]);
    all.extend(files(ctx, "dashboards/tests", &[".yml", ".yaml"]));
    let is_test = |path: &&PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains("rule_files:"));
    let (tests, rules): (Vec<&PathBuf>, Vec<&PathBuf>) = all.iter().partition(is_test);
    if all.is_empty() {
        return Ok(Done::Skipped("dashboards/ has no rules yet".to_owned()));
    }
    let promtool = setup::prometheus(ctx)?.promtool;
    ctx::run(Command::new(&promtool).args(["check", "rules"]).args(&rules))?;
    if !tests.is_empty() {
        ctx::run(Command::new(&promtool).args(["test", "rules"]).args(&tests))?;
    }
    Ok(Done::Passed(format!("{} files of rules, {} of tests", rules.len(), tests.len())))
}

fn deploy(ctx: &Ctx) -> Result<Done> {
    let mut manifests = files(ctx, "deploy", &[".yml", ".yaml"]);
    // Prometheus's own configuration is no object of the API.
    manifests.retain(|path| fs::read_to_string(path).is_ok_and(|text| text.lines().any(|l| l.starts_with("kind:"))));
    if manifests.is_empty() {
        return Ok(Done::Skipped("deploy/ has no manifests yet".to_owned()));
    }
    let kubectl = setup::kubectl(ctx)?;
    for manifest in &manifests {
        // `--dry-run=client` asks a server which kinds there are, and `annotate --local` takes any field of any type.
        // `set env --local` asks nobody and decodes into the API's own types; that most kinds hold no
        // pod template, which it then says, is not the question. Unknown fields pass.
        let mut command = Command::new(&kubectl);
        command.args(["set", "env", "--local", "-o", "name", "CHECKED=yes", "-f"]).arg(manifest);
        let out = command.env("KUBECONFIG", "/dev/null").output().context("cannot start kubectl")?;
        let said = String::from_utf8_lossy(&out.stderr);
        let is_custom = |line: &&str| line.contains("no kind") && line.contains("is registered");
        let harmless = |line: &&str| line.contains("does not have a pod template") || line.trim().is_empty();
        let wrong: Vec<&str> =
            said.lines().filter(|l| !harmless(l) && !is_custom(l) && l.contains("unable to")).collect();
        if !wrong.is_empty() {
            bail!("{}: {}", manifest.display(), wrong.join("\n"));
        }
    }
    Ok(Done::Passed(format!(
        "{} files, decoded into the API's types by kubectl; unknown fields are not found so",
        manifests.len()
    )))
}

/// Builds the eBPF object, and lets the probes compare what its programs tell with the kernel's own files.
fn probes(ctx: &Ctx) -> Result<Done> {
    let object = ebpf::build(ctx)?;
    if !rustix::process::geteuid().is_root() {
        return Ok(Done::Passed("built; loading it needs root".to_owned()));
    }
    let mut not_run = Vec::new();
    for probe in vm::PROBES {
        let mut run = cargo(ctx);
        run.args(["run", "--locked", "--quiet", "-p", "beelet", "--example", probe, "--"]).arg(&object);
        let output = run.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {probe}"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        print!("{said}");
        match output.status.code() {
            Some(0) => not_run.extend(said.lines().filter(|l| l.contains(" NOT RUN ")).map(|l| l.trim().to_owned())),
            // What it could not do at all, it said.
            Some(77) => not_run.push(probe.to_owned()),
            // The checks that failed are said again where the end of a long log shows them.
            _ => {
                let failed: Vec<_> = said.lines().filter(|l| l.contains(" FAILED ")).map(str::trim).collect();
                bail!("{probe} ended with {}: {}", output.status, failed.join("; "))
            }
        }
    }
    let probes = vm::PROBES.join(", ");
    Ok(Done::Passed(match not_run.len() {
        0 => format!("built; true by {probes}"),
        n => format!("built; {probes}; {n} checks not run: {}", not_run.join("; ")),
    }))
}

fn e2e(ctx: &Ctx) -> Result<Done> {
    if !rustix::process::geteuid().is_root() {
        return Ok(Done::Skipped("a native bed needs root".to_owned()));
    }
    let object = ebpf::build(ctx)?;
    let agent = run::build_agent(ctx, run::Profile::Debug)?;
    setup::native(ctx)?;
    images::all(ctx)?;
    let prometheus = setup::prometheus(ctx)?;
    let kubectl = setup::kubectl(ctx)?;
    bed::sweep()?;
    let mut tests = cargo(ctx);
    // One after the other: the tests measure, and two cores are soon busy.
    tests.args(["test", "--locked", "-p", "e2e", "--no-fail-fast", "--", "--test-threads", "1"]);
    tests.env("BEELET_XTASK", std::env::current_exe().context("cannot find this program")?);
    tests.env("BEELET_AGENT", agent).env("BEELET_BPF_OBJECT", object).env("BEELET_KUBECTL", kubectl);
    tests.env("BEELET_PROMETHEUS", prometheus.prometheus).env("BEELET_PROMTOOL", prometheus.promtool);
    let mut examples = cargo(ctx);
    let build = ["build", "--locked", "--quiet", "-p", "beelet", "--example", "pod", "--example", "sandwich_probe"];
    ctx::run(examples.args(build))?;
    tests.env("BEELET_EXAMPLE_POD", ctx.target.join("debug/examples/pod"));
    tests.env("BEELET_SANDWICH_PROBE", ctx.target.join("debug/examples/sandwich_probe"));
    let skipped = run_and_collect_skips(&mut tests)?;
    Ok(Done::Passed(match skipped.len() {
        0 => "none skipped".to_owned(),
        n => format!("{n} skipped inside: {}", skipped.join("; ")),
    }))
}

/// Runs tests; a line `SKIPPED name: reason` of theirs is not lost among the others.
fn run_and_collect_skips(tests: &mut Command) -> Result<Vec<String>> {
    let mut child = tests.stderr(Stdio::piped()).spawn().context("cannot start the tests")?;
    let mut skipped = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line.context("cannot read what the tests say")?;
            eprintln!("{line}");
            skipped.extend(line.strip_prefix("SKIPPED ").map(str::to_owned));
        }
    }
    let status = child.wait().context("cannot wait for the tests")?;
    if !status.success() {
        bail!("the tests ended with {status}");
    }
    Ok(skipped)
}
