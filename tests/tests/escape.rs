//! Paths of volumes, with containers that try to lead them out.

use std::fs;
use std::path::Path;

use e2e::{Agent, AgentOptions, BUSYBOX, SharedBed, pod, secs};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount};
use serde_json::{Value, json};

static BED: SharedBed = SharedBed::new("escape");

/// A folder that is a mount, taken away at the end.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    /// The folder itself, so that what is mounted in it is seen in its copies.
    fn shared(folder: &'a Path) -> Self {
        mount_bind(folder, folder).expect("a mount");
        let mounted = Self(folder);
        mount_change(folder, MountPropagationFlags::SHARED).expect("a shared mount");
        mounted
    }

    fn tmpfs(folder: &'a Path) -> Self {
        mount("tmpfs", folder, "tmpfs", MountFlags::empty(), c"mode=0755").expect("a mount");
        Self(folder)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        unmount(self.0, UnmountFlags::DETACH).ok();
    }
}

#[test]
fn a7_8_a_container_sees_a_part_of_a_volume_and_no_link_leads_it_out() {
    let Some(bed) = BED.get("a7_8_a_container_sees_a_part_of_a_volume_and_no_link_leads_it_out") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let host = bed.dir.join("escape");
    fs::create_dir_all(host.join("data/there/later")).expect("a folder");
    fs::write(host.join("data/there/file"), "given\n").expect("a file");
    fs::write(host.join("secret"), "the node's\n").expect("a file");
    let (data, below) = (host.join("data"), host.join("data/there/later"));
    // Only what is shared is seen in a container that gets the node's later mounts.
    let shared = Mounted::shared(&data);
    // One container makes the links, and goes on exchanging one of them with a folder as fast as a shell can.
    let attack = "mkdir -p /all/dir && echo inside > /all/dir/secret && ln -s / /all/root && ln -s ../.. /all/up && \
                  ln -s $SECRET /all/absolute && ln -s dir /all/inside";
    let race = "mkdir /all/race; while :; do rmdir /all/race; ln -s / /all/race; rm /all/race; mkdir /all/race; done";
    let part = |name: &str, entries: Value| {
        let mut mount = json!({ "name": name, "mountPath": "/part" });
        mount.as_object_mut().expect("a map").extend(entries.as_object().cloned().unwrap_or_default());
        json!([mount])
    };
    let sees = |script: &str| format!("{script}; sleep 3600");
    let all = json!([{ "name": "volume", "mountPath": "/all" }]);
    let mut escape = pod("escape")
        .spec("terminationGracePeriodSeconds", json!(1))
        .spec("securityContext", json!({ "fsGroup": 4242 }))
        .spec(
            "volumes",
            json!([
                { "name": "volume", "emptyDir": {} },
                { "name": "host", "hostPath": { "path": host.join("data").display().to_string(), "type": "Directory" } },
                { "name": "file", "hostPath": { "path": host.join("data/there/file").display().to_string(), "type": "File" } },
            ]),
        )
        .init("links", BUSYBOX, &["sh", "-c", attack], &[])
        .field("env", json!([{ "name": "SECRET", "value": host.join("secret").display().to_string() }]))
        .field("volumeMounts", all.clone())
        .container("racer", BUSYBOX, &["sh", "-c", race], &[])
        .limit("cpu", "200m")
        .field("volumeMounts", all);
    for (name, volume, entries) in [
        ("inside", "volume", json!({ "subPath": "inside/secret" })),
        ("made", "volume", json!({ "subPathExpr": "$(POD)/made" })),
        ("given", "host", json!({ "subPath": "there", "mountPropagation": "HostToContainer" })),
        ("file", "file", json!({ "readOnly": true, "recursiveReadOnly": "IfPossible" })),
        ("root", "volume", json!({ "subPath": "root" })),
        ("up", "volume", json!({ "subPath": "up/etc" })),
        ("absolute", "volume", json!({ "subPath": "absolute" })),
        ("upwards", "volume", json!({ "subPathExpr": "$(UP)/x" })),
        ("race", "volume", json!({ "subPath": "race" })),
    ] {
        let script = match name {
            "race" => "ls -a /part; exit 1".to_owned(),
            "given" => sees(
                "cat /part/file; echo written > /part/new; grep ' /part ' /proc/self/mountinfo; \
                             until cat /part/later/mounted; do sleep 0.1; done",
            ),
            _ => sees(
                "ls -ldn /part; cat /part /part/file; echo written > /part/new; id -G; grep ' /part ' /proc/self/mountinfo",
            ),
        };
        escape = escape
            .container(name, BUSYBOX, &["sh", "-c", &script], &[])
            .field(
                "env",
                json!([
                    { "name": "POD", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "UP", "value": ".." },
                ]),
            )
            .field("volumeMounts", part(volume, entries));
    }
    escape.write(&agent.manifests);
    let waiting = |agent: &Agent, container: &str| {
        agent.wait(&format!("container {container} to be refused"), secs(60), |agent| {
            let waiting = agent.container("escape", container)?["state"]["waiting"].clone();
            (waiting["reason"] == "CreateContainerConfigError").then(|| waiting["message"].to_string())
        })
    };
    for container in ["root", "up", "absolute"] {
        let text = waiting(&agent, container);
        assert!(text.contains("failed to prepare subPath for volumeMount"), "{container}: {text}");
    }
    let text = waiting(&agent, "upwards");
    assert!(text.contains("unable to provision SubPath `../x`: must not contain '..'"), "{text}");

    let logs = |agent: &Agent, container: &str| {
        let pod = agent.pod("escape").unwrap_or_default();
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let folder = bed.pod_logs_dir().join(format!("default_escape-{}_{uid}", e2e::NODE)).join(container);
        let files = fs::read_dir(folder).ok().into_iter().flatten().flatten();
        files.map(|file| fs::read_to_string(file.path()).unwrap_or_default()).collect::<String>()
    };
    let said = |agent: &Agent, container: &str| {
        agent.wait(&format!("container {container} to tell what it sees"), secs(60), |agent| {
            let text = logs(agent, container);
            text.contains(" /part ").then_some(text)
        })
    };
    let text = said(&agent, "inside");
    assert!(text.contains("F inside") && text.contains("-rw-"), "{text}");
    let text = said(&agent, "made");
    assert!(
        text.contains("drwxrwsrwx") && text.contains(" 4242 ") && text.contains("4242\n"),
        "as the volume is: {text}"
    );
    assert!(said(&agent, "given").contains("F given"));
    assert_eq!(fs::read_to_string(host.join("data/there/new")).expect("written through"), "written\n");
    let text = said(&agent, "file");
    assert!(text.contains("F given") && text.contains(" ro,"), "{text}");

    let later = Mounted::tmpfs(&below);
    fs::write(host.join("data/there/later/mounted"), "later\n").expect("a file");
    agent.wait("the node's later mount in the container", secs(30), |agent| {
        logs(agent, "given").contains("F later").then_some(())
    });

    // Killed and started again it finds its places.
    agent.kill9();
    agent.restart();
    agent.wait("the container in the race to run or to be refused", secs(60), |agent| {
        let status = agent.container("escape", "race")?;
        let refused = status["state"]["waiting"]["reason"] == "CreateContainerConfigError";
        (refused || status["restartCount"].as_u64()? >= 1).then_some(())
    });
    for text in [logs(&agent, "race"), logs(&agent, "inside"), logs(&agent, "made")] {
        assert!(!text.contains("the node's") && !text.contains(" proc\n") && !text.contains(" etc\n"), "{text}");
    }
    assert!(agent.pods().to_string().contains("\"subPathExpr\":\"$(POD)/made\""));
    agent.finish();
    let mounted = fs::read_to_string(host.join("data/there/later/mounted")).expect("not ours to unmount");
    assert_eq!(mounted, "later\n");
    drop((later, shared));
    assert_eq!(fs::read_to_string(host.join("data/there/file")).expect("not ours to remove"), "given\n");
    assert_eq!(fs::read_to_string(host.join("secret")).expect("not ours to remove"), "the node's\n");
}
