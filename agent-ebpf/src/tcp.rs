//! TCP: connections that begin, are accepted, fail; resets; segments sent again; round-trip times; listeners.
//!
//! **Approach.** The kernel tells each change of a TCP socket's state. A connection from here goes CLOSE, SYN_SENT,
//! ESTABLISHED; when the first was is kept by the socket's address. One from outside appears as a new socket in SYN_RECV, and
//! gets there in a softirq, on behalf of whoever runs: its cgroup is the socket's own, which it has from the listener, as it
//! has for all else here. The other tracepoints are one fact each.
//!
//! A listener's event names the process that called, and the cgroup of the socket, whoever closes it.
//!
//! **Properties.** These are rare against packets, so one record per cgroup for all CPUs and atomic additions serve. Sockets
//! outside the pods are left out, for their cgroups would fill the maps.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_ktime_get_ns,
        generated::{bpf_skc_to_tcp_sock, bpf_tcp_sock},
    },
    macros::{btf_tracepoint, map},
    maps::{HashMap, LruHashMap},
    programs::BtfTracePointContext,
};
use beelet_ebpf::{Event, Lost, OFFSET_UNKNOWN, PortKey, TcpRecord, flag, kind};

use crate::{
    kernel::{self, Object},
    network, record, request,
};

/// States of the kernel.
const ESTABLISHED: u32 = 1;
const SYN_SENT: u32 = 2;
const SYN_RECV: u32 = 3;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;

#[map]
static TCP: HashMap<u64, TcpRecord> = HashMap::with_max_entries(8192, record::NO_PREALLOC);

/// When each socket that connects began to; ktime by the socket's address.
#[map]
static CONNECTING: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn socket_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new) = (ctx.arg::<u64>(1) as u32, ctx.arg::<u64>(2) as u32);
    if old == new {
        return 0;
    }
    let socket: Object = ctx.arg(0);
    // SAFETY: by BTF the first argument is the sock, which is not null.
    unsafe {
        // The socket of an accepted connection begins as a copy of the listening one, and leaves its state for SYN_RECV
        // (inet_csk_clone_lock, net/ipv4/inet_connection_sock.c); a socket that ceases to listen is closed.
        if new == LISTEN || (old == LISTEN && new == CLOSE) {
            listener(&ctx, socket, new == LISTEN);
        } else if kernel::get::<u16>(socket, &kernel::SOCK_PROTOCOL).map(u32::from) == Some(network::TCP) {
            connection(socket, old, new);
        }
    }
    0
}

/// A connection's change.
///
/// # Safety
/// `socket` is the `sock` of the context.
#[inline(always)]
unsafe fn connection(socket: Object, old: u32, new: u32) {
    let address = socket as u64;
    // SAFETY: the caller's word; the record is one that the map gave.
    unsafe {
        match (old, new) {
            (CLOSE, SYN_SENT) => {
                let Some((_, record)) = record_of(socket) else { return };
                record::add(&raw mut (*record).connects, 1);
                // Without room the oldest goes, and is counted as lost when it is missed.
                let _ = CONNECTING.insert(address, bpf_ktime_get_ns(), 0);
            }
            (SYN_SENT, ESTABLISHED) => connected(socket),
            (SYN_SENT, CLOSE) => {
                let Some((_, record)) = record_of(socket) else { return };
                record::add(&raw mut (*record).connect_failures, 1);
                let _ = CONNECTING.remove(address);
            }
            (SYN_RECV, ESTABLISHED) => {
                if CONNECTING.get_ptr(address).is_some() {
                    // Both sides connected to each other at once.
                    return connected(socket);
                }
                let Some((cgroup, record)) = record_of(socket) else { return };
                record::add(&raw mut (*record).accepts, 1);
                request::serve(socket, PortKey { cgroup, port: u64::from(port(socket)) });
            }
            (_, CLOSE) => request::closed(socket),
            _ => {}
        }
    }
}

/// A connection from here has been established.
///
/// # Safety
/// As for [`connection`].
#[inline(always)]
unsafe fn connected(socket: Object) {
    let address = socket as u64;
    // SAFETY: the caller's word; values are those that the maps gave.
    unsafe {
        let Some((_, record)) = record_of(socket) else { return };
        match CONNECTING.get_ptr(address) {
            Some(began) => {
                record::observe(&raw mut (*record).connect, bpf_ktime_get_ns().saturating_sub(*began));
                let _ = CONNECTING.remove(address);
            }
            None => record::lost(Lost::Tcp),
        }
    }
}

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn tcp_retransmit(ctx: BtfTracePointContext) -> i32 {
    if kernel::RETRANSMIT_HAS_ERROR.load() == 1 && ctx.arg::<u64>(2) as i32 != 0 {
        return 0;
    }
    // SAFETY: by BTF the arguments are the sock and the sk_buff, neither of them null.
    unsafe {
        let (socket, buffer): (Object, Object) = (ctx.arg(0), ctx.arg(1));
        if let Some((_, record)) = record_of(socket) {
            let segments: u16 = kernel::get(buffer, &kernel::SKB_TCP_SEGMENTS).unwrap_or(1);
            record::add(&raw mut (*record).retransmits, u64::from(segments.max(1)));
        }
    }
    0
}

#[btf_tracepoint(function = "tcp_send_reset")]
pub fn tcp_send_reset(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: by BTF the first argument is the sock. Null where a packet belongs to none.
    unsafe {
        if let Some(socket) = kernel::present(ctx.arg(0))
            && let Some((_, record)) = record_of(socket)
        {
            record::add(&raw mut (*record).resets_sent, 1);
        }
    }
    0
}

#[btf_tracepoint(function = "tcp_receive_reset")]
pub fn tcp_receive_reset(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: as above.
    unsafe {
        if let Some(socket) = kernel::present(ctx.arg(0))
            && let Some((_, record)) = record_of(socket)
        {
            record::add(&raw mut (*record).resets_received, 1);
        }
    }
    0
}

/// The round-trip time of a connection, as TCP itself reckons it.
///
/// # Safety
/// `socket` is a full socket, from the context of a cgroup program.
#[inline(always)]
pub unsafe fn round_trip(cgroup: u64, socket: *mut bpf_sock) {
    // SAFETY: the caller's word; the helper gives a tcp_sock or null.
    unsafe {
        let tcp = bpf_tcp_sock(socket);
        if tcp.is_null() {
            return;
        }
        // In eighths of a microsecond; 0 before the first measurement.
        let eighths = (*tcp).srtt_us;
        if eighths != 0
            && let Some(record) = record::shared(&TCP, &cgroup, Lost::Tcp)
        {
            record::observe(&raw mut (*record).rtt, u64::from(eighths) * 125);
        }
    }
}

/// The id of the socket's cgroup and its record; `None` if it is not one of the pods', or there is no room, which is counted.
///
/// # Safety
/// `socket` is a `sock` of the context.
#[inline(always)]
unsafe fn record_of(socket: Object) -> Option<(u64, *mut TcpRecord)> {
    // SAFETY: the caller's word.
    unsafe {
        let cgroup = kernel::socket_cgroup(socket)?;
        let id = kernel::cgroup_id(cgroup)?;
        // Whoever has a record is in the pods, which is dear to find out.
        if let Some(record) = TCP.get_ptr_mut(id) {
            return Some((id, record));
        }
        if !kernel::is_in_pods(cgroup) {
            return None;
        }
        Some((id, record::shared(&TCP, &id, Lost::Tcp)?))
    }
}

/// A socket that listens, or ceases to. One outside of the pods is nobody's business.
///
/// # Safety
/// `socket` is the `sock` of the context.
#[inline(always)]
unsafe fn listener(ctx: &BtfTracePointContext, socket: Object, opened: bool) {
    // SAFETY: by BTF the first argument is the sock, whose sk_cgrp_data names a cgroup.
    let cgroup = unsafe { kernel::follow(socket, &kernel::SOCK_CGROUP) };
    let is_ours = match cgroup {
        // SAFETY: as above.
        Some(cgroup) => unsafe { kernel::is_in_pods(cgroup) },
        None => kernel::current_is_in_pods(),
    };
    if !is_ours {
        return;
    }
    let mut event: Event = record::event(if opened { kind::LISTEN_OPENED } else { kind::LISTEN_CLOSED });
    event.pid = ctx.pid();
    event.tgid = ctx.tgid();
    if let Ok(comm) = bpf_get_current_comm() {
        event.comm = comm;
    }
    // SAFETY: by BTF the first argument is the sock; fields by their own offsets and sizes.
    unsafe {
        event.port = port(socket);
        event.family = kernel::get(socket, &kernel::SOCK_FAMILY).unwrap_or(0);
        match cgroup {
            Some(cgroup) => event.cgroup_id = kernel::cgroup_id(cgroup).unwrap_or(0),
            None => {
                event.cgroup_id = bpf_get_current_cgroup_id();
                event.flags |= flag::CGROUP_OF_CURRENT;
            }
        }
    }
    record::emit(&event);
}

/// The local port. A socket whose port the kernel chose has already given it back when it closes; the port that it had told
/// the network is still there then.
///
/// # Safety
/// `socket` is the `sock` of the context.
#[inline(always)]
unsafe fn port(socket: Object) -> u16 {
    // SAFETY: sock.skc_num is a u16. The helper takes a sock and gives the tcp_sock that it is part of, or null.
    unsafe {
        let port: u16 = kernel::get(socket, &kernel::SOCK_PORT).unwrap_or(0);
        if port != 0 || kernel::TCP_SOCK_SPORT.load() == OFFSET_UNKNOWN {
            return port;
        }
        let tcp = bpf_skc_to_tcp_sock(socket.cast_mut().cast()).cast::<u8>().cast_const();
        if tcp.is_null() { 0 } else { u16::from_be(kernel::get(tcp, &kernel::TCP_SOCK_SPORT).unwrap_or(0)) }
    }
}
