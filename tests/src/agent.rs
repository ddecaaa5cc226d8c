//! The agent under test, as a process of its own.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bed::{Bed, built};
use crate::stock::{self, ApiServer};
use crate::{Metrics, secs, wait_for};

/// The agent's plain HTTP port.
pub const PORT: u16 = 10255;
/// The node's name; the pod of manifest `web` is `web-node`.
pub const NODE: &str = "node";

/// How to run an agent.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Its folder of manifests; a new, empty one by default.
    pub manifests: Option<PathBuf>,
    /// Its root folder; the bed's by default.
    pub root_dir: Option<PathBuf>,
    /// Settings of the KubeletConfiguration, over those of the bed. A value that begins with a line break is a block; an empty
    /// one takes the setting away.
    pub config: Vec<(String, String)>,
    /// More YAML documents for the configuration file, such as an EnforcementPolicy.
    pub documents: Vec<String>,
    /// What the pods may use together, in MiB (2560 by default).
    pub kubepods_mib: Option<u64>,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
    /// This kubelet in its place; see [`AgentOptions::stock`].
    pub kubelet: Option<PathBuf>,
    /// Run beside a kubelet.
    pub beside: bool,
    /// A program that starts it, with its arguments, such as `setpriv`.
    pub wrapper: Vec<String>,
    /// Further arguments.
    pub args: Vec<String>,
    /// Return without waiting for `/healthz`.
    pub no_wait: bool,
}

impl AgentOptions {
    /// With one more setting.
    #[must_use]
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.config.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// An agent in a bed. Dropping it kills it; its pods stay, for the next agent or the bed's end.
#[derive(Debug)]
pub struct Agent<'a> {
    /// The bed.
    pub bed: &'a Bed,
    /// Its folder of manifests.
    pub manifests: PathBuf,
    /// Its log, all lives of it.
    pub log: PathBuf,
    options: AgentOptions,
    config: PathBuf,
    child: Option<Child>,
    /// Where a stock kubelet has its pods from.
    server: Option<ApiServer>,
}

impl<'a> Agent<'a> {
    /// Starts one, and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn start(bed: &'a Bed, options: &AgentOptions) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let manifests = options.manifests.clone().unwrap_or_else(|| bed.run_dir.join(format!("manifests-{number}")));
        fs::create_dir_all(&manifests).unwrap_or_else(|e| panic!("cannot make {}: {e}", manifests.display()));
        let config = bed.run_dir.join(format!("kubelet-{number}.yaml"));
        fs::write(&config, configuration(bed, options)).unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        let log = bed.log_dir.join(format!("agent-{number}.log"));
        File::create(&log).unwrap_or_else(|e| panic!("{}: {e}", log.display()));
        let server = options.kubelet.as_ref().map(|_| ApiServer::start(bed, &manifests));
        let mut agent = Self { bed, manifests, log, options: options.clone(), config, child: None, server };
        agent.restart();
        agent
    }

    /// Starts it again after its end, with the same files. It waits unless the options say otherwise.
    ///
    /// # Panics
    /// If it runs still, or does not answer.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the agent runs already");
        let file = OpenOptions::new().append(true).open(&self.log).expect("the agent's log");
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("the log again")).stderr(file);
        self.child = Some(command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}")));
        if !self.options.no_wait {
            self.wait_healthy(secs(60));
        }
    }

    fn command(&self) -> Command {
        if let (Some(kubelet), Some(server)) = (&self.options.kubelet, &self.server) {
            return stock::command(self.bed, kubelet, &self.config, self.root_dir(), server);
        }
        let agent = built("BEELET_AGENT", "debug/beelet");
        let mut command = match self.options.wrapper.split_first() {
            Some((wrapper, args)) => {
                let mut command = self.bed.inside("agent", Path::new(wrapper));
                command.args(args).arg(&agent);
                command
            }
            None => self.bed.inside("agent", &agent),
        };
        command.arg("run").arg("--config").arg(&self.config);
        if self.options.beside {
            command.arg("--beside-kubelet");
        } else {
            command.arg("--manifests").arg(&self.manifests);
        }
        command.arg("--root-dir").arg(self.root_dir());
        command.args(["--hostname-override", NODE, "--node-ip", &self.bed.node_ip]);
        command.env("BEELET_BPF_OBJECT", built("BEELET_BPF_OBJECT", "bpf/beelet-ebpf")).env_remove("LD_LIBRARY_PATH");
        command.args(&self.options.args).envs(self.options.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Whether it is a stock kubelet.
    #[must_use]
    pub fn is_stock(&self) -> bool {
        self.options.kubelet.is_some()
    }

    /// Its root folder.
    #[must_use]
    pub fn root_dir(&self) -> &Path {
        self.options.root_dir.as_deref().unwrap_or(&self.bed.root_dir)
    }

    /// Waits until it answers.
    ///
    /// # Panics
    /// If it does not, or ends.
    pub fn wait_healthy(&mut self, limit: Duration) {
        let started = Instant::now();
        while self.get("/healthz").is_err() {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                panic!("the agent ended at once ({status})\n{}", self.log_tail());
            }
            assert!(started.elapsed() < limit, "the agent does not answer\n{}", self.log_tail());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Its process.
    ///
    /// # Panics
    /// If it was ended.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let id = self.child.as_ref().expect("a running agent").id();
        i32::try_from(id).expect("a pid")
    }

    /// Whether it has not ended by itself.
    pub fn is_alive(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Panics
    /// If it does not end within 20 s.
    pub fn stop(&mut self) -> ExitStatus {
        let pid = Pid::from_raw(self.pid()).expect("a pid");
        let mut child = self.child.take().expect("a running agent");
        kill_process(pid, Signal::TERM).ok();
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().expect("its status") {
                return status;
            }
            if started.elapsed() > secs(20) {
                child.kill().ok();
                child.wait().ok();
                panic!("the agent does not end at SIGTERM\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes the manifests, and waits until there is no pod.
    ///
    /// # Panics
    /// If one stays.
    pub fn clear(&self) {
        for entry in fs::read_dir(&self.manifests).expect("the manifests").flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        self.wait("all pods to be gone", secs(90), |agent| agent.try_pods().ok()?.is_empty().then_some(()));
    }

    /// The orderly end of a test: removes the manifests, waits until nothing of the pods is left, stops the agent, and looks
    /// through its log.
    ///
    /// # Panics
    /// If something is left, the agent ends in error, or panicked on the way.
    pub fn finish(mut self) {
        if !self.options.beside {
            self.clear();
            self.wait("all to be gone without a trace", secs(90), |agent| {
                agent.bed.leftovers().is_empty().then_some(())
            });
        }
        let status = self.stop();
        assert!(status.success(), "the agent ended with {status}\n{}", self.log_tail());
        self.assert_calm();
    }

    /// Checks that nothing in it panicked, and no state machine made an illegal step.
    ///
    /// # Panics
    /// If so.
    pub fn assert_calm(&self) {
        let text = self.log_text();
        assert!(!text.contains("panicked"), "the agent panicked\n{}", self.log_tail());
    }

    /// All that it has logged.
    #[must_use]
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(40)..];
        format!("--- the agent's log, {}:\n{}", self.log.display(), tail.join("\n"))
    }

    /// Where it serves.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.bed.node_ip)
    }

    /// GET; the body of a 200.
    ///
    /// # Errors
    /// What went wrong instead, with the body of another answer.
    pub fn get(&self, path: &str) -> Result<String, String> {
        let address = self.address();
        // To 1.1 a kubelet answers in chunks.
        let version = if self.is_stock() { "1.0" } else { "1.1" };
        let answer = http_get(&address, path, version).map_err(|error| format!("{address}{path}: {error}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("no end of the header")?;
        if head.split(' ').nth(1) == Some("200") { Ok(body.to_owned()) } else { Err(format!("{head}\n\n{body}")) }
    }

    /// GET of JSON.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn json(&self, path: &str) -> Value {
        let body = self.get(path).unwrap_or_else(|error| panic!("{error}\n{}", self.log_tail()));
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path} is no JSON ({error}): {body}"))
    }

    /// `/pods`.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn pods(&self) -> Value {
        self.json("/pods")
    }

    /// The items of `/pods`.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn try_pods(&self) -> Result<Vec<Value>, String> {
        let list: Value = serde_json::from_str(&self.get("/pods")?).map_err(|error| error.to_string())?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The pod of a manifest, by the name in the manifest or its full name.
    #[must_use]
    pub fn pod(&self, name: &str) -> Option<Value> {
        let full = format!("{name}-{NODE}");
        let mut pods = self.try_pods().ok()?;
        let at = pods.iter().position(|pod| pod["metadata"]["name"] == *full || pod["metadata"]["name"] == *name)?;
        Some(pods.swap_remove(at))
    }

    /// The phase of a pod; "" where there is none.
    #[must_use]
    pub fn phase(&self, name: &str) -> String {
        self.pod(name).and_then(|pod| Some(pod["status"]["phase"].as_str()?.to_owned())).unwrap_or_default()
    }

    /// A container's status, of the first container where `container` is "".
    #[must_use]
    pub fn container(&self, pod: &str, container: &str) -> Option<Value> {
        let pod = self.pod(pod)?;
        let status = &pod["status"];
        let lists = [&status["containerStatuses"], &status["initContainerStatuses"]];
        let mut all = lists.into_iter().filter_map(Value::as_array).flatten();
        all.find(|status| container.is_empty() || status["name"] == container).cloned()
    }

    /// Restarts of a pod's first container.
    #[must_use]
    pub fn restarts(&self, pod: &str) -> Option<u64> {
        self.container(pod, "")?["restartCount"].as_u64()
    }

    /// `/metrics` and `/metrics/cadvisor`, which have no name in common.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let get = |path| self.get(path).unwrap_or_else(|error| panic!("{error}\n{}", self.log_tail()));
        let mut all = Metrics::parse(&get("/metrics"));
        all.samples.extend(Metrics::parse(&get("/metrics/cadvisor")).samples);
        all
    }

    /// `/debug/snapshot`.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn snapshot(&self) -> Value {
        self.json("/debug/snapshot")
    }

    /// `/debug/explain` of a pod.
    ///
    /// # Panics
    /// If there is no answer.
    #[must_use]
    pub fn explain(&self, namespace: &str, pod: &str) -> Value {
        self.json(&format!("/debug/explain/{namespace}/{pod}"))
    }

    /// Waits; when in vain, the panic shows the pods and the log.
    ///
    /// # Panics
    /// When in vain.
    pub fn wait<T>(&self, what: &str, limit: Duration, mut ask: impl FnMut(&Self) -> Option<T>) -> T {
        wait_for(what, limit, || ask(self), || self.state())
    }

    /// Waits until a pod has a phase; gives the pod.
    ///
    /// # Panics
    /// When in vain.
    pub fn wait_phase(&self, name: &str, phase: &str, limit: Duration) -> Value {
        self.wait(&format!("pod {name} to be {phase}"), limit, |agent| {
            agent.pod(name).filter(|pod| pod["status"]["phase"] == phase)
        })
    }

    /// Waits until a pod is Running with all containers running; gives the pod.
    ///
    /// # Panics
    /// When in vain.
    pub fn wait_running(&self, name: &str, limit: Duration) -> Value {
        self.wait(&format!("all containers of pod {name} to run"), limit, |agent| {
            agent.pod(name).filter(|pod| {
                let all = pod["status"]["containerStatuses"].as_array();
                pod["status"]["phase"] == "Running"
                    && all.is_some_and(|all| all.iter().all(|c| c["state"]["running"].is_object()))
            })
        })
    }

    /// Waits until a pod is not in `/pods`.
    ///
    /// # Panics
    /// When in vain.
    pub fn wait_gone(&self, name: &str, limit: Duration) {
        self.wait(&format!("pod {name} to be gone"), limit, |agent| {
            let pods = agent.try_pods().ok()?;
            let full = format!("{name}-{NODE}");
            (!pods.iter().any(|pod| pod["metadata"]["name"] == *full || pod["metadata"]["name"] == *name)).then_some(())
        });
    }

    /// For failures: the pods and the log's end.
    #[must_use]
    pub fn state(&self) -> String {
        let pods = match self.try_pods() {
            Ok(pods) => pods
                .iter()
                .map(|pod| format!("{}: {}", pod["metadata"]["name"], pod["status"]))
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => error,
        };
        let left = self.bed.leftovers().join("\n");
        format!("--- pods:\n{pods}\n--- in the bed:\n{left}\n{}", self.log_tail())
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A plain GET; the whole answer, head included.
fn http_get(address: &str, path: &str, version: &str) -> std::io::Result<String> {
    let to = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&to, secs(2))?;
    stream.set_read_timeout(Some(secs(10)))?;
    write!(stream, "GET {path} HTTP/{version}\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    String::from_utf8(answer).map_err(std::io::Error::other)
}

/// The configuration file: what the bed asks for, and over it what the test does.
#[must_use]
pub fn configuration(bed: &Bed, options: &AgentOptions) -> String {
    let total = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = total.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB"));
    let total: u64 = total.and_then(|kib| kib.trim().parse().ok()).unwrap_or(0);
    let mut settings: Vec<(String, String)> = [
        ("address", bed.node_ip.clone()),
        ("readOnlyPort", PORT.to_string()),
        ("containerRuntimeEndpoint", format!("unix://{}", bed.socket.display())),
        ("cgroupRoot", bed.cgroup_root.clone()),
        ("cgroupDriver", "cgroupfs".to_owned()),
        ("podLogsDir", bed.pod_logs_dir().display().to_string()),
        ("enforceNodeAllocatable", "[pods]".to_owned()),
        ("evictionHard", "\n  memory.available: 100Mi".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    // The rest of the machine belongs to others.
    let reserved = total.saturating_sub(options.kubepods_mib.unwrap_or(2560) * 1024);
    if reserved > 0 {
        settings.push(("systemReserved".to_owned(), format!("\n  memory: {reserved}Ki")));
    }
    if crate::hierarchies().iter().any(|h| !h.controllers.is_empty()) {
        settings.push(("failCgroupV1".to_owned(), "false".to_owned()));
    }
    for (key, value) in &options.config {
        settings.retain(|(name, _)| name != key);
        if !value.is_empty() {
            settings.push((key.clone(), value.clone()));
        }
    }
    let mut text = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n".to_owned();
    for (key, value) in &settings {
        let blank = if value.starts_with('\n') { "" } else { " " };
        text += &format!("{key}:{blank}{value}\n");
    }
    for document in &options.documents {
        text += &format!("---\n{}\n", document.trim());
    }
    text
}
