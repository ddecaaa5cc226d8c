//! Leaks against the kernel's OOM killer on pure cgroup v2: at the wall of all pods, where the leak is evicted, and at a limit of its
//! own that may be raised.
//!
//! `cargo xtask vm test` runs one of each; `cargo xtask bench oom --vm` several rates several times, for a table. The referee is the
//! kernel: `memory.events` of `kubepods`, which counts all below it. What was held at the decision is the agent's own evidence.

use std::fmt::{self, Display, Formatter};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ladder::{clear, number};
use super::node::Node;
use super::truth::{
    LIMIT, Metrics, body, full, kernel_kills, manifest, pod, put, remove, running, runs, sh, wait, workload,
};
use crate::ctx::Ctx;

/// All pods together.
const PODS: &str = "/sys/fs/cgroup/kubepods";
/// The leak's own limit, and how far it goes, in MiB.
const OWN: [u64; 2] = [64, 80];

/// How a leak ended.
#[derive(Debug)]
pub(super) struct Run {
    rate: u32,
    /// Whether the agent did what it should.
    done: bool,
    /// OOM kills: `oom_kill` and `oom_group_kill` of `kubepods`, and by the agent.
    kills: [u64; 3],
    /// The first decision's record.
    record: Value,
    /// What else there is to say.
    said: String,
}

impl Run {
    fn won(&self) -> bool {
        self.done && self.kills == [0; 3]
    }

    fn evidence(&self, key: &str) -> &str {
        let pairs = self.record["evidence"].as_array().into_iter().flatten();
        pairs.filter(|pair| pair[0] == key).find_map(|pair| pair[1].as_str()).unwrap_or("?")
    }

    /// An amount of the evidence, such as `104645400`, `62340Ki` or `10485760 B/s`.
    fn mib(&self, key: &str) -> String {
        let text = self.evidence(key).split(' ').next().unwrap_or_default();
        let (number, shift) =
            match text.strip_suffix('i').and_then(|text| text.split_at_checked(text.len().saturating_sub(1))) {
                Some((number, "K")) => (number, 10),
                Some((number, "M")) => (number, 0),
                _ => (text, 20),
            };
        number.parse::<u64>().map_or_else(|_| "?".to_owned(), |number| (number >> shift).to_string())
    }

    /// For a check of which this is all.
    pub(super) fn checked(self) -> Result<String> {
        ensure!(self.won(), "{self}: {}", self.record);
        Ok(self.to_string())
    }
}

impl Display for Run {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let [kills, groups, told] = self.kills;
        let done = if self.done { "" } else { "not " };
        write!(out, "{done}done; oom_kill {kills}, oom_group_kill {groups}, {told} by the agent; {}", self.said)
    }
}

fn kills(node: &Node) -> Result<[u64; 3]> {
    let [kills, groups] = kernel_kills(node)?;
    Ok([kills, groups, Metrics::of(node)?.sum("beelet_oom_kills_total") as u64])
}

/// The first record of this reason that the agent has of a pod.
fn record(node: &Node, name: &str, reason: &str) -> Result<Value> {
    let explain: Value = serde_json::from_str(&body(node, &format!("/debug/explain/default/{}", full(name)))?)?;
    let records = explain["records"].as_array().into_iter().flatten();
    let of = records.filter(|record| record["reason"] == reason);
    Ok(of.min_by_key(|record| record["at"]["wall"].as_u64()).cloned().unwrap_or_default())
}

/// A leak without a limit of its own, against a wall of some 450 MiB.
pub(super) fn evicted(node: &Node, name: &str, rate: u32) -> Result<Run> {
    let (before, counted) = (runs(node)?, kills(node)?);
    let evictions = Metrics::of(node)?.sum("beelet_evictions_total");
    let mut leak = manifest(name, workload(&["leak", "--rate", &format!("{rate}Mi")]));
    // One that the kernel killed is not to begin anew.
    leak["spec"]["restartPolicy"] = json!("Never");
    put(node, &leak)?;
    let status = wait(node, "end of the leak", 2 * LIMIT, || {
        let status = pod(node, name)?["status"].clone();
        ensure!(status["phase"] == "Failed", "{status}");
        Ok(status)
    })?;
    wait(node, "end of its processes", LIMIT, || {
        let now = runs(node)?;
        ensure!(now.0 == before.0, "running before {:?}, now {:?}", before.0, now.0);
        let others = now.1.into_iter().filter(|(id, _)| before.1.contains_key(id)).collect();
        ensure!(before.1 == others, "before {:?}, now {others:?}", before.1);
        Ok(())
    })?;
    let now = kills(node)?;
    let evictions = Metrics::of(node)?.sum("beelet_evictions_total") - evictions;
    let run = Run {
        rate,
        done: status["reason"] == "Evicted" && evictions == 1.0,
        kills: [0, 1, 2].map(|n: usize| now[n] - counted[n]),
        record: record(node, name, "Evicted")?,
        said: status["message"].as_str().unwrap_or_default().trim().to_owned(),
    };
    remove(node, name)?;
    Ok(run)
}

/// A leak in a limit of its own that may be raised, and that twice the limit is enough for.
pub(super) fn raised(node: &Node, name: &str, rate: u32) -> Result<Run> {
    let counted = kills(node)?;
    let [own, most] = OWN;
    let (each, end) = (format!("{rate}Mi"), format!("{most}Mi"));
    let mut leak = manifest(name, workload(&["leak", "--rate", &each, "--limit", &end, "--delay", "5s"]));
    leak["metadata"]["annotations"] = json!({ "beelet.dev/raise": "true" });
    leak["spec"]["containers"][0]["resources"] = json!({ "limits": { "memory": format!("{own}Mi") } });
    leak["spec"]["restartPolicy"] = json!("Never");
    put(node, &leak)?;
    let group = running(node, name)?.group;
    ensure!(number(node, &format!("{group}/memory.max"))? == own << 20, "its limit is another one");
    // What it held in the end; nothing if it was killed.
    let held = wait(node, "a leak past its limit", LIMIT, || {
        if pod(node, name)?["status"]["phase"] == "Failed" {
            return Ok(0);
        }
        let now = number(node, &format!("{group}/memory.current"))?;
        ensure!(now > most << 20, "it holds {now}");
        Ok(now)
    })?;
    let limit = if held > 0 { number(node, &format!("{group}/memory.max"))? } else { 0 };
    let now = kills(node)?;
    let run = Run {
        rate,
        done: held > 0,
        kills: [0, 1, 2].map(|n: usize| now[n] - counted[n]),
        record: record(node, name, "MemoryLimitRaised")?,
        said: format!("limit {own} -> {} MiB, it held {} MiB", limit >> 20, held >> 20),
    };
    clear(node, name, &group)?;
    Ok(run)
}

/// `cargo xtask bench oom --vm`: both kinds, at each rate.
pub(crate) fn bench(ctx: &Ctx, times: u32, rates: &[u32]) -> Result<()> {
    let node = super::node::ready(ctx, super::machine::DEFAULT_KERNEL, false)?;
    put(&node, &manifest("bystander", workload(&["sleep"])))?;
    node.start_agent()?;
    node.wait_healthy(LIMIT)?;
    running(&node, "bystander")?;
    let (mut of_all, mut own, mut next) = (Vec::new(), Vec::new(), 0);
    for &rate in rates {
        for _ in 0..times {
            next += 1;
            for (kind, race, runs) in
                [("raise", raised as fn(&Node, &str, u32) -> Result<Run>, &mut own), ("evict", evicted, &mut of_all)]
            {
                let run = race(&node, &format!("{kind}-{next}"), rate).context(format!("{kind}, {rate} MiB/s"))?;
                eprintln!("{kind}, {rate} MiB/s: {run}");
                runs.push(run);
            }
        }
    }
    println!("kernel {}, software emulation\n", node.vm.kernel());
    println!(
        "| leak at the wall of all pods | reached | evicted first | oom_kill | held at the decision | left | sample's age, most |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|");
    table(&of_all, rates, ["victim_growth", "victim_unreclaimable", "available"], |run| {
        run.evidence("sample_age").to_owned()
    });
    println!(
        "\n| leak in its own limit of {} MiB, `raise` | reached | raised, not killed | oom_kill | held at the decision | room for all | then |",
        OWN[0]
    );
    println!("|---|---:|---:|---:|---:|---:|---|");
    table(&own, rates, ["growth", "container_unreclaimable", "room"], |run| run.said.clone());
    let numbers = sh(&node, &format!("cat {PODS}/memory.peak {PODS}/memory.max"))?;
    let mib: Vec<u64> = numbers.lines().filter_map(|line| Some(line.parse::<u64>().ok()? >> 20)).collect();
    println!("\nall pods: at most {mib:?} MiB (the most of all runs, the limit)");
    node.vm.down()?;
    let lost = of_all.iter().chain(&own).filter(|run| !run.won()).count();
    ensure!(lost == 0, "{lost} of {} runs were lost", of_all.len() + own.len());
    Ok(())
}

/// A line for each rate: growth, what was held and what was left of each run, in MiB, and the largest of what else there is.
fn table(runs: &[Run], rates: &[u32], keys: [&str; 3], last: impl Fn(&Run) -> String) {
    for rate in rates {
        let of: Vec<&Run> = runs.iter().filter(|run| run.rate == *rate).collect();
        let [growth, held, left] = keys.map(|key| of.iter().map(|run| run.mib(key)).collect::<Vec<_>>().join(", "));
        println!(
            "| {rate} MiB/s | {growth} MiB/s | {} of {} | {} | {held} MiB | {left} MiB | {} |",
            of.iter().filter(|run| run.won()).count(),
            of.len(),
            of.iter().map(|run| run.kills[0]).sum::<u64>(),
            of.iter().map(|run| last(run)).max().unwrap_or_default(),
        );
    }
}
