//! The node as a whole, from /proc.
//!
//! **Approach.** Near an OOM this is read every 20 ms, so the files are opened once and read into a buffer that is kept: no allocation,
//! no path, and nothing that a node without memory could refuse. Watermarks change only when somebody turns a knob of the kernel
//! (`vm.min_free_kbytes`, huge pages): they are read every [`RESERVE_EVERY`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use beelet_core::sample::NodeReading;
use beelet_core::units::{Bytes, Micros};

use crate::clock::Clock;

/// The watermarks are read this often.
const RESERVE_EVERY: Micros = Micros::secs(60);
/// Both files begin with what is wanted, and `/proc/meminfo` is shorter as a whole (some 1.5 KiB).
const ENOUGH: usize = 4 << 10;

/// Reads the node's memory, and its CPU time when asked to.
#[derive(Debug)]
pub(super) struct NodeReader {
    last: NodeReading,
    memory: Option<File>,
    stat: Option<File>,
    buffer: Box<[u8; ENOUGH]>,
    /// Microseconds of a tick of `/proc/stat`.
    tick: u64,
    /// Below it nothing is given to user space, and when that was read.
    reserve: Bytes,
    reserve_at: Option<Micros>,
}

impl Default for NodeReader {
    fn default() -> Self {
        let tick = 1_000_000 / procfs::ticks_per_second().max(1);
        Self {
            last: NodeReading::default(),
            memory: None,
            stat: None,
            buffer: Box::new([0; ENOUGH]),
            tick,
            reserve: Bytes::ZERO,
            reserve_at: None,
        }
    }
}

impl NodeReader {
    /// A reading; without `cpu` the CPU times are those of the last reading with it.
    ///
    /// # Errors
    /// What /proc could not tell.
    pub(super) fn read(&mut self, cpu: bool) -> io::Result<NodeReading> {
        let now = Clock.now().mono;
        if self.reserve_at.is_none_or(|at| now - at >= RESERVE_EVERY) {
            // A kernel without the file has a reserve that nobody knows.
            self.reserve = std::fs::read_to_string("/proc/zoneinfo").map(|text| reserve(&text)).unwrap_or_default();
            self.reserve_at = Some(now);
        }
        let text = load(&mut self.memory, "/proc/meminfo", &mut self.buffer[..])?;
        if !memory(text, &mut self.last) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo: no MemTotal or no MemFree"));
        }
        self.last.memory_unreclaimable += self.reserve;
        if cpu {
            let text = load(&mut self.stat, "/proc/stat", &mut self.buffer[..])?;
            (self.last.cpu_busy, self.last.cpu_idle) = cpu_times(text, self.tick)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat: it begins with no `cpu`"))?;
            self.last.cpu_at = Clock.now().mono;
        }
        Ok(self.last)
    }
}

fn load<'a>(file: &mut Option<File>, path: &str, buffer: &'a mut [u8]) -> io::Result<&'a str> {
    let file = match file {
        Some(file) => file,
        None => file.insert(File::open(path)?),
    };
    let length = file.read_at(buffer, 0)?;
    str::from_utf8(&buffer[..length]).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Whether the lines that must be there are. Names are those of Documentation/filesystems/proc.rst.
fn memory(text: &str, it: &mut NodeReading) -> bool {
    let [mut total, mut free] = [None, None];
    let (mut active_file, mut inactive_file, mut slab) = (0, 0, 0);
    let [mut anon, mut shmem] = [None, None];
    for line in text.lines() {
        let Some((name, rest)) = line.split_once(':') else { continue };
        let number = || rest.trim_start().split(' ').next()?.parse::<u64>().ok()?.checked_mul(1_024);
        match name {
            "MemTotal" => total = number(),
            "MemFree" => free = number(),
            "Active(file)" => active_file = number().unwrap_or(0),
            "Inactive(file)" => inactive_file = number().unwrap_or(0),
            "AnonPages" => anon = number(),
            "Shmem" => shmem = number(),
            "SReclaimable" => {
                slab = number().unwrap_or(0);
                // The last that is wanted.
                break;
            }
            _ => {}
        }
    }
    let (Some(total), Some(free)) = (total, free) else { return false };
    let used = total.saturating_sub(free);
    it.memory_total = Bytes(total);
    it.memory_unreclaimable = Bytes(used.saturating_sub(active_file + inactive_file).saturating_sub(slab));
    it.memory_counted = anon.zip(shmem).map(|(anon, shmem)| Bytes(anon + shmem));
    it.memory_working_set = Bytes(used.saturating_sub(inactive_file));
    true
}

/// The sum of the zones' lowest watermarks: `min`, in pages (mm/vmstat.c, `zoneinfo_show_print`, Linux 6.18).
fn reserve(zones: &str) -> Bytes {
    let pages = zones.lines().filter_map(|line| line.trim_start().strip_prefix("min ")?.trim().parse::<u64>().ok());
    Bytes(pages.sum::<u64>().saturating_mul(procfs::page_size()))
}

/// Busy and idle time since boot. The fields are user, nice, system, idle, iowait, irq, softirq, steal; the others are in these.
fn cpu_times(text: &str, tick: u64) -> Option<(Micros, Micros)> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().map(str::parse::<u64>);
    let [mut busy, mut idle] = [0, 0];
    for field in 0..8 {
        // Old kernels have fewer.
        let Some(Ok(ticks)) = fields.next() else { break };
        *(if matches!(field, 3 | 4) { &mut idle } else { &mut busy }) += ticks;
    }
    Some((Micros(busy * tick), Micros(idle * tick)))
}

#[cfg(test)]
mod tests {
    use procfs::{Current as _, CurrentSI as _};

    use super::*;

    #[test]
    fn it_says_what_another_reader_of_these_files_says() {
        let mut reader = NodeReader::default();
        let near = |a: u64, b: u64, most: u64| assert!(a.abs_diff(b) <= most, "{a} and {b}");
        // The second time with the files that are open already.
        for _ in 0..2 {
            let it = reader.read(true).unwrap();
            let memory = procfs::Meminfo::current().unwrap();
            let stat = procfs::KernelStats::current().unwrap().total;
            assert_eq!(it.memory_total, Bytes(memory.mem_total));
            let used = memory.mem_total - memory.mem_free;
            let file = memory.active_file.unwrap() + memory.inactive_file.unwrap();
            near(it.memory_working_set.get(), used - memory.inactive_file.unwrap(), 256 << 20);
            let (held, reserve) = (used - file - memory.s_reclaimable.unwrap(), reader.reserve.get());
            assert!(reserve > 0 && reserve < memory.mem_total / 10, "{reserve}");
            near(it.memory_unreclaimable.get(), held + reserve, 256 << 20);
            let tick = 1_000_000 / procfs::ticks_per_second();
            near(it.cpu_idle.get(), (stat.idle + stat.iowait.unwrap()) * tick, 5_000_000);
            let busy = stat.user + stat.nice + stat.system + stat.irq.unwrap() + stat.softirq.unwrap();
            near(it.cpu_busy.get(), (busy + stat.steal.unwrap()) * tick, 5_000_000);
        }
    }

    #[test]
    fn each_line_counts_for_what_it_is() {
        let text = "MemTotal:       1000 kB\nMemFree:         300 kB\nMemAvailable:    600 kB\nActive(anon): 7 kB\n\
                    Active(file):    100 kB\nInactive(file):   50 kB\nAnonPages:  40 kB\nShmem: 2 kB\nSlab: 9 kB\nSReclaimable:     25 kB\nSUnreclaim: 8 kB\n";
        let mut it = NodeReading::default();
        assert!(memory(text, &mut it));
        let kib = |n: u64| Bytes(n * 1_024);
        let told = [it.memory_total, it.memory_unreclaimable, it.memory_working_set];
        assert_eq!(told, [kib(1_000), kib(525), kib(650)]);
        assert_eq!(it.memory_counted, Some(kib(42)));
        assert!(!memory("MemTotal: 5 kB\n", &mut it) && !memory("", &mut it));
        let zones = "Node 0, zone      DMA\n  pages free     2815\n        boost    0\n        min      10\n        low      13\n\
                     Node 0, zone   Normal\n        min      22449\n  nr_min 7\n";
        assert_eq!(reserve(zones), Bytes(22_459 * procfs::page_size()));
        let stat = "cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1 1 1 1\n";
        assert_eq!(cpu_times(stat, 10), Some((Micros(876_003_210), Micros(540_000))));
        assert_eq!(cpu_times("cpu  1 2 3 4\n", 1), Some((Micros(6), Micros(4))));
        assert_eq!(cpu_times("intr 5\n", 1), None);
    }
}
