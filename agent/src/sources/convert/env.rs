//! Environment variables (pkg/apis/core/validation, ValidateEnv and ValidateEnvFrom, release 1.37).

use beelet_core::quantity::Quantity;
use beelet_core::spec::{
    ContainerSpec, EnvFrom, EnvValue, EnvVar, ObjectKind, ObjectRef, ResourceField, ResourceKind, Volume, VolumeKind,
};
use k8s_openapi::api::core::v1 as api;

use super::{invalid, required};
use crate::config::tree::{Fault, did_you_mean};

/// What an environment variable may take from its pod (validEnvDownwardAPIFieldPathExpressions).
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// What it may take from a container's resources (validContainerResourceFieldPathExpressions).
const RESOURCES: [(&str, (bool, ResourceKind)); 6] = [
    ("limits.cpu", (true, ResourceKind::Cpu)),
    ("limits.memory", (true, ResourceKind::Memory)),
    ("limits.ephemeral-storage", (true, ResourceKind::Storage)),
    ("requests.cpu", (false, ResourceKind::Cpu)),
    ("requests.memory", (false, ResourceKind::Memory)),
    ("requests.ephemeral-storage", (false, ResourceKind::Storage)),
];
/// Divisors of what is counted in bytes.
const UNITS: &str = "1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei";
const ONE_SOURCE: &str =
    "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
const TOO_MANY: &str = "may not have more than one field specified at a time";

/// `envFrom` and `env` of a container.
pub(super) fn env(path: &str, given: &api::Container) -> Result<(Vec<EnvFrom>, Vec<EnvVar>), Fault> {
    let from = given.env_from.iter().flatten().enumerate();
    let from = from.map(|(i, from)| env_from(&format!("{path}.envFrom[{i}]"), from)).collect::<Result<_, _>>()?;
    let mut made = Vec::new();
    for (i, var) in given.env.iter().flatten().enumerate() {
        let path = format!("{path}.env[{i}]");
        if var.name.is_empty() {
            return Err(required(format!("{path}.name")));
        }
        name(format!("{path}.name"), &var.name)?;
        let value = match (&var.value, var.value_from.as_ref()) {
            (value, None) => EnvValue::Literal(value.clone().unwrap_or_default()),
            (Some(value), Some(_)) if !value.is_empty() => {
                return Err(Fault::new(format!("{path}.valueFrom"), "may not be specified when `value` is not empty"));
            }
            (_, Some(from)) => value_from(&format!("{path}.valueFrom"), from, &given.name)?,
        };
        made.push(EnvVar { name: var.name.clone(), value });
    }
    Ok((from, made))
}

/// What no program could look up.
fn name(path: String, given: &str) -> Result<(), Fault> {
    if given.contains(['=', '\0']) { Err(invalid(path, given, "must not have '='")) } else { Ok(()) }
}

fn env_from(path: &str, given: &api::EnvFromSource) -> Result<EnvFrom, Fault> {
    let prefix = given.prefix.clone().unwrap_or_default();
    name(format!("{path}.prefix"), &prefix)?;
    let (field, kind, of, optional) = match (&given.config_map_ref, &given.secret_ref) {
        (Some(_), Some(_)) => return Err(invalid(path, "", TOO_MANY)),
        (Some(of), None) => ("configMapRef", ObjectKind::ConfigMap, &of.name, of.optional),
        (None, Some(of)) => ("secretRef", ObjectKind::Secret, &of.name, of.optional),
        (None, None) => return Err(invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
    };
    if of.is_empty() {
        return Err(required(format!("{path}.{field}.name")));
    }
    let object = ObjectRef { kind, name: of.clone() };
    Ok(EnvFrom { prefix, object, optional: optional.unwrap_or_default() })
}

fn value_from(path: &str, given: &api::EnvVarSource, container: &str) -> Result<EnvValue, Fault> {
    let mut found = Vec::new();
    if let Some(field) = &given.field_ref {
        found.push(EnvValue::Field(field_ref(&format!("{path}.fieldRef"), field, FIELD_PATHS)?));
    }
    if let Some(field) = &given.resource_field_ref {
        let path = format!("{path}.resourceFieldRef");
        found.push(EnvValue::Resource(resource_ref(&path, field, Some(container))?));
    }
    if let Some(of) = &given.config_map_key_ref {
        found.push(key(&format!("{path}.configMapKeyRef"), ObjectKind::ConfigMap, (&of.name, &of.key), of.optional)?);
    }
    if let Some(of) = &given.secret_key_ref {
        found.push(key(&format!("{path}.secretKeyRef"), ObjectKind::Secret, (&of.name, &of.key), of.optional)?);
    }
    if let Some(of) = &given.file_key_ref {
        found.push(file_key(&format!("{path}.fileKeyRef"), of)?);
    }
    let mut found = found.into_iter();
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(invalid(path, "", ONE_SOURCE)),
        (Some(_), Some(_)) => Err(invalid(path, "", TOO_MANY)),
    }
}

fn key(path: &str, kind: ObjectKind, (name, key): (&str, &str), optional: Option<bool>) -> Result<EnvValue, Fault> {
    for (field, value) in [("name", name), ("key", key)] {
        if value.is_empty() {
            return Err(required(format!("{path}.{field}")));
        }
    }
    let object = ObjectRef { kind, name: name.to_owned() };
    Ok(EnvValue::Key { object, key: key.to_owned(), optional: optional.unwrap_or_default() })
}

fn file_key(path: &str, given: &api::FileKeySelector) -> Result<EnvValue, Fault> {
    for (field, value) in [("key", &given.key), ("volumeName", &given.volume_name), ("path", &given.path)] {
        if value.is_empty() {
            return Err(required(format!("{path}.{field}")));
        }
    }
    name(format!("{path}.key"), &given.key)?;
    if given.path.split('/').any(|part| part == "..") || given.path.contains('\0') {
        return Err(invalid(format!("{path}.path"), &given.path, "must not contain '..'"));
    }
    Ok(EnvValue::File {
        volume: given.volume_name.clone(),
        path: given.path.clone(),
        key: given.key.clone(),
        optional: given.optional.unwrap_or_default(),
    })
}

/// That each file of variables is in an emptyDir of the pod. `path` is the containers' list.
pub(super) fn check_files(path: &str, containers: &[ContainerSpec], volumes: &[Volume]) -> Result<(), Fault> {
    for (i, container) in containers.iter().enumerate() {
        for (j, variable) in container.env.iter().enumerate() {
            let EnvValue::File { volume: name, .. } = &variable.value else { continue };
            let path = || format!("{path}[{i}].env[{j}].valueFrom.fileKeyRef.volumeName");
            match volumes.iter().find(|volume| volume.name == *name).map(|volume| &volume.kind) {
                Some(VolumeKind::EmptyDir { .. }) => {}
                Some(_) => return Err(invalid(path(), name, "referenced volume must be of type emptyDir")),
                None => return Err(Fault::new(path(), format!("Not found: {name:?}"))),
            }
        }
    }
    Ok(())
}

/// The path of a field of the pod: one of these, or of a label or an annotation.
pub(super) fn field_ref(path: &str, given: &api::ObjectFieldSelector, fields: &[&str]) -> Result<String, Fault> {
    if let Some(version) = given.api_version.as_deref().filter(|version| !matches!(*version, "" | "v1")) {
        let why = format!("error converting fieldPath: unsupported pod version: {version}");
        return Err(invalid(format!("{path}.apiVersion"), version, why));
    }
    let field = given.field_path.as_str();
    let of_key = ["metadata.labels['", "metadata.annotations['"]
        .iter()
        .any(|start| field.strip_prefix(start).and_then(|r| r.strip_suffix("']")).is_some_and(|key| !key.is_empty()));
    if of_key || fields.contains(&field) {
        return Ok(field.to_owned());
    }
    let supported = fields.join(", ");
    let hint = did_you_mean(field, fields.iter().copied());
    Err(Fault::new(
        format!("{path}.fieldPath"),
        format!(
            "Unsupported value: {field:?}: supported values: {supported}, metadata.labels['<KEY>'], metadata.annotations['<KEY>']{hint}"
        ),
    ))
}

/// A container's resource. `own` is the container that is meant where none is named; a file has none.
pub(super) fn resource_ref(
    path: &str,
    given: &api::ResourceFieldSelector,
    own: Option<&str>,
) -> Result<ResourceField, Fault> {
    let container = given.container_name.as_deref().filter(|name| !name.is_empty()).or(own);
    let container = container.ok_or_else(|| required(format!("{path}.containerName")))?.to_owned();
    let name = given.resource.as_str();
    if name.is_empty() {
        return Err(required(format!("{path}.resource")));
    }
    let (limit, of) = super::one_of(&format!("{path}.resource"), Some(name), RESOURCES[0].1, &RESOURCES)?;
    let divisor = given.divisor.as_ref().map_or("", |divisor| &divisor.0);
    let divisor = divisor_of(&format!("{path}.divisor"), divisor, name, of)?;
    Ok(ResourceField { container, limit, of, divisor })
}

/// Unset, or zero, is one.
fn divisor_of(path: &str, given: &str, name: &str, of: ResourceKind) -> Result<u64, Fault> {
    let given = if given.is_empty() { "0" } else { given };
    let divisor: Quantity = given.parse().map_err(|error| Fault::new(path, format!("{error}")))?;
    let is_cpu = of == ResourceKind::Cpu;
    let (canonical, unset) = (divisor.to_string(), divisor.nano() == 0);
    if is_cpu {
        return match canonical.as_str() {
            "1m" => Ok(1),
            "1" => Ok(1_000),
            _ if unset => Ok(1_000),
            _ => Err(invalid(path, name, "only divisor's values 1m and 1 are supported with the cpu resource")),
        };
    }
    if unset {
        return Ok(1);
    }
    if UNITS.split(", ").any(|unit| unit == canonical) {
        return Ok(divisor.value().unsigned_abs());
    }
    let resource = if of == ResourceKind::Memory { "memory" } else { "local ephemeral storage" };
    Err(invalid(path, name, format!("only divisor's values {UNITS} are supported with the {resource} resource")))
}
