//! The test images: pause, busybox, and the workload of our own. None can be pulled, so all are written here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::ctx::{self, Ctx, hex};
use crate::oci::{self, Image, Layer};
use crate::{apt, ebpf, setup};

/// The sandbox image, under the name that kubelets use.
pub(crate) const PAUSE: &str = "registry.k8s.io/pause:3.10";
/// Debian's busybox, under the name that manifests use.
pub(crate) const BUSYBOX: &str = "docker.io/library/busybox:1.36";
/// tests/workload.
pub(crate) const WORKLOAD: &str = "localhost/beelet/workload:latest";

/// The image archives, made if need be: all three.
pub(crate) fn all(ctx: &Ctx) -> Result<Vec<PathBuf>> {
    let program = workload_program(ctx)?;
    let content = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let hash = hex(&Sha256::digest(&content));
    let ours = ctx.part("images/workload", &format!("{hash}; v1"), |dir| {
        let mut layer = base_layer();
        layer.file("workload", 0o755, content.clone());
        let workload = Image {
            name: WORKLOAD.to_owned(),
            layer,
            entrypoint: vec!["/workload".to_owned()],
            cmd: vec!["sleep".to_owned()],
            ..Image::default()
        };
        oci::write(&dir.join("workload.tar"), &[workload])?;
        // Called as `pause`, the same program is the sandbox's process 1.
        let mut layer = Layer::default();
        layer.file("pause", 0o755, content);
        let entrypoint = vec!["/pause".to_owned()];
        oci::write(&dir.join("pause.tar"), &[Image { name: PAUSE.to_owned(), layer, entrypoint, ..Image::default() }])?;
        Ok(())
    })?;
    Ok(vec![ours.join("pause.tar"), ours.join("workload.tar"), busybox(ctx)?])
}

/// The statically linked workload program. Cargo decides whether it is up to date.
pub(crate) fn workload_program(ctx: &Ctx) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    ebpf::scrub(&mut cargo);
    cargo.current_dir(&ctx.root).env("CARGO_TARGET_DIR", &ctx.target);
    cargo.args(["build", "--quiet", "--release", "-p", "workload", "--target", &triple]);
    cargo.arg("--config").arg(format!(r#"target.{triple}.rustflags=["-C","target-feature=+crt-static"]"#));
    ctx::run(&mut cargo).context("tests/workload does not build")?;
    Ok(ctx.target.join(triple).join("release/workload"))
}

fn busybox(ctx: &Ctx) -> Result<PathBuf> {
    let debian = setup::may_install();
    let own = if debian { None } else { Some(ctx::which("busybox").context("busybox (static) is not on PATH")?) };
    let recipe =
        own.as_ref().map_or_else(|| "bookworm busybox-static; v1".to_owned(), |p| format!("{}; v1", p.display()));
    let dir = ctx.part("images/busybox", &recipe, |dir| {
        let program = match own {
            Some(program) => program,
            None => {
                apt::unpack(ctx, "bookworm", &["busybox-static"], &dir.join("root"))?;
                dir.join("root/bin/busybox")
            }
        };
        write_busybox(&program, &dir.join("busybox.tar"))
    })?;
    Ok(dir.join("busybox.tar"))
}

fn write_busybox(program: &Path, archive: &Path) -> Result<()> {
    let applets = ctx::output(Command::new(program).arg("--list"))?;
    let mut layer = base_layer();
    layer.copy("bin/busybox", 0o755, program)?;
    for applet in applets.lines().filter(|name| *name != "busybox" && !name.contains('/')) {
        layer.link(&format!("bin/{applet}"), "busybox");
    }
    let image = Image {
        name: BUSYBOX.to_owned(),
        layer,
        cmd: vec!["sh".to_owned()],
        env: vec!["PATH=/bin".to_owned()],
        ..Image::default()
    };
    oci::write(archive, &[image])?;
    Ok(())
}

fn base_layer() -> Layer {
    let mut layer = Layer::default();
    layer.folder("tmp", 0o1777);
    layer.folder("root", 0o700);
    layer.folder("var", 0o755);
    layer.folder("proc", 0o755);
    layer.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
    layer.file("etc/group", 0o644, "root:x:0:\nnobody:x:65534:\n");
    layer
}
