//! What stands in deploy/ is valid by the API's own types, and hangs together.

use std::fs;
use std::path::Path;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn documents(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let documents = text.split("\n---\n");
    documents.map(|d| serde_saphyr::from_str(d).unwrap_or_else(|e| panic!("{file}: {e}"))).collect()
}

/// Reads the document by its type and compares with what is written back, so that a field that the type does not have, or has
/// in another place, is found.
fn typed<T: DeserializeOwned + Serialize>(document: &Value) -> T {
    let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|e| panic!("{e} in {document:#}"));
    assert_eq!(&serde_json::to_value(&typed).unwrap(), document, "a field is not in the schema");
    typed
}

fn daemon_set() -> DaemonSet {
    let documents = documents("daemonset.yaml");
    let _: ConfigMap = typed(&documents[0]);
    typed(&documents[1])
}

#[test]
fn the_daemon_set_is_valid_and_refers_to_what_exists() {
    let set = daemon_set();
    let spec = set.spec;
    let template = spec.template;
    assert_eq!(spec.selector.match_labels, template.metadata.clone().unwrap().labels, "it selects its own pods");
    let pod = template.spec.unwrap();
    assert_eq!(pod.host_pid, Some(true));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let container = &pod.containers[0];
    assert_eq!(container.security_context.as_ref().unwrap().privileged, Some(true));
    let volumes: Vec<String> = pod.volumes.unwrap().into_iter().map(|v| v.name).collect();
    let mounts = container.volume_mounts.as_ref().unwrap();
    assert!(mounts.iter().all(|m| volumes.contains(&m.name)) && mounts.len() == volumes.len());
    let port = container.ports.as_ref().unwrap()[0].container_port.to_string();
    let annotations = template.metadata.unwrap().annotations.unwrap();
    assert_eq!(annotations["prometheus.io/port"], port);
    let config = documents("daemonset.yaml")[0]["data"]["config.yaml"].as_str().unwrap().to_owned();
    assert!(config.contains(&format!("readOnlyPort: {port}\n")), "{config}");
}

#[test]
fn the_rights_are_valid_and_few() {
    let documents = documents("rbac.yaml");
    let namespace: Namespace = typed(&documents[0]);
    let account: ServiceAccount = typed(&documents[1]);
    let role: ClusterRole = typed(&documents[2]);
    let binding: ClusterRoleBinding = typed(&documents[3]);
    let set = daemon_set();
    assert_eq!(account.metadata.namespace, namespace.metadata.name);
    assert_eq!(set.metadata.namespace, namespace.metadata.name);
    assert_eq!(set.spec.template.spec.unwrap().service_account_name, account.metadata.name);
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    let subject = &binding.subjects.unwrap()[0];
    assert_eq!(
        (Some(&subject.name), &subject.namespace),
        (account.metadata.name.as_ref(), &account.metadata.namespace)
    );
    for rule in role.rules.unwrap() {
        let asked = [rule.verbs, rule.resources.unwrap(), rule.api_groups.unwrap()].concat();
        assert!(!asked.iter().any(|word| word == "*" || word == "secrets" || word == "delete"), "{asked:?}");
    }
}

#[test]
fn the_other_files_are_readable() {
    assert_eq!(documents("podmonitor.yaml")[0]["spec"]["podMetricsEndpoints"][0]["port"], "metrics");
    assert_eq!(documents("prometheus.yaml")[0]["scrape_configs"][0]["job_name"], "beelet");
}
