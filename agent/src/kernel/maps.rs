//! Counters per cgroup, as the eBPF programs keep them.
//!
//! **Approach.** Per-CPU hashes keyed by cgroup id; a reading is the sum over CPUs. A key appears with the first event of its
//! cgroup, so a missing key of a running program is 0, and a program that does not run is `None`.
//!
//! **Properties.** The sum never decreases until the key is removed. Whoever learns that a cgroup is gone reads it a last
//! time and removes it, some 50 ms later: a process is charged at its last switch, after its parent has heard of its end.
//! [`CgroupCounters::retain`] sweeps what nobody removed.

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap},
};
use beelet_ebpf_common::{Counts as _, CpuRecord, Lost, NetRecord, map};

/// A map cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the eBPF map {map} cannot be read: {source}")]
pub struct CounterError {
    map: &'static str,
    source: MapError,
}

/// What was counted for one cgroup (its own tasks and sockets, not its children's).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupCount {
    /// CPU time in nanoseconds, and switches; `None` if the program does not run.
    pub cpu: Option<CpuRecord>,
    /// Traffic in bytes and packets; `None` if no network program runs.
    pub network: Option<NetRecord>,
}

/// What could not be recorded since the programs were loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LostCount {
    /// Events, because the ring buffer was full.
    pub events: u64,
    /// Switches, because the CPU map was full.
    pub cpu: u64,
    /// Packets, because the network map was full.
    pub network: u64,
}

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub name: &'static str,
    /// Entries in use.
    pub entries: u64,
    /// Entries that fit; 0 where the kernel does not tell.
    pub max_entries: u64,
}

/// Words of a [`CpuRecord`], of a [`NetRecord`]: aya takes arrays of integers as they are.
type CpuWords = [u64; size_of::<CpuRecord>() / 8];
type NetWords = [u64; size_of::<NetRecord>() / 8];

/// Reads the counters.
#[derive(Default)]
pub struct CgroupCounters {
    cpu: Option<PerCpuHashMap<MapData, u64, CpuWords>>,
    network: Option<PerCpuHashMap<MapData, u64, NetWords>>,
    lost: Option<PerCpuArray<MapData, u64>>,
    /// Entries that fit into each of the two.
    max_entries: [u64; 2],
}

impl CgroupCounters {
    /// Takes the maps out of a loaded object; those of programs that do not run are dropped.
    pub(super) fn take(ebpf: &mut Ebpf, cpu: bool, network: bool) -> Self {
        let mut take = |wanted: bool, name| if wanted { ebpf.take_map(name) } else { None };
        let (cpu, network) = (take(cpu, map::CPU), take(network, map::NET));
        let max_entries = [&cpu, &network].map(|map| map.as_ref().map_or(0, size));
        Self {
            cpu: cpu.and_then(|map| convert(map, map::CPU)),
            network: network.and_then(|map| convert(map, map::NET)),
            lost: take(true, map::LOST).and_then(|map| convert(map, map::LOST)),
            max_entries,
        }
    }

    /// Reads one cgroup.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn read(&self, cgroup: u64) -> Result<CgroupCount, CounterError> {
        let cpu = match &self.cpu {
            Some(map) => Some(found(map.get(&cgroup, 0), map::CPU)?.map_or_else(CpuRecord::default, |values| {
                values
                    .iter()
                    .map(|words| bytemuck::cast::<CpuWords, CpuRecord>(*words))
                    .fold(CpuRecord::default(), CpuRecord::plus)
            })),
            None => None,
        };
        let network = match &self.network {
            Some(map) => Some(found(map.get(&cgroup, 0), map::NET)?.map_or_else(NetRecord::default, |values| {
                values
                    .iter()
                    .map(|words| bytemuck::cast::<NetWords, NetRecord>(*words))
                    .fold(NetRecord::default(), NetRecord::plus)
            })),
            None => None,
        };
        Ok(CgroupCount { cpu, network })
    }

    /// Ids of all cgroups that have a record, in ascending order.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn ids(&self) -> Result<Vec<u64>, CounterError> {
        let mut ids = Vec::new();
        if let Some(map) = &self.cpu {
            for key in map.keys() {
                ids.push(key.map_err(|source| CounterError { map: map::CPU, source })?);
            }
        }
        if let Some(map) = &self.network {
            for key in map.keys() {
                ids.push(key.map_err(|source| CounterError { map: map::NET, source })?);
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }

    /// Forgets a cgroup. Read it before: its counters start again at 0 if it still lives.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn remove(&mut self, cgroup: u64) -> Result<(), CounterError> {
        if let Some(map) = &mut self.cpu {
            found(map.remove(&cgroup), map::CPU)?;
        }
        if let Some(map) = &mut self.network {
            found(map.remove(&cgroup), map::NET)?;
        }
        Ok(())
    }

    /// Forgets all cgroups that are not to be kept, and says how many these were.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn retain(&mut self, mut keep: impl FnMut(u64) -> bool) -> Result<usize, CounterError> {
        let mut removed = 0;
        for id in self.ids()? {
            if !keep(id) {
                self.remove(id)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// How full the maps are that are there. Walks over all keys.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn fill(&self) -> Result<Vec<MapFill>, CounterError> {
        let mut fill = Vec::new();
        if let Some(map) = &self.cpu {
            fill.push(MapFill {
                name: map::CPU,
                entries: count(map.keys(), map::CPU)?,
                max_entries: self.max_entries[0],
            });
        }
        if let Some(map) = &self.network {
            fill.push(MapFill {
                name: map::NET,
                entries: count(map.keys(), map::NET)?,
                max_entries: self.max_entries[1],
            });
        }
        Ok(fill)
    }

    /// What could not be recorded.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn lost(&self) -> Result<LostCount, CounterError> {
        let Some(map) = &self.lost else { return Ok(LostCount::default()) };
        let read = |what: Lost| -> Result<u64, CounterError> {
            let values = map.get(&(what as u32), 0).map_err(|source| CounterError { map: map::LOST, source })?;
            Ok(values.iter().fold(0, |sum, value| sum.wrapping_add(*value)))
        };
        Ok(LostCount { events: read(Lost::Events)?, cpu: read(Lost::Cpu)?, network: read(Lost::Net)? })
    }
}

fn count(mut keys: impl Iterator<Item = Result<u64, MapError>>, map: &'static str) -> Result<u64, CounterError> {
    keys.try_fold(0, |sum, key| key.map(|_| sum + 1)).map_err(|source| CounterError { map, source })
}

/// Entries that fit; 0 where the kernel does not tell.
fn size(map: &Map) -> u64 {
    let Map::PerCpuHashMap(data) = map else { return 0 };
    data.info().map_or(0, |info| info.max_entries().into())
}

fn convert<T: TryFrom<Map, Error = MapError>>(map: Map, name: &str) -> Option<T> {
    T::try_from(map).inspect_err(|error| log::error!("the eBPF map {name} is not as expected: {error}")).ok()
}

/// A missing key is no error.
fn found<T>(result: Result<T, MapError>, map: &'static str) -> Result<Option<T>, CounterError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CounterError { map, source }),
    }
}
