//! gRPC probes (pkg/probe/grpc/grpc.go): `grpc.health.v1.Health/Check`, without TLS.
//!
//! The connection is made here rather than by tonic, whose channels work on tasks of their own: what hyper starts for it is in one
//! set, which ends with the question.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use beelet_core::probe::Answer;
use beelet_proto::health::health_check_response::ServingStatus;
use beelet_proto::health::health_client::HealthClient;
use beelet_proto::health::{HealthCheckRequest, HealthCheckResponse};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::header::{HeaderValue, USER_AGENT as AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};

use super::dial::{authority, dial};
use super::{USER_AGENT, go_duration};

/// Starts what a connection works on, in one set.
#[derive(Clone, Default)]
struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
    }
}

/// Ends what the set has, which holds on to the set itself.
struct EndAll(Tasks);

impl Drop for EndAll {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

/// A connection, as tonic's clients want one.
struct Server(SendRequest<Body>);

impl Service<Request<Body>> for Server {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        request.headers_mut().insert(AGENT, HeaderValue::from_static(USER_AGENT));
        Box::pin(self.0.send_request(request))
    }
}

/// Asks.
pub(super) async fn check(host: &str, port: u16, service: &str, timeout: Duration) -> Answer {
    let (address, deadline) = (authority(host, port), Instant::now() + timeout);
    let after = go_duration(timeout);
    let stream = match timeout_at(deadline, dial(host, port)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(why)) => {
            return Answer::Failure(format!("error: failed to connect service at {address:?}: {why}"));
        }
        Err(_) => {
            let why = format!("timeout: failed to connect service {address:?} within {after}");
            return Answer::Failure(format!("{why}: context deadline exceeded"));
        }
    };
    let tasks = EndAll(Tasks::default());
    let asked = async {
        let made = hyper::client::conn::http2::handshake(tasks.0.clone(), TokioIo::new(stream)).await;
        let (sender, connection) = made.map_err(|error| Status::unavailable(error.to_string()))?;
        let origin = Uri::builder().scheme("http").authority(address.as_str()).path_and_query("/").build();
        let origin = origin.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let mut client = HealthClient::with_origin(Server(sender), origin);
        let answer = client.check(HealthCheckRequest { service: service.to_owned() });
        tokio::pin!(answer, connection);
        let mut open = true;
        loop {
            tokio::select! {
                answer = &mut answer => return answer,
                _ = &mut connection, if open => open = false,
            }
        }
    };
    match timeout_at(deadline, asked).await {
        Ok(Ok(answer)) => verdict(answer.into_inner()),
        Ok(Err(status)) => refused(&status, &after),
        Err(_) => Answer::Failure(format!("timeout: health rpc did not complete within {after}")),
    }
}

fn verdict(answer: HealthCheckResponse) -> Answer {
    match answer.status() {
        ServingStatus::Serving => Answer::Success,
        other => Answer::Failure(format!("service unhealthy (responded with {:?})", other.as_str_name())),
    }
}

fn refused(status: &Status, after: &str) -> Answer {
    let told = status.message();
    Answer::Failure(match status.code() {
        Code::Unimplemented => {
            format!("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {told}")
        }
        Code::DeadlineExceeded => format!("timeout: health rpc did not complete within {after}"),
        code => format!("error: health rpc probe failed: rpc error: code = {code:?} desc = {told}"),
    })
}
