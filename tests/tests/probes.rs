//! Probes on real containerd: what containers answer decides whether they are ready, have started, and go on.

use std::fs;

use e2e::{Agent, AgentOptions, BUSYBOX, SharedBed, pod, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("probes");

/// A container that serves HTTP on port 8080 from a folder in memory, in which `ok` is at first.
const SERVES: &str = "mkdir -p /tmp/www && echo fine > /tmp/www/ok && httpd -f -p 8080 -h /tmp/www & \
                      trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn condition(pod: &Value, kind: &str) -> String {
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|c| c["type"] == kind);
    found.map(|c| c["status"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
}

fn status(agent: &Agent, name: &str) -> Option<(Value, Value)> {
    let pod = agent.pod(name)?;
    let container = pod["status"]["containerStatuses"][0].clone();
    Some((pod, container))
}

fn http(path: &str, more: &Value) -> Value {
    let mut probe = json!({ "httpGet": { "port": "web", "path": path }, "periodSeconds": 1, "timeoutSeconds": 2 });
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        probe[key] = value;
    }
    probe
}

#[test]
fn a5_6b_a5_6c_a_pod_whose_http_liveness_fails_is_restarted_and_told() {
    let Some(bed) = BED.get("a5_6b_a5_6c_a_pod_whose_http_liveness_fails_is_restarted_and_told") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    // The first run loses its file after a while; every later one keeps it.
    let once =
        format!("if [ -e /share/again ]; then :; else touch /share/again; (sleep 6; rm -f /tmp/www/ok) & fi; {SERVES}");
    pod("sick")
        .shell(&once)
        .field("ports", json!([{ "name": "web", "containerPort": 8080 }]))
        .field("volumeMounts", json!([{ "name": "share", "mountPath": "/share" }]))
        .field("livenessProbe", http("/ok", &json!({ "initialDelaySeconds": 2, "terminationGracePeriodSeconds": 5 })))
        .spec("volumes", json!([{ "name": "share", "emptyDir": {} }]))
        .write(&agent.manifests);
    let first = agent.wait_running("sick", secs(90));
    let old = first["status"]["containerStatuses"][0]["containerID"].clone();
    agent.wait("the restart", secs(60), |agent| (agent.restarts("sick")? == 1).then_some(()));
    let (_, container) = agent.wait("the second run", secs(30), |agent| {
        status(agent, "sick").filter(|(_, c)| c["state"]["running"].is_object() && c["containerID"] != old)
    });
    assert!(container["lastState"]["terminated"].is_object(), "{container}");
    let log = agent.log_text();
    for told in [
        "Liveness probe failed: HTTP probe failed with statuscode: 404",
        "Container main failed liveness probe, will be restarted",
    ] {
        assert!(log.contains(told), "{told}\n{}", agent.log_tail());
    }
    let explained = agent.explain("default", "sick-node").to_string();
    assert!(explained.contains("failed liveness probe, will be restarted"), "{explained}");
    std::thread::sleep(secs(8));
    assert_eq!(agent.restarts("sick"), Some(1), "what is well is left alone\n{}", agent.log_tail());
    let metrics = e2e::Metrics::parse(&agent.get("/metrics/probes").expect("the metrics of probes"));
    let of = |result: &str| {
        let labels = [("probe_type", "Liveness"), ("container", "main"), ("pod", "sick-node"), ("result", result)];
        metrics.value("prober_probe_total", &labels).unwrap_or(0.0)
    };
    assert!(of("successful") >= 5.0 && (3.0..6.0).contains(&of("failed")), "{} {}", of("successful"), of("failed"));
    agent.finish();
}

#[test]
fn a5_3_readiness_makes_ready_and_startup_has_the_others_wait() {
    let Some(bed) = BED.get("a5_3_readiness_makes_ready_and_startup_has_the_others_wait") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let share = bed.dir.join("probed");
    fs::create_dir_all(&share).unwrap();
    let mounted = |pod: e2e::Pod| {
        pod.field("volumeMounts", json!([{ "name": "share", "mountPath": "/share" }]))
            .spec("volumes", json!([{ "name": "share", "hostPath": { "path": share.display().to_string() } }]))
    };
    let exec = |script: &str, more: &Value| {
        let mut probe = json!({ "exec": { "command": ["sh", "-c", script] }, "periodSeconds": 1, "timeoutSeconds": 5 });
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            probe[key] = value;
        }
        probe
    };
    let stays = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    // $(DIR) is the manifest's to expand.
    let ready = exec("test -e $(DIR)/ready", &json!({ "failureThreshold": 2 }));
    mounted(pod("gate").shell(stays))
        .field("env", json!([{ "name": "DIR", "value": "/share" }]))
        .field("startupProbe", exec("test -e $(DIR)/started", &json!({ "failureThreshold": 100 })))
        .field("livenessProbe", exec("echo asked >> /share/asked", &json!({})))
        .field("readinessProbe", ready)
        .write(&agent.manifests);
    pod("plain").container("main", BUSYBOX, &["sh", "-c", stays], &[]).write(&agent.manifests);
    agent.wait_running("gate", secs(90));
    let (plain, container) = agent.wait("the pod without probes to run", secs(60), |agent| {
        status(agent, "plain").filter(|(_, c)| c["state"]["running"].is_object())
    });
    assert_eq!((condition(&plain, "Ready"), &container["started"]), ("True".to_owned(), &json!(true)));

    std::thread::sleep(secs(4));
    let (gate, container) = status(&agent, "gate").expect("the pod");
    assert_eq!((condition(&gate, "Ready"), condition(&gate, "ContainersReady")), ("False".into(), "False".into()));
    assert_eq!((&container["started"], &container["ready"]), (&json!(false), &json!(false)));
    assert!(!share.join("asked").exists(), "liveness waits for startup");

    fs::write(share.join("started"), "").unwrap();
    agent.wait("it to have started", secs(20), |agent| {
        status(agent, "gate").filter(|(_, c)| c["started"] == true && c["ready"] == false)
    });
    agent.wait("liveness to be asked", secs(20), |_| share.join("asked").exists().then_some(()));
    let ready = |agent: &Agent, wanted: &str| {
        agent.wait(&format!("Ready to be {wanted}"), secs(20), |agent| {
            status(agent, "gate").filter(|(pod, _)| condition(pod, "Ready") == wanted)
        });
    };
    fs::write(share.join("ready"), "").unwrap();
    ready(&agent, "True");
    fs::remove_file(share.join("ready")).unwrap();
    ready(&agent, "False");
    assert!(agent.log_text().contains("Readiness probe failed"), "{}", agent.log_tail());
    fs::write(share.join("ready"), "").unwrap();
    ready(&agent, "True");

    // An agent that is killed changes nothing of it.
    std::thread::sleep(secs(11));
    agent.kill9();
    agent.restart();
    let (after, _) = agent.wait("the pod after the restart", secs(30), |agent| {
        status(agent, "gate").filter(|(_, c)| c["state"]["running"].is_object())
    });
    assert_eq!(condition(&after, "Ready"), "True", "{after}");
    assert_eq!(agent.restarts("gate"), Some(0));

    // A command that hangs is killed, and nothing of it is left.
    mounted(pod("hangs").shell(stays))
        .field("readinessProbe", {
            let mut probe = exec("sleep 1000", &json!({}));
            probe["timeoutSeconds"] = json!(1);
            probe
        })
        .write(&agent.manifests);
    agent.wait_running("hangs", secs(60));
    agent.wait("the timeout to be told", secs(40), |agent| {
        agent.log_text().contains("timed out after 1s").then_some(())
    });
    agent.wait("no sleeping command", secs(30), |_| (sleepers() <= 1).then_some(()));
    agent.finish();
}

/// Processes of the machine that run `sleep 1000`: of a probe each second never more than the one under way.
fn sleepers() -> usize {
    let commands = fs::read_dir("/proc").expect("/proc").flatten();
    let commands = commands.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    commands.filter(|command| command.as_slice() == b"sleep\x001000\0").count()
}
