//! `beelet-sim FROM TO` runs seeds; `beelet-sim SEED` runs one, and prints its last steps if it fails; `beelet-sim soak HOURS SEED` runs
//! hours of churn and prints each hour what the agent remembers; `beelet-sim corpus` compares rules for evictions.

use std::process::ExitCode;

use beelet_core::units::Micros;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["corpus"] {
        let comparison = beelet_sim::compare::Comparison::of_the_corpus();
        println!("{}\n{}", comparison.by_rules(), comparison.by_scene());
        let victims = beelet_sim::victims::Victims::of_all();
        println!("victims: who goes, of several pods\n\n{}\n{}", victims.by_rules(), victims.by_case());
        return ExitCode::SUCCESS;
    }
    let (soak, numbers) = match args.split_first() {
        Some((first, rest)) if first == "soak" => (true, rest),
        _ => (false, args.as_slice()),
    };
    let numbers: Option<Vec<u64>> = numbers.iter().map(|a| a.parse().ok()).collect();
    let report = match (soak, numbers.as_deref()) {
        (true, Some(&[hours, seed])) => return run_soak(hours, seed),
        (false, Some(&[seed])) => beelet_sim::run_seeds(seed, seed + 1),
        (false, Some(&[from, to])) => beelet_sim::run_seeds(from, to),
        _ => {
            eprintln!(
                "usage: beelet-sim FROM TO, or beelet-sim SEED, or beelet-sim soak HOURS SEED, or beelet-sim corpus"
            );
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

fn run_soak(hours: u64, seed: u64) -> ExitCode {
    match beelet_sim::soak::run(hours, seed, Micros::secs(3_600)) {
        Ok((stats, sizes)) => {
            for size in sizes {
                let all: Vec<String> = size.all().map(|(name, n)| format!("{name} {n}")).collect();
                println!("hour {}: {}", size.at.get() / Micros::secs(3_600).get(), all.join(", "));
            }
            println!("{stats:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}");
            ExitCode::FAILURE
        }
    }
}
