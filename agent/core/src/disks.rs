//! What follows from a reading of the node's disks and process ids, and from what pods use of them.
//!
//! Problem: the decider ([`crate::evict::disk`]) knows readings and candidates, and nothing of the life of pods. Approach: with each
//! reading the pods' own limits are judged first, as upstream (`localStorageEviction` comes before the node's signals and, if somebody
//! goes, instead of them); then the decider is asked once. What is decided becomes actions and records here and nowhere else.
//!
//! Properties: beside a kubelet, or with `mode: Observe`, nothing is removed and nobody goes: what would have been done is recorded,
//! per pod at most once a minute; what is missing is told once, until it is there again.

use std::collections::BTreeSet;

use crate::event::{Action, ContainerFactState};
use crate::evict;
use crate::evict::disk::{
    self, Candidate, Condition, Decider, Decision, LocalLimit, Pass, Reading, Reclaim, Reclaimed,
};
use crate::judge::TELL_AGAIN;
use crate::node::NodeConfig;
use crate::pod::{Pod, PodState};
use crate::spec::PodUid;
use crate::units::{Micros, Now};
use crate::why::Why;
use crate::world::World;

/// A pod over its own limits is given so long to end (`immediateEvictionGracePeriodSeconds`, pkg/kubelet/eviction/eviction_manager.go).
const GRACE: Micros = Micros::secs(1);

/// All signals that a pod may be evicted for, by the kubelet's names.
pub(crate) fn all_signals() -> impl Iterator<Item = &'static str> {
    let memory = [evict::Signal::Memory, evict::Signal::AllocatableMemory].map(evict::Signal::as_str);
    let node = disk::Signal::ALL.map(disk::Signal::as_str);
    memory.into_iter().chain(node).chain(LocalLimit::ALL.map(LocalLimit::as_str))
}

/// What the world knows of the node's disks.
#[derive(Debug)]
pub(crate) struct Disks {
    decider: Decider,
    conditions: Vec<Condition>,
    /// What was told to be missing.
    told: BTreeSet<disk::Signal>,
    /// The distance of readings that was last asked for.
    look: Micros,
    /// When node-level reclaim was last told of as what would have been done.
    told_reclaim: Option<Micros>,
}

impl Disks {
    pub(crate) fn new(config: &NodeConfig) -> Self {
        Self {
            decider: Decider::new(config),
            conditions: Vec::new(),
            told: BTreeSet::new(),
            look: Micros::ZERO,
            told_reclaim: None,
        }
    }

    /// Whether the condition is true.
    pub(crate) fn has(&self, condition: Condition) -> bool {
        self.conditions.contains(&condition)
    }
}

/// Who goes, and why.
struct Leave {
    uid: PodUid,
    signal: &'static str,
    grace: Micros,
    message: String,
    evidence: Vec<(String, String)>,
}

impl World {
    pub(crate) fn on_disks(&mut self, reading: &Reading, reclaimed: Option<&Reclaimed>, now: Now) {
        if let Some(outcome) = reclaimed {
            self.disks.decider.reclaimed(outcome);
            let (failed, name) = (!outcome.errors.is_empty(), self.config.name.clone());
            let reason = if failed { "FreeDiskSpaceFailed" } else { "FreedDiskSpace" };
            if failed || outcome.containers + outcome.images > 0 {
                self.record(now, None, name, None, failed, reason, outcome.to_string(), Vec::new());
            }
        }
        let mut somebody_went = false;
        for leave in self.over_their_limits(reading, now) {
            somebody_went |= self.send_away(leave, now);
        }
        let candidates: Vec<Candidate> = self.pods.values().filter_map(|pod| candidate(pod, now)).collect();
        // As long as memory is short, or somebody has just been sent away, nobody goes for anything else.
        let held = somebody_went || self.evict.standing().waiting;
        let pass = Pass { now: now.mono, reading, pods: &candidates, held };
        match self.disks.decider.step(&pass) {
            Decision::Nothing => {}
            Decision::Reclaim(reclaim) => self.tidy_the_node(&reclaim, now),
            Decision::Evict(eviction) => {
                let disk::Eviction { victim: uid, signal, grace, tidied, message, evidence } = *eviction;
                if !tidied {
                    self.tell_the_node(signal, now);
                }
                self.send_away(Leave { uid, signal: signal.as_str(), grace, message, evidence }, now);
            }
        }
        self.tell_of_the_node(now);
    }

    fn over_their_limits(&self, reading: &Reading, now: Now) -> Vec<Leave> {
        if !self.config.storage_limits {
            return Vec::new();
        }
        let of = |pod: &Pod| {
            let storage = pod.meter.detail.as_ref()?.storage.as_ref()?;
            let over = disk::over_limit(&pod.spec, storage, reading.layout, (pod.since, now.wall))?;
            let (uid, signal) = (pod.spec.uid.clone(), over.limit.as_str());
            Some(Leave { uid, signal, grace: GRACE, message: over.message, evidence: over.evidence })
        };
        let may_go = |pod: &&Pod| pod.state.is_live() && !pod.foreign && !pod.spec.is_critical();
        self.pods.values().filter(may_go).filter_map(of).collect()
    }

    /// Whether the pod was really sent away.
    fn send_away(&mut self, leave: Leave, now: Now) -> bool {
        let Leave { uid, signal, grace, message, evidence } = leave;
        if self.only_watches() {
            if self.told.get(&uid).is_none_or(|at| now.mono - *at >= TELL_AGAIN) {
                self.told.insert(uid.clone(), now.mono);
                self.say_why(&uid, None, now, true, "WouldEvict", format!("would be evicted. {message}"), evidence);
            }
            return false;
        }
        let Some(pod) = self.pods.get(&uid).filter(|pod| pod.state.is_live()) else { return false };
        let next = pod.terminating(Why::evicted(&message, grace), now);
        self.go(&uid, next, now);
        *self.totals.evictions.entry(signal.to_owned()).or_default() += 1;
        self.say_why(&uid, None, now, true, "Evicted", message, evidence);
        true
    }

    fn tidy_the_node(&mut self, reclaim: &Reclaim, now: Now) {
        let (containers, sandboxes) = if reclaim.containers { self.dead() } else { Default::default() };
        let name = self.config.name.clone();
        if self.only_watches() {
            // Tried as far as it may be: who would go is to be told as well.
            self.disks.decider.reclaimed(&Reclaimed { at: now.mono, ..Reclaimed::default() });
            if self.disks.told_reclaim.is_none_or(|at| now.mono - at >= TELL_AGAIN) {
                self.disks.told_reclaim = Some(now.mono);
                let what = format!("{} dead containers and unused images would be removed", containers.len());
                self.record(now, None, name, None, true, "WouldReclaim", what, reclaim.evidence.clone());
            }
            return;
        }
        self.tell_the_node(reclaim.signal, now);
        self.act(Action::Reclaim { containers, sandboxes, images: reclaim.images });
    }

    /// Ours that are dead and not the last of their kind, of pods that nothing is being done about: an operation of a pod knows its own
    /// containers. The kubelet keeps one dead run of each container for its logs; here it goes before a pod does.
    fn dead(&self) -> (Vec<String>, Vec<String>) {
        let (mut containers, mut sandboxes) = (Vec::new(), Vec::new());
        for pod in self.pods.values().filter(|pod| !pod.foreign && pod.in_flight.is_none()) {
            let dead = pod.containers.iter().filter(|c| matches!(c.state, ContainerFactState::Exited(_)));
            let older = dead.filter(|c| pod.latest(&c.name).is_some_and(|l| l.attempt > c.attempt));
            containers.extend(older.map(|c| c.id.clone()));
            let newest = pod.sandboxes.iter().map(|s| s.attempt).max();
            let dead = pod.sandboxes.iter().filter(|s| !s.ready && newest.is_some_and(|n| n > s.attempt));
            sandboxes.extend(dead.map(|s| s.id.clone()));
        }
        (containers, sandboxes)
    }

    /// The kubelet's event of the node (pkg/kubelet/eviction/eviction_manager.go).
    fn tell_the_node(&mut self, signal: disk::Signal, now: Now) {
        if self.only_watches() {
            return;
        }
        let (name, message) = (self.config.name.clone(), format!("Attempting to reclaim {}", signal.resource()));
        let evidence = vec![("signal".to_owned(), signal.to_string())];
        self.record(now, None, name, None, true, "EvictionThresholdMet", message, evidence);
    }

    /// Conditions that change, what is missing, and how closely to look.
    fn tell_of_the_node(&mut self, now: Now) {
        let standing = self.disks.decider.standing().clone();
        for condition in Condition::ALL {
            let (was, is) = (self.disks.has(condition), standing.conditions.contains(&condition));
            if was != is {
                let (name, reason) = (self.config.name.clone(), condition.event(is));
                let message = format!("Node {name} status is now: {reason}");
                self.record(now, None, name, None, is, reason, message, Vec::new());
            }
        }
        self.disks.conditions = standing.conditions;
        let missing: BTreeSet<disk::Signal> = standing.missing.iter().map(|(signal, _)| *signal).collect();
        for (signal, why) in standing.missing {
            if !self.disks.told.contains(&signal) {
                let (name, message) =
                    (self.config.name.clone(), format!("{signal} is not known: {why}; nobody goes for it"));
                self.record(now, None, name, None, true, "EvictionSignalMissing", message, Vec::new());
            }
        }
        let back: Vec<disk::Signal> = self.disks.told.difference(&missing).copied().collect();
        for signal in back {
            let (name, message) = (self.config.name.clone(), format!("{signal} is known again"));
            self.record(now, None, name, None, false, "EvictionSignalFound", message, Vec::new());
        }
        self.disks.told = missing;
        if self.disks.look != standing.look {
            self.disks.look = standing.look;
            self.act(Action::LookAtDisks { interval: standing.look });
        }
    }
}

/// What can go, and what is on its way out; `None` for pods of others, and for those of which nothing runs.
fn candidate(pod: &Pod, now: Now) -> Option<Candidate> {
    let going = matches!(pod.state, PodState::Terminating { .. } | PodState::Cleaning { .. });
    if !(going || pod.state.is_live() && !pod.sandboxes.is_empty()) {
        return None;
    }
    let storage = pod.meter.detail.as_ref().and_then(|detail| detail.storage.as_ref());
    let processes = pod.meter.reading.and_then(|reading| reading.pids);
    Some(Candidate::new(&pod.spec, storage, processes, going, (pod.since, now.wall)))
}
