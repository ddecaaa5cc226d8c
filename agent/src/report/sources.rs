//! Where each value of a pod comes from, and how old it is.
//!
//! **Problem.** A value may be an eBPF program's, a file's, or the next best guess of either, and one node differs from the next;
//! whoever doubts a number must see which it is. **Approach.** One table of groups of values: the program that tells them, and
//! what tells them where that program is not loaded. The ages are those of the pod's readings.
//!
//! **Properties.** A group whose program is not loaded has the program's reason; an age that is not known is left out.

use beelet_core::snapshot::PodView;
use beelet_core::units::{Micros, Now};
use beelet_ebpf_common::program;
use serde::{Deserialize, Serialize};

use super::SelfReport;

/// Where a group of values comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The values.
    pub values: String,
    /// What tells them: `eBPF sched_switch`, `cpu.stat`; "nothing" where nobody does.
    pub from: String,
    /// Why the better source does not tell them; "" where it does, or there is none.
    #[serde(default)]
    pub instead: String,
    /// How old they are; `None` before the first reading.
    pub age: Option<Micros>,
}

/// Which reading a group is a part of.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// What decisions need.
    Reading,
    /// Details of cgroups.
    Cgroup,
    /// Details of the pod's network and disks.
    Pod,
    /// What a visit to its network namespace told.
    Visit,
}

/// Values, the program that tells them ("" for none), what else does, and the part.
type Row = (&'static str, &'static str, &'static str, Part);

const TABLE: &[Row] = &[
    ("CPU time", "", "cpu.stat (v1: cpuacct.usage)", Part::Reading),
    ("throttling", "", "cpu.stat", Part::Reading),
    ("waits for a CPU, summed over tasks; switches", program::SCHED_SWITCH, "nothing", Part::Reading),
    ("memory in use, by kind; faults, refaults", "", "memory.current, memory.stat", Part::Reading),
    ("pressure", "", "cpu.pressure, memory.pressure, io.pressure", Part::Reading),
    ("traffic", program::SKB_EGRESS, "the pod's devices", Part::Reading),
    ("OOM kills", "", "the larger of memory.events (v1: memory.oom_control) and the kernel's events", Part::Reading),
    ("victims of OOM kills, by name", program::OOM_VICTIM, "nothing", Part::Reading),
    ("preemptions, by whom", program::SCHED_SWITCH, "nothing", Part::Cgroup),
    ("time freeing memory for the node", program::RECLAIM_END, "memory.pressure", Part::Cgroup),
    ("time freeing memory for a limit", program::LIMIT_END, "memory.pressure", Part::Cgroup),
    ("latency of disks", program::DISK_REQUEST, "io.pressure", Part::Cgroup),
    ("bytes and requests of disks", "", "io.stat (v1: blkio.throttle.io_service_bytes)", Part::Cgroup),
    ("tasks by state", program::TASK_WALK, "nothing", Part::Cgroup),
    ("starts of processes", program::PROCESS_FORK, "nothing", Part::Cgroup),
    ("ends of processes", program::PROCESS_EXIT, "the runtime, of containers only", Part::Cgroup),
    ("connections, round trips", program::SOCKET_STATE, "nothing", Part::Pod),
    ("segments sent again, by cgroup", program::TCP_RETRANSMIT, "nothing", Part::Pod),
    ("segments, timeouts, overflows of the network namespace", "", "/proc/net/snmp and netstat there", Part::Visit),
    ("requests and names asked for", program::SKB_INGRESS, "nothing", Part::Pod),
    ("dropped packets", program::PACKET_DROP, "the pod's devices", Part::Pod),
    ("listening sockets and their queues", "", "netlink in the pod's network", Part::Visit),
    ("disk space", "", "a walk over the pod's files, and the runtime", Part::Pod),
];

/// The sources of a pod's values, as of `at`.
#[must_use]
pub fn of(pod: &PodView, at: Now, agent: &SelfReport) -> Vec<Source> {
    let age = |part: Part| {
        let read = match part {
            Part::Reading => pod.reading.map(|reading| reading.at),
            Part::Cgroup => pod.cgroup_detail.as_ref().map(|detail| detail.at),
            Part::Pod => pod.detail.as_ref().map(|detail| detail.at),
            Part::Visit => pod.detail.as_ref().and_then(|detail| detail.network_at),
        };
        read.map(|read| at.mono - read)
    };
    let source = |(values, name, file, part): &Row| {
        let program = agent.programs.iter().find(|program| program.name == *name);
        let (from, instead) = match program {
            Some(program) if program.loaded => (format!("eBPF {name}"), String::new()),
            Some(program) => ((*file).to_owned(), format!("eBPF {name}: {}", program.reason)),
            None if name.is_empty() => ((*file).to_owned(), String::new()),
            None => ((*file).to_owned(), format!("eBPF {name}: not known to the agent")),
        };
        Source { values: (*values).to_owned(), from, instead, age: age(*part) }
    };
    TABLE.iter().map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Program, samples_detail};
    use super::*;

    #[test]
    fn a_program_leads_and_the_next_best_takes_over_with_the_reason() {
        let picture = samples_detail::detailed_node();
        let pod = picture.pods.iter().find(|pod| pod.detail.is_some()).unwrap();
        let program = |name: &str, reason: &str| Program {
            name: name.to_owned(),
            loaded: reason.is_empty(),
            reason: reason.to_owned(),
            ..Program::default()
        };
        let programs = vec![program(program::SCHED_SWITCH, ""), program(program::DISK_REQUEST, "no field bio.bi_blkg")];
        let sources = of(pod, picture.at, &SelfReport { programs, ..SelfReport::default() });
        let find = |values: &str| sources.iter().find(|source| source.values == values).unwrap();
        let waits = find("waits for a CPU, summed over tasks; switches");
        assert_eq!((waits.from.as_str(), waits.instead.as_str()), ("eBPF sched_switch", ""));
        assert_eq!(waits.age, pod.reading.map(|reading| picture.at.mono - reading.at));
        let disks = find("latency of disks");
        assert_eq!(disks.from, "io.pressure");
        assert_eq!(disks.instead, "eBPF disk_request: no field bio.bi_blkg");
        assert_eq!(find("CPU time").instead, "");
    }

    #[test]
    fn every_program_tells_something_or_belongs_to_one_that_does() {
        // Two ends of the same thing, and what is counted with it.
        const WITH_OTHERS: [&str; 5] = [
            program::RECLAIM_BEGIN,
            program::LIMIT_BEGIN,
            program::PROCESS_EXEC,
            program::TCP_SEND_RESET,
            program::TCP_RECEIVE_RESET,
        ];
        for name in program::ALL.into_iter().filter(|name| !WITH_OTHERS.contains(name)) {
            assert!(TABLE.iter().any(|(_, program, ..)| *program == name), "{name}");
        }
    }
}
