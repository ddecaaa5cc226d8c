//! Programs that give credentials for registries.
//!
//! Problem: clouds hand out words for a registry that are good for hours only. Approach: the kubelet's exec protocol
//! (pkg/credentialprovider/plugin/plugin.go and kubelet's apis/credentialprovider, release 1.36): the program is told the image on its
//! standard input, and answers with credentials by registry, and for how long they are good for what.
//!
//! Properties: a program is asked once at a time; one that hangs is killed after a minute; what it says is never logged but its error.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use beelet_core::units::Micros;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::sync::Mutex;

use super::keyring::{Credentials, Entries, entry, find, matches};
use crate::clock::Clock;
use crate::config::duration::Duration as Span;
use crate::config::providers::Provider as Settings;

/// A program gets this long (`ExecPlugin`).
const LIMIT: Duration = Duration::from_secs(60);
/// Of its answer, and of its errors, so much is read.
const MAX_ANSWER: u64 = 1 << 20;
/// Stands for all images; no image's name has these.
const GLOBAL: &str = "<global>";

/// Why a program gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It could not be run.
    #[error("error execing credential provider plugin {name}: {error}")]
    Exec {
        /// Which.
        name: String,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// It did not end well.
    #[error("error execing credential provider plugin {name}: {status}: {stderr}")]
    Failed {
        /// Which.
        name: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// It did not end in time.
    #[error("error execing credential provider plugin {name}: it did not end within {} s", LIMIT.as_secs())]
    Timeout {
        /// Which.
        name: String,
    },
    /// What it answered is none.
    #[error("credential provider plugin {name}: {why}")]
    Answer {
        /// Which.
        name: String,
        /// What is wrong with it; no word of the answer.
        why: &'static str,
    },
}

/// A program, and what it said lately.
#[derive(Debug)]
pub struct Provider {
    settings: Settings,
    /// By what it is good for; with the moment until which it is (monotonic).
    cache: Mutex<BTreeMap<String, (Micros, Entries)>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'a str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    api_version: String,
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<Span>,
    /// `null` where the program has none.
    #[serde(default)]
    auth: Option<BTreeMap<String, Words>>,
}

#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Provider {
    /// A program that was not asked yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, cache: Mutex::default() }
    }

    /// The credentials for a repository; none if the program is not for it.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn credentials(&self, repository: &str) -> Result<Vec<Credentials>, ProviderError> {
        if !self.settings.match_images.iter().any(|pattern| matches(pattern, repository)) {
            return Ok(Vec::new());
        }
        // Held while it runs: who asks for the same meanwhile finds the answer.
        let mut cache = self.cache.lock().await;
        let now = Clock.now().mono;
        cache.retain(|_, (until, _)| *until > now);
        let registry = repository.split('/').next().unwrap_or_default();
        if let Some((_, known)) = [repository, registry, GLOBAL].iter().find_map(|key| cache.get(*key)) {
            return Ok(find(known, repository));
        }
        let answer = self.ask(repository).await?;
        let key = match answer.cache_key_type.as_str() {
            "Image" => repository,
            "Registry" => registry,
            "Global" => GLOBAL,
            _ => return Err(self.wrong("it did not return a valid cacheKeyType")),
        };
        let mut entries = Entries::new();
        for (place, Words { username, password }) in answer.auth.unwrap_or_default() {
            entries.entry(entry(&place)).or_default().push(Credentials { username, password });
        }
        let found = find(&entries, repository);
        let good_for = answer.cache_duration.map_or(self.settings.default_cache, |span| span.0);
        if good_for > Micros::ZERO {
            cache.insert(key.to_owned(), (Clock.now().mono + good_for, entries));
        }
        Ok(found)
    }

    fn wrong(&self, why: &'static str) -> ProviderError {
        ProviderError::Answer { name: self.settings.name.clone(), why }
    }

    async fn ask(&self, image: &str) -> Result<Response, ProviderError> {
        let settings = &self.settings;
        let request = Request { kind: "CredentialProviderRequest", api_version: &settings.api_version, image };
        let request = serde_json::to_vec(&request).unwrap_or_default();
        let timeout = || ProviderError::Timeout { name: settings.name.clone() };
        let answer = tokio::time::timeout(LIMIT, self.run(&request)).await.map_err(|_| timeout())??;
        let response: Response = serde_json::from_slice(&answer)
            .map_err(|_| self.wrong("error decoding credential provider plugin response from stdout"))?;
        if response.api_version != settings.api_version {
            return Err(self.wrong("the apiVersion of its answer is not the one that is configured"));
        }
        if response.kind != "CredentialProviderResponse" {
            return Err(self.wrong("the kind of its answer is not CredentialProviderResponse"));
        }
        Ok(response)
    }

    async fn run(&self, request: &[u8]) -> Result<Vec<u8>, ProviderError> {
        let settings = &self.settings;
        let failed = |error| ProviderError::Exec { name: settings.name.clone(), error };
        let mut child = Command::new(&settings.program)
            .args(&settings.args)
            .envs(settings.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let (mut answer, mut stderr) = (Vec::new(), Vec::new());
        let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let tell = async {
            if let Some(mut stdin) = stdin {
                // One that does not read its input may answer all the same.
                let _ = stdin.write_all(request).await;
            }
        };
        let read_out =
            async { if let Some(out) = out { out.take(MAX_ANSWER).read_to_end(&mut answer).await } else { Ok(0) } };
        let read_err =
            async { if let Some(err) = err { err.take(MAX_ANSWER).read_to_end(&mut stderr).await } else { Ok(0) } };
        let ((), out, err) = tokio::join!(tell, read_out, read_err);
        out.and(err).map_err(failed)?;
        let status = child.wait().await.map_err(failed)?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
            return Err(ProviderError::Failed { name: settings.name.clone(), status, stderr });
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;

    /// A program that counts how often it was asked, and answers with what stands in a file beside it.
    fn provider(dir: &Path, answer: &str, default_cache: Micros) -> Provider {
        let (program, counted, file) = (dir.join("helper"), dir.join("asked"), dir.join("answer"));
        std::fs::write(&file, answer).expect("a file");
        let script =
            format!("#!/bin/sh\ncat >> {0}\necho \"$1 $A\" >> {0}\ncat {1}\n", counted.display(), file.display());
        std::fs::write(&program, script).expect("a file");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it can be run");
        Provider::new(Settings {
            name: "helper".to_owned(),
            program,
            match_images: vec!["*.example".to_owned()],
            default_cache,
            api_version: "credentialprovider.kubelet.k8s.io/v1".to_owned(),
            args: vec!["get".to_owned()],
            env: vec![("A".to_owned(), "b".to_owned())],
        })
    }

    fn answer(key: &str, more: &str) -> String {
        format!(
            r#"{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "{key}"{more},
                "auth": {{"*.example": {{"username": "u", "password": "p"}}}}}}"#
        )
    }

    fn asked(dir: &Path) -> usize {
        std::fs::read_to_string(dir.join("asked")).unwrap_or_default().matches("get b").count()
    }

    #[tokio::test]
    async fn a6_3b_a_program_is_asked_for_its_images_and_its_answer_is_kept() {
        let ask = async |key: &str, more: &str, images: &[&str]| {
            let dir = tempfile::tempdir().expect("a folder");
            let provider = provider(dir.path(), &answer(key, more), Micros::secs(60));
            for image in images {
                let found = provider.credentials(image).await.expect("an answer");
                assert_eq!(found.len(), 1, "{image}");
            }
            asked(dir.path())
        };
        let images = ["a.example/x", "a.example/x", "a.example/y", "b.example/x"];
        assert_eq!(ask("Image", "", &images).await, 3);
        assert_eq!(ask("Registry", "", &images).await, 2);
        assert_eq!(ask("Global", "", &images).await, 1);
        assert_eq!(ask("Global", r#", "cacheDuration": "0s""#, &images).await, 4, "not to be kept");
        let dir = tempfile::tempdir().expect("a folder");
        let other = provider(dir.path(), &answer("Global", ""), Micros::ZERO);
        assert!(other.credentials("example/x").await.expect("nothing").is_empty());
        assert_eq!(asked(dir.path()), 0, "it is not for that image");
        assert_eq!(other.credentials("a.example/x").await.expect("an answer").len(), 1);
        let told = std::fs::read_to_string(dir.path().join("asked")).expect("a file");
        let request = r#"{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"a.example/x"}"#;
        assert!(told.starts_with(request), "{told}");
    }

    #[tokio::test]
    async fn a6_3b_what_a_program_does_wrong_is_told_without_its_words() {
        for (answer, said) in [
            ("secret".to_owned(), "error decoding"),
            (answer("Some", ""), "cacheKeyType"),
            (answer("Image", "").replace("k8s.io/v1", "k8s.io/v2"), "apiVersion"),
            (answer("Image", "").replace("Response", "Other"), "kind"),
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let error = provider(dir.path(), &answer, Micros::ZERO).credentials("a.example/x").await.expect_err(said);
            assert!(error.to_string().contains(said) && !error.to_string().contains("secret"), "{error}");
        }
        let dir = tempfile::tempdir().expect("a folder");
        let broken = provider(dir.path(), "", Micros::ZERO);
        std::fs::write(dir.path().join("helper"), "#!/bin/sh\necho no such account >&2\nexit 3\n").expect("a file");
        let error = broken.credentials("a.example/x").await.expect_err("it fails").to_string();
        assert!(error.contains("no such account") && error.contains('3'), "{error}");
    }
}
