//! The beelet binary: `beelet run | top | explain`.

#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use beelet::agent::{self, Options, PodSource};
use beelet::config::{Config, labels, providers};
use beelet::top::{ExplainArgs, TopArgs};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

/// A kubelet that sees the kernel: runs pods through containerd, measures them with eBPF, acts before the OOM killer has to.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent.
    Run(RunArgs),
    /// Show a live table of the pods of a running agent.
    Top(TopArgs),
    /// Say why a pod is as it is.
    Explain(ExplainArgs),
    /// What the agent starts beside itself, to turn knobs back should it be killed.
    #[command(hide = true)]
    Guard(GuardArgs),
}

#[derive(Args)]
struct GuardArgs {
    /// The agent's folder.
    #[arg(long, value_name = "DIR")]
    root_dir: PathBuf,
}

#[derive(Args)]
struct RunArgs {
    /// Folder of pod manifests (or one file); leads over `staticPodPath` of the configuration.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// KubeletConfiguration and EnforcementPolicy; may be given more than once.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Measure, judge and report the pods of a kubelet on this node; write nothing.
    #[arg(long, conflicts_with = "manifests")]
    beside_kubelet: bool,
    /// The node's name; the host's name where it is not given.
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// The node's address, for status.hostIP.
    #[arg(long, value_name = "IP")]
    node_ip: Option<IpAddr>,
    /// Labels of the node, for pods that ask for them (nodeSelector, nodeAffinity).
    #[arg(long, value_name = "KEY=VALUE,...", default_value = "", hide_default_value = true)]
    node_labels: String,
    /// Programs that give credentials for registries: a CredentialProviderConfig, or a folder of them.
    #[arg(long, value_name = "FILE", requires = "image_credential_provider_bin_dir")]
    image_credential_provider_config: Option<PathBuf>,
    /// Where these programs are.
    #[arg(long, value_name = "DIR", requires = "image_credential_provider_config")]
    image_credential_provider_bin_dir: Option<PathBuf>,
    /// Where beelet keeps volumes and its journal.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/beelet")]
    root_dir: PathBuf,
    /// The runtime's socket; leads over `containerRuntimeEndpoint` of the configuration.
    #[arg(long, value_name = "unix:///PATH")]
    container_runtime_endpoint: Option<String>,
    /// The eBPF programs; looked for in /usr/lib/beelet and beside the binary where it is not given.
    #[arg(long, value_name = "FILE", env = "BEELET_BPF_OBJECT")]
    bpf_object: Option<PathBuf>,
    /// How the log is written.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn main() -> ExitCode {
    beelet::heap::tame();
    let cli = Cli::parse();
    if let Command::Guard(args) = &cli.command {
        return guard(args);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("beelet: no asynchronous runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async {
        match cli.command {
            Command::Guard(_) => unreachable!("it needs no runtime"),
            Command::Run(args) => run(args).await,
            Command::Top(args) => beelet::top::run(args).await.map_err(Into::into),
            Command::Explain(args) => beelet::top::run_explain(args).await.map_err(Into::into),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("beelet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn guard(args: &GuardArgs) -> ExitCode {
    start_log(LogFormat::Text);
    match beelet::act::guard::run(&args.root_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("beelet guard: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    start_log(args.log_format);
    let (mut config, warnings) = Config::load(&args.config)?;
    for warning in warnings {
        warn!("{warning}");
    }
    if let Some(endpoint) = &args.container_runtime_endpoint {
        let Some(path) = endpoint.strip_prefix("unix://") else {
            bail!(
                "--container-runtime-endpoint {endpoint}: only unix:// endpoints are supported, e.g. unix:///run/containerd/containerd.sock"
            );
        };
        config.kubelet.runtime_socket = path.into();
    }
    config.kubelet.node_labels = labels::read(&args.node_labels)?;
    if let (Some(file), Some(bin)) = (&args.image_credential_provider_config, &args.image_credential_provider_bin_dir) {
        config.kubelet.credential_providers = providers::load(file, bin)?;
    }
    let source = match (args.beside_kubelet, args.manifests.or_else(|| config.kubelet.static_pod_path.clone())) {
        (true, _) => PodSource::None,
        (false, Some(path)) => PodSource::Folder(path),
        (false, None) => bail!(
            "nothing to run: give a folder of pods with --manifests DIR, `staticPodPath` in the configuration, or --beside-kubelet"
        ),
    };
    let options = Options {
        node_name: node_name(args.hostname_override)?,
        node_ip: args.node_ip,
        source,
        config,
        root: args.root_dir,
        bpf_object: args.bpf_object.unwrap_or_else(find_object),
        beside: args.beside_kubelet,
        objects: None,
    };
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        info!("asked to stop");
        stopper.cancel();
    });
    agent::run(options, None, stop).await?;
    Ok(())
}

fn node_name(given: Option<String>) -> anyhow::Result<String> {
    let name = match given {
        Some(name) => name,
        None => rustix::system::uname()
            .nodename()
            .to_str()
            .context("the host's name is not UTF-8; give --hostname-override")?
            .to_owned(),
    };
    // As the kubelet does (pkg/util/node/node.go).
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        bail!("the host has no name; give one with --hostname-override");
    }
    Ok(name)
}

/// `/usr/lib/beelet/beelet-ebpf`, or where `cargo xtask build-ebpf` puts it beside the binary's folder.
fn find_object() -> PathBuf {
    let installed = PathBuf::from("/usr/lib/beelet/beelet-ebpf");
    let built = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.join("bpf/beelet-ebpf")));
    built.filter(|path| path.exists()).unwrap_or(installed)
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,aya=warn,aya_obj=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
}
