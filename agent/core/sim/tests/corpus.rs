//! Beelet on the corpus. That the corpus tells the truth is tested beside it; the rules of others, too.

use beelet_sim::compare::{Outcome, PHASES, contenders, run};
use beelet_sim::corpus::{Scene, Truth, scenes};

/// Every set of rules on a scene.
fn outcomes(scene: &Scene, i: usize) -> Vec<Outcome> {
    PHASES.map(|phase| run(scene, &mut *contenders(scene, phase).swap_remove(i), phase)).into()
}

/// Beelet's are the first.
fn beelet() -> impl Iterator<Item = (Scene, Vec<Outcome>)> {
    scenes().into_iter().map(|scene| {
        let outcomes = outcomes(&scene, 0);
        (scene, outcomes)
    })
}

#[test]
fn beelet_is_in_time_is_needed_and_leaves_false_alarms_alone() {
    // The kubelet's order, which is kept on purpose: a pod that asks for nothing exceeds its request and goes before one that
    // stays within it. Then the right one goes.
    let by_order = ["leak of 50 MiB/s below its request"];
    let mut seen = (0, 0);
    for (scene, outcomes) in beelet() {
        let name = scene.name.as_str();
        for outcome in outcomes {
            match scene.truth {
                Truth::Oom { .. } => {
                    seen.0 += 1;
                    assert_eq!(outcome.oom, None, "{name}: {outcome:?}");
                    assert!(!outcome.kills.is_empty(), "{name}");
                    assert!(outcome.kills.iter().all(|k| k.lead.is_some()), "{name}: not needed: {outcome:?}");
                    let wrong = outcome.kills.iter().filter(|k| !k.right).count();
                    assert_eq!(wrong, usize::from(by_order.contains(&name)), "{name}: {outcome:?}");
                }
                Truth::Quiet => {
                    seen.1 += 1;
                    assert_eq!(outcome, Outcome::default(), "{name}");
                }
                // The operator's threshold.
                Truth::Tight => assert_eq!(outcome.kills.len(), 1, "{name}"),
            }
        }
    }
    assert_eq!(seen, (19 * PHASES.len(), 10 * PHASES.len()));
}

#[test]
fn the_same_scene_has_the_same_end_and_the_others_fail_where_they_are_known_to() {
    let all = scenes();
    let of = |name: &str| all.iter().find(|s| s.name == name).expect("a scene of that name");
    let (slow, fast, tight) =
        (of("leak of 10 MiB/s"), of("leak of 400 MiB/s"), of("growth that stops 20 MiB before the wall"));
    let averted = |scene, i| outcomes(scene, i).iter().filter(|o| o.oom.is_none()).count();
    // The kubelet comes too late where less than its period is left; lmkd where PSI has not told of it yet.
    assert!((1..PHASES.len()).contains(&averted(slow, 1)) && averted(fast, 1) == 0);
    assert_eq!((averted(slow, 3), averted(fast, 3)), (PHASES.len(), 0));
    // systemd-oomd acts on a node that thrashes for long, and takes the one that suffers most.
    let oomd = outcomes(tight, 2);
    assert!(oomd.iter().all(|o| o.kills.len() == 1 && !o.kills[0].right), "{oomd:?}");
    assert_eq!(oomd, outcomes(tight, 2));
}
