//! The life of a pod, step by step, against a runtime that does what it is told at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use beelet_core::World;
use beelet_core::event::{
    Action, ContainerFact, ContainerFactState, Done, Event, Exit, OpError, OpId, PodOp, RuntimeFacts, SandboxFact,
};
use beelet_core::node::NodeConfig;
use beelet_core::probe::Answer;
use beelet_core::restart::{ContainerRestart, RestartRule};
use beelet_core::security::{GroupsPolicy, NodeSecurity, Profile, RuntimeFeatures, SeLinux};
use beelet_core::snapshot::{ContainerState, Phase, PodView};
use beelet_core::spec::{ContainerSpec, PodSpec, PodUid, ProbeKind, PullPolicy, RestartPolicy};
use beelet_core::units::{Bytes, Micros, MilliCpu, Now};

#[path = "life/admission.rs"]
mod admission;
#[path = "life/ends.rs"]
mod ends;
#[path = "life/images.rs"]
mod images;
#[path = "life/probes.rs"]
mod probes;
#[path = "life/restart.rs"]
mod restart;
#[path = "life/sidecars.rs"]
mod sidecars;
#[path = "life/status.rs"]
mod status;
#[path = "life/stops.rs"]
mod stops;
#[path = "life/written.rs"]
mod written;

/// A node whose runtime obeys at once.
struct Node {
    world: World,
    now: Now,
    facts: RuntimeFacts,
    next_id: u32,
    wake: Option<Micros>,
    /// All operations so far, by name.
    done: Vec<String>,
    /// Answers for operations that are to fail, by name, in order.
    fail: BTreeMap<&'static str, VecDeque<OpError>>,
    /// All actions so far.
    actions: Vec<Action>,
    /// What probes answer that do not succeed, by container.
    answers: BTreeMap<(String, ProbeKind), Answer>,
    /// How often containers were run before, as the logs of a pod tell when it is prepared.
    counted: Vec<(String, u32)>,
    /// So many sandboxes come up without an address.
    no_address: u32,
    /// How a container ends that is stopped.
    stop_code: i32,
    /// Operations of this name are begun and not ended; these are.
    hold: Option<&'static str>,
    held: Vec<(PodUid, OpId)>,
}

impl Node {
    fn new(config: NodeConfig) -> Self {
        let start = Now { mono: Micros::secs(1_000), wall: Micros::secs(1_700_000_000) };
        Self {
            world: World::new(config),
            now: start,
            facts: RuntimeFacts::default(),
            next_id: 0,
            wake: None,
            done: Vec::new(),
            fail: BTreeMap::new(),
            actions: Vec::new(),
            answers: BTreeMap::new(),
            counted: Vec::new(),
            no_address: 0,
            stop_code: 143,
            hold: None,
            held: Vec::new(),
        }
    }

    fn send(&mut self, event: Event) {
        let mut inbox = VecDeque::from([event]);
        while let Some(event) = inbox.pop_front() {
            // Time goes on, so that facts can be older than operations.
            self.pass(Micros(10));
            for action in self.world.step(event, self.now) {
                self.actions.push(action.clone());
                match action {
                    Action::Pod { uid, op, what } if self.hold == Some(what.name()) => self.held.push((uid, op)),
                    Action::Pod { uid, op, what } => {
                        self.done.push(what.name().to_owned());
                        let failure = self.fail.get_mut(what.name()).and_then(VecDeque::pop_front);
                        let result = failure.map_or_else(|| Ok(self.obey(&what)), Err);
                        inbox.push_back(Event::Done { uid, op, result });
                    }
                    Action::Relist => inbox.push_back(Event::Runtime(RuntimeFacts::default())),
                    Action::WakeAt(at) => self.wake = Some(at),
                    Action::Probe { uid, container, run, kind, .. } => {
                        let answer = self.answers.get(&(container.clone(), kind)).cloned().unwrap_or(Answer::Success);
                        inbox.push_back(Event::Probe { uid, container, run, kind, answer, took: Micros(10) });
                    }
                    _ => {}
                }
            }
            if let Some(Event::Runtime(facts)) = inbox.front_mut() {
                self.pass(Micros(10));
                *facts = RuntimeFacts { asked: self.now.mono, ..self.facts.clone() };
            }
        }
    }

    fn pass(&mut self, time: Micros) {
        self.now.mono += time;
        self.now.wall += time;
    }

    /// Let time pass, with a tick whenever one was asked for.
    fn run(&mut self, time: Micros) {
        let end = self.now.mono + time;
        while let Some(at) = self.wake.take_if(|at| *at <= end) {
            self.pass(at - self.now.mono);
            self.send(Event::Tick);
        }
        self.pass(end - self.now.mono);
    }

    fn relist(&mut self) {
        self.send(Event::Runtime(RuntimeFacts { asked: self.now.mono, ..self.facts.clone() }));
    }

    fn want(&mut self, pods: &[&PodSpec]) {
        let pods = pods.iter().map(|p| Arc::new(PodSpec::clone(p))).collect();
        self.send(Event::Pods { pods, rejected: Vec::new() });
    }

    fn id(&mut self) -> String {
        self.next_id += 1;
        format!("{:064}", self.next_id)
    }

    fn obey(&mut self, op: &PodOp) -> Done {
        match op {
            PodOp::StartSandbox { spec, given, attempt, cgroup } => {
                let no_address = self.no_address > 0;
                self.no_address = self.no_address.saturating_sub(1);
                let fact = SandboxFact {
                    id: self.id(),
                    uid: spec.uid.clone(),
                    namespace: spec.namespace.clone(),
                    name: spec.name.clone(),
                    attempt: *attempt,
                    ready: true,
                    ip: if no_address { String::new() } else { "10.0.0.1".to_owned() },
                    created: self.now.wall,
                    ours: true,
                    cgroup_parent: cgroup.clone(),
                    labels: BTreeMap::new(),
                    other_ips: Vec::new(),
                    no_address,
                    given: given.clone(),
                };
                self.facts.sandboxes.push(fact.clone());
                Done::Sandbox(fact)
            }
            PodOp::StartContainer { spec, container, attempt, sandbox_id, linux, .. } => {
                let id = self.id();
                self.facts.containers.retain(|c| !(c.name == *container && c.attempt == *attempt && c.uid == spec.uid));
                self.facts.containers.push(ContainerFact {
                    id: id.clone(),
                    sandbox_id: sandbox_id.clone(),
                    uid: spec.uid.clone(),
                    name: container.clone(),
                    attempt: *attempt,
                    image: String::new(),
                    image_id: String::new(),
                    state: ContainerFactState::Running { started: self.now.wall },
                    resources: Some(linux.resources),
                    grace: Some(spec.termination_grace),
                    pre_stop: spec.container(container).and_then(|c| c.lifecycle.pre_stop.as_deref().cloned()),
                    pid: None,
                    user: None,
                });
                Done::Container { id, started: self.now.wall }
            }
            PodOp::EnsureImage { .. } => Done::Image { pulled: None },
            PodOp::StopContainers { stops, .. } => {
                for stop in stops.iter().filter(|stop| stop.signal) {
                    self.end_id(&stop.id, self.stop_code);
                }
                Done::Ok
            }
            PodOp::RemoveContainers { ids } => {
                self.facts.containers.retain(|c| !ids.contains(&c.id));
                Done::Ok
            }
            PodOp::RemoveSandboxes { ids } => {
                self.facts.containers.retain(|c| !ids.contains(&c.sandbox_id));
                self.facts.sandboxes.retain(|s| !ids.contains(&s.id));
                Done::Ok
            }
            PodOp::Prepare { .. } => Done::Prepared { runs: self.counted.clone() },
            PodOp::PostStart { .. } | PodOp::Cleanup { .. } | PodOp::Resize { .. } => Done::Ok,
        }
    }

    fn end_id(&mut self, id: &str, code: i32) {
        let finished = self.now.wall;
        for c in self.facts.containers.iter_mut().filter(|c| c.id == id) {
            if let ContainerFactState::Running { started } = c.state {
                let reason = if code == 0 { "Completed" } else { "Error" }.to_owned();
                c.state = ContainerFactState::Exited(Exit { started, finished, code, reason, message: String::new() });
            }
        }
    }

    /// The running container of that name ends by itself.
    fn end(&mut self, name: &str, code: i32) {
        let running = |c: &&ContainerFact| c.name == name && matches!(c.state, ContainerFactState::Running { .. });
        let id = self.facts.containers.iter().find(running).map(|c| c.id.clone()).expect("it runs");
        self.end_id(&id, code);
        self.relist();
    }

    fn view(&self, name: &str) -> Arc<PodView> {
        let snapshot = self.world.snapshot(self.now);
        snapshot.pods.iter().find(|p| p.spec.name == name).cloned().unwrap_or_else(|| panic!("no pod {name}"))
    }

    fn names(&self) -> Vec<String> {
        self.world.snapshot(self.now).pods.iter().map(|p| p.spec.name.clone()).collect()
    }
}

fn pod(name: &str) -> PodSpec {
    let mut pod = PodSpec::unknown(format!("uid-{name}").as_str().into());
    pod.name = name.to_owned();
    let mut container = ContainerSpec::unknown("main");
    container.image = "image".to_owned();
    pod.containers = vec![container];
    pod
}

fn ready_node() -> Node {
    let mut node = Node::new(NodeConfig::default());
    node.relist();
    node
}

#[test]
fn a4_7g_a4_11a_a_pod_is_prepared_started_and_removed_in_order() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    assert_eq!(node.done, ["prepare", "start_sandbox", "ensure_image", "start_container"]);
    let view = node.view("a");
    assert_eq!((view.phase, view.status_word().as_str(), view.ip.as_str()), (Phase::Running, "Running", "10.0.0.1"));
    node.done.clear();
    node.want(&[]);
    assert_eq!(node.done, ["stop_containers", "remove_sandboxes", "cleanup"]);
    assert_eq!(node.names(), Vec::<String>::new());
    assert_eq!(node.facts, RuntimeFacts::default());
}

#[test]
fn a3_5b_nothing_is_done_before_wishes_and_facts_are_known() {
    let mut node = Node::new(NodeConfig::default());
    node.want(&[&pod("a")]);
    assert_eq!(node.done, Vec::<String>::new());
    node.relist();
    assert_eq!(node.view("a").phase, Phase::Running);
}

#[test]
fn a_restarted_agent_adopts_what_runs_and_touches_nothing() {
    let mut before = ready_node();
    let mut with_two = pod("a");
    with_two.containers.push(ContainerSpec { name: "second".to_owned(), ..with_two.containers[0].clone() });
    before.want(&[&with_two, &pod("b")]);
    before.run(Micros::secs(5));
    let mut after = Node::new(NodeConfig::default());
    after.facts = before.facts.clone();
    after.now = before.now;
    after.want(&[&with_two, &pod("b")]);
    after.relist();
    after.run(Micros::secs(60));
    assert_eq!(after.done, ["prepare", "prepare"], "only what is idempotent");
    assert_eq!(after.facts, before.facts);
    assert_eq!(after.view("a").restarts(), 0);
}

#[test]
fn a4_8f_a4_3b_a_crash_loop_backs_off_as_the_kubelet_does() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let mut starts = Vec::new();
    for _ in 0..5 {
        node.run(Micros::secs(1));
        let ended = node.now.mono;
        node.end("main", 3);
        if !matches!(node.view("a").containers[0].state, ContainerState::Running { .. }) {
            let view = node.view("a");
            assert_eq!(view.status_word(), "CrashLoopBackOff");
            assert_eq!(view.phase, Phase::Running);
            node.run(Micros::secs(400));
        }
        let ContainerState::Running { started } = node.view("a").containers[0].state else { panic!("it runs again") };
        let started = started.0 - node.now.wall.0.min(started.0).min(started.0);
        let _ = (ended, started);
        starts.push(node.view("a").containers[0].restarts);
    }
    assert_eq!(starts, [1, 2, 3, 4, 5]);
    let waits: Vec<u64> = node
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::WakeAt(at) => Some(at.0 / 1_000_000),
            _ => None,
        })
        .collect();
    assert_eq!(waits.len(), 4, "the first restart is at once: {waits:?}");
    let last = node.view("a").containers[0].last.clone().expect("it ended before");
    assert_eq!((last.code, last.reason.as_str()), (3, "Error"));
}

#[test]
fn a3_5c_a_changed_manifest_replaces_the_pod_after_the_old_one_is_gone() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    node.done.clear();
    let mut changed = pod("a");
    changed.uid = "another".into();
    node.want(&[&changed]);
    let start = node.done.iter().position(|o| o == "start_sandbox").expect("the new one starts");
    let clean = node.done.iter().position(|o| o == "cleanup").expect("the old one goes");
    assert!(clean < start, "{:?}", node.done);
    assert_eq!(node.names(), ["a"]);
    assert_eq!(node.view("a").spec.uid.as_str(), "another");
    assert_eq!(node.facts.sandboxes.len(), 1);
}

#[test]
fn changed_resources_are_applied_in_place() {
    let mut node = ready_node();
    let mut first = pod("a");
    first.containers[0].resources.cpu_request = Some(MilliCpu(100));
    first.containers[0].resources.memory_request = Some(Bytes::mib(10));
    node.want(&[&first]);
    let before = node.facts.containers[0].id.clone();
    node.done.clear();
    let mut more = first.clone();
    more.containers[0].resources.cpu_request = Some(MilliCpu(200));
    node.want(&[&more]);
    assert_eq!(node.done, ["resize"]);
    assert_eq!(node.facts.containers[0].id, before);
    node.want(&[&more]);
    assert_eq!(node.done, ["resize"], "once");
    // More than the node has: refused by name, and the pod runs on.
    more.containers[0].resources.cpu_request = Some(MilliCpu(200_000));
    node.want(&[&more]);
    assert_eq!(node.done, ["resize"]);
    assert!(node.view("a").resize.starts_with("Infeasible: "), "{}", node.view("a").resize);
    assert_eq!(node.view("a").phase, Phase::Running);
}

#[test]
fn a4_1a_a4_1b_a4_8a_a_pod_that_may_not_restart_ends_and_stays_ended_over_a_restart_of_the_agent() {
    let mut node = ready_node();
    let mut once = pod("a");
    once.restart_policy = RestartPolicy::Never;
    node.want(&[&once]);
    node.end("main", 7);
    let view = node.view("a");
    assert_eq!((view.phase, view.status_word().as_str()), (Phase::Failed, "Error"));
    assert_eq!(node.facts, RuntimeFacts::default(), "nothing of it is left in the runtime");
    let remembered: Vec<_> = node
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::Remember(end) => Some(end.clone()),
            _ => None,
        })
        .collect();
    let mut after = Node::new(NodeConfig::default());
    after.send(Event::Remembered(remembered));
    after.want(&[&once]);
    after.relist();
    assert_eq!(after.done, Vec::<String>::new());
    let view = after.view("a");
    assert_eq!((view.phase, view.status_word().as_str()), (Phase::Failed, "Error"));
    after.want(&[]);
    assert!(after.actions.contains(&Action::Forget(once.uid.clone())));
    assert_eq!(after.names(), Vec::<String>::new());
}

#[test]
fn a4_3c_a4_9_an_image_that_is_not_there_is_named_and_retried() {
    let mut node = ready_node();
    let error = OpError { reason: "ErrImagePull".to_owned(), message: "no such image".to_owned() };
    node.fail.insert("ensure_image", VecDeque::from([error.clone(), error]));
    node.want(&[&pod("a"), &pod("b")]);
    assert_eq!(node.view("a").status_word(), "ErrImagePull");
    node.run(Micros::secs(11));
    assert_eq!(node.done.iter().filter(|o| *o == "start_container").count(), 2, "both run in the end: {:?}", node.done);
    assert_eq!(node.view("a").status_word(), "Running");
}

#[test]
fn a4_5a_a4_3a_init_containers_run_one_after_the_other_before_the_rest() {
    let mut node = ready_node();
    let mut spec = pod("a");
    let init = |name: &str| ContainerSpec { name: name.to_owned(), ..spec.containers[0].clone() };
    spec.init_containers = vec![init("first"), init("second")];
    node.want(&[&spec]);
    assert_eq!(node.view("a").status_word(), "PodInitializing");
    node.end("first", 0);
    node.end("second", 0);
    assert_eq!(node.view("a").phase, Phase::Running);
    assert_eq!(node.facts.containers.len(), 3);
}

#[test]
fn a4_12e_a_dead_sandbox_is_replaced_and_never_two_live() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    node.facts.sandboxes[0].ready = false;
    node.relist();
    assert_eq!(node.facts.sandboxes.len(), 1);
    assert!(node.facts.sandboxes[0].ready);
    assert_eq!(node.view("a").restarts(), 1);
}

#[test]
fn a4_12a_what_nobody_wants_is_removed_only_if_it_is_ours() {
    let mut before = ready_node();
    before.want(&[&pod("a"), &pod("b")]);
    let mut after = Node::new(NodeConfig::default());
    after.facts = before.facts.clone();
    after.facts.sandboxes[1].ours = false;
    after.want(&[]);
    after.relist();
    after.relist();
    assert_eq!(after.facts.sandboxes.len(), 1);
    assert!(!after.facts.sandboxes[0].ours);
}

#[test]
fn a4_16a_a_pod_that_does_not_fit_is_rejected_with_the_kubelets_words() {
    let mut node = ready_node();
    let mut big = pod("a");
    big.containers[0].resources.memory_request = Some(Bytes::gib(64));
    node.want(&[&big, &pod("b")]);
    let view = node.view("a");
    assert_eq!((view.phase, view.reason.as_str()), (Phase::Failed, "OutOfmemory"));
    assert!(
        view.message.starts_with("Pod was rejected: Node didn't have enough resource: memory, requested: "),
        "{}",
        view.message
    );
    assert_eq!(node.view("b").phase, Phase::Running);
}

#[test]
fn beside_a_kubelet_everything_is_seen_and_nothing_is_done() {
    let mut kubelet = ready_node();
    kubelet.want(&[&pod("a")]);
    let mut node = Node::new(NodeConfig { beside: true, ..NodeConfig::default() });
    node.facts = kubelet.facts.clone();
    node.facts.sandboxes[0].ours = false;
    node.relist();
    let view = node.view("a");
    assert!(view.foreign);
    assert_eq!(view.phase, Phase::Running);
    node.end("main", 1);
    node.facts = RuntimeFacts::default();
    node.relist();
    assert_eq!(node.names(), Vec::<String>::new());
    assert_eq!(node.done, Vec::<String>::new());
    let acts = |a: &&Action| !matches!(a, Action::Record(_) | Action::SampleEvery { .. } | Action::WakeAt(_));
    assert_eq!(node.actions.iter().find(acts), None);
}

#[test]
fn a_manifest_that_comes_back_while_its_pod_goes_gives_the_pod_back() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let busy = OpError { reason: "FailedKillPod".to_owned(), message: "busy".to_owned() };
    node.fail.insert("stop_containers", VecDeque::from([busy]));
    node.want(&[]);
    assert_eq!(node.view("a").status_word(), "Terminating");
    node.want(&[&pod("a")]);
    node.run(Micros::secs(60));
    let view = node.view("a");
    assert_eq!((view.status_word().as_str(), view.restarts()), ("Running", 0));
    assert_eq!(node.facts.sandboxes.len(), 1);
}

#[test]
fn a4_12b_what_an_agent_that_was_killed_left_behind_is_cleaned_away_once_and_no_wanted_pod_with_it() {
    let mut node = Node::new(NodeConfig::default());
    node.want(&[&pod("a")]);
    let leftovers = vec![
        ("uid-a".into(), "kubepods/besteffort/poduid-a".to_owned()),
        ("uid-old".into(), "kubepods/burstable/poduid-old".to_owned()),
        ("uid-folder".into(), String::new()),
    ];
    node.send(Event::Runtime(RuntimeFacts { asked: node.now.mono, leftovers, ..RuntimeFacts::default() }));
    let cleaned: Vec<_> = node
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::Pod { what: PodOp::Cleanup { cgroup, .. }, .. } => Some(cgroup.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(cleaned, ["kubepods/besteffort/poduid-folder", "kubepods/burstable/poduid-old"]);
    assert_eq!(node.names(), ["a"]);
}

#[test]
fn a_resize_that_would_change_the_class_moves_no_cgroup() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let mut burstable = pod("a");
    burstable.containers[0].resources.cpu_request = Some(MilliCpu(100));
    node.want(&[&burstable]);
    let view = node.view("a");
    assert!(view.resize.starts_with("Infeasible: "), "{}", view.resize);
    assert_eq!(view.cgroup, "kubepods/besteffort/poduid-a");
}

#[test]
fn a4_1c_a4_4c_an_evicted_pod_is_written_down_before_it_is_tidied_away() {
    let mut node = ready_node();
    let mut once = pod("a");
    once.restart_policy = RestartPolicy::Never;
    node.want(&[&once]);
    // The agent is killed in the middle of tidying: the containers are ended, the sandbox is still there.
    let busy = OpError { reason: "FailedKillPod".to_owned(), message: "busy".to_owned() };
    node.fail.insert("remove_sandboxes", VecDeque::from([busy]));
    node.end("main", 7);
    let notes: Vec<_> = node
        .actions
        .iter()
        .filter_map(|a| match a {
            Action::Remember(end) => Some(end.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(notes.len(), 1);
    assert_eq!(node.facts.sandboxes.len(), 1);
    let mut after = Node::new(NodeConfig::default());
    after.facts = node.facts.clone();
    after.send(Event::Remembered(notes));
    after.want(&[&once]);
    after.relist();
    assert!(!after.done.iter().any(|o| o == "start_container" || o == "start_sandbox"), "{:?}", after.done);
    assert_eq!(after.facts, RuntimeFacts::default(), "the rest of it is tidied away");
    assert_eq!(after.view("a").phase, Phase::Failed);
}

#[test]
fn a_sandbox_of_somebody_else_with_the_same_uid_is_left_alone() {
    let mut other = ready_node();
    other.want(&[&pod("a")]);
    let mut node = Node::new(NodeConfig::default());
    node.facts = other.facts.clone();
    node.facts.sandboxes[0].ours = false;
    node.facts.sandboxes[0].cgroup_parent = "/system.slice".to_owned();
    node.next_id = 100;
    node.want(&[&pod("a")]);
    node.relist();
    assert_eq!(node.view("a").cgroup, "kubepods/besteffort/poduid-a");
    node.want(&[]);
    assert_eq!(node.facts.sandboxes.len(), 1, "only our own is removed");
    assert!(!node.facts.sandboxes[0].ours);
}

#[test]
fn a4_16n_a_rejected_pod_is_looked_at_again_when_its_resources_change() {
    let mut node = ready_node();
    let mut big = pod("a");
    big.containers[0].resources.memory_request = Some(Bytes::gib(64));
    node.want(&[&big]);
    assert_eq!(node.view("a").reason, "OutOfmemory");
    big.containers[0].resources.memory_request = Some(Bytes::mib(64));
    node.want(&[&big]);
    assert_eq!(node.view("a").phase, Phase::Running);
}

#[test]
fn a_pod_that_ended_runs_anew_when_its_resources_change() {
    let mut node = ready_node();
    let mut once = pod("a");
    once.restart_policy = RestartPolicy::Never;
    node.want(&[&once]);
    node.end("main", 7);
    assert_eq!(node.view("a").phase, Phase::Failed);
    once.containers[0].resources.memory_limit = Some(Bytes::mib(64));
    node.want(&[&once]);
    assert_eq!(node.view("a").phase, Phase::Running);
    assert!(node.actions.contains(&Action::Forget(once.uid.clone())));
}

#[test]
fn a_uid_given_by_hand_does_not_hide_another_pod() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let mut changed = pod("a");
    changed.containers[0].image = "other".to_owned();
    node.want(&[&changed]);
    assert_eq!(node.done.iter().filter(|o| *o == "start_sandbox").count(), 2, "{:?}", node.done);
    assert_eq!(node.view("a").spec.containers[0].image, "other");
}

#[test]
fn a4_7c_a_runtime_that_cannot_stop_a_pod_does_not_keep_it_alive() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let hung = OpError { reason: "FailedKillPod".to_owned(), message: "timeout".to_owned() };
    node.fail.insert("stop_containers", std::iter::repeat_n(hung, 20).collect());
    node.want(&[]);
    node.run(Micros::secs(29));
    let kills = |node: &Node| node.actions.iter().filter(|a| matches!(a, Action::Kill { .. })).count();
    assert_eq!(kills(&node), 0, "within its grace");
    node.run(Micros::secs(60));
    assert!(kills(&node) > 0);
}

#[test]
fn a6_8_a_pull_under_way_is_given_up_when_the_pod_goes() {
    let mut world = World::new(NodeConfig::default());
    let now = Now { mono: Micros::secs(10), wall: Micros::secs(10) };
    world.step(Event::Runtime(RuntimeFacts { asked: now.mono, ..RuntimeFacts::default() }), now);
    world.step(Event::Pods { pods: vec![Arc::new(pod("a"))], rejected: Vec::new() }, now);
    let mut out = world.step(Event::Runtime(RuntimeFacts { asked: now.mono, ..RuntimeFacts::default() }), now);
    let mut node = ready_node();
    // Until the image is asked for.
    while let Some(Action::Pod { uid, op, what }) = out.iter().find(|a| matches!(a, Action::Pod { .. })).cloned() {
        if what.name() == "ensure_image" {
            break;
        }
        let done = node.obey(&what);
        out = world.step(Event::Done { uid, op, result: Ok(done) }, now);
    }
    let out = world.step(Event::Pods { pods: Vec::new(), rejected: Vec::new() }, now);
    assert!(out.contains(&Action::Cancel { uid: "uid-a".into() }), "{out:?}");
}

#[test]
fn a6_1b_each_container_has_its_image_by_its_own_policy() {
    let mut node = ready_node();
    let mut spec = pod("web");
    let first = spec.containers[0].clone();
    let with = |name: &str, pull| ContainerSpec { name: name.to_owned(), pull, ..first.clone() };
    spec.containers = vec![
        with("present", PullPolicy::IfNotPresent),
        with("always", PullPolicy::Always),
        with("never", PullPolicy::Never),
        with("again", PullPolicy::Always),
    ];
    node.want(&[&spec]);
    let asked: Vec<PullPolicy> = node
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Pod { what: PodOp::EnsureImage { pull, .. }, .. } => Some(*pull),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [PullPolicy::IfNotPresent, PullPolicy::Always], "what is there serves all but Always");

    // What fails for one policy is not held against another.
    let mut node = ready_node();
    let error = OpError { reason: "ErrImagePull".to_owned(), message: "no registry".to_owned() };
    node.fail.insert("ensure_image", VecDeque::from([error]));
    spec.containers = vec![with("always", PullPolicy::Always), with("present", PullPolicy::IfNotPresent)];
    node.want(&[&spec]);
    let names: Vec<&str> = node.facts.containers.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["present"]);
}

#[test]
fn a15_7_the_logs_of_a_pod_that_ended_go_with_it_also_if_it_is_not_wanted_any_more_while_it_is_tidied_away() {
    let mut node = ready_node();
    let mut job = pod("a");
    job.restart_policy = RestartPolicy::Never;
    node.want(&[&job]);
    node.hold = Some("cleanup");
    node.end("main", 0);
    node.want(&[]);
    node.hold = None;
    let (uid, op) = node.held.pop().expect("a cleanup is under way");
    node.send(Event::Done { uid, op, result: Ok(Done::Ok) });
    let kept = node.actions.iter().filter_map(|action| match action {
        Action::Pod { what: PodOp::Cleanup { keep_logs, .. }, .. } => Some(*keep_logs),
        _ => None,
    });
    assert_eq!(kept.collect::<Vec<_>>(), [true, false]);
    assert!(node.names().is_empty());
}
