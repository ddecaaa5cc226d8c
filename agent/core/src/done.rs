//! What the end of an operation changes in the world.
//!
//! Approach: a success is merged into what is known at once, so that the next operation need not wait for a listing; a failure sets
//! the back-off of what failed (image, container, or the pod's own parts) and asks for a listing, because it may have got half way.

use crate::backoff::{Backoff, INITIAL, MAX_IMAGE};
use crate::event::{Action, CANCELLED, ContainerFact, ContainerFactState, Done, OpError, OpId, PodOp};
use crate::lost;
use crate::pod::PodState;
use crate::restart;
use crate::spec::{ContainerSpec, PodUid, PullPolicy};
use crate::units::{Micros, Now};
use crate::world::World;

impl World {
    pub(crate) fn on_done(&mut self, uid: &PodUid, op: OpId, result: Result<Done, OpError>, now: Now) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let Some((_, name)) = pod.in_flight.take_if(|(id, _)| *id == op) else { return };
        *self.totals.actions.entry((name.to_owned(), result.is_ok())).or_default() += 1;
        // Facts that were asked for before this moment may not know of it.
        pod.facts_from = now.mono;
        let op = pod.doing.take();
        match result {
            Ok(done) => self.on_success(uid, op, done, now),
            Err(error) => self.on_failure(uid, op.as_ref(), &error, now),
        }
    }

    fn on_success(&mut self, uid: &PodUid, op: Option<PodOp>, done: Done, now: Now) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        if !matches!(
            op,
            Some(
                PodOp::EnsureImage { .. }
                    | PodOp::StartContainer { .. }
                    | PodOp::PostStart { .. }
                    | PodOp::Resize { .. }
            )
        ) {
            pod.trouble = None;
            pod.retry = Backoff::default();
            pod.retry_at = Micros::ZERO;
        }
        match (op, done) {
            (Some(PodOp::Prepare { .. }), done) if pod.state == PodState::Preparing => {
                if let Done::Prepared { runs } = done {
                    self.on_counted(uid, runs);
                }
                self.go(uid, PodState::SandboxStarting, now);
            }
            (_, Done::Sandbox(fact)) => {
                let usable = pod.spec.host_network || !fact.no_address;
                let message = format!("Pod sandbox {} is up, address {}", short(&fact.id), or_host(&fact.ip));
                pod.sandboxes.retain(|s| s.id != fact.id);
                pod.sandboxes.push(fact);
                if !usable {
                    // Another one is made; not without end and rest.
                    pod.retry.next(now.mono, now.mono, self.config.max_backoff);
                    pod.retry_at = now.mono + pod.retry.delay();
                }
                self.say(uid, None, now, !usable, "SandboxStarted", message);
            }
            (Some(PodOp::EnsureImage { image, pull }), Done::Image { pulled }) => {
                // It is there now, which is all that the other two policies ask for.
                let served = |c: &&ContainerSpec| c.image == image && (c.pull == pull || c.pull != PullPolicy::Always);
                let users: Vec<String> = pod.spec.all_containers().filter(served).map(|c| c.name.clone()).collect();
                for name in &users {
                    if let Some(track) = pod.tracks.get_mut(name) {
                        track.image_ready = true;
                        track.trouble = None;
                        track.image = Backoff::default();
                    }
                }
                self.tell_image(uid, users.into_iter().next(), &image, pulled, now);
            }
            (
                Some(PodOp::StartContainer { container, attempt, linux, sandbox_id, .. }),
                Done::Container { id, started },
            ) => {
                let image = pod.spec.container(&container).map(|c| c.image.clone()).unwrap_or_default();
                pod.containers.retain(|c| c.id != id);
                let fact = ContainerFact {
                    id: id.clone(),
                    sandbox_id,
                    uid: uid.clone(),
                    name: container.clone(),
                    attempt,
                    image,
                    image_id: String::new(),
                    state: ContainerFactState::Running { started },
                    resources: Some(linux.resources),
                    grace: Some(pod.spec.termination_grace),
                    pid: None,
                    pre_stop: pod.spec.container(&container).and_then(|c| c.lifecycle.pre_stop.as_deref().cloned()),
                    user: None,
                };
                if let Some(track) = pod.tracks.get_mut(&container) {
                    track.trouble = None;
                    track.image_ready = false;
                    track.retry_at = Micros::ZERO;
                    track.actuated = Some(linux.resources);
                    track.observe(&fact, self.config.max_backoff, now);
                }
                pod.containers.push(fact);
                pod.owe_post_start(&container, &id);
                pod.health.on_running(&container, now);
                if attempt > 0 {
                    let key = (pod.spec.namespace.clone(), pod.spec.name.clone(), container.clone());
                    *self.totals.restarts.entry(key).or_default() += 1;
                }
                self.tell_started(uid, container, now);
                // It may be over already; the facts know how it ended and which image it has.
                self.act(Action::Relist);
            }
            (Some(PodOp::PostStart { container, .. }), _) => pod.post_start_done(&container),
            (Some(PodOp::StopContainers { stops, .. }), _) => {
                pod.needs_facts = true;
                pod.on_hooks_done(&stops);
                let told_now = |c: &&ContainerFact| stops.iter().any(|stop| stop.signal && stop.id == c.id);
                if let PodState::Terminating { why, deadline, told } = pod.state.clone() {
                    // It may have begun before the pod had to go, for one container only.
                    let stage = |c: &ContainerFact| restart::stage(&pod.spec, &c.name);
                    let (of, others): (Vec<_>, Vec<_>) = pod.containers.iter().partition(told_now);
                    let reached = of.into_iter().map(stage).max().map_or(0, |stage| stage + 1);
                    let lives = |c: &&ContainerFact| c.exit_code().is_none();
                    let left = others.into_iter().filter(lives).map(stage).min().unwrap_or(usize::MAX);
                    let told = reached.min(left).max(told);
                    self.go(uid, PodState::Terminating { why, deadline, told }, now);
                }
                self.act(Action::Relist);
            }
            (Some(PodOp::RemoveSandboxes { ids }), _) => {
                let (gone, left) = pod.containers.drain(..).partition(|c| ids.contains(&c.sandbox_id));
                let gone: Vec<ContainerFact> = gone;
                pod.containers = left;
                pod.sandboxes.retain(|s| !ids.contains(&s.id));
                self.on_lost(uid, &lost::running(&gone), now);
            }
            (Some(PodOp::RemoveContainers { ids }), _) => pod.containers.retain(|c| !ids.contains(&c.id)),
            (Some(PodOp::Resize { spec, containers, .. }), _) => {
                let mut names = Vec::new();
                for (_, name, linux) in &containers {
                    if let Some(track) = pod.tracks.get_mut(name) {
                        track.actuated = Some(linux.resources);
                        names.push(name.clone());
                    }
                }
                // What does not run now gets the new values when it starts.
                for container in &spec.containers {
                    if let Some(track) = pod.tracks.get_mut(&container.name)
                        && !names.contains(&container.name)
                    {
                        track.actuated = Some(container.resources);
                    }
                }
                pod.resize.clear();
                pod.resize_error = None;
                self.refresh(uid);
                let message = format!("Resources of {} changed in place", names.join(", "));
                self.say(uid, None, now, false, "ResizeCompleted", message);
            }
            (Some(PodOp::Cleanup { keep_logs, .. }), _) => self.on_cleaned(uid, keep_logs, now),
            _ => {}
        }
    }

    /// The runtime forgets with a sandbox how its containers ended: what a pod's note does not know yet is written down before.
    pub(crate) fn write_down_ends(&mut self, uid: &PodUid) {
        let Some(pod) = self.pods.get(uid) else { return };
        let PodState::Terminating { why, .. } = &pod.state else { return };
        let Some(end) = why.end().filter(|_| pod.wanted) else { return };
        let end = pod.terminal(&end);
        if self.remembered.get(uid) != Some(&end) {
            self.remembered.insert(uid.clone(), end.clone());
            self.act(Action::Remember(end));
        }
    }

    fn on_cleaned(&mut self, uid: &PodUid, kept_logs: bool, now: Now) {
        let Some(pod) = self.pods.get_mut(uid) else { return };
        // It ended, and while that was tidied away nobody wanted it any more: its logs go as well, by another turn.
        if kept_logs && !pod.wanted {
            return;
        }
        let PodState::Cleaning { why } = pod.state.clone() else { return };
        pod.meter.clear();
        // One that was changed meanwhile is made anew.
        let stays = pod.wanted && pod.next_spec.is_none();
        let end = why.end().filter(|_| stays).map(|end| pod.terminal(&end));
        let noted = pod.until.take_if(|_| end.is_some()).is_some();
        match end {
            Some(end) => {
                self.remembered.insert(uid.clone(), end.clone());
                self.act(Action::Remember(end.clone()));
                if noted {
                    self.act(Action::Going { uid: uid.clone(), until: None });
                }
                self.go(uid, PodState::Terminal(end), now);
            }
            // It was wanted again while it went: the same manifest came back.
            None => self.go(uid, PodState::Gone, now),
        }
    }

    fn on_failure(&mut self, uid: &PodUid, op: Option<&PodOp>, error: &OpError, now: Now) {
        let max = self.config.max_backoff;
        let Some(pod) = self.pods.get_mut(uid) else { return };
        let mut backs_off = false;
        let container = match op {
            Some(PodOp::EnsureImage { image, pull }) => {
                // Another policy may do without what failed.
                let alike = |c: &&ContainerSpec| c.image == *image && c.pull == *pull;
                let users: Vec<String> = pod.spec.all_containers().filter(alike).map(|c| c.name.clone()).collect();
                for name in &users {
                    if let Some(track) = pod.tracks.get_mut(name) {
                        track.image.next(now.mono, now.mono, MAX_IMAGE);
                        track.retry_at = now.mono + track.image.delay();
                        track.trouble = Some(error.clone());
                        backs_off = is_pull(&error.reason) && track.image.delay() > INITIAL;
                    }
                }
                users.into_iter().next()
            }
            Some(PodOp::PostStart { container, id, .. }) => {
                pod.needs_facts = true;
                self.on_post_start_failed(uid, container, id, error, now);
                self.act(Action::Relist);
                return;
            }
            Some(PodOp::StartContainer { container, .. }) => {
                if let Some(track) = pod.tracks.get_mut(container) {
                    // After an earlier end the start itself has counted already.
                    if track.last_exit.is_none() {
                        track.crash.next(now.mono, now.mono, max);
                    }
                    track.retry_at = now.mono + track.crash.delay();
                    track.trouble = Some(error.clone());
                }
                Some(container.clone())
            }
            other => {
                if let Some(PodOp::Resize { .. }) = other {
                    pod.resize_error = Some(error.message.clone());
                }
                pod.retry.next(now.mono, now.mono, Micros::secs(60).min(max));
                pod.retry_at = now.mono + pod.retry.delay().scale(1, 5);
                pod.trouble = Some(error.clone());
                None
            }
        };
        pod.needs_facts = true;
        if let Some(PodOp::StopContainers { .. }) = op
            && error.reason == CANCELLED
        {
            // It is told anew, with the time that is left now.
            pod.retry_at = Micros::ZERO;
            self.act(Action::Relist);
            return;
        }
        // A runtime that cannot stop a pod in its time does not keep it alive.
        let overdue = matches!(&pod.state, PodState::Terminating { deadline, .. } if now.mono >= *deadline);
        if overdue && matches!(op, Some(PodOp::StopContainers { .. } | PodOp::RemoveSandboxes { .. })) {
            let cgroup = pod.cgroup(&self.config);
            self.act(Action::Kill { uid: uid.clone(), cgroup });
        }
        self.act(Action::Relist);
        self.tell_failure(uid, container.as_ref(), op, error, backs_off, now);
    }
}

/// Whether that is the reason of a pull that failed.
pub(crate) fn is_pull(reason: &str) -> bool {
    matches!(reason, "ErrImagePull" | "RegistryUnavailable" | "SignatureValidationFailed")
}

fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

fn or_host(ip: &str) -> &str {
    if ip.is_empty() { "of the host" } else { ip }
}
