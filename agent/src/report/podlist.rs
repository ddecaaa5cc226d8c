//! `/pods`: the pods as Kubernetes objects with their status.
//!
//! Problem: tools that read a kubelet's `/pods` expect a `v1` PodList. Approach: the manifest as it was given (or, of a pod that
//! somebody else started, what could be found out), and a status made from the picture. A manifest that cannot be run is there
//! too, as a failed pod whose message is the error, because that is where people look.
//!
//! Terms: the condition `beelet.dev/Healthy` is the verdict; its message is the evidence. `beelet.dev/AsWritten` is there, and False, of a
//! pod that runs without a part of its manifest; its message names the fields. All others are the core's ([`beelet_core::status`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::event::{Exit, LinuxUser, Rejected};
use beelet_core::health::Health;
use beelet_core::snapshot::{ContainerState as State, ContainerView, Phase, PodView, Snapshot};
use beelet_core::spec::{
    self, API, EnvValue, PodSpec, PodUid, Propagation, QosClass, RecursiveReadOnly, RestartPolicy, SubPath, name_of,
};
use beelet_core::units::Micros;
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, EnvVar, HostIP, LinuxContainerUser, Pod, PodCondition, PodIP, PodStatus,
    ResourceRequirements, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta, Time};
use kube::core::{ObjectList, TypeMeta};

/// The kubelet's annotation of a static pod.
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Where the manifest is.
const ORIGIN: &str = "beelet.dev/origin";

/// The PodList of a picture. `host_ip` is "" where unknown.
#[must_use]
pub fn pod_list(picture: &Snapshot, manifests: &BTreeMap<PodUid, Arc<Pod>>, host_ip: &str) -> ObjectList<Pod> {
    let pods = picture
        .pods
        .iter()
        .map(|view| pod(view, manifests.get(view.uid()).map(|pod| &**pod), &picture.node.name, host_ip));
    let rejected = picture.rejected.iter().map(|r| refused(r, &picture.node.name));
    ObjectList { types: TypeMeta::list::<Pod>(), metadata: ListMeta::default(), items: pods.chain(rejected).collect() }
}

fn pod(view: &PodView, manifest: Option<&Pod>, node: &str, host_ip: &str) -> Pod {
    let mut pod = manifest.cloned().unwrap_or_else(|| found_out(&view.spec));
    pod.metadata.name = Some(view.spec.name.clone());
    pod.metadata.namespace = Some(view.spec.namespace.clone());
    pod.metadata.uid = Some(view.spec.uid.to_string());
    if !view.foreign && view.spec.origin != API {
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.entry(CONFIG_SOURCE.to_owned()).or_insert_with(|| "file".to_owned());
        annotations.insert(ORIGIN.to_owned(), view.spec.origin.clone());
    }
    pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
    pod.status = Some(status(view, host_ip));
    pod
}

/// A pod that never was: its manifest cannot be run.
fn refused(rejected: &Rejected, node: &str) -> Pod {
    let (namespace, name) = match rejected.pod.as_deref().map(|p| p.split_once('/').unwrap_or(("default", p))) {
        Some((namespace, name)) => (namespace.to_owned(), name.to_owned()),
        None => ("default".to_owned(), name_of_file(&rejected.origin)),
    };
    let annotations = [(CONFIG_SOURCE, "file"), (ORIGIN, &rejected.origin)];
    Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace),
            name: Some(name),
            annotations: Some(annotations.map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
            ..ObjectMeta::default()
        },
        spec: Some(k8s_openapi::api::core::v1::PodSpec { node_name: Some(node.to_owned()), ..Default::default() }),
        status: Some(PodStatus {
            phase: Some(Phase::Failed.as_str().to_owned()),
            reason: Some("InvalidManifest".to_owned()),
            message: Some(rejected.error.clone()),
            ..PodStatus::default()
        }),
    }
}

/// A name for a manifest whose own cannot be read: that of its file, with what a name may not have replaced.
fn name_of_file(origin: &str) -> String {
    let stem = std::path::Path::new(origin).file_stem().map(|s| s.to_string_lossy().to_lowercase()).unwrap_or_default();
    let fits = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let name: String = stem.chars().map(fits).take(253).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "manifest".to_owned() } else { name.to_owned() }
}

fn found_out(spec: &PodSpec) -> Pod {
    let filled = |map: &BTreeMap<String, String>| Some(map.clone()).filter(|m| !m.is_empty());
    let init: Vec<Container> = spec.init_containers.iter().map(container).collect();
    Pod {
        metadata: ObjectMeta {
            labels: filled(&spec.labels),
            annotations: filled(&spec.annotations),
            ..ObjectMeta::default()
        },
        spec: Some(k8s_openapi::api::core::v1::PodSpec {
            containers: spec.containers.iter().map(container).collect(),
            init_containers: Some(init).filter(|c| !c.is_empty()),
            restart_policy: Some(restart_policy(spec.restart_policy)),
            priority: Some(spec.priority),
            host_network: Some(spec.host_network).filter(|&on| on),
            termination_grace_period_seconds: i64::try_from(spec.termination_grace.get() / 1_000_000).ok(),
            ..Default::default()
        }),
        status: None,
    }
}

fn restart_policy(policy: RestartPolicy) -> String {
    match policy {
        RestartPolicy::Always => "Always",
        RestartPolicy::OnFailure => "OnFailure",
        RestartPolicy::Never => "Never",
    }
    .to_owned()
}

fn container(spec: &spec::ContainerSpec) -> Container {
    let list = |items: &[String]| Some(items.to_vec()).filter(|l| !l.is_empty());
    let env = spec.env.iter().filter_map(|e| match &e.value {
        EnvValue::Literal(value) => {
            Some(EnvVar { name: e.name.clone(), value: Some(value.clone()), ..EnvVar::default() })
        }
        _ => None,
    });
    let ports = spec.ports.iter().map(|p| ContainerPort {
        name: text(&p.name),
        container_port: i32::from(p.container_port),
        host_port: Some(i32::from(p.host_port)).filter(|&port| port != 0),
        protocol: Some(p.protocol.clone()),
        ..ContainerPort::default()
    });
    let mounts = spec.mounts.iter().map(|m| VolumeMount {
        name: m.volume.clone(),
        mount_path: m.path.clone(),
        read_only: Some(m.read_only).filter(|&on| on),
        sub_path: if let SubPath::Path(path) = &m.sub_path { text(path) } else { None },
        sub_path_expr: if let SubPath::Expr(path) = &m.sub_path { text(path) } else { None },
        mount_propagation: (m.propagation != Propagation::None)
            .then(|| name_of(&Propagation::ALL, &m.propagation).to_owned()),
        recursive_read_only: (m.recursive_read_only != RecursiveReadOnly::Disabled)
            .then(|| name_of(&RecursiveReadOnly::ALL, &m.recursive_read_only).to_owned()),
        ..VolumeMount::default()
    });
    Container {
        name: spec.name.clone(),
        image: Some(spec.image.clone()).filter(|i| !i.is_empty()),
        command: list(&spec.command),
        args: list(&spec.args),
        env: Some(env.collect::<Vec<_>>()).filter(|l| !l.is_empty()),
        ports: Some(ports.collect::<Vec<_>>()).filter(|l| !l.is_empty()),
        volume_mounts: Some(mounts.collect::<Vec<_>>()).filter(|l| !l.is_empty()),
        resources: resources(&spec.resources),
        restart_policy: spec.restart.as_ref().map(|r| restart_policy(r.policy)),
        ..Container::default()
    }
}

fn resources(of: &spec::Resources) -> Option<ResourceRequirements> {
    let list = |cpu: Option<_>, memory: Option<_>| {
        let cpu = cpu.map(|v: beelet_core::units::MilliCpu| ("cpu".to_owned(), Quantity(v.to_string())));
        let memory = memory.map(|v: beelet_core::units::Bytes| ("memory".to_owned(), Quantity(v.to_string())));
        let all: BTreeMap<_, _> = cpu.into_iter().chain(memory).collect();
        Some(all).filter(|m| !m.is_empty())
    };
    let (requests, limits) = (list(of.cpu_request, of.memory_request), list(of.cpu_limit, of.memory_limit));
    (requests.is_some() || limits.is_some()).then(|| ResourceRequirements {
        requests,
        limits,
        ..ResourceRequirements::default()
    })
}

fn time(wall: Micros) -> Option<Time> {
    let seconds = i64::try_from(wall.get() / 1_000_000).ok().filter(|&s| s > 0)?;
    jiff::Timestamp::from_second(seconds).ok().map(Time)
}

fn text(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|v| !v.is_empty())
}

fn status(view: &PodView, host_ip: &str) -> PodStatus {
    let qos = match view.qos {
        QosClass::Guaranteed => "Guaranteed",
        QosClass::Burstable => "Burstable",
        QosClass::BestEffort => "BestEffort",
    };
    let common = PodStatus {
        phase: Some(view.phase.as_str().to_owned()),
        reason: text(&view.reason),
        message: text(&view.message),
        observed_generation: generation(view.spec.generation),
        qos_class: Some(qos.to_owned()),
        start_time: time(view.since),
        conditions: Some(conditions(view)),
        ..PodStatus::default()
    };
    // Of one that was turned away nothing is there that could be told of.
    if view.state == "Rejected" {
        return common;
    }
    let of = |init: bool| {
        let list: Vec<_> =
            view.containers.iter().filter(|c| c.init == init).map(|c| container_status(view, c)).collect();
        Some(list).filter(|l| !l.is_empty())
    };
    // A pod in the node's network has the node's address.
    let own = if view.ip.is_empty() && view.spec.host_network { host_ip } else { &view.ip };
    let ips: Vec<PodIP> = text(own).into_iter().chain(view.other_ips.iter().cloned()).map(|ip| PodIP { ip }).collect();
    PodStatus {
        pod_ip: text(own),
        pod_ips: Some(ips).filter(|ips| !ips.is_empty()),
        host_ip: text(host_ip),
        host_ips: text(host_ip).map(|ip| vec![HostIP { ip }]),
        container_statuses: of(false),
        init_container_statuses: of(true),
        ..common
    }
}

fn container_status(view: &PodView, container: &ContainerView) -> ContainerStatus {
    let id = |id: &str| text(id).map(|id| format!("containerd://{id}"));
    let mut state = ContainerState::default();
    match &container.state {
        State::Waiting { reason, message } => {
            state.waiting = Some(ContainerStateWaiting { reason: text(reason), message: text(message) });
        }
        State::Running { started } => state.running = Some(ContainerStateRunning { started_at: time(*started) }),
        State::Terminated(exit) => state.terminated = Some(terminated(exit, id(&container.id))),
    }
    let last = container.last.as_ref().map(|exit| ContainerState {
        terminated: Some(terminated(exit, id(&container.last_id))),
        ..ContainerState::default()
    });
    let spec = view.spec.container(&container.name);
    ContainerStatus {
        name: container.name.clone(),
        container_id: id(&container.id),
        image: container.image.clone(),
        image_id: container.image_id.clone(),
        state: Some(state),
        last_state: last,
        ready: container.ready,
        started: Some(container.started),
        restart_count: i32::try_from(container.restarts).unwrap_or(i32::MAX),
        resources: resources(&container.given),
        allocated_resources: resources(&container.allocated).and_then(|all| all.requests),
        user: container.user.as_ref().map(user),
        volume_mounts: spec.map(|spec| spec.mounts.iter().map(mounted).collect()).filter(|l: &Vec<_>| !l.is_empty()),
        ..ContainerStatus::default()
    }
}

fn user(of: &LinuxUser) -> ContainerUser {
    let groups = Some(of.groups.clone()).filter(|groups| !groups.is_empty());
    ContainerUser { linux: Some(LinuxContainerUser { uid: of.uid, gid: of.gid, supplemental_groups: groups }) }
}

fn mounted(mount: &spec::Mount) -> VolumeMountStatus {
    VolumeMountStatus {
        name: mount.volume.clone(),
        mount_path: mount.path.clone(),
        read_only: Some(true).filter(|_| mount.read_only),
        recursive_read_only: Some("Disabled".to_owned()).filter(|_| mount.read_only),
        ..VolumeMountStatus::default()
    }
}

fn generation(of: i64) -> Option<i64> {
    Some(of).filter(|&generation| generation != 0)
}

fn terminated(exit: &Exit, container_id: Option<String>) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id,
        exit_code: exit.code,
        reason: text(&exit.reason),
        message: text(&exit.message),
        started_at: time(exit.started),
        finished_at: time(exit.finished),
        signal: None,
    }
}

/// Those of the core, and that of its health.
fn conditions(view: &PodView) -> Vec<PodCondition> {
    let mut all: Vec<PodCondition> = view
        .conditions
        .iter()
        .map(|c| PodCondition {
            type_: c.kind.as_str().to_owned(),
            status: if c.holds { "True" } else { "False" }.to_owned(),
            reason: text(&c.reason),
            message: text(&c.message),
            last_transition_time: time(c.since),
            observed_generation: generation(c.generation),
            ..PodCondition::default()
        })
        .collect();
    let healthy = match view.health.state {
        Health::Unknown => "Unknown",
        Health::Healthy => "True",
        Health::Suspect | Health::Unhealthy => "False",
    };
    let reason =
        if view.health.reason.is_empty() { super::metrics::health(view.health.state) } else { &view.health.reason };
    // What was never known did not become so: its time would be that of the boot.
    let never = view.health.state == Health::Unknown && view.health.since < view.since;
    let judged = if never { Micros::ZERO } else { view.health.since };
    all.push(PodCondition {
        type_: "beelet.dev/Healthy".to_owned(),
        status: healthy.to_owned(),
        reason: text(reason),
        message: text(&view.health.evidence.join("; ")),
        last_transition_time: time(judged),
        ..PodCondition::default()
    });
    all
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;
    use beelet_core::status::ConditionKind;
    use serde_json::{Value, json};

    fn list(picture: &Snapshot, manifests: &BTreeMap<PodUid, Arc<Pod>>) -> Value {
        serde_json::to_value(pod_list(picture, manifests, "192.0.2.1")).unwrap()
    }

    fn condition_of<'a>(pod: &'a Value, type_: &str) -> &'a Value {
        let all = pod["status"]["conditions"].as_array().unwrap();
        all.iter().find(|c| c["type"] == type_).unwrap_or_else(|| panic!("no condition {type_}"))
    }

    #[test]
    fn a4_2d_a4_18g_a_crash_looping_pod_reads_as_kubectl_expects() {
        let list = list(&samples::busy_node(), &BTreeMap::new());
        assert_eq!((list["kind"].as_str(), list["apiVersion"].as_str()), (Some("PodList"), Some("v1")));
        let leak = &list["items"][0];
        assert_eq!(leak["status"]["phase"], "Running");
        assert_eq!(leak["status"]["qosClass"], "Burstable");
        assert_eq!(leak["status"]["hostIP"], "192.0.2.1");
        let container = &leak["status"]["containerStatuses"][0];
        assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(container["lastState"]["terminated"]["exitCode"], 137);
        assert_eq!(container["lastState"]["terminated"]["finishedAt"], "2026-11-23T09:59:55Z");
        assert_eq!(container["containerID"], "containerd://c2");
        assert_eq!(container["lastState"]["terminated"]["containerID"], "containerd://c2");
        assert_eq!(container["resources"]["limits"], json!({"cpu": "500m", "memory": "128Mi"}));
        assert_eq!(condition_of(leak, "Ready")["message"], "containers with unready status: [leak]");
        let healthy = condition_of(leak, "beelet.dev/Healthy");
        assert_eq!((healthy["status"].as_str(), healthy["reason"].as_str()), (Some("False"), Some("OOMVictim")));
        assert_eq!(healthy["message"], "the OOM killer chose leak (pid 4711)");
        assert_eq!(condition_of(&list["items"][1], "Ready")["status"], "True");
    }

    #[test]
    fn the_manifest_is_shown_as_it_was_given() {
        let manifest: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "annotations": {"team": "a"}},
            "spec": {"containers": [{"name": "web", "image": "web:1", "lifecycle": {}}]},
        }))
        .unwrap();
        let list = list(&samples::busy_node(), &[("1111".into(), Arc::new(manifest))].into());
        let web = &list["items"][1];
        assert_eq!(web["metadata"]["name"], "web-node");
        assert_eq!(web["metadata"]["uid"], "1111");
        assert_eq!(web["metadata"]["annotations"]["team"], "a");
        assert_eq!(web["metadata"]["annotations"][CONFIG_SOURCE], "file");
        assert_eq!(web["spec"]["containers"][0]["lifecycle"], json!({}));
        assert_eq!(web["spec"]["nodeName"], "node");
    }

    #[test]
    fn a_refused_manifest_is_a_failed_pod() {
        let list = list(&samples::busy_node(), &BTreeMap::new());
        let bad = &list["items"][2];
        assert_eq!(bad["metadata"]["name"], "bad");
        assert_eq!(bad["metadata"]["annotations"][CONFIG_SOURCE], "file");
        assert_eq!(bad["status"]["phase"], "Failed");
        assert_eq!(bad["status"]["reason"], "InvalidManifest");
        assert_eq!(bad["status"]["message"], "spec.containers: missing");
        assert_eq!(name_of_file("/pods/My Pod!.yaml"), "my-pod");
        assert_eq!(name_of_file(".."), "manifest");
    }

    #[test]
    fn a4_2_conditions_are_written_with_their_time_and_generation() {
        let mut picture = samples::busy_node();
        let mut view = (*picture.pods[0]).clone();
        view.conditions.push(beelet_core::status::PodCondition {
            kind: ConditionKind::DisruptionTarget,
            holds: true,
            reason: "TerminationByKubelet".to_owned(),
            message: "The node was low.".to_owned(),
            since: samples::WALL,
            generation: 3,
        });
        view.spec = Arc::new(PodSpec { generation: 3, ..(*view.spec).clone() });
        picture.pods = vec![view.into()];
        let list = list(&picture, &BTreeMap::new());
        let told = condition_of(&list["items"][0], "DisruptionTarget");
        let expected = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "The node was low.",
            "lastTransitionTime": "2026-11-23T10:00:00Z", "observedGeneration": 3,
        });
        assert_eq!(*told, expected);
        assert_eq!(list["items"][0]["status"]["observedGeneration"], 3);
    }

    #[test]
    fn a4_18g_a_container_says_what_it_holds_and_who_it_runs_as() {
        let mut picture = samples::busy_node();
        let mut view = (*picture.pods[1]).clone();
        let mut spec = (*view.spec).clone();
        let mount = |path: &str, read_only| spec::Mount {
            volume: "v".into(),
            path: path.into(),
            read_only,
            ..spec::Mount::default()
        };
        spec.containers[0].mounts = vec![mount("/a", false), mount("/b", true)];
        spec.host_network = true;
        (view.spec, view.ip) = (Arc::new(spec), String::new());
        let container = &mut view.containers[0];
        container.user = Some(LinuxUser { uid: 1_000, gid: 2_000, groups: vec![2_000, 3_000] });
        container.allocated.memory_request = Some(beelet_core::units::Bytes::mib(96));
        picture.pods = vec![view.into()];
        let list = list(&picture, &BTreeMap::new());
        let status = &list["items"][0]["status"];
        assert_eq!((&status["podIP"], &status["podIPs"]), (&json!("192.0.2.1"), &json!([{"ip": "192.0.2.1"}])));
        let of = &status["containerStatuses"][0];
        assert_eq!(of["user"], json!({"linux": {"uid": 1000, "gid": 2000, "supplementalGroups": [2000, 3000]}}));
        let mounts = json!([
            {"name": "v", "mountPath": "/a"},
            {"name": "v", "mountPath": "/b", "readOnly": true, "recursiveReadOnly": "Disabled"},
        ]);
        assert_eq!(of["volumeMounts"], mounts);
        assert_eq!(of["allocatedResources"], json!({"cpu": "250m", "memory": "96Mi"}));
        assert_eq!(of["resources"]["requests"], json!({"cpu": "250m", "memory": "64Mi"}));
    }

    #[test]
    fn a4_16_a_pod_that_was_turned_away_has_no_containers_to_tell_of() {
        let mut picture = samples::busy_node();
        let mut view = (*picture.pods[1]).clone();
        (view.state, view.phase) = ("Rejected".to_owned(), Phase::Failed);
        picture.pods = vec![view.into()];
        let list = list(&picture, &BTreeMap::new());
        let status = &list["items"][0]["status"];
        assert!(status.get("containerStatuses").is_none() && status.get("podIP").is_none(), "{status}");
    }

    #[test]
    fn a_health_that_was_never_known_has_no_time() {
        let mut picture = samples::busy_node();
        let mut view = (*picture.pods[0]).clone();
        view.health = beelet_core::health::Verdict { since: Micros::secs(1_000_000_000), ..Default::default() };
        picture.pods = vec![view.into()];
        let list = list(&picture, &BTreeMap::new());
        let healthy = condition_of(&list["items"][0], "beelet.dev/Healthy");
        assert_eq!(healthy["status"], "Unknown");
        assert!(healthy.get("lastTransitionTime").is_none_or(Value::is_null), "{healthy}");
    }

    #[test]
    fn the_list_reads_back() {
        let text = serde_json::to_string(&pod_list(&samples::busy_node(), &BTreeMap::new(), "")).unwrap();
        let back: ObjectList<Pod> = serde_json::from_str(&text).unwrap();
        assert_eq!(back.items.len(), 3);
    }
}
