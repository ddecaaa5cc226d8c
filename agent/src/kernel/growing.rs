//! A map of counts that forgets, and sums that do not.
//!
//! **Problem.** An LRU map of the kernel makes room for a new key by evicting another. When the evicted key comes back it counts from 0
//! again, and a sum over keys falls; who scrapes it takes that for a restart, and the whole sum for new. **Approach.** [`Growing`] reads
//! such a map and adds up by key what came since the last reading; a smaller count than before is all new.
//!
//! **Properties.** A sum never falls. What was counted between the last reading of a key and its eviction is lost, and so is what a key
//! that came back had before, if it has grown past that by the next reading. Sums go with their cgroup. At most [`KEPT`] times as
//! many are kept as the map has room for; of more, the smallest of those that the map has evicted are forgotten, and only then does
//! the sum over a cgroup's keys fall.

use std::collections::BTreeMap;
use std::io;

use beelet_ebpf_common::{ExitKey, PreemptKey};

use super::table::{Key, Scratch, Table};

/// So many times as many sums are kept as the map has entries.
const KEPT: usize = 4;

/// A key of a map that forgets.
pub(super) trait First: Key {
    /// The least one of a cgroup.
    fn first(cgroup: u64) -> Self;
}

impl First for PreemptKey {
    fn first(cgroup: u64) -> Self {
        Self { victim: cgroup, by: 0 }
    }
}

impl First for ExitKey {
    fn first(cgroup: u64) -> Self {
        Self { cgroup, status: 0 }
    }
}

/// What became of one key.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    /// The map's count at the last reading that had it.
    last: u64,
    /// All that was counted.
    total: u64,
}

/// A map and its sums.
#[derive(Debug)]
pub(super) struct Growing<K> {
    table: Table<K, u64>,
    sums: BTreeMap<K, Sum>,
}

impl<K: First> Growing<K> {
    pub(super) const fn new(table: Table<K, u64>) -> Self {
        Self { table, sums: BTreeMap::new() }
    }

    /// Reads the map.
    ///
    /// # Errors
    /// If the kernel refuses; then nothing is known.
    pub(super) fn refresh(&mut self, scratch: &mut Scratch) -> io::Result<()> {
        self.table.refresh(scratch)?;
        for (key, now) in self.table.iter() {
            let sum = self.sums.entry(*key).or_default();
            sum.total = sum.total.saturating_add(now.checked_sub(sum.last).unwrap_or(*now));
            sum.last = *now;
        }
        self.make_room();
        Ok(())
    }

    /// Forgets sums down to three quarters of the bound, so that this is seldom.
    fn make_room(&mut self) {
        let most = KEPT * self.table.max_entries() as usize;
        if self.sums.len() <= most {
            return;
        }
        let evicted = self.sums.iter().filter(|(key, _)| !self.table.has(key));
        let mut evicted: Vec<(u64, K)> = evicted.map(|(key, sum)| (sum.total, *key)).collect();
        evicted.sort_unstable();
        evicted.truncate(self.sums.len() - most / 4 * 3);
        for (_, key) in evicted {
            self.sums.remove(&key);
        }
    }

    /// Whether the last reading succeeded.
    pub(super) const fn is_known(&self) -> bool {
        self.table.is_known()
    }

    /// All sums of one cgroup, by key; `None` if nothing is known.
    pub(super) fn of(&self, cgroup: u64) -> Option<impl Iterator<Item = (&K, u64)>> {
        self.is_known().then(|| self.span(cgroup).map(|(key, sum)| (key, sum.total)))
    }

    fn span(&self, cgroup: u64) -> impl Iterator<Item = (&K, &Sum)> {
        self.sums.range(K::first(cgroup)..).take_while(move |(key, _)| key.cgroup() == cgroup)
    }

    /// Every sum, by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, u64)> {
        self.sums.iter().map(|(key, sum)| (key, sum.total))
    }

    /// Entries of the map at the last reading.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Entries that fit into the map.
    pub(super) const fn max_entries(&self) -> u32 {
        self.table.max_entries()
    }

    /// Removes what is known of a cgroup, from the map too, and says how many of the map's entries this were.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn remove(&mut self, cgroup: u64) -> io::Result<usize> {
        let keys: Vec<K> = self.span(cgroup).map(|(key, _)| *key).collect();
        for key in keys {
            self.sums.remove(&key);
        }
        self.table.remove(cgroup)
    }

    #[cfg(test)]
    pub(super) const fn map(&self) -> &super::batch::MapFile {
        self.table.map()
    }
}

#[cfg(test)]
mod tests {
    use aya::maps::MapType;
    use beelet_ebpf_common::Counts as _;

    use super::super::batch::tests::make;
    use super::*;

    /// An ordinary map, from which the test evicts; `None` where maps may not be made.
    fn growing(entries: u32) -> Option<Growing<PreemptKey>> {
        Some(Growing::new(Table::new(make(MapType::Hash, 16, 8, entries)?, u64::plus).unwrap()))
    }

    fn key(by: u64) -> PreemptKey {
        PreemptKey { victim: 7, by }
    }

    fn put(growing: &Growing<PreemptKey>, key: PreemptKey, count: u64) {
        growing.map().put(bytemuck::bytes_of(&key), &[count]).unwrap();
    }

    fn evict(growing: &Growing<PreemptKey>, key: PreemptKey) {
        assert!(growing.map().remove(bytemuck::bytes_of(&key)).unwrap());
    }

    #[test]
    fn no_sum_falls_when_a_key_is_evicted_and_comes_back() {
        let Some(mut growing) = growing(64) else { return };
        let mut scratch = Scratch::default();
        assert!(growing.of(7).is_none(), "nothing is known before the first reading");
        put(&growing, key(1), 10);
        put(&growing, key(2), 5);
        put(&growing, PreemptKey { victim: 8, by: 1 }, 99);
        let mut read = |growing: &mut Growing<PreemptKey>| {
            growing.refresh(&mut scratch).unwrap();
            growing.of(7).unwrap().map(|(key, count)| (key.by, count)).collect::<Vec<_>>()
        };
        assert_eq!(read(&mut growing), [(1, 10), (2, 5)]);
        evict(&growing, key(1));
        put(&growing, key(2), 6);
        assert_eq!(read(&mut growing), [(1, 10), (2, 6)]);
        put(&growing, key(1), 3);
        assert_eq!(read(&mut growing), [(1, 13), (2, 6)]);
        put(&growing, key(1), 4);
        assert_eq!(read(&mut growing), [(1, 14), (2, 6)]);
        assert_eq!((growing.len(), growing.iter().count()), (3, 3));
    }

    #[test]
    fn sums_go_with_their_cgroup() {
        let Some(mut growing) = growing(64) else { return };
        let mut scratch = Scratch::default();
        for by in 1..=3 {
            put(&growing, key(by), by);
        }
        growing.refresh(&mut scratch).unwrap();
        evict(&growing, key(3));
        growing.refresh(&mut scratch).unwrap();
        assert_eq!(growing.remove(7).unwrap(), 2, "the third is not in the map");
        assert_eq!((growing.of(7).unwrap().count(), growing.iter().count()), (0, 0));
        growing.refresh(&mut scratch).unwrap();
        assert_eq!(growing.of(7).unwrap().count(), 0);
    }

    #[test]
    fn of_too_many_sums_the_smallest_evicted_ones_go() {
        let Some(mut growing) = growing(8) else { return };
        let mut scratch = Scratch::default();
        for by in 1..=1_000_u64 {
            put(&growing, key(by), if by == 1 { 1_000 } else { 1 });
            growing.refresh(&mut scratch).unwrap();
            if by > 4 {
                // The first goes, and then another each time.
                evict(&growing, key(if by == 5 { 1 } else { by - 4 }));
            }
        }
        assert!(growing.iter().count() <= KEPT * 8, "{}", growing.iter().count());
        let sums: BTreeMap<u64, u64> = growing.of(7).unwrap().map(|(key, count)| (key.by, count)).collect();
        assert_eq!((sums.get(&1), sums.get(&1_000)), (Some(&1_000), Some(&1)), "{sums:?}");
    }
}
