//! Pressure on what is not memory: file systems, their inodes, process ids.
//!
//! Problem: a full disk stops every pod of a node, and most of what fills it (images that nobody uses, dead containers) can go without
//! a pod going. Approach: the kubelet's (pkg/kubelet/eviction/{eviction_manager,helpers}.go, release 1.36): [`Decider`] takes
//! readings of all signals; one that is met leads to what the node itself can free, is read again, and only then does one pod go, by
//! the kubelet's ranking ([`Candidate`]), with its texts. What a pod may use by its own limits is judged apart ([`over_limit`]).
//!
//! Terms: *nodefs* is the file system of the agent's root folder, *imagefs* that of the runtime's images, *containerfs* that of
//! writable layers; [`Layout`] says which of them are the same. A signal's *room* is what is available of its capacity, in bytes,
//! inodes or process ids. *Node-level reclaim* is the removal of dead containers and unused images. Signals without it (process ids;
//! nodefs where images and layers lie elsewhere) have to be met in two readings instead.
//!
//! What pods use is found out seldom; so once a file system is short, all of them are looked at anew before one is chosen, for at most
//! half a minute: the one that filled it was small a moment ago.
//!
//! Differences to the kubelet: readings each second while one is met (upstream: 10 s); a pod without a reading of its storage is not
//! chosen (upstream: chosen first), nor is one that uses nothing of what is short; inodes are ranked by inodes alone (upstream subtracts
//! the request for bytes from them); processes are counted with their threads, which is what process ids go to.
//!
//! Properties (tested): nobody goes before node-level reclaim was tried and the signal was read again after it; nobody goes once the
//! minimum reclaim is available; critical and terminating pods never go; a stale or missing reading causes neither reclaim nor eviction;
//! one at a time, and measured again after it; a condition rises at most once per hold window; each decision has evidence; the same
//! readings give the same decisions.

mod decider;
mod limits;
mod rank;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use decider::{Decider, Decision, Eviction, Pass, Reclaim, Standing, Tried};
pub use limits::{LocalLimit, OverLimit, over_limit};
pub use rank::{Candidate, STALE_USE, StorageUse, rank};

use super::{Soft, Threshold};
use crate::units::{Bytes, Micros, Ppm};

/// A signal of the node that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Signal {
    /// Bytes of nodefs.
    NodeFs,
    /// Inodes of nodefs.
    NodeFsInodes,
    /// Bytes of imagefs.
    ImageFs,
    /// Inodes of imagefs.
    ImageFsInodes,
    /// Bytes of containerfs.
    ContainerFs,
    /// Inodes of containerfs.
    ContainerFsInodes,
    /// Process ids.
    Pid,
}

impl Signal {
    /// All, in the order in which they are looked after.
    pub const ALL: [Self; 7] = [
        Self::NodeFs,
        Self::NodeFsInodes,
        Self::ImageFs,
        Self::ImageFsInodes,
        Self::ContainerFs,
        Self::ContainerFsInodes,
        Self::Pid,
    ];

    /// The kubelet's name, as in `kubelet_evictions{eviction_signal}` (pkg/kubelet/eviction/api/types.go).
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NodeFs => "nodefs.available",
            Self::NodeFsInodes => "nodefs.inodesFree",
            Self::ImageFs => "imagefs.available",
            Self::ImageFsInodes => "imagefs.inodesFree",
            Self::ContainerFs => "containerfs.available",
            Self::ContainerFsInodes => "containerfs.inodesFree",
            Self::Pid => "pid.available",
        }
    }

    /// What runs short, as the kubelet's messages name it (`signalToResource`).
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::NodeFs | Self::ImageFs | Self::ContainerFs => "ephemeral-storage",
            Self::NodeFsInodes | Self::ImageFsInodes | Self::ContainerFsInodes => "inodes",
            Self::Pid => "pids",
        }
    }

    /// The node's condition (`signalToNodeCondition`).
    #[must_use]
    pub fn condition(self) -> Condition {
        if self == Self::Pid { Condition::PidPressure } else { Condition::DiskPressure }
    }

    /// An amount of it as a Kubernetes quantity: bytes with binary suffixes, the rest with decimal ones.
    #[must_use]
    pub fn say(self, amount: u64) -> String {
        if self.resource() == "ephemeral-storage" { Bytes(amount).to_string() } else { decimal(amount) }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A number as a quantity of the format DecimalSI: the largest suffix that loses nothing.
fn decimal(amount: u64) -> String {
    const SUFFIX: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let (mut left, mut steps) = (amount, 0);
    while left > 0 && left.is_multiple_of(1_000) {
        left /= 1_000;
        steps += 1;
    }
    format!("{left}{}", SUFFIX[steps])
}

/// A condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Condition {
    /// `DiskPressure`.
    DiskPressure,
    /// `PIDPressure`.
    PidPressure,
}

impl Condition {
    /// Both.
    pub const ALL: [Self; 2] = [Self::DiskPressure, Self::PidPressure];

    /// The API's name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiskPressure => "DiskPressure",
            Self::PidPressure => "PIDPressure",
        }
    }

    /// The kubelet's event when it rises or falls (pkg/kubelet/nodestatus/setters.go).
    #[must_use]
    pub fn event(self, rises: bool) -> &'static str {
        match (self, rises) {
            (Self::DiskPressure, true) => "NodeHasDiskPressure",
            (Self::DiskPressure, false) => "NodeHasNoDiskPressure",
            (Self::PidPressure, true) => "NodeHasInsufficientPID",
            (Self::PidPressure, false) => "NodeHasSufficientPID",
        }
    }
}

/// The thresholds of all signals but memory's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// `evictionHard`. Of counts, quantities stand for the number.
    pub hard: BTreeMap<Signal, Threshold>,
    /// `evictionSoft` with `evictionSoftGracePeriod`.
    pub soft: BTreeMap<Signal, Soft>,
    /// `evictionMinimumReclaim`.
    pub reclaim: BTreeMap<Signal, Threshold>,
}

impl Default for Thresholds {
    /// The kubelet's (pkg/kubelet/eviction/defaults_linux.go): none for process ids.
    fn default() -> Self {
        let share = |percent: u64| Threshold::Share(Ppm(percent * 10_000));
        Self {
            hard: BTreeMap::from([
                (Signal::NodeFs, share(10)),
                (Signal::NodeFsInodes, share(5)),
                (Signal::ImageFs, share(15)),
                (Signal::ImageFsInodes, share(5)),
            ]),
            soft: BTreeMap::new(),
            reclaim: BTreeMap::new(),
        }
    }
}

impl Thresholds {
    /// The signal whose settings are a signal's own: containerfs has those of the file system that it shares, as upstream
    /// (`UpdateContainerFsThresholds`).
    fn source(signal: Signal, layout: Layout) -> Signal {
        match (signal, layout) {
            (Signal::ContainerFs, Layout::ImagesAndContainersApart) => Signal::ImageFs,
            (Signal::ContainerFs, _) => Signal::NodeFs,
            (Signal::ContainerFsInodes, Layout::ImagesAndContainersApart) => Signal::ImageFsInodes,
            (Signal::ContainerFsInodes, _) => Signal::NodeFsInodes,
            (other, _) => other,
        }
    }
}

/// Which file systems are the same. Told by their devices (pkg/kubelet/stats/provider.go, `HasDedicatedImageFs` and
/// `HasDedicatedContainerFs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// All on one.
    One,
    /// Images and writable layers together, on another than nodefs.
    ImagesAndContainersApart,
    /// Images on another one than writable layers.
    ImagesApart,
}

impl Layout {
    /// By the devices of nodefs, imagefs and containerfs.
    #[must_use]
    pub fn of(node: u64, images: u64, containers: u64) -> Self {
        match (images == node, images == containers) {
            (_, false) => Self::ImagesApart,
            (true, true) => Self::One,
            (false, true) => Self::ImagesAndContainersApart,
        }
    }

    /// What of a pod lies on the signal's file system (`buildSignalToRankFunc`): its writable layers; its logs and volumes.
    #[must_use]
    pub fn parts(self, signal: Signal) -> (bool, bool) {
        let of_images = matches!(signal, Signal::ImageFs | Signal::ImageFsInodes);
        let of_containers = matches!(signal, Signal::ContainerFs | Signal::ContainerFsInodes);
        match self {
            _ if signal == Signal::Pid => (false, false),
            Self::One => (true, true),
            Self::ImagesAndContainersApart if of_images || of_containers => (true, false),
            Self::ImagesAndContainersApart => (false, true),
            Self::ImagesApart if of_images => (false, false),
            Self::ImagesApart => (true, true),
        }
    }

    /// What the node itself can free for a signal (`buildSignalToNodeReclaimFuncs`): dead containers; unused images.
    #[must_use]
    pub fn reclaim(self, signal: Signal) -> (bool, bool) {
        let of_images = matches!(signal, Signal::ImageFs | Signal::ImageFsInodes);
        let of_node = matches!(signal, Signal::NodeFs | Signal::NodeFsInodes);
        match self {
            _ if signal == Signal::Pid => (false, false),
            Self::One => (true, true),
            Self::ImagesAndContainersApart => (!of_node, !of_node),
            Self::ImagesApart => (!of_images, of_images),
        }
    }
}

/// What is free on a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsRoom {
    /// Bytes for ordinary users.
    pub available: Bytes,
    /// Its size.
    pub capacity: Bytes,
    /// Inodes.
    pub inodes_free: u64,
    /// Inodes in all; 0 where the file system makes them as it needs them (btrfs).
    pub inodes: u64,
}

/// The node's process ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pids {
    /// So many tasks there can be: the lesser of kernel.pid_max and kernel.threads-max (pkg/kubelet/stats/pidlimit).
    pub most: u64,
    /// So many there are.
    pub running: u64,
}

/// A reading of all signals. `None` is what could not be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// When (monotonic).
    pub at: Micros,
    /// Which file systems are the same; `None` before the runtime has told where it keeps images.
    pub layout: Option<Layout>,
    /// nodefs.
    pub node: Option<FsRoom>,
    /// imagefs.
    pub images: Option<FsRoom>,
    /// containerfs.
    pub containers: Option<FsRoom>,
    /// Process ids.
    pub pids: Option<Pids>,
}

/// What is available of a capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Free.
    pub available: u64,
    /// In all.
    pub capacity: u64,
}

impl Reading {
    /// The room of a signal; `None` where it is not known, and where a file system has no number of inodes.
    #[must_use]
    pub fn room(&self, signal: Signal) -> Option<Room> {
        let bytes = |fs: Option<FsRoom>| {
            fs.filter(|fs| fs.capacity > Bytes::ZERO)
                .map(|fs| Room { available: fs.available.get(), capacity: fs.capacity.get() })
        };
        let inodes = |fs: Option<FsRoom>| {
            fs.filter(|fs| fs.inodes > 0).map(|fs| Room { available: fs.inodes_free, capacity: fs.inodes })
        };
        match signal {
            Signal::NodeFs => bytes(self.node),
            Signal::NodeFsInodes => inodes(self.node),
            Signal::ImageFs => bytes(self.images),
            Signal::ImageFsInodes => inodes(self.images),
            Signal::ContainerFs => bytes(self.containers),
            Signal::ContainerFsInodes => inodes(self.containers),
            Signal::Pid => self
                .pids
                .filter(|pids| pids.most > 0)
                .map(|pids| Room { available: pids.most.saturating_sub(pids.running), capacity: pids.most }),
        }
    }

    /// The file system was read, and has no number of inodes: nothing is missing.
    fn counts_no_inodes(&self, signal: Signal) -> bool {
        let fs = match signal {
            Signal::NodeFsInodes => self.node,
            Signal::ImageFsInodes => self.images,
            Signal::ContainerFsInodes => self.containers,
            _ => None,
        };
        fs.is_some_and(|fs| fs.inodes == 0)
    }
}

/// What node-level reclaim came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaimed {
    /// When it ended (monotonic).
    pub at: Micros,
    /// Dead containers and sandboxes removed.
    pub containers: u32,
    /// Images removed.
    pub images: u32,
    /// What the removed images took, by the runtime's word.
    pub freed: Bytes,
    /// What could not be done, and why.
    pub errors: Vec<String>,
}

impl fmt::Display for Reclaimed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "removed {} dead containers and {} unused images ({})", self.containers, self.images, self.freed)?;
        if self.errors.is_empty() { Ok(()) } else { write!(f, "; failed: {}", self.errors.join("; ")) }
    }
}

/// The kubelet's text for a pod's `status.message` and its `Evicted` event (`evictionMessage`). `threshold` and `available` are what
/// decided. Containers are named that use more of the disk than they ask for; of inodes and process ids none is, as upstream.
#[must_use]
pub fn message(signal: Signal, threshold: &str, available: u64, victim: &Candidate) -> String {
    let resource = signal.resource();
    let named = resource == "ephemeral-storage";
    let over = victim.containers.iter().filter(|c| named && c.used > c.request);
    let over = over.map(|c| (c.name.as_str(), c.used, c.request));
    super::low_on(resource, threshold, &signal.say(available), over)
}

#[cfg(test)]
mod tests;
