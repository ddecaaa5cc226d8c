//! Why a pod has to go, and what is shown of it when it went.
//!
//! Problem: a pod goes for many reasons (nobody wants it, its node has no room, its time is over, its containers ended), and each of
//! them says how long it may take and what its status is in the end. Approach: one type, [`Why`], which whoever sends a pod away
//! fills in once; all else reads it.
//!
//! Property (tested): what was written down of an end gives the same end again.

use serde::{Deserialize, Serialize};

use crate::event::Terminal;
use crate::snapshot::Phase;
use crate::units::Micros;

/// Why a pod has to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// Nobody wants it any more.
    Removed,
    /// The runtime has it and nobody ever wanted it.
    Orphan,
    /// It was sent away; stays `Failed` with this reason and message.
    Failed {
        /// `status.reason`, as the kubelet's: `Evicted`, `Preempting`, `DeadlineExceeded`, ...
        reason: String,
        /// `status.message`.
        message: String,
        /// The time it is given to end, zero for none; `None` for the pod's own grace period.
        #[serde(default)]
        grace: Option<Micros>,
        /// The message of its condition `DisruptionTarget`; `None` where it has none, as it did not have to make room.
        #[serde(default)]
        disruption: Option<String>,
    },
    /// All its containers ended.
    Ended {
        /// `Succeeded` or `Failed`.
        phase: Phase,
    },
}

/// How a pod is shown that went and is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End<'a> {
    pub(crate) phase: Phase,
    /// "" for none.
    pub(crate) reason: &'a str,
    pub(crate) message: &'a str,
    pub(crate) disruption: Option<&'a str>,
}

impl Why {
    /// It was evicted, and is given so long to end.
    #[must_use]
    pub fn evicted(message: &str, grace: Micros) -> Self {
        Self::Failed {
            reason: "Evicted".to_owned(),
            message: message.to_owned(),
            grace: Some(grace),
            disruption: Some(message.to_owned()),
        }
    }

    /// Why a pod with this end went. What is left of its time is written down by itself ([`crate::event::Action::Going`]).
    pub(crate) fn of(end: &Terminal) -> Self {
        if end.reason.is_empty() {
            return Self::Ended { phase: end.phase };
        }
        let (reason, message) = (end.reason.clone(), end.message.clone());
        Self::Failed { reason, message, grace: None, disruption: end.disruption.clone() }
    }

    /// How a pod that goes for this reason, and is still wanted, is shown in the end.
    pub(crate) fn end(&self) -> Option<End<'_>> {
        match self {
            Self::Failed { reason, message, disruption, .. } => {
                Some(End { phase: Phase::Failed, reason, message, disruption: disruption.as_deref() })
            }
            Self::Ended { phase } => Some(End { phase: *phase, reason: "", message: "", disruption: None }),
            Self::Removed | Self::Orphan => None,
        }
    }

    /// The time that a pod which goes for this reason is given, where it is not its own grace period.
    pub(crate) fn grace(&self) -> Option<Micros> {
        match self {
            Self::Failed { grace, .. } => *grace,
            Self::Removed | Self::Orphan | Self::Ended { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a4_4_an_end_that_was_written_down_is_the_same_end_again() {
        let deadline = Why::Failed {
            reason: "DeadlineExceeded".to_owned(),
            message: "m".to_owned(),
            grace: None,
            disruption: None,
        };
        for why in [Why::evicted("m", Micros::secs(5)), deadline, Why::Ended { phase: Phase::Succeeded }] {
            let end = why.end().unwrap();
            let noted = Terminal {
                uid: "u".into(),
                phase: end.phase,
                reason: end.reason.to_owned(),
                message: end.message.to_owned(),
                disruption: end.disruption.map(str::to_owned),
                exits: Vec::new(),
            };
            assert_eq!(Why::of(&noted).end(), Some(end));
        }
        assert_eq!((Why::Removed.end(), Why::Orphan.end()), (None, None));
    }
}
