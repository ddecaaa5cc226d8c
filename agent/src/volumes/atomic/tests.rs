use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn files(list: &[(&str, &str)]) -> Files {
    let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o644 };
    list.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
}

fn target(dir: &Path) -> Target<'_> {
    Target { dir, in_memory: false, group: None }
}

/// What a reader finds below a folder, through links; but the writer's own names at the top.
fn seen(dir: &Path) -> BTreeMap<String, String> {
    fn walk(dir: &Path, at: &str, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if at.is_empty() && name.starts_with("..") {
                continue;
            }
            let path = below(at, &name);
            if entry.path().is_dir() {
                walk(&entry.path(), &path, found);
            } else if let Ok(text) = fs::read_to_string(entry.path()) {
                found.insert(path, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, "", &mut found);
    found
}

fn texts(files: &Files) -> BTreeMap<String, String> {
    files.iter().map(|(path, file)| (path.clone(), String::from_utf8(file.data.clone()).unwrap())).collect()
}

/// The names in the volume's own folder.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a7_4a_files_are_links_into_a_folder_that_is_replaced_as_a_whole() {
    let dir = TempDir::new().unwrap();
    let mut first = files(&[("name", "web"), ("deep/er/key", "1"), ("deep/other", "2")]);
    first.get_mut("name").unwrap().mode = 0o400;
    assert!(target(dir.path()).write(&first, "..one").unwrap());
    assert_eq!(names(dir.path()), ["..data", "..one", "deep", "name"]);
    for (link, to) in [("..data", "..one"), ("deep", "..data/deep"), ("name", "..data/name")] {
        assert_eq!(fs::read_link(dir.path().join(link)).unwrap(), PathBuf::from(to));
    }
    let modes = ["..one", "..one/deep", "..one/deep/er", "name", "deep/er/key"].map(|p| mode(&dir.path().join(p)));
    assert_eq!(modes, [0o755, 0o755, 0o755, 0o400, 0o644]);
    assert_eq!(seen(dir.path()), texts(&first));

    let second = files(&[("name", "web"), ("deep", "now a file"), ("new", "3")]);
    assert!(target(dir.path()).write(&second, "..two").unwrap());
    assert_eq!(names(dir.path()), ["..data", "..two", "deep", "name", "new"]);
    assert_eq!(seen(dir.path()), texts(&second));
    assert!(target(dir.path()).write(&Files::new(), "..three").unwrap());
    assert_eq!(names(dir.path()), ["..data", "..three"]);
}

#[test]
fn a7_4e_what_is_as_it_should_be_is_not_written_again() {
    let dir = TempDir::new().unwrap();
    let wanted = files(&[("a", "1"), ("b/c", "2")]);
    assert!(target(dir.path()).write(&wanted, "..one").unwrap());
    assert!(!target(dir.path()).write(&wanted, "..two").unwrap());
    assert_eq!(names(dir.path()), ["..data", "..one", "a", "b"]);
    // Each difference is enough.
    let put = |path: &str, text: &str| fs::write(dir.path().join(path), text).unwrap();
    let mut last = "..one".to_owned();
    let mut differs = |what: &str, now: &str| {
        assert!(target(dir.path()).write(&wanted, now).unwrap(), "{what}");
        assert!(!target(dir.path()).write(&wanted, "..never").unwrap(), "{what}");
        assert_eq!(names(dir.path()), ["..data", now, "a", "b"], "{what}");
        assert_ne!(std::mem::replace(&mut last, now.to_owned()), now);
    };
    put("a", "x");
    differs("another content of the same size", "..two");
    put("b/new", "x");
    differs("a file too many", "..three");
    fs::set_permissions(dir.path().join("a"), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    differs("another mode", "..four");
    fs::remove_file(dir.path().join("b/c")).unwrap();
    differs("a file too few", "..five");
    // Only a link is missing: the files stay.
    fs::remove_file(dir.path().join("a")).unwrap();
    assert!(target(dir.path()).write(&wanted, "..six").unwrap());
    assert_eq!(names(dir.path()), ["..data", "..five", "a", "b"]);
    // The clock is set back to the very name that is in use.
    assert!(target(dir.path()).write(&files(&[("a", "2")]), "..five").unwrap());
    assert_eq!(
        (names(dir.path()), seen(dir.path())),
        (vec!["..data".into(), "..fivex".into(), "a".into()], texts(&files(&[("a", "2")])))
    );
}

/// After any number of steps: old or new, and all of one kind.
fn survives(old: &Files, new: &Files) {
    let count = {
        let dir = TempDir::new().unwrap();
        target(dir.path()).write(old, "..old").unwrap();
        let root = target(dir.path()).open().unwrap();
        steps(&target(dir.path()).look(&root, new).unwrap(), new, "..new").len()
    };
    for done in 0..=count {
        for next in [old, new] {
            let dir = TempDir::new().unwrap();
            let volume = target(dir.path());
            volume.write(old, "..old").unwrap();
            let root = volume.open().unwrap();
            for step in steps(&volume.look(&root, new).unwrap(), new, "..new").iter().take(done) {
                volume.perform(&root, step).unwrap();
            }
            let data = seen(&dir.path().join("..data"));
            assert!(data == texts(old) || data == texts(new), "after {done}: {data:?}");
            let found = seen(dir.path());
            for (path, text) in &found {
                assert_eq!(data.get(path), Some(text), "after {done}: {path} is not of the others' kind");
            }
            for path in old.keys().filter(|path| new.contains_key(*path)) {
                assert!(found.contains_key(path), "after {done}: {path} is in both and not there");
            }
            // The next life of the agent, with the same wish or another.
            volume.write(next, "..next").unwrap();
            assert_eq!(seen(dir.path()), texts(next), "after {done}");
            let own: Vec<String> = names(dir.path()).into_iter().filter(|name| is_own(name)).collect();
            assert_eq!(own.len(), 2, "after {done}: {own:?} is left");
            assert!(!volume.write(next, "..again").unwrap());
        }
    }
}

#[test]
fn a7_4a_killed_after_any_step_readers_have_the_old_or_the_new() {
    let old = files(&[("same", "old"), ("stale", "old"), ("d/e", "old"), ("d/gone", "old"), ("f", "old")]);
    let new = files(&[("same", "new"), ("d/e", "new"), ("d/g/h", "new"), ("fresh", "new"), ("f/now", "new")]);
    survives(&old, &new);
    survives(&Files::new(), &new);
    survives(&new, &Files::new());
}

#[test]
fn a7_4a_links_that_somebody_put_there_are_not_followed() {
    let outside = TempDir::new().unwrap();
    let precious = outside.path().join("a");
    fs::write(&precious, "precious").unwrap();
    let wanted = files(&[("a", "1"), ("b/c", "2")]);
    let at = |name: &str| format!("{name} of {}", outside.path().display());
    type Attack = fn(&Path, &Path);
    let attacks: [(&str, Attack); 8] = [
        ("..data", |dir, out| {
            fs::remove_file(dir.join("..data")).unwrap();
            symlink(out, dir.join("..data")).unwrap();
        }),
        ("the folder", |dir, out| {
            fs::remove_dir_all(dir.join("..one")).unwrap();
            symlink(out, dir.join("..one")).unwrap();
        }),
        ("..data_tmp", |dir, out| symlink(out, dir.join("..data_tmp")).unwrap()),
        ("the next folder", |dir, out| {
            fs::write(dir.join("a"), "x").unwrap();
            symlink(out, dir.join("..two")).unwrap();
        }),
        ("a file", |dir, out| {
            fs::remove_file(dir.join("..one/a")).unwrap();
            symlink(out.join("a"), dir.join("..one/a")).unwrap();
        }),
        ("a folder in it", |dir, out| {
            fs::rename(dir.join("..one/b"), dir.join("..one/elsewhere")).unwrap();
            symlink(out, dir.join("..one/b")).unwrap();
        }),
        ("a name", |dir, out| {
            fs::remove_file(dir.join("a")).unwrap();
            symlink(out.join("a"), dir.join("a")).unwrap();
        }),
        ("no link", |dir, _| {
            fs::remove_file(dir.join("..data")).unwrap();
            fs::create_dir(dir.join("..data")).unwrap();
            fs::write(dir.join("..data/a"), "x").unwrap();
        }),
    ];
    for (what, attack) in attacks {
        let dir = TempDir::new().unwrap();
        target(dir.path()).write(&wanted, "..one").unwrap();
        attack(dir.path(), outside.path());
        target(dir.path()).write(&wanted, "..two").unwrap();
        assert_eq!(seen(dir.path()), texts(&wanted), "{what}");
        assert!(!target(dir.path()).write(&wanted, "..three").unwrap(), "{what}");
        assert_eq!(names(outside.path()), ["a"], "{}", at(what));
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious", "{}", at(what));
    }
    // A pipe, which nobody writes to, in the place of a file does not hold the agent up.
    let dir = TempDir::new().unwrap();
    target(dir.path()).write(&wanted, "..one").unwrap();
    let pipe = dir.path().join("..one/a");
    fs::remove_file(&pipe).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    assert!(target(dir.path()).write(&wanted, "..two").unwrap());
    assert_eq!(seen(dir.path()), texts(&wanted));
}

#[test]
fn a7_4a_what_others_have_put_there_stays() {
    let dir = TempDir::new().unwrap();
    target(dir.path()).mount_point("b/mounted").unwrap();
    target(dir.path()).mount_point("b/mounted").unwrap();
    fs::write(dir.path().join("theirs"), "x").unwrap();
    target(dir.path()).write(&files(&[("a", "1"), ("b/c", "2")]), "..one").unwrap();
    target(dir.path()).write(&files(&[("a", "2")]), "..two").unwrap();
    assert_eq!(names(dir.path()), ["..data", "..two", "a", "b", "theirs"]);
    assert!(dir.path().join("b/mounted").is_dir());
}

#[test]
fn a7_9a_the_group_may_read_all_files() {
    let dir = TempDir::new().unwrap();
    let mut wanted = files(&[("a", "1"), ("b/c", "2")]);
    wanted.get_mut("a").unwrap().mode = 0o400;
    let volume = Target { group: Some(4242), ..target(dir.path()) };
    match volume.write(&wanted, "..one") {
        Err(e) if e.to_string().contains("not permitted") => return println!("SKIPPED a7_9a_the_group_may_read: {e}"),
        written => assert!(written.unwrap()),
    }
    let of = |path: &str| {
        let found = fs::metadata(dir.path().join(path)).unwrap();
        (found.mode() & 0o7777, found.gid())
    };
    let found = ["..one", "b", "a", "b/c"].map(of);
    assert_eq!(found, [(0o2755, 4242), (0o2755, 4242), (0o440, 4242), (0o644, 4242)]);
    assert!(!volume.write(&wanted, "..two").unwrap());
}

#[test]
fn a7_4b_what_belongs_in_memory_does_not_go_to_a_disk() {
    // Beside the test's own program: there is a file system that is none in memory.
    let here = std::env::current_exe().unwrap();
    let dir = TempDir::new_in(here.parent().unwrap()).unwrap();
    let volume = Target { in_memory: true, ..target(dir.path()) };
    let error = volume.write(&files(&[("a", "1")]), "..one").unwrap_err().to_string();
    assert!(error.contains("not in memory"), "{error}");
    assert_eq!(names(dir.path()), [""; 0]);
    let gone = dir.path().join("gone");
    assert!(target(&gone).write(&files(&[("a", "1")]), "..one").is_err() && !gone.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a7_4a_any_content_after_any_other(
        lists in proptest::collection::vec(proptest::collection::btree_map("[a-c](/[a-c]){0,2}", "[xy]{0,2}", 0..5), 1..4)
    ) {
        let dir = TempDir::new().unwrap();
        for (i, list) in lists.iter().enumerate() {
            // As the core makes them: no name is a file and a folder.
            let fine = |path: &&String| !list.keys().any(|other| path.starts_with(&format!("{other}/")));
            let wanted: Vec<(&str, &str)> =
                list.keys().filter(fine).map(|path| (path.as_str(), list[path].as_str())).collect();
            target(dir.path()).write(&files(&wanted), &format!("..{i}")).unwrap();
            prop_assert_eq!(seen(dir.path()), texts(&files(&wanted)));
        }
    }
}
