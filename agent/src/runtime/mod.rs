//! The client of the container runtime (CRI v1).
//!
//! Problem: a runtime may be away, restart in the middle of a call, lack optional calls, or have done half of what a crashed
//! agent asked of it. Approach: one [`Runtime`] handle over a connection that is made when needed; what the runtime has is
//! always listed in full ([`Runtime::facts`]), events only wake ([`Runtime::watch`]); every operation looks at what is there
//! before it acts, so that it can be repeated after a crash at any moment.
//!
//! Terms: a *sandbox* is what containers of a pod share (network, IPC, cgroup parent); an *attempt* counts the sandboxes of a
//! pod and the runs of a container, and is part of their names in the runtime; to *adopt* is to take what an earlier life of
//! the agent made.
//!
//! Properties: no call waits for ever, but a pull; nothing that lacks our mark ([`names::MANAGED`]) is removed by
//! [`Runtime::start_sandbox`]; what is gone already counts as stopped and removed.

mod client;
pub(crate) mod env;
mod env_file;
mod error;
mod events;
mod exec;
mod facts;
mod images;
mod instance;
mod last_words;
mod logs;
pub mod names;
pub mod operations;
mod ops;
pub mod paths;
mod pre_stop;
mod reference;
mod spec_to_cri;
mod stats;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use client::{DEFAULT_TIMEOUT, MAX_MESSAGE, Runtime, Version};
pub use env::Given;
pub use error::{RuntimeError, SpecError};
pub use events::Wake;
pub use exec::{ExecError, ExecOutput};
pub use instance::instance;
pub use ops::ContainerStart;
pub(crate) use reference::repository;
pub use spec_to_cri::{ImageUser, NodeEnv, container_config, resolver, sandbox_config, sub_paths};
pub use stats::{DiskStats, DiskUse, LayerUse};
