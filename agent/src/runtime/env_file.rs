//! The files of `fileKeyRef`: variables that a container has written for those after it (KEP-3721).
//!
//! Problem: whoever writes such a file is not trusted, and the agent reads it as root. Approach: it is opened inside its volume, as if
//! that were the root (a link leads nowhere else), without waiting for a pipe's writer, and read up to [`MAX`]. The syntax is the
//! kubelet's (pkg/kubelet/util/env/env_util.go, ParseEnv, release 1.37): `NAME='value'`, the value as it is and over several lines if need
//! be; comments behind `#`; no space before `=`; what begins with a space after it is empty.
//!
//! Properties (tested): nothing outside of the volume is read; the first of two variables of one name counts; what stands behind it is
//! not looked at.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// Bytes of a file at most. The kubelet has no such limit.
const MAX: u64 = 1 << 20;
/// Bytes of a line at most (Go's bufio.MaxScanTokenSize).
const MAX_LINE: usize = 64 << 10;

/// The text of a file in a volume.
pub(super) fn read(volume: &Path, path: &str) -> Result<String, String> {
    let failed = |error: io::Error| format!("failed to open environment variable file {path:?}: {error}");
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(volume, folder, Mode::empty()).map_err(|e| failed(e.into()))?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = rustix::fs::openat2(&root, path, flags, Mode::empty(), inside).map_err(|e| failed(e.into()))?;
    let found = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(failed(io::Error::other("it is no file")));
    }
    let mut data = Vec::new();
    File::from(file).take(MAX + 1).read_to_end(&mut data).map_err(failed)?;
    if data.len() as u64 > MAX {
        return Err(failed(io::Error::other("it is larger than 1 MiB")));
    }
    String::from_utf8(data).map_err(|_| failed(io::Error::other("it is not UTF-8")))
}

/// The value of a variable in such a text; "" if there is none.
pub(super) fn value(text: &str, key: &str) -> Result<String, String> {
    let fault = |line: usize, why: &str| Err(format!("invalid environment variable format at line {line}: {why}"));
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.len() > MAX_LINE {
            return Err(format!("line {number} is too long"));
        }
        let line = line.trim_start_matches(SPACE);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, rest)) = line.split_once('=') else { return fault(number, "missing '='") };
        if name.trim_end_matches(SPACE).is_empty() {
            return fault(number, "empty variable name");
        }
        if name.ends_with(SPACE) {
            return fault(number, "whitespace before '=' is not allowed");
        }
        if rest.starts_with(SPACE) {
            if name == key {
                return Ok(String::new());
            }
            continue;
        }
        let Some(mut rest) = rest.strip_prefix('\'') else {
            return fault(number, "value must be enclosed in single quotes");
        };
        let (mut value, mut last) = (String::new(), number);
        let after = loop {
            if let Some((end, after)) = rest.split_once('\'') {
                value.push_str(end);
                break after.trim_start_matches(SPACE);
            }
            value.push_str(rest);
            value.push('\n');
            match lines.next() {
                Some((next, _)) if next.len() > MAX_LINE => return Err(format!("line {} is too long", last + 1)),
                Some((next, at)) => (rest, last) = (next, at),
                None => return fault(number, "unclosed single quote"),
            }
        };
        if !after.is_empty() && !after.starts_with('#') {
            return fault(last, "unexpected content after closing quote");
        }
        if name == key {
            return Ok(value);
        }
    }
    Ok(String::new())
}

const SPACE: [char; 2] = [' ', '\t'];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a8_5_variables_are_read_by_the_kubelets_rules() {
        for (text, expected) in [
            ("A='1'", Ok("1")),
            ("\n # comment\n\t A='1' # one\nA='2'\n", Ok("1")),
            ("B='x'\r\nA='1'\r\n", Ok("1")),
            ("A='two\r\n lines $(X) \\n'", Ok("two\n lines $(X) \\n")),
            ("A=''", Ok("")),
            ("A= '1'\nA='2'", Ok("")),
            ("B= '1'\nA='2'", Ok("2")),
            ("B='2'", Ok("")),
            ("", Ok("")),
            ("A='1'\nbroken", Ok("1")),
            ("broken\nA='1'", Err("at line 1: missing '='")),
            ("='1'", Err("at line 1: empty variable name")),
            ("\nA ='1'", Err("at line 2: whitespace before '=' is not allowed")),
            ("A=1", Err("at line 1: value must be enclosed in single quotes")),
            ("A=\"1\"", Err("at line 1: value must be enclosed in single quotes")),
            ("B='a\nb' c\nA='1'", Err("at line 2: unexpected content after closing quote")),
            ("A='1\n2\n", Err("at line 1: unclosed single quote")),
        ] {
            match (value(text, "A"), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text:?}"),
                (Err(found), Err(expected)) => assert!(found.ends_with(expected), "{found}\n{text:?}"),
                (found, _) => panic!("{text:?}: {found:?}, not {expected:?}"),
            }
        }
        assert!(value(&format!("B='{}'\nA='1'", "x".repeat(MAX_LINE)), "A").unwrap_err().contains("too long"));
    }

    #[test]
    fn a8_5_only_files_of_the_volume_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        std::fs::create_dir_all(volume.join("in")).unwrap();
        std::fs::write(dir.path().join("secret"), "A='secret'").unwrap();
        std::fs::write(volume.join("in/env"), "A='1'").unwrap();
        let link = |name: &str, to: &str| symlink(to, volume.join(name)).unwrap();
        link("inside", "/in/env");
        link("up", "../secret");
        link("out", &dir.path().join("secret").display().to_string());
        link("magic", "/proc/self/root/etc/passwd");
        assert_eq!(read(&volume, "in/env").as_deref(), Ok("A='1'"));
        assert_eq!(read(&volume, "/in//env").as_deref(), Ok("A='1'"));
        assert_eq!(read(&volume, "inside").as_deref(), Ok("A='1'"), "the volume is its root");
        for path in ["up", "out", "magic", "../secret", "none", "in"] {
            let error = read(&volume, path).expect_err(path);
            assert!(error.starts_with(&format!("failed to open environment variable file {path:?}: ")), "{error}");
        }
        let pipe = volume.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        assert!(read(&volume, "pipe").unwrap_err().ends_with("it is no file"), "and nobody waits for its writer");
        File::create(volume.join("big")).unwrap().set_len(MAX + 1).unwrap();
        assert!(read(&volume, "big").unwrap_err().contains("larger than"));
        std::fs::write(volume.join("raw"), b"A='\xff'").unwrap();
        assert!(read(&volume, "raw").unwrap_err().contains("not UTF-8"));
    }
}
