//! The conditions of a pod, with the time of their last change.
//!
//! Rules: pkg/kubelet/status/generate.go and status_manager.go (`updateLastTransitionTime`: the time is that of a change between True
//! and False; another reason or message keeps it), release 1.36. Which conditions there are, and in which order:
//! pkg/kubelet/kubelet_pods.go, `generateAPIPodStatus`.
//!
//! A pod that was found running has no earlier conditions: those that are True then have the time at which the facts say they became
//! so, so that a restart of the agent is no change.

use serde::{Deserialize, Serialize};

use super::container::{ContainerStatus, State};
use crate::pod::{Pod, PodState};
use crate::snapshot::Phase;
use crate::units::{Micros, Now};

/// Which condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ConditionKind {
    /// Changed resources wait, or cannot be had.
    PodResizePending,
    /// Changed resources are being applied.
    PodResizeInProgress,
    /// beelet ended it for the sake of others.
    DisruptionTarget,
    /// Its sandbox is up and has its network.
    PodReadyToStartContainers,
    /// Its init containers have done their work.
    Initialized,
    /// It may be given traffic.
    Ready,
    /// All its containers are ready.
    ContainersReady,
    /// It has a node.
    PodScheduled,
    /// beelet's own: False of a pod that runs without a part of its manifest.
    AsWritten,
}

impl ConditionKind {
    /// As the API writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodResizePending => "PodResizePending",
            Self::PodResizeInProgress => "PodResizeInProgress",
            Self::DisruptionTarget => "DisruptionTarget",
            Self::PodReadyToStartContainers => "PodReadyToStartContainers",
            Self::Initialized => "Initialized",
            Self::Ready => "Ready",
            Self::ContainersReady => "ContainersReady",
            Self::PodScheduled => "PodScheduled",
            Self::AsWritten => "beelet.dev/AsWritten",
        }
    }
}

/// A condition of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCondition {
    /// `type`.
    pub kind: ConditionKind,
    /// `status`: True or False.
    pub holds: bool,
    /// `reason`, "" for none.
    pub reason: String,
    /// `message`, "" for none.
    pub message: String,
    /// `lastTransitionTime` (wall clock).
    pub since: Micros,
    /// `observedGeneration`: `metadata.generation` of the manifest that it is about, 0 for none.
    pub generation: i64,
}

/// A condition without its time.
type Finding = (ConditionKind, bool, &'static str, String);

/// The conditions now, with the times of those that have not changed since they were last shown.
pub(super) fn of(pod: &Pod, containers: &[ContainerStatus<'_>], phase: Phase, now: Now) -> Vec<PodCondition> {
    let before = &pod.shown.conditions;
    let generation = pod.spec.generation;
    let timed = |(kind, holds, reason, message): Finding| {
        let since = match before.iter().find(|c| c.kind == kind) {
            Some(known) if known.holds == holds => known.since,
            None if before.is_empty() && holds => found(pod, containers, kind).map_or(now.wall, |at| at.min(now.wall)),
            _ => now.wall,
        };
        PodCondition { kind, holds, reason: reason.to_owned(), message, since, generation }
    };
    findings(pod, containers, phase).into_iter().map(timed).collect()
}

/// When a condition that holds at the first look became true, by what the facts tell.
fn found(pod: &Pod, containers: &[ContainerStatus<'_>], kind: ConditionKind) -> Option<Micros> {
    let known = |at: &Micros| *at > Micros::ZERO;
    let sandbox = || pod.ready_sandbox().map(|s| s.created).filter(known);
    match kind {
        ConditionKind::PodScheduled | ConditionKind::AsWritten => Some(pod.since),
        ConditionKind::PodReadyToStartContainers => sandbox(),
        ConditionKind::Initialized => {
            let over = containers.iter().filter(|c| c.init).filter_map(|c| Some(c.end()?.finished));
            over.filter(known).max().or_else(sandbox).or(Some(pod.since))
        }
        ConditionKind::Ready | ConditionKind::ContainersReady => {
            let started = containers.iter().filter_map(|c| match c.state {
                State::Running { started } => Some(started),
                _ => None,
            });
            started.filter(known).max()
        }
        _ => None,
    }
}

fn findings(pod: &Pod, containers: &[ContainerStatus<'_>], phase: Phase) -> Vec<Finding> {
    use ConditionKind as Kind;
    let mut all = Vec::with_capacity(9);
    // One that was turned away has none.
    if !matches!(pod.state, PodState::Rejected { .. }) {
        all.extend(resize(pod, phase));
        all.extend(disruption(pod, phase));
        all.push((Kind::PodReadyToStartContainers, has_sandbox(pod), "", String::new()));
        all.push(initialised(containers, phase));
        let (ready, reason, message) = containers_ready(containers, phase);
        let gates = gates(pod);
        all.push(match &gates {
            Some(message) if ready => (Kind::Ready, false, "ReadinessGatesNotReady", message.clone()),
            _ => (Kind::Ready, ready, reason, message.clone()),
        });
        all.push((Kind::ContainersReady, ready, reason, message));
        all.push((Kind::PodScheduled, true, "", String::new()));
    }
    if !pod.spec.left_out.is_empty() {
        all.push((Kind::AsWritten, false, "FieldsLeftOut", pod.spec.left_out.join("; ")));
    }
    all
}

/// One that goes is resized no more.
fn resize(pod: &Pod, phase: Phase) -> Option<Finding> {
    if pod.resize.is_empty() || matches!(phase, Phase::Succeeded | Phase::Failed) {
        return None;
    }
    let (word, message) = pod.resize.split_once(": ").unwrap_or((&pod.resize, ""));
    let message = message.to_owned();
    Some(match (word, &pod.resize_error) {
        ("Deferred", _) => (ConditionKind::PodResizePending, true, "Deferred", message),
        ("Infeasible", _) => (ConditionKind::PodResizePending, true, "Infeasible", message),
        (_, Some(error)) => (ConditionKind::PodResizeInProgress, true, "Error", error.clone()),
        (_, None) => (ConditionKind::PodResizeInProgress, true, "", message),
    })
}

/// Told when nothing of the pod runs any more, as its phase.
fn disruption(pod: &Pod, phase: Phase) -> Option<Finding> {
    let message = pod.disruption().filter(|_| phase == Phase::Failed)?;
    Some((ConditionKind::DisruptionTarget, true, "TerminationByKubelet", message.to_owned()))
}

/// No new sandbox is needed (pkg/kubelet/kuberuntime/util, `PodSandboxChanged`).
fn has_sandbox(pod: &Pod) -> bool {
    let newest = pod.sandboxes.iter().max_by_key(|s| s.attempt);
    let ready = pod.sandboxes.iter().filter(|s| s.ready).count();
    ready == 1 && newest.is_some_and(|s| pod.ready_sandbox().is_some_and(|ready| ready.id == s.id))
}

fn initialised(containers: &[ContainerStatus<'_>], phase: Phase) -> Finding {
    let kind = ConditionKind::Initialized;
    let done = |c: &&ContainerStatus<'_>| if c.sidecar { c.started } else { c.ready };
    let incomplete: Vec<&str> =
        containers.iter().filter(|c| c.init).filter(|c| !done(c)).map(|c| c.spec.name.as_str()).collect();
    // Once an ordinary container has run, the initialisation is over, whatever its sidecars do.
    let begun = containers.iter().any(|c| !c.init && !c.is_waiting());
    match phase {
        Phase::Succeeded => (kind, true, "PodCompleted", String::new()),
        _ if begun || incomplete.is_empty() => (kind, true, "", String::new()),
        _ => {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            (kind, false, "ContainersNotInitialized", message)
        }
    }
}

fn containers_ready(containers: &[ContainerStatus<'_>], phase: Phase) -> (bool, &'static str, String) {
    let counts = |c: &&ContainerStatus<'_>| !c.init || c.sidecar;
    let unready: Vec<&str> =
        containers.iter().filter(counts).filter(|c| !c.ready).map(|c| c.spec.name.as_str()).collect();
    match phase {
        _ if containers.is_empty() => (false, "UnknownContainerStatuses", String::new()),
        Phase::Succeeded => (false, "PodCompleted", String::new()),
        Phase::Failed => (false, "PodFailed", String::new()),
        _ if unready.is_empty() => (true, "", String::new()),
        _ => (false, "ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
    }
}

/// What is said of the conditions that the pod waits for; `None` if there are none. Only an API server could set them.
fn gates(pod: &Pod) -> Option<String> {
    let says = |gate: &String| format!("corresponding condition of pod readiness gate {gate:?} does not exist.");
    let all: Vec<String> = pod.spec.readiness_gates.iter().map(says).collect();
    (!all.is_empty()).then(|| all.join(", "))
}
