//! The EnforcementPolicy: what beelet may do by its own judgement.
//!
//! Problem: the kubelet's file has no words for what only beelet does. Approach: a second, small document in the same file or
//! another one, with the manners of a Kubernetes object:
//!
//! ```yaml
//! apiVersion: beelet.dev/v1alpha1
//! kind: EnforcementPolicy
//! metadata: {name: default}      # optional
//! spec:
//!   mode: Enforce                # or Observe: decide and record, but do nothing; default Enforce
//!   ladder:                      # what may be done before somebody has to go: Always, OnRequest (by a pod's annotation) or Never
//!     reclaim: Always            # free page cache of pods above their request (annotation beelet.dev/reclaim)
//!     throttle: Always           # slow down the pod that drives memory to its end (beelet.dev/throttle)
//!     raise: OnRequest           # raise a container's memory limit while the node has room (beelet.dev/raise)
//!     freeze: Always             # stop the first victim until it is decided, 2 s at most (beelet.dev/freeze)
//!     leave: OnRequest           # evict before a threshold is met, with time to end (beelet.dev/leave)
//!   burst: true                  # lend idle CPU to throttled containers; default true
//!   programs:                    # eBPF programs that are not to be loaded; default all are
//!     skb_egress: false
//!   programLog: false            # pass on what the eBPF programs say of themselves; default false
//! ```
//!
//! Property: without a document everything is on, as if the document were there with an empty `spec`.

use std::collections::BTreeMap;

use beelet_core::ladder::{Allow, Rung, Rungs};
use beelet_core::node::Enforce;
use serde::Deserialize;

use super::tree::{Fault, did_you_mean};

/// `apiVersion` of beelet's own documents.
pub const API_VERSION: &str = "beelet.dev/v1alpha1";

/// The policy of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnforcementPolicy {
    /// `spec.mode`.
    pub mode: Enforce,
    /// `spec.ladder`.
    pub rungs: Rungs,
    /// `spec.burst`.
    pub burst: bool,
    /// `spec.programs`: the switches that were given, by the eBPF program's name.
    pub programs: BTreeMap<String, bool>,
    /// `spec.programLog`: whether messages of the eBPF programs go to the log.
    pub program_log: bool,
}

impl Default for EnforcementPolicy {
    fn default() -> Self {
        Self { mode: Enforce::Act, rungs: Rungs::default(), burst: true, programs: BTreeMap::new(), program_log: false }
    }
}

impl EnforcementPolicy {
    /// Whether this eBPF program is to be loaded.
    #[must_use]
    pub fn wants_program(&self, name: &str) -> bool {
        self.programs.get(name).copied().unwrap_or(true)
    }

    /// Whether all switches are for programs that exist; the caller knows their names.
    ///
    /// # Errors
    /// A switch for a program that does not exist: the one that was meant would stay on unnoticed.
    pub fn check_programs(&self, known: &[&str]) -> Result<(), Fault> {
        self.programs.keys().find(|name| !known.contains(&name.as_str())).map_or(Ok(()), |name| {
            let hint = did_you_mean(name, known.iter().copied());
            Err(Fault::new(
                format!("spec.programs.{name}"),
                format!("no such eBPF program{hint} (there are {})", known.join(", ")),
            ))
        })
    }
}

/// The document as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Document {
    #[serde(default, rename = "apiVersion")]
    _api_version: String,
    #[serde(default, rename = "kind")]
    _kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
struct Metadata {
    #[serde(default, rename = "name")]
    _name: String,
    #[serde(default, rename = "labels")]
    _labels: BTreeMap<String, String>,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    mode: Mode,
    #[serde(default)]
    ladder: Ladder,
    burst: Option<bool>,
    #[serde(default)]
    programs: BTreeMap<String, bool>,
    #[serde(default, rename = "programLog")]
    program_log: bool,
}

#[derive(Debug, Default, Deserialize)]
struct Ladder {
    reclaim: Option<Allow>,
    throttle: Option<Allow>,
    raise: Option<Allow>,
    freeze: Option<Allow>,
    leave: Option<Allow>,
}

impl From<Ladder> for Rungs {
    fn from(it: Ladder) -> Self {
        let given = [
            (Rung::Reclaim, it.reclaim),
            (Rung::Throttle, it.throttle),
            (Rung::Raise, it.raise),
            (Rung::Freeze, it.freeze),
            (Rung::Leave, it.leave),
        ];
        let given = given.into_iter().filter_map(|(rung, allow)| Some((rung, allow?)));
        given.fold(Self::default(), |rungs, (rung, allow)| rungs.with(rung, allow))
    }
}

#[derive(Debug, Default, Deserialize)]
enum Mode {
    #[default]
    Enforce,
    Observe,
}

impl From<Document> for EnforcementPolicy {
    fn from(document: Document) -> Self {
        Self {
            mode: match document.spec.mode {
                Mode::Enforce => Enforce::Act,
                Mode::Observe => Enforce::Observe,
            },
            rungs: document.spec.ladder.into(),
            burst: document.spec.burst.unwrap_or(true),
            programs: document.spec.programs,
            program_log: document.spec.program_log,
        }
    }
}
