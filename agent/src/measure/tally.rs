//! What eBPF counted of a container or a pod, over all of its cgroups, those that are gone included.
//!
//! **Problem.** The programs count by cgroup: each its own tasks and sockets, not those below. A container may have cgroups of its
//! own (a runtime in it, an init system), and a pod's containers come and go. **Approach.** A [`Tally`] is a sum over cgroup ids; of
//! a cgroup that is gone it is kept, so that no counter falls.
//!
//! **Properties.** What no program counted is `None` or empty. Sums saturate.

use std::collections::BTreeMap;

use beelet_core::sample::{CpuReading, NetworkReading};
use beelet_core::spec::PodUid;
use beelet_core::telemetry::{
    CgroupDetail, DiskOp, DiskReading, DnsReading, ExitKind, Histogram, Life, PodDetail, PortReading, Preemptor,
    TaskStates, TcpReading,
};
use beelet_core::units::{Bytes, Micros};
use beelet_ebpf_common::{
    Counts, CpuRecord, DiskRecord, DnsRecord, Histogram as Slots, LifeRecord, NetRecord, PortRecord, ReclaimRecord,
    TaskRecord, TcpRecord, Traffic, disk,
};

use crate::kernel::cgroup::Devices;
use crate::kernel::maps::Counters;

/// What every look wants.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fast {
    run_ns: u64,
    wait_ns: u64,
    switches: u64,
    involuntary: u64,
    network: Traffic,
    /// A program counts CPU time, traffic.
    measured: (bool, bool),
}

impl Fast {
    /// Adds a cgroup's.
    pub(super) fn add(&mut self, counters: &Counters, id: u64) {
        if let Some(cpu) = counters.cpu(id) {
            self.add_cpu(cpu);
            self.measured.0 = true;
        }
        if let Some(net) = counters.net(id) {
            self.network = self.network.plus(net.total());
            self.measured.1 = true;
        }
    }

    /// Adds what is left of cgroups that are gone.
    pub(super) fn add_retired(&mut self, retired: Option<&Tally>) {
        let Some(retired) = retired else { return };
        if let Some(cpu) = &retired.cpu {
            self.add_cpu(cpu);
        }
        self.network = self.network.plus(retired.net.unwrap_or_default().total());
    }

    /// Adds a container's to its pod's.
    pub(super) fn plus(&mut self, other: &Self) {
        self.run_ns = self.run_ns.saturating_add(other.run_ns);
        self.wait_ns = self.wait_ns.saturating_add(other.wait_ns);
        self.switches = self.switches.saturating_add(other.switches);
        self.involuntary = self.involuntary.saturating_add(other.involuntary);
        self.network = self.network.plus(other.network);
        self.measured.0 |= other.measured.0;
        self.measured.1 |= other.measured.1;
    }

    fn add_cpu(&mut self, cpu: &CpuRecord) {
        self.run_ns = self.run_ns.saturating_add(cpu.run_ns);
        self.wait_ns = self.wait_ns.saturating_add(cpu.wait.sum_ns);
        self.switches = self.switches.saturating_add(cpu.switches);
        self.involuntary = self.involuntary.saturating_add(cpu.involuntary);
    }

    /// Puts the CPU's part into a reading.
    pub(super) fn fill(&self, cpu: &mut Option<CpuReading>) {
        if !self.measured.0 {
            return;
        }
        let it = cpu.get_or_insert_default();
        it.run = Some(Micros(self.run_ns / 1_000));
        it.wait = Some(Micros(self.wait_ns / 1_000));
        (it.switches, it.involuntary) = (Some(self.switches), Some(self.involuntary));
    }

    /// Traffic; `None` where nothing was ever counted.
    pub(super) fn network(&self) -> Option<NetworkReading> {
        let known = self.measured.1 || self.network != Traffic::default();
        known.then(|| traffic(self.network))
    }
}

/// Everything that is counted of some cgroups.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    cpu: Option<CpuRecord>,
    net: Option<NetRecord>,
    reclaim: Option<ReclaimRecord>,
    tcp: Option<TcpRecord>,
    dns: Option<DnsRecord>,
    life: Option<LifeRecord>,
    tasks: Option<TaskRecord>,
    preempted: BTreeMap<Preemptor, u64>,
    ports: BTreeMap<u16, PortRecord>,
    drops: BTreeMap<u64, u64>,
    disk: BTreeMap<(u32, u32), DiskRecord>,
    exits: BTreeMap<ExitKind, u64>,
}

impl Tally {
    /// Adds a cgroup's; `who` tells whose a cgroup is that took the CPU, if that is known.
    pub(super) fn add(
        &mut self,
        counters: &Counters,
        id: u64,
        io_id: Option<u64>,
        who: &dyn Fn(u64) -> Option<Preemptor>,
    ) {
        join(&mut self.cpu, counters.cpu(id).copied());
        join(&mut self.net, counters.net(id).copied());
        join(&mut self.reclaim, counters.reclaim(id).copied());
        join(&mut self.tcp, counters.tcp(id).copied());
        join(&mut self.dns, counters.dns(id).copied());
        join(&mut self.life, counters.life(id).copied());
        self.add_tasks(counters.tasks(id));
        for (by, count) in counters.preempted(id).into_iter().flatten() {
            if let Some(by) = who(by) {
                add(&mut self.preempted, by, count);
            }
        }
        for (port, record) in counters.ports(id).into_iter().flatten() {
            if let Ok(port) = u16::try_from(port) {
                let sum = self.ports.entry(port).or_default();
                *sum = sum.plus(*record);
            }
        }
        for (reason, count) in counters.drops(id).into_iter().flatten() {
            add(&mut self.drops, reason, count);
        }
        for (status, count) in counters.exits(id).into_iter().flatten() {
            add(&mut self.exits, exit_kind(status), count);
        }
        for (key, record) in io_id.and_then(|id| counters.disk(id)).into_iter().flatten() {
            let sum = self.disk.entry((key.device, key.op)).or_default();
            *sum = sum.plus(*record);
        }
    }

    /// Adds another's.
    pub(super) fn join(&mut self, other: &Self) {
        join(&mut self.cpu, other.cpu);
        join(&mut self.net, other.net);
        join(&mut self.reclaim, other.reclaim);
        join(&mut self.tcp, other.tcp);
        join(&mut self.dns, other.dns);
        join(&mut self.life, other.life);
        self.add_tasks(other.tasks.as_ref());
        for (by, count) in &other.preempted {
            add(&mut self.preempted, by.clone(), *count);
        }
        for (port, record) in &other.ports {
            let sum = self.ports.entry(*port).or_default();
            *sum = sum.plus(*record);
        }
        for (reason, count) in &other.drops {
            add(&mut self.drops, *reason, *count);
        }
        for (kind, count) in &other.exits {
            add(&mut self.exits, *kind, *count);
        }
        for (key, record) in &other.disk {
            let sum = self.disk.entry(*key).or_default();
            *sum = sum.plus(*record);
        }
    }

    /// What is of the moment ends with a cgroup.
    pub(super) fn retire(&mut self) {
        self.tasks = None;
    }

    /// Of a whole pod: what its containers take from each other is its own.
    pub(super) fn seen_by(&mut self, pod: &PodUid) {
        if let Some(count) = self.preempted.remove(&Preemptor::Pod(pod.clone())) {
            add(&mut self.preempted, Preemptor::Own, count);
        }
    }

    fn add_tasks(&mut self, more: Option<&TaskRecord>) {
        let Some(more) = more else { return };
        let it = self.tasks.get_or_insert_default();
        it.running = it.running.saturating_add(more.running);
        it.sleeping = it.sleeping.saturating_add(more.sleeping);
        it.uninterruptible = it.uninterruptible.saturating_add(more.uninterruptible);
        it.stopped = it.stopped.saturating_add(more.stopped);
        it.zombie = it.zombie.saturating_add(more.zombie);
        it.processes = it.processes.saturating_add(more.processes);
    }

    /// Its part of a cgroup's details.
    pub(super) fn cgroup_detail(&self, devices: &mut Devices) -> CgroupDetail {
        let reclaim = self.reclaim.as_ref();
        let mut disk: Vec<DiskReading> =
            self.disk.iter().map(|(key, record)| disk_reading(*key, record, devices)).collect();
        disk.sort_by(|a, b| (&a.device, a.op).cmp(&(&b.device, b.op)));
        CgroupDetail {
            wait: self.cpu.as_ref().map(|cpu| histogram(&cpu.wait)),
            preempted: self.preempted.iter().map(|(by, count)| (by.clone(), *count)).collect(),
            reclaim_node: reclaim.map(|it| histogram(&it.node)),
            reclaim_limit: reclaim.map(|it| histogram(&it.limit)),
            reclaimed: reclaim.map(|it| Bytes(it.pages.saturating_mul(page()))),
            disk,
            life: self.life.map(|it| Life { forks: it.forks, threads: it.threads, execs: it.execs, exits: it.exits }),
            exits: self.exits.iter().map(|(kind, count)| (*kind, *count)).collect(),
            tasks: self.tasks.map(|it| TaskStates {
                running: it.running,
                sleeping: it.sleeping,
                uninterruptible: it.uninterruptible,
                stopped: it.stopped,
                zombie: it.zombie,
                processes: it.processes,
            }),
            ..CgroupDetail::default()
        }
    }

    /// Its part of a pod's details; `reason` names why a packet was dropped.
    pub(super) fn pod_detail(&self, reason: &dyn Fn(u64) -> String) -> PodDetail {
        let mut drops: Vec<(String, u64)> = self.drops.iter().map(|(code, count)| (reason(*code), *count)).collect();
        drops.sort_unstable();
        PodDetail {
            tcp: self.net.map(|it| traffic(it.tcp)),
            udp: self.net.map(|it| traffic(it.udp)),
            other: self.net.map(|it| traffic(it.other)),
            connections: self.tcp.as_ref().map(|it| TcpReading {
                connects: it.connects,
                connect_failures: it.connect_failures,
                accepts: it.accepts,
                resets_sent: it.resets_sent,
                resets_received: it.resets_received,
                retransmits: it.retransmits,
                connect: histogram(&it.connect),
                rtt: histogram(&it.rtt),
            }),
            dns: self.dns.as_ref().map(|it| DnsReading {
                queries: it.queries,
                answers: it.answers,
                errors: it.errors,
                no_such_name: it.no_such_name,
                latency: histogram(&it.latency),
            }),
            ports: self.ports.iter().map(|(port, record)| port_reading(*port, record)).collect(),
            drops,
            ..PodDetail::default()
        }
    }
}

fn join<R: Counts>(sum: &mut Option<R>, more: Option<R>) {
    if let Some(more) = more {
        *sum = Some(sum.map_or(more, |sum| sum.plus(more)));
    }
}

fn add<K: Ord>(map: &mut BTreeMap<K, u64>, key: K, count: u64) {
    let sum = map.entry(key).or_default();
    *sum = sum.saturating_add(count);
}

fn traffic(it: Traffic) -> NetworkReading {
    NetworkReading {
        rx_bytes: it.rx_bytes,
        rx_packets: it.rx_packets,
        tx_bytes: it.tx_bytes,
        tx_packets: it.tx_packets,
    }
}

fn histogram(it: &Slots) -> Histogram {
    Histogram { counts: it.counts, sum_ns: it.sum_ns }
}

fn page() -> u64 {
    procfs::page_size()
}

/// The status as `wait` gives it.
fn exit_kind(status: u64) -> ExitKind {
    let [low, high, ..] = status.to_le_bytes();
    match low & 0x7f {
        0 => ExitKind::Code(high),
        signal => ExitKind::Signal(signal),
    }
}

/// The kernel's device number: 20 bits of minor.
fn disk_reading((number, op): (u32, u32), record: &DiskRecord, devices: &mut Devices) -> DiskReading {
    DiskReading {
        device: devices.get(number >> 20, number & 0xf_ffff),
        op: match op {
            disk::READ => DiskOp::Read,
            disk::WRITE => DiskOp::Write,
            _ => DiskOp::Other,
        },
        bytes: record.bytes,
        errors: record.errors,
        latency: histogram(&record.latency),
    }
}

fn port_reading(port: u16, record: &PortRecord) -> PortReading {
    PortReading {
        port,
        requests: record.requests,
        unanswered: record.unanswered,
        http: record.http,
        latency: histogram(&record.latency),
        ..PortReading::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_codes_or_signals() {
        let kinds = [0, 1 << 8, 255 << 8, 9, 11 | 0x80].map(exit_kind);
        let expected =
            [ExitKind::Code(0), ExitKind::Code(1), ExitKind::Code(255), ExitKind::Signal(9), ExitKind::Signal(11)];
        assert_eq!(kinds, expected);
    }

    #[test]
    fn sums_keep_what_was_counted_and_lose_what_is_of_the_moment() {
        let mut one = Tally {
            cpu: Some(CpuRecord { run_ns: 5, ..CpuRecord::default() }),
            tasks: Some(TaskRecord { running: 3, ..TaskRecord::default() }),
            preempted: [(Preemptor::Own, 1), (Preemptor::Pod("u".into()), 2)].into(),
            disk: [((254 << 20 | 1, disk::WRITE), DiskRecord { bytes: 4_096, ..DiskRecord::default() })].into(),
            ..Tally::default()
        };
        let other = one.clone();
        one.retire();
        one.join(&other);
        one.seen_by(&"u".into());
        let detail = one.cgroup_detail(&mut Devices::default());
        assert_eq!(one.cpu.unwrap().run_ns, 10);
        assert_eq!(detail.tasks.unwrap().running, 3);
        assert_eq!(detail.preempted, [(Preemptor::Own, 6)]);
        let disk = &detail.disk[0];
        assert_eq!((disk.device.major, disk.device.minor, disk.op, disk.bytes), (254, 1, DiskOp::Write, 8_192));
        assert_eq!((detail.reclaim_node, detail.life, detail.reclaimed), (None, None, None));
        assert_eq!(one.pod_detail(&|_| String::new()).tcp, None, "no program counted it");
    }
}
