//! A day of churn leaves nothing behind. Longer ones: `cargo run -p beelet-sim -- soak HOURS SEED`.

use beelet_core::units::Micros;
use beelet_sim::soak::{peaks, run};

const HOUR: Micros = Micros::secs(3_600);

#[test]
fn twenty_four_hours_of_churn_do_not_grow() {
    let (stats, sizes) = run(24, 1, Micros::secs(300)).unwrap_or_else(|failure| panic!("{failure:.2000}"));
    println!("{stats:?}");
    assert!(stats.operations > 10_000 && stats.evictions > 20 && stats.ooms.own > 50, "too little happened: {stats:?}");
    let early = peaks(&sizes, HOUR.scale(2, 1), HOUR.scale(13, 1));
    let late = peaks(&sizes, HOUR.scale(13, 1), HOUR.scale(24, 1));
    println!("hours 2 to 13: {early:?}\nhours 13 to 24: {late:?}");
    for ((name, before), (_, after)) in early.iter().zip(&late) {
        // What pods there are differs from hour to hour, so only the peaks of half a day are alike.
        assert!(*after <= before + before / 5 + 20, "{name} grew from {before} to {after}");
    }
}
