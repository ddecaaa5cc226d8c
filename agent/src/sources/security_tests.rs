//! Tables of security contexts: what they become, what is refused.

use beelet_core::security::{GroupsPolicy, Profile, SeLinux};
use beelet_core::spec::{ContainerSecurity, PodSpec};

use super::manifest::parse;

fn manifest(annotations: &str, pod: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, annotations: {{{annotations}}}}}\nspec:\n  securityContext: {{{pod}}}\n  \
         initContainers: [{{name: init, image: a}}]\n  containers:\n  - {{name: c, image: a, securityContext: {{{container}}}}}\n"
    )
}

fn read(annotations: &str, pod: &str, container: &str) -> Result<PodSpec, String> {
    let text = manifest(annotations, pod, container);
    let parsed = parse(text.as_bytes(), "/pods/web.yaml", "node").remove(0);
    parsed.map(|parsed| PodSpec::clone(&parsed.spec)).map_err(|error| error.to_string())
}

/// What the container gets, and the init container, which says nothing itself.
fn both(annotations: &str, pod: &str, container: &str) -> (ContainerSecurity, ContainerSecurity) {
    let spec = read(annotations, pod, container).unwrap_or_else(|error| panic!("{error}"));
    (spec.containers[0].security.clone(), spec.init_containers[0].security.clone())
}

fn refused(annotations: &str, pod: &str, container: &str) -> String {
    read(annotations, pod, container).expect_err(&manifest(annotations, pod, container))
}

fn local(name: &str) -> Option<Profile> {
    Some(Profile::Localhost(name.to_owned()))
}

#[test]
fn a10_11_seccomp_of_the_container_leads_over_the_pods() {
    let of = |pod: &str, container: &str| {
        let (own, init) = both("", pod, container);
        (own.seccomp, init.seccomp)
    };
    assert_eq!(of("", ""), (None, None));
    assert_eq!(
        of("seccompProfile: {type: RuntimeDefault}", "seccompProfile: {type: Unconfined}"),
        (Some(Profile::Unconfined), Some(Profile::RuntimeDefault))
    );
    let mine = "seccompProfile: {type: Localhost, localhostProfile: profiles/mine.json}";
    assert_eq!(of(mine, ""), (local("profiles/mine.json"), local("profiles/mine.json")));
}

#[test]
fn a10_11_a_wrong_seccomp_profile_is_refused_with_its_place() {
    for (profile, said) in [
        ("", "seccompProfile.type (line 5): Required value: type is required when seccompProfile is set"),
        (
            "type: runtimeDefault",
            "Unsupported value: \"runtimeDefault\": supported values: Localhost, RuntimeDefault, Unconfined, did you mean",
        ),
        ("type: Localhost", "localhostProfile (line 5): Required value: must be set when seccomp type is Localhost"),
        ("type: Localhost, localhostProfile: ''", "must be set when seccomp type is Localhost"),
        ("type: Localhost, localhostProfile: /etc/x", "Invalid value: \"/etc/x\": must be a relative path"),
        ("type: Localhost, localhostProfile: a/../../x", "must not contain '..'"),
        ("type: Unconfined, localhostProfile: x", "can only be set when seccomp type is Localhost"),
    ] {
        let error = refused("", &format!("seccompProfile: {{{profile}}}"), "");
        assert!(error.contains(said), "{error}\nwanted: {said}");
        let error = refused("", "", &format!("seccompProfile: {{{profile}}}"));
        assert!(error.contains("spec.containers[0].securityContext.seccompProfile"), "{error}");
    }
}

#[test]
fn a10_12a_a10_12c_apparmor_by_field_annotation_and_pod() {
    let of = |annotations: &str, pod: &str, container: &str| {
        let (own, init) = both(annotations, pod, container);
        (own.app_armor, init.app_armor)
    };
    let key = "container.apparmor.security.beta.kubernetes.io/c";
    assert_eq!(of("", "", ""), (None, None));
    assert_eq!(of("", "", "appArmorProfile: {type: Unconfined}"), (Some(Profile::Unconfined), None));
    assert_eq!(
        of("", "appArmorProfile: {type: RuntimeDefault}", "appArmorProfile: {type: Localhost, localhostProfile: web}"),
        (local("web"), Some(Profile::RuntimeDefault))
    );
    for (text, expected) in [
        ("runtime/default", Some(Profile::RuntimeDefault)),
        ("unconfined", Some(Profile::Unconfined)),
        ("localhost/web", local("web")),
        ("", None),
    ] {
        assert_eq!(of(&format!("{key}: '{text}'"), "", ""), (expected, None), "{text}");
    }
    let same = of(&format!("{key}: localhost/web"), "", "appArmorProfile: {type: Localhost, localhostProfile: web}");
    assert_eq!(same, (local("web"), None));
}

#[test]
fn a10_12_a_wrong_apparmor_profile_is_refused_with_its_place() {
    let key = "container.apparmor.security.beta.kubernetes.io/";
    for (annotations, container, said) in [
        ("", "appArmorProfile: {type: Localhost}", "must be set when AppArmor type is Localhost"),
        ("", "appArmorProfile: {type: Localhost, localhostProfile: ' a'}", "must not be padded with whitespace"),
        ("", "appArmorProfile: {type: RuntimeDefault, localhostProfile: a}", "can only be set when AppArmor type is"),
        (
            "",
            "appArmorProfile: {}",
            "appArmorProfile.type (line 8): Required value: type is required when appArmorProfile",
        ),
        (&format!("{key}c: local/x"), "", "invalid AppArmor profile name: \"local/x\""),
        (&format!("{key}c: localhost/"), "", "must be set when AppArmor type is Localhost"),
        (&format!("{key}other: unconfined"), "", "Invalid value: \"other\": container not found"),
        (
            &format!("{key}c: unconfined"),
            "appArmorProfile: {type: RuntimeDefault}",
            "appArmorProfile.type (line 8): Forbidden: apparmor type in annotation and field must match",
        ),
        (
            &format!("{key}c: localhost/a"),
            "appArmorProfile: {type: Localhost, localhostProfile: b}",
            "Forbidden: apparmor profile in annotation and field must match",
        ),
    ] {
        let error = refused(annotations, "", container);
        assert!(error.contains(said), "{error}\nwanted: {said}");
    }
}

#[test]
fn a10_10b_proc_is_unmasked_only_for_a_user_namespace() {
    assert!(read("", "", "procMount: Default").is_ok());
    let said = "procMount (line 8): Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`";
    assert!(refused("", "", "procMount: Unmasked").contains(said));
    assert!(refused("", "", "procMount: unmasked").contains("Unsupported value: \"unmasked\""));
}

#[test]
fn a10_13_selinux_options_arrive_whole_from_one_place() {
    let label = |level: &str| Some(SeLinux { level: level.to_owned(), ..SeLinux::default() });
    let spec = read("", "seLinuxOptions: {user: u, level: s0}", "seLinuxOptions: {level: s1}").unwrap();
    assert_eq!(spec.containers[0].security.se_linux, label("s1"), "not merged part by part, as upstream");
    let pods = Some(SeLinux { user: "u".to_owned(), level: "s0".to_owned(), ..SeLinux::default() });
    assert_eq!((&spec.security.se_linux, &spec.init_containers[0].security.se_linux), (&pods, &pods));
    assert!(refused("", "seLinuxChangePolicy: recursive", "").contains("supported values: MountOption, Recursive"));
}

#[test]
fn a10_4_the_groups_policy_arrives() {
    let policy = |text: &str| read("", text, "").map(|spec| spec.security.groups_policy);
    assert_eq!(policy(""), Ok(GroupsPolicy::Merge));
    assert_eq!(policy("supplementalGroupsPolicy: Strict"), Ok(GroupsPolicy::Strict));
    assert!(policy("supplementalGroupsPolicy: strict").is_err());
    for wrong in ["fsGroup: -1", "supplementalGroups: [1, -1]", "fsGroup: 2147483648"] {
        assert!(refused("", wrong, "").contains("must be between 0 and 2147483647, inclusive"), "{wrong}");
    }
}

#[test]
fn a10_16_sysctls_have_one_name_and_the_pods_own_namespace() {
    let sysctls = |list: &str| read("", &format!("sysctls: [{list}]"), "").map(|spec| spec.security.sysctls);
    let made = sysctls("{name: net/ipv4/conf/eno2.1/rp_filter, value: '1'}").unwrap();
    assert_eq!(made["net.ipv4.conf.eno2/1.rp_filter"], "1");
    for (list, said) in [
        ("{name: '', value: '1'}", "sysctls[0].name (line 5): Required value"),
        ("{name: ../x, value: '1'}", "must have at most 253 characters and match regex"),
        ("{name: a.b, value: '1'}, {name: a/b, value: '2'}", "sysctls[1].name (line 5): Duplicate value: \"a/b\""),
    ] {
        let error = sysctls(list).unwrap_err();
        assert!(error.contains(said), "{error}\nwanted: {said}");
    }
    let shared = manifest("", "sysctls: [{name: net.ipv4.tcp_syncookies, value: '1'}]", "")
        .replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let error = parse(shared.as_bytes(), "f", "n").remove(0).unwrap_err().to_string();
    assert!(error.contains("may not be specified when 'hostNetwork' is true"), "{error}");
}

#[test]
fn a10_8_what_forbids_to_rise_contradicts_what_is_above_all() {
    for with in ["privileged: true", "capabilities: {add: [CAP_SYS_ADMIN]}"] {
        let error = refused("", "", &format!("allowPrivilegeEscalation: false, {with}"));
        assert!(error.contains("cannot set `allowPrivilegeEscalation` to false and"), "{error}");
    }
}

#[test]
fn annotations_of_old_seccomp_are_told_of() {
    let spec = read("seccomp.security.alpha.kubernetes.io/pod: runtime/default", "", "").unwrap();
    assert_eq!(spec.left_out.len(), 1);
    assert!(spec.left_out[0].starts_with("metadata.annotations[seccomp.security.alpha.kubernetes.io/pod]: no effect"));
}

#[test]
fn a8_4_variables_from_nowhere_are_refused() {
    let of = |from: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec: {{containers: [{{name: c, image: a, envFrom: [{{{from}}}]}}]}}\n"
        );
        parse(text.as_bytes(), "f", "n").remove(0).map(|_| ()).map_err(|error| error.to_string()).unwrap_err()
    };
    for from in ["prefix: A", ""] {
        assert!(of(from).contains("must specify one of: `configMapRef` or `secretRef`"), "{from}: {}", of(from));
    }
    assert!(of("secretRef: {}").contains("static pods may not reference secrets"), "{}", of("secretRef: {}"));
    assert!(of("prefix: A, configMapRef: {}").contains("static pods may not reference configmaps"));
}

#[test]
fn a3_3g_what_has_no_effect_in_the_metadata_is_told_of() {
    let text = manifest("", "", "").replace(
        "{name: web,",
        "{name: web, generation: 3, deletionGracePeriodSeconds: 5, deletionTimestamp: '2026-01-01T00:00:00Z',",
    );
    let parsed = parse(text.as_bytes(), "f", "n").remove(0).unwrap();
    let named: Vec<&str> = parsed.spec.left_out.iter().filter_map(|text| text.split(':').next()).collect();
    assert_eq!(named, ["metadata.deletionGracePeriodSeconds", "metadata.deletionTimestamp"]);
}
