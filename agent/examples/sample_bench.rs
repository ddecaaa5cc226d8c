//! What a look at many pods costs: `sample_bench [PODS [EBPF_OBJECT]]`, as root, built with `--release`.
//!
//! Problem: the sampler's cost depends on the kernel's files as much as on its own code, and on what the pods do. Approach: real
//! cgroups in every hierarchy of this machine, below a parent of our own: for each pod one with a sandbox and a container, in both
//! of which a process sleeps. The agent's own sampler thread is aimed at them and tells what its looks cost: the first (everything,
//! no file is open), calm ones while all sleep (one file of each pod), urgent ones (every file that decisions need, of every
//! container), and calm ones while all containers wake up ten times a second. For comparison: how long the kernel alone takes to
//! write those files, by a loop of `pread`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beelet::clock::Clock;
use beelet::kernel::cgroup::{CgroupLayout, descriptors, raise_open_files};
use beelet::kernel::drop_reasons::DropReasons;
use beelet::kernel::loader::{LoadOptions, Programs};
use beelet::kernel::maps::Counters;
use beelet::measure::{Command, LookCost, Sampler, SamplerParts, Slow, Target, slot};
use beelet_core::units::Micros;
use tokio::sync::mpsc;

const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];
/// How long each kind of look is measured.
const SPAN: Duration = Duration::from_secs(6);

struct Bed {
    layout: CgroupLayout,
    parent: PathBuf,
    pods: usize,
    processes: Vec<Child>,
}

impl Bed {
    fn make(layout: CgroupLayout, pods: usize) -> Result<Self> {
        let bed =
            Self { layout, parent: format!("beelet-bench-{}", std::process::id()).into(), pods, processes: Vec::new() };
        if let CgroupLayout::V2 { root } = &bed.layout {
            fs::create_dir(root.join(&bed.parent))?;
            let controllers = "+cpu +memory +pids +io";
            for path in [root.clone(), root.join(&bed.parent)] {
                fs::write(path.join("cgroup.subtree_control"), controllers).context("cannot give controllers down")?;
            }
        }
        for pod in 0..pods {
            for child in ["sandbox", "app"] {
                for directory in bed.directories(&bed.path(pod, child)) {
                    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
                }
            }
            if let CgroupLayout::V2 { root } = &bed.layout {
                let path = root.join(&bed.parent).join(format!("pod{pod}/cgroup.subtree_control"));
                fs::write(path, "+cpu +memory +pids +io")?;
            }
        }
        Ok(bed)
    }

    fn path(&self, pod: usize, child: &str) -> PathBuf {
        self.parent.join(format!("pod{pod}")).join(child)
    }

    /// In every hierarchy.
    fn directories(&self, relative: &Path) -> BTreeSet<PathBuf> {
        let v1 = CONTROLLERS.iter().filter_map(|name| self.layout.directory(name, relative));
        v1.chain([self.layout.unified().join(relative)]).collect()
    }

    /// Runs a process in a child of each pod.
    fn fill(&mut self, child: &str, role: &str) -> Result<()> {
        for pod in 0..self.pods {
            let process =
                Process::new(std::env::current_exe()?).arg(role).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
            for directory in self.directories(&self.path(pod, child)) {
                fs::write(directory.join("cgroup.procs"), process.id().to_string())?;
            }
            self.processes.push(process);
        }
        Ok(())
    }

    /// Ends the newest processes.
    fn end(&mut self, count: usize) {
        for mut process in self.processes.split_off(self.processes.len() - count) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    fn targets(&self) -> Vec<Target> {
        (0..self.pods)
            .map(|pod| Target {
                uid: format!("pod{pod}").as_str().into(),
                cgroup: self.parent.join(format!("pod{pod}")).display().to_string(),
                containers: vec![("app".to_owned(), "app".to_owned())],
                host_network: true,
                logs: String::new(),
            })
            .collect()
    }

    /// How long the kernel takes to write these files of these cgroups, the best of some rounds.
    fn floor(&self, cgroups: &[PathBuf], files: &[(&str, &str)]) -> Result<Duration> {
        let mut open = Vec::new();
        for cgroup in cgroups {
            for (controller, file) in files {
                let directory = match *controller {
                    "" => Some(self.layout.unified().join(cgroup)),
                    name => self.layout.directory(name, cgroup),
                };
                if let Some(file) = directory.and_then(|directory| fs::File::open(directory.join(file)).ok()) {
                    open.push(file);
                }
            }
        }
        let (mut best, mut buffer) = (Duration::MAX, vec![0; 16_384]);
        for _ in 0..7 {
            let began = Instant::now();
            for file in &open {
                file.read_at(&mut buffer, 0)?;
            }
            best = best.min(began.elapsed());
        }
        Ok(best)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.end(self.processes.len());
        for pod in 0..self.pods {
            for path in [self.path(pod, "app"), self.path(pod, "sandbox"), self.parent.join(format!("pod{pod}"))] {
                for directory in self.directories(&path) {
                    let _ = fs::remove_dir(directory);
                }
            }
        }
        for directory in self.directories(&self.parent) {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Microseconds of looks, as the counters of the sampler tell them.
fn watch(cost: &LookCost) -> Vec<u64> {
    let (mut times, mut seen, until) = (Vec::new(), cost.looks.load(Ordering::Relaxed), Instant::now() + SPAN);
    while Instant::now() < until {
        let looks = cost.looks.load(Ordering::Relaxed);
        if looks != seen {
            seen = looks;
            times.push(cost.last_us.load(Ordering::Relaxed));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    times.sort_unstable();
    times
}

fn tell(name: &str, times: &[u64]) {
    match times {
        [] => println!("{name:<58} no look was seen"),
        times => {
            let (best, median, worst) = (times[0], times[times.len() / 2], times[times.len() - 1]);
            println!("{name:<58} best {best:>7} us, median {median:>7} us, worst {worst:>7} us, {} looks", times.len());
        }
    }
}

fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        // Until the bench is no more, however it ended.
        Some("sleep") => {
            std::io::stdin().read_to_end(&mut Vec::new())?;
            return Ok(());
        }
        Some("tick") => {
            let parent = std::os::unix::process::parent_id();
            while std::os::unix::process::parent_id() == parent {
                std::thread::sleep(Duration::from_millis(100));
            }
            return Ok(());
        }
        _ => {}
    }
    let pods =
        arguments.first().map_or(Ok(500), |text| text.parse()).context("the first argument is a number of pods")?;
    println!("{pods} pods; files that may be open: {}", raise_open_files()?);
    let mut bed = Bed::make(CgroupLayout::detect()?, pods)?;
    bed.fill("sandbox", "sleep")?;
    bed.fill("app", "sleep")?;
    let mut programs = arguments.get(1).map(|object| {
        Programs::load(Path::new(object), &LoadOptions::default(), &bed.layout.unified().join(&bed.parent))
    });
    if let Some(programs) = &programs {
        println!("eBPF programs: {}", programs.report().programs.iter().filter(|it| it.loaded).count());
    }
    let counters = programs.as_mut().map_or_else(Counters::default, Programs::take_counters);

    let own = |child: &str| (0..pods).map(|pod| bed.path(pod, child)).collect::<Vec<_>>();
    let above: Vec<PathBuf> = (0..pods).map(|pod| bed.parent.join(format!("pod{pod}"))).collect();
    let both: Vec<PathBuf> = own("app").into_iter().chain(above.iter().cloned()).collect();
    let decide: &[(&str, &str)] = if bed.layout.is_hybrid() {
        &[
            ("", "cpu.stat"),
            ("", "cpu.pressure"),
            ("", "memory.pressure"),
            ("", "io.pressure"),
            ("memory", "memory.usage_in_bytes"),
            ("memory", "memory.limit_in_bytes"),
            ("memory", "memory.oom_control"),
            ("pids", "pids.current"),
        ]
    } else {
        &[
            ("", "cpu.stat"),
            ("", "cpu.pressure"),
            ("", "memory.pressure"),
            ("", "io.pressure"),
            ("", "memory.current"),
            ("", "memory.max"),
            ("", "memory.events"),
            ("", "pids.current"),
        ]
    };
    let memory = if bed.layout.is_hybrid() { "memory" } else { "" };
    println!(
        "the kernel alone, cpu.stat of the pods:                    {:?}",
        bed.floor(&above, &[("", "cpu.stat")])?
    );
    println!("the kernel alone, what decisions need but memory.stat:     {:?}", bed.floor(&both, decide)?);
    println!(
        "the kernel alone, memory.stat:                             {:?}",
        bed.floor(&both, &[(memory, "memory.stat")])?
    );

    let ((samples, mut taken), (events, _told)) = (slot(), mpsc::unbounded_channel());
    let (sampler, thread) = Sampler::spawn(SamplerParts {
        layout: bed.layout.clone(),
        kubepods: bed.parent.clone(),
        counters,
        clock: Clock,
        samples,
        events,
        slow: Slow::default(),
        drop_reasons: DropReasons::default(),
        born: None,
    })?;
    let health = sampler.health();
    let pace = |interval, all_pods| sampler.tell(Command::Pace { interval, all_pods, stretch: 1_000 });
    pace(Micros::secs(3_600), false);
    std::thread::sleep(Duration::from_millis(1_500));
    sampler.tell(Command::Aim(bed.targets()));
    pace(Micros::secs(3_600), true);
    sampler.tell(Command::Now);
    let began = Instant::now();
    while health.detail.looks.load(Ordering::Relaxed) == 0 {
        ensure!(began.elapsed() < Duration::from_secs(10), "no look made details: {health:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    tell(
        "the first look: finds, opens, reads everything, makes details",
        &[health.detail.last_us.load(Ordering::Relaxed)],
    );
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let sample = runtime.block_on(taken.next());
    let seen = sample.pods.as_ref().map_or(0, Vec::len);
    ensure!(seen == pods, "{seen} pods were seen");
    println!("descriptors held, and at most: {:?}", descriptors());

    let held = || (health.readings.load(Ordering::Relaxed), health.held.load(Ordering::Relaxed));
    pace(Micros::millis(100), true);
    std::thread::sleep(Duration::from_secs(1));
    let before = held();
    tell("calm, all pods sleep", &watch(&health.full));
    tell("  those that make details of some pods", &watch(&health.detail));
    println!("  readings made and held: {}, {}", held().0 - before.0, held().1 - before.1);
    pace(Micros::millis(20), true);
    tell("urgent: every file that decisions need, memory.stat too", &watch(&health.full));
    pace(Micros::millis(100), false);
    bed.end(pods);
    bed.fill("app", "tick")?;
    std::thread::sleep(Duration::from_secs(1));
    pace(Micros::millis(500), true);
    let before = held();
    tell("calm, all containers run a little, details of some pods", &watch(&health.detail));
    println!("  readings made and held: {}, {}", held().0 - before.0, held().1 - before.1);
    pace(Micros::millis(200), false);
    tell("quick looks", &watch(&health.quick));
    sampler.tell(Command::Stop);
    ensure!(thread.thread.join().is_ok(), "the sampler panicked");
    Ok(())
}
