//! Pods under a mixed load in the VM: what the agent says lies between two readings of the guest's files.
//!
//! Problem: on pure cgroup v2, and on other kernels, other files tell other things. Approach: the probe that the native tests
//! use (`agent/examples/sandwich_probe.rs`) runs in the guest beside the agent.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::node::{Node, SANDWICH};
use super::truth::{manifest, put, remove, running, sh, workload};

/// So many pods where nobody asks for another number: emulated, each takes seconds to start.
const PODS: usize = 6;
/// Asks for another number of pods.
const VARIABLE: &str = "BEELET_VM_PODS";

/// The check.
pub(super) fn values_lie_between(node: &Node) -> Result<String> {
    let count = std::env::var(VARIABLE).ok().and_then(|n| n.parse().ok()).unwrap_or(PODS);
    let name = |n: usize| format!("mixed-{n}");
    for n in 0..count {
        let seed = (n + 1).to_string();
        let mut container = workload(&["mixed", "--seed", &seed]);
        match n % 3 {
            0 => container["resources"] = json!({ "limits": { "cpu": "50m" } }),
            // Asking for less, so that fifty of them fit into a small VM.
            1 => container["resources"] = json!({ "limits": { "memory": "24Mi" }, "requests": { "memory": "4Mi" } }),
            _ => {}
        }
        put(node, &manifest(&name(n), container))?;
    }
    for n in 0..count {
        running(node, &name(n))?;
    }
    let command = ["sh", "-c", &format!("{SANDWICH} 127.0.0.1:10255 2 2>&1")];
    let ended = node.vm.try_exec(&command, None, Duration::from_secs(580))?;
    ensure!(ended.code == 0, "not between (exit code {}):\n{}{}", ended.code, ended.stdout, node.log_tail(20)?);
    for n in 0..count {
        remove(node, &name(n))?;
    }
    sh(node, "sync")?;
    // The table, one field after the other, is for the log of this run; the first line says how many.
    eprintln!("{}", ended.stdout);
    Ok(ended.stdout.lines().next().unwrap_or_default().to_owned())
}
