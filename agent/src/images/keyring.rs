//! Whose credentials an image is pulled with.
//!
//! Problem: a private registry answers only who it knows. Approach: the node's docker configuration, from the kubelet's places and with
//! its rules of matching (pkg/credentialprovider/{config,keyring}.go, release 1.36); read anew for each pull, as the file may be rotated.
//! All that match are tried in order; where none does the registry is asked without.
//!
//! Terms: an *entry* is the registry, or a part of one, that credentials are for: `host`, `host:port`, `host/path`; parts of the host may
//! have `*` and `?`.
//!
//! Properties: pure but for reading the file; a file that is broken gives no credentials and is told of; credentials are never shown.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

/// A larger file is no configuration (pkg/credentialprovider/config.go has no bound).
const MAX_FILE: u64 = 1 << 20;
/// The registry that names without one are of.
const DEFAULT_HOST: &str = "index.docker.io";

/// A user's name and word.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The word.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// Where the node's credentials are.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    /// Files that may be there, in this order: the first that can be read counts.
    files: Vec<PathBuf>,
}

/// A docker configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It is not one.
    #[error("{} is no docker configuration (line {line})", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where; the words of the fault could show a credential.
        line: usize,
    },
}

impl Keyring {
    /// The kubelet's places (`DefaultDockerConfigJSONPaths`, then those of the older `.dockercfg`): its own folder, the folder it is
    /// started in, the user's, and the root's.
    #[must_use]
    pub fn of_node(root: &Path, home: Option<&Path>) -> Self {
        let folders = |hidden: &str, name: &str| {
            let hidden_of = |folder: &Path| folder.join(hidden);
            let own =
                [Some(root.to_owned()), Some(PathBuf::from(".")), home.map(hidden_of), Some(hidden_of(Path::new("/")))];
            own.into_iter().flatten().map(|folder| folder.join(name)).collect::<Vec<_>>()
        };
        Self { files: [folders(".docker", "config.json"), folders("", ".dockercfg")].concat() }
    }

    /// The credentials for a repository (an image's whole name without tag and digest), the best first.
    ///
    /// # Errors
    /// A file that is there cannot be used, and none after it can.
    pub fn lookup(&self, repository: &str) -> Result<Vec<Credentials>, KeyringError> {
        let mut trouble = None;
        for path in &self.files {
            match read(path) {
                Ok(None) => {}
                Ok(Some(entries)) => {
                    if let Some(error) = trouble {
                        tracing::warn!(%error, "the credentials of another file are used");
                    }
                    return Ok(find(&entries, repository));
                }
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        trouble.map_or(Ok(Vec::new()), Err)
    }
}

/// Credentials by entry.
pub(super) type Entries = BTreeMap<String, Vec<Credentials>>;

fn read(path: &Path) -> Result<Option<Entries>, KeyringError> {
    let failed = |error| KeyringError::Read { path: path.to_owned(), error };
    let file = match std::fs::File::open(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(failed)?;
    let form = |error: serde_json::Error| KeyringError::Form { path: path.to_owned(), line: error.line() };
    let auths = if path.extension().is_some_and(|end| end == "json") {
        serde_json::from_slice::<ConfigJson>(&bytes).map_err(form)?.auths
    } else {
        serde_json::from_slice(&bytes).map_err(form)?
    };
    Ok(Some(entries(auths)))
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    /// `username:password` in base 64; leads over both.
    auth: String,
}

impl Auth {
    fn credentials(self) -> Option<Credentials> {
        if self.auth.is_empty() {
            return Some(Credentials { username: self.username, password: self.password });
        }
        // With and without the padding, as upstream.
        let text = self.auth.trim().trim_end_matches('=');
        let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        Some(Credentials { username: username.to_owned(), password: password.to_owned() })
    }
}

fn entries(auths: BTreeMap<String, Auth>) -> Entries {
    let mut made = Entries::new();
    for (place, auth) in auths {
        match auth.credentials() {
            Some(credentials) => made.entry(entry(&place)).or_default().push(credentials),
            None => tracing::warn!(entry = place, "its `auth` is not a name and a password in base64; it is left out"),
        }
    }
    made
}

/// Without the scheme, the version of the API, and a path that is none.
pub(super) fn entry(place: &str) -> String {
    let bare = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
    let (host, path) = bare.find('/').map_or((bare, ""), |at| bare.split_at(at));
    let path = ["/v1/", "/v2/"].iter().find(|version| path.starts_with(**version)).map_or(path, |_| &path[3..]);
    if path == "/" { host.to_owned() } else { format!("{host}{path}") }
}

/// Of a repository (an image's name without tag and digest).
pub(super) fn find(entries: &Entries, repository: &str) -> Vec<Credentials> {
    // The longer of two that begin alike comes first, as it says more.
    let found: Vec<Credentials> = entries
        .iter()
        .rev()
        .filter(|(entry, _)| matches(entry, repository))
        .flat_map(|(_, list)| list.clone())
        .collect();
    if found.is_empty() && is_of_default(repository) {
        return entries.get(DEFAULT_HOST).cloned().unwrap_or_default();
    }
    found
}

/// Whether an entry, in which parts of the host may be patterns, is for a repository.
pub(super) fn matches(entry: &str, repository: &str) -> bool {
    let split = |text: &str| {
        let (host, path) = text.find('/').map_or((text, ""), |at| text.split_at(at));
        let (name, port) = host.rsplit_once(':').unwrap_or((host, ""));
        (name.split('.').map(str::to_owned).collect::<Vec<_>>(), port.to_owned(), path.to_owned())
    };
    let ((parts, port, path), (of, of_port, of_path)) = (split(entry), split(repository));
    port == of_port
        && parts.len() == of.len()
        && of_path.starts_with(&path)
        && parts.iter().zip(&of).all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|at| glob(rest, &text[at..])),
        Some((b'?', rest)) => !text.is_empty() && glob(rest, &text[1..]),
        Some((byte, rest)) => text.first() == Some(byte) && glob(rest, &text[1..]),
    }
}

fn is_of_default(repository: &str) -> bool {
    matches!(repository.split_once('/'), Some(("docker.io" | DEFAULT_HOST, _)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(config: &str, image: &str) -> Vec<String> {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("config.json"), config).expect("a file");
        let found =
            Keyring::of_node(dir.path(), None).lookup(&crate::runtime::repository(image)).expect("it can be read");
        found.into_iter().map(|c| format!("{}:{}", c.username, c.password)).collect()
    }

    #[test]
    fn a6_3c_an_image_is_pulled_with_what_is_for_its_registry() {
        // u:p and v:q, the second without padding.
        let config = r#"{"auths": {
            "https://r.example": {"auth": "dTpw"},
            "r.example/team": {"auth": "djpx"},
            "r.example:5000": {"username": "port", "password": "w"},
            "*.wild.example": {"username": "wild", "password": "w"},
            "https://index.docker.io/v1/": {"username": "hub", "password": "w"},
            "broken.example": {"auth": "!"}
        }}"#;
        for (image, expected) in [
            ("r.example/a:1", &["u:p"][..]),
            ("r.example/team/a@sha256:1", &["v:q", "u:p"]),
            ("r.example:5000/a", &["port:w"]),
            ("r.example:5001/a", &[]),
            ("x.wild.example/a", &["wild:w"]),
            ("x.y.wild.example/a", &[]),
            ("wild.example/a", &[]),
            ("busybox", &["hub:w"]),
            ("team/a:1", &["hub:w"]),
            ("docker.io/library/a", &["hub:w"]),
            ("other.example/a", &[]),
            ("broken.example/a", &[]),
        ] {
            assert_eq!(names(config, image), expected, "{image}");
        }
        assert!(names("{}", "busybox").is_empty());
    }

    #[test]
    fn a6_3c_the_first_file_that_can_be_read_counts_and_a_broken_one_is_told_of() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = dir.path().join("home");
        let keyring = Keyring::of_node(dir.path(), Some(&home));
        std::fs::create_dir_all(home.join(".docker")).expect("a folder");
        std::fs::write(dir.path().join("config.json"), "{\n\"auths\": secret}").expect("a file");
        let error = keyring.lookup("r.example/a").expect_err("it is broken").to_string();
        assert!(error.contains("config.json") && error.contains("line 2") && !error.contains("secret"), "{error}");
        let auths = r#"{"auths": {"r.example": {"username": "u", "password": "p"}}}"#;
        std::fs::write(home.join(".docker/config.json"), auths).expect("a file");
        let found = keyring.lookup("r.example/a").expect("the next one");
        assert_eq!((found.len(), format!("{found:?}")), (1, "[Credentials(..)]".to_owned()));
        // The older form has no `auths`.
        let older = tempfile::tempdir().expect("a folder");
        std::fs::write(older.path().join(".dockercfg"), r#"{"r.example": {"auth": "dTpw"}}"#).expect("a file");
        assert_eq!(Keyring::of_node(older.path(), None).lookup("r.example/a").expect("it").len(), 1);
    }
}
