//! Environment variables: values, references to the pod's fields, and the expansion of `$(NAME)`.
//!
//! The rules are the kubelet's: `$(NAME)` is replaced by the value of a variable defined earlier; one that is not defined
//! stays as it is; `$$` is a `$`, so `$$(NAME)` gives `$(NAME)`; any other `$` stands for itself. Commands and arguments see
//! all variables.

use beelet_core::spec::{EnvValue, PodSpec};

use super::error::SpecError;

/// What fields of the node and of the pod's status variables may refer to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    pub(super) spec: &'a PodSpec,
    pub(super) node_name: &'a str,
    pub(super) host_ips: &'a [String],
    /// "" for none.
    pub(super) pod_ip: &'a str,
}

/// The variables of a container, in order, each expanded.
pub(super) fn variables(fields: Fields<'_>, container: &str) -> Result<Vec<(String, String)>, SpecError> {
    let container = fields.spec.container(container).ok_or_else(|| SpecError::NoContainer(container.to_owned()))?;
    let mut done: Vec<(String, String)> = Vec::with_capacity(container.env.len());
    for variable in &container.env {
        let value = match &variable.value {
            EnvValue::Literal(text) => expand(text, &done),
            EnvValue::Field(path) => fields
                .value(path)
                .ok_or_else(|| SpecError::FieldPath { variable: variable.name.clone(), path: path.clone() })?,
        };
        done.push((variable.name.clone(), value));
    }
    Ok(done)
}

impl Fields<'_> {
    /// The value of a field path; `None` for one that does not exist. A label that is not there is "".
    fn value(&self, path: &str) -> Option<String> {
        let spec = self.spec;
        let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
        // In the node's network the pod has the node's addresses.
        let pod_ips = || {
            if spec.host_network { self.host_ips.to_vec() } else { vec![self.pod_ip.to_owned()] }
        };
        Some(match path {
            "metadata.name" => spec.name.clone(),
            "metadata.namespace" => spec.namespace.clone(),
            "metadata.uid" => spec.uid.as_str().to_owned(),
            "spec.nodeName" => self.node_name.to_owned(),
            // A static pod has no service account.
            "spec.serviceAccountName" => String::new(),
            "status.hostIP" => first(self.host_ips),
            "status.hostIPs" => self.host_ips.join(","),
            "status.podIP" => first(&pod_ips()),
            "status.podIPs" => pod_ips().join(","),
            _ => {
                let (map, key) = if let Some(rest) = path.strip_prefix("metadata.labels['") {
                    (&spec.labels, rest)
                } else {
                    (&spec.annotations, path.strip_prefix("metadata.annotations['")?)
                };
                map.get(key.strip_suffix("']")?).cloned().unwrap_or_default()
            }
        })
    }
}

/// Replaces `$(NAME)`. Of two variables of one name the later counts.
pub(crate) fn expand(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            match variables.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_by_the_kubelets_rules() {
        let variables = [("A", "1"), ("B", "two"), ("EMPTY", ""), ("A", "last")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "last"),
            ("x$(A)$(B)y", "xlasttwoy"),
            ("$(EMPTY)|", "|"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$last"),
            ("$$$$(A)", "$$(A)"),
            ("$A ${A}", "$A ${A}"),
            ("$(A", "$(A"),
            ("$()", "$()"),
            ("cost: 5$", "cost: 5$"),
            ("$(A$(B))", "$(A$(B))"),
            ("ü$(B)ü", "ütwoü"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }
}
