//! `/metrics/resource`: CPU and memory of containers, pods and the node, for metrics-server and the autoscalers.
//!
//! **Problem.** metrics-server takes rates over the timestamps in two answers: a value that is newer than its timestamp is a wrong
//! rate, and a pod without one of its values is no pod to it. **Approach.** Each sample carries the time of the reading behind it;
//! names, labels and rules are those of the stock kubelet (FAMILIES.md beside the recorded answers).
//!
//! **Properties** (tested). Only running containers, and pods with one; no sandboxes. A usage of 0 is shown. What could not be read
//! is left out. Families and labels are those of the recorded answers.

use beelet_core::sample::CgroupReading;
use beelet_core::snapshot::{ContainerState, PodView, Snapshot};
use beelet_core::units::{Bytes, Micros};

use super::cadvisor::{is_blind, is_running, moment};
use super::dropin_table::RESOURCE;
use super::exposition::{Caps, Format, LabelSets, RowId, Value, Writer, Written};
use super::metrics::one_per_name;

/// A value, and when it was read.
type Read = Option<(Value, Option<Micros>)>;

/// A reading of a cgroup, with what else there is to say of a container.
struct Item<'a> {
    reading: &'a CgroupReading,
    at: Micros,
    started: Option<Micros>,
}

impl<'a> Item<'a> {
    fn of(reading: &'a CgroupReading, started: Option<Micros>, picture: &Snapshot) -> Self {
        Self { reading, at: moment(reading.at, picture.at), started }
    }

    fn cpu(&self) -> Read {
        Some((self.reading.cpu?.best()?.into(), Some(self.at)))
    }

    fn working_set(&self) -> Read {
        Some((self.reading.memory?.working_set().into(), Some(self.at)))
    }

    fn swap(&self) -> Read {
        Some((self.reading.memory?.more.swap?.into(), Some(self.at)))
    }

    fn swap_limit(&self) -> Read {
        Some((self.reading.memory?.more.swap_limit?.into(), Some(self.at)))
    }

    fn start(&self) -> Read {
        Some((self.started?.into(), None))
    }
}

/// The picture as text.
#[must_use]
pub fn render(picture: &Snapshot, caps: Caps, format: Format) -> (Vec<u8>, Written) {
    let pods: Vec<&PodView> = one_per_name(picture).filter(|pod| pod.containers.iter().any(is_running)).collect();
    let mut container_sets = LabelSets::new(&["container", "namespace", "pod"], caps);
    let mut pod_sets = LabelSets::new(&["namespace", "pod"], caps);
    let (mut containers, mut whole) = (Vec::new(), Vec::new());
    for pod in pods {
        let spec = &pod.spec;
        if let Some(reading) = &pod.reading
            && let Some(row) = pod_sets.add(&[&spec.namespace, &spec.name])
        {
            whole.push((row, Item::of(reading, None, picture)));
        }
        for container in &pod.containers {
            if let ContainerState::Running { started } = container.state
                && let Some(reading) = &container.reading
                && let Some(row) = container_sets.add(&[&container.name, &spec.namespace, &spec.name])
            {
                containers.push((row, Item::of(reading, Some(started), picture)));
            }
        }
    }
    let none = LabelSets::none();
    let mut writer = Writer::new(RESOURCE, format, 256 * (containers.len() * 5 + whole.len() * 3 + 8));
    let (in_containers, in_pods) = ((&container_sets, &containers[..]), (&pod_sets, &whole[..]));
    each(&mut writer, "container_cpu_usage_seconds_total", in_containers, Item::cpu);
    each(&mut writer, "container_memory_working_set_bytes", in_containers, Item::working_set);
    each(&mut writer, "container_start_time_seconds", in_containers, Item::start);
    each(&mut writer, "container_swap_limit_bytes", in_containers, Item::swap_limit);
    each(&mut writer, "container_swap_usage_bytes", in_containers, Item::swap);
    node(&mut writer, &none, picture);
    each(&mut writer, "pod_cpu_usage_seconds_total", in_pods, Item::cpu);
    each(&mut writer, "pod_memory_working_set_bytes", in_pods, Item::working_set);
    each(&mut writer, "pod_swap_usage_bytes", in_pods, Item::swap);
    let failed = u64::from(is_blind(picture));
    writer.family("resource_scrape_error", &none).sample(RowId::ONLY, &[], failed, None);
    writer.finish()
}

/// A family with a sample for each item that knows its value.
fn each<'a>(writer: &mut Writer, name: &str, rows: (&LabelSets, &[(RowId, Item<'a>)]), value: fn(&Item<'a>) -> Read) {
    let mut family = writer.family(name, rows.0);
    for (row, item) in rows.1 {
        if let Some((value, at)) = value(item) {
            family.sample(*row, &[], value, at);
        }
    }
}

fn node(writer: &mut Writer, none: &LabelSets, picture: &Snapshot) {
    let mut one = |name: &str, value: Option<Value>, at: Micros| {
        if let Some(value) = value {
            writer.family(name, none).sample(RowId::ONLY, &[], value, Some(at));
        }
    };
    let (reading, detail, now) = (picture.node.reading, picture.node.detail.as_deref(), picture.at);
    let at = |read: Option<Micros>| read.map_or(now.wall, |at| moment(at, now));
    one("node_cpu_usage_seconds_total", reading.map(|r| r.cpu_busy.into()), at(picture.node.cpu_at()));
    one(
        "node_memory_working_set_bytes",
        picture.node.memory_working_set().map(Value::from),
        at(picture.node.memory_at()),
    );
    let swap: Option<Bytes> = detail.and_then(|d| d.swap).map(|(used, _)| used);
    one("node_swap_usage_bytes", swap.map(Value::from), detail.map_or(now.wall, |d| moment(d.at, now)));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use beelet_core::snapshot::PodView;
    use beelet_core::units::Bytes;

    use super::*;
    use crate::report::cadvisor::tests::recorded;
    use crate::report::strict::{self, Families, Sample};
    use crate::report::{samples, samples_dropin};

    fn ours(picture: &Snapshot) -> Families {
        let (out, written) = render(picture, Caps::default(), Format::Text);
        assert_eq!((written.dropped, written.misfits), (0, 0));
        strict::parse(&String::from_utf8(out).unwrap(), Format::Text).unwrap()
    }

    #[test]
    fn it_is_the_stock_kubelets() {
        let ours = ours(&samples_dropin::recorded_node());
        assert_eq!(
            ours.keys().map(String::as_str).collect::<Vec<_>>(),
            RESOURCE.iter().map(|m| m.name).collect::<Vec<_>>()
        );
        let shape = |family: &strict::Family| {
            let samples = &family.samples;
            let labels: BTreeSet<Vec<String>> =
                samples.iter().map(|s| s.label_names().iter().map(|&n| n.to_owned()).collect()).collect();
            (family.kind.clone(), labels, samples.iter().map(|s| s.at.is_some()).collect::<BTreeSet<_>>())
        };
        let mut seen = BTreeSet::new();
        for (path, text) in recorded("metrics-resource.txt") {
            for (name, theirs) in strict::parse(&text, Format::Text).unwrap() {
                let family = ours.get(&name).unwrap_or_else(|| panic!("no {name}"));
                assert_eq!(shape(family), shape(&theirs), "{name} in {}", path.display());
                seen.insert(name);
            }
        }
        assert_eq!(seen.len(), ours.len(), "all were recorded");
    }

    #[test]
    fn values_have_the_time_of_their_reading_and_zero_is_shown() {
        let mut picture = samples_dropin::recorded_node();
        let web = Arc::make_mut(&mut picture.pods[2]);
        let reading = web.containers[0].reading.as_mut().unwrap();
        (reading.at, reading.cpu.as_mut().unwrap().usage) = (Micros::secs(991), Some(Micros::ZERO));
        Arc::make_mut(picture.node.detail.as_mut().unwrap()).memory_working_set = Some(Bytes::gib(1));
        let families = ours(&picture);
        let of = |name: &str| {
            let samples = &families[name].samples;
            let is_web = |s: &&Sample| (s.label("pod"), s.label("container")) == ("web-node", "main");
            let sample = samples.iter().find(is_web).unwrap();
            (sample.value, sample.at)
        };
        let read = Some((samples::WALL - Micros::secs(9)).get() / 1_000);
        assert_eq!(of("container_cpu_usage_seconds_total"), (0.0, read));
        assert_eq!(of("container_memory_working_set_bytes"), (Bytes::mib(60 + 501 - 10).get() as f64, read));
        assert_eq!(of("container_start_time_seconds").1, None);
        let cpu = families["node_cpu_usage_seconds_total"].samples[0].at;
        assert_eq!(cpu, Some((samples::WALL - Micros::millis(700)).get() / 1_000));
        let details = Some((samples::WALL - Micros::secs(5)).get() / 1_000);
        assert_eq!(families["node_memory_working_set_bytes"].samples[0].at, details);
    }

    #[test]
    fn only_what_runs_is_shown() {
        let families = ours(&samples::busy_node());
        let pods: Vec<&str> = families["pod_cpu_usage_seconds_total"].samples.iter().map(|s| s.label("pod")).collect();
        assert_eq!(pods, ["web-node"], "the other one waits");
        let containers = &families["container_cpu_usage_seconds_total"].samples;
        assert_eq!(containers.len(), 1);
        assert_eq!(families["resource_scrape_error"].samples[0].value, 1.0, "the node was never read");
    }

    #[test]
    fn a_pod_and_its_successor_of_the_same_name_are_one() {
        let mut picture = samples_dropin::recorded_node();
        let mut again = PodView::clone(&picture.pods[2]);
        Arc::make_mut(&mut again.spec).uid = "another".into();
        picture.pods.push(Arc::new(again));
        assert_eq!(ours(&picture)["pod_cpu_usage_seconds_total"].samples.len(), 3);
    }
}
