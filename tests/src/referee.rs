//! The kernel as the referee of what happens to memory.
//!
//! Problem: whether somebody came before the OOM killer, or came without need, cannot be told from the agent alone. Approach:
//! a thread reads what `kubepods` uses as often as it is told to, and OOM kills have three witnesses, which must agree: the counters of
//! the cgroups, eBPF's events, and the kernel's own log, in which each kill names its cgroup.
//!
//! Terms: a *round* is what is watched from [`Referee::begin`] to [`Referee::end`]. *Held* is anonymous and shared memory: what
//! reclaim cannot free.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use crate::{Agent, Bed, Hierarchy, hierarchies};

/// How often kills are counted and what is held is read, at most: a counter goes with its cgroup, but not within 20 ms.
const SELDOM: Duration = Duration::from_millis(20);

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

/// Bytes as MiB.
#[must_use]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The cgroup of all pods of a bed, by its files.
#[derive(Clone, Debug)]
pub struct Kubepods {
    /// The file with what it uses.
    usage: PathBuf,
    /// The file with how many tasks there are in it.
    tasks: PathBuf,
}

impl Kubepods {
    /// That of a bed in which an agent runs.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn of(bed: &Bed) -> Self {
        let group = format!("{}/kubepods", bed.cgroup_root.trim_start_matches('/'));
        let find = |names: &[&str]| {
            let files = |h: Hierarchy| names.iter().map(|name| h.mount.join(&group).join(name)).collect::<Vec<_>>();
            hierarchies().into_iter().flat_map(files).find(|path| path.exists())
        };
        Self {
            usage: find(&["memory.usage_in_bytes", "memory.current"]).expect("the memory of kubepods"),
            tasks: find(&["pids.current"]).expect("the tasks of kubepods"),
        }
    }

    fn dir(&self) -> &Path {
        self.usage.parent().unwrap_or(Path::new("/"))
    }

    /// What it uses, page cache included.
    #[must_use]
    pub fn usage(&self) -> u64 {
        number(&self.usage)
    }

    /// How many tasks there are in it.
    #[must_use]
    pub fn tasks(&self) -> u64 {
        number(&self.tasks)
    }

    /// What it may use.
    #[must_use]
    pub fn limit(&self) -> u64 {
        let files = ["memory.limit_in_bytes", "memory.max"].map(|name| self.dir().join(name));
        files.iter().find(|path| path.exists()).map_or(0, |path| number(path))
    }

    /// Its anonymous and shared memory.
    #[must_use]
    pub fn held(&self) -> u64 {
        let text = fs::read_to_string(self.dir().join("memory.stat")).unwrap_or_default();
        let value = |key: &str| {
            let mut fields = text.lines().filter_map(|line| line.split_once(' '));
            fields.find(|(name, _)| *name == key).and_then(|(_, value)| value.parse::<u64>().ok())
        };
        // v1 says what is below separately; in v2 there is nothing else.
        let sum = |keys: [&str; 2]| Some(value(keys[0])? + value(keys[1])?);
        sum(["total_rss", "total_shmem"]).or_else(|| sum(["anon", "shmem"])).unwrap_or(0)
    }

    /// OOM kills in it and below, by the cgroups that are there now.
    #[must_use]
    pub fn kills(&self) -> u64 {
        counted_kills(self.dir())
    }
}

fn number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn counted_kills(dir: &Path) -> u64 {
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

/// Reads usage and kills while a round goes on.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

/// What was seen while a round went on.
#[derive(Debug, Default)]
pub struct Seen {
    /// What was used when.
    pub usage: Vec<(u64, u64)>,
    /// How many tasks there were when.
    pub tasks: Vec<(u64, u64)>,
    /// The most that was held.
    pub held: u64,
    /// The most kills that the cgroups counted, beyond those before.
    pub kills: u64,
    /// When the first of them was seen, to [`SELDOM`].
    pub killed: Option<u64>,
}

impl Seen {
    /// The most that was used.
    #[must_use]
    pub fn peak(&self) -> u64 {
        self.usage.iter().map(|&(_, usage)| usage).max().unwrap_or(0)
    }
}

impl Watch {
    /// Reads so often from now on.
    #[must_use]
    pub fn start(kubepods: Kubepods, pace: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let seldom = u32::try_from(SELDOM.as_micros() / pace.as_micros().max(1)).unwrap_or(1).max(1);
        let thread = std::thread::spawn(move || {
            let (mut seen, before) = (Seen::default(), kubepods.kills());
            let mut tick = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                seen.usage.push((wall(), kubepods.usage()));
                seen.tasks.push((wall(), kubepods.tasks()));
                if tick.is_multiple_of(seldom) {
                    seen.kills = seen.kills.max(kubepods.kills().saturating_sub(before));
                    seen.killed = seen.killed.or_else(|| (seen.kills > 0).then(wall));
                    seen.held = seen.held.max(kubepods.held());
                }
                tick = tick.wrapping_add(1);
                std::thread::sleep(pace);
            }
            seen
        });
        Self { stop, thread }
    }

    /// What was seen.
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
struct KernelLog(Option<File>);

impl KernelLog {
    fn from_now() -> Self {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg");
        Self(file.ok().and_then(|mut file| file.seek(SeekFrom::End(0)).ok().map(|_| file)))
    }

    /// OOM kills in cgroups below this one since the last call.
    fn kills(&mut self, cgroup: &str) -> Option<u64> {
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

/// OOM kills, by each witness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kills {
    /// By the cgroups' counters.
    pub counters: u64,
    /// By eBPF; `None` where no beelet runs.
    pub ebpf: Option<u64>,
    /// By the kernel's log; `None` where it may not be read.
    pub log: Option<u64>,
}

impl Kills {
    /// No witness saw one.
    #[must_use]
    pub fn none(&self) -> bool {
        self.counters == 0 && self.ebpf.unwrap_or(0) == 0 && self.log.unwrap_or(0) == 0
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |kills: Option<u64>| kills.map_or_else(|| "-".to_owned(), |kills| kills.to_string());
        write!(f, "{}/{}/{}", self.counters, shown(self.ebpf), shown(self.log))
    }
}

/// Watches the pods of a bed.
#[derive(Debug)]
pub struct Referee {
    /// The pods' cgroup.
    pub kubepods: Kubepods,
    root: String,
    log: KernelLog,
}

/// What is being watched.
#[derive(Debug)]
pub struct Round {
    watch: Watch,
    /// Kills so far, by eBPF.
    before: Option<u64>,
}

impl Referee {
    /// Of a bed in which an agent runs.
    #[must_use]
    pub fn of(bed: &Bed) -> Self {
        Self { kubepods: Kubepods::of(bed), root: bed.cgroup_root.clone(), log: KernelLog::from_now() }
    }

    /// Watches from now on, so often.
    #[must_use]
    pub fn begin(&mut self, agent: &Agent<'_>, pace: Duration) -> Round {
        self.log.kills(&self.root);
        let before = told(agent);
        Round { watch: Watch::start(self.kubepods.clone(), pace), before }
    }

    /// What was seen, and the kills of the round.
    #[must_use]
    pub fn end(&mut self, agent: &Agent<'_>, round: Round) -> (Seen, Kills) {
        let seen = round.watch.end();
        let kills = Kills {
            counters: seen.kills,
            ebpf: told(agent).zip(round.before).map(|(now, before)| now.saturating_sub(before)),
            log: self.log.kills(&self.root),
        };
        (seen, kills)
    }
}

/// OOM kills as the eBPF program told them.
fn told(agent: &Agent<'_>) -> Option<u64> {
    let told = || agent.metrics().sum("beelet_oom_kills_total", &[]).unwrap_or(0.0) as u64;
    (!agent.is_stock()).then(told)
}
