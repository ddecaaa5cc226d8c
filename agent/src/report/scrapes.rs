//! What answering costs: how often each endpoint was asked, how long that took, how much it gave and what it left out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What can be scraped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `/metrics`.
    Metrics,
    /// `/metrics/cadvisor`.
    Cadvisor,
    /// `/metrics/resource`.
    Resource,
    /// `/metrics/probes`.
    Probes,
    /// `/stats/summary`.
    Summary,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Metrics, Self::Cadvisor, Self::Resource, Self::Probes, Self::Summary];

    /// Its path.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Metrics => "/metrics",
            Self::Cadvisor => "/metrics/cadvisor",
            Self::Resource => "/metrics/resource",
            Self::Probes => "/metrics/probes",
            Self::Summary => "/stats/summary",
        }
    }
}

/// What one endpoint did since the agent's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrapeCost {
    /// Answers.
    pub answers: u64,
    /// Time that they took in all: rendering and compressing, not sending.
    pub spent: Duration,
    /// Time that the last one took.
    pub last: Duration,
    /// Bytes of the last one before compression.
    pub bytes: u64,
    /// Series of the last one; 0 where it has none.
    pub series: u64,
    /// Series left out, of all answers, because a bound was reached.
    pub dropped: u64,
}

/// The costs of all endpoints. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Scrapes(Arc<[Cell; Endpoint::ALL.len()]>);

#[derive(Debug, Default)]
struct Cell {
    answers: AtomicU64,
    spent_ns: AtomicU64,
    last_ns: AtomicU64,
    bytes: AtomicU64,
    series: AtomicU64,
    dropped: AtomicU64,
}

impl Scrapes {
    /// Notes an answer: the time it took, its bytes before compression, its series and those left out.
    pub fn note(&self, endpoint: Endpoint, took: Duration, bytes: usize, series: u64, dropped: u64) {
        let Some(cell) = self.0.get(endpoint as usize) else { return };
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        cell.answers.fetch_add(1, Ordering::Relaxed);
        cell.spent_ns.fetch_add(ns, Ordering::Relaxed);
        cell.last_ns.store(ns, Ordering::Relaxed);
        cell.bytes.store(bytes as u64, Ordering::Relaxed);
        cell.series.store(series, Ordering::Relaxed);
        cell.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// What that endpoint did.
    #[must_use]
    pub fn of(&self, endpoint: Endpoint) -> ScrapeCost {
        let Some(cell) = self.0.get(endpoint as usize) else { return ScrapeCost::default() };
        ScrapeCost {
            answers: cell.answers.load(Ordering::Relaxed),
            spent: Duration::from_nanos(cell.spent_ns.load(Ordering::Relaxed)),
            last: Duration::from_nanos(cell.last_ns.load(Ordering::Relaxed)),
            bytes: cell.bytes.load(Ordering::Relaxed),
            series: cell.series.load(Ordering::Relaxed),
            dropped: cell.dropped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_endpoint_has_its_own_account() {
        let scrapes = Scrapes::default();
        for _ in 0..2 {
            scrapes.clone().note(Endpoint::Summary, Duration::from_millis(3), 100, 0, 7);
        }
        let cost = scrapes.of(Endpoint::Summary);
        assert_eq!((cost.answers, cost.spent, cost.last), (2, Duration::from_millis(6), Duration::from_millis(3)));
        assert_eq!((cost.bytes, cost.series, cost.dropped), (100, 0, 14));
        for other in Endpoint::ALL.into_iter().filter(|e| *e != Endpoint::Summary) {
            assert_eq!(scrapes.of(other), ScrapeCost::default());
        }
    }
}
