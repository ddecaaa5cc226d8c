//! Makes a kubelet for a node, creates a pod, waits until it runs, deletes it, and waits until it is gone.
//!
//! `cargo run -p beelet --example pod -- node-1 CONFIG ROOT` with a KubeletConfiguration that names a containerd to use.

use std::time::Duration;

use anyhow::Context;
use beelet::config::Config;
use beelet::kubelet::Kubelet;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use kube::core::ObjectMeta;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let node_name = args.next().context("usage: pod NODE CONFIG ROOT")?;
    let (config, warnings) = Config::load(&args.next().map(Into::into).into_iter().collect::<Vec<_>>())?;
    for warning in warnings {
        eprintln!("{warning}");
    }
    let root = args.next().unwrap_or_else(|| "/var/lib/beelet".to_owned());

    let kubelet = Kubelet::builder(&node_name).config(config).root(root).start().await?;
    println!("kubelet of {node_name} serves on {}", kubelet.address());

    let container = Container {
        name: "main".to_owned(),
        image: Some("docker.io/library/busybox:1.36".to_owned()),
        command: Some(["sh", "-c", "trap exit TERM; while :; do sleep 1; done"].map(str::to_owned).to_vec()),
        ..Container::default()
    };
    let pod = Pod {
        metadata: ObjectMeta { name: Some("hello".to_owned()), ..ObjectMeta::default() },
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
        ..Pod::default()
    };
    let uid = kubelet.create_pod(&pod)?;
    println!("created {uid}");
    let minute = Duration::from_secs(60);
    kubelet.wait_for(&uid, "the pod to run", minute, |p| p.is_some_and(|p| p.status_word() == "Running")).await?;
    println!("running on {}", kubelet.pod(&uid).map(|p| p.ip.clone()).unwrap_or_default());

    kubelet.delete_pod(&uid)?;
    kubelet.wait_for(&uid, "the pod to be gone", minute, |p| p.is_none()).await?;
    println!("gone");
    kubelet.stop().await?;
    Ok(())
}
