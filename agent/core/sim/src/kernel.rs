//! A model of what a kernel does with pods' memory and CPU.
//!
//! Problem: whether an eviction came in time, or was needed at all, is decided by a kernel. Approach: memory is followed in steps of
//! at most 100 ms, of 2 ms near a limit; what processes hold comes from their [`Curve`], file cache fills what is left and is
//! given back when it is needed, and what does not fit is killed.
//!
//! Simplified: no swap, no slab, no throttling of allocations (the worst case for beelet), reclaim costs pressure but no time, unless
//! the kernel is given a [`Reclaim`], which models watermarks, refaults and what they cost; CPU is shared in proportion to what is
//! wanted, not by weight.
//!
//! Terms: *dying* memory is that of killed processes, which the kernel gives back over some tens of ms.

pub mod reclaim;

use reclaim::{Files, MIN, Reclaim};

use std::collections::BTreeMap;
use std::sync::Arc;

use beelet_core::sample::{
    CgroupReading, ContainerReading, CpuReading, MemoryMore, MemoryReading, NetworkReading, NodeReading, PodReading,
    Pressure, PressureReading, Stall,
};
use beelet_core::spec::PodUid;
use beelet_core::telemetry::{CgroupDetail, ExitKind, Preemptor};
use beelet_core::units::{Bytes, Micros, MilliCpu};

use crate::workload::Curve;

/// The first process of a container with all its children.
#[derive(Clone, Debug)]
pub struct Proc {
    /// Whose.
    pub uid: PodUid,
    /// The container's name.
    pub name: String,
    /// What it does.
    pub curve: Curve,
    /// Since when (monotonic).
    pub started: Micros,
    /// Its memory limit.
    pub limit: Option<Bytes>,
    /// Its CPU limit.
    pub cpu_limit: Option<MilliCpu>,
    /// `oom_score_adj`.
    pub adj: i32,
    cgroup: u64,
    anon: Bytes,
    shmem: Bytes,
    /// File cache that was read once.
    cache: Bytes,
    files: Files,
    used: Micros,
    /// Runnable and without a CPU, throttling included.
    waited: Micros,
    periods: u64,
    throttled: u64,
    throttled_time: Micros,
    drops: u64,
    oom_kills: u64,
}

impl Proc {
    /// What reclaim cannot free of it.
    #[must_use]
    pub fn held(&self) -> Bytes {
        self.anon + self.shmem
    }
}

#[derive(Clone, Debug)]
struct Dying {
    uid: PodUid,
    held: Bytes,
    from: Micros,
    until: Micros,
    by_oom: bool,
}

impl Dying {
    fn left(&self, now: Micros) -> Bytes {
        self.held.scale((self.until - now).get(), (self.until - self.from).get())
    }
}

/// A pod's cgroup.
#[derive(Clone, Debug, Default)]
pub struct Group {
    id: u64,
    /// Where it is, relative to the hierarchies' roots.
    pub path: String,
    /// `memory.max`.
    pub limit: Option<Bytes>,
    /// In volumes, by containers that have ended.
    volumes: Bytes,
    used: Micros,
    /// Of containers that have ended, like `used`.
    waited: Micros,
    /// Time in which some task waited for a CPU, and for memory.
    stalled: (Micros, Micros),
    /// Preemptions by who took the CPU.
    preempted: BTreeMap<PodUid, u64>,
    oom_kills: u64,
}

/// A process that has just died.
#[derive(Clone, Debug)]
pub struct Death {
    /// The container's id.
    pub id: String,
    /// The pod.
    pub uid: PodUid,
    /// The container's name.
    pub name: String,
    /// When (monotonic).
    pub at: Micros,
    /// The exit code.
    pub code: i32,
    /// The OOM killer did it.
    pub oom: bool,
}

/// How often the OOM killer came, by the limit that was hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OomKills {
    /// A container's or a pod's own.
    pub own: u64,
    /// That of `kubepods`.
    pub kubepods: u64,
    /// The node's.
    pub node: u64,
}

impl OomKills {
    /// At walls that pods share.
    #[must_use]
    pub fn shared(&self) -> u64 {
        self.kubepods + self.node
    }
}

/// The kernel's side of a node.
#[derive(Clone, Debug)]
pub struct Kernel {
    now: Micros,
    /// `MemTotal`.
    pub total: Bytes,
    /// What everything but pods holds.
    pub system: Bytes,
    /// `memory.max` of `kubepods`.
    pub limit: Option<Bytes>,
    /// CPUs.
    pub cores: MilliCpu,
    /// The pods' cgroups.
    pub groups: BTreeMap<PodUid, Group>,
    /// Running processes by container id.
    pub procs: BTreeMap<String, Proc>,
    dying: Vec<Dying>,
    deaths: Vec<Death>,
    next_cgroup: u64,
    stalled: Micros,
    busy: Micros,
    idle: Micros,
    /// Cache that was dropped last, and when.
    dropped: (Micros, Bytes),
    /// The OOM killer's work.
    pub ooms: OomKills,
    /// What reclaim does and costs; `None` for cache that is given back for nothing, down to the last page.
    pub reclaim: Option<Reclaim>,
}

impl Kernel {
    /// A node without pods.
    #[must_use]
    pub fn new(now: Micros, total: Bytes, system: Bytes, cores: MilliCpu) -> Self {
        Self {
            now,
            total,
            system,
            limit: None,
            cores,
            groups: BTreeMap::new(),
            procs: BTreeMap::new(),
            dying: Vec::new(),
            deaths: Vec::new(),
            next_cgroup: 100,
            stalled: Micros::ZERO,
            busy: Micros::ZERO,
            idle: Micros::ZERO,
            dropped: (Micros::ZERO, Bytes::ZERO),
            ooms: OomKills::default(),
            reclaim: None,
        }
    }

    /// Make a pod's cgroup, or change its limit.
    pub fn make_group(&mut self, uid: &PodUid, path: &str, limit: Option<Bytes>) {
        let id = self.cgroup_id();
        let made = || Group { id, path: path.to_owned(), ..Group::default() };
        let group = self.groups.entry(uid.clone()).or_insert_with(made);
        group.limit = limit;
    }

    fn cgroup_id(&mut self) -> u64 {
        self.next_cgroup += 1;
        self.next_cgroup
    }

    /// Start a container's process.
    pub fn start(
        &mut self,
        id: &str,
        uid: &PodUid,
        name: &str,
        curve: Curve,
        limits: (Option<Bytes>, Option<MilliCpu>),
        adj: i32,
    ) {
        let cgroup = self.cgroup_id();
        let proc = Proc {
            uid: uid.clone(),
            name: name.to_owned(),
            curve,
            started: self.now,
            limit: limits.0,
            cpu_limit: limits.1,
            adj,
            cgroup,
            anon: Bytes::ZERO,
            shmem: Bytes::ZERO,
            cache: Bytes::ZERO,
            files: Files::default(),
            used: Micros::ZERO,
            waited: Micros::ZERO,
            periods: 0,
            throttled: 0,
            throttled_time: Micros::ZERO,
            drops: 0,
            oom_kills: 0,
        };
        self.procs.insert(id.to_owned(), proc);
    }

    /// End a container's process, now.
    pub fn end(&mut self, id: &str, code: i32, oom: bool) {
        let Some(proc) = self.procs.remove(id) else { return };
        let until = self.now + Micros::millis(20 + (proc.anon.get() >> 23));
        let held = if matches!(proc.curve, Curve::Tmpfs { .. }) { proc.anon } else { proc.held() };
        self.dying.push(Dying { uid: proc.uid.clone(), held, from: self.now, until, by_oom: oom });
        if let Some(group) = self.groups.get_mut(&proc.uid) {
            group.volumes += proc.held() - held;
            group.used += proc.used;
            group.waited += proc.waited;
            group.oom_kills += proc.oom_kills + u64::from(oom);
        }
        self.deaths.push(Death { id: id.to_owned(), uid: proc.uid, name: proc.name, at: self.now, code, oom });
    }

    /// Kill all of a pod.
    pub fn kill(&mut self, uid: &PodUid) {
        let ids: Vec<String> = self.procs.iter().filter(|(_, p)| p.uid == *uid).map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.end(&id, 137, false);
        }
    }

    /// What died since the last call.
    pub fn take_deaths(&mut self) -> Vec<Death> {
        std::mem::take(&mut self.deaths)
    }

    /// The time (monotonic).
    #[must_use]
    pub fn now(&self) -> Micros {
        self.now
    }

    /// Let time pass, to then or to the next death.
    pub fn advance(&mut self, to: Micros) {
        while self.now < to && self.deaths.is_empty() {
            // Stalls feed back on growth, so they want short steps.
            let longest = Micros::millis(if self.reclaim.is_some() { 10 } else { 100 });
            let step = Micros(self.room().scale(1_000_000, 4 << 30).get()).clamp(Micros::millis(2), longest);
            let mut next = to.min(self.now + step);
            // Ends are at their moment.
            for proc in self.procs.values() {
                if let Some((after, _)) = proc.curve.end() {
                    let at = proc.started + after;
                    if at > self.now {
                        next = next.min(at);
                    }
                }
            }
            self.step(next);
        }
    }

    fn step(&mut self, next: Micros) {
        let span = next - self.now;
        self.now = next;
        self.run_cpu(span);
        self.dying.retain(|d| d.until > next);
        let mut wanted_reclaim = false;
        let mut ends = Vec::new();
        let mut dropped = Bytes::ZERO;
        for (id, proc) in &mut self.procs {
            let age = next - proc.started - proc.files.lost;
            let before = proc.held();
            (proc.anon, proc.shmem) = (proc.curve.anon(age), proc.curve.shmem(age));
            let (rate, drop_every) = proc.curve.cache();
            let read = rate.scale(span.get(), 1_000_000);
            proc.cache += read;
            proc.files.demand += read + (proc.held() - before);
            if let Some(every) = drop_every {
                let drops = age.get() / every.get().max(1);
                if drops > proc.drops {
                    proc.drops = drops;
                    dropped += proc.cache;
                    proc.cache = Bytes::ZERO;
                }
            }
            if let Some(limit) = proc.limit {
                let over = proc.held() + proc.cache + proc.files.resident > limit;
                wanted_reclaim |= over;
                if over && let Some(group) = self.groups.get_mut(&proc.uid) {
                    group.stalled.1 += span.scale(5, 100);
                }
                proc.files.resident = proc.files.resident.min(limit - proc.held());
                proc.cache = proc.cache.min(limit - proc.held() - proc.files.resident);
                if proc.held() > limit {
                    ends.push((id.clone(), 137, true));
                    continue;
                }
            }
            if let Some((after, code)) = proc.curve.end()
                && age >= after
            {
                ends.push((id.clone(), code, false));
            }
        }
        if dropped > Bytes::ZERO {
            self.dropped = (next, dropped);
        }
        for (id, code, oom) in ends {
            self.ooms.own += u64::from(oom);
            self.end(&id, code, oom);
        }
        self.limit_pods();
        let limit = self.wall();
        if let Some(mut reclaim) = self.reclaim.take() {
            reclaim.pass(self, span);
            self.reclaim = Some(reclaim);
        } else if self.shrink(limit) || wanted_reclaim {
            // Some task waits for a part of the time; for most of it when there is little left to reclaim.
            let dear = limit - self.held() < Bytes::mib(64);
            self.stalled += span.scale(if dear { 60 } else { 5 }, 100);
        }
        let reaping = self.dying.iter().any(|d| d.by_oom);
        if self.held() > limit && !reaping {
            self.oom(limit);
        }
    }

    fn limit_pods(&mut self) {
        let mut sums: BTreeMap<PodUid, (Bytes, Bytes)> = BTreeMap::new();
        for proc in self.procs.values() {
            let sum = sums.entry(proc.uid.clone()).or_default();
            sum.0 += proc.held();
            sum.1 += proc.cache;
        }
        for (uid, (held, cache)) in sums {
            let Some(limit) = self.groups.get(&uid).and_then(|g| g.limit) else { continue };
            let held = held + self.groups.get(&uid).map_or(Bytes::ZERO, |g| g.volumes);
            if held + cache > limit {
                for proc in self.procs.values_mut().filter(|p| p.uid == uid) {
                    proc.cache = Bytes::ZERO;
                }
            }
            if held > limit {
                let largest = self.procs.iter().filter(|(_, p)| p.uid == uid).max_by_key(|(_, p)| p.held());
                if let Some(id) = largest.map(|(id, _)| id.clone()) {
                    self.ooms.own += 1;
                    self.end(&id, 137, true);
                }
            }
        }
    }

    /// Where the OOM killer comes: user pages are not given out below the lowest watermark.
    fn wall(&self) -> Bytes {
        let node = self.total - self.system - self.reserve();
        self.limit.map_or(node, |l| l.min(node))
    }

    fn reserve(&self) -> Bytes {
        if self.reclaim.is_some() { MIN } else { Bytes::ZERO }
    }

    /// Gives cache back until all fits; says whether there was a need.
    fn shrink(&mut self, limit: Bytes) -> bool {
        let (held, cache) = (self.held(), self.procs.values().map(|p| p.cache).sum::<Bytes>());
        if held + cache <= limit {
            return false;
        }
        let keep = limit - held;
        for proc in self.procs.values_mut() {
            proc.cache = proc.cache.scale(keep.get(), cache.get());
        }
        true
    }

    fn oom(&mut self, limit: Bytes) {
        let badness = |p: &Proc| i128::from(p.anon.get()) + i128::from(limit.get()) * i128::from(p.adj) / 1_000;
        let Some(id) = self.procs.iter().max_by_key(|(_, p)| badness(p)).map(|(id, _)| id.clone()) else { return };
        if self.limit == Some(limit) {
            self.ooms.kubepods += 1;
        } else {
            self.ooms.node += 1;
        }
        self.end(&id, 137, true);
    }

    fn run_cpu(&mut self, span: Micros) {
        let limited = |p: &Proc| p.cpu_limit.map_or(p.curve.cpu(), |l| l.min(p.curve.cpu()));
        let wanted: MilliCpu = self.procs.values().map(limited).sum();
        let mut all = Micros::ZERO;
        // Who takes the CPU of all others: the one that uses the most.
        let most = |but: &PodUid| {
            let others = self.procs.values().filter(|p| p.uid != *but);
            others.max_by_key(|p| limited(p)).map(|p| p.uid.clone())
        };
        let takers: BTreeMap<PodUid, PodUid> =
            self.groups.keys().filter_map(|uid| Some((uid.clone(), most(uid)?))).collect();
        for proc in self.procs.values_mut() {
            let (asks, allowed) = (proc.curve.cpu(), limited(proc));
            let cpu = allowed;
            let cpu = if wanted > self.cores { cpu.scale(self.cores.get(), wanted.get()) } else { cpu };
            let used = span.scale(cpu.get(), 1_000);
            proc.used += used;
            all += used;
            let waited = span.scale((asks - cpu).get(), 1_000);
            proc.waited += waited;
            // Who does not get all of its quota is not throttled.
            if cpu == allowed {
                proc.throttled_time += waited;
            }
            if let Some(group) = self.groups.get_mut(&proc.uid) {
                group.stalled.0 += span.scale((asks - cpu).get(), asks.get());
                // A slice is some 3 ms.
                let times = (span.scale((allowed - cpu).get(), 1_000).get() / 3_000).max(u64::from(cpu < allowed));
                if let Some(by) = takers.get(&proc.uid).filter(|_| times > 0) {
                    *group.preempted.entry(by.clone()).or_default() += times;
                }
            }
            if proc.cpu_limit.is_some() {
                // Periods in thousandths would be needed for steps of less than a period.
                proc.periods += span.get();
                proc.throttled += if proc.cpu_limit.is_some_and(|l| l < proc.curve.cpu()) { span.get() } else { 0 };
            }
        }
        self.busy += all;
        self.idle += span.scale(self.cores.get(), 1_000) - all;
    }

    // === readings ===

    fn held(&self) -> Bytes {
        let procs: Bytes = self.procs.values().map(Proc::held).sum();
        let volumes: Bytes = self.groups.values().map(|g| g.volumes).sum();
        procs + volumes + self.dying.iter().map(|d| d.left(self.now)).sum()
    }

    /// What reclaim cannot free of a pod.
    #[must_use]
    pub fn held_by(&self, uid: &PodUid) -> Bytes {
        let dying: Bytes = self.dying.iter().filter(|d| d.uid == *uid).map(|d| d.left(self.now)).sum();
        self.kept_by(uid) + dying
    }

    /// The same without what dying processes are about to give back.
    #[must_use]
    pub fn kept_by(&self, uid: &PodUid) -> Bytes {
        let procs: Bytes = self.procs.values().filter(|p| p.uid == *uid).map(Proc::held).sum();
        procs + self.groups.get(uid).map_or(Bytes::ZERO, |g| g.volumes)
    }

    /// File cache of pods: read once, and hot.
    fn files(&self) -> (Bytes, Bytes) {
        (self.procs.values().map(|p| p.cache).sum(), self.procs.values().map(|p| p.files.resident).sum())
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> NodeReading {
        let (once, hot) = self.files();
        let held = self.system + self.held();
        NodeReading {
            cpu_at: Micros::ZERO,
            cpu_busy: self.busy,
            cpu_idle: self.idle,
            memory_total: self.total,
            memory_unreclaimable: held + self.reserve(),
            memory_counted: Some(held),
            memory_working_set: held + active(once, hot),
        }
    }

    /// `kubepods`. `torn`: usage from before the last cache was dropped, the parts from after it.
    #[must_use]
    pub fn kubepods(&self, torn: bool, quick: bool) -> CgroupReading {
        let mut memory = memory(self.held(), self.files(), self.limit);
        memory.more = more(self.procs.values());
        if torn && self.now - self.dropped.0 < Micros::millis(30) {
            memory.usage += self.dropped.1;
        }
        let mut pressure = PressureReading::memory_some(self.stalled);
        pressure.memory.full = self.reclaim.map(|r| r.full()).unwrap_or_default();
        let cpu = CpuReading { usage: Some(self.busy), ..CpuReading::default() };
        CgroupReading {
            id: 1,
            at: self.now,
            cpu: (!quick).then_some(cpu),
            memory: Some(memory),
            pressure: (!quick).then_some(pressure),
            pids: None,
        }
    }

    /// A pod with its containers.
    #[must_use]
    pub fn pod(&self, uid: &PodUid) -> Option<PodReading> {
        let group = self.groups.get(uid)?;
        let procs = || self.procs.iter().filter(|(_, p)| p.uid == *uid);
        let containers = procs().map(|(id, p)| ContainerReading {
            name: p.name.clone(),
            id: id.clone(),
            cgroup: CgroupReading {
                id: p.cgroup,
                at: self.now,
                cpu: Some(cpu(p)),
                memory: Some(MemoryReading {
                    oom_kills: Some(p.oom_kills),
                    ..memory(p.held(), (p.cache, p.files.resident), p.limit)
                }),
                pressure: None,
                pids: Some(p.curve.pids(self.now - p.started)),
            },
            detail: Some(Arc::new(CgroupDetail {
                at: self.now,
                exits: exits(self.now - p.started),
                ..CgroupDetail::default()
            })),
        });
        let files = (procs().map(|(_, p)| p.cache).sum(), procs().map(|(_, p)| p.files.resident).sum());
        let used = group.used + procs().map(|(_, p)| p.used).sum();
        let cgroup = CgroupReading {
            id: group.id,
            at: self.now,
            cpu: Some(CpuReading {
                usage: Some(used),
                wait: Some(group.waited + procs().map(|(_, p)| p.waited).sum()),
                ..CpuReading::default()
            }),
            memory: Some(MemoryReading {
                oom_kills: Some(group.oom_kills),
                more: more(procs().map(|(_, p)| p)),
                ..memory(self.held_by(uid), files, group.limit)
            }),
            pressure: Some(PressureReading {
                cpu: Pressure { some: Stall::total(group.stalled.0), full: Stall::default() },
                ..PressureReading::memory_some(group.stalled.1)
            }),
            pids: None,
        };
        let detail = CgroupDetail {
            at: self.now,
            preempted: group.preempted.iter().map(|(by, n)| (Preemptor::Pod(by.clone()), *n)).collect(),
            ..CgroupDetail::default()
        };
        Some(PodReading {
            cgroup_detail: Some(Arc::new(detail)),
            containers: containers.collect(),
            network: Some(NetworkReading { rx_bytes: used.get(), ..NetworkReading::default() }),
            ..PodReading::of(uid.clone(), cgroup)
        })
    }

    /// Remove a pod's cgroup with what was in its volumes.
    pub fn remove_group(&mut self, uid: &PodUid) {
        self.kill(uid);
        self.groups.remove(uid);
        for group in self.groups.values_mut() {
            group.preempted.remove(uid);
        }
    }
}

/// Children that a container's process had and that ended, by its age.
fn exits(age: Micros) -> Vec<(ExitKind, u64)> {
    let seconds = age.get() / 1_000_000;
    (0..=seconds.min(40)).map(|i| (ExitKind::Code(u8::try_from(i).unwrap_or(0)), 1 + seconds / 10)).collect()
}

/// What is active of file cache that was read once and that is hot. Of the former a quarter is read again by somebody; of both together
/// at most what the kernel keeps active: as much as inactive below 1 GiB, above it by the square root of ten times the GiB
/// (`inactive_is_low`, mm/vmscan.c). It holds that ratio only while it reclaims, so the kubelet's working set is at its best here.
fn active(once: Bytes, hot: Bytes) -> Bytes {
    let file = once + hot;
    let ratio = (10 * (file.get() >> 30)).isqrt().max(1);
    (once.scale(1, 4) + hot).min(file.scale(ratio, ratio + 1))
}

/// `files`: read once, and hot.
fn memory(held: Bytes, files: (Bytes, Bytes), limit: Option<Bytes>) -> MemoryReading {
    let (file, active) = (files.0 + files.1, active(files.0, files.1));
    MemoryReading {
        usage: held + file,
        inactive_file: file - active,
        active_file: active,
        anon: held,
        shmem: Bytes::ZERO,
        slab_reclaimable: Bytes::ZERO,
        limit,
        oom_kills: Some(0),
        ..MemoryReading::default()
    }
}

fn more<'a>(procs: impl Iterator<Item = &'a Proc>) -> MemoryMore {
    let (scanned, refaults) = procs.fold((0, 0), |(s, r), p| (s + p.files.scanned, r + p.files.refaults));
    MemoryMore { scanned: Some(scanned), refaults_file: Some(refaults), ..MemoryMore::default() }
}

fn cpu(p: &Proc) -> CpuReading {
    let periods = |time: u64| p.cpu_limit.map(|_| time / 100_000);
    CpuReading {
        usage: Some(p.used),
        periods: periods(p.periods),
        throttled_periods: periods(p.throttled),
        throttled: p.cpu_limit.map(|_| p.throttled_time),
        wait: Some(p.waited),
        ..CpuReading::default()
    }
}
