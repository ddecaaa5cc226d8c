//! The agent killed at random moments: its pods do not notice, and nothing is left behind.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Cri, SharedBed, pod, say, secs};
use serde_json::json;

static BED: SharedBed = SharedBed::new("adopt");

/// xorshift; good enough for moments.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const STEADY: [&str; 4] = ["steady-a", "steady-b", "steady-c", "steady-d"];

/// The steady pods' containers: pod and name to id; all of them running.
fn ids(cri: &Cri) -> BTreeMap<(String, String), String> {
    let steady = |pod: &str| pod.starts_with("steady-");
    let all = cri.containers().into_iter().filter(|c| c.running && steady(&c.pod));
    all.map(|c| ((c.pod, c.name), c.id)).collect()
}

#[test]
fn a4_12b_ten_kills_at_random_moments_disturb_nothing() {
    let Some(bed) = BED.get("a4_12b_ten_kills_at_random_moments_disturb_nothing") else { return };
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = std::env::var("BEELET_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or(clock.as_micros() as u64 | 1);
    say(&format!("seed {seed} (BEELET_SEED={seed} repeats it)"));
    let mut random = Random(seed);

    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    pod("steady-a").workload(&["sleep"]).write(&agent.manifests);
    pod("steady-b").workload(&["serve"]).request("cpu", "50m").limit("memory", "64Mi").write(&agent.manifests);
    let two = pod("steady-c").workload(&["spin", "--cores", "0.05"]).limit("cpu", "100m");
    two.container("second", e2e::WORKLOAD, &[], &["sleep"]).write(&agent.manifests);
    pod("steady-d")
        .workload(&["sleep"])
        .field("volumeMounts", json!([{ "name": "memory", "mountPath": "/memory" }]))
        .spec("volumes", json!([{ "name": "memory", "emptyDir": { "medium": "Memory" } }]))
        .write(&agent.manifests);
    pod("crash").workload(&["crash", "--after", "2s", "--code", "3"]).write(&agent.manifests);
    for name in STEADY {
        agent.wait_running(name, secs(90));
    }
    let before = ids(&cri);
    assert_eq!(before.len(), 5, "{before:?}");
    let mut crashes = 0;

    let mut present: Vec<u64> = Vec::new();
    for round in 0..10_u64 {
        // Something is always under way when the kill comes: a pod comes, and in the later rounds one goes.
        pod(&format!("guest-{round}"))
            .workload(&["sleep"])
            .field("volumeMounts", json!([{ "name": "memory", "mountPath": "/memory" }]))
            .spec("volumes", json!([{ "name": "memory", "emptyDir": { "medium": "Memory" } }]))
            .write(&agent.manifests);
        present.push(round);
        if present.len() > 2 {
            let at = random.below(present.len() as u64) as usize;
            let gone = present.remove(at);
            std::fs::remove_file(agent.manifests.join(format!("guest-{gone}.yaml"))).unwrap();
        }
        let moment = Duration::from_millis(random.below(1800));
        let down = Duration::from_millis(random.below(2000));
        std::thread::sleep(moment);
        agent.kill9();
        say(&format!("kill {round}: {moment:?} after a change, down for {down:?}"));
        assert_eq!(ids(&cri), before, "a steady pod died with the agent");
        std::thread::sleep(down);
        agent.restart();
        // Adopted: the pods are reported with what they are, from the first listing on.
        for name in STEADY {
            let pod = agent.wait_running(name, secs(30));
            for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
                assert_eq!(status["restartCount"], 0, "{pod}\n{}", agent.log_tail());
                let id = status["containerID"].as_str().unwrap_or_default();
                assert!(before.values().any(|known| id.ends_with(known.as_str())), "another container: {pod}");
            }
        }
        assert_eq!(ids(&cri), before, "a steady pod was restarted\n{}", agent.state());
        let now = agent.restarts("crash").unwrap_or(0);
        assert!(now >= crashes, "the restart count fell from {crashes} to {now}\n{}", agent.state());
        crashes = now;
    }

    // Which of the guests are wanted: they run, each once. The others are gone.
    for round in 0..10 {
        let name = format!("guest-{round}");
        if present.contains(&round) {
            agent.wait_running(&name, secs(60));
            assert_eq!(cri.running(&name).len(), 1, "{name} runs more than once");
        } else {
            agent.wait_gone(&name, secs(60));
        }
    }
    let wanted = STEADY.len() + present.len() + 1;
    agent.wait("one sandbox a pod", secs(60), |_| (cri.sandboxes().len() == wanted).then_some(()));
    agent.wait("no cgroup of a pod that is gone", secs(30), |agent| {
        let uids: Vec<String> = agent
            .try_pods()
            .ok()?
            .iter()
            .filter_map(|pod| Some(format!("pod{}", pod["metadata"]["uid"].as_str()?)))
            .collect();
        let groups = e2e::pod_cgroups(&bed.cgroup_root);
        groups.iter().all(|path| uids.iter().any(|uid| path.ends_with(uid))).then_some(())
    });
    assert_eq!(ids(&cri), before);
    let started = Instant::now();
    agent.finish();
    say(&format!("all pods gone without a trace within {:.1?}", started.elapsed()));
}
