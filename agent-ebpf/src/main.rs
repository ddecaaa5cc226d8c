//! beelet's eBPF programs.
//!
//! **Problem.** A node agent wants to know, per cgroup and without a delay, what files tell late or not at all: CPU time,
//! traffic, who was killed for memory, who ended how, who listens.
//!
//! **Approach.** One module per subject; every program can be loaded without the others. Counters live in per-CPU hashes
//! keyed by cgroup id, made on the first event so that nothing that happens before the agent knows a container is lost;
//! the agent removes the keys of cgroups that are gone. Facts go through one ring buffer.
//!
//! rustc emits no CO-RE relocations. The offsets of kernel fields are globals (module [`kernel`]) that the agent sets
//! from this kernel's BTF before loading; to the verifier they are constants.
//!
//! **Properties.** No program changes what the kernel does: the cgroup programs always let the packet pass. No loop
//! but the ten steps up a cgroup's path, no helper that reads arbitrary memory. What is off or unknown is dead code to the verifier.
#![no_std]
#![no_main]
// For the one instruction that core does not have for this target (module `record`); aya-ebpf needs it as well.
#![feature(asm_experimental_arch)]

mod disk;
mod dns;
mod drops;
mod empty;
mod kernel;
mod life;
mod memory;
mod network;
mod reclaim;
mod record;
mod request;
mod sched;
mod storage;
mod tasks;
mod tcp;

/// The kernel lends its tracing helpers only to programs that say they may be used under the GPL; MIT is compatible.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
