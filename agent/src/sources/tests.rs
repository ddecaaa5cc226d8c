//! Tables of manifests: what they become, what is left out, what is refused.

use beelet_core::spec::{LastWords, PullPolicy, QosClass, RestartPolicy, VolumeKind};
use beelet_core::units::{Bytes, Micros, MilliCpu};
use proptest::prelude::*;

use super::manifest::{Parsed, parse};

/// A pod with these lines in its `spec`, beside one container.
fn with(spec: &str, container: &str) -> String {
    let indent = |text: &str, by: &str| text.lines().map(|line| format!("{by}{line}\n")).collect::<String>();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n{}  containers:\n  - name: main\n    image: img:1\n{}",
        indent(spec, "  "),
        indent(container, "    ")
    )
}

fn good(text: &str) -> Parsed {
    let mut pods = parse(text.as_bytes(), "/pods/web.yaml", "Node-1");
    assert_eq!(pods.len(), 1, "{text}");
    pods.remove(0).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn bad(text: &str) -> String {
    let pods = parse(text.as_bytes(), "/pods/web.yaml", "node-1");
    assert_eq!(pods.len(), 1, "{text}");
    pods.into_iter().next().unwrap().map(|p| p.spec.name.clone()).expect_err(text).to_string()
}

#[test]
fn a3_2a_a3_3a_defaults_are_filled_in() {
    let Parsed { spec, pod } = good(&with("", ""));
    assert_eq!(spec.full_name(), "default/web-node-1");
    assert_eq!((spec.hostname.as_str(), spec.origin.as_str()), ("web-node-1", "/pods/web.yaml"));
    assert_eq!((spec.restart_policy, spec.termination_grace), (RestartPolicy::Always, Micros::secs(30)));
    assert_eq!(
        (spec.containers[0].pull, spec.qos(), spec.priority),
        (PullPolicy::IfNotPresent, QosClass::BestEffort, 0)
    );
    assert_eq!(spec.left_out, [""; 0]);
    assert_eq!(spec.uid.as_str().len(), 32);
    assert!(spec.uid.as_str().bytes().all(|b| b.is_ascii_hexdigit()));
    assert_eq!(pod.metadata.uid.as_deref(), Some(spec.uid.as_str()));
    assert_eq!(pod.metadata.name.as_deref(), Some("web-node-1"));
    assert_eq!(spec.annotations["kubernetes.io/config.hash"], spec.uid.as_str());
    assert_eq!(spec.annotations["kubernetes.io/config.source"], "file");
}

/// Rows: A9.6.
#[test]
fn a_whole_pod_arrives() {
    let spec = good(&with(
        "restartPolicy: OnFailure\nterminationGracePeriodSeconds: 5\nhostNetwork: yes\nhostname: h\n\
         priorityClassName: system-node-critical\nsecurityContext: {runAsUser: 7, fsGroup: 8, runAsNonRoot: true}\n\
         volumes:\n- {name: tmp, emptyDir: {medium: Memory, sizeLimit: 64Mi}}\n- {name: etc, hostPath: {path: /etc, type: Directory}}\n\
         - {name: plain}\ninitContainers: [{name: first, image: a/b}]",
        "command: [sh, -c]\nargs: ['sleep 1']\nimagePullPolicy: Never\nenv:\n- {name: A, value: '1'}\n- {name: N, valueFrom: {fieldRef: {fieldPath: metadata.name}}}\n\
         ports: [{containerPort: 80}]\nvolumeMounts: [{name: tmp, mountPath: /tmp, readOnly: true}]\n\
         resources: {limits: {cpu: 0.5, memory: 1.5Gi}, requests: {cpu: 100m}}\nsecurityContext: {runAsUser: 9, privileged: true}",
    ))
    .spec;
    assert!(spec.is_critical() && spec.host_network);
    assert_eq!(spec.priority, 2_000_001_000);
    assert_eq!(spec.volumes[0].kind, VolumeKind::EmptyDir { memory: true, size_limit: Some(Bytes::mib(64)) });
    assert_eq!(spec.volumes[1].kind, VolumeKind::HostPath { path: "/etc".to_owned(), kind: "Directory".to_owned() });
    assert_eq!(spec.volumes[2].kind, VolumeKind::EmptyDir { memory: false, size_limit: None });
    assert_eq!(
        (spec.init_containers[0].pull, spec.init_containers[0].security.run_as_user),
        (PullPolicy::Always, Some(7))
    );
    let main = &spec.containers[0];
    assert_eq!((main.resources.cpu_request, main.resources.cpu_limit), (Some(MilliCpu(100)), Some(MilliCpu(500))));
    assert_eq!(
        (main.resources.memory_request, main.resources.memory_limit),
        (Some(Bytes::mib(1536)), Some(Bytes::mib(1536)))
    );
    assert_eq!((main.ports[0].host_port, main.ports[0].protocol.as_str()), (80, "TCP"));
    assert_eq!(
        (main.security.run_as_user, main.security.run_as_non_root, main.security.privileged),
        (Some(9), true, true)
    );
    assert_eq!(spec.qos(), QosClass::Burstable);
}

#[test]
fn a6_1a_pull_policies_by_tag() {
    for (image, pull) in [
        ("a", PullPolicy::Always),
        ("a:latest", PullPolicy::Always),
        ("a:1", PullPolicy::IfNotPresent),
        ("host:5000/a", PullPolicy::Always),
        ("host:5000/a:2", PullPolicy::IfNotPresent),
        ("a@sha256:00", PullPolicy::IfNotPresent),
    ] {
        assert_eq!(good(&with("", "").replace("img:1", image)).spec.containers[0].pull, pull, "{image}");
    }
}

/// Rows: A3.3e, A3.3f, A3.3g, A4.8e, A4.10, A4.16c, A6.3a, A7.3b, A7.4b, A7.7b, A8.4, A7.9b.
#[test]
fn what_is_wrong_is_named_with_its_place() {
    let named = |name: &str| with("", "").replace("name: web", &format!("name: {name}"));
    for (text, said) in [
        (with("", "imagee: x"), "spec.containers[0].imagee (line 9): unknown field, did you mean \"image\"?"),
        (
            with("restartpolicy: Never", ""),
            "spec.restartpolicy (line 6): unknown field, did you mean \"restartPolicy\"?",
        ),
        (
            with("", "resources: {limits: {memory: 12XB}}"),
            "spec.containers[0].resources.limits.memory (line 9): \"12XB\" is not a quantity",
        ),
        (
            with("", "resources: {limits: {memory: -1}}"),
            "spec.containers[0].resources.limits.memory (line 9): \"-1\" is negative",
        ),
        (
            with("", "resources: {limits: {cpu: 1}, requests: {cpu: 2}}"),
            "resources.requests.cpu (line 9): Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            with("", "resources: {limits: {nvidia.com/gpu: 1}}"),
            "resources.limits[nvidia.com/gpu] (line 9): this node has no such resource",
        ),
        (
            named("../x"),
            "metadata.name (line 4): Invalid value: \"../x\": a lowercase RFC 1123 subdomain must consist of",
        ),
        (named("Web"), "Invalid value: \"Web\""),
        (named(&"a".repeat(250)), "metadata.name (line 4): Invalid value"),
        (named("x\n  namespace: ../y"), "metadata.namespace (line 5): Invalid value: \"../y\""),
        (named("x\n  uid: ../../y"), "metadata.uid (line 5): Invalid value: \"../../y\""),
        (named("''"), "metadata.name (line 4): Required value"),
        (with("", "").replace("main", "Main"), "spec.containers[0].name (line 7): Invalid value: \"Main\""),
        (
            with("initContainers: [{name: main, image: a}]", ""),
            "spec.containers[0].name (line 8): Duplicate value: \"main\"",
        ),
        (with("", "").replace("img:1", "''"), "spec.containers[0].image (line 8): Required value"),
        (with("", "").replace("v1", "v2"), "apiVersion (line 1): \"v2\" \"Pod\" cannot be run"),
        (with("", "").replace("Pod", "Deployment"), "kind (line 2): \"v1\" \"Deployment\" cannot be run"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n".to_owned(),
            "spec.containers (line 4): Required value",
        ),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n".to_owned(), "spec"),
        (
            with("restartPolicy: always", ""),
            "spec.restartPolicy (line 6): Unsupported value: \"always\": supported values: Always, OnFailure, Never, did you mean \"Always\"?",
        ),
        (with("terminationGracePeriodSeconds: -1", ""), "must be greater than or equal to 0"),
        (with("", "imagePullPolicy: Sometimes"), "supported values: Always, IfNotPresent, Never"),
        (
            with("", "env: [{name: A, value: 5}]"),
            "spec.containers[0].env[0].value (line 9): 5 where text is wanted: write it in quotes",
        ),
        (
            with("", "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.nam}}}]"),
            "did you mean \"metadata.name\"?",
        ),
        (with("", "ports: [{containerPort: 0}]"), "must be between 1 and 65535"),
        (with("hostNetwork: true", "ports: [{containerPort: 80, hostPort: 81}]"), "must match `containerPort`"),
        (with("", "volumeMounts: [{name: tmp, mountPath: /a}]"), "volumeMounts[0].name (line 9): Not found: \"tmp\""),
        (with("volumes: [{name: a, hostPath: {path: /a/../b}}]", ""), "must not contain '..'"),
        (with("volumes: [{name: a, hostPath: {path: a}}]", ""), "must be an absolute path"),
        (with("volumes: [{name: ../a}]", ""), "spec.volumes[0].name (line 6): Invalid value"),
        (with("volumes: [{name: a}, {name: a}]", ""), "spec.volumes[1].name (line 6): Duplicate value: \"a\""),
        (
            with("volumes: [{name: a, secret: {secretName: s}}]", ""),
            "spec.volumes[0].secret (line 6): static pods may not reference secrets",
        ),
        (with("volumes: [{name: a, configMap: {}}]", ""), "static pods may not reference configmaps"),
        (
            with("volumes: [{name: a, nfs: {server: s, path: /}}]", ""),
            "spec.volumes[0].nfs (line 6): not supported yet",
        ),
        (with("", "terminationMessagePolicy: Logs"), "supported values: File, FallbackToLogsOnError"),
        (with("serviceAccountName: x", ""), "static pods may not reference serviceaccounts"),
        (with("imagePullSecrets: [{name: x}]", ""), "static pods may not reference secrets"),
        (with("ephemeralContainers: [{name: x}]", ""), "static pods may not have ephemeral containers"),
        (
            with("", "envFrom: [{secretRef: {name: x}}]"),
            "spec.containers[0].envFrom[0].secretRef (line 9): static pods may not reference secrets",
        ),
        (with("securityContext: {fsGroupChangePolicy: Never}", ""), "supported values: Always, OnRootMismatch"),
        (
            with("initContainers: [{name: side, image: a, restartPolicy: always}]", ""),
            "spec.initContainers[0].restartPolicy (line 6): Unsupported value: \"always\": supported values: Always, OnFailure, Never, \
             did you mean \"Always\"?",
        ),
        (
            with("", "restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]"),
            "spec.containers[0].restartPolicy (line 7): Required value: must specify restartPolicy when restart rules are used",
        ),
        (
            with(
                "",
                "restartPolicy: Never\nrestartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [1]}}]",
            ),
            "restartPolicyRules[0].action (line 10): Unsupported value: \"RestartAllContainers\": supported values: Restart",
        ),
        (
            with(
                "",
                "restartPolicy: Never\nrestartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: []}}]",
            ),
            "restartPolicyRules[0].exitCodes.values (line 10): Invalid value: \"0\": must have 1 to 255 items",
        ),
        (with("shareProcessNamespace: true\nhostPID: true", ""), "cannot both be enabled"),
        (with("dnsPolicy: clusterFirst", ""), "spec.dnsPolicy (line 6): Unsupported value: \"clusterFirst\""),
        (
            with("dnsPolicy: None", ""),
            "spec.dnsConfig (line 5): Required value: must provide `dnsConfig` when `dnsPolicy` is None",
        ),
        (
            with("dnsPolicy: None\ndnsConfig: {searches: [a]}", ""),
            "spec.dnsConfig.nameservers (line 7): Required value: must provide at least one DNS nameserver",
        ),
        (with("dnsConfig: {nameservers: [a]}", ""), "dnsConfig.nameservers[0] (line 6): Invalid value: \"a\""),
        (with("dnsConfig: {nameservers: [::1, ::2, ::3, ::4]}", ""), "must not have more than 3 nameservers"),
        (with("dnsConfig: {searches: [a b]}", ""), "dnsConfig.searches[0] (line 6): Invalid value: \"a b\""),
        (with("dnsConfig: {options: [{value: '1'}]}", ""), "dnsConfig.options[0] (line 6): Required value"),
        (with("hostAliases: [{ip: x, hostnames: [a]}]", ""), "spec.hostAliases[0].ip (line 6): Invalid value: \"x\""),
        (
            with("hostAliases: [{ip: 192.0.2.1, hostnames: [a, B]}]", ""),
            "spec.hostAliases[0].hostnames[1] (line 6): Invalid value: \"B\"",
        ),
        ("{".to_owned(), "not valid YAML or JSON"),
        ("a: b: c".to_owned(), "not valid YAML or JSON"),
        ("just text".to_owned(), "cannot be run"),
        (String::new(), "the file has no pod in it"),
        ("---\n---\n".to_owned(), "the file has no pod in it"),
    ] {
        let error = bad(&text);
        assert!(error.contains(said), "{error}\nwanted: {said}\n{text}");
    }
}

#[test]
fn a4_18b_last_words_are_where_the_manifest_says() {
    let words = |fields: &str| good(&with("", fields)).spec.containers[0].last_words.clone();
    for (fields, path, from_log) in [
        ("", "/dev/termination-log", false),
        ("terminationMessagePath: /tmp/words", "/tmp/words", false),
        ("terminationMessagePath: words\nterminationMessagePolicy: FallbackToLogsOnError", "/words", true),
        ("terminationMessagePath: ''\nterminationMessagePolicy: File", "/dev/termination-log", false),
    ] {
        assert_eq!(words(fields), LastWords { path: path.to_owned(), from_log }, "{fields}");
    }
}

/// Rows: A4.7f.
#[test]
fn what_is_left_out_is_named() {
    let parsed = good(&with(
        "setHostnameAsFQDN: false\npriorityClassName: mine\npriority: 5\nsubdomain: ''",
        "livenessProbe: {httpGet: {port: 80}}\nlifecycle: {stopSignal: SIGUSR1}\n\
         terminationMessagePath: /dev/termination-log\nresources: {requests: {ephemeral-storage: 1Gi}}",
    ));
    assert_eq!(
        parsed.spec.left_out,
        [
            "spec.containers[0].lifecycle.stopSignal: has no effect yet",
            "spec.priorityClassName: \"mine\" is not known without an API server, the priority is 5: set spec.priority",
        ]
    );
    assert_eq!(parsed.spec.priority, 5);
}

#[test]
fn a4_13_a_deadline_is_of_seconds() {
    assert_eq!(good(&with("activeDeadlineSeconds: 600", "")).spec.active_deadline, Some(Micros::secs(600)));
    assert_eq!(good(&with("", "")).spec.active_deadline, None);
    for bad in ["0", "-5", "2147483648"] {
        let text = with(&format!("activeDeadlineSeconds: {bad}"), "");
        let error = parse(text.as_bytes(), "f", "n").remove(0).expect_err(bad).to_string();
        assert!(error.contains("spec.activeDeadlineSeconds") && error.contains("between 1 and 2147483647"), "{error}");
    }
}

#[test]
fn a3_3b_the_uid_follows_all_but_resources() {
    let uid = |text: &str, origin: &str, node: &str| {
        parse(text.as_bytes(), origin, node).remove(0).unwrap().spec.uid.as_str().to_owned()
    };
    let base = with("", "resources: {limits: {memory: 64Mi}}");
    let first = uid(&base, "/a", "n");
    assert_eq!(first, uid(&base, "/a", "n"));
    assert_eq!(first, uid(&with("", "resources: {limits: {memory: 128Mi}, requests: {cpu: 10m}}"), "/a", "n"));
    assert_eq!(first, uid(&with("", ""), "/a", "n"));
    assert_ne!(first, uid(&base, "/b", "n"));
    assert_ne!(first, uid(&base, "/a", "m"));
    assert_ne!(first, uid(&base.replace("img:1", "img:2"), "/a", "n"));
    assert_ne!(first, uid(&base.replace("name: web", "name: web\n  labels: {a: b}"), "/a", "n"));
    let given = base.replace("name: web", "name: web\n  uid: 0e9c4d51-3ab8");
    assert_eq!(uid(&given, "/a", "n"), "0e9c4d51-3ab8");
    assert_eq!(good(&given).spec.left_out.len(), 1);
}

#[test]
fn a3_3h_several_pods_in_a_file() {
    let json =
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;
    assert_eq!(good(json).spec.name, "j-node-1");
    let item = "{metadata: {name: a}, spec: {containers: [{name: c, image: i}]}}";
    let list = format!("apiVersion: v1\nkind: PodList\nitems: [{item}, {}]", item.replace("name: a", "name: b"));
    let both = format!("{}---\n{list}\n---\nkind: Nothing\n", with("", ""));
    let names: Vec<_> = parse(both.as_bytes(), "f", "n").into_iter().map(|p| p.map(|p| p.spec.name.clone())).collect();
    assert!(
        matches!(names.as_slice(), [Ok(a), Ok(b), Ok(c), Err(_)] if a == "web-n" && b == "a-n" && c == "b-n"),
        "{names:?}"
    );
}

#[test]
fn a_rejected_pod_is_named_where_it_has_a_name() {
    let text = with("", "imagee: x");
    let error = parse(text.as_bytes(), "f", "n").remove(0).unwrap_err();
    assert_eq!(error.rejected("f").pod.as_deref(), Some("default/web-n"));
    let error = parse(b"kind: Pod\nmetadata: {name: ../x}", "f", "n").remove(0).unwrap_err();
    assert_eq!(error.pod, None);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, "f", "n");
    }

    #[test]
    fn no_damage_to_a_manifest_makes_it_panic(at in 0_usize..400, cut in 0_usize..20, put in "[ -~\n]{0,8}") {
        let mut text = with("volumes: [{name: a, emptyDir: {}}]\nrestartPolicy: Never", "resources: {limits: {cpu: 1}}");
        let from = at.min(text.len());
        let to = (from + cut).min(text.len());
        text.replace_range(from..to, &put);
        for pod in parse(text.as_bytes(), "f", "n").into_iter().flatten() {
            prop_assert!(super::is_dns1123_subdomain(&pod.spec.name));
            prop_assert!(!pod.spec.containers.is_empty());
        }
    }
}
