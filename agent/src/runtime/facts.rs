//! What the runtime has, as the core wants to know it.
//!
//! Problem: the listings lack the address of a sandbox, the start of a running container and the exit of a dead one, and
//! asking for each of them every second is costly. Approach: what cannot change any more is asked once and kept by id: a
//! sandbox's address and cgroup parent, a running container's start, a dead one's exit.
//!
//! Sandboxes are listed before containers, so the sandbox of each listed container is there unless it is newer than the listing.
//!
//! Properties: one object that is bad or hangs does not hide the others, and is told as it was known last; nothing is kept of an object that is no longer listed.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::Duration;

use beelet_core::event::{CgroupKnobs, ContainerFact, ContainerFactState, Exit, LinuxUser, RuntimeFacts, SandboxFact};
use beelet_core::security::RuntimeFeatures;
use beelet_core::spec::{PodUid, Resources};
use beelet_core::units::{Bytes, Micros, MilliCpu};
use beelet_proto::cri;
use futures::StreamExt;
use futures::stream;

use super::client::{Runtime, lock};
use super::error::RuntimeError;
use super::last_words::LastWords;
use super::{names, pre_stop};
use crate::blocking::blocking;

/// How many objects are asked about at the same time.
const AT_ONCE: usize = 16;
/// How long the question about one object may take. Its answer is in the runtime's memory, unless the object hangs.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// What was asked once.
#[derive(Debug, Default)]
pub(super) struct Cache {
    sandboxes: HashMap<String, SandboxDetails>,
    containers: HashMap<String, ContainerDetails>,
    /// Resources that this life of the agent gave to a running container.
    updated: HashMap<String, Resources>,
    /// The image of the sandbox that was asked about last.
    sandbox_image: String,
    /// What the runtime can do; `None` before it was asked, and after it was away.
    features: Option<RuntimeFeatures>,
}

/// What a sandbox keeps for life.
#[derive(Clone, Debug, Default)]
struct SandboxDetails {
    attempt: u32,
    ip: String,
    other_ips: Vec<String>,
    no_address: bool,
    cgroup_parent: String,
}

/// What a container keeps while it is in this state.
#[derive(Clone, Debug)]
struct ContainerDetails {
    state: ContainerFactState,
    /// The resources that the runtime reported when the container was first seen by this life of the agent.
    reported: Option<cri::LinuxContainerResources>,
    /// Where its log is, "" for none.
    log: String,
    /// Its first process while it runs.
    pid: Option<u32>,
    /// Who it runs as.
    user: Option<LinuxUser>,
}

impl Runtime {
    /// Lists what the runtime has. `asked` is the moment before the call, on the core's monotonic clock.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn facts(&self, asked: Micros) -> Result<RuntimeFacts, RuntimeError> {
        let noted = self.noted_logs();
        let listed =
            self.list_sandboxes(cri::PodSandboxFilter::default()).await.inspect_err(|_| self.forget_features())?;
        let containers = self.list_containers(cri::ContainerFilter::default()).await?;
        let features = self.features().await?;

        let uids: HashMap<String, PodUid> = listed.iter().map(|s| (s.id.clone(), uid_of(s))).collect();
        {
            let ids: HashSet<&str> = containers.iter().map(|c| &*c.id).collect();
            let mut cache = lock(&self.cache);
            cache.sandboxes.retain(|id, _| uids.contains_key(id));
            cache.containers.retain(|id, _| ids.contains(id.as_str()));
            cache.updated.retain(|id, _| ids.contains(id.as_str()));
        }

        let sandboxes: Vec<_> = stream::iter(listed).map(|s| self.sandbox_fact(s)).buffered(AT_ONCE).collect().await;
        let uids = &uids;
        let ours = containers.iter().filter(|c| c.annotations.get(names::MANAGED) == Some(&self.instance));
        let states: HashMap<String, cri::ContainerState> = ours.map(|c| (c.id.clone(), c.state())).collect();
        let containers: Vec<_> =
            stream::iter(containers).map(|c| self.container_fact(c, uids)).buffered(AT_ONCE).collect().await;
        self.logs_listed(&noted, &states, self.logs_of(&states));
        Ok(RuntimeFacts {
            asked,
            sandboxes: known(sandboxes)?,
            containers: known(containers)?,
            leftovers: Vec::new(),
            features,
        })
    }

    /// What the runtime can do: asked once, and again after it was away, as another release may have come up.
    pub(super) async fn features(&self) -> Result<RuntimeFeatures, RuntimeError> {
        if let Some(known) = lock(&self.cache).features {
            return Ok(known);
        }
        let request = cri::StatusRequest { verbose: false };
        let timeout = self.timeout.min(STATUS_TIMEOUT);
        let told = match self.call("Status", timeout, self.pods().status(request)).await {
            Ok(answer) => answer,
            // What it cannot tell it cannot do.
            Err(RuntimeError::Unimplemented { .. }) => cri::StatusResponse::default(),
            Err(error) => return Err(error),
        };
        // Every pod is run by the default handler.
        let handler = told.runtime_handlers.into_iter().find(|handler| handler.name.is_empty());
        let handler = handler.and_then(|handler| handler.features).unwrap_or_default();
        let features = RuntimeFeatures {
            groups_policy: told.features.is_some_and(|features| features.supplemental_groups_policy),
            recursive_read_only: handler.recursive_read_only_mounts,
        };
        lock(&self.cache).features = Some(features);
        Ok(features)
    }

    fn forget_features(&self) {
        lock(&self.cache).features = None;
    }

    /// The sandboxes that match.
    pub(super) async fn list_sandboxes(
        &self,
        filter: cri::PodSandboxFilter,
    ) -> Result<Vec<cri::PodSandbox>, RuntimeError> {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.call("ListPodSandbox", self.timeout, self.pods().list_pod_sandbox(request)).await?.items)
    }

    /// The containers that match.
    pub(super) async fn list_containers(
        &self,
        filter: cri::ContainerFilter,
    ) -> Result<Vec<cri::Container>, RuntimeError> {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        Ok(self.call("ListContainers", self.timeout, self.pods().list_containers(request)).await?.containers)
    }

    /// The state of one container, and its first process where the runtime tells it.
    pub(super) async fn container_status(&self, id: &str) -> Result<(cri::ContainerStatus, Option<u32>), RuntimeError> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let timeout = self.timeout.min(STATUS_TIMEOUT);
        let answer = self.call("ContainerStatus", timeout, self.pods().container_status(request)).await?;
        let pid = answer.info.get("info").and_then(|info| pid_of(info));
        Ok((answer.status.unwrap_or_default(), pid))
    }

    /// Completes what the listing tells of a sandbox.
    pub(super) async fn sandbox_fact(&self, listed: cri::PodSandbox) -> Result<SandboxFact, RuntimeError> {
        let ready = listed.state() == cri::PodSandboxState::SandboxReady;
        let details = self.sandbox_details(&listed).await?;
        let uid = uid_of(&listed);
        let metadata = listed.metadata.unwrap_or_default();
        let mut labels: std::collections::BTreeMap<_, _> = listed.labels.into_iter().collect();
        let named = |name: &str, fallback: String| labels.get(name).cloned().unwrap_or(fallback);
        let (name, namespace) =
            (named(names::POD_NAME, metadata.name), named(names::POD_NAMESPACE, metadata.namespace));
        labels.retain(|key, _| ![names::POD_NAME, names::POD_NAMESPACE, names::POD_UID].contains(&key.as_str()));
        Ok(SandboxFact {
            ours: listed.annotations.get(names::MANAGED).is_some_and(|value| *value == self.instance),
            uid,
            namespace,
            name,
            attempt: metadata.attempt,
            ready,
            ip: if ready { details.ip } else { String::new() },
            other_ips: if ready { details.other_ips } else { Vec::new() },
            no_address: details.no_address,
            created: micros(listed.created_at),
            cgroup_parent: details.cgroup_parent,
            given: listed
                .annotations
                .get(names::GIVEN)
                .and_then(|json| serde_json::from_str(json).ok())
                .unwrap_or_default(),
            labels,
            id: listed.id,
        })
    }

    /// What was the attempt of this sandbox; 0 for one that was never seen.
    pub(super) fn sandbox_attempt(&self, id: &str) -> u32 {
        lock(&self.cache).sandboxes.get(id).map_or(0, |details| details.attempt)
    }

    /// The image of sandboxes, by the newest of them that was asked about; "" before one was, and where the runtime does not tell.
    /// Its configuration tells it, too, but not in all releases of containerd (2.x keeps it apart from what `Status` shows).
    #[must_use]
    pub fn sandbox_image(&self) -> String {
        lock(&self.cache).sandbox_image.clone()
    }

    /// This container has other resources now than it was made with.
    pub(super) fn resources_changed(&self, id: &str, resources: Resources) {
        lock(&self.cache).updated.insert(id.to_owned(), resources);
    }

    async fn sandbox_details(&self, listed: &cri::PodSandbox) -> Result<SandboxDetails, RuntimeError> {
        if let Some(known) = lock(&self.cache).sandboxes.get(&listed.id) {
            return Ok(known.clone());
        }
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: listed.id.clone(), verbose: true };
        let timeout = self.timeout.min(STATUS_TIMEOUT);
        let answer = match self.call("PodSandboxStatus", timeout, self.pods().pod_sandbox_status(request)).await {
            Ok(answer) => answer,
            // It is listed, so it is there; what it lacks is not worth losing sight of it. Asked again next time.
            Err(error @ (RuntimeError::Rejected { .. } | RuntimeError::Timeout { .. })) => {
                tracing::warn!(sandbox = listed.id, %error, "no status of a sandbox");
                return Ok(SandboxDetails::default());
            }
            Err(error) => return Err(error),
        };
        let status = answer.status.unwrap_or_default();
        let info = answer.info.get("info").and_then(|info| serde_json::from_str(info).ok()).unwrap_or_default();
        if let Some(image) = sandbox_image_of(&info) {
            lock(&self.cache).sandbox_image = image;
        }
        let up = status.state == i32::from(cri::PodSandboxState::SandboxReady);
        let told = status.network.is_some();
        let network = status.network.unwrap_or_default();
        let details = SandboxDetails {
            attempt: listed.metadata.as_ref().map_or(0, |m| m.attempt),
            no_address: up && told && network.ip.is_empty(),
            ip: network.ip,
            other_ips: network.additional_ips.into_iter().map(|other| other.ip).filter(|ip| !ip.is_empty()).collect(),
            cgroup_parent: cgroup_parent_of(&info).unwrap_or_default(),
        };
        // One that is down gave its address back; one that comes up may not have it yet.
        if up || listed.state == status.state {
            lock(&self.cache).sandboxes.insert(listed.id.clone(), details.clone());
        }
        Ok(details)
    }

    async fn container_fact(
        &self,
        listed: cri::Container,
        uids: &HashMap<String, PodUid>,
    ) -> Result<ContainerFact, RuntimeError> {
        let details = self.container_details(&listed).await?;
        let made_with = listed.annotations.get(names::RESOURCES).and_then(|json| serde_json::from_str(json).ok());
        let knobs = listed.annotations.get(names::KNOBS).and_then(|json| serde_json::from_str(json).ok());
        let updated = lock(&self.cache).updated.get(&listed.id).copied();
        let resources = updated.or_else(|| {
            let made_with: Resources = made_with?;
            Some(match (knobs, &details.reported) {
                (Some(knobs), Some(reported)) => effective(made_with, &knobs, reported),
                _ => made_with,
            })
        });
        let image = listed.image.unwrap_or_default();
        let metadata = listed.metadata.unwrap_or_default();
        let label = |name: &str| listed.labels.get(name).filter(|value| !value.is_empty());
        let uid = label(names::POD_UID).map(|uid| PodUid::from(uid.as_str()));
        let grace = listed.annotations.get(names::TERMINATION_GRACE).and_then(|secs| secs.parse().ok());
        Ok(ContainerFact {
            grace: grace.map(Micros::secs),
            pre_stop: listed.annotations.get(names::PRE_STOP).and_then(|json| pre_stop::read(json)),
            uid: uid
                .or_else(|| uids.get(&listed.pod_sandbox_id).cloned())
                .unwrap_or_else(|| PodUid::from(listed.pod_sandbox_id.as_str())),
            name: label(names::CONTAINER_NAME).cloned().unwrap_or(metadata.name),
            attempt: metadata.attempt,
            image: if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image },
            image_id: if listed.image_id.is_empty() { listed.image_ref } else { listed.image_id },
            state: details.state,
            user: details.user,
            resources,
            sandbox_id: listed.pod_sandbox_id,
            pid: details.pid,
            id: listed.id,
        })
    }

    /// The logs of those that run.
    fn logs_of(&self, states: &HashMap<String, cri::ContainerState>) -> Vec<(String, PathBuf)> {
        let cache = lock(&self.cache);
        let running = states.iter().filter(|(_, state)| **state == cri::ContainerState::ContainerRunning);
        let log = running.filter_map(|(id, _)| Some((id.clone(), PathBuf::from(&cache.containers.get(id)?.log))));
        log.filter(|(_, log)| log.is_absolute()).collect()
    }

    async fn container_details(&self, listed: &cri::Container) -> Result<ContainerDetails, RuntimeError> {
        use cri::ContainerState as Cri;
        let (id, created, listed) = (&*listed.id, listed.created_at, listed.state());
        let plain = |state| ContainerDetails { state, reported: None, log: String::new(), pid: None, user: None };
        match listed {
            Cri::ContainerCreated => return Ok(plain(ContainerFactState::Created)),
            Cri::ContainerUnknown => return Ok(plain(ContainerFactState::Unknown)),
            Cri::ContainerRunning | Cri::ContainerExited => {}
        }
        let known = lock(&self.cache).containers.get(id).cloned();
        if let Some(known) = &known {
            let running = matches!(known.state, ContainerFactState::Running { .. });
            // A container ends once: what was seen to be over stays so, even if this listing is the older one.
            if !running || listed == Cri::ContainerRunning {
                return Ok(known.clone());
            }
        }
        let (status, pid) = match self.container_status(id).await {
            Ok(told) => told,
            Err(error @ (RuntimeError::Rejected { .. } | RuntimeError::Timeout { .. })) => {
                tracing::warn!(container = id, %error, "no status of a container");
                // The listing knows that it runs; how one ended it does not.
                let guess = match listed {
                    Cri::ContainerRunning => ContainerFactState::Running { started: micros(created) },
                    _ => ContainerFactState::Unknown,
                };
                return Ok(known.unwrap_or_else(|| plain(guess)));
            }
            Err(error) => return Err(error),
        };
        let reported = status.resources.as_ref().and_then(|resources| resources.linux.clone());
        let words = LastWords::of(&status);
        let log = status.log_path.clone();
        let user = status.user.as_ref().and_then(|user| user.linux.as_ref()).map(|user| LinuxUser {
            uid: user.uid,
            gid: user.gid,
            groups: user.supplemental_groups.clone(),
        });
        let mut state = state_of(status);
        if let ContainerFactState::Exited(exit) = &mut state {
            let failed = exit.code != 0 && exit.reason != "ContainerCannotRun";
            let said = blocking(move || words.read(failed)).await;
            if !exit.message.is_empty() && !said.is_empty() {
                exit.message += ": ";
            }
            exit.message += &said;
        }
        let pid = pid.filter(|_| matches!(state, ContainerFactState::Running { .. }));
        let details = ContainerDetails { state, reported, log, pid, user };
        lock(&self.cache).containers.insert(id.to_owned(), details.clone());
        Ok(details)
    }
}

/// Drops what went between the listing and the question about it.
fn known<T>(facts: Vec<Result<T, RuntimeError>>) -> Result<Vec<T>, RuntimeError> {
    facts.into_iter().filter(|fact| !fact.as_ref().is_err_and(RuntimeError::is_not_found)).collect()
}

/// The state, from a container's full status.
pub(super) fn state_of(status: cri::ContainerStatus) -> ContainerFactState {
    match status.state() {
        cri::ContainerState::ContainerCreated => ContainerFactState::Created,
        cri::ContainerState::ContainerRunning => ContainerFactState::Running { started: micros(status.started_at) },
        cri::ContainerState::ContainerExited => ContainerFactState::Exited(Exit {
            // containerd notes the start when the call to start returns: a container that ends at once ends before it.
            started: micros(status.started_at.min(status.finished_at)),
            finished: micros(status.finished_at),
            code: status.exit_code,
            reason: status.reason,
            message: status.message,
        }),
        cri::ContainerState::ContainerUnknown => ContainerFactState::Unknown,
    }
}

/// Which pod a sandbox is of. One that another CRI client made without a UID stands for itself.
fn uid_of(sandbox: &cri::PodSandbox) -> PodUid {
    let label = sandbox.labels.get(names::POD_UID).map(String::as_str);
    let metadata = sandbox.metadata.as_ref().map(|m| m.uid.as_str());
    let uid = [label, metadata].into_iter().flatten().find(|uid| !uid.is_empty());
    PodUid::from(uid.unwrap_or(&sandbox.id))
}

/// The cgroup parent, from containerd's and CRI-O's verbose status.
fn cgroup_parent_of(info: &serde_json::Value) -> Option<String> {
    let linux = info.get("config")?.get("linux")?;
    Some(linux.get("cgroup_parent").or_else(|| linux.get("cgroupParent"))?.as_str()?.to_owned())
}

/// A container's first process, from the same. The rest of it, the whole specification, is passed over.
fn pid_of(info: &str) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct Info {
        pid: u32,
    }
    serde_json::from_str::<Info>(info).ok().map(|info| info.pid).filter(|pid| *pid > 0)
}

/// The image, from the same.
fn sandbox_image_of(info: &serde_json::Value) -> Option<String> {
    Some(info.get("image")?.as_str()?.to_owned()).filter(|image| !image.is_empty())
}

/// The resources of a container that an earlier life of the agent may have changed: what it was made with, but for the knobs
/// that the runtime reports to be different now. A changed memory request leaves no trace in a knob.
fn effective(made_with: Resources, knobs: &CgroupKnobs, now: &cri::LinuxContainerResources) -> Resources {
    let mut resources = made_with;
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    // A runtime that tells nothing of CPU or memory tells no change.
    if let Some(shares) = positive(now.cpu_shares).filter(|shares| Some(*shares) != knobs.cpu_shares) {
        resources.cpu_request = Some(MilliCpu(shares.saturating_mul(1_000).div_ceil(1_024)));
    }
    if now.cpu_shares != 0 && positive(now.cpu_quota) != knobs.cpu_quota.map(Micros::get) {
        let period = positive(now.cpu_period).unwrap_or(100_000);
        resources.cpu_limit = positive(now.cpu_quota).map(|quota| MilliCpu(quota.saturating_mul(1_000) / period));
    }
    if now.memory_limit_in_bytes != 0 && positive(now.memory_limit_in_bytes) != knobs.memory_max.map(Bytes::get) {
        resources.memory_limit = positive(now.memory_limit_in_bytes).map(Bytes);
    }
    resources
}

/// From CRI's nanoseconds; what is not set is 0.
pub(super) fn micros(nanos: i64) -> Micros {
    Micros(u64::try_from(nanos / 1_000).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_parent_and_the_image_are_found_in_the_verbose_status() {
        let read = |info: &str| serde_json::from_str::<serde_json::Value>(info).unwrap_or_default();
        let info = r#"{"pid":1,"image":"registry.k8s.io/pause:3.10","config":{"metadata":{},"linux":{"cgroup_parent":"/kubepods/podx","sysctls":{}}}}"#;
        assert_eq!(cgroup_parent_of(&read(info)).as_deref(), Some("/kubepods/podx"));
        assert_eq!(sandbox_image_of(&read(info)).as_deref(), Some("registry.k8s.io/pause:3.10"));
        for nothing in ["", "{}", r#"{"config":{"linux":{}}}"#, "not json"] {
            assert_eq!(cgroup_parent_of(&read(nothing)), None, "{nothing}");
            assert_eq!(sandbox_image_of(&read(nothing)), None, "{nothing}");
        }
    }

    #[test]
    fn the_first_process_is_found_in_the_verbose_status() {
        let info = r#"{"sandboxID":"s","pid":4711,"removing":false,"runtimeSpec":{"process":{"pid":"x"}}}"#;
        assert_eq!(pid_of(info), Some(4711));
        for nothing in ["", "{}", r#"{"pid":0}"#, r#"{"pid":"7"}"#] {
            assert_eq!(pid_of(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn a_resize_by_an_earlier_life_shows_in_the_knobs() {
        let made_with = Resources {
            cpu_request: Some(MilliCpu(101)),
            cpu_limit: Some(MilliCpu(333)),
            memory_request: Some(Bytes::mib(10)),
            memory_limit: Some(Bytes::mib(20)),
        };
        let knobs = CgroupKnobs {
            cpu_shares: Some(103),
            cpu_quota: Some(Micros(33_300)),
            cpu_period: Micros(100_000),
            memory_max: Some(Bytes::mib(20)),
        };
        let now = |cpu_shares, cpu_quota, memory| cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_shares,
            cpu_quota,
            memory_limit_in_bytes: memory,
            ..cri::LinuxContainerResources::default()
        };
        let same = now(103, 33_300, 20 << 20);
        assert_eq!(effective(made_with, &knobs, &same), made_with);
        assert_eq!(effective(made_with, &knobs, &cri::LinuxContainerResources::default()), made_with, "tells nothing");
        let raised = effective(made_with, &knobs, &now(204, 50_000, 40 << 20));
        let expected = Resources {
            cpu_request: Some(MilliCpu(200)),
            cpu_limit: Some(MilliCpu(500)),
            memory_limit: Some(Bytes::mib(40)),
            ..made_with
        };
        assert_eq!(raised, expected);
        let unlimited = effective(made_with, &knobs, &now(103, -1, -1));
        assert_eq!(unlimited, Resources { cpu_limit: None, memory_limit: None, ..made_with });
    }

    #[test]
    fn no_container_ends_before_it_starts() {
        let status = cri::ContainerStatus {
            state: cri::ContainerState::ContainerExited.into(),
            started_at: 2_000_001_000,
            finished_at: 2_000_000_000,
            ..cri::ContainerStatus::default()
        };
        let ContainerFactState::Exited(exit) = state_of(status) else { panic!("it exited") };
        assert_eq!((exit.started, exit.finished), (Micros::secs(2), Micros::secs(2)));
    }

    #[test]
    fn every_request_in_millicores_is_found_again_in_its_shares() {
        for milli in 3..5_000_u64 {
            let shares = milli * 1_024 / 1_000;
            assert_eq!((shares * 1_000).div_ceil(1_024), milli);
        }
    }
}
