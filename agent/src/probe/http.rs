//! HTTP probes (pkg/probe/http/{http,request}.go): one GET, redirects on the same host followed.
//!
//! A status from 200 to 299 is yes, one from 300 to 399 that is not followed is yes with a warning, all else is no. No proxy, no
//! compression, no connection kept.

use std::time::Duration;

use beelet_core::probe::Answer;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT as AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use super::dial::{authority, dial, words};
use super::{FOREVER, HOOK_AGENT, MAX_OUTPUT, USER_AGENT, text, tls};

/// After so many redirects it is enough (Go's net/http).
const REDIRECTS: usize = 10;
/// Of an answer's head this much is read.
const MAX_HEAD: usize = 64 << 10;

/// Where to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query, as they are sent.
    pub(super) path: String,
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", authority(&self.host, self.port), self.path)
    }
}

impl Url {
    /// Where a redirect leads; whether it names a host.
    fn join(&self, location: &str) -> Option<(Self, bool)> {
        let location = location.split('#').next().unwrap_or_default();
        let absolute = if location.starts_with("//") {
            Some(format!("{}:{location}", if self.tls { "https" } else { "http" }))
        } else {
            location.contains("://").then(|| location.to_owned())
        };
        if let Some(absolute) = absolute {
            let uri: Uri = absolute.parse().ok()?;
            let tls = match uri.scheme_str()? {
                "http" => false,
                "https" => true,
                _ => return None,
            };
            let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
            let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
            let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
            return Some((Self { tls, host, port, path }, true));
        }
        let path = if location.starts_with('/') {
            location.to_owned()
        } else {
            let here = self.path.split('?').next().unwrap_or_default();
            match location.strip_prefix('?') {
                Some(query) => format!("{here}?{query}"),
                None => format!("{}/{location}", here.rsplit_once('/').map_or("", |(folder, _)| folder)),
            }
        };
        Some((Self { path: request_target(&path), ..self.clone() }, false))
    }
}

/// A path as it is sent: what has no place in a request's first line is percent-encoded, and it begins with a slash.
pub(super) fn request_target(path: &str) -> String {
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.split('#').next().unwrap_or_default().bytes() {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => target.push_str(&format!("%{byte:02X}")),
            b'!'..=b'~' => target.push(char::from(byte)),
            _ => target.push_str(&format!("%{byte:02X}")),
        }
    }
    target
}

/// What a probe sends by itself, and what it is told to.
fn headers(given: &[(String, String)], host: &str, agent: &'static str) -> Result<HeaderMap, String> {
    let mut made = HeaderMap::new();
    for (name, value) in given {
        let bad = |_| format!("net/http: invalid header field value for {name:?}");
        let key: HeaderName = name.parse().map_err(|_| format!("net/http: invalid header field name {name:?}"))?;
        // What belongs to the connection and not to the request.
        if !matches!(key.as_str(), "host" | "content-length" | "transfer-encoding" | "trailer" | "connection") {
            made.append(key, HeaderValue::from_bytes(value.as_bytes()).map_err(bad)?);
        }
    }
    for (name, default) in [(AGENT, agent), (ACCEPT, "*/*")] {
        match made.get(&name) {
            None => _ = made.insert(name, HeaderValue::from_static(default)),
            Some(empty) if empty.is_empty() => _ = made.remove(&name),
            Some(_) => {}
        }
    }
    made.insert(HOST, HeaderValue::from_str(host).map_err(|_| format!("http: invalid Host header {host:?}"))?);
    made.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(made)
}

/// How an exchange ended without an answer.
enum Broken {
    /// Before its head was there: an answer of no.
    Head(String),
    /// After that: an error, as upstream.
    Body(String),
}

/// Asks.
pub(super) async fn get(first: Url, given: &[(String, String)], timeout: Duration) -> Answer {
    match fetch(first, given, USER_AGENT, Instant::now() + timeout).await {
        Ok((status, body)) => verdict(status, &body),
        Err(Broken::Head(why)) => Answer::Failure(why),
        Err(Broken::Body(message)) => Answer::Error { state: "failure".to_owned(), message },
    }
}

/// Asks, and does not look at the answer. Ends when whoever waits for it gives it up.
pub(super) async fn answered(url: Url, given: &[(String, String)]) -> Result<(), String> {
    match fetch(url, given, HOOK_AGENT, Instant::now() + FOREVER).await {
        // The head is there.
        Ok(_) | Err(Broken::Body(_)) => Ok(()),
        Err(Broken::Head(why)) => Err(why),
    }
}

/// Status and body of what is there, or where it has moved to on the same host.
async fn fetch(
    first: Url,
    given: &[(String, String)],
    agent: &'static str,
    deadline: Instant,
) -> Result<(StatusCode, Vec<u8>), Broken> {
    let mut host = given.iter().find(|(name, _)| name.eq_ignore_ascii_case("host")).map(|(_, value)| value.clone());
    host = host.filter(|host| !host.is_empty());
    let mut url = first.clone();
    let no = |url: &Url, why: &str| Err(Broken::Head(format!("Get \"{url}\": {why}")));
    for hops in 1.. {
        let named = host.clone().unwrap_or_else(|| authority(&url.host, url.port));
        let sent = match headers(given, &named, agent) {
            Ok(headers) => headers,
            Err(why) => return no(&url, &why),
        };
        let (status, next, body) = match exchange(&url, sent, deadline).await {
            Ok(answered) => answered,
            Err(Broken::Head(why)) => return no(&url, &why),
            Err(body) => return Err(body),
        };
        let followed = matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308);
        let Some(location) = next.filter(|_| followed) else { return Ok((status, body)) };
        let Some((next, names_host)) = url.join(&location) else {
            return no(&url, &format!("failed to parse Location header {location:?}"));
        };
        if next.host != first.host {
            return Ok((status, body));
        }
        if hops >= REDIRECTS {
            return no(&next, "stopped after 10 redirects");
        }
        if names_host {
            host = None;
        }
        url = next;
    }
    no(&first, "stopped after 10 redirects")
}

fn verdict(status: StatusCode, body: &[u8]) -> Answer {
    match status.as_u16() {
        200..=299 => Answer::Success,
        300..=399 => Answer::Warning(format!("Probe terminated redirects, Response body: {}", text(body))),
        code => Answer::Failure(format!("HTTP probe failed with statuscode: {code}")),
    }
}

type Answered = (StatusCode, Option<String>, Vec<u8>);

async fn exchange(url: &Url, headers: HeaderMap, deadline: Instant) -> Result<Answered, Broken> {
    let late = || Broken::Head("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".to_owned());
    let connected = async {
        let stream = dial(&url.host, url.port).await?;
        let stream: Box<dyn Stream> =
            if url.tls { Box::new(tls::connect(stream, &url.host).await?) } else { Box::new(stream) };
        Ok(stream)
    };
    let stream = timeout_at(deadline, connected).await.map_err(|_| late())?.map_err(Broken::Head)?;
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.title_case_headers(true).max_buf_size(MAX_HEAD);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|error| Broken::Head(told(&error)))?;
    let answered = async {
        let mut request = Request::get(&url.path)
            .body(Empty::<Bytes>::new())
            .map_err(|_| Broken::Head(format!("invalid URL escape in {:?}", url.path)))?;
        *request.headers_mut() = headers;
        let response = timeout_at(deadline, sender.send_request(request)).await.map_err(|_| late())?;
        let response = response.map_err(|error| Broken::Head(told(&error)))?;
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        let (status, body) = (response.status(), timeout_at(deadline, read(response)).await);
        let body = body.map_err(|_| {
            let late = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
            Broken::Body(late.to_owned())
        })?;
        Ok((status, location, body.map_err(Broken::Body)?))
    };
    // On this very task, so that it ends with it.
    tokio::pin!(answered, connection);
    let mut open = true;
    loop {
        tokio::select! {
            answer = &mut answered => return answer,
            _ = &mut connection, if open => open = false,
        }
    }
}

/// The beginning of a body.
async fn read(response: Response<Incoming>) -> Result<Vec<u8>, String> {
    let (mut body, mut bytes) = (response.into_body(), Vec::new());
    while bytes.len() < MAX_OUTPUT
        && let Some(frame) = body.frame().await
    {
        if let Ok(data) = frame.map_err(|error| told(&error))?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    bytes.truncate(MAX_OUTPUT);
    Ok(bytes)
}

/// What went wrong, as Go writes it.
fn told(error: &hyper::Error) -> String {
    use std::error::Error as _;
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return "EOF".to_owned();
    }
    match error.source().and_then(|source| source.downcast_ref::<std::io::Error>()) {
        Some(io) => format!("read: {}", words(io)),
        None if error.is_parse() => format!("malformed HTTP response: {error}"),
        None => error.to_string(),
    }
}

/// Plain or encrypted.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
