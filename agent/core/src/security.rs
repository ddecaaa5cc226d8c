//! What a pod may do on the node: profiles, labels and groups, and what of it this node can give.
//!
//! Problem: a pod that asks for a profile and runs without it is less safe than it was meant to be, and nobody sees it.
//! Approach: what the node or its runtime lacks is a reason to turn the pod away, with the kubelet's reasons and words
//! (pkg/kubelet/lifecycle, pkg/kubelet/sysctl, pkg/security/apparmor, release 1.36).
//!
//! Properties: a pod that is admitted gets every profile, group policy and sysctl that it asks for; one that asks for none is never
//! turned away here.

use serde::{Deserialize, Serialize};

use crate::spec::PodSpec;
use crate::sysctl::Allowlist;

/// A profile of seccomp or AppArmor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// The node's: of seccomp a file below the folder of profiles, of AppArmor one that the kernel has loaded.
    Localhost(String),
}

/// `seLinuxOptions`; "" leaves a part to the runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeLinux {
    /// `user`.
    pub user: String,
    /// `role`.
    pub role: String,
    /// `type`.
    pub kind: String,
    /// `level`.
    pub level: String,
}

/// `supplementalGroupsPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// The groups that the image's /etc/group gives to its user, and the pod's.
    #[default]
    Merge,
    /// The pod's only.
    Strict,
}

/// What the node can do for the security of pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSecurity {
    /// The sysctls that pods may set.
    pub sysctls: Allowlist,
    /// The kernel has AppArmor, and it is on.
    pub app_armor: bool,
    /// The kernel has SELinux, and it is on.
    pub se_linux: bool,
}

impl Default for NodeSecurity {
    /// A node that can do it all; tests start from here.
    fn default() -> Self {
        Self { sysctls: Allowlist::default(), app_armor: true, se_linux: true }
    }
}

/// What the runtime says it can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeFeatures {
    /// `supplementalGroupsPolicy`.
    pub groups_policy: bool,
    /// `recursiveReadOnly` of mounts.
    #[serde(default)]
    pub recursive_read_only: bool,
}

/// Why a pod is turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `status.reason`.
    pub reason: String,
    /// `status.message`.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(reason: &str, message: String) -> Self {
        Self { reason: reason.to_owned(), message }
    }
}

/// The sysctls that the pod sets.
///
/// # Errors
/// `SysctlForbidden`.
pub fn admit_sysctls(node: &NodeSecurity, pod: &PodSpec) -> Result<(), Refusal> {
    for name in pod.security.sysctls.keys() {
        node.sysctls
            .check(name, pod.host_network, pod.host_ipc)
            .map_err(|error| Refusal::new("SysctlForbidden", format!("forbidden sysctl: {error}")))?;
    }
    Ok(())
}

/// The groups of its processes.
///
/// # Errors
/// `SupplementalGroupsPolicyNotSupported`.
pub fn admit_groups(runtime: RuntimeFeatures, pod: &PodSpec) -> Result<(), Refusal> {
    if pod.security.groups_policy == GroupsPolicy::Strict && !runtime.groups_policy {
        let message = "SupplementalGroupsPolicy=Strict is not supported in this node".to_owned();
        return Err(Refusal::new("SupplementalGroupsPolicyNotSupported", message));
    }
    Ok(())
}

/// Its profiles of AppArmor.
///
/// # Errors
/// `AppArmor`.
pub fn admit_app_armor(node: &NodeSecurity, pod: &PodSpec) -> Result<(), Refusal> {
    let asked = |profile: &Option<Profile>| profile.as_ref().is_some_and(|p| *p != Profile::Unconfined);
    if node.app_armor || !pod.all_containers().any(|c| asked(&c.security.app_armor)) {
        return Ok(());
    }
    Err(Refusal::new("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned()))
}

/// What an admitted pod asks for and this node ignores, as upstream, by the names of the fields.
#[must_use]
pub fn ignored(node: &NodeSecurity, pod: &PodSpec) -> Option<String> {
    let labelled = pod.security.se_linux.is_some() || pod.all_containers().any(|c| c.security.se_linux.is_some());
    (labelled && !node.se_linux)
        .then(|| "securityContext.seLinuxOptions: no effect, SELinux is not enabled on this node".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ContainerSpec, PodUid};

    const RUNTIME: RuntimeFeatures = RuntimeFeatures { groups_policy: true, recursive_read_only: false };

    fn pod(change: impl FnOnce(&mut PodSpec)) -> PodSpec {
        let mut pod = PodSpec::unknown(PodUid::from("u"));
        pod.containers.push(ContainerSpec::unknown("c"));
        change(&mut pod);
        pod
    }

    fn refusal(reason: &str, message: &str) -> Result<(), Refusal> {
        Err(Refusal::new(reason, message.to_owned()))
    }

    #[test]
    fn a4_16i_a_sysctl_that_is_not_allowed_turns_the_pod_away() {
        let sysctl = |name: &str| pod(|p| _ = p.security.sysctls.insert(name.to_owned(), "1".to_owned()));
        let admit = |pod: &PodSpec| admit_sysctls(&NodeSecurity::default(), pod);
        assert_eq!(admit(&sysctl("net.ipv4.tcp_syncookies")), Ok(()));
        let said = "forbidden sysctl: \"net.ipv4.ip_forward\" not allowlisted";
        assert_eq!(admit(&sysctl("net.ipv4.ip_forward")), refusal("SysctlForbidden", said));
        let shared = PodSpec { host_network: true, ..sysctl("net.ipv4.tcp_syncookies") };
        let said = "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled";
        assert_eq!(admit(&shared), refusal("SysctlForbidden", said));
    }

    #[test]
    fn a4_16l_strict_groups_need_a_runtime_that_knows_them() {
        let strict = pod(|p| p.security.groups_policy = GroupsPolicy::Strict);
        let admit = admit_groups;
        let said = "SupplementalGroupsPolicy=Strict is not supported in this node";
        let not = refusal("SupplementalGroupsPolicyNotSupported", said);
        assert_eq!(admit(RuntimeFeatures::default(), &strict), not);
        assert_eq!((admit(RUNTIME, &strict), admit(RuntimeFeatures::default(), &pod(|_| {}))), (Ok(()), Ok(())));
    }

    #[test]
    fn a4_16k_a_profile_needs_apparmor_on_the_node() {
        let without = NodeSecurity { app_armor: false, ..NodeSecurity::default() };
        let with = |profile: Option<Profile>| pod(|p| p.containers[0].security.app_armor = profile);
        let not = refusal("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        for (profile, expected) in [
            (None, Ok(())),
            (Some(Profile::Unconfined), Ok(())),
            (Some(Profile::RuntimeDefault), not.clone()),
            (Some(Profile::Localhost("web".to_owned())), not),
        ] {
            assert_eq!(admit_app_armor(&without, &with(profile.clone())), expected, "{profile:?}");
            assert_eq!(admit_app_armor(&NodeSecurity::default(), &with(profile)), Ok(()));
        }
    }

    #[test]
    fn a10_13_labels_without_selinux_are_told() {
        let without = NodeSecurity { se_linux: false, ..NodeSecurity::default() };
        let labelled = pod(|p| p.containers[0].security.se_linux = Some(SeLinux::default()));
        assert!(ignored(&without, &labelled).is_some_and(|text| text.contains("seLinuxOptions")));
        assert_eq!((ignored(&NodeSecurity::default(), &labelled), ignored(&without, &pod(|_| {}))), (None, None));
    }
}
