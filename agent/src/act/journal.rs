//! Remembers, across crashes, what knobs held before beelet turned them.
//!
//! Problem: a burst that outlives its reason is a node that nobody configured. Approach: a file of JSON lines, appended and
//! synced before each write to a knob; when the knob is back at its first value, or its cgroup is gone, another line says so.
//! At the start the lines are replayed; what is still open is to be restored.
//!
//! Properties: a line that a crash cut short (only the last can be) is dropped, and the write it announced has not happened;
//! other lines that cannot be read are skipped and counted; the file is rewritten from what is open when it has grown tenfold.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use beelet_core::event::{Knob, KnobWrite};
use beelet_core::spec::PodUid;
use serde::{Deserialize, Serialize};

/// Lines in the file beyond the open ones before it is rewritten.
const SLACK: usize = 1_000;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot {what} the journal {path}: {source}; no knob is turned without it: make its folder writable and its disk not full"
)]
pub struct JournalError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A line.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    /// This is going to be written.
    Write {
        /// Microseconds since 1970.
        at: u64,
        cgroup: String,
        /// Who: the pod's UID and the container's name.
        target: (PodUid, String),
        before: Knob,
        after: Knob,
        why: String,
    },
    /// It holds its first value again, or its cgroup is gone.
    Closed { at: u64, cgroup: String, knob: String },
}

/// A knob that beelet has turned and not turned back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// The cgroup, relative to the hierarchies' roots.
    pub cgroup: String,
    /// The pod and the container.
    pub target: (PodUid, String),
    /// Its value before the first write.
    pub before: Knob,
    /// The value of the last write.
    pub after: Knob,
    /// The value of the write before that: what the knob holds if a crash came between the journal's line and the last write.
    pub previous: Knob,
    /// Why it was last written.
    pub why: String,
    /// When (microseconds since 1970).
    pub at: u64,
}

type Key = (String, String);

/// The journal, open for appending.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: fs::File,
    open: BTreeMap<Key, Restore>,
    lines: usize,
    unreadable: usize,
}

/// A knob's name in the journal.
pub(super) fn name(knob: Knob) -> &'static str {
    match knob {
        Knob::CpuBurst(_) => "cpu_burst",
        Knob::MemoryHigh(_) => "memory_high",
        Knob::MemoryMax(_) => "memory_max",
        Knob::Freeze(_) => "freeze",
    }
}

impl Journal {
    /// Opens the file, making it and its folder if need be, and replays it.
    ///
    /// # Errors
    /// If it cannot be made, read or cut.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, JournalError> {
        let path = path.into();
        let fail = |what| {
            let path = path.clone();
            move |source| JournalError { what, path, source }
        };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(fail("make the folder of"))?;
        }
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).append(true).read(true).open(&path).map_err(fail("open"))?;
        let bytes = fs::read(&path).map_err(fail("read"))?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64).and_then(|()| file.sync_all()).map_err(fail("cut the torn last line of"))?;
        }
        let mut journal = Self { path, file, open: BTreeMap::new(), lines: 0, unreadable: 0 };
        for line in bytes[..whole].split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            journal.lines += 1;
            match serde_json::from_slice(line) {
                Ok(line) => journal.replay(line),
                Err(_) => journal.unreadable += 1,
            }
        }
        Ok(journal)
    }

    fn replay(&mut self, line: Line) {
        match line {
            Line::Write { cgroup, target, before, after, why, at } => {
                let key = (cgroup.clone(), name(after).to_owned());
                match self.open.get_mut(&key) {
                    Some(known) => {
                        known.previous = std::mem::replace(&mut known.after, after);
                        (known.why, known.at) = (why, at);
                    }
                    None => {
                        let restore = Restore { cgroup, target, before, after, previous: before, why, at };
                        self.open.insert(key, restore);
                    }
                }
            }
            Line::Closed { cgroup, knob, .. } => {
                self.open.remove(&(cgroup, knob));
            }
        }
    }

    /// Writes down that the knob, which holds `before`, is going to be written. The write may follow when this has returned.
    ///
    /// # Errors
    /// If it is not on disk; the knob must not be written then.
    pub fn intend(&mut self, write: &KnobWrite, before: Knob, at: u64) -> Result<(), JournalError> {
        self.append(Line::Write {
            at,
            cgroup: write.cgroup.clone(),
            target: write.target.clone(),
            before,
            after: write.knob,
            why: write.why.clone(),
        })
    }

    /// The knob holds its first value again, or its cgroup is gone.
    ///
    /// # Errors
    /// If it is not on disk.
    pub fn close(&mut self, cgroup: &str, knob: Knob, at: u64) -> Result<(), JournalError> {
        let knob = name(knob).to_owned();
        if !self.open.contains_key(&(cgroup.to_owned(), knob.clone())) {
            return Ok(());
        }
        self.append(Line::Closed { at, cgroup: cgroup.to_owned(), knob })
    }

    /// What is turned and not turned back: at the start, what an earlier life of the agent left.
    #[must_use]
    pub fn recover(&self) -> Vec<Restore> {
        self.open.values().cloned().collect()
    }

    /// What is known of a knob that is turned.
    #[must_use]
    pub fn turned(&self, cgroup: &str, knob: Knob) -> Option<&Restore> {
        self.open.get(&(cgroup.to_owned(), name(knob).to_owned()))
    }

    /// Lines that could not be read when it was opened.
    #[must_use]
    pub fn unreadable(&self) -> usize {
        self.unreadable
    }

    fn append(&mut self, line: Line) -> Result<(), JournalError> {
        let text = encode(&line);
        // One write call, so that a crash cuts at most this line. A failed write may leave a part of it, which would spoil the next.
        let length = self.file.metadata().map(|m| m.len());
        if let Err(source) = self.file.write_all(&text).and_then(|()| self.file.sync_data()) {
            if let Ok(length) = length {
                let _best_effort = self.file.set_len(length);
            }
            return Err(JournalError { what: "write", path: self.path.clone(), source });
        }
        self.lines += 1;
        self.replay(line);
        if self.lines > self.open.len() * 10 + SLACK { self.compact() } else { Ok(()) }
    }

    /// Rewrites the file from what is open: a new file, synced, renamed over the old one.
    fn compact(&mut self) -> Result<(), JournalError> {
        let path = self.path.clone();
        let fail = |source| JournalError { what: "rewrite", path: path.clone(), source };
        let mut text = Vec::new();
        let mut lines = 0;
        for restore in self.open.values() {
            // Two lines each, so that a replay finds both values that the knob may hold.
            for after in [restore.previous, restore.after] {
                text.extend(encode(&Line::Write {
                    at: restore.at,
                    cgroup: restore.cgroup.clone(),
                    target: restore.target.clone(),
                    before: restore.before,
                    after,
                    why: restore.why.clone(),
                }));
                lines += 1;
            }
        }
        let fresh = self.path.with_extension("new");
        let mut file = fs::File::create(&fresh).map_err(fail)?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(fail)?;
        fs::rename(&fresh, &self.path).map_err(fail)?;
        let folder = self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(fail)?;
        self.file = fs::OpenOptions::new().append(true).read(true).open(&self.path).map_err(fail)?;
        self.lines = lines;
        Ok(())
    }
}

fn encode(line: &Line) -> Vec<u8> {
    // Plain structs of strings and numbers: this cannot fail.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}
