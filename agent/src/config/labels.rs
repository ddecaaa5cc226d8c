//! What the node is called by: its labels and taints.
//!
//! Problem: without an API server a node has no object from which a pod's wishes could be answered. Approach: the labels that a kubelet
//! gives its node at registration (pkg/kubelet/kubelet_node_status.go, `initialNode`), those of `--node-labels` under the kubelet's rules
//! (cmd/kubelet/app/options, k8s.io/kubelet/pkg/apis/well_known_labels.go), and `registerWithTaints`; release 1.36.

use std::collections::BTreeMap;

use beelet_core::admit::{OS, OS_LABEL};
use beelet_core::spec::placement::{Effect, Taint};
use serde::Deserialize;

use super::tree::Fault;
use crate::sources::names::{label_key_fault, label_value_fault};
use crate::sources::one_of;

/// The labels of `kubernetes.io` and `k8s.io` that a node may give itself.
const ALLOWED: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    OS_LABEL,
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// And those below these.
const ALLOWED_BELOW: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];

/// Why `--node-labels` cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A part has no `=`.
    #[error("--node-labels: {0:?} is not a label: write key=value, and commas between several")]
    NoValue(String),
    /// A label that only others may give.
    #[error(
        "unknown 'kubernetes.io' or 'k8s.io' labels specified with --node-labels: [{label}]; --node-labels in the 'kubernetes.io' \
         namespace must begin with an allowed prefix ({}) or be in the specifically allowed set ({})",
        ALLOWED_BELOW.join(", "),
        ALLOWED.join(", ")
    )]
    Foreign {
        /// Its key.
        label: String,
    },
    /// A key or a value that is none.
    #[error("invalid node labels: '{text}' - {why}")]
    Invalid {
        /// The key or the value.
        text: String,
        /// What it has to be.
        why: &'static str,
    },
}

/// Reads `--node-labels`: `key=value`, with commas between several.
///
/// # Errors
/// One is none, or not for a node to give.
pub fn read(text: &str) -> Result<BTreeMap<String, String>, LabelError> {
    let mut labels = BTreeMap::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| LabelError::NoValue(part.to_owned()))?;
        let (key, value) = (key.trim(), value.trim());
        if is_kubernetes(key) && !is_own(key) {
            return Err(LabelError::Foreign { label: key.to_owned() });
        }
        for (text, fault) in [(key, label_key_fault(key)), (value, label_value_fault(value))] {
            if let Some(why) = fault {
                return Err(LabelError::Invalid { text: text.to_owned(), why });
            }
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

fn space(key: &str) -> &str {
    key.split_once('/').map_or("", |(space, _)| space)
}

fn is_below(space: &str, of: &str) -> bool {
    space.strip_suffix(of).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn is_kubernetes(key: &str) -> bool {
    ["kubernetes.io", "k8s.io"].iter().any(|of| is_below(space(key), of))
}

fn is_own(key: &str) -> bool {
    ALLOWED.contains(&key) || ALLOWED_BELOW.iter().any(|of| is_below(space(key), of))
}

/// The labels of a node of this name; those that are given lead.
#[must_use]
pub(super) fn of_node(name: &str, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let arch = architecture(std::env::consts::ARCH);
    let standard = [
        ("kubernetes.io/hostname", name),
        (OS_LABEL, OS),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", OS),
        ("beta.kubernetes.io/arch", arch),
    ];
    let mut labels: BTreeMap<_, _> = standard.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    labels.extend(given.clone());
    labels
}

/// As the API names it.
fn architecture(ours: &str) -> &str {
    match ours {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// An entry of `registerWithTaints` as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenTaint {
    key: String,
    value: String,
    effect: String,
    /// Of what a controller adds; means nothing here.
    #[serde(rename = "timeAdded")]
    _time_added: Option<String>,
}

/// Reads `registerWithTaints`.
pub(super) fn taints(given: &[WrittenTaint]) -> Result<Vec<Taint>, Fault> {
    let read = |(i, taint): (usize, &WrittenTaint)| {
        let path = format!("registerWithTaints[{i}]");
        let fault =
            |part: &str, text: &str, why: &str| Fault::new(format!("{path}.{part}"), format!("{text:?}: {why}"));
        if let Some(why) = label_key_fault(&taint.key) {
            return Err(fault("key", &taint.key, why));
        }
        if let Some(why) = label_value_fault(&taint.value) {
            return Err(fault("value", &taint.value, why));
        }
        let effects = Effect::ALL.map(|(name, effect)| (name, Some(effect)));
        let at = format!("{path}.effect");
        let effect =
            one_of(&at, Some(&taint.effect), None, &effects)?.ok_or_else(|| Fault::new(at, "Required value"))?;
        Ok(Taint { key: taint.key.clone(), value: taint.value.clone(), effect })
    };
    given.iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a4_16d_labels_of_the_command_line_are_checked_as_the_kubelet_does() {
        let pairs = |text: &str| read(text).map(|labels| labels.into_iter().collect::<Vec<_>>());
        let two = [("a", "1"), ("example.com/b", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(pairs("example.com/b=, a=1"), Ok(two.to_vec()));
        assert_eq!(pairs(""), Ok(Vec::new()));
        for fine in ["kubernetes.io/hostname=x", "x.node.kubernetes.io/y=", "topology.kubernetes.io/zone=a"] {
            assert!(read(fine).is_ok(), "{fine}");
        }
        for foreign in ["kubernetes.io/role=a", "node-role.kubernetes.io/master=", "k8s.io/x=1", "a.k8s.io/x=1"] {
            assert!(matches!(read(foreign), Err(LabelError::Foreign { .. })), "{foreign}");
        }
        // Not the same name space: only a part of a name is alike.
        assert!(read("mykubernetes.io/x=1").is_ok());
        for bad in ["-a=1", "a=-", "=1", "a/b/c=1", "a=b=c", "A_/x=1"] {
            assert!(matches!(read(bad), Err(LabelError::Invalid { .. })), "{bad}");
        }
        assert_eq!(read("a"), Err(LabelError::NoValue("a".to_owned())));
    }

    #[test]
    fn a4_16d_a_node_has_the_labels_of_its_registration() {
        let labels = of_node("n1", &BTreeMap::from([("kubernetes.io/hostname".to_owned(), "mine".to_owned())]));
        let label = |key: &str| labels.get(key).map(String::as_str);
        assert_eq!((label("kubernetes.io/hostname"), label("kubernetes.io/os")), (Some("mine"), Some("linux")));
        assert_eq!(label("kubernetes.io/arch"), label("beta.kubernetes.io/arch"));
        assert_eq!((labels.len(), architecture("x86_64"), architecture("riscv64")), (5, "amd64", "riscv64"));
    }
}
