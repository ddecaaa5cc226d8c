//! Writes the tree of control groups that pods live in.
//!
//! Problem: on cgroup v2 a pod is one folder; on a hybrid machine it is one folder in each of ten hierarchies, each with files of
//! other names and units, and the kernel may keep another value than the one written (it clamps, rounds, or refuses silently
//! where a library swallows the error). Approach: one [`Tree`] takes relative paths (`kubepods/burstable/pod<uid>`) and the
//! core's [`CgroupKnobs`](beelet_core::event::CgroupKnobs), writes only what differs, and reads every written file back.
//!
//! The files are written through cgroups-rs where its calls tell the truth: `Controller::create` and `delete`, `set_shares`,
//! `set_cfs_quota_and_period`, `set_limit`, and the cpuset controller's copying from the parent. Not through it, each with a
//! comment at the place: the layout (it knows only `/sys/fs/cgroup`), `subtree_control` (errors are swallowed), reading back
//! (errors become zero), burst and kill (not there, or only where no v1 hierarchy is mounted), and `apply` (drops errors).
//!
//! Terms: *unified* is the cgroup2 mount; *hybrid* is a machine whose controllers are on v1 and whose unified tree has none.
//!
//! Properties: every write is verified or is an error; writing twice changes nothing; no path leaves the hierarchies; nothing
//! here decides.

mod error;
mod kill;
mod knobs;
mod layout;
mod reap;
mod remove;
#[cfg(test)]
pub(crate) mod tests;
mod tree;
mod turn;

pub use error::Error;
pub use kill::{KillHandle, Killed};
pub use knobs::shares_from_weight;
pub(crate) use layout::unescape_bytes;
pub use layout::{Hierarchies, V1Mount};
pub use reap::Reaped;
pub use remove::Leftover;
pub use tree::{Change, Tree};
