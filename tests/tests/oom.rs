//! Eviction before the kernel's OOM killer: a race, run again and again, with the kernel as the referee.
//!
//! Problem: an agent that evicts too late is worth nothing, and whether it came in time cannot be told from the agent alone.
//! Approach: a node whose pods may use 2.5 GiB, `evictionHard: memory.available: 100Mi`, and leaks without a limit of their
//! own. While one grows, the referee reads the usage of `kubepods`; who won is told by the kernel's own log, by the counters of the
//! cgroups, and by eBPF's events; all three must be silent.
//!
//! Terms: the *ballast* is a pod that holds 2000 MiB, less than it requests, at a higher priority, so that a leak has 560 MiB to
//! go and a run takes seconds (one run of the bench goes without it, from zero). The *lead* is what was left at the decision
//! divided by the growth of the last half second as read from the kernel: how long before the wall it was decided. *Freed* is
//! the time from the decision until nine tenths of what the leak held are free. *Over* is the time from crossing the threshold until
//! the victim's last process is gone (or until it is gone if the threshold was never crossed: none). The *gap* is how near to the wall
//! the pods came.
//!
//! `cargo xtask bench oom` runs the test `bench` and prints the table; `--kubelet PATH` has a stock kubelet run in it. That one says
//! when it decided in its log. A run ends there with the first OOM kill, which may take the ballast: a pod that has done nothing.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::stock::logged_at;
use e2e::{Agent, AgentOptions, Bed, Kills, Kubepods, Referee, Seen, SharedBed, Watch, load, mib, pod, say, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("oom");

const LIMIT: u64 = 2560 << 20;
const THRESHOLD: &str = "100Mi";

/// How often the usage is read while a run goes on.
const PACE: Duration = Duration::from_millis(2);

// === a run ===

/// What a run puts on the node.
#[derive(Clone, Debug)]
struct Load {
    name: String,
    args: Vec<String>,
    /// How long until somebody must have acted.
    limit: Duration,
}

impl Load {
    fn leak(rate: u64, distance: u64) -> Self {
        let limit = secs(distance / rate + 30);
        Self {
            name: format!("{rate} MiB/s"),
            args: ["leak", "--rate", &format!("{rate}Mi")].map(str::to_owned).into(),
            limit,
        }
    }

    fn step(size: u64) -> Self {
        let args = ["step", "--size", &format!("{size}Mi")].map(str::to_owned).into();
        Self { name: format!("step {size} MiB"), args, limit: secs(20) }
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
struct Run {
    load: Load,
    ballast: bool,
    evicted: bool,
    kills: Kills,
    /// Available at the decision, in bytes.
    available: u64,
    /// Growth before the decision, bytes per second.
    growth: f64,
    lead: Option<Duration>,
    freed: Option<Duration>,
    over: Option<Duration>,
    /// From crossing the threshold to the first OOM kill.
    lost_after: Option<Duration>,
    /// From the sample to the decision.
    age: String,
    gap: u64,
    /// Something happened to another pod.
    innocent: bool,
    /// What was not as it should be.
    wrong: Vec<String>,
}

impl Run {
    fn won(&self) -> bool {
        self.evicted && self.kills.none()
    }

    fn outcome(&self) -> String {
        match (self.won(), self.evicted) {
            (true, _) => "evicted first".to_owned(),
            (false, true) => format!("OOM KILL too ({})", self.kills),
            (false, false) => format!("OOM KILL ({})", self.kills),
        }
    }
}

fn table(runs: &[Run]) -> String {
    let mut out = String::from(
        "| run | load | from | outcome | left at the decision | growth | lead | freed after | over | nearest to the wall | victim |\n\
         |---:|---|---|---|---:|---:|---:|---:|---:|---:|---|\n",
    );
    let ms =
        |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), |t| format!("{:.0} ms", t.as_secs_f64() * 1e3));
    for (number, run) in runs.iter().enumerate() {
        out += &format!(
            "| {} | {} | {} | {} | {:.0} MiB | {:.0} MiB/s | {} | {} | {} | {:.0} MiB | {} |\n",
            number + 1,
            run.load.name,
            if run.ballast { "2000 MiB" } else { "zero" },
            run.outcome(),
            mib(run.available),
            run.growth / f64::from(1 << 20),
            ms(run.lead),
            ms(run.freed),
            ms(run.over),
            mib(run.gap),
            if run.wrong.is_empty() { "right".to_owned() } else { run.wrong.join("; ") },
        );
    }
    out
}

/// The runs of each load together: how many were won, and the median and the worst of what was measured.
fn summary(runs: &[Run]) -> String {
    let mut out = String::from(
        "| load | from | the kernel OOM-killed something, of these not the leak | evicted first, right victim | lead: median, least | freed after: median, most | \
         over: median, most | OOM killer after: median, most | nearest to the wall |\n\
         |---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    let key = |run: &Run| (run.load.name.clone(), run.ballast);
    let mut loads: Vec<(String, bool)> = Vec::new();
    for run in runs {
        if !loads.contains(&key(run)) {
            loads.push(key(run));
        }
    }
    for load in loads {
        let of: Vec<&Run> = runs.iter().filter(|run| key(run) == load).collect();
        let won = of.iter().filter(|run| run.won() && run.wrong.is_empty()).count();
        let cell = |of: &dyn Fn(&Run) -> Option<Duration>, worst_is_last: bool| {
            let mut times: Vec<Duration> = runs.iter().filter(|run| key(run) == load).filter_map(of).collect();
            times.sort_unstable();
            let worst = if worst_is_last { times.last() } else { times.first() };
            match (times.get(times.len() / 2), worst) {
                (Some(median), Some(worst)) => {
                    format!("{:.0} ms, {:.0} ms", median.as_secs_f64() * 1e3, worst.as_secs_f64() * 1e3)
                }
                _ => "-".to_owned(),
            }
        };
        out += &format!(
            "| {} | {} | {}, {} | {won} of {} | {} | {} | {} | {} | {:.0} MiB |\n",
            load.0,
            if load.1 { "2000 MiB" } else { "zero" },
            of.iter().filter(|run| !run.kills.none()).count(),
            of.iter().filter(|run| !run.kills.none() && run.innocent).count(),
            of.len(),
            cell(&|run| run.lead, false),
            cell(&|run| run.freed, true),
            cell(&|run| run.over, true),
            cell(&|run| run.lost_after, true),
            mib(of.iter().map(|run| run.gap).min().unwrap_or(0)),
        );
    }
    out
}

/// The message of an eviction. Where the container exits with 0 at SIGTERM a stock kubelet makes the pod Succeeded, and says only
/// in a condition that it was evicted.
fn eviction(status: &Value) -> Option<&str> {
    let by_kubelet =
        |condition: &&Value| condition["type"] == "DisruptionTarget" && condition["reason"] == "TerminationByKubelet";
    let condition = status["conditions"].as_array().into_iter().flatten().find(by_kubelet);
    let of = if status["reason"] == "Evicted" { Some(status) } else { condition };
    of.filter(|_| status["phase"] == "Failed" || status["phase"] == "Succeeded")?["message"].as_str()
}

/// The value of a key in a record's evidence.
fn evidence<'a>(record: &'a Value, key: &str) -> &'a str {
    let pairs = record["evidence"].as_array().into_iter().flatten();
    pairs.filter(|pair| pair[0] == key).find_map(|pair| pair[1].as_str()).unwrap_or_default()
}

/// `102340Ki`, `2560Mi` or bytes.
fn quantity(text: &str) -> u64 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    let factor = match &text[digits.len()..] {
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => 1,
    };
    digits.parse::<u64>().unwrap_or(0) * factor
}

/// An agent with its bystanders, and the referee.
struct Race<'a> {
    agent: Agent<'a>,
    referee: Referee,
    ballast: bool,
    next: u32,
}

impl<'a> Race<'a> {
    fn start(bed: &'a Bed, options: &AgentOptions, ballast: bool) -> Self {
        let agent = Agent::start(bed, options);
        place(&agent, ballast);
        let referee = Referee::of(bed);
        assert_eq!(referee.kubepods.limit(), LIMIT, "the limit of kubepods");
        Self { agent, referee, ballast, next: 0 }
    }

    fn evictions(&self) -> u64 {
        let name = if self.agent.is_stock() { "kubelet_evictions" } else { "beelet_evictions_total" };
        self.agent.metrics().sum(name, &[]).unwrap_or(0.0) as u64
    }

    /// Container ids and restarts of the pods that nothing may happen to.
    fn others(&self) -> Vec<(String, Value, Value)> {
        let names = ["bystander", "ballast"].into_iter().filter(|name| self.ballast || *name != "ballast");
        let of = |name: &str| {
            let container = self.agent.container(name, "main").unwrap_or_default();
            (name.to_owned(), container["containerID"].clone(), container["restartCount"].clone())
        };
        names.map(of).collect()
    }

    fn run(&mut self, load: &Load) -> Run {
        self.next += 1;
        let name = format!("leak-{}", self.next);
        let kubepods = self.referee.kubepods.clone();
        let (others, evictions, base) = (self.others(), self.evictions(), kubepods.usage());
        let (counted, tasks) = (kubepods.kills(), kubepods.tasks());
        let round = self.referee.begin(&self.agent, PACE);
        let args: Vec<&str> = load.args.iter().map(String::as_str).collect();
        // Never: a leak that the kernel killed is not to begin anew.
        let manifest = pod(&name).workload(&args).spec("restartPolicy", json!("Never")).write(&self.agent.manifests);
        let ended = self.agent.wait(&format!("{name} ({}) to end", load.name), load.limit, |agent| {
            let lost = agent.is_stock() && kubepods.kills() > counted;
            agent
                .pod(&name)
                .filter(|pod| lost || pod["status"]["phase"] == "Failed" || eviction(&pod["status"]).is_some())
        });
        // A kubelet looks once a second whether a container has ended.
        std::thread::sleep(secs(if self.agent.is_stock() { 3 } else { 1 }));
        let (seen, kills) = self.referee.end(&self.agent, round);
        let mut run = Run {
            load: load.clone(),
            ballast: self.ballast,
            evicted: eviction(&ended["status"]).is_some(),
            kills,
            available: 0,
            growth: 0.0,
            lead: None,
            freed: None,
            over: None,
            lost_after: lost_after(&seen),
            age: String::new(),
            gap: LIMIT.saturating_sub(seen.peak()),
            innocent: false,
            wrong: Vec::new(),
        };
        let message = eviction(&ended["status"]).unwrap_or_default();
        if run.evicted {
            let decided = if self.agent.is_stock() { self.logged(message) } else { self.told_of(&name, &mut run) };
            measure(&mut run, decided, &seen, base);
            run.over = over(&seen, tasks);
        }
        if run.evicted && !is_the_kubelets_text(message) {
            run.wrong.push(format!("the message is {message:?}"));
        }
        if self.evictions() != evictions + u64::from(run.evicted) {
            run.wrong.push(format!("{} evictions, not one", self.evictions() - evictions));
        }
        let now = self.others();
        let touched =
            others.iter().zip(&now).filter(|(before, now)| before != now).map(|(before, _)| before.0.as_str());
        let touched = touched.collect::<Vec<_>>().join(", ");
        run.innocent = !touched.is_empty();
        if run.innocent {
            run.wrong.push(format!("others were touched: {touched}"));
        }
        fs::remove_file(manifest).expect("its manifest");
        self.agent.wait_gone(&name, secs(60));
        if !run.innocent {
            let free = base + (32 << 20);
            self.agent.wait("its memory to be free", secs(30), |_| (kubepods.usage() < free).then_some(()));
        } else {
            // Without what they wait for before they start again.
            self.agent.clear();
            place(&self.agent, self.ballast);
        }
        run
    }

    /// When beelet decided, and what was left then; also what it says was wrong.
    fn told_of(&self, name: &str, run: &mut Run) -> (u64, u64) {
        let records = self.agent.wait("what the eviction gained to be told", secs(15), |agent| {
            let explain = agent.explain("default", name);
            let records = explain["records"].as_array()?;
            records.iter().any(|record| record["reason"] == "EvictionGained").then(|| records.clone())
        });
        let of = |reason: &str| records.iter().find(|record| record["reason"] == reason);
        let Some(record) = of("Evicted") else { return (0, 0) };
        run.wrong.extend(gained_wrong(record, of("EvictionGained")));
        evidence(record, "sample_age").clone_into(&mut run.age);
        (record["at"]["wall"].as_u64().unwrap_or(0), quantity(evidence(record, "available")))
    }

    /// The same of a stock kubelet: it logs that it must evict before it ranks, and its message says what was left.
    fn logged(&self, message: &str) -> (u64, u64) {
        let text = self.agent.log_text();
        let line = text.lines().rfind(|line| line.contains("must evict pod(s) to reclaim"));
        let left = message.split_once("available: ").map_or("", |(_, rest)| rest.split('.').next().unwrap_or_default());
        (line.and_then(logged_at).unwrap_or(0), quantity(left))
    }

    fn finish(self) {
        if self.agent.is_stock() {
            // What it leaves behind goes with the bed.
            return self.agent.clear();
        }
        self.agent.finish();
    }
}

/// Puts those that nothing may happen to on the node, and waits until they hold what they hold.
fn place(agent: &Agent<'_>, ballast: bool) {
    pod("bystander").workload(&["sleep"]).write(&agent.manifests);
    if ballast {
        let heavy = pod("ballast").workload(&["step", "--size", "2000Mi"]).request("memory", "2100Mi");
        heavy.spec("priority", json!(1000)).write(&agent.manifests);
    }
    agent.wait_running("bystander", secs(60));
    if ballast {
        agent.wait_running("ballast", secs(60));
        let kubepods = Kubepods::of(agent.bed);
        agent.wait("the ballast to be held", secs(60), |_| (kubepods.usage() > 2000 << 20).then_some(()));
    }
}

/// Fills in what was left at the decision, and what the usage around it says.
fn measure(run: &mut Run, (decided, available): (u64, u64), seen: &Seen, base: u64) {
    run.available = available;
    let at = seen.usage.iter().rev().find(|(at, _)| *at <= decided).copied().unwrap_or_default();
    let before = seen.usage.iter().find(|(at, _)| *at + 500_000 >= decided).copied().unwrap_or_default();
    if at.0 > before.0 && at.1 > before.1 {
        run.growth = (at.1 - before.1) as f64 / ((at.0 - before.0) as f64 / 1e6);
        run.lead = Some(Duration::from_secs_f64(run.available as f64 / run.growth));
    }
    let peak = seen.peak();
    let free = base + peak.saturating_sub(base) / 10;
    let freed = seen.usage.iter().find(|(at, usage)| *at > decided && *usage <= free);
    run.freed = freed.map(|(at, _)| Duration::from_micros(at - decided));
}

/// When the threshold was crossed.
fn crossed(seen: &Seen) -> Option<u64> {
    seen.usage.iter().find(|(_, usage)| *usage > LIMIT - quantity(THRESHOLD)).map(|(at, _)| *at)
}

fn lost_after(seen: &Seen) -> Option<Duration> {
    Some(Duration::from_micros(seen.killed?.saturating_sub(crossed(seen)?)))
}

/// From crossing the threshold until there are as few tasks as before the victim came; `None` if it was never crossed.
fn over(seen: &Seen, before: u64) -> Option<Duration> {
    let crossed = crossed(seen)?;
    let (gone, _) = seen.tasks.iter().find(|(at, tasks)| *at > crossed && *tasks <= before)?;
    Some(Duration::from_micros(gone - crossed))
}

/// What is wrong with what the agent says of the eviction's gain: most of what the victim held is free, and that took some time.
fn gained_wrong(evicted: &Value, gained: Option<&Value>) -> Option<String> {
    let Some(gained) = gained else { return Some("nothing is told of what was gained".to_owned()) };
    let (held, freed) = (quantity(evidence(evicted, "victim_unreclaimable")), quantity(evidence(gained, "freed")));
    let after = evidence(gained, "free_after");
    (freed < held / 5 * 4 || after == "not free").then(|| format!("of {held} held {freed} were freed after {after}"))
}

/// pkg/kubelet/eviction/helpers.go: the threshold, what was left, and the containers over their request.
fn is_the_kubelets_text(message: &str) -> bool {
    let start = format!("The node was low on resource: memory. Threshold quantity: {THRESHOLD}, available: ");
    let Some(rest) = message.strip_prefix(&start) else { return false };
    let Some((available, rest)) = rest.split_once(". Container main was using ") else { return false };
    let Some((using, rest)) = rest.split_once(", request is ") else { return false };
    quantity(available) > 0 && quantity(using) > 0 && rest == "0, has larger consumption of memory. "
}

/// Fails unless every run that counts was won, with the right victim.
fn assert_all_won(runs: &[Run], agent: &Agent<'_>) {
    let bad = |run: &&Run| !run.won() || !run.wrong.is_empty();
    let lost = runs.iter().filter(bad).count();
    assert_eq!(
        lost,
        0,
        "{lost} of {} runs were not as they should be:\n{}\n{}",
        runs.len(),
        table(runs),
        agent.log_tail()
    );
}

// === the tests ===

/// Must show 5, small: two leaks of each rate.
#[test]
fn leaks_are_evicted_before_the_oom_killer() {
    let Some(bed) = BED.get("leaks_are_evicted_before_the_oom_killer") else { return };
    let mut race = Race::start(&bed, &AgentOptions::default(), true);
    let runs: Vec<Run> = [100, 25, 100, 25].iter().map(|&rate| race.run(&Load::leak(rate, 560))).collect();
    say(&format!("oom: load {}\n{}", load(), table(&runs)));
    assert_all_won(&runs, &race.agent);
    race.finish();
}

/// Writes and reads files until `size` are through, beside the ballast: the cache fills all that is left below the limit.
/// Gives the most that was used.
fn files_alarm_nobody(race: &Race<'_>, size: &str) -> u64 {
    let actions = |race: &Race<'_>| {
        let metrics = race.agent.metrics();
        let said = race.agent.log_text();
        (
            metrics.sum("beelet_evictions_total", &[]).unwrap_or(0.0),
            said.matches("Evict").count(),
            said.matches("killed the pod").count(),
        )
    };
    let (before, others) = (actions(race), race.others());
    let watch = Watch::start(race.referee.kubepods.clone(), PACE);
    pod("files")
        .workload(&["files", "--dir", "/data", "--size", size])
        .field("volumeMounts", json!([{ "name": "data", "mountPath": "/data" }]))
        .spec("volumes", json!([{ "name": "data", "emptyDir": {} }]))
        .spec("restartPolicy", json!("Never"))
        .write(&race.agent.manifests);
    race.agent.wait("the files to be written and read", secs(600), |agent| {
        let pod = agent.pod("files")?;
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        assert_ne!(phase, "Failed", "{}", agent.state());
        assert_eq!(agent.metrics().value("beelet_node_memory_pressure", &[]), Some(0.0), "{}", agent.state());
        (phase == "Succeeded").then_some(())
    });
    let seen = watch.end();
    assert_eq!(actions(race), before, "page cache is no reason to act\n{}", race.agent.state());
    assert_eq!(race.others(), others, "others were touched");
    seen.peak()
}

/// Must show 5: page cache is no reason to act.
#[test]
fn files_are_no_reason_to_act() {
    let Some(bed) = BED.get("files_are_no_reason_to_act") else { return };
    let race = Race::start(&bed, &AgentOptions::default(), true);
    let started = Instant::now();
    let peak = files_alarm_nobody(&race, "4Gi");
    say(&format!(
        "oom: 4 GiB of files in {:.1} s, at most {:.0} of 2560 MiB used, 0 actions; load {}",
        started.elapsed().as_secs_f64(),
        mib(peak),
        load()
    ));
    assert!(peak > LIMIT - (160 << 20), "the cache did not fill what was left: the test shows nothing ({peak})");
    race.finish();
}

/// Must show 5 in full; `cargo xtask bench oom`.
#[test]
#[ignore = "takes minutes: cargo xtask bench oom"]
fn bench() {
    let Some(bed) = BED.get("bench") else { return };
    let list = |name: &str, default: &str| {
        let text = std::env::var(name).unwrap_or_else(|_| default.to_owned());
        text.split(',').map(|n| n.trim().parse().unwrap_or_else(|e| panic!("{name}={text}: {e}"))).collect::<Vec<u64>>()
    };
    let (runs_each, rates) = (list("BEELET_BENCH_RUNS", "10")[0], list("BEELET_BENCH_RATES", "10,50,100,400,1000"));
    let kubelet = std::env::var_os("BEELET_BENCH_KUBELET").map(PathBuf::from);
    let options = kubelet.map_or_else(AgentOptions::default, AgentOptions::stock);
    let before = load();
    let mut runs = Vec::new();
    let mut race = Race::start(&bed, &options, true);
    // First: after an eviction the node says MemoryPressure for minutes.
    let started = Instant::now();
    let files = (!race.agent.is_stock()).then(|| (files_alarm_nobody(&race, "10Gi"), started.elapsed()));
    let leaks = rates.iter().flat_map(|&rate| (0..runs_each).map(move |_| Load::leak(rate, 560)));
    for load in leaks.chain((0..runs_each).map(|_| Load::step(600))) {
        runs.push(race.run(&load));
        let run = runs.last().expect("a run");
        say(&format!("{}: {}: {}, load {}", runs.len(), run.load.name, run.outcome(), self::load()));
    }
    race.finish();
    let mut race = Race::start(&bed, &options, false);
    runs.push(race.run(&Load::leak(100, 2560)));

    let won = runs.iter().filter(|run| run.won() && run.wrong.is_empty()).count();
    let mut over: Vec<Duration> = runs.iter().filter_map(|run| run.over).collect();
    over.sort_unstable();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!("{}", summary(&runs));
    let lost: Vec<Run> = runs.iter().filter(|run| !run.won() || !run.wrong.is_empty()).cloned().collect();
    if !lost.is_empty() {
        println!("what was not as it should be:\n\n{}", table(&lost));
    }
    println!("evicted before the kernel's OOM killer: {won} of {}", runs.len());
    if let (Some(median), Some(most)) = (over.get(over.len() / 2), over.last()) {
        println!(
            "from crossing the threshold to the last process of the victim gone: median {median:.0?}, at most {most:.0?}, of {} that crossed it",
            over.len()
        );
    }
    let mut ages: Vec<f64> = runs.iter().filter_map(|run| run.age.trim_end_matches('s').parse().ok()).collect();
    ages.sort_unstable_by(f64::total_cmp);
    if let (Some(median), Some(most)) = (ages.get(ages.len() / 2), ages.last()) {
        println!("from sample to decision: median {:.1} ms, at most {:.1} ms", median * 1e3, most * 1e3);
    }
    if let Some((peak, time)) = files {
        println!(
            "10 GiB of files written and read beside the ballast: {:.0} s, at most {:.0} of 2560 MiB used, 0 actions",
            time.as_secs_f64(),
            mib(peak)
        );
    }
    println!("{cpus} CPUs; load average before {before}, after {}", load());
    // What a stock kubelet does is measured, not demanded.
    if !race.agent.is_stock() {
        assert_all_won(&runs, &race.agent);
    }
    race.finish();
}
