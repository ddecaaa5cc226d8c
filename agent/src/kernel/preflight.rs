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
            for (name, tracepoint) in [
                ("tracepoint_sched_switch", "sched_switch"),
                ("tracepoint_mark_victim", "mark_victim"),
                ("tracepoint_sched_process_exit", "sched_process_exit"),
                ("tracepoint_inet_sock_set_state", "inet_sock_set_state"),
            ] {
                found.push(match btf.tracepoint(tracepoint) {
                    Ok(arguments) => yes(name, format!("passes {} arguments", arguments.len())),
                    Err(error) => no(name, error.to_string()),
                });
            }
        }
        Err(error) => found.push(no("btf", format!("{error}; no program that looks into the kernel is loaded"))),
    }
    for (name, kind) in [
        ("bpf_hash_per_cpu", MapType::PerCpuHash),
        ("bpf_ring_buffer", MapType::RingBuf),
        ("bpf_task_storage", MapType::TaskStorage),
        ("bpf_cgroup_storage", MapType::CgrpStorage),
    ] {
        found.push(supported(name, is_map_supported(kind).map_err(|error| error.to_string())));
    }
    for (name, kind) in [("bpf_cgroup_skb", ProgramType::CgroupSkb), ("bpf_raw_tracepoint", ProgramType::RawTracePoint)]
    {
        found.push(supported(name, is_program_supported(kind).map_err(|error| error.to_string())));
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

fn supported(name: &'static str, result: Result<bool, String>) -> Capability {
    match result {
        Ok(true) => yes(name, "the kernel takes it"),
        Ok(false) => no(name, "the kernel does not know it"),
        Err(error) => no(name, format!("the kernel refuses to tell: {error}")),
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

    use super::*;

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
