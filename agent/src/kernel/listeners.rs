//! Which TCP ports are listened on in this thread's network namespace, and how many connections wait there.
//!
//! **Problem.** Events tell when a socket begins or ceases to listen; what listened before the agent came, and how full its queue
//! is, nobody tells.
//!
//! **Approach.** Netlink ([`super::sock_diag`]); where the kernel lacks it, `/proc/thread-self/net/tcp` and `tcp6`.
//!
//! **Properties.** Sockets of all processes of the namespace are told, as the containers of a pod share it. Sockets of one port
//! (both families, `SO_REUSEPORT`) are added up. The files do not tell how many may wait: that is `None` then.
//!
//! Cost of both sources, 6.18 on 2 vCPUs, debug build, one listener and 0 / 20 000 established connections in *another* namespace:
//! see `measure::network`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use super::sock_diag::{self, ListenSocket, SockDiagError};

/// The listening sockets cannot be found out.
#[derive(Debug, thiserror::Error)]
pub enum ListenersError {
    /// By netlink.
    #[error(transparent)]
    Netlink(#[from] SockDiagError),
    /// By the files.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A port that is listened on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenPort {
    /// The port.
    pub port: u16,
    /// Connections that wait to be accepted.
    pub waiting: u32,
    /// So many may wait; `None` where the kernel does not tell.
    pub most: Option<u32>,
}

/// Where listening sockets are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Netlink.
    Netlink,
    /// The files of /proc.
    Files,
}

/// All ports that are listened on in the network namespace of the calling thread, sorted.
///
/// # Errors
/// See [`ListenersError`]; after [`SockDiagError::Missing`] the files are to be asked.
pub fn listening(source: Source) -> Result<Vec<ListenPort>, ListenersError> {
    let sockets = match source {
        Source::Netlink => sock_diag::listening()?,
        Source::Files => by_files()?,
    };
    let mut ports: BTreeMap<u16, ListenPort> = BTreeMap::new();
    for socket in sockets {
        ports
            .entry(socket.port)
            .and_modify(|sum| {
                sum.waiting = sum.waiting.saturating_add(socket.waiting);
                sum.most = sum.most.zip(socket.most).map(|(a, b)| a.saturating_add(b));
            })
            .or_insert(ListenPort { port: socket.port, waiting: socket.waiting, most: socket.most });
    }
    Ok(ports.into_values().collect())
}

/// TCP ports, IPv4 and IPv6, that are listened on in the network namespace of this process; `None` if it is gone.
///
/// # Errors
/// If the list cannot be read for another reason.
pub fn listening_ports(pid: u32) -> Result<Option<std::collections::BTreeSet<u16>>, ListenersError> {
    let mut ports = std::collections::BTreeSet::new();
    for name in ["tcp", "tcp6"] {
        let file = match File::open(format!("/proc/{pid}/net/{name}")) {
            Ok(file) => file,
            Err(_) if name == "tcp" => return Ok(None),
            Err(_) => continue,
        };
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            ports.extend(socket_of(&line).map(|socket| socket.port));
        }
    }
    Ok(Some(ports))
}

fn by_files() -> Result<Vec<ListenSocket>, ListenersError> {
    let mut found = Vec::new();
    for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let failed = |source| ListenersError::File { path, source };
        let file = match File::open(path) {
            Ok(file) => file,
            // A kernel without IPv6 has no such file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        let mut lines = BufReader::with_capacity(32 << 10, file);
        let mut line = String::new();
        while lines.read_line(&mut line).map_err(failed)? > 0 {
            found.extend(socket_of(&line));
            line.clear();
        }
    }
    Ok(found)
}

/// A line of `net/tcp`: number, local address, remote address, state, `tx_queue:rx_queue`, all hexadecimal; of a listener rx_queue is
/// what waits (net/ipv4/tcp_ipv4.c, `get_tcp4_sock`). `None` if it is of no listener.
fn socket_of(line: &str) -> Option<ListenSocket> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (_, port) = words.next()?.rsplit_once(':')?;
    let state = words.nth(1)?;
    let (_, waiting) = words.next()?.split_once(':')?;
    if state != "0A" {
        return None;
    }
    let (port, waiting) = (u16::from_str_radix(port, 16).ok()?, u32::from_str_radix(waiting, 16).ok()?);
    Some(ListenSocket { port, waiting, most: None })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn both_sources_see_a_listener_and_what_waits_there_while_it_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let find = |source| listening(source).unwrap().into_iter().find(|found| found.port == address.port());
        let clients: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        // std listens with a queue of 128 (or SOMAXCONN, where that is lower).
        let expected = ListenPort { port: address.port(), waiting: 3, most: Some(128) };
        assert_eq!(find(Source::Netlink), Some(expected));
        assert_eq!(find(Source::Files), Some(ListenPort { most: None, ..expected }));
        drop((clients, listener));
        assert_eq!((find(Source::Netlink), find(Source::Files)), (None, None));
    }

    #[test]
    fn sockets_of_both_families_on_one_port_are_added_up() {
        let four = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = four.local_addr().unwrap().port();
        let Ok(_six) = TcpListener::bind(("::1", port)) else {
            return eprintln!("skipped: this machine has no IPv6 loopback");
        };
        let _client = TcpStream::connect(("::1", port)).unwrap();
        let found = listening(Source::Netlink).unwrap().into_iter().find(|found| found.port == port);
        assert_eq!(found, Some(ListenPort { port, waiting: 1, most: Some(256) }));
    }

    #[test]
    fn a_line_is_understood() {
        let line = "   0: 0100007F:8057 00000000:0000 0A 00000000:00000011 00:00000000 00000000     0        0 1 1";
        assert_eq!(socket_of(line), Some(ListenSocket { port: 0x8057, waiting: 17, most: None }));
        assert_eq!(socket_of(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(socket_of("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in "[0-9A-F: x]{0,60}") {
            let _ = socket_of(&line);
        }
    }
}
