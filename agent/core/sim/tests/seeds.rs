//! A fixed range of seeds, and stored traces. More seeds: `cargo xtask sim --seeds 10000`.

use std::fs;
use std::path::PathBuf;

use beelet_core::units::Micros;
use beelet_sim::{Scenario, Sim, run_seeds, trace};

#[test]
fn no_seed_breaks_an_invariant() {
    let report = run_seeds(0, 400, 2);
    println!("{report}");
    for failure in &report.failures {
        println!("{}", failure.headline());
    }
    assert!(report.failures.is_empty(), "`cargo xtask sim --seed SEED` tells what happened");
    let t = &report.total;
    assert!(
        t.evictions > 50 && t.soft > 20 && t.crashes > 100 && t.resizes > 20 && t.ooms.own > 100,
        "the seeds do too little: {report}"
    );
    assert!(t.probes.0 > 10_000 && t.probes.1 > 50, "too little is asked: {report}");
    assert!(t.slow.0 > 100 && t.slow.1 > 10 && t.slowed > 20, "too little is slow: {report}");
}

#[test]
fn the_same_seed_gives_the_same_trace_and_the_trace_the_same_actions() {
    for seed in 0..8 {
        let record = || {
            let mut sim = Sim::new(Scenario::of(seed));
            sim.record();
            let _ = sim.run();
            sim.recorded().to_vec()
        };
        let lines = record();
        assert!(lines == record(), "seed {seed}");
        let read = trace::read(&trace::write(&lines)).expect("what was written can be read");
        assert!(lines == read, "seed {seed}");
        trace::replay(&read).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("traces")
}

/// A difference is a change of what beelet decides. If it is wanted, record the traces again with `BEELET_RECORD=1`.
#[test]
fn stored_traces_give_the_same_actions() {
    const STORED: [u64; 3] = [6, 39, 71];
    for seed in STORED {
        let path = folder().join(format!("seed-{seed}.jsonl"));
        if std::env::var_os("BEELET_RECORD").is_some() {
            let (disturbed, settle) = (Micros::secs(22), Micros::secs(3));
            let mut sim = Sim::new(Scenario { disturbed, settle, ..Scenario::of(seed) });
            sim.record();
            let _ = sim.run();
            fs::write(&path, trace::write(sim.recorded())).expect("the trace can be written");
        }
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let lines = trace::read(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let steps = trace::replay(&lines).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(steps > 50, "{}: only {steps} steps", path.display());
    }
}
