use proptest::prelude::*;

use super::*;
use crate::spec::{DownwardFile, StorageResources, WrittenKind};

fn pod() -> PodSpec {
    let mut spec = PodSpec::unknown("u1".into());
    spec.name = "web".to_owned();
    spec.labels = [("b", "2"), ("a", "one \"1\"\n\u{1}é\u{301}\u{feff}\u{10ffff}\\'\u{7f}")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let mut main = ContainerSpec::unknown("main");
    main.resources.cpu_request = Some(MilliCpu(250));
    main.resources.cpu_limit = Some(MilliCpu(1_500));
    main.resources.memory_limit = Some(Bytes(3 << 20));
    main.storage = StorageResources { request: Some(Bytes(1_025)), limit: None };
    spec.containers = vec![main, ContainerSpec::unknown("bare")];
    spec.init_containers = vec![ContainerSpec::unknown("first")];
    spec
}

const NODE: Allocatable = Allocatable { cpu: MilliCpu(3_900), memory: Bytes::gib(4), storage: Bytes::gib(10) };

fn none(object: &ObjectRef) -> Found {
    Err(ObjectError::NotFound(object.clone()))
}

/// One ConfigMap, `there`, and one Secret.
fn some(object: &ObjectRef) -> Found {
    let map = |pairs: &[(&str, &[u8])]| pairs.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect();
    match (object.kind, object.name.as_str()) {
        (ObjectKind::ConfigMap, "there") => {
            Ok(Object { data: map(&[("a", b"1"), ("b", b"2")]), binary: map(&[("raw", b"\xff")]) })
        }
        (ObjectKind::Secret, "there") => Ok(Object { data: map(&[("key", b"s3")]), ..Object::default() }),
        _ => none(object),
    }
}

fn written(parts: Vec<Part>) -> Written {
    Written { kind: WrittenKind::Projected, mode: 0o644, parts }
}

fn object(kind: ObjectKind, name: &str, optional: bool, items: &[(&str, &str)]) -> Part {
    let item = |(key, path): &(&str, &str)| KeyFile { key: (*key).to_owned(), path: (*path).to_owned(), mode: None };
    let object = ObjectRef { kind, name: name.to_owned() };
    Part::Object { object, optional, items: items.iter().map(item).collect() }
}

#[test]
fn a7_4c_metadata_is_written_as_the_kubelet_writes_it() {
    let all = "a=\"one \\\"1\\\"\\n\\x01é\u{301}\\ufeff\\U0010ffff\\\\'\\x7f\"\nb=\"2\"";
    for (path, expected) in [
        ("metadata.name", Some("web")),
        ("metadata.namespace", Some("default")),
        ("metadata.uid", Some("u1")),
        ("metadata.labels['b']", Some("2")),
        ("metadata.labels['none']", Some("")),
        ("metadata.annotations['none']", Some("")),
        ("metadata.annotations", Some("")),
        ("metadata.labels", Some(all)),
        ("metadata.labels[b]", None),
        ("metadata.labels['b'", None),
        ("spec.nodeName", None),
    ] {
        assert_eq!(metadata(&pod(), path).as_deref(), expected, "{path}");
    }
}

#[test]
fn a8_3_resources_are_divided_and_rounded_up_and_no_limit_is_the_nodes() {
    use ResourceKind::{Cpu, Memory, Storage};
    for (container, limit, of, divisor, expected) in [
        ("main", true, Cpu, 1_000, Some(2)),
        ("main", true, Cpu, 1, Some(1_500)),
        ("main", false, Cpu, 1_000, Some(1)),
        ("main", true, Memory, 1, Some(3 << 20)),
        ("main", true, Memory, 1 << 20, Some(3)),
        ("main", true, Memory, 2 << 20, Some(2)),
        ("main", true, Memory, 0, Some(3 << 20)),
        ("main", false, Storage, 1_024, Some(2)),
        ("main", true, Storage, 1 << 30, Some(10)),
        ("bare", true, Cpu, 1, Some(3_900)),
        ("bare", true, Memory, 1 << 30, Some(4)),
        ("bare", false, Memory, 1, Some(0)),
        ("first", true, Cpu, 1_000, Some(4)),
        ("none", true, Cpu, 1, None),
    ] {
        let field = ResourceField { container: container.to_owned(), limit, of, divisor };
        assert_eq!(resource(&pod(), &field, NODE), expected, "{field:?}");
    }
}

#[test]
fn a7_4_the_files_of_a_volume_come_from_all_its_parts() {
    let name = DownwardFile {
        path: "./pod//name".to_owned(),
        mode: Some(0o400),
        value: DownwardValue::Field("metadata.name".to_owned()),
    };
    let parts = vec![
        object(ObjectKind::ConfigMap, "there", false, &[]),
        object(ObjectKind::Secret, "there", false, &[("key", "a"), ("key", "deep/er/key")]),
        Part::Downward(vec![name]),
        object(ObjectKind::Secret, "none", true, &[("key", "never")]),
        object(ObjectKind::ConfigMap, "there", true, &[("none", "never"), ("raw", "raw2")]),
    ];
    let files = files(&pod(), &written(parts), NODE, &some).expect("files");
    let found: Vec<(&str, &[u8], u32)> = files.iter().map(|(p, f)| (p.as_str(), &f.data[..], f.mode)).collect();
    let expected: [(&str, &[u8], u32); 6] = [
        ("a", b"s3", 0o644),
        ("b", b"2", 0o644),
        ("deep/er/key", b"s3", 0o644),
        ("pod/name", b"web", 0o400),
        ("raw", b"\xff", 0o644),
        ("raw2", b"\xff", 0o644),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a7_4b_what_is_not_there_is_named_unless_it_is_optional() {
    let of = |part: Part, get: &dyn Fn(&ObjectRef) -> Found| {
        files(&pod(), &written(vec![part]), NODE, get).map(|files| files.len()).map_err(|error| error.to_string())
    };
    let no_client =
        |object: &ObjectRef| Err(ObjectError::NoClient { namespace: "default".to_owned(), object: object.clone() });
    let (map, secret) = (ObjectKind::ConfigMap, ObjectKind::Secret);
    let failed = |text: &str| Err(text.to_owned());
    assert_eq!(of(object(map, "none", false, &[]), &some), failed("configmap \"none\" not found"));
    assert_eq!(of(object(secret, "none", false, &[]), &some), failed("secret \"none\" not found"));
    assert_eq!(of(object(map, "none", true, &[]), &some), Ok(0));
    assert_eq!(of(object(map, "there", false, &[("x", "x")]), &some), failed("references non-existent config key: x"));
    assert_eq!(
        of(object(secret, "there", false, &[("x", "x")]), &some),
        failed("references non-existent secret key: x")
    );
    assert_eq!(of(object(secret, "there", true, &[("x", "x")]), &some), Ok(0));
    assert_eq!(
        of(object(map, "a", true, &[]), &no_client),
        failed("couldn't get configMap default/a, no kubeClient defined"),
        "optional is what is known not to be there"
    );
    let name = |path: &str| DownwardFile {
        path: path.to_owned(),
        mode: None,
        value: DownwardValue::Field("metadata.name".to_owned()),
    };
    assert_eq!(
        of(Part::Downward(vec![name("a/b"), name("a")]), &some),
        failed("invalid path: is a file and a folder: a")
    );
}

#[test]
fn a7_4a_paths_stay_in_the_volume_and_off_the_writers_own() {
    for path in ["a", "a/b", "./a", "a//b/", "a..", "a/..b", "a/...", ".a", "ü"] {
        assert!(clean(path).is_ok(), "{path}");
    }
    assert_eq!(clean("./a//b/."), Ok("a/b".to_owned()));
    let long = "x".repeat(256);
    let deep = "x/".repeat(2_049);
    for (path, why) in [
        ("", "must not be empty"),
        (".", "must not be the volume itself"),
        ("/a", "must be relative path"),
        ("..", "must not contain '..'"),
        ("../a", "must not contain '..'"),
        ("a/../b", "must not contain '..'"),
        ("..data", "must not start with '..'"),
        ("./..data/a", "must not start with '..'"),
        ("...", "must not start with '..'"),
        ("a\0", "must not contain a NUL"),
        (&*long, "filenames must be"),
        (&*deep, "must be less than or equal to 4096 characters"),
    ] {
        let error = clean(path).expect_err(path).to_string();
        assert!(error.starts_with("invalid path: ") && error.contains(why), "{error}");
    }
}

proptest! {
    #[test]
    fn a7_4a_no_path_leads_out(path in "[a./\\x00]{0,8}") {
        if let Ok(path) = clean(&path) {
            prop_assert!(!path.starts_with('/') && !path.starts_with(".."));
            prop_assert!(path.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
            prop_assert_eq!(clean(&path), Ok(path));
        }
    }
}
