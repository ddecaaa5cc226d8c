//! The KubeletConfiguration, the fields that beelet acts on.
//!
//! Problem: people have this file already, with defaults that they rely on without having written them.
//! Approach: the file's own names; defaults of release 1.37 (kubelet's config/v1beta1/defaults.go); each value is checked here
//! once and kept in the type it is used as. What is known but not acted on yet is in [`super::known`].
//!
//! Property: a value of zero counts as unset wherever the kubelet's does (`port: 0`, `maxPods: 0`, a duration of `0s`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use beelet_core::event::ResourceList;
use beelet_core::evict::{Signal, Soft, Threshold, disk};
use beelet_core::images;
use beelet_core::logs;
use beelet_core::pulls;
use beelet_core::quantity::{Quantity, QuantityError, parse_bytes, parse_cpu};
use beelet_core::spec::placement::Taint;
use beelet_core::sysctl::{Pattern, PatternError};
use beelet_core::units::{Bytes, Micros, Ppm};
use serde::Deserialize;

use super::duration::Duration;
use super::known;
use super::labels::{WrittenTaint, taints};
use super::providers::Provider;
use super::pulls::Written;
use super::tree::{Fault, Node, Value, did_you_mean, join};

/// `apiVersion` of the kubelet's file.
pub const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
/// Its `kind`.
pub const KIND: &str = "KubeletConfiguration";

/// The kubelet's settings that beelet acts on, each by its name in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// `address`, default 127.0.0.1: as long as there is no authentication, the world sees nothing unasked (upstream: 0.0.0.0).
    pub address: IpAddr,
    /// `port`, default 10250.
    pub port: u16,
    /// `readOnlyPort`; 0 for none.
    pub read_only_port: u16,
    /// `staticPodPath`: the folder of manifests, or one file.
    pub static_pod_path: Option<PathBuf>,
    /// `fileCheckFrequency`, default 20 s.
    pub file_check: Micros,
    /// `podLogsDir`, default /var/log/pods.
    pub pod_logs_dir: PathBuf,
    /// `containerLogMaxSize` and `containerLogMaxFiles`; `None` where the size is negative: logs are not rotated.
    pub logs: Option<logs::Policy>,
    /// `containerLogMaxWorkers`, default 1: so many rotated logs are compressed at a time.
    pub log_workers: usize,
    /// `containerLogMonitorInterval`, default 10 s: quiet logs are looked at so often; one that grows as fast as it does.
    pub log_interval: Micros,
    /// `cgroupRoot`, without slashes at its ends.
    pub cgroup_root: String,
    /// `cpuCFSQuota`, default true.
    pub cpu_quota: bool,
    /// `cpuCFSQuotaPeriod`, default 100 ms.
    pub cpu_period: Micros,
    /// `maxPods`, default 110.
    pub max_pods: u32,
    /// `evictionHard`, its thresholds of memory.available.
    pub eviction_hard: Vec<Threshold>,
    /// `evictionSoft` with `evictionSoftGracePeriod`, of both memory signals.
    pub eviction_soft: BTreeMap<Signal, Soft>,
    /// `evictionMaxPodGracePeriod`, default 0: what a victim of a soft threshold is given at most.
    pub max_pod_grace: Micros,
    /// `evictionMinimumReclaim` of memory.available.
    pub minimum_reclaim: Threshold,
    /// `evictionHard`, `evictionSoft` and `evictionMinimumReclaim` of all other signals.
    pub eviction_disk: disk::Thresholds,
    /// `localStorageCapacityIsolation`, default true.
    pub storage_limits: bool,
    /// `imageGCHighThresholdPercent` and its like.
    pub image_policy: images::Policy,
    /// `evictionPressureTransitionPeriod`, default 5 min.
    pub pressure_transition: Micros,
    /// `systemReserved`.
    pub system_reserved: ResourceList,
    /// `kubeReserved`.
    pub kube_reserved: ResourceList,
    /// `systemReserved` and `kubeReserved`, their `ephemeral-storage` together.
    pub storage_reserved: Bytes,
    /// `registerWithTaints`.
    pub taints: Vec<Taint>,
    /// `--node-labels`.
    pub node_labels: BTreeMap<String, String>,
    /// `enforceNodeAllocatable` names `pods` (the default): kubepods gets the memory limit.
    pub enforce_pods: bool,
    /// `failCgroupV1`, default true.
    pub fail_cgroup_v1: bool,
    /// `containerRuntimeEndpoint`: the path of its socket.
    pub runtime_socket: PathBuf,
    /// `runtimeRequestTimeout`, default 2 min.
    pub runtime_timeout: Micros,
    /// `serializeImagePulls`, `maxParallelImagePulls`, `registryPullQPS`, `registryBurst`.
    pub pulls: pulls::Policy,
    /// `--image-credential-provider-config`.
    pub credential_providers: Vec<Provider>,
    /// `crashLoopBackOff.maxContainerRestartPeriod`, default 300 s.
    pub max_backoff: Micros,
    /// `clusterDomain`, "" for none.
    pub cluster_domain: String,
    /// `clusterDNS`.
    pub cluster_dns: Vec<IpAddr>,
    /// `resolvConf`, default /etc/resolv.conf; `None` where it is "" (no DNS).
    pub resolv_conf: Option<PathBuf>,
    /// `oomScoreAdj`, default -999.
    pub oom_score_adj: i32,
    /// `seccompDefault`, default false.
    pub seccomp_default: bool,
    /// `allowedUnsafeSysctls`: what pods may set beside the safe ones.
    pub allowed_unsafe_sysctls: Vec<Pattern>,
    /// `failSwapOn`, where the file says it.
    pub fail_swap_on: Option<bool>,
}

impl Default for Kubelet {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 10_250,
            read_only_port: 0,
            static_pod_path: None,
            file_check: Micros::secs(20),
            pod_logs_dir: PathBuf::from("/var/log/pods"),
            logs: Some(logs::Policy::default()),
            log_workers: 1,
            log_interval: Micros::secs(10),
            cgroup_root: String::new(),
            cpu_quota: true,
            cpu_period: Micros::millis(100),
            max_pods: 110,
            eviction_hard: vec![Threshold::default()],
            eviction_soft: BTreeMap::new(),
            max_pod_grace: Micros::ZERO,
            minimum_reclaim: Threshold::Quantity(Bytes::ZERO),
            eviction_disk: disk::Thresholds::default(),
            storage_limits: true,
            image_policy: images::Policy::default(),
            pressure_transition: Micros::secs(300),
            system_reserved: ResourceList::default(),
            kube_reserved: ResourceList::default(),
            storage_reserved: Bytes::ZERO,
            taints: Vec::new(),
            node_labels: BTreeMap::new(),
            enforce_pods: true,
            fail_cgroup_v1: true,
            runtime_socket: PathBuf::from("/run/containerd/containerd.sock"),
            runtime_timeout: Micros::secs(120),
            pulls: pulls::Policy::default(),
            credential_providers: Vec::new(),
            max_backoff: Micros::secs(300),
            cluster_domain: String::new(),
            cluster_dns: Vec::new(),
            resolv_conf: Some(PathBuf::from("/etc/resolv.conf")),
            oom_score_adj: -999,
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            fail_swap_on: None,
        }
    }
}

impl Kubelet {
    /// Where to serve. Until TLS is there all is plain HTTP without authentication: on `readOnlyPort`, whose upstream meaning is
    /// exactly that; without one on `port`.
    #[must_use]
    pub fn server_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, if self.read_only_port == 0 { self.port } else { self.read_only_port })
    }

    /// What pods may ask for of a disk of this size (pkg/kubelet/cm, `GetNodeAllocatableReservation`): nothing where
    /// `localStorageCapacityIsolation` is off, as upstream, whose node has no such resource then.
    #[must_use]
    pub fn storage(&self, disk: Bytes) -> Bytes {
        if !self.storage_limits {
            return Bytes::ZERO;
        }
        let threshold = self.eviction_disk.hard.get(&disk::Signal::NodeFs);
        disk - self.storage_reserved - threshold.map_or(Bytes::ZERO, |threshold| threshold.quantity(disk))
    }

    /// The kubepods cgroup, relative to the hierarchies' roots: `kubepods`, `bed/kubepods`.
    #[must_use]
    pub fn kubepods(&self) -> String {
        if self.cgroup_root.is_empty() { "kubepods".to_owned() } else { format!("{}/kubepods", self.cgroup_root) }
    }
}

/// The document as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Document {
    address: Option<String>,
    port: u16,
    read_only_port: u16,
    static_pod_path: String,
    file_check_frequency: Duration,
    pod_logs_dir: String,
    container_log_max_size: String,
    container_log_max_files: Option<i32>,
    container_log_max_workers: Option<i32>,
    container_log_monitor_interval: Option<Duration>,
    cgroup_root: String,
    cgroup_driver: String,
    #[serde(rename = "cpuCFSQuota")]
    cpu_cfs_quota: Option<bool>,
    #[serde(rename = "cpuCFSQuotaPeriod")]
    cpu_cfs_quota_period: Option<Duration>,
    max_pods: u32,
    eviction_hard: Option<BTreeMap<String, String>>,
    eviction_soft: BTreeMap<String, String>,
    eviction_soft_grace_period: BTreeMap<String, Duration>,
    eviction_max_pod_grace_period: i32,
    eviction_pressure_transition_period: Duration,
    eviction_minimum_reclaim: BTreeMap<String, String>,
    merge_default_eviction_settings: bool,
    local_storage_capacity_isolation: Option<bool>,
    #[serde(rename = "imageGCHighThresholdPercent")]
    image_gc_high_threshold_percent: Option<i32>,
    #[serde(rename = "imageGCLowThresholdPercent")]
    image_gc_low_threshold_percent: Option<i32>,
    #[serde(rename = "imageMinimumGCAge")]
    image_minimum_gc_age: Duration,
    #[serde(rename = "imageMaximumGCAge")]
    image_maximum_gc_age: Duration,
    system_reserved: BTreeMap<String, String>,
    kube_reserved: BTreeMap<String, String>,
    register_with_taints: Vec<WrittenTaint>,
    enforce_node_allocatable: Option<Vec<String>>,
    #[serde(rename = "failCgroupV1")]
    fail_cgroup_v1: Option<bool>,
    container_runtime_endpoint: String,
    runtime_request_timeout: Duration,
    serialize_image_pulls: Option<bool>,
    max_parallel_image_pulls: Option<i32>,
    #[serde(rename = "registryPullQPS")]
    registry_pull_qps: Option<i32>,
    registry_burst: i32,
    crash_loop_back_off: CrashLoop,
    cluster_domain: String,
    #[serde(rename = "clusterDNS")]
    cluster_dns: Vec<String>,
    resolv_conf: Option<String>,
    oom_score_adj: Option<i32>,
    seccomp_default: bool,
    allowed_unsafe_sysctls: Vec<String>,
    fail_swap_on: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CrashLoop {
    max_container_restart_period: Option<Duration>,
}

/// The names in [`Document`]; a test keeps the two together.
const HONOURED: &[&str] = &[
    "address",
    "port",
    "readOnlyPort",
    "staticPodPath",
    "fileCheckFrequency",
    "podLogsDir",
    "containerLogMaxSize",
    "containerLogMaxFiles",
    "containerLogMaxWorkers",
    "containerLogMonitorInterval",
    "cgroupRoot",
    "cgroupDriver",
    "cpuCFSQuota",
    "cpuCFSQuotaPeriod",
    "maxPods",
    "evictionHard",
    "evictionSoft",
    "evictionSoftGracePeriod",
    "evictionMaxPodGracePeriod",
    "evictionPressureTransitionPeriod",
    "evictionMinimumReclaim",
    "mergeDefaultEvictionSettings",
    "localStorageCapacityIsolation",
    "imageGCHighThresholdPercent",
    "imageGCLowThresholdPercent",
    "imageMinimumGCAge",
    "imageMaximumGCAge",
    "systemReserved",
    "kubeReserved",
    "registerWithTaints",
    "enforceNodeAllocatable",
    "failCgroupV1",
    "containerRuntimeEndpoint",
    "runtimeRequestTimeout",
    "serializeImagePulls",
    "maxParallelImagePulls",
    "registryPullQPS",
    "registryBurst",
    "crashLoopBackOff",
    "clusterDomain",
    "clusterDNS",
    "resolvConf",
    "oomScoreAdj",
    "seccompDefault",
    "allowedUnsafeSysctls",
    "failSwapOn",
];

/// pkg/kubelet/eviction/api/types.go.
const SIGNALS: &[&str] = &[
    "memory.available",
    "allocatableMemory.available",
    "nodefs.available",
    "nodefs.inodesFree",
    "imagefs.available",
    "imagefs.inodesFree",
    "containerfs.available",
    "containerfs.inodesFree",
    "pid.available",
];
const MEMORY: &str = "memory.available";
/// These follow from the signals of the file system that they share, as upstream (`UpdateContainerFsThresholds`,
/// pkg/kubelet/eviction/helpers.go).
const DERIVED: &str = "no effect: as in the kubelet, containerfs has the settings of the file system that it shares, \
                       nodefs or imagefs; set those";

/// Reads a KubeletConfiguration; `warn` takes line and text of what is accepted but not as it stands.
pub(super) fn read(node: &Node, warn: &mut dyn FnMut(u64, String)) -> Result<Kubelet, Fault> {
    let Value::Map(fields) = &node.value else {
        return Err(Fault { line: node.line, ..Fault::new("", "fields (name: value) are wanted") });
    };
    let mut ours = Vec::new();
    for (name, line, value) in fields {
        if HONOURED.contains(&name.as_str()) {
            ours.push((name.clone(), *line, value.clone()));
        } else if let Some((_, default)) = known::FIELDS.iter().find(|(known, _)| known == name) {
            if known::is_empty(value) {
                continue;
            }
            if let Some((_, instead)) = known::NOT_EVEN_DEFAULT.iter().find(|(known, _)| known == name) {
                warn(*line, format!("{name}: not supported yet, and its default is not in effect: {instead}"));
            } else if !known::is_default(default, value) {
                warn(*line, format!("{name}: not supported yet; the default is in effect"));
            }
        } else if !["apiVersion", "kind"].contains(&name.as_str()) {
            let all = HONOURED.iter().copied().chain(known::FIELDS.iter().map(|(known, _)| *known));
            return Err(Fault {
                line: *line,
                ..Fault::new(name.as_str(), format!("unknown field{}", did_you_mean(name, all)))
            });
        }
    }
    let line_of = |field: &str| {
        let root = field.split(['.', '[']).next().unwrap_or_default();
        fields.iter().find(|(name, ..)| name == root).map_or(node.line, |(_, line, _)| *line)
    };
    let document: Document = Node { line: node.line, value: Value::Map(ours) }.read("")?;
    resolve(document, &mut |field, text| warn(line_of(field), format!("{field}: {text}")))
        .map_err(|fault| if fault.line == 0 { Fault { line: line_of(&fault.path), ..fault } } else { fault })
}

fn resolve(document: Document, warn: &mut dyn FnMut(&str, &str)) -> Result<Kubelet, Fault> {
    let default = Kubelet::default();
    let or = |value: Duration, default: Micros| if value.0 == Micros::ZERO { default } else { value.0 };
    let path = |text: String, default: PathBuf| if text.is_empty() { default } else { PathBuf::from(text) };
    let address = document.address.as_deref().filter(|a| !a.is_empty());
    if document.port != 0 && document.read_only_port == 0 {
        warn("port", "served as plain HTTP without authentication: TLS is not supported yet");
    }
    match document.cgroup_driver.as_str() {
        "" | "cgroupfs" => {}
        "systemd" => {
            return Err(Fault::new(
                "cgroupDriver",
                "\"systemd\" is not supported yet: set cgroupfs, here and in containerd",
            ));
        }
        other => {
            return Err(Fault::new("cgroupDriver", format!("{other:?} is not a driver: cgroupfs is, systemd will be")));
        }
    }
    let cpu_period = document.cpu_cfs_quota_period.map_or(default.cpu_period, |d| d.0);
    if cpu_period < Micros::millis(1) || cpu_period > Micros::secs(1) {
        return Err(Fault::new("cpuCFSQuotaPeriod", format!("{cpu_period} is not between 1ms and 1s")));
    }
    let max_backoff = document.crash_loop_back_off.max_container_restart_period.map_or(default.max_backoff, |d| d.0);
    if max_backoff < Micros::secs(1) || max_backoff > Micros::secs(300) {
        let field = "crashLoopBackOff.maxContainerRestartPeriod";
        return Err(Fault::new(field, format!("{max_backoff} is not between 1s and 300s")));
    }
    let oom_score_adj = document.oom_score_adj.unwrap_or(default.oom_score_adj);
    if !(-1000..=1000).contains(&oom_score_adj) {
        return Err(Fault::new("oomScoreAdj", format!("{oom_score_adj} is not between -1000 and 1000")));
    }
    let (eviction_hard, disk_hard) = match &document.eviction_hard {
        None => (default.eviction_hard, default.eviction_disk.hard),
        Some(given) => hard_thresholds(given, document.merge_default_eviction_settings, warn)?,
    };
    let (eviction_soft, disk_soft) =
        soft_thresholds(&document.eviction_soft, &document.eviction_soft_grace_period, warn)?;
    let max_pod_grace = u64::try_from(document.eviction_max_pod_grace_period).map_err(|_| {
        let problem = format!("{} is not a number of seconds from 0 on", document.eviction_max_pod_grace_period);
        Fault::new("evictionMaxPodGracePeriod", problem)
    })?;
    let (minimum_reclaim, disk_reclaim) = reclaim(&document.eviction_minimum_reclaim, warn)?;
    let image_policy = image_policy(&document)?;
    let logs = log_policy(&document, warn)?;
    let (log_workers, log_interval) = log_pace(&document)?;
    let enforce = document.enforce_node_allocatable.unwrap_or_else(|| vec!["pods".to_owned()]);
    for (index, name) in enforce.iter().enumerate() {
        let field = format!("enforceNodeAllocatable[{index}]");
        match name.as_str() {
            "pods" | "none" => {}
            "system-reserved" | "system-reserved-compressible" | "kube-reserved" | "kube-reserved-compressible" => {
                warn(&field, &format!("{name:?} is not acted on yet"));
            }
            other => {
                return Err(Fault::new(
                    field,
                    format!(
                        "{other:?} is not one of none, pods, system-reserved, kube-reserved, \
                    system-reserved-compressible, kube-reserved-compressible"
                    ),
                ));
            }
        }
    }
    if enforce.len() > 1 && enforce.iter().any(|e| e == "none") {
        return Err(Fault::new("enforceNodeAllocatable", "\"none\" stands alone"));
    }
    if !enforce.iter().any(|e| e == "pods") {
        warn("enforceNodeAllocatable", "leaving out \"pods\" is not acted on yet: kubepods keeps its memory limit");
    }
    let (system_reserved, system_storage) = reserved("systemReserved", &document.system_reserved, warn)?;
    let (kube_reserved, kube_storage) = reserved("kubeReserved", &document.kube_reserved, warn)?;
    let cluster_dns = document.cluster_dns.iter().enumerate();
    let cluster_dns = cluster_dns.map(|(i, text)| ip(&format!("clusterDNS[{i}]"), text)).collect::<Result<_, _>>()?;
    Ok(Kubelet {
        address: address.map_or(Ok(default.address), |text| ip("address", text))?,
        port: if document.port == 0 { default.port } else { document.port },
        read_only_port: document.read_only_port,
        static_pod_path: Some(document.static_pod_path).filter(|p| !p.is_empty()).map(PathBuf::from),
        file_check: or(document.file_check_frequency, default.file_check),
        pod_logs_dir: path(document.pod_logs_dir, default.pod_logs_dir),
        logs,
        log_workers,
        log_interval,
        cgroup_root: cgroup_root(&document.cgroup_root)?,
        cpu_quota: document.cpu_cfs_quota.unwrap_or(default.cpu_quota),
        cpu_period,
        max_pods: if document.max_pods == 0 { default.max_pods } else { document.max_pods },
        eviction_hard,
        eviction_soft,
        max_pod_grace: Micros::secs(max_pod_grace),
        minimum_reclaim,
        eviction_disk: disk::Thresholds { hard: disk_hard, soft: disk_soft, reclaim: disk_reclaim },
        storage_limits: document.local_storage_capacity_isolation.unwrap_or(default.storage_limits),
        image_policy,
        pressure_transition: or(document.eviction_pressure_transition_period, default.pressure_transition),
        system_reserved,
        kube_reserved,
        storage_reserved: system_storage + kube_storage,
        taints: taints(&document.register_with_taints)?,
        node_labels: BTreeMap::new(),
        enforce_pods: enforce.iter().any(|e| e == "pods"),
        fail_cgroup_v1: document.fail_cgroup_v1.unwrap_or(default.fail_cgroup_v1),
        runtime_socket: socket(&document.container_runtime_endpoint)?.unwrap_or(default.runtime_socket),
        runtime_timeout: or(document.runtime_request_timeout, default.runtime_timeout),
        pulls: super::pulls::read(Written {
            serialize: document.serialize_image_pulls,
            parallel: document.max_parallel_image_pulls,
            per_second: document.registry_pull_qps,
            burst: document.registry_burst,
        })?,
        credential_providers: Vec::new(),
        max_backoff,
        cluster_domain: document.cluster_domain,
        cluster_dns,
        resolv_conf: match document.resolv_conf {
            None => default.resolv_conf,
            Some(text) => Some(text).filter(|t| !t.is_empty()).map(PathBuf::from),
        },
        oom_score_adj,
        seccomp_default: document.seccomp_default,
        allowed_unsafe_sysctls: allowed_sysctls(&document.allowed_unsafe_sysctls)?,
        fail_swap_on: document.fail_swap_on,
    })
}

fn allowed_sysctls(given: &[String]) -> Result<Vec<Pattern>, Fault> {
    let read = |(i, text): (usize, &String)| {
        text.parse().map_err(|error: PatternError| Fault::new(format!("allowedUnsafeSysctls[{i}]"), error.to_string()))
    };
    given.iter().enumerate().map(read).collect()
}

/// As the kubelet, which takes a negative size for "no rotation" (pkg/kubelet/apis/config/validation and pkg/kubelet/logs, release 1.36).
fn log_policy(document: &Document, warn: &mut dyn FnMut(&str, &str)) -> Result<Option<logs::Policy>, Fault> {
    const LEAST: Bytes = Bytes(4_096);
    let default = logs::Policy::default();
    let files = document.container_log_max_files.unwrap_or(5);
    let max_files = u32::try_from(files)
        .ok()
        .filter(|files| *files > 1)
        .ok_or_else(|| Fault::new("containerLogMaxFiles", format!("{files} is not greater than 1")))?;
    let text = &document.container_log_max_size;
    let max_size = match parse_bytes(text) {
        _ if text.is_empty() => default.max_size,
        Ok(size) => size,
        Err(QuantityError::Negative(_)) => {
            warn("containerLogMaxSize", "negative, so no log is rotated: a pod may fill the disk");
            return Ok(None);
        }
        Err(error) => return Err(Fault::new("containerLogMaxSize", error.to_string())),
    };
    if max_size < LEAST {
        warn("containerLogMaxSize", "less than 4Ki, a log would be rotated at every look; 4Ki is in effect");
    }
    Ok(Some(logs::Policy { max_size: max_size.max(LEAST), max_files }))
}

/// `containerLogMaxWorkers` and `containerLogMonitorInterval`.
fn log_pace(document: &Document) -> Result<(usize, Micros), Fault> {
    let workers = document.container_log_max_workers.unwrap_or(1);
    let log_workers = usize::try_from(workers)
        .ok()
        .filter(|workers| *workers > 0)
        .ok_or_else(|| Fault::new("containerLogMaxWorkers", format!("{workers} is not greater than or equal to 1")))?;
    let interval = document.container_log_monitor_interval.map_or(Micros::secs(10), |interval| interval.0);
    if interval < Micros::secs(3) {
        return Err(Fault::new(
            "containerLogMonitorInterval",
            format!("{interval} is not greater than or equal to 3s"),
        ));
    }
    Ok((log_workers, interval))
}

fn ip(field: &str, text: &str) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| Fault::new(field, format!("{text:?} is not an IP address, as 0.0.0.0 or fd00::1")))
}

fn socket(text: &str) -> Result<Option<PathBuf>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let path = text.strip_prefix("unix://").unwrap_or(text);
    if path.starts_with('/') {
        return Ok(Some(PathBuf::from(path)));
    }
    let problem = format!("{text:?} is not a Unix socket, as unix:///run/containerd/containerd.sock");
    Err(Fault::new("containerRuntimeEndpoint", problem))
}

fn cgroup_root(text: &str) -> Result<String, Fault> {
    let root = text.trim_matches('/');
    if root.split('/').any(|part| part == "." || part == "..") || root.contains("//") || root.contains('\0') {
        return Err(Fault::new("cgroupRoot", format!("{text:?} is not a cgroup's path, as /beelet")));
    }
    Ok(root.to_owned())
}

fn signal(field: &str, name: &str) -> Result<(), Fault> {
    if SIGNALS.contains(&name) {
        return Ok(());
    }
    let hint = did_you_mean(name, SIGNALS.iter().copied());
    Err(Fault::new(join(field, name), format!("unknown eviction signal{hint}")))
}

/// An amount, or a share of the capacity.
fn amount(field: &str, name: &str, text: &str) -> Result<Threshold, Fault> {
    let fault = |problem: String| Fault::new(join(field, name), problem);
    let Some(percent) = text.strip_suffix('%') else {
        return parse_bytes(text).map(Threshold::Quantity).map_err(|e| fault(e.to_string()));
    };
    let plain = percent.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let percent = percent.parse::<Quantity>().ok().filter(|p| plain && p.value() <= 100);
    let percent = percent.ok_or_else(|| fault(format!("{text:?} is not a share between 0% and 100%")))?;
    let ppm = percent.nano() / 100_000;
    Ok(Threshold::Share(Ppm(u64::try_from(ppm).unwrap_or_default())))
}

/// A threshold; `None` where upstream takes it for none (0% and 100%, pkg/kubelet/eviction/helpers.go).
fn threshold(field: &str, name: &str, text: &str) -> Result<Option<Threshold>, Fault> {
    match amount(field, name, text)? {
        Threshold::Share(Ppm(0 | 1_000_000)) => Ok(None),
        Threshold::Quantity(Bytes::ZERO) => {
            Err(Fault::new(join(field, name), format!("{text:?} has to be above zero; to switch it off write 0%")))
        }
        other => Ok(Some(other)),
    }
}

fn disk_signal(name: &str) -> Option<disk::Signal> {
    disk::Signal::ALL.into_iter().find(|signal| signal.as_str() == name)
}

/// Says so of a signal whose settings follow from another one's; whether it is one.
fn is_derived(field: &str, name: &str, warn: &mut dyn FnMut(&str, &str)) -> bool {
    let derived = name.starts_with("containerfs.");
    if derived {
        warn(&join(field, name), DERIVED);
    }
    derived
}

type Hard = (Vec<Threshold>, BTreeMap<disk::Signal, Threshold>);

fn hard_thresholds(
    given: &BTreeMap<String, String>,
    merge: bool,
    warn: &mut dyn FnMut(&str, &str),
) -> Result<Hard, Fault> {
    const FIELD: &str = "evictionHard";
    let (mut memory, mut disks) = (Vec::new(), BTreeMap::new());
    for (name, text) in given {
        signal(FIELD, name)?;
        let threshold = threshold(FIELD, name, text)?;
        if name == MEMORY {
            memory.extend(threshold);
        } else if let Some(signal) = disk_signal(name) {
            if !is_derived(FIELD, name, warn) {
                disks.extend(threshold.map(|threshold| (signal, threshold)));
            }
        } else if threshold.is_some() {
            warn(&join(FIELD, name), "no effect: it follows memory.available, as in the kubelet");
        }
    }
    if merge {
        // What is switched off by 0% was given, and stays off.
        let defaults = disk::Thresholds::default().hard.into_iter();
        disks.extend(defaults.filter(|(signal, _)| !given.contains_key(signal.as_str())));
    }
    if merge && !given.contains_key(MEMORY) {
        memory.push(Threshold::default());
    } else if memory.is_empty() {
        warn(FIELD, "no threshold for memory.available, so no pod is evicted for memory");
    }
    Ok((memory, disks))
}

type SoftOnes = (BTreeMap<Signal, Soft>, BTreeMap<disk::Signal, Soft>);

/// Upstream copies only hard thresholds of memory.available to allocatableMemory.available (`addAllocatableThresholds`,
/// pkg/kubelet/eviction/helpers.go, release 1.37), so here each stands for the signal that it names.
fn soft_thresholds(
    given: &BTreeMap<String, String>,
    grace: &BTreeMap<String, Duration>,
    warn: &mut dyn FnMut(&str, &str),
) -> Result<SoftOnes, Fault> {
    let (mut memory, mut disks) = (BTreeMap::new(), BTreeMap::new());
    for (name, text) in given {
        signal("evictionSoft", name)?;
        let Some(threshold) = threshold("evictionSoft", name, text)? else { continue };
        let Some(Duration(grace)) = grace.get(name).copied() else {
            let field = join("evictionSoftGracePeriod", name);
            return Err(Fault::new(field, format!("missing: evictionSoft sets {name}, so it needs its grace period")));
        };
        let soft = Soft { threshold, grace };
        if let Some(signal) = [Signal::Memory, Signal::AllocatableMemory].into_iter().find(|s| s.as_str() == name) {
            memory.insert(signal, soft);
        } else if let Some(signal) = disk_signal(name).filter(|_| !is_derived("evictionSoft", name, warn)) {
            disks.insert(signal, soft);
        }
    }
    for name in grace.keys() {
        signal("evictionSoftGracePeriod", name)?;
    }
    Ok((memory, disks))
}

fn reclaim(
    given: &BTreeMap<String, String>,
    warn: &mut dyn FnMut(&str, &str),
) -> Result<(Threshold, BTreeMap<disk::Signal, Threshold>), Fault> {
    const FIELD: &str = "evictionMinimumReclaim";
    let (mut memory, mut disks) = (Threshold::Quantity(Bytes::ZERO), BTreeMap::new());
    for (name, text) in given {
        signal(FIELD, name)?;
        let amount = amount(FIELD, name, text)?;
        if amount == Threshold::Share(Ppm(0)) {
            let problem = format!("{text:?} has to be above 0%; to ask for no more than the threshold leave it out");
            return Err(Fault::new(join(FIELD, name), problem));
        }
        if name == MEMORY {
            memory = amount;
        } else if let Some(signal) = disk_signal(name) {
            if !is_derived(FIELD, name, warn) {
                disks.insert(signal, amount);
            }
        } else {
            warn(&join(FIELD, name), "no effect: it follows memory.available, as in the kubelet");
        }
    }
    Ok((memory, disks))
}

/// Checked as upstream (pkg/kubelet/apis/config/validation/validation.go, release 1.36).
fn image_policy(document: &Document) -> Result<images::Policy, Fault> {
    let default = images::Policy::default();
    let percent = |field: &str, given: Option<i32>, default: u8| match given {
        None => Ok(default),
        Some(given) => u8::try_from(given)
            .ok()
            .filter(|p| *p <= 100)
            .ok_or_else(|| Fault::new(field, format!("{given} is not a percentage between 0 and 100"))),
    };
    let high = percent("imageGCHighThresholdPercent", document.image_gc_high_threshold_percent, default.high)?;
    let low = percent("imageGCLowThresholdPercent", document.image_gc_low_threshold_percent, default.low)?;
    if low >= high {
        let problem = format!("{low} is not less than imageGCHighThresholdPercent, which is {high}");
        return Err(Fault::new("imageGCLowThresholdPercent", problem));
    }
    let min_age = document.image_minimum_gc_age.0;
    let min_age = if min_age == Micros::ZERO { default.min_age } else { min_age };
    let max_age = document.image_maximum_gc_age.0;
    if max_age > Micros::ZERO && max_age <= min_age {
        let problem = format!("{max_age} is not more than imageMinimumGCAge, which is {min_age}; 0s switches it off");
        return Err(Fault::new("imageMaximumGCAge", problem));
    }
    Ok(images::Policy { high, low, min_age, max_age })
}

fn reserved(
    field: &str,
    given: &BTreeMap<String, String>,
    warn: &mut dyn FnMut(&str, &str),
) -> Result<(ResourceList, Bytes), Fault> {
    let (mut list, mut storage) = (ResourceList::default(), Bytes::ZERO);
    for (name, text) in given {
        let fault = |error: String| Fault::new(join(field, name), error);
        match name.as_str() {
            "cpu" => list.cpu = parse_cpu(text).map_err(|e| fault(e.to_string()))?,
            "memory" => list.memory = parse_bytes(text).map_err(|e| fault(e.to_string()))?,
            "ephemeral-storage" => storage = parse_bytes(text).map_err(|e| fault(e.to_string()))?,
            "pid" => {
                parse_bytes(text).map_err(|e| fault(e.to_string()))?;
                warn(&join(field, name), "not acted on yet");
            }
            other => {
                let known = ["cpu", "memory", "ephemeral-storage", "pid"];
                let hint = did_you_mean(other, known);
                return Err(fault(format!("unknown resource{hint} ({})", known.join(", "))));
            }
        }
    }
    Ok((list, storage))
}

#[cfg(test)]
mod tests {
    use super::super::tree::documents;
    use super::*;

    #[test]
    fn every_honoured_name_is_a_field() {
        let text = HONOURED.iter().map(|name| format!("{name}: null\n")).collect::<String>();
        documents(text.as_bytes()).unwrap()[0].read::<Document>("").unwrap();
        for name in HONOURED {
            assert!(!known::FIELDS.iter().any(|(known, _)| known == name), "{name} is in both lists");
        }
    }

    #[test]
    fn shares_are_exact() {
        for (text, ppm) in [("5%", 50_000), ("7.5%", 75_000), ("0.1%", 1_000), ("99.9999%", 999_999)] {
            assert_eq!(threshold("f", "memory.available", text), Ok(Some(Threshold::Share(Ppm(ppm)))), "{text}");
        }
        assert_eq!(threshold("f", "memory.available", "0%"), Ok(None));
        for text in ["101%", "-5%", "%", "5k%", "5 %", "0", "-1", "x"] {
            assert!(threshold("f", "memory.available", text).is_err(), "{text}");
        }
    }
}
