//! emptyDir: a folder, or memory.

use std::ffi::{CString, OsString};
use std::fs;
use std::path::Path;

use beelet_core::spec::PodSpec;
use beelet_core::units::Bytes;
use rustix::mount::MountFlags;

use super::remove::mounts_below;
use super::{Error, make_dir, set_mode};

/// The size of a memory volume: the smallest of its limit and its pod's memory limit (which exists if each container has one);
/// else the default (pkg/volume/emptydir/empty_dir.go, calculateEmptyDirMemorySize). `None` leaves it to the kernel: half of
/// the machine's memory.
pub(super) fn memory_size(spec: &PodSpec, size_limit: Option<Bytes>, default: Option<Bytes>) -> Option<Bytes> {
    let limits: Option<Vec<Bytes>> = spec.containers.iter().map(|c| c.resources.memory_limit).collect();
    let pod = limits.filter(|l| !l.is_empty()).map(|l| l.into_iter().sum::<Bytes>());
    let size_limit = size_limit.filter(|l| *l > Bytes::ZERO);
    [size_limit, pod].into_iter().flatten().min().or(default)
}

/// Makes the volume unless it is there. `memory` is `Some` for the memory medium, with its size. Mode 0777 as the kubelet's;
/// with an fsGroup new files in it belong to that group. One that is there keeps what its pod did to its mode and owner.
pub(super) fn setup(dir: &Path, memory: Option<Option<Bytes>>, fs_group: Option<i64>) -> Result<(), Error> {
    let group = fs_group.and_then(|g| u32::try_from(g).ok());
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    if !dir.is_dir() {
        // Under another name (no volume's begins with a dot) until all is set: it is there as a whole or not at all.
        let mut name = OsString::from(".");
        name.push(dir.file_name().unwrap_or_default());
        let half = dir.with_file_name(name);
        make_dir(&half, 0o777)?;
        if let Some(group) = group {
            std::os::unix::fs::chown(&half, None, Some(group))
                .map_err(|e| Error::io("give to the fsGroup", &half, e))?;
        }
        set_mode(&half, mode)?;
        fs::rename(&half, dir).map_err(|e| Error::io("make", dir, e))?;
    }
    if let Some(size) = memory
        && !mounts_below(dir)?.iter().any(|mount| mount == dir)
    {
        let mut options = format!("mode={mode:04o}");
        if let Some(group) = group {
            options += &format!(",gid={group}");
        }
        if let Some(size) = size {
            options += &format!(",size={}", size.get());
        }
        let options = CString::new(options).unwrap_or_default();
        rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
            .map_err(|e| Error::io("mount a tmpfs on", dir, e.into()))?;
    }
    Ok(())
}
