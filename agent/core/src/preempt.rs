//! Room for a critical pod.
//!
//! Problem: a pod without which the node does not work must run also where others took the room before it. Approach: as the kubelet
//! (pkg/kubelet/preemption/preemption.go, release 1.36): if nothing but resources is short, pods that may be preempted go until what they
//! asked for covers it: as few as can be, Guaranteed ones only for what all others together do not cover, BestEffort ones for the rest.
//! The critical pod waits until they are gone, and nobody else gets that room meanwhile.
//!
//! Terms: *distance* of a pod from what is needed: the sum, over the resources, of the square of the share that it would leave
//! uncovered; zero covers all.
//!
//! Properties (tested): what goes covers what is needed, and without its last choice of each class would not; nobody goes if all together
//! would not do; no critical pod goes for one of the same priority.

use std::borrow::Cow;

use crate::allocate::{self, Insufficient};
use crate::pod::Pod;
use crate::security::Refusal;
use crate::spec::{PodSpec, PodUid, QosClass};
use crate::units::Now;
use crate::why::Why;
use crate::world::World;

/// `status.message` of a pod that went, and of the event.
const MESSAGE: &str = "Preempted in order to admit critical pod";
/// `status.reason`, and the event.
const REASON: &str = "Preempting";
/// The message of its condition `DisruptionTarget`.
const DISRUPTION: &str = "Pod was preempted by Kubelet to accommodate a critical pod.";
/// Shares are in parts of this.
const WHOLE: u128 = 1 << 32;

/// Nobody can make room.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no set of running pods found to reclaim resources: [{}]", self.text())]
pub struct NoRoom {
    /// What nobody could free.
    pub needs: Vec<Need>,
}

impl NoRoom {
    fn text(&self) -> String {
        self.needs.iter().map(|need| format!("(res: {}, q: {}), ", need.resource, need.amount)).collect()
    }
}

/// So much of a resource has to be freed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// `pods`, `cpu` (in millicores), `memory` or `ephemeral-storage` (in bytes).
    pub resource: &'static str,
    /// How much, more than zero.
    pub amount: u64,
}

impl Need {
    fn of(short: &Insufficient) -> Self {
        let amount = short.requested.saturating_add(short.used).saturating_sub(short.capacity);
        Self { resource: short.resource, amount }
    }
}

fn request(pod: &PodSpec, resource: &str) -> u64 {
    match resource {
        "cpu" => allocate::pod_requests(pod).cpu.get(),
        "memory" => allocate::pod_requests(pod).memory.get(),
        "ephemeral-storage" => allocate::pod_storage_request(pod).get(),
        _ => 1,
    }
}

/// What is still needed when these are gone.
fn left(needs: &[Need], gone: &[&PodSpec]) -> Vec<Need> {
    let after = |need: &Need| {
        let freed = gone.iter().map(|pod| request(pod, need.resource)).fold(0, u64::saturating_add);
        Need { amount: need.amount.saturating_sub(freed), ..*need }
    };
    needs.iter().map(after).filter(|need| need.amount > 0).collect()
}

fn distance(needs: &[Need], pod: &PodSpec) -> u128 {
    let of = |need: &Need| {
        let left = need.amount.saturating_sub(request(pod, need.resource));
        (u128::from(left) * WHOLE / u128::from(need.amount.max(1))).pow(2)
    };
    needs.iter().map(of).sum()
}

/// The pods of one class that cover it: always the nearest next, of two alike the one that asks for less.
fn nearest<'a>(pods: &[&'a PodSpec], needs: Vec<Need>) -> Result<Vec<&'a PodSpec>, NoRoom> {
    let (mut pods, mut needs, mut chosen) = (pods.to_vec(), needs, Vec::new());
    while !needs.is_empty() {
        let key = |pod: &PodSpec| (distance(&needs, pod), request(pod, "memory"), request(pod, "cpu"));
        let Some(at) = (0..pods.len()).min_by_key(|at| key(pods[*at])) else { return Err(NoRoom { needs }) };
        let pod = pods.remove(at);
        needs = left(&needs, &[pod]);
        chosen.push(pod);
    }
    Ok(chosen)
}

/// Who goes for that pod, so that what is short is there; `pods` are those that run and are not on their way out.
///
/// # Errors
/// All of them together would not do.
pub fn choose<'a>(
    preemptor: &PodSpec,
    pods: &[&'a PodSpec],
    short: &[Insufficient],
) -> Result<Vec<&'a PodSpec>, NoRoom> {
    let may_go = |pod: &PodSpec| preemptor.is_critical() && !pod.is_critical() || preemptor.priority > pod.priority;
    let of =
        |class| -> Vec<&'a PodSpec> { pods.iter().copied().filter(|pod| may_go(pod) && pod.qos() == class).collect() };
    let [best_effort, burstable, guaranteed] =
        [QosClass::BestEffort, QosClass::Burstable, QosClass::Guaranteed].map(of);
    let needs: Vec<Need> = short.iter().map(Need::of).filter(|need| need.amount > 0).collect();
    let beyond = left(&needs, &[&best_effort[..], &burstable, &guaranteed].concat());
    if !beyond.is_empty() {
        return Err(NoRoom { needs: beyond });
    }
    let guaranteed = nearest(&guaranteed, left(&needs, &[&best_effort[..], &burstable].concat()))?;
    let burstable = nearest(&burstable, left(&needs, &[&best_effort[..], &guaranteed].concat()))?;
    let best_effort = nearest(&best_effort, left(&needs, &[&burstable[..], &guaranteed].concat()))?;
    Ok([best_effort, burstable, guaranteed].concat())
}

impl World {
    /// Sends away whom a critical pod needs the room of, if that is not on its way already; it waits until they are gone. Else why it is
    /// turned away.
    pub(crate) fn make_room(&mut self, uid: &PodUid, now: Now) -> Option<Refusal> {
        let pod = self.pods.get(uid)?;
        let (spec, others) = (pod.spec.clone(), self.beside_of(uid));
        let stays = |other: &&Cow<'_, PodSpec>| self.pods.get(&other.uid).is_some_and(|pod| pod.state.is_live());
        let staying: Vec<&PodSpec> = others.iter().filter(stays).map(AsRef::as_ref).collect();
        let short = allocate::short(&self.config, staying.iter().copied(), &spec);
        let chosen = match choose(&spec, &staying, &short) {
            Ok(chosen) => chosen,
            Err(error) => {
                let message = format!(
                    "Unexpected error while attempting to recover from admission failure: preemption: error finding a set of pods to \
                     preempt: {error}"
                );
                return Some(Refusal::new("UnexpectedAdmissionError", message));
            }
        };
        let going: Vec<(PodUid, String)> = chosen.iter().map(|pod| (pod.uid.clone(), pod.full_name())).collect();
        if let Some(pod) = self.pods.get_mut(uid) {
            pod.claims = true;
        }
        if going.is_empty() {
            return None;
        }
        let names: Vec<&str> = going.iter().map(|(_, name)| name.as_str()).collect();
        let resources: Vec<&str> = short.iter().map(|short| short.resource).collect();
        let message = format!("Short of {}: preempting {}", resources.join(", "), names.join(", "));
        self.say(uid, None, now, false, "MakingRoom", message);
        for (victim, _) in &going {
            let why = Why::Failed {
                reason: REASON.to_owned(),
                message: MESSAGE.to_owned(),
                grace: None,
                disruption: Some(DISRUPTION.to_owned()),
            };
            let Some(next) = self.pods.get(victim).map(|pod: &Pod| pod.terminating(why, now)) else { continue };
            self.go(victim, next, now);
            self.say(victim, None, now, true, REASON, MESSAGE.to_owned());
        }
        // Those before it in this round were planned already.
        self.plan_some(now, &|other, _| going.iter().any(|(victim, _)| victim == other));
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::spec::{CRITICAL_PRIORITY, ContainerSpec, Resources, StorageResources};
    use crate::units::{Bytes, MilliCpu};

    /// A pod that asks for so many millicores and bytes; with `G` for a name's beginning it is Guaranteed.
    fn pod(name: &str, cpu: u64, memory: u64) -> PodSpec {
        let (cpu, memory) = (Some(MilliCpu(cpu)).filter(|_| cpu > 0), Some(Bytes(memory)).filter(|_| memory > 0));
        let limited = name.starts_with('G');
        let resources = Resources {
            cpu_request: cpu,
            memory_request: memory,
            cpu_limit: cpu.filter(|_| limited),
            memory_limit: memory.filter(|_| limited),
        };
        PodSpec {
            name: name.to_owned(),
            containers: vec![ContainerSpec { resources, ..ContainerSpec::unknown("main") }],
            ..PodSpec::unknown(name.into())
        }
    }

    fn critical() -> PodSpec {
        PodSpec { priority: CRITICAL_PRIORITY, ..pod("critical", 0, 0) }
    }

    fn need(resource: &'static str, amount: u64) -> Insufficient {
        Insufficient { resource, requested: amount + 10, used: 90, capacity: 100 }
    }

    fn names(pods: &[PodSpec], short: &[Insufficient]) -> Result<Vec<String>, String> {
        let pods: Vec<&PodSpec> = pods.iter().collect();
        let chosen = choose(&critical(), &pods, short).map_err(|error| error.to_string())?;
        Ok(chosen.into_iter().map(|pod| pod.name.clone()).collect())
    }

    #[test]
    fn a4_17b_as_few_go_as_can_be_and_guaranteed_pods_last() {
        let all = || {
            vec![
                pod("e1", 0, 0),
                pod("b1", 100, 100),
                pod("b2", 300, 300),
                pod("b3", 300, 200),
                pod("G1", 200, 200),
                pod("G2", 600, 600),
            ]
        };
        for (short, expected) in [
            (vec![], vec![]),
            (vec![need("pods", 1)], vec!["e1"]),
            (vec![need("pods", 3)], vec!["e1", "b1", "b3"]),
            (vec![need("cpu", 100)], vec!["b1"]),
            (vec![need("cpu", 101)], vec!["b3"]),
            (vec![need("memory", 250)], vec!["b2"]),
            (vec![need("memory", 400)], vec!["b2", "b1"]),
            (vec![need("cpu", 250), need("memory", 250)], vec!["b2"]),
            // All Burstable pods have 600 of memory: what is beyond that a Guaranteed one gives, and then the others need give less.
            (vec![need("memory", 700)], vec!["b2", "b3", "G1"]),
            (vec![need("memory", 1_150)], vec!["b2", "b3", "b1", "G2"]),
        ] {
            let expected = expected.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(names(&all(), &short), Ok(expected), "{short:?}");
        }
        let said = "no set of running pods found to reclaim resources: [(res: memory, q: 601), ]";
        assert_eq!(names(&all(), &[need("cpu", 1), need("memory", 2_001)]), Err(said.to_owned()));
    }

    #[test]
    fn a4_17b_the_disk_counts_as_the_rest() {
        let storage = StorageResources { request: Some(Bytes(50)), limit: None };
        let with = |name: &str| {
            let mut pod = pod(name, 0, 0);
            pod.containers[0].storage = storage;
            pod
        };
        let chosen = names(&[pod("none", 0, 0), with("disk")], &[need("ephemeral-storage", 50)]);
        assert_eq!(chosen, Ok(vec!["disk".to_owned()]));
    }

    #[test]
    fn a4_17b_only_less_important_pods_go() {
        let of = |priority| PodSpec { priority, ..pod("p", 0, 100) };
        let may = |preemptor: i32, victim: i32| {
            let preemptor = PodSpec { priority: preemptor, ..critical() };
            choose(&preemptor, &[&of(victim)], &[need("memory", 1)]).is_ok()
        };
        assert!(may(CRITICAL_PRIORITY, 0) && may(CRITICAL_PRIORITY, CRITICAL_PRIORITY - 1));
        assert!(!may(CRITICAL_PRIORITY, CRITICAL_PRIORITY));
        assert!(may(CRITICAL_PRIORITY + 1_000, CRITICAL_PRIORITY));
    }

    proptest! {
        #[test]
        fn a4_17b_what_goes_covers_what_is_needed_and_no_more_than_needed(
            asks in prop::collection::vec((any::<bool>(), 0_u64..500, 0_u64..500), 0..12),
            cpu in 0_u64..3_000,
            memory in 0_u64..3_000,
        ) {
            let pods: Vec<PodSpec> = (0..).zip(&asks).map(|(i, (limited, cpu, memory))| {
                pod(&format!("{}{i}", if *limited { "G" } else { "b" }), *cpu, *memory)
            }).collect();
            let refs: Vec<&PodSpec> = pods.iter().collect();
            let short = [need("cpu", cpu), need("memory", memory)];
            let needs: Vec<Need> = short.iter().map(Need::of).filter(|need| need.amount > 0).collect();
            match choose(&critical(), &refs, &short) {
                Ok(chosen) => {
                    prop_assert!(left(&needs, &chosen).is_empty());
                    for class in [QosClass::BestEffort, QosClass::Burstable, QosClass::Guaranteed] {
                        // The last one of a class was needed.
                        if let Some(at) = chosen.iter().rposition(|pod| pod.qos() == class) {
                            let without = [&chosen[..at], &chosen[at + 1..]].concat();
                            let lower = refs.iter().copied().filter(|pod| pod.qos() > class);
                            let others: Vec<&PodSpec> = without.into_iter().filter(|pod| pod.qos() <= class).chain(lower).collect();
                            prop_assert!(!left(&needs, &others).is_empty(), "{class:?}");
                        }
                    }
                }
                Err(error) => prop_assert_eq!(left(&needs, &refs), error.needs),
            }
        }
    }
}
