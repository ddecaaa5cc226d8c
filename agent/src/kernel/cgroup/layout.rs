//! Where the hierarchies are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use procfs::FromRead as _;

use super::CgroupError;
use crate::kernel::mountinfo;

/// Where the hierarchies are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupLayout {
    /// Pure v2.
    V2 {
        /// Mount point.
        root: PathBuf,
    },
    /// Controllers on v1, and a v2 hierarchy beside them.
    Hybrid {
        /// Mount point of the v2 hierarchy.
        unified: PathBuf,
        /// v1 controller (`cpu`, `memory` ...) -> mount point.
        controllers: BTreeMap<String, PathBuf>,
    },
}

impl CgroupLayout {
    /// Finds the mounts of this process' mount namespace.
    ///
    /// # Errors
    /// If there is no v2 hierarchy, or the mounts cannot be read.
    pub fn detect() -> Result<Self, CgroupError> {
        let table = mountinfo::read().map_err(|error| CgroupError::Mounts(error.to_string()))?;
        let mounts = procfs::process::MountInfos::from_read(table.as_bytes())
            .map_err(|error| CgroupError::Mounts(error.to_string()))?;
        let mut unified: Option<PathBuf> = None;
        let mut controllers = BTreeMap::new();
        for mount in mounts {
            match mount.fs_type.as_str() {
                // The one under the usual place wins over copies elsewhere.
                "cgroup2" if unified.is_none() || mount.mount_point.starts_with("/sys/fs/cgroup") => {
                    unified = Some(mount.mount_point);
                }
                "cgroup" => {
                    for name in mount.super_options.keys().filter(|name| is_controller(name)) {
                        controllers.entry(name.clone()).or_insert_with(|| mount.mount_point.clone());
                    }
                }
                _ => {}
            }
        }
        let unified = unified.ok_or(CgroupError::NoUnified)?;
        // A stray v1 hierarchy (net_cls, a named one) beside full v2 changes nothing.
        if controllers.contains_key("memory") || controllers.contains_key("cpu") {
            Ok(Self::Hybrid { unified, controllers })
        } else {
            Ok(Self::V2 { root: unified })
        }
    }

    /// Mount point of the v2 hierarchy.
    #[must_use]
    pub fn unified(&self) -> &Path {
        match self {
            Self::V2 { root } => root,
            Self::Hybrid { unified, .. } => unified,
        }
    }

    /// Directory of a cgroup in the hierarchy that has this controller; `None` if none has it on hybrid.
    #[must_use]
    pub fn directory(&self, controller: &str, relative: &Path) -> Option<PathBuf> {
        match self {
            Self::V2 { root } => Some(root.join(relative)),
            Self::Hybrid { controllers, .. } => controllers.get(controller).map(|root| root.join(relative)),
        }
    }

    /// Whether controllers are on v1.
    #[must_use]
    pub const fn is_hybrid(&self) -> bool {
        matches!(self, Self::Hybrid { .. })
    }
}

/// Super options of a v1 mount are controllers and a few switches.
fn is_controller(option: &str) -> bool {
    const KNOWN: [&str; 11] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "pids",
        "blkio",
        "devices",
        "freezer",
        "hugetlb",
        "perf_event",
        "net_cls",
    ];
    KNOWN.contains(&option)
}
