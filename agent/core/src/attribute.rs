//! Why a pod is slow, if it is.
//!
//! Problem: a service answers late, and the figures that people look at do not say why: CPU in use is low both for a pod that is
//! throttled and for one that waits behind a neighbour; the number of throttled periods overstates (1 ms of 100 counts as one);
//! "some task waited" is 100 % of the time for every healthy batch job.
//! Approach: [`Attributor`] compares counters over windows of at least [`WINDOW`] and asks for each pod where its time went
//! (`causes`): what it lost to its own limits, to one other pod, to the node, to a disk, to the network. A cause must be found in
//! [`ENTER`] of [`WINDOWS`] windows to be told, and be absent from as many to end.
//!
//! Terms: *lost* is the share of wall-clock time for which tasks of the pod could not go on for that reason, at most all of it;
//! *waits* are times that tasks were runnable and had no CPU. Throttling is a wait, too, for the kernel, so it is taken away first:
//! while a pod ran for r and was throttled for t (both summed over CPUs), t / (r + t) of all runnable time was its own limit's.
//! *Details* (histograms, who preempted whom, sockets) are read less often than counters; a cause that needs them is judged only
//! when there are newer ones, and else keeps its standing.
//!
//! Properties (tested): readings in which nothing moves give no cause, ever; no pod is named as a noisy neighbour that uses less than
//! it asks for; the order of causes depends on the readings alone; arbitrary readings do not panic; all that is kept is bounded by
//! the pods in the last sample.

mod causes;
mod window;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::sample::{NodeReading, PodReading, Sample};
use crate::spec::PodUid;
use crate::units::{Micros, MilliCpu, Now, Ppm};

pub use causes::{
    ALL_ITS_OWN, CONNECTS_LOST, DISK_SHALLOW, DISK_SLOW, FEW_PREEMPTIONS, FEW_REQUESTS, FEW_SEGMENTS, IO_WAITS,
    LIMIT_NEAR, MEMORY_WAITS, MOSTLY, NO_IDLE, OVER_REQUEST, PACKETS_LOST, SLOWED, STOLEN, THROTTLED, WAITS,
};
use window::{DetailPast, NetPast, NodeWindow, Past, PodWindow};

/// Counters are compared over at least this long: PSI and cpu.stat move in steps of some 10 ms and more, so 5 s keep the error of a
/// share below 1 %, and a garbage collection or a burst of requests is not a verdict.
pub const WINDOW: Micros = Micros::secs(5);
/// After a gap of this length the next window starts afresh: what happened meanwhile is not of now.
pub const GAP: Micros = Micros::secs(60);
/// A cause is told when it was found in so many of the last [`WINDOWS`] windows.
pub const ENTER: u32 = 2;
/// And ends when it was found in none of so many.
pub const WINDOWS: u32 = 3;
/// A window that began less than this after all of the pod's containers is not judged: starting is work, and is expected to take what it can get.
pub const START_UP: Micros = Micros::secs(10);
/// A cause that could not be judged for this long is dropped: nobody knows.
pub const STALE: Micros = Micros::secs(300);
/// Details are believed for this long when counters are judged by them (who preempted whom).
pub const DETAIL_HOLDS: Micros = Micros::secs(120);
/// The same cause of the same pod is told again after this long at the earliest; meanwhile it is only shown.
pub const TELL_AGAIN: Micros = Micros::secs(60);

/// Why a pod is slow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// Its own CPU limit: it is throttled.
    OwnCpuLimit,
    /// It waits for CPUs that one other pod uses beyond its request.
    NoisyNeighbour {
        /// `namespace/name` of the other pod.
        pod: String,
        /// Its part in the displacing: of preemptions by others where they are known, else of the CPU time that others used.
        share: Ppm,
    },
    /// It waits for CPUs, and there is no single pod to blame: many pods, the node's own services, or the hypervisor.
    NodeOverload,
    /// Its own memory limit: its tasks free memory instead of working.
    OwnMemoryLimit,
    /// The node is short of memory.
    NodeMemory,
    /// A block device answers slowly.
    SlowDisk {
        /// The device: `/dev/vda`, or `8:0` where it has no name.
        device: String,
    },
    /// Its own IO limit: it waits, and the device is quick and not busy.
    OwnIoLimit,
    /// Segments or connections are lost on the network.
    PacketLoss,
}

/// The kinds of causes, in the order of the list where as much was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// [`Cause::OwnCpuLimit`].
    OwnCpuLimit,
    /// [`Cause::NoisyNeighbour`].
    NoisyNeighbour,
    /// [`Cause::NodeOverload`].
    NodeOverload,
    /// [`Cause::OwnMemoryLimit`].
    OwnMemoryLimit,
    /// [`Cause::NodeMemory`].
    NodeMemory,
    /// [`Cause::SlowDisk`].
    SlowDisk,
    /// [`Cause::OwnIoLimit`].
    OwnIoLimit,
    /// [`Cause::PacketLoss`].
    PacketLoss,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 8] = [
        Self::OwnCpuLimit,
        Self::NoisyNeighbour,
        Self::NodeOverload,
        Self::OwnMemoryLimit,
        Self::NodeMemory,
        Self::SlowDisk,
        Self::OwnIoLimit,
        Self::PacketLoss,
    ];

    /// Its name, as in metrics and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OwnCpuLimit => "OwnCpuLimit",
            Self::NoisyNeighbour => "NoisyNeighbour",
            Self::NodeOverload => "NodeOverload",
            Self::OwnMemoryLimit => "OwnMemoryLimit",
            Self::NodeMemory => "NodeMemory",
            Self::SlowDisk => "SlowDisk",
            Self::OwnIoLimit => "OwnIoLimit",
            Self::PacketLoss => "PacketLoss",
        }
    }
}

impl Cause {
    /// Which kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::OwnCpuLimit => Kind::OwnCpuLimit,
            Self::NoisyNeighbour { .. } => Kind::NoisyNeighbour,
            Self::NodeOverload => Kind::NodeOverload,
            Self::OwnMemoryLimit => Kind::OwnMemoryLimit,
            Self::NodeMemory => Kind::NodeMemory,
            Self::SlowDisk { .. } => Kind::SlowDisk,
            Self::OwnIoLimit => Kind::OwnIoLimit,
            Self::PacketLoss => Kind::PacketLoss,
        }
    }

    /// Who or what is to blame beyond the pod itself: `namespace/name` of a pod, a device; "" for none.
    #[must_use]
    pub fn culprit(&self) -> &str {
        match self {
            Self::NoisyNeighbour { pod, .. } => pod,
            Self::SlowDisk { device } => device,
            _ => "",
        }
    }
}

/// A sentence for people, without a full stop.
impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::OwnCpuLimit => f.write_str("it is throttled by its own CPU limit"),
            Self::NoisyNeighbour { pod, share } => {
                write!(f, "it waits for CPUs that pod {pod} takes ({} of it)", percent(*share))
            }
            Self::NodeOverload => f.write_str("it waits for CPUs: the node is overloaded"),
            Self::OwnMemoryLimit => f.write_str("it waits for memory below its own limit"),
            Self::NodeMemory => f.write_str("it waits for memory: the node is short of it"),
            Self::SlowDisk { device } => write!(f, "it waits for the slow disk {device}"),
            Self::OwnIoLimit => f.write_str("it waits for its own IO limit"),
            Self::PacketLoss => f.write_str("its packets are lost on the network"),
        }
    }
}

/// A cause that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slowness {
    /// Why.
    pub cause: Cause,
    /// Since when it stands (wall clock).
    pub since: Micros,
    /// Time lost in the last window in which it was found, of wall-clock time.
    pub lost: Ppm,
    /// What was measured then: name and value with its unit.
    pub evidence: Vec<(String, String)>,
}

/// What is known of a pod beyond its readings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `namespace/name`.
    pub name: String,
    /// The CPU that it asks for; `None` where that is not known (beside a kubelet).
    pub request: Option<MilliCpu>,
}

/// A cause that began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub uid: PodUid,
    /// It began; else it ended.
    pub began: bool,
    /// It is new to people: not told a moment ago.
    pub tell: bool,
    /// The cause as it stands or stood last.
    pub slowness: Slowness,
}

/// What was found in one window.
#[derive(Clone, Debug)]
struct Finding {
    cause: Cause,
    lost: Ppm,
    evidence: Vec<(String, String)>,
}

/// The standing of one kind of cause.
#[derive(Clone, Debug, Default)]
struct Standing {
    /// Found or not, the newest window in the lowest bit.
    history: u32,
    /// When it was last judged (monotonic).
    judged: Micros,
    /// The newest finding.
    newest: Option<Finding>,
    /// Since when it stands (wall clock).
    since: Option<Micros>,
    /// When people were last told (monotonic), and whether they were told of this standing.
    told: Option<Micros>,
    is_told: bool,
}

/// What is remembered of a pod.
#[derive(Clone, Debug, Default)]
struct Follow {
    past: Past,
    detail: DetailPast,
    net: NetPast,
    standings: BTreeMap<Kind, Standing>,
}

/// Finds out why pods are slow.
#[derive(Clone, Debug, Default)]
pub struct Attributor {
    /// When the present window began, and the node's counters then.
    base: Option<(Micros, NodeReading)>,
    /// Time stolen by the hypervisor, with the moment it was read; and its share between the last two readings.
    steal: Option<(Micros, Micros)>,
    stolen: Option<Ppm>,
    pods: BTreeMap<PodUid, Follow>,
}

impl Attributor {
    /// Takes a sample; pods without a subject are left out. Quick looks (without pods) and those that are not newer say nothing. Returns what began or ended.
    pub fn observe(&mut self, sample: &Sample, subjects: &BTreeMap<PodUid, Subject>, now: Now) -> Vec<Change> {
        let Some(all) = &sample.pods else { return Vec::new() };
        let readings: Vec<&PodReading> = all.iter().filter(|r| subjects.contains_key(&r.uid)).collect();
        let at = sample.at;
        let present: BTreeSet<&PodUid> = readings.iter().map(|r| &r.uid).collect();
        self.pods.retain(|uid, _| present.contains(uid));
        let Some((from, node)) = self.base.filter(|(from, _)| at >= *from && at - *from <= GAP) else {
            self.begin(sample, &readings);
            return Vec::new();
        };
        if at - from < WINDOW {
            // A pod that is new begins within the window.
            for reading in &readings {
                let follow = self.pods.entry(reading.uid.clone()).or_default();
                follow.past.meet(at, reading);
            }
            return Vec::new();
        }
        self.observe_steal(sample);
        let span = at - from;
        let windows: BTreeMap<PodUid, PodWindow> = readings
            .iter()
            .map(|reading| {
                let follow = self.pods.entry(reading.uid.clone()).or_default();
                (reading.uid.clone(), follow.past.close(at, reading))
            })
            .collect();
        let node = NodeWindow::between(&node, &sample.node, span, self.stolen, sample.node_detail.as_deref());
        let mut changes = Vec::new();
        for reading in &readings {
            let Some(follow) = self.pods.get_mut(&reading.uid) else { continue };
            follow.detail.observe(at, reading.cgroup_detail.as_deref());
            follow.net.observe(reading.detail.as_deref());
        }
        for reading in &readings {
            let judged = self.judge(&reading.uid, at, &node, &windows, subjects);
            let Some(follow) = self.pods.get_mut(&reading.uid) else { continue };
            for (kinds, findings) in judged {
                follow.vote(&kinds, findings, at, now, &reading.uid, &mut changes);
            }
            follow.settle(at, &reading.uid, &mut changes);
        }
        self.base = Some((at, sample.node));
        changes
    }

    /// Why a pod is slow, most lost time first; empty if it is not.
    #[must_use]
    pub fn of(&self, uid: &PodUid) -> Vec<Slowness> {
        let Some(follow) = self.pods.get(uid) else { return Vec::new() };
        let mut all: Vec<Slowness> = follow.standings.values().filter_map(Standing::shown).collect();
        all.sort_by_key(|s| (std::cmp::Reverse(s.lost), s.cause.kind()));
        all
    }

    /// How many pods and causes are remembered.
    #[must_use]
    pub fn size(&self) -> usize {
        self.pods.values().map(|f| 1 + f.standings.len() + f.past.size()).sum()
    }

    fn begin(&mut self, sample: &Sample, readings: &[&PodReading]) {
        self.base = Some((sample.at, sample.node));
        (self.steal, self.stolen) = (None, None);
        self.observe_steal(sample);
        for reading in readings {
            let follow = self.pods.entry(reading.uid.clone()).or_default();
            follow.past.forget();
            follow.past.meet(sample.at, reading);
            follow.detail.observe(sample.at, reading.cgroup_detail.as_deref());
            follow.net.observe(reading.detail.as_deref());
        }
    }

    fn observe_steal(&mut self, sample: &Sample) {
        let Some(detail) = &sample.node_detail else { return };
        let Some(steal) = detail.steal else { return };
        match self.steal {
            Some((at, before)) if detail.at > at => {
                // Of one CPU's time: what is stolen from any of them is waited for by somebody.
                self.stolen = Some(window::share(steal - before, detail.at - at));
                self.steal = Some((detail.at, steal));
            }
            Some(_) => {}
            None => self.steal = Some((detail.at, steal)),
        }
    }

    /// What the window says of a pod: groups of kinds that were judged together, with what was found of them.
    fn judge(
        &self,
        uid: &PodUid,
        at: Micros,
        node: &NodeWindow,
        windows: &BTreeMap<PodUid, PodWindow>,
        subjects: &BTreeMap<PodUid, Subject>,
    ) -> Vec<(Vec<Kind>, Vec<Finding>)> {
        let (Some(follow), Some(window)) = (self.pods.get(uid), windows.get(uid)) else { return Vec::new() };
        let mut judged = Vec::new();
        if window.span == Micros::ZERO || window.young {
            return judged;
        }
        let detail = follow.detail.held(at);
        let neighbours: Vec<causes::Neighbour<'_>> = windows
            .iter()
            .filter(|(other, _)| *other != uid)
            .filter_map(|(other, w)| Some((other, w, subjects.get(other)?)))
            .map(|(uid, w, subject)| causes::Neighbour {
                uid,
                name: &subject.name,
                request: subject.request,
                used: w.cpu_in_use(),
            })
            .collect();
        let request = subjects.get(uid).and_then(|s| s.request);
        if let Some(findings) = causes::cpu(uid, request, window, detail, node, &neighbours) {
            judged.push((vec![Kind::OwnCpuLimit, Kind::NoisyNeighbour, Kind::NodeOverload], findings));
        }
        if let Some(finding) = causes::memory(window, detail, node) {
            judged.push((vec![Kind::OwnMemoryLimit, Kind::NodeMemory], finding));
        }
        if let Some(fresh) = follow.detail.fresh() {
            let others: Vec<_> = self
                .pods
                .iter()
                .filter(|(other, _)| *other != uid)
                .filter_map(|(other, f)| Some((subjects.get(other)?.name.as_str(), f.detail.held(at)?)))
                .collect();
            if let Some(findings) = causes::disk(window, fresh, &others) {
                judged.push((vec![Kind::SlowDisk, Kind::OwnIoLimit], findings));
            }
        }
        if let Some(fresh) = follow.net.fresh() {
            judged.push((vec![Kind::PacketLoss], causes::network(fresh)));
        }
        judged
    }
}

impl Follow {
    /// Takes what a window says of these kinds of causes.
    fn vote(
        &mut self,
        kinds: &[Kind],
        mut findings: Vec<Finding>,
        at: Micros,
        now: Now,
        uid: &PodUid,
        changes: &mut Vec<Change>,
    ) {
        for &kind in kinds {
            let found = findings.iter().position(|f| f.cause.kind() == kind).map(|i| findings.swap_remove(i));
            if found.is_none() && !self.standings.contains_key(&kind) {
                continue;
            }
            let standing = self.standings.entry(kind).or_default();
            standing.judged = at;
            standing.history = (standing.history << 1 | u32::from(found.is_some())) & ((1 << WINDOWS) - 1);
            if found.is_some() {
                standing.newest = found;
            }
            if standing.since.is_none() && standing.history.count_ones() >= ENTER {
                standing.since = Some(now.wall);
                standing.is_told = standing.told.is_none_or(|told| at - told >= TELL_AGAIN);
                if standing.is_told {
                    standing.told = Some(at);
                }
                changes.extend(standing.change(uid, true));
            }
        }
        // Waits for CPUs have one cause: what was found last takes the place of the other.
        let cpu = [Kind::NoisyNeighbour, Kind::NodeOverload];
        if cpu.iter().all(|k| self.standings.get(k).is_some_and(|s| s.since.is_some())) {
            for kind in cpu {
                if let Some(standing) = self.standings.get_mut(&kind)
                    && standing.history & 1 == 0
                {
                    changes.extend(standing.end(uid));
                }
            }
        }
    }

    /// Ends what was found in none of the last windows, and what nobody could judge for long.
    fn settle(&mut self, at: Micros, uid: &PodUid, changes: &mut Vec<Change>) {
        for standing in self.standings.values_mut() {
            let over = standing.history == 0 || at - standing.judged > STALE;
            if over && standing.since.is_some() {
                changes.extend(standing.end(uid));
            }
        }
        // One that was told a moment ago is kept until it may be told again.
        self.standings.retain(|_, s| {
            s.since.is_some() || s.history != 0 && at - s.judged <= STALE || s.told.is_some_and(|t| at - t < TELL_AGAIN)
        });
    }
}

impl Standing {
    fn shown(&self) -> Option<Slowness> {
        let newest = self.newest.as_ref()?;
        Some(Slowness {
            cause: newest.cause.clone(),
            since: self.since?,
            lost: newest.lost,
            evidence: newest.evidence.clone(),
        })
    }

    fn change(&self, uid: &PodUid, began: bool) -> Option<Change> {
        Some(Change { uid: uid.clone(), began, tell: self.is_told, slowness: self.shown()? })
    }

    fn end(&mut self, uid: &PodUid) -> Option<Change> {
        let change = self.change(uid, false);
        (self.since, self.history, self.is_told) = (None, 0, false);
        change
    }
}

/// A share as people read it: `12.3 %`.
pub(crate) fn percent(share: Ppm) -> String {
    format!("{}.{} %", share.get() / 10_000, share.get() % 10_000 / 1_000)
}

#[cfg(test)]
mod tests;
