//! Health without probes.
//!
//! Problem: a probe costs a process or a connection each few seconds and still passes while the workers of a pod die one by one.
//! Approach: one [`HealthModel`] per pod keeps a *sign* for each fact that the kernel or the runtime told, with its time, and
//! gives a [`Verdict`] from the signs that stand now. Nothing is asked of the pod.
//!
//! Terms, and when a sign ends:
//! * `OOMVictim`: the OOM killer took a process. *Fatal* (a pod whose workers are killed is not well, even if its first process lives).
//! * `FatalSignal`: SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV or SIGSYS ended a process; fatal if it was a container's first.
//!   SIGKILL and SIGTERM are not in the list: somebody else sent them.
//! * `CrashLoop`: a container is in back-off, or failed twice within [`CRASH_WINDOW`]. Fatal; one sign if it ended well.
//! * `ListenerGone`: a TCP port that listened for [`LISTENED`] is gone for [`GRACE`] while no container ended. Fatal if the port is
//!   declared or nothing listens any more, else one sign.
//! * The first three end when the container has run for [`RAN_WELL`] since, or after [`REMEMBER`]; a back-off lasts as long as
//!   it does; a listener's sign ends when the port listens again or a container ends (its next run may listen elsewhere).
//!
//! Properties (tested): Unknown until something ran for [`SETTLED`]; one sign is Suspect, a fatal one or two kinds are Unhealthy;
//! what we stop ourselves says nothing; without signs the verdict comes back to Healthy; evidence is at most [`EVIDENCE`] lines;
//! a verdict depends on the facts and the time alone, not on how often it is asked for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::event::Exit;
use crate::sample::{KernelEvent, KernelEventKind};
use crate::units::{Micros, Now};

/// Running for this long is the least that a verdict needs.
pub const SETTLED: Micros = Micros::secs(1);
/// Running for this long ends the signs of a container's earlier end.
pub const RAN_WELL: Micros = Micros::secs(60);
/// No sign is older than this.
pub const REMEMBER: Micros = Micros::secs(300);
/// Two failures within this time are a loop; the kubelet resets its back-off after twice its longest delay, 10 minutes.
pub const CRASH_WINDOW: Micros = Micros::secs(600);
/// A port counts as a service once it listened for this long.
pub const LISTENED: Micros = Micros::secs(1);
/// A port may be gone for this long: a graceful reload closes and opens, and the news of a container's end may come this late.
pub const GRACE: Micros = Micros::secs(2);
/// The most lines of evidence.
pub const EVIDENCE: usize = 8;
/// The most ports that are followed; a pod that opens more is followed on the lowest.
const PORTS: usize = 64;
/// The most containers that are followed.
const CONTAINERS: usize = 64;

/// What beelet thinks of a pod, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The state.
    pub state: Health,
    /// The reason's name: `OOMVictim`, `FatalSignal`, `CrashLoop`, `ListenerGone`; "" for none.
    pub reason: String,
    /// What was seen, newest last.
    pub evidence: Vec<String>,
    /// Since when (wall clock).
    pub since: Micros,
}

/// The states of a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Not enough is known.
    #[default]
    Unknown,
    /// Nothing speaks against it.
    Healthy,
    /// One sign.
    Suspect,
    /// A fatal fact, or two independent signs.
    Unhealthy,
}

/// The kinds of signs, the most telling first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    OomVictim,
    FatalSignal,
    CrashLoop,
    ListenerGone,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::OomVictim => "OOMVictim",
            Self::FatalSignal => "FatalSignal",
            Self::CrashLoop => "CrashLoop",
            Self::ListenerGone => "ListenerGone",
        }
    }
}

/// A sign of one container.
#[derive(Clone, Copy, Debug)]
struct Sign {
    /// Since when it stands.
    first: Micros,
    /// When it was last confirmed.
    at: Micros,
    fatal: bool,
}

impl Sign {
    fn new(at: Micros, fatal: bool) -> Self {
        Self { first: at, at, fatal }
    }
}

#[derive(Clone, Debug, Default)]
struct Container {
    /// Since when it runs (monotonic).
    running: Option<Micros>,
    /// It ended, and ran long enough before: a pod between two good runs is not unknown.
    ran_well: bool,
    in_backoff: bool,
    failures: VecDeque<Micros>,
    /// The end that was counted last, so that one told twice counts once.
    counted: Option<(Micros, u32)>,
    signs: BTreeMap<Kind, Sign>,
}

impl Container {
    /// When a sign ends by the passing of time; `None` while it lasts.
    fn expiry(&self, kind: Kind, sign: &Sign) -> Option<Micros> {
        if kind == Kind::CrashLoop && self.in_backoff {
            return None;
        }
        let forgotten = sign.at + REMEMBER;
        Some(self.running.map_or(forgotten, |since| forgotten.min(since.max(sign.at) + RAN_WELL)))
    }

    fn stands(&self, kind: Kind, sign: &Sign, now: Micros) -> bool {
        self.expiry(kind, sign).is_none_or(|end| now < end)
    }
}

#[derive(Clone, Copy, Debug)]
struct Listener {
    first: Micros,
    /// Since when a listing has not shown it.
    gone: Option<Micros>,
}

/// The health of one pod.
#[derive(Clone, Debug, Default)]
pub struct HealthModel {
    declared: BTreeSet<u16>,
    containers: BTreeMap<String, Container>,
    /// When the first container ran, ever.
    ran: Option<Micros>,
    stopping: bool,
    listeners: BTreeMap<u16, Listener>,
    last_listing: Option<Micros>,
    /// When a sign was last ended by news.
    cleared: Micros,
    notes: VecDeque<(Micros, String)>,
}

impl HealthModel {
    /// A pod that nothing is known of, with the TCP ports that its containers declare.
    #[must_use]
    pub fn new(declared: BTreeSet<u16>) -> Self {
        Self { declared, ..Self::default() }
    }

    /// How many signs, failures, listeners and notes are remembered.
    #[must_use]
    pub fn size(&self) -> usize {
        let containers: usize = self.containers.values().map(|c| 1 + c.failures.len() + c.signs.len()).sum();
        containers + self.listeners.len() + self.notes.len()
    }

    /// beelet stops the pod now: from here on no end and no closed port is a sign.
    pub fn on_stopping(&mut self) {
        self.stopping = true;
    }

    /// A container was started, or found running. Told again, the first time counts until it ends.
    pub fn on_running(&mut self, container: &str, now: Now) {
        let at = now.mono;
        self.ran = Some(self.ran.map_or(at, |ran| ran.min(at)));
        if let Some(c) = self.container(container) {
            c.running.get_or_insert(at);
            c.in_backoff = false;
        }
    }

    /// The kernel told something.
    pub fn on_kernel(&mut self, event: &KernelEvent) {
        let at = event.at;
        let name = event.container.as_deref().unwrap_or_default();
        let place = if name.is_empty() { "the pod".to_owned() } else { format!("container {name}") };
        match &event.kind {
            KernelEventKind::OomVictim { pid, comm } => {
                // A fact whoever stops the pod: memory ran out.
                self.sign(name, Kind::OomVictim, Sign::new(at, true));
                self.note(at, format!("the OOM killer chose {comm} (pid {pid}) in {place}"));
            }
            KernelEventKind::Exit { pid, comm, signal, is_init, .. } => {
                if *is_init {
                    self.ended(name, at);
                }
                if self.stopping || !is_fatal(*signal) {
                    return;
                }
                self.sign(name, Kind::FatalSignal, Sign::new(at, *is_init));
                let first = if *is_init { ", its first process" } else { "" };
                self.note(at, format!("{} ended {comm} (pid {pid}) in {place}{first}", signal_name(*signal)));
            }
            KernelEventKind::Listen { port, open: true } => self.appeared(*port, at),
            // With SO_REUSEPORT another socket may still listen: the next listing tells.
            KernelEventKind::Listen { open: false, .. } => {}
        }
    }

    /// The runtime told that a container ended. `restarts` numbers the run (0 for the first); `in_backoff`: its next start waits.
    /// The same end told again only updates `in_backoff`.
    pub fn on_exit(&mut self, container: &str, exit: &Exit, restarts: u32, in_backoff: bool, now: Now) {
        // When it ended, on our clock; not in the future.
        let at = now.mono - (now.wall - exit.finished);
        let oom = exit.reason == "OOMKilled";
        let failed = exit.code != 0 || oom;
        let Some(c) = self.container(container) else { return };
        c.in_backoff = in_backoff && failed;
        let end = Some((exit.finished, restarts));
        if c.counted == end {
            return;
        }
        c.counted = end;
        self.ended(container, at);
        if oom {
            self.sign(container, Kind::OomVictim, Sign::new(at, true));
        }
        if self.stopping {
            return;
        }
        let signal = u8::try_from(exit.code - 128).ok().filter(|&s| is_fatal(s));
        if let Some(signal) = signal {
            self.sign(container, Kind::FatalSignal, Sign::new(at, true));
            self.note(at, format!("container {container} ended by {} (run {restarts})", signal_name(signal)));
        } else if failed {
            let reason = if exit.reason.is_empty() { "Error" } else { exit.reason.as_str() };
            self.note(at, format!("container {container} ended with code {} ({reason}, run {restarts})", exit.code));
        }
        let Some(c) = self.container(container) else { return };
        if failed {
            if c.failures.len() == 2 {
                c.failures.pop_front();
            }
            c.failures.push_back(at);
        }
        let twice = c.failures.len() == 2 && c.failures.iter().all(|&f| at - f <= CRASH_WINDOW);
        if twice || in_backoff {
            self.sign(container, Kind::CrashLoop, Sign::new(at, failed));
        }
    }

    /// The TCP ports that something listens on in the pod's network namespace at `at`. Not for pods on the host's network.
    pub fn on_listening(&mut self, ports: &BTreeSet<u16>, at: Micros) {
        if self.last_listing.is_some_and(|last| at <= last) {
            return;
        }
        self.last_listing = Some(at);
        for &port in ports {
            self.appeared(port, at);
        }
        for (port, listener) in &mut self.listeners {
            // A socket opened after this listing was taken cannot be in it.
            if !ports.contains(port) && listener.first < at {
                listener.gone.get_or_insert(at);
            }
        }
        // What listened for a moment only was no service, and what is long gone is how the pod is now.
        self.listeners.retain(|_, l| l.gone.is_none_or(|gone| gone - l.first >= LISTENED && at - gone < REMEMBER));
    }

    /// The verdict of now.
    #[must_use]
    pub fn verdict(&self, now: Now) -> Verdict {
        // Of each kind: since when it stands, and since when it is fatal.
        let mut kinds: BTreeMap<Kind, (Micros, Option<Micros>)> = BTreeMap::new();
        let mut stands = |kind, first: Micros, fatal: bool| {
            let fatal = fatal.then_some(first);
            let entry = kinds.entry(kind).or_insert((first, fatal));
            entry.0 = entry.0.min(first);
            entry.1 = entry.1.into_iter().chain(fatal).min();
        };
        let mut cleared = self.cleared;
        for c in self.containers.values() {
            for (&kind, sign) in &c.signs {
                if c.stands(kind, sign, now.mono) {
                    stands(kind, sign.first, sign.fatal);
                } else {
                    cleared = cleared.max(c.expiry(kind, sign).unwrap_or_default());
                }
            }
        }
        let mut notes: Vec<(Micros, String)> = self.notes.iter().cloned().collect();
        for (port, gone, fatal) in self.gone(now.mono) {
            stands(Kind::ListenerGone, gone + GRACE, fatal);
            notes.push((gone, format!("port {port} does not listen any more")));
        }
        let mut starts: Vec<Micros> = kinds.values().map(|&(first, _)| first).collect();
        starts.sort_unstable();
        let second = starts.get(1).copied();
        let fatal = kinds.values().filter_map(|&(_, fatal)| fatal).min();
        let settled = self.ran.filter(|_| self.settled(now.mono));
        let (state, since) = if let Some(since) = fatal.into_iter().chain(second).min() {
            (Health::Unhealthy, since)
        } else if let Some(&since) = starts.first() {
            (Health::Suspect, since.max(cleared))
        } else if let Some(ran) = settled {
            (Health::Healthy, (ran + SETTLED).max(cleared))
        } else {
            (Health::Unknown, self.ran.unwrap_or_default().max(cleared))
        };
        notes.sort_by_key(|(at, _)| *at);
        let old = notes.len().saturating_sub(EVIDENCE);
        let evidence = notes[old..].iter().map(|(at, text)| format!("{} {text}", clock(now.wall_of(*at)))).collect();
        let reason = kinds.keys().next().map_or("", |kind| kind.name()).to_owned();
        Verdict { state, reason, evidence, since: now.wall_of(since) }
    }

    /// Something runs, or ran until just now, long enough to speak of.
    fn settled(&self, now: Micros) -> bool {
        self.containers.values().any(|c| c.running.is_some_and(|since| now - since >= SETTLED) || c.ran_well)
    }

    /// The ports that are missed: port, since when, and whether that is fatal.
    fn gone(&self, now: Micros) -> Vec<(u16, Micros, bool)> {
        if self.stopping || self.containers.values().all(|c| c.running.is_none()) {
            return Vec::new();
        }
        let missed = |l: &Listener| l.gone.filter(|&gone| now - gone > GRACE && now - gone < REMEMBER);
        let none_left = self.listeners.values().all(|l| l.gone.is_some());
        let fatal = |port| none_left || self.declared.contains(port);
        self.listeners.iter().filter_map(|(port, l)| Some((*port, missed(l)?, fatal(port)))).collect()
    }

    fn appeared(&mut self, port: u16, at: Micros) {
        if self.stopping {
            return;
        }
        if let Some(listener) = self.listeners.get_mut(&port) {
            if listener.gone.is_some_and(|gone| at >= gone) {
                listener.gone = None;
                self.cleared = self.cleared.max(at);
                self.note(at, format!("port {port} listens again"));
            }
            return;
        }
        if self.listeners.len() < PORTS {
            self.listeners.insert(port, Listener { first: at, gone: None });
            self.note(at, format!("port {port} listens"));
        }
    }

    /// A container's first process ended: what it listened on goes with it, and its next run may listen elsewhere.
    fn ended(&mut self, container: &str, at: Micros) {
        if let Some(c) = self.containers.get_mut(container)
            && let Some(since) = c.running.take()
        {
            c.ran_well = at - since >= SETTLED;
        }
        // The listing may have missed the port some time before the end was told; what was gone for longer stays a sign.
        self.listeners.retain(|_, l| l.gone.is_none_or(|gone| gone + GRACE < at));
        let closing = self.listeners.values_mut().filter(|l| l.gone.is_none());
        // Listening ports are learnt anew: from this moment they count as fresh, so their loss within a second is no sign.
        closing.for_each(|l| l.first = l.first.max(at));
    }

    fn sign(&mut self, container: &str, kind: Kind, sign: Sign) {
        let Some(c) = self.container(container) else { return };
        let stands = c.signs.get(&kind).copied().filter(|old| c.stands(kind, old, sign.at));
        let new = stands.map_or(sign, |old| Sign {
            first: old.first.min(sign.first),
            at: old.at.max(sign.at),
            fatal: old.fatal || sign.fatal,
        });
        c.signs.insert(kind, new);
    }

    fn container(&mut self, name: &str) -> Option<&mut Container> {
        if !self.containers.contains_key(name) && self.containers.len() >= CONTAINERS {
            return None;
        }
        Some(self.containers.entry(name.to_owned()).or_default())
    }

    fn note(&mut self, at: Micros, text: String) {
        if self.notes.len() == EVIDENCE {
            self.notes.pop_front();
        }
        self.notes.push_back((at, text));
    }
}

/// Signals by which a program ends because of itself (signal(7): action "Core", without SIGQUIT and the limits' SIGXCPU, SIGXFSZ).
fn is_fatal(signal: u8) -> bool {
    matches!(signal, 4..=8 | 11 | 31)
}

fn signal_name(signal: u8) -> &'static str {
    match signal {
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        11 => "SIGSEGV",
        31 => "SIGSYS",
        _ => "a signal",
    }
}

/// The time of day, UTC.
fn clock(wall: Micros) -> String {
    let millis = wall.get() / 1_000 % 86_400_000;
    let (hours, minutes, seconds) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1_000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", millis % 1_000)
}

#[cfg(test)]
mod tests;
