//! Beside a kubelet: pods that somebody else started are found, measured, judged and reported, and nothing is written.

use std::collections::{BTreeMap, HashMap};

use beelet_proto::cri;
use e2e::{Agent, AgentOptions, Bed, Cri, SharedBed, secs};
use serde_json::Value;

static BED: SharedBed = SharedBed::new("beside");

/// What a kubelet tells the runtime of a pod.
fn sandbox_config(bed: &Bed, pod: &str) -> cri::PodSandboxConfig {
    let uid = format!("0000-{pod}");
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: pod.to_owned(),
            uid: uid.clone(),
            namespace: "others".to_owned(),
            attempt: 0,
        }),
        hostname: pod.to_owned(),
        labels: labels(pod, &uid, None),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/kubepods/burstable/pod{uid}", bed.cgroup_root),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn labels(pod: &str, uid: &str, container: Option<&str>) -> HashMap<String, String> {
    let all = [
        ("pod.name", Some(pod)),
        ("pod.namespace", Some("others")),
        ("pod.uid", Some(uid)),
        ("container.name", container),
    ];
    all.into_iter().filter_map(|(k, v)| Some((format!("io.kubernetes.{k}"), v?.to_owned()))).collect()
}

/// A pod's sandbox, made by a bare CRI client.
fn sandbox(bed: &Bed, cri: &Cri, pod: &str) -> (String, String) {
    let request = cri::RunPodSandboxRequest { config: Some(sandbox_config(bed, pod)), ..Default::default() };
    let id = cri.call(|mut c| async move { c.run_pod_sandbox(request).await }).pod_sandbox_id;
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
    let status = cri.call(|mut c| async move { c.pod_sandbox_status(request).await }).status.unwrap_or_default();
    (id, status.network.unwrap_or_default().ip)
}

/// A container in it.
fn container(
    bed: &Bed,
    cri: &Cri,
    sandbox: &str,
    pod: &str,
    args: &[&str],
    limits: cri::LinuxContainerResources,
) -> String {
    let sandbox_config = sandbox_config(bed, pod);
    let uid = sandbox_config.metadata.clone().unwrap_or_default().uid;
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: e2e::WORKLOAD.to_owned(), ..Default::default() }),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        labels: labels(pod, &uid, Some("main")),
        annotations: HashMap::from([("io.kubernetes.container.restartCount".to_owned(), "0".to_owned())]),
        linux: Some(cri::LinuxContainerConfig { resources: Some(limits), ..Default::default() }),
        ..Default::default()
    };
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: sandbox.to_owned(),
        config: Some(config),
        sandbox_config: Some(sandbox_config),
    };
    let id = cri.call(|mut c| async move { c.create_container(request).await }).container_id;
    let request = cri::StartContainerRequest { container_id: id.clone() };
    cri.call(|mut c| async move { c.start_container(request).await });
    id
}

fn limits(cpu_quota: i64, memory: i64) -> cri::LinuxContainerResources {
    let cpu_period = if cpu_quota > 0 { 100_000 } else { 0 };
    cri::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares: 204,
        memory_limit_in_bytes: memory,
        oom_score_adj: 900,
        ..Default::default()
    }
}

/// The running containers: id by pod.
fn running(cri: &Cri) -> BTreeMap<String, String> {
    cri.containers().into_iter().filter(|c| c.running).map(|c| (c.pod, c.id)).collect()
}

#[test]
fn pods_of_others_are_measured_and_left_alone() {
    let Some(bed) = BED.get("pods_of_others_are_measured_and_left_alone") else { return };
    let cri = Cri::new(&bed);
    let (throttled, _) = sandbox(&bed, &cri, "throttled");
    let (server, ip) = sandbox(&bed, &cri, "server");
    let (client, _) = sandbox(&bed, &cri, "client");
    let (leaker, _) = sandbox(&bed, &cri, "leaker");
    // On an agent's own pod this would call for burst.
    container(&bed, &cri, &throttled, "throttled", &["spin", "--cores", "1"], limits(20_000, 64 << 20));
    container(&bed, &cri, &server, "server", &["serve", "--port", "8080"], limits(0, 128 << 20));
    let url = format!("http://{ip}:8080/bytes/1048576");
    container(&bed, &cri, &client, "client", &["fetch", "--url", &url, "--interval", "500ms"], limits(0, 64 << 20));
    let ids = running(&cri);
    assert_eq!(ids.len(), 3, "{ids:?}");
    let kubepods = format!("{}/kubepods", bed.cgroup_root);
    let knobs = e2e::knobs_below(&kubepods);
    assert!(knobs.len() > 20, "{knobs:?}");

    let mut agent = Agent::start(&bed, &AgentOptions { beside: true, ..AgentOptions::default() });
    for pod in ["throttled", "server", "client"] {
        let found = agent.wait_running(pod, secs(30));
        assert_eq!(found["metadata"]["namespace"], "others");
        assert_eq!(found["metadata"]["uid"], format!("0000-{pod}"));
        assert_eq!(found["status"]["containerStatuses"][0]["containerID"], format!("containerd://{}", ids[pod]));
    }
    let series =
        |agent: &Agent, name: &str, pod: &str| agent.metrics().sum(name, &[("namespace", "others"), ("pod", pod)]);
    agent.wait("CPU time to be counted, by files and by eBPF", secs(60), |agent| {
        let by_files = series(agent, "container_cpu_usage_seconds_total", "throttled")?;
        let by_ebpf = series(agent, "beelet_cpu_ebpf_seconds_total", "throttled")?;
        (by_files > 0.5 && by_ebpf > 0.5).then_some(())
    });
    agent.wait("throttling to be counted", secs(30), |agent| {
        series(agent, "container_cpu_cfs_throttled_periods_total", "throttled").filter(|periods| *periods > 0.0)
    });
    agent.wait("memory to be measured", secs(30), |agent| {
        series(agent, "container_memory_working_set_bytes", "server").filter(|bytes| *bytes > 0.0)
    });
    // 2 MiB a second.
    agent.wait("bytes between the pods to be counted", secs(60), |agent| {
        let sent = series(agent, "container_network_transmit_bytes_total", "server")?;
        let received = series(agent, "container_network_receive_bytes_total", "client")?;
        (sent > 4e6 && received > 4e6).then_some(())
    });
    for pod in ["throttled", "server", "client"] {
        let verdicts = agent.metrics();
        let labels = [("namespace", "others"), ("pod", pod)];
        assert!(verdicts.all("beelet_pod_health_state", &labels).next().is_some(), "{pod} is not judged");
    }

    // The kernel's OOM killer strikes in a pod of somebody else.
    container(&bed, &cri, &leaker, "leaker", &["leak", "--rate", "100Mi", "--delay", "3s"], limits(0, 64 << 20));
    agent.wait("the OOM kill to be counted once", secs(60), |agent| {
        let labels = [("namespace", "others"), ("pod", "leaker"), ("container", "main")];
        agent.metrics().value("beelet_oom_kills_total", &labels).filter(|kills| *kills == 1.0)
    });
    let verdict = agent.wait("the verdict on it", secs(30), |agent| {
        let pod = agent.pod("leaker")?;
        let all = pod["status"]["conditions"].as_array()?;
        all.iter().find(|c| c["type"] == "beelet.dev/Healthy" && c["status"] == "False").cloned()
    });
    assert!(verdict["message"].as_str().is_some_and(|text| text.to_lowercase().contains("oom")), "{verdict}");
    std::thread::sleep(secs(5));
    let labels = [("namespace", "others"), ("pod", "leaker"), ("container", "main")];
    assert_eq!(agent.metrics().value("beelet_oom_kills_total", &labels), Some(1.0), "counted again");

    // Nothing was written, nothing was killed: neither while it ran nor when it ended, also not by another life of it.
    let unchanged = |when: &str| {
        let now = e2e::knobs_below(&kubepods);
        let changed: Vec<_> = knobs.iter().filter(|(path, value)| now.get(*path) != Some(value)).collect();
        assert!(changed.is_empty(), "{when}: these settings were {changed:?}");
        assert_eq!(running(&cri), ids, "{when}");
    };
    unchanged("while the agent runs");
    let actions: Vec<_> = agent.metrics().all("beelet_actions_total", &[]).cloned().collect();
    assert!(actions.iter().all(|a| a.value == 0.0), "{actions:?}");
    agent.kill9();
    unchanged("after a kill");
    agent.restart();
    agent.wait_running("server", secs(30));
    unchanged("after a restart");
    let list: Value = agent.pods();
    assert!(list["items"].as_array().is_some_and(|items| items.len() == 4), "{list}");
    agent.finish();
    unchanged("after the end");
    for id in [throttled, server, client, leaker] {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        cri.call(|mut c| async move { c.stop_pod_sandbox(request).await });
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
        cri.call(|mut c| async move { c.remove_pod_sandbox(request).await });
    }
}
