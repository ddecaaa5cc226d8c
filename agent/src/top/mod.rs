//! The terminal's view of a running agent: `beelet top` and `beelet explain`.
//!
//! Problem: people want to see what runs now, before there is any monitoring. Approach: read the agent's picture over HTTP and
//! draw it; the drawing ([`render::render`]) is a pure function with golden tests. On a terminal the table is drawn over the
//! last one; elsewhere each table is a block of its own, so that the output of a script or a CI log reads well.
//!
//! Properties: an agent that is not there yet is waited for, with a message, for 30 s; a closed pipe ends it quietly.

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use beelet_core::snapshot::Snapshot;
use clap::Args;

use crate::report::SelfReport;
use crate::report::explain::{Explanation, NoSuchPod, sentences};

pub mod client;
pub mod render;

use client::{ClientError, Server, get_json, get_text};

/// How long an agent that does not answer is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// `beelet top`.
#[derive(Args, Clone, Debug)]
pub struct TopArgs {
    /// The agent's address.
    #[arg(long, default_value = "http://127.0.0.1:10255", value_name = "http://IP:PORT")]
    pub server: Server,
    /// Time between two tables, as 500ms, 1s, 2m [default: 1s on a terminal, else 5s]
    #[arg(long, value_parser = interval)]
    pub interval: Option<Duration>,
    /// One table, then end.
    #[arg(long, conflicts_with = "count")]
    pub once: bool,
    /// So many tables, then end.
    #[arg(long, value_name = "N")]
    pub count: Option<NonZeroU32>,
}

/// `beelet explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The pod, as NAMESPACE/NAME or NAME in the namespace "default".
    #[arg(value_name = "NAMESPACE/NAME")]
    pub pod: String,
    /// The agent's address.
    #[arg(long, default_value = "http://127.0.0.1:10255", value_name = "http://IP:PORT")]
    pub server: Server,
    /// Print the data as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Why nothing could be shown.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The agent does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It did not answer for so long.
    #[error("no agent answers at {server} for 30 s ({last}): is `beelet run` running, and is this its address?")]
    Gone {
        /// Where.
        server: Server,
        /// What went wrong last.
        #[source]
        last: ClientError,
    },
    /// There is no such pod.
    #[error("{}", not_found(.0))]
    NoSuchPod(NoSuchPod),
    /// Not a pod's name.
    #[error("{0:?} is not a pod's name: write NAMESPACE/NAME, in letters, digits, '-' and '.'")]
    BadName(String),
    /// Standard output does not take it.
    #[error("cannot write to standard output: {0}")]
    Output(#[source] std::io::Error),
}

fn not_found(missing: &NoSuchPod) -> String {
    if missing.nearby.is_empty() {
        return format!("{}; there are no pods", missing.error);
    }
    format!("{}; there are {}", missing.error, missing.nearby.join(", "))
}

/// `500ms`, `1s`, `2m`, or a number of seconds.
fn interval(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err(format!("unknown unit {unit:?}: write 500ms, 1s or 2m")),
    };
    let number: f64 = number.parse().map_err(|_| "write 500ms, 1s or 2m".to_owned())?;
    match Duration::try_from_secs_f64(number * scale) {
        Ok(time) if time >= Duration::from_millis(100) => Ok(time),
        _ => Err("at least 100ms".to_owned()),
    }
}

/// Draws tables until told to stop.
///
/// # Errors
/// If the agent does not answer for 30 s, or standard output does not take it.
pub async fn run(args: TopArgs) -> Result<(), TopError> {
    let terminal = std::io::stdout().is_terminal();
    let every = args.interval.unwrap_or(Duration::from_secs(if terminal { 1 } else { 5 }));
    let mut left = if args.once { Some(1) } else { args.count.map(NonZeroU32::get) };
    loop {
        let started = Instant::now();
        let (picture, agent) = patiently(&args.server).await?;
        let (width, height) = if terminal { size() } else { (200, usize::MAX) };
        let table = render::render(&picture, &agent, width);
        let repeat = terminal && left != Some(1) && !args.once;
        if !print(&if repeat { redraw(&table, height) } else { format!("{table}\n") })? {
            return Ok(());
        }
        if let Some(n) = left.as_mut() {
            *n -= 1;
            if *n == 0 {
                return Ok(());
            }
        }
        tokio::time::sleep(every.saturating_sub(started.elapsed())).await;
    }
}

/// Prints why a pod is as it is.
///
/// # Errors
/// If the agent does not answer, or has no such pod.
pub async fn run_explain(args: ExplainArgs) -> Result<(), TopError> {
    let (namespace, name) = args.pod.split_once('/').unwrap_or(("default", &args.pod));
    let fits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if !fits(namespace) || !fits(name) {
        return Err(TopError::BadName(args.pod));
    }
    let (status, body) = get_text(&args.server, &format!("/debug/explain/{namespace}/{name}")).await?;
    let parsed = |source| ClientError::Answer { server: args.server.clone(), source };
    if status == 404 {
        return Err(TopError::NoSuchPod(serde_json::from_str(&body).map_err(parsed)?));
    }
    if args.json {
        print(&format!("{body}\n"))?;
        return Ok(());
    }
    let explanation: Explanation = serde_json::from_str(&body).map_err(parsed)?;
    print(&sentences(&explanation))?;
    Ok(())
}

/// The picture and the agent's report, waiting for an agent that does not answer.
async fn patiently(server: &Server) -> Result<(Snapshot, SelfReport), TopError> {
    let mut since = None;
    loop {
        let answer =
            async { Ok((get_json(server, "/debug/snapshot").await?, get_json(server, "/debug/agent").await?)) };
        match answer.await {
            Ok(both) => return Ok(both),
            // It is there and says something else: waiting does not help.
            Err(error @ (ClientError::Answer { .. } | ClientError::Status { .. })) => return Err(error.into()),
            Err(last) => {
                let since = *since.get_or_insert_with(|| {
                    let _ = writeln!(std::io::stderr(), "waiting for the agent at {server}: {last}");
                    Instant::now()
                });
                if since.elapsed() >= PATIENCE {
                    return Err(TopError::Gone { server: server.clone(), last });
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Columns and lines of the terminal.
fn size() -> (usize, usize) {
    let known = rustix::termios::tcgetwinsize(std::io::stdout()).ok().filter(|s| s.ws_col > 0 && s.ws_row > 0);
    known.map_or((120, 40), |s| (usize::from(s.ws_col), usize::from(s.ws_row)))
}

/// Over the last table: home, each line with its rest cleared, and what is below it; no more lines than the terminal has.
fn redraw(table: &str, height: usize) -> String {
    let lines: Vec<&str> = table.lines().collect();
    let fit = height.saturating_sub(1).max(2);
    let mut out = String::from("\x1b[H");
    for line in lines.iter().take(fit) {
        out.push_str(line);
        out.push_str("\x1b[K\n");
    }
    out.push_str("\x1b[J");
    if lines.len() > fit {
        out.push_str(&format!("... {} lines more\x1b[K", lines.len() - fit));
    }
    out
}

/// Prints; `false` if nobody reads any more.
fn print(text: &str) -> Result<bool, TopError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(TopError::Output(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_read() {
        for (text, millis) in [("500ms", 500), ("1s", 1_000), ("2", 2_000), ("0.5s", 500), ("2m", 120_000)] {
            assert_eq!(interval(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "1h", "10ms", "0", "1..2", "99999999999999999999m"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_table_longer_than_the_terminal_is_cut() {
        assert_eq!(redraw("a\nb\nc\nd\n", 4), "\x1b[Ha\x1b[K\nb\x1b[K\nc\x1b[K\n\x1b[J... 1 lines more\x1b[K");
    }

    #[test]
    fn the_arguments_are_consistent() {
        use clap::Parser as _;
        #[derive(clap::Parser)]
        struct Top {
            #[command(flatten)]
            args: TopArgs,
        }
        let top =
            Top::try_parse_from(["top", "--server", "http://10.0.0.1:1", "--interval", "2s", "--count", "3"]).unwrap();
        assert_eq!(top.args.interval, Some(Duration::from_secs(2)));
        assert!(Top::try_parse_from(["top", "--once", "--count", "3"]).is_err());
        assert!(Top::try_parse_from(["top", "--server", "https://x:1"]).is_err());
    }
}
