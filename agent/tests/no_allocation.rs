//! Reading cgroups allocates nothing once their files are open.
#![expect(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use beelet::kernel::cgroup::{Buffer, Cgroup, CgroupLayout, Depth};
use beelet_core::sample::CgroupReading;

/// Counts allocations of the whole process: this file has one test.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's word.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's word.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn put(folder: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(folder).expect("a folder");
    for (name, text) in files {
        fs::write(folder.join(name), text).expect("a file");
    }
}

const PRESSURE: &str =
    "some avg10=0.10 avg60=0.20 avg300=100.00 total=12\nfull avg10=0.01 avg60=0.02 avg300=0.03 total=3\n";

/// Allocations in the second and all later of so many readings of each depth.
fn allocations(layout: &CgroupLayout, relative: &Path) -> u64 {
    let mut cgroup = Cgroup::open(layout, relative).expect("a cgroup").expect("it is there");
    let (mut buffer, mut it) = (Buffer::default(), CgroupReading::default());
    let depths =
        [Depth::Decide { stat: true, quota: true }, Depth::Decide { stat: false, quota: false }, Depth::Memory];
    let mut read = || {
        for depth in depths {
            assert!(cgroup.read(depth, &mut buffer, &mut it).expect("readable"));
        }
    };
    read();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..200 {
        read();
    }
    let during = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert!(it.memory.is_some() && it.cpu.is_some_and(|cpu| cpu.usage.is_some()), "{it:?}");
    during
}

#[test]
fn the_steady_state_allocates_nothing() {
    let root = tempfile::tempdir().expect("a folder");
    let counted = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(counted > 0, "the counter counts");

    let v2 = root.path().join("v2/a");
    put(
        &v2,
        &[
            ("cpu.stat", "usage_usec 10\nuser_usec 5\nsystem_usec 5\nnr_periods 0\n"),
            ("memory.current", "1000\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\ninactive_file 3\nactive_file 4\npgfault 5\n"),
            ("memory.events", "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n"),
            ("cpu.pressure", PRESSURE),
            ("memory.pressure", PRESSURE),
            ("pids.current", "1\n"),
        ],
    );
    let layout = CgroupLayout::V2 { root: root.path().join("v2") };
    assert_eq!(allocations(&layout, Path::new("a")), 0, "v2");

    let at = |name: &str| root.path().join(name);
    put(&at("unified/a"), &[("cpu.stat", "usage_usec 10\n"), ("io.pressure", PRESSURE)]);
    put(&at("cpu/a"), &[("cpu.stat", "nr_periods 1\nnr_throttled 0\nthrottled_time 0\n")]);
    put(
        &at("memory/a"),
        &[
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", "cache 1\ntotal_rss 1\ntotal_inactive_file 2\ntotal_active_file 3\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n"),
        ],
    );
    put(&at("pids/a"), &[("pids.current", "1\n")]);
    let controllers = ["cpu", "memory", "pids"].map(|name| (name.to_owned(), at(name))).into();
    let layout = CgroupLayout::Hybrid { unified: at("unified"), controllers };
    assert_eq!(allocations(&layout, Path::new("a")), 0, "hybrid");
}
