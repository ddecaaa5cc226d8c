//! Loads the eBPF programs, each for itself.
//!
//! **Problem.** A node may refuse one program and take another; a switch may turn one off. Measuring must go on with the rest,
//! and everybody must be able to see what is missing and why.
//!
//! **Approach.** One object. Its maps are of kinds that every kernel from 5.15 on has. Each program of the
//! [table](super::programs::TABLE) is loaded and attached alone; a failure becomes text in its [`ProgramStatus`].
//! [`Programs::load`] itself never fails: without an object, BTF or privilege, every status says so.
//!
//! **Terms.** *Pods' root*: the cgroup directory in the unified hierarchy below which all pods are. The network programs are
//! attached there; CPU and exits are recorded only below it.
//!
//! **Properties.** Programs stay attached as long as [`Programs`] lives, and are gone with it. No program of somebody else is
//! replaced or detached.

use std::{
    collections::BTreeSet,
    error::Error,
    fmt::Write as _,
    fs,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, Iter, Program, ProgramError},
    sys::{Stats, enable_stats},
};
use aya_log::EbpfLogger;
use beelet_ebpf_common::{OFFSET_UNKNOWN, global, map, program};
use tokio::io::Interest;

use super::{
    btf::{Btf, BtfError},
    events::{EventError, EventStream},
    maps::Counters,
    offsets::{self, Offsets},
    programs::{self, Hook, Need, Row},
    watch::Watch,
};

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Programs that are not to be loaded, by name.
    pub off: BTreeSet<String>,
    /// Whether the kernel measures how long the programs take (some 60 ns more for each event of all eBPF programs).
    pub stats: bool,
    /// Whether messages of the programs are let through.
    pub log: bool,
    /// Cgroups for which the maps have room: see [`programs::entries`].
    pub entries: u32,
}

impl Default for LoadOptions {
    /// All programs and their statistics, no messages, room for the smallest node.
    fn default() -> Self {
        Self { off: BTreeSet::new(), stats: true, log: false, entries: programs::entries(0) }
    }
}

impl LoadOptions {
    fn wants(&self, name: &str) -> bool {
        !self.off.contains(name)
    }
}

/// What became of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramStatus {
    /// Its name, one of [`program::ALL`].
    pub name: &'static str,
    /// Whether it is loaded and attached.
    pub loaded: bool,
    /// Why it is not; "switched off" if it was not wanted. Empty if it is loaded.
    pub reason: String,
    /// Instructions that the verifier walked through; 0 where the kernel does not tell (before 5.16) or it is not loaded.
    pub verified_insns: u32,
    /// Size of the translated program in bytes, 8 per instruction; 0 if it is not loaded.
    pub translated_bytes: u32,
}

/// What became of all programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// One entry per program, in the order of [`program::ALL`].
    pub programs: Vec<ProgramStatus>,
    /// Kernel fields that were not found; the programs leave them out.
    pub missing_fields: Vec<String>,
    /// Why run-time statistics are not there; `None` if they are, or are not wanted.
    pub stats_reason: Option<String>,
}

impl LoadReport {
    /// Whether a program is loaded and attached.
    #[must_use]
    pub fn is_loaded(&self, name: &str) -> bool {
        self.programs.iter().any(|program| program.name == name && program.loaded)
    }

    /// Whether a map is written: at least one of its programs is loaded.
    #[must_use]
    pub fn writes(&self, map: &str) -> bool {
        programs::writers(map).any(|name| self.is_loaded(name))
    }

    /// The programs that are not loaded, by the reason.
    #[must_use]
    pub fn missing(&self) -> Vec<(&str, Vec<&'static str>)> {
        let mut missing: Vec<(&str, Vec<&'static str>)> = Vec::new();
        for program in self.programs.iter().filter(|program| !program.loaded) {
            match missing.iter_mut().find(|(reason, _)| *reason == program.reason) {
                Some((_, names)) => names.push(program.name),
                None => missing.push((&program.reason, vec![program.name])),
            }
        }
        missing
    }
}

/// What running one program has cost since it was loaded, while statistics were on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramCost {
    /// Its name.
    pub name: &'static str,
    /// Time in the program, of all CPUs.
    pub run_time: Duration,
    /// Number of events.
    pub run_count: u64,
    /// Events that the kernel did not hand over since the program was loaded, with or without statistics: they happened in an
    /// interrupt while the same program ran on that CPU.
    pub missed: u64,
}

impl ProgramCost {
    /// Nanoseconds per event; `None` before the first.
    #[must_use]
    pub fn ns_per_event(&self) -> Option<u64> {
        let ns = u64::try_from(self.run_time.as_nanos()).unwrap_or(u64::MAX);
        ns.checked_div(self.run_count)
    }
}

/// Why nothing could be loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("cannot load the eBPF object {path}: {source}{advice}", source = chain(source.as_ref()), advice = advice(source.as_ref()))]
    Object { path: String, source: Box<aya::EbpfError> },
    #[error(transparent)]
    Types(#[from] BtfError),
    #[error("the kernel's type information is refused: {0}")]
    AyaTypes(aya::BtfError),
    #[error("no program is wanted")]
    Nothing,
}

/// Why one program could not be loaded.
#[derive(Debug, thiserror::Error)]
enum OneError {
    #[error("the object has no program of this name and kind")]
    Absent,
    #[error("{}", chain(.0))]
    Program(#[from] ProgramError),
    #[error("cannot open the pods' root {path}: {source}")]
    Root { path: String, source: std::io::Error },
    #[error("the pods' root {0} is no directory of a cgroup2 file system")]
    NotCgroup(String),
    #[error("the kernel has no field {0}, without which the program says nothing")]
    Field(String),
    #[error("the kernel has no tracepoint {0}")]
    Tracepoint(String),
    #[error("the kernel's tracepoint {name} passes {passed} arguments where the program needs {needed}")]
    Arguments { name: &'static str, passed: usize, needed: usize },
}

/// The loaded programs; dropping it detaches them.
pub struct Programs {
    ebpf: Option<Ebpf>,
    report: LoadReport,
    counters: Counters,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    stats: Option<OwnedFd>,
}

impl Programs {
    /// Loads and attaches what `options` want.
    ///
    /// `pods_root` is a directory of the unified hierarchy; without it the network programs are not attached. What could not
    /// be done is in the [report](Self::report).
    #[must_use]
    pub fn load(object: &Path, options: &LoadOptions, pods_root: &Path) -> Self {
        let mut programs = Self {
            ebpf: None,
            report: LoadReport::default(),
            counters: Counters::default(),
            logger: None,
            stats: None,
        };
        if let Err(error) = programs.load_object(object, options, pods_root) {
            let reason = error.to_string();
            programs.report.programs = program::ALL.iter().map(|name| refused(name, options, &reason)).collect();
        }
        programs
    }

    fn load_object(&mut self, object: &Path, options: &LoadOptions, pods_root: &Path) -> Result<(), LoadError> {
        if !program::ALL.iter().any(|name| options.wants(name)) {
            return Err(LoadError::Nothing);
        }
        let kernel = Btf::of_kernel()?;
        let mut offsets = Offsets::of(&kernel);
        let types = aya::Btf::from_sys_fs().map_err(LoadError::AyaTypes)?;
        let (root_id, root_level) = position_of(pods_root).unwrap_or((0, 0));
        offsets.values.extend([(global::PODS_ROOT_ID, root_id), (global::PODS_ROOT_LEVEL, root_level)]);

        let log_level: u8 = if options.log { 0xff } else { 0 };
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&types)).override_global(aya_log::LEVEL, &log_level, false);
        for (name, value) in &offsets.values {
            // A program that is compiled without a field has no such global.
            loader.override_global(name, value, false);
        }
        // aya has no name for some kinds of maps that it makes all the same: those of tasks, which only programs use.
        loader.allow_unsupported_maps();
        for (name, per_cgroup) in programs::SIZED {
            loader.map_max_entries(name, options.entries.saturating_mul(*per_cgroup));
        }
        let mut ebpf = loader
            .load_file(object)
            .map_err(|source| LoadError::Object { path: object.display().to_string(), source: Box::new(source) })?;

        let node = Node { types: &types, kernel: &kernel, offsets: &offsets, pods_root };
        for row in programs::TABLE {
            let status = if options.wants(row.name) {
                match node.attach(&mut ebpf, row) {
                    Ok(()) => accepted(&ebpf, row.name),
                    Err(error) => refused(row.name, options, &error.to_string()),
                }
            } else {
                refused(row.name, options, "")
            };
            self.report.programs.push(status);
        }
        self.report.missing_fields = offsets.missing;
        // Maps may be taken only now: the programs are loaded with their file descriptors.
        self.counters = Counters::take(&mut ebpf, &self.report);
        if options.log {
            self.logger = EbpfLogger::init(&mut ebpf)
                .inspect_err(|error| log::warn!("messages of the eBPF programs cannot be read: {error}"))
                .ok();
        }
        self.ebpf = Some(ebpf);
        if options.stats {
            self.enable_stats(true);
        }
        Ok(())
    }

    /// What is loaded and what is not, with reasons.
    #[must_use]
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// The counters that the programs keep.
    pub fn counters(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Takes the counters, for a task of their own.
    #[must_use]
    pub fn take_counters(&mut self) -> Counters {
        std::mem::take(&mut self.counters)
    }

    /// Takes the stream of events; `None` if no program that makes events is loaded, or it was taken.
    ///
    /// # Errors
    /// If the ring buffer cannot be mapped or watched. Needs a tokio runtime.
    pub fn take_events(&mut self) -> Result<Option<EventStream>, EventError> {
        if !self.report.writes(map::EVENTS) {
            return Ok(None);
        }
        self.ebpf.as_mut().and_then(|ebpf| ebpf.take_map(map::EVENTS)).map(EventStream::new).transpose()
    }

    /// Takes what forwards the programs' messages to the `log` crate; `None` unless [`LoadOptions::log`].
    #[must_use]
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        self.logger.take().map(ProgramLog)
    }

    /// Switches the kernel's run-time statistics on or off (for all eBPF programs of the machine, as long as somebody wants
    /// them). Off by a failure: see [`LoadReport::stats_reason`].
    pub fn enable_stats(&mut self, on: bool) {
        self.stats = None;
        self.report.stats_reason = None;
        if on {
            match enable_stats(Stats::RunTime) {
                Ok(fd) => self.stats = Some(fd),
                Err(error) => self.report.stats_reason = Some(chain(&error)),
            }
        }
    }

    /// What each loaded program has cost, while statistics were on.
    #[must_use]
    pub fn costs(&self) -> Vec<ProgramCost> {
        let Some(ebpf) = &self.ebpf else { return Vec::new() };
        program::ALL
            .iter()
            .filter(|name| self.report.is_loaded(name))
            .filter_map(|name| {
                let program = ebpf.program(name)?;
                let info = program.info().ok()?;
                let missed = missed(program.fd().ok()?.as_fd().as_raw_fd());
                Some(ProgramCost { name, run_time: info.run_time(), run_count: info.run_count(), missed })
            })
            .collect()
    }
}

/// What `/proc/self/fdinfo` says of a program's descriptor in `recursion_misses` (kernel/bpf/syscall.c `bpf_prog_show_fdinfo`,
/// since 5.12); 0 where it says nothing.
fn missed(fd: RawFd) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("recursion_misses:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Forwards messages of the eBPF programs to the `log` crate.
pub struct ProgramLog(EbpfLogger<&'static dyn log::Log>);

impl ProgramLog {
    /// Runs until the task is dropped.
    ///
    /// # Errors
    /// If the ring buffer cannot be watched.
    pub async fn run(self) -> std::io::Result<()> {
        let mut logger = self.0;
        let watch = Watch::new(logger.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        loop {
            logger.flush();
            watch.woken().await?;
        }
    }
}

impl std::fmt::Debug for ProgramLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("ProgramLog")
    }
}

fn refused(name: &'static str, options: &LoadOptions, reason: &str) -> ProgramStatus {
    let reason = if options.wants(name) { reason } else { "switched off" };
    ProgramStatus { name, loaded: false, reason: reason.to_owned(), verified_insns: 0, translated_bytes: 0 }
}

fn accepted(ebpf: &Ebpf, name: &'static str) -> ProgramStatus {
    let info = ebpf.program(name).and_then(|program| program.info().ok());
    ProgramStatus {
        name,
        loaded: true,
        reason: String::new(),
        verified_insns: info.as_ref().and_then(aya::programs::ProgramInfo::verified_instruction_count).unwrap_or(0),
        translated_bytes: info.as_ref().and_then(aya::programs::ProgramInfo::size_translated).unwrap_or(0),
    }
}

/// What attaching looks at.
struct Node<'a> {
    types: &'a aya::Btf,
    kernel: &'a Btf,
    offsets: &'a Offsets,
    pods_root: &'a Path,
}

impl Node<'_> {
    fn attach(&self, ebpf: &mut Ebpf, row: &Row) -> Result<(), OneError> {
        let program = ebpf.program_mut(row.name).ok_or(OneError::Absent)?;
        for need in row.needs {
            self.check(*need)?;
        }
        match row.hook {
            Hook::TracePoint(names) => {
                let name = self.tracepoint(names, row.arguments)?;
                let program: &mut BtfTracePoint = program.try_into().map_err(|_| OneError::Absent)?;
                program.load(name, self.types)?;
                if let Err(error) = program.attach() {
                    unload(program.unload(), row.name);
                    return Err(error.into());
                }
                Ok(())
            }
            Hook::CgroupSkb(direction) => attach_to_cgroup(program, row.name, direction, self.pods_root),
            Hook::Iterator(name) => {
                let program: &mut Iter = program.try_into().map_err(|_| OneError::Absent)?;
                // Whoever reads it attaches it.
                Ok(program.load(name, self.types)?)
            }
        }
    }

    fn check(&self, need: Need) -> Result<(), OneError> {
        let field = match need {
            Need::Field(field) => field,
            Need::FieldUnless(_, flag) if self.offsets.get(flag) == Some(1) => return Ok(()),
            Need::FieldUnless(field, _) => field,
        };
        match self.offsets.get(field) {
            Some(offset) if offset != OFFSET_UNKNOWN => Ok(()),
            _ => Err(OneError::Field(offsets::describe(field))),
        }
    }

    /// The first of these tracepoints that the kernel has.
    fn tracepoint(&self, names: &[&'static str], needed: usize) -> Result<&'static str, OneError> {
        let found = names.iter().find_map(|name| Some((*name, self.kernel.tracepoint(name).ok()?.len())));
        match found {
            None => Err(OneError::Tracepoint(names.join(" or "))),
            Some((name, passed)) if passed < needed => Err(OneError::Arguments { name, passed, needed }),
            Some((name, _)) => Ok(name),
        }
    }
}

/// `CGROUP2_SUPER_MAGIC` of the kernel.
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;

fn attach_to_cgroup(
    program: &mut Program,
    name: &str,
    direction: CgroupSkbAttachType,
    pods_root: &Path,
) -> Result<(), OneError> {
    let root =
        fs::File::open(pods_root).map_err(|source| OneError::Root { path: pods_root.display().to_string(), source })?;
    // The kernel would only say that the file descriptor is bad.
    if !rustix::fs::fstatfs(&root).is_ok_and(|it| it.f_type == CGROUP2_MAGIC) {
        return Err(OneError::NotCgroup(pods_root.display().to_string()));
    }
    let program: &mut CgroupSkb = program.try_into().map_err(|_| OneError::Absent)?;
    program.load()?;
    // A link never replaces another program, so Single is right; AllowMultiple is refused for links.
    if let Err(error) = program.attach(root, direction, CgroupAttachMode::Single) {
        unload(program.unload(), name);
        return Err(error.into());
    }
    Ok(())
}

fn unload(result: Result<(), ProgramError>, name: &str) {
    if let Err(error) = result {
        log::debug!("{name} could not be unloaded: {error}");
    }
}

/// Id and depth of a cgroup of the unified hierarchy; `None` where the depth cannot be told (the mount shows only a part of
/// the hierarchy), and then nothing is filtered.
fn position_of(directory: &Path) -> Option<(u64, u64)> {
    // The inode number of the root of a cgroup2 file system.
    const ROOT: u64 = 1;
    let directory = fs::canonicalize(directory).ok()?;
    let device = fs::metadata(&directory).ok()?.dev();
    for (level, ancestor) in (0_u64..).zip(directory.ancestors()) {
        let metadata = fs::metadata(ancestor).ok()?;
        if metadata.dev() != device {
            return None;
        }
        if metadata.ino() == ROOT {
            return Some((fs::metadata(&directory).ok()?.ino(), level));
        }
    }
    None
}

/// What to do about an error, for those that have one cure.
fn advice(error: &(dyn Error + 'static)) -> &'static str {
    let causes = std::iter::successors(Some(error), |error: &&'_ (dyn Error + 'static)| Error::source(*error));
    let codes =
        causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()).filter_map(std::io::Error::raw_os_error);
    match codes.last().map(rustix::io::Errno::from_raw_os_error) {
        // EACCES is the verifier's answer; it has its own text.
        Some(rustix::io::Errno::PERM) => {
            "; run beelet as root with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, in a container that is privileged"
        }
        Some(rustix::io::Errno::NOENT) => "; name it with --bpf-object",
        _ => "",
    }
}

/// An error with its causes, on one line; the verifier's output is cut to its last lines.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            let _ = write!(text, ": {more}");
        }
        cause = error.source();
    }
    const KEEP: usize = 600;
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.len() > 2 * KEEP {
        let (head, tail) = (text.floor_char_boundary(KEEP), text.ceil_char_boundary(text.len() - KEEP));
        text = format!("{} ... {}", &text[..head], &text[tail..]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_object_every_program_says_why() {
        let options = LoadOptions { off: [program::OOM_VICTIM.to_owned()].into(), ..LoadOptions::default() };
        let mut programs = Programs::load(Path::new("/nonexistent/object"), &options, Path::new("/nonexistent"));
        assert_eq!(programs.report().programs.len(), program::ALL.len());
        for status in &programs.report().programs {
            assert!(!status.loaded && !status.reason.is_empty(), "{status:?}");
            assert_eq!(status.reason == "switched off", status.name == program::OOM_VICTIM, "{status:?}");
        }
        let missing = programs.report().missing();
        assert_eq!(
            missing.iter().map(|(_, names)| names.len()).collect::<Vec<_>>(),
            [program::ALL.len() - 1, 1],
            "{missing:?}"
        );
        assert_eq!(missing[1], ("switched off", vec![program::OOM_VICTIM]));
        assert!(programs.costs().is_empty());
        assert!(programs.take_events().unwrap().is_none());
        assert_eq!(programs.counters().read(1).unwrap().cpu, None);
    }

    #[test]
    fn each_program_has_a_switch_of_its_own() {
        let one = LoadOptions { off: [program::SKB_EGRESS.to_owned()].into(), ..LoadOptions::default() };
        let wanted: Vec<_> = program::ALL.into_iter().filter(|name| !one.wants(name)).collect();
        assert_eq!(wanted, [program::SKB_EGRESS]);
    }

    #[test]
    fn cost_per_event_is_told_only_after_an_event() {
        let mut cost = ProgramCost { name: "x", run_time: Duration::ZERO, run_count: 0, missed: 0 };
        assert_eq!(cost.ns_per_event(), None);
        cost = ProgramCost { run_time: Duration::from_micros(3), run_count: 20, ..cost };
        assert_eq!(cost.ns_per_event(), Some(150));
    }

    #[test]
    fn long_reasons_are_cut_in_the_middle() {
        let text = chain(&std::io::Error::other("é".repeat(5000)));
        assert!(text.len() < 1300 && text.contains(" ... "));
    }
}
