//! Connections for probes.
//!
//! Problem: a probe each second leaves a connection in TIME-WAIT each second, and a minute's worth of them fills tables. Approach: as
//! the kubelet (pkg/probe/dialer_others.go): SO_LINGER of 1 s. With it, closing may block for so long, so a connection is closed on
//! a thread where that is allowed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use beelet_core::probe::Answer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// SO_LINGER. Not 0, which would throw away what was sent last.
const LINGER: Duration = Duration::from_secs(1);

/// A connection that closes itself without holding up who drops it.
#[derive(Debug)]
pub(super) struct Connection(Option<TcpStream>);

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(stream) = self.0.take().and_then(|stream| stream.into_std().ok()) else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(stream));
        }
    }
}

fn closed() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(stream) => Pin::new(stream).poll_read(cx, buf),
            None => Poll::Ready(Err(closed())),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.0 {
            Some(stream) => Pin::new(stream).poll_write(cx, buf),
            None => Poll::Ready(Err(closed())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(stream) => Pin::new(stream).poll_flush(cx),
            None => Poll::Ready(Err(closed())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(stream) => Pin::new(stream).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }
}

/// Connects to the first address of a host that answers. The error is in Go's words, without a limit on time.
pub(super) async fn dial(host: &str, port: u16) -> Result<Connection, String> {
    let looked_up = tokio::net::lookup_host((host, port)).await;
    let addresses = looked_up.map_err(|error| format!("dial tcp: lookup {host}: {}", words(&error)))?;
    let mut failed = format!("dial tcp: lookup {host}: no such host");
    for address in addresses {
        match connect(address).await {
            Ok(stream) => return Ok(Connection(Some(stream))),
            Err(error) => failed = format!("dial tcp {address}: connect: {}", words(&error)),
        }
    }
    Err(failed)
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    rustix::net::sockopt::set_socket_linger(&socket, Some(LINGER))?;
    socket.connect(address).await
}

/// What the system says, as Go writes it.
pub(super) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// `host:port`, with brackets where they belong.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Whether somebody listens (pkg/probe/tcp/tcp.go).
pub(super) async fn probe(host: &str, port: u16, timeout: Duration) -> Answer {
    match tokio::time::timeout(timeout, dial(host, port)).await {
        Ok(Ok(_)) => Answer::Success,
        Ok(Err(why)) => Answer::Failure(why),
        Err(_) => Answer::Failure(format!("dial tcp {}: i/o timeout", authority(host, port))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a5_4b_connections_linger_for_a_second_when_they_are_closed() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let connection =
            dial("127.0.0.1", server.local_addr().expect("its address").port()).await.expect("a connection");
        let stream = connection.0.as_ref().expect("it is open");
        assert_eq!(rustix::net::sockopt::socket_linger(stream).expect("the option"), Some(LINGER));
    }
}
