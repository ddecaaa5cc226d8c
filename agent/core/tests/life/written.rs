//! Pods with written files: what changes in place reaches them.

use beelet_core::spec::{DownwardFile, DownwardValue, Part, Volume, VolumeKind, Written, WrittenKind};

use super::*;

/// A pod that tells itself its labels.
fn telling() -> PodSpec {
    let file = DownwardFile {
        path: "labels".to_owned(),
        mode: None,
        value: DownwardValue::Field("metadata.labels".to_owned()),
    };
    let parts = vec![Part::Downward(vec![file])];
    let kind = VolumeKind::Written(Written { kind: WrittenKind::DownwardApi, mode: 0o644, parts });
    let mut pod = pod("a");
    pod.volumes = vec![Volume { name: "info".to_owned(), kind }];
    pod.containers[0].resources.cpu_request = Some(MilliCpu(100));
    pod
}

/// What the pod's files were told to say: its label, and what its container asks for.
fn told(node: &Node) -> Vec<(Option<&str>, u64)> {
    let refreshed = node.actions.iter().filter_map(|action| match action {
        Action::Refresh(spec) => Some(spec),
        _ => None,
    });
    let cpu = |spec: &PodSpec| spec.containers[0].resources.cpu_request.map_or(0, MilliCpu::get);
    refreshed.map(|spec| (spec.labels.get("k").map(String::as_str), cpu(spec))).collect()
}

#[test]
fn a7_4c_labels_change_in_place_and_the_files_are_refreshed() {
    let mut node = ready_node();
    let mut pod = telling();
    node.want(&[&pod]);
    assert_eq!(node.view("a").phase, Phase::Running);
    assert_eq!(told(&node), []);
    node.done.clear();

    pod.labels.insert("k".to_owned(), "1".to_owned());
    node.want(&[&pod]);
    assert_eq!((told(&node), node.done.len()), (vec![(Some("1"), 100)], 0), "and nothing is stopped");
    assert_eq!(node.view("a").spec.labels, pod.labels);
    node.want(&[&pod]);
    assert_eq!(told(&node).len(), 1, "once");

    pod.containers[0].resources.cpu_request = Some(MilliCpu(200));
    node.want(&[&pod]);
    assert_eq!(node.done, ["resize"]);
    assert_eq!(told(&node).last(), Some(&(Some("1"), 200)), "when they were given");

    pod.containers[0].resources.cpu_request = Some(MilliCpu(200_000));
    node.want(&[&pod]);
    assert!(node.view("a").resize.starts_with("Infeasible: "));
    assert_eq!(told(&node).last(), Some(&(Some("1"), 200)), "what it cannot have is not told");

    pod.containers[0].image = "other".to_owned();
    node.want(&[&pod]);
    assert!(node.done.iter().any(|done| done == "cleanup"), "another image is another pod: {:?}", node.done);
}

#[test]
fn a7_4e_pods_without_written_files_are_not_refreshed() {
    let mut node = ready_node();
    let mut pod = pod("a");
    node.want(&[&pod]);
    pod.labels.insert("k".to_owned(), "1".to_owned());
    node.want(&[&pod]);
    assert_eq!(told(&node), []);
}
