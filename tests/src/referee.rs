//! The referee of a race between an agent and the kernel's OOM killer: what was used when, and whom the kernel killed.
//!
//! Nothing here asks the agent. Usage is read every 2 ms; who won is told by the kernel's own log, in which each OOM kill names its
//! cgroup, and by the counters of the cgroups.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::{Bed, Hierarchy, hierarchies};

/// In MiB.
#[must_use]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Microseconds since 1970.
#[must_use]
pub fn wall() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// The load average of the last minute.
#[must_use]
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// The file with what `kubepods` uses.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn usage_file(bed: &Bed) -> PathBuf {
    let group = format!("{}/kubepods", bed.cgroup_root.trim_start_matches('/'));
    let files = |h: Hierarchy| {
        [h.mount.join(&group).join("memory.usage_in_bytes"), h.mount.join(&group).join("memory.current")]
    };
    hierarchies().into_iter().flat_map(files).find(|path| path.exists()).expect("the memory of kubepods")
}

/// The number in a file; 0 if there is none.
#[must_use]
pub fn usage(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// The file with how many tasks there are in `kubepods`.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn tasks_file(bed: &Bed) -> PathBuf {
    let group = format!("{}/kubepods/pids.current", bed.cgroup_root.trim_start_matches('/'));
    let files = hierarchies().into_iter().map(|h| h.mount.join(&group));
    files.into_iter().find(|path| path.exists()).expect("the tasks of kubepods")
}

/// OOM kills in `kubepods` and below, by the cgroups that are there now.
#[must_use]
pub fn counted_kills(dir: &Path) -> u64 {
    let of = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let own = |text: &str| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
    // v2 counts what is below already.
    if let Some(kills) = own(&of("memory.events")) {
        return kills;
    }
    let below =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    own(&of("memory.oom_control")).unwrap_or(0) + below.map(|path| counted_kills(&path)).sum::<u64>()
}

/// Reads usage and kills while a run goes on.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen while a run went on.
#[derive(Debug, Default)]
pub struct Seen {
    /// What was used when.
    pub usage: Vec<(u64, u64)>,
    /// How many tasks there were when.
    pub tasks: Vec<(u64, u64)>,
    /// The most kills that the cgroups counted, beyond those before.
    pub kills: u64,
    /// When the first of them was seen, within 20 ms.
    pub killed: Option<u64>,
}

impl Watch {
    /// Begins to read these two files.
    #[must_use]
    pub fn start(file: PathBuf, tasks: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let dir = file.parent().map(Path::to_path_buf).unwrap_or_default();
            let (mut seen, before) = (Seen::default(), counted_kills(&dir));
            let mut tick = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                seen.usage.push((wall(), usage(&file)));
                seen.tasks.push((wall(), usage(&tasks)));
                // The counter goes with its cgroup, but not within 20 ms.
                if tick.is_multiple_of(10) {
                    seen.kills = seen.kills.max(counted_kills(&dir).saturating_sub(before));
                    seen.killed = seen.killed.or_else(|| (seen.kills > 0).then(wall));
                }
                tick = tick.wrapping_add(1);
                std::thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        Self { stop, thread }
    }

    /// Ends, and gives what was seen.
    ///
    /// # Panics
    /// If the thread did.
    #[must_use]
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watching thread")
    }
}

/// The kernel's log from here on; `None` where it may not be read.
#[derive(Debug)]
pub struct KernelLog(Option<File>);

impl KernelLog {
    /// Skips what is there.
    #[must_use]
    pub fn from_now() -> Self {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg");
        Self(file.ok().and_then(|mut file| file.seek(SeekFrom::End(0)).ok().map(|_| file)))
    }

    /// OOM kills in cgroups below this one since the last call.
    pub fn kills(&mut self, cgroup: &str) -> Option<u64> {
        let file = self.0.as_mut()?;
        let (mut buffer, mut kills) = ([0_u8; 8192], 0);
        let below = format!("task_memcg={cgroup}/");
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Some(kills),
                Ok(length) => {
                    let line = String::from_utf8_lossy(&buffer[..length]);
                    kills += u64::from(line.contains("oom-kill:") && line.contains(&below));
                }
                // Overwritten before it was read: what comes next is the oldest that is left.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(kills),
            }
        }
    }
}
