use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::sample::{
    CgroupReading, ContainerReading, CpuReading, MemoryMore, MemoryReading, Pressure, PressureReading, Stall,
};
use crate::telemetry::{
    CgroupDetail, Device, DiskOp, DiskReading, Histogram, NodeDetail, PodDetail, Preemptor, StackReading, TcpReading,
};
use crate::units::Bytes;

/// What happens to a pod each second.
#[derive(Clone, Debug, Default)]
struct Does {
    request: u64,
    /// Milliseconds.
    run: u64,
    wait: u64,
    throttled: u64,
    /// By the pod's own quota; `throttled` is by the container's.
    pod_throttled: u64,
    cpu_some: u64,
    memory_some: u64,
    io_some: u64,
    preempted: Vec<(&'static str, u64)>,
    reclaim_limit: u64,
    reclaim_node: u64,
    limit_hits: u64,
    /// MiB.
    memory: (u64, u64),
    /// Requests to a disk and milliseconds of each.
    disk: (u64, u64),
    /// The same in ten seconds.
    disk_each_10s: (u64, u64),
    segments: u64,
    again: u64,
    timeouts: u64,
    connects: (u64, u64),
    no_ebpf: bool,
    no_psi: bool,
}

/// A node of two CPUs.
struct Bed {
    at: u64,
    pods: Vec<(&'static str, Does, PodReading)>,
    node: NodeReading,
    steal: u64,
    attributor: Attributor,
    log: Vec<String>,
}

fn uid(name: &str) -> PodUid {
    name.into()
}

fn stall(p: &mut Pressure, millis: u64) {
    p.some = Stall::total(p.some.total + Micros::millis(millis));
}

impl Bed {
    fn new(pods: &[(&'static str, Does)]) -> Self {
        let pods = pods.iter().enumerate().map(|(i, (name, does))| {
            let id = 100 + 10 * i as u64;
            let mut reading = PodReading::of(uid(name), CgroupReading { id, ..CgroupReading::default() });
            let cgroup = CgroupReading { id: id + 1, ..CgroupReading::default() };
            reading.containers.push(ContainerReading {
                name: "c".into(),
                id: format!("{name}-1"),
                cgroup,
                detail: None,
            });
            (*name, does.clone(), reading)
        });
        let node = NodeReading {
            memory_total: Bytes::gib(4),
            memory_unreclaimable: Bytes::gib(1),
            memory_working_set: Bytes::gib(2),
            ..NodeReading::default()
        };
        Self { at: 1_000, pods: pods.collect(), node, steal: 0, attributor: Attributor::default(), log: Vec::new() }
    }

    fn second(&mut self, services: u64) {
        self.at += 1;
        let at = Micros::secs(self.at);
        let mut busy = services;
        for (_, does, reading) in &mut self.pods {
            busy += does.run;
            let containers = reading.containers.iter_mut().map(|c| (&mut c.cgroup, true));
            for (c, is_container) in containers.chain([(&mut reading.cgroup, false)]) {
                c.at = at;
                let cpu = c.cpu.get_or_insert_default();
                let add = |v: Option<Micros>, ms: u64| Some(v.unwrap_or_default() + Micros::millis(ms));
                cpu.usage = add(cpu.usage, does.run);
                cpu.wait = if does.no_ebpf { None } else { add(cpu.wait, does.wait) };
                let throttled = if is_container { does.throttled } else { does.pod_throttled };
                if throttled > 0 {
                    cpu.throttled = add(cpu.throttled, throttled);
                    cpu.periods = Some(cpu.periods.unwrap_or(0) + 10);
                    cpu.throttled_periods = Some(cpu.throttled_periods.unwrap_or(0) + 10);
                } else {
                    cpu.throttled = cpu.throttled.or(Some(Micros::ZERO));
                }
                if !does.no_psi {
                    let p = c.pressure.get_or_insert_default();
                    stall(&mut p.cpu, does.cpu_some);
                    stall(&mut p.memory, does.memory_some);
                    stall(&mut p.io, does.io_some);
                }
                let hits = c.memory.and_then(|m| m.more.max_events).unwrap_or(0) + does.limit_hits;
                c.memory = Some(MemoryReading {
                    usage: Bytes::mib(does.memory.0),
                    limit: Some(Bytes::mib(does.memory.1)).filter(|l| *l > Bytes::ZERO),
                    more: MemoryMore { max_events: Some(hits), ..MemoryMore::default() },
                    ..MemoryReading::default()
                });
            }
            if self.at.is_multiple_of(10) && !does.no_ebpf {
                reading.cgroup_detail = Some(Arc::new(detail(does, self.at)));
            }
            if self.at.is_multiple_of(10) {
                reading.detail = Some(Arc::new(network(does, self.at)));
            }
        }
        self.node.cpu_busy += Micros::millis(busy);
        self.node.cpu_idle += Micros::millis(2_000_u64.saturating_sub(busy));
        let steal = Some(Micros::millis(self.steal * self.at));
        let sample = Sample {
            at,
            node: self.node,
            kubepods: None,
            pods: Some(self.pods.iter().map(|(_, _, r)| r.clone()).collect()),
            node_detail: Some(Arc::new(NodeDetail { at, steal, ..NodeDetail::default() })),
        };
        let subjects = self.subjects();
        for change in self.attributor.observe(&sample, &subjects, Now { mono: at, wall: at }) {
            let sign = match (change.began, change.tell) {
                (true, true) => "+",
                (true, false) => "(+)",
                (false, true) => "-",
                (false, false) => "(-)",
            };
            self.log.push(format!("{}{sign}{}", change.uid, change.slowness.cause.kind().name()));
        }
    }

    fn subjects(&self) -> BTreeMap<PodUid, Subject> {
        let of = |does: &Does| Some(MilliCpu(does.request));
        self.pods.iter().map(|(n, d, _)| (uid(n), Subject { name: format!("default/{n}"), request: of(d) })).collect()
    }

    fn run(&mut self, seconds: u64) -> &mut Self {
        for _ in 0..seconds {
            self.second(0);
        }
        self
    }

    fn of(&self, name: &str) -> Vec<&'static str> {
        self.attributor.of(&uid(name)).iter().map(|s| s.cause.kind().name()).collect()
    }
}

/// The counters of details after so many seconds.
fn detail(does: &Does, seconds: u64) -> CgroupDetail {
    let spell = |ms: u64| {
        let mut h = Histogram { sum_ns: ms * seconds * 1_000_000, ..Histogram::default() };
        h.counts[10] = seconds * u64::from(ms > 0);
        Some(h)
    };
    let who = |name: &str| match name {
        "own" => Preemptor::Own,
        "system" => Preemptor::System,
        other => Preemptor::Pod(uid(other)),
    };
    let (each_10s, millis) = does.disk_each_10s;
    let requests = does.disk.0 * seconds + each_10s * (seconds / 10);
    let spent = does.disk.0 * does.disk.1 * seconds + each_10s * millis * (seconds / 10);
    let mut latency = Histogram { sum_ns: spent * 1_000_000, ..Histogram::default() };
    latency.counts[14] = requests;
    let device = Device { major: 8, minor: 0, name: "/dev/sda".into() };
    CgroupDetail {
        at: Micros::secs(seconds),
        preempted: does.preempted.iter().map(|(w, n)| (who(w), n * seconds)).collect(),
        reclaim_limit: spell(does.reclaim_limit),
        reclaim_node: spell(does.reclaim_node),
        disk: vec![DiskReading { device, op: DiskOp::Read, bytes: 4_096 * requests, errors: 0, latency }],
        ..CgroupDetail::default()
    }
}

fn network(does: &Does, seconds: u64) -> PodDetail {
    PodDetail {
        at: Micros::secs(seconds),
        connections: Some(TcpReading {
            connects: does.connects.0 * seconds,
            connect_failures: does.connects.1 * seconds,
            ..TcpReading::default()
        }),
        stack: Some(StackReading {
            segments_sent: does.segments * seconds,
            retransmits: does.again * seconds,
            timeouts: does.timeouts * seconds,
            ..StackReading::default()
        }),
        ..PodDetail::default()
    }
}

fn web() -> Does {
    Does { request: 500, run: 200, ..Does::default() }
}

fn hog(run: u64) -> Does {
    Does { request: 100, run, wait: 100, ..Does::default() }
}

#[test]
fn known_situations_have_their_cause() {
    let quiet = || ("idle", Does { request: 100, ..Does::default() });
    let throttled = Does { run: 200, wait: 820, throttled: 800, cpu_some: 800, ..web() };
    let crowded = Does { wait: 300, cpu_some: 300, ..web() };
    let by = |preempted: &[(&'static str, u64)]| Does { preempted: preempted.to_vec(), ..crowded.clone() };
    let slow_disk = Does { io_some: 900, disk: (20, 45), ..web() };
    // Three requests in ten seconds.
    let few = |millis: u64| Does { io_some: 900, disk_each_10s: (3, millis), ..web() };
    // What it is, what the node's services use, the pods, the causes for `web`.
    type Row = (&'static str, u64, Vec<(&'static str, Does)>, &'static [&'static str]);
    let table: Vec<Row> = vec![
        ("own quota", 0, vec![("web", throttled.clone()), quiet()], &["OwnCpuLimit"]),
        (
            "own quota of four threads",
            0,
            vec![("web", Does { run: 1_000, wait: 3_000, throttled: 3_000, ..web() }), quiet()],
            &["OwnCpuLimit"],
        ),
        (
            "the pod's quota and its container's, now one, now the other",
            0,
            vec![("web", Does { throttled: 200, pod_throttled: 600, ..throttled.clone() }), ("hog", hog(1_800))],
            &["OwnCpuLimit"],
        ),
        ("1 ms of each period throttled", 0, vec![("web", Does { throttled: 10, ..web() })], &[]),
        ("a neighbour", 0, vec![("web", crowded.clone()), ("hog", hog(1_800)), quiet()], &["NoisyNeighbour"]),
        (
            "a neighbour on one of two CPUs, known by its preemptions",
            0,
            vec![("web", by(&[("hog", 20), ("system", 2)])), ("hog", hog(800)), quiet()],
            &["NoisyNeighbour"],
        ),
        (
            "waits, but the node has idle CPUs and nobody is known",
            0,
            vec![("web", crowded.clone()), ("hog", hog(800))],
            &[],
        ),
        (
            "a neighbour within its request",
            0,
            vec![("web", by(&[("hog", 20)])), ("hog", Does { request: 1_900, ..hog(1_800) })],
            &["NodeOverload"],
        ),
        (
            "many pods",
            0,
            vec![("web", crowded.clone()), ("a", hog(450)), ("b", hog(450)), ("c", hog(450)), ("d", hog(450))],
            &["NodeOverload"],
        ),
        ("the node's services", 1_700, vec![("web", by(&[("system", 20)])), ("hog", hog(200))], &["NodeOverload"]),
        (
            "a fair share of a full node",
            0,
            vec![
                ("web", Does { request: 0, run: 1_000, wait: 1_000, cpu_some: 1_000, ..Does::default() }),
                ("other", Does { request: 0, run: 1_000, wait: 1_000, ..Does::default() }),
            ],
            &["NodeOverload"],
        ),
        (
            "a batch pod with many threads, alone",
            0,
            vec![("web", Does { run: 2_000, wait: 14_000, cpu_some: 1_000, preempted: vec![("own", 500)], ..web() })],
            &[],
        ),
        (
            "the same where nobody tells of preemptions",
            20,
            vec![("web", Does { run: 1_950, wait: 14_000, cpu_some: 1_000, ..web() })],
            &[],
        ),
        ("a batch pod on an idle node", 0, vec![("web", Does { run: 1_000, wait: 1, ..web() })], &[]),
        (
            "throttled on a busy node",
            0,
            vec![("web", Does { wait: 1_200, ..throttled.clone() }), ("hog", hog(1_800))],
            &["OwnCpuLimit", "NoisyNeighbour"],
        ),
        (
            "without eBPF, by pressure",
            0,
            vec![("web", Does { no_ebpf: true, ..crowded.clone() }), ("hog", hog(1_800))],
            &["NoisyNeighbour"],
        ),
        (
            "without eBPF, throttled",
            0,
            vec![("web", Does { no_ebpf: true, ..throttled.clone() }), ("hog", hog(1_800))],
            &["OwnCpuLimit"],
        ),
        (
            "without eBPF and pressure",
            0,
            vec![("web", Does { no_ebpf: true, no_psi: true, ..crowded.clone() }), ("hog", hog(1_800))],
            &[],
        ),
        (
            "own memory limit",
            0,
            vec![("web", Does { memory_some: 400, reclaim_limit: 300, memory: (100, 100), limit_hits: 50, ..web() })],
            &["OwnMemoryLimit"],
        ),
        (
            "own memory limit without eBPF",
            0,
            vec![("web", Does { no_ebpf: true, memory_some: 400, memory: (98, 100), limit_hits: 50, ..web() })],
            &["OwnMemoryLimit"],
        ),
        ("page cache at its limit", 0, vec![("web", Does { memory: (100, 100), limit_hits: 50, ..web() })], &[]),
        ("node memory", 0, vec![("web", Does { memory_some: 400, reclaim_node: 300, ..web() })], &["NodeMemory"]),
        ("slow disk", 0, vec![("web", slow_disk.clone()), quiet()], &["SlowDisk"]),
        ("a disk that all but stands still", 0, vec![("web", few(3_000)), quiet()], &["SlowDisk"]),
        ("too few requests to be the cause", 0, vec![("web", few(60)), quiet()], &[]),
        ("many requests at once", 0, vec![("web", Does { io_some: 900, disk: (2_000, 45), ..web() })], &[]),
        ("a quick disk that is used", 0, vec![("web", Does { io_some: 900, disk: (900, 1), ..web() })], &[]),
        ("own IO limit", 0, vec![("web", Does { io_some: 900, disk: (50, 1), ..web() })], &["OwnIoLimit"]),
        ("a file system over the network", 0, vec![("web", Does { io_some: 900, ..web() })], &[]),
        ("packet loss", 0, vec![("web", Does { segments: 100, again: 10, timeouts: 2, ..web() })], &["PacketLoss"]),
        ("little traffic, one lost", 0, vec![("web", Does { segments: 2, again: 1, ..web() })], &[]),
        ("a lost segment in a thousand", 0, vec![("web", Does { segments: 2_000, again: 2, ..web() })], &[]),
        (
            "nobody answers",
            0,
            vec![("web", Does { segments: 3, timeouts: 3, connects: (1, 1), ..web() })],
            &["PacketLoss"],
        ),
        ("refused", 0, vec![("web", Does { segments: 3, connects: (10, 10), ..web() })], &[]),
        ("idle", 0, vec![("web", Does::default()), ("hog", hog(2_000))], &[]),
    ];
    for (situation, services, pods, wanted) in table {
        let mut bed = Bed::new(&pods);
        for _ in 0..45 {
            bed.second(services);
        }
        assert_eq!(bed.of("web"), wanted, "{situation}: {:#?}", bed.attributor.of(&uid("web")));
        assert!(bed.of("idle").is_empty(), "{situation}: the idle pod");
    }
}

#[test]
fn the_culprit_is_named_and_the_evidence_has_numbers() {
    let crowded = Does { wait: 300, preempted: vec![("hog", 20), ("other", 3)], ..web() };
    let mut bed = Bed::new(&[("web", crowded), ("hog", hog(1_700)), ("other", hog(100))]);
    bed.run(45);
    let slow = &bed.attributor.of(&uid("web"))[0];
    assert_eq!(slow.cause, Cause::NoisyNeighbour { pod: "default/hog".into(), share: Ppm(869_565) });
    assert_eq!(slow.lost, Ppm(300_000));
    let evidence: Vec<String> = slow.evidence.iter().map(|(k, v)| format!("{k}: {v}")).collect();
    assert_eq!(
        evidence,
        [
            "waited: 1500 ms in 5000 ms (30.0 % of a CPU) for a CPU by eBPF, summed over tasks",
            "uses: 200m CPUs, asks for 500m",
            "node: 0.0 % idle, 2 CPUs busy",
            "preempted: 230 times in 10000 ms by others, 200 of them by default/hog",
            "neighbour: default/hog uses 1700m CPUs, asks for 100m",
        ]
    );
    let no_ebpf = Does { no_ebpf: true, wait: 0, cpu_some: 300, ..web() };
    let mut bed = Bed::new(&[("web", no_ebpf), ("hog", hog(1_800))]);
    bed.run(45);
    let slow = &bed.attributor.of(&uid("web"))[0];
    assert!(slow.evidence[0].1.contains("eBPF does not tell here"), "{:?}", slow.evidence);
}

#[test]
fn the_device_is_named_and_who_uses_it_most() {
    let slow = Does { io_some: 900, disk: (20, 45), ..web() };
    let mut bed = Bed::new(&[("web", slow), ("log", Does { disk: (500, 5), ..web() })]);
    bed.run(45);
    let slow = &bed.attributor.of(&uid("web"))[0];
    assert_eq!(slow.cause, Cause::SlowDisk { device: "/dev/sda".into() });
    assert!(slow.evidence.iter().any(|(k, v)| k == "busiest" && v.starts_with("default/log moved 96.1 %")), "{slow:?}");
}

#[test]
fn two_quotas_that_count_the_same_time_are_no_more_than_the_waits() {
    let both = Does { run: 200, wait: 820, throttled: 800, pod_throttled: 800, ..web() };
    let mut bed = Bed::new(&[("web", both)]);
    bed.run(45);
    let slow = bed.attributor.of(&uid("web"));
    assert_eq!(slow.iter().map(|s| (s.cause.kind(), s.lost)).collect::<Vec<_>>(), [(Kind::OwnCpuLimit, Ppm(820_000))]);
}

#[test]
fn stolen_time_is_overload() {
    let mut bed = Bed::new(&[("web", Does { wait: 300, ..web() })]);
    bed.steal = 150;
    bed.run(45);
    assert_eq!(bed.of("web"), ["NodeOverload"]);
}

#[test]
fn causes_come_after_two_windows_and_go_after_three() {
    let mut bed = Bed::new(&[("web", web()), ("idle", Does::default())]);
    bed.run(30);
    assert!(bed.log.is_empty());
    bed.pods[0].1.throttled = 800;
    let mut began = 0;
    while bed.log.is_empty() {
        bed.run(1);
        began += 1;
    }
    assert!((6..=15).contains(&began), "{began} s");
    bed.run(20);
    bed.pods[0].1.throttled = 0;
    let mut ended = 0;
    while bed.log.len() < 2 {
        bed.run(1);
        ended += 1;
    }
    assert!((15..=21).contains(&ended), "{ended} s");
    assert_eq!(bed.log, ["web+OwnCpuLimit", "web-OwnCpuLimit"]);
    assert!(bed.of("web").is_empty());
}

#[test]
fn one_bad_window_and_a_start_up_are_nothing() {
    let mut bed = Bed::new(&[("web", Does { throttled: 800, ..web() })]);
    bed.run(10);
    bed.pods[0].1.throttled = 0;
    bed.run(21);
    bed.pods[0].1.throttled = 800;
    bed.run(5);
    bed.pods[0].1.throttled = 0;
    bed.run(60);
    assert!(bed.log.is_empty(), "{:?}", bed.log);
}

#[test]
fn what_comes_back_soon_is_shown_and_not_told_again() {
    let mut bed = Bed::new(&[("web", web())]);
    bed.run(20);
    let mut told = Vec::new();
    for round in 0..4 {
        bed.pods[0].1.throttled = if round % 2 == 0 { 800 } else { 0 };
        bed.run(20);
        told.push(bed.of("web").len());
    }
    assert_eq!(told, [1, 0, 1, 0]);
    assert_eq!(bed.log, ["web+OwnCpuLimit", "web-OwnCpuLimit", "web(+)OwnCpuLimit", "web(-)OwnCpuLimit"]);
}

#[test]
fn a_container_that_was_restarted_is_another_one() {
    let mut bed = Bed::new(&[("web", web())]);
    bed.run(30);
    for run in 2..12 {
        // Its counters begin anew, and those of the next one stand high when it is first seen.
        let container = &mut bed.pods[0].2.containers[0];
        container.id = format!("web-{run}");
        container.cgroup = CgroupReading { id: 1_000 + run, ..CgroupReading::default() };
        let high = Micros::secs(1_000 * (run % 2));
        container.cgroup.cpu = Some(CpuReading { throttled: Some(high), ..CpuReading::default() });
        bed.run(7);
    }
    assert!(bed.log.is_empty(), "{:?}", bed.log);
    // The pod itself made anew: another cgroup of the same UID.
    bed.pods[0].2.cgroup = CgroupReading { id: 5_000, ..CgroupReading::default() };
    bed.run(30);
    assert!(bed.log.is_empty(), "{:?}", bed.log);
}

#[test]
fn nothing_is_kept_of_pods_that_are_gone_and_nothing_is_said_after_a_gap() {
    let mut bed = Bed::new(&[("web", web()), ("old", Does { throttled: 800, ..web() })]);
    bed.run(30);
    assert_eq!(bed.of("old"), ["OwnCpuLimit"]);
    bed.pods.remove(1);
    bed.run(1);
    assert!(bed.of("old").is_empty() && bed.attributor.pods.len() == 1);
    // A minute in which nobody looked: a throttled second of it is no share of anything.
    bed.at += 600;
    let cpu = bed.pods[0].2.cgroup.cpu.as_mut().unwrap();
    cpu.throttled = Some(Micros::secs(900));
    bed.run(20);
    assert!(bed.log.iter().all(|l| !l.starts_with("web")), "{:?}", bed.log);
}

#[test]
fn held_readings_are_readings_in_which_nothing_ran() {
    let mut bed = Bed::new(&[("web", Does { throttled: 800, ..web() })]);
    bed.run(30);
    assert_eq!(bed.of("web"), ["OwnCpuLimit"]);
    let held = bed.pods[0].2.clone();
    for _ in 0..40 {
        bed.run(1);
        bed.pods[0].2 = held.clone();
    }
    // The bed adds a second to what is held, and never more.
    bed.pods[0].1 = Does::default();
    bed.run(30);
    assert!(bed.of("web").is_empty());
}

fn any_stall() -> impl Strategy<Value = Pressure> {
    any::<u64>().prop_map(|t| Pressure { some: Stall::total(Micros(t)), full: Stall::default() })
}

prop_compose! {
    fn any_cgroup()(
        id in 0..3_u64,
        at in any::<u64>(),
        cpu in proptest::option::of((any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u64>>())),
        psi in proptest::option::of((any_stall(), any_stall(), any_stall())),
        memory in proptest::option::of((any::<u64>(), any::<Option<u64>>(), any::<Option<u64>>())),
    ) -> CgroupReading {
        CgroupReading {
            id,
            at: Micros(at),
            cpu: cpu.map(|(usage, wait, throttled, periods)| CpuReading {
                usage: usage.map(Micros),
                wait: wait.map(Micros),
                throttled: throttled.map(Micros),
                periods,
                ..CpuReading::default()
            }),
            pressure: psi.map(|(cpu, memory, io)| PressureReading { cpu, memory, io }),
            memory: memory.map(|(usage, limit, hits)| MemoryReading {
                usage: Bytes(usage),
                limit: limit.map(Bytes),
                more: MemoryMore { max_events: hits, ..MemoryMore::default() },
                ..MemoryReading::default()
            }),
            pids: None,
        }
    }
}

prop_compose! {
    fn any_pod()(
        name in prop::sample::select(vec!["a", "b", "c"]),
        cgroup in any_cgroup(),
        inner in any_cgroup(),
        at in any::<u64>(),
        counts in any::<[u64; 4]>(),
        counter in any::<Option<u64>>(),
    ) -> PodReading {
        let mut latency = Histogram { sum_ns: counts[0], ..Histogram::default() };
        latency.counts[3] = counts[1];
        let detail = CgroupDetail {
            at: Micros(at),
            preempted: vec![(Preemptor::Own, counts[0]), (Preemptor::Pod(uid("b")), counts[1]), (Preemptor::System, counts[2])],
            reclaim_limit: Some(latency),
            reclaim_node: Some(latency),
            disk: vec![DiskReading { device: Device::default(), op: DiskOp::Write, bytes: counts[3], errors: 0, latency }],
            ..CgroupDetail::default()
        };
        let network = PodDetail {
            at: Micros(at),
            stack: counter.map(|n| StackReading { segments_sent: n, retransmits: counts[1], timeouts: counts[2], ..StackReading::default() }),
            connections: Some(TcpReading { connects: counts[2], connect_failures: counts[3], ..TcpReading::default() }),
            ..PodDetail::default()
        };
        let mut reading = PodReading::of(uid(name), cgroup);
        reading.containers.push(ContainerReading { name: "c".into(), id: "1".into(), cgroup: inner, detail: None });
        reading.cgroup_detail = Some(Arc::new(detail));
        reading.detail = Some(Arc::new(network));
        reading
    }
}

prop_compose! {
    fn any_sample()(
        step in prop::sample::select(vec![0_u64, 1, 5, 6, 20, 90]),
        cpu in any::<(u64, u64)>(),
        pods in prop::collection::vec(any_pod(), 0..4),
        steal in any::<Option<u64>>(),
    ) -> (u64, Sample) {
        let node = NodeReading { cpu_busy: Micros(cpu.0), cpu_idle: Micros(cpu.1), ..NodeReading::default() };
        let detail = NodeDetail { at: Micros(cpu.0), steal: steal.map(Micros), ..NodeDetail::default() };
        (step, Sample { node, pods: Some(pods), node_detail: Some(Arc::new(detail)), ..Sample::default() })
    }
}

fn shown(attributor: &Attributor) -> Vec<Vec<Slowness>> {
    ["a", "b", "c"].iter().map(|n| attributor.of(&uid(n))).collect()
}

proptest! {
    #[test]
    fn arbitrary_readings_are_judged_alike_and_in_order(samples in prop::collection::vec(any_sample(), 1..20)) {
        let subjects: BTreeMap<PodUid, Subject> = ["a", "b"]
            .iter()
            .map(|n| (uid(n), Subject { name: format!("default/{n}"), request: Some(MilliCpu(100)) }))
            .collect();
        let (mut one, mut two) = (Attributor::default(), Attributor::default());
        let mut at = 10;
        for (step, mut sample) in samples {
            at += step;
            sample.at = Micros::secs(at);
            let now = Now { mono: sample.at, wall: sample.at };
            let changes = one.observe(&sample, &subjects, now);
            prop_assert_eq!(changes, two.observe(&sample, &subjects, now));
            prop_assert_eq!(shown(&one), shown(&two));
            for all in shown(&one) {
                prop_assert!(all.windows(2).all(|w| w[0].lost >= w[1].lost));
                prop_assert!(all.iter().all(|s| s.evidence.len() <= 12 && s.lost <= Ppm(1_000_000)));
            }
            prop_assert!(one.pods.len() <= 4);
        }
    }

    #[test]
    fn readings_in_which_nothing_moves_have_no_cause(pods in prop::collection::vec(any_pod(), 1..4), busy in any::<bool>()) {
        let mut attributor = Attributor::default();
        let subject = |n: &str| (uid(n), Subject { name: format!("default/{n}"), request: None });
        let subjects = BTreeMap::from(["a", "b", "c"].map(subject));
        let mut node = NodeReading::default();
        for at in 1..60 {
            let now = Now { mono: Micros::secs(at), wall: Micros::secs(at) };
            node.cpu_busy += Micros::millis(if busy { 2_000 } else { 0 });
            node.cpu_idle += Micros::millis(if busy { 0 } else { 2_000 });
            let mut pods = pods.clone();
            pods.dedup_by(|a, b| a.uid == b.uid);
            let sample = Sample { at: now.mono, node, pods: Some(pods), ..Sample::default() };
            prop_assert!(attributor.observe(&sample, &subjects, now).is_empty());
        }
    }
}
