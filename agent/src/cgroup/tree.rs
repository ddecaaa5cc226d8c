//! Makes cgroups and sets their limits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use beelet_core::event::{CgroupKnobs, PodCgroup};
use beelet_core::spec::PodUid;
use beelet_core::units::{Bytes, Micros};
use cgroups_rs::fs::Controller;
use cgroups_rs::fs::cpuacct::CpuAcctController;
use cgroups_rs::fs::cpuset::CpuSetController;

use super::error::Error;
use super::knobs::{self, Cpu, DEFAULT_SHARES, Memory, whole_pages};
use super::layout::{Hierarchies, check};

/// The v2 controllers that pods use, where the kernel has them.
const WANTED: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Without these there is no limiting a pod.
const NEEDED: [&str; 2] = ["cpu", "memory"];

/// A knob that was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// CPU shares or weight.
    Shares,
    /// CPU quota or period.
    Quota,
    /// The memory limit.
    Memory,
}

/// The writer. Paths are relative to the hierarchies' roots. All calls block; none waits except [`Tree::remove`] and
/// [`Tree::kill_until_empty`], which say how long.
#[derive(Clone, Debug)]
pub struct Tree {
    pub(super) hierarchies: Hierarchies,
}

/// A handle for what all controllers can do: make and remove a folder. Which one it is makes no difference to those calls.
pub(super) fn folder(dir: PathBuf) -> CpuAcctController {
    CpuAcctController::new(dir, "/".into())
}

impl Tree {
    /// A writer for these hierarchies.
    #[must_use]
    pub fn new(hierarchies: Hierarchies) -> Self {
        Self { hierarchies }
    }

    /// The hierarchies it writes.
    #[must_use]
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// Makes the cgroup in every hierarchy, with all cgroups above it, and sets its knobs. Returns what changed.
    ///
    /// # Errors
    /// If a folder cannot be made, or a value is refused or not kept.
    pub fn ensure(&self, cgroup: &PodCgroup) -> Result<Vec<Change>, Error> {
        self.create(&cgroup.path)?;
        self.set(&cgroup.path, &cgroup.knobs)
    }

    /// Makes the cgroup in every hierarchy, with all cgroups above it, ready for processes and for cgroups below it.
    ///
    /// # Errors
    /// If a folder cannot be made, or a controller cannot be handed down.
    pub fn create(&self, path: &str) -> Result<(), Error> {
        check(path)?;
        for controller in NEEDED {
            self.find(controller)?;
        }
        for mount in &self.hierarchies.v1 {
            let dir = mount.root.join(path);
            let made = if mount.controllers.iter().any(|c| c == "cpuset") {
                // Copies cpus and mems from above: on v1 no process can join a cpuset without them.
                let made = CpuSetController::new(dir.clone(), "/".into(), false).create();
                if made.is_ok() {
                    Self::check_cpuset(&dir)?;
                }
                made
            } else {
                folder(dir.clone()).create()
            };
            made.map_err(|e| Error::Create { path: dir, message: e.to_string() })?;
        }
        let dir = self.hierarchies.unified.join(path);
        folder(dir.clone()).create().map_err(|e| Error::Create { path: dir, message: e.to_string() })?;
        self.hand_down(path)
    }

    /// The crate only logs when the copying fails, so look.
    fn check_cpuset(dir: &Path) -> Result<(), Error> {
        for name in ["cpuset.cpus", "cpuset.mems"] {
            let file = dir.join(name);
            if knobs::read(&file)?.trim().is_empty() {
                return Err(Error::Kept { file, wrote: "the parent's value".to_owned(), kept: "nothing".to_owned() });
            }
        }
        Ok(())
    }

    /// Enables the wanted v2 controllers from the root down to and in `path`, one by one: together, one that is refused would
    /// take the others with it. Not by cgroups-rs, which enables all that the kernel has and drops the errors.
    fn hand_down(&self, path: &str) -> Result<(), Error> {
        let mut dir = self.hierarchies.unified.clone();
        for part in std::iter::once("").chain(path.split('/')) {
            if !part.is_empty() {
                dir.push(part);
            }
            let there = knobs::read(&dir.join("cgroup.controllers"))?;
            if there.trim().is_empty() {
                return Ok(());
            }
            let control = dir.join("cgroup.subtree_control");
            let enabled = knobs::read(&control)?;
            let has = |text: &str, name: &str| text.split_whitespace().any(|word| word == name);
            for name in WANTED {
                if has(&there, name) && !has(&enabled, name) {
                    let written = knobs::write(&control, &format!("+{name}"));
                    if NEEDED.contains(&name) {
                        written?;
                    }
                }
            }
        }
        Ok(())
    }

    fn find(&self, controller: &'static str) -> Result<(), Error> {
        if self.hierarchies.v1_root(controller).is_some() {
            return Ok(());
        }
        let there = knobs::read(&self.hierarchies.unified.join("cgroup.controllers"))?;
        if there.split_whitespace().any(|c| c == controller) { Ok(()) } else { Err(Error::NoController(controller)) }
    }

    /// Sets the knobs of a cgroup that is there; `None` is the kernel's default. Writes only what differs, reads it back, and
    /// returns what changed.
    ///
    /// # Errors
    /// If a value is refused or not kept; knobs before it are written then.
    pub fn set(&self, path: &str, knobs: &CgroupKnobs) -> Result<Vec<Change>, Error> {
        check(path)?;
        let mut changes = Vec::new();
        let home = self.hierarchies.home("cpu", path);
        let cpu = Cpu(&home);
        if cpu.set_shares(knobs.cpu_shares.unwrap_or(DEFAULT_SHARES))? {
            changes.push(Change::Shares);
        }
        if cpu.set_quota(knobs.cpu_quota, knobs.cpu_period)? {
            changes.push(Change::Quota);
        }
        if Memory(&self.hierarchies.home("memory", path)).set_limit(knobs.memory_max)? {
            changes.push(Change::Memory);
        }
        Ok(changes)
    }

    /// The knobs as the kernel has them. On v2 the shares are the smallest ones of the weight.
    ///
    /// # Errors
    /// If a file cannot be read; see [`Error::is_gone`].
    pub fn read(&self, path: &str) -> Result<CgroupKnobs, Error> {
        check(path)?;
        let home = self.hierarchies.home("cpu", path);
        let cpu = Cpu(&home);
        let (cpu_quota, cpu_period) = cpu.quota()?;
        Ok(CgroupKnobs {
            cpu_shares: Some(cpu.shares()?),
            cpu_quota,
            cpu_period,
            memory_max: Memory(&self.hierarchies.home("memory", path)).limit()?,
        })
    }

    /// Checks that somebody else (the runtime) wrote these quota and memory values. The weight is left out on v2: runtimes
    /// make it from shares by different formulas (runc from 1.3.2 on by a logarithmic one).
    ///
    /// # Errors
    /// [`Error::Kept`] names the file that holds another value.
    pub fn verify(&self, path: &str, wanted: &CgroupKnobs) -> Result<(), Error> {
        let kept = self.read(path)?;
        let cpu = self.hierarchies.home("cpu", path);
        let kept_other = |file: PathBuf, wrote: String, kept: String| Err(Error::Kept { file, wrote, kept });
        if kept.cpu_quota != wanted.cpu_quota {
            let file = cpu.dir.join(if cpu.v2 { "cpu.max" } else { "cpu.cfs_quota_us" });
            return kept_other(file, format!("{:?}", wanted.cpu_quota), format!("{:?}", kept.cpu_quota));
        }
        if !cpu.v2 && wanted.cpu_shares.is_some() && kept.cpu_shares != wanted.cpu_shares {
            let file = cpu.dir.join("cpu.shares");
            return kept_other(file, format!("{:?}", wanted.cpu_shares), format!("{:?}", kept.cpu_shares));
        }
        let wanted_memory = wanted.memory_max.map(whole_pages);
        if kept.memory_max != wanted_memory {
            let memory = self.hierarchies.home("memory", path);
            let file = memory.dir.join(if memory.v2 { "memory.max" } else { "memory.limit_in_bytes" });
            return kept_other(file, format!("{wanted_memory:?}"), format!("{:?}", kept.memory_max));
        }
        Ok(())
    }

    /// Memory of the cgroup that a lower limit could not get back: in use less page cache.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn unreclaimable(&self, path: &str) -> Result<Bytes, Error> {
        check(path)?;
        Memory(&self.hierarchies.home("memory", path)).unreclaimable()
    }

    /// The CPU burst of a cgroup.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel has none.
    pub fn read_burst(&self, path: &str) -> Result<Micros, Error> {
        check(path)?;
        Cpu(&self.hierarchies.home("cpu", path)).burst()
    }

    /// Sets the CPU burst of a cgroup. `true` if it changed.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel has none; a value above the quota is refused.
    pub fn burst(&self, path: &str, burst: Micros) -> Result<bool, Error> {
        check(path)?;
        Cpu(&self.hierarchies.home("cpu", path)).set_burst(burst)
    }

    /// The pod cgroups below `kubepods` in any hierarchy, with their paths. Anybody's: a kubelet's beside beelet are here, too.
    ///
    /// # Errors
    /// If `kubepods` is no plain relative path.
    pub fn list_pods(&self, kubepods: &str) -> Result<Vec<(PodUid, String)>, Error> {
        check(kubepods)?;
        let mut found = BTreeMap::new();
        for root in self.hierarchies.roots() {
            for class in ["", "/burstable", "/besteffort"] {
                let parent = format!("{kubepods}{class}");
                for (uid, name) in pods_in(&root.join(&parent)) {
                    found.insert(format!("{parent}/{name}"), uid);
                }
            }
        }
        Ok(found.into_iter().map(|(path, uid)| (uid, path)).collect())
    }
}

/// The folders `pod<uid>` in a folder, which need not be there.
fn pods_in(dir: &Path) -> Vec<(PodUid, String)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut pods: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter_map(|name| {
            name.strip_prefix("pod").filter(|uid| !uid.is_empty()).map(PodUid::from).map(|uid| (uid, name.clone()))
        })
        .collect();
    pods.sort();
    pods
}
