//! emptyDir: a folder, or memory.

use std::ffi::{CString, OsString};
use std::fs;
use std::path::Path;

use beelet_core::allocate::pod_memory_limit;
use beelet_core::spec::PodSpec;
use beelet_core::units::Bytes;
use rustix::mount::MountFlags;

use super::remove::mounts_below;
use super::{Error, fs_group, make_dir, set_mode};

/// The size of a memory volume: the smallest of its limit, its pod's memory limit (which exists if each container has one, those that
/// initialise too) and what the node has for pods (pkg/volume/emptydir/empty_dir.go, calculateEmptyDirMemorySize). `None` leaves it
/// to the kernel: half of the machine's memory.
pub(super) fn memory_size(spec: &PodSpec, size_limit: Option<Bytes>, allocatable: Option<Bytes>) -> Option<Bytes> {
    let size_limit = size_limit.filter(|l| *l > Bytes::ZERO);
    [size_limit, pod_memory_limit(spec), allocatable].into_iter().flatten().min()
}

/// Makes the volume unless it is there. `memory` is `Some` for the memory medium, with its size. Mode 0777 as the kubelet's;
/// with an fsGroup new files in it belong to that group. One that is there keeps what its pod did to its mode and owner.
pub(super) fn setup(dir: &Path, memory: Option<Option<Bytes>>, fs_group: Option<i64>) -> Result<(), Error> {
    let group = fs_group.and_then(|g| u32::try_from(g).ok());
    if !dir.is_dir() {
        // Under another name (no volume's begins with a dot) until all is set: it is there as a whole or not at all.
        let mut name = OsString::from(".");
        name.push(dir.file_name().unwrap_or_default());
        let half = dir.with_file_name(name);
        make_dir(&half, 0o777)?;
        set_mode(&half, 0o777)?;
        if let Some(group) = group {
            fs_group::give(&half, group)?;
        }
        fs::rename(&half, dir).map_err(|e| Error::io("make", dir, e))?;
    }
    if let Some(size) = memory
        && !mounts_below(dir)?.iter().any(|mount| mount == dir)
    {
        let mut options = format!("mode={}", if group.is_some() { "2777" } else { "0777" });
        if let Some(group) = group {
            options += &format!(",gid={group}");
        }
        if let Some(size) = size {
            options += &format!(",size={}", size.get());
        }
        mount_tmpfs(dir, &options).map_err(|e| Error::io("mount a tmpfs on", dir, e.into()))?;
    }
    Ok(())
}

/// Mounts it so that it is never swapped out, where the kernel can (from Linux 6.4 on): what is in memory is often secret
/// (pkg/kubelet/util/swap, IsTmpfsNoswapOptionSupported).
fn mount_tmpfs(dir: &Path, options: &str) -> rustix::io::Result<()> {
    let mount = |options: String| {
        let options = CString::new(options).unwrap_or_default();
        rustix::mount::mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
    };
    match mount(format!("{options},noswap")) {
        Err(rustix::io::Errno::INVAL) => {
            mount(options.to_owned())?;
            tracing::info!(volume = %dir.display(), "this kernel may swap out a volume in memory: it has no `noswap`");
            Ok(())
        }
        done => done,
    }
}
