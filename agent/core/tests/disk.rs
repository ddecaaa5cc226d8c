//! What the world makes of readings of the node's disks.

use std::sync::Arc;

use beelet_core::World;
use beelet_core::event::{Action, ContainerFact, ContainerFactState, Event, Exit, Record, RuntimeFacts, SandboxFact};
use beelet_core::evict::disk::{FsRoom, Layout, Reading, Reclaimed};
use beelet_core::node::{Enforce, NodeConfig};
use beelet_core::sample::{CgroupReading, PodReading, Sample};
use beelet_core::spec::{ContainerSpec, PodSpec, RestartPolicy, Volume, VolumeKind};
use beelet_core::telemetry::{FsUse, PodDetail, StorageReading};
use beelet_core::units::{Bytes, Micros, Now};

/// A node with the kubelet's thresholds and the pods `small` and `large`, which run, and of which `large` has a dead run.
struct Node {
    world: World,
    second: u64,
    told: Vec<Action>,
}

fn spec(name: &str) -> PodSpec {
    let kind = VolumeKind::EmptyDir { memory: false, size_limit: Some(Bytes::mib(500)) };
    let containers = if name == "critical" { &["side", "main"][..] } else { &["main"] };
    PodSpec {
        name: name.to_owned(),
        containers: containers.iter().map(|name| ContainerSpec::unknown(name)).collect(),
        restart_policy: if name == "critical" { RestartPolicy::Never } else { RestartPolicy::Always },
        volumes: vec![Volume { name: "data".to_owned(), kind }],
        priority: if name == "critical" { 2_000_000_000 } else { 0 },
        ..PodSpec::unknown(name.into())
    }
}

fn run(pod: &str, attempt: u32, state: ContainerFactState) -> ContainerFact {
    ContainerFact {
        id: format!("{pod}-{attempt}"),
        sandbox_id: pod.to_owned(),
        uid: pod.into(),
        name: "main".to_owned(),
        attempt,
        image: String::new(),
        image_id: String::new(),
        state,
        resources: None,
        grace: None,
        pid: None,
        pre_stop: None,
        user: None,
    }
}

impl Node {
    fn new(config: NodeConfig) -> Self {
        let mut node = Self { world: World::new(config), second: 100, told: Vec::new() };
        let names = ["small", "large", "critical"];
        let pods = names.map(|name| Arc::new(spec(name))).into();
        node.send(Event::Pods { pods, rejected: Vec::new() });
        let sandbox = |name: &str| SandboxFact {
            id: name.to_owned(),
            uid: name.into(),
            namespace: "default".to_owned(),
            name: name.to_owned(),
            attempt: 0,
            ready: true,
            ip: "10.0.0.2".to_owned(),
            created: Micros::secs(1),
            ours: true,
            cgroup_parent: String::new(),
            labels: std::collections::BTreeMap::new(),
            other_ips: Vec::new(),
            no_address: false,
            given: std::collections::BTreeMap::new(),
        };
        let dead = Exit {
            started: Micros::secs(1),
            finished: Micros::secs(2),
            code: 1,
            reason: "Error".to_owned(),
            message: String::new(),
        };
        let running = || ContainerFactState::Running { started: Micros::secs(3) };
        let mut containers = names.map(|name| run(name, 1, running())).to_vec();
        containers.push(run("large", 0, ContainerFactState::Exited(dead.clone())));
        // Its last run stays: it is what its state is told from.
        containers[2].state = ContainerFactState::Exited(dead);
        containers.push(ContainerFact {
            id: "side".to_owned(),
            name: "side".to_owned(),
            ..run("critical", 1, running())
        });
        let asked = node.now().mono;
        let facts = RuntimeFacts { asked, sandboxes: names.map(sandbox).into(), containers, ..RuntimeFacts::default() };
        node.send(Event::Runtime(facts));
        // What is prepared for adopted pods has been done.
        for action in std::mem::take(&mut node.told) {
            if let Action::Pod { uid, op, .. } = action {
                node.send(Event::Done { uid, op, result: Ok(beelet_core::event::Done::Ok) });
            }
        }
        node.told.clear();
        node
    }

    fn now(&self) -> Now {
        Now { mono: Micros::secs(self.second), wall: Micros::secs(1_700_000_000 + self.second) }
    }

    fn send(&mut self, event: Event) {
        let now = self.now();
        self.told.extend(self.world.step(event, now));
    }

    /// A second later the pods use so many MiB.
    fn use_disk(&mut self, used: &[(&str, u64)]) {
        self.second += 1;
        let now = self.now();
        let pods = used.iter().map(|(name, mib)| {
            let part = FsUse { at: now.wall, used: Bytes::mib(*mib), inodes_used: Some(1), ..FsUse::default() };
            let storage = StorageReading {
                rootfs: vec![("main".to_owned(), FsUse { used: Bytes::ZERO, ..part })],
                logs: vec![("main".to_owned(), FsUse { used: Bytes::ZERO, ..part })],
                volumes: vec![("data".to_owned(), part)],
            };
            let detail = PodDetail { at: now.mono, storage: Some(storage), ..PodDetail::default() };
            let cgroup = CgroupReading { at: now.mono, ..CgroupReading::default() };
            PodReading { detail: Some(Arc::new(detail)), ..PodReading::of((*name).into(), cgroup) }
        });
        let sample = Sample { at: now.mono, pods: Some(pods.collect()), ..Sample::default() };
        self.send(Event::Sample(sample));
    }

    /// So many of 1000 MiB are free.
    fn disks(&mut self, free: u64, reclaimed: Option<Reclaimed>) -> Vec<Action> {
        self.second += 1;
        let fs =
            Some(FsRoom { available: Bytes::mib(free), capacity: Bytes::mib(1_000), inodes_free: 900, inodes: 1_000 });
        let layout = Some(Layout::One);
        let at = self.now().mono;
        self.told.clear();
        let reading = Reading { at, layout, node: fs, images: fs, containers: fs, pids: None };
        self.send(Event::Disks { reading, reclaimed });
        self.told.clone()
    }

    fn evictions(&self, signal: &str) -> u64 {
        let totals = self.world.snapshot(self.now()).totals;
        totals.evictions.iter().find(|(name, _)| name == signal).map_or(u64::MAX, |(_, count)| *count)
    }
}

fn records(actions: &[Action]) -> Vec<(&str, &str, &Record)> {
    let records = actions.iter().filter_map(|action| if let Action::Record(r) = action { Some(r) } else { None });
    records.map(|r| (r.reason.as_str(), r.name.as_str(), r)).collect()
}

fn reasons(actions: &[Action]) -> Vec<String> {
    records(actions).iter().map(|(reason, name, _)| format!("{reason} {name}")).collect()
}

#[test]
fn the_node_is_tidied_then_the_largest_goes() {
    let mut node = Node::new(NodeConfig::default());
    node.use_disk(&[("small", 10), ("large", 100), ("critical", 400)]);
    node.disks(900, None);
    let actions = node.disks(99, None);
    assert_eq!(reasons(&actions), ["EvictionThresholdMet node", "NodeHasDiskPressure node"]);
    let reclaim = actions.iter().find_map(|action| match action {
        Action::Reclaim { containers, sandboxes, images } => Some((containers.clone(), sandboxes.len(), *images)),
        _ => None,
    });
    assert_eq!(reclaim, Some((vec!["large-0".to_owned()], 0, true)), "the run that is dead, and no other");
    assert!(actions.contains(&Action::LookAtDisks { interval: Micros::secs(1) }));
    assert!(node.world.snapshot(node.now()).node.disk_pressure);
    node.use_disk(&[("small", 10), ("large", 100), ("critical", 400)]);
    let done = Reclaimed { at: node.now().mono, images: 2, freed: Bytes::mib(3), ..Reclaimed::default() };
    let actions = node.disks(99, Some(done));
    assert_eq!(reasons(&actions), ["FreedDiskSpace node", "Evicted default/large", "Killing default/large"]);
    let (.., evicted) = records(&actions)[1];
    assert!(evicted.message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 100Mi,"));
    let said = |name: &str| evicted.evidence.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!(said("node_level_reclaim"), Some("removed 0 dead containers and 2 unused images (3Mi)"));
    assert_eq!(said("rank_2"), Some("default/small: uses 10Mi, asks for 0, priority 0"), "and critical in no place");
    assert!(!actions.iter().any(|a| matches!(a, Action::Kill { .. })), "it is given its second");
    assert_eq!((node.evictions("nodefs.available"), node.evictions("pid.available")), (1, 0));
}

#[test]
fn who_only_observes_tells_what_would_have_been_done() {
    let mut node = Node::new(NodeConfig { enforce: Enforce::Observe, ..NodeConfig::default() });
    node.use_disk(&[("small", 600), ("large", 100)]);
    let actions = node.disks(99, None);
    let names = ["WouldEvict default/small", "WouldReclaim node", "NodeHasDiskPressure node"];
    assert_eq!(reasons(&actions), names);
    node.use_disk(&[("small", 100), ("large", 200)]);
    let actions = node.disks(99, None);
    assert_eq!(reasons(&actions), ["WouldEvict default/large"]);
    node.use_disk(&[("small", 600), ("large", 600)]);
    assert_eq!(reasons(&node.disks(99, None)), [""; 0], "at most once a minute");
    assert_eq!(node.evictions("nodefs.available"), 0);
    assert!(!node.told.iter().any(|a| matches!(a, Action::Reclaim { .. } | Action::Pod { .. })));
}

#[test]
fn a7_2d_over_their_own_limits_all_go_but_the_critical() {
    let mut node = Node::new(NodeConfig::default());
    node.use_disk(&[("small", 501), ("large", 501), ("critical", 501)]);
    let told = ["Evicted default/large", "Evicted default/small", "Killing default/large", "Killing default/small"];
    assert_eq!(reasons(&node.disks(900, None)), told);
    assert_eq!((node.evictions("emptydirfs.limit"), node.evictions("nodefs.available")), (2, 0));
    node.use_disk(&[("small", 501), ("large", 501), ("critical", 501)]);
    assert_eq!(reasons(&node.disks(900, None)), [""; 0], "they go already");

    let mut node = Node::new(NodeConfig { storage_limits: false, ..NodeConfig::default() });
    node.use_disk(&[("small", 501), ("large", 501), ("critical", 501)]);
    assert_eq!(reasons(&node.disks(900, None)), [""; 0]);
}

#[test]
fn what_is_missing_is_told_once_and_when_it_is_back() {
    let mut node = Node::new(NodeConfig::default());
    node.use_disk(&[("small", 10), ("large", 10)]);
    let nothing = |node: &mut Node, after: u64| {
        node.second += after;
        node.told.clear();
        node.send(Event::Disks { reading: Reading { at: node.now().mono, ..Reading::default() }, reclaimed: None });
        reasons(&node.told)
    };
    assert_eq!(nothing(&mut node, 1), [""; 0]);
    assert_eq!(nothing(&mut node, 30), ["EvictionSignalMissing node"; 4]);
    assert_eq!(nothing(&mut node, 30), [""; 0], "once");
    assert_eq!(reasons(&node.disks(900, None)), ["EvictionSignalFound node"; 4]);
}
