//! How much disk space is used below a folder, found out bit by bit.
//!
//! **Problem.** `du` forks, and goes through a million files in one go, for a folder that belongs to somebody who may fill it with
//! anything: links out of it, loops, mounts, folders a thousand levels deep, files that vanish.
//!
//! **Approach.** A depth-first walk that stops when its budget is spent and goes on where it stopped: each open folder is remembered
//! by its name, its inode and the place in its listing (the file system's own cookie, as NFS uses it). Between two steps nothing
//! is held open, so that a volume can be unmounted at any time.
//!
//! **Terms.** As `du -x` counts: allocated blocks of 512 bytes of files, folders, links and the rest, each inode once. *Skipped*:
//! folders that cannot be read, or lie deeper than [`DEEPEST`]; what is below them is not in the sum.
//!
//! **Properties** (tested against a plain walk and `du`): symbolic links are never followed, also not ones put in place of a folder
//! during the walk (`openat2` with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV`, Linux 5.6); other file systems and bind
//! mounts are not entered; a file with several names counts once (beyond [`MOST_LINKS`] such files, each name counts its share); what
//! vanishes during the walk is no error. What is made, moved or removed during a walk may be counted or not, as with `du`.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use beelet_core::units::Bytes;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, fstat, open, openat2,
    statx,
};
use rustix::io::Errno;

/// Folders below so many others are not entered.
pub(super) const DEEPEST: usize = 512;
/// Inodes with several names are remembered up to this number: 8 bytes each.
pub(super) const MOST_LINKS: usize = 1 << 18;
/// So many folders are open at once during a step.
const MOST_OPEN: usize = 32;

/// How much a step may do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Entries looked at, openings of folders included.
    pub(super) entries: u64,
    /// Ends at this moment at the latest, give or take 32 entries.
    pub(super) until: Instant,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// Allocated.
    pub(super) used: Bytes,
    /// Inodes, the folder itself included.
    pub(super) inodes: u64,
    /// Folders that could not be entered.
    pub(super) skipped: u64,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The budget is spent.
    More,
    /// This is all.
    Done(Sum),
    /// The folder is gone, or another one took its place.
    Gone,
}

/// A walk under way.
#[derive(Debug)]
pub(super) struct Walk {
    root: PathBuf,
    device: (u32, u32),
    frames: Vec<Frame>,
    sum: Sum,
    linked: HashSet<u64>,
    /// Entries looked at so far.
    pub(super) entries: u64,
}

/// A folder that the walk is in.
#[derive(Debug)]
struct Frame {
    name: CString,
    inode: u64,
    /// Where in its listing.
    cookie: i64,
    dir: Option<Dir>,
}

impl Walk {
    /// A walk of this folder; `None` if there is no such folder.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn of(root: &Path) -> rustix::io::Result<Option<Self>> {
        let status = match look(CWD, root) {
            Ok(status) if is_dir(&status) => status,
            Ok(_) | Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut walk = Self {
            root: root.to_owned(),
            device: (status.stx_dev_major, status.stx_dev_minor),
            frames: vec![Frame { name: CString::default(), inode: status.stx_ino, cookie: 0, dir: None }],
            sum: Sum::default(),
            linked: HashSet::new(),
            entries: 1,
        };
        walk.count(&status);
        Ok(Some(walk))
    }

    /// Goes on for as much as the budget allows, and takes from it what was used.
    pub(super) fn step(&mut self, budget: &mut Budget) -> Step {
        let before = self.entries;
        let step = self.go_on(budget, before);
        budget.entries = budget.entries.saturating_sub((self.entries - before).max(1));
        for frame in &mut self.frames {
            frame.dir = None;
        }
        step
    }

    fn go_on(&mut self, budget: &Budget, before: u64) -> Step {
        let mut checked = before;
        loop {
            if self.entries - before >= budget.entries.max(2) {
                return Step::More;
            }
            // The clock is not free either.
            if self.entries - checked >= 32 {
                checked = self.entries;
                if Instant::now() >= budget.until {
                    return Step::More;
                }
            }
            let depth = self.frames.len();
            let Some(frame) = self.frames.last_mut() else { return Step::Done(self.sum) };
            let Some(dir) = &mut frame.dir else {
                self.entries += 1;
                match self.enter() {
                    Ok(()) => {}
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE) if depth == 1 => return Step::Gone,
                    // Gone, or something else is in its place.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE | Errno::XDEV) => {
                        self.frames.pop();
                    }
                    Err(_) => {
                        self.sum.skipped += 1;
                        self.frames.pop();
                    }
                }
                continue;
            };
            let entry = match dir.read() {
                None => {
                    self.frames.pop();
                    continue;
                }
                Some(Err(error)) => {
                    self.sum.skipped += u64::from(error != Errno::NOENT);
                    self.frames.pop();
                    continue;
                }
                Some(Ok(entry)) => entry,
            };
            frame.cookie = entry.offset();
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            self.entries += 1;
            let Ok(status) = dir.fd().and_then(|fd| look(fd, name)) else { continue };
            let elsewhere = (status.stx_dev_major, status.stx_dev_minor) != self.device;
            if elsewhere || status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
                continue;
            }
            let below = Frame { name: name.to_owned(), inode: status.stx_ino, cookie: 0, dir: None };
            self.count(&status);
            if !is_dir(&status) {
                continue;
            }
            if depth > DEEPEST {
                self.sum.skipped += 1;
                continue;
            }
            self.frames.push(below);
            if depth >= MOST_OPEN {
                self.frames[depth - MOST_OPEN].dir = None;
            }
        }
    }

    /// Opens the deepest folder, at its place in its listing.
    fn enter(&mut self) -> rustix::io::Result<()> {
        const HOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_XDEV);
        const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
        let last = self.frames.len() - 1;
        // From the deepest one above that is open, or from the root; one name at a time, as the path may be of any length.
        let above = self.frames[..last].iter().rposition(|frame| frame.dir.is_some());
        let mut way: Option<OwnedFd> = None;
        if above.is_none() {
            let flags = FOLDER | if last == 0 { OFlags::RDONLY } else { OFlags::PATH };
            let root = open(&self.root, flags, Mode::empty())?;
            if fstat(&root)?.st_ino != self.frames[0].inode {
                return Err(Errno::STALE);
            }
            way = Some(root);
        }
        for at in above.map_or(1, |above| above + 1)..=last {
            let flags = FOLDER | if at == last { OFlags::RDONLY } else { OFlags::PATH };
            let name = &self.frames[at].name;
            let next = match (&way, above.and_then(|above| self.frames[above].dir.as_ref())) {
                (Some(from), _) => openat2(from, name, flags, Mode::empty(), HOW)?,
                (None, Some(dir)) => openat2(dir.fd()?, name, flags, Mode::empty(), HOW)?,
                (None, None) => return Err(Errno::STALE),
            };
            way = Some(next);
        }
        let fd = way.ok_or(Errno::STALE)?;
        let frame = &mut self.frames[last];
        if fstat(&fd)?.st_ino != frame.inode {
            return Err(Errno::STALE);
        }
        let mut dir = Dir::new(fd)?;
        if frame.cookie != 0 {
            dir.seek(frame.cookie)?;
        }
        frame.dir = Some(dir);
        Ok(())
    }

    fn count(&mut self, status: &Statx) {
        let mut blocks = status.stx_blocks;
        if status.stx_nlink > 1 && !is_dir(status) {
            if self.linked.contains(&status.stx_ino) {
                return;
            }
            if self.linked.len() < MOST_LINKS {
                self.linked.insert(status.stx_ino);
            } else {
                blocks /= u64::from(status.stx_nlink);
            }
        }
        self.sum.used += Bytes(blocks.saturating_mul(512));
        self.sum.inodes += 1;
    }
}

fn look(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<Statx> {
    // What the kernel has in memory is good enough: no question to a server.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    statx(at, name, flags, StatxFlags::TYPE | StatxFlags::NLINK | StatxFlags::INO | StatxFlags::BLOCKS)
}

fn is_dir(status: &Statx) -> bool {
    FileType::from_raw_mode(u32::from(status.stx_mode)) == FileType::Directory
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::process::Command;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn budget(entries: u64) -> Budget {
        Budget { entries, until: Instant::now() + Duration::from_secs(60) }
    }

    /// Walks to the end in steps of so many entries; how many steps.
    fn walk(root: &Path, entries: u64) -> (Sum, u64) {
        let mut walk = Walk::of(root).unwrap().unwrap();
        for steps in 1.. {
            match walk.step(&mut budget(entries)) {
                Step::More => assert!(walk.frames.iter().all(|frame| frame.dir.is_none())),
                Step::Done(sum) => return (sum, steps),
                Step::Gone => panic!("the folder is there"),
            }
        }
        unreachable!()
    }

    /// What a plain walk says.
    fn plain(root: &Path) -> Sum {
        fn go(path: &Path, seen: &mut BTreeSet<u64>, sum: &mut Sum) {
            let status = fs::symlink_metadata(path).unwrap();
            if seen.insert(status.ino()) {
                sum.used += Bytes(status.blocks() * 512);
                sum.inodes += 1;
            }
            if status.is_dir() {
                for entry in fs::read_dir(path).unwrap() {
                    go(&entry.unwrap().path(), seen, sum);
                }
            }
        }
        let mut sum = Sum::default();
        go(root, &mut BTreeSet::new(), &mut sum);
        sum
    }

    fn du(root: &Path, what: &str) -> u64 {
        let said = Command::new("du").args(["-sx", what]).arg(root).output().unwrap();
        String::from_utf8(said.stdout).unwrap().split('\t').next().unwrap().parse().unwrap()
    }

    #[derive(Clone, Debug)]
    enum Make {
        Folder(usize),
        File(usize, usize),
        HardLink(usize, usize),
        Link(usize, usize),
    }

    fn make() -> impl Strategy<Value = Make> {
        prop_oneof![
            (0..64_usize).prop_map(Make::Folder),
            (0..64_usize, 0..20_000_usize).prop_map(|(at, size)| Make::File(at, size)),
            (0..64_usize, 0..64_usize).prop_map(|(at, to)| Make::HardLink(at, to)),
            (0..64_usize, 0..64_usize).prop_map(|(at, to)| Make::Link(at, to)),
        ]
    }

    /// Makes a tree as told; links lead to folders and files in it, upwards too.
    fn grow(root: &Path, makes: &[Make]) {
        let (mut folders, mut files) = (vec![root.to_owned()], Vec::new());
        for (n, make) in makes.iter().enumerate() {
            let folder = |at: &usize| folders[at % folders.len()].join(format!("n{n}"));
            match make {
                Make::Folder(at) => {
                    let new = folder(at);
                    fs::create_dir(&new).unwrap();
                    folders.push(new);
                }
                Make::File(at, size) => {
                    let new = folder(at);
                    fs::write(&new, vec![1; *size]).unwrap();
                    files.push(new);
                }
                Make::HardLink(at, to) if !files.is_empty() => {
                    fs::hard_link(&files[to % files.len()], folder(at)).unwrap();
                }
                Make::HardLink(..) => {}
                Make::Link(at, to) => symlink(&folders[to % folders.len()], folder(at)).unwrap(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn in_steps_of_any_size_the_sum_is_that_of_a_plain_walk(
            makes in prop::collection::vec(make(), 0..60),
            entries in 1..40_u64,
        ) {
            let root = tempfile::tempdir().unwrap();
            grow(root.path(), &makes);
            let (sum, steps) = walk(root.path(), entries);
            prop_assert_eq!(sum, plain(root.path()));
            // No step is without progress, whatever has to be opened again.
            prop_assert!(steps <= 8 * (makes.len() as u64 + 2), "{} steps", steps);
        }
    }

    #[test]
    fn on_a_quiet_tree_it_is_what_du_says() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..300 {
            let folder = root.path().join(format!("d{}", n % 17)).join(format!("e{}", n % 5));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(format!("f{n}")), vec![7; n * 97]).unwrap();
        }
        fs::hard_link(root.path().join("d1/e1/f1"), root.path().join("again")).unwrap();
        let sparse = fs::File::create(root.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let (low, (sum, _)) = (du(root.path(), "-B1"), walk(root.path(), 50));
        assert_eq!((sum.used, sum.inodes, sum.skipped), (Bytes(low), du(root.path(), "--inodes"), 0));
        assert_eq!(low, du(root.path(), "-B1"));
    }

    #[test]
    fn a_folder_with_many_entries_is_gone_through_in_steps() {
        let root = tempfile::tempdir().unwrap();
        for n in 0..3_000 {
            fs::write(root.path().join(format!("file-{n}")), "x").unwrap();
        }
        let (sum, steps) = walk(root.path(), 100);
        assert_eq!(sum.inodes, 3_001);
        assert!((30..=32).contains(&steps), "{steps}");
        let mut walk = Walk::of(root.path()).unwrap().unwrap();
        let late = Budget { entries: u64::MAX, until: Instant::now() };
        assert_eq!(walk.step(&mut { late }), Step::More);
        assert!(walk.entries <= 40, "{}", walk.entries);
    }

    #[test]
    fn other_file_systems_are_not_entered() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: mounting needs root");
        }
        let root = tempfile::tempdir().unwrap();
        let (other, same, inside) = (root.path().join("other"), root.path().join("same"), root.path().join("inside"));
        for folder in [&other, &same, &inside] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(inside.join("file"), vec![1; 50_000]).unwrap();
        rustix::mount::mount("tmpfs", &other, "tmpfs", rustix::mount::MountFlags::empty(), c"").unwrap();
        rustix::mount::mount_bind(&inside, &same).unwrap();
        fs::write(other.join("file"), vec![1; 100_000]).unwrap();
        let expected = du(&inside, "-B1") + fs::metadata(root.path()).unwrap().blocks() * 512;
        let (sum, _) = walk(root.path(), 3);
        for folder in [&other, &same] {
            rustix::mount::unmount(folder, rustix::mount::UnmountFlags::empty()).unwrap();
        }
        // The root, `inside` and its file. (GNU du would count what is bound twice.)
        assert_eq!((sum.inodes, sum.used), (3, Bytes(expected)));
    }

    #[test]
    fn what_vanishes_or_is_exchanged_on_the_way_is_no_error_and_no_way_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("large"), vec![1; 1 << 20]).unwrap();
        let root = tempfile::tempdir().unwrap();
        for n in 0..50 {
            let folder = root.path().join(format!("d{n}/e"));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("file"), "x").unwrap();
        }
        let mut walk = Walk::of(root.path()).unwrap().unwrap();
        let mut n = 0;
        let sum = loop {
            match walk.step(&mut budget(3)) {
                Step::Done(sum) => break sum,
                Step::Gone => panic!("the folder is there"),
                Step::More => {}
            }
            // The folder that the walk is in makes way for a link.
            if n % 2 == 0 && walk.frames.len() > 1 {
                let path = root.path().join(walk.frames[1].name.to_str().unwrap());
                if path.is_dir() && !path.is_symlink() {
                    fs::remove_dir_all(&path).unwrap();
                    symlink(outside.path(), &path).unwrap();
                }
            }
            n += 1;
        };
        assert!(sum.used < Bytes(1 << 20), "{sum:?}");
        assert_eq!(sum.skipped, 0);
        fs::remove_dir_all(root.path()).unwrap();
        let mut gone = Walk { frames: Vec::new(), ..walk };
        gone.frames.push(Frame { name: CString::default(), inode: 1, cookie: 0, dir: None });
        assert_eq!(gone.step(&mut budget(3)), Step::Gone);
        assert!(Walk::of(root.path()).unwrap().is_none());
    }

    #[test]
    fn deep_folders_are_walked_and_those_too_deep_are_told() {
        let root = tempfile::tempdir().unwrap();
        // Deeper than a path may be long.
        let mut at = open(root.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        let name = CString::new("x".repeat(200)).unwrap();
        for _ in 0..DEEPEST + 3 {
            rustix::fs::mkdirat(&at, name.as_c_str(), Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name.as_c_str(), OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let (sum, _) = walk(root.path(), 40);
        assert_eq!((sum.inodes, sum.skipped), (DEEPEST as u64 + 2, 1));
        assert_eq!(walk(root.path(), 1_000_000).0, sum);
        let done = Command::new("rm").arg("-rf").arg(root.path()).status().unwrap();
        assert!(done.success());
    }
}
