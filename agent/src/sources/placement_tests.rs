//! What a manifest asks of its node.

use beelet_core::spec::placement::{Effect, Operator, Placement, Requirement, Term, Toleration};

use super::manifest::parse;

fn read(spec: &str) -> Result<Placement, String> {
    let text = format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{containers: [{{name: c, image: i}}], {spec}}}}}"
    );
    let parsed = parse(text.as_bytes(), "/pods/web.yaml", "node").remove(0).map_err(|error| error.to_string())?;
    assert!(parsed.spec.left_out.is_empty(), "{:?}", parsed.spec.left_out);
    Ok(parsed.spec.placement.clone())
}

fn required(terms: &str) -> String {
    format!(
        "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{terms}]}}}}}}"
    )
}

#[test]
fn a4_16d_what_is_asked_of_the_node_arrives() {
    let requirement = |key: &str, operator, values: &[&str]| Requirement {
        key: key.to_owned(),
        operator,
        values: values.iter().map(|v| (*v).to_owned()).collect(),
    };
    let placement = read(&format!(
        "nodeSelector: {{zone: a}}, os: {{name: linux}}, {}",
        required(
            "{matchExpressions: [{key: cpus, operator: Gt, values: ['4']}, {key: gpu, operator: DoesNotExist}]}, \
             {matchFields: [{key: metadata.name, operator: In, values: [n]}]}, {}"
        )
    ));
    let expected = Placement {
        os: "linux".to_owned(),
        selector: [("zone".to_owned(), "a".to_owned())].into(),
        required: Some(vec![
            Term {
                labels: vec![
                    requirement("cpus", Operator::Gt, &["4"]),
                    requirement("gpu", Operator::DoesNotExist, &[]),
                ],
                fields: Vec::new(),
            },
            Term { labels: Vec::new(), fields: vec![requirement("metadata.name", Operator::In, &["n"])] },
            Term::default(),
        ]),
        tolerations: Vec::new(),
    };
    assert_eq!(placement, Ok(expected));
    assert_eq!(read("hostNetwork: false"), Ok(Placement::default()));
}

#[test]
fn a4_16g_tolerations_arrive() {
    let placement = read(
        "tolerations: [{key: k, value: v, effect: NoExecute, tolerationSeconds: 5}, {key: k, operator: Equal}, {operator: Exists}]",
    );
    let by = |key: &str, value: Option<&str>, effect| Toleration {
        key: key.to_owned(),
        value: value.map(str::to_owned),
        effect,
    };
    let expected = vec![by("k", Some("v"), Some(Effect::NoExecute)), by("k", Some(""), None), by("", None, None)];
    assert_eq!(placement.map(|p| p.tolerations), Ok(expected));
}

#[test]
fn a4_16_what_is_wrong_with_it_is_named_with_its_place() {
    let label = |entries: &str| required(&format!("{{matchExpressions: [{{{entries}}}]}}"));
    let field = |entries: &str| required(&format!("{{matchFields: [{{{entries}}}]}}"));
    let terms = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    for (spec, path, said) in [
        ("os: {name: plan9}".to_owned(), "spec.os.name", "supported values: linux, windows"),
        ("nodeSelector: {'a b': c}".to_owned(), "spec.nodeSelector", "name part must consist of"),
        ("nodeSelector: {a: 'b c'}".to_owned(), "spec.nodeSelector", "a valid label must be"),
        (required(""), terms, "must have at least one node selector term"),
        (label("key: a, operator: Is"), terms, "not a valid selector operator"),
        (label("key: a, operator: In"), terms, "must be specified when `operator` is 'In' or 'NotIn'"),
        (label("key: a, operator: Exists, values: [b]"), terms, "may not be specified when `operator` is 'Exists'"),
        (label("key: a, operator: Gt, values: ['1', '2']"), terms, "must be specified single value"),
        (label("key: '-', operator: Exists"), terms, "name part must consist of"),
        (label("key: a, operator: In, values: ['b c']"), terms, "a valid label must be"),
        (field("key: metadata.name, operator: Exists"), terms, "not a valid selector operator"),
        (field("key: metadata.uid, operator: In, values: [a]"), terms, "not a valid field selector key"),
        (field("key: metadata.name, operator: In, values: [a, b]"), terms, "must be only one value"),
        (field("key: metadata.name, operator: In, values: [A]"), terms, "RFC 1123"),
        ("tolerations: [{value: v}]".to_owned(), "spec.tolerations[0].operator", "operator must be Exists when `key`"),
        (
            "tolerations: [{key: k, operator: Lt}]".to_owned(),
            "spec.tolerations[0].operator",
            "supported values: Equal, Exists",
        ),
        (
            "tolerations: [{key: k, operator: Exists, value: v}]".to_owned(),
            "spec.tolerations[0].operator",
            "value must be empty when `operator` is 'Exists'",
        ),
        ("tolerations: [{key: k, value: 'a b'}]".to_owned(), "spec.tolerations[0].operator", "a valid label must be"),
        ("tolerations: [{key: 'a b', value: v}]".to_owned(), "spec.tolerations[0].key", "name part must consist of"),
        ("tolerations: [{key: k, effect: Never}]".to_owned(), "spec.tolerations[0].effect", "PreferNoSchedule"),
        (
            "tolerations: [{key: k, tolerationSeconds: 1}]".to_owned(),
            "spec.tolerations[0].effect",
            "effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
    ] {
        let error = read(&spec).expect_err(&spec);
        assert!(error.contains(path) && error.contains(said), "{spec}: {error}");
    }
}
