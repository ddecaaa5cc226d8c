//! Counters per cgroup, as the eBPF programs keep them.
//!
//! **Approach.** One [`Table`] per map. A reading takes each map as a whole: [`Counters::refresh_fast`] what every look wants,
//! [`Counters::refresh_slow`] the rest. Then everything is looked up in memory. A key appears with the first event of its
//! cgroup, so a missing key of a running program is 0; `None` stands for a program that does not run, and for a map that has
//! not been read yet or could not be.
//!
//! **Properties.** A count never decreases until the key is removed; of maps that evict keys (preemptions, ends of processes)
//! [`Growing`] keeps the sums. Whoever learns that a cgroup is gone reads it a last
//! time and removes it, some 50 ms later: a process is charged at its last switch, after its parent has heard of its end.
//! [`Counters::retain`] sweeps what nobody removed. What is counted of one cgroup is of its own tasks and sockets, not of its
//! children's.

use std::{io, os::fd::OwnedFd};

use aya::{
    Ebpf,
    maps::{Map, MapData},
    programs::Program,
};
use beelet_ebpf_common::{
    Counts, CpuRecord, DiskKey, DiskRecord, DnsRecord, DropKey, ExitKey, LifeRecord, Lost, NetRecord, PortKey,
    PortRecord, PreemptKey, ReclaimRecord, TaskRecord, TcpRecord, map,
};
use bytemuck::Pod;

use super::{
    batch::{self, MapFile},
    growing::Growing,
    loader::LoadReport,
    programs::{self, Hook},
    table::{Key, Scratch, Table},
};

/// A map cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the eBPF map {map} cannot be read or written: {source}")]
pub struct CounterError {
    map: &'static str,
    source: io::Error,
}

/// CPU time and traffic of one cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupCount {
    /// CPU time in nanoseconds, and switches; `None` if the program does not run.
    pub cpu: Option<CpuRecord>,
    /// Traffic in bytes and packets; `None` if no network program runs.
    pub network: Option<NetRecord>,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub name: &'static str,
    /// Entries in use at the last reading.
    pub entries: u64,
    /// Entries that fit.
    pub max_entries: u64,
}

/// Reads the counters.
#[derive(Default)]
pub struct Counters {
    scratch: Scratch,
    cpu: Option<Table<u64, CpuRecord>>,
    net: Option<Table<u64, NetRecord>>,
    preempt: Option<Growing<PreemptKey>>,
    reclaim: Option<Table<u64, ReclaimRecord>>,
    tasks: Option<Table<u64, TaskRecord>>,
    tcp: Option<Table<u64, TcpRecord>>,
    dns: Option<Table<u64, DnsRecord>>,
    ports: Option<Table<PortKey, PortRecord>>,
    drops: Option<Table<DropKey, u64>>,
    disk: Option<Table<DiskKey, DiskRecord>>,
    life: Option<Table<u64, LifeRecord>>,
    exits: Option<Growing<ExitKey>>,
    /// What counts was not recorded; per CPU.
    losses: Option<MapFile>,
    /// As they were at the last reading.
    lost: Vec<(Lost, u64)>,
    /// Iterators that are to run before what they write is read.
    walks: Vec<OwnedFd>,
    /// The walk that wrote the newest records of tasks.
    walk: u64,
}

/// Does the same with each table that is there, by its map's name.
macro_rules! each {
    ($self:ident, [$($field:ident: $name:expr),* $(,)?], |$table:ident, $map:ident| $body:expr) => {
        $(if let Some($table) = $self.$field.as_mut() {
            let $map = $name;
            $body
        })*
    };
    // All whose keys begin with an id of the v2 hierarchy.
    ($self:ident, unified, |$table:ident, $map:ident| $body:expr) => {
        each!($self, [
            cpu: map::CPU, net: map::NET, preempt: map::PREEMPT, reclaim: map::RECLAIM, tasks: map::TASKS, tcp: map::TCP,
            dns: map::DNS, ports: map::PORTS, drops: map::DROPS, life: map::LIFE, exits: map::EXITS,
        ], |$table, $map| $body)
    };
}

impl Counters {
    /// Takes the maps out of a loaded object; those that no loaded program writes are dropped.
    pub(super) fn take(ebpf: &mut Ebpf, report: &LoadReport) -> Self {
        let mut counters = Self {
            cpu: table(ebpf, report, map::CPU, CpuRecord::plus),
            net: table(ebpf, report, map::NET, NetRecord::plus),
            preempt: table(ebpf, report, map::PREEMPT, u64::plus).map(Growing::new),
            reclaim: table(ebpf, report, map::RECLAIM, ReclaimRecord::plus),
            // States, which nobody adds.
            tasks: table(ebpf, report, map::TASKS, |_, last| last),
            tcp: table(ebpf, report, map::TCP, TcpRecord::plus),
            dns: table(ebpf, report, map::DNS, DnsRecord::plus),
            ports: table(ebpf, report, map::PORTS, PortRecord::plus),
            drops: table(ebpf, report, map::DROPS, u64::plus),
            disk: table(ebpf, report, map::DISK, DiskRecord::plus),
            life: table(ebpf, report, map::LIFE, LifeRecord::plus),
            exits: table(ebpf, report, map::EXITS, u64::plus).map(Growing::new),
            losses: file(ebpf, map::LOST),
            ..Self::default()
        };
        for row in
            programs::TABLE.iter().filter(|row| matches!(row.hook, Hook::Iterator(_)) && report.is_loaded(row.name))
        {
            match ebpf.program(row.name).map(attach_iterator) {
                Some(Ok(link)) => counters.walks.push(link),
                Some(Err(error)) => log::error!("the eBPF iterator {} cannot be attached: {error}", row.name),
                None => {}
            }
        }
        counters
    }

    /// Reads what every look wants: CPU, network, and what was lost.
    ///
    /// # Errors
    /// The first refusal of the kernel; the other maps are read all the same, and nothing is known of the refused one.
    pub fn refresh_fast(&mut self) -> Result<(), CounterError> {
        let mut result = Ok(());
        each!(self, [cpu: map::CPU, net: map::NET], |table, map| {
            keep_first(&mut result, map, table.refresh(&mut self.scratch));
        });
        let lost = self.read_lost();
        keep_first(&mut result, map::LOST, lost);
        result
    }

    /// Reads all other maps; before, lets the iterators run.
    ///
    /// # Errors
    /// As for [`refresh_fast`](Self::refresh_fast).
    pub fn refresh_slow(&mut self) -> Result<(), CounterError> {
        let mut result = Ok(());
        for walk in &self.walks {
            keep_first(&mut result, map::TASKS, batch::walk(walk));
        }
        each!(self, [
            preempt: map::PREEMPT, reclaim: map::RECLAIM, tasks: map::TASKS, tcp: map::TCP, dns: map::DNS, ports: map::PORTS,
            drops: map::DROPS, disk: map::DISK, life: map::LIFE, exits: map::EXITS,
        ], |table, map| {
            keep_first(&mut result, map, table.refresh(&mut self.scratch));
        });
        self.walk = self.tasks.as_ref().map_or(0, |it| it.iter().map(|(_, record)| record.walk).max().unwrap_or(0));
        result
    }

    fn read_lost(&mut self) -> io::Result<()> {
        self.lost.clear();
        let Some(losses) = &self.losses else { return Ok(()) };
        let values = self.scratch.values(losses.value_bytes() / 8);
        for what in Lost::ALL {
            losses.get(&(what as u32).to_ne_bytes(), values)?;
            self.lost.push((what, values.iter().fold(0, |sum, value| sum.wrapping_add(*value))));
        }
        Ok(())
    }

    /// Run time, switches and waits for the CPU of one cgroup.
    #[must_use]
    pub fn cpu(&self, cgroup: u64) -> Option<&CpuRecord> {
        self.cpu.as_ref()?.get(cgroup)
    }

    /// Traffic of one cgroup.
    #[must_use]
    pub fn net(&self, cgroup: u64) -> Option<&NetRecord> {
        self.net.as_ref()?.get(cgroup)
    }

    /// Direct reclaim by one cgroup's tasks.
    #[must_use]
    pub fn reclaim(&self, cgroup: u64) -> Option<&ReclaimRecord> {
        self.reclaim.as_ref()?.get(cgroup)
    }

    /// TCP connections of one cgroup.
    #[must_use]
    pub fn tcp(&self, cgroup: u64) -> Option<&TcpRecord> {
        self.tcp.as_ref()?.get(cgroup)
    }

    /// DNS of one cgroup.
    #[must_use]
    pub fn dns(&self, cgroup: u64) -> Option<&DnsRecord> {
        self.dns.as_ref()?.get(cgroup)
    }

    /// Processes of one cgroup: starts and ends.
    #[must_use]
    pub fn life(&self, cgroup: u64) -> Option<&LifeRecord> {
        self.life.as_ref()?.get(cgroup)
    }

    /// Tasks of one cgroup by state, at the last [`refresh_slow`](Self::refresh_slow).
    #[must_use]
    pub fn tasks(&self, cgroup: u64) -> Option<&TaskRecord> {
        let table = self.tasks.as_ref()?;
        let record = table.get(cgroup)?;
        // What an earlier walk found has ended.
        Some(if record.walk == self.walk { record } else { table.zero() })
    }

    /// Who took the CPU from tasks of one cgroup: (cgroup, how often).
    #[must_use]
    pub fn preempted(&self, cgroup: u64) -> Option<impl Iterator<Item = (u64, u64)>> {
        Some(self.preempt.as_ref()?.of(cgroup)?.map(|(key, count)| (key.by, count)))
    }

    /// Requests at the ports that one cgroup serves: (port, record).
    #[must_use]
    pub fn ports(&self, cgroup: u64) -> Option<impl Iterator<Item = (u64, &PortRecord)>> {
        Some(self.ports.as_ref()?.of(cgroup)?.map(|(key, record)| (key.port, record)))
    }

    /// Dropped packets of one cgroup: (the kernel's reason, packets).
    #[must_use]
    pub fn drops(&self, cgroup: u64) -> Option<impl Iterator<Item = (u64, u64)>> {
        Some(self.drops.as_ref()?.of(cgroup)?.map(|(key, count)| (key.reason, *count)))
    }

    /// How processes of one cgroup ended: (status as `wait` gives it, processes).
    #[must_use]
    pub fn exits(&self, cgroup: u64) -> Option<impl Iterator<Item = (u64, u64)>> {
        Some(self.exits.as_ref()?.of(cgroup)?.map(|(key, count)| (key.status, count)))
    }

    /// Disk requests of one cgroup, which is named by its id in the hierarchy that has the IO controller.
    #[must_use]
    pub fn disk(&self, io_cgroup: u64) -> Option<impl Iterator<Item = (&DiskKey, &DiskRecord)>> {
        self.disk.as_ref()?.of(io_cgroup)
    }

    /// What could not be recorded since the programs were loaded; empty if that is not known.
    #[must_use]
    pub fn lost(&self) -> &[(Lost, u64)] {
        &self.lost
    }

    /// How full the maps were at their last reading; those that are not known are left out.
    #[must_use]
    pub fn fill(&mut self) -> Vec<MapFill> {
        let mut fill = Vec::with_capacity(12);
        macro_rules! tell {
            ($table:ident, $map:ident) => {
                if $table.is_known() {
                    let (entries, max_entries) = ($table.len() as u64, $table.max_entries().into());
                    fill.push(MapFill { name: $map, entries, max_entries });
                }
            };
        }
        each!(self, unified, |table, map| tell!(table, map));
        each!(self, [disk: map::DISK], |table, map| tell!(table, map));
        fill
    }

    /// Reads CPU time and traffic of one cgroup now, past the last reading of all: its last word.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn read(&self, cgroup: u64) -> Result<CgroupCount, CounterError> {
        let cpu = self.cpu.as_ref().map(|it| it.read_now(cgroup)).transpose().map_err(of(map::CPU))?;
        let network = self.net.as_ref().map(|it| it.read_now(cgroup)).transpose().map_err(of(map::NET))?;
        Ok(CgroupCount { cpu, network })
    }

    /// Forgets a cgroup of the v2 hierarchy. Read it before: its counters start again at 0 if it still lives.
    ///
    /// # Errors
    /// The first refusal of the kernel; the others are removed.
    pub fn remove(&mut self, cgroup: u64) -> Result<(), CounterError> {
        let mut result = Ok(());
        // These may have got a key since the last reading; of keys with more to them, `retain` finds those.
        each!(self, [
            cpu: map::CPU, net: map::NET, reclaim: map::RECLAIM, tasks: map::TASKS, tcp: map::TCP, dns: map::DNS,
            life: map::LIFE,
        ], |table, map| keep_first(&mut result, map, table.remove_key(cgroup).map(drop)));
        each!(self, [preempt: map::PREEMPT, ports: map::PORTS, drops: map::DROPS, exits: map::EXITS], |table, map| {
            keep_first(&mut result, map, table.remove(cgroup).map(drop));
        });
        result
    }

    /// Forgets a cgroup's disk requests; it is named as in [`disk`](Self::disk).
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove_disk(&mut self, io_cgroup: u64) -> Result<(), CounterError> {
        self.disk.as_mut().map_or(Ok(()), |table| table.remove(io_cgroup).map(drop).map_err(of(map::DISK)))
    }

    /// Reads all maps, forgets all cgroups of the v2 hierarchy that are not to be kept, and says how many these were.
    ///
    /// # Errors
    /// The first refusal of the kernel; the others are removed.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) -> Result<usize, CounterError> {
        self.refresh_fast()?;
        self.refresh_slow()?;
        let (mut removed, mut result) = (0, Ok(()));
        for id in self.ids() {
            if !keep(id) {
                keep_first_of(&mut result, self.remove(id));
                removed += 1;
            }
        }
        result.map(|()| removed)
    }

    /// The same for disk requests, whose cgroups are named as in [`disk`](Self::disk). Of the last reading.
    ///
    /// # Errors
    /// The first refusal of the kernel; the others are removed.
    pub fn retain_disk(&mut self, mut keep: impl FnMut(u64) -> bool) -> Result<usize, CounterError> {
        let Some(table) = &mut self.disk else { return Ok(0) };
        let mut ids: Vec<u64> = table.iter().map(|(key, _)| key.cgroup).collect();
        ids.dedup();
        let (mut removed, mut result) = (0, Ok(()));
        for id in ids {
            if !keep(id) {
                keep_first(&mut result, map::DISK, table.remove(id).map(drop));
                removed += 1;
            }
        }
        result.map(|()| removed)
    }

    /// Ids of all cgroups of the v2 hierarchy that had a record at the last reading, in ascending order.
    #[must_use]
    pub fn ids(&mut self) -> Vec<u64> {
        let mut ids = Vec::new();
        each!(self, unified, |table, _map| ids.extend(table.iter().map(|(key, _)| key.cgroup())));
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Counters")
    }
}

fn attach_iterator(program: &Program) -> io::Result<OwnedFd> {
    let Program::Iter(program) = program else { return Err(io::Error::other("it is none")) };
    batch::attach_iterator(std::os::fd::AsFd::as_fd(program.fd().map_err(io::Error::other)?))
}

/// Takes one map as a table, if a loaded program writes it.
fn table<K: Key, R: Pod + Default>(
    ebpf: &mut Ebpf,
    report: &LoadReport,
    name: &'static str,
    plus: fn(R, R) -> R,
) -> Option<Table<K, R>> {
    if !report.writes(name) {
        return None;
    }
    let table = Table::new(file(ebpf, name)?, plus);
    table.inspect_err(|error| log::error!("the eBPF map {name} is not as expected: {error}")).ok()
}

fn file(ebpf: &mut Ebpf, name: &'static str) -> Option<MapFile> {
    let data: MapData = match ebpf.take_map(name)? {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::PerCpuHashMap(data) | Map::PerCpuArray(data) => data,
        other => {
            log::error!("the eBPF map {name} is not as expected: {other:?}");
            return None;
        }
    };
    MapFile::new(data).inspect_err(|error| log::error!("the eBPF map {name} is not as expected: {error}")).ok()
}

fn of(map: &'static str) -> impl Fn(io::Error) -> CounterError {
    move |source| CounterError { map, source }
}

fn keep_first(result: &mut Result<(), CounterError>, map: &'static str, next: io::Result<()>) {
    keep_first_of(result, next.map_err(of(map)));
}

fn keep_first_of(result: &mut Result<(), CounterError>, next: Result<(), CounterError>) {
    if result.is_ok() {
        *result = next;
    }
}

#[cfg(test)]
mod tests {
    use aya::maps::MapType;

    use super::super::batch::tests::make;
    use super::*;

    fn counters() -> Option<Counters> {
        let map = |kind, key, value| make(kind, key, value, 64);
        Some(Counters {
            cpu: Table::new(map(MapType::PerCpuHash, 8, size_of::<CpuRecord>())?, CpuRecord::plus).ok(),
            tasks: Table::new(map(MapType::Hash, 8, size_of::<TaskRecord>())?, |_, last| last).ok(),
            exits: Table::new(map(MapType::LruHash, 16, 8)?, u64::plus).ok().map(Growing::new),
            disk: Table::new(map(MapType::Hash, 16, size_of::<DiskRecord>())?, DiskRecord::plus).ok(),
            losses: map(MapType::PerCpuArray, 4, 8),
            ..Counters::default()
        })
    }

    #[test]
    fn what_a_map_evicts_stays_counted() {
        let Some(mut counters) = counters() else { return };
        let exit = ExitKey { cgroup: 5, status: 9 };
        let put = |counters: &Counters, count| {
            counters.exits.as_ref().unwrap().map().put(bytemuck::bytes_of(&exit), &[count]).unwrap();
        };
        put(&counters, 4);
        counters.refresh_slow().unwrap();
        assert!(counters.exits.as_ref().unwrap().map().remove(bytemuck::bytes_of(&exit)).unwrap());
        put(&counters, 1);
        counters.refresh_slow().unwrap();
        assert_eq!(counters.exits(5).unwrap().collect::<Vec<_>>(), [(9, 5)]);
    }

    #[test]
    fn what_does_not_run_or_was_not_read_is_not_known() {
        let Some(mut counters) = counters() else { return };
        assert!(counters.cpu(1).is_none() && counters.exits(1).is_none() && counters.lost().is_empty());
        assert!(counters.fill().is_empty());
        counters.refresh_fast().unwrap();
        assert_eq!(counters.cpu(1), Some(&CpuRecord::default()));
        assert!(counters.net(1).is_none(), "no program writes it");
        assert!(counters.exits(1).is_none(), "it is read with the slow ones");
        assert_eq!(counters.lost().len(), Lost::ALL.len());
        counters.refresh_slow().unwrap();
        assert_eq!(counters.exits(1).unwrap().count(), 0);
        assert!(counters.drops(1).is_none());
        assert_eq!(counters.fill().len(), 4);
    }

    #[test]
    fn tasks_of_an_earlier_walk_have_ended() {
        let Some(mut counters) = counters() else { return };
        let map = counters.tasks.as_ref().unwrap().map();
        for (id, walk) in [(1_u64, 6), (2, 7)] {
            let record = TaskRecord { walk, processes: 3, ..TaskRecord::default() };
            map.put(&id.to_ne_bytes(), bytemuck::cast_slice(&[record])).unwrap();
        }
        counters.refresh_slow().unwrap();
        assert_eq!(counters.tasks(1).unwrap().processes, 0);
        assert_eq!(counters.tasks(2).unwrap().processes, 3);
    }

    #[test]
    fn a_sweep_takes_every_map_but_that_of_the_other_hierarchy() {
        let Some(mut counters) = counters() else { return };
        let disk = DiskKey { cgroup: 5, device: 1, op: 0 };
        counters.disk.as_ref().unwrap().map().put(bytemuck::bytes_of(&disk), &[0; 27]).unwrap();
        for cgroup in [5, 6] {
            let exit = ExitKey { cgroup, status: 256 };
            counters.exits.as_ref().unwrap().map().put(bytemuck::bytes_of(&exit), &[2]).unwrap();
        }
        assert_eq!(counters.retain(|id| id == 6).unwrap(), 1);
        assert_eq!(counters.exits(5).unwrap().count(), 0);
        assert_eq!(counters.exits(6).unwrap().collect::<Vec<_>>(), [(256, 2)]);
        assert_eq!(counters.disk(5).unwrap().count(), 1);
        assert_eq!(counters.retain_disk(|id| id != 5).unwrap(), 1);
        counters.refresh_slow().unwrap();
        assert_eq!((counters.disk(5).unwrap().count(), counters.exits(5).unwrap().count()), (0, 0));
    }
}
