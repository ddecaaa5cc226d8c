//! What must hold for any bytes that come from outside: targets for a fuzzer, each a function of bytes that panics if it does not.
//!
//! Problem: manifests are written by hand or by somebody's generator, logs by any program, names and links in volumes by whoever
//! runs in a pod; a table of tests has the cases that somebody thought of. Approach: a [`Target`] states properties, not only that
//! nothing panics, and libFuzzer looks for bytes that break them, led by the branches that are taken. `cargo xtask fuzz` runs it; it
//! needs no nightly compiler, as the flags for coverage are stable ones. What was found, and the seeds, are in `corpus/NAME`, and each
//! file of it is replayed by `cargo xtask test` without the engine.
//!
//! Properties: those of the modules. All targets are functions of their bytes alone: the same file fails again.

mod bytes;
mod logs;
mod manifests;
mod paths;
mod quantities;

use std::path::PathBuf;

pub use bytes::Bytes;

/// Something that must hold for any bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also that of the folder of its corpus.
    pub name: &'static str,
    /// Panics if it does not hold.
    pub check: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 4] = [
    Target { name: "quantities", check: quantities::check },
    Target { name: "manifests", check: manifests::check },
    Target { name: "logs", check: logs::check },
    Target { name: "paths", check: paths::check },
];

impl Target {
    /// The one of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Where its corpus is in the repository.
    #[must_use]
    pub fn corpus(&self) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }
}
