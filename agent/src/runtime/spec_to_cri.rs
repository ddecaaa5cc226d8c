//! From a pod's spec to what the runtime is told. Pure.
//!
//! Property: the same spec, node and attempt give the same request; the sandbox config that goes with each container is the
//! one that the sandbox was made with, `privileged` included, but for the note of what was known then ([`names::GIVEN`]).

mod mounts;
mod security;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use beelet_core::content::Allocatable;
use beelet_core::dns::{self, NameTooLong, NodeDns, ResolvConfError, Resolver, Told};
use beelet_core::event::LinuxResources;
use beelet_core::security::RuntimeFeatures;
use beelet_core::spec::{ContainerSpec, PodSpec};
use beelet_core::units::Micros;
use beelet_proto::cri;

use super::env::{Fields, Given, expand, variables};
use super::error::SpecError;
use super::ops::ContainerStart;
use super::{last_words, names, paths, pre_stop};

pub use mounts::sub_paths;
pub(super) use mounts::wants_recursive_read_only;
pub use security::ImageUser;
pub(super) use security::needs_image_user;

/// What of the node goes into every pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEnv {
    /// The id of this beelet ([`super::instance`]).
    pub instance: String,
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, the first one leading.
    pub host_ips: Vec<String>,
    /// `/var/lib/kubelet` or what takes its place.
    pub root: PathBuf,
    /// `podLogsDir`.
    pub pod_logs_dir: PathBuf,
    /// Whom its pods ask for names.
    pub dns: NodeDns,
    /// The controllers are on cgroup v2.
    pub cgroup_v2: bool,
    /// `seccompDefault`: containers without a profile get the runtime's rather than none.
    pub seccomp_default: bool,
    /// Paths of this machine that a container must not read, beside those of every machine.
    pub masked: Vec<String>,
    /// What a container may use that has no limit.
    pub allocatable: Allocatable,
}

/// What a sandbox is made from. `cgroup` is the pod's, relative to the hierarchies' roots; `dns` is its [`resolver`].
///
/// # Errors
/// If the host name that the pod asks for is too long.
pub fn sandbox_config(
    node: &NodeEnv,
    spec: &PodSpec,
    cgroup: &str,
    attempt: u32,
    dns: cri::DnsConfig,
) -> Result<cri::PodSandboxConfig, NameTooLong> {
    let mut annotations: HashMap<String, String> = owned(&spec.annotations);
    annotations.insert(names::MANAGED.to_owned(), node.instance.clone());
    let mut labels: HashMap<String, String> = owned(&spec.labels);
    labels.extend(pod_labels(spec));

    let hostname = if spec.host_network { String::new() } else { dns::host_name_of(spec, &node.dns.cluster_domain)? };
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: spec.name.clone(),
            uid: spec.uid.as_str().to_owned(),
            namespace: spec.namespace.clone(),
            attempt,
        }),
        hostname,
        log_directory: paths::log_dir(&node.pod_logs_dir, spec).display().to_string(),
        dns_config: Some(dns),
        port_mappings: if spec.host_network { Vec::new() } else { port_mappings(spec) },
        labels,
        annotations,
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{cgroup}"),
            security_context: Some(security::of_sandbox(spec)),
            sysctls: owned(&spec.security.sysctls),
            ..cri::LinuxPodSandboxConfig::default()
        }),
    })
}

/// What a container is made from. `image_user` is needed only where [`needs_image_user`] says so, in `given` is what
/// [`Given::is_needed`] says, and what the `runtime` can do is needed where a mount is to be read-only recursively.
///
/// # Errors
/// If the spec asks for what is not there, or for a user that it forbids itself.
pub fn container_config(
    node: &NodeEnv,
    start: &ContainerStart<'_>,
    image_user: Option<&ImageUser>,
    given: &Given,
    runtime: RuntimeFeatures,
) -> Result<cri::ContainerConfig, SpecError> {
    let spec = start.spec;
    let container =
        spec.container(start.container).ok_or_else(|| SpecError::NoContainer(start.container.to_owned()))?;
    let env = variables(Fields::of(node, start), start.container, given)?;
    let all_expanded = |texts: &[String]| texts.iter().map(|text| expand(text, &env)).collect();

    let mut labels: HashMap<String, String> = pod_labels(spec).collect();
    labels.insert(names::CONTAINER_NAME.to_owned(), container.name.clone());
    let user = security::user(container, image_user)?;

    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: container.name.clone(), attempt: start.attempt }),
        image: Some(cri::ImageSpec {
            image: container.image.clone(),
            user_specified_image: container.image.clone(),
            ..cri::ImageSpec::default()
        }),
        command: all_expanded(&container.command),
        args: all_expanded(&container.args),
        working_dir: container.working_dir.clone(),
        mounts: mounts::mounts(node, start, container, runtime)?,
        devices: Vec::new(),
        labels,
        annotations: container_annotations(node, start, container),
        log_path: paths::log_path(&container.name, start.attempt),
        stdin: container.stdin,
        stdin_once: false,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(start.linux, node.cgroup_v2)),
            security_context: Some(security::of_container(node, spec, container, user)),
        }),
        envs: env.into_iter().map(|(key, value)| cri::KeyValue { key, value: value.into_bytes() }).collect(),
    })
}

/// The resources of a new container.
pub(super) fn resources(linux: &LinuxResources, cgroup_v2: bool) -> cri::LinuxContainerResources {
    let knobs = &linux.knobs;
    let mut unified = HashMap::new();
    if cgroup_v2 {
        // The OOM killer takes all of a container or nothing: half a container is no container.
        unified.insert("memory.oom.group".to_owned(), "1".to_owned());
    }
    cri::LinuxContainerResources {
        cpu_period: signed(knobs.cpu_period.get()),
        cpu_quota: knobs.cpu_quota.map_or(0, |quota| signed(quota.get())),
        cpu_shares: knobs.cpu_shares.map_or(0, signed),
        memory_limit_in_bytes: knobs.memory_max.map_or(0, |limit| signed(limit.get())),
        oom_score_adj: i64::from(linux.oom_score_adj),
        unified,
        ..cri::LinuxContainerResources::default()
    }
}

/// The resources that a container gets in place of what it has. Here 0 would mean "as it was", so no limit is -1.
pub(super) fn changed_resources(linux: &LinuxResources) -> cri::LinuxContainerResources {
    let mut new = resources(linux, false);
    if linux.knobs.cpu_quota.is_none() {
        new.cpu_quota = -1;
    }
    if linux.knobs.memory_max.is_none() {
        new.memory_limit_in_bytes = -1;
    }
    new
}

/// For annotations: types without maps of odd keys and without custom code, so writing them cannot fail.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

fn container_annotations(
    node: &NodeEnv,
    start: &ContainerStart<'_>,
    container: &ContainerSpec,
) -> HashMap<String, String> {
    let policy = if container.last_words.from_log { last_words::FROM_LOG } else { last_words::FROM_FILE };
    let mut annotations = HashMap::from([
        (names::CONTAINER_HASH, format!("{:x}", hash(container))),
        (names::RESTART_COUNT, start.attempt.to_string()),
        (names::TERMINATION_MESSAGE_PATH, container.last_words.path.clone()),
        (names::TERMINATION_MESSAGE_POLICY, policy.to_owned()),
        (names::TERMINATION_GRACE, whole_secs(start.spec.termination_grace).to_string()),
        (names::MANAGED, node.instance.clone()),
        (names::RESOURCES, json(&start.linux.resources)),
        (names::KNOBS, json(&start.linux.knobs)),
    ]);
    if let Some(hook) = &container.lifecycle.pre_stop {
        annotations.insert(names::PRE_STOP, pre_stop::write(hook));
    }
    if !container.ports.is_empty() {
        let ports = container.ports.iter().map(|port| {
            let mut entry = serde_json::json!({ "containerPort": port.container_port, "protocol": port.protocol });
            if !port.name.is_empty() {
                entry["name"] = port.name.clone().into();
            }
            if port.host_port != 0 {
                entry["hostPort"] = port.host_port.into();
            }
            if !port.host_ip.is_empty() {
                entry["hostIP"] = port.host_ip.clone().into();
            }
            entry
        });
        annotations.insert(names::PORTS, serde_json::Value::from_iter(ports).to_string());
    }
    annotations.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// FNV-1a over the container's spec without its resources.
fn hash(container: &ContainerSpec) -> u64 {
    let mut container = container.clone();
    container.resources = beelet_core::spec::Resources::default();
    let text = serde_json::to_string(&container).unwrap_or_default();
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn namespaces(spec: &PodSpec) -> cri::NamespaceOption {
    use cri::NamespaceMode::{Container, Node, Pod};
    let or_pod = |host: bool| (if host { Node } else { Pod }).into();
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (true, _) => Node,
        (false, true) => Pod,
        (false, false) => Container,
    };
    cri::NamespaceOption {
        network: or_pod(spec.host_network),
        pid: pid.into(),
        ipc: or_pod(spec.host_ipc),
        target_id: String::new(),
    }
}

/// The runtime maps a port only if the node has one for it.
fn port_mappings(spec: &PodSpec) -> Vec<cri::PortMapping> {
    let ports = spec.containers.iter().flat_map(|c| &c.ports).filter(|port| port.host_port != 0);
    let mapping = |port: &beelet_core::spec::Port| cri::PortMapping {
        protocol: match port.protocol.as_str() {
            "UDP" => cri::Protocol::Udp,
            "SCTP" => cri::Protocol::Sctp,
            _ => cri::Protocol::Tcp,
        }
        .into(),
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_ip.clone(),
    };
    ports.map(mapping).collect()
}

/// The pod's resolver, and what people are told of it.
///
/// # Errors
/// If the node's resolv.conf cannot be understood.
pub fn resolver(node: &NodeEnv, spec: &PodSpec) -> Result<(cri::DnsConfig, Vec<Told>), ResolvConfError> {
    let name = format!("{}_{}({})", spec.name, spec.namespace, spec.uid);
    let wish = (&spec.dns, spec.host_network);
    let (Resolver { servers, searches, options }, told) =
        dns::form(&node.dns, &node.host_ips, wish, (&spec.namespace, &name))?;
    Ok((cri::DnsConfig { servers, searches, options }, told))
}

fn pod_labels(spec: &PodSpec) -> impl Iterator<Item = (String, String)> {
    [(names::POD_NAME, &*spec.name), (names::POD_NAMESPACE, &*spec.namespace), (names::POD_UID, spec.uid.as_str())]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// Whole seconds, rounded up: a grace period is never cut.
pub(super) fn whole_secs(time: Micros) -> u64 {
    time.get().div_ceil(1_000_000)
}

fn owned(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn int(value: i64) -> cri::Int64Value {
    cri::Int64Value { value }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
