//! The fields of a KubeletConfiguration that beelet knows and does not act on yet.
//!
//! Problem: a kubelet's file that works today must load, yet a setting that is dropped in silence misleads. Approach: each of
//! these fields is known with its default (kubelet's config/v1beta1/types.go and defaults.go, release 1.37); one that says
//! something else gives a warning by name. A field in neither list is an error.
//!
//! Terms: the default is YAML; `~` is none. A group of fields equals its default if each field that is given does.

use beelet_core::units::Micros;

use super::duration::Duration;
use super::tree::{Node, Value, documents};

/// Name and default.
pub(super) const FIELDS: &[(&str, &str)] = &[
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
    ("reservedMemory", "~"),
    ("reservedSystemCPUs", "~"),
    ("rotateCertificates", "false"),
    ("runOnce", "false"),
    ("serverTLSBootstrap", "false"),
    ("showHiddenMetricsForVersion", "~"),
    ("shutdownGracePeriod", "0s"),
    ("shutdownGracePeriodByPodPriority", "~"),
    ("shutdownGracePeriodCriticalPods", "0s"),
    ("singleProcessOOMKill", "false"),
    ("staticPodURL", "~"),
    ("staticPodURLHeader", "~"),
    ("streamingConnectionIdleTimeout", "4h"),
    ("syncFrequency", "1m"),
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

/// Fields of which not even the default is in effect, with what is so instead: whoever names one is told, whatever it says.
pub(super) const NOT_EVEN_DEFAULT: &[(&str, &str)] = &[
    ("authentication", "whoever reaches the port is answered"),
    ("authorization", "whoever reaches the port is answered"),
    ("healthzPort", "/healthz is served with all else"),
    ("imagePullCredentialsVerificationPolicy", "an image that is there may be used by every pod"),
    ("makeIPTablesUtilChains", "no chain is made"),
    ("memorySwap", "what pods swap is not limited"),
    (
        "syncFrequency",
        "a pod is looked at when something happens, and the runtime is listed every second or as its events allow",
    ),
];

/// Whether a field that is not acted on says nothing but its default.
pub(super) fn is_default(default: &str, given: &Node) -> bool {
    documents(default.as_bytes()).is_ok_and(|docs| docs.first().is_some_and(|default| within(default, given)))
}

/// Whether it says nothing.
pub(super) fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Null => true,
        // A duration of zero is how the kubelet's own tools write one that is unset.
        Value::Text(text) => text.is_empty() || text.parse() == Ok(Duration(Micros::ZERO)),
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
            ("featureGates", "{A: true}", false),
            ("podsPerCore", "0", true),
            ("registerNode", "false", false),
            ("cpuManagerPolicy", "None", true),
        ] {
            let node = documents(given.as_bytes()).unwrap().remove(0);
            assert_eq!(is_default(default(name), &node), same, "{name}: {given}");
        }
        for (name, _) in NOT_EVEN_DEFAULT {
            assert!(FIELDS.iter().any(|(known, _)| known == name), "{name} is in the other list too");
        }
        assert!(FIELDS.is_sorted(), "kept in order so that two lines for one field are seen");
        for (name, default) in FIELDS {
            assert!(documents(default.as_bytes()).is_ok(), "{name}");
        }
    }
}
