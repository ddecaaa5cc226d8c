//! What the agent tells of itself, once a second.
//!
//! Problem: an agent that measures others must not hide what it costs itself. Approach: one task owns the loaded programs; it
//! lets [`BpfMeter`] say when their statistics are on, adds up the agent's own CPU time, and hands both to the core, whose budget
//! decides how often to look.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use beelet_core::event::Event;
use beelet_core::units::Micros;
use beelet_ebpf_common::Lost;
use tokio::sync::mpsc;
use tracing::debug;

use super::bpf_meter::BpfMeter;
use crate::clock::{Clock, process_cpu};
use crate::kernel::loader::Programs;
use crate::measure::{Health, Sampler, Slow};
use crate::report::process::Wakeups;
use crate::report::{AgentReport, LookReport, MapUse, Program, SelfReport};
use crate::runtime::Runtime;

/// Wake-ups are counted this often: each thread has a file of its own.
const WAKEUPS_EVERY: Micros = Micros::secs(10);

/// Keeps the report of the agent itself fresh.
pub(super) struct SelfReporter {
    pub(super) programs: Programs,
    pub(super) runtime: Arc<Runtime>,
    pub(super) sampler: Sampler,
    pub(super) slow: Slow,
    /// When the runtime last answered.
    pub(super) listed: Arc<AtomicU64>,
    pub(super) report: AgentReport,
    pub(super) clock: Clock,
    pub(super) events: mpsc::UnboundedSender<Event>,
}

impl SelfReporter {
    /// Runs until the task is dropped.
    pub(super) async fn run(mut self) {
        let (mut meter, mut on) = (BpfMeter::default(), false);
        // The eBPF programs' time that the core has been told of.
        let mut bpf = Micros::ZERO;
        let (mut wakeups, mut counted) = (Wakeups::default(), Micros::ZERO);
        let mut last = self.clock.now().mono;
        loop {
            let now = self.clock.now().mono;
            if meter.is_due(now) {
                let wanted = meter.observe(now, &self.programs.costs());
                if wanted != on {
                    self.programs.enable_stats(wanted);
                    on = wanted;
                }
            }
            bpf += Micros((now - last).get().saturating_mul(meter.ns_per_second()) / 1_000_000_000);
            last = now;
            if now - counted >= WAKEUPS_EVERY {
                counted = now;
                wakeups.count();
            }
            let bpf_known = meter.has_measured().then_some(bpf);
            if self.events.send(Event::OwnCost { cpu: process_cpu(), looking: self.looking(), bpf: bpf_known }).is_err()
            {
                debug!("the core has ended");
            }
            self.report.publish(self.report_now(&meter, &wakeups));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// CPU time of full looks, and of judging what they saw: what looking less often saves.
    fn looking(&self) -> Micros {
        let health = self.sampler.health();
        [&health.full_us, &health.judged_us].into_iter().map(|part| Micros(part.load(Ordering::Relaxed))).sum()
    }

    fn report_now(&self, meter: &BpfMeter, wakeups: &Wakeups) -> SelfReport {
        let (health, logs) = (self.sampler.health(), self.runtime.log_health());
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let maps = health.maps.load();
        let uses =
            maps.iter().map(|m| MapUse { name: m.name.to_owned(), entries: m.entries, max_entries: m.max_entries });
        SelfReport {
            programs: self.programs(meter),
            maps: uses.collect(),
            last_sample: Micros(count(&health.last_sample_us)),
            last_listing: Micros(count(&self.listed)),
            events_lost: events_lost(health),
            unimplemented_rpcs: self.runtime.unimplemented().into_iter().map(str::to_owned).collect(),
            runtime_operations: self.runtime.operations().report(),
            sandbox_image: self.runtime.sandbox_image(),
            wakeups: wakeups.total(),
            looks: self.looks(),
            readings: vec![("made".to_owned(), count(&health.readings)), ("held".to_owned(), count(&health.held))],
            logs: logs.done(),
            log_faults: logs.faults(),
            ..SelfReport::clone(&self.report.current())
        }
    }

    fn looks(&self) -> Vec<LookReport> {
        let (health, slow) = (self.sampler.health(), self.slow.health());
        let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let own =
            [("quick", &health.quick), ("full", &health.full), ("detail", &health.detail), ("asked", &health.asked)];
        let own = own.map(|(kind, cost)| LookReport {
            kind: kind.to_owned(),
            count: count(&cost.looks),
            total: Micros(count(&cost.total_us)),
            last: (count(&cost.looks) > 0).then(|| Micros(count(&cost.last_us))),
        });
        let others = [("network", &slow.visits, &slow.network_us), ("storage", &slow.walks, &slow.storage_us)];
        let others = others.map(|(kind, looks, time)| LookReport {
            kind: kind.to_owned(),
            count: count(looks),
            total: Micros(count(time)),
            last: None,
        });
        own.into_iter().chain(others).collect()
    }

    fn programs(&self, meter: &BpfMeter) -> Vec<Program> {
        let of = |p: &crate::kernel::loader::ProgramStatus| {
            let cost = meter.cost(p.name);
            Program {
                name: p.name.to_owned(),
                loaded: p.loaded,
                reason: p.reason.clone(),
                instructions: p.verified_insns.into(),
                run_time_ns: cost.run_ns,
                run_count: cost.runs,
                ns_per_event: cost.ns_per_event,
                missed: cost.missed,
            }
        };
        self.programs.report().programs.iter().map(of).collect()
    }
}

/// What was lost, by what it was.
fn events_lost(health: &Health) -> Vec<(String, u64)> {
    let others = [("sample", &health.dropped), ("flood", &health.flooded), ("stranger", &health.strangers)];
    let ebpf = Lost::ALL.map(Lost::name).into_iter().zip(&health.lost);
    ebpf.chain(others).map(|(what, count)| (what.to_owned(), count.load(Ordering::Relaxed))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_by_kind() {
        let health = Health::default();
        health.set_lost(&[(Lost::Events, 3), (Lost::Disk, 4)]);
        health.strangers.store(5, Ordering::Relaxed);
        let told = events_lost(&health);
        let of = |what: &str| told.iter().find(|(it, _)| it == what).map(|(_, count)| *count);
        let wanted = [("events", 3), ("cpu", 0), ("disk", 4), ("stranger", 5), ("flood", 0), ("sample", 0)];
        for (what, count) in wanted {
            assert_eq!(of(what), Some(count), "{what}");
        }
        assert_eq!(told.len(), Lost::ALL.len() + 3);
    }
}
