use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::*;
use crate::report::cadvisor::tests::recorded;
use crate::report::{samples, samples_dropin};

fn json(summaries: &Summaries, picture: &Snapshot, only: bool) -> Value {
    serde_json::to_value(summaries.make(picture, only)).unwrap()
}

/// Twice, as two scrapes: then services have rates.
fn ours(only: bool) -> Value {
    let (summaries, mut picture) = (Summaries::default(), samples_dropin::recorded_node());
    let mut detail = NodeDetail::clone(picture.node.detail.as_ref().unwrap());
    json(&summaries, &picture, only);
    for (_, _, reading) in &mut detail.services {
        reading.at += Micros::secs(10);
        let usage = &mut reading.cpu.as_mut().unwrap().usage;
        *usage = usage.map(|used| used + Micros::secs(1));
    }
    picture.node.detail = Some(Arc::new(detail));
    json(&summaries, &picture, only)
}

/// The paths of all fields; elements of a list have one.
fn paths(value: &Value, at: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                paths(inner, &format!("{at}/{name}"), out);
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| paths(inner, &format!("{at}[]"), out)),
        _ => {
            out.insert(at.to_owned());
        }
    }
}

#[test]
fn fields_are_the_stock_kubelets() {
    for (file, only) in [("stats-summary.json", false), ("stats-summary-cpu-memory.json", true)] {
        let (mut theirs, mut mine) = (BTreeSet::new(), BTreeSet::new());
        for (_, text) in recorded(file) {
            paths(&serde_json::from_str(&text).unwrap(), "", &mut theirs);
        }
        paths(&ours(only), "", &mut mine);
        let missing: Vec<&String> = theirs.difference(&mine).collect();
        assert_eq!(missing, Vec::<&String>::new(), "{file}: left out");
        // Optional fields of the same types, which nothing in the recordings had.
        let known = |path: &&String| ["swapAvailableBytes", "availableBytes"].iter().any(|name| path.ends_with(name));
        let more: Vec<&String> = mine.difference(&theirs).filter(|path| !known(path)).collect();
        assert_eq!(more, Vec::<&String>::new(), "{file}: more than there should be");
    }
}

fn named<'v>(list: &'v Value, name: &str) -> &'v Value {
    let is_it = |v: &&Value| v["name"] == name || v["podRef"]["name"] == name;
    list.as_array().unwrap().iter().find(is_it).unwrap()
}

#[test]
fn values_are_the_pictures() {
    let summary = ours(false);
    let node = &summary["node"];
    assert_eq!(node["nodeName"], "node");
    assert_eq!(node["startTime"], "2026-11-23T09:43:20Z");
    assert_eq!(node["cpu"]["usageCoreNanoSeconds"], 100_000_000_000_u64);
    assert_eq!(node["memory"]["availableBytes"], (4096_u64 - 1500) << 20);
    assert_eq!(named(&node["systemContainers"], "runtime")["cpu"]["usageNanoCores"], 100_000_000);
    let holder = named(&summary["pods"], "holder-node");
    assert_eq!(holder["podRef"]["uid"], format!("{:032x}", 100));
    assert_eq!(holder["process_stats"]["process_count"], 12);
    // Two containers' layers and logs and the volume on disk, not the one in memory.
    assert_eq!(holder["ephemeral-storage"]["usedBytes"], 2 * 1_000 + 2 * 200 + 30);
    assert_eq!(holder["ephemeral-storage"]["inodesUsed"], 5 * 7);
    let anon = named(&holder["containers"], "anon");
    assert_eq!(anon["memory"]["workingSetBytes"], (60_u64 + 101 - 10) << 20);
    assert_eq!(anon["memory"]["availableBytes"], (128_u64 + 101 - 60 - 101 + 10) << 20);
    assert_eq!(anon["memory"]["time"], "2026-11-23T09:59:55Z");
    assert_eq!(anon["cpu"]["usageNanoCores"], 120_000_000);
    assert_eq!(anon["cpu"]["psi"]["some"]["avg10"], 1.25);
    assert_eq!(anon["cpu"]["psi"]["some"]["total"], 101 + 7);
    assert!(named(&summary["pods"], "hostnet-node").get("network").is_none());
    assert_eq!(named(&summary["pods"], "web-node")["network"]["name"], "eth0");
}

#[test]
fn what_is_not_known_is_left_out_and_what_does_not_run_too() {
    let summary = json(&Summaries::default(), &samples::busy_node(), false);
    let pods = summary["pods"].as_array().unwrap();
    assert_eq!(pods.len(), 1, "the leak waits");
    let web = named(&summary["pods"], "web-node");
    for field in ["network", "volume", "ephemeral-storage", "process_stats", "swap"] {
        assert!(web.get(field).is_none(), "{field}");
    }
    assert!(web["memory"].get("pageFaults").is_none());
    let node = &summary["node"];
    assert!(node.get("cpu").is_none() && node.get("fs").is_none() && node["startTime"].is_null());
    let text = summary.to_string();
    assert_eq!(text.matches("null").count(), 1, "{text}");
}

#[test]
fn a_service_that_began_anew_has_no_rate() {
    let reading = |id: u64, at: u64, used: u64| CgroupReading {
        id,
        at: Micros::secs(at),
        cpu: Some(beelet_core::sample::CpuReading { usage: Some(Micros::secs(used)), ..Default::default() }),
        ..CgroupReading::default()
    };
    let detail =
        |reading| NodeDetail { services: vec![("kubelet".into(), Micros::ZERO, reading)], ..NodeDetail::default() };
    let mut rates = Rates::default();
    rates.take(&detail(reading(1, 10, 5)));
    assert_eq!(rates.of("kubelet"), None, "one reading");
    rates.take(&detail(reading(1, 20, 6)));
    rates.take(&detail(reading(1, 20, 6)));
    assert_eq!(rates.of("kubelet"), Some(100_000_000), "asking twice at once changes nothing");
    rates.take(&detail(reading(2, 30, 7)));
    assert_eq!(rates.of("kubelet"), None, "another cgroup");
}
