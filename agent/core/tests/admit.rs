//! Who may run on the node, and who is turned away with which words.

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::World;
use beelet_core::event::{Event, RuntimeFacts};
use beelet_core::evict::Threshold;
use beelet_core::evict::disk::{self, FsRoom, Layout, Pids, Reading, Signal};
use beelet_core::node::NodeConfig;
use beelet_core::pod::PodState;
use beelet_core::restart::ContainerRestart;
use beelet_core::sample::{NodeReading, Sample};
use beelet_core::security::{NodeSecurity, Profile};
use beelet_core::spec::placement::{Effect, Operator, Requirement, Taint, Term, Toleration};
use beelet_core::spec::{ContainerSpec, PodSpec, Port, Resources, RestartPolicy, StorageResources};
use beelet_core::units::{Bytes, Micros, MilliCpu, Now};

const NOW: Now = Now { mono: Micros::secs(1_000), wall: Micros::secs(1_700_000_000) };
const CRITICAL: i32 = 2_000_000_000;

/// A pod of one container.
fn pod(uid: &str, change: impl FnOnce(&mut PodSpec)) -> PodSpec {
    let mut pod = PodSpec {
        name: uid.to_owned(),
        containers: vec![ContainerSpec::unknown("main")],
        ..PodSpec::unknown(uid.into())
    };
    change(&mut pod);
    pod
}

fn asks(memory: u64) -> Resources {
    Resources { memory_request: Some(Bytes::mib(memory)), ..Resources::default() }
}

/// A node that has seen these events, and these pods at once; the others are looked at first.
fn world(config: NodeConfig, before: Vec<Event>, pods: &[PodSpec]) -> World {
    let mut world = World::new(config);
    for event in before {
        world.step(event, NOW);
    }
    let pods = pods.iter().map(|pod| Arc::new(pod.clone())).collect();
    world.step(Event::Pods { pods, rejected: Vec::new() }, NOW);
    world.step(Event::Runtime(RuntimeFacts { asked: NOW.mono, ..RuntimeFacts::default() }), NOW);
    world
}

/// Reason and message; `None` for a pod that was admitted.
fn turned_away(world: &World, uid: &str) -> Option<(String, String)> {
    match &world.pods().get(&uid.into()).unwrap_or_else(|| panic!("no pod {uid}")).state {
        PodState::Rejected { reason, message } => Some((reason.clone(), message.clone())),
        PodState::Observed => panic!("{uid} was not looked at"),
        _ => None,
    }
}

/// What becomes of the pod beside others, on a node that has nothing special.
fn beside(config: NodeConfig, others: &[PodSpec], pod: PodSpec) -> Option<(String, String)> {
    let uid = pod.uid.to_string();
    turned_away(&world(config, Vec::new(), &[others, &[pod]].concat()), &uid)
}

fn refused(reason: &str, message: &str) -> Option<(String, String)> {
    Some((reason.to_owned(), message.to_owned()))
}

fn port(host_port: u16, host_ip: &str, protocol: &str) -> Port {
    Port {
        name: String::new(),
        container_port: 80,
        host_port,
        host_ip: host_ip.to_owned(),
        protocol: protocol.to_owned(),
    }
}

#[test]
fn a4_16b_the_disk_that_pods_ask_for_has_an_end() {
    let wants = |uid: &str, gib: u64| {
        pod(uid, |p| p.containers[0].storage = StorageResources { request: Some(Bytes::gib(gib)), limit: None })
    };
    let node = || NodeConfig { storage: Bytes::gib(10), ..NodeConfig::default() };
    assert_eq!(beside(node(), &[wants("a", 6)], wants("z", 4)), None);
    let said = "Node didn't have enough resource: ephemeral-storage, requested: 5368709120, used: 6442450944, \
                capacity: 10737418240";
    assert_eq!(beside(node(), &[wants("a", 6)], wants("z", 5)), refused("OutOfephemeral-storage", said));
    assert_eq!(beside(node(), &[wants("a", 10)], wants("z", 0)), None, "it asks for none");
}

#[test]
fn a4_16d_a_pod_runs_on_the_node_that_it_asks_for() {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
    let node = || NodeConfig { labels: labels.clone(), ..NodeConfig::default() };
    let selects = |value: &str| pod("z", |p| _ = p.placement.selector.insert("zone".to_owned(), value.to_owned()));
    let requires = |operator| {
        let zone = Requirement { key: "zone".to_owned(), operator, values: Vec::new() };
        pod("z", |p| p.placement.required = Some(vec![Term { labels: vec![zone], ..Term::default() }]))
    };
    let not =
        refused("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector");
    assert_eq!((beside(node(), &[], selects("a")), beside(node(), &[], selects("b"))), (None, not.clone()));
    assert_eq!(beside(node(), &[], requires(Operator::Exists)), None);
    assert_eq!(beside(node(), &[], requires(Operator::DoesNotExist)), not);
}

#[test]
fn a4_16f_a_host_port_is_one_pods() {
    let with = |uid: &str, port: Port| pod(uid, |p| p.containers[0].ports = vec![port]);
    let not =
        refused("NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports");
    for (held, wanted, meet) in [
        (port(80, "", "TCP"), port(80, "", "TCP"), true),
        (port(80, "", "TCP"), port(81, "", "TCP"), false),
        (port(80, "", "TCP"), port(80, "", "UDP"), false),
        (port(80, "", "TCP"), port(80, "10.0.0.1", "TCP"), true),
        (port(80, "10.0.0.1", "TCP"), port(80, "0.0.0.0", "TCP"), true),
        (port(80, "10.0.0.1", "TCP"), port(80, "10.0.0.1", "TCP"), true),
        (port(80, "10.0.0.1", "TCP"), port(80, "10.0.0.2", "TCP"), false),
        // As upstream, which knows one name only for all addresses.
        (port(80, "10.0.0.1", "TCP"), port(80, "::", "TCP"), false),
        (port(0, "", "TCP"), port(0, "", "TCP"), false),
    ] {
        let said = format!("{held:?} {wanted:?}");
        let expected = if meet { not.clone() } else { None };
        assert_eq!(beside(NodeConfig::default(), &[with("a", held)], with("z", wanted)), expected, "{said}");
    }
    let init = |uid: &str, sidecar: bool| {
        pod(uid, |p| {
            let policy = if sidecar { RestartPolicy::Always } else { RestartPolicy::Never };
            let restart = Some(ContainerRestart { policy, rules: Vec::new() }).filter(|_| sidecar);
            let ports = vec![port(80, "", "TCP")];
            p.init_containers = vec![ContainerSpec { restart, ports, ..ContainerSpec::unknown("init") }];
        })
    };
    let wanted = || with("z", port(80, "", "TCP"));
    assert_eq!(beside(NodeConfig::default(), &[init("a", true)], wanted()), not, "a sidecar stays");
    assert_eq!(beside(NodeConfig::default(), &[init("a", false)], wanted()), None, "it gives the port back");
}

#[test]
fn a4_16f_a_port_is_held_until_its_pod_is_gone() {
    let with = |uid: &str| pod(uid, |p| p.containers[0].ports = vec![port(80, "", "TCP")]);
    let mut world = world(NodeConfig::default(), Vec::new(), &[with("a"), with("b")]);
    assert!(turned_away(&world, "a").is_none() && turned_away(&world, "b").is_some());
    let want = |world: &mut World, uid: &str| {
        world.step(Event::Pods { pods: vec![Arc::new(with(uid))], rejected: Vec::new() }, NOW);
    };
    want(&mut world, "c");
    assert!(turned_away(&world, "c").is_some(), "a has not gone yet");
}

#[test]
fn a4_16g_taints_turn_away_who_is_not_static() {
    let taint = |effect| Taint { key: "k".to_owned(), value: "v".to_owned(), effect };
    let node = |effect| NodeConfig { taints: vec![taint(effect)], ..NodeConfig::default() };
    let from = |origin: &str| pod("z", |p| p.origin = origin.to_owned());
    let not =
        refused("TaintToleration", "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate");
    assert_eq!(beside(node(Effect::NoExecute), &[], from("api")), not);
    assert_eq!(beside(node(Effect::NoExecute), &[], from("/pods/z.yaml")), None);
    assert_eq!(beside(node(Effect::NoSchedule), &[], from("api")), None, "that is the scheduler's");
    let bears = Toleration { key: "k".to_owned(), value: None, effect: Some(Effect::NoExecute) };
    let tolerant = pod("z", |p| {
        p.origin = "api".to_owned();
        p.placement.tolerations = vec![bears];
    });
    assert_eq!(beside(node(Effect::NoExecute), &[], tolerant), None);
}

/// So much of 4 GiB is in use.
fn memory(used: u64) -> Event {
    let reading = NodeReading {
        memory_total: Bytes::gib(4),
        memory_unreclaimable: Bytes::mib(used),
        memory_working_set: Bytes::mib(used),
        ..NodeReading::default()
    };
    Event::Sample(Sample { at: NOW.mono, node: reading, ..Sample::default() })
}

/// So many of 1000 MiB, and of 1000 process ids, are free.
fn disks(free: u64, pids: u64) -> Event {
    let fs = Some(FsRoom { available: Bytes::mib(free), capacity: Bytes::mib(1_000), inodes_free: 900, inodes: 1_000 });
    let pids = Some(Pids { most: 1_000, running: 1_000 - pids });
    let reading = Reading { at: NOW.mono, layout: Some(Layout::One), node: fs, images: fs, containers: fs, pids };
    Event::Disks { reading, reclaimed: None }
}

/// Rows: A4.17a.
#[test]
fn a4_16h_a_node_under_pressure_takes_no_pods() {
    let mut node = NodeConfig { eviction_disk: disk::Thresholds::default(), ..NodeConfig::default() };
    node.eviction_disk.hard.insert(Signal::Pid, Threshold::Quantity(Bytes(100)));
    let after = |events: Vec<Event>, pod: PodSpec| turned_away(&world(node.clone(), events, &[pod]), "z");
    let from_api = |change: fn(&mut PodSpec)| {
        pod("z", |p| {
            p.origin = "api".to_owned();
            change(p);
        })
    };
    let plain = || from_api(|_| {});
    let asks = || from_api(|p| p.containers[0].resources = asks(1));
    let critical = || from_api(|p| p.priority = CRITICAL);
    let bears_memory = || {
        from_api(|p| {
            let key = "node.kubernetes.io/memory-pressure".to_owned();
            p.placement.tolerations = vec![Toleration { key, value: None, effect: None }];
        })
    };
    let fine = || disks(900, 900);
    let said = |conditions: &str| refused("Evicted", &format!("The node had condition: [{conditions}]. "));
    assert_eq!(after(vec![memory(1_000), fine()], plain()), None);
    for (events, conditions) in [
        (vec![memory(4_090)], "MemoryPressure"),
        (vec![disks(99, 900)], "DiskPressure"),
        (vec![disks(900, 50)], "PIDPressure"),
        (vec![memory(4_090), disks(99, 50)], "MemoryPressure DiskPressure PIDPressure"),
    ] {
        // Of some signals two readings are wanted.
        let events = || [events.clone(), events.clone()].concat();
        assert_eq!(after(events(), plain()), said(conditions), "{conditions}");
        assert_eq!(after(events(), critical()), None, "{conditions}: a4.17a critical pods pass");
        assert_eq!(after(events(), pod("z", |_| {})), None, "{conditions}: nobody makes a static pod anew");
        let only_memory = conditions == "MemoryPressure";
        let held = |other| if only_memory { None } else { other };
        assert_eq!(after(events(), asks()), held(said(conditions)), "{conditions}: it asks for memory");
        assert_eq!(after(events(), bears_memory()), held(said(conditions)), "{conditions}: it bears that");
    }
}

#[test]
fn a4_16j_another_system_is_another_node() {
    let os = |name: &str| pod("z", |p| p.placement.os = name.to_owned());
    let label = |value: &str| pod("z", |p| _ = p.labels.insert("kubernetes.io/os".to_owned(), value.to_owned()));
    let beside = |pod| beside(NodeConfig::default(), &[], pod);
    let said = "Failed to admit pod as the OS field doesn't match node OS";
    assert_eq!((beside(os("linux")), beside(os("windows"))), (None, refused("PodOSNotSupported", said)));
    let said = "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label";
    let not = refused("PodOSSelectorNodeLabelDoesNotMatch", said);
    assert_eq!((beside(label("linux")), beside(label("windows"))), (None, not));
}

#[test]
fn a4_16_the_first_reason_in_the_kubelets_order_is_told() {
    let node = || NodeConfig {
        security: NodeSecurity { app_armor: false, ..NodeSecurity::default() },
        ..NodeConfig::default()
    };
    // Each makes one thing right, the first first.
    type Cure = fn(&mut PodSpec);
    let cures: [(&str, Cure); 7] = [
        ("SysctlForbidden", |p| p.security.sysctls.clear()),
        ("PodOSSelectorNodeLabelDoesNotMatch", |p| p.labels.clear()),
        ("PodOSNotSupported", |p| p.placement.os.clear()),
        ("OutOfcpu", |p| p.containers[0].resources.cpu_request = None),
        ("NodeAffinity", |p| p.placement.selector.clear()),
        ("NodePorts", |p| p.containers[0].ports.clear()),
        ("AppArmor", |p| p.containers[0].security.app_armor = None),
    ];
    let mut wrong = pod("z", |p| {
        p.security.sysctls.insert("kernel.panic".to_owned(), "1".to_owned());
        p.labels.insert("kubernetes.io/os".to_owned(), "windows".to_owned());
        p.placement.os = "windows".to_owned();
        p.placement.selector.insert("a".to_owned(), "b".to_owned());
        let main = &mut p.containers[0];
        main.resources.cpu_request = Some(MilliCpu(100_000));
        main.ports = vec![port(80, "", "TCP")];
        main.security.app_armor = Some(Profile::RuntimeDefault);
    });
    let holder = pod("a", |p| p.containers[0].ports = vec![port(80, "", "TCP")]);
    for (reason, cure) in cures {
        let told = beside(node(), std::slice::from_ref(&holder), wrong.clone()).map(|(reason, _)| reason);
        assert_eq!(told.as_deref(), Some(reason));
        cure(&mut wrong);
    }
    assert_eq!(beside(node(), &[holder], wrong), None);
}
