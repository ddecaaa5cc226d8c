//! Shows what beelet can measure on this kernel, and proves it against the kernel's own files.
//!
//! Makes a cgroup `beelet-ktest-PID`, burns CPU, moves bytes, ends processes, opens a port and provokes an OOM kill in it, and
//! compares what the eBPF programs tell with what cgroup files tell. Needs root and the object that `cargo xtask build-ebpf`
//! makes.
//!
//!     cargo run -p beelet --example kernel_probe -- [OBJECT]
//!
//! Exit code 0: every check passed (those that this machine cannot run are named). 1: a check failed. 77: nothing could run.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use beelet::kernel::{
    cgroup::{Buffer, Cgroup, CgroupLayout},
    events::KernelEvent,
    listeners::listening_ports,
    loader::{LoadOptions, ProgramCost, Programs},
    maps::Counters,
    preflight,
    psi::{PsiTrigger, Stalled, Threshold, Wake},
};
use tokio::{sync::mpsc, time::timeout};

#[path = "kernel_probe/task_walk.rs"]
mod task_walk;
#[path = "kernel_probe/tasks.rs"]
mod tasks;

const MIB: u64 = 1 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(("child", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return child(rest).map_or(ExitCode::from(99), ExitCode::from);
    }
    let object = arguments.first().map_or_else(|| PathBuf::from("target/bpf/beelet-ebpf"), PathBuf::from);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(&object))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kernel_probe: NOT RUN: {error:#}");
            ExitCode::from(77)
        }
    }
}

async fn run(object: &Path) -> Result<ExitCode> {
    let layout = CgroupLayout::detect()?;
    let bed = Bed::make(layout)?;
    println!("capabilities");
    for it in preflight::probe(Some(&bed.layout), &bed.pods) {
        println!("  {:<34} {:<3} {}", it.name, if it.available { "yes" } else { "no" }, it.reason);
    }
    let mut programs = Programs::load(object, &LoadOptions::default(), &bed.layout.unified().join(&bed.pods));
    if !programs.report().programs.iter().any(|it| it.loaded) {
        let reasons: Vec<_> =
            programs.report().programs.iter().map(|it| format!("{}: {}", it.name, it.reason)).collect();
        bail!("no eBPF program could be loaded: {}", reasons.join("; "));
    }
    let (sender, mut receiver) = mpsc::unbounded_channel();
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
        ("cpu time against cpu.stat", cpu(&bed, &counters)),
        ("two threads that hand over for 2 s", switches(&bed, &counters)),
        ("waits against schedstat", tasks::wait(&bed, &mut counters)),
        ("another cgroup takes the CPU", tasks::preemption(&bed, &mut counters)),
        ("tasks by state", tasks::states(&bed, &mut counters)),
        ("reclaim in a limit of 16 MiB", tasks::reclaim(&bed, &mut counters)),
        ("8 MiB sent and received", network(&bed, &counters)),
        ("exit with code 7", exits(&bed, &mut receiver, ("exit7", Who::First), Some(7), None).await),
        ("exit by SIGSEGV", exits(&bed, &mut receiver, ("segv", Who::Any), None, Some(11)).await),
        ("process of two threads ends once", exits(&bed, &mut receiver, ("threads", Who::First), Some(3), None).await),
        ("listener appears and goes", listener(&bed, &mut receiver).await),
        ("pressure trigger wakes", pressure(&bed).await),
        ("OOM kill in a limit of 32 MiB", oom(&bed, &mut receiver).await),
        ("counters of a cgroup are forgotten", forget(&bed, &mut counters)),
    ] {
        let (word, text) = match result {
            Ok(Outcome::Passed(text)) => ("ok", text),
            Ok(Outcome::NotRun(reason)) => ("NOT RUN", reason),
            Err(error) => {
                failed += 1;
                ("FAILED", format!("{error:#}"))
            }
        };
        println!("  {name:<36} {word:<8} {text}");
    }

    println!(
        "\nprograms\n  {:<14} {:<6} {:>8} {:>7} {:>10} {:>9}",
        "name", "loaded", "verified", "insns", "events", "ns/event"
    );
    let costs = programs.costs();
    for it in &programs.report().programs {
        let cost = costs.iter().find(|cost| cost.name == it.name);
        println!(
            "  {:<14} {:<6} {:>8} {:>7} {:>10} {:>9} {}",
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
    if let Some(reason) = &programs.report().stats_reason {
        println!("  no statistics: {reason}");
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

enum Outcome {
    Passed(String),
    NotRun(String),
}

type Events = mpsc::UnboundedReceiver<KernelEvent>;

// === the bed ===

/// The cgroups of this run; removed at its end.
struct Bed {
    layout: CgroupLayout,
    pods: PathBuf,
    /// Relative path of the cgroup in which everything happens.
    inner: PathBuf,
    cgroup: Cgroup,
}

impl Bed {
    fn make(layout: CgroupLayout) -> Result<Self> {
        let pods = PathBuf::from(format!("beelet-ktest-{}", std::process::id()));
        let inner = pods.join("inner");
        for directory in [layout.unified().join(&inner)].into_iter().chain(v1_memory(&layout, &inner)) {
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        let cgroup = Cgroup::open(&layout, &inner)?.context("the new cgroup is not there")?;
        Ok(Self { layout, pods, inner, cgroup })
    }

    /// A reader of the cgroup's files.
    fn reader(&self) -> Result<Cgroup> {
        Cgroup::open(&self.layout, &self.inner)?.context("the cgroup is gone")
    }

    fn spawn(&self, role: &str, more: &[&str]) -> Result<Child> {
        self.spawn_in(&self.inner, role, more)
    }

    fn spawn_in(&self, cgroup: &Path, role: &str, more: &[&str]) -> Result<Child> {
        self.spawn_by(&[], cgroup, role, more)
    }

    /// The same, started by another program.
    fn spawn_by(&self, before: &[&str], cgroup: &Path, role: &str, more: &[&str]) -> Result<Child> {
        let join: Vec<String> = [self.layout.unified().join(cgroup)]
            .into_iter()
            .chain(v1_memory(&self.layout, cgroup).filter(|directory| directory.exists()))
            .map(|directory| directory.join("cgroup.procs").display().to_string())
            .collect();
        let this = env::current_exe()?.display().to_string();
        let words: Vec<&str> = before.iter().copied().chain([this.as_str()]).collect();
        let [program, arguments @ ..] = words.as_slice() else { bail!("nothing to start") };
        Command::new(program)
            .args(arguments)
            .args(["child", role, &join.join(":")])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a child")
    }
}

fn v1_memory(layout: &CgroupLayout, inner: &Path) -> Option<PathBuf> {
    if layout.is_hybrid() { layout.directory("memory", inner) } else { None }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for controller in ["", "memory"] {
            let directory = if controller.is_empty() {
                Some(self.layout.unified().to_owned())
            } else {
                self.layout.directory(controller, Path::new(""))
            };
            for relative in [&self.inner, &self.pods] {
                let Some(path) = directory.as_ref().map(|it| it.join(relative)).filter(|it| it.exists()) else {
                    continue;
                };
                if let Err(error) = fs::remove_dir(&path) {
                    eprintln!("{} is left over: {error}", path.display());
                }
            }
        }
    }
}

// === the checks ===

fn cpu(bed: &Bed, counters: &Counters) -> Result<Outcome> {
    let mut buffer = Buffer::default();
    let mut both = || -> Result<(u64, u64)> {
        let file = bed.reader()?.cpu(&mut buffer)?.usage.context("no usage_usec in cpu.stat")?.0;
        Ok((counters.read(bed.cgroup.id())?.cpu.context("the program does not run")?.run_ns / 1000, file))
    };
    let before = both()?;
    bed.spawn("burn", &["3000"])?.wait()?;
    settle();
    let after = both()?;
    let (seen, file) = (after.0 - before.0, after.1 - before.1);
    let text =
        format!("eBPF {seen} us, cpu.stat {file} us, {} ppm apart", seen.abs_diff(file) * 1_000_000 / file.max(1));
    ensure!(file > 500_000, "the burner did not burn: {text}");
    ensure!(seen.abs_diff(file) * 50 <= file, "more than 2 %: {text}");
    Ok(Outcome::Passed(text))
}

/// A parent learns of the end a moment before the process switches away for the last time, and is charged.
fn settle() {
    std::thread::sleep(Duration::from_millis(50));
}

fn switches(bed: &Bed, counters: &Counters) -> Result<Outcome> {
    let mut buffer = Buffer::default();
    let mut both = || -> Result<_> {
        let file = bed.reader()?.cpu(&mut buffer)?.usage.context("no usage_usec in cpu.stat")?.0;
        Ok((counters.read(bed.cgroup.id())?.cpu.context("the program does not run")?, file))
    };
    let before = both()?;
    bed.spawn("handover", &["2000"])?.wait()?;
    settle();
    let after = both()?;
    let (seen, file) = ((after.0.run_ns - before.0.run_ns) / 1000, after.1 - before.1);
    let text = format!(
        "{} switches, eBPF {seen} us, cpu.stat {file} us, {} ppm apart",
        after.0.switches - before.0.switches,
        seen.abs_diff(file) * 1_000_000 / file.max(1)
    );
    ensure!(after.0.switches - before.0.switches > 1000, "too few switches: {text}");
    ensure!(seen.abs_diff(file) * 50 <= file, "more than 2 %: {text}");
    Ok(Outcome::Passed(text))
}

fn network(bed: &Bed, counters: &Counters) -> Result<Outcome> {
    let before = counters.read(bed.cgroup.id())?.network.context("the programs do not run")?.total();
    let server = TcpListener::bind("127.0.0.1:0")?;
    let mut child = bed.spawn("transfer", &[&server.local_addr()?.to_string()])?;
    let (mut stream, _) = server.accept()?;
    let mut received = vec![0; MIB as usize];
    for _ in 0..8 {
        stream.read_exact(&mut received)?;
    }
    for _ in 0..8 {
        stream.write_all(&received)?;
    }
    ensure!(child.wait()?.success(), "the child failed");
    let after = counters.read(bed.cgroup.id())?.network.context("the programs do not run")?.total();
    let (tx, rx) = (after.tx_bytes - before.tx_bytes, after.rx_bytes - before.rx_bytes);
    let text = format!(
        "sent {tx} B in {} packets, received {rx} B in {}",
        after.tx_packets - before.tx_packets,
        after.rx_packets - before.rx_packets
    );
    for bytes in [tx, rx] {
        // Headers are less than 1 %; a busy machine sends some buffers of 64 KiB twice.
        ensure!((8 * MIB..=8 * MIB + 8 * MIB / 20).contains(&bytes), "not within 5 % above 8 MiB: {text}");
    }
    Ok(Outcome::Passed(text))
}

/// How a process is told apart from others.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Who {
    /// By its id.
    Any,
    /// As the first one of a pid namespace: only of those, and of deaths by signal, is the end told.
    First,
}

async fn exits(
    bed: &Bed,
    events: &mut Events,
    (role, who): (&str, Who),
    code: Option<u8>,
    signal: Option<u8>,
) -> Result<Outcome> {
    let before: &[&str] = if who == Who::First { &["unshare", "--pid", "--fork"] } else { &[] };
    let mut child = bed.spawn_by(before, &bed.inner, role, &[])?;
    child.wait()?;
    let mut seen = Vec::new();
    while let Ok(Some(event)) = timeout(Duration::from_millis(500), events.recv()).await {
        if let KernelEvent::Exit(exit) = event
            && if who == Who::First {
                exit.cgroup == bed.cgroup.id() && exit.ns_pid == Some(1)
            } else {
                exit.pid == child.id()
            }
        {
            seen.push(exit);
        }
    }
    let [exit] = seen.as_slice() else { bail!("{} events instead of one: {seen:?}", seen.len()) };
    ensure!(exit.cgroup == bed.cgroup.id(), "cgroup {} instead of {}", exit.cgroup, bed.cgroup.id());
    ensure!((exit.status.code(), exit.status.signal()) == (code, signal), "{:?}", exit.status);
    ensure!(!exit.oom_marked && exit.started_ns < exit.at_ns, "{exit:?}");
    Ok(Outcome::Passed(format!(
        "{} {:?} after {} us, pid in its namespace {:?}",
        exit.comm,
        exit.status,
        (exit.at_ns - exit.started_ns) / 1000,
        exit.ns_pid
    )))
}

async fn listener(bed: &Bed, events: &mut Events) -> Result<Outcome> {
    // This process is outside of the pods.
    let stranger = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    ensure!(next_listen(events, stranger).await.is_err(), "a listener that is no pod's is told");
    let mut child = bed.spawn("listen", &[])?;
    let pid = child.id();
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let port: u16 = lines.next().context("the child said nothing")??.parse()?;
    ensure!(
        listening_ports(child.id())?.context("the child is gone")?.contains(&port),
        "/proc does not show port {port}"
    );
    let opened = next_listen(events, port).await.context("no event of the opening")?;
    // Connections come and go, and the socket goes on listening.
    for _ in 0..5 {
        drop(TcpStream::connect(("127.0.0.1", port))?);
    }
    drop(child.stdin.take());
    child.wait()?;
    let closed = next_listen(events, port).await.context("no event of the closing")?;
    ensure!(opened.opened && !closed.opened, "{opened:?} {closed:?}");
    ensure!(opened.cgroup == bed.cgroup.id() && closed.cgroup == bed.cgroup.id(), "{opened:?} {closed:?}");
    ensure!(closed.pid == pid, "closed by a process that is not the listener's: {closed:?}");
    ensure!(next_listen(events, port).await.is_err(), "more than an opening and a closing");
    Ok(Outcome::Passed(format!("port {port}, for {} us", (closed.at_ns - opened.at_ns) / 1000)))
}

async fn next_listen(events: &mut Events, port: u16) -> Result<beelet::kernel::events::Listen> {
    loop {
        match timeout(Duration::from_secs(2), events.recv()).await?.context("the stream ended")? {
            KernelEvent::Listen(listen) if listen.port == port => return Ok(listen),
            _ => {}
        }
    }
}

async fn pressure(bed: &Bed) -> Result<Outcome> {
    let file = bed.layout.unified().join(&bed.inner).join("cpu.pressure");
    if !file.exists() {
        return Ok(Outcome::NotRun(format!("{} is missing", file.display())));
    }
    let wanted = Threshold { stalled: Stalled::Some, stall_us: 100_000, window_us: 1_000_000 };
    let trigger = PsiTrigger::set(&file, wanted)?;
    let start = Instant::now();
    let cpus = std::thread::available_parallelism()?.get();
    let mut burners = (0..=cpus).map(|_| bed.spawn("burn", &["4000"])).collect::<Result<Vec<_>>>()?;
    let woken = timeout(Duration::from_secs(4), trigger.wait()).await;
    let after = start.elapsed();
    for burner in &mut burners {
        burner.kill()?;
        burner.wait()?;
    }
    ensure!(woken.context("no wake-up in 4 s")?? == Wake::Stalled, "the cgroup was taken for gone");
    let quiet = timeout(Duration::from_secs(5), async {
        let mut wakes = 0;
        while timeout(Duration::from_millis(2500), trigger.wait()).await.is_ok() {
            wakes += 1;
        }
        wakes
    });
    let more = quiet.await.context("it wakes without end")?;

    let other = bed.layout.unified().join(&bed.pods).join("short");
    fs::create_dir(&other)?;
    let end = PsiTrigger::set(&other.join("memory.pressure"), wanted);
    fs::remove_dir(&other)?;
    let gone = timeout(Duration::from_secs(2), end?.wait()).await.context("the end of a cgroup is not told")??;
    ensure!(gone == Wake::Gone, "the end of a cgroup is taken for a stall");
    Ok(Outcome::Passed(format!("after {} ms, then {more} more; {:?}", after.as_millis(), trigger.threshold())))
}

async fn oom(bed: &Bed, events: &mut Events) -> Result<Outcome> {
    let limit = if bed.layout.is_hybrid() {
        let Some(directory) = v1_memory(&bed.layout, &bed.inner) else {
            return Ok(Outcome::NotRun("no memory controller is mounted".into()));
        };
        directory.join("memory.limit_in_bytes")
    } else {
        for parent in [bed.layout.unified().to_owned(), bed.layout.unified().join(&bed.pods)] {
            if let Err(error) = fs::write(parent.join("cgroup.subtree_control"), "+memory") {
                return Ok(Outcome::NotRun(format!(
                    "the memory controller cannot be enabled in {}: {error}",
                    parent.display()
                )));
            }
        }
        bed.layout.unified().join(&bed.inner).join("memory.max")
    };
    fs::write(&limit, (32 * MIB).to_string()).with_context(|| format!("cannot write {}", limit.display()))?;
    let mut buffer = Buffer::default();
    let before = bed.reader()?.memory(&mut buffer)?.context("no memory")?;
    ensure!(before.limit.map(|limit| limit.0) == Some(32 * MIB), "the limit reads {:?}", before.limit);
    let mut child = bed.spawn("leak", &[])?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    output.read_line(&mut String::new())?;
    child.wait()?;
    let after = bed.reader()?.memory(&mut buffer)?.context("no memory")?;
    let (mut victims, mut exits) = (Vec::new(), Vec::new());
    while let Ok(Some(event)) = timeout(Duration::from_millis(500), events.recv()).await {
        match event {
            // Others on this machine may run out of memory at the same time.
            KernelEvent::Oom(victim) if victim.pid == child.id() || victim.cgroup == bed.cgroup.id() => {
                victims.push(victim);
            }
            KernelEvent::Exit(exit) if exit.pid == child.id() => exits.push(exit),
            _ => {}
        }
    }
    let [victim] = victims.as_slice() else { bail!("{} victims instead of one: {victims:?}", victims.len()) };
    ensure!(victim.pid == child.id() && victim.cgroup == bed.cgroup.id() && !victim.cgroup_is_guess, "{victim:?}");
    let [exit] = exits.as_slice() else { bail!("{} exits instead of one: {exits:?}", exits.len()) };
    ensure!(exit.oom_marked && exit.status.signal() == Some(9), "{exit:?}");
    let kills = after.oom_kills.unwrap_or(0) - before.oom_kills.unwrap_or(0);
    ensure!(kills == 1, "the kernel's own counter says {kills}");
    Ok(Outcome::Passed(format!(
        "{} {:?}; peak {:?} B, {:?} limit hits",
        victim.comm, victim.memory, after.more.peak, after.more.max_events
    )))
}

fn forget(bed: &Bed, counters: &mut Counters) -> Result<Outcome> {
    let id = bed.cgroup.id();
    counters.refresh_fast()?;
    let (cpu, net) = (counters.cpu(id).copied(), counters.net(id).copied());
    let now = counters.read(id)?;
    ensure!((cpu, net) == (now.cpu, now.network), "read at once {cpu:?} {net:?}, alone {now:?}");
    ensure!(counters.ids().contains(&id), "the cgroup has no record");
    let removed = counters.retain(|it| it != id)?;
    let left = counters.read(id)?;
    ensure!(removed == 1 && left.cpu.is_none_or(|it| it.run_ns == 0), "{removed} removed, {left:?} left");
    Ok(Outcome::Passed(format!("{} others are kept", counters.ids().len())))
}

// === what runs in the cgroup ===

fn child(arguments: &[String]) -> Result<u8> {
    let [role, join, more @ ..] = arguments else { bail!("too few arguments") };
    for file in join.split(':').filter(|it| !it.is_empty()) {
        fs::write(file, "0")?;
    }
    match role.as_str() {
        "burn" => {
            let end = Instant::now() + Duration::from_millis(more.first().context("how long?")?.parse()?);
            while Instant::now() < end {
                std::hint::spin_loop();
            }
        }
        "handover" => {
            let end = Instant::now() + Duration::from_millis(more.first().context("how long?")?.parse()?);
            let (there, received) = std::sync::mpsc::sync_channel::<()>(0);
            let (back, answered) = std::sync::mpsc::sync_channel::<()>(0);
            std::thread::spawn(move || while received.recv().is_ok() && back.send(()).is_ok() {});
            while Instant::now() < end {
                there.send(())?;
                answered.recv()?;
            }
        }
        "transfer" => {
            let mut stream = TcpStream::connect(more.first().context("where to?")?)?;
            let mut data = vec![7; MIB as usize];
            for _ in 0..8 {
                stream.write_all(&data)?;
            }
            for _ in 0..8 {
                stream.read_exact(&mut data)?;
            }
        }
        "exit7" => return Ok(7),
        "threads" => {
            // The other thread ends a moment before the process does.
            let other = std::thread::spawn(|| std::thread::sleep(Duration::from_millis(5)));
            drop(other.join());
            std::thread::spawn(|| std::thread::sleep(Duration::from_secs(60)));
            std::process::exit(3);
        }
        "segv" => {
            // The first one only makes Rust's handler of stack overflows give up.
            for _ in 0..2 {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::SEGV)?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        "listen" => {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            println!("{}", listener.local_addr()?.port());
            std::io::stdin().read_to_end(&mut Vec::new())?;
            drop(listener);
        }
        "leak" => {
            let mut all = Vec::new();
            for step in 0..256_u64 {
                all.push(vec![u8::try_from(step % 251).unwrap_or(1) | 1; MIB as usize]);
            }
            println!("{}", all.len());
        }
        _ => match tasks::role(role, more)? {
            Some(code) => return Ok(code),
            None => bail!("no role {role}"),
        },
    }
    Ok(0)
}
