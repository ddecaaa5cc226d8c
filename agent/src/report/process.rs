//! What the agent itself uses, read from /proc/self when somebody asks.
//!
//! The names are those of every Prometheus client library (`process_*`), so that existing dashboards find them.

use std::collections::BTreeMap;

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

/// How often the agent's threads were woken: their voluntary context switches.
#[derive(Clone, Debug, Default)]
pub struct Wakeups {
    /// By thread, the living ones.
    threads: BTreeMap<i32, u64>,
    /// Of threads that have ended.
    ended: u64,
}

impl Wakeups {
    /// Counts anew. What a thread did between the last count and its end is lost.
    pub fn count(&mut self) {
        let Some(tasks) = Process::myself().ok().and_then(|p| p.tasks().ok()) else { return };
        let of = |task: procfs::process::Task| Some((task.tid, task.status().ok()?.voluntary_ctxt_switches?));
        let now: BTreeMap<i32, u64> = tasks.filter_map(|t| of(t.ok()?)).collect();
        self.ended += self.threads.iter().filter(|(tid, _)| !now.contains_key(tid)).map(|(_, n)| n).sum::<u64>();
        self.threads = now;
    }

    /// Since the start.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ended + self.threads.values().sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_is_found() {
        let own = super::read().expect("/proc/self");
        assert!(own.resident_bytes > 1 << 20 && own.threads >= 1 && own.open_fds > 0 && own.start_seconds > 1e9);
    }

    #[test]
    fn a_thread_that_sleeps_is_woken_and_not_forgotten_when_it_ends() {
        let mut wakeups = super::Wakeups::default();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            for _ in 0..20 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            wait.recv().ok();
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        wakeups.count();
        let before = wakeups.total();
        assert!(before >= 20, "{before}");
        drop(go);
        sleeper.join().unwrap();
        wakeups.count();
        assert!(wakeups.total() >= before);
    }
}
