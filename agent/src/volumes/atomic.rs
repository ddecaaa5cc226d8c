//! Writes the files of a volume so that nobody sees half of them.
//!
//! Problem: programs read a volume's files while they change, the agent may be killed at any moment, and a privileged container may have
//! put links where the agent is about to write. Approach: the kubelet's layout (pkg/volume/util/atomic_writer.go, release 1.37): the files
//! are in a folder with the time in its name, `..data` is a link to that folder, and what users see are links through `..data`. All
//! files change at the one moment at which `..data` is replaced. What is to be done is a list of [`Step`]s, made from what is there;
//! each is done by file descriptors below the volume's own (openat2, no link followed).
//!
//! Unlike the kubelet's, a writer that was killed leaves nothing that stops the next: leftovers are removed first.
//!
//! Properties (tested): after any number of steps a reader finds of every name that stays either the old or the new content, and those
//! of all names belong together; the writer can be started anew after any step; nothing outside of the volume is written or removed;
//! what is as it should be is not written again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use beelet_core::content::{File, Files};
use rustix::fs::{AtFlags, Dir, FileType, FsWord, Gid, Mode, OFlags};
use rustix::io::Errno;

use super::Error;
use super::safe::{self, Links};

/// The link to the folder with the files.
const DATA: &str = "..data";
/// Under this name a link is made, before it takes its place.
const NEXT: &str = "..data_tmp";
/// `f_type` of a tmpfs.
const TMPFS: FsWord = 0x0102_1994;

/// A volume to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// Its folder, which is there. Those above it are the agent's alone.
    pub(super) dir: &'a Path,
    /// It must be in memory: what is secret does not go to a disk because a mount is missing.
    pub(super) in_memory: bool,
    /// `fsGroup`: whose the files are; the group may read all of them.
    pub(super) group: Option<u32>,
}

/// A thing to be done. Names without a slash are entries of the volume's own folder.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Remove an entry with everything in it.
    Discard(String),
    /// Make a folder, by its path.
    Folder(String),
    /// Write a new file, by its path.
    File(String, File),
    /// Make a link under [`NEXT`].
    Link(String),
    /// Give it its name.
    Rename(String),
}

/// What is in a volume.
#[derive(Debug, Default, PartialEq, Eq)]
struct Present {
    /// Where [`DATA`] leads, if that is a folder of the writer's.
    data: Option<String>,
    /// That folder holds what it should.
    current: bool,
    /// Other entries of the writer's.
    leftovers: Vec<String>,
    /// What users see that is no folder, and whether it is a link through [`DATA`].
    links: BTreeMap<String, bool>,
    /// What users see that is a folder. Others mount something there.
    folders: BTreeSet<String>,
}

impl Target<'_> {
    /// Sees that the volume has these files and no others. `folder` is a new name that begins with `..`. Returns whether anything had to
    /// be done.
    pub(super) fn write(&self, files: &Files, folder: &str) -> Result<bool, Error> {
        let root = self.open()?;
        let present = self.look(&root, files)?;
        let steps = steps(&present, files, folder);
        for step in &steps {
            self.perform(&root, step)?;
        }
        Ok(!steps.is_empty())
    }

    /// Makes a folder in the volume and those above it, for others to mount something on.
    pub(super) fn mount_point(&self, path: &str) -> Result<(), Error> {
        let root = self.open()?;
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            match self.folder(&root, &path[..at]) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        Ok(())
    }

    fn open(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(self.dir, flags, Mode::empty()).map_err(|e| self.failed("open", "", e))?;
        if self.in_memory {
            let found = rustix::fs::fstatfs(&root).map_err(|e| self.failed("look at", "", e))?;
            if found.f_type != TMPFS {
                let why = io::Error::other("it is not in memory (any more)");
                return Err(Error::Io { what: "write the files of", path: self.dir.to_owned(), source: why });
            }
        }
        Ok(root)
    }

    fn failed(&self, what: &'static str, name: &str, error: Errno) -> Error {
        Error::io(what, &self.dir.join(name), error.into())
    }

    fn look(&self, root: &OwnedFd, files: &Files) -> Result<Present, Error> {
        let mut found = Present::default();
        let link = |name: &str| match rustix::fs::readlinkat(root, name, Vec::new()) {
            Ok(to) => Ok(Some(to.to_string_lossy().into_owned())),
            Err(Errno::NOENT | Errno::INVAL) => Ok(None),
            Err(e) => Err(self.failed("read the link", name, e)),
        };
        let data = link(DATA)?.filter(|to| is_own(to) && !to.contains('/') && to != DATA && to != NEXT);
        for (name, kind) in self.entries(root, "")? {
            if is_own(&name) {
                // One that is no link at all could not be replaced by one.
                let stays = Some(&name) == data.as_ref() || (name == DATA && kind == FileType::Symlink);
                if !stays {
                    found.leftovers.push(name);
                }
            } else if kind == FileType::Directory {
                found.folders.insert(name);
            } else {
                let right = link(&name)?.is_some_and(|to| to == through_data(&name));
                found.links.insert(name, right);
            }
        }
        if let Some(data) = data {
            found.current = self.holds(root, &data, files);
            found.data = Some(data);
        }
        Ok(found)
    }

    /// The entries of a folder.
    fn entries(&self, root: &OwnedFd, folder: &str) -> Result<Vec<(String, FileType)>, Error> {
        let failed = |e| self.failed("list", folder, e);
        let path = if folder.is_empty() { "." } else { folder };
        let opened = safe::open_folder_here(root, path).map_err(failed)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&opened).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            // Names that are not text are nobody's here: the writer makes none.
            let Ok(name) = std::str::from_utf8(name) else { continue };
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let found = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW);
                    FileType::from_raw_mode(found.map_err(failed)?.st_mode)
                }
                known => known,
            };
            entries.push((name.to_owned(), kind));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    }

    /// Whether a folder of the writer's holds these files and no others. What cannot be read is not as it should be.
    fn holds(&self, root: &OwnedFd, data: &str, files: &Files) -> bool {
        let (folders, mut left) = (folders_of(files), files.len());
        for folder in std::iter::once(String::new()).chain(folders.iter().cloned()) {
            let path = below(data, &folder);
            let Ok(entries) = self.entries(root, &path) else { return false };
            for (name, _) in entries {
                let name = below(&folder, &name);
                match files.get(&name) {
                    Some(file) if self.is_as(root, &below(data, &name), file).unwrap_or(false) => left -= 1,
                    None if folders.contains(&name) => {}
                    _ => return false,
                }
            }
        }
        left == 0
    }

    fn is_as(&self, root: &OwnedFd, path: &str, wanted: &File) -> io::Result<bool> {
        // Whoever put a pipe there must not hold the agent up.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = safe::open(root, path, Links::RefusedWithMounts, flags)?;
        let found = rustix::fs::fstat(&opened)?;
        let ours = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
            && u64::try_from(found.st_size).is_ok_and(|size| size == wanted.data.len() as u64)
            && found.st_mode & 0o7777 == self.mode(wanted)
            && self.group.is_none_or(|group| group == found.st_gid);
        if !ours {
            return Ok(false);
        }
        let mut data = Vec::with_capacity(wanted.data.len());
        fs::File::from(opened).take(wanted.data.len() as u64 + 1).read_to_end(&mut data)?;
        Ok(data == wanted.data)
    }

    /// pkg/volume/volume_linux.go, changeFilePermission, of volumes that are read-only.
    fn mode(&self, file: &File) -> u32 {
        file.mode | if self.group.is_some() { 0o440 } else { 0 }
    }

    fn perform(&self, root: &OwnedFd, step: &Step) -> Result<(), Error> {
        match step {
            Step::Discard(name) => self.discard(root, name),
            Step::Folder(path) => self.folder(root, path),
            Step::File(path, file) => self.file(root, path, file),
            Step::Link(to) => {
                rustix::fs::symlinkat(to.as_str(), root, NEXT).map_err(|e| self.failed("make the link", NEXT, e))
            }
            Step::Rename(name) => rustix::fs::renameat(root, NEXT, root, name.as_str())
                .map_err(|e| self.failed("put in its place the link", name, e)),
        }
    }

    fn discard(&self, root: &OwnedFd, name: &str) -> Result<(), Error> {
        match rustix::fs::unlinkat(root, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            // What a privileged container mounted in it is the node's.
            Err(Errno::ISDIR | Errno::PERM) => super::remove::unmounted(&self.dir.join(name)),
            Err(e) => Err(self.failed("remove", name, e)),
        }
    }

    fn folder(&self, root: &OwnedFd, path: &str) -> Result<(), Error> {
        let failed = |e| self.failed("make the folder", path, e);
        let (above, name) = path.rsplit_once('/').unwrap_or((".", path));
        let above = safe::open_folder_here(root, above).map_err(failed)?;
        rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
        let made = safe::open_folder_here(&above, name).map_err(failed)?;
        self.give(&made, if self.group.is_some() { 0o2755 } else { 0o755 }).map_err(failed)
    }

    fn file(&self, root: &OwnedFd, path: &str, file: &File) -> Result<(), Error> {
        let failed = |e: io::Error| Error::io("write", &self.dir.join(path), e);
        let made = safe::make_file(root, path, 0o600);
        let mut made = fs::File::from(made.map_err(|e| failed(e.into()))?);
        made.write_all(&file.data).map_err(failed)?;
        self.give(&OwnedFd::from(made), self.mode(file)).map_err(|e| failed(e.into()))
    }

    fn give(&self, made: &OwnedFd, mode: u32) -> Result<(), Errno> {
        if let Some(group) = self.group {
            rustix::fs::fchown(made, None, Some(Gid::from_raw(group)))?;
        }
        rustix::fs::fchmod(made, Mode::from_raw_mode(mode))
    }
}

/// A name that only the writer uses; no path of a volume begins so.
fn is_own(name: &str) -> bool {
    name.starts_with("..")
}

fn through_data(name: &str) -> String {
    format!("{DATA}/{name}")
}

fn below(folder: &str, name: &str) -> String {
    match (folder, name) {
        ("", path) | (path, "") => path.to_owned(),
        _ => format!("{folder}/{name}"),
    }
}

/// All folders above files, each before those in it.
fn folders_of(files: &Files) -> BTreeSet<String> {
    files.keys().flat_map(|path| path.match_indices('/').map(|(at, _)| path[..at].to_owned())).collect()
}

/// What users see: the first parts of all paths.
fn shown(files: &Files) -> BTreeSet<&str> {
    files.keys().map(|path| path.split('/').next().unwrap_or_default()).collect()
}

/// What is to be done to what is there, so that it has these files. Pure.
fn steps(present: &Present, files: &Files, folder: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = present.leftovers.iter().cloned().map(Step::Discard).collect();
    if !present.current {
        // A clock that was set back must not name the folder that is in use.
        let taken = present.data.as_deref() == Some(folder);
        let folder = if taken { format!("{folder}x") } else { folder.to_owned() };
        steps.push(Step::Folder(folder.clone()));
        steps.extend(folders_of(files).iter().map(|path| Step::Folder(below(&folder, path))));
        steps.extend(files.iter().map(|(path, file)| Step::File(below(&folder, path), file.clone())));
        steps.push(Step::Link(folder));
        steps.push(Step::Rename(DATA.to_owned()));
    }
    let shown = shown(files);
    for name in &shown {
        let is_right = present.links.get(*name).copied().unwrap_or_default();
        if !is_right && !present.folders.contains(*name) {
            steps.push(Step::Link(through_data(name)));
            steps.push(Step::Rename((*name).to_owned()));
        }
    }
    // What somebody else has put there stays: something may be mounted on it.
    let stale = present.links.iter().filter(|(name, ours)| **ours && !shown.contains(name.as_str()));
    steps.extend(stale.map(|(name, _)| Step::Discard(name.clone())));
    if let Some(old) = present.data.clone().filter(|_| !present.current) {
        steps.push(Step::Discard(old));
    }
    steps
}

#[cfg(test)]
mod tests;
