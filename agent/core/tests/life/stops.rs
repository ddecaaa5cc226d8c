//! Hooks, the order and the time of stops, and pods whose time is over.

use beelet_core::spec::{Handler, Hook};
use beelet_core::stop::Stop;

use super::*;

fn exec(word: &str) -> Hook {
    Hook::Call(Handler::Exec { command: vec![word.to_owned()] })
}

fn hooked(post_start: Option<&str>, pre_stop: Option<&str>) -> PodSpec {
    let mut pod = pod("a");
    let lifecycle = &mut pod.containers[0].lifecycle;
    lifecycle.post_start = post_start.map(|word| Box::new(exec(word)));
    lifecycle.pre_stop = pre_stop.map(|word| Box::new(exec(word)));
    pod
}

fn failed(reason: &str) -> OpError {
    OpError { reason: reason.to_owned(), message: "it did not work".to_owned() }
}

impl Node {
    fn said(&self, reason: &str) -> Vec<(String, bool)> {
        let of = |action: &Action| match action {
            Action::Record(r) if r.reason == reason => Some((r.message.clone(), r.warning)),
            _ => None,
        };
        self.actions.iter().filter_map(of).collect()
    }

    fn all_stops(&self) -> Vec<(Vec<Stop>, Micros)> {
        let of = |action: &Action| match action {
            Action::Pod { what: PodOp::StopContainers { stops, grace, .. }, .. } => Some((stops.clone(), *grace)),
            _ => None,
        };
        self.actions.iter().filter_map(of).collect()
    }

    /// What of the deadlines of pods is written down: by the wall clock.
    fn notes(&self) -> BTreeMap<PodUid, Micros> {
        let mut notes = BTreeMap::new();
        for action in &self.actions {
            match action {
                Action::Going { uid, until: Some(until) } => _ = notes.insert(uid.clone(), *until),
                Action::Going { uid, until: None } => _ = notes.remove(uid),
                _ => {}
            }
        }
        notes
    }

    /// Another agent, with what this one left.
    fn next_life(&self) -> Self {
        let mut next = Self::new(NodeConfig::default());
        (next.facts, next.now) = (self.facts.clone(), self.now);
        let ends = self.actions.iter().filter_map(|a| match a {
            Action::Remember(end) => Some(end.clone()),
            _ => None,
        });
        next.send(Event::Remembered(ends.collect()));
        next.send(Event::Going(self.notes().into_iter().collect()));
        next
    }

    /// Ends what is held.
    fn finish(&mut self, result: Result<Done, OpError>) {
        self.hold = None;
        let (uid, op) = self.held.pop().expect("something is under way");
        self.send(Event::Done { uid, op, result });
    }

    /// Marks that operation as done in the runtime, and ends it.
    fn finish_stop(&mut self) {
        let (stops, _) = self.all_stops().pop().expect("a stop");
        for stop in stops.iter().filter(|stop| stop.signal) {
            self.end_id(&stop.id, 143);
        }
        self.finish(Ok(Done::Ok));
    }
}

#[test]
fn a4_6a_what_comes_next_waits_for_the_hook_post_start() {
    let mut node = ready_node();
    let mut spec = hooked(None, None);
    let always = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
    let mut proxy = ContainerSpec { name: "proxy".to_owned(), restart: always, ..spec.containers[0].clone() };
    proxy.lifecycle.post_start = Some(Box::new(exec("up")));
    spec.init_containers = vec![proxy];
    node.hold = Some("post_start");
    node.want(&[&spec]);
    node.run(Micros::secs(10));
    assert_eq!(node.running(), ["proxy"]);
    let begun = node.actions.iter().find_map(|a| match a {
        Action::Pod { what: PodOp::PostStart { container, id, ip, .. }, .. } => {
            Some((container.clone(), id.clone(), ip.clone()))
        }
        _ => None,
    });
    let id = node.facts.containers[0].id.clone();
    assert_eq!(begun, Some(("proxy".to_owned(), id, "10.0.0.1".to_owned())));
    node.finish(Ok(Done::Ok));
    assert_eq!(node.running(), ["proxy", "main"]);
    node.run(Micros::secs(60));
    assert_eq!(node.done.iter().filter(|op| *op == "post_start").count(), 0, "once for each run");
    // A run that an agent was killed over keeps what it has: its hook is not done again.
    let mut after = node.next_life();
    after.want(&[&spec]);
    after.relist();
    after.run(Micros::secs(60));
    assert_eq!(after.done, ["prepare"]);
}

#[test]
fn a4_3g_a4_6a_a_container_whose_post_start_failed_is_stopped_and_run_again() {
    for (policy, code, restarts, shown) in [
        (RestartPolicy::Always, 0, 1, "PostStartHookError"),
        (RestartPolicy::OnFailure, 143, 1, "PostStartHookError"),
        // It is run again by the rules for its end only.
        (RestartPolicy::OnFailure, 0, 0, "Completed"),
        (RestartPolicy::Never, 143, 0, "Error"),
    ] {
        let mut node = ready_node();
        let mut spec = hooked(Some("up"), Some("down"));
        spec.restart_policy = policy;
        node.stop_code = code;
        node.fail.insert("post_start", VecDeque::from([failed("PostStartHookError")]));
        node.hold = Some("stop_containers");
        node.want(&[&spec]);
        let id = node.facts.containers[0].id.clone();
        let stop = Stop { id: id.clone(), name: "main".to_owned(), hook: Some(exec("down")), signal: true };
        assert_eq!(node.all_stops(), [(vec![stop], Micros::secs(30))], "also with its hook, and the pod's grace");
        assert_eq!(node.said("FailedPostStartHook"), [("PostStartHook failed".to_owned(), true)]);
        assert_eq!(node.said("Killing"), [("FailedPostStartHook".to_owned(), false)]);
        // So it is shown until it is started anew.
        node.hold = Some("ensure_image");
        node.end_id(&id, code);
        let (uid, op) = node.held.pop().expect("a stop");
        node.send(Event::Done { uid, op, result: Ok(Done::Ok) });
        let view = node.view("a");
        match &view.containers[0].state {
            ContainerState::Waiting { reason, message } => {
                assert_eq!((reason.as_str(), message.as_str()), (shown, "it did not work"), "{policy:?} {code}");
            }
            ContainerState::Terminated(exit) => assert_eq!(exit.reason, shown, "{policy:?} {code}"),
            other @ ContainerState::Running { .. } => panic!("{other:?}"),
        }
        node.hold = None;
        if let Some((uid, op)) = node.held.pop() {
            node.send(Event::Done { uid, op, result: Ok(Done::Image { pulled: None }) });
        }
        node.run(Micros::secs(60));
        assert_eq!(node.view("a").restarts(), restarts, "{policy:?} {code}");
    }
}

#[test]
fn a4_6a_a_pod_that_has_to_go_does_not_wait_for_the_hook_post_start() {
    let mut node = ready_node();
    node.hold = Some("post_start");
    node.want(&[&hooked(Some("up"), None)]);
    node.want(&[]);
    assert!(node.actions.iter().any(|a| matches!(a, Action::Cancel { .. })));
    node.finish(Err(failed(beelet_core::event::CANCELLED)));
    assert_eq!(node.said("FailedPostStartHook"), []);
    assert_eq!(node.said("Killing"), [("Stopping container main".to_owned(), false)]);
    assert_eq!(node.names(), Vec::<String>::new());
}

#[test]
fn a4_6b_all_hooks_begin_at_once_and_each_is_done_once() {
    let mut node = ready_node();
    let mut spec = hooked(None, Some("main"));
    let always = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
    let sidecar = |name: &str, hook: bool| {
        let mut it = ContainerSpec { name: name.to_owned(), restart: always.clone(), ..ContainerSpec::unknown(name) };
        it.lifecycle.pre_stop = hook.then(|| Box::new(exec(name)));
        it
    };
    spec.init_containers = vec![sidecar("first", true), sidecar("second", false)];
    node.want(&[&spec]);
    assert_eq!(node.running().len(), 3);
    node.want(&[]);
    let told: Vec<Vec<(String, bool, bool)>> = node
        .all_stops()
        .iter()
        .map(|(stops, _)| stops.iter().map(|s| (s.name.clone(), s.hook.is_some(), s.signal)).collect())
        .collect();
    let one = |name: &str, hook, signal| (name.to_owned(), hook, signal);
    assert_eq!(
        told,
        [
            vec![one("first", true, false), one("main", true, true)],
            vec![one("second", false, true)],
            vec![one("first", false, true)],
        ]
    );
    let mut said = node.said("Killing");
    said.sort();
    let stopping = |name: &str| (format!("Stopping container {name}"), false);
    assert_eq!(said, [stopping("first"), stopping("main"), stopping("second")], "each once, at the beginning");
}

#[test]
fn a4_6b_an_orphan_has_the_hook_and_the_grace_that_it_was_made_with() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    let mut after = Node::new(NodeConfig::default());
    (after.facts, after.now) = (node.facts.clone(), node.now);
    after.facts.containers[0].pre_stop = Some(exec("down"));
    after.facts.containers[0].grace = Some(Micros::secs(20));
    after.want(&[]);
    after.relist();
    let (stops, grace) = &after.all_stops()[0];
    assert_eq!(stops[0].hook, Some(exec("down")));
    assert!(*grace > Micros::millis(19_900) && *grace <= Micros::secs(20), "{grace}");
}

#[test]
fn a4_7b_a_pod_without_grace_has_a_second_and_one_container_none() {
    let mut node = ready_node();
    let mut spec = hooked(Some("up"), Some("down"));
    spec.termination_grace = Micros::ZERO;
    node.fail.insert("post_start", VecDeque::from([failed("PostStartHookError")]));
    node.want(&[&spec]);
    assert_eq!(node.all_stops()[0].1, Micros::ZERO, "the floor is the edge's");
    assert_eq!(node.all_stops()[0].0[0].hook, None, "there is no time for a hook");
    node.want(&[]);
    let (stops, grace) = node.all_stops().pop().expect("one");
    assert_eq!(stops[0].hook, Some(exec("down")));
    assert!(grace > Micros::millis(990) && grace <= Micros::secs(1), "{grace}");
    use beelet_core::stop::after_hook;
    assert_eq!(after_hook(Micros::ZERO, Micros::ZERO), Micros::secs(2));
    assert_eq!(after_hook(Micros::secs(30), Micros::secs(4)), Micros::secs(26));
    assert_eq!(after_hook(Micros::secs(30), Micros::secs(40)), Micros::secs(2));
}

#[test]
fn a4_7c_who_goes_already_and_has_less_time_now_is_told_so() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.termination_grace = Micros::secs(600);
    node.hold = Some("stop_containers");
    node.want(&[&spec]);
    node.want(&[]);
    let until = node.notes()[&spec.uid];
    assert_eq!(until - node.now.wall, Micros::secs(600));
    // The same pod is changed to another one: no new time for it.
    node.run(Micros::secs(100));
    let other = PodSpec { hostname: "other".to_owned(), ..spec.clone() };
    node.want(&[&other]);
    node.want(&[]);
    assert_eq!(node.notes()[&spec.uid], until);
    node.finish_stop();
    assert_eq!((node.names(), node.notes()), (Vec::new(), BTreeMap::new()), "nothing is left written down");
}

#[test]
fn a4_7h_every_stop_is_told_with_its_reason() {
    // An end that it is given, not one that it comes to: by its deadline.
    let mut node = ready_node();
    let spec = PodSpec { active_deadline: Some(Micros::secs(60)), ..pod("a") };
    node.want(&[&spec]);
    node.run(Micros::secs(61));
    assert_eq!(node.said("Killing"), [("Stopping container main".to_owned(), false)]);
    assert_eq!(node.view("a").last_action.split(':').next(), Some("DeadlineExceeded"), "why it goes says more");
    // One that ended is not stopped.
    let mut node = ready_node();
    node.want(&[&PodSpec { restart_policy: RestartPolicy::Never, ..pod("b") }]);
    node.end("main", 0);
    assert_eq!(node.said("Killing"), []);
}

#[test]
fn a4_7i_what_is_left_of_the_time_is_left_after_a_restart() {
    for wanted in [false, true] {
        let mut node = ready_node();
        let mut spec = PodSpec { active_deadline: wanted.then_some(Micros::secs(30)), ..hooked(None, Some("down")) };
        spec.termination_grace = Micros::secs(100);
        node.want(&[&spec]);
        node.hold = Some("stop_containers");
        node.run(Micros::secs(30));
        let wish = if wanted { vec![&spec] } else { Vec::new() };
        node.want(&wish);
        assert_eq!(node.held.len(), 1);
        node.run(Micros::secs(40));
        for life in 0..2 {
            let mut after = node.next_life();
            after.hold = Some("stop_containers");
            after.want(&wish);
            after.relist();
            let (stops, grace) = after.all_stops().pop().expect("it is told again");
            assert!(stops[0].hook.is_some() && stops[0].signal);
            let left = [60, 30][life];
            assert!(grace <= Micros::secs(left) && grace > Micros::secs(left - 1), "{wanted} {life}: {grace}");
            after.run(Micros::secs(30));
            // What a next life finds is what all before it left.
            after.actions = node.actions.iter().chain(&after.actions).cloned().collect();
            node = after;
        }
        node.finish_stop();
        assert_eq!(node.notes(), BTreeMap::new());
        let shown = wanted.then(|| node.view("a").reason.clone());
        assert_eq!(shown.as_deref(), wanted.then_some("DeadlineExceeded"));
    }
}

#[test]
fn a4_7i_one_that_is_wanted_again_goes_on_and_has_all_its_time_later() {
    let mut node = ready_node();
    node.want(&[&pod("a")]);
    node.hold = Some("stop_containers");
    node.want(&[]);
    node.run(Micros::secs(29));
    let mut after = node.next_life();
    after.want(&[&pod("a")]);
    after.relist();
    after.run(Micros::secs(60));
    assert_eq!((after.view("a").phase, after.all_stops().len()), (Phase::Running, 0));
    assert!(after.actions.contains(&Action::Going { uid: "uid-a".into(), until: None }));
    after.want(&[]);
    assert!(after.all_stops()[0].1 > Micros::secs(29));
    // A note of one of which nothing is left goes.
    let mut empty = node.next_life();
    empty.facts = RuntimeFacts::default();
    empty.want(&[]);
    empty.relist();
    assert!(empty.actions.contains(&Action::Going { uid: "uid-a".into(), until: None }));
}

#[test]
fn a4_13_a_pod_may_run_for_so_long_only() {
    let mut node = ready_node();
    let spec = PodSpec { active_deadline: Some(Micros::secs(300)), termination_grace: Micros::secs(5), ..pod("a") };
    node.want(&[&spec]);
    node.run(Micros::secs(200));
    // A restart of the agent gives it no new time.
    let mut after = node.next_life();
    after.want(&[&spec]);
    after.relist();
    after.run(Micros::secs(99));
    assert_eq!(after.view("a").phase, Phase::Running);
    after.run(Micros::secs(2));
    let view = after.view("a");
    let message = "Pod was active on the node longer than the specified deadline";
    assert_eq!((view.phase, view.reason.as_str(), view.message.as_str()), (Phase::Failed, "DeadlineExceeded", message));
    assert!(view.conditions.iter().all(|c| c.kind != beelet_core::status::ConditionKind::DisruptionTarget));
    assert_eq!(after.said("DeadlineExceeded"), [(message.to_owned(), false)]);
    let grace = after.all_stops()[0].1;
    assert!(grace > Micros::millis(4_900) && grace <= Micros::secs(5), "{grace}");
    // It stays so, also for the agent after.
    let mut last = after.next_life();
    last.want(&[&spec]);
    last.relist();
    last.run(Micros::secs(60));
    assert_eq!((last.view("a").phase, last.view("a").reason.as_str()), (Phase::Failed, "DeadlineExceeded"));
    assert_eq!(last.done, Vec::<String>::new());
}

#[test]
fn a4_13_a_pull_does_not_hold_the_deadline_up() {
    let mut node = ready_node();
    node.hold = Some("ensure_image");
    node.want(&[&PodSpec { active_deadline: Some(Micros::secs(60)), ..pod("a") }]);
    node.run(Micros::secs(61));
    assert!(node.actions.iter().any(|a| matches!(a, Action::Cancel { .. })), "the pull is given up");
    assert_eq!(node.view("a").reason, "DeadlineExceeded");
    node.finish(Err(failed(beelet_core::event::CANCELLED)));
    assert_eq!((node.view("a").state.as_str(), node.notes()), ("Terminal", BTreeMap::new()));
}
