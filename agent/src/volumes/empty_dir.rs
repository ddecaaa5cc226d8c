//! emptyDir: a folder, or memory.

use std::ffi::CString;
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
/// with an fsGroup new files in it belong to that group.
pub(super) fn setup(dir: &Path, memory: Option<Option<Bytes>>, fs_group: Option<i64>) -> Result<(), Error> {
    make_dir(dir, 0o777)?;
    if let Some(size) = memory
        && !mounts_below(dir)?.iter().any(|mount| mount == dir)
    {
        let options = size.map_or_else(|| "mode=0777".to_owned(), |size| format!("mode=0777,size={}", size.get()));
        let options = CString::new(options).unwrap_or_default();
        rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
            .map_err(|e| Error::io("mount a tmpfs on", dir, e.into()))?;
    }
    let mut mode = 0o777;
    if let Some(group) = fs_group.and_then(|g| u32::try_from(g).ok()) {
        std::os::unix::fs::chown(dir, None, Some(group)).map_err(|e| Error::io("give to the fsGroup", dir, e))?;
        mode |= 0o2000;
    }
    set_mode(dir, mode)
}
