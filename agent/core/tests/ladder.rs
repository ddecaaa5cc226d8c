//! What the world makes of the ladder's moves, and when it makes nothing of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::World;
use beelet_core::event::{
    Action, ContainerFact, ContainerFactState, Done, Event, Knob, Record, RuntimeFacts, SandboxFact,
};
use beelet_core::ladder::Rung;
use beelet_core::node::{Enforce, NodeConfig};
use beelet_core::sample::{
    CgroupReading, ContainerReading, MemoryReading, NodeReading, PodReading, PressureReading, Sample,
};
use beelet_core::spec::{ContainerSpec, PodSpec, Resources};
use beelet_core::units::{Bytes, Micros, Now};

/// A node of 4 GiB on which the pod `a` runs; its container may hold 200 MiB and asks for more when it needs it.
struct Node {
    world: World,
    /// Milliseconds.
    now: u64,
}

impl Node {
    fn new(config: NodeConfig, limit: Option<u64>) -> Self {
        let mut node = Self { world: World::new(config), now: 100_000 };
        let resources = Resources { memory_limit: limit.map(Bytes::mib), ..Resources::default() };
        let spec = PodSpec {
            name: "a".to_owned(),
            annotations: [("beelet.dev/raise".to_owned(), "true".to_owned())].into(),
            containers: vec![ContainerSpec { resources, ..ContainerSpec::unknown("main") }],
            ..PodSpec::unknown("a".into())
        };
        node.send(Event::Pods { pods: vec![Arc::new(spec)], rejected: Vec::new() });
        let sandbox = SandboxFact {
            id: "s".to_owned(),
            uid: "a".into(),
            namespace: "default".to_owned(),
            name: "a".to_owned(),
            attempt: 0,
            ready: true,
            ip: String::new(),
            created: Micros::secs(1),
            ours: true,
            cgroup_parent: String::new(),
            labels: BTreeMap::new(),
            other_ips: Vec::new(),
            no_address: false,
            given: BTreeMap::new(),
        };
        let container = ContainerFact {
            id: "c".to_owned(),
            sandbox_id: "s".to_owned(),
            uid: "a".into(),
            name: "main".to_owned(),
            attempt: 0,
            image: String::new(),
            image_id: String::new(),
            state: ContainerFactState::Running { started: Micros::secs(1) },
            resources: Some(resources),
            grace: None,
            pid: None,
            pre_stop: None,
            user: None,
        };
        let asked = node.at().mono;
        let facts =
            RuntimeFacts { asked, sandboxes: vec![sandbox], containers: vec![container], ..RuntimeFacts::default() };
        for action in node.send(Event::Runtime(facts)) {
            if let Action::Pod { uid, op, .. } = action {
                node.send(Event::Done { uid, op, result: Ok(Done::Ok) });
            }
        }
        node
    }

    fn at(&self) -> Now {
        Now { mono: Micros::millis(self.now), wall: Micros::secs(1_700_000_000) + Micros::millis(self.now) }
    }

    fn send(&mut self, event: Event) -> Vec<Action> {
        let now = self.at();
        self.world.step(event, now)
    }

    /// A look at which the pod holds so many MiB, taken `age` milliseconds ago; `stalled`: tasks of all pods have waited so long.
    fn look(&mut self, held: u64, limit: Option<u64>, age: u64, stalled: u64) -> Vec<Action> {
        let memory = |held| MemoryReading {
            usage: Bytes::mib(held),
            anon: Bytes::mib(held),
            limit: limit.map(Bytes::mib),
            ..MemoryReading::default()
        };
        let pressure = Some(PressureReading::memory_some(Micros::millis(stalled)));
        let of = |id, held| CgroupReading { id, memory: Some(memory(held)), pressure, ..CgroupReading::default() };
        let container =
            ContainerReading { name: "main".to_owned(), id: "c".to_owned(), cgroup: of(3, held), detail: None };
        let pod = PodReading { containers: vec![container], ..PodReading::of("a".into(), of(2, held)) };
        let node = NodeReading {
            memory_total: Bytes::gib(4),
            memory_unreclaimable: Bytes::mib(held + 500),
            memory_working_set: Bytes::mib(held + 500),
            ..NodeReading::default()
        };
        let unlimited = MemoryReading { limit: None, ..memory(held) };
        let kubepods = CgroupReading { memory: Some(unlimited), ..of(1, held) };
        let at = Micros::millis(self.now - age);
        self.send(Event::Sample(Sample {
            at,
            node,
            kubepods: Some(kubepods),
            pods: Some(vec![pod]),
            node_detail: None,
        }))
    }

    /// A leak of 20 MiB/s, looked at each 100 ms; all that was done.
    fn leak(&mut self, limit: Option<u64>, age: u64) -> Vec<Action> {
        let mut all = Vec::new();
        for n in 0..10 {
            self.now += 100;
            all.extend(self.look(140 + 2 * n, limit, age, 0));
        }
        all
    }
}

fn records<'a>(actions: &'a [Action], reason: &'a str) -> Vec<&'a Record> {
    let of = |action: &'a Action| match action {
        Action::Record(record) if record.reason == reason => Some(record),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

fn limits(actions: &[Action]) -> Vec<Option<Bytes>> {
    let of = |action: &Action| match action {
        Action::Knob(write) => match write.knob {
            Knob::MemoryMax(limit) => Some(limit),
            _ => None,
        },
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

#[test]
fn a_container_near_its_limit_is_looked_at_closely_and_raised() {
    let mut node = Node::new(NodeConfig::default(), Some(200));
    let actions = node.leak(Some(200), 0);
    // The pod's own and the container's.
    assert_eq!(limits(&actions), [Some(Bytes::mib(300)), Some(Bytes::mib(300))]);
    assert_eq!(records(&actions, "MemoryLimitRaised").len(), 1);
    // It has 60 MiB and less to go, at 20 MiB/s.
    let paces = actions.iter().filter_map(|action| match action {
        Action::SampleEvery { interval, all_pods, .. } => Some((*interval, *all_pods)),
        _ => None,
    });
    assert!(paces.into_iter().any(|(interval, all)| all && interval < Micros::secs(1)));
    let snapshot = node.world.snapshot(node.at());
    assert_eq!(snapshot.pods[0].rungs, [Rung::Raise]);
    assert!(snapshot.totals.rungs.contains(&((Rung::Raise, true), 1)), "{:?}", snapshot.totals.rungs);
}

#[test]
fn where_nothing_may_be_done_it_is_told_once_a_minute() {
    let config = NodeConfig { enforce: Enforce::Observe, ..NodeConfig::default() };
    let beside = NodeConfig { beside: true, ..NodeConfig::default() };
    for config in [config, beside] {
        let mut node = Node::new(config, Some(200));
        let actions = node.leak(Some(200), 0);
        assert!(limits(&actions).is_empty());
        assert_eq!(records(&actions, "WouldRaise").len(), 1);
    }
}

#[test]
fn old_looks_give_no_permission() {
    let mut node = Node::new(NodeConfig::default(), Some(200));
    let actions = node.leak(Some(200), 600);
    assert!(limits(&actions).is_empty());
}

/// Below the threshold in two looks, while tasks wait: that is a second sign, unless they wait because beelet slows them down.
#[test]
fn its_own_throttling_is_no_sign() {
    for throttled in [false, true] {
        let mut node = Node::new(NodeConfig::default(), None);
        // 600 MiB are left at 100 MiB/s.
        for n in 0..20 {
            node.now += 100;
            let held = if throttled { 2_900 + 10 * n.min(7) } else { 2_970 };
            node.look(held, None, 0, 0);
        }
        assert_eq!(!node.world.snapshot(node.at()).pods[0].rungs.is_empty(), throttled);
        let mut kills = 0;
        for n in 1..=2 {
            // A step, and then nothing.
            node.now += 20;
            let actions = node.look(3_540, None, 0, n * 15);
            kills += actions.iter().filter(|action| matches!(action, Action::Kill { .. })).count();
        }
        assert_eq!(kills, usize::from(!throttled), "throttled: {throttled}");
    }
}
