//! Watches the room on the node's disks, and tidies them.
//!
//! Problem: reading must go on while the runtime takes its time to remove images, and each reclaim must be answered by a reading that
//! was made after it. Approach: one task reads ([`watch`]), another removes ([`tidy`]); what came of a reclaim goes to the first, which
//! reads at once and sends both together. Which images may go is [`beelet_core::images`]' to say.
//!
//! Properties: each order to reclaim is answered, within [`TIDY_LIMIT`]; an image that a wanted pod names stays, even if no container
//! of it is there yet; beside a kubelet, and in the mode Observe, nothing is removed.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use beelet_core::event::Event;
use beelet_core::evict::disk::{FsRoom, Reading, Reclaimed};
use beelet_core::images::{Images, Policy, Reason};
use beelet_core::snapshot::Phase;
use beelet_core::units::{Bytes, Micros};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};

use crate::clock::Clock;
use crate::measure::{Rooms, Slow};
use crate::report::Published;
use crate::runtime::Runtime;

/// The distance of readings; those that say nothing new are not sent.
const READ_EVERY: Duration = Duration::from_secs(1);
/// Readings that are wanted closer than this mean that something is short, or nearly.
const SELDOM: Micros = Micros::secs(10);
/// Images are looked at, and go if the disk is too full, this often (`ImageGCPeriod`, pkg/kubelet/kubelet.go).
const COLLECT_EVERY: Duration = Duration::from_secs(300);
/// After a failure, which is most often a runtime that is not there yet.
const AGAIN: Duration = Duration::from_secs(10);
/// A reclaim takes at most so long; less than the core waits for one.
const TIDY_LIMIT: Duration = Duration::from_secs(100);
/// So many images are named in a failure.
const NAMED: usize = 3;

/// What the core wants freed.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) containers: Vec<String>,
    pub(super) sandboxes: Vec<String>,
    pub(super) images: bool,
}

/// The ends of the channels that the cycle holds.
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) look: watch::Sender<Micros>,
    pub(super) reclaim: mpsc::UnboundedSender<Wanted>,
}

/// The ends that the tasks hold.
#[derive(Debug)]
pub(super) struct Ears {
    look: watch::Receiver<Micros>,
    reclaim: mpsc::UnboundedReceiver<Wanted>,
}

pub(super) fn channels() -> (Orders, Ears) {
    let (look, reclaim) = (watch::channel(SELDOM), mpsc::unbounded_channel());
    (Orders { look: look.0, reclaim: reclaim.0 }, Ears { look: look.1, reclaim: reclaim.1 })
}

/// What tidies. Not beside a kubelet: its images are the kubelet's.
pub(super) struct Tidier {
    pub(super) runtime: Arc<Runtime>,
    pub(super) published: Published,
    pub(super) policy: Policy,
    /// Say what would go, and remove nothing.
    pub(super) observe: bool,
}

/// Starts what watches and, with a tidier, what tidies.
pub(super) fn tasks(
    ears: Ears,
    root: PathBuf,
    slow: Slow,
    tidier: Option<Tidier>,
    events: mpsc::UnboundedSender<Event>,
) -> (impl Future<Output = ()> + Send, Option<impl Future<Output = ()> + Send>) {
    let (done_to, done) = mpsc::unbounded_channel();
    let (latest_to, latest) = watch::channel(Reading::default());
    let tidying = tidier.map(|tidier| tidy(tidier, ears.reclaim, latest, done_to));
    (watch_rooms(Rooms::new(root, slow.clone()), slow, ears.look, done, latest_to, events), tidying)
}

async fn watch_rooms(
    mut rooms: Rooms,
    slow: Slow,
    look: watch::Receiver<Micros>,
    mut done: mpsc::UnboundedReceiver<Reclaimed>,
    latest: watch::Sender<Reading>,
    events: mpsc::UnboundedSender<Event>,
) {
    let (mut next, mut sent, mut hurry) = (Instant::now(), None::<Reading>, false);
    loop {
        let reclaimed = tokio::select! {
            Some(outcome) = done.recv() => Some(outcome),
            () = sleep_until(next) => None,
        };
        next = Instant::now() + READ_EVERY;
        let reading = rooms.read().await;
        let _ = latest.send(reading);
        let (wanted, told) = (*look.borrow(), reclaimed.is_some());
        if std::mem::replace(&mut hurry, wanted < SELDOM) != (wanted < SELDOM) {
            slow.hurry(hurry);
        }
        if !told && sent.is_some_and(|sent| !is_news(&sent, &reading, wanted)) {
            continue;
        }
        sent = Some(reading);
        if events.send(Event::Disks { reading, reclaimed }).is_err() {
            // The cycle has ended.
            return;
        }
    }
}

/// Whether the core is to see it: it is time, or something is known that was not, or not any more, or a hundredth of a file system or
/// of the process ids went since the last.
fn is_news(sent: &Reading, now: &Reading, every: Micros) -> bool {
    use beelet_core::evict::disk::Signal;
    // Half of the reading's own distance: what is due a moment later would come a whole distance later.
    let due = now.at - sent.at + Micros(500_000) >= every;
    let changed = |signal: &Signal| match (sent.room(*signal), now.room(*signal)) {
        (Some(before), Some(now)) => before.available.saturating_sub(now.available) > now.capacity / 100,
        (None, None) => false,
        _ => true,
    };
    due || sent.layout != now.layout || Signal::ALL.iter().any(changed)
}

async fn tidy(
    tidier: Tidier,
    mut wanted: mpsc::UnboundedReceiver<Wanted>,
    latest: watch::Receiver<Reading>,
    done: mpsc::UnboundedSender<Reclaimed>,
) {
    let (began, mut images, mut told) = (Clock.now().mono, Images::default(), false);
    // Seen at once, so that their age counts from here; removed at the second look at the earliest.
    let mut next = Instant::now();
    loop {
        tokio::select! {
            biased;
            order = wanted.recv() => {
                let Some(order) = order else { return };
                let mut outcome = Reclaimed::default();
                if timeout(TIDY_LIMIT, tidier.reclaim(order, &mut images, &mut outcome)).await.is_err() {
                    outcome.errors.push(format!("it did not end within {} s", TIDY_LIMIT.as_secs()));
                }
                outcome.at = Clock.now().mono;
                if done.send(outcome).is_err() {
                    return;
                }
            }
            () = sleep_until(next) => {
                let room = latest.borrow().images;
                let looked = timeout(TIDY_LIMIT, tidier.collect(&mut images, room, began)).await;
                next = Instant::now() + AGAIN;
                match looked.unwrap_or_else(|_| Err("it took too long".to_owned())) {
                    Ok(()) => (told, next) = (false, Instant::now() + COLLECT_EVERY),
                    // Told once: who lists the pods tells when the runtime is away.
                    Err(error) if !std::mem::replace(&mut told, true) => {
                        warn!(error, "images cannot be looked through for what nobody uses");
                    }
                    Err(_) => {}
                }
            }
        }
    }
}

impl Tidier {
    /// What there is and what of it is used.
    async fn look(&self, images: &mut Images) -> Result<(), String> {
        let listed = self.runtime.list_images().await.map_err(|e| e.to_string())?;
        // After the images: one that comes into use meanwhile is seen to be used.
        let mut used = self.runtime.used_images().await.map_err(|e| e.to_string())?;
        used.extend(self.wanted_images(&listed));
        images.observe(&listed, &used, Clock.now().mono);
        Ok(())
    }

    /// Images that pods name which run or are to run, by the runtime's names for them.
    fn wanted_images(&self, listed: &[beelet_core::images::Image]) -> BTreeSet<String> {
        let picture = self.published.current();
        let live = picture.pods.iter().filter(|pod| matches!(pod.phase, Phase::Pending | Phase::Running));
        let wanted: Vec<&str> = live.flat_map(|pod| pod.spec.all_containers().map(|c| c.image.as_str())).collect();
        // `busybox` is `docker.io/library/busybox:latest` for the runtime.
        let named = |name: &str| {
            wanted
                .iter()
                .any(|w| name == *w || name.ends_with(&format!("/{w}")) || name.ends_with(&format!("/{w}:latest")))
        };
        listed.iter().filter(|image| image.names.iter().any(|n| named(n))).map(|image| image.id.clone()).collect()
    }

    async fn reclaim(&self, order: Wanted, images: &mut Images, outcome: &mut Reclaimed) {
        let count = |ids: &[String]| u32::try_from(ids.len()).unwrap_or(u32::MAX);
        if !order.containers.is_empty() {
            match self.runtime.remove_containers(&order.containers).await {
                Ok(_) => outcome.containers += count(&order.containers),
                Err(error) => outcome.errors.push(format!("{}: {}", error.reason, error.message)),
            }
        }
        if !order.sandboxes.is_empty() {
            match self.runtime.remove_sandboxes(&order.sandboxes).await {
                Ok(_) => outcome.containers += count(&order.sandboxes),
                Err(error) => outcome.errors.push(format!("{}: {}", error.reason, error.message)),
            }
        }
        if !order.images {
            return;
        }
        if let Err(error) = self.look(images).await {
            outcome.errors.push(format!("images cannot be listed: {error}"));
            return;
        }
        let go = images.all_unused(&self.policy, Clock.now().mono);
        let go = go.into_iter().map(|(id, size)| (id, size, Reason::Space)).collect();
        self.remove(go, outcome).await;
    }

    /// The ordinary look: what is too old, and as much as the disk wants.
    async fn collect(&self, images: &mut Images, room: Option<FsRoom>, began: Micros) -> Result<(), String> {
        self.look(images).await?;
        let go = images.collect(&self.policy, room, began, Clock.now().mono);
        let missing = room.map_or(0, |room| beelet_core::images::to_free(&self.policy, room));
        if go.is_empty() && missing == 0 {
            return Ok(());
        }
        if self.observe {
            let names: Vec<&str> = go.iter().map(|(id, ..)| id.as_str()).collect();
            info!(images = names.join(", "), "unused images would be removed");
            return Ok(());
        }
        let mut outcome = Reclaimed::default();
        self.remove(go, &mut outcome).await;
        if outcome.errors.is_empty() && outcome.freed.get() >= missing {
            info!("{outcome}");
        } else {
            // The kubelet's event FreeDiskSpaceFailed.
            let missing = Bytes(missing);
            warn!(%missing, "unused images were not enough for imageGCLowThresholdPercent: {outcome}");
        }
        Ok(())
    }

    async fn remove(&self, go: Vec<(String, Bytes, Reason)>, outcome: &mut Reclaimed) {
        let mut failed = Vec::new();
        for (id, size, reason) in go {
            match self.runtime.remove_image(&id).await {
                Ok(()) => {
                    info!(image = id, %size, reason = reason.as_str(), "an image that nobody uses was removed");
                    outcome.images += 1;
                    outcome.freed += size;
                }
                Err(error) => failed.push(format!("{id}: {error}")),
            }
        }
        let more = failed.len().saturating_sub(NAMED);
        failed.truncate(NAMED);
        if more > 0 {
            failed.push(format!("and {more} more"));
        }
        outcome.errors.extend(failed);
    }
}
