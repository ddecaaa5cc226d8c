//! Volumes whose files beelet writes: downwardAPI, projected, configMap, secret.
//!
//! Approach: as the kubelet's, each is an emptyDir (all but a ConfigMap's in memory) in which [`super::atomic`] writes what
//! [`beelet_core::content`] says. The same is done to make a volume and to refresh it, and changes nothing where all is as it should be.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beelet_core::content;
use beelet_core::spec::{PodSpec, PodUid, Volume, VolumeKind, Written};

use super::atomic::Target;
use super::{Error, Volumes, empty_dir};
use crate::runtime::paths;

/// Whose turn it is at the volumes of a pod: a refresh meets neither a set-up nor a removal.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<BTreeMap<PodUid, Arc<Mutex<()>>>>);

/// Of each pod with written volumes, what it was when they were made or refreshed last.
#[derive(Debug, Default)]
pub(super) struct Last(Mutex<BTreeMap<PodUid, Arc<PodSpec>>>);

impl Last {
    pub(super) fn all(&self) -> MutexGuard<'_, BTreeMap<PodUid, Arc<PodSpec>>> {
        // Nothing that panics is done under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    /// Does it while nobody else is at this pod's volumes.
    pub(super) fn with<T>(&self, uid: &PodUid, what: impl FnOnce() -> T) -> T {
        // Nothing is half done if somebody panics in here: what is there is looked at each time.
        let turns = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = Arc::clone(turns().entry(uid.clone()).or_default());
        let done = {
            let _mine = turn.lock().unwrap_or_else(PoisonError::into_inner);
            what()
        };
        let mut turns = turns();
        // Nobody waits for it: one is in the map, one is ours.
        if Arc::strong_count(&turn) == 2 {
            turns.remove(uid);
        }
        done
    }
}

impl Volumes {
    /// Makes a written volume, with its files. To be called in the pod's turn.
    pub(super) fn setup_written(&self, spec: &PodSpec, volume: &Volume, written: &Written) -> Result<(), Error> {
        let dir = paths::volume(&self.root, &spec.uid, volume);
        let size = written.kind.in_memory().then(|| empty_dir::memory_size(spec, None, self.allocatable_memory));
        empty_dir::setup(&dir, size, spec.security.fs_group)?;
        for path in mount_points(spec, &volume.name) {
            let path = content::clean(&path).map_err(|source| Error::content(&volume.name, source))?;
            target(&dir, spec, written).mount_point(&path)?;
        }
        self.write(spec, volume, written).map(drop)
    }

    fn write(&self, spec: &PodSpec, volume: &Volume, written: &Written) -> Result<bool, Error> {
        let get = |object: &_| self.objects.get(&spec.namespace, object);
        let files = content::files(spec, written, self.allocatable, &get)
            .map_err(|source| Error::content(&volume.name, source))?;
        let dir = paths::volume(&self.root, &spec.uid, volume);
        let now = jiff::Timestamp::now();
        let folder = format!("..{}.{:09}", now.strftime("%Y_%m_%d_%H_%M_%S"), now.subsec_nanosecond());
        target(&dir, spec, written).write(&files, &folder)
    }

    /// What a pod was when its volumes were made or refreshed last, in this life of the agent.
    pub(super) fn last(&self, uid: &PodUid) -> Option<Arc<PodSpec>> {
        self.last.all().get(uid).cloned()
    }

    /// From now on the pod is this one. To be called in the order of its changes.
    pub(crate) fn becomes(&self, spec: &Arc<PodSpec>) {
        self.last.all().insert(spec.uid.clone(), Arc::clone(spec));
    }

    /// Sees that the written volumes of a pod that is there hold what they should. Returns the names of those that changed. What cannot
    /// be had stays as it was, as does a pod without its folder.
    ///
    /// # Errors
    /// The first of the volumes that could not be looked at or written; the others are done.
    pub fn refresh(&self, spec: &Arc<PodSpec>) -> Result<Vec<String>, Error> {
        self.turns.with(&spec.uid, || {
            let (mut changed, mut failed) = (Vec::new(), None);
            // Another one may have come while this one waited for its turn.
            let spec = &self.last(&spec.uid).unwrap_or_else(|| Arc::clone(spec));
            for volume in &spec.volumes {
                let VolumeKind::Written(written) = &volume.kind else { continue };
                if !paths::volume(&self.root, &spec.uid, volume).is_dir() {
                    continue;
                }
                match self.write(spec, volume, written) {
                    Ok(true) => changed.push(volume.name.clone()),
                    Ok(false) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            failed.map_or(Ok(changed), Err)
        })
    }
}

fn target<'a>(dir: &'a Path, spec: &PodSpec, written: &Written) -> Target<'a> {
    let group = spec.security.fs_group.and_then(|group| u32::try_from(group).ok());
    Target { dir, in_memory: written.kind.in_memory(), group }
}

/// Where other volumes are mounted in this one, relative to it: it is read-only in containers, so these folders are made before. Of two
/// below each other the outer only, in which the other is made (pkg/volume/util/nested_volumes.go).
fn mount_points(spec: &PodSpec, volume: &str) -> Vec<String> {
    let parts = |path: &str| -> Vec<String> {
        path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
    };
    let mut found: Vec<Vec<String>> = Vec::new();
    for container in spec.all_containers() {
        let mut all: Vec<Vec<String>> = container.mounts.iter().map(|mount| parts(&mount.path)).collect();
        all.sort();
        for mine in container.mounts.iter().filter(|mount| mount.volume == volume).map(|mount| parts(&mount.path)) {
            let mut outer: Option<&Vec<String>> = None;
            for inner in all.iter().filter(|path| path.len() > mine.len() && path.starts_with(&mine)) {
                if outer.is_none_or(|outer| !inner.starts_with(outer)) {
                    outer = Some(inner);
                    found.push(inner[mine.len()..].to_vec());
                }
            }
        }
    }
    found.sort();
    found.dedup();
    found.into_iter().map(|path| path.join("/")).collect()
}

#[cfg(test)]
mod tests;
