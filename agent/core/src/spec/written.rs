//! Files and variables whose content is not in the manifest: the pod's own fields, its resources, ConfigMaps and Secrets.
//!
//! Names and defaults are those of pkg/apis/core/types.go and pkg/apis/core/v1/defaults.go (release 1.37).

use serde::{Deserialize, Serialize};

/// A kind of object that pods take content from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectKind {
    /// A `ConfigMap`.
    ConfigMap,
    /// A `Secret`.
    Secret,
}

/// An object of the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// What it is.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
}

/// `envFrom`: a variable for each key of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFrom {
    /// `prefix`: goes before each key.
    pub prefix: String,
    /// `configMapRef` or `secretRef`.
    pub object: ObjectRef,
    /// `optional`: fine if it is not there.
    pub optional: bool,
}

/// `resourceFieldRef`: what a container asks for or may use at most.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceField {
    /// `containerName`; where a variable names none, the variable's own container.
    pub container: String,
    /// `limits.`, else `requests.`.
    pub limit: bool,
    /// Of what.
    pub of: ResourceKind,
    /// `divisor`, in thousandths of a core, or in bytes; at least 1. Unset is one core, or one byte.
    pub divisor: u64,
}

/// What a [`ResourceField`] can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResourceKind {
    /// `cpu`.
    Cpu,
    /// `memory`.
    Memory,
    /// `ephemeral-storage`.
    Storage,
}

/// A volume whose files beelet writes, and keeps as they should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Which kind of volume it was asked for as.
    pub kind: WrittenKind,
    /// `defaultMode`: of files that have no mode of their own, 0 to 0o777; default 0o644.
    pub mode: u32,
    /// Where the files come from; of two with one path the later counts.
    pub parts: Vec<Part>,
}

/// The kinds of written volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WrittenKind {
    /// `downwardAPI`.
    DownwardApi,
    /// `projected`.
    Projected,
    /// `configMap`.
    ConfigMap,
    /// `secret`.
    Secret,
}

impl WrittenKind {
    /// Its files are in memory; only a ConfigMap's are on the node's disk (pkg/volume/*, `wrappedVolumeSpec`).
    #[must_use]
    pub fn in_memory(self) -> bool {
        self != Self::ConfigMap
    }
}

/// Some files of a written volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// `downwardAPI.items`.
    Downward(Vec<DownwardFile>),
    /// Keys of an object.
    Object {
        /// Of which.
        object: ObjectRef,
        /// `optional`: fine if it, or one of the keys, is not there.
        optional: bool,
        /// `items`; empty for all of them, each under its own name.
        items: Vec<KeyFile>,
    },
}

/// A file with a value of the pod itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownwardFile {
    /// `path`, relative.
    pub path: String,
    /// `mode`, where it has one.
    pub mode: Option<u32>,
    /// What is in it.
    pub value: DownwardValue,
}

/// What a [`DownwardFile`] holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownwardValue {
    /// `fieldRef.fieldPath`, checked.
    Field(String),
    /// `resourceFieldRef`.
    Resource(ResourceField),
}

/// A file with the value of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFile {
    /// `key`.
    pub key: String,
    /// `path`, relative.
    pub path: String,
    /// `mode`, where it has one.
    pub mode: Option<u32>,
}
