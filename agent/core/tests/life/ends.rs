//! What is left of runs that ended: of init containers, of crash loops, of pods that go.

use beelet_core::event::Record;
use beelet_core::sample::{KernelEvent, KernelEventKind};

use super::*;

fn with_init() -> PodSpec {
    let mut spec = pod("a");
    spec.init_containers = vec![ContainerSpec { name: "first".to_owned(), ..spec.containers[0].clone() }];
    spec
}

/// As another agent finds it.
fn another(before: &Node, wanted: &PodSpec) -> Node {
    let mut after = Node::new(NodeConfig::default());
    (after.facts, after.now, after.next_id) = (before.facts.clone(), before.now, before.next_id);
    after.want(&[wanted]);
    after.relist();
    after
}

fn starts(node: &Node, name: &str) -> usize {
    let of = |a: &&Action| matches!(a, Action::Pod { what: PodOp::StartContainer { container, .. }, .. } if container == name);
    node.actions.iter().filter(of).count()
}

#[test]
fn a4_5c_a_failed_init_container_ends_a_pod_that_may_not_restart() {
    let mut node = ready_node();
    let spec = PodSpec { restart_policy: RestartPolicy::Never, ..with_init() };
    node.want(&[&spec]);
    node.end("first", 7);
    node.run(Micros::secs(600));
    assert_eq!((node.view("a").phase, starts(&node, "first"), starts(&node, "main")), (Phase::Failed, 1, 0));

    let mut node = ready_node();
    node.want(&[&with_init()]);
    node.end("first", 7);
    assert_eq!((starts(&node, "first"), starts(&node, "main")), (2, 0), "the first restart is at once");
    node.end("first", 7);
    assert_eq!((node.view("a").phase, starts(&node, "first")), (Phase::Pending, 2), "it backs off");
    node.run(Micros::secs(11));
    assert_eq!(starts(&node, "first"), 3);
}

#[test]
fn a4_5b_init_containers_run_again_with_a_new_sandbox_and_not_after_a_restart_of_the_agent() {
    let mut node = ready_node();
    let spec = with_init();
    node.want(&[&spec]);
    node.end("first", 0);
    assert_eq!((starts(&node, "first"), starts(&node, "main")), (1, 1));
    let mut after = another(&node, &spec);
    after.run(Micros::secs(60));
    assert_eq!((starts(&after, "first"), starts(&after, "main")), (0, 0));
    node.facts.sandboxes[0].ready = false;
    node.relist();
    node.run(Micros::secs(60));
    node.end("first", 0);
    assert_eq!((starts(&node, "first"), starts(&node, "main")), (2, 2));
}

#[test]
fn a4_8i_a_crash_loop_goes_on_after_a_restart_of_the_agent() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    for _ in 0..4 {
        node.end("main", 3);
        node.run(Micros::secs(100));
    }
    assert_eq!(node.view("a").containers[0].restarts, 4);
    node.end("main", 3);
    let mut after = another(&node, &pod("a"));
    after.run(Micros::secs(70));
    assert_eq!((starts(&after, "main"), after.view("a").status_word().as_str()), (0, "CrashLoopBackOff"));
    after.run(Micros::secs(11));
    assert_eq!((starts(&after, "main"), after.view("a").containers[0].restarts), (1, 5), "80 s after its end");
}

#[test]
fn a4_12d_of_dead_runs_the_last_one_is_kept() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    for n in 1..5 {
        node.end("main", 3);
        node.run(Micros::secs(400));
        let runs: Vec<u32> = node.facts.containers.iter().map(|c| c.attempt).collect();
        assert_eq!(runs, [n - 1, n]);
    }
}

#[test]
fn a4_14d_the_end_of_a_first_process_has_the_runtime_asked() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let mut asked = |is_init: bool| {
        node.actions.clear();
        let kind = KernelEventKind::Exit { pid: 7, comm: "main".to_owned(), code: 1, signal: 0, is_init };
        let container = Some("main".to_owned());
        node.send(Event::Kernel(KernelEvent { at: node.now.mono, uid: "uid-a".into(), container, kind }));
        node.actions.contains(&Action::Relist)
    };
    assert!(asked(true) && !asked(false));
}

#[test]
fn a4_7h_who_removes_a_pod_says_what_is_stopped() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    node.want(&[]);
    let said = |record: &Record| record.reason == "Killing" && record.message == "Stopping container main";
    assert!(node.actions.iter().any(|a| matches!(a, Action::Record(record) if said(record))));
}

#[test]
fn a4_5b_and_a4_15c_a_pod_that_is_over_has_no_new_sandbox_for_its_init_containers() {
    let mut node = ready_node();
    let spec = PodSpec { restart_policy: RestartPolicy::Never, ..with_init() };
    node.want(&[&spec]);
    node.end("first", 0);
    node.run(Micros::secs(5));
    assert_eq!(node.view("a").phase, Phase::Running);
    // While no agent looks the machine is started anew: the sandbox is down, and the container has ended.
    let id = node.facts.containers.iter().find(|c| c.name == "main").map(|c| c.id.clone()).expect("it runs");
    node.end_id(&id, 255);
    node.facts.sandboxes[0].ready = false;
    let mut after = another(&node, &spec);
    after.run(Micros::secs(60));
    let begun = |a: &&Action| matches!(a, Action::Pod { what: PodOp::StartSandbox { .. }, .. });
    assert_eq!(
        (after.actions.iter().filter(begun).count(), starts(&after, "first"), starts(&after, "main")),
        (0, 0, 0)
    );
    assert_eq!(after.view("a").phase, Phase::Failed);
}
