//! The kubelet's (pkg/kubelet/eviction/{eviction_manager,helpers}.go, release 1.37).
//!
//! Each 10 s it asks for a summary and compares the node's memory and that of `kubepods`, both less working set, with the threshold;
//! if one is met, the pods are ranked and the first goes with a grace of 1 s. Then it waits, looking each second, up to 30 s for the
//! pod to be cleaned up, and starts again at once. The summary reads the node and `kubepods` anew
//! (pkg/kubelet/server/stats/summary.go, `Get` with `updateStats`); the pods are as cAdvisor's housekeeping saw them last, up to
//! 10 s ago, so the decision is fresh and the ranking may be old. A pod that is being deleted is ranked like any other until it has
//! ended (`filterOutInactivePods`, pkg/kubelet/kubelet_pods.go).

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::allocate::pod_requests;
use beelet_core::evict::{Threshold, available};
use beelet_core::node::NodeConfig;
use beelet_core::spec::{PodSpec, PodUid};
use beelet_core::units::{Bytes, Micros};

use super::{Look, Rules, Verdict};

/// `evictionMonitoringPeriod` (pkg/kubelet/kubelet.go).
const PERIOD: Micros = Micros::secs(10);
/// `housekeeping_interval` of cAdvisor (pkg/kubelet/cadvisor/cadvisor_linux.go).
const HOUSEKEEPING: Micros = Micros::secs(10);
/// `podCleanupPollFreq` (eviction_manager.go).
const CLEANUP_POLL: Micros = Micros::secs(1);
/// `podCleanupTimeout` (eviction_manager.go).
const CLEANUP_TIMEOUT: Micros = Micros::secs(30);

/// The kubelet.
pub struct Kubelet {
    thresholds: Vec<Threshold>,
    specs: Vec<Arc<PodSpec>>,
    /// From a pass to the housekeeping before it.
    age: Micros,
    pass: Option<Micros>,
    housekeeping: Micros,
    /// Working sets.
    stats: BTreeMap<PodUid, Bytes>,
    evicted: Vec<PodUid>,
    /// Waits since then for this one.
    waits: Option<(Micros, PodUid)>,
}

impl Kubelet {
    /// `age`: how old the statistics of pods are at its first pass, below 10 s.
    #[must_use]
    pub fn new(node: &NodeConfig, specs: &[Arc<PodSpec>], age: Micros) -> Self {
        Self {
            thresholds: node.eviction_hard.clone(),
            specs: specs.to_vec(),
            age,
            pass: None,
            housekeeping: Micros::ZERO,
            stats: BTreeMap::new(),
            evicted: Vec::new(),
            waits: None,
        }
    }

    fn low(&self, look: &Look) -> bool {
        let walls = available(&look.sample);
        walls.iter().any(|w| self.thresholds.iter().any(|t| w.kubelet < t.quantity(w.limit)))
    }

    /// `rankMemoryPressure`: who uses more than it asks for, then lower priority, then more above the request. A pod without statistics
    /// goes first.
    fn first(&self) -> Option<PodUid> {
        let candidates = self.specs.iter().filter(|s| !s.is_critical() && !self.evicted.contains(&s.uid));
        let key = |spec: &&Arc<PodSpec>| {
            let request = i128::from(pod_requests(spec).memory.get());
            let over = self.stats.get(&spec.uid).map(|usage| i128::from(usage.get()) - request);
            (over.is_some(), over.is_some_and(|o| o <= 0), spec.priority, std::cmp::Reverse(over), spec.name.clone())
        };
        candidates.min_by_key(key).map(|s| s.uid.clone())
    }
}

impl Rules for Kubelet {
    fn name(&self) -> &'static str {
        "kubelet"
    }

    /// SIGTERM at once and SIGKILL after the grace of 1 s (`immediateEvictionGracePeriodSeconds`): the first process of a container
    /// does not die of a SIGTERM that it does not handle (pid_namespaces(7)).
    fn kills_after(&self) -> Micros {
        Micros::secs(1)
    }

    /// Assumed: sandbox and volumes within a second.
    fn cleans_after(&self) -> Option<Micros> {
        Some(Micros::secs(1))
    }

    fn look(&mut self, look: &Look) -> Verdict {
        let now = look.sample.at;
        let pass = *self.pass.get_or_insert(now + self.age);
        if now >= self.housekeeping {
            let usage = |p: &beelet_core::sample::PodReading| Some((p.uid.clone(), p.cgroup.memory?.working_set()));
            self.stats = look.pods().iter().filter_map(usage).collect();
            self.housekeeping = now + HOUSEKEEPING;
        }
        let mut kill = None;
        if now >= pass {
            let waits = self
                .waits
                .as_ref()
                .is_some_and(|(since, uid)| now - *since < CLEANUP_TIMEOUT && look.memory(uid).is_some());
            let next = if waits {
                CLEANUP_POLL
            } else {
                kill = if self.low(look) { self.first() } else { None };
                self.waits = kill.clone().map(|uid| (now, uid));
                self.evicted.extend(kill.clone());
                if kill.is_some() { CLEANUP_POLL } else { PERIOD }
            };
            self.pass = Some(now + next);
        }
        let next = self.pass.map_or(self.housekeeping, |pass| pass.min(self.housekeeping));
        Verdict { kill, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{bare_container, bare_pod};
    use crate::workload::Curve;
    use beelet_core::sample::{CgroupReading, MemoryReading, NodeReading, PodReading, Sample};

    fn pod(name: &str, request: Option<u64>, priority: i32) -> Arc<PodSpec> {
        let mut spec = bare_pod(name);
        let mut container = bare_container("c", &Curve::Idle { holds: Bytes::ZERO });
        container.resources.memory_request = request.map(Bytes::mib);
        spec.containers = vec![container];
        spec.priority = priority;
        Arc::new(spec)
    }

    /// `free` MiB of 4096; pods with their working sets.
    fn look(second: u64, free: u64, pods: &[(&str, u64)]) -> Look {
        let reading = |(name, usage): &(&str, u64)| {
            let memory = MemoryReading { usage: Bytes::mib(*usage), ..MemoryReading::default() };
            let cgroup = CgroupReading { memory: Some(memory), ..CgroupReading::default() };
            PodReading::of(format!("uid-{name}").as_str().into(), cgroup)
        };
        let node = NodeReading {
            memory_total: Bytes::mib(4_096),
            memory_working_set: Bytes::mib(4_096 - free),
            ..NodeReading::default()
        };
        let sample = Sample {
            at: Micros::secs(second),
            node,
            pods: Some(pods.iter().map(reading).collect()),
            ..Sample::default()
        };
        Look { sample, ..Look::default() }
    }

    /// Name, request and priority of a pod, and what it uses.
    type Case = (&'static str, Option<u64>, i32, u64);

    #[test]
    fn ranks_by_over_request_then_priority_then_excess() {
        let cases: [(&str, &[Case], &str); 5] = [
            ("over its request first, however little", &[("a", Some(900), 0, 890), ("b", Some(10), 0, 11)], "b"),
            ("over its request before lower priority", &[("a", Some(900), -5, 890), ("b", Some(10), 9, 11)], "b"),
            ("lower priority before more excess", &[("a", None, 5, 800), ("b", None, 1, 100)], "b"),
            ("more excess, not more usage", &[("a", Some(700), 0, 800), ("b", Some(10), 0, 200)], "b"),
            ("critical never", &[("a", None, 2_000_000_000, 800), ("b", Some(900), 0, 100)], "b"),
        ];
        for (what, pods, expected) in cases {
            let specs: Vec<_> =
                pods.iter().map(|(name, request, priority, _)| pod(name, *request, *priority)).collect();
            let usage: Vec<_> = pods.iter().map(|(name, _, _, usage)| (*name, *usage)).collect();
            let mut kubelet = Kubelet::new(&NodeConfig::default(), &specs, Micros::ZERO);
            let verdict = kubelet.look(&look(100, 99, &usage));
            assert_eq!(verdict.kill, Some(format!("uid-{expected}").as_str().into()), "{what}");
        }
    }

    #[test]
    fn looks_each_ten_seconds_at_100_mib_and_waits_for_the_pod_to_be_gone() {
        let pods = [("a", 800), ("b", 100)];
        let specs = [pod("a", None, 0), pod("b", None, 0)];
        let mut kubelet = Kubelet::new(&NodeConfig::default(), &specs, Micros::ZERO);
        assert_eq!(kubelet.look(&look(100, 100, &pods)), Verdict { kill: None, next: Micros::secs(110) });
        let verdict = kubelet.look(&look(110, 99, &pods));
        assert_eq!(verdict, Verdict { kill: Some("uid-a".into()), next: Micros::secs(111) });
        for second in 111..140 {
            assert_eq!(kubelet.look(&look(second, 99, &pods)).kill, None, "{second}");
        }
        // After 30 s it goes on; had the pod gone before, at once.
        assert_eq!(kubelet.look(&look(140, 99, &pods)).kill, Some("uid-b".into()));
    }

    #[test]
    fn ranks_by_statistics_of_the_last_housekeeping() {
        let specs = [pod("a", None, 0), pod("b", None, 0)];
        let mut kubelet = Kubelet::new(&NodeConfig::default(), &specs, Micros::secs(9));
        assert_eq!(kubelet.look(&look(100, 900, &[("a", 300), ("b", 200)])).next, Micros::secs(109));
        // By now b has outgrown a.
        assert_eq!(kubelet.look(&look(109, 50, &[("a", 300), ("b", 900)])).kill, Some("uid-a".into()));
    }
}
