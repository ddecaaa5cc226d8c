//! Pods come and go, a thousand in a row: afterwards all is as it was before.
//!
//! Problem: what is left of each pod is small, and a node has many of them in its life. Approach: after a few pods, so that what is made
//! once is there, everything that a pod has is counted; then they come and go, a few at a time; then it is counted again and must be the
//! same number, or for memory no more than what is kept on purpose. `cargo xtask bench churn --pods 1000` is the real thing; the test has
//! thirty pods. [`soak`](../soak/index.html) looks at growth over time instead, with pods that stay for a while.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Bed, Cri, Pod, SharedBed, hierarchies, pod, say, secs};
use serde_json::json;

static BED: SharedBed = SharedBed::new("churn");

/// So many pods are there at a time.
const ALIVE: usize = 10;
/// So many before it is counted for the first time.
const WARM: usize = ALIVE + 2;
/// Memory may grow by this: the records and the gone pods that are kept, up to a number, and what the allocator holds.
const GROWTH_KIB: i64 = 24 << 10;
/// What takes longer to go is left behind. What eBPF counted of pods that are gone is swept once a minute, at the second visit.
const PATIENCE: Duration = secs(200);
/// Not the same number afterwards, but about the same: memory, and what eBPF counts, which is also of others on this machine.
const MEMORY: &str = "resident KiB";
const MAPS: &str = "entries of eBPF maps";
/// Of [`MAPS`].
const OTHERS: i64 = 50;

/// Files and folders below.
fn files(folder: &Path) -> i64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| 1 + if entry.file_type().is_ok_and(|it| it.is_dir()) { files(&entry.path()) } else { 0 }).sum()
}

fn folders(folder: &Path) -> i64 {
    let below = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    below.filter(|path| path.is_dir()).map(|path| 1 + folders(&path)).sum()
}

/// How much there may be afterwards of what there was so much of.
fn most(what: &str, many: i64) -> i64 {
    match what {
        MEMORY => many + GROWTH_KIB,
        MAPS => many + OTHERS,
        _ => many,
    }
}

/// All that pods have, counted from outside of the agent where it can be.
fn count(agent: &Agent<'_>, logs: &Path) -> BTreeMap<String, i64> {
    let bed = agent.bed;
    let mut counted = BTreeMap::new();
    let mut add = |what: &str, many: i64| {
        counted.insert(what.to_owned(), many);
    };
    let proc = Path::new("/proc").join(agent.pid().to_string());
    let status = fs::read_to_string(proc.join("status")).expect("the agent's status");
    let of = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(-1)
    };
    add(MEMORY, of("VmRSS:"));
    add("open files", files(&proc.join("fd")));
    let groups: Vec<_> =
        hierarchies().iter().map(|it| it.mount.join(bed.cgroup_root.trim_start_matches('/'))).collect();
    add("cgroups", groups.iter().map(|group| folders(group)).sum());
    let all = fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = all.filter(|it| fs::read_to_string(it.join("cgroup")).is_ok_and(|text| text.contains(&bed.cgroup_root)));
    add("processes", ours.count().try_into().unwrap_or(-1));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places = [&bed.root_dir, &bed.run_dir, &bed.dir].map(|place| place.display().to_string());
    let below = mounts.lines().filter(|line| places.iter().any(|place| line.contains(place)));
    add("mounts", below.count().try_into().unwrap_or(-1));
    // Volumes, hosts files, last words and marks; then logs and the links to them.
    add("files of pods", files(&bed.root_dir.join("pods")) + files(&bed.root_dir.join("beelet-pods")));
    add("logs and links", files(logs));
    let cri = Cri::new(bed);
    add("sandboxes", cri.sandboxes().len().try_into().unwrap_or(-1));
    add("containers", cri.containers().len().try_into().unwrap_or(-1));
    let metrics = agent.metrics();
    let entries = |name: &str| metrics.all(name, &[]).map(|sample| sample.value as i64).sum();
    add(MAPS, entries("beelet_bpf_map_entries"));
    counted
}

/// The n-th pod: one with volumes and init containers, one that crashes and leaves its last words, one that just is there.
fn make(n: usize) -> Pod {
    // Names come again, as those of a Deployment's pods do not: what is kept by name is bounded by another number.
    let it = pod(&format!("churn-{}", n % 50)).spec("terminationGracePeriodSeconds", json!(2));
    let share = json!([{ "name": "memory", "mountPath": "/memory" }, { "name": "disk", "mountPath": "/disk" }]);
    match n % 3 {
        0 => it
            .init("first", e2e::BUSYBOX, &["sh", "-c", "echo begun; echo x > /disk/x; echo x > /memory/x"], &[])
            .field("volumeMounts", share.clone())
            .shell("trap 'exit 0' TERM; while :; do echo alive; sleep 0.2; done")
            .field("volumeMounts", share)
            .spec("volumes", json!([{ "name": "memory", "emptyDir": { "medium": "Memory" } }, { "name": "disk", "emptyDir": {} }])),
        1 => it
            .shell("echo last > /dev/termination-log; trap 'exit 0' TERM; [ -e /once/x ] && while :; do sleep 0.2; done; echo > /once/x; exit 3")
            .field("volumeMounts", json!([{ "name": "once", "mountPath": "/once" }]))
            .spec("volumes", json!([{ "name": "once", "emptyDir": {} }])),
        _ => it.workload(&["sleep"]),
    }
}

/// So many pods come, at most [`ALIVE`] at a time, and go once they have run.
fn pass(agent: &Agent<'_>, from: usize, pods: usize) {
    let mut alive = Vec::new();
    let mut last = Instant::now();
    let go = |name: String| {
        agent.wait_running(&name, secs(120));
        fs::remove_file(agent.manifests.join(format!("{name}.yaml"))).expect("a manifest to remove");
    };
    for n in from..from + pods {
        if alive.len() == ALIVE {
            go(alive.remove(0));
        }
        let made = make(n);
        let name = made.value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        made.write(&agent.manifests);
        alive.push(name);
        if last.elapsed() > secs(30) {
            say(&format!("churn: {} of {pods} pods", n - from));
            last = Instant::now();
        }
    }
    alive.into_iter().for_each(go);
}

/// Waits until what pods had is gone, or for [`PATIENCE`]; returns what there is then.
fn rest(agent: &Agent<'_>, logs: &Path, goal: Option<&BTreeMap<String, i64>>) -> BTreeMap<String, i64> {
    agent.wait("the pods to be gone", secs(120), |agent| agent.try_pods().ok()?.is_empty().then_some(()));
    let began = Instant::now();
    let mut before = count(agent, logs);
    loop {
        std::thread::sleep(secs(1));
        let now = count(agent, logs);
        let quiet = match goal {
            Some(goal) => goal.iter().all(|(what, many)| now[what] <= most(what, *many)),
            // Nobody knows how much is right: what does not change any more.
            None => began.elapsed() > secs(5) && before.iter().all(|(what, many)| now[what] <= most(what, *many)),
        };
        if quiet || began.elapsed() > PATIENCE {
            return now;
        }
        before = now;
    }
}

fn churn(bed: &Bed, pods: usize, swept: bool) {
    let logs = bed.dir.join("churn-logs");
    let options = AgentOptions::default().set("podLogsDir", &logs.join("pods").display().to_string());
    let agent = Agent::start(bed, &options);
    let began = Instant::now();
    pass(&agent, 0, WARM);
    let warm = began.elapsed().as_secs_f64();
    let mut before = rest(&agent, &logs, None);
    say(&format!(
        "churn: {WARM} pods at first in {warm:.0} s, and {:.0} s of rest",
        began.elapsed().as_secs_f64() - warm
    ));
    if !swept {
        before.remove(MAPS);
    }
    let began = Instant::now();
    pass(&agent, WARM, pods);
    let took = began.elapsed().as_secs_f64();
    let after = rest(&agent, &logs, Some(&before));
    let rested = began.elapsed().as_secs_f64() - took;
    say(&format!(
        "churn: {pods} pods in {took:.0} s, {:.0} a minute; all as before {rested:.0} s later",
        pods as f64 * 60.0 / took
    ));
    let mut more = Vec::new();
    for (what, many) in &before {
        say(&format!("churn: {what:<22} {many:>8} -> {:>8}", after[what]));
        if after[what] > most(what, *many) {
            more.push(format!("{what}: {many} -> {}", after[what]));
        }
    }
    assert!(more.is_empty(), "it is not as before: {more:?}\n{:#?}", bed.leftovers());
    agent.finish();
}

#[test]
fn a4_11a_a4_12d_a4_12f_after_thirty_pods_all_is_as_before() {
    let Some(bed) = BED.get("a4_11a_a4_12d_a4_12f_after_thirty_pods_all_is_as_before") else { return };
    churn(&bed, 30, false);
}

/// `cargo xtask bench churn`.
#[test]
#[ignore = "a benchmark: cargo xtask bench churn"]
fn bench() {
    let Some(bed) = BED.get("bench") else { return };
    let pods = std::env::var("BEELET_BENCH_PODS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    churn(&bed, pods, true);
}
