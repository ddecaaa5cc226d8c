//! Hooks, the time of a stop, and pods whose time is over.

use std::fs;
use std::time::Instant;

use e2e::{Agent, AgentOptions, Cri, Pod, SharedBed, pod, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("hooks");

fn exec(script: &str) -> Value {
    json!({ "exec": { "command": ["sh", "-c", script] } })
}

/// What it is told to stop it writes down.
fn polite(name: &str) -> String {
    format!("trap 'echo {name} asked >> /host/{name}; exit 0' TERM; while :; do sleep 0.1; done")
}

#[test]
fn a4_6_hooks_are_done_and_the_time_of_a_stop_is_kept() {
    let Some(bed) = BED.get("a4_6_hooks_are_done_and_the_time_of_a_stop_is_kept") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let host = bed.dir.join("hooks");
    fs::create_dir_all(&host).unwrap();
    let with = |pod: Pod, lifecycle: Value| {
        pod.field("lifecycle", lifecycle)
            .field("volumeMounts", json!([{ "name": "host", "mountPath": "/host" }]))
            .spec("volumes", json!([{ "name": "host", "hostPath": { "path": host.display().to_string() } }]))
    };
    let read = |name: &str| fs::read_to_string(host.join(name)).unwrap_or_default();
    let remove = |agent: &Agent<'_>, name: &str| fs::remove_file(agent.manifests.join(format!("{name}.yaml"))).unwrap();
    let hooks = |name: &str| {
        let (up, down) = (format!("echo up >> /host/{name}"), format!("echo down >> /host/{name}; sleep 1"));
        json!({ "postStart": exec(&up), "preStop": exec(&down) })
    };
    with(pod("drained").shell(&polite("drained")), hooks("drained")).write(&agent.manifests);
    with(pod("orphan").shell(&polite("orphan")), hooks("orphan")).write(&agent.manifests);
    // Even without grace there are two seconds, and a hook has one of its own.
    with(pod("hasty").shell(&polite("hasty")), json!({ "preStop": exec("echo down >> /host/hasty; sleep 60") }))
        .spec("terminationGracePeriodSeconds", json!(0))
        .write(&agent.manifests);
    with(pod("broken").shell(&polite("broken")), json!({ "postStart": exec("exit 3") })).write(&agent.manifests);
    pod("stubborn")
        .shell("trap '' TERM; while :; do sleep 0.1; done")
        .spec("terminationGracePeriodSeconds", json!(12))
        .write(&agent.manifests);
    // It is shown as failed when nothing of it runs any more, and a shell takes its whole time.
    pod("limited")
        .shell("sleep 1000")
        .spec("activeDeadlineSeconds", json!(8))
        .spec("terminationGracePeriodSeconds", json!(2))
        .write(&agent.manifests);
    for name in ["drained", "orphan", "hasty", "stubborn"] {
        agent.wait_running(name, secs(90));
    }
    let limited = agent.wait_phase("limited", "Failed", secs(30));
    assert_eq!(limited["status"]["reason"], "DeadlineExceeded", "a4_13 {limited}");
    agent.wait("a hook that failed to be told", secs(30), |agent| {
        let waiting = agent.container("broken", "main")?["state"]["waiting"].clone();
        let told = waiting["message"].as_str().unwrap_or_default().contains("command 'sh -c exit 3' exited with 3");
        (waiting["reason"] == "PostStartHookError" && told).then_some(())
    });
    assert!(agent.log_text().contains("PostStartHook failed"));
    assert_eq!((read("drained"), read("orphan")), ("up\n".to_owned(), "up\n".to_owned()), "each once");

    let told = Instant::now();
    for name in ["drained", "hasty", "stubborn"] {
        remove(&agent, name);
    }
    agent.wait("two of them to end", secs(20), |_| {
        (cri.running("drained").is_empty() && cri.running("hasty").is_empty()).then_some(())
    });
    assert_eq!(read("drained"), "up\ndown\ndrained asked\n");
    assert_eq!(read("hasty"), "down\nhasty asked\n");

    // Nobody knows the pod any more when its time comes: it has its hook all the same. One that was told before keeps its time.
    agent.kill9();
    remove(&agent, "orphan");
    std::thread::sleep(secs(2));
    let down = told.elapsed();
    agent.restart();
    agent.wait("both to end", secs(40), |_| {
        (cri.running("orphan").is_empty() && cri.running("stubborn").is_empty()).then_some(())
    });
    let took = told.elapsed();
    e2e::say(&format!("an agent came {down:.1?} after the removal, all ended {took:.1?} after it"));
    assert_eq!(read("orphan"), "up\ndown\norphan asked\n", "a4_6b");
    assert!(took > secs(12) && took < secs(12) + down, "a4_7i: it has all its time again: {took:?}");
    agent.finish();
}
