//! `beelet-sim FROM TO` runs seeds on all CPUs; `beelet-sim SEED` runs one and tells what happened; `beelet-sim json SEED` prints the same
//! as lines of JSON; `beelet-sim crashes` has agents die at each action of pods' lives; `beelet-sim soak HOURS SEED` runs hours of churn and prints each hour what the agent remembers;
//! `beelet-sim corpus` compares rules for evictions.

use std::process::ExitCode;

use beelet_core::units::Micros;
use beelet_sim::trace::Line;
use beelet_sim::{Failure, Scenario, Sim, Stats};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["corpus"] {
        let comparison = beelet_sim::compare::Comparison::of_the_corpus();
        println!("{}\n{}", comparison.by_rules(), comparison.by_scene());
        let victims = beelet_sim::victims::Victims::of_all();
        println!("victims: who goes, of several pods\n\n{}\n{}", victims.by_rules(), victims.by_case());
        return ExitCode::SUCCESS;
    }
    let (word, numbers) = match args.split_first() {
        Some((first, rest)) if first.parse::<u64>().is_err() => (first.as_str(), rest),
        _ => ("", args.as_slice()),
    };
    let numbers: Option<Vec<u64>> = numbers.iter().map(|a| a.parse().ok()).collect();
    match (word, numbers.as_deref()) {
        ("soak", Some(&[hours, seed])) => run_soak(hours, seed),
        ("crashes", Some([])) => run_crashes(),
        ("json", Some(&[seed])) => {
            print!("{}", beelet_sim::trace::write(&recorded(seed).0));
            ExitCode::SUCCESS
        }
        ("", Some(&[seed])) => run_one(seed),
        ("", Some(&[from, to])) => run_range(from, to),
        _ => {
            eprintln!("usage: beelet-sim FROM TO | SEED | json SEED | crashes | soak HOURS SEED | corpus");
            ExitCode::from(2)
        }
    }
}

fn run_range(from: u64, to: u64) -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let report = beelet_sim::run_seeds(from, to, threads);
    for failure in &report.failures {
        println!(
            "seed {} broke {} at {}: {:.300}",
            failure.seed, failure.violation.invariant, failure.at, failure.violation.what
        );
    }
    println!("{report}");
    let Some(first) = report.failures.first() else { return ExitCode::SUCCESS };
    println!("for what happened: cargo xtask sim --seed {}", first.seed);
    ExitCode::FAILURE
}

fn recorded(seed: u64) -> (Vec<Line>, Result<Stats, Box<Failure>>) {
    let mut sim = Sim::new(Scenario::of(seed));
    sim.record();
    let result = sim.run();
    (sim.recorded().to_vec(), result)
}

fn run_one(seed: u64) -> ExitCode {
    let (lines, result) = recorded(seed);
    print!("{}", beelet_sim::story::tell(&lines, beelet_sim::node::START, usize::MAX));
    match result {
        Ok(stats) => {
            println!("seed {seed} holds: {stats:?}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{}", failure.headline());
            ExitCode::FAILURE
        }
    }
}

fn run_crashes() -> ExitCode {
    for name in beelet_sim::crashes::LIVES {
        match beelet_sim::crashes::all(name, true) {
            Ok(ran) => println!("{name}: {} acts; {} lives with deaths end as without them", ran.acts, ran.runs),
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
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
