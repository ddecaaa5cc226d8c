//! The rungs before an eviction on a real node, and that nothing of them outlives the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use e2e::{Agent, AgentOptions, Bed, Cri, SharedBed, built, hierarchies, pod, secs, wait_for};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("ladder");

/// The unified tree's folder of a group of the bed.
fn unified(bed: &Bed, group: &str) -> PathBuf {
    let tree = hierarchies().into_iter().find(|h| h.controllers.is_empty()).expect("a unified tree");
    tree.mount.join(bed.cgroup_root.trim_start_matches('/')).join(group)
}

/// A process that is frozen, and the folder of an agent that was killed just then.
struct Frozen {
    group: PathBuf,
    process: Child,
    root: tempfile::TempDir,
}

impl Frozen {
    fn new(bed: &Bed, name: &str) -> Self {
        let group = unified(bed, name);
        fs::create_dir_all(&group).expect("a cgroup");
        let process = Command::new("sleep").arg("1000").spawn().expect("a process");
        fs::write(group.join("cgroup.procs"), process.id().to_string()).expect("it moves");
        fs::write(group.join("cgroup.freeze"), "1").expect("it is frozen");
        let root = tempfile::tempdir().expect("a folder");
        fs::write(root.path().join("lock"), "").expect("a lock");
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let line = json!({ "Write": {
            "at": wall.as_micros() as u64,
            "cgroup": format!("{}/{name}", bed.cgroup_root.trim_start_matches('/')),
            "target": ["u1", ""], "before": { "Freeze": false }, "after": { "Freeze": true }, "why": "a test",
        }});
        fs::write(root.path().join("journal"), format!("{line}\n")).expect("a journal");
        Self { group, process, root }
    }

    fn is_frozen(&self) -> bool {
        fs::read_to_string(self.group.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    fn guard(&self) -> Child {
        let mut command = Command::new(built("BEELET_AGENT", "debug/beelet"));
        command.arg("guard").arg("--root-dir").arg(self.root.path());
        command.stdin(Stdio::piped()).spawn().expect("a guard")
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        fs::write(self.group.join("cgroup.freeze"), "0").ok();
        self.process.kill().ok();
        self.process.wait().ok();
        for _ in 0..50 {
            if fs::remove_dir(&self.group).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn what_a_killed_agent_left_frozen_is_thawed_in_time() {
    let Some(bed) = BED.get("what_a_killed_agent_left_frozen_is_thawed_in_time") else { return };
    let frozen = Frozen::new(&bed, "guarded");
    let mut guard = frozen.guard();
    std::thread::sleep(secs(3));
    assert!(frozen.is_frozen() && matches!(guard.try_wait(), Ok(None)), "while the agent lives it does nothing");
    let died = Instant::now();
    drop(guard.stdin.take());
    wait_for("thaw", secs(10), || (!frozen.is_frozen()).then_some(()), || format!("{:?}", died.elapsed()));
    assert!(guard.wait().expect("its end").success());
    let journal = fs::read_to_string(frozen.root.path().join("journal")).expect("the journal");
    assert!(journal.lines().last().is_some_and(|line| line.contains("Closed")), "{journal}");
}

#[test]
fn a_guard_leaves_all_to_an_agent_that_came_back() {
    let Some(bed) = BED.get("a_guard_leaves_all_to_an_agent_that_came_back") else { return };
    let frozen = Frozen::new(&bed, "taken-over");
    let mut guard = frozen.guard();
    let lock = fs::File::open(frozen.root.path().join("lock")).expect("the lock");
    flock(&lock, FlockOperation::LockExclusive).expect("it is ours");
    drop(guard.stdin.take());
    assert!(guard.wait().expect("its end").success());
    std::thread::sleep(secs(3));
    assert!(frozen.is_frozen());
}

/// The memory limit of a container's cgroup, by the kernel; `None` while it does not run.
fn limit(cri: &Cri, name: &str) -> Option<u64> {
    let pid = cri.pid(&cri.running(name).pop()?.id)?;
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let memory = hierarchies().into_iter().find(|h| h.controllers.iter().any(|c| c == "memory"));
    let (key, file) = if memory.is_some() { ("memory", "memory.limit_in_bytes") } else { ("", "memory.max") };
    let of = |line: &str| {
        let mut fields = line.splitn(3, ':').skip(1);
        let is_it = fields.next()?.split(',').any(|controller| controller == key);
        fields.next().filter(|_| is_it).map(str::to_owned)
    };
    let group = groups.lines().find_map(of).expect("its memory cgroup");
    let mount = memory.map_or_else(|| Path::new("/sys/fs/cgroup").to_owned(), |h| h.mount);
    let text = fs::read_to_string(mount.join(group.trim_start_matches('/')).join(file)).expect("its limit");
    Some(text.trim().parse().unwrap_or(u64::MAX))
}

#[test]
fn a_limit_is_raised_where_the_pod_asks_for_it_and_survives_the_agent() {
    let Some(bed) = BED.get("a_limit_is_raised_where_the_pod_asks_for_it_and_survives_the_agent") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let leak = ["leak", "--rate", "20Mi", "--limit", "150Mi", "--delay", "5s"];
    let asks = json!({ "beelet.dev/raise": "true" });
    pod("asks").workload(&leak).limit("memory", "128Mi").meta("annotations", asks).write(&agent.manifests);
    pod("silent").workload(&leak).limit("memory", "128Mi").write(&agent.manifests);
    let running = agent.wait_running("asks", secs(90));
    let id = running["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(limit(&cri, "asks"), Some(128 << 20));

    // The referee is the kernel: the one is killed at its limit, the other goes on above it.
    agent.wait("the end of the one that did not ask", secs(90), |agent| agent.restarts("silent").filter(|n| *n > 0));
    let raised = agent.wait("a raised limit", secs(60), |_| limit(&cri, "asks").filter(|now| *now > 150 << 20));
    assert!(raised <= 256 << 20, "to twice the limit at most: {raised}");
    let records = agent.explain("default", "asks")["records"].clone();
    let said = |reason: &str| records.as_array().into_iter().flatten().any(|record| record["reason"] == reason);
    assert!(said("MemoryLimitRaised"), "{records:#}");
    let moves = |agent: &Agent| {
        let metrics = agent.metrics();
        let labels = [("rung", "raise"), ("result", "done")];
        metrics.all("beelet_rung_moves_total", &labels).map(|sample| sample.value).sum::<f64>()
    };
    assert!(moves(&agent) >= 1.0);
    std::thread::sleep(secs(5));

    // Killed: a limit that is held cannot go back, neither without an agent nor when one comes.
    agent.kill9();
    std::thread::sleep(secs(2));
    assert_eq!(limit(&cri, "asks"), Some(raised));
    agent.restart();
    agent.wait_healthy(secs(60));
    agent.wait("word of the held limit", secs(30), |agent| {
        agent.log_text().contains("it stays raised until that fits").then_some(())
    });
    let same =
        |agent: &Agent| -> Value { agent.wait_running("asks", secs(60))["status"]["containerStatuses"][0].clone() };
    let now = same(&agent);
    assert!(now["containerID"] == id && now["restartCount"] == 0, "{now}");
    assert!(limit(&cri, "asks").is_some_and(|now| now > 150 << 20));
    agent.finish();
}

/// A pod that holds more and more of what nobody counts stands still when the threshold is met, until that is decided. Just then the
/// agent is killed.
#[test]
fn a_pod_is_thawed_when_the_agent_is_killed_while_it_stands_still() {
    let Some(bed) = BED.get("a_pod_is_thawed_when_the_agent_is_killed_while_it_stands_still") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let heavy = pod("ballast").workload(&["step", "--size", "2000Mi"]).request("memory", "2100Mi");
    heavy.spec("priority", json!(1000)).write(&agent.manifests);
    agent.wait_running("ballast", secs(60));
    let pipes = pod("pipes").workload(&["pipes", "--size", "500Mi"]).spec("restartPolicy", json!("Never"));
    let may = json!({ "capabilities": { "add": ["SYS_ADMIN"] } });
    pipes.field("securityContext", may).write(&agent.manifests);
    let uid = agent.wait_running("pipes", secs(60))["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let knob = unified(&bed, &format!("kubepods/besteffort/pod{uid}")).join("cgroup.freeze");
    let frozen = || fs::read_to_string(&knob).is_ok_and(|text| text.trim() == "1");
    let started = Instant::now();
    while !frozen() {
        assert!(started.elapsed() < secs(60) && knob.exists(), "it was never frozen\n{}", agent.state());
        std::thread::sleep(Duration::from_millis(1));
    }
    agent.kill9();
    assert!(frozen(), "it was thawed before the agent was dead: the test shows nothing");
    let died = Instant::now();
    wait_for("thaw without an agent", secs(10), || (!frozen()).then_some(()), || format!("{:?}", died.elapsed()));
    assert!(knob.exists(), "it is there still");

    // It had been seen, but nothing was decided: the next agent does.
    agent.restart();
    let gone =
        agent.wait("the eviction", secs(60), |agent| agent.pod("pipes").filter(|p| p["status"]["phase"] == "Failed"));
    assert_eq!(gone["status"]["reason"], "Evicted");
    assert_eq!(agent.restarts("ballast"), Some(0));
    agent.finish();
}

#[test]
fn who_wants_it_leaves_by_itself_before_the_threshold_is_met() {
    let Some(bed) = BED.get("who_wants_it_leaves_by_itself_before_the_threshold_is_met") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let heavy = pod("ballast").workload(&["step", "--size", "2000Mi"]).request("memory", "2100Mi");
    heavy.spec("priority", json!(1000)).write(&agent.manifests);
    agent.wait_running("ballast", secs(60));
    let leak = pod("leak").workload(&["leak", "--rate", "30Mi"]).spec("restartPolicy", json!("Never"));
    let leak = leak.spec("terminationGracePeriodSeconds", json!(6));
    leak.meta("annotations", json!({ "beelet.dev/leave": "true" })).write(&agent.manifests);
    let gone = agent.wait("its end", secs(60), |agent| {
        agent.pod("leak").filter(|p| p["status"]["containerStatuses"][0]["state"]["terminated"].is_object())
    });
    assert_eq!(
        (&gone["status"]["phase"], &gone["status"]["reason"]),
        (&json!("Failed"), &json!("Evicted")),
        "{gone:#}"
    );
    // The workload ends with 0 at SIGTERM; who is killed at the threshold ends with 137.
    assert_eq!(gone["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0, "{gone:#}");
    let records = agent.explain("default", "leak")["records"].clone();
    let said =
        |reason: &str| records.as_array().into_iter().flatten().find(|record| record["reason"] == reason).cloned();
    let evidence = said("Evicted").expect("a record")["evidence"].clone();
    let of =
        |name: &str| evidence.as_array().into_iter().flatten().find(|pair| pair[0] == name).map(|pair| pair[1].clone());
    assert_eq!(
        (of("threshold_kind"), of("victim_grace")),
        (Some(json!("forecast")), Some(json!("6s"))),
        "{evidence:#}"
    );
    let labels = [("rung", "leave"), ("result", "done")];
    assert_eq!(agent.metrics().value("beelet_rung_moves_total", &labels), Some(1.0));
    assert_eq!(agent.restarts("ballast"), Some(0));
    agent.finish();
}
