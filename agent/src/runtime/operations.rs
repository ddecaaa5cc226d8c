//! How often the runtime was called, with what success, and how long it took.
//!
//! Problem: a slow runtime makes every pod slow, and is not seen in any pod. Approach: each call that has an answer is counted by its
//! kind, under the kubelet's names (pkg/kubelet/kuberuntime/instrumented_services.go, release 1.36), so that its dashboards fit.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use beelet_core::units::Micros;

use super::client::lock;
use crate::report::RuntimeOperation;

/// The bounds of durations, in seconds: from 5 ms, each 2.5 times the one before (pkg/kubelet/metrics/metrics.go, release 1.36).
pub fn bounds() -> impl Iterator<Item = f64> {
    std::iter::successors(Some(0.005), |bound| Some(bound * 2.5)).take(14)
}

/// What was counted.
#[derive(Debug, Default)]
pub struct Operations(Mutex<BTreeMap<&'static str, RuntimeOperation>>);

impl Operations {
    /// A call was answered, or its time was over.
    pub(super) fn note(&self, rpc: &'static str, took: Duration, is_ok: bool) {
        let slot = bounds().position(|bound| took.as_secs_f64() <= bound).unwrap_or(bounds().count());
        let mut all = lock(&self.0);
        let kept = all.entry(rpc).or_insert_with(|| RuntimeOperation {
            kind: kind(rpc),
            counts: vec![0; bounds().count() + 1],
            ..RuntimeOperation::default()
        });
        kept.counts[slot] += 1;
        kept.errors += u64::from(!is_ok);
        kept.time += Micros(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    /// All of it, by name.
    #[must_use]
    pub fn report(&self) -> Vec<RuntimeOperation> {
        lock(&self.0).values().cloned().collect()
    }
}

/// `RunPodSandbox` is `run_podsandbox`.
fn kind(rpc: &str) -> String {
    let mut kind = String::new();
    for letter in rpc.chars() {
        if letter.is_uppercase() && !kind.is_empty() {
            kind.push('_');
        }
        kind.push(letter.to_ascii_lowercase());
    }
    match kind.as_str() {
        "update_container_resources" => "update_container".to_owned(),
        _ => kind.replace("pod_sandbox", "podsandbox"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_kubelets_names() {
        for (rpc, name) in [
            ("Version", "version"),
            ("RunPodSandbox", "run_podsandbox"),
            ("PodSandboxStatus", "podsandbox_status"),
            ("ListPodSandbox", "list_podsandbox"),
            ("UpdateContainerResources", "update_container"),
            ("ExecSync", "exec_sync"),
            ("ImageFsInfo", "image_fs_info"),
        ] {
            assert_eq!(kind(rpc), name);
        }
    }

    #[test]
    fn calls_are_counted_by_kind_success_and_time() {
        let operations = Operations::default();
        operations.note("Version", Duration::from_millis(5), true);
        operations.note("Version", Duration::from_millis(6), false);
        operations.note("Version", Duration::from_secs(3_600), true);
        operations.note("StopContainer", Duration::ZERO, true);
        let told = operations.report();
        assert_eq!(told.iter().map(|it| &*it.kind).collect::<Vec<_>>(), ["stop_container", "version"]);
        let version = &told[1];
        assert_eq!((version.calls(), version.errors, version.time), (3, 1, Micros::millis(3_600_011)));
        assert_eq!((version.counts[0], version.counts[1], version.counts[14]), (1, 1, 1));
    }

    #[test]
    fn bounds_are_the_kubelets() {
        let all: Vec<f64> = bounds().collect();
        assert_eq!((all.len(), all[1], all[4]), (14, 0.0125, 0.1953125));
    }
}
