//! Environment variables: values, references, and the expansion of `$(NAME)`.
//!
//! The rules are the kubelet's (pkg/kubelet/kubelet_pods.go, makeEnvironmentVariables, release 1.37): `envFrom` comes first and `env` goes
//! over it; of two variables of one name the last counts, and is there once; `$(NAME)` is replaced by the value of a variable defined earlier; one that is not defined
//! stays as it is; `$$` is a `$`, so `$$(NAME)` gives `$(NAME)`; any other `$` stands for itself. Commands and arguments see
//! all variables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use beelet_core::content::{self, Allocatable, Found, ObjectError};
use beelet_core::spec::{ContainerSpec, EnvValue, ObjectRef, PodSpec};

use super::error::SpecError;
use super::ops::ContainerStart;
use super::spec_to_cri::NodeEnv;
use super::{env_file, paths};
use crate::volumes::Objects;

/// What the variables of a container take from outside of its pod's manifest. Its `Debug` shows no values.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Given {
    objects: BTreeMap<ObjectRef, Found>,
    /// By volume and path.
    files: BTreeMap<(String, String), Result<String, String>>,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.objects.keys()).entries(self.files.keys()).finish()
    }
}

/// The objects and the files that a container's variables refer to, each as often as it is named.
fn references(container: &ContainerSpec) -> (impl Iterator<Item = &ObjectRef>, impl Iterator<Item = (&str, &str)>) {
    let keys = container.env.iter().filter_map(|variable| match &variable.value {
        EnvValue::Key { object, .. } => Some(object),
        _ => None,
    });
    let files = container.env.iter().filter_map(|variable| match &variable.value {
        EnvValue::File { volume, path, .. } => Some((volume.as_str(), path.as_str())),
        _ => None,
    });
    (container.env_from.iter().map(|from| &from.object).chain(keys), files)
}

impl Given {
    /// Whether anything has to be looked up.
    #[must_use]
    pub fn is_needed(container: &ContainerSpec) -> bool {
        let (mut objects, mut files) = references(container);
        objects.next().is_some() || files.next().is_some()
    }

    /// Looks everything up. Blocks.
    #[must_use]
    pub fn look_up(spec: &PodSpec, container: &str, root: &Path, all: &dyn Objects) -> Self {
        let mut given = Self::default();
        let Some(container) = spec.container(container) else { return given };
        let (objects, files) = references(container);
        for object in objects {
            given.objects.entry(object.clone()).or_insert_with(|| all.get(&spec.namespace, object));
        }
        for (volume, path) in files {
            let read = || env_file::read(&paths::empty_dir(root, &spec.uid, volume), path);
            given.files.entry((volume.to_owned(), path.to_owned())).or_insert_with(read);
        }
        given
    }

    /// `None` for what is not there and optional.
    fn object(&self, of: &ObjectRef, optional: bool) -> Result<Option<&content::Object>, SpecError> {
        match self.objects.get(of) {
            Some(Ok(found)) => Ok(Some(found)),
            Some(Err(ObjectError::NotFound(_))) if optional => Ok(None),
            Some(Err(error)) => Err(SpecError::Object(error.clone())),
            None => Err(SpecError::Object(ObjectError::NotFound(of.clone()))),
        }
    }
}

/// What fields of the node and of the pod's status variables may refer to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fields<'a> {
    pub(super) spec: &'a PodSpec,
    pub(super) node_name: &'a str,
    pub(super) host_ips: &'a [String],
    /// "" for none.
    pub(super) pod_ip: &'a str,
    /// What a container may use that has no limit.
    pub(super) allocatable: Allocatable,
}

/// The variables of a container, each once and expanded, in the order in which their names come first.
pub(super) fn variables(
    fields: Fields<'_>,
    container: &str,
    given: &Given,
) -> Result<Vec<(String, String)>, SpecError> {
    let container = fields.spec.container(container).ok_or_else(|| SpecError::NoContainer(container.to_owned()))?;
    let mut done: Vec<(String, String)> = Vec::with_capacity(container.env.len());
    let set = |done: &mut Vec<(String, String)>, name: &str, value: String| match done
        .iter_mut()
        .find(|(known, _)| known == name)
    {
        Some((_, old)) => *old = value,
        None => done.push((name.to_owned(), value)),
    };
    for from in &container.env_from {
        for (key, value) in given.object(&from.object, from.optional)?.iter().flat_map(|object| &object.data) {
            let name = format!("{}{key}", from.prefix);
            let value = text(&name, value)?;
            set(&mut done, &name, value);
        }
    }
    for variable in &container.env {
        let value = match &variable.value {
            EnvValue::Literal(text) => Some(expand(text, &done)),
            other => fields.referred(&variable.name, other, given)?,
        };
        if let Some(value) = value {
            set(&mut done, &variable.name, value);
        }
    }
    Ok(done)
}

fn text(variable: &str, value: &[u8]) -> Result<String, SpecError> {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(SpecError::NotText(variable.to_owned())),
    }
}

impl<'a> Fields<'a> {
    /// Those of a run of a container.
    pub(super) fn of(node: &'a NodeEnv, start: &ContainerStart<'a>) -> Self {
        Self {
            spec: start.spec,
            node_name: &node.node_name,
            host_ips: &node.host_ips,
            pod_ip: start.pod_ip,
            allocatable: node.allocatable,
        }
    }

    /// What a reference leads to; `None` for what is not there and optional.
    fn referred(&self, variable: &str, value: &EnvValue, given: &Given) -> Result<Option<String>, SpecError> {
        match value {
            EnvValue::Literal(text) => Ok(Some(text.clone())),
            EnvValue::Field(path) => self
                .value(path)
                .map(Some)
                .ok_or_else(|| SpecError::FieldPath { variable: variable.to_owned(), path: path.clone() }),
            EnvValue::Resource(field) => content::resource(self.spec, field, self.allocatable)
                .map(|value| Some(value.to_string()))
                .ok_or_else(|| SpecError::NoContainer(field.container.clone())),
            EnvValue::Key { object, key, optional } => {
                let Some(found) = given.object(object, *optional)? else { return Ok(None) };
                match found.data.get(key) {
                    Some(value) => text(variable, value).map(Some),
                    None if *optional => Ok(None),
                    None => Err(SpecError::NoKey {
                        object: object.clone(),
                        namespace: self.spec.namespace.clone(),
                        key: key.clone(),
                    }),
                }
            }
            EnvValue::File { volume, path, key, optional } => {
                let broken = |why: String| SpecError::EnvFile { volume: volume.clone(), path: path.clone(), why };
                let text = given.files.get(&(volume.clone(), path.clone())).cloned();
                let text = text.unwrap_or_else(|| Err("it was not read".to_owned())).map_err(broken)?;
                match env_file::value(&text, key).map_err(broken)? {
                    value if !value.is_empty() => Ok(Some(value)),
                    _ if *optional => Ok(None),
                    _ => Err(SpecError::NoFileKey { key: key.clone(), volume: volume.clone(), path: path.clone() }),
                }
            }
        }
    }

    /// The value of a field path; `None` for one that does not exist. A label that is not there is "".
    fn value(&self, path: &str) -> Option<String> {
        let spec = self.spec;
        let first = |ips: &[String]| ips.first().cloned().unwrap_or_default();
        // In the node's network the pod has the node's addresses.
        let pod_ips = || {
            if spec.host_network { self.host_ips.to_vec() } else { vec![self.pod_ip.to_owned()] }
        };
        Some(match path {
            "spec.nodeName" => self.node_name.to_owned(),
            // A static pod has no service account.
            "spec.serviceAccountName" => String::new(),
            "status.hostIP" => first(self.host_ips),
            "status.hostIPs" => self.host_ips.join(","),
            "status.podIP" => first(&pod_ips()),
            "status.podIPs" => pod_ips().join(","),
            _ => return content::metadata(spec, path),
        })
    }
}

/// Replaces `$(NAME)`. Of two variables of one name the later counts.
pub(crate) fn expand(text: &str, variables: &[(String, String)]) -> String {
    expand_by(text, |name| value_of(variables, name).map_or_else(|| format!("$({name})"), str::to_owned))
}

/// Replaces `$(NAME)` in what makes no sense with a part missing.
///
/// # Errors
/// The names of variables that are not defined or empty, sorted (pkg/kubelet/container/helpers.go, ExpandContainerVolumeMounts).
pub(super) fn expand_all(text: &str, variables: &[(String, String)]) -> Result<String, Vec<String>> {
    let mut missing = BTreeSet::new();
    let expanded = expand_by(text, |name| match value_of(variables, name) {
        Some(value) if !value.is_empty() => value.to_owned(),
        _ => {
            missing.insert(name.to_owned());
            String::new()
        }
    });
    if missing.is_empty() { Ok(expanded) } else { Err(missing.into_iter().collect()) }
}

fn value_of<'a>(variables: &'a [(String, String)], name: &str) -> Option<&'a str> {
    variables.iter().rev().find(|(known, _)| known == name).map(|(_, value)| &**value)
}

fn expand_by(text: &str, mut value: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|open| open.split_once(')')) {
            out.push_str(&value(name));
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
    use beelet_core::spec::{EnvFrom, EnvVar, ObjectKind, PodUid, ResourceField, ResourceKind};
    use beelet_core::units::{Bytes, MilliCpu};

    use super::*;

    fn object(kind: ObjectKind, name: &str) -> ObjectRef {
        ObjectRef { kind, name: name.to_owned() }
    }

    fn from(prefix: &str, object: ObjectRef, optional: bool) -> EnvFrom {
        EnvFrom { prefix: prefix.to_owned(), object, optional }
    }

    fn variable(name: &str, value: EnvValue) -> EnvVar {
        EnvVar { name: name.to_owned(), value }
    }

    fn literal(text: &str) -> EnvValue {
        EnvValue::Literal(text.to_owned())
    }

    fn key(object: ObjectRef, key: &str, optional: bool) -> EnvValue {
        EnvValue::Key { object, key: key.to_owned(), optional }
    }

    fn file(path: &str, key: &str, optional: bool) -> EnvValue {
        EnvValue::File { volume: "v".to_owned(), path: path.to_owned(), key: key.to_owned(), optional }
    }

    /// A ConfigMap `c`, a Secret `s`, and files.
    #[derive(Debug)]
    struct All;

    impl Objects for All {
        fn get(&self, namespace: &str, of: &ObjectRef) -> Found {
            assert_eq!(namespace, "default");
            let data = |pairs: &[(&str, &[u8])]| pairs.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect();
            match (of.kind, of.name.as_str()) {
                (ObjectKind::ConfigMap, "c") => Ok(content::Object {
                    data: data(&[("A", b"conf"), ("B", b"$(A)")]),
                    binary: data(&[("raw", b"x")]),
                }),
                (ObjectKind::Secret, "s") => Ok(content::Object {
                    data: data(&[("A", b"secret"), ("bad", b"\xff")]),
                    ..content::Object::default()
                }),
                _ => Err(ObjectError::NotFound(of.clone())),
            }
        }
    }

    fn made(env_from: Vec<EnvFrom>, env: Vec<EnvVar>) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let mut spec = PodSpec::unknown(PodUid::from("u1"));
        spec.containers = vec![ContainerSpec { env_from, env, ..ContainerSpec::unknown("c") }];
        let volume = paths::empty_dir(dir.path(), &spec.uid, "v");
        std::fs::create_dir_all(&volume).expect("a folder");
        std::fs::write(volume.join("env"), "A='from a file'\n").expect("a file");
        std::fs::write(volume.join("broken"), "A").expect("a file");
        let given = Given::look_up(&spec, "c", dir.path(), &All);
        let fields = Fields {
            spec: &spec,
            node_name: "n",
            host_ips: &[],
            pod_ip: "",
            allocatable: Allocatable { cpu: MilliCpu(3_500), memory: Bytes::gib(2), storage: Bytes::ZERO },
        };
        let found = variables(fields, "c", &given).map_err(|error| error.to_string())?;
        Ok(found.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
    }

    #[test]
    fn a8_4_variables_come_from_objects_and_env_goes_over_env_from() {
        let (map, secret) = (object(ObjectKind::ConfigMap, "c"), object(ObjectKind::Secret, "s"));
        let none = object(ObjectKind::Secret, "none");
        let found = made(
            vec![from("", map.clone(), false), from("P_", map.clone(), true), from("X_", none.clone(), true)],
            vec![
                variable("C", literal("$(P_A)-$(B)")),
                variable("B", key(secret.clone(), "A", false)),
                variable("NONE", key(none.clone(), "A", true)),
                variable("NO_KEY", key(map.clone(), "none", true)),
                variable("A", key(map.clone(), "none", true)),
            ],
        );
        let expected = ["A=conf", "B=secret", "P_A=conf", "P_B=$(A)", "C=conf-$(A)"];
        assert_eq!(found.as_deref(), Ok(&expected.map(str::to_owned)[..]));
        let failed = |env_from, env, said: &str| {
            let error = made(env_from, env).expect_err(said);
            assert!(error.contains(said), "{error}");
        };
        let one = |value| vec![variable("V", value)];
        failed(vec![from("", none.clone(), false)], vec![], "secret \"none\" not found");
        failed(vec![], one(key(none, "A", false)), "secret \"none\" not found");
        failed(vec![], one(key(map.clone(), "x", false)), "couldn't find key x in configMap default/c");
        failed(vec![], one(key(map, "raw", false)), "couldn't find key raw in configMap default/c");
        failed(vec![], one(key(secret.clone(), "bad", false)), "variable \"V\": its value is not text");
        failed(vec![from("S_", secret, false)], vec![], "variable \"S_bad\": its value is not text");
    }

    #[test]
    fn a8_5_variables_come_from_files_of_the_pod() {
        let found = made(vec![], vec![variable("V", file("env", "A", false)), variable("W", file("env", "B", true))]);
        assert_eq!(found.as_deref(), Ok(&["V=from a file".to_owned()][..]));
        for (value, said) in [
            (file("env", "B", false), "environment variable key \"B\" not found in file \"env\" of volume \"v\""),
            (
                file("broken", "A", true),
                "couldn't parse env file \"broken\" of volume \"v\": invalid environment variable",
            ),
            (file("none", "A", true), "couldn't parse env file \"none\" of volume \"v\": failed to open"),
        ] {
            let error = made(vec![], vec![variable("V", value)]).expect_err(said);
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn a8_3_variables_tell_of_resources() {
        let of = |container: &str, of, divisor| {
            EnvValue::Resource(ResourceField { container: container.to_owned(), limit: true, of, divisor })
        };
        let found = made(
            vec![],
            vec![
                variable("CPUS", of("c", ResourceKind::Cpu, 1_000)),
                variable("MEMORY", of("c", ResourceKind::Memory, 1 << 20)),
            ],
        );
        assert_eq!(found.as_deref(), Ok(&["CPUS=4".to_owned(), "MEMORY=2048".to_owned()][..]));
        let error = made(vec![], vec![variable("V", of("x", ResourceKind::Cpu, 1))]).expect_err("no container");
        assert_eq!(error, "the pod has no container \"x\"");
    }

    #[test]
    fn a8_9_of_two_variables_of_one_name_the_last_counts_once() {
        let found = made(
            vec![],
            vec![
                variable("A", literal("1")),
                variable("B", literal("$(A)")),
                variable("A", literal("$(A)2")),
                variable("C", literal("$(A)")),
            ],
        );
        assert_eq!(found.as_deref(), Ok(&["A=12", "B=1", "C=12"].map(str::to_owned)[..]));
    }

    #[test]
    fn a8_1_references_are_expanded_by_the_kubelets_rules() {
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

    #[test]
    fn a7_8b_a_sub_path_lacks_no_part() {
        let variables = [("A", "1"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let of = |text: &str| expand_all(text, &variables).map_err(|missing| missing.join(", "));
        assert_eq!(of("x/$(A)/$$(B)/y"), Ok("x/1/$(B)/y".to_owned()));
        assert_eq!(of("$(Z)/$(EMPTY)/$(A)/$(B)/$(Z)"), Err("B, EMPTY, Z".to_owned()));
    }
}
