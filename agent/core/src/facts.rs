//! What the runtime's facts change in the world.
//!
//! Problem: a listing is slow and may be older than what was done since; pods may be in it that nobody knows. Approach: a listing
//! says everything about a pod, or nothing if the pod had an operation after it was asked for. Who is unknown is either somebody
//! else's, beside a kubelet, or an orphan of ours.
//!
//! Property: an older listing never undoes what an operation has shown.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::event::{Action, ContainerFact, ContainerFactState, Kept, RuntimeFacts, SandboxFact};
use crate::lost;
use crate::pod::{Pod, PodState};
use crate::snapshot::ExitKind;
use crate::spec::{ContainerSpec, PodSpec, PodUid};
use crate::units::{Micros, Now};
use crate::why::Why;
use crate::world::World;

impl World {
    pub(crate) fn on_runtime_down(&mut self, reason: String, now: Now) {
        if self.runtime_down.as_ref() != Some(&reason) {
            let name = self.config.name.clone();
            let message = format!("the container runtime does not answer: {reason}");
            self.record(now, None, name, None, true, "ContainerRuntimeNotReady", message, Vec::new());
        }
        self.runtime_down = Some(reason);
    }

    pub(crate) fn on_facts(&mut self, facts: RuntimeFacts, now: Now) {
        if self.runtime_down.take().is_some() {
            let name = self.config.name.clone();
            self.record(
                now,
                None,
                name,
                None,
                false,
                "ContainerRuntimeReady",
                "the container runtime answers".into(),
                Vec::new(),
            );
        }
        self.facts_known = true;
        self.features = facts.features;
        let of_others = |uid: &PodUid| facts.sandboxes.iter().any(|s| s.uid == *uid && !s.ours);
        self.leftovers.extend(facts.leftovers.iter().filter(|(uid, _)| !of_others(uid)).cloned());
        let mut sandboxes: BTreeMap<PodUid, Vec<SandboxFact>> = BTreeMap::new();
        let mut containers: BTreeMap<PodUid, Vec<ContainerFact>> = BTreeMap::new();
        for fact in facts.sandboxes {
            sandboxes.entry(fact.uid.clone()).or_default().push(fact);
        }
        for fact in facts.containers {
            containers.entry(fact.uid.clone()).or_default().push(fact);
        }
        if self.wishes_known || self.config.beside {
            for (uid, list) in &sandboxes {
                if !self.pods.contains_key(uid) && (self.config.beside || list.iter().all(|s| s.ours)) {
                    let until = self.going.remove(uid);
                    let containers = containers.get(uid).map_or(&[][..], Vec::as_slice);
                    let mut pod = stranger(list, containers, self.config.beside, until, now);
                    let note = pod.note_deadline(now);
                    note.into_iter().for_each(|note| self.act(note));
                    self.totals.orphans += u64::from(!self.config.beside);
                    self.pods.insert(uid.clone(), pod);
                }
            }
        }
        let uids: Vec<PodUid> = self.pods.keys().cloned().collect();
        for uid in uids {
            let (s, c) = (sandboxes.remove(&uid).unwrap_or_default(), containers.remove(&uid).unwrap_or_default());
            self.on_pod_facts(&uid, facts.asked, s, c, now);
        }
    }

    /// What an earlier life left a cgroup or folders of: is cleaned away, unless it is wanted. A sandbox of it goes with its pod, and may
    /// have gone since it was listed.
    pub(crate) fn take_leftovers(&mut self, now: Now) {
        for (uid, cgroup) in std::mem::take(&mut self.leftovers) {
            match self.pods.get_mut(&uid) {
                _ if self.config.beside => {}
                None => {
                    self.pods.insert(uid.clone(), leftover(uid, cgroup, now));
                }
                // It had ended; the agent was killed before all of it was removed.
                Some(pod) if matches!(pod.state, PodState::Terminal(_)) && !cgroup.is_empty() => {
                    let next = pod.tidying(now);
                    self.go(&uid, next, now);
                }
                // Nothing of a pod is made before it is admitted.
                Some(pod) if pod.state == PodState::Observed => {
                    pod.let_in = true;
                    pod.home = pod.home.take().or_else(|| Some(cgroup).filter(|path| !path.is_empty()));
                }
                Some(_) => {}
            }
        }
    }

    fn on_pod_facts(
        &mut self,
        uid: &PodUid,
        asked: Micros,
        mut sandboxes: Vec<SandboxFact>,
        mut containers: Vec<ContainerFact>,
        now: Now,
    ) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if asked < pod.facts_from {
            // Older than what was done since: ask again, or news in it would wait for the next period.
            self.act(Action::Relist);
            return;
        }
        // What was asked for earlier and comes later is older, too.
        pod.facts_from = asked;
        pod.needs_facts = false;
        containers.sort_by(|a, b| (&a.name, a.attempt, &a.id).cmp(&(&b.name, b.attempt, &b.id)));
        let known_runs: Vec<String> = pod.containers.iter().map(|c| c.id.clone()).collect();
        let mut lost = lost::running(&pod.containers);
        if !pod.foreign {
            // Somebody else may have made one with the same UID: it is not ours to adopt, and still less to remove.
            sandboxes.retain(|s| s.ours);
            containers.retain(|c| sandboxes.iter().any(|s| s.id == c.sandbox_id));
        }
        lost.retain(|run| containers.iter().all(|c| c.id != run.id));
        pod.sandboxes = sandboxes;
        pod.containers = containers;
        pod.settle(&self.config.kubepods);
        pod.settle_early(asked);
        // An earlier life of the agent has seen it first.
        let oldest = pod.sandboxes.iter().map(|s| s.created).filter(|at| *at > Micros::ZERO).min();
        pod.since = oldest.map_or(pod.since, |at| at.min(pod.since));
        if pod.foreign {
            if pod.sandboxes.is_empty() {
                self.totals.pod_gone(&pod.spec, now.mono);
                self.told.remove(uid);
                self.pods.remove(uid);
                return;
            }
            let all: Vec<&ContainerFact> = pod.containers.iter().collect();
            let names: Vec<String> = all.iter().map(|c| c.name.clone()).collect();
            for name in names {
                pod.tracks.entry(name).or_default();
            }
            pod.spec = Arc::new(spec_of(&pod.sandboxes, &pod.containers));
        }
        let (max, names) = (self.config.max_backoff, pod.tracks.keys().cloned().collect::<Vec<_>>());
        let mut ends = Vec::new();
        for name in names {
            let Some(latest) = pod.latest(&name).cloned() else { continue };
            let older = pod.last_end(&name).map(|(run, exit)| (run.to_owned(), exit.clone()));
            let Some(track) = pod.tracks.get_mut(&name) else { continue };
            let first_look = track.run.is_empty() && !known_runs.contains(&latest.id);
            if let Some(exit) = track.observe(&latest, max, now) {
                // An end that happened before this agent looked for the first time is not news, but it is remembered.
                ends.push((name.clone(), exit, first_look));
            } else if let Some((run, exit)) = older {
                track.remember_older(&run, &exit);
            }
        }
        let backing_off =
            |pod: &Pod, name: &str| pod.tracks.get(name).is_some_and(|t| now.mono < t.crash.ready_at(t.exit_seen, max));
        for (name, exit, first_look) in ends {
            let Some(pod) = self.pods.get_mut(uid) else { return };
            let (again, restarts) =
                (backing_off(pod, &name), pod.tracks.get(&name).map_or(0, |track| track.restarts()));
            let stopping = !pod.state.is_live();
            if !stopping {
                pod.health.on_exit(&name, &exit, restarts, again, now);
            }
            if first_look {
                continue;
            }
            let key = (pod.spec.namespace.clone(), pod.spec.name.clone(), name.clone());
            let kind = match exit.code {
                code @ 129..=192 => ExitKind::Signal(u8::try_from(code - 128).unwrap_or(u8::MAX)),
                code => ExitKind::Code(u8::try_from(code.clamp(0, 255)).unwrap_or(u8::MAX)),
            };
            *self.totals.exits.entry((key, kind)).or_default() += 1;
            let message = format!("Container {name} ended: {} (exit code {})", exit.reason, exit.code);
            self.say(uid, Some(name.clone()), now, exit.code != 0 && !stopping, "Exited", message);
            self.tell_back_off(uid, name, &exit, again && !stopping, now);
        }
        self.on_lost(uid, &lost, now);
        let Some(pod) = self.pods.get_mut(uid) else { return };
        pod.go_on_counting();
        pod.keep_what_was_admitted();
        for fact in &pod.containers {
            if matches!(fact.state, ContainerFactState::Running { .. }) {
                pod.health.on_running(&fact.name, now);
            }
        }
        self.count_oom_kills(uid, now.mono);
    }
}

impl Pod {
    /// What a new sandbox is to keep of its containers.
    pub(crate) fn given(&self) -> BTreeMap<String, Kept> {
        let of = |container: &ContainerSpec| {
            let track = self.tracks.get(&container.name);
            let resources = track.and_then(|track| track.actuated).unwrap_or(container.resources);
            Kept { resources, next_attempt: track.map_or(0, |track| track.next_attempt) }
        };
        self.spec.all_containers().map(|container| (container.name.clone(), of(container))).collect()
    }

    /// Runs that the runtime has forgotten count as well: an attempt that an agent which has died asked for must not come beside
    /// another one.
    fn go_on_counting(&mut self) {
        let given = self.sandboxes.iter().flat_map(|sandbox| &sandbox.given);
        for (name, given) in given {
            if let Some(track) = self.tracks.get_mut(name) {
                track.next_attempt = track.next_attempt.max(given.next_attempt);
            }
        }
    }

    /// A wish for other resources that came while no agent looked waits as one that an agent sees: until all has been started, what was
    /// admitted counts.
    fn keep_what_was_admitted(&mut self) {
        let started = |name: &str| self.tracks.get(name).is_some_and(|track| track.actuated.is_some());
        let ended = match &self.state {
            PodState::Terminating { why, .. } | PodState::Cleaning { why } => why.end().is_some(),
            state => !state.is_live(),
        };
        if ended || self.spec.containers.iter().all(|c| started(&c.name)) {
            return;
        }
        let Some(sandbox) = self.sandboxes.iter().max_by_key(|s| s.attempt) else { return };
        let mut admitted = PodSpec::clone(&self.spec);
        for container in admitted.containers.iter_mut().chain(&mut admitted.init_containers) {
            container.resources =
                sandbox.given.get(&container.name).map_or(container.resources, |given| given.resources);
        }
        if admitted != *self.spec {
            self.next_spec = Some(std::mem::replace(&mut self.spec, Arc::new(admitted)));
        }
    }
}

/// A pod that the runtime has and no wish names: somebody else's, or one whose manifest went while no agent looked.
fn stranger(
    sandboxes: &[SandboxFact],
    containers: &[ContainerFact],
    beside: bool,
    until: Option<Micros>,
    now: Now,
) -> Pod {
    let mut pod = Pod::new(Arc::new(spec_of(sandboxes, containers)), now);
    (pod.foreign, pod.until) = (beside, until);
    pod.wanted = beside;
    pod.sandboxes = sandboxes.to_vec();
    pod.containers = containers.to_vec();
    pod.since = sandboxes.iter().map(|s| s.created).min().unwrap_or(now.wall);
    pod.state = if beside { PodState::Running } else { pod.terminating(Why::Orphan, now) };
    pod
}

/// What is left of a pod that an agent was killed over: to be cleaned away.
fn leftover(uid: PodUid, cgroup: String, now: Now) -> Pod {
    let mut pod = Pod::new(Arc::new(PodSpec::unknown(uid)), now);
    pod.wanted = false;
    pod.home = Some(cgroup).filter(|path| !path.is_empty());
    pod.state = PodState::Cleaning { why: Why::Orphan };
    pod
}

/// What can be said of a pod from the runtime alone.
fn spec_of(sandboxes: &[SandboxFact], containers: &[ContainerFact]) -> PodSpec {
    let newest = sandboxes.iter().max_by_key(|s| s.attempt);
    let mut spec = PodSpec::unknown(newest.map_or_else(|| "".into(), |s| s.uid.clone()));
    if let Some(s) = newest {
        spec.namespace.clone_from(&s.namespace);
        spec.name.clone_from(&s.name);
        spec.labels.clone_from(&s.labels);
        spec.host_network = s.ip.is_empty();
    }
    spec.termination_grace = containers.iter().filter_map(|c| c.grace).max().unwrap_or(spec.termination_grace);
    for fact in containers {
        if spec.container(&fact.name).is_none() {
            let mut container = ContainerSpec::unknown(&fact.name);
            container.image.clone_from(&fact.image);
            container.resources = fact.resources.unwrap_or_default();
            container.lifecycle.pre_stop = fact.pre_stop.clone().map(Box::new);
            spec.containers.push(container);
        }
    }
    spec
}
