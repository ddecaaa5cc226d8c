//! beelet in the VM: `cargo xtask run --vm`, and the VM part of `cargo xtask test`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::machine::{Options, Vm};
use crate::ctx::{self, Ctx};

/// `cargo xtask run --vm`.
pub(crate) fn run_in_vm(_ctx: &Ctx, _args: &crate::run::RunArgs) -> Result<()> {
    bail!("not there yet")
}

/// The VM part of `cargo xtask test`.
pub(crate) fn test(_ctx: &Ctx) -> Result<()> {
    bail!("not there yet")
}
