//! In temporary folders; mounting needs root and is skipped by name without it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;

use beelet_core::spec::{ContainerSpec, HostAlias, Volume};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A pod with these volumes.
pub(crate) fn pod(uid: &str, volumes: Vec<Volume>) -> PodSpec {
    let json = serde_json::json!({
        "uid": uid, "namespace": "default", "name": "web", "labels": {}, "annotations": {}, "origin": "test", "priority": 0,
        "restart_policy": "Always", "termination_grace": 30_000_000, "host_network": false, "host_pid": false,
        "host_ipc": false, "share_process_namespace": false, "hostname": "web",
        "security": { "run_as_user": null, "run_as_group": null, "fs_group": null, "supplemental_groups": [], "sysctls": {} },
        "volumes": [], "init_containers": [], "containers": [],
    });
    PodSpec { volumes, containers: vec![container("main")], ..serde_json::from_value(json).expect("a pod") }
}

fn container(name: &str) -> ContainerSpec {
    serde_json::from_value(serde_json::json!({
        "name": name, "image": "i", "pull": "Never", "command": [], "args": [], "working_dir": "", "env": [], "ports": [],
        "mounts": [], "stdin": false, "tty": false,
        "resources": { "cpu_request": null, "cpu_limit": null, "memory_request": null, "memory_limit": null },
        "security": { "privileged": false, "read_only_root": false, "run_as_user": null, "run_as_group": null,
            "run_as_non_root": false, "allow_privilege_escalation": null, "cap_add": [], "cap_drop": [] },
    }))
    .expect("a container")
}

fn empty(name: &str, memory: bool, size_limit: Option<Bytes>) -> Volume {
    Volume { name: name.to_owned(), kind: VolumeKind::EmptyDir { memory, size_limit } }
}

pub(crate) fn volumes(dir: &TempDir) -> Volumes {
    Volumes::new(dir.path().join("root"), dir.path().join("logs"))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a7_1_a7_2a_a4_12f_setup_and_teardown_can_be_repeated() {
    let dir = TempDir::new().unwrap();
    let (files, spec) = (volumes(&dir), pod("u1", vec![empty("data", false, None)]));
    files.setup(&spec).unwrap();
    let data = paths::empty_dir(&files.root, &spec.uid, "data");
    assert_eq!(mode(&data), 0o777);
    assert_eq!(mode(&paths::pod_dir(&files.root, &spec.uid)), 0o750);
    fs::write(data.join("kept"), "x").unwrap();
    set_mode(&data, 0o700).unwrap();
    files.write_hosts(&spec, "10.0.0.7").unwrap();
    files.setup(&spec).unwrap();
    assert!(data.join("kept").exists(), "a volume that is there keeps its content");
    assert_eq!(mode(&data), 0o700, "and the mode that its pod gave it");
    let hosts = fs::read_to_string(paths::etc_hosts(&files.root, &spec.uid)).unwrap();
    assert!(hosts.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"), "{hosts}");
    assert!(hosts.ends_with("10.0.0.7\tweb\n"), "{hosts}");
    fs::create_dir(files.root.join("pods/somebody-elses")).unwrap();
    assert_eq!(files.list(), std::slice::from_ref(&spec.uid), "a folder without our mark is not ours");
    let logs = paths::log_dir(&files.pod_logs, &spec);
    files.teardown(&spec.uid, true).unwrap();
    assert!(logs.is_dir(), "logs may be kept");
    files.teardown(&spec.uid, false).unwrap();
    files.teardown(&spec.uid, false).unwrap();
    assert!(!logs.exists() && files.list().is_empty());
}

#[test]
fn a15_5a_a15_5b_of_a_containers_runs_the_last_one_is_kept() {
    let dir = TempDir::new().unwrap();
    let (files, spec) = (volumes(&dir), pod("u1", Vec::new()));
    files.setup(&spec).unwrap();
    let logs = paths::log_dir(&files.pod_logs, &spec).join("c");
    fs::create_dir_all(&logs).unwrap();
    for run in 0..4 {
        fs::write(logs.join(format!("{run}.log")), "").unwrap();
        fs::write(logs.join(format!("{run}.log.20260101-000000")), "").unwrap();
        files.termination_log(&spec.uid, "c", run).unwrap();
    }
    let count = |path: &Path| fs::read_dir(path).unwrap().count();
    let words = paths::termination_log(&files.root, &spec.uid, "c", 3);
    for (attempt, left) in [(0, 4), (1, 4), (2, 3), (4, 1), (0, 1)] {
        files.forget_runs(&spec, "c", attempt).unwrap();
        assert_eq!((count(&logs), count(words.parent().unwrap())), (2 * left, left), "run {attempt}");
    }
    assert!(logs.join("3.log").exists() && words.exists());
    files.forget_runs(&spec, "never-started", 7).unwrap();
    assert!(files.forget_runs(&spec, "../c", 7).is_err());
}

#[test]
fn a9_3a_the_host_network_has_the_nodes_hosts() {
    let dir = TempDir::new().unwrap();
    let node = dir.path().join("hosts");
    fs::write(&node, "10.1.1.1\tnode\n").unwrap();
    let files = Volumes { node_hosts: node, ..volumes(&dir) };
    let spec = PodSpec { host_network: true, ..pod("u1", Vec::new()) };
    files.setup(&spec).unwrap();
    let hosts = fs::read_to_string(paths::etc_hosts(&files.root, &spec.uid)).unwrap();
    assert_eq!(hosts, "# Kubernetes-managed hosts file (host network).\n10.1.1.1\tnode\n");
}

#[test]
fn a9_3b_aliases_follow_in_the_hosts_file() {
    let alias = |ip: &str, names: &[&str]| HostAlias {
        ip: ip.to_owned(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
    };
    let host_aliases = vec![alias("192.0.2.1", &["a", "b.example"]), alias("::1", &["c"])];
    let added = "\n# Entries added by HostAliases.\n192.0.2.1\ta\tb.example\n::1\tc\n";
    let spec = PodSpec { host_aliases, hostname: "h".to_owned(), ..pod("u1", Vec::new()) };
    let own = hosts_content(&spec, "10.0.0.1", "cluster.local", None);
    assert!(own.ends_with(&format!("fe00::2\tip6-allrouters\n10.0.0.1\th\n{added}")), "{own}");
    let named = PodSpec { subdomain: "sub".to_owned(), ..spec.clone() };
    let own = hosts_content(&named, "10.0.0.1", "cluster.local", None);
    assert!(own.contains("10.0.0.1\th.sub.default.svc.cluster.local\th\n"), "{own}");
    let spec = PodSpec { host_network: true, ..spec };
    let node = hosts_content(&spec, "", "", Some("10.1.1.1\tnode\n"));
    assert_eq!(node, format!("# Kubernetes-managed hosts file (host network).\n10.1.1.1\tnode\n{added}"));
}

#[test]
fn a4_18a_a_container_has_a_file_for_its_last_words() {
    let dir = TempDir::new().unwrap();
    let (files, uid) = (volumes(&dir), PodUid::from("u1"));
    let file = paths::termination_log(&files.root, &uid, "main", 3);
    files.termination_log(&uid, "main", 3).unwrap();
    assert!(file.is_file() && mode(&file) == 0o666);
    fs::write(&file, "words").unwrap();
    files.termination_log(&uid, "main", 3).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "words");
}

#[test]
fn a7_12_removing_does_not_follow_links() {
    let dir = TempDir::new().unwrap();
    let (files, spec) = (volumes(&dir), pod("u1", vec![empty("data", false, None)]));
    files.setup(&spec).unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    let data = paths::empty_dir(&files.root, &spec.uid, "data");
    symlink(&outside, data.join("link")).unwrap();
    symlink("..", data.join("up")).unwrap();
    files.teardown(&spec.uid, true).unwrap();
    assert!(outside.join("precious").exists());
    // The pod's folder itself replaced by a link.
    symlink(&outside, paths::pod_dir(&files.root, &spec.uid)).unwrap();
    files.teardown(&spec.uid, true).unwrap();
    assert!(outside.join("precious").exists());
    assert!(!paths::pod_dir(&files.root, &spec.uid).is_symlink());
}

#[test]
fn a7_2b_a7_9a_a7_12_memory_volumes_are_limited_and_unmounted() {
    let dir = TempDir::new().unwrap();
    let mut spec = pod("u1", vec![empty("cache", true, Some(Bytes::mib(1)))]);
    spec.security.fs_group = Some(4242);
    let files = volumes(&dir);
    if let Err(e) = files.setup(&spec) {
        return println!("SKIPPED a7_2b_a7_9a_a7_12_memory_volumes_are_limited_and_unmounted: {e}");
    }
    files.setup(&spec).unwrap();
    let cache = paths::empty_dir(&files.root, &spec.uid, "cache");
    assert_eq!(mounts_of(&cache), 1, "mounted once");
    assert_eq!((mode(&cache), fs::metadata(&cache).unwrap().gid()), (0o2777, 4242));
    let full = fs::write(cache.join("big"), vec![0; 2 << 20]).unwrap_err();
    let error = Error::io("write", &cache.join("big"), full).to_string();
    assert!(error.contains("no space left") && error.contains("big"), "{error}");
    // Busy: an open file keeps a plain unmount from working.
    let held = fs::File::open(cache.join("big")).unwrap();
    files.teardown(&spec.uid, false).unwrap();
    drop(held);
    assert_eq!(mounts_of(&cache), 0);
    assert!(files.list().is_empty());
}

fn mounts_of(dir: &Path) -> usize {
    remove::mounts_below(dir).unwrap().len()
}

#[test]
fn a7_2b_the_size_of_a_memory_volume() {
    let mut spec = pod("u1", Vec::new());
    let size = |spec: &PodSpec, limit: Option<u64>, allocatable: Option<u64>| {
        empty_dir::memory_size(spec, limit.map(Bytes), allocatable.map(Bytes)).map(Bytes::get)
    };
    assert_eq!(size(&spec, None, None), None);
    assert_eq!(size(&spec, None, Some(9)), Some(9));
    assert_eq!(size(&spec, Some(5), None), Some(5));
    assert_eq!(size(&spec, Some(0), Some(9)), Some(9), "no limit");
    spec.containers[0].resources.memory_limit = Some(Bytes(3));
    assert_eq!(size(&spec, Some(5), Some(9)), Some(3));
    assert_eq!((size(&spec, Some(2), Some(9)), size(&spec, Some(5), Some(1))), (Some(2), Some(1)));
    spec.init_containers.push(container("init"));
    assert_eq!(size(&spec, Some(5), None), Some(5), "one that initialises has no limit, so the pod has none");
    spec.init_containers[0].resources.memory_limit = Some(Bytes(4));
    assert_eq!(size(&spec, Some(5), None), Some(4), "and is larger than the others");
}

#[test]
fn a7_3a_host_paths_are_checked_and_made() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(host_path::open(&at("absent"), "").is_err());
    host_path::open(&at("new/dir"), "DirectoryOrCreate").unwrap();
    assert_eq!(mode(&at("new/dir")), 0o755);
    host_path::open(&at("new/dir"), "Directory").unwrap();
    host_path::open(&at("file"), "FileOrCreate").unwrap();
    assert_eq!(mode(&at("file")), 0o644);
    host_path::open(&at("file"), "File").unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    host_path::open(&at("socket"), "Socket").unwrap();
    host_path::open(Path::new("/dev/null"), "CharDevice").unwrap();
    for (name, kind, expected) in [
        ("file", "DirectoryOrCreate", "directory"),
        ("absent", "Directory", "directory"),
        ("new", "FileOrCreate", "file"),
        ("file", "Socket", "socket file"),
        ("file", "CharDevice", "character device"),
        ("file", "BlockDevice", "block device"),
    ] {
        let error = host_path::open(&at(name), kind).unwrap_err().to_string();
        assert_eq!(error, format!("hostPath type check failed: {} is not a {expected}", at(name).display()));
    }
    assert!(host_path::open(&at("file"), "Folder").unwrap_err().to_string().contains("invalid volume type"));
    assert!(host_path::open(&at("no/file"), "FileOrCreate").is_err());
}

proptest! {
    #[test]
    fn a7_12_no_name_leads_out(name in "[a./\\x00]{0,4}") {
        let dir = TempDir::new().unwrap();
        let files = volumes(&dir);
        fs::create_dir_all(files.root.join("pods")).unwrap();
        fs::write(files.root.join("precious"), "x").unwrap();
        let ok = files.teardown(&name.as_str().into(), false).is_ok();
        prop_assert!(files.root.join("precious").exists() && files.root.join("pods").exists());
        prop_assert_eq!(ok, !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']));
    }
}
