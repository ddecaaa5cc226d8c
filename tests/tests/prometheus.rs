//! A real Prometheus scrapes the agent, and every query that we ship finds something there.
//!
//! Problem: a dashboard whose metric was renamed shows "No data", and an alert on it never fires; nobody notices until it is
//! needed. Approach: Prometheus runs in the bed with our rules and scrapes each second, while pods do all that can be seen:
//! talk, burn, are throttled, crash, leak, are killed, are evicted, cannot be pulled, cannot be read. Then each panel's query,
//! each variable's, each rule's and each alert's (without its last comparison: most alerts are rightly silent) must find
//! series. There is no exception: whatever is shipped has data here.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use e2e::{Agent, AgentOptions, Bed, Metrics, PORT, SharedBed, WORKLOAD, hierarchies, pod, say, secs, write_file};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("prometheus");

/// Metrics that promtool's lint does not like, and that have their names from upstream.
const UPSTREAM_NAMES: [&str; 1] = ["kubelet_evictions"];

fn dashboards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../dashboards").canonicalize().expect("dashboards/")
}

/// The files with this ending in a folder, sorted.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    found.sort();
    found
}

/// A program that `cargo xtask test` names by a variable; `None`, with a line that says so, where it does not.
fn program(test: &str, variable: &str) -> Option<PathBuf> {
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        e2e::skip(test, &format!("{variable} is not set; `cargo xtask test` sets it"));
    }
    found
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Rules are well formed, and do what their tests say.
#[test]
fn promtool_accepts_the_rules() {
    let Some(promtool) = program("promtool_accepts_the_rules", "BEELET_PROMTOOL") else { return };
    for (what, dir) in [("check", dashboards()), ("test", dashboards().join("tests"))] {
        let rules = files(&dir, "yaml");
        assert!(!rules.is_empty(), "nothing in {}", dir.display());
        let output = run(Command::new(&promtool).args([what, "rules"]).args(&rules));
        assert!(output.status.success(), "promtool {what} rules:\n{}", said(&output));
    }
}

// === Prometheus ===

/// A Prometheus in the bed. It goes with the bed at the latest.
struct Prometheus {
    child: Child,
    address: String,
    log: PathBuf,
}

impl Prometheus {
    fn start(program: &Path, bed: &Bed) -> Self {
        let address = format!("{}:9090", bed.node_ip);
        let rules = files(&dashboards(), "yaml");
        let targets = json!([{ "targets": [format!("{}:{PORT}", bed.node_ip)] }]);
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": rules,
            "scrape_configs": [
                { "job_name": "beelet", "static_configs": targets },
                { "job_name": "beelet-cadvisor", "metrics_path": "/metrics/cadvisor", "static_configs": targets },
            ],
        });
        // JSON is YAML.
        let config = write_file(&bed.run_dir, "prometheus.yaml", &config.to_string());
        let log = bed.log_dir.join("prometheus.log");
        let file = std::fs::File::create(&log).expect("Prometheus's log");
        let mut command = bed.inside("prometheus", program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", bed.run_dir.join("prometheus").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("the log again")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let prometheus = Self { child, address, log };
        let started = Instant::now();
        while prometheus.get("/-/ready").is_err() {
            assert!(started.elapsed() < secs(60), "Prometheus does not get ready\n{}", prometheus.log_text());
            std::thread::sleep(Duration::from_millis(100));
        }
        prometheus
    }

    fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// GET; the body, whatever the status: Prometheus's errors are JSON too.
    fn get(&self, path: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(secs(20)))?;
        // HTTP/1.0: an answer in one piece.
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no header"))?;
        if path.starts_with("/-/") && !head.contains(" 200 ") {
            return Err(std::io::Error::other(head.to_owned()));
        }
        Ok(body.to_owned())
    }

    /// `data` of an answer.
    fn api(&self, path: &str) -> Result<Value, String> {
        let body = self.get(path).map_err(|error| error.to_string())?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" { Ok(answer["data"].take()) } else { Err(answer["error"].to_string()) }
    }

    /// How many series a query finds.
    fn count(&self, query: &str) -> Result<usize, String> {
        let mut encoded = String::new();
        for byte in query.bytes() {
            if byte.is_ascii_alphanumeric() {
                encoded.push(char::from(byte));
            } else {
                encoded += &format!("%{byte:02X}");
            }
        }
        let data = self.api(&format!("/api/v1/query?query={encoded}"))?;
        data["result"].as_array().map(Vec::len).ok_or_else(|| format!("no vector: {data}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

// === queries ===

/// A query that must find something.
#[derive(Debug)]
struct Query {
    /// Where it stands.
    place: String,
    text: String,
}

/// What Grafana puts in for variables.
fn filled(text: &str) -> String {
    let mut text = text.to_owned();
    for (variable, value) in [("$__rate_interval", "30s"), ("$instance", ".*"), ("$namespace", ".*"), ("$pod", ".*")] {
        text = text.replace(variable, value);
    }
    assert!(!text.contains('$'), "a variable that this test does not know: {text}");
    text
}

/// The queries of a dashboard: panels, rows of panels, annotations, variables.
fn of_dashboard(name: &str, dashboard: &Value) -> Vec<Query> {
    let mut found = Vec::new();
    let mut panels: Vec<&Value> = dashboard["panels"].as_array().into_iter().flatten().collect();
    while let Some(panel) = panels.pop() {
        panels.extend(panel["panels"].as_array().into_iter().flatten());
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = target["expr"].as_str().unwrap_or_else(|| panic!("a target without a query: {target}"));
            found.push(Query { place: format!("{name}: panel {}", panel["title"]), text: filled(text) });
        }
    }
    for note in dashboard["annotations"]["list"].as_array().into_iter().flatten() {
        if let Some(text) = note["expr"].as_str() {
            found.push(Query { place: format!("{name}: annotation {}", note["name"]), text: filled(text) });
        }
    }
    for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
        let Some(text) = variable["definition"].as_str() else { continue };
        let inner = text.strip_prefix("label_values(").and_then(|text| text.rsplit_once(','));
        let (selector, label) = inner.unwrap_or_else(|| panic!("a variable that this test cannot ask for: {text}"));
        let label = label.trim_end_matches(')').trim();
        let text = format!("count by ({label}) ({})", filled(selector));
        found.push(Query { place: format!("{name}: variable {}", variable["name"]), text });
    }
    found
}

/// An expression without comparisons with a number: what is left selects the series.
fn without_thresholds(query: &str) -> String {
    let mut words = query.split(' ').peekable();
    let mut kept: Vec<String> = Vec::new();
    while let Some(word) = words.next() {
        let number = words.peek().map_or("", |next| *next).trim_end_matches(')').to_owned();
        if ["==", "!=", ">", "<", ">=", "<="].contains(&word) && number.parse::<f64>().is_ok() {
            let closing = words.next().map_or(0, |next| next.len() - number.len());
            if let Some(last) = kept.last_mut() {
                *last += &")".repeat(closing);
            }
            continue;
        }
        kept.push(word.to_owned());
    }
    kept.join(" ")
}

#[test]
fn thresholds_are_left_out() {
    assert_eq!(without_thresholds("a == 0 and on (x) (b > 0.5)"), "a and on (x) (b)");
    assert_eq!(without_thresholds("sum by (x) (increase(a[1m])) > 0"), "sum by (x) (increase(a[1m]))");
    assert_eq!(without_thresholds("a > b"), "a > b");
}

/// All rules that Prometheus has loaded; for an alert its expression without thresholds, for a recording rule its series too.
fn of_rules(prometheus: &Prometheus) -> Vec<Query> {
    let data = prometheus.api("/api/v1/rules").expect("the rules");
    let groups = data["groups"].as_array().expect("groups");
    let mut found = Vec::new();
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        let (name, query) = (rule["name"].as_str().expect("a name"), rule["query"].as_str().expect("a query"));
        if rule["type"] == "recording" {
            found.push(Query { place: format!("rule {name}"), text: query.to_owned() });
            found.push(Query { place: format!("series of rule {name}"), text: name.to_owned() });
        } else {
            let text = without_thresholds(&query.split_whitespace().collect::<Vec<_>>().join(" "));
            found.push(Query { place: format!("alert {name}"), text });
        }
    }
    let written = |start: &str| {
        let texts =
            files(&dashboards(), "yaml").into_iter().map(|path| std::fs::read_to_string(path).unwrap_or_default());
        texts.map(|text| text.lines().filter(|line| line.trim().starts_with(start)).count()).sum::<usize>()
    };
    let (recorded, alerts) = (written("- record:"), written("- alert:"));
    assert!(recorded > 0 && alerts > 0, "no rules in {}", dashboards().display());
    assert_eq!(found.len(), 2 * recorded + alerts, "Prometheus has not loaded all rules");
    found
}

// === the pods ===

/// Pods that do all that can be seen.
fn start_pods(agent: &Agent<'_>) {
    let dir = &agent.manifests;
    pod("web").workload(&["serve", "--port", "8080"]).spec("hostNetwork", json!(true)).write(dir);
    let url = format!("http://{}:8080/bytes/1048576", agent.bed.node_ip);
    pod("client").workload(&["fetch", "--url", &url]).request("memory", "16Mi").limit("memory", "64Mi").write(dir);
    // What the kernel alone sees: names that are asked for, packets that are dropped, a disk, reclaim, preemptions.
    let scratch = |pod: e2e::Pod| {
        let volume = json!([{ "name": "scratch", "emptyDir": {} }]);
        pod.field("volumeMounts", json!([{ "name": "scratch", "mountPath": "/scratch" }])).spec("volumes", volume)
    };
    pod("names").workload(&["name-server"]).write(dir);
    pod("unread").workload(&["unread"]).write(dir);
    scratch(pod("disk").workload(&["disk", "--dir", "/scratch", "--pause", "5ms"])).write(dir);
    let files = ["files", "--dir", "/scratch", "--size", "100Gi"];
    scratch(pod("reclaim").workload(&files).limit("memory", "24Mi").limit("cpu", "300m")).write(dir);
    pod("mixed").workload(&["mixed"]).write(dir);
    pod("throttled").workload(&["spin", "--cores", "1.0"]).limit("cpu", "200m").write(dir);
    pod("crash").workload(&["crash", "--after", "1s", "--code", "3"]).write(dir);
    let leak = ["leak", "--rate", "100Mi", "--delay", "2s"];
    pod("killed").workload(&leak).limit("memory", "64Mi").write(dir);
    // Above its limit, which is raised for it and stays so.
    let above = ["leak", "--rate", "5Mi", "--limit", "100Mi", "--delay", "2s"];
    let asks = json!({ "beelet.dev/raise": "true" });
    pod("raised").workload(&above).limit("memory", "84Mi").meta("annotations", asks).write(dir);
    let ballast = pod("ballast").workload(&["step", "--size", "2000Mi"]).request("memory", "2100Mi");
    ballast.spec("priority", json!(1000)).write(dir);
    pod("evicted").workload(&["leak", "--rate", "100Mi", "--delay", "3s"]).write(dir);
    pod("unpulled").container("main", &WORKLOAD.replace("workload", "nowhere"), &[], &[]).write(dir);
    write_file(dir, "unread.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: unread}\nspec: {containrs: []}\n");
}

/// Item 13: a real Prometheus, and every panel's and rule's query returns data.
#[test]
fn every_query_that_is_shipped_finds_data() {
    const NAME: &str = "every_query_that_is_shipped_finds_data";
    let Some(program) = program(NAME, "BEELET_PROMETHEUS") else { return };
    let Some(bed) = BED.get(NAME) else { return };
    let agent = Agent::start(&bed, &AgentOptions::default());
    let prometheus = Prometheus::start(&program, &bed);
    start_pods(&agent);
    let names = agent.wait_running("names", secs(60));
    let server = format!("{}:53", names["status"]["podIP"].as_str().expect("an address"));
    pod("resolver").workload(&["resolve", "--server", &server]).write(&agent.manifests);
    agent.wait("the eviction", secs(90), |agent| {
        agent.pod("evicted").filter(|pod| pod["status"]["reason"] == "Evicted")
    });
    agent.wait("the OOM kill", secs(60), |agent| {
        agent.metrics().sum("beelet_oom_kills_total", &[]).filter(|&n| n > 0.0)
    });

    let mut queries = of_rules(&prometheus);
    let boards = files(&dashboards(), "json");
    assert!(!boards.is_empty(), "no dashboard");
    for path in &boards {
        let text = std::fs::read_to_string(path).expect("a dashboard");
        let board = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        queries.extend(of_dashboard(&name, &board));
    }
    let deadline = Instant::now() + secs(90);
    let counts = loop {
        let counts: Vec<Result<usize, String>> = queries.iter().map(|query| prometheus.count(&query.text)).collect();
        if counts.iter().all(|count| count.as_ref().is_ok_and(|&n| n > 0)) || Instant::now() > deadline {
            break counts;
        }
        std::thread::sleep(secs(2));
    };
    let shown = |(query, count): (&Query, &Result<usize, String>)| match count {
        Ok(n) => format!("{n:4} {}", query.place),
        Err(error) => format!("{error} {}: {}", query.place, query.text),
    };
    let lines: Vec<String> = queries.iter().zip(&counts).map(shown).collect();
    say(&format!("prometheus: series found by each of {} queries\n{}", lines.len(), lines.join("\n")));
    let empty: Vec<&Query> =
        queries.iter().zip(&counts).filter(|(_, count)| !matches!(count, Ok(n) if *n > 0)).map(|(q, _)| q).collect();
    assert!(empty.is_empty(), "these find nothing: {empty:#?}\n{}\n{}", agent.state(), prometheus.log_text());

    // What happened on this node is told by those whose business it is, and what has no waiting time tells it at once.
    let states = agent.wait("the alerts to fire", secs(30), |_| {
        let states = alerts(&prometheus);
        ["PodOOMKilled", "BeeletEvicted"].iter().all(|name| states[*name] == "firing").then_some(states)
    });
    for name in ["BeeletDown", "BeeletStuck", "BeeletRuntimeDown", "BeeletProgramNotLoaded"] {
        assert_eq!(states[name], "inactive", "{name}");
    }
    lint(&agent);
    everything_documented_is_set(&agent);
    agent.finish();
}

fn is_hybrid() -> bool {
    hierarchies().iter().any(|h| !h.controllers.is_empty())
}

/// Metrics that nothing on this node sets.
fn not_here() -> Vec<&'static str> {
    // The bed's containerd has all calls.
    let mut names = vec!["beelet_runtime_rpc_missing"];
    if is_hybrid() {
        // In v1 memory.stat has no pgscan and pgsteal.
        names.push("beelet_memory_reclaim_pages_total");
    }
    names
}

/// Each metric of the documentation has a sample on a node where everything happens; so has each family of the stock kubelet's that
/// is not named as left out.
fn everything_documented_is_set(agent: &Agent<'_>) {
    let read = |path: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let documented: Vec<String> = read("docs/metrics.md").lines().filter_map(documented_name).collect();
    assert!(documented.len() > 100, "docs/metrics.md has another form: {documented:?}");
    let is_set = |metrics: &Metrics, name: &str| {
        let bucket = format!("{name}_bucket");
        metrics.samples.iter().any(|sample| sample.name == name || sample.name == bucket)
    };
    let not_here = not_here();
    // Some come with the next details, or the next walk over files.
    let deadline = Instant::now() + secs(60);
    loop {
        let metrics = agent.metrics();
        let unset: Vec<&String> =
            documented.iter().filter(|name| !is_set(&metrics, name) && !not_here.contains(&name.as_str())).collect();
        let stale: Vec<&&str> = not_here.iter().filter(|name| is_set(&metrics, name)).collect();
        if unset.is_empty() && stale.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "nothing sets {unset:#?}; set all the same: {stale:?}");
        std::thread::sleep(secs(1));
    }

    let served = agent.get("/metrics/cadvisor").unwrap_or_else(|e| panic!("/metrics/cadvisor: {e:?}"));
    let left_out = read("docs/compatibility-metrics.md");
    let left_out = left_out.split("## /metrics/cadvisor: not served").nth(1).expect("the section");
    let left_out = left_out.split("\n## ").next().unwrap_or_default();
    let layout = if is_hybrid() { "v1" } else { "v2" };
    let recorded = read(&format!("tests/fixtures/stock-kubelet/{layout}/metrics-cadvisor.txt"));
    let families = |text: &str| -> Vec<String> {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
        types.map(ToOwned::to_owned).collect()
    };
    let ours = families(&served);
    let missing: Vec<String> = families(&recorded)
        .into_iter()
        .filter(|name| !ours.contains(name) && !left_out.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "/metrics/cadvisor lacks {missing:?}");
}

/// The metric that a line of docs/metrics.md is about.
fn documented_name(line: &str) -> Option<String> {
    let name = line.strip_prefix("| `")?.split('`').next()?;
    let is_metric = ["beelet_", "kubelet_", "process_"].iter().any(|start| name.starts_with(start));
    is_metric.then(|| name.to_owned())
}

/// The states of all alerts. No rule may have failed.
fn alerts(prometheus: &Prometheus) -> BTreeMap<String, String> {
    let data = prometheus.api("/api/v1/rules").expect("the rules");
    let groups = data["groups"].as_array().into_iter().flatten();
    let mut states = BTreeMap::new();
    for rule in groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        assert_eq!(rule["health"], "ok", "{rule}");
        if rule["type"] == "alerting" {
            let text = |key: &str| rule[key].as_str().unwrap_or_default().to_owned();
            states.insert(text("name"), text("state"));
        }
    }
    states
}

/// What the agent serves is what Prometheus's own lint wants.
fn lint(agent: &Agent<'_>) {
    let Some(promtool) = program("promtool check metrics", "BEELET_PROMTOOL") else { return };
    let text = said(&check(agent, &promtool, "/metrics"));
    let is_ours = |line: &&str| !line.trim().is_empty() && !UPSTREAM_NAMES.iter().any(|name| line.starts_with(name));
    let complaints: Vec<&str> = text.lines().filter(is_ours).collect();
    assert!(complaints.is_empty(), "promtool check metrics:\n{}", complaints.join("\n"));
    // Of what has upstream's names throughout, only what cannot be read counts; 3 is for names that the lint does not like.
    for path in ["/metrics/cadvisor", "/metrics/resource"] {
        let output = check(agent, &promtool, path);
        assert!(matches!(output.status.code(), Some(0 | 3)), "promtool check metrics of {path}:\n{}", said(&output));
    }
}

/// `promtool check metrics` of what the agent answers there.
fn check(agent: &Agent<'_>, promtool: &Path, path: &str) -> Output {
    let text = agent.get(path).unwrap_or_else(|e| panic!("{path}: {e:?}"));
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool");
    let mut stdin = child.stdin.take().expect("its input");
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("promtool's end");
    writer.join().expect("the writer").expect("all written");
    output
}
