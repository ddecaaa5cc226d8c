//! Resources: changed in place, and CPU lent and taken back.

use std::path::{Path, PathBuf};

use e2e::{Agent, AgentOptions, Cri, Hierarchy, SharedBed, pod, secs, skip};
use serde_json::Value;

static BED: SharedBed = SharedBed::new("resize");

/// A file of a cgroup under its name on v1 or v2.
fn knob(group: &Path, controller: &str, v1: &str, v2: &str) -> String {
    let all = e2e::hierarchies();
    let by_v1 = |h: &&Hierarchy| h.controllers.iter().any(|c| c == controller);
    let group = group.display().to_string();
    let value = match all.iter().find(by_v1) {
        Some(hierarchy) => hierarchy.read(&group, v1),
        None => all.iter().find(|h| h.controllers.is_empty()).and_then(|h| h.read(&group, v2)),
    };
    value.unwrap_or_else(|| panic!("{group} has neither {v1} nor {v2}"))
}

/// CPU quota per period of 100 ms, in microseconds.
fn quota(group: &Path) -> String {
    let text = knob(group, "cpu", "cpu.cfs_quota_us", "cpu.max");
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn memory(group: &Path) -> u64 {
    knob(group, "memory", "memory.limit_in_bytes", "memory.max").parse().unwrap_or(u64::MAX)
}

fn shares(group: &Path) -> u64 {
    knob(group, "cpu", "cpu.shares", "cpu.weight").parse().unwrap_or(0)
}

fn burst(group: &Path) -> u64 {
    knob(group, "cpu", "cpu.cfs_burst_us", "cpu.max.burst").parse().unwrap_or(u64::MAX)
}

/// The cgroups of a pod and of its only container, relative to the hierarchies' roots.
fn groups(agent: &Agent, pod: &Value) -> (PathBuf, PathBuf) {
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let of_pod = e2e::pod_cgroups(&agent.bed.cgroup_root)
        .into_iter()
        .find(|path| path.ends_with(format!("pod{uid}")))
        .unwrap_or_else(|| panic!("pod {uid} has no cgroup\n{}", agent.state()));
    let mount =
        e2e::hierarchies().into_iter().find(|h| of_pod.starts_with(&h.mount) && h.mount != Path::new("/sys/fs/cgroup"));
    let mount = mount.map_or_else(|| PathBuf::from("/sys/fs/cgroup"), |h| h.mount);
    let relative = of_pod.strip_prefix(mount).expect("a path below its mount").to_path_buf();
    let container = relative.join(id.trim_start_matches("containerd://"));
    (relative, container)
}

fn condition(pod: &Value, kind: &str) -> Option<Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind).cloned()
}

#[test]
fn a4_2h_resources_change_in_place() {
    let Some(bed) = BED.get("a4_2h_resources_change_in_place") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let sized = |cpu: &str, most: &str, memory: &str| {
        pod("sized")
            .workload(&["leak", "--rate", "200Mi", "--limit", "100Mi"])
            .request("cpu", cpu)
            .limit("cpu", most)
            .request("memory", "32Mi")
            .limit("memory", memory)
    };
    sized("100m", "500m", "192Mi").write(&agent.manifests);
    let first = agent.wait_running("sized", secs(90));
    let (of_pod, of_container) = groups(&agent, &first);
    let before = shares(&of_container);
    for group in [&of_pod, &of_container] {
        assert_eq!((quota(group).as_str(), memory(group)), ("50000", 192 << 20), "{}", group.display());
    }

    // More of everything.
    sized("200m", "800m", "256Mi").write(&agent.manifests);
    agent.wait("the new limits in the cgroups", secs(30), |_| {
        let done = |group: &PathBuf| quota(group) == "80000" && memory(group) == 256 << 20;
        (done(&of_pod) && done(&of_container) && shares(&of_container) > before).then_some(())
    });
    let second = agent.pod("sized").expect("the pod");
    assert_eq!(second["metadata"]["uid"], first["metadata"]["uid"]);
    let of = |pod: &Value| pod["status"]["containerStatuses"][0].clone();
    assert_eq!(of(&second)["containerID"], of(&first)["containerID"]);
    assert_eq!(of(&second)["restartCount"], 0);
    agent.wait("the new limits on /pods", secs(10), |agent| {
        (of(&agent.pod("sized")?)["resources"]["limits"]["memory"] == "256Mi").then_some(())
    });

    // A limit below what the pod holds would kill it: it waits, and says so.
    agent.wait("the pod to hold its 100 MiB", secs(60), |agent| {
        agent
            .metrics()
            .sum("container_memory_rss", &[("pod", "sized-node"), ("container", "main")])
            .filter(|b| *b > 95e6)
    });
    sized("100m", "500m", "64Mi").write(&agent.manifests);
    let pending = agent.wait("PodResizePending", secs(30), |agent| condition(&agent.pod("sized")?, "PodResizePending"));
    assert_eq!(pending["reason"], "Deferred", "{pending}");
    let message = pending["message"].as_str().unwrap_or_default();
    assert!(message.contains("cannot be reclaimed") && message.contains("64Mi"), "{pending}");
    let explained = agent.explain("default", "sized-node");
    assert!(explained.to_string().contains("Deferred"), "{explained}");
    std::thread::sleep(secs(2));
    assert_eq!(memory(&of_container), 256 << 20, "the limit was cut all the same");

    // A cut that fits is made.
    sized("100m", "500m", "192Mi").write(&agent.manifests);
    agent.wait("the smaller limits in the cgroups", secs(30), |_| {
        let done = |group: &PathBuf| quota(group) == "50000" && memory(group) == 192 << 20;
        (done(&of_pod) && done(&of_container)).then_some(())
    });
    agent.wait("no PodResizePending", secs(10), |agent| {
        condition(&agent.pod("sized")?, "PodResizePending").is_none().then_some(())
    });
    let running = cri.running("sized");
    assert!(running.len() == 1 && running[0].attempt == 0, "{running:?}");
    assert!(of_container.ends_with(&running[0].id));
    agent.finish();
}

#[test]
fn idle_cpu_is_lent_and_taken_back() {
    let Some(bed) = BED.get("idle_cpu_is_lent_and_taken_back") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    pod("bursty")
        .workload(&["spin", "--cores", "1"])
        .request("cpu", "100m")
        .limit("cpu", "200m")
        .write(&agent.manifests);
    let bursty = agent.wait_running("bursty", secs(90));
    let (of_pod, of_container) = groups(&agent, &bursty);
    let lent = |agent: &Agent, limit| {
        let started = std::time::Instant::now();
        while burst(&of_container) == 0 && started.elapsed() < limit {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let given = burst(&of_container);
        if given == 0 {
            // Only an idle node lends.
            let node = agent.snapshot()["node"].clone();
            let idle = node["cpu_idle"].to_string();
            assert!(
                idle.trim_matches('"').trim_end_matches('m').parse::<u64>().unwrap_or(0) < 400,
                "nothing was lent although the node is idle: {node}\n{}",
                agent.state()
            );
            skip("idle_cpu_is_lent_and_taken_back", &format!("the node is too busy to lend CPU (idle: {idle})"));
        }
        given
    };
    if lent(&agent, secs(60)) == 0 {
        return agent.finish();
    }
    assert!(burst(&of_container) <= 20_000 && burst(&of_pod) <= 20_000, "more than the quota");
    agent.wait("the loan to be explained", secs(10), |agent| {
        agent.explain("default", "bursty-node").to_string().contains("CpuBurst").then_some(())
    });

    assert!(agent.stop().success());
    assert_eq!((burst(&of_container), burst(&of_pod)), (0, 0), "the end of the agent does not take the loan back");

    agent.restart();
    if lent(&agent, secs(60)) > 0 {
        agent.kill9();
        agent.restart();
        agent.wait_running("bursty", secs(30));
        assert!(agent.stop().success());
        assert_eq!((burst(&of_container), burst(&of_pod)), (0, 0), "a killed agent's loan is never taken back");
        agent.restart();
    }
    agent.finish();
}
