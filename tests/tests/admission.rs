//! Who may run on the node, on real containerd: by labels and host ports, and by making room for a critical pod.

use e2e::{Agent, AgentOptions, SharedBed, pod, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("admission");

fn requires(zone: &str) -> Value {
    let zone = json!({ "key": "zone", "operator": "In", "values": [zone] });
    let terms = json!([{ "matchExpressions": [zone] }]);
    json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } })
}

#[test]
fn a4_16d_a4_16f_labels_and_host_ports_decide_who_runs() {
    let Some(bed) = BED.get("a4_16d_a4_16f_labels_and_host_ports_decide_who_runs") else { return };
    let args = ["--node-labels", "zone=a"].map(str::to_owned).to_vec();
    let agent = Agent::start(&bed, &AgentOptions { args, ..AgentOptions::default() });
    let port = json!([{ "containerPort": 80, "hostPort": 18_080 }]);
    pod("first")
        .workload(&["sleep"])
        .spec("affinity", requires("a"))
        .field("ports", port.clone())
        .write(&agent.manifests);
    agent.wait_running("first", secs(60));
    pod("elsewhere").workload(&["sleep"]).spec("affinity", requires("b")).write(&agent.manifests);
    pod("second").workload(&["sleep"]).field("ports", port).write(&agent.manifests);
    let failed = agent.wait_phase("elsewhere", "Failed", secs(30));
    assert_eq!(failed["status"]["reason"], "NodeAffinity", "{failed}");
    let failed = agent.wait_phase("second", "Failed", secs(30));
    assert_eq!(failed["status"]["reason"], "NodePorts", "{failed}");
    agent.finish();
}

#[test]
fn a4_17b_a_pod_goes_for_a_critical_one() {
    let Some(bed) = BED.get("a4_17b_a_pod_goes_for_a_critical_one") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default().set("maxPods", "1"));
    pod("plain").workload(&["sleep"]).spec("terminationGracePeriodSeconds", json!(1)).write(&agent.manifests);
    agent.wait_running("plain", secs(60));
    pod("critical")
        .workload(&["sleep"])
        .spec("priorityClassName", json!("system-node-critical"))
        .write(&agent.manifests);
    let gone = agent.wait_phase("plain", "Failed", secs(30));
    assert_eq!(gone["status"]["reason"], "Preempting", "{gone}");
    let conditions = gone["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let disrupted = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget");
    assert_eq!(disrupted.map(|condition| &condition["status"]), Some(&json!("True")), "{gone}");
    agent.wait_running("critical", secs(60));
    agent.finish();
}
