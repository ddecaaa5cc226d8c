//! What this kernel, its configuration and the agent's privileges offer: probed once.
//!
//! **Approach.** Each probe is a fact with a reason, and changes nothing. Whoever would use a capability reads it here or meets
//! its own error; this list is what people see in the log and in a metric.
//!
//! **Properties.** Probing never fails: a probe that cannot be made is "not available" with the reason.

use std::path::Path;

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};

use super::{
    btf::{Btf, VMLINUX},
    cgroup::CgroupLayout,
};

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Name as in metrics: lower case, words joined by `_`.
    pub name: &'static str,
    /// Whether it is there.
    pub available: bool,
    /// What was found, or why it is not there and what follows.
    pub reason: String,
}

/// `CAP_SYS_RESOURCE`, as a bit of `CapEff`.
const CAP_SYS_RESOURCE: u32 = 24;
/// `CAP_SYS_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;
/// `CAP_BPF`.
const CAP_BPF: u32 = 39;

/// One of the functions by which a program reads what `memory.stat` tells, without the text (Linux 7.0, mm/bpf_memcontrol.c).
const MEMCG_KFUNC: &str = "bpf_mem_cgroup_page_state";
const FILES_TELL: &str = "memory of cgroups is read from memory.stat";

/// The tracepoints that programs are attached to, and what is not seen without them.
const TRACEPOINTS: &[(&str, &str)] = &[
    ("tracepoint_sched_switch", "run time is that of files, waits for the CPU and preemptions are not seen"),
    ("tracepoint_mark_victim", "OOM kills are told by counters of cgroups, without the process"),
    ("tracepoint_sched_process_exit", "ends of processes are told by the runtime, for containers only"),
    ("tracepoint_sched_process_fork", "processes and threads that begin are not counted"),
    ("tracepoint_sched_process_exec", "programs that begin are not counted"),
    ("tracepoint_block_rq_complete", "disk requests are those of io.stat, without how long they took"),
    ("tracepoint_mm_vmscan_direct_reclaim_begin", "reclaim for the node is seen as pressure only"),
    ("tracepoint_mm_vmscan_memcg_reclaim_begin", "reclaim for a limit is seen as pressure only"),
    ("tracepoint_inet_sock_set_state", "listening ports are looked up from time to time, connections are not counted"),
    ("tracepoint_tcp_retransmit_skb", "segments sent again are not counted by cgroup"),
    ("tracepoint_tcp_send_reset", "resets sent are not counted"),
    ("tracepoint_tcp_receive_reset", "resets received are not counted"),
    ("tracepoint_kfree_skb", "dropped packets are those of the network devices"),
];

/// Probes everything.
///
/// `pods_root` is the relative path of the pods' root; files that the root cgroup does not have are looked for there, so it
/// should exist.
#[must_use]
pub fn probe(layout: Option<&CgroupLayout>, pods_root: &Path) -> Vec<Capability> {
    let mut found = Vec::new();
    bpf(&mut found);
    capabilities(&mut found);
    found.push(exists("tracefs", Path::new("/sys/kernel/tracing/events"), "tracepoints are taken by BTF instead"));
    let Some(layout) = layout else {
        found.push(no("cgroup_unified", "no cgroup2 file system is mounted: nothing is measured per cgroup"));
        return found;
    };
    cgroups(layout, pods_root, &mut found);
    found
}

fn bpf(found: &mut Vec<Capability>) {
    match Btf::of_kernel() {
        Ok(btf) => {
            found.push(yes("btf", format!("{} types in {VMLINUX}", btf.len())));
            for (name, follows) in TRACEPOINTS {
                found.push(match btf.tracepoint(name.strip_prefix("tracepoint_").unwrap_or(name)) {
                    Ok(arguments) => yes(name, format!("passes {} arguments", arguments.len())),
                    Err(error) => no(name, format!("{error}; {follows}")),
                });
            }
            found.push(match btf.member_offset("bpf_iter__task", "task") {
                Ok(_) => yes("bpf_iter_task", "the kernel has it"),
                Err(error) => no("bpf_iter_task", format!("{error}; tasks are not counted by state")),
            });
            found.push(if btf.has_function(MEMCG_KFUNC) {
                no(
                    "memcg_kfuncs",
                    format!("the kernel has {MEMCG_KFUNC} and its kin, which aya cannot call: {FILES_TELL}"),
                )
            } else {
                no("memcg_kfuncs", format!("the kernel has no {MEMCG_KFUNC} (7.0 and later have it): {FILES_TELL}"))
            });
        }
        Err(error) => found.push(no("btf", format!("{error}; no program that looks into the kernel is loaded"))),
    }
    // The programs are one object: without one of its kinds of maps none is loaded.
    let nothing = "no eBPF program is loaded, and files have to tell";
    for (name, kind, follows) in [
        ("bpf_hash_per_cpu", MapType::PerCpuHash, nothing),
        ("bpf_ring_buffer", MapType::RingBuf, nothing),
        ("bpf_task_storage", MapType::TaskStorage, nothing),
        ("bpf_socket_storage", MapType::SkStorage, nothing),
        ("bpf_cgroup_storage", MapType::CgrpStorage, "counters are in hashes instead, as everywhere"),
    ] {
        found.push(supported(name, is_map_supported(kind).map_err(|error| error.to_string()), follows));
    }
    for (name, kind, follows) in [
        ("bpf_cgroup_skb", ProgramType::CgroupSkb, "packets, requests and DNS are not seen by cgroup"),
        ("bpf_raw_tracepoint", ProgramType::RawTracePoint, "no program that looks into the kernel is loaded"),
    ] {
        found.push(supported(name, is_program_supported(kind).map_err(|error| error.to_string()), follows));
    }
}

fn capabilities(found: &mut Vec<Capability>) {
    let effective = procfs::process::Process::myself().and_then(|it| it.status()).map(|status| status.capeff);
    for (name, bit, follows) in [
        ("cap_bpf", CAP_BPF, "eBPF programs need it or CAP_SYS_ADMIN"),
        ("cap_sys_admin", CAP_SYS_ADMIN, "attaching to cgroups and mounting need it"),
        (
            "cap_sys_resource",
            CAP_SYS_RESOURCE,
            "pressure windows must be multiples of 2 s, and limits cannot be raised",
        ),
    ] {
        found.push(match &effective {
            Ok(bits) if bits >> bit & 1 == 1 => yes(name, "the agent has it"),
            Ok(_) => no(name, format!("the agent lacks it: {follows}")),
            Err(error) => no(name, format!("the agent's own status cannot be read: {error}")),
        });
    }
}

fn cgroups(layout: &CgroupLayout, pods_root: &Path, found: &mut Vec<Capability>) {
    found.push(yes("cgroup_unified", format!("mounted at {}", layout.unified().display())));
    found.push(match layout {
        CgroupLayout::V2 { .. } => yes("cgroup_v2_controllers", "all controllers are on v2"),
        CgroupLayout::Hybrid { controllers, .. } => {
            let names: Vec<&str> = controllers.keys().map(String::as_str).collect();
            no(
                "cgroup_v2_controllers",
                format!(
                    "hybrid: {} are on v1; memory.high, memory.reclaim, memory.events are not there",
                    names.join(", ")
                ),
            )
        }
    });
    let unified = layout.unified().join(pods_root);
    found.push(exists("psi", Path::new("/proc/pressure/memory"), "boot with psi=1; stalls are not seen"));
    found.push(exists("psi_per_cgroup", &unified.join("memory.pressure"), "stalls are seen for the whole node only"));
    found.push(exists("cgroup_kill", &unified.join("cgroup.kill"), "processes are killed one by one"));
    found.push(exists("cgroup_freeze", &unified.join("cgroup.freeze"), "pods cannot be frozen"));
    found.push(exists("memory_high", &unified.join("memory.high"), "a leak cannot be slowed down"));
    found.push(exists("memory_reclaim", &unified.join("memory.reclaim"), "page cache cannot be freed on demand"));
    found.push(exists("memory_events", &unified.join("memory.events"), "sampling and pressure have to tell instead"));
    let (burst, directory) = if layout.is_hybrid() {
        // The root of v1 has this file, too, and the pods' root may be made later there.
        ("cpu.cfs_burst_us", layout.directory("cpu", Path::new("")))
    } else {
        ("cpu.max.burst", Some(unified))
    };
    found.push(match directory {
        Some(directory) => exists("cpu_burst", &directory.join(burst), "throttled pods get no burst"),
        None => no("cpu_burst", "there is no CPU controller"),
    });
}

fn supported(name: &'static str, result: Result<bool, String>, follows: &str) -> Capability {
    match result {
        Ok(true) => yes(name, "the kernel takes it"),
        Ok(false) => no(name, format!("the kernel does not know it; {follows}")),
        Err(error) => no(name, format!("the kernel refuses to tell: {error}; without it {follows}")),
    }
}

fn exists(name: &'static str, path: &Path, follows: &str) -> Capability {
    match std::fs::metadata(path) {
        Ok(_) => yes(name, path.display().to_string()),
        Err(error) => no(name, format!("{}: {error}; {follows}", path.display())),
    }
}

fn yes(name: &'static str, reason: impl Into<String>) -> Capability {
    Capability { name, available: true, reason: reason.into() }
}

fn no(name: &'static str, reason: impl Into<String>) -> Capability {
    Capability { name, available: false, reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::programs::{Hook, TABLE};
    use super::*;

    #[test]
    fn every_tracepoint_of_a_program_is_probed() {
        for row in TABLE {
            if let Hook::TracePoint(names) = row.hook {
                let is_probed = |name: &&str| {
                    let end_too = name.strip_suffix("_end").map(|name| format!("{name}_begin"));
                    TRACEPOINTS.iter().any(|(it, _)| {
                        let it = it.strip_prefix("tracepoint_");
                        it == Some(name) || (it.is_some() && it == end_too.as_deref())
                    })
                };
                assert!(names.iter().any(is_probed), "{names:?}");
            }
        }
    }

    #[test]
    fn every_fact_has_a_reason_and_a_name_of_its_own() {
        let hybrid = CgroupLayout::Hybrid { unified: "/nonexistent".into(), controllers: BTreeMap::new() };
        for layout in [None, Some(&hybrid)] {
            let found = probe(layout, Path::new("pods"));
            assert!(found.iter().all(|it| !it.reason.is_empty()));
            let names: BTreeSet<_> = found.iter().map(|it| it.name).collect();
            assert_eq!(names.len(), found.len());
        }
    }
}
