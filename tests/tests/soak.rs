//! Pods come and go for long: the agent's memory, files, maps and series stay what they were.
//!
//! `cargo xtask bench soak --minutes 60` is the real thing; the test is a few minutes of it, enough for a leak with every pod.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Bed, SharedBed, pod, say, secs};

static BED: SharedBed = SharedBed::new("soak");

/// So many pods are there at a time.
const ALIVE: usize = 12;
/// Records are kept up to a number (`RECORDS` in agent/core/src/world.rs), so they grow until there are so many, and no further.
const RING: (&str, f64) = ("state records", 1_000.0);

/// What must not grow, at one moment.
fn sizes(agent: &Agent<'_>) -> BTreeMap<String, f64> {
    // On a machine that is busy with something else an answer may take its time.
    agent.wait("an answer", secs(120), |agent| agent.get("/metrics").ok());
    let metrics = agent.metrics();
    let mut sizes = BTreeMap::new();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("the agent's status");
    let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next());
    sizes.insert("resident KiB".to_owned(), kib.and_then(|n| n.parse().ok()).expect("VmRSS"));
    let files = fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("the agent's files").count();
    sizes.insert("open files".to_owned(), files as f64);
    sizes.insert("series".to_owned(), metrics.samples.len() as f64);
    for sample in metrics.all("beelet_bpf_map_entries", &[]) {
        sizes.insert(format!("map {}", sample.labels["map"]), sample.value);
    }
    for sample in metrics.all("beelet_state_entries", &[]) {
        sizes.insert(format!("state {}", sample.labels["what"]), sample.value);
    }
    sizes
}

/// The n-th pod: most just live for a while, some crash, some run into their limit, some talk.
fn make(agent: &Agent<'_>, n: usize) -> String {
    // Names come again: what is kept by name is bounded by them.
    let name = format!("churn-{}", n % 40);
    let seed = n.to_string();
    let pod = pod(&name);
    match n % 5 {
        0 => pod.workload(&["crash", "--after", "2s"]),
        1 => pod.workload(&["leak", "--rate", "20Mi"]).limit("memory", "40Mi"),
        2 => pod.workload(&["serve"]),
        _ => pod.workload(&["mixed", "--seed", &seed]),
    }
    .write(&agent.manifests);
    name
}

fn churn(bed: &Bed, time: Duration, warm: Duration) {
    let agent = Agent::start(bed, &AgentOptions::default());
    let began = Instant::now();
    let (mut made, mut alive, mut seen) = (0, Vec::new(), Vec::new());
    let mut look = began + warm;
    while began.elapsed() < time {
        alive.push(make(&agent, made));
        made += 1;
        if alive.len() > ALIVE {
            fs::remove_file(agent.manifests.join(format!("{}.yaml", alive.remove(0)))).expect("a manifest to remove");
        }
        std::thread::sleep(secs(2));
        if Instant::now() >= look {
            let now = sizes(&agent);
            say(&format!("soak: {made} pods, {:.0} KiB, {:.0} series", now["resident KiB"], now["series"]));
            seen.push(now);
            look += (time - warm) / 24;
        }
    }
    say(&format!("soak: {made} pods in {:.0} s, {} looks", began.elapsed().as_secs_f64(), seen.len()));
    let third = seen.len() / 3;
    assert!(third >= 3, "too few looks: {}", seen.len());
    let mut grown = Vec::new();
    for key in seen[seen.len() - 1].keys() {
        // What was left behind by pods that are gone is swept once a minute, so numbers rise and fall; a leak lifts the least, too.
        let least = |looks: &[BTreeMap<String, f64>]| {
            looks.iter().map(|look| look.get(key).copied().unwrap_or(0.0)).min_by(f64::total_cmp).unwrap_or(0.0)
        };
        let (first, last) = (least(&seen[..third]), least(&seen[seen.len() - third..]));
        say(&format!("soak: {key:<28} {first:>10.0} -> {last:>10.0}"));
        if key == RING.0 {
            assert!(last <= RING.1, "{key}: {last}, and {} is the most", RING.1);
            continue;
        }
        // What swings with the pods of the moment is not growth.
        if last > first * 1.15 + 25.0 {
            grown.push(format!("{key}: {first} -> {last}"));
        }
    }
    assert!(grown.is_empty(), "it grows: {grown:?}");
    agent.finish();
}

#[test]
fn nothing_grows_while_pods_come_and_go() {
    let Some(bed) = BED.get("nothing_grows_while_pods_come_and_go") else { return };
    churn(&bed, secs(150), secs(90));
}

/// `cargo xtask bench soak`.
#[test]
#[ignore = "a benchmark: cargo xtask bench soak"]
fn bench() {
    let Some(bed) = BED.get("bench") else { return };
    let minutes: u64 = std::env::var("BEELET_BENCH_MINUTES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    churn(&bed, secs(minutes * 60), secs(minutes * 6));
}
