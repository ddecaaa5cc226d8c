//! `cargo xtask sim`: the whole core against a simulated node, from seeds.
//!
//! The build is that of the tests, in which core and simulator are optimised; all CPUs run seeds.

use anyhow::Result;
use clap::Args;

use crate::bench;
use crate::ctx::{self, Ctx};

/// What is run.
#[derive(Debug, Args)]
pub(crate) struct SimArgs {
    /// Run the seeds below this number
    #[arg(long, default_value_t = 400)]
    seeds: u64,
    /// Run one seed and tell what happened in it
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Tell it as lines of JSON, which the core can be given again
    #[arg(long, requires = "seed")]
    json: bool,
    /// Run pods' lives with agents that die at each single action, once and twice
    #[arg(long, conflicts_with_all = ["seeds", "seed"])]
    crashes: bool,
}

impl SimArgs {
    pub(crate) fn run(&self, ctx: &Ctx) -> Result<()> {
        let mut cargo = bench::cargo(ctx);
        cargo.args(["run", "--locked", "--quiet", "-p", "beelet-sim", "--"]).args(self.words());
        ctx::run(&mut cargo)
    }

    /// What `beelet-sim` is told.
    fn words(&self) -> Vec<String> {
        match self.seed {
            _ if self.crashes => vec!["crashes".to_owned()],
            Some(seed) if self.json => vec!["json".to_owned(), seed.to_string()],
            Some(seed) => vec![seed.to_string()],
            None => vec!["0".to_owned(), self.seeds.to_string()],
        }
    }
}
