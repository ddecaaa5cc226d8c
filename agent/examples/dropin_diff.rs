//! Compares what beelet serves in place of the stock kubelet with what a stock kubelet serves, of the same pods at the same time.
//!
//! `cargo run -p beelet --example dropin_diff -- http://127.0.0.1:10355 http://127.0.0.1:10255 [SECONDS]`, first the stock kubelet's
//! read-only port, then that of beelet with `--beside-kubelet`. Each may also be a folder with recorded answers, or the beginning
//! of their names: `DIR/stock.` for `DIR/stock.metrics-cadvisor`.
//!
//! **Problem.** The two read the same counters at different moments, up to 30 s apart. A difference of values says nothing until the
//! moments are the same.
//!
//! **Approach.** Both are asked each two seconds for `SECONDS` (60). Each value has a timestamp (in JSON the `time` beside it); of each
//! series the newest value of the stock kubelet that lies between two of beelet's is compared with these: it must be within 2 % of the
//! range that they span. So must one that has no newer or no older one beside it with the only one there is. A few KiB, tasks or
//! hundredths of a second are no difference ([`floor`]): the kernel itself counts memory in batches of 64 pages per CPU.
//!
//! **Terms.** A *row* is what a series of `/metrics/cadvisor` is of: `R` the node, `S` a slice, `P` a pod, `B` a sandbox, `C` a
//! container.
//!
//! **Properties.** Ends with 0 if each difference is in the lists of `report::dropin_table`, else with 1, and with 2 if an answer
//! cannot be had or read. `known` and `NEW` stand before each difference.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use beelet::report::dropin_table::{Endpoint, Shows, why_differs};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// Values may differ by this share.
const TOLERANCE: f64 = 0.02;
/// Both are asked this often.
const EVERY: Duration = Duration::from_secs(2);
/// So many differences of one kind in one family are written out.
const SHOWN: usize = 3;

/// Name, labels but `image`, sorted. In JSON the path is the name, and whose it is are the labels.
type Key = (String, BTreeMap<String, String>);

/// What is told of a series: values by their timestamps (milliseconds; 0 for none), and images.
#[derive(Clone, Debug, Default)]
struct Series {
    values: BTreeMap<i64, f64>,
    image: Option<String>,
}

#[derive(Debug, Default)]
struct Answers {
    series: BTreeMap<Key, Series>,
    /// `# HELP` is left out: beelet says in its own words what it means.
    types: BTreeMap<String, String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match compare().await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}

/// How many differences are not known.
async fn compare() -> anyhow::Result<usize> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: dropin_diff STOCK BEELET [SECONDS], each http://IP:PORT or the beginning of names of files";
    let (stock, beelet) = (args.next().context(usage)?, args.next().context(usage)?);
    let seconds: u64 = args.next().map_or(Ok(60), |text| text.parse()).context(usage)?;
    let live = [&stock, &beelet].iter().any(|side| side.starts_with("http://"));
    let until = Instant::now() + Duration::from_secs(if live { seconds } else { 0 });
    let mut answers: [BTreeMap<&str, Answers>; 2] = Default::default();
    loop {
        for endpoint in Endpoint::ALL {
            let path = endpoint.path();
            let (theirs, ours) = tokio::join!(fetch(&stock, path), fetch(&beelet, path));
            for (side, text) in answers.iter_mut().zip([theirs?, ours?]) {
                let all = side.entry(path).or_default();
                let read = if endpoint == Endpoint::Summary { read_json(&text, all) } else { read_text(&text, all) };
                read.with_context(|| format!("{path} cannot be read"))?;
            }
        }
        if Instant::now() >= until {
            break;
        }
        tokio::time::sleep(EVERY).await;
    }
    let mut unknown = 0;
    for endpoint in Endpoint::ALL {
        let [theirs, ours] = &answers;
        let (Some(theirs), Some(ours)) = (theirs.get(endpoint.path()), ours.get(endpoint.path())) else { continue };
        unknown += report(endpoint, theirs, ours);
    }
    println!("\n{unknown} differences are not in the lists");
    Ok(unknown)
}

async fn fetch(side: &str, path: &str) -> anyhow::Result<String> {
    let Some(authority) = side.strip_prefix("http://") else {
        let name = path.trim_start_matches('/').replace('/', "-");
        let folder = Path::new(side);
        let from = if folder.is_dir() { format!("{side}/{name}") } else { format!("{side}{name}") };
        let mut found =
            ["", ".txt", ".json"].iter().filter_map(|end| std::fs::read_to_string(format!("{from}{end}")).ok());
        return found.next().with_context(|| format!("there is no {from}[.txt|.json]"));
    };
    let get = async {
        let stream = tokio::net::TcpStream::connect(authority).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let request = hyper::Request::get(path).header("host", authority).body(Empty::<Bytes>::new())?;
        let exchange = async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            anyhow::Ok((status, answer.into_body().collect().await?.to_bytes()))
        };
        let (answer, _) = tokio::join!(exchange, connection);
        let (status, body) = answer?;
        if !status.is_success() {
            bail!("{status}");
        }
        anyhow::Ok(String::from_utf8(body.to_vec())?)
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), get).await;
    answer.context("no answer within 30 s").and_then(|it| it).with_context(|| format!("{side}{path}"))
}

fn read_text(text: &str, into: &mut Answers) -> anyhow::Result<()> {
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(meta) = line.strip_prefix("# TYPE ") {
            let (name, kind) = meta.split_once(' ').with_context(|| format!("no type: {line}"))?;
            into.types.insert(name.to_owned(), kind.to_owned());
        }
        if line.starts_with('#') {
            continue;
        }
        let wrong = || format!("not a sample: {line}");
        let (name, labels, rest) = match line.split_once('{') {
            Some((name, rest)) => {
                let (labels, rest) = read_labels(rest).with_context(wrong)?;
                (name, labels, rest)
            }
            None => line.split_once(' ').map(|(name, rest)| (name, BTreeMap::new(), rest)).with_context(wrong)?,
        };
        let mut words = rest.split_whitespace();
        let value: f64 = words.next().and_then(|word| word.parse().ok()).with_context(wrong)?;
        let at: i64 = words.next().map_or(Ok(0), str::parse).with_context(wrong)?;
        add(into, name.to_owned(), labels, at, value);
    }
    Ok(())
}

/// Labels up to the closing brace, and what follows it.
fn read_labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (mut value, mut chars) = (String::new(), after.char_indices());
        loop {
            match chars.next()? {
                (at, '"') => {
                    rest = &after[at + 1..];
                    break;
                }
                (_, '\\') => match chars.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        }
        labels.insert(name.to_owned(), value);
    }
}

fn add(into: &mut Answers, name: String, mut labels: BTreeMap<String, String>, at: i64, value: f64) {
    let image = labels.remove("image");
    let series = into.series.entry((name, labels)).or_default();
    series.image = image;
    series.values.insert(at, value);
}

fn read_json(text: &str, into: &mut Answers) -> anyhow::Result<()> {
    let summary: Value = serde_json::from_str(text)?;
    let node = summary.get("node").context("no node")?;
    walk(node, "node", &BTreeMap::new(), 0, into);
    for pod in summary.get("pods").and_then(Value::as_array).context("no pods")? {
        let named = |part: &str| Some((part.to_owned(), pod.get("podRef")?.get(part)?.as_str()?.to_owned()));
        let labels: Option<BTreeMap<_, _>> = ["namespace", "name", "uid"].into_iter().map(named).collect();
        walk(pod, "pods", &labels.context("no podRef")?, 0, into);
    }
    Ok(())
}

/// Leaves of a JSON value. Members of lists go by their `name`; the path leaves it out.
fn walk(value: &Value, path: &str, labels: &BTreeMap<String, String>, at: i64, into: &mut Answers) {
    match value {
        Value::Object(fields) => {
            let time = fields.get("time").and_then(Value::as_str).and_then(millis).unwrap_or(at);
            for (name, value) in fields.iter().filter(|(name, _)| *name != "time" && *name != "podRef") {
                walk(value, &format!("{path}.{name}"), labels, time, into);
            }
        }
        Value::Array(members) => {
            for (n, member) in members.iter().enumerate() {
                let name = member.get("name").and_then(Value::as_str).map_or_else(|| n.to_string(), str::to_owned);
                let mut labels = labels.clone();
                labels.insert(path.to_owned(), name);
                walk(member, path, &labels, at, into);
            }
        }
        Value::Number(number) => add(into, path.to_owned(), labels.clone(), at, number.as_f64().unwrap_or(f64::NAN)),
        // Moments are compared as seconds; of names it counts that they are there, and they are labels.
        Value::String(text) => {
            let value = millis(text).map_or(0.0, |ms| Duration::from_millis(ms.unsigned_abs()).as_secs_f64());
            add(into, path.to_owned(), labels.clone(), at, value);
        }
        Value::Bool(_) | Value::Null => add(into, path.to_owned(), labels.clone(), at, 0.0),
    }
}

fn millis(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

/// Which row it is, by its labels.
fn row(endpoint: Endpoint, key: &Key) -> char {
    let has = |label: &str| key.1.get(label).is_some_and(|value| !value.is_empty());
    match endpoint {
        Endpoint::Cadvisor if has("container") => 'C',
        Endpoint::Cadvisor if has("name") => 'B',
        Endpoint::Cadvisor if has("pod") => 'P',
        Endpoint::Cadvisor if key.1.get("id").is_some_and(|id| id != "/") => 'S',
        _ => 'R',
    }
}

/// Differences up to this are none, by the unit that the name tells.
fn floor(name: &str) -> f64 {
    let lower = name.to_lowercase();
    if lower.ends_with("nanoseconds") || lower.ends_with("nanocores") {
        // A hundredth of a second, of a core.
        1e7
    } else if lower.contains("network") {
        // A few packets.
        2_000.0
    } else if lower.contains("start_time") || lower.ends_with("starttime") {
        0.0
    } else if lower.contains("memory_failures") || lower.contains("pagefaults") {
        100.0
    } else if lower.contains("memory") || lower.contains("bytes") {
        f64::from(2 * 64 * 4096)
    } else if lower.contains("seconds") {
        0.02
    } else {
        1.0
    }
}

/// What differs: of which kind, in which family or field, with which rows.
type Differences = BTreeMap<(Shows, String, char), Vec<String>>;

fn report(endpoint: Endpoint, theirs: &Answers, ours: &Answers) -> usize {
    let mut found = Differences::new();
    let mut note = |shows, key: &Key, text: String| {
        found.entry((shows, key.0.clone(), row(endpoint, key))).or_default().push(text);
    };
    let (mut both, mut compared, mut same) = (0_usize, 0_usize, 0_usize);
    for (key, series) in &theirs.series {
        let Some(own) = ours.series.get(key) else {
            note(Shows::OnlyStock, key, name(key));
            continue;
        };
        both += 1;
        if series.image != own.image {
            note(Shows::Labels, key, format!("{} image {:?}, here {:?}", name(key), series.image, own.image));
        }
        compared += 1;
        match differs(&key.0, series, own) {
            Some(what) => note(Shows::Values, key, format!("{} {what}", name(key))),
            None => same += 1,
        }
    }
    for key in ours.series.keys().filter(|key| !theirs.series.contains_key(*key)) {
        note(Shows::OnlyBeelet, key, name(key));
    }
    for (family, kind) in &theirs.types {
        if let Some(own) = ours.types.get(family).filter(|own| *own != kind) {
            note(Shows::Labels, &(family.clone(), BTreeMap::new()), format!("{family} is a {kind}, here a {own}"));
        }
    }
    let families = |all: &Answers| all.series.keys().map(|key| key.0.clone()).collect::<BTreeSet<_>>();
    let (stock, own) = (families(theirs), families(ours));
    println!("\n== {} ==", endpoint.path());
    println!(
        "families or fields: {} of the stock kubelet, {} here, {} in both; series: {}, {}, {both} in both",
        stock.len(),
        own.len(),
        stock.intersection(&own).count(),
        theirs.series.len(),
        ours.series.len()
    );
    println!("values: {compared} compared, {same} within {} %", TOLERANCE * 100.0);
    for (title, only) in [("only the stock kubelet", stock.difference(&own)), ("only here", own.difference(&stock))] {
        let only: Vec<&str> = only.map(String::as_str).collect();
        if !only.is_empty() {
            println!("families or fields that {title} has: {}", only.join(" "));
        }
    }
    let mut unknown = 0;
    for ((shows, family, row), texts) in &found {
        let known = why_differs(endpoint, family, *shows, *row);
        unknown += usize::from(known.is_none());
        let mut text =
            format!("{} {shows:?} {family} {row}: {}", if known.is_some() { "known" } else { "NEW  " }, texts.len());
        if known.is_none() || *shows == Shows::Values {
            for one in texts.iter().take(SHOWN) {
                let _ = write!(text, "\n        {one}");
            }
        }
        println!("{text}");
    }
    unknown
}

fn name(key: &Key) -> String {
    let labels: Vec<String> =
        key.1.iter().filter(|(_, value)| !value.is_empty()).map(|(k, v)| format!("{k}={v}")).collect();
    format!("{}{{{}}}", key.0, labels.join(","))
}

/// How they differ; `None` if they do not.
fn differs(name: &str, theirs: &Series, ours: &Series) -> Option<String> {
    let around = |at: i64| (ours.values.range(..=at).next_back(), ours.values.range(at..).next());
    // The newest that lies between two of beelet's; else the newest.
    let between = theirs.values.iter().rev().find(|(at, _)| matches!(around(**at), (Some(_), Some(_))));
    let (at, value) = between.or_else(|| theirs.values.last_key_value())?;
    let (before, after) = around(*at);
    let near: Vec<(i64, f64)> = [before, after].into_iter().flatten().map(|(at, value)| (*at, *value)).collect();
    let (low, high) = near.iter().fold((f64::MAX, f64::MIN), |(low, high), (_, v)| (low.min(*v), high.max(*v)));
    let away = if *value < low { low - value } else { (value - high).max(0.0) };
    let share = away / value.abs().max(low.abs()).max(f64::MIN_POSITIVE);
    (away > floor(name) && share > if name.contains("tart") { 0.0 } else { TOLERANCE }).then(|| {
        let near: Vec<String> = near.iter().map(|(at, value)| format!("{value} @{at}")).collect();
        format!("{value} @{at}, here {} ({:.1} %)", near.join(" and "), share * 100.0)
    })
}
