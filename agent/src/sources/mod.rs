//! Where pods are wanted: one source at a time, each telling the whole set.
//!
//! Problem: pods come from a folder now, from the API server and the kubelet's pods API later; the core wants plain, checked
//! pods and must not care. Approach: a source publishes a [`SourceState`], all that it wants now, through a watch channel. Whoever
//! is slow sees the newest state, never an old one. [`SourceState::event`] makes the core's event of it.
//!
//! Terms: [`manifest`] is the pure reader; [`folder`] the source of static pods; a *rejected* pod is told to people and not run.
//!
//! Properties: a source that cannot read keeps what it wanted last: "unreadable" is never taken for "no pods".

mod convert;
pub mod folder;
mod lifecycle;
pub mod manifest;
pub(crate) mod names;
mod probe;
mod restart;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::event::{Event, Rejected};
use beelet_core::spec::{PodSpec, PodUid};
use k8s_openapi::api::core::v1::Pod;

pub(crate) use convert::one_of;
pub use folder::{FolderSource, Options};
pub use manifest::{ManifestError, Parsed};
pub use names::{is_dns1123_label, is_dns1123_subdomain};

/// All that a source wants at a moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceState {
    /// The source has read its pods once, with none in doubt (see [`folder`]). Until then nothing is known, and nothing may be removed for being absent.
    pub ready: bool,
    /// The wanted pods, by their files and places in them.
    pub pods: Vec<Arc<PodSpec>>,
    /// What was refused, and why.
    pub rejected: Vec<Rejected>,
    /// The pods as they were written, for `/pods`.
    pub originals: BTreeMap<PodUid, Arc<Pod>>,
    /// Why the source could not be read just now; what it wanted before is kept.
    pub trouble: Option<String>,
}

impl SourceState {
    /// For the core; `None` while nothing is known.
    #[must_use]
    pub fn event(&self) -> Option<Event> {
        self.ready.then(|| Event::Pods { pods: self.pods.clone(), rejected: self.rejected.clone() })
    }
}

#[cfg(test)]
mod effects;
#[cfg(test)]
mod placement_tests;
#[cfg(test)]
mod security_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod written_tests;
