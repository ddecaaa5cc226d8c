use proptest::prelude::*;

use super::*;
use crate::evict::disk::rank::CandidateContainer;
use crate::node::NodeConfig;
use crate::spec::{ContainerSpec, PodSpec, StorageResources, Volume, VolumeKind};
use crate::telemetry::{FsUse, StorageReading};

const MIB: fn(u64) -> Bytes = Bytes::mib;

/// A pod that uses so many MiB in its layers and in its files, and as many inodes.
fn pod(name: &str, priority: i32, request: u64, layers: u64, files: u64) -> Candidate {
    let used = |mib: u64| Some(StorageUse { bytes: MIB(mib), inodes: mib });
    Candidate {
        uid: name.into(),
        name: format!("ns/{name}"),
        priority,
        critical: priority >= 2_000_000_000,
        terminating: false,
        grace: Micros::secs(30),
        request: MIB(request),
        layers: used(layers),
        files: used(files),
        ages: (Some(Micros::ZERO), Some(Micros::ZERO)),
        processes: Some(files),
        containers: vec![CandidateContainer {
            name: "main".to_owned(),
            request: MIB(request),
            used: MIB(layers + files),
        }],
    }
}

/// A file system of 1000 MiB and 100 000 inodes, with so many MiB and thousand inodes free.
fn room(mib: u64, inodes: u64) -> Option<FsRoom> {
    Some(FsRoom { available: MIB(mib), capacity: MIB(1_000), inodes_free: inodes * 1_000, inodes: 100_000 })
}

/// All on one file system with so much free.
fn one(secs: u64, mib: u64) -> Reading {
    let fs = room(mib, 90);
    let pids = Some(Pids { most: 1_000, running: 100 });
    Reading { at: Micros::secs(secs), layout: Some(Layout::One), node: fs, images: fs, containers: fs, pids }
}

/// nodefs.available<10% and nothing else.
fn only_node_fs() -> NodeConfig {
    only(&[(Signal::NodeFs, Threshold::Share(Ppm(100_000)))])
}

fn only(hard: &[(Signal, Threshold)]) -> NodeConfig {
    let eviction_disk = Thresholds { hard: hard.iter().copied().collect(), ..Thresholds::default() };
    NodeConfig { eviction_disk, ..NodeConfig::default() }
}

struct Bed {
    decider: Decider,
    pods: Vec<Candidate>,
}

impl Bed {
    fn new(config: &NodeConfig, pods: &[Candidate]) -> Self {
        Self { decider: Decider::new(config), pods: pods.to_vec() }
    }

    /// A reading at the moment it was made; what was decided, in short.
    fn look(&mut self, reading: Reading) -> String {
        self.look_at(reading, reading.at, false)
    }

    fn look_at(&mut self, reading: Reading, now: Micros, held: bool) -> String {
        match self.decider.step(&Pass { now, reading: &reading, pods: &self.pods, held }) {
            Decision::Nothing => "-".to_owned(),
            Decision::Reclaim(r) => format!("reclaim {} {} {}", r.signal, r.containers, r.images),
            Decision::Evict(e) => format!("{} for {}", e.victim, e.signal),
        }
    }

    fn tidied(&mut self, secs: u64) {
        self.decider.reclaimed(&Reclaimed { at: Micros::secs(secs), ..Reclaimed::default() });
    }

    fn has(&self, condition: Condition) -> bool {
        self.decider.standing().conditions.contains(&condition)
    }
}

#[test]
fn the_node_is_tidied_and_measured_before_a_pod_goes() {
    let mut bed = Bed::new(&only_node_fs(), &[pod("a", 0, 0, 10, 10), pod("b", 0, 0, 20, 20)]);
    assert_eq!(bed.look(one(1, 100)), "-", "available is the threshold, not below it");
    assert_eq!(bed.look(one(2, 99)), "reclaim nodefs.available true true");
    assert!(bed.has(Condition::DiskPressure));
    assert_eq!(bed.look(one(3, 50)), "-", "under way");
    bed.tidied(4);
    assert_eq!(bed.look(one(4, 50)), "-", "read before it ended");
    assert_eq!(bed.look(one(5, 50)), "b for nodefs.available");
    bed.pods[1].terminating = true;
    assert_eq!(bed.look(one(6, 50)), "-", "b is awaited");
    bed.pods.remove(1);
    assert_eq!(bed.look(one(7, 50)), "-", "to be measured without b");
    assert_eq!(bed.look(one(8, 50)), "reclaim nodefs.available true true", "what b left is tidied first");
    bed.tidied(9);
    assert_eq!(bed.look(one(10, 50)), "a for nodefs.available");
}

#[test]
fn what_the_node_frees_is_enough() {
    let mut bed = Bed::new(&only_node_fs(), &[pod("a", 0, 0, 10, 10)]);
    assert_eq!(bed.look(one(1, 99)), "reclaim nodefs.available true true");
    bed.tidied(2);
    assert_eq!(bed.look(one(3, 100)), "-");
    assert_eq!(bed.look(one(4, 99)), "-", "tidied a moment ago: neither again, nor a pod");
    assert_eq!(bed.look(one(13, 99)), "reclaim nodefs.available true true");
}

#[test]
fn all_pods_are_looked_at_anew_before_one_is_chosen() {
    let mut bed = Bed::new(&only_node_fs(), &[pod("quiet", 0, 0, 2, 0), pod("filler", 0, 0, 1, 0)]);
    bed.look(one(10, 50));
    bed.tidied(11);
    // Found out at 8 s, before the file system was short.
    bed.pods[1].ages.0 = Some(Micros::secs(4));
    assert_eq!(bed.look(one(12, 50)), "-");
    bed.pods[1] = Candidate { ages: (Some(Micros::secs(1)), Some(Micros::ZERO)), ..pod("filler", 0, 0, 800, 0) };
    assert_eq!(bed.look(one(13, 50)), "filler for nodefs.available");
    let mut bed = Bed::new(&only_node_fs(), &[pod("quiet", 0, 0, 2, 0), pod("filler", 0, 0, 1, 0)]);
    bed.pods[1].ages.1 = None;
    bed.look(one(10, 50));
    bed.tidied(11);
    assert_eq!(bed.look(one(39, 50)), "-");
    assert_eq!(
        bed.look(one(40, 50)),
        "quiet for nodefs.available",
        "one that cannot be looked at is not awaited for ever"
    );
}

#[test]
fn the_minimum_reclaim_stops_it() {
    let mut config = only_node_fs();
    config.eviction_disk.reclaim = [(Signal::NodeFs, Threshold::Share(Ppm(50_000)))].into();
    let mut bed = Bed::new(&config, &[pod("a", 0, 0, 10, 10)]);
    assert_eq!(bed.look(one(1, 149)), "-", "the minimum reclaim alone is no reason to begin");
    assert_eq!(bed.look(one(2, 99)), "reclaim nodefs.available true true");
    bed.tidied(3);
    assert_eq!(bed.look(one(4, 149)), "a for nodefs.available", "above the threshold, and not by 5 % more");
    let mut bed = Bed::new(&config, &[pod("a", 0, 0, 10, 10)]);
    assert_eq!(bed.look(one(2, 99)), "reclaim nodefs.available true true");
    bed.tidied(3);
    assert_eq!(bed.look(one(4, 150)), "-");
}

#[test]
fn a_reclaim_that_does_not_end_holds_up_nobody_for_ever() {
    let mut bed = Bed::new(&only_node_fs(), &[pod("a", 0, 0, 10, 10)]);
    assert_eq!(bed.look(one(1, 50)), "reclaim nodefs.available true true");
    assert_eq!(bed.look(one(120, 50)), "-");
    assert_eq!(bed.look(one(121, 50)), "-");
    assert_eq!(bed.look(one(122, 50)), "a for nodefs.available");
}

#[test]
fn nothing_is_done_without_a_reading_that_is_fresh_and_whole() {
    let config = NodeConfig::default();
    let mut bed = Bed::new(&config, &[pod("a", 0, 0, 10, 10)]);
    assert_eq!(bed.look_at(one(1, 0), Micros::secs(32), false), "-", "31 s old");
    assert_eq!(bed.decider.standing().missing.len(), 4);
    assert!(!bed.has(Condition::DiskPressure));
    let missing = |bed: &Bed| bed.decider.standing().missing.iter().map(|(signal, _)| *signal).collect::<Vec<_>>();
    bed.look(one(33, 900));
    for (secs, known) in [(34, true), (63, true), (64, false)] {
        assert_eq!(bed.look(Reading { at: Micros::secs(secs), ..Reading::default() }), "-");
        assert_eq!(missing(&bed).is_empty(), known, "half a minute later: {secs}");
    }
    assert_eq!(missing(&bed), [Signal::NodeFs, Signal::NodeFsInodes, Signal::ImageFs, Signal::ImageFsInodes]);
    let unknown = Reading { layout: None, images: None, containers: None, ..one(65, 0) };
    assert_eq!(bed.look(unknown), "-", "the runtime has not told yet where images are");
    assert!(bed.has(Condition::DiskPressure), "which is no reason to hide it");
    assert_eq!(bed.look(one(66, 0)), "reclaim nodefs.available true true");
    assert_eq!(bed.look(one(66, 0)), "-", "the same again");
    let no_inodes = Some(FsRoom { inodes: 0, inodes_free: 0, ..room(900, 0).unwrap() });
    bed.look(Reading { node: no_inodes, images: no_inodes, containers: no_inodes, ..one(67, 0) });
    assert_eq!(bed.decider.standing().missing, [], "a file system without a number of inodes lacks nothing");
}

#[test]
fn memory_comes_first() {
    let mut bed = Bed::new(&only_node_fs(), &[pod("a", 0, 0, 10, 10)]);
    assert_eq!(bed.look_at(one(1, 50), Micros::secs(1), true), "-");
    assert_eq!(bed.look(one(2, 50)), "reclaim nodefs.available true true");
    bed.tidied(3);
    assert_eq!(bed.look_at(one(4, 50), Micros::secs(4), true), "-");
    assert_eq!(bed.look(one(5, 50)), "a for nodefs.available");
}

#[test]
fn a_victim_that_does_not_go_is_awaited_for_thirty_seconds() {
    let mut bed = Bed::new(&only_node_fs(), &[pod("a", 0, 0, 10, 10), pod("b", 0, 0, 20, 20)]);
    bed.look(one(1, 50));
    bed.tidied(2);
    assert_eq!(bed.look(one(3, 50)), "b for nodefs.available");
    bed.pods[1].terminating = true;
    assert_eq!(bed.look(one(32, 50)), "-");
    assert_eq!(bed.look(one(33, 50)), "-");
    assert_eq!(bed.look(one(34, 50)), "reclaim nodefs.available true true");
}

#[test]
fn soft_thresholds_have_to_be_met_for_their_grace_period() {
    let mut config = only(&[]);
    let soft = Soft { threshold: Threshold::Share(Ppm(200_000)), grace: Micros::secs(60) };
    config.eviction_disk.soft = [(Signal::NodeFs, soft)].into();
    config.max_pod_grace = Micros::secs(10);
    let mut bed = Bed::new(&config, &[pod("a", 0, 0, 10, 10)]);
    for secs in 1..61 {
        assert_eq!(bed.look(one(secs, if secs == 30 { 200 } else { 199 })), "-", "{secs}");
        assert!(bed.has(Condition::DiskPressure), "from the first moment, and held after it");
    }
    for secs in 61..91 {
        assert_eq!(bed.look(one(secs, 199)), "-", "the break at 30 s began it anew: {secs}");
    }
    assert_eq!(bed.look(one(91, 199)), "reclaim nodefs.available true true");
    bed.tidied(92);
    let reading = one(93, 199);
    let pass = Pass { now: reading.at, reading: &reading, pods: &bed.pods, held: false };
    let Decision::Evict(eviction) = bed.decider.step(&pass) else { panic!("nobody goes") };
    assert_eq!(eviction.grace, Micros::secs(10), "the lesser of both times");
    assert!(eviction.evidence.contains(&("threshold_kind".to_owned(), "soft".to_owned())));
}

#[test]
fn process_ids_have_to_be_short_twice_and_nothing_is_tidied_for_them() {
    let mut bed = Bed::new(
        &only(&[(Signal::Pid, Threshold::Quantity(Bytes(50)))]),
        &[pod("low", -5, 0, 0, 10), pod("many", 0, 0, 0, 500), pod("more", -5, 0, 0, 20)],
    );
    let short = |secs, running| Reading { pids: Some(Pids { most: 1_000, running }), layout: None, ..one(secs, 900) };
    assert_eq!(bed.look(short(1, 950)), "-", "50 are free");
    assert_eq!(bed.look(short(2, 951)), "-");
    assert!(bed.has(Condition::PidPressure) && !bed.has(Condition::DiskPressure));
    assert_eq!(bed.look(short(3, 900)), "-");
    assert_eq!(bed.look(short(4, 1_200)), "-", "the first again, and never less than nothing");
    assert_eq!(bed.look(short(5, 999)), "more for pid.available", "priority, then processes");
}

#[test]
fn conditions_are_held_for_the_transition_period() {
    let config = NodeConfig { pressure_transition: Micros::secs(60), ..only_node_fs() };
    let mut bed = Bed::new(&config, &[]);
    bed.look(one(1, 99));
    for (secs, is) in [(2, true), (60, true), (61, false), (62, false)] {
        bed.look(one(secs, 500));
        assert_eq!(bed.has(Condition::DiskPressure), is, "{secs}");
    }
}

#[test]
fn looks_are_close_where_it_is_near() {
    let mut bed = Bed::new(&only_node_fs(), &[]);
    for (secs, mib, look) in [(1, 900, 10), (2, 200, 10), (3, 199, 1), (4, 50, 1)] {
        bed.look(one(secs, mib));
        assert_eq!(bed.decider.standing().look, Micros::secs(look), "{mib}");
    }
}

#[test]
fn what_is_tidied_and_who_is_ranked_follows_the_file_systems() {
    use Layout::{ImagesAndContainersApart as Apart, ImagesApart, One};
    use Signal::{ContainerFs, ImageFs, NodeFs, Pid};
    for (layout, signal, reclaim, parts) in [
        (One, NodeFs, (true, true), (true, true)),
        (One, ImageFs, (true, true), (true, true)),
        (One, Pid, (false, false), (false, false)),
        (Apart, NodeFs, (false, false), (false, true)),
        (Apart, ImageFs, (true, true), (true, false)),
        (Apart, ContainerFs, (true, true), (true, false)),
        (ImagesApart, NodeFs, (true, false), (true, true)),
        (ImagesApart, ContainerFs, (true, false), (true, true)),
        (ImagesApart, ImageFs, (false, true), (false, false)),
    ] {
        assert_eq!((layout.reclaim(signal), layout.parts(signal)), (reclaim, parts), "{layout:?} {signal}");
    }
    assert_eq!((Layout::of(1, 1, 1), Layout::of(1, 2, 2), Layout::of(1, 2, 1)), (One, Apart, ImagesApart));
    assert_eq!(Layout::of(1, 1, 2), ImagesApart, "as upstream");
}

#[test]
fn containerfs_has_the_thresholds_of_what_it_shares() {
    let thresholds =
        [(Signal::NodeFs, Threshold::Share(Ppm(100_000))), (Signal::ImageFs, Threshold::Share(Ppm(300_000)))];
    let apart = |layout, mib| Reading {
        layout: Some(layout),
        node: room(900, 90),
        images: room(900, 90),
        containers: room(mib, 90),
        ..one(1, 900)
    };
    let look = |layout, mib| Bed::new(&only(&thresholds), &[pod("a", 0, 0, 1, 1)]).look(apart(layout, mib));
    assert_eq!(look(Layout::ImagesApart, 99), "reclaim containerfs.available true false");
    assert_eq!(look(Layout::ImagesApart, 299), "-");
    assert_eq!(look(Layout::ImagesAndContainersApart, 299), "reclaim containerfs.available true true");
}

/// nodefs where images and layers lie elsewhere: nothing to tidy, so twice.
#[test]
fn without_anything_to_tidy_it_has_to_be_met_twice() {
    let mut bed = Bed::new(&only_node_fs(), &[pod("layers", 0, 0, 500, 1), pod("logs", 0, 0, 1, 2)]);
    let apart = |secs| Reading { layout: Some(Layout::ImagesAndContainersApart), ..one(secs, 50) };
    assert_eq!(bed.look(apart(1)), "-");
    assert_eq!(bed.look(apart(2)), "logs for nodefs.available");
}

#[test]
fn the_ranking_is_the_kubelets() {
    let order = |pods: &[Candidate], signal| {
        rank(pods, signal, Layout::One).iter().map(|(c, _)| c.uid.to_string()).collect::<Vec<_>>()
    };
    // Over its request, then priority, then above its request.
    let pods = [
        pod("within", -10, 100, 50, 50),
        pod("over-high", 5, 0, 300, 300),
        pod("over-little", 0, 90, 50, 50),
        pod("over-much", 0, 10, 50, 50),
        pod("critical", 2_000_000_000, 0, 900, 900),
        pod("nothing", 0, 0, 0, 0),
        Candidate { terminating: true, ..pod("going", 0, 0, 900, 900) },
        Candidate { layers: None, files: None, ..pod("unknown", 0, 0, 900, 900) },
    ];
    assert_eq!(order(&pods, Signal::NodeFs), ["over-much", "over-little", "over-high", "within"]);
    // Of inodes nobody has a request.
    assert_eq!(order(&pods, Signal::NodeFsInodes), ["within", "over-little", "over-much", "over-high"]);
    let mut reversed = pods.clone();
    reversed.reverse();
    assert_eq!(order(&reversed, Signal::NodeFs), order(&pods, Signal::NodeFs));
}

#[test]
fn the_messages_are_the_kubelets() {
    let victim = pod("a", 0, 10, 20, 5);
    let said = message(Signal::NodeFs, "100Mi", MIB(50).get(), &victim);
    assert_eq!(
        said,
        "The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi, available: 50Mi. \
         Container main was using 25Mi, request is 10Mi, has larger consumption of ephemeral-storage. "
    );
    assert_eq!(
        message(Signal::ImageFsInodes, "3276", 12_000, &victim),
        "The node was low on resource: inodes. Threshold quantity: 3276, available: 12k. "
    );
    assert_eq!(
        message(Signal::Pid, "1k", 999, &victim),
        "The node was low on resource: pids. Threshold quantity: 1k, available: 999. "
    );
    let within = pod("a", 0, 25, 20, 5);
    assert!(!message(Signal::NodeFs, "100Mi", 0, &within).contains("Container"));
    let mut bed = Bed::new(&only(&[(Signal::NodeFs, Threshold::Quantity(MIB(99)))]), &[pod("a", 0, 0, 1, 1)]);
    bed.look(one(1, 50));
    bed.tidied(2);
    let reading = one(3, 50);
    let pass = Pass { now: reading.at, reading: &reading, pods: &bed.pods, held: false };
    let Decision::Evict(eviction) = bed.decider.step(&pass) else { panic!("nobody goes") };
    assert!(eviction.message.contains("Threshold quantity: 99Mi, available: 50Mi. "), "{}", eviction.message);
    for name in ["signal", "capacity", "available", "threshold", "met_for", "node_level_reclaim", "rank_1"] {
        assert!(eviction.evidence.iter().any(|(n, _)| n == name), "{name}");
    }
}

// === what pods may use ===

fn used(mib: u64) -> FsUse {
    FsUse { at: Micros::secs(100), used: MIB(mib), inodes_used: Some(mib), ..FsUse::default() }
}

/// Container `main` with a limit, container `free` without, a volume on disk with a limit and one in memory.
fn limited(container: u64, volume: u64) -> PodSpec {
    let storage = StorageResources { request: Some(MIB(1)), limit: Some(MIB(container)) };
    let volumes = [("cache", false, Some(MIB(volume))), ("shm", true, None)];
    PodSpec {
        name: "p".to_owned(),
        containers: vec![ContainerSpec { storage, ..ContainerSpec::unknown("main") }, ContainerSpec::unknown("free")],
        volumes: volumes
            .map(|(name, memory, size_limit)| Volume {
                name: name.to_owned(),
                kind: VolumeKind::EmptyDir { memory, size_limit },
            })
            .into(),
        ..PodSpec::unknown("u".into())
    }
}

fn storage(layer: u64, logs: u64, cache: u64, shm: u64) -> StorageReading {
    let named = |name: &str, mib: u64| (name.to_owned(), used(mib));
    StorageReading {
        rootfs: vec![named("main", layer)],
        logs: vec![named("main", logs)],
        volumes: vec![named("cache", cache), named("shm", shm)],
    }
}

#[test]
fn a7_2d_a15_6_own_limits_are_judged_as_the_kubelet_does() {
    let times = (Micros::secs(50), Micros::secs(110));
    let over = |pod: &PodSpec, storage: &StorageReading, layout| over_limit(pod, storage, layout, times);
    let one = Some(Layout::One);
    let said = |pod: &PodSpec, storage: &StorageReading, layout| over(pod, storage, layout).map(|o| o.message);
    let pod = limited(10, 20);
    assert_eq!(said(&pod, &storage(5, 5, 0, 99), one), None, "at the limit; what is in memory is not on disk");
    assert_eq!(said(&limited(100, 20), &storage(0, 0, 20, 0), one), None);
    assert_eq!(
        said(&limited(100, 20), &storage(0, 0, 21, 0), one).as_deref(),
        Some("Usage of EmptyDir volume \"cache\" exceeds the limit \"20Mi\". ")
    );
    assert_eq!(
        said(&pod, &storage(3, 3, 5, 0), one).as_deref(),
        Some("Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ")
    );
    // A second container's limit makes the pod's sum larger than one container's own.
    let mut two = limited(10, 20);
    two.containers[1].storage.limit = Some(MIB(100));
    let exceeded = "Container main exceeded its local ephemeral storage limit \"10Mi\". ";
    assert_eq!(said(&two, &storage(6, 6, 0, 0), one).as_deref(), Some(exceeded));
    assert_eq!(said(&two, &storage(6, 6, 0, 0), Some(Layout::ImagesAndContainersApart)), None, "its logs alone count");
    assert_eq!(said(&two, &storage(6, 6, 0, 0), None), None);
    assert_eq!(said(&two, &storage(0, 11, 0, 0), None).as_deref(), Some(exceeded));
    let none = PodSpec { volumes: Vec::new(), containers: vec![ContainerSpec::unknown("main")], ..pod.clone() };
    assert_eq!(said(&none, &storage(900, 900, 0, 0), one), None, "no limit");
    let signals: Vec<_> =
        [(&limited(100, 20), storage(0, 0, 21, 0)), (&pod, storage(9, 9, 0, 0)), (&two, storage(6, 6, 0, 0))]
            .iter()
            .map(|(pod, storage)| over(pod, storage, one).map(|o| o.limit.as_str()))
            .collect();
    assert_eq!(signals, [Some("emptydirfs.limit"), Some("ephemeralpodfs.limit"), Some("ephemeralcontainerfs.limit")]);
}

#[test]
fn what_was_found_out_too_long_ago_or_of_another_life_counts_as_nothing() {
    let (pod, much) = (limited(10, 20), storage(900, 900, 900, 0));
    for (since, now, over) in [(100, 400, true), (100, 401, false), (101, 110, false)] {
        let found = over_limit(&pod, &much, Some(Layout::One), (Micros::secs(since), Micros::secs(now)));
        assert_eq!(found.is_some(), over, "{since} {now}");
        let candidate = Candidate::new(&pod, Some(&much), None, false, (Micros::secs(since), Micros::secs(now)));
        assert_eq!(candidate.used(Signal::NodeFs, Layout::One).is_some(), over, "{since} {now}");
    }
}

#[test]
fn a_candidate_counts_its_layers_logs_and_volumes_on_disk() {
    let pod = limited(10, 20);
    let times = (Micros::secs(50), Micros::secs(110));
    let it = Candidate::new(&pod, Some(&storage(1, 2, 4, 8)), Some(3), false, times);
    assert_eq!(it.used(Signal::NodeFs, Layout::One), Some(MIB(7).get()));
    assert_eq!(it.used(Signal::NodeFs, Layout::ImagesAndContainersApart), Some(MIB(6).get()));
    assert_eq!(it.used(Signal::ImageFs, Layout::ImagesAndContainersApart), Some(MIB(1).get()));
    assert_eq!(it.used(Signal::ImageFs, Layout::ImagesApart), None);
    assert_eq!(it.used(Signal::NodeFsInodes, Layout::One), Some(7));
    assert_eq!(it.used(Signal::Pid, Layout::One), Some(3));
    assert_eq!((it.request, it.containers.len(), it.containers[0].used), (MIB(1), 1, MIB(3)));
}

// === properties ===

#[derive(Clone, Debug)]
enum Turn {
    /// So many seconds later, with so much of nodefs, imagefs and process ids free, in percent.
    Look(u64, u64, u64, u64),
    Tidied,
    Gone,
    Missing,
}

fn turn() -> impl Strategy<Value = Turn> {
    let percent = 0_u64..40;
    prop_oneof![
        8 => (1_u64..12, percent.clone(), percent.clone(), percent).prop_map(|(s, a, b, c)| Turn::Look(s, a, b, c)),
        3 => Just(Turn::Tidied),
        2 => Just(Turn::Gone),
        1 => Just(Turn::Missing),
    ]
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::One), Just(Layout::ImagesAndContainersApart), Just(Layout::ImagesApart)]
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(turns in proptest::collection::vec(turn(), 1..120), layout in layout(), minimum in 0_u64..10) {
        let mut config = NodeConfig { pressure_transition: Micros::secs(30), ..NodeConfig::default() };
        config.eviction_disk.hard.insert(Signal::Pid, Threshold::Share(Ppm(100_000)));
        let reclaim = Threshold::Share(Ppm(minimum * 10_000));
        config.eviction_disk.reclaim = Signal::ALL.map(|signal| (signal, reclaim)).into();
        let mut pods: Vec<Candidate> = (0..6).map(|i| pod(&format!("p{i}"), i % 3, 5, 3 * i as u64, 20 - i as u64)).collect();
        pods.push(pod("critical", 2_000_000_000, 0, 900, 900));
        let (mut decider, mut now) = (Decider::new(&config), Micros::secs(1));
        // When the node was tidied last since the last eviction, who is on its way, and when the condition rose.
        let (mut asked, mut tidied, mut going, mut rose) = (false, None::<Micros>, None::<PodUidOf>, None::<Micros>);
        let mut had = false;
        for turn in turns {
            match turn {
                Turn::Tidied if asked => {
                    now += Micros::secs(1);
                    decider.reclaimed(&Reclaimed { at: now, ..Reclaimed::default() });
                    (asked, tidied) = (false, Some(now));
                }
                Turn::Gone => if let Some((uid, _)) = going.take() { pods.retain(|p| p.uid.as_str() != uid); },
                Turn::Tidied => {}
                Turn::Missing => {
                    now += Micros::secs(1);
                    let reading = Reading { at: now, ..Reading::default() };
                    let decision = decider.step(&Pass { now, reading: &reading, pods: &pods, held: false });
                    prop_assert_eq!(decision, Decision::Nothing);
                }
                Turn::Look(after, node, images, pids) => {
                    now += Micros::secs(after);
                    let containers = if layout == Layout::ImagesAndContainersApart { images } else { node };
                    let images = if layout == Layout::One { node } else { images };
                    let reading = Reading {
                        at: now,
                        layout: Some(layout),
                        node: room(node * 10, node),
                        images: room(images * 10, images),
                        containers: room(containers * 10, containers),
                        pids: Some(Pids { most: 1_000, running: 1_000 - pids * 10 }),
                    };
                    let pass = Pass { now, reading: &reading, pods: &pods, held: false };
                    let decision = decider.step(&pass);
                    match &decision {
                        Decision::Evict(eviction) => {
                            let (uid, signal) = (eviction.victim.to_string(), eviction.signal);
                            prop_assert_ne!(uid.as_str(), "critical");
                            let victim = pods.iter().find(|p| p.uid == eviction.victim);
                            prop_assert!(victim.is_some_and(|p| !p.terminating), "one that goes already");
                            prop_assert!(!eviction.evidence.is_empty());
                            prop_assert!(going.as_ref().is_none_or(|(_, at)| now - *at >= Micros::secs(30)), "two at once");
                            if layout.reclaim(signal) != (false, false) {
                                // At most the reclaim's own time limit may stand for its end.
                                let tried = tidied.is_some_and(|at| at < now)
                                    || matches!(eviction.evidence.iter().find(|(n, _)| n == "node_level_reclaim"), Some((_, v)) if v.contains("did not end"));
                                prop_assert!(tried, "nobody goes before the node was tidied");
                            }
                            let room = reading.room(signal).unwrap();
                            let share = config.eviction_disk.hard[&Thresholds::source(signal, layout)].quantity(Bytes(room.capacity));
                            let enough = share + reclaim.quantity(Bytes(room.capacity));
                            prop_assert!(room.available < enough.get(), "the minimum reclaim is available");
                            if let Some(p) = pods.iter_mut().find(|p| p.uid.as_str() == uid) { p.terminating = true; }
                            (going, tidied, asked) = (Some((uid, now)), None, false);
                        }
                        Decision::Reclaim(reclaim) => {
                            prop_assert_eq!((reclaim.containers, reclaim.images), layout.reclaim(reclaim.signal));
                            (asked, tidied) = (true, None);
                        }
                        Decision::Nothing => {}
                    }
                }
            }
            let has = decider.standing().conditions.contains(&Condition::DiskPressure);
            if has && !had {
                prop_assert!(rose.is_none_or(|at| now - at >= Micros::secs(30)), "two rises in a hold window");
                rose = Some(now);
            }
            had = has;
        }
    }
}

/// A pod's UID and when it was told to go.
type PodUidOf = (String, Micros);
