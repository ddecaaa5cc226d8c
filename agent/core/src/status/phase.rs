//! The phase of a pod.
//!
//! Rules: pkg/kubelet/kubelet_pods.go, `getPhase`; pkg/kubelet/status/status_manager.go, `mergePodStatus` (release 1.36): a pod that
//! beelet gave up is shown so when nothing of it runs any more, because others may take then what it held.

use super::container::{ContainerStatus, State};
use crate::pod::{Pod, PodState};
use crate::snapshot::Phase;

/// Phase, reason and message.
pub(crate) fn of(pod: &Pod, containers: &[ContainerStatus<'_>], runtime_down: Option<&str>) -> (Phase, String, String) {
    match &pod.state {
        PodState::Rejected { reason, message } => {
            return (Phase::Failed, reason.clone(), format!("Pod was rejected: {message}"));
        }
        PodState::Terminal(end) => return (end.phase, end.reason.clone(), end.message.clone()),
        PodState::Terminating { why, .. } | PodState::Cleaning { why } => {
            let may_be_told = pod.shown.is_over() || !containers.iter().any(ContainerStatus::is_running);
            if let Some(end) = why.end().filter(|_| may_be_told) {
                return (end.phase, end.reason.to_owned(), end.message.to_owned());
            }
        }
        _ => {}
    }
    let phase = match by_containers(containers, has_initialised(pod)) {
        // It ended, and now goes for another reason.
        _ if pod.shown.is_over() && !pod.state.is_live() => pod.shown.phase,
        // Its end is told once it is decided: before, it may go for another reason yet.
        Phase::Succeeded | Phase::Failed if pod.state.is_live() && !pod.foreign => {
            if has_initialised(pod) {
                Phase::Running
            } else {
                Phase::Pending
            }
        }
        phase => phase,
    };
    let trouble = pod.trouble.as_ref().map(|t| format!("{}: {}", t.reason, t.message));
    // A pod that waits for the runtime says so.
    let down = runtime_down.filter(|_| phase == Phase::Pending).map(|why| format!("container runtime is down: {why}"));
    (phase, String::new(), trouble.or(down).unwrap_or_default())
}

/// An ordinary container was made in the sandbox that the pod has now.
fn has_initialised(pod: &Pod) -> bool {
    let sandbox = pod.ready_sandbox().map(|s| s.id.as_str());
    let made = |name: &str| pod.containers.iter().any(|c| c.name == name && Some(c.sandbox_id.as_str()) == sandbox);
    pod.spec.containers.iter().any(|c| made(&c.name))
}

fn by_containers(containers: &[ContainerStatus<'_>], initialised: bool) -> Phase {
    let (inits, mains) = containers.iter().partition::<Vec<_>, _>(|c| c.init);
    let (sidecars, inits) = inits.into_iter().partition::<Vec<_>, _>(|c| c.sidecar);
    let never_ended = |c: &&ContainerStatus<'_>| c.end().is_none();
    let failed = |c: &&ContainerStatus<'_>| c.end().is_some_and(|exit| exit.code != 0) && !c.again;
    if inits.iter().copied().any(|c| failed(&c)) {
        return Phase::Failed;
    }
    let starting = |c: &&ContainerStatus<'_>| match c.state {
        State::Running { .. } => !c.started,
        State::Waiting { .. } => c.last.is_none(),
        State::Ended(_) => false,
    };
    let waits = |c: &&ContainerStatus<'_>| c.is_waiting() && c.last.is_none();
    let initialising = inits.iter().copied().any(|c| never_ended(&c))
        || !initialised && sidecars.iter().copied().any(|c| starting(&c));
    if initialising || sidecars.iter().chain(&mains).copied().any(|c| waits(&c)) {
        return Phase::Pending;
    }
    if sidecars.iter().chain(&mains).any(|c| c.is_running()) {
        return Phase::Running;
    }
    let ends: Vec<_> = mains.iter().filter_map(|c| Some((c, c.end()?))).collect();
    if ends.is_empty() {
        return Phase::Pending;
    }
    if ends.iter().any(|(c, _)| c.again) {
        return Phase::Running;
    }
    if ends.iter().all(|(_, exit)| exit.code == 0) { Phase::Succeeded } else { Phase::Failed }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::event::Exit;
    use crate::spec::ContainerSpec;
    use crate::units::Micros;

    #[derive(Clone, Copy)]
    enum Is {
        /// Waits for its first start.
        New,
        /// Runs, and has started.
        Runs,
        /// Runs, and its startup probe has not said yes.
        Starts,
        /// Ended with this code, and stays so.
        Over(i32),
        /// Ended with this code, and is run again.
        Again(i32),
        /// The same, and waits for that.
        Waits(i32),
    }
    use Is::{Again, New, Over, Runs, Starts, Waits};

    fn exit(code: i32) -> Exit {
        Exit { started: Micros(1), finished: Micros(2), code, reason: String::new(), message: String::new() }
    }

    fn status(spec: &ContainerSpec, (init, sidecar): (bool, bool), is: Is) -> ContainerStatus<'_> {
        let waiting = State::Waiting { reason: "".into(), message: "".into() };
        let (state, last, again) = match is {
            New => (waiting, None, false),
            Runs | Starts => (State::Running { started: Micros(1) }, None, false),
            Over(code) => (State::Ended(Cow::Owned(exit(code))), None, false),
            Again(code) => (State::Ended(Cow::Owned(exit(code))), None, true),
            Waits(code) => (waiting, Some(Cow::Owned(exit(code))), true),
        };
        let started = matches!(is, Runs);
        ContainerStatus {
            spec,
            init,
            sidecar,
            run: None,
            state,
            last,
            last_id: "",
            started,
            ready: started,
            restarts: 0,
            again,
        }
    }

    #[test]
    fn a4_1a_the_phase_follows_from_the_containers_as_in_get_phase() {
        use Phase::{Failed, Pending, Running, Succeeded};
        // Init containers, sidecars, the others; whether one of the others was made in this sandbox.
        for (name, inits, sidecars, mains, initialised, phase) in [
            ("new", &[][..], &[][..], &[New][..], false, Pending),
            ("it runs", &[], &[], &[Runs], true, Running),
            ("one of two waits for its first start", &[], &[], &[Runs, New], true, Pending),
            ("one of two is over", &[], &[], &[Runs, Over(1)], true, Running),
            ("one is over, one waits for its first start", &[], &[], &[Over(0), New], true, Pending),
            ("one of two crashed", &[], &[], &[Runs, Waits(1)], true, Running),
            ("all crashed", &[], &[], &[Waits(1), Again(0)], true, Running),
            ("all is well", &[], &[], &[Over(0), Over(0)], true, Succeeded),
            ("one failed", &[], &[], &[Over(0), Over(3)], true, Failed),
            ("one failed, one is run again", &[], &[], &[Over(3), Again(1)], true, Running),
            ("it initialises", &[Runs], &[], &[New], false, Pending),
            ("initialised", &[Over(0)], &[], &[New], false, Pending),
            ("initialised, it runs", &[Over(0)], &[], &[Runs], true, Running),
            ("its init container crashed", &[Waits(1)], &[], &[New], false, Pending),
            ("its init container failed", &[Over(1), New], &[], &[New], false, Failed),
            ("its sidecar starts", &[], &[Starts], &[New], false, Pending),
            ("its sidecar starts again", &[], &[Starts], &[Runs], true, Running),
            ("its sidecar waits for its first start", &[], &[New], &[Runs], true, Pending),
            ("its sidecar crashed", &[], &[Waits(1)], &[Runs], true, Running),
            ("only its sidecar runs", &[], &[Runs], &[Over(0)], true, Running),
            ("its sidecar is over, too", &[], &[Over(143)], &[Over(0)], true, Succeeded),
        ] {
            let spec = ContainerSpec::unknown("c");
            let of = |list: &[Is], role| list.iter().map(|is| status(&spec, role, *is)).collect::<Vec<_>>();
            let all = [of(inits, (true, false)), of(sidecars, (true, true)), of(mains, (false, false))].concat();
            assert_eq!(by_containers(&all, initialised), phase, "{name}");
        }
    }
}
