//! What the agent itself uses, read from /proc/self when somebody asks.
//!
//! The names are those of every Prometheus client library (`process_*`), so that existing dashboards find them.

use procfs::process::Process;

/// The agent's own use of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessUse {
    /// User and system CPU time, seconds.
    pub cpu_seconds: f64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// Virtual memory, bytes.
    pub virtual_bytes: u64,
    /// Start, seconds since 1970.
    pub start_seconds: f64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Their limit.
    pub max_fds: u64,
    /// Threads.
    pub threads: u64,
}

/// Reads /proc/self; `None` where there is none.
#[must_use]
pub fn read() -> Option<ProcessUse> {
    let process = Process::myself().ok()?;
    let stat = process.stat().ok()?;
    let ticks = procfs::ticks_per_second().max(1) as f64;
    let boot = procfs::boot_time_secs().unwrap_or(0) as f64;
    let max_fds = process.limits().ok().map(|l| match l.max_open_files.soft_limit {
        procfs::process::LimitValue::Value(n) => n,
        procfs::process::LimitValue::Unlimited => u64::MAX,
    });
    Some(ProcessUse {
        cpu_seconds: (stat.utime + stat.stime) as f64 / ticks,
        resident_bytes: stat.rss.saturating_mul(procfs::page_size()),
        virtual_bytes: stat.vsize,
        start_seconds: boot + stat.starttime as f64 / ticks,
        open_fds: process.fd_count().map_or(0, |n| n as u64),
        max_fds: max_fds.unwrap_or(0),
        threads: u64::try_from(stat.num_threads).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_found() {
        let own = super::read().expect("/proc/self");
        assert!(own.resident_bytes > 1 << 20 && own.threads >= 1 && own.open_fds > 0 && own.start_seconds > 1e9);
    }
}
