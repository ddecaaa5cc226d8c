//! Manifests: any bytes are pods or errors; an error names the field or the line, and says something; the same bytes give the same
//! pods; a pod that is written as JSON and read again is the same pod; no name in a pod leads out of the folders it is to be in.

use std::path::{Component, Path};

use beelet::runtime::paths;
use beelet::sources::manifest::{ManifestError, Parsed, parse};
use beelet_core::spec::{PodSpec, VolumeKind};

const ORIGIN: &str = "/pods/fuzz.yaml";
const NODE: &str = "node-1";
/// What the kubelet adds to a pod's annotations.
const ADDED: [&str; 2] = ["kubernetes.io/config.hash", "kubernetes.io/config.source"];

pub(super) fn check(data: &[u8]) {
    let pods = parse(data, ORIGIN, NODE);
    assert_eq!(pods, parse(data, ORIGIN, NODE), "the same bytes, other pods");
    for pod in &pods {
        match pod {
            Ok(parsed) => accepted(parsed),
            Err(error) => refused(error),
        }
    }
}

fn refused(error: &ManifestError) {
    let said = error.to_string();
    let fault = &error.fault;
    assert!(fault.problem.len() > 3, "nothing is said: {said:?}");
    // A document that is none has no field; then the line is told, if it is not the whole that is empty or too large.
    assert!(
        !fault.path.is_empty() || fault.line > 0 || fault.problem.starts_with("the file"),
        "neither a field nor a line: {said:?}"
    );
    assert!(said.starts_with(&fault.path) && said.ends_with(&fault.problem), "{said:?}");
    let told = error.rejected(ORIGIN);
    assert_eq!((told.origin.as_str(), told.error.as_str()), (ORIGIN, said.as_str()));
}

fn accepted(parsed: &Parsed) {
    let spec = &*parsed.spec;
    assert!(!spec.containers.is_empty() && !spec.uid.as_str().is_empty());
    assert!(spec.name.ends_with(NODE), "{}", spec.name);
    for told in &spec.left_out {
        assert!(told.split_once(": ").is_some_and(|(field, why)| !field.contains(' ') && !why.is_empty()), "{told:?}");
    }
    places(spec);

    let mut pod = (*parsed.pod).clone();
    let name = spec.name.trim_end_matches(NODE).strip_suffix('-').expect("the suffix of the node").to_owned();
    pod.metadata.name = Some(name);
    let by_hand = spec.left_out.iter().any(|told| told.starts_with("metadata.uid"));
    if !by_hand {
        pod.metadata.uid = None;
    }
    pod.metadata.annotations.get_or_insert_default().retain(|key, _| !ADDED.contains(&key.as_str()));
    let json = serde_json::to_string(&pod).expect("a pod as JSON");
    let again = parse(json.as_bytes(), ORIGIN, NODE).remove(0).unwrap_or_else(|e| panic!("{e}\n{json}"));
    // An empty field and none are the same pod and not the same text, and where the node's name was given it is another text.
    let mut other = (*again.spec).clone();
    let annotation = |spec: &PodSpec| spec.annotations.get(ADDED[0]).cloned().unwrap_or_default();
    assert_eq!(annotation(&other), other.uid.as_str());
    other.uid = spec.uid.clone();
    other.annotations.insert(ADDED[0].to_owned(), annotation(spec));
    other.left_out.clone_from(&spec.left_out);
    assert_eq!(&other, spec, "{json}");
}

/// All that is made for a pod is in its folders.
fn places(spec: &PodSpec) {
    let (root, logs) = (Path::new("/root"), Path::new("/logs"));
    let below = |path: &Path, folder: &Path, deep: usize| {
        let rest = path.strip_prefix(folder).unwrap_or_else(|_| panic!("{} is out", path.display()));
        let plain = rest.components().all(|part| matches!(part, Component::Normal(name) if name.len() <= 255));
        assert!(plain && rest.components().count() == deep, "{} leads elsewhere", path.display());
        assert!(!path.to_string_lossy().contains('\0'));
    };
    below(&paths::pod_dir(root, &spec.uid), &root.join("pods"), 1);
    below(&paths::mark(root, &spec.uid), root, 2);
    below(&paths::log_dir(logs, spec), logs, 1);
    for container in spec.all_containers() {
        below(&paths::termination_log(root, &spec.uid, &container.name, 7), &paths::pod_dir(root, &spec.uid), 3);
        below(&paths::log_dir(logs, spec).join(paths::log_path(&container.name, 7)), &paths::log_dir(logs, spec), 2);
    }
    for volume in &spec.volumes {
        match &volume.kind {
            VolumeKind::EmptyDir { .. } | VolumeKind::Written(_) => {
                below(&paths::volume(root, &spec.uid, volume), &paths::pod_dir(root, &spec.uid), 3);
            }
            VolumeKind::HostPath { path, .. } => {
                let path = Path::new(path);
                let up = path.components().any(|part| matches!(part, Component::ParentDir));
                assert!(path.is_absolute() && !up, "a hostPath of {}", path.display());
            }
        }
    }
}
