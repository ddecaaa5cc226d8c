//! The agent in the VM: what it does and reports on pure cgroup v2, against the kernel's own files.
//!
//! Problem: the native bed may be a hybrid of v1 and v2; that beelet measures, evicts and resizes on v2 alone, and on other
//! kernels, must be seen there. Emulation is some twenty times slower, so nothing may depend on how fast something is.
//!
//! Approach: one agent, the checks one after the other, each with pods of its own; what is true is read in the guest, what is
//! said comes over the forwarded port. Deadlines are generous, rates a tenth of those of the native bed. CPU time is compared
//! while the container is frozen: neither the file nor the metric moves then, so no moment has to be met.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::node::{MANIFESTS, Node};
use super::sandwich::values_lie_between;
use super::{ladder, race};
use crate::images::{BUSYBOX, WORKLOAD};

/// The node's name, which follows the name of a pod of a manifest.
const NODE: &str = "beelet-vm";
/// For whatever takes seconds at most where nothing is emulated.
pub(super) const LIMIT: Duration = Duration::from_secs(180);
/// What only cgroup v2 has.
const V2: [&str; 9] = [
    "cgroup_unified",
    "cgroup_v2_controllers",
    "psi_per_cgroup",
    "cgroup_kill",
    "cgroup_freeze",
    "memory_high",
    "memory_reclaim",
    "memory_events",
    "cpu_burst",
];

/// A named check; what it gives is shown.
pub(super) type Check = (&'static str, fn(&Node) -> Result<String>);

/// The check that all others stand on.
pub(super) const START: &str = "vm_agent_starts";

/// In this order: later checks use pods of earlier ones, and the last two leave victims.
pub(super) const CHECKS: &[Check] = &[
    (START, start),
    ("vm_agent_loads_every_program_and_names_cgroup_v2", programs),
    ("vm_agent_cpu_time_is_that_of_cpu_stat", cpu_time),
    ("vm_agent_counts_a_transfer_at_both_ends", transfer),
    ("vm_agent_values_lie_between_two_readings_of_the_files", values_lie_between),
    ("vm_agent_lends_idle_cpu_and_changes_resources_in_place", resources),
    ("vm_agent_takes_burst_back_when_it_stops", burst_is_taken_back),
    ("vm_agent_killed_twice_disturbs_nothing", kills),
    ("vm_agent_raises_a_limit_while_there_is_room", |node| race::raised(node, "bounded", 5)?.checked()),
    ("vm_agent_slows_a_leak_down_and_its_guard_lets_go_of_it", ladder::throttle),
    ("vm_agent_evicts_a_leak_before_the_oom_killer", |node| race::evicted(node, "leak", 10)?.checked()),
    ("vm_agent_counts_an_oom_kill_once", oom_kill),
];

// === the node ===

pub(super) fn body(node: &Node, path: &str) -> Result<String> {
    let answer = node.get(path)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the header")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
    Ok(body.to_owned())
}

/// The pods by the names of their manifests.
fn pods(node: &Node) -> Result<BTreeMap<String, Value>> {
    let list: Value = serde_json::from_str(&body(node, "/pods")?)?;
    let named = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        (name.strip_suffix(NODE).unwrap_or(name).trim_end_matches('-').to_owned(), pod.clone())
    };
    Ok(list["items"].as_array().into_iter().flatten().map(named).collect())
}

pub(super) fn pod(node: &Node, name: &str) -> Result<Value> {
    pods(node)?.remove(name).with_context(|| format!("/pods has no {name}"))
}

/// A scrape.
pub(super) struct Metrics(String);

impl Metrics {
    pub(super) fn of(node: &Node) -> Result<Self> {
        Ok(Self(body(node, "/metrics")? + &body(node, "/metrics/cadvisor")?))
    }

    /// The values of the series of this name that have these labels among others.
    fn all(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let wanted: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
        let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        let lines = self.0.lines().filter(of_name);
        let lines = lines.filter(|line| {
            wanted.iter().all(|label| line.contains(&format!("{{{label}")) || line.contains(&format!(",{label}")))
        });
        // A moment may stand behind the value.
        let value = |line: &str| {
            line.rsplit_once('}').map_or(line, |(_, rest)| rest).split_whitespace().find_map(|w| w.parse().ok())
        };
        lines.filter_map(value).collect()
    }

    /// The only one.
    fn one(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        match self.all(name, labels)[..] {
            [value] => Ok(value),
            ref all => bail!("{} series {name} {labels:?} instead of one", all.len()),
        }
    }

    pub(super) fn sum(&self, name: &str) -> f64 {
        self.all(name, &[]).iter().sum()
    }
}

/// Asks until there is an answer; the error is the last one's, with what the agent has to say.
pub(super) fn wait<T>(node: &Node, what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                let log = node.log_tail(25).unwrap_or_default();
                return Err(error.context(format!("no {what} within {limit:?}; the agent's log ends:\n{log}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(300)),
        }
    }
}

/// A shell command in the guest; what it printed.
pub(super) fn sh(node: &Node, script: &str) -> Result<String> {
    let ended = node.vm.try_exec(&["sh", "-c", script], None, LIMIT)?;
    ensure!(ended.code == 0, "in the VM: `{script}` ended with {}\n{}{}", ended.code, ended.stdout, ended.stderr);
    Ok(ended.stdout)
}

/// A manifest of one container.
pub(super) fn manifest(name: &str, container: Value) -> Value {
    let mut container = container;
    container["name"] = json!("main");
    container["imagePullPolicy"] = json!("IfNotPresent");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "containers": [container], "terminationGracePeriodSeconds": 1 },
    })
}

/// A container that runs our workload.
pub(super) fn workload(args: &[&str]) -> Value {
    json!({ "image": WORKLOAD, "args": args })
}

/// Puts a manifest into the folder in one step.
pub(super) fn put(node: &Node, manifest: &Value) -> Result<()> {
    let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
    let script = format!("cat > {MANIFESTS}/.{name}.new && mv {MANIFESTS}/.{name}.new {MANIFESTS}/{name}.yaml");
    let text = std::io::Cursor::new(manifest.to_string());
    let ended = node.vm.try_exec(&["sh", "-c", &script], Some(Box::new(text)), LIMIT)?;
    ensure!(ended.code == 0, "cannot write the manifest of {name}: {}", ended.stderr);
    Ok(())
}

pub(super) fn remove(node: &Node, name: &str) -> Result<()> {
    sh(node, &format!("rm {MANIFESTS}/{name}.yaml")).map(drop)
}

/// A running pod: its address, and its container's cgroup in the guest.
pub(super) struct Running {
    ip: String,
    pub(super) group: String,
}

pub(super) fn running(node: &Node, name: &str) -> Result<Running> {
    wait(node, &format!("running pod {name}"), LIMIT, || {
        let pod = pod(node, name)?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(status["state"]["running"].is_object(), "{name}: {}", pod["status"]);
        let id = status["containerID"].as_str().and_then(|id| id.rsplit('/').next()).context("no container id")?;
        let group = sh(node, &format!("find /sys/fs/cgroup/kubepods -type d -name {id}"))?.trim().to_owned();
        ensure!(!group.is_empty() && group.lines().count() == 1, "the cgroup of {name}: `{group}`");
        Ok(Running { ip: pod["status"]["podIP"].as_str().unwrap_or_default().to_owned(), group })
    })
}

/// Full names of pods as labels have them.
pub(super) fn full(name: &str) -> String {
    format!("{name}-{NODE}")
}

// === the checks ===

/// All pods that the first checks need start at once, which is what takes most of the time.
fn start(node: &Node) -> Result<String> {
    // What the checks of containers left behind is nobody's.
    sh(node, "cd /sys/fs/cgroup; [ ! -d kubepods ] || find kubepods -depth -type d -exec rmdir '{}' ';'")?;
    put(node, &manifest("burner", workload(&["spin", "--cores", "0.5"])))?;
    put(node, &manifest("server", workload(&["serve", "--port", "8080"])))?;
    put(node, &manifest("bystander", workload(&["sleep"])))?;
    let started = Instant::now();
    node.start_agent()?;
    node.wait_healthy(LIMIT)?;
    let healthy = started.elapsed();
    for name in ["burner", "server", "bystander"] {
        running(node, name)?;
    }
    Ok(format!("answers after {healthy:.1?}, 3 pods run after {:.1?}", started.elapsed()))
}

fn programs(node: &Node) -> Result<String> {
    let metrics = Metrics::of(node)?;
    let mut verified = Vec::new();
    for line in metrics.0.lines().filter_map(|line| line.strip_prefix("beelet_bpf_program_loaded{program=\"")) {
        let program = line.split('"').next().unwrap_or_default();
        ensure!(line.ends_with(" 1"), "a program is not loaded: {line}");
        let instructions = metrics.one("beelet_bpf_program_instructions", &[("program", program)])?;
        verified.push(format!("{program} {instructions}"));
    }
    ensure!(!verified.is_empty(), "the agent tells of no program");
    for name in V2 {
        let there = metrics.all("beelet_capability", &[("name", name)]);
        ensure!(there == [1.0], "capability {name}: {there:?}");
    }
    Ok(format!("kernel {}: verified instructions: {}", node.vm.kernel(), verified.join(", ")))
}

/// CPU time of a frozen container, in seconds: by the kernel's file, by eBPF; and the guest's clock when it was frozen.
fn frozen(node: &Node, name: &str, group: &str) -> Result<(f64, f64, f64)> {
    let usage = |text: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec")?;
        Ok(line.trim().parse::<f64>()? / 1e6)
    };
    let freeze = format!(
        "cat /proc/uptime; echo 1 > {group}/cgroup.freeze; until grep -q 'frozen 1' {group}/cgroup.events; do sleep 0.1; done;
         cat {group}/cpu.stat"
    );
    let text = sh(node, &freeze)?;
    let clock: f64 = text.split(' ').next().unwrap_or_default().parse()?;
    let before = usage(&text)?;
    let full = full(name);
    let labels = [("pod", &*full), ("container", "main")];
    // The sample after the freeze is known by the agent's own reading of the file.
    wait(node, "sample of the frozen container", LIMIT, || {
        let seen = Metrics::of(node)?.one("container_cpu_usage_seconds_total", &labels)?;
        ensure!((seen - before).abs() < 2e-6, "the agent read {seen} s, the file says {before} s");
        Ok(())
    })?;
    // Counters are read before files: of that same sample they may be older than the freeze, of the next not.
    std::thread::sleep(Duration::from_secs(3));
    let ebpf = Metrics::of(node)?.one("beelet_cpu_ebpf_seconds_total", &labels)?;
    let after = usage(&sh(node, &format!("cat {group}/cpu.stat"))?)?;
    ensure!((after - before).abs() < 1e-9, "cpu.stat of a frozen cgroup went from {before} to {after}");
    Ok((after, ebpf, clock))
}

/// Must show 3 and 6: half a core for 20 s of the guest, within 2 % of cpu.stat.
fn cpu_time(node: &Node) -> Result<String> {
    let burner = running(node, "burner")?;
    let first = frozen(node, "burner", &burner.group)?;
    let thaw = format!("cut -d' ' -f1 /proc/uptime; echo 0 > {}/cgroup.freeze; sleep 20", burner.group);
    let thawed: f64 = sh(node, &thaw)?.trim().parse()?;
    let last = frozen(node, "burner", &burner.group)?;
    remove(node, "burner")?;
    sh(node, &format!("echo 0 > {}/cgroup.freeze", burner.group))?;
    let (window, file, ebpf) = (last.2 - thawed, last.0 - first.0, last.1 - first.1);
    let off = (ebpf / file - 1.0) * 100.0;
    let text = format!("over {window:.1} s: cpu.stat {file:.4} s, eBPF {ebpf:.4} s ({off:+.3} %)");
    ensure!(window >= 20.0 && file / window > 0.3, "not half a core for 20 s: {text}");
    ensure!(off.abs() <= 2.0, "more than 2 %: {text}");
    Ok(text)
}

/// Must show 3 and 6: bytes of a transfer at both ends, within 1 % of payload and headers.
///
/// 8 MiB, an eighth of what the native bed sends: emulated, the way through two sockets and a bridge takes seconds, and the
/// share of headers does not depend on the amount. Sockets see each buffer with 20 bytes of IPv4, 20 of TCP and 12 of the
/// timestamp option; how many buffers there were, the pod's device tells. What the server sent once more (emulated, acknowledgements
/// may come too late) went over the wire twice, in segments of 1448 bytes.
fn transfer(node: &Node) -> Result<String> {
    const PAYLOAD: f64 = 8_388_608.0;
    const HEADERS: f64 = 52.0;
    const SEGMENT: f64 = 1448.0;
    let server = running(node, "server")?;
    ensure!(!server.ip.is_empty() && server.ip != "10.0.2.15", "the server has no address of its own: {:?}", server.ip);
    wait(node, "listening server", LIMIT, || {
        let ports = Metrics::of(node)?.one("beelet_pod_listening_ports", &[("pod", &full("server"))])?;
        ensure!(ports >= 1.0, "the server listens on no port");
        Ok(())
    })?;
    let url = format!("http://{}:8080/bytes/{PAYLOAD}", server.ip);
    // It stays after the transfer, so that its counters do.
    put(node, &manifest("client", workload(&["fetch", "--url", &url, "--count", "1", "--interval", "3000s"])))?;
    let client = running(node, "client")?;
    let count = |name: &str, what: &str| {
        let labels = [("pod", &*full(name)), ("protocol", "tcp"), ("direction", what)];
        Metrics::of(node)?.one("beelet_network_bytes_total", &labels)
    };
    let mut before = (0.0, 0.0);
    let (received, sent) = wait(node, "end of the transfer", LIMIT, || {
        let now = (count("client", "receive")?, count("server", "transmit")?);
        let same = std::mem::replace(&mut before, now) == now;
        if now.0 < PAYLOAD || !same {
            // Details come every 10 s.
            std::thread::sleep(Duration::from_secs(12));
            bail!("{now:?} bytes so far");
        }
        Ok(now)
    })?;
    // Packets received and sent, of the device of the pod.
    let device = |group: &str| -> Result<(f64, f64)> {
        let text = sh(node, &format!("cat /proc/$(head -n 1 {group}/cgroup.procs)/net/dev"))?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:")).context("the pod has no eth0")?;
        let counts: Vec<f64> = line.split_whitespace().filter_map(|count| count.parse().ok()).collect();
        ensure!(counts.len() > 9, "unreadable counters: {line}");
        Ok((counts[1], counts[9]))
    };
    let (buffers_in, buffers_out) = (device(&client.group)?.0, device(&server.group)?.1);
    let snmp = sh(node, &format!("cat /proc/$(head -n 1 {}/cgroup.procs)/net/snmp", server.group))?;
    let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    let (names, counts) = (tcp.next().unwrap_or_default(), tcp.next().unwrap_or_default());
    let counted = names.split_whitespace().zip(counts.split_whitespace()).find(|(name, _)| *name == "RetransSegs");
    let again: f64 = counted.context("the server's RetransSegs is not told")?.1.parse()?;
    let payload = PAYLOAD + SEGMENT * again;
    let off = |bytes: f64, buffers: f64| (bytes / (payload + HEADERS * buffers) - 1.0) * 100.0;
    let offs = [off(received, buffers_in), off(sent, buffers_out)];
    let text = format!(
        "8 MiB: received {received} bytes in {buffers_in} buffers ({:+.4} % of payload and headers), sent {sent} in \
         {buffers_out} ({:+.4} %); {again} segments sent again",
        offs[0], offs[1]
    );
    ensure!(offs.iter().all(|off| off.abs() <= 1.0), "more than 1 %: {text}");
    remove(node, "client")?;
    Ok(text)
}

/// A pod that wants a core and may have less.
fn sized(request: &str, limit: &str, memory: &str) -> Value {
    let mut container = workload(&["spin", "--cores", "1"]);
    container["resources"] = json!({
        "requests": { "cpu": request, "memory": "16Mi" },
        "limits": { "cpu": limit, "memory": memory },
    });
    manifest("sized", container)
}

/// The files of a pod's cgroup and of its container's, by name.
fn knobs(node: &Node, group: &str) -> Result<[BTreeMap<String, String>; 2]> {
    let read = |group: &str| -> Result<BTreeMap<String, String>> {
        let text = sh(node, &format!("cd {group} && grep -H . cpu.max cpu.max.burst cpu.weight memory.max"))?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.map(|(file, value)| (file.to_owned(), value.to_owned())).collect())
    };
    let pod = group.rsplit_once('/').context("a container is in a pod")?.0;
    Ok([read(pod)?, read(group)?])
}

fn burst(node: &Node, group: &str) -> Result<[u64; 2]> {
    let [pod, container] = knobs(node, group)?.map(|files| files["cpu.max.burst"].parse::<u64>());
    Ok([pod?, container?])
}

fn wait_burst(node: &Node, group: &str) -> Result<[u64; 2]> {
    wait(node, "burst", LIMIT, || {
        let given = burst(node, group)?;
        let state = pod(node, "sized")?["status"]["containerStatuses"][0].to_string();
        ensure!(given[1] > 0, "cpu.max.burst is {given:?} (pod, container): {state}");
        Ok(given)
    })
}

fn resources(node: &Node) -> Result<String> {
    put(node, &sized("100m", "200m", "64Mi"))?;
    let before = running(node, "sized")?;
    let of = |files: &BTreeMap<String, String>| (files["cpu.max"].clone(), files["memory.max"].clone());
    let weight = |files: &BTreeMap<String, String>| files["cpu.weight"].parse::<u64>().unwrap_or(0);
    let first = knobs(node, &before.group)?;
    for files in &first {
        ensure!(of(files) == ("20000 100000".to_owned(), "67108864".to_owned()), "as it starts: {first:?}");
    }
    let given = wait_burst(node, &before.group)?;
    ensure!(given.iter().all(|&burst| burst <= 20_000), "more than the quota: {given:?}");

    put(node, &sized("300m", "400m", "96Mi"))?;
    let second = wait(node, "change in place", LIMIT, || {
        let now = knobs(node, &before.group)?;
        for (files, old) in now.iter().zip(&first) {
            let changed = of(files) == ("40000 100000".to_owned(), "100663296".to_owned());
            ensure!(changed && weight(files) > weight(old), "the cgroups' files: {now:?}");
        }
        Ok(now)
    })?;
    let after = running(node, "sized")?;
    let restarts = pod(node, "sized")?["status"]["containerStatuses"][0]["restartCount"].clone();
    ensure!(after.group == before.group && restarts == 0, "{} restarts, now {}", restarts, after.group);
    Ok(format!(
        "burst {given:?} us (pod, container); 200m, 64Mi -> 400m, 96Mi in place; cpu.weight {:?} -> {:?}",
        first.each_ref().map(weight),
        second.each_ref().map(weight)
    ))
}

fn burst_is_taken_back(node: &Node) -> Result<String> {
    let sized = running(node, "sized")?;
    let given = wait_burst(node, &sized.group)?;
    let started = Instant::now();
    sh(node, "kill -TERM $(pidof beelet)")?;
    node.wait_gone(LIMIT)?;
    let took = started.elapsed();
    let left = burst(node, &sized.group)?;
    node.start_agent()?;
    node.wait_healthy(LIMIT)?;
    ensure!(left == [0, 0], "burst was {given:?}, and is {left:?} after the agent's end");
    Ok(format!("{given:?} us, then {left:?} (pod, container); the agent ended within {took:.1?}"))
}

/// What runs: by containerd, container ids; by `/pods`, restart counts by container id.
pub(super) fn runs(node: &Node) -> Result<(BTreeSet<String>, BTreeMap<String, u64>)> {
    let text = sh(node, "ctr -n k8s.io tasks ls")?;
    let tasks = text.lines().filter(|line| line.contains("RUNNING")).filter_map(|line| line.split_whitespace().next());
    let mut counts = BTreeMap::new();
    for pod in pods(node)?.values() {
        for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
            let id = status["containerID"].as_str().unwrap_or_default().to_owned();
            counts.insert(id, status["restartCount"].as_u64().context("no restart count")?);
        }
    }
    Ok((tasks.map(ToOwned::to_owned).collect(), counts))
}

fn kills(node: &Node) -> Result<String> {
    const PODS: usize = 3;
    for name in ["server", "bystander", "sized"] {
        running(node, name)?;
    }
    // The client's end is under way.
    let before = wait(node, "three pods and no more", LIMIT, || {
        let now = runs(node)?;
        ensure!(now.0.len() == 2 * PODS && now.1.len() == PODS, "{now:?}");
        Ok(now)
    })?;
    for _ in 0..2 {
        sh(node, "kill -KILL $(pidof beelet)")?;
        node.wait_gone(LIMIT)?;
        node.start_agent()?;
        node.wait_healthy(LIMIT)?;
        wait(node, "adopted pods", LIMIT, || {
            let now = runs(node)?;
            ensure!(now == before, "before {before:?}, now {now:?}");
            Ok(())
        })?;
    }
    std::thread::sleep(Duration::from_secs(5));
    let now = runs(node)?;
    ensure!(now == before, "before {before:?}, a while after the second kill {now:?}");
    Ok(format!("{} containers and sandboxes the same, restart counts {:?}", before.0.len(), before.1.values()))
}

/// OOM kills in and below `kubepods`, by the kernel: processes, and whole containers.
pub(super) fn kernel_kills(node: &Node) -> Result<[u64; 2]> {
    let text = sh(node, "cat /sys/fs/cgroup/kubepods/memory.events")?;
    let counter = |key: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
        Ok(line.trim().parse()?)
    };
    Ok([counter("oom_kill ")?, counter("oom_group_kill ")?])
}

/// Must show 3 and 6: the first run of the container is killed within its limit, the second sleeps. With `memory.oom.group`
/// the kernel kills all three processes, which is one kill.
fn oom_kill(node: &Node) -> Result<String> {
    let script = "[ -e /once/done ] && exec sleep 100000; touch /once/done; sleep 8
                  sleep 100000 & dd if=/dev/zero of=/dev/null bs=200M count=1; sleep 100000";
    let mut container = json!({ "image": BUSYBOX, "command": ["sh", "-c", script] });
    container["resources"] = json!({ "limits": { "memory": "48Mi" } });
    container["volumeMounts"] = json!([{ "name": "once", "mountPath": "/once" }]);
    let mut victim = manifest("victim", container);
    victim["spec"]["volumes"] = json!([{ "name": "once", "emptyDir": {} }]);
    let kills = kernel_kills(node)?;
    put(node, &victim)?;
    let group = running(node, "victim")?.group;
    ensure!(sh(node, &format!("cat {group}/memory.oom.group"))?.trim() == "1", "memory.oom.group is not set");
    let restarted = wait(node, "restart after the kill", LIMIT, || {
        let status = pod(node, "victim")?["status"]["containerStatuses"][0].clone();
        ensure!(status["restartCount"] == 1 && status["state"]["running"].is_object(), "{status}");
        Ok(status)
    })?;
    let last = &restarted["lastState"]["terminated"];
    ensure!(last["reason"] == "OOMKilled" && last["exitCode"] == 137, "{restarted}");
    let victim = full("victim");
    let labels = [("namespace", "default"), ("pod", &*victim), ("container", "main")];
    // Several samples of its second run: the count neither grows nor goes.
    for _ in 0..5 {
        let metrics = Metrics::of(node)?;
        for name in ["beelet_oom_kills_total", "container_oom_events_total"] {
            let counted = metrics.all(name, &labels);
            ensure!(counted == [1.0], "{name} of the victim: {counted:?}");
        }
        let all = metrics.sum("beelet_oom_kills_total");
        ensure!(all == 1.0, "somebody else is counted, too: {all} in all");
        std::thread::sleep(Duration::from_secs(1));
    }
    let now = kernel_kills(node)?;
    let [processes, groups] = [now[0] - kills[0], now[1] - kills[1]];
    ensure!(groups == 1 && processes > 1, "the kernel counts {groups} group kills and {processes} processes");
    Ok(format!("1, also after the restart; the kernel: oom_group_kill {groups}, oom_kill {processes}; OOMKilled, 137"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_name_and_labels() {
        let metrics =
            Metrics("# HELP a b\na{x=\"1\",pod=\"p\"} 2\na{x=\"1\",other_pod=\"p\"} 3\na_total 4\n".to_owned());
        assert_eq!(metrics.one("a", &[("pod", "p"), ("x", "1")]).unwrap(), 2.0);
        assert_eq!((metrics.sum("a"), metrics.sum("a_total")), (5.0, 4.0));
        assert!(metrics.one("a", &[("x", "1")]).is_err());
    }
}
