//! A model of the container runtime.
//!
//! It keeps sandboxes and containers, reserves names (a second sandbox of the same pod and attempt is refused), may be down, and may
//! do what it was told after the one who told it has died. When and whether operations happen is the driver's business.

use std::collections::BTreeMap;

use beelet_core::event::{
    ContainerFact, ContainerFactState, Done, Exit, LinuxResources, OpError, PodOp, Pulled, SandboxFact,
};
use beelet_core::spec::PodUid;
use beelet_core::stop::after_hook;
use beelet_core::units::{Bytes, Micros};

use crate::kernel::Kernel;
use crate::rng::Rng;
use crate::scenario::MISSING;
use crate::workload::Curve;

/// What the runtime has.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    /// By id.
    pub sandboxes: BTreeMap<String, SandboxFact>,
    /// By id.
    pub containers: BTreeMap<String, ContainerFact>,
    /// It does not answer until then (monotonic).
    pub down_until: Micros,
    /// The image [`MISSING`] is there.
    pub image: bool,
    next_id: u64,
}

/// What an operation led to: the rest happens later.
#[derive(Debug)]
pub struct Outcome {
    /// Its result.
    pub result: Result<Done, OpError>,
    /// Containers that end later: id, after, exit code.
    pub ends: Vec<(String, Micros, i32)>,
    /// It takes this much longer.
    pub longer: Micros,
}

impl From<Result<Done, OpError>> for Outcome {
    fn from(result: Result<Done, OpError>) -> Self {
        Self { result, ends: Vec::new(), longer: Micros::ZERO }
    }
}

/// An error of the runtime.
#[must_use]
pub fn error(reason: &str, message: &str) -> OpError {
    OpError { reason: reason.to_owned(), message: message.to_owned() }
}

impl Runtime {
    /// One that has nothing but images.
    #[must_use]
    pub fn new() -> Self {
        Self { image: true, ..Self::default() }
    }

    /// Another id.
    pub fn id(&mut self) -> String {
        self.next_id += 1;
        format!("{:012x}", self.next_id)
    }

    /// The operation needs the runtime, not only files and cgroups.
    #[must_use]
    pub fn is_asked_by(op: &PodOp) -> bool {
        !matches!(op, PodOp::Prepare { .. } | PodOp::Cleanup { .. })
    }

    /// Does it. `now` monotonic and on the wall.
    pub fn perform(&mut self, op: &PodOp, kernel: &mut Kernel, wall: Micros, rng: &mut Rng) -> Outcome {
        match op {
            PodOp::Prepare { spec, cgroup } => {
                kernel.make_group(&spec.uid, &cgroup.path, cgroup.knobs.memory_max);
                Ok(Done::Ok).into()
            }
            PodOp::StartSandbox { spec, given, cgroup, attempt } => {
                if self.sandboxes.values().any(|s| s.uid == spec.uid && s.attempt == *attempt) {
                    return Err(error("CreatePodSandboxError", "name is reserved")).into();
                }
                let id = self.id();
                let fact = SandboxFact {
                    id: id.clone(),
                    uid: spec.uid.clone(),
                    namespace: spec.namespace.clone(),
                    name: spec.name.clone(),
                    attempt: *attempt,
                    ready: true,
                    ip: format!("10.0.0.{}", rng.range(2, 250)),
                    created: wall,
                    ours: true,
                    cgroup_parent: cgroup.clone(),
                    labels: spec.labels.clone(),
                    other_ips: Vec::new(),
                    no_address: false,
                    given: given.clone(),
                };
                self.sandboxes.insert(id, fact.clone());
                Ok(Done::Sandbox(fact)).into()
            }
            PodOp::EnsureImage { image, .. } if image == MISSING && !self.image => {
                Err(error("ErrImagePull", "not found")).into()
            }
            PodOp::EnsureImage { .. } => {
                let took = rng.chance(200).then(|| Micros::millis(rng.range(100, 8_000)));
                let pulled = took.map(|took| Pulled { took, in_all: took, size: Bytes::ZERO });
                Outcome { longer: took.unwrap_or_default(), ..Ok(Done::Image { pulled }).into() }
            }
            PodOp::StartContainer { spec, container, attempt, sandbox_id, linux, .. } => {
                if self.sandboxes.get(sandbox_id).is_none_or(|s| !s.ready) {
                    return Err(error("CreateContainerError", "the sandbox is not running")).into();
                }
                let Some(wanted) = spec.container(container) else {
                    return Err(error("CreateContainerError", "no such container")).into();
                };
                let same = |c: &ContainerFact| c.uid == spec.uid && c.name == *container && c.attempt == *attempt;
                self.containers.retain(|_, c| !(same(c) && c.state == ContainerFactState::Created));
                if self.containers.values().any(same) {
                    return Err(error("CreateContainerError", "name is reserved")).into();
                }
                let id = self.id();
                let mut fact = ContainerFact {
                    grace: Some(spec.termination_grace),
                    pid: None,
                    pre_stop: wanted.lifecycle.pre_stop.as_deref().cloned(),
                    id: id.clone(),
                    sandbox_id: sandbox_id.clone(),
                    uid: spec.uid.clone(),
                    name: container.clone(),
                    attempt: *attempt,
                    image: wanted.image.clone(),
                    image_id: "sha256:1".to_owned(),
                    state: ContainerFactState::Created,
                    resources: Some(linux.resources),
                    user: None,
                };
                if rng.chance(10) {
                    self.containers.insert(id, fact);
                    return Err(error("RunContainerError", "cannot start")).into();
                }
                fact.state = ContainerFactState::Running { started: wall };
                self.containers.insert(id.clone(), fact);
                let limits = (linux.knobs.memory_max, linux.resources.cpu_limit);
                kernel.start(&id, &spec.uid, container, Curve::of(wanted), limits, linux.oom_score_adj);
                Ok(Done::Container { id, started: wall }).into()
            }
            PodOp::PostStart { .. } => Ok(Done::Ok).into(),
            PodOp::StopContainers { stops, grace, .. } => {
                // Who has no time at all is killed by the agent as well, at once.
                let grace = if *grace == Micros::ZERO { *grace } else { after_hook(*grace, Micros::ZERO) };
                let signalled = stops.iter().filter(|stop| stop.signal).map(|stop| &stop.id);
                let running: Vec<&String> = signalled.filter(|id| kernel.procs.contains_key(*id)).collect();
                let end = |id: &String, rng: &mut Rng| {
                    let takes = match rng.range(0, 9) {
                        0 => Micros::secs(3_600),
                        1 => Micros::millis(rng.range(1_000, 10_000)),
                        _ => Micros::millis(rng.range(5, 200)),
                    };
                    if takes < grace { (id.clone(), takes, 143) } else { (id.clone(), grace, 137) }
                };
                let ends: Vec<_> = running.into_iter().map(|id| end(id, rng)).collect();
                let longer = ends.iter().map(|e| e.1).max().unwrap_or_default() + Micros::millis(60);
                Outcome { result: Ok(Done::Ok), ends, longer }
            }
            PodOp::RemoveContainers { ids } => {
                for id in ids {
                    kernel.end(id, 137, false);
                    self.containers.remove(id);
                }
                Ok(Done::Ok).into()
            }
            PodOp::RemoveSandboxes { ids } => {
                for id in ids {
                    let of: Vec<String> =
                        self.containers.values().filter(|c| c.sandbox_id == *id).map(|c| c.id.clone()).collect();
                    for id in of {
                        kernel.end(&id, 137, false);
                        self.containers.remove(&id);
                    }
                    self.sandboxes.remove(id);
                }
                Ok(Done::Ok).into()
            }
            PodOp::Cleanup { uid, .. } => {
                kernel.remove_group(uid);
                Ok(Done::Ok).into()
            }
            PodOp::Resize { spec, pod, containers, .. } => {
                kernel.make_group(&spec.uid, &pod.path, pod.knobs.memory_max);
                for (id, _, linux) in containers {
                    self.resize(id, linux, kernel);
                }
                Ok(Done::Ok).into()
            }
        }
    }

    fn resize(&mut self, id: &str, linux: &LinuxResources, kernel: &mut Kernel) {
        if let Some(fact) = self.containers.get_mut(id) {
            fact.resources = Some(linux.resources);
        }
        if let Some(proc) = kernel.procs.get_mut(id) {
            (proc.limit, proc.cpu_limit) = (linux.knobs.memory_max, linux.resources.cpu_limit);
        }
    }

    /// A container ended, and the runtime notices.
    pub fn notice(&mut self, id: &str, finished: Micros, code: i32, oom: bool) {
        let Some(fact) = self.containers.get_mut(id) else { return };
        let ContainerFactState::Running { started } = fact.state else { return };
        let reason = if oom {
            "OOMKilled"
        } else if code == 0 {
            "Completed"
        } else {
            "Error"
        }
        .to_owned();
        let finished = finished.max(started);
        fact.state = ContainerFactState::Exited(Exit { started, finished, code, reason, message: String::new() });
    }

    /// The running containers of a pod.
    pub fn running<'a>(&'a self, uid: &'a PodUid) -> impl Iterator<Item = &'a ContainerFact> {
        self.containers.values().filter(move |c| c.uid == *uid && matches!(c.state, ContainerFactState::Running { .. }))
    }
}
