//! What is shown and told of a pod on its way.

use beelet_core::event::Pulled;
use beelet_core::status::{ConditionKind, PodCondition, PodNote};

use super::*;

impl Node {
    fn condition(&self, pod: &str, kind: ConditionKind) -> PodCondition {
        let view = self.view(pod);
        let found = view.conditions.iter().find(|c| c.kind == kind).cloned();
        found.unwrap_or_else(|| panic!("no condition {kind:?}: {:?}", view.conditions))
    }

    /// Whether it holds, its reason and message.
    fn says(&self, pod: &str, kind: ConditionKind) -> (bool, String, String) {
        let condition = self.condition(pod, kind);
        (condition.holds, condition.reason, condition.message)
    }

    fn state(&self, pod: &str, container: &str) -> ContainerState {
        let view = self.view(pod);
        view.containers.iter().find(|c| c.name == container).expect("a container").state.clone()
    }

    /// Reasons and messages of what was told since.
    fn told(&self, since: usize) -> Vec<(String, String)> {
        let told = self.actions[since..].iter().filter_map(|action| match action {
            Action::Record(record) => Some((record.reason.clone(), record.message.clone())),
            _ => None,
        });
        told.collect()
    }

    /// The newest note of each pod.
    fn shown_notes(&self) -> Vec<PodNote> {
        let notes = self.actions.iter().filter_map(|action| match action {
            Action::Note(note) => Some((note.uid.clone(), note.clone())),
            _ => None,
        });
        notes.collect::<BTreeMap<_, _>>().into_values().collect()
    }

    /// The run of a container is taken out of the runtime by somebody.
    fn take_away(&mut self, container: &str) {
        self.facts.containers.retain(|c| c.name != container);
        self.relist();
    }
}

fn with(name: &str, of: &PodSpec) -> ContainerSpec {
    ContainerSpec { name: name.to_owned(), image: name.to_owned(), ..of.containers[0].clone() }
}

fn waiting(reason: &str, message: &str) -> ContainerState {
    ContainerState::Waiting { reason: reason.to_owned(), message: message.to_owned() }
}

fn error(reason: &str, message: &str) -> OpError {
    OpError { reason: reason.to_owned(), message: message.to_owned() }
}

const READY: ConditionKind = ConditionKind::Ready;

#[test]
fn a4_1a_a_pod_of_which_one_container_never_started_is_pending() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.containers.push(with("other", &spec));
    // The first is there, the other not.
    node.fail.insert("start_container", VecDeque::from([error("RunContainerError", "no")]));
    node.want(&[&spec]);
    assert_eq!(node.running(), ["other"]);
    assert_eq!(node.view("a").phase, Phase::Pending);
    node.run(Micros::secs(11));
    assert_eq!(node.view("a").phase, Phase::Running);
}

#[test]
fn a4_1c_an_end_is_shown_when_nothing_runs_any_more() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.restart_policy = RestartPolicy::Never;
    let always = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
    spec.init_containers = vec![ContainerSpec { restart: always, ..with("proxy", &spec) }];
    node.want(&[&spec]);
    node.hold = Some("stop_containers");
    node.end("main", 0);
    assert_eq!((node.view("a").phase, node.view("a").state.as_str()), (Phase::Running, "Terminating"));
    assert_eq!(node.says("a", READY).1, "ContainersNotReady");
    node.hold = None;
    let (uid, op) = node.held.pop().expect("its sidecar is told to stop");
    let proxy = node.facts.containers.iter().find(|c| c.name == "proxy").map(|c| c.id.clone()).expect("it runs");
    node.end_id(&proxy, 143);
    node.send(Event::Done { uid, op, result: Ok(Done::Ok) });
    assert_eq!(node.view("a").phase, Phase::Succeeded);
    assert_eq!(node.says("a", READY), (false, "PodCompleted".to_owned(), String::new()));
    assert_eq!(node.says("a", ConditionKind::Initialized), (true, "PodCompleted".to_owned(), String::new()));
    assert!(!node.condition("a", ConditionKind::PodReadyToStartContainers).holds);
}

/// Rows: A4.2a, A4.2b, A4.2c, A4.2d, A4.2j, A4.2k.
#[test]
fn a4_2_conditions_have_their_words_and_the_time_of_their_change() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.generation = 7;
    spec.init_containers = vec![with("one", &spec), with("two", &spec)];
    node.hold = Some("start_sandbox");
    node.want(&[&spec]);
    let scheduled = node.condition("a", ConditionKind::PodScheduled);
    assert!(!node.condition("a", ConditionKind::PodReadyToStartContainers).holds);
    node.hold = None;
    node.run(Micros::secs(5));
    let (uid, op) = node.held.pop().expect("a sandbox is being made");
    let PodOp::StartSandbox { .. } = &node.doing("a") else { panic!("a sandbox") };
    let done = node.obey(&node.doing("a"));
    node.send(Event::Done { uid, op, result: Ok(done) });
    let sandbox = node.condition("a", ConditionKind::PodReadyToStartContainers);
    assert!(sandbox.holds && node.now.wall - sandbox.since < Micros::secs(1), "{sandbox:?}");
    let not_yet = "containers with incomplete status: [one two]".to_owned();
    assert_eq!(node.says("a", ConditionKind::Initialized), (false, "ContainersNotInitialized".to_owned(), not_yet));
    let unready = "containers with unready status: [main]".to_owned();
    assert_eq!(node.says("a", READY), (false, "ContainersNotReady".to_owned(), unready));
    assert_eq!(node.state("a", "main"), waiting("PodInitializing", ""));
    node.run(Micros::secs(5));
    node.end("one", 0);
    node.run(Micros::secs(5));
    node.end("two", 0);
    let (initialized, ready) = (node.condition("a", ConditionKind::Initialized), node.condition("a", READY));
    assert!(initialized.holds && ready.holds && ready.generation == 7);
    // A crash and a restart: two changes; what does not change keeps its time.
    node.run(Micros::secs(60));
    node.end("main", 1);
    let again = node.condition("a", READY);
    assert!(again.holds && again.since > ready.since, "{again:?}");
    assert_eq!(node.condition("a", ConditionKind::Initialized), initialized);
    assert_eq!(node.condition("a", ConditionKind::PodScheduled), scheduled);
    assert_eq!(node.condition("a", ConditionKind::PodReadyToStartContainers).since, sandbox.since);
    let order: Vec<&str> = node.view("a").conditions.iter().map(|c| c.kind.as_str()).collect();
    let expected = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    assert_eq!(order, expected);
}

impl Node {
    /// The operation that is under way for a pod.
    fn doing(&self, pod: &str) -> PodOp {
        let begun = |action: &Action| match action {
            Action::Pod { uid, what, .. } if uid.as_str() == format!("uid-{pod}") => Some(what.clone()),
            _ => None,
        };
        self.actions.iter().rev().find_map(begun).expect("an operation")
    }
}

#[test]
fn a4_2e_a_pod_with_a_readiness_gate_waits_for_somebody_to_open_it() {
    let mut node = ready_node();
    let spec = PodSpec { readiness_gates: vec!["a/b".to_owned(), "c".to_owned()], ..pod("a") };
    node.want(&[&spec]);
    let message = "corresponding condition of pod readiness gate \"a/b\" does not exist., \
        corresponding condition of pod readiness gate \"c\" does not exist.";
    assert_eq!(node.says("a", READY), (false, "ReadinessGatesNotReady".to_owned(), message.to_owned()));
    assert!(node.condition("a", ConditionKind::ContainersReady).holds);
}

#[test]
fn a4_2g_who_was_evicted_says_so_and_who_was_turned_away_has_no_conditions() {
    let mut node = ready_node();
    let mut big = pod("big");
    big.containers[0].resources.memory_request = Some(Bytes::gib(64));
    node.want(&[&big]);
    assert!(node.view("big").conditions.is_empty());
    assert!(node.view("big").message.starts_with("Pod was rejected: "));
}

#[test]
fn a4_2h_a_resize_that_fails_says_why() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.containers[0].resources.cpu_request = Some(MilliCpu(100));
    node.want(&[&spec]);
    let mut more = spec;
    more.containers[0].resources.cpu_request = Some(MilliCpu(200));
    node.fail.insert("resize", VecDeque::from([error("ResizeError", "it did not arrive")]));
    node.want(&[&more]);
    let told = node.says("a", ConditionKind::PodResizeInProgress);
    assert_eq!(told, (true, "Error".to_owned(), "it did not arrive".to_owned()));
    node.run(Micros::secs(60));
    assert!(node.view("a").conditions.iter().all(|c| c.kind != ConditionKind::PodResizeInProgress));
}

#[test]
fn a4_2k_a_restart_of_the_agent_is_no_change() {
    let mut node = ready_node();
    let mut spec = pod("a");
    let probe = beelet_core::spec::Probe {
        handler: beelet_core::spec::Handler::Tcp { host: String::new(), port: 80 },
        initial_delay: Micros::ZERO,
        timeout: Micros::secs(1),
        period: Micros::secs(60),
        success_threshold: 1,
        failure_threshold: 1,
        grace: None,
    };
    spec.containers[0].probes.readiness = Some(Box::new(probe.clone()));
    spec.containers.push(with("other", &spec));
    let no = Answer::Failure("no".to_owned());
    node.answers.insert(("other".to_owned(), ProbeKind::Readiness), no.clone());
    node.want(&[&spec, &pod("plain")]);
    node.run(Micros::secs(30));
    let ready = |node: &Node| node.view("a").containers.iter().map(|c| c.ready).collect::<Vec<_>>();
    assert_eq!(ready(&node), [true, false]);
    let before = node.view("a");

    let restarted = |notes: Vec<PodNote>| {
        let mut after = Node::new(NodeConfig::default());
        (after.now, after.facts) = (node.now, node.facts.clone());
        after.pass(Micros::secs(100));
        after.answers.insert(("other".to_owned(), ProbeKind::Readiness), no.clone());
        after.hold = Some("prepare");
        after.send(Event::Noted(notes));
        after.want(&[&spec, &pod("plain")]);
        after.relist();
        after
    };
    let after = restarted(node.shown_notes());
    let view = after.view("a");
    assert_eq!((ready(&after), view.since), (vec![true, false], before.since), "before a probe has said anything");
    assert_eq!(view.conditions, before.conditions);
    // Without a note the facts tell what they can.
    let after = restarted(Vec::new());
    assert_eq!(ready(&after), [true, true], "as nobody knows better");
    let (old, new) = (node.condition("plain", READY), after.condition("plain", READY));
    assert!(new.holds && new.since - old.since < Micros::secs(1) && old.since - new.since < Micros::secs(1), "{new:?}");
    // The pod is gone: so is its note.
    node.want(&[]);
    assert!(node.actions.contains(&Action::Forget(spec.uid.clone())));
    let mut after = Node::new(NodeConfig::default());
    after.send(Event::Noted(node.shown_notes()));
    after.want(&[]);
    assert!(after.actions.contains(&Action::Forget(spec.uid)), "a note of a pod that nobody wants");
    assert_eq!(after.world.sizes().remembered, 0);
}

#[test]
fn a4_3a_who_waits_for_the_others_says_so_also_after_the_initialisation() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.init_containers = vec![with("init", &spec)];
    node.want(&[&spec, &pod("b")]);
    node.hold = Some("ensure_image");
    node.end("init", 0);
    assert_eq!(node.state("a", "main"), waiting("PodInitializing", ""));
    node.want(&[&spec, &pod("b"), &pod("c")]);
    assert_eq!(node.state("c", "main"), waiting("ContainerCreating", ""));
}

#[test]
fn a4_3c_an_image_error_is_shown_until_the_kubelet_would_look_again() {
    let mut node = ready_node();
    let gone = error("ErrImagePull", "gone");
    node.fail.insert("ensure_image", VecDeque::from([gone.clone(), gone.clone(), gone.clone()]));
    node.want(&[&pod("a")]);
    assert_eq!(node.state("a", "main"), waiting(&gone.reason, &gone.message));
    let told = node.told(0);
    let is = |reason: &str, message: &str| told.contains(&(reason.to_owned(), message.to_owned()));
    assert!(is("Failed", "Failed to pull image \"image\": gone") && is("Failed", "Error: ErrImagePull"), "{told:?}");
    assert!(!told.iter().any(|(reason, _)| reason == "BackOff"));
    // The second failure is followed by 20 s: after 10 of them the kubelet says that it backs off.
    node.run(Micros::secs(11));
    assert_eq!(node.state("a", "main"), waiting(&gone.reason, &gone.message));
    node.run(Micros::secs(10));
    let message = "Back-off pulling image \"image\": ErrImagePull: gone";
    assert_eq!(node.state("a", "main"), waiting("ImagePullBackOff", message));
    assert!(node.told(0).contains(&("BackOff".to_owned(), "Back-off pulling image \"image\"".to_owned())));
}

#[test]
fn a4_4b_a_run_that_vanished_has_ended_with_137_and_counts_as_a_restart() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    node.hold = Some("ensure_image");
    node.take_away("main");
    let view = node.view("a");
    let last = view.containers[0].last.clone().expect("an end");
    assert_eq!((last.code, last.reason.as_str(), view.restarts()), (137, "ContainerStatusUnknown", 1));
    assert_eq!((view.phase, node.state("a", "main")), (Phase::Running, waiting("ContainerCreating", "")));
    assert!(node.told(0).iter().any(|(reason, _)| reason == "ContainerStatusUnknown"));
    node.hold = None;
    let (uid, op) = node.held.pop().expect("its image is looked for");
    node.send(Event::Done { uid, op, result: Ok(Done::Image { pulled: None }) });
    assert_eq!((node.running().len(), node.view("a").restarts()), (1, 1), "it runs again, and that is the restart");
    assert_eq!(node.facts.containers[0].attempt, 1);
}

#[test]
fn a4_4b_a_container_that_may_run_once_does_not_run_twice_because_nobody_saw_its_end() {
    for (policy, phase) in [(RestartPolicy::Never, Phase::Failed), (RestartPolicy::OnFailure, Phase::Running)] {
        let mut node = ready_node();
        let once = PodSpec { restart_policy: policy, ..pod("a") };
        node.want(&[&once]);
        node.take_away("main");
        let starts = node.done.iter().filter(|op| *op == "start_container").count();
        assert_eq!((node.view("a").phase, starts), (phase, if policy == RestartPolicy::Never { 1 } else { 2 }));
    }
    // One of two, with an end that was seen.
    let mut node = ready_node();
    let mut once = PodSpec { restart_policy: RestartPolicy::OnFailure, ..pod("a") };
    once.containers.push(with("other", &once));
    node.want(&[&once]);
    node.end("main", 0);
    node.take_away("main");
    assert_eq!(node.running(), ["other"]);
    // Also with another sandbox.
    node.facts.sandboxes[0].ready = false;
    node.relist();
    assert_eq!(node.running(), ["other"]);
    node.end("other", 0);
    assert_eq!(node.view("a").phase, Phase::Succeeded);
}

#[test]
fn a4_4e_an_init_container_that_is_gone_must_have_ended_well() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.init_containers = vec![with("init", &spec)];
    node.want(&[&spec]);
    node.end("init", 0);
    node.facts.containers.retain(|c| c.name != "init");
    let mut after = Node::new(NodeConfig::default());
    (after.now, after.facts) = (node.now, node.facts.clone());
    after.want(&[&spec]);
    after.relist();
    let ContainerState::Terminated(exit) = after.state("a", "init") else { panic!("{:?}", after.state("a", "init")) };
    assert_eq!((exit.code, exit.reason.as_str()), (0, "Completed"));
    assert!(exit.message.starts_with("Unable to get init container status from container runtime"), "{}", exit.message);
    assert_eq!((after.view("a").phase, after.condition("a", ConditionKind::Initialized).holds), (Phase::Running, true));
}

#[test]
fn a4_8j_who_waits_for_a_restart_is_told_of_once_for_each() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    node.end("main", 1);
    let mark = node.actions.len();
    let back_off = |node: &Node| node.told(mark).into_iter().filter(|(reason, _)| reason == "BackOff").count();
    node.end("main", 1);
    node.relist();
    assert_eq!(back_off(&node), 1);
    let message = "Back-off restarting failed container main in pod a_default(uid-a)".to_owned();
    assert!(node.told(mark).contains(&("BackOff".to_owned(), message)));
    node.run(Micros::secs(11));
    node.end("main", 1);
    assert_eq!(back_off(&node), 2);
}

#[test]
fn a4_8k_the_count_of_restarts_goes_on_from_the_logs_of_runs_that_the_runtime_forgot() {
    let mut node = ready_node();
    node.counted = vec![("main".to_owned(), 3)];
    node.want(&[&pod("a")]);
    assert_eq!((node.facts.containers[0].attempt, node.view("a").restarts()), (3, 3));
    // What the runtime knows is better.
    let mut after = Node::new(NodeConfig::default());
    (after.now, after.facts, after.counted) = (node.now, node.facts.clone(), vec![("main".to_owned(), 9)]);
    after.want(&[&pod("a")]);
    after.relist();
    after.end("main", 1);
    assert_eq!(after.facts.containers.last().map(|c| c.attempt), Some(4));
}

#[test]
fn a4_12c_a_pod_that_nobody_knows_is_counted() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let mut after = Node::new(NodeConfig::default());
    (after.now, after.facts) = (node.now, node.facts.clone());
    after.want(&[]);
    after.relist();
    assert_eq!(after.world.snapshot(after.now).totals.orphans, 1);
    assert_eq!(node.world.snapshot(node.now).totals.orphans, 0);
}

#[test]
fn a4_12d_dead_runs_of_an_init_container_do_not_pile_up() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.init_containers = vec![with("init", &spec)];
    node.want(&[&spec]);
    for _ in 0..4 {
        node.end("init", 1);
        node.run(Micros::secs(300));
    }
    let runs: Vec<u32> = node.facts.containers.iter().map(|c| c.attempt).collect();
    assert_eq!(runs, [3, 4]);
}

#[test]
fn a4_15c_a_sandbox_without_an_address_is_replaced_after_a_while() {
    let mut node = ready_node();
    node.no_address = 2;
    node.want(&[&pod("a")]);
    assert!(!node.condition("a", ConditionKind::PodReadyToStartContainers).holds);
    assert!(node.running().is_empty());
    node.run(Micros::secs(60));
    assert_eq!((node.running().len(), node.facts.sandboxes.len(), node.view("a").phase), (1, 1, Phase::Running));
    // The runtime says of one that is in use that it has none any more.
    let mark = node.actions.len();
    node.facts.sandboxes[0].no_address = true;
    node.relist();
    let message = "Pod sandbox changed, it will be killed and re-created.".to_owned();
    assert!(node.told(mark).contains(&("SandboxChanged".to_owned(), message)), "{:?}", node.told(mark));
    assert_eq!(node.running().len(), 1);
    // In the node's network there is none to be had.
    let mut node = ready_node();
    node.no_address = 1;
    node.want(&[&PodSpec { host_network: true, ..pod("a") }]);
    assert_eq!((node.running().len(), node.done.iter().filter(|op| *op == "start_sandbox").count()), (1, 1));
}

#[test]
fn a4_18e_the_messages_of_a_pod_have_12_kib_together() {
    let mut node = ready_node();
    let mut spec = PodSpec { restart_policy: RestartPolicy::Never, ..pod("a") };
    spec.containers.extend([with("b", &spec), with("c", &spec)]);
    node.want(&[&spec]);
    let exit = Exit {
        started: node.now.wall,
        finished: node.now.wall,
        code: 1,
        reason: "Error".to_owned(),
        message: "x".repeat(10_000),
    };
    node.facts.containers[0].state = ContainerFactState::Exited(exit);
    node.relist();
    let ContainerState::Terminated(exit) = node.state("a", "main") else { panic!("it ended") };
    assert_eq!(exit.message.len(), 4_096);
}

#[test]
fn a4_18f_a_start_is_told_in_the_words_of_the_kubelet() {
    let mut node = ready_node();
    node.hold = Some("ensure_image");
    let mark = node.actions.len();
    node.want(&[&pod("a")]);
    let (uid, op) = node.held.pop().expect("its image is looked for");
    node.send(Event::Pulling { uid: uid.clone(), image: "image".to_owned() });
    let pulled = Pulled { took: Micros::millis(1_250), in_all: Micros::millis(2_500), size: Bytes(42) };
    node.send(Event::Done { uid, op, result: Ok(Done::Image { pulled: Some(pulled) }) });
    let told: Vec<(String, String)> =
        node.told(mark).into_iter().filter(|(reason, _)| reason != "SandboxStarted").collect();
    let expected = [
        ("Pulling", "Pulling image \"image\""),
        ("Pulled", "Successfully pulled image \"image\" in 1.25s (2.5s including waiting). Image size: 42 bytes."),
        ("Created", "Container created"),
        ("Started", "Container started"),
    ];
    assert_eq!(told, expected.map(|(reason, message)| (reason.to_owned(), message.to_owned())));
}
