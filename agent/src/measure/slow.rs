//! The slow reader: what lies in network namespaces, on disks and on the node as a whole.
//!
//! **Problem.** Listening sockets, counters of a network namespace, sizes of folders and of file systems are many system calls
//! away, some of which wait for a disk; the sampler must look every 20 ms when memory is short and can wait for none of them.
//!
//! **Approach.** Two threads of their own, told by the same [`Target`]s as the sampler: one visits network namespaces
//! ([`super::network`]), one walks folders and reads the node ([`super::storage`], [`super::node_detail`]); a slow disk holds up
//! no listing of sockets. Both publish immutable parts into [`Slow`], from which the sampler takes the newest without waiting.
//!
//! **Terms.** A *part* is what one of the threads found out about a pod at one moment, which it carries.
//!
//! **Properties.** Reading what is published never waits. A pod that is no target any more has no part. A thread that panicked, or
//! that could not leave a namespace, is replaced; what it had published stays until it is outdated. Both count what they cost
//! ([`SlowHealth`]).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use beelet_core::spec::PodUid;
use beelet_core::telemetry::{InterfaceReading, NodeDetail, PortReading, StackReading, StorageReading};
use beelet_core::units::Micros;
use tracing::{debug, warn};

use super::node_detail::{NodeDetailReader, NodeSources};
use super::{Target, network, storage};
use crate::kernel::listeners::ListenPort;
use crate::runtime::{DiskStats, Runtime};
use crate::volumes::Volumes;

/// What was found in a pod's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPart {
    /// When (monotonic).
    pub at: Micros,
    /// TCP sockets that listen, by port; sockets of one port (IPv4 and IPv6, `SO_REUSEPORT`) are added up.
    pub listeners: Vec<ListenPort>,
    /// The devices but loopback.
    pub interfaces: Vec<InterfaceReading>,
    /// The namespace's counters; `None` where the kernel does not tell them.
    pub stack: Option<StackReading>,
}

impl NetworkPart {
    /// The ports.
    #[must_use]
    pub fn listening(&self) -> BTreeSet<u16> {
        self.listeners.iter().map(|listener| listener.port).collect()
    }

    /// The listeners as readings of ports; requests are for others to fill in.
    pub fn ports(&self) -> impl Iterator<Item = PortReading> + '_ {
        self.listeners.iter().map(|listener| PortReading {
            port: listener.port,
            listening: true,
            backlog: Some(listener.waiting),
            backlog_max: listener.most,
            ..PortReading::default()
        })
    }
}

/// What the slow reader counts of itself; all since its start.
#[derive(Debug, Default)]
pub struct SlowHealth {
    /// Visits to network namespaces.
    pub visits: AtomicU64,
    /// Of these, those that failed for another reason than the end of the pod.
    pub visits_failed: AtomicU64,
    /// Microseconds of CPU time of the thread that visits.
    pub network_us: AtomicU64,
    /// Microseconds of CPU time of the thread that walks.
    pub storage_us: AtomicU64,
    /// Files and folders walked over.
    pub entries: AtomicU64,
    /// Walks that came to their end.
    pub walks: AtomicU64,
    /// Threads that had to be replaced.
    pub replaced: AtomicU64,
}

/// By pod.
pub type Parts<T> = BTreeMap<PodUid, Arc<T>>;

/// A handle on the slow reader: what it published, and what it is told. One that nobody reads for is empty for ever.
#[derive(Clone, Debug, Default)]
pub struct Slow(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    network: ArcSwap<Parts<NetworkPart>>,
    storage: ArcSwap<Parts<StorageReading>>,
    node: ArcSwapOption<NodeDetail>,
    /// The runtime's newest word on disks.
    disks: ArcSwapOption<DiskStats>,
    health: SlowHealth,
    orders: Mutex<Orders>,
    ordered: Condvar,
}

/// What the threads are told.
#[derive(Clone, Debug, Default)]
pub(super) struct Orders {
    /// The pods.
    pub(super) targets: Arc<Vec<Target>>,
    /// Pods whose listeners are to be looked up at once.
    pub(super) look: BTreeSet<PodUid>,
    /// Disks are short: what pods use of them is to be known better.
    pub(super) hurry: bool,
    /// End.
    pub(super) stop: bool,
    /// Counts the changes of `targets`.
    pub(super) generation: u64,
}

impl Slow {
    /// What is known of the pods' networks. Pods of the node's network have no entry.
    #[must_use]
    pub fn network(&self) -> Arc<Parts<NetworkPart>> {
        self.0.network.load_full()
    }

    /// What is known of the pods' disk space.
    #[must_use]
    pub fn storage(&self) -> Arc<Parts<StorageReading>> {
        self.0.storage.load_full()
    }

    /// What is known of the node; `None` before it was first read.
    #[must_use]
    pub fn node(&self) -> Option<Arc<NodeDetail>> {
        self.0.node.load_full()
    }

    /// What the reader counts of itself.
    #[must_use]
    pub fn health(&self) -> &SlowHealth {
        &self.0.health
    }

    /// Reads for these pods from now on; what is known of others is forgotten.
    pub fn aim(&self, targets: &[Target]) {
        let mut orders = self.orders();
        orders.targets = Arc::new(targets.to_vec());
        orders.generation += 1;
        drop(orders);
        self.0.ordered.notify_all();
    }

    /// Visits the networks of these pods at once.
    pub fn look(&self, uids: impl IntoIterator<Item = PodUid>) {
        self.orders().look.extend(uids);
        self.0.ordered.notify_all();
    }

    /// Whether disks are short: then folders are walked at once, and more often.
    pub fn hurry(&self, hurry: bool) {
        self.orders().hurry = hurry;
        self.0.ordered.notify_all();
    }

    /// Ends the threads; to be joined after this.
    pub fn stop(&self) {
        self.orders().stop = true;
        self.0.ordered.notify_all();
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        // No holder leaves it half changed.
        self.0.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `wake` says so of the orders, at most so long; the orders. Takes the pods to be looked at out of them if told.
    pub(super) fn wait(&self, at_most: Duration, take: bool, wake: impl Fn(&Orders) -> bool) -> Orders {
        let orders = self.orders();
        let waited = self.0.ordered.wait_timeout_while(orders, at_most, |orders| !orders.stop && !wake(orders));
        let (mut orders, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let now = orders.clone();
        if take {
            orders.look.clear();
        }
        now
    }

    pub(super) fn publish_network(&self, parts: Parts<NetworkPart>) {
        self.0.network.store(Arc::new(parts));
    }

    pub(super) fn publish_storage(&self, parts: Parts<StorageReading>) {
        self.0.storage.store(Arc::new(parts));
    }

    pub(super) fn publish_disk_stats(&self, stats: DiskStats) {
        self.0.disks.store(Some(Arc::new(stats)));
    }

    pub(super) fn disk_stats(&self) -> Option<Arc<DiskStats>> {
        self.0.disks.load_full()
    }

    /// Folders on the file systems of images and of writable layers, by the runtime's word; `None` before it gave it. A runtime that
    /// does not tell them apart keeps both together.
    pub(super) fn image_places(&self) -> Option<(PathBuf, PathBuf)> {
        let stats = self.disk_stats()?;
        let images = stats.images.as_ref()?;
        let containers = stats.containers.as_ref().unwrap_or(images);
        Some((images.mountpoint.clone(), containers.mountpoint.clone()))
    }

    pub(super) fn publish_node(&self, node: NodeDetail) {
        self.0.node.store(Some(Arc::new(node)));
    }
}

/// The next moment after `now` in a beat of `every` that each pod has at a place of its own.
pub(super) fn next_due(uid: &PodUid, now: Micros, every: Micros) -> Micros {
    let place = uid.as_str().bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let place = place % every.0;
    // In more than half a beat, so that a new pod's second visit does not follow the first at once.
    let after = now.0 + every.0 / 2;
    let in_beat = after % every.0;
    Micros(after - in_beat + place + if place <= in_beat { every.0 } else { 0 })
}

/// What the slow reader works with.
#[derive(Clone, Debug)]
pub struct SlowParts {
    /// What the node is read from, and where pods' cgroups are.
    pub node: NodeSources,
    /// Where pods' files are.
    pub volumes: Volumes,
    /// The kernel tells when a socket begins and ceases to listen; else namespaces are visited more often.
    pub listen_events: bool,
}

impl Slow {
    /// Starts the threads: to be joined after [`Slow::stop`].
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn spawn(parts: SlowParts) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let slow = Self::default();
        let unified = parts.node.layout.unified().to_owned();
        let network =
            supervise(&slow, "beelet-network", move |slow| network::run(slow, &unified, parts.listen_events))?;
        let storage = supervise(&slow, "beelet-storage", move |slow| {
            storage::run(slow, &parts.volumes, NodeDetailReader::new(parts.node.clone()))
        })?;
        Ok((slow, vec![network, storage]))
    }

    /// Asks the runtime for its account of disks, again and again, for ever. The runtime goes through all containers for an answer, so
    /// the question is asked every 15 s at most, and so seldom that the answers take 1 % of the time.
    pub async fn follow_runtime(self, runtime: Arc<Runtime>) {
        const EVERY: Duration = Duration::from_secs(15);
        const FIRST: Duration = Duration::from_secs(2);
        let mut told = false;
        tokio::time::sleep(FIRST).await;
        loop {
            let began = Instant::now();
            match runtime.disk_stats().await {
                Ok(stats) => {
                    self.publish_disk_stats(stats);
                    told = false;
                }
                // Who lists the pods tells when the runtime is away.
                Err(error) if !std::mem::replace(&mut told, true) => {
                    debug!(%error, "the runtime does not tell of disks; the last word stays");
                }
                Err(_) => {}
            }
            tokio::time::sleep(EVERY.max(began.elapsed() * 100)).await;
        }
    }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was told to.
    Stopped,
    /// It is in a namespace that it cannot leave: its thread is not to be used any more.
    Stranded,
}

/// Starts a thread that runs `work` in a thread below it, again and again until it was told to stop. It never enters a namespace
/// itself, so that what it starts begins where the agent did.
///
/// # Errors
/// If the system gives no thread.
pub(super) fn supervise<W>(slow: &Slow, name: &'static str, work: W) -> std::io::Result<JoinHandle<()>>
where
    W: Fn(&Slow) -> Ended + Send + Sync + 'static,
{
    const PAUSE: Duration = Duration::from_secs(1);
    let (slow, work) = (slow.clone(), Arc::new(work));
    std::thread::Builder::new().name(format!("{name}-keep")).spawn(move || {
        loop {
            let (work, worker) = (Arc::clone(&work), slow.clone());
            let ended = match std::thread::Builder::new().name(name.to_owned()).spawn(move || work(&worker)) {
                Ok(thread) => thread.join(),
                Err(error) => {
                    warn!(thread = name, %error, "a thread cannot be started; trying again");
                    Ok(Ended::Stranded)
                }
            };
            match ended {
                Ok(Ended::Stopped) => return,
                Ok(Ended::Stranded) => warn!(thread = name, "a thread is replaced"),
                Err(_) => warn!(thread = name, "a thread panicked (its message is above) and is replaced"),
            }
            slow.health().replaced.fetch_add(1, Ordering::Relaxed);
            if slow.wait(PAUSE, false, |_| false).stop {
                return;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_worker_that_panics_or_strands_is_replaced_and_one_that_stops_is_not() {
        let slow = Slow::default();
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        let thread = supervise(&slow, "beelet-test", move |slow| match counted.fetch_add(1, Ordering::SeqCst) {
            0 => panic!("on purpose"),
            1 => Ended::Stranded,
            _ => {
                slow.wait(Duration::from_secs(60), false, |_| false);
                Ended::Stopped
            }
        })
        .unwrap();
        while runs.load(Ordering::SeqCst) < 3 {
            std::thread::sleep(Duration::from_millis(20));
        }
        slow.stop();
        thread.join().unwrap();
        assert_eq!((runs.load(Ordering::SeqCst), slow.health().replaced.load(Ordering::Relaxed)), (3, 2));
    }

    #[test]
    fn a_request_to_look_is_taken_once() {
        let slow = Slow::default();
        slow.look(["u".into()]);
        assert_eq!(slow.wait(Duration::from_secs(60), true, |orders| !orders.look.is_empty()).look.len(), 1);
        assert_eq!(slow.wait(Duration::ZERO, true, |orders| !orders.look.is_empty()).look.len(), 0);
    }
}
