//! How a container mounts a volume.
//!
//! Problem: what a mount names may lie in a folder that others write to, so that the name alone says nothing about where it
//! leads. Approach: here is only what can be said of the name; the edge opens it without ever leaving the volume.
//!
//! Property: a sub path that passes [`check_descending`] has no step upwards and does not begin at a root.

use serde::{Deserialize, Serialize};

/// A volume in a container's file tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where in the container.
    pub path: String,
    /// `readOnly`.
    pub read_only: bool,
    /// `subPath` or `subPathExpr`.
    #[serde(default, skip_serializing_if = "SubPath::is_whole")]
    pub sub_path: SubPath,
    /// `mountPropagation`.
    #[serde(default, skip_serializing_if = "Propagation::is_none")]
    pub propagation: Propagation,
    /// `recursiveReadOnly`.
    #[serde(default, skip_serializing_if = "RecursiveReadOnly::is_disabled")]
    pub recursive_read_only: RecursiveReadOnly,
}

/// What of a volume is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubPath {
    /// All of it.
    #[default]
    Whole,
    /// `subPath`: what is there below the volume's root; a folder is made where nothing is.
    Path(String),
    /// `subPathExpr`: the same, once `$(NAME)` is replaced by the container's variables.
    Expr(String),
}

impl SubPath {
    fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

/// `mountPropagation`: whether mounts made later below it are seen on the other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither way.
    #[default]
    None,
    /// The container sees the node's.
    HostToContainer,
    /// Both ways; only for privileged containers.
    Bidirectional,
}

impl Propagation {
    /// The names in a manifest.
    pub const ALL: [(&str, Self); 3] =
        [("None", Self::None), ("HostToContainer", Self::HostToContainer), ("Bidirectional", Self::Bidirectional)];

    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// `recursiveReadOnly`: whether what is mounted below a read-only mount is read-only, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecursiveReadOnly {
    /// No.
    #[default]
    Disabled,
    /// Where the runtime can.
    IfPossible,
    /// Yes, or the container does not start.
    Enabled,
}

impl RecursiveReadOnly {
    /// The names in a manifest.
    pub const ALL: [(&str, Self); 3] =
        [("Disabled", Self::Disabled), ("IfPossible", Self::IfPossible), ("Enabled", Self::Enabled)];

    fn is_disabled(&self) -> bool {
        *self == Self::Disabled
    }

    /// What the runtime is asked for; `None` if it is needed and the runtime cannot (pkg/kubelet/kubelet_pods.go,
    /// resolveRecursiveReadOnly, release 1.36).
    #[must_use]
    pub fn resolve(self, runtime_can: bool) -> Option<bool> {
        match self {
            Self::Disabled => Some(false),
            Self::IfPossible => Some(runtime_can),
            Self::Enabled => runtime_can.then_some(true),
        }
    }
}

/// The name of a value in such a list.
#[must_use]
pub fn name_of<T: PartialEq>(all: &'static [(&'static str, T)], value: &T) -> &'static str {
    all.iter().find(|(_, one)| one == value).map_or("", |(name, _)| name)
}

/// Why a path cannot be below a volume's root (pkg/apis/core/validation, validateLocalDescendingPath).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It begins at a root.
    #[error("must be a relative path")]
    Absolute,
    /// It goes upwards.
    #[error("must not contain '..'")]
    Backstep,
}

/// Whether a sub path may be looked for below a volume's root.
///
/// # Errors
/// If it begins with a slash, or one of its parts is `..`.
pub fn check_descending(path: &str) -> Result<(), PathFault> {
    if path.starts_with('/') {
        return Err(PathFault::Absolute);
    }
    if path.split('/').any(|part| part == "..") { Err(PathFault::Backstep) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a7_8a_a_sub_path_only_descends() {
        for (path, expected) in [
            ("a", Ok(())),
            ("a/b/c", Ok(())),
            ("a//b/", Ok(())),
            (".", Ok(())),
            ("..a/b..", Ok(())),
            ("...", Ok(())),
            ("$(calc.exe)&a\nb\\040c", Ok(())),
            ("/", Err(PathFault::Absolute)),
            ("/etc/passwd", Err(PathFault::Absolute)),
            ("//a", Err(PathFault::Absolute)),
            ("..", Err(PathFault::Backstep)),
            ("../a", Err(PathFault::Backstep)),
            ("a/../../b", Err(PathFault::Backstep)),
            ("a/..", Err(PathFault::Backstep)),
            ("a//..//b", Err(PathFault::Backstep)),
        ] {
            assert_eq!(check_descending(path), expected, "{path:?}");
        }
    }

    #[test]
    fn a7_10c_recursive_read_only_follows_the_runtime() {
        use RecursiveReadOnly::{Disabled, Enabled, IfPossible};
        let table = [
            (Disabled, [Some(false), Some(false)]),
            (IfPossible, [Some(false), Some(true)]),
            (Enabled, [None, Some(true)]),
        ];
        for (wish, expected) in table {
            assert_eq!([wish.resolve(false), wish.resolve(true)], expected, "{wish:?}");
        }
    }
}
