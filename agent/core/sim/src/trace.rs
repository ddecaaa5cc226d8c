//! What went in and what came out, as lines of JSON.
//!
//! Problem: a seed finds a bug only as long as the simulator stays as it is. Approach: the events that the core was given, with the
//! actions it gave back, need no simulator to be had again: [`replay`] steps a fresh [`World`] through them and compares.
//!
//! Records are for people; their words may change without the decisions changing, so [`replay`] leaves them out.

use beelet_core::World;
use beelet_core::event::{Action, Event};
use beelet_core::node::NodeConfig;
use beelet_core::units::{Micros, Now};
use serde::{Deserialize, Serialize};

/// A line of a trace.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are steps")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Line {
    /// An agent starts that knows nothing.
    Start {
        /// Its settings.
        config: NodeConfig,
    },
    /// The core is asked.
    Step {
        /// When.
        now: Now,
        /// What happened.
        event: Event,
        /// What is to be done.
        actions: Vec<Action>,
    },
    /// What happened outside of the agent, for people.
    Note {
        /// When (monotonic).
        at: Micros,
        /// What.
        what: String,
    },
}

/// Why a trace could not be replayed.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// Counts the lines from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// As lines of JSON.
#[must_use]
pub fn write(lines: &[Line]) -> String {
    let text = |line| serde_json::to_string(line).unwrap_or_else(|e| format!("{{\"unwritable\":\"{e}\"}}"));
    lines.iter().map(|line| text(line) + "\n").collect()
}

/// From lines of JSON.
///
/// # Errors
/// The first line that is none.
pub fn read(text: &str) -> Result<Vec<Line>, Difference> {
    let parse = |(i, line)| serde_json::from_str(line).map_err(|e| Difference { line: i + 1, what: e.to_string() });
    text.lines().enumerate().map(parse).collect()
}

/// Gives the recorded events to fresh worlds. Returns the number of steps.
///
/// # Errors
/// The first step whose actions are others than the recorded ones.
pub fn replay(lines: &[Line]) -> Result<usize, Difference> {
    let (mut world, mut steps) = (None, 0);
    for (i, line) in lines.iter().enumerate() {
        match line {
            Line::Start { config } => world = Some(World::new(config.clone())),
            Line::Note { .. } => {}
            Line::Step { now, event, actions } => {
                let Some(world) = &mut world else {
                    return Err(Difference { line: i + 1, what: "a step before the start".to_owned() });
                };
                let got = without_records(&world.step(event.clone(), *now));
                let wanted = without_records(actions);
                if got != wanted {
                    let json = |a: &[Action]| serde_json::to_string(a).unwrap_or_default();
                    let what = format!("recorded {}, now {}", json(&wanted), json(&got));
                    return Err(Difference { line: i + 1, what });
                }
                steps += 1;
            }
        }
    }
    Ok(steps)
}

fn without_records(actions: &[Action]) -> Vec<Action> {
    actions.iter().filter(|a| !matches!(a, Action::Record(_))).cloned().collect()
}
