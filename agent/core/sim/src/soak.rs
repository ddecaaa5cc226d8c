//! Hours of churn, and what the agent remembers of them.
//!
//! Problem: a map that nobody empties is found after months. Approach: a node on which pods come, go, crash, are evicted and replaced
//! every few seconds runs for many simulated hours with one agent; now and then everything that the agent remembers is counted.

use beelet_core::units::Micros;
use beelet_core::world::Sizes;

use crate::{Failure, Scenario, Sim, Stats};

/// What the agent remembered at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Since the start of virtual time.
    pub at: Micros,
    /// The world.
    pub world: Sizes,
    /// Bytes of the picture that reports read, as JSON.
    pub picture: usize,
}

impl Size {
    /// Each with its name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.world.all().into_iter().chain([("picture", self.picture)])
    }
}

/// Runs so many hours, and looks every `each`.
///
/// # Errors
/// The broken invariant with the last steps.
pub fn run(hours: u64, seed: u64, each: Micros) -> Result<(Stats, Vec<Size>), Box<Failure>> {
    let time = Micros::secs(hours * 3_600);
    let mut sim = Sim::new(Scenario::soak(seed, time));
    let (mut at, mut stats, mut sizes) = (Micros::ZERO, Stats::default(), Vec::new());
    while at < time {
        stats = sim.run_for(each)?;
        at += each;
        if let Some(world) = sim.world() {
            let picture = serde_json::to_string(&world.snapshot(sim.clock())).map_or(0, |text| text.len());
            sizes.push(Size { at, world: world.sizes(), picture });
        }
    }
    Ok((stats, sizes))
}

/// The largest of each between two moments.
#[must_use]
pub fn peaks(sizes: &[Size], from: Micros, to: Micros) -> Vec<(&'static str, usize)> {
    let mut peaks: Vec<(&'static str, usize)> = Vec::new();
    for size in sizes.iter().filter(|s| s.at > from && s.at <= to) {
        for (i, (name, n)) in size.all().enumerate() {
            match peaks.get_mut(i) {
                Some(peak) => peak.1 = peak.1.max(n),
                None => peaks.push((name, n)),
            }
        }
    }
    peaks
}
