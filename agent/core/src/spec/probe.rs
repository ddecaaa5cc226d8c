//! What somebody wants to be asked of a container: its probes.
//!
//! Names, units and defaults are those of pkg/apis/core/types.go and pkg/apis/core/v1/defaults.go (release 1.37). Port names are
//! numbers here, and the static variables of a command are expanded.

use serde::{Deserialize, Serialize};

use crate::units::Micros;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ProbeKind {
    /// `startupProbe`: the container has come up. Until then the others wait.
    Startup,
    /// `readinessProbe`: it can do its work now.
    Readiness,
    /// `livenessProbe`: it works; if not it is restarted.
    Liveness,
}

impl ProbeKind {
    /// All of them, in the order in which they begin.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Readiness, Self::Liveness];

    /// As events and metrics write it: `Startup`, `Readiness`, `Liveness`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// The probes of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// `startupProbe`.
    pub startup: Option<Box<Probe>>,
    /// `readinessProbe`.
    pub readiness: Option<Box<Probe>>,
    /// `livenessProbe`.
    pub liveness: Option<Box<Probe>>,
}

impl Probes {
    /// The probe of that kind.
    #[must_use]
    pub fn get(&self, kind: ProbeKind) -> Option<&Probe> {
        match kind {
            ProbeKind::Startup => self.startup.as_deref(),
            ProbeKind::Readiness => self.readiness.as_deref(),
            ProbeKind::Liveness => self.liveness.as_deref(),
        }
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        ProbeKind::ALL.iter().all(|kind| self.get(*kind).is_none())
    }
}

/// A question that is asked again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// How it is asked.
    pub handler: Handler,
    /// `initialDelaySeconds`, default 0: not asked before the container is so old.
    pub initial_delay: Micros,
    /// `timeoutSeconds`, default 1 s, at least 1 s: no answer within this time is a failure.
    pub timeout: Micros,
    /// `periodSeconds`, default 10 s, at least 1 s.
    pub period: Micros,
    /// `successThreshold`, default 1, at least 1: so many successes in a row count as one. 1 for startup and liveness.
    pub success_threshold: u32,
    /// `failureThreshold`, default 3, at least 1: so many failures in a row count as one.
    pub failure_threshold: u32,
    /// `terminationGracePeriodSeconds`: what the container is given if this probe has it killed, in place of the pod's.
    pub grace: Option<Micros>,
}

/// How a container is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handler {
    /// `exec`: a command in it that ends with 0.
    Exec {
        /// The program and its arguments; static variables are expanded.
        command: Vec<String>,
    },
    /// `httpGet`: a status from 200 to 399.
    Http {
        /// `host`, "" for the pod's address.
        host: String,
        /// `port`.
        port: u16,
        /// `path`, with the query.
        path: String,
        /// `scheme: HTTPS`; certificates are not checked.
        tls: bool,
        /// `httpHeaders`, in order.
        headers: Vec<(String, String)>,
    },
    /// `tcpSocket`: somebody listens.
    Tcp {
        /// `host`, "" for the pod's address.
        host: String,
        /// `port`.
        port: u16,
    },
    /// `grpc`: `grpc.health.v1.Health/Check` at the pod's address says SERVING.
    Grpc {
        /// `port`.
        port: u16,
        /// `service`, "" for the whole server.
        service: String,
    },
}
