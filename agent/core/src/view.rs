//! The picture of the world that reports read.
//!
//! [`World::snapshot`] derives everything shown from the state and the facts, so that it cannot drift from them. What a pod's status
//! says has rules of its own: [`crate::status`].

use std::borrow::Cow;
use std::sync::Arc;

use crate::allocate;
use crate::event::ResourceList;
use crate::evict::disk::Condition;
use crate::health::Verdict;
use crate::ladder::Rung;
use crate::node::NodeConfig;
use crate::pod::Pod;
use crate::snapshot::{ContainerState, ContainerView, NodeView, PodView, Snapshot, Totals};
use crate::status::{self, ContainerStatus, State};
use crate::track::ContainerTrack;
use crate::units::Now;
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
    let statuses = status::containers(config.max_backoff, pod, now);
    let (phase, reason, message) = status::phase(pod, &statuses, runtime_down);
    let containers: Vec<ContainerView> = statuses.into_iter().map(|status| container_view(pod, status)).collect();
    let memory = pod.meter.reading.and_then(|r| r.memory);
    PodView {
        spec: Arc::clone(&pod.spec),
        foreign: pod.foreign,
        phase,
        reason,
        message,
        conditions: pod.shown.conditions.clone(),
        qos: pod.spec.qos(),
        state: pod.state.name().to_owned(),
        ip: pod.ready_sandbox().map(|s| s.ip.clone()).unwrap_or_default(),
        other_ips: pod.ready_sandbox().map(|s| s.other_ips.clone()).unwrap_or_default(),
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
        last_action: pod.last_action.clone(),
    }
}

fn container_view(pod: &Pod, status: ContainerStatus<'_>) -> ContainerView {
    let fallback = ContainerTrack::default();
    let track = pod.tracks.get(&status.spec.name).map_or(&fallback, AsRef::as_ref);
    ContainerView {
        name: status.spec.name.clone(),
        id: status.run.map(|f| f.id.clone()).unwrap_or_default(),
        init: status.init,
        sidecar: status.sidecar,
        image: status.spec.image.clone(),
        image_id: status.run.map(|f| f.image_id.clone()).unwrap_or_default(),
        ready: status.ready,
        started: status.started,
        probes: track.probes.counts(status.spec).map(|(kind, counts)| (kind, counts.clone())).collect(),
        last_id: status.last_id.to_owned(),
        last: status.last.map(Cow::into_owned),
        state: match status.state {
            State::Waiting { reason, message } => {
                ContainerState::Waiting { reason: reason.into_owned(), message: message.into_owned() }
            }
            State::Running { started } => ContainerState::Running { started },
            State::Ended(exit) => ContainerState::Terminated(exit.into_owned()),
        },
        restarts: status.restarts,
        user: status.run.and_then(|f| f.user.clone()),
        given: track.actuated.unwrap_or(status.spec.resources),
        allocated: if pod.resize_waits() { track.actuated } else { None }.unwrap_or(status.spec.resources),
        reading: track.reading,
        detail: track.detail.clone(),
        cpu: track.model.cpu(),
        burst: track.burst_now,
        oom_kills: track.oom.total(),
    }
}
