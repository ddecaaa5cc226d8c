//! Eviction. (Being written.)
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Ppm};

/// A hard eviction threshold of `memory.available`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Threshold {
    /// `memory.available<100Mi`.
    Quantity(Bytes),
    /// `memory.available<5%`, of the capacity.
    Share(Ppm),
}

impl Default for Threshold {
    /// The kubelet's: 100Mi.
    fn default() -> Self {
        Self::Quantity(Bytes::mib(100))
    }
}

impl Threshold {
    /// In bytes.
    #[must_use]
    pub fn quantity(&self, capacity: Bytes) -> Bytes {
        match *self {
            Self::Quantity(bytes) => bytes,
            Self::Share(Ppm(ppm)) => capacity.scale(ppm, 1_000_000),
        }
    }
}
