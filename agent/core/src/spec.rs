//! What somebody wants: pods and their containers, already checked.
//!
//! Problem: a Kubernetes Pod has hundreds of fields, most of them optional, and the core must not parse or doubt.
//! Approach: the edge (`beelet::sources`) turns a manifest into these plain types, with every default filled in, and refuses
//! what cannot be honoured. The core and the runtime client read nothing else.
//!
//! Property: two manifests that differ only in `resources` give the same [`PodUid`] (the change is applied in place); any
//! other difference gives another one (the pod is replaced). Labels and annotations are changed in place where the UID is given.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dns::PodDns;
use crate::restart::ContainerRestart;
use crate::security::{GroupsPolicy, Profile, SeLinux};
use crate::units::{Bytes, Micros, MilliCpu};

mod lifecycle;
mod mount;
pub mod placement;
mod probe;
mod written;
pub use lifecycle::{Hook, Lifecycle};
pub use mount::{Mount, PathFault, Propagation, RecursiveReadOnly, SubPath, check_descending, name_of};
pub use placement::Placement;
pub use probe::{Handler, Probe, ProbeKind, Probes};
pub use written::{
    DownwardFile, DownwardValue, EnvFrom, KeyFile, ObjectKind, ObjectRef, Part, ResourceField, ResourceKind, Written,
    WrittenKind,
};

/// A pod's UID: `metadata.uid`, or for a manifest without one a hash of its content, its file and the node's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub Arc<str>);

impl PodUid {
    /// The UID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PodUid {
    fn from(uid: &str) -> Self {
        Self(uid.into())
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod that should run on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSpec {
    /// Identity; see [`PodUid`].
    pub uid: PodUid,
    /// `metadata.namespace`, "default" where a manifest has none.
    pub namespace: String,
    /// `metadata.name`; of a static pod with the kubelet's suffix `-<node name>`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.generation`, 0 for none.
    #[serde(default)]
    pub generation: i64,
    /// Where the wish comes from: a file's path, or [`API`].
    pub origin: String,
    /// What of the manifest is left out, each beginning with the field's name: for people, told with the pod.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// `spec.priority`, or the value of `priorityClassName: system-{node,cluster}-critical`.
    pub priority: i32,
    /// What it asks of its node.
    #[serde(default, skip_serializing_if = "Placement::is_empty")]
    pub placement: Placement,
    /// `spec.restartPolicy`.
    pub restart_policy: RestartPolicy,
    /// `spec.terminationGracePeriodSeconds`, default 30 s.
    pub termination_grace: Micros,
    /// `spec.activeDeadlineSeconds`: it may run so long, counted from when it was first seen.
    #[serde(default)]
    pub active_deadline: Option<Micros>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `spec.hostPID`.
    pub host_pid: bool,
    /// `spec.hostIPC`.
    pub host_ipc: bool,
    /// `spec.shareProcessNamespace`.
    pub share_process_namespace: bool,
    /// `spec.hostname`, else the pod's name cut to 63 characters.
    pub hostname: String,
    /// `spec.subdomain`, "" for none.
    #[serde(default)]
    pub subdomain: String,
    /// `spec.setHostnameAsFQDN`.
    #[serde(default)]
    pub hostname_as_fqdn: bool,
    /// `spec.dnsPolicy` and `spec.dnsConfig`.
    #[serde(default)]
    pub dns: PodDns,
    /// `spec.hostAliases`.
    #[serde(default)]
    pub host_aliases: Vec<HostAlias>,
    /// `spec.securityContext`, the fields that are for the whole pod.
    pub security: PodSecurity,
    /// `spec.volumes`.
    pub volumes: Vec<Volume>,
    /// `spec.readinessGates`: the conditions that it waits for before it is ready.
    #[serde(default)]
    pub readiness_gates: Vec<String>,
    /// `spec.initContainers`: run one after the other, each to success, before the others; sidecars ([`crate::restart`]) go on.
    pub init_containers: Vec<ContainerSpec>,
    /// `spec.containers`, at least one.
    pub containers: Vec<ContainerSpec>,
}

/// `spec.restartPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// However it ended.
    #[default]
    Always,
    /// Only after a failure.
    OnFailure,
    /// Not at all.
    Never,
}

/// `spec.securityContext`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSecurity {
    /// `runAsUser`.
    pub run_as_user: Option<i64>,
    /// `runAsGroup`.
    pub run_as_group: Option<i64>,
    /// `fsGroup`.
    pub fs_group: Option<i64>,
    /// `supplementalGroups`.
    pub supplemental_groups: Vec<i64>,
    /// `supplementalGroupsPolicy`.
    #[serde(default)]
    pub groups_policy: GroupsPolicy,
    /// `seLinuxOptions`, for the sandbox; containers have theirs.
    #[serde(default)]
    pub se_linux: Option<SeLinux>,
    /// `sysctls`, by their normal names ([`crate::sysctl::normal`]).
    pub sysctls: BTreeMap<String, String>,
}

/// One of `spec.hostAliases`: a line of the pod's hosts file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// `ip`.
    pub ip: String,
    /// `hostnames`.
    pub names: Vec<String>,
}

/// A volume of the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// `volumes[].name`.
    pub name: String,
    /// What it is.
    pub kind: VolumeKind,
}

/// The kinds of volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeKind {
    /// `emptyDir`.
    EmptyDir {
        /// `medium: Memory`.
        memory: bool,
        /// `sizeLimit`.
        size_limit: Option<Bytes>,
    },
    /// `hostPath`.
    HostPath {
        /// The absolute path on the node.
        path: String,
        /// `type`, "" where unset.
        kind: String,
    },
    /// `downwardAPI`, `projected`, `configMap`, `secret`.
    Written(Written),
}

impl VolumeKind {
    /// It is the pod's own and takes space on the node's disk.
    #[must_use]
    pub fn on_disk(&self) -> bool {
        match self {
            Self::EmptyDir { memory, .. } => !memory,
            Self::HostPath { .. } => true,
            Self::Written(written) => !written.kind.in_memory(),
        }
    }
}

/// A container that should run in the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// `name`, unique in the pod.
    pub name: String,
    /// `image`.
    pub image: String,
    /// `imagePullPolicy`, with the default by tag filled in.
    pub pull: PullPolicy,
    /// `command`: replaces the image's entrypoint.
    pub command: Vec<String>,
    /// `args`: replaces the image's arguments.
    pub args: Vec<String>,
    /// `workingDir`, "" for the image's.
    pub working_dir: String,
    /// `envFrom`, in order; [`Self::env`] goes over it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFrom>,
    /// `env`, in order. `$(NAME)` is expanded when the container is created.
    pub env: Vec<EnvVar>,
    /// `ports`.
    pub ports: Vec<Port>,
    /// `volumeMounts`.
    pub mounts: Vec<Mount>,
    /// `resources`.
    pub resources: Resources,
    /// `resources`, its `ephemeral-storage`.
    #[serde(default)]
    pub storage: StorageResources,
    /// `securityContext`.
    pub security: ContainerSecurity,
    /// `stdin`.
    pub stdin: bool,
    /// `tty`.
    pub tty: bool,
    /// `terminationMessagePath` and `terminationMessagePolicy`.
    #[serde(default)]
    pub last_words: LastWords,
    /// `restartPolicy` and `restartPolicyRules`; `None` where the pod's counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart: Option<ContainerRestart>,
    /// `lifecycle`.
    #[serde(default, skip_serializing_if = "Lifecycle::is_empty")]
    pub lifecycle: Lifecycle,
    /// `startupProbe`, `readinessProbe` and `livenessProbe`.
    #[serde(default, skip_serializing_if = "Probes::is_empty")]
    pub probes: Probes,
}

/// Where a container's message about its end comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWords {
    /// `terminationMessagePath`: the file in the container.
    pub path: String,
    /// `terminationMessagePolicy: FallbackToLogsOnError`: of one that fails and leaves that file empty, the end of its log.
    pub from_log: bool,
}

impl Default for LastWords {
    fn default() -> Self {
        Self { path: "/dev/termination-log".to_owned(), from_log: false }
    }
}

/// `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// Ask the registry each time.
    Always,
    /// Only if it is not there.
    IfNotPresent,
    /// It must be there.
    Never,
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Where its value comes from.
    pub value: EnvValue,
}

/// The value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// As written, before the expansion of `$(NAME)`.
    Literal(String),
    /// `valueFrom.fieldRef.fieldPath`, checked: `metadata.name`, `status.podIP`, ...
    Field(String),
    /// `valueFrom.resourceFieldRef`.
    Resource(ResourceField),
    /// `valueFrom.configMapKeyRef` and `valueFrom.secretKeyRef`.
    Key {
        /// The object.
        object: ObjectRef,
        /// `key`.
        key: String,
        /// `optional`: without it, or its object, the variable is not set.
        optional: bool,
    },
    /// `valueFrom.fileKeyRef`.
    File {
        /// `volumeName`, an emptyDir.
        volume: String,
        /// `path` in it.
        path: String,
        /// `key`: which of the file's variables.
        key: String,
        /// `optional`: if the file has no such variable, this one is not set.
        optional: bool,
    },
}

/// A port of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// `name`, "" for none; unique in the container.
    #[serde(default)]
    pub name: String,
    /// `containerPort`.
    pub container_port: u16,
    /// `hostPort`; 0 for none.
    pub host_port: u16,
    /// `hostIP`.
    pub host_ip: String,
    /// `protocol`: TCP, UDP or SCTP.
    pub protocol: String,
}

/// `securityContext` of a container; fields of the pod's already merged in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSecurity {
    /// `privileged`.
    pub privileged: bool,
    /// `readOnlyRootFilesystem`.
    pub read_only_root: bool,
    /// `runAsUser`.
    pub run_as_user: Option<i64>,
    /// `runAsGroup`.
    pub run_as_group: Option<i64>,
    /// `runAsNonRoot`.
    pub run_as_non_root: bool,
    /// `allowPrivilegeEscalation`; unset allows it.
    pub allow_privilege_escalation: Option<bool>,
    /// `capabilities.add`.
    pub cap_add: Vec<String>,
    /// `capabilities.drop`.
    pub cap_drop: Vec<String>,
    /// `seccompProfile`; unset takes `seccompDefault`.
    #[serde(default)]
    pub seccomp: Option<Profile>,
    /// `appArmorProfile`, or the annotation of older manifests; unset leaves it to the runtime.
    #[serde(default)]
    pub app_armor: Option<Profile>,
    /// `seLinuxOptions`.
    #[serde(default)]
    pub se_linux: Option<SeLinux>,
}

/// `resources` of a container. A limit without a request makes the request, as the API server does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// `requests.cpu`.
    pub cpu_request: Option<MilliCpu>,
    /// `limits.cpu`.
    pub cpu_limit: Option<MilliCpu>,
    /// `requests.memory`.
    pub memory_request: Option<Bytes>,
    /// `limits.memory`.
    pub memory_limit: Option<Bytes>,
}

/// `resources` of a container, its `ephemeral-storage`: apart from [`Resources`], as it cannot be changed in place. A limit without a
/// request makes the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageResources {
    /// `requests.ephemeral-storage`.
    pub request: Option<Bytes>,
    /// `limits.ephemeral-storage`.
    pub limit: Option<Bytes>,
}

/// `status.qosClass`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container has limits equal to its requests, for CPU and memory.
    Guaranteed,
    /// Something is requested or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

/// `origin` of a pod that a program made, or an API server.
pub const API: &str = "api";
/// From this priority on a pod is critical: `system-cluster-critical` (pkg/apis/scheduling/types.go).
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

impl ContainerSpec {
    /// A container of which nothing is known but its name.
    #[must_use]
    pub fn unknown(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: String::new(),
            pull: PullPolicy::IfNotPresent,
            command: Vec::new(),
            args: Vec::new(),
            working_dir: String::new(),
            env_from: Vec::new(),
            env: Vec::new(),
            ports: Vec::new(),
            mounts: Vec::new(),
            resources: Resources::default(),
            storage: StorageResources::default(),
            security: ContainerSecurity::default(),
            stdin: false,
            tty: false,
            restart: None,
            last_words: LastWords::default(),
            lifecycle: Lifecycle::default(),
            probes: Probes::default(),
        }
    }
}

impl PodSpec {
    /// A pod of which nothing is known but its UID.
    #[must_use]
    pub fn unknown(uid: PodUid) -> Self {
        Self {
            uid,
            namespace: "default".to_owned(),
            name: String::new(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            generation: 0,
            origin: String::new(),
            left_out: Vec::new(),
            priority: 0,
            placement: Placement::default(),
            restart_policy: RestartPolicy::Always,
            termination_grace: Micros::secs(30),
            active_deadline: None,
            host_network: false,
            host_pid: false,
            host_ipc: false,
            share_process_namespace: false,
            hostname: String::new(),
            subdomain: String::new(),
            hostname_as_fqdn: false,
            dns: PodDns::default(),
            host_aliases: Vec::new(),
            security: PodSecurity::default(),
            volumes: Vec::new(),
            readiness_gates: Vec::new(),
            init_containers: Vec::new(),
            containers: Vec::new(),
        }
    }

    /// `namespace/name`, as messages and metrics show it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Never evicted. In the standalone way every pod is static, so only the priority makes a pod critical.
    #[must_use]
    pub fn is_critical(&self) -> bool {
        self.priority >= CRITICAL_PRIORITY
    }

    /// Nobody makes it anew when it is turned away: it is a file on this node (pkg/kubelet/types, `IsStaticPod`).
    #[must_use]
    pub fn is_static(&self) -> bool {
        self.origin != API
    }

    /// The other one differs at most in what can be changed in place: `resources`, labels and annotations.
    #[must_use]
    pub fn can_become(&self, other: &Self) -> bool {
        let bare = |pod: &Self| {
            let mut bare = pod.clone();
            bare.left_out.clear();
            bare.generation = 0;
            bare.labels.clear();
            bare.annotations.clear();
            for container in bare.init_containers.iter_mut().chain(&mut bare.containers) {
                container.resources = Resources::default();
            }
            bare
        };
        bare(self) == bare(other)
    }

    /// It has volumes with files that beelet writes.
    #[must_use]
    pub fn has_written(&self) -> bool {
        self.volumes.iter().any(|volume| matches!(volume.kind, VolumeKind::Written(_)))
    }

    /// All containers, the initialising ones first.
    pub fn all_containers(&self) -> impl Iterator<Item = &ContainerSpec> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The container of that name.
    #[must_use]
    pub fn container(&self, name: &str) -> Option<&ContainerSpec> {
        self.all_containers().find(|c| c.name == name)
    }

    /// The class by the rules of pkg/apis/core/v1/helper/qos/qos.go (release 1.37): init containers count too.
    #[must_use]
    pub fn qos(&self) -> QosClass {
        let nothing = |r: &Resources| {
            let zero_cpu = |v: Option<MilliCpu>| v.is_none_or(|v| v == MilliCpu::ZERO);
            let zero_memory = |v: Option<Bytes>| v.is_none_or(|v| v == Bytes::ZERO);
            zero_cpu(r.cpu_request)
                && zero_cpu(r.cpu_limit)
                && zero_memory(r.memory_request)
                && zero_memory(r.memory_limit)
        };
        let equal = |r: &Resources| {
            r.cpu_limit.is_some_and(|l| l > MilliCpu::ZERO && r.cpu_request.is_none_or(|q| q == l))
                && r.memory_limit.is_some_and(|l| l > Bytes::ZERO && r.memory_request.is_none_or(|q| q == l))
        };
        if self.all_containers().all(|c| nothing(&c.resources)) {
            QosClass::BestEffort
        } else if self.all_containers().all(|c| equal(&c.resources)) {
            QosClass::Guaranteed
        } else {
            QosClass::Burstable
        }
    }
}
