//! Labels and annotations of sandboxes and containers.
//!
//! Those of the kubelet (pkg/kubelet/types/labels.go and pkg/kubelet/kuberuntime/labels.go), because crictl, log collectors and
//! cAdvisor look for them, and our own.

/// Label: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's UID.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name in its pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: changes when the container's spec does, but for its resources.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how often the container was restarted.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: the file in the container for its last words.
pub const TERMINATION_MESSAGE_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: where else to look for them.
pub const TERMINATION_MESSAGE_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: the container's ports, as JSON.
pub const PORTS: &str = "io.kubernetes.container.ports";
/// Annotation: what is done before the container is stopped, as the API writes it (JSON).
pub const PRE_STOP: &str = "io.kubernetes.container.preStopHandler";
/// Annotation: the pod's termination grace period in seconds.
pub const TERMINATION_GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// Annotation of sandboxes and containers that beelet made: the id of the one that did (`crate::runtime::instance`).
pub const MANAGED: &str = "beelet.dev/managed";
/// Annotation: the container's resources (`beelet_core::spec::Resources`), as JSON.
pub const RESOURCES: &str = "beelet.dev/resources";
/// Annotation of sandboxes: what was known of the pod's containers (`beelet_core::event::Kept` by name), as JSON.
pub const GIVEN: &str = "beelet.dev/given";
/// Annotation: the knobs that came of them (`beelet_core::event::CgroupKnobs`), as JSON.
pub const KNOBS: &str = "beelet.dev/knobs";
