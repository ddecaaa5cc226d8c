//! What happened between two readings.
//!
//! Every difference is of the same cgroup id and of the same source; what went backwards, or is of another cgroup, is `None`.

use std::collections::BTreeMap;

use crate::sample::{CgroupReading, ContainerReading, NodeReading, PodReading};
use crate::telemetry::{CgroupDetail, DiskReading, NodeDetail, PodDetail, Preemptor};
use crate::units::{Bytes, Micros, MilliCpu, Ppm};

use super::{DETAIL_HOLDS, START_UP};

/// `part` of `whole`, at most all of it; nothing of nothing.
pub(super) fn share(part: Micros, whole: Micros) -> Ppm {
    if whole == Micros::ZERO { Ppm(0) } else { Ppm(part.scale(1_000_000, whole.get()).get().min(1_000_000)) }
}

fn grown(before: Option<Micros>, after: Option<Micros>) -> Option<Micros> {
    before.zip(after).and_then(|(a, b)| b.get().checked_sub(a.get())).map(Micros)
}

fn added(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    before.zip(after).and_then(|(a, b)| b.checked_sub(a))
}

/// Throttling of one cgroup.
#[derive(Clone, Debug, Default)]
pub(super) struct Throttling {
    /// The container's name; "" for the pod's own quota.
    pub(super) container: String,
    /// Time throttled, summed over CPUs.
    pub(super) time: Micros,
    /// Periods in which something ran, and of these the throttled ones.
    pub(super) periods: (u64, u64),
}

/// A pod in a window.
#[derive(Clone, Debug, Default)]
pub(super) struct PodWindow {
    /// Its length; zero if there was no reading at its start.
    pub(super) span: Micros,
    /// All its containers had begun a moment before it.
    pub(super) young: bool,
    /// Time run, summed over CPUs.
    pub(super) run: Option<Micros>,
    /// Time that tasks waited for a CPU, summed over tasks, throttling included.
    pub(super) wait: Option<Micros>,
    /// Throttling of the pod's own quota and its containers', the most first; empty for none.
    pub(super) throttling: Vec<Throttling>,
    /// Time in which some task waited for a CPU, for memory, for a disk.
    pub(super) some: Option<[Micros; 3]>,
    /// A memory limit (or `memory.high`) of the pod or a container was reached in the window, so often.
    pub(super) limit_hits: Option<u64>,
    /// The memory in use of the fullest limited cgroup, and its limit.
    pub(super) memory: Option<(Bytes, Bytes)>,
}

impl PodWindow {
    pub(super) fn cpu_in_use(&self) -> Option<MilliCpu> {
        if self.span == Micros::ZERO {
            return None;
        }
        self.run.map(|run| MilliCpu(run.scale(1_000, self.span.get()).get()))
    }

    /// Time throttled, summed over CPUs.
    ///
    /// A pod's quota and its containers' are used up at about the same time, and whichever is first counts: since Linux 6.6
    /// (79462e8c879a) a group without runnable tasks counts no throttling, so the two add up. Before, both count the same time. So
    /// it is the sum, but not more than all waits, of which throttling is a part; where these are not known, the longer one.
    pub(super) fn throttled(&self) -> Micros {
        let of = |is_pod: bool| -> Micros {
            self.throttling.iter().filter(|t| t.container.is_empty() == is_pod).map(|t| t.time).sum()
        };
        let (pod, containers) = (of(true), of(false));
        let longer = pod.max(containers);
        self.wait.map_or(longer, |wait| (pod + containers).min(wait).max(longer))
    }

    /// The share of wall-clock time in which some task waited for a CPU (0), memory (1) or a disk (2).
    pub(super) fn stalled(&self, what: usize) -> Option<Ppm> {
        self.some.and_then(|some| some.get(what).copied()).map(|time| share(time, self.span))
    }
}

/// A pod's readings at the start of a window.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    base: Option<(Micros, CgroupReading)>,
    /// Of its containers, by the id of the cgroup.
    containers: BTreeMap<u64, CgroupReading>,
    /// When each of its containers was first seen.
    first: BTreeMap<u64, Micros>,
}

impl Past {
    pub(super) fn forget(&mut self) {
        self.base = None;
        self.containers.clear();
    }

    pub(super) fn size(&self) -> usize {
        self.containers.len() + self.first.len()
    }

    /// Takes a reading in the middle of a window: what is new in it begins now.
    pub(super) fn meet(&mut self, at: Micros, reading: &PodReading) {
        if self.base.is_none_or(|(_, base)| base.id != reading.cgroup.id) {
            self.base = Some((at, reading.cgroup));
        }
        self.first.retain(|id, _| reading.containers.iter().any(|c| c.cgroup.id == *id));
        for c in &reading.containers {
            self.first.entry(c.cgroup.id).or_insert(at);
            self.containers.entry(c.cgroup.id).or_insert(c.cgroup);
        }
    }

    /// Ends the window and begins the next.
    pub(super) fn close(&mut self, at: Micros, reading: &PodReading) -> PodWindow {
        self.meet(at, reading);
        let from = self.base.map_or(at, |(from, _)| from);
        let mut window = self.base.map(|(from, base)| self.compare(at, from, &base, reading)).unwrap_or_default();
        // One that began within the window is compared over a shorter time; too short says nothing.
        if window.span < Micros(super::WINDOW.get() / 2) {
            window.span = Micros::ZERO;
        }
        let all_young = self.first.values().all(|first| from - *first < START_UP);
        window.young = all_young && !reading.containers.is_empty();
        self.base = Some((at, reading.cgroup));
        self.containers = reading.containers.iter().map(|c| (c.cgroup.id, c.cgroup)).collect();
        window
    }

    fn compare(&self, at: Micros, from: Micros, base: &CgroupReading, reading: &PodReading) -> PodWindow {
        let now = &reading.cgroup;
        let pairs: Vec<(&ContainerReading, &CgroupReading)> =
            reading.containers.iter().filter_map(|c| Some((c, self.containers.get(&c.cgroup.id)?))).collect();
        let (a, b) = (base.cpu.unwrap_or_default(), now.cpu.unwrap_or_default());
        // A pod without figures of its own is the sum of its containers.
        let sum = |of: fn(&CgroupReading) -> Option<Micros>| {
            let parts: Vec<Micros> = pairs.iter().filter_map(|(c, was)| grown(of(was), of(&c.cgroup))).collect();
            (!parts.is_empty()).then(|| parts.into_iter().sum::<Micros>())
        };
        let run = grown(a.usage, b.usage).or_else(|| grown(a.run, b.run));
        let wait = grown(a.wait, b.wait).or_else(|| sum(|c| c.cpu.and_then(|c| c.wait)));
        let mut throttling: Vec<Throttling> = pairs
            .iter()
            .filter_map(|(c, was)| throttling(&c.name, was, &c.cgroup))
            .chain(throttling("", base, now))
            .collect();
        throttling.sort_by(|a, b| (b.time, &a.container).cmp(&(a.time, &b.container)));
        let limited = reading.containers.iter().map(|c| &c.cgroup).chain([now]);
        let memory = limited
            .filter_map(|c| c.memory.and_then(|m| Some((m.usage, m.limit.filter(|l| *l > Bytes::ZERO)?))))
            .max_by_key(|(usage, limit)| usage.scale(1_000_000, limit.get()));
        let hits = |was: &CgroupReading, is: &CgroupReading| {
            let (was, is) = (was.memory?.more, is.memory?.more);
            let (max, high) = (added(was.max_events, is.max_events), added(was.high_events, is.high_events));
            max.or(high).map(|_| max.unwrap_or(0).saturating_add(high.unwrap_or(0)))
        };
        let limit_hits =
            pairs.iter().filter_map(|(c, was)| hits(was, &c.cgroup)).chain(hits(base, now)).reduce(u64::saturating_add);
        let some = base.pressure.zip(now.pressure).and_then(|(a, b)| {
            let of =
                |a: crate::sample::Pressure, b: crate::sample::Pressure| grown(Some(a.some.total), Some(b.some.total));
            Some([of(a.cpu, b.cpu)?, of(a.memory, b.memory)?, of(a.io, b.io)?])
        });
        PodWindow {
            span: at - from,
            young: false,
            run: run.or_else(|| sum(|c| c.cpu.and_then(|c| c.best()))),
            wait,
            throttling,
            some,
            limit_hits,
            memory,
        }
    }
}

fn throttling(name: &str, was: &CgroupReading, is: &CgroupReading) -> Option<Throttling> {
    let (a, b) = (was.cpu?, is.cpu?);
    let time = grown(a.throttled, b.throttled).filter(|t| *t > Micros::ZERO)?;
    let periods = added(a.periods, b.periods).unwrap_or(0);
    let throttled = added(a.throttled_periods, b.throttled_periods).unwrap_or(0);
    Some(Throttling { container: name.to_owned(), time, periods: (periods, throttled) })
}

/// The node in a window.
#[derive(Clone, Debug, Default)]
pub(super) struct NodeWindow {
    /// CPU in use by everything.
    pub(super) busy: Option<MilliCpu>,
    /// The idle share of all CPU time.
    pub(super) idle: Option<Ppm>,
    /// Time stolen by the hypervisor, of one CPU's time.
    pub(super) stolen: Option<Ppm>,
    /// Memory that can be had, of all.
    pub(super) memory_left: Option<Ppm>,
    /// Tasks wait for memory, of the last 10 s.
    pub(super) memory_some: Option<Ppm>,
}

impl NodeWindow {
    pub(super) fn between(
        was: &NodeReading,
        is: &NodeReading,
        span: Micros,
        stolen: Option<Ppm>,
        detail: Option<&NodeDetail>,
    ) -> Self {
        let busy = grown(Some(was.cpu_busy), Some(is.cpu_busy));
        let idle = grown(Some(was.cpu_idle), Some(is.cpu_idle));
        // Counters that stand still were not read.
        let both = busy.zip(idle).filter(|(b, i)| *b + *i > Micros::ZERO);
        let total = is.memory_total;
        Self {
            busy: both.map(|(b, _)| MilliCpu(b.scale(1_000, span.get()).get())),
            idle: both.map(|(b, i)| share(i, b + i)),
            stolen,
            memory_left: (total > Bytes::ZERO)
                .then(|| Ppm((total - is.memory_unreclaimable).scale(1_000_000, total.get()).get())),
            memory_some: detail.and_then(|d| d.pressure).map(|p| Ppm(u64::from(p.memory.some.avg10) * 100)),
        }
    }
}

/// What two details of a pod's cgroup differ by.
#[derive(Clone, Debug, Default)]
pub(super) struct DetailWindow {
    pub(super) at: Micros,
    pub(super) span: Micros,
    /// Preemptions by who took the CPU.
    pub(super) preempted: Vec<(Preemptor, u64)>,
    /// Time in direct reclaim, summed over tasks: for want of memory on the node, below a limit.
    pub(super) reclaim: Option<(Micros, Micros)>,
    /// Requests to disks.
    pub(super) disk: Vec<DiskReading>,
}

/// The newest detail, and what it differs by from the one before.
#[derive(Clone, Debug, Default)]
pub(super) struct DetailPast {
    last: Option<CgroupDetail>,
    window: Option<DetailWindow>,
    /// The window is of the last observation.
    is_fresh: bool,
}

impl DetailPast {
    pub(super) fn observe(&mut self, now: Micros, detail: Option<&CgroupDetail>) {
        self.is_fresh = false;
        let Some(detail) = detail else { return };
        let window = match &self.last {
            Some(last) if detail.at <= last.at => return,
            Some(last) if now - last.at <= DETAIL_HOLDS + DETAIL_HOLDS => Some(difference(last, detail)),
            _ => None,
        };
        self.is_fresh = window.is_some();
        self.window = window;
        // Only what is compared is kept.
        self.last = Some(CgroupDetail {
            at: detail.at,
            preempted: detail.preempted.clone(),
            reclaim_node: detail.reclaim_node,
            reclaim_limit: detail.reclaim_limit,
            disk: detail.disk.clone(),
            ..CgroupDetail::default()
        });
    }

    /// The newest window, if it came just now.
    pub(super) fn fresh(&self) -> Option<&DetailWindow> {
        self.window.as_ref().filter(|_| self.is_fresh)
    }

    /// The newest window, if it is not too old.
    pub(super) fn held(&self, now: Micros) -> Option<&DetailWindow> {
        self.window.as_ref().filter(|w| now - w.at <= DETAIL_HOLDS)
    }
}

fn difference(was: &CgroupDetail, is: &CgroupDetail) -> DetailWindow {
    let preempted = is.preempted.iter().map(|(who, n)| {
        let before = was.preempted.iter().find(|(w, _)| w == who).map_or(0, |(_, n)| *n);
        // A counter that began anew is all new.
        (who.clone(), n.checked_sub(before).unwrap_or(*n))
    });
    let reclaim = |was: Option<crate::telemetry::Histogram>, is: Option<crate::telemetry::Histogram>| {
        Some(Micros(is?.since(&was.unwrap_or_default()).sum_ns / 1_000))
    };
    let disk = is.disk.iter().map(|d| {
        let before = was.disk.iter().find(|w| w.device == d.device && w.op == d.op);
        let zero = crate::telemetry::Histogram::default();
        DiskReading {
            bytes: d.bytes.saturating_sub(before.map_or(0, |b| b.bytes)),
            errors: d.errors.saturating_sub(before.map_or(0, |b| b.errors)),
            latency: d.latency.since(before.map_or(&zero, |b| &b.latency)),
            ..d.clone()
        }
    });
    DetailWindow {
        at: is.at,
        span: is.at - was.at,
        preempted: preempted.filter(|(_, n)| *n > 0).collect(),
        reclaim: reclaim(was.reclaim_node, is.reclaim_node).zip(reclaim(was.reclaim_limit, is.reclaim_limit)),
        disk: disk.filter(|d| d.latency.count() > 0).collect(),
    }
}

/// A pod's TCP between two details.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NetWindow {
    pub(super) span: Micros,
    /// Segments sent for the first time.
    pub(super) sent: u64,
    /// Segments sent again.
    pub(super) again: u64,
    /// Retransmission timers that ran out; `None` where nobody counts them.
    pub(super) timeouts: Option<u64>,
    /// Connections begun from here, and those that failed.
    pub(super) connects: Option<(u64, u64)>,
}

/// The newest network counters, and what they differ by from those before.
#[derive(Clone, Debug, Default)]
pub(super) struct NetPast {
    last: Option<(Micros, Counters)>,
    fresh: Option<NetWindow>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    sent: Option<u64>,
    again: Option<u64>,
    timeouts: Option<u64>,
    connects: Option<u64>,
    failures: Option<u64>,
}

impl NetPast {
    pub(super) fn observe(&mut self, detail: Option<&PodDetail>) {
        self.fresh = None;
        let Some(detail) = detail else { return };
        if self.last.is_some_and(|(at, _)| detail.at <= at) {
            return;
        }
        // The namespace's own counters are exact. A pod in the host's network has none; there eBPF counts packets, not segments.
        let (stack, tcp) = (detail.stack, detail.connections);
        let now = Counters {
            sent: stack.map(|s| s.segments_sent).or(detail.tcp.map(|t| t.tx_packets)),
            again: stack.map(|s| s.retransmits).or(tcp.map(|t| t.retransmits)),
            timeouts: stack.map(|s| s.timeouts),
            connects: tcp.map(|t| t.connects),
            failures: tcp.map(|t| t.connect_failures),
        };
        if let Some((at, was)) = self.last
            && let Some((sent, again)) = added(was.sent, now.sent).zip(added(was.again, now.again))
        {
            let connects = added(was.connects, now.connects).zip(added(was.failures, now.failures));
            let timeouts = added(was.timeouts, now.timeouts);
            self.fresh = Some(NetWindow { span: detail.at - at, sent, again, timeouts, connects });
        }
        self.last = Some((detail.at, now));
    }

    pub(super) fn fresh(&self) -> Option<&NetWindow> {
        self.fresh.as_ref()
    }
}
