//! The end of a log: what a container said last.
//!
//! Problem: a log may have any size, lines may have any length, and a rotation may just have emptied it. Approach: it is read from its
//! end in blocks, at most [`MOST`] of it, until there are enough lines or enough of what was said; where that is not enough, the file
//! that was rotated last is read in the same way.
//!
//! Property: what is read is bounded, whatever is in the file; a link is not followed.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::cri_line;
use super::files::LogFiles;

/// Of a container that failed this is its last words (pkg/kubelet/container/runtime.go, MaxContainerTerminationMessageLogLines and
/// MaxContainerTerminationMessageLogLength, release 1.36).
pub const LAST_LINES: usize = 80;
/// Bytes of these.
pub const LAST_BYTES: usize = 2_048;
/// So much of a file is read at most. Runtimes cut lines at 16 KiB.
const MOST: u64 = 256 << 10;
const BLOCK: u64 = 8 << 10;

/// The last [`LAST_LINES`] lines of a log, of these the last [`LAST_BYTES`] bytes.
///
/// # Errors
/// The log is not there, is no file, or cannot be read.
pub fn last_words(log: &Path) -> io::Result<String> {
    let mut said = Said::default();
    match lines_of(log, &mut said) {
        // Between the two steps of a rotation.
        Err(error) if error.kind() == ErrorKind::NotFound && !said.is_enough() => {
            let rotated = newest_rotated(log).ok_or(error)?;
            lines_of(&rotated, &mut said)?;
        }
        other => {
            other?;
            if !said.is_enough()
                && let Some(rotated) = newest_rotated(log)
            {
                lines_of(&rotated, &mut said)?;
            }
        }
    }
    Ok(said.text())
}

fn newest_rotated(log: &Path) -> Option<std::path::PathBuf> {
    let files = LogFiles::of(log)?;
    let newest = files.list().ok()?.rotated.pop()?;
    (!newest.compressed()).then(|| files.path(&newest))
}

/// What was said, the last line first.
#[derive(Default)]
struct Said {
    lines: Vec<Vec<u8>>,
    bytes: usize,
}

impl Said {
    fn is_enough(&self) -> bool {
        self.lines.len() >= LAST_LINES || self.bytes >= LAST_BYTES
    }

    fn add(&mut self, text: &[u8]) {
        self.bytes += text.len();
        self.lines.push(text.to_owned());
    }

    fn text(mut self) -> String {
        self.lines.reverse();
        let all = self.lines.concat();
        String::from_utf8_lossy(&all[all.len().saturating_sub(LAST_BYTES)..]).into_owned()
    }
}

/// Adds the lines of a file, the last one first, until it is enough.
fn lines_of(path: &Path, said: &mut Said) -> io::Result<()> {
    let file = open(path)?;
    let end = file.metadata()?.len();
    let least = end.saturating_sub(MOST);
    let (mut start, mut held) = (end, Vec::new());
    while start > least {
        let from = start.saturating_sub(BLOCK).max(least);
        let mut block = vec![0; usize::try_from(start - from).unwrap_or_default()];
        file.read_exact_at(&mut block, from)?;
        block.extend_from_slice(&held);
        (held, start) = (block, from);
        // All lines but the first, of which the begin is not here yet.
        while let Some(newline) = held[..held.len().saturating_sub(1)].iter().rposition(|byte| *byte == b'\n') {
            add(&held[newline + 1..], said);
            held.truncate(newline + 1);
            if said.is_enough() {
                return Ok(());
            }
        }
    }
    if start > 0 {
        // Its head is further away than any runtime writes it; what is here of it was said.
        said.add(&held);
    } else if !held.is_empty() {
        add(&held, said);
    }
    Ok(())
}

/// What was said in a line. One that is not in the format is not dropped: it may be the reason for the end.
fn add(line: &[u8], said: &mut Said) {
    said.add(cri_line::parse(line).map_or(line, |line| line.text));
}

/// Opens a file for reading: no link, no pipe to wait for.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a plain file")) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn line(text: &str) -> String {
        format!("2026-01-01T00:00:00.000000000Z stdout F {text}\n")
    }

    #[test]
    fn a15_5c_the_last_lines_and_bytes_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        assert_eq!(last_words(&log).unwrap_err().kind(), ErrorKind::NotFound);
        let many: String = (0..5_000).map(|n| line(&format!("line {n}"))).collect();
        let long = format!("{}{}", line("before"), line(&"x".repeat(100_000)));
        let endless = line(&"y".repeat(1 << 20));
        let parts = "2026-01-01T00:00:00Z stderr P one, \n2026-01-01T00:00:00Z stderr F two\n";
        for (content, expected) in [
            (String::new(), String::new()),
            (line("only"), "only\n".to_owned()),
            (many, (4_920..5_000).map(|n| format!("line {n}\n")).collect()),
            (long, format!("{}\n", "x".repeat(LAST_BYTES - 1))),
            (endless, format!("{}\n", "y".repeat(LAST_BYTES - 1))),
            (parts.to_owned(), "one, two\n".to_owned()),
            (format!("{}2026-01-01T00:00:00Z stdout F cut", line("whole")), "whole\ncut".to_owned()),
            ("no line of a log\n".to_owned(), "no line of a log\n".to_owned()),
            ("\n\n".to_owned(), "\n\n".to_owned()),
        ] {
            fs::write(&log, &content).unwrap();
            assert_eq!(last_words(&log).unwrap(), expected, "{content:.80}");
        }
    }

    #[test]
    fn a15_5c_a_rotation_hides_no_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.20260101-000000"), line("before")).unwrap();
        assert_eq!(last_words(&log).unwrap(), "before\n", "in the middle of it");
        fs::write(&log, line("after")).unwrap();
        assert_eq!(last_words(&log).unwrap(), "before\nafter\n");
        fs::write(dir.path().join("0.log.20260101-000001.gz"), "not to be read").unwrap();
        assert_eq!(last_words(&log).unwrap(), "after\n");
    }

    #[test]
    fn a15_5c_a_link_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("secret"), "secret\n").unwrap();
        let log = dir.path().join("0.log");
        std::os::unix::fs::symlink(dir.path().join("secret"), &log).unwrap();
        assert!(last_words(&log).is_err());
        assert!(last_words(dir.path()).is_err());
    }
}
