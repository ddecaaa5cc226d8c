//! What happens to a node, from a seed.
//!
//! A scenario is a node, a list of [`Disturbance`]s in order of time, the rates of faults, and a time after the last disturbance in
//! which everything must come to rest.

mod more;

use std::sync::Arc;

use beelet_core::event::{Rejected, ResourceList};
use beelet_core::evict::{Signal, Soft, Threshold};
use beelet_core::node::NodeConfig;
use beelet_core::restart::ContainerRestart;
use beelet_core::spec::{CRITICAL_PRIORITY, ContainerSpec, Handler, PodSpec, Probe, RestartPolicy};
use beelet_core::units::{Bytes, Micros, MilliCpu};

use crate::rng::Rng;
use crate::workload::Curve;

/// Something that is done to the node.
#[derive(Clone, Debug)]
pub enum Disturbance {
    /// The folder of manifests has these pods from now on.
    Want(Vec<Arc<PodSpec>>, Vec<Rejected>),
    /// The agent dies, and is started again after this time.
    Crash(Micros),
    /// The wall clock jumps by so many microseconds.
    Jump(i64),
    /// The runtime does not answer for this time.
    Outage(Micros),
    /// Some sandbox loses its network.
    LoseSandbox,
    /// The runtime loses some sandbox with all that is in it.
    VanishSandbox,
    /// The runtime loses some container that is no init container, whether it runs or has ended.
    VanishContainer,
    /// Some container is killed by somebody.
    KillContainer,
    /// Somebody else starts a pod by the same runtime.
    Foreign,
    /// The missing image is put there, or taken away.
    Image(bool),
}

/// Faults, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// An operation fails.
    pub operation: u64,
    /// An operation takes ten times as long.
    pub slow: u64,
    /// A kernel event is lost.
    pub kernel: u64,
    /// A listing fails.
    pub listing: u64,
    /// A sample comes too late to be believed.
    pub stale: u64,
    /// A reading misses from a sample.
    pub missing: u64,
    /// The agent dies right after an operation was begun.
    pub crash: u64,
    /// A reading is torn, when cache was dropped a moment ago.
    pub torn: u64,
    /// A container that runs answers a probe with no.
    pub probe: u64,
}

/// A node and what happens to it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// The node's settings.
    pub node: NodeConfig,
    /// What everything but pods holds.
    pub system: Bytes,
    /// In order of time since the start.
    pub script: Vec<(Micros, Disturbance)>,
    /// Until the end of the script.
    pub faults: Faults,
    /// The distance of listings.
    pub listings: Micros,
    /// The script and the faults end here.
    pub disturbed: Micros,
    /// From there on all must come to rest within this time.
    pub settle: Micros,
}

/// The image that may be missing.
pub const MISSING: &str = "example.org/missing:1";

impl Scenario {
    /// A quiet node: no faults and no script.
    #[must_use]
    pub fn quiet(seed: u64) -> Self {
        let node = NodeConfig {
            kube_reserved: ResourceList { cpu: MilliCpu(100), memory: Bytes::mib(1_024) },
            ..NodeConfig::default()
        };
        Self {
            seed,
            node,
            system: Bytes::mib(300),
            script: Vec::new(),
            faults: Faults::default(),
            listings: Micros::secs(1),
            disturbed: Micros::secs(60),
            settle: Micros::secs(30),
        }
    }

    /// The scenario of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let mut scenario = Self::quiet(seed);
        let node = &mut scenario.node;
        node.eviction_hard = vec![if rng.chance(200) {
            Threshold::Share(beelet_core::units::Ppm(50_000))
        } else {
            Threshold::Quantity(Bytes::mib(100))
        }];
        node.minimum_reclaim = Bytes::mib(if rng.chance(400) { rng.range(20, 300) } else { 0 });
        node.pressure_transition = Micros::secs(if rng.chance(500) { 30 } else { 300 });
        node.max_backoff = Micros::secs(if rng.chance(500) { 20 } else { 300 });
        node.max_pods = if rng.chance(100) { 3 } else { 110 };
        scenario.listings = Micros::secs(if rng.chance(500) { 1 } else { 10 });
        scenario.disturbed = Micros::secs(rng.range(20, 150));
        scenario.settle = Micros::secs(200);
        if rng.chance(700) {
            let mut rate = |most| if rng.chance(500) { rng.range(0, most) } else { 0 };
            scenario.faults = Faults {
                operation: rate(200),
                slow: rate(200),
                kernel: rate(500),
                listing: rate(200),
                stale: rate(100),
                missing: rate(100),
                crash: rate(100),
                torn: 300,
                probe: 0,
            };
        }
        scenario.script = script(&mut rng, scenario.disturbed);
        soft(&mut Rng::new(seed, 4), &mut scenario.node);
        let mut rng = Rng::new(seed, 5);
        if rng.chance(600) {
            scenario.faults.probe = rng.range(0, 400);
            ask(seed, &mut scenario.script);
        }
        let mut rng = Rng::new(seed, 7);
        if rng.chance(500) {
            more::add(&mut rng, &mut scenario);
        }
        scenario
    }

    /// A node on which pods come and go for so long; its agent lives all the time.
    #[must_use]
    pub fn soak(seed: u64, time: Micros) -> Self {
        let mut rng = Rng::new(seed, 3);
        let mut scenario = Self::quiet(seed);
        scenario.node.max_backoff = Micros::secs(20);
        scenario.faults = Faults { operation: 10, slow: 10, kernel: 10, listing: 5, torn: 50, ..Faults::default() };
        scenario.disturbed = time;
        let (mut names, mut wanted, mut gone) = (Names::default(), Vec::new(), Vec::new());
        let mut at = Micros::millis(100);
        while at < time {
            let what = match rng.range(0, 30) {
                0 => Disturbance::LoseSandbox,
                1..=3 => Disturbance::KillContainer,
                4 => Disturbance::Jump(i64::try_from(rng.range(0, 20_000_000)).unwrap_or(0) - 10_000_000),
                _ => change(&mut rng, &mut names, &mut wanted, &mut gone),
            };
            // What was wanted long ago is forgotten.
            gone.truncate(20);
            scenario.script.push((at, what));
            at += Micros::millis(rng.range(5_000, 25_000));
        }
        scenario.faults.probe = 50;
        ask(seed, &mut scenario.script);
        scenario
    }
}

/// Soft thresholds, of a stream of numbers of their own: without them a seed is what it was before they came.
fn soft(rng: &mut Rng, node: &mut NodeConfig) {
    for (signal, low, high) in [(Signal::Memory, 800, 1_800), (Signal::AllocatableMemory, 200, 1_500)] {
        if rng.chance(500) {
            let threshold = Threshold::Quantity(Bytes::mib(rng.range(low, high)));
            node.eviction_soft.insert(signal, Soft { threshold, grace: Micros::secs(rng.range(0, 30)) });
        }
    }
    node.max_pod_grace = Micros::secs([0, 5, 60][rng.index(3)]);
}

/// Gives probes to some containers: to the same whenever their pod is wanted, and without a number of the other streams.
fn ask(seed: u64, script: &mut [(Micros, Disturbance)]) {
    for (_, what) in script {
        let Disturbance::Want(pods, _) = what else { continue };
        for pod in pods {
            let number = pod.uid.as_str().bytes().fold(seed, |n, b| n.wrapping_mul(31).wrapping_add(u64::from(b)));
            let (mut rng, pod) = (Rng::new(number, 5), Arc::make_mut(pod));
            for container in &mut pod.containers {
                let probes = &mut container.probes;
                for place in [&mut probes.startup, &mut probes.readiness, &mut probes.liveness] {
                    *place = rng.chance(350).then(|| Box::new(probe(&mut rng)));
                }
            }
        }
    }
}

fn probe(rng: &mut Rng) -> Probe {
    Probe {
        handler: Handler::Tcp { host: String::new(), port: 80 },
        initial_delay: Micros::secs([0, 0, 2, 10][rng.index(4)]),
        timeout: Micros::secs(rng.range(1, 3)),
        period: Micros::secs([1, 2, 5, 10][rng.index(4)]),
        success_threshold: 1,
        failure_threshold: u32::try_from(rng.range(1, 3)).unwrap_or(1),
        grace: rng.chance(300).then(|| Micros::secs(rng.range(1, 15))),
    }
}

fn script(rng: &mut Rng, end: Micros) -> Vec<(Micros, Disturbance)> {
    let mut names = Names::default();
    let mut wanted: Vec<Arc<PodSpec>> = (0..rng.range(1, 6)).map(|_| Arc::new(pod(rng, &mut names))).collect();
    let mut gone: Vec<Arc<PodSpec>> = Vec::new();
    let mut script = vec![(Micros::millis(rng.range(0, 500)), Disturbance::Want(wanted.clone(), Vec::new()))];
    if rng.chance(200) {
        script.push((Micros::ZERO, Disturbance::Image(false)));
    }
    for _ in 0..rng.range(0, 12) {
        let at = Micros(rng.range(1_000_000, end.get()));
        // A number for now: what it becomes depends on its place in time.
        script.push((at, Disturbance::Jump(0)));
    }
    script.sort_by_key(|(at, _)| *at);
    for (_, what) in script.iter_mut().filter(|(_, d)| matches!(d, Disturbance::Jump(_))) {
        *what = match rng.range(0, 19) {
            0..=2 => Disturbance::Crash(Micros::millis(rng.range(10, 5_000))),
            3 => Disturbance::Jump(i64::try_from(rng.range(0, 7_200_000_000)).unwrap_or(0) - 3_600_000_000),
            4 | 5 => Disturbance::Outage(Micros::millis(rng.range(100, 15_000))),
            6 => Disturbance::LoseSandbox,
            7 | 8 => Disturbance::KillContainer,
            9 => Disturbance::Foreign,
            10 => Disturbance::Image(rng.chance(500)),
            _ => change(rng, &mut names, &mut wanted, &mut gone),
        };
    }
    script
}

fn change(
    rng: &mut Rng,
    names: &mut Names,
    wanted: &mut Vec<Arc<PodSpec>>,
    gone: &mut Vec<Arc<PodSpec>>,
) -> Disturbance {
    let mut rejected = Vec::new();
    let i = rng.index(wanted.len());
    match rng.range(0, 9) {
        0 | 1 if wanted.len() < 9 => wanted.push(Arc::new(pod(rng, names))),
        2 | 3 if !wanted.is_empty() => gone.push(wanted.remove(i)),
        // Another content under the same name.
        4 if !wanted.is_empty() => {
            let mut next = pod(rng, names);
            next.name.clone_from(&wanted[i].name);
            gone.push(std::mem::replace(&mut wanted[i], Arc::new(next)));
        }
        5 | 6 if !wanted.is_empty() => {
            let mut next = PodSpec::clone(&wanted[i]);
            for container in &mut next.containers {
                let r = &mut container.resources;
                let (num, den) = [(1, 2), (3, 4), (3, 2), (2, 1)][rng.index(4)];
                r.memory_request = r.memory_request.map(|b| b.scale(num, den));
                r.memory_limit = r.memory_limit.map(|b| b.scale(num, den));
                r.cpu_request = r.cpu_request.map(|c| c.scale(num, den).max(MilliCpu(1)));
                r.cpu_limit = r.cpu_limit.map(|c| c.scale(num, den).max(MilliCpu(1)));
            }
            wanted[i] = Arc::new(next);
        }
        // The same manifest comes back.
        7 if !gone.is_empty() => {
            let back = gone.remove(rng.index(gone.len()));
            if wanted.iter().all(|p| p.name != back.name) {
                wanted.push(back);
            }
        }
        8 => {
            rejected.push(Rejected { origin: "bad.yaml".to_owned(), pod: None, error: "spec.x is unknown".to_owned() });
        }
        _ if rng.chance(200) => gone.append(wanted),
        _ => {}
    }
    Disturbance::Want(wanted.clone(), rejected)
}

/// Numbers pods.
#[derive(Debug, Default)]
struct Names(u32);

fn pod(rng: &mut Rng, names: &mut Names) -> PodSpec {
    names.0 += 1;
    let mut pod = bare_pod(&format!("p{}", names.0));
    pod.priority = [0, 0, 0, 100, 1_000, CRITICAL_PRIORITY][rng.index(6)];
    pod.restart_policy =
        [RestartPolicy::Always, RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never][rng.index(4)];
    pod.termination_grace = Micros::secs([0, 1, 5, 30][rng.index(4)]);
    let qos = rng.range(0, 2);
    for i in 0..=u64::from(rng.chance(300)) {
        let mut c = container(rng, &format!("c{i}"), qos);
        // What must not be killed does not grow: else no eviction could help.
        if pod.is_critical() && Curve::of(&c).grows() {
            c.args = Curve::Idle { holds: Bytes::mib(20) }.arguments();
        }
        pod.containers.push(c);
    }
    if rng.chance(250) {
        for i in 0..rng.range(1, 2) {
            let mut c = container(rng, &format!("init{i}"), qos);
            let takes = Micros::millis(rng.range(10, 5_000));
            c.args =
                if rng.chance(150) { Curve::Crash { after: takes, code: 1 } } else { Curve::Job { takes } }.arguments();
            pod.init_containers.push(c);
        }
        // Some are sidecars: by their number, so that what else is drawn stays as it is.
        if names.0.is_multiple_of(3)
            && let Some(first) = pod.init_containers.first_mut()
        {
            first.args = Curve::Idle { holds: Bytes::mib(8) }.arguments();
            first.restart = Some(ContainerRestart { policy: RestartPolicy::Always, rules: Vec::new() });
        }
    }
    pod
}

/// A pod with a name and nothing else.
#[must_use]
pub fn bare_pod(name: &str) -> PodSpec {
    let mut pod = PodSpec::unknown(format!("uid-{name}").as_str().into());
    pod.name = name.to_owned();
    pod.origin = format!("{name}.yaml");
    pod
}

/// A container that does that.
#[must_use]
pub fn bare_container(name: &str, curve: &Curve) -> ContainerSpec {
    ContainerSpec { image: "example.org/app:1".to_owned(), args: curve.arguments(), ..ContainerSpec::unknown(name) }
}

fn container(rng: &mut Rng, name: &str, qos: u64) -> ContainerSpec {
    let mut c = bare_container(name, &curve(rng));
    if rng.chance(80) {
        c.image = MISSING.to_owned();
    }
    let memory = Bytes::mib(rng.range(16, 700));
    let cpu = MilliCpu(rng.range(10, 600));
    match qos {
        0 => {}
        1 => {
            c.resources.memory_request = rng.chance(800).then_some(memory);
            c.resources.cpu_request = Some(cpu);
            c.resources.memory_limit = rng.chance(400).then(|| memory.scale(rng.range(10, 30), 10));
            c.resources.cpu_limit = rng.chance(400).then(|| cpu.scale(rng.range(10, 30), 10));
        }
        _ => {
            c.resources.memory_request = Some(memory);
            c.resources.memory_limit = Some(memory);
            c.resources.cpu_request = Some(cpu);
            c.resources.cpu_limit = Some(cpu);
        }
    }
    c
}

fn curve(rng: &mut Rng) -> Curve {
    let holds = Bytes::mib(rng.range(1, 300));
    match rng.range(0, 14) {
        0..=3 => Curve::Idle { holds },
        4 => Curve::Leak { after: Micros::secs(rng.range(0, 20)), rate: Bytes::mib(rng.range(1, 400)) },
        5 => Curve::Step { at: Micros::secs(rng.range(1, 60)), to: Bytes::mib(rng.range(100, 2_500)) },
        6 => Curve::ForkBomb {
            each: Bytes::mib(rng.range(1, 8)),
            doubling: Micros::secs(rng.range(1, 5)),
            most: rng.range(10, 1_000),
        },
        7 => Curve::Tmpfs { rate: Bytes::mib(rng.range(10, 400)), most: Bytes::mib(rng.range(100, 3_000)) },
        8 => Curve::Scan { rate: Bytes::mib(rng.range(10, 1_000)), drop_every: Micros::secs(rng.range(2, 30)) },
        9 => Curve::Jvm { plateau: Bytes::mib(rng.range(100, 1_500)), half: Micros::secs(rng.range(2, 20)) },
        10 => Curve::Saw {
            low: holds,
            high: holds + Bytes::mib(rng.range(50, 500)),
            period: Micros::secs(rng.range(1, 10)),
        },
        11 => Curve::Crash { after: Micros::millis(rng.range(1, 30_000)), code: [1, 2, 139, 137][rng.index(4)] },
        12 => Curve::Job { takes: Micros::millis(rng.range(1, 60_000)) },
        _ => Curve::Burn { cpu: MilliCpu(rng.range(100, 2_000)) },
    }
}
