//! A trace for people: times, pods, what was done and what came of it.
//!
//! Problem: lines of JSON say everything, and nobody reads four hundred of them. Approach: one line for what happened and one, set in,
//! for each thing that follows from it, as `SECONDS  WHAT`; looks that led to nothing are left out. [`crate::trace::write`] has the rest.

use std::collections::BTreeMap;
use std::fmt::Write;

use beelet_core::event::{Action, ContainerFactState, Done, Event, OpId, PodOp, RuntimeFacts};
use beelet_core::probe::Answer;
use beelet_core::sample::KernelEventKind;
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;

use crate::trace::Line;

/// Tells the last `most` moments of a trace; times in seconds after `start` (monotonic).
#[must_use]
pub fn tell(lines: &[Line], start: Micros, most: usize) -> String {
    let mut story = Story::default();
    let told: Vec<String> = lines.iter().filter_map(|line| story.line(line, start)).collect();
    told[told.len().saturating_sub(most)..].concat()
}

/// What must be remembered to tell the next line.
#[derive(Default)]
struct Story {
    begun: BTreeMap<OpId, String>,
    wanted: Vec<PodUid>,
    listed: BTreeMap<PodUid, String>,
}

impl Story {
    fn line(&mut self, line: &Line, start: Micros) -> Option<String> {
        let mut out = String::new();
        let mut put = |at: Option<Micros>, what: &str| {
            let at = at.map_or(String::new(), |at| {
                let millis = (at - start).get() / 1_000;
                format!("{}.{:03}", millis / 1_000, millis % 1_000)
            });
            let _ = writeln!(out, "{at:>9}  {what}");
        };
        match line {
            Line::Start { .. } => {
                *self = Self::default();
                put(None, "--- an agent starts");
            }
            Line::Note { at, what } => put(Some(*at), &format!("... {what}")),
            Line::Step { now, event, actions } => {
                let happened = self.event(event);
                let follows: Vec<String> = actions.iter().filter_map(|action| self.action(action)).collect();
                if happened.is_none() && follows.is_empty() {
                    return None;
                }
                put(Some(now.mono), &happened.unwrap_or_else(|| "a look at the node".to_owned()));
                for what in follows {
                    put(None, &format!("    {what}"));
                }
            }
        }
        Some(out)
    }

    fn event(&mut self, event: &Event) -> Option<String> {
        Some(match event {
            Event::Pods { pods, rejected } => {
                let now: Vec<PodUid> = pods.iter().map(|p| p.uid.clone()).collect();
                let news: Vec<String> =
                    now.iter().filter(|u| !self.wanted.contains(u)).map(|u| format!("+{u}")).collect();
                let gone: Vec<String> =
                    self.wanted.iter().filter(|u| !now.contains(u)).map(|u| format!("-{u}")).collect();
                self.wanted = now;
                let bad = rejected.len();
                format!(
                    "wanted: {} pods {} {}{}",
                    pods.len(),
                    news.join(" "),
                    gone.join(" "),
                    if bad > 0 { "; one is bad" } else { "" }
                )
            }
            Event::Runtime(facts) => return self.listing(facts),
            Event::RuntimeDown { reason } => format!("the runtime does not answer: {reason}"),
            Event::Done { uid, op, result } => {
                let what = self.begun.remove(op).unwrap_or_else(|| format!("#{}", op.0));
                match result {
                    Ok(Done::Sandbox(fact)) => format!("{uid}: {what} is done: {}", fact.id),
                    Ok(Done::Container { id, .. }) => format!("{uid}: {what} is done: {id}"),
                    Ok(_) => format!("{uid}: {what} is done"),
                    Err(error) => format!("{uid}: {what} failed: {}: {}", error.reason, error.message),
                }
            }
            Event::Probe { answer: Answer::Success, .. } => return None,
            Event::Probe { uid, container, kind, answer, .. } => format!("{uid}: {kind:?} of {container}: {answer:?}"),
            Event::Kernel(event) => {
                let (uid, name) = (&event.uid, event.container.as_deref().unwrap_or_default());
                match &event.kind {
                    KernelEventKind::Exit { code, signal, .. } => {
                        format!("{uid}: {name} ended, code {code}, signal {signal}")
                    }
                    KernelEventKind::OomVictim { .. } => format!("{uid}: the OOM killer chose {name}"),
                    KernelEventKind::Listen { .. } => return None,
                }
            }
            Event::Remembered(ends) => {
                let ends: Vec<String> =
                    ends.iter().map(|end| format!("{} {:?} {}", end.uid, end.phase, end.reason)).collect();
                if ends.is_empty() {
                    return None;
                }
                format!("written down: {}", ends.join(", "))
            }
            Event::Noted(_) | Event::Pulling { .. } => return None,
            Event::Going(going) if going.is_empty() => return None,
            Event::Going(going) => format!("going, as written down: {going:?}"),
            Event::Told { uid, reason, message, .. } => format!("{uid}: {reason}: {message}"),
            Event::Tick => "the time has come".to_owned(),
            Event::Sample(_) | Event::Disks { .. } | Event::OwnCost { .. } => return None,
        })
    }

    /// What differs from the listing before it.
    fn listing(&mut self, facts: &RuntimeFacts) -> Option<String> {
        let mut now: BTreeMap<PodUid, String> = BTreeMap::new();
        for s in &facts.sandboxes {
            let up = if s.ready { "up" } else { "down" };
            let _ = write!(now.entry(s.uid.clone()).or_default(), " sandbox {} {up}", s.attempt);
        }
        for c in &facts.containers {
            let state = match &c.state {
                ContainerFactState::Created => "created".to_owned(),
                ContainerFactState::Running { .. } => "runs".to_owned(),
                ContainerFactState::Exited(exit) => format!("exit {}", exit.code),
                ContainerFactState::Unknown => "unknown".to_owned(),
            };
            let _ = write!(now.entry(c.uid.clone()).or_default(), " {}#{} {state}", c.name, c.attempt);
        }
        let mut news: Vec<String> = Vec::new();
        for (uid, what) in now.iter().filter(|(uid, what)| self.listed.get(*uid) != Some(*what)) {
            news.push(format!("{uid}:{what}"));
        }
        news.extend(self.listed.keys().filter(|uid| !now.contains_key(*uid)).map(|uid| format!("{uid}: nothing")));
        news.extend(facts.leftovers.iter().map(|(uid, _)| format!("{uid}: left by an earlier life")));
        self.listed = now;
        (!news.is_empty()).then(|| format!("listed: {}", news.join("; ")))
    }

    fn action(&mut self, action: &Action) -> Option<String> {
        Some(match action {
            Action::Pod { uid, op, what } => {
                let what = operation(what);
                self.begun.insert(*op, what.clone());
                format!("{uid}: {what}")
            }
            Action::Kill { uid, .. } => format!("{uid}: kill"),
            Action::Cancel { uid } => format!("{uid}: give up what is under way"),
            Action::Knob(write) => format!("{}: {:?}: {}", write.target.0, write.knob, write.why),
            Action::ReclaimMemory { cgroup, bytes } => format!("reclaim {bytes} of {cgroup}"),
            Action::Remember(end) => format!("{}: write down {:?} {}", end.uid, end.phase, end.reason),
            Action::Going { uid, until } => format!("{uid}: write down that it goes, until {until:?}"),
            Action::Forget(uid) => format!("{uid}: forget what was written down"),
            Action::Record(record) => format!("{}: {}: {:.200}", record.name, record.reason, record.message),
            Action::Reclaim { containers, sandboxes, .. } => format!("reclaim {containers:?} {sandboxes:?}"),
            Action::Probe { .. }
            | Action::Cgroups(_)
            | Action::Refresh(_)
            | Action::Note(_)
            | Action::Relist
            | Action::SampleEvery { .. }
            | Action::LookAtDisks { .. }
            | Action::WakeAt(_) => return None,
        })
    }
}

/// An operation in a few words.
#[must_use]
pub fn operation(what: &PodOp) -> String {
    let name = what.name();
    match what {
        PodOp::StartContainer { container, attempt, .. } => format!("{name} {container}#{attempt}"),
        PodOp::EnsureImage { image, .. } => format!("{name} {image}"),
        PodOp::StopContainers { stops, grace, .. } => {
            let ids: Vec<&str> = stops.iter().map(|stop| stop.id.as_str()).collect();
            format!("{name} {} within {grace}", ids.join(" "))
        }
        PodOp::PostStart { container, .. } => format!("{name} {container}"),
        PodOp::RemoveContainers { ids } | PodOp::RemoveSandboxes { ids } => format!("{name} {}", ids.join(" ")),
        PodOp::Prepare { .. } | PodOp::StartSandbox { .. } | PodOp::Cleanup { .. } | PodOp::Resize { .. } => {
            name.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use beelet_core::event::{Action, OpId};
    use beelet_core::units::Now;

    use super::*;

    #[test]
    fn a_trace_reads_as_times_pods_and_what_came_of_it() {
        let at = |ms| Now { mono: Micros::secs(1_000) + Micros::millis(ms), wall: Micros::ZERO };
        let what = PodOp::RemoveSandboxes { ids: vec!["s1".to_owned()] };
        let begun = vec![Action::Pod { uid: "a".into(), op: OpId(7), what }, Action::Relist];
        let lines = [
            Line::Step { now: at(1), event: Event::Pods { pods: Vec::new(), rejected: Vec::new() }, actions: begun },
            Line::Step {
                now: at(500),
                event: Event::OwnCost { cpu: Micros(1), looking: Micros(1), bpf: None },
                actions: Vec::new(),
            },
            Line::Note { at: at(1_000).mono, what: "the agent dies".to_owned() },
            Line::Step {
                now: at(2_345),
                event: Event::Done { uid: "a".into(), op: OpId(7), result: Ok(Done::Ok) },
                actions: Vec::new(),
            },
        ];
        let told = tell(&lines, Micros::secs(1_000), 10);
        let wanted = "    0.001  wanted: 0 pods  \n               a: remove_sandboxes s1\n    1.000  ... the agent dies\n    2.345  a: remove_sandboxes s1 is done\n";
        assert_eq!(told, wanted);
        assert_eq!(tell(&lines, Micros::secs(1_000), 1), "    2.345  a: remove_sandboxes s1 is done\n");
    }
}
