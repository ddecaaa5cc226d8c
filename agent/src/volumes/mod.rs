//! The files of a pod: its folder, its volumes, its hosts file, its logs.
//!
//! Problem: a pod's folder is filled by programs that nobody trusts (symbolic links out of it, mounts in it, a full disk), and
//! it is made and removed by an agent that may die in between. Approach: [`Volumes::setup`] and [`Volumes::teardown`] look at
//! what is there and do the rest, so each can be repeated; what is below a volume is opened by the kernel without ever leaving it
//! (`safe`); removing goes by file descriptors, never through a link and never into a mount.
//!
//! The layout is the kubelet's, from [`crate::runtime::paths`].
//!
//! Terms: a *mark* is the note that beelet made the files and the cgroup of a pod; it is there before them and goes after them. A
//! root may be shared with a kubelet, and its pods are not ours.
//!
//! Properties: nothing outside of the pod's folder and its log folder is ever removed, but links to its logs; a volume that is there keeps its content;
//! an error names the path, and for a full disk says what to do; a reader of a written file never sees half of it ([`atomic`]).

mod atomic;
mod content;
mod empty_dir;
mod error;
#[cfg(test)]
mod escape_tests;
mod fs_group;
mod host_path;
mod hosts;
mod places;
pub(crate) mod refresh;
mod remove;
mod safe;
mod sources;
#[cfg(test)]
pub(crate) mod tests;
mod written;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use beelet_core::content::Allocatable;
use beelet_core::spec::{PodSpec, PodUid, Volume, VolumeKind};
use beelet_core::units::Bytes;

use crate::logs::{files, links};
use crate::runtime::paths;

pub use content::{NoObjects, Objects};
pub use error::Error;
pub use hosts::hosts_content;
pub use places::{Place, PlaceKind};

/// Makes and removes the files of pods.
#[derive(Clone, Debug)]
pub struct Volumes {
    /// `/var/lib/kubelet`, or what takes its place.
    pub root: PathBuf,
    /// `/var/log/pods`, or what takes its place.
    pub pod_logs: PathBuf,
    /// The node's hosts file, for pods with the node's network.
    pub node_hosts: PathBuf,
    /// The memory that the node has for pods: no volume in memory is larger.
    pub allocatable_memory: Option<Bytes>,
    /// `clusterDomain`, "" for none.
    pub cluster_domain: String,
    /// What a container may use that has no limit.
    pub allocatable: Allocatable,
    /// Who has ConfigMaps and Secrets.
    pub objects: Arc<dyn Objects>,
    turns: Arc<written::Turns>,
    last: Arc<written::Last>,
}

impl Volumes {
    /// Below these folders, with the node's `/etc/hosts`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>, pod_logs: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            pod_logs: pod_logs.into(),
            node_hosts: "/etc/hosts".into(),
            allocatable_memory: None,
            cluster_domain: String::new(),
            allocatable: Allocatable::default(),
            objects: Arc::new(NoObjects),
            turns: Arc::default(),
            last: Arc::default(),
        }
    }

    /// Writes down that what is made from now on for this pod is ours, and where its logs are. To be called before anything is.
    ///
    /// # Errors
    /// If the UID is no plain file name, or the note cannot be written.
    pub fn mark(&self, spec: &PodSpec) -> Result<(), Error> {
        plain(spec.uid.as_str())?;
        make_dir(&paths::marks(&self.root), 0o750)?;
        let mark = paths::mark(&self.root, &spec.uid);
        fs::write(&mark, paths::log_dir_name(spec)).map_err(|e| Error::io("write", &mark, e))
    }

    /// Makes the pod's folder, log folder and volumes, and its hosts file (still without an address unless it is on the node's
    /// network). What is there stays.
    ///
    /// # Errors
    /// If a name is no plain file name, a folder cannot be made, or a hostPath is not of its type.
    pub fn setup(&self, spec: &PodSpec) -> Result<(), Error> {
        let names = spec.volumes.iter().map(|v| &v.name).chain(spec.all_containers().map(|c| &c.name));
        for name in names.map(String::as_str).chain([spec.uid.as_str(), &paths::log_dir_name(spec)]) {
            plain(name)?;
        }
        self.mark(spec)?;
        let pod = paths::pod_dir(&self.root, &spec.uid);
        make_dir(&pod, 0o750)?;
        make_dir(&pod.join("volumes"), 0o750)?;
        for container in spec.all_containers() {
            make_dir(&pod.join("containers").join(&container.name), 0o750)?;
        }
        make_dir(&paths::log_dir(&self.pod_logs, spec), 0o755)?;
        if spec.has_written() {
            self.last.all().insert(spec.uid.clone(), Arc::new(spec.clone()));
        }
        // One that fails does not hold up the others, as with the kubelet.
        let made = spec.volumes.iter().map(|volume| (&volume.name, self.set_up(spec, volume)));
        let failed: Vec<_> = made.filter_map(|(name, made)| Some((name.clone(), made.err()?))).collect();
        if !failed.is_empty() {
            return Err(Error::Volumes(failed));
        }
        // A repeated setup must not take the address away that the hosts file got since.
        if spec.host_network || !paths::etc_hosts(&self.root, &spec.uid).exists() {
            self.write_hosts(spec, "")?;
        }
        Ok(())
    }

    fn set_up(&self, spec: &PodSpec, volume: &Volume) -> Result<(), Error> {
        match &volume.kind {
            VolumeKind::EmptyDir { memory, size_limit } => {
                let size = memory.then(|| empty_dir::memory_size(spec, *size_limit, self.allocatable_memory));
                let dir = paths::empty_dir(&self.root, &spec.uid, &volume.name);
                empty_dir::setup(&dir, size, spec.security.fs_group)
            }
            VolumeKind::HostPath { kind, .. } if kind.is_empty() => Ok(()),
            VolumeKind::HostPath { path, kind } => host_path::open(Path::new(path), kind).map(drop),
            VolumeKind::Written(written) => self.turns.with(&spec.uid, || self.setup_written(spec, volume, written)),
        }
    }

    /// Writes the pod's hosts file, if it differs, once its address is known; before a container that mounts it is made.
    ///
    /// # Errors
    /// If the node's hosts file cannot be read, or the pod's not written.
    pub fn write_hosts(&self, spec: &PodSpec, pod_ip: &str) -> Result<(), Error> {
        plain(spec.uid.as_str())?;
        let node = if spec.host_network {
            Some(fs::read_to_string(&self.node_hosts).map_err(|e| Error::io("read", &self.node_hosts, e))?)
        } else {
            None
        };
        let content = hosts_content(spec, pod_ip, &self.cluster_domain, node.as_deref());
        let file = paths::etc_hosts(&self.root, &spec.uid);
        if fs::read_to_string(&file).is_ok_and(|old| old == content) {
            return Ok(());
        }
        // In place: running containers have this inode mounted.
        fs::write(&file, content).map_err(|e| Error::io("write", &file, e))?;
        set_mode(&file, 0o644)
    }

    /// Makes the empty file that becomes `/dev/termination-log` of a run of a container: where it is not there, the runtime makes
    /// a folder of it. Anybody in the container may write it, as the kubelet's.
    ///
    /// # Errors
    /// If a name is not plain or the file cannot be made.
    pub fn termination_log(&self, uid: &PodUid, container: &str, attempt: u32) -> Result<(), Error> {
        plain(uid.as_str())?;
        plain(container)?;
        let file = paths::termination_log(&self.root, uid, container, attempt);
        if file.is_file() {
            return Ok(());
        }
        if let Some(folder) = file.parent() {
            make_dir(folder, 0o750)?;
        }
        let made = fs::OpenOptions::new().append(true).create(true).open(&file);
        made.map_err(|e| Error::io("make", &file, e))?;
        set_mode(&file, 0o666)
    }

    /// Removes what runs of a container before the last one left: logs, and files of last words. Of these the kubelet keeps one run
    /// (pkg/kubelet/kubelet.go, MaxPerPodContainer), whose containers the runtime has still; what is left of others, which went with
    /// a sandbox or another life of the runtime, nobody else would remove as long as the pod is there.
    ///
    /// # Errors
    /// If a name is not plain, a folder cannot be read or a file not removed.
    pub fn forget_runs(&self, spec: &PodSpec, container: &str, attempt: u32) -> Result<(), Error> {
        for name in [spec.uid.as_str(), container, &paths::log_dir_name(spec)] {
            plain(name)?;
        }
        let before = attempt.saturating_sub(1);
        let logs = paths::log_dir(&self.pod_logs, spec).join(container);
        files::remove_runs_before(&logs, before).map_err(|e| Error::io("tidy", &logs, e))?;
        let words = paths::termination_log(&self.root, &spec.uid, container, 0);
        let Some(folder) = words.parent() else { return Ok(()) };
        let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
        for entry in entries.flatten() {
            let of = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            if of.is_some_and(|of| of < before) {
                fs::remove_file(entry.path()).map_err(|e| Error::io("remove", &entry.path(), e))?;
            }
        }
        Ok(())
    }

    /// How often each container of the pod was run before, by its logs. A folder that cannot be read says nothing, as upstream.
    #[must_use]
    pub fn runs(&self, spec: &PodSpec) -> Vec<(String, u32)> {
        let logs = paths::log_dir(&self.pod_logs, spec);
        let of = |name: &String| files::runs(&logs.join(name)).ok().filter(|runs| *runs > 0);
        spec.all_containers().filter_map(|c| Some((c.name.clone(), of(&c.name)?))).collect()
    }

    /// Unmounts and removes the pod's folder; unless `keep_logs`, also its log folder, which the mark names, and then the mark.
    /// What is not there is removed. Blocks for a few hundred milliseconds where a mount is busy.
    ///
    /// # Errors
    /// If a name is not plain, a mount cannot be undone (then nothing is removed), or a file cannot be removed.
    pub fn teardown(&self, uid: &PodUid, keep_logs: bool) -> Result<(), Error> {
        plain(uid.as_str())?;
        self.last.all().remove(uid);
        self.turns.with(uid, || remove::tree(&paths::pod_dir(&self.root, uid)))?;
        if keep_logs {
            return Ok(());
        }
        let mark = paths::mark(&self.root, uid);
        let gone = |e: &std::io::Error| e.kind() == std::io::ErrorKind::NotFound;
        match fs::read_to_string(&mark) {
            // A mark that was cut off names nothing, and nothing was made after it.
            Ok(logs) if logs.ends_with(&format!("_{uid}")) => {
                plain(&logs)?;
                let logs = self.pod_logs.join(logs);
                links::unlink_pod(&self.pod_logs, &logs).map_err(|e| Error::io("remove the links to", &logs, e))?;
                remove::tree(&logs)?;
            }
            Err(e) if !gone(&e) => return Err(Error::io("read", &mark, e)),
            _ => {}
        }
        match fs::remove_file(&mark) {
            Err(e) if !gone(&e) => Err(Error::io("remove", &mark, e)),
            _ => Ok(()),
        }
    }

    /// The UIDs that have a mark: who is not wanted there is a leftover of ours. A folder without one is somebody else's.
    #[must_use]
    pub fn list(&self) -> Vec<PodUid> {
        let Ok(entries) = fs::read_dir(paths::marks(&self.root)) else { return Vec::new() };
        let mut uids: Vec<PodUid> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str().map(PodUid::from)).collect();
        uids.sort();
        uids
    }
}

/// Refuses what is no name of one file in a folder.
fn plain(name: &str) -> Result<(), Error> {
    let bad = name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) || name.len() > 255;
    if bad { Err(Error::Name(name.to_owned())) } else { Ok(()) }
}

/// Makes a folder and those above it; the mode is set on it only where it is new.
fn make_dir(dir: &Path, mode: u32) -> Result<(), Error> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(dir).map_err(|e| Error::io("make", dir, e))?;
    set_mode(dir, mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| Error::io("set the mode of", path, e))
}
