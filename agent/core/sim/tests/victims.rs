//! Fifty scenes of several pods: beelet takes the right one in all. That the scenes are what they say is tested beside them.

use beelet_sim::compare::PHASES;
use beelet_sim::victims::{Verdict, cases};

#[test]
fn beelet_takes_the_right_victim_in_fifty_of_fifty() {
    let cases = cases();
    assert_eq!(cases.len(), 50);
    let mut wrong = Vec::new();
    for case in &cases {
        for phase in PHASES {
            // Beelet's are the first.
            let outcome = case.run(0, phase);
            if case.verdict(&outcome) != Verdict::Right {
                let kills = outcome.kills.iter().map(|k| format!("{} at {}", k.victim, k.at)).collect::<Vec<_>>();
                wrong.push(format!("{}: {:?} rather than {:?}, {:?}", case.scene.name, kills, case.goes, outcome.oom));
            }
        }
    }
    assert!(wrong.is_empty(), "{} runs:\n{}", wrong.len(), wrong.join("\n"));
}
