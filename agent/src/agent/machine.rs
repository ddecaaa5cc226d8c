//! What the machine has.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

use beelet_core::units::{Bytes, MilliCpu};
use procfs::{Current, CurrentSI};

use crate::config::Machine;
use crate::kernel::cgroup::CgroupLayout;

/// CPUs and memory of this machine, and the disk below `root`, which need not be there yet.
///
/// # Errors
/// If /proc does not tell.
pub(super) fn find_out(layout: &CgroupLayout, root: &Path) -> Result<Machine, procfs::ProcError> {
    let memory = procfs::Meminfo::current()?;
    // All that are online: what this process itself may use (its affinity, its quota) says nothing about the node.
    let cpus = procfs::KernelStats::current()?.cpu_time.len();
    let cpus = MilliCpu(u64::try_from(cpus).unwrap_or(1).max(1) * 1_000);
    Ok(Machine {
        cpus,
        memory: Bytes(memory.mem_total),
        cgroup_v2: !layout.is_hybrid(),
        linux: linux(),
        app_armor: app_armor(),
        se_linux: Path::new("/sys/fs/selinux/enforce").exists(),
        swap: memory.swap_total > 0,
        disk: disk(root),
    })
}

/// The size of the file system that a folder is on, or will be.
fn disk(folder: &Path) -> Bytes {
    let stat = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
    stat.map_or(Bytes::ZERO, |stat| Bytes(stat.f_blocks.saturating_mul(stat.f_frsize)))
}

/// The release of the kernel, its first two numbers.
fn linux() -> Option<(u32, u32)> {
    let uname = rustix::system::uname();
    let mut numbers = uname.release().to_str().ok()?.split(['.', '-']).map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// Whether the kernel has AppArmor and it is on (third_party/forked/libcontainer/apparmor, release 1.36).
fn app_armor() -> bool {
    Path::new("/sys/kernel/security/apparmor").exists()
        && std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// What this machine has of the paths that are masked only where they are there: the throttling of each CPU tells of others' load
/// (pkg/securitycontext/util.go, release 1.36). `cpus` is `/sys/devices/system/cpu`.
pub(super) fn masked_here(cpus: &Path) -> Vec<String> {
    let is_cpu =
        |name: &str| name.strip_prefix("cpu").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    let mut found: Vec<String> = std::fs::read_dir(cpus)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(is_cpu))
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    found.sort();
    found
}

/// The address that this node would speak from, where it has a route to anywhere. Nothing is sent.
pub(super) fn address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|a| a.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a10_10a_the_throttling_of_each_cpu_is_masked_where_it_is_told() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in ["cpu0/thermal_throttle", "cpu1/topology", "cpu10/thermal_throttle", "cpufreq/thermal_throttle"] {
            std::fs::create_dir_all(dir.path().join(name)).expect("a folder in it");
        }
        let expected = ["cpu0", "cpu10"].map(|cpu| dir.path().join(cpu).join("thermal_throttle").display().to_string());
        assert_eq!(masked_here(dir.path()), expected);
        assert_eq!(masked_here(&dir.path().join("none")), [""; 0]);
    }

    #[test]
    fn the_release_of_this_kernel_is_known() {
        assert!(linux().is_some_and(|linux| linux > (4, 0)));
    }
}
