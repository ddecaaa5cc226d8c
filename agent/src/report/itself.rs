//! What the agent tells of itself: what it is, what it costs, what it asks of the runtime, and what answering costs.

use beelet_core::snapshot::Snapshot;

use super::SelfReport;
use super::metrics::{Rows, Value, cumulative, flag, seconds};
use super::scrapes::{Endpoint, Scrapes};
use crate::runtime::operations;

/// The agent.
pub(super) fn agent(rows: &mut Rows, picture: &Snapshot, agent: &SelfReport) {
    rows.put("beelet_build_info", &[&agent.version, &agent.revision, &agent.mode], 1.0);
    rows.put("beelet_last_step_timestamp_seconds", &[], seconds(picture.at.wall));
    rows.put("beelet_sample_interval_seconds", &[], seconds(picture.node.sample_interval));
    for capability in &agent.capabilities {
        rows.put("beelet_capability", &[&capability.name, &capability.reason], flag(capability.available));
    }
    let cost = &picture.node.own_cost;
    if let Some(share) = cost.share {
        rows.put("beelet_own_cpu_cores", &[], share.get() as f64 / 1e6);
    }
    if let Some(looking) = cost.looking {
        rows.put("beelet_own_looking_cores", &[], looking.get() as f64 / 1e6);
    }
    rows.put("beelet_own_budget_cores", &[], cost.budget.get() as f64 / 1e6);
    rows.put("beelet_sampling_stretch_ratio", &[], f64::from(cost.stretch) / 1e3);
    for (what, count) in &picture.node.remembers {
        rows.put("beelet_state_entries", &[what], *count as f64);
    }
    rows.put("beelet_wakeups_total", &[], agent.wakeups as f64);
    for operation in &agent.runtime_operations {
        let kind = &*operation.kind;
        rows.put("kubelet_runtime_operations_total", &[kind], operation.calls() as f64);
        rows.put("kubelet_runtime_operations_errors_total", &[kind], operation.errors as f64);
        let bounds = operations::bounds().map(Some).chain([None]);
        let durations = cumulative(bounds.zip(operation.counts.iter().copied()), seconds(operation.time));
        rows.row("kubelet_runtime_operations_duration_seconds", &[kind], Value::Histogram(durations));
    }
    for rpc in &agent.unimplemented_rpcs {
        rows.put("beelet_runtime_rpc_missing", &[rpc], 1.0);
    }
    for program in &agent.programs {
        rows.put("beelet_bpf_program_loaded", &[&program.name, &program.reason], flag(program.loaded));
        rows.put("beelet_bpf_program_instructions", &[&program.name], program.instructions as f64);
        rows.put("beelet_bpf_program_run_seconds_total", &[&program.name], program.run_time_ns as f64 / 1e9);
        rows.put("beelet_bpf_program_runs_total", &[&program.name], program.run_count as f64);
        rows.put("beelet_bpf_program_missed_total", &[&program.name], program.missed as f64);
        if let Some(ns) = program.ns_per_event {
            rows.put("beelet_bpf_program_event_seconds", &[&program.name], ns as f64 / 1e9);
        }
    }
    for look in &agent.looks {
        rows.put("beelet_looks_total", &[&look.kind], look.count as f64);
        rows.put("beelet_look_seconds_total", &[&look.kind], seconds(look.total));
        if let Some(last) = look.last {
            rows.put("beelet_look_duration_seconds", &[&look.kind], seconds(last));
        }
    }
    for (how, count) in &agent.readings {
        rows.put("beelet_cgroup_readings_total", &[how], *count as f64);
    }
    for map in &agent.maps {
        rows.put("beelet_bpf_map_entries", &[&map.name], map.entries as f64);
        rows.put("beelet_bpf_map_max_entries", &[&map.name], map.max_entries as f64);
    }
    for (how, count) in &agent.logs {
        rows.put("beelet_container_logs_total", &[how], *count as f64);
    }
    for (what, count) in &agent.log_faults {
        rows.put("beelet_container_log_errors_total", &[what], *count as f64);
    }
    for (what, count) in &agent.events_lost {
        rows.put("beelet_events_lost_total", &[what], *count as f64);
    }
}

/// What answering costs. An endpoint that nobody asked has no size and no time.
pub(super) fn asked(rows: &mut Rows, scrapes: &Scrapes) {
    for endpoint in Endpoint::ALL {
        let (path, cost) = (endpoint.path(), scrapes.of(endpoint));
        rows.put("beelet_scrapes_total", &[path], cost.answers as f64);
        rows.put("beelet_series_dropped_total", &[path], cost.dropped as f64);
        if cost.answers > 0 {
            rows.put("beelet_scrape_duration_seconds", &[path], cost.last.as_secs_f64());
            rows.put("beelet_scrape_size_bytes", &[path], cost.bytes as f64);
        }
    }
}
