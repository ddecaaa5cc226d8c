//! What the machine has.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use beelet_core::units::{Bytes, MilliCpu};
use procfs::{Current, CurrentSI};
use tracing::warn;

use crate::config::Machine;
use crate::kernel::cgroup::CgroupLayout;

/// CPUs and memory of this machine.
///
/// # Errors
/// If /proc does not tell.
pub(super) fn find_out(layout: &CgroupLayout) -> Result<Machine, procfs::ProcError> {
    let memory = procfs::Meminfo::current()?.mem_total;
    // All that are online: what this process itself may use (its affinity, its quota) says nothing about the node.
    let cpus = procfs::KernelStats::current()?.cpu_time.len();
    let cpus = MilliCpu(u64::try_from(cpus).unwrap_or(1).max(1) * 1_000);
    Ok(Machine { cpus, memory: Bytes(memory), cgroup_v2: !layout.is_hybrid() })
}

/// The address that this node would speak from, where it has a route to anywhere. Nothing is sent.
pub(super) fn address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// The text of the resolver's file that pods get; `None` for none.
pub(super) fn resolv_conf(path: Option<&Path>) -> Option<String> {
    let path = path?;
    match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            warn!(path = %path.display(), %error, "resolvConf cannot be read; pods get no name servers");
            Some(String::new())
        }
    }
}
