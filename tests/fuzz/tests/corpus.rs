//! Each file of the corpus, replayed: what a fuzzer found once is found again where it comes back.

use std::fs;

use fuzz::{TARGETS, Target};

fn replay(name: &str) {
    let target = Target::of(name).expect("a target of this name");
    let mut files: Vec<_> =
        fs::read_dir(target.corpus()).expect("a corpus").flatten().map(|entry| entry.path()).collect();
    files.sort();
    assert!(!files.is_empty(), "there is nothing in {}", target.corpus().display());
    for file in files {
        let data = fs::read(&file).expect("a file of the corpus");
        // The name of the file is what is wanted to know of a failure; the panic says the rest.
        let held = std::panic::catch_unwind(|| (target.check)(&data));
        assert!(held.is_ok(), "{}: see above", file.display());
    }
}

#[test]
fn quantities() {
    replay("quantities");
}

#[test]
fn manifests() {
    replay("manifests");
}

#[test]
fn logs() {
    replay("logs");
}

#[test]
fn paths() {
    replay("paths");
}

/// A folder that belongs to no target is replayed by nobody.
#[test]
fn each_folder_has_its_target_and_each_target_its_replay() {
    let corpus = TARGETS[0].corpus();
    let folders = fs::read_dir(corpus.parent().expect("a folder")).expect("the corpus").flatten();
    for folder in folders {
        let name = folder.file_name();
        assert!(name.to_str().and_then(Target::of).is_some(), "{} belongs to no target", name.display());
    }
    let source = fs::read_to_string(
        file!()
            .rsplit('/')
            .next()
            .map_or_else(String::new, |name| format!("{}/tests/{name}", env!("CARGO_MANIFEST_DIR"))),
    )
    .expect("this file");
    for target in TARGETS {
        assert!(source.contains(&format!("replay({:?})", target.name)), "{} is not replayed", target.name);
    }
}
