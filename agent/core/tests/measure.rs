//! What the world makes of measurements: slowness, its own cost, counters that outlive containers.

use std::sync::Arc;

use beelet_core::World;
use beelet_core::event::{Action, ContainerFact, ContainerFactState, Event, Record, RuntimeFacts, SandboxFact};
use beelet_core::node::NodeConfig;
use beelet_core::sample::{
    CgroupReading, ContainerReading, CpuReading, KernelEvent, KernelEventKind, NodeReading, PodReading, Sample,
};
use beelet_core::snapshot::{Cause, ExitKind, Snapshot};
use beelet_core::telemetry::CgroupDetail;
use beelet_core::units::{Bytes, Micros, Now};

/// A node with one pod of a kubelet.
struct Node {
    world: World,
    second: u64,
    run: u32,
    throttled: Micros,
    exits: Vec<(ExitKind, u64)>,
    unreclaimable: Bytes,
    actions: Vec<Action>,
}

impl Node {
    fn new() -> Self {
        let world = World::new(NodeConfig { beside: true, ..NodeConfig::default() });
        let (throttled, unreclaimable) = (Micros::ZERO, Bytes::gib(1));
        let mut node =
            Self { world, second: 1_000, run: 0, throttled, exits: Vec::new(), unreclaimable, actions: Vec::new() };
        node.restart();
        node
    }

    fn now(&self) -> Now {
        Now { mono: Micros::secs(self.second), wall: Micros::secs(1_700_000_000 + self.second) }
    }

    fn send(&mut self, event: Event) {
        let now = self.now();
        self.actions.extend(self.world.step(event, now));
    }

    /// The container runs anew.
    fn restart(&mut self) {
        self.run += 1;
        let wall = self.now().wall;
        let sandbox = SandboxFact {
            id: "s".into(),
            uid: "u".into(),
            namespace: "default".into(),
            name: "web".into(),
            attempt: 0,
            ready: true,
            ip: "10.0.0.2".into(),
            created: wall,
            ours: false,
            cgroup_parent: String::new(),
            labels: std::collections::BTreeMap::new(),
            other_ips: Vec::new(),
            no_address: false,
            given: std::collections::BTreeMap::new(),
        };
        let container = ContainerFact {
            id: format!("c{}", self.run),
            sandbox_id: "s".into(),
            uid: "u".into(),
            name: "c".into(),
            attempt: self.run - 1,
            image: String::new(),
            image_id: String::new(),
            state: ContainerFactState::Running { started: wall },
            resources: None,
            grace: None,
            pid: None,
            pre_stop: None,
            user: None,
        };
        let facts = RuntimeFacts {
            asked: self.now().mono,
            sandboxes: vec![sandbox],
            containers: vec![container],
            ..RuntimeFacts::default()
        };
        self.send(Event::Runtime(facts));
    }

    /// A second with a full look.
    fn look(&mut self, throttled: u64) {
        self.second += 1;
        self.throttled += Micros::millis(throttled);
        let at = self.now().mono;
        let cpu = CpuReading {
            usage: Some(Micros::millis(200 * self.second)),
            throttled: Some(self.throttled),
            ..CpuReading::default()
        };
        let cgroup = |id| CgroupReading { id, at, cpu: Some(cpu), ..CgroupReading::default() };
        let mut pod = PodReading::of("u".into(), cgroup(7));
        let detail = CgroupDetail { at, exits: self.exits.clone(), ..CgroupDetail::default() };
        pod.containers.push(ContainerReading {
            name: "c".into(),
            id: format!("c{}", self.run),
            cgroup: cgroup(100 + u64::from(self.run)),
            detail: Some(Arc::new(detail)),
        });
        let node = NodeReading {
            cpu_at: Micros::ZERO,
            cpu_busy: Micros::millis(200 * self.second),
            cpu_idle: Micros::millis(1_800 * self.second),
            memory_total: Bytes::gib(4),
            memory_unreclaimable: self.unreclaimable,
            memory_counted: None,
            memory_working_set: self.unreclaimable,
        };
        self.send(Event::Sample(Sample { at, node, pods: Some(vec![pod]), ..Sample::default() }));
    }

    fn records(&self, reason: &str) -> Vec<&Record> {
        let of = |a: &'_ Action| matches!(a, Action::Record(r) if r.reason == reason);
        self.actions
            .iter()
            .filter(|a| of(a))
            .filter_map(|a| if let Action::Record(r) = a { Some(r) } else { None })
            .collect()
    }

    fn pace(&self) -> Option<(bool, u32)> {
        self.actions.iter().rev().find_map(|a| match a {
            Action::SampleEvery { all_pods, stretch, .. } => Some((*all_pods, *stretch)),
            _ => None,
        })
    }

    fn picture(&self) -> Snapshot {
        self.world.snapshot(self.now())
    }
}

#[test]
fn a_throttled_pod_is_shown_as_slow_and_told_of_once() {
    let mut node = Node::new();
    for _ in 0..40 {
        node.look(600);
    }
    let slow = &node.picture().pods[0].slow;
    assert_eq!(slow.iter().map(|s| s.cause.clone()).collect::<Vec<_>>(), [Cause::OwnCpuLimit]);
    assert_eq!(node.records("Slow").len(), 1);
    let record = node.records("Slow")[0];
    assert_eq!((record.name.as_str(), record.warning), ("default/web", true));
    assert!(record.evidence.iter().any(|(k, v)| k == "throttled" && v == "3000 ms in 5000 ms (60.0 %)"), "{record:?}");
    for _ in 0..40 {
        node.look(0);
    }
    assert!(node.picture().pods[0].slow.is_empty());
    assert_eq!((node.records("Slow").len(), node.records("SlowEnded").len()), (1, 1));
}

#[test]
fn an_agent_that_is_too_dear_looks_less_often_unless_memory_is_urgent() {
    let mut node = Node::new();
    let cost = |node: &mut Node, percent: u64, seconds: u64, total: &mut u64| {
        for _ in 0..seconds {
            node.look(0);
            *total += percent * 10;
            // Half of it is the programs'.
            let (cpu, bpf) = (Micros::millis(*total / 2), Some(Micros::millis(*total / 2)));
            node.send(Event::OwnCost { cpu, looking: cpu, bpf });
        }
    };
    let mut total = 0;
    cost(&mut node, 3, 20, &mut total);
    assert_eq!(node.pace(), Some((false, 1_000)), "the start is not held against it");
    cost(&mut node, 3, 60, &mut total);
    let (all_pods, stretch) = node.pace().unwrap();
    assert!(!all_pods && stretch > 3_000, "{stretch}");
    let own = node.picture().node.own_cost;
    assert_eq!((own.stretch, own.budget.get(), own.share.unwrap().get()), (stretch, 10_000, 30_000));
    assert_eq!(node.records("SlowedItself").len(), 1);
    // The wall is near: all looks are as close as they were.
    node.unreclaimable = Bytes::gib(4) - Bytes::mib(110);
    node.look(0);
    assert_eq!(node.pace().map(|(_, stretch)| stretch), Some(1_000));
    // Close looks cost what they cost, and that is no reason to look less often afterwards.
    cost(&mut node, 30, 60, &mut total);
    let own = node.picture().node.own_cost;
    assert!(own.stretch == stretch && own.share.unwrap().get() > 200_000, "{own:?}");
    node.unreclaimable = Bytes::gib(1);
    for _ in 0..5 {
        node.look(0);
    }
    assert_eq!(node.pace(), Some((false, stretch)));
    cost(&mut node, 0, 400, &mut total);
    assert_eq!(node.pace(), Some((false, 1_000)));
    assert_eq!((node.records("SlowedItself").len(), node.records("SlowedItselfEnded").len()), (1, 1));
}

#[test]
fn ends_of_processes_and_victims_by_name_outlive_their_containers() {
    let mut node = Node::new();
    node.exits = vec![(ExitKind::Code(0), 5), (ExitKind::Signal(9), 1)];
    node.look(0);
    node.look(0);
    node.exits[0].1 = 7;
    node.look(0);
    node.restart();
    node.exits = vec![(ExitKind::Code(0), 2)];
    node.look(0);
    let key = || ("default".to_owned(), "web".to_owned(), "c".to_owned());
    for comm in ["worker", "main", "worker"] {
        let kind = KernelEventKind::OomVictim { pid: 7, comm: comm.to_owned() };
        let at = node.now().mono;
        node.send(Event::Kernel(KernelEvent { at, uid: "u".into(), container: Some("c".into()), kind }));
    }
    // The pod goes; its counters stay for a scrape.
    let asked = node.now().mono;
    node.send(Event::Runtime(RuntimeFacts { asked, ..RuntimeFacts::default() }));
    let totals = node.picture().totals;
    assert!(node.picture().pods.is_empty());
    assert_eq!(totals.process_exits, [(key(), Some(ExitKind::Code(0)), 9), (key(), Some(ExitKind::Signal(9)), 1)]);
    assert_eq!(totals.oom_kills_by_process, [(key(), "main".to_owned(), 1), (key(), "worker".to_owned(), 2)]);
}
