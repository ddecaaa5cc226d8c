//! On this machine's own cgroups, below `beelet-atest-<pid>-<n>`; skipped by name where they cannot be written.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use beelet_core::allocate::weight_from_shares;
use beelet_core::event::{CgroupKnobs, PodCgroup};
use beelet_core::units::{Bytes, Micros};
use proptest::prelude::*;

use super::layout::check;
use super::*;

/// A parent of the test's own, removed with everything in it at the end.
pub(crate) struct Bed {
    pub(crate) tree: Tree,
    pub(crate) root: String,
}

impl Bed {
    /// `None` where cgroups cannot be written; says so.
    pub(crate) fn new(test: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let root = format!("beelet-atest-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let made = Hierarchies::detect().map(Tree::new).and_then(|tree| {
            let bed = Self { tree, root };
            bed.tree.create(&bed.root).map(|()| bed)
        });
        match made {
            Ok(bed) => Some(bed),
            Err(reason) => {
                println!("SKIPPED {test}: {reason}");
                None
            }
        }
    }

    pub(crate) fn pod(&self, name: &str) -> String {
        format!("{}/burstable/pod{name}", self.root)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _best_effort = self.tree.kill_until_empty(&self.root, Duration::from_secs(2));
        if let Err(e) = self.tree.remove(&self.root, Duration::from_secs(2)) {
            println!("left behind: {e}");
        }
    }
}

/// A shell that joins the cgroup in every hierarchy and then runs `script`.
pub(crate) fn inside(tree: &Tree, path: &str, script: &str) -> Child {
    let joins: String = tree
        .hierarchies()
        .roots()
        .map(|root| format!("echo $$ > {}/cgroup.procs || exit 9\n", root.join(path).display()))
        .collect();
    let child = Command::new("sh").arg("-c").arg(joins + script).spawn().expect("sh");
    let begun = Instant::now();
    let unified = tree.hierarchies().unified.join(path);
    let mut pids = Vec::new();
    while pids.is_empty() && begun.elapsed() < Duration::from_secs(5) {
        kill::processes(&unified, &mut pids);
    }
    child
}

fn knobs() -> CgroupKnobs {
    CgroupKnobs {
        cpu_shares: Some(512),
        cpu_quota: Some(Micros(50_000)),
        cpu_period: Micros(100_000),
        memory_max: Some(Bytes(Bytes::mib(64).get() + 17)),
    }
}

#[test]
fn ensure_writes_once_and_reads_back() {
    let Some(bed) = Bed::new("ensure_writes_once_and_reads_back") else { return };
    let path = bed.pod("a");
    let cgroup = PodCgroup { path: path.clone(), knobs: knobs() };
    assert_eq!(bed.tree.ensure(&cgroup).unwrap(), [Change::Shares, Change::Quota, Change::Memory]);
    assert_eq!(bed.tree.ensure(&cgroup).unwrap(), [], "the second time changes nothing");
    let read = bed.tree.read(&path).unwrap();
    assert_eq!(read.cpu_quota, Some(Micros(50_000)));
    assert_eq!(read.memory_max, Some(Bytes::mib(64)), "rounded down to pages");
    bed.tree.verify(&path, &cgroup.knobs).unwrap();
    for root in bed.tree.hierarchies().roots() {
        assert!(root.join(&path).is_dir(), "{} has the pod", root.display());
    }
    // No limit any more: back to the kernel's default.
    let free = CgroupKnobs { cpu_shares: Some(512), ..CgroupKnobs::default() };
    assert_eq!(bed.tree.set(&path, &free).unwrap(), [Change::Quota, Change::Memory]);
    let read = bed.tree.read(&path).unwrap();
    assert_eq!((read.cpu_quota, read.memory_max), (None, None));
    assert!(matches!(bed.tree.verify(&path, &knobs()), Err(Error::Kept { .. })));
}

#[test]
fn a_period_can_change_under_a_limited_parent() {
    let Some(bed) = Bed::new("a_period_can_change_under_a_limited_parent") else { return };
    let parent = format!("{}/burstable", bed.root);
    bed.tree.create(&bed.pod("a")).unwrap();
    bed.tree.set(&parent, &knobs()).unwrap();
    bed.tree.set(&bed.pod("a"), &knobs()).unwrap();
    let shorter = CgroupKnobs { cpu_quota: Some(Micros(5_000)), cpu_period: Micros(10_000), ..knobs() };
    bed.tree.set(&bed.pod("a"), &shorter).unwrap();
    assert_eq!(bed.tree.read(&bed.pod("a")).unwrap().cpu_period, Micros(10_000));
}

#[test]
fn burst_is_set_and_cut_with_the_quota() {
    let Some(bed) = Bed::new("burst_is_set_and_cut_with_the_quota") else { return };
    let path = bed.pod("a");
    bed.tree.ensure(&PodCgroup { path: path.clone(), knobs: knobs() }).unwrap();
    match bed.tree.burst(&path, Micros(40_000)) {
        Err(e @ Error::Unsupported { .. }) => return println!("SKIPPED burst_is_set_and_cut_with_the_quota: {e}"),
        other => assert!(other.unwrap()),
    }
    assert!(!bed.tree.burst(&path, Micros(40_000)).unwrap(), "idempotent");
    assert_eq!(bed.tree.read_burst(&path).unwrap(), Micros(40_000));
    let refused = bed.tree.burst(&path, Micros(60_000)).unwrap_err().to_string();
    assert!(refused.contains("60000") && refused.contains("out of range"), "{refused}");
    bed.tree.set(&path, &CgroupKnobs { cpu_quota: Some(Micros(10_000)), ..knobs() }).unwrap();
    assert_eq!(bed.tree.read_burst(&path).unwrap(), Micros(10_000));
    assert!(bed.tree.burst(&bed.pod("gone"), Micros(1)).unwrap_err().is_gone());
}

#[test]
fn pods_are_listed_until_removed() {
    let Some(bed) = Bed::new("pods_are_listed_until_removed") else { return };
    for name in ["a", "b"] {
        bed.tree.ensure(&PodCgroup { path: bed.pod(name), knobs: knobs() }).unwrap();
    }
    let names: Vec<_> =
        bed.tree.list_pods(&bed.root).unwrap().into_iter().map(|(uid, path)| (uid.to_string(), path)).collect();
    assert_eq!(names, [("a".to_owned(), bed.pod("a")), ("b".to_owned(), bed.pod("b"))]);
    bed.tree.remove(&bed.pod("a"), Duration::from_secs(1)).unwrap();
    bed.tree.remove(&bed.pod("a"), Duration::from_secs(1)).unwrap();
    assert_eq!(bed.tree.list_pods(&bed.root).unwrap().len(), 1);
}

#[test]
fn kill_is_fast_and_complete() {
    let Some(bed) = Bed::new("kill_is_fast_and_complete") else { return };
    let path = bed.pod("a");
    let container = format!("{path}/container");
    bed.tree.create(&container).unwrap();
    let handle = bed.tree.kill_handle(&path).unwrap();
    let mut child = inside(&bed.tree, &container, "sleep 1000 & sleep 1000 & wait");
    let busy = bed.tree.remove(&path, Duration::from_millis(1)).unwrap_err();
    assert!(matches!(&busy, Error::Leftovers { left, .. } if left.iter().any(|l| !l.pids.is_empty())), "{busy}");
    let begun = Instant::now();
    let killed = handle.kill().unwrap();
    let took = begun.elapsed();
    println!("kill took {took:?}, {killed:?}");
    assert!(took < Duration::from_millis(200), "{took:?}");
    assert!(killed.tasks >= 1 || !killed.at_once);
    assert!(!child.wait().unwrap().success());
    assert!(bed.tree.kill_until_empty(&path, Duration::from_secs(5)).unwrap());
    bed.tree.remove(&path, Duration::from_secs(5)).unwrap();
    // A handle outlives its cgroup, and a cgroup of the same name made later is found again.
    assert_eq!(handle.kill().unwrap(), Killed::default());
    bed.tree.create(&container).unwrap();
    let mut child = inside(&bed.tree, &container, "sleep 1000");
    assert!(handle.kill().unwrap().at_once);
    assert!(!child.wait().unwrap().success());
}

/// `dd` fills its buffer and then waits for a reader that does not read; beside it others take the CPU that it would need to exit.
#[test]
fn the_memory_of_what_was_killed_is_freed_for_it() {
    const HELD: Bytes = Bytes::mib(256);
    let Some(bed) = Bed::new("the_memory_of_what_was_killed_is_freed_for_it") else { return };
    let (busy, path) = (bed.pod("busy"), bed.pod("a"));
    for pod in [&busy, &path] {
        bed.tree.create(pod).unwrap();
    }
    bed.tree.set(&path, &CgroupKnobs { cpu_shares: Some(2), ..CgroupKnobs::default() }).unwrap();
    let mut spinners = inside(&bed.tree, &busy, "for n in 1 2 3 4; do while :; do :; done & done; wait");
    let handle = bed.tree.kill_handle(&path).unwrap();
    let mut child = inside(&bed.tree, &path, "dd if=/dev/zero bs=256M count=1 status=none | sleep 1000");
    let begun = Instant::now();
    while bed.tree.unreclaimable(&path).unwrap() < HELD {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", bed.tree.unreclaimable(&path));
        std::thread::sleep(Duration::from_millis(20));
    }
    handle.kill().unwrap();
    let reaped = handle.reap();
    let left = bed.tree.unreclaimable(&path).unwrap();
    println!("{reaped:?}, {left} left");
    assert_eq!(reaped.left, 0, "{reaped:?}");
    assert!(left < HELD.scale(1, 2), "{left} after {reaped:?}");
    bed.tree.kill(&busy).unwrap();
    spinners.wait().unwrap();
    child.wait().unwrap();
}

#[test]
fn unreclaimable_is_less_than_a_lot() {
    let Some(bed) = Bed::new("unreclaimable_is_less_than_a_lot") else { return };
    bed.tree.create(&bed.pod("a")).unwrap();
    assert!(bed.tree.unreclaimable(&bed.pod("a")).unwrap() < Bytes::mib(1));
}

#[test]
fn paths_that_leave_the_tree_are_refused() {
    for bad in ["", "/", "/kubepods", "kubepods/", "a//b", "a/../b", "..", ".", "a/./b", "a\0b"] {
        assert!(check(bad).is_err(), "{bad:?}");
    }
    check("kubepods/burstable/pod1").unwrap();
}

#[test]
fn mountinfo_of_hybrid_and_v2_machines() {
    let hybrid = "30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  31 25 0:27 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd\n\
                  33 25 0:27 / /elsewhere rw - cgroup cgroup rw,xattr,name=systemd\n\
                  32 25 0:28 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n";
    let found = Hierarchies::parse(hybrid).unwrap();
    assert_eq!(found.unified, PathBuf::from("/sys/fs/cgroup/uni fied"));
    assert!(found.is_hybrid());
    assert_eq!(found.v1.len(), 2);
    assert_eq!(found.v1_root("cpuacct").unwrap(), PathBuf::from("/sys/fs/cgroup/cpu,cpuacct"));
    let v2 = Hierarchies::parse("32 25 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n").unwrap();
    assert!(!v2.is_hybrid());
    assert!(matches!(Hierarchies::parse("1 2 0:3 / / rw - ext4 /dev/vda rw\n"), Err(Error::NoUnified)));
}

proptest! {
    #[test]
    fn weights_stay_in_range_and_order(a in 0_u64..300_000, b in 0_u64..300_000) {
        let (wa, wb) = (weight_from_shares(a), weight_from_shares(b));
        prop_assert!((1..=10_000).contains(&wa));
        prop_assert!(a > b || wa <= wb);
        prop_assert_eq!(weight_from_shares(shares_from_weight(wa)), wa);
    }
}

/// Files in a folder as cgroup v2 would have them: for formats and order, on machines of the other kind.
fn like_v2(dir: &tempfile::TempDir) -> Tree {
    let pod = dir.path().join("pod");
    std::fs::create_dir(&pod).unwrap();
    for (name, text) in [
        ("cpu.weight", "100\n"),
        ("cpu.max", "max 100000\n"),
        ("cpu.max.burst", "0\n"),
        ("memory.max", "max\n"),
        ("memory.current", "1000\n"),
        ("memory.stat", "anon 400\ninactive_file 300\nactive_file 250\nshmem 50\nslab_reclaimable 40\n"),
    ] {
        std::fs::write(pod.join(name), text).unwrap();
    }
    Tree::new(Hierarchies { unified: dir.path().to_owned(), v1: Vec::new() })
}

#[test]
fn the_v2_files_have_their_formats() {
    let dir = tempfile::TempDir::new().unwrap();
    let tree = like_v2(&dir);
    let file = |name: &str| std::fs::read_to_string(dir.path().join("pod").join(name)).unwrap();
    assert_eq!(tree.unreclaimable("pod").unwrap(), Bytes(410));
    assert_eq!(tree.set("pod", &knobs()).unwrap(), [Change::Shares, Change::Quota, Change::Memory]);
    assert_eq!((file("cpu.weight"), file("cpu.max")), ("20".to_owned(), "50000 100000".to_owned()));
    assert_eq!(file("memory.max"), "67108864");
    assert_eq!(tree.set("pod", &knobs()).unwrap(), []);
    tree.verify("pod", &knobs()).unwrap();
    assert!(tree.burst("pod", Micros(5_000)).unwrap());
    tree.set("pod", &CgroupKnobs { cpu_quota: Some(Micros(2_000)), ..knobs() }).unwrap();
    assert_eq!(tree.read_burst("pod").unwrap(), Micros(2_000), "cut with the quota");
    tree.set("pod", &CgroupKnobs::default()).unwrap();
    assert_eq!((file("memory.max"), file("cpu.max")), ("max".to_owned(), "max 100000".to_owned()));
    std::fs::remove_file(dir.path().join("pod/cpu.max.burst")).unwrap();
    assert!(matches!(tree.burst("pod", Micros(1)), Err(Error::Unsupported { .. })));
    std::fs::write(dir.path().join("pod/memory.max"), "many").unwrap();
    assert!(matches!(tree.read("pod"), Err(Error::Parse { .. })));
}

#[test]
fn without_cgroup_kill_processes_are_signalled_one_by_one() {
    let dir = tempfile::TempDir::new().unwrap();
    let tree = like_v2(&dir);
    let mut children: Vec<Child> = (0..3).map(|_| Command::new("sleep").arg("1000").spawn().unwrap()).collect();
    std::fs::create_dir(dir.path().join("pod/c")).unwrap();
    std::fs::write(dir.path().join("pod/cgroup.procs"), format!("{}\n0\n1\n", children[0].id())).unwrap();
    std::fs::write(
        dir.path().join("pod/c/cgroup.procs"),
        format!("{}\n{}\n{}\n", children[1].id(), children[2].id(), std::process::id()),
    )
    .unwrap();
    assert_eq!(tree.kill("pod").unwrap(), Killed { tasks: 3, at_once: false }, "not init, not beelet itself");
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
}
