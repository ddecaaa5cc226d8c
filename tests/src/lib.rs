//! What the end-to-end tests share: a bed, an agent in it, pods, and readers of what they say.
//!
//! Problem: a test against a real containerd and a real kernel fails for many reasons that are not its subject, and a test
//! that only says "timed out" is worth little. Approach: every wait names what it waits for and, when it gives up, shows the
//! pods and the end of the agent's log; whatever a test starts belongs to its process and goes when that ends.
//!
//! The files in `tests/` run one after the other; the tests of one file share a [`SharedBed`], each with an agent of its
//! own. Where a native bed is impossible a test prints `SKIPPED name: why` on standard error and ends.
//!
//! ```no_run
//! # fn test() {
//! static BED: e2e::SharedBed = e2e::SharedBed::new("example");
//! let Some(bed) = BED.get("a_pod_runs") else { return };
//! let agent = e2e::Agent::start(&bed, &e2e::AgentOptions::default());
//! e2e::pod("one").workload(&["sleep"]).write(&agent.manifests);
//! agent.wait_phase("one", "Running", e2e::secs(60));
//! agent.finish();
//! # }
//! ```

#![forbid(unsafe_code)]

mod agent;
mod bed;
mod cgroups;
mod cri;
mod manifest;
mod metrics;
mod referee;
pub mod stock;
mod witness;

use std::time::{Duration, Instant};

pub use agent::{Agent, AgentOptions, NODE, PORT, configuration};
pub use bed::{Bed, SharedBed, built};
pub use cgroups::{Hierarchy, hierarchies, knobs_below, pod_cgroups};
pub use cri::{Container, Cri, Sandbox};
pub use manifest::{BUSYBOX, Pod, WORKLOAD, pod, write_file};
pub use metrics::{Metrics, Sample};
pub use referee::{Kills, Kubepods, Referee, Round, Seen, Watch, load, mib, wall};
pub use witness::Witness;

/// So many seconds.
#[must_use]
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Says that a test cannot run here. Past libtest's capture: whoever runs the tests must see it.
pub fn skip(test: &str, reason: &str) {
    say(&format!("SKIPPED {test}: {reason}"));
}

/// A line on standard error that libtest does not swallow: skips, seeds, measured values.
pub fn say(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").ok();
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within `limit`; the message names `what`, and has what `state` tells.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Option<T>,
    state: impl FnOnce() -> String,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain: {what}\n{}", state());
        std::thread::sleep(Duration::from_millis(100));
    }
}
