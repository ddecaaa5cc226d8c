//! The rungs before an eviction that only cgroup v2 has all of, and what becomes of them when the agent is killed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::node::Node;
use super::truth::{LIMIT, manifest, put, remove, running, sh, wait, workload};

pub(super) fn number(node: &Node, file: &str) -> Result<u64> {
    // "max" is more than any number.
    Ok(sh(node, &format!("cat {file}"))?.trim().parse().unwrap_or(u64::MAX))
}

/// Takes a pod away, and waits until its cgroup is: the last of it.
pub(super) fn clear(node: &Node, name: &str, group: &str) -> Result<()> {
    remove(node, name)?;
    let pod = group.rsplit_once('/').map_or(group, |(pod, _)| pod);
    wait(node, &format!("end of {name}"), LIMIT, || {
        ensure!(sh(node, &format!("ls -d {pod} 2>/dev/null; true"))?.is_empty(), "its cgroup is there");
        Ok(())
    })
}

/// A leak that would end the memory of all is slowed down; the agent is killed then, and the leak is let go of without it.
pub(super) fn throttle(node: &Node) -> Result<String> {
    let pods = "/sys/fs/cgroup/kubepods";
    put(node, &manifest("slowed", workload(&["leak", "--rate", "4Mi"])))?;
    let group = running(node, "slowed")?.group;
    let high = format!("{}/memory.high", group.rsplit_once('/').map_or("", |(pod, _)| pod));
    let bound = wait(node, "a bound above which the leak is slow", LIMIT, || {
        let now = number(node, &high)?;
        ensure!(now < u64::MAX, "there is none; kubepods holds {}", number(node, &format!("{pods}/memory.current"))?);
        Ok(now)
    })?;
    let killed = Instant::now();
    // Not its guard, which is the same program.
    sh(
        node,
        r#"for pid in $(pidof beelet); do
        case "$(tr '\0' ' ' < /proc/$pid/cmdline)" in *" run "*) kill -KILL $pid;; esac
    done"#,
    )?;
    // 30 s after it was written at the latest, and some more in an emulated machine.
    wait(node, "the end of the bound", Duration::from_secs(60), || {
        let now = number(node, &high)?;
        ensure!(now == u64::MAX, "it is {now}, {:?} after the agent's end", killed.elapsed());
        Ok(())
    })?;
    let took = killed.elapsed();
    node.start_agent()?;
    node.wait_healthy(LIMIT)?;
    clear(node, "slowed", &group)?;
    Ok(format!("memory.high {} MiB; gone {took:.1?} after the agent was killed, without another one", bound >> 20))
}
