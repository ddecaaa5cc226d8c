//! The smallest HTTP client that reads the agent's own server: one GET, one connection, with limits on time and size.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

/// For the whole request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A picture of a full node is a few hundred KiB.
const MAX_BODY: usize = 64 << 20;

/// Where the agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// `host:port`.
    authority: String,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

impl FromStr for Server {
    type Err = ServerParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ServerParseError(text.to_owned());
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = authority.rsplit_once(':').ok_or_else(wrong)?;
        let valid = !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']) && port.parse::<u16>().is_ok();
        if valid { Ok(Self { authority: authority.to_owned() }) } else { Err(wrong()) }
    }
}

/// Not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the address of an agent: write http://IP:PORT")]
pub struct ServerParseError(String);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// Where.
        server: Server,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// It takes too long.
    #[error("{0} does not answer within 10 s")]
    Timeout(Server),
    /// The exchange broke off.
    #[error("the exchange with {server} broke off: {source}")]
    Exchange {
        /// Where.
        server: Server,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It does not want to.
    #[error("{server}{path} answers with status {status}: {body}")]
    Status {
        /// Where.
        server: Server,
        /// What was asked for.
        path: String,
        /// The status.
        status: u16,
        /// The beginning of its answer.
        body: String,
    },
    /// It answers something else.
    #[error("{server} answers what this beelet cannot read ({source}): is it another program, or another release?")]
    Answer {
        /// Where.
        server: Server,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

/// Status and body of a GET.
///
/// # Errors
/// If there is no answer.
pub async fn get_text(server: &Server, path: &str) -> Result<(u16, String), ClientError> {
    let exchange = tokio::time::timeout(TIMEOUT, exchange(server, path));
    exchange.await.unwrap_or_else(|_| Err(ClientError::Timeout(server.clone())))
}

/// The JSON of a GET.
///
/// # Errors
/// If there is no answer, or another one.
pub async fn get_json<T: DeserializeOwned>(server: &Server, path: &str) -> Result<T, ClientError> {
    let (status, body) = get_text(server, path).await?;
    if status != 200 {
        let body = body.chars().take(200).collect();
        return Err(ClientError::Status { server: server.clone(), path: path.to_owned(), status, body });
    }
    serde_json::from_str(&body).map_err(|source| ClientError::Answer { server: server.clone(), source })
}

async fn exchange(server: &Server, path: &str) -> Result<(u16, String), ClientError> {
    let broke =
        |source: Box<dyn std::error::Error + Send + Sync>| ClientError::Exchange { server: server.clone(), source };
    let stream = TcpStream::connect(&server.authority)
        .await
        .map_err(|source| ClientError::Connect { server: server.clone(), source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broke(e.into()))?;
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, &server.authority)
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| broke(e.into()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| broke(e.into()))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(broke)?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    // The connection ends with its only request; an error of its own shows in the answer.
    let (answer, _) = tokio::join!(answer, connection);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for good in ["http://127.0.0.1:10255", "http://[::1]:80/", "http://node:1"] {
            assert!(good.parse::<Server>().is_ok(), "{good}");
        }
        for bad in
            ["127.0.0.1:1", "https://a:1", "http://a", "http://:1", "http://a:99999", "http://a/b:1", "http://u@a:1"]
        {
            assert!(bad.parse::<Server>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_said() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server: Server = format!("http://{free}").parse().unwrap();
        let error = get_text(&server, "/").await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot connect to {server}: ")), "{error}");
    }
}
