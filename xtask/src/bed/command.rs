//! `cargo xtask bed`: native beds for tests that are programs of their own.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Subcommand;
use rustix::process::Signal;

use super::supervisor::{self, SuperviseArgs};
use super::{BedHandle, Info, Owner, cgroups, names, sweep};
use crate::ctx::Ctx;

/// What can be done with a native bed.
#[derive(Debug, Subcommand)]
pub(crate) enum BedCommand {
    /// Start a bed; print its description as JSON
    Up {
        #[arg(long)]
        name: String,
        /// Folder for its data and logs; the logs stay
        #[arg(long)]
        dir: Option<PathBuf>,
        /// Take the bed down when this process ends, also by SIGKILL (default: the caller)
        #[arg(long)]
        owner: Option<u32>,
    },
    /// Take a bed down and wait until nothing of it is left
    Down {
        #[arg(long)]
        name: String,
    },
    /// Print the description of one bed, or the names of all
    Show {
        #[arg(long)]
        name: Option<String>,
    },
    /// Take down all beds that have lost their supervisor
    Sweep,
    /// Stop, start or restart the bed's containerd; its pods go on
    Runtime {
        #[arg(long)]
        name: String,
        #[arg(value_enum)]
        what: RuntimeAction,
    },
    /// Run a program in the bed's network namespace and in its cgroup NAME/GROUP
    Exec {
        #[arg(long)]
        name: String,
        #[arg(long, default_value = "agent")]
        group: String,
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
    #[command(hide = true)]
    Supervise(SuperviseArgs),
}

/// What to do with containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RuntimeAction {
    Stop,
    Kill,
    Start,
    Restart,
}

impl BedCommand {
    /// Does it.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        match self {
            Self::Up { name, dir, owner } => {
                let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
                let owner = Owner(owner.unwrap_or(u32::try_from(parent)?));
                let bed = BedHandle::start(ctx, &name, dir.as_deref(), owner)?;
                println!("{}", serde_json::to_string_pretty(&bed.info)?);
                Ok(())
            }
            Self::Down { name } => supervisor::down(&name),
            Self::Show { name: Some(name) } => {
                println!("{}", serde_json::to_string_pretty(&Info::read(&name)?)?);
                Ok(())
            }
            Self::Show { name: None } => {
                for name in names() {
                    println!("{name}");
                }
                Ok(())
            }
            Self::Sweep => sweep(),
            Self::Runtime { name, what } => {
                let signal = if what == RuntimeAction::Kill { Signal::KILL } else { Signal::TERM };
                let (stop, start) =
                    (what != RuntimeAction::Start, matches!(what, RuntimeAction::Start | RuntimeAction::Restart));
                supervisor::restart_runtime(&name, stop, start, signal)
            }
            Self::Exec { name, group, program } => exec(&name, &group, &program),
            Self::Supervise(args) => supervisor::supervise(ctx, &args),
        }
    }
}

/// Becomes that program, inside.
fn exec(name: &str, group: &str, program: &[OsString]) -> Result<()> {
    let info = Info::read(name)?;
    cgroups::join(&format!("{}/{group}", info.cgroup_root))?;
    let error = Command::new("nsenter").arg(format!("--net={}", info.netns_path.display())).args(program).exec();
    Err(error).context("cannot start nsenter (util-linux)")
}
