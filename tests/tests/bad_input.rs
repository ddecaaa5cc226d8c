//! What is wrong is named, in the log and on `/pods`; what is right goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Agent, AgentOptions, Cri, SharedBed, pod, secs, write_file};
use serde_json::Value;

static BED: SharedBed = SharedBed::new("bad-input");

/// The container of the pod that is right, as it was when it started.
struct Steady {
    id: String,
}

impl Steady {
    fn start(agent: &Agent, cri: &Cri) -> Self {
        pod("steady").workload(&["sleep"]).write(&agent.manifests);
        agent.wait_running("steady", secs(90));
        Self { id: cri.running("steady")[0].id.clone() }
    }

    /// It is Running still, in the same container.
    fn check(&self, agent: &mut Agent, cri: &Cri, after: &str) {
        let running = cri.running("steady");
        assert!(running.len() == 1 && running[0].id == self.id, "{after}: {running:?}\n{}", agent.state());
        assert!(agent.is_alive(), "{after}: the agent ended\n{}", agent.log_tail());
        let pod = agent.wait_running("steady", secs(30));
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{after}: {pod}");
        agent.assert_calm();
    }
}

/// The refusal of a file, on `/pods`.
fn refused(agent: &Agent, file: &str) -> Option<String> {
    let pods = agent.try_pods().ok()?;
    let of = |pod: &&Value| {
        let origin = pod["metadata"]["annotations"]["beelet.dev/origin"].as_str().unwrap_or_default();
        pod["status"]["reason"] == "InvalidManifest" && Path::new(origin).file_name().is_some_and(|name| name == file)
    };
    Some(pods.iter().find(of)?["status"]["message"].as_str()?.to_owned())
}

#[test]
fn a3_3h_a_bad_manifest_is_named_and_touches_no_other() {
    let Some(bed) = BED.get("a3_3h_a_bad_manifest_is_named_and_touches_no_other") else { return };
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    let cri = Cri::new(&bed);
    let steady = Steady::start(&agent, &cri);
    let good = pod("dup").workload(&["sleep"]);
    let dir = agent.manifests.clone();

    // File, what is in it, what the message must name.
    let text = |pod: e2e::Pod| pod.value.to_string();
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("malformed.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [".to_owned(), &[]),
        ("no-yaml.yaml", "\u{1}\u{2} no manifest".to_owned(), &[]),
        ("empty.yaml", String::new(), &[]),
        ("field.yaml", text(pod("field").workload(&[]).spec("contianers", serde_json::json!([]))), &["contianers"]),
        ("quantity.yaml", text(pod("quantity").workload(&[]).limit("memory", "10 potatoes")), &["10 potatoes"]),
        ("no-container.yaml", text(pod("no-container")), &["containers"]),
        ("evil.yaml", text(pod("../evil").workload(&[])), &["../evil"]),
        ("evil-container.yaml", text(pod("ec").container("../../x", e2e::WORKLOAD, &[], &[])), &["../../x"]),
        ("kind.yaml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n".to_owned(), &["Deployment"]),
    ];
    for (file, text, _) in &cases {
        write_file(&dir, file, text);
    }
    write_file(&dir, "dup-a.yaml", &good.value.to_string());
    write_file(&dir, "dup-b.yaml", &good.value.to_string());
    std::os::unix::fs::symlink("/nonexistent/target", dir.join("dangling.yaml")).unwrap();
    fs::create_dir(dir.join("folder.yaml")).unwrap();
    // 100 MB that take no room.
    File::create(dir.join("huge.yaml")).unwrap().set_len(100 << 20).unwrap();
    // The runtime says these.
    pod("no-image").container("main", "localhost/beelet/nonexistent:1", &[], &[]).write(&dir);
    pod("no-program").container("main", e2e::BUSYBOX, &["/nonexistent"], &[]).write(&dir);
    pod("ends").shell("exit 0").write(&dir);

    let mut all: Vec<(&str, &[&str])> = cases.iter().map(|(file, _, names)| (*file, *names)).collect();
    all.extend([("dup-b.yaml", &["dup"] as &[&str]), ("dangling.yaml", &[]), ("huge.yaml", &[])]);
    for (file, names) in all {
        let message = agent.wait(&format!("{file} to be refused on /pods"), secs(30), |agent| refused(agent, file));
        for name in names {
            assert!(message.contains(name), "{file}: `{name}` is not in: {message}");
        }
        let log = agent.log_text();
        assert!(log.lines().any(|line| line.contains(file) && line.contains("refused")), "{file} is not in the log");
        e2e::say(&format!("{file}: {message}"));
    }
    agent.wait_running("dup", secs(60));
    let waits = |name: &str, limit, reasons: &[&str]| {
        let state = agent.wait(&format!("{name} to wait for {reasons:?}"), secs(limit), |agent| {
            let status = agent.container(name, "main")?;
            let reason = status["state"]["waiting"]["reason"].as_str()?;
            reasons.contains(&reason).then(|| status["state"]["waiting"].clone())
        });
        state["message"].as_str().unwrap_or_default().to_owned()
    };
    let message = waits("no-image", 60, &["ErrImagePull", "ImagePullBackOff"]);
    assert!(message.contains("localhost/beelet/nonexistent:1"), "{message}");
    let message = waits("no-program", 60, &["RunContainerError", "CreateContainerError", "CrashLoopBackOff"]);
    e2e::say(&format!("no-program: {message}"));
    waits("ends", 90, &["CrashLoopBackOff"]);
    assert!(agent.log_text().contains("localhost/beelet/nonexistent:1"), "the missing image is not in the log");
    let rejected = agent.metrics().sum("beelet_manifest_rejected", &[]);
    assert_eq!(rejected, Some(12.0), "\n{}", agent.state());
    assert!(!bed.root_dir.join("evil").exists() && !bed.pod_logs_dir().join("evil").exists());
    steady.check(&mut agent, &cri, "after bad manifests");

    // A mended file is a pod at last.
    write_file(&dir, "quantity.yaml", &pod("quantity").workload(&["sleep"]).limit("memory", "32Mi").value.to_string());
    agent.wait_running("quantity", secs(60));
    agent.finish();
}

/// Starts containerd when the test ends early: the next one needs it.
struct Again<'a>(&'a e2e::Bed);

impl Drop for Again<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.runtime("start");
        }
    }
}

#[test]
fn a_runtime_that_is_away_is_waited_for() {
    let Some(bed) = BED.get("a_runtime_that_is_away_is_waited_for") else { return };
    // Not there at the start.
    bed.runtime("stop");
    let _again = Again(&bed);
    let mut agent = Agent::start(&bed, &AgentOptions::default());
    pod("steady").workload(&["sleep"]).write(&agent.manifests);
    agent.wait("beelet_runtime_up to be 0", secs(30), |agent| {
        agent.metrics().value("beelet_runtime_up", &[]).filter(|up| *up == 0.0)
    });
    agent.wait("the log to name the runtime's socket", secs(30), |agent| {
        let socket = bed.socket.display().to_string();
        agent.log_text().lines().any(|line| line.contains("WARN") && line.contains(&socket)).then_some(())
    });
    agent.wait("the pod on /pods, waiting", secs(30), |agent| (agent.phase("steady") == "Pending").then_some(()));
    assert!(agent.is_alive(), "the agent does not wait\n{}", agent.log_tail());
    bed.runtime("start");
    let cri = Cri::new(&bed);
    agent.wait_running("steady", secs(90));
    let steady = Steady { id: cri.running("steady")[0].id.clone() };

    // Restarted in the middle, in order and not.
    for (round, what) in ["restart", "kill"].into_iter().enumerate() {
        bed.runtime(what);
        if what == "kill" {
            agent.wait("beelet_runtime_up to be 0", secs(30), |agent| {
                agent.metrics().value("beelet_runtime_up", &[]).filter(|up| *up == 0.0)
            });
            bed.runtime("start");
        }
        let name = format!("after-{round}");
        pod(&name).workload(&["sleep"]).write(&agent.manifests);
        agent.wait_running(&name, secs(90));
        agent.wait("beelet_runtime_up to be 1", secs(30), |agent| {
            agent.metrics().value("beelet_runtime_up", &[]).filter(|up| *up == 1.0)
        });
        let cri = Cri::new(&bed);
        steady.check(&mut agent, &cri, &format!("after {what} of containerd"));
    }
    agent.finish();
}

/// A small file system, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf, options: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).status().unwrap();
        assert!(status.success(), "no tmpfs at {}", path.display());
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_is_named_and_survived() {
    let Some(bed) = BED.get("a_full_disk_is_named_and_survived") else { return };
    let small = Small::mount(bed.dir.join("small"), "size=1m");
    let options = AgentOptions { root_dir: Some(small.0.join("root")), ..AgentOptions::default() };
    let mut agent = Agent::start(&bed, &options);
    let cri = Cri::new(&bed);
    let steady = Steady::start(&agent, &cri);
    let filler = small.0.join("filler");
    assert!(fs::write(&filler, vec![1_u8; 4 << 20]).is_err(), "the disk did not get full");

    pod("late").workload(&["sleep"]).write(&agent.manifests);
    agent.wait("the full disk on /pods", secs(60), |agent| {
        let status = agent.pod("late")?["status"].to_string();
        status.contains("no space left").then_some(())
    });
    assert!(agent.log_text().contains("no space left"), "{}", agent.log_tail());
    // What ends now cannot be noted; nothing else suffers.
    pod("ends").shell("exit 3").spec("restartPolicy", serde_json::json!("Never")).write(&agent.manifests);
    std::thread::sleep(secs(5));
    steady.check(&mut agent, &cri, "with a full disk");

    fs::remove_file(&filler).unwrap();
    agent.wait_running("late", secs(120));
    steady.check(&mut agent, &cri, "with room again");
    agent.finish();
}

/// Without the kernel's programs pods run and are measured by files; it is said that programs are missing, and why.
fn runs_without_programs(test: &str, options: &AgentOptions, named: &[&str]) {
    let Some(bed) = BED.get(test) else { return };
    let mut agent = Agent::start(&bed, options);
    let cri = Cri::new(&bed);
    let steady = Steady::start(&agent, &cri);
    let metrics = agent.metrics();
    let programs: Vec<_> = metrics.all("beelet_bpf_program_loaded", &[]).collect();
    assert!(!programs.is_empty() && programs.iter().all(|p| p.value == 0.0), "{programs:?}\n{}", agent.log_tail());
    let reasons: Vec<_> = programs.iter().filter_map(|p| p.labels.get("reason")).collect();
    assert!(reasons.iter().all(|reason| named.iter().all(|name| reason.contains(name))), "{reasons:?}");
    let log = agent.log_text();
    assert!(log.lines().any(|l| l.contains("WARN") && named.iter().all(|n| l.contains(n))), "{}", agent.log_tail());
    agent.wait("CPU and memory by the cgroups' files", secs(30), |agent| {
        let labels = [("pod", "steady-node"), ("container", "main")];
        let metrics = agent.metrics();
        metrics
            .sum("container_cpu_usage_seconds_total", &labels)
            .zip(metrics.sum("container_memory_working_set_bytes", &labels))
    });
    steady.check(&mut agent, &cri, test);
    agent.finish();
}

#[test]
fn without_the_programs_object() {
    let options = AgentOptions {
        env: vec![("BEELET_BPF_OBJECT".to_owned(), "/nonexistent/beelet-ebpf".to_owned())],
        ..AgentOptions::default()
    };
    runs_without_programs("without_the_programs_object", &options, &["/nonexistent/beelet-ebpf", "--bpf-object"]);
}

#[test]
fn without_privileges_for_programs() {
    let wrapper = ["setpriv", "--bounding-set", "-bpf,-perfmon,-sys_admin", "--inh-caps", "-bpf,-perfmon,-sys_admin"];
    let options = AgentOptions { wrapper: wrapper.map(str::to_owned).to_vec(), ..AgentOptions::default() };
    runs_without_programs("without_privileges_for_programs", &options, &["CAP_BPF"]);
}
