//! The bed's network: a namespace, a veth pair to the host, a CNI configuration for the pods.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::Info;
use crate::ctx;

/// Makes the namespace and the link; the node's address is up when this returns.
pub(super) fn create(info: &Info) -> Result<()> {
    let (host, node) = link_names(info);
    ip(&["netns", "add", &info.netns])?;
    ip(&["link", "add", &host, "type", "veth", "peer", "name", &node, "netns", &info.netns])?;
    ip(&["addr", "add", &format!("{}/24", info.host_ip), "dev", &host])?;
    ip(&["link", "set", &host, "up"])?;
    ip(&["-n", &info.netns, "link", "set", "lo", "up"])?;
    ip(&["-n", &info.netns, "link", "set", &node, "name", "eth0"])?;
    ip(&["-n", &info.netns, "addr", "add", &format!("{}/24", info.node_ip), "dev", "eth0"])?;
    ip(&["-n", &info.netns, "link", "set", "eth0", "up"])?;
    ip(&["-n", &info.netns, "route", "add", "default", "via", &info.host_ip])?;
    ip(&["route", "add", &info.pod_cidr, "via", &info.node_ip])?;
    // Pods are reached through the node.
    inside(info, &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])?;
    fs::create_dir_all(&info.cni_conf_dir)?;
    let conf = json!({
        "cniVersion": "1.0.0",
        "name": info.netns,
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "isDefaultGateway": true,
            "ipMasq": false,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": info.pod_cidr }]],
                "dataDir": info.run_dir.join("cni/networks"),
            },
        }],
    });
    let file = info.cni_conf_dir.join("10-beelet.conflist");
    fs::write(&file, serde_json::to_vec_pretty(&conf)?).with_context(|| format!("cannot write {}", file.display()))
}

/// Removes the namespace, and with it the link.
pub(super) fn delete(info: &Info) -> Result<()> {
    let (host, _) = link_names(info);
    if Path::new("/sys/class/net").join(&host).exists() {
        ip(&["link", "del", &host])?;
    }
    if info.netns_path.exists() {
        ip(&["netns", "del", &info.netns])?;
    }
    Ok(())
}

/// Device names hold 15 characters, so the index names them.
fn link_names(info: &Info) -> (String, String) {
    (format!("beelet{}", info.index), format!("bltn{}", info.index))
}

fn ip(words: &[&str]) -> Result<()> {
    ctx::quiet(Command::new("ip").args(words))
}

fn inside(info: &Info, words: &[&str]) -> Result<()> {
    // Not `ip netns exec`: that mounts /sys anew and hides the cgroups.
    ctx::quiet(Command::new("nsenter").arg(format!("--net={}", info.netns_path.display())).args(words))
}
