//! `cargo xtask run`: the main job.

use std::path::PathBuf;

use anyhow::Result;

use crate::ctx::Ctx;

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
    /// The kubelet configuration instead of the bed's own
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

impl RunArgs {
    /// Does it.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        if self.vm {
            return crate::vm::run_in_vm(ctx, &self);
        }
        Ok(())
    }
}
