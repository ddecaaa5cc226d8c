//! The native bed: a test node on this machine, with its own network namespace, containerd and cgroup parent.
//!
//! Problem: tests and `cargo xtask run` need a node on which the agent may do what it does on real ones, several at
//! once, on a machine whose own containerd, network and cgroups must not be touched, and from which everything must go
//! again: also when the test was killed.
//!
//! Approach: each bed belongs to a *supervisor* process. It builds the bed, holds the bed's lock as long as it lives,
//! watches its owner through a pidfd, and takes the bed down when the owner ends, however that happens, or when it is
//! asked to (SIGTERM). Everything that runs in a bed runs in cgroups below `/beelet-NAME`, so it can be found and
//! killed by cgroup. A bed whose lock nobody holds has lost its supervisor: the next command sweeps it away.
//!
//! A bed consists of
//! * network namespace `beelet-NAME`; a veth pair: host side 10.200.I.1/24, node address 10.200.I.2; pods in 10.201.I.0/24
//!   on a bridge; the host has a route to them; I is the bed's index;
//! * containerd with everything of its own, in cgroup `/beelet-NAME/runtime`;
//! * cgroup `/beelet-NAME` in every hierarchy, the agent's `cgroupRoot`;
//! * state in /run/beelet/NAME (sockets need short paths), data in a folder of the caller's choice.

mod cgroups;
mod command;
mod net;
mod runtime;
mod supervisor;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

pub(crate) use cgroups::is_hybrid;
pub(crate) use command::BedCommand;
pub(crate) use supervisor::{BedHandle, Owner};

use crate::ctx;

/// Where beds keep their state: one folder each.
const RUN: &str = "/run/beelet";

/// A bed as its users see it: what `cargo xtask bed up` prints as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Info {
    pub(crate) name: String,
    /// Distinguishes the networks of beds that exist at the same time.
    pub(crate) index: u8,
    /// Name of the network namespace, as in `nsenter --net=/run/netns/NAME`.
    pub(crate) netns: String,
    /// File of the network namespace.
    pub(crate) netns_path: PathBuf,
    /// The node's address, reachable from the host.
    pub(crate) node_ip: String,
    /// The host's address on the same link.
    pub(crate) host_ip: String,
    pub(crate) pod_cidr: String,
    /// The agent's `cgroupRoot`.
    pub(crate) cgroup_root: String,
    /// Data: containerd's root, the agent's root folder.
    pub(crate) dir: PathBuf,
    /// For the agent's `--root-dir`.
    pub(crate) root_dir: PathBuf,
    /// Sockets and mounts.
    pub(crate) run_dir: PathBuf,
    pub(crate) containerd_socket: PathBuf,
    pub(crate) containerd_config: PathBuf,
    pub(crate) containerd_pid: u32,
    pub(crate) containerd: PathBuf,
    pub(crate) ctr: PathBuf,
    pub(crate) runc: PathBuf,
    pub(crate) cni_conf_dir: PathBuf,
    pub(crate) cni_bin_dir: PathBuf,
    pub(crate) log_dir: PathBuf,
    pub(crate) containerd_log: PathBuf,
    pub(crate) supervisor_pid: u32,
    pub(crate) owner_pid: u32,
    pub(crate) images: Vec<String>,
    /// The log folder stays when the bed goes.
    pub(crate) keep_logs: bool,
}

impl Info {
    fn new(name: &str, index: u8, dir: &Path) -> Self {
        let run_dir = Path::new(RUN).join(name);
        Self {
            name: name.to_owned(),
            index,
            netns: format!("beelet-{name}"),
            netns_path: Path::new("/run/netns").join(format!("beelet-{name}")),
            node_ip: format!("10.200.{index}.2"),
            host_ip: format!("10.200.{index}.1"),
            pod_cidr: format!("10.201.{index}.0/24"),
            cgroup_root: format!("/beelet-{name}"),
            dir: dir.to_path_buf(),
            root_dir: dir.join("kubelet"),
            containerd_socket: run_dir.join("containerd.sock"),
            containerd_config: run_dir.join("containerd.toml"),
            containerd_pid: 0,
            containerd: PathBuf::new(),
            ctr: PathBuf::new(),
            runc: PathBuf::new(),
            cni_conf_dir: run_dir.join("cni/net.d"),
            cni_bin_dir: PathBuf::new(),
            log_dir: dir.join("logs"),
            containerd_log: dir.join("logs/containerd.log"),
            supervisor_pid: std::process::id(),
            owner_pid: 0,
            images: Vec::new(),
            keep_logs: true,
            run_dir,
        }
    }

    /// Reads the description of a bed.
    pub(crate) fn read(name: &str) -> Result<Self> {
        let path = Path::new(RUN).join(name).join("bed.json");
        let text = fs::read_to_string(&path).with_context(|| format!("there is no bed `{name}`"))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    fn write(&self) -> Result<()> {
        let path = self.run_dir.join("bed.json");
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A command that will run in the bed's network namespace and in its cgroup `/beelet-NAME/GROUP`.
    ///
    /// It goes through this program, which joins the cgroups first: so there is no moment in which it is outside.
    pub(crate) fn inside(&self, group: &str, program: &Path) -> Result<Command> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["bed", "exec", "--name", &self.name, "--group", group, "--"]).arg(program);
        Ok(command)
    }

    /// `ctr` for this bed's containerd and the kubelet's namespace.
    pub(crate) fn ctr(&self) -> Command {
        let mut command = Command::new(&self.ctr);
        command.arg("--address").arg(&self.containerd_socket).args(["--namespace", "k8s.io"]);
        command
    }
}

/// A name that is safe in paths, in a network namespace's name and in a cgroup's.
fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(plain) || name.starts_with('-') {
        bail!("the bed's name `{name}` must be 1 to 40 of a-z, 0-9 and -, not beginning with -");
    }
    Ok(())
}

/// A bed's lock, held as long as this lives.
#[derive(Debug)]
struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the bed's lock; `None` if somebody else has it.
    fn take(name: &str) -> Result<Option<Self>> {
        fs::create_dir_all(RUN).with_context(|| format!("cannot create {RUN}: a native bed needs root"))?;
        // Beside the bed's folder, not in it: the lock must outlive the folder.
        let path = Path::new(RUN).join(format!("{name}.lock"));
        loop {
            let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Ok(None);
            }
            // Its last holder may have removed the file after it was opened here.
            if fs::metadata(&path).is_ok_and(|now| file.metadata().is_ok_and(|mine| mine.ino() == now.ino())) {
                return Ok(Some(Self { _file: file, path }));
            }
        }
    }

    /// Removes the lock of a bed that is gone.
    fn retire(self) {
        fs::remove_file(&self.path).ok();
    }
}

/// The names of all beds that have a folder.
fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(RUN) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.path().is_dir());
    folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Takes down every bed that has lost its supervisor.
pub(crate) fn sweep() -> Result<()> {
    for name in names() {
        let Some(lock) = Lock::take(&name)? else { continue };
        if Path::new(RUN).join(&name).is_dir() {
            ctx::note(format!("sweeping the bed `{name}`, whose supervisor is gone"));
            take_down_by_name(&name)?;
        }
        lock.retire();
    }
    Ok(())
}

/// Takes down a bed of which perhaps only half is there. The caller holds its lock.
fn take_down_by_name(name: &str) -> Result<()> {
    let info = Info::read(name).unwrap_or_else(|_| Info::new(name, 0, Path::new("/nonexistent")));
    take_down(&info)
}

/// Removes everything of a bed; goes on after a failure and reports the first one.
fn take_down(info: &Info) -> Result<()> {
    let mut first = None;
    let mut also = |done: Result<()>| {
        if let Err(error) = done {
            eprintln!("taking down `{}`: {error:#}", info.name);
            first.get_or_insert(error);
        }
    };
    // Who could start something new goes first, then everybody else.
    also(cgroups::kill(&format!("{}/agent", info.cgroup_root)));
    also(cgroups::kill(&format!("{}/runtime", info.cgroup_root)));
    also(cgroups::kill(&info.cgroup_root));
    runtime::remove_traces(info);
    also(unmount_below(&info.run_dir));
    also(unmount_below(&info.dir));
    also(net::delete(info));
    also(cgroups::remove(&info.cgroup_root));
    if info.keep_logs {
        for part in ["kubelet", "containerd"] {
            also(remove_folder(&info.dir.join(part)));
        }
        // Only if nothing else is there.
        fs::remove_dir(&info.dir).ok();
    } else {
        also(remove_folder(&info.dir));
    }
    also(remove_folder(&info.run_dir));
    first.map_or(Ok(()), Err)
}

fn remove_folder(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Unmounts everything at or below `dir`, the newest first.
fn unmount_below(dir: &Path) -> Result<()> {
    use rustix::mount::{UnmountFlags, unmount};
    for _ in 0..5 {
        let mounts = mounts_below(dir)?;
        if mounts.is_empty() {
            return Ok(());
        }
        for mount in mounts.iter().rev() {
            unmount(mount, UnmountFlags::DETACH).ok();
        }
    }
    let left = mounts_below(dir)?;
    if left.is_empty() { Ok(()) } else { bail!("still mounted: {left:?}") }
}

fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

/// The kernel writes blanks in paths as `\040`.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe() {
        assert!(check_name("run-1").is_ok());
        for bad in ["", "-a", "a/b", "..", "A", "a b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape("/a\\040b"), "/a b");
    }
}
