//! What the machine says of itself: the labels of `machine_*` and `cadvisor_version_info`.
//!
//! It does not change while the machine runs, so it is read once. What cannot be read is "" or `None`; in a container the name of
//! the system is that of the container's image, unless the node's /etc/os-release is mounted in its place.

use std::collections::BTreeSet;
use std::fs;

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// The mainboard's UUID by DMI, else the machine id, as the kubelet has it.
    pub system_uuid: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of /etc/os-release.
    pub os: String,
    /// Cores of the CPUs' packages.
    pub physical_cores: Option<u64>,
    /// Packages.
    pub sockets: Option<u64>,
}

impl MachineFacts {
    /// Reads them.
    #[must_use]
    pub fn read() -> Self {
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid").to_ascii_lowercase();
        let (physical_cores, sockets) = packages(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
        Self {
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            kernel: line("/proc/sys/kernel/osrelease"),
            os: pretty_name(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            physical_cores,
            sockets,
        }
    }
}

fn line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn pretty_name(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or_default();
    value.trim_matches('"').to_owned()
}

/// Different cores and packages of /proc/cpuinfo; `None` where it does not tell (arm64).
fn packages(cpuinfo: &str) -> (Option<u64>, Option<u64>) {
    let (mut cores, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for cpu in cpuinfo.split("\n\n") {
        let value = |key: &str| {
            let mut pairs = cpu.lines().filter_map(|line| line.split_once(':'));
            pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim())
        };
        if let Some(socket) = value("physical id") {
            sockets.insert(socket);
            cores.extend(value("core id").map(|core| (socket, core)));
        }
    }
    let count = |n: usize| u64::try_from(n).ok().filter(|n| *n > 0);
    (count(cores.len()), count(sockets.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_told_apart_by_their_package() {
        let cpu = |socket: u32, core: u32| format!("processor\t: 0\nphysical id\t: {socket}\ncore id\t\t: {core}\n\n");
        let text = [cpu(0, 0), cpu(0, 0), cpu(0, 1), cpu(1, 0)].concat();
        assert_eq!(packages(&text), (Some(3), Some(2)));
        assert_eq!(packages("processor\t: 0\nBogoMIPS\t: 50.00\n\n"), (None, None));
    }

    #[test]
    fn this_machine_is_known() {
        let machine = MachineFacts::read();
        assert_eq!(machine.boot_id.len(), 36, "{machine:?}");
        assert!(machine.kernel.contains('.'), "{machine:?}");
        assert_eq!(pretty_name("NAME=\"D\"\nPRETTY_NAME=\"Debian 13\"\n"), "Debian 13");
    }
}
