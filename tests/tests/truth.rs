//! What beelet reports is true: against the kernel's own files, against known amounts, against known deaths.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Metrics, NODE, SharedBed, pod, say, secs};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("truth");

fn full(name: &str) -> String {
    format!("{name}-{NODE}")
}

/// The machine's load, to be shown beside a number.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// A pod's condition `beelet.dev/Healthy`.
fn verdict(agent: &Agent<'_>, name: &str) -> Option<Value> {
    let pod = agent.pod(name)?;
    let conditions = pod["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == "beelet.dev/Healthy").cloned()
}

/// Waits until a pod is judged so; gives the evidence.
fn wait_verdict(agent: &Agent<'_>, name: &str, status: &str, reason: &str, limit: Duration) -> String {
    agent.wait(&format!("{name} to be judged {reason}"), limit, |agent| {
        let verdict = verdict(agent, name).filter(|v| v["status"] == status && v["reason"] == reason)?;
        Some(verdict["message"].as_str().unwrap_or_default().to_owned())
    })
}

/// The value of `beelet_pod_health_state` of a pod for a state and a reason.
fn health(metrics: &Metrics, name: &str, state: &str, reason: &str) -> Option<f64> {
    let labels = [("pod", &*full(name)), ("state", state), ("reason", reason)];
    metrics.value("beelet_pod_health_state", &labels)
}

/// The directory of a pod's container in the unified hierarchy.
fn cgroup_of(agent: &Agent<'_>, name: &str) -> PathBuf {
    let container = agent.container(name, "main").expect("a container");
    let id = container["containerID"].as_str().and_then(|id| id.rsplit('/').next()).expect("its id").to_owned();
    let dirs = e2e::pod_cgroups(&agent.bed.cgroup_root);
    dirs.iter().map(|dir| dir.join(&id)).find(|dir| cpu_stat(dir).is_some()).expect("its cgroup")
}

// === CPU ===

/// CPU time of a container: by the kernel's file, by the two metrics, at the moment of one sample.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    at: Instant,
    file: f64,
    ebpf: f64,
    cgroup: f64,
}

/// `usage_usec` of cpu.stat; the unified hierarchy has it also beside v1.
fn cpu_stat(dir: &std::path::Path) -> Option<f64> {
    let text = std::fs::read_to_string(dir.join("cpu.stat")).ok()?;
    let usage: f64 = text.lines().find_map(|line| line.strip_prefix("usage_usec "))?.trim().parse().ok()?;
    Some(usage / 1e6)
}

fn cpu_metrics(agent: &Agent<'_>, pod: &str) -> Option<(f64, f64)> {
    // The two metrics are of two endpoints; both show what the picture has, and a picture is of one moment.
    let picture: Value = serde_json::from_str(&agent.get("/debug/snapshot").ok()?).ok()?;
    let of_pod = |p: &&Value| p["spec"]["name"] == pod;
    let cpu = &picture["pods"].as_array()?.iter().find(of_pod)?["containers"][0]["reading"]["cpu"];
    Some((cpu["run"].as_f64()? / 1e6, cpu["usage"].as_f64()? / 1e6))
}

/// The moment at which the metric changes is that of a sample (and 100 ms, the same ones at both ends of a window); the file
/// is read before and after the scrape that shows it, and the mean counts.
fn cpu_at_a_sample(agent: &Agent<'_>, pod: &str, dir: &std::path::Path) -> Cpu {
    let mut before = None;
    let deadline = Instant::now() + secs(20);
    loop {
        let first = cpu_stat(dir).expect("cpu.stat of the container");
        let (ebpf, cgroup) = cpu_metrics(agent, pod).expect("the metrics of the container");
        let last = cpu_stat(dir).expect("cpu.stat of the container");
        if before.replace(ebpf).is_some_and(|value| value < ebpf) {
            return Cpu { at: Instant::now(), file: f64::midpoint(first, last), ebpf, cgroup };
        }
        assert!(Instant::now() < deadline, "the metric does not change\n{}", agent.state());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Must show 3: a pod burns half a core for 20 s; eBPF's CPU time is within 2 % of cpu.stat over the same window.
#[test]
fn cpu_time_by_ebpf_is_that_of_cpu_stat() {
    let Some(bed) = BED.get("cpu_time_by_ebpf_is_that_of_cpu_stat") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    pod("burner").workload(&["spin", "--cores", "0.5"]).write(&agent.manifests);
    agent.wait_running("burner", secs(60));
    let dir = cgroup_of(&agent, "burner");
    agent.wait("the burner to be measured", secs(20), |agent| cpu_metrics(agent, &full("burner")));

    let first = cpu_at_a_sample(&agent, &full("burner"), &dir);
    std::thread::sleep(secs(20));
    let last = cpu_at_a_sample(&agent, &full("burner"), &dir);

    let window = (last.at - first.at).as_secs_f64();
    let [file, ebpf, cgroup] = [last.file - first.file, last.ebpf - first.ebpf, last.cgroup - first.cgroup];
    let off = |value: f64, truth: f64| (value / truth - 1.0) * 100.0;
    say(&format!(
        "truth: CPU over {window:.1} s: cpu.stat read here {file:.4} s; eBPF {ebpf:.4} s ({:+.2} %); \
         cpu.stat read by the agent {cgroup:.4} s (eBPF {:+.2} % of it); load {}",
        off(ebpf, file),
        off(ebpf, cgroup),
        load()
    ));
    assert!((0.4..=0.6).contains(&(file / window)), "not half a core: {file} s in {window} s");
    assert!(off(ebpf, file).abs() <= 2.0, "eBPF {ebpf} s, cpu.stat {file} s");
    assert!(off(ebpf, cgroup).abs() <= 2.0, "eBPF {ebpf} s, cpu.stat of the same sample {cgroup} s");
    agent.finish();
}

// === network ===

/// What went through a pod's sockets.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Traffic {
    rx_bytes: f64,
    rx_packets: f64,
    tx_bytes: f64,
    tx_packets: f64,
}

fn traffic(metrics: &Metrics, name: &str) -> Option<Traffic> {
    let pod = full(name);
    let get = |what: &str, direction: &str| {
        let labels = [("pod", &*pod), ("protocol", "tcp"), ("direction", direction)];
        metrics.value(&format!("beelet_network_{what}_total"), &labels)
    };
    Some(Traffic {
        rx_bytes: get("bytes", "receive")?,
        rx_packets: get("packets", "receive")?,
        tx_bytes: get("bytes", "transmit")?,
        tx_packets: get("packets", "transmit")?,
    })
}

/// A process of a pod's container.
fn pid(agent: &Agent<'_>, name: &str) -> String {
    let dir = cgroup_of(agent, name);
    let pids = std::fs::read_to_string(dir.join("cgroup.procs")).expect("the container's processes");
    pids.lines().next().expect("a process").to_owned()
}

/// The counters of a pod's network device: what is known of packets without beelet.
fn device(agent: &Agent<'_>, name: &str) -> Traffic {
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", pid(agent, name))).expect("the pod's devices");
    let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).expect("eth0");
    let count: Vec<f64> = line.split_whitespace().map(|n| n.parse().expect("a number")).collect();
    Traffic { rx_bytes: count[0], rx_packets: count[1], tx_bytes: count[8], tx_packets: count[9] }
}

/// The segments that a pod's sockets have sent once more (`RetransSegs` of its network namespace, Documentation/networking/
/// snmp_counter.rst).
fn sent_again(agent: &Agent<'_>, name: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{}/net/snmp", pid(agent, name))).expect("the pod's counters");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, counts) = (lines.next().expect("the names"), lines.next().expect("the counts"));
    let at = names.split_whitespace().position(|name| name == "RetransSegs").expect("RetransSegs");
    counts.split_whitespace().nth(at).and_then(|count| count.parse().ok()).expect("a number")
}

/// Must show 3: 64 MiB between two pods with addresses of their own, within 1 % at both ends.
///
/// What is sent once more (on a machine whose CPUs are taken away, acknowledgements come too late) is on the wire twice, and counts
/// twice at both ends: the truth is the payload, and a segment of 1448 bytes for each of those.
///
/// Headers: sockets see each buffer with one IPv4 header (20 bytes), one TCP header (20) and the timestamp option (12), so
/// that `bytes = payload + 52 x buffers`. A buffer holds up to 64 KiB where segmentation is offloaded; how many there were is
/// told by the pod's device. (The packets that beelet counts are those on a wire: a buffer counts as its segments.) The device
/// also knows the bytes, each buffer with 14 more for Ethernet.
#[test]
fn bytes_of_a_transfer_are_counted_at_both_ends() {
    const PAYLOAD: f64 = 67_108_864.0;
    const HEADERS: f64 = 52.0;
    const ETHERNET: f64 = 14.0;
    const SEGMENT: f64 = 1448.0;
    let Some(bed) = BED.get("bytes_of_a_transfer_are_counted_at_both_ends") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    pod("server").workload(&["serve", "--port", "8080"]).write(&agent.manifests);
    let server = agent.wait_running("server", secs(60));
    let ip = server["status"]["podIP"].as_str().expect("an address").to_owned();
    assert!(!ip.is_empty() && ip != bed.node_ip, "the server has no address of its own: {ip:?}");
    agent.wait("the server to listen", secs(20), |agent| {
        let labels = [("pod", &*full("server"))];
        agent.metrics().value("beelet_pod_listening_ports", &labels).filter(|&ports| ports >= 1.0)
    });
    let url = format!("http://{ip}:8080/bytes/{PAYLOAD}");
    // It stays after the transfer, so that its counters do.
    pod("client").workload(&["fetch", "--url", &url, "--count", "1", "--interval", "300s"]).write(&agent.manifests);
    let mut last = None;
    // All there, and no more coming for more than the 10 s between details.
    let (client, server) = agent.wait("the transfer to be counted", secs(90), |agent| {
        let metrics = agent.metrics();
        let now = (traffic(&metrics, "client")?, traffic(&metrics, "server")?);
        let (since, seen) = *last.get_or_insert((Instant::now(), now));
        if seen != now {
            last = Some((Instant::now(), now));
        }
        let all = now.0.rx_bytes >= PAYLOAD && now.1.tx_bytes >= PAYLOAD;
        (all && seen == now && since.elapsed() >= secs(12)).then_some(now)
    });
    let (at_client, at_server) = (device(&agent, "client"), device(&agent, "server"));
    let off = |bytes: f64, truth: f64| (bytes / truth - 1.0) * 100.0;
    let again = sent_again(&agent, "server");
    let payload = PAYLOAD + SEGMENT * again;
    let received = off(client.rx_bytes, payload + HEADERS * at_client.rx_packets);
    let sent = off(server.tx_bytes, payload + HEADERS * at_server.tx_packets);
    let by_device = [
        off(client.rx_bytes, at_client.rx_bytes - ETHERNET * at_client.rx_packets),
        off(server.tx_bytes, at_server.tx_bytes - ETHERNET * at_server.tx_packets),
    ];
    say(&format!(
        "truth: 64 MiB: the client received {} bytes in {} buffers ({received:+.4} % of payload and headers), the server sent \
         {} in {} ({sent:+.4} %); of what the devices count: {by_device:+.4?} %; acknowledged in {} bytes, received as {}; \
         {again} segments sent again; load {}",
        client.rx_bytes,
        at_client.rx_packets,
        server.tx_bytes,
        at_server.tx_packets,
        client.tx_bytes,
        server.rx_bytes,
        load()
    ));
    for (what, off) in
        [("received", received), ("sent", sent), ("by device", by_device[0]), ("by device", by_device[1])]
    {
        assert!(off.abs() <= 1.0, "{what}: {off} %: {client:?}, {server:?}, devices {at_client:?}, {at_server:?}");
    }
    // What one end sends the other receives; the way back is acknowledgements and one request.
    assert!((client.tx_bytes / server.rx_bytes - 1.0).abs() <= 0.01, "{client:?}, {server:?}");
    agent.finish();
}

// === OOM kills inside a pod's limit ===

/// Must show 3: an OOM kill inside a pod's own limit counts once, with pod and container, over restarts of the container.
#[test]
fn an_oom_kill_is_counted_once_and_stays_counted() {
    let Some(bed) = BED.get("an_oom_kill_is_counted_once_and_stays_counted") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let leak = ["leak", "--rate", "100Mi", "--delay", "6s"];
    pod("victim").workload(&leak).limit("memory", "64Mi").write(&agent.manifests);
    pod("bystander").workload(&["sleep"]).write(&agent.manifests);
    let victim = full("victim");
    let of_victim = [("namespace", "default"), ("pod", &*victim), ("container", "main")];
    let counted = |metrics: &Metrics| {
        let both = ["beelet_oom_kills_total", "container_oom_events_total"];
        both.map(|name| metrics.value(name, &of_victim).unwrap_or(0.0))
    };
    let total = |metrics: &Metrics| metrics.sum("beelet_oom_kills_total", &[]).unwrap_or(0.0);
    agent.wait_running("victim", secs(60));
    agent.wait_running("bystander", secs(60));
    assert_eq!(counted(&agent.metrics()), [0.0, 0.0], "before anything happened");

    agent.wait("the kill to be counted", secs(30), |agent| (counted(&agent.metrics())[0] > 0.0).then_some(()));
    let killed = agent.wait("the container to run again", secs(30), |agent| {
        let container = agent.container("victim", "main")?;
        (container["restartCount"] == 1 && container["state"]["running"].is_object()).then_some(container)
    });
    let last = &killed["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("OOMKilled"), &json!(137)), "{killed}");
    let evidence = wait_verdict(&agent, "victim", "False", "OOMVictim", secs(10));
    assert!(evidence.contains("the OOM killer chose workload") && evidence.contains("container main"), "{evidence}");
    // Four seconds of its second run, several samples: the count stays.
    let until = Instant::now() + secs(4);
    while Instant::now() < until {
        let metrics = agent.metrics();
        assert_eq!(counted(&metrics), [1.0, 1.0], "after one kill\n{}", agent.state());
        assert_eq!(total(&metrics), 1.0, "somebody else is counted too\n{}", agent.state());
        assert_eq!(health(&metrics, "victim", "Unhealthy", "OOMVictim"), Some(1.0), "{}", agent.state());
        std::thread::sleep(Duration::from_millis(200));
    }
    agent.wait("the second kill to be counted", secs(30), |agent| (counted(&agent.metrics())[0] > 1.0).then_some(()));
    // In its back-off of 10 s there is no container that could use anything; the count stays.
    agent.wait("its last reading to go", secs(4), |agent| {
        agent.metrics().all("container_memory_usage_bytes", &of_victim).next().is_none().then_some(())
    });
    let until = Instant::now() + secs(5);
    while Instant::now() < until {
        let metrics = agent.metrics();
        assert_eq!((counted(&metrics), total(&metrics)), ([2.0, 2.0], 2.0), "after two kills\n{}", agent.state());
        std::thread::sleep(Duration::from_millis(200));
    }
    let metrics = agent.metrics();
    let nine = [("pod", &*victim), ("container", "main"), ("reason", "signal"), ("value", "9")];
    assert_eq!(metrics.value("beelet_process_exits_total", &nine), Some(2.0), "ends by SIGKILL");
    assert_eq!(health(&metrics, "bystander", "Healthy", ""), Some(1.0), "{}", agent.state());
    assert_eq!(agent.restarts("bystander"), Some(0));
    agent.finish();
}

// === listeners ===

/// A listening socket is seen to appear and to go; the pod that loses it is judged, the one that keeps it is not.
#[test]
fn a5_8_a_listener_that_goes_is_seen_and_judged() {
    let Some(bed) = BED.get("a5_8_a_listener_that_goes_is_seen_and_judged") else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    pod("closes").workload(&["unlisten", "--port", "8080", "--after", "8s"]).write(&agent.manifests);
    pod("stays").workload(&["serve", "--port", "8081"]).write(&agent.manifests);
    for (name, port) in [("closes", "8080"), ("stays", "8081")] {
        agent.wait_running(name, secs(60));
        let evidence = wait_verdict(&agent, name, "True", "Healthy", secs(10));
        assert!(evidence.contains(&format!("port {port} listens")), "{name}: {evidence}");
        let ports = agent.wait("the port to be counted", secs(5), |agent| {
            agent.metrics().value("beelet_pod_listening_ports", &[("pod", &full(name))]).filter(|&n| n > 0.0)
        });
        assert_eq!(ports, 1.0, "{name}");
    }
    let evidence = wait_verdict(&agent, "closes", "False", "ListenerGone", secs(30));
    assert!(evidence.contains("port 8080 does not listen any more"), "{evidence}");
    let metrics = agent.metrics();
    assert_eq!(health(&metrics, "closes", "Unhealthy", "ListenerGone"), Some(1.0), "{}", agent.state());
    assert_eq!(metrics.value("beelet_pod_listening_ports", &[("pod", &full("closes"))]), Some(0.0));
    assert_eq!(health(&metrics, "stays", "Healthy", ""), Some(1.0), "{}", agent.state());
    assert_eq!(agent.restarts("closes"), Some(0), "a verdict alone restarts nothing");
    agent.finish();
}
