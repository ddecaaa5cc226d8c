//! Disks that run short: the node is tidied, then one pod goes, and it is the right one.
//!
//! Problem: what is short is a file system of this machine, which belongs to others. Approach: the agent's root folder is a small
//! file system of its own in memory, so nodefs is small; images lie elsewhere and are never short, unless a test says that all of that
//! file system has to be free.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use e2e::{Agent, AgentOptions, Bed, Cri, SharedBed, pod, say, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("disk");
/// Loses its images.
static OTHER: SharedBed = SharedBed::new("disk-images");

/// A file system of 64 MiB, mounted until dropped.
struct Small(PathBuf);

impl Small {
    fn mount(bed: &Bed, name: &str) -> Self {
        let path = bed.dir.join(name);
        fs::create_dir_all(&path).expect("a folder");
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "small"]).arg(&path).status();
        assert!(status.is_ok_and(|s| s.success()), "a tmpfs on {}", path.display());
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

fn agent<'a>(bed: &'a Bed, root: &Path, settings: &[(&str, &str)]) -> Agent<'a> {
    let options = AgentOptions { root_dir: Some(root.to_owned()), ..AgentOptions::default() };
    // What this machine has on its disk is not the test's business.
    let options = options.set("imageGCHighThresholdPercent", "100").set("evictionPressureTransitionPeriod", "5s");
    Agent::start(bed, &settings.iter().fold(options, |options, (key, value)| options.set(key, value)))
}

/// A pod that runs a script and then nothing, with a volume at /data.
fn writer(name: &str, script: &str, volume: &Value) -> e2e::Pod {
    pod(name)
        .shell(&format!("trap 'exit 0' TERM; {script}; while true; do sleep 0.2; done"))
        .field("volumeMounts", json!([{ "name": "data", "mountPath": "/data" }]))
        .spec("volumes", json!([{ "name": "data", "emptyDir": volume }]))
        .spec("terminationGracePeriodSeconds", json!(1))
}

fn message(agent: &Agent<'_>, pod: &str) -> String {
    agent.pod(pod).and_then(|pod| Some(pod["status"]["message"].as_str()?.to_owned())).unwrap_or_default()
}

fn evicted(agent: &Agent<'_>, pod: &str, within: u64) -> String {
    agent.wait(&format!("{pod} to be evicted"), secs(within), |agent| {
        (agent.pod(pod)?["status"]["reason"] == "Evicted").then_some(())
    });
    agent.wait_phase(pod, "Failed", secs(30));
    message(agent, pod)
}

fn evictions(agent: &Agent<'_>, signal: &str) -> Option<f64> {
    agent.metrics().value("kubelet_evictions", &[("eviction_signal", signal)])
}

#[test]
fn who_fills_nodefs_goes_and_nobody_else() {
    let Some(bed) = BED.get("who_fills_nodefs_goes_and_nobody_else") else { return };
    let small = Small::mount(&bed, "nodefs");
    let hard = "\n  memory.available: 100Mi\n  nodefs.available: 50%";
    let agent = agent(&bed, &small.0, &[("evictionHard", hard)]);
    assert_eq!(evictions(&agent, "nodefs.available"), Some(0.0), "a first eviction is an increase");
    writer("quiet", "dd if=/dev/zero of=/data/file bs=1M count=2", &json!({})).write(&agent.manifests);
    // Small when it is looked at first, and large a moment before the disk is short.
    writer("filler", "sleep 20; dd if=/dev/zero of=/data/file bs=1M count=40", &json!({})).write(&agent.manifests);
    agent.wait_running("quiet", secs(60));
    agent.wait_running("filler", secs(60));
    agent.wait("DiskPressure", secs(60), |agent| {
        (agent.metrics().value("beelet_node_disk_pressure", &[]) == Some(1.0)).then_some(())
    });
    let short = Instant::now();
    assert_eq!(agent.snapshot()["node"]["disk_pressure"], true);
    let said = evicted(&agent, "filler", 60);
    say(&format!("disk: evicted {:.1} s after the disk was short: {said}", short.elapsed().as_secs_f64()));
    assert!(
        said.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 32Mi, available: "),
        "{said}"
    );
    agent.wait("the room to come back", secs(60), |agent| {
        (agent.metrics().value("beelet_node_disk_pressure", &[]) == Some(0.0)).then_some(())
    });
    assert_eq!(evictions(&agent, "nodefs.available"), Some(1.0), "{}", agent.state());
    assert_eq!(agent.phase("quiet"), "Running", "{}", agent.state());
    let log = agent.log_text();
    for told in ["EvictionThresholdMet", "Attempting to reclaim ephemeral-storage", "NodeHasDiskPressure", "rank_1="] {
        assert!(log.contains(told), "{told}\n{}", agent.log_tail());
    }
    assert!(log.contains("NodeHasNoDiskPressure"), "{}", agent.log_tail());
    agent.finish();
}

#[test]
fn a7_2d_a15_6_pods_over_their_own_limits_go() {
    let Some(bed) = BED.get("a7_2d_a15_6_pods_over_their_own_limits_go") else { return };
    let small = Small::mount(&bed, "limits");
    let agent = agent(&bed, &small.0, &[]);
    let fill = "dd if=/dev/zero of=/data/file bs=1M count=8";
    writer("volume", fill, &json!({ "sizeLimit": "4Mi" })).write(&agent.manifests);
    writer("whole", fill, &json!({})).limit("ephemeral-storage", "5Mi").write(&agent.manifests);
    // What it logs is its own; the other container's limit makes room in the pod's sum.
    let log = "head -c 6000000 /dev/zero | tr '\\0' x | fold -w 1000; echo";
    let script = format!("{log}; while true; do sleep 1; done");
    pod("logs")
        .container("main", e2e::BUSYBOX, &["sh", "-c", &script], &[])
        .limit("ephemeral-storage", "5Mi")
        .container("other", e2e::BUSYBOX, &["sleep", "3600"], &[])
        .limit("ephemeral-storage", "100Mi")
        // The node has less.
        .request("ephemeral-storage", "1Mi")
        .spec("terminationGracePeriodSeconds", json!(1))
        .write(&agent.manifests);
    writer("within", fill, &json!({ "sizeLimit": "9Mi" })).limit("ephemeral-storage", "20Mi").write(&agent.manifests);
    assert_eq!(
        evicted(&agent, "volume", 90),
        "Usage of EmptyDir volume \"data\" exceeds the limit \"4Mi\". ",
        "{}",
        agent.state()
    );
    assert_eq!(
        evicted(&agent, "whole", 90),
        "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "
    );
    assert_eq!(evicted(&agent, "logs", 90), "Container main exceeded its local ephemeral storage limit \"5Mi\". ");
    // Two more walks of its volume.
    std::thread::sleep(secs(20));
    assert_eq!(agent.phase("within"), "Running", "{}", agent.state());
    for signal in ["emptydirfs.limit", "ephemeralpodfs.limit", "ephemeralcontainerfs.limit"] {
        assert_eq!(evictions(&agent, signal), Some(1.0), "{signal}\n{}", agent.state());
    }
    agent.finish();
}

#[test]
fn a6_5a_images_that_nobody_uses_go_before_a_pod_does() {
    let Some(bed) = OTHER.get("a6_5a_images_that_nobody_uses_go_before_a_pod_does") else { return };
    let small = Small::mount(&bed, "root");
    // More than the file system of images will ever have: it stays short whatever goes.
    let hard = "\n  memory.available: 100Mi\n  imagefs.available: 99%";
    let agent = agent(&bed, &small.0, &[("evictionHard", hard), ("imageMinimumGCAge", "1s")]);
    let cri = Cri::new(&bed);
    let has = |name: &str| cri.images().iter().any(|image| image.contains(name));
    // It writes to its own layer: all that a pod has on that file system.
    pod("layer")
        .shell("dd if=/dev/zero of=/file bs=1M count=8; while true; do sleep 1; done")
        .spec("terminationGracePeriodSeconds", json!(1))
        .write(&agent.manifests);
    agent.wait_running("layer", secs(60));
    agent.wait("an unused image to go", secs(90), |_| (!has("workload")).then_some(()));
    let said = evicted(&agent, "layer", 120);
    assert!(said.starts_with("The node was low on resource: ephemeral-storage. "), "{said}");
    let log = agent.log_text();
    let first = |text: &str| log.find(text).unwrap_or_else(|| panic!("no {text:?}\n{}", agent.log_tail()));
    assert!(first("an image that nobody uses was removed") < first("reason=\"Evicted\""), "{}", agent.log_tail());
    assert!(log.contains("FreedDiskSpace") && has("pause"), "{}", agent.log_tail());
    assert!(evictions(&agent, "imagefs.available") >= Some(1.0), "{}", agent.state());
    agent.finish();
}
