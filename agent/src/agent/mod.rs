//! Ties the rooms together: start-up, the cycle, the end.
//!
//! Problem: a node agent has a dozen parts with an order of birth and death; most bugs of agents live there.
//! Approach: [`run`] builds every part in one place, top to bottom, and nothing is global. What fails for good is an
//! [`AgentError`] that says what to do; what is merely missing (eBPF, PSI, a file) is named once, in the log and in
//! `beelet_capability`, and the next best takes over.
//!
//! Properties: pods are not touched by the start or the end of the agent; what beelet changed by its own judgement (burst) is
//! put back at the end, or at the next start if there was no orderly end.

mod bpf_meter;
mod cycle;
mod disks;
mod machine;
mod notes;
mod self_report;
mod tasks;
mod watchers;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use beelet_core::World;
use beelet_core::content::Allocatable;
use beelet_core::dns::NodeDns;
use beelet_core::event::Event;
use beelet_core::ladder::{Rung, Rungs};
use beelet_core::node::{Enforce, NodeConfig};
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use beelet_ebpf_common::program;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::act::{
    self, CriRuntime, Executor, GoingStore, Guard, Journal, JournalError, MemoryError, Parts, StatusStore,
    TerminalStore,
};
use crate::cgroup::{Hierarchies, Tree};
use crate::clock::Clock;
use crate::config::{Config, ConfigError};
use crate::images::Puller;
use crate::images::keyring::Keyring;
use crate::kernel::btf::Btf;
use crate::kernel::cgroup::{self, CgroupError, CgroupLayout};
use crate::kernel::drop_reasons::DropReasons;
use crate::kernel::loader::{LoadOptions, Programs};
use crate::kernel::preflight;
use crate::kernel::programs::entries;
use crate::logs::keeper;
use crate::measure::{
    Command, NodeSources, Sampler, SamplerParts, SamplerThread, Slow, SlowParts, project_quota, slot,
};
use crate::protect;
use crate::report::metrics::MetricsError;
use crate::report::{AgentReport, Capability, Manifests, Published, SelfReport};
use crate::runtime::{NodeEnv, Runtime, RuntimeError};
use crate::server::{self, ServerError, ServerState};
use crate::sources::SourceState;
use crate::volumes::{self, NoObjects, Objects, Volumes};

/// Where pods come from.
#[derive(Clone, Debug)]
pub enum PodSource {
    /// Files in a folder (or one file), watched.
    Folder(PathBuf),
    /// Whoever holds the other end.
    Channel(watch::Receiver<Arc<SourceState>>),
    /// Nowhere: beside a kubelet.
    None,
}

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The node's name.
    pub node_name: String,
    /// The node's address; found out where it is `None`.
    pub node_ip: Option<IpAddr>,
    /// Where pods come from.
    pub source: PodSource,
    /// The settings.
    pub config: Config,
    /// Where beelet keeps its files: volumes, journal.
    pub root: PathBuf,
    /// The eBPF programs.
    pub bpf_object: PathBuf,
    /// Pods belong to a kubelet: write nothing.
    pub beside: bool,
    /// Who has ConfigMaps and Secrets; nobody for static pods.
    pub objects: Option<Arc<dyn Objects>>,
}

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The settings do not fit the machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There are no usable cgroups.
    #[error("no usable cgroups: {0}")]
    Cgroups(#[from] CgroupError),
    /// The cgroup tree cannot be written.
    #[error(
        "the cgroups cannot be used: {0}; beelet needs root and a writable cgroup file system (or --beside-kubelet, which writes nothing)"
    )]
    Tree(#[from] crate::cgroup::Error),
    /// The machine cannot be read.
    #[error("the machine's CPUs and memory cannot be found out: {0}")]
    Machine(#[from] procfs::ProcError),
    /// A folder of our own cannot be used.
    #[error("cannot use {path}: {source}; give another one with --root-dir, or run as root")]
    Root {
        /// The folder.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Another agent runs on this root.
    #[error("another beelet uses {path} (it holds the lock); stop it, or give this one a --root-dir of its own")]
    Locked {
        /// The lock file.
        path: String,
    },
    /// The folder of ended pods.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The runtime's endpoint is not one.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The server's address cannot be had.
    #[error("{0} (`address` and `readOnlyPort`, else `port`, in the configuration)")]
    Bind(#[from] ServerError),
    /// The metrics contradict each other.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// No thread.
    #[error("a thread cannot be started: {0}")]
    Thread(std::io::Error),
    /// A part of the agent broke.
    #[error(
        "the task {task:?} panicked (its message is above): a mistake in beelet, please report it; pods go on, start the agent anew"
    )]
    Panicked {
        /// The part.
        task: &'static str,
    },
    /// A part ended that the agent cannot go on without.
    #[error("the task {task:?} ended, without which beelet is blind; pods go on, start the agent anew")]
    Ended {
        /// The part.
        task: &'static str,
    },
}

/// What a running agent shows to those who started it.
#[derive(Clone, Debug)]
pub struct Handles {
    /// The newest picture.
    pub published: Published,
    /// Where it serves.
    pub address: SocketAddr,
}

/// Runs until `stop` is cancelled. `started` is told once the agent serves.
///
/// # Errors
/// What keeps it from running; see [`AgentError`]. A runtime that is not there yet is waited for.
pub async fn run(
    options: Options,
    started: Option<tokio::sync::oneshot::Sender<Handles>>,
    stop: CancellationToken,
) -> Result<(), AgentError> {
    // Whatever ends the agent ends all of its parts.
    let stop = stop.child_token();
    let _stop_all = stop.clone().drop_guard();
    let clock = Clock;
    options.config.check_programs(&program::ALL)?;
    let layout = CgroupLayout::detect()?;
    match cgroup::raise_open_files() {
        Ok(files) => debug!(files, "so many files may be open"),
        Err(error) => {
            warn!(%error, "the limit of open files cannot be raised; files of cgroups beyond it are opened for each reading");
        }
    }
    let protected = protect::this_process(options.config.kubelet.oom_score_adj);
    let machine = machine::find_out(&layout, &options.root)?;
    if !options.beside
        && let Some(degraded) = options.config.check_cgroup_layout(&machine)?
    {
        warn!("{degraded}");
    }
    if !options.beside
        && let Some(degraded) = options.config.check_swap(&machine)?
    {
        warn!("{degraded}");
    }
    let mut node = options.config.node_config(&machine, &options.node_name)?;
    node.beside = options.beside;
    let _lock = lock(&options.root)?;
    if let Err(error) = act::guard::let_go(&options.root) {
        error!(%error, "what an agent that was killed left turned cannot be turned back yet");
    }
    let kubelet = &options.config.kubelet;

    // The tree first: the eBPF programs are attached to it.
    let tree = if options.beside { None } else { Some(Arc::new(Tree::new(Hierarchies::detect()?))) };
    if let Some(tree) = &tree {
        tree.create(&node.kubepods)?;
    }
    let pods_root = pods_root(&layout, &node.kubepods);
    let probed = preflight::probe(Some(&layout), &pods_root);
    node.rungs = rungs(node.rungs, &probed);

    // What measures.
    let wanted = load_options(&options.config);
    let mut programs = Programs::load(&options.bpf_object, &wanted, &layout.unified().join(&pods_root));
    tell_programs(&programs);
    let (samples_to, samples) = slot();
    let (events_to, events) = mpsc::unbounded_channel();
    let (slow, slow_threads) = Slow::spawn(SlowParts {
        node: NodeSources {
            layout: layout.clone(),
            kubepods: pods_root.clone(),
            root: options.root.clone(),
            runtime_socket: kubelet.runtime_socket.clone(),
        },
        volumes: Volumes::new(&options.root, &kubelet.pod_logs_dir),
        listen_events: programs.report().programs.iter().any(|it| it.name == program::SOCKET_STATE && it.loaded),
    })
    .map_err(AgentError::Thread)?;
    let (born_to, born) = mpsc::unbounded_channel();
    let (sampler, SamplerThread { thread, ended }) = Sampler::spawn(SamplerParts {
        layout: layout.clone(),
        kubepods: pods_root.clone(),
        counters: programs.take_counters(),
        clock,
        slow: slow.clone(),
        samples: samples_to,
        events: events_to.clone(),
        drop_reasons: Btf::of_kernel().map(|btf| DropReasons::of(&btf)).unwrap_or_default(),
        born: Some(born_to),
    })
    .map_err(AgentError::Thread)?;

    // What acts.
    let host_ip = options.node_ip.or_else(machine::address).map(|ip| ip.to_string()).unwrap_or_default();
    if host_ip.is_empty() {
        warn!("this node has no address but loopback; status.hostIP is empty (give one with --node-ip)");
    }
    let instance = crate::runtime::instance(&options.root)
        .map_err(|source| AgentError::Root { path: options.root.display().to_string(), source })?;
    let runtime = Arc::new(Runtime::connect(
        &format!("unix://{}", kubelet.runtime_socket.display()),
        Duration::from_micros(kubelet.runtime_timeout.0),
        &instance,
    )?);
    let allocatable = Allocatable::from(&node);
    let objects = options.objects.clone().unwrap_or_else(|| Arc::new(NoObjects));
    let env = NodeEnv {
        instance,
        node_name: options.node_name.clone(),
        host_ips: vec![host_ip.clone()],
        root: options.root.clone(),
        pod_logs_dir: kubelet.pod_logs_dir.clone(),
        dns: NodeDns {
            cluster_servers: kubelet.cluster_dns.iter().map(ToString::to_string).collect(),
            cluster_domain: kubelet.cluster_domain.clone(),
            resolv_conf: None,
        },
        cgroup_v2: machine.cgroup_v2,
        seccomp_default: kubelet.seccomp_default,
        masked: machine::masked_here(Path::new("/sys/devices/system/cpu")),
        allocatable,
    };
    let mut volumes = Volumes::new(&options.root, &kubelet.pod_logs_dir);
    volumes.allocatable_memory = Some(node.allocatable().memory);
    volumes.cluster_domain.clone_from(&kubelet.cluster_domain);
    volumes.allocatable = allocatable;
    volumes.objects = Arc::clone(&objects);
    let volumes = Arc::new(volumes);
    let written = Arc::clone(&volumes);
    let leftovers = tree.as_ref().map_or(Ok(Vec::new()), |tree| leftovers(tree, &volumes, &node.kubepods))?;
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let executor = match tree {
        Some(tree) => Some(
            Executor::spawn(Parts {
                tree,
                volumes: Arc::clone(&volumes),
                runtime: Arc::new(CriRuntime {
                    runtime: Arc::clone(&runtime),
                    node: Arc::new(env),
                    volumes,
                    resolv_conf: kubelet.resolv_conf.clone(),
                    objects,
                    puller: Arc::new(Puller::new(
                        kubelet.pulls,
                        Keyring::of_node(&options.root, home.as_deref()),
                        kubelet.credential_providers.clone(),
                    )),
                    events: events_to.clone(),
                }),
                journal: Journal::open(options.root.join("journal"))?,
                guard: Some(Guard::new(options.root.clone())),
                host_ip: host_ip.clone(),
                events: events_to.clone(),
            })
            .map_err(AgentError::Thread)?,
        ),
        None => None,
    };
    let store = TerminalStore::open(&options.root)?;
    let (ends, torn) = store.load()?;
    for file in torn {
        warn!(file, "the note of a pod's end cannot be read; if the pod is still wanted it runs again");
    }
    let _ = events_to.send(Event::Remembered(ends));
    let going = GoingStore::open(&options.root)?;
    let (left, torn) = going.load()?;
    for file in torn {
        warn!(file, "by when a pod has to be gone cannot be read; it has all its time to end");
    }
    let _ = events_to.send(Event::Going(left));
    let status = StatusStore::open(&options.root)?;
    let (shown, torn) = status.load()?;
    for file in torn {
        debug!(file, "what was shown of a pod cannot be read");
    }
    let _ = events_to.send(Event::Noted(shown));
    let notes = notes::Notes::spawn(store, going, status).map_err(AgentError::Thread)?;

    // What shows.
    let (published, manifests) = (Published::default(), Manifests::default());
    let report = AgentReport::new(SelfReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        revision: option_env!("BEELET_REVISION").unwrap_or_default().to_owned(),
        mode: if options.beside { "beside" } else { "standalone" }.to_owned(),
        host_ip: host_ip.clone(),
        started: clock.now().mono,
        kubepods: node.kubepods.clone(),
        capabilities: capabilities(probed, &node, &options.root, &programs, protected),
        ..SelfReport::default()
    });
    let listener = server::bind(kubelet.server_address()).await?;
    let address = listener.local_addr().unwrap_or_else(|_| kubelet.server_address());
    let state = ServerState::new(published.clone(), report.clone(), manifests.clone())?;
    let serving = tokio::spawn(server::serve(listener, state, stop.clone()));
    info!(%address, "serving /metrics, /pods, /healthz and /debug");
    if let Some(started) = started {
        let _ = started.send(Handles { published: published.clone(), address });
    }

    // What wakes.
    let (relist, period) = (Arc::new(Notify::new()), watch::channel(Micros::secs(1)));
    let listed = Arc::new(AtomicU64::new(0));
    let mut tasks = tasks::Tasks::default();
    if options.beside {
        // Some releases of containerd give each event to one client only; the kubelet's events are the kubelet's.
        tasks.spawn("keep", watchers::keep(period.0));
    } else {
        let events = watchers::runtime_events(Arc::clone(&runtime), Arc::clone(&relist), period.0, report.clone());
        tasks.spawn("runtime events", events);
        let asked = Arc::clone(&runtime);
        tasks.spawn("cgroup driver", async move { asked.check_cgroup_driver().await });
    }
    let listing = cycle::list(
        Arc::clone(&runtime),
        clock,
        Arc::clone(&relist),
        period.1,
        leftovers,
        events_to.clone(),
        Arc::clone(&listed),
    );
    tasks.spawn_vital("listing", listing);
    tasks.spawn_vital("sampler", async {
        let _ = ended.await;
    });
    tasks.spawn("pressure", watchers::pressure(layout.clone(), pods_root.clone(), sampler.clone(), report.clone()));
    let memory_events = watchers::memory_events(layout.clone(), pods_root, born, sampler.clone(), report.clone());
    tasks.spawn("memory events", memory_events);
    let heap = crate::heap::keep_small({
        let sampler = sampler.clone();
        move || sampler.health().is_urgent()
    });
    tasks.spawn("heap", heap);
    tasks.spawn("disk stats", slow.clone().follow_runtime(Arc::clone(&runtime)));
    if !options.beside {
        if let Some(policy) = kubelet.logs {
            let interval = Duration::from_micros(kubelet.log_interval.0);
            let settings = keeper::Settings { policy, workers: kubelet.log_workers, interval };
            let kept = keeper::keep(Arc::clone(&runtime), settings, runtime.log_health(), runtime.running_logs());
            tasks.spawn_vital("logs", kept);
        }
        tasks.spawn("written volumes", volumes::refresh::keep(written, published.clone()));
        tasks.spawn("log links", watchers::log_links(Arc::clone(&runtime), kubelet.pod_logs_dir.clone()));
    }
    let tidier = (!options.beside).then(|| disks::Tidier {
        runtime: Arc::clone(&runtime),
        published: published.clone(),
        policy: kubelet.image_policy,
        observe: node.enforce == Enforce::Observe,
    });
    let (disk_orders, ears) = disks::channels();
    let (watching, tidying) = disks::tasks(ears, options.root.clone(), slow.clone(), tidier, events_to.clone());
    tasks.spawn("disks", watching);
    if let Some(tidying) = tidying {
        tasks.spawn("tidying", tidying);
    }
    match programs.take_events() {
        Ok(Some(stream)) => {
            tasks.spawn("kernel events", watchers::kernel_events(stream, sampler.clone()));
        }
        Ok(None) => {}
        Err(error) => {
            warn!(%error, "kernel events cannot be read; exits and OOM kills are told by the runtime and by counters");
        }
    }
    if let Some(log) = programs.take_log() {
        tasks.spawn("program log", watchers::program_log(log));
    }
    let wishes = watchers::wishes(options.source.clone(), options.clone(), manifests, events_to.clone());
    tasks.spawn("wishes", wishes);
    let reporter = self_report::SelfReporter {
        programs,
        runtime,
        sampler: sampler.clone(),
        slow: slow.clone(),
        listed,
        report,
        clock,
        events: events_to.clone(),
    };
    tasks.spawn_vital("self report", reporter.run());

    let cycle = cycle::Cycle {
        world: World::new(node),
        clock,
        events,
        samples,
        executor,
        sampler: sampler.clone(),
        relist,
        disks: disk_orders,
        notes,
        published,
    };
    let cycle = cycle.run(stop.clone());
    tokio::pin!(cycle);
    let (executor, failed) = tokio::select! {
        biased;
        executor = &mut cycle => (executor, None),
        error = tasks.failed() => {
            error!(%error, "stopping");
            stop.cancel();
            (cycle.await, Some(error))
        }
    };
    tasks.shutdown().await;
    sampler.tell(Command::Stop);
    slow.stop();
    if let Some(executor) = executor {
        executor.stop().await;
    }
    if thread.join().is_err() {
        warn!("the sampler ended in a panic");
    }
    for thread in slow_threads {
        if thread.join().is_err() {
            warn!("the slow reader ended in a panic");
        }
    }
    if let Err(error) = serving.await {
        warn!(%error, "the server did not end in order");
    }
    info!("stopped; pods go on");
    failed.map_or(Ok(()), Err)
}

/// How long another holder of the lock is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// One agent per root.
fn lock(root: &Path) -> Result<std::fs::File, AgentError> {
    let failed = |source| AgentError::Root { path: root.display().to_string(), source };
    std::fs::create_dir_all(root).map_err(failed)?;
    let path = root.join("lock");
    let file = std::fs::File::create(&path).map_err(failed)?;
    let asked = Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // The guard of an agent that was killed has it for a moment.
            Err(rustix::io::Errno::WOULDBLOCK) if asked.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(AgentError::Locked { path: path.display().to_string() });
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

/// The pods that an earlier life of the agent left a cgroup or folders of, by its own marks: what others have is not touched. Which
/// of them are still wanted is the core's business.
fn leftovers(tree: &Tree, volumes: &Volumes, kubepods: &str) -> Result<Vec<(PodUid, String)>, AgentError> {
    let mut found: BTreeMap<PodUid, String> = volumes.list().into_iter().map(|uid| (uid, String::new())).collect();
    for (uid, path) in tree.list_pods(kubepods)? {
        found.entry(uid).and_modify(|known| *known = path);
    }
    Ok(found.into_iter().collect())
}

/// `kubepods`, or beside a kubelet that has none the root of all.
fn pods_root(layout: &CgroupLayout, kubepods: &str) -> PathBuf {
    let path = PathBuf::from(kubepods);
    if layout.unified().join(&path).is_dir() {
        return path;
    }
    let systemd = PathBuf::from("kubepods.slice");
    if layout.unified().join(&systemd).is_dir() {
        return systemd;
    }
    warn!(kubepods, "there is no such cgroup; programs are attached at the root");
    PathBuf::new()
}

fn load_options(config: &Config) -> LoadOptions {
    let off = program::ALL.iter().filter(|name| !config.policy.wants_program(name)).map(|&name| name.to_owned());
    let entries = entries(config.kubelet.max_pods);
    LoadOptions { off: off.collect(), log: config.policy.program_log, entries, ..LoadOptions::default() }
}

/// The rungs of the ladder, less those for which the kernel lacks a file.
fn rungs(rungs: Rungs, probed: &[preflight::Capability]) -> Rungs {
    let needs = [(Rung::Reclaim, "memory_reclaim"), (Rung::Throttle, "memory_high"), (Rung::Freeze, "cgroup_freeze")];
    needs.into_iter().fold(rungs, |rungs, (rung, needed)| {
        match probed.iter().find(|it| it.name == needed && !it.available) {
            Some(lacking) => rungs.lacking(rung, lacking.reason.clone()),
            None => rungs,
        }
    })
}

fn capabilities(
    probed: Vec<preflight::Capability>,
    node: &NodeConfig,
    root: &Path,
    programs: &Programs,
    protected: Vec<protect::Fact>,
) -> Vec<Capability> {
    let mut found: Vec<Capability> = probed
        .into_iter()
        .map(|c| Capability { name: c.name.to_owned(), available: c.available, reason: c.reason })
        .collect();
    for field in &programs.report().missing_fields {
        found.push(Capability { name: "btf_field".to_owned(), available: false, reason: field.clone() });
    }
    found.push(Capability { name: "project_quota".to_owned(), available: false, reason: project_quota(root) });
    found.extend(protected.into_iter().map(|protect::Fact { name, outcome }| Capability {
        name: name.to_owned(),
        available: outcome.is_ok(),
        reason: outcome.unwrap_or_else(|reason| reason),
    }));
    let modules = [("apparmor", node.security.app_armor), ("selinux", node.security.se_linux)];
    found.extend(modules.map(|(name, available)| Capability {
        name: name.to_owned(),
        available,
        reason: if available { "on" } else { "this kernel has it not, or it is off" }.to_owned(),
    }));
    found.extend(node.rungs.states().map(|(rung, lacks)| Capability {
        name: format!("rung_{rung}"),
        available: lacks.is_none(),
        reason: lacks.unwrap_or_else(|| "may be used".to_owned()),
    }));
    for capability in &found {
        if !capability.available {
            warn!(capability = capability.name, reason = capability.reason, "not available here");
        }
    }
    found
}

/// Says what became of the eBPF programs; those that are missing for the same reason in one line.
fn tell_programs(programs: &Programs) {
    let report = programs.report();
    for program in report.programs.iter().filter(|p| p.loaded) {
        info!(program = program.name, instructions = program.verified_insns, "eBPF program loaded");
    }
    for (reason, names) in report.missing() {
        let programs = names.join(", ");
        warn!(programs, reason, "eBPF programs not loaded; the next best source takes over");
    }
}

/// Adds what was found out later than at start.
fn add_capability(report: &AgentReport, name: &str, available: bool, reason: &str) {
    let mut next = SelfReport::clone(&report.current());
    next.capabilities.retain(|c| c.name != name);
    next.capabilities.push(Capability { name: name.to_owned(), available, reason: reason.to_owned() });
    report.publish(next);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchies;

    #[test]
    fn only_what_is_marked_is_a_leftover() {
        let dir = tempfile::tempdir().expect("a folder");
        let volumes = Volumes::new(dir.path().join("root"), dir.path().join("logs"));
        let tree = Tree::new(Hierarchies { unified: dir.path().join("cgroup"), v1: Vec::new() });
        for (class, uid) in [("", "foreign"), ("burstable", "ours"), ("besteffort", "foreign2")] {
            let cgroup = dir.path().join("cgroup/kubepods").join(class).join(format!("pod{uid}"));
            std::fs::create_dir_all(cgroup).expect("a cgroup");
            std::fs::create_dir_all(dir.path().join("root/pods").join(uid)).expect("a pod's folder");
        }
        assert_eq!(leftovers(&tree, &volumes, "kubepods").expect("a list"), []);
        for uid in ["ours", "files only"] {
            volumes.mark(&beelet_core::spec::PodSpec::unknown(uid.into())).expect("marked");
        }
        let expected = [("files only".into(), String::new()), ("ours".into(), "kubepods/burstable/podours".to_owned())];
        assert_eq!(leftovers(&tree, &volumes, "kubepods").expect("a list"), expected);
    }
}
