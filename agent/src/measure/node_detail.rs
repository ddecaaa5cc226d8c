//! The node's details: what changes slowly, or only people look at.
//!
//! **Approach.** /proc, the root cgroup and the cgroups above pods, `statvfs` of the folders that matter, and the runtime's word for
//! images. The stock kubelet's `/stats/summary` decides what a number means; sources are named beside them.
//!
//! **Properties.** What cannot be read is `None` or left out, and does not hide the rest. Runs on the thread that may wait for a
//! disk. The runtime's process is found by who listens on its socket (`SO_PEERCRED`), so that neither a name nor a path of a cgroup
//! has to be configured; where that is the root cgroup (a test bed), it is left out, as the node itself is told already.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use beelet_core::sample::{CgroupReading, Pressure, PressureReading, Stall};
use beelet_core::telemetry::{CgroupDetail, FsUse, InterfaceReading, NodeDetail, SliceReading};
use beelet_core::units::{Bytes, Micros, Now};
use procfs::{Current as _, CurrentSI as _, FromRead as _};
use rustix::fs::statvfs;
use tracing::debug;

use super::pods::read_cgroup;
use super::room::pids;
use super::storage::{by_runtime, whole};
use crate::clock::Clock;
use crate::kernel::cgroup::{Buffer, Cgroup, CgroupLayout};
use crate::kernel::{links, mountinfo};
use crate::runtime::DiskStats;

/// What the node is read from.
#[derive(Clone, Debug)]
pub struct NodeSources {
    /// Where the cgroups are.
    pub layout: CgroupLayout,
    /// The cgroup of all pods, relative to the hierarchies' roots.
    pub kubepods: PathBuf,
    /// beelet's root folder, whose file system is the node's.
    pub root: PathBuf,
    /// The runtime's socket.
    pub runtime_socket: PathBuf,
}

/// Reads [`NodeDetail`]s.
#[derive(Debug)]
pub(super) struct NodeDetailReader {
    from: NodeSources,
    buffer: Buffer,
    mounts: Mounts,
}

impl NodeDetailReader {
    pub(super) fn new(from: NodeSources) -> Self {
        Self { from, buffer: Buffer::default(), mounts: Mounts::default() }
    }

    /// A reading; `stats` is the runtime's newest word on disks.
    pub(super) fn read(&mut self, stats: Option<&DiskStats>) -> NodeDetail {
        let now = Clock.now();
        let services = self.service_paths();
        let mut it = NodeDetail {
            at: now.mono,
            fs: statvfs(&self.from.root).ok().map(|vfs| FsUse { at: now.wall, ..whole(&vfs) }),
            image_fs: stats.and_then(|stats| stats.images.as_ref()).map(by_runtime),
            // Runtimes that do not tell them apart keep both on one file system.
            container_fs: stats.and_then(|stats| stats.containers.as_ref().or(stats.images.as_ref())).map(by_runtime),
            interfaces: interfaces(),
            pressure: pressure(),
            pids: pids().map(|pids| (pids.most, pids.running)),
            services: self.services(&services),
            slices: self.slices(services),
            filesystems: self.mounts.filesystems(now),
            ..NodeDetail::default()
        };
        cpu(&mut it);
        self.memory(&mut it);
        it
    }

    /// The root cgroup's memory. On v2 it has no `memory.current`: usage is `anon` and `file` of `memory.stat`
    /// (github.com/opencontainers/cgroups, fs2/memory.go, `rootStatsFromMeminfo`, as in Kubernetes 1.36).
    fn memory(&self, it: &mut NodeDetail) {
        if let Ok(memory) = procfs::Meminfo::current() {
            it.swap = Some((Bytes(memory.swap_total.saturating_sub(memory.swap_free)), Bytes(memory.swap_free)));
        }
        let Some(folder) = self.from.layout.directory("memory", Path::new("")) else { return };
        let Ok(text) = fs::read_to_string(folder.join("memory.stat")) else { return };
        let stat: BTreeMap<&str, u64> = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter_map(|(k, v)| Some((k, v.parse().ok()?)))
            .collect();
        let get = |name: &str| stat.get(name).copied();
        let both = |a: Option<u64>, b: Option<u64>| Some((a?, b?));
        if self.from.layout.is_hybrid() {
            let usage = fs::read_to_string(folder.join("memory.usage_in_bytes"));
            it.memory_usage = usage.ok().and_then(|text| text.trim().parse().ok()).map(Bytes);
            it.memory_rss = get("total_rss").map(Bytes);
            it.memory_working_set =
                it.memory_usage.zip(get("total_inactive_file")).map(|(all, file)| all - Bytes(file));
            it.page_faults = both(get("total_pgfault"), get("total_pgmajfault"));
        } else {
            it.memory_usage = both(get("anon"), get("file")).map(|(anon, file)| Bytes(anon.saturating_add(file)));
            it.memory_rss = get("anon").map(Bytes);
            it.memory_working_set = it.memory_usage.zip(get("inactive_file")).map(|(all, file)| all - Bytes(file));
            it.page_faults = both(get("pgfault"), get("pgmajfault"));
        }
    }

    /// The kubelet's `systemContainers`: this agent, the runtime, all pods. Those in the root cgroup are left out.
    fn service_paths(&self) -> Vec<(&'static str, PathBuf)> {
        let own = own_cgroup("self");
        let runtime = runtime_process(&self.from.runtime_socket).and_then(|pid| own_cgroup(&pid.to_string()));
        let all = [("kubelet", own), ("runtime", runtime), ("pods", Some(self.from.kubepods.clone()))];
        let named = all.into_iter().filter_map(|(name, path)| Some((name, path?)));
        named.filter(|(_, path)| !path.as_os_str().is_empty()).collect()
    }

    fn services(&mut self, paths: &[(&str, PathBuf)]) -> Vec<(String, Micros, CgroupReading)> {
        let mut found = Vec::new();
        for (name, path) in paths {
            if let Some((mut cgroup, reading)) = self.cgroup(path) {
                let made = cgroup.limits(&mut self.buffer).ok().and_then(|limits| limits.made).unwrap_or_default();
                found.push(((*name).to_owned(), made, reading));
            }
        }
        found
    }

    /// The cgroup of all pods with those of the QoS classes, those of services, and the node's first-level cgroups.
    fn slices(&mut self, services: Vec<(&str, PathBuf)>) -> Vec<SliceReading> {
        let kubepods = self.from.kubepods.clone();
        let mut paths: BTreeSet<PathBuf> = services.into_iter().map(|(_, path)| path).collect();
        if !kubepods.as_os_str().is_empty() {
            let classes = self.below(&kubepods);
            // Pods of the Guaranteed class lie beside the classes.
            let is_class = |path: &PathBuf| {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                name.contains("burstable") || name.contains("besteffort")
            };
            paths.extend(classes.into_iter().filter(is_class).take(2));
            paths.insert(kubepods);
        }
        let others = self.below(Path::new("")).into_iter().filter(|path| !paths.contains(path));
        let others: Vec<PathBuf> = others.take(MOST_SLICES).collect();
        paths.extend(others);
        let mut slices = Vec::new();
        for path in paths {
            let Some((mut cgroup, reading)) = self.cgroup(&path) else { continue };
            let limits = cgroup.limits(&mut self.buffer).ok();
            let detail = CgroupDetail { at: Clock.now().mono, limits, ..CgroupDetail::default() };
            slices.push(SliceReading {
                path: path.to_string_lossy().into_owned(),
                reading,
                detail: Some(std::sync::Arc::new(detail)),
            });
        }
        slices
    }

    fn below(&self, relative: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.from.layout.unified().join(relative)) else { return Vec::new() };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.map(|entry| relative.join(entry.file_name())).collect()
    }

    fn cgroup(&mut self, relative: &Path) -> Option<(Cgroup, CgroupReading)> {
        let opened = Cgroup::open(&self.from.layout, relative);
        let mut cgroup = opened.unwrap_or_else(|error| {
            debug!(cgroup = %relative.display(), %error, "a cgroup cannot be opened");
            None
        })?;
        let mut reading = read_cgroup(&mut cgroup, &mut self.buffer)?;
        reading.at = Clock.now().mono;
        Some((cgroup, reading))
    }
}

/// So many of the node's first-level cgroups are told at most.
const MOST_SLICES: usize = 32;

/// Times since boot. A tick is a hundredth of a second on all kernels in use.
fn cpu(it: &mut NodeDetail) {
    let Ok(stat) = procfs::KernelStats::current() else { return };
    let tick = 1_000_000 / procfs::ticks_per_second().max(1);
    let total = stat.total;
    let irq = total.irq.zip(total.softirq).map(|(hard, soft)| hard + soft);
    it.booted = Micros::secs(stat.btime);
    it.switches = Some(stat.ctxt);
    it.steal = total.steal.map(|ticks| Micros(ticks * tick));
    it.interrupts = irq.map(|ticks| Micros(ticks * tick));
    it.cpu = Some((Micros((total.user + total.nice) * tick), Micros((total.system + irq.unwrap_or(0)) * tick)));
}

/// The devices as the stock kubelet shows them (cAdvisor leaves out loopback and the hosts' ends of pods' devices), that of the default
/// route first.
fn interfaces() -> Vec<InterfaceReading> {
    const LEFT_OUT: [&str; 3] = ["veth", "docker", "nerdctl"];
    let mut all = links::interfaces().unwrap_or_default();
    all.retain(|device| !LEFT_OUT.iter().any(|prefix| device.name.starts_with(prefix)));
    let first = links::default_route().ok().flatten();
    // Stable: the others keep the kernel's order.
    all.sort_by_key(|device| Some(&device.name) != first.as_ref());
    all
}

/// `None` where the kernel does not measure it.
fn pressure() -> Option<PressureReading> {
    let stall = |it: crate::kernel::parse::PressureLine| Stall {
        total: Micros(it.total_us),
        avg10: it.avg10,
        avg60: it.avg60,
        avg300: it.avg300,
    };
    let one = |name: &str| {
        let text = fs::read_to_string(format!("/proc/pressure/{name}")).ok()?;
        let read = crate::kernel::parse::pressure(text.as_bytes()).ok()?;
        Some(Pressure { some: stall(read.some), full: read.full.map(stall).unwrap_or_default() })
    };
    Some(PressureReading { cpu: one("cpu")?, memory: one("memory")?, io: one("io")? })
}

/// The cgroup of a process, relative to the roots; `None` if it is not known. On hybrid it is that of the unified hierarchy, or where
/// that is the root, of the memory controller.
fn own_cgroup(process: &str) -> Option<PathBuf> {
    cgroup_of(&fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?)
}

fn cgroup_of(text: &str) -> Option<PathBuf> {
    let path = |wanted: &dyn Fn(&str) -> bool| {
        let mut lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.find(|(controllers, _)| wanted(controllers)).map(|(_, path)| path.trim_start_matches('/'))
    };
    // Above the root of this cgroup namespace: there is no path to it from here.
    let unified = path(&|controllers| controllers.is_empty()).filter(|path| !path.starts_with(".."));
    let memory = path(&|controllers| controllers.split(',').any(|it| it == "memory"));
    unified.filter(|path| !path.is_empty()).or(memory).or(unified).map(PathBuf::from)
}

/// The process that listens on the runtime's socket; `None` if nobody does, or it is in another pid namespace.
fn runtime_process(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).ok()?;
    let pid = rustix::net::sockopt::socket_peercred(&stream).ok()?.pid;
    Some(rustix::process::Pid::as_raw(Some(pid))).filter(|pid| *pid > 0)
}

/// Why the space that a folder uses cannot be asked of the file system's project quotas, in words for a capability. Always a reason:
/// where quotas are on, folders are walked all the same.
#[must_use]
pub fn project_quota(folder: &Path) -> String {
    let path = folder.display();
    match mountinfo::read() {
        Ok(table) => no_project_quota(table.as_bytes(), folder),
        Err(error) => {
            format!("the mounts cannot be read ({error}); the space that {path} uses is found out by walking")
        }
    }
}

fn no_project_quota(mountinfo: &[u8], folder: &Path) -> String {
    let path = folder.display();
    let mounts = procfs::process::MountInfos::from_read(mountinfo).map(|all| all.0).unwrap_or_default();
    let above = mounts.iter().filter(|mount| folder.starts_with(&mount.mount_point));
    // The last of those with the longest path lies on top.
    let Some(mount) = above.max_by_key(|mount| mount.mount_point.as_os_str().len()) else {
        return format!("the file system of {path} is not known; space is found out by walking");
    };
    let (kind, at) = (&mount.fs_type, mount.mount_point.display());
    let on = ["prjquota", "pquota"].iter().any(|option| mount.super_options.contains_key(*option));
    if on {
        format!("{kind} on {at} has project quotas, which are not read yet; space is found out by walking")
    } else {
        format!("{kind} on {at} has no project quota; space is found out by walking")
    }
}

/// Mounted file systems on block devices or in memory, each once: name and mount point. Each pod adds mounts, so the list is long, and
/// is read seldom.
#[derive(Debug, Default)]
struct Mounts {
    listed: Option<Micros>,
    list: Vec<(String, PathBuf)>,
}

impl Mounts {
    fn filesystems(&mut self, now: Now) -> Vec<(String, FsUse)> {
        if self.listed.is_none_or(|at| now.mono - at >= MOUNTS_EVERY) {
            self.listed = Some(now.mono);
            self.list = mounts();
        }
        let used = |(name, at): &(String, PathBuf)| {
            let vfs = statvfs(at).ok()?;
            Some((name.clone(), FsUse { at: now.wall, ..whole(&vfs) }))
        };
        self.list.iter().filter_map(used).collect()
    }
}

fn mounts() -> Vec<(String, PathBuf)> {
    let Ok(table) = mountinfo::read() else { return Vec::new() };
    let Ok(mounts) = procfs::process::MountInfos::from_read(table.as_bytes()) else { return Vec::new() };
    let mut devices = BTreeSet::new();
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for mount in mounts {
        let source = mount.mount_source.unwrap_or_default();
        let name = match mount.fs_type.as_str() {
            // Pods' volumes are told with their pods; each sandbox has one for its shared memory (containerd's folder, CRI-O's).
            "tmpfs" if is_of_pod(&mount.mount_point) => continue,
            "tmpfs" => mount.mount_point.to_string_lossy().into_owned(),
            _ if source.starts_with("/dev/") => source,
            _ => continue,
        };
        if found.len() < MOST_FILESYSTEMS && devices.insert(mount.majmin) {
            found.entry(name).or_insert(mount.mount_point);
        }
    }
    found.into_iter().collect()
}

fn is_of_pod(mount_point: &Path) -> bool {
    let folders = ["pods", "sandboxes", "overlay-containers"];
    mount_point.components().any(|part| folders.iter().any(|folder| part.as_os_str() == *folder))
}

/// Mounts are listed this often.
const MOUNTS_EVERY: Micros = Micros::secs(60);
/// So many file systems are told at most.
const MOST_FILESYSTEMS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> (NodeDetailReader, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let from = NodeSources {
            layout: CgroupLayout::detect().unwrap(),
            kubepods: PathBuf::new(),
            root: root.path().to_owned(),
            runtime_socket: root.path().join("runtime.sock"),
        };
        (NodeDetailReader::new(from), root)
    }

    #[test]
    fn the_node_is_what_its_files_say() {
        let (mut reader, root) = reader();
        let vmstat = || -> u64 {
            let text = fs::read_to_string("/proc/stat").unwrap();
            text.lines().find_map(|line| line.strip_prefix("ctxt ")).unwrap().parse().unwrap()
        };
        let (low, node, high) = (vmstat(), reader.read(None), vmstat());
        let switches = node.switches.unwrap();
        assert!(low <= switches && switches <= high, "{low} {switches} {high}");
        let uptime = procfs::Uptime::current().unwrap().uptime;
        let booted = Clock.now().wall.0 as f64 / 1e6 - node.booted.0 as f64 / 1e6;
        assert!((booted - uptime).abs() < 3.0, "{booted} {uptime}");
        let said = std::process::Command::new("df").args(["-B1", "--output=size,itotal"]).arg(root.path()).output();
        let said = String::from_utf8(said.unwrap().stdout).unwrap();
        let said: Vec<u64> =
            said.lines().nth(1).unwrap().split_whitespace().map(|word| word.parse().unwrap()).collect();
        let fs = node.fs.unwrap();
        assert_eq!((fs.capacity, fs.inodes), (Some(Bytes(said[0])), Some(said[1])));
        assert!(fs.used.0 > 0 && fs.used < fs.capacity.unwrap());
        let (most, tasks) = node.pids.unwrap();
        assert!(tasks > 10 && tasks < most, "{tasks} of {most}");
        assert!(node.memory_usage.unwrap() > node.memory_rss.unwrap());
        assert!(node.page_faults.unwrap().0 > node.page_faults.unwrap().1);
        assert!(node.cpu.unwrap().0 > Micros::ZERO);
        assert!(node.memory_rss < node.memory_working_set && node.memory_working_set <= node.memory_usage);
        assert_eq!((node.image_fs, node.container_fs), (None, None));
        assert!(node.filesystems.iter().any(|(_, it)| it.capacity == fs.capacity), "{:?}", node.filesystems);
        assert!(node.interfaces.iter().all(|device| device.name != "lo"));
        let route = links::default_route().unwrap();
        if let Some(route) = route {
            assert_eq!(node.interfaces[0].name, route);
        }
    }

    #[test]
    fn what_the_runtime_says_of_images_is_told_with_the_size_of_the_file_system() {
        let (mut reader, root) = reader();
        let used = crate::runtime::DiskUse {
            at: Micros(9),
            mountpoint: root.path().to_owned(),
            used: Bytes(77),
            inodes: Some(3),
        };
        let stats = DiskStats { images: Some(used), ..DiskStats::default() };
        let node = reader.read(Some(&stats));
        let images = node.image_fs.unwrap();
        assert_eq!((images.used, images.at, images.capacity), (Bytes(77), Micros(9), node.fs.unwrap().capacity));
        assert_eq!(node.container_fs, Some(images));
    }

    #[test]
    fn what_belongs_to_a_pod_is_no_file_system_of_the_node() {
        let of = |path: &str| is_of_pod(Path::new(path));
        assert!(of("/var/lib/kubelet/pods/u/volumes/kubernetes.io~empty-dir/x"));
        assert!(of("/run/containerd/io.containerd.grpc.v1.cri/sandboxes/0a/shm"));
        assert!(!of("/dev/shm") && !of("/run"));
    }

    #[test]
    fn the_runtimes_cgroup_is_a_slice() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let (mut reader, _root) = reader();
        reader.from.runtime_socket = socket;
        let own = own_cgroup("self").unwrap();
        let paths = reader.service_paths();
        // Both are this process; in the root cgroup neither is told.
        assert_eq!(paths.len(), if own.as_os_str().is_empty() { 0 } else { 2 });
        // Two levels deep, among cgroups of which only the first level is told.
        let cgroups = tempfile::tempdir().unwrap();
        fs::create_dir_all(cgroups.path().join("system.slice/runtime.service")).unwrap();
        fs::create_dir_all(cgroups.path().join("system.slice/other.service")).unwrap();
        reader.from.layout = CgroupLayout::V2 { root: cgroups.path().to_owned() };
        let slices = reader.slices(vec![("runtime", "system.slice/runtime.service".into())]);
        let paths: Vec<&str> = slices.iter().map(|slice| slice.path.as_str()).collect();
        assert_eq!(paths, ["system.slice", "system.slice/runtime.service"]);
    }

    #[test]
    fn the_runtime_is_who_listens_on_its_socket() {
        let root = tempfile::tempdir().unwrap();
        let socket = root.path().join("s");
        assert_eq!(runtime_process(&socket), None);
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert_eq!(runtime_process(&socket), i32::try_from(std::process::id()).ok());
    }

    #[test]
    fn a_file_system_without_project_quota_is_named() {
        let mounts = b"21 1 8:1 / / rw - ext4 /dev/root rw\n22 21 8:2 / /var rw - xfs /dev/vdb rw,attr2,prjquota\n";
        let of = |path: &str| no_project_quota(mounts, Path::new(path));
        assert_eq!(of("/srv/x"), "ext4 on / has no project quota; space is found out by walking");
        assert!(
            of("/var/lib").starts_with("xfs on /var has project quotas, which are not read yet"),
            "{}",
            of("/var/lib")
        );
        assert!(project_quota(Path::new("/")).ends_with("by walking"));
    }

    #[test]
    fn the_cgroup_of_a_process_is_found_on_both_layouts() {
        let of = |text: &str| cgroup_of(text).map(|path| path.to_string_lossy().into_owned());
        assert_eq!(of("0::/system.slice/containerd.service\n").as_deref(), Some("system.slice/containerd.service"));
        assert_eq!(of("4:memory:/docker\n3:cpu,cpuacct:/x\n0::/\n").as_deref(), Some("docker"));
        assert_eq!(of("4:memory:/docker\n0::/unified\n").as_deref(), Some("unified"));
        assert_eq!(of("0::/\n").as_deref(), Some(""));
        assert_eq!(of("0::/../../a\n"), None);
        assert_eq!(of("nonsense"), None);
    }
}
