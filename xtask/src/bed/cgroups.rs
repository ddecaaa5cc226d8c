//! The bed's cgroups, in every hierarchy that the machine has: v1, the unified one beside it, or v2 alone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    pub(crate) v2: bool,
    /// v1: has the cpuset controller, whose new groups take no process before they are given CPUs.
    cpuset: bool,
}

/// All mounted hierarchies, each once.
pub(crate) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("cannot read the mounts")?;
    Ok(parse(&text))
}

/// Whether the machine has v1 controllers: then the agent needs `failCgroupV1: false`.
pub(crate) fn is_hybrid() -> Result<bool> {
    Ok(hierarchies()?.iter().any(|hierarchy| !hierarchy.v2))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        let kind = right.next().unwrap_or_default();
        if kind != "cgroup" && kind != "cgroup2" {
            continue;
        }
        let left: Vec<&str> = left.split(' ').collect();
        let (Some(root), Some(point)) = (left.get(3), left.get(4)) else { continue };
        if *root != "/" {
            continue;
        }
        let options = right.nth(1).unwrap_or_default();
        let cpuset = kind == "cgroup" && options.split(',').any(|option| option == "cpuset");
        let mount = PathBuf::from(point);
        // A v1 hierarchy may be mounted again elsewhere by a test: the same options, the first one counts.
        if !found.iter().any(|h| h.mount == mount) && mount.starts_with("/sys/fs/cgroup") {
            found.push(Hierarchy { mount, v2: kind == "cgroup2", cpuset });
        }
    }
    found
}

fn folder(hierarchy: &Hierarchy, group: &str) -> PathBuf {
    hierarchy.mount.join(group.trim_start_matches('/'))
}

/// Makes the group in every hierarchy.
pub(crate) fn create(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let dir = folder(&hierarchy, group);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create the cgroup {}", dir.display()))?;
        if hierarchy.cpuset {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                inherit(&hierarchy.mount, &dir, file)?;
            }
        }
    }
    Ok(())
}

/// Fills an empty cpuset file from its parent's, from the top down.
fn inherit(mount: &Path, dir: &Path, file: &str) -> Result<()> {
    if dir == mount || !fs::read_to_string(dir.join(file))?.trim().is_empty() {
        return Ok(());
    }
    let parent = dir.parent().context("a cgroup without a parent")?;
    inherit(mount, parent, file)?;
    let value = fs::read_to_string(parent.join(file))?;
    fs::write(dir.join(file), value.trim()).with_context(|| format!("cannot set {file} of {}", dir.display()))
}

/// Moves this process into the group, in every hierarchy.
pub(crate) fn join(group: &str) -> Result<()> {
    create(group)?;
    for hierarchy in hierarchies()? {
        let procs = folder(&hierarchy, group).join("cgroup.procs");
        // A v2 group with controllers enabled for its children takes no process: then the bed's own is as good as any.
        fs::write(&procs, "0").with_context(|| format!("cannot join {}", procs.display()))?;
    }
    Ok(())
}

/// The processes in the group and below, in any hierarchy.
pub(crate) fn processes(group: &str) -> Result<BTreeSet<i32>> {
    let mut pids = BTreeSet::new();
    for hierarchy in hierarchies()? {
        collect(&folder(&hierarchy, group), &mut pids);
    }
    Ok(pids)
}

fn collect(dir: &Path, pids: &mut BTreeSet<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process outside of this process's namespace.
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for child in children(dir) {
        collect(&child, pids);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path()).collect()
}

/// Kills everything in the group and below, and waits until it is gone.
pub(crate) fn kill(group: &str) -> Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let pids = processes(group)?;
        if pids.is_empty() {
            return Ok(());
        }
        for hierarchy in hierarchies()? {
            let dir = folder(&hierarchy, group);
            if hierarchy.v2 {
                fs::write(dir.join("cgroup.kill"), "1").ok();
            }
            thaw(&dir);
        }
        for pid in pids.iter().copied().filter_map(Pid::from_raw) {
            kill_process(pid, Signal::KILL).ok();
        }
        if Instant::now() > deadline {
            bail!("these processes of {group} do not die: {:?}", processes(group)?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A frozen v1 group does not die before it is thawed.
fn thaw(dir: &Path) {
    let state = dir.join("freezer.state");
    if fs::read_to_string(&state).is_ok_and(|text| text.trim() != "THAWED") {
        fs::write(&state, "THAWED").ok();
    }
    for child in children(dir) {
        thaw(&child);
    }
}

/// Removes the group and what is below it, in every hierarchy.
pub(crate) fn remove(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let dir = folder(&hierarchy, group);
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Err(error) = remove_tree(&dir) {
            // A group stays busy for a moment after its last process died.
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("cannot remove the cgroup {}", dir.display()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_each_hierarchy_once() {
        let text = "30 1 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                    31 30 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                    32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 30 0:28 /x /sys/fs/cgroup/part rw - cgroup2 cgroup2 rw\n\
                    34 30 0:29 / /mnt/else rw - cgroup cgroup rw,cpu\n";
        let found = parse(text);
        assert_eq!(found.len(), 2);
        assert!(found[0].cpuset && !found[0].v2);
        assert!(found[1].v2);
    }
}
