//! Network: bytes and packets per cgroup, protocol and direction.
//!
//! **Approach.** Attached once at the pods' root; the kernel runs the programs for every socket below it, and the helper
//! names the socket's own cgroup. The length is that of the IP packet. The same packets tell what other modules want:
//! round-trip times ([`tcp`]), requests ([`request`]), names asked for ([`dns`]).
//!
//! **Properties.** A packet costs one look-up. What else is done for it: of TCP, one of [`RTT_SAMPLING`] received looks at
//! its socket's round-trip time, and those of served connections at the socket's storage, which is not there for others; of
//! UDP, the ports are read.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_sk_fullsock, bpf_skb_cgroup_id},
    macros::{cgroup_skb, map},
    maps::PerCpuHashMap,
    programs::SkBuffContext,
};
use beelet_ebpf::{Lost, NetRecord, RTT_SAMPLING, Traffic};

use crate::{dns, record, request, tcp};

/// The packet passes.
const PASS: i32 = 1;
/// Numbers of protocols (`IPPROTO_TCP`, `IPPROTO_UDP`).
pub const TCP: u32 = 6;
pub const UDP: u32 = 17;

#[map]
static NET: PerCpuHashMap<u64, NetRecord> = PerCpuHashMap::with_max_entries(8192, 0);

#[cgroup_skb(ingress)]
pub fn skb_ingress(ctx: SkBuffContext) -> i32 {
    packet::<false>(&ctx);
    PASS
}

#[cgroup_skb(egress)]
pub fn skb_egress(ctx: SkBuffContext) -> i32 {
    packet::<true>(&ctx);
    PASS
}

#[inline(always)]
fn packet<const OUT: bool>(ctx: &SkBuffContext) {
    // SAFETY: the context's own pointer.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    if cgroup == 0 {
        return;
    }
    let (protocol, socket) = socket_of(ctx);
    let mut sample = false;
    if let Some(record) = record::of_cpu(&NET, &cgroup, Lost::Net) {
        // SAFETY: the map gave a valid pointer to this CPU's own record; softirqs are off while the program runs.
        unsafe {
            sample = !OUT && is_sample((*record).tcp.rx_bytes);
            count::<OUT>(
                match protocol {
                    TCP => &raw mut (*record).tcp,
                    UDP => &raw mut (*record).udp,
                    _ => &raw mut (*record).other,
                },
                ctx,
            );
        }
    }
    match protocol {
        TCP => {
            // SAFETY: the socket is a full one, by `socket_of`.
            unsafe {
                if sample {
                    tcp::round_trip(cgroup, socket);
                }
                request::packet::<OUT>(ctx, socket);
            }
        }
        UDP => dns::packet::<OUT>(ctx, cgroup),
        _ => {}
    }
}

/// Whether a packet is one of the [`RTT_SAMPLING`], by the bytes that came before it. Multiples of the golden ratio spread evenly
/// over a circle, and so do those of every second or third: connections that take turns are looked at alike. Asking the
/// kernel for a random number would cost more than all the rest of the decision.
#[inline(always)]
fn is_sample(bytes: u64) -> bool {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    bytes.wrapping_mul(GOLDEN) < u64::MAX / RTT_SAMPLING as u64
}

/// The protocol of the packet's socket, and the socket; (0, null) if it has no full one.
#[inline(always)]
fn socket_of(ctx: &SkBuffContext) -> (u32, *mut bpf_sock) {
    // SAFETY: the context's fields while the program runs; the helper gives a full socket or null.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return (0, socket);
        }
        let full = bpf_sk_fullsock(socket);
        if full.is_null() { (0, full) } else { ((*full).protocol, full) }
    }
}

/// # Safety
/// `traffic` is part of this CPU's own record.
#[inline(always)]
unsafe fn count<const OUT: bool>(traffic: *mut Traffic, ctx: &SkBuffContext) {
    // SAFETY: the caller's word; the context is valid while the program runs.
    unsafe {
        // A buffer may stand for many packets.
        let packets = u64::from((*ctx.skb.skb).gso_segs).max(1);
        let bytes = u64::from(ctx.len());
        let traffic = &mut *traffic;
        if OUT {
            traffic.tx_bytes = traffic.tx_bytes.wrapping_add(bytes);
            traffic.tx_packets = traffic.tx_packets.wrapping_add(packets);
        } else {
            traffic.rx_bytes = traffic.rx_bytes.wrapping_add(bytes);
            traffic.rx_packets = traffic.rx_packets.wrapping_add(packets);
        }
    }
}

/// The IP header's length, if what follows is of this protocol; IPv6 without extension headers only.
#[inline(always)]
pub fn ip_header(ctx: &SkBuffContext, protocol: u32) -> Option<usize> {
    let head: [u8; 10] = ctx.load(0).ok()?;
    match head[0] >> 4 {
        4 if u32::from(head[9]) == protocol => Some(usize::from(head[0] & 0xf) * 4),
        6 if u32::from(head[6]) == protocol => Some(40),
        _ => None,
    }
}
