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
fn unescape(text: &str) -> String {
    String::from_utf8_lossy(&unescape_bytes(text.as_bytes())).into_owned()
}

/// The same for a name that need not be UTF-8.
pub(crate) fn unescape_bytes(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rest.len());
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        out.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    out
}
