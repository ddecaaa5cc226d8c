//! The cycle: one task owns the world, takes events, and hands out the actions.
//!
//! Properties: no lock around state; a sample is taken before other events, because near an OOM it is the most urgent; news is
//! published at once, but pictures take no more than one part in [`PUBLISH_SHARE`] of the time ([`pause`]: a picture of 100 pods takes
//! 0.5 ms, so one of them may follow 10 ms after another); most samples change nothing but readings, which are published every
//! [`PUBLISH_IDLE`]; events that never stop coming hold up neither a sample, nor what is due at a time, nor the picture; and samples
//! that come faster than they can be judged (the sampler has precedence on a node without CPU to spare) hold up no event: after each,
//! one event has its turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use beelet_core::World;
use beelet_core::event::{Action, Event, Record, RuntimeFacts};
use beelet_core::sample::Sample;
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::disks;
use super::notes::{Note, Notes};
use crate::act::{CriRuntime, Executor};
use crate::clock::{Clock, thread_cpu};
use crate::measure::{Command, SampleReceiver, Sampler, Target};
use crate::report::{Published, words};
use crate::runtime::{Runtime, RuntimeError};

/// Pictures take at most one part in so many of the time, ...
const PUBLISH_SHARE: u32 = 20;
/// ... are published this far apart at most, where they are slow to make and there is news, ...
const PUBLISH_NEWS: Duration = Duration::from_millis(100);
/// ... and this often if there are new readings only, so that whoever watches sees that the cycle goes on.
const PUBLISH_IDLE: Duration = Duration::from_secs(1);

/// How long the next picture has to wait, by the CPU time that the last one took.
fn pause(took: Duration) -> Duration {
    (took * PUBLISH_SHARE).min(PUBLISH_NEWS)
}

/// What the cycle works with.
pub(super) struct Cycle {
    pub(super) world: World,
    pub(super) clock: Clock,
    pub(super) events: mpsc::UnboundedReceiver<Event>,
    pub(super) samples: SampleReceiver,
    /// `None` beside a kubelet: there is nobody who could act.
    pub(super) executor: Option<Executor<CriRuntime>>,
    pub(super) sampler: Sampler,
    pub(super) relist: Arc<Notify>,
    pub(super) disks: disks::Orders,
    pub(super) notes: Notes,
    pub(super) published: Published,
}

impl Cycle {
    /// Runs until it is told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Option<Executor<CriRuntime>> {
        let mut wake: Option<Instant> = None;
        let mut publish = Instant::now();
        let mut not_before = publish;
        let mut news = false;
        let mut targets = Vec::new();
        let (mut ticked, mut sampled) = (false, false);
        loop {
            if Instant::now() >= publish {
                let began = thread_cpu();
                if news {
                    self.aim(&mut targets);
                }
                self.published.publish(self.world.snapshot(self.clock.now()));
                let took = Duration::from_micros((thread_cpu() - began).get());
                publish = Instant::now() + PUBLISH_IDLE;
                not_before = Instant::now() + pause(took);
                news = false;
            }
            // Never twice in a row without a look at what else there is.
            let due = !ticked && wake.is_some_and(|at| at <= Instant::now());
            let far = Instant::now() + Duration::from_secs(3_600);
            let waiting = if sampled { self.events.try_recv().ok() } else { None };
            let event = match waiting {
                Some(event) => event,
                None => tokio::select! {
                    biased;
                    () = stop.cancelled() => break,
                    () = std::future::ready(()), if due => Event::Tick,
                    sample = self.samples.next() => Event::Sample(sample),
                    Some(event) = self.events.recv() => event,
                    () = sleep_until(wake.unwrap_or(far)) => Event::Tick,
                    () = sleep_until(publish) => continue,
                },
            };
            ticked = event == Event::Tick;
            sampled = matches!(event, Event::Sample(_));
            if ticked {
                wake = None;
            }
            let is_new = if matches!(&event, Event::Sample(sample) if self.is_full(sample)) {
                let began = thread_cpu();
                let is_new = self.step(event, &mut wake);
                let spent = (thread_cpu() - began).get();
                self.sampler.health().judged_us.fetch_add(spent, Ordering::Relaxed);
                is_new
            } else if matches!(event, Event::Done { .. } | Event::Runtime(_)) {
                // New containers are to be known before their first event comes.
                let is_new = self.step(event, &mut wake);
                self.aim(&mut targets);
                is_new
            } else {
                self.step(event, &mut wake)
            };
            if is_new && !news {
                publish = publish.min(not_before);
                news = true;
            }
        }
        self.published.publish(self.world.snapshot(self.clock.now()));
        self.notes.stop();
        self.executor
    }

    /// A look at all pods, and not at some of which the kernel told something.
    fn is_full(&self, sample: &Sample) -> bool {
        sample.at.get() == self.sampler.health().full_at_us.load(Ordering::Relaxed)
    }

    /// Whether somebody who watches would call it news.
    fn step(&mut self, event: Event, wake: &mut Option<Instant>) -> bool {
        let now = self.clock.now();
        let mut news = matches!(
            event,
            Event::Pods { .. }
                | Event::Runtime(_)
                | Event::RuntimeDown { .. }
                | Event::Done { .. }
                | Event::Remembered(_)
        );
        let known = self.world.probe_news();
        for action in self.world.step(event, now) {
            let hardly = matches!(
                action,
                Action::SampleEvery { .. } | Action::LookAtDisks { .. } | Action::WakeAt(_) | Action::Probe { .. }
            );
            news |= !hardly;
            match action {
                Action::Pod { .. }
                | Action::Probe { .. }
                | Action::Refresh(_)
                | Action::Cancel { .. }
                | Action::Kill { .. }
                | Action::Knob(_)
                | Action::ReclaimMemory { .. }
                | Action::Cgroups(_) => {
                    let left = match &self.executor {
                        Some(executor) => executor.execute(action),
                        None => Some(action),
                    };
                    if let Some(left) = left {
                        error!(?left, "an action that nobody executes; beside a kubelet nothing may be done");
                    }
                }
                Action::Relist => self.relist.notify_one(),
                Action::LookAtDisks { interval } => _ = self.disks.look.send(interval),
                Action::Reclaim { containers, sandboxes, images } => {
                    // Nobody takes it while the agent ends, and beside a kubelet none comes.
                    let _ = self.disks.reclaim.send(disks::Wanted { containers, sandboxes, images });
                }
                Action::SampleEvery { interval, all_pods, stretch } => {
                    self.sampler.tell(Command::Pace { interval, all_pods, stretch });
                }
                Action::WakeAt(at) => {
                    *wake = Some(Instant::now() + Duration::from_micros((at - now.mono).0));
                }
                Action::Remember(end) => self.notes.take(Note::Remember(end)),
                Action::Going { uid, until } => self.notes.take(Note::Going(uid, until)),
                Action::Note(note) => self.notes.take(Note::Shown(note)),
                Action::Forget(uid) => self.notes.take(Note::Forget(uid)),
                Action::Record(record) => tell(&record),
            }
        }
        news || self.world.probe_news() != known
    }

    /// Tells the sampler which pods there are, if that has changed.
    fn aim(&self, before: &mut Vec<Target>) {
        let config = self.world.config();
        let mut targets = Vec::new();
        for (uid, pod) in self.world.pods() {
            if pod.sandboxes.is_empty() && pod.containers.is_empty() {
                continue;
            }
            // Ended ones too: the kernel's last words of them may still be on their way.
            let containers: BTreeMap<String, String> =
                pod.containers.iter().map(|c| (c.id.clone(), c.name.clone())).collect();
            targets.push(Target {
                uid: PodUid::clone(uid),
                cgroup: pod.cgroup(config),
                containers: containers.into_iter().collect(),
                host_network: pod.spec.host_network,
                logs: crate::runtime::paths::log_dir_name(&pod.spec),
            });
        }
        if *before != targets {
            before.clone_from(&targets);
            self.sampler.tell(Command::Aim(targets));
        }
    }
}

/// A record goes to the log, in the words of an event.
fn tell(record: &Record) {
    let container = record.container.as_deref().unwrap_or_default();
    let evidence = || {
        let all: Vec<String> = record.evidence.iter().map(|(k, v)| format!("{k}={v}")).collect();
        words::plain(&all.join("; ")).into_owned()
    };
    // Some of it is the runtime's or a container's own words.
    let message = words::plain(&record.message);
    if record.warning {
        warn!(pod = record.name, container, reason = record.reason, evidence = evidence(), "{message}");
    } else if record.reason == "Exited" || !record.evidence.is_empty() {
        info!(pod = record.name, container, reason = record.reason, evidence = evidence(), "{message}");
    } else {
        info!(pod = record.name, container, reason = record.reason, "{message}");
    }
}

/// Completes "the container runtime does not answer: ".
fn why_down(endpoint: &str, error: &RuntimeError) -> String {
    match error {
        RuntimeError::Unavailable { rpc, reason } => format!("{reason} ({rpc} at {endpoint})"),
        other => format!("{other} (at {endpoint})"),
    }
}

/// Lists what the runtime has, whenever asked and at least every `period`, never twice at once. `answered` is the moment of the
/// last answer, good or bad, in microseconds of the monotonic clock.
pub(super) async fn list(
    runtime: Arc<Runtime>,
    clock: Clock,
    relist: Arc<Notify>,
    period: tokio::sync::watch::Receiver<Micros>,
    mut leftovers: Vec<(PodUid, String)>,
    events: mpsc::UnboundedSender<Event>,
    answered: Arc<AtomicU64>,
) {
    // What comes in a burst is answered by one listing.
    const GATHER: Duration = Duration::from_millis(5);
    // A listing makes the runtime look at all that it has: while a hundred pods start, and each step of each of them is news, listings
    // take at most one part in so many of the time, and one that is slow holds up the next no longer than this.
    const SHARE: u32 = 5;
    const LONGEST: Duration = Duration::from_millis(500);
    loop {
        let (asked, began) = (clock.now().mono, Instant::now());
        let event = match runtime.facts(asked).await {
            Ok(facts) => Event::Runtime(RuntimeFacts { leftovers: std::mem::take(&mut leftovers), ..facts }),
            Err(error) => Event::RuntimeDown { reason: why_down(runtime.endpoint(), &error) },
        };
        answered.store(clock.now().mono.0, Ordering::Relaxed);
        let down = matches!(event, Event::RuntimeDown { .. });
        if events.send(event).is_err() {
            debug!("the cycle has ended");
            return;
        }
        let ended = Instant::now();
        let not_before = ended + ((ended - began) * (SHARE - 1)).min(LONGEST);
        let period = Duration::from_micros(period.borrow().0);
        if down {
            tokio::time::sleep(period.min(Duration::from_secs(1))).await;
            continue;
        }
        tokio::select! {
            () = relist.notified() => sleep_until(not_before.max(Instant::now() + GATHER)).await,
            () = tokio::time::sleep(period) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_take_a_twentieth_of_the_time_and_news_waits_for_none_long() {
        for (took_us, pause_us) in [(0, 0), (50, 1_000), (500, 10_000), (5_000, 100_000), (60_000, 100_000)] {
            assert_eq!(pause(Duration::from_micros(took_us)), Duration::from_micros(pause_us));
        }
    }
}
