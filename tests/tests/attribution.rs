//! Five known situations, and what beelet says is the cause; and an idle node, of which it says nothing.
//!
//! Each situation is made with the kernel's own means, judged by the agent from what it measures, and unmade before the next. The
//! one that suffers must be told the right cause first; nobody else may be told a wrong one. `cargo xtask bench attribution` does
//! it several times, with a long idle run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Bed, NODE, SharedBed, hierarchies, pod, say, secs, skip};
use serde_json::Value;

static BED: SharedBed = SharedBed::new("attribution");

/// A cause needs two windows of 5 s, and details come every 10 s; a busy machine takes its time.
const LIMIT: Duration = secs(120);

/// The verdicts on all pods: pod, cause, culprit; the first of a pod is the worst.
fn verdicts(agent: &Agent<'_>) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for pod in agent.snapshot()["pods"].as_array().into_iter().flatten() {
        let name = pod["spec"]["name"].as_str().unwrap_or_default();
        let name = name.strip_suffix(&format!("-{NODE}")).unwrap_or(name).to_owned();
        for slow in pod["slow"].as_array().into_iter().flatten() {
            let (cause, more) = match &slow["cause"] {
                Value::String(cause) => (cause.clone(), Value::Null),
                Value::Object(one) => one.iter().next().map(|(k, v)| (k.clone(), v.clone())).unwrap_or_default(),
                other => panic!("a cause of another shape: {other}"),
            };
            let culprit = more["pod"].as_str().or(more["device"].as_str()).unwrap_or_default().to_owned();
            all.push((name.clone(), cause, culprit));
        }
    }
    all
}

/// Waits until the worst that `pod` suffers from is `cause`; gives the culprit and the evidence.
fn wait_for(agent: &Agent<'_>, pod: &str, cause: &str) -> String {
    let began = Instant::now();
    let culprit = agent.wait(&format!("{pod} to be told {cause}"), LIMIT, |agent| {
        let all = verdicts(agent);
        let worst = all.iter().find(|(name, ..)| name == pod)?;
        (worst.1 == cause).then(|| worst.2.clone())
    });
    let explained = agent.explain("default", pod);
    let evidence = &explained["pod"]["slow"][0]["evidence"];
    say(&format!("attribution: {pod}: {cause} {culprit} after {:.0} s: {evidence}", began.elapsed().as_secs_f64()));
    let others: Vec<_> = verdicts(agent).into_iter().filter(|(name, told, _)| name != pod || told != cause).collect();
    if !others.is_empty() {
        say(&format!("attribution: beside it: {others:?}"));
    }
    culprit
}

/// Takes the pods away and waits until nothing is said any more.
fn clear(agent: &Agent<'_>, pods: &[&str]) {
    for pod in pods {
        fs::remove_file(agent.manifests.join(format!("{pod}.yaml"))).expect("a manifest to remove");
    }
    for pod in pods {
        // Both this test and the agent wait for the CPU behind what is to go.
        agent.wait_gone(pod, secs(300));
    }
    agent.wait("the verdicts to end", LIMIT, |agent| verdicts(agent).is_empty().then_some(()));
}

/// How many times the CPU time of a process outside the bed gets: what else runs on this machine must not make the situation. Not
/// more, for kernel threads wait as long for their turn, and disks and packets go through them.
const WEIGHT: u64 = 20;

/// And how many times that of a pod's the agent gets in the bed, as a node reserves CPU for its kubelet: with threads that never end
/// on every CPU it was seen to wait for seconds.
const AGENT_WEIGHT: u64 = 8;

/// Gives the bed a weight of its own among the machine's cgroups, and the agent one among the bed's.
fn weigh(bed: &Bed) {
    let root = bed.cgroup_root.trim_start_matches('/');
    for hierarchy in hierarchies() {
        for (file, normal) in [("cpu.shares", 1024), ("cpu.weight", 100)] {
            for (group, weight) in [("", WEIGHT), ("agent", AGENT_WEIGHT)] {
                let knob = hierarchy.mount.join(root).join(group).join(file);
                if knob.exists() {
                    let text = (normal * weight).to_string();
                    fs::write(&knob, text).unwrap_or_else(|e| panic!("{}: {e}", knob.display()));
                }
            }
        }
    }
}

// === the situations ===

fn own_quota(agent: &Agent<'_>) {
    pod("quota").workload(&["spin", "--cores", "1"]).limit("cpu", "200m").write(&agent.manifests);
    agent.wait_running("quota", secs(60));
    wait_for(agent, "quota", "OwnCpuLimit");
    clear(agent, &["quota"]);
}

fn noisy_neighbour(agent: &Agent<'_>) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    // Uses less than it asks for.
    pod("meek").workload(&["spin", "--cores", "0.4"]).request("cpu", "500m").write(&agent.manifests);
    agent.wait_running("meek", secs(60));
    // As heavy on each CPU, and with several threads there: it gets all that is left, and is in the way of whoever wakes up.
    let (all, asks) = ((cores * 4).to_string(), format!("{}m", cores * 500));
    pod("noisy").workload(&["spin", "--cores", &all]).request("cpu", &asks).write(&agent.manifests);
    agent.wait_running("noisy", secs(60));
    let culprit = wait_for(agent, "meek", "NoisyNeighbour");
    assert_eq!(culprit, format!("default/noisy-{NODE}"));
    clear(agent, &["meek", "noisy"]);
}

fn overloaded_node(agent: &Agent<'_>) {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let names: Vec<String> = (0..cores * 4).map(|n| format!("many-{n}")).collect();
    for name in &names {
        pod(name).workload(&["spin", "--cores", "1"]).request("cpu", "100m").write(&agent.manifests);
    }
    for name in &names {
        agent.wait_running(name, secs(90));
    }
    wait_for(agent, &names[0], "NodeOverload");
    let blamed: Vec<_> = verdicts(agent).into_iter().filter(|(_, cause, _)| cause == "NoisyNeighbour").collect();
    assert!(blamed.is_empty(), "nobody is worse than the others: {blamed:?}");
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    clear(agent, &names);
}

/// Files that limit requests to a disk, with what makes it slow (20 ms and more for each request of a pod that makes one at a
/// time), and with what ends that.
const THROTTLES: [(&str, &str, &str); 3] = [
    ("blkio.throttle.read_iops_device", "60", "0"),
    ("blkio.throttle.write_iops_device", "60", "0"),
    ("io.max", "riops=60 wiops=60", "riops=max wiops=max"),
];

/// A disk that answers slowly: a loop device on a file whose own disk is throttled for all pods of the bed.
///
/// The loop device's requests to the file count to the cgroup that made them. They are held back on their way to the disk below, so
/// the time is the loop device's; for the pod there is no limit on that.
struct SlowDisk {
    device: String,
    mount: PathBuf,
    kubepods: Vec<PathBuf>,
    backing: String,
}

fn ran(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

impl SlowDisk {
    fn make(bed: &Bed) -> Result<Self, String> {
        let image = bed.run_dir.join("slow-disk");
        let mount = bed.run_dir.join("slow-mount");
        fs::create_dir_all(&mount).map_err(|e| e.to_string())?;
        // Written in full, and left so: a hole that fills makes requests of the file system below, and they count.
        fs::write(&image, vec![0; 64 << 20]).map_err(|e| e.to_string())?;
        ran(Command::new("sync").arg(&image))?;
        ran(Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal", "-E", "nodiscard"]).arg(&image))?;
        let output = ran(Command::new("losetup").args(["--find", "--show", "--direct-io=on"]).arg(&image))?;
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let group = format!("{}/kubepods", bed.cgroup_root.trim_start_matches('/'));
        let mut kubepods: Vec<PathBuf> = hierarchies().into_iter().map(|h| h.mount.join(&group)).collect();
        kubepods.retain(|dir| THROTTLES.iter().any(|(knob, ..)| dir.join(knob).exists()));
        let disk = Self { device, mount, kubepods, backing: backing(&image)? };
        if disk.kubepods.is_empty() {
            return Err("there is no IO controller".to_owned());
        }
        ran(Command::new("mount").arg(&disk.device).arg(&disk.mount))?;
        Ok(disk)
    }

    /// Writes the limit, or takes it away, for all pods that there are.
    fn throttle(&self, on: bool) -> Result<(), String> {
        self.kubepods.iter().try_for_each(|dir| self.throttle_below(dir, on))
    }

    /// In v1 a limit holds for the processes of its own cgroup, not for those below.
    fn throttle_below(&self, dir: &Path, on: bool) -> Result<(), String> {
        for (knob, limit, none) in THROTTLES {
            let knob = dir.join(knob);
            if knob.exists() {
                let limit = if on { limit } else { none };
                let said = format!("{} {limit}", self.backing);
                fs::write(&knob, said).map_err(|e| format!("{}: {e}", knob.display()))?;
            }
        }
        let below = fs::read_dir(dir).map_err(|e| format!("{}: {e}", dir.display()))?.flatten();
        below.filter(|e| e.path().is_dir()).try_for_each(|e| self.throttle_below(&e.path(), on))
    }
}

impl Drop for SlowDisk {
    fn drop(&mut self) {
        self.throttle(false).ok();
        Command::new("umount").arg("--lazy").arg(&self.mount).output().ok();
        Command::new("losetup").arg("--detach").arg(&self.device).output().ok();
    }
}

/// The disk that a file lies on, as `MAJOR:MINOR` of the whole disk.
fn backing(file: &Path) -> Result<String, String> {
    let output = ran(Command::new("stat").args(["--format", "%Hd:%Ld"]).arg(file))?;
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let at = fs::canonicalize(format!("/sys/dev/block/{device}")).map_err(|e| format!("{device}: {e}"))?;
    let whole = if at.join("partition").exists() { at.parent().unwrap_or(&at).to_owned() } else { at };
    fs::read_to_string(whole.join("dev")).map(|text| text.trim().to_owned()).map_err(|e| e.to_string())
}

fn slow_disk(bed: &Bed, agent: &Agent<'_>) -> Result<(), String> {
    let disk = SlowDisk::make(bed)?;
    let mounts = serde_json::json!([{ "name": "disk", "mountPath": "/disk" }]);
    let volumes = serde_json::json!([{ "name": "disk", "hostPath": { "path": disk.mount, "type": "Directory" } }]);
    pod("writer")
        .workload(&["disk", "--dir", "/disk", "--pause", "1ms"])
        .field("volumeMounts", mounts)
        .spec("volumes", volumes)
        .write(&agent.manifests);
    agent.wait_running("writer", secs(60));
    disk.throttle(true)?;
    let culprit = wait_for(agent, "writer", "SlowDisk");
    assert_eq!(culprit, disk.device);
    disk.throttle(false)?;
    clear(agent, &["writer"]);
    Ok(())
}

/// One of ten packets that leave the server is dropped.
fn packet_loss(bed: &Bed, agent: &Agent<'_>) -> Result<(), String> {
    let nft = |script: &str| {
        let mut command = bed.inside("agent", Path::new("nft"));
        ran(command.arg(script))
    };
    nft("add table netdev loss")?;
    pod("server").workload(&["serve"]).write(&agent.manifests);
    let server = agent.wait_running("server", secs(60));
    let ip = server["status"]["podIP"].as_str().expect("an address").to_owned();
    // Every device that leads to a pod: what comes in there was sent by the pod.
    let links = ran(bed.inside("agent", Path::new("ip")).args(["-o", "link", "show", "type", "veth"]))?;
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    let devices: Vec<&str> = links.lines().filter_map(|l| l.split(": ").nth(1)?.split('@').next()).collect();
    for (n, device) in devices.iter().enumerate() {
        nft(&format!("add chain netdev loss c{n} {{ type filter hook ingress device \"{device}\" priority 0; }}"))?;
        nft(&format!("add rule netdev loss c{n} ip saddr {ip} numgen random mod 100 < 10 drop"))?;
    }
    let url = format!("http://{ip}:8080/bytes/200000");
    pod("client").workload(&["fetch", "--url", &url, "--interval", "50ms"]).write(&agent.manifests);
    agent.wait_running("client", secs(60));
    wait_for(agent, "server", "PacketLoss");
    nft("delete table netdev loss")?;
    clear(agent, &["server", "client"]);
    Ok(())
}

/// Pods that have next to nothing to do, for a while: no verdict, at no moment.
fn idle(agent: &Agent<'_>, time: Duration) {
    pod("idle-server").workload(&["serve"]).write(&agent.manifests);
    let server = agent.wait_running("idle-server", secs(60));
    let ip = server["status"]["podIP"].as_str().expect("an address").to_owned();
    let url = format!("http://{ip}:8080/");
    pod("idle-client").workload(&["fetch", "--url", &url, "--interval", "1s"]).write(&agent.manifests);
    pod("idle-sleeper").workload(&["sleep"]).write(&agent.manifests);
    agent.wait_running("idle-client", secs(60));
    let (began, mut looks) = (Instant::now(), 0);
    while began.elapsed() < time {
        let said = verdicts(agent);
        assert!(said.is_empty(), "an idle node, and yet: {said:?}\n{}", agent.state());
        looks += 1;
        std::thread::sleep(secs(1));
    }
    say(&format!("attribution: idle for {} s: no verdict in {looks} looks", time.as_secs()));
    clear(agent, &["idle-server", "idle-client", "idle-sleeper"]);
}

fn all(bed: &Bed, agent: &Agent<'_>, test: &str) {
    own_quota(agent);
    noisy_neighbour(agent);
    overloaded_node(agent);
    if let Err(reason) = slow_disk(bed, agent) {
        skip(&format!("{test}, slow disk"), &reason);
    }
    if let Err(reason) = packet_loss(bed, agent) {
        skip(&format!("{test}, packet loss"), &reason);
    }
}

#[test]
fn the_cause_of_slowness_is_found_and_nothing_is_said_of_an_idle_node() {
    let name = "the_cause_of_slowness_is_found_and_nothing_is_said_of_an_idle_node";
    let Some(bed) = BED.get(name) else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    weigh(&bed);
    idle(&agent, secs(20));
    all(&bed, &agent, name);
    agent.finish();
}

/// `cargo xtask bench attribution`.
#[test]
#[ignore = "a benchmark: cargo xtask bench attribution"]
fn bench() {
    let Some(bed) = BED.get("bench") else { return };
    let number = |name: &str, or: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(or);
    let agent = Agent::start(&bed, &AgentOptions::default());
    weigh(&bed);
    for run in 1..=number("BEELET_BENCH_RUNS", 3) {
        say(&format!("attribution: run {run}"));
        all(&bed, &agent, "bench");
    }
    idle(&agent, secs(60 * number("BEELET_BENCH_MINUTES", 10)));
    agent.finish();
}
