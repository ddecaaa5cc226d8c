//! Volumes whose files are written: downwardAPI, projected, configMap, secret (pkg/apis/core/validation, release 1.37).

use std::collections::BTreeSet;

use beelet_core::content;
use beelet_core::spec::{DownwardFile, DownwardValue, KeyFile, ObjectKind, ObjectRef, Part, Written, WrittenKind};
use k8s_openapi::api::core::v1 as api;

use super::env::{field_ref, resource_ref};
use super::{invalid, required};
use crate::config::tree::Fault;

/// What a file may take from its pod (validVolumeDownwardAPIFieldPathExpressions).
const FIELD_PATHS: &[&str] =
    &["metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid"];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// `defaultMode` where there is none.
const DEFAULT_MODE: u32 = 0o644;

/// The volume, of each kind that it is said to be.
pub(super) fn written(path: &str, volume: &api::Volume) -> Result<Vec<Written>, Fault> {
    let mut made = Vec::new();
    if let Some(given) = &volume.downward_api {
        let path = format!("{path}.downwardAPI");
        let parts = vec![Part::Downward(downward(&path, given.items.as_deref())?)];
        made.push(whole(&path, WrittenKind::DownwardApi, (given.default_mode, given.default_user), parts)?);
    }
    if let Some(given) = &volume.projected {
        let path = format!("{path}.projected");
        let parts = projected(&path, given.sources.as_deref().unwrap_or_default())?;
        made.push(whole(&path, WrittenKind::Projected, (given.default_mode, given.default_user), parts)?);
    }
    if let Some(given) = &volume.config_map {
        let path = format!("{path}.configMap");
        let parts =
            vec![object(&path, "name", (ObjectKind::ConfigMap, &given.name), given.items.as_deref(), given.optional)?];
        made.push(whole(&path, WrittenKind::ConfigMap, (given.default_mode, given.default_user), parts)?);
    }
    if let Some(given) = &volume.secret {
        let path = format!("{path}.secret");
        let name = given.secret_name.as_deref().unwrap_or_default();
        let parts =
            vec![object(&path, "secretName", (ObjectKind::Secret, name), given.items.as_deref(), given.optional)?];
        made.push(whole(&path, WrittenKind::Secret, (given.default_mode, given.default_user), parts)?);
    }
    Ok(made)
}

fn whole(
    path: &str,
    kind: WrittenKind,
    (default_mode, default_user): (Option<i32>, Option<i64>),
    parts: Vec<Part>,
) -> Result<Written, Fault> {
    no_user(&format!("{path}.defaultUser"), default_user)?;
    let mode = mode(format!("{path}.defaultMode"), default_mode)?.unwrap_or(DEFAULT_MODE);
    Ok(Written { kind, mode, parts })
}

/// Alpha, and off.
fn no_user(path: &str, user: Option<i64>) -> Result<(), Fault> {
    user.map_or(Ok(()), |_| Err(Fault::new(path, "not supported yet")))
}

fn mode(path: String, given: Option<i32>) -> Result<Option<u32>, Fault> {
    let Some(given) = given else { return Ok(None) };
    match u32::try_from(given) {
        Ok(mode) if mode <= 0o777 => Ok(Some(mode)),
        _ => Err(invalid(path, &given.to_string(), MODE)),
    }
}

fn file_path(path: String, given: &str) -> Result<String, Fault> {
    if given.is_empty() {
        return Err(required(path));
    }
    content::clean(given).map_err(|error| match error {
        content::ContentError::Path { why, .. } => invalid(path, given, why),
        other => invalid(path, given, other),
    })
}

fn downward(path: &str, items: Option<&[api::DownwardAPIVolumeFile]>) -> Result<Vec<DownwardFile>, Fault> {
    let one = |(i, given): (usize, &api::DownwardAPIVolumeFile)| {
        let path = format!("{path}.items[{i}]");
        no_user(&format!("{path}.user"), given.user)?;
        let value = match (&given.field_ref, &given.resource_field_ref) {
            (Some(_), Some(_)) => {
                let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
                return Err(invalid(path, "resource", why));
            }
            (Some(field), None) => DownwardValue::Field(field_ref(&format!("{path}.fieldRef"), field, FIELD_PATHS)?),
            (None, Some(field)) => {
                DownwardValue::Resource(resource_ref(&format!("{path}.resourceFieldRef"), field, None)?)
            }
            (None, None) => {
                return Err(Fault::new(path, "Required value: one of fieldRef and resourceFieldRef is required"));
            }
        };
        let file = file_path(format!("{path}.path"), &given.path)?;
        Ok(DownwardFile { path: file, mode: mode(format!("{path}.mode"), given.mode)?, value })
    };
    items.unwrap_or_default().iter().enumerate().map(one).collect()
}

fn object(
    path: &str,
    name_field: &str,
    (kind, name): (ObjectKind, &str),
    items: Option<&[api::KeyToPath]>,
    optional: Option<bool>,
) -> Result<Part, Fault> {
    if name.is_empty() {
        return Err(required(format!("{path}.{name_field}")));
    }
    let one = |(i, given): (usize, &api::KeyToPath)| {
        let path = format!("{path}.items[{i}]");
        no_user(&format!("{path}.user"), given.user)?;
        if given.key.is_empty() {
            return Err(required(format!("{path}.key")));
        }
        let file = file_path(format!("{path}.path"), &given.path)?;
        Ok(KeyFile { key: given.key.clone(), path: file, mode: mode(format!("{path}.mode"), given.mode)? })
    };
    let items = items.unwrap_or_default().iter().enumerate().map(one).collect::<Result<_, _>>()?;
    let object = ObjectRef { kind, name: name.to_owned() };
    Ok(Part::Object { object, optional: optional.unwrap_or_default(), items })
}

fn projected(path: &str, sources: &[api::VolumeProjection]) -> Result<Vec<Part>, Fault> {
    let (mut parts, mut taken) = (Vec::new(), BTreeSet::new());
    for (i, source) in sources.iter().enumerate() {
        let at = format!("{path}.sources[{i}]");
        let mut found = Vec::new();
        if let Some(given) = &source.downward_api {
            found.push(Part::Downward(downward(&format!("{at}.downwardAPI"), given.items.as_deref())?));
        }
        if let Some(given) = &source.config_map {
            let (path, of) = (format!("{at}.configMap"), (ObjectKind::ConfigMap, given.name.as_str()));
            found.push(object(&path, "name", of, given.items.as_deref(), given.optional)?);
        }
        if let Some(given) = &source.secret {
            let (path, of) = (format!("{at}.secret"), (ObjectKind::Secret, given.name.as_str()));
            found.push(object(&path, "name", of, given.items.as_deref(), given.optional)?);
        }
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(part), None) => parts.push(part),
            (Some(_), Some(_)) => return Err(Fault::new(at, "Forbidden: may not specify more than 1 volume type")),
            // What needs an API server was refused before.
            (None, _) => return Err(required(at)),
        }
    }
    for part in &parts {
        let paths: Vec<&String> = match part {
            Part::Downward(items) => items.iter().map(|item| &item.path).collect(),
            Part::Object { items, .. } => items.iter().map(|item| &item.path).collect(),
        };
        for file in paths {
            if !taken.insert(file.clone()) {
                return Err(invalid(path, file, "conflicting duplicate paths"));
            }
        }
    }
    Ok(parts)
}
