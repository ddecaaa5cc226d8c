//! Names in a pod: whom it asks for them, and which it has written down.

use std::fs;

use e2e::{Agent, AgentOptions, SharedBed, Witness, pod, secs};
use serde_json::json;

static BED: SharedBed = SharedBed::new("network");

/// The words of the lines of a resolv.conf that begin with this one, without it.
fn words(resolv_conf: &str, first: &str) -> Vec<String> {
    let lines = resolv_conf.lines().filter_map(|line| line.strip_prefix(first)?.strip_prefix(' '));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[test]
fn a9_2_a_pod_asks_whom_its_policy_says() {
    let Some(bed) = BED.get("a9_2_a_pod_asks_whom_its_policy_says") else { return };
    let file = bed.run_dir.join("resolv.conf");
    fs::write(&file, "nameserver 192.0.2.53\nsearch corp.example\noptions rotate\n").expect("a resolv.conf");
    let options = AgentOptions::default()
        .set("resolvConf", &file.display().to_string())
        .set("clusterDNS", "[10.96.0.10]")
        .set("clusterDomain", "cluster.local");
    let agent = Agent::start(&bed, &options);
    let folder = |name: &str| bed.dir.join(format!("dns-{name}"));
    let own = json!({ "nameservers": ["192.0.2.9"], "searches": ["mine.example"], "options": [{ "name": "ndots", "value": "2" }] });
    let cluster = ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"];
    let with_own: Vec<&str> = cluster.into_iter().chain(["mine.example"]).collect();
    for (name, policy, config, servers, searches, option) in [
        ("plain", json!(null), json!(null), &["10.96.0.10"][..], &cluster[..], "ndots:5"),
        ("node", json!("Default"), json!(null), &["192.0.2.53"], &["corp.example"], "rotate"),
        ("none", json!("None"), own.clone(), &["192.0.2.9"], &["mine.example"], "ndots:2"),
        ("more", json!("ClusterFirst"), own, &["10.96.0.10", "192.0.2.9"], &with_own, "ndots:2"),
    ] {
        let folder = folder(name);
        let mut witness = Witness::new(name, &folder).container("main", "cat /etc/resolv.conf", json!({}));
        witness.pod = witness.pod.spec("dnsPolicy", policy).spec("dnsConfig", config);
        witness.pod.write(&agent.manifests);
        let seen = witness.read(&agent, "main");
        assert_eq!(words(&seen, "nameserver"), servers, "{name}:\n{seen}");
        assert_eq!(words(&seen, "search"), searches, "{name}:\n{seen}");
        assert_eq!(words(&seen, "options"), [option], "{name}:\n{seen}");
    }
    // A change of the node's file reaches pods that are made later.
    fs::write(&file, "nameserver 192.0.2.54\n").expect("a resolv.conf");
    let later = folder("later");
    let mut witness = Witness::new("later", &later).container("main", "cat /etc/resolv.conf", json!({}));
    witness.pod = witness.pod.spec("dnsPolicy", json!("Default"));
    witness.pod.write(&agent.manifests);
    assert_eq!(words(&witness.read(&agent, "main"), "nameserver"), ["192.0.2.54"]);
    agent.finish();
}

#[test]
fn a9_2b_a_pod_that_asks_for_a_cluster_that_is_not_there_is_told() {
    let Some(bed) = BED.get("a9_2b_a_pod_that_asks_for_a_cluster_that_is_not_there_is_told") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    pod("lonely")
        .shell("exec sleep 3600")
        .spec("terminationGracePeriodSeconds", json!(1))
        .spec("dnsPolicy", json!("ClusterFirst"))
        .write(&agent.manifests);
    agent.wait_running("lonely", secs(90));
    let explanation = agent.explain("default", "lonely");
    let records = explanation["records"].as_array().cloned().unwrap_or_default();
    let told = records.iter().find(|record| record["reason"] == "MissingClusterDNS");
    let message = told.and_then(|record| record["message"].as_str()).unwrap_or_default();
    assert!(message.contains("Falling back to \"Default\" policy."), "{explanation}");
    agent.finish();
}

#[test]
fn a9_3c_a9_3e_a_pod_has_its_whole_name() {
    let Some(bed) = BED.get("a9_3c_a9_3e_a_pod_has_its_whole_name") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default().set("clusterDomain", "cluster.local"));
    let folder = bed.dir.join("fqdn");
    let mut witness = Witness::new("named", &folder).container("main", "hostname; cat /etc/hosts", json!({}));
    witness.pod = witness.pod.spec("hostname", json!("web")).spec("subdomain", json!("sub"));
    witness.pod = witness.pod.spec("setHostnameAsFQDN", json!(true));
    witness.pod.write(&agent.manifests);
    let seen = witness.read(&agent, "main");
    assert_eq!(seen.lines().next(), Some("web.sub.default.svc.cluster.local"), "{seen}");
    assert!(seen.contains("\tweb.sub.default.svc.cluster.local\tweb\n"), "{seen}");
    agent.finish();
}

#[test]
fn a9_3b_aliases_are_in_the_hosts_file() {
    let Some(bed) = BED.get("a9_3b_aliases_are_in_the_hosts_file") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let folder = bed.dir.join("aliases");
    let mut witness = Witness::new("aliases", &folder).container("main", "cat /etc/hosts", json!({}));
    let aliases = json!([{ "ip": "192.0.2.1", "hostnames": ["one", "two.example"] }]);
    witness.pod = witness.pod.spec("hostAliases", aliases);
    witness.pod.write(&agent.manifests);
    let seen = witness.read(&agent, "main");
    assert!(seen.ends_with("\n# Entries added by HostAliases.\n192.0.2.1\tone\ttwo.example\n"), "{seen}");
    agent.finish();
}
