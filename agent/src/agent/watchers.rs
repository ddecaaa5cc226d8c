//! What wakes the agent: each a task that turns one source of news into commands and events.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use beelet_core::event::Event;
use beelet_core::units::Micros;
use futures::StreamExt;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{debug, info, warn};

use super::{Options, PodSource, add_capability};
use crate::kernel::cgroup::{Cgroup, CgroupLayout};
use crate::kernel::events::EventStream;
use crate::kernel::loader::ProgramLog;
use crate::kernel::memory_events::MemoryEvents;
use crate::kernel::psi::{PsiTrigger, Stalled, Threshold, Wake};
use crate::measure::{Command, Sampler};
use crate::report::{AgentReport, Manifests};
use crate::runtime::{Runtime, Wake as RuntimeWake};
use crate::sources::{self, FolderSource, SourceState};

/// The distance of listings where the runtime tells of changes by itself.
const RELIST_WITH_EVENTS: Micros = Micros::secs(10);
/// And where it does not: the kubelet's (pkg/kubelet/kubelet.go, genericPlegRelistPeriod, release 1.37).
const RELIST_WITHOUT: Micros = Micros::secs(1);
/// A watched cgroup that is gone is looked for again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Listens to the runtime's events, and sets the distance of listings by whether it has any.
pub(super) async fn runtime_events(
    runtime: Arc<Runtime>,
    relist: Arc<Notify>,
    period: watch::Sender<Micros>,
    report: AgentReport,
) {
    let mut wakes = runtime.watch();
    while let Some(wake) = wakes.next().await {
        match wake {
            RuntimeWake::Changed => {
                if *period.borrow() != RELIST_WITH_EVENTS {
                    add_capability(&report, "runtime_events", true, "");
                    period.send_replace(RELIST_WITH_EVENTS);
                }
                relist.notify_one();
            }
            RuntimeWake::Lost(reason) => {
                debug!(reason, "the runtime's event stream broke");
                period.send_replace(RELIST_WITHOUT);
                relist.notify_one();
            }
            RuntimeWake::Unsupported(reason) => {
                warn!(reason, "the runtime has no event stream; listing each second instead");
                add_capability(&report, "runtime_events", false, &reason);
                period.send_replace(RELIST_WITHOUT);
            }
        }
    }
    keep(period).await;
}

/// Keeps the distance of listings as it is.
pub(super) async fn keep(period: watch::Sender<Micros>) {
    std::future::pending::<()>().await;
    drop(period);
}

/// Passes the kernel's events to the sampler, which knows whose they are.
pub(super) async fn kernel_events(mut stream: EventStream, sampler: Sampler) {
    loop {
        match stream.next().await {
            Ok(event) => sampler.tell(Command::Kernel(event)),
            Err(error) => {
                warn!(%error, "kernel events end here; exits and OOM kills are told by the runtime and by counters");
                return;
            }
        }
    }
}

/// Passes the eBPF programs' log lines on.
pub(super) async fn program_log(log: ProgramLog) {
    if let Err(error) = log.run().await {
        warn!(%error, "the log of the eBPF programs ends here");
    }
}

/// Looks whenever tasks below `kubepods` wait for memory.
pub(super) async fn pressure(layout: CgroupLayout, kubepods: PathBuf, sampler: Sampler, report: AgentReport) {
    // 70 ms of waiting within a second, lmkd's measure of a moderate stall (system/memory/lmkd/lmkd.cpp).
    const THRESHOLD: Threshold = Threshold { stalled: Stalled::Some, stall_us: 70_000, window_us: 1_000_000 };
    let path = layout.unified().join(&kubepods).join("memory.pressure");
    let mut told = false;
    loop {
        match PsiTrigger::set(&path, THRESHOLD) {
            Ok(trigger) => {
                if !told {
                    let window = Micros(trigger.threshold().window_us);
                    let reason = format!("{} of waiting within {window} wakes", Micros(trigger.threshold().stall_us));
                    add_capability(&report, "psi_trigger", true, &reason);
                    told = true;
                }
                loop {
                    match trigger.wait().await {
                        Ok(Wake::Stalled) => sampler.tell(Command::Now),
                        Ok(Wake::Gone) => break,
                        Err(error) => {
                            warn!(%error, "memory pressure does not wake any more; sampling goes on");
                            break;
                        }
                    }
                }
            }
            Err(error) => {
                if !told {
                    warn!(%error, "memory pressure cannot wake the agent; sampling goes on");
                    add_capability(&report, "psi_trigger", false, &error.to_string());
                    told = true;
                }
            }
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Looks at a pod whenever the `memory.events` of its own or of a container's change, and at the node whenever those of `kubepods` do,
/// which count all below (v2). On hybrid layouts pressure ([`pressure`]) and the eBPF program at the OOM killer take its place.
pub(super) async fn memory_events(
    layout: CgroupLayout,
    kubepods: PathBuf,
    mut born: mpsc::UnboundedReceiver<(u64, PathBuf)>,
    sampler: Sampler,
    report: AgentReport,
) {
    let watched = MemoryEvents::new(&layout).and_then(|mut events| {
        if let Ok(Some(cgroup)) = Cgroup::open(&layout, &kubepods) {
            events.watch(cgroup.id(), &layout.unified().join(&kubepods))?;
        }
        Ok(events)
    });
    let mut events = match watched {
        Ok(events) => events,
        Err(error) => {
            info!(%error, "memory.events cannot wake the agent; pressure, OOM kills by eBPF and sampling have to do");
            add_capability(&report, "memory_events", false, &error.to_string());
            return;
        }
    };
    add_capability(&report, "memory_events", true, "");
    let mut told = false;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Ok(cgroup) => sampler.tell(Command::MemoryEvent(cgroup)),
                Err(error) => {
                    warn!(%error, "memory.events do not wake any more; sampling goes on");
                    return;
                }
            },
            Some((id, path)) = born.recv() => {
                // One that is gone again already is no news.
                let directory = layout.unified().join(path);
                if let Err(error) = events.watch(id, &directory)
                    && directory.is_dir()
                    && !std::mem::replace(&mut told, true)
                {
                    warn!(%error, "the memory events of a pod or container do not wake; those of all pods do");
                }
            }
        }
    }
}

/// Removes links to logs that are gone, as often as the kubelet (pkg/kubelet/kubelet.go, ContainerGCPeriod).
pub(super) async fn log_links(runtime: Arc<Runtime>, pod_logs: PathBuf) {
    loop {
        runtime.remove_dangling_links(&pod_logs).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

/// Passes on which pods are wanted.
pub(super) async fn wishes(
    source: PodSource,
    options: Options,
    manifests: Manifests,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut states = match source {
        PodSource::Folder(path) => {
            let rescan = Duration::from_micros(options.config.kubelet.file_check.0);
            FolderSource::spawn(path, options.node_name, sources::Options { rescan, ..sources::Options::default() })
        }
        PodSource::Channel(states) => states,
        PodSource::None => return,
    };
    loop {
        let state: Arc<SourceState> = states.borrow_and_update().clone();
        if let Some(event) = state.event() {
            manifests.publish(state.originals.clone());
            if events.send(event).is_err() {
                return;
            }
        }
        if states.changed().await.is_err() {
            debug!("the pod source ended; pods go on as they are");
            return;
        }
    }
}
