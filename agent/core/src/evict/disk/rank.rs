//! Who goes first when disk, inodes or process ids run short.
//!
//! As the kubelet orders (pkg/kubelet/eviction/helpers.go, release 1.36): of disk, who uses more than it asks for, then lower
//! priority, then more above its request (`rankDiskPressureFunc`); of process ids, lower priority, then more of them
//! (`rankPIDPressure`). What counts as a pod's use is what lies on the file system that is short ([`Layout::parts`]).

use std::cmp::Reverse;

use super::{Layout, Signal};
use crate::allocate::pod_storage_request;
use crate::spec::{PodSpec, PodUid};
use crate::telemetry::{FsUse, StorageReading};
use crate::units::{Bytes, Micros};

/// A pod's use that was found out longer ago says nothing any more. Folders are walked every 15 s, large ones take minutes.
pub const STALE_USE: Micros = Micros::secs(300);

/// What something uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageUse {
    /// Bytes.
    pub bytes: Bytes,
    /// Inodes.
    pub inodes: u64,
}

impl StorageUse {
    /// What these use together; `None` if none of them is known.
    fn sum<'a>(parts: impl Iterator<Item = &'a FsUse>) -> Option<Self> {
        parts.fold(None, |sum, part| {
            let sum: Self = sum.unwrap_or_default();
            let inodes = sum.inodes.saturating_add(part.inodes_used.unwrap_or(0));
            Some(Self { bytes: sum.bytes + part.used, inodes })
        })
    }
}

/// A pod that might go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which pod.
    pub uid: PodUid,
    /// `namespace/name`.
    pub name: String,
    /// `spec.priority`.
    pub priority: i32,
    /// Never a victim.
    pub critical: bool,
    /// Is going anyway: never a victim.
    pub terminating: bool,
    /// `spec.terminationGracePeriodSeconds`.
    pub grace: Micros,
    /// What it asks for of ephemeral storage.
    pub request: Bytes,
    /// Its writable layers; `None` where not known, or not lately.
    pub layers: Option<StorageUse>,
    /// Its logs and its volumes on disk.
    pub files: Option<StorageUse>,
    /// How old what is known of the layers and of the files is: the oldest of each; `None` if nothing is known.
    pub ages: (Option<Micros>, Option<Micros>),
    /// Its processes, threads among them.
    pub processes: Option<u64>,
    /// Its containers, for the message.
    pub containers: Vec<CandidateContainer>,
}

/// A container of a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CandidateContainer {
    /// Its name.
    pub name: String,
    /// What it asks for of ephemeral storage.
    pub request: Bytes,
    /// Its writable layer and its logs, as the kubelet counts.
    pub used: Bytes,
}

/// Whether a part of a reading says something of this pod's life, and lately. All on the wall clock.
pub(super) fn is_fresh(part: &FsUse, since: Micros, now: Micros) -> bool {
    part.at >= since && now - part.at <= STALE_USE
}

/// Whether a volume lies on the node's disk.
pub(super) fn on_disk(pod: &PodSpec, volume: &str) -> bool {
    pod.volumes.iter().find(|v| v.name == volume).is_none_or(|v| v.kind.on_disk())
}

fn oldest<'a>(parts: impl Iterator<Item = &'a FsUse>, now: Micros) -> Option<Micros> {
    parts.map(|part| now - part.at).max()
}

impl Candidate {
    /// From a pod that has been there since `since`, and what it uses; times by the wall clock.
    #[must_use]
    pub fn new(
        pod: &PodSpec,
        storage: Option<&StorageReading>,
        processes: Option<u64>,
        terminating: bool,
        (since, now): (Micros, Micros),
    ) -> Self {
        let nothing = StorageReading::default();
        let storage = storage.unwrap_or(&nothing);
        let fresh = |part: &&FsUse| is_fresh(part, since, now);
        let volumes = storage.volumes.iter().filter(|(name, _)| on_disk(pod, name));
        let files = storage.logs.iter().chain(volumes).map(|(_, part)| part).filter(fresh);
        let layers = storage.rootfs.iter().map(|(_, part)| part).filter(fresh);
        let used_by = |list: &[(String, FsUse)], name: &str| {
            list.iter().find(|(of, _)| of == name).map(|(_, part)| part).filter(fresh).map(|part| part.used)
        };
        // The kubelet names a container only if both its layer and its logs are known.
        let containers = pod.all_containers().filter_map(|c| {
            let used = used_by(&storage.rootfs, &c.name)? + used_by(&storage.logs, &c.name)?;
            let request = c.storage.request.unwrap_or_default();
            Some(CandidateContainer { name: c.name.clone(), request, used })
        });
        Self {
            uid: pod.uid.clone(),
            name: pod.full_name(),
            priority: pod.priority,
            critical: pod.is_critical(),
            terminating,
            grace: pod.termination_grace,
            request: pod_storage_request(pod),
            ages: (oldest(layers.clone(), now), oldest(files.clone(), now)),
            layers: StorageUse::sum(layers),
            files: StorageUse::sum(files),
            processes,
            containers: containers.collect(),
        }
    }

    /// How old is what is known of its use; `None` if nothing is known of a part of it.
    #[must_use]
    pub fn age(&self, signal: Signal, layout: Layout) -> Option<Micros> {
        let (layers, files) = layout.parts(signal);
        let of = |part: Option<Micros>, counts: bool| if counts { part } else { Some(Micros::ZERO) };
        Some(of(self.ages.0, layers)?.max(of(self.ages.1, files)?))
    }

    /// What it uses of a signal's resource; `None` where that is not known.
    #[must_use]
    pub fn used(&self, signal: Signal, layout: Layout) -> Option<u64> {
        if signal == Signal::Pid {
            return self.processes;
        }
        let (layers, files) = layout.parts(signal);
        let parts = [self.layers.filter(|_| layers), self.files.filter(|_| files)];
        let amount = |part: StorageUse| match signal.resource() {
            "inodes" => part.inodes,
            _ => part.bytes.get(),
        };
        parts.into_iter().flatten().map(amount).reduce(u64::saturating_add)
    }

    /// What it asks for of a signal's resource: there are requests for bytes only.
    #[must_use]
    pub fn requested(&self, signal: Signal) -> u64 {
        if signal.resource() == "ephemeral-storage" { self.request.get() } else { 0 }
    }
}

/// The pods that may be victims, the first victim first, each with what it uses. Names and UIDs break ties, so the order does not
/// depend on the input's.
#[must_use]
pub fn rank(candidates: &[Candidate], signal: Signal, layout: Layout) -> Vec<(&Candidate, u64)> {
    let eligible = candidates.iter().filter(|c| !c.critical && !c.terminating);
    // Who uses nothing of it frees nothing.
    let mut order: Vec<(&Candidate, u64)> =
        eligible.filter_map(|c| c.used(signal, layout).filter(|used| *used > 0).map(|used| (c, used))).collect();
    order.sort_by(|(a, used_a), (b, used_b)| {
        let key = |c: &Candidate, used: u64| {
            let over = i128::from(used) - i128::from(c.requested(signal));
            let within = signal != Signal::Pid && over <= 0;
            (within, c.priority, Reverse(over))
        };
        key(a, *used_a).cmp(&key(b, *used_b)).then_with(|| (&a.name, &a.uid).cmp(&(&b.name, &b.uid)))
    });
    order
}
