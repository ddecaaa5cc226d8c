//! A folder of manifests.
//!
//! Problem: files are written by hand, by tools in two steps, or not at all; a folder can be on a disk that goes away. What is
//! read from it starts and kills pods.
//! Approach: a scan reads the whole folder, in the order of the names; inotify says when to scan again, a timer (fileCheckFrequency)
//! is there for what inotify misses (a network file system, a changed link). A scan that fails changes nothing.
//!
//! Terms: a *young* file was changed less than a second ago; if it cannot be read as a manifest it is probably half written, so
//! it is read again before it is reported, and its last good pods stay until then.
//!
//! The first reading is `ready` only when nothing in it is in doubt, because what it leaves out is killed as an orphan: a file that
//! is half written is waited for up to 5 s, one that cannot be read (an error of the disk or the network, a link to nowhere) up to
//! 30 s, and until then nothing is started or removed. A file that was read and is no manifest is not in doubt: its pods go.
//!
//! Properties: hidden files are ignored, as are folders (pkg/kubelet/config/file.go, release 1.37); at most [`MAX_FILE`] of a file
//! is read; of two pods of one name the first file's wins; one bad file does not touch the pods of another.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use beelet_core::event::Rejected;
use beelet_core::units::Bytes;
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::sync::watch;
use tracing::{info, warn};

use super::SourceState;
use super::manifest::{self, Parsed};

/// A larger file is not a manifest (pkg/kubelet/util/util.go, maxFileSize: 10 MB).
pub const MAX_FILE: Bytes = Bytes::mib(10);
/// More than this is not a folder of manifests.
const MAX_FILES: usize = 10_000;
/// How long the first reading waits for a half-written file, and for one that cannot be read.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));

/// How a folder is watched.
#[derive(Clone, Debug)]
pub struct Options {
    /// `fileCheckFrequency`.
    pub rescan: Duration,
    /// So long a burst of changes has to be quiet before it is read.
    pub settle: Duration,
    /// A file that was changed less than this ago may be half written.
    pub young: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { rescan: Duration::from_secs(20), settle: Duration::from_millis(50), young: Duration::from_secs(1) }
    }
}

/// The source of static pods.
#[derive(Debug)]
pub struct FolderSource;

impl FolderSource {
    /// Watches a folder (or one file) until every receiver is dropped. Never fails: what is wrong is in the state.
    ///
    /// Has to be called within a tokio runtime.
    #[must_use]
    pub fn spawn(path: PathBuf, node_name: String, options: Options) -> watch::Receiver<Arc<SourceState>> {
        let (sender, receiver) = watch::channel(Arc::new(SourceState::default()));
        tokio::spawn(watch_folder(Scanner::new(path, node_name, options.young), options, sender));
        receiver
    }
}

async fn watch_folder(mut scanner: Scanner, options: Options, sender: watch::Sender<Arc<SourceState>>) {
    let mut changes: Option<EventStream<[u8; 4096]>> = None;
    loop {
        if changes.is_none() {
            changes = subscribe(&scanner.path);
        }
        let scan = tokio::task::spawn_blocking(move || {
            let again = scanner.scan(SystemTime::now());
            (scanner, again)
        });
        let Ok((scanned, again)) = scan.await else { return };
        scanner = scanned;
        let newest = scanner.state.clone();
        sender.send_if_modified(|state| {
            let new = **state != newest;
            if new {
                tell(state, &newest);
                *state = Arc::new(newest);
            }
            new
        });
        let wait = if again { options.young } else { options.rescan };
        tokio::select! {
            () = sender.closed() => return,
            () = tokio::time::sleep(wait) => {
                // The folder may have been replaced by another one of its name.
                if !again {
                    changes = None;
                }
            }
            alive = next_burst(&mut changes, options.settle) => {
                if !alive {
                    changes = None;
                }
            }
        }
    }
}

/// The log says what is new, once.
fn tell(before: &SourceState, now: &SourceState) {
    if let Some(trouble) = now.trouble.as_ref().filter(|t| before.trouble.as_ref() != Some(t)) {
        warn!(trouble, "the manifests cannot be read; what they said last stays in force");
    }
    for rejected in now.rejected.iter().filter(|r| !before.rejected.contains(r)) {
        warn!(origin = rejected.origin, pod = rejected.pod, error = rejected.error, "manifest refused");
    }
    for pod in now.pods.iter().filter(|p| !before.originals.contains_key(&p.uid)) {
        info!(pod = pod.full_name(), uid = %pod.uid, origin = pod.origin, "pod wanted");
    }
}

/// `None` where it cannot be watched: the timer does it then.
fn subscribe(path: &Path) -> Option<EventStream<[u8; 4096]>> {
    let inotify = Inotify::init().ok()?;
    let mask = WatchMask::CLOSE_WRITE
        | WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::ATTRIB
        | WatchMask::MODIFY
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF;
    inotify.watches().add(path, mask).ok()?;
    inotify.into_event_stream([0; 4096]).ok()
}

/// Waits for a change and for the quiet after it, but no longer than ten times that quiet. `false`: the watch is gone.
async fn next_burst(changes: &mut Option<EventStream<[u8; 4096]>>, settle: Duration) -> bool {
    let Some(stream) = changes else { return std::future::pending().await };
    let Some(Ok(_)) = stream.next().await else { return false };
    let quiet = async {
        while let Ok(next) = tokio::time::timeout(settle, stream.next()).await {
            if !matches!(next, Some(Ok(_))) {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(settle * 10, quiet).await.unwrap_or(true)
}

/// What a file said last: its pods, or why not.
type Reading = Vec<Result<Parsed, Rejected>>;

/// Reads a folder, again and again. No tokio, no clock: for tests.
#[derive(Debug)]
struct Scanner {
    path: PathBuf,
    node_name: String,
    young: Duration,
    /// The last good reading of each file.
    good: BTreeMap<PathBuf, Reading>,
    /// When the folder was listed first.
    first: Option<Instant>,
    patience: (Duration, Duration),
    state: SourceState,
}

impl Scanner {
    fn new(path: PathBuf, node_name: String, young: Duration) -> Self {
        Self {
            path,
            node_name,
            young,
            good: BTreeMap::new(),
            first: None,
            patience: PATIENCE,
            state: SourceState::default(),
        }
    }

    /// Reads everything. `true`: something was half written or is in doubt, look again soon.
    fn scan(&mut self, now: SystemTime) -> bool {
        let files = match list(&self.path) {
            Ok(files) => files,
            Err(error) => {
                let what =
                    if error.kind() == ErrorKind::NotFound { "waiting for it to appear" } else { "cannot list it" };
                self.state.trouble = Some(format!("{}: {what}: {error}", self.path.display()));
                return false;
            }
        };
        let waited = self.first.get_or_insert_with(Instant::now).elapsed();
        let mut again = false;
        let mut unreadable = None;
        let mut read = BTreeMap::new();
        for file in files {
            let (mut pods, readable) = self.file(&file);
            if !readable && unreadable.is_none() {
                unreadable = Some(file.clone());
            }
            if pods.iter().any(Result::is_err) && is_young(&file, now, self.young) {
                again = true;
                pods = self.good.get(&file).cloned().unwrap_or_default();
            }
            // What is the same is kept once.
            if let Some(before) = self.good.get(&file).filter(|before| **before == pods) {
                pods.clone_from(before);
            }
            read.insert(file, pods);
        }
        let known = self.state.ready;
        self.state = merge(&read);
        self.good = read;
        if !known {
            let held = unreadable.filter(|_| waited < self.patience.1);
            self.state.ready = held.is_none() && !(again && waited < self.patience.0);
            self.state.trouble = held.map(|file| {
                format!(
                    "{}: cannot be read yet; nothing is started or removed until it can, for at most 30 s",
                    file.display()
                )
            });
        }
        again || !self.state.ready
    }

    /// What it says, and whether it could be read at all.
    fn file(&self, path: &Path) -> (Reading, bool) {
        let origin = path.display().to_string();
        let reading = match read_capped(path) {
            Ok(None) => Vec::new(),
            Ok(Some(bytes)) => manifest::parse(&bytes, &origin, &self.node_name)
                .into_iter()
                .map(|pod| pod.map_err(|error| error.rejected(&origin)))
                .collect(),
            Err(NotRead { error, doubtful }) => {
                // Its pods, if it had any, run on: "unreadable" is not "gone".
                let kept = self.good.get(path).into_iter().flatten().filter(|pod| pod.is_ok()).cloned();
                let reading = kept.chain([Err(Rejected { origin, pod: None, error })]).collect();
                return (reading, !doubtful);
            }
        };
        (reading, true)
    }
}

/// Why a file was not read.
struct NotRead {
    error: String,
    /// It may be a manifest; only the reading failed.
    doubtful: bool,
}

fn list(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(vec![path.to_owned()]),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path());
        }
        if files.len() > MAX_FILES {
            return Err(std::io::Error::other(format!("more than {MAX_FILES} files: not a folder of manifests")));
        }
    }
    files.sort();
    Ok(files)
}

/// `None` for what holds no manifest: a folder, or a file that has gone since the folder was listed.
fn read_capped(path: &Path) -> Result<Option<Vec<u8>>, NotRead> {
    let say = |error: std::io::Error| NotRead { error: format!("cannot read it: {error}"), doubtful: true };
    let no_manifest = |error: String| NotRead { error, doubtful: false };
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound && std::fs::symlink_metadata(path).is_err() => {
            return Ok(None);
        }
        Err(error) => return Err(say(error)),
    };
    if meta.is_dir() {
        return Ok(None);
    }
    if !meta.is_file() {
        return Err(no_manifest("not a regular file: a manifest is wanted".to_owned()));
    }
    let too_large = || no_manifest(format!("larger than {MAX_FILE}: not a manifest"));
    if meta.len() > MAX_FILE.get() {
        return Err(too_large());
    }
    // A pipe put in its place meanwhile must not block.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path).map_err(say)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE.get() + 1).read_to_end(&mut bytes).map_err(say)?;
    if bytes.len() as u64 > MAX_FILE.get() { Err(too_large()) } else { Ok(Some(bytes)) }
}

const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

fn is_young(path: &Path, now: SystemTime, young: Duration) -> bool {
    let changed = std::fs::metadata(path).and_then(|meta| meta.modified()).ok();
    changed.is_some_and(|changed| now.duration_since(changed).is_ok_and(|age| age < young))
}

/// Of two pods of one name, or of one UID, the first wins.
fn merge(files: &BTreeMap<PathBuf, Reading>) -> SourceState {
    let mut state = SourceState { ready: true, ..SourceState::default() };
    let mut names: BTreeMap<String, &str> = BTreeMap::new();
    for pod in files.values().flatten() {
        let parsed = match pod {
            Ok(parsed) => parsed,
            Err(rejected) => {
                state.rejected.push(rejected.clone());
                continue;
            }
        };
        let spec = &parsed.spec;
        let refuse = |error: String| Rejected { origin: spec.origin.clone(), pod: Some(spec.full_name()), error };
        if let Some(first) = names.get(&spec.full_name()) {
            state
                .rejected
                .push(refuse(format!("metadata.name: Duplicate value: {:?} is in {first} already", spec.full_name())));
        } else if state.originals.contains_key(&spec.uid) {
            state.rejected.push(refuse(format!(
                "metadata.uid: Duplicate value: {:?} is another pod's already",
                spec.uid.as_str()
            )));
        } else {
            names.insert(spec.full_name(), &spec.origin);
            state.pods.push(Arc::clone(spec));
            state.originals.insert(spec.uid.clone(), Arc::clone(&parsed.pod));
        }
    }
    state
}

#[cfg(test)]
mod tests;
