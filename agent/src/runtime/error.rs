//! How talking to the runtime can fail.

use std::error::Error;
use std::time::Duration;

use beelet_core::content::{ObjectError, kind_in_text};
use beelet_core::event::OpError;
use beelet_core::spec::ObjectRef;
use tonic::{Code, Status};

/// A call of the runtime failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The endpoint's address cannot be used.
    #[error("the runtime endpoint {endpoint:?} must be unix:///absolute/path: {reason}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody answers: not started, restarting, or the connection broke.
    #[error("the container runtime does not answer ({rpc}): {reason}")]
    Unavailable {
        /// The call.
        rpc: &'static str,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("the container runtime did not answer {rpc} within {after:?}")]
    Timeout {
        /// The call.
        rpc: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// What the call is about is not there.
    #[error("{message}")]
    NotFound {
        /// The runtime's words.
        message: String,
    },
    /// The runtime does not know the call.
    #[error("the container runtime does not implement {rpc}")]
    Unimplemented {
        /// The call.
        rpc: &'static str,
    },
    /// The runtime tried or refused.
    #[error("{message}")]
    Rejected {
        /// The gRPC code; containerd uses Unknown for most.
        code: Code,
        /// The runtime's words.
        message: String,
    },
}

impl RuntimeError {
    /// What a gRPC status of the call `rpc` means.
    ///
    /// A status that came over the wire has no source; one with a source was made here, because the connection failed.
    pub(super) fn of(rpc: &'static str, status: &Status) -> Self {
        let local = status.source().is_some();
        match status.code() {
            Code::Unimplemented => Self::Unimplemented { rpc },
            Code::NotFound => Self::NotFound { message: status.message().to_owned() },
            Code::Unavailable => Self::Unavailable { rpc, reason: root_cause(status) },
            Code::Unknown | Code::Internal | Code::Cancelled if local => {
                Self::Unavailable { rpc, reason: root_cause(status) }
            }
            code => Self::Rejected { code, message: status.message().to_owned() },
        }
    }

    /// The runtime refuses a name that another object has: the id of that object.
    pub(super) fn reserved_for(&self) -> Option<&str> {
        let Self::Rejected { message, .. } = self else { return None };
        let (_, rest) = message.rsplit_once("is reserved for \"")?;
        rest.split_once('"').map(|(id, _)| id)
    }

    /// Gone already is as good as done.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// For the core, with the kubelet's reason.
    pub(super) fn because(&self, reason: &str) -> OpError {
        OpError { reason: reason.to_owned(), message: self.to_string() }
    }
}

/// The innermost error says most: "No such file or directory" rather than "transport error".
fn root_cause(status: &Status) -> String {
    let mut cause = status.source();
    let mut text = status.message().to_owned();
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}

/// A pod's spec cannot be turned into what the runtime understands. The kubelet's reason is `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// There is no container of that name.
    #[error("the pod has no container {0:?}")]
    NoContainer(String),
    /// A mount names a volume that the pod has not.
    #[error("container {container:?} mounts volume {volume:?}, which the pod does not have")]
    NoVolume {
        /// The container.
        container: String,
        /// The volume.
        volume: String,
    },
    /// `subPathExpr` names variables that are not there or empty; the kubelet's text, as those of the next three.
    #[error("missing value for {0}")]
    NoVariable(String),
    /// `subPathExpr` came out as an absolute path.
    #[error("error SubPath `{0}` must not be an absolute path")]
    AbsoluteSubPath(String),
    /// `subPathExpr` came out as a path that goes upwards.
    #[error("unable to provision SubPath `{0}`: must not contain '..'")]
    SubPathUpwards(String),
    /// `recursiveReadOnly: Enabled`, and the runtime does not know of it.
    #[error(
        "failed to resolve recursive read-only mode: volume {0:?} requested recursive read-only mode, but it is not supported by the runtime"
    )]
    NotRecursive(String),
    /// A variable's field path is not one of those that can be used.
    #[error("environment variable {variable:?}: unsupported field path {path:?}")]
    FieldPath {
        /// The variable.
        variable: String,
        /// The path.
        path: String,
    },
    /// A variable refers to an object.
    #[error(transparent)]
    Object(ObjectError),
    /// An object has no such key.
    #[error("couldn't find key {key} in {} {namespace}/{}", kind_in_text(.object.kind), .object.name)]
    NoKey {
        /// The object.
        object: ObjectRef,
        /// Its namespace.
        namespace: String,
        /// The key.
        key: String,
    },
    /// A key's value cannot be a variable's.
    #[error("environment variable {0:?}: its value is not text")]
    NotText(String),
    /// A file of variables cannot be read.
    #[error("couldn't parse env file {path:?} of volume {volume:?}: {why}")]
    EnvFile {
        /// The volume.
        volume: String,
        /// The path in it.
        path: String,
        /// Why not.
        why: String,
    },
    /// A file of variables has not the one that is wanted.
    #[error("environment variable key {key:?} not found in file {path:?} of volume {volume:?}")]
    NoFileKey {
        /// Its name there.
        key: String,
        /// The volume.
        volume: String,
        /// The path in it.
        path: String,
    },
    /// `runAsNonRoot`, and `runAsUser: 0`.
    #[error("container's runAsUser breaks non-root policy")]
    RunsAsRoot,
    /// `runAsNonRoot`, and the image says root.
    #[error("container has runAsNonRoot and image will run as root")]
    ImageRunsAsRoot,
    /// `runAsNonRoot`, and the image names its user.
    #[error("container has runAsNonRoot and image has non-numeric user ({0}), cannot verify user is non-root")]
    ImageUserName(String),
    /// `runAsGroup` without a user, and the image's user is a name: the runtime takes a group only with a user's number.
    #[error("container has runAsGroup without runAsUser and image has non-numeric user ({0})")]
    GroupWithoutUser(String),
}

impl From<SpecError> for OpError {
    fn from(error: SpecError) -> Self {
        Self { reason: "CreateContainerConfigError".to_owned(), message: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_reserved_name_is_found() {
        let rejected = |message: &str| RuntimeError::Rejected { code: Code::Unknown, message: message.to_owned() };
        let error = rejected(r#"failed to reserve sandbox name "a_b_c_0": name "a_b_c_0" is reserved for "12ab""#);
        assert_eq!(error.reserved_for(), Some("12ab"));
        assert_eq!(rejected("no space left on device").reserved_for(), None);
    }

    #[test]
    fn a_status_from_the_wire_is_not_a_broken_connection() {
        let wire = RuntimeError::of("PullImage", &Status::unknown("failed to pull"));
        assert_eq!(wire, RuntimeError::Rejected { code: Code::Unknown, message: "failed to pull".to_owned() });
        let local = Status::from_error(Box::new(std::io::Error::from(std::io::ErrorKind::BrokenPipe)));
        assert!(matches!(RuntimeError::of("PullImage", &local), RuntimeError::Unavailable { .. }), "{local:?}");
    }
}
