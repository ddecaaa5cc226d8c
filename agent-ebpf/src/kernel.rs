//! Fields of kernel structs, found by offsets that the agent reads from BTF.
//!
//! **Approach.** A [`Global`] per field. The loader freezes them in `.rodata`, so the verifier sees a constant added to a
//! typed kernel pointer, checks that a field of that size is there, and lets a plain load through; a fault (a null or freed
//! object) reads 0. A field that this kernel does not have is [`OFFSET_UNKNOWN`], and [`get`] gives `None`.

use aya_ebpf::{Global, helpers::generated::bpf_get_current_ancestor_cgroup_id};
use beelet_ebpf::OFFSET_UNKNOWN;

macro_rules! globals {
    ($($name:ident = $default:expr),* $(,)?) => {
        $(#[unsafe(no_mangle)] pub static $name: Global<u64> = Global::new($default);)*
    };
}

globals! {
    PODS_ROOT_ID = 0,
    PODS_ROOT_LEVEL = 0,
    SWITCH_HAS_STATE = 0,
    STORAGE_IN_SWITCH = 0,
    VICTIM_IS_TASK = 0,
    EXIT_HAS_GROUP_DEAD = 0,
    TASK_PID = OFFSET_UNKNOWN,
    TASK_TGID = OFFSET_UNKNOWN,
    TASK_SUM_EXEC = OFFSET_UNKNOWN,
    TASK_PREV_SUM_EXEC = OFFSET_UNKNOWN,
    TASK_RUN_DELAY = OFFSET_UNKNOWN,
    TASK_STINTS = OFFSET_UNKNOWN,
    TASK_STATE = OFFSET_UNKNOWN,
    TASK_EXIT_STATE = OFFSET_UNKNOWN,
    TASK_THROTTLED = OFFSET_UNKNOWN,
    TASK_CFS_RQ = OFFSET_UNKNOWN,
    CFS_RQ_THROTTLED = OFFSET_UNKNOWN,
    TASK_PRIO = OFFSET_UNKNOWN,
    TASK_COMM = OFFSET_UNKNOWN,
    TASK_EXIT_CODE = OFFSET_UNKNOWN,
    TASK_START_TIME = OFFSET_UNKNOWN,
    TASK_GROUP_LEADER = OFFSET_UNKNOWN,
    TASK_SIGNAL = OFFSET_UNKNOWN,
    TASK_MM = OFFSET_UNKNOWN,
    TASK_CGROUPS = OFFSET_UNKNOWN,
    TASK_THREAD_PID = OFFSET_UNKNOWN,
    SIGNAL_LIVE = OFFSET_UNKNOWN,
    SIGNAL_FLAGS = OFFSET_UNKNOWN,
    SIGNAL_GROUP_EXIT_CODE = OFFSET_UNKNOWN,
    SIGNAL_OOM_MM = OFFSET_UNKNOWN,
    SIGNAL_OOM_SCORE_ADJ = OFFSET_UNKNOWN,
    MM_RSS_FILE = OFFSET_UNKNOWN,
    MM_RSS_ANON = OFFSET_UNKNOWN,
    MM_RSS_SHMEM = OFFSET_UNKNOWN,
    CSS_SET_DFL_CGRP = OFFSET_UNKNOWN,
    CGROUP_KN = OFFSET_UNKNOWN,
    KERNFS_NODE_ID = OFFSET_UNKNOWN,
    PID_LEVEL = OFFSET_UNKNOWN,
    PID_NUMBERS = OFFSET_UNKNOWN,
    UPID_SIZE = 16,
    SOCK_PORT = OFFSET_UNKNOWN,
    SOCK_FAMILY = OFFSET_UNKNOWN,
    SOCK_CGROUP = OFFSET_UNKNOWN,
    TCP_SOCK_SPORT = OFFSET_UNKNOWN,
    SOCK_PROTOCOL = OFFSET_UNKNOWN,
    SOCK_STATE = OFFSET_UNKNOWN,
    SKB_SOCK = OFFSET_UNKNOWN,
    SKB_TCP_SEGMENTS = OFFSET_UNKNOWN,
    CGROUP_PARENT = OFFSET_UNKNOWN,
    CSS_CGROUP = OFFSET_UNKNOWN,
    RETRANSMIT_HAS_ERROR = 0,
    DROP_HAS_REASON = 0,
    DROP_HAS_SOCKET = 0,
    TASK_NSPROXY = OFFSET_UNKNOWN,
    NSPROXY_PID_NS = OFFSET_UNKNOWN,
    PID_NS_REAPER = OFFSET_UNKNOWN,
    RQ_QUEUE = OFFSET_UNKNOWN,
    RQ_FLAGS = OFFSET_UNKNOWN,
    RQ_BYTES = OFFSET_UNKNOWN,
    RQ_SEGMENTS = OFFSET_UNKNOWN,
    RQ_BIO = OFFSET_UNKNOWN,
    RQ_START = OFFSET_UNKNOWN,
    BIO_BLKG = OFFSET_UNKNOWN,
    BLKG_BLKCG = OFFSET_UNKNOWN,
    BLKCG_CGROUP = OFFSET_UNKNOWN,
    QUEUE_DISK = OFFSET_UNKNOWN,
    DISK_MAJOR = OFFSET_UNKNOWN,
    DISK_MINOR = OFFSET_UNKNOWN,
}

/// A kernel object that the verifier knows the type of.
pub type Object = *const u8;

/// Reads a field; `None` if this kernel does not have it.
///
/// # Safety
/// `object` must come from the context of the program, or from [`follow`] on such a pointer, and `offset` must be the
/// global of a field of that struct with the size of `T`. The verifier refuses the program otherwise.
#[inline(always)]
pub unsafe fn get<T: Copy>(object: Object, offset: &Global<u64>) -> Option<T> {
    let offset = offset.load();
    if offset == OFFSET_UNKNOWN {
        return None;
    }
    // SAFETY: by the caller's word the load is one that the verifier checks; the kernel makes a faulting one read 0.
    Some(unsafe { object.add(offset as usize).cast::<T>().read_volatile() })
}

/// Follows a pointer field; `None` if the kernel does not have it or it is null.
///
/// # Safety
/// As for [`get`].
#[inline(always)]
pub unsafe fn follow(object: Object, offset: &Global<u64>) -> Option<Object> {
    // SAFETY: the caller's word, and pointers have one size.
    let pointer: Object = unsafe { get(object, offset)? };
    if pointer.is_null() { None } else { Some(pointer) }
}

/// An argument of a tracepoint that may be null.
///
/// Verifiers before 6.13 take no such argument for null: they would leave out the comparison and let the load fault. A
/// comparison of the address with anything but 0 they keep. Later ones want the comparison with 0.
#[inline(always)]
pub fn present(argument: Object) -> Option<Object> {
    /// Nothing of the kernel's lies in the first page.
    const PAGE: u64 = 4096;
    // The compiler may not conclude the one from the other.
    if (core::hint::black_box(argument) as u64) < PAGE || argument.is_null() { None } else { Some(argument) }
}

/// The id of a `struct cgroup`.
///
/// # Safety
/// `cgroup` is a pointer to a `struct cgroup`, from [`follow`].
#[inline(always)]
pub unsafe fn cgroup_id(cgroup: Object) -> Option<u64> {
    // SAFETY: cgroup.kn is a kernfs_node, whose id is a u64.
    unsafe { get(follow(cgroup, &CGROUP_KN)?, &KERNFS_NODE_ID) }
}

/// A task's cgroup in the v2 hierarchy.
///
/// # Safety
/// `task` is a pointer to a `task_struct`, from the context.
#[inline(always)]
pub unsafe fn task_cgroup(task: Object) -> Option<Object> {
    // SAFETY: task_struct.cgroups is a css_set, whose dfl_cgrp is a cgroup.
    unsafe { follow(follow(task, &TASK_CGROUPS)?, &CSS_SET_DFL_CGRP) }
}

/// The id of a task's cgroup in the v2 hierarchy.
///
/// # Safety
/// As for [`task_cgroup`].
#[inline(always)]
pub unsafe fn task_cgroup_id(task: Object) -> Option<u64> {
    // SAFETY: the caller's word.
    unsafe { cgroup_id(task_cgroup(task)?) }
}

/// Whether the current task is inside the pods' root, or no root was given.
#[inline(always)]
pub fn current_is_in_pods() -> bool {
    let root = PODS_ROOT_ID.load();
    // SAFETY: a helper without pointers.
    root == 0 || unsafe { bpf_get_current_ancestor_cgroup_id(PODS_ROOT_LEVEL.load() as i32) } == root
}

/// Cgroups above one that are looked at for the pods' root: a container's cgroup is three to five below it.
const MAX_CLIMB: usize = 10;

/// Whether a cgroup is the pods' root or inside it, or no root was given, or the kernel's structs do not tell.
///
/// # Safety
/// `cgroup` is a pointer to a `struct cgroup`, from [`follow`].
#[inline(always)]
pub unsafe fn is_in_pods(cgroup: Object) -> bool {
    let root = PODS_ROOT_ID.load();
    if root == 0 || CGROUP_PARENT.load() == OFFSET_UNKNOWN || CSS_CGROUP.load() == OFFSET_UNKNOWN {
        return true;
    }
    let mut at = cgroup;
    for _ in 0..MAX_CLIMB {
        // SAFETY: cgroup.self.parent is a cgroup_subsys_state, whose cgroup is a cgroup.
        unsafe {
            if cgroup_id(at) == Some(root) {
                return true;
            }
            let Some(parent) = follow(at, &CGROUP_PARENT) else { return false };
            let Some(above) = follow(parent, &CSS_CGROUP) else { return false };
            at = above;
        }
    }
    false
}

/// States of a `struct sock` that is none: a connection in TIME_WAIT, a request for one (`sk_fullsock` of the kernel).
const TIME_WAIT: u8 = 6;
const NEW_SYN_RECV: u8 = 12;

/// The cgroup of a socket, that of the process that made it; `None` for a stand-in that has none.
///
/// # Safety
/// `socket` is a pointer to a `struct sock` from the context or from [`follow`], perhaps only the common part of one.
#[inline(always)]
pub unsafe fn socket_cgroup(socket: Object) -> Option<Object> {
    // SAFETY: sock.skc_state is a u8 in the part that all kinds have; sk_cgrp_data is in a full socket.
    unsafe {
        match get::<u8>(socket, &SOCK_STATE)? {
            TIME_WAIT | NEW_SYN_RECV => None,
            _ => follow(socket, &SOCK_CGROUP),
        }
    }
}
