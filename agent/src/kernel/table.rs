//! One map of the eBPF programs, as it was at the last reading.
//!
//! **Approach.** A [`Table`] reads its map as a whole into records that lie one after the other, adds up what the CPUs counted
//! apart, and keeps a sorted index of the keys. Where the kernel refuses batches, it goes from key to key.
//!
//! **Properties.** Buffers are kept: a reading allocates only when there are more keys than ever before. Before the first
//! reading, and after one that failed, a table knows nothing ([`Table::is_known`]), which is not the same as 0. A key is seen
//! once; keys that come or go while the map is read are seen or not.

use std::io;

use beelet_ebpf_common::{DiskKey, DropKey, ExitKey, PortKey, PreemptKey};
use bytemuck::Pod;

use super::batch::{MapFile, Position};

/// A key of a map: a cgroup, and perhaps more after it.
pub(super) trait Key: Pod + Ord {
    /// Its cgroup.
    fn cgroup(&self) -> u64;
}

impl Key for u64 {
    fn cgroup(&self) -> u64 {
        *self
    }
}

impl Key for PreemptKey {
    fn cgroup(&self) -> u64 {
        self.victim
    }
}

impl Key for PortKey {
    fn cgroup(&self) -> u64 {
        self.cgroup
    }
}

impl Key for DropKey {
    fn cgroup(&self) -> u64 {
        self.cgroup
    }
}

impl Key for DiskKey {
    fn cgroup(&self) -> u64 {
        self.cgroup
    }
}

impl Key for ExitKey {
    fn cgroup(&self) -> u64 {
        self.cgroup
    }
}

/// Buffers that the tables lend each other while they read.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    keys: Vec<u64>,
    values: Vec<u64>,
}

impl Scratch {
    /// Room for so many words.
    pub(super) fn values(&mut self, words: usize) -> &mut [u64] {
        if self.values.len() < words {
            self.values.resize(words, 0);
        }
        &mut self.values[..words]
    }
}

/// Words of the buffers of keys and values together: 256 KiB, a compromise between the number of calls and the caches.
const WORDS: usize = 32 * 1_024;
/// Entries of a batch at least: a bucket holds a handful.
const ENTRIES: usize = 64;
/// The kernel's own error of maps that cannot be read in batches (`ENOTSUPP`, not among those of `errno.h`).
const ENOTSUPP: i32 = 524;

/// A map and what was in it.
#[derive(Debug)]
pub(super) struct Table<K, R> {
    map: MapFile,
    plus: fn(R, R) -> R,
    batches: bool,
    known: bool,
    /// Keys in ascending order, and where their records are.
    index: Vec<(K, u32)>,
    records: Vec<R>,
    /// What a cgroup without an entry has.
    zero: R,
}

impl<K: Key, R: Pod + Default> Table<K, R> {
    /// A table of this map; `plus` adds the counts of two CPUs.
    ///
    /// # Errors
    /// If the map's keys and values are not of the sizes of `K` and `R`.
    pub(super) fn new(map: MapFile, plus: fn(R, R) -> R) -> io::Result<Self> {
        if (map.key_bytes(), map.value_bytes()) != (size_of::<K>(), size_of::<R>() * map.rows()) {
            return Err(io::Error::other(format!(
                "keys have {} bytes and values {}",
                map.key_bytes(),
                map.value_bytes()
            )));
        }
        let zero = R::default();
        Ok(Self { map, plus, batches: true, known: false, index: Vec::new(), records: Vec::new(), zero })
    }

    /// Reads the map.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is known.
    pub(super) fn refresh(&mut self, scratch: &mut Scratch) -> io::Result<()> {
        self.known = false;
        self.index.clear();
        self.records.clear();
        if self.batches {
            match self.read_batches(scratch) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {
                    self.batches = false;
                    self.index.clear();
                    self.records.clear();
                    self.read_keys(scratch)?;
                }
                other => other?,
            }
        } else {
            self.read_keys(scratch)?;
        }
        self.index.sort_unstable_by_key(|(key, _)| *key);
        // Going from key to key may meet one twice.
        self.index.dedup_by(|(a, _), (b, _)| a == b);
        self.known = true;
        Ok(())
    }

    fn read_batches(&mut self, scratch: &mut Scratch) -> io::Result<()> {
        let (key_words, value_words) = (size_of::<K>() / 8, self.map.value_bytes() / 8);
        let mut entries =
            (WORDS / (key_words + value_words)).clamp(ENTRIES, (self.map.max_entries() as usize).max(ENTRIES));
        let mut from: Option<Position> = None;
        loop {
            if scratch.keys.len() < entries * key_words {
                scratch.keys.resize(entries * key_words, 0);
            }
            if scratch.values.len() < entries * value_words {
                scratch.values.resize(entries * value_words, 0);
            }
            match self.map.batch(from, &mut scratch.keys, &mut scratch.values) {
                Ok(read) => {
                    self.take(&scratch.keys, &scratch.values, read.count);
                    from = read.rest;
                    if from.is_none() {
                        return Ok(());
                    }
                }
                Err(error)
                    if error.raw_os_error() == Some(libc::ENOSPC) && entries < self.map.max_entries() as usize =>
                {
                    entries *= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn read_keys(&mut self, scratch: &mut Scratch) -> io::Result<()> {
        scratch.keys.resize(scratch.keys.len().max(2 * size_of::<K>() / 8), 0);
        scratch.values.resize(scratch.values.len().max(self.map.value_bytes() / 8), 0);
        let mut last: Option<K> = None;
        // A key that goes while we stand on it sends us back to the first; so there is an end to our patience.
        for _ in 0..self.map.max_entries().saturating_mul(2) {
            let next: &mut [u8] = bytemuck::cast_slice_mut(&mut scratch.keys[..size_of::<K>() / 8]);
            if !self.map.next_key(last.as_ref().map(bytemuck::bytes_of), next)? {
                break;
            }
            last = Some(*bytemuck::from_bytes(next));
            if self.map.get(next, &mut scratch.values)? {
                let Scratch { keys, values } = &*scratch;
                self.take(keys, values, 1);
            }
        }
        Ok(())
    }

    /// Takes entries over, with the sums over the CPUs.
    fn take(&mut self, keys: &[u64], values: &[u64], count: usize) {
        let (keys, rows): (&[K], &[R]) = (bytemuck::cast_slice(keys), cast_rows(values));
        for (key, rows) in keys.iter().zip(rows.chunks_exact(self.map.rows())).take(count) {
            let [first, rest @ ..] = rows else { continue };
            let Ok(place) = u32::try_from(self.records.len()) else { return };
            self.index.push((*key, place));
            self.records.push(rest.iter().fold(*first, |sum, row| (self.plus)(sum, *row)));
        }
    }

    /// Whether the last reading succeeded.
    pub(super) const fn is_known(&self) -> bool {
        self.known
    }

    /// The record of a key, zeros if there is none; `None` if nothing is known.
    pub(super) fn get(&self, key: K) -> Option<&R> {
        if !self.known {
            return None;
        }
        let found = self.index.binary_search_by(|(it, _)| it.cmp(&key)).ok();
        Some(found.and_then(|at| self.record(at)).map_or(&self.zero, |(_, record)| record))
    }

    /// All entries of one cgroup, by key; `None` if nothing is known.
    pub(super) fn of(&self, cgroup: u64) -> Option<impl Iterator<Item = (&K, &R)>> {
        self.known.then(|| self.span(cgroup).filter_map(|at| self.record(at)))
    }

    /// Whether the last reading found this key.
    pub(super) fn has(&self, key: &K) -> bool {
        self.index.binary_search_by(|(it, _)| it.cmp(key)).is_ok()
    }

    /// Every entry, by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &R)> {
        (0..self.index.len()).filter_map(|at| self.record(at))
    }

    fn record(&self, at: usize) -> Option<(&K, &R)> {
        let (key, place) = self.index.get(at)?;
        Some((key, self.records.get(*place as usize)?))
    }

    fn span(&self, cgroup: u64) -> std::ops::Range<usize> {
        let first = self.index.partition_point(|(key, _)| key.cgroup() < cgroup);
        let after = self.index.partition_point(|(key, _)| key.cgroup() <= cgroup);
        first..after
    }

    /// What a cgroup without an entry has.
    pub(super) const fn zero(&self) -> &R {
        &self.zero
    }

    #[cfg(test)]
    pub(super) const fn map(&self) -> &MapFile {
        &self.map
    }

    /// Entries at the last reading.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Entries that fit.
    pub(super) const fn max_entries(&self) -> u32 {
        self.map.max_entries()
    }

    /// Reads one key now, past the table.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn read_now(&self, key: K) -> io::Result<R> {
        let mut rows = vec![0; self.map.value_bytes() / 8];
        if !self.map.get(bytemuck::bytes_of(&key), &mut rows)? {
            return Ok(self.zero);
        }
        Ok(cast_rows::<R>(&rows).iter().copied().reduce(self.plus).unwrap_or(self.zero))
    }

    /// Removes what the table has of a cgroup, from the map too, and says how much this was.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn remove(&mut self, cgroup: u64) -> io::Result<usize> {
        let span = self.span(cgroup);
        let removed = span.len();
        for (key, _) in &self.index[span.clone()] {
            self.map.remove(bytemuck::bytes_of(key))?;
        }
        self.index.drain(span);
        Ok(removed)
    }

    /// Removes a key, whether the table has it or not.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn remove_key(&mut self, key: K) -> io::Result<bool> {
        if let Ok(at) = self.index.binary_search_by(|(it, _)| it.cmp(&key)) {
            self.index.remove(at);
        }
        self.map.remove(bytemuck::bytes_of(&key))
    }
}

/// The rows in a buffer of words; a buffer that is longer than a whole number of rows is cut.
fn cast_rows<R: Pod>(words: &[u64]) -> &[R] {
    let per_row = size_of::<R>() / 8;
    bytemuck::cast_slice(&words[..words.len() / per_row * per_row])
}

#[cfg(test)]
mod tests {
    use aya::maps::MapType;
    use beelet_ebpf_common::{Counts as _, CpuRecord, DiskRecord, NetRecord, TcpRecord};

    use super::super::batch::tests::make;
    use super::*;

    /// A table of a map of this kind; `None` where maps may not be made.
    fn table<K: Key, R: Pod + Default>(kind: MapType, entries: u32, plus: fn(R, R) -> R) -> Option<Table<K, R>> {
        Some(Table::new(make(kind, size_of::<K>(), size_of::<R>(), entries)?, plus).unwrap())
    }

    /// On CPU i of n: i + 1 times the record.
    fn put<K: Key, R: Pod + Default>(table: &Table<K, R>, key: K, record: R) {
        let mut words = Vec::new();
        for cpu in 1..=table.map.rows() as u64 {
            words.extend(bytemuck::cast_slice::<R, u64>(&[record]).iter().map(|word| word * cpu));
        }
        table.map.put(bytemuck::bytes_of(&key), &words).unwrap();
    }

    #[test]
    fn cpus_are_added_up_in_both_ways_of_reading() {
        let Some(mut table) = table::<u64, CpuRecord>(MapType::PerCpuHash, 1_024, CpuRecord::plus) else { return };
        let mut scratch = Scratch::default();
        assert_eq!(table.get(1), None, "nothing is known before the first reading");
        for id in (0..500_u64).rev() {
            put(&table, id * 7, CpuRecord { run_ns: id, switches: 1, ..CpuRecord::default() });
        }
        let cpus = table.map.rows() as u64;
        let factor = cpus * (cpus + 1) / 2;
        for batches in [true, false] {
            table.batches = batches;
            table.refresh(&mut scratch).unwrap();
            assert_eq!(table.batches, batches);
            assert_eq!(table.len(), 500);
            for id in 0..500_u64 {
                let record = table.get(id * 7).unwrap();
                assert_eq!((record.run_ns, record.switches), (id * factor, factor), "{id}");
                assert_eq!(table.read_now(id * 7).unwrap(), *record);
            }
            assert_eq!(table.get(3), Some(&CpuRecord::default()));
            assert!(table.iter().map(|(key, _)| *key).is_sorted());
        }
    }

    #[test]
    fn what_is_known_of_a_cgroup_goes_with_it_and_nothing_else() {
        let Some(mut table) = table::<DiskKey, DiskRecord>(MapType::Hash, 64, DiskRecord::plus) else { return };
        let mut scratch = Scratch::default();
        for cgroup in [5, 6, 7] {
            for device in [2, 1] {
                put(&table, DiskKey { cgroup, device, op: 1 }, DiskRecord { bytes: cgroup, ..DiskRecord::default() });
            }
        }
        table.refresh(&mut scratch).unwrap();
        let of = |table: &Table<DiskKey, DiskRecord>, id| {
            table.of(id).unwrap().map(|(key, record)| (key.device, record.bytes)).collect::<Vec<_>>()
        };
        assert_eq!(of(&table, 6), [(1, 6), (2, 6)]);
        assert_eq!(table.remove(6).unwrap(), 2);
        assert!(table.remove_key(DiskKey { cgroup: 7, device: 1, op: 1 }).unwrap());
        for _ in 0..2 {
            assert_eq!((of(&table, 5).len(), of(&table, 6), of(&table, 7)), (2, vec![], vec![(2, 7)]));
            table.refresh(&mut scratch).unwrap();
        }
    }

    #[test]
    fn a_steady_state_allocates_nothing() {
        let Some(mut table) = table::<u64, NetRecord>(MapType::PerCpuHash, 4_096, NetRecord::plus) else { return };
        let mut scratch = Scratch::default();
        for id in 0..3_000 {
            put(&table, id, NetRecord::default());
        }
        table.refresh(&mut scratch).unwrap();
        let buffers = |table: &Table<u64, NetRecord>, scratch: &Scratch| {
            [
                table.index.as_ptr().addr(),
                table.records.as_ptr().addr(),
                scratch.keys.as_ptr().addr(),
                scratch.values.as_ptr().addr(),
            ]
        };
        let before = buffers(&table, &scratch);
        for _ in 0..3 {
            table.refresh(&mut scratch).unwrap();
        }
        assert_eq!(buffers(&table, &scratch), before);
        assert_eq!(table.len(), 3_000);
    }

    #[test]
    fn a_map_of_other_records_is_refused() {
        let Some(map) = make(MapType::Hash, 8, 16, 8) else { return };
        let told = Table::<u64, NetRecord>::new(map, NetRecord::plus).map(drop).unwrap_err().to_string();
        assert!(told.contains("16"), "{told}");
    }

    /// `cargo test -p beelet --lib kernel::table -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement: how long it takes to read 1500 entries"]
    fn time_of_a_reading() {
        fn time<K: Key, R: Pod + Default>(name: &str, kind: MapType, plus: fn(R, R) -> R, key: fn(u64) -> K) {
            let Some(mut table) = table::<K, R>(kind, 4_096, plus) else { return };
            let mut scratch = Scratch::default();
            for id in 0..1_500 {
                put(&table, key(id), R::default());
            }
            for batches in [true, false] {
                table.batches = batches;
                table.refresh(&mut scratch).unwrap();
                let mut times: Vec<u128> = (0..101)
                    .map(|_| {
                        let began = std::time::Instant::now();
                        table.refresh(&mut scratch).unwrap();
                        began.elapsed().as_micros()
                    })
                    .collect();
                times.sort_unstable();
                assert_eq!(table.len(), 1_500);
                println!(
                    "{name:<22} {:<10} median {:>6} us, worst {:>6} us",
                    if batches { "in batches" } else { "by key" },
                    times[50],
                    times[100]
                );
            }
        }
        time("cpu, per CPU, 224 B", MapType::PerCpuHash, CpuRecord::plus, |id| id);
        time("net, per CPU, 96 B", MapType::PerCpuHash, NetRecord::plus, |id| id);
        time("tcp, 448 B", MapType::Hash, TcpRecord::plus, |id| id);
        time("disk, 216 B", MapType::Hash, DiskRecord::plus, |id| DiskKey {
            cgroup: id / 3,
            device: 8,
            op: (id % 3) as u32,
        });
        time("exits, LRU, 8 B", MapType::LruHash, u64::plus, |id| ExitKey { cgroup: id, status: 0 });
    }
}
