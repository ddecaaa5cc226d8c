//! `cargo xtask image`: the agent's container image, as an OCI archive written without Docker.
//!
//! Problem: the DaemonSet needs an image, and it must be buildable where no base image can be pulled. The same commit
//! should give the same bytes wherever it is built, so that a digest can be checked.
//!
//! Approach: no base image. The agent is linked statically, so the image holds it, the eBPF object, the licences and the
//! few files that every root file system has. The compiler is told to forget this machine's paths, the archive has no
//! times and no owners, and the annotations come from the commit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::ctx::{self, Ctx};
use crate::ebpf;
use crate::oci::{self, Image, Layer};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Arguments of `cargo xtask image`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImageArgs {
    /// Where to write the archive [default: target/beelet-image.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The reference under which a runtime lists it [default: localhost/beelet/beelet:VERSION]
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Put a debug build into it: much sooner there, larger, slower
    #[arg(long)]
    debug: bool,
}

impl ImageArgs {
    /// Writes the image.
    pub(crate) fn run(self, ctx: &Ctx) -> Result<()> {
        let output = self.output.unwrap_or_else(|| ctx.target.join("beelet-image.tar"));
        let name = self.name.unwrap_or_else(|| format!("localhost/beelet/beelet:{VERSION}"));
        // Before the minutes of the build.
        let licences = licences(&ctx.root)?;
        let step = ctx::step("building the agent, statically linked, and its eBPF object");
        let agent = static_agent(ctx, self.debug)?;
        let object = ebpf::build(ctx)?;
        step.done();
        let image = agent_image(ctx, name, &agent, &object, licences)?;
        let name = image.name.clone();
        let digests = oci::write(&output, &[image])?;
        let size = fs::metadata(&output)?.len();
        ctx::note(format!("{name}: {:.1} MB in {}", size as f64 / 1e6, output.display()));
        ctx::note("import it with: ctr -n k8s.io images import FILE");
        println!("{}", digests.concat());
        Ok(())
    }
}

fn agent_image(
    ctx: &Ctx,
    name: String,
    agent: &Path,
    object: &Path,
    licences: Vec<(String, Vec<u8>)>,
) -> Result<Image> {
    let mut layer = Layer::default();
    layer.copy("usr/bin/beelet", 0o755, agent)?;
    layer.copy("usr/lib/beelet/beelet-ebpf", 0o644, object)?;
    for (file, text) in licences {
        layer.file(&format!("usr/share/doc/beelet/{file}"), 0o644, text);
    }
    layer.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/usr/sbin/nologin\n");
    layer.file("etc/group", 0o644, "root:x:0:\n");
    layer.file("etc/nsswitch.conf", 0o644, "hosts: files dns\n");
    layer.folder("root", 0o700);
    layer.folder("tmp", 0o1777);
    // Mount points of the DaemonSet's volumes: a runtime may refuse to make them in a read-only root.
    for folder in ["etc/beelet", "proc", "run", "sys", "var/lib/beelet"] {
        layer.folder(folder, 0o755);
    }
    let git = |args: &[&str]| ctx::output(Command::new("git").arg("-C").arg(&ctx.root).args(args));
    let mut annotations = vec![
        ("title", "beelet".to_owned()),
        ("description", "A kubelet that measures with eBPF".to_owned()),
        ("licenses", env!("CARGO_PKG_LICENSE").to_owned()),
        ("source", env!("CARGO_PKG_REPOSITORY").to_owned()),
        ("version", VERSION.to_owned()),
    ];
    // A source tree without its history still makes an image.
    if let Ok(revision) = git(&["rev-parse", "HEAD"]) {
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|text| !text.trim().is_empty());
        annotations.push(("revision", format!("{}{}", revision.trim(), if changed { "-dirty" } else { "" })));
    }
    Ok(Image {
        name,
        layer,
        entrypoint: vec!["/usr/bin/beelet".to_owned()],
        cmd: vec!["run".to_owned()],
        env: vec!["PATH=/usr/bin".to_owned()],
        annotations: annotations
            .into_iter()
            .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value))
            .collect(),
        ..Image::default()
    })
}

/// The licence texts of the repository, by file name.
fn licences(root: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("LICENSE") {
            found.push((name, fs::read(entry.path())?));
        }
    }
    anyhow::ensure!(!found.is_empty(), "no LICENSE file in {}", root.display());
    Ok(found)
}

/// The agent without shared libraries and without this machine's paths in it.
fn static_agent(ctx: &Ctx, debug: bool) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let mut flags = vec!["-C".to_owned(), "target-feature=+crt-static".to_owned()];
    let hide = |path: &Path, name: &str| format!("--remap-path-prefix={}={name}", path.display());
    flags.extend(cargo_home.map(|path| hide(&path, "/cargo")));
    flags.push(hide(&ctx.root, "/beelet"));
    // TOML's and JSON's strings agree on all that a path holds.
    let flags = serde_json::to_string(&flags)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    cargo.current_dir(&ctx.root).env("CARGO_TARGET_DIR", &ctx.target);
    cargo.args(["build", "--locked", "-p", "beelet", "--bin", "beelet", "--target", &triple]);
    cargo.args(["--config", &format!("target.{triple}.rustflags={flags}")]);
    if !debug {
        cargo.arg("--release");
    }
    let log = ctx.log_file("image")?;
    ctx::logged("building the agent", &log, &mut cargo)
        .context("the agent does not build statically (glibc's static library is in libc6-dev)")?;
    let agent = ctx.target.join(&triple).join(if debug { "debug" } else { "release" }).join("beelet");
    let hash = ctx::hex(&Sha256::digest(fs::read(&agent).with_context(|| format!("no {}", agent.display()))?));
    ctx::note(format!("the agent's sha256: {hash}"));
    Ok(agent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_has_agent_object_and_licence() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_path_buf();
        for file in ["agent", "object", "LICENSE-MIT"] {
            fs::write(root.join(file), file).unwrap();
        }
        let ctx = Ctx { root: root.clone(), cache: root.clone(), target: root.clone() };
        let image =
            agent_image(&ctx, "x:1".into(), &root.join("agent"), &root.join("object"), licences(&root).unwrap())
                .unwrap();
        for path in ["usr/bin/beelet", "usr/lib/beelet/beelet-ebpf", "usr/share/doc/beelet/LICENSE-MIT"] {
            assert!(image.layer.has(path), "{path}");
        }
        assert_eq!(image.annotations["org.opencontainers.image.version"], VERSION);
    }

    #[test]
    fn an_image_without_licence_is_refused() {
        assert!(licences(tempfile::tempdir().unwrap().path()).is_err());
    }
}
