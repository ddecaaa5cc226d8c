//! `beelet-sim FROM TO` runs seeds; `beelet-sim SEED` runs one, and prints its last steps if it fails.

use std::process::ExitCode;

fn main() -> ExitCode {
    let numbers: Option<Vec<u64>> = std::env::args().skip(1).map(|a| a.parse().ok()).collect();
    let report = match numbers.as_deref() {
        Some(&[seed]) => beelet_sim::run_seeds(seed, seed + 1),
        Some(&[from, to]) => beelet_sim::run_seeds(from, to),
        _ => {
            eprintln!("usage: beelet-sim FROM TO, or beelet-sim SEED");
            return ExitCode::from(2);
        }
    };
    for failure in &report.failures {
        if report.seeds == 1 {
            println!("{failure}");
        } else {
            let v = &failure.violation;
            println!("seed {}: {} at {}: {:.300}", failure.seed, v.invariant, failure.at, v.what);
        }
    }
    println!("{report}");
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
