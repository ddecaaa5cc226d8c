//! What the kernel says: eBPF counters and events, cgroup files, pressure.
//!
//! **Problem.** Kernels, their configurations and the privileges of the agent differ. A source may be missing on one node and
//! there on the next, and a reading may race with the end of what it reads.
//!
//! **Approach.** One module per source, each usable without the others. [`preflight`] finds once what is there and says why
//! something is not. [`loader`] loads each eBPF program of the table in [`programs`] for itself, with the field offsets that
//! [`offsets`] takes from the kernel's [`btf`]; [`maps`] and [`events`] read what the programs write. [`cgroup`], [`psi`],
//! [`memory_events`] and [`listeners`] read files. Nothing here merges sources or judges: that is the next room's task.
//!
//! **Terms.** *Cgroup id*: the id in the v2 hierarchy, which is the inode number of the directory. *Unified*: the v2
//! hierarchy, wherever it is mounted. *Hybrid*: controllers on v1, and a v2 hierarchy without controllers beside it.
//!
//! **Properties.** What is gone (`ENOENT`, `ENODEV`) is `None`, what is broken is a typed error with its path, and nothing
//! panics. All quantities are integers in base units: bytes, microseconds (files), nanoseconds (eBPF).

mod batch;
pub mod btf;
pub mod cgroup;
pub mod drop_reasons;
pub mod events;
mod growing;
pub mod links;
pub mod listeners;
pub mod loader;
pub mod maps;
pub mod memory_events;
pub(crate) mod mountinfo;
pub mod net_counters;
pub mod netns;
pub mod offsets;
pub mod parse;
pub mod preflight;
pub mod programs;
pub mod psi;
pub mod sock_diag;
mod table;
mod watch;
