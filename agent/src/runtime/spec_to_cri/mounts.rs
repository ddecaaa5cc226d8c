//! What a container mounts.
//!
//! The places on the node come from `crate::volumes::Volumes::sources`, which has opened and checked them: here a name is never
//! joined to a volume's path. The rules are those of pkg/kubelet/kubelet_pods.go, makeMounts (release 1.36).

use beelet_core::security::RuntimeFeatures;
use beelet_core::spec::{
    ContainerSpec, PathFault, Propagation, RecursiveReadOnly, SubPath, VolumeKind, check_descending,
};
use beelet_proto::cri;

use super::NodeEnv;
use crate::runtime::env::{Fields, Given, expand_all, variables};
use crate::runtime::error::SpecError;
use crate::runtime::ops::ContainerStart;
use crate::runtime::paths;

/// What of its volume each of a container's mounts shows, as a path below the volume's root; "" for all of it.
///
/// # Errors
/// If a variable is missing, or the path that came out leads out of the volume.
pub fn sub_paths(node: &NodeEnv, start: &ContainerStart<'_>, given: &Given) -> Result<Vec<String>, SpecError> {
    let container = container_of(start)?;
    let asks = |mount: &beelet_core::spec::Mount| matches!(mount.sub_path, SubPath::Expr(_));
    let env = if container.mounts.iter().any(asks) {
        variables(Fields::of(node, start), start.container, given)?
    } else {
        Vec::new()
    };
    let of = |mount: &beelet_core::spec::Mount| {
        let path = match &mount.sub_path {
            SubPath::Whole => return Ok(String::new()),
            SubPath::Path(path) => path.clone(),
            SubPath::Expr(text) => {
                expand_all(text, &env).map_err(|missing| SpecError::NoVariable(missing.join(", ")))?
            }
        };
        match check_descending(&path) {
            Ok(()) => Ok(path),
            Err(PathFault::Absolute) => Err(SpecError::AbsoluteSubPath(path)),
            Err(PathFault::Backstep) => Err(SpecError::SubPathUpwards(path)),
        }
    };
    container.mounts.iter().map(of).collect()
}

/// Whether what the runtime can do decides on a mount of this container.
pub(in crate::runtime) fn wants_recursive_read_only(container: &ContainerSpec) -> bool {
    container.mounts.iter().any(|mount| mount.recursive_read_only != RecursiveReadOnly::Disabled)
}

fn container_of<'a>(start: &ContainerStart<'a>) -> Result<&'a ContainerSpec, SpecError> {
    start.spec.container(start.container).ok_or_else(|| SpecError::NoContainer(start.container.to_owned()))
}

pub(super) fn mounts(
    node: &NodeEnv,
    start: &ContainerStart<'_>,
    container: &ContainerSpec,
    runtime: RuntimeFeatures,
) -> Result<Vec<cri::Mount>, SpecError> {
    let spec = start.spec;
    let mut mounts = Vec::with_capacity(container.mounts.len() + 2);
    for (index, mount) in container.mounts.iter().enumerate() {
        let absent = || SpecError::NoVolume { container: container.name.clone(), volume: mount.volume.clone() };
        let volume = spec.volumes.iter().find(|v| v.name == mount.volume).ok_or_else(absent)?;
        let recursive = mount.recursive_read_only.resolve(runtime.recursive_read_only);
        mounts.push(cri::Mount {
            container_path: mount.path.clone(),
            host_path: start.sources.get(index).ok_or_else(absent)?.display().to_string(),
            // What beelet writes is nobody else's to write.
            readonly: mount.read_only || matches!(volume.kind, VolumeKind::Written(_)),
            // What the pod has for itself gets its label; the node's own keeps its.
            selinux_relabel: matches!(volume.kind, VolumeKind::EmptyDir { .. } | VolumeKind::Written(_)),
            propagation: match mount.propagation {
                Propagation::None => cri::MountPropagation::PropagationPrivate,
                Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
                Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
            }
            .into(),
            recursive_read_only: recursive.ok_or_else(|| SpecError::NotRecursive(mount.volume.clone()))?,
        });
    }
    let files = [
        ("/etc/hosts", paths::etc_hosts(&node.root, &spec.uid)),
        (&*container.last_words.path, paths::termination_log(&node.root, &spec.uid, &container.name, start.attempt)),
    ];
    for (inside, outside) in files {
        // What the pod's author mounts there goes first.
        if container.mounts.iter().all(|mount| mount.path.trim_end_matches('/') != inside) {
            mounts.push(cri::Mount {
                container_path: inside.to_owned(),
                host_path: outside.display().to_string(),
                selinux_relabel: true,
                ..cri::Mount::default()
            });
        }
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests;
