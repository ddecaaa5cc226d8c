//! The security context of a pod and its containers: checks and what is merged.
//!
//! Approach: what a container says leads over what its pod says, field by field (pkg/securitycontext/util.go); the texts are those of
//! pkg/apis/core/validation, which a kubelet applies to static pods too (release 1.36).
//!
//! Terms: a *legacy annotation* is `container.apparmor.security.beta.kubernetes.io/<container>`, which a kubelet still reads on static
//! pods, after the container's field and before the pod's (pkg/security/apparmor/helpers.go).

use std::collections::{BTreeMap, BTreeSet};

use beelet_core::security::{GroupsPolicy, Profile, SeLinux};
use beelet_core::spec::{ContainerSecurity, PodSecurity};
use beelet_core::sysctl;
use k8s_openapi::api::core::v1 as api;

use super::{invalid, one_of, required};
use crate::config::tree::Fault;

const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Annotations that a kubelet has not read since 1.27.
const OLD_SECCOMP: [&str; 2] =
    ["seccomp.security.alpha.kubernetes.io/pod", "container.seccomp.security.alpha.kubernetes.io/"];
/// Longest name of an AppArmor profile, in bytes.
const MAX_PROFILE: usize = 4_095;

/// What a pod says for all of its containers.
pub(super) struct OfPod<'a> {
    given: &'a api::PodSecurityContext,
    annotations: &'a BTreeMap<String, String>,
    seccomp: Option<Profile>,
    app_armor: Option<Profile>,
}

impl<'a> OfPod<'a> {
    /// Checks what is the pod's.
    pub(super) fn read(
        given: &'a api::PodSecurityContext,
        annotations: &'a BTreeMap<String, String>,
        spec: &api::PodSpec,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Fault> {
        let path = "spec.securityContext";
        for old in annotations.keys().filter(|key| OLD_SECCOMP.iter().any(|old| key.starts_with(old))) {
            warnings.push(format!(
                "metadata.annotations[{old}]: no effect since Kubernetes 1.27: set securityContext.seccompProfile"
            ));
        }
        let names: BTreeSet<&str> =
            spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.name.as_str()).collect();
        for (key, name) in annotations.keys().filter_map(|key| Some((key, key.strip_prefix(ANNOTATION)?))) {
            if !names.contains(name) {
                return Err(invalid(format!("metadata.annotations[{key}]"), name, "container not found"));
            }
        }
        one_of(
            &format!("{path}.seLinuxChangePolicy"),
            given.se_linux_change_policy.as_deref(),
            (),
            &[("MountOption", ()), ("Recursive", ())],
        )?;
        Ok(Self {
            given,
            annotations,
            seccomp: seccomp(&format!("{path}.seccompProfile"), given.seccomp_profile.as_ref())?,
            app_armor: app_armor(&format!("{path}.appArmorProfile"), given.app_armor_profile.as_ref())?,
        })
    }

    /// What is for the whole pod.
    pub(super) fn pod(&self, host_network: bool, host_ipc: bool) -> Result<PodSecurity, Fault> {
        let given = self.given;
        let path = "spec.securityContext";
        id(&format!("{path}.fsGroup"), given.fs_group)?;
        let policies = [("Always", ()), ("OnRootMismatch", ())];
        one_of(&format!("{path}.fsGroupChangePolicy"), given.fs_group_change_policy.as_deref(), (), &policies)?;
        for (i, group) in given.supplemental_groups.iter().flatten().enumerate() {
            id(&format!("{path}.supplementalGroups[{i}]"), Some(*group))?;
        }
        Ok(PodSecurity {
            run_as_user: given.run_as_user,
            run_as_group: given.run_as_group,
            fs_group: given.fs_group,
            supplemental_groups: given.supplemental_groups.clone().unwrap_or_default(),
            groups_policy: one_of(
                &format!("{path}.supplementalGroupsPolicy"),
                given.supplemental_groups_policy.as_deref(),
                GroupsPolicy::Merge,
                &[("Merge", GroupsPolicy::Merge), ("Strict", GroupsPolicy::Strict)],
            )?,
            se_linux: given.se_linux_options.as_ref().map(se_linux),
            sysctls: sysctls(&format!("{path}.sysctls"), given.sysctls.as_deref(), host_network, host_ipc)?,
        })
    }

    /// What is for one container, the pod's merged in. `path` is the container's.
    pub(super) fn container(&self, path: &str, container: &api::Container) -> Result<ContainerSecurity, Fault> {
        let given = container.security_context.clone().unwrap_or_default();
        let path = format!("{path}.securityContext");
        let privileged = given.privileged.unwrap_or_default();
        let capabilities = given.capabilities.unwrap_or_default();
        let (cap_add, cap_drop) = (capabilities.add.unwrap_or_default(), capabilities.drop.unwrap_or_default());
        if given.allow_privilege_escalation == Some(false) {
            let contradicts = if privileged {
                Some("`privileged` to true")
            } else {
                cap_add.iter().any(|cap| cap == "CAP_SYS_ADMIN").then_some("`capabilities.Add` CAP_SYS_ADMIN")
            };
            if let Some(contradicts) = contradicts {
                let why = format!("cannot set `allowPrivilegeEscalation` to false and {contradicts}");
                return Err(invalid(format!("{path}.allowPrivilegeEscalation"), "false", why));
            }
        }
        let run_as_user = given.run_as_user.or(self.given.run_as_user);
        let run_as_group = given.run_as_group.or(self.given.run_as_group);
        id(&format!("{path}.runAsUser"), run_as_user)?;
        id(&format!("{path}.runAsGroup"), run_as_group)?;
        let unmasked = one_of(
            &format!("{path}.procMount"),
            given.proc_mount.as_deref(),
            false,
            &[("Default", false), ("Unmasked", true)],
        )?;
        // Pods of a user namespace of their own are refused before.
        if unmasked {
            let why = "`hostUsers` must be false to use `Unmasked`";
            return Err(invalid(format!("{path}.procMount"), "Unmasked", why));
        }
        let own_seccomp = seccomp(&format!("{path}.seccompProfile"), given.seccomp_profile.as_ref())?;
        let own_app_armor = app_armor(&format!("{path}.appArmorProfile"), given.app_armor_profile.as_ref())?;
        Ok(ContainerSecurity {
            privileged,
            read_only_root: given.read_only_root_filesystem.unwrap_or_default(),
            run_as_user,
            run_as_group,
            run_as_non_root: given.run_as_non_root.or(self.given.run_as_non_root).unwrap_or_default(),
            allow_privilege_escalation: given.allow_privilege_escalation,
            cap_add,
            cap_drop,
            seccomp: own_seccomp.or_else(|| self.seccomp.clone()),
            app_armor: self.annotated(&path, &container.name, own_app_armor)?,
            se_linux: given.se_linux_options.as_ref().or(self.given.se_linux_options.as_ref()).map(se_linux),
        })
    }

    /// The AppArmor profile of a container, by its field, its legacy annotation, or the pod's field.
    fn annotated(&self, path: &str, name: &str, own: Option<Profile>) -> Result<Option<Profile>, Fault> {
        let by_field = own.or_else(|| self.app_armor.clone());
        let key = format!("{ANNOTATION}{name}");
        let Some(text) = self.annotations.get(&key) else { return Ok(by_field) };
        let fault = |why: String| invalid(format!("metadata.annotations[{key}]"), text, why);
        let annotated = match (text.as_str(), text.strip_prefix("localhost/")) {
            ("", _) => None,
            ("runtime/default", _) => Some(Profile::RuntimeDefault),
            ("unconfined", _) => Some(Profile::Unconfined),
            (_, Some(profile)) => Some(local_app_armor(profile).map_err(|why| fault(why.to_owned()))?),
            _ => return Err(fault(format!("invalid AppArmor profile name: {text:?}"))),
        };
        match (&by_field, &annotated) {
            (Some(Profile::Localhost(field)), Some(Profile::Localhost(annotation))) if field != annotation => {
                let why = "Forbidden: apparmor profile in annotation and field must match";
                Err(Fault::new(format!("{path}.appArmorProfile.localhostProfile"), why))
            }
            (Some(field), annotation) if annotation.as_ref() != Some(field) => {
                let why = "Forbidden: apparmor type in annotation and field must match";
                Err(Fault::new(format!("{path}.appArmorProfile.type"), why))
            }
            _ => Ok(annotated),
        }
    }
}

/// A user's or group's number.
fn id(path: &str, id: Option<i64>) -> Result<(), Fault> {
    match id.filter(|id| !(0..=i64::from(i32::MAX)).contains(id)) {
        Some(id) => Err(invalid(path, &id.to_string(), "must be between 0 and 2147483647, inclusive")),
        None => Ok(()),
    }
}

fn se_linux(given: &api::SELinuxOptions) -> SeLinux {
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    SeLinux { user: text(&given.user), role: text(&given.role), kind: text(&given.type_), level: text(&given.level) }
}

fn sysctls(
    path: &str,
    given: Option<&[api::Sysctl]>,
    host_network: bool,
    host_ipc: bool,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut made = BTreeMap::new();
    for (i, api::Sysctl { name, value }) in given.into_iter().flatten().enumerate() {
        let path = format!("{path}[{i}].name");
        if name.is_empty() {
            return Err(required(path));
        }
        if !sysctl::is_name(name) {
            return Err(invalid(path, name, sysctl::NAME_RULE));
        }
        match sysctl::namespace(name) {
            Some(sysctl::Namespace::Net) if host_network => {
                return Err(invalid(path, name, "may not be specified when 'hostNetwork' is true"));
            }
            Some(sysctl::Namespace::Ipc) if host_ipc => {
                return Err(invalid(path, name, "may not be specified when 'hostIPC' is true"));
            }
            _ => {}
        }
        if made.insert(sysctl::normal(name), value.clone()).is_some() {
            return Err(Fault::new(path, format!("Duplicate value: {name:?}")));
        }
    }
    Ok(made)
}

/// A profile of any kind; `local` judges the name of a local one.
fn profile(
    path: &str,
    field: &str,
    spoken: &str,
    (kind, name): (&str, Option<&String>),
    local: impl FnOnce(&str) -> Result<Profile, &'static str>,
) -> Result<Option<Profile>, Fault> {
    let at = format!("{path}.localhostProfile");
    if kind.is_empty() {
        let why = format!("Required value: type is required when {field} is set");
        return Err(Fault::new(format!("{path}.type"), why));
    }
    let kinds = [
        ("Localhost", None),
        ("RuntimeDefault", Some(&Profile::RuntimeDefault)),
        ("Unconfined", Some(&Profile::Unconfined)),
    ];
    match (one_of(&format!("{path}.type"), Some(kind), None, &kinds)?, name) {
        (None, None) => Err(Fault::new(at, format!("Required value: must be set when {spoken} type is Localhost"))),
        (None, Some(name)) => local(name).map(Some).map_err(|why| invalid(at, name, why)),
        (Some(_), Some(name)) => Err(invalid(at, name, format!("can only be set when {spoken} type is Localhost"))),
        (Some(profile), None) => Ok(Some(profile.clone())),
    }
}

fn seccomp(path: &str, given: Option<&api::SeccompProfile>) -> Result<Option<Profile>, Fault> {
    let Some(given) = given else { return Ok(None) };
    let local = |name: &str| {
        if name.is_empty() {
            return Err("must be set when seccomp type is Localhost");
        }
        if name.starts_with('/') {
            return Err("must be a relative path");
        }
        if name.split('/').any(|part| part == "..") {
            return Err("must not contain '..'");
        }
        Ok(Profile::Localhost(name.to_owned()))
    };
    profile(path, "seccompProfile", "seccomp", (&given.type_, given.localhost_profile.as_ref()), local)
}

fn app_armor(path: &str, given: Option<&api::AppArmorProfile>) -> Result<Option<Profile>, Fault> {
    let Some(given) = given else { return Ok(None) };
    let given = (given.type_.as_str(), given.localhost_profile.as_ref());
    profile(path, "appArmorProfile", "AppArmor", given, local_app_armor)
}

fn local_app_armor(name: &str) -> Result<Profile, &'static str> {
    if name.trim() != name {
        return Err("must not be padded with whitespace");
    }
    match name.len() {
        0 => Err("must be set when AppArmor type is Localhost"),
        1..=MAX_PROFILE => Ok(Profile::Localhost(name.to_owned())),
        _ => Err("may not be more than 4095 bytes"),
    }
}
