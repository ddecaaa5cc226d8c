//! The files of one run's log: the current one and those that were rotated.
//!
//! Names are the kubelet's (pkg/kubelet/logs/container_log_manager.go, release 1.36): `<log>.20060102-150405` in local time, and `.gz`
//! after it once it is compressed; `.tmp` is a file that is being compressed. A second rotation within a second would replace the
//! file of the first, so there, and where the clock goes back, `_` and a number follow the second: names sort as they were made.
//!
//! Properties (tested): a rotation replaces no file; each step can be repeated, so that an agent that dies between two leaves nothing
//! that the next rotation does not put right.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use beelet_core::logs::{Policy, excess};
use beelet_core::units::Bytes;
use rustix::fs::{CWD, RenameFlags, renameat_with};

const COMPRESSED: &str = ".gz";
const TEMPORARY: &str = ".tmp";

/// When a file was rotated, as its name has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// `20060102-150405`.
    second: String,
    /// Counts the rotations within it; 0 for the first.
    number: u64,
}

impl Stamp {
    fn parse(text: &str) -> Option<Self> {
        let (second, number) = match text.split_once('_') {
            None => (text, 0),
            Some((second, number)) => (second, number.parse().ok().filter(|n| *n > 0)?),
        };
        let (day, time) = second.split_once('-')?;
        let digits = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
        (digits(day, 8) && digits(time, 6)).then(|| Self { second: second.to_owned(), number })
    }

    /// The stamp for a rotation in the second `now`, after the newest one that there is.
    fn after(newest: Option<&Self>, now: &str) -> Self {
        match newest {
            Some(newest) if *newest.second >= *now => Self { number: newest.number + 1, ..newest.clone() },
            _ => Self { second: now.to_owned(), number: 0 },
        }
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.number {
            0 => f.write_str(&self.second),
            number => write!(f, "{}_{number:06}", self.second),
        }
    }
}

/// The present second, as names have it.
#[must_use]
pub fn second_now() -> String {
    jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string()
}

/// A rotated file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// When.
    pub stamp: Stamp,
    /// Its size.
    pub size: Bytes,
    gz: bool,
}

impl Rotated {
    /// Whether it is compressed.
    #[must_use]
    pub fn compressed(&self) -> bool {
        self.gz
    }
}

/// What there is next to the current file.
#[derive(Debug, Default)]
pub struct Listed {
    /// The oldest first.
    pub rotated: Vec<Rotated>,
    /// Half made and left over: temporary files.
    pub temporary: Vec<PathBuf>,
    /// Left over: compressed already.
    pub doubled: Vec<PathBuf>,
}

/// The files of one run's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFiles {
    folder: PathBuf,
    name: String,
}

impl LogFiles {
    /// Of a log by the path of its current file; `None` if that has no name.
    #[must_use]
    pub fn of(log: &Path) -> Option<Self> {
        Some(Self { folder: log.parent()?.to_owned(), name: log.file_name()?.to_str()?.to_owned() })
    }

    /// The file that is written.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    /// A rotated file.
    #[must_use]
    pub fn path(&self, rotated: &Rotated) -> PathBuf {
        self.named(&rotated.stamp, if rotated.gz { COMPRESSED } else { "" })
    }

    fn named(&self, stamp: &Stamp, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}.{stamp}{suffix}", self.name))
    }

    /// A file that is not compressed yet, where it is compressed to, and its name afterwards.
    pub(super) fn to_compress(&self, stamp: &Stamp) -> (PathBuf, PathBuf, PathBuf) {
        (self.named(stamp, ""), self.named(stamp, TEMPORARY), self.named(stamp, COMPRESSED))
    }

    /// The size of the current file.
    ///
    /// # Errors
    /// It is not there, or is no plain file.
    pub fn size(&self) -> io::Result<Bytes> {
        let meta = fs::symlink_metadata(self.current())?;
        if meta.is_file() { Ok(Bytes(meta.len())) } else { Err(io::Error::other("not a plain file")) }
    }

    /// Lists all but the current file. What has a name that no rotation gives is left out; a folder that is not there is empty.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> io::Result<Listed> {
        let (mut listed, mut plain) = (Listed::default(), Vec::new());
        for entry in entries(&self.folder)?.into_iter().flatten() {
            let entry = entry?;
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(&self.name)?.strip_prefix('.')) else {
                continue;
            };
            if rest.strip_suffix(TEMPORARY).and_then(Stamp::parse).is_some() {
                listed.temporary.push(entry.path());
                continue;
            }
            let (gz, stamp) = rest.strip_suffix(COMPRESSED).map_or((false, rest), |stamp| (true, stamp));
            let Some(stamp) = Stamp::parse(stamp) else { continue };
            match entry.metadata() {
                Ok(meta) => {
                    let to = if gz { &mut listed.rotated } else { &mut plain };
                    to.push(Rotated { stamp, size: Bytes(meta.len()), gz });
                }
                // Removed meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        for file in plain {
            if listed.rotated.iter().any(|other| other.gz && other.stamp == file.stamp) {
                listed.doubled.push(self.path(&file));
            } else {
                listed.rotated.push(file);
            }
        }
        listed.rotated.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        Ok(listed)
    }

    /// Gives the current file the name of a rotation in the second `now`. The runtime goes on to write to it until it reopens its log.
    ///
    /// # Errors
    /// The folder cannot be read, or the file not renamed.
    pub fn rotate(&self, now: &str) -> io::Result<Stamp> {
        let listed = self.list()?;
        let stamp = Stamp::after(listed.rotated.last().map(|newest| &newest.stamp), now);
        rename_new(&self.current(), &self.named(&stamp, ""))?;
        Ok(stamp)
    }

    /// Takes a rotation back, because the runtime did not reopen the log; whether it could be: a new current file means that the
    /// runtime did.
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn undo(&self, stamp: &Stamp) -> io::Result<bool> {
        match rename_new(&self.named(stamp, ""), &self.current()) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            renamed => renamed.map(|()| true),
        }
    }

    /// Removes what is left over and what is too much; how many of the latter. Temporary files stay while something is `compressing`.
    ///
    /// # Errors
    /// The folder cannot be read, or a file not removed.
    pub fn clean(&self, policy: &Policy, compressing: bool) -> io::Result<u64> {
        let listed = self.list()?;
        let temporary = if compressing { &[][..] } else { &listed.temporary };
        for left_over in temporary.iter().chain(&listed.doubled) {
            remove(left_over)?;
        }
        let sizes: Vec<Bytes> = listed.rotated.iter().map(|file| file.size).collect();
        let oldest = &listed.rotated[..excess(&sizes, policy)];
        for file in oldest {
            remove(&self.path(file))?;
        }
        Ok(oldest.len() as u64)
    }

    /// The oldest file that is to be compressed: not the newest, which log collectors still read.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn uncompressed(&self) -> io::Result<Option<Stamp>> {
        let mut rotated = self.list()?.rotated;
        rotated.pop();
        Ok(rotated.into_iter().find(|file| !file.gz).map(|file| file.stamp))
    }

    /// Removes all files of this run.
    ///
    /// # Errors
    /// The folder cannot be read, or a file not removed.
    pub fn remove_all(&self) -> io::Result<()> {
        for entry in entries(&self.folder)?.into_iter().flatten() {
            let entry = entry?;
            let name = entry.file_name();
            let rest = name.to_str().and_then(|name| name.strip_prefix(&self.name));
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// What is in a folder; `None` if that is not there.
fn entries(folder: &Path) -> io::Result<Option<fs::ReadDir>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        entries => entries.map(Some),
    }
}

/// Removes a file; one that is gone is removed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames, and replaces nothing.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Not every file system can do both in one step.
        Err(rustix::io::Errno::INVAL) if !to.exists() => fs::rename(from, to),
        Err(rustix::io::Errno::INVAL) => Err(ErrorKind::AlreadyExists.into()),
        renamed => Ok(renamed?),
    }
}

/// The run that a log is of, by the name of its file, also if it is rotated.
fn run_of(name: &std::ffi::OsStr) -> Option<u32> {
    let (number, rest) = name.to_str()?.split_once('.')?;
    (rest == "log" || rest.starts_with("log.")).then(|| number.parse::<u32>().ok())?
}

/// Removes the logs of all runs of a container before this one; `folder` is the container's.
///
/// # Errors
/// The folder cannot be read, or a file not removed.
pub fn remove_runs_before(folder: &Path, run: u32) -> io::Result<()> {
    for entry in entries(folder)?.into_iter().flatten() {
        let entry = entry?;
        if run_of(&entry.file_name()).is_some_and(|of| of < run) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// How often a container was run, by the logs that are there: the number of the newest and one; `folder` is the container's.
///
/// # Errors
/// The folder cannot be read.
pub fn runs(folder: &Path) -> io::Result<u32> {
    let mut runs = 0;
    for entry in entries(folder)?.into_iter().flatten() {
        runs = runs.max(run_of(&entry?.file_name()).map_or(0, |run| run.saturating_add(1)));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Policy = Policy { max_size: Bytes(100), max_files: 4 };

    fn log(dir: &tempfile::TempDir) -> LogFiles {
        LogFiles::of(&dir.path().join("0.log")).unwrap()
    }

    fn names(dir: &tempfile::TempDir) -> Vec<String> {
        let entries = fs::read_dir(dir.path()).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a4_8k_the_logs_tell_how_often_a_container_ran() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!((runs(dir.path()).unwrap(), runs(&dir.path().join("none")).unwrap()), (0, 0));
        for name in ["0.log", "3.log.20260101-120000.gz", "x.log", "9.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(runs(dir.path()).unwrap(), 4);
    }

    #[test]
    fn a15_4a_rotations_of_one_second_replace_nothing_and_sort() {
        let dir = tempfile::tempdir().unwrap();
        let files = log(&dir);
        // The clock goes back by an hour at the fourth.
        let seconds = ["20260101-120000", "20260101-120000", "20260101-120000", "20260101-110000", "20260101-120001"];
        for (run, second) in seconds.iter().enumerate() {
            fs::write(files.current(), run.to_string()).unwrap();
            files.rotate(second).unwrap();
        }
        let stamps = ["20260101-120000", "20260101-120000_000001", "20260101-120000_000002", "20260101-120000_000003"];
        let mut expected: Vec<String> = stamps.iter().map(|stamp| format!("0.log.{stamp}")).collect();
        expected.push("0.log.20260101-120001".to_owned());
        assert_eq!(names(&dir), expected);
        for (run, file) in files.list().unwrap().rotated.iter().enumerate() {
            assert_eq!(fs::read_to_string(files.path(file)).unwrap(), run.to_string());
        }
    }

    #[test]
    fn a15_4b_what_the_runtime_did_not_reopen_gets_its_name_back() {
        let dir = tempfile::tempdir().unwrap();
        let files = log(&dir);
        fs::write(files.current(), "old").unwrap();
        let stamp = files.rotate("20260101-120000").unwrap();
        assert_eq!(files.size().unwrap_err().kind(), ErrorKind::NotFound);
        assert!(files.undo(&stamp).unwrap());
        assert_eq!((names(&dir), files.size().unwrap()), (vec!["0.log".to_owned()], Bytes(3)));
        // It did reopen, but its answer was lost: the new file is not replaced by the old one.
        let stamp = files.rotate("20260101-120000").unwrap();
        fs::write(files.current(), "newer").unwrap();
        assert!(!files.undo(&stamp).unwrap());
        assert_eq!(names(&dir), ["0.log", "0.log.20260101-120000"]);
        assert_eq!(files.size().unwrap(), Bytes(5));
    }

    #[test]
    fn a15_4c_left_overs_and_what_is_too_much_go() {
        let dir = tempfile::tempdir().unwrap();
        let files = log(&dir);
        let there = [
            "0.log",
            "0.log.20260101-000001.gz",
            "0.log.20260101-000002",
            "0.log.20260101-000002.gz",
            "0.log.20260101-000003",
            "0.log.20260101-000003.tmp",
            "0.log.20260101-000004",
            // Not ours to judge.
            "0.log.20260101-00000x",
            "0.log.note",
            "0.log.tmp",
            "10.log.20260101-000001",
        ];
        for name in there {
            fs::write(dir.path().join(name), "text").unwrap();
        }
        assert_eq!(files.clean(&KEEP, true).unwrap(), 1);
        assert!(names(&dir).contains(&"0.log.20260101-000003.tmp".to_owned()), "it is being made");
        assert_eq!(files.clean(&KEEP, false).unwrap(), 0);
        let gone = ["0.log.20260101-000001.gz", "0.log.20260101-000002", "0.log.20260101-000003.tmp"];
        let mut stay: Vec<_> = there.into_iter().filter(|name| !gone.contains(name)).collect();
        stay.sort_unstable();
        assert_eq!(names(&dir), stay);
        assert_eq!(files.uncompressed().unwrap().unwrap().to_string(), "20260101-000003");
        fs::remove_file(dir.path().join("0.log.20260101-000003")).unwrap();
        assert_eq!(files.uncompressed().unwrap(), None, "the newest is read still");
    }

    #[test]
    fn a4_12g_the_log_of_a_run_goes_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["1.log", "1.log.20260101-000001.gz", "1.log.20260101-000002", "1.log.old", "10.log", "11.log.x"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        LogFiles::of(&dir.path().join("1.log")).unwrap().remove_all().unwrap();
        assert_eq!(names(&dir), ["10.log", "11.log.x"]);
        let gone = LogFiles::of(&dir.path().join("gone/1.log")).unwrap();
        gone.remove_all().unwrap();
        assert_eq!(gone.clean(&KEEP, false).unwrap(), 0, "the runtime makes the folder");
        for name in ["9.log", "9.log.20260101-000002", "9.txt", "log", "x.log"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        remove_runs_before(dir.path(), 11).unwrap();
        assert_eq!(names(&dir), ["11.log.x", "9.txt", "log", "x.log"]);
        remove_runs_before(&dir.path().join("gone"), 11).unwrap();
    }

    #[test]
    fn a15_4a_the_name_has_the_form_of_the_kubelets() {
        let now = second_now();
        assert_eq!(Stamp::parse(&now), Some(Stamp { second: now.clone(), number: 0 }), "{now}");
    }
}
