//! The routes that are scraped: `/metrics`, and those that stand in for the stock kubelet's: `/metrics/cadvisor`,
//! `/metrics/resource`, `/metrics/probes`, `/stats/summary`.
//!
//! **Problem.** An answer is megabytes of text and milliseconds of work; a dozen clients at once must not take the agent's threads or
//! memory. **Approach.** Answers are made off the threads that serve, one at a time, from the picture as it is then; what they cost
//! is noted in [`Scrapes`].

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;

use super::ServerState;
use crate::report::cadvisor::Cadvisor;
use crate::report::exposition::{Caps, Format, Written, accepts_gzip, gzip};
use crate::report::machine::MachineFacts;
use crate::report::scrapes::{Endpoint, Scrapes};
use crate::report::summary::Summaries;
use crate::report::{probes, resource};

/// What these routes answer with, beside the picture.
#[derive(Clone, Debug)]
pub(super) struct DropIn {
    caps: Caps,
    cadvisor: Cadvisor,
    summaries: Arc<Summaries>,
    pub(super) scrapes: Scrapes,
    /// Held by the answer that is being made.
    pub(super) turn: Arc<Mutex<()>>,
}

impl DropIn {
    /// For this machine; costs are noted there.
    pub(super) fn new(scrapes: Scrapes) -> Self {
        let caps = Caps::default();
        let cadvisor = Cadvisor::new(MachineFacts::read(), caps);
        Self { caps, cadvisor, summaries: Arc::default(), scrapes, turn: Arc::default() }
    }
}

/// An answer: what it is, its text, and what was written into it.
struct Made {
    content_type: &'static str,
    body: Vec<u8>,
    written: Written,
    packed: bool,
}

/// Makes an answer in its turn.
async fn answer(
    state: ServerState,
    endpoint: Endpoint,
    headers: &HeaderMap,
    make: impl FnOnce(&ServerState) -> Result<(&'static str, Vec<u8>, Written), serde_json::Error> + Send + 'static,
) -> Response {
    let _turn = Arc::clone(&state.dropin.turn).lock_owned().await;
    let pack = accepts_gzip(all(headers, &header::ACCEPT_ENCODING).as_deref());
    let made = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        let (content_type, body, written) = make(&state).map_err(|error| error.to_string())?;
        let bytes = body.len();
        let body = if pack { gzip(&body).map_err(|error| error.to_string())? } else { body };
        state.dropin.scrapes.note(endpoint, begun.elapsed(), bytes, written.series, written.dropped);
        Ok::<_, String>(Made { content_type, body, written, packed: pack })
    });
    match made.await.map_err(|error| error.to_string()).flatten() {
        Ok(made) => {
            if made.written.misfits > 0 {
                tracing::debug!(path = endpoint.path(), misfits = made.written.misfits, "series that do not fit");
            }
            let mut response = ([(header::CONTENT_TYPE, made.content_type)], Bytes::from(made.body)).into_response();
            if made.packed {
                response.headers_mut().insert(header::CONTENT_ENCODING, header::HeaderValue::from_static("gzip"));
            }
            response
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {error}\n")).into_response(),
    }
}

/// All headers of that name as one list.
fn all(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

fn format(headers: &HeaderMap) -> Format {
    Format::negotiate(all(headers, &header::ACCEPT).as_deref())
}

pub(super) async fn metrics(State(state): State<ServerState>, headers: HeaderMap) -> Response {
    let format = format(&headers);
    answer(state, Endpoint::Metrics, &headers, move |state| {
        let (body, written) = state.metrics.render(format);
        Ok((format.content_type(), body, written))
    })
    .await
}

pub(super) async fn cadvisor(State(state): State<ServerState>, headers: HeaderMap) -> Response {
    let format = format(&headers);
    answer(state, Endpoint::Cadvisor, &headers, move |state| {
        let (picture, agent) = (state.published.current(), state.agent.current());
        let (body, written) = state.dropin.cadvisor.render(&picture, &agent, (state.now)(), format);
        Ok((format.content_type(), body, written))
    })
    .await
}

pub(super) async fn resource(State(state): State<ServerState>, headers: HeaderMap) -> Response {
    let format = format(&headers);
    answer(state, Endpoint::Resource, &headers, move |state| {
        let (body, written) = resource::render(&state.published.current(), state.dropin.caps, format);
        Ok((format.content_type(), body, written))
    })
    .await
}

pub(super) async fn probes(State(state): State<ServerState>, headers: HeaderMap) -> Response {
    let format = format(&headers);
    answer(state, Endpoint::Probes, &headers, move |state| {
        let (body, written) = probes::render(&state.published.current(), state.dropin.caps, format);
        Ok((format.content_type(), body, written))
    })
    .await
}

pub(super) async fn summary(State(state): State<ServerState>, headers: HeaderMap, uri: Uri) -> Response {
    let only = uri.query().unwrap_or_default().split('&').any(|pair| pair == "only_cpu_and_memory=true");
    answer(state, Endpoint::Summary, &headers, move |state| {
        let summary = state.dropin.summaries.make(&state.published.current(), only);
        Ok(("application/json", serde_json::to_vec(&summary)?, Written::default()))
    })
    .await
}
