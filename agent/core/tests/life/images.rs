//! What becomes of images that cannot be had, and what people are told.

use beelet_core::event::Pulled;

use super::*;

fn failure(reason: &str, message: &str) -> OpError {
    OpError { reason: reason.to_owned(), message: message.to_owned() }
}

/// A node where the first tries for an image fail like that.
fn failing(config: NodeConfig, error: &OpError, times: usize) -> Node {
    let mut node = Node::new(config);
    node.relist();
    node.want(&[]);
    node.fail.insert("ensure_image", std::iter::repeat_n(error.clone(), times).collect());
    node
}

fn told(node: &Node) -> Vec<(String, String)> {
    let record = |action: &Action| match action {
        Action::Record(record) => Some((record.reason.clone(), record.message.clone())),
        _ => None,
    };
    let of_images = ["Failed", "BackOff", "Pulled", "InspectFailed", "ErrImageNeverPull"];
    node.actions.iter().filter_map(record).filter(|(reason, _)| of_images.contains(&reason.as_str())).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(reason, message)| ((*reason).to_owned(), (*message).to_owned())).collect()
}

fn of_image(image: &str) -> PodSpec {
    let mut pod = pod("a");
    pod.containers[0].image = image.to_owned();
    pod
}

#[test]
fn a4_3c_the_back_off_names_the_error_that_it_is_for() {
    let mut node = failing(NodeConfig::default(), &failure("ErrImagePull", "no such image"), 2);
    node.want(&[&of_image("r/a:1")]);
    let waits = |node: &Node| match &node.view("a").containers[0].state {
        ContainerState::Waiting { reason, message } => (reason.clone(), message.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(waits(&node), ("ErrImagePull".to_owned(), "no such image".to_owned()));
    // The second failure is told until the kubelet would look again.
    node.run(Micros::secs(21));
    let said = "Back-off pulling image \"r/a:1\": ErrImagePull: no such image";
    assert_eq!(waits(&node), ("ImagePullBackOff".to_owned(), said.to_owned()));
}

#[test]
fn a6_7_failures_and_the_back_off_are_told_in_the_kubelets_words() {
    let mut node = failing(NodeConfig::default(), &failure("ErrImagePull", "no such image"), 2);
    node.want(&[&of_image("r/a:1")]);
    let once = [("Failed", "Failed to pull image \"r/a:1\": no such image"), ("Failed", "Error: ErrImagePull")];
    assert_eq!(told(&node), pairs(&once));
    node.run(Micros::secs(11));
    let twice = [&once[..], &once, &[("BackOff", "Back-off pulling image \"r/a:1\"")]].concat();
    assert_eq!(told(&node), pairs(&twice));
    for (reason, event) in [
        ("InvalidImageName", "InspectFailed"),
        ("ImageInspectError", "InspectFailed"),
        ("ErrImageNeverPull", "ErrImageNeverPull"),
    ] {
        let mut node = failing(NodeConfig::default(), &failure(reason, "why"), 1);
        node.want(&[&of_image("r/a:1")]);
        assert_eq!(told(&node), pairs(&[(event, "why"), ("Failed", &format!("Error: {reason}"))]));
    }
}

#[test]
fn a6_7_a_pull_is_told_with_its_time_the_wait_and_the_size() {
    for (took, in_all, said) in [
        (Micros(345_999), Micros(1_234_567), "345ms (1.234s including waiting)"),
        (Micros::secs(62), Micros::millis(3_600_500), "1m2s (1h0m0.5s including waiting)"),
        (Micros(1), Micros(999), "0s (0s including waiting)"),
    ] {
        let mut node = failing(NodeConfig::default(), &failure("", ""), 0);
        node.hold = Some("ensure_image");
        node.want(&[&of_image("r/a:1")]);
        node.hold = None;
        let (uid, op) = node.held.pop().expect("a pull is under way");
        let pulled = Some(Pulled { took, in_all, size: Bytes(4_096) });
        node.send(Event::Done { uid, op, result: Ok(Done::Image { pulled }) });
        let message = format!("Successfully pulled image \"r/a:1\" in {said}. Image size: 4096 bytes.");
        assert_eq!(told(&node), pairs(&[("Pulled", &message)]));
    }
}

#[test]
fn a4_9_images_have_a_back_off_of_their_own() {
    let config = NodeConfig { max_backoff: Micros::secs(1), ..NodeConfig::default() };
    let mut node = failing(config, &failure("ErrImagePull", "no such image"), 100);
    node.want(&[&of_image("r/a:1")]);
    let tries = |node: &Node| node.done.iter().filter(|name| *name == "ensure_image").count();
    let mut seen = Vec::new();
    for _ in 0..8 {
        let before = tries(&node);
        let mut waited = 0_u64;
        while tries(&node) == before {
            node.run(Micros::secs(1));
            waited += 1;
        }
        seen.push(waited);
    }
    // Seconds are counted from a moment after the failure.
    let nearly = |expected: [u64; 8]| seen.iter().zip(expected).all(|(seen, expected)| seen.abs_diff(expected) <= 1);
    assert!(nearly([10, 20, 40, 80, 160, 300, 300, 300]), "{seen:?}");
}
