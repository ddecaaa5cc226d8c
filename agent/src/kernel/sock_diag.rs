//! What listens in this thread's network namespace, by netlink.
//!
//! **Problem.** `/proc/net/tcp` walks every socket of the machine's hash table, whatever the namespace, to find the few that listen,
//! and does not tell how many connections a listener lets wait.
//!
//! **Approach.** `SOCK_DIAG_BY_FAMILY` dumps of TCP over IPv4 and IPv6, asked for the state LISTEN only: the kernel then goes through
//! its table of listeners and returns before the one of connections (net/ipv4/inet_diag.c, `inet_diag_dump_icsk`, 6.1 and 6.18).
//!
//! **Properties.** For a listener, `recv_queue` is the number of connections that wait to be accepted and `send_queue` the most that
//! may. No call waits: the kernel answers a dump while it is asked. A kernel without the module (`tcp_diag`) is
//! [`SockDiagError::Missing`]; the next best is [`super::listeners`]' reading of files.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

/// The sockets cannot be asked for.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// The kernel has no such interface.
    #[error("the kernel does not tell listening sockets by netlink (module tcp_diag): {0}")]
    Missing(io::Error),
    /// The socket does not work.
    #[error("listening sockets cannot be asked for by netlink: {0}")]
    Socket(io::Error),
    /// The answer makes no sense.
    #[error("the kernel's answer about listening sockets cannot be understood: {0}")]
    Answer(String),
}

/// One socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenSocket {
    /// The port.
    pub port: u16,
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// So many may wait; `None` where the source does not tell. (The kernel refuses when there are more than that.)
    pub most: Option<u32>,
}

/// All TCP sockets that listen in the network namespace of the calling thread. The socket that asks is closed on return.
///
/// # Errors
/// See [`SockDiagError`].
pub fn listening() -> Result<Vec<ListenSocket>, SockDiagError> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(|error| match error.raw_os_error() {
        Some(PROTONOSUPPORT | AFNOSUPPORT) => SockDiagError::Missing(error),
        _ => SockDiagError::Socket(error),
    })?;
    socket.bind_auto().map_err(SockDiagError::Socket)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(SockDiagError::Socket)?;
    let mut found = Vec::new();
    let mut buffer = Vec::with_capacity(BUFFER);
    dump(&socket, AF_INET, &mut buffer, &mut found)?;
    match dump(&socket, AF_INET6, &mut buffer, &mut found) {
        // A kernel without IPv6.
        Ok(()) | Err(SockDiagError::Missing(_)) => Ok(found),
        Err(error) => Err(error),
    }
}

/// The kernel fills at most 32 KiB of a dump's buffer at once (net/netlink/af_netlink.c).
const BUFFER: usize = 32 << 10;
const NOENT: i32 = rustix::io::Errno::NOENT.raw_os_error();
const PROTONOSUPPORT: i32 = rustix::io::Errno::PROTONOSUPPORT.raw_os_error();
const AFNOSUPPORT: i32 = rustix::io::Errno::AFNOSUPPORT.raw_os_error();

fn dump(socket: &Socket, family: u8, buffer: &mut Vec<u8>, found: &mut Vec<ListenSocket>) -> Result<(), SockDiagError> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    };
    let mut packet = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(SockDiagError::Socket)?;
    loop {
        buffer.clear();
        let dont_wait = i32::try_from(rustix::net::RecvFlags::DONTWAIT.bits()).unwrap_or(0);
        let size = match socket.recv(buffer, dont_wait) {
            Ok(size) => size,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SockDiagError::Socket(error)),
        };
        let mut rest = buffer.get(..size).unwrap_or_default();
        if rest.is_empty() {
            return Err(SockDiagError::Answer("it is empty".to_owned()));
        }
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| SockDiagError::Answer(error.to_string()))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let header = response.header;
                    found.push(ListenSocket {
                        port: header.socket_id.source_port,
                        waiting: header.recv_queue,
                        most: Some(header.send_queue),
                    });
                }
                NetlinkPayload::Error(error) => {
                    let error = error.to_io();
                    let missing = error.raw_os_error() == Some(NOENT);
                    return Err(if missing { SockDiagError::Missing(error) } else { SockDiagError::Socket(error) });
                }
                _ => {}
            }
            // Messages are padded to four bytes.
            let length = usize::try_from(message.header.length).unwrap_or(usize::MAX).max(1).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
