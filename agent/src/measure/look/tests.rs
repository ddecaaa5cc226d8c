//! The sampler between its messages.

use std::path::PathBuf;
use std::sync::mpsc::channel;

use tokio::sync::mpsc;

use super::super::slot::{SampleReceiver, slot};
use super::super::thread::Command;
use super::super::{Slow, Target};
use super::*;
use crate::clock::Clock;
use crate::kernel::cgroup::CgroupLayout;
use crate::kernel::drop_reasons::DropReasons;
use crate::kernel::maps::Counters;

fn looker(root: &Path) -> (Looker, SampleReceiver, mpsc::UnboundedReceiver<Event>) {
    let ((samples, taken), (events, told)) = (slot(), mpsc::unbounded_channel());
    let parts = SamplerParts {
        layout: CgroupLayout::V2 { root: root.to_owned() },
        kubepods: PathBuf::from("kubepods"),
        counters: Counters::default(),
        clock: Clock,
        samples,
        events,
        slow: Slow::default(),
        drop_reasons: DropReasons::default(),
        born: None,
    };
    (Looker::new(parts, Arc::default()), taken, told)
}

fn listen(cgroup: u64, port: u16) -> RawEvent {
    let comm = "app".to_owned();
    RawEvent::Listen(Listen { cgroup, port, ipv6: false, opened: true, pid: 1, comm, at_ns: 1_000 })
}

/// A looker that knows one pod with its own cgroup.
fn with_a_pod(root: &Path) -> (Looker, u64, mpsc::UnboundedReceiver<Event>) {
    std::fs::create_dir_all(root.join("kubepods/pod")).unwrap();
    let (mut looker, _, told) = looker(root);
    let target = Target {
        uid: "u".into(),
        cgroup: "kubepods/pod".to_owned(),
        containers: Vec::new(),
        host_network: false,
        logs: String::new(),
    };
    looker.aim(vec![target]);
    let id = Cgroup::open(&looker.parts.layout, Path::new("kubepods/pod")).unwrap().unwrap().id();
    (looker, id, told)
}

#[test]
fn a_flood_of_events_does_not_keep_it_from_looking() {
    let root = tempfile::tempdir().unwrap();
    let (looker, _taken, _told) = looker(root.path());
    let health = Arc::clone(&looker.health);
    let (commands, inbox) = channel();
    commands.send(Command::Pace { interval: Micros::millis(20), all_pods: false, stretch: 1_000 }).unwrap();
    // The inbox is never empty until the end.
    for n in 0..300_000 {
        commands.send(Command::Kernel(listen(n, 80))).unwrap();
    }
    commands.send(Command::Stop).unwrap();
    let began = std::time::Instant::now();
    looker.run_here(&inbox);
    let most = u64::try_from(began.elapsed().as_millis()).unwrap() / 20;
    let samples = health.samples.load(Ordering::Relaxed);
    assert!(samples >= (most / 3).max(1), "{samples} looks, at most {most} were possible");
    let untold = [&health.strangers, &health.flooded].map(|count| count.load(Ordering::Relaxed));
    assert!(untold.iter().sum::<u64>() >= 300_000 - 2 * UNKNOWN_MOST as u64, "{untold:?}");
}

#[test]
fn events_of_nobody_are_bounded_and_search_once_an_interval() {
    let root = tempfile::tempdir().unwrap();
    let (mut looker, _taken, _told) = looker(root.path());
    looker.interval = Micros::secs(3_600);
    looker.on_event(listen(1, 80));
    let searched = looker.last_search;
    for n in 0..2_000 {
        looker.on_event(listen(n, 80));
    }
    assert_eq!((looker.last_search, looker.waiting.len()), (searched, UNKNOWN_MOST));
    let health = &looker.health;
    let told = [&health.strangers, &health.flooded].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(told, [0, 2_001 - UNKNOWN_MOST as u64], "of a flood nobody found out whose they are");
}

#[test]
fn a_port_that_is_not_known_is_not_told() {
    let root = tempfile::tempdir().unwrap();
    let (mut looker, id, mut told) = with_a_pod(root.path());
    looker.on_event(listen(id, 0));
    assert!(told.try_recv().is_err() && looker.waiting.is_empty());
    looker.on_event(listen(id, 80));
    assert!(told.try_recv().is_ok());
}

#[test]
fn a_guess_of_the_oom_killers_victim_blames_nobody_until_its_end() {
    let root = tempfile::tempdir().unwrap();
    let (mut looker, id, mut told) = with_a_pod(root.path());
    let guess = |pid| {
        RawEvent::Oom(OomVictim {
            cgroup: id,
            cgroup_is_guess: true,
            pid,
            comm: String::new(),
            oom_score_adj: 0,
            memory: None,
            at_ns: 5_000,
        })
    };
    looker.on_event(guess(6));
    looker.on_event(guess(7));
    assert!(told.try_recv().is_err(), "the pod that asked for memory is blamed");
    looker.on_event(RawEvent::Exit(ProcessExit {
        cgroup: id,
        pid: 7,
        ns_pid: None,
        status: crate::kernel::events::ExitStatus(9),
        oom_marked: true,
        comm: "hog".to_owned(),
        started_ns: 0,
        at_ns: 9_000,
    }));
    let kinds: Vec<KernelEventKind> = std::iter::from_fn(|| told.try_recv().ok())
        .filter_map(|event| if let Event::Kernel(event) = event { Some(event.kind) } else { None })
        .collect();
    assert_eq!(kinds[0], KernelEventKind::OomVictim { pid: 7, comm: "hog".to_owned() });
    assert!(matches!(kinds[1..], [KernelEventKind::Exit { pid: 7, .. }]), "{kinds:?}");
}

#[test]
fn a_memory_event_leads_to_a_look_at_its_pod_at_once() {
    let root = tempfile::tempdir().unwrap();
    let (looker, id, _told) = with_a_pod(root.path());
    let health = Arc::clone(&looker.health);
    let (commands, inbox) = channel();
    let told = std::thread::spawn(move || {
        // Nothing is due for an hour.
        commands.send(Command::Pace { interval: Micros::secs(3_600), all_pods: false, stretch: 4_000_000 }).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1_300));
        let asked = |health: &Health| health.asked.looks.load(Ordering::Relaxed);
        let before = asked(&health);
        commands.send(Command::MemoryEvent(id)).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let after = asked(&health);
        for _ in 0..100 {
            commands.send(Command::MemoryEvent(id)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let flood = asked(&health);
        commands.send(Command::Stop).unwrap();
        (before, after, flood)
    });
    looker.run_here(&inbox);
    let (before, after, flood) = told.join().unwrap();
    assert_eq!((before, after), (0, 1));
    assert!((2..=8).contains(&(flood - after)), "{flood} looks in half a second of events");
}
