//! What came to scenarios later: of numbers of their own, so that the other half of the seeds is what it was.
//!
//! Containers with restart policies and rules of their own, jobs of some milliseconds, sidecars with probes; sandboxes and containers
//! that vanish; pods that are deleted while they start, and come back.

use std::sync::Arc;

use beelet_core::restart::{self, ContainerRestart, RestartRule};
use beelet_core::spec::{PodSpec, RestartPolicy};
use beelet_core::units::Micros;

use super::{Disturbance, Scenario, probe};
use crate::rng::Rng;
use crate::workload::Curve;

pub(super) fn add(rng: &mut Rng, scenario: &mut Scenario) {
    for (_, what) in &mut scenario.script {
        let Disturbance::Want(pods, _) = what else { continue };
        pods.iter_mut().for_each(|pod| vary(scenario.seed, Arc::make_mut(pod)));
    }
    let mut added = hasty(rng, &scenario.script);
    for _ in 0..rng.range(0, 3) {
        let at = Micros(rng.range(1_000_000, scenario.disturbed.get()));
        added.push((at, if rng.chance(500) { Disturbance::VanishSandbox } else { Disturbance::VanishContainer }));
    }
    scenario.script.extend(added);
    scenario.script.sort_by_key(|(at, _)| *at);
}

/// The same for each wish for a pod.
fn vary(seed: u64, pod: &mut PodSpec) {
    let number = pod.uid.as_str().bytes().fold(seed, |n, b| n.wrapping_mul(37).wrapping_add(u64::from(b)));
    let mut rng = Rng::new(number, 8);
    for container in &mut pod.containers {
        if rng.chance(120) {
            container.args = Curve::Job { takes: Micros::millis(rng.range(1, 300)) }.arguments();
        }
        if rng.chance(150) {
            let policy = [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never][rng.index(3)];
            let rule = RestartRule { within: rng.chance(500), codes: vec![1, 137] };
            let rules = rng.chance(500).then_some(rule).into_iter().collect();
            container.restart = Some(ContainerRestart { policy, rules });
        }
    }
    let sidecars: Vec<bool> = pod.init_containers.iter().map(|c| restart::is_sidecar(pod, c)).collect();
    for (container, sidecar) in pod.init_containers.iter_mut().zip(sidecars) {
        if sidecar {
            container.probes.startup = rng.chance(400).then(|| Box::new(probe(&mut rng)));
            container.probes.liveness = rng.chance(200).then(|| Box::new(probe(&mut rng)));
        } else if rng.chance(150) {
            let policy = if rng.chance(500) { RestartPolicy::OnFailure } else { RestartPolicy::Never };
            container.restart = Some(ContainerRestart { policy, rules: Vec::new() });
        }
    }
}

/// Some pods are not wanted any more while they start. Some of these come back.
fn hasty(rng: &mut Rng, script: &[(Micros, Disturbance)]) -> Vec<(Micros, Disturbance)> {
    let wishes: Vec<_> = script
        .iter()
        .filter_map(|(at, what)| match what {
            Disturbance::Want(pods, _) => Some((*at, pods)),
            _ => None,
        })
        .collect();
    let mut added = Vec::new();
    for (i, (at, pods)) in wishes.iter().enumerate() {
        let before = i.checked_sub(1).map_or(&[][..], |i| wishes[i].1.as_slice());
        let until = wishes.get(i + 1).map_or(Micros(u64::MAX), |(next, _)| *next);
        let Some(new) = pods.iter().find(|pod| before.iter().all(|other| other.uid != pod.uid)) else { continue };
        if !rng.chance(250) {
            continue;
        }
        let gone = *at + Micros::millis(rng.range(5, 900));
        let back = gone + Micros::millis(rng.range(5, 2_000));
        if gone < until {
            let rest = pods.iter().filter(|pod| pod.uid != new.uid).cloned().collect();
            added.push((gone, Disturbance::Want(rest, Vec::new())));
            if back < until && rng.chance(500) {
                added.push((back, Disturbance::Want((*pods).clone(), Vec::new())));
            }
        }
    }
    added
}
