//! The folders of a pod whose space is told by itself. Only reads.

use std::fs;
use std::path::{Path, PathBuf};

use beelet_core::spec::PodUid;

use super::{Volumes, plain};
use crate::runtime::paths;

/// Volumes of these kinds are on this node's disks or in its memory, and made for their pod alone.
const LOCAL: [&str; 5] = ["empty-dir", "configmap", "secret", "projected", "downward-api"];

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlaceKind {
    /// The logs of a container, rotated ones too.
    Log,
    /// A volume.
    Volume,
}

/// A folder of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// What it holds.
    pub kind: PlaceKind,
    /// The container's or the volume's name.
    pub name: String,
    /// Where.
    pub path: PathBuf,
}

impl Volumes {
    /// The folders of logs and of local volumes that the pod has now; `logs` is the name of its log folder ("" for none). Sorted.
    /// What cannot be listed is left out: it may be on its way out.
    #[must_use]
    pub fn places(&self, uid: &PodUid, logs: &str) -> Vec<Place> {
        let mut places = Vec::new();
        if plain(logs).is_ok() {
            add(&mut places, PlaceKind::Log, &self.pod_logs.join(logs));
        }
        if plain(uid.as_str()).is_ok() {
            let volumes = paths::pod_dir(&self.root, uid).join("volumes");
            for kind in LOCAL {
                add(&mut places, PlaceKind::Volume, &volumes.join(format!("kubernetes.io~{kind}")));
            }
        }
        places.sort_unstable();
        places
    }
}

/// The folders in a folder, but those with a dot in front: they are half made.
fn add(places: &mut Vec<Place>, kind: PlaceKind, folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir())) {
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            places.push(Place { kind, name, path: entry.path() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_and_local_volumes_are_places_and_nothing_else_is() {
        let dir = tempfile::tempdir().expect("a folder");
        let volumes = Volumes::new(dir.path().join("root"), dir.path().join("logs"));
        let below = |path: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(&path).expect("a folder");
            path
        };
        let cache = below("root/pods/u/volumes/kubernetes.io~empty-dir/cache");
        let token = below("root/pods/u/volumes/kubernetes.io~projected/token");
        let log = below("logs/ns_p_u/app");
        below("root/pods/u/volumes/kubernetes.io~empty-dir/.half");
        below("root/pods/u/volumes/kubernetes.io~nfs/far");
        below("root/pods/other/volumes/kubernetes.io~empty-dir/cache");
        fs::write(dir.path().join("logs/ns_p_u/file"), "x").expect("a file");
        std::os::unix::fs::symlink("/", dir.path().join("logs/ns_p_u/link")).expect("a link");
        let place = |kind, name: &str, path| Place { kind, name: name.to_owned(), path };
        let expected = [
            place(PlaceKind::Log, "app", log),
            place(PlaceKind::Volume, "cache", cache),
            place(PlaceKind::Volume, "token", token),
        ];
        assert_eq!(volumes.places(&"u".into(), "ns_p_u"), expected);
        assert_eq!(volumes.places(&"../u".into(), "../logs/ns_p_u"), []);
        assert_eq!(volumes.places(&"".into(), ""), []);
    }
}
