use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use beelet_core::content::{Allocatable, Found, Object, ObjectError};
use beelet_core::spec::{
    DownwardFile, DownwardValue, Mount, ObjectKind, ObjectRef, Part, ResourceField, ResourceKind, WrittenKind,
};
use beelet_core::units::{Bytes, MilliCpu};
use tempfile::TempDir;

use super::*;
use crate::volumes::tests::{pod, volumes};
use crate::volumes::{NoObjects, Objects};

/// Objects that can be changed.
#[derive(Debug, Default)]
struct Has(Mutex<BTreeMap<String, Object>>);

impl Objects for Has {
    fn get(&self, namespace: &str, object: &ObjectRef) -> Found {
        assert_eq!(namespace, "default");
        let all = self.0.lock().unwrap();
        all.get(&object.name).cloned().ok_or_else(|| ObjectError::NotFound(object.clone()))
    }
}

impl Has {
    fn set(&self, name: &str, key: &str, value: &str) {
        let data = [(key.to_owned(), value.as_bytes().to_vec())].into();
        self.0.lock().unwrap().insert(name.to_owned(), Object { data, ..Object::default() });
    }
}

fn written(name: &str, kind: WrittenKind, parts: Vec<Part>) -> Volume {
    Volume { name: name.to_owned(), kind: VolumeKind::Written(Written { kind, mode: 0o640, parts }) }
}

fn downward(name: &str) -> Volume {
    let file = |path: &str, value| DownwardFile { path: path.to_owned(), mode: None, value };
    let limit = ResourceField { container: "main".to_owned(), limit: true, of: ResourceKind::Memory, divisor: 1 << 20 };
    let items = vec![
        file("labels", DownwardValue::Field("metadata.labels".to_owned())),
        file("limits/memory", DownwardValue::Resource(limit)),
    ];
    written(name, WrittenKind::DownwardApi, vec![Part::Downward(items)])
}

fn object(name: &str, kind: WrittenKind, optional: bool) -> Volume {
    let of = if kind == WrittenKind::Secret { ObjectKind::Secret } else { ObjectKind::ConfigMap };
    let object = ObjectRef { kind: of, name: name.to_owned() };
    written(name, kind, vec![Part::Object { object, optional, items: Vec::new() }])
}

/// `None` where nothing can be mounted.
fn set_up(files: &Volumes, spec: &PodSpec, test: &str) -> Option<()> {
    match files.setup(spec) {
        Err(error @ Error::Io { what: "mount a tmpfs on", .. }) => {
            println!("SKIPPED {test}: {error}");
            None
        }
        made => {
            made.unwrap();
            Some(())
        }
    }
}

#[test]
fn a7_4c_a_downward_volume_follows_its_pod() {
    let dir = TempDir::new().unwrap();
    let node = Allocatable { cpu: MilliCpu(2_000), memory: Bytes::mib(512), storage: Bytes::ZERO };
    let files = Volumes { allocatable: node, ..volumes(&dir) };
    let mut spec = pod("u1", vec![downward("info")]);
    spec.labels.insert("a".to_owned(), "1".to_owned());
    spec.security.fs_group = Some(4242);
    assert_eq!(files.refresh(&Arc::new(spec.clone())).unwrap(), [""; 0], "what is not there is not made by a refresh");
    let Some(()) = set_up(&files, &spec, "a7_4c_a_downward_volume_follows_its_pod") else { return };
    let at = files.root.join("pods/u1/volumes/kubernetes.io~downward-api/info");
    let read = |path: &str| fs::read_to_string(at.join(path)).unwrap();
    assert_eq!((read("labels"), read("limits/memory")), ("a=\"1\"".to_owned(), "512".to_owned()));
    let labels = fs::metadata(at.join("labels")).unwrap();
    assert_eq!((labels.mode() & 0o7777, labels.gid()), (0o640, 4242));
    assert_eq!(files.refresh(&Arc::new(spec.clone())).unwrap(), [""; 0]);

    spec.labels.insert("b".to_owned(), "2".to_owned());
    spec.containers[0].resources.memory_limit = Some(Bytes::mib(64));
    let (old, new) = (files.last(&spec.uid).unwrap(), Arc::new(spec.clone()));
    files.becomes(&new);
    assert_eq!(files.refresh(&old).unwrap(), ["info"], "a round that began before does not bring the old content back");
    assert_eq!((read("labels"), read("limits/memory")), ("a=\"1\"\nb=\"2\"".to_owned(), "64".to_owned()));
    files.setup(&spec).unwrap();
    assert_eq!(files.last(&spec.uid).as_deref(), Some(&spec));
    files.teardown(&spec.uid, false).unwrap();
    assert_eq!(files.refresh(&Arc::new(spec.clone())).unwrap(), [""; 0]);
    assert_eq!(files.last(&spec.uid), None);
    assert!(!at.exists() && files.list().is_empty());
}

#[test]
fn a7_4b_objects_come_from_whoever_has_them() {
    let dir = TempDir::new().unwrap();
    let objects = Arc::new(Has::default());
    let files = Volumes { objects: objects.clone(), ..volumes(&dir) };
    let spec =
        pod("u1", vec![object("conf", WrittenKind::ConfigMap, false), object("later", WrittenKind::ConfigMap, true)]);
    let error = files.setup(&spec).unwrap_err().to_string();
    let cause = "MountVolume.SetUp failed for volume \"conf\" : configmap \"conf\" not found";
    let named = "unmounted volumes=[conf], unattached volumes=[], failed to process volumes=[]";
    assert_eq!(error, format!("Unable to attach or mount volumes: {named}: {cause}"));
    objects.set("conf", "key", "1");
    files.setup(&spec).unwrap();
    let read = |volume: &str, path: &str| {
        fs::read_to_string(files.root.join("pods/u1/volumes/kubernetes.io~configmap").join(volume).join(path)).ok()
    };
    assert_eq!((read("conf", "key").as_deref(), read("later", "key")), (Some("1"), None));
    objects.set("conf", "key", "2");
    objects.set("later", "key", "3");
    assert_eq!(files.refresh(&Arc::new(spec.clone())).unwrap(), ["conf", "later"]);
    assert_eq!((read("conf", "key").as_deref(), read("later", "key").as_deref()), (Some("2"), Some("3")));
    // It is gone: what was there stays, and the others go on.
    objects.0.lock().unwrap().remove("conf");
    objects.set("later", "key", "4");
    assert!(files.refresh(&Arc::new(spec.clone())).unwrap_err().to_string().contains("not found"));
    assert_eq!((read("conf", "key").as_deref(), read("later", "key").as_deref()), (Some("2"), Some("4")));

    let alone = Volumes { objects: Arc::new(NoObjects), ..volumes(&dir) };
    let error = alone.setup(&pod("u2", vec![object("x", WrittenKind::ConfigMap, true)])).unwrap_err().to_string();
    assert!(error.ends_with("couldn't get configMap default/x, no kubeClient defined"), "{error}");
}

#[test]
fn a7_4b_a_secret_is_never_on_a_disk() {
    let dir = TempDir::new().unwrap();
    let objects = Arc::new(Has::default());
    objects.set("token", "key", "s3");
    let files = Volumes { objects: objects.clone(), ..volumes(&dir) };
    let spec = pod("u1", vec![object("token", WrittenKind::Secret, false)]);
    let Some(()) = set_up(&files, &spec, "a7_4b_a_secret_is_never_on_a_disk") else { return };
    let at = files.root.join("pods/u1/volumes/kubernetes.io~secret/token");
    assert_eq!(fs::read_to_string(at.join("key")).unwrap(), "s3");
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "it was in memory");
    // As a removal that failed halfway leaves it. (Where the test's folder is in memory itself nothing is to be seen.)
    let of_folder = rustix::fs::statfs(dir.path()).unwrap().f_type;
    if of_folder != 0x0102_1994 {
        assert!(files.refresh(&Arc::new(spec.clone())).unwrap_err().to_string().contains("not in memory"));
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    }
    files.setup(&spec).unwrap();
    assert_eq!(fs::read_to_string(at.join("key")).unwrap(), "s3");
    files.teardown(&spec.uid, false).unwrap();
}

#[test]
fn a7_4_where_others_mount_in_a_written_volume_folders_are_made() {
    let mut spec = pod("u1", vec![object("conf", WrittenKind::ConfigMap, false)]);
    let mount =
        |volume: &str, path: &str| Mount { volume: volume.to_owned(), path: path.to_owned(), ..Mount::default() };
    spec.containers[0].mounts = vec![
        mount("conf", "/etc/app/"),
        mount("a", "/etc/app/nested"),
        mount("b", "/etc/app/nested/deeper"),
        mount("c", "/etc/app/nested-too/x"),
        mount("d", "/etc/apple"),
        mount("e", "/etc"),
    ];
    assert_eq!(mount_points(&spec, "conf"), ["nested", "nested-too/x"]);
    assert_eq!(mount_points(&spec, "a"), ["deeper"]);
    assert_eq!(mount_points(&spec, "e"), ["app", "apple"]);

    let dir = TempDir::new().unwrap();
    let objects = Arc::new(Has::default());
    objects.set("conf", "key", "1");
    let files = Volumes { objects, ..volumes(&dir) };
    files.setup(&spec).unwrap();
    let at = files.root.join("pods/u1/volumes/kubernetes.io~configmap/conf");
    assert!(at.join("nested").is_dir() && at.join("nested-too/x").is_dir() && !at.join("nested/deeper").exists());
    assert_eq!(fs::read_to_string(at.join("key")).unwrap(), "1");
}

#[test]
fn a7_4e_of_a_pod_one_is_at_work_at_a_time() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let (turns, inside, most) = (Turns::default(), AtomicUsize::new(0), AtomicUsize::new(0));
    let uid = PodUid::from("u1");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    turns.with(&uid, || {
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            });
        }
    });
    assert_eq!(most.load(Ordering::SeqCst), 1);
    assert!(turns.0.lock().unwrap().is_empty(), "nothing is kept of pods that are gone");
}
