//! The engine around a target: `cargo xtask fuzz` builds it with coverage, and names the target in `BEELET_FUZZ_TARGET`.
#![no_main]

use std::sync::OnceLock;

use fuzz::Target;

static TARGET: OnceLock<Target> = OnceLock::new();

fn target() -> Target {
    *TARGET.get_or_init(|| {
        let name = std::env::var("BEELET_FUZZ_TARGET").unwrap_or_default();
        Target::of(&name).unwrap_or_else(|| panic!("BEELET_FUZZ_TARGET={name} is no target"))
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| (target().check)(data));
