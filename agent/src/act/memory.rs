//! How pods ended, by when those that go have to be gone, and what was shown of them, written down: one small file per pod, so that a
//! restarted agent neither runs an evicted pod again nor gives one that goes its time again, and shows no change where there was none.
//!
//! Files are written to a temporary name and renamed, so a reader sees the old or the new one and never half of it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use beelet_core::event::Terminal;
use beelet_core::spec::PodUid;
use beelet_core::status::PodNote;
use beelet_core::units::Micros;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why something could not be written down or read.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub struct MemoryError {
    path: String,
    source: std::io::Error,
}

/// The folder of ended pods.
#[derive(Clone, Debug)]
pub struct TerminalStore(Folder);

impl TerminalStore {
    /// The folder below the agent's root; made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(root: &Path) -> Result<Self, MemoryError> {
        Folder::open(root, "terminal").map(Self)
    }

    /// What earlier lives of the agent wrote down, and the files that cannot be understood.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn load(&self) -> Result<Loaded<Terminal>, MemoryError> {
        let (mut ends, bad) = self.0.load()?;
        ends.sort_by(|a: &Terminal, b| a.uid.cmp(&b.uid));
        Ok((ends, bad))
    }

    /// Writes down how a pod ended.
    ///
    /// # Errors
    /// If it cannot be written, e.g. on a full disk.
    pub fn remember(&self, end: &Terminal) -> Result<(), MemoryError> {
        self.0.write(&end.uid, end, true)
    }

    /// Forgets a pod.
    ///
    /// # Errors
    /// If the file cannot be removed; one that is not there is fine.
    pub fn forget(&self, uid: &PodUid) -> Result<(), MemoryError> {
        self.0.remove(uid)
    }
}

/// The folder of pods that have to go, each with when it has to be gone (wall clock).
#[derive(Clone, Debug)]
pub struct GoingStore(Folder);

impl GoingStore {
    /// The folder below the agent's root; made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(root: &Path) -> Result<Self, MemoryError> {
        Folder::open(root, "going").map(Self)
    }

    /// What earlier lives of the agent wrote down, and the files that cannot be understood.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn load(&self) -> Result<Loaded<(PodUid, Micros)>, MemoryError> {
        self.0.load()
    }

    /// Writes down by when a pod has to be gone, or forgets it. It need not outlive the machine, nor do the pods: nobody waits for the
    /// disk.
    ///
    /// # Errors
    /// If the file cannot be written or removed.
    pub fn note(&self, uid: &PodUid, until: Option<Micros>) -> Result<(), MemoryError> {
        match until {
            Some(until) => self.0.write(uid, &(uid, until), false),
            None => self.0.remove(uid),
        }
    }
}

/// The folder of what was shown of pods.
#[derive(Clone, Debug)]
pub struct StatusStore(Folder);

impl StatusStore {
    /// The folder below the agent's root; made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(root: &Path) -> Result<Self, MemoryError> {
        Folder::open(root, "status").map(Self)
    }

    /// What earlier lives of the agent wrote down, and the files that cannot be understood.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn load(&self) -> Result<Loaded<PodNote>, MemoryError> {
        self.0.load()
    }

    /// Writes down what is shown of a pod, in place of what was. It need not outlive the machine: nothing runs any more then.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember(&self, note: &PodNote) -> Result<(), MemoryError> {
        self.0.write(&note.uid, note, false)
    }

    /// Forgets a pod.
    ///
    /// # Errors
    /// If the file cannot be removed; one that is not there is fine.
    pub fn forget(&self, uid: &PodUid) -> Result<(), MemoryError> {
        self.0.remove(uid)
    }
}

/// What was written down, and the files that cannot be understood.
pub(super) type Loaded<T> = (Vec<T>, Vec<String>);

/// A folder of small files, one of each pod.
#[derive(Clone, Debug)]
struct Folder {
    dir: PathBuf,
}

impl Folder {
    fn open(root: &Path, name: &str) -> Result<Self, MemoryError> {
        let dir = root.join(name);
        fs::create_dir_all(&dir).map_err(|e| at(&dir, e))?;
        Ok(Self { dir })
    }

    fn load<T: DeserializeOwned>(&self) -> Result<Loaded<T>, MemoryError> {
        let (mut notes, mut bad) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.dir).map_err(|e| at(&self.dir, e))? {
            let path = entry.map_err(|e| at(&self.dir, e))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let parsed = fs::read(&path).map_err(|e| e.to_string());
            match parsed.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|e| e.to_string())) {
                Ok(note) => notes.push(note),
                Err(error) => bad.push(format!("{}: {error}", path.display())),
            }
        }
        Ok((notes, bad))
    }

    /// `sync`: it is on the disk when this returns.
    fn write(&self, uid: &PodUid, note: &impl Serialize, sync: bool) -> Result<(), MemoryError> {
        let (path, temporary) = (self.file(uid), self.file(uid).with_extension("tmp"));
        let text = serde_json::to_vec_pretty(note).map_err(|e| at(&path, e.into()))?;
        let mut file = fs::File::create(&temporary).map_err(|e| at(&temporary, e))?;
        let written = file.write_all(&text).and_then(|()| if sync { file.sync_all() } else { Ok(()) });
        written.map_err(|e| at(&temporary, e))?;
        fs::rename(&temporary, &path).map_err(|e| at(&path, e))
    }

    fn remove(&self, uid: &PodUid) -> Result<(), MemoryError> {
        let path = self.file(uid);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(at(&path, e)),
            _ => Ok(()),
        }
    }

    fn file(&self, uid: &PodUid) -> PathBuf {
        // A UID comes from a manifest: nothing in it may name another folder.
        let safe: String =
            uid.as_str().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.dir.join(format!("{safe}.json"))
    }
}

fn at(path: &Path, source: std::io::Error) -> MemoryError {
    MemoryError { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beelet_core::snapshot::Phase;

    #[test]
    fn what_is_remembered_is_there_after_a_restart_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let end = Terminal {
            uid: "a/../b".into(),
            phase: Phase::Failed,
            reason: "Evicted".to_owned(),
            disruption: Some("m".to_owned()),
            message: "m".to_owned(),
            exits: Vec::new(),
        };
        TerminalStore::open(root.path()).unwrap().remember(&end).unwrap();
        fs::write(root.path().join("terminal/torn.json"), "{").unwrap();
        let store = TerminalStore::open(root.path()).unwrap();
        let (ends, bad) = store.load().unwrap();
        assert_eq!(ends, std::slice::from_ref(&end));
        assert_eq!(bad.len(), 1);
        store.forget(&end.uid).unwrap();
        store.forget(&end.uid).unwrap();
        assert_eq!(store.load().unwrap().0, []);
    }

    #[test]
    fn a4_7i_by_when_a_pod_has_to_be_gone_is_known_after_a_restart_until_it_is() {
        let root = tempfile::tempdir().unwrap();
        let store = GoingStore::open(root.path()).unwrap();
        store.note(&"a".into(), Some(Micros(7))).unwrap();
        store.note(&"a".into(), Some(Micros(5))).unwrap();
        fs::write(root.path().join("going/torn.json"), "[").unwrap();
        let store = GoingStore::open(root.path()).unwrap();
        let (going, bad) = store.load().unwrap();
        assert_eq!((going, bad.len()), (vec![("a".into(), Micros(5))], 1));
        store.note(&"a".into(), None).unwrap();
        store.note(&"a".into(), None).unwrap();
        assert_eq!(store.load().unwrap().0, []);
    }
}
