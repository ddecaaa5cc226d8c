//! Every value that has a file lies between two readings of that file, for fifty pods under a mixed load.

use e2e::{Agent, AgentOptions, SharedBed, built, pod, say, secs};

static BED: SharedBed = SharedBed::new("sandwich");

/// Pods with a load of their own.
const MIXED: usize = 46;
/// Pairs of a server and a client that talk to each other.
const PAIRS: usize = 2;

#[test]
fn fifty_pods_under_a_mixed_load_are_measured_truly() {
    let Some(bed) = BED.get("fifty_pods_under_a_mixed_load_are_measured_truly") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    for n in 0..PAIRS {
        pod(&format!("server-{n}")).workload(&["serve"]).write(&agent.manifests);
    }
    for n in 0..MIXED {
        let seed = (n + 1).to_string();
        let mut mixed = pod(&format!("mixed-{n}")).workload(&["mixed", "--seed", &seed]);
        match n % 4 {
            0 => mixed = mixed.limit("cpu", "20m"),
            1 => mixed = mixed.limit("memory", "24Mi"),
            _ => {}
        }
        mixed.write(&agent.manifests);
    }
    for n in 0..PAIRS {
        let server = agent.wait_running(&format!("server-{n}"), secs(240));
        let ip = server["status"]["podIP"].as_str().expect("an address").to_owned();
        let url = format!("http://{ip}:8080/bytes/100000");
        pod(&format!("client-{n}")).workload(&["fetch", "--url", &url, "--interval", "300ms"]).write(&agent.manifests);
    }
    agent.wait("50 pods to run", secs(300), |agent| {
        let running = agent.metrics().value("kubelet_running_pods", &[])?;
        (running >= (MIXED + 2 * PAIRS) as f64).then_some(())
    });
    let mut probe = bed.inside("agent", &built("BEELET_SANDWICH_PROBE", "debug/examples/sandwich_probe"));
    let output = probe.args([&agent.address(), "3"]).output().expect("the probe");
    let text = String::from_utf8_lossy(&output.stdout);
    say(&text);
    assert!(output.status.success(), "{text}{}\n{}", String::from_utf8_lossy(&output.stderr), agent.state());
    agent.finish();
}
