//! The HTTP server.
//!
//! Problem: a node agent is asked by many (Prometheus, people, tools), and some of them are slow or never finish; none may
//! hold up another, the agent, or its memory. Approach: every answer is made from the published picture and is complete before
//! the first byte goes out; connections are served apart from each other, each with limits on its header, its time and its age.
//!
//! Terms: a *picture* is [`beelet_core::snapshot::Snapshot`]; the agent is *stuck* when it has not taken a step for a while.
//!
//! Properties: only GET; nothing here can change the world; there are never more than [`Limits::connections`] connections, and
//! one more is closed at once; a connection that sends no whole header in time is closed.
//!
//! There is no authentication yet: bind it to an address that only the node or the cluster's monitoring can reach.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use beelet_core::units::{Micros, Now};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::report::explain::explain;
use crate::report::metrics::{Bounds, Metrics, MetricsError};
use crate::report::podlist::pod_list;
use crate::report::scrapes::Scrapes;
use crate::report::{AgentReport, Manifests, Published, words};

/// The agent is stuck when its last step, look or listing is longer ago.
pub const STUCK_AFTER: Micros = Micros::secs(30);

mod dropin;

use dropin::DropIn;

/// What the routes answer from.
#[derive(Clone)]
pub struct ServerState {
    published: Published,
    agent: AgentReport,
    manifests: Manifests,
    metrics: Metrics,
    dropin: DropIn,
    now: Arc<dyn Fn() -> Now + Send + Sync>,
}

impl ServerState {
    /// Answers from these.
    ///
    /// # Errors
    /// If the metrics cannot be registered, which a test of the table rules out.
    pub fn new(published: Published, agent: AgentReport, manifests: Manifests) -> Result<Self, MetricsError> {
        let scrapes = Scrapes::default();
        let metrics = Metrics::new(published.clone(), agent.clone(), scrapes.clone(), Bounds::DEFAULT)?;
        let dropin = DropIn::new(scrapes);
        Ok(Self { published, agent, manifests, metrics, dropin, now: Arc::new(|| Clock.now()) })
    }

    /// What answering cost so far.
    #[must_use]
    pub fn scrapes(&self) -> &Scrapes {
        &self.dropin.scrapes
    }

    /// The same with another clock.
    #[cfg(test)]
    fn with_clock(self, now: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self { now: Arc::new(now), ..self }
    }
}

/// What one client may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at the same time.
    pub connections: usize,
    /// Time for a request's whole header, also the time that an idle connection is kept.
    pub header: Duration,
    /// Age after which a connection is closed when its request under way is answered.
    pub age: Duration,
    /// Time for that answer to be taken; then the connection is cut.
    pub last_answer: Duration,
    /// Bytes of a request's header.
    pub header_bytes: usize,
}

impl Default for Limits {
    /// More than any monitoring needs: Prometheus keeps one connection.
    fn default() -> Self {
        Self {
            connections: 256,
            header: Duration::from_secs(30),
            age: Duration::from_secs(300),
            last_answer: Duration::from_secs(10),
            header_bytes: 16 << 10,
        }
    }
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be had.
    #[error("cannot listen on {address}, port {port}: {source}; {advice}", address = address.ip(), port = address.port())]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What to do.
        advice: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
}

/// Listens there.
///
/// # Errors
/// If the address cannot be had; the message says what to do.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| {
        let advice = match source.kind() {
            std::io::ErrorKind::AddrInUse => {
                "something else listens there (`ss -ltnp` names it, often a kubelet): stop it, or choose another port"
            }
            std::io::ErrorKind::AddrNotAvailable => "this machine has no such address: choose one that `ip addr` shows",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one",
            _ => "choose another address or port",
        };
        ServerError::Bind { address, advice, source }
    })
}

/// The routes.
pub fn router(state: ServerState) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/healthz", get(healthz))
        .route("/metrics", get(dropin::metrics))
        .route("/metrics/cadvisor", get(dropin::cadvisor))
        .route("/metrics/resource", get(dropin::resource))
        .route("/metrics/probes", get(dropin::probes))
        .route("/stats/summary", get(dropin::summary).post(dropin::summary))
        .route("/pods", get(pods))
        .route("/debug/snapshot", get(snapshot))
        .route("/debug/agent", get(agent))
        .route("/debug/explain/{namespace}/{pod}", get(explanation))
        .fallback(unknown)
        .with_state(state)
}

/// Serves until `shutdown`, then lets requests under way end.
pub async fn serve(listener: TcpListener, state: ServerState, shutdown: CancellationToken) {
    serve_within(listener, state, shutdown, Limits::default()).await;
}

/// [`serve`] with other limits.
pub async fn serve_within(listener: TcpListener, state: ServerState, shutdown: CancellationToken, limits: Limits) {
    let router = router(state);
    let free = Arc::new(Semaphore::new(limits.connections));
    let tasks = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match Arc::clone(&free).try_acquire_owned() {
                Ok(permit) => {
                    tasks.spawn(connection(stream, router.clone(), shutdown.clone(), limits, permit));
                }
                Err(_) => tracing::warn!(%peer, limit = limits.connections, "too many connections: one more is closed"),
            },
            Err(error) => {
                // Out of file descriptors, or a connection that was reset before it was accepted: neither ends the server.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    if tokio::time::timeout(limits.last_answer, tasks.wait()).await.is_err() {
        tracing::debug!("connections are still open and are cut");
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    shutdown: CancellationToken,
    limits: Limits,
    _permit: OwnedSemaphorePermit,
) {
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header).max_buf_size(limits.header_bytes);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = shutdown.cancelled() => None,
        () = tokio::time::sleep(limits.age) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            served.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.last_answer, served).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended badly");
    }
}

const PATHS: &str = "\
beelet

/healthz                           ok, or why not
/metrics                           what beelet measures, for Prometheus
/metrics/cadvisor                  containers by cAdvisor's names, as the stock kubelet's
/metrics/resource                  CPU and memory for metrics-server, as the stock kubelet's
/metrics/probes                    answers to probes, as the stock kubelet's
/stats/summary                     use of resources as JSON, as the stock kubelet's
/pods                              v1 PodList
/debug/explain/{namespace}/{pod}   why a pod is as it is
/debug/snapshot                    the picture after the last step, for `beelet top`
/debug/agent                       what the agent knows about itself
";

async fn index() -> &'static str {
    PATHS
}

async fn unknown(uri: Uri) -> Response {
    (StatusCode::NOT_FOUND, format!("there is no {}\n\n{PATHS}", uri.path())).into_response()
}

async fn healthz(State(state): State<ServerState>) -> Response {
    let picture = state.published.current();
    if picture.at.mono == Micros::ZERO {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the agent has not taken its first step yet\n").into_response();
    }
    let (now, agent) = ((state.now)().mono, state.agent.current());
    // What never came is no news until the agent has had the time for it.
    let since = |last: Micros| now - last.max(agent.started);
    for (age, what) in [
        (now - picture.at.mono, "taken a step"),
        (since(agent.last_sample), "looked at the node"),
        (since(agent.last_listing), "heard from the container runtime what there is"),
    ] {
        if age > STUCK_AFTER {
            let reason = format!("the agent has not {what} for {}\n", words::duration(age));
            return (StatusCode::INTERNAL_SERVER_ERROR, reason).into_response();
        }
    }
    "ok".into_response()
}

async fn pods(State(state): State<ServerState>) -> Response {
    let host_ip = &state.agent.current().host_ip;
    let list = pod_list(&state.published.current(), &state.manifests.current(), host_ip);
    axum::Json(list).into_response()
}

async fn snapshot(State(state): State<ServerState>) -> Response {
    axum::Json(&*state.published.current()).into_response()
}

async fn agent(State(state): State<ServerState>) -> Response {
    axum::Json(&*state.agent.current()).into_response()
}

async fn explanation(State(state): State<ServerState>, Path((namespace, pod)): Path<(String, String)>) -> Response {
    match explain(&state.published.current(), &state.agent.current(), &namespace, &pod) {
        Ok(explanation) => axum::Json(explanation).into_response(),
        Err(missing) => {
            let body = json!({ "error": missing.error, "nearby": missing.nearby });
            (StatusCode::NOT_FOUND, axum::Json(body)).into_response()
        }
    }
}

#[cfg(test)]
mod tests;
