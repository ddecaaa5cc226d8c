//! Events from the eBPF programs: processes that ended, OOM victims, listening sockets.
//!
//! **Approach.** The programs put [`Event`] records of one fixed layout into a ring buffer; [`EventStream`] waits for it
//! without polling and turns each record into a [`KernelEvent`].
//!
//! **Properties.** Order is that of the ring buffer. A full ring buffer loses the newest events, which
//! [`Counters::lost`](super::maps::Counters::lost) counts. A process' end is told once, also on kernels where two
//! threads that exit at once both look like the last. An OOM kill of a whole cgroup (`memory.oom.group`) is told once, with the
//! process that the kernel chose; the others are marked in its wake. [`EventStream::next`] may be cancelled without losing an event.

use std::{collections::VecDeque, io, os::fd::AsFd};

use aya::maps::{Map, MapData, MapError, RingBuf};
use beelet_ebpf_common::{Event, flag, kind};
use tokio::io::Interest;

use super::watch::Watch;

/// Bytes of a page as the kernel counts memory in the victim's record.
fn page_bytes() -> u64 {
    procfs::page_size()
}

/// The stream cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// The map is not a ring buffer, or cannot be mapped.
    #[error("the ring buffer of events cannot be mapped: {0}")]
    Map(#[from] MapError),
    /// The file descriptor cannot be watched.
    #[error("the ring buffer of events cannot be watched: {0}")]
    Watch(#[from] io::Error),
}

/// How a process ended, as `wait` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus(
    /// The raw status: signal in the low 7 bits, 0x80 if a core was dumped, exit code << 8.
    pub u32,
);

impl ExitStatus {
    /// The exit code, 0..=255; `None` if a signal ended the process.
    #[must_use]
    pub const fn code(self) -> Option<u8> {
        if self.0 & 0x7f == 0 { Some((self.0 >> 8) as u8) } else { None }
    }

    /// The signal that ended the process, 1..=127.
    #[must_use]
    pub const fn signal(self) -> Option<u8> {
        let signal = (self.0 & 0x7f) as u8;
        if signal == 0 { None } else { Some(signal) }
    }

    /// Whether a core was dumped (or would have been, were cores allowed).
    #[must_use]
    pub const fn core_dumped(self) -> bool {
        self.0 & 0x80 != 0
    }
}

/// A process ended: its last thread is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessExit {
    /// Its cgroup.
    pub cgroup: u64,
    /// Its process id in the root pid namespace.
    pub pid: u32,
    /// Its process id in its own pid namespace (1: a container's init); `None` where the kernel's types do not allow it
    /// (older than 6.6 or so), or it is nested deeper than three namespaces.
    pub ns_pid: Option<u32>,
    /// How.
    pub status: ExitStatus,
    /// Whether the OOM killer had marked it.
    pub oom_marked: bool,
    /// Its command name, up to 15 bytes.
    pub comm: String,
    /// When it started, in nanoseconds of the monotonic clock.
    pub started_ns: u64,
    /// When it ended, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
}

/// Memory of an OOM victim, to within the kernel's per-CPU batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VictimMemory {
    /// Bytes of anonymous memory.
    pub anon: u64,
    /// Bytes of mapped files.
    pub file: u64,
    /// Bytes of shared memory.
    pub shmem: u64,
}

/// The OOM killer chose a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OomVictim {
    /// Its cgroup; if `cgroup_is_guess`, that of the task whose allocation failed (Linux before 6.8).
    pub cgroup: u64,
    /// Whether the cgroup is not known to be the victim's own.
    pub cgroup_is_guess: bool,
    /// Its process id in the root pid namespace.
    pub pid: u32,
    /// Its command name; empty where the kernel does not pass the task.
    pub comm: String,
    /// Its `oom_score_adj`, -1000..=1000.
    pub oom_score_adj: i32,
    /// Its memory; `None` where the kernel does not pass the task.
    pub memory: Option<VictimMemory>,
    /// When, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
}

/// A TCP socket began or ceased to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Cgroup of the process that made the socket.
    pub cgroup: u64,
    /// Local port; 0 where it is not known (`listen` without `bind`): ask [`listeners`](super::listeners).
    pub port: u16,
    /// Whether the address is of IPv6 (which may take IPv4, too).
    pub ipv6: bool,
    /// Whether it began.
    pub opened: bool,
    /// Process on whose behalf it happened, in the root pid namespace.
    pub pid: u32,
    /// Command name of that process.
    pub comm: String,
    /// When, in nanoseconds of the monotonic clock.
    pub at_ns: u64,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelEvent {
    /// A process ended.
    Exit(ProcessExit),
    /// The OOM killer chose a process.
    Oom(OomVictim),
    /// A socket began or ceased to listen.
    Listen(Listen),
}

/// The facts, as they come.
pub struct EventStream {
    ring: RingBuf<MapData>,
    watch: Watch,
    recent: Recent,
}

impl EventStream {
    /// Takes the ring buffer. Needs a tokio runtime.
    pub(super) fn new(map: Map) -> Result<Self, EventError> {
        let ring = RingBuf::try_from(map)?;
        let watch = Watch::new(ring.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { ring, watch, recent: Recent::default() })
    }

    /// The next fact. May be cancelled.
    ///
    /// # Errors
    /// If the runtime cannot watch any more.
    pub async fn next(&mut self) -> Result<KernelEvent, EventError> {
        loop {
            while let Some(item) = self.ring.next() {
                if let Some(event) = parse(&item)
                    && self.recent.is_new(&event)
                {
                    return Ok(event);
                }
            }
            self.watch.woken().await?;
        }
    }
}

/// What was told last, to drop what the kernel tells twice.
#[derive(Debug, Default)]
struct Recent {
    /// Processes that ended: id and start. Older kernels tell some twice.
    ends: VecDeque<(u32, u64)>,
    /// Cgroups with a victim, and when it was marked.
    victims: VecDeque<(u64, u64)>,
}

impl Recent {
    const KEEP: usize = 64;
    /// Victims of one cgroup within this time are of one kill: the kernel marks all of a group in one go. If they were not, and
    /// the group is none, the cgroup's counter still tells how many there were.
    const ONE_KILL_NS: u64 = 1_000_000_000;

    fn is_new(&mut self, event: &KernelEvent) -> bool {
        match event {
            KernelEvent::Exit(exit) => {
                let key = (exit.pid, exit.started_ns);
                !self.ends.contains(&key) && Self::keep(&mut self.ends, key)
            }
            // Its cgroup says nothing: who waits for its end tells what is of one kill.
            KernelEvent::Oom(victim) if victim.cgroup_is_guess => true,
            KernelEvent::Oom(victim) => {
                let of_kill = |&(cgroup, at_ns): &(u64, u64)| {
                    cgroup == victim.cgroup && victim.at_ns.saturating_sub(at_ns) < Self::ONE_KILL_NS
                };
                !self.victims.iter().any(of_kill) && Self::keep(&mut self.victims, (victim.cgroup, victim.at_ns))
            }
            KernelEvent::Listen(_) => true,
        }
    }

    /// Keeps it in place of the oldest; always true.
    fn keep<T>(recent: &mut VecDeque<T>, it: T) -> bool {
        if recent.len() >= Self::KEEP {
            recent.pop_front();
        }
        recent.push_back(it);
        true
    }
}

/// A record as a fact; `None` for a kind or size that this agent does not know.
fn parse(bytes: &[u8]) -> Option<KernelEvent> {
    let event: Event = bytemuck::try_pod_read_unaligned(bytes).ok()?;
    let end = event.comm.iter().position(|byte| *byte == 0).unwrap_or(event.comm.len());
    let name = String::from_utf8_lossy(&event.comm[..end]);
    // A process may call itself what it likes, and logs and terminals are to stay what they are.
    let comm: String = name.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    let bytes_of = |pages: u64| pages.saturating_mul(page_bytes());
    Some(match event.kind {
        kind::PROCESS_EXIT => KernelEvent::Exit(ProcessExit {
            cgroup: event.cgroup_id,
            pid: event.tgid,
            ns_pid: (event.ns_pid != 0).then_some(event.ns_pid),
            status: ExitStatus(event.exit_code),
            oom_marked: event.flags & flag::OOM_MARKED != 0,
            comm,
            started_ns: event.start_ns,
            at_ns: event.ktime_ns,
        }),
        kind::OOM_VICTIM => KernelEvent::Oom(OomVictim {
            cgroup: event.cgroup_id,
            cgroup_is_guess: event.flags & flag::CGROUP_OF_CURRENT != 0,
            pid: event.tgid,
            comm,
            oom_score_adj: event.oom_score_adj,
            memory: (event.flags & flag::HAS_MEMORY != 0).then(|| VictimMemory {
                anon: bytes_of(event.anon_pages),
                file: bytes_of(event.file_pages),
                shmem: bytes_of(event.shmem_pages),
            }),
            at_ns: event.ktime_ns,
        }),
        kind::LISTEN_OPENED | kind::LISTEN_CLOSED => KernelEvent::Listen(Listen {
            cgroup: event.cgroup_id,
            port: event.port,
            // AF_INET6
            ipv6: event.family == 10,
            opened: event.kind == kind::LISTEN_OPENED,
            pid: event.tgid,
            comm,
            at_ns: event.ktime_ns,
        }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(tgid: u32, start_ns: u64, exit_code: u32) -> Event {
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"true");
        Event { kind: kind::PROCESS_EXIT, cgroup_id: 9, tgid, start_ns, exit_code, comm, ..Event::default() }
    }

    #[test]
    fn a_status_is_a_code_or_a_signal() {
        assert_eq!((ExitStatus(7 << 8).code(), ExitStatus(7 << 8).signal()), (Some(7), None));
        let segv = ExitStatus(11 | 0x80);
        assert_eq!((segv.code(), segv.signal(), segv.core_dumped()), (None, Some(11), true));
        assert_eq!(ExitStatus(0).code(), Some(0));
    }

    #[test]
    fn records_of_unknown_kind_or_size_are_left_out() {
        assert_eq!(parse(&[0; 95]), None);
        assert_eq!(parse(bytemuck::bytes_of(&Event { kind: 99, ..Event::default() })), None);
    }

    #[test]
    fn the_end_of_a_process_is_told_once_but_its_successor_with_the_same_pid_too() {
        let mut recent = Recent::default();
        let parsed = |event: Event| parse(bytemuck::bytes_of(&event)).unwrap();
        assert!(recent.is_new(&parsed(exit(5, 100, 0))));
        assert!(!recent.is_new(&parsed(exit(5, 100, 0))));
        assert!(recent.is_new(&parsed(exit(5, 200, 0))));
        for pid in 1000..1100 {
            assert!(recent.is_new(&parsed(exit(pid, 1, 0))));
        }
        assert!(recent.ends.len() <= Recent::KEEP);
    }

    #[test]
    fn a_kill_of_a_whole_cgroup_is_told_once() {
        let mut recent = Recent::default();
        let mut new = |cgroup_id, tgid, ktime_ns| {
            let event = Event { kind: kind::OOM_VICTIM, cgroup_id, tgid, ktime_ns, ..Event::default() };
            recent.is_new(&parse(bytemuck::bytes_of(&event)).unwrap())
        };
        assert!(new(7, 100, 5_000_000_000));
        assert!(!new(7, 101, 5_000_040_000));
        assert!(new(8, 200, 5_000_050_000), "another cgroup");
        assert!(new(7, 102, 9_000_000_000), "a later kill");
    }

    #[test]
    fn a_name_holds_no_control_characters() {
        let event = Event { comm: *b"a\x1b[2J\nb\xc2\x9b0\0\0\0\0\0\0", ..exit(1, 1, 0) };
        let Some(KernelEvent::Exit(exit)) = parse(bytemuck::bytes_of(&event)) else { panic!("not an exit") };
        assert_eq!(exit.comm, "a?[2J?b?0");
    }

    #[test]
    fn a_name_without_a_terminator_is_whole() {
        let event = Event { comm: *b"0123456789abcdef", ..exit(1, 1, 0) };
        let Some(KernelEvent::Exit(exit)) = parse(bytemuck::bytes_of(&event)) else { panic!("not an exit") };
        assert_eq!(exit.comm, "0123456789abcdef");
    }
}
