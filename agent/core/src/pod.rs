//! The life of one pod.
//!
//! Problem: between "the file says so" and "it runs" lie a dozen slow steps, each of which may fail, be interrupted by the
//! pod's removal, or have been done already by an agent that was killed in the middle.
//! Approach: a pod is in one [`PodState`]; [`Pod::plan`] looks at the state and at the facts of the runtime and names the one
//! next thing to do. It is asked again after every event, so nothing depends on having seen an event (level-triggered); a
//! pod found running after a restart of the agent walks through the same states without an operation.
//!
//! Terms: *latest run* of a container: the fact with the highest attempt. *Ended*: it will not be run again.
//!
//! Properties: at most one operation is under way; at most one live sandbox; an illegal transition changes nothing; what
//! runs is never touched unless the pod must go, its sandbox is dead, its resources changed, or a probe or hook of it failed.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::allocate;
use crate::backoff::Backoff;
use crate::event::{ContainerFact, ContainerFactState, Exit, OpError, OpId, PodCgroup, PodOp, SandboxFact, Terminal};
use crate::health::HealthModel;
use crate::node::NodeConfig;
use crate::restart;
use crate::sample::NetworkReading;
use crate::snapshot::Phase;
use crate::spec::{ContainerSpec, PodSpec, RestartPolicy};
use crate::status::{PodNote, Shown};
use crate::track::{ContainerTrack, PodMeter};
use crate::units::{Bytes, Micros, Now};
use crate::why::{End, Why};

/// Where a pod is in its life. What is valid only in a state lives in its variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodState {
    /// Wanted; not looked at yet, or waiting for an older pod of the same name to go.
    Observed,
    /// It may run here.
    Admitted,
    /// It may not run here.
    Rejected {
        /// The kubelet's reason: `OutOfmemory`, ...
        reason: String,
        /// The kubelet's message.
        message: String,
    },
    /// Its cgroup and volumes are being made.
    Preparing,
    /// Its sandbox is being made.
    SandboxStarting,
    /// Its init containers run, this one now.
    Initializing {
        /// Into `init_containers`.
        index: usize,
    },
    /// Its containers run, or wait to.
    Running,
    /// It has to go: containers first, then sandboxes.
    Terminating {
        /// Why.
        why: Why,
        /// When the last process is killed at the latest (monotonic).
        deadline: Micros,
        /// So many stages of its containers were told to stop ([`restart::stages`]).
        told: usize,
    },
    /// Its cgroup, volumes and folders are being removed.
    Cleaning {
        /// Why it had to go.
        why: Why,
    },
    /// It ended and is still wanted: shown, and not run again.
    Terminal(Terminal),
    /// Nothing is left of it; it is forgotten at once.
    Gone,
}

impl PodState {
    /// For people, and for the table of transitions.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Observed => "Observed",
            Self::Admitted => "Admitted",
            Self::Rejected { .. } => "Rejected",
            Self::Preparing => "Preparing",
            Self::SandboxStarting => "SandboxStarting",
            Self::Initializing { .. } => "Initializing",
            Self::Running => "Running",
            Self::Terminating { .. } => "Terminating",
            Self::Cleaning { .. } => "Cleaning",
            Self::Terminal(_) => "Terminal",
            Self::Gone => "Gone",
        }
    }

    /// Whether a pod may go from here to there.
    #[must_use]
    pub fn may_become(&self, next: &Self) -> bool {
        use PodState as S;
        match (self, next) {
            (S::Observed, S::Admitted | S::Rejected { .. } | S::Terminal(_) | S::Gone)
            | (S::Admitted, S::Preparing)
            | (S::Rejected { .. }, S::Terminating { .. } | S::Gone)
            | (S::Preparing | S::Running, S::SandboxStarting)
            | (S::SandboxStarting, S::Initializing { .. })
            | (S::Initializing { .. }, S::Initializing { .. } | S::Running | S::SandboxStarting)
            | (S::Terminating { .. }, S::Terminating { .. } | S::Cleaning { .. })
            | (S::Cleaning { .. }, S::Terminal(_) | S::Gone)
            | (S::Terminal(_), S::Terminating { .. }) => true,
            (from, S::Terminating { .. }) => from.is_live(),
            _ => false,
        }
    }

    /// Something of it may be in the runtime, and it is not on its way out.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(
            self,
            Self::Admitted
                | Self::Preparing
                | Self::SandboxStarting
                | Self::Initializing { .. }
                | Self::Running
                | Self::Observed
        )
    }
}

/// The one next thing to do for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Go to this state and ask again.
    Become(PodState),
    /// Run this operation.
    Do(PodOp),
    /// Nothing before this moment (monotonic).
    Wait(Micros),
    /// Nothing until something happens.
    Idle,
}

/// A pod as the world knows it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What is wanted.
    pub spec: Arc<PodSpec>,
    /// What is wanted instead, with other resources; taken up when all that was admitted has been started.
    pub next_spec: Option<Arc<PodSpec>>,
    /// The source still names it.
    pub wanted: bool,
    /// A kubelet runs it; never acted on.
    pub foreign: bool,
    /// Its state.
    pub state: PodState,
    /// An earlier life of the agent admitted it: of those that wait to be, it comes first.
    pub(crate) let_in: bool,
    /// Its cgroup, once that was made or found. A later wish for another QoS class does not move it.
    pub home: Option<String>,
    /// The operation under way.
    pub in_flight: Option<(OpId, &'static str)>,
    /// What that operation is.
    pub doing: Option<PodOp>,
    /// Its sandboxes in the runtime.
    pub sandboxes: Vec<SandboxFact>,
    /// Its containers in the runtime.
    pub containers: Vec<ContainerFact>,
    /// Facts asked for before this moment say nothing of this pod (monotonic).
    pub facts_from: Micros,
    /// Nothing is planned before facts asked at `facts_from` or later have come.
    pub needs_facts: bool,
    /// What is remembered of each container.
    pub tracks: BTreeMap<String, Box<ContainerTrack>>,
    /// The back-off of the pod's own operations (cgroup, volumes, sandbox).
    pub retry: Backoff,
    /// The pod's own operations are not tried before this moment.
    pub retry_at: Micros,
    /// What went wrong last with the pod's own operations.
    pub trouble: Option<OpError>,
    /// When it was first seen (wall clock).
    pub since: Micros,
    /// What it uses.
    pub meter: PodMeter,
    /// Whether it is well.
    pub health: HealthModel,
    /// Cumulative bytes and packets, kept after its end.
    pub network: Option<NetworkReading>,
    /// What is to be done about changed resources; the world plans it, which knows the other pods.
    pub resize_plan: Option<allocate::ResizePlan>,
    /// `Deferred: ...`, `Infeasible: ...`, `InProgress`; "" for none.
    pub resize: String,
    /// By when it has to be gone, as it was written down (wall clock); `None` where it need not go.
    pub until: Option<Micros>,
    /// Others go for it: it holds its share of the node before it is admitted.
    pub(crate) claims: bool,
    /// Why a resize under way failed last.
    pub resize_error: Option<String>,
    /// What was shown of it last.
    pub shown: Shown,
    /// The state, the operation and the length of the note of a resize at that moment.
    pub(crate) stood: Option<(&'static str, Option<OpId>, usize)>,
    /// What was written down of that.
    pub(crate) noted: Option<PodNote>,
    /// The last thing done or decided, for people.
    pub last_action: String,
    /// When it is to be planned again although nothing happens (monotonic).
    pub(crate) wake: Option<Micros>,
}

impl Pod {
    /// A pod that has just become known.
    #[must_use]
    pub fn new(spec: Arc<PodSpec>, now: Now) -> Self {
        let tcp =
            spec.all_containers().flat_map(|c| &c.ports).filter(|p| p.protocol == "TCP").map(|p| p.container_port);
        let health = HealthModel::new(tcp.collect());
        let tracks = spec.all_containers().map(|c| (c.name.clone(), Box::default())).collect();
        Self {
            spec,
            next_spec: None,
            wanted: true,
            foreign: false,
            state: PodState::Observed,
            let_in: false,
            home: None,
            in_flight: None,
            doing: None,
            sandboxes: Vec::new(),
            containers: Vec::new(),
            facts_from: Micros::ZERO,
            needs_facts: false,
            tracks,
            retry: Backoff::default(),
            retry_at: Micros::ZERO,
            trouble: None,
            since: now.wall,
            meter: PodMeter::default(),
            health,
            network: None,
            resize_plan: None,
            resize: String::new(),
            until: None,
            claims: false,
            resize_error: None,
            shown: Shown::default(),
            stood: None,
            noted: None,
            last_action: String::new(),
            wake: None,
        }
    }

    /// The newest sandbox that is up and has an address, if it is to have one of its own.
    #[must_use]
    pub fn ready_sandbox(&self) -> Option<&SandboxFact> {
        let usable = |s: &&SandboxFact| s.ready && (self.spec.host_network || !s.no_address);
        self.sandboxes.iter().filter(usable).max_by_key(|s| s.attempt)
    }

    /// The latest run of a container.
    #[must_use]
    pub fn latest(&self, name: &str) -> Option<&ContainerFact> {
        self.containers.iter().filter(|c| c.name == name).max_by_key(|c| c.attempt)
    }

    /// Containers that run, or may.
    pub fn live_containers(&self) -> impl Iterator<Item = &ContainerFact> {
        self.containers.iter().filter(|c| !matches!(c.state, ContainerFactState::Exited(_)))
    }

    /// Its cgroup: where it was made or found. Until then where it would be made.
    #[must_use]
    pub fn cgroup(&self, config: &NodeConfig) -> String {
        self.home.clone().unwrap_or_else(|| allocate::pod_path(config, &self.spec))
    }

    /// Takes its cgroup from a sandbox that was found, if it is not known yet. One of ours is below `kubepods` and nowhere else.
    pub fn settle(&mut self, kubepods: &str) {
        if self.home.is_none() {
            let ours = |path: &&str| path.strip_prefix(kubepods).is_some_and(|rest| rest.starts_with('/'));
            let mut parents =
                self.sandboxes.iter().map(|s| s.cgroup_parent.trim_matches('/')).filter(|p| !p.is_empty());
            self.home = parents.find(|p| self.foreign || ours(p)).map(str::to_owned);
        }
    }

    /// What reclaim cannot free of it, by its last reading.
    #[must_use]
    pub fn unreclaimable(&self) -> Option<Bytes> {
        self.meter.reading.and_then(|r| r.memory).map(|m| m.unreclaimable())
    }

    /// The next thing to do. `name_taken`: an older pod of the same name is still there.
    #[must_use]
    pub fn plan(&self, config: &NodeConfig, name_taken: bool, now: Now) -> Step {
        if self.foreign || self.in_flight.is_some() || self.needs_facts {
            return Step::Idle;
        }
        match &self.state {
            PodState::Observed if name_taken => Step::Idle,
            // Admission is the world's: it alone knows what the other pods use.
            PodState::Observed | PodState::Gone => Step::Idle,
            // Made at the word of an agent that has died since. When it is gone the pod is looked at anew.
            PodState::Rejected { .. } if !self.sandboxes.is_empty() => {
                Step::Become(self.terminating(Why::Removed, now))
            }
            PodState::Rejected { .. } => Step::Idle,
            PodState::Admitted => Step::Become(PodState::Preparing),
            // A pod that runs already keeps what it was given; a cut is for the resize, which looks before it.
            PodState::Preparing => self.after_trouble(now, || {
                let given = self.actuated();
                let wanted = allocate::pod_cgroup(config, given.as_ref().unwrap_or(&self.spec));
                let cgroup = PodCgroup { path: self.cgroup(config), ..wanted };
                Step::Do(PodOp::Prepare { spec: Arc::clone(&self.spec), cgroup })
            }),
            PodState::SandboxStarting => self.plan_sandbox(config, now),
            PodState::Initializing { index } => self.plan_init(config, *index, now),
            PodState::Running => self.plan_running(config, now),
            PodState::Terminating { why, deadline, told } => self.plan_termination(why, *deadline, *told, now),
            PodState::Cleaning { why } => self.after_trouble(now, || {
                Step::Do(PodOp::Cleanup {
                    uid: self.spec.uid.clone(),
                    cgroup: self.cgroup(config),
                    keep_logs: self.wanted && why.end().is_some(),
                })
            }),
            PodState::Terminal(_) if !self.wanted => Step::Become(self.terminating(Why::Removed, now)),
            // The agent was killed between the end and its tidying.
            PodState::Terminal(_) if !self.sandboxes.is_empty() => Step::Become(self.tidying(now)),
            PodState::Terminal(_) => Step::Idle,
        }
    }

    /// The message of its condition `DisruptionTarget`, if it has to make room or had to.
    #[must_use]
    pub fn disruption(&self) -> Option<&str> {
        match &self.state {
            PodState::Terminal(end) => end.disruption.as_deref(),
            PodState::Terminating { why, .. } | PodState::Cleaning { why } => why.end()?.disruption,
            _ => None,
        }
    }

    pub(crate) fn after_trouble(&self, now: Now, then: impl FnOnce() -> Step) -> Step {
        if now.mono < self.retry_at { Step::Wait(self.retry_at) } else { then() }
    }

    fn plan_sandbox(&self, config: &NodeConfig, now: Now) -> Step {
        let live = self.ready_sandbox();
        // Its init containers would run again for nothing.
        if live.is_none()
            && let Some(phase) = self.ended_without_sandbox()
        {
            return Step::Become(self.terminating(Why::Ended { phase }, now));
        }
        let dead: Vec<String> =
            self.sandboxes.iter().filter(|s| live.is_none_or(|l| l.id != s.id)).map(|s| s.id.clone()).collect();
        if !dead.is_empty() {
            // Also what still runs in them: a container cannot move to another sandbox.
            return self.after_trouble(now, || Step::Do(PodOp::RemoveSandboxes { ids: dead }));
        }
        if live.is_some() {
            return Step::Become(PodState::Initializing { index: 0 });
        }
        // Always the same attempt, the dead ones being gone: the runtime reserves the name, so that one which an agent that was
        // killed asked for, and which comes late, cannot stand beside ours.
        self.after_trouble(now, || {
            let (spec, cgroup) = (Arc::clone(&self.spec), self.cgroup(config));
            Step::Do(PodOp::StartSandbox { spec, given: self.given(), cgroup, attempt: 0 })
        })
    }

    /// A pod whose containers must not run again gets no new sandbox for its lost one.
    fn ended_without_sandbox(&self) -> Option<Phase> {
        let ends: Vec<(&ContainerSpec, Option<i32>)> =
            self.spec.containers.iter().map(|c| (c, self.end_code(c))).collect();
        let again = ends.iter().any(|(c, code)| match code {
            Some(code) => restart::runs_again(&self.spec, c, *code),
            None => restart::policy(&self.spec, c) != RestartPolicy::Never,
        });
        if again || ends.iter().all(|(_, code)| code.is_none()) {
            return None;
        }
        Some(if ends.iter().all(|(_, code)| *code == Some(0)) { Phase::Succeeded } else { Phase::Failed })
    }

    /// The code that a container's latest run ended with, also if the runtime forgot it since.
    fn end_code(&self, container: &ContainerSpec) -> Option<i32> {
        let seen = self.latest(&container.name).and_then(ContainerFact::exit_code);
        seen.or_else(|| self.ended_unseen(container).map(|exit| exit.code))
    }

    fn plan_init(&self, config: &NodeConfig, index: usize, now: Now) -> Step {
        if self.ready_sandbox().is_none() {
            return Step::Become(PodState::SandboxStarting);
        }
        if let Some(op) = self.plan_stop_of_one() {
            return self.after_trouble(now, || Step::Do(op));
        }
        // Once an ordinary container has run, the initialisation is over, also for an agent that did not see it.
        let begun = self.spec.containers.iter().any(|c| self.latest(&c.name).is_some());
        let Some(container) = self.spec.init_containers.get(index).filter(|_| !begun) else {
            return Step::Become(PodState::Running);
        };
        if index > 0 && self.has_lost_all() {
            return Step::Become(PodState::Initializing { index: 0 });
        }
        let wait = match self.plan_sidecars(config, &self.spec.init_containers[..index], now) {
            Ok(wait) => wait,
            Err(op) => return Step::Do(op),
        };
        match self.plan_container(config, container, now) {
            Plan::Ended { ok: true } => Step::Become(PodState::Initializing { index: index + 1 }),
            Plan::Ended { ok: false } => Step::Become(self.terminating(Why::Ended { phase: Phase::Failed }, now)),
            Plan::Do(op) => Step::Do(op),
            Plan::Wait(until) => {
                self.plan_tidying().unwrap_or_else(|| Step::Wait(wait.map_or(until, |wait| wait.min(until))))
            }
            // One that runs is started: those after it need not wait for its end.
            Plan::Nothing if restart::is_sidecar(&self.spec, container) && self.has_started(container) => {
                Step::Become(PodState::Initializing { index: index + 1 })
            }
            Plan::Nothing => self.plan_tidying().unwrap_or_else(|| wait.map_or(Step::Idle, Step::Wait)),
        }
    }

    /// The runtime knows of no run of any container, so the init containers are to run again (computeInitContainerActions,
    /// pkg/kubelet/kuberuntime), if anything is to run after them.
    fn has_lost_all(&self) -> bool {
        self.spec.all_containers().all(|c| self.latest(&c.name).is_none())
            && !self.spec.containers.iter().all(|c| self.is_over(c))
    }

    /// Keeps the sidecars among these running. `Err`: what is to be done for that; else when something may be.
    #[expect(clippy::result_large_err, reason = "lives for one call, on the stack")]
    fn plan_sidecars(&self, config: &NodeConfig, of: &[ContainerSpec], now: Now) -> Result<Option<Micros>, PodOp> {
        let mut wait: Option<Micros> = None;
        for container in of.iter().filter(|c| restart::is_sidecar(&self.spec, c)) {
            match self.plan_container(config, container, now) {
                Plan::Do(op) => return Err(op),
                Plan::Wait(until) => wait = Some(wait.map_or(until, |wait| wait.min(until))),
                Plan::Nothing | Plan::Ended { .. } => {}
            }
        }
        Ok(wait)
    }

    /// Whether the latest run of a container runs, and its startup probe, if it has one, has said yes.
    fn has_started(&self, container: &ContainerSpec) -> bool {
        let running = |fact: &&ContainerFact| matches!(fact.state, ContainerFactState::Running { .. });
        let run = self.latest(&container.name).filter(running);
        let track = self.tracks.get(&container.name);
        run.zip(track).is_some_and(|(run, track)| track.probes.status(container, &run.id).0)
    }

    fn plan_running(&self, config: &NodeConfig, now: Now) -> Step {
        if self.ready_sandbox().is_none() || self.sandboxes.len() > 1 {
            return match self.ended_without_sandbox() {
                Some(phase) => Step::Become(self.terminating(Why::Ended { phase }, now)),
                None => Step::Become(PodState::SandboxStarting),
            };
        }
        if let Some(op) = self.plan_stop_of_one() {
            return self.after_trouble(now, || Step::Do(op));
        }
        if !self.spec.init_containers.is_empty() && self.has_lost_all() {
            return Step::Become(PodState::SandboxStarting);
        }
        let (mut all_ended, mut all_ok) = (true, true);
        let all_over = self.spec.containers.iter().all(|c| self.is_over(c));
        // Sidecars do not outlive the others.
        let mut wait = match self.plan_sidecars(config, if all_over { &[] } else { &self.spec.init_containers }, now) {
            Ok(wait) => wait,
            Err(op) => return Step::Do(op),
        };
        for container in &self.spec.containers {
            match self.plan_container(config, container, now) {
                Plan::Do(op) => return Step::Do(op),
                Plan::Wait(until) => {
                    wait = Some(wait.map_or(until, |w| w.min(until)));
                    all_ended = false;
                }
                Plan::Nothing => all_ended = false,
                Plan::Ended { ok } => all_ok &= ok,
            }
        }
        if all_ended {
            let phase = if all_ok { Phase::Succeeded } else { Phase::Failed };
            return Step::Become(self.terminating(Why::Ended { phase }, now));
        }
        if let Some(op) = self.plan_resize() {
            return self.after_trouble(now, || Step::Do(op));
        }
        self.plan_tidying().unwrap_or_else(|| wait.map_or(Step::Idle, Step::Wait))
    }

    /// The kubelet keeps one dead run of each container, for its logs.
    fn plan_tidying(&self) -> Option<Step> {
        let old: Vec<String> = self
            .containers
            .iter()
            .filter(|c| matches!(c.state, ContainerFactState::Exited(_)))
            .filter(|c| self.latest(&c.name).is_some_and(|l| c.attempt + 1 < l.attempt))
            .map(|c| c.id.clone())
            .collect();
        (!old.is_empty()).then_some(Step::Do(PodOp::RemoveContainers { ids: old }))
    }

    /// It ended, and is not run again.
    fn is_over(&self, container: &ContainerSpec) -> bool {
        let Some(fact) = self.latest(&container.name) else { return self.ended_unseen(container).is_some() };
        fact.exit_code().is_some_and(|code| !self.runs_again(fact, container, code))
    }

    /// Whether a container that ended with this code is run again.
    pub(crate) fn runs_again(&self, fact: &ContainerFact, container: &ContainerSpec, code: i32) -> bool {
        let by_probe = self.tracks.get(&fact.name).is_some_and(|track| track.stopped_by_probe == fact.id);
        let never = restart::policy(&self.spec, container) == RestartPolicy::Never;
        restart::runs_again(&self.spec, container, code) || by_probe && !never
    }

    fn plan_container(&self, config: &NodeConfig, spec: &ContainerSpec, now: Now) -> Plan {
        let Some(track) = self.tracks.get(&spec.name) else { return Plan::Nothing };
        let (attempt, not_before) = match self.latest(&spec.name) {
            None => match self.ended_unseen(spec) {
                Some(exit) => return Plan::Ended { ok: exit.code == 0 },
                None => (track.next_attempt, Micros::ZERO),
            },
            Some(fact) => match &fact.state {
                ContainerFactState::Running { .. } => {
                    return self.plan_post_start(fact).map_or(Plan::Nothing, Plan::Do);
                }
                ContainerFactState::Created | ContainerFactState::Unknown => (fact.attempt, Micros::ZERO),
                ContainerFactState::Exited(exit) => {
                    if !self.runs_again(fact, spec, exit.code) {
                        return Plan::Ended { ok: exit.code == 0 };
                    }
                    (fact.attempt + 1, track.crash.ready_at(track.exit_seen, config.max_backoff))
                }
            },
        };
        let not_before = not_before.max(track.retry_at);
        if now.mono < not_before {
            return Plan::Wait(not_before);
        }
        if !track.image_ready {
            return Plan::Do(PodOp::EnsureImage { image: spec.image.clone(), pull: spec.pull });
        }
        let Some(sandbox) = self.ready_sandbox() else { return Plan::Nothing };
        Plan::Do(PodOp::StartContainer {
            spec: Arc::clone(&self.spec),
            container: spec.name.clone(),
            attempt,
            sandbox_id: sandbox.id.clone(),
            pod_ip: sandbox.ip.clone(),
            cgroup: self.cgroup(config),
            linux: self.linux_resources(config, spec),
        })
    }

    /// Its changed resources may not be applied, for now or at all.
    pub(crate) fn resize_waits(&self) -> bool {
        use allocate::ResizePlan::{Deferred, Infeasible};
        matches!(self.resize_plan, Some(Deferred { .. } | Infeasible { .. }))
    }

    /// What a container is started with: as long as a resize is not done, what it had before. Of several changes that fit together
    /// one alone may not.
    fn linux_resources(&self, config: &NodeConfig, spec: &ContainerSpec) -> crate::event::LinuxResources {
        let old = self.resize_plan.as_ref().and_then(|_| self.actuated());
        let pod = old.as_ref().unwrap_or(&self.spec);
        allocate::linux_resources(config, pod, pod.container(&spec.name).unwrap_or(spec))
    }

    /// What it holds of the node: what it was given, and what it is about to be given.
    #[must_use]
    pub fn allocated(&self) -> Cow<'_, PodSpec> {
        let Some(mut held) = self.actuated() else { return Cow::Borrowed(&self.spec) };
        if matches!(self.resize_plan, Some(allocate::ResizePlan::Apply { .. })) {
            for container in held.containers.iter_mut().chain(&mut held.init_containers) {
                let Some(new) = self.spec.container(&container.name).map(|c| c.resources) else { continue };
                let r = &mut container.resources;
                r.cpu_request = r.cpu_request.or(r.cpu_limit).max(new.cpu_request.or(new.cpu_limit));
                r.memory_request = r.memory_request.or(r.memory_limit).max(new.memory_request.or(new.memory_limit));
            }
        }
        Cow::Owned(held)
    }

    /// The spec with the resources that its containers were really given; `None` where that is what is wished for.
    #[must_use]
    pub fn actuated(&self) -> Option<PodSpec> {
        let differs = |c: &ContainerSpec| {
            self.tracks.get(&c.name).and_then(|t| t.actuated).is_some_and(|given| given != c.resources)
        };
        if !self.spec.all_containers().any(differs) {
            return None;
        }
        let mut old = PodSpec::clone(&self.spec);
        for container in old.containers.iter_mut().chain(&mut old.init_containers) {
            if let Some(given) = self.tracks.get(&container.name).and_then(|t| t.actuated) {
                container.resources = given;
            }
        }
        (old != *self.spec).then_some(old)
    }

    /// What its running containers hold, for [`allocate::resize`].
    #[must_use]
    pub fn in_use(&self) -> allocate::InUse {
        let running =
            |name: &str| self.latest(name).is_some_and(|f| matches!(f.state, ContainerFactState::Running { .. }));
        let containers = self.tracks.iter().filter(|(name, _)| running(name));
        allocate::InUse {
            pod: self.meter.reading.and_then(|r| r.memory),
            containers: containers.map(|(name, t)| (name.clone(), t.reading.and_then(|r| r.memory))).collect(),
        }
    }

    fn plan_resize(&self) -> Option<PodOp> {
        let Some(allocate::ResizePlan::Apply { pod_first, pod, containers }) = &self.resize_plan else { return None };
        // Burst above the new quota goes first (the next sample takes it back): the kernel refuses a quota below it.
        let too_much = |name: &str, quota: Option<Micros>| {
            let given = self.tracks.get(name).map_or(Micros::ZERO, |t| t.burst_now);
            quota.is_some_and(|q| given > q)
        };
        if containers.iter().any(|(name, linux)| too_much(name, linux.knobs.cpu_quota)) {
            return None;
        }
        let running = containers
            .iter()
            .filter_map(|(name, linux)| {
                let fact = self.latest(name)?;
                let running = matches!(fact.state, ContainerFactState::Running { .. });
                running.then(|| (fact.id.clone(), name.clone(), *linux))
            })
            .collect();
        Some(PodOp::Resize {
            spec: Arc::clone(&self.spec),
            pod: pod.clone(),
            pod_first: *pod_first,
            containers: running,
        })
    }

    /// The end of this pod, from what is known of its containers.
    #[must_use]
    pub(crate) fn terminal(&self, end: &End<'_>) -> Terminal {
        let exits = self
            .tracks
            .iter()
            .filter_map(|(name, t)| t.last_exit.clone().map(|exit| (name.clone(), t.restarts(), exit)))
            .collect();
        Terminal {
            uid: self.spec.uid.clone(),
            phase: end.phase,
            reason: end.reason.to_owned(),
            message: end.message.to_owned(),
            disruption: end.disruption.map(str::to_owned),
            exits,
        }
    }

    /// The last end of a container that the runtime has, and the run's id.
    #[must_use]
    pub fn last_end(&self, name: &str) -> Option<(&str, &Exit)> {
        self.containers
            .iter()
            .filter(|c| c.name == name)
            .filter_map(|c| match &c.state {
                ContainerFactState::Exited(exit) => Some((c, exit)),
                _ => None,
            })
            .max_by_key(|(c, _)| c.attempt)
            .map(|(c, exit)| (c.id.as_str(), exit))
    }
}

/// The one next thing to do for a container.
#[expect(clippy::large_enum_variant, reason = "lives for one call, on the stack")]
enum Plan {
    Do(PodOp),
    Wait(Micros),
    Nothing,
    Ended { ok: bool },
}
