//! Writes container images as OCI image-layout archives, without Docker and without a registry.
//!
//! Problem: no image can be pulled where beelet is built and tested, and an image that differs from run to run cannot be
//! compared or cached by its digest.
//!
//! Approach: an image is one layer, given as a sorted map from path to content, and its configuration. Everything that
//! could vary is fixed: entries in order of their path, modification time 0, owner 0:0, no compression, keys of JSON
//! objects in order. So the same input gives the same bytes, and the digest names the content. `ctr images import`
//! and every other reader of OCI layouts take the archive. The test images and the agent's own image are both written here.
//!
//! Property: the archive's bytes are a function of the [`Image`]s alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ctx::hex;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What stands at one path of a layer.
#[derive(Debug, Clone)]
enum Entry {
    Folder { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

/// The files of an image. Folders above a file come by themselves, with mode 755.
#[derive(Debug, Clone, Default)]
pub(crate) struct Layer {
    /// By path without a leading slash.
    entries: BTreeMap<String, Entry>,
}

impl Layer {
    /// Adds a folder.
    pub(crate) fn folder(&mut self, path: &str, mode: u32) {
        let path = self.parents(path);
        self.entries.insert(path, Entry::Folder { mode });
    }

    /// Adds a file with this content.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: impl Into<Vec<u8>>) {
        let path = self.parents(path);
        self.entries.insert(path, Entry::File { mode, content: content.into() });
    }

    /// Adds a file with the content of a file of this machine.
    pub(crate) fn copy(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let mut content = Vec::new();
        let mut file = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
        file.read_to_end(&mut content).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, mode, content);
        Ok(())
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let path = self.parents(path);
        self.entries.insert(path, Entry::Link { target: target.to_owned() });
    }

    /// For tests: whether something stands at this path.
    #[cfg(test)]
    pub(crate) fn has(&self, path: &str) -> bool {
        self.entries.contains_key(path.trim_matches('/'))
    }

    /// Adds the folders above `path`, and returns it in the form of the map's keys.
    fn parents(&mut self, path: &str) -> String {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Folder { mode: 0o755 });
        }
        path.to_owned()
    }

    /// The layer as a tar archive. A path sorts after its folder, since that is its prefix.
    fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let mut header = header();
            match entry {
                Entry::Folder { mode } => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, format!("{path}/"), std::io::empty())
                }
                Entry::File { mode, content } => {
                    header.set_mode(*mode);
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, path, content.as_slice())
                }
                Entry::Link { target } => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, path, target)
                }
            }
            .with_context(|| format!("cannot put {path} into the layer"))?;
        }
        Ok(tar.into_inner()?)
    }
}

/// An image of one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    /// The full reference that the runtime lists it under: `registry/name:tag`.
    pub(crate) name: String,
    /// The files.
    pub(crate) layer: Layer,
    /// What a container runs.
    pub(crate) entrypoint: Vec<String>,
    /// Arguments after the entrypoint that a pod may replace.
    pub(crate) cmd: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// `uid` or `uid:gid`; empty is root.
    pub(crate) user: String,
    /// Empty is `/`.
    pub(crate) working_dir: String,
    /// `80/tcp`.
    pub(crate) ports: Vec<String>,
    /// Annotations of the manifest, and labels of the configuration.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Writes the images as one archive, and returns the digest of each one's manifest (`sha256:...`), in the same order.
pub(crate) fn write(output: &Path, images: &[Image]) -> Result<Vec<String>> {
    let mut blobs = BTreeMap::new();
    let mut manifests = Vec::new();
    let mut digests = Vec::new();
    for image in images {
        let manifest = add_image(&mut blobs, image).with_context(|| format!("cannot make the image {}", image.name))?;
        digests.push(manifest["digest"].as_str().unwrap_or_default().to_owned());
        manifests.push(manifest);
    }
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let file = File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    let mut tar = tar::Builder::new(BufWriter::new(file));
    let mut put = |path: &str, content: &[u8]| {
        let mut header = header();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).with_context(|| format!("cannot write {}", output.display()))
    };
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    put("index.json", &serde_json::to_vec(&index)?)?;
    for (hash, blob) in &blobs {
        put(&format!("blobs/sha256/{hash}"), blob)?;
    }
    tar.into_inner()?.flush().with_context(|| format!("cannot write {}", output.display()))?;
    Ok(digests)
}

/// Adds an image's blobs, and returns its line of the index.
fn add_image(blobs: &mut BTreeMap<String, Vec<u8>>, image: &Image) -> Result<Value> {
    ensure!(image.name.contains(':'), "the reference `{}` has no tag", image.name);
    let mut add = |media: &str, content: Vec<u8>| {
        let hash = hex(&Sha256::digest(&content));
        let descriptor = json!({"mediaType": media, "digest": format!("sha256:{hash}"), "size": content.len()});
        blobs.insert(hash, content);
        descriptor
    };
    let layer = add(LAYER, image.layer.tar()?);
    let mut config = json!({"Labels": image.annotations});
    let mut set = |key: &str, value: &[String]| {
        if !value.is_empty() {
            config[key] = json!(value);
        }
    };
    set("Entrypoint", &image.entrypoint);
    set("Cmd", &image.cmd);
    set("Env", &image.env);
    if !image.user.is_empty() {
        config["User"] = json!(image.user);
    }
    if !image.working_dir.is_empty() {
        config["WorkingDir"] = json!(image.working_dir);
    }
    if !image.ports.is_empty() {
        config["ExposedPorts"] = image.ports.iter().map(|port| (port.clone(), json!({}))).collect();
    }
    let config = add(
        CONFIG,
        serde_json::to_vec(&json!({
            "created": "1970-01-01T00:00:00Z",
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask"}],
        }))?,
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer], "annotations": image.annotations,
    });
    let mut descriptor = add(MANIFEST, serde_json::to_vec(&manifest)?);
    descriptor["platform"] = json!({"architecture": "amd64", "os": "linux"});
    descriptor["annotations"] =
        json!({"io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": image.name});
    Ok(descriptor)
}

/// A tar header in which nothing varies: time 0, owner 0:0.
fn header() -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let mut layer = Layer::default();
        layer.file("/usr/bin/b", 0o755, "b");
        layer.file("usr/bin/a", 0o755, "a");
        layer.link("/bin/sh", "/usr/bin/a");
        Image { name: "beelet.dev/test:1".into(), layer, entrypoint: vec!["/usr/bin/a".into()], ..Image::default() }
    }

    #[test]
    fn folders_come_before_what_is_in_them() {
        let tar = image().layer.tar().unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let paths: Vec<String> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(paths, ["bin/", "bin/sh", "usr/", "usr/bin/", "usr/bin/a", "usr/bin/b"]);
    }

    #[test]
    fn same_image_gives_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let write_to = |name: &str| {
            let path = dir.path().join(name);
            (write(&path, &[image()]).unwrap(), std::fs::read(path).unwrap())
        };
        assert_eq!(write_to("one"), write_to("two"));
    }

    #[test]
    fn every_digest_names_a_blob_of_that_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        let digests = write(&path, &[image()]).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(File::open(&path).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
        let blob = |descriptor: &Value| {
            let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let content = files[&format!("blobs/sha256/{hash}")].clone();
            assert_eq!(hash, hex(&Sha256::digest(&content)));
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], digests[0]);
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&Sha256::digest(layer))));
    }

    #[test]
    fn a_reference_needs_a_tag() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image { name: "untagged".into(), ..image() };
        assert!(write(&dir.path().join("x"), &[image]).is_err());
    }
}
