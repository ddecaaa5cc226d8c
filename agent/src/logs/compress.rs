//! Compresses a rotated log with gzip.
//!
//! Problem: it costs a fifth of a second of a core for 10 MiB, on a node that may have none to spare, while the log that it was taken
//! from may be full again already. Approach: it works at most a quarter of the time, and gives up as soon as its file was removed
//! because there were too many: of a log that fills faster than it is compressed the files go uncompressed.
//!
//! Properties (tested): the compressed file appears whole, by a rename, before the other goes; it has its mode.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use tokio_util::sync::CancellationToken;

use super::files::{LogFiles, Stamp, remove};
use super::tail::open;

/// So long it works at once.
const WORK: Duration = Duration::from_millis(5);
/// And rests between.
const REST: Duration = Duration::from_millis(15);

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressed {
    /// It is compressed.
    Done,
    /// It was removed meanwhile, or the agent ends.
    GivenUp,
}

/// Compresses one file. Blocks.
///
/// # Errors
/// A file cannot be read or written; the uncompressed one stays then.
pub fn compress(files: &LogFiles, stamp: &Stamp, stop: &CancellationToken) -> io::Result<Compressed> {
    let (from, temporary, to) = files.to_compress(stamp);
    let made = write(&from, &temporary, stop);
    match made {
        Ok(Compressed::Done) => {
            fs::rename(&temporary, to)?;
            remove(&from)?;
        }
        _ => remove(&temporary)?,
    }
    match made {
        // The folder went with its pod.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Compressed::GivenUp),
        made => made,
    }
}

fn write(from: &std::path::Path, to: &std::path::Path, stop: &CancellationToken) -> io::Result<Compressed> {
    let mut source = open(from)?;
    remove(to)?;
    // Never through a link that somebody put there.
    let target = OpenOptions::new().write(true).create_new(true).mode(source.metadata()?.mode() & 0o777).open(to)?;
    let mut gzip = GzEncoder::new(target, Compression::default());
    let mut buffer = vec![0; 64 << 10];
    let mut began = Instant::now();
    loop {
        let read = source.read(&mut buffer)?;
        if read == 0 {
            gzip.finish()?;
            return Ok(Compressed::Done);
        }
        gzip.write_all(&buffer[..read])?;
        if began.elapsed() >= WORK {
            if stop.is_cancelled() || source.metadata()?.nlink() == 0 {
                return Ok(Compressed::GivenUp);
            }
            std::thread::sleep(REST);
            began = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn rotated(dir: &tempfile::TempDir, content: &[u8]) -> (LogFiles, Stamp) {
        let files = LogFiles::of(&dir.path().join("0.log")).unwrap();
        fs::write(files.current(), content).unwrap();
        fs::set_permissions(files.current(), fs::Permissions::from_mode(0o640)).unwrap();
        let stamp = files.rotate("20260101-000000").unwrap();
        (files, stamp)
    }

    #[test]
    fn a15_4c_what_is_compressed_is_the_same_and_stands_alone() {
        let dir = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let (files, stamp) = rotated(&dir, &content);
        // What an agent that was killed left.
        fs::write(dir.path().join("0.log.20260101-000000.tmp"), "half").unwrap();
        assert_eq!(compress(&files, &stamp, &CancellationToken::new()).unwrap(), Compressed::Done);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names, ["0.log.20260101-000000.gz"]);
        let file = fs::File::open(dir.path().join("0.log.20260101-000000.gz")).unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        let mut back = Vec::new();
        flate2::read::GzDecoder::new(file).read_to_end(&mut back).unwrap();
        assert_eq!(back, content);
    }

    #[test]
    fn a15_4c_what_is_gone_or_no_file_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let (files, stamp) = rotated(&dir, b"text");
        let path = dir.path().join("0.log.20260101-000000");
        fs::remove_file(&path).unwrap();
        assert_eq!(compress(&files, &stamp, &CancellationToken::new()).unwrap(), Compressed::GivenUp);
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        compress(&files, &stamp, &CancellationToken::new()).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a15_4c_an_agent_that_ends_does_not_wait_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = (0..32_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (files, stamp) = rotated(&dir, &noise);
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(compress(&files, &stamp, &stop).unwrap(), Compressed::GivenUp);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the uncompressed file stays alone");
    }
}
