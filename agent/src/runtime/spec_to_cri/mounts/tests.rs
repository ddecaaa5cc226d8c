//! What a container mounts: tables.

use beelet_core::event::LinuxResources;
use beelet_core::security::RuntimeFeatures;
use beelet_core::spec::{
    EnvValue, EnvVar, Mount, PodSpec, Propagation, RecursiveReadOnly, SubPath, Volume, VolumeKind,
};
use beelet_proto::cri::MountPropagation;

use super::super::tests::{changed, container, node, start};
use super::*;
use crate::runtime::names;
use crate::runtime::spec_to_cri::container_config;

fn mount(volume: &str, path: &str) -> Mount {
    Mount { volume: volume.to_owned(), path: path.to_owned(), read_only: volume == "h", ..Mount::default() }
}

/// A pod with an emptyDir `e` and a hostPath `h`.
fn mounting(mounts: Vec<Mount>) -> PodSpec {
    changed(|s| {
        s.volumes = vec![
            Volume { name: "e".to_owned(), kind: VolumeKind::EmptyDir { memory: false, size_limit: None } },
            Volume {
                name: "h".to_owned(),
                kind: VolumeKind::HostPath { path: "/srv".to_owned(), kind: String::new() },
            },
        ];
        s.containers[0].mounts = mounts;
    })
}

#[test]
fn a7_10a_a9_3a_a4_18a_volumes_hosts_and_termination_log_are_mounted() {
    let mut spec = mounting(vec![mount("e", "/data"), mount("h", "/host")]);
    let mounts = |spec: &PodSpec| -> Vec<(String, String, bool)> {
        let mounts = container(spec, None).expect("a config").mounts.into_iter();
        mounts.map(|m| (m.container_path, m.host_path, m.readonly)).collect()
    };
    let entry = |inside: &str, outside: &str, read_only| (inside.to_owned(), outside.to_owned(), read_only);
    let volumes =
        [entry("/data", "/root/pods/u1/volumes/kubernetes.io~empty-dir/e", false), entry("/host", "/srv", true)];
    let hosts = entry("/etc/hosts", "/root/pods/u1/etc-hosts", false);
    let last_words = entry("/dev/termination-log", "/root/pods/u1/containers/c/2", false);
    assert_eq!(mounts(&spec), [&volumes[..], &[hosts, last_words.clone()]].concat());

    spec.containers[0].mounts.push(mount("h", "/etc/hosts/"));
    let own = entry("/etc/hosts/", "/srv", true);
    assert_eq!(mounts(&spec), [&volumes[..], &[own, last_words]].concat(), "the pod's own comes first");

    spec.containers[0].mounts.push(mount("none", "/x"));
    let error = container(&spec, None).expect_err("no such volume");
    assert_eq!(error, SpecError::NoVolume { container: "c".to_owned(), volume: "none".to_owned() });
}

#[test]
fn a7_8a_only_what_was_opened_is_mounted() {
    let spec = mounting(vec![Mount { sub_path: SubPath::Path("a".to_owned()), ..mount("e", "/data") }]);
    let linux = LinuxResources::default();
    let config = |sources: &[std::path::PathBuf]| {
        let start = ContainerStart { sources, ..start(&spec, &linux) };
        container_config(&node(), &start, None, &Given::default(), RuntimeFeatures::default())
    };
    let place = "/root/pods/u1/volume-subpaths/e/c/0";
    assert_eq!(config(&[place.into()]).expect("a config").mounts[0].host_path, place);
    let error = config(&[]).expect_err("the whole volume is never taken for a part of it");
    assert_eq!(error, SpecError::NoVolume { container: "c".to_owned(), volume: "e".to_owned() });
}

#[test]
fn a7_8b_sub_paths_come_from_the_containers_variables() {
    let of = |text: &str| {
        let whole = mount("e", "/whole");
        let part = Mount { sub_path: SubPath::Path("$(A)".to_owned()), ..mount("e", "/part") };
        let expr = Mount { sub_path: SubPath::Expr(text.to_owned()), ..mount("e", "/expr") };
        let mut spec = mounting(vec![whole, part, expr]);
        let variable = |name: &str, value: EnvValue| EnvVar { name: name.to_owned(), value };
        let literal = |text: &str| EnvValue::Literal(text.to_owned());
        spec.containers[0].env = vec![
            variable("POD", EnvValue::Field("metadata.name".to_owned())),
            variable("A", literal("in/$(POD)")),
            variable("UP", literal("..")),
            variable("SLASH", literal("/etc")),
            variable("EMPTY", literal("")),
        ];
        sub_paths(&node(), &start(&spec, &LinuxResources::default()), &Given::default())
            .map_err(|error| error.to_string())
    };
    let three = |last: &str| Ok(vec![String::new(), "$(A)".to_owned(), last.to_owned()]);
    assert_eq!(of("$(A)/x"), three("in/p/x"));
    assert_eq!(of("$$(A)"), three("$(A)"));
    let up = |path: &str| Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    assert_eq!(of("$(UP)"), up(".."));
    assert_eq!(of("$(A)/$(UP)/$(UP)/x"), up("in/p/../../x"));
    assert_eq!(of("$(SLASH)"), Err("error SubPath `/etc` must not be an absolute path".to_owned()));
    assert_eq!(of("$(NONE)/$(EMPTY)/$(A)"), Err("missing value for EMPTY, NONE".to_owned()));
}

#[test]
fn a7_10b_propagation_is_what_the_manifest_says() {
    for (propagation, expected) in [
        (Propagation::None, MountPropagation::PropagationPrivate),
        (Propagation::HostToContainer, MountPropagation::PropagationHostToContainer),
        (Propagation::Bidirectional, MountPropagation::PropagationBidirectional),
    ] {
        let spec = mounting(vec![Mount { propagation, ..mount("e", "/data") }]);
        assert_eq!(container(&spec, None).expect("a config").mounts[0].propagation(), expected);
    }
}

#[test]
fn a7_10c_recursive_read_only_needs_a_runtime_that_knows_it() {
    use RecursiveReadOnly::{Disabled, Enabled, IfPossible};
    let missing = "failed to resolve recursive read-only mode: volume \"h\" requested recursive read-only mode, but it is not \
                   supported by the runtime";
    for (recursive_read_only, asks, without, with) in [
        (Disabled, false, Ok(false), Ok(false)),
        (IfPossible, true, Ok(false), Ok(true)),
        (Enabled, true, Err(missing.to_owned()), Ok(true)),
    ] {
        let spec = mounting(vec![Mount { recursive_read_only, ..mount("h", "/host") }]);
        assert_eq!(wants_recursive_read_only(&spec.containers[0]), asks);
        let of = |recursive_read_only| {
            let (linux, sources) = (LinuxResources::default(), ["/srv".into()]);
            let start = ContainerStart { sources: &sources, ..start(&spec, &linux) };
            let runtime = RuntimeFeatures { recursive_read_only, ..RuntimeFeatures::default() };
            let config = container_config(&node(), &start, None, &Given::default(), runtime)
                .map_err(|error| error.to_string())?;
            Ok(config.mounts[0].recursive_read_only)
        };
        assert_eq!((of(false), of(true)), (without, with), "{recursive_read_only:?}");
    }
}

#[test]
fn a_mount_without_these_fields_reads_and_hashes_as_before_they_were_there() {
    let text = serde_json::to_string(&mount("e", "/e")).expect("JSON");
    assert_eq!(text, r#"{"volume":"e","path":"/e","read_only":false}"#);
    assert_eq!(serde_json::from_str::<Mount>(&text).expect("a mount"), mount("e", "/e"));
    let hash = |spec: &PodSpec| container(spec, None).expect("a config").annotations[names::CONTAINER_HASH].clone();
    let part = Mount { sub_path: SubPath::Path("a".to_owned()), ..mount("e", "/e") };
    assert_ne!(hash(&mounting(vec![part])), hash(&mounting(vec![mount("e", "/e")])));
}
