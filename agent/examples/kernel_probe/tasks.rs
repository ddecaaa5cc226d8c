//! Checks of what is told of tasks: waiting for a CPU, who took it, reclaim, states; and what runs for them.
//!
//! **Approach.** Each worker waits on its input before and after its work. While it waits it has left its CPU for good, so what
//! the programs have recorded of it and what `/proc` says of it must be the same to the nanosecond.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use beelet::kernel::maps::Counters;
use beelet_ebpf_common::{CpuRecord, TaskRecord};
use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_setaffinity},
};

use super::{Bed, MIB, Outcome, settle, task_walk, v1_memory};

/// What the kernel's files tell of one task.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    /// Nanoseconds that it waited for a CPU, and stints: `/proc/PID/schedstat`.
    wait_ns: u64,
    stints: u64,
    /// Switches away from it: `/proc/PID/status`.
    voluntary: u64,
    involuntary: u64,
}

impl Account {
    fn of(pid: u32) -> Result<Self> {
        let schedstat = fs::read_to_string(format!("/proc/{pid}/schedstat")).context("no schedstat")?;
        let numbers: Vec<u64> = schedstat.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.trim_start_matches(':').trim().parse()?)
        };
        let [_, wait_ns, stints] = numbers[..] else { anyhow::bail!("schedstat reads {schedstat:?}") };
        let (voluntary, involuntary) = (field("voluntary_ctxt_switches")?, field("nonvoluntary_ctxt_switches")?);
        Ok(Self { wait_ns, stints, voluntary, involuntary })
    }

    fn minus(self, other: Self) -> Self {
        Self {
            wait_ns: self.wait_ns - other.wait_ns,
            stints: self.stints - other.stints,
            voluntary: self.voluntary - other.voluntary,
            involuntary: self.involuntary - other.involuntary,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            wait_ns: self.wait_ns + other.wait_ns,
            stints: self.stints + other.stints,
            voluntary: self.voluntary + other.voluntary,
            involuntary: self.involuntary + other.involuntary,
        }
    }
}

/// A child that works when told to.
pub(super) struct Worker {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn new(mut child: Child) -> Result<Self> {
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut worker = Self { child, output };
        worker.hear()?;
        Ok(worker)
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a worker has ended");
        Ok(line.trim().to_owned())
    }

    fn tell(&mut self) -> Result<()> {
        Ok(self.child.stdin.as_mut().context("no input")?.write_all(b"\n")?)
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets workers work at once; what the files and the program have told meanwhile.
fn work(workers: &mut [Worker], of: u64, counters: &Counters) -> Result<(Account, CpuRecord)> {
    let both = |workers: &[Worker]| -> Result<_> {
        settle();
        let accounts = workers.iter().map(|it| Account::of(it.pid())).collect::<Result<Vec<_>>>()?;
        Ok((accounts, counters.read(of)?.cpu.context("the program does not run")?))
    };
    let before = both(workers)?;
    for worker in &mut *workers {
        worker.tell()?;
    }
    for worker in &mut *workers {
        worker.hear()?;
    }
    let after = both(workers)?;
    let files = after.0.iter().zip(before.0).map(|(after, before)| after.minus(before));
    let (new, old) = (after.1, before.1);
    let mut told = CpuRecord {
        run_ns: new.run_ns - old.run_ns,
        switches: new.switches - old.switches,
        involuntary: new.involuntary - old.involuntary,
        ..new
    };
    told.wait.sum_ns -= old.wait.sum_ns;
    for (slot, before) in told.wait.counts.iter_mut().zip(old.wait.counts) {
        *slot -= before;
    }
    Ok((files.fold(Account::default(), Account::plus), told))
}

/// The CPUs are wanted twice over, by tasks that stay where they are and tasks that move: each nanosecond of waiting is told.
pub(super) fn wait(bed: &Bed, counters: &mut Counters) -> Result<Outcome> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut workers = Vec::new();
    for cpu in 0..cpus {
        workers.push(Worker::new(bed.spawn("busy", &["2000", &cpu.to_string()])?)?);
        workers.push(Worker::new(bed.spawn("busy", &["2000", "move"])?)?);
    }
    // They were born outside. Before Linux 6.4 only a walk finds such tasks before they move while they wait.
    settle();
    counters.refresh_slow()?;
    let (files, told) = work(&mut workers, bed.cgroup.id(), counters)?;
    let stints: u64 = told.wait.counts.iter().sum();
    let text = format!(
        "schedstat {} us in {} stints, eBPF {} us in {stints}; switches {}+{} and {} of which {}",
        files.wait_ns / 1000,
        files.stints,
        told.wait.sum_ns / 1000,
        files.voluntary,
        files.involuntary,
        told.switches,
        told.involuntary,
    );
    ensure!(files.wait_ns > 500_000_000, "nobody had to wait: {text}");
    ensure!(told.wait.sum_ns == files.wait_ns && stints == files.stints, "{text}");
    ensure!(told.switches == files.voluntary + files.involuntary, "{text}");
    ensure!(told.involuntary == files.involuntary, "{text}");
    Ok(Outcome::Passed(text))
}

/// A cgroup beside the bed's own; whatever still runs in it ends with it.
struct Neighbour {
    relative: PathBuf,
    directories: Vec<PathBuf>,
    id: u64,
}

impl Neighbour {
    fn make(bed: &Bed, name: &str, with_memory: bool) -> Result<Self> {
        let relative = bed.pods.join(name);
        let unified = bed.layout.unified().join(&relative);
        let directories: Vec<PathBuf> =
            [unified.clone()].into_iter().chain(v1_memory(&bed.layout, &relative).filter(|_| with_memory)).collect();
        for directory in &directories {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(Self { relative, id: fs::metadata(unified)?.ino(), directories })
    }

    fn end_all(&self) {
        for _ in 0..100 {
            let procs = fs::read_to_string(self.directories[0].join("cgroup.procs")).unwrap_or_default();
            if procs.is_empty() {
                break;
            }
            for pid in procs.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.end_all();
        for directory in &self.directories {
            // A process that has just ended may hold it for a moment.
            let gone = (0..100).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                fs::remove_dir(directory).is_ok()
            });
            if !gone {
                eprintln!("{} is left over", directory.display());
            }
        }
    }
}

/// A task of another cgroup wakes often on the CPU of one that never sleeps: each time that it takes the CPU is told, by name.
pub(super) fn preemption(bed: &Bed, counters: &mut Counters) -> Result<Outcome> {
    let other = Neighbour::make(bed, "other", false)?;
    let mut victim = [Worker::new(bed.spawn("busy", &["2000", "0"])?)?];
    let mut taker = Worker::new(bed.spawn_in(&other.relative, "tick", &["2500", "0"])?)?;
    let taken = |counters: &mut Counters| -> Result<BTreeMap<u64, u64>> {
        counters.refresh_slow()?;
        Ok(counters.preempted(bed.cgroup.id()).context("the program does not run")?.collect())
    };
    let before = taken(counters)?;
    taker.tell()?;
    let (files, told) = work(&mut victim, bed.cgroup.id(), counters)?;
    let mut after = taken(counters)?;
    for (by, count) in before {
        after.entry(by).and_modify(|now| *now -= count);
    }
    let (by_other, all) = (after.get(&other.id).copied().unwrap_or(0), after.values().sum::<u64>());
    let text = format!(
        "{by_other} of {all} by the other of {} cgroups; status says {} ({} in all)",
        after.values().filter(|count| **count > 0).count(),
        files.involuntary,
        told.involuntary
    );
    ensure!(by_other > 50, "the other one hardly came: {text}");
    // It never sleeps, so the CPU is never idle after it.
    ensure!(all == told.involuntary && told.involuntary == files.involuntary, "{text}");
    Ok(Outcome::Passed(text))
}

/// One cgroup with a task in each state.
pub(super) fn states(bed: &Bed, counters: &mut Counters) -> Result<Outcome> {
    let many = Neighbour::make(bed, "states", false)?;
    let mut zoo = Worker::new(bed.spawn_in(&many.relative, "zoo", &[])?)?;
    let expected = TaskRecord {
        running: 1,
        // The first thread, and what the hanging one waits for.
        sleeping: 2,
        uninterruptible: 1,
        stopped: 1,
        zombie: 1,
        processes: 4,
        ..TaskRecord::default()
    };
    settle();
    let start = Instant::now();
    counters.refresh_slow()?;
    let took = start.elapsed();
    let told = *counters.tasks(many.id).context("the iterator does not run")?;
    ensure!(told.walk != 0 && TaskRecord { walk: 0, ..told } == expected, "{told:?}");
    // The same from files.
    let start = Instant::now();
    let files = task_walk::walk(&format!("/{}", bed.pods.display()))?;
    let read = start.elapsed();
    let path = format!("/{}", many.relative.display());
    ensure!(files.get(&path) == Some(&expected), "/proc says {files:?}");
    many.end_all();
    zoo.child.wait()?;
    settle();
    counters.refresh_slow()?;
    let left = TaskRecord { walk: 0, ..*counters.tasks(many.id).context("not known any more")? };
    // Orphans that init has not waited for yet.
    let files = task_walk::walk(&format!("/{}", bed.pods.display()))?;
    let orphans = TaskRecord { zombie: left.zombie, processes: left.zombie, ..TaskRecord::default() };
    ensure!(left == orphans && files.get(&path).copied().unwrap_or_default() == left, "{left:?}, /proc {files:?}");
    Ok(Outcome::Passed(format!("maps read in {} us, /proc in {} us; {told:?}", took.as_micros(), read.as_micros())))
}

/// A task reads and writes more than its limit: the time that it frees memory is told, within what the kernel's pressure says.
pub(super) fn reclaim(bed: &Bed, counters: &mut Counters) -> Result<Outcome> {
    const WRITTEN: u64 = 96 * MIB;
    const LIMIT: u64 = 16 * MIB;
    let small = Neighbour::make(bed, "small", true)?;
    let limit = if bed.layout.is_hybrid() {
        let Some(directory) = v1_memory(&bed.layout, &small.relative) else {
            return Ok(Outcome::NotRun("no memory controller is mounted".into()));
        };
        directory.join("memory.limit_in_bytes")
    } else {
        for parent in [bed.layout.unified().to_owned(), bed.layout.unified().join(&bed.pods)] {
            if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), "+memory") {
                return Ok(Outcome::NotRun(format!("no memory controller in {}: {error}", parent.display())));
            }
        }
        bed.layout.unified().join(&small.relative).join("memory.max")
    };
    fs::write(&limit, LIMIT.to_string()).with_context(|| format!("cannot write {}", limit.display()))?;
    let Some(file) = on_disk() else {
        return Ok(Outcome::NotRun("no folder here is on a disk, and page cache of a tmpfs cannot be freed".into()));
    };
    let pressure = bed.layout.unified().join(&small.relative).join("memory.pressure");
    let stalled = || -> Result<u64> {
        // The kernel adds up every 2 s at most (`PSI_FREQ`).
        std::thread::sleep(Duration::from_millis(2_100));
        let text = fs::read_to_string(&pressure)?;
        let some = text.lines().find_map(|line| line.strip_prefix("some ")).context("no line")?;
        Ok(some.rsplit_once("total=").context("no total")?.1.trim().parse()?)
    };
    let mut worker =
        Worker::new(bed.spawn_in(&small.relative, "cache", &[&file.display().to_string(), &WRITTEN.to_string()])?)?;
    let before = stalled()?;
    let start = Instant::now();
    worker.tell()?;
    worker.hear()?;
    let (took, stall) = (start.elapsed(), stalled()? - before);
    fs::remove_file(&file)?;
    counters.refresh_slow()?;
    let told = *counters.reclaim(small.id).context("the programs do not run")?;
    let spells: u64 = told.limit.counts.iter().sum();
    let text = format!(
        "{spells} spells, {} us, {} MiB freed; stalled for {stall} us of {} us; by the node {} us",
        told.limit.sum_ns / 1000,
        told.pages * 4096 / MIB,
        took.as_micros(),
        told.node.sum_ns / 1000,
    );
    ensure!(spells > 10 && told.limit.sum_ns > 0, "{text}");
    // Each spell is one stall; stalls are more than that (thrashing), and are counted from a moment before.
    ensure!(told.limit.sum_ns / 1000 <= stall, "more than all stalls: {text}");
    ensure!(told.pages * 4096 >= WRITTEN - 2 * LIMIT, "that much cannot have fitted: {text}");
    Ok(Outcome::Passed(text))
}

/// A file to be, in a folder that is not in memory.
fn on_disk() -> Option<PathBuf> {
    // `TMPFS_MAGIC`, `RAMFS_MAGIC` of the kernel.
    const IN_MEMORY: [rustix::fs::FsWord; 2] = [0x0102_1994, 0x8584_58f6];
    let folders =
        [Some(std::env::temp_dir()), Some("/var/tmp".into()), Some("/var/lib".into()), std::env::current_dir().ok()];
    let folder = folders
        .into_iter()
        .flatten()
        .find(|folder| rustix::fs::statfs(folder).is_ok_and(|it| !IN_MEMORY.contains(&it.f_type)))?;
    Some(folder.join(format!("beelet-ktest-{}", std::process::id())))
}

/// What the workers do.
pub(super) fn role(role: &str, more: &[String]) -> Result<Option<u8>> {
    let number = |index: usize| -> Result<u64> { Ok(more.get(index).context("too few arguments")?.parse()?) };
    match role {
        "busy" => {
            let cpus = std::thread::available_parallelism()?.get();
            let moves = more.get(1).is_some_and(|it| it == "move");
            if !moves {
                stay_on(usize::try_from(number(1)?)?)?;
            }
            ready()?;
            let (end, mut moved) = (Instant::now() + Duration::from_millis(number(0)?), Instant::now());
            let mut cpu = 0;
            while Instant::now() < end {
                if moves && moved.elapsed() > Duration::from_millis(7) {
                    cpu = (cpu + 1) % cpus;
                    stay_on(cpu)?;
                    moved = Instant::now();
                }
                std::hint::spin_loop();
            }
            done()?;
        }
        "tick" => {
            stay_on(usize::try_from(number(1)?)?)?;
            ready()?;
            let end = Instant::now() + Duration::from_millis(number(0)?);
            while Instant::now() < end {
                std::thread::sleep(Duration::from_millis(8));
                let on = Instant::now();
                while on.elapsed() < Duration::from_millis(1) {
                    std::hint::spin_loop();
                }
            }
            done()?;
        }
        "zoo" => zoo()?,
        "stay" => {
            std::io::stdin().read_to_end(&mut Vec::new())?;
        }
        "cache" => {
            let (path, mut left) = (more.first().context("which file?")?, number(1)?);
            // Pressure is a mean over CPUs, weighted: it tells all of a stall only on one.
            stay_on(0)?;
            let block = vec![7_u8; 1 << 20];
            ready()?;
            let mut file = fs::File::create(path)?;
            while left > 0 {
                file.write_all(&block)?;
                // What is dirty cannot be freed, and a limit full of it is out of memory.
                file.sync_data()?;
                left = left.saturating_sub(block.len() as u64);
            }
            done()?;
        }
        _ => return Ok(None),
    }
    Ok(Some(0))
}

/// A thread or process in each state.
fn zoo() -> Result<()> {
    let child =
        |role: &str| Command::new(std::env::current_exe()?).args(["child", role, ""]).stdin(Stdio::piped()).spawn();
    let (zombie, stopped) = (child("exit7")?, child("stay")?);
    let pid = |child: &Child| i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no pid");
    kill_process(pid(&stopped)?, Signal::STOP)?;
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    std::thread::spawn(hang);
    // All have come to where they are to be.
    for (pid, letter) in [(zombie.id(), 'Z'), (stopped.id(), 'T')] {
        let stat = PathBuf::from(format!("/proc/{pid}/stat"));
        let end = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(&stat)?.contains(&format!(") {letter} ")) {
            ensure!(Instant::now() < end, "{pid} does not become {letter}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    ready()?;
    done()
}

/// Waits in the kernel, as if for a disk, for a child that sleeps.
#[expect(unsafe_code, reason = "no safe function waits like this")]
fn hang() {
    // SAFETY: without CLONE_VM the child has memory of its own, and does nothing but sleep, until it is killed. The parent goes
    // on only when the child has ended.
    unsafe {
        let flags = libc::CLONE_VFORK | libc::SIGCHLD;
        if libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) == 0 {
            loop {
                libc::pause();
            }
        }
    }
}

fn stay_on(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Says so, and waits until told to begin.
fn ready() -> Result<()> {
    println!("ready");
    std::io::stdin().read_exact(&mut [0])?;
    Ok(())
}

/// Says so, and waits until told to end.
fn done() -> Result<()> {
    println!("done");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
