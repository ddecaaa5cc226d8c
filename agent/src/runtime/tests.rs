//! The client against the fake runtime, over a real socket.

use std::collections::BTreeMap;
use std::time::Duration;

use beelet_core::content::Allocatable;
use beelet_core::event::{CgroupKnobs, ContainerFactState, Done, Kept, LinuxResources, OpError, SandboxFact};
use beelet_core::pulls::Policy;
use beelet_core::spec::{ContainerSpec, PodSpec, PodUid, PullPolicy, Resources};
use beelet_core::units::{Bytes, Micros, MilliCpu};
use beelet_proto::cri;
use futures::StreamExt;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::fake::Fake;
use super::{ContainerStart, Given, NodeEnv, Runtime, RuntimeError, Wake, paths};
use crate::images::Puller;
use crate::images::keyring::Keyring;
use crate::logs::keeper::Writer as _;
use crate::logs::links;

fn node() -> NodeEnv {
    NodeEnv {
        instance: "i1".to_owned(),
        node_name: "n1".to_owned(),
        host_ips: vec!["192.0.2.1".to_owned()],
        root: "/var/lib/kubelet".into(),
        pod_logs_dir: "/var/log/pods".into(),
        dns: beelet_core::dns::NodeDns::default(),
        cgroup_v2: true,
        seccomp_default: false,
        masked: Vec::new(),
        allocatable: Allocatable::default(),
    }
}

fn spec() -> PodSpec {
    let container = ContainerSpec { image: "busybox".to_owned(), ..ContainerSpec::unknown("c") };
    PodSpec { name: "p".to_owned(), containers: vec![container], ..PodSpec::unknown(PodUid::from("u1")) }
}

fn given() -> BTreeMap<String, Kept> {
    [("c".to_owned(), Kept { resources: linux(None).resources, next_attempt: 3 })].into()
}

fn linux(limit: Option<Bytes>) -> LinuxResources {
    LinuxResources {
        knobs: CgroupKnobs {
            cpu_shares: Some(204),
            cpu_quota: None,
            cpu_period: Micros::millis(100),
            memory_max: limit,
        },
        oom_score_adj: 999,
        resources: Resources { cpu_request: Some(MilliCpu(200)), memory_limit: limit, ..Resources::default() },
    }
}

fn client(fake: &Fake) -> Runtime {
    Runtime::connect(&fake.endpoint(), Duration::from_secs(5), "i1").expect("a socket's address")
}

async fn sandbox(runtime: &Runtime) -> SandboxFact {
    match runtime.start_sandbox(&node(), &spec(), &given(), "kubepods/podu1", 0).await {
        Ok((Done::Sandbox(fact), _)) => fact,
        other => panic!("{other:?}"),
    }
}

async fn container(runtime: &Runtime, sandbox_id: &str, attempt: u32) -> Result<String, OpError> {
    container_on(&node(), runtime, sandbox_id, attempt).await
}

async fn container_on(node: &NodeEnv, runtime: &Runtime, sandbox_id: &str, attempt: u32) -> Result<String, OpError> {
    let (spec, linux) = (spec(), linux(Some(Bytes::mib(64))));
    let start = ContainerStart {
        spec: &spec,
        container: "c",
        attempt,
        sandbox_id,
        pod_ip: "10.0.0.7",
        cgroup: "kubepods/podu1",
        linux: &linux,
        sources: &[],
    };
    match runtime.start_container(node, &start, &Given::default()).await? {
        Done::Container { id, started } => {
            assert_eq!(started, Micros::secs(7));
            Ok(id)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a4_16l_the_runtime_is_asked_once_for_what_it_can_do_and_anew_after_it_was_away() {
    let mut fake = Fake::start();
    let runtime = client(&fake);
    let can = async |runtime: &Runtime| runtime.facts(Micros(1)).await.map(|facts| facts.features.groups_policy);
    // A runtime without the call cannot.
    assert!(!can(&runtime).await.expect("facts"));
    fake.kill();
    assert!(can(&runtime).await.is_err());
    super::client::lock(&fake.world).groups_policy = Some(true);
    fake.resume();
    assert!(can(&runtime).await.expect("facts"));
    assert!(can(&runtime).await.expect("facts"));
    assert_eq!(super::client::lock(&fake.world).count("Status"), 1, "one answer lasts");
}

#[tokio::test]
async fn a7_10c_the_default_handler_says_whether_mounts_can_be_read_only_recursively() {
    for can in [true, false] {
        let fake = Fake::start();
        super::client::lock(&fake.world).groups_policy = Some(can);
        let features = client(&fake).facts(Micros(1)).await.expect("facts").features;
        assert_eq!(features.recursive_read_only, can);
    }
}

#[tokio::test]
async fn a_pod_runs_and_is_found_again() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let sandbox = sandbox(&runtime).await;
    assert_eq!((sandbox.ip.as_str(), sandbox.ours, sandbox.ready), ("10.0.0.7", true, true));
    assert_eq!((sandbox.cgroup_parent.as_str(), sandbox.created), ("/kubepods/podu1", Micros::secs(5)));
    assert_eq!(sandbox.given, given());
    assert_eq!(runtime.sandbox_image(), "registry.k8s.io/pause:3.10");
    let id = container(&runtime, &sandbox.id, 0).await.expect("started");

    // Another life of the agent sees the same.
    for runtime in [&runtime, &client(&fake)] {
        let facts = runtime.facts(Micros(42)).await.expect("facts");
        assert_eq!(facts.asked, Micros(42));
        assert_eq!(facts.sandboxes, std::slice::from_ref(&sandbox));
        let found = &facts.containers[0];
        assert_eq!((found.id.as_str(), found.name.as_str(), found.uid.as_str()), (id.as_str(), "c", "u1"));
        assert_eq!(found.state, ContainerFactState::Running { started: Micros::secs(7) });
        assert_eq!(found.resources, Some(linux(Some(Bytes::mib(64))).resources));
        assert_eq!((found.image.as_str(), found.grace), ("busybox", Some(spec().termination_grace)));
    }

    // What cannot change is not asked again.
    let asked = |fake: &Fake| fake.with(|w| w.count("PodSandboxStatus") + w.count("ContainerStatus"));
    let before = asked(&fake);
    runtime.facts(Micros(43)).await.expect("facts");
    assert_eq!(asked(&fake), before);

    runtime.stop_container(&id, Micros(1_000_001)).await.expect("stopped");
    assert!(fake.with(|w| w.calls.contains(&format!("StopContainer {id} 2"))), "a grace period is rounded up");
    let facts = runtime.facts(Micros(44)).await.expect("facts");
    let ContainerFactState::Exited(exit) = &facts.containers[0].state else { panic!("{facts:?}") };
    assert_eq!((exit.code, exit.started, exit.finished), (143, Micros::secs(7), Micros::secs(9)));
}

#[tokio::test]
async fn what_an_earlier_life_made_is_adopted() {
    let fake = Fake::start();
    let first = client(&fake);
    let sandbox_before = sandbox(&first).await;
    let running = container(&first, &sandbox_before.id, 0).await.expect("started");
    // The agent died between making and starting the second run.
    let created = fake.with(|w| {
        let mut made = w.containers[&running].clone();
        made.id = "made".to_owned();
        made.state = cri::ContainerState::ContainerCreated.into();
        made.metadata = Some(cri::ContainerMetadata { name: "c".to_owned(), attempt: 1 });
        w.homes.insert(made.id.clone(), sandbox_before.id.clone());
        w.containers.insert(made.id.clone(), made.clone());
        made.id
    });

    let second = client(&fake);
    assert_eq!(sandbox(&second).await, sandbox_before);
    assert_eq!(container(&second, &sandbox_before.id, 0).await, Ok(running));
    assert_eq!(container(&second, &sandbox_before.id, 1).await, Ok(created));
    fake.with(|w| {
        assert_eq!((w.count("RunPodSandbox"), w.count("CreateContainer"), w.count("StartContainer")), (1, 1, 2));
    });
}

#[tokio::test]
async fn a_sandbox_of_somebody_else_is_left_alone() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    fake.with(|w| w.sandboxes.get_mut(&made.id).expect("made").annotations.clear());
    let error = runtime.start_sandbox(&node(), &spec(), &given(), "kubepods/podu1", 0).await.expect_err("not ours");
    assert!(error.message.contains("somebody else"), "{error:?}");
    assert_eq!(fake.with(|w| w.count("RemovePodSandbox")), 0);
    assert!(!runtime.facts(Micros(1)).await.expect("facts").sandboxes[0].ours);
}

#[tokio::test]
async fn a4_12a_another_beelets_pods_are_not_ours() {
    let fake = Fake::start();
    let runtime = client(&fake);
    sandbox(&runtime).await;
    let other = Runtime::connect(&fake.endpoint(), Duration::from_secs(5), "i2").expect("a socket's address");
    assert!(!other.facts(Micros(1)).await.expect("facts").sandboxes[0].ours);
    let node = NodeEnv { instance: "i2".to_owned(), ..node() };
    let error = other.start_sandbox(&node, &spec(), &given(), "kubepods/podu1", 0).await.expect_err("the first one's");
    assert!(error.message.contains("somebody else"), "{error:?}");
    assert!(runtime.facts(Micros(1)).await.expect("facts").sandboxes[0].ours);
}

#[tokio::test]
async fn one_object_that_hangs_does_not_hide_the_others() {
    let fake = Fake::start();
    let first = client(&fake);
    let made = sandbox(&first).await;
    let running = container(&first, &made.id, 0).await.expect("started");
    first.facts(Micros(1)).await.expect("facts");
    let hung = container(&first, &made.id, 1).await.expect("started");
    fake.with(|w| {
        w.hangs.extend([hung.clone(), made.id.clone()]);
        w.containers.get_mut(&hung).expect("made").created_at = 3_000_000_000;
    });
    let second = Runtime::connect(&fake.endpoint(), Duration::from_millis(200), "i1").expect("a socket's address");
    let facts = second.facts(Micros(2)).await.expect("the others are told");
    assert_eq!((facts.sandboxes.len(), facts.sandboxes[0].ours), (1, true));
    let state = |id: &str| facts.containers.iter().find(|c| c.id == id).map(|c| c.state.clone());
    assert_eq!(state(&running), Some(ContainerFactState::Running { started: Micros::secs(7) }));
    assert_eq!(state(&hung), Some(ContainerFactState::Running { started: Micros::secs(3) }), "as listed");
}

#[tokio::test]
async fn a4_18a_a4_18d_a_containers_last_words_are_told() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    let id = container(&runtime, &made.id, 0).await.expect("started");
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("0");
    std::fs::write(&file, format!("{}the end", "x".repeat(5_000))).expect("written");
    fake.with(|w| {
        let words = cri::Mount {
            container_path: "/dev/termination-log".to_owned(),
            host_path: file.display().to_string(),
            ..cri::Mount::default()
        };
        w.containers.get_mut(&id).expect("made").mounts.push(words);
    });
    runtime.stop_container(&id, Micros::ZERO).await.expect("stopped");
    let facts = runtime.facts(Micros(1)).await.expect("facts");
    let ContainerFactState::Exited(exit) = &facts.containers[0].state else { panic!("{facts:?}") };
    assert!(exit.message.len() == 4_096 && exit.message.ends_with("xthe end"), "{}", exit.message);
}

#[tokio::test]
async fn a4_18c_of_one_that_fails_and_says_nothing_the_end_of_its_log_is_told() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a folder"));
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    let (file, log) = (dir.path().join("words"), dir.path().join("0.log"));
    std::fs::write(&log, "2026-01-01T00:00:00Z stderr F out of luck\n").expect("written");
    let cases = [
        ("", 1, "Error", "", "out of luck\n"),
        ("", 1, "Error", "the runtime's", "the runtime's: out of luck\n"),
        ("said", 1, "Error", "", "said"),
        ("said", 0, "Completed", "the runtime's", "the runtime's: said"),
        ("", 0, "Completed", "", ""),
        ("", 128, "ContainerCannotRun", "the runtime's", "the runtime's"),
    ];
    for (run, (said, code, reason, runtimes, told)) in (0..).zip(cases) {
        std::fs::write(&file, said).expect("written");
        let id = container(&runtime, &made.id, run).await.expect("started");
        fake.with(|w| {
            let container = w.containers.get_mut(&id).expect("made");
            container.mounts.push(cri::Mount {
                container_path: "/words".to_owned(),
                host_path: file.display().to_string(),
                ..cri::Mount::default()
            });
            let annotations = [
                ("io.kubernetes.container.terminationMessagePath", "/words"),
                ("io.kubernetes.container.terminationMessagePolicy", "FallbackToLogsOnError"),
            ];
            container.annotations.extend(annotations.map(|(key, value)| (key.to_owned(), value.to_owned())));
            container.log_path = log.display().to_string();
            container.set_state(cri::ContainerState::ContainerExited);
            container.exit_code = code;
            container.reason = reason.to_owned();
            container.message = runtimes.to_owned();
        });
        let facts = runtime.facts(Micros(1)).await.expect("facts");
        let fact = facts.containers.iter().find(|fact| fact.id == id).expect("listed");
        let ContainerFactState::Exited(exit) = &fact.state else { panic!("{fact:?}") };
        assert_eq!(exit.message, told, "{said:?} {code} {reason}");
    }
}

#[tokio::test]
async fn names_that_a_crash_left_taken_are_freed() {
    let fake = Fake::start();
    fake.with(|w| {
        w.strict = true;
        w.reserved.insert("p_default_u1_0".to_owned(), "half-made".to_owned());
    });
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    fake.with(|w| {
        assert!(w.calls.contains(&"RemovePodSandbox half-made".to_owned()));
        w.reserved.insert(format!("c_{}_0", made.id), "half-container".to_owned());
    });
    container(&runtime, &made.id, 0).await.expect("started");
    // A sandbox that is down has the name too.
    fake.with(|w| w.sandboxes.get_mut(&made.id).expect("made").state = 1);
    let again = sandbox(&runtime).await;
    assert_ne!(again.id, made.id);
}

#[tokio::test]
async fn a_name_that_stays_taken_is_an_error() {
    let fake = Fake::start();
    fake.with(|w| {
        for attempt in 0..9 {
            w.reserved.insert(format!("p_default_u1_{attempt}"), format!("holder{attempt}"));
        }
    });
    let runtime = client(&fake);
    // Removing the holder of attempt 3 does not help: another one takes the name at once.
    let world = fake.world.clone();
    let thief = tokio::spawn(async move {
        loop {
            super::client::lock(&world).reserved.insert("p_default_u1_3".to_owned(), "thief".to_owned());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let error = runtime.start_sandbox(&node(), &spec(), &given(), "kubepods/podu1", 3).await.expect_err("taken");
    thief.abort();
    assert_eq!(error.reason, "FailedCreatePodSandBox");
    assert!(error.message.contains("is reserved for"), "{error:?}");
}

#[tokio::test]
async fn a6_1a_a4_3d_images_are_pulled_by_policy_and_failures_have_the_kubelets_reasons() {
    use PullPolicy::{Always, IfNotPresent, Never};
    let fake = Fake::start();
    let runtime = client(&fake);
    let puller = Puller::new(Policy::default(), Keyring::default(), Vec::new());
    let reason = async |image: &str, pull| match runtime.ensure_image(&puller, image, pull, || ()).await {
        Ok(Done::Image { pulled }) => if pulled.is_some() { "pulled" } else { "present" }.to_owned(),
        Ok(other) => panic!("{other:?}"),
        Err(error) => format!("{}: {}", error.reason, error.message),
    };
    let never = r#"ErrImageNeverPull: Container image "a" is not present with pull policy of Never"#;
    assert_eq!(reason("a", Never).await, never);
    assert_eq!(reason("a", IfNotPresent).await, "pulled");
    assert_eq!(reason("a", IfNotPresent).await, "present");
    assert_eq!(reason("a", Never).await, "present");
    assert_eq!(reason("a", Always).await, "pulled");
    assert!(reason("Bad Name", Always).await.starts_with("InvalidImageName: "));
    for (error, expected) in [
        (Status::not_found("manifest unknown"), "ErrImagePull: manifest unknown"),
        (
            Status::unknown("RegistryUnavailable: no"),
            "RegistryUnavailable: image pull failed for b because the registry is unavailable: no",
        ),
    ] {
        fake.with(|w| w.pull_error = Some(error));
        assert_eq!(reason("b", IfNotPresent).await, expected);
    }
}

#[tokio::test]
async fn a6_2b_pulls_beyond_the_rate_fail() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let puller =
        Puller::new(Policy { burst: 1, per_second: Some(1), ..Policy::default() }, Keyring::default(), Vec::new());
    assert!(runtime.ensure_image(&puller, "a", PullPolicy::IfNotPresent, || ()).await.is_ok());
    let error = runtime.ensure_image(&puller, "b", PullPolicy::IfNotPresent, || ()).await.expect_err("too many");
    assert_eq!((error.reason.as_str(), error.message.as_str()), ("ErrImagePull", "pull QPS exceeded"));
    assert!(
        runtime.ensure_image(&puller, "a", PullPolicy::IfNotPresent, || ()).await.is_ok(),
        "what is there is not pulled"
    );
}

#[tokio::test]
async fn a6_2c_two_pods_that_want_the_same_image_pull_it_once() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let puller = Puller::new(Policy::default(), Keyring::default(), Vec::new());
    let want = || runtime.ensure_image(&puller, "a", PullPolicy::IfNotPresent, || ());
    // Both look before either pulls.
    let turn = puller.turn().await;
    let both = futures::future::join(want(), want());
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(turn);
    };
    let ((first, second), ()) = futures::future::join(both, later).await;
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(fake.with(|w| w.calls.iter().filter(|call| *call == "PullImage").count()), 1);
}

#[tokio::test]
async fn a6_3c_what_the_node_has_for_the_registry_is_tried_in_turn() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let dir = tempfile::tempdir().expect("a folder");
    let config = r#"{"auths": {
        "r.example": {"username": "right", "password": "p"}, "r.example/team": {"username": "wrong", "password": "p"}
    }}"#;
    std::fs::write(dir.path().join("config.json"), config).expect("a file");
    let puller = Puller::new(Policy::default(), Keyring::of_node(dir.path(), None), Vec::new());
    let pull = async |image: &str| runtime.ensure_image(&puller, image, PullPolicy::Always, || ()).await;
    fake.with(|w| w.registry_user = Some("right".to_owned()));
    assert!(pull("r.example/team/a").await.is_ok());
    assert_eq!(fake.with(|w| std::mem::take(&mut w.pulled_by)), ["wrong", "right"]);
    let error = pull("other.example/a").await.expect_err("nobody is known there");
    assert_eq!(
        (error.message.as_str(), fake.with(|w| w.pulled_by.clone())),
        ("\"\" is not known", vec![String::new()])
    );
}

#[tokio::test]
async fn a4_3e_a_container_that_cannot_start_says_why() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    fake.with(|w| w.start_error = Some(Status::unknown("exec: \"/nope\": no such file")));
    let error = container(&runtime, &made.id, 0).await.expect_err("cannot start");
    let expected =
        OpError { reason: "RunContainerError".to_owned(), message: "exec: \"/nope\": no such file".to_owned() };
    assert_eq!(error, expected);
}

#[tokio::test]
async fn what_is_gone_counts_as_stopped_and_removed() {
    let fake = Fake::start();
    fake.with(|w| w.strict = true);
    let runtime = client(&fake);
    let ids = ["gone".to_owned(), "too".to_owned()];
    assert_eq!(runtime.stop_container("gone", Micros::ZERO).await, Ok(()));
    assert_eq!(runtime.remove_containers(&ids).await, Ok(Done::Ok));
    assert_eq!(runtime.remove_sandboxes(&ids).await, Ok(Done::Ok));
    fake.with(|w| {
        assert!(w.calls.contains(&"StopContainer gone 0".to_owned()));
        assert_eq!(w.count("RemovePodSandbox"), 2);
    });
}

#[tokio::test]
async fn a_resize_is_seen_by_this_life_and_the_next() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    let id = container(&runtime, &made.id, 0).await.expect("started");
    let without_limit = linux(None);
    runtime.update_resources(&id, &without_limit).await.expect("resized");
    let sent = fake.with(|w| w.updates[0].linux.clone().expect("resources"));
    assert_eq!((sent.memory_limit_in_bytes, sent.cpu_quota), (-1, -1), "0 would leave the old limit");
    for runtime in [&runtime, &client(&fake)] {
        let facts = runtime.facts(Micros(1)).await.expect("facts");
        assert_eq!(facts.containers[0].resources, Some(without_limit.resources));
    }
}

#[tokio::test]
async fn the_sandbox_config_of_a_container_is_that_of_its_sandbox() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    container(&runtime, &made.id, 0).await.expect("started");
    fake.with(|w| {
        assert_eq!(w.sandbox_configs.len(), 2);
        // But for the note of the pod's containers, which is of the moment at which the sandbox was made.
        let mut of_sandbox = w.sandbox_configs[0].clone();
        assert!(of_sandbox.annotations.remove(super::names::GIVEN).is_some());
        assert_eq!(of_sandbox, w.sandbox_configs[1]);
    });
}

#[tokio::test]
async fn a_runtime_that_is_away_is_told_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let endpoint = format!("unix://{}/none.sock", dir.path().display());
    let runtime = Runtime::connect(&endpoint, super::DEFAULT_TIMEOUT, "i1").expect("a socket's address");
    let began = Instant::now();
    let error = runtime.facts(Micros(1)).await.expect_err("nobody there");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let RuntimeError::Unavailable { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("No such file"), "{reason}");
}

#[tokio::test]
async fn a_runtime_that_hangs_is_given_up_in_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("hangs.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&path).expect("the socket");
    let runtime = Runtime::connect(&format!("unix://{}", path.display()), Duration::from_millis(300), "i1");
    let runtime = runtime.expect("address");
    let error = runtime.version().await.expect_err("nobody answers");
    assert_eq!(error, RuntimeError::Timeout { rpc: "Version", after: Duration::from_millis(300) });
}

#[tokio::test]
async fn a_restarted_runtime_is_connected_to_again() {
    let mut fake = Fake::start();
    let runtime = client(&fake);
    let made = sandbox(&runtime).await;
    fake.kill();
    let error = runtime.facts(Micros(1)).await.expect_err("killed");
    assert!(matches!(error, RuntimeError::Unavailable { .. }), "{error:?}");
    fake.resume();
    let facts = runtime.facts(Micros(2)).await.expect("it is back");
    assert_eq!(facts.sandboxes, [made]);
}

#[tokio::test]
async fn a4_14b_events_wake_and_a_restart_wakes_too() {
    let mut fake = Fake::start();
    let runtime = client(&fake);
    let mut wakes = runtime.watch();
    let next = async |wakes: &mut (dyn futures::Stream<Item = Wake> + Unpin + Send)| {
        timeout(Duration::from_secs(10), wakes.next()).await.expect("in time").expect("no end")
    };
    assert_eq!(next(&mut wakes).await, Wake::Changed, "listed once at first");
    assert_eq!(fake.with(|w| w.count("GetContainerEvents")), 1);
    assert!(timeout(Duration::from_millis(300), wakes.next()).await.is_err(), "nothing happened");
    fake.emit();
    assert_eq!(next(&mut wakes).await, Wake::Changed);
    fake.kill();
    assert!(matches!(next(&mut wakes).await, Wake::Lost(_)));
    fake.resume();
    // Without any event: what happened in between must be listed.
    while next(&mut wakes).await != Wake::Changed {}
    assert_eq!(fake.with(|w| w.count("GetContainerEvents")), 2);
}

#[tokio::test]
async fn a4_14a_a_runtime_without_events_says_so_once() {
    let fake = Fake::start();
    fake.with(|w| w.no_events = true);
    let runtime = client(&fake);
    let wakes: Vec<Wake> = timeout(Duration::from_secs(5), runtime.watch().collect()).await.expect("ends");
    let [Wake::Unsupported(why)] = &wakes[..] else { panic!("{wakes:?}") };
    assert!(why.contains("GetContainerEvents"), "{why}");
    assert_eq!(runtime.unimplemented(), ["GetContainerEvents"]);
    assert_eq!(runtime.systemd_cgroups().await, Err(RuntimeError::Unimplemented { rpc: "Status" }));
    assert_eq!(runtime.unimplemented(), ["GetContainerEvents", "RuntimeConfig", "Status"]);
}

#[tokio::test]
async fn a15_4_the_logs_of_what_runs_are_known_from_their_first_byte() {
    let fake = Fake::start();
    let runtime = client(&fake);
    let running = runtime.running_logs();
    let logs = || running.borrow().clone();
    let made = sandbox(&runtime).await;
    // A listing that began before it was made does not know of it.
    let noted = runtime.noted_logs();
    let id = container(&runtime, &made.id, 0).await.expect("started");
    let expected = BTreeMap::from([(id.clone(), "/var/log/pods/default_p_u1/c/0.log".into())]);
    assert_eq!(logs(), expected);
    runtime.logs_listed(&noted, &std::collections::HashMap::new(), Vec::new());
    assert_eq!(logs(), expected);
    runtime.facts(Micros(1)).await.expect("facts");
    assert_eq!(logs(), expected);
    // Another life learns of it from the listing.
    let second = client(&fake);
    second.facts(Micros(1)).await.expect("facts");
    assert_eq!(second.noted_logs(), expected);
    second.reopen(&id).await.expect("reopened");

    runtime.stop_container(&id, Micros::ZERO).await.expect("stopped");
    runtime.facts(Micros(2)).await.expect("facts");
    assert_eq!(logs().len(), 0, "it has ended");
    assert!(runtime.reopen(&id).await.is_err_and(|error| error.contains("not running")));
    // One that cannot be started.
    fake.with(|w| w.start_error = Some(Status::unknown("no such file")));
    container(&runtime, &made.id, 1).await.expect_err("not started");
    let left = logs().into_keys().next().expect("noted");
    runtime.remove_containers(&[left]).await.expect("removed");
    assert_eq!(logs().len(), 0);
    // Somebody else's.
    fake.with(|w| {
        w.containers.values_mut().for_each(|c| {
            c.annotations.clear();
            c.set_state(cri::ContainerState::ContainerRunning);
        });
    });
    let third = client(&fake);
    third.facts(Micros(3)).await.expect("facts");
    assert_eq!(third.noted_logs().len(), 0);
}

#[tokio::test]
async fn a4_12g_a_container_that_is_removed_takes_its_log_and_link_along() {
    let (fake, dir) = (Fake::start(), tempfile::tempdir().expect("a folder"));
    let runtime = client(&fake);
    let node = NodeEnv { pod_logs_dir: dir.path().join("pods"), ..node() };
    let Ok((Done::Sandbox(made), _)) = runtime.start_sandbox(&node, &spec(), &given(), "kubepods/podu1", 0).await
    else {
        panic!("no sandbox")
    };
    let folder = paths::log_dir(&node.pod_logs_dir, &spec()).join("c");
    std::fs::create_dir_all(&folder).expect("the folder of logs");
    let mut ids = Vec::new();
    for run in 0..2 {
        std::fs::write(folder.join(format!("{run}.log")), "text").expect("a log");
        std::fs::write(folder.join(format!("{run}.log.20260101-000000.gz")), "").expect("a log");
        ids.push(container_on(&node, &runtime, &made.id, run).await.expect("started"));
    }
    let link = |id: &str| dir.path().join("containers").join(links::name("p", "default", "c", id));
    assert_eq!(std::fs::read_to_string(link(&ids[0])).expect("a link to the log"), "text");
    runtime.remove_containers(&ids[..1]).await.expect("removed");
    let mut left: Vec<_> = std::fs::read_dir(&folder).expect("logs").flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["1.log", "1.log.20260101-000000.gz"]);
    assert!(!link(&ids[0]).is_symlink() && link(&ids[1]).exists());

    // In the middle of a rotation the log is not there, and the link stays.
    std::fs::remove_file(folder.join("1.log")).expect("removed");
    runtime.remove_dangling_links(&node.pod_logs_dir).await;
    assert!(link(&ids[1]).is_symlink());
    runtime.stop_container(&ids[1], Micros::ZERO).await.expect("stopped");
    runtime.remove_dangling_links(&node.pod_logs_dir).await;
    assert!(!link(&ids[1]).is_symlink());
}
