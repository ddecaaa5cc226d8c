//! False alarms: loads that look like the way to an OOM kill and are none. Nobody may go for them.
//!
//! Problem: whoever evicts early evicts without need sooner or later, and that costs more than an OOM kill that was not averted.
//! Approach: a node whose pods may use 2.5 GiB, with the default policy and thresholds, and the four loads that every forecast of memory has
//! to stand: a scan of files that fills the page cache, the saw-tooth of a collector, a heap that finds its size, a compile job.
//! Each alone, then all of them; within limits of their own, and without, where the tips come as near to the threshold as they can
//! without reaching it. Who was evicted, killed or started anew is told by the agent, by the kernel (`e2e::Referee`) and
//! by the pods; every pod has to be alive at the end, and to have done something. Milder rungs may be used; which ones is told.
//!
//! Terms: the *ballast* is a pod that holds 2000 MiB, less than it requests. The *tip* is the most that a saw-tooth holds. What is
//! *left* is the limit less anonymous and shared memory, as the kernel counts them.
//!
//! `cargo xtask bench alarms` runs the test `bench` and prints the table.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Bed, Kills, Metrics, Pod, Referee, SharedBed, load, mib, pod, say, secs, skip};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("alarms");

/// All in MiB: what pods may use, and the hard threshold.
const LIMIT: u64 = 2560;
const THRESHOLD: u64 = 100;
/// What the ballast holds, what a compiler holds at most, and what all that is no load does.
const BALLAST: u64 = 2000;
const COMPILER: u64 = 560;
const OTHERS: u64 = 32;
/// How often the referee looks.
const PACE: Duration = Duration::from_millis(10);
/// A forecast is scored after 45 s.
const SCORED: Duration = secs(47);

// === the loads ===

/// A pod, and how its log tells what it did.
struct Load {
    pod: Pod,
    /// Lines that have this count ...
    mark: &'static str,
    /// ... so much each.
    unit: &'static str,
}

impl Load {
    fn name(&self) -> &str {
        self.pod.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// With a limit of its own, in MiB.
    fn within(mut self, limit: u64) -> Self {
        self.pod = self.pod.limit("memory", &format!("{limit}Mi"));
        self
    }

    /// What it did so far.
    fn done(&self, bed: &Bed) -> usize {
        let text = bed.log_of(self.name()).and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        text.lines().filter(|line| line.contains(self.mark)).count()
    }
}

/// Files of 1 GiB, written, read and removed, over and over.
fn scan() -> Load {
    let pod = pod("scan")
        .workload(&["files", "--dir", "/data", "--size", "100000Gi"])
        .field("volumeMounts", json!([{ "name": "data", "mountPath": "/data" }]))
        .spec("volumes", json!([{ "name": "data", "emptyDir": {} }]));
    Load { pod, mark: "wrote and read", unit: "GiB" }
}

/// A collector's heap of so many MiB: it grows to 95 %, and falls to 40 %.
fn sawtooth(size: u64) -> Load {
    let (low, high) = (format!("{}Mi", size * 40 / 100), format!("{}Mi", size * 95 / 100));
    let pod = pod("sawtooth").workload(&["sawtooth", "--rate", "100Mi", "--low", &low, "--high", &high]);
    Load { pod, mark: "done ", unit: "teeth" }
}

/// A heap of so many MiB that finds its size at 90 %, in some 30 s (`quick`: 8 s).
fn plateau(size: u64, quick: bool) -> Load {
    let (size, every) = (format!("{}Mi", size * 90 / 100), if quick { "100ms" } else { "1s" });
    let args = ["plateau", "--rate", "100Mi", "--size", &size, "--young", "50Mi", "--every", every];
    let pod = pod("plateau").workload(&args);
    Load { pod, mark: "done ", unit: "collections" }
}

/// Memory that is held, as requested.
fn ballast() -> Load {
    let pod = pod("ballast").workload(&["step", "--size", &format!("{BALLAST}Mi")]);
    Load { pod: pod.request("memory", &format!("{}Mi", BALLAST + 100)), mark: "holding", unit: "step" }
}

/// Our core is compiled, over and over, by the toolchain that is on this machine: what that needs is mounted read-only.
///
/// # Errors
/// What is not there.
fn compile() -> Result<Load, String> {
    let output = Command::new("rustc").args(["--print", "sysroot"]).output().map_err(|e| format!("no rustc: {e}"))?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !sysroot.join("bin/cargo").exists() {
        return Err(format!("no cargo in {}/bin", sysroot.display()));
    }
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let home = home.filter(|home| home.join("registry").exists()).ok_or("no registry of crates that are here")?;
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut places: Vec<(PathBuf, PathBuf)> = vec![(checkout, "/src".into()), (home, "/cargo".into())];
    // Libraries, the linker, and its name.
    places.extend(["/usr", "/lib", "/lib64", "/etc/alternatives"].map(|place| (place.into(), place.into())));
    if !sysroot.starts_with("/usr") {
        places.push((sysroot.clone(), sysroot.clone()));
    }
    let mut mounts = vec![json!({ "name": "target", "mountPath": "/target" })];
    let mut volumes = vec![json!({ "name": "target", "emptyDir": {} })];
    for (number, (from, to)) in places.iter().enumerate() {
        let Ok(from) = from.canonicalize() else { continue };
        let name = format!("host-{number}");
        mounts.push(json!({ "name": name, "mountPath": to, "readOnly": true }));
        volumes.push(json!({ "name": name, "hostPath": { "path": from } }));
    }
    let script = format!(
        "export PATH={}/bin:/usr/bin:/bin CARGO_HOME=/cargo CARGO_TARGET_DIR=/target HOME=/target; cd /src\n\
         while cargo build --offline --locked --quiet -j1 -p beelet-core; do echo built; rm -rf /target/*; done; exit 1",
        sysroot.display()
    );
    let pod = pod("compile")
        .shell(&script)
        .field("volumeMounts", json!(mounts))
        .spec("volumes", json!(volumes))
        // A shell that is process 1 does not hear SIGTERM.
        .spec("terminationGracePeriodSeconds", json!(1));
    Ok(Load { pod, mark: "built", unit: "builds" })
}

// === a phase ===

/// Counters by their labels, those that are not 0.
type Counts = BTreeMap<String, u64>;

fn counts(metrics: &Metrics, name: &str) -> Counts {
    let of = |sample: &e2e::Sample| {
        let labels: Vec<&str> = sample.labels.values().map(String::as_str).collect();
        (labels.join(" "), sample.value as u64)
    };
    metrics.all(name, &[]).map(of).filter(|(_, count)| *count > 0).collect()
}

/// What came in between.
fn since(before: &Counts, after: Counts) -> Counts {
    let new = |(key, count): (String, u64)| {
        let more = count - before.get(&key).copied().unwrap_or(0);
        (key, more)
    };
    after.into_iter().map(new).filter(|(_, more)| *more > 0).collect()
}

fn shown(counts: &Counts) -> String {
    let all: Vec<String> = counts.iter().map(|(key, count)| format!("{count} {key}")).collect();
    if all.is_empty() { "none".to_owned() } else { all.join(", ") }
}

/// What the agent did so far.
struct Done {
    evictions: Counts,
    rungs: Counts,
    forecasts: Counts,
}

impl Done {
    fn by(agent: &Agent<'_>) -> Self {
        let metrics = agent.metrics();
        let of = |name| counts(&metrics, name);
        Self {
            evictions: of("beelet_evictions_total"),
            rungs: of("beelet_rung_moves_total"),
            forecasts: of("beelet_oom_forecasts_total"),
        }
    }

    fn since(&self, after: Self) -> Self {
        Self {
            evictions: since(&self.evictions, after.evictions),
            rungs: since(&self.rungs, after.rungs),
            forecasts: since(&self.forecasts, after.forecasts),
        }
    }
}

/// How a phase went.
struct Outcome {
    name: String,
    time: Duration,
    /// By the agent.
    done: Done,
    kills: Kills,
    /// What was left at the least, and the most that was used, page cache included.
    left: u64,
    peak: u64,
    /// What the loads did.
    loads: Counts,
    /// What was not as it should be.
    wrong: Vec<String>,
}

/// An agent with a bystander, and the referee.
struct Node<'a> {
    agent: Agent<'a>,
    referee: Referee,
}

impl<'a> Node<'a> {
    fn start(bed: &'a Bed) -> Self {
        // On a full disk the image of a phase to come would go, and cannot be pulled again.
        let agent = Agent::start(bed, &AgentOptions::default().set("imageGCHighThresholdPercent", "100"));
        pod("bystander").workload(&["sleep"]).write(&agent.manifests);
        agent.wait_running("bystander", secs(60));
        let referee = Referee::of(bed);
        assert_eq!(referee.kubepods.limit(), LIMIT << 20, "the limit of kubepods");
        Self { agent, referee }
    }

    /// What of these pods is not as it should be.
    fn wrong(&self, names: &[&str]) -> Vec<String> {
        let mut wrong = Vec::new();
        if self.agent.metrics().value("beelet_node_memory_pressure", &[]) != Some(0.0) {
            wrong.push("MemoryPressure".to_owned());
        }
        for name in names {
            let status = self.agent.pod(name).map(|pod| pod["status"].clone()).unwrap_or_default();
            let container = &status["containerStatuses"][0];
            let alive = status["phase"] == "Running" && container["state"]["running"].is_object();
            if !alive || container["restartCount"] != 0 {
                let path = self.agent.bed.log_of(name);
                let said = path.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
                say(&format!("alarms: {name}: {status}\n{said}"));
                wrong.push(format!("{name} is {} {}", status["phase"], status["reason"]));
            }
        }
        wrong
    }

    /// Runs loads side by side for a time; it ends early when something is wrong.
    fn phase(&mut self, name: &str, loads: &[Load], time: Duration) -> Outcome {
        let agent = &self.agent;
        let before = Done::by(agent);
        let round = self.referee.begin(agent, PACE);
        let manifests: Vec<PathBuf> = loads.iter().map(|load| load.pod.write(&agent.manifests)).collect();
        for load in loads {
            agent.wait_running(load.name(), secs(60));
        }
        let names: Vec<&str> = loads.iter().map(Load::name).chain(["bystander"]).collect();
        let (began, mut wrong) = (Instant::now(), Vec::new());
        while wrong.is_empty() && began.elapsed() < time {
            std::thread::sleep(secs(1));
            wrong = self.wrong(&names);
        }
        let agent = &self.agent;
        let (seen, kills) = self.referee.end(agent, round);
        let done = before.since(Done::by(agent));
        if !done.evictions.is_empty() {
            wrong.push(format!("evictions: {}", shown(&done.evictions)));
        }
        if !kills.none() {
            wrong.push(format!("OOM kills: {kills}"));
        }
        if done.rungs.keys().any(|rung| rung.contains("freeze")) {
            wrong.push("a pod stood still".to_owned());
        }
        if !wrong.is_empty() {
            for name in &names {
                say(&format!("alarms: {name}: {:#}", told(agent, name)));
            }
            say(&format!("alarms: {name}: {wrong:?}\n{}", agent.log_tail()));
        }
        let outcome = Outcome {
            name: name.to_owned(),
            time: began.elapsed(),
            done,
            kills,
            left: (LIMIT << 20).saturating_sub(seen.held),
            peak: seen.peak(),
            loads: loads.iter().map(|l| (format!("{} of {}", l.unit, l.name()), l.done(agent.bed) as u64)).collect(),
            wrong,
        };
        say(&format!("alarms: {}", outcome.row()));
        manifests.iter().for_each(|path| fs::remove_file(path).expect("its manifest"));
        for load in loads {
            agent.wait_gone(load.name(), secs(60));
        }
        outcome
    }
}

/// What the agent records of a pod.
fn told(agent: &Agent<'_>, name: &str) -> Value {
    let explain = agent.get(&format!("/debug/explain/default/{name}")).unwrap_or_default();
    serde_json::from_str::<Value>(&explain).map(|explain| explain["records"].clone()).unwrap_or_default()
}

impl Outcome {
    const HEAD: &'static str = "| phase | time | evictions | OOM kills (counters/eBPF/log) | left at least | used at most | rungs | forecasts, as scored by then | what was done |\n\
         |---|---:|---:|---:|---:|---:|---|---|---|";

    fn row(&self) -> String {
        format!(
            "| {} | {:.0} s | {} | {} | {:.0} MiB | {:.0} MiB | {} | {} | {}{} |",
            self.name,
            self.time.as_secs_f64(),
            self.done.evictions.values().sum::<u64>(),
            self.kills,
            mib(self.left),
            mib(self.peak),
            shown(&self.done.rungs),
            shown(&self.done.forecasts),
            shown(&self.loads),
            if self.wrong.is_empty() { String::new() } else { format!("; WRONG: {}", self.wrong.join("; ")) },
        )
    }
}

/// A compile job, unless this machine has none; that is said.
fn compile_if_possible(test: &str) -> Option<Load> {
    compile().map_err(|reason| skip(&format!("{test}, compile job"), &reason)).ok()
}

/// The loads at once, each within a limit of its own.
fn within_limits(quick: bool, test: &str) -> Vec<Load> {
    let mut saw = sawtooth(600).within(600);
    // The rung that it has to ask for.
    saw.pod = saw.pod.meta("annotations", json!({ "beelet.dev/raise": "true" }));
    let loads = [scan().within(256), saw, plateau(600, quick).within(600)];
    loads.into_iter().chain(compile_if_possible(test).map(|load| load.within(900))).collect()
}

/// The loads at once, without limits: a tip at the moment at which the compiler takes most leaves little more than the threshold.
fn without_limits(test: &str) -> Vec<Load> {
    let loads = [scan(), sawtooth(LIMIT - THRESHOLD - COMPILER - 450 - OTHERS), plateau(500, false)];
    loads.into_iter().chain(compile_if_possible(test)).collect()
}

/// The saw-tooth that fits beside the ballast.
fn near() -> Load {
    sawtooth(LIMIT - THRESHOLD - BALLAST - OTHERS)
}

/// Fails unless nothing happened to anybody.
fn assert_calm(outcomes: &[Outcome]) {
    let wrong: Vec<_> = outcomes.iter().flat_map(|outcome| &outcome.wrong).collect();
    assert!(wrong.is_empty(), "false alarms: {wrong:?}");
    // No build may have had the time to end.
    let idle = |outcome: &Outcome| outcome.loads.iter().any(|(what, done)| *done == 0 && !what.starts_with("builds"));
    assert!(!outcomes.iter().any(idle), "a load did nothing: the test shows nothing");
}

/// Must show 2, small.
#[test]
fn no_load_that_needs_no_eviction_gets_one() {
    const NAME: &str = "no_load_that_needs_no_eviction_gets_one";
    let Some(bed) = BED.get(NAME) else { return };
    let mut node = Node::start(&bed);
    let outcomes = [
        node.phase("together, within limits", &within_limits(true, NAME), secs(14)),
        node.phase("saw-tooth and scan beside the ballast", &[ballast(), near(), scan()], secs(10)),
    ];
    assert_calm(&outcomes);
    node.agent.finish();
}

/// Must show 2 in full; `cargo xtask bench alarms`.
#[test]
#[ignore = "a benchmark: cargo xtask bench alarms"]
fn bench() {
    let Some(bed) = BED.get("bench") else { return };
    let minutes: u64 = std::env::var("BEELET_BENCH_MINUTES").ok().and_then(|n| n.parse().ok()).unwrap_or(30);
    let (whole, before) = (secs(minutes * 60), load());
    let mut node = Node::start(&bed);
    let began = Done::by(&node.agent);
    let mut phases = vec![
        ("scan beside the ballast", vec![ballast(), scan()], whole / 10),
        ("saw-tooth in its limit", vec![sawtooth(800).within(800)], whole / 10),
        ("heap to a plateau in its limit", vec![plateau(800, false).within(800)], whole / 10),
        ("saw-tooth beside the ballast", vec![ballast(), near()], whole / 10),
        ("together, within limits", within_limits(false, "bench"), whole / 4),
        ("together, without limits", without_limits("bench"), whole / 4),
    ];
    if let Some(load) = compile_if_possible("bench") {
        phases.insert(3, ("compile job in its limit", vec![load.within(1024)], whole / 10));
    }
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (name, loads, time) in &phases {
        outcomes.push(node.phase(name, loads, *time));
        if outcomes.iter().any(|outcome| !outcome.wrong.is_empty()) {
            break;
        }
    }
    std::thread::sleep(SCORED);
    let metrics = node.agent.metrics();
    let all = began.since(Done::by(&node.agent));
    let rows: Vec<String> = outcomes.iter().map(Outcome::row).collect();
    println!("{}\n{}\n", Outcome::HEAD, rows.join("\n"));
    let time: Duration = outcomes.iter().map(|outcome| outcome.time).sum();
    println!(
        "{:.1} minutes: evictions: {}; rungs: {}; forecasts: {}",
        time.as_secs_f64() / 60.0,
        shown(&all.evictions),
        shown(&all.rungs),
        shown(&all.forecasts)
    );
    for rung in metrics.all("beelet_capability", &[]).filter(|sample| sample.labels["name"].starts_with("rung_")) {
        println!("{} = {} {}", rung.labels["name"], rung.value, rung.labels["reason"]);
    }
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{cpus} CPUs; load average before {before}, after {}", load());
    assert_calm(&outcomes);
    node.agent.finish();
}
