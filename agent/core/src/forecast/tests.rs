use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// Feeds values in MiB, `step` ms apart, and says after which the growth is confirmed.
fn feed(step: u64, values: &[u64]) -> Vec<bool> {
    let mut trend = Trend::default();
    let at = |i: usize| Micros::millis(1_000 + step * i as u64);
    values
        .iter()
        .enumerate()
        .map(|(i, v)| {
            assert!(trend.observe(at(i), Bytes::mib(*v)));
            trend.confirmed().is_some()
        })
        .collect()
}

#[test]
fn a_sudden_leak_is_seen_within_three_samples() {
    for (step, per_step) in [(20, 2), (50, 5), (100, 10)] {
        let mut values = vec![500; 30];
        values.extend((1..=3).map(|i| 500 + i * per_step));
        let seen = feed(step, &values);
        assert_eq!(seen.iter().position(|s| *s), Some(32), "{step} ms");
    }
}

#[test]
fn a_step_is_no_growth() {
    for step in [20, 50, 100, 500, 1_000] {
        let mut values = vec![100; 20];
        values.extend([900; 20]);
        assert!(!feed(step, &values).contains(&true), "{step} ms");
        // Nor a step on top of a slow growth of other size.
        let mut trend = Trend::default();
        for i in 0..40_u64 {
            let value = i * 100_000 + if i >= 20 { 800 * MIB } else { 0 };
            trend.observe(Micros::millis(step * (i + 1)), Bytes(value));
            assert!(
                trend.confirmed().is_none_or(|(slope, _)| slope <= 100_000 * 1_000 / step),
                "{step} ms, sample {i}"
            );
        }
    }
}

#[test]
fn a_staircase_is_growth_on_a_wider_scale() {
    // 10 MiB each 100 ms, looked at each 20 ms.
    let values: Vec<u64> = (0..60).map(|i| 100 + i / 5 * 10).collect();
    assert!(feed(20, &values)[30..].iter().all(|s| *s));
}

#[test]
fn a_saw_tooth_is_not_forecast_from_its_second_tooth_on() {
    for step in [20, 100, 300] {
        let tooth: Vec<u64> = (0..15).map(|i| 200 + i * 20).collect();
        let values: Vec<u64> = tooth.iter().cycle().take(15 * 8).copied().collect();
        let seen = feed(step, &values);
        assert!(seen[..15].contains(&true), "{step} ms: the first tooth is a leak for all we know");
        // Teeth of more than the memory of peaks look like leaks.
        if step * 15 < 10_000 {
            assert!(!seen[15..].contains(&true), "{step} ms");
        }
    }
}

#[test]
fn growth_beyond_the_last_peak_is_forecast_again() {
    let mut values: Vec<u64> = (0..10).map(|i| 200 + i * 20).collect();
    values.extend((0..20).map(|i| 200 + i * 20));
    let seen = feed(50, &values);
    assert!(!seen[10..19].contains(&true));
    assert!(seen[20..].iter().all(|s| *s));
}

#[test]
fn growth_that_ended_is_not_forecast() {
    let mut values: Vec<u64> = (0..30).map(|i| 100 + i * 20).collect();
    values.extend([680; 20]);
    let seen = feed(20, &values);
    assert!(seen[29]);
    assert!(!seen[40..].contains(&true));
}

#[test]
fn stale_samples_change_nothing_and_a_gap_forgets() {
    let mut trend = Trend::default();
    for i in 1..=5 {
        trend.observe(Micros::millis(100 * i), Bytes::mib(10 * i));
    }
    let before = trend.clone();
    assert!(!trend.observe(Micros::millis(500), Bytes::mib(900)));
    assert!(!trend.observe(Micros::millis(100), Bytes::mib(900)));
    assert_eq!(trend, before);
    trend.observe(Micros::secs(20), Bytes::mib(60));
    assert_eq!(trend.confirmed(), None);
}

#[test]
fn paces() {
    // Headroom in MiB, growth in MiB/s, pressure, interval in ms, all pods.
    for (headroom, growth, pressure, interval, all_pods) in [
        (100_000, 0, false, 1_000, true),
        (8_192, 0, false, 1_000, true),
        (4_096, 0, false, 500, false),
        (4_096, 0, true, 500, true),
        (2_048, 0, false, 250, false),
        (2_048, 2_000, false, 250, true),
        (512, 0, false, 62, true),
        (100, 0, false, 20, true),
        (0, 0, false, 20, true),
        (4_096, 8_192, false, 125, true),
    ] {
        let pace = pace(Bytes::mib(headroom), growth * MIB, pressure);
        assert_eq!(
            (pace.interval.get() / 1_000, pace.all_pods),
            (interval, all_pods),
            "{headroom} {growth} {pressure}"
        );
    }
}

proptest! {
    /// A linear leak is never forecast later than it happens.
    #[test]
    fn a_forecast_is_not_later_than_the_truth(
        rate in 10_u64..4_000, step in 20_u64..500, jitter in prop::collection::vec(0_u64..8, 8..40), headroom in 1_u64..4_000,
    ) {
        let mut trend = Trend::default();
        let (mut at, mut last) = (1_000_u64, None);
        for j in jitter {
            at += step + j;
            trend.observe(Micros::millis(at), Bytes(rate * MIB / 1_000 * at));
            last = Some(at);
        }
        prop_assert!(last.is_some());
        let truth = headroom * 1_000_000 / rate;
        if let Some(forecast) = trend.forecast(Bytes::mib(headroom)) {
            // One part in a thousand for the rounding of rate per millisecond.
            prop_assert!(forecast.time_to_oom.get() <= truth + truth / 500 + 2, "{forecast:?} {truth}");
            prop_assert!(forecast.slope > 0);
        } else {
            prop_assert!(rate * MIB / 1_000 * step < 2 * NOISE, "not confirmed");
        }
    }

    #[test]
    fn the_pace_is_within_its_bounds(headroom in any::<u64>(), more in any::<u64>(), growth in any::<u64>(), pressure: bool) {
        let one = pace(Bytes(headroom), growth, pressure);
        prop_assert!((MIN_INTERVAL..=MAX_INTERVAL).contains(&one.interval));
        let wider = pace(Bytes(headroom.saturating_add(more)), growth, pressure);
        prop_assert!(wider.interval >= one.interval);
    }

    #[test]
    fn nothing_panics(samples in prop::collection::vec((any::<u64>(), any::<u64>()), 0..60)) {
        let mut trend = Trend::default();
        for (at, value) in samples {
            trend.observe(Micros(at), Bytes(value));
            let _ = (trend.growth(), trend.forecast(Bytes(value)));
        }
    }
}
