//! Hooks and stops.

use beelet_core::event::CANCELLED;
use beelet_core::spec::{ContainerSpec, Handler, Hook, PodSpec};
use beelet_core::stop::Stop;

use super::*;

fn exec(words: &[&str]) -> Hook {
    Hook::Call(Handler::Exec { command: words.iter().map(|word| (*word).to_owned()).collect() })
}

fn stop(id: &str, hook: Option<Hook>, signal: bool) -> Stop {
    Stop { id: id.to_owned(), name: format!("name of {id}"), hook, signal }
}

fn post_start(hook: Hook) -> PodOp {
    let mut spec = PodSpec { name: "p".to_owned(), ..PodSpec::unknown("u".into()) };
    let mut container = ContainerSpec::unknown("c");
    container.lifecycle.post_start = Some(Box::new(hook));
    spec.containers = vec![container];
    PodOp::PostStart { spec: Arc::new(spec), container: "c".to_owned(), id: "run".to_owned(), ip: String::new() }
}

impl Rig {
    fn stop(&self, op: u64, stops: Vec<Stop>, grace: Micros) {
        self.op("u", op, PodOp::StopContainers { stops, grace, ip: "127.0.0.1".to_owned() });
    }

    fn grace(&self, id: &str) -> Option<Micros> {
        self.runtime.stops.lock().unwrap().get(id).copied()
    }

    /// What was told until the operation ended, and how it did.
    async fn told_and_result(&mut self) -> (Vec<(Option<String>, String, String)>, Result<Done, OpError>) {
        let mut told = Vec::new();
        loop {
            match self.results.recv().await.expect("an end") {
                Event::Told { container, reason, message, .. } => told.push((container, reason, message)),
                Event::Done { result, .. } => return (told, result),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn a4_6b_the_hook_comes_first_and_takes_from_the_grace() {
    for (hook, grace, left) in [
        (None, 30_000, 30_000),
        (Some(exec(&["fine"])), 30_000, 30_000),
        (Some(Hook::Sleep(Micros::millis(300))), 30_000, 29_700),
        (Some(Hook::Sleep(Micros::ZERO)), 30_000, 30_000),
        // It takes all of it: two seconds are left all the same.
        (Some(exec(&["hang"])), 300, 2_000),
        (None, 0, 2_000),
    ] {
        let mut rig = rig(nowhere(), Fake::default());
        rig.stop(1, vec![stop("a", hook.clone(), true)], Micros::millis(grace));
        let (told, result) = rig.told_and_result().await;
        assert_eq!((told.len(), result), (0, Ok(Done::Ok)), "{hook:?}");
        let given = rig.grace("a").expect("stopped");
        let off = Micros::millis(left) - given;
        assert!(given <= Micros::millis(left) && off < Micros::millis(250), "a4_7b {hook:?}: {given}");
    }
}

#[tokio::test]
async fn a4_6b_a_hook_that_fails_is_told_and_the_stop_goes_on() {
    let mut rig = rig(nowhere(), Fake::default());
    let tcp = Hook::Call(Handler::Tcp { host: String::new(), port: 1 });
    let stops = vec![
        stop("a", Some(exec(&["bad"])), true),
        stop("b", Some(tcp), true),
        stop("c", Some(exec(&["fine"])), false),
        stop("d", None, true),
    ];
    rig.stop(1, stops, Micros::secs(30));
    let (mut told, result) = rig.told_and_result().await;
    told.sort();
    let failed =
        |id: &str| (Some(format!("name of {id}")), "FailedPreStopHook".to_owned(), "PreStopHook failed".to_owned());
    assert_eq!((told, result), (vec![failed("a"), failed("b")], Ok(Done::Ok)));
    let mut notes = rig.notes();
    notes.sort();
    let hooks = ["exec [\"bad\"] in a", "exec [\"fine\"] in c"];
    assert_eq!(notes, [hooks[0], hooks[1], "stop a", "stop b", "stop d"], "c waits for its turn");
}

#[tokio::test]
async fn a4_6b_each_container_has_its_own_time() {
    let mut rig = rig(nowhere(), Fake::default());
    let stops = vec![stop("a", Some(Hook::Sleep(Micros::millis(400))), true), stop("b", None, true)];
    rig.stop(1, stops, Micros::secs(30));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.notes(), ["stop b"], "it does not wait for the hook of the other");
    assert!(rig.told_and_result().await.1.is_ok());
    assert_eq!(rig.notes(), ["stop b", "stop a"]);
}

#[tokio::test]
async fn a4_7c_a_stop_or_a_hook_under_way_can_be_given_up() {
    let mut rig = rig(nowhere(), Fake::default());
    rig.stop(1, vec![stop("a", Some(Hook::Sleep(Micros::secs(3_600))), true)], Micros::secs(7_200));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.executor.execute(Action::Cancel { uid: "u".into() }), None);
    assert_eq!(rig.told_and_result().await.1.expect_err("given up").reason, CANCELLED);
    rig.op("u", 2, post_start(exec(&["hang"])));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(rig.results.try_recv().is_err(), "it goes on");
    assert_eq!(rig.executor.execute(Action::Cancel { uid: "u".into() }), None);
    assert_eq!(rig.told_and_result().await.1.expect_err("given up").reason, CANCELLED);
    assert_eq!(rig.notes(), ["exec [\"hang\"] in run"], "nothing was told to stop");
}

#[tokio::test]
async fn a4_6a_a_failure_of_post_start_is_told_in_the_kubelets_words() {
    let mut rig = rig(nowhere(), Fake::default());
    let http = Handler::Http { host: String::new(), port: 1, path: "/up".to_owned(), tls: false, headers: Vec::new() };
    for (op, (hook, said)) in [
        (exec(&["fine"]), None),
        (Hook::Sleep(Micros::millis(30)), None),
        (
            exec(&["bad", "x"]),
            Some(
                "Exec lifecycle hook ([bad x]) for Container \"c\" in Pod \"p_default(u)\" failed - \
                 error: command 'bad x' exited with 3: out, message: \"out\"",
            ),
        ),
        (
            Hook::Call(http),
            Some("HTTP lifecycle hook (/up) for Container \"c\" in Pod \"p_default(u)\" failed - error: Get \"http://"),
        ),
        (
            Hook::Call(Handler::Tcp { host: String::new(), port: 1 }),
            Some("Cannot run handler: invalid handler: tcpSocket"),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        rig.op("u", u64::try_from(op).unwrap(), post_start(hook.clone()));
        let (told, result) = rig.told_and_result().await;
        assert_eq!(told, [], "the core tells of it");
        match (result, said) {
            (Ok(Done::Ok), None) => {}
            (Err(error), Some(said)) => {
                assert_eq!(error.reason, "PostStartHookError");
                assert!(error.message.starts_with(said), "{}", error.message);
            }
            other => panic!("{hook:?}: {other:?}"),
        }
    }
}
