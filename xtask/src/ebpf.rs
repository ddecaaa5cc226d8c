//! `cargo xtask build-ebpf`: the eBPF object, and the compiler for it.
//!
//! Problem: the programs are compiled for another target (`bpfel-unknown-none`) by a compiler whose `core` for that
//! target exists nowhere in a stable rustup toolchain, and are linked by a linker that must agree with that compiler's LLVM.
//!
//! Approach: a toolchain of the user's own is taken if it can do it (nightly with rust-src, and bpf-linker on PATH:
//! `-Z build-std=core`). Otherwise, on Debian, `rustc-web` and its precompiled `core` for BPF are unpacked into the
//! cache beside the LLVM library they share, and bpf-linker is built against that same LLVM. Which one is used is said.
//! xtask drives cargo with a scrubbed environment, so that the host build's settings do not reach the eBPF build
//! and this build's settings never reach the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::ctx::{self, Ctx};
use crate::{apt, setup};

const BPF_LINKER: &str = "0.13.0";
/// The LLVM releases that this bpf-linker has a feature for.
const LLVM_KNOWN: [&str; 3] = ["21", "22", "23"];
const RUSTFLAGS: &str = "-C link-arg=--btf -C debuginfo=2";

/// A compiler for eBPF.
#[derive(Debug)]
pub(crate) enum Toolchain {
    /// Debian's rustc in the cache: the folder with `bin/rustc` and `bin/bpf-linker`.
    Debian(PathBuf),
    /// rustup's nightly with rust-src, and the bpf-linker on PATH.
    Nightly(PathBuf),
}

/// Builds the object and returns where it is.
pub(crate) fn build(ctx: &Ctx) -> Result<PathBuf> {
    let toolchain = toolchain(ctx)?;
    let (name, what) = match &toolchain {
        Toolchain::Debian(_) => ("Debian's rustc-web, precompiled core", toolchain_line(&toolchain)),
        Toolchain::Nightly(_) => ("rustup's nightly, -Z build-std=core", toolchain_line(&toolchain)),
    };
    let step = ctx::step(format!("eBPF object ({name}; {})", what.unwrap_or_default()));
    let source = ctx.root.join("agent-ebpf");
    let target = ctx.target.join("bpf-build");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    if matches!(toolchain, Toolchain::Nightly(_)) {
        // $CARGO is one toolchain's own cargo; the proxy chooses by +toolchain.
        cargo = Command::new("cargo");
        cargo.arg("+nightly");
    }
    scrub(&mut cargo);
    cargo
        .current_dir(&source)
        .args(["build", "--release", "--locked", "--quiet", "--features", "programs", "--bin", "beelet-ebpf"])
        .args(["--target", "bpfel-unknown-none"])
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", RUSTFLAGS);
    match &toolchain {
        Toolchain::Debian(prefix) => {
            cargo
                .env("RUSTC", prefix.join("bin/rustc"))
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", prefix.join("bin/bpf-linker"));
        }
        Toolchain::Nightly(linker) => {
            cargo.args(["-Z", "build-std=core"]).env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
        }
    }
    ctx::run(&mut cargo).context("the eBPF programs do not build")?;
    let built = target.join("bpfel-unknown-none/release/beelet-ebpf");
    let object = object(ctx);
    fs::create_dir_all(object.parent().context("no parent folder")?)?;
    copy_if_changed(&built, &object)?;
    step.done();
    Ok(object)
}

/// Where the built object is.
pub(crate) fn object(ctx: &Ctx) -> PathBuf {
    ctx.target.join("bpf/beelet-ebpf")
}

/// A compiler for eBPF: the user's own if it can, else Debian's in the cache.
pub(crate) fn toolchain(ctx: &Ctx) -> Result<Toolchain> {
    if let Some(linker) = own_nightly() {
        return Ok(Toolchain::Nightly(linker));
    }
    if !setup::may_install() {
        bail!(
            "no compiler for eBPF: this is not Debian with root, so nothing is installed. Please run\n  \
             rustup toolchain install nightly --component rust-src\n  cargo install bpf-linker"
        );
    }
    let recipe = format!("bookworm rustc-web, bpf-linker {BPF_LINKER}; v1");
    Ok(Toolchain::Debian(ctx.part("ebpf", &recipe, |prefix| debian_toolchain(ctx, prefix))?))
}

/// bpf-linker's path, if there is a nightly toolchain with rust-src and bpf-linker too.
fn own_nightly() -> Option<PathBuf> {
    let linker = ctx::which("bpf-linker")?;
    let mut rustc = Command::new("rustc");
    scrub(&mut rustc);
    let sysroot = ctx::output(rustc.args(["+nightly", "--print", "sysroot"])).ok()?;
    Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir().then_some(linker)
}

fn toolchain_line(toolchain: &Toolchain) -> Option<String> {
    let mut rustc = match toolchain {
        Toolchain::Debian(prefix) => Command::new(prefix.join("bin/rustc")),
        Toolchain::Nightly(_) => Command::new("rustc"),
    };
    scrub(&mut rustc);
    if matches!(toolchain, Toolchain::Nightly(_)) {
        rustc.arg("+nightly");
    }
    ctx::output(rustc.arg("-V")).ok().map(|line| line.trim().to_owned())
}

fn debian_toolchain(ctx: &Ctx, prefix: &Path) -> Result<()> {
    let suite = "bookworm";
    let step = ctx::step("eBPF toolchain: a compiler (110 MB) and bpf-linker (1-4 minutes), once");
    // The packages carry Rust's and LLVM's versions in their names, which move with security updates.
    let mut names = apt::depends(ctx, suite, "rustc-web")?;
    let (mut std_lib, mut llvm_package) = (None, None);
    for _ in 0..3 {
        let versioned = |name: &&String, prefix: &str| {
            name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        std_lib = names.iter().find(|name| versioned(name, "libstd-rust-web-")).cloned();
        llvm_package = names.iter().find(|name| versioned(name, "libllvm")).cloned();
        for name in names.clone().iter().filter(|name| name.starts_with("libstd-rust-web-")) {
            names.extend(apt::depends(ctx, suite, name)?);
        }
        if std_lib.is_some() && llvm_package.is_some() {
            break;
        }
    }
    let (Some(std_lib), Some(llvm_package)) = (std_lib, llvm_package) else {
        bail!("Debian's rustc-web leads to no libstd-rust-web-N or no libllvmN: {names:?}");
    };
    let llvm = llvm_package.trim_start_matches("libllvm").split(['t', ':']).next().unwrap_or_default().to_owned();
    let packages =
        ["rustc-web", std_lib.as_str(), "libstd-rust-web-dev", "libstd-rust-web-dev-bpf", llvm_package.as_str()];
    let root = prefix.join("root");
    apt::unpack(ctx, suite, &packages, &root)?;

    let libs = root.join("usr/lib/x86_64-linux-gnu");
    let bin = prefix.join("bin");
    fs::create_dir_all(&bin)?;
    let wrapper = bin.join("rustc");
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libs.display(),
        root.join("usr/bin/rustc").display()
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;

    let version = ctx::output(Command::new(&wrapper).arg("-vV")).context("the unpacked rustc does not run")?;
    let of_rustc = version.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or("unknown");
    if of_rustc.split('.').next() != Some(llvm.as_str()) || !LLVM_KNOWN.contains(&llvm.as_str()) {
        bail!(
            "Debian's rustc-web has LLVM {of_rustc}, its package names {llvm_package}, and bpf-linker {BPF_LINKER} knows \
             LLVM {}: raise BPF_LINKER and LLVM_KNOWN in xtask/src/ebpf.rs",
            LLVM_KNOWN.join(", ")
        );
    }
    let llvm_lib = fs::read_dir(&libs)?
        .flatten()
        .map(|entry| entry.path())
        .find(|p| p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("libLLVM") && n.contains(&llvm)))
        .with_context(|| format!("{llvm_package} has no libLLVM in {}", libs.display()))?;
    let llvm_dir = prefix.join("llvm/lib");
    fs::create_dir_all(&llvm_dir)?;
    for name in ["libLLVM.so", &format!("libLLVM.so.{llvm}.1"), &format!("libLLVM-{llvm}.so")] {
        symlink(&llvm_lib, llvm_dir.join(name))?;
    }
    let mut install = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    scrub(&mut install);
    install
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(prefix.join("linker"))
        .env("LLVM_PREFIX", prefix.join("llvm"))
        .env("CARGO_TARGET_DIR", prefix.join("linker-build"))
        .env("RUSTFLAGS", format!("-C link-arg=-Wl,-rpath,{}", libs.display()))
        .current_dir(prefix);
    ctx::logged("building bpf-linker", &ctx.log_file("bpf-linker")?, &mut install)?;
    fs::remove_dir_all(prefix.join("linker-build")).ok();
    let linker = bin.join("bpf-linker");
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        libs.display(),
        prefix.join("linker/bin/bpf-linker").display()
    );
    fs::write(&linker, script)?;
    fs::set_permissions(&linker, fs::Permissions::from_mode(0o755))?;
    ctx::output(Command::new(&linker).arg("--version")).context("the built bpf-linker does not run")?;
    step.done();
    Ok(())
}

/// Takes away what `cargo run` and the caller's shell say about another build.
pub(crate) fn scrub(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        // What rustup was told stays: some crates carry a rust-toolchain.toml, and a rustc that starts in their folders without
        // RUSTUP_TOOLCHAIN would obey it and update the user's toolchain. `cargo +nightly` leads over the variable.
        let keeps = text == "CARGO_HOME"
            || ["RUSTUP_", "CARGO_HTTP", "CARGO_NET", "CARGO_REGISTR", "CARGO_SOURCE", "CARGO_TERM"]
                .iter()
                .any(|p| text.starts_with(p));
        let ours = ["CARGO", "RUST", "LLVM"].iter().any(|p| text.starts_with(p)) || text == "LD_LIBRARY_PATH";
        if ours && !keeps {
            command.env_remove(&name);
        }
    }
}

/// Copies only a changed file, so that what depends on its time stays fresh.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cargo built no {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let temporary = to.with_extension("new");
    fs::write(&temporary, new)?;
    fs::rename(&temporary, to).with_context(|| format!("cannot write {}", to.display()))
}
