//! Known histories of a node's memory, each with the truth.
//!
//! Problem: whether a rule for evictions is good is told by cases whose end is known; a rule that is tried on leaks alone looks best
//! when it kills whatever moves. Approach: each [`Scene`] has a node with three neighbours and one or more pods that do something,
//! and says what comes of it if nobody acts: the kernel's OOM killer at a wall that pods share (when, and who is to blame), nothing,
//! or a node that stays above the wall but below the operator's threshold. A test runs each scene without anybody and holds it
//! against that.
//!
//! The node has 4 GiB, of which 300 MiB are not pods'; nothing is reserved, so the wall is the node's memory down to its lowest
//! watermark, which every rule can see. In two scenes the wall is the limit of `kubepods`. The threshold is the kubelet's
//! `memory.available<100Mi`. *Room* is what is left before the wall at the start. The neighbours: `database`, Guaranteed, fills the
//! node up to the room; `server`, Burstable, below its request; `quiet`, BestEffort and innocent. All have files that are hot, 290
//! MiB together, which reclaim takes before the OOM killer comes.
//!
//! A pod that hits its own limit is killed by the kernel within its own cgroup. No eviction prevents that and nobody else is in
//! danger, so the scene counts as one in which nobody may be evicted. Pods are not started again.

use std::sync::Arc;

use beelet_core::allocate::{linux_resources, oom_score_adj};
use beelet_core::event::ResourceList;
use beelet_core::node::NodeConfig;
use beelet_core::spec::{PodSpec, PodUid};
use beelet_core::units::{Bytes, Micros, MilliCpu};

use crate::kernel::Kernel;
use crate::kernel::reclaim::{MIN, Reclaim};
use crate::scenario::{bare_container, bare_pod};
use crate::workload::Curve;

/// Virtual time starts here.
pub const START: Micros = Micros::secs(1_000);
/// What everything but pods holds.
pub(crate) const SYSTEM: Bytes = Bytes::mib(300);
/// What misbehaves begins then, where it can wait.
pub(crate) const BEGIN: Micros = Micros::secs(30);
/// How fast a process takes memory at once: one core faults in and zeroes pages at 1 to 2 GiB/s (as [`beelet_core::forecast`] says).
const AT_ONCE: Bytes = Bytes::mib(1_536);
/// Hot files of a pod that does something.
pub(crate) const CODE: Bytes = Bytes::mib(16);

/// What comes if nobody acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// The OOM killer, at a wall that pods share.
    Oom {
        /// When, since the start, by arithmetic: room by rate. Stalls delay it by up to a fifth.
        at: Micros,
    },
    /// Nothing: nobody may be evicted.
    Quiet,
    /// No OOM, but what is left stays below the threshold for good: an eviction is the operator's wish, and is not judged.
    Tight,
}

/// A pod of a scene.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it is.
    pub spec: Arc<PodSpec>,
    /// It grows: the right victim.
    pub culprit: bool,
    /// It is being deleted, since before the start.
    pub leaving: bool,
    pub(crate) hot: Bytes,
}

/// A history of a node's memory.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What happens.
    pub name: String,
    /// What comes of it.
    pub truth: Truth,
    /// The node.
    pub node: NodeConfig,
    /// Its pods.
    pub pods: Vec<Member>,
    /// It is over after this long.
    pub lasts: Micros,
    pub(crate) limit: Option<Bytes>,
}

impl Scene {
    /// The node at the start.
    #[must_use]
    pub fn kernel(&self) -> Kernel {
        let capacity = &self.node.capacity;
        let mut kernel = Kernel::new(START, capacity.memory, SYSTEM, capacity.cpu);
        kernel.limit = self.limit;
        kernel.reclaim = Some(Reclaim::default());
        for Member { spec, hot, .. } in &self.pods {
            kernel.make_group(&spec.uid, "", None);
            for (i, container) in spec.containers.iter().enumerate() {
                let linux = linux_resources(&self.node, spec, container);
                let limits = (linux.knobs.memory_max, linux.resources.cpu_limit);
                let id = if i == 0 { spec.name.clone() } else { format!("{}-{i}", spec.name) };
                let curve = Curve::of(container);
                kernel.start(&id, &spec.uid, &container.name, curve, limits, linux.oom_score_adj);
                // The files are the first's.
                if i == 0 {
                    kernel.warm(&id, *hot);
                }
            }
        }
        kernel
    }

    /// The pods' specs.
    #[must_use]
    pub fn specs(&self) -> Vec<Arc<PodSpec>> {
        self.pods.iter().map(|p| Arc::clone(&p.spec)).collect()
    }

    /// It is right to evict this one rather than another.
    #[must_use]
    pub fn is_culprit(&self, uid: &PodUid) -> bool {
        self.pods.iter().any(|p| p.culprit && p.spec.uid == *uid)
    }

    /// `oom_score_adj` of its pods.
    #[must_use]
    pub fn adj(&self, pod: &PodSpec) -> i32 {
        pod.containers.first().map_or(0, |c| oom_score_adj(&self.node, pod, c))
    }

    /// Where the wall of the node was there is the limit of `kubepods`, and the node has so much more.
    pub(crate) fn limited(mut self, beyond: Bytes) -> Self {
        self.limit = Some(self.node.capacity.memory - SYSTEM - MIN);
        self.node.capacity.memory += beyond;
        self
    }
}

pub(crate) fn member(name: &str, curve: &Curve, hot: Bytes, request: Option<u64>, limit: Option<u64>) -> Member {
    let mut spec = bare_pod(name);
    let mut container = bare_container("c", curve);
    container.resources.memory_request = request.map(Bytes::mib);
    container.resources.memory_limit = limit.map(Bytes::mib);
    if request.is_some() && request == limit {
        (container.resources.cpu_request, container.resources.cpu_limit) = (Some(MilliCpu(500)), Some(MilliCpu(500)));
    }
    spec.containers = vec![container];
    Member { spec: Arc::new(spec), culprit: true, leaving: false, hot }
}

/// A pod that asks for nothing and has no limit.
fn bare(name: &str, curve: &Curve) -> Member {
    member(name, curve, CODE, None, None)
}

fn scene(name: &str, room: u64, truth: Truth, lasts: u64, pods: Vec<Member>) -> Scene {
    let capacity = ResourceList { cpu: MilliCpu(4_000), memory: Bytes::gib(4) };
    let (server, quiet) = (Bytes::mib(600), Bytes::mib(326));
    let database = capacity.memory - SYSTEM - MIN - server - quiet - Bytes::mib(room);
    let idle = |name: &str, holds, hot, request, limit| Member {
        culprit: false,
        ..member(name, &Curve::Idle { holds }, Bytes::mib(hot), request, limit)
    };
    let mut all = vec![
        idle("database", database, 150, Some(3_000), Some(3_000)),
        idle("server", server, 120, Some(800), None),
        idle("quiet", quiet, 20, None, None),
    ];
    all.extend(pods);
    let node = NodeConfig { capacity, ..NodeConfig::default() };
    Scene { name: name.to_owned(), truth, node, pods: all, lasts: Micros::secs(lasts), limit: None }
}

fn oom(millis: u64) -> Truth {
    Truth::Oom { at: Micros::millis(millis) }
}

/// The rates of linear leaks, MiB/s.
const LEAKS: [u64; 9] = [5, 10, 25, 50, 100, 200, 400, 1_024, 2_048];

/// All scenes.
#[must_use]
pub fn scenes() -> Vec<Scene> {
    let mut scenes: Vec<Scene> = LEAKS.iter().map(|&rate| leak(rate, 1_000)).collect();
    scenes.extend(other_ooms());
    scenes.extend(false_alarms());
    let fill = Curve::Fill { at: BEGIN, rate: Bytes::mib(50), to: Bytes::mib(980) };
    scenes.push(scene(
        "growth that stops 20 MiB before the wall",
        1_000,
        Truth::Tight,
        180,
        vec![bare("filler", &fill)],
    ));
    scenes
}

/// The scene of a linear leak of so many MiB/s into so many MiB.
fn leak(rate: u64, room: u64) -> Scene {
    let curve = Curve::Leak { after: BEGIN, rate: Bytes::mib(rate) };
    // It holds 4 MiB at the start.
    let at = BEGIN + Micros::secs(room - 4).scale(1, rate);
    let lasts = at.get() / 1_000_000 + 60;
    scene(&format!("leak of {rate} MiB/s"), room, Truth::Oom { at }, lasts, vec![bare("leak", &curve)])
}

fn other_ooms() -> Vec<Scene> {
    let step = Curve::Fill { at: BEGIN, rate: AT_ONCE, to: Bytes::mib(600) };
    let bomb = Curve::ForkBomb { each: Bytes::mib(3), doubling: Micros::secs(5), most: 2_000 };
    let tmpfs = |rate| Curve::Tmpfs { rate: Bytes::mib(rate), most: Bytes::gib(4) };
    let stutter = Curve::Stutter { rate: Bytes::mib(50), grows: Micros::secs(3), rests: Micros::secs(5) };
    let small = |i: u64| bare(&format!("small-{i:02}"), &Curve::Leak { after: BEGIN, rate: Bytes::mib(2) });
    let modest = Curve::Leak { after: BEGIN, rate: Bytes::mib(50) };
    vec![
        scene("step of 600 MiB, 40 too many", 560, oom(30_360), 90, vec![bare("step", &step)]),
        scene("fork bomb of 3 MiB processes", 1_000, oom(41_500), 100, vec![bare("bomb", &bomb)]),
        scene("memory volume fills at 100 MiB/s", 1_000, oom(10_000), 70, vec![bare("volume", &tmpfs(100))]),
        scene("memory volume fills at 20 MiB/s", 1_000, oom(49_800), 110, vec![bare("volume", &tmpfs(20))]),
        scene("24 small pods, each 2 MiB/s", 1_100, oom(50_900), 110, (0..24).map(small).collect()),
        scene("leak of 50 MiB/s that pauses", 1_000, oom(49_900), 120, vec![bare("stutter", &stutter)]),
        scene(
            "leak of 50 MiB/s below its request",
            1_000,
            oom(49_900),
            110,
            vec![member("modest", &modest, CODE, Some(1_400), None)],
        ),
        // At the threshold it holds 311 MiB, and `quiet` 326.
        leak(100, 345).named("leak of 100 MiB/s, still smaller than an idle pod"),
        leak(50, 1_000).limited(Bytes::mib(400)).named("leak of 50 MiB/s, wall is kubepods"),
        leak(400, 1_000).limited(Bytes::mib(400)).named("leak of 400 MiB/s, wall is kubepods"),
    ]
}

fn false_alarms() -> Vec<Scene> {
    let step = |to| Curve::Fill { at: BEGIN, rate: AT_ONCE, to: Bytes::mib(to) };
    let saw = Curve::Saw { low: Bytes::mib(200), high: Bytes::mib(855), period: Micros::secs(4) };
    let heap = Curve::Jvm { plateau: Bytes::mib(810), half: Micros::secs(5) };
    let scan = Curve::Scan { rate: Bytes::mib(500), drop_every: Micros::secs(20) };
    let (every, lasts) = (Micros::secs(8), Micros::millis(1_200));
    let build = Curve::Peaks { low: Bytes::mib(100), high: Bytes::mib(700), every, lasts };
    let leak = Curve::Leak { after: BEGIN, rate: Bytes::mib(50) };
    let close = scene("step of 600 MiB that fits, 160 left", 760, Truth::Quiet, 150, vec![bare("step", &step(600))]);
    let scene = |name, pod| scene(name, 1_000, Truth::Quiet, 150, vec![pod]);
    vec![
        close,
        scene("step of 600 MiB that fits, 400 left", bare("step", &step(600))),
        scene("step of 300 MiB that fits, 700 left", bare("step", &step(300))),
        scene("heap of 800 MiB touched at start, as requested", member("heap", &step(800), CODE, Some(900), None)),
        scene("saw-tooth to 95 % of its limit", member("collector", &saw, CODE, Some(400), Some(900))),
        scene("JVM to a plateau of 90 % of its limit", member("jvm", &heap, CODE, Some(400), Some(900))),
        scene("scan of files, 10 GiB and dropped", bare("scan", &scan)),
        scene(
            "hot files of 600 MiB",
            member("search", &Curve::Idle { holds: Bytes::mib(50) }, Bytes::mib(600), Some(100), None),
        ),
        scene("build with peaks of 700 MiB", bare("build", &build)),
        scene("leak of 50 MiB/s in a limit of 500 MiB", member("limited", &leak, CODE, Some(100), Some(500))),
    ]
}

impl Scene {
    fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the OOM killer comes at a wall that pods share, and the least room there was.
    fn untouched(scene: &Scene) -> (Option<Micros>, Bytes, Bytes) {
        let mut kernel = scene.kernel();
        let mut least = kernel.room();
        let own = u64::from(scene.name.contains("in a limit of"));
        let end = START + scene.lasts;
        while kernel.now() < end {
            kernel.advance(end.min(kernel.now() + Micros::millis(10)));
            kernel.take_deaths();
            if kernel.ooms.shared() > 0 {
                return (Some(kernel.now() - START), least, Bytes::ZERO);
            }
            least = least.min(kernel.room());
        }
        assert_eq!(kernel.ooms.own, own, "{}", scene.name);
        (None, least, kernel.room())
    }

    #[test]
    fn the_truth_of_each_scene_is_true() {
        let threshold = Bytes::mib(100);
        let mut wrong = Vec::new();
        for scene in scenes() {
            let (came, least, left) = untouched(&scene);
            // What the kernel keeps below its lowest watermark counts as available to those who read /proc/meminfo.
            let available = |room: Bytes| room + if scene.limit.is_some() { Bytes::ZERO } else { MIN };
            let holds = match scene.truth {
                Truth::Oom { at } => {
                    came.is_some_and(|came| came + Micros::millis(100) >= at && came <= at.scale(6, 5))
                }
                Truth::Quiet => came.is_none() && available(least) > threshold,
                Truth::Tight => came.is_none() && available(left) < threshold,
            };
            println!("{}: {came:?}, least {}, {:?}", scene.name, least.get() >> 20, scene.truth);
            if !holds {
                wrong.push(scene.name);
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
