//! What is done when a container has started, and before it stops.
//!
//! Rules and words: pkg/kubelet/lifecycle/handlers.go and pkg/kubelet/kuberuntime/kuberuntime_container.go (release 1.36). A command that
//! does not end with 0 has failed; of an HTTP request only that it was answered counts, not how. A hook that is given up (its future is
//! dropped) leaves nothing behind: a command is killed by the runtime, a connection is closed.
//! Other than upstream: a pod in the node's network is asked at the node's address, where upstream finds none.

use std::time::Duration;

use beelet_core::event::{Done, Event, OpError};
use beelet_core::spec::{Handler, Hook, PodSpec, PodUid};
use beelet_core::stop::{Stop, after_hook};
use beelet_core::units::Micros;
use futures::future::join_all;
use tokio::time::Instant;

use super::pod_ops::{Context, PodRuntime};
use crate::probe;
use crate::runtime::ExecError;

/// A hook that could not be done.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Failed {
    #[error(
        "Exec lifecycle hook ({command}) for Container {container:?} in Pod {pod:?} failed - error: {error}, message: {output:?}"
    )]
    Exec { command: String, container: String, pod: String, error: String, output: String },
    #[error("HTTP lifecycle hook ({path}) for Container {container:?} in Pod {pod:?} failed - error: {error}")]
    Http { path: String, container: String, pod: String, error: String },
    #[error("Cannot run handler: invalid handler: {kind} is not supported as a lifecycle hook")]
    Invalid { kind: &'static str },
}

/// Whose hook it is.
struct Of<'a> {
    uid: &'a PodUid,
    /// As the kubelet writes it: `name_namespace(uid)`.
    pod: &'a str,
    container: &'a str,
    id: &'a str,
    address: &'a str,
}

impl<R: PodRuntime> Context<R> {
    /// The hook `postStart`.
    pub(super) async fn post_start(
        &self,
        uid: &PodUid,
        spec: &PodSpec,
        container: &str,
        id: &str,
        ip: &str,
    ) -> Result<Done, OpError> {
        let hook = spec.container(container).and_then(|c| c.lifecycle.post_start.as_deref());
        let pod = format!("{}_{}({uid})", spec.name, spec.namespace);
        let of = Of { uid, pod: &pod, container, id, address: self.address(ip) };
        let Some(hook) = hook else { return Ok(Done::Ok) };
        let done = self.run_hook(&of, hook).await;
        done.map(|()| Done::Ok)
            .map_err(|error| OpError { reason: "PostStartHookError".to_owned(), message: error.to_string() })
    }

    /// Stops containers, each by itself: its hook, its signal, and SIGKILL when the time is over.
    pub(super) async fn stop(&self, uid: &PodUid, stops: &[Stop], grace: Micros, ip: &str) -> Result<Done, OpError> {
        let results = join_all(stops.iter().map(|stop| self.stop_one(uid, stop, grace, ip))).await;
        let failures: Vec<String> = results.into_iter().filter_map(Result::err).map(|error| error.message).collect();
        if failures.is_empty() {
            return Ok(Done::Ok);
        }
        Err(OpError { reason: "KillContainerError".to_owned(), message: failures.join("; ") })
    }

    async fn stop_one(&self, uid: &PodUid, stop: &Stop, grace: Micros, ip: &str) -> Result<(), OpError> {
        let began = Instant::now();
        if let Some(hook) = &stop.hook {
            let of = Of { uid, pod: uid.as_str(), container: &stop.name, id: &stop.id, address: self.address(ip) };
            match tokio::time::timeout(Duration::from_micros(grace.get()), self.run_hook(&of, hook)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%uid, container = stop.name, %error, "a hook before a stop failed");
                    // Why may hold what a server answered, and is none of those who read events.
                    self.tell(uid, Some(&stop.name), "FailedPreStopHook", "PreStopHook failed".to_owned());
                }
                Err(_) => tracing::warn!(%uid, container = stop.name, "a hook before a stop took all of its time"),
            }
        }
        if !stop.signal {
            return Ok(());
        }
        let spent = Micros(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        self.runtime.stop_container(&stop.id, after_hook(grace, spent)).await
    }

    async fn run_hook(&self, of: &Of<'_>, hook: &Hook) -> Result<(), Failed> {
        match hook {
            Hook::Sleep(time) => {
                tokio::time::sleep(Duration::from_micros(time.get())).await;
                Ok(())
            }
            Hook::Call(Handler::Exec { command }) => {
                let failed = |error, output| Failed::Exec {
                    command: format!("[{}]", command.join(" ")),
                    container: of.container.to_owned(),
                    pod: of.pod.to_owned(),
                    error,
                    output,
                };
                match self.runtime.exec(of.id, command, probe::FOREVER).await {
                    Ok(left) if left.code == 0 => Ok(()),
                    Ok(left) => {
                        let output = probe::text(&left.output);
                        let command = command.join(" ");
                        Err(failed(format!("command '{command}' exited with {}: {output}", left.code), output))
                    }
                    Err(error @ (ExecError::TimedOut { .. } | ExecError::Runtime(_))) => {
                        Err(failed(error.to_string(), String::new()))
                    }
                }
            }
            Hook::Call(Handler::Http { host, port, path, tls, headers }) => {
                let host = if host.is_empty() { of.address } else { host };
                let called = probe::call(*tls, host, *port, path, headers).await;
                let fell_back = called.map_err(|error| Failed::Http {
                    path: path.clone(),
                    container: of.container.to_owned(),
                    pod: of.pod.to_owned(),
                    error,
                })?;
                if let Some(told) = fell_back {
                    self.tell(of.uid, None, "LifecycleHTTPFallback", told);
                }
                Ok(())
            }
            Hook::Call(Handler::Tcp { .. }) => Err(Failed::Invalid { kind: "tcpSocket" }),
            Hook::Call(Handler::Grpc { .. }) => Err(Failed::Invalid { kind: "grpc" }),
        }
    }

    fn address<'a>(&'a self, ip: &'a str) -> &'a str {
        if ip.is_empty() { &self.host_ip } else { ip }
    }

    fn tell(&self, uid: &PodUid, container: Option<&str>, reason: &str, message: String) {
        let (container, reason) = (container.map(str::to_owned), reason.to_owned());
        // Nobody listens while the agent ends.
        let _ = self.events.send(Event::Told { uid: uid.clone(), container, reason, message });
    }
}
