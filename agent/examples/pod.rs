//! Makes a kubelet for a node, creates a pod that reads a ConfigMap, waits until it runs, deletes it, and waits until it is gone.
//!
//! `cargo run -p beelet --example pod -- node-1 CONFIG ROOT` with a KubeletConfiguration that names a containerd to use.

use std::time::Duration;

use anyhow::Context;
use beelet::config::Config;
use beelet::kubelet::Kubelet;
use beelet::volumes::Objects;
use beelet_core::content::{Found, Object, ObjectError};
use beelet_core::spec::{ObjectKind, ObjectRef};
use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, ConfigMapVolumeSource, Container, EnvVar, EnvVarSource, Pod, PodSpec, Volume, VolumeMount,
};
use kube::core::ObjectMeta;

/// One ConfigMap in every namespace.
#[derive(Debug)]
struct Greetings;

impl Objects for Greetings {
    fn get(&self, _namespace: &str, object: &ObjectRef) -> Found {
        if (object.kind, object.name.as_str()) != (ObjectKind::ConfigMap, "greetings") {
            return Err(ObjectError::NotFound(object.clone()));
        }
        Ok(Object { data: [("morning".to_owned(), b"hello".to_vec())].into(), ..Object::default() })
    }
}

/// The container says it as a file and as a variable.
fn greeted(name: &str, script: &str) -> Container {
    let key = ConfigMapKeySelector { name: "greetings".to_owned(), key: "morning".to_owned(), optional: None };
    let from = EnvVarSource { config_map_key_ref: Some(key), ..EnvVarSource::default() };
    let mount =
        VolumeMount { name: "greetings".to_owned(), mount_path: "/greetings".to_owned(), ..VolumeMount::default() };
    Container {
        name: name.to_owned(),
        image: Some("docker.io/library/busybox:1.36".to_owned()),
        command: Some(["sh", "-c", script].map(str::to_owned).to_vec()),
        env: Some(vec![EnvVar { name: "GREETING".to_owned(), value_from: Some(from), ..EnvVar::default() }]),
        volume_mounts: Some(vec![mount]),
        ..Container::default()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let node_name = args.next().context("usage: pod NODE CONFIG ROOT")?;
    let (config, warnings) = Config::load(&args.next().map(Into::into).into_iter().collect::<Vec<_>>())?;
    for warning in warnings {
        eprintln!("{warning}");
    }
    let root = args.next().unwrap_or_else(|| "/var/lib/beelet".to_owned());

    let kubelet = Kubelet::builder(&node_name).config(config).root(root).objects(Greetings).start().await?;
    println!("kubelet of {node_name} serves on {}", kubelet.address());

    let check = greeted("check", r#"test "$GREETING" = hello && test "$(cat /greetings/morning)" = hello"#);
    let container = greeted("main", "trap exit TERM; while :; do sleep 1; done");
    let greetings = ConfigMapVolumeSource { name: "greetings".to_owned(), ..ConfigMapVolumeSource::default() };
    let volume = Volume { name: "greetings".to_owned(), config_map: Some(greetings), ..Volume::default() };
    let pod = Pod {
        metadata: ObjectMeta { name: Some("hello".to_owned()), ..ObjectMeta::default() },
        spec: Some(PodSpec {
            init_containers: Some(vec![check]),
            containers: vec![container],
            volumes: Some(vec![volume]),
            ..PodSpec::default()
        }),
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
