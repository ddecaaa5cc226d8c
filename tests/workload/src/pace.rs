//! Steadiness: what should have been done by now, in 10 ms steps.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

/// The length of a step.
pub(crate) const STEP: Duration = Duration::from_millis(10);

/// Calls `work` at each step with the amount by which the total falls behind `rate` per second, until it returns false.
pub(crate) fn at_rate(rate: u64, mut work: impl FnMut(u64) -> bool) {
    let start = Instant::now();
    let mut done: u64 = 0;
    loop {
        let due = u64::try_from(u128::from(rate) * start.elapsed().as_micros() / 1_000_000).unwrap_or(u64::MAX);
        let amount = due.saturating_sub(done);
        done = due;
        if !work(amount) {
            return;
        }
        std::thread::sleep(STEP);
    }
}

/// Burns that share of cores: whole cores in full, the rest of one by duty cycle.
pub(crate) fn spin(cores: f64, time: Option<Duration>) -> io::Result<()> {
    if !(0.0..=1024.0).contains(&cores) {
        return Err(io::Error::other(format!("--cores {cores} is not between 0 and 1024")));
    }
    let mut left = cores;
    while left > 1.0 {
        std::thread::spawn(|| burn(1.0, None));
        left -= 1.0;
    }
    burn(left, time);
    Ok(())
}

/// Burns a share of one core. Paced by the thread's own CPU clock, so that what others take is made up for.
fn burn(share: f64, time: Option<Duration>) {
    let start = Instant::now();
    let used = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
    };
    let mut deadline = start;
    while time.is_none_or(|time| start.elapsed() < time) {
        let goal = start.elapsed().mul_f64(share).min(used() + STEP) + STEP.mul_f64(share);
        let mut x = 0_u64;
        while used() < goal && deadline.elapsed() < STEP {
            for _ in 0..2000 {
                x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        }
        deadline += STEP;
        let now = Instant::now();
        if deadline > now {
            std::thread::sleep(deadline - now);
        } else {
            deadline = now;
        }
    }
}

/// Does nothing until the process ends.
pub(crate) fn forever() -> ! {
    loop {
        std::thread::park();
    }
}
