//! Paths of volumes: whatever names a pod has, and whatever it puts into its volumes, nothing outside of its own folders is made,
//! changed or removed; and what it left goes.
//!
//! Terms: the *outside* is everything beside the folders of the pod and of its logs: here a folder with a secret, another pod's folder
//! and another pod's logs. It has to look afterwards as it did before.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use beelet::runtime::paths;
use beelet::volumes::Volumes;
use beelet_core::spec::{ContainerSpec, PodSpec, PodUid, Volume, VolumeKind};
use tempfile::TempDir;

use crate::Bytes;

/// Names that lead out, and some that do not.
const NAMES: [&str; 15] =
    ["a", "b", "u1", ".", "..", "", "/", "../other", "a/../../..", "/outside", "..data", "a\0b", "0", "é", "a b"];
/// Where links lead.
const GOALS: [&str; 8] =
    ["../outside", "../../../../../outside", "/", "..", "../../..", "../../../../../root/pods/other", ".", "nowhere"];

pub(super) fn check(data: &[u8]) {
    let mut choices = Bytes::new(data);
    let bed = Bed::new();
    let spec = pod(&mut choices);
    let outside = bed.outside(None);
    if bed.volumes.setup(&spec).is_err() {
        assert_eq!(bed.outside(None), outside, "a refused pod left something: {spec:?}");
        return;
    }
    let own = Some(&spec);
    assert_eq!(bed.outside(own), outside, "{spec:?}");
    for place in bed.volumes.places(&spec.uid, &paths::log_dir_name(&spec)) {
        assert!(bed.is_own(&place.path, &spec), "{place:?}");
    }
    // What runs in the pod may write into its volumes, what runs on the node anywhere in its folders, but when it is removed.
    let volumes = paths::pod_dir(&bed.volumes.root, &spec.uid).join("volumes");
    for volume in &spec.volumes {
        bed.mischief(&paths::empty_dir(&bed.volumes.root, &spec.uid, &volume.name), &mut choices);
    }
    let container = &spec.containers[0].name;
    for attempt in 0..u32::from(choices.byte() % 4) {
        let _ = bed.volumes.termination_log(&spec.uid, container, attempt);
        let _ = bed.volumes.forget_runs(&spec, container, attempt);
        let _ = bed.volumes.write_hosts(&spec, "192.0.2.1");
    }
    let _ = bed.volumes.termination_log(&spec.uid, NAMES[choices.below(NAMES.len())], 1);
    bed.volumes.setup(&spec).expect("what was made can be made again");
    assert_eq!(bed.outside(own), outside, "{spec:?}");
    for folder in [paths::pod_dir(&bed.volumes.root, &spec.uid), volumes, paths::log_dir(&bed.volumes.pod_logs, &spec)]
    {
        bed.mischief(&folder, &mut choices);
    }
    let uid: PodUid = NAMES[choices.below(NAMES.len())].into();
    if uid != spec.uid {
        let _ = bed.volumes.teardown(&uid, choices.byte() & 1 == 0);
        assert_eq!(bed.outside(own), outside, "teardown of {uid:?}");
    }
    bed.volumes.teardown(&spec.uid, false).expect("a pod that goes");
    assert_eq!(bed.outside(None), outside, "{spec:?}");
    assert_eq!(bed.volumes.list(), Vec::<PodUid>::new());
}

fn name(choices: &mut Bytes<'_>) -> String {
    if choices.byte() & 3 == 0 {
        let length = choices.below(12);
        return String::from_utf8_lossy(choices.take(length)).into_owned();
    }
    // The plain ones more often than not, or nothing would ever be made.
    let all = if choices.byte() & 7 == 0 { &NAMES[..] } else { &NAMES[..3] };
    choices.one_of(all).to_owned()
}

fn pod(choices: &mut Bytes<'_>) -> PodSpec {
    let volume = |choices: &mut Bytes<'_>| Volume {
        name: name(choices),
        kind: VolumeKind::EmptyDir { memory: false, size_limit: None },
    };
    PodSpec {
        namespace: name(choices),
        name: name(choices),
        containers: (0..1 + choices.below(2)).map(|_| ContainerSpec::unknown(&name(choices))).collect(),
        volumes: (0..choices.below(3)).map(|_| volume(choices)).collect(),
        ..PodSpec::unknown(PodUid::from(&*name(choices)))
    }
}

struct Bed {
    dir: TempDir,
    volumes: Volumes,
}

impl Bed {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let real = fs::canonicalize(dir.path()).expect("its real path");
        let mut volumes = Volumes::new(real.join("root"), real.join("logs"));
        volumes.node_hosts = dir.path().join("outside/hosts");
        for (file, text) in [
            ("outside/hosts", "127.0.0.1 localhost\n"),
            ("outside/deep/secret", "secret"),
            ("root/pods/other/volumes/kubernetes.io~empty-dir/v/data", "theirs"),
            ("root/beelet-pods/.keep", ""),
            ("logs/ns_other_other/c/0.log", "theirs"),
        ] {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap_or(&file)).expect("a folder");
            fs::write(file, text).expect("a file");
        }
        fs::remove_file(dir.path().join("root/beelet-pods/.keep")).expect("a file to remove");
        Self { dir, volumes }
    }

    fn is_own(&self, path: &Path, spec: &PodSpec) -> bool {
        let folders = [
            paths::pod_dir(&self.volumes.root, &spec.uid),
            paths::mark(&self.volumes.root, &spec.uid),
            paths::log_dir(&self.volumes.pod_logs, spec),
        ];
        folders.iter().any(|own| path.starts_with(own))
    }

    /// All that is there and not the pod's: its mode, and its text or where it leads.
    fn outside(&self, own: Option<&PodSpec>) -> BTreeMap<PathBuf, (u32, String)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder to list") {
                let path = entry.expect("an entry").path();
                if own.is_some_and(|spec| self.is_own(&path, spec)) {
                    continue;
                }
                let meta = fs::symlink_metadata(&path).expect("an entry that stays");
                let text = if meta.is_symlink() {
                    fs::read_link(&path).map(|goal| goal.display().to_string())
                } else if meta.is_dir() {
                    folders.push(path.clone());
                    Ok(String::new())
                } else {
                    fs::read_to_string(&path)
                };
                found.insert(path, (meta.permissions().mode(), text.expect("what is in it")));
            }
        }
        found
    }

    /// Puts links, folders and files into a folder, in place of what is there.
    fn mischief(&self, folder: &Path, choices: &mut Bytes<'_>) {
        // It was made a link before: what is done through it is not beelet's doing.
        if fs::canonicalize(folder).ok().as_deref() != Some(folder) {
            return;
        }
        for _ in 0..choices.below(4) {
            let there: Vec<PathBuf> = fs::read_dir(folder)
                .map_or_else(|_| Vec::new(), |all| all.flatten().map(|entry| entry.path()).collect());
            let new = folder.join(choices.one_of(&["x", "0", "..data", "kubernetes.io~empty-dir", "containers"]));
            let place = match choices.byte() {
                n if n & 1 == 1 && !there.is_empty() => there[usize::from(n) % there.len()].clone(),
                _ => new,
            };
            if fs::symlink_metadata(&place).is_ok_and(|meta| meta.is_dir()) {
                let _ = fs::remove_dir_all(&place);
            }
            let _ = fs::remove_file(&place);
            let _ = match choices.below(4) {
                0 => fs::write(&place, choices.take(4)),
                1 => fs::create_dir_all(place.join("sub")),
                2 => symlink(choices.one_of(&GOALS), &place),
                _ => symlink(self.dir.path().join("outside"), &place),
            };
        }
    }
}
