//! Asks containers whether they are well.
//!
//! Problem: what is asked may answer late, wrongly or never, and thousands of such questions must leave nothing behind. Approach: when
//! to ask and what an answer means is the core's business ([`beelet_core::probe`]); here a question is one future with a limit on
//! time and size, which owns its connection and all that works on it, so that giving it up ends everything. What is asked, and the
//! words of the answers, are the kubelet's (pkg/kubelet/prober/prober.go and pkg/probe, release 1.36).
//!
//! Terms: a *failure* is an answer; an *error* means that the question could not be asked, and is tried three times.
//!
//! Properties (tested): no task, file descriptor or process is left of a question that has ended, in whatever way; every question
//! ends; a panic is an error like any other.

mod dial;
mod exec;
mod grpc;
mod http;
mod tls;

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use beelet_core::probe::Answer;
use beelet_core::spec::Handler;
use futures::FutureExt as _;

use crate::act::PodRuntime;

/// How often a question is tried that cannot be asked (maxProbeRetries).
const TRIES: usize = 3;
/// So much of an answer is read (pkg/probe, maxRespBodyLength and maxReadLength).
const MAX_OUTPUT: usize = 10 << 10;
/// The time of what has none of its own: whoever waits for it gives it up.
pub(crate) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3_600);
/// As the stock kubelet of the release whose rules these are.
const USER_AGENT: &str = "kube-probe/1.37";
/// The same of a hook.
const HOOK_AGENT: &str = "kube-lifecycle/1.37";

/// A question to one run of a container.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// The runtime's id of the run.
    pub(crate) run: String,
    /// How to ask.
    pub(crate) handler: Handler,
    /// One try ends after this time.
    pub(crate) timeout: Duration,
    /// The pod's address, or the node's for one in the host's network.
    pub(crate) address: String,
}

/// Asks, up to three times if it cannot be asked.
pub(crate) async fn ask<R: PodRuntime>(runtime: &R, question: &Question) -> Answer {
    let mut answer = unknown("it was not asked");
    for _ in 0..TRIES {
        // A mistake of ours must not leave the core waiting for an answer.
        let tried = AssertUnwindSafe(ask_once(runtime, question)).catch_unwind().await;
        answer = tried.unwrap_or_else(|_| unknown("a fault in beelet: the probe panicked"));
        if !matches!(answer, Answer::Error { .. }) {
            break;
        }
    }
    answer
}

async fn ask_once<R: PodRuntime>(runtime: &R, question: &Question) -> Answer {
    let Question { run, handler, timeout, address } = question;
    let at = |host: &str| if host.is_empty() { address.clone() } else { host.to_owned() };
    match handler {
        Handler::Exec { command } => exec::run(runtime, run, command, *timeout).await,
        Handler::Http { host, port, path, tls, headers } => {
            let url = http::Url { tls: *tls, host: at(host), port: *port, path: http::request_target(path) };
            http::get(url, headers, *timeout).await
        }
        Handler::Tcp { host, port } => dial::probe(&at(host), *port, *timeout).await,
        Handler::Grpc { port, service } => grpc::check(address, *port, service, *timeout).await,
    }
}

/// Asks for the hook of a container: whatever is answered will do, if something is. `Ok` with text: it spoke HTTP where HTTPS was
/// expected, and was asked anew without encryption (pkg/kubelet/lifecycle/handlers.go, runHTTPHandler, release 1.36).
pub(crate) async fn call(
    tls: bool,
    host: &str,
    port: u16,
    path: &str,
    headers: &[(String, String)],
) -> Result<Option<String>, String> {
    let url = http::Url { tls, host: host.to_owned(), port, path: http::request_target(path) };
    let at = dial::authority(host, port);
    let Err(error) = http::answered(url.clone(), headers).await else { return Ok(None) };
    if !error.ends_with(tls::NOT_TLS) {
        return Err(error);
    }
    let plain = |(name, _): &&(String, String)| !name.eq_ignore_ascii_case("authorization");
    let headers: Vec<_> = headers.iter().filter(plain).cloned().collect();
    // Which of the two errors counts: the first one says what is wrong.
    http::answered(http::Url { tls: false, ..url }, &headers).await.map_err(|_| error)?;
    Ok(Some(format!("request to HTTPS lifecycle hook {at} got HTTP response, retry with HTTP succeeded")))
}

fn unknown(message: &str) -> Answer {
    Answer::Error { state: "unknown".to_owned(), message: message.to_owned() }
}

/// As Go prints a whole number of seconds below a minute, and of minutes: `1s`, `1m30s`.
fn go_duration(time: Duration) -> String {
    let secs = time.as_secs();
    if secs < 60 { format!("{secs}s") } else { format!("{}m{}s", secs / 60, secs % 60) }
}

/// Bytes as text, at most so many of them.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_OUTPUT)]).into_owned()
}

#[cfg(test)]
mod hook_tests;
#[cfg(test)]
mod tests;
