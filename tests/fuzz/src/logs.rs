//! Logs: any bytes are lines or errors; what was said is the same however the runtime cut it into lines; the end of a log is the same
//! however it was cut into blocks, and whether it was rotated before or not.

use std::fs;
use std::path::PathBuf;

use beelet::logs::cri_line::{Stream, parse};
use beelet::logs::tail::{LAST_BYTES, LAST_LINES, last_words};
use tempfile::TempDir;

use crate::Bytes;

/// A log is made so long at most, which is less than what is read of one.
const LONGEST: usize = 100 << 10;

pub(super) fn check(data: &[u8]) {
    let mut choices = Bytes::new(data);
    let (turn, times, cut) = (choices.byte(), 1 + choices.below(64), usize::from(choices.byte()));
    let said = choices.rest();
    let log = if turn & 1 == 0 {
        said.to_vec()
    } else {
        let cuts = [usize::from(turn >> 1), cut];
        recorded(said, cuts[0], "stdout").into_iter().for_each(|line| whole_line(&line));
        let lines = recorded(said, cuts[0], "stderr");
        assert_eq!(spoken(&lines), said, "cut after {} bytes", cuts[0]);
        assert_eq!(spoken(&recorded(said, cuts[1], "stderr")), said, "cut after {} bytes", cuts[1]);
        lines.concat()
    };
    for line in log.split_inclusive(|byte| *byte == b'\n') {
        any_line(line);
    }
    let times = times.min(LONGEST / log.len().max(1)).max(1);
    let log = log.repeat(times);
    if log.len() <= LONGEST {
        ends(&log, cut);
    }
}

/// As a runtime writes it: lines of at most so many bytes.
fn recorded(said: &[u8], most: usize, stream: &str) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for line in said.split_inclusive(|byte| *byte == b'\n') {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let mut parts: Vec<&[u8]> = text.chunks(most.max(1)).collect();
        if parts.is_empty() {
            parts.push(b"");
        }
        let last = parts.len() - 1;
        for (n, part) in parts.into_iter().enumerate() {
            let tag = if n < last || line.len() == text.len() { "P" } else { "F" };
            let head = format!("2026-11-30T01:02:03.{:09}Z {stream} {tag} ", lines.len());
            lines.push([head.as_bytes(), part, b"\n"].concat());
        }
    }
    lines
}

fn spoken(lines: &[Vec<u8>]) -> Vec<u8> {
    lines.iter().flat_map(|line| parse(line).expect("a line of a log").text.to_vec()).collect()
}

fn whole_line(line: &[u8]) {
    let read = parse(line).expect("a line of a log");
    assert_eq!(read.stream, Stream::Stdout);
    assert_eq!(read.partial, !read.text.ends_with(b"\n"));
    // Cut anywhere in its head it is none, and nothing of what was said is made up.
    for end in 0..line.len().min(60) {
        if let Ok(cut) = parse(&line[..end]) {
            assert!(line.starts_with(&line[..end]) && read.text.starts_with(cut.text), "cut after {end}");
        }
    }
}

fn any_line(line: &[u8]) {
    match parse(line) {
        Ok(read) => {
            let bare = line.strip_suffix(b"\n").unwrap_or(line);
            assert!(line.ends_with(read.text) || (read.partial && bare.ends_with(read.text)));
            assert!(!read.partial || !read.text.ends_with(b"\n"));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

thread_local! {
    static FOLDER: TempDir = TempDir::new().expect("a folder for logs");
}

/// What [`last_words`] reads from files is the end of all the lines.
fn ends(log: &[u8], cut: usize) {
    let lines: Vec<&[u8]> = log.split_inclusive(|byte| *byte == b'\n').collect();
    let expected = end_of(&lines);
    let (file, rotated) = FOLDER.with(|folder| {
        let file: PathBuf = folder.path().join("0.log");
        (file, folder.path().join("0.log.20261130-010203"))
    });
    let read = || last_words(&file).expect("a log that can be read");
    let _ = fs::remove_file(&rotated);
    fs::write(&file, log).expect("a log to write");
    assert_eq!(read(), expected, "in one file");
    // A rotation cuts between lines.
    let (before, after) = lines.split_at(cut.min(lines.len()));
    fs::write(&rotated, before.concat()).expect("a log to write");
    fs::write(&file, after.concat()).expect("a log to write");
    assert_eq!(read(), expected, "rotated after {} lines", before.len());
}

fn end_of(lines: &[&[u8]]) -> String {
    let (mut taken, mut bytes) = (Vec::new(), 0);
    for line in lines.iter().rev() {
        if taken.len() >= LAST_LINES || bytes >= LAST_BYTES {
            break;
        }
        let text = parse(line).map_or(*line, |line| line.text);
        bytes += text.len();
        taken.push(text);
    }
    taken.reverse();
    let all = taken.concat();
    String::from_utf8_lossy(&all[all.len().saturating_sub(LAST_BYTES)..]).into_owned()
}
