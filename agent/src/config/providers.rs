//! Programs that give credentials for registries: the CredentialProviderConfig.
//!
//! As the kubelet reads it (pkg/credentialprovider/plugin/config.go, release 1.36): a file, or a folder of which all `.json`, `.yaml` and
//! `.yml` files are read by name and taken together.

use std::fmt;
use std::path::{Path, PathBuf};

use beelet_core::units::Micros;
use serde::Deserialize;

use super::duration::Duration;
use super::tree::{Fault, Node, documents};
use super::{ConfigError, read_capped};

/// Versions of the protocol that a program may speak.
const API_VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
];
/// And of the file.
const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1alpha1", "kubelet.config.k8s.io/v1beta1"];
const KIND: &str = "CredentialProviderConfig";

/// A program that gives credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Provider {
    /// Its name, for messages.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// The images it is asked for.
    pub match_images: Vec<String>,
    /// How long its answer counts where that says nothing; zero for not at all.
    pub default_cache: Micros,
    /// What it speaks.
    pub api_version: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables, beside those of the agent. They may be secret.
    pub env: Vec<(String, String)>,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Provider({})", self.program.display())
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    providers: Vec<Written>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<Duration>,
    api_version: String,
    args: Vec<String>,
    env: Vec<Variable>,
    token_attributes: Option<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

/// Reads `--image-credential-provider-config`; the programs are in `bin`, `--image-credential-provider-bin-dir`.
///
/// # Errors
/// It cannot be read, a field is wrong, or a program is not there.
pub fn load(config: &Path, bin: &Path) -> Result<Vec<Provider>, ConfigError> {
    let unreadable = |error| ConfigError::Read { path: config.to_owned(), error };
    let mut files = vec![config.to_owned()];
    if config.is_dir() {
        let entries = std::fs::read_dir(config).map_err(unreadable)?;
        let named =
            |path: &PathBuf| path.extension().is_some_and(|end| ["json", "yaml", "yml"].iter().any(|e| end == *e));
        files = entries.flatten().map(|entry| entry.path()).filter(|path| named(path) && path.is_file()).collect();
        files.sort();
    }
    let mut all: Vec<Provider> = Vec::new();
    for path in &files {
        let failed = |fault| ConfigError::Document { path: path.clone(), fault };
        for document in &documents(&read_capped(path)?).map_err(failed)? {
            for provider in read(document, bin).map_err(failed)? {
                if all.iter().any(|other| other.name == provider.name) {
                    return Err(failed(Fault::new("providers.name", format!("Duplicate value: {:?}", provider.name))));
                }
                all.push(provider);
            }
        }
    }
    if all.is_empty() {
        let fault = Fault::new("providers", "Required value: at least 1 item in plugins is required");
        return Err(ConfigError::Document { path: config.to_owned(), fault });
    }
    Ok(all)
}

fn read(document: &Node, bin: &Path) -> Result<Vec<Provider>, Fault> {
    let (version, kind) = (document.text_of("apiVersion"), document.text_of("kind"));
    if kind != KIND || !VERSIONS.contains(&version) {
        let problem = format!("{version:?} {kind:?} is not known: write apiVersion: {} and kind: {KIND}", VERSIONS[0]);
        return Err(Fault::new("kind", problem));
    }
    let written: Document = document.read("")?;
    written.providers.into_iter().enumerate().map(|(i, one)| provider(&format!("providers[{i}]"), one, bin)).collect()
}

fn provider(path: &str, written: Written, bin: &Path) -> Result<Provider, Fault> {
    let fault = |field: &str, problem: String| Err(Fault::new(format!("{path}.{field}"), problem));
    let name = written.name;
    if name.is_empty() || name.contains(['/', ' ']) || matches!(name.as_str(), "." | "..") {
        return fault(
            "name",
            format!("Invalid value: {name:?}: a provider's name is that of a program, without '/' and spaces"),
        );
    }
    if !API_VERSIONS.contains(&written.api_version.as_str()) {
        let known = API_VERSIONS.join(", ");
        return fault("apiVersion", format!("Unsupported value: {:?}: supported values: {known}", written.api_version));
    }
    if written.match_images.is_empty() {
        return fault("matchImages", "Required value: at least 1 item in matchImages is required".to_owned());
    }
    let Some(Duration(default_cache)) = written.default_cache_duration else {
        return fault("defaultCacheDuration", "Required value".to_owned());
    };
    if written.token_attributes.is_some() {
        let problem = "not supported yet: without an API server there are no service accounts to make tokens for";
        return fault("tokenAttributes", problem.to_owned());
    }
    let program = bin.join(&name);
    if !program.is_file() {
        return fault("name", format!("plugin binary executable {} did not exist", program.display()));
    }
    Ok(Provider {
        name,
        program,
        match_images: written.match_images,
        default_cache,
        api_version: written.api_version,
        args: written.args,
        env: written.env.into_iter().map(|variable| (variable.name, variable.value)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: helper\n  \
                       matchImages: ['*.example']\n  defaultCacheDuration: 12h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  \
                       args: [get]\n  env: [{name: A, value: hidden}]\n";

    fn load_text(text: &str) -> Result<Vec<Provider>, String> {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("helper"), "").expect("a file");
        std::fs::write(dir.path().join("c.yaml"), text).expect("a file");
        load(&dir.path().join("c.yaml"), dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a6_3b_providers_are_read() {
        let providers = load_text(ONE).expect("it is right");
        let [one] = &providers[..] else { panic!("{providers:?}") };
        assert_eq!((one.name.as_str(), one.default_cache), ("helper", Micros::secs(12 * 3_600)));
        assert_eq!(
            (&one.args[..], &one.env[..]),
            (&["get".to_owned()][..], &[("A".to_owned(), "hidden".to_owned())][..])
        );
        assert!(one.program.ends_with("helper") && !format!("{one:?}").contains("hidden"));
        for (from, to, said) in [
            ("name: helper", "name: ../x", "providers[0].name"),
            ("name: helper", "name: none", "did not exist"),
            ("matchImages: ['*.example']", "matchImages: []", "at least 1 item in matchImages"),
            ("  defaultCacheDuration: 12h\n", "", "providers[0].defaultCacheDuration: Required value"),
            ("credentialprovider.kubelet.k8s.io/v1\n", "v1\n", "providers[0].apiVersion"),
            ("args: [get]", "tokenAttributes: {a: b}", "providers[0].tokenAttributes: not supported yet"),
            ("args: [get]", "arg: [get]", "arg"),
            ("kind: CredentialProviderConfig", "kind: Pod", "kind"),
        ] {
            let error = load_text(&ONE.replace(from, to)).expect_err(to);
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a6_3b_all_files_of_a_folder_are_taken_together() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("conf");
        std::fs::create_dir(&config).expect("a folder");
        for name in ["helper", "other"] {
            std::fs::write(dir.path().join(name), "").expect("a file");
        }
        std::fs::write(config.join("b.yaml"), ONE).expect("a file");
        std::fs::write(config.join("a.yml"), ONE.replace("name: helper", "name: other")).expect("a file");
        std::fs::write(config.join("c.txt"), "nothing").expect("a file");
        let names =
            |config: &Path| load(config, dir.path()).map(|list| list.into_iter().map(|p| p.name).collect::<Vec<_>>());
        assert_eq!(names(&config).expect("both"), ["other", "helper"]);
        std::fs::write(config.join("d.yaml"), ONE).expect("a file");
        assert!(names(&config).expect_err("twice").to_string().contains("Duplicate value: \"helper\""));
    }
}
