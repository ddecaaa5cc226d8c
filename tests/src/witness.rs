//! Pods that tell what they see.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Agent, BUSYBOX, Pod, pod, secs};

/// A pod whose containers leave what they see of themselves in files of a folder of the node, each under its name.
#[derive(Clone, Debug)]
pub struct Witness<'a> {
    /// The pod.
    pub pod: Pod,
    folder: &'a Path,
}

impl<'a> Witness<'a> {
    /// A pod without containers yet; the folder is made.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new(name: &str, folder: &'a Path) -> Self {
        fs::create_dir_all(folder).unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
        let volume = json!([{ "name": "out", "hostPath": { "path": folder.display().to_string() } }]);
        // Its shells do not listen to SIGTERM.
        let pod = pod(name).spec("volumes", volume).spec("terminationGracePeriodSeconds", json!(1));
        Self { pod, folder }
    }

    /// Adds a container that writes what this script prints, and then sleeps.
    #[must_use]
    pub fn container(mut self, name: &str, script: &str, security: Value) -> Self {
        let script = format!("({script}) > /out/.{name} 2>&1; mv /out/.{name} /out/{name}; sleep 3600");
        self.pod = self
            .pod
            .container(name, BUSYBOX, &["sh", "-c", &script], &[])
            .field("volumeMounts", json!([{ "name": "out", "mountPath": "/out" }]))
            .field("securityContext", security);
        self
    }

    /// What the container wrote.
    ///
    /// # Panics
    /// If it writes nothing.
    #[must_use]
    pub fn read(&self, agent: &Agent, container: &str) -> String {
        let file = self.folder.join(container);
        agent.wait(&format!("what container {container} sees"), secs(90), |_| fs::read_to_string(&file).ok())
    }
}
