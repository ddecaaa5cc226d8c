//! An agent that dies at each single action of a pod's life.
//!
//! Problem: an agent may be killed between any two of its actions, and one that was told to the runtime may have been done, not done, or
//! be done later; random deaths meet each of these cases only now and then. Approach: a pod's life is run once to its end and its *acts*
//! are counted ([`crate::node::fate`]); then it is run anew for each of them and each [`Fate`], with an agent that dies there and another
//! one that goes on. In the end all must be as it is without the death, and no invariant may break on the way.

use std::sync::Arc;

use beelet_core::restart::ContainerRestart;
use beelet_core::spec::{PodSpec, RestartPolicy};
use beelet_core::units::{Bytes, Micros, MilliCpu};

use crate::node::fate::Fate;
use crate::scenario::{Disturbance, bare_container, bare_pod};
use crate::workload::Curve;
use crate::{Failure, Scenario, Sim};

/// What became of the acts.
pub const FATES: [Fate; 4] =
    [Fate::NotDone, Fate::Unheard, Fate::Late(Micros::millis(300)), Fate::Late(Micros::millis(900))];

/// What was run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Acts of the undisturbed life.
    pub acts: u64,
    /// Lives with deaths.
    pub runs: u64,
}

/// The names of all lives.
pub const LIVES: [&str; 9] =
    ["plain", "sidecars", "job", "failing", "crashing", "deleted", "stubborn", "evicted", "resized"];

/// A pod's life by name: what is wanted, and when.
///
/// # Panics
/// For a name that is not in [`LIVES`].
#[must_use]
pub fn life(name: &str) -> Scenario {
    let holds = |mib| Curve::Idle { holds: Bytes::mib(mib) };
    let second = Micros::secs(1);
    let mut pod = bare_pod(name);
    pod.termination_grace = Micros::secs(5);
    pod.containers = vec![bare_container("main", &holds(20))];
    let init = |takes| bare_container("init", &Curve::Job { takes });
    let mut sidecar = bare_container("sidecar", &holds(10));
    sidecar.restart = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
    let mut later: Vec<(Micros, Vec<PodSpec>)> = Vec::new();
    let ending = |code, policy: RestartPolicy, pod: &mut PodSpec| {
        let after = Micros::secs(3);
        let curve = if code == 0 { Curve::Job { takes: after } } else { Curve::Crash { after, code } };
        pod.containers = vec![bare_container("main", &curve)];
        pod.restart_policy = policy;
    };
    match name {
        "plain" => {}
        "sidecars" => pod.init_containers = vec![sidecar, init(second)],
        "job" => {
            ending(0, RestartPolicy::OnFailure, &mut pod);
            pod.init_containers = vec![sidecar, init(second)];
        }
        "failing" => {
            ending(1, RestartPolicy::Never, &mut pod);
            pod.init_containers = vec![init(second)];
        }
        "crashing" => ending(2, RestartPolicy::Always, &mut pod),
        "deleted" => {
            pod.init_containers = vec![sidecar, init(second)];
            later.push((Micros::secs(12), Vec::new()));
        }
        "stubborn" => {
            // Wanted again while it goes.
            pod.containers.push(bare_container("second", &holds(30)));
            later.push((Micros::secs(12), Vec::new()));
            later.push((Micros::secs(12) + Micros::millis(300), vec![pod.clone()]));
        }
        "evicted" => {
            let leak = Curve::Leak { after: Micros::secs(2), rate: Bytes::mib(200) };
            pod.containers = vec![bare_container("main", &leak)];
        }
        "resized" => {
            let given = |pod: &mut PodSpec, cpu, mib| {
                let resources = &mut pod.containers[0].resources;
                resources.cpu_request = Some(MilliCpu(cpu));
                resources.memory_request = Some(Bytes::mib(mib));
                resources.memory_limit = Some(Bytes::mib(2 * mib));
            };
            given(&mut pod, 100, 100);
            let mut more = pod.clone();
            given(&mut more, 300, 200);
            let mut less = pod.clone();
            given(&mut less, 50, 60);
            later.extend([(Micros::secs(8), vec![more]), (Micros::secs(16), vec![less])]);
        }
        other => panic!("no such life: {other}"),
    }
    let mut scenario = Scenario::quiet(1);
    scenario.node.max_backoff = Micros::secs(10);
    let want = |pods: Vec<PodSpec>| Disturbance::Want(pods.into_iter().map(Arc::new).collect(), Vec::new());
    let beside = (name == "evicted").then(|| {
        let mut beside = bare_pod("beside");
        beside.containers = vec![bare_container("main", &holds(50))];
        beside
    });
    scenario.script = vec![(Micros::millis(50), want(std::iter::once(pod).chain(beside).collect()))];
    scenario.script.extend(later.into_iter().map(|(at, pods)| (at, want(pods))));
    scenario.disturbed = Micros::secs(40);
    scenario.settle = Micros::secs(30);
    scenario
}

/// Runs a life with an agent that dies at each act; with `twice` also with a second one that dies at each act that it has left.
///
/// # Errors
/// The first that breaks an invariant, or ends otherwise than the undisturbed life.
pub fn all(name: &str, twice: bool) -> Result<Ran, Box<Failure>> {
    let scenario = life(name);
    let mut calm = Sim::new(scenario.clone());
    calm.run()?;
    let (wanted, mut ran) = (seen(name, calm.rest()), Ran { acts: calm.acts(), runs: 0 });
    let mut run = |deaths: &[(u64, Fate)]| {
        let mut sim = Sim::new(scenario.clone());
        sim.die(deaths);
        ran.runs += 1;
        sim.run()?;
        let rest = seen(name, sim.rest());
        if rest != wanted {
            let what = format!("{name} with deaths at {deaths:?} ends with {rest:#?} and not with {wanted:#?}");
            return Err(sim.broken("invariant_recovery_ends_alike", what));
        }
        Ok(sim.spared() == 0)
    };
    for first in 1..=calm.acts() {
        for fate in FATES {
            run(&[(first, fate)])?;
            let mut second = 1;
            // Until the second agent lives to the end.
            while twice && second <= 2 * calm.acts() && run(&[(first, fate), (second, Fate::Unheard)])? {
                run(&[(first, fate), (second, Fate::NotDone)])?;
                second += 1;
            }
        }
    }
    Ok(ran)
}

/// A new agent cannot know that a pod which is wanted was going: where one is wanted again, its stopped containers may run again in it
/// instead of a new one. Nor that a pod was killed to make room, as a kill does not wait for its note: the pod runs on and is evicted
/// again. So runs are not counted there.
fn seen(name: &str, rest: Vec<String>) -> Vec<String> {
    if !["stubborn", "evicted"].contains(&name) {
        return rest;
    }
    let running = rest.iter().filter(|line| !line.ends_with("runs: false"));
    running.map(|line| line.split(['#', ',']).next().unwrap_or_default().to_owned()).collect()
}

/// Whether the undisturbed life ends as its name says: nothing is shown by lives that do nothing.
#[must_use]
pub fn ends_of(name: &str) -> Vec<String> {
    let mut sim = Sim::new(life(name));
    let _ = sim.run();
    sim.rest()
}
