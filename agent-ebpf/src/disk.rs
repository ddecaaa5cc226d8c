//! Disks: requests per cgroup, device and kind, with how long they took.
//!
//! **Approach.** `block_rq_complete` tells each part of a request that a device has done, before its buffers are handed back, so
//! the request still has the cgroup for which it was made (`bio.bi_blkg`): that of the task that read, or that owned the page
//! which is written back now. A request whose owner the kernel does not know has the root cgroup. The kernel itself notes when
//! a request was made (`request.start_time_ns`).
//!
//! A device may do a request in parts: bytes are those of each part, the request is counted with its last one. Of a write that
//! asks for a flush of the device's cache before or after it the kernel tells the end twice, the second time without bytes and
//! with the segments that it had; an empty flush never had any.
//!
//! **Properties.** Nothing is filtered: where the IO controller is on v1, its cgroups say nothing about the pods' root, which
//! is on v2; and there are few cgroups that use a disk. A request without a time (`iostats` of the device is off, and it has no
//! scheduler) has its bytes counted, and is itself told as lost.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{btf_tracepoint, map},
    maps::HashMap,
    programs::BtfTracePointContext,
};
use beelet_ebpf::{DiskKey, DiskRecord, Lost, disk};

use crate::{
    kernel::{self, Object},
    record,
};

/// `REQ_OP_MASK` of the kernel.
const OPERATION: u32 = 0xff;
/// Its kinds of requests (`enum req_op` in `include/linux/blk_types.h`): those that io.stat takes for reads and writes.
const READ: u32 = 0;
const WRITE: u32 = 1;
const ZONE_APPEND: u32 = 7;
const WRITE_ZEROES: u32 = 9;

#[map]
static DISK: HashMap<DiskKey, DiskRecord> = HashMap::with_max_entries(4096, 0);

#[btf_tracepoint(function = "block_rq_complete")]
pub fn disk_request(ctx: BtfTracePointContext) -> i32 {
    let request: Object = ctx.arg(0);
    let (failed, bytes) = (ctx.arg::<u64>(1) as u32 != 0, ctx.arg::<u64>(2) as u32);
    // SAFETY: by BTF the arguments are the request, its status, and how many bytes are done; fields by their own offsets and
    // sizes.
    unsafe {
        let Some(cgroup) = owner(request) else { return 0 };
        let operation = match kernel::get::<u32>(request, &kernel::RQ_FLAGS).unwrap_or(0) & OPERATION {
            READ => disk::READ,
            WRITE | ZONE_APPEND | WRITE_ZEROES => disk::WRITE,
            _ => disk::OTHER,
        };
        let left: u32 = kernel::get(request, &kernel::RQ_BYTES).unwrap_or(0);
        let segments: u16 = kernel::get(request, &kernel::RQ_SEGMENTS).unwrap_or(0);
        let is_end = if bytes == 0 { segments == 0 } else { bytes >= left };
        if bytes == 0 && !is_end {
            return 0;
        }
        let key = DiskKey { cgroup, device: device(request).unwrap_or(0), op: operation };
        let Some(record) = record::shared(&DISK, &key, Lost::Disk) else { return 0 };
        record::add(&raw mut (*record).bytes, u64::from(bytes));
        if !is_end {
            return 0;
        }
        if failed {
            record::add(&raw mut (*record).errors, 1);
        }
        match kernel::get::<u64>(request, &kernel::RQ_START) {
            None | Some(0) => record::lost(Lost::Disk),
            Some(start) => {
                let now = bpf_ktime_get_ns();
                // The kernel reads the clock once for requests that are made together, perhaps a moment after this CPU's.
                let took = if now > start { now - start } else { 0 };
                record::observe(&raw mut (*record).latency, took);
            }
        }
    }
    0
}

/// The id of the cgroup for which a request was made; `None` for one without data and owner, such as the device's own flush.
///
/// # Safety
/// `request` is the `request` of the context.
#[inline(always)]
unsafe fn owner(request: Object) -> Option<u64> {
    // SAFETY: request.bio is a bio, its bi_blkg a blkcg_gq, its blkcg one, whose css.cgroup is a cgroup.
    unsafe {
        let bio = kernel::follow(request, &kernel::RQ_BIO)?;
        let group = kernel::follow(kernel::follow(bio, &kernel::BIO_BLKG)?, &kernel::BLKG_BLKCG)?;
        kernel::cgroup_id(kernel::follow(group, &kernel::BLKCG_CGROUP)?)
    }
}

/// The kernel's number of the device (the whole disk, not the partition).
///
/// # Safety
/// As for [`owner`].
#[inline(always)]
unsafe fn device(request: Object) -> Option<u32> {
    // SAFETY: request.q is a request_queue, its disk a gendisk with two ints.
    unsafe {
        let disk = kernel::follow(kernel::follow(request, &kernel::RQ_QUEUE)?, &kernel::QUEUE_DISK)?;
        let major: u32 = kernel::get(disk, &kernel::DISK_MAJOR)?;
        let minor: u32 = kernel::get(disk, &kernel::DISK_MINOR)?;
        Some(major << 20 | minor)
    }
}
