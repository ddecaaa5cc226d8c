//! What follows from the [ladder](crate::ladder): its moves become actions here, or are told where nothing may be done.
//!
//! Properties: beside a kubelet, or with `mode: Observe`, no move is done, and what would have been done is recorded at most once a
//! minute for each pod and rung; every beginning and end of a rung is recorded with what was seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::allocate;
use crate::event::{Action, Knob, KnobWrite};
use crate::evict::{self, Candidate, STALE, rank};
use crate::judge::TELL_AGAIN;
use crate::ladder::{Act, Held, Move, Situation, Subject, Turn, Wishes};
use crate::sample::{PodReading, Sample};
use crate::spec::PodUid;
use crate::units::{Micros, Now, Ppm};
use crate::world::World;

impl World {
    /// Takes a look at all pods up and down the ladder. `evicted`: somebody was sent away in this look.
    pub(crate) fn climb(&mut self, sample: &Sample, candidates: &[Candidate], evicted: bool, now: Now) {
        // What is old gives no permission. What holds a pod up ends without a look, too: who turned it keeps its time.
        if now.mono - sample.at > STALE {
            return;
        }
        let situation = self.situation(evicted);
        let exceeding = candidates.iter().filter(|c| c.exceeds()).map(|c| &c.uid).collect();
        let order = rank(candidates).into_iter().enumerate().map(|(place, of)| (&of.pod.uid, place)).collect();
        let acts = !self.only_watches();
        let readings = sample.pods.iter().flatten();
        let subjects: Vec<Subject> =
            readings.filter_map(|reading| self.subject_of(sample.at, reading, &exceeding, &order)).collect();
        for step in self.ladder.step(now.mono, &situation, &subjects) {
            if acts {
                self.take(step, now);
            } else if step.turn == Turn::Enter {
                self.tell_rung(step, now);
            }
        }
    }

    fn situation(&self, evicted: bool) -> Situation {
        let walls = self.evict.seen();
        let near = walls.iter().filter_map(|wall| Some((wall.time_to_oom?, wall.available))).min();
        let slope = near.map(|(left, available)| available.scale(1_000_000, left.get()).get());
        let room = |w: &evict::Seen| w.available - w.threshold.scale(2, 1);
        let share = |w: &evict::Seen| Ppm(w.available.scale(1_000_000, w.limit.get()).get());
        Situation {
            left: walls.iter().map(share).min(),
            time_to_oom: self.evict.standing().time_to_oom,
            slope: slope.unwrap_or_default(),
            room: walls.iter().map(room).min().unwrap_or_default(),
            met: walls.iter().any(|wall| wall.below),
            decided: evicted || self.evict.awaited().is_some(),
        }
    }

    fn subject_of(
        &self,
        at: Micros,
        reading: &PodReading,
        exceeding: &BTreeSet<&PodUid>,
        order: &BTreeMap<&PodUid, usize>,
    ) -> Option<Subject> {
        let pod = self.pods.get(&reading.uid)?;
        let memory = reading.memory(at)?;
        let cgroup = pod.cgroup(&self.config);
        let containers = reading.containers.iter().filter_map(|c| {
            let track = pod.tracks.get(&c.name).filter(|track| track.run == c.id)?;
            let given = track.actuated.or_else(|| pod.spec.container(&c.name).map(|spec| spec.resources));
            Some(Held {
                name: c.name.clone(),
                cgroup: allocate::container_path(&cgroup, &c.id),
                memory: c.cgroup.memory?,
                at: if c.cgroup.at > Micros::ZERO { c.cgroup.at } else { at },
                given: given.and_then(|given| given.memory_limit),
                forecast: track.model.forecast_own(),
            })
        });
        let full = reading.cgroup.pressure.map(|pressure| pressure.memory.full.avg10);
        Some(Subject {
            uid: reading.uid.clone(),
            wishes: Wishes::of(&pod.spec),
            live: pod.state.is_live(),
            place: order.get(&reading.uid).copied(),
            exceeds: exceeding.contains(&reading.uid),
            memory,
            given: allocate::pod_memory_limit(pod.actuated().as_ref().unwrap_or(&pod.spec)),
            growth: pod.meter.model.growth(),
            stalled: pod.meter.model.memory_stalled(),
            strangled: full.unwrap_or_default(),
            containers: containers.collect(),
            cgroup,
        })
    }

    fn take(&mut self, step: Move, now: Now) {
        let Move { uid, container, rung, turn, acts, why, evidence } = step;
        for (cgroup, act) in acts {
            let knob = match act {
                Act::Reclaim(bytes) => {
                    self.act(Action::ReclaimMemory { cgroup, bytes });
                    continue;
                }
                Act::High(high) => Knob::MemoryHigh(high),
                Act::Max(limit) => Knob::MemoryMax(Some(limit)),
                Act::Freeze(frozen) => Knob::Freeze(frozen),
            };
            let target = (uid.clone(), container.clone().unwrap_or_default());
            self.act(Action::Knob(KnobWrite { cgroup, target, knob, why: why.clone() }));
        }
        let [begins, ends, _] = rung.reasons();
        match turn {
            Turn::Enter => {
                *self.totals.rungs.entry((rung, true)).or_default() += 1;
                self.say_why(&uid, container, now, true, begins, why, evidence);
            }
            Turn::Leave => self.say_why(&uid, container, now, false, ends, why, evidence),
            // A little more cache is no news; a limit is.
            Turn::Again if !why.is_empty() => self.say_why(&uid, container, now, false, begins, why, evidence),
            Turn::Again => {}
        }
    }

    fn tell_rung(&mut self, step: Move, now: Now) {
        *self.totals.rungs.entry((step.rung, false)).or_default() += 1;
        let key = (step.uid.clone(), step.rung);
        if self.told_rungs.get(&key).is_some_and(|told| now.mono - *told < TELL_AGAIN) {
            return;
        }
        self.told_rungs.insert(key, now.mono);
        let [.., would] = step.rung.reasons();
        self.say_why(&step.uid, step.container, now, true, would, step.why, step.evidence);
    }
}
