//! What somebody wants to be done when a container has started and before it is stopped: its hooks.
//!
//! As pkg/apis/core/types.go, `Lifecycle` (release 1.37). Port names are numbers here; the words of a command stay as they are written,
//! as the kubelet expands nothing in them.

use serde::{Deserialize, Serialize};

use super::Handler;
use crate::units::Micros;

/// `lifecycle` of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// `postStart`: done when the container has started, and before anything else of its pod is started. A failure stops it.
    pub post_start: Option<Box<Hook>>,
    /// `preStop`: done before it is told to stop, within its grace period.
    pub pre_stop: Option<Box<Hook>>,
}

impl Lifecycle {
    /// There is nothing to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.post_start.is_none() && self.pre_stop.is_none()
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hook {
    /// `exec`, `httpGet` or `tcpSocket`; the last one always fails, as upstream.
    Call(Handler),
    /// `sleep.seconds`, 0 or more.
    Sleep(Micros),
}
