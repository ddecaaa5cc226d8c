//! May this pod run here?
//!
//! Problem: a pod that comes from a file, or was bound by hand, was never looked at by a scheduler; one that a node takes although it
//! does not fit takes from those that run. Approach: the kubelet's checks in the kubelet's order, with its reasons and words: pressure
//! (pkg/kubelet/eviction `Admit`), sysctls, then system, groups, resources, labels, ports and taints (pkg/kubelet/lifecycle/predicate.go,
//! pkg/scheduler `AdmissionCheck`), then AppArmor; release 1.36. The first one that fails is told. What is admitted stays so.
//!
//! Terms: *static* is a pod that is a file on this node; nobody makes it anew once it was turned away. So, as upstream, it is not turned
//! away for what passes: pressure, and taints.
//!
//! Properties (tested): what is admitted fits beside all others; no two pods have the same host port; a critical pod is turned away for
//! lack of resources only where nobody can make room for it.

use std::borrow::Cow;

use crate::allocate::{self, Insufficient};
use crate::evict::disk::Condition;
use crate::node::NodeConfig;
use crate::pod::{Pod, PodState};
use crate::restart;
use crate::security::{self, Refusal, RuntimeFeatures};
use crate::spec::placement::{Effect, Taint};
use crate::spec::{PodSpec, PodUid, Port, QosClass};
use crate::units::Now;
use crate::world::World;

/// The label, of nodes and pods, with the operating system's name.
pub const OS_LABEL: &str = "kubernetes.io/os";
/// The operating system of this node, as the API names it.
pub const OS: &str = "linux";
const MEMORY_PRESSURE: &str = "MemoryPressure";

/// The node, as far as admission looks at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Its settings.
    pub(crate) node: &'a NodeConfig,
    /// What its runtime can do.
    pub(crate) runtime: RuntimeFeatures,
    /// Its conditions, by name.
    pub(crate) conditions: &'a [&'static str],
    /// The pods that hold resources of it.
    pub(crate) others: &'a [&'a PodSpec],
}

/// Why a pod cannot be admitted as things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hindrance {
    /// Resources are short, at least one; a critical pod may have room made for it.
    Short(Vec<Insufficient>),
    /// Anything else.
    Other(Refusal),
}

impl From<Insufficient> for Refusal {
    fn from(short: Insufficient) -> Self {
        Self::new(&short.reason(), short.to_string())
    }
}

impl From<Refusal> for Hindrance {
    fn from(refusal: Refusal) -> Self {
        Self::Other(refusal)
    }
}

impl Place<'_> {
    /// May it run here?
    pub(crate) fn admit(&self, pod: &PodSpec) -> Result<(), Hindrance> {
        self.pressure(pod)?;
        let security = &self.node.security;
        security::admit_sysctls(security, pod)?;
        system(pod)?;
        security::admit_groups(self.runtime, pod)?;
        let short = allocate::short(self.node, self.others.iter().copied(), pod);
        // Nobody goes for a critical pod that could not run here all the same.
        if !short.is_empty() && !pod.is_critical() {
            return Err(Hindrance::Short(short));
        }
        self.labels(pod)?;
        self.ports(pod)?;
        self.taints(pod)?;
        security::admit_app_armor(security, pod)?;
        if short.is_empty() { Ok(()) } else { Err(Hindrance::Short(short)) }
    }

    /// Pods that may come back are kept from a node that has just sent others away.
    fn pressure(&self, pod: &PodSpec) -> Result<(), Refusal> {
        if self.conditions.is_empty() || pod.is_critical() || pod.is_static() {
            return Ok(());
        }
        let taint = || Taint {
            key: "node.kubernetes.io/memory-pressure".to_owned(),
            value: String::new(),
            effect: Effect::NoSchedule,
        };
        // A pod that asks for memory has some coming to it.
        let bears = || pod.qos() != QosClass::BestEffort || pod.placement.tolerates(&taint());
        if *self.conditions == [MEMORY_PRESSURE] && bears() {
            return Ok(());
        }
        let message = format!("The node had condition: [{}]. ", self.conditions.join(" "));
        Err(Refusal::new("Evicted", message))
    }

    fn labels(&self, pod: &PodSpec) -> Result<(), Refusal> {
        if pod.placement.matches(&self.node.name, &self.node.labels) {
            return Ok(());
        }
        Err(failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"))
    }

    fn ports(&self, pod: &PodSpec) -> Result<(), Refusal> {
        let taken = |port: &Port| self.others.iter().flat_map(|other| host_ports(other)).any(|used| meet(port, used));
        if !host_ports(pod).any(taken) {
            return Ok(());
        }
        Err(failed("NodePorts", "node(s) didn't have free ports for the requested pod ports"))
    }

    fn taints(&self, pod: &PodSpec) -> Result<(), Refusal> {
        let bad = |taint: &Taint| taint.effect == Effect::NoExecute && !pod.placement.tolerates(taint);
        if pod.is_static() || !self.node.taints.iter().any(bad) {
            return Ok(());
        }
        Err(failed("TaintToleration", "node(s) had taints that the pod didn't tolerate"))
    }
}

fn failed(predicate: &str, why: &str) -> Refusal {
    Refusal::new(predicate, format!("Predicate {predicate} failed: {why}"))
}

/// What a node's own label says is not asked, as upstream.
fn system(pod: &PodSpec) -> Result<(), Refusal> {
    if pod.labels.get(OS_LABEL).is_some_and(|label| label != OS) {
        let message = format!("Failed to admit pod as the `{OS_LABEL}` label doesn't match node label");
        return Err(Refusal::new("PodOSSelectorNodeLabelDoesNotMatch", message));
    }
    if !matches!(pod.placement.os.as_str(), "" | OS) {
        let message = "Failed to admit pod as the OS field doesn't match node OS".to_owned();
        return Err(Refusal::new("PodOSNotSupported", message));
    }
    Ok(())
}

/// The host ports that a pod holds as long as it is there: not those of init containers that end.
fn host_ports(pod: &PodSpec) -> impl Iterator<Item = &Port> {
    let sidecars = pod.init_containers.iter().filter(|init| restart::is_sidecar(pod, init));
    sidecars.chain(&pod.containers).flat_map(|c| &c.ports).filter(|port| port.host_port != 0)
}

/// Two ports that are the same on an address that both have.
fn meet(a: &Port, b: &Port) -> bool {
    let all = |ip: &str| matches!(ip, "" | "0.0.0.0");
    a.host_port == b.host_port
        && a.protocol == b.protocol
        && (all(&a.host_ip) || all(&b.host_ip) || a.host_ip == b.host_ip)
}

impl World {
    /// Where a pod that is looked at goes; `None` where it waits for others to make room for it.
    pub(crate) fn admit(&mut self, uid: &PodUid, now: Now) -> Option<PodState> {
        let pod = self.pods.get(uid)?;
        // What runs already was admitted once.
        if !pod.sandboxes.is_empty() {
            return Some(PodState::Admitted);
        }
        let (conditions, others) = (self.conditions(), self.beside_of(uid));
        let others: Vec<&PodSpec> = others.iter().map(AsRef::as_ref).collect();
        let place = Place { node: &self.config, runtime: self.features, conditions: &conditions, others: &others };
        let refusal = match place.admit(&pod.spec) {
            Ok(()) => return Some(PodState::Admitted),
            Err(Hindrance::Short(_)) if pod.spec.is_critical() => self.make_room(uid, now)?,
            Err(Hindrance::Short(short)) => Refusal::from(short.into_iter().next()?),
            Err(Hindrance::Other(refusal)) => refusal,
        };
        Some(PodState::Rejected { reason: refusal.reason, message: refusal.message })
    }

    /// The node's conditions that are true.
    fn conditions(&self) -> Vec<&'static str> {
        let memory = self.memory_pressure().then_some(MEMORY_PRESSURE);
        let disks = Condition::ALL.into_iter().filter(|condition| self.disks.has(*condition));
        memory.into_iter().chain(disks.map(Condition::as_str)).collect()
    }

    /// The other pods that hold resources of this node.
    pub(crate) fn beside_of(&self, uid: &PodUid) -> Vec<Cow<'_, PodSpec>> {
        // One that was found running, or others go for, holds its share before its turn to be looked at.
        let holds = |p: &&Pod| match p.state {
            PodState::Observed => p.claims || !p.sandboxes.is_empty(),
            PodState::Rejected { .. } | PodState::Terminal(_) | PodState::Gone => false,
            _ => true,
        };
        self.pods.values().filter(|p| p.spec.uid != *uid).filter(holds).map(Pod::allocated).collect()
    }
}
