//! What the runtime is told of a pod's security: users, groups, profiles, labels, and what of /proc and /sys stays hidden.
//!
//! Property: a container without an AppArmor profile says nothing of it, so that the runtime applies its own; one that asks for
//! none says so.

use beelet_core::security::{GroupsPolicy, Profile, SeLinux};
use beelet_core::spec::{ContainerSpec, PodSpec};
use beelet_proto::cri;

use super::{NodeEnv, int, namespaces};
use crate::runtime::error::SpecError;
use crate::runtime::paths;

/// Paths of /proc and /sys that a container must not read (`procMount: Default`).
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Paths of /proc that a container must not write.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The user that an image asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    /// By number.
    pub uid: Option<i64>,
    /// By name, "" for none.
    pub name: String,
}

/// The sandbox's.
pub(super) fn of_sandbox(spec: &PodSpec) -> cri::LinuxSandboxSecurityContext {
    let security = &spec.security;
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(spec)),
        selinux_options: security.se_linux.as_ref().map(label),
        run_as_user: security.run_as_user.map(int),
        // The runtime refuses a group without a user.
        run_as_group: security.run_as_user.and(security.run_as_group).map(int),
        supplemental_groups: groups(spec),
        supplemental_groups_policy: groups_policy(spec).into(),
        privileged: spec.all_containers().any(|c| c.security.privileged),
        // Nothing of the pod's author runs in it, so the tightest profile fits all.
        seccomp: Some(profile(&Profile::RuntimeDefault, str::to_owned)),
        ..cri::LinuxSandboxSecurityContext::default()
    }
}

/// A container's.
pub(super) fn of_container(
    node: &NodeEnv,
    spec: &PodSpec,
    container: &ContainerSpec,
    (user, group): (Option<i64>, Option<i64>),
) -> cri::LinuxContainerSecurityContext {
    let security = &container.security;
    let hidden = |paths: &[&str], more: &[String]| {
        if security.privileged {
            return Vec::new();
        }
        paths.iter().map(|&path| path.to_owned()).chain(more.iter().cloned()).collect()
    };
    let default = if node.seccomp_default { Profile::RuntimeDefault } else { Profile::Unconfined };
    let seccomp = security.seccomp.as_ref().unwrap_or(&default);
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: security.cap_add.clone(),
            drop_capabilities: security.cap_drop.clone(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespaces(spec)),
        selinux_options: security.se_linux.as_ref().map(label),
        run_as_user: user.map(int),
        run_as_group: group.map(int),
        readonly_rootfs: security.read_only_root,
        supplemental_groups: groups(spec),
        supplemental_groups_policy: groups_policy(spec).into(),
        no_new_privs: security.allow_privilege_escalation == Some(false),
        masked_paths: hidden(&MASKED, &node.masked),
        readonly_paths: hidden(&READ_ONLY, &[]),
        seccomp: Some(profile(seccomp, |name| paths::seccomp(&node.root).join(name).display().to_string())),
        apparmor: security.app_armor.as_ref().map(|given| profile(given, str::to_owned)),
        ..cri::LinuxContainerSecurityContext::default()
    }
}

fn label(given: &SeLinux) -> cri::SeLinuxOption {
    let SeLinux { user, role, kind, level } = given.clone();
    cri::SeLinuxOption { user, role, r#type: kind, level }
}

fn groups_policy(spec: &PodSpec) -> cri::SupplementalGroupsPolicy {
    match spec.security.groups_policy {
        GroupsPolicy::Merge => cri::SupplementalGroupsPolicy::Merge,
        GroupsPolicy::Strict => cri::SupplementalGroupsPolicy::Strict,
    }
}

/// Making the container takes a look at the image's user: to check `runAsNonRoot`, or because a group is given without a user.
pub(in crate::runtime) fn needs_image_user(container: &ContainerSpec) -> bool {
    let security = &container.security;
    security.run_as_user.is_none() && (security.run_as_non_root || security.run_as_group.is_some())
}

/// Whom the container runs as: user and group; `None` leaves it to the image.
pub(super) fn user(
    container: &ContainerSpec,
    image: Option<&ImageUser>,
) -> Result<(Option<i64>, Option<i64>), SpecError> {
    let security = &container.security;
    let (group, non_root) = (security.run_as_group, security.run_as_non_root);
    match security.run_as_user {
        Some(0) if non_root => Err(SpecError::RunsAsRoot),
        Some(user) => Ok((Some(user), group)),
        None if !needs_image_user(container) => Ok((None, None)),
        None => {
            let nobody = ImageUser::default();
            let image = image.unwrap_or(&nobody);
            match image.uid {
                None if !image.name.is_empty() && non_root => Err(SpecError::ImageUserName(image.name.clone())),
                None if !image.name.is_empty() => Err(SpecError::GroupWithoutUser(image.name.clone())),
                // An image that names no user runs as root.
                None | Some(0) if non_root => Err(SpecError::ImageRunsAsRoot),
                uid => Ok((Some(uid.unwrap_or(0)), group)),
            }
        }
    }
}

/// `fsGroup` is one of the groups of every process.
fn groups(spec: &PodSpec) -> Vec<i64> {
    spec.security.fs_group.into_iter().chain(spec.security.supplemental_groups.iter().copied()).collect()
}

/// As the runtime wants it; seccomp's local profiles are files, AppArmor's are names.
fn profile(given: &Profile, local: impl FnOnce(&str) -> String) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let (kind, localhost_ref) = match given {
        Profile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        Profile::Unconfined => (ProfileType::Unconfined, String::new()),
        Profile::Localhost(name) => (ProfileType::Localhost, local(name)),
    };
    cri::SecurityProfile { profile_type: kind.into(), localhost_ref }
}
