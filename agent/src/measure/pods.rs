//! All pods' readings.
//!
//! **Approach.** For each pod its [`Tree`] of cgroups. A look takes three things together: files, as far as something ran; what
//! eBPF counted, of tables that were read as a whole before; and what the slow reader found out. Details are made anew every
//! [`DETAIL_EVERY`], of each pod at another moment, so that no look is long; of a pod that began, at once; of a pod that sleeps,
//! or a container that does, or a sandbox, every [`QUIET_DETAIL_EVERY`].
//!
//! **Property.** The details' moment is that of the oldest part of them.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use beelet_core::sample::{CgroupReading, ContainerReading, PodReading};
use beelet_core::spec::PodUid;
use beelet_core::telemetry::{CgroupDetail, PodDetail, PortReading, SHOWN_PORTS, StorageReading};
use beelet_core::units::Micros;
use tracing::{debug, warn};

use super::Target;
use super::network::Stir;
use super::open_files::OpenFiles;
use super::owners::Owners;
use super::slow::{NetworkPart, Parts};
use super::tally::{Fast, Tally};
use super::tree::{Scan, Tree, forget};
use super::watched::{Looked, Mode};
use crate::clock::Clock;
use crate::kernel::cgroup::{Buffer, Cgroup, CgroupLayout, Depth, Devices};
use crate::kernel::drop_reasons::DropReasons;
use crate::kernel::maps::Counters;

/// Details are made anew this often.
pub(super) const DETAIL_EVERY: Micros = Micros::secs(10);
/// And of a pod in which nothing runs.
const QUIET_DETAIL_EVERY: Micros = Micros::secs(30);
/// So many changes of listening sockets are remembered between two visits of the slow reader.
const CHANGES_MOST: usize = 64;

/// What a look works with.
pub(super) struct Look<'a> {
    pub(super) clock: Clock,
    pub(super) counters: &'a mut Counters,
    /// When the tables of details were read; zero: never.
    pub(super) tables_at: Micros,
    pub(super) buffer: &'a mut Buffer,
    pub(super) devices: &'a mut Devices,
    pub(super) network: &'a Parts<NetworkPart>,
    pub(super) storage: &'a Parts<StorageReading>,
    /// Why packets are dropped, by the kernel's number.
    pub(super) drop_reasons: &'a DropReasons,
    pub(super) mode: Mode,
    /// Make the details that are due.
    pub(super) details: bool,
    /// Read these pods only; of others the last reading is told.
    pub(super) only: Option<&'a BTreeSet<PodUid>>,
    /// Factor on the distance of details, in parts per thousand.
    pub(super) stretch: u32,
    pub(super) cost: Cost,
    /// Pods whose networks are to be visited.
    pub(super) visit: Vec<PodUid>,
}

/// What a look read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Pods that were told of.
    pub(super) pods: u64,
    /// Readings of cgroups that were made.
    pub(super) read: u64,
    /// Readings that were held.
    pub(super) held: u64,
    /// Pods whose details were made.
    pub(super) details: u64,
}

#[derive(Debug)]
struct Pod {
    target: Target,
    tree: Tree,
    /// When the details are to be made anew.
    detail_due: Micros,
    detail_at: Micros,
    cgroup_detail: Option<Arc<CgroupDetail>>,
    detail: Option<Arc<PodDetail>>,
    /// What the details' slow parts were made of.
    network: Option<Arc<NetworkPart>>,
    storage: Option<Arc<StorageReading>>,
    /// Changes of listening sockets, as the kernel told them.
    changes: Vec<(Micros, u16, bool)>,
    /// Whether its network is worth a visit.
    stir: Stir,
}

/// All pods' cgroups.
pub(super) struct Pods {
    layout: Arc<CgroupLayout>,
    pods: BTreeMap<PodUid, Pod>,
    owners: Owners,
    /// Ids with counters that were no pod's at the last sweep.
    unclaimed: BTreeSet<u64>,
    unclaimed_disk: BTreeSet<u64>,
}

impl Pods {
    pub(super) fn new(layout: CgroupLayout) -> Self {
        Self {
            layout: Arc::new(layout),
            pods: BTreeMap::new(),
            owners: Owners::default(),
            unclaimed: BTreeSet::new(),
            unclaimed_disk: BTreeSet::new(),
        }
    }

    /// Whose a cgroup is: the pod and the container's name (`None` for a sandbox, or while the name is not known).
    pub(super) fn owner(&self, id: u64) -> Option<(PodUid, Option<String>, bool)> {
        self.owners.owner(id)
    }

    /// The pods that are to be measured from now on.
    pub(super) fn aim(&mut self, targets: Vec<Target>, counters: &mut Counters) {
        let wanted: BTreeSet<PodUid> = targets.iter().map(|t| t.uid.clone()).collect();
        let named = targets.iter().flat_map(|t| t.containers.iter().map(|(id, _)| id.as_str()));
        self.owners.keep_names(&named.collect());
        for target in targets {
            for (id, name) in &target.containers {
                self.owners.name(id, name);
            }
            match self.pods.get_mut(&target.uid) {
                Some(pod) => {
                    if pod.target.cgroup != target.cgroup {
                        pod.tree.bury_all(Micros::ZERO, &mut self.owners);
                    }
                    if pod.target != target {
                        pod.tree.list_soon();
                        pod.detail_due = Micros::ZERO;
                        pod.target = target;
                    }
                }
                None => {
                    let pod = Pod {
                        target: target.clone(),
                        tree: Tree::default(),
                        detail_due: Micros::ZERO,
                        detail_at: Micros::ZERO,
                        cgroup_detail: None,
                        detail: None,
                        network: None,
                        storage: None,
                        changes: Vec::new(),
                        stir: Stir::default(),
                    };
                    self.pods.insert(target.uid, pod);
                }
            }
        }
        let old: Vec<PodUid> = self.pods.keys().filter(|uid| !wanted.contains(*uid)).cloned().collect();
        if !old.is_empty()
            && let Err(error) = counters.refresh_slow()
        {
            // What is not known now is swept later.
            debug!(%error, "eBPF details are not known");
        }
        for uid in old {
            let Some(mut pod) = self.pods.remove(&uid) else { continue };
            for inner in pod.tree.all() {
                forget(counters, &inner);
                self.owners.is_gone(inner.id);
            }
        }
    }

    /// Finds new cgroups, and buries those that are gone. Of pods that were scanned lately only if `all`: [`read`](Self::read) does
    /// the rest as it sees them run.
    pub(super) fn scan(&mut self, now: Micros, all: bool) {
        let Self { layout, pods, owners, .. } = self;
        let mut scan = Scan { layout, now, owners };
        for (uid, pod) in pods {
            pod.tree.scan(&mut scan, &pod.target.cgroup, uid, all);
        }
    }

    /// Whether details of some pod are to be made; and whether one has none yet.
    pub(super) fn details_due(&self, now: Micros) -> (bool, bool) {
        let there = || self.pods.values().filter(|pod| pod.tree.own.is_some());
        (there().any(|pod| now >= pod.detail_due), there().any(|pod| pod.cgroup_detail.is_none()))
    }

    /// The cgroups of pods and containers that were found since the last call: id and path from the roots of the hierarchies.
    pub(super) fn take_born(&mut self) -> Vec<(u64, PathBuf)> {
        self.owners.take_born()
    }

    /// Takes over what is final of cgroups that are gone. `read_at`: when all counters were read.
    pub(super) fn settle(&mut self, counters: &mut Counters, read_at: Micros) {
        let Self { pods, owners, .. } = self;
        for (uid, pod) in pods {
            // Of a container that is gone nobody asks any more which of its pod's it was.
            pod.tree.remains.settle(counters, read_at, &|by| owners.preemptor(by, uid, ""));
            for child in pod.tree.children.values_mut() {
                let id = &child.id;
                child.remains.settle(counters, read_at, &|by| owners.preemptor(by, uid, id));
            }
        }
    }

    /// Removes the counters of cgroups that are no pod's, or no pod's any more. Those that were not there at the last sweep stay
    /// until the next: they may be of a pod that nobody told of yet.
    pub(super) fn sweep(&mut self, counters: &mut Counters) {
        // What ended or preempted somebody in its last moment came after its counters were taken.
        let living = self.owners.living();
        let keep = |known: bool, before: &BTreeSet<u64>, now: &mut BTreeSet<u64>, id| {
            known || (!before.contains(&id) && now.insert(id))
        };
        let (before, mut now) = (std::mem::take(&mut self.unclaimed), BTreeSet::new());
        let swept = counters.retain(|id| keep(living.contains(&id), &before, &mut now, id));
        self.unclaimed = now;
        let ours: BTreeSet<u64> = self.pods.values_mut().flat_map(|pod| pod.tree.io_ids()).collect();
        let (before, mut now) = (std::mem::take(&mut self.unclaimed_disk), BTreeSet::new());
        let disk = counters.retain_disk(|id| keep(ours.contains(&id), &before, &mut now, id));
        self.unclaimed_disk = now;
        match swept.and_then(|count| disk.map(|disk| count + disk)) {
            Ok(0) => {}
            Ok(count) => debug!(count, known = self.owners.len(), "counters of cgroups that are no pod's are removed"),
            Err(error) => warn!(%error, "counters of cgroups that are no pod's cannot be removed"),
        }
    }

    /// The kernel told of a listening socket.
    pub(super) fn listen(&mut self, uid: &PodUid, at: Micros, port: u16, open: bool) {
        if let Some(pod) = self.pods.get_mut(uid) {
            if pod.changes.len() >= CHANGES_MOST {
                pod.changes.remove(0);
            }
            pod.changes.push((at, port, open));
        }
    }

    /// Reads every pod.
    pub(super) fn read(&mut self, look: &mut Look<'_>) -> Vec<PodReading> {
        let mut readings = Vec::with_capacity(self.pods.len());
        let Self { layout, pods, owners, .. } = self;
        for (uid, pod) in pods {
            if let Some(reading) = pod.read(uid, layout, owners, look) {
                readings.push(reading);
            }
        }
        look.cost.pods = readings.len() as u64;
        readings
    }
}

impl Pod {
    fn read(
        &mut self,
        uid: &PodUid,
        layout: &Arc<CgroupLayout>,
        owners: &mut Owners,
        look: &mut Look<'_>,
    ) -> Option<PodReading> {
        let now = look.clock.now().mono;
        let chosen = look.only.is_none_or(|only| only.contains(uid));
        let quiet = self.tree.own.as_ref()?.is_quiet() && self.cgroup_detail.is_some();
        let due = if quiet { self.detail_due.max(self.detail_at + QUIET_DETAIL_EVERY) } else { self.detail_due };
        let details = chosen && look.details && now >= due;
        let mode = if details { Mode::All } else { look.mode };
        let looked = if chosen { self.tree.own.as_mut()?.look(look.clock, mode, look.buffer) } else { Looked::Held };
        match looked {
            Looked::Gone => {
                self.tree.bury_all(now, owners);
                return None;
            }
            Looked::Held => look.cost.held += 1 + self.tree.children.len() as u64,
            Looked::Read => {
                look.cost.read += 1;
                let mut scan = Scan { layout, now, owners };
                self.tree.scan(&mut scan, &self.target.cgroup, uid, true);
                self.look_at_children(now, mode, details, owners, look);
            }
        }
        if details {
            self.make_details(uid, layout, now, owners, look);
        } else if self.cgroup_detail.is_some() {
            self.merge_slow(uid, look, None);
        }
        let mut sum = Fast::default();
        self.tree.remains.fast(look.counters, &mut sum);
        let mut containers = Vec::with_capacity(self.target.containers.len());
        for child in self.tree.children.values_mut() {
            let fast = child.fast(look.counters);
            sum.plus(&fast);
            let Some((_, name)) = self.target.containers.iter().find(|(id, _)| *id == child.id) else { continue };
            if child.watched.last().at == Micros::ZERO {
                continue;
            }
            containers.push(ContainerReading {
                name: name.clone(),
                id: child.id.clone(),
                cgroup: child.watched.with(|it| fast.fill(&mut it.cpu)),
                detail: child.detail.clone(),
            });
        }
        let own = self.tree.own.as_mut()?;
        sum.add(look.counters, own.id());
        let cgroup = own.with(|it| sum.fill(&mut it.cpu));
        if cgroup.at == Micros::ZERO {
            return None;
        }
        let network = sum.network();
        self.stir.see(now, !own.is_quiet(), network);
        let visited = look.network.get(uid).map_or(Micros::ZERO, |part| part.at);
        if !self.target.host_network && self.stir.wants_visit(now, visited) {
            look.visit.push(uid.clone());
        }
        Some(PodReading {
            containers,
            sandbox: self.sandbox(look.counters),
            cgroup_detail: self.cgroup_detail.clone(),
            detail: self.detail.clone(),
            network,
            listening: self.listening(look.network.get(uid)),
            ..PodReading::of(uid.clone(), cgroup)
        })
    }

    fn look_at_children(&mut self, now: Micros, mode: Mode, details: bool, owners: &mut Owners, look: &mut Look<'_>) {
        let sandbox = self.tree.sandbox(&self.target.containers).map(str::to_owned);
        let mut gone = Vec::new();
        for (name, child) in &mut self.tree.children {
            let old = child.detail.is_none() || now - child.detail_at >= QUIET_DETAIL_EVERY;
            // The sandbox does nothing but wait.
            let waits = sandbox.as_ref() == Some(name);
            if waits && !(details && old) {
                look.cost.held += 1;
                continue;
            }
            let sleeps = mode == Mode::All && child.watched.is_quiet() && !old;
            let mode = if sleeps { Mode::Calm } else { mode };
            match child.watched.look(look.clock, mode, look.buffer) {
                Looked::Read => look.cost.read += 1,
                Looked::Held => look.cost.held += 1,
                Looked::Gone => gone.push(name.clone()),
            }
            if waits {
                child.watched.close();
            }
        }
        for name in gone {
            self.tree.bury(&name, now, owners);
            self.tree.list_soon();
        }
    }

    fn sandbox(&mut self, counters: &Counters) -> Option<CgroupReading> {
        let name = self.tree.sandbox(&self.target.containers)?.to_owned();
        let child = self.tree.children.get_mut(&name)?;
        let fast = child.fast(counters);
        (child.watched.last().at > Micros::ZERO).then(|| child.watched.with(|it| fast.fill(&mut it.cpu)))
    }

    fn make_details(&mut self, uid: &PodUid, layout: &CgroupLayout, now: Micros, owners: &Owners, look: &mut Look<'_>) {
        look.cost.details += 1;
        let at = if look.tables_at == Micros::ZERO { now } else { look.tables_at.min(now) };
        let mut sum = Tally::default();
        let sandbox = self.tree.sandbox(&self.target.containers).map(str::to_owned);
        for (name, child) in &mut self.tree.children {
            let id = child.id.clone();
            let tally = child.tally(look.counters, &|by| owners.preemptor(by, uid, &id));
            sum.join(&tally);
            let old = now - child.detail_at >= QUIET_DETAIL_EVERY;
            let waits = child.watched.is_quiet() || sandbox.as_ref() == Some(name);
            if waits && !old && child.detail.is_some() {
                continue;
            }
            let (io, limits) = child.watched.details(now, look.buffer, look.devices);
            child.open_files = child.count_files(layout, look.buffer);
            let detail = CgroupDetail { at, io, limits, ..tally.cgroup_detail(look.devices) };
            (child.detail, child.detail_at) = (Some(Arc::new(with_files(detail, child.open_files))), now);
        }
        let who = |by| owners.preemptor(by, uid, "");
        self.tree.remains.tally(look.counters, &mut sum, &who);
        if let Some(own) = &mut self.tree.own {
            let io_id = own.io_id();
            sum.add(look.counters, own.id(), io_id, &who);
            sum.seen_by(uid);
            let (io, limits) = own.details(now, look.buffer, look.devices);
            let detail = CgroupDetail { at, io, limits, ..sum.cgroup_detail(look.devices) };
            let files = self.tree.children.values().map(|child| child.open_files);
            // A sum without one of them would be wrong.
            let files = files.reduce(|sum, more| Some(sum?.plus(more?))).flatten();
            self.cgroup_detail = Some(Arc::new(with_files(detail, files)));
        }
        self.merge_slow(uid, look, Some((at, &sum)));
        self.detail_at = now;
        self.detail_due = next_due(uid, now, look.stretch);
    }

    /// Makes the details that containers share, where there is anything new for them.
    fn merge_slow(&mut self, uid: &PodUid, look: &Look<'_>, counted: Option<(Micros, &Tally)>) {
        let (network, storage) = (look.network.get(uid), look.storage.get(uid));
        let same = same(self.network.as_ref(), network) && same(self.storage.as_ref(), storage);
        let mut detail = match (counted, &self.detail) {
            (None, _) if same => return,
            (None, Some(before)) => PodDetail::clone(before),
            (None, None) => return,
            (Some((at, sum)), _) => {
                let reason =
                    |code| look.drop_reasons.name(code).map_or_else(|| format!("reason {code}"), str::to_owned);
                PodDetail { at, ..sum.pod_detail(&reason) }
            }
        };
        merge_ports(&mut detail.ports, network.map(Arc::as_ref));
        if let Some(network) = network {
            detail.interfaces.clone_from(&network.interfaces);
            detail.stack = network.stack;
            detail.network_at = Some(network.at);
        }
        detail.storage = storage.map(|it| StorageReading::clone(it));
        (self.network, self.storage) = (network.cloned(), storage.cloned());
        self.detail = Some(Arc::new(detail));
    }

    /// The ports that are listened on: as the slow reader saw them, and what the kernel told since.
    fn listening(&mut self, part: Option<&Arc<NetworkPart>>) -> Option<BTreeSet<u16>> {
        if self.target.host_network {
            return None;
        }
        let part = part?;
        self.changes.retain(|(at, ..)| *at > part.at);
        let mut ports = part.listening();
        for (_, port, open) in &self.changes {
            if *open {
                ports.insert(*port);
            } else {
                ports.remove(port);
            }
        }
        Some(ports)
    }
}

fn with_files(detail: CgroupDetail, files: Option<OpenFiles>) -> CgroupDetail {
    CgroupDetail {
        open_files: files.map(|files| files.count),
        sockets: files.and_then(|files| files.sockets),
        open_files_limit: files.and_then(|files| files.limit),
        ..detail
    }
}

/// All that a cgroup's files tell; `None` if it is gone.
pub(super) fn read_cgroup(cgroup: &mut Cgroup, buffer: &mut Buffer) -> Option<CgroupReading> {
    let mut it = CgroupReading { id: cgroup.id(), at: Clock.now().mono, ..CgroupReading::default() };
    cgroup.read(Depth::All, buffer, &mut it).is_ok_and(|there| there).then_some(it)
}

fn same<T>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    }
}

/// Adds who listens to what was requested; at most [`SHOWN_PORTS`] stay.
fn merge_ports(ports: &mut Vec<PortReading>, network: Option<&NetworkPart>) {
    if let Some(network) = network {
        for port in ports.iter_mut() {
            (port.listening, port.backlog, port.backlog_max) = (false, None, None);
        }
        for listener in network.ports() {
            match ports.iter_mut().find(|known| known.port == listener.port) {
                Some(known) => {
                    (known.listening, known.backlog, known.backlog_max) =
                        (true, listener.backlog, listener.backlog_max);
                }
                None => ports.push(listener),
            }
        }
    }
    ports.retain(|port| port.listening || port.requests > 0 || port.unanswered > 0);
    if ports.len() > SHOWN_PORTS {
        // Those together stay in any case.
        ports.sort_by_key(|port| (port.port != 0, std::cmp::Reverse(port.requests), !port.listening, port.port));
        ports.truncate(SHOWN_PORTS);
    }
    ports.sort_by_key(|port| port.port);
}

/// The next moment of a pod: spread over the time between two details by its UID.
fn next_due(uid: &PodUid, now: Micros, stretch: u32) -> Micros {
    let every = DETAIL_EVERY.scale(u64::from(stretch.max(1_000)), 1_000).get();
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    let phase = hasher.finish() % every;
    let passed = (now.get() + every - phase) % every;
    Micros(now.get() + every - passed)
}

#[cfg(test)]
mod tests;
