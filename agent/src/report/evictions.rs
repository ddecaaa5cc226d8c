//! What evictions count: how many, how old what they rested on was, what decided, and what they gained.

use beelet_core::evict::{By, Durations};
use beelet_core::snapshot::Totals;
use prometheus::proto;

use super::metrics::{Rows, Value, bytes, cumulative, seconds};

/// By signal, for each that is known; zeros, too, so that a first one is an increase.
pub(super) fn totals(rows: &mut Rows, totals: &Totals) {
    for (signal, count) in &totals.evictions {
        rows.put("kubelet_evictions", &[signal], *count as f64);
        rows.put("beelet_evictions_total", &[signal], *count as f64);
    }
    for (signal, counts) in &totals.eviction_counts {
        rows.row("kubelet_eviction_stats_age_seconds", &[signal], Value::Histogram(durations(&counts.age)));
        rows.put("beelet_eviction_freed_bytes_total", &[signal], bytes(counts.freed));
        rows.row("beelet_eviction_free_seconds", &[signal], Value::Histogram(durations(&counts.free)));
        rows.put("beelet_evictions_in_vain_total", &[signal], counts.in_vain as f64);
        for by in By::COUNTED.map(By::as_str) {
            let count = counts.decided.get(by).copied().unwrap_or(0);
            rows.put("beelet_eviction_decided_total", &[signal, by], count as f64);
        }
    }
}

fn durations(value: &Durations) -> proto::Histogram {
    let bounds = Durations::BOUNDS.iter().map(|bound| Some(seconds(*bound))).chain([None]);
    cumulative(bounds.zip(value.counts), seconds(value.sum))
}
