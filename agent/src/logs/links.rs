//! The links of `/var/log/containers`, by which log collectors find logs: `<pod>_<namespace>_<container>-<id>.log`.
//!
//! Names are the kubelet's (pkg/kubelet/kuberuntime/legacy.go, release 1.36), and so is the place: beside the default podLogsDir. As
//! podLogsDir can be set and this folder cannot, it is `containers` beside a podLogsDir that is named `pods`; another podLogsDir has
//! no links.
//!
//! Properties (tested): a link is removed only if it leads into the given folder of logs, so that two who share a folder of links leave
//! each other's alone; nothing but links is removed.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The longest name of a file on ext4.
const LONGEST: usize = 255;
const SUFFIX: &str = ".log";

/// Where the links to the logs in `pod_logs` are.
#[must_use]
pub fn folder(pod_logs: &Path) -> Option<PathBuf> {
    (pod_logs.file_name()? == "pods").then(|| pod_logs.with_file_name("containers"))
}

/// The same by the path of a log, which is three folders deeper.
fn folder_of(log: &Path) -> Option<PathBuf> {
    folder(log.ancestors().nth(3)?)
}

/// A link's name.
#[must_use]
pub fn name(pod: &str, namespace: &str, container: &str, id: &str) -> String {
    let mut name = format!("{pod}_{namespace}_{container}-{id}");
    name.truncate(LONGEST - SUFFIX.len());
    name + SUFFIX
}

/// The container's id in a link's name; `None` if it was too long to have one.
fn id_of(name: &str) -> Option<&str> {
    let (_, id) = name.strip_suffix(SUFFIX)?.rsplit_once('-')?;
    // Runtimes know containers by as little as that.
    (id.len() >= 6).then_some(id)
}

/// Makes the link to a log, if that is there.
///
/// # Errors
/// The folder or the link cannot be made.
pub fn link(log: &Path, name: &str) -> io::Result<()> {
    let Some(folder) = folder_of(log) else { return Ok(()) };
    if !log.exists() {
        return Ok(());
    }
    fs::create_dir_all(&folder)?;
    let link = folder.join(name);
    match std::os::unix::fs::symlink(log, &link) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && fs::read_link(&link).is_ok_and(|to| to == log) => {
            Ok(())
        }
        made => made,
    }
}

/// Removes the link to a log.
///
/// # Errors
/// It cannot be removed.
pub fn unlink(log: &Path, name: &str) -> io::Result<()> {
    let Some(folder) = folder_of(log) else { return Ok(()) };
    let link = folder.join(name);
    if fs::read_link(&link).is_ok_and(|to| to == log) { super::files::remove(&link) } else { Ok(()) }
}

/// Removes the links to the logs of a pod, whose folder this is.
///
/// # Errors
/// A link cannot be removed.
pub fn unlink_pod(pod_logs: &Path, logs: &Path) -> io::Result<()> {
    for entry in folder(pod_logs).and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(logs)) {
            super::files::remove(&entry.path())?;
        }
    }
    Ok(())
}

/// A link to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dangling {
    /// The link.
    pub link: PathBuf,
    /// The container's id, where the folder of its logs is there still: it may be that its log is being rotated.
    pub ask: Option<String>,
}

/// The links into `pod_logs` that lead nowhere. One of which it cannot be told whether its log comes back is left out.
#[must_use]
pub fn dangling(pod_logs: &Path) -> Vec<Dangling> {
    let entries = folder(pod_logs).and_then(|folder| fs::read_dir(folder).ok());
    let of = |entry: fs::DirEntry| {
        let link = entry.path();
        let log = fs::read_link(&link).ok().filter(|log| log.starts_with(pod_logs))?;
        if log.exists() {
            return None;
        }
        if !log.parent()?.exists() {
            return Some(Dangling { link, ask: None });
        }
        let ask = Some(id_of(entry.file_name().to_str()?)?.to_owned());
        Some(Dangling { link, ask })
    };
    entries.into_iter().flatten().flatten().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef";

    fn log(root: &Path, pod: &str) -> PathBuf {
        let folder = root.join("pods").join(format!("default_{pod}_u1")).join("c");
        fs::create_dir_all(&folder).unwrap();
        folder.join("0.log")
    }

    #[test]
    fn a15_2_names_and_places_are_the_kubelets() {
        assert_eq!(name("p-node", "default", "c", ID), format!("p-node_default_c-{ID}.log"));
        let long = name(&"p".repeat(253), "default", "c", ID);
        assert_eq!((long.len(), long.ends_with("p.log")), (255, true));
        assert_eq!((id_of(&long), id_of(&name("p", "n", "c", ID))), (None, Some(ID)));
        assert_eq!(folder(Path::new("/var/log/pods")), Some("/var/log/containers".into()));
        assert_eq!(folder(Path::new("/logs")), None);
    }

    #[test]
    fn a15_2_links_come_and_go_with_their_logs() {
        let root = tempfile::tempdir().unwrap();
        let (log, name) = (log(root.path(), "p"), name("p", "default", "c", ID));
        let made = root.path().join("containers").join(&name);
        link(&log, &name).unwrap();
        assert!(!made.is_symlink(), "there is no log");
        fs::write(&log, "text").unwrap();
        link(&log, &name).unwrap();
        link(&log, &name).unwrap();
        assert_eq!(fs::read_to_string(&made).unwrap(), "text");
        unlink(Path::new("/other/pods/x/c/0.log"), &name).unwrap();
        unlink(&log.with_file_name("1.log"), &name).unwrap();
        assert!(made.is_symlink(), "it is another log's");
        unlink(&log, &name).unwrap();
        unlink(&log, &name).unwrap();
        assert!(!made.is_symlink());
        link(&log, &name).unwrap();
        let pods = root.path().join("pods");
        unlink_pod(&pods, &pods.join("default_p_u2")).unwrap();
        assert!(made.is_symlink(), "it is another pod's");
        unlink_pod(&pods, &pods.join("default_p_u1")).unwrap();
        assert!(!made.is_symlink());
        let elsewhere = root.path().join("other/x/c/0.log");
        link(&elsewhere, &name).unwrap();
        assert_eq!(folder_of(&elsewhere), None);
    }

    #[test]
    fn a4_12f_only_our_links_to_nothing_are_found() {
        let root = tempfile::tempdir().unwrap();
        let (there, rotated, gone) = (log(root.path(), "there"), log(root.path(), "rotated"), log(root.path(), "gone"));
        for (log, pod) in [(&there, "there"), (&rotated, "rotated"), (&gone, "gone")] {
            fs::write(log, "").unwrap();
            link(log, &name(pod, "default", "c", ID)).unwrap();
        }
        let long = name(&"l".repeat(253), "default", "c", ID);
        link(&rotated, &long).unwrap();
        let links = root.path().join("containers");
        std::os::unix::fs::symlink("/nowhere/pods/x/c/0.log", links.join("foreign-0123456789.log")).unwrap();
        fs::write(links.join("file-0123456789.log"), "").unwrap();
        fs::remove_file(&rotated).unwrap();
        fs::remove_dir_all(gone.parent().unwrap()).unwrap();
        let mut found = dangling(&root.path().join("pods"));
        found.sort_by(|a, b| a.link.cmp(&b.link));
        let expected = [
            Dangling { link: links.join(name("gone", "default", "c", ID)), ask: None },
            Dangling { link: links.join(name("rotated", "default", "c", ID)), ask: Some(ID.to_owned()) },
        ];
        assert_eq!(found, expected);
        assert_eq!(dangling(Path::new("/logs")), []);
    }
}
