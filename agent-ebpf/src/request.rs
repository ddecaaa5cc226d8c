//! Requests over TCP at the ports that a pod serves, and how long the first byte of the answer takes.
//!
//! **Approach.** An accepted socket is marked in its own storage, with its cgroup and port. A packet with payload that comes
//! in while no request is open opens one; the first that goes out with payload closes it. Of what is sent only the first
//! bytes are looked at, for a status line of HTTP/1. Encrypted or unknown protocols are requests and answers all the same.
//!
//! Bytes that were already received (sent again by a peer that missed our acknowledgement) open nothing, and bytes that we
//! send again close nothing: the sequence numbers tell. What comes in and what goes out may run on two CPUs at once for one
//! socket; then a request is counted twice or a time is off by that moment, no more.
//!
//! **Properties.** A cgroup has records for its first [`MOST_PORTS`] ports; all further ones share one, so that who serves ports
//! that change all the time (passive FTP) takes no room from others. Connections accepted before the programs were loaded are
//! not seen. A packet of another socket costs a look for a storage that is not there.

use aya_ebpf::{
    bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    btf_maps::SkStorage,
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_sk_storage_get, bpf_tcp_sock},
    },
    macros::{btf_map, map},
    maps::{HashMap, LruHashMap},
    programs::SkBuffContext,
};
use beelet_ebpf::{Lost, MOST_PORTS, OTHER_PORTS, PortKey, PortRecord};

use crate::{kernel::Object, network, record};

#[map]
static PORTS: HashMap<PortKey, PortRecord> = HashMap::with_max_entries(4096, record::NO_PREALLOC);

/// How many ports of a cgroup have a record of their own. It empties itself: of cgroups that are gone nobody asks any more.
#[map]
static PORTS_OF: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// What is kept in a served connection's socket.
#[repr(C)]
pub struct Served {
    cgroup: u64,
    port: u64,
    /// When the open request began, in ktime; 0 if none is open.
    open_ns: u64,
}

#[btf_map]
static SERVED: SkStorage<Served> = SkStorage::new();

/// The storage of a socket; null if there is none.
///
/// # Safety
/// `socket` is a socket that the verifier takes for one, `value` null or what a new storage begins as.
#[inline(always)]
unsafe fn storage(socket: *mut core::ffi::c_void, value: Option<&mut Served>) -> *mut Served {
    let (value, flags) = match value {
        Some(value) => (core::ptr::from_mut(value).cast(), u64::from(BPF_SK_STORAGE_GET_F_CREATE)),
        None => (core::ptr::null_mut(), 0),
    };
    // SAFETY: the map's own address and the caller's word.
    unsafe { bpf_sk_storage_get((&raw const SERVED).cast_mut().cast(), socket, value, flags).cast() }
}

/// Marks an accepted socket.
///
/// # Safety
/// `socket` is the `sock` of the context.
#[inline(always)]
pub unsafe fn serve(socket: Object, key: PortKey) {
    let mut served = Served { cgroup: key.cgroup, port: key.port, open_ns: 0 };
    // SAFETY: the caller's word.
    if unsafe { storage(socket.cast_mut().cast(), Some(&mut served)) }.is_null() {
        record::lost(Lost::Ports);
    }
}

/// A connection has ended.
///
/// # Safety
/// `socket` is the `sock` of the context.
#[inline(always)]
pub unsafe fn closed(socket: Object) {
    // SAFETY: the caller's word; storage and record are valid if they are not null.
    unsafe {
        let served = storage(socket.cast_mut().cast(), None);
        if served.is_null() || (*served).open_ns == 0 {
            return;
        }
        (*served).open_ns = 0;
        if let Some(record) = record_of(served) {
            record::add(&raw mut (*record).unanswered, 1);
        }
    }
}

/// A packet of a TCP socket.
///
/// # Safety
/// `socket` is a full socket, from the context of a cgroup program.
#[inline(always)]
pub unsafe fn packet<const OUT: bool>(ctx: &SkBuffContext, socket: *mut bpf_sock) {
    // SAFETY: the caller's word; storage and record are valid if they are not null.
    unsafe {
        let served = storage(socket.cast(), None);
        if served.is_null() {
            return;
        }
        let open_ns = (*served).open_ns;
        // The rest of a request, and the rest of an answer.
        if OUT == (open_ns == 0) {
            return;
        }
        let Some(payload) = payload(ctx) else { return };
        if !is_new::<OUT>(&payload, socket) {
            return;
        }
        let now = bpf_ktime_get_ns();
        (*served).open_ns = if OUT { 0 } else { now };
        let Some(record) = record_of(served) else { return };
        if !OUT {
            record::add(&raw mut (*record).requests, 1);
            return;
        }
        record::observe(&raw mut (*record).latency, now.saturating_sub(open_ns));
        if let Some(class) = http_class(ctx, &payload) {
            record::add((&raw mut (*record).http).cast::<u64>().add(class), 1);
        }
    }
}

/// # Safety
/// `served` is a storage that is not null.
#[inline(always)]
unsafe fn record_of(served: *const Served) -> Option<*mut PortRecord> {
    // SAFETY: the caller's word.
    let mut key = unsafe { PortKey { cgroup: (*served).cgroup, port: (*served).port } };
    if let Some(record) = PORTS.get_ptr_mut(key) {
        return Some(record);
    }
    let ports = PORTS_OF.get_ptr_mut(key.cgroup);
    // SAFETY: the map gave a valid pointer.
    if ports.is_some_and(|ports| unsafe { *ports } >= MOST_PORTS) {
        key.port = OTHER_PORTS;
        return record::shared(&PORTS, &key, Lost::Ports);
    }
    let record = record::shared(&PORTS, &key, Lost::Ports)?;
    // Only what has a record counts. Two ports that are new at once may count as one, or a port as two.
    match ports {
        // SAFETY: as above.
        Some(ports) => unsafe { record::add(ports, 1) },
        None => {
            let _ = PORTS_OF.insert(key.cgroup, 1, record::NO_REPLACE);
        }
    }
    Some(record)
}

/// What a TCP packet carries.
struct Payload {
    /// Where it begins in the packet.
    offset: usize,
    /// Its length, not 0.
    length: u32,
    /// Sequence number of its first byte.
    sequence: u32,
}

#[inline(always)]
fn payload(ctx: &SkBuffContext) -> Option<Payload> {
    let tcp = network::ip_header(ctx, network::TCP)?;
    let head: [u32; 4] = ctx.load(tcp).ok()?;
    // The length of the header in words of four bytes is in the high half of byte 12.
    let offset = tcp + usize::from(head[3].to_ne_bytes()[0] >> 4) * 4;
    let length = ctx.len().checked_sub(offset as u32)?;
    if length == 0 { None } else { Some(Payload { offset, length, sequence: u32::from_be(head[1]) }) }
}

/// Whether bytes that come in were not received yet, or bytes that go out were not sent yet. The kernel moves its numbers
/// only after the program has seen the packet.
///
/// # Safety
/// As for [`packet`].
#[inline(always)]
unsafe fn is_new<const OUT: bool>(payload: &Payload, socket: *mut bpf_sock) -> bool {
    // SAFETY: the caller's word; the helper gives a tcp_sock or null.
    unsafe {
        let tcp = bpf_tcp_sock(socket);
        if tcp.is_null() {
            return false;
        }
        if OUT {
            payload.sequence.wrapping_sub((*tcp).snd_nxt) as i32 >= 0
        } else {
            payload.sequence.wrapping_add(payload.length).wrapping_sub((*tcp).rcv_nxt) as i32 > 0
        }
    }
}

/// The class of an HTTP/1 status at the begin of the payload: 0 for 1xx to 4 for 5xx.
#[inline(always)]
fn http_class(ctx: &SkBuffContext, payload: &Payload) -> Option<usize> {
    // "HTTP/1.1 200"
    let head: [u8; 12] = ctx.load(payload.offset).ok()?;
    if head[..7] != *b"HTTP/1." || head[8] != b' ' {
        return None;
    }
    record::bounded::<5>(usize::from(head[9].wrapping_sub(b'1')))
}
