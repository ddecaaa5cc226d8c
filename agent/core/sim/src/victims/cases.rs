//! The cases themselves, and what their pods are made of.

use std::sync::Arc;

use beelet_core::event::ResourceList;
use beelet_core::node::NodeConfig;
use beelet_core::units::{Bytes, Micros, MilliCpu};

use super::Case;
use crate::corpus::{BEGIN, CODE, Member, SYSTEM, Scene, Truth, member};
use crate::kernel::reclaim::MIN;
use crate::scenario::bare_container;
use crate::workload::Curve;

pub(super) fn idle(mib: u64) -> Curve {
    Curve::Idle { holds: Bytes::mib(mib) }
}

/// MiB/s, from [`BEGIN`] on.
fn leak(rate: u64) -> Curve {
    Curve::Leak { after: BEGIN, rate: Bytes::mib(rate) }
}

fn fill(rate: u64, to: u64) -> Curve {
    Curve::Fill { at: BEGIN, rate: Bytes::mib(rate), to: Bytes::mib(to) }
}

fn volume(rate: u64, most: u64) -> Curve {
    Curve::Tmpfs { rate: Bytes::mib(rate), most: Bytes::mib(most) }
}

fn saw(low: u64, high: u64, seconds: u64) -> Curve {
    Curve::Saw { low: Bytes::mib(low), high: Bytes::mib(high), period: Micros::secs(seconds) }
}

fn scan(rate: u64) -> Curve {
    Curve::Scan { rate: Bytes::mib(rate), drop_every: Micros::secs(20) }
}

/// BestEffort, of priority 0.
pub(super) fn pod(name: &str, curve: &Curve) -> Member {
    member(name, curve, CODE, None, None)
}

impl Case {
    /// The rules begin to look so late.
    fn from(mut self, seconds: u64) -> Self {
        self.from = Micros::secs(seconds);
        self
    }

    /// The wall is the node's memory, down to its lowest watermark.
    fn at_the_node(mut self) -> Self {
        self.scene.node.capacity.memory = self.scene.node.capacity.memory - BEYOND;
        self.scene.limit = None;
        self
    }
}

impl Member {
    fn edit(mut self, edit: impl FnOnce(&mut beelet_core::spec::PodSpec)) -> Self {
        edit(Arc::make_mut(&mut self.spec));
        self
    }

    /// Requests so many MiB.
    fn asks(self, mib: u64) -> Self {
        self.edit(|spec| spec.containers[0].resources.memory_request = Some(Bytes::mib(mib)))
    }

    /// Has a limit of its own of so many MiB.
    fn capped(self, mib: u64) -> Self {
        self.edit(|spec| spec.containers[0].resources.memory_limit = Some(Bytes::mib(mib)))
    }

    fn priority(self, priority: i32) -> Self {
        self.edit(|spec| spec.priority = priority)
    }

    /// Goes on reading so many MiB of files: it suffers when they are taken.
    fn reads(mut self, mib: u64) -> Self {
        self.hot = Bytes::mib(mib);
        self
    }

    /// A second container that does this and requests so many MiB.
    fn with(self, curve: &Curve, request: Option<u64>) -> Self {
        let mut container = bare_container("d", curve);
        container.resources.memory_request = request.map(Bytes::mib);
        self.edit(|spec| spec.containers.push(container))
    }

    /// Is being deleted since before the start.
    fn terminating(mut self) -> Self {
        self.leaving = true;
        self
    }
}

/// What the node has beyond the limit of `kubepods`.
const BEYOND: Bytes = Bytes::mib(400);
/// What a critical pod's priority is at least.
const CRITICAL: i32 = 2_000_000_000;

/// `room` in MiB at the start; `lasts` in seconds.
pub(super) fn case(
    name: &str,
    room: u64,
    lasts: u64,
    pods: Vec<Member>,
    goes: &[&'static str],
    why: &'static str,
) -> Case {
    let capacity = ResourceList { cpu: MilliCpu(4_000), memory: Bytes::gib(4) };
    let start = |c: &Curve| c.anon(Micros::ZERO) + c.shmem(Micros::ZERO);
    let held: Bytes = pods.iter().flat_map(|p| &p.spec.containers).map(|c| start(&Curve::of(c))).sum();
    let database = capacity.memory - SYSTEM - MIN - held - Bytes::mib(room);
    let request = Some((database.get() >> 20) + 20);
    let mut all =
        vec![member("database", &Curve::Idle { holds: database }, Bytes::mib(100), request, request).priority(10_000)];
    all.extend(pods);
    let node = NodeConfig { capacity, ..NodeConfig::default() };
    let truth = if goes.is_empty() { Truth::Quiet } else { Truth::Oom { at: BEGIN } };
    let scene = Scene { name: name.to_owned(), truth, node, pods: all, lasts: Micros::secs(lasts), limit: None };
    Case { scene: scene.limited(BEYOND), goes: goes.to_vec(), why, from: Micros::ZERO }
}

/// All fifty.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = who_grows();
    cases.extend(by_request());
    cases.extend(by_priority());
    cases.extend(never_these());
    cases.extend(volumes_and_files());
    cases.extend(that_come_and_go());
    cases.extend(at_other_times());
    cases
}

fn who_grows() -> Vec<Case> {
    let old = pod("old", &idle(600)).with(&Curve::Leak { after: Micros::ZERO, rate: Bytes::mib(2) }, None);
    let small = |i: u64| pod(&format!("small-{i}"), &leak(2));
    let mut many: Vec<Member> = (0..8).map(small).collect();
    many.push(pod("fast", &leak(10)));
    let later = Curve::Leak { after: Micros::secs(90), rate: Bytes::mib(20) };
    let quiet = |i: u64| pod(&format!("quiet-{i}"), &idle(200));
    vec![
        case(
            "leak beside three quiet ones",
            800,
            150,
            vec![quiet(1), quiet(2), quiet(3), pod("leak", &leak(10))],
            &["leak"],
            "it grows, and holds most above its request",
        ),
        case(
            "big quiet one beside a small fast leak",
            300,
            60,
            vec![pod("big", &idle(1_200)), pod("leak", &leak(50))],
            &["leak"],
            "the big one was there all the time: what eats the room is the leak",
        ),
        case(
            "sufferer above its request beside a leak",
            600,
            90,
            vec![pod("sufferer", &idle(300)).asks(100).reads(400), pod("leak", &leak(20))],
            &["leak"],
            "stalls and refaults are what the leak does to it",
        ),
        case(
            "two leaks of different speed",
            800,
            210,
            vec![pod("slow", &leak(5)), pod("fast", &leak(20))],
            &["fast", "slow"],
            "the fast one is most of the growth; when it is gone the slow one is all of it",
        ),
        case(
            "old, large, slow leak beside a new fast one",
            500,
            80,
            vec![old, pod("new", &leak(40))],
            &["new"],
            "of each 42 MiB that go the new one takes 40",
        ),
        case(
            "two leaks of the same speed, one with a request",
            800,
            130,
            vec![pod("asks", &leak(10)).asks(300), pod("bare", &leak(10))],
            &["bare", "asks"],
            "they grow alike, so the one further above its request goes",
        ),
        case("fast leak among eight slow ones", 800, 70, many, &["fast"], "no other takes as much, now or so far"),
        case(
            "two leaks, one after the other",
            500,
            140,
            vec![pod("quiet", &idle(600)), pod("first", &leak(20)), pod("second", &later)],
            &["first", "second"],
            "each when it is the one that grows; the quiet one is larger both times",
        ),
        case(
            "fast leak at the node's own wall",
            600,
            60,
            vec![pod("quiet", &idle(900)), pod("leak", &leak(200))],
            &["leak"],
            "the larger one does not grow",
        )
        .at_the_node(),
        case(
            "fork bomb beside a quiet one of its size",
            700,
            100,
            vec![
                pod("quiet", &idle(600)),
                pod("bomb", &Curve::ForkBomb { each: Bytes::mib(1), doubling: Micros::secs(8), most: 2_000 }),
            ],
            &["bomb"],
            "its processes are what grows",
        ),
        case(
            "many idle threads beside a leak",
            500,
            110,
            vec![
                pod("threads", &Curve::ForkBomb { each: Bytes(16 << 10), doubling: Micros::secs(1), most: 4_096 }),
                pod("leak", &leak(10)),
            ],
            &["leak"],
            "threads are not memory",
        ),
    ]
}

fn by_request() -> Vec<Case> {
    let reader = pod("search", &idle(50)).asks(100).reads(400);
    vec![
        case(
            "leak within its request, a quiet one above",
            600,
            100,
            vec![pod("quiet", &idle(300)), pod("leak", &leak(20)).asks(1_500)],
            &["quiet", "leak"],
            "a request is a promise: who was promised nothing gives way first",
        ),
        case(
            "leak past its request, a quiet one within",
            700,
            90,
            vec![pod("server", &idle(500)).asks(600), pod("leak", &leak(20)).asks(200)],
            &["leak"],
            "the server keeps to what it asked for",
        ),
        case(
            "all within their requests, one leaks",
            700,
            90,
            vec![pod("server", &idle(500)).asks(600), pod("leak", &leak(20)).asks(2_500)],
            &["leak"],
            "nobody breaks a promise, priorities are equal, one grows",
        ),
        case(
            "all within their requests, the leak of higher priority",
            700,
            110,
            vec![pod("server", &idle(500)).asks(600), pod("leak", &leak(20)).asks(2_500).priority(100)],
            &["server", "leak"],
            "nobody breaks a promise, so priority decides before growth",
        ),
        case(
            "fast leak within its request, a slow one above",
            800,
            80,
            vec![pod("slow", &leak(5)), pod("fast", &leak(30)).asks(2_000)],
            &["slow", "fast"],
            "only the slow one uses more than it asked for",
        ),
        case(
            "Burstable leak beside a BestEffort one that uses more above",
            700,
            110,
            vec![pod("besteffort", &idle(500)), pod("leak", &leak(20)).asks(400)],
            &["leak"],
            "both are above; the class is no reason, growth is",
        ),
        case(
            "two quiet ones above, leak within its request",
            500,
            120,
            vec![pod("little", &idle(100)), pod("much", &idle(700)).asks(200), pod("leak", &leak(20)).asks(2_500)],
            &["much", "little", "leak"],
            "of the two that do not grow the one further above its request, then the other, then who kept the promise",
        ),
        case(
            "files above the request beside a leak within it",
            500,
            110,
            vec![reader, pod("borrower", &idle(150)), pod("leak", &leak(10)).asks(1_000)],
            &["borrower", "leak"],
            "files can be taken back, so the search is within its request",
        ),
        case(
            "leak in the second container of a pod",
            500,
            110,
            vec![pod("other", &idle(600)), pod("pair", &idle(300)).asks(250).with(&leak(10), Some(50))],
            &["pair"],
            "a pod is the sum of its containers",
        ),
        case(
            "new pod takes what it requests, an old one is above",
            450,
            80,
            vec![pod("borrower", &idle(500)).asks(100), pod("newcomer", &fill(100, 500)).asks(600)],
            &["borrower"],
            "who borrowed gives back: growth within a request is what the request is for",
        ),
        case(
            "the same, and the old one has the higher priority",
            450,
            80,
            vec![pod("borrower", &idle(500)).asks(100).priority(1_000), pod("newcomer", &fill(100, 500)).asks(600)],
            &["borrower"],
            "above the request comes before priority",
        ),
    ]
}

fn by_priority() -> Vec<Case> {
    vec![
        case(
            "leak of low priority, larger quiet one of high",
            500,
            110,
            vec![pod("quiet", &idle(600)).priority(1_000), pod("leak", &leak(10))],
            &["leak"],
            "lower priority, and the aggressor",
        ),
        case(
            "quiet one of low priority, leak of high",
            500,
            130,
            vec![pod("quiet", &idle(300)), pod("leak", &leak(10)).priority(1_000)],
            &["quiet", "leak"],
            "both are above their requests, and priority comes before growth",
        ),
        case(
            "quiet one of low priority within its request, leak of high",
            500,
            110,
            vec![pod("quiet", &idle(300)).asks(400), pod("leak", &leak(10)).priority(1_000)],
            &["leak"],
            "above the request comes before priority",
        ),
        case(
            "slow leak of lower priority than a fast one",
            800,
            90,
            vec![pod("slow", &leak(5)).priority(-10), pod("fast", &leak(20))],
            &["slow", "fast"],
            "priority comes before growth",
        ),
        case(
            "three priorities, two of them leak",
            700,
            100,
            vec![pod("high", &leak(20)).priority(5), pod("middle", &leak(10)), pod("low", &idle(200)).priority(-5)],
            &["low", "middle", "high"],
            "from low to high",
        ),
        case(
            "tiny one of lower priority than the leak",
            300,
            110,
            vec![pod("tiny", &idle(20)).priority(-1), pod("leak", &leak(5))],
            &["tiny", "leak"],
            "priority is the operator's word, even where the small one's memory lasts for four seconds",
        ),
    ]
}

fn never_these() -> Vec<Case> {
    let leaves = |mib, seconds| Curve::Leave { holds: Bytes::mib(mib), after: Micros::secs(seconds) };
    vec![
        case(
            "critical pod leaks",
            600,
            120,
            vec![pod("critical", &leak(10)).priority(CRITICAL), pod("quiet", &idle(500))],
            &["quiet"],
            "a critical pod never goes, so the only other one above its request does",
        ),
        case(
            "critical pod holds most",
            500,
            110,
            vec![pod("critical", &idle(900)).priority(CRITICAL), pod("quiet", &idle(100)), pod("leak", &leak(10))],
            &["leak"],
            "a critical pod never goes, and of the others one leaks",
        ),
        case(
            "critical pod above its request, leak within",
            500,
            110,
            vec![
                pod("critical", &idle(900)).priority(CRITICAL + 1_000),
                pod("server", &idle(300)).asks(400),
                pod("leak", &leak(10)).asks(2_000),
            ],
            &["leak"],
            "a critical pod never goes even if it alone is above its request; then growth decides",
        ),
        case(
            "one that is being deleted holds most",
            500,
            110,
            vec![pod("leaver", &leaves(600, 300)).terminating(), pod("leak", &leak(10))],
            &["leak"],
            "who is on its way out is not sent away again, and does not grow",
        ),
        case(
            "one that is being deleted ends in time",
            420,
            120,
            vec![
                pod("leaver", &leaves(600, 60)).terminating(),
                pod("quiet", &idle(200)),
                pod("filler", &fill(10, 500)),
            ],
            &[],
            "what it held is there before the threshold is",
        ),
        case(
            "leak of critical priority less one",
            500,
            110,
            vec![pod("server", &idle(500)).asks(600), pod("leak", &leak(10)).priority(CRITICAL - 1)],
            &["leak"],
            "it is not critical, and it alone is above its request",
        ),
    ]
}

fn volumes_and_files() -> Vec<Case> {
    vec![
        case(
            "memory volume fills beside a larger quiet one",
            500,
            80,
            vec![pod("quiet", &idle(700)), pod("volume", &volume(10, 4_000))],
            &["volume"],
            "files in memory are the pod's memory, and grow",
        ),
        case(
            "memory volume within its pod's request, a quiet one above",
            500,
            100,
            vec![pod("quiet", &idle(300)), pod("volume", &volume(10, 4_000)).asks(1_500)],
            &["quiet", "volume"],
            "above the request comes before growth",
        ),
        case(
            "full memory volume beside a leak",
            1_000,
            110,
            vec![pod("volume", &volume(100, 500)), pod("leak", &leak(10))],
            &["leak"],
            "the volume has its size and keeps it",
        ),
        case(
            "memory volume of high priority, a quiet one of low",
            500,
            100,
            vec![pod("quiet", &idle(300)), pod("volume", &volume(10, 4_000)).priority(1_000)],
            &["quiet", "volume"],
            "both are above, and priority comes before growth",
        ),
        case(
            "file reader beside a leak",
            600,
            120,
            vec![pod("reader", &scan(200)), pod("leak", &leak(10))],
            &["leak"],
            "what the reader uses can be taken back",
        ),
        case(
            "file reader and a quiet one above its request",
            300,
            120,
            vec![pod("quiet", &idle(300)), pod("reader", &scan(500))],
            &[],
            "page cache fills what is left on every healthy node",
        ),
    ]
}

fn that_come_and_go() -> Vec<Case> {
    let heap = |plateau, half| Curve::Jvm { plateau: Bytes::mib(plateau), half: Micros::secs(half) };
    let (low, high, every) = (Bytes::mib(100), Bytes::mib(400), Micros::secs(8));
    let build = Curve::Peaks { low, high, every, lasts: Micros::secs(2) };
    let stutter = Curve::Stutter { rate: Bytes::mib(20), grows: Micros::secs(3), rests: Micros::secs(10) };
    vec![
        case(
            "collector beside a slow leak",
            800,
            170,
            vec![pod("collector", &saw(100, 300, 4)).asks(100).capped(400), pod("leak", &leak(5))],
            &["leak"],
            "the collector gives back what it takes",
        ),
        case(
            "large collector beside a leak that is still small",
            700,
            90,
            vec![pod("collector", &saw(200, 600, 8)).capped(700), pod("leak", &leak(10))],
            &["leak"],
            "the collector has been as high six times before; new is what the leak took",
        ),
        case(
            "JVM above its request on its plateau, and a leak",
            1_000,
            110,
            vec![pod("jvm", &heap(500, 10)).asks(300).capped(600), pod("leak", &leak(10))],
            &["leak"],
            "the heap has its size",
        ),
        case(
            "build with peaks beside a slow leak",
            700,
            130,
            vec![pod("build", &build), pod("leak", &leak(5))],
            &["leak"],
            "the peaks fitted ten times before; what does not fit is the leak",
        ),
        case(
            "crash loop in its own limit beside a leak",
            700,
            110,
            vec![pod("loop", &saw(4, 250, 6)).capped(300), pod("leak", &leak(10))],
            &["leak"],
            "a container that starts anew gives back what it had",
        ),
        case(
            "leak that pauses, beside a larger quiet one",
            400,
            100,
            vec![pod("quiet", &idle(700)), pod("stutter", &stutter)],
            &["stutter"],
            "with all its pauses it is the only one that took anything",
        ),
    ]
}

fn at_other_times() -> Vec<Case> {
    vec![
        case(
            "agent starts late, near the wall",
            600,
            120,
            vec![pod("quiet", &idle(900)), pod("leak", &leak(10))],
            &["leak"],
            "one or two seconds of history show who grows",
        )
        .from(70),
        case(
            "below the threshold from the start, and nobody grows",
            60,
            60,
            vec![pod("much", &idle(700)), pod("little", &idle(300))],
            &["much"],
            "without growth it is who uses most above its request",
        ),
        case(
            "growth that stops between the threshold and the wall",
            600,
            130,
            vec![pod("quiet", &idle(700)), pod("filler", &fill(10, 540))],
            &["filler"],
            "it took what is missing",
        ),
        case(
            "quiet ones above their requests, 150 MiB left",
            150,
            120,
            vec![pod("much", &idle(700)).priority(-10), pod("little", &idle(300))],
            &[],
            "no threshold is met",
        ),
    ]
}
