//! What a VM is made of, fetched and built once into the cache.
//!
//! Problem: a VM needs an emulator, a kernel with modules and a root file system; no image can be downloaded, the
//! host may be older than the emulator, and building must take seconds and need no privileges.
//!
//! Approach: three parts, each from Debian packages that are unpacked, not installed.
//! * *emulator*: QEMU with all of its libraries down to libc, started through its own dynamic linker, so that the host's
//!   libraries do not matter.
//! * *root*: containerd, crun, runc, CNI plugins and a busybox for the rest, with an init script as PID 1, written into
//!   an ext4 image by `mke2fs -d`. VMs attach it as a snapshot: they share it and leave it clean.
//! * *kernel*: one per release of Debian. Its modules are decompressed here (emulation is slow) into an image of their
//!   own, so that one root serves every kernel; `virtio_blk` comes in an initramfs.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::cpio::Cpio;
use crate::apt;
use crate::ctx::{self, Ctx};
use crate::images::PAUSE;

/// The release of Debian that the emulator and the guest are of.
const SUITE: &str = "trixie";
/// Programs in the guest, besides what they depend on.
const GUEST: &[&str] = &[
    "bash",
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "crun",
    "iproute2",
    "kmod",
    "libgcc-s1",
    "runc",
];
/// Room in the guest's file system; the image file is sparse.
const ROOT_SIZE: &str = "6G";
/// Room for the modules: they are about 60 MB.
const MODULES_SIZE: &str = "256M";
/// Folders of modules that no VM needs, in `kernel/drivers`, are those that are not here.
const DRIVERS: &[&str] = &["block", "char", "net", "virtio"];

const INIT: &str = include_str!("guest/init.sh");
const INITRAMFS: &str = include_str!("guest/initramfs.sh");
const CONTAINERD: &str = include_str!("guest/containerd.toml");
const CNI: &str = include_str!("guest/10-beelet.conflist");

/// The kernels that can be asked for, and the release of Debian that has them.
pub(super) const KERNELS: &[(&str, &str)] = &[("6.1", "bookworm"), ("6.12", "trixie"), ("sid", "sid")];

/// Paths of everything that a VM is started from.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    emulator: PathBuf,
    root: PathBuf,
    kernel: PathBuf,
}

impl Parts {
    /// Makes what is missing.
    pub(super) fn ready(ctx: &Ctx, kernel: &str) -> Result<Self> {
        let Some((_, suite)) = KERNELS.iter().find(|(name, _)| *name == kernel) else {
            let known: Vec<&str> = KERNELS.iter().map(|(name, _)| *name).collect();
            bail!("no kernel `{kernel}`: there are {}", known.join(", "));
        };
        let emulator = ctx.part("vm/emulator", &format!("1 {SUITE} qemu-system-x86"), |dir| {
            let step = ctx::step("VM: fetching QEMU");
            apt::unpack_with_dependencies(ctx, SUITE, &["qemu-system-x86"], dir)?;
            step.done();
            Ok(())
        })?;
        let recipe = format!("2 {SUITE} {GUEST:?} {ROOT_SIZE} {INIT} {CONTAINERD} {CNI} {PAUSE}");
        let root = ctx.part("vm/root", &recipe, |dir| {
            let step = ctx::step("VM: building the guest's file system");
            build_root(ctx, dir)?;
            step.done();
            Ok(())
        })?;
        let recipe = format!("3 {suite} {MODULES_SIZE} {DRIVERS:?} {INITRAMFS}");
        let kernel = ctx.part(&format!("vm/kernel-{kernel}"), &recipe, |dir| {
            let step = ctx::step(format!("VM: fetching the kernel of {suite}"));
            build_kernel(ctx, suite, &root, dir)?;
            step.done();
            Ok(())
        })?;
        Ok(Self { emulator, root, kernel })
    }

    /// QEMU, run by its own dynamic linker. Arguments are still to come.
    pub(super) fn qemu(&self) -> Vec<String> {
        let usr = self.emulator.join("usr");
        let path = |relative: &str| usr.join(relative).display().to_string();
        let mut command = linked(&usr);
        command.push(path("bin/qemu-system-x86_64"));
        for firmware in ["share/qemu", "share/seabios"] {
            command.extend(["-L".to_owned(), path(firmware)]);
        }
        command
    }

    /// The kernel's file.
    pub(super) fn vmlinuz(&self) -> PathBuf {
        self.kernel.join("vmlinuz")
    }

    /// The initramfs for that kernel.
    pub(super) fn initrd(&self) -> PathBuf {
        self.kernel.join("initrd")
    }

    /// The image with that kernel's modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.kernel.join("modules.img")
    }

    /// The image of the root file system.
    pub(super) fn root(&self) -> PathBuf {
        self.root.join("root.img")
    }
}

/// The beginning of a command line that runs a program of an unpacked `usr` with the libraries there.
fn linked(usr: &Path) -> Vec<String> {
    let path = |relative: &str| usr.join(relative).display().to_string();
    vec![path("lib64/ld-linux-x86-64.so.2"), "--library-path".into(), path("lib/x86_64-linux-gnu")]
}

fn build_root(ctx: &Ctx, dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    apt::unpack_with_dependencies(ctx, SUITE, GUEST, &tree)?;
    let write = |path: &str, content: &str| -> Result<()> {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    write("usr/sbin/init", INIT)?;
    fs::set_permissions(tree.join("usr/sbin/init"), fs::Permissions::from_mode(0o755))?;
    write("etc/containerd/config.toml", &CONTAINERD.replace("@PAUSE@", PAUSE))?;
    write("etc/cni/net.d/10-beelet.conflist", CNI)?;
    write("etc/hosts", "127.0.0.1 localhost\n10.0.2.15 beelet-vm\n")?;
    write("etc/resolv.conf", "nameserver 10.0.2.3\n")?;
    write("etc/machine-id", "bee1e70000000000000000000000beef\n")?;
    write("etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n")?;
    write("etc/group", "root:x:0:\nnogroup:x:65534:\n")?;
    fs::create_dir_all(tree.join("usr/lib/modules"))?;
    for unneeded in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/cni/dhcp"] {
        let path = tree.join(unneeded);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    // Every applet of busybox that no real program stands for.
    let applets = ctx::output(Command::new(tree.join("usr/bin/busybox")).arg("--list"))?;
    for applet in applets.lines() {
        let (bin, sbin) = (tree.join("usr/bin").join(applet), tree.join("usr/sbin").join(applet));
        if bin.symlink_metadata().is_err() && sbin.symlink_metadata().is_err() {
            symlink("busybox", bin)?;
        }
    }
    image(&tree, &dir.join("root.img"), ROOT_SIZE)
}

fn build_kernel(ctx: &Ctx, suite: &str, root: &Path, dir: &Path) -> Result<()> {
    let depends = apt::depends(ctx, suite, "linux-image-cloud-amd64")?;
    let package = depends.iter().find(|name| name.starts_with("linux-image-")).context("no kernel in that suite")?;
    let tree = dir.join("tree");
    // Later releases have binary and modules in packages of their own.
    let more = apt::depends(ctx, suite, package)?;
    let split = |name: &&String| name.starts_with("linux-binary-") || name.starts_with("linux-modules-");
    let packages: Vec<&str> = std::iter::once(package).chain(more.iter().filter(split)).map(String::as_str).collect();
    apt::unpack(ctx, suite, &packages, &tree)?;
    let release = package.trim_start_matches("linux-image-");
    let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
    let vmlinuz = places.iter().map(|place| tree.join(place)).find(|file| file.is_file());
    fs::rename(vmlinuz.context("the kernel's package has no vmlinuz")?, dir.join("vmlinuz"))?;
    fs::write(dir.join("release"), release)?;
    // bookworm's package still has /lib beside /usr.
    let modules = ["usr/lib/modules", "lib/modules"].map(|path| tree.join(path).join(release));
    let modules = modules.iter().find(|path| path.is_dir()).context("the kernel's package has no modules")?;
    for driver in fs::read_dir(modules.join("kernel/drivers"))? {
        let driver = driver?;
        if !DRIVERS.iter().any(|wanted| driver.file_name() == *wanted) {
            fs::remove_dir_all(driver.path())?;
        }
    }
    decompress(modules)?;
    let disk = dir.join("disk");
    fs::create_dir_all(disk.join("lib/modules"))?;
    fs::rename(modules, disk.join("lib/modules").join(release))?;
    let usr = root.join("tree/usr");
    let depmod =
        [usr.join("sbin/depmod").display().to_string(), "-b".into(), disk.display().to_string(), release.into()];
    let depmod = [linked(&usr), depmod.to_vec()].concat();
    ctx::quiet(Command::new(&depmod[0]).args(&depmod[1..]))?;

    fs::write(dir.join("initrd"), initramfs(&usr.join("bin/busybox"), &disk.join("lib/modules").join(release))?)?;
    image(&disk.join("lib/modules"), &dir.join("modules.img"), MODULES_SIZE)?;
    fs::remove_dir_all(&tree)?;
    fs::remove_dir_all(&disk)?;
    Ok(())
}

/// What boots from the disk: a busybox, and the modules without which there is no disk, in the order to load them.
fn initramfs(busybox: &Path, modules: &Path) -> Result<Vec<u8>> {
    let dependencies = fs::read_to_string(modules.join("modules.dep"))?;
    let mut order: Vec<&str> = Vec::new();
    for wanted in ["virtio_pci.ko", "virtio_blk.ko", "ext4.ko"] {
        // `PATH: NEEDED...`, where the last one needed is loaded first. What is built in has no line.
        let line = dependencies.lines().find(|line| line.split(':').next().is_some_and(|path| path.ends_with(wanted)));
        let Some((module, needed)) = line.and_then(|line| line.split_once(':')) else { continue };
        for path in needed.split_whitespace().rev().chain([module]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    let mut cpio = Cpio::default();
    for folder in ["bin", "dev", "mnt", "modules"] {
        cpio.folder(folder);
    }
    cpio.file("bin/busybox", &fs::read(busybox)?);
    for (number, path) in order.iter().enumerate() {
        cpio.file(&format!("modules/{number:02}.ko"), &fs::read(modules.join(path))?);
    }
    cpio.file("init", INITRAMFS.as_bytes());
    Ok(cpio.finish())
}

/// Decompresses every module below `dir`, if this kernel's are compressed.
fn decompress(dir: &Path) -> Result<()> {
    let mut packed = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_some_and(|e| e == "xz") {
                packed.push(entry.path());
            }
        }
    }
    for chunk in packed.chunks(200) {
        ctx::quiet(Command::new("xz").args(["--decompress", "--quiet"]).args(chunk))?;
    }
    Ok(())
}

/// Writes a folder into a sparse ext4 image, without privileges.
fn image(tree: &Path, file: &Path, size: &str) -> Result<()> {
    let mke2fs = ctx::which("mke2fs").context("mke2fs is missing: install e2fsprogs")?;
    // No journal: an image is only ever used through a snapshot that is thrown away.
    ctx::quiet(
        Command::new(mke2fs)
            .args([
                "-q",
                "-F",
                "-t",
                "ext4",
                "-m",
                "0",
                "-O",
                "^has_journal",
                "-E",
                "lazy_itable_init=1,root_owner=0:0",
                "-d",
            ])
            .args([tree, file])
            .arg(size),
    )?;
    ensure!(file.is_file(), "mke2fs made no {}", file.display());
    Ok(())
}
