//! `volumeMounts`, by the rules of pkg/apis/core/validation (ValidateVolumeMounts, release 1.36).

use std::collections::BTreeSet;

use beelet_core::spec::{Mount, Propagation, RecursiveReadOnly, SubPath, check_descending};
use k8s_openapi::api::core::v1 as api;

use super::{invalid, one_of};
use crate::config::tree::{Fault, did_you_mean};

/// The mounts of a container; `volumes` are the names that there are.
pub(super) fn mounts(path: &str, given: &api::Container, volumes: &BTreeSet<&str>) -> Result<Vec<Mount>, Fault> {
    let privileged = given.security_context.as_ref().and_then(|context| context.privileged).unwrap_or_default();
    let mut made: Vec<Mount> = Vec::new();
    for (i, mount) in given.volume_mounts.iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{i}]");
        if !volumes.contains(mount.name.as_str()) {
            let hint = did_you_mean(&mount.name, volumes.iter().copied());
            return Err(Fault::new(
                format!("{path}.name"),
                format!("Not found: {:?}: no such volume in spec.volumes{hint}", mount.name),
            ));
        }
        if !mount.mount_path.starts_with('/') || mount.mount_path.split('/').any(|p| p == "..") {
            return Err(invalid(
                format!("{path}.mountPath"),
                &mount.mount_path,
                "must be an absolute path without '..'",
            ));
        }
        if made.iter().any(|other| other.path == mount.mount_path) {
            return Err(invalid(format!("{path}.mountPath"), &mount.mount_path, "must be unique"));
        }
        let read_only = mount.read_only.unwrap_or_default();
        let propagation = propagation(&path, mount, privileged)?;
        made.push(Mount {
            volume: mount.name.clone(),
            path: mount.mount_path.clone(),
            read_only,
            sub_path: sub_path(&path, mount)?,
            propagation,
            recursive_read_only: recursive_read_only(&path, mount, read_only, propagation)?,
        });
    }
    Ok(made)
}

fn sub_path(path: &str, mount: &api::VolumeMount) -> Result<SubPath, Fault> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let descending = |field: &str, text: &str| {
        check_descending(text).map_err(|fault| invalid(format!("{path}.{field}"), text, fault))
    };
    match (given(&mount.sub_path), given(&mount.sub_path_expr)) {
        (None, None) => Ok(SubPath::Whole),
        (Some(text), None) => descending("subPath", &text).map(|()| SubPath::Path(text)),
        (None, Some(text)) => descending("subPathExpr", &text).map(|()| SubPath::Expr(text)),
        (Some(_), Some(text)) => {
            Err(invalid(format!("{path}.subPathExpr"), &text, "subPathExpr and subPath are mutually exclusive"))
        }
    }
}

fn propagation(path: &str, mount: &api::VolumeMount, privileged: bool) -> Result<Propagation, Fault> {
    let path = format!("{path}.mountPropagation");
    let wish = one_of(&path, mount.mount_propagation.as_deref(), Propagation::None, &Propagation::ALL)?;
    if wish == Propagation::Bidirectional && !privileged {
        let why = "Forbidden: Bidirectional mount propagation is available only to privileged containers";
        return Err(Fault::new(path, why));
    }
    Ok(wish)
}

fn recursive_read_only(
    path: &str,
    mount: &api::VolumeMount,
    read_only: bool,
    propagation: Propagation,
) -> Result<RecursiveReadOnly, Fault> {
    let path = format!("{path}.recursiveReadOnly");
    let given = mount.recursive_read_only.as_deref();
    let wish = one_of(&path, given, RecursiveReadOnly::Disabled, &RecursiveReadOnly::ALL)?;
    if wish == RecursiveReadOnly::Disabled {
        return Ok(wish);
    }
    if !read_only {
        return Err(Fault::new(path, "Forbidden: may only be specified when readOnly is true"));
    }
    if propagation != Propagation::None {
        let why = "Forbidden: may only be specified when mountPropagation is None or not specified";
        return Err(Fault::new(path, why));
    }
    Ok(wish)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::manifest::parse;

    /// The one mount of a container with these entries.
    fn read(container: &str, mount: &str) -> Result<Mount, String> {
        let text = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{volumes: [{{name: v}}], containers: [{{name: c, \
             image: 'i:1', {container}volumeMounts: [{{name: v, mountPath: /v, {mount}}}]}}]}}}}"
        );
        let parsed = parse(text.as_bytes(), "/pods/web.yaml", "node").remove(0).map_err(|error| error.to_string())?;
        Ok(parsed.spec.containers[0].mounts[0].clone())
    }

    fn refused(container: &str, mount: &str, why: &str) {
        let error = read(container, mount).expect_err(mount);
        assert!(error.contains(&format!("spec.containers[0].volumeMounts[0].{why}")), "{mount}: {error}");
    }

    #[test]
    fn a7_8_sub_paths_descend_or_the_pod_is_refused() {
        let of = |mount: &str| read("", mount).expect("a mount").sub_path;
        assert_eq!(of("subPath: ''"), SubPath::Whole);
        assert_eq!(of("subPath: a/b"), SubPath::Path("a/b".to_owned()));
        assert_eq!(of("subPathExpr: $(A)/b"), SubPath::Expr("$(A)/b".to_owned()));
        let up = "must not contain '..'";
        refused("", "subPath: ../a", &format!("subPath (line 1): Invalid value: \"../a\": {up}"));
        refused("", "subPath: a/../../b", "subPath (line 1): Invalid value");
        refused("", "subPathExpr: $(A)/..", &format!("subPathExpr (line 1): Invalid value: \"$(A)/..\": {up}"));
        refused("", "subPath: /etc", "subPath (line 1): Invalid value: \"/etc\": must be a relative path");
        refused("", "subPathExpr: /$(A)", "subPathExpr (line 1): Invalid value: \"/$(A)\": must be a relative path");
        let why = "subPathExpr (line 1): Invalid value: \"b\": subPathExpr and subPath are mutually exclusive";
        refused("", "subPath: a, subPathExpr: b", why);
    }

    #[test]
    fn a7_10b_only_privileged_containers_give_their_mounts_to_the_node() {
        let privileged = "securityContext: {privileged: true}, ";
        let of = |container: &str, mount: &str| read(container, mount).expect("a mount").propagation;
        assert_eq!(of("", ""), Propagation::None);
        assert_eq!(of("", "mountPropagation: None"), Propagation::None);
        assert_eq!(of("", "mountPropagation: HostToContainer"), Propagation::HostToContainer);
        assert_eq!(of(privileged, "mountPropagation: Bidirectional"), Propagation::Bidirectional);
        let why =
            "mountPropagation (line 1): Forbidden: Bidirectional mount propagation is available only to privileged";
        refused("", "mountPropagation: Bidirectional", why);
        refused("", "mountPropagation: Both", "mountPropagation (line 1): Unsupported value: \"Both\"");
    }

    #[test]
    fn a7_10c_recursive_read_only_is_for_read_only_mounts() {
        let of = |mount: &str| read("", mount).expect("a mount").recursive_read_only;
        assert_eq!(of("recursiveReadOnly: Disabled"), RecursiveReadOnly::Disabled);
        assert_eq!(of("readOnly: true, recursiveReadOnly: IfPossible"), RecursiveReadOnly::IfPossible);
        assert_eq!(of("readOnly: true, recursiveReadOnly: Enabled"), RecursiveReadOnly::Enabled);
        let field = "recursiveReadOnly (line 1)";
        let only = "Forbidden: may only be specified when";
        refused("", "recursiveReadOnly: Enabled", &format!("{field}: {only} readOnly is true"));
        let both = "readOnly: true, recursiveReadOnly: IfPossible, mountPropagation: HostToContainer";
        refused("", both, &format!("{field}: {only} mountPropagation is None or not specified"));
        refused("", "readOnly: true, recursiveReadOnly: Yes", &format!("{field}: Unsupported value: \"Yes\""));
    }
}
