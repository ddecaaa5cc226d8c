//! The keeper with real files, and a writer that keeps a runtime's rules: it has its file open, and opens it by name when it is told to.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::*;

const SETTINGS: Settings =
    Settings { policy: Policy { max_size: Bytes(10_000), max_files: 4 }, workers: 1, interval: Duration::from_secs(3) };

/// A container's writer.
#[derive(Debug)]
struct Container {
    path: PathBuf,
    file: Mutex<File>,
    /// The next calls fail; with `true` although they are done.
    fails: Mutex<Vec<bool>>,
    reopened: Mutex<u32>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn opened(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).unwrap()
}

impl Container {
    fn new(dir: &TempDir) -> Arc<Self> {
        let path = dir.path().join("0.log");
        let file = Mutex::new(opened(&path));
        Arc::new(Self { path, file, fails: Mutex::default(), reopened: Mutex::default() })
    }

    fn say(&self, bytes: usize) {
        locked(&self.file).write_all(&vec![b'x'; bytes]).unwrap();
    }
}

impl Writer for Container {
    async fn reopen(&self, _: &str) -> Result<(), String> {
        let fails = locked(&self.fails).pop();
        if fails != Some(false) {
            *locked(&self.file) = opened(&self.path);
            *locked(&self.reopened) += 1;
        }
        if fails.is_some() { Err("on purpose".to_owned()) } else { Ok(()) }
    }
}

struct Node {
    dir: TempDir,
    container: Arc<Container>,
    health: Arc<Health>,
    running: watch::Sender<Running>,
}

impl Node {
    fn start(settings: Settings) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), settings)
    }

    fn start_in(dir: TempDir, settings: Settings) -> Self {
        let (container, health) = (Container::new(&dir), Arc::<Health>::default());
        let running = watch::Sender::new(Running::from([("id".to_owned(), container.path.clone())]));
        tokio::spawn(keep(Arc::clone(&container), settings, Arc::clone(&health), running.subscribe()));
        Self { dir, container, health, running }
    }

    fn count(&self, how: &str) -> u64 {
        self.health.done().into_iter().chain(self.health.faults()).find(|(name, _)| name == how).unwrap().1
    }

    async fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < Duration::from_secs(20), "in vain: {what}; {:?}", self.names());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn used(&self) -> u64 {
        fs::read_dir(self.dir.path()).unwrap().flatten().filter_map(|e| Some(e.metadata().ok()?.len())).sum()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_4d_a_quiet_log_that_grows_at_once_is_rotated_at_once() {
    // No round of looks comes to help.
    let node = Node::start(Settings { interval: Duration::from_secs(3_600), ..SETTINGS });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let began = Instant::now();
    node.container.say(20_000);
    node.wait("the rotation", |node| node.count("rotated") == 1).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    node.container.say(3);
    assert_eq!((node.names().len(), fs::metadata(&node.container.path).unwrap().len()), (2, 3), "it was reopened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_4_a_log_that_grows_fast_stays_within_its_bound_and_is_compressed() {
    let policy = Policy { max_size: Bytes(100_000), max_files: 4 };
    let node = Node::start(Settings { policy, ..SETTINGS });
    let mut most = 0;
    // 10 MB at up to 5 MB/s.
    for _ in 0..1_000 {
        node.container.say(10_000);
        most = most.max(node.used());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(node.count("rotated") >= 10 && node.count("removed") >= 5);
    // What a busy machine makes of 20 ms is most of that.
    assert!(most < 2_000_000, "{most}");
    // From now on slowly: no file outgrows the maximum, so all that are allowed stay, once those from before are gone.
    for _ in 0..6 {
        let rotated = node.count("rotated");
        node.container.say(100_000);
        node.wait("a rotation", |node| node.count("rotated") > rotated).await;
    }
    node.wait("all but the newest to be compressed", |node| {
        let names = node.names();
        names.len() == 4 && names[1].ends_with(".gz") && names[2].ends_with(".gz") && !names[3].ends_with(".gz")
    })
    .await;
    assert!(node.count("compressed") >= 2);
    assert!(node.health.faults().iter().all(|(_, count)| *count == 0), "{:?}", node.health.faults());
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_4b_a_runtime_that_does_not_reopen_costs_no_line_and_is_asked_again() {
    let node = Node::start(SETTINGS);
    locked(&node.container.fails).extend([false, false]);
    node.container.say(20_000);
    node.wait("two failures", |node| node.count("reopen") == 2).await;
    assert_eq!(node.names(), ["0.log"], "its name is back");
    assert_eq!(node.used(), 20_000);
    node.wait("the rotation", |node| node.count("rotated") == 1).await;
    // An answer that is lost is no failure.
    locked(&node.container.fails).push(true);
    node.container.say(20_000);
    node.wait("the second rotation", |node| node.count("rotated") == 2).await;
    assert_eq!(node.count("reopen"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_4b_what_a_killed_agent_left_is_put_right() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["0.log.20260101-000001", "0.log.20260101-000002.tmp", "0.log.20260101-000002", "0.log.20260101-000003"]
    {
        fs::write(dir.path().join(name), "text").unwrap();
    }
    let container = Container::new(&dir);
    // It was killed between the rename and the call.
    fs::rename(&container.path, dir.path().join("0.log.20260101-000004")).unwrap();
    let (running, health) = (watch::Sender::new(Running::new()), Arc::<Health>::default());
    running.send_replace([("id".to_owned(), container.path.clone())].into());
    tokio::spawn(keep(Arc::clone(&container), SETTINGS, Arc::clone(&health), running.subscribe()));
    let node = Node { dir, container, health, running };
    node.wait("the log to be there", |node| node.container.path.exists()).await;
    assert_eq!(*locked(&node.container.reopened), 1);
    let expected = ["0.log", "0.log.20260101-000002.gz", "0.log.20260101-000003.gz", "0.log.20260101-000004"];
    node.wait("the others to be compressed", |node| node.names() == expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a15_4a_a_log_whose_container_ended_is_left_alone() {
    let node = Node::start(SETTINGS);
    tokio::time::sleep(Duration::from_millis(200)).await;
    node.running.send_replace(Running::new());
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.container.say(50_000);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((node.names(), node.count("rotated")), (vec!["0.log".to_owned()], 0));
}
