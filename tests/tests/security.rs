//! What a pod may do: seccomp, AppArmor, sysctls and groups, as the processes of its containers have them.

use std::fs;
use std::path::Path;

use beelet_proto::cri;
use e2e::{Agent, AgentOptions, Cri, NODE, SharedBed, Witness, pod, say, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("security");

/// What containerd made of a container of this pod: its configuration as it was asked for, and as the kernel got it.
fn info(cri: &Cri, pod: &str, container: &str) -> Value {
    let found = cri.running(pod).into_iter().find(|c| c.name == container).expect("a running container");
    let request = cri::ContainerStatusRequest { container_id: found.id, verbose: true };
    let answer = cri.call(|mut c| async move { c.container_status(request).await });
    serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str)).expect("JSON")
}

fn number(status: &str, field: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(field)?.trim().parse().ok())
}

#[test]
fn a10_11_seccomp_is_what_the_manifest_says() {
    let Some(bed) = BED.get("a10_11_seccomp_is_what_the_manifest_says") else { return };
    let profile = |kind: &str| json!({ "seccompProfile": { "type": kind } });
    let status = "cat /proc/self/status";
    for (default, unset) in [(false, 0), (true, 2)] {
        let agent = Agent::start(&bed, &AgentOptions::default().set("seccompDefault", &default.to_string()));
        let profiles = agent.root_dir().join("seccomp");
        fs::create_dir_all(&profiles).expect("a folder");
        let deny = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
        });
        fs::write(profiles.join("no-mkdir.json"), deny.to_string()).expect("a profile");
        let folder = bed.dir.join(format!("seccomp-{default}"));
        let local = |file: &str| json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": file } });
        let witness = Witness::new("profiles", &folder)
            .container("unset", status, json!({}))
            .container("default", status, profile("RuntimeDefault"))
            .container("unconfined", status, profile("Unconfined"))
            .container("local", &format!("mkdir /made; {status}"), local("no-mkdir.json"))
            .container("missing", status, local("none.json"));
        witness.pod.write(&agent.manifests);
        for (container, mode) in [("unset", unset), ("default", 2), ("unconfined", 0), ("local", 2)] {
            let seen = witness.read(&agent, container);
            assert_eq!(number(&seen, "Seccomp:"), Some(mode), "seccompDefault {default}, {container}:\n{seen}");
        }
        let seen = witness.read(&agent, "local");
        assert!(seen.contains("can't create directory '/made': Operation not permitted"), "{seen}");
        let waiting = agent.wait("the missing profile to be told", secs(60), |agent| {
            let status = agent.container("profiles", "missing")?["state"]["waiting"].clone();
            (status["reason"] == "CreateContainerError").then_some(status)
        });
        let message = waiting["message"].as_str().unwrap_or_default();
        assert!(message.contains("seccomp/none.json"), "{waiting}");
        agent.finish();
    }
}

#[test]
fn a10_12_apparmor_is_asked_for_or_the_pod_is_turned_away() {
    let Some(bed) = BED.get("a10_12_apparmor_is_asked_for_or_the_pod_is_turned_away") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let on = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
        && Path::new("/sys/kernel/security/apparmor").exists();
    let kind = |kind: &str| json!({ "appArmorProfile": { "type": kind } });
    let current = "cat /proc/self/attr/current || true";
    let folder = bed.dir.join("apparmor");
    let free = Witness::new("free", &folder).container("by-field", current, kind("Unconfined")).container(
        "by-annotation",
        current,
        json!({}),
    );
    let key = "container.apparmor.security.beta.kubernetes.io/by-annotation";
    free.pod.clone().meta("annotations", json!({ key: "unconfined" })).write(&agent.manifests);
    let confined_folder = bed.dir.join("apparmor-default");
    let confined = Witness::new("confined", &confined_folder).container("default", current, kind("RuntimeDefault"));
    confined.pod.write(&agent.manifests);
    agent.wait_running("free", secs(90));
    for container in ["by-field", "by-annotation"] {
        // The number of CRI's `Unconfined`.
        let asked = info(&cri, &format!("free-{NODE}"), container);
        assert_eq!(asked["config"]["linux"]["security_context"]["apparmor"]["profile_type"], 1, "{container}: {asked}");
    }
    if on {
        assert!(free.read(&agent, "by-field").starts_with("unconfined"));
        assert!(confined.read(&agent, "default").contains("cri-containerd.apparmor.d"));
    } else {
        say(
            "a10_12: this kernel has no AppArmor: that pods are turned away for it is shown, not that profiles are in force",
        );
        let failed = agent.wait_phase("confined", "Failed", secs(30));
        let said = (failed["status"]["reason"].as_str(), failed["status"]["message"].as_str());
        let message = "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host";
        assert_eq!(said, (Some("AppArmor"), Some(message)), "{failed}");
        assert!(cri.sandboxes().iter().all(|sandbox| sandbox.pod != format!("confined-{NODE}")));
    }
    agent.finish();
}

#[test]
fn a10_16_sysctls_are_the_pods_own_if_they_are_safe_or_allowed() {
    let Some(bed) = BED.get("a10_16_sysctls_are_the_pods_own_if_they_are_safe_or_allowed") else { return };
    let (port, limit) = ("net.ipv4.ip_unprivileged_port_start", "kernel.msgmax");
    let witness = |name: &str, folder, show: &str, (sysctl, value): (&str, &str)| {
        let mut witness = Witness::new(name, folder).container("main", &format!("cat /proc/sys/{show}"), json!({}));
        let sysctls = json!([{ "name": sysctl, "value": value }]);
        witness.pod = witness.pod.spec("securityContext", json!({ "sysctls": sysctls }));
        witness
    };
    let (safe, allowed) = (bed.dir.join("sysctl-safe"), bed.dir.join("sysctl-allowed"));
    let agent = Agent::start(&bed, &AgentOptions::default());
    let outside = fs::read_to_string("/proc/sys/kernel/msgmax").expect("the node's own");
    // Its name may be written with slashes.
    let safe = witness("safe", &safe, &port.replace('.', "/"), (&port.replace('.', "/"), "80"));
    let allowed = witness("allowed", &allowed, "kernel/msgmax", (limit, "4096"));
    safe.pod.write(&agent.manifests);
    allowed.pod.write(&agent.manifests);
    assert_eq!(safe.read(&agent, "main").trim(), "80");
    let failed = agent.wait_phase("allowed", "Failed", secs(30));
    assert_eq!(failed["status"]["reason"], "SysctlForbidden", "{failed}");
    let message = "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted";
    assert_eq!(failed["status"]["message"], message, "{failed}");
    agent.finish();

    let agent = Agent::start(&bed, &AgentOptions::default().set("allowedUnsafeSysctls", "['kernel.msg*']"));
    allowed.pod.write(&agent.manifests);
    assert_eq!(allowed.read(&agent, "main").trim(), "4096");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/msgmax").expect("the node's own"), outside);
    agent.finish();
}

#[test]
fn a10_4_strict_groups_are_given_where_the_runtime_can() {
    let Some(bed) = BED.get("a10_4_strict_groups_are_given_where_the_runtime_can") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let status = cri.call(|mut c| async move { c.status(cri::StatusRequest { verbose: false }).await });
    let can = status.features.is_some_and(|features| features.supplemental_groups_policy);
    let folder = bed.dir.join("groups");
    let witness = Witness::new("strict", &folder).container("main", "cat /proc/self/status", json!({}));
    let security = json!({ "supplementalGroupsPolicy": "Strict", "supplementalGroups": [4711], "runAsUser": 0 });
    witness.pod.clone().spec("securityContext", security).write(&agent.manifests);
    if can {
        let seen = witness.read(&agent, "main");
        let groups = seen.lines().find_map(|line| line.strip_prefix("Groups:")).map(str::trim);
        // The image's user and the pod's groups: nothing from the image's /etc/group.
        assert!(groups.is_some_and(|groups| groups.split(' ').all(|group| ["0", "4711"].contains(&group))), "{seen}");
    } else {
        say("a10_4: this runtime does not say that it knows supplementalGroupsPolicy: the pod is turned away");
        let failed = agent.wait_phase("strict", "Failed", secs(30));
        assert_eq!(failed["status"]["reason"], "SupplementalGroupsPolicyNotSupported", "{failed}");
    }
    agent.finish();
}

#[test]
fn what_is_left_out_of_a_manifest_is_seen_by_all() {
    let Some(bed) = BED.get("what_is_left_out_of_a_manifest_is_seen_by_all") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    pod("part")
        .shell("exec sleep 3600")
        .spec("terminationGracePeriodSeconds", json!(1))
        .field("stdinOnce", json!(true))
        .write(&agent.manifests);
    let running = agent.wait_running("part", secs(90));
    let said = "spec.containers[0].stdinOnce: has no effect yet";
    let conditions = running["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let told = conditions.iter().find(|condition| condition["type"] == "beelet.dev/AsWritten");
    assert_eq!(told.map(|condition| &condition["message"]), Some(&json!(said)), "{running}");
    let explanation = agent.explain("default", "part");
    assert_eq!(explanation["pod"]["spec"]["left_out"], json!([said]), "{explanation}");
    let records = explanation["records"].as_array().cloned().unwrap_or_default();
    assert!(records.iter().any(|r| r["reason"] == "FieldsLeftOut" && r["message"] == said), "{explanation}");
    assert!(agent.log_text().contains(said), "{}", agent.log_tail());
    agent.finish();
}
