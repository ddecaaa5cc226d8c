//! `cargo xtask fuzz`: the targets of tests/fuzz under libFuzzer, led by coverage.
//!
//! Problem: fuzzers for Rust want a nightly compiler, and coverage is to be counted in our crates without building all others anew.
//!
//! Approach: the flags for coverage are stable ones; only those of sanitizers, which safe code does not need, are not. This program
//! puts itself between cargo and rustc for the crates of the workspace, and adds the flags where the code under test is compiled.
//! What is found on the way stays in target/fuzz/NAME, so that the next run goes on from there; what breaks a property is kept there
//! too, and the message says how to make it a test.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::ctx::{self, Ctx};
use crate::ebpf;

/// Set for cargo where this program stands before rustc.
const WRAPS: &str = "BEELET_FUZZ_WRAPS_RUSTC";
/// The crates whose branches are counted, by their names for rustc.
const COUNTED: [&str; 3] = ["beelet", "beelet_core", "fuzz"];
/// What cargo-fuzz gives the compiler, without the sanitizer.
const COVERAGE: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Inputs are no longer than this: the properties show in small ones.
const LONGEST: &str = "4096";

/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct FuzzArgs {
    /// For how long, each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Afterwards, put the fewest inputs that reach new branches into the corpus of the repository
    #[arg(long)]
    keep: bool,
    /// Names of targets, which are the folders in tests/fuzz/corpus (default: all)
    targets: Vec<String>,
}

impl FuzzArgs {
    /// Does it: one target after the other, and all of them even where one has a finding.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        let corpus = ctx.root.join("tests/fuzz/corpus");
        let folders = std::fs::read_dir(&corpus).with_context(|| format!("cannot list {}", corpus.display()))?;
        let mut all: Vec<String> = folders.flatten().filter_map(|f| f.file_name().into_string().ok()).collect();
        all.sort();
        let chosen = if self.targets.is_empty() { all.clone() } else { self.targets.clone() };
        for name in &chosen {
            ensure!(all.contains(name), "there is no target {name}: one of {}", all.join(", "));
        }
        let engine = build(ctx)?;
        let mut found = Vec::new();
        for name in chosen {
            let step = ctx::step(format!("fuzz: {name}, {} s", self.seconds));
            let work = ctx.target.join("fuzz").join(&name);
            let findings = ctx.target.join("fuzz/findings").join(&name);
            std::fs::create_dir_all(&work)?;
            std::fs::create_dir_all(&findings)?;
            let kept = corpus.join(&name);
            let mut run = Command::new(&engine);
            run.env("BEELET_FUZZ_TARGET", &name).arg(&work).arg(&kept);
            run.arg(format!("-max_total_time={}", self.seconds)).arg(format!("-max_len={LONGEST}"));
            run.arg(format!("-artifact_prefix={}/", findings.display()));
            run.args(["-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1"]);
            // Targets that need files need them by the thousand.
            if Path::new(MEMORY).is_dir() {
                run.env("TMPDIR", MEMORY);
            }
            let words = ctx.root.join(format!("tests/fuzz/{name}.dict"));
            if words.exists() {
                run.arg(format!("-dict={}", words.display()));
            }
            if let Err(error) = ctx::run(&mut run) {
                ctx::note(format!("{error:#}"));
                let copy = format!("copy it into {} and mend what it shows", kept.display());
                ctx::note(format!("what broke it is in {}: {copy}", findings.display()));
                found.push(name.clone());
            } else if self.keep {
                let mut merge = Command::new(&engine);
                merge.env("BEELET_FUZZ_TARGET", &name).arg("-set_cover_merge=1").arg(&kept).arg(&work);
                ctx::quiet(&mut merge)?;
            }
            step.done();
        }
        if !found.is_empty() {
            bail!("findings of {}", found.join(", "));
        }
        Ok(())
    }
}

/// Builds the engine with the targets in it. Needs a C++ compiler for libFuzzer.
fn build(ctx: &Ctx) -> Result<PathBuf> {
    ensure!(
        ctx::which("c++").is_some(),
        "libFuzzer is built from C++: install a compiler, as in `apt-get install g++`"
    );
    let step = ctx::step("fuzz: build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    // The same profile as the tests: with checks for overflow and debug assertions.
    cargo.args(["build", "--locked", "--quiet", "-p", "fuzz", "--bin", "fuzz", "--features", "libfuzzer"]);
    cargo.current_dir(&ctx.root).env("CARGO_TARGET_DIR", &ctx.target);
    cargo.env("RUSTC_WORKSPACE_WRAPPER", std::env::current_exe()?).env(WRAPS, "1");
    ctx::run(&mut cargo)?;
    step.done();
    Ok(ctx.target.join("debug/fuzz"))
}

/// If cargo calls this program in place of rustc: does what rustc does, and does not return.
pub(crate) fn wrap_rustc() {
    if std::env::var_os(WRAPS).is_none() {
        return;
    }
    let mut words = std::env::args_os().skip(1);
    let Some(rustc) = words.next() else { return };
    let words: Vec<_> = words.collect();
    let named = words.windows(2).find(|pair| pair[0] == "--crate-name").and_then(|pair| pair[1].to_str());
    let counted = named.is_some_and(|name| COUNTED.contains(&name));
    let mut command = Command::new(rustc);
    command.args(words);
    if counted {
        command.args(COVERAGE);
    }
    let error = command.exec();
    eprintln!("cannot start rustc: {error}");
    std::process::exit(1);
}
