//! Packets of sockets that the kernel dropped, by its reason.
//!
//! **Approach.** `kfree_skb` tells each buffer that is freed without having been used. Its socket is the one that it was
//! about to be given to, which kernels from 6.11 on name in an argument, or else the one in the buffer: that of the sender on
//! the way out, on the way in only where the stack found it early (connected sockets).
//!
//! **Properties.** Sockets other than of IPv4 and IPv6 are left out (for them a freed buffer is no lost packet), and those
//! outside the pods.

use aya_ebpf::{
    macros::{btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};
use beelet_ebpf::{DropKey, Lost};

use crate::{
    kernel::{self, Object},
    record,
};

/// `AF_INET`, `AF_INET6`.
const IPV4: u16 = 2;
const IPV6: u16 = 10;

#[map]
static DROPS: HashMap<DropKey, u64> = HashMap::with_max_entries(8192, record::NO_PREALLOC);

#[btf_tracepoint(function = "kfree_skb")]
pub fn packet_drop(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: by BTF the arguments are the sk_buff, a place in the code, the reason and a sock or null.
    unsafe {
        let receiver = if kernel::DROP_HAS_SOCKET.load() == 1 { kernel::present(ctx.arg(3)) } else { None };
        match receiver {
            Some(socket) => count(&ctx, socket),
            None => {
                if let Some(socket) = kernel::follow(ctx.arg::<Object>(0), &kernel::SKB_SOCK) {
                    count(&ctx, socket);
                }
            }
        }
    }
    0
}

/// # Safety
/// `socket` is a `sock` of the context.
#[inline(always)]
unsafe fn count(ctx: &BtfTracePointContext, socket: Object) {
    // SAFETY: sock.skc_family is a u16; the rest is the caller's word.
    unsafe {
        if !matches!(kernel::get::<u16>(socket, &kernel::SOCK_FAMILY), Some(IPV4 | IPV6)) {
            return;
        }
        let Some(cgroup) = kernel::socket_cgroup(socket) else { return };
        let Some(id) = kernel::cgroup_id(cgroup) else { return };
        let reason = if kernel::DROP_HAS_REASON.load() == 1 { u64::from(ctx.arg::<u64>(2) as u32) } else { 0 };
        let key = DropKey { cgroup: id, reason };
        let number = match DROPS.get_ptr_mut(key) {
            Some(number) => number,
            // Whoever has a record is in the pods, which is dear to find out.
            None if !kernel::is_in_pods(cgroup) => return,
            None => match record::shared(&DROPS, &key, Lost::Drops) {
                Some(number) => number,
                None => return,
            },
        };
        record::add(number, 1);
    }
}
