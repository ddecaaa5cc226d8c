//! The node's settings, from files that people have already.
//!
//! Problem: a node's settings decide what is killed; a typing error or a field dropped in silence costs pods.
//! Approach: a list of files, each with one or more YAML (or JSON) documents, each known by `apiVersion` and `kind`: the kubelet's
//! own KubeletConfiguration ([`kubelet`]) and beelet's EnforcementPolicy ([`policy`]). What is unknown is an error with its
//! place and the nearest name; what is known and not acted on yet is a warning by name.
//!
//! Terms: *honoured* is a field that changes what beelet does; *known* is one that the kubelet has and beelet not yet.
//!
//! Properties: the same files give the same settings; no file makes it panic; without files all is at the kubelet's defaults.

pub(crate) mod duration;
mod known;
pub mod kubelet;
pub mod labels;
pub mod policy;
pub mod providers;
mod pulls;
pub(crate) mod tree;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use beelet_core::event::ResourceList;
use beelet_core::node::NodeConfig;
use beelet_core::security::NodeSecurity;
use beelet_core::sysctl::Allowlist;
use beelet_core::units::{Bytes, MilliCpu};

pub use kubelet::Kubelet;
pub use policy::EnforcementPolicy;
pub use tree::Fault;
use tree::{Node, did_you_mean, documents};

/// A larger file is not a configuration.
pub const MAX_FILE: Bytes = Bytes::mib(1);

/// All settings of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The KubeletConfiguration.
    pub kubelet: Kubelet,
    /// The EnforcementPolicy.
    pub policy: EnforcementPolicy,
}

/// What is accepted, but not as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The file.
    pub origin: PathBuf,
    /// Where in it; 0 where it is not known.
    pub line: u64,
    /// What, by the field's name.
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.origin.display(), self.line, self.message)
    }
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        error: std::io::Error,
    },
    /// It is too large for a configuration.
    #[error("{} is larger than {MAX_FILE}, so it is not a configuration file", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Something in it is wrong.
    #[error("{}: {fault}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What and where.
        #[source]
        fault: Fault,
    },
    /// A kind is there twice.
    #[error("{}: a second {kind} (line {line}); the first is in {}: keep one of them", path.display(), first.display())]
    Twice {
        /// The file with the second.
        path: PathBuf,
        /// Its line.
        line: u64,
        /// The kind.
        kind: &'static str,
        /// The file with the first.
        first: PathBuf,
    },
    /// More is reserved than the machine has.
    #[error(
        "kubeReserved and systemReserved are {reserved} {resource} together, and the machine has {capacity}: reserve less"
    )]
    Reserved {
        /// `cpu` or `memory`.
        resource: &'static str,
        /// What is reserved.
        reserved: String,
        /// What there is.
        capacity: String,
    },
    /// The node's name is none.
    #[error("{0:?} is not a node name: lower case letters, digits, '-' and '.', at most 253, as in node-1.example.com")]
    NodeName(String),
    /// The EnforcementPolicy names what does not exist.
    #[error("EnforcementPolicy: {0}")]
    Policy(#[source] Fault),
    /// The machine has cgroup v1, and the settings do not allow it.
    #[error(
        "the kubelet is configured to not run on a host using cgroup v1: boot with cgroup v2 \
         (systemd.unified_cgroup_hierarchy=1), or set failCgroupV1: false in the KubeletConfiguration"
    )]
    CgroupV1,
    /// The machine has swap, and the settings do not allow it.
    #[error(
        "failSwapOn: running with swap on is not supported: disable it (swapoff -a), \
         or set failSwapOn: false in the KubeletConfiguration"
    )]
    Swap,
}

/// What the machine has, as far as settings depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its CPUs.
    pub cpus: MilliCpu,
    /// Its memory.
    pub memory: Bytes,
    /// The cgroup hierarchy is v2 alone.
    pub cgroup_v2: bool,
    /// The release of the kernel, its first two numbers; `None` where it is not known.
    pub linux: Option<(u32, u32)>,
    /// AppArmor is there and on.
    pub app_armor: bool,
    /// SELinux is there and on.
    pub se_linux: bool,
    /// There is swap, and it is on.
    pub swap: bool,
    /// The size of the file system that holds the agent's folder.
    pub disk: Bytes,
}

impl Config {
    /// Reads the files in order. No files give the defaults.
    ///
    /// # Errors
    /// See [`ConfigError`]: a file is unreadable, too large or not YAML, or a field is unknown or has a wrong value.
    pub fn load(paths: &[PathBuf]) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut loading = Loading::default();
        for path in paths {
            let bytes = read_capped(path)?;
            loading.file(path, &bytes)?;
        }
        Ok((loading.config, loading.warnings))
    }

    /// What the core needs to know of it.
    ///
    /// # Errors
    /// The node's name is none, or more is reserved than the machine has.
    pub fn node_config(&self, machine: &Machine, node_name: &str) -> Result<NodeConfig, ConfigError> {
        if !crate::sources::is_dns1123_subdomain(node_name) {
            return Err(ConfigError::NodeName(node_name.to_owned()));
        }
        let kubelet = &self.kubelet;
        let (kube, system) = (kubelet.kube_reserved, kubelet.system_reserved);
        let (cpu, memory) = (kube.cpu + system.cpu, kube.memory + system.memory);
        let reserved =
            |resource, reserved: String, capacity: String| ConfigError::Reserved { resource, reserved, capacity };
        if cpu > machine.cpus {
            return Err(reserved("cpu", cpu.to_string(), machine.cpus.to_string()));
        }
        if memory > machine.memory {
            return Err(reserved("memory", memory.to_string(), machine.memory.to_string()));
        }
        Ok(NodeConfig {
            name: node_name.to_owned(),
            kubepods: kubelet.kubepods(),
            capacity: ResourceList { cpu: machine.cpus, memory: machine.memory },
            kube_reserved: kube,
            system_reserved: system,
            enforce_pods: kubelet.enforce_pods,
            eviction_hard: kubelet.eviction_hard.clone(),
            eviction_soft: kubelet.eviction_soft.clone(),
            max_pod_grace: kubelet.max_pod_grace,
            minimum_reclaim: kubelet.minimum_reclaim.quantity(machine.memory),
            eviction_disk: kubelet.eviction_disk.clone(),
            storage_limits: kubelet.storage_limits,
            pressure_transition: kubelet.pressure_transition,
            cpu_quota: kubelet.cpu_quota,
            cpu_period: kubelet.cpu_period,
            max_pods: kubelet.max_pods,
            max_backoff: kubelet.max_backoff,
            beside: false,
            enforce: self.policy.mode,
            rungs: self.policy.rungs.clone(),
            burst: self.policy.burst,
            cgroup_v2: machine.cgroup_v2,
            storage: kubelet.storage(machine.disk),
            labels: labels::of_node(node_name, &kubelet.node_labels),
            taints: kubelet.taints.clone(),
            security: NodeSecurity {
                sysctls: Allowlist::new(machine.linux, &kubelet.allowed_unsafe_sysctls),
                app_armor: machine.app_armor,
                se_linux: machine.se_linux,
            },
            own_budget: beelet_core::budget::PER_100_PODS,
        })
    }

    /// Whether beelet may own pods on this cgroup layout; a text is a warning for the log.
    ///
    /// # Errors
    /// cgroup v1 (or both side by side) while `failCgroupV1` is true, as the kubelet's default is since 1.35.
    pub fn check_cgroup_layout(&self, machine: &Machine) -> Result<Option<&'static str>, ConfigError> {
        match (machine.cgroup_v2, self.kubelet.fail_cgroup_v1) {
            (true, _) => Ok(None),
            (false, true) => Err(ConfigError::CgroupV1),
            (false, false) => Ok(Some(
                "cgroup v1 is in maintenance mode upstream and lacks memory.oom.group and pressure per pod: move to cgroup v2",
            )),
        }
    }

    /// Whether beelet may own pods on a machine with swap; a text is a warning for the log. The kubelet's default keeps it from
    /// starting there; here only a `failSwapOn: true` that somebody wrote does.
    ///
    /// # Errors
    /// There is swap, and the file says that there may be none.
    pub fn check_swap(&self, machine: &Machine) -> Result<Option<&'static str>, ConfigError> {
        match (machine.swap, self.kubelet.fail_swap_on) {
            (false, _) | (true, Some(false)) => Ok(None),
            (true, Some(true)) => Err(ConfigError::Swap),
            (true, None) => Ok(Some(
                "this machine has swap, with which a kubelet would not start unless failSwapOn is false: \
                 what pods swap is not limited, and their memory is not all that they use",
            )),
        }
    }

    /// Whether all eBPF programs that have a switch exist.
    ///
    /// # Errors
    /// One does not.
    pub fn check_programs(&self, known: &[&str]) -> Result<(), ConfigError> {
        self.policy.check_programs(known).map_err(ConfigError::Policy)
    }
}

fn read_capped(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE.get() + 1).read_to_end(&mut bytes))
        .map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    if bytes.len() as u64 > MAX_FILE.get() {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}

#[derive(Default)]
struct Loading {
    config: Config,
    warnings: Vec<Warning>,
    /// Which kinds were there, and where.
    seen: Vec<(&'static str, PathBuf)>,
}

impl Loading {
    fn file(&mut self, path: &Path, bytes: &[u8]) -> Result<(), ConfigError> {
        let failed = |fault| ConfigError::Document { path: path.to_owned(), fault };
        let documents = documents(bytes).map_err(failed)?;
        if documents.is_empty() {
            self.warn(path, 0, "nothing in it".to_owned());
        }
        for document in &documents {
            self.document(path, document)?;
        }
        Ok(())
    }

    fn document(&mut self, path: &Path, node: &Node) -> Result<(), ConfigError> {
        let failed = |fault| ConfigError::Document { path: path.to_owned(), fault };
        let (version, kind) = (node.text_of("apiVersion"), node.text_of("kind"));
        let line = |field: &str| node.get(field).map_or(node.line, |n| n.line);
        match kind {
            kubelet::KIND => {
                self.once(path, node.line, kubelet::KIND)?;
                if matches!(version, "" | "v1") {
                    let message =
                        format!("apiVersion: {version:?} is not that of a {kind}: write {}", kubelet::API_VERSION);
                    self.warn(path, line("apiVersion"), message);
                } else if version != kubelet::API_VERSION {
                    let problem = format!("{version:?} is not supported for a {kind}: write {}", kubelet::API_VERSION);
                    return Err(failed(Fault { path: "apiVersion".to_owned(), line: line("apiVersion"), problem }));
                }
                let warnings = &mut self.warnings;
                let origin = path.to_owned();
                let mut warn = |line, message| warnings.push(Warning { origin: origin.clone(), line, message });
                self.config.kubelet = kubelet::read(node, &mut warn).map_err(failed)?;
            }
            "EnforcementPolicy" => {
                self.once(path, node.line, "EnforcementPolicy")?;
                if version != policy::API_VERSION {
                    let problem = format!("{version:?} is not supported for a {kind}: write {}", policy::API_VERSION);
                    return Err(failed(Fault { path: "apiVersion".to_owned(), line: line("apiVersion"), problem }));
                }
                self.config.policy = node.read::<policy::Document>("").map_err(failed)?.into();
            }
            other => {
                let hint = did_you_mean(other, [kubelet::KIND, "EnforcementPolicy"]);
                let problem = format!(
                    "{other:?} is not a kind of this file{hint} ({} of {}, EnforcementPolicy of {})",
                    kubelet::KIND,
                    kubelet::API_VERSION,
                    policy::API_VERSION
                );
                return Err(failed(Fault { path: "kind".to_owned(), line: line("kind"), problem }));
            }
        }
        Ok(())
    }

    fn once(&mut self, path: &Path, line: u64, kind: &'static str) -> Result<(), ConfigError> {
        if let Some((_, first)) = self.seen.iter().find(|(seen, _)| *seen == kind) {
            return Err(ConfigError::Twice { path: path.to_owned(), line, kind, first: first.clone() });
        }
        self.seen.push((kind, path.to_owned()));
        Ok(())
    }

    fn warn(&mut self, path: &Path, line: u64, message: String) {
        self.warnings.push(Warning { origin: path.to_owned(), line, message });
    }
}

#[cfg(test)]
mod tests;
