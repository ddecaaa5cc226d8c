//! Does what the core has decided.
//!
//! Problem: operations take long and fail in odd ways (a runtime that hangs, a task that panics, a disk that is full), some must
//! not wait for any other (the kill before the OOM killer), and what beelet turns by its own decision must be turned back even
//! after a crash. Approach: three ways, chosen by the kind of action:
//! * operations of a pod: a queue and a task per pod, one operation at a time, each with a time limit ([`Executor`]);
//! * kills: a thread of their own with files opened beforehand, past all queues;
//! * cgroups above pods and knobs: a thread of their own, each knob through the [`Journal`] before it is written; page cache is freed
//!   by another one.
//!
//! A pull that is under way is given up by [`Action::Cancel`](beelet_core::event::Action::Cancel), so that its pod can go.
//!
//! Terms: to *arm* is to open beforehand what a kill of a cgroup needs.
//!
//! Properties: each operation gives exactly one [`Event::Done`](beelet_core::event::Event::Done), whatever happens in it;
//! operations of one pod are in order, those of others do not wait for them; a knob is never written before its old value is
//! on disk; nothing here decides.

mod cri;
mod executor;
pub mod guard;
mod hooks;
mod journal;
mod killer;
mod knobs;
mod memory;
mod pod_ops;
mod reclaim;
#[cfg(test)]
mod tests;

pub use cri::CriRuntime;
pub use executor::{Executor, Parts};
pub use guard::Guard;
pub use journal::{Journal, JournalError, Restore};
pub use memory::{GoingStore, MemoryError, StatusStore, TerminalStore};
pub use pod_ops::{PodRuntime, time_limit};
