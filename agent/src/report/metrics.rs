//! `/metrics`: the picture as Prometheus series.
//!
//! Problem: a gauge per pod that somebody must remember to delete outlives its pod; and a pod that drops packets for a hundred
//! reasons must not make an answer that nobody can hold. Approach: no gauges are kept. A [`Collector`] renders the current picture
//! at each scrape, through the table in [`super::table`], so a series lives exactly as long as what it is about; the registry
//! checks, merges and sorts, and the [`Writer`] of all endpoints writes what it gathered.
//!
//! Terms: a *row* is one set of label values of a metric; its *place* is the pod or container that it is about, nothing for the
//! node and the agent.
//!
//! Properties: only metrics of the table come out, with its labels; no two rows of a metric have the same labels, even while a
//! pod and its successor of the same name are both there; floats are made here and nowhere before. There are never more series
//! than [`Bounds`] says, neither in the answer nor on the way to it, and what is left out is counted; it is of pods before it is of
//! the node or the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use beelet_core::health::Health;
use beelet_core::score;
use beelet_core::snapshot::{ContainerState, ExitKind, Phase, PodView, Snapshot, Totals};
use beelet_core::spec::QosClass;
use beelet_core::telemetry::Histogram;
use beelet_core::units::{Bytes, Micros, MilliCpu};
use prometheus::Registry;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::evictions;
use super::exposition::{Format, LabelSets, RowId, Writer, Written, histogram_series};
use super::itself;
use super::process::{self, ProcessUse};
use super::scrapes::Scrapes;
use super::table::{Kind, METRICS, MetricDef};
use super::telemetry;
use super::{AgentReport, Published, SelfReport};

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The table has an entry that Prometheus does not take.
    #[error("a metric of the table cannot be registered: {0}")]
    Register(#[source] prometheus::Error),
}

/// How many series there are at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of one metric about one pod or container; the node and the agent count as one.
    pub per_place: u64,
    /// In the whole answer.
    pub whole: u64,
}

impl Bounds {
    /// Room for the latency of 34 ports, or of 11 disks; and for 500 pods of 400 series each, some 30 MB of text.
    pub const DEFAULT: Self = Self { per_place: 512, whole: 200_000 };
}

/// What `/metrics` serves.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Series that the collector left out since this was last read.
    left_out: Arc<AtomicU64>,
}

impl Metrics {
    /// Metrics of what these hold at each scrape.
    ///
    /// # Errors
    /// If the table has an entry that Prometheus does not take.
    pub fn new(
        published: Published,
        agent: AgentReport,
        scrapes: Scrapes,
        bounds: Bounds,
    ) -> Result<Self, MetricsError> {
        let (registry, left_out) = (Registry::new(), Arc::<AtomicU64>::default());
        let descs = METRICS
            .iter()
            .map(|m| {
                let labels = m.labels.iter().map(|&l| l.to_owned()).collect();
                Desc::new(m.name.to_owned(), m.help.to_owned(), labels, std::collections::HashMap::new())
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(MetricsError::Register)?;
        let collector = PictureCollector { published, agent, scrapes, descs, bounds, left_out: Arc::clone(&left_out) };
        registry.register(Box::new(collector)).map_err(MetricsError::Register)?;
        Ok(Self { registry, left_out })
    }

    /// The newest picture as text.
    #[must_use]
    pub fn render(&self, format: Format) -> (Vec<u8>, Written) {
        let families = self.registry.gather();
        let none = LabelSets::none();
        let metrics: usize = families.iter().map(|family| family.get_metric().len()).sum();
        let mut writer = Writer::new(METRICS, format, 192 * metrics);
        for family in &families {
            let mut out = writer.family(family.name(), &none);
            let kind = family.get_field_type();
            for metric in family.get_metric() {
                let labels: Vec<&str> = metric.get_label().iter().map(LabelPair::value).collect();
                match kind {
                    MetricType::HISTOGRAM => out.histogram(RowId::ONLY, &labels, metric.get_histogram(), None),
                    MetricType::COUNTER => out.sample(RowId::ONLY, &labels, metric.get_counter().get_value(), None),
                    _ => out.sample(RowId::ONLY, &labels, metric.get_gauge().get_value(), None),
                }
            }
        }
        let (out, mut written) = writer.finish();
        written.dropped += self.left_out.swap(0, Ordering::Relaxed);
        (out, written)
    }
}

/// Renders the current picture.
struct PictureCollector {
    published: Published,
    agent: AgentReport,
    scrapes: Scrapes,
    descs: Vec<Desc>,
    bounds: Bounds,
    left_out: Arc<AtomicU64>,
}

impl Collector for PictureCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut rows = Rows::new(self.bounds);
        render(&mut rows, &self.published.current(), &self.agent.current(), &self.scrapes, process::read());
        self.left_out.fetch_add(rows.left_out, Ordering::Relaxed);
        rows.into_families()
    }
}

/// What stands in a row.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Number(f64),
    Histogram(proto::Histogram),
}

/// The rows of a metric by their place: the values of the other labels, and what stands there.
type Places = BTreeMap<Vec<String>, Vec<(Vec<String>, Value)>>;

/// The rows of every metric.
pub(super) struct Rows {
    by_name: BTreeMap<&'static str, Places>,
    bounds: Bounds,
    /// Series in them.
    series: u64,
    /// Series that were too many.
    left_out: u64,
    /// Names that are not in the table, or were given too many or few label values: a mistake in this file, found by its test.
    misfits: BTreeSet<&'static str>,
}

impl Rows {
    fn new(bounds: Bounds) -> Self {
        Self { by_name: BTreeMap::new(), bounds, series: 0, left_out: 0, misfits: BTreeSet::new() }
    }

    /// One row. A second one with the same labels is left out: Prometheus would refuse the whole scrape.
    pub(super) fn put(&mut self, name: &'static str, labels: &[&str], value: f64) {
        self.row(name, labels, Value::Number(value));
    }

    /// The same of a histogram; an empty one is left out, for a dozen series that say nothing are too many.
    pub(super) fn put_histogram(&mut self, name: &'static str, labels: &[&str], value: &Histogram) {
        if value.count() > 0 {
            self.row(name, labels, Value::Histogram(histogram(value)));
        }
    }

    pub(super) fn row(&mut self, name: &'static str, labels: &[&str], value: Value) {
        let fits = |def: &&MetricDef| {
            def.labels.len() == labels.len() && (def.kind == Kind::Histogram) == matches!(value, Value::Histogram(_))
        };
        let Some(def) = super::table::find(name).filter(fits) else {
            self.misfits.insert(name);
            return;
        };
        let series = match &value {
            Value::Number(_) => 1,
            Value::Histogram(value) => histogram_series(value),
        };
        let owned = |labels: &[&str]| labels.iter().map(|&l| l.to_owned()).collect::<Vec<_>>();
        let (place, others) = labels.split_at(def.place());
        let (place, places) = (owned(place), self.by_name.entry(name).or_default());
        let held = places.get(&place).map_or(&[][..], Vec::as_slice);
        if held.iter().any(|(held, _)| held == others) {
            return;
        }
        let too_many = (held.len() as u64 + 1) * series > self.bounds.per_place;
        if too_many || self.series + series > self.bounds.whole {
            self.left_out += series;
            return;
        }
        let rows = places.entry(place).or_default();
        rows.push((owned(others), value));
        self.series += series;
    }

    fn into_families(mut self) -> Vec<MetricFamily> {
        METRICS.iter().filter_map(|def| Some(family(def, self.by_name.remove(def.name)?))).collect()
    }
}

fn family(def: &MetricDef, places: Places) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(def.name.to_owned());
    family.set_help(def.help.to_owned());
    family.set_field_type(match def.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    let mut metrics = Vec::new();
    for (place, rows) in places {
        for (others, value) in rows {
            let values = place.iter().cloned().chain(others);
            let labels = def.labels.iter().zip(values).map(|(&name, text)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value(text);
                pair
            });
            let mut metric = Metric::from_label(labels.collect());
            match value {
                Value::Number(value) if def.kind == Kind::Counter => {
                    let mut counter = Counter::default();
                    counter.set_value(value);
                    metric.set_counter(counter);
                }
                Value::Number(value) => {
                    let mut gauge = Gauge::default();
                    gauge.set_value(value);
                    metric.set_gauge(gauge);
                }
                Value::Histogram(value) => metric.set_histogram(value),
            }
            metrics.push(metric);
        }
    }
    family.set_metric(metrics);
    family
}

/// Every second power of two is a bucket: 1 us, 4 us, ... 4.19 s, a dozen in all.
pub(super) fn histogram(value: &Histogram) -> proto::Histogram {
    let slots = value.counts.iter().enumerate();
    let bound = |slot| Histogram::upper_bound(slot).filter(|_| slot % 2 == 0);
    cumulative(slots.map(|(slot, count)| (bound(slot).map(seconds), *count)), value.sum_ns as f64 / 1e9)
}

/// From counts in the order of their upper bounds, in seconds; one without a bound counts in the next that has one.
pub(super) fn cumulative(counts: impl Iterator<Item = (Option<f64>, u64)>, sum: f64) -> proto::Histogram {
    let mut seen: u64 = 0;
    let mut buckets = Vec::new();
    for (bound, count) in counts {
        seen = seen.saturating_add(count);
        if let Some(bound) = bound {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(seen);
            buckets.push(bucket);
        }
    }
    let mut histogram = proto::Histogram::default();
    histogram.set_bucket(buckets);
    histogram.set_sample_count(seen);
    histogram.set_sample_sum(sum);
    histogram
}

pub(super) fn seconds(time: Micros) -> f64 {
    time.get() as f64 / 1e6
}

pub(super) fn bytes(bytes: Bytes) -> f64 {
    bytes.get() as f64
}

fn cores(cpu: MilliCpu) -> f64 {
    cpu.get() as f64 / 1e3
}

pub(super) fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

/// What is about the node and the agent comes first: it is there even where pods have too much to tell.
fn render(rows: &mut Rows, picture: &Snapshot, agent: &SelfReport, scrapes: &Scrapes, own: Option<ProcessUse>) {
    node(rows, picture);
    telemetry::node(rows, &picture.node);
    running(rows, picture);
    itself::agent(rows, picture, agent);
    itself::asked(rows, scrapes);
    if let Some(own) = own {
        rows.put("process_cpu_seconds_total", &[], own.cpu_seconds);
        rows.put("process_resident_memory_bytes", &[], own.resident_bytes as f64);
        rows.put("process_virtual_memory_bytes", &[], own.virtual_bytes as f64);
        rows.put("process_start_time_seconds", &[], own.start_seconds);
        rows.put("process_open_fds", &[], own.open_fds as f64);
        rows.put("process_max_fds", &[], own.max_fds as f64);
        rows.put("process_threads", &[], own.threads as f64);
    }
    for pod in one_per_name(picture) {
        pod_rows(rows, pod, picture.at.mono);
    }
    totals(rows, &picture.totals);
    let names: BTreeMap<&str, &PodView> = picture.pods.iter().map(|p| (p.spec.uid.as_str(), p.as_ref())).collect();
    for view in &picture.pods {
        let spec = &view.spec;
        telemetry::preemptors(rows, view, &names);
        let foreign = if view.foreign { "true" } else { "false" };
        let labels =
            [&spec.namespace, &spec.name, spec.uid.as_str(), &picture.node.name, qos(view.qos), &view.ip, foreign];
        rows.put("beelet_pod_info", &labels, 1.0);
    }
}

/// The pods, one per namespace and name: while a pod waits for its predecessor of the same name to be cleaned, both are in
/// the picture, and the one that runs is shown.
pub(super) fn one_per_name(picture: &Snapshot) -> impl Iterator<Item = &PodView> {
    let mut best: BTreeMap<(&str, &str), &PodView> = BTreeMap::new();
    let rank = |p: &PodView| (p.reading.is_some(), p.phase == Phase::Running, p.since);
    for pod in picture.pods.iter().map(AsRef::as_ref) {
        let slot = best.entry((&pod.spec.namespace, &pod.spec.name)).or_insert(pod);
        if rank(pod) > rank(slot) {
            *slot = pod;
        }
    }
    best.into_values()
}

fn qos(class: QosClass) -> &'static str {
    match class {
        QosClass::Guaranteed => "Guaranteed",
        QosClass::Burstable => "Burstable",
        QosClass::BestEffort => "BestEffort",
    }
}

fn node(rows: &mut Rows, picture: &Snapshot) {
    let node = &picture.node;
    rows.put("kubelet_node_name", &[&node.name], 1.0);
    rows.put("beelet_node_time_to_oom_seconds", &[], node.time_to_oom.map_or(f64::INFINITY, seconds));
    if let Some(available) = node.memory_available {
        rows.put("beelet_node_memory_available_bytes", &[], bytes(available));
    }
    if let Some(available) = node.allocatable_available {
        rows.put("beelet_allocatable_memory_available_bytes", &[], bytes(available));
    }
    rows.put("beelet_node_memory_pressure", &[], flag(node.memory_pressure));
    rows.put("beelet_node_disk_pressure", &[], flag(node.disk_pressure));
    rows.put("beelet_node_pid_pressure", &[], flag(node.pid_pressure));
    for (state, cpu) in [("busy", node.cpu), ("idle", node.cpu_idle)] {
        if let Some(cpu) = cpu {
            rows.put("beelet_node_cpu_cores", &[state], cores(cpu));
        }
    }
    rows.put("beelet_allocatable_cpu_cores", &[], cores(node.allocatable.cpu));
    rows.put("beelet_allocatable_memory_bytes", &[], bytes(node.allocatable.memory));
    rows.put("beelet_runtime_up", &[], flag(node.runtime_down.is_none()));
    let mut rejected: BTreeMap<&str, u32> = BTreeMap::new();
    for manifest in &picture.rejected {
        *rejected.entry(&manifest.origin).or_default() += 1;
    }
    for (origin, count) in rejected {
        rows.put("beelet_manifest_rejected", &[origin], f64::from(count));
    }
}

fn pod_rows(rows: &mut Rows, view: &PodView, now: Micros) {
    let (namespace, pod) = (view.spec.namespace.as_str(), view.spec.name.as_str());
    let key = [namespace, pod];
    for phase in [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed] {
        rows.put("beelet_pod_phase", &[namespace, pod, phase.as_str()], flag(phase == view.phase));
    }
    rows.put("beelet_pod_start_time_seconds", &key, seconds(view.since));
    let labels = [namespace, pod, health(view.health.state), &view.health.reason];
    rows.put("beelet_pod_health_state", &labels, 1.0);
    if view.reading.is_some() {
        rows.put("beelet_pod_time_to_oom_seconds", &key, view.time_to_oom.map_or(f64::INFINITY, seconds));
    }
    if let Some(growth) = view.memory_growth {
        rows.put("beelet_memory_growth_bytes_per_second", &key, growth as f64);
    }
    for rung in &view.rungs {
        rows.put("beelet_pod_rung", &[namespace, pod, rung.as_str()], 1.0);
    }
    if let Some(ports) = &view.listening {
        rows.put("beelet_pod_listening_ports", &key, ports.len() as f64);
    }
    rows.put("beelet_pod_resize_pending", &key, flag(!view.resize.is_empty()));
    telemetry::pod(rows, view, now);

    if let Some(reading) = &view.reading {
        telemetry::reading(rows, [namespace, pod, ""], reading);
    }
    for container in &view.containers {
        let key = [namespace, pod, container.name.as_str()];
        if let Some(reading) = &container.reading {
            telemetry::reading(rows, key, reading);
        }
        rows.put("beelet_container_cpu_burst_seconds", &key, seconds(container.burst));
        rows.put("beelet_container_restarts", &key, f64::from(container.restarts));
    }
}

pub(super) fn health(state: Health) -> &'static str {
    match state {
        Health::Unknown => "Unknown",
        Health::Healthy => "Healthy",
        Health::Suspect => "Suspect",
        Health::Unhealthy => "Unhealthy",
    }
}

fn running(rows: &mut Rows, picture: &Snapshot) {
    let (mut created, mut exited, mut running, mut pods) = (0_u32, 0_u32, 0_u32, 0_u32);
    for pod in &picture.pods {
        let mut runs = false;
        for container in &pod.containers {
            match &container.state {
                ContainerState::Running { .. } => {
                    running += 1;
                    runs = true;
                }
                ContainerState::Terminated(_) => exited += 1,
                ContainerState::Waiting { .. } if container.last.is_some() => exited += 1,
                ContainerState::Waiting { .. } if !container.id.is_empty() => created += 1,
                ContainerState::Waiting { .. } => {}
            }
        }
        pods += u32::from(runs);
    }
    rows.put("kubelet_running_pods", &[], f64::from(pods));
    for (state, count) in [("created", created), ("exited", exited), ("running", running)] {
        rows.put("kubelet_running_containers", &[state], f64::from(count));
    }
}

fn totals(rows: &mut Rows, totals: &Totals) {
    for ((rung, done), count) in &totals.rungs {
        rows.put("beelet_rung_moves_total", &[rung.as_str(), if *done { "done" } else { "would" }], *count as f64);
    }
    evictions::totals(rows, totals);
    for (scope, score) in &totals.forecasts {
        let outcomes = [
            ("true_positive", score.true_positive),
            ("false_positive", score.false_positive),
            ("false_negative", score.false_negative),
        ];
        for (outcome, count) in outcomes {
            rows.put("beelet_oom_forecasts_total", &[scope.as_str(), outcome], count as f64);
        }
        // There from the start, as its counters are: so few scopes there are.
        let bounds = score::LEADS.iter().map(|bound| Some(seconds(*bound))).chain([None]);
        let leads = cumulative(bounds.zip(score.leads), seconds(score.lead_sum));
        rows.row("beelet_oom_forecast_lead_seconds", &[scope.as_str()], Value::Histogram(leads));
    }
    for ((namespace, pod, container), count) in &totals.oom_kills {
        rows.put("beelet_oom_kills_total", &[namespace, pod, container], *count as f64);
    }
    for ((namespace, pod, container), kind, count) in &totals.exits {
        let (reason, value) = match kind {
            ExitKind::Code(code) => ("code", code.to_string()),
            ExitKind::Signal(signal) => ("signal", signal.to_string()),
        };
        rows.put("beelet_process_exits_total", &[namespace, pod, container, reason, &value], *count as f64);
    }
    for ((namespace, pod, container), kind, count) in &totals.process_exits {
        let (reason, value) = match kind {
            Some(ExitKind::Code(code)) => ("code", code.to_string()),
            Some(ExitKind::Signal(signal)) => ("signal", signal.to_string()),
            None => ("other", String::new()),
        };
        rows.put("beelet_process_ends_total", &[namespace, pod, container, reason, &value], *count as f64);
    }
    for ((namespace, pod, container), comm, count) in &totals.oom_kills_by_process {
        rows.put("beelet_oom_kills_by_process_total", &[namespace, pod, container, comm], *count as f64);
    }
    rows.put("beelet_series_forgotten_total", &[], totals.forgotten as f64);
    for ((namespace, pod, container), count) in &totals.restarts {
        rows.put("beelet_container_restarts_total", &[namespace, pod, container], *count as f64);
    }
    for ((action, ok), count) in &totals.actions {
        let result = if *ok { "success" } else { "failure" };
        rows.put("beelet_actions_total", &[action, result], *count as f64);
    }
    for (action, all, errors) in [
        ("start_sandbox", "kubelet_started_pods_total", "kubelet_started_pods_errors_total"),
        ("start_container", "kubelet_started_containers_total", "kubelet_started_containers_errors_total"),
    ] {
        let of = |wanted: bool| -> u64 {
            totals.actions.iter().filter(|((name, ok), _)| name == action && *ok == wanted).map(|(_, n)| n).sum()
        };
        rows.put(all, &[], (of(true) + of(false)) as f64);
        rows.put(errors, &[], of(false) as f64);
    }
    rows.put("beelet_illegal_transitions_total", &[], totals.illegal_transitions as f64);
    rows.put("beelet_orphaned_runtime_pods_total", &[], totals.orphans as f64);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::strict::{Families, Order};
    use super::super::{samples, samples_detail, strict};
    use super::*;
    use crate::report::scrapes::Endpoint;

    const OPEN: Bounds = Bounds { per_place: u64::MAX, whole: u64::MAX };

    fn metrics_of(published: &Published, agent: SelfReport, bounds: Bounds) -> Metrics {
        Metrics::new(published.clone(), AgentReport::new(agent), Scrapes::default(), bounds).unwrap()
    }

    fn text(metrics: &Metrics) -> String {
        let (out, written) = metrics.render(Format::Text);
        assert_eq!((written.dropped, written.misfits), (0, 0));
        String::from_utf8(out).unwrap()
    }

    fn text_of(picture: Snapshot) -> String {
        text(&metrics_of(&Published::new(picture), samples::agent(), Bounds::DEFAULT))
    }

    #[test]
    fn every_metric_of_the_table_is_filled_and_no_other() {
        let scrapes = Scrapes::default();
        scrapes.note(Endpoint::Summary, Duration::from_millis(3), 100, 10, 7);
        let mut rows = Rows::new(OPEN);
        render(&mut rows, &samples_detail::detailed_node(), &samples::agent(), &scrapes, process::read());
        assert!(rows.misfits.is_empty(), "not in the table, or other labels: {:?}", rows.misfits);
        let missing: Vec<_> = METRICS.iter().map(|m| m.name).filter(|n| !rows.by_name.contains_key(n)).collect();
        assert!(missing.is_empty(), "nothing fills {missing:?}");
    }

    #[test]
    fn the_text_has_pod_and_container_rows_that_do_not_count_twice() {
        let text = text_of(samples::busy_node());
        for line in [
            r#"beelet_cpu_ebpf_seconds_total{namespace="default",pod="web-node",container="web"} 12.5"#,
            r#"beelet_cpu_ebpf_seconds_total{namespace="default",pod="web-node",container=""} 13"#,
            r#"beelet_oom_kills_total{namespace="default",pod="gone",container="leak"} 2"#,
            r#"beelet_process_exits_total{namespace="default",pod="leak-node",container="leak",reason="signal",value="9"} 3"#,
            r#"beelet_process_ends_total{namespace="default",pod="leak-node",container="leak",reason="signal",value="9"} 4"#,
            r#"beelet_process_ends_total{namespace="default",pod="leak-node",container="leak",reason="other",value=""} 1"#,
            r#"beelet_oom_kills_by_process_total{namespace="default",pod="gone",container="leak",comm="leak"} 2"#,
            r#"beelet_series_forgotten_total 0"#,
            r#"kubelet_evictions{eviction_signal="memory.available"} 1"#,
            r#"kubelet_eviction_stats_age_seconds_bucket{eviction_signal="memory.available",le="0.005"} 1"#,
            r#"kubelet_eviction_stats_age_seconds_count{eviction_signal="memory.available"} 1"#,
            r#"beelet_eviction_freed_bytes_total{signal="memory.available"} 3.3554432e+08"#,
            r#"beelet_eviction_free_seconds_bucket{signal="memory.available",le="0.05"} 0"#,
            r#"beelet_eviction_free_seconds_bucket{signal="memory.available",le="0.1"} 1"#,
            r#"beelet_eviction_free_seconds_sum{signal="memory.available"} 0.06"#,
            r#"beelet_evictions_in_vain_total{signal="memory.available"} 0"#,
            r#"beelet_eviction_decided_total{signal="memory.available",by="aggressor"} 1"#,
            r#"beelet_eviction_decided_total{signal="memory.available",by="priority"} 0"#,
            r#"beelet_oom_forecasts_total{scope="kubepods",outcome="true_positive"} 3"#,
            r#"beelet_oom_forecasts_total{scope="kubepods",outcome="false_positive"} 2"#,
            r#"beelet_oom_forecasts_total{scope="kubepods",outcome="false_negative"} 1"#,
            r#"beelet_oom_forecasts_total{scope="node",outcome="false_negative"} 0"#,
            r#"beelet_oom_forecast_lead_seconds_bucket{scope="kubepods",le="0.25"} 0"#,
            r#"beelet_oom_forecast_lead_seconds_bucket{scope="kubepods",le="0.5"} 1"#,
            r#"beelet_oom_forecast_lead_seconds_bucket{scope="kubepods",le="30"} 2"#,
            r#"beelet_oom_forecast_lead_seconds_bucket{scope="kubepods",le="+Inf"} 3"#,
            r#"beelet_oom_forecast_lead_seconds_sum{scope="kubepods"} 75.4"#,
            r#"beelet_oom_forecast_lead_seconds_count{scope="node"} 0"#,
            r#"beelet_pod_health_state{namespace="default",pod="leak-node",state="Unhealthy",reason="OOMVictim"} 1"#,
            r#"kubelet_started_containers_total 5"#,
            r#"beelet_pod_time_to_oom_seconds{namespace="default",pod="leak-node"} 42"#,
        ] {
            assert!(text.lines().any(|l| l == line), "missing: {line}\nin:\n{text}");
        }
        assert!(!text.contains("\ncontainer_"), "these are at /metrics/cadvisor");
        let listening: Vec<&str> = text.lines().filter(|l| l.starts_with("beelet_pod_listening_ports")).collect();
        let known = r#"beelet_pod_listening_ports{namespace="default",pod="web-node"} 1"#;
        assert_eq!(listening, [known], "what nobody could tell is not 0");
    }

    #[test]
    fn details_are_written_and_what_never_happened_is_not() {
        let text = text_of(samples_detail::detailed_node());
        let web = r#"namespace="default",pod="web-node""#;
        for line in [
            format!(r#"beelet_runq_latency_seconds_bucket{{{web},container="web",le="1e-06"}} 0"#),
            format!(r#"beelet_runq_latency_seconds_bucket{{{web},container="web",le="4e-06"}} 9"#),
            format!(r#"beelet_runq_latency_seconds_bucket{{{web},container="web",le="4.194304"}} 9"#),
            format!(r#"beelet_runq_latency_seconds_bucket{{{web},container="web",le="+Inf"}} 10"#),
            format!(r#"beelet_runq_latency_seconds_sum{{{web},container="web"}} 5.000027"#),
            format!(r#"beelet_preempted_total{{{web},container="web",by="pod"}} 5"#),
            format!(r#"beelet_preempted_by_pod_total{{{web},by_namespace="default",by_pod="leak-node"}} 5"#),
            format!(r#"beelet_port_http_responses_total{{{web},port="80",code="4xx"}} 2"#),
            format!(r#"beelet_dns_answers_total{{{web},result="ok"}} 5"#),
            format!(r#"beelet_context_switches_total{{{web},container="web",kind="voluntary"}} 6"#),
            format!(r#"beelet_pod_detail_age_seconds{{{web}}} 5"#),
        ] {
            assert!(text.lines().any(|l| l == line), "missing: {line}\nin:\n{text}");
        }
        assert!(!text.contains(r#"code="1xx""#) && !text.contains(r#"kind="percpu""#), "{text}");
        assert!(!text.contains("beelet_runq_latency_seconds_bucket{namespace=\"default\",pod=\"leak-node\""), "{text}");
    }

    #[test]
    fn a_pod_that_is_gone_leaves_no_series() {
        let published = Published::new(samples::busy_node());
        let metrics = metrics_of(&published, SelfReport::default(), Bounds::DEFAULT);
        assert!(text(&metrics).contains("web-node"));
        published.publish(Snapshot { pods: Vec::new(), ..samples::busy_node() });
        let text = text(&metrics);
        assert!(!text.contains("web-node") && text.contains("beelet_oom_kills_total"), "{text}");
    }

    #[test]
    fn a_pod_and_its_successor_of_the_same_name_give_one_row_each() {
        let mut picture = samples::busy_node();
        let mut successor = (*picture.pods[0]).clone();
        Arc::make_mut(&mut successor.spec).uid = "2222".into();
        (successor.reading, successor.phase) = (None, Phase::Pending);
        picture.pods.push(successor.into());
        let text = text_of(picture);
        let mut seen = BTreeSet::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let series = line.rsplit_once(' ').unwrap().0;
            assert!(seen.insert(series), "twice: {series}");
        }
        assert_eq!(text.matches("beelet_pod_info{").count(), 3);
        assert!(text.contains(r#"beelet_pod_phase{namespace="default",pod="web-node",phase="Running"} 1"#));
    }

    fn parsed(metrics: &Metrics, format: Format) -> (Families, Written) {
        let (out, written) = metrics.render(format);
        let text = String::from_utf8(out).unwrap();
        (
            strict::parse_in(text.as_str(), format, Order::Any).unwrap_or_else(|why| panic!("{why}\nin:\n{text}")),
            written,
        )
    }

    #[test]
    fn both_formats_read_back_and_have_the_same_series() {
        let published = Published::new(samples_detail::detailed_node());
        let metrics = metrics_of(&published, samples::agent(), Bounds::DEFAULT);
        let (text, written) = parsed(&metrics, Format::Text);
        let (open, _) = parsed(&metrics, Format::OpenMetrics);
        assert_eq!((written.dropped, written.misfits), (0, 0));
        let series = |families: &Families| -> BTreeSet<(String, Vec<(String, String)>)> {
            families.values().flat_map(|f| &f.samples).map(|s| (s.name.clone(), s.labels.clone())).collect()
        };
        assert_eq!(series(&text), series(&open));
        assert_eq!(series(&text).len() as u64, written.series, "what is written is what is counted");
        for (name, family) in &text {
            let def = super::super::table::find(name).unwrap();
            assert_eq!(family.kind, def.kind.as_str(), "{name}");
        }
        // A counter beside a gauge of the same stem cannot be both in OpenMetrics.
        let unknown: Vec<&String> = open.iter().filter(|(_, f)| f.kind == "unknown").map(|(name, _)| name).collect();
        assert_eq!(unknown, ["beelet_container_restarts_total", "kubelet_evictions"]);
    }

    #[test]
    fn histograms_are_cumulative_and_end_in_their_count() {
        let published = Published::new(samples_detail::detailed_node());
        let metrics = metrics_of(&published, samples::agent(), Bounds::DEFAULT);
        for format in [Format::Text, Format::OpenMetrics] {
            let (families, _) = parsed(&metrics, format);
            let mut seen = 0;
            for (name, family) in families.iter().filter(|(_, f)| f.kind == "histogram") {
                let buckets = format!("{name}_bucket");
                for one in family.samples.split_inclusive(|s| s.name == format!("{name}_count")) {
                    let (bounds, rest) = one.split_at(one.len() - 2);
                    assert!(bounds.iter().all(|s| s.name == buckets), "{name}");
                    assert!(bounds.is_sorted_by(|a, b| a.value <= b.value), "{name}");
                    let le = |s: &strict::Sample| s.label("le").replace("+Inf", "inf").parse::<f64>().unwrap();
                    assert!(bounds.is_sorted_by(|a, b| le(a) < le(b)), "{name}");
                    assert_eq!(bounds[bounds.len() - 1].label("le"), "+Inf");
                    assert_eq!(
                        (rest[0].name.as_str(), rest[1].name.as_str()),
                        (&*format!("{name}_sum"), &*format!("{name}_count"))
                    );
                    assert_eq!(bounds[bounds.len() - 1].value, rest[1].value, "{name}");
                    seen += 1;
                }
            }
            assert!(seen > 8, "{seen} histograms");
        }
    }

    #[test]
    fn one_pod_with_too_many_series_of_a_metric_loses_those_only() {
        let all = parsed(
            &metrics_of(&Published::new(samples_detail::dropping_node(30)), samples::agent(), OPEN),
            Format::Text,
        )
        .0;
        let bounds = Bounds { per_place: 20, whole: u64::MAX };
        let metrics = metrics_of(&Published::new(samples_detail::dropping_node(30)), samples::agent(), bounds);
        for format in [Format::Text, Format::OpenMetrics] {
            let (some, written) = parsed(&metrics, format);
            assert_eq!(some["beelet_network_drops_total"].samples.len(), 20);
            // A histogram is whole or not there: one of a place fits.
            let missing: usize =
                all.iter().map(|(name, f)| f.samples.len() - some.get(name).map_or(0, |f| f.samples.len())).sum();
            assert!(missing >= 10, "{missing}");
            assert_eq!(written.dropped, missing as u64, "each time anew");
            assert!(some["beelet_disk_latency_seconds"].samples.len() % 15 == 0);
            assert!(some.keys().eq(all.keys()), "no metric is lost as a whole");
        }
    }

    #[test]
    fn the_whole_answer_is_bounded_and_the_agent_still_tells_of_itself() {
        let published = Published::new(samples_detail::dropping_node(30));
        let (all, everything) = parsed(&metrics_of(&published, samples::agent(), OPEN), Format::Text);
        let bounds = Bounds { per_place: u64::MAX, whole: 120 };
        let (some, written) = parsed(&metrics_of(&published, samples::agent(), bounds), Format::Text);
        assert!((106..=120).contains(&written.series), "{written:?}");
        assert_eq!(written.series + written.dropped, everything.series);
        for name in ["beelet_series_dropped_total", "beelet_build_info", "process_threads"] {
            assert_eq!(some[name].samples.len(), all[name].samples.len(), "{name}");
        }
    }
}
