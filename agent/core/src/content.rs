//! What is in written files and referring variables.
//!
//! Problem: a pod wants to know its own labels and limits, and keys of ConfigMaps and Secrets, byte for byte as the kubelet would tell
//! them; and a volume's paths come from people. Approach: pure functions from the pod, the node's allocatable and the objects to values
//! and [`Files`]; paths are checked before anybody writes. The edge (`beelet::volumes`) brings the objects and writes.
//!
//! Sources: pkg/fieldpath/fieldpath.go, pkg/api/v1/resource/helpers.go (ExtractContainerResourceValue), pkg/volume/downwardapi,
//! pkg/volume/projected, pkg/volume/configmap, pkg/volume/secret, pkg/volume/util/atomic_writer.go (validatePath), release 1.37.
//!
//! Properties (tested): the same pod gives the same bytes; no path of [`Files`] leads out of its volume or into what the writer needs
//! for itself; what is asked for and not there is an error that names it, unless it is optional.

use std::collections::BTreeMap;
use std::fmt;

use crate::node::NodeConfig;
use crate::spec::{
    ContainerSpec, DownwardValue, KeyFile, ObjectKind, ObjectRef, Part, PodSpec, ResourceField, ResourceKind, Written,
};
use crate::units::{Bytes, MilliCpu};

/// What the node has for pods: the limit of a container that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// CPU.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
    /// `ephemeral-storage`.
    pub storage: Bytes,
}

impl From<&NodeConfig> for Allocatable {
    fn from(node: &NodeConfig) -> Self {
        let given = node.allocatable();
        Self { cpu: given.cpu, memory: given.memory, storage: node.storage }
    }
}

/// The content of a ConfigMap or Secret. Its `Debug` shows the keys only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// `data`, of a Secret decoded.
    pub data: BTreeMap<String, Vec<u8>>,
    /// `binaryData` of a ConfigMap: for files, not for variables.
    pub binary: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.data.keys().chain(self.binary.keys())).finish()
    }
}

/// Why there is no [`Object`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// There is none of that name.
    #[error("{} {:?} not found", kind_of(.0.kind), .0.name)]
    NotFound(ObjectRef),
    /// Nobody can be asked.
    #[error("couldn't get {kind} {namespace}/{name}, no kubeClient defined", kind = kind_in_text(.object.kind), name = .object.name)]
    NoClient {
        /// The namespace.
        namespace: String,
        /// Which was asked for.
        object: ObjectRef,
    },
    /// Whoever was asked failed.
    #[error("{0}")]
    Failed(String),
}

/// What a lookup of an object gives.
pub type Found = Result<Object, ObjectError>;

/// A volume's files by their clean relative paths.
pub type Files = BTreeMap<String, File>;

/// A file that is to be. Its `Debug` does not show its content.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub data: Vec<u8>,
    /// Its permissions, 0 to 0o777.
    pub mode: u32,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("bytes", &self.data.len()).field("mode", &self.mode).finish()
    }
}

/// Why a volume has no content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// A path that a volume must not have.
    #[error("invalid path: {why}: {path}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A field that there is not.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// A container that there is not.
    #[error("container {0} not found")]
    Container(String),
    /// An object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A key that its object has not.
    #[error("references non-existent {} key: {key}", if matches!(kind, ObjectKind::Secret) { "secret" } else { "config" })]
    Key {
        /// What the object is.
        kind: ObjectKind,
        /// The key.
        key: String,
    },
}

fn kind_of(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::ConfigMap => "configmap",
        ObjectKind::Secret => "secret",
    }
}

/// As the kubelet writes it in the middle of a message.
#[must_use]
pub fn kind_in_text(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::ConfigMap => "configMap",
        ObjectKind::Secret => "secret",
    }
}

/// The value of a field of the pod's metadata; `None` for one that does not exist. A label or an annotation that is not there is "";
/// all of them are lines `key="value"`, sorted.
#[must_use]
pub fn metadata(spec: &PodSpec, path: &str) -> Option<String> {
    Some(match path {
        "metadata.name" => spec.name.clone(),
        "metadata.namespace" => spec.namespace.clone(),
        "metadata.uid" => spec.uid.as_str().to_owned(),
        "metadata.labels" => lines(&spec.labels),
        "metadata.annotations" => lines(&spec.annotations),
        _ => {
            let (map, key) = match path.strip_prefix("metadata.labels['") {
                Some(rest) => (&spec.labels, rest),
                None => (&spec.annotations, path.strip_prefix("metadata.annotations['")?),
            };
            map.get(key.strip_suffix("']")?).cloned().unwrap_or_default()
        }
    })
}

fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", Quoted(value))).collect();
    lines.join("\n")
}

/// Text in double quotes as Go's `strconv.Quote` writes it.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                '\u{7}' => f.write_str("\\a")?,
                '\u{8}' => f.write_str("\\b")?,
                '\u{c}' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\u{b}' => f.write_str("\\v")?,
                c if is_printable(c) => write!(f, "{c}")?,
                c if c < '\u{80}' => write!(f, "\\x{:02x}", u32::from(c))?,
                c if c < '\u{10000}' => write!(f, "\\u{:04x}", u32::from(c))?,
                c => write!(f, "\\U{:08x}", u32::from(c))?,
            }
        }
        f.write_str("\"")
    }
}

/// Go's `unicode.IsPrint` and Rust's escapes know the same classes of characters. A mark is not escaped after a letter.
fn is_printable(c: char) -> bool {
    c == '\'' || !format!("a{c}").escape_debug().to_string().contains('\\')
}

/// The value of a resource, in units of its divisor, rounded up. No limit, or one of zero, is what the node has for pods; no request is 0.
/// `None` if there is no such container.
#[must_use]
pub fn resource(spec: &PodSpec, field: &ResourceField, node: Allocatable) -> Option<u64> {
    let ContainerSpec { resources, storage, .. } = spec.container(&field.container)?;
    let (request, limit, node) = match field.of {
        ResourceKind::Cpu => {
            (resources.cpu_request.map(MilliCpu::get), resources.cpu_limit.map(MilliCpu::get), node.cpu.get())
        }
        ResourceKind::Memory => {
            (resources.memory_request.map(Bytes::get), resources.memory_limit.map(Bytes::get), node.memory.get())
        }
        ResourceKind::Storage => (storage.request.map(Bytes::get), storage.limit.map(Bytes::get), node.storage.get()),
    };
    let value = if field.limit { limit.filter(|limit| *limit > 0).unwrap_or(node) } else { request.unwrap_or(0) };
    Some(value.div_ceil(field.divisor.max(1)))
}

/// The objects that a volume takes files from.
pub fn objects_of(written: &Written) -> impl Iterator<Item = &ObjectRef> {
    written.parts.iter().filter_map(|part| match part {
        Part::Object { object, .. } => Some(object),
        Part::Downward(_) => None,
    })
}

/// The files of a volume. `get` looks objects up.
///
/// # Errors
/// If a path is not allowed, or something is not there and not optional.
pub fn files(
    spec: &PodSpec,
    written: &Written,
    node: Allocatable,
    get: &dyn Fn(&ObjectRef) -> Found,
) -> Result<Files, ContentError> {
    let mut files = Files::new();
    let mut put = |path: &str, data: Vec<u8>, mode: Option<u32>| -> Result<(), ContentError> {
        files.insert(clean(path)?, File { data, mode: mode.unwrap_or(written.mode) });
        Ok(())
    };
    for part in &written.parts {
        match part {
            Part::Downward(items) => {
                for item in items {
                    let value = match &item.value {
                        DownwardValue::Field(path) => {
                            metadata(spec, path).ok_or_else(|| ContentError::Field(path.clone()))?
                        }
                        DownwardValue::Resource(field) => resource(spec, field, node)
                            .ok_or_else(|| ContentError::Container(field.container.clone()))?
                            .to_string(),
                    };
                    put(&item.path, value.into_bytes(), item.mode)?;
                }
            }
            Part::Object { object, optional, items } => {
                let found = match get(object) {
                    Err(ObjectError::NotFound(_)) if *optional => Object::default(),
                    found => found?,
                };
                if items.is_empty() {
                    for (key, value) in found.data.into_iter().chain(found.binary) {
                        put(&key, value, None)?;
                    }
                    continue;
                }
                for KeyFile { key, path, mode } in items {
                    match found.data.get(key).or_else(|| found.binary.get(key)) {
                        Some(value) => put(path, value.clone(), *mode)?,
                        None if *optional => {}
                        None => return Err(ContentError::Key { kind: object.kind, key: key.clone() }),
                    }
                }
            }
        }
    }
    // A name cannot be a file and a folder.
    for path in files.keys() {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        if let Some(file) = above.into_iter().find(|above| files.contains_key(*above)) {
            return Err(ContentError::Path { path: file.to_owned(), why: "is a file and a folder" });
        }
    }
    Ok(files)
}

/// Bytes of a path at most.
const MAX_PATH: usize = 4_096;
/// Bytes of a name in it at most.
const MAX_NAME: usize = 255;

/// A relative path below its volume, without needless parts. What begins with `..` is the writer's own.
///
/// # Errors
/// If it is not.
pub fn clean(path: &str) -> Result<String, ContentError> {
    let fault = |why| Err(ContentError::Path { path: path.to_owned(), why });
    if path.is_empty() {
        return fault("must not be empty");
    }
    if path.starts_with('/') {
        return fault("must be relative path");
    }
    if path.len() > MAX_PATH {
        return fault("must be less than or equal to 4096 characters");
    }
    if path.contains('\0') {
        return fault("must not contain a NUL");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return fault("must not contain '..'");
    }
    if parts.iter().any(|part| part.len() > MAX_NAME) {
        return fault("filenames must be less than or equal to 255 characters");
    }
    match parts.first() {
        None => fault("must not be the volume itself"),
        Some(first) if first.starts_with("..") => fault("must not start with '..'"),
        Some(_) => Ok(parts.join("/")),
    }
}

#[cfg(test)]
mod tests;
