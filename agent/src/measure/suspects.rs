//! Victims of the OOM killer whose cgroup is a guess.
//!
//! Problem: before Linux 6.8 the kernel names a victim by its process id alone, and the cgroup that comes with it is that of
//! whoever asked for memory: on a node that runs out, the wrong pod. Approach: such a victim waits for its own end, which tells
//! the cgroup and that the OOM killer had marked it.
//!
//! Properties: a victim is told once; a kill of a whole cgroup (`memory.oom.group`) is told once, by the first that ends; a
//! victim whose end never comes is forgotten, and the cgroup's own counter of kills still tells of it.

use std::collections::VecDeque;

use crate::kernel::events::{OomVictim, ProcessExit};

/// So many victims are waited for, and so many kills remembered.
const KEEP: usize = 64;
/// Ends of victims of one cgroup within this time are of one kill.
const ONE_KILL_NS: u64 = 1_000_000_000;

#[derive(Debug, Default)]
pub(super) struct Suspects {
    marked: VecDeque<OomVictim>,
    /// Cgroups, and when their victims were marked.
    told: VecDeque<(u64, u64)>,
}

impl Suspects {
    /// Waits for the victim's end.
    pub(super) fn wait_for(&mut self, victim: OomVictim) {
        keep(&mut self.marked, victim);
    }

    /// The victim that this end is of, now with its own cgroup.
    pub(super) fn ended(&mut self, exit: &ProcessExit) -> Option<OomVictim> {
        if !exit.oom_marked {
            return None;
        }
        let found = self.marked.iter().position(|victim| victim.pid == exit.pid)?;
        let victim = self.marked.remove(found)?;
        let of_kill =
            |&(cgroup, at_ns): &(u64, u64)| cgroup == exit.cgroup && victim.at_ns.abs_diff(at_ns) < ONE_KILL_NS;
        if self.told.iter().any(of_kill) {
            return None;
        }
        keep(&mut self.told, (exit.cgroup, victim.at_ns));
        let comm = if victim.comm.is_empty() { exit.comm.clone() } else { victim.comm.clone() };
        Some(OomVictim { cgroup: exit.cgroup, cgroup_is_guess: false, comm, ..victim })
    }
}

/// Keeps it, in place of the oldest if need be.
fn keep<T>(list: &mut VecDeque<T>, it: T) {
    if list.len() >= KEEP {
        list.pop_front();
    }
    list.push_back(it);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::events::ExitStatus;

    fn victim(pid: u32, at_ns: u64) -> OomVictim {
        OomVictim { cgroup: 1, cgroup_is_guess: true, pid, comm: String::new(), oom_score_adj: 0, memory: None, at_ns }
    }

    fn exit(pid: u32, cgroup: u64, oom_marked: bool) -> ProcessExit {
        ProcessExit {
            cgroup,
            pid,
            ns_pid: Some(1),
            status: ExitStatus(9),
            oom_marked,
            comm: "hog".to_owned(),
            started_ns: 0,
            at_ns: 9,
        }
    }

    #[test]
    fn a_victim_is_told_once_with_the_cgroup_it_ended_in() {
        let mut suspects = Suspects::default();
        suspects.wait_for(victim(7, 5));
        assert_eq!(suspects.ended(&exit(8, 2, true)), None, "another process");
        assert_eq!(suspects.ended(&exit(7, 2, false)), None, "an ordinary end");
        let told = suspects.ended(&exit(7, 2, true)).unwrap();
        assert_eq!((told.cgroup, told.cgroup_is_guess, told.comm.as_str()), (2, false, "hog"));
        assert_eq!(suspects.ended(&exit(7, 2, true)), None, "once");
    }

    #[test]
    fn a_kill_of_a_whole_cgroup_is_told_once_and_a_later_one_again() {
        let mut suspects = Suspects::default();
        for pid in 1..4 {
            suspects.wait_for(victim(pid, u64::from(pid)));
        }
        suspects.wait_for(victim(4, 3 * ONE_KILL_NS));
        let told = (1..5).filter(|&pid| suspects.ended(&exit(pid, 2, true)).is_some()).collect::<Vec<_>>();
        assert_eq!(told, [1, 4]);
    }

    #[test]
    fn what_is_waited_for_is_bounded() {
        let mut suspects = Suspects::default();
        for pid in 0..1_000 {
            suspects.wait_for(victim(pid, 0));
        }
        assert_eq!(suspects.marked.len(), KEEP);
        assert!(suspects.ended(&exit(999, 2, true)).is_some());
    }
}
