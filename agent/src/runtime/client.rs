//! The connection to the runtime, deadlines, and what the runtime says of itself.
//!
//! Properties: the connection is made by the first call that needs it and again after it broke, so a handle outlives any
//! number of restarts of the runtime; a call that fails because the runtime is away fails at once; every call has a deadline,
//! but `PullImage`, which ends when its caller gives up.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use beelet_proto::cri;
use beelet_proto::cri::image_service_client::ImageServiceClient;
use beelet_proto::cri::runtime_service_client::RuntimeServiceClient;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::error::RuntimeError;
use super::facts::Cache;
use super::logs::Logs;
use super::operations::Operations;

/// The largest message that is read: a full listing of a large node is above gRPC's usual 4 MiB.
pub const MAX_MESSAGE: usize = 16 << 20;

/// `runtimeRequestTimeout`.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long connecting may take. A socket that nobody listens on fails at once; this is for one whose owner hangs.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A handle on the runtime. To be shared in an `Arc`.
#[derive(Debug)]
pub struct Runtime {
    channel: Channel,
    endpoint: String,
    /// The id of this beelet: what carries another is somebody else's.
    pub(super) instance: String,
    pub(super) timeout: Duration,
    unimplemented: Mutex<BTreeSet<&'static str>>,
    pub(super) cache: Mutex<Cache>,
    pub(super) logs: Logs,
    operations: Operations,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `containerd`, `cri-o`, ...
    pub name: String,
    /// The runtime's own version.
    pub version: String,
    /// `v1`.
    pub api_version: String,
}

impl Runtime {
    /// A handle on the runtime at `unix:///path`; `timeout` is for one call; `instance` is the id of this beelet
    /// ([`super::instance`]), which tells its pods from others'. Nothing is sent yet.
    ///
    /// # Errors
    /// If the endpoint is not a unix socket's address.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn connect(endpoint: &str, timeout: Duration, instance: &str) -> Result<Self, RuntimeError> {
        let refuse = |reason: String| Err(RuntimeError::Endpoint { endpoint: endpoint.to_owned(), reason });
        if !endpoint.starts_with("unix:///") {
            return refuse("not a unix socket".to_owned());
        }
        let address = match Endpoint::from_shared(endpoint.to_owned()) {
            Ok(address) => address,
            Err(error) => return refuse(error.to_string()),
        };
        Ok(Self {
            channel: address.connect_timeout(CONNECT_TIMEOUT).connect_lazy(),
            endpoint: endpoint.to_owned(),
            instance: instance.to_owned(),
            timeout,
            unimplemented: Mutex::default(),
            cache: Mutex::default(),
            logs: Logs::default(),
            operations: Operations::default(),
        })
    }

    /// Where the runtime listens.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The calls that the runtime answered with Unimplemented, by name.
    #[must_use]
    pub fn unimplemented(&self) -> Vec<&'static str> {
        lock(&self.unimplemented).iter().copied().collect()
    }

    /// Who answers.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn version(&self) -> Result<Version, RuntimeError> {
        let request = cri::VersionRequest { version: "0.1.0".to_owned() };
        let answer = self.call("Version", self.timeout, self.pods().version(request)).await?;
        Ok(Version {
            name: answer.runtime_name,
            version: answer.runtime_version,
            api_version: answer.runtime_api_version,
        })
    }

    /// Whether the runtime makes cgroups through systemd. Asked by `RuntimeConfig`; of a runtime without that call, read from
    /// the configuration that containerd shows in its status. `None` where it cannot be found out.
    ///
    /// # Errors
    /// See [`RuntimeError`].
    pub async fn systemd_cgroups(&self) -> Result<Option<bool>, RuntimeError> {
        let mut pods = self.pods();
        match self.call("RuntimeConfig", self.timeout, pods.runtime_config(cri::RuntimeConfigRequest {})).await {
            Ok(answer) => Ok(answer.linux.map(|linux| linux.cgroup_driver() == cri::CgroupDriver::Systemd)),
            Err(RuntimeError::Unimplemented { .. }) => {
                let request = cri::StatusRequest { verbose: true };
                let answer = self.call("Status", self.timeout, self.pods().status(request)).await?;
                Ok(answer.info.get("config").and_then(|config| systemd_cgroups_of(config)))
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the runtime and warns if it makes cgroups through systemd: then the limits and measurements of pods, which are
    /// in plain cgroups, miss their containers.
    pub async fn check_cgroup_driver(&self) {
        loop {
            match self.systemd_cgroups().await {
                Ok(Some(true)) => tracing::error!(
                    "the runtime makes cgroups through systemd, so pods' containers are not in pods' cgroups; \
                     set SystemdCgroup = false for runc in containerd's configuration and restart it"
                ),
                Ok(_) => {}
                Err(RuntimeError::Unavailable { .. } | RuntimeError::Timeout { .. }) => {
                    tokio::time::sleep(CONNECT_TIMEOUT).await;
                    continue;
                }
                Err(error) => tracing::debug!(%error, "the runtime's cgroup driver cannot be found out"),
            }
            return;
        }
    }

    /// The service of sandboxes and containers.
    pub(super) fn pods(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// The service of images.
    pub(super) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// Awaits the answer to a call, at most for `timeout`.
    pub(super) async fn call<T>(
        &self,
        rpc: &'static str,
        timeout: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, RuntimeError> {
        let began = Instant::now();
        let answer = match tokio::time::timeout(timeout, answer).await {
            Err(_) => Err(RuntimeError::Timeout { rpc, after: timeout }),
            Ok(answer) => self.judge(rpc, answer),
        };
        self.operations.note(rpc, began.elapsed(), answer.is_ok());
        answer
    }

    /// The calls that were answered, or should have been by now.
    #[must_use]
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// Turns a status into an error, and remembers which calls the runtime lacks.
    pub(super) fn judge<T>(&self, rpc: &'static str, answer: Result<Response<T>, Status>) -> Result<T, RuntimeError> {
        let answer = answer.map_err(|status| RuntimeError::of(rpc, &status));
        let lacks = matches!(answer, Err(RuntimeError::Unimplemented { .. }));
        if lacks {
            lock(&self.unimplemented).insert(rpc);
        } else if answer.is_ok() {
            // Another version of the runtime may have come up behind the same socket.
            lock(&self.unimplemented).remove(rpc);
        }
        answer.map(Response::into_inner)
    }
}

/// What a panicked holder left is still a consistent set: no lock here is held over more than one change.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// `SystemdCgroup` of containerd's default runtime.
fn systemd_cgroups_of(config: &str) -> Option<bool> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    let containerd = config.get("containerd")?;
    let name = containerd.get("defaultRuntimeName")?.as_str()?;
    let options = containerd.get("runtimes")?.get(name)?.get("options")?;
    Some(options.get("SystemdCgroup").and_then(serde_json::Value::as_bool).unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_driver_is_read_from_the_configuration() {
        let config = |options: &str| {
            format!(r#"{{"containerd":{{"defaultRuntimeName":"runc","runtimes":{{"runc":{{"options":{options}}}}}}}}}"#)
        };
        for (options, expected) in [
            (r#"{"SystemdCgroup":true}"#, Some(true)),
            (r#"{"SystemdCgroup":false}"#, Some(false)),
            ("{}", Some(false)),
        ] {
            assert_eq!(systemd_cgroups_of(&config(options)), expected, "{options}");
        }
        assert_eq!(systemd_cgroups_of("{}"), None);
    }

    #[tokio::test]
    async fn only_unix_sockets_are_endpoints() {
        for bad in ["/run/containerd.sock", "tcp://127.0.0.1:1", "unix://relative", ""] {
            let error = Runtime::connect(bad, DEFAULT_TIMEOUT, "i1").expect_err(bad);
            assert!(matches!(error, RuntimeError::Endpoint { .. }), "{bad}: {error:?}");
        }
    }
}
