//! Which containers run again, and in which order they go.
//!
//! Problem: whether a container that ended is run again is said by the pod, by the container and by rules for exit codes, and an init
//! container that never ends, a *sidecar*, is neither started nor stopped like the others. Approach: one question, [`runs_again`],
//! asked by whoever starts, shows or counts containers; and one order of stopping, [`stage`].
//!
//! Terms: a *sidecar* is an init container with `restartPolicy: Always`; the *main* containers are those of `spec.containers`.
//!
//! Rules: pkg/api/v1/pod/util.go, `ContainerShouldRestart` and `FindMatchingContainerRestartRule`;
//! pkg/kubelet/kuberuntime/kuberuntime_termination_order.go (release 1.36): main containers are told to stop together, then the
//! sidecars one by one, the last that was started first.

use serde::{Deserialize, Serialize};

use crate::spec::{ContainerSpec, PodSpec, RestartPolicy};

/// What a container says of its own restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRestart {
    /// `restartPolicy`: leads over the pod's.
    pub policy: RestartPolicy,
    /// `restartPolicyRules`, in order; one that matches leads over both.
    pub rules: Vec<RestartRule>,
}

/// `restartPolicyRules[]` with the action `Restart`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartRule {
    /// `exitCodes.operator: In`; else `NotIn`.
    pub within: bool,
    /// `exitCodes.values`.
    pub codes: Vec<i32>,
}

/// Whether it is an init container that runs as long as the pod.
#[must_use]
pub fn is_sidecar(pod: &PodSpec, container: &ContainerSpec) -> bool {
    is_init(pod, container) && container.restart.as_ref().is_some_and(|r| r.policy == RestartPolicy::Always)
}

fn is_init(pod: &PodSpec, container: &ContainerSpec) -> bool {
    pod.init_containers.iter().any(|c| c.name == container.name)
}

/// What counts for a container without a look at how it ended.
#[must_use]
pub fn policy(pod: &PodSpec, container: &ContainerSpec) -> RestartPolicy {
    container.restart.as_ref().map_or(pod.restart_policy, |r| r.policy)
}

/// Whether a container that ended with this code is run again. An init container that ended well never is, unless it is a sidecar.
#[must_use]
pub fn runs_again(pod: &PodSpec, container: &ContainerSpec, code: i32) -> bool {
    if is_sidecar(pod, container) {
        return true;
    }
    let matches = |rule: &RestartRule| rule.codes.contains(&code) == rule.within;
    if container.restart.as_ref().is_some_and(|r| r.rules.iter().any(matches)) {
        return true;
    }
    match policy(pod, container) {
        RestartPolicy::Always => code != 0 || !is_init(pod, container),
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

/// In how many stages a pod's containers are told to stop: first all but the sidecars, then each of those.
#[must_use]
pub fn stages(pod: &PodSpec) -> usize {
    1 + pod.init_containers.iter().filter(|c| is_sidecar(pod, c)).count()
}

/// In which of them a container is; one that the spec does not know is in the first.
#[must_use]
pub fn stage(pod: &PodSpec, name: &str) -> usize {
    let sidecars = pod.init_containers.iter().rev().filter(|c| is_sidecar(pod, c));
    sidecars.map(|c| c.name.as_str()).position(|sidecar| sidecar == name).map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(name: &str, policy: Option<RestartPolicy>, rules: &[(bool, &[i32])]) -> ContainerSpec {
        let rules =
            rules.iter().map(|(within, codes)| RestartRule { within: *within, codes: codes.to_vec() }).collect();
        ContainerSpec {
            restart: policy.map(|policy| ContainerRestart { policy, rules }),
            ..ContainerSpec::unknown(name)
        }
    }

    #[test]
    fn a4_8b_a4_8d_the_containers_word_leads_over_the_pods_and_a_rule_over_both() {
        use RestartPolicy::{Always, Never, OnFailure};
        let rule: &[(bool, &[i32])] = &[(true, &[42, 43])];
        let all_but: &[(bool, &[i32])] = &[(false, &[0, 1])];
        // Pod, container, rules; whether code 0, 1 and 42 run again.
        for (pod, own, rules, wanted) in [
            (Always, None, &[][..], [true, true, true]),
            (OnFailure, None, &[], [false, true, true]),
            (Never, None, &[], [false, false, false]),
            (Never, Some(Always), &[], [true, true, true]),
            (Always, Some(Never), &[], [false, false, false]),
            (Always, Some(OnFailure), &[], [false, true, true]),
            (Always, Some(Never), rule, [false, false, true]),
            (Never, Some(OnFailure), rule, [false, true, true]),
            (Never, Some(Never), all_but, [false, false, true]),
        ] {
            let one = container("c", own, rules);
            let spec = PodSpec { restart_policy: pod, containers: vec![one.clone()], ..PodSpec::unknown("u".into()) };
            assert_eq!([0, 1, 42].map(|code| runs_again(&spec, &one, code)), wanted, "{pod:?} {own:?} {rules:?}");
        }
    }

    #[test]
    fn a4_5f_a4_8c_an_init_container_that_ended_well_is_over_and_a_sidecar_never_is() {
        use RestartPolicy::{Always, Never, OnFailure};
        for (pod, own, wanted) in [
            (Always, None, [false, true]),
            (OnFailure, None, [false, true]),
            (Never, None, [false, false]),
            (Never, Some(Always), [true, true]),
            (Always, Some(Never), [false, false]),
        ] {
            let one = container("i", own, &[]);
            let spec =
                PodSpec { restart_policy: pod, init_containers: vec![one.clone()], ..PodSpec::unknown("u".into()) };
            assert_eq!([0, 1].map(|code| runs_again(&spec, &one, code)), wanted, "{pod:?} {own:?}");
            assert_eq!(is_sidecar(&spec, &one), own == Some(Always));
        }
    }

    #[test]
    fn a4_5g_sidecars_go_last_and_the_last_first() {
        let [a, init, b] = [("a", Some(RestartPolicy::Always)), ("init", None), ("b", Some(RestartPolicy::Always))]
            .map(|(name, own)| container(name, own, &[]));
        let spec = PodSpec {
            init_containers: vec![a, init, b],
            containers: vec![container("main", None, &[])],
            ..PodSpec::unknown("u".into())
        };
        assert_eq!(["main", "unknown", "init", "b", "a"].map(|name| stage(&spec, name)), [0, 0, 0, 1, 2]);
        assert_eq!(stages(&spec), 3);
    }
}
