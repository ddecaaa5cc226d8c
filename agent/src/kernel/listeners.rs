//! Which TCP ports are listened on in a network namespace.
//!
//! **Problem.** Events tell when a socket begins or ceases to listen; what listened before the agent came is unknown.
//!
//! **Approach.** `/proc/PID/net/tcp` and `tcp6` of any process in the namespace, through procfs.
//!
//! **Properties.** A process that is gone is `None`. Sockets of all processes of the namespace are told, as the pod's
//! containers share it; for a pod in the host's network that is the whole host.

use std::{collections::BTreeSet, io};

use procfs::{ProcError, net::TcpNetEntry, net::TcpState, process::Process};

/// The list of sockets cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the sockets of the network namespace of process {pid}: {source}")]
pub struct ListenersError {
    pid: u32,
    source: ProcError,
}

/// TCP ports, IPv4 and IPv6, that are listened on in the network namespace of this process; `None` if it is gone.
///
/// # Errors
/// If the list cannot be read for another reason.
pub fn listening_ports(pid: u32) -> Result<Option<BTreeSet<u16>>, ListenersError> {
    let mut ports = BTreeSet::new();
    let process = match present(i32::try_from(pid).map_or_else(|_| Err(ProcError::NotFound(None)), Process::new)) {
        Ok(Some(process)) => process,
        Ok(None) => return Ok(None),
        Err(source) => return Err(ListenersError { pid, source }),
    };
    let mut add = |entries: Vec<TcpNetEntry>| {
        ports.extend(entries.iter().filter(|it| it.state == TcpState::Listen).map(|it| it.local_address.port()));
    };
    match present(process.tcp()) {
        Ok(Some(entries)) => add(entries),
        Ok(None) => return Ok(None),
        Err(source) => return Err(ListenersError { pid, source }),
    }
    // A kernel without IPv6 has no such file.
    match present(process.tcp6()) {
        Ok(entries) => add(entries.unwrap_or_default()),
        Err(source) => return Err(ListenersError { pid, source }),
    }
    Ok(Some(ports))
}

fn present<T>(result: Result<T, ProcError>) -> Result<Option<T>, ProcError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(ProcError::NotFound(_)) => Ok(None),
        // ESRCH and EINVAL: the process went away between opening and reading (a zombie has no namespace).
        Err(ProcError::Io(error, _)) if is_race(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_race(error: &io::Error) -> bool {
    const ESRCH: i32 = rustix::io::Errno::SRCH.raw_os_error();
    const EINVAL: i32 = rustix::io::Errno::INVAL.raw_os_error();
    matches!(error.raw_os_error(), Some(ESRCH | EINVAL))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listener_is_seen_while_it_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let me = std::process::id();
        assert!(listening_ports(me).unwrap().unwrap().contains(&port));
        drop(listener);
        assert!(!listening_ports(me).unwrap().unwrap().contains(&port));
    }

    #[test]
    fn a_process_that_is_gone_is_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert_eq!(listening_ports(pid).unwrap(), None);
        assert_eq!(listening_ports(u32::MAX).unwrap(), None);
    }
}
