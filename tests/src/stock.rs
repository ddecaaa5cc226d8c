//! A stock kubelet in the place of beelet, for comparison.
//!
//! Problem: a kubelet takes every static pod for critical and never evicts one, so on a folder of manifests it would lose each
//! race. Approach: as much of an API server as it needs: objects in memory, lists, watches, merged patches, no checks. Its pods are
//! the manifests of the folder, so that a test puts them and takes them away as it does for beelet.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::referee::wall;
use crate::{AgentOptions, Bed, NODE};

const DAY: u64 = 86_400_000_000;
/// What is watched, and the kind of its objects.
const KINDS: [(&str, &str); 5] = [
    ("nodes", "Node"),
    ("pods", "Pod"),
    ("services", "Service"),
    ("runtimeclasses", "RuntimeClass"),
    ("csidrivers", "CSIDriver"),
];
/// Nothing depends on when.
const LONG_AGO: &str = "2026-01-01T00:00:00Z";
const PAUSE: Duration = Duration::from_millis(20);

impl AgentOptions {
    /// That kubelet, with the bed's settings and its own defaults.
    #[must_use]
    pub fn stock(kubelet: PathBuf) -> Self {
        let options = Self { kubelet: Some(kubelet), ..Self::default() };
        let options = options.set("authentication", "\n  anonymous: {enabled: true}\n  webhook: {enabled: false}");
        let options = options.set("authorization", "\n  mode: AlwaysAllow").set("healthzPort", "0");
        options.set("contentType", "application/json")
    }
}

/// The kubelet's command line.
pub(crate) fn command(bed: &Bed, kubelet: &Path, config: &Path, root_dir: &Path, server: &ApiServer) -> Command {
    let mut command = bed.inside("agent", kubelet);
    command.arg("--config").arg(config).arg("--kubeconfig").arg(&server.kubeconfig);
    command.arg("--root-dir").arg(root_dir).arg("--cert-dir").arg(bed.run_dir.join("pki"));
    command.arg("--volume-plugin-dir").arg(bed.run_dir.join("plugins"));
    command.args(["--hostname-override", NODE, "--node-ip", &bed.node_ip, "--v", "2"]);
    command.arg("--kubelet-cgroups").arg(format!("{}/agent", bed.cgroup_root));
    command.arg("--runtime-cgroups").arg(format!("{}/runtime", bed.cgroup_root));
    // The kubelet's own connection is in the configuration; this is cAdvisor's.
    command.arg("--containerd").arg(&bed.socket);
    command.env("TZ", "UTC").env_remove("LD_LIBRARY_PATH");
    command
}

/// When a line of its log was written, in microseconds since 1970: `I1129 16:09:42.284918 ...`, within the last day.
#[must_use]
pub fn logged_at(line: &str) -> Option<u64> {
    let (clock, micros) = line.split_whitespace().nth(1)?.split_once('.')?;
    let seconds = clock.split(':').try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
    let (now, in_day) = (wall(), seconds * 1_000_000 + micros.parse::<u64>().ok()?);
    let at = now / DAY * DAY + in_day;
    Some(if at > now { at - DAY } else { at })
}

/// The objects, and what happened to them.
#[derive(Debug, Default)]
struct Objects {
    /// By resource and name; namespaces are not told apart.
    all: BTreeMap<(String, String), Value>,
    /// Type of the event, resource, object.
    events: Vec<(&'static str, String, Value)>,
}

impl Objects {
    fn put(&mut self, resource: &str, mut object: Value) -> Value {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        object["metadata"]["resourceVersion"] = json!((self.events.len() + 1).to_string());
        let old = self.all.insert((resource.to_owned(), name), object.clone());
        let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.events.push((event, resource.to_owned(), object.clone()));
        object
    }

    fn remove(&mut self, resource: &str, name: &str) {
        let Some(mut object) = self.all.remove(&(resource.to_owned(), name.to_owned())) else { return };
        object["metadata"]["resourceVersion"] = json!((self.events.len() + 1).to_string());
        self.events.push(("DELETED", resource.to_owned(), object));
    }

    fn of(&self, resource: &str) -> Vec<Value> {
        self.all.iter().filter(|((of, _), _)| of == resource).map(|(_, object)| object.clone()).collect()
    }

    /// New manifests become pods, and pods whose manifests are gone are to end.
    fn follow(&mut self, manifests: &Path) {
        let mut there = BTreeSet::new();
        for entry in fs::read_dir(manifests).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let Ok(manifest) = serde_json::from_str::<Value>(&text) else { continue };
            let name = format!("{}-{NODE}", manifest["metadata"]["name"].as_str().unwrap_or_default());
            if !self.all.contains_key(&("pods".to_owned(), name.clone())) {
                self.put("pods", admitted(&manifest, &name));
            }
            there.insert(name);
        }
        for mut pod in self.of("pods") {
            let gone = pod["metadata"]["name"].as_str().is_some_and(|name| !there.contains(name));
            if gone && pod["metadata"]["deletionTimestamp"].is_null() {
                pod["metadata"]["deletionTimestamp"] = json!(LONG_AGO);
                pod["metadata"]["deletionGracePeriodSeconds"] = json!(1);
                self.put("pods", pod);
            }
        }
    }
}

/// A pod as an API server and a scheduler would leave it.
fn admitted(manifest: &Value, name: &str) -> Value {
    let mut pod = json!({
        "metadata": {
            "uid": format!("00000000-0000-4000-8000-{:012x}", wall() & 0xffff_ffff_ffff),
            "creationTimestamp": LONG_AGO,
        },
        "spec": {
            "restartPolicy": "Always", "dnsPolicy": "Default", "enableServiceLinks": false, "securityContext": {},
            "terminationGracePeriodSeconds": 30,
            // A node that evicted says MemoryPressure for five minutes, and lets no BestEffort pod in.
            "tolerations": [{ "key": "node.kubernetes.io/memory-pressure", "operator": "Exists" }],
        },
        "status": { "phase": "Pending" },
    });
    merge(&mut pod, manifest);
    pod["metadata"]["name"] = json!(name);
    pod["spec"]["nodeName"] = json!(NODE);
    for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
        container["terminationMessagePath"] = json!("/dev/termination-log");
        container["terminationMessagePolicy"] = json!("File");
    }
    pod
}

/// A strategic merge patch, as far as a kubelet's are one: lists of things with a type (conditions) are merged, others replaced.
fn merge(into: &mut Value, patch: &Value) {
    match patch {
        Value::Object(patch) => {
            if !into.is_object() {
                *into = json!({});
            }
            for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
                merge(&mut into[key], value);
            }
        }
        Value::Array(parts) => {
            let typed = !parts.is_empty() && parts.iter().all(|part| part["type"].is_string());
            let mut all = into.as_array().filter(|_| typed).cloned().unwrap_or_default();
            for part in parts.iter().filter(|part| part["$patch"].is_null()) {
                match all.iter_mut().find(|old| typed && old["type"] == part["type"]) {
                    Some(old) => merge(old, part),
                    None => all.push(part.clone()),
                }
            }
            *into = Value::Array(all);
        }
        other => *into = other.clone(),
    }
}

/// The server; it ends when dropped.
#[derive(Debug)]
pub(crate) struct ApiServer {
    /// For `--kubeconfig`.
    kubeconfig: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves on this side of the node's link.
    ///
    /// # Panics
    /// If it cannot.
    pub(crate) fn start(bed: &Bed, manifests: &Path) -> Self {
        let listener = TcpListener::bind((bed.host_ip.as_str(), 0)).expect("a port for the API server");
        listener.set_nonblocking(true).expect("a listener that does not wait");
        let address = listener.local_addr().expect("its address");
        let kubeconfig = bed.run_dir.join(format!("kubeconfig-{}", address.port()));
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "bed",
            "clusters": [{ "name": "bed", "cluster": { "server": format!("http://{address}") } }],
            "users": [{ "name": "node", "user": {} }],
            "contexts": [{ "name": "bed", "context": { "cluster": "bed", "user": "node" } }],
        });
        fs::write(&kubeconfig, text.to_string()).expect("the kubeconfig");
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, manifests) = (Arc::clone(&stop), manifests.to_path_buf());
        let thread = std::thread::spawn(move || {
            let objects = Arc::new(Mutex::new(Objects::default()));
            while !stopped.load(Ordering::Relaxed) {
                lock(&objects).follow(&manifests);
                while let Ok((stream, _)) = listener.accept() {
                    let (objects, stopped) = (Arc::clone(&objects), Arc::clone(&stopped));
                    std::thread::spawn(move || answer(&stream, &objects, &stopped));
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { kubeconfig, stop, thread: Some(thread) }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn lock(objects: &Mutex<Objects>) -> MutexGuard<'_, Objects> {
    objects.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request of a connection, which is closed then.
fn answer(mut stream: &TcpStream, objects: &Mutex<Objects>, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut length = 0;
    for header in reader.by_ref().lines() {
        let header = header?.to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        if let Some(text) = header.strip_prefix("content-length:") {
            length = text.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();

    // /api/v1/pods, /apis/GROUP/v1/namespaces/NAMESPACE/RESOURCE/NAME/status
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut parts: Vec<&str> = path.split('/').skip(2).collect();
    let group =
        parts.drain(..if path.starts_with("/apis/") { 2 } else { 1 }.min(parts.len())).collect::<Vec<_>>().join("/");
    if parts.len() > 2 && parts[0] == "namespaces" {
        parts.drain(..2);
    }
    let (resource, name) = (parts.first().copied().unwrap_or_default(), parts.get(1).copied().unwrap_or_default());
    if query.contains("watch=true")
        && let Some(object) = KINDS.iter().find(|(of, _)| *of == resource)
    {
        let bookmark = json!({ "kind": object.1, "apiVersion": group, "metadata": {
            "resourceVersion": "0", "annotations": { "k8s.io/initial-events-end": "true" } } });
        return watch(stream, resource, bookmark, objects, stop);
    }
    let (code, said) = reply(&mut lock(objects), method, &group, (resource, name), body);
    let said = said.to_string();
    write!(
        stream,
        "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{said}",
        said.len()
    )
}

/// Code and body of all but watches.
fn reply(objects: &mut Objects, method: &str, group: &str, of: (&str, &str), body: Value) -> (&'static str, Value) {
    let (resource, name) = of;
    let missing =
        json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404 });
    let old = objects.all.get(&(resource.to_owned(), name.to_owned())).cloned();
    match (method, old) {
        // Of no use here.
        ("POST", _) if resource == "events" => ("201 Created", body),
        ("POST", _) => ("201 Created", objects.put(resource, body)),
        ("GET", Some(object)) => ("200 OK", object),
        ("PUT", Some(_)) => ("200 OK", objects.put(resource, body)),
        ("PATCH", Some(mut object)) => {
            merge(&mut object, &body);
            ("200 OK", objects.put(resource, object))
        }
        ("DELETE", _) => {
            objects.remove(resource, name);
            ("200 OK", json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
        }
        ("GET", None) if name.is_empty() => match KINDS.iter().find(|(of, _)| *of == resource) {
            Some((_, kind)) => {
                let version = objects.events.len().to_string();
                let items = objects.of(resource);
                (
                    "200 OK",
                    json!({ "kind": format!("{kind}List"), "apiVersion": group, "metadata": { "resourceVersion": version }, "items": items }),
                )
            }
            None => ("404 Not Found", missing),
        },
        _ => ("404 Not Found", missing),
    }
}

/// All there is, the word that this was all, and then what happens.
fn watch(
    mut stream: &TcpStream,
    resource: &str,
    mut bookmark: Value,
    objects: &Mutex<Objects>,
    stop: &AtomicBool,
) -> io::Result<()> {
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
    let (mut next, there) = {
        let objects = lock(objects);
        (objects.events.len(), objects.of(resource))
    };
    bookmark["metadata"]["resourceVersion"] = json!(next.to_string());
    let all = there.into_iter().map(|object| ("ADDED", object)).chain([("BOOKMARK", bookmark)]);
    let mut due: Vec<(&str, Value)> = all.collect();
    while !stop.load(Ordering::Relaxed) {
        for (event, object) in due.drain(..) {
            writeln!(stream, "{}", json!({ "type": event, "object": object }))?;
        }
        std::thread::sleep(PAUSE);
        let objects = lock(objects);
        let new = objects.events[next..].iter().filter(|(_, of, _)| of == resource);
        due.extend(new.map(|(event, _, object)| (*event, object.clone())));
        next = objects.events.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches_are_merged_as_a_kubelet_means_them() {
        let mut status =
            json!({ "conditions": [{ "type": "Ready", "status": "True" }], "ids": [1], "phase": "Running" });
        let patch = json!({
            "$setElementOrder/conditions": [{ "type": "Ready" }],
            "conditions": [{ "type": "Ready", "status": "False" }, { "type": "Gone" }],
            "ids": [{ "$patch": "replace" }, 2], "phase": "Failed",
        });
        merge(&mut status, &patch);
        let conditions = json!([{ "type": "Ready", "status": "False" }, { "type": "Gone" }]);
        assert_eq!(status, json!({ "conditions": conditions, "ids": [2], "phase": "Failed" }));
    }

    #[test]
    fn the_time_of_a_line_is_within_the_last_day() {
        let at = logged_at("I1129 16:09:42.284918   32131 kubelet.go:3514] \"text\"").unwrap();
        assert!(at <= wall() && wall() - at < DAY);
        assert_eq!(at % DAY, ((16 * 60 + 9) * 60 + 42) * 1_000_000 + 284_918);
    }
}
