//! Written volumes and variables that refer to something, as manifests have them.

use beelet_core::spec::{EnvFrom, EnvValue, ObjectKind, ObjectRef, PodSpec, VolumeKind, WrittenKind};

use super::manifest::{From, parse_with};

fn read(spec: &str, container: &str, references: bool) -> Result<PodSpec, String> {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: main, image: 'img:1', {container}}}], {spec}}}\n"
    );
    let from = From { origin: "f", node_name: "n", references };
    let parsed = parse_with(text.as_bytes(), &from).remove(0);
    parsed.map(|parsed| PodSpec::clone(&parsed.spec)).map_err(|error| error.to_string())
}

fn refused(spec: &str, container: &str) -> String {
    read(spec, container, true).expect_err("it cannot be run")
}

#[test]
fn a7_4_written_volumes_are_read_and_checked() {
    let volume = |text: &str| read(&format!("volumes: [{{name: v, {text}}}]"), "", true);
    for (text, kind) in [
        ("downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.labels}}]}", WrittenKind::DownwardApi),
        (
            "projected: {sources: [{configMap: {name: c}}, {secret: {name: s}}, {downwardAPI: {}}]}",
            WrittenKind::Projected,
        ),
        ("configMap: {name: c, optional: true, items: [{key: k, path: a/b, mode: 256}]}", WrittenKind::ConfigMap),
        ("secret: {secretName: s}", WrittenKind::Secret),
    ] {
        let spec = volume(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let VolumeKind::Written(written) = &spec.volumes[0].kind else { panic!("{text}: {:?}", spec.volumes) };
        assert_eq!((written.kind, written.mode), (kind, 0o644), "{text}");
        assert!(spec.left_out.is_empty(), "{:?}", spec.left_out);
    }
    for (mode, expected) in [("0400", 0o400), ("0o440", 0o440), ("420", 0o644), ("0", 0)] {
        let spec = volume(&format!("downwardAPI: {{defaultMode: {mode}}}")).unwrap();
        let VolumeKind::Written(written) = &spec.volumes[0].kind else { panic!("{:?}", spec.volumes) };
        assert_eq!(written.mode, expected, "{mode}");
    }
    let items = |items: &str| format!("downwardAPI: {{items: [{{{items}}}]}}");
    let twice = "{downwardAPI: {items: [{path: ./a, fieldRef: {fieldPath: metadata.uid}}]}}";
    for (text, said) in [
        (items("path: a"), "items[0] (line 4): Required value: one of fieldRef and resourceFieldRef is required"),
        (items("fieldRef: {fieldPath: metadata.name}"), "items[0].path (line 4): Required value"),
        (items("path: ../a, fieldRef: {fieldPath: metadata.name}"), "must not contain '..'"),
        (items("path: /a, fieldRef: {fieldPath: metadata.name}"), "must be relative path"),
        (items("path: ..data, fieldRef: {fieldPath: metadata.name}"), "must not start with '..'"),
        (
            items("path: a, mode: 512, fieldRef: {fieldPath: metadata.name}"),
            "items[0].mode (line 4): Invalid value: \"512\": must be a number between 0 and 0777",
        ),
        (items("path: a, user: 5, fieldRef: {fieldPath: metadata.name}"), "items[0].user (line 4): not supported yet"),
        (
            items("path: a, fieldRef: {fieldPath: status.podIP}"),
            "supported values: metadata.name, metadata.namespace, metadata.labels",
        ),
        (items("path: a, fieldRef: {fieldPath: metadata.name, apiVersion: v2}"), "unsupported pod version: v2"),
        (
            items("path: a, resourceFieldRef: {resource: limits.cpu}"),
            "resourceFieldRef.containerName (line 4): Required value",
        ),
        (
            items("path: a, resourceFieldRef: {resource: limits.cpus, containerName: main}"),
            "did you mean \"limits.cpu\"?",
        ),
        (
            items("path: a, fieldRef: {fieldPath: metadata.name}, resourceFieldRef: {resource: limits.cpu}"),
            "can not be specified simultaneously",
        ),
        ("downwardAPI: {defaultMode: -1}".to_owned(), "downwardAPI.defaultMode (line 4): Invalid value: \"-1\""),
        (format!("projected: {{sources: [{twice}, {twice}]}}"), "conflicting duplicate paths"),
        (
            "projected: {sources: [{downwardAPI: {}, secret: {name: s}}]}".to_owned(),
            "may not specify more than 1 volume type",
        ),
        (
            "projected: {sources: [{serviceAccountToken: {path: t}}]}".to_owned(),
            "static pods may not reference serviceaccounts",
        ),
        ("configMap: {name: c}, emptyDir: {}".to_owned(), "may not specify more than 1 volume type"),
        ("configMap: {}".to_owned(), "configMap.name (line 4): Required value"),
        ("secret: {secretName: s, defaultUser: 1}".to_owned(), "secret.defaultUser (line 4): not supported yet"),
        (
            "secret: {secretName: s, items: [{key: k, path: a/../b}]}".to_owned(),
            "secret.items[0].path (line 4): Invalid value",
        ),
    ] {
        let error = refused(&format!("volumes: [{{name: v, {text}}}]"), "");
        assert!(error.contains(said), "{error}\nwanted: {said}\n{text}");
    }
}

#[test]
fn a7_4b_static_pods_may_not_refer_to_objects() {
    for (spec, container, what) in [
        ("volumes: [{name: v, configMap: {name: c}}]", "", "configmaps"),
        ("volumes: [{name: v, secret: {secretName: s}}]", "", "secrets"),
        ("volumes: [{name: v, projected: {sources: [{secret: {name: s}}]}}]", "", "secrets"),
        ("volumes: [{name: v, projected: {sources: [{configMap: {name: s}}]}}]", "", "configmaps"),
        ("volumes: [{name: v, projected: {sources: [{podCertificate: {}}]}}]", "", "podcertificates"),
        ("volumes: [{name: v, projected: {sources: [{clusterTrustBundle: {path: a}}]}}]", "", "clustertrustbundles"),
        ("", "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]", "secrets"),
        ("", "env: [{name: A, valueFrom: {configMapKeyRef: {name: s, key: k}}}]", "configmaps"),
        ("", "envFrom: [{configMapRef: {name: c}}]", "configmaps"),
    ] {
        let error = read(spec, container, false).expect_err(what);
        assert!(error.ends_with(&format!("static pods may not reference {what}")), "{error}");
    }
}

#[test]
fn a8_4_variables_may_come_from_objects_where_there_are_some() {
    let spec = read(
        "",
        "envFrom: [{prefix: P_, configMapRef: {name: c, optional: true}}, {secretRef: {name: s}}], env: [\
         {name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}, {name: B, valueFrom: {configMapKeyRef: {name: c, key: k, optional: true}}}]",
        true,
    )
    .unwrap();
    let object = |kind, name: &str| ObjectRef { kind, name: name.to_owned() };
    let (map, secret) = (object(ObjectKind::ConfigMap, "c"), object(ObjectKind::Secret, "s"));
    let container = &spec.containers[0];
    assert_eq!(
        container.env_from,
        [
            EnvFrom { prefix: "P_".to_owned(), object: map.clone(), optional: true },
            EnvFrom { prefix: String::new(), object: secret.clone(), optional: false },
        ]
    );
    let values: Vec<&EnvValue> = container.env.iter().map(|variable| &variable.value).collect();
    let key = |object, optional| EnvValue::Key { object, key: "k".to_owned(), optional };
    assert_eq!(values, [&key(secret, false), &key(map, true)]);
}

#[test]
fn a8_3_and_a8_5_references_of_variables_are_checked() {
    let of = |from: &str| format!("env: [{{name: A, valueFrom: {{{from}}}}}]");
    let divided = |name: &str, divisor: &str| {
        let container = of(&format!("resourceFieldRef: {{resource: {name}, divisor: {divisor}}}"));
        read("", &container, false).map(|spec| match &spec.containers[0].env[0].value {
            EnvValue::Resource(field) if field.container == "main" => field.divisor,
            other => panic!("{other:?}"),
        })
    };
    for (name, divisor, expected) in [
        ("limits.cpu", "1m", 1),
        ("requests.cpu", "'1'", 1_000),
        ("limits.cpu", "1000m", 1_000),
        ("limits.cpu", "'0'", 1_000),
        ("limits.memory", "1Mi", 1 << 20),
        ("requests.memory", "1k", 1_000),
        ("limits.ephemeral-storage", "'0'", 1),
    ] {
        assert_eq!(divided(name, divisor), Ok(expected), "{name} {divisor}");
    }
    for (name, divisor, said) in [
        ("limits.cpu", "2", "only divisor's values 1m and 1 are supported with the cpu resource"),
        // As upstream, which compares what is written.
        ("limits.memory", "1024", "1Pi, 1Ei are supported with the memory resource"),
        ("limits.memory", "2Mi", "1Pi, 1Ei are supported with the memory resource"),
        ("limits.ephemeral-storage", "1m", "are supported with the local ephemeral storage resource"),
        ("limits.memory", "x", "is not a quantity"),
        ("limits.hugepages-2Mi", "'1'", "Unsupported value: \"limits.hugepages-2Mi\""),
    ] {
        let error = divided(name, divisor).expect_err(said);
        assert!(error.contains(said), "{error}");
    }
    let file = |volume: &str, more: &str| of(&format!("fileKeyRef: {{volumeName: {volume}, key: A, {more}}}"));
    let volumes = "volumes: [{name: v}, {name: h, hostPath: {path: /a}}]";
    assert!(read(volumes, &file("v", "path: a/b, optional: true"), false).is_ok());
    for (container, said) in [
        (file("v", "path: ''"), "fileKeyRef.path (line 4): Required value"),
        (file("v", "path: ../a"), "must not contain '..'"),
        (file("h", "path: a"), "volumeName (line 4): Invalid value: \"h\": referenced volume must be of type emptyDir"),
        (file("w", "path: a"), "Not found: \"w\""),
        (of("fileKeyRef: {volumeName: v, path: a}"), "fileKeyRef.key"),
        (
            of("fieldRef: {fieldPath: metadata.name}, resourceFieldRef: {resource: limits.cpu}"),
            "may not have more than one field",
        ),
        ("env: [{name: A, valueFrom: {}}]".to_owned(), "must specify one of: `fieldRef`, `resourceFieldRef`"),
    ] {
        match read(volumes, &container, false) {
            Err(error) => assert!(error.contains(said), "{error}\nwanted: {said}\n{container}"),
            Ok(spec) => panic!("{container}: {:?}", spec.containers[0].env),
        }
    }
}
