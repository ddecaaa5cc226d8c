//! Ends that the kernel told of before the runtime.
//!
//! Problem: a runtime tells of a container's end only after it has tidied up behind it, some 50 ms later and seconds on a busy node;
//! the kernel tells at once. Approach: when a container's first process ends, what `wait` will say of it is the container's end as
//! far as people are told. What is *done* about it (another run, the end of the pod) waits for the runtime, which would refuse it before.
//!
//! Properties (tested): the end of another process, or of an earlier run's, is no end of the container; the runtime's word, once it
//! is there, replaces the kernel's; and if the runtime still says [`HOLDS`] later that the container runs, it does.

use crate::event::{Action, ContainerFact, ContainerFactState, Exit};
use crate::pod::Pod;
use crate::sample::{KernelEvent, KernelEventKind};
use crate::units::{Micros, Now};
use crate::world::World;

/// So long the kernel's word holds against listings of the runtime.
const HOLDS: Micros = Micros::secs(10);

/// An end that the kernel told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EarlyEnd {
    /// The run: the runtime's id.
    run: String,
    exit: Exit,
    /// When it happened (monotonic).
    at: Micros,
}

impl World {
    /// A process ended in a pod.
    pub(crate) fn on_process_exit(&mut self, event: &KernelEvent, now: Now) {
        let KernelEventKind::Exit { pid, code, signal, is_init, .. } = &event.kind else { return };
        let Some(pod) = self.pods.get_mut(&event.uid) else { return };
        let status = if *signal > 0 { 128 + i32::from(*signal) } else { i32::from(*code) };
        let is_end = event.container.as_deref().is_some_and(|name| pod.ends_early(name, *pid, status, event.at, now));
        // The runtime will know in a moment; the distance is the act's business.
        if is_end || *is_init {
            self.act(Action::Relist);
        }
    }
}

impl Pod {
    /// Whether this was the first process of the container's run; if so, it is noted.
    fn ends_early(&mut self, name: &str, pid: u32, code: i32, at: Micros, now: Now) -> bool {
        let Some(fact) = self.latest(name) else { return false };
        let ContainerFactState::Running { started } = fact.state else { return false };
        if fact.pid != Some(pid) {
            return false;
        }
        let run = fact.id.clone();
        let Some(track) = self.tracks.get_mut(name) else { return false };
        // The runtimes' words.
        let reason = match code {
            0 => "Completed",
            137 if track.oom.hit() => "OOMKilled",
            _ => "Error",
        };
        let finished = (now.wall - (now.mono - at)).max(started);
        let exit = Exit { started, finished, code, reason: reason.to_owned(), message: String::new() };
        track.early = Some(EarlyEnd { run, exit, at });
        true
    }

    /// How a container ended that still runs as far as the runtime has told.
    pub(crate) fn early_end(&self, fact: &ContainerFact) -> Option<&Exit> {
        let early = self.tracks.get(&fact.name)?.early.as_ref()?;
        let is_open = matches!(fact.state, ContainerFactState::Running { .. });
        (is_open && early.run == fact.id).then_some(&early.exit)
    }

    /// Takes a listing that was asked for at this moment.
    pub(crate) fn settle_early(&mut self, asked: Micros) {
        for track in self.tracks.values_mut() {
            if track.early.as_ref().is_some_and(|early| asked > early.at + HOLDS) {
                track.early = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::event::{Event, RuntimeFacts, SandboxFact};
    use crate::node::NodeConfig;
    use crate::snapshot::ContainerState;

    const UID: &str = "uid-a";

    fn now(mono: Micros) -> Now {
        Now { mono, wall: Micros::secs(1_000_000) + mono }
    }

    /// What a runtime says of a pod with one container, of somebody else's.
    fn listing(asked: Micros, run: &str, pid: Option<u32>, state: ContainerFactState) -> Event {
        let sandbox = SandboxFact {
            id: "s".to_owned(),
            uid: UID.into(),
            namespace: "default".to_owned(),
            name: "a".to_owned(),
            attempt: 0,
            ready: true,
            ip: "10.0.0.1".to_owned(),
            created: Micros::secs(1_000_000),
            ours: false,
            cgroup_parent: String::new(),
            labels: BTreeMap::new(),
            other_ips: Vec::new(),
            no_address: false,
            given: BTreeMap::new(),
        };
        let container = ContainerFact {
            id: run.to_owned(),
            sandbox_id: "s".to_owned(),
            uid: UID.into(),
            name: "main".to_owned(),
            attempt: 0,
            image: String::new(),
            image_id: String::new(),
            state,
            resources: None,
            grace: None,
            pre_stop: None,
            pid,
            user: None,
        };
        Event::Runtime(RuntimeFacts {
            asked,
            sandboxes: vec![sandbox],
            containers: vec![container],
            leftovers: Vec::new(),
            features: crate::security::RuntimeFeatures::default(),
        })
    }

    fn running() -> ContainerFactState {
        ContainerFactState::Running { started: Micros::secs(1_000_001) }
    }

    fn exit(pid: u32, at: Micros, code: u8, signal: u8) -> Event {
        let kind = KernelEventKind::Exit { pid, comm: "app".to_owned(), code, signal, is_init: true };
        Event::Kernel(KernelEvent { at, uid: UID.into(), container: Some("main".to_owned()), kind })
    }

    fn oom(at: Micros) -> Event {
        let kind = KernelEventKind::OomVictim { pid: 7, comm: "app".to_owned() };
        Event::Kernel(KernelEvent { at, uid: UID.into(), container: Some("main".to_owned()), kind })
    }

    /// A node beside a kubelet, on which process 7 is the container's.
    fn world() -> World {
        let mut world = World::new(NodeConfig { beside: true, ..NodeConfig::default() });
        world.step(listing(Micros::secs(2), "r1", Some(7), running()), now(Micros::secs(2)));
        world
    }

    /// How the container ended, if it did: code, reason and whether it is ready.
    fn shown(world: &World, at: Micros) -> Option<(i32, String)> {
        let container = world.snapshot(now(at)).pods[0].containers[0].clone();
        match container.state {
            ContainerState::Terminated(exit) => {
                assert!(!container.ready && !container.started);
                Some((exit.code, exit.reason))
            }
            _ => None,
        }
    }

    #[test]
    fn a4_14d_an_end_is_told_by_the_kernels_word() {
        for (code, signal, expected) in [(0, 0, (0, "Completed")), (3, 0, (3, "Error")), (0, 9, (137, "Error"))] {
            let mut world = world();
            let at = Micros::millis(3_500);
            assert_eq!(shown(&world, at), None);
            let actions = world.step(exit(7, at, code, signal), now(at + Micros::millis(2)));
            assert!(actions.contains(&Action::Relist), "{actions:?}");
            assert_eq!(shown(&world, at), Some((expected.0, expected.1.to_owned())));
            let ContainerState::Terminated(exit) = world.snapshot(now(at)).pods[0].containers[0].state.clone() else {
                panic!("it ended")
            };
            assert_eq!(exit.finished, Micros::secs(1_000_000) + at);
        }
    }

    #[test]
    fn a4_14d_an_oom_kill_is_called_one() {
        let (mut world, at) = (world(), Micros::secs(4));
        world.step(oom(at), now(at));
        world.step(exit(7, at, 0, 9), now(at));
        assert_eq!(shown(&world, at), Some((137, "OOMKilled".to_owned())));
    }

    #[test]
    fn a4_14d_another_process_is_not_the_container() {
        let (mut world, at) = (world(), Micros::secs(4));
        // The first process of a namespace within the container's, such as a nested runtime makes.
        world.step(exit(8, at, 0, 9), now(at));
        assert_eq!(shown(&world, at), None);
        // A runtime that does not tell which process it is.
        world.step(listing(Micros::secs(5), "r1", None, running()), now(Micros::secs(5)));
        world.step(exit(7, Micros::secs(5), 0, 9), now(Micros::secs(5)));
        assert_eq!(shown(&world, at), None);
    }

    #[test]
    fn a4_14d_the_runtimes_word_replaces_the_kernels() {
        let (mut world, at) = (world(), Micros::secs(4));
        world.step(exit(7, at, 0, 9), now(at));
        // A listing that was asked for before the runtime knew.
        let soon = at + Micros::millis(20);
        world.step(listing(soon, "r1", Some(7), running()), now(soon));
        assert_eq!(shown(&world, soon), Some((137, "Error".to_owned())));
        let ended = Exit {
            started: Micros::secs(1_000_001),
            finished: Micros::secs(1_000_004),
            code: 42,
            reason: "StartError".to_owned(),
            message: String::new(),
        };
        let then = at + Micros::millis(60);
        world.step(listing(then, "r1", None, ContainerFactState::Exited(ended)), now(then));
        assert_eq!(shown(&world, then), Some((42, "StartError".to_owned())));
        // The next run has nothing of it.
        world.step(listing(then, "r2", Some(7), running()), now(then));
        assert_eq!(shown(&world, then), None);
    }

    #[test]
    fn a4_14d_a_runtime_that_insists_is_right() {
        let (mut world, at) = (world(), Micros::secs(4));
        world.step(exit(7, at, 0, 9), now(at));
        let late = at + HOLDS + Micros(1);
        world.step(listing(late, "r1", Some(7), running()), now(late));
        assert_eq!(shown(&world, late), None);
    }
}
