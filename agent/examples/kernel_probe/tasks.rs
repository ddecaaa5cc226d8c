//! Checks of what is told of tasks: waiting for a CPU, who took it, reclaim, states; and what runs for them.
//!
//! **Approach.** Each worker waits on its input before and after its work. While it waits it has left its CPU for good, so what
//! the programs have recorded of it and what `/proc` says of it must be the same to the nanosecond.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use beelet::kernel::maps::Counters;
use beelet_ebpf_common::CpuRecord;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::{Bed, Outcome, settle};

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
pub(super) fn wait(bed: &Bed, counters: &Counters) -> Result<Outcome> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut workers = Vec::new();
    for cpu in 0..cpus {
        workers.push(Worker::new(bed.spawn("busy", &["2000", &cpu.to_string()])?)?);
        workers.push(Worker::new(bed.spawn("busy", &["2000", "move"])?)?);
    }
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
        _ => return Ok(None),
    }
    Ok(Some(0))
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
