//! Compares what a running agent says with the kernel's own files, for every pod on the node: file <= measured <= file.
//!
//! Problem: a test of a few numbers on a quiet node misses what is wrong under load, by a unit, or in one of a hundred fields.
//! Approach: for each pod and container all files are read, then the agent's picture is awaited until all of its readings are
//! younger than that, then the files are read again. A counter must lie between the two. A gauge may go up and come back in
//! between, so gauges are compared in one more round in which all pods are frozen: then nothing of theirs moves.
//! The parser here is written apart from the agent's, naively.
//!
//!     cargo run -p beelet --example sandwich_probe -- ADDRESS [ROUNDS]
//!
//! Exit code 0: every field was between its two readings at least once and never outside. 1: some were not, named with numbers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use beelet::kernel::cgroup::CgroupLayout;
use beelet::report::explain::Explanation;
use beelet_core::sample::{CgroupReading, Pressure};
use beelet_core::snapshot::{PodView, Snapshot};
use beelet_core::telemetry::{CgroupDetail, PodDetail};
use beelet_core::units::{Bytes, Micros};

/// Time for the agent to read everything anew; it promises 10 s.
const PATIENCE: Duration = Duration::from_secs(60);

/// By field: the value.
type Values = BTreeMap<String, u64>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(address) = arguments.first() else {
        eprintln!("usage: sandwich_probe ADDRESS [ROUNDS]");
        return ExitCode::from(2);
    };
    let rounds = arguments.get(1).and_then(|n| n.parse().ok()).unwrap_or(3);
    match run(address, rounds) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sandwich_probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Pods that stand still as long as this lives.
struct Freeze(Vec<PathBuf>);

impl Freeze {
    fn all(pods: &[std::sync::Arc<PodView>], layout: &CgroupLayout) -> Result<Self> {
        let running = pods.iter().filter(|p| p.reading.is_some());
        let freeze = Self(running.map(|p| layout.unified().join(&p.cgroup)).collect());
        for directory in &freeze.0 {
            fs::write(directory.join("cgroup.freeze"), "1").with_context(|| directory.display().to_string())?;
        }
        let deadline = Instant::now() + PATIENCE;
        for directory in &freeze.0 {
            while !text(&directory.join("cgroup.events")).contains("frozen 1") {
                ensure!(Instant::now() < deadline, "{} does not freeze", directory.display());
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(freeze)
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        for directory in &self.0 {
            // A pod that has gone meanwhile needs no thaw.
            let _ = fs::write(directory.join("cgroup.freeze"), "0");
        }
    }
}

/// How often a field was compared, and how.
#[derive(Default)]
struct Tally {
    between: u64,
    /// Of gauges that moved: nothing can be said.
    moved: u64,
    /// Values above 0 that were between.
    telling: u64,
    outside: Vec<String>,
}

fn run(address: &str, rounds: u32) -> Result<bool> {
    let layout = CgroupLayout::detect()?;
    let mut tallies: BTreeMap<String, Tally> = BTreeMap::new();
    let mut subjects = 0;
    for round in 0..=rounds {
        let pods = picture(address)?.pods;
        // The last round; dropping it lets the pods go on.
        let frozen = if round == rounds { Some(Freeze::all(&pods, &layout)?) } else { None };
        let before: Vec<(Subject, Values)> = subjects_of(&pods, &layout).collect();
        let began = now();
        let (pods, details) = fresh(address, began)?;
        for (subject, before) in before {
            let after = subject.read(&layout);
            let Some(said) = subject.said(&pods, &details, began) else { continue };
            subjects += 1;
            for (field, value) in said {
                if frozen.is_some() || !field.starts_with("gauge ") {
                    compare(&mut tallies, &subject.name, &field, value, &before, &after);
                }
            }
        }
    }
    ensure!(subjects > 0, "nothing to compare: no pod has a reading");
    let mut good = true;
    println!("{subjects} comparisons of pods and containers in {rounds} rounds and one frozen, {}", kind(&layout));
    println!("{:<44} {:>8} {:>8} {:>8} {:>8}", "field", "between", "above 0", "moved", "outside");
    for (field, tally) in &tallies {
        println!("{field:<44} {:>8} {:>8} {:>8} {:>8}", tally.between, tally.telling, tally.moved, tally.outside.len());
        for text in tally.outside.iter().take(3) {
            println!("    {text}");
        }
        good &= tally.outside.is_empty() && tally.between > 0;
        if tally.between == 0 {
            println!("    never compared: it moved between all readings");
        }
    }
    Ok(good)
}

const fn kind(layout: &CgroupLayout) -> &'static str {
    if layout.is_hybrid() { "hybrid cgroups" } else { "cgroup v2" }
}

fn compare(tallies: &mut BTreeMap<String, Tally>, who: &str, field: &str, value: u64, before: &Values, after: &Values) {
    // A file that was not there at one of the two moments: the cgroup came or went.
    let (Some(&low), Some(&high)) = (before.get(field), after.get(field)) else { return };
    let tally = tallies.entry(field.to_owned()).or_default();
    let gauge = field.starts_with("gauge ");
    if gauge && low != high {
        tally.moved += 1;
        return;
    }
    if (low..=high).contains(&value) {
        tally.between += 1;
        tally.telling += u64::from(value > 0);
    } else {
        tally.outside.push(format!("{who}: {low} <= {value} <= {high} does not hold"));
    }
}

fn now() -> Micros {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Micros(u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000)
}

// === what the agent says ===

fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("no agent at {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its header")?;
    ensure!(head.contains(" 200 "), "{path}: {}", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}

fn picture(address: &str) -> Result<Snapshot> {
    Ok(serde_json::from_str(&get(address, "/debug/snapshot")?)?)
}

type Details = BTreeMap<String, Explanation>;

/// A picture in which every reading and every detail of a running pod is younger than `began`.
fn fresh(address: &str, began: Micros) -> Result<(Vec<std::sync::Arc<PodView>>, Details)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let pods = picture(address)?.pods;
        let running = |p: &&std::sync::Arc<PodView>| p.reading.is_some();
        let stale: Vec<String> = pods
            .iter()
            .filter(running)
            .flat_map(|p| p.reading.iter().chain(p.containers.iter().filter_map(|c| c.reading.as_ref())))
            .filter(|r| r.at <= began)
            .map(|r| format!("cgroup {}", r.id))
            .collect();
        if stale.is_empty() {
            let mut details = Details::new();
            for pod in pods.iter().filter(running) {
                let path = format!("/debug/explain/{}/{}", pod.spec.namespace, pod.spec.name);
                details.insert(pod.spec.uid.as_str().to_owned(), serde_json::from_str(&get(address, &path)?)?);
            }
            // The network is visited at moments of its own.
            let visited = |d: &Explanation| d.details.pod.as_ref().and_then(|pod| pod.network_at);
            let old = |d: &Explanation| {
                d.details.cgroup.as_ref().is_none_or(|c| c.at <= began) || visited(d).is_some_and(|at| at <= began)
            };
            let waiting: Vec<&String> = details.iter().filter(|(_, d)| old(d)).map(|(uid, _)| uid).collect();
            if waiting.is_empty() {
                return Ok((pods, details));
            }
            if Instant::now() > deadline {
                bail!("{} pods have no details younger than {PATIENCE:?}: {waiting:?}", waiting.len());
            }
        } else if Instant::now() > deadline {
            bail!("{} readings are older than {PATIENCE:?}: {stale:?}", stale.len());
        }
    }
}

/// A pod's cgroup, or a container's.
struct Subject {
    name: String,
    uid: String,
    /// "" for the whole pod.
    container: String,
    id: String,
    cgroup: PathBuf,
}

fn subjects_of<'a>(
    pods: &'a [std::sync::Arc<PodView>],
    layout: &'a CgroupLayout,
) -> impl Iterator<Item = (Subject, Values)> + 'a {
    let of = |pod: &std::sync::Arc<PodView>| {
        let uid = pod.spec.uid.as_str().to_owned();
        let whole = Subject {
            name: pod.spec.full_name(),
            uid: uid.clone(),
            container: String::new(),
            id: String::new(),
            cgroup: PathBuf::from(&pod.cgroup),
        };
        let containers = pod.containers.iter().filter(|c| c.reading.is_some()).map(|c| Subject {
            name: format!("{}/{}", pod.spec.full_name(), c.name),
            uid: uid.clone(),
            container: c.name.clone(),
            id: c.id.clone(),
            cgroup: Path::new(&pod.cgroup).join(&c.id),
        });
        std::iter::once(whole).chain(containers).collect::<Vec<_>>()
    };
    pods.iter().filter(|p| p.reading.is_some()).flat_map(of).map(|subject| {
        let values = subject.read(layout);
        (subject, values)
    })
}

impl Subject {
    /// What the agent says of it; `None` if it is gone or another run. Details of a container that sleeps may be older than `began`, as
    /// their moment says, while what it wrote before still goes to the disk: these are left out.
    fn said(&self, pods: &[std::sync::Arc<PodView>], details: &Details, began: Micros) -> Option<Values> {
        let pod = pods.iter().find(|p| p.spec.uid.as_str() == self.uid)?;
        let mut values = Values::new();
        let details = &details.get(&self.uid)?.details;
        if self.container.is_empty() {
            said_of_cgroup(&mut values, pod.reading.as_ref()?);
            said_of_detail(&mut values, details.cgroup.as_ref()?);
            if let Some(detail) = &details.pod {
                said_of_network(&mut values, detail);
            }
        } else {
            let container = pod.containers.iter().find(|c| c.name == self.container && c.id == self.id)?;
            // Some files are read with the details only, such as memory.peak.
            let detail = details.containers.get(&self.container).filter(|detail| detail.at > began)?;
            said_of_cgroup(&mut values, container.reading.as_ref()?);
            said_of_detail(&mut values, detail);
        }
        Some(values)
    }
}

fn said_of_cgroup(values: &mut Values, reading: &CgroupReading) {
    let mut put = |name: &str, value: Option<u64>| {
        if let Some(value) = value {
            values.insert(name.to_owned(), value);
        }
    };
    let us = |time: Option<Micros>| time.map(Micros::get);
    let size = |bytes: Option<Bytes>| bytes.map(Bytes::get);
    if let Some(cpu) = reading.cpu {
        put("cpu usage us", us(cpu.usage));
        put("cpu user us", us(cpu.user));
        put("cpu system us", us(cpu.system));
        put("cpu periods", cpu.periods);
        put("cpu throttled periods", cpu.throttled_periods);
        put("cpu throttled us", us(cpu.throttled));
    }
    if let Some(memory) = reading.memory {
        let more = memory.more;
        for (name, value) in [
            ("gauge memory usage", Some(memory.usage)),
            ("gauge memory anon", Some(memory.anon)),
            ("gauge memory inactive_file", Some(memory.inactive_file)),
            ("gauge memory active_file", Some(memory.active_file)),
            ("gauge memory shmem", Some(memory.shmem)),
            ("gauge memory limit", memory.limit),
            ("gauge memory file", more.file),
            ("gauge memory mapped_file", more.mapped_file),
            ("gauge memory dirty", more.dirty),
            ("gauge memory writeback", more.writeback),
            ("gauge memory unevictable", more.unevictable),
            ("gauge memory kernel", more.kernel),
            ("gauge memory kernel_stack", more.kernel_stack),
            ("gauge memory page_tables", more.page_tables),
            ("gauge memory percpu", more.percpu),
            ("gauge memory sock", more.sock),
            ("gauge memory slab_unreclaimable", more.slab_unreclaimable),
            ("gauge memory swap", more.swap),
        ] {
            put(name, size(value));
        }
        put("memory peak", size(more.peak));
        for (name, value) in [
            ("memory page faults", more.page_faults),
            ("memory major faults", more.major_faults),
            ("memory refaults file", more.refaults_file),
            ("memory refaults anon", more.refaults_anon),
            ("memory scanned", more.scanned),
            ("memory stolen", more.stolen),
            ("memory high events", more.high_events),
            ("memory max events", more.max_events),
        ] {
            put(name, value);
        }
    }
    if let Some(pressure) = reading.pressure {
        for (name, Pressure { some, full }) in [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)]
        {
            put(&format!("pressure {name} some us"), Some(some.total.get()));
            put(&format!("pressure {name} full us"), Some(full.total.get()));
        }
    }
    put("gauge pids", reading.pids);
}

fn said_of_detail(values: &mut Values, detail: &CgroupDetail) {
    for io in &detail.io {
        let device = format!("{}:{}", io.device.major, io.device.minor);
        for (what, value) in
            [("rbytes", io.read_bytes), ("wbytes", io.write_bytes), ("rios", io.reads), ("wios", io.writes)]
        {
            *values.entry(format!("io {device} {what}")).or_default() += value;
        }
    }
}

fn said_of_network(values: &mut Values, detail: &PodDetail) {
    for it in &detail.interfaces {
        for (what, value) in [
            ("rx_bytes", it.traffic.rx_bytes),
            ("rx_packets", it.traffic.rx_packets),
            ("rx_errors", it.rx_errors),
            ("rx_dropped", it.rx_dropped),
            ("tx_bytes", it.traffic.tx_bytes),
            ("tx_packets", it.traffic.tx_packets),
            ("tx_errors", it.tx_errors),
            ("tx_dropped", it.tx_dropped),
        ] {
            values.insert(format!("net {} {what}", it.name), value);
        }
    }
    if let Some(stack) = &detail.stack {
        for (name, value) in [
            ("TcpExt ListenOverflows", stack.listen_overflows),
            ("TcpExt ListenDrops", stack.listen_drops),
            ("TcpExt TCPTimeouts", stack.timeouts),
            ("Tcp OutSegs", stack.segments_sent),
            ("Tcp RetransSegs", stack.retransmits),
            ("Tcp AttemptFails", stack.connect_failures),
            ("Udp NoPorts", stack.udp_no_port),
        ] {
            values.insert(format!("stack {name}"), value);
        }
    }
}

// === what the files say ===

impl Subject {
    fn read(&self, layout: &CgroupLayout) -> Values {
        let mut values = Values::new();
        let unified = layout.unified().join(&self.cgroup);
        if layout.is_hybrid() {
            let at = |controller: &str| layout.directory(controller, &self.cgroup).unwrap_or_default();
            read_v1(&mut values, &at, &unified);
        } else {
            read_v2(&mut values, &unified);
        }
        for name in ["cpu", "memory", "io"] {
            for line in text(&unified.join(format!("{name}.pressure"))).lines() {
                let total = line.rsplit_once("total=").and_then(|(_, n)| n.trim().parse().ok());
                if let (Some(kind), Some(total)) = (line.split(' ').next(), total) {
                    values.insert(format!("pressure {name} {kind} us"), total);
                }
            }
        }
        if self.container.is_empty()
            && let Some(pid) = any_process(&unified)
        {
            read_network(&mut values, pid);
        }
        values
    }
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &Path) -> Option<u64> {
    text(path).trim().parse().ok()
}

/// Lines `key value` of a file.
fn keyed(path: &Path) -> BTreeMap<String, u64> {
    let of = |line: &str| line.split_once(' ').and_then(|(k, v)| Some((k.to_owned(), v.trim().parse().ok()?)));
    text(path).lines().filter_map(of).collect()
}

fn copy(values: &mut Values, from: &BTreeMap<String, u64>, names: &[(&str, &str)], scale: u64) {
    for (key, name) in names {
        if let Some(value) = from.get(*key) {
            values.insert((*name).to_owned(), value / scale);
        }
    }
}

fn limit(values: &mut Values, path: &Path) {
    // Larger than any machine is no limit.
    if let Some(value) = number(path).filter(|v| *v < 1 << 62) {
        values.insert("gauge memory limit".into(), value);
    }
}

fn read_v2(values: &mut Values, at: &Path) {
    let cpu = keyed(&at.join("cpu.stat"));
    copy(
        values,
        &cpu,
        &[
            ("usage_usec", "cpu usage us"),
            ("user_usec", "cpu user us"),
            ("system_usec", "cpu system us"),
            ("nr_periods", "cpu periods"),
            ("nr_throttled", "cpu throttled periods"),
            ("throttled_usec", "cpu throttled us"),
        ],
        1,
    );
    let memory = keyed(&at.join("memory.stat"));
    copy(
        values,
        &memory,
        &[
            ("anon", "gauge memory anon"),
            ("file", "gauge memory file"),
            ("inactive_file", "gauge memory inactive_file"),
            ("active_file", "gauge memory active_file"),
            ("shmem", "gauge memory shmem"),
            ("file_mapped", "gauge memory mapped_file"),
            ("file_dirty", "gauge memory dirty"),
            ("file_writeback", "gauge memory writeback"),
            ("unevictable", "gauge memory unevictable"),
            ("kernel", "gauge memory kernel"),
            ("kernel_stack", "gauge memory kernel_stack"),
            ("pagetables", "gauge memory page_tables"),
            ("percpu", "gauge memory percpu"),
            ("sock", "gauge memory sock"),
            ("slab_unreclaimable", "gauge memory slab_unreclaimable"),
            ("pgfault", "memory page faults"),
            ("pgmajfault", "memory major faults"),
            ("workingset_refault_file", "memory refaults file"),
            ("workingset_refault_anon", "memory refaults anon"),
            ("pgscan", "memory scanned"),
            ("pgsteal", "memory stolen"),
        ],
        1,
    );
    let events = keyed(&at.join("memory.events"));
    copy(values, &events, &[("high", "memory high events"), ("max", "memory max events")], 1);
    for (file, name) in [
        ("memory.current", "gauge memory usage"),
        ("memory.peak", "memory peak"),
        ("memory.swap.current", "gauge memory swap"),
        ("pids.current", "gauge pids"),
    ] {
        if let Some(value) = number(&at.join(file)) {
            values.insert(name.into(), value);
        }
    }
    limit(values, &at.join("memory.max"));
    for line in text(&at.join("io.stat")).lines() {
        let mut words = line.split(' ');
        let device = words.next().unwrap_or_default().to_owned();
        for (key, value) in words.filter_map(|w| w.split_once('=')) {
            if ["rbytes", "wbytes", "rios", "wios"].contains(&key)
                && let Ok(value) = value.parse()
            {
                values.insert(format!("io {device} {key}"), value);
            }
        }
    }
}

fn read_v1(values: &mut Values, at: &dyn Fn(&str) -> PathBuf, unified: &Path) {
    let cpu = keyed(&unified.join("cpu.stat"));
    let names = [("usage_usec", "cpu usage us"), ("user_usec", "cpu user us"), ("system_usec", "cpu system us")];
    copy(values, &cpu, &names, 1);
    let quota = keyed(&at("cpu").join("cpu.stat"));
    copy(values, &quota, &[("nr_periods", "cpu periods"), ("nr_throttled", "cpu throttled periods")], 1);
    copy(values, &quota, &[("throttled_time", "cpu throttled us")], 1000);
    let memory = keyed(&at("memory").join("memory.stat"));
    copy(
        values,
        &memory,
        &[
            ("total_rss", "gauge memory anon"),
            ("total_cache", "gauge memory file"),
            ("total_inactive_file", "gauge memory inactive_file"),
            ("total_active_file", "gauge memory active_file"),
            ("total_shmem", "gauge memory shmem"),
            ("total_mapped_file", "gauge memory mapped_file"),
            ("total_dirty", "gauge memory dirty"),
            ("total_writeback", "gauge memory writeback"),
            ("total_unevictable", "gauge memory unevictable"),
            ("total_pgfault", "memory page faults"),
            ("total_pgmajfault", "memory major faults"),
        ],
        1,
    );
    for (file, name) in [
        ("memory.usage_in_bytes", "gauge memory usage"),
        ("memory.max_usage_in_bytes", "memory peak"),
        ("memory.failcnt", "memory max events"),
        ("memory.kmem.usage_in_bytes", "gauge memory kernel"),
    ] {
        if let Some(value) = number(&at("memory").join(file)) {
            values.insert(name.into(), value);
        }
    }
    limit(values, &at("memory").join("memory.limit_in_bytes"));
    if let Some(value) = number(&at("pids").join("pids.current")) {
        values.insert("gauge pids".into(), value);
    }
    for (file, read, write) in [
        ("blkio.throttle.io_service_bytes_recursive", "rbytes", "wbytes"),
        ("blkio.throttle.io_serviced_recursive", "rios", "wios"),
    ] {
        for line in text(&at("blkio").join(file)).lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [device, op, value] = words[..] else { continue };
            let what = match op {
                "Read" => read,
                "Write" => write,
                _ => continue,
            };
            if let Ok(value) = value.parse() {
                values.insert(format!("io {device} {what}"), value);
            }
        }
    }
}

/// A process in the cgroup or below.
fn any_process(at: &Path) -> Option<u32> {
    if let Some(pid) = text(&at.join("cgroup.procs")).lines().next().and_then(|line| line.parse().ok()) {
        return Some(pid);
    }
    let below = fs::read_dir(at).ok()?.filter_map(Result::ok).filter(|e| e.path().is_dir());
    below.filter_map(|e| any_process(&e.path())).next()
}

fn read_network(values: &mut Values, pid: u32) {
    for line in text(Path::new(&format!("/proc/{pid}/net/dev"))).lines().skip(2) {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let numbers: Vec<u64> = rest.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        if name.trim() == "lo" || numbers.len() < 12 {
            continue;
        }
        for (index, what) in [
            (0, "rx_bytes"),
            (1, "rx_packets"),
            (2, "rx_errors"),
            (3, "rx_dropped"),
            (8, "tx_bytes"),
            (9, "tx_packets"),
            (10, "tx_errors"),
            (11, "tx_dropped"),
        ] {
            values.insert(format!("net {} {what}", name.trim()), numbers[index]);
        }
    }
    for file in ["snmp", "netstat"] {
        let all = text(Path::new(&format!("/proc/{pid}/net/{file}")));
        let lines: Vec<&str> = all.lines().collect();
        for pair in lines.chunks_exact(2) {
            let (Some((group, names)), Some((_, numbers))) = (pair[0].split_once(": "), pair[1].split_once(": "))
            else {
                continue;
            };
            for (name, value) in names.split(' ').zip(numbers.split(' ')) {
                if let Ok(value) = value.parse() {
                    values.insert(format!("stack {group} {name}"), value);
                }
            }
        }
    }
}
