//! `/stats/summary`: what the node's resources are used for, as JSON in the kubelet's structure.
//!
//! **Problem.** metrics-server of old, monitoring agents and `kubectl get --raw` read it; a `null` or a 0 in place of what is not
//! known is taken for the truth. **Approach.** The kubelet's types (k8s.io/kubelet/pkg/apis/stats/v1alpha1, release 1.36) with
//! every unknown value left out, filled from the picture.
//!
//! **Terms.** *PSI* is pressure stall information; its `total` is in microseconds, as the stock kubelet's is.
//!
//! **Properties** (tested). Each name of a field is one of the recorded answers; a field that they always have is there where the
//! picture knows it; only pods with a running container are listed.

use std::sync::{Mutex, PoisonError};

use beelet_core::sample::{CgroupReading, Pressure, PressureReading, Stall};
use beelet_core::snapshot::{ContainerState, ContainerView, PodView, Snapshot};
use beelet_core::spec::PodSpec;
use beelet_core::telemetry::{FsUse, InterfaceReading, NodeDetail, StorageReading};
use beelet_core::units::{Bytes, Micros, MilliCpu, Now};
use serde::Serialize;

use super::cadvisor::{is_running, moment, shown};

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    node: NodeStats,
    pods: Vec<PodStats>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStats {
    node_name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    system_containers: Vec<ContainerStats>,
    start_time: Option<String>,
    #[serde(flatten)]
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<RuntimeStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rlimit: Option<Rlimit>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeStats {
    #[serde(skip_serializing_if = "Option::is_none")]
    image_fs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_fs: Option<FsStats>,
}

#[derive(Debug, Serialize)]
struct Rlimit {
    time: String,
    maxpid: u64,
    curproc: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodRef,
    start_time: Option<String>,
    containers: Vec<ContainerStats>,
    #[serde(flatten)]
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeStats>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    ephemeral_storage: Option<FsStats>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    process_stats: Option<ProcessStats>,
}

#[derive(Debug, Serialize)]
struct PodRef {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
struct ProcessStats {
    process_count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStats {
    name: String,
    start_time: Option<String>,
    #[serde(flatten)]
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<FsStats>,
}

/// What a cgroup uses.
#[derive(Debug, Default, Serialize)]
struct Usage {
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io: Option<IoStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap: Option<SwapStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_core_nano_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_set_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    page_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    major_page_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    psi: Option<Psi>,
}

#[derive(Debug, Serialize)]
struct IoStats {
    time: String,
    psi: Psi,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SwapStats {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    swap_usage_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Psi {
    full: PsiLine,
    some: PsiLine,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PsiLine {
    total: u64,
    avg10: f64,
    avg60: f64,
    avg300: f64,
}

#[derive(Debug, Serialize)]
struct NetworkStats {
    time: String,
    #[serde(flatten)]
    first: InterfaceStats,
    interfaces: Vec<InterfaceStats>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceStats {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx_errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx_errors: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FsStats {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity_bytes: Option<u64>,
    used_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_free: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_used: Option<u64>,
}

#[derive(Debug, Serialize)]
struct VolumeStats {
    #[serde(flatten)]
    fs: FsStats,
    name: String,
}

/// Makes summaries. It remembers the CPU time of the node's services between two requests, for their rates.
#[derive(Debug, Default)]
pub struct Summaries {
    before: Mutex<Option<Rates>>,
}

/// CPU time of services at two moments.
#[derive(Clone, Debug, Default)]
struct Rates {
    newest: Vec<(String, CgroupReading)>,
    older: Vec<(String, CgroupReading)>,
}

impl Rates {
    /// Takes the newest readings in, if they are newer than what is here.
    fn take(&mut self, detail: &NodeDetail) {
        let now: Vec<(String, CgroupReading)> = detail.services.iter().map(|(n, _, r)| (n.clone(), *r)).collect();
        if now != self.newest {
            self.older = std::mem::replace(&mut self.newest, now);
        }
    }

    /// Billionths of a core in between; `None` if it is not the same cgroup, or too soon to tell.
    fn of(&self, name: &str) -> Option<u64> {
        let find = |list: &[(String, CgroupReading)]| list.iter().find(|(n, _)| n == name).map(|(_, r)| *r);
        let (old, new) = (find(&self.older)?, find(&self.newest)?);
        let span = new.at - old.at;
        let used = new.cpu?.best()?.get().checked_sub(old.cpu?.best()?.get())?;
        (old.id == new.id && span >= Micros::millis(100)).then(|| Micros(used).scale(1_000_000_000, span.get()).get())
    }
}

impl Summaries {
    /// The picture; only CPU and memory if so asked.
    pub fn make(&self, picture: &Snapshot, only_cpu_and_memory: bool) -> Summary {
        let rates = picture.node.detail.as_deref().map(|detail| {
            let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
            let rates = before.get_or_insert_default();
            rates.take(detail);
            rates.clone()
        });
        let mut summary = Summary {
            node: node(picture, &rates.unwrap_or_default()),
            pods: picture
                .pods
                .iter()
                .filter(|p| p.containers.iter().any(is_running))
                .map(|p| pod(p, picture))
                .collect(),
        };
        if only_cpu_and_memory {
            summary.trim();
        }
        summary
    }
}

impl Summary {
    /// Takes out all but CPU, memory and swap.
    fn trim(&mut self) {
        let node = &mut self.node;
        (node.network, node.fs, node.runtime, node.rlimit, node.usage.io) = (None, None, None, None, None);
        for pod in &mut self.pods {
            (pod.network, pod.ephemeral_storage, pod.process_stats, pod.usage.io) = (None, None, None, None);
            pod.volumes.clear();
        }
        let containers = self.pods.iter_mut().flat_map(|pod| &mut pod.containers);
        for container in containers.chain(&mut node.system_containers) {
            (container.rootfs, container.logs, container.usage.io) = (None, None, None);
        }
    }
}

/// RFC 3339, whole seconds, UTC.
fn time(wall: Micros) -> String {
    let seconds = i64::try_from(wall.get() / 1_000_000).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

fn known_time(wall: Micros) -> Option<String> {
    (wall > Micros::ZERO).then(|| time(wall))
}

fn nano_cores(cpu: MilliCpu) -> u64 {
    cpu.get().saturating_mul(1_000_000)
}

fn psi(pressure: Pressure) -> Psi {
    let line = |stall: Stall| {
        let percent = |hundredths: u32| f64::from(hundredths) / 100.0;
        PsiLine {
            total: stall.total.get(),
            avg10: percent(stall.avg10),
            avg60: percent(stall.avg60),
            avg300: percent(stall.avg300),
        }
    };
    Psi { full: line(pressure.full), some: line(pressure.some) }
}

/// What a cgroup uses, and at which rate its CPU.
fn usage(reading: &CgroupReading, rate: Option<u64>, now: Now) -> Usage {
    let time = time(moment(reading.at, now));
    let pressure: Option<PressureReading> = reading.pressure;
    let of = |pick: fn(&PressureReading) -> Pressure| pressure.as_ref().map(|p| psi(pick(p)));
    Usage {
        cpu: reading.cpu.map(|cpu| CpuStats {
            time: time.clone(),
            usage_nano_cores: rate,
            usage_core_nano_seconds: cpu.best().map(|used| used.get().saturating_mul(1_000)),
            psi: of(|p| p.cpu),
        }),
        memory: reading.memory.map(|memory| MemoryStats {
            time: time.clone(),
            available_bytes: memory.limit.map(|limit| (limit - memory.working_set()).get()),
            usage_bytes: Some(memory.usage.get()),
            working_set_bytes: Some(memory.working_set().get()),
            rss_bytes: Some(memory.anon.get()),
            page_faults: memory.more.page_faults,
            major_page_faults: memory.more.major_faults,
            psi: of(|p| p.memory),
        }),
        io: of(|p| p.io).map(|psi| IoStats { time: time.clone(), psi }),
        swap: reading.memory.and_then(|m| m.more.swap.map(|used| (m, used))).map(|(memory, used)| SwapStats {
            time,
            swap_available_bytes: memory.more.swap_limit.map(|limit| (limit - used).get()),
            swap_usage_bytes: Some(used.get()),
        }),
    }
}

fn fs(space: &FsUse) -> FsStats {
    FsStats {
        time: time(space.at),
        available_bytes: space.available.map(Bytes::get),
        capacity_bytes: space.capacity.map(Bytes::get),
        used_bytes: space.used.get(),
        inodes_free: space.inodes_free,
        inodes: space.inodes,
        inodes_used: space.inodes_used,
    }
}

/// The device that the kubelet takes for the network; the others follow in the list.
const FIRST: &str = "eth0";

fn network(interfaces: &[InterfaceReading], at: Micros) -> Option<NetworkStats> {
    let of = |i: &InterfaceReading| InterfaceStats {
        name: i.name.clone(),
        rx_bytes: Some(i.traffic.rx_bytes),
        rx_errors: Some(i.rx_errors),
        tx_bytes: Some(i.traffic.tx_bytes),
        tx_errors: Some(i.tx_errors),
    };
    let interfaces: Vec<InterfaceStats> = shown(interfaces).map(of).collect();
    let first = interfaces.iter().find(|i| i.name == FIRST).cloned().unwrap_or_default();
    (!interfaces.is_empty()).then(|| NetworkStats { time: time(at), first, interfaces })
}

fn node(picture: &Snapshot, rates: &Rates) -> NodeStats {
    let (node, now) = (&picture.node, picture.at);
    let detail = node.detail.as_deref();
    let pressure = detail.and_then(|d| d.pressure);
    let read = |at: Option<Micros>| time(at.map_or(now.wall, |at| moment(at, now)));
    let detailed = read(detail.map(|d| d.at));
    let usage = Usage {
        cpu: node.reading.map(|reading| CpuStats {
            time: read(node.cpu_at()),
            usage_nano_cores: node.cpu.map(nano_cores),
            usage_core_nano_seconds: Some(reading.cpu_busy.get().saturating_mul(1_000)),
            psi: pressure.map(|p| psi(p.cpu)),
        }),
        memory: node.reading.map(|reading| MemoryStats {
            time: read(node.memory_at()),
            available_bytes: node.memory_working_set().map(|used| (reading.memory_total - used).get()),
            usage_bytes: detail.and_then(|d| d.memory_usage).map(Bytes::get),
            working_set_bytes: node.memory_working_set().map(Bytes::get),
            rss_bytes: detail.and_then(|d| d.memory_rss).map(Bytes::get),
            page_faults: detail.and_then(|d| d.page_faults).map(|(all, _)| all),
            major_page_faults: detail.and_then(|d| d.page_faults).map(|(_, major)| major),
            psi: pressure.map(|p| psi(p.memory)),
        }),
        io: pressure.map(|p| IoStats { time: detailed.clone(), psi: psi(p.io) }),
        swap: detail.and_then(|d| d.swap).map(|(used, free)| SwapStats {
            time: detailed,
            swap_available_bytes: Some(free.get()),
            swap_usage_bytes: Some(used.get()),
        }),
    };
    let Some(detail) = detail else {
        return NodeStats { node_name: node.name.clone(), usage, ..NodeStats::default() };
    };
    let at = moment(detail.at, now);
    let (image_fs, container_fs) = (detail.image_fs.as_ref().map(fs), detail.container_fs.as_ref().map(fs));
    let has_runtime = image_fs.is_some() || container_fs.is_some();
    NodeStats {
        node_name: node.name.clone(),
        system_containers: detail.services.iter().map(|service| system_container(service, rates, now)).collect(),
        start_time: known_time(detail.booted),
        usage,
        network: network(&detail.interfaces, at),
        fs: detail.fs.as_ref().map(fs),
        runtime: has_runtime.then_some(RuntimeStats { image_fs, container_fs }),
        rlimit: detail.pids.map(|(maxpid, curproc)| Rlimit { time: time(at), maxpid, curproc }),
    }
}

fn system_container(service: &(String, Micros, CgroupReading), rates: &Rates, now: Now) -> ContainerStats {
    let (name, started, reading) = service;
    ContainerStats {
        name: name.clone(),
        start_time: known_time(*started),
        usage: usage(reading, rates.of(name), now),
        rootfs: None,
        logs: None,
    }
}

fn pod(view: &PodView, picture: &Snapshot) -> PodStats {
    let (spec, now) = (&view.spec, picture.at);
    let detail = view.detail.as_deref();
    let storage = detail.and_then(|d| d.storage.as_ref());
    let processes: Option<u64> = view
        .containers
        .iter()
        .filter(|c| is_running(c))
        .map(|c| c.detail.as_ref()?.tasks.map(|tasks| u64::from(tasks.processes)))
        .sum();
    PodStats {
        pod_ref: PodRef { name: spec.name.clone(), namespace: spec.namespace.clone(), uid: spec.uid.to_string() },
        start_time: known_time(view.sandbox_created.unwrap_or(view.since)),
        containers: view.containers.iter().filter_map(|c| container(c, storage, now)).collect(),
        usage: view.reading.map(|reading| usage(&reading, view.cpu.map(nano_cores), now)).unwrap_or_default(),
        network: detail.and_then(|d| network(&d.interfaces, moment(d.at, now))),
        volumes: storage.map_or_else(Vec::new, |s| {
            s.volumes.iter().map(|(name, space)| VolumeStats { fs: fs(space), name: name.clone() }).collect()
        }),
        ephemeral_storage: storage.and_then(|s| ephemeral(s, spec, picture)),
        process_stats: processes.map(|process_count| ProcessStats { process_count }),
    }
}

fn container(view: &ContainerView, storage: Option<&StorageReading>, now: Now) -> Option<ContainerStats> {
    let ContainerState::Running { started } = view.state else { return None };
    let of = |list: &[(String, FsUse)]| list.iter().find(|(name, _)| *name == view.name).map(|(_, space)| fs(space));
    Some(ContainerStats {
        name: view.name.clone(),
        start_time: known_time(started),
        usage: view.reading.map(|reading| usage(&reading, view.cpu.map(nano_cores), now)).unwrap_or_default(),
        rootfs: storage.and_then(|s| of(&s.rootfs)),
        logs: storage.and_then(|s| of(&s.logs)),
    })
}

/// What the pod has on the node's disk, on the file system of beelet's folder.
fn ephemeral(storage: &StorageReading, spec: &PodSpec, picture: &Snapshot) -> Option<FsStats> {
    let on_disk =
        |name: &str| spec.volumes.iter().find(|volume| volume.name == name).is_none_or(|volume| volume.kind.on_disk());
    let volumes = storage.volumes.iter().filter(|(name, _)| on_disk(name));
    let parts: Vec<&FsUse> =
        storage.rootfs.iter().chain(&storage.logs).chain(volumes).map(|(_, space)| space).collect();
    let whole = picture.node.detail.as_deref().and_then(|d| d.fs).unwrap_or_default();
    let newest = parts.iter().map(|space| space.at).max()?;
    Some(fs(&FsUse {
        at: newest,
        used: parts.iter().map(|space| space.used).sum(),
        inodes_used: parts.iter().map(|space| space.inodes_used).sum(),
        ..whole
    }))
}

#[cfg(test)]
mod tests;
