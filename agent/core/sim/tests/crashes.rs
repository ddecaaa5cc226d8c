//! An agent that dies at each act of a pod's life, and the end is the same. With two deaths: `cargo xtask sim --crashes`.

use beelet_sim::crashes::{all, ends_of};

/// Fails with what happened unless all deaths are survived, there are so many acts at least, and the end says this.
fn survives(life: &str, least: u64, end: &[&str]) {
    let ends = ends_of(life);
    for wanted in end {
        assert!(ends.iter().any(|line| line.starts_with(wanted)), "{life} does not end with {wanted}: {ends:#?}");
    }
    assert_eq!(end.is_empty(), ends.is_empty(), "{life}: {ends:#?}");
    let ran = all(life, false).unwrap_or_else(|failure| panic!("{failure}"));
    assert!(ran.acts >= least, "{life} does too little: {ran:?}");
    println!("{life}: {ran:?}");
}

#[test]
fn a4_recovery_a_plain_pod_runs() {
    survives("plain", 4, &["uid-plain: Running Running", "uid-plain/main: runs, 0 restarts"]);
}

#[test]
fn a4_5_recovery_init_containers_and_sidecars() {
    let end = [
        "uid-sidecars/init: ended 0 Completed, 0 restarts",
        "uid-sidecars/sidecar: runs, 0",
        "uid-sidecars/main: runs, 0",
    ];
    survives("sidecars", 6, &end);
}

#[test]
fn a4_1b_recovery_a_job_succeeds_once() {
    survives(
        "job",
        12,
        &["uid-job: Terminal Succeeded", "uid-job/main: ended 0 Completed, 0 restarts", "note of uid-job: Succeeded"],
    );
}

#[test]
fn a4_1b_recovery_a_job_fails_once() {
    survives("failing", 10, &["uid-failing: Terminal Failed", "uid-failing/main: ended 1 Error, 0 restarts"]);
}

#[test]
fn a4_8_recovery_a_crash_loop_goes_on() {
    survives("crashing", 9, &["uid-crashing: Running Running", "sandbox of uid-crashing, ready: true"]);
}

#[test]
fn a4_11_recovery_a_deleted_pod_is_gone() {
    survives("deleted", 12, &[]);
}

#[test]
fn a4_11_recovery_a_pod_that_is_wanted_again_while_it_goes_runs() {
    survives(
        "stubborn",
        10,
        &["uid-stubborn: Running Running", "uid-stubborn/main: runs", "uid-stubborn/second: runs"],
    );
}

#[test]
fn a4_4c_recovery_an_evicted_pod_stays_evicted() {
    survives(
        "evicted",
        10,
        &["uid-evicted: Terminal Failed Evicted", "note of uid-evicted: Failed Evicted", "uid-beside: Running"],
    );
}

#[test]
fn a4_2h_recovery_a_resize_is_done() {
    survives("resized", 6, &["uid-resized: Running Running", "uid-resized/main: runs, 0 restarts"]);
}
