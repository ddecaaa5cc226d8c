//! The network devices of this thread's network namespace, and the route that leads out.
//!
//! **Approach.** `/proc/thread-self/net/dev` and `route`: `thread-self`, as `/proc/net` is of the process' first thread, which is in
//! another namespace while this one visits.
//!
//! **Properties.** What the stock kubelet reads, so the numbers are the same: "dropped" on receiving includes packets missed for
//! want of buffers (net/core/net-procfs.c, `dev_seq_printf_stats`). Counters are 64 bits wide. A malformed line is left out.

use std::{fs, io};

use beelet_core::sample::NetworkReading;
use beelet_core::telemetry::InterfaceReading;

/// The devices but loopback, in the kernel's order.
///
/// # Errors
/// If the file cannot be read.
pub fn interfaces() -> io::Result<Vec<InterfaceReading>> {
    Ok(devices_of(&fs::read_to_string("/proc/thread-self/net/dev")?))
}

/// The device of the IPv4 default route with the lowest metric; `None` where there is no such route.
///
/// # Errors
/// If the file cannot be read.
pub fn default_route() -> io::Result<Option<String>> {
    Ok(route_of(&fs::read_to_string("/proc/thread-self/net/route")?))
}

fn devices_of(text: &str) -> Vec<InterfaceReading> {
    // Two lines of headings.
    text.lines().skip(2).filter_map(device_of).filter(|device| device.name != "lo").collect()
}

/// `name: bytes packets errs drop fifo frame compressed multicast` of what was received, then `bytes packets errs drop fifo colls
/// carrier compressed` of what was sent.
fn device_of(line: &str) -> Option<InterfaceReading> {
    let (name, numbers) = line.rsplit_once(':')?;
    let mut numbers = numbers.split_ascii_whitespace().map(|word| word.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    let (rx_bytes, rx_packets, rx_errors, rx_dropped) = (next()?, next()?, next()?, next()?);
    for _ in 0..4 {
        next()?;
    }
    let (tx_bytes, tx_packets, tx_errors, tx_dropped) = (next()?, next()?, next()?, next()?);
    Some(InterfaceReading {
        name: name.trim().to_owned(),
        traffic: NetworkReading { rx_bytes, rx_packets, tx_bytes, tx_packets },
        rx_errors,
        rx_dropped,
        tx_errors,
        tx_dropped,
    })
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`; the default route has destination and mask 0.
fn route_of(text: &str) -> Option<String> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_default = words.get(1) == Some(&"00000000") && words.get(7) == Some(&"00000000");
        let metric: u64 = words.get(6)?.parse().ok()?;
        if is_default { Some((metric, (*words.first()?).to_owned())) } else { None }
    });
    routes.min_by_key(|(metric, _)| *metric).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
eth0.5:18446744073709551615       2    3    4    5     6          7         8       9      10   11   12   13    14      15         16
  eth1: x 1
";

    #[test]
    fn a_device_is_read_and_loopback_and_broken_lines_are_left_out() {
        let expected = InterfaceReading {
            name: "eth0.5".to_owned(),
            traffic: NetworkReading { rx_bytes: u64::MAX, rx_packets: 2, tx_bytes: 9, tx_packets: 10 },
            rx_errors: 3,
            rx_dropped: 4,
            tx_errors: 11,
            tx_dropped: 12,
        };
        assert_eq!(devices_of(DEV), [expected]);
    }

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let text = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth1\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
";
        assert_eq!(route_of(text).as_deref(), Some("eth0"));
        assert_eq!(route_of(text.lines().next().unwrap()), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "([a-z0-9: |]{0,40}\n){0,5}") {
            let _ = (devices_of(&text), route_of(&text));
        }
    }
}
