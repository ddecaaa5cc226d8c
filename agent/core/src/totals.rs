//! Counters that outlive what they count.
//!
//! Problem: a counter that goes with its container says nothing of the container's end, which is what people ask for; a counter that
//! never goes fills a node that runs jobs with the names of the dead. Approach: [`Counts`] keeps counters by namespace, pod and
//! container. Those of a pod that is there stay; those of pods that are gone stay for [`OUTLIVE`] at least, so that scrapes see the
//! last of them, and beyond that as long as there are not more than [`KEPT`] series of the gone; the oldest go first.
//!
//! Properties (tested): no series of a pod that is there goes; the number of series is bounded by the pods that are there (with
//! [`EXIT_KINDS`] and [`COMMS`] for each container), [`KEPT`], and what ended within [`OUTLIVE`], which is bounded by [`KEPT_AT_ALL`];
//! what was dropped is counted.

use std::collections::BTreeMap;

use crate::evict::{Eviction, EvictionCounts, Gained, Signal};
use crate::ladder::Rung;
use crate::snapshot::{ContainerKey as Key, ExitKind, Totals};
use crate::spec::PodSpec;
use crate::units::Micros;

/// Counters of a pod are shown this long after its end, whatever their number (up to [`KEPT_AT_ALL`]).
pub(crate) const OUTLIVE: Micros = Micros::secs(600);
/// So many series of pods that are gone are kept beyond that.
pub(crate) const KEPT: usize = 1_000;
/// And never more than so many.
pub(crate) const KEPT_AT_ALL: usize = 5_000;
/// Kinds of exits of a container's processes that are counted apart: the first to come; the rest is `other`.
pub(crate) const EXIT_KINDS: usize = 16;
/// Names of killed processes of a container that are counted apart.
pub(crate) const COMMS: usize = 16;
/// Names whose processes are counted together.
const OTHER: &str = "other";
/// What is to go is looked for this often.
const LOOK_EVERY: Micros = Micros::secs(10);

/// Counters that outlive their pods.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) evictions: BTreeMap<String, u64>,
    eviction_counts: BTreeMap<String, EvictionCounts>,
    /// Beginnings of rungs, and whether they were done or only told.
    pub(crate) rungs: BTreeMap<(Rung, bool), u64>,
    pub(crate) oom_kills: BTreeMap<Key, u64>,
    oom_kills_by_process: BTreeMap<Key, BTreeMap<String, u64>>,
    pub(crate) exits: BTreeMap<(Key, ExitKind), u64>,
    /// `None` is the kind "other".
    process_exits: BTreeMap<Key, BTreeMap<Option<ExitKind>, u64>>,
    pub(crate) restarts: BTreeMap<Key, u64>,
    pub(crate) actions: BTreeMap<(String, bool), u64>,
    pub(crate) illegal_transitions: u64,
    pub(crate) orphans: u64,
    /// Series that were dropped.
    forgotten: u64,
    /// Since when the pods of these names are gone.
    gone: BTreeMap<(String, String), Micros>,
    looked: Micros,
}

impl Counts {
    /// With these counters of evictions at 0.
    pub(crate) fn new<'a>(evictions: impl Iterator<Item = &'a str>) -> Self {
        let of_memory = [Signal::Memory, Signal::AllocatableMemory].map(|signal| signal.as_str().to_owned());
        let rungs = Rung::ALL.into_iter().flat_map(|rung| [true, false].map(|done| ((rung, done), 0))).collect();
        Self {
            evictions: evictions.map(|signal| (signal.to_owned(), 0)).collect(),
            eviction_counts: of_memory.map(|signal| (signal, EvictionCounts::default())).into(),
            rungs,
            ..Self::default()
        }
    }

    /// One was evicted.
    pub(crate) fn evicted(&mut self, eviction: &Eviction) {
        let signal = eviction.signal.as_str();
        *self.evictions.entry(signal.to_owned()).or_default() += 1;
        let counts = self.eviction_counts.entry(signal.to_owned()).or_default();
        counts.age.count(eviction.age);
        *counts.decided.entry(eviction.by.as_str().to_owned()).or_default() += 1;
    }

    /// It is known what an eviction gained.
    pub(crate) fn gained(&mut self, gained: &Gained) {
        let counts = self.eviction_counts.entry(gained.signal.as_str().to_owned()).or_default();
        counts.freed += gained.freed;
        match gained.free_after {
            Some(after) => counts.free.count(after),
            None => counts.in_vain += 1,
        }
    }

    pub(crate) fn pod_gone(&mut self, pod: &PodSpec, now: Micros) {
        self.gone.insert((pod.namespace.clone(), pod.name.clone()), now);
    }

    /// The OOM killer chose a process of this name.
    pub(crate) fn oom_victim(&mut self, key: Key, comm: &str) {
        add(self.oom_kills_by_process.entry(key).or_default(), comm.to_owned(), 1, COMMS, OTHER.to_owned());
    }

    /// So many processes ended in this way since the last call.
    pub(crate) fn processes_ended(&mut self, key: Key, kind: ExitKind, count: u64) {
        if count > 0 {
            add(self.process_exits.entry(key).or_default(), Some(kind), count, EXIT_KINDS, None);
        }
    }

    /// Drops what is too much of pods that are gone.
    pub(crate) fn prune(&mut self, now: Micros, is_there: impl Fn(&str, &str) -> bool) {
        if now - self.looked < LOOK_EVERY {
            return;
        }
        self.looked = now;
        // One that came back is not gone; when it goes again it counts from then.
        self.gone.retain(|(namespace, name), _| !is_there(namespace, name));
        let mut series: BTreeMap<&(String, String), usize> = BTreeMap::new();
        let names = self.gone.iter().map(|(name, since)| (*since, name)).collect::<std::collections::BTreeSet<_>>();
        for (key, count) in self.series() {
            if let Some((name, _)) = self.gone.get_key_value(&(key.0.clone(), key.1.clone())) {
                *series.entry(name).or_default() += count;
            }
        }
        let mut left: usize = series.values().sum();
        let mut drop = Vec::new();
        for (since, name) in names {
            let has = series.get(name).copied().unwrap_or(0);
            let old = now - since >= OUTLIVE;
            if left > KEPT_AT_ALL || old && (left > KEPT || has == 0) {
                left -= has;
                drop.push((name.clone(), has));
            }
        }
        for (name, has) in drop {
            self.gone.remove(&name);
            self.forgotten = self.forgotten.saturating_add(u64::try_from(has).unwrap_or(u64::MAX));
            let stays = |key: &Key| (&key.0, &key.1) != (&name.0, &name.1);
            self.oom_kills.retain(|key, _| stays(key));
            self.oom_kills_by_process.retain(|key, _| stays(key));
            self.exits.retain(|(key, _), _| stays(key));
            self.process_exits.retain(|key, _| stays(key));
            self.restarts.retain(|key, _| stays(key));
        }
    }

    fn series(&self) -> impl Iterator<Item = (&Key, usize)> {
        let one = |key| (key, 1);
        self.oom_kills
            .keys()
            .map(one)
            .chain(self.restarts.keys().map(one))
            .chain(self.exits.keys().map(|(key, _)| (key, 1)))
            .chain(self.oom_kills_by_process.iter().map(|(key, by)| (key, by.len())))
            .chain(self.process_exits.iter().map(|(key, by)| (key, by.len())))
    }

    /// How many series there are.
    pub(crate) fn size(&self) -> usize {
        self.series().map(|(_, n)| n).sum::<usize>() + self.evictions.len() + self.rungs.len() + self.actions.len()
    }

    /// How many names of pods that are gone are remembered.
    pub(crate) fn gone(&self) -> usize {
        self.gone.len()
    }

    pub(crate) fn view(&self) -> Totals {
        Totals {
            evictions: self.evictions.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            rungs: self.rungs.iter().map(|(k, n)| (*k, *n)).collect(),
            eviction_counts: self.eviction_counts.iter().map(|(k, n)| (k.clone(), n.clone())).collect(),
            forecasts: Vec::new(),
            oom_kills: self.oom_kills.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            oom_kills_by_process: self
                .oom_kills_by_process
                .iter()
                .flat_map(|(k, by)| by.iter().map(|(comm, n)| (k.clone(), comm.clone(), *n)))
                .collect(),
            exits: self.exits.iter().map(|((k, how), n)| (k.clone(), *how, *n)).collect(),
            process_exits: self
                .process_exits
                .iter()
                .flat_map(|(k, by)| by.iter().map(|(how, n)| (k.clone(), *how, *n)))
                .collect(),
            restarts: self.restarts.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            actions: self.actions.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            illegal_transitions: self.illegal_transitions,
            orphans: self.orphans,
            forgotten: self.forgotten,
        }
    }
}

fn add<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K, count: u64, most: usize, other: K) {
    let key = if counts.contains_key(&key) || counts.len() < most { key } else { other };
    let counted = counts.entry(key).or_default();
    *counted = counted.saturating_add(count);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pod: &str) -> Key {
        ("default".to_owned(), pod.to_owned(), "c".to_owned())
    }

    fn pod(name: &str) -> PodSpec {
        PodSpec { name: name.to_owned(), ..PodSpec::unknown(name.into()) }
    }

    #[test]
    fn the_oldest_of_the_gone_go_first_and_never_what_is_there() {
        let mut counts = Counts::default();
        for i in 0..3_000_u64 {
            let name = format!("job-{i:04}");
            counts.exits.insert((key(&name), ExitKind::Code(0)), 1);
            if i > 0 {
                counts.pod_gone(&pod(&name), Micros::secs(i));
            }
            counts.prune(Micros::secs(i), |_, name| name == "job-0000");
        }
        // Those of the last ten minutes, and as many older ones as make 1,000 (and what came since it was last looked).
        let left: Vec<&str> = counts.exits.keys().map(|((_, pod, _), _)| pod.as_str()).collect();
        assert_eq!(left[0], "job-0000");
        assert!(left.len() > 1_000 && left.len() <= 1_011, "{}", left.len());
        assert!(left[1] >= "job-1990", "{}", left[1]);
        assert_eq!(counts.view().forgotten, 3_000 - left.len() as u64);
        assert_eq!(counts.gone(), left.len() - 1);
        // All of them end within ten minutes: all are shown, up to a bound.
        let mut counts = Counts::default();
        for i in 0..20_000_u64 {
            let name = format!("job-{i:05}");
            counts.restarts.insert(key(&name), 1);
            counts.pod_gone(&pod(&name), Micros::millis(i * 20));
            counts.prune(Micros::millis(i * 20), |_, _| false);
        }
        assert!((4_900..=5_500).contains(&counts.size()), "{}", counts.size());
    }

    #[test]
    fn a_pod_that_comes_back_is_not_gone() {
        let mut counts = Counts::default();
        for i in 0..2_000 {
            counts.oom_kills.insert(key(&format!("p{i}")), 1);
            counts.pod_gone(&pod(&format!("p{i}")), Micros::secs(1));
        }
        counts.prune(Micros::secs(300), |_, name| name == "p0");
        counts.pod_gone(&pod("p0"), Micros::secs(900));
        counts.prune(Micros::secs(1_000), |_, _| false);
        assert!(counts.oom_kills.contains_key(&key("p0")) && !counts.oom_kills.contains_key(&key("p1")));
        // A name without a counter is not remembered for ever.
        counts.pod_gone(&pod("quiet"), Micros::secs(1_000));
        counts.prune(Micros::secs(2_000), |_, _| false);
        assert!(!counts.gone.contains_key(&("default".to_owned(), "quiet".to_owned())));
    }

    #[test]
    fn kinds_and_names_are_bounded_and_nothing_is_lost() {
        let mut counts = Counts::default();
        for i in 0..100 {
            counts.processes_ended(key("p"), ExitKind::Code(i), 2);
            counts.oom_victim(key("p"), &format!("worker-{i}"));
        }
        counts.processes_ended(key("p"), ExitKind::Code(3), 5);
        let view = counts.view();
        assert_eq!(view.process_exits.len(), EXIT_KINDS + 1);
        assert_eq!(view.process_exits.iter().map(|(_, _, n)| n).sum::<u64>(), 205);
        assert!(view.process_exits.contains(&(key("p"), None, 168)));
        assert!(view.process_exits.contains(&(key("p"), Some(ExitKind::Code(3)), 7)));
        assert_eq!(view.oom_kills_by_process.iter().map(|(_, _, n)| n).sum::<u64>(), 100);
        assert!(view.oom_kills_by_process.contains(&(key("p"), "other".to_owned(), 84)));
    }
}
