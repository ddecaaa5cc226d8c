//! Native beds, by `xtask bed`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;

/// A test node: a network namespace, containerd, a cgroup parent. It goes when dropped, or when this process ends.
#[derive(Debug)]
pub struct Bed {
    /// Its name.
    pub name: String,
    /// What `xtask bed up` printed.
    pub info: Value,
    /// The node's address, reachable from here.
    pub node_ip: String,
    /// The address of this side of the node's link, as the node sees it.
    pub host_ip: String,
    /// The agent's `cgroupRoot`.
    pub cgroup_root: String,
    /// containerd's socket.
    pub socket: PathBuf,
    /// Data that goes with the bed.
    pub dir: PathBuf,
    /// The agent's root folder.
    pub root_dir: PathBuf,
    /// Sockets, mounts, small files; goes with the bed.
    pub run_dir: PathBuf,
    /// Logs; they stay.
    pub log_dir: PathBuf,
}

impl Bed {
    /// Starts a bed. `name` is made unique by this process's id.
    ///
    /// # Errors
    /// Why there can be none on this machine.
    pub fn up(name: &str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a native bed needs root".to_owned());
        }
        let xtask = xtask();
        if !xtask.exists() {
            return Err(format!("{} is not built: run the tests by `cargo xtask test`", xtask.display()));
        }
        let pid = std::process::id().to_string();
        let name = format!("{name}-{pid}");
        let output = Command::new(xtask)
            .args(["bed", "up", "--name", &name, "--owner", &pid])
            .output()
            .map_err(|error| format!("xtask cannot be started: {error}"))?;
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // A machine that should have a bed and gets none is a failure, not a reason to skip.
        assert!(output.status.success(), "no bed `{name}`:\n{}", shown(&output.stderr));
        let text = shown(&output.stdout);
        let start = text.find('{').unwrap_or(0);
        let info: Value =
            serde_json::from_str(&text[start..]).unwrap_or_else(|e| panic!("`bed up` printed no JSON ({e}): {text}"));
        let get = |key: &str| info[key].as_str().unwrap_or_else(|| panic!("`bed up` says no {key}: {info}")).to_owned();
        Ok(Self {
            node_ip: get("node_ip"),
            host_ip: get("host_ip"),
            cgroup_root: get("cgroup_root"),
            socket: get("containerd_socket").into(),
            dir: get("dir").into(),
            root_dir: get("root_dir").into(),
            run_dir: get("run_dir").into(),
            log_dir: get("log_dir").into(),
            name,
            info,
        })
    }

    /// A command that runs in the bed's network namespace and in its cgroup GROUP; its pid is the program's own.
    #[must_use]
    pub fn inside(&self, group: &str, program: &Path) -> Command {
        let mut command = Command::new(xtask());
        command.args(["bed", "exec", "--name", &self.name, "--group", group, "--"]).arg(program);
        command
    }

    /// Stops, kills, starts or restarts containerd; its pods go on.
    ///
    /// # Panics
    /// If it cannot.
    pub fn runtime(&self, what: &str) {
        run(Command::new(xtask()).args(["bed", "runtime", "--name", &self.name, what]));
    }

    /// What of pods is left in the bed: cgroups, mounts, folders, sandboxes. Empty when all is clean.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> = crate::pod_cgroups(&self.cgroup_root)
            .into_iter()
            .map(|path| format!("cgroup {}", path.display()))
            .collect();
        left.extend(mounts_below(&self.root_dir).into_iter().map(|path| format!("mount {path}")));
        // containerd keeps sandboxes' rootfs, shm and network namespaces here.
        left.extend(mounts_below(&self.run_dir).into_iter().map(|path| format!("mount {path}")));
        for dir in [self.root_dir.join("pods"), self.pod_logs_dir()] {
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            left.extend(entries.flatten().map(|entry| format!("folder {}", entry.path().display())));
        }
        let cri = crate::Cri::new(self);
        match (cri.try_sandboxes(), cri.try_containers()) {
            (Ok(sandboxes), Ok(containers)) => {
                left.extend(sandboxes.iter().map(|s| format!("sandbox {} of {}/{}", s.id, s.namespace, s.pod)));
                left.extend(containers.iter().map(|c| format!("container {} ({}) of {}", c.id, c.name, c.pod)));
            }
            (Err(error), _) | (_, Err(error)) => left.push(error),
        }
        left
    }

    /// The `podLogsDir` of the bed's agents.
    #[must_use]
    pub fn pod_logs_dir(&self) -> PathBuf {
        self.dir.join("pod-logs")
    }

    /// The log of the first run of a pod's container `main`, by the manifest's name.
    #[must_use]
    pub fn log_of(&self, name: &str) -> Option<PathBuf> {
        let prefix = format!("default_{name}-{}_", crate::NODE);
        let mut folders = fs::read_dir(self.pod_logs_dir()).ok()?.flatten();
        let folder = folders.find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))?;
        Some(folder.path().join("main/0.log"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        Command::new(xtask()).args(["bed", "down", "--name", &self.name]).output().ok();
    }
}

/// A bed for the tests of one file, made by the first that asks and taken by one at a time.
#[derive(Debug)]
pub struct SharedBed {
    name: &'static str,
    bed: Mutex<Option<Result<&'static Bed, String>>>,
}

/// The bed, as long as a test has it.
#[derive(Debug)]
pub struct BedGuard<'a> {
    bed: &'static Bed,
    _turn: MutexGuard<'a, Option<Result<&'static Bed, String>>>,
}

impl std::ops::Deref for BedGuard<'_> {
    type Target = Bed;
    fn deref(&self) -> &Bed {
        self.bed
    }
}

impl SharedBed {
    /// A bed to be made later.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, bed: Mutex::new(None) }
    }

    /// The bed; `None`, with a line that says so, where there can be none. It goes when this process ends.
    pub fn get(&self, test: &str) -> Option<BedGuard<'_>> {
        // A test that failed with the bed in hand leaves it usable: the next agent removes what it does not know.
        let mut turn = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        let made = turn.get_or_insert_with(|| Bed::up(self.name).map(|bed| &*Box::leak(Box::new(bed))));
        match made {
            Ok(bed) => Some(BedGuard { bed, _turn: turn }),
            Err(reason) => {
                crate::skip(test, reason);
                None
            }
        }
    }
}

/// Runs a command to its end.
///
/// # Panics
/// If it fails.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A program: named by a variable of `cargo xtask test`, else where cargo puts it.
#[must_use]
pub fn built(variable: &str, relative: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    // This program is target/PROFILE/deps/NAME.
    let exe = std::env::current_exe().unwrap_or_default();
    exe.ancestors().nth(3).unwrap_or(Path::new("target")).join(relative)
}

fn xtask() -> PathBuf {
    built("BEELET_XTASK", "debug/xtask")
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(ToOwned::to_owned).collect()
}
