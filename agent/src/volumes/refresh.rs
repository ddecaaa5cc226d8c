//! Keeps the files of pods that run as they should be.
//!
//! Problem: ConfigMaps and Secrets change while pods have them mounted, and nobody tells the agent's volumes. What changes with the pod
//! itself is ordered by the core ([`beelet_core::event::Action::Refresh`]) at once; this is for the rest.
//! Approach: all [`EVERY`], the written volumes of all pods that are there are looked at. What is as it should be costs a few reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use beelet_core::spec::{PodSpec, PodUid};

use super::Volumes;
use crate::blocking::blocking;
use crate::report::Published;

/// The kubelet's, which looks when it syncs a pod (`syncFrequency`, a minute by default).
pub(crate) const EVERY: Duration = Duration::from_secs(60);

/// Goes on until it is dropped.
pub(crate) async fn keep(volumes: Arc<Volumes>, published: Published) {
    // Of each pod what was said of it last, so that it is not said every minute.
    let mut told = BTreeMap::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let picture = published.current();
        let specs: Vec<Arc<PodSpec>> = picture
            .pods
            .iter()
            .filter(|pod| !pod.foreign && pod.spec.has_written())
            .map(|pod| volumes.last(pod.uid()).unwrap_or_else(|| Arc::clone(&pod.spec)))
            .collect();
        if specs.is_empty() {
            told.clear();
            continue;
        }
        let volumes = Arc::clone(&volumes);
        told = blocking(move || round(&volumes, &specs, &told)).await;
    }
}

fn round(volumes: &Volumes, specs: &[Arc<PodSpec>], told: &BTreeMap<PodUid, String>) -> BTreeMap<PodUid, String> {
    let failed = specs.iter().filter_map(|spec| {
        let error = one(volumes, spec, told.get(&spec.uid).map(String::as_str))?;
        Some((spec.uid.clone(), error))
    });
    failed.collect()
}

/// Refreshes the volumes of one pod. Returns what went wrong, which is told unless it was `told` before.
pub(crate) fn one(volumes: &Volumes, spec: &Arc<PodSpec>, told: Option<&str>) -> Option<String> {
    match volumes.refresh(spec) {
        Ok(changed) if changed.is_empty() => None,
        Ok(changed) => {
            tracing::info!(pod = spec.full_name(), volumes = changed.join(", "), "files were written anew");
            None
        }
        Err(error) => {
            let error = error.to_string();
            if told != Some(&*error) {
                tracing::warn!(pod = spec.full_name(), error, "files of a volume are not as they should be");
            }
            Some(error)
        }
    }
}
