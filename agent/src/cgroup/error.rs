//! What can go wrong, with the file, the value and what to do.

use std::io;
use std::path::{Path, PathBuf};

use super::remove::Leftover;

/// Why a control group could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of mounts could not be read.
    #[error("cannot read {file}: {source}; is /proc mounted?")]
    Mounts {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no cgroup2 mount.
    #[error(
        "no cgroup2 file system is mounted; mount one with `mount -t cgroup2 cgroup2 /sys/fs/cgroup` (or .../unified)"
    )]
    NoUnified,
    /// A controller that pods need is in no hierarchy.
    #[error(
        "the {0} controller is in no mounted hierarchy; enable it in the kernel's command line (cgroup_enable={0})"
    )]
    NoController(&'static str),
    /// A path that is not relative and plain.
    #[error("cgroup path {0:?} must be relative to the hierarchies, without empty, `.` or `..` parts")]
    Path(String),
    /// A folder could not be made.
    #[error(
        "cannot make the cgroup {path}: {message}; beelet needs to run as root with the cgroup file systems writable"
    )]
    Create {
        /// Which folder.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A value was refused.
    #[error("cannot write {value:?} to {file}: {message}{hint}")]
    Write {
        /// Which file.
        file: PathBuf,
        /// The value.
        value: String,
        /// Why.
        message: String,
        /// What to do, with its separator; may be empty.
        hint: &'static str,
        /// The kernel's error number, where it is known.
        errno: Option<i32>,
    },
    /// The write went through, and the file holds something else.
    #[error(
        "wrote {wrote} to {file}, and the kernel kept {kept}; something else writes this file, or the value is out of its range"
    )]
    Kept {
        /// Which file.
        file: PathBuf,
        /// What was written.
        wrote: String,
        /// What is there.
        kept: String,
    },
    /// A file could not be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no number where one was expected.
    #[error("{file} holds {text:?}, which is not what this kernel interface is documented to hold")]
    Parse {
        /// Which file.
        file: PathBuf,
        /// Its content.
        text: String,
    },
    /// The kernel has no such file.
    #[error("{what} is not supported here: {file} does not exist ({needs})")]
    Unsupported {
        /// The knob.
        what: &'static str,
        /// The file that is missing.
        file: PathBuf,
        /// What would have it.
        needs: &'static str,
    },
    /// Folders could not be removed in time.
    #[error("cgroups left after {waited_ms} ms: {}; a process in them does not die (state D?), see cgroup.procs", list(.left))]
    Leftovers {
        /// How long it was tried.
        waited_ms: u64,
        /// What is left.
        left: Vec<Leftover>,
    },
}

impl Error {
    /// The cgroup or its file is not there (any more).
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Read { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
                    || source.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
            }
            Self::Write { errno, .. } => {
                [rustix::io::Errno::NOENT, rustix::io::Errno::NODEV].iter().any(|e| *errno == Some(e.raw_os_error()))
            }
            _ => false,
        }
    }

    pub(super) fn read(file: &Path, source: io::Error) -> Self {
        Self::Read { file: file.to_owned(), source }
    }

    pub(super) fn write(file: &Path, value: &str, source: &io::Error) -> Self {
        Self::Write {
            file: file.to_owned(),
            value: value.to_owned(),
            message: source.to_string(),
            hint: hint(source.raw_os_error()),
            errno: source.raw_os_error(),
        }
    }

    /// From an error of cgroups-rs, whose cause is the system's error.
    pub(super) fn library(file: &Path, value: &str, error: &cgroups_rs::fs::error::Error) -> Self {
        let cause = std::error::Error::source(error).and_then(|c| c.downcast_ref::<io::Error>());
        cause.map_or_else(
            || Self::Write {
                file: file.to_owned(),
                value: value.to_owned(),
                message: error.to_string(),
                hint: "",
                errno: None,
            },
            |cause| Self::write(file, value, cause),
        )
    }
}

/// What usually helps against an error number of a cgroup file.
fn hint(errno: Option<i32>) -> &'static str {
    use rustix::io::Errno;
    match errno.map(Errno::from_raw_os_error) {
        Some(Errno::BUSY) => "; more is in use than can be reclaimed: a higher limit, or less use, is needed",
        Some(Errno::INVAL) => "; the value is out of range, above the parent's, or below a child's",
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => "; beelet needs root and writable cgroup file systems",
        Some(Errno::NOSPC) => {
            "; the kernel has no room for more cgroups (cgroup.max.descendants, or ids of dying ones)"
        }
        Some(Errno::NOENT | Errno::NODEV) => "; the cgroup is gone",
        _ => "",
    }
}

fn list(left: &[Leftover]) -> String {
    left.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
