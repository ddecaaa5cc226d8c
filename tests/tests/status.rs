//! What `/pods` says of a pod on real containerd: phase, conditions and containers, also after the agent and the runtime have been
//! away.

use beelet_proto::cri;
use e2e::{Agent, AgentOptions, BUSYBOX, Cri, SharedBed, pod, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("status");

const STAYS: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

fn condition(pod: &Value, kind: &str) -> Value {
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|c| c["type"] == kind).unwrap_or_else(|| panic!("no condition {kind}: {pod}"))
}

fn container(pod: &Value, name: &str) -> Value {
    let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    all.into_iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no container {name}: {pod}"))
}

#[test]
fn a4_1_a4_2_a4_18g_the_status_is_the_kubelets_also_after_a_restart() {
    let Some(bed) = BED.get("a4_1_a4_2_a4_18g_the_status_is_the_kubelets_also_after_a_restart") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    // One of its containers can never start.
    pod("half")
        .shell(STAYS)
        .field("volumeMounts", json!([{ "name": "v", "mountPath": "/v", "readOnly": true }]))
        .field("securityContext", json!({ "runAsUser": 1234, "runAsGroup": 2345 }))
        .container("never", "localhost/none:1", &["true"], &[])
        .field("imagePullPolicy", json!("Never"))
        .spec("volumes", json!([{ "name": "v", "emptyDir": {} }]))
        .write(&agent.manifests);
    pod("lost").container("main", BUSYBOX, &["sh", "-c", STAYS], &[]).write(&agent.manifests);
    pod("host").shell(STAYS).spec("hostNetwork", json!(true)).write(&agent.manifests);
    let half = agent.wait("one container to run and the other to be refused", secs(90), |agent| {
        let pod = agent.pod("half")?;
        let (main, never) = (container(&pod, "main"), container(&pod, "never"));
        let is = main["state"]["running"].is_object() && never["state"]["waiting"]["reason"] == "ErrImageNeverPull";
        // Who it runs as comes with the next listing.
        (is && main["user"].is_object()).then_some(pod)
    });
    assert_eq!(half["status"]["phase"], "Pending", "{half}");
    let ready = condition(&half, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("ContainersNotReady")));
    assert_eq!(ready["message"], "containers with unready status: [never]");
    assert_eq!(condition(&half, "Initialized")["status"], "True");
    assert_eq!(condition(&half, "PodReadyToStartContainers")["status"], "True");
    let main = container(&half, "main");
    assert_eq!((&main["user"]["linux"]["uid"], &main["user"]["linux"]["gid"]), (&json!(1234), &json!(2345)), "{main}");
    let mounts = json!([{ "name": "v", "mountPath": "/v", "readOnly": true, "recursiveReadOnly": "Disabled" }]);
    assert_eq!(main["volumeMounts"], mounts);

    let host = agent.wait_running("host", secs(60));
    assert!(host["status"]["podIP"].is_string(), "{host}");
    assert_eq!(host["status"]["podIP"], host["status"]["hostIP"]);
    assert_eq!(condition(&host, "PodReadyToStartContainers")["status"], "True");
    let lost = agent.wait_running("lost", secs(60));
    let log = agent.log_text();
    for told in ["Container created", "Container started", "Error: ErrImageNeverPull"] {
        assert!(log.contains(told), "{told}\n{}", agent.log_tail());
    }

    // The agent is away; one pod goes on, of the other the runtime forgets everything.
    std::thread::sleep(secs(2));
    agent.kill9();
    let cri = Cri::new(&bed);
    let sandbox = cri.sandboxes().into_iter().find(|s| s.pod == "lost-node").expect("its sandbox").id;
    let (stop, remove) = (
        cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() },
        cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox },
    );
    cri.call(|mut c| async move { c.stop_pod_sandbox(stop).await });
    cri.call(|mut c| async move { c.remove_pod_sandbox(remove).await });
    agent.restart();
    let again = agent.wait_running("lost", secs(60));
    assert_eq!(container(&again, "main")["restartCount"], 1, "{again}");
    assert_ne!(container(&again, "main")["containerID"], container(&lost, "main")["containerID"]);
    assert_eq!(again["status"]["startTime"], lost["status"]["startTime"]);
    let after = agent.wait_running("host", secs(30));
    assert_eq!(after["status"]["startTime"], host["status"]["startTime"]);
    for kind in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"] {
        assert_eq!(condition(&after, kind), condition(&host, kind), "{kind} did not change");
    }
    agent.finish();
}
