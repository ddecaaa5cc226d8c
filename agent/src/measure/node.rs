//! The node as a whole, from /proc.

use beelet_core::sample::NodeReading;
use beelet_core::units::{Bytes, Micros};
use procfs::{Current, CurrentSI};

/// Reads the node's memory, and its CPU time when asked to.
#[derive(Debug, Default)]
pub(super) struct NodeReader {
    last: NodeReading,
}

impl NodeReader {
    /// A reading; without `cpu` the CPU times are those of the last reading with it.
    ///
    /// # Errors
    /// What /proc could not tell.
    pub(super) fn read(&mut self, cpu: bool) -> Result<NodeReading, procfs::ProcError> {
        let memory = procfs::Meminfo::current()?;
        self.last.memory_total = Bytes(memory.mem_total);
        let used = memory.mem_total.saturating_sub(memory.mem_free);
        let file = memory.active_file.unwrap_or(0) + memory.inactive_file.unwrap_or(0);
        self.last.memory_unreclaimable =
            Bytes(used.saturating_sub(file).saturating_sub(memory.s_reclaimable.unwrap_or(0)));
        self.last.memory_working_set = Bytes(used.saturating_sub(memory.inactive_file.unwrap_or(0)));
        if cpu {
            let total = procfs::KernelStats::current()?.total;
            let tick = 1_000_000 / procfs::ticks_per_second().max(1);
            let idle = total.idle + total.iowait.unwrap_or(0);
            let busy = total.user
                + total.nice
                + total.system
                + total.irq.unwrap_or(0)
                + total.softirq.unwrap_or(0)
                + total.steal.unwrap_or(0);
            self.last.cpu_idle = Micros(idle * tick);
            self.last.cpu_busy = Micros(busy * tick);
        }
        Ok(self.last)
    }
}
