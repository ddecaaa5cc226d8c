//! A runtime that only takes notes, real cgroups where they can be written, real files in temporary folders.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use beelet_core::event::{
    Action, CgroupKnobs, Done, Event, Knob, KnobWrite, LinuxResources, OpError, OpId, PodCgroup, PodOp,
};
use beelet_core::spec::{PodUid, PullPolicy};
use beelet_core::units::{Bytes, Micros};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::knobs::Worker;
use super::*;
use crate::cgroup::tests::{Bed, inside};
use crate::cgroup::{Hierarchies, Tree};
use crate::runtime::{ExecError, ExecOutput};
use crate::volumes::tests::{pod, volumes};

mod hooks;

/// Notes what it is asked. Commands: `hang` never ends, `bad` ends with 3. Images: `slow` takes 50 ms, `hang` never ends, `panic` panics.
#[derive(Debug, Default)]
struct Fake {
    notes: Mutex<Vec<String>>,
    /// The grace of each that was told to stop.
    stops: Mutex<BTreeMap<String, Micros>>,
    tree: Option<Arc<Tree>>,
    cgroup: String,
}

impl Fake {
    fn note(&self, text: String) {
        self.notes.lock().unwrap().push(text);
    }
}

impl PodRuntime for Fake {
    async fn perform(&self, _: &PodUid, what: &PodOp) -> Result<Done, OpError> {
        let PodOp::EnsureImage { image, .. } = what else {
            self.note(what.name().to_owned());
            return Ok(Done::Ok);
        };
        self.note(format!("begin {image}"));
        match image.as_str() {
            "hang" => std::future::pending().await,
            "panic" => panic!("no such luck"),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        self.note(format!("end {image}"));
        Ok(Done::Image { pulled: None })
    }

    async fn update_container(&self, id: &str, linux: &LinuxResources) -> Result<(), OpError> {
        let pod = self.tree.as_ref().map(|tree| tree.read(&self.cgroup).unwrap().memory_max);
        self.note(format!("update {id} while the pod has {pod:?}"));
        if let Some(tree) = self.tree.as_ref().filter(|_| id != "liar") {
            tree.set(&format!("{}/{id}", self.cgroup), &linux.knobs).unwrap();
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Micros) -> Result<(), OpError> {
        self.note(format!("stop {id}"));
        self.stops.lock().unwrap().insert(id.to_owned(), grace);
        Ok(())
    }

    async fn exec(&self, id: &str, command: &[String], _: Duration) -> Result<ExecOutput, ExecError> {
        self.note(format!("exec {command:?} in {id}"));
        match command.first().map(String::as_str) {
            Some("hang") => std::future::pending().await,
            Some("bad") => Ok(ExecOutput { output: b"out".to_vec(), code: 3 }),
            _ => Ok(ExecOutput::default()),
        }
    }
}

struct Rig {
    executor: Executor<Fake>,
    runtime: Arc<Fake>,
    results: UnboundedReceiver<Event>,
    dir: TempDir,
}

fn rig(tree: Tree, fake: Fake) -> Rig {
    let dir = TempDir::new().unwrap();
    let (events, results) = unbounded_channel();
    let runtime = Arc::new(fake);
    let parts = Parts {
        tree: Arc::new(tree),
        volumes: Arc::new(volumes(&dir)),
        runtime: Arc::clone(&runtime),
        journal: Journal::open(dir.path().join("journal")).unwrap(),
        guard: None,
        host_ip: String::new(),
        events,
    };
    let executor = Executor::spawn_with(parts, |what| match what {
        PodOp::EnsureImage { .. } => Duration::from_millis(400),
        other => time_limit(other),
    });
    Rig { executor: executor.unwrap(), runtime, results, dir }
}

/// A tree that no test writes to.
fn nowhere() -> Tree {
    Tree::new(Hierarchies { unified: "/nonexistent".into(), v1: Vec::new() })
}

impl Rig {
    fn op(&self, uid: &str, op: u64, what: PodOp) {
        assert_eq!(self.executor.execute(Action::Pod { uid: uid.into(), op: OpId(op), what }), None);
    }

    fn image(&self, uid: &str, op: u64, image: &str) {
        self.op(uid, op, PodOp::EnsureImage { image: image.to_owned(), pull: PullPolicy::Never });
    }

    async fn result(&mut self) -> (PodUid, OpId, Result<Done, OpError>) {
        let event = tokio::time::timeout(Duration::from_secs(20), self.results.recv()).await.expect("in time");
        let Some(Event::Done { uid, op, result }) = event else { panic!("{event:?}") };
        (uid, op, result)
    }

    fn notes(&self) -> Vec<String> {
        self.runtime.notes.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_15a_operations_of_a_pod_are_in_order_and_pods_do_not_wait() {
    let mut rig = rig(nowhere(), Fake::default());
    for op in 0..3 {
        for uid in ["a", "b", "c", "d"] {
            rig.image(uid, op, &format!("{uid}{op}"));
        }
    }
    let mut last = BTreeMap::new();
    for _ in 0..12 {
        let (uid, op, result) = rig.result().await;
        assert!(result.is_ok());
        assert_eq!(last.insert(uid, op), op.0.checked_sub(1).map(OpId), "in order");
    }
    let notes = rig.notes();
    for uid in ["a", "b", "c", "d"] {
        let own: Vec<_> = notes.iter().filter(|n| n.contains(&format!(" {uid}"))).cloned().collect();
        let expected: Vec<_> = (0..3).flat_map(|op| [format!("begin {uid}{op}"), format!("end {uid}{op}")]).collect();
        assert_eq!(own, expected, "one at a time");
    }
    let first = |text: &str| notes.iter().position(|n| n == text).unwrap();
    for uid in ["b", "c", "d"] {
        assert!(first(&format!("begin {uid}0")) < first("end a2"), "pods do not wait for each other: {notes:?}");
    }
    let begun = Instant::now();
    while !rig.executor.queues().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(5), "tasks end when idle");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.image("a", 9, "again");
    assert_eq!(rig.result().await.1, OpId(9));
}

#[tokio::test]
async fn a7_11a_a_panic_and_a_hang_are_results() {
    let mut rig = rig(nowhere(), Fake::default());
    rig.image("a", 1, "panic");
    rig.image("a", 2, "hang");
    rig.image("a", 3, "fine");
    let error = rig.result().await.2.unwrap_err();
    assert!(error.reason == "ErrImagePull" && error.message.contains("no such luck"), "{error:?}");
    let error = rig.result().await.2.unwrap_err();
    assert!(error.message.contains("did not end within 0.4 s"), "{error:?}");
    assert!(rig.result().await.2.is_ok());
}

#[tokio::test]
async fn a6_8_a_pull_is_given_up_and_nothing_else() {
    let mut rig = rig(nowhere(), Fake::default());
    let cancel = |uid: &str| assert_eq!(rig.executor.execute(Action::Cancel { uid: uid.into() }), None);
    // Queued or under way, it makes no difference; others go on.
    rig.image("a", 1, "hang");
    rig.op("a", 2, PodOp::RemoveContainers { ids: Vec::new() });
    rig.image("b", 1, "slow");
    cancel("a");
    cancel("nobody");
    let error = rig.result().await.2.unwrap_err();
    assert_eq!(error.reason, "Cancelled");
    assert_eq!(rig.result().await, ("a".into(), OpId(2), Ok(Done::Ok)));
    assert!(rig.result().await.2.is_ok());
    rig.image("a", 3, "hang");
    let begun = Instant::now();
    while !rig.notes().contains(&"begin hang".to_owned()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(rig.executor.execute(Action::Cancel { uid: "a".into() }), None);
    assert_eq!(rig.result().await.2.unwrap_err().reason, "Cancelled");
    assert!(begun.elapsed() < Duration::from_millis(300), "before its own limit");
}

#[test]
fn a_memory_limit_is_cut_no_lower_than_what_is_held() {
    let mib = Bytes::mib;
    let safe = |wanted, now, held| knobs::safe_limit(wanted, now, mib(held));
    assert_eq!(safe(None, Some(mib(9)), 100), None);
    assert_eq!(safe(Some(mib(200)), None, 100), Some(mib(200)));
    assert_eq!(safe(Some(mib(100)), Some(mib(300)), 100), Some(mib(116)), "at least 16 MiB more");
    assert_eq!(safe(Some(mib(100)), None, 1_600), Some(mib(1_700)), "or a sixteenth");
    assert_eq!(safe(Some(mib(100)), Some(mib(110)), 105), Some(mib(110)), "never raised by it");
    assert_eq!(safe(Some(mib(100)), Some(mib(90)), 89), Some(mib(100)), "a raise is a raise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_above_pods_waits_for_memory() {
    let Some(bed) = Bed::new("a_cut_above_pods_waits_for_memory") else { return };
    let path = bed.pod("u1");
    bed.tree.create(&path).unwrap();
    let mut child = inside(&bed.tree, &path, "x=$(head -c 50000000 /dev/zero | tr '\\0' x); sleep 1000");
    let held = async || {
        let begun = Instant::now();
        while bed.tree.unreclaimable(&path).unwrap() < Bytes(50_000_000) {
            assert!(begun.elapsed() < Duration::from_secs(20), "it takes the memory");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    held().await;
    // Until the shell's copies of it are freed.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rig = rig(bed.tree.clone(), Fake::default());
    let above = PodCgroup { path: bed.root.clone(), knobs: limits(32) };
    assert_eq!(rig.executor.execute(Action::Cgroups(vec![above])), None);
    let limit = || bed.tree.read(&bed.root).unwrap().memory_max;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(limit().is_some_and(|limit| limit > Bytes(50_000_000)), "{:?}", limit());
    assert!(child.try_wait().unwrap().is_none(), "nobody was killed");
    bed.tree.kill(&path).unwrap();
    child.wait().unwrap();
    let begun = Instant::now();
    while limit() != Some(Bytes::mib(32)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", limit());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_is_not_ours_is_given_back() {
    let rig = rig(nowhere(), Fake::default());
    for action in [Action::Relist, Action::WakeAt(Micros(1)), Action::Forget("a".into())] {
        assert_eq!(rig.executor.execute(action.clone()), Some(action));
    }
}

fn limits(memory: u64) -> CgroupKnobs {
    CgroupKnobs {
        cpu_shares: Some(512),
        cpu_quota: Some(Micros(50_000)),
        cpu_period: Micros(100_000),
        memory_max: Some(Bytes::mib(memory)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a4_11a_a_pod_from_prepare_to_cleanup() {
    let Some(bed) = Bed::new("a4_11a_a_pod_from_prepare_to_cleanup") else { return };
    let path = bed.pod("u1");
    let mut rig = rig(bed.tree.clone(), Fake::default());
    let spec = Arc::new(pod("u1", Vec::new()));
    let cgroup = PodCgroup { path: path.clone(), knobs: limits(64) };
    rig.op("u1", 1, PodOp::Prepare { spec: Arc::clone(&spec), cgroup });
    assert_eq!(rig.result().await.2, Ok(Done::Prepared { runs: Vec::new() }));
    bed.tree.verify(&path, &limits(64)).unwrap();
    let container = format!("{path}/c1");
    bed.tree.create(&container).unwrap();
    let mut child = inside(&bed.tree, &container, "sleep 1000 & wait");
    // A kill goes past an operation that hangs.
    rig.image("u1", 2, "hang");
    assert_eq!(rig.executor.execute(Action::Kill { uid: "u1".into(), cgroup: path.clone() }), None);
    assert!(!child.wait().unwrap().success());
    assert!(rig.results.try_recv().is_err(), "the operation still hangs");
    let counts = rig.executor.context().killer.counts();
    println!("{counts:?}");
    assert!(counts.failures == 0 && counts.longest_us < 200_000, "{counts:?}");
    assert!(rig.result().await.2.is_err());
    // Cleanup kills what is left.
    let mut child = inside(&bed.tree, &container, "sleep 1000 & wait");
    let logs = rig.dir.path().join("logs/default_web_u1");
    assert!(logs.is_dir());
    rig.op("u1", 3, PodOp::Cleanup { uid: "u1".into(), cgroup: path.clone(), keep_logs: false });
    assert_eq!(rig.result().await.2, Ok(Done::Ok));
    assert!(!child.wait().unwrap().success());
    assert!(bed.tree.list_pods(&bed.root).unwrap().is_empty());
    assert!(!logs.exists() && !rig.dir.path().join("root/pods/u1").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resize_is_in_order_and_verified() {
    let Some(bed) = Bed::new("a_resize_is_in_order_and_verified") else { return };
    let path = bed.pod("u1");
    for id in ["c1", "liar"] {
        bed.tree.create(&format!("{path}/{id}")).unwrap();
    }
    bed.tree.set(&path, &limits(64)).unwrap();
    let fake = Fake { tree: Some(Arc::new(bed.tree.clone())), cgroup: path.clone(), ..Fake::default() };
    let mut rig = rig(bed.tree.clone(), fake);
    let spec = Arc::new(pod("u1", Vec::new()));
    let resize = |memory: u64, pod_first, id: &str| PodOp::Resize {
        spec: Arc::clone(&spec),
        pod: PodCgroup { path: path.clone(), knobs: limits(memory) },
        pod_first,
        containers: vec![(
            id.to_owned(),
            "main".to_owned(),
            LinuxResources { knobs: limits(memory), ..LinuxResources::default() },
        )],
    };
    rig.op("u1", 1, resize(128, true, "c1"));
    assert_eq!(rig.result().await.2, Ok(Done::Ok));
    rig.op("u1", 2, resize(32, false, "c1"));
    assert_eq!(rig.result().await.2, Ok(Done::Ok));
    let at = |mib| format!("update c1 while the pod has {:?}", Some(Some(Bytes::mib(mib))));
    assert_eq!(rig.notes(), [at(128), at(128)], "raised before the container, cut after it");
    bed.tree.verify(&path, &limits(32)).unwrap();
    rig.op("u1", 3, resize(48, true, "liar"));
    let error = rig.result().await.2.unwrap_err();
    assert!(error.reason == "ResizeError" && error.message.contains("did not arrive"), "{error:?}");
}

#[tokio::test]
async fn a_resize_of_a_raised_container_is_no_fight() {
    let Some(bed) = Bed::new("a_resize_of_a_raised_container_is_no_fight") else { return };
    let path = bed.pod("u1");
    let container = format!("{path}/c1");
    bed.tree.create(&container).unwrap();
    bed.tree.set(&path, &limits(1_024)).unwrap();
    bed.tree.set(&container, &limits(64)).unwrap();
    let fake = Fake { tree: Some(Arc::new(bed.tree.clone())), cgroup: path.clone(), ..Fake::default() };
    let mut rig = rig(bed.tree.clone(), fake);
    let spec = Arc::new(pod("u1", Vec::new()));
    // More often than it takes to give a knob up.
    for turn in 1..=3 {
        let raised = Some(Bytes::mib(64 * turn + 20));
        let knob = Knob::MemoryMax(raised);
        let write = KnobWrite { cgroup: container.clone(), knob, ..burst("", 0) };
        assert_eq!(rig.executor.execute(Action::Knob(write)), None);
        let there = async || {
            for _ in 0..200 {
                if bed.tree.read_knob(&container, knob).unwrap() == knob {
                    return true;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            false
        };
        assert!(there().await, "turn {turn}: raised to {raised:?}");
        let to = limits(64 * (turn + 1));
        let resize = PodOp::Resize {
            spec: Arc::clone(&spec),
            pod: PodCgroup { path: path.clone(), knobs: limits(1_024) },
            pod_first: true,
            containers: vec![(
                "c1".to_owned(),
                "main".to_owned(),
                LinuxResources { knobs: to, ..LinuxResources::default() },
            )],
        };
        rig.op("u1", turn, resize);
        assert_eq!(rig.result().await.2, Ok(Done::Ok));
        bed.tree.verify(&container, &to).unwrap();
    }
    assert_eq!(rig.executor.context().knobs.counts().fights, 0);
    // Nothing of a raise is open: at the end the last size stays.
    rig.executor.stop().await;
    bed.tree.verify(&container, &limits(256)).unwrap();
}

fn burst(cgroup: &str, micros: u64) -> KnobWrite {
    KnobWrite {
        cgroup: cgroup.to_owned(),
        target: ("u1".into(), "main".to_owned()),
        knob: Knob::CpuBurst(Micros(micros)),
        why: "throttled".to_owned(),
    }
}

#[tokio::test]
async fn knobs_are_turned_back_at_the_end_and_after_a_crash() {
    let Some(bed) = Bed::new("knobs_are_turned_back_at_the_end_and_after_a_crash") else { return };
    let path = bed.pod("u1");
    bed.tree.ensure(&PodCgroup { path: path.clone(), knobs: limits(64) }).unwrap();
    if let Err(e) = bed.tree.burst(&path, Micros(10_000)) {
        return println!("SKIPPED knobs_are_turned_back_at_the_end_and_after_a_crash: {e}");
    }
    let first = rig(bed.tree.clone(), Fake::default());
    let turn = |rig: &Rig, micros| assert_eq!(rig.executor.execute(Action::Knob(burst(&path, micros))), None);
    let settle = async |micros: u64| {
        for _ in 0..200 {
            if bed.tree.read_burst(&path).unwrap() == Micros(micros) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}, not {micros}", bed.tree.read_burst(&path));
    };
    turn(&first, 20_000);
    turn(&first, 30_000);
    settle(30_000).await;
    first.executor.stop().await;
    assert_eq!(bed.tree.read_burst(&path).unwrap(), Micros(10_000), "the value before beelet");
    turn(&first, 40_000);
    settle(40_000).await;
    // The crash: nobody stops it. Another life opens the same journal.
    let (events, _results) = unbounded_channel();
    let parts = Parts {
        tree: Arc::new(bed.tree.clone()),
        volumes: Arc::new(volumes(&first.dir)),
        runtime: Arc::new(Fake::default()),
        journal: Journal::open(first.dir.path().join("journal")).unwrap(),
        guard: None,
        host_ip: String::new(),
        events,
    };
    let second = Executor::spawn(parts).unwrap();
    settle(10_000).await;
    assert_eq!(second.execute(Action::Knob(burst(&path, 20_000))), None);
    settle(20_000).await;
    // Somebody else sets it; twice is a fight.
    for (other, wish) in [(11_000, 21_000), (12_000, 22_000)] {
        bed.tree.burst(&path, Micros(other)).unwrap();
        assert_eq!(second.execute(Action::Knob(burst(&path, wish))), None);
        settle(if wish == 21_000 { wish } else { other }).await;
    }
    second.stop().await;
    assert_eq!(second.context().knobs.counts().fights, 1);
    assert_eq!(bed.tree.read_burst(&path).unwrap(), Micros(12_000), "what somebody else wrote is theirs");
}

#[tokio::test]
async fn what_holds_a_pod_up_is_done_only_under_a_guard() {
    let Some(bed) = Bed::new("what_holds_a_pod_up_is_done_only_under_a_guard") else { return };
    let path = bed.pod("u1");
    bed.tree.ensure(&PodCgroup { path: path.clone(), knobs: limits(64) }).unwrap();
    let rig = rig(bed.tree.clone(), Fake::default());
    let write = |knob| Action::Knob(KnobWrite { knob, ..burst(&path, 0) });
    assert_eq!(rig.executor.execute(write(Knob::Freeze(true))), None);
    // In the thread's order: when this one is there, that one was refused.
    let raised = Knob::MemoryMax(Some(Bytes::mib(96)));
    assert_eq!(rig.executor.execute(write(raised)), None);
    for _ in 0..200 {
        if bed.tree.read_knob(&path, raised).unwrap() == raised {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(bed.tree.read_knob(&path, raised).unwrap(), raised);
    assert_eq!(bed.tree.read_knob(&path, Knob::Freeze(true)).unwrap(), Knob::Freeze(false));
    let counts = rig.executor.context().knobs.counts();
    assert_eq!((counts.failures, counts.writes), (1, 1));
    rig.executor.stop().await;
    assert_eq!(bed.tree.read_knob(&path, raised).unwrap(), Knob::MemoryMax(Some(Bytes::mib(64))));
}

#[tokio::test]
async fn a_raised_limit_is_not_cut_into_what_is_held() {
    let Some(bed) = Bed::new("a_raised_limit_is_not_cut_into_what_is_held") else { return };
    let path = bed.pod("u1");
    bed.tree.ensure(&PodCgroup { path: path.clone(), knobs: limits(64) }).unwrap();
    let rig = rig(bed.tree.clone(), Fake::default());
    let max = |mib| Knob::MemoryMax(Some(Bytes::mib(mib)));
    let turn = |knob| assert_eq!(rig.executor.execute(Action::Knob(KnobWrite { knob, ..burst(&path, 0) })), None);
    let settle = async |knob| {
        for _ in 0..500 {
            if bed.tree.read_knob(&path, knob).unwrap() == knob {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}, not {knob:?}", bed.tree.read_knob(&path, knob));
    };
    turn(max(192));
    settle(max(192)).await;
    let mut child = inside(&bed.tree, &path, "dd if=/dev/zero bs=96M count=1 status=none | sleep 1000");
    for _ in 0..500 {
        if bed.tree.unreclaimable(&path).unwrap() >= Bytes::mib(96) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(bed.tree.unreclaimable(&path).unwrap() >= Bytes::mib(96));
    // Back, and to something in between that is too little as well.
    for low in [64, 80] {
        turn(max(low));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(bed.tree.read_knob(&path, max(0)).unwrap(), max(192));
    }
    assert!(child.try_wait().unwrap().is_none(), "the kernel has killed it");
    turn(max(64));
    bed.tree.kill(&path).unwrap();
    child.wait().unwrap();
    settle(max(64)).await;
}

#[test]
fn what_holds_a_pod_up_goes_when_its_time_is_over_whatever_becomes_of_who_decides() {
    let Some(bed) = Bed::new("what_holds_a_pod_up_goes_when_its_time_is_over_whatever_becomes_of_who_decides") else {
        return;
    };
    let path = bed.pod("u1");
    bed.tree.create(&path).unwrap();
    let dir = TempDir::new().unwrap();
    let mut journal = Journal::open(dir.path().join("journal")).unwrap();
    let write = KnobWrite { knob: Knob::Freeze(true), ..burst(&path, 0) };
    journal.intend(&write, Knob::Freeze(false), 1).unwrap();
    bed.tree.put_knob(&path, write.knob).unwrap();
    let mut worker = Worker::new(Arc::new(bed.tree.clone()), journal);
    worker.deadlines.insert((path.clone(), "freeze"), Instant::now() + Duration::from_secs(60));
    worker.expire();
    assert_eq!(bed.tree.read_knob(&path, write.knob).unwrap(), Knob::Freeze(true), "not yet");
    worker.deadlines.insert((path.clone(), "freeze"), Instant::now());
    worker.expire();
    assert_eq!(bed.tree.read_knob(&path, write.knob).unwrap(), Knob::Freeze(false));
    assert!(worker.deadlines.is_empty());
}

#[test]
fn the_journal_is_bounded() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("deep/journal");
    let mut journal = Journal::open(&path).unwrap();
    for turn in 1..=2_500 {
        journal.intend(&burst("a", turn), Knob::CpuBurst(Micros(turn - 1)), turn).unwrap();
    }
    assert!(std::fs::read_to_string(&path).unwrap().lines().count() < 1_100);
    let open = Journal::open(&path).unwrap().recover();
    assert_eq!(open.len(), 1);
    let values = (open[0].before, open[0].previous, open[0].after);
    let at = |micros| Knob::CpuBurst(Micros(micros));
    assert_eq!(values, (at(0), at(2_499), at(2_500)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Cut anywhere: what is recovered is what the whole lines before the cut say, and the journal can be written on.
    #[test]
    fn a_torn_journal_recovers_its_whole_lines(
        steps in prop::collection::vec((0_u8..3, prop::option::weighted(0.7, 1_u64..100)), 1..12),
        cut in 0.0_f64..1.0,
    ) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        let mut states = vec![(0, Vec::new())];
        for (cgroup, value) in steps {
            let cgroup = format!("c{cgroup}");
            match value {
                Some(value) => journal.intend(&burst(&cgroup, value), Knob::CpuBurst(Micros(0)), 1).unwrap(),
                None => journal.close(&cgroup, Knob::CpuBurst(Micros(0)), 1).unwrap(),
            }
            states.push((std::fs::metadata(&path).unwrap().len(), journal.recover()));
        }
        let length = states.last().unwrap().0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a position in a small file")]
        let cut = (length as f64 * cut) as u64;
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();
        let expected = &states.iter().rev().find(|(at, _)| *at <= cut).unwrap().1;
        let mut torn = Journal::open(&path).unwrap();
        prop_assert_eq!(&torn.recover(), expected);
        prop_assert_eq!(torn.unreadable(), 0);
        torn.intend(&burst("c9", 7), Knob::CpuBurst(Micros(0)), 1).unwrap();
        prop_assert_eq!(Journal::open(&path).unwrap().recover().len(), expected.len() + 1);
    }
}
