//! From the bytes of a manifest to pods.
//!
//! Problem: a manifest is written by hand and no API server looks at it: a misspelt field, a bad quantity or a name like `../x`
//! must be refused with words that help, and must not take the other pods along.
//! Approach: each document is read strictly ([`crate::config::tree`]), judged field by field ([`super::support`]), checked and
//! filled with defaults ([`super::convert`]). The name gets the node's as suffix and the UID is made as the kubelet does it for
//! static pods (pkg/kubelet/config/common.go, applyDefaults, release 1.37), with SHA-256 for MD5.
//!
//! Terms: a file holds one pod as upstream; here also several documents, a `PodList` or a `List`.
//!
//! Properties: pure; never panics; two manifests that differ only in the containers' `resources` have the same UID, any other
//! difference gives another one, unless `metadata.uid` is set; the same bytes give the same pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::event::Rejected;
use beelet_core::spec::{API, PodSpec};
use k8s_openapi::api::core::v1 as api;
use sha2::{Digest, Sha256};

use super::names::{LABEL, SUBDOMAIN, is_dns1123_label, is_dns1123_subdomain, is_uid};
use super::{convert, support};
use crate::config::tree::{Fault, Node, Value, did_you_mean, documents};

/// A pod that can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// For the core.
    pub spec: Arc<PodSpec>,
    /// As it was written, with what the kubelet adds to a static pod: for `/pods`.
    pub pod: Arc<api::Pod>,
}

/// Why a manifest cannot be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct ManifestError {
    /// `namespace/name` with the suffix, where it could be read.
    pub pod: Option<String>,
    /// What is wrong, and where.
    pub fault: Fault,
}

impl ManifestError {
    /// As the core knows it.
    #[must_use]
    pub fn rejected(&self, origin: &str) -> Rejected {
        Rejected { origin: origin.to_owned(), pod: self.pod.clone(), error: self.fault.to_string() }
    }
}

/// Reads all pods of a file. One that is wrong does not hide the others.
#[must_use]
pub fn parse(bytes: &[u8], origin: &str, node_name: &str) -> Vec<Result<Parsed, ManifestError>> {
    parse_with(bytes, &From { origin, node_name, references: false })
}

/// Where pods come from.
#[derive(Clone, Copy, Debug)]
pub struct From<'a> {
    /// For messages.
    pub origin: &'a str,
    /// The node's name.
    pub node_name: &'a str,
    /// They may refer to ConfigMaps and Secrets: somebody has them. Static pods may not.
    pub references: bool,
}

/// As [`parse`], for pods of other origins too.
#[must_use]
pub fn parse_with(bytes: &[u8], from: &From<'_>) -> Vec<Result<Parsed, ManifestError>> {
    let documents = match documents(bytes) {
        Ok(documents) => documents,
        Err(fault) => return vec![Err(ManifestError { pod: None, fault })],
    };
    if documents.is_empty() {
        let fault = Fault::new("", "the file has no pod in it: a manifest of kind Pod is wanted");
        return vec![Err(ManifestError { pod: None, fault })];
    }
    documents.iter().flat_map(|document| one(document, from)).collect()
}

fn one(document: &Node, from: &From<'_>) -> Vec<Result<Parsed, ManifestError>> {
    let kind = document.text_of("kind");
    if !matches!(kind, "List" | "PodList") {
        return vec![pod(document, from)];
    }
    let items = match document.get("items").map(|items| &items.value) {
        Some(Value::List(items)) => items.as_slice(),
        _ => &[],
    };
    let of_list = |item: &Node| {
        let mut item = item.clone();
        if let Value::Map(fields) = &mut item.value
            && kind == "PodList"
        {
            // The items of a typed list carry neither.
            for (name, value) in [("apiVersion", "v1"), ("kind", "Pod")] {
                if !fields.iter().any(|(given, ..)| given == name) {
                    fields.push((
                        name.to_owned(),
                        item.line,
                        Node { line: item.line, value: Value::Text(value.to_owned()) },
                    ));
                }
            }
        }
        pod(&item, from)
    };
    items.iter().map(of_list).collect()
}

fn pod(document: &Node, from: &From<'_>) -> Result<Parsed, ManifestError> {
    let named = || {
        let meta = document.get("metadata")?;
        let name = meta.text_of("name");
        let namespace = Some(meta.text_of("namespace")).filter(|n| !n.is_empty()).unwrap_or("default");
        let fine = is_dns1123_subdomain(name) && is_dns1123_label(namespace);
        fine.then(|| format!("{namespace}/{}", static_name(name, from.node_name)))
    };
    read(document, from).map_err(|mut fault| {
        if fault.line == 0 {
            fault.line = document.line_at(&fault.path);
        }
        ManifestError { pod: named(), fault }
    })
}

/// Static pods of all nodes meet in one API server.
fn static_name(name: &str, node_name: &str) -> String {
    format!("{name}-{}", node_name.to_lowercase())
}

fn read(document: &Node, from: &From<'_>) -> Result<Parsed, Fault> {
    let (version, kind) = (document.text_of("apiVersion"), document.text_of("kind"));
    if kind != "Pod" || version != "v1" {
        let field = if kind == "Pod" { "apiVersion" } else { "kind" };
        let hint = if kind == "Pod" { String::new() } else { did_you_mean(kind, ["Pod"]) };
        let problem = format!("{version:?} {kind:?} cannot be run: write apiVersion: v1 and kind: Pod{hint}");
        return Err(Fault::new(field, problem));
    }
    let mut pod: api::Pod = document.read("")?;
    let mut warnings = support::survey(document, from.references)?;
    identify(&mut pod, from.origin, from.node_name, &mut warnings)?;
    let spec = convert::pod(&pod, from.origin, warnings)?;
    Ok(Parsed { spec: Arc::new(spec), pod: Arc::new(pod) })
}

/// Checks and completes the metadata.
fn identify(pod: &mut api::Pod, origin: &str, node_name: &str, warnings: &mut Vec<String>) -> Result<(), Fault> {
    let hash = content_hash(pod, origin, node_name);
    let meta = &mut pod.metadata;
    let given = meta.name.clone().unwrap_or_default();
    if given.is_empty() {
        return Err(Fault::new("metadata.name", "Required value"));
    }
    let name = static_name(&given, node_name);
    for name in [&given, &name] {
        if !is_dns1123_subdomain(name) {
            return Err(Fault::new("metadata.name", format!("Invalid value: {name:?}: {SUBDOMAIN}")));
        }
    }
    let namespace = meta.namespace.take().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
    if !is_dns1123_label(&namespace) {
        return Err(Fault::new("metadata.namespace", format!("Invalid value: {namespace:?}: {LABEL}")));
    }
    let uid = match meta.uid.take().filter(|uid| !uid.is_empty()) {
        None => hash,
        Some(uid) if is_uid(&uid) => {
            warnings.push("metadata.uid: as it is set, a change of the manifest does not replace the pod".to_owned());
            uid
        }
        Some(uid) => {
            let why = "letters, digits and '-' only, at most 63, or none to have one made";
            return Err(Fault::new("metadata.uid", format!("Invalid value: {uid:?}: {why}")));
        }
    };
    meta.name = Some(name);
    meta.namespace = Some(namespace);
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert("kubernetes.io/config.hash".to_owned(), uid.clone());
    let source = if origin == API { API } else { "file" };
    annotations.insert("kubernetes.io/config.source".to_owned(), source.to_owned());
    meta.uid = Some(uid);
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node_name.to_owned());
    }
    Ok(())
}

/// 32 hex digits, as the kubelet's. The containers' resources are left out: they change in place.
fn content_hash(pod: &api::Pod, origin: &str, node_name: &str) -> String {
    let mut pod = pod.clone();
    if let Some(spec) = &mut pod.spec {
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            container.resources = None;
        }
    }
    // A map of ordered maps, so the text is always the same.
    let content = serde_json::to_value(&pod).map(|v| v.to_string()).unwrap_or_default();
    let parts: BTreeMap<&str, &str> = BTreeMap::from([("content", &*content), ("file", origin), ("host", node_name)]);
    let mut hash = Sha256::new();
    for (name, part) in parts {
        hash.update(format!("{name}:{}:", part.len()));
        hash.update(part);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}
