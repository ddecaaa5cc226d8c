//! The cgroups of one pod: its own, its containers', and those below them.
//!
//! **Problem.** Containers come and go, make cgroups of their own, and are known by name a moment after they began; to list a pod's
//! directory at each look costs more than to read it. **Approach.** The number of links of a directory tells for 0.5 us whether the
//! number of cgroups in it changed, and that is asked only where something ran. It is listed when that did, when the pod's
//! containers changed by the runtime's word, when a cgroup is found gone, and every [`SCAN_EVERY`].
//!
//! **Terms.** A *child* is a cgroup directly below the pod's: a container, or the sandbox. *Inner* cgroups are those below a child.
//! *Late* ones are gone, but what eBPF counted of them may still grow for a moment (a process is charged at its last switch).
//!
//! **Properties.** At most [`INNER_MOST`] inner cgroups of a child, [`INNER_DEEP`] deep, are counted; more are named in the log.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use beelet_core::spec::PodUid;
use beelet_core::telemetry::{CgroupDetail, Preemptor};
use beelet_core::units::Micros;
use rustix::io::Errno;
use tracing::warn;

use super::open_files::{self, OpenFiles};
use super::owners::Owners;
use super::tally::{Fast, Tally};
use super::watched::Watched;
use crate::kernel::cgroup::{Buffer, Cgroup, CgroupLayout};
use crate::kernel::maps::Counters;

/// A directory is listed at least this often.
pub(super) const SCAN_EVERY: Micros = Micros::secs(10);
/// What is counted of a cgroup that is gone is final after this long.
const FINAL_AFTER: Micros = Micros::millis(50);
/// So many cgroups below a container are counted.
const INNER_MOST: usize = 256;
/// And so deep.
const INNER_DEEP: usize = 8;

/// A cgroup of which only what eBPF counts is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inner {
    pub(super) id: u64,
    pub(super) io_id: Option<u64>,
}

/// What is counted of cgroups that are gone.
#[derive(Debug, Default)]
pub(super) struct Remains {
    late: Vec<(Micros, Inner)>,
    retired: Option<Box<Tally>>,
}

impl Remains {
    pub(super) fn bury(&mut self, at: Micros, inner: Inner) {
        self.late.push((at, inner));
    }

    /// Takes all that is left of a child.
    fn inherit(&mut self, other: Self) {
        self.late.extend(other.late);
        if let Some(more) = other.retired {
            self.retired.get_or_insert_default().join(&more);
        }
    }

    pub(super) fn fast(&self, counters: &Counters, sum: &mut Fast) {
        for (_, inner) in &self.late {
            sum.add(counters, inner.id);
        }
        sum.add_retired(self.retired.as_deref());
    }

    pub(super) fn tally(&self, counters: &Counters, sum: &mut Tally, who: &dyn Fn(u64) -> Option<Preemptor>) {
        for (_, inner) in &self.late {
            sum.add(counters, inner.id, inner.io_id, who);
        }
        if let Some(retired) = &self.retired {
            sum.join(retired);
        }
    }

    /// Takes over what is final. `read_at`: when the counters were read.
    pub(super) fn settle(&mut self, counters: &mut Counters, read_at: Micros, who: &dyn Fn(u64) -> Option<Preemptor>) {
        let Self { late, retired } = self;
        late.retain(|(at, inner)| {
            if read_at < *at + FINAL_AFTER {
                return true;
            }
            let retired = retired.get_or_insert_default();
            retired.add(counters, inner.id, inner.io_id, who);
            retired.retire();
            forget(counters, inner);
            false
        });
    }
}

/// Removes the counters of a cgroup that is gone.
pub(super) fn forget(counters: &mut Counters, inner: &Inner) {
    let disk = inner.io_id.map_or(Ok(()), |id| counters.remove_disk(id));
    if let Err(error) = counters.remove(inner.id).and(disk) {
        warn!(cgroup = inner.id, %error, "counters of a cgroup that is gone cannot be removed");
    }
}

/// A cgroup directly below the pod's.
#[derive(Debug)]
pub(super) struct Child {
    /// The directory's name without what the cgroup driver puts around the runtime's id.
    pub(super) id: String,
    pub(super) watched: Watched,
    pub(super) inner: BTreeMap<PathBuf, Inner>,
    pub(super) remains: Remains,
    pub(super) detail: Option<Arc<CgroupDetail>>,
    /// What is in it of open files, for the pod's sum.
    pub(super) open_files: Option<OpenFiles>,
    /// When these were made.
    pub(super) detail_at: Micros,
    links: Option<u64>,
    seen: bool,
}

impl Child {
    fn new(name: &str, cgroup: Cgroup) -> Self {
        let watched = Watched::new(cgroup);
        let remains = Remains::default();
        // No directory has so many: its inner cgroups are looked for.
        let links = Some(u64::MAX);
        Self {
            id: runtime_id(name),
            watched,
            inner: BTreeMap::new(),
            remains,
            detail: None,
            open_files: None,
            detail_at: Micros::ZERO,
            links,
            seen: true,
        }
    }

    pub(super) fn fast(&self, counters: &Counters) -> Fast {
        let mut sum = Fast::default();
        sum.add(counters, self.watched.id());
        for inner in self.inner.values() {
            sum.add(counters, inner.id);
        }
        self.remains.fast(counters, &mut sum);
        sum
    }

    pub(super) fn tally(&mut self, counters: &Counters, who: &dyn Fn(u64) -> Option<Preemptor>) -> Tally {
        let mut sum = Tally::default();
        let io_id = self.watched.io_id();
        sum.add(counters, self.watched.id(), io_id, who);
        for inner in self.inner.values() {
            sum.add(counters, inner.id, inner.io_id, who);
        }
        self.remains.tally(counters, &mut sum, who);
        sum
    }

    /// Open files of its processes, of those in cgroups below it, too; `None` where they are not known or too many.
    pub(super) fn count_files(&mut self, layout: &CgroupLayout, buffer: &mut Buffer) -> Option<OpenFiles> {
        let mut processes = self.watched.processes(buffer)?;
        for path in self.inner.keys() {
            if processes.len() > open_files::MOST {
                return None;
            }
            let text = match fs::read_to_string(layout.unified().join(path).join("cgroup.procs")) {
                Ok(text) => text,
                // One that is gone has none.
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NODEV)) => continue,
                Err(_) => return None,
            };
            processes.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        }
        open_files::count(Path::new("/proc"), &processes)
    }

    /// Finds the cgroups below.
    fn scan(&mut self, at: &mut Scan<'_>, uid: &PodUid, listing: bool) {
        let links = self.watched.cgroup().children();
        if links == Some(0) && self.inner.is_empty() {
            self.links = links;
            return;
        }
        if !listing && links.is_some() && links == self.links {
            return;
        }
        self.links = links;
        let mut found = BTreeMap::new();
        let whole = descend(at.layout, self.watched.cgroup().relative(), 0, &mut found);
        if !whole && self.inner.len() < found.len() {
            warn!(pod = %uid, container = self.id, "has too many cgroups of its own, or too deep ones: some are not counted by eBPF");
        }
        for (path, inner) in std::mem::take(&mut self.inner) {
            if found.get(&path).is_none_or(|now| now.id != inner.id) {
                at.owners.is_gone(inner.id);
                self.remains.bury(at.now, inner);
            }
        }
        for inner in found.values() {
            at.owners.add(inner.id, uid, &self.id);
        }
        self.inner = found;
    }
}

/// All cgroups below; `false` if there are too many.
fn descend(layout: &CgroupLayout, relative: &Path, depth: usize, found: &mut BTreeMap<PathBuf, Inner>) -> bool {
    let names = subdirectories(&layout.unified().join(relative));
    if depth >= INNER_DEEP {
        return names.is_empty();
    }
    let mut whole = true;
    for name in names {
        if found.len() >= INNER_MOST {
            return false;
        }
        let path = relative.join(name);
        let Ok(id) = inode(&layout.unified().join(&path)) else { continue };
        let io_id = match layout {
            CgroupLayout::V2 { .. } => Some(id),
            CgroupLayout::Hybrid { .. } => layout.directory("blkio", &path).and_then(|path| inode(&path).ok()),
        };
        found.insert(path.clone(), Inner { id, io_id });
        whole &= descend(layout, &path, depth + 1, found);
    }
    whole
}

fn inode(path: &Path) -> io::Result<u64> {
    fs::metadata(path).map(|it| it.ino())
}

/// What a scan works with.
pub(super) struct Scan<'a> {
    pub(super) layout: &'a Arc<CgroupLayout>,
    pub(super) now: Micros,
    pub(super) owners: &'a mut Owners,
}

/// A pod's cgroup with its children.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// `None` until it is made.
    pub(super) own: Option<Watched>,
    /// By the directory's name.
    pub(super) children: BTreeMap<String, Box<Child>>,
    pub(super) remains: Remains,
    links: Option<u64>,
    /// When it is to be listed again.
    scan_due: Micros,
}

impl Tree {
    /// It is listed at the next scan.
    pub(super) fn list_soon(&mut self) {
        self.scan_due = Micros::ZERO;
    }

    /// Finds new cgroups, and buries those that are gone. `ran`: something may have happened since the last time.
    pub(super) fn scan(&mut self, at: &mut Scan<'_>, path: &str, uid: &PodUid, ran: bool) {
        let relative = Path::new(path);
        if self.own.is_none() {
            self.own = open(at.layout, relative).map(Watched::new);
            let Some(own) = &self.own else { return };
            at.owners.add(own.id(), uid, "");
            // A pod may have a limit of its own, whose events are no container's.
            at.owners.is_born(own.id(), relative.to_owned());
            self.list_soon();
        }
        if !ran && at.now < self.scan_due {
            return;
        }
        let links = self.own.as_ref().and_then(|own| own.cgroup().children());
        let listing = at.now >= self.scan_due || links.is_none() || links != self.links;
        if listing {
            (self.links, self.scan_due) = (links, at.now + SCAN_EVERY);
            self.list(at, relative, uid);
        }
        for child in self.children.values_mut() {
            child.scan(at, uid, listing);
        }
    }

    fn list(&mut self, at: &mut Scan<'_>, relative: &Path, uid: &PodUid) {
        for child in self.children.values_mut() {
            child.seen = false;
        }
        for name in subdirectories(&at.layout.unified().join(relative)) {
            if let Some(child) = self.children.get_mut(&name)
                && child.watched.cgroup().exists()
            {
                child.seen = true;
                continue;
            }
            let Some(cgroup) = open(at.layout, &relative.join(&name)) else { continue };
            self.bury(&name, at.now, at.owners);
            let child = Box::new(Child::new(&name, cgroup));
            at.owners.add(child.watched.id(), uid, &child.id);
            at.owners.is_born(child.watched.id(), relative.join(&name));
            self.children.insert(name, child);
        }
        let gone: Vec<String> = self.children.iter().filter(|(_, c)| !c.seen).map(|(name, _)| name.clone()).collect();
        for name in gone {
            self.bury(&name, at.now, at.owners);
        }
    }

    /// A child is gone: what was counted of it stays the pod's.
    pub(super) fn bury(&mut self, name: &str, now: Micros, owners: &mut Owners) {
        let Some(mut child) = self.children.remove(name) else { return };
        let io_id = child.watched.io_id();
        let own = Inner { id: child.watched.id(), io_id };
        for inner in child.inner.into_values().chain([own]) {
            owners.is_gone(inner.id);
            child.remains.bury(now, inner);
        }
        self.remains.inherit(child.remains);
    }

    /// The pod's own cgroup is gone, and all that was in it.
    pub(super) fn bury_all(&mut self, now: Micros, owners: &mut Owners) {
        for name in self.children.keys().cloned().collect::<Vec<_>>() {
            self.bury(&name, now, owners);
        }
        if let Some(mut own) = self.own.take() {
            owners.is_gone(own.id());
            let io_id = own.io_id();
            self.remains.bury(now, Inner { id: own.id(), io_id });
        }
        self.list_soon();
    }

    /// Every cgroup that eBPF may have counted something of.
    pub(super) fn all(&mut self) -> Vec<Inner> {
        let mut all: Vec<Inner> = self.remains.late.drain(..).map(|(_, inner)| inner).collect();
        if let Some(own) = &mut self.own {
            let io_id = own.io_id();
            all.push(Inner { id: own.id(), io_id });
        }
        for child in self.children.values_mut() {
            let io_id = child.watched.io_id();
            all.push(Inner { id: child.watched.id(), io_id });
            all.extend(child.inner.values().cloned());
            all.extend(child.remains.late.drain(..).map(|(_, inner)| inner));
        }
        all
    }

    /// Ids of its living cgroups in the hierarchy of the IO controller, and of those that eBPF may still count for.
    pub(super) fn io_ids(&mut self) -> Vec<u64> {
        let mut ids: Vec<Option<u64>> = self.remains.late.iter().map(|(_, inner)| inner.io_id).collect();
        ids.extend(self.own.as_mut().map(Watched::io_id));
        for child in self.children.values_mut() {
            ids.push(child.watched.io_id());
            ids.extend(child.inner.values().map(|inner| inner.io_id));
            ids.extend(child.remains.late.iter().map(|(_, inner)| inner.io_id));
        }
        ids.into_iter().flatten().collect()
    }

    /// The child that is the sandbox: the first that was made, if it is none of these containers.
    pub(super) fn sandbox(&self, containers: &[(String, String)]) -> Option<&str> {
        let (name, child) = self.children.iter().min_by_key(|(_, child)| child.watched.id())?;
        (!containers.iter().any(|(id, _)| *id == child.id)).then_some(name)
    }
}

fn open(layout: &Arc<CgroupLayout>, path: &Path) -> Option<Cgroup> {
    Cgroup::open_shared(layout, path).unwrap_or_else(|error| {
        warn!(cgroup = %path.display(), %error, "a cgroup cannot be opened");
        None
    })
}

fn subdirectories(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let dirs = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    let mut names: Vec<String> = dirs.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// `<id>`, or with the systemd driver `cri-containerd-<id>.scope`.
fn runtime_id(directory: &str) -> String {
    let name = directory.strip_suffix(".scope").unwrap_or(directory);
    name.rsplit('-').next().unwrap_or(name).to_owned()
}
