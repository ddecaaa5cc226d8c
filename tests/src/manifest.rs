//! Manifests of pods.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// Our program with what tests need: leak, spin, serve, fetch, crash, sleep ...
pub const WORKLOAD: &str = "localhost/beelet/workload:latest";
/// A shell and small tools.
pub const BUSYBOX: &str = "docker.io/library/busybox:1.36";

/// A manifest under construction. What concerns a container concerns the one that was added last.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The manifest.
    pub value: Value,
    list: &'static str,
}

/// A pod without containers, in namespace `default`.
#[must_use]
pub fn pod(name: &str) -> Pod {
    let value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "containers": [] },
    });
    Pod { value, list: "containers" }
}

impl Pod {
    /// Adds a container.
    #[must_use]
    pub fn container(self, name: &str, image: &str, command: &[&str], args: &[&str]) -> Self {
        self.add("containers", name, image, command, args)
    }

    /// Adds an init container.
    #[must_use]
    pub fn init(self, name: &str, image: &str, command: &[&str], args: &[&str]) -> Self {
        self.add("initContainers", name, image, command, args)
    }

    /// Adds a container `main` that runs our workload with these arguments.
    #[must_use]
    pub fn workload(self, args: &[&str]) -> Self {
        self.container("main", WORKLOAD, &[], args)
    }

    /// Adds a container `main` that runs a script of busybox's shell.
    #[must_use]
    pub fn shell(self, script: &str) -> Self {
        self.container("main", BUSYBOX, &["sh", "-c", script], &[])
    }

    fn add(mut self, list: &'static str, name: &str, image: &str, command: &[&str], args: &[&str]) -> Self {
        let mut container = json!({ "name": name, "image": image, "imagePullPolicy": "IfNotPresent" });
        if !command.is_empty() {
            container["command"] = json!(command);
        }
        if !args.is_empty() {
            container["args"] = json!(args);
        }
        let spec = &mut self.value["spec"];
        if spec[list].is_null() {
            spec[list] = json!([]);
        }
        if let Some(all) = spec[list].as_array_mut() {
            all.push(container);
        }
        self.list = list;
        self
    }

    /// Sets a field of the container.
    ///
    /// # Panics
    /// If there is no container yet.
    #[must_use]
    pub fn field(mut self, key: &str, value: Value) -> Self {
        let last = self.value["spec"][self.list].as_array_mut().and_then(|all| all.last_mut());
        last.expect("a container first")[key] = value;
        self
    }

    /// Sets a request of the container, as `("cpu", "100m")`.
    ///
    /// # Panics
    /// If there is no container yet.
    #[must_use]
    pub fn request(self, resource: &str, quantity: &str) -> Self {
        self.resource("requests", resource, quantity)
    }

    /// Sets a limit of the container.
    ///
    /// # Panics
    /// If there is no container yet.
    #[must_use]
    pub fn limit(self, resource: &str, quantity: &str) -> Self {
        self.resource("limits", resource, quantity)
    }

    fn resource(mut self, kind: &str, resource: &str, quantity: &str) -> Self {
        let last = self.value["spec"][self.list].as_array_mut().and_then(|all| all.last_mut());
        last.expect("a container first")["resources"][kind][resource] = json!(quantity);
        self
    }

    /// Sets a field of the pod's spec.
    #[must_use]
    pub fn spec(mut self, key: &str, value: Value) -> Self {
        self.value["spec"][key] = value;
        self
    }

    /// Sets a field of the pod's metadata.
    #[must_use]
    pub fn meta(mut self, key: &str, value: Value) -> Self {
        self.value["metadata"][key] = value;
        self
    }

    /// Writes `NAME.yaml` into the folder, in one step; gives its path.
    ///
    /// # Panics
    /// If it cannot.
    pub fn write(&self, dir: &Path) -> PathBuf {
        let name = self.value["metadata"]["name"].as_str().unwrap_or_default();
        // JSON is YAML.
        let text = serde_json::to_string_pretty(&self.value).unwrap_or_default();
        write_file(dir, &format!("{name}.yaml"), &text)
    }
}

/// Puts a file into a watched folder in one step; gives its path.
///
/// # Panics
/// If it cannot.
pub fn write_file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    // Names that begin with a dot are not read.
    let temporary = dir.join(format!(".{name}.new"));
    fs::write(&temporary, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", temporary.display()));
    fs::rename(&temporary, &path).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    path
}
