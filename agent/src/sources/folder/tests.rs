//! A real folder, with everything that goes wrong in one.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn manifest(name: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n")
}

fn scanner(path: &Path) -> Scanner {
    Scanner::new(path.to_owned(), "n".to_owned(), Duration::from_secs(1))
}

/// Later than any file's youth.
fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10)
}

fn names(state: &SourceState) -> Vec<&str> {
    state.pods.iter().map(|pod| pod.name.as_str()).collect()
}

fn error_of<'a>(state: &'a SourceState, file: &str) -> &'a str {
    let found = state.rejected.iter().find(|r| r.origin.ends_with(file));
    &found.unwrap_or_else(|| panic!("{file} in {:?}", state.rejected)).error
}

#[test]
fn a3_3h_bad_files_are_named_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), manifest("a")).unwrap();
    fs::write(at("b-again.yaml"), manifest("a")).unwrap();
    fs::write(at("c-broken.yaml"), "kind: [").unwrap();
    fs::File::create(at("d-large.yaml")).unwrap().set_len(100 << 20).unwrap();
    symlink(at("nowhere"), at("e-dangling.yaml")).unwrap();
    symlink(at("f-loop.yaml"), at("f-loop.yaml")).unwrap();
    fs::create_dir(at("g-folder.yaml")).unwrap();
    fs::write(at(".hidden.yaml"), manifest("hidden")).unwrap();
    symlink(at("a.yaml"), at("h-link-away.yaml")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("i-socket")).unwrap();
    fs::write(at("z.yaml"), manifest("z")).unwrap();
    let mut scanner = scanner(dir.path());
    scanner.patience = (Duration::ZERO, Duration::ZERO);
    assert!(!scanner.scan(later()));
    let state = &scanner.state;
    assert!(state.ready && state.trouble.is_none());
    assert_eq!(names(state), ["a-n", "z-n"]);
    assert_eq!(state.rejected.len(), 7, "{:?}", state.rejected);
    assert!(error_of(state, "b-again.yaml").contains(&format!("\"default/a-n\" is in {}", at("a.yaml").display())));
    assert!(error_of(state, "h-link-away.yaml").contains("Duplicate value"));
    assert!(error_of(state, "c-broken.yaml").contains("not valid YAML"));
    assert!(error_of(state, "d-large.yaml").contains("larger than 10Mi"));
    assert!(error_of(state, "e-dangling.yaml").contains("No such file"));
    assert!(error_of(state, "f-loop.yaml").contains("symbolic link"));
    assert!(error_of(state, "i-socket").contains("not a regular file"));
    assert!(state.originals.contains_key(&state.pods[0].uid));
    assert!(matches!(state.event(), Some(beelet_core::event::Event::Pods { pods, .. }) if pods.len() == 2));
}

#[test]
fn a_folder_that_is_gone_does_not_take_its_pods_along() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods");
    let mut scanner = scanner(&path);
    scanner.scan(later());
    assert!(!scanner.state.ready && scanner.state.event().is_none());
    assert!(scanner.state.trouble.as_ref().unwrap().contains("waiting for it to appear"));
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), manifest("a")).unwrap();
    scanner.scan(later());
    assert_eq!((names(&scanner.state), &scanner.state.trouble), (vec!["a-n"], &None));
    fs::rename(&path, dir.path().join("away")).unwrap();
    scanner.scan(later());
    assert_eq!(names(&scanner.state), ["a-n"]);
    assert!(scanner.state.ready && scanner.state.trouble.is_some());
    fs::create_dir(&path).unwrap();
    scanner.scan(later());
    assert!(names(&scanner.state).is_empty() && scanner.state.trouble.is_none());
}

#[test]
fn a_file_that_turns_unreadable_keeps_its_pods() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, manifest("a")).unwrap();
    let mut scanner = scanner(dir.path());
    scanner.scan(later());
    fs::remove_file(&file).unwrap();
    symlink(&file, &file).unwrap();
    for _ in 0..2 {
        scanner.scan(later());
        assert_eq!((names(&scanner.state), scanner.state.rejected.len()), (vec!["a-n"], 1));
    }
    fs::remove_file(&file).unwrap();
    scanner.scan(later());
    assert_eq!((names(&scanner.state).len(), scanner.state.rejected.len()), (0, 0));
}

#[test]
fn a3_1a_a_half_written_file_is_read_again_before_it_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, manifest("a")).unwrap();
    let mut scanner = scanner(dir.path());
    scanner.scan(later());
    fs::write(&file, &manifest("a")[..40]).unwrap();
    assert!(scanner.scan(SystemTime::now()), "asks for another look");
    assert_eq!((names(&scanner.state), scanner.state.rejected.len()), (vec!["a-n"], 0));
    assert!(!scanner.scan(later()));
    assert_eq!((names(&scanner.state).len(), scanner.state.rejected.len()), (0, 1));
}

#[test]
fn a3_5b_nothing_is_known_while_a_file_is_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a.yaml"), &manifest("a")[..40]).unwrap();
    symlink(at("not-yet-there"), at("b.yaml")).unwrap();
    let mut scanner = scanner(dir.path());
    assert!(scanner.scan(SystemTime::now()), "asks for another look");
    assert!(!scanner.state.ready, "half written, and unreadable");
    fs::write(at("a.yaml"), manifest("a")).unwrap();
    assert!(scanner.scan(SystemTime::now()));
    assert!(!scanner.state.ready && scanner.state.event().is_none(), "still unreadable");
    assert!(scanner.state.trouble.as_ref().unwrap().contains("b.yaml"));
    fs::write(at("not-yet-there"), manifest("b")).unwrap();
    scanner.scan(later());
    assert!(scanner.state.ready && scanner.state.trouble.is_none());
    // From now on one file's trouble is its own.
    fs::remove_file(at("not-yet-there")).unwrap();
    assert!(!scanner.scan(later()));
    assert!(scanner.state.ready && scanner.state.trouble.is_none());
}

#[test]
fn patience_ends() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "kind: [").unwrap();
    let mut half = scanner(dir.path());
    half.patience = (Duration::ZERO, Duration::MAX);
    half.scan(SystemTime::now());
    assert!(half.state.ready);
    symlink(dir.path().join("nowhere"), dir.path().join("b.yaml")).unwrap();
    let mut unreadable = scanner(dir.path());
    unreadable.patience = (Duration::MAX, Duration::ZERO);
    unreadable.scan(later());
    assert!(unreadable.state.ready && unreadable.state.rejected.len() == 2);
}

#[test]
fn one_file_is_a_source_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, manifest("a")).unwrap();
    let mut scanner = scanner(&file);
    scanner.scan(later());
    assert_eq!(names(&scanner.state), ["a-n"]);
}

/// The state that satisfies, or the test fails.
async fn until(receiver: &mut watch::Receiver<Arc<SourceState>>, wanted: impl Fn(&SourceState) -> bool) {
    let found = tokio::time::timeout(Duration::from_secs(20), receiver.wait_for(|state| wanted(state))).await;
    assert!(matches!(found, Ok(Ok(_))), "never came");
}

#[tokio::test]
async fn a3_1a_changes_are_seen_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pods");
    let options = Options { rescan: Duration::from_millis(200), ..Options::default() };
    let mut waiting = FolderSource::spawn(path.clone(), "n".to_owned(), options);
    until(&mut waiting, |s| s.trouble.is_some()).await;
    fs::create_dir(&path).unwrap();
    until(&mut waiting, |s| s.ready && s.pods.is_empty()).await;

    // No timer comes to help here.
    let options = Options { rescan: Duration::from_secs(3600), ..Options::default() };
    let mut receiver = FolderSource::spawn(path.clone(), "n".to_owned(), options);
    until(&mut receiver, |s| s.ready).await;
    fs::write(path.join("a.yaml"), manifest("a")).unwrap();
    until(&mut receiver, |s| names(s) == ["a-n"]).await;
    fs::write(path.join(".b"), manifest("b")).unwrap();
    fs::rename(path.join(".b"), path.join("b.yaml")).unwrap();
    until(&mut receiver, |s| names(s) == ["a-n", "b-n"]).await;
    fs::write(path.join("a.yaml"), "kind: [").unwrap();
    until(&mut receiver, |s| s.rejected.len() == 1 && names(s) == ["b-n"]).await;
    fs::remove_file(path.join("a.yaml")).unwrap();
    until(&mut receiver, |s| s.rejected.is_empty() && names(s) == ["b-n"]).await;
}
