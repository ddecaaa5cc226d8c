//! How fast news is: from a container's death to its published status, and from manifests to running pods.
//!
//! `cargo xtask bench speed` is the real thing; the test here is a part of it with generous limits.
//!
//! Both are measured beside the least that the machine takes for it, in the same run: a death beside a bare CRI client that asks
//! for this one container's status, again and again; a start beside a bare client that makes the same sandboxes and containers.

use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use beelet_proto::cri;
use beelet_proto::cri::runtime_service_client::RuntimeServiceClient;
use e2e::{Agent, AgentOptions, Bed, Cri, SharedBed, pod, say, secs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::task::JoinSet;

static BED: SharedBed = SharedBed::new("speed");

fn of_environment(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// "median 3.1 ms, 90 % 4.0 ms, at most 5.2 ms".
fn spread(times: &[Duration]) -> String {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let ms = |at: usize| sorted[at.min(sorted.len() - 1)].as_secs_f64() * 1000.0;
    let (median, most, all) = (ms(sorted.len() / 2), ms(sorted.len() * 9 / 10), ms(sorted.len() - 1));
    format!("median {median:.1} ms, 90 % {most:.1} ms, at most {all:.1} ms")
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

// === Deaths ===

/// From the death of a container's process until the status is on `/pods`, and until a bare client is told by the runtime.
#[derive(Default)]
struct Deaths {
    published: Vec<Duration>,
    bare: Vec<Duration>,
    /// How long one look at `/pods` takes, which is part of what was measured.
    looks: Vec<Duration>,
}

/// Kills one container of `pods` after the other. Each of them is to be of a pod that does not start again.
fn kill_each(bed: &Bed, agent: &Agent<'_>, pods: &[String], deaths: &mut Deaths) {
    let cri = Cri::new(bed);
    for name in pods {
        let container = cri.running(name).into_iter().next().unwrap_or_else(|| panic!("{name} does not run"));
        let pid = cri.pid(&container.id).and_then(Pid::from_raw).expect("its process");
        let begin = Barrier::new(2);
        let began = Mutex::new(None);
        std::thread::scope(|scope| {
            let bare = scope.spawn(|| {
                let cri = Cri::new(bed);
                let ended = || {
                    let request = cri::ContainerStatusRequest { container_id: container.id.clone(), verbose: false };
                    let status = cri.call(|mut c| async move { c.container_status(request).await }).status;
                    status.is_some_and(|status| status.state == cri::ContainerState::ContainerExited as i32)
                };
                assert!(!ended(), "{name} ended by itself");
                begin.wait();
                while !ended() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let began: Instant = began.lock().expect("no panic").expect("it has begun");
                began.elapsed()
            });
            begin.wait();
            let start = Instant::now();
            *began.lock().expect("no panic") = Some(start);
            kill_process(pid, Signal::KILL).expect("to kill it");
            let gone = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137;
            loop {
                assert!(start.elapsed() < secs(30), "the end of {name} was not published\n{}", agent.state());
                let look = Instant::now();
                let pod = agent.pod(name);
                deaths.looks.push(look.elapsed());
                if pod.is_some_and(|pod| gone(&pod)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            deaths.published.push(start.elapsed());
            deaths.bare.push(bare.join().expect("the bare client"));
        });
        // What the death leads to is over, and the agent is at rest again.
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn measure_deaths(bed: &Bed, number: usize) -> Deaths {
    let agent = Agent::start(bed, &AgentOptions::default());
    let names: Vec<String> = (0..number).map(|n| format!("mortal-{n}")).collect();
    let mut deaths = Deaths::default();
    // Few at a time, so that a look at all of them is quick.
    for names in names.chunks(10) {
        for name in names {
            pod(name).workload(&["sleep"]).spec("restartPolicy", "Never".into()).write(&agent.manifests);
        }
        for name in names {
            agent.wait_running(name, secs(120));
        }
        std::thread::sleep(secs(2));
        kill_each(bed, &agent, names, &mut deaths);
        agent.clear();
    }
    say(&format!("speed: a look at /pods: {}", spread(&deaths.looks)));
    say(&format!("speed: {number} deaths until published: {}", spread(&deaths.published)));
    say(&format!("speed: {number} deaths until the runtime tells a bare client: {}", spread(&deaths.bare)));
    agent.finish();
    deaths
}

#[test]
fn a4_14e_a_death_is_published_at_once() {
    let Some(bed) = BED.get("a4_14e_a_death_is_published_at_once") else { return };
    let deaths = measure_deaths(&bed, 10);
    // Without events it would be half a second; with a picture every 100 ms, some 110.
    let median = median(&deaths.published);
    assert!(median < Duration::from_millis(400), "{:?}", deaths.published);
}

// === Starts ===

/// The image of sandboxes, which does nothing but wait.
fn pause(cri: &Cri) -> String {
    cri.images().into_iter().find(|name| name.contains("pause")).expect("the image of sandboxes")
}

/// What a bare client needs for `number` pods of one container, all at the same time.
fn start_bare(bed: &Bed, cri: &Cri, image: &str, number: usize, round: usize) -> (Duration, Vec<String>) {
    let (logs, parent) = (bed.pod_logs_dir(), bed.cgroup_root.trim_matches('/').to_owned());
    cri.block_on(|channel| async move {
        let began = Instant::now();
        let mut all = JoinSet::new();
        for n in 0..number {
            let name = format!("bare-{round}-{n}");
            let metadata = cri::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("{name}-uid"),
                namespace: "default".to_owned(),
                attempt: 0,
            };
            let sandbox = cri::PodSandboxConfig {
                metadata: Some(metadata),
                hostname: name.clone(),
                log_directory: logs.join(&name).display().to_string(),
                linux: Some(cri::LinuxPodSandboxConfig {
                    cgroup_parent: format!("/{parent}/{name}"),
                    ..cri::LinuxPodSandboxConfig::default()
                }),
                ..cri::PodSandboxConfig::default()
            };
            let image = cri::ImageSpec { image: image.to_owned(), ..cri::ImageSpec::default() };
            let container = cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata { name: "main".to_owned(), attempt: 0 }),
                image: Some(image),
                log_path: "main.log".to_owned(),
                linux: Some(cri::LinuxContainerConfig::default()),
                ..cri::ContainerConfig::default()
            };
            let mut client = RuntimeServiceClient::new(channel.clone());
            all.spawn(async move {
                let config = Some(sandbox.clone());
                let request = cri::RunPodSandboxRequest { config, ..cri::RunPodSandboxRequest::default() };
                let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
                let request = cri::CreateContainerRequest {
                    pod_sandbox_id: id.clone(),
                    config: Some(container),
                    sandbox_config: Some(sandbox),
                };
                let container_id = client.create_container(request).await?.into_inner().container_id;
                client.start_container(cri::StartContainerRequest { container_id }).await?;
                Ok::<_, tonic::Status>(id)
            });
        }
        let ids = all.join_all().await.into_iter();
        let ids = ids.map(|id| id.unwrap_or_else(|error| panic!("a bare client: {error}"))).collect();
        (began.elapsed(), ids)
    })
}

fn remove_bare(bed: &Bed, cri: &Cri, ids: Vec<String>) {
    for entry in std::fs::read_dir(bed.pod_logs_dir()).expect("the folder of logs").flatten() {
        if entry.file_name().to_string_lossy().starts_with("bare-") {
            std::fs::remove_dir_all(entry.path()).expect("to remove its logs");
        }
    }
    for id in ids {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        cri.call(|mut c| async move { c.stop_pod_sandbox(stop).await });
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
        cri.call(|mut c| async move { c.remove_pod_sandbox(remove).await });
    }
}

/// From the first manifest until all are told to be Running.
fn start_pods(agent: &Agent<'_>, image: &str, number: usize) -> Duration {
    let names: Vec<String> = (0..number).map(|n| format!("paused-{n}")).collect();
    // Written elsewhere and moved, so that writing is no part of it.
    let aside = agent.bed.run_dir.join("aside");
    std::fs::create_dir_all(&aside).expect("a folder");
    let files: Vec<_> = names.iter().map(|name| pod(name).container("main", image, &[], &[]).write(&aside)).collect();
    let began = Instant::now();
    for file in files {
        std::fs::rename(&file, agent.manifests.join(file.file_name().expect("a name"))).expect("to move it");
    }
    loop {
        assert!(began.elapsed() < secs(300), "not all pods run\n{}", agent.state());
        let pods = agent.try_pods().unwrap_or_default();
        if pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count() >= number {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = began.elapsed();
    agent.clear();
    took
}

fn measure_starts(bed: &Bed, number: usize, rounds: usize) {
    let cri = Cri::new(bed);
    let image = pause(&cri);
    let agent = Agent::start(bed, &AgentOptions::default().set("maxPods", "250"));
    let (mut bare, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (took, ids) = start_bare(bed, &cri, &image, number, round);
        remove_bare(bed, &cri, ids);
        bare.push(took);
        std::thread::sleep(secs(2));
        ours.push(start_pods(&agent, &image, number));
        std::thread::sleep(secs(2));
        let (bare, ours) = (bare[round].as_secs_f64(), ours[round].as_secs_f64());
        say(&format!("speed: {number} pods of one pause container: bare client {bare:.2} s, all Running {ours:.2} s"));
    }
    let (bare, ours) = (median(&bare).as_secs_f64(), median(&ours).as_secs_f64());
    let metrics = agent.metrics();
    let calls: Vec<String> = metrics
        .all("kubelet_runtime_operations_total", &[])
        .map(|call| format!("{} {:.1}", call.labels["operation_type"], call.value / (rounds * number) as f64))
        .collect();
    say(&format!("speed: calls of a pod's whole life: {}", calls.join(", ")));
    say(&format!("speed: medians: bare {bare:.2} s, beelet {ours:.2} s, ratio {:.3}", ours / bare));
    agent.finish();
}

#[test]
#[ignore = "a benchmark: cargo xtask bench speed"]
fn bench() {
    let Some(bed) = BED.get("bench") else { return };
    let (deaths, pods) = (of_environment("BEELET_BENCH_DEATHS", 50), of_environment("BEELET_BENCH_PODS", 100));
    if deaths > 0 {
        measure_deaths(&bed, deaths);
    }
    if pods > 0 {
        measure_starts(&bed, pods, of_environment("BEELET_BENCH_RUNS", 3));
    }
}
