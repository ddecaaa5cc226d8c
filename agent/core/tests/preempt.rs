//! A critical pod on a node that is full.

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::World;
use beelet_core::event::{Action, Done, Event, OpId, Record, RuntimeFacts};
use beelet_core::node::NodeConfig;
use beelet_core::pod::PodState;
use beelet_core::snapshot::Phase;
use beelet_core::spec::{ContainerSpec, PodSpec, PodUid, Resources};
use beelet_core::units::{Bytes, Micros, Now};

/// A node of 4 GiB whose operations end when they are told to.
struct Node {
    world: World,
    now: Now,
    under_way: BTreeMap<PodUid, OpId>,
    records: Vec<Record>,
}

fn pod(uid: &str, mib: u64, priority: i32) -> Arc<PodSpec> {
    let resources = Resources { memory_request: Some(Bytes::mib(mib)), ..Resources::default() };
    Arc::new(PodSpec {
        name: uid.to_owned(),
        priority,
        termination_grace: Micros::secs(20),
        containers: vec![ContainerSpec { resources, ..ContainerSpec::unknown("main") }],
        ..PodSpec::unknown(uid.into())
    })
}

fn critical(uid: &str, mib: u64) -> Arc<PodSpec> {
    pod(uid, mib, 2_000_000_000)
}

impl Node {
    fn new(pods: &[Arc<PodSpec>]) -> Self {
        let now = Now { mono: Micros::secs(1_000), wall: Micros::secs(1_700_000_000) };
        let world = World::new(NodeConfig::default());
        let mut node = Self { world, now, under_way: BTreeMap::new(), records: Vec::new() };
        node.want(pods);
        node.relist();
        node
    }

    fn want(&mut self, pods: &[Arc<PodSpec>]) {
        self.send(Event::Pods { pods: pods.to_vec(), rejected: Vec::new() });
    }

    /// The runtime has nothing yet.
    fn relist(&mut self) {
        self.now.mono += Micros(10);
        self.send(Event::Runtime(RuntimeFacts { asked: self.now.mono, ..RuntimeFacts::default() }));
    }

    fn send(&mut self, event: Event) {
        self.now.mono += Micros(10);
        for action in self.world.step(event, self.now) {
            match action {
                Action::Pod { uid, op, .. } => _ = self.under_way.insert(uid, op),
                Action::Record(record) => self.records.push(record),
                _ => {}
            }
        }
    }

    /// All that is under way for a pod ends, and what follows from it.
    fn finish(&mut self, uid: &str) {
        while let Some(op) = self.under_way.remove(&uid.into()) {
            self.send(Event::Done { uid: uid.into(), op, result: Ok(Done::Ok) });
            self.relist();
        }
    }

    fn state(&self, uid: &str) -> &PodState {
        &self.world.pods().get(&uid.into()).unwrap_or_else(|| panic!("no pod {uid}")).state
    }

    fn is_going(&self, uid: &str) -> bool {
        matches!(self.state(uid), PodState::Terminating { .. } | PodState::Cleaning { .. } | PodState::Terminal(_))
    }

    fn told(&self, uid: &str) -> Vec<(&str, &str)> {
        let of = |record: &&Record| record.uid == Some(uid.into());
        self.records.iter().filter(of).map(|r| (r.reason.as_str(), r.message.as_str())).collect()
    }
}

#[test]
fn a4_17b_others_go_for_a_critical_pod_and_it_waits_until_they_are_gone() {
    let mut node = Node::new(&[pod("a", 3_000, 0), pod("b", 500, 0), critical("z", 1_000)]);
    assert!(node.is_going("a") && !node.is_going("b"), "the nearest to what is needed");
    assert_eq!(node.state("z"), &PodState::Observed);
    assert_eq!(node.told("a"), [("Preempting", "Preempted in order to admit critical pod")]);
    assert_eq!(node.told("z"), [("MakingRoom", "Short of memory: preempting default/a")]);
    let PodState::Terminating { deadline, .. } = node.state("a") else { panic!("{:?}", node.state("a")) };
    assert!(*deadline > node.now.mono + Micros::secs(19), "it has its own grace period");
    node.relist();
    assert_eq!((node.state("z"), node.told("a").len()), (&PodState::Observed, 1), "it is not told twice");
    node.finish("a");
    let PodState::Terminal(end) = node.state("a") else { panic!("{:?}", node.state("a")) };
    assert_eq!((end.phase, end.reason.as_str()), (Phase::Failed, "Preempting"));
    assert_eq!(end.message, "Preempted in order to admit critical pod");
    let said = "Pod was preempted by Kubelet to accommodate a critical pod.";
    assert_eq!(end.disruption.as_deref(), Some(said));
    assert_eq!(node.state("z"), &PodState::Preparing);
}

#[test]
fn a4_17b_nobody_else_gets_the_room_that_was_made() {
    let mut node = Node::new(&[pod("a", 3_000, 0), pod("b", 500, 0), critical("z", 1_000)]);
    // The next edition of the same pod waits for it, and is looked at before the critical one.
    let next = Arc::new(PodSpec { name: "a".to_owned(), ..PodSpec::clone(&pod("c", 3_000, 0)) });
    node.want(&[next, pod("b", 500, 0), critical("z", 1_000)]);
    node.finish("a");
    assert!(matches!(node.state("c"), PodState::Rejected { reason, .. } if reason == "OutOfmemory"));
    assert_eq!(node.state("z"), &PodState::Preparing);
}

#[test]
fn a4_17b_who_goes_already_is_waited_for() {
    let mut node = Node::new(&[pod("a", 3_000, 0), pod("b", 500, 0)]);
    node.want(&[pod("b", 500, 0), critical("z", 1_000)]);
    assert!(node.is_going("a") && !node.is_going("b"));
    assert_eq!((node.state("z"), node.told("z").len()), (&PodState::Observed, 0));
    node.finish("a");
    assert_eq!(node.state("z"), &PodState::Preparing);
}

#[test]
fn a4_17b_nobody_goes_where_it_would_not_help() {
    let node = Node::new(&[pod("a", 500, 0), critical("b", 3_000), critical("z", 1_500)]);
    assert!(!node.is_going("a") && !node.is_going("b"));
    let said = "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to \
                preempt: no set of running pods found to reclaim resources: [(res: memory, q: 528482304), ]";
    let rejected = PodState::Rejected { reason: "UnexpectedAdmissionError".to_owned(), message: said.to_owned() };
    assert_eq!(node.state("z"), &rejected);

    let mut elsewhere = PodSpec::clone(&critical("z", 1_000));
    elsewhere.placement.selector.insert("zone".to_owned(), "b".to_owned());
    let node = Node::new(&[pod("a", 3_500, 0), Arc::new(elsewhere)]);
    assert!(!node.is_going("a"));
    assert!(matches!(node.state("z"), PodState::Rejected { reason, .. } if reason == "NodeAffinity"));

    let node = Node::new(&[pod("a", 3_500, 0), pod("z", 1_000, 1_000)]);
    assert!(!node.is_going("a"), "only for critical pods");
    assert!(matches!(node.state("z"), PodState::Rejected { reason, .. } if reason == "OutOfmemory"));
}
