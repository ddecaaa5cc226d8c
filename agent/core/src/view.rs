//! The picture of the world that reports read.
//!
//! Problem: what a pod's phase and its containers' states *are* is a rule of its own, apart from what is to be done. Approach:
//! [`World::snapshot`] derives everything shown from the state and the facts, so that it cannot drift from them.

use std::sync::Arc;

use crate::allocate;
use crate::done::is_pull;
use crate::event::{ContainerFactState, OpError, ResourceList};
use crate::evict::disk::Condition;
use crate::health::Verdict;
use crate::ladder::Rung;
use crate::node::NodeConfig;
use crate::pod::{Pod, PodState};
use crate::restart;
use crate::snapshot::{ContainerState, ContainerView, NodeView, Phase, PodView, Snapshot, Totals};
use crate::spec::{ContainerSpec, PodSpec};
use crate::track::ContainerTrack;
use crate::units::{Micros, Now};
use crate::world::World;

/// Records shown in a snapshot, at most.
const SHOWN: usize = 400;

impl World {
    /// The world as it is now.
    #[must_use]
    pub fn snapshot(&self, now: Now) -> Snapshot {
        let mut pods: Vec<Arc<PodView>> = self
            .pods
            .values()
            .map(|p| {
                let mut view = pod_view(&self.config, p, self.runtime_down.as_deref(), now);
                view.slow = self.slow.of(&p.spec.uid);
                view.rungs = self.ladder.rungs_of(&p.spec.uid);
                view.rungs.extend((self.evict.asked_to_leave() == Some(&p.spec.uid)).then_some(Rung::Leave));
                Arc::new(view)
            })
            .collect();
        pods.sort_by(|a, b| {
            (&a.spec.namespace, &a.spec.name, &a.spec.uid).cmp(&(&b.spec.namespace, &b.spec.name, &b.spec.uid))
        });
        let skip = self.records.len().saturating_sub(SHOWN);
        Snapshot {
            at: now,
            node: self.node_view(),
            pods,
            rejected: self.rejected.clone(),
            records: self.records.iter().skip(skip).cloned().collect(),
            totals: Totals { forecasts: self.forecast_scores(), ..self.totals.view() },
        }
    }

    fn node_view(&self) -> NodeView {
        let (beside, standing) = (self.config.beside, self.evict.standing());
        NodeView {
            name: self.config.name.clone(),
            capacity: self.config.capacity,
            allocatable: if beside { ResourceList::default() } else { self.config.allocatable() },
            runtime_down: self.runtime_down.clone(),
            memory_pressure: standing.memory_pressure,
            disk_pressure: self.disks.has(Condition::DiskPressure),
            pid_pressure: self.disks.has(Condition::PidPressure),
            memory_available: standing.memory_available,
            allocatable_available: standing.allocatable_available,
            time_to_oom: standing.time_to_oom,
            sample_interval: standing.pace.interval,
            cpu: self.node.busy(),
            cpu_idle: self.node.idle(),
            kubepods: self.last_sample.as_ref().and_then(|s| s.kubepods),
            reading: self.last_sample.as_ref().map(|s| s.node),
            detail: self.last_sample.as_ref().and_then(|s| s.node_detail.clone()),
            own_cost: self.budget.cost(),
            remembers: self.sizes().all().into(),
        }
    }
}

fn pod_view(config: &NodeConfig, pod: &Pod, runtime_down: Option<&str>, now: Now) -> PodView {
    let containers: Vec<ContainerView> = pod
        .spec
        .init_containers
        .iter()
        .map(|c| (true, c))
        .chain(pod.spec.containers.iter().map(|c| (false, c)))
        .map(|(init, c)| container_view(config, pod, c, init, now))
        .collect();
    let (phase, reason, message) = phase(pod, &containers, runtime_down);
    let memory = pod.meter.reading.and_then(|r| r.memory);
    PodView {
        spec: Arc::clone(&pod.spec),
        foreign: pod.foreign,
        phase,
        reason,
        message,
        qos: pod.spec.qos(),
        state: pod.state.name().to_owned(),
        ip: pod.ready_sandbox().map(|s| s.ip.clone()).unwrap_or_default(),
        since: pod.since,
        cgroup: pod.cgroup(config),
        oom_kills: pod.tracks.values().map(|t| t.oom.total()).sum(),
        containers,
        reading: pod.meter.reading,
        sandbox: pod.meter.sandbox,
        sandbox_id: pod.ready_sandbox().map(|s| s.id.clone()).unwrap_or_default(),
        sandbox_created: pod.ready_sandbox().map(|s| s.created),
        cgroup_detail: pod.meter.cgroup_detail.clone(),
        detail: pod.meter.detail.clone(),
        cpu: pod.meter.model.cpu(),
        network: pod.network,
        network_rate: pod.meter.network_rate,
        memory_growth: pod.meter.model.growth(),
        time_to_oom: memory.and_then(|m| {
            let limit = m.limit.or_else(|| allocate::pod_memory_limit(&pod.spec))?;
            pod.meter.model.forecast(limit - m.unreclaimable()).map(|f| f.time_to_oom)
        }),
        slow: Vec::new(),
        rungs: Vec::new(),
        listening: pod.meter.listening.as_ref().map(|ports| ports.iter().copied().collect()),
        // What does not run any more is neither well nor unwell; why it ended is in its reason and records.
        health: if pod.state.is_live() { pod.health.verdict(now) } else { Verdict::default() },
        resize: pod.resize.clone(),
        disruption: pod.disruption().map(str::to_owned),
        last_action: pod.last_action.clone(),
    }
}

/// The phase by the rules of pkg/kubelet/kubelet_pods.go (getPhase, release 1.37), with what beelet decided about the pod on top.
fn phase(pod: &Pod, containers: &[ContainerView], runtime_down: Option<&str>) -> (Phase, String, String) {
    match &pod.state {
        PodState::Rejected { reason, message } => return (Phase::Failed, reason.clone(), message.clone()),
        PodState::Terminal(end) => return (end.phase, end.reason.clone(), end.message.clone()),
        PodState::Terminating { why, .. } | PodState::Cleaning { why } => {
            if let Some(end) = why.end() {
                return (end.phase, end.reason.to_owned(), end.message.to_owned());
            }
        }
        _ => {}
    }
    let begun = |c: &ContainerView| match &c.state {
        ContainerState::Waiting { .. } => c.last.is_some(),
        _ => true,
    };
    let phase = if containers.iter().filter(|c| !c.init).any(begun) { Phase::Running } else { Phase::Pending };
    let trouble = pod.trouble.as_ref().map(|t| format!("{}: {}", t.reason, t.message));
    // A pod that waits for the runtime says so.
    let down = runtime_down.filter(|_| phase == Phase::Pending).map(|why| format!("container runtime is down: {why}"));
    (phase, String::new(), trouble.or(down).unwrap_or_default())
}

fn container_view(config: &NodeConfig, pod: &Pod, spec: &ContainerSpec, init: bool, now: Now) -> ContainerView {
    let fallback = ContainerTrack::default();
    let track = pod.tracks.get(&spec.name).map_or(&fallback, AsRef::as_ref);
    let latest = pod.latest(&spec.name);
    let state = container_state(config, pod, spec, track, now);
    let sidecar = restart::is_sidecar(&pod.spec, spec);
    let shown_end = match &state {
        ContainerState::Terminated(exit) => Some(exit.clone()),
        _ => None,
    };
    let last = if shown_end.is_some() { None } else { track.last_exit.clone() };
    let run = latest.map(|f| f.id.as_str()).unwrap_or_default();
    let (started, ready) = match &state {
        ContainerState::Running { .. } if init && !sidecar => (true, false),
        ContainerState::Running { .. } => track.probes.status(spec, run),
        ContainerState::Terminated(exit) => (false, init && !sidecar && exit.code == 0),
        ContainerState::Waiting { .. } => (false, false),
    };
    ContainerView {
        name: spec.name.clone(),
        id: latest.map(|f| f.id.clone()).unwrap_or_default(),
        init,
        sidecar,
        image: spec.image.clone(),
        image_id: latest.map(|f| f.image_id.clone()).unwrap_or_default(),
        ready,
        started,
        turned: track.probes.turned(),
        probes: track.probes.counts(spec).map(|(kind, counts)| (kind, counts.clone())).collect(),
        state,
        last,
        restarts: track.restarts(),
        reading: track.reading,
        detail: track.detail.clone(),
        cpu: track.model.cpu(),
        burst: track.burst_now,
        oom_kills: track.oom.total(),
    }
}

fn container_state(
    config: &NodeConfig,
    pod: &Pod,
    spec: &ContainerSpec,
    track: &ContainerTrack,
    now: Now,
) -> ContainerState {
    let waiting = |reason: &str, message: String| ContainerState::Waiting { reason: reason.to_owned(), message };
    let over = !pod.state.is_live();
    if let Some(fact) = pod.latest(&spec.name) {
        if let Some(exit) = pod.early_end(fact) {
            return ContainerState::Terminated(exit.clone());
        }
        match &fact.state {
            ContainerFactState::Running { started } => return ContainerState::Running { started: *started },
            ContainerFactState::Exited(exit) if over || !pod.runs_again(fact, spec, exit.code) => {
                return ContainerState::Terminated(exit.clone());
            }
            _ => {}
        }
    } else if over && let Some(exit) = &track.last_exit {
        return ContainerState::Terminated(exit.clone());
    }
    if let Some(trouble) = &track.trouble {
        // The kubelet shows the error first and the back-off from the second try on.
        if is_pull(&trouble.reason) && now.mono < track.retry_at && track.image.delay() > crate::backoff::INITIAL {
            let (image, OpError { reason, message }) = (&spec.image, trouble);
            let message = format!("Back-off pulling image \"{image}\": {reason}: {message}");
            return waiting("ImagePullBackOff", message);
        }
        return waiting(&trouble.reason, trouble.message.clone());
    }
    if track.last_exit.is_some() && pod.latest(&spec.name).is_some() {
        if now.mono < track.crash.ready_at(track.exit_seen, config.max_backoff) {
            return waiting("CrashLoopBackOff", backoff_message(track.crash.delay(), &spec.name, &pod.spec));
        }
        if let Some(exit) = &track.last_exit {
            return ContainerState::Terminated(exit.clone());
        }
    }
    let initialising = !pod.spec.init_containers.is_empty() && pod.state != PodState::Running;
    waiting(if initialising { "PodInitializing" } else { "ContainerCreating" }, String::new())
}

/// The kubelet's words (pkg/kubelet/kuberuntime/kuberuntime_manager.go, release 1.37).
#[must_use]
pub(crate) fn backoff_message(delay: Micros, container: &str, pod: &PodSpec) -> String {
    let delay = go_duration(delay);
    format!("back-off {delay} restarting failed container={container} pod={}_{}({})", pod.name, pod.namespace, pod.uid)
}

/// As Go prints a whole number of seconds: `10s`, `1m20s`, `5m0s`.
fn go_duration(time: Micros) -> String {
    let secs = time.0 / 1_000_000;
    if secs < 60 { format!("{secs}s") } else { format!("{}m{}s", secs / 60, secs % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a4_3b_the_back_off_is_told_in_the_kubelets_words() {
        let mut pod = PodSpec::unknown("u1".into());
        pod.name = "p".to_owned();
        assert_eq!(
            backoff_message(Micros::secs(80), "c", &pod),
            "back-off 1m20s restarting failed container=c pod=p_default(u1)"
        );
    }
}
