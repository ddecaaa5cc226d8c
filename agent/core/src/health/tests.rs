use super::*;
use crate::spec::PodUid;
use proptest::prelude::*;

fn now(ms: u64) -> Now {
    Now { mono: Micros::millis(ms), wall: Micros::millis(1_000_000 + ms) }
}

fn kernel(ms: u64, kind: KernelEventKind) -> KernelEvent {
    KernelEvent { at: Micros::millis(ms), uid: PodUid::from("u"), container: Some("app".to_owned()), kind }
}

fn died(signal: u8, is_init: bool) -> KernelEventKind {
    KernelEventKind::Exit { pid: 7, comm: "app".to_owned(), code: 0, signal, is_init }
}

fn exit(ms: u64, code: i32, reason: &str) -> Exit {
    let finished = now(ms).wall;
    Exit { started: finished, finished, code, reason: reason.to_owned(), message: String::new() }
}

fn ports(list: &[u16]) -> BTreeSet<u16> {
    list.iter().copied().collect()
}

fn running() -> HealthModel {
    let mut health = HealthModel::default();
    health.on_running("app", now(0));
    health
}

fn state(health: &HealthModel, ms: u64) -> (Health, String) {
    let verdict = health.verdict(now(ms));
    (verdict.state, verdict.reason)
}

#[test]
fn unknown_until_something_ran_for_a_second() {
    assert_eq!(HealthModel::default().verdict(now(5_000)).state, Health::Unknown);
    let health = running();
    assert_eq!(health.verdict(now(999)).state, Health::Unknown);
    let verdict = health.verdict(now(1_000));
    assert_eq!((verdict.state, verdict.since), (Health::Healthy, now(1_000).wall));
}

#[test]
fn a5_8_what_the_kernel_tells() {
    let cases = [
        (KernelEventKind::OomVictim { pid: 7, comm: "app".to_owned() }, Health::Unhealthy, "OOMVictim"),
        (died(11, true), Health::Unhealthy, "FatalSignal"),
        (died(6, true), Health::Unhealthy, "FatalSignal"),
        (died(11, false), Health::Suspect, "FatalSignal"),
        (died(9, true), Health::Healthy, ""),
        (died(15, true), Health::Healthy, ""),
        (died(0, false), Health::Healthy, ""),
    ];
    for (kind, expected, reason) in cases {
        let mut health = running();
        health.on_kernel(&kernel(2_000, kind.clone()));
        assert_eq!(state(&health, 2_100), (expected, reason.to_owned()), "{kind:?}");
        assert_eq!(health.verdict(now(2_100)).evidence.is_empty(), reason.is_empty(), "{kind:?}");
    }
}

#[test]
fn signs_end_when_the_next_run_is_well() {
    let mut health = running();
    health.on_kernel(&kernel(10_000, died(11, true)));
    health.on_exit("app", &exit(10_000, 139, "Error"), 0, false, now(10_100));
    health.on_running("app", now(11_000));
    assert_eq!(state(&health, 70_999), (Health::Unhealthy, "FatalSignal".to_owned()));
    let verdict = health.verdict(now(71_000));
    assert_eq!((verdict.state, verdict.since), (Health::Healthy, now(71_000).wall));
}

#[test]
fn signs_of_a_container_that_stays_down_end_after_five_minutes() {
    let mut health = running();
    health.on_exit("app", &exit(10_000, 139, "Error"), 0, false, now(10_100));
    assert_eq!(health.verdict(now(309_000)).state, Health::Unhealthy);
    assert_eq!(health.verdict(now(310_000)).reason, "");
}

#[test]
fn crash_loops() {
    let mut health = running();
    health.on_exit("app", &exit(2_000, 1, "Error"), 0, false, now(2_100));
    assert_eq!(health.verdict(now(2_200)).state, Health::Healthy, "one failure is no loop");
    health.on_exit("app", &exit(2_000, 1, "Error"), 0, false, now(2_300));
    assert_eq!(health.verdict(now(2_400)).state, Health::Healthy, "the same end told twice is one end");
    health.on_running("app", now(3_000));
    health.on_exit("app", &exit(4_000, 1, "Error"), 1, true, now(4_100));
    assert_eq!(state(&health, 4_200), (Health::Unhealthy, "CrashLoop".to_owned()));
    assert_eq!(
        state(&health, 900_000),
        (Health::Unhealthy, "CrashLoop".to_owned()),
        "a back-off lasts as long as it lasts"
    );
    health.on_running("app", now(900_000));
    assert_eq!(health.verdict(now(960_000)).state, Health::Healthy);
}

#[test]
fn a_run_that_ended_well_is_at_most_a_sign() {
    let mut health = running();
    health.on_exit("app", &exit(2_000, 0, "Completed"), 0, false, now(2_100));
    assert_eq!(health.verdict(now(2_200)).state, Health::Healthy);
    health.on_exit("app", &exit(4_000, 0, "Completed"), 1, true, now(4_100));
    assert_eq!(health.verdict(now(4_200)).state, Health::Suspect);
}

#[test]
fn the_runtimes_word_for_an_oom_kill() {
    let mut health = running();
    health.on_exit("app", &exit(2_000, 137, "OOMKilled"), 0, false, now(2_100));
    assert_eq!(state(&health, 2_200), (Health::Unhealthy, "OOMVictim".to_owned()));
    let mut health = running();
    health.on_exit("app", &exit(2_000, 137, "Error"), 0, false, now(2_100));
    assert_eq!(health.verdict(now(2_200)).state, Health::Healthy, "SIGKILL by somebody else");
}

#[test]
fn listeners() {
    // Gone at 5 s: within the grace nothing, after it fatal because nothing listens any more; back again: healthy.
    let mut health = running();
    health.on_listening(&ports(&[80]), Micros::secs(2));
    assert!(health.verdict(now(2_000)).evidence[0].ends_with("port 80 listens"));
    health.on_listening(&ports(&[]), Micros::secs(5));
    assert_eq!(health.verdict(now(7_000)).state, Health::Healthy);
    assert_eq!(state(&health, 7_001), (Health::Unhealthy, "ListenerGone".to_owned()));
    health.on_listening(&ports(&[80]), Micros::secs(8));
    let verdict = health.verdict(now(8_000));
    assert_eq!((verdict.state, verdict.since), (Health::Healthy, now(8_000).wall));
    assert_eq!(verdict.evidence.len(), 2);
}

#[test]
fn one_listener_of_several_is_a_sign_unless_it_is_declared() {
    for (declared, expected) in [(ports(&[]), Health::Suspect), (ports(&[80]), Health::Unhealthy)] {
        let mut health = HealthModel::new(declared);
        health.on_running("app", now(0));
        health.on_listening(&ports(&[80, 81]), Micros::secs(2));
        health.on_listening(&ports(&[81]), Micros::secs(5));
        assert_eq!(health.verdict(now(8_000)).state, expected);
    }
}

#[test]
fn a_listener_that_goes_with_its_container_is_no_sign() {
    let mut health = running();
    health.on_running("other", now(0));
    health.on_listening(&ports(&[80]), Micros::secs(2));
    health.on_listening(&ports(&[]), Micros::secs(5));
    health.on_exit("app", &exit(4_990, 0, "Completed"), 0, false, now(6_000));
    assert_eq!(health.verdict(now(9_000)).state, Health::Healthy);
    // The other order: first the news of the end, then the listing.
    let mut health = running();
    health.on_running("other", now(0));
    health.on_listening(&ports(&[80]), Micros::secs(2));
    health.on_kernel(&kernel(5_000, died(15, true)));
    health.on_listening(&ports(&[]), Micros::millis(5_500));
    assert_eq!(health.verdict(now(9_000)).state, Health::Healthy);
}

#[test]
fn a_short_listener_is_no_service() {
    let mut health = running();
    health.on_listening(&ports(&[4000]), Micros::secs(2));
    health.on_listening(&ports(&[]), Micros::millis(2_900));
    assert_eq!(health.verdict(now(9_000)).state, Health::Healthy);
}

#[test]
fn our_own_stop_is_no_sign() {
    let mut health = running();
    health.on_listening(&ports(&[80]), Micros::secs(2));
    health.on_stopping();
    health.on_kernel(&kernel(3_000, died(6, true)));
    health.on_exit("app", &exit(3_000, 134, "Error"), 0, false, now(3_100));
    health.on_listening(&ports(&[]), Micros::secs(4));
    assert_eq!(health.verdict(now(9_000)).reason, "");
}

proptest! {
    /// A verdict is a function of the facts and the time; evidence is bounded and there is some for every sign.
    #[test]
    fn a5_8_every_verdict_has_evidence(events in prop::collection::vec((0_u8..7, 0_u64..3_000, 0_u8..32, any::<bool>()), 0..60)) {
        let mut health = HealthModel::new(ports(&[80]));
        let mut at = 0;
        for (kind, wait, number, flag) in events {
            at += wait;
            match kind {
                0 => health.on_running("app", now(at)),
                1 => health.on_kernel(&kernel(at, died(number, flag))),
                2 => health.on_kernel(&kernel(at, KernelEventKind::OomVictim { pid: 1, comm: "x".to_owned() })),
                3 => health.on_exit("app", &exit(at, i32::from(number) + 128, "Error"), u32::from(number), flag, now(at)),
                4 => health.on_exit("app", &exit(at, 0, "Completed"), u32::from(number), flag, now(at)),
                5 => health.on_listening(&if flag { ports(&[80, 90]) } else { ports(&[u16::from(number)]) }, Micros::millis(at)),
                _ => health.on_kernel(&kernel(at, KernelEventKind::Listen { port: u16::from(number), open: flag })),
            }
            let verdict = health.verdict(now(at));
            prop_assert!(verdict.evidence.len() <= EVIDENCE);
            prop_assert!(verdict.since <= now(at).wall);
            if verdict.state > Health::Healthy && verdict.reason != "CrashLoop" {
                prop_assert!(!verdict.evidence.is_empty());
            }
            prop_assert_eq!(verdict.reason.is_empty(), verdict.state <= Health::Healthy);
            prop_assert_eq!(&verdict, &health.verdict(now(at)));
        }
        // Well for long enough, everything is forgiven.
        health.on_running("app", now(at));
        health.on_listening(&ports(&[]), Micros::millis(at + 1));
        prop_assert_eq!(health.verdict(now(at + 301_000)).state, Health::Healthy);
    }
}
