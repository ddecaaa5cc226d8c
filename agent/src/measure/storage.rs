//! The disk space that pods use: writable layers, logs, volumes.
//!
//! **Approach.** Writable layers are the runtime's word ([`crate::runtime::DiskStats`], asked for by a task of its own). Each log
//! folder and each volume on this node is a *place*, walked ([`super::walk`]) every [`EVERY`], all places in turn, in slices of at most
//! [`SLICE`] every [`PAUSE`]: 1 % of a core while there is something to walk, however much it is. While disks are short it is every
//! [`HURRY`], at the same cost at most. Volumes in memory are asked for
//! with one `statvfs`.
//!
//! **Terms.** A *place* is a folder whose space is told by itself. A *pass* is one walk of it, from its begin to its end.
//!
//! **Properties.** A number is that of a whole pass, with the moment of its end; until the first pass has ended the place is not
//! told. No place waits for another one's pass: each gets so many entries in its turn ([`TURN`]). What lies under folders that could
//! not be read is not in the sum, and that is logged once per place.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use beelet_core::spec::PodUid;
use beelet_core::telemetry::{FsUse, StorageReading};
use beelet_core::units::{Bytes, Micros};
use rustix::fs::{StatVfs, statfs, statvfs};
use tracing::{debug, warn};

use super::Target;
use super::node_detail::NodeDetailReader;
use super::slow::{Ended, Parts, Slow, next_due};
use super::walk::{Budget, Step, Walk};
use crate::clock::{Clock, thread_cpu};
use crate::runtime::{DiskStats, DiskUse};
use crate::volumes::{Place, PlaceKind, Volumes};

/// From the end of a pass to the begin of the next.
const EVERY: Micros = Micros::secs(15);
/// The same while disks are short.
const HURRY: Micros = Micros::secs(5);
/// Pods' folders are listed so often; and when their containers change, for with them their folders do.
const LIST_EVERY: Micros = Micros::secs(60);
/// So long it walks at once.
const SLICE: Duration = Duration::from_millis(1);
/// And rests between.
const PAUSE: Duration = Duration::from_millis(100);
/// What is due within this time is done together.
const ROUND: Micros = Micros::secs(1);
/// So many entries of a place, then the next one has its turn.
const TURN: u64 = 512;
/// The node is read this often.
const NODE_EVERY: Micros = Micros::secs(10);
/// `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: i128 = 0x0102_1994;

/// A place of a pod.
type Key = (PlaceKind, String);

#[derive(Default)]
struct Item {
    path: PathBuf,
    walk: Option<Walk>,
    due: Micros,
    found: Option<FsUse>,
    told: bool,
}

struct Pod {
    target: Target,
    listing_due: Micros,
    items: BTreeMap<Key, Box<Item>>,
}

pub(super) struct Disks<'a> {
    slow: &'a Slow,
    volumes: &'a Volumes,
    pods: BTreeMap<PodUid, Pod>,
    /// Whose turn it is: places with a pass under way or due.
    turns: VecDeque<(PodUid, Key)>,
    generation: u64,
    hurry: bool,
    stats: Option<Arc<DiskStats>>,
    /// What is published.
    parts: Parts<StorageReading>,
    /// Pods of which something else is to be told.
    changed: BTreeSet<PodUid>,
}

/// Walks and reads until told to stop.
pub(super) fn run(slow: &Slow, volumes: &Volumes, mut node: NodeDetailReader) -> Ended {
    let mut disks = Disks::new(slow, volumes);
    let (mut wait, mut node_due) = (Duration::ZERO, Micros::ZERO);
    loop {
        let (generation, hurry) = (disks.generation, disks.hurry);
        let orders = slow.wait(wait, false, |orders| orders.generation != generation || orders.hurry != hurry);
        if orders.stop {
            return Ended::Stopped;
        }
        let (began, now) = (thread_cpu(), Clock.now().mono);
        disks.aim(orders.generation, &orders.targets);
        disks.hurry(orders.hurry, now);
        if now >= node_due {
            slow.publish_node(node.read(slow.disk_stats().as_deref()));
            node_due = now + NODE_EVERY;
        }
        let due = disks.round(now, SLICE);
        let spent = thread_cpu().saturating_sub(began);
        slow.health().storage_us.fetch_add(spent.0, Ordering::Relaxed);
        let due = due.min(node_due);
        wait = Duration::from_micros((due - Clock.now().mono).0).max(PAUSE);
    }
}

impl<'a> Disks<'a> {
    pub(super) fn new(slow: &'a Slow, volumes: &'a Volumes) -> Self {
        Self {
            slow,
            volumes,
            pods: BTreeMap::new(),
            turns: VecDeque::new(),
            generation: 0,
            hurry: false,
            stats: None,
            parts: Parts::new(),
            changed: BTreeSet::new(),
        }
    }

    pub(super) fn aim(&mut self, generation: u64, targets: &[Target]) {
        if generation == self.generation {
            return;
        }
        self.generation = generation;
        let mut before = std::mem::take(&mut self.pods);
        for target in targets {
            let pod = match before.remove(&target.uid) {
                Some(pod) if pod.target == *target => pod,
                before => {
                    self.changed.insert(target.uid.clone());
                    let items = before.map(|pod| pod.items).unwrap_or_default();
                    Pod { target: target.clone(), listing_due: Micros::ZERO, items }
                }
            };
            self.pods.insert(target.uid.clone(), pod);
        }
    }

    /// From the moment at which disks are short everything is due.
    pub(super) fn hurry(&mut self, hurry: bool, now: Micros) {
        if std::mem::replace(&mut self.hurry, hurry) || !hurry {
            return;
        }
        for item in self.pods.values_mut().flat_map(|pod| pod.items.values_mut()) {
            // One whose turn it is already, is not due a second time.
            if item.due != Micros(u64::MAX) {
                item.due = item.due.min(now);
            }
        }
    }

    /// Does what is due, but walks for so long at most; when something is due next.
    pub(super) fn round(&mut self, now: Micros, slice: Duration) -> Micros {
        let stats = self.slow.disk_stats();
        if stats.as_ref().map(Arc::as_ptr) != self.stats.as_ref().map(Arc::as_ptr) {
            self.stats = stats;
            self.changed.extend(self.pods.keys().cloned());
        }
        for (uid, pod) in &mut self.pods {
            if pod.listing_due > now {
                continue;
            }
            pod.listing_due = next_due(uid, now, LIST_EVERY);
            if list(pod, self.volumes) {
                self.changed.insert(uid.clone());
            }
        }
        for (uid, pod) in &mut self.pods {
            for (key, item) in &mut pod.items {
                if item.due <= now {
                    // In the queue; due again when its pass has ended.
                    item.due = Micros(u64::MAX);
                    self.turns.push_back((uid.clone(), key.clone()));
                }
            }
        }
        self.walk(slice);
        self.publish();
        if !self.turns.is_empty() {
            return now;
        }
        let pods = self.pods.values();
        let due = pods.flat_map(|pod| pod.items.values().map(|item| item.due).chain([pod.listing_due])).min();
        due.map_or(now + EVERY, |due| due.max(now + ROUND))
    }

    fn walk(&mut self, slice: Duration) {
        let until = Instant::now() + slice;
        while Instant::now() < until {
            let Some((uid, key)) = self.turns.pop_front() else { break };
            // The pod or the place went meanwhile.
            let Some(item) = self.pods.get_mut(&uid).and_then(|pod| pod.items.get_mut(&key)) else { continue };
            if take_turn(item, until, self.slow) {
                let now = Clock.now();
                item.due = next_due(&uid, now.mono, if self.hurry { HURRY } else { EVERY });
                if let Some(found) = &mut item.found {
                    found.at = now.wall;
                }
                self.changed.insert(uid);
            } else {
                self.turns.push_back((uid, key));
            }
        }
    }

    fn publish(&mut self) {
        let before = self.parts.len();
        self.parts.retain(|uid, _| self.pods.contains_key(uid));
        if self.changed.is_empty() && self.parts.len() == before {
            return;
        }
        let mut capacities = BTreeMap::new();
        for uid in std::mem::take(&mut self.changed) {
            let Some(pod) = self.pods.get(&uid) else { continue };
            let of = |kind: PlaceKind| {
                let items = pod.items.iter().filter(move |((it, _), _)| *it == kind);
                items.filter_map(|((_, name), item)| Some((name.clone(), item.found?))).collect()
            };
            let rootfs = self.stats.as_ref().map(|stats| layers(&pod.target, stats, &mut capacities));
            let reading = StorageReading {
                rootfs: rootfs.unwrap_or_default(),
                logs: of(PlaceKind::Log),
                volumes: of(PlaceKind::Volume),
            };
            self.parts.insert(uid, Arc::new(reading));
        }
        self.slow.publish_storage(self.parts.clone());
    }
}

/// Finds new places and drops those that are gone; whether there are fewer.
fn list(pod: &mut Pod, volumes: &Volumes) -> bool {
    let places = volumes.places(&pod.target.uid, &pod.target.logs);
    let before = pod.items.len();
    pod.items.retain(|(kind, name), _| places.iter().any(|place| place.kind == *kind && place.name == *name));
    let fewer = pod.items.len() < before;
    for Place { kind, name, path } in places {
        pod.items.entry((kind, name)).or_default().path = path;
    }
    fewer
}

/// A turn of a place; whether its pass has ended.
fn take_turn(item: &mut Item, until: Instant, slow: &Slow) -> bool {
    if item.walk.is_none() {
        if let Some(found) = in_memory(&item.path) {
            item.found = Some(found);
            return true;
        }
        match Walk::of(&item.path) {
            Ok(walk) => item.walk = walk,
            Err(error) => debug!(path = %item.path.display(), %error, "a folder cannot be walked"),
        }
    }
    let Some(walk) = &mut item.walk else {
        item.found = None;
        return true;
    };
    let before = walk.entries;
    let step = walk.step(&mut Budget { entries: TURN, until });
    let health = slow.health();
    health.entries.fetch_add(walk.entries - before, Ordering::Relaxed);
    match step {
        Step::More => return false,
        Step::Gone => item.found = None,
        Step::Done(sum) => {
            if sum.skipped > 0 && !std::mem::replace(&mut item.told, true) {
                let (path, folders) = (item.path.display(), sum.skipped);
                warn!(%path, folders, "folders that cannot be read are not counted as used");
            }
            health.walks.fetch_add(1, Ordering::Relaxed);
            let used = FsUse { used: sum.used, inodes_used: Some(sum.inodes), ..FsUse::default() };
            item.found = Some(statvfs(&item.path).map_or(used, |vfs| with_capacity(used, &vfs)));
        }
    }
    item.walk = None;
    true
}

/// The use of a volume in memory; `None` if it is no mount of a tmpfs.
fn in_memory(path: &Path) -> Option<FsUse> {
    if i128::from(statfs(path).ok()?.f_type) != TMPFS {
        return None;
    }
    // A folder in a larger tmpfs is none.
    let device = |path: &Path| rustix::fs::stat(path).ok().map(|status| status.st_dev);
    if device(path) == device(path.parent()?) {
        return None;
    }
    statvfs(path).ok().map(|vfs| whole(&vfs))
}

/// A file system as a whole; when is for the caller to say.
pub(super) fn whole(vfs: &StatVfs) -> FsUse {
    let used = FsUse {
        used: Bytes(vfs.f_blocks.saturating_sub(vfs.f_bfree).saturating_mul(vfs.f_frsize)),
        inodes_used: Some(vfs.f_files.saturating_sub(vfs.f_ffree)),
        ..FsUse::default()
    };
    with_capacity(used, vfs)
}

fn with_capacity(used: FsUse, vfs: &StatVfs) -> FsUse {
    FsUse {
        capacity: Some(Bytes(vfs.f_blocks.saturating_mul(vfs.f_frsize))),
        available: Some(Bytes(vfs.f_bavail.saturating_mul(vfs.f_frsize))),
        inodes: Some(vfs.f_files),
        inodes_free: Some(vfs.f_ffree),
        ..used
    }
}

/// What the runtime says that something uses, with the size of the file system.
pub(super) fn by_runtime(used: &DiskUse) -> FsUse {
    let told = FsUse { at: used.at, used: used.used, inodes_used: used.inodes, ..FsUse::default() };
    statvfs(&used.mountpoint).map_or(told, |vfs| with_capacity(told, &vfs))
}

/// The writable layers of a pod's containers: of each the last run's.
fn layers(target: &Target, stats: &DiskStats, capacities: &mut BTreeMap<PathBuf, FsUse>) -> Vec<(String, FsUse)> {
    let mut last: BTreeMap<&str, (u32, &DiskUse)> = BTreeMap::new();
    for (id, name) in &target.containers {
        if let Some(layer) = stats.layers.get(id)
            && last.get(name.as_str()).is_none_or(|(attempt, _)| *attempt <= layer.attempt)
        {
            last.insert(name, (layer.attempt, &layer.used));
        }
    }
    let told = last.into_iter().map(|(name, (_, used))| {
        let fs = *capacities.entry(used.mountpoint.clone()).or_insert_with(|| by_runtime(used));
        (name.to_owned(), FsUse { at: used.at, used: used.used, inodes_used: used.inodes, ..fs })
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::runtime::LayerUse;

    struct Bed {
        dir: tempfile::TempDir,
        volumes: Volumes,
        slow: Slow,
    }

    impl Bed {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let volumes = Volumes::new(dir.path().join("root"), dir.path().join("logs"));
            Self { dir, volumes, slow: Slow::default() }
        }

        fn volume(&self, uid: &str, name: &str) -> PathBuf {
            let path = self.dir.path().join(format!("root/pods/{uid}/volumes/kubernetes.io~empty-dir/{name}"));
            fs::create_dir_all(&path).unwrap();
            path
        }

        fn target(&self, uid: &str) -> Target {
            fs::create_dir_all(self.dir.path().join(format!("logs/ns_{uid}_{uid}/app"))).unwrap();
            Target {
                uid: uid.into(),
                cgroup: String::new(),
                containers: vec![("old".to_owned(), "app".to_owned()), ("a-new".to_owned(), "app".to_owned())],
                host_network: false,
                logs: format!("ns_{uid}_{uid}"),
            }
        }
    }

    fn du(path: &Path) -> Bytes {
        let said = std::process::Command::new("du").args(["-sx", "-B1"]).arg(path).output().unwrap();
        Bytes(String::from_utf8(said.stdout).unwrap().split('\t').next().unwrap().parse().unwrap())
    }

    #[test]
    fn a15_6_a7_11b_logs_volumes_and_layers_are_told_with_the_file_systems_size() {
        let bed = Bed::new();
        let target = bed.target("u");
        let (log, volume) = (bed.dir.path().join("logs/ns_u_u/app"), bed.volume("u", "cache"));
        fs::write(log.join("0.log"), vec![1; 10_000]).unwrap();
        fs::write(log.join("0.log.20260101-000000.gz"), vec![1; 30_000]).unwrap();
        fs::write(volume.join("data"), vec![1; 70_000]).unwrap();
        let used = DiskUse { at: Micros(7), mountpoint: bed.dir.path().to_owned(), used: Bytes(5), inodes: Some(2) };
        let layer = |attempt, bytes| LayerUse { attempt, used: DiskUse { used: Bytes(bytes), ..used.clone() } };
        let layers = BTreeMap::from([("old".to_owned(), layer(0, 999)), ("a-new".to_owned(), layer(1, 5))]);
        bed.slow.publish_disk_stats(DiskStats { layers, ..DiskStats::default() });
        let mut disks = Disks::new(&bed.slow, &bed.volumes);
        disks.aim(1, &[target]);
        disks.round(Micros::secs(1), Duration::from_secs(5));
        let reading = bed.slow.storage()[&PodUid::from("u")].clone();
        let find = |list: &[(String, FsUse)], name: &str| list.iter().find(|(it, _)| it == name).unwrap().1;
        let (log_use, volume_use) = (find(&reading.logs, "app"), find(&reading.volumes, "cache"));
        assert_eq!((log_use.used, log_use.inodes_used), (du(&log), Some(3)));
        assert_eq!((volume_use.used, volume_use.inodes_used), (du(&volume), Some(2)));
        let rootfs = find(&reading.rootfs, "app");
        assert_eq!((rootfs.used, rootfs.at, rootfs.inodes_used), (Bytes(5), Micros(7), Some(2)));
        let size = statvfs(bed.dir.path()).unwrap();
        let size = Some(Bytes(size.f_blocks * size.f_frsize));
        assert_eq!([log_use.capacity, volume_use.capacity, rootfs.capacity], [size; 3]);
        assert!(volume_use.at > Micros::secs(1_500_000_000), "of the wall clock");

        // What goes is not told any more, and nothing is walked before it is due.
        let walks = bed.slow.health().walks.load(Ordering::Relaxed);
        disks.round(Micros::secs(2), Duration::from_secs(5));
        assert_eq!(bed.slow.health().walks.load(Ordering::Relaxed), walks);
        fs::remove_dir_all(&volume).unwrap();
        disks.round(Micros::secs(1) + LIST_EVERY + LIST_EVERY, Duration::from_secs(5));
        assert_eq!(bed.slow.storage()[&PodUid::from("u")].volumes, []);
        disks.aim(2, &[]);
        disks.round(Micros::secs(200), Duration::from_secs(5));
        assert!(bed.slow.storage().is_empty());
    }

    #[test]
    fn a_large_volume_starves_nobody_and_keeps_to_its_slices() {
        let bed = Bed::new();
        let large = bed.volume("large", "heap");
        for n in 0..6_000 {
            fs::write(large.join(format!("f{n}")), "x").unwrap();
        }
        bed.volume("small", "tiny");
        let targets = [bed.target("large"), bed.target("small")];
        let mut disks = Disks::new(&bed.slow, &bed.volumes);
        disks.aim(1, &targets);
        let tells = |uid: &str| !bed.slow.storage()[&PodUid::from(uid)].volumes.is_empty();
        let mut rounds = 0;
        let mut small_after = None;
        while !tells_all(&bed.slow, &["large", "small"]) {
            let began = Instant::now();
            disks.round(Micros::secs(1), Duration::from_micros(300));
            // Once the files are in the kernel's memory a slice is as long as it was told, but for 32 entries; the machine is shared.
            assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
            rounds += 1;
            if small_after.is_none() && tells("small") {
                small_after = Some((rounds, tells("large")));
            }
            assert!(rounds < 10_000);
        }
        assert!(matches!(small_after, Some((_, false))), "{small_after:?}");
        assert!(rounds > 5, "{rounds}");
        let volumes = &bed.slow.storage()[&PodUid::from("large")].volumes;
        assert_eq!(volumes[0].1.inodes_used, Some(6_001));
    }

    fn tells_all(slow: &Slow, uids: &[&str]) -> bool {
        uids.iter().all(|uid| slow.storage().get(&PodUid::from(*uid)).is_some_and(|it| !it.volumes.is_empty()))
    }

    #[test]
    fn a7_11b_a_volume_in_memory_is_not_walked() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: mounting needs root");
        }
        let bed = Bed::new();
        let volume = bed.volume("u", "memory");
        rustix::mount::mount("tmpfs", &volume, "tmpfs", rustix::mount::MountFlags::empty(), c"size=1048576").unwrap();
        fs::write(volume.join("data"), vec![1; 100_000]).unwrap();
        let mut disks = Disks::new(&bed.slow, &bed.volumes);
        disks.aim(1, &[Target { logs: String::new(), ..bed.target("u") }]);
        disks.round(Micros::secs(1), Duration::from_secs(5));
        let told = bed.slow.storage()[&PodUid::from("u")].volumes.clone();
        let free = rustix::mount::unmount(&volume, rustix::mount::UnmountFlags::empty());
        assert!(free.is_ok(), "nothing is held open");
        assert_eq!((told[0].1.used, told[0].1.capacity), (Bytes(102_400), Some(Bytes(1 << 20))));
        assert_eq!(bed.slow.health().walks.load(Ordering::Relaxed), 0);
    }
}
