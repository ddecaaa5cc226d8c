//! When a container is asked, and what its answers mean.
//!
//! Problem: a probe that is asked at the wrong moment, or whose answer is held against another run, restarts what is well. Approach:
//! all rules of pkg/kubelet/prober (worker.go, prober_manager.go, release 1.36) in one pure place: [`Probing`] says for each
//! container what is to be asked now and when to look again, and takes the answers. The asking itself is the edge's.
//!
//! Terms: a *run* is one life of a container, by the runtime's id. A probe *ticks* each period from the moment the pod began to be
//! looked after, whether it can be asked then or not. *Adopted* is a run that began more than [`MARGIN`] before the agent: it counts as
//! what an earlier life of the agent wrote down of it ([`RunNote`]) until its own probes have said something; where nothing was
//! written down, as started and ready.
//!
//! As upstream: startup has the others wait; readiness is asked at once when the run has started, the others at their next tick;
//! after a startup probe's verdict, and after a failure of liveness, nothing more is asked until there is another run; a pod that has
//! to go is asked for readiness only; an answer that is an error (the probe could not be made) changes nothing.
//! Other than upstream: successes and failures in a row are counted for each run anew; where upstream draws the delay of the first
//! probe after a start of the agent at random, here it follows from pod, container and kind.
//!
//! Properties (tested): of a run and a kind there is never more than one question under way, and one for each tick; an answer of
//! another run changes nothing; no verdict before its threshold.

use serde::{Deserialize, Serialize};

use crate::spec::{ContainerSpec, Probe, ProbeKind};
use crate::units::{Micros, Now};

/// A run that began so long before the agent was there before it (prober_manager.go, kubeletRestartGracePeriod).
pub const MARGIN: Micros = Micros::secs(10);
/// The same words of a failing probe are told this far apart at least.
const TELL_AGAIN: Micros = Micros::secs(60);
/// The upper bounds of `prober_probe_duration_seconds`, in seconds: Prometheus' default buckets.
pub const BUCKETS: [Micros; 11] = [
    Micros::millis(5),
    Micros::millis(10),
    Micros::millis(25),
    Micros::millis(50),
    Micros::millis(100),
    Micros::millis(250),
    Micros::millis(500),
    Micros::secs(1),
    Micros::millis(2_500),
    Micros::secs(5),
    Micros::secs(10),
];

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Yes.
    Success,
    /// Yes, and people should know this.
    Warning(String),
    /// No, and why.
    Failure(String),
    /// The question could not be asked, or the answer not be read, three times in a row.
    Error {
        /// The state that the kubelet names with it: `unknown`, `failure`.
        state: String,
        /// What happened.
        message: String,
    },
}

/// What is counted of a probe, over all runs of its container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeCounts {
    /// Answers that were yes.
    pub successful: u64,
    /// Answers that were no.
    pub failed: u64,
    /// The time of all successful ones.
    pub time: Micros,
    /// Successful ones that took at most as long as the bound in [`BUCKETS`] of the same index, and longer than the one before.
    pub buckets: [u64; BUCKETS.len()],
}

impl ProbeCounts {
    fn success(&mut self, took: Micros) {
        self.successful += 1;
        self.time += took;
        if let Some(bucket) = BUCKETS.iter().position(|bound| took <= *bound) {
            self.buckets[bucket] += 1;
        }
    }
}

/// What is known of one probe of a container.
#[derive(Clone, Debug, Default)]
struct Worker {
    /// A tick, from which all others follow; `None` before the first look.
    phase: Option<Micros>,
    /// It could be asked at the last look, and its next tick.
    armed: Option<Micros>,
    /// A question is under way.
    asked: bool,
    /// What holds of this run.
    verdict: Option<bool>,
    /// The last answer of this run, and how many there were alike in a row.
    last: Option<(bool, u32)>,
    /// Not asked again in this run.
    hold: bool,
    /// What was told last of a failure, and when.
    told: Option<(String, Micros)>,
    counts: ProbeCounts,
}

impl Worker {
    fn forget_run(&mut self) {
        *self = Self { phase: self.phase, counts: std::mem::take(&mut self.counts), ..Self::default() };
    }
}

/// What the probes of one container depend on.
#[derive(Clone, Copy, Debug)]
pub struct Life<'a> {
    /// The pod's UID, from which the delay of a first probe follows.
    pub uid: &'a str,
    /// The run that is there and runs: its id, and when it was started (wall clock, 0 for unknown).
    pub run: Option<(&'a str, Micros)>,
    /// The pod has to go.
    pub going: bool,
    /// When the agent began (monotonic).
    pub agent: Micros,
}

/// What an answer leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// To be told: reason and message, in the kubelet's words.
    pub tell: Option<(&'static str, String)>,
    /// The run is ready or started now, or not any more.
    pub changed: bool,
}

/// What was known of a run, for a later life of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunNote {
    /// The container's name.
    pub container: String,
    /// The runtime's id.
    pub run: String,
    /// It had started.
    pub started: bool,
    /// It was ready.
    pub ready: bool,
}

/// The probes of one container.
#[derive(Clone, Debug, Default)]
pub struct Probing {
    /// The run that the answers are of.
    run: String,
    /// When it began (monotonic).
    began: Micros,
    /// What counts as long as its own probes have said nothing: it has started, and it is ready.
    was: (bool, bool),
    /// What an earlier life of the agent knew of a run.
    noted: Option<RunNote>,
    startup: Worker,
    readiness: Worker,
    liveness: Worker,
}

impl Probing {
    fn worker(&self, kind: ProbeKind) -> &Worker {
        match kind {
            ProbeKind::Startup => &self.startup,
            ProbeKind::Readiness => &self.readiness,
            ProbeKind::Liveness => &self.liveness,
        }
    }

    fn worker_mut(&mut self, kind: ProbeKind) -> &mut Worker {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
            ProbeKind::Liveness => &mut self.liveness,
        }
    }

    /// What is to be asked now, each counting as asked from now on, and when to look again (monotonic); `None`: when something happens.
    pub fn plan(&mut self, spec: &ContainerSpec, life: Life<'_>, now: Now) -> (Vec<ProbeKind>, Option<Micros>) {
        if spec.probes.is_empty() {
            return (Vec::new(), None);
        }
        for kind in ProbeKind::ALL {
            if let Some(probe) = spec.probes.get(kind) {
                let first = || now.mono + first_delay(probe, kind, &spec.name, life, now);
                self.worker_mut(kind).phase.get_or_insert_with(first);
            }
        }
        if let Some((run, started)) = life.run
            && self.run != run
        {
            self.begin(run, started, life, now);
        }
        let running = life.run.is_some();
        let (mut due, mut wake) = (Vec::new(), None::<Micros>);
        for kind in ProbeKind::ALL {
            let Some(probe) = spec.probes.get(kind) else { continue };
            let waits = match kind {
                ProbeKind::Startup => self.startup.verdict == Some(true),
                _ => spec.probes.startup.is_some() && self.startup.verdict != Some(true),
            };
            let earliest = now.mono.max(self.began + probe.initial_delay);
            let stays = !life.going || kind == ProbeKind::Readiness;
            let worker = self.worker_mut(kind);
            if !running || waits || worker.hold || !stays {
                worker.armed = None;
                continue;
            }
            let next = *worker.armed.get_or_insert_with(|| {
                let phase = worker.phase.unwrap_or(now.mono);
                // What has just started is to be ready soon: readiness does not wait for its tick, and ticks from now on.
                let phase = if kind == ProbeKind::Readiness && phase < now.mono { now.mono } else { phase };
                worker.phase = Some(phase);
                tick(phase, probe.period, earliest)
            });
            if worker.asked {
                continue;
            }
            if next <= now.mono {
                worker.asked = true;
                let phase = worker.phase.unwrap_or(now.mono);
                worker.armed = Some(tick(phase, probe.period, now.mono + Micros(1)));
                due.push(kind);
            } else {
                wake = Some(wake.map_or(next, |wake| wake.min(next)));
            }
        }
        (due, wake)
    }

    fn begin(&mut self, run: &str, started: Micros, life: Life<'_>, now: Now) {
        self.run = run.to_owned();
        // By the age on the wall clock now, because only the age is the same on both clocks.
        let age = if started == Micros::ZERO { Micros::ZERO } else { now.wall - started };
        self.began = now.mono - age;
        for kind in ProbeKind::ALL {
            self.worker_mut(kind).forget_run();
        }
        let adopted = self.began + MARGIN < life.agent;
        self.was = self.noted.take().filter(|note| note.run == run).map_or((adopted, adopted), |note| {
            // Who has started has done so once and for all.
            (self.startup.verdict, self.startup.hold) = (note.started.then_some(true), note.started);
            (note.started, note.ready)
        });
    }

    /// Takes an answer. One of another run, or of a question that nobody asked, is nothing.
    #[expect(clippy::too_many_arguments, reason = "each is a part of the event, or says what it is held against")]
    pub fn answer(
        &mut self,
        spec: &ContainerSpec,
        run: &str,
        kind: ProbeKind,
        answer: &Answer,
        took: Micros,
        going: bool,
        now: Now,
    ) -> News {
        let Some(probe) = spec.probes.get(kind) else { return News::default() };
        if run != self.run || !std::mem::take(&mut self.worker_mut(kind).asked) {
            return News::default();
        }
        // A pod that goes ends quietly.
        if going && kind != ProbeKind::Readiness {
            return News::default();
        }
        let before = self.shown(spec);
        let worker = self.worker_mut(kind);
        let success = match answer {
            Answer::Error { .. } => None,
            Answer::Failure(_) => Some(false),
            Answer::Success | Answer::Warning(_) => Some(true),
        };
        match success {
            Some(true) => worker.counts.success(took),
            Some(false) => worker.counts.failed += 1,
            None => {}
        }
        if let Some(success) = success {
            let row = worker.last.filter(|(last, _)| *last == success).map_or(1, |(_, row)| row.saturating_add(1));
            worker.last = Some((success, row));
            let enough = if success { probe.success_threshold } else { probe.failure_threshold };
            if row >= enough {
                worker.verdict = Some(success);
                worker.hold = kind == ProbeKind::Startup || kind == ProbeKind::Liveness && !success;
            }
        }
        let tell = worker.tell(kind, answer, now);
        News { tell, changed: before != self.shown(spec) }
    }

    /// `started` and `ready` of the run, which runs.
    fn shown(&self, spec: &ContainerSpec) -> (bool, bool) {
        let yes = |kind, unknown| spec.probes.get(kind).is_none() || self.worker(kind).verdict.unwrap_or(unknown);
        let started = yes(ProbeKind::Startup, self.was.0);
        (started, started && yes(ProbeKind::Readiness, self.was.1))
    }

    /// `started` and `ready` of this run, which runs.
    #[must_use]
    pub fn status(&self, spec: &ContainerSpec, run: &str) -> (bool, bool) {
        if self.run == run || spec.probes.is_empty() {
            return self.shown(spec);
        }
        // Not looked at yet.
        if let Some(note) = self.noted.as_ref().filter(|note| note.run == run) {
            return (note.started, note.ready);
        }
        let started = spec.probes.startup.is_none();
        (started, started && spec.probes.readiness.is_none())
    }

    /// An earlier life of the agent knew this of a run.
    pub fn recall(&mut self, note: RunNote) {
        self.noted = Some(note);
    }

    /// The probe that has failed this run, so that it must be stopped. Liveness goes before startup, as upstream.
    #[must_use]
    pub fn failed(&self, run: &str) -> Option<ProbeKind> {
        let mut kinds = [ProbeKind::Liveness, ProbeKind::Startup].into_iter();
        kinds.find(|kind| self.run == run && self.worker(*kind).verdict == Some(false))
    }

    /// What is counted of each probe that there is.
    pub fn counts<'a>(&'a self, spec: &'a ContainerSpec) -> impl Iterator<Item = (ProbeKind, &'a ProbeCounts)> {
        let there = ProbeKind::ALL.into_iter().filter(|kind| spec.probes.get(*kind).is_some());
        there.map(|kind| (kind, &self.worker(kind).counts))
    }
}

impl Worker {
    /// The kubelet's events (prober.go). It sends one for each failure and has equal ones counted; here they are told once a minute.
    fn tell(&mut self, kind: ProbeKind, answer: &Answer, now: Now) -> Option<(&'static str, String)> {
        let kind = kind.as_str();
        let (reason, message) = match answer {
            Answer::Success => {
                self.told = None;
                return None;
            }
            Answer::Warning(output) => ("ProbeWarning", format!("{kind} probe warning: {output}")),
            Answer::Failure(output) => ("Unhealthy", format!("{kind} probe failed: {output}")),
            Answer::Error { state, message } => {
                ("Unhealthy", format!("{kind} probe errored and resulted in {state} state: {message}"))
            }
        };
        if self.told.as_ref().is_some_and(|(told, at)| *told == message && now.mono < *at + TELL_AGAIN) {
            return None;
        }
        self.told = Some((message.clone(), now.mono));
        Some((reason, message))
    }
}

/// The first tick at or after a moment.
fn tick(phase: Micros, period: Micros, at: Micros) -> Micros {
    let period = period.get().max(1);
    phase + Micros((at - phase).get().div_ceil(period).saturating_mul(period))
}

/// What the first tick waits: nothing, or a part of the period if the agent is younger than that, so that the probes of many pods
/// that it finds are not asked all at once.
fn first_delay(probe: &Probe, kind: ProbeKind, container: &str, life: Life<'_>, now: Now) -> Micros {
    if now.mono - life.agent >= probe.period {
        return Micros::ZERO;
    }
    // FNV-1a, 64 bits.
    let bytes = life.uid.bytes().chain([0]).chain(container.bytes()).chain([0]).chain(kind.as_str().bytes());
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    // The upper half alone is spread evenly.
    probe.period.scale(hash >> 32, 1 << 32)
}

#[cfg(test)]
mod tests;
