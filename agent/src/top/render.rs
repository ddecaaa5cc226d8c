//! The table of pods as text. Pure: the same picture gives the same text.
//!
//! Properties: no line is longer than `width` columns; what comes from pods is shown without control characters, so that a
//! manifest cannot write to the terminal of who looks at it.

use std::fmt::Write as _;

use beelet_core::health::Health;
use beelet_core::snapshot::{PodView, Snapshot};
use beelet_core::units::Bytes;

use crate::report::{SelfReport, words};

const HEADINGS: [&str; 10] =
    ["NAMESPACE/NAME", "STATUS", "RESTARTS", "CPU", "MEMORY", "RX/s", "TX/s", "HEALTH", "LAST ACTION", "AGE"];
/// The column that gives way when there is too little room.
const LAST_ACTION: usize = 8;
/// It is cut to this at least.
const SMALLEST: usize = 11;
const GAP: &str = "  ";

/// A header line, the pods, and the manifests that were refused.
#[must_use]
pub fn render(picture: &Snapshot, agent: &SelfReport, width: usize) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(picture.pods.iter().map(|pod| row(pod, picture)));
    let mut widths = [0; HEADINGS.len()];
    for row in &rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(cell.chars().count());
        }
    }
    let others: usize = widths.iter().enumerate().filter(|(i, _)| *i != LAST_ACTION).map(|(_, w)| w + GAP.len()).sum();
    widths[LAST_ACTION] = widths[LAST_ACTION].min(width.saturating_sub(others)).max(SMALLEST);

    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(cut(text.trim_end(), width).trim_end());
        out.push('\n');
    };
    line(&header(picture, agent));
    if let Some(why) = &picture.node.runtime_down {
        line(&clean(&format!("the runtime does not answer: {why}")));
    }
    for row in &rows {
        let mut text = String::new();
        for (i, (cell, &wide)) in row.iter().zip(&widths).enumerate() {
            let cell = cut(cell, wide);
            // Numbers are read from their end.
            let _ = if (2..=6).contains(&i) { write!(text, "{cell:>wide$}") } else { write!(text, "{cell:<wide$}") };
            text.push_str(GAP);
        }
        line(&text);
    }
    if picture.pods.is_empty() {
        line("(no pods)");
    }
    for rejected in &picture.rejected {
        line(&clean(&format!("refused: {}: {}", rejected.origin, rejected.error)));
    }
    out
}

fn header(picture: &Snapshot, agent: &SelfReport) -> String {
    let node = &picture.node;
    let unknown = || "?".to_owned();
    let available = node.memory_available.map_or_else(unknown, words::bytes);
    let below = node.allocatable_available.map_or_else(unknown, words::bytes);
    let left = node.time_to_oom.map_or_else(|| "-".to_owned(), words::duration);
    let (loaded, all) = agent.programs_loaded();
    let pressure: String = node.pressures().iter().map(|name| format!("  {name}")).collect();
    clean(&format!(
        "node {}  allocatable {} / {}  available {available} (pods {below})  OOM in {left}  sampling {} ms  eBPF {loaded}/{all}{pressure}",
        node.name,
        words::cpu(node.allocatable.cpu),
        words::bytes(node.allocatable.memory),
        node.sample_interval.get() / 1_000,
    ))
}

fn row(pod: &PodView, picture: &Snapshot) -> [String; HEADINGS.len()] {
    let none = || "-".to_owned();
    let rate = |rate: Option<u64>| rate.map_or_else(none, |r| words::bytes(Bytes(r)));
    let memory = pod.reading.and_then(|r| r.memory).map_or_else(none, |m| words::bytes(m.working_set()));
    let health = match (pod.health.state, pod.health.reason.as_str()) {
        (Health::Unknown | Health::Healthy, _) if let Some(rung) = pod.rungs.last() => format!("Memory({rung})"),
        (Health::Unknown | Health::Healthy, _) if let Some(slow) = pod.slow.first() => {
            format!("Slow({})", slow.cause.kind().name())
        }
        (Health::Unknown, _) => none(),
        (state, "") => format!("{state:?}"),
        (state, reason) => format!("{state:?}({reason})"),
    };
    [
        pod.spec.full_name(),
        pod.status_word(),
        pod.restarts().to_string(),
        pod.cpu.map_or_else(none, words::cpu),
        memory,
        rate(pod.network_rate.map(|r| r.0)),
        rate(pod.network_rate.map(|r| r.1)),
        health,
        if pod.last_action.is_empty() { none() } else { pod.last_action.clone() },
        words::duration(picture.at.wall - pod.since),
    ]
    .map(|cell| clean(&cell))
}

/// Without control characters.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The first `width` characters, the last one a mark if something is missing.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('~');
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::samples;

    #[test]
    fn golden_wide() {
        let expected = "\
node node  allocatable 1500m / 3Gi  available 2Gi (pods 1.5Gi)  OOM in 90s  sampling 250 ms  eBPF 1/2
NAMESPACE/NAME     STATUS            RESTARTS   CPU  MEMORY   RX/s   TX/s  HEALTH                LAST ACTION   AGE
default/leak-node  CrashLoopBackOff         3  123m    50Mi      -      -  Unhealthy(OOMVictim)  back-off 10s  2m5s
default/web-node   Running                  0  123m    50Mi  1.5Ki  2.4Mi  Healthy               started web   2m5s
refused: /pods/bad.yaml: spec.containers: missing
";
        assert_eq!(render(&samples::busy_node(), &samples::agent(), 200), expected);
    }

    #[test]
    fn golden_narrow() {
        let text = render(&samples::busy_node(), &samples::agent(), 60);
        assert!(text.lines().all(|l| l.chars().count() <= 60), "{text}");
        assert_eq!(text.lines().nth(2), Some("default/leak-node  CrashLoopBackOff         3  123m    50Mi~"), "{text}");
    }

    #[test]
    fn golden_empty_and_down() {
        let mut picture = Snapshot::default();
        picture.node.runtime_down = Some("connection refused\n\x1b[2J".into());
        let expected = "\
node   allocatable 0m / 0  available ? (pods ?)  OOM in -  sampling 0 ms  eBPF 0/0
the runtime does not answer: connection refused  [2J
NAMESPACE/NAME  STATUS  RESTARTS  CPU  MEMORY  RX/s  TX/s  HEALTH  LAST ACTION  AGE
(no pods)
";
        assert_eq!(render(&picture, &SelfReport::default(), 120), expected);
    }
}
