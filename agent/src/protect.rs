//! The agent is the last whom an OOM may take or hold up.
//!
//! **Problem.** When memory runs out, the kernel drops the pages of programs' code first: they can be read again. An agent whose code
//! for a kill lies on a disk that others wait for comes too late; and one that the OOM killer chooses comes never. **Approach.** Its
//! place in the kernel's order of victims is what `oomScoreAdj` says, as for the stock kubelet (default -999,
//! pkg/kubelet/apis/config/v1beta1/defaults.go, release 1.37); and its code is read and locked ([`mlock(2)`]) at the start. Without
//! swap, as on most nodes, memory that is not of a file stays anyway; with swap the heap may go out, which is said in the reason.
//!
//! **Properties.** What is refused is a [`Fact`] with its reason, and no error. Only code and constants are locked, not the heap: locked
//! pages could not be given back ([`crate::heap`]).
//!
//! [`mlock(2)`]: https://man7.org/linux/man-pages/man2/mlock.2.html

#![expect(unsafe_code, reason = "mlock(2) takes an address")]

use std::fs;

use beelet_core::units::Bytes;
use procfs::process::{MMPermissions, MMapPath, MemoryMap, Process};

/// What became of one protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Name as in metrics.
    pub name: &'static str,
    /// What was done, or why it could not be and what follows.
    pub outcome: Result<String, String>,
}

/// Protects this process, as far as it may. `oom_score_adj`: -1000..=1000.
#[must_use]
pub fn this_process(oom_score_adj: i32) -> Vec<Fact> {
    let kept = score(oom_score_adj)
        .map(|()| format!("{oom_score_adj}"))
        .map_err(|error| format!("oom_score_adj {oom_score_adj}: {error}; the OOM killer may choose the agent"));
    let locked = lock_code()
        .map(|bytes| format!("{bytes} of code and constants are locked"))
        .map_err(|error| format!("{error}; the agent may wait for a disk when memory is short"));
    vec![Fact { name: "oom_score_adj", outcome: kept }, Fact { name: "locked_code", outcome: locked }]
}

fn score(adj: i32) -> std::io::Result<()> {
    const FILE: &str = "/proc/self/oom_score_adj";
    // Whoever started the agent may have put it there already, and have taken from it the right to.
    if fs::read_to_string(FILE)?.trim() == adj.to_string() {
        return Ok(());
    }
    fs::write(FILE, adj.to_string())
}

/// Locks what is mapped of programs and libraries and cannot be written; how much that is.
fn lock_code() -> Result<Bytes, String> {
    let maps = Process::myself().and_then(|process| process.maps()).map_err(|error| error.to_string())?;
    let mut locked = Bytes::ZERO;
    for map in maps.iter().filter(|map| is_code(map)) {
        let (from, to) = map.address;
        let (address, length) = (from as usize, (to - from) as usize);
        let pointer = std::ptr::without_provenance_mut(address);
        // SAFETY: nothing is read or written through the pointer, and what the pages hold stays the same; the kernel itself refuses
        // (ENOMEM) a range that is not mapped any more.
        unsafe { rustix::mm::mlock(pointer, length) }.map_err(|error| format!("mlock: {error}"))?;
        locked += Bytes(to - from);
    }
    Ok(locked)
}

fn is_code(map: &MemoryMap) -> bool {
    let of_file = matches!(map.pathname, MMapPath::Path(_));
    of_file && map.perms.contains(MMPermissions::READ) && !map.perms.contains(MMPermissions::WRITE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locked_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_said_to_be_locked_is_and_what_is_refused_has_a_reason() {
        let before = locked_kib();
        // Where the process stands already, so that the test needs no privilege and changes nothing.
        let stands: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
        let facts = this_process(stands);
        assert_eq!(facts[0], Fact { name: "oom_score_adj", outcome: Ok(stands.to_string()) });
        match &facts[1].outcome {
            Ok(_) => assert!(locked_kib() > before + 1_024, "{facts:?}"),
            Err(reason) => {
                assert!(!rustix::process::geteuid().is_root(), "{reason}");
                assert!(reason.starts_with("mlock: "), "{reason}");
            }
        }
        let own = fs::read_to_string("/proc/self/maps").unwrap();
        assert!(own.contains("r-xp"), "there is code to lock");
    }

    #[test]
    fn a_score_that_cannot_be_is_refused_by_the_kernel_in_words() {
        let facts = this_process(1_001);
        let reason = facts[0].outcome.clone().unwrap_err();
        assert!(reason.starts_with("oom_score_adj 1001: ") && reason.ends_with("may choose the agent"), "{reason}");
    }
}
