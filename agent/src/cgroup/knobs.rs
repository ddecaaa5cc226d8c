//! The knobs' files: values in, values back.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use beelet_core::allocate::weight_from_shares;
use beelet_core::units::{Bytes, Micros};
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;

use super::error::Error;
use super::layout::Home;

/// The period where the core names none: the kernel's default.
pub(super) const DEFAULT_PERIOD: Micros = Micros::millis(100);
/// `cpu.shares` of a cgroup that nobody wrote to.
pub(super) const DEFAULT_SHARES: u64 = 1024;
/// From here on a limit in bytes means none: the kernel counts pages in a signed long (page_counter.h).
const UNLIMITED: u64 = 1 << 62;

/// What of `memory.stat` the kernel can free.
const RECLAIMABLE: [&str; 3] = ["inactive_file", "active_file", "slab_reclaimable"];

/// The smallest shares that have this weight.
#[must_use]
pub fn shares_from_weight(weight: u64) -> u64 {
    2 + ((weight.clamp(1, 10_000) - 1) * 262_142).div_ceil(9_999)
}

/// Reads a file whole. cgroups-rs turns read errors of some files into zeros, so all reading is done here.
pub(super) fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file).map_err(|e| Error::read(file, e))
}

fn read_number<T: std::str::FromStr>(file: &Path) -> Result<T, Error> {
    let text = read(file)?;
    text.trim().parse().map_err(|_| Error::Parse { file: file.to_owned(), text })
}

/// A bound of memory; `None` for none.
fn read_bound(file: std::path::PathBuf) -> Result<Option<Bytes>, Error> {
    let text = read(&file)?;
    if text.trim() == "max" {
        return Ok(None);
    }
    let bound: u64 = text.trim().parse().map_err(|_| Error::Parse { file, text })?;
    Ok((bound < UNLIMITED).then_some(Bytes(bound)))
}

/// The kernel counts memory in pages, and rounds down.
pub(super) fn whole_pages(bytes: Bytes) -> Bytes {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    Bytes(bytes.get() / page * page)
}

/// Writes a file that must be there. Not `File::create`, as cgroups-rs does it: on a missing file that asks the kernel to make
/// one, and the answer is "permission denied" instead of "not there".
pub(super) fn write(file: &Path, value: &str) -> Result<(), Error> {
    let mut opened = fs::OpenOptions::new().write(true).open(file).map_err(|e| Error::write(file, value, &e))?;
    opened.write_all(value.as_bytes()).map_err(|e| Error::write(file, value, &e))
}

/// `Kept` unless they are equal.
pub(super) fn verify<T: PartialEq + std::fmt::Debug>(file: &Path, wrote: &T, kept: &T) -> Result<(), Error> {
    if wrote == kept {
        return Ok(());
    }
    Err(Error::Kept { file: file.to_owned(), wrote: format!("{wrote:?}"), kept: format!("{kept:?}") })
}

/// The CPU files of a cgroup.
pub(super) struct Cpu<'a>(pub(super) &'a Home);

impl Cpu<'_> {
    fn library(&self) -> CpuController {
        CpuController::new(self.0.dir.clone(), "/".into(), self.0.v2)
    }

    fn weight_file(&self) -> std::path::PathBuf {
        self.0.dir.join(if self.0.v2 { "cpu.weight" } else { "cpu.shares" })
    }

    fn quota_file(&self) -> std::path::PathBuf {
        self.0.dir.join(if self.0.v2 { "cpu.max" } else { "cpu.cfs_quota_us" })
    }

    /// The weight as the kernel has it: shares on v1, weight on v2.
    pub(super) fn raw_weight(&self) -> Result<u64, Error> {
        read_number(&self.weight_file())
    }

    /// In shares. On v2 the smallest ones of that weight.
    pub(super) fn shares(&self) -> Result<u64, Error> {
        let raw = self.raw_weight()?;
        Ok(if self.0.v2 { shares_from_weight(raw) } else { raw })
    }

    /// Writes shares, as a weight on v2. `true` if it changed.
    pub(super) fn set_shares(&self, shares: u64) -> Result<bool, Error> {
        let shares = shares.clamp(2, 262_144);
        let raw = if self.0.v2 { weight_from_shares(shares) } else { shares };
        if self.raw_weight()? == raw {
            return Ok(false);
        }
        let file = self.weight_file();
        self.library().set_shares(raw).map_err(|e| Error::library(&file, &raw.to_string(), &e))?;
        verify(&file, &raw, &self.raw_weight()?)?;
        Ok(true)
    }

    /// Quota (`None` for no limit) and period.
    pub(super) fn quota(&self) -> Result<(Option<Micros>, Micros), Error> {
        let file = self.quota_file();
        if !self.0.v2 {
            let quota: i64 = read_number(&file)?;
            let period = read_number(&self.0.dir.join("cpu.cfs_period_us"))?;
            return Ok((u64::try_from(quota).ok().map(Micros), Micros(period)));
        }
        let text = read(&file)?;
        let mut words = text.split_whitespace();
        let parsed = match (words.next(), words.next().and_then(|p| p.parse().ok())) {
            (Some("max"), Some(period)) => Some((None, Micros(period))),
            (Some(quota), Some(period)) => quota.parse().ok().map(|quota| (Some(Micros(quota)), Micros(period))),
            _ => None,
        };
        parsed.ok_or(Error::Parse { file, text })
    }

    /// Writes quota and period. `true` if they changed.
    ///
    /// A burst above the new quota would make the kernel refuse it (EINVAL), so the burst is cut first. On v1 quota and period
    /// are two files, and each pair on the way must fit between the parent's and the children's: without a quota always does.
    pub(super) fn set_quota(&self, quota: Option<Micros>, period: Micros) -> Result<bool, Error> {
        let period = if period == Micros::ZERO { DEFAULT_PERIOD } else { period };
        let before = self.quota()?;
        // Without a quota the period says nothing; leaving it alone keeps this idempotent.
        if before == (quota, period) || (before.0.is_none() && quota.is_none()) {
            return Ok(false);
        }
        if let Some(quota) = quota
            && self.burst().is_ok_and(|burst| burst > quota)
        {
            self.set_burst(quota)?;
        }
        let file = self.quota_file();
        let number = quota.map_or(-1, |q| i64::try_from(q.get()).unwrap_or(i64::MAX));
        let library = self.library();
        let failed = |e| Error::library(&file, &format!("{number} {period}", period = period.get()), &e);
        if !self.0.v2 && before.1 != period {
            library.set_cfs_quota(-1).map_err(failed)?;
            library.set_cfs_period(period.get()).map_err(failed)?;
        }
        library.set_cfs_quota_and_period(Some(number), self.0.v2.then_some(period.get())).map_err(failed)?;
        let after = self.quota()?;
        verify(&file, &quota, &after.0)?;
        if quota.is_some() {
            verify(&file, &period, &after.1)?;
        }
        Ok(true)
    }

    fn burst_file(&self) -> std::path::PathBuf {
        self.0.dir.join(if self.0.v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" })
    }

    /// Unused quota that may be spent later. cgroups-rs knows no burst, so these two are written directly.
    pub(super) fn burst(&self) -> Result<Micros, Error> {
        let file = self.burst_file();
        match read_number(&file) {
            Ok(burst) => Ok(Micros(burst)),
            // A cgroup that is gone is another matter than a kernel without the file.
            Err(e) if e.is_gone() && self.0.dir.exists() => Err(Error::Unsupported {
                what: "CPU burst",
                file,
                needs: "Linux 5.14 or newer with CONFIG_CFS_BANDWIDTH",
            }),
            Err(e) => Err(e),
        }
    }

    /// Writes the burst. `true` if it changed. Above the quota the kernel refuses it.
    pub(super) fn set_burst(&self, burst: Micros) -> Result<bool, Error> {
        if self.burst()? == burst {
            return Ok(false);
        }
        let file = self.burst_file();
        write(&file, &burst.get().to_string())?;
        verify(&file, &burst, &self.burst()?)?;
        Ok(true)
    }
}

/// The memory files of a cgroup.
pub(super) struct Memory<'a>(pub(super) &'a Home);

impl Memory<'_> {
    fn limit_file(&self) -> std::path::PathBuf {
        self.0.dir.join(if self.0.v2 { "memory.max" } else { "memory.limit_in_bytes" })
    }

    /// The limit, `None` for none.
    pub(super) fn limit(&self) -> Result<Option<Bytes>, Error> {
        read_bound(self.limit_file())
    }

    /// Writes the limit, and on v1 that of memory and swap together, where there is one: it may not be lower, and what is between the
    /// two, the swap that may be used, stays as it is.
    pub(super) fn set_limit_with_swap(&self, limit: Option<Bytes>) -> Result<(), Error> {
        let file = self.0.dir.join("memory.memsw.limit_in_bytes");
        let both = match read_bound(file.clone()) {
            Ok(Some(both)) if !self.0.v2 => both,
            _ => return self.set_limit(limit).map(drop),
        };
        let (before, wanted) = (self.limit()?, limit.filter(|l| l.get() < UNLIMITED).map(whole_pages));
        let swap = both - before.unwrap_or(both);
        let write_both = || {
            let value = wanted.map_or_else(|| "-1".to_owned(), |wanted| (wanted + swap).get().to_string());
            write(&file, &value)?;
            verify(&file, &wanted.map(|wanted| wanted + swap), &read_bound(file.clone())?)
        };
        if wanted.is_some_and(|wanted| wanted < both) && wanted <= before {
            self.set_limit(limit)?;
            return write_both();
        }
        write_both()?;
        self.set_limit(limit).map(drop)
    }

    fn high_file(&self) -> std::path::PathBuf {
        self.0.dir.join("memory.high")
    }

    /// Above this allocations are slowed down; `None` for no such bound.
    pub(super) fn high(&self) -> Result<Option<Bytes>, Error> {
        let file = self.high_file();
        match read_bound(file.clone()) {
            Err(e) if e.is_gone() && self.0.dir.exists() => {
                Err(Error::Unsupported { what: "memory.high", file, needs: "the memory controller on cgroup v2" })
            }
            other => other,
        }
    }

    /// Writes it. cgroups-rs writes only the limit, so this is written directly.
    pub(super) fn set_high(&self, high: Option<Bytes>) -> Result<(), Error> {
        let (file, wanted) = (self.high_file(), high.map(whole_pages));
        write(&file, &wanted.map_or_else(|| "max".to_owned(), |high| high.get().to_string()))?;
        verify(&file, &wanted, &self.high()?)
    }

    /// Writes the limit. `true` if it changed. The kernel rounds down to pages, and so does the comparison.
    pub(super) fn set_limit(&self, limit: Option<Bytes>) -> Result<bool, Error> {
        let wanted = limit.filter(|l| l.get() < UNLIMITED).map(whole_pages);
        if self.limit()? == wanted {
            return Ok(false);
        }
        let number = wanted.map_or(-1, |l| i64::try_from(l.get()).unwrap_or(i64::MAX));
        let file = self.limit_file();
        MemController::new(self.0.dir.clone(), "/".into(), self.0.v2)
            .set_limit(number)
            .map_err(|e| Error::library(&file, &number.to_string(), &e))?;
        verify(&file, &wanted, &self.limit()?)?;
        Ok(true)
    }

    /// What is in use less the page cache on the file lists and reclaimable slab (v1 does not tell of that): what a lower limit
    /// cannot get back without swap or a kill. As the core's `MemoryReading::unreclaimable`.
    pub(super) fn unreclaimable(&self) -> Result<Bytes, Error> {
        let (usage, prefix) = if self.0.v2 { ("memory.current", "") } else { ("memory.usage_in_bytes", "total_") };
        let usage: u64 = read_number(&self.0.dir.join(usage))?;
        let stat = read(&self.0.dir.join("memory.stat"))?;
        let reclaimable: u64 = stat
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, _)| name.strip_prefix(prefix).is_some_and(|n| RECLAIMABLE.contains(&n)))
            .filter_map(|(_, value)| value.parse::<u64>().ok())
            .sum();
        Ok(Bytes(usage.saturating_sub(reclaimable)))
    }
}
