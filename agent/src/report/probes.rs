//! `/metrics/probes`: what containers answered, by the stock kubelet's names.
//!
//! **Properties** (tested). A series is there from the first answer of its kind on, and goes with its pod. Answers that are errors are
//! not counted, and only the time of successes is, as upstream (pkg/kubelet/prober/worker.go, release 1.36).

use beelet_core::probe::{BUCKETS, ProbeCounts};
use beelet_core::snapshot::Snapshot;

use super::dropin_table::PROBES;
use super::exposition::{Caps, Format, LabelSets, Value, Writer, Written};
use super::metrics::{cumulative, one_per_name, seconds};

/// The picture as text.
#[must_use]
pub fn render(picture: &Snapshot, caps: Caps, format: Format) -> (Vec<u8>, Written) {
    let mut times = LabelSets::new(&["container", "namespace", "pod", "probe_type"], caps);
    let mut totals = LabelSets::new(&["container", "namespace", "pod", "pod_uid", "probe_type", "result"], caps);
    let (mut took, mut counted) = (Vec::new(), Vec::new());
    for pod in one_per_name(picture) {
        let (namespace, name, uid) = (&pod.spec.namespace, &pod.spec.name, pod.spec.uid.as_str());
        for container in &pod.containers {
            for (kind, counts) in &container.probes {
                let kind = kind.as_str();
                if counts.successful > 0
                    && let Some(row) = times.add(&[&container.name, namespace, name, kind])
                {
                    took.push((row, histogram(counts)));
                }
                for (result, count) in [("failed", counts.failed), ("successful", counts.successful)] {
                    if count > 0
                        && let Some(row) = totals.add(&[&container.name, namespace, name, uid, kind, result])
                    {
                        counted.push((row, count));
                    }
                }
            }
        }
    }
    let mut writer = Writer::new(PROBES, format, 256 * (took.len() * 14 + counted.len()));
    let mut family = writer.family("prober_probe_duration_seconds", &times);
    for (row, value) in &took {
        family.histogram(*row, &[], value, None);
    }
    let mut family = writer.family("prober_probe_total", &totals);
    for (row, count) in counted {
        family.sample(row, &[], Value::Count(count), None);
    }
    writer.finish()
}

fn histogram(counts: &ProbeCounts) -> prometheus::proto::Histogram {
    let within: u64 = counts.buckets.iter().sum();
    let bounded = BUCKETS.iter().zip(counts.buckets).map(|(bound, count)| (Some(seconds(*bound)), count));
    cumulative(bounded.chain([(None, counts.successful - within)]), seconds(counts.time))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use beelet_core::spec::ProbeKind;
    use beelet_core::units::Micros;

    use super::super::{samples, strict};
    use super::*;

    #[test]
    fn a5_7_counts_are_served_by_the_kubelets_names() {
        let mut picture = samples::busy_node();
        for format in [Format::Text, Format::OpenMetrics] {
            let (empty, _) = render(&picture, Caps::default(), format);
            assert!(!String::from_utf8(empty).expect("text").contains("prober"), "nobody was asked");
        }
        let pod = Arc::make_mut(&mut picture.pods[0]);
        let mut buckets = [0; BUCKETS.len()];
        (buckets[0], buckets[4]) = (2, 1);
        let counts = ProbeCounts { successful: 4, failed: 7, time: Micros::millis(12_250), buckets };
        pod.containers[0].probes = vec![
            (ProbeKind::Readiness, ProbeCounts { failed: 1, ..ProbeCounts::default() }),
            (ProbeKind::Liveness, counts),
        ];
        let (name, uid, container) = (pod.spec.name.clone(), pod.spec.uid.to_string(), pod.containers[0].name.clone());
        let (text, written) = render(&picture, Caps::default(), Format::Text);
        let text = String::from_utf8(text).expect("text");
        strict::parse(&text, Format::Text).expect("a scrape");
        assert_eq!((written.misfits, written.dropped), (0, 0));
        let of = format!("container=\"{container}\",namespace=\"{}\",pod=\"{name}\"", pod_namespace(&picture));
        for line in [
            format!("prober_probe_total{{{of},pod_uid=\"{uid}\",probe_type=\"Readiness\",result=\"failed\"}} 1"),
            format!("prober_probe_total{{{of},pod_uid=\"{uid}\",probe_type=\"Liveness\",result=\"failed\"}} 7"),
            format!("prober_probe_total{{{of},pod_uid=\"{uid}\",probe_type=\"Liveness\",result=\"successful\"}} 4"),
            format!("prober_probe_duration_seconds_bucket{{{of},probe_type=\"Liveness\",le=\"0.005\"}} 2"),
            format!("prober_probe_duration_seconds_bucket{{{of},probe_type=\"Liveness\",le=\"0.1\"}} 3"),
            format!("prober_probe_duration_seconds_bucket{{{of},probe_type=\"Liveness\",le=\"10\"}} 3"),
            format!("prober_probe_duration_seconds_bucket{{{of},probe_type=\"Liveness\",le=\"+Inf\"}} 4"),
            format!("prober_probe_duration_seconds_sum{{{of},probe_type=\"Liveness\"}} 12.25"),
            format!("prober_probe_duration_seconds_count{{{of},probe_type=\"Liveness\"}} 4"),
        ] {
            assert!(text.contains(&line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("Readiness\",result=\"successful"), "{text}");
        assert!(!text.contains("duration_seconds_count{") || !text.contains("probe_type=\"Readiness\"} "), "{text}");
    }

    fn pod_namespace(picture: &Snapshot) -> &str {
        &picture.pods[0].spec.namespace
    }
}
