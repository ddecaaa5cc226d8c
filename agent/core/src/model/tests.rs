use super::*;
use crate::sample::MemoryReading;
use proptest::prelude::*;

fn reading(id: u64, cpu_ms: u64, anon_mib: u64) -> CgroupReading {
    let anon = Bytes::mib(anon_mib);
    CgroupReading {
        id,
        cpu: Some(CpuReading { usage: Some(Micros::millis(cpu_ms)), ..CpuReading::default() }),
        memory: Some(MemoryReading { usage: anon, anon, limit: Some(Bytes::gib(1)), ..MemoryReading::default() }),
        ..CgroupReading::default()
    }
}

#[test]
fn a_rate_exists_only_within_one_cgroup() {
    let mut model = CgroupModel::default();
    model.observe(Micros::secs(1), &reading(1, 100, 10));
    assert_eq!(model.cpu(), None);
    model.observe(Micros::secs(2), &reading(1, 600, 10));
    assert_eq!(model.cpu(), Some(MilliCpu(500)));
    model.observe(Micros::secs(3), &reading(2, 700, 900));
    assert_eq!((model.cpu(), model.growth()), (None, None));
    model.observe(Micros::secs(4), &reading(2, 900, 900));
    assert_eq!(model.cpu(), Some(MilliCpu(200)));
}

#[test]
fn cpu_rates_span_half_a_second() {
    let mut model = CgroupModel::default();
    for i in 0..=100_u64 {
        // The counter moves in steps of 40 ms: over 20 ms that would be 0 or 2 cores.
        model.observe(Micros::millis(1_000 + 20 * i), &reading(1, i / 2 * 40, 10));
        if let Some(cpu) = model.cpu() {
            assert!((900..=1_100).contains(&cpu.get()), "{cpu}");
        }
    }
    assert!(model.cpu().is_some());
}

#[test]
fn stale_and_backward_readings() {
    let mut model = CgroupModel::default();
    assert!(model.observe(Micros::secs(1), &reading(1, 100, 10)));
    assert!(model.observe(Micros::secs(2), &reading(1, 600, 10)));
    assert!(!model.observe(Micros::secs(2), &reading(1, 9_600, 10)));
    assert!(!model.observe(Micros::millis(1_500), &reading(1, 9_600, 10)));
    assert_eq!(model.cpu(), Some(MilliCpu(500)));
    model.observe(Micros::secs(3), &reading(1, 500, 10));
    assert_eq!(model.cpu(), None);
}

#[test]
fn throttling_and_pressure() {
    let with = |periods, throttled, stall| CgroupReading {
        cpu: Some(CpuReading {
            periods: Some(periods),
            throttled_periods: Some(throttled),
            throttled: Some(Micros::millis(throttled * 50)),
            ..CpuReading::default()
        }),
        pressure: Some(crate::sample::PressureReading::memory_some(Micros::millis(stall))),
        ..CgroupReading::default()
    };
    let mut model = CgroupModel::default();
    model.observe(Micros::secs(1), &with(0, 0, 0));
    assert_eq!(model.throttled_at(), None);
    model.observe(Micros::secs(2), &with(10, 4, 250));
    assert_eq!(model.throttled_at(), Some(Micros::secs(2)));
    assert_eq!(model.memory_stalled(), Some(Ppm(250_000)));
    let throttling = model.throttling().unwrap();
    assert_eq!((throttling.periods, throttling.throttled_periods, throttling.time), (10, 4, Micros::millis(200)));
    model.observe(Micros::secs(3), &with(20, 4, 250));
    assert_eq!(model.throttled_at(), Some(Micros::secs(2)));
}

#[test]
fn own_limit() {
    let mut model = CgroupModel::default();
    for i in 1..=5 {
        model.observe(Micros::millis(100 * i), &reading(1, 0, 100 * i));
    }
    let forecast = model.forecast_own().unwrap();
    assert_eq!(forecast.slope, 1_000 << 20);
    assert_eq!(forecast.time_to_oom, Micros::millis(524));
}

#[test]
fn the_nodes_cpu() {
    let mut node = NodeModel::default();
    let reading =
        |busy, idle| NodeReading { cpu_busy: Micros::secs(busy), cpu_idle: Micros::secs(idle), ..Default::default() };
    node.observe(Micros::secs(1), &reading(100, 200));
    assert_eq!(node.idle_share(), None);
    node.observe(Micros::secs(3), &reading(101, 203));
    assert_eq!(
        (node.busy(), node.idle(), node.idle_share()),
        (Some(MilliCpu(500)), Some(MilliCpu(1_500)), Some(Ppm(750_000)))
    );
}

proptest! {
    #[test]
    fn any_readings_are_taken(samples in prop::collection::vec((any::<u64>(), 0_u64..3, any::<u64>(), any::<u64>()), 0..40)) {
        let mut model = CgroupModel::default();
        for (at, id, cpu, memory) in samples {
            let r = CgroupReading {
                id,
                cpu: Some(CpuReading { usage: Some(Micros(cpu)), periods: Some(memory), ..CpuReading::default() }),
                memory: Some(MemoryReading { usage: Bytes(memory), inactive_file: Bytes(cpu), ..MemoryReading::default() }),
                ..CgroupReading::default()
            };
            let before = model.last().map(|(at, r)| (at, r.id));
            model.observe(Micros(at), &r);
            if before.is_some_and(|(_, last)| last != id) {
                prop_assert_eq!(model.cpu(), None);
            }
        }
    }
}

/// A reading that was taken at `read` and is told of later.
fn held(read: Micros, cpu_ms: u64) -> CgroupReading {
    CgroupReading { at: read, ..reading(1, cpu_ms, 10) }
}

#[test]
fn a_held_reading_says_nothing_for_a_second_and_then_that_nothing_ran() {
    let mut model = CgroupModel::default();
    model.observe(Micros::secs(1), &held(Micros::secs(1), 0));
    model.observe(Micros::secs(2), &held(Micros::secs(2), 800));
    assert_eq!(model.cpu(), Some(MilliCpu(800)));
    // Near the wall looks are 20 ms apart: what is not read anew yet is not idle.
    for i in 1..50 {
        assert!(model.observe(Micros::millis(2_000 + 20 * i), &held(Micros::secs(2), 800)));
        assert_eq!(model.cpu(), Some(MilliCpu(800)));
    }
    model.observe(Micros::secs(3), &held(Micros::secs(2), 800));
    assert_eq!(model.cpu(), Some(MilliCpu(0)));
    for at in 4..60 {
        model.observe(Micros::secs(at), &held(Micros::secs(2), 800));
        assert_eq!((model.cpu(), model.growth()), (Some(MilliCpu(0)), Some(0)));
    }
    // It runs again: its rate is that of now, not that of the minute.
    model.observe(Micros::secs(60), &held(Micros::secs(60), 1_300));
    assert_eq!(model.cpu(), Some(MilliCpu(500)));
    // A task that is alone on a CPU for most of a second looks as if nothing ran: its time is not lost.
    model.observe(Micros::millis(60_600), &held(Micros::secs(60), 1_300));
    model.observe(Micros::secs(61), &held(Micros::secs(61), 2_300));
    assert_eq!(model.cpu(), Some(MilliCpu(1_000)));
}
