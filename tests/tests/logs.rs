//! The logs of containers: rotated as fast as they grow, removed with their runs, linked for collectors.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, SharedBed, pod, say, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("logs");

const MIB: u64 = 1 << 20;

/// The folder of a container's logs below a podLogsDir.
fn folder(pod_logs: &Path, pod: &Value, container: &str) -> PathBuf {
    let meta = |key: &str| pod["metadata"][key].as_str().unwrap_or_default();
    pod_logs.join(format!("{}_{}_{}", meta("namespace"), meta("name"), meta("uid"))).join(container)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// What the files take of the disk.
fn used(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).sum()
}

/// The most that the files took, asked every 5 ms.
fn most_used(folder: &Path, within: Duration) -> u64 {
    let (began, mut most) = (Instant::now(), 0);
    while began.elapsed() < within {
        most = most.max(used(folder));
        std::thread::sleep(Duration::from_millis(5));
    }
    most
}

fn done(agent: &Agent<'_>, how: &str) -> f64 {
    agent.metrics().value("beelet_container_logs_total", &[("how", how)]).unwrap_or_default()
}

fn failed(agent: &Agent<'_>) -> f64 {
    let metrics = agent.metrics();
    let what = ["look", "rename", "compress", "remove", "link"];
    what.into_iter().filter_map(|what| metrics.value("beelet_container_log_errors_total", &[("what", what)])).sum()
}

#[test]
fn a15_4_a_pod_that_writes_as_fast_as_it_can_does_not_fill_the_disk() {
    let Some(bed) = BED.get("a15_4_a_pod_that_writes_as_fast_as_it_can_does_not_fill_the_disk") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let script = "head -c 8000000 /dev/zero | tr '\\0' x | fold -w 8000 > /lines; trap 'exit 0' TERM; \
                  echo begun; while :; do cat /lines; done";
    pod("loud").shell(script).spec("terminationGracePeriodSeconds", json!(1)).write(&agent.manifests);
    // Full every few seconds.
    let script = "n=0; trap 'exit 0' TERM; text=$(head -c 1000 /dev/zero | tr '\\0' y); while :; do \
                  i=0; while [ $i -lt 50 ]; do echo \"$n $text\"; n=$((n + 1)); i=$((i + 1)); done; sleep 0.02; done";
    pod("steady").shell(script).spec("terminationGracePeriodSeconds", json!(1)).write(&agent.manifests);
    let loud = agent.wait_running("loud", secs(90));
    let steady = agent.wait_running("steady", secs(60));
    let logs = folder(&bed.pod_logs_dir(), &loud, "main");
    let (began, before) = (Instant::now(), done(&agent, "rotated"));
    let most = most_used(&logs, secs(15));
    let rotated = done(&agent, "rotated") - before;
    let rate = rotated * 10.0 / began.elapsed().as_secs_f64();
    say(&format!(
        "logs: {rotated} rotations in {:.1} s, at least {rate:.0} MiB/s; the loud pod's logs took {:.1} MiB at most, \
         of 50 MiB that the policy allows; removed {}, compressed {}",
        began.elapsed().as_secs_f64(),
        most as f64 / MIB as f64,
        done(&agent, "removed"),
        done(&agent, "compressed"),
    ));
    assert!(rotated >= 10.0, "{rotated} rotations\n{}", agent.state());
    assert!(most <= 100 * MIB, "{} MiB", most / MIB);
    assert!(names(&logs).len() <= 7, "five, one being compressed and one being rotated: {:?}", names(&logs));
    assert_eq!(failed(&agent), 0.0, "{}", agent.log_tail());

    // Nothing is lost but what was too old: the numbers in what there is have no gap.
    let logs = folder(&bed.pod_logs_dir(), &steady, "main");
    agent.wait("a compressed file", secs(120), |_| {
        (names(&logs).iter().any(|name| name.ends_with(".gz"))).then_some(())
    });
    let plain = |name: &String| !name.ends_with(".gz") && !name.ends_with(".tmp") && name != "0.log";
    let newest = names(&logs).into_iter().rfind(plain).expect("a rotated file");
    let numbers = |text: &str| -> Vec<u64> {
        let said = text.lines().filter_map(|line| line.split(" stdout F ").nth(1));
        said.filter_map(|said| said.split(' ').next()?.parse().ok()).collect()
    };
    let rotated = numbers(&fs::read_to_string(logs.join(newest)).unwrap_or_default());
    assert!(rotated.len() > 1_000 && rotated.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are lost");
    // It is as large as the kubelet says, and a little more.
    let size = rotated.len() as u64 * 1_050;
    assert!((9 * MIB..14 * MIB).contains(&size), "{size}");

    // Meanwhile nobody keeps them small; an agent that comes back does.
    agent.kill9();
    std::thread::sleep(secs(2));
    agent.restart();
    let logs = folder(&bed.pod_logs_dir(), &loud, "main");
    agent.wait("the logs to be small again", secs(60), |_| (used(&logs) <= 100 * MIB).then_some(()));
    let most = most_used(&logs, secs(3));
    assert!(most <= 100 * MIB, "{} MiB after the agent came back", most / MIB);
    let metrics = agent.metrics();
    let labels = [("container", "main"), ("pod", "steady-node"), ("namespace", "default")];
    agent.wait("the kubelet's metric", secs(60), |agent| {
        agent.metrics().value("kubelet_container_log_filesystem_used_bytes", &labels).filter(|bytes| *bytes > 0.0)
    });
    assert!(metrics.value("beelet_container_logs_total", &[("how", "rotated")]).is_some());
    agent.finish();
}

#[test]
fn a15_5a_a15_5b_logs_and_links_go_with_their_runs() {
    let Some(bed) = BED.get("a15_5a_a15_5b_logs_and_links_go_with_their_runs") else { return };
    let pod_logs = bed.dir.join("log").join("pods");
    let links = bed.dir.join("log").join("containers");
    let options = AgentOptions::default()
        .set("podLogsDir", &pod_logs.display().to_string())
        .set("crashLoopBackOff", "\n  maxContainerRestartPeriod: 2s");
    let agent = Agent::start(&bed, &options);
    // A link of an earlier life, and one of somebody else.
    fs::create_dir_all(&links).unwrap();
    let foreign = links.join("theirs_default_c-0123456789ab.log");
    std::os::unix::fs::symlink("/nowhere/pods/default_theirs_u1/c/0.log", &foreign).unwrap();
    pod("crash").shell("echo run; sleep 1; exit 3").write(&agent.manifests);
    let restarted = |agent: &Agent<'_>, runs: u64| {
        agent.wait("restarts", secs(90), |agent| {
            (agent.restarts("crash")? >= runs).then(|| agent.pod("crash")).flatten()
        })
    };
    let crash = restarted(&agent, 3);
    let logs = folder(&pod_logs, &crash, "main");
    agent.wait("only the last two runs to have logs", secs(30), |agent| {
        let runs = agent.restarts("crash")?;
        let expected = [format!("{}.log", runs - 1), format!("{runs}.log")];
        (names(&logs) == expected).then_some(())
    });
    let ours =
        || names(&links).into_iter().filter(|name| name.starts_with("crash-node_default_main-")).collect::<Vec<_>>();
    // A run that is removed in between takes its link along.
    let said = |name: &String| fs::read_to_string(links.join(name)).is_ok_and(|log| log.contains("stdout F run"));
    agent.wait("two links, each to the log of its run", secs(30), |_| {
        let ours = ours();
        (ours.len() == 2 && ours.iter().all(said)).then_some(())
    });
    let words = agent.root_dir().join("pods").join(crash["metadata"]["uid"].as_str().unwrap()).join("containers/main");
    assert!(names(&words).len() <= 3, "{:?}", names(&words));
    fs::remove_file(agent.manifests.join("crash.yaml")).unwrap();
    agent.wait_gone("crash", secs(60));
    agent.wait("no log and no link", secs(30), |_| (names(&pod_logs).is_empty() && ours().is_empty()).then_some(()));
    assert!(foreign.is_symlink(), "it is not ours");
    assert_eq!(failed(&agent), 0.0, "{}", agent.log_tail());
    agent.finish();
}
