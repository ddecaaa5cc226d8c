//! What is remembered of a container and of a pod's use, from one run to the next.
//!
//! Problem: a runtime forgets a container's past when it is removed, and the kernel forgets a cgroup's counters when it goes;
//! people ask afterwards. Approach: back-offs, restart counts, the last end and OOM kills are kept here by the container's
//! *name*; readings belong to a run and are dropped with it.
//!
//! Property: an OOM kill is counted once, however many of the three sources (kernel event, cgroup counter, runtime's word)
//! told of it, and stays counted.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::allocate::BurstController;
use crate::backoff::Backoff;
use crate::early::EarlyEnd;
use crate::event::{ContainerFact, ContainerFactState, Exit, OpError};
use crate::model::CgroupModel;
use crate::probe::Probing;
use crate::sample::{CgroupReading, MemoryReading, NetworkReading};
use crate::spec::Resources;
use crate::telemetry::{CgroupDetail, ExitKind, PodDetail};
use crate::units::{Micros, Now};

/// What is remembered of a container.
#[derive(Clone, Debug, Default)]
pub struct ContainerTrack {
    /// The back-off of its restarts.
    pub crash: Backoff,
    /// The back-off of its image.
    pub image: Backoff,
    /// Not tried before this moment (monotonic).
    pub retry_at: Micros,
    /// The image was seen to be there for the next start.
    pub image_ready: bool,
    /// What went wrong last: shown as the waiting reason.
    pub trouble: Option<OpError>,
    /// The attempt of a next run.
    pub next_attempt: u32,
    /// When the latest end happened (monotonic).
    pub exit_seen: Micros,
    /// How it ended last.
    pub last_exit: Option<Exit>,
    /// The run that this is the end of: the runtime's id, "" for unknown.
    pub last_id: String,
    /// Its latest run went without an end that anybody saw, and there is no other yet.
    lost: bool,
    /// What its latest run was given.
    pub actuated: Option<Resources>,
    /// The run that the readings are of: the runtime's id.
    pub run: String,
    /// The last reading of that run.
    pub reading: Option<CgroupReading>,
    /// The newest details of that run.
    pub detail: Option<Arc<CgroupDetail>>,
    /// Rates of that run.
    pub model: CgroupModel,
    /// Gives and takes burst.
    pub burst: BurstController,
    /// The burst it has now.
    pub burst_now: Micros,
    /// OOM kills, by what told of them.
    pub oom: OomCount,
    /// It was seen alive: an OOM kill that is told of later happened while the agent looked.
    pub watched: bool,
    /// The end that the kernel told of, and the runtime not yet.
    pub(crate) early: Option<EarlyEnd>,
    /// What is known of its probes.
    pub probes: Probing,
    /// The run that was stopped because a probe failed: it is run again however it ends, unless nothing is.
    pub stopped_by_probe: String,
    /// The run whose hook `postStart` is still to be done.
    pub post_start: String,
    /// The run whose hook `postStart` failed.
    pub hook_failed: String,
    /// The run whose hook `preStop` was done.
    pub pre_stopped: String,
    /// The run of which it was told that it stops with its pod.
    pub stop_told: String,
    /// The id whose end was counted last.
    counted: String,
    /// Ends of processes of that run that were counted.
    ended: Vec<(ExitKind, u64)>,
}

/// OOM kills of a container, each counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OomCount {
    /// Of earlier runs.
    before: u64,
    /// Of this run, by kernel events.
    events: u64,
    /// Of this run, by the cgroup's counter.
    counter: u64,
    /// Of this run, by the runtime: 0 or 1.
    word: u64,
    /// Of all of them, those that [`OomCount::news`] has told of.
    told: u64,
}

impl OomCount {
    /// The kernel told of a victim.
    pub fn event(&mut self) {
        self.events += 1;
    }

    /// The cgroup's counter stands at `n`.
    pub fn counter(&mut self, n: u64) {
        self.counter = self.counter.max(n);
    }

    /// The runtime says that the run ended so.
    pub fn word(&mut self) {
        self.word = 1;
    }

    /// Another run begins.
    pub fn next_run(&mut self) {
        *self = Self { before: self.total(), told: self.told, ..Self::default() };
    }

    /// Whether there are more than when this was last asked.
    pub fn news(&mut self) -> bool {
        let total = self.total();
        std::mem::replace(&mut self.told, total) < total
    }

    /// Whether this run was hit.
    #[must_use]
    pub fn hit(&self) -> bool {
        self.events.max(self.counter) > 0
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.before + self.events.max(self.counter).max(self.word)
    }
}

impl ContainerTrack {
    /// `restartCount`.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.next_attempt.saturating_sub(1) + u32::from(self.lost)
    }

    /// Its latest run is gone, and nobody saw how it ended. `live`: the pod goes on, so that this counts as a restart.
    pub(crate) fn lose(&mut self, run: &str, exit: &Exit, live: bool, now: Micros) {
        self.lost = live;
        self.last_exit = Some(exit.clone());
        run.clone_into(&mut self.last_id);
        self.exit_seen = now;
        self.image_ready = false;
        self.out_of_use();
    }

    /// The latest run, as facts tell it. Returns its end if that is news.
    pub fn observe(&mut self, fact: &ContainerFact, max_backoff: Micros, now: Now) -> Option<Exit> {
        let fresh_track = self.next_attempt == 0;
        if self.run != fact.id {
            self.run.clone_from(&fact.id);
            self.reading = None;
            self.detail = None;
            self.ended.clear();
            self.model = CgroupModel::default();
            self.burst = BurstController::default();
            self.burst_now = Micros::ZERO;
            self.oom.next_run();
            self.lost = false;
        }
        self.next_attempt = self.next_attempt.max(fact.attempt + 1);
        if self.actuated.is_none() {
            self.actuated = fact.resources;
        }
        let ContainerFactState::Exited(exit) = &fact.state else { return None };
        if self.counted == fact.id {
            return None;
        }
        self.counted.clone_from(&fact.id);
        self.exit_seen = now.mono - (now.wall - exit.finished);
        self.image_ready = false;
        self.last_exit = Some(exit.clone());
        self.last_id.clone_from(&fact.id);
        if fresh_track && fact.attempt > 0 {
            // The agent was restarted: the back-off goes on from what the restart count says.
            self.crash = Backoff::rebuilt(fact.attempt, self.exit_seen, max_backoff);
        }
        if exit.reason == "OOMKilled" {
            self.oom.word();
        }
        Some(exit.clone())
    }

    /// Takes the run's newest details. Returns the processes that ended since the ones before, by how.
    pub fn observe_detail(&mut self, detail: Option<&Arc<CgroupDetail>>) -> Vec<(ExitKind, u64)> {
        self.detail = detail.cloned();
        let Some(detail) = detail.filter(|d| d.exits != self.ended) else { return Vec::new() };
        let before = std::mem::replace(&mut self.ended, detail.exits.clone());
        let counted = |kind| before.iter().find(|(k, _)| *k == kind).map_or(0, |(_, n)| *n);
        // A counter that began anew is all new.
        self.ended.iter().map(|(kind, n)| (*kind, n.checked_sub(counted(*kind)).unwrap_or(*n))).collect()
    }

    /// Its cgroup is gone: what was read of it does not hold any more.
    pub fn out_of_use(&mut self) {
        self.reading = None;
        self.model = CgroupModel::default();
    }

    /// An older end, for `lastState` after a restart of the agent.
    pub fn remember_older(&mut self, run: &str, exit: &Exit) {
        if self.last_exit.is_none() {
            self.last_exit = Some(exit.clone());
            run.clone_into(&mut self.last_id);
        }
    }

    /// A start begins, after a failure or not.
    pub fn start(&mut self, max_backoff: Micros, now: Now) {
        if self.last_exit.is_some() {
            self.crash.next(self.exit_seen, now.mono, max_backoff);
        }
    }
}

/// What a pod uses.
#[derive(Clone, Debug, Default)]
pub struct PodMeter {
    /// The last reading of its cgroup.
    pub reading: Option<CgroupReading>,
    /// When that was (monotonic).
    pub at: Micros,
    /// Rates.
    pub model: CgroupModel,
    /// Gives and takes burst of the pod's own quota.
    pub burst: BurstController,
    /// Bytes received and sent per second.
    pub network_rate: Option<(u64, u64)>,
    /// What the network rate counts from.
    base: Option<(Micros, NetworkReading)>,
    /// Listening ports; `None` until somebody has looked, and of pods that have none of their own.
    pub listening: Option<BTreeSet<u16>>,
    /// The last reading of the sandbox's cgroup.
    pub sandbox: Option<CgroupReading>,
    /// The newest details of the pod's whole cgroup.
    pub cgroup_detail: Option<Arc<CgroupDetail>>,
    /// The newest details of network and storage.
    pub detail: Option<Arc<PodDetail>>,
}

/// Network rates are taken over at least this long.
const NETWORK_WINDOW: Micros = Micros::millis(900);

impl PodMeter {
    /// A reading of the pod's cgroup, and its memory as far as it is believed ([`crate::sample::PodReading::memory`]).
    pub fn observe(&mut self, at: Micros, reading: &CgroupReading, memory: Option<MemoryReading>) {
        self.model.observe(at, &CgroupReading { memory, ..*reading });
        self.reading = Some(*reading);
        self.at = at;
    }

    /// A reading of its traffic.
    pub fn observe_network(&mut self, at: Micros, now: NetworkReading) {
        match self.base {
            Some((since, before)) if at - since >= NETWORK_WINDOW => {
                let per_second = |a: u64, b: u64| Micros(a.saturating_sub(b)).scale(1_000_000, (at - since).0).0;
                self.network_rate =
                    Some((per_second(now.rx_bytes, before.rx_bytes), per_second(now.tx_bytes, before.tx_bytes)));
                self.base = Some((at, now));
            }
            Some(_) => {}
            None => self.base = Some((at, now)),
        }
    }

    /// Its cgroup is gone.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oom_kill_is_counted_once_and_stays() {
        let mut oom = OomCount::default();
        oom.event();
        oom.counter(1);
        oom.word();
        assert_eq!(oom.total(), 1);
        assert!(oom.news() && !oom.news());
        oom.next_run();
        assert_eq!(oom.total(), 1);
        assert!(!oom.news());
        oom.counter(1);
        assert_eq!(oom.total(), 2);
        assert!(oom.news() && !oom.news());
        // A child was killed, the container went on, and was killed later: two.
        oom.event();
        oom.event();
        assert_eq!(oom.total(), 3);
    }

    #[test]
    fn network_rates_are_per_second() {
        let mut meter = PodMeter::default();
        let reading = |bytes| NetworkReading { rx_bytes: bytes, ..NetworkReading::default() };
        meter.observe_network(Micros::secs(1), reading(100));
        meter.observe_network(Micros::millis(1_100), reading(200));
        assert_eq!(meter.network_rate, None);
        meter.observe_network(Micros::secs(3), reading(2_100));
        assert_eq!(meter.network_rate, Some((1_000, 0)));
    }
}
