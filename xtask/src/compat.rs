//! docs/compatibility.md: what of a kubelet's work with pods beelet does, and which tests say so.
//!
//! Problem: a list of what is supported that is kept by hand is wrong a month later. Approach: each row has an id and one line in
//! [`ROWS`]; tests bear the ids of the rows that they are for, and a row that claims something without a test is an error. The document is
//! written from both, and a test compares it with the one in the repository: `BEELET_WRITE_DOCS=1 cargo test -p xtask compat` writes it.
//!
//! Terms: a test's *ids* begin its name, `a4_8f_a_crash_loop_...`, also several of them, `a4_8f_and_a4_3b_...`; or its documentation has a line
//! `Rows: A4.8f, A4.3b.`, where a table of many cases is for many rows. An id without a letter (`a5_3_...`) is for all rows that begin so.
//!
//! Properties (tested): each id of a test is one of a row; each row that says yes or partly has a test, each that says no has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The rows; their format is in the file's head.
const ROWS: &str = include_str!("compat/rows.txt");
/// Where tests are.
const SOURCES: [&str; 3] = ["agent", "tests", "xtask"];
/// What writes the document.
const COMMAND: &str = "BEELET_WRITE_DOCS=1 cargo test -p xtask compat";

/// Whether it is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Yes,
    Partly,
    Refused,
    Warned,
    No,
}

impl State {
    const ALL: [(&'static str, Self); 5] = [
        ("yes", Self::Yes),
        ("partly", Self::Partly),
        ("refused", Self::Refused),
        ("warned", Self::Warned),
        ("no", Self::No),
    ];

    /// As the document has it, with what the row says of it.
    fn told(self, words: &str) -> String {
        let state = match self {
            Self::Yes => "yes",
            Self::Partly => "partly",
            Self::Refused => "refused by name",
            Self::Warned => "left out, told by name",
            Self::No => "no",
        };
        if words.is_empty() { state.to_owned() } else { format!("{state}: {words}") }
    }
}

/// A row.
#[derive(Clone, Debug)]
struct Row {
    id: String,
    subject: String,
    state: State,
    words: String,
}

/// A heading and its rows.
#[derive(Clone, Debug)]
struct Group {
    title: String,
    rows: Vec<Row>,
}

/// Reads [`ROWS`].
fn groups(text: &str) -> Result<Vec<Group>, String> {
    let mut groups: Vec<Group> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with("//") && !line.trim().is_empty()) {
        if let Some(title) = line.strip_prefix("# ") {
            groups.push(Group { title: title.to_owned(), rows: Vec::new() });
            continue;
        }
        let parts: Vec<&str> = line.split('|').map(str::trim).collect();
        let [id, subject, state, words] = parts[..] else {
            return Err(format!("{line:?} is not `id | subject | state | words`"));
        };
        let (_, state) = *State::ALL
            .iter()
            .find(|(name, _)| *name == state)
            .ok_or_else(|| format!("{id}: {state:?} is no state"))?;
        let group = groups.last_mut().ok_or_else(|| format!("{id} stands before the first heading"))?;
        group.rows.push(Row { id: id.to_owned(), subject: subject.to_owned(), state, words: words.to_owned() });
    }
    Ok(groups)
}

/// A test and the rows that it is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    ids: Vec<String>,
    name: String,
    /// From the root of the repository.
    file: PathBuf,
}

/// The row ids with which a name begins: `a4_8f_a4_3b_x` is for A4.8f and A4.3b.
fn ids_of_name(name: &str) -> Vec<String> {
    let mut ids = Vec::new();
    let mut parts = name.split('_').peekable();
    while let Some(group) = parts.next() {
        if group == "and" && !ids.is_empty() {
            continue;
        }
        let number = group.strip_prefix('a').filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        let row = parts.peek().filter(|row| {
            let digits = row.trim_end_matches(|c: char| c.is_ascii_lowercase());
            !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) && row.len() - digits.len() <= 1
        });
        let (Some(number), Some(row)) = (number, row) else { break };
        ids.push(format!("A{number}.{row}"));
        parts.next();
    }
    ids
}

/// The tests of a source file that are for rows.
fn tests_of(source: &str, file: &Path) -> Vec<Test> {
    let mut tests = Vec::new();
    let (mut is_test, mut told) = (false, Vec::new());
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") && (line.contains("test]") || line.contains("test(")) {
            is_test = !line.contains("cfg(");
        } else if let Some(rows) = line.strip_prefix("/// Rows: ") {
            told.extend(rows.trim_end_matches('.').split(',').map(|id| id.trim().to_owned()));
        } else if let Some(name) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn ")) {
            let name = name.split(['(', '<']).next().unwrap_or_default();
            let mut ids = ids_of_name(name);
            ids.append(&mut told);
            if is_test && !ids.is_empty() {
                tests.push(Test { ids, name: name.to_owned(), file: file.to_owned() });
            }
            is_test = false;
        } else if !line.starts_with("//") && !line.starts_with('#') && !line.is_empty() {
            // Documentation of something else.
            told.clear();
        }
    }
    tests
}

/// All of them below a folder.
fn scan(root: &Path) -> std::io::Result<Vec<Test>> {
    let mut tests = Vec::new();
    let mut folders: Vec<PathBuf> = SOURCES.iter().map(|folder| root.join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let file = path.strip_prefix(root).unwrap_or(&path).to_owned();
                tests.extend(tests_of(&fs::read_to_string(&path)?, &file));
            }
        }
    }
    tests.sort();
    Ok(tests)
}

/// Whether a test's id is for this row: its own, or one without a letter that the row begins with.
fn is_for(id: &str, row: &str) -> bool {
    let bare = row.trim_end_matches(|c: char| c.is_ascii_lowercase());
    id == row || id == bare
}

/// What is wrong with the rows and their tests.
fn faults(groups: &[Group], tests: &[Test]) -> Vec<String> {
    let mut faults = Vec::new();
    let rows: Vec<&Row> = groups.iter().flat_map(|group| &group.rows).collect();
    let mut seen = BTreeSet::new();
    for row in &rows {
        if !seen.insert(&row.id) {
            faults.push(format!("{} is there twice", row.id));
        }
        if row.state == State::Partly && row.words.is_empty() {
            faults.push(format!("{}: what is missing?", row.id));
        }
        // By its own id: a test of all rows says nothing of what is not there.
        let own = tests.iter().find(|test| test.ids.contains(&row.id));
        let any = tests.iter().any(|test| test.ids.iter().any(|id| is_for(id, &row.id)));
        match (row.state, own) {
            (State::Yes | State::Partly, _) if !any => {
                faults.push(format!("{} ({}) has no test: let one bear its id", row.id, row.subject));
            }
            (State::No, Some(test)) => faults.push(format!(
                "{} says no, and {} is for it: say in xtask/src/compat/rows.txt what holds now",
                row.id, test.name
            )),
            _ => {}
        }
    }
    for test in tests {
        for id in test.ids.iter().filter(|id| !rows.iter().any(|row| is_for(id, &row.id))) {
            faults.push(format!("{} in {} is for {id}, which is no row", test.name, test.file.display()));
        }
    }
    faults
}

/// The document.
fn markdown(groups: &[Group], tests: &[Test]) -> String {
    let mut out = format!(
        "# What of a kubelet's work with pods beelet does\n\n\
         <!-- Generated from xtask/src/compat/rows.txt and the names of the tests; do not edit: {COMMAND} -->\n\n\
         Compared with the kubelet of Kubernetes 1.36 and 1.37, standalone, with static pods. A field that is not supported is either an error\n\
         that names it, or left out and told by name: in the log, on `/pods` (condition `beelet.dev/AsWritten`) and in `beelet explain`. The tests\n\
         of a row bear its id; of those against real containerd the file is named. What is served under `/metrics` is compared\n\
         [elsewhere](compatibility-metrics.md).\n\n"
    );
    let count = |rows: &[Row]| State::ALL.map(|(_, state)| rows.iter().filter(|row| row.state == state).count());
    out += "| | rows | yes | partly | refused | left out | no |\n|---|---|---|---|---|---|---|\n";
    for group in groups {
        let [yes, partly, refused, warned, no] = count(&group.rows);
        let all = group.rows.len();
        let _ = writeln!(out, "| {} | {all} | {yes} | {partly} | {refused} | {warned} | {no} |", group.title);
    }
    let all: Vec<Row> = groups.iter().flat_map(|group| group.rows.clone()).collect();
    let [yes, partly, refused, warned, no] = count(&all);
    let _ = writeln!(out, "| all | {} | {yes} | {partly} | {refused} | {warned} | {no} |", all.len());
    for group in groups {
        let _ = write!(out, "\n## {}\n\n| row | what | supported | tests |\n|---|---|---|---|\n", group.title);
        let mut last = String::new();
        for row in &group.rows {
            let bare = row.id.trim_end_matches(|c: char| c.is_ascii_lowercase()).to_owned();
            // Those of all rows of a number stand once, before the first of them.
            if bare != last && bare != row.id {
                let shared = shown(tests, &bare);
                if !shared.is_empty() {
                    let _ = writeln!(out, "| {bare} | all of it | | {shared} |");
                }
            }
            last = bare;
            let told = row.state.told(&row.words);
            let _ = writeln!(out, "| {} | {} | {told} | {} |", row.id, row.subject, shown(tests, &row.id));
        }
    }
    out
}

/// The tests of one id: names, and files of end-to-end tests.
fn shown(tests: &[Test], id: &str) -> String {
    let mut named: BTreeMap<bool, BTreeSet<String>> = BTreeMap::new();
    for test in tests.iter().filter(|test| test.ids.iter().any(|of| of == id)) {
        let end_to_end = test.file.starts_with("tests");
        let name = if end_to_end { test.file.display().to_string() } else { test.name.clone() };
        named.entry(end_to_end).or_default().insert(format!("`{name}`"));
    }
    named.into_values().flatten().collect::<Vec<_>>().join(", ")
}

#[test]
fn compatibility_md_is_what_the_rows_and_the_tests_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let (groups, tests) = (groups(ROWS).expect("rows"), scan(root).expect("sources"));
    let faults = faults(&groups, &tests);
    assert!(faults.is_empty(), "xtask/src/compat/rows.txt and the tests do not agree:\n  {}", faults.join("\n  "));
    let (file, text) = (root.join("docs/compatibility.md"), markdown(&groups, &tests));
    if std::env::var_os("BEELET_WRITE_DOCS").is_some() {
        fs::write(&file, &text).expect("docs/compatibility.md");
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(written == text, "docs/compatibility.md is not what the rows and tests say: `{COMMAND}` writes it anew");
}

#[test]
fn ids_are_read_from_names_and_documentation() {
    for (name, ids) in [
        ("a4_8f_a_crash_loop", &["A4.8f"][..]),
        ("a4_8f_a4_3b_x", &["A4.8f", "A4.3b"]),
        ("a4_8f_and_a4_3b_x", &["A4.8f", "A4.3b"]),
        ("a15_3_lines", &["A15.3"]),
        ("a6_8_a_pull", &["A6.8"]),
        ("a_pod_runs", &[]),
        ("a5_names_of_ports", &[]),
        ("a4_16to_x", &[]),
        ("nothing_a4_8f_x", &[]),
    ] {
        assert_eq!(ids_of_name(name), ids, "{name}");
    }
    let source = "/// Rows: A1.1, A1.2b.\n#[test]\nfn table() {}\n/// Rows: A9.9.\nstruct X;\n#[test]\nfn none() {}\n\
                  fn a1_1_helper() {}\n#[tokio::test(flavor = \"x\")]\nasync fn a1_3_waits() {}\n#[cfg(test)]\nfn a1_1_not() {}\n";
    let found = tests_of(source, Path::new("x.rs"));
    let found: Vec<_> = found.iter().map(|test| (&*test.name, test.ids.join(" "))).collect();
    assert_eq!(found, [("table", "A1.1 A1.2b".to_owned()), ("a1_3_waits", "A1.3".to_owned())]);
}

#[test]
fn what_does_not_agree_is_found() {
    let rows = "# A1 x\nA1.1a | a | yes |\nA1.1b | b | partly | c\nA1.2 | d | no |\n";
    let test = |id: &str| Test { ids: vec![id.to_owned()], name: "t".to_owned(), file: "f.rs".into() };
    let of = |text: &str, ids: &[&str]| {
        faults(&groups(text).expect("rows"), &ids.iter().map(|id| test(id)).collect::<Vec<_>>()).join("; ")
    };
    assert_eq!(of(rows, &["A1.1"]), "", "for both");
    assert_eq!(of(rows, &["A1.1a", "A1.1b"]), "");
    assert_eq!(of(rows, &["A1.1a"]), "A1.1b (b) has no test: let one bear its id");
    assert_eq!(of(rows, &["A1.1", "A1.3"]), "t in f.rs is for A1.3, which is no row");
    assert!(of(rows, &["A1.1", "A1.2"]).starts_with("A1.2 says no, and t is for it"));
    assert_eq!(of(&rows.replace("| c", "|"), &["A1.1"]), "A1.1b: what is missing?");
    assert_eq!(of(&format!("{rows}A1.2 | d | no |"), &["A1.1"]), "A1.2 is there twice");
    for wrong in ["A1.1 | a | yes |", "# x\nA1.1 | a | maybe |", "# x\nA1.1 a"] {
        assert!(groups(wrong).is_err(), "{wrong}");
    }
}
