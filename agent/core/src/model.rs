//! Rates from counters.
//!
//! Problem: a counter of another cgroup of the same name, a repeated or late reading, or two readings a moment apart give rates that
//! are nonsense, and nonsense kills pods. Approach: one [`CgroupModel`] per cgroup *path*; readings are compared only while the
//! cgroup id is the same and time goes forward; CPU rates span at least [`CPU_SPAN`] however often samples come; memory goes into a
//! [`Trend`].
//!
//! Properties (tested): a rate exists only between two readings of the same cgroup id; a reading that is not newer changes nothing;
//! a counter that went backwards gives no rate; a reading that is held ([`CgroupReading::at`]) gives no new point for [`HELD`], and
//! then the rate of something that does not run: none.

use crate::forecast::{Forecast, Trend};
use crate::ground::Ground;
use crate::sample::{CgroupReading, CpuReading, NodeReading};
use crate::settle::Settled;
use crate::units::{Bytes, Micros, MilliCpu, Ppm};

/// The shortest time over which a CPU rate is computed: cpu.stat and eBPF run times advance in slices of some milliseconds, so
/// 500 ms keep the error near 1 %.
pub const CPU_SPAN: Micros = Micros::millis(500);

/// A reading that was not taken anew for this long says that nothing ran meanwhile. Before that it says nothing: who reads decides by
/// switches of tasks whether something ran, and a task that is alone on a CPU may run for a while without one.
pub const HELD: Micros = Micros::secs(1);

/// Throttling between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Throttling {
    /// The time between the readings.
    pub span: Micros,
    /// Time throttled, summed over CPUs.
    pub time: Micros,
    /// Scheduling periods in which something ran.
    pub periods: u64,
    /// Of these, the throttled ones.
    pub throttled_periods: u64,
}

/// What is known of a cgroup over time.
#[derive(Clone, Debug, Default)]
pub struct CgroupModel {
    last: Option<(Micros, CgroupReading)>,
    /// The reading that the next CPU rate starts from.
    base: Option<(Micros, CpuReading)>,
    cpu: Option<MilliCpu>,
    throttling: Option<Throttling>,
    throttled_at: Option<Micros>,
    stalled: Option<Ppm>,
    settled: Settled,
    /// What reclaim cannot free by the last reading, as far as it is believed.
    held: Option<Bytes>,
    trend: Trend,
    ground: Ground,
}

impl CgroupModel {
    /// Takes a reading. `false`, and no change, if it is not newer than the last. A reading with another id starts afresh.
    pub fn observe(&mut self, at: Micros, reading: &CgroupReading) -> bool {
        if let Some((last, before)) = &self.last {
            if before.id != reading.id {
                *self = Self::default();
            } else if at <= *last {
                return false;
            } else if reading.at > Micros::ZERO && reading.at <= before.at && at - reading.at < HELD {
                // No new point; when it is, what the counters grew by counts over the whole time.
                return true;
            }
        }
        if let Some(cpu) = reading.cpu {
            self.observe_cpu(at, cpu);
        }
        if let Some((last_at, last)) = &self.last {
            self.stalled = last.pressure.zip(reading.pressure).map(|(a, b)| {
                let ppm = (b.memory.some.total - a.memory.some.total).scale(1_000_000, (at - *last_at).get());
                Ppm(ppm.get().min(1_000_000))
            });
        }
        if let Some(memory) = reading.memory {
            let held = self.settled.observe(at, memory.unreclaimable(), Some(memory.counted()));
            self.trend.observe(at, held);
            self.ground.observe(at, held);
            self.held = Some(held);
        }
        self.last = Some((at, *reading));
        true
    }

    fn observe_cpu(&mut self, at: Micros, cpu: CpuReading) {
        let before = self.last.as_ref().and_then(|(_, r)| r.cpu);
        if let Some(before) = before
            && before.throttled_periods.zip(cpu.throttled_periods).is_some_and(|(a, b)| b > a)
        {
            self.throttled_at = Some(at);
        }
        let Some((base_at, base)) = self.base else {
            self.base = Some((at, cpu));
            return;
        };
        let span = at - base_at;
        if span < CPU_SPAN {
            return;
        }
        // Both ends from the same source: a source that comes or goes must not look like a jump.
        let used = same(base.usage, cpu.usage).or_else(|| same(base.run, cpu.run));
        self.cpu = used.map(|used| MilliCpu(used.scale(1_000, span.get()).get()));
        self.throttling = difference(base.periods, cpu.periods).map(|periods| Throttling {
            span,
            time: same(base.throttled, cpu.throttled).unwrap_or_default(),
            periods,
            throttled_periods: difference(base.throttled_periods, cpu.throttled_periods).unwrap_or_default(),
        });
        self.base = Some((at, cpu));
    }

    /// The last reading and when it was taken.
    #[must_use]
    pub fn last(&self) -> Option<(Micros, &CgroupReading)> {
        self.last.as_ref().map(|(at, reading)| (*at, reading))
    }

    /// CPU in use over the last [`CPU_SPAN`] or more.
    #[must_use]
    pub fn cpu(&self) -> Option<MilliCpu> {
        self.cpu
    }

    /// Throttling over the same time; `None` without a quota or a reading of it.
    #[must_use]
    pub fn throttling(&self) -> Option<Throttling> {
        self.throttling
    }

    /// When a throttled period was last seen to be added.
    #[must_use]
    pub fn throttled_at(&self) -> Option<Micros> {
        self.throttled_at
    }

    /// The share of time between the last two readings in which some task waited for memory.
    #[must_use]
    pub fn memory_stalled(&self) -> Option<Ppm> {
        self.stalled
    }

    /// Growth of what reclaim cannot free, bytes per second; see [`Trend::growth`].
    #[must_use]
    pub fn growth(&self) -> Option<i64> {
        self.trend.growth()
    }

    /// What it holds that reclaim cannot free, as far as it is believed ([`crate::settle`]); `None` without a reading.
    #[must_use]
    pub fn held(&self) -> Option<Bytes> {
        self.held
    }

    /// What it took lately of what reclaim cannot free and had not had before; see [`Ground::taken`].
    #[must_use]
    pub fn taken(&self) -> Bytes {
        self.ground.taken()
    }

    /// When `headroom` is used up; see [`Trend::forecast`].
    #[must_use]
    pub fn forecast(&self, headroom: Bytes) -> Option<Forecast> {
        self.trend.forecast(headroom)
    }

    /// When the cgroup's own limit is hit; `None` for no limit, no reading or no confirmed growth.
    #[must_use]
    pub fn forecast_own(&self) -> Option<Forecast> {
        let memory = self.last.as_ref()?.1.memory?;
        self.trend.forecast(memory.limit? - self.held?)
    }

    /// The memory's past.
    #[must_use]
    pub fn trend(&self) -> &Trend {
        &self.trend
    }
}

/// The growth of a counter that both readings have and that did not go backwards.
fn difference(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.zip(b).and_then(|(a, b)| b.checked_sub(a))
}

fn same(a: Option<Micros>, b: Option<Micros>) -> Option<Micros> {
    difference(a.map(Micros::get), b.map(Micros::get)).map(Micros)
}

/// What is known of the node over time.
#[derive(Clone, Debug, Default)]
pub struct NodeModel {
    last_at: Option<Micros>,
    base: Option<(Micros, NodeReading)>,
    busy: Option<MilliCpu>,
    idle: Option<MilliCpu>,
    settled: Settled,
    trend: Trend,
}

impl NodeModel {
    /// Takes a reading; `false`, and no change, if it is not newer than the last.
    pub fn observe(&mut self, at: Micros, reading: &NodeReading) -> bool {
        if self.last_at.is_some_and(|last| at <= last) {
            return false;
        }
        self.last_at = Some(at);
        if reading.memory_total > Bytes::ZERO {
            self.trend.observe(at, self.settled.observe(at, reading.memory_unreclaimable, reading.memory_counted));
        }
        match self.base {
            Some((base_at, base)) if at - base_at >= CPU_SPAN => {
                let span = (at - base_at).get();
                let rate = |a: Micros, b: Micros| same(Some(a), Some(b)).map(|d| MilliCpu(d.scale(1_000, span).get()));
                self.busy = rate(base.cpu_busy, reading.cpu_busy);
                self.idle = rate(base.cpu_idle, reading.cpu_idle);
                self.base = Some((at, *reading));
            }
            Some(_) => {}
            None => self.base = Some((at, *reading)),
        }
        true
    }

    /// CPU in use by everything.
    #[must_use]
    pub fn busy(&self) -> Option<MilliCpu> {
        self.busy
    }

    /// CPU idle.
    #[must_use]
    pub fn idle(&self) -> Option<MilliCpu> {
        self.idle
    }

    /// The idle share of all CPU time.
    #[must_use]
    pub fn idle_share(&self) -> Option<Ppm> {
        let (busy, idle) = (self.busy?, self.idle?);
        let all = busy + idle;
        (all > MilliCpu::ZERO).then(|| Ppm(idle.scale(1_000_000, all.get()).get()))
    }

    /// Growth of what reclaim cannot free on the node, bytes per second.
    #[must_use]
    pub fn growth(&self) -> Option<i64> {
        self.trend.growth()
    }

    /// The memory's past.
    #[must_use]
    pub fn trend(&self) -> &Trend {
        &self.trend
    }
}

#[cfg(test)]
mod tests;
