//! The VM bed (to come).

use crate::ctx::Ctx;

/// What can be done with the VM.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum VmCommand {
    /// Stops the VM.
    Down,
}

impl VmCommand {
    /// Does it.
    pub(crate) fn run(self, _ctx: &Ctx) -> anyhow::Result<()> {
        anyhow::bail!("the VM bed is not there yet")
    }
}

/// Fetches and builds what the VM needs.
pub(crate) fn setup(_ctx: &Ctx) -> anyhow::Result<()> {
    Ok(())
}

/// `cargo xtask run --vm`.
pub(crate) fn run_in_vm(_ctx: &Ctx, _args: &crate::run::RunArgs) -> anyhow::Result<()> {
    anyhow::bail!("the VM bed is not there yet")
}

/// The VM part of `cargo xtask test`.
pub(crate) fn test(_ctx: &Ctx) -> anyhow::Result<()> {
    anyhow::bail!("the VM bed is not there yet")
}
