//! The pure part of beelet: what is measured and what happened goes in, what is to be done comes out.
//!
//! Problem: node agents mix decisions with IO, so nobody can test, replay or explain what they decide.
//! Approach: this crate holds the whole state of a node ([`World`]) and one entry point, [`World::step`]. It has no clock,
//! no file system, no randomness, no threads; `now` is passed in. The same events give the same actions.
//!
//! Terms: see the architecture's "one-way flow": measure -> [`sample`] -> [`model`] -> decide ([`health`], [`allocate`],
//! [`evict`], [`pod`]) -> [`event::Action`]; reports read a [`snapshot::Snapshot`].
#![forbid(unsafe_code)]

pub mod admit;
pub mod allocate;
pub mod attribute;
pub mod backoff;
pub mod budget;
mod climb;
pub mod content;
mod deadline;
mod disks;
pub mod dns;
mod done;
mod early;
pub mod event;
pub mod evict;
mod facts;
pub mod forecast;
pub mod ground;
pub mod health;
mod hooks;
pub mod images;
mod judge;
pub mod ladder;
pub mod logs;
mod lost;
pub mod model;
pub mod node;
pub mod pod;
pub mod preempt;
pub mod probe;
mod probes;
pub mod pulls;
pub mod quantity;
pub mod restart;
pub mod sample;
pub mod score;
pub mod security;
pub mod settle;
pub mod snapshot;
pub mod spec;
pub mod status;
pub mod stop;
pub mod sysctl;
pub mod telemetry;
mod told;
mod totals;
pub mod track;
pub mod units;
mod view;
pub mod why;
pub mod world;

pub use world::World;
