//! Both layouts, on folders of files as kernels show them, and on real cgroups where this user may make them.

use std::fs;

use beelet_core::sample::{CgroupReading, CpuReading, MemoryMore, MemoryReading, Pressure, PressureReading, Stall};
use beelet_core::telemetry::{CgroupLimits, Device, DeviceIo};
use beelet_core::units::{Bytes, Micros};

use super::*;

fn put(root: &Path, file: &str, text: &str) {
    let path = root.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

const STAT: &str = "anon 500000\nfile 400000\nkernel 50000\nkernel_stack 16384\npagetables 8192\nsec_pagetables 0\npercpu 3\n\
    sock 4096\nshmem 11\nfile_mapped 12\nfile_dirty 13\nfile_writeback 14\ninactive_anon 0\nactive_anon 500000\n\
    inactive_file 200000\nactive_file 100000\nunevictable 15\nslab_reclaimable 20000\nslab_unreclaimable 7\n\
    workingset_refault_anon 16\nworkingset_refault_file 17\npgscan 18\npgsteal 19\npgfault 20\npgmajfault 21\n";
const PRESSURE: &str =
    "some avg10=0.10 avg60=0.20 avg300=100.00 total=12\nfull avg10=0.01 avg60=0.02 avg300=0.03 total=3\n";

fn v2(root: &Path) -> Cgroup {
    put(
        root,
        "pods/a/cpu.stat",
        "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 1\nthrottled_usec 9\nnr_bursts 2\nburst_usec 8\n",
    );
    put(root, "pods/a/memory.current", "1000000\n");
    put(root, "pods/a/memory.max", "max\n");
    put(root, "pods/a/memory.high", "900000\n");
    put(root, "pods/a/memory.peak", "1100000\n");
    put(root, "pods/a/memory.swap.current", "22\n");
    put(root, "pods/a/memory.swap.max", "23\n");
    put(root, "pods/a/memory.stat", STAT);
    put(root, "pods/a/memory.events", "low 0\nhigh 4\nmax 5\noom 1\noom_kill 2\noom_group_kill 0\n");
    put(root, "pods/a/memory.pressure", PRESSURE);
    put(root, "pods/a/cpu.pressure", &PRESSURE.replace("total=12", "total=100"));
    put(root, "pods/a/io.pressure", &PRESSURE.replace("total=12", "total=200"));
    put(root, "pods/a/cgroup.procs", "12\n3456\n");
    put(root, "pods/a/pids.current", "2\n");
    put(
        root,
        "pods/a/io.stat",
        "254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=6 rios=7 wios=8\n",
    );
    Cgroup::open(&CgroupLayout::V2 { root: root.to_owned() }, Path::new("pods/a")).unwrap().unwrap()
}

fn hybrid(root: &Path) -> (CgroupLayout, Cgroup) {
    let at = |name: &str| root.join(name);
    put(&at("unified"), "a/cpu.stat", "usage_usec 10\nuser_usec 6\nsystem_usec 4\n");
    put(&at("unified"), "a/memory.pressure", PRESSURE);
    put(&at("cpu"), "a/cpu.stat", "nr_periods 7\nnr_throttled 2\nthrottled_time 5000\nnr_bursts 1\nburst_time 3000\n");
    put(&at("memory"), "a/memory.usage_in_bytes", "5000\n");
    put(&at("memory"), "a/memory.limit_in_bytes", "9223372036854771712\n");
    put(&at("memory"), "a/memory.memsw.limit_in_bytes", "9223372036854771712\n");
    put(&at("memory"), "a/memory.max_usage_in_bytes", "6000\n");
    put(&at("memory"), "a/memory.kmem.usage_in_bytes", "400\n");
    put(&at("memory"), "a/memory.failcnt", "9\n");
    put(
        &at("memory"),
        "a/memory.stat",
        "cache 1\nrss 2\nrss_huge 0\nshmem 0\nmapped_file 0\nswap 0\npgfault 0\nhierarchical_memory_limit 9\ntotal_cache 3000\n\
         total_rss 1000\ntotal_rss_huge 5\ntotal_shmem 30\ntotal_mapped_file 31\ntotal_dirty 32\ntotal_writeback 33\n\
         total_workingset_refault_anon 34\ntotal_workingset_refault_file 35\ntotal_swap 36\ntotal_pgpgin 1\ntotal_pgfault 37\n\
         total_pgmajfault 38\ntotal_inactive_file 2000\ntotal_active_file 4000\ntotal_unevictable 39\n",
    );
    put(&at("memory"), "a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
    put(
        &at("blkio"),
        "a/blkio.throttle.io_service_bytes_recursive",
        "254:0 Read 1\n254:0 Write 2\n254:0 Sync 3\n254:0 Async 0\n254:0 Discard 0\n254:0 Total 3\nTotal 3\n",
    );
    put(&at("blkio"), "a/blkio.throttle.io_serviced_recursive", "254:0 Read 3\n254:0 Write 4\nTotal 7\n");
    let controllers = ["cpu", "memory", "blkio"].map(|name| (name.to_owned(), at(name))).into();
    let layout = CgroupLayout::Hybrid { unified: at("unified"), controllers };
    let cgroup = Cgroup::open(&layout, Path::new("a")).unwrap().unwrap();
    (layout, cgroup)
}

fn stalls(total: u64) -> Pressure {
    Pressure {
        some: Stall { total: Micros(total), avg10: 10, avg60: 20, avg300: 10_000 },
        full: Stall { total: Micros(3), avg10: 1, avg60: 2, avg300: 3 },
    }
}

#[test]
fn a_kill_of_a_whole_cgroup_counts_once() {
    let root = tempfile::tempdir().unwrap();
    let (mut cgroup, mut buffer) = (v2(root.path()), Buffer::default());
    assert_eq!(cgroup.memory(&mut buffer).unwrap().unwrap().oom_kills, Some(2));
    // A lone process in a cgroup with memory.oom.group: Linux 6.12.
    put(root.path(), "pods/a/memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\noom_group_kill 1\n");
    assert_eq!(cgroup.memory(&mut buffer).unwrap().unwrap().oom_kills, Some(1));
}

#[test]
fn every_field_of_v2_is_read() {
    let root = tempfile::tempdir().unwrap();
    let (mut cgroup, mut buffer, mut it) = (v2(root.path()), Buffer::default(), CgroupReading::default());
    assert!(cgroup.read(Depth::All, &mut buffer, &mut it).unwrap());
    let (bytes, us) = (|n| Some(Bytes(n)), |n| Some(Micros(n)));
    let cpu = CpuReading {
        usage: us(1_500),
        user: us(1_000),
        system: us(500),
        periods: Some(3),
        throttled_periods: Some(1),
        throttled: us(9),
        bursts: Some(2),
        burst: us(8),
        ..CpuReading::default()
    };
    let more = MemoryMore {
        file: bytes(400_000),
        mapped_file: bytes(12),
        dirty: bytes(13),
        writeback: bytes(14),
        unevictable: bytes(15),
        kernel: bytes(50_000),
        kernel_stack: bytes(16_384),
        page_tables: bytes(8_192),
        percpu: bytes(3),
        sock: bytes(4_096),
        slab_unreclaimable: bytes(7),
        swap: bytes(22),
        swap_limit: bytes(23),
        peak: bytes(1_100_000),
        high: bytes(900_000),
        page_faults: Some(20),
        major_faults: Some(21),
        refaults_file: Some(17),
        refaults_anon: Some(16),
        scanned: Some(18),
        stolen: Some(19),
        high_events: Some(4),
        max_events: Some(5),
        oom_events: Some(1),
    };
    let memory = MemoryReading {
        usage: Bytes(1_000_000),
        inactive_file: Bytes(200_000),
        active_file: Bytes(100_000),
        anon: Bytes(500_000),
        shmem: Bytes(11),
        slab_reclaimable: Bytes(20_000),
        limit: None,
        oom_kills: Some(2),
        more,
    };
    assert_eq!(memory.unreclaimable(), Bytes(680_000));
    let pressure = PressureReading { cpu: stalls(100), memory: stalls(12), io: stalls(200) };
    let expected = CgroupReading {
        id: cgroup.id(),
        at: Micros::ZERO,
        cpu: Some(cpu),
        memory: Some(memory),
        pressure: Some(pressure),
        pids: Some(2),
    };
    assert_eq!(it, expected);
    assert_eq!(cgroup.processes(&mut buffer).unwrap().unwrap(), [12, 3456]);
    let inode = fs::metadata(root.path().join("pods/a")).map(|it| std::os::unix::fs::MetadataExt::ino(&it)).unwrap();
    assert_eq!((cgroup.id(), cgroup.io_id()), (inode, Some(inode)));
}

#[test]
fn hybrid_takes_usage_and_pressure_from_unified_and_the_rest_from_v1() {
    let root = tempfile::tempdir().unwrap();
    let (layout, mut cgroup) = hybrid(root.path());
    let (mut buffer, mut it) = (Buffer::default(), CgroupReading::default());
    assert!(cgroup.read(Depth::All, &mut buffer, &mut it).unwrap());
    let (bytes, us) = (|n| Some(Bytes(n)), |n| Some(Micros(n)));
    let cpu = CpuReading {
        usage: us(10),
        user: us(6),
        system: us(4),
        periods: Some(7),
        throttled_periods: Some(2),
        throttled: us(5),
        bursts: Some(1),
        burst: us(3),
        ..CpuReading::default()
    };
    let more = MemoryMore {
        file: bytes(3_000),
        mapped_file: bytes(31),
        dirty: bytes(32),
        writeback: bytes(33),
        unevictable: bytes(39),
        kernel: bytes(400),
        swap: bytes(36),
        peak: bytes(6_000),
        page_faults: Some(37),
        major_faults: Some(38),
        refaults_file: Some(35),
        refaults_anon: Some(34),
        max_events: Some(9),
        ..MemoryMore::default()
    };
    let memory = MemoryReading {
        usage: Bytes(5_000),
        inactive_file: Bytes(2_000),
        active_file: Bytes(4_000),
        anon: Bytes(1_000),
        shmem: Bytes(30),
        slab_reclaimable: Bytes::ZERO,
        limit: None,
        oom_kills: Some(3),
        more,
    };
    assert_eq!(memory.unreclaimable(), Bytes::ZERO, "more page cache than usage is no negative number");
    let pressure = PressureReading { memory: stalls(12), ..PressureReading::default() };
    let expected = CgroupReading {
        id: cgroup.id(),
        cpu: Some(cpu),
        memory: Some(memory),
        pressure: Some(pressure),
        ..CgroupReading::default()
    };
    assert_eq!(it, expected, "pids has no hierarchy here");
    let blkio = fs::metadata(root.path().join("blkio/a")).map(|it| std::os::unix::fs::MetadataExt::ino(&it)).unwrap();
    assert_eq!(cgroup.io_id(), Some(blkio));
    assert_eq!(layout.directory("pids", Path::new("a")), None);
}

#[test]
fn limits_are_told_in_the_terms_of_both_layouts() {
    let root = tempfile::tempdir().unwrap();
    let mut cgroup = v2(root.path());
    put(root.path(), "pods/a/cpu.weight", "100\n");
    put(root.path(), "pods/a/cpu.max", "50000 100000\n");
    put(root.path(), "pods/a/memory.min", "4096\n");
    put(root.path(), "pods/a/pids.max", "max\n");
    let mut buffer = Buffer::default();
    let limits = CgroupLimits {
        made: Some(cgroup.made()),
        cpu_shares: Some(2_597),
        cpu_quota: Some(Micros(50_000)),
        cpu_period: Some(Micros(100_000)),
        memory_reservation: Some(Bytes(4_096)),
        pids_max: Some(u64::MAX),
    };
    assert_eq!(cgroup.limits(&mut buffer).unwrap(), limits);
    put(root.path(), "pods/a/cpu.max", "max 100000\n");
    assert_eq!(cgroup.limits(&mut buffer).unwrap().cpu_quota, None);
    let age = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
        - cgroup.made().0 / 1_000_000;
    assert!(age < 60, "made {age} s ago");
    let (_, mut cgroup) = hybrid(root.path());
    put(root.path(), "cpu/a/cpu.shares", "512\n");
    put(root.path(), "cpu/a/cpu.cfs_quota_us", "-1\n");
    put(root.path(), "cpu/a/cpu.cfs_period_us", "100000\n");
    put(root.path(), "memory/a/memory.soft_limit_in_bytes", "9223372036854771712\n");
    let limits = CgroupLimits {
        made: Some(cgroup.made()),
        cpu_shares: Some(512),
        cpu_quota: None,
        cpu_period: Some(Micros(100_000)),
        memory_reservation: Some(Bytes(u64::MAX)),
        pids_max: None,
    };
    assert_eq!(cgroup.limits(&mut buffer).unwrap(), limits);
}

#[test]
fn the_limit_of_swap_is_what_v1_allows_beyond_memory() {
    let root = tempfile::tempdir().unwrap();
    let (_, mut cgroup) = hybrid(root.path());
    put(root.path(), "memory/a/memory.limit_in_bytes", "4096\n");
    put(root.path(), "memory/a/memory.memsw.limit_in_bytes", "12288\n");
    let memory = cgroup.memory(&mut Buffer::default()).unwrap().unwrap();
    assert_eq!((memory.limit, memory.more.swap_limit), (Some(Bytes(4_096)), Some(Bytes(8_192))));
}

#[test]
fn a_hierarchy_without_totals_tells_of_the_cgroup_alone() {
    let root = tempfile::tempdir().unwrap();
    let (_, mut cgroup) = hybrid(root.path());
    put(root.path(), "memory/a/memory.stat", "cache 1\nrss 2\ninactive_file 3\nactive_file 4\n");
    let memory = cgroup.memory(&mut Buffer::default()).unwrap().unwrap();
    assert_eq!((memory.anon, memory.inactive_file, memory.active_file), (Bytes(2), Bytes(3), Bytes(4)));
}

#[test]
fn devices_are_told_by_name_on_both_layouts() {
    let root = tempfile::tempdir().unwrap();
    put(root.path(), "block/254:0/uevent", "MAJOR=254\nMINOR=0\nDEVNAME=vda\nDEVTYPE=disk\n");
    let mut devices = Devices::at(&root.path().join("block"));
    let device = |major, minor, name: &str| Device { major, minor, name: name.to_owned() };
    let vda = DeviceIo { device: device(254, 0, "/dev/vda"), read_bytes: 1, write_bytes: 2, reads: 3, writes: 4 };
    let nameless = DeviceIo { device: device(8, 16, ""), read_bytes: 5, write_bytes: 6, reads: 7, writes: 8 };
    let mut buffer = Buffer::default();
    let mut cgroup = v2(&root.path().join("v2"));
    assert_eq!(cgroup.io(&mut buffer, &mut devices).unwrap(), [nameless, vda.clone()]);
    let (_, mut cgroup) = hybrid(&root.path().join("v1"));
    assert_eq!(cgroup.io(&mut buffer, &mut devices).unwrap(), [vda]);
    fs::remove_dir_all(root.path().join("block")).unwrap();
    assert_eq!(devices.get(254, 0).name, "/dev/vda", "remembered");
    devices.forget();
    assert_eq!(devices.get(254, 0).name, "");
}

#[test]
fn what_is_missing_is_none_and_is_found_when_it_comes() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("a")).unwrap();
    let layout = CgroupLayout::V2 { root: root.path().to_owned() };
    let mut cgroup = Cgroup::open(&layout, Path::new("a")).unwrap().unwrap();
    let (mut buffer, mut it) = (Buffer::default(), CgroupReading::default());
    let mut read = |cgroup: &mut Cgroup| {
        assert!(cgroup.read(Depth::Decide { stat: true, quota: true }, &mut buffer, &mut it).unwrap());
        it
    };
    let nothing = read(&mut cgroup);
    assert_eq!((nothing.memory, nothing.pressure, nothing.pids), (None, None, None));
    assert_eq!(nothing.cpu, Some(CpuReading::default()));
    put(root.path(), "a/pids.current", "7\n");
    assert_eq!(read(&mut cgroup).pids, None, "not at each reading");
    assert_eq!(read(&mut cgroup).pids, Some(7));
}

#[test]
fn a_shallow_reading_leaves_the_rest_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let (mut cgroup, mut buffer, mut it) = (v2(root.path()), Buffer::default(), CgroupReading::default());
    it.id = cgroup.id();
    it.cpu = Some(CpuReading { run: Some(Micros(77)), ..CpuReading::default() });
    cgroup.read(Depth::All, &mut buffer, &mut it).unwrap();
    assert_eq!(it.cpu.unwrap().run, Some(Micros(77)), "what eBPF told is not the files'");
    put(root.path(), "pods/a/memory.peak", "1200000\n");
    put(root.path(), "pods/a/memory.stat", &STAT.replace("anon 500000", "anon 500001"));
    let mut decide = |stat, cgroup: &mut Cgroup| {
        cgroup.read(Depth::Decide { stat, quota: false }, &mut buffer, &mut it).unwrap();
        it.memory.unwrap()
    };
    let memory = decide(false, &mut cgroup);
    assert_eq!((memory.more.peak, memory.anon), (Some(Bytes(1_100_000)), Bytes(500_000)));
    assert_eq!(decide(true, &mut cgroup).anon, Bytes(500_001));
    put(root.path(), "pods/a/memory.stat", &STAT.replace("anon 500000", "anon 500002"));
    put(root.path(), "pods/a/memory.current", "1000001\n");
    assert_eq!(decide(false, &mut cgroup).anon, Bytes(500_002), "another usage is another composition");
}

#[test]
fn who_has_no_quota_is_asked_for_throttling_only_when_told() {
    let root = tempfile::tempdir().unwrap();
    let (_, mut cgroup) = hybrid(root.path());
    let (mut buffer, mut it) = (Buffer::default(), CgroupReading::default());
    let mut periods = |quota, text: &str| {
        put(root.path(), "cpu/a/cpu.stat", text);
        cgroup.read(Depth::Decide { stat: false, quota }, &mut buffer, &mut it).unwrap();
        it.cpu.unwrap().periods
    };
    let none = "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n";
    assert_eq!(periods(false, none), Some(0), "the first time");
    assert_eq!(periods(false, &none.replace("periods 0", "periods 1")), Some(0));
    assert_eq!(periods(true, &none.replace("periods 0", "periods 2")), Some(2));
    assert_eq!(periods(false, &none.replace("periods 0", "periods 3")), Some(3));
}

#[test]
fn a_new_cgroup_of_the_same_name_is_not_mistaken_for_the_old() {
    let root = tempfile::tempdir().unwrap();
    let (mut cgroup, mut buffer) = (v2(root.path()), Buffer::default());
    assert!(cgroup.exists());
    fs::rename(root.path().join("pods/a"), root.path().join("moved")).unwrap();
    fs::remove_dir_all(root.path().join("moved")).unwrap();
    assert!(!cgroup.exists());
    put(root.path(), "pods/a/memory.current", "1\n");
    put(root.path(), "pods/a/cpu.stat", "usage_usec 1\n");
    assert!(!cgroup.exists());
    let mut it = CgroupReading { pids: Some(5), ..CgroupReading::default() };
    it.id = cgroup.id();
    assert!(!cgroup.read(Depth::All, &mut buffer, &mut it).unwrap());
    assert_eq!((it.cpu, it.pids), (None, Some(5)), "nothing is changed");
    assert_eq!(cgroup.memory(&mut buffer).unwrap(), None);
    assert_eq!(cgroup.processes(&mut buffer).unwrap(), None);
    let layout = CgroupLayout::V2 { root: root.path().to_owned() };
    assert!(Cgroup::open(&layout, Path::new("pods/none")).unwrap().is_none());
}

#[test]
fn a_malformed_file_is_an_error_that_names_file_and_line_and_the_others_are_read() {
    let root = tempfile::tempdir().unwrap();
    let (mut cgroup, mut it) = (v2(root.path()), CgroupReading::default());
    put(root.path(), "pods/a/memory.current", "lots\n");
    let error = cgroup.read(Depth::All, &mut Buffer::default(), &mut it).unwrap_err().to_string();
    assert!(error.ends_with("pods/a/memory.current: malformed line \"lots\""), "{error}");
    assert_eq!((it.memory, it.pids, it.cpu.unwrap().usage), (None, Some(2), Some(Micros(1_500))));
}

#[test]
fn a_long_file_is_read_whole_and_a_short_one_after_it_has_no_rest_of_it() {
    let root = tempfile::tempdir().unwrap();
    let (mut cgroup, mut buffer) = (v2(root.path()), Buffer::default());
    let pids: String = (1..=20_000).map(|pid| format!("{pid}\n")).collect();
    put(root.path(), "pods/a/cgroup.procs", &pids);
    assert_eq!(cgroup.processes(&mut buffer).unwrap().unwrap().len(), 20_000);
    put(root.path(), "pods/a/cgroup.procs", "1\n");
    assert_eq!(cgroup.processes(&mut buffer).unwrap().unwrap(), [1]);
    let long = format!("{STAT}{}", "padding 1\n".repeat(2_000));
    put(root.path(), "pods/a/memory.stat", &long);
    assert_eq!(cgroup.memory(&mut Buffer::default()).unwrap().unwrap().anon, Bytes(500_000));
}

#[test]
fn children_are_counted_by_links() {
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let cgroup = v2(root.path());
    assert_eq!(cgroup.children(), Some(0));
    fs::create_dir(root.path().join("pods/a/b")).unwrap();
    assert_eq!(cgroup.children(), Some(1));
}

/// A cgroup of our own in every hierarchy of this machine, removed at the end.
struct Real {
    layout: CgroupLayout,
    name: PathBuf,
}

impl Real {
    /// `None`, and says so, where none can be made.
    fn make(test: &str) -> Option<Self> {
        let layout = CgroupLayout::detect().ok()?;
        let real = Self { name: PathBuf::from(format!("beelet-test-{test}-{}", std::process::id())), layout };
        for directory in real.directories() {
            if let Err(error) = fs::create_dir(&directory) {
                eprintln!("{test} cannot run here: {} cannot be made: {error}", directory.display());
                return None;
            }
        }
        Some(real)
    }

    fn directories(&self) -> std::collections::BTreeSet<PathBuf> {
        let v1 = files::CONTROLLERS.iter().filter_map(|name| self.layout.directory(name, &self.name));
        v1.chain([self.layout.unified().join(&self.name)]).collect()
    }

    fn remove(&self) {
        for directory in self.directories() {
            let _ = fs::remove_dir(directory);
        }
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn a_real_cgroup_is_read_until_it_is_gone() {
    let Some(real) = Real::make("life") else { return };
    let mut cgroup = Cgroup::open(&real.layout, &real.name).unwrap().unwrap();
    let (mut buffer, mut it) = (Buffer::default(), CgroupReading::default());
    assert!(cgroup.read(Depth::All, &mut buffer, &mut it).unwrap());
    assert!(it.cpu.is_some_and(|cpu| cpu.usage.is_some()), "{it:?}");
    assert_eq!(cgroup.children(), Some(0));
    assert!(cgroup.io_id().is_some());
    let before = it;
    real.remove();
    assert!(!cgroup.read(Depth::All, &mut buffer, &mut it).unwrap(), "it is gone");
    assert_eq!(it, before);
}
