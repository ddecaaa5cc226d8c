//! What a new life of the agent keeps of an earlier one, and what comes late of it.

use super::*;

fn asking(name: &str, cpu: u64) -> PodSpec {
    let mut pod = pod(name);
    pod.containers[0].resources.cpu_request = Some(MilliCpu(cpu));
    pod
}

/// Another life of the agent, at the same moment with the same runtime.
fn after(before: &Node) -> Node {
    Node { now: before.now, facts: before.facts.clone(), next_id: before.next_id, ..Node::new(NodeConfig::default()) }
}

/// What containers were started with, in thousandths of a core.
fn started_with(node: &Node) -> Vec<(String, Option<u64>)> {
    let starts = node.actions.iter().filter_map(|action| match action {
        Action::Pod { what: PodOp::StartContainer { container, linux, .. }, .. } => {
            Some((container.clone(), linux.resources.cpu_request.map(MilliCpu::get)))
        }
        _ => None,
    });
    starts.collect()
}

#[test]
fn a4_16_recovery_who_was_let_in_before_keeps_its_place() {
    let path = "kubepods/burstable/poduid-z";
    for (left, runs) in [(None, "a"), (Some(path), "z"), (Some(""), "z")] {
        let mut node = Node::new(NodeConfig::default());
        let leftovers = left.map(|path| ("uid-z".into(), path.to_owned())).into_iter().collect();
        node.want(&[&asking("a", 1_500), &asking("z", 1_500)]);
        node.send(Event::Runtime(RuntimeFacts { asked: node.now.mono, leftovers, ..RuntimeFacts::default() }));
        for name in ["a", "z"] {
            let wanted = if name == runs { (Phase::Running, "") } else { (Phase::Failed, "OutOfcpu") };
            let view = node.view(name);
            assert_eq!((view.phase, view.reason.as_str()), wanted, "{name}, left: {left:?}");
        }
    }
}

#[test]
fn a4_16_recovery_a_wish_that_grew_while_no_agent_looked_waits_until_all_is_started() {
    let with_init = |cpu| {
        let mut pod = asking("a", cpu);
        pod.init_containers = vec![ContainerSpec { name: "init".to_owned(), ..pod.containers[0].clone() }];
        pod
    };
    let other = asking("b", 900);
    let mut before = ready_node();
    before.want(&[&with_init(1_000), &other]);
    assert_eq!(before.view("a").phase, Phase::Pending, "its init container runs");
    let mut node = after(&before);
    node.want(&[&with_init(1_900), &other]);
    node.relist();
    assert_eq!(node.view("b").phase, Phase::Running);
    node.end("init", 0);
    assert_eq!(started_with(&node), [("main".to_owned(), Some(1_000))]);
    let resize = node.view("a").resize.clone();
    assert!(resize.starts_with("Deferred: Node didn't have enough resource: cpu"), "{resize}");
}

#[test]
fn a4_16_recovery_a_sandbox_that_comes_late_for_a_pod_that_is_turned_away_goes() {
    let big = asking("a", 64_000);
    let mut node = ready_node();
    node.want(&[&big]);
    assert_eq!(node.view("a").reason, "OutOfcpu");
    let told =
        PodOp::StartSandbox { spec: Arc::new(big.clone()), given: BTreeMap::new(), cgroup: String::new(), attempt: 0 };
    node.obey(&told);
    node.relist();
    assert_eq!(node.done, ["remove_sandboxes", "cleanup"]);
    assert_eq!(node.facts.sandboxes, []);
    assert_eq!(node.view("a").reason, "OutOfcpu");
}

#[test]
fn a4_2h_a_container_that_comes_back_during_a_resize_starts_with_what_it_had() {
    // Together they fit before and after; the new value of one with the old one of the other does not.
    let two = |first, second| {
        let mut pod = asking("a", first);
        let mut other = asking("a", second).containers.remove(0);
        other.name = "second".to_owned();
        pod.containers.push(other);
        pod
    };
    let mut node = ready_node();
    node.want(&[&two(1_500, 400)]);
    node.actions.clear();
    node.hold = Some("ensure_image");
    node.end("second", 1);
    node.want(&[&two(400, 1_500)]);
    let (uid, op) = node.held.pop().expect("its image is looked for");
    node.hold = None;
    node.done.clear();
    node.send(Event::Done { uid, op, result: Ok(Done::Image { pulled: None }) });
    assert_eq!(started_with(&node), [("second".to_owned(), Some(400))]);
    assert_eq!(node.done, ["start_container", "resize"]);
    assert_eq!(node.view("a").resize, "");
}

#[test]
fn a4_14_a_listing_that_came_too_early_for_a_pod_is_asked_for_again() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let early = node.now.mono - Micros::secs(1);
    node.actions.clear();
    // As it was before the pod was started.
    node.send(Event::Runtime(RuntimeFacts { asked: early, ..RuntimeFacts::default() }));
    assert!(node.actions.contains(&Action::Relist), "{:?}", node.actions);
    assert_eq!(node.view("a").phase, Phase::Running);
    assert_eq!(node.done.iter().filter(|done| *done == "start_sandbox").count(), 1);
}

#[test]
fn a4_12b_recovery_a_cgroup_whose_sandbox_goes_between_two_listings_is_cleaned_away() {
    let mut before = ready_node();
    before.want(&[&pod("a")]);
    let leftovers = vec![("uid-a".into(), "kubepods/besteffort/poduid-a".to_owned())];
    let mut node = after(&before);
    node.send(Event::Runtime(RuntimeFacts { asked: node.now.mono, leftovers, ..node.facts.clone() }));
    // The runtime does what the agent before had told it.
    node.facts = RuntimeFacts::default();
    node.want(&[]);
    node.relist();
    assert_eq!(node.done, ["cleanup"]);
    assert_eq!(node.names(), Vec::<String>::new());
}

#[test]
fn a4_5b_init_containers_run_again_when_the_runtime_has_lost_all_of_a_sandbox() {
    let mut with_init = pod("a");
    with_init.init_containers = vec![ContainerSpec { name: "init".to_owned(), ..with_init.containers[0].clone() }];
    let mut node = ready_node();
    node.want(&[&with_init]);
    node.end("init", 0);
    assert_eq!(node.view("a").phase, Phase::Running);
    node.facts.containers.clear();
    node.actions.clear();
    node.relist();
    node.end("init", 0);
    let started: Vec<String> = started_with(&node).into_iter().map(|(name, _)| name).collect();
    assert_eq!(started, ["init", "main"]);
}

#[test]
fn a4_8k_recovery_restarts_are_counted_on_when_the_runtime_has_forgotten_the_runs() {
    let mut before = ready_node();
    before.want(&[&pod("a")]);
    before.end("main", 1);
    assert_eq!(before.view("a").restarts(), 1);
    // Its sandbox is lost and made anew; the agent dies before the container is started in it.
    before.facts.sandboxes[0].ready = false;
    before.hold = Some("ensure_image");
    before.relist();
    assert_eq!((before.facts.sandboxes.len(), before.facts.containers.len()), (1, 0));
    let mut node = after(&before);
    node.want(&[&pod("a")]);
    node.relist();
    assert_eq!(node.view("a").restarts(), 2);
    assert_eq!(node.facts.containers[0].attempt, 2);
}
