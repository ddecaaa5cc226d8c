//! What every command needs: the folders, the cache of parts, and a uniform way to start programs.
//!
//! Problem: set-up steps take from seconds to minutes, are shared by several checkouts, and may run twice at once.
//! A program that fails somewhere inside must not leave the reader with "exit status 1".
//!
//! Approach: everything that is fetched or compiled once lives in one cache folder as *parts*. A part is a folder named
//! by the hash of its recipe, so a changed recipe makes a new folder and never pulls files from under a running bed.
//! It counts as there only when its stamp, written last, is there. Programs run with their output in a log file
//! when it is long, and the error shows the command, the way it ended and the tail of what it said.
//! Progress goes to stderr: stdout belongs to the command's result.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

/// How often a long step says that it is still going on.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// The folders of this checkout and of this user.
#[derive(Debug, Clone)]
pub(crate) struct Ctx {
    /// The repository.
    pub(crate) root: PathBuf,
    /// Where parts live: `$BEELET_CACHE`, else `$XDG_CACHE_HOME/beelet`, else `~/.cache/beelet`.
    pub(crate) cache: PathBuf,
    /// Cargo's target folder of the host workspace.
    pub(crate) target: PathBuf,
}

impl Ctx {
    /// Finds the folders; creates the cache.
    pub(crate) fn new() -> Result<Self> {
        // Cargo says it at run time too, which is right when a built binary has been moved with its checkout.
        let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&here).parent().context("xtask has no parent folder")?.to_path_buf();
        let cache = cache_folder()?;
        fs::create_dir_all(&cache).with_context(|| {
            format!("cannot create the cache folder {}: set BEELET_CACHE to a folder you can write", cache.display())
        })?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, cache, target })
    }

    /// The folder of a part, made by `build` if no folder with this recipe is complete.
    ///
    /// `recipe` is whatever determines the content: versions, package names, flags, hashes of sources.
    /// `build` is given the final folder, empty. Two processes that want the same part: one builds, the other waits.
    pub(crate) fn part(&self, name: &str, recipe: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let hash = hex(&Sha256::digest(recipe.as_bytes())[..6]);
        let dir = self.cache.join(name).join(hash);
        let stamp = dir.join(".stamp");
        if stamp.exists() {
            return Ok(dir);
        }
        let _lock = self.lock(&format!("part-{}", name.replace('/', "-")))?;
        if stamp.exists() {
            return Ok(dir);
        }
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove the unfinished {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        build(&dir).with_context(|| format!("cannot make the part `{name}` in {}", dir.display()))?;
        fs::write(&stamp, recipe)?;
        Ok(dir)
    }

    /// Takes the lock of that name, waiting for its holder. It is released when the file is dropped or the process dies.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let dir = self.cache.join("locks");
        fs::create_dir_all(&dir)?;
        let path = dir.join(name);
        let file = File::create(&path).with_context(|| format!("cannot open the lock {}", path.display()))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            note(format!("waiting for another xtask that holds the lock `{name}`"));
            flock(&file, FlockOperation::LockExclusive).with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }

    /// A log file in the cache, for the output of long programs.
    pub(crate) fn log_file(&self, name: &str) -> Result<PathBuf> {
        let dir = self.cache.join("logs");
        fs::create_dir_all(&dir)?;
        Ok(dir.join(format!("{name}.log")))
    }
}

fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("BEELET_CACHE") {
        return std::path::absolute(&dir).with_context(|| format!("BEELET_CACHE={} is no path", dir.display()));
    }
    if let Some(dir) = set("XDG_CACHE_HOME") {
        return Ok(dir.join("beelet"));
    }
    set("HOME").map(|home| home.join(".cache/beelet")).context("neither BEELET_CACHE, XDG_CACHE_HOME nor HOME is set")
}

/// Says that something is being done or was found.
pub(crate) fn note(text: impl AsRef<str>) {
    eprintln!("    {}", text.as_ref());
}

/// Says that a step begins; what is returned can tell how long it took.
pub(crate) fn step(title: impl AsRef<str>) -> Step {
    eprintln!("==> {}", title.as_ref());
    Step { started: Instant::now() }
}

/// A step that was announced with [`step`].
#[derive(Debug)]
pub(crate) struct Step {
    started: Instant,
}

impl Step {
    /// Says that the step is done, with its time.
    pub(crate) fn done(self) {
        note(format!("done in {}", seconds(self.started.elapsed())));
    }
}

/// A duration as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// Runs a program with this terminal's input and output; an error says which program and how it ended.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    ended(command, status, "")
}

/// Runs a program and returns its stdout as text. Its stderr becomes part of the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    ended(command, out.status, &tail(&String::from_utf8_lossy(&out.stderr), 20))?;
    String::from_utf8(out.stdout).with_context(|| format!("{} did not print UTF-8", shown(command)))
}

/// Runs a program silently; what it said is shown only if it failed.
pub(crate) fn quiet(command: &mut Command) -> Result<()> {
    let out = command.stdin(Stdio::null()).output().with_context(|| cannot_start(command))?;
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ended(command, out.status, &tail(&said, 20))
}

/// Runs a long program with its output in `log`; says every 15 s that it goes on, and shows the log's end on failure.
pub(crate) fn logged(title: &str, log: &Path, command: &mut Command) -> Result<()> {
    let started = Instant::now();
    let mut file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    writeln!(file, "# {}", shown(command))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = command.spawn().with_context(|| cannot_start(command))?;
    let mut said = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if said.elapsed() >= HEARTBEAT {
            said = Instant::now();
            note(format!("{title}: {} so far (log: {})", seconds(started.elapsed()), log.display()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let text = fs::read_to_string(log).unwrap_or_default();
    ended(command, status, &tail(&text, 40))
        .with_context(|| format!("{title} failed; the whole log: {}", log.display()))
}

fn ended(command: &Command, status: ExitStatus, said: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    if said.trim().is_empty() {
        bail!("`{}`: {status}", shown(command));
    }
    bail!("`{}`: {status}\n{said}", shown(command));
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}` (is it installed?)", shown(command))
}

/// A command as one would type it, without the environment.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Where a program is: an absolute path, or the first hit on PATH and in the sbin folders.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
