//! What follows from a measurement: who is evicted, who gets burst, how often to look.
//!
//! Problem: near an OOM a decision has milliseconds, and it must still be right, explained, and not repeated. Approach: every
//! [`Sample`] updates the models; then [`crate::evict::Decider`] and each container's burst controller are asked once. What
//! they decide becomes actions here, and nowhere else.
//!
//! Properties: beside a kubelet, or with `mode: Observe`, nothing is done, and what would have been done is recorded at most
//! once a minute per pod; every eviction carries its evidence; every forecast is scored ([`crate::score`]).

use std::collections::BTreeMap;

use crate::allocate::{self, BurstChange};
use crate::attribute::{Subject, percent};
use crate::budget::{self, OwnCost, Spent, Turn};
use crate::event::{Action, Knob, KnobWrite};
use crate::evict::{Candidate, Decision, Eviction, Gained, Kind, Signal};
use crate::forecast::{MAX_INTERVAL, Pace};
use crate::ladder::{Rung, Wishes};
use crate::node::Enforce;
use crate::pod::PodState;
use crate::sample::{PodReading, Sample};
use crate::score::{self, Look, Wall};
use crate::spec::PodSpec;
use crate::spec::PodUid;
use crate::units::{Bytes, Micros, MilliCpu, Now};
use crate::why::Why;
use crate::world::World;

/// What would have been done is told again after this long.
pub(crate) const TELL_AGAIN: Micros = Micros::secs(60);

/// For so long after a look at which a pod is slowed down its waits are not counted as a sign.
const THROTTLED: Micros = Micros::secs(1);

/// Below this distance of looks memory is urgent, and nothing is stretched. A small node lives with looks that are a little closer
/// than a second.
const URGENT: Micros = Micros::millis(100);

/// What the attribution is to know of a pod.
fn subject(spec: &PodSpec, foreign: bool) -> Subject {
    let request = allocate::pod_requests(spec).cpu;
    // Of a pod that somebody else started the runtime knows no request.
    let request = Some(request).filter(|r| !foreign || *r > MilliCpu::ZERO);
    Subject { name: spec.full_name(), request }
}

impl World {
    pub(crate) fn on_sample(&mut self, sample: Sample, now: Now) {
        self.node.observe(sample.at, &sample.node);
        if let Some(readings) = &sample.pods {
            self.observe_pods(sample.at, readings);
        }
        let candidates = sample.pods.as_ref().map(|readings| self.candidates(readings));
        if self.ladder.throttles() {
            self.evict.ignore_stalls(sample.at + THROTTLED);
        }
        let evicted = match self.evict.step(now.mono, &sample, candidates.as_deref()) {
            Decision::Evict(eviction) => {
                let done = self.on_eviction(&eviction, now);
                // Where the time of one is taken away that has ended by itself, its eviction was done before.
                if !done && (self.only_watches() || !eviction.hastened) {
                    self.evict.was_not_done(&eviction.victim);
                }
                done.then_some(eviction.signal)
            }
            Decision::Nothing | Decision::LookAtPods => None,
        };
        for gained in self.evict.take_gained() {
            self.on_gained(&gained, now);
        }
        self.score_forecasts(&sample, evicted);
        if let Some(candidates) = &candidates {
            self.climb(&sample, candidates, evicted.is_some(), now);
        }
        if sample.pods.is_some() {
            self.lend_cpu(now);
            self.judge_slowness(&sample, now);
        }
        self.keep_pace();
        let kubepods = sample.kubepods.filter(|k| k.cpu.is_some());
        let (before, detail_before) = self.last_sample.take().map_or((None, None), |s| (s.kubepods, s.node_detail));
        // A quick look knows only the memory; the rest is shown as it was last seen.
        let shown = kubepods.or_else(|| {
            before.map(|b| crate::sample::CgroupReading {
                memory: sample.kubepods.and_then(|k| k.memory).or(b.memory),
                ..b
            })
        });
        let node_detail = sample.node_detail.or(detail_before);
        self.last_sample = Some(Sample { kubepods: shown, node_detail, ..sample });
    }

    /// Asks for looks as often as the memory wants them, and where it does not, as the agent's own budget allows.
    fn keep_pace(&mut self) {
        let Pace { mut interval, mut all_pods } = self.evict.standing().pace;
        if self.ladder.interval() < MAX_INTERVAL {
            // A container that may be raised comes near its own limit, which only a look at all pods shows.
            (interval, all_pods) = (self.ladder.interval().min(interval), true);
        }
        let stretch = if interval < URGENT { budget::NONE } else { self.budget.stretch() };
        all_pods &= stretch == budget::NONE;
        let pace = Pace { interval, all_pods };
        if self.pace != Some(pace) || self.stretched != stretch {
            (self.pace, self.stretched) = (Some(pace), stretch);
            self.act(Action::SampleEvery { interval, all_pods, stretch });
        }
    }

    pub(crate) fn on_own_cost(&mut self, spent: Spent, now: Now) {
        if self.evict.standing().pace.interval < URGENT {
            // All looks are as close as memory wants them, whatever they cost.
            self.budget.excuse(now.mono);
        }
        let turn = self.budget.observe(now.mono, spent, self.pods.len());
        if self.pace.is_some() {
            self.keep_pace();
        }
        let OwnCost { share, looking, budget, stretch } = self.budget.cost();
        let (warning, reason, message) = match turn {
            None | Some(Turn::Changes) => return,
            Some(Turn::Begins) => (true, "SlowedItself", "the agent costs more than its budget and looks less often"),
            Some(Turn::Ends) => (false, "SlowedItselfEnded", "the agent looks as often as it should again"),
        };
        let evidence = vec![
            ("cost".to_owned(), format!("{} of a core", percent(share.unwrap_or_default()))),
            ("looking".to_owned(), format!("{} of a core", percent(looking.unwrap_or_default()))),
            ("budget".to_owned(), format!("{} of a core", percent(budget))),
            ("stretch".to_owned(), format!("{stretch} thousandths")),
        ];
        let name = self.config.name.clone();
        self.record(now, None, name, None, warning, reason, message.to_owned(), evidence);
    }

    fn judge_slowness(&mut self, sample: &Sample, now: Now) {
        let live = self.pods.iter().filter(|(_, p)| p.state.is_live());
        let subjects: BTreeMap<PodUid, Subject> =
            live.map(|(uid, p)| (uid.clone(), subject(&p.spec, p.foreign))).collect();
        for change in self.slow.observe(sample, &subjects, now) {
            let (true, Some(subject)) = (change.tell, subjects.get(&change.uid)) else { continue };
            let slow = change.slowness;
            let (reason, message) = if change.began {
                ("Slow", format!("{}: {}", slow.cause.kind().name(), slow.cause))
            } else {
                ("SlowEnded", format!("{}: not any more", slow.cause.kind().name()))
            };
            let evidence = if change.began { slow.evidence } else { Vec::new() };
            self.record(now, Some(change.uid), subject.name.clone(), None, change.began, reason, message, evidence);
        }
    }

    fn observe_pods(&mut self, at: Micros, readings: &[PodReading]) {
        for reading in readings {
            let Some(pod) = self.pods.get_mut(&reading.uid) else { continue };
            pod.meter.observe(at, &reading.cgroup, reading.memory(at));
            pod.meter.sandbox = reading.sandbox;
            pod.meter.cgroup_detail.clone_from(&reading.cgroup_detail);
            pod.meter.detail.clone_from(&reading.detail);
            if let Some(network) = reading.network {
                pod.meter.observe_network(at, network);
                pod.network = Some(network);
            }
            if let Some(ports) = &reading.listening {
                if pod.state.is_live() {
                    pod.health.on_listening(ports, at);
                }
                pod.meter.listening = Some(ports.clone());
            }
            for container in &reading.containers {
                let Some(track) = pod.tracks.get_mut(&container.name).filter(|t| t.run == container.id) else {
                    continue;
                };
                track.model.observe(at, &container.cgroup);
                track.reading = Some(container.cgroup);
                for (kind, count) in track.observe_detail(container.detail.as_ref()) {
                    let key = (pod.spec.namespace.clone(), pod.spec.name.clone(), container.name.clone());
                    self.totals.processes_ended(key, kind, count);
                }
                if let Some(kills) = container.cgroup.memory.and_then(|m| m.oom_kills) {
                    track.oom.counter(kills);
                }
            }
            // Of a container that has ended nothing is in use any more.
            for (name, track) in &mut pod.tracks {
                if !reading.containers.iter().any(|c| c.name == *name && c.id == track.run) {
                    track.out_of_use();
                }
            }
        }
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.count_oom_kills(&uid, at);
            let Some(pod) = self.pods.get_mut(&uid) else { continue };
            for track in pod.tracks.values_mut() {
                track.watched |= track.reading.is_some();
            }
            if pod.meter.at < at {
                pod.meter.clear();
            }
        }
    }

    fn candidates(&self, readings: &[PodReading]) -> Vec<Candidate> {
        let of = |reading: &PodReading| {
            let pod = self.pods.get(&reading.uid)?;
            let leaves = self.config.rungs.permits(Rung::Leave, &Wishes::of(&pod.spec));
            Candidate::new(&pod.spec, reading, &pod.meter.model, !pod.state.is_live(), leaves)
        };
        readings.iter().filter_map(of).collect()
    }

    fn score_forecasts(&mut self, sample: &Sample, evicted: Option<Signal>) {
        let of_node = self.evict.seen().iter().map(|seen| Look {
            wall: seen.signal.into(),
            time_to_oom: seen.time_to_oom,
            hit: seen.below || evicted == Some(seen.signal),
        });
        let pods = sample.pods.iter().flatten().filter_map(|reading| self.pods.get(&reading.uid));
        let of_containers = pods.flat_map(|pod| {
            pod.tracks.iter().filter_map(|(name, track)| {
                let left = track.model.forecast_own()?.time_to_oom;
                let wall = || Wall::Container(pod.spec.uid.clone(), name.clone());
                (left < score::HORIZON).then(|| Look { wall: wall(), time_to_oom: Some(left), hit: false })
            })
        });
        self.scores.observe(sample.at, of_node.chain(of_containers), sample.pods.is_some());
    }

    /// Which wall a container's OOM kill was at: the kernel does not say, so the one that had the least left when it was last looked
    /// at. One that can no longer be read and has a limit of its own most likely hit that.
    pub(crate) fn wall_that_killed(&self, uid: &PodUid, container: String) -> Wall {
        let pod = self.pods.get(uid);
        let track = pod.and_then(|pod| pod.tracks.get(&container));
        let own = match track.and_then(|track| track.reading?.memory) {
            Some(memory) => memory.limit.map(|limit| limit - memory.unreclaimable()),
            None => pod.and_then(|pod| pod.spec.container(&container)?.resources.memory_limit).map(|_| Bytes::ZERO),
        };
        let standing = self.evict.standing();
        let walls = [
            own.map(|left| (left, Wall::Container(uid.clone(), container))),
            standing.allocatable_available.map(|left| (left, Wall::Kubepods)),
            standing.memory_available.map(|left| (left, Wall::Node)),
        ];
        walls.into_iter().flatten().min_by_key(|(left, _)| *left).map_or(Wall::Node, |(_, wall)| wall)
    }

    /// Nothing may be done to pods.
    pub(crate) fn only_watches(&self) -> bool {
        self.config.beside || self.config.enforce == Enforce::Observe
    }

    /// Whether the pod was really sent away.
    fn on_eviction(&mut self, eviction: &Eviction, now: Now) -> bool {
        let uid = eviction.victim.clone();
        let mut evidence = eviction.evidence.clone();
        for (place, ranked) in eviction.ranking.iter().enumerate() {
            let growth = ranked.growth.map_or_else(|| "unknown".to_owned(), |g| format!("{g} B/s"));
            let value = format!(
                "{}: holds {}, asks for {}, priority {}, grows by {growth}, took {} lately{}",
                ranked.name,
                ranked.unreclaimable,
                ranked.request,
                ranked.priority,
                ranked.taken,
                if ranked.aggressor { " and so eats the room" } else { "" }
            );
            evidence.push((format!("rank_{}", place + 1), value));
        }
        if eviction.kind == Kind::Forecast {
            *self.totals.rungs.entry((Rung::Leave, !self.only_watches())).or_default() += 1;
        }
        if self.only_watches() {
            let told = self.told.get(&uid).copied();
            if told.is_none_or(|at| now.mono - at >= TELL_AGAIN) {
                self.told.insert(uid.clone(), now.mono);
                let message = format!("would be evicted. {}", eviction.message);
                self.say_why(&uid, None, now, true, "WouldEvict", message, evidence);
            }
            return false;
        }
        let Some(pod) = self.pods.get(&uid) else { return false };
        if eviction.hastened && !matches!(pod.state, PodState::Terminating { .. }) {
            // Nothing of it runs any more: there is no time to take away.
            return false;
        }
        let cgroup = pod.cgroup(&self.config);
        let next = pod.terminating(Why::evicted(&eviction.message, eviction.grace), now);
        // First of all the kill: everything else can wait. One that is given time is told to stop instead, by its plan.
        if eviction.grace == Micros::ZERO {
            self.act(Action::Kill { uid: uid.clone(), cgroup });
        }
        self.go(&uid, next, now);
        // The kubelet's event of the node (pkg/kubelet/eviction/eviction_manager.go, release 1.37).
        let (node, signal) = (self.config.name.clone(), eviction.signal.to_string());
        let message = "Attempting to reclaim memory".to_owned();
        self.record(now, None, node, None, true, "EvictionThresholdMet", message, vec![("signal".to_owned(), signal)]);
        if !eviction.hastened {
            self.totals.evicted(eviction);
        }
        self.say_why(&uid, None, now, true, "Evicted", eviction.message.clone(), evidence);
        true
    }

    /// What an eviction was good for, told under the name of the pod that went.
    fn on_gained(&mut self, gained: &Gained, now: Now) {
        self.totals.gained(gained);
        let in_vain = gained.free_after.is_none();
        let (uid, name) = (Some(gained.victim.clone()), gained.name.clone());
        self.record(now, uid, name, None, in_vain, "EvictionGained", gained.message(), gained.evidence());
    }

    fn lend_cpu(&mut self, now: Now) {
        if !self.config.burst || self.only_watches() {
            return;
        }
        let idle = self.node.idle_share();
        let (cpu_quota, period) = (self.config.cpu_quota, self.config.cpu_period);
        let quota = |limit: Option<MilliCpu>| limit.filter(|_| cpu_quota).and_then(|l| allocate::quota(l, period));
        let mut writes = Vec::new();
        for (uid, pod) in &mut self.pods {
            if pod.state != PodState::Running || pod.foreign {
                continue;
            }
            let path = allocate::pod_path(&self.config, &pod.spec);
            let mut write = |cgroup, container: &str, change: BurstChange| {
                let target = (uid.clone(), container.to_owned());
                let write = KnobWrite { cgroup, target, knob: Knob::CpuBurst(change.burst), why: change.why };
                writes.push((write, change.burst));
            };
            // A pod's own quota throttles as well, and with one container it is the same: it comes first.
            let given = pod.actuated();
            let own = given.as_ref().map_or_else(|| allocate::pod_cpu_limit(&pod.spec), allocate::pod_cpu_limit);
            let throttled_at = pod.meter.model.throttled_at();
            if let Some(change) = pod.meter.burst.step(now.mono, throttled_at, idle, quota(own)) {
                write(path.clone(), "", change);
            }
            for container in &pod.spec.containers {
                let Some(track) = pod.tracks.get_mut(&container.name).filter(|t| t.reading.is_some()) else { continue };
                // While a cut waits, burst must fit below the quota that is and the one that comes: the kernel refuses more.
                let given = track.actuated.unwrap_or(container.resources).cpu_limit;
                let limit = given.zip(container.resources.cpu_limit).map(|(a, b)| a.min(b)).or(given);
                let change = track.burst.step(now.mono, track.model.throttled_at(), idle, quota(limit));
                let Some(change) = change else { continue };
                track.burst_now = change.burst;
                write(allocate::container_path(&path, &track.run), &container.name, change);
            }
        }
        for (write, burst) in writes {
            let (uid, container) = write.target.clone();
            let container = Some(container).filter(|c| !c.is_empty());
            let of = container.as_deref().unwrap_or("the pod");
            let message = format!("cpu burst of {of} set to {burst}: {}", write.why);
            self.say(&uid, container, now, false, "CpuBurst", message);
            self.act(Action::Knob(write));
        }
    }
}
