//! Names of block devices.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use beelet_core::telemetry::Device;

/// So many are remembered.
const MOST: usize = 4_096;

/// Finds the names of block devices by their numbers, and remembers them.
#[derive(Debug)]
pub struct Devices {
    folder: PathBuf,
    names: BTreeMap<(u32, u32), String>,
}

impl Default for Devices {
    fn default() -> Self {
        Self { folder: PathBuf::from("/sys/dev/block"), names: BTreeMap::new() }
    }
}

impl Devices {
    #[cfg(test)]
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), ..Self::default() }
    }

    /// The device of these numbers: its name is `/dev/` and what udev would call it, "" where the kernel has no such device any
    /// more.
    pub fn get(&mut self, major: u32, minor: u32) -> Device {
        if let Some(name) = self.names.get(&(major, minor)) {
            return Device { major, minor, name: name.clone() };
        }
        let name = name(&self.folder.join(format!("{major}:{minor}"))).unwrap_or_default();
        if self.names.len() >= MOST {
            self.names.clear();
        }
        self.names.insert((major, minor), name.clone());
        Device { major, minor, name }
    }

    /// Forgets all names: numbers are given to other devices in time.
    pub fn forget(&mut self) {
        self.names.clear();
    }
}

/// `DEVNAME=vda` of the device's `uevent`.
fn name(device: &Path) -> Option<String> {
    let text = std::fs::read_to_string(device.join("uevent")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(|name| format!("/dev/{name}"))
}
