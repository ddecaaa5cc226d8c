//! Why a pod is as it is: everything known about one pod, as data and as sentences.
//!
//! Terms: *nearby* are the names of pods that somebody who mistyped may have meant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use beelet_core::event::{Record, Rejected};
use beelet_core::health::Health;
use beelet_core::ladder::Rung;
use beelet_core::snapshot::{ContainerState, ContainerView, PodView, Snapshot};
use beelet_core::telemetry::{CgroupDetail, PodDetail};
use beelet_core::units::{Bytes, Micros, Now};
use serde::{Deserialize, Serialize};

use super::SelfReport;
use super::sources::{self, Source};
use super::words::{self, plain};

/// Everything known about a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// `namespace/name`.
    pub name: String,
    /// As of when.
    pub at: Now,
    /// The pod with its verdict and evidence; `None` if it is gone or was never started.
    pub pod: Option<Arc<PodView>>,
    /// What is expected of its memory.
    pub forecast: Option<Forecast>,
    /// Everything measured of it in the kernel.
    #[serde(default)]
    pub details: Details,
    /// Where its values come from; empty where nothing is measured of it.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// Its manifests that were refused.
    pub rejected: Vec<Rejected>,
    /// What happened to it and why, the newest last.
    pub records: Vec<Record>,
}

/// Everything measured of a pod beyond what its view shows; `None` where nothing was read yet.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Details {
    /// Network and storage.
    pub pod: Option<Arc<PodDetail>>,
    /// The whole pod's cgroup.
    pub cgroup: Option<Arc<CgroupDetail>>,
    /// Its containers, by name.
    pub containers: BTreeMap<String, Arc<CgroupDetail>>,
}

impl Details {
    fn of(pod: &PodView) -> Self {
        let own = |c: &ContainerView| Some((c.name.clone(), Arc::clone(c.detail.as_ref()?)));
        Self {
            pod: pod.detail.clone(),
            cgroup: pod.cgroup_detail.clone(),
            containers: pod.containers.iter().filter_map(own).collect(),
        }
    }
}

/// What is expected of a pod's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Memory that reclaim cannot free.
    pub unreclaimable: Option<Bytes>,
    /// The pod's limit.
    pub limit: Option<Bytes>,
    /// Growth of the unreclaimable part, bytes per second.
    pub growth: Option<i64>,
    /// Time until the pod's limit is hit.
    pub time_to_oom: Option<Micros>,
    /// Time until all pods together or the node run out.
    pub node_time_to_oom: Option<Micros>,
}

/// There is no such pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct NoSuchPod {
    /// What was looked for.
    pub error: String,
    /// What exists, `namespace/name`.
    pub nearby: Vec<String>,
}

/// Looks a pod up by the name it has here, or by its manifest's name without the node's suffix.
///
/// # Errors
/// If nothing of that name is known, with what exists.
pub fn explain(picture: &Snapshot, agent: &SelfReport, namespace: &str, name: &str) -> Result<Explanation, NoSuchPod> {
    let suffixed = format!("{name}-{}", picture.node.name);
    let of = |wanted: &str| {
        let found = picture.pods.iter().filter(|p| p.spec.namespace == namespace && p.spec.name == wanted);
        found.max_by_key(|p| (p.reading.is_some(), p.since)).cloned()
    };
    let pod = of(name).or_else(|| of(&suffixed));
    let names = [format!("{namespace}/{name}"), format!("{namespace}/{suffixed}")];
    let records: Vec<Record> = picture.records.iter().filter(|r| names.contains(&r.name)).cloned().collect();
    let named = |r: &&Rejected| r.pod.as_ref().is_some_and(|pod| names.contains(pod));
    let rejected: Vec<Rejected> = picture.rejected.iter().filter(named).cloned().collect();
    if pod.is_none() && records.is_empty() && rejected.is_empty() {
        return Err(missing(picture, namespace, name));
    }
    let forecast = pod.as_ref().map(|pod| {
        let memory = pod.reading.and_then(|r| r.memory);
        Forecast {
            unreclaimable: memory.map(|m| m.unreclaimable()),
            limit: memory.and_then(|m| m.limit),
            growth: pod.memory_growth,
            time_to_oom: pod.time_to_oom,
            node_time_to_oom: picture.node.time_to_oom,
        }
    });
    let full = pod.as_ref().map_or_else(|| names[0].clone(), |p| p.spec.full_name());
    let details = pod.as_deref().map(Details::of).unwrap_or_default();
    let read = pod.as_deref().filter(|pod| pod.reading.is_some());
    let sources = read.map(|pod| sources::of(pod, picture.at, agent)).unwrap_or_default();
    Ok(Explanation { name: full, at: picture.at, pod, forecast, details, sources, rejected, records })
}

fn missing(picture: &Snapshot, namespace: &str, name: &str) -> NoSuchPod {
    const MOST: usize = 10;
    let mut all: Vec<(u8, String)> = picture
        .pods
        .iter()
        .map(|p| {
            let (same_space, own) = (p.spec.namespace == namespace, p.spec.name.as_str());
            let shared = own.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
            let alike = own.contains(name) || name.contains(own) || shared >= 3;
            (u8::from(!alike) * 2 + u8::from(!same_space), p.spec.full_name())
        })
        .collect();
    all.sort();
    all.dedup();
    let nearby = all.into_iter().take(MOST).map(|(_, name)| name).collect();
    NoSuchPod { error: format!("there is no pod {namespace}/{name} on node {}", picture.node.name), nearby }
}

/// The explanation in sentences.
#[must_use]
pub fn sentences(explanation: &Explanation) -> String {
    let mut out = String::new();
    let now = explanation.at.wall;
    match &explanation.pod {
        Some(pod) => pod_sentences(&mut out, pod, explanation.forecast.as_ref(), now),
        None => {
            let _ = writeln!(out, "Pod {} is not on this node now.", explanation.name);
        }
    }
    for rejected in &explanation.rejected {
        let _ = writeln!(
            out,
            "Its manifest {} was refused: {}.",
            rejected.origin,
            plain(rejected.error.trim_end_matches('.'))
        );
    }
    let missing = explanation.sources.iter().filter(|source| !source.instead.is_empty());
    for Source { values, from, instead, .. } in missing {
        let _ = writeln!(out, "Of {}, {from} tells; not {}.", plain(values), plain(instead));
    }
    if !explanation.records.is_empty() {
        out.push_str("What happened:\n");
    }
    for record in &explanation.records {
        let container = record.container.as_ref().map(|c| format!(" [{c}]")).unwrap_or_default();
        let _ = writeln!(
            out,
            "  {}{container} {}: {}",
            words::moment(record.at.wall),
            record.reason,
            plain(&record.message)
        );
        if !record.evidence.is_empty() {
            evidence_sentences(&mut out, record);
        }
    }
    out
}

/// What led to it, or what came of it. Who was considered, and why it was this one, are sentences of their own.
fn evidence_sentences(out: &mut String, record: &Record) {
    let own_line = |name: &str| name.starts_with("rank_") || name == "why_this_one";
    let listed = record.evidence.iter().filter(|(name, _)| !own_line(name));
    let seen: Vec<String> = listed.map(|(name, value)| format!("{name} = {value}")).collect();
    let word = if record.reason == "EvictionGained" { "measured:" } else { "because" };
    if !seen.is_empty() {
        let _ = writeln!(out, "    {word} {}", plain(&seen.join(", ")));
    }
    for (place, (_, value)) in record.evidence.iter().filter(|(name, _)| name.starts_with("rank_")).enumerate() {
        let _ = writeln!(out, "    considered {}: {}", place + 1, plain(value));
    }
    for (_, value) in record.evidence.iter().filter(|(name, _)| name == "why_this_one") {
        let _ = writeln!(out, "    this one {}", plain(value));
    }
}

fn pod_sentences(out: &mut String, pod: &PodView, forecast: Option<&Forecast>, now: Micros) {
    let by = if pod.foreign { ", started by somebody else" } else { "" };
    let age = words::duration(now - pod.since);
    let _ =
        writeln!(out, "Pod {} is {} (state {}, age {age}{by}).", pod.spec.full_name(), pod.status_word(), pod.state);
    if !pod.message.is_empty() {
        let _ = writeln!(out, "It says: {}", plain(pod.message.trim_end()));
    }
    for left_out in &pod.spec.left_out {
        let _ = writeln!(out, "Of its manifest, {}.", plain(left_out.trim_end_matches('.')));
    }
    for container in &pod.containers {
        let state = match &container.state {
            ContainerState::Waiting { reason, message } if message.is_empty() => format!("waits: {reason}"),
            ContainerState::Waiting { reason, message } => format!("waits: {reason}, {message}"),
            ContainerState::Running { started } => format!("has been running for {}", words::duration(now - *started)),
            ContainerState::Terminated(exit) => {
                format!("ended {} ago with code {} ({})", words::duration(now - exit.finished), exit.code, exit.reason)
            }
        };
        let _ = write!(out, "Container {} {}; {} restarts", container.name, plain(&state), container.restarts);
        if let Some(last) = &container.last {
            let ago = words::duration(now - last.finished);
            let _ = write!(out, ", the last run ended {ago} ago with code {} ({})", last.code, plain(&last.reason));
        }
        if container.oom_kills > 0 {
            let _ = write!(out, ", {} OOM kills", container.oom_kills);
        }
        out.push_str(".\n");
    }
    let verdict = &pod.health;
    let since = || words::duration(now - verdict.since);
    let _ = match verdict.state {
        Health::Unknown => writeln!(out, "Whether it is healthy is not known yet."),
        Health::Healthy => writeln!(out, "Nothing speaks against its health, for {}.", since()),
        Health::Suspect => writeln!(out, "It is suspect for {}: {}.", since(), plain(&verdict.reason)),
        Health::Unhealthy => writeln!(out, "It is unhealthy for {}: {}.", since(), plain(&verdict.reason)),
    };
    for evidence in &verdict.evidence {
        let _ = writeln!(out, "  seen: {}", plain(evidence));
    }
    for rung in &pod.rungs {
        let does = match rung {
            Rung::Reclaim => "its page cache is freed slowly",
            Rung::Throttle => "its allocations are slowed down (memory.high)",
            Rung::Raise => "a container's memory limit is raised for now",
            Rung::Freeze => "it stands still until it is decided who goes",
            Rung::Leave => "it was asked to leave before memory runs short",
        };
        let _ = writeln!(out, "It is on the rung {rung} of the ladder: {does}.");
    }
    for slow in &pod.slow {
        let (lost, since) = (slow.lost.get() / 10_000, words::duration(now - slow.since));
        let _ = writeln!(
            out,
            "It is slow for {since}: {}, which costs it {lost} % of its time.",
            plain(&slow.cause.to_string())
        );
        for (name, value) in &slow.evidence {
            let _ = writeln!(out, "  measured: {} = {}", plain(name), plain(value));
        }
    }
    if let Some(forecast) = forecast {
        forecast_sentence(out, forecast);
    }
    if !pod.resize.is_empty() {
        let _ = writeln!(out, "A change of its resources is under way: {}.", plain(&pod.resize));
    }
    if !pod.last_action.is_empty() {
        let _ = writeln!(out, "The last thing done: {}.", plain(&pod.last_action));
    }
}

fn forecast_sentence(out: &mut String, forecast: &Forecast) {
    if let Some(used) = forecast.unreclaimable {
        let limit = forecast.limit.map_or_else(|| "without a limit".to_owned(), |l| format!("of {}", words::bytes(l)));
        let _ = write!(out, "Its memory that cannot be reclaimed is {} {limit}", words::bytes(used));
        if let Some(growth) = forecast.growth {
            let rate = words::bytes(Bytes(growth.unsigned_abs()));
            let _ = write!(out, ", {} {rate}/s", if growth < 0 { "shrinking by" } else { "growing by" });
        }
        out.push_str(".\n");
    }
    if let Some(left) = forecast.time_to_oom {
        let _ = writeln!(out, "At this rate its limit is hit in {}.", words::duration(left));
    }
    if let Some(left) = forecast.node_time_to_oom {
        let _ =
            writeln!(out, "At the present rate all pods together or the node run out in {}.", words::duration(left));
    }
}

#[cfg(test)]
mod tests {
    use beelet_ebpf_common::program;

    use super::super::{Program, samples, samples_detail};
    use super::*;

    /// An agent whose programs are all there.
    fn loaded() -> SelfReport {
        let program = |name: &str| Program { name: name.to_owned(), loaded: true, ..Program::default() };
        SelfReport { programs: program::ALL.into_iter().map(program).collect(), ..SelfReport::default() }
    }

    #[test]
    fn a_program_that_is_missing_is_told_with_what_tells_instead() {
        let mut agent = loaded();
        agent.programs[0] = Program { loaded: false, reason: "switched off".to_owned(), ..agent.programs[0].clone() };
        let text = sentences(&explain(&samples::busy_node(), &agent, "default", "leak-node").unwrap());
        let line =
            "Of waits for a CPU, summed over tasks; switches, nothing tells; not eBPF sched_switch: switched off.\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn the_sentences_say_why() {
        let explanation = explain(&samples::busy_node(), &loaded(), "default", "leak-node").unwrap();
        assert_eq!(
            sentences(&explanation),
            "Pod default/leak-node is CrashLoopBackOff (state Running, age 2m5s).\n\
             Container leak waits: CrashLoopBackOff, back-off 10s restarting failed container=leak; 3 restarts, \
             the last run ended 5s ago with code 137 (OOMKilled), 3 OOM kills.\n\
             It is unhealthy for 5s: OOMVictim.\n  \
             seen: the OOM killer chose leak (pid 4711)\n\
             It is on the rung throttle of the ladder: its allocations are slowed down (memory.high).\n\
             Its memory that cannot be reclaimed is 43Mi of 128Mi, growing by 2Mi/s.\n\
             At this rate its limit is hit in 42s.\n\
             At the present rate all pods together or the node run out in 90s.\n\
             The last thing done: back-off 10s.\n\
             What happened:\n  \
             2026-11-23T10:00:00Z [leak] BackOff: Back-off restarting failed container leak in pod leak-node\n    \
             because exit code = 137\n"
                .replace("10:00:00Z", "09:59:55Z")
        );
    }

    #[test]
    fn what_is_left_out_of_the_manifest_is_told() {
        let mut picture = samples::busy_node();
        let mut view = (*picture.pods[0]).clone();
        let left_out = vec!["spec.containers[0].stdinOnce: has no effect yet".to_owned()];
        view.spec = Arc::new(beelet_core::spec::PodSpec { left_out, ..(*view.spec).clone() });
        let name = view.spec.name.clone();
        picture.pods[0] = view.into();
        let explanation = explain(&picture, &loaded(), "default", &name).unwrap();
        let json = serde_json::to_value(&explanation).unwrap();
        assert_eq!(json["pod"]["spec"]["left_out"][0], "spec.containers[0].stdinOnce: has no effect yet");
        let text = sentences(&explanation);
        assert!(text.contains("Of its manifest, spec.containers[0].stdinOnce: has no effect yet.\n"), "{text}");
    }

    #[test]
    fn a_slow_pod_is_told_the_cause_with_its_numbers() {
        let text = sentences(&explain(&samples_detail::detailed_node(), &loaded(), "default", "web").unwrap());
        assert!(text.contains("It is slow for 0s: it waits for CPUs that pod default/leak-node takes"), "{text}");
        assert!(text.contains(", which costs it 25 % of its time.\n  measured: waited = 25 % of the time\n"), "{text}");
    }

    #[test]
    fn nothing_that_a_container_says_moves_the_cursor() {
        let mut picture = samples::busy_node();
        let mut view = (*picture.pods[0]).clone();
        view.message = "one\ntwo\x1b[2J".to_owned();
        view.health.evidence = vec!["the OOM killer chose \x1b]0;x\x07".to_owned()];
        picture.pods[0] = view.into();
        picture.records[0].message = "\x1b[1A".to_owned();
        let text = sentences(&explain(&picture, &loaded(), "default", "leak-node").unwrap());
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.contains("It says: one two?[2J\n"), "{text}");
    }

    #[test]
    fn an_eviction_says_what_was_seen_who_was_considered_why_this_one_and_what_it_gained() {
        let mut picture = samples::busy_node();
        let evidence = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let record = picture.records[0].clone();
        let told = |reason: &str, message: &str, pairs| Record {
            container: None,
            reason: reason.into(),
            message: message.into(),
            evidence: evidence(pairs),
            ..record.clone()
        };
        picture.records = vec![
            told(
                "Evicted",
                "The node was low on resource: memory. ",
                &[
                    ("available", "99Mi"),
                    ("time_to_oom", "1.2s"),
                    ("decided_by", "priority"),
                    ("why_this_one", "before default/b: lower priority (0 < 1000)"),
                    ("rank_1", "default/leak-node: holds 320Mi"),
                    ("rank_2", "default/b: holds 900Mi"),
                ],
            ),
            told("EvictionGained", "its eviction freed 320Mi of 320Mi", &[("free_after", "0.06s")]),
        ];
        let text = sentences(&explain(&picture, &loaded(), "default", "leak-node").unwrap());
        let (_, happened) = text.split_once("What happened:\n").unwrap();
        assert_eq!(
            happened,
            "  2026-11-23T09:59:55Z Evicted: The node was low on resource: memory. \n    \
             because available = 99Mi, time_to_oom = 1.2s, decided_by = priority\n    \
             considered 1: default/leak-node: holds 320Mi\n    \
             considered 2: default/b: holds 900Mi\n    \
             this one before default/b: lower priority (0 < 1000)\n  \
             2026-11-23T09:59:55Z EvictionGained: its eviction freed 320Mi of 320Mi\n    \
             measured: free_after = 0.06s\n"
        );
    }

    #[test]
    fn the_name_in_the_manifest_is_enough() {
        assert_eq!(explain(&samples::busy_node(), &loaded(), "default", "web").unwrap().name, "default/web-node");
    }

    #[test]
    fn a_wrong_name_gets_the_near_ones_first() {
        let missing = explain(&samples::busy_node(), &loaded(), "default", "webb").unwrap_err();
        assert_eq!(missing.nearby, ["default/web-node", "default/leak-node"]);
        assert_eq!(missing.to_string(), "there is no pod default/webb on node node");
    }

    #[test]
    fn a_pod_that_is_gone_is_explained_by_its_records() {
        let picture = Snapshot { pods: vec![], ..samples::busy_node() };
        let text = sentences(&explain(&picture, &loaded(), "default", "leak-node").unwrap());
        assert!(text.starts_with("Pod default/leak-node is not on this node now.\nWhat happened:\n"), "{text}");
    }
}
