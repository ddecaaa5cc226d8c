//! Everything around the agent that is not the agent: `cargo xtask COMMAND`.
//!
//! Each command is idempotent, calls by itself what it needs (`run` and `test` call `setup`), keeps what is costly in
//! one cache folder per user, and leaves nothing behind on the machine.

mod apt;
mod bed;
mod bench;
#[cfg(test)]
mod compat;
mod ctx;
mod ebpf;
mod fuzz;
mod image;
mod images;
mod licences;
mod oci;
mod run;
mod setup;
mod sim;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::ctx::Ctx;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Set up, build, run and test beelet", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetch and build everything a fresh machine needs, into the cache
    Setup(setup::SetupArgs),
    /// Build the eBPF object into target/bpf
    BuildEbpf,
    /// Run the agent on a test node with sample pods, and show a live table
    Run(run::RunArgs),
    /// Run all tests
    Test(test::TestArgs),
    /// Run the core against a simulated node, from seeds, and check what must always hold
    Sim(sim::SimArgs),
    /// Measure; the tables of docs/benchmarks.md
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Look for inputs that break what must hold for all; needs a C++ compiler
    Fuzz(fuzz::FuzzArgs),
    /// Native beds: containerd on this machine, in a network namespace and cgroup of its own
    #[command(subcommand)]
    Bed(bed::BedCommand),
    /// The VM: pure cgroup v2, any kernel
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Write the agent's container image as an OCI archive
    Image(image::ImageArgs),
}

fn main() -> ExitCode {
    fuzz::wrap_rustc();
    let cli = Cli::parse();
    let done = Ctx::new().and_then(|ctx| match cli.command {
        Task::Setup(args) => args.run(&ctx),
        Task::BuildEbpf => ebpf::build(&ctx).map(|object| println!("{}", object.display())),
        Task::Run(args) => args.run(&ctx),
        Task::Test(args) => args.run(&ctx),
        Task::Sim(args) => args.run(&ctx),
        Task::Bench(command) => command.run(&ctx),
        Task::Fuzz(args) => args.run(&ctx),
        Task::Bed(command) => command.run(&ctx),
        Task::Vm(command) => command.run(&ctx),
        Task::Image(args) => args.run(&ctx),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
