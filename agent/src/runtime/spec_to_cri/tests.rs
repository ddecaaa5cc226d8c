//! Tables: a field of the spec, and where it must arrive.

use beelet_core::event::CgroupKnobs;
use beelet_core::security::{GroupsPolicy, Profile, SeLinux};
use beelet_core::spec::{
    ContainerSecurity, EnvValue, EnvVar, LastWords, Mount, PodSecurity, PodUid, Port, Resources, Volume, VolumeKind,
};
use beelet_core::units::{Bytes, MilliCpu};

use super::*;

pub(super) fn node() -> NodeEnv {
    NodeEnv {
        instance: "i1".to_owned(),
        node_name: "n1".to_owned(),
        host_ips: vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()],
        root: "/root".into(),
        pod_logs_dir: "/logs".into(),
        dns: NodeDns { resolv_conf: Some("nameserver 192.0.2.53\n".to_owned()), ..NodeDns::default() },
        cgroup_v2: true,
        seccomp_default: false,
        masked: Vec::new(),
        allocatable: Allocatable::default(),
    }
}

fn pod() -> PodSpec {
    let container = ContainerSpec { image: "img:1".to_owned(), ..ContainerSpec::unknown("c") };
    PodSpec {
        namespace: "ns".to_owned(),
        name: "p".to_owned(),
        hostname: "p".to_owned(),
        containers: vec![container],
        ..PodSpec::unknown(PodUid::from("u1"))
    }
}

pub(super) fn changed(change: impl FnOnce(&mut PodSpec)) -> PodSpec {
    let mut spec = pod();
    change(&mut spec);
    spec
}

fn sandbox(spec: &PodSpec) -> cri::PodSandboxConfig {
    let (dns, _) = resolver(&node(), spec).expect("a resolver");
    sandbox_config(&node(), spec, "kubepods/burstable/podu1", 3, dns).expect("a config")
}

pub(super) fn container(spec: &PodSpec, image: Option<&ImageUser>) -> Result<cri::ContainerConfig, SpecError> {
    let linux = LinuxResources {
        knobs: CgroupKnobs {
            cpu_shares: Some(102),
            cpu_quota: Some(Micros(20_000)),
            cpu_period: Micros(100_000),
            memory_max: Some(Bytes::mib(8)),
        },
        oom_score_adj: -997,
        resources: Resources { cpu_limit: Some(MilliCpu(200)), ..Resources::default() },
    };
    // As far as there are such volumes.
    let volume = |mount: &Mount| spec.volumes.iter().find(|v| v.name == mount.volume);
    let mounts = spec.containers[0].mounts.iter().map_while(volume);
    let sources: Vec<_> = mounts.map(|volume| paths::volume(&node().root, &spec.uid, volume)).collect();
    let start = ContainerStart { sources: &sources, ..start(spec, &linux) };
    container_config(&node(), &start, image, &Given::default(), RuntimeFeatures::default())
}

pub(super) fn start<'a>(spec: &'a PodSpec, linux: &'a LinuxResources) -> ContainerStart<'a> {
    ContainerStart {
        spec,
        container: "c",
        attempt: 2,
        sandbox_id: "s",
        pod_ip: "10.0.0.9",
        cgroup: "kubepods/burstable/podu1",
        linux,
        sources: &[],
    }
}

fn security(spec: &PodSpec) -> cri::LinuxContainerSecurityContext {
    let linux = container(spec, None).expect("a config").linux.expect("linux");
    linux.security_context.expect("a security context")
}

#[test]
fn a15_1_a9_3d_a_sandbox_has_its_names_and_places() {
    let config = sandbox(&changed(|s| {
        s.labels.insert("app".to_owned(), "web".to_owned());
        // A pod cannot pass for another one, nor for one that is not beelet's.
        s.labels.insert(names::POD_UID.to_owned(), "other".to_owned());
        s.annotations.insert(names::MANAGED.to_owned(), "false".to_owned());
        s.security.sysctls.insert("net.ipv4.ip_forward".to_owned(), "1".to_owned());
    }));
    let metadata = config.metadata.expect("metadata");
    assert_eq!((&*metadata.name, &*metadata.namespace, &*metadata.uid, metadata.attempt), ("p", "ns", "u1", 3));
    assert_eq!(config.log_directory, "/logs/ns_p_u1");
    assert_eq!(config.hostname, "p");
    for (label, value) in [("app", "web"), (names::POD_NAME, "p"), (names::POD_NAMESPACE, "ns"), (names::POD_UID, "u1")]
    {
        assert_eq!(config.labels.get(label).map(String::as_str), Some(value), "{label}");
    }
    assert_eq!(config.annotations.get(names::MANAGED).map(String::as_str), Some("i1"));
    let linux = config.linux.expect("linux");
    assert_eq!(linux.cgroup_parent, "/kubepods/burstable/podu1");
    assert_eq!(linux.sysctls.get("net.ipv4.ip_forward").map(String::as_str), Some("1"));
}

#[test]
fn a9_1a_namespaces_are_the_same_for_sandbox_and_container() {
    use cri::NamespaceMode::{Container, Node, Pod};
    type Change = fn(&mut PodSpec);
    let table: [(Change, [cri::NamespaceMode; 3]); 6] = [
        (|_| {}, [Pod, Container, Pod]),
        (|s| s.host_network = true, [Node, Container, Pod]),
        (|s| s.host_pid = true, [Pod, Node, Pod]),
        (|s| s.host_ipc = true, [Pod, Container, Node]),
        (|s| s.share_process_namespace = true, [Pod, Pod, Pod]),
        (|s| (s.host_pid, s.share_process_namespace) = (true, true), [Pod, Node, Pod]),
    ];
    for (change, expected) in table {
        let spec = changed(change);
        let of_sandbox = sandbox(&spec).linux.and_then(|l| l.security_context).and_then(|s| s.namespace_options);
        let options = of_sandbox.expect("namespaces");
        assert_eq!([options.network(), options.pid(), options.ipc()], expected);
        assert_eq!(security(&spec).namespace_options, Some(options));
    }
    assert_eq!(sandbox(&changed(|s| s.host_network = true)).hostname, "", "the node's own");
}

#[test]
fn a10_7_a10_10a_privileged_reaches_the_sandbox_even_from_an_init_container() {
    let privileged = |config: cri::PodSandboxConfig| {
        config.linux.and_then(|l| l.security_context).expect("a security context").privileged
    };
    assert!(!privileged(sandbox(&pod())));
    let init = changed(|s| {
        let mut init = ContainerSpec::unknown("init");
        init.security.privileged = true;
        s.init_containers.push(init);
    });
    assert!(privileged(sandbox(&init)));
    assert!(!security(&init).privileged, "only the one that asks");
    let own = changed(|s| s.containers[0].security.privileged = true);
    let context = security(&own);
    assert!(context.privileged && context.masked_paths.is_empty() && context.readonly_paths.is_empty());
    assert!(security(&pod()).masked_paths.contains(&"/proc/kcore".to_owned()));
}

#[test]
fn a10_1_a10_2_users_are_judged_before_the_runtime_sees_them() {
    let with = |user, group, non_root| {
        changed(|s| {
            s.containers[0].security = ContainerSecurity {
                run_as_user: user,
                run_as_group: group,
                run_as_non_root: non_root,
                ..ContainerSecurity::default()
            };
        })
    };
    let image = |uid, name: &str| Some(ImageUser { uid, name: name.to_owned() });
    for (spec, image, expected) in [
        (with(None, None, false), None, Ok((None, None))),
        (with(Some(7), Some(8), true), None, Ok((Some(7), Some(8)))),
        (with(Some(0), None, true), None, Err(SpecError::RunsAsRoot)),
        (with(None, None, true), image(Some(0), ""), Err(SpecError::ImageRunsAsRoot)),
        (with(None, None, true), image(None, ""), Err(SpecError::ImageRunsAsRoot)),
        (with(None, None, true), None, Err(SpecError::ImageRunsAsRoot)),
        (with(None, None, true), image(None, "www"), Err(SpecError::ImageUserName("www".to_owned()))),
        (with(None, None, true), image(Some(33), ""), Ok((Some(33), None))),
        // The runtime refuses a group without a user.
        (with(None, Some(8), false), image(Some(33), ""), Ok((Some(33), Some(8)))),
        (with(None, Some(8), false), None, Ok((Some(0), Some(8)))),
        (with(None, Some(8), false), image(None, "www"), Err(SpecError::GroupWithoutUser("www".to_owned()))),
    ] {
        let found = container(&spec, image.as_ref()).map(|config| {
            let context = config.linux.and_then(|l| l.security_context).expect("a security context");
            (context.run_as_user.map(|u| u.value), context.run_as_group.map(|g| g.value))
        });
        assert_eq!(found, expected, "{:?} {image:?}", spec.containers[0].security);
    }
}

/// Rows: A10.3, A10.5, A10.6, A10.8, A10.9, A10.18.
#[test]
fn the_rest_of_the_security_context_arrives() {
    let context = security(&changed(|s| {
        s.security = PodSecurity { fs_group: Some(5), supplemental_groups: vec![6, 7], ..PodSecurity::default() };
        s.containers[0].security = ContainerSecurity {
            read_only_root: true,
            allow_privilege_escalation: Some(false),
            cap_add: vec!["NET_ADMIN".to_owned()],
            cap_drop: vec!["ALL".to_owned()],
            ..ContainerSecurity::default()
        };
    }));
    assert_eq!(context.supplemental_groups, [5, 6, 7]);
    assert!(context.readonly_rootfs && context.no_new_privs);
    let capabilities = context.capabilities.expect("capabilities");
    assert_eq!(
        (&capabilities.add_capabilities[..], &capabilities.drop_capabilities[..]),
        (&["NET_ADMIN".to_owned()][..], &["ALL".to_owned()][..])
    );
    use cri::security_profile::ProfileType::{RuntimeDefault, Unconfined};
    assert_eq!(context.seccomp.expect("a profile").profile_type(), Unconfined);
    assert!(!security(&pod()).no_new_privs, "unset allows it");
    let seccomp = sandbox(&pod()).linux.and_then(|l| l.security_context).and_then(|s| s.seccomp);
    assert_eq!(seccomp.expect("a profile").profile_type(), RuntimeDefault);
}

/// A profile's kind and reference.
fn told(profile: Option<cri::SecurityProfile>) -> Option<(cri::security_profile::ProfileType, String)> {
    profile.map(|profile| (profile.profile_type(), profile.localhost_ref))
}

#[test]
fn a10_11a_a10_11b_a10_11c_seccomp_profiles_arrive_local_ones_as_files_below_the_root() {
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    let with = |seccomp: Option<Profile>| changed(|s| s.containers[0].security.seccomp = seccomp);
    for (seccomp, expected) in [
        (Some(Profile::RuntimeDefault), (RuntimeDefault, "")),
        (Some(Profile::Unconfined), (Unconfined, "")),
        (Some(Profile::Localhost("mine/a.json".to_owned())), (Localhost, "/root/seccomp/mine/a.json")),
        (None, (Unconfined, "")),
    ] {
        let found = told(security(&with(seccomp.clone())).seccomp);
        assert_eq!(found, Some((expected.0, expected.1.to_owned())), "{seccomp:?}");
    }
    let on = NodeEnv { seccomp_default: true, ..node() };
    let of = |spec: &PodSpec| told(security::of_container(&on, spec, &spec.containers[0], (None, None)).seccomp);
    assert_eq!(of(&with(None)), Some((RuntimeDefault, String::new())), "seccompDefault is for those that say nothing");
    assert_eq!(of(&with(Some(Profile::Unconfined))), Some((Unconfined, String::new())));
}

#[test]
fn a10_12a_apparmor_is_told_only_where_it_is_asked_for() {
    use cri::security_profile::ProfileType::{Localhost, RuntimeDefault, Unconfined};
    for (given, expected) in [
        (None, None),
        (Some(Profile::Unconfined), Some((Unconfined, String::new()))),
        (Some(Profile::RuntimeDefault), Some((RuntimeDefault, String::new()))),
        (Some(Profile::Localhost("web".to_owned())), Some((Localhost, "web".to_owned()))),
    ] {
        let context = security(&changed(|s| s.containers[0].security.app_armor = given.clone()));
        assert_eq!(told(context.apparmor), expected, "{given:?}");
    }
    let of_sandbox = sandbox(&changed(|s| s.containers[0].security.app_armor = Some(Profile::Unconfined)));
    assert_eq!(of_sandbox.linux.and_then(|l| l.security_context).and_then(|s| s.apparmor), None);
}

#[test]
fn a10_13_labels_arrive_and_what_is_the_pods_own_is_relabelled() {
    let label = |level: &str| SeLinux { level: level.to_owned(), ..SeLinux::default() };
    let spec = changed(|s| {
        s.security.se_linux = Some(label("s0"));
        s.containers[0].security.se_linux = Some(label("s1"));
        s.volumes = vec![
            Volume { name: "e".to_owned(), kind: VolumeKind::EmptyDir { memory: false, size_limit: None } },
            Volume {
                name: "h".to_owned(),
                kind: VolumeKind::HostPath { path: "/srv".to_owned(), kind: String::new() },
            },
        ];
        let mount = |volume: &str| Mount { volume: volume.to_owned(), path: format!("/{volume}"), ..Mount::default() };
        s.containers[0].mounts = vec![mount("e"), mount("h")];
    });
    let of_sandbox = sandbox(&spec).linux.and_then(|l| l.security_context).and_then(|s| s.selinux_options);
    assert_eq!(of_sandbox.map(|l| l.level).as_deref(), Some("s0"));
    assert_eq!(security(&spec).selinux_options.map(|l| l.level).as_deref(), Some("s1"));
    assert_eq!(security(&pod()).selinux_options, None);
    let mounts = container(&spec, None).expect("a config").mounts;
    let relabelled: Vec<&str> =
        mounts.iter().filter(|m| m.selinux_relabel).map(|m| m.container_path.as_str()).collect();
    assert_eq!(relabelled, ["/e", "/etc/hosts", "/dev/termination-log"]);
}

#[test]
fn a10_4_the_groups_policy_arrives_at_both() {
    for policy in [GroupsPolicy::Merge, GroupsPolicy::Strict] {
        let spec = changed(|s| s.security.groups_policy = policy);
        let wanted = match policy {
            GroupsPolicy::Merge => cri::SupplementalGroupsPolicy::Merge,
            GroupsPolicy::Strict => cri::SupplementalGroupsPolicy::Strict,
        };
        assert_eq!(security(&spec).supplemental_groups_policy(), wanted);
        let of_sandbox = sandbox(&spec).linux.and_then(|l| l.security_context).expect("a security context");
        assert_eq!(of_sandbox.supplemental_groups_policy(), wanted);
    }
}

#[test]
fn a10_10a_what_this_machine_has_beside_is_masked_too() {
    let hot = NodeEnv { masked: vec!["/sys/hot".to_owned()], ..node() };
    let of = |privileged: bool| {
        let spec = changed(|s| s.containers[0].security.privileged = privileged);
        security::of_container(&hot, &spec, &spec.containers[0], (None, None)).masked_paths
    };
    assert!(of(false).contains(&"/sys/hot".to_owned()) && of(false).contains(&"/proc/kcore".to_owned()));
    assert_eq!(of(true), [""; 0]);
}

#[test]
fn a8_2a_a8_7_a8_8_variables_come_from_the_pod_and_expand_in_order() {
    let literal = |name: &str, text: &str| EnvVar { name: name.to_owned(), value: EnvValue::Literal(text.to_owned()) };
    let field = |path: &str| EnvVar { name: path.to_owned(), value: EnvValue::Field(path.to_owned()) };
    let fields = [
        ("metadata.name", "p"),
        ("metadata.namespace", "ns"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['x/y']", "z"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", ""),
        ("status.hostIP", "192.0.2.1"),
        ("status.hostIPs", "192.0.2.1,2001:db8::1"),
        ("status.podIP", "10.0.0.9"),
        ("status.podIPs", "10.0.0.9"),
    ];
    let mut spec = changed(|s| {
        s.labels.insert("app".to_owned(), "web".to_owned());
        s.annotations.insert("x/y".to_owned(), "z".to_owned());
        let container = &mut s.containers[0];
        container.env = fields.iter().map(|(path, _)| field(path)).collect();
        container.env.extend([literal("LATE", "$(A)"), literal("A", "1"), literal("B", "$(A)2 $$(A)")]);
        container.command = vec!["run".to_owned(), "$(B)".to_owned()];
        container.args = vec!["$(NONE)".to_owned()];
    });
    let config = container(&spec, None).expect("a config");
    let value = |name: &str| {
        let found = config.envs.iter().find(|env| env.key == name).expect(name);
        String::from_utf8(found.value.clone()).expect("text")
    };
    for (path, expected) in fields {
        assert_eq!(value(path), expected, "{path}");
    }
    assert_eq!((value("LATE"), value("B")), ("$(A)".to_owned(), "12 $(A)".to_owned()));
    assert_eq!((&config.command[1], &config.args[0]), (&"12 $(A)".to_owned(), &"$(NONE)".to_owned()));

    spec.host_network = true;
    let config = container(&spec, None).expect("a config");
    let ips = config.envs.iter().find(|env| env.key == "status.podIPs").expect("there");
    assert_eq!(ips.value, b"192.0.2.1,2001:db8::1");

    spec.containers[0].env = vec![field("metadata.labels[app]")];
    let error = container(&spec, None).expect_err("no such path");
    assert!(matches!(error, SpecError::FieldPath { .. }), "{error}");
}

#[test]
fn a9_4a_a_container_carries_what_a_restarted_agent_reads() {
    let spec = changed(|s| {
        s.termination_grace = Micros(1_500_000);
        s.containers[0].last_words = LastWords { path: "/words".to_owned(), from_log: true };
        s.containers[0].ports = vec![Port {
            name: "http".to_owned(),
            container_port: 80,
            host_port: 8080,
            host_ip: String::new(),
            protocol: "TCP".to_owned(),
        }];
    });
    let config = container(&spec, None).expect("a config");
    assert_eq!(config.metadata, Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: 2 }));
    assert_eq!(config.log_path, "c/2.log");
    assert!(config.mounts.iter().any(|mount| mount.container_path == "/words"), "{:?}", config.mounts);
    for (name, value) in [
        (names::RESTART_COUNT, "2"),
        (names::TERMINATION_GRACE, "2"),
        (names::TERMINATION_MESSAGE_PATH, "/words"),
        (names::TERMINATION_MESSAGE_POLICY, "FallbackToLogsOnError"),
        (names::MANAGED, "i1"),
        (names::PORTS, r#"[{"containerPort":80,"hostPort":8080,"name":"http","protocol":"TCP"}]"#),
    ] {
        assert_eq!(config.annotations.get(name).map(String::as_str), Some(value), "{name}");
    }
    let read: Resources = serde_json::from_str(&config.annotations[names::RESOURCES]).expect("JSON");
    assert_eq!(read.cpu_limit, Some(MilliCpu(200)));
    let hash = |change: fn(&mut ContainerSpec)| {
        let spec = changed(|s| change(&mut s.containers[0]));
        container(&spec, None).expect("a config").annotations[names::CONTAINER_HASH].clone()
    };
    let resized = hash(|c| c.resources.memory_limit = Some(Bytes::mib(1)));
    assert_eq!(resized, hash(|_| {}), "a resize is the same container");
    assert_ne!(hash(|c| c.args.push("x".to_owned())), hash(|_| {}));

    let mapped = sandbox(&spec).port_mappings;
    assert_eq!((mapped.len(), mapped[0].host_port, mapped[0].container_port), (1, 8080, 80));
    let in_node = changed(|s| (s.host_network, s.containers) = (true, spec.containers.clone()));
    assert!(sandbox(&in_node).port_mappings.is_empty());
}

#[test]
fn no_limit_is_0_for_a_new_container_and_minus_1_for_a_changed_one() {
    let none = LinuxResources {
        knobs: CgroupKnobs { cpu_shares: Some(2), ..CgroupKnobs::default() },
        ..LinuxResources::default()
    };
    let (new, changed) = (resources(&none, true), changed_resources(&none));
    assert_eq!((new.cpu_quota, new.memory_limit_in_bytes, new.cpu_shares), (0, 0, 2));
    assert_eq!((changed.cpu_quota, changed.memory_limit_in_bytes, changed.cpu_shares), (-1, -1, 2));
    assert_eq!(new.unified.get("memory.oom.group").map(String::as_str), Some("1"));
    assert!(resources(&none, false).unified.is_empty(), "v1 has no such file");
    let given = container(&pod(), None).expect("a config").linux.and_then(|l| l.resources).expect("resources");
    assert_eq!((given.cpu_quota, given.cpu_period, given.memory_limit_in_bytes), (20_000, 100_000, 8 << 20));
    assert_eq!((given.oom_score_adj, given.cpu_shares), (-997, 102));
}

#[test]
fn a9_2_the_resolver_is_the_pods() {
    use beelet_core::dns::{PodDns, Policy};
    let config = |spec: &PodSpec| resolver(&node(), spec).expect("a resolver");
    let (plain, told) = config(&pod());
    assert_eq!((plain.servers, plain.searches, told.len()), (vec!["192.0.2.53".to_owned()], Vec::new(), 0));
    let wish =
        Resolver { servers: vec!["192.0.2.9".to_owned()], options: vec!["rotate".to_owned()], ..Resolver::default() };
    let spec = changed(|s| s.dns = PodDns { policy: Some(Policy::None), config: wish });
    let (own, _) = config(&spec);
    assert_eq!((own.servers, own.options), (vec!["192.0.2.9".to_owned()], vec!["rotate".to_owned()]));
    let (_, told) = config(&changed(|s| s.dns.policy = Some(Policy::ClusterFirst)));
    assert!(told[0].0 == "MissingClusterDNS" && told[0].1.starts_with("pod: \"p_ns(u1)\". kubelet"), "{told:?}");
    let given = sandbox(&spec).dns_config.expect("a resolver");
    assert_eq!(given.servers, ["192.0.2.9"]);
}
