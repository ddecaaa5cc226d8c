//! `cargo xtask setup`: everything that a fresh machine needs, part by part, into the cache.
//!
//! Problem: the test beds need a container runtime, CNI plugins, Prometheus, kubectl, a compiler for eBPF, a VM and
//! images, in certain versions, on machines that have none of them or others.
//!
//! Approach: on Debian with root, packages are unpacked into the cache; installed is only what has to be on the
//! machine. Anywhere else nothing is installed: the programs are looked for on PATH, and what is missing is listed with
//! the version it should have. Each part is idempotent and checked in microseconds when it is there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::ctx::{self, Ctx};
use crate::{apt, ebpf, images, vm};

/// What can be set up by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// containerd, runc, CNI plugins, kubectl
    Native,
    /// The eBPF compiler and linker
    Ebpf,
    /// pause, busybox and workload images
    Images,
    /// Prometheus and promtool
    Prometheus,
    /// The VM's emulator, kernel and disk
    Vm,
}

/// Arguments of `cargo xtask setup`.
#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

impl SetupArgs {
    /// Does it.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        let parts = if self.only.is_empty() { Part::value_variants().to_vec() } else { self.only };
        for part in parts {
            let step = ctx::step(format!("setup: {part:?}").to_lowercase());
            match part {
                Part::Native => drop(native(ctx)?),
                Part::Ebpf => drop(ebpf::toolchain(ctx)?),
                Part::Images => drop(images::all(ctx)?),
                Part::Prometheus => drop(prometheus(ctx)?),
                Part::Vm => vm::setup(ctx)?,
            }
            step.done();
        }
        Ok(())
    }
}

/// The programs of a native bed.
#[derive(Debug, Clone)]
pub(crate) struct Native {
    /// containerd; its shim and ctr are beside it.
    pub(crate) containerd: PathBuf,
    pub(crate) ctr: PathBuf,
    pub(crate) runc: PathBuf,
    /// Folder of the CNI plugins.
    pub(crate) cni_bin: PathBuf,
}

/// Whether this process may install and unpack: Debian, and root.
pub(crate) fn may_install() -> bool {
    rustix::process::geteuid().is_root() && apt::is_debian()
}

/// The programs of a native bed, fetched if need be.
pub(crate) fn native(ctx: &Ctx) -> Result<Native> {
    if !may_install() {
        return native_of_machine();
    }
    // nft, losetup and mkfs.ext4 make trouble on purpose: lost packets, a slow disk.
    if ["ip", "nsenter", "nft", "losetup", "mkfs.ext4"].iter().any(|program| ctx::which(program).is_none()) {
        apt::install_missing(&["iproute2", "util-linux", "nftables", "mount", "e2fsprogs"])?;
    }
    let runtime = ctx.part("containerd", "sid containerd; bookworm runc libseccomp2 plugins; v1", |dir| {
        apt::unpack(ctx, "sid", &["containerd"], dir)?;
        // A later runc needs a later libc than the machine's.
        apt::unpack(ctx, "bookworm", &["runc", "containernetworking-plugins"], dir)
    })?;
    let bin = |name: &str| -> Result<PathBuf> {
        let found = ["usr/bin", "usr/sbin"].iter().map(|dir| runtime.join(dir).join(name)).find(|file| file.is_file());
        found.with_context(|| format!("the unpacked packages have no `{name}`: remove {}", runtime.display()))
    };
    apt_libraries()?;
    Ok(Native {
        containerd: bin("containerd")?,
        ctr: bin("ctr")?,
        runc: bin("runc")?,
        cni_bin: runtime.join("usr/lib/cni"),
    })
}

/// The one shared library that runc wants and a minimal Debian may lack.
fn apt_libraries() -> Result<()> {
    let there = ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    if there.iter().any(|dir| Path::new(dir).join("libseccomp.so.2").exists()) {
        return Ok(());
    }
    apt::install_missing(&["libseccomp2"])
}

fn native_of_machine() -> Result<Native> {
    let mut missing = Vec::new();
    let mut need = |program: &str, version: &str| {
        let found = ctx::which(program);
        if found.is_none() {
            missing.push(format!("{program} ({version})"));
        }
        found.unwrap_or_default()
    };
    let native = Native {
        containerd: need("containerd", "2.1 or newer"),
        ctr: need("ctr", "comes with containerd"),
        runc: need("runc", "1.1 or newer"),
        cni_bin: PathBuf::from("/opt/cni/bin"),
    };
    need("containerd-shim-runc-v2", "comes with containerd");
    need("ip", "iproute2 5 or newer");
    need("nsenter", "util-linux 2.36 or newer");
    let cni_bin = ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"].map(PathBuf::from);
    let cni_bin = cni_bin.into_iter().find(|dir| dir.join("bridge").is_file());
    if cni_bin.is_none() {
        missing.push("the CNI plugins bridge, host-local, loopback in /opt/cni/bin (1.0 or newer)".to_owned());
    }
    if !missing.is_empty() {
        bail!(
            "this is not Debian with root, so nothing is installed. Please install:\n  {}\n\
             or run on Debian as root, where `cargo xtask setup` fetches them.",
            missing.join("\n  ")
        );
    }
    Ok(Native { cni_bin: cni_bin.unwrap_or_default(), ..native })
}

/// kubectl, for the schema checks of deploy/.
pub(crate) fn kubectl(ctx: &Ctx) -> Result<PathBuf> {
    if !may_install() {
        return ctx::which("kubectl").context("kubectl (1.32 or newer) is not on PATH: please install it");
    }
    let dir = ctx.part("kubectl", "trixie kubectl; v1", |dir| apt::unpack(ctx, "trixie", &["kubectl"], dir))?;
    Ok(dir.join("usr/bin/kubectl"))
}

/// Prometheus and promtool.
#[derive(Debug, Clone)]
pub(crate) struct Prometheus {
    pub(crate) prometheus: PathBuf,
    pub(crate) promtool: PathBuf,
}

/// Prometheus and promtool, fetched if need be. Nothing is started.
pub(crate) fn prometheus(ctx: &Ctx) -> Result<Prometheus> {
    if !may_install() {
        let need = |name: &str| ctx::which(name).with_context(|| format!("{name} (2.42 or newer) is not on PATH"));
        return Ok(Prometheus { prometheus: need("prometheus")?, promtool: need("promtool")? });
    }
    let dir =
        ctx.part("prometheus", "bookworm prometheus; v1", |dir| apt::unpack(ctx, "bookworm", &["prometheus"], dir))?;
    Ok(Prometheus { prometheus: dir.join("usr/bin/prometheus"), promtool: dir.join("usr/bin/promtool") })
}
