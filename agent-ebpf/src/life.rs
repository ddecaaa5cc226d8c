//! Life: processes that end, sockets that listen.
//!
//! **Approach.** A process has ended when its last thread exits. Newer kernels say so in the tracepoint's second argument;
//! elsewhere `signal->live` is 0 then, which two threads that exit at once may both see: the agent drops the second event by
//! (tgid, start time). The status is what `wait` will report: that of the whole group if something ended the group, else
//! that of the leader.
//!
//! A listener's cgroup is the socket's own (that of the process that made it), whoever closes it.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_cgroup_id, bpf_get_current_comm, generated::bpf_skc_to_tcp_sock},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use beelet_ebpf::{Event, OFFSET_UNKNOWN, flag, kind};

use crate::{
    kernel::{self, Object},
    record,
};

/// `SIGNAL_GROUP_EXIT` of the kernel: the whole process was ended, with `group_exit_code`.
const GROUP_EXIT: u32 = 4;
/// `TCP_LISTEN` of the kernel.
const TCP_LISTEN: u32 = 10;

#[btf_tracepoint(function = "sched_process_exit")]
pub fn process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: Object = ctx.arg(0);
    // SAFETY: by BTF the first argument is the exiting task, which is `current`.
    unsafe {
        let Some(signal) = kernel::follow(task, &kernel::TASK_SIGNAL) else { return 0 };
        let dead = if kernel::EXIT_HAS_GROUP_DEAD.load() == 1 {
            ctx.arg::<u64>(1) as u8 != 0
        } else {
            kernel::get::<u32>(signal, &kernel::SIGNAL_LIVE) == Some(0)
        };
        if !dead || !kernel::current_is_in_pods() {
            return 0;
        }
        let mut event = record::event(kind::PROCESS_EXIT);
        describe_current(&ctx, &mut event);
        event.cgroup_id = bpf_get_current_cgroup_id();
        let leader = kernel::follow(task, &kernel::TASK_GROUP_LEADER);
        event.exit_code = match kernel::get::<u32>(signal, &kernel::SIGNAL_FLAGS) {
            Some(flags) if flags & GROUP_EXIT != 0 => kernel::get(signal, &kernel::SIGNAL_GROUP_EXIT_CODE),
            _ => kernel::get(leader.unwrap_or(task), &kernel::TASK_EXIT_CODE),
        }
        .unwrap_or(0);
        if let Some(leader) = leader {
            event.start_ns = kernel::get(leader, &kernel::TASK_START_TIME).unwrap_or(0);
            event.ns_pid = ns_pid(leader).unwrap_or(0);
        }
        if kernel::get::<u64>(signal, &kernel::SIGNAL_OOM_MM).unwrap_or(0) != 0 {
            event.flags |= flag::OOM_MARKED;
        }
        record::emit(&event);
    }
    0
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn socket_state(ctx: BtfTracePointContext) -> i32 {
    let (old, new) = (ctx.arg::<u64>(1) as u32, ctx.arg::<u64>(2) as u32);
    if old == new || (old != TCP_LISTEN && new != TCP_LISTEN) {
        return 0;
    }
    let socket: Object = ctx.arg(0);
    let mut event = record::event(if new == TCP_LISTEN { kind::LISTEN_OPENED } else { kind::LISTEN_CLOSED });
    describe_current(&ctx, &mut event);
    // SAFETY: by BTF the first argument is the sock; fields by their own offsets and sizes.
    unsafe {
        event.port = port(socket);
        event.family = kernel::get(socket, &kernel::SOCK_FAMILY).unwrap_or(0);
        match kernel::follow(socket, &kernel::SOCK_CGROUP) {
            Some(cgroup) => event.cgroup_id = kernel::cgroup_id(cgroup).unwrap_or(0),
            None => {
                event.cgroup_id = bpf_get_current_cgroup_id();
                event.flags |= flag::CGROUP_OF_CURRENT;
            }
        }
    }
    record::emit(&event);
    0
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

/// Pid, tgid and name of the current task.
#[inline(always)]
fn describe_current(ctx: &BtfTracePointContext, event: &mut Event) {
    event.pid = ctx.pid();
    event.tgid = ctx.tgid();
    if let Ok(comm) = bpf_get_current_comm() {
        event.comm = comm;
    }
}

/// The pid in the task's innermost pid namespace, for up to three levels of them.
///
/// # Safety
/// `task` is a `task_struct`, from [`kernel::follow`].
#[inline(always)]
unsafe fn ns_pid(task: Object) -> Option<u32> {
    // SAFETY: task_struct.thread_pid is a struct pid; pid.numbers holds level + 1 elements that begin with a pid_t.
    unsafe {
        let pid = kernel::follow(task, &kernel::TASK_THREAD_PID)?;
        let level: u32 = kernel::get(pid, &kernel::PID_LEVEL)?;
        let step = kernel::UPID_SIZE.load() as usize;
        // The verifier wants constant offsets, hence the arms.
        match level {
            0 => kernel::get(pid, &kernel::PID_NUMBERS),
            1 => kernel::get(pid.add(step), &kernel::PID_NUMBERS),
            2 => kernel::get(pid.add(2 * step), &kernel::PID_NUMBERS),
            3 => kernel::get(pid.add(3 * step), &kernel::PID_NUMBERS),
            _ => None,
        }
    }
}
