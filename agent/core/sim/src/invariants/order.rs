//! What must hold of the order in which containers start and stop, and of ends.

use std::collections::{BTreeMap, BTreeSet};

use beelet_core::event::{Action, PodOp, Terminal};
use beelet_core::pod::{Pod, PodState};
use beelet_core::restart;
use beelet_core::snapshot::Phase;
use beelet_core::spec::PodUid;
use beelet_core::stop::Stop;

use super::{Holds, Look, must};

/// The ends that are written down.
#[derive(Debug, Default)]
pub(super) struct Order {
    ended: BTreeMap<PodUid, (Phase, String)>,
}

impl Order {
    /// After the death of an agent: what is really written down.
    pub(super) fn of<'a>(notes: impl Iterator<Item = &'a Terminal>) -> Self {
        Self { ended: notes.map(|end| (end.uid.clone(), (end.phase, end.reason.clone()))).collect() }
    }

    pub(super) fn check(&mut self, look: &Look<'_>) -> Holds {
        invariant_nothing_runs_twice(look)?;
        for action in look.actions {
            match action {
                Action::Pod { uid, what: PodOp::StartContainer { container, .. }, .. } => {
                    self.invariant_an_end_is_the_end(uid, None)?;
                    look.world
                        .pods()
                        .get(uid)
                        .map_or(Ok(()), |pod| invariant_init_containers_come_first(pod, container))?;
                }
                Action::Pod { uid, what: PodOp::StartSandbox { .. }, .. } => {
                    self.invariant_an_end_is_the_end(uid, None)?;
                }
                Action::Pod { uid, what: PodOp::StopContainers { stops, .. }, .. } => {
                    look.world.pods().get(uid).map_or(Ok(()), |pod| invariant_sidecars_go_last(look, pod, stops))?;
                }
                Action::Remember(end) => self.invariant_an_end_is_the_end(&end.uid, Some(end))?,
                Action::Forget(uid) => _ = self.ended.remove(uid),
                _ => {}
            }
        }
        Ok(())
    }

    /// A pod that has ended does not run again, and its phase and reason stay.
    fn invariant_an_end_is_the_end(&mut self, uid: &PodUid, end: Option<&Terminal>) -> Holds {
        let before = self.ended.get(uid);
        let same = end.is_some_and(|end| before.is_some_and(|before| *before == (end.phase, end.reason.clone())));
        must(same || before.is_none(), "invariant_an_end_is_the_end", || {
            format!("{uid} has ended as {before:?}, and now {}", end.map_or("runs", |_| "ends otherwise"))
        })?;
        if let Some(end) = end {
            self.ended.insert(uid.clone(), (end.phase, end.reason.clone()));
        }
        Ok(())
    }
}

fn invariant_nothing_runs_twice(look: &Look<'_>) -> Holds {
    let mut seen = BTreeSet::new();
    for proc in look.kernel.procs.values() {
        let first = seen.insert((&proc.uid, &proc.name));
        must(first, "invariant_nothing_runs_twice", || format!("{} of {}", proc.name, proc.uid))?;
    }
    Ok(())
}

/// Before a container starts for the first time in its sandbox, the init containers before it have ended well, and the sidecars have run.
fn invariant_init_containers_come_first(pod: &Pod, container: &str) -> Holds {
    let inits = &pod.spec.init_containers;
    if pod.spec.containers.iter().any(|c| pod.latest(&c.name).is_some()) {
        return Ok(());
    }
    let place = inits.iter().position(|c| c.name == container).unwrap_or(inits.len());
    let lost = inits.iter().all(|c| pod.latest(&c.name).is_none());
    for before in &inits[..place] {
        let latest = pod.latest(&before.name);
        // One that the runtime has forgotten is over if a later one is there.
        let over = latest.map_or(!lost, |c| restart::is_sidecar(&pod.spec, before) || c.exit_code() == Some(0));
        must(over, "invariant_init_containers_come_first", || {
            format!("{container} of {} starts while {} is {latest:?}", pod.spec.uid, before.name)
        })?;
    }
    Ok(())
}

/// A sidecar is told to stop when those that stop before it run no more, or when the time of all is up.
fn invariant_sidecars_go_last(look: &Look<'_>, pod: &Pod, stops: &[Stop]) -> Holds {
    let PodState::Terminating { deadline, .. } = pod.state else { return Ok(()) };
    if look.now.mono >= deadline {
        return Ok(());
    }
    let ids: Vec<&String> = stops.iter().filter(|stop| stop.signal).map(|stop| &stop.id).collect();
    let stage = |name: &str| restart::stage(&pod.spec, name);
    let last = pod.containers.iter().filter(|c| ids.contains(&&c.id)).map(|c| stage(&c.name)).max().unwrap_or(0);
    let early = pod.live_containers().find(|c| stage(&c.name) < last && look.kernel.procs.contains_key(&c.id));
    must(early.is_none(), "invariant_sidecars_go_last", || format!("{ids:?} of {} before {early:?}", pod.spec.uid))
}
