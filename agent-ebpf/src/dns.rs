//! DNS over UDP: what a pod asks port 53, what comes back and when.
//!
//! **Approach.** A query is remembered by its socket and its id until the answer comes. The same question sent again, because
//! no answer came, does not start the time anew.
//!
//! **Properties.** A server's own side (packets to its port 53) is not counted, nor is DNS over TCP. Queries minus answers
//! have not been answered (yet). 4096 may wait for an answer at once; of more, the oldest are forgotten, and their answers
//! are not counted.

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_ktime_get_ns, generated::bpf_get_socket_cookie},
    macros::map,
    maps::{HashMap, LruHashMap},
    programs::SkBuffContext,
};
use beelet_ebpf::{DnsRecord, Lost};

use crate::{network, record};

const DNS_PORT: u16 = 53;
/// `NXDOMAIN`.
const NO_SUCH_NAME: u8 = 3;
/// Nobody waits longer for an answer (glibc gives up after 5 s, or 30 s by configuration); an id used again is a new question.
const PATIENCE_NS: u64 = 30_000_000_000;

#[map]
static DNS: HashMap<u64, DnsRecord> = HashMap::with_max_entries(8192, record::NO_PREALLOC);

#[repr(C)]
struct Question {
    /// The kernel's number of the socket, which is never used again.
    socket: u64,
    id: u64,
}

/// When each open question was asked, in ktime.
#[map]
static ASKED: LruHashMap<Question, u64> = LruHashMap::with_max_entries(4096, 0);

/// A packet of a UDP socket.
#[inline(always)]
pub fn packet<const OUT: bool>(ctx: &SkBuffContext, cgroup: u64) {
    let Some(udp) = network::ip_header(ctx, network::UDP) else { return };
    let Ok(ports) = ctx.load::<[u16; 2]>(udp) else { return };
    // The other side's.
    if ports[usize::from(OUT)] != DNS_PORT.to_be() {
        return;
    }
    // Behind 8 bytes of UDP: the id, then a byte whose highest bit says that it is an answer, then one that ends in the code.
    let Ok(head) = ctx.load::<[u8; 4]>(udp + 8) else { return };
    if OUT == (head[2] & 0x80 != 0) {
        return;
    }
    // SAFETY: the context's own pointer; records and values are those that the maps gave.
    unsafe {
        let id = u64::from(u16::from_be_bytes([head[0], head[1]]));
        let question = Question { socket: bpf_get_socket_cookie(ctx.as_ptr()), id };
        let asked = ASKED.get_ptr(&question).map(|at| *at);
        let now = bpf_ktime_get_ns();
        if OUT {
            let Some(record) = record::shared(&DNS, &cgroup, Lost::Dns) else { return };
            record::add(&raw mut (*record).queries, 1);
            if asked.is_none_or(|at| now.saturating_sub(at) > PATIENCE_NS) && ASKED.insert(&question, now, 0).is_err() {
                record::lost(Lost::Dns);
            }
            return;
        }
        let Some(asked) = asked else { return };
        let _ = ASKED.remove(&question);
        let Some(record) = record::shared(&DNS, &cgroup, Lost::Dns) else { return };
        record::add(&raw mut (*record).answers, 1);
        match head[3] & 0xf {
            0 => {}
            NO_SUCH_NAME => record::add(&raw mut (*record).no_such_name, 1),
            _ => record::add(&raw mut (*record).errors, 1),
        }
        record::observe(&raw mut (*record).latency, now.saturating_sub(asked));
    }
}
