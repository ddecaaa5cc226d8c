//! Being asked to leave before a threshold is met.

use super::*;

/// A leak of `rate` MiB/s that may be asked to leave, or not, and is given `grace` seconds: four looks each second. The first eviction,
/// and the seconds that were left until the threshold of 100 MiB.
fn leak(rate: u64, leaves: bool, grace: u64, most: u64) -> Option<(u64, Box<Eviction>)> {
    let mut decider = Decider::new(&config());
    for quarter in 0..4 * 300 {
        let anon = (500 + rate * quarter / 4).min(most);
        let growth = if anon < most { i64::try_from(rate << 20).unwrap_or(0) } else { 0 };
        let pods = [Pod { growth: Some(growth), ..pod("a", anon) }];
        let mut all = candidates(&pods);
        (all[0].leaves, all[0].grace) = (leaves, Micros::secs(grace));
        let it = sample(1_000 + quarter * 250, anon, 0, Some(&pods));
        if let Decision::Evict(eviction) = decider.step(it.at, &it, Some(&all)) {
            assert_eq!(decider.asked_to_leave().is_some(), eviction.kind == Kind::Forecast);
            return Some(((LIMIT - 100).saturating_sub(anon) / rate, eviction));
        }
    }
    None
}

#[test]
fn who_wants_it_is_asked_as_long_before_the_threshold_as_he_needs() {
    for (rate, grace, given) in [(50, 5, 5), (50, 30, 30), (20, 60, 30), (20, 0, 1)] {
        let (left, eviction) = leak(rate, true, grace, LIMIT).expect("it leaks");
        assert_eq!((eviction.kind, eviction.grace), (Kind::Forecast, Micros::secs(given)), "{rate} {grace}");
        // Nearer by the second that confirms it, and by a look.
        assert!(
            (given.saturating_sub(2)..=given).contains(&left),
            "{rate} MiB/s, {grace} s: {left} s before the threshold"
        );
        let told = |name: &str| eviction.evidence.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!((told("threshold_kind"), told("met_for")), (Some("forecast"), Some("not met yet")));
    }
}

#[test]
fn who_does_not_want_it_goes_when_the_threshold_is_met() {
    let (left, eviction) = leak(50, false, 30, LIMIT).expect("it leaks");
    assert_eq!((eviction.kind, eviction.grace, left), (Kind::Hard, Micros::ZERO, 0));
}

#[test]
fn growth_that_ends_asks_nobody() {
    // It is near from about 880 MiB on, and would be asked a second later, at 937 MiB.
    assert_eq!(leak(50, true, 30, 920), None);
}

#[test]
fn the_first_victim_is_asked_and_nobody_instead_of_him() {
    let mut decider = Decider::new(&config());
    for quarter in 0..100 {
        let anon = 1_500 + 10 * quarter;
        let pods = [Pod { growth: Some(40 << 20), ..pod("a", anon) }, pod("b", 300)];
        let mut all = candidates(&pods);
        all[1].leaves = true;
        let it = sample(1_000 + quarter * 250, anon + 300, 0, Some(&pods));
        let decision = decider.step(it.at, &it, Some(&all));
        match victim(&decision) {
            None => assert_eq!(decision, Decision::Nothing),
            Some(first) => {
                let Decision::Evict(eviction) = &decision else { unreachable!("it has a victim") };
                assert_eq!((first, eviction.kind), ("a", Kind::Hard));
                return;
            }
        }
    }
    panic!("the threshold is met in the end");
}

#[test]
fn the_threshold_takes_the_rest_of_the_time() {
    let mut decider = Decider::new(&config());
    let mut asked = None;
    for quarter in 0..200 {
        let anon = 1_000 + 10 * quarter;
        let pods = [Pod { growth: Some(40 << 20), terminating: asked.is_some(), ..pod("a", anon) }];
        let mut all = candidates(&pods);
        all[0].leaves = true;
        let it = sample(1_000 + quarter * 250, anon, 0, Some(&pods));
        match (decider.step(it.at, &it, Some(&all)), asked) {
            (Decision::Evict(eviction), None) => asked = Some((eviction.kind, eviction.hastened)),
            (Decision::Evict(eviction), Some(asked)) => {
                assert_eq!(asked, (Kind::Forecast, false));
                assert_eq!((eviction.kind, eviction.hastened, eviction.grace), (Kind::Hard, true, Micros::ZERO));
                assert!(anon > LIMIT - 130 && decider.asked_to_leave().is_none(), "{anon}");
                return;
            }
            _ => {}
        }
    }
    panic!("it was asked: {asked:?}, and not killed");
}
