//! The agent's container image (to come).

use crate::ctx::Ctx;

/// Arguments of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {}

impl ImageArgs {
    /// Writes the image.
    pub(crate) fn run(self, _ctx: &Ctx) -> anyhow::Result<()> {
        anyhow::bail!("the image is not there yet")
    }
}
