//! From the typed pod to the plain [`PodSpec`] of the core: checks and defaults.
//!
//! Problem: on a static pod no API server has checked anything or filled anything in. Approach: the rules of
//! pkg/apis/core/validation and pkg/apis/core/v1/defaults.go (release 1.37) for the fields that are taken; those that are not
//! are judged in [`super::support`] before.
//!
//! Property: what comes out needs no further check: names are safe as file names, every mount has its volume, requests are
//! within limits.

mod env;
mod mounts;
mod network;
mod placement;
mod security;
mod volume;

use std::collections::{BTreeMap, BTreeSet};

use beelet_core::ladder::{WishError, Wishes};
use beelet_core::quantity::{parse_bytes, parse_cpu};
use beelet_core::spec::{
    ContainerSpec, LastWords, PodSpec, PodUid, Port, PullPolicy, Resources, RestartPolicy, StorageResources, Volume,
    VolumeKind,
};
use beelet_core::units::Micros;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use self::security::OfPod;
use super::lifecycle::lifecycle;
use super::names::{LABEL, is_dns1123_label, label_key_fault, port_name_fault};
use super::probe::{port_number, probes};
use super::restart::restart;
use crate::config::tree::{Fault, did_you_mean, join};

const NODE_CRITICAL: (&str, i32) = ("system-node-critical", 2_000_001_000);
const CLUSTER_CRITICAL: (&str, i32) = ("system-cluster-critical", 2_000_000_000);
const HOST_PATH_TYPES: &[&str] =
    &["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
pub(super) fn invalid(path: impl Into<String>, value: &str, why: impl std::fmt::Display) -> Fault {
    Fault::new(path, format!("Invalid value: {value:?}: {why}"))
}

pub(super) fn required(path: impl Into<String>) -> Fault {
    Fault::new(path, "Required value")
}

pub(crate) fn one_of<T: Copy>(path: &str, given: Option<&str>, default: T, values: &[(&str, T)]) -> Result<T, Fault> {
    let Some(given) = given.filter(|g| !g.is_empty()) else { return Ok(default) };
    values.iter().find(|(name, _)| *name == given).map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
        let hint = did_you_mean(given, names.iter().copied());
        Fault::new(path, format!("Unsupported value: {given:?}: supported values: {}{hint}", names.join(", ")))
    })
}

/// Makes the plain pod of one whose metadata has name, namespace and UID already. `left_out` is what was found to be so before.
pub(super) fn pod(pod: &api::Pod, origin: &str, mut left_out: Vec<String>) -> Result<PodSpec, Fault> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref().ok_or_else(|| required("spec"))?;
    let name = meta.name.clone().unwrap_or_default();
    let volumes = volumes(spec)?;
    let names: BTreeSet<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
    let (none, no_annotations) = (api::PodSecurityContext::default(), BTreeMap::new());
    let annotations = meta.annotations.as_ref().unwrap_or(&no_annotations);
    let security = OfPod::read(spec.security_context.as_ref().unwrap_or(&none), annotations, spec, &mut left_out)?;
    let host_network = spec.host_network.unwrap_or_default();
    let mut seen = BTreeSet::new();
    // Address, protocol, port, and whether it is a sidecar's.
    let mut host_ports: BTreeSet<(String, String, u16, bool)> = BTreeSet::new();
    let grace = spec.termination_grace_period_seconds.unwrap_or(30);
    let grace = u64::try_from(grace).map_err(|_| {
        invalid("spec.terminationGracePeriodSeconds", &grace.to_string(), "must be greater than or equal to 0")
    })?;
    let mut list = |path: &str, list: &[api::Container]| -> Result<Vec<ContainerSpec>, Fault> {
        // Those of the init containers are free again when the others start; sidecars keep theirs.
        host_ports.retain(|(.., keeps)| *keeps);
        let mut made = Vec::new();
        for (i, one) in list.iter().enumerate() {
            let path = format!("{path}[{i}]");
            let one = container(&path, one, &security, &names, host_network, grace)?;
            if !seen.insert(one.name.clone()) {
                return Err(Fault::new(format!("{path}.name"), format!("Duplicate value: {:?}", one.name)));
            }
            let keeps = one.restart.as_ref().is_some_and(|r| r.policy == RestartPolicy::Always);
            for port in one.ports.iter().filter(|p| p.host_port != 0) {
                let key = |keeps| (port.host_ip.clone(), port.protocol.clone(), port.host_port, keeps);
                if host_ports.contains(&key(!keeps)) || !host_ports.insert(key(keeps)) {
                    return Err(Fault::new(format!("{path}.ports"), format!("Duplicate host port {}", port.host_port)));
                }
            }
            made.push(one);
        }
        Ok(made)
    };
    let init_containers = list("spec.initContainers", spec.init_containers.as_deref().unwrap_or_default())?;
    let containers = list("spec.containers", &spec.containers)?;
    env::check_files("spec.initContainers", &init_containers, &volumes)?;
    env::check_files("spec.containers", &containers, &volumes)?;
    if containers.is_empty() {
        return Err(required("spec.containers"));
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        return Err(invalid(
            "spec.shareProcessNamespace",
            "true",
            "ShareProcessNamespace and HostPID cannot both be enabled",
        ));
    }
    let priority = priority(spec, &mut left_out);
    if let Err(WishError { key, value }) = Wishes::read(annotations) {
        return Err(invalid(format!("metadata.annotations[{key}]"), &value, "must be \"true\" or \"false\""));
    }
    Ok(PodSpec {
        uid: PodUid::from(meta.uid.as_deref().unwrap_or_default()),
        namespace: meta.namespace.clone().unwrap_or_default(),
        hostname: hostname(spec.hostname.as_deref(), &name)?,
        name,
        labels: meta.labels.clone().unwrap_or_default(),
        annotations: annotations.clone(),
        generation: meta.generation.unwrap_or_default(),
        origin: origin.to_owned(),
        left_out,
        priority,
        placement: placement::placement(spec)?,
        restart_policy: one_of(
            "spec.restartPolicy",
            spec.restart_policy.as_deref(),
            RestartPolicy::Always,
            &[
                ("Always", RestartPolicy::Always),
                ("OnFailure", RestartPolicy::OnFailure),
                ("Never", RestartPolicy::Never),
            ],
        )?,
        termination_grace: Micros::secs(grace),
        active_deadline: active_deadline(spec)?,
        host_network,
        host_pid: spec.host_pid.unwrap_or_default(),
        host_ipc: spec.host_ipc.unwrap_or_default(),
        share_process_namespace: spec.share_process_namespace.unwrap_or_default(),
        subdomain: network::subdomain(spec)?,
        hostname_as_fqdn: spec.set_hostname_as_fqdn.unwrap_or_default(),
        dns: network::dns(spec)?,
        host_aliases: network::host_aliases(spec)?,
        security: security.pod(host_network, spec.host_ipc.unwrap_or_default())?,
        volumes,
        readiness_gates: readiness_gates(spec)?,
        init_containers,
        containers,
    })
}

/// The names of conditions, which look like those of labels (pkg/apis/core/validation, `validateReadinessGates`).
fn readiness_gates(spec: &api::PodSpec) -> Result<Vec<String>, Fault> {
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    let checked = gates.iter().enumerate().map(|(at, gate)| match label_key_fault(&gate.condition_type) {
        None => Ok(gate.condition_type.clone()),
        Some(why) => Err(invalid(format!("spec.readinessGates[{at}].conditionType"), &gate.condition_type, why)),
    });
    checked.collect()
}

/// The two classes that exist without an API server (pkg/apis/scheduling/types.go).
fn priority(spec: &api::PodSpec, warnings: &mut Vec<String>) -> i32 {
    let class = spec.priority_class_name.as_deref().unwrap_or_default();
    let known = [NODE_CRITICAL, CLUSTER_CRITICAL].into_iter().find(|(name, _)| *name == class);
    let priority = known.map_or_else(|| spec.priority.unwrap_or_default(), |(_, value)| value);
    if known.is_none() && !class.is_empty() {
        warnings.push(format!(
            "spec.priorityClassName: {class:?} is not known without an API server, the priority is {priority}: set spec.priority"
        ));
    }
    priority
}

fn hostname(given: Option<&str>, name: &str) -> Result<String, Fault> {
    match given.filter(|h| !h.is_empty()) {
        Some(given) if is_dns1123_label(given) => Ok(given.to_owned()),
        Some(given) => Err(invalid("spec.hostname", given, LABEL)),
        // Cut as the kubelet does, so that it is still a name (pkg/kubelet/util, GetHostname).
        None => Ok(name.chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()),
    }
}

fn volumes(spec: &api::PodSpec) -> Result<Vec<Volume>, Fault> {
    let mut made: Vec<Volume> = Vec::new();
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let path = format!("spec.volumes[{i}]");
        if !is_dns1123_label(&volume.name) {
            return Err(invalid(format!("{path}.name"), &volume.name, LABEL));
        }
        if made.iter().any(|other| other.name == volume.name) {
            return Err(Fault::new(format!("{path}.name"), format!("Duplicate value: {:?}", volume.name)));
        }
        let mut kinds: Vec<VolumeKind> = volume::written(&path, volume)?.into_iter().map(VolumeKind::Written).collect();
        if let Some(dir) = &volume.empty_dir {
            kinds.push(empty_dir(&format!("{path}.emptyDir"), dir)?);
        }
        if let Some(host) = &volume.host_path {
            kinds.push(host_path(&format!("{path}.hostPath"), host)?);
        }
        // None at all is an emptyDir, as the API server's default.
        let kind = kinds.pop().unwrap_or(VolumeKind::EmptyDir { memory: false, size_limit: None });
        if !kinds.is_empty() {
            return Err(Fault::new(path, "may not specify more than 1 volume type"));
        }
        made.push(Volume { name: volume.name.clone(), kind });
    }
    Ok(made)
}

fn empty_dir(path: &str, dir: &api::EmptyDirVolumeSource) -> Result<VolumeKind, Fault> {
    let limit = dir.size_limit.as_ref().map(|limit| parse_bytes(&limit.0));
    Ok(VolumeKind::EmptyDir {
        memory: dir.medium.as_deref() == Some("Memory"),
        size_limit: limit.transpose().map_err(|e| Fault::new(format!("{path}.sizeLimit"), e.to_string()))?,
    })
}

fn host_path(path: &str, host: &api::HostPathVolumeSource) -> Result<VolumeKind, Fault> {
    if !host.path.starts_with('/') {
        return Err(invalid(format!("{path}.path"), &host.path, "must be an absolute path"));
    }
    if host.path.split('/').any(|part| part == "..") {
        return Err(invalid(format!("{path}.path"), &host.path, "must not contain '..'"));
    }
    let kind = host.type_.clone().unwrap_or_default();
    if !HOST_PATH_TYPES.contains(&kind.as_str()) {
        let supported = HOST_PATH_TYPES[1..].join(", ");
        return Err(Fault::new(
            format!("{path}.type"),
            format!(
                "Unsupported value: {kind:?}: supported values: {supported}{}",
                did_you_mean(&kind, HOST_PATH_TYPES.iter().copied())
            ),
        ));
    }
    Ok(VolumeKind::HostPath { path: host.path.clone(), kind })
}

fn container(
    path: &str,
    given: &api::Container,
    pod: &OfPod<'_>,
    volumes: &BTreeSet<&str>,
    host_network: bool,
    grace: u64,
) -> Result<ContainerSpec, Fault> {
    if given.name.is_empty() {
        return Err(required(format!("{path}.name")));
    }
    if !is_dns1123_label(&given.name) {
        return Err(invalid(format!("{path}.name"), &given.name, LABEL));
    }
    let image = given.image.clone().unwrap_or_default();
    if image.is_empty() {
        return Err(required(format!("{path}.image")));
    }
    if image.contains(char::is_whitespace) {
        return Err(invalid(format!("{path}.image"), &image, "must not have white space"));
    }
    let (resources, storage) = resources(&format!("{path}.resources"), given.resources.as_ref())?;
    let ((env_from, env), ports) = (env::env(path, given)?, ports(path, given, host_network)?);
    let probes = probes(path, given, &env, &ports)?;
    let lifecycle = lifecycle(path, given, &ports, grace)?;
    Ok(ContainerSpec {
        name: given.name.clone(),
        pull: one_of(
            &format!("{path}.imagePullPolicy"),
            given.image_pull_policy.as_deref(),
            default_pull(&image),
            &[("Always", PullPolicy::Always), ("IfNotPresent", PullPolicy::IfNotPresent), ("Never", PullPolicy::Never)],
        )?,
        image,
        command: given.command.clone().unwrap_or_default(),
        args: given.args.clone().unwrap_or_default(),
        working_dir: given.working_dir.clone().unwrap_or_default(),
        env_from,
        env,
        ports,
        mounts: mounts::mounts(path, given, volumes)?,
        resources,
        storage,
        security: pod.container(path, given)?,
        stdin: given.stdin.unwrap_or_default(),
        tty: given.tty.unwrap_or_default(),
        restart: restart(path, given)?,
        last_words: last_words(path, given)?,
        lifecycle,
        probes,
    })
}

fn active_deadline(spec: &api::PodSpec) -> Result<Option<Micros>, Fault> {
    let Some(secs) = spec.active_deadline_seconds else { return Ok(None) };
    let fits = u64::try_from(secs).ok().filter(|secs| (1..=i32::MAX.unsigned_abs().into()).contains(secs));
    let why = "must be between 1 and 2147483647, inclusive";
    fits.map(|secs| Some(Micros::secs(secs)))
        .ok_or_else(|| invalid("spec.activeDeadlineSeconds", &secs.to_string(), why))
}

fn last_words(path: &str, given: &api::Container) -> Result<LastWords, Fault> {
    let default = LastWords::default();
    let file = given.termination_message_path.clone().filter(|file| !file.is_empty()).unwrap_or(default.path);
    Ok(LastWords {
        // As the kubelet makes it absolute (pkg/volume/util, MakeAbsolutePath).
        path: if file.starts_with('/') { file } else { format!("/{file}") },
        from_log: one_of(
            &format!("{path}.terminationMessagePolicy"),
            given.termination_message_policy.as_deref(),
            default.from_log,
            &[("File", false), ("FallbackToLogsOnError", true)],
        )?,
    })
}

/// Always for `:latest` or no tag, else IfNotPresent (pkg/apis/core/v1/defaults.go).
fn default_pull(image: &str) -> PullPolicy {
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        _ if last.contains('@') => PullPolicy::IfNotPresent,
        None | Some((_, "latest")) => PullPolicy::Always,
        Some(_) => PullPolicy::IfNotPresent,
    }
}

fn ports(path: &str, given: &api::Container, host_network: bool) -> Result<Vec<Port>, Fault> {
    let mut made: Vec<Port> = Vec::new();
    for (i, port) in given.ports.iter().flatten().enumerate() {
        let path = format!("{path}.ports[{i}]");
        let name = port.name.clone().unwrap_or_default();
        if let Some(why) = port_name_fault(&name) {
            return Err(invalid(format!("{path}.name"), &name, why));
        }
        if !name.is_empty() && made.iter().any(|other| other.name == name) {
            return Err(Fault::new(format!("{path}.name"), format!("Duplicate value: {name:?}")));
        }
        let container_port = port_number(format!("{path}.containerPort"), port.container_port)?;
        let host_port = match port.host_port.unwrap_or_default() {
            0 if host_network => container_port,
            0 => 0,
            given => port_number(format!("{path}.hostPort"), given)?,
        };
        if host_network && host_port != container_port {
            let why = "must match `containerPort` when `hostNetwork` is true";
            return Err(invalid(format!("{path}.hostPort"), &host_port.to_string(), why));
        }
        let host_ip = port.host_ip.clone().unwrap_or_default();
        if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
            return Err(invalid(
                format!("{path}.hostIP"),
                &host_ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
        let protocols = [("TCP", "TCP"), ("UDP", "UDP"), ("SCTP", "SCTP")];
        let protocol = one_of(&format!("{path}.protocol"), port.protocol.as_deref(), "TCP", &protocols)?.to_owned();
        made.push(Port { name, container_port, host_port, host_ip, protocol });
    }
    Ok(made)
}

fn resources(path: &str, given: Option<&api::ResourceRequirements>) -> Result<(Resources, StorageResources), Fault> {
    let (mut made, mut storage) = (Resources::default(), StorageResources::default());
    let Some(given) = given else { return Ok((made, storage)) };
    let mut read = |part: &str, list: Option<&BTreeMap<String, Quantity>>, limit: bool| -> Result<(), Fault> {
        for (name, quantity) in list.into_iter().flatten() {
            let at = join(&format!("{path}.{part}"), name);
            let fault = |error: String| Fault::new(at.clone(), error);
            match name.as_str() {
                "cpu" => {
                    let cpu = Some(parse_cpu(&quantity.0).map_err(|e| fault(e.to_string()))?);
                    if limit { made.cpu_limit = cpu } else { made.cpu_request = cpu }
                }
                "memory" => {
                    let memory = Some(parse_bytes(&quantity.0).map_err(|e| fault(e.to_string()))?);
                    if limit { made.memory_limit = memory } else { made.memory_request = memory }
                }
                "ephemeral-storage" => {
                    let space = Some(parse_bytes(&quantity.0).map_err(|e| fault(e.to_string()))?);
                    if limit { storage.limit = space } else { storage.request = space }
                }
                other => {
                    let hint = did_you_mean(other, ["cpu", "memory", "ephemeral-storage"]);
                    return Err(fault(format!(
                        "this node has no such resource: cpu, memory and ephemeral-storage are{hint}"
                    )));
                }
            }
        }
        Ok(())
    };
    read("limits", given.limits.as_ref(), true)?;
    read("requests", given.requests.as_ref(), false)?;
    made.cpu_request = made.cpu_request.or(made.cpu_limit);
    made.memory_request = made.memory_request.or(made.memory_limit);
    storage.request = storage.request.or(storage.limit);
    if let (Some(request), Some(limit)) = (made.cpu_request, made.cpu_limit)
        && request > limit
    {
        let why = format!("must be less than or equal to cpu limit of {limit}");
        return Err(invalid(format!("{path}.requests.cpu"), &request.to_string(), why));
    }
    if let (Some(request), Some(limit)) = (made.memory_request, made.memory_limit)
        && request > limit
    {
        let why = format!("must be less than or equal to memory limit of {limit}");
        return Err(invalid(format!("{path}.requests.memory"), &request.to_string(), why));
    }
    if let (Some(request), Some(limit)) = (storage.request, storage.limit)
        && request > limit
    {
        let why = format!("must be less than or equal to ephemeral-storage limit of {limit}");
        return Err(invalid(format!("{path}.requests.ephemeral-storage"), &request.to_string(), why));
    }
    Ok((made, storage))
}
