//! Written volumes and the variables that refer to something: what a pod's own programs find.

use std::fs;
use std::time::Instant;

use e2e::{Agent, AgentOptions, SharedBed, pod, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("volumes");

fn uid(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

/// Waits until a file that the pod writes says this.
fn wait_said(agent: &Agent, pod: &Value, what: &str) -> String {
    let said = agent.root_dir().join("pods").join(uid(pod)).join("volumes/kubernetes.io~empty-dir/out/said");
    agent.wait(&format!("the pod to say {what:?}"), secs(20), |_| {
        let text = fs::read_to_string(&said).unwrap_or_default();
        text.contains(what).then_some(text)
    })
}

#[test]
fn a7_4_and_a8_a_pod_knows_itself_and_learns_what_changes() {
    let Some(bed) = BED.get("a7_4_and_a8_a_pod_knows_itself_and_learns_what_changes") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    // All that is asked for, again and again, through the names that users see; replaced in one step.
    let script = "cat /proc/mounts | grep ' /info ' > /out/mount; touch /info/x 2> /out/refused; \
                  while :; do { echo \"env=$CPUS/$MEMORY/$FILE/$TWICE\"; for f in labels name memory; do \
                  echo \"$f=$(cat /info/$f)\"; done; ls -l /both/deep/ | tail -n 1; echo \"both=$(cat /both/deep/name)\"; \
                  } > /out/next; mv /out/next /out/said; sleep 0.1; done";
    let items = json!([
        { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
        { "path": "name", "fieldRef": { "fieldPath": "metadata.name" } },
        { "path": "memory", "resourceFieldRef": { "containerName": "main", "resource": "limits.memory", "divisor": "1Mi" } },
    ]);
    let both = json!([
        { "downwardAPI": { "items": [
            { "path": "deep/name", "mode": 256, "fieldRef": { "fieldPath": "metadata.namespace" } },
        ] } },
    ]);
    let resource = |name: &str, divisor: &str| json!({ "resourceFieldRef": { "resource": name, "divisor": divisor } });
    let knows = pod("knows")
        .meta("uid", json!("0e9c4d51-3ab8"))
        .meta("labels", json!({ "app": "web" }))
        .init("first", e2e::BUSYBOX, &["sh", "-c", "echo \"FROM='a file'\" > /out/env"], &[])
        .field("volumeMounts", json!([{ "name": "out", "mountPath": "/out" }]))
        .shell(script)
        .limit("memory", "64Mi")
        .request("cpu", "50m")
        .field(
            "env",
            json!([
                { "name": "CPUS", "valueFrom": resource("requests.cpu", "1m") },
                { "name": "MEMORY", "valueFrom": resource("limits.memory", "1Mi") },
                { "name": "FILE", "valueFrom": { "fileKeyRef": { "volumeName": "out", "path": "env", "key": "FROM" } } },
                { "name": "TWICE", "value": "1" },
                { "name": "TWICE", "value": "$(TWICE)2" },
            ]),
        )
        .field(
            "volumeMounts",
            json!([
                { "name": "info", "mountPath": "/info" },
                { "name": "both", "mountPath": "/both" },
                { "name": "out", "mountPath": "/out" },
            ]),
        )
        .spec("securityContext", json!({ "fsGroup": 4242 }))
        .spec(
            "volumes",
            json!([
                { "name": "info", "downwardAPI": { "items": items } },
                { "name": "both", "projected": { "sources": both } },
                { "name": "out", "emptyDir": {} },
            ]),
        );
    knows.write(&agent.manifests);
    let first = agent.wait_running("knows", secs(90));
    let text = wait_said(&agent, &first, "both=default");
    for expected in [
        "env=50/64/a file/12\n",
        "labels=app=\"web\"\n",
        "name=knows-node\n",
        "memory=64\n",
        // fsGroup: the group may read what was for its owner alone.
        "-r--r-----    1 root     4242",
    ] {
        assert!(text.contains(expected), "wanted: {expected}\n{text}");
    }
    let volumes = agent.root_dir().join("pods").join(uid(&first)).join("volumes");
    let out =
        |name: &str| fs::read_to_string(volumes.join("kubernetes.io~empty-dir/out").join(name)).unwrap_or_default();
    assert!(out("mount").contains("tmpfs /info tmpfs ro,"), "{}", out("mount"));
    assert!(out("refused").contains("Read-only file system"), "{}", out("refused"));

    // The UID is given: labels and resources change in place, and the running container reads them.
    let started = first["status"]["containerStatuses"][0]["containerID"].clone();
    let asked = Instant::now();
    knows.clone().meta("labels", json!({ "app": "web", "new": "1" })).limit("memory", "96Mi").write(&agent.manifests);
    let text = wait_said(&agent, &first, "memory=96");
    let text = if text.contains("new=") { text } else { wait_said(&agent, &first, "new=\"1\"") };
    println!("labels and resources were in the files {:?} after the manifest", asked.elapsed());
    assert!(text.contains("labels=app=\"web\"\nnew=\"1\"\n") && text.contains("env=50/64/"), "{text}");
    let now = agent.pod("knows").expect("the pod");
    assert_eq!(now["status"]["containerStatuses"][0]["containerID"], started, "nothing was started anew");

    fs::remove_file(agent.manifests.join("knows.yaml")).unwrap();
    agent.wait("nothing of the pod", secs(60), |_| bed.leftovers().is_empty().then_some(()));
    agent.finish();
}
