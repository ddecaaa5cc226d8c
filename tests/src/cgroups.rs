//! The cgroup files of pods, read from outside of the agent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where.
    pub mount: PathBuf,
    /// Its v1 controllers; empty for v2.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    /// A file of a group, such as `cpu.shares` of `/kubepods`.
    #[must_use]
    pub fn read(&self, group: &str, file: &str) -> Option<String> {
        let path = self.mount.join(group.trim_start_matches('/')).join(file);
        fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    }
}

/// All hierarchies.
#[must_use]
pub fn hierarchies() -> Vec<Hierarchy> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let right: Vec<&str> = right.split(' ').collect();
        let left: Vec<&str> = left.split(' ').collect();
        let ([kind, _, options, ..], [_, _, _, "/", point, ..]) = (&right[..], &left[..]) else { continue };
        let controllers = match *kind {
            "cgroup2" => Vec::new(),
            "cgroup" => options.split(',').map(ToOwned::to_owned).collect(),
            _ => continue,
        };
        let mount = PathBuf::from(point);
        if mount.starts_with("/sys/fs/cgroup") && !found.iter().any(|h| h.mount == mount) {
            found.push(Hierarchy { mount, controllers });
        }
    }
    found
}

/// Calls for each folder below, parents first.
fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path());
            walk(&entry.path(), visit);
        }
    }
}

/// The cgroups of pods (`pod<uid>`) below a bed's `cgroupRoot`, in all hierarchies.
#[must_use]
pub fn pod_cgroups(cgroup_root: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        let root = hierarchy.mount.join(cgroup_root.trim_start_matches('/')).join("kubepods");
        walk(&root, &mut |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("pod") {
                found.push(path.to_path_buf());
            }
        });
    }
    found
}

/// The settings below a cgroup, by file: those that an agent could have written.
#[must_use]
pub fn knobs_below(group: &str) -> BTreeMap<PathBuf, String> {
    const KNOBS: [&str; 22] = [
        "cpu.shares",
        "cpu.cfs_quota_us",
        "cpu.cfs_period_us",
        "cpu.cfs_burst_us",
        "cpu.weight",
        "cpu.max",
        "cpu.max.burst",
        "cpu.idle",
        "cpuset.cpus",
        "cpuset.mems",
        "memory.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.swappiness",
        "memory.oom_control",
        "memory.max",
        "memory.high",
        "memory.low",
        "memory.min",
        "memory.oom.group",
        "pids.max",
        "cgroup.subtree_control",
    ];
    let mut found = BTreeMap::new();
    for hierarchy in hierarchies() {
        let root = hierarchy.mount.join(group.trim_start_matches('/'));
        let mut read = |dir: &Path| {
            for knob in KNOBS {
                if let Ok(text) = fs::read_to_string(dir.join(knob)) {
                    // Whether tasks wait under OOM right now, and kills so far, are in the same file as the setting.
                    let text =
                        if knob == "memory.oom_control" { text.lines().next().unwrap_or_default() } else { &text };
                    found.insert(dir.join(knob), text.trim().to_owned());
                }
            }
        };
        read(&root);
        walk(&root, &mut read);
    }
    found
}
