//! Opening what lies below a folder without ever leaving it.
//!
//! Problem: who checks a path by its name and then uses the name again uses what somebody has put there meanwhile; a volume is
//! written by programs that nobody trusts. Approach: the kernel walks (openat2): with `RESOLVE_BENEATH` it follows links as long as
//! they stay below the folder, refuses those that lead out, also when somebody exchanges folders and links while it walks, and what
//! it gives back is the thing itself, which is used from then on by its descriptor and never by its name.
//!
//! Links that stay inside are followed as the kubelet does: volumes that are written as a whole (`..data`) consist of them. In folders
//! that are beelet's own there are none, so there they are refused.
//!
//! Properties (tested): nothing outside of the folder is opened, made or changed, whatever is in it and whoever changes it at the
//! same time.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, fchmod, mkdirat, openat, openat2};
use rustix::io::{Errno, Result};

/// Somebody who renames folders all the time may make the kernel give up a walk; it is tried again so often.
const TRIES: u32 = 64;

/// What is done with symbolic links on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// They are followed if they stay below the folder.
    Beneath,
    /// There must be none.
    Refused,
    /// There must be none, and nothing mounted (`EXDEV`).
    RefusedWithMounts,
}

impl Links {
    fn resolve(self) -> ResolveFlags {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match self {
            Self::Beneath => beneath,
            Self::Refused => beneath | ResolveFlags::NO_SYMLINKS,
            Self::RefusedWithMounts => beneath | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
        }
    }
}

/// Opens what is at `path` below `base`. With `O_PATH` nothing happens to what is opened, whatever it is.
pub(super) fn open(base: impl AsFd, path: impl AsRef<Path>, links: Links, flags: OFlags) -> Result<OwnedFd> {
    resolved(base.as_fd(), path.as_ref(), links, flags, Mode::empty())
}

/// Makes the file `path` below `base`, in which nothing is a link or mounted, and opens it for writing.
pub(super) fn make_file(base: impl AsFd, path: &str, mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    resolved(base.as_fd(), path.as_ref(), Links::RefusedWithMounts, flags, Mode::from_raw_mode(mode))
}

/// Opens the folder of that name in `base`.
///
/// # Errors
/// `EXDEV` if something is mounted on it, `ENOTDIR` or `ELOOP` if it is no folder.
pub(super) fn open_folder_here(base: impl AsFd, name: impl AsRef<Path>) -> Result<OwnedFd> {
    open(base, name, Links::RefusedWithMounts, OFlags::RDONLY | OFlags::DIRECTORY)
}

fn resolved(base: BorrowedFd<'_>, path: &Path, links: Links, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match openat2(base, path, flags | OFlags::CLOEXEC, mode, links.resolve()) {
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            opened => return opened,
        }
    }
}

/// Opens what a path on the node leads to, as the runtime would: links are followed.
pub(super) fn open_named(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty())
}

/// Makes the folders of `path` that are not there below `base`, with this mode whatever the umask is; those that are there stay as
/// they are (pkg/volume/util/subpath, SafeMakeDir).
pub(super) fn make_folders(base: impl AsFd, path: &str, mode: u32) -> Result<()> {
    let base = base.as_fd();
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    let mut folder = open(base, ".", Links::Beneath, OFlags::PATH | OFlags::DIRECTORY)?;
    let mut there = 0;
    for n in 1..=parts.len() {
        match open(base, parts[..n].join("/"), Links::Beneath, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(found) => (folder, there) = (found, n),
            Err(Errno::NOENT) => break,
            Err(error) => return Err(error),
        }
    }
    for part in &parts[there..] {
        folder = make_folder(&folder, part, mode)?;
    }
    Ok(())
}

/// Makes a folder in another one unless it is there, and opens it. A link of that name is an error, also one that leads nowhere.
pub(super) fn make_folder(folder: impl AsFd, name: &str, mode: u32) -> Result<OwnedFd> {
    let folder = folder.as_fd();
    let made = match mkdirat(folder, name, Mode::from_raw_mode(mode)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error),
    };
    // Whoever exchanges it now can exchange it for another folder of the same volume at most.
    let opened = open(folder, name, Links::Refused, OFlags::RDONLY | OFlags::DIRECTORY)?;
    if made {
        fchmod(&opened, Mode::from_raw_mode(mode))?;
    }
    Ok(opened)
}

/// The name of an open file by which the kernel takes the file itself, whatever lies now at the path by which it was opened. It
/// lives no longer than what it names: the number would be another file's then.
pub(super) struct Itself<'a> {
    path: PathBuf,
    _file: BorrowedFd<'a>,
}

impl Itself<'_> {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// See [`Itself`].
pub(super) fn itself(file: BorrowedFd<'_>) -> Itself<'_> {
    Itself { path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())), _file: file }
}

/// The names in an open folder.
pub(super) fn names(folder: impl AsFd) -> Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}
