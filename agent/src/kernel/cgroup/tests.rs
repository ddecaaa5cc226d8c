//! Both layouts, on folders of files as kernels show them.

use std::fs;

use super::*;

fn put(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn v2(root: &Path) -> Cgroup {
    put(
        root,
        "pods/a/cpu.stat",
        "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 1\nthrottled_usec 9\n",
    );
    put(root, "pods/a/memory.current", "1000000\n");
    put(root, "pods/a/memory.max", "max\n");
    put(root, "pods/a/memory.high", "900000\n");
    put(
        root,
        "pods/a/memory.stat",
        "anon 500000\nfile 400000\nkernel 50000\nshmem 0\ninactive_file 200000\nactive_file 100000\nslab_reclaimable 20000\nslab_unreclaimable 7\n",
    );
    put(root, "pods/a/memory.events", "low 0\nhigh 4\nmax 5\noom 1\noom_kill 2\noom_group_kill 0\n");
    put(
        root,
        "pods/a/memory.pressure",
        "some avg10=0.10 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
    );
    put(root, "pods/a/cgroup.procs", "12\n3456\n");
    put(root, "pods/a/pids.current", "2\n");
    Cgroup::open(&CgroupLayout::V2 { root: root.to_owned() }, Path::new("pods/a")).unwrap().unwrap()
}

#[test]
fn a_kill_of_a_whole_cgroup_counts_once() {
    let root = tempfile::tempdir().unwrap();
    let (cgroup, mut buffer) = (v2(root.path()), Buffer::default());
    assert_eq!(cgroup.memory(&mut buffer).unwrap().oom_kills, Some(2));
    // A lone process in a cgroup with memory.oom.group: Linux 6.12.
    put(root.path(), "pods/a/memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1\n");
    assert_eq!(cgroup.memory(&mut buffer).unwrap().oom_kills, Some(1));
}

#[test]
fn v2_is_read_and_missing_files_are_none() {
    let root = tempfile::tempdir().unwrap();
    let (cgroup, mut buffer) = (v2(root.path()), Buffer::default());
    assert_eq!(
        cgroup.cpu(&mut buffer).unwrap(),
        CpuReading {
            usage_us: Some(1500),
            user_us: Some(1000),
            system_us: Some(500),
            nr_periods: Some(3),
            nr_throttled: Some(1),
            throttled_us: Some(9),
            ..CpuReading::default()
        }
    );
    let memory = cgroup.memory(&mut buffer).unwrap();
    assert_eq!((memory.usage, memory.limit, memory.high), (Some(1_000_000), None, Some(900_000)));
    assert_eq!((memory.oom_kills, memory.max_events, memory.high_events), (Some(2), Some(5), Some(4)));
    assert_eq!((memory.peak, memory.swap), (None, None));
    assert_eq!(memory.unreclaimable(), Some(680_000));
    let psi = cgroup.pressure(&mut buffer).unwrap();
    assert_eq!(psi.memory.unwrap().some.total_us, 12);
    assert_eq!((psi.cpu, psi.io), (None, None));
    assert_eq!(cgroup.processes(&mut buffer).unwrap().unwrap(), [12, 3456]);
    assert_eq!(cgroup.tasks(&mut buffer).unwrap(), Some(2));
    assert_eq!(
        cgroup.id(),
        fs::metadata(root.path().join("pods/a")).map(|it| std::os::unix::fs::MetadataExt::ino(&it)).unwrap()
    );
}

#[test]
fn hybrid_takes_usage_and_pressure_from_unified_and_the_rest_from_v1() {
    let root = tempfile::tempdir().unwrap();
    let at = |name: &str| root.path().join(name);
    put(&at("unified"), "a/cpu.stat", "usage_usec 10\n");
    put(&at("cpu"), "a/cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 5000\nnr_bursts 1\nburst_time 3000\n");
    put(&at("memory"), "a/memory.usage_in_bytes", "5000\n");
    put(&at("memory"), "a/memory.limit_in_bytes", "9223372036854771712\n");
    put(
        &at("memory"),
        "a/memory.stat",
        "cache 1\nrss 2\ntotal_cache 3000\ntotal_rss 1000\ntotal_inactive_file 2000\ntotal_active_file 4000\n",
    );
    put(&at("memory"), "a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
    let controllers = ["cpu", "memory"].map(|name| (name.to_owned(), at(name))).into();
    let layout = CgroupLayout::Hybrid { unified: at("unified"), controllers };
    let cgroup = Cgroup::open(&layout, Path::new("a")).unwrap().unwrap();
    let mut buffer = Buffer::default();
    let cpu = cgroup.cpu(&mut buffer).unwrap();
    assert_eq!((cpu.usage_us, cpu.nr_periods, cpu.throttled_us, cpu.burst_us), (Some(10), Some(7), Some(5), Some(3)));
    let memory = cgroup.memory(&mut buffer).unwrap();
    assert_eq!((memory.usage, memory.limit, memory.anon, memory.oom_kills), (Some(5000), None, Some(1000), Some(3)));
    assert_eq!(memory.unreclaimable(), Some(0), "more page cache than usage is no negative number");
    assert_eq!(cgroup.tasks(&mut buffer).unwrap(), None);
    assert_eq!(layout.directory("pids", Path::new("a")), None);
}

#[test]
fn a_cgroup_that_goes_away_is_none_and_a_new_one_of_its_name_is_not_mistaken_for_it() {
    let root = tempfile::tempdir().unwrap();
    let (cgroup, mut buffer) = (v2(root.path()), Buffer::default());
    assert!(cgroup.exists());
    fs::rename(root.path().join("pods/a"), root.path().join("moved")).unwrap();
    assert!(!cgroup.exists());
    fs::remove_dir_all(root.path().join("moved")).unwrap();
    put(root.path(), "pods/a/memory.current", "1\n");
    assert!(!cgroup.exists());
    assert_eq!(cgroup.memory(&mut buffer).unwrap(), MemoryReading::default());
    assert_eq!(cgroup.processes(&mut buffer).unwrap(), None);
    let layout = CgroupLayout::V2 { root: root.path().to_owned() };
    assert!(Cgroup::open(&layout, Path::new("pods/none")).unwrap().is_none());
}

#[test]
fn a_malformed_file_is_an_error_that_names_file_and_line() {
    let root = tempfile::tempdir().unwrap();
    let cgroup = v2(root.path());
    put(root.path(), "pods/a/memory.current", "lots\n");
    let error = cgroup.memory(&mut Buffer::default()).unwrap_err().to_string();
    assert!(error.ends_with("pods/a/memory.current: malformed line \"lots\""), "{error}");
}

#[test]
fn a_long_file_is_read_whole_and_a_short_one_after_it_has_no_rest_of_it() {
    let root = tempfile::tempdir().unwrap();
    let (cgroup, mut buffer) = (v2(root.path()), Buffer::default());
    let pids: String = (1..=20_000).map(|pid| format!("{pid}\n")).collect();
    put(root.path(), "pods/a/cgroup.procs", &pids);
    assert_eq!(cgroup.processes(&mut buffer).unwrap().unwrap().len(), 20_000);
    put(root.path(), "pods/a/cgroup.procs", "1\n");
    assert_eq!(cgroup.processes(&mut buffer).unwrap().unwrap(), [1]);
}
