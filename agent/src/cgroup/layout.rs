//! Which hierarchies this machine has, and where each controller lives.

use std::path::{Component, Path, PathBuf};

use super::error::Error;
use crate::kernel::mountinfo;

/// A mounted v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// Its controllers, more than one where they are mounted together; `name=systemd` for a named one.
    pub controllers: Vec<String>,
    /// Its mount point.
    pub root: PathBuf,
}

/// The mounted hierarchies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// The cgroup2 mount.
    pub unified: PathBuf,
    /// The v1 hierarchies; empty on a machine that has only cgroup v2.
    pub v1: Vec<V1Mount>,
}

/// Where a controller's files of a cgroup are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Home {
    /// The folder.
    pub(super) dir: PathBuf,
    /// They are cgroup v2 files.
    pub(super) v2: bool,
}

/// Options of a v1 mount that name no controller (cgroups(7)).
const NOT_CONTROLLERS: [&str; 6] = ["rw", "ro", "noprefix", "clone_children", "xattr", "none"];

impl Hierarchies {
    /// Reads `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// If it cannot be read or shows no cgroup2 mount.
    pub fn detect() -> Result<Self, Error> {
        let text = mountinfo::read().map_err(|source| Error::Mounts { file: mountinfo::FILE.into(), source })?;
        Self::parse(&text)
    }

    /// From the text of a mountinfo file (proc_pid_mountinfo(5)). Of several mounts of one hierarchy the first counts.
    ///
    /// # Errors
    /// If there is no cgroup2 mount.
    pub fn parse(mountinfo: &str) -> Result<Self, Error> {
        let mut unified = None;
        let mut v1: Vec<V1Mount> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(point), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
            match right.next() {
                // As the reader chooses: the usual place wins over copies elsewhere.
                Some("cgroup2") if unified.is_none() || point.starts_with("/sys/fs/cgroup") => {
                    unified = Some(PathBuf::from(unescape(point)));
                }
                Some("cgroup") => {
                    let options = right.nth(1).unwrap_or_default().split(',');
                    let mut controllers: Vec<String> = options
                        .filter(|o| !NOT_CONTROLLERS.contains(o) && !o.starts_with("release_agent="))
                        .map(str::to_owned)
                        .collect();
                    controllers.sort();
                    if !v1.iter().any(|known| known.controllers == controllers) {
                        v1.push(V1Mount { controllers, root: PathBuf::from(unescape(point)) });
                    }
                }
                _ => {}
            }
        }
        unified.map(|unified| Self { unified, v1 }).ok_or(Error::NoUnified)
    }

    /// A controller of pods (cpu or memory) is on a v1 hierarchy.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        self.v1_root("cpu").is_some() || self.v1_root("memory").is_some()
    }

    /// The mount point of a v1 controller.
    #[must_use]
    pub fn v1_root(&self, controller: &str) -> Option<&Path> {
        self.v1.iter().find(|m| m.controllers.iter().any(|c| c == controller)).map(|m| m.root.as_path())
    }

    /// All mount points, the unified one last: a process that joins a pod is seen there by eBPF only after its limits hold.
    pub(super) fn roots(&self) -> impl Iterator<Item = &Path> {
        self.v1.iter().map(|m| m.root.as_path()).chain([self.unified.as_path()])
    }

    /// Where the controller's files of a cgroup are: on v1 if it is mounted there, else in the unified tree.
    pub(super) fn home(&self, controller: &str, path: &str) -> Home {
        match self.v1_root(controller) {
            Some(root) => Home { dir: root.join(path), v2: false },
            None => Home { dir: self.unified.join(path), v2: true },
        }
    }
}

/// Refuses what could name a folder outside of a hierarchy.
pub(super) fn check(path: &str) -> Result<(), Error> {
    let plain = !path.is_empty()
        && !path.contains('\0')
        && path.split('/').all(|part| !part.is_empty())
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
        && path.split('/').all(|part| part != ".");
    if plain { Ok(()) } else { Err(Error::Path(path.to_owned())) }
}

/// Decodes the octal escapes of mountinfo (`\040` is a space).
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        match rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}
