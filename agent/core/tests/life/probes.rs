//! What probes do to pods.

use beelet_core::event::Record;
use beelet_core::spec::{Handler, Probe};
use beelet_core::status::ConditionKind;

use super::*;

fn probe() -> Probe {
    Probe {
        handler: Handler::Tcp { host: String::new(), port: 80 },
        initial_delay: Micros::ZERO,
        timeout: Micros::secs(1),
        period: Micros::secs(1),
        success_threshold: 1,
        failure_threshold: 2,
        grace: None,
    }
}

fn probed(kinds: &[ProbeKind]) -> PodSpec {
    let mut pod = pod("a");
    for kind in kinds {
        let probes = &mut pod.containers[0].probes;
        let place = match kind {
            ProbeKind::Startup => &mut probes.startup,
            ProbeKind::Readiness => &mut probes.readiness,
            ProbeKind::Liveness => &mut probes.liveness,
        };
        *place = Some(Box::new(probe()));
    }
    pod
}

impl Node {
    fn set(&mut self, container: &str, kind: ProbeKind, well: bool) {
        let key = (container.to_owned(), kind);
        if well {
            self.answers.remove(&key);
        } else {
            self.answers.insert(key, Answer::Failure("no".to_owned()));
        }
    }

    fn records(&self, reason: &str) -> Vec<&Record> {
        let records = self.actions.iter().filter_map(|a| match a {
            Action::Record(record) => Some(record),
            _ => None,
        });
        records.filter(|r| r.reason == reason).collect()
    }

    fn asked(&self, kind: ProbeKind) -> usize {
        self.actions.iter().filter(|a| matches!(a, Action::Probe { kind: k, .. } if *k == kind)).count()
    }

    fn stops(&self) -> Vec<(Vec<String>, Micros)> {
        let stops = self.actions.iter().filter_map(|a| match a {
            Action::Pod { what: PodOp::StopContainers { stops, grace, .. }, .. } => {
                Some((stops.iter().map(|stop| stop.id.clone()).collect(), *grace))
            }
            _ => None,
        });
        stops.collect()
    }
}

fn shown(node: &Node) -> (bool, bool) {
    let view = node.view("a");
    (view.containers[0].started, view.containers[0].ready)
}

#[test]
fn a5_6c_a_failure_of_liveness_restarts_that_container_and_no_other() {
    let mut node = ready_node();
    let mut two = probed(&[ProbeKind::Liveness]);
    two.containers.push(ContainerSpec { name: "other".to_owned(), ..ContainerSpec::unknown("other") });
    two.containers[0].probes.liveness.as_mut().expect("one").grace = Some(Micros::secs(7));
    node.want(&[&two]);
    node.run(Micros::secs(30));
    assert_eq!((node.view("a").restarts(), node.stops().len()), (0, 0));
    assert!(node.asked(ProbeKind::Liveness) > 25);
    let old = node.view("a").containers[0].id.clone();
    node.set("main", ProbeKind::Liveness, false);
    node.run(Micros::millis(1_000));
    assert_eq!(node.stops().len(), 0, "one failure is not two");
    node.run(Micros::millis(1_000));
    node.set("main", ProbeKind::Liveness, true);
    assert_eq!(node.stops(), [(vec![old.clone()], Micros::secs(7))], "its own grace");
    let view = node.view("a");
    assert_eq!((view.containers[0].restarts, view.containers[1].restarts), (1, 0));
    assert_ne!(view.containers[0].id, old);
    assert_eq!(view.containers[0].last.as_ref().map(|exit| exit.code), Some(143));
    assert_eq!(view.phase, Phase::Running);
    let told = |reason| node.records(reason).iter().map(|r| (r.message.as_str(), r.warning)).collect::<Vec<_>>();
    assert_eq!(told("Unhealthy"), [("Liveness probe failed: no", true)]);
    assert_eq!(told("Killing"), [("Container main failed liveness probe, will be restarted", false)]);
    node.run(Micros::secs(600));
    assert_eq!((node.view("a").restarts(), node.stops().len()), (1, 1), "the new run is judged by its own answers");
}

#[test]
fn a4_7d_a5_1b_a_probes_grace_goes_before_the_pods() {
    for (pods, probes, given) in [(30, None, 30), (30, Some(60), 60), (0, None, 0), (30, Some(1), 1)] {
        let mut node = ready_node();
        let mut pod = probed(&[ProbeKind::Liveness]);
        pod.termination_grace = Micros::secs(pods);
        pod.containers[0].probes.liveness.as_mut().expect("one").grace = probes.map(Micros::secs);
        node.set("main", ProbeKind::Liveness, false);
        node.want(&[&pod]);
        node.run(Micros::secs(4));
        assert_eq!(node.stops()[0].1, Micros::secs(given), "{pods} {probes:?}");
    }
}

#[test]
fn a5_6c_it_is_run_again_however_it_ended_unless_nothing_is() {
    for (policy, restarts, phase, said) in [
        (RestartPolicy::Always, 1, Phase::Running, ", will be restarted"),
        (RestartPolicy::OnFailure, 1, Phase::Running, ", will be restarted"),
        (RestartPolicy::Never, 0, Phase::Failed, ""),
    ] {
        let mut node = ready_node();
        let mut pod = probed(&[ProbeKind::Startup]);
        pod.restart_policy = policy;
        node.set("main", ProbeKind::Startup, false);
        node.stop_code = if policy == RestartPolicy::Never { 143 } else { 0 };
        node.want(&[&pod]);
        for _ in 0..100 {
            node.run(Micros::millis(100));
            if !node.stops().is_empty() {
                node.set("main", ProbeKind::Startup, true);
            }
        }
        let view = node.view("a");
        assert_eq!((view.restarts(), view.phase), (restarts, phase), "{policy:?}");
        assert_eq!(node.records("Killing")[0].message, format!("Container main failed startup probe{said}"));
    }
}

#[test]
fn a5_3f_a_container_that_does_not_run_is_not_asked_and_not_ready() {
    let mut node = ready_node();
    node.want(&[&probed(&[ProbeKind::Readiness])]);
    node.run(Micros::secs(5));
    assert_eq!(shown(&node), (true, true));
    node.end("main", 1);
    node.run(Micros::secs(5));
    node.end("main", 1);
    assert_eq!(node.view("a").status_word(), "CrashLoopBackOff");
    let asked = node.asked(ProbeKind::Readiness);
    node.run(Micros::secs(5));
    assert_eq!((node.asked(ProbeKind::Readiness), shown(&node)), (asked, (false, false)));
    node.run(Micros::secs(20));
    assert_eq!(shown(&node), (true, true));
}

#[test]
fn a5_3_readiness_comes_and_goes_without_a_restart() {
    let mut node = ready_node();
    node.set("main", ProbeKind::Readiness, false);
    node.want(&[&probed(&[ProbeKind::Readiness])]);
    node.run(Micros::secs(20));
    assert_eq!(shown(&node), (true, false));
    let news = node.world.probe_news();
    node.set("main", ProbeKind::Readiness, true);
    node.run(Micros::secs(2));
    assert_eq!((shown(&node), node.world.probe_news()), ((true, true), news + 1));
    let view = node.view("a");
    let ready = view.conditions.iter().find(|c| c.kind == ConditionKind::Ready).expect("a condition");
    assert!(ready.holds && node.now.wall - ready.since <= Micros::secs(2), "{ready:?}");
    node.set("main", ProbeKind::Readiness, false);
    node.run(Micros::secs(3));
    assert_eq!(shown(&node), (true, false));
    assert_eq!((node.view("a").restarts(), node.stops().len()), (0, 0));
}

#[test]
fn a5_3c_a_pod_that_goes_is_not_killed_by_its_liveness_probe() {
    let mut node = ready_node();
    node.want(&[&probed(&[ProbeKind::Liveness, ProbeKind::Readiness])]);
    node.run(Micros::secs(11));
    node.fail.insert("remove_sandboxes", (0..4).map(|_| OpError { reason: "X".into(), message: "X".into() }).collect());
    node.answers.insert(("main".to_owned(), ProbeKind::Liveness), Answer::Failure("no".to_owned()));
    let asked = node.asked(ProbeKind::Liveness);
    node.want(&[]);
    node.run(Micros::secs(300));
    assert_eq!(node.asked(ProbeKind::Liveness), asked);
    assert_eq!(
        node.records("Killing").iter().map(|r| r.message.as_str()).collect::<Vec<_>>(),
        ["Stopping container main"]
    );
    assert_eq!(node.names(), Vec::<String>::new());
}

#[test]
fn a5_6c_a_pod_that_has_to_go_while_one_container_is_stopped_has_the_others_stopped_with_their_grace() {
    let mut node = ready_node();
    let mut two = probed(&[ProbeKind::Liveness]);
    two.containers.push(ContainerSpec { name: "other".to_owned(), ..ContainerSpec::unknown("other") });
    node.hold = Some("stop_containers");
    node.want(&[&two]);
    node.set("main", ProbeKind::Liveness, false);
    node.run(Micros::secs(4));
    let (uid, op) = node.held.pop().expect("a stop is under way");
    node.hold = None;
    node.want(&[]);
    assert!(node.actions.iter().any(|a| matches!(a, Action::Cancel { .. })), "the stop with its own grace is given up");
    let cancelled = OpError { reason: beelet_core::event::CANCELLED.to_owned(), message: String::new() };
    node.send(Event::Done { uid, op, result: Err(cancelled) });
    let stops = node.stops();
    assert_eq!((stops.len(), stops[1].0.len()), (2, 2), "both are told now: {stops:?}");
    assert!(stops[1].1 > Micros::secs(29), "{stops:?}");
    assert_eq!(node.records("FailedKillPod").len(), 0);
    assert_eq!(node.names(), Vec::<String>::new());
}

#[test]
fn a5_nobody_is_asked_beside_a_kubelet() {
    let mut owner = ready_node();
    owner.want(&[&probed(&[ProbeKind::Liveness, ProbeKind::Readiness])]);
    let mut node = Node::new(NodeConfig { beside: true, ..NodeConfig::default() });
    node.facts = owner.facts.clone();
    node.relist();
    node.run(Micros::secs(30));
    assert_eq!(node.actions.iter().filter(|a| matches!(a, Action::Probe { .. })).count(), 0);
    assert!(node.view("a").containers[0].ready);
}

#[test]
fn a4_5e_those_after_a_sidecar_wait_for_its_startup_probe_and_one_that_fails_is_restarted() {
    let mut node = ready_node();
    let mut spec = pod("a");
    let always = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
    let mut proxy = ContainerSpec { name: "proxy".to_owned(), restart: always, ..spec.containers[0].clone() };
    proxy.probes.startup = Some(Box::new(Probe { failure_threshold: 5, ..probe() }));
    spec.init_containers = vec![proxy];
    node.set("proxy", ProbeKind::Startup, false);
    node.want(&[&spec]);
    node.run(Micros::secs(3));
    assert_eq!(node.running(), ["proxy"]);
    node.run(Micros::secs(4));
    assert_eq!((node.view("a").containers[0].restarts, node.running()), (1, vec!["proxy"]));
    node.set("proxy", ProbeKind::Startup, true);
    node.run(Micros::secs(3));
    assert_eq!(node.running(), ["proxy", "main"]);
}
