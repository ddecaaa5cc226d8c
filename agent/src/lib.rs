//! beelet: a kubelet that sees the kernel.
//!
//! The rooms, in the order in which facts flow through them: [`kernel`] reads, [`measure`] merges the readings into samples,
//! [`sources`] tells which pods are wanted, [`runtime`] talks to containerd; `beelet_core` decides; [`act`] executes with
//! [`cgroup`], [`volumes`] and `probe`; [`logs`] keeps what containers say small; [`report`], [`server`] and [`top`] show. [`agent`] ties them
//! together: one task owns the state; [`protect`] and [`heap`] keep it alive and small.

pub mod act;
pub mod agent;
mod blocking;
pub mod cgroup;
pub mod clock;
pub mod config;
pub mod heap;
pub mod images;
pub mod kernel;
pub mod kubelet;
pub mod logs;
pub mod measure;
mod probe;
pub mod protect;
pub mod report;
pub mod runtime;
pub mod server;
pub mod sources;
pub mod top;
pub mod volumes;
