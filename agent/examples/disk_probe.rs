//! Proves what the eBPF programs count of disks and of processes against the kernel's own files, and against what was done.
//!
//! Makes cgroups `beelet-disk-PID` and a loop device on a file of its own, which it reads and writes past the page cache; then
//! starts and ends processes in all the ways there are. Needs root, loop devices, and the object that `cargo xtask build-ebpf`
//! makes.
//!
//!     cargo run -p beelet --example disk_probe -- [OBJECT]
//!
//! Exit code 0: every check passed (those that this machine cannot run are named). 1: a check failed. 77: nothing could run.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use beelet::kernel::{
    cgroup::CgroupLayout,
    events::{KernelEvent, ProcessExit},
    loader::{LoadOptions, ProgramCost, Programs},
    maps::Counters,
    preflight,
};
use beelet_ebpf_common::{DiskRecord, disk, program};
use rustix::process::{Signal, getpid, kill_process};
use tokio::{sync::mpsc, time::timeout};

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(("child", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return match child(rest) {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("disk_probe: {rest:?}: {error:#}");
                ExitCode::from(99)
            }
        };
    }
    let object = arguments.first().map_or_else(|| PathBuf::from("target/bpf/beelet-ebpf"), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&object))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("disk_probe: NOT RUN: {error:#}");
            ExitCode::from(77)
        }
    }
}

enum Outcome {
    Passed(String),
    NotRun(String),
}

type Events = mpsc::UnboundedReceiver<KernelEvent>;

async fn run(object: &Path) -> Result<ExitCode> {
    let bed = Bed::make(CgroupLayout::detect()?)?;
    println!("capabilities");
    for it in preflight::probe(Some(&bed.layout), &bed.pods) {
        println!("  {:<38} {:<3} {}", it.name, if it.available { "yes" } else { "no" }, it.reason);
    }
    let mut programs = Programs::load(object, &LoadOptions::default(), &bed.layout.unified().join(&bed.pods));
    if !programs.report().is_loaded(program::DISK_REQUEST) && !programs.report().is_loaded(program::PROCESS_EXIT) {
        bail!("the programs could not be loaded: {:?}", programs.report().missing());
    }
    let (sender, mut events) = mpsc::unbounded_channel();
    if let Some(mut stream) = programs.take_events()? {
        tokio::spawn(async move {
            while let Ok(event) = stream.next().await {
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
    }
    let mut counters = programs.take_counters();

    println!("\nchecks");
    let mut failed = 0;
    for (name, result) in [
        ("disk: bytes and requests, between files", disks(&bed, &mut counters)),
        ("starts and ends of processes, exactly", lives(&bed, &mut counters)),
        ("events of ends that matter only", ends(&bed, &mut counters, &mut events).await),
    ] {
        let (word, text) = match result {
            Ok(Outcome::Passed(text)) => ("ok", text),
            Ok(Outcome::NotRun(reason)) => ("NOT RUN", reason),
            Err(error) => {
                failed += 1;
                ("FAILED", format!("{error:#}"))
            }
        };
        println!("  {name:<40} {word:<8} {text}");
    }

    println!(
        "\nprograms\n  {:<18} {:<6} {:>8} {:>7} {:>9} {:>9}",
        "name", "loaded", "verified", "insns", "events", "ns/event"
    );
    let costs = programs.costs();
    for it in &programs.report().programs {
        let cost = costs.iter().find(|cost| cost.name == it.name);
        println!(
            "  {:<18} {:<6} {:>8} {:>7} {:>9} {:>9} {}",
            it.name,
            if it.loaded { "yes" } else { "no" },
            it.verified_insns,
            it.translated_bytes / 8,
            cost.map_or(0, |cost| cost.run_count),
            cost.and_then(ProgramCost::ns_per_event).map_or_else(|| "-".to_owned(), |ns| ns.to_string()),
            it.reason
        );
    }
    println!("  (some 60 ns of each event are the measuring itself)");
    println!("  lost: {:?}, fields that this kernel lacks: {:?}", counters.lost(), programs.report().missing_fields);
    let missed: Vec<_> = costs.iter().filter(|it| it.missed > 0).map(|it| (it.name, it.missed)).collect();
    println!("  not handed over by the kernel: {missed:?}");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

// === the bed ===

/// The cgroups of this run; removed at its end.
struct Bed {
    layout: CgroupLayout,
    pods: PathBuf,
    /// Relative path of the cgroup in which everything happens.
    inner: PathBuf,
}

impl Bed {
    fn make(layout: CgroupLayout) -> Result<Self> {
        let pods = PathBuf::from(format!("beelet-disk-{}", std::process::id()));
        let bed = Self { layout, inner: pods.join("inner"), pods };
        for directory in bed.directories(&bed.inner) {
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        Ok(bed)
    }

    /// A cgroup's directories: in v2, and in v1's blkio if that is where the IO controller is.
    fn directories(&self, relative: &Path) -> Vec<PathBuf> {
        let v1 = if self.layout.is_hybrid() { self.layout.directory("blkio", relative) } else { None };
        [self.layout.unified().join(relative)].into_iter().chain(v1).collect()
    }

    /// The id by which disk requests name the inner cgroup, and its directory.
    fn io(&self) -> Result<(u64, PathBuf)> {
        let directory = self.directories(&self.inner).pop().context("no cgroup")?;
        Ok((fs::metadata(&directory)?.ino(), directory))
    }

    fn id(&self) -> Result<u64> {
        Ok(fs::metadata(self.layout.unified().join(&self.inner))?.ino())
    }

    fn spawn(&self, before: &[&str], role: &str, more: &[&str]) -> Result<Child> {
        let join: Vec<String> = self
            .directories(&self.inner)
            .into_iter()
            .map(|directory| directory.join("cgroup.procs").display().to_string())
            .collect();
        let this = env::current_exe()?.display().to_string();
        let join = join.join(":");
        let all: Vec<&str> = before.iter().copied().chain([this.as_str(), "child", role, &join]).collect();
        let [program, arguments @ ..] = all.as_slice() else { bail!("nothing to start") };
        let mut command = Command::new(program);
        command.args(arguments).args(more).stdin(Stdio::null()).stdout(Stdio::piped());
        command.spawn().with_context(|| format!("cannot start {program}"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for relative in [&self.inner, &self.pods] {
            for path in self.directories(relative) {
                if let Err(error) = fs::remove_dir(&path) {
                    eprintln!("{} is left over: {error}", path.display());
                }
            }
        }
    }
}

/// A block device of our own.
struct Loop {
    device: String,
    image: PathBuf,
}

impl Loop {
    fn make() -> Result<Self> {
        let image = env::temp_dir().join(format!("beelet-disk-{}.img", std::process::id()));
        fs::File::create(&image)?.set_len(64 << 20)?;
        // In two steps, and with short names, so that BusyBox's can do it, too.
        let made = (|| -> Result<String> {
            if !Path::new("/dev/loop-control").exists() {
                said(Command::new("modprobe").arg("loop"))?;
            }
            let device = said(Command::new("losetup").arg("-f"))?;
            said(Command::new("losetup").arg(&device).arg(&image))?;
            Ok(device)
        })();
        if made.is_err() {
            fs::remove_file(&image)?;
        }
        let device = made?;
        Ok(Self { device, image })
    }
}

/// What a command said.
fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").args(["-d", &self.device]).status();
        if !detached.is_ok_and(|status| status.success()) || fs::remove_file(&self.image).is_err() {
            eprintln!("{} on {} is left over", self.device, self.image.display());
        }
    }
}

// === the checks ===

/// Bytes and requests, of reads and of writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd)]
struct Io {
    bytes: [u64; 2],
    requests: [u64; 2],
}

/// What the kernel's files say of a device: it counts what is asked for, not what is done.
fn files(layout: &CgroupLayout, directory: &Path, device: &str) -> Result<Io> {
    let mut io = Io::default();
    let number = |word: &str| word.parse::<u64>().with_context(|| format!("{word} is no number"));
    if layout.is_hybrid() {
        for (name, into) in [
            ("blkio.throttle.io_service_bytes_recursive", &mut io.bytes),
            ("blkio.throttle.io_serviced_recursive", &mut io.requests),
        ] {
            for line in fs::read_to_string(directory.join(name))?.lines() {
                match line.split_ascii_whitespace().collect::<Vec<_>>().as_slice() {
                    [it, "Read", count] if *it == device => into[0] = number(count)?,
                    [it, "Write", count] if *it == device => into[1] = number(count)?,
                    _ => {}
                }
            }
        }
        return Ok(io);
    }
    for line in fs::read_to_string(directory.join("io.stat"))?.lines() {
        let Some(fields) = line.strip_prefix(device) else { continue };
        for field in fields.split_ascii_whitespace() {
            match field.split_once('=') {
                Some(("rbytes", count)) => io.bytes[0] = number(count)?,
                Some(("wbytes", count)) => io.bytes[1] = number(count)?,
                Some(("rios", count)) => io.requests[0] = number(count)?,
                Some(("wios", count)) => io.requests[1] = number(count)?,
                _ => {}
            }
        }
    }
    Ok(io)
}

fn counted(counters: &mut Counters, cgroup: u64, device: u32) -> Result<(Io, DiskRecord)> {
    counters.refresh_slow()?;
    let (mut io, mut writes) = (Io::default(), DiskRecord::default());
    for (key, record) in counters.disk(cgroup).context("the program does not run")? {
        let at = match key.op {
            disk::READ => 0,
            disk::WRITE => 1,
            _ => continue,
        };
        if key.device == device {
            io.bytes[at] = record.bytes;
            io.requests[at] = record.latency.counts.iter().sum();
            if at == 1 {
                writes = *record;
            }
            ensure!(record.errors == 0, "{key:?} {record:?}");
        }
    }
    Ok((io, writes))
}

/// What the child does: writes of 64 KiB, then some that have to be on the disk when they return, then reads of 4 KiB.
const WRITES: u64 = 300;
const SYNCED: u64 = 20;
const WRITE_BYTES: u64 = 64 << 10;
const READS: u64 = 2_000;
const READ_BYTES: u64 = 4 << 10;

fn disks(bed: &Bed, counters: &mut Counters) -> Result<Outcome> {
    if !bed.layout.is_hybrid() {
        for parent in [bed.layout.unified().to_owned(), bed.layout.unified().join(&bed.pods)] {
            if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), "+io") {
                return Ok(Outcome::NotRun(format!("no IO controller in {}: {error}", parent.display())));
            }
        }
    }
    let image = match Loop::make() {
        Ok(image) => image,
        Err(error) => return Ok(Outcome::NotRun(format!("no loop device: {error:#}"))),
    };
    let number = fs::metadata(&image.device)?.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let (name, device) = (format!("{major}:{minor}"), major << 20 | minor);
    let (cgroup, directory) = bed.io()?;
    if bed.layout.is_hybrid() {
        // Since 6.10 v1 counts for devices only that have a limit somewhere; this one limits nothing.
        let limit = directory.join("blkio.throttle.write_bps_device");
        fs::write(&limit, format!("{name} {}", 1_u64 << 50)).with_context(|| limit.display().to_string())?;
    }
    ensure!(counted(counters, cgroup, device)?.0 == Io::default(), "the new cgroup has requests");

    let mut child = bed.spawn(&[], "disk", &[&image.device])?;
    let mut looks = 0;
    while child.try_wait()?.is_none() {
        let before = files(&bed.layout, &directory, &name)?;
        let (seen, _) = counted(counters, cgroup, device)?;
        let after = files(&bed.layout, &directory, &name)?;
        looks += 1;
        let text = format!("look {looks}: files {before:?}, eBPF {seen:?}, files {after:?}");
        for at in [0, 1] {
            ensure!(seen.bytes[at] <= after.bytes[at] && seen.requests[at] <= after.requests[at], "too much: {text}");
            // One request is asked for and not done yet.
            let under_way = WRITE_BYTES;
            ensure!(
                seen.bytes[at] + under_way >= before.bytes[at] && seen.requests[at] + 1 >= before.requests[at],
                "too little: {text}"
            );
        }
    }
    ensure!(child.wait()?.success(), "the child failed");
    let (seen, writes) = counted(counters, cgroup, device)?;
    let file = files(&bed.layout, &directory, &name)?;
    ensure!(seen == file, "at the end the files say {file:?}, eBPF {seen:?}");
    // A device with a cache is asked to flush it after each of these; how it is asked is the kernel's business.
    let flushes = seen.requests[1].wrapping_sub(WRITES + SYNCED);
    let done = Io {
        bytes: [READS * READ_BYTES, (WRITES + SYNCED) * WRITE_BYTES],
        requests: [READS, WRITES + SYNCED + flushes],
    };
    ensure!(seen == done && flushes <= SYNCED, "{done:?} was done, {seen:?} is seen");
    let mean = writes.latency.sum_ns / seen.requests[1] / 1_000;
    ensure!((1..1_000_000).contains(&mean), "a write took {mean} us");
    Ok(Outcome::Passed(format!("{looks} looks; {seen:?}, as in the files; a write took {mean} us")))
}

/// (arguments of the child, how many, the status that comes of it).
const FAMILY: [(&str, u64, u64); 6] =
    [("0", 60, 0), ("3", 40, 3 << 8), ("255", 7, 255 << 8), ("term", 9, 15), ("kill", 5, 9), ("threads", 4, 8 << 8)];
/// Threads that the parent starts, and each child of the role "threads".
const THREADS: u64 = 25;
const CHILD_THREADS: u64 = 2;

fn lives(bed: &Bed, counters: &mut Counters) -> Result<Outcome> {
    let id = bed.id()?;
    let look = |counters: &mut Counters| -> Result<_> {
        counters.refresh_slow()?;
        let life = *counters.life(id).context("the programs do not run")?;
        let exits: Vec<(u64, u64)> = counters.exits(id).context("the program does not run")?.collect();
        Ok((life, exits))
    };
    let before = look(counters)?;
    ensure!(bed.spawn(&[], "family", &[])?.wait()?.success(), "the family failed");
    let after = look(counters)?;

    let children: u64 = FAMILY.iter().map(|(_, count, _)| count).sum();
    let threads = THREADS + 4 * CHILD_THREADS;
    let seen = [
        after.0.forks - before.0.forks,
        after.0.threads - before.0.threads,
        after.0.execs - before.0.execs,
        after.0.exits - before.0.exits,
    ];
    // The parent comes from elsewhere and ends here, with code 0.
    ensure!(seen == [children, threads, children, children + 1], "forks, threads, execs, exits: {seen:?}");
    let number =
        |exits: &[(u64, u64)], status| exits.iter().find(|(it, _)| *it == status).map_or(0, |(_, count)| *count);
    for (role, count, status) in FAMILY {
        let (more, ended) = (u64::from(status == 0), number(&after.1, status) - number(&before.1, status));
        ensure!(ended == count + more, "{ended} ends of kind {role} instead of {}", count + more);
    }
    Ok(Outcome::Passed(format!("forks, threads, execs, exits: {seen:?}; by status {:?}", after.1)))
}

async fn ends(bed: &Bed, counters: &mut Counters, events: &mut Events) -> Result<Outcome> {
    let id = bed.id()?;
    let by_signal: u64 = FAMILY.iter().filter(|(_, _, status)| status & 0x7f != 0).map(|(_, count, _)| count).sum();
    let told = drain(events, id, by_signal as usize).await;
    let signals = told.iter().filter(|exit| exit.status.signal().is_some()).count() as u64;
    ensure!(
        signals == by_signal && told.len() as u64 == by_signal,
        "{} events, {signals} of them of deaths by signal, of which there were {by_signal}",
        told.len()
    );
    counters.refresh_fast()?;
    ensure!(counters.lost().iter().all(|(_, count)| *count == 0), "{:?}", counters.lost());

    let mut init = match bed.spawn(&["unshare", "--pid", "--fork"], "exit", &["5"]) {
        Ok(init) => init,
        Err(error) => return Ok(Outcome::NotRun(format!("signals as they should; no namespace: {error:#}"))),
    };
    ensure!(init.wait()?.code() == Some(5), "unshare failed");
    let told = drain(events, id, 1).await;
    let [exit] = told.as_slice() else { bail!("{} events of the first process: {told:?}", told.len()) };
    ensure!(exit.ns_pid == Some(1) && exit.status.code() == Some(5), "{exit:?}");
    Ok(Outcome::Passed(format!("{by_signal} by signal, none by code; of the first process one: {:?}", exit.status)))
}

/// The ends in one cgroup that are told: waits for the wanted ones, and then for such as should not come.
async fn drain(events: &mut Events, cgroup: u64, wanted: usize) -> Vec<ProcessExit> {
    let mut told = Vec::new();
    loop {
        let patience = if told.len() < wanted { Duration::from_secs(20) } else { Duration::from_millis(500) };
        match timeout(patience, events.recv()).await {
            Ok(Some(KernelEvent::Exit(exit))) if exit.cgroup == cgroup => told.push(exit),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return told,
        }
    }
}

// === what runs in the cgroup ===

/// Memory as reads and writes past the page cache want it.
#[repr(align(4096))]
struct Aligned([u8; 64 << 10]);

fn child(arguments: &[String]) -> Result<u8> {
    let [role, join, more @ ..] = arguments else { bail!("too few arguments") };
    for file in join.split(':').filter(|file| !file.is_empty()) {
        fs::write(file, "0").with_context(|| format!("cannot write {file}"))?;
    }
    match (role.as_str(), more) {
        ("disk", [device]) => {
            let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits())?;
            let file = fs::OpenOptions::new().read(true).write(true).custom_flags(direct).open(device)?;
            let mut buffer = Box::new(Aligned([7; 64 << 10]));
            for n in 0..WRITES {
                file.write_all_at(&buffer.0, n * WRITE_BYTES)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            let synced = direct | i32::try_from(rustix::fs::OFlags::DSYNC.bits())?;
            let file = fs::OpenOptions::new().read(true).write(true).custom_flags(synced).open(device)?;
            for n in 0..SYNCED {
                file.write_all_at(&buffer.0, n * WRITE_BYTES)?;
            }
            for n in 0..READS {
                file.read_exact_at(&mut buffer.0[..READ_BYTES as usize], n * READ_BYTES)?;
            }
        }
        ("family", []) => {
            let this = env::current_exe()?;
            for (role, count, status) in FAMILY {
                for _ in 0..count {
                    let mut child =
                        Command::new(&this).args(["child", "exit", "", role]).stdout(Stdio::piped()).spawn()?;
                    if status & 0x7f != 0 {
                        // It says a word when it is there.
                        let mut output = BufReader::new(child.stdout.take().context("no output")?);
                        output.read_line(&mut String::new())?;
                    }
                    if role == "kill" {
                        child.kill()?;
                    } else if role == "term" {
                        kill_process(rustix::process::Pid::from_child(&child), Signal::TERM)?;
                    }
                    child.wait()?;
                }
            }
            for _ in 0..THREADS {
                std::thread::spawn(|| {}).join().map_err(|_| anyhow::anyhow!("a thread panicked"))?;
            }
        }
        ("exit", [how]) => match how.as_str() {
            "term" | "kill" => {
                println!("{}", getpid().as_raw_nonzero());
                std::thread::sleep(Duration::from_secs(60));
            }
            "threads" => {
                for _ in 0..CHILD_THREADS {
                    std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
                }
                // All threads end at once.
                std::process::exit(8);
            }
            code => return Ok(code.parse()?),
        },
        _ => bail!("no role {role}"),
    }
    Ok(0)
}
