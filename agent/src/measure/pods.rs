//! The pods' cgroups, and whose they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use beelet_core::sample::{CgroupReading, ContainerReading, NetworkReading, PodReading};
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use beelet_ebpf_common::NetRecord;
use tracing::{debug, warn};

use super::Target;
use crate::kernel::cgroup::{Buffer, Cgroup, CgroupLayout, Depth};
use crate::kernel::listeners::listening_ports;
use crate::kernel::maps::Counters;

/// A cgroup below a pod's: a container or a sandbox.
#[derive(Debug)]
struct Child {
    /// The directory's name without what the cgroup driver puts around the runtime's id.
    id: String,
    cgroup: Cgroup,
    run: Micros,
    network: NetworkReading,
    seen: bool,
}

#[derive(Debug)]
struct PodTree {
    target: Target,
    /// `None` until it is made.
    cgroup: Option<Cgroup>,
    children: BTreeMap<PathBuf, Child>,
    retired: Retired,
    listening: Option<BTreeSet<u16>>,
}

/// Totals of a pod's cgroups that are gone.
#[derive(Debug, Default)]
struct Retired {
    run: Micros,
    network: NetworkReading,
}

/// All pods' cgroups.
pub(super) struct Pods {
    layout: CgroupLayout,
    trees: BTreeMap<PodUid, PodTree>,
    /// Whose a cgroup id is, or was: pod and runtime's id of the container.
    owners: BTreeMap<u64, (PodUid, String)>,
    /// Runtime's id to container name, kept for late events.
    names: BTreeMap<String, String>,
    /// Ids that are gone, oldest first, forgotten after a while.
    gone: std::collections::VecDeque<u64>,
    /// Ids with counters that were no pod's at the last sweep.
    unclaimed: BTreeSet<u64>,
}

/// So many cgroups that are gone can still be named.
const REMEMBERED: usize = 4_096;

impl Pods {
    pub(super) fn new(layout: CgroupLayout) -> Self {
        Self {
            layout,
            trees: BTreeMap::new(),
            owners: BTreeMap::new(),
            names: BTreeMap::new(),
            gone: std::collections::VecDeque::new(),
            unclaimed: BTreeSet::new(),
        }
    }

    /// Whose a cgroup is: the pod and the container's name (`None` for a sandbox, or while the name is not known).
    pub(super) fn owner(&self, id: u64) -> Option<(PodUid, Option<String>, bool)> {
        let (uid, runtime_id) = self.owners.get(&id)?;
        let name = self.names.get(runtime_id).cloned();
        let known = name.is_some() || runtime_id.is_empty();
        Some((uid.clone(), name, known))
    }

    /// The pods that are to be measured from now on.
    pub(super) fn aim(&mut self, targets: Vec<Target>, counters: &mut Counters) {
        let wanted: BTreeSet<PodUid> = targets.iter().map(|t| t.uid.clone()).collect();
        for target in targets {
            for (id, name) in &target.containers {
                self.names.insert(id.clone(), name.clone());
            }
            match self.trees.get_mut(&target.uid) {
                Some(tree) => tree.target = target,
                None => {
                    let tree = PodTree {
                        target: target.clone(),
                        cgroup: None,
                        children: BTreeMap::new(),
                        retired: Retired::default(),
                        listening: None,
                    };
                    self.trees.insert(target.uid, tree);
                }
            }
        }
        let old: Vec<PodUid> = self.trees.keys().filter(|uid| !wanted.contains(*uid)).cloned().collect();
        for uid in old {
            if let Some(tree) = self.trees.remove(&uid) {
                if let Some(cgroup) = &tree.cgroup {
                    drop_counters(counters, cgroup.id());
                    self.gone.push_back(cgroup.id());
                }
                for child in tree.children.into_values() {
                    drop_counters(counters, child.cgroup.id());
                    self.gone.push_back(child.cgroup.id());
                }
            }
        }
        while self.gone.len() > REMEMBERED {
            if let Some((_, name)) = self.gone.pop_front().and_then(|id| self.owners.remove(&id)) {
                self.names.remove(&name);
            }
        }
    }

    /// Finds new cgroups, and retires those that are gone.
    pub(super) fn scan(&mut self, counters: &mut Counters) {
        for (uid, tree) in &mut self.trees {
            let relative = Path::new(&tree.target.cgroup);
            if tree.cgroup.as_ref().is_none_or(|c| !c.exists()) {
                if let Some(before) = tree.cgroup.take() {
                    self.gone.push_back(before.id());
                }
                tree.cgroup = open(&self.layout, relative);
                if let Some(cgroup) = &tree.cgroup {
                    self.owners.insert(cgroup.id(), (uid.clone(), String::new()));
                }
            }
            for child in tree.children.values_mut() {
                child.seen = false;
            }
            for name in subdirectories(&self.layout.unified().join(relative)) {
                let path = relative.join(&name);
                if let Some(child) = tree.children.get_mut(&path)
                    && child.cgroup.exists()
                {
                    child.seen = true;
                    continue;
                }
                let Some(cgroup) = open(&self.layout, &path) else { continue };
                let id = runtime_id(&name);
                self.owners.insert(cgroup.id(), (uid.clone(), id.clone()));
                let child = Child { id, cgroup, run: Micros::ZERO, network: NetworkReading::default(), seen: true };
                if let Some(before) = tree.children.insert(path, child) {
                    self.gone.push_back(tree.retired.take(before, counters));
                }
            }
            let gone: Vec<PathBuf> = tree.children.iter().filter(|(_, c)| !c.seen).map(|(p, _)| p.clone()).collect();
            for path in gone {
                if let Some(child) = tree.children.remove(&path) {
                    self.gone.push_back(tree.retired.take(child, counters));
                }
            }
        }
    }

    /// Removes the counters of cgroups that are no pod's, or no pod's any more. Those that were not there at the last sweep stay
    /// until the next: they may be of a pod that nobody told of yet.
    pub(super) fn sweep(&mut self, counters: &mut Counters) {
        let before = std::mem::take(&mut self.unclaimed);
        let (owners, unclaimed) = (&self.owners, &mut self.unclaimed);
        let swept = counters.retain(|id| {
            if owners.contains_key(&id) {
                return true;
            }
            let first_time = !before.contains(&id);
            if first_time {
                unclaimed.insert(id);
            }
            first_time
        });
        match swept {
            Ok(0) => {}
            Ok(count) => debug!(count, "counters of cgroups that are no pod's are removed"),
            Err(error) => warn!(%error, "counters of cgroups that are no pod's cannot be removed"),
        }
    }

    /// Reads every pod. `listeners`: also look for listening ports, which costs a file per pod.
    pub(super) fn read(&mut self, counters: &Counters, buffer: &mut Buffer, listeners: bool) -> Vec<PodReading> {
        let mut readings = Vec::with_capacity(self.trees.len());
        for (uid, tree) in &mut self.trees {
            let Some(cgroup) = &mut tree.cgroup else { continue };
            let Some(mut reading) = read_cgroup(cgroup, buffer) else { continue };
            let (mut run, mut network, mut measured) = (tree.retired.run, tree.retired.network, false);
            let mut containers = Vec::with_capacity(tree.children.len());
            for child in tree.children.values_mut() {
                let has_run = take_counters(counters, child);
                measured |= has_run.1;
                run += child.run;
                network = plus(network, child.network);
                let Some(name) = tree.target.containers.iter().find(|(id, _)| *id == child.id).map(|(_, n)| n) else {
                    continue;
                };
                let Some(mut own) = read_cgroup(&mut child.cgroup, buffer) else { continue };
                if let (Some(cpu), true) = (&mut own.cpu, has_run.0) {
                    cpu.run = Some(child.run);
                }
                containers.push(ContainerReading {
                    name: name.clone(),
                    id: child.id.clone(),
                    cgroup: own,
                    detail: None,
                });
            }
            if let Some(cpu) = &mut reading.cpu
                && run > Micros::ZERO
            {
                cpu.run = Some(run);
            }
            if listeners {
                tree.listening =
                    if tree.target.host_network { None } else { ports(tree.children.values_mut(), buffer) };
            }
            readings.push(PodReading {
                containers,
                network: (measured || network != NetworkReading::default()).then_some(network),
                listening: tree.listening.clone(),
                ..PodReading::of(uid.clone(), reading)
            });
        }
        readings
    }
}

fn open(layout: &CgroupLayout, path: &Path) -> Option<Cgroup> {
    Cgroup::open(layout, path).unwrap_or_else(|error| {
        warn!(cgroup = %path.display(), %error, "a cgroup cannot be opened");
        None
    })
}

fn subdirectories(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let dirs = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let mut names: Vec<String> = dirs.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// `<id>`, or with the systemd driver `cri-containerd-<id>.scope`.
fn runtime_id(directory: &str) -> String {
    let name = directory.strip_suffix(".scope").unwrap_or(directory);
    name.rsplit('-').next().unwrap_or(name).to_owned()
}

/// Refreshes a child's counters from the maps; whether run time and traffic are measured.
fn take_counters(counters: &Counters, child: &mut Child) -> (bool, bool) {
    let Ok(count) = counters.read(child.cgroup.id()) else { return (false, false) };
    if let Some(cpu) = count.cpu {
        child.run = Micros(cpu.run_ns / 1_000);
    }
    if let Some(net) = count.network.map(NetRecord::total) {
        child.network = NetworkReading {
            rx_bytes: net.rx_bytes,
            rx_packets: net.rx_packets,
            tx_bytes: net.tx_bytes,
            tx_packets: net.tx_packets,
        };
    }
    (count.cpu.is_some(), count.network.is_some())
}

impl Retired {
    /// Takes over the last word of a cgroup that is gone: the maps outlive it.
    fn take(&mut self, mut child: Child, counters: &mut Counters) -> u64 {
        take_counters(counters, &mut child);
        self.run += child.run;
        self.network = plus(self.network, child.network);
        let id = child.cgroup.id();
        drop_counters(counters, id);
        id
    }
}

fn drop_counters(counters: &mut Counters, id: u64) {
    if let Err(error) = counters.remove(id) {
        warn!(cgroup = id, %error, "counters of a cgroup that is gone cannot be removed");
    }
}

fn plus(a: NetworkReading, b: NetworkReading) -> NetworkReading {
    NetworkReading {
        rx_bytes: a.rx_bytes + b.rx_bytes,
        rx_packets: a.rx_packets + b.rx_packets,
        tx_bytes: a.tx_bytes + b.tx_bytes,
        tx_packets: a.tx_packets + b.tx_packets,
    }
}

/// The ports in the network namespace of the first process that is still there.
fn ports<'a>(children: impl Iterator<Item = &'a mut Child>, buffer: &mut Buffer) -> Option<BTreeSet<u16>> {
    for child in children {
        for pid in child.cgroup.processes(buffer).ok().flatten().unwrap_or_default() {
            if let Ok(Some(ports)) = listening_ports(pid) {
                return Some(ports);
            }
        }
    }
    None
}

/// `None` if the cgroup is gone.
pub(super) fn read_cgroup(cgroup: &mut Cgroup, buffer: &mut Buffer) -> Option<CgroupReading> {
    let mut it = CgroupReading::default();
    match cgroup.read(Depth::All, buffer, &mut it) {
        Ok(there) => there.then_some(it),
        Err(error) => {
            debug!(%error, "a reading is not whole");
            Some(it)
        }
    }
}

/// Only memory: what a quick look needs.
pub(super) fn read_quick(cgroup: &mut Cgroup, buffer: &mut Buffer) -> Option<CgroupReading> {
    let mut it = CgroupReading::default();
    cgroup.read(Depth::Memory, buffer, &mut it).ok()?;
    it.memory.map(|_| it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ids_of_pods_that_are_gone_are_forgotten_at_last() {
        let root = tempfile::tempdir().unwrap();
        let mut pods = Pods::new(CgroupLayout::V2 { root: root.path().to_owned() });
        let mut counters = Counters::default();
        for batch in 0..42 {
            let target = |n: usize| Target {
                uid: format!("pod-{batch}-{n}").as_str().into(),
                cgroup: format!("kubepods/pod-{batch}-{n}"),
                containers: Vec::new(),
                host_network: false,
                logs: String::new(),
            };
            let targets: Vec<Target> = (0..100).map(target).collect();
            for target in &targets {
                fs::create_dir_all(root.path().join(&target.cgroup)).unwrap();
            }
            pods.aim(targets, &mut counters);
            pods.scan(&mut counters);
        }
        pods.aim(Vec::new(), &mut counters);
        assert_eq!(pods.owners.len(), REMEMBERED);
    }
}
