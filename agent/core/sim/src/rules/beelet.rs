//! Beelet's own: the core's [`Decider`] with the core's model of each pod, as [`beelet_core::World`] joins them.

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::evict::{Candidate, Decider, Decision};
use beelet_core::forecast::{MAX_INTERVAL, MIN_INTERVAL};
use beelet_core::model::CgroupModel;
use beelet_core::node::NodeConfig;
use beelet_core::spec::{PodSpec, PodUid};
use beelet_core::units::Micros;

use super::{Look, Rules, Verdict};

/// Beelet.
pub struct Beelet {
    decider: Decider,
    specs: BTreeMap<PodUid, Arc<PodSpec>>,
    models: BTreeMap<PodUid, CgroupModel>,
    /// Who goes anyway.
    going: Vec<PodUid>,
    looked: Option<Micros>,
}

impl Beelet {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(node: &NodeConfig, specs: &[Arc<PodSpec>]) -> Self {
        Self {
            decider: Decider::new(node),
            specs: specs.iter().map(|s| (s.uid.clone(), Arc::clone(s))).collect(),
            models: BTreeMap::new(),
            going: Vec::new(),
            looked: None,
        }
    }

    /// These are being deleted already.
    #[must_use]
    pub fn leaving(mut self, uids: Vec<PodUid>) -> Self {
        self.going = uids;
        self
    }

    fn candidates(&mut self, look: &Look) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        for reading in look.pods() {
            let model = self.models.entry(reading.uid.clone()).or_default();
            model.observe(look.sample.at, &reading.cgroup);
            let Some(spec) = self.specs.get(&reading.uid) else { continue };
            let going = self.going.contains(&reading.uid);
            candidates.extend(Candidate::new(spec, reading, model, going, false));
        }
        candidates
    }
}

impl Rules for Beelet {
    fn name(&self) -> &'static str {
        "beelet"
    }

    /// 8 ms for the look and 5 ms for the kill: the longest of the simulated node ([`crate::node`]).
    fn kills_after(&self) -> Micros {
        Micros::millis(13)
    }

    /// Sandbox and volumes go at once after the containers: 50 ms and 300 ms, the longest of the simulated node.
    fn cleans_after(&self) -> Option<Micros> {
        Some(Micros::millis(350))
    }

    fn look(&mut self, look: &Look) -> Verdict {
        let now = look.sample.at;
        let pace = self.decider.standing().pace;
        let full = pace.all_pods || self.looked.is_none_or(|at| now - at >= MAX_INTERVAL);
        let candidates = full.then(|| self.candidates(look));
        let mut sample = look.sample.clone();
        if full {
            self.looked = Some(now);
        } else {
            sample.pods = None;
        }
        let kill = match self.decider.step(now, &sample, candidates.as_deref()) {
            Decision::Evict(eviction) => Some(eviction.victim),
            Decision::Nothing | Decision::LookAtPods => None,
        };
        self.going.extend(kill.clone());
        let interval = self.decider.standing().pace.interval.max(MIN_INTERVAL);
        Verdict { kill, next: now + interval }
    }
}
