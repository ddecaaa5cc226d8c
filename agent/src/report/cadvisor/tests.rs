use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use beelet_core::event::Exit;

use super::*;
use crate::report::dropin_table::{CADVISOR_MISSING, CADVISOR_ROWS, is_left_out};
use crate::report::strict::{self, Families, Sample};
use crate::report::{samples, samples_detail, samples_dropin};

/// What a stock kubelet was recorded to answer, by kind of machine.
pub(crate) fn recorded(file: &str) -> Vec<(PathBuf, String)> {
    ["v1", "v2"]
        .map(|kind| {
            let path =
                PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/stock-kubelet").join(kind).join(file);
            let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path, text)
        })
        .into()
}

fn machine() -> MachineFacts {
    let id = |n: usize| "0".repeat(n);
    MachineFacts {
        boot_id: id(36),
        machine_id: id(32),
        system_uuid: id(36),
        kernel: "6.18.44".into(),
        os: "Debian GNU/Linux 12 (bookworm)".into(),
        physical_cores: Some(2),
        sockets: Some(1),
    }
}

fn render(picture: &Snapshot, format: Format) -> (String, Written) {
    let now = Now { wall: samples::WALL + Micros::millis(2_500), ..picture.at };
    let cadvisor = Cadvisor::new(machine(), Caps::default());
    let (out, written) = cadvisor.render(picture, &samples::agent(), now, format);
    (String::from_utf8(out).unwrap(), written)
}

fn ours(picture: &Snapshot) -> Families {
    let (text, written) = render(picture, Format::Text);
    assert_eq!((written.dropped, written.misfits), (0, 0));
    strict::parse(&text, Format::Text).unwrap()
}

/// What a row is of, by its labels: root, slice, pod, sandbox (box), container; `-` where the family has no such labels.
fn kind(sample: &Sample) -> char {
    let empty = |name| sample.label(name).is_empty();
    if !sample.label_names().contains(&"container") {
        return '-';
    }
    match (empty("container"), empty("name"), empty("image"), empty("namespace"), empty("pod")) {
        (true, true, true, true, true) if sample.label("id") == "/" => 'R',
        (true, true, true, true, true) => 'S',
        (true, true, true, false, false) => 'P',
        (true, false, false, false, false) => 'B',
        (false, false, false, false, false) => 'C',
        odd => panic!("what row is {sample:?} ({odd:?})?"),
    }
}

/// What must be equal of a family: type, sets of labels, whether there are timestamps.
fn shape(family: &strict::Family) -> (String, BTreeSet<Vec<&str>>, BTreeSet<bool>) {
    let samples = &family.samples;
    let labels = samples.iter().map(Sample::label_names).collect();
    (family.kind.clone(), labels, samples.iter().map(|s| s.at.is_some()).collect())
}

#[test]
fn sources_are_the_table() {
    let sources: Vec<&str> = SOURCES.iter().map(|source| source.name).collect();
    let table: Vec<&str> = CADVISOR.iter().map(|def| def.name).collect();
    assert_eq!(sources, table);
}

#[test]
fn families_labels_types_and_timestamps_are_the_stock_kubelets() {
    let ours = ours(&samples_dropin::recorded_node());
    for def in CADVISOR {
        assert!(ours.contains_key(def.name), "{} is in the table, and nothing sets it", def.name);
    }
    let mut seen = BTreeSet::new();
    for (path, text) in recorded("metrics-cadvisor.txt") {
        for (name, theirs) in strict::parse(&text, Format::Text).unwrap() {
            seen.insert(name.clone());
            match ours.get(&name) {
                Some(family) => assert_eq!(shape(family), shape(&theirs), "{name} in {}", path.display()),
                None => assert!(is_left_out(&name), "{name} of {} is neither served nor listed", path.display()),
            }
        }
    }
    for name in ours.keys() {
        assert!(seen.contains(name), "{name} is no family of the stock kubelet");
    }
    // What is listed is what was seen, but for what needs an io.cost controller or modules with counters of errors.
    for name in CADVISOR_MISSING.iter().flat_map(|d| d.what) {
        assert!(seen.contains(*name) || name.contains("_io_cost_") || name.contains("_dimm_"), "{name} was never seen");
    }
}

#[test]
fn rows_are_the_stock_kubelets() {
    let ours = ours(&samples_dropin::recorded_node());
    let kinds = |family: &strict::Family| family.samples.iter().map(kind).collect::<BTreeSet<char>>();
    let mut recorded_kinds: BTreeMap<String, BTreeSet<char>> = BTreeMap::new();
    for (_, text) in recorded("metrics-cadvisor.txt") {
        for (name, theirs) in strict::parse(&text, Format::Text).unwrap() {
            recorded_kinds.entry(name).or_default().extend(kinds(&theirs));
        }
    }
    for (name, family) in &ours {
        let (mine, theirs) = (kinds(family), &recorded_kinds[name]);
        let listed = CADVISOR_ROWS.iter().filter(|rows| name.starts_with(rows.families));
        let left_out: String = listed.map(|rows| rows.rows).collect();
        assert!(left_out.chars().all(|kind| !mine.contains(&kind)), "{name} has rows that are listed as left out");
        let missing: String = theirs.difference(&mine).filter(|k| !left_out.contains(**k)).collect();
        assert_eq!(missing, "", "{name} has no rows of these kinds");
        let more: String = mine.difference(theirs).collect();
        // The recordings were trimmed to rows of a few pods; what is read of each cgroup is read of all.
        assert!(
            more.chars().all(|k| "SPC".contains(k)),
            "{name} has rows of kinds {more} that the stock kubelet has not"
        );
    }
}

#[test]
fn network_is_on_the_sandboxs_row_once_per_interface() {
    let families = ours(&samples_dropin::recorded_node());
    let received = &families["container_network_receive_bytes_total"].samples;
    let of = |pod: &str| received.iter().filter(|s| s.label("pod") == pod).collect::<Vec<_>>();
    assert_eq!((of("web-node").len(), of("holder-node").len(), of("hostnet-node").len(), of("").len()), (1, 1, 0, 1));
    let web = of("web-node")[0];
    assert_eq!((kind(web), web.label("interface"), web.value), ('B', "eth0", 2_000.0));
    assert_eq!(web.label("image"), "registry.k8s.io/pause:3.10");
    assert_eq!(web.label("id"), format!("/kubepods/burstable/pod{:032x}/{}", 500, web.label("name")));
}

#[test]
fn devices_that_the_kubelet_hides_are_hidden() {
    let mut picture = samples_dropin::recorded_node();
    let detail = Arc::make_mut(picture.node.detail.as_mut().unwrap());
    let eth = detail.interfaces[0].clone();
    for name in ["lo", "veth12", "docker0", "nerdctl0", "cni0"] {
        detail.interfaces.push(InterfaceReading { name: name.into(), ..eth.clone() });
    }
    let families = ours(&picture);
    let roots = families["container_network_transmit_errors_total"].samples.iter().filter(|s| s.label("id") == "/");
    assert_eq!(roots.map(|s| s.label("interface")).collect::<Vec<_>>(), ["eth0", "cni0"]);
}

#[test]
fn each_sample_has_the_time_of_its_reading() {
    let mut picture = samples_dropin::recorded_node();
    let web = Arc::make_mut(&mut picture.pods[2]);
    web.containers[0].reading.as_mut().unwrap().at = Micros::secs(990);
    let families = ours(&picture);
    let at =
        |name: &str| families[name].samples.iter().find(|s| s.label("pod") == "web-node" && kind(s) == 'C').unwrap().at;
    let millis = |seconds_ago: u64| Some((samples::WALL - Micros::secs(seconds_ago)).get() / 1_000);
    assert_eq!(at("container_memory_rss"), millis(10));
    assert_eq!(at("container_processes"), millis(5), "the details have their own");
    // The node's CPU time is read by itself, and its memory with its details.
    let of_node = |name: &str| families[name].samples.iter().find(|s| s.label("id") == "/").unwrap().at;
    assert_eq!(of_node("container_cpu_usage_seconds_total"), Some((samples::WALL - Micros::millis(700)).get() / 1_000));
    assert_eq!(of_node("container_memory_rss"), millis(5));
    let seen = &families["container_last_seen"].samples[0];
    assert_eq!((seen.value, seen.at), (1_795_428_002.0, Some(1_795_428_002_500)));
}

#[test]
fn what_is_not_known_is_left_out() {
    // A picture without any details: the first one of an agent's life.
    let families = ours(&samples::busy_node());
    for name in [
        "container_file_descriptors",
        "container_cpu_user_seconds_total",
        "container_memory_swap",
        "container_spec_memory_swap_limit_bytes",
        "container_fs_reads_total",
        "container_network_receive_bytes_total",
        "machine_swap_bytes",
    ] {
        assert!(!families.contains_key(name), "{name}");
    }
    assert!(families["container_memory_rss"].samples.iter().all(|s| s.label("id") != "/"));
    assert_eq!(families["container_scrape_error"].samples[0].value, 1.0, "the node was never read");
    assert_eq!(ours(&samples_detail::detailed_node())["container_scrape_error"].samples[0].value, 0.0);
}

#[test]
fn a_container_that_was_killed_keeps_its_count_and_nothing_else() {
    let families = ours(&samples::busy_node());
    let of_leak = |name: &str| {
        families.get(name).map_or(0, |f| f.samples.iter().filter(|s| s.label("container") == "leak").count())
    };
    assert_eq!((of_leak("container_oom_events_total"), of_leak("container_memory_rss")), (1, 0));
    assert_eq!((of_leak("container_last_seen"), of_leak("container_start_time_seconds")), (0, 0));
    let killed =
        families["container_oom_events_total"].samples.iter().find(|s| s.label("container") == "leak").unwrap();
    assert_eq!((killed.value, killed.at), (3.0, None));
}

#[test]
fn a_containers_limits_are_its_cgroups_else_its_specs() {
    let value = |picture: &Snapshot, name: &str| {
        let family = ours(picture).remove(name)?;
        family.samples.iter().find(|s| s.label("container") == "web" || s.label("container") == "main").map(|s| s.value)
    };
    let by_files = samples_dropin::recorded_node();
    assert_eq!(value(&by_files, "container_spec_cpu_shares"), Some(256.0));
    assert_eq!(value(&by_files, "container_threads_max"), Some(0.0), "no limit");
    assert_eq!(value(&by_files, "container_spec_memory_reservation_limit_bytes"), Some(0.0));
    // 250m and 500m.
    let mut by_spec = samples::busy_node();
    assert_eq!(value(&by_spec, "container_spec_cpu_shares"), Some(256.0));
    assert_eq!(value(&by_spec, "container_spec_cpu_quota"), Some(50_000.0));
    assert_eq!(value(&by_spec, "container_spec_cpu_period"), Some(100_000.0));
    // Of somebody else's pod the spec is a guess.
    for pod in &mut by_spec.pods {
        Arc::make_mut(pod).foreign = true;
    }
    assert_eq!(value(&by_spec, "container_spec_cpu_quota"), None);
}

#[test]
fn without_a_quota_there_are_no_periods() {
    let mut picture = samples_dropin::recorded_node();
    let web = Arc::make_mut(&mut picture.pods[2]);
    let detail = Arc::make_mut(web.containers[0].detail.as_mut().unwrap());
    detail.limits.as_mut().unwrap().cpu_quota = None;
    let cpu = web.containers[0].reading.as_mut().unwrap().cpu.as_mut().unwrap();
    cpu.periods = Some(0);
    let families = ours(&picture);
    let periods = &families["container_cpu_cfs_periods_total"].samples;
    assert!(periods.iter().all(|s| (s.label("container"), s.label("pod")) != ("main", "web-node")), "{periods:?}");
    assert!(periods.iter().any(|s| s.label("pod") == "holder-node"));
}

#[test]
fn the_path_of_a_systemd_cgroup_is_the_runtimes() {
    assert_eq!(below("/kubepods.slice/pod1.slice", "c1"), "/kubepods.slice/pod1.slice/cri-containerd-c1.scope");
    assert_eq!(below("/kubepods/pod1", "c1"), "/kubepods/pod1/c1");
}

#[test]
fn a_pod_and_its_successor_are_told_apart() {
    let mut picture = samples_dropin::recorded_node();
    let mut again = PodView::clone(&picture.pods[2]);
    Arc::make_mut(&mut again.spec).uid = "another".into();
    again.cgroup = "kubepods/podanother".into();
    again.containers[0].id = "c9".into();
    again.containers[0].last = Some(Exit {
        started: Micros::ZERO,
        finished: Micros::ZERO,
        code: 1,
        reason: String::new(),
        message: String::new(),
    });
    picture.pods.push(Arc::new(again.clone()));
    let rss = |picture: &Snapshot| ours(picture)["container_memory_rss"].samples.len();
    assert_eq!(rss(&picture), rss(&samples_dropin::recorded_node()) + 3);
    // The same cgroup twice is one row.
    picture.pods.push(Arc::new(again));
    let (text, written) = render(&picture, Format::Text);
    strict::parse(&text, Format::Text).unwrap();
    assert_eq!(written.misfits, 0);
}

#[test]
fn openmetrics_has_the_same_series() {
    let picture = samples_dropin::recorded_node();
    let (open, written) = render(&picture, Format::OpenMetrics);
    let open = strict::parse(&open, Format::OpenMetrics).unwrap();
    let text = ours(&picture);
    assert!(written.series > 300);
    for (name, family) in &text {
        // A failcnt is a counter without `_total`.
        let kind = if name == "container_memory_failcnt" { "unknown" } else { &family.kind };
        assert_eq!((open[name].kind.as_str(), &open[name].samples), (kind, &family.samples), "{name}");
    }
    assert_eq!(open.len(), text.len());
}

/// Prints what an answer costs: `cargo test --release -p beelet --lib -- --ignored --nocapture cost_of_an_answer`.
#[test]
#[ignore = "a measurement, for an optimised build"]
fn cost_of_an_answer() {
    use crate::report::exposition::gzip;
    use crate::report::{resource, summary};
    use std::time::Instant;
    fn median(mut run: impl FnMut() -> usize) -> (f64, usize) {
        let mut times: Vec<(f64, usize)> = (0..21)
            .map(|_| {
                let begun = Instant::now();
                let bytes = run();
                (begun.elapsed().as_secs_f64() * 1e3, bytes)
            })
            .collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        times[10]
    }
    for pods in [100, 500] {
        let (picture, agent) = (samples_dropin::large_node(pods), samples::agent());
        let cadvisor = Cadvisor::new(machine(), Caps::default());
        for format in [Format::Text, Format::OpenMetrics] {
            let (ms, bytes) = median(|| cadvisor.render(&picture, &agent, picture.at, format).0.len());
            let (body, written) = cadvisor.render(&picture, &agent, picture.at, format);
            let (zip_ms, zipped) = median(|| gzip(&body).unwrap().len());
            let series = written.series;
            println!(
                "/metrics/cadvisor, {pods} pods, {format:?}: {series} series, {bytes} bytes, {ms:.2} ms; gzip {zipped} bytes, {zip_ms:.2} ms"
            );
        }
        let (ms, bytes) = median(|| resource::render(&picture, Caps::default(), Format::Text).0.len());
        println!("/metrics/resource, {pods} pods: {bytes} bytes, {ms:.2} ms");
        let summaries = summary::Summaries::default();
        let (ms, bytes) = median(|| serde_json::to_vec(&summaries.make(&picture, false)).unwrap().len());
        println!("/stats/summary, {pods} pods: {bytes} bytes, {ms:.2} ms");
    }
}
