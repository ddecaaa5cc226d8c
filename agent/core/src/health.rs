//! Health without probes. (Being written.)
use serde::{Deserialize, Serialize};

/// What beelet thinks of a pod, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The state.
    pub state: Health,
    /// The reason's name: `OOMVictim`, `CrashLoop`, `FatalSignal`, `ListenerGone`; "" for none.
    pub reason: String,
    /// What was seen, newest last.
    pub evidence: Vec<String>,
    /// Since when (wall clock).
    pub since: crate::units::Micros,
}

/// The states of a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Health {
    /// Not enough is known.
    #[default]
    Unknown,
    /// Nothing speaks against it.
    Healthy,
    /// One sign.
    Suspect,
    /// A fatal fact, or two independent signs.
    Unhealthy,
}
