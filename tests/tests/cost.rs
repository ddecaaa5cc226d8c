//! What beelet costs those whom it watches, and itself.
//!
//! Each number is a ratio within one run: the same pod with the agent and without it, in turns. Pods go on while no agent
//! runs, so nothing else changes. `cargo xtask bench cost` runs all of it; the tests look whether it is out of all proportion.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Bed, SharedBed, built, hierarchies, pod, say, secs};

static BED: SharedBed = SharedBed::new("cost");

/// After its start an agent has other things to do than later.
const SETTLE: Duration = Duration::from_secs(6);

/// The median number of rounds a second during `time` from now on.
fn rounds(bed: &Bed, name: &str, time: Duration) -> f64 {
    let path = bed.log_of(name).expect("the pod's logs");
    let seen = fs::metadata(&path).map_or(0, |m| m.len());
    std::thread::sleep(time);
    let text = fs::read_to_string(&path).expect("the log");
    let new = text.get(usize::try_from(seen).unwrap_or(0)..).unwrap_or_default();
    // The first line may be cut, and counts from before.
    let counts = new.lines().skip(1).filter_map(|l| l.rsplit_once("rounds ")?.1.trim().parse::<f64>().ok());
    median(counts.collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "nothing was counted");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// How much slower a loop is with the agent: 0.01 is one percent. In turns, the median of all turns.
fn slowdown(bed: &Bed, what: &str, turns: u32, time: Duration) -> f64 {
    let mut agent = Agent::start(bed, &AgentOptions::default());
    pod(what).workload(&["bench", what]).write(&agent.manifests);
    agent.wait_running(what, secs(60));
    let mut lost = Vec::new();
    for turn in 0..turns {
        std::thread::sleep(SETTLE);
        let with = rounds(bed, what, time);
        agent.stop();
        let without = rounds(bed, what, time);
        lost.push(1.0 - with / without);
        say(&format!("cost: {what}, turn {}: {with:.0} rounds/s with, {without:.0} without", turn + 1));
        agent.restart();
    }
    agent.wait_running(what, secs(60));
    agent.finish();
    median(lost)
}

#[test]
fn watched_pods_are_not_slowed_down_out_of_proportion() {
    let Some(bed) = BED.get("watched_pods_are_not_slowed_down_out_of_proportion") else { return };
    let lost = slowdown(&bed, "switches", 2, secs(4));
    say(&format!("cost: context switches are {:.1} % slower", lost * 100.0));
    // The machine may be busy with anything; the benchmark measures, this only looks for a blunder.
    assert!(lost < 0.30, "context switches are {:.1} % slower with the agent", lost * 100.0);
}

/// CPU time of a process, seconds, and its resident memory, MiB.
fn usage(pid: i32) -> (f64, f64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the agent's stat");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
    let pages: f64 = fields[21].parse().expect("rss");
    (ticks / 100.0, pages * 4096.0 / f64::from(1 << 20))
}

/// The agent beside so many idle pods: its share of a core, its memory, and the time of a scrape.
fn idle_pods(bed: &Bed, count: usize, time: Duration) {
    let options = AgentOptions::default().set("maxPods", &(count + 10).to_string());
    let agent = Agent::start(bed, &options);
    for n in 0..count {
        pod(&format!("idle-{n}")).workload(&["sleep"]).write(&agent.manifests);
    }
    agent.wait(&format!("{count} pods to run"), secs(600), |agent| {
        let running = agent.metrics().value("kubelet_running_pods", &[])?;
        (running >= count as f64).then_some(())
    });
    std::thread::sleep(secs(20));
    let ((before, _), began) = (usage(agent.pid()), Instant::now());
    std::thread::sleep(time);
    let ((after, resident), time) = (usage(agent.pid()), began.elapsed());
    let share = (after - before) / time.as_secs_f64() * 100.0;
    say(&format!(
        "cost: {count} idle pods: {share:.2} % of a core over {:.0} s, {resident:.1} MiB",
        time.as_secs_f64()
    ));
    for path in ["/metrics/cadvisor", "/metrics/resource", "/stats/summary", "/metrics"] {
        let mut times = Vec::new();
        let mut size = 0;
        for _ in 0..15 {
            let began = Instant::now();
            size = agent.get(path).expect(path).len();
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        say(&format!("cost: {path} for {count} pods: {size} bytes, {:.1} ms (median of 15)", median(times)));
    }
    let metrics = agent.metrics();
    for name in
        ["beelet_look_duration_seconds", "beelet_own_cpu_cores", "beelet_own_looking_cores", "beelet_wakeups_total"]
    {
        let all: Vec<_> = metrics.all(name, &[]).collect();
        assert!(!all.is_empty(), "{name} is not there");
        for sample in all {
            say(&format!("cost: {} {:?} {}", sample.name, sample.labels, sample.value));
        }
    }
    agent.finish();
}

/// Each program beside an empty one at the same hook, while pods do what makes them run.
fn programs(bed: &Bed, time: Duration) {
    let agent = Agent::start(bed, &AgentOptions::default());
    for what in ["switches", "http", "processes"] {
        pod(what).workload(&["bench", what]).write(&agent.manifests);
    }
    for n in 0..4 {
        pod(&format!("mixed-{n}"))
            .workload(&["mixed", "--seed", &n.to_string()])
            .limit("memory", "24Mi")
            .write(&agent.manifests);
    }
    agent.wait_running("mixed-3", secs(60));
    let unified = hierarchies().into_iter().find(|h| h.controllers.is_empty()).expect("a unified hierarchy");
    let pods = unified.mount.join(bed.cgroup_root.trim_start_matches('/')).join("kubepods");
    let mut probe = Command::new(built("BEELET_PROGRAM_COST", "release/examples/program_cost"));
    probe.arg(built("BEELET_BPF_OBJECT", "bpf/beelet-ebpf")).arg(pods).arg(time.as_secs().to_string());
    let output = probe.output().expect("program_cost");
    say(&String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    agent.finish();
}

/// `cargo xtask bench cost`.
#[test]
#[ignore = "a benchmark: cargo xtask bench cost"]
fn bench() {
    let Some(bed) = BED.get("bench") else { return };
    let turns = std::env::var("BEELET_BENCH_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    for what in ["switches", "http", "processes"] {
        let lost = slowdown(&bed, what, turns, secs(8));
        say(&format!("cost: {what}: {:+.2} % slower with the agent (median of {turns} turns)", lost * 100.0));
    }
    programs(&bed, secs(20));
    idle_pods(&bed, 100, secs(60));
}
