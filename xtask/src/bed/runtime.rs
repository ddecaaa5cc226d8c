//! The bed's containerd: configuration, start, images, and what it leaves behind when it is killed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Info;
use crate::ctx;
use crate::images;

const READY_WITHIN: Duration = Duration::from_secs(30);

/// Writes the configuration.
pub(super) fn configure(info: &Info) -> Result<()> {
    fs::create_dir_all(info.run_dir.join("state"))?;
    fs::create_dir_all(info.dir.join("containerd"))?;
    let text = format!(
        r#"version = 3
root = "{root}"
state = "{run}/state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "{socket}"

[ttrpc]
  address = "{socket}.ttrpc"

[plugins."io.containerd.nri.v1.nri"]
  disable = true

[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{run}/certs.d"

[plugins."io.containerd.cri.v1.runtime"]
  # CAP_SYS_RESOURCE may be missing: then lowering an oom_score_adj fails.
  restrict_oom_score_adj = true
  # Namespaces below the bed's folder are found and unmounted when the bed goes.
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{cni_bin}"]
    conf_dir = "{cni_conf}"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        BinaryName = "{runc}"
        Root = "{run}/runc"
        SystemdCgroup = false
"#,
        root = info.dir.join("containerd").display(),
        run = info.run_dir.display(),
        socket = info.containerd_socket.display(),
        pause = images::PAUSE,
        cni_bin = info.cni_bin_dir.display(),
        cni_conf = info.cni_conf_dir.display(),
        runc = info.runc.display(),
    );
    fs::write(&info.containerd_config, text)
        .with_context(|| format!("cannot write {}", info.containerd_config.display()))
}

/// Starts containerd in the bed, and waits until it answers.
pub(super) fn start(info: &Info) -> Result<Child> {
    let log = File::options().create(true).append(true).open(&info.containerd_log)?;
    let mut path = info.containerd.parent().map(Path::to_path_buf).unwrap_or_default().into_os_string();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let mut child = info
        .inside("runtime", &info.containerd)?
        .arg("--config")
        .arg(&info.containerd_config)
        .env("PATH", path)
        // Cargo's library path is not containerd's business.
        .env_remove("LD_LIBRARY_PATH")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start containerd")?;
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("containerd ended ({status}):\n{}", log_tail(&info.containerd_log));
        }
        if info.containerd_socket.exists() && ctx::output(info.ctr().args(["plugins", "ls", "-q"])).is_ok() {
            return Ok(child);
        }
        if Instant::now() > deadline {
            child.kill().ok();
            child.wait().ok();
            bail!("containerd was not ready within {READY_WITHIN:?}:\n{}", log_tail(&info.containerd_log));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Imports the archives.
pub(super) fn import(info: &Info, archives: &[PathBuf]) -> Result<()> {
    for archive in archives {
        ctx::quiet(info.ctr().args(["images", "import", "--local"]).arg(archive))
            .with_context(|| format!("cannot import {}", archive.display()))?;
    }
    Ok(())
}

/// Removes what containerd and its shims keep outside of the bed's folders: shim sockets and cached CNI results.
pub(super) fn remove_traces(info: &Info) {
    let tasks = info.run_dir.join("state/io.containerd.runtime.v2.task/k8s.io");
    for bundle in entries(&tasks) {
        let said = fs::read_to_string(bundle.join("bootstrap.json"))
            .or_else(|_| fs::read_to_string(bundle.join("address")))
            .unwrap_or_default();
        for word in said.split('"') {
            if let Some(socket) = word.trim().strip_prefix("unix://")
                && socket.starts_with("/run/containerd/s/")
            {
                fs::remove_file(socket).ok();
            }
        }
    }
    let mut ids: Vec<String> = entries(&tasks).iter().filter_map(file_name).collect();
    for plugin in ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"] {
        ids.extend(entries(&info.dir.join("containerd").join(plugin).join("sandboxes")).iter().filter_map(file_name));
    }
    for result in entries(Path::new("/var/lib/cni/results")) {
        let Some(name) = file_name(&result) else { continue };
        if name.starts_with(&format!("{}-", info.netns)) || ids.iter().any(|id| name.contains(id.as_str())) {
            fs::remove_file(&result).ok();
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

#[expect(clippy::ptr_arg, reason = "passed by name to filter_map over PathBufs")]
fn file_name(path: &PathBuf) -> Option<String> {
    path.file_name().and_then(|name| name.to_str()).map(str::to_owned)
}

fn log_tail(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
