//! Restart policies of a container's own, and sidecars: in which order they start and stop.

use super::*;

/// A pod with the sidecars `proxy` and `logs`, an ordinary init container between them, and `main`.
fn with_sidecars(policy: RestartPolicy) -> PodSpec {
    let mut spec = pod("a");
    spec.restart_policy = policy;
    let one = |name: &str| ContainerSpec { name: name.to_owned(), ..spec.containers[0].clone() };
    let always = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
    let sidecar = |name: &str| ContainerSpec { restart: always.clone(), ..one(name) };
    spec.init_containers = vec![sidecar("proxy"), one("init"), sidecar("logs")];
    spec
}

impl Node {
    /// The names of the containers that run.
    pub(super) fn running(&self) -> Vec<&str> {
        let running = |c: &&ContainerFact| matches!(c.state, ContainerFactState::Running { .. });
        self.facts.containers.iter().filter(running).map(|c| c.name.as_str()).collect()
    }

    /// What was told to stop, together by together. `names`: by id, from before.
    pub(super) fn told_to_stop(&self, names: &BTreeMap<String, String>) -> Vec<Vec<String>> {
        let of = |action: &Action| match action {
            Action::Pod { what: PodOp::StopContainers { stops, .. }, .. } => {
                Some(stops.iter().filter(|stop| stop.signal).map(|stop| names[&stop.id].clone()).collect())
            }
            _ => None,
        };
        self.actions.iter().filter_map(of).collect()
    }

    pub(super) fn by_id(&self) -> BTreeMap<String, String> {
        self.facts.containers.iter().map(|c| (c.id.clone(), c.name.clone())).collect()
    }
}

#[test]
fn a4_5d_sidecars_start_in_their_place_and_nobody_waits_for_their_end() {
    let mut node = ready_node();
    node.want(&[&with_sidecars(RestartPolicy::Always)]);
    assert_eq!(node.running(), ["proxy", "init"]);
    assert_eq!((node.view("a").phase, node.view("a").status_word().as_str()), (Phase::Pending, "PodInitializing"));
    // One that ends meanwhile is run again, while the other goes on.
    node.end("proxy", 0);
    node.run(Micros::secs(11));
    assert_eq!(node.running(), ["init", "proxy"]);
    node.end("init", 0);
    assert_eq!(node.running(), ["proxy", "logs", "main"]);
    assert_eq!(node.view("a").phase, Phase::Running);
    // The first restart is at once, the second after the back-off.
    node.end("logs", 1);
    node.end("logs", 1);
    let ready = |node: &Node| {
        let view = node.view("a");
        view.containers.iter().filter(|c| c.ready).map(|c| c.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ready(&node), ["proxy", "init", "main"]);
    node.run(Micros::secs(11));
    assert_eq!((node.running(), ready(&node).len()), (vec!["proxy", "main", "logs"], 4));
}

#[test]
fn a4_5g_sidecars_stop_after_the_others_the_last_first_and_keep_no_pod_alive() {
    let mut node = ready_node();
    let spec = with_sidecars(RestartPolicy::Never);
    node.want(&[&spec]);
    node.end("init", 0);
    let names = node.by_id();
    node.end("main", 0);
    assert_eq!(node.view("a").phase, Phase::Succeeded);
    assert_eq!(node.told_to_stop(&names), [["logs"], ["proxy"]]);

    let mut node = ready_node();
    node.want(&[&spec]);
    node.end("init", 0);
    let names = node.by_id();
    node.want(&[]);
    assert_eq!(node.told_to_stop(&names), [["main"], ["logs"], ["proxy"]]);
    assert!(node.facts.sandboxes.is_empty());
}

#[test]
fn a4_8b_a_containers_own_restart_policy_leads_over_the_pods() {
    let mut node = ready_node();
    let mut spec = pod("a");
    spec.restart_policy = RestartPolicy::Never;
    let rules = vec![RestartRule { within: true, codes: vec![42] }];
    spec.containers[0].restart = Some(ContainerRestart { policy: RestartPolicy::Never, rules });
    node.want(&[&spec]);
    node.end("main", 42);
    node.run(Micros::secs(11));
    assert_eq!((node.view("a").phase, node.view("a").restarts()), (Phase::Running, 1));
    node.end("main", 41);
    assert_eq!(node.view("a").phase, Phase::Failed);
}
