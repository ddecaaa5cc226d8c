//! The fields of a KubeletConfiguration that beelet knows and does not act on yet.
//!
//! Problem: a kubelet's file that works today must load, yet a setting that is dropped in silence misleads. Approach: each of
//! these fields is known with its default (kubelet's config/v1beta1/types.go and defaults.go, release 1.37); one that says
//! something else gives a warning by name. A field in neither list is an error.
//!
//! Terms: the default is YAML; `~` is none. A group of fields equals its default if each field that is given does.

use super::duration::Duration;
use super::tree::{Node, Value, documents};

/// Name and default.
pub(super) const FIELDS: &[(&str, &str)] = &[
    ("allowedUnsafeSysctls", "~"),
    (
        "authentication",
        "{x509: {clientCAFile: ''}, webhook: {enabled: true, cacheTTL: 2m}, anonymous: {enabled: false}}",
    ),
    ("authorization", "{mode: Webhook, webhook: {cacheAuthorizedTTL: 5m, cacheUnauthorizedTTL: 30s}}"),
    ("cgroupsPerQOS", "true"),
    ("configMapAndSecretChangeDetectionStrategy", "Watch"),
    ("contentType", "application/vnd.kubernetes.protobuf"),
    ("cpuManagerPolicy", "none"),
    ("cpuManagerPolicyOptions", "~"),
    ("cpuManagerReconcilePeriod", "10s"),
    ("draManagerReconcilePeriod", "60s"),
    ("enableContentionProfiling", "false"),
    ("enableControllerAttachDetach", "true"),
    ("enableDebugFlagsHandler", "true"),
    ("enableDebuggingHandlers", "true"),
    ("enableProfilingHandler", "true"),
    ("enableServer", "true"),
    ("enableSystemLogHandler", "true"),
    ("enableSystemLogQuery", "false"),
    ("eventBurst", "100"),
    ("eventRecordQPS", "50"),
    ("failSwapOn", "true"),
    ("featureGates", "~"),
    ("hairpinMode", "promiscuous-bridge"),
    ("healthzBindAddress", "127.0.0.1"),
    ("healthzPort", "10248"),
    ("httpCheckFrequency", "20s"),
    ("imagePullCredentialsVerificationPolicy", "NeverVerifyPreloadedImages"),
    ("imageServiceEndpoint", "~"),
    ("iptablesDropBit", "15"),
    ("iptablesMasqueradeBit", "14"),
    ("kernelMemcgNotification", "false"),
    ("kubeAPIBurst", "100"),
    ("kubeAPIQPS", "50"),
    ("kubeReservedCgroup", "~"),
    ("kubeletCgroups", "~"),
    ("logging", "{format: text, flushFrequency: 5s, verbosity: 0}"),
    ("makeIPTablesUtilChains", "true"),
    ("maxOpenFiles", "1000000"),
    ("maxParallelImagePulls", "~"),
    ("memoryManagerPolicy", "None"),
    ("memoryReservationPolicy", "None"),
    ("memorySwap", "{swapBehavior: NoSwap}"),
    ("memoryThrottlingFactor", "~"),
    ("nodeLeaseDurationSeconds", "40"),
    ("nodeStatusMaxImages", "50"),
    ("nodeStatusReportFrequency", "5m"),
    ("nodeStatusUpdateFrequency", "10s"),
    ("podCIDR", "~"),
    ("podPidsLimit", "-1"),
    ("podsPerCore", "0"),
    ("preloadedImagesVerificationAllowlist", "~"),
    ("protectKernelDefaults", "false"),
    ("providerID", "~"),
    ("qosReserved", "~"),
    ("registerNode", "true"),
    ("registerWithTaints", "~"),
    ("registryBurst", "10"),
    ("registryPullQPS", "5"),
    ("reservedMemory", "~"),
    ("reservedSystemCPUs", "~"),
    ("rotateCertificates", "false"),
    ("runOnce", "false"),
    ("seccompDefault", "false"),
    ("serializeImagePulls", "true"),
    ("serverTLSBootstrap", "false"),
    ("showHiddenMetricsForVersion", "~"),
    ("shutdownGracePeriod", "0s"),
    ("shutdownGracePeriodByPodPriority", "~"),
    ("shutdownGracePeriodCriticalPods", "0s"),
    ("singleProcessOOMKill", "false"),
    ("staticPodURL", "~"),
    ("staticPodURLHeader", "~"),
    ("streamingConnectionIdleTimeout", "4h"),
    ("systemCgroups", "~"),
    ("systemReservedCgroup", "~"),
    ("tlsCertFile", "~"),
    ("tlsCipherSuites", "~"),
    ("tlsCurvePreferences", "~"),
    ("tlsMinVersion", "~"),
    ("tlsPrivateKeyFile", "~"),
    ("topologyManagerPolicy", "none"),
    ("topologyManagerPolicyOptions", "~"),
    ("topologyManagerScope", "container"),
    ("tracing", "~"),
    ("userNamespaces", "{idsPerPod: 65536}"),
    ("volumePluginDir", "/usr/libexec/kubernetes/kubelet-plugins/volume/exec/"),
    ("volumeStatsAggPeriod", "1m"),
];

/// Whether a field that is not acted on says nothing but its default.
pub(super) fn is_default(default: &str, given: &Node) -> bool {
    if is_empty(given) {
        return true;
    }
    documents(default.as_bytes()).is_ok_and(|docs| docs.first().is_some_and(|default| within(default, given)))
}

fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Null => true,
        Value::Text(text) => text.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(fields) => fields.iter().all(|(.., node)| is_empty(node)),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => false,
    }
}

/// Whether all that is given is in the default.
fn within(default: &Node, given: &Node) -> bool {
    match (&default.value, &given.value) {
        (Value::Map(_), Value::Map(fields)) => fields
            .iter()
            .all(|(name, _, node)| is_empty(node) || default.get(name).is_some_and(|default| within(default, node))),
        (Value::Bool(a), Value::Bool(b)) => a == b,
        (Value::Int(a), Value::Int(b)) => a == b,
        (Value::Text(a), Value::Text(b)) => {
            a == b
                || a.eq_ignore_ascii_case("none") && b.eq_ignore_ascii_case("none")
                || matches!((a.parse::<Duration>(), b.parse::<Duration>()), (Ok(a), Ok(b)) if a == b)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_recognised() {
        let default = |name: &str| FIELDS.iter().find(|(n, _)| *n == name).unwrap().1;
        for (name, given, same) in [
            ("draManagerReconcilePeriod", "1m", true),
            ("draManagerReconcilePeriod", "3m", false),
            ("authentication", "{anonymous: {enabled: false}}", true),
            ("authentication", "{anonymous: {enabled: true}}", false),
            ("authentication", "{x509: {clientCAFile: /ca}}", false),
            ("featureGates", "{}", true),
            ("featureGates", "{A: true}", false),
            ("podsPerCore", "0", true),
            ("registerNode", "false", false),
            ("cpuManagerPolicy", "None", true),
        ] {
            let node = documents(given.as_bytes()).unwrap().remove(0);
            assert_eq!(is_default(default(name), &node), same, "{name}: {given}");
        }
        assert!(FIELDS.is_sorted(), "kept in order so that two lines for one field are seen");
        for (name, default) in FIELDS {
            assert!(documents(default.as_bytes()).is_ok(), "{name}");
        }
    }
}
