//! Tables of files that load, warn and fail.

use std::collections::BTreeMap;
use std::io::Write;

use beelet_core::evict::{Signal, Soft, Threshold, disk};
use beelet_core::node::Enforce;
use beelet_core::spec::placement::{Effect, Taint};
use beelet_core::units::{Micros, Ppm};
use beelet_core::{images, logs, pulls};
use proptest::prelude::*;

use super::*;

const MACHINE: Machine = Machine {
    cpus: MilliCpu(2_000),
    memory: Bytes::gib(4),
    cgroup_v2: true,
    linux: Some((6, 1)),
    app_armor: true,
    se_linux: true,
    swap: false,
    disk: Bytes::gib(100),
};

fn parse(text: &str) -> Result<(Config, Vec<Warning>), ConfigError> {
    let mut loading = Loading::default();
    loading.file(Path::new("node.yaml"), text.as_bytes())?;
    Ok((loading.config, loading.warnings))
}

fn kubelet(fields: &str) -> Result<(Config, Vec<String>), String> {
    let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}\n");
    let (config, warnings) = parse(&text).map_err(|e| e.to_string())?;
    Ok((config, warnings.iter().map(ToString::to_string).collect()))
}

#[test]
fn the_file_of_the_article_loads_with_a_warning() {
    let (config, warnings) =
        parse("apiVersion: v1\nkind: KubeletConfiguration\naddress: 0.0.0.0\nclusterDomain: cluster.local\n").unwrap();
    let address = "0.0.0.0".parse().unwrap();
    assert_eq!(config.kubelet, Kubelet { address, cluster_domain: "cluster.local".to_owned(), ..Kubelet::default() });
    let said: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        ["node.yaml:1: apiVersion: \"v1\" is not that of a KubeletConfiguration: write kubelet.config.k8s.io/v1beta1"]
    );
}

#[test]
fn honoured_fields_arrive() {
    let (config, warnings) = kubelet(
        "readOnlyPort: 10255\naddress: 127.0.0.1\nstaticPodPath: /etc/pods\nfileCheckFrequency: 5s\n\
         cgroupRoot: /beelet-x/\ncgroupDriver: cgroupfs\ncpuCFSQuota: false\ncpuCFSQuotaPeriod: 50ms\nmaxPods: 7\n\
         evictionHard: {memory.available: 7.5%}\nevictionMinimumReclaim: {memory.available: 64Mi}\n\
         evictionSoft: {memory.available: 10%, allocatableMemory.available: 200Mi}\n\
         evictionSoftGracePeriod: {memory.available: 1m30s, allocatableMemory.available: 10s, nodefs.available: 1m}\n\
         evictionMaxPodGracePeriod: 45\nevictionPressureTransitionPeriod: 1m30s\nsystemReserved: {cpu: 100m, memory: 128Mi}\nkubeReserved: {memory: 1Gi, ephemeral-storage: 4Gi}\n\
         registerWithTaints: [{key: k, value: v, effect: NoExecute}]\n\
         failCgroupV1: false\ncontainerRuntimeEndpoint: unix:///run/x.sock\nruntimeRequestTimeout: 10s\n\
         crashLoopBackOff: {maxContainerRestartPeriod: 30s}\nclusterDNS: [10.0.0.10]\nresolvConf: ''\noomScoreAdj: -500\n\
         podLogsDir: /logs\ncontainerLogMaxSize: 1Mi\ncontainerLogMaxFiles: 2\n\
         serializeImagePulls: false\nmaxParallelImagePulls: 4\nregistryPullQPS: 3\nregistryBurst: 6\n\
         containerLogMaxWorkers: 3\ncontainerLogMonitorInterval: 3s",
    )
    .unwrap();
    assert_eq!(warnings, [""; 0]);
    assert_eq!(config.kubelet.pulls, pulls::Policy { parallel: Some(4), per_second: Some(3), burst: 6 });
    let logs = logs::Policy { max_size: Bytes::mib(1), max_files: 2 };
    assert_eq!((config.kubelet.logs, config.kubelet.log_workers), (Some(logs), 3));
    assert_eq!(config.kubelet.log_interval, Micros::secs(3));
    assert_eq!(config.kubelet.server_address().to_string(), "127.0.0.1:10255");
    assert_eq!(config.kubelet.static_pod_path.as_deref(), Some(Path::new("/etc/pods")));
    assert_eq!(config.kubelet.runtime_socket, Path::new("/run/x.sock"));
    assert_eq!(config.kubelet.resolv_conf, None);
    let node = config.node_config(&MACHINE, "node-1").unwrap();
    assert_eq!(
        node,
        NodeConfig {
            name: "node-1".to_owned(),
            kubepods: "beelet-x/kubepods".to_owned(),
            capacity: ResourceList { cpu: MilliCpu(2_000), memory: Bytes::gib(4) },
            kube_reserved: ResourceList { cpu: MilliCpu(0), memory: Bytes::gib(1) },
            system_reserved: ResourceList { cpu: MilliCpu(100), memory: Bytes::mib(128) },
            eviction_hard: vec![Threshold::Share(Ppm(75_000))],
            eviction_soft: [
                (Signal::Memory, Soft { threshold: Threshold::Share(Ppm(100_000)), grace: Micros::secs(90) }),
                (
                    Signal::AllocatableMemory,
                    Soft { threshold: Threshold::Quantity(Bytes::mib(200)), grace: Micros::secs(10) },
                ),
            ]
            .into(),
            max_pod_grace: Micros::secs(45),
            minimum_reclaim: Bytes::mib(64),
            // One threshold that is given takes the others away.
            eviction_disk: disk::Thresholds { hard: [].into(), ..disk::Thresholds::default() },
            pressure_transition: Micros::secs(90),
            cpu_quota: false,
            cpu_period: Micros::millis(50),
            max_pods: 7,
            max_backoff: Micros::secs(30),
            storage: Bytes::gib(96),
            labels: labels::of_node("node-1", &BTreeMap::new()),
            taints: vec![Taint { key: "k".to_owned(), value: "v".to_owned(), effect: Effect::NoExecute }],
            ..NodeConfig::default()
        }
    );
}

#[test]
fn no_file_gives_the_defaults_of_the_core() {
    let (config, warnings) = Config::load(&[]).unwrap();
    assert!(warnings.is_empty());
    let labels = labels::of_node("node", &BTreeMap::new());
    assert_eq!(config.node_config(&MACHINE, "node").unwrap(), NodeConfig { labels, ..NodeConfig::default() });
    assert_eq!(config.kubelet.server_address().to_string(), "127.0.0.1:10250");
}

#[test]
fn what_is_not_acted_on_is_named() {
    for (fields, said) in [
        ("cpuManagerPolicy: static", "node.yaml:3: cpuManagerPolicy: not supported yet; the default is in effect"),
        (
            "evictionHard: {memory.available: 1Gi, containerfs.available: 10%}",
            "node.yaml:3: evictionHard[containerfs.available]: no effect: as in the kubelet",
        ),
        (
            "evictionHard: {memory.available: 1Gi, allocatableMemory.available: 1Gi}",
            "node.yaml:3: evictionHard[allocatableMemory.available]: no effect: it follows memory.available",
        ),
        ("evictionHard: {nodefs.available: 10%}", "no threshold for memory.available"),
        ("containerLogMaxSize: '-1'", "containerLogMaxSize: negative, so no log is rotated"),
        ("containerLogMaxSize: 1k", "containerLogMaxSize: less than 4Ki"),
        (
            "evictionSoft: {containerfs.inodesFree: 1k}\nevictionSoftGracePeriod: {containerfs.inodesFree: 1m}",
            "node.yaml:3: evictionSoft[containerfs.inodesFree]: no effect",
        ),
        (
            "evictionMinimumReclaim: {containerfs.available: 1Gi}",
            "evictionMinimumReclaim[containerfs.available]: no effect",
        ),
        (
            "enforceNodeAllocatable: [pods, system-reserved]",
            "enforceNodeAllocatable[1]: \"system-reserved\" is not acted on yet",
        ),
        ("enforceNodeAllocatable: [none]", "kubepods keeps its memory limit"),
        ("port: 10250", "plain HTTP"),
        ("authentication: {anonymous: {enabled: true}}", "authentication: not supported yet"),
        ("featureGates: {X: true}", "featureGates: not supported yet"),
        // Not even what the kubelet does by default is done.
        (
            "authentication: {anonymous: {enabled: false}}",
            "its default is not in effect: whoever reaches the port is answered",
        ),
        ("syncFrequency: 1m", "syncFrequency: not supported yet, and its default is not in effect"),
        ("kubeReserved: {pid: '100'}", "kubeReserved.pid: not acted on yet"),
    ] {
        let (_, warnings) = kubelet(fields).unwrap_or_else(|e| panic!("{fields}: {e}"));
        assert_eq!(warnings.len(), 1, "{fields}: {warnings:?}");
        assert!(warnings[0].contains(said), "{fields}: {warnings:?}");
    }
}

#[test]
fn c1_what_the_kubelets_own_tools_leave_unset_is_not_warned_of() {
    let (_, warnings) =
        kubelet("syncFrequency: 0s\ncpuManagerReconcilePeriod: 0s\nmemorySwap: {}\nauthorization: ~").unwrap();
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn a10_16_unsafe_sysctls_are_allowed_by_name() {
    let allowed = |fields: &str, name: &str| {
        let (config, warnings) = kubelet(fields).unwrap_or_else(|e| panic!("{fields}: {e}"));
        assert_eq!(warnings, [""; 0]);
        let node = config.node_config(&MACHINE, "node").unwrap();
        node.security.sysctls.check(name, false, false).is_ok()
    };
    assert!(!allowed("maxPods: 5", "net.core.somaxconn"));
    assert!(allowed("allowedUnsafeSysctls: [net.core.*]", "net.core.somaxconn"));
    let error = kubelet("allowedUnsafeSysctls: [net.*, vm.swappiness]").unwrap_err();
    assert!(error.contains("allowedUnsafeSysctls[1] (line 3): the sysctls \"vm.swappiness\" are not known"), "{error}");
    let old = Machine { linux: Some((4, 0)), ..MACHINE };
    let node = Config::default().node_config(&old, "node").unwrap();
    assert!(node.security.sysctls.check("net.ipv4.tcp_rmem", false, false).is_err());
}

#[test]
fn a10_11c_seccomp_default_is_taken() {
    let (config, warnings) = kubelet("seccompDefault: true").unwrap();
    assert_eq!((config.kubelet.seccomp_default, warnings.len()), (true, 0));
    assert!(!Config::default().kubelet.seccomp_default);
}

#[test]
fn c4_swap_is_refused_where_the_file_says_so_and_told_where_it_says_nothing() {
    let swap = Machine { swap: true, ..MACHINE };
    for (fields, machine, expected) in [
        ("failSwapOn: true", MACHINE, Some(false)),
        ("failSwapOn: true", swap, None),
        ("failSwapOn: false", swap, Some(false)),
        ("maxPods: 5", swap, Some(true)),
        ("maxPods: 5", MACHINE, Some(false)),
    ] {
        let (config, _) = kubelet(fields).unwrap();
        let found = config.check_swap(&machine).ok().map(|warning| warning.is_some());
        assert_eq!(found, expected, "{fields} {}", machine.swap);
    }
}

#[test]
fn disk_signals_are_read() {
    use disk::Signal::{ImageFs, ImageFsInodes, NodeFs, NodeFsInodes, Pid};
    let share = |percent: u64| Threshold::Share(Ppm(percent * 10_000));
    let defaults = [(NodeFs, share(10)), (NodeFsInodes, share(5)), (ImageFs, share(15)), (ImageFsInodes, share(5))];
    for (fields, hard) in [
        ("maxPods: 5", defaults.to_vec()),
        // One that is given takes all the others away, unless they are to be merged in.
        ("evictionHard: {memory.available: 1Gi}", vec![]),
        (
            "evictionHard: {nodefs.available: 1Gi, nodefs.inodesFree: 10k, pid.available: 7.5%}",
            vec![
                (NodeFs, Threshold::Quantity(Bytes::gib(1))),
                (NodeFsInodes, Threshold::Quantity(Bytes(10_000))),
                (Pid, Threshold::Share(Ppm(75_000))),
            ],
        ),
        (
            "evictionHard: {nodefs.available: 0%, imagefs.available: 20%}\nmergeDefaultEvictionSettings: true",
            vec![(NodeFsInodes, share(5)), (ImageFs, share(20)), (ImageFsInodes, share(5))],
        ),
    ] {
        let (config, _) = kubelet(fields).unwrap_or_else(|e| panic!("{fields}: {e}"));
        let node = config.node_config(&MACHINE, "node").unwrap();
        assert_eq!(node.eviction_disk.hard.into_iter().collect::<Vec<_>>(), hard, "{fields}");
    }
    let (config, warnings) = kubelet(
        "evictionSoft: {nodefs.available: 30%}\nevictionSoftGracePeriod: {nodefs.available: 1m30s}\n\
         evictionMinimumReclaim: {nodefs.available: 500Mi, imagefs.available: 5%}\nlocalStorageCapacityIsolation: false\n\
         imageGCHighThresholdPercent: 70\nimageGCLowThresholdPercent: 60\nimageMinimumGCAge: 3m\nimageMaximumGCAge: 24h",
    )
    .unwrap();
    assert_eq!(warnings, [""; 0]);
    let (node, policy) = (config.node_config(&MACHINE, "node").unwrap(), config.kubelet.image_policy);
    let soft = Soft { threshold: share(30), grace: Micros::secs(90) };
    assert_eq!(node.eviction_disk.soft, [(NodeFs, soft)].into());
    assert_eq!(
        node.eviction_disk.reclaim,
        [(NodeFs, Threshold::Quantity(Bytes::mib(500))), (ImageFs, share(5))].into()
    );
    assert!(!node.storage_limits);
    let (min_age, max_age) = (Micros::secs(180), Micros::secs(86_400));
    assert_eq!(policy, images::Policy { high: 70, low: 60, min_age, max_age });
}

#[test]
fn merging_keeps_the_default_threshold() {
    let fields = "evictionHard: {nodefs.available: 10%}\nmergeDefaultEvictionSettings: true";
    assert_eq!(kubelet(fields).unwrap().0.kubelet.eviction_hard, [Threshold::default()]);
    assert_eq!(kubelet("evictionHard: {memory.available: 0%}").unwrap().0.kubelet.eviction_hard, []);
}

#[test]
fn what_is_wrong_is_named() {
    for (fields, said) in [
        ("maxPod: 5", "maxPod (line 3): unknown field, did you mean \"maxPods\"?"),
        ("maxpods: 5", "did you mean \"maxPods\"?"),
        ("authentification: {}", "did you mean \"authentication\"?"),
        ("maxPods: many", "maxPods (line 3)"),
        ("port: 70000", "port (line 3)"),
        ("address: localhost", "address (line 3): \"localhost\" is not an IP address"),
        ("fileCheckFrequency: 20", "fileCheckFrequency (line 3): 20 where text is wanted"),
        ("fileCheckFrequency: 20 s", "\"20 s\" is not a duration: write it as in 100ms"),
        ("cgroupDriver: systemd", "cgroupDriver (line 3): \"systemd\" is not supported yet"),
        ("cgroupRoot: /a/../b", "cgroupRoot (line 3): \"/a/../b\" is not a cgroup's path"),
        ("cpuCFSQuotaPeriod: 2s", "cpuCFSQuotaPeriod (line 3): 2s is not between 1ms and 1s"),
        ("crashLoopBackOff: {maxContainerRestartPeriod: 301s}", "301s is not between 1s and 300s"),
        ("crashLoopBackOff: {max: 1s}", "crashLoopBackOff.max (line 3): unknown field"),
        ("oomScoreAdj: -1001", "-1001 is not between"),
        ("containerLogMaxFiles: 1", "containerLogMaxFiles (line 3): 1 is not greater than 1"),
        ("containerLogMaxWorkers: 0", "containerLogMaxWorkers (line 3): 0 is not greater than or equal to 1"),
        (
            "containerLogMonitorInterval: 2s",
            "containerLogMonitorInterval (line 3): 2s is not greater than or equal to 3s",
        ),
        ("containerLogMaxSize: 10MB", "containerLogMaxSize (line 3): \"10MB\" is not a quantity"),
        ("evictionHard: {memory.avail: 1Gi}", "unknown eviction signal, did you mean \"memory.available\"?"),
        ("evictionHard: {memory.available: 100MB}", "\"100MB\" is not a quantity"),
        ("evictionHard: {memory.available: 120%}", "is not a share between 0% and 100%"),
        ("evictionHard: {memory.available: '0'}", "above zero"),
        ("evictionHard: {nodefs.available: 101%}", "evictionHard[nodefs.available] (line 3): \"101%\" is not a share"),
        (
            "evictionHard: {nodefs.inodesFree: '0'}",
            "evictionHard[nodefs.inodesFree] (line 3): \"0\" has to be above zero",
        ),
        ("evictionHard: {pids.available: 5%}", "unknown eviction signal, did you mean \"pid.available\"?"),
        ("evictionSoft: {imagefs.available: 5%}", "evictionSoftGracePeriod[imagefs.available] (line "),
        (
            "evictionMinimumReclaim: {nodefs.available: 0%}",
            "evictionMinimumReclaim[nodefs.available] (line 3): \"0%\" has to be above",
        ),
        (
            "evictionMinimumReclaim: {nodefs.available: -1Gi}",
            "evictionMinimumReclaim[nodefs.available] (line 3): \"-1Gi\" is negative",
        ),
        ("imageGCHighThresholdPercent: 101", "imageGCHighThresholdPercent (line 3): 101 is not a percentage"),
        ("imageGCLowThresholdPercent: -1", "imageGCLowThresholdPercent (line 3): -1 is not a percentage"),
        ("imageGCLowThresholdPercent: 85", "85 is not less than imageGCHighThresholdPercent, which is 85"),
        ("imageMaximumGCAge: 2m", "imageMaximumGCAge (line 3): 120s is not more than imageMinimumGCAge, which is 120s"),
        ("localStorageCapacityIsolation: maybe", "localStorageCapacityIsolation (line 3)"),
        ("evictionSoft: {memory.available: 1Gi}", "evictionSoftGracePeriod[memory.available] (line "),
        ("evictionSoft: {memory.available: 1Gi}", "needs its grace period"),
        (
            "evictionSoft: {memory.avail: 1Gi}",
            "evictionSoft[memory.avail] (line 3): unknown eviction signal, did you mean",
        ),
        (
            "evictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: -1m}",
            "evictionSoftGracePeriod[memory.available] (line 4): \"-1m\" is not a duration",
        ),
        ("evictionSoftGracePeriod: {memory.avail: 1m}", "did you mean \"memory.available\"?"),
        (
            "evictionMaxPodGracePeriod: -1",
            "evictionMaxPodGracePeriod (line 3): -1 is not a number of seconds from 0 on",
        ),
        ("evictionMaxPodGracePeriod: 30s", "evictionMaxPodGracePeriod (line 3)"),
        ("maxParallelImagePulls: 0", "maxParallelImagePulls (line 3): must be a positive number"),
        ("registerWithTaints: [{key: '', effect: NoExecute}]", "registerWithTaints[0].key (line 3): \"\": name part"),
        ("registerWithTaints: [{key: k, value: a b, effect: NoExecute}]", "registerWithTaints[0].value"),
        ("registerWithTaints: [{key: k}]", "registerWithTaints[0].effect (line 3): Required value"),
        ("registerWithTaints: [{key: k, effect: No}]", "supported values: NoSchedule, PreferNoSchedule, NoExecute"),
        ("registerWithTaints: [{key: k, effects: No}]", "effects"),
        ("kubeReserved: {cpu: lots}", "kubeReserved.cpu (line 3): \"lots\" is not a quantity"),
        ("kubeReserved: {cpus: '1'}", "unknown resource, did you mean \"cpu\"?"),
        ("enforceNodeAllocatable: [pod]", "enforceNodeAllocatable[0] (line 3): \"pod\" is not one of"),
        ("enforceNodeAllocatable: [none, pods]", "\"none\" stands alone"),
        ("containerRuntimeEndpoint: tcp://x", "is not a Unix socket"),
        ("clusterDNS: [x]", "clusterDNS[0] (line 3): \"x\" is not an IP address"),
        ("address: [", "node.yaml: line "),
        ("---\nkind: KubeletConfig\n", "did you mean \"KubeletConfiguration\"?"),
        (
            "---\napiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n",
            "a second KubeletConfiguration (line 4)",
        ),
        ("---\napiVersion: v1\nkind: EnforcementPolicy\n", "write beelet.dev/v1alpha1"),
        (
            "---\napiVersion: beelet.dev/v1alpha1\nkind: EnforcementPolicy\nspec: {mode: Obsrve}\n",
            "spec.mode (line 6): \"Obsrve\" is not one of Enforce, Observe",
        ),
        (
            "---\napiVersion: beelet.dev/v1alpha1\nkind: EnforcementPolicy\nspec: {brust: true}\n",
            "spec.brust (line 6): unknown field, did you mean \"burst\"?",
        ),
    ] {
        let error = kubelet(fields).expect_err(fields);
        assert!(error.contains(said), "{fields}: {error}");
        assert!(error.starts_with("node.yaml: "), "{error}");
    }
    let error = parse("apiVersion: kubelet.config.k8s.io/v1\nkind: KubeletConfiguration\n").unwrap_err().to_string();
    assert!(error.contains("write kubelet.config.k8s.io/v1beta1"), "{error}");
}

#[test]
fn a_policy_is_read() {
    let (config, _) = kubelet(
        "---\napiVersion: beelet.dev/v1alpha1\nkind: EnforcementPolicy\nmetadata: {name: x}\n\
         spec: {mode: Observe, burst: false, programs: {sched_switch: false}, programLog: true}",
    )
    .unwrap();
    assert_eq!((config.policy.mode, config.policy.burst), (Enforce::Observe, false));
    assert!(config.policy.program_log && !Config::default().policy.program_log);
    assert!(!config.policy.wants_program("sched_switch") && config.policy.wants_program("other"));
    let error = config.check_programs(&["sched_switches", "exit"]).unwrap_err().to_string();
    assert!(error.starts_with("EnforcementPolicy: spec.programs.sched_switch: "), "{error}");
    assert!(error.contains("did you mean \"sched_switches\"?"), "{error}");
    assert!(config.policy.check_programs(&["sched_switch"]).is_ok());
}

#[test]
fn reservations_fit_the_machine() {
    let (config, _) = kubelet("kubeReserved: {memory: 3Gi}\nsystemReserved: {memory: 2Gi}").unwrap();
    let error = config.node_config(&MACHINE, "n").unwrap_err().to_string();
    assert_eq!(error, "kubeReserved and systemReserved are 5Gi memory together, and the machine has 4Gi: reserve less");
    let (config, _) = kubelet("kubeReserved: {cpu: 2001m}").unwrap();
    assert!(config.node_config(&MACHINE, "n").unwrap_err().to_string().contains("2001m cpu together"));
    assert!(matches!(Config::default().node_config(&MACHINE, "../n"), Err(ConfigError::NodeName(_))));
}

#[test]
fn cgroup_v1_is_refused_unless_allowed() {
    let hybrid = Machine { cgroup_v2: false, ..MACHINE };
    let (allowing, _) = kubelet("failCgroupV1: false").unwrap();
    assert!(matches!(Config::default().check_cgroup_layout(&hybrid), Err(ConfigError::CgroupV1)));
    assert!(matches!(Config::default().check_cgroup_layout(&MACHINE), Ok(None)));
    assert!(matches!(allowing.check_cgroup_layout(&hybrid), Ok(Some(_))));
}

#[test]
fn files_are_read_up_to_a_size() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("large.yaml");
    std::fs::File::create(&large).unwrap().set_len(100 << 20).unwrap();
    assert!(matches!(Config::load(&[large]), Err(ConfigError::TooLarge { .. })));
    let missing = dir.path().join("missing.yaml");
    let error = Config::load(std::slice::from_ref(&missing)).unwrap_err().to_string();
    assert!(error.contains("missing.yaml: No such file"), "{error}");
    assert!(matches!(Config::load(&[dir.path().to_owned()]), Err(ConfigError::Read { .. })));
    let good = dir.path().join("good.yaml");
    let mut file = std::fs::File::create(&good).unwrap();
    file.write_all(b"apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 3\n").unwrap();
    assert_eq!(Config::load(&[good]).unwrap().0.kubelet.max_pods, 3);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[ -~\n]{0,200}") {
        let _ = parse(&text);
        let _ = kubelet(&text);
    }
}
