//! On folders of files as kernels show them.

use std::fs;

use beelet_core::units::Bytes;

use super::super::owners::REMEMBERED;
use super::*;
use crate::kernel::listeners::ListenPort;

struct Bed {
    root: tempfile::TempDir,
    pods: Pods,
    counters: Counters,
    buffer: Buffer,
    network: Parts<NetworkPart>,
    cost: Cost,
}

impl Bed {
    fn new() -> Self {
        // A file system that counts links as cgroups do.
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self {
            pods: Pods::new(CgroupLayout::V2 { root: root.path().to_owned() }),
            root,
            counters: Counters::default(),
            buffer: Buffer::default(),
            network: Parts::new(),
            cost: Cost::default(),
        }
    }

    fn cgroup(&self, path: &str, ran: u64) {
        let path = self.root.path().join(path);
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("cpu.stat"), format!("usage_usec {ran}\n")).unwrap();
        fs::write(path.join("memory.current"), "5\n").unwrap();
        fs::write(path.join("memory.stat"), "anon 1\ninactive_file 2\nactive_file 3\n").unwrap();
    }

    fn aim(&mut self, targets: Vec<Target>) {
        self.pods.aim(targets, &mut self.counters);
        self.scan();
    }

    fn scan(&mut self) {
        self.pods.scan(Clock.now().mono, true);
    }

    fn read(&mut self, details: bool, only: Option<&BTreeSet<PodUid>>) -> Vec<PodReading> {
        let mut look = Look {
            clock: Clock,
            counters: &mut self.counters,
            tables_at: Micros::ZERO,
            buffer: &mut self.buffer,
            devices: &mut Devices::default(),
            network: &self.network,
            storage: &Parts::new(),
            drop_reasons: &DropReasons::default(),
            mode: Mode::Calm,
            details,
            only,
            stretch: 1_000,
            cost: Cost::default(),
            visit: Vec::new(),
        };
        let readings = self.pods.read(&mut look);
        self.cost = look.cost;
        readings
    }
}

fn target(uid: &str, containers: &[&str]) -> Target {
    Target {
        uid: uid.into(),
        cgroup: format!("kubepods/{uid}"),
        containers: containers.iter().map(|name| (format!("id{name}"), (*name).to_owned())).collect(),
        host_network: false,
        logs: String::new(),
    }
}

/// A pod with a sandbox and two containers.
fn a_pod(bed: &mut Bed) {
    for path in ["", "/idpause", "/idapp", "/cri-containerd-idside.scope"] {
        bed.cgroup(&format!("kubepods/u{path}"), 10);
    }
    bed.aim(vec![target("u", &["app", "side"])]);
}

#[test]
fn the_ids_of_pods_that_are_gone_are_forgotten_at_last() {
    let mut bed = Bed::new();
    for batch in 0..42 {
        let targets: Vec<Target> = (0..100).map(|n| target(&format!("pod-{batch}-{n}"), &[])).collect();
        for target in &targets {
            fs::create_dir_all(bed.root.path().join(&target.cgroup)).unwrap();
        }
        bed.aim(targets);
    }
    bed.aim(Vec::new());
    assert_eq!(bed.pods.owners.len(), REMEMBERED);
}

#[test]
fn who_watches_memory_events_hears_of_the_pods_cgroup_and_of_those_in_it_once() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    let born = |bed: &mut Bed| {
        let mut paths: Vec<PathBuf> = bed.pods.take_born().into_iter().map(|(_, path)| path).collect();
        paths.sort();
        paths
    };
    let all =
        ["", "/cri-containerd-idside.scope", "/idapp", "/idpause"].map(|p| PathBuf::from(format!("kubepods/u{p}")));
    assert_eq!(born(&mut bed), all);
    bed.scan();
    assert!(born(&mut bed).is_empty());
}

#[test]
fn containers_have_their_names_and_the_rest_is_the_sandbox() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    let pod = &bed.read(true, None)[0];
    let names: Vec<(&str, &str)> = pod.containers.iter().map(|c| (c.name.as_str(), c.id.as_str())).collect();
    assert_eq!(names, [("side", "idside"), ("app", "idapp")]);
    assert_eq!(pod.sandbox.unwrap().memory.unwrap().usage, Bytes(5));
    let detail = pod.containers[0].detail.as_ref().unwrap();
    assert!(detail.at > Micros::ZERO && detail.wait.is_none() && detail.limits.is_some());
    assert!(pod.cgroup_detail.is_some() && pod.detail.is_some());
    assert_eq!(pod.network, None, "no program counts it");
    assert_eq!(bed.cost, Cost { pods: 1, read: 4, held: 0, details: 1 });
}

#[test]
fn a_container_without_a_name_is_not_taken_for_the_sandbox() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    bed.cgroup("kubepods/u/idnew", 1);
    bed.scan();
    bed.cgroup("kubepods/u", 11);
    let pod = &bed.read(true, None)[0];
    let pause = bed.pods.pods[&PodUid::from("u")].tree.children["idpause"].watched.id();
    assert_eq!((pod.sandbox.unwrap().id, pod.containers.len()), (pause, 2));
    bed.aim(vec![target("u", &["app", "side", "new"])]);
    bed.cgroup("kubepods/u", 12);
    assert_eq!(bed.read(false, None)[0].containers.len(), 3);
}

#[test]
fn pods_that_sleep_cost_one_file_and_keep_their_moment() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    let first = bed.read(true, None)[0].clone();
    bed.read(false, None);
    let before = bed.buffer.reads();
    let held = bed.read(false, None)[0].clone();
    assert_eq!(bed.buffer.reads() - before, 1);
    assert_eq!(bed.cost, Cost { pods: 1, read: 0, held: 4, details: 0 });
    assert!(held.cgroup.at > first.cgroup.at, "one reading more, so that rates fall to 0");
    bed.cgroup("kubepods/u", 20);
    bed.cgroup("kubepods/u/idapp", 20);
    let ran = bed.read(false, None)[0].clone();
    let at = |pod: &PodReading, name: &str| pod.containers.iter().find(|c| c.name == name).unwrap().cgroup.at;
    assert!(at(&ran, "app") > at(&held, "app"));
    assert_eq!(at(&ran, "side"), at(&held, "side"), "it did not run");
}

#[test]
fn details_of_a_container_that_sleeps_and_of_the_sandbox_are_kept_for_a_while() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    bed.read(true, None);
    bed.cgroup("kubepods/u", 20);
    bed.cgroup("kubepods/u/idapp", 20);
    let before = bed.read(false, None)[0].clone();
    bed.cgroup("kubepods/u", 30);
    bed.cgroup("kubepods/u/idapp", 30);
    bed.pods.pods.get_mut(&PodUid::from("u")).unwrap().detail_due = Micros::ZERO;
    let after = bed.read(true, None)[0].clone();
    let same = |name: &str| {
        let of = |pod: &PodReading| pod.containers.iter().find(|c| c.name == name).unwrap().detail.clone().unwrap();
        Arc::ptr_eq(&of(&before), &of(&after))
    };
    assert_eq!((same("app"), same("side")), (false, true));
    assert_eq!(before.sandbox.unwrap().at, after.sandbox.unwrap().at);
}

#[test]
fn a_pod_has_the_sum_of_the_open_files_of_its_containers() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    bed.cgroup("kubepods/u/idapp/inner", 0);
    let put = |bed: &Bed, path: &str, text: &str| {
        fs::write(bed.root.path().join("kubepods/u").join(path).join("cgroup.procs"), text).unwrap();
    };
    let me = std::process::id();
    put(&bed, "idpause", "");
    put(&bed, "cri-containerd-idside.scope", &format!("{me}\n"));
    put(&bed, "idapp", "");
    put(&bed, "idapp/inner", &format!("{me}\n"));
    bed.scan();
    let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let pod = &bed.read(true, None)[0];
    let of = |name: &str| pod.containers.iter().find(|c| c.name == name).unwrap().detail.clone().unwrap();
    let (app, side, all) = (of("app"), of("side"), pod.cgroup_detail.clone().unwrap());
    assert!(app.open_files.unwrap() > 2 && app.sockets.unwrap() >= 1, "its own process is in a cgroup below it");
    assert_eq!(all.open_files, Some(app.open_files.unwrap() + side.open_files.unwrap()));
    assert_eq!(all.sockets, Some(app.sockets.unwrap() + side.sockets.unwrap()));
    assert!(all.open_files_limit.is_some() && all.open_files_limit == side.open_files_limit);
    // What is not known of one is not known of all.
    fs::remove_file(bed.root.path().join("kubepods/u/idapp/cgroup.procs")).unwrap();
    bed.pods.pods.get_mut(&"u".into()).unwrap().detail_due = Micros::ZERO;
    bed.cgroup("kubepods/u", 20);
    bed.cgroup("kubepods/u/idapp", 20);
    let pod = &bed.read(true, None)[0];
    let app = pod.containers.iter().find(|c| c.name == "app").unwrap().detail.clone().unwrap();
    assert_eq!((app.open_files, pod.cgroup_detail.clone().unwrap().open_files), (None, None));
}

#[test]
fn only_the_pods_that_are_asked_for_are_read_and_all_are_told() {
    let mut bed = Bed::new();
    for uid in ["u", "v"] {
        bed.cgroup(&format!("kubepods/{uid}"), 1);
    }
    bed.aim(vec![target("u", &[]), target("v", &[])]);
    bed.read(true, None);
    bed.cgroup("kubepods/u", 2);
    bed.cgroup("kubepods/v", 2);
    let pods = bed.read(false, Some(&["v".into()].into()));
    let ran: Vec<u64> = pods.iter().map(|pod| pod.cgroup.cpu.unwrap().usage.unwrap().0).collect();
    assert_eq!(ran, [1, 2]);
}

#[test]
fn a_container_that_begins_to_run_is_found_though_nobody_told() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    for _ in 0..3 {
        bed.read(false, None);
    }
    bed.cgroup("kubepods/u/idnew", 1);
    bed.pods.scan(Clock.now().mono, false);
    let known = |bed: &Bed| bed.pods.pods[&PodUid::from("u")].tree.children.len();
    bed.read(false, None);
    assert_eq!(known(&bed), 3, "nothing ran");
    bed.cgroup("kubepods/u", 11);
    bed.read(false, None);
    assert_eq!(known(&bed), 4);
}

#[test]
fn cgroups_below_a_container_are_its_own() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    bed.cgroup("kubepods/u/idapp/init.scope", 1);
    bed.cgroup("kubepods/u/idapp/system.slice/x.service", 1);
    bed.scan();
    let id = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(bed.root.path().join(path)).unwrap().ino()
    };
    let deep = id("kubepods/u/idapp/system.slice/x.service");
    assert_eq!(bed.pods.owner(deep), Some(("u".into(), Some("app".to_owned()), true)));
    let inner = |bed: &Bed| bed.pods.pods[&PodUid::from("u")].tree.children["idapp"].inner.len();
    assert_eq!(inner(&bed), 3);
    fs::remove_dir_all(bed.root.path().join("kubepods/u/idapp/system.slice")).unwrap();
    bed.scan();
    assert_eq!(inner(&bed), 1);
    assert!(bed.pods.owner(deep).is_some(), "events come late");
}

#[test]
fn a_pod_whose_cgroup_goes_and_comes_is_read_anew() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    let before = bed.read(false, None)[0].cgroup.id;
    fs::rename(bed.root.path().join("kubepods/u"), bed.root.path().join("old")).unwrap();
    fs::remove_file(bed.root.path().join("old/cpu.stat")).unwrap();
    // An open file of a tmpfs outlives its name; a cgroup's does not.
    bed.pods.pods.get_mut(&PodUid::from("u")).unwrap().tree.own.as_mut().unwrap().close();
    assert_eq!(bed.read(false, None), []);
    bed.cgroup("kubepods/u", 1);
    bed.scan();
    let pod = &bed.read(false, None)[0];
    assert!(pod.cgroup.id != before && pod.containers.is_empty());
}

#[test]
fn listening_ports_are_those_of_the_last_visit_and_what_the_kernel_told_since() {
    let mut bed = Bed::new();
    a_pod(&mut bed);
    assert_eq!(bed.read(false, None)[0].listening, None, "nobody has looked yet");
    let uid = PodUid::from("u");
    let listeners = [80, 443].map(|port| ListenPort { port, waiting: 1, most: Some(128) }).to_vec();
    let part = NetworkPart { at: Micros(1_000), listeners, ..NetworkPart::default() };
    bed.network.insert(uid.clone(), Arc::new(part));
    bed.pods.listen(&uid, Micros(999), 1, true);
    bed.pods.listen(&uid, Micros(1_001), 8080, true);
    bed.pods.listen(&uid, Micros(1_002), 443, false);
    assert_eq!(bed.read(true, None)[0].listening, Some([80, 8080].into()));
    let ports = bed.read(false, None)[0].detail.clone().unwrap().ports.clone();
    assert_eq!((ports.len(), ports[0].port, ports[0].backlog_max), (2, 80, Some(128)));
    let again = NetworkPart { at: Micros(2_000), ..NetworkPart::default() };
    bed.network.insert(uid, Arc::new(again));
    assert_eq!(bed.read(false, None)[0].listening, Some(BTreeSet::new()));
    assert_eq!(bed.read(false, None)[0].detail.clone().unwrap().ports, [], "details take over what is new");
}

#[test]
fn of_many_ports_those_with_the_most_requests_are_shown() {
    let mut ports: Vec<PortReading> =
        (1..=90).map(|port| PortReading { port, requests: u64::from(port), ..PortReading::default() }).collect();
    // All that the programs count together.
    ports.push(PortReading { port: 0, requests: 1, ..PortReading::default() });
    let part =
        NetworkPart { listeners: vec![ListenPort { port: 9_000, waiting: 0, most: None }], ..NetworkPart::default() };
    merge_ports(&mut ports, Some(&part));
    let shown: Vec<u16> = ports.iter().map(|port| port.port).collect();
    assert_eq!(shown, std::iter::once(0).chain(26..=90).collect::<Vec<u16>>());
}

#[test]
fn details_are_due_at_a_moment_of_each_pods_own() {
    let now = Micros::secs(1_000);
    let due: BTreeSet<Micros> = (0..100).map(|n| next_due(&format!("pod{n}").as_str().into(), now, 1_000)).collect();
    assert!(due.len() > 90 && due.iter().all(|due| *due > now && *due <= now + DETAIL_EVERY), "{due:?}");
    let stretched = next_due(&"u".into(), now, 3_000);
    assert!(stretched > now && stretched <= now + Micros::secs(30));
    let uid = PodUid::from("u");
    assert_eq!(next_due(&uid, next_due(&uid, now, 1_000), 1_000), next_due(&uid, now, 1_000) + DETAIL_EVERY);
}
