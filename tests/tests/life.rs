//! The life of a pod: from a manifest to a running container, through restarts, to a removal without a trace.

use std::fs;
use std::time::Instant;

use e2e::{Agent, AgentOptions, Cri, SharedBed, pod, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("life");

/// The text of a container's log file: the newest run's.
fn log_of(agent: &Agent, pod: &Value, container: &str) -> String {
    let meta = |key: &str| pod["metadata"][key].as_str().unwrap_or_default().to_owned();
    let folder = agent.bed.pod_logs_dir().join(format!("{}_{}_{}", meta("namespace"), meta("name"), meta("uid")));
    let folder = folder.join(container);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}\n{}", folder.display(), agent.state()))
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files.last().map(|path| fs::read_to_string(path).unwrap_or_default()).unwrap_or_default()
}

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// `CAP_SYS_RESOURCE`, without which nobody may lower an oom_score_adj.
fn may_lower_scores() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("the status of this process");
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("CapEff");
    u64::from_str_radix(mask.trim(), 16).expect("a mask") & (1 << 24) != 0
}

#[test]
fn the_agent_protects_itself_as_it_is_told() {
    let Some(bed) = BED.get("the_agent_protects_itself_as_it_is_told") else { return };
    // The default lowers the score, which some machines do not allow even to root; to raise it is always allowed.
    for (options, score, done) in [
        (AgentOptions::default(), "-999", may_lower_scores()),
        (AgentOptions::default().set("oomScoreAdj", "300"), "300", true),
    ] {
        let agent = Agent::start(&bed, &options);
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", agent.pid())).expect(name);
        assert_eq!(file("oom_score_adj").trim() == score, done);
        let status = file("status");
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("VmLck");
        let kib: u64 = locked.split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number");
        assert!(kib > 4_096, "its code is not locked: {locked}");
        let metrics = agent.metrics();
        let told = |name: &str| metrics.value("beelet_capability", &[("name", name)]);
        assert_eq!((told("oom_score_adj"), told("locked_code")), (Some(f64::from(u8::from(done))), Some(1.0)));
        agent.finish();
    }
}

/// Rows: A3.1a, A3.5c, A4.11a, A7.1, A7.2a, A7.2b, A7.3a, A7.12, A8.2a, A9.1c, A15.1.
#[test]
fn a_pod_from_a_file_runs_is_replaced_and_goes() {
    let Some(bed) = BED.get("a_pod_from_a_file_runs_is_replaced_and_goes") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let script = "echo node=$NODE pod=$POD ns=$NS uid=$UID_ ip=$IP host=$HOST; \
                  mount | grep ' /memory '; echo disk > /disk/file; echo inside > /host/written; \
                  cat /host/given; trap 'echo asked to stop; exit 0' TERM; while :; do sleep 0.1; done";
    let host = bed.dir.join("host-path");
    fs::create_dir_all(&host).unwrap();
    fs::write(host.join("given"), "given from outside\n").unwrap();
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let shown = pod("shown")
        .shell(script)
        .field(
            "env",
            json!([
                field("NODE", "spec.nodeName"),
                field("POD", "metadata.name"),
                field("NS", "metadata.namespace"),
                field("UID_", "metadata.uid"),
                field("IP", "status.podIP"),
                field("HOST", "status.hostIP"),
            ]),
        )
        .limit("memory", "64Mi")
        .field(
            "volumeMounts",
            json!([
                { "name": "memory", "mountPath": "/memory" },
                { "name": "disk", "mountPath": "/disk" },
                { "name": "host", "mountPath": "/host" },
            ]),
        )
        .spec(
            "volumes",
            json!([
                { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "8Mi" } },
                { "name": "disk", "emptyDir": {} },
                { "name": "host", "hostPath": { "path": host.display().to_string(), "type": "Directory" } },
            ]),
        );
    shown.write(&agent.manifests);
    let first = agent.wait_running("shown", secs(90));
    let ip = first["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    assert!(ip.starts_with("10.201."), "{first}");
    assert_eq!(first["status"]["hostIP"], *bed.node_ip, "{first}");
    let log = agent.wait("the container's output in its log", secs(20), |agent| {
        let log = log_of(agent, &first, "main");
        log.contains("given from outside").then_some(log)
    });
    let expected = format!("node=node pod=shown-node ns=default uid={} ip={ip} host={}", uid(&first), bed.node_ip);
    assert!(log.contains(&expected), "wanted: {expected}\n{log}");
    assert!(log.contains("tmpfs on /memory") && log.contains("size=8192k"), "{log}");
    assert_eq!(fs::read_to_string(host.join("written")).unwrap_or_default(), "inside\n");
    let volumes = agent.root_dir().join("pods").join(uid(&first)).join("volumes/kubernetes.io~empty-dir");
    assert_eq!(fs::read_to_string(volumes.join("disk/file")).unwrap_or_default(), "disk\n");
    assert!(e2e::pod_cgroups(&bed.cgroup_root).iter().any(|path| path.ends_with(format!("pod{}", uid(&first)))));
    let old = cri.running("shown")[0].id.clone();

    // A changed manifest: another uid, and the old container is gone before the new one starts.
    let mut both = false;
    shown.clone().field("workingDir", json!("/tmp")).write(&agent.manifests);
    let second = agent.wait("the changed pod to run", secs(60), |agent| {
        both |= cri.running("shown").len() > 1;
        agent.pod("shown").filter(|pod| uid(pod) != uid(&first) && pod["status"]["phase"] == "Running")
    });
    assert!(!both, "the old pod and the new one ran at the same time");
    assert!(cri.containers().iter().all(|c| c.id != old || !c.running));
    agent.wait("nothing of the old pod", secs(30), |_| {
        let left = bed.leftovers();
        (!left.iter().any(|line| line.contains(&uid(&first)) || line.contains(&old))).then_some(())
    });
    assert_ne!(uid(&second), uid(&first));

    // finish() takes the manifest away and waits until nothing is left: sandbox, cgroup, folders, tmpfs.
    fs::remove_file(agent.manifests.join("shown.yaml")).unwrap();
    agent.wait_gone("shown", secs(60));
    assert_eq!(
        fs::read_to_string(host.join("given")).unwrap_or_default(),
        "given from outside\n",
        "not ours to remove"
    );
    agent.finish();
}

/// Rows: A4.1b, A4.3b, A4.4a, A4.5a, A4.8a, A4.8f.
#[test]
fn crashes_are_restarted_with_the_kubelets_back_off() {
    let Some(bed) = BED.get("crashes_are_restarted_with_the_kubelets_back_off") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    pod("crash").workload(&["crash", "--after", "1s", "--code", "3"]).write(&agent.manifests);
    pod("never")
        .workload(&["crash", "--after", "1s", "--code", "4"])
        .spec("restartPolicy", json!("Never"))
        .write(&agent.manifests);
    pod("done").workload(&["sleep", "--for", "1s"]).spec("restartPolicy", json!("OnFailure")).write(&agent.manifests);
    let init = pod("init")
        .init("one", e2e::BUSYBOX, &["sh", "-c", "sleep 1; echo one >> /share/order"], &[])
        .field("volumeMounts", json!([{ "name": "share", "mountPath": "/share" }]))
        .init("two", e2e::BUSYBOX, &["sh", "-c", "echo two >> /share/order"], &[])
        .field("volumeMounts", json!([{ "name": "share", "mountPath": "/share" }]))
        .shell("echo main >> /share/order; trap 'exit 0' TERM; while :; do sleep 0.1; done")
        .field("volumeMounts", json!([{ "name": "share", "mountPath": "/share" }]))
        .spec("volumes", json!([{ "name": "share", "emptyDir": {} }]));
    init.write(&agent.manifests);

    // The first restart is at once; then 10 s.
    agent.wait("the first restart", secs(90), |agent| (agent.restarts("crash")? >= 1).then_some(()));
    let waiting = agent.wait("CrashLoopBackOff", secs(30), |agent| {
        agent.container("crash", "").filter(|c| c["state"]["waiting"]["reason"] == "CrashLoopBackOff")
    });
    let since = Instant::now();
    let pod_now = agent.pod("crash").expect("the crash-looping pod");
    let message = waiting["state"]["waiting"]["message"].as_str().unwrap_or_default();
    let expected = format!("back-off 10s restarting failed container=main pod=crash-node_default({})", uid(&pod_now));
    assert_eq!(message, expected);
    assert_eq!(waiting["lastState"]["terminated"]["exitCode"], 3, "{waiting}");
    let count = waiting["restartCount"].as_u64().unwrap_or(0);
    agent.wait("the restart after the back-off", secs(30), |agent| (agent.restarts("crash")? > count).then_some(()));
    let waited = since.elapsed();
    assert!((secs(7)..secs(16)).contains(&waited), "the back-off of 10 s took {waited:?}");

    let initialised = agent.wait_running("init", secs(60));
    let order =
        agent.root_dir().join("pods").join(uid(&initialised)).join("volumes/kubernetes.io~empty-dir/share/order");
    assert_eq!(fs::read_to_string(&order).unwrap_or_default(), "one\ntwo\nmain\n");
    let inits = initialised["status"]["initContainerStatuses"].as_array().cloned().unwrap_or_default();
    assert!(inits.len() == 2 && inits.iter().all(|c| c["state"]["terminated"]["reason"] == "Completed"), "{inits:?}");

    // What has ended stays so, also for the next life of the agent.
    let failed = agent.wait_phase("never", "Failed", secs(60));
    assert_eq!(failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 4, "{failed}");
    agent.wait_phase("done", "Succeeded", secs(60));
    assert!(agent.stop().success());
    agent.restart();
    agent.wait_running("init", secs(30));
    std::thread::sleep(secs(5));
    for (name, phase, text) in [("never", "Failed", "never"), ("done", "Succeeded", "done")] {
        let pod = agent.pod(name).unwrap_or_else(|| panic!("{name} is gone\n{}", agent.state()));
        assert_eq!(pod["status"]["phase"], phase, "{pod}");
        assert_eq!(Cri::new(&bed).running(name), [], "{text} ran again");
    }
    assert_eq!(agent.restarts("init"), Some(0));
    agent.finish();
}

#[test]
fn a4_7a_a4_7e_termination_is_graceful_and_ends_after_its_grace() {
    let Some(bed) = BED.get("a4_7a_a4_7e_termination_is_graceful_and_ends_after_its_grace") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let handled = "trap 'echo handled > /host/polite; exit 0' TERM; while :; do sleep 0.1; done";
    let host = bed.dir.join("grace");
    fs::create_dir_all(&host).unwrap();
    pod("polite")
        .shell(handled)
        .field("volumeMounts", json!([{ "name": "host", "mountPath": "/host" }]))
        .spec("volumes", json!([{ "name": "host", "hostPath": { "path": host.display().to_string() } }]))
        .spec("terminationGracePeriodSeconds", json!(30))
        .write(&agent.manifests);
    pod("stubborn")
        .shell("trap '' TERM; while :; do sleep 0.1; done")
        .spec("terminationGracePeriodSeconds", json!(2))
        .write(&agent.manifests);
    agent.wait_running("polite", secs(90));
    agent.wait_running("stubborn", secs(60));
    // Their traps are set a moment after their start.
    std::thread::sleep(secs(1));
    let started = Instant::now();
    for name in ["polite", "stubborn"] {
        fs::remove_file(agent.manifests.join(format!("{name}.yaml"))).unwrap();
    }
    let mut polite = None;
    let mut stubborn = None;
    agent.wait("both to end", secs(60), |_| {
        if polite.is_none() && cri.running("polite").is_empty() {
            polite = Some(started.elapsed());
        }
        if stubborn.is_none() && cri.running("stubborn").is_empty() {
            stubborn = Some(started.elapsed());
        }
        polite.zip(stubborn)
    });
    let (polite, stubborn) = polite.zip(stubborn).expect("both");
    e2e::say(&format!("polite ended after {polite:.1?}, stubborn after {stubborn:.1?}"));
    assert_eq!(fs::read_to_string(host.join("polite")).unwrap_or_default(), "handled\n");
    assert!(polite < secs(15), "a pod that handles SIGTERM took {polite:?}");
    assert!((secs(2)..secs(15)).contains(&stubborn), "a pod with a grace of 2 s took {stubborn:?}");
    agent.wait_gone("stubborn", secs(30));
    agent.finish();
}

/// Sidecars run before the main container and are told to stop after it, the last first; they keep no pod alive.
#[test]
fn a4_5d_a4_5g_sidecars_begin_before_and_end_after_the_main_container() {
    let Some(bed) = BED.get("a4_5d_a4_5g_sidecars_begin_before_and_end_after_the_main_container") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let sidecar = |name: &str| {
        format!(
            "trap 'echo {name} ends >> /share/order; exit 0' TERM; echo {name} >> /share/order; while :; do sleep 0.1; done"
        )
    };
    let share = json!([{ "name": "share", "mountPath": "/share" }]);
    let of = |pod: e2e::Pod, name: &str, script: &str| {
        pod.init(name, e2e::BUSYBOX, &["sh", "-c", script], &[]).field("volumeMounts", share.clone())
    };
    let with = of(pod("job"), "proxy", &sidecar("proxy")).field("restartPolicy", json!("Always"));
    let with = of(with, "setup", "sleep 1; echo setup >> /share/order");
    let with = of(with, "logs", &sidecar("logs")).field("restartPolicy", json!("Always"));
    with.shell("sleep 3; echo main >> /share/order; sleep 1")
        .field("volumeMounts", share.clone())
        .spec("volumes", json!([{ "name": "share", "emptyDir": {} }]))
        .spec("restartPolicy", json!("Never"))
        .write(&agent.manifests);
    let running = agent.wait_running("job", secs(60));
    let inits = running["status"]["initContainerStatuses"].clone();
    let state = |i: usize| (inits[i]["ready"].clone(), inits[i]["state"]["running"].is_object());
    assert_eq!(
        [state(0), state(1), state(2)],
        [(json!(true), true), (json!(true), false), (json!(true), true)],
        "{inits:#}"
    );
    let order = agent.root_dir().join("pods").join(uid(&running)).join("volumes/kubernetes.io~empty-dir/share/order");
    // Read before the volume goes with the pod.
    let mut seen = String::new();
    agent.wait_phase("job", "Succeeded", secs(60));
    agent.wait("the last sidecar to end", secs(30), |_| {
        if let Ok(text) = fs::read_to_string(&order) {
            seen = text;
        }
        (Cri::new(&bed).running("job").is_empty()).then_some(())
    });
    assert!(seen.starts_with("proxy\nsetup\nlogs\nmain\nlogs ends\n"), "{seen}");
    assert_eq!(agent.restarts("job"), Some(0));
    agent.finish();
}
