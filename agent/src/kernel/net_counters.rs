//! The counters of this thread's network namespace.
//!
//! **Approach.** `/proc/thread-self/net/snmp`, `netstat` and `sockstat`: pairs of lines, names and values, found by name, for their
//! number grows with the kernel's releases.
//!
//! **Properties.** If one of the counters is missing, nothing is told (`None`): a reading of zeros would look like a healthy stack.
//! IPv4 and IPv6 TCP count together; UDP's are of IPv4 and IPv6 added up where `snmp6` is there.

use std::{fs, io};

use beelet_core::telemetry::StackReading;

/// The counters; `None` if the kernel lacks one of them.
///
/// # Errors
/// If a file cannot be read.
pub fn stack() -> io::Result<Option<StackReading>> {
    let read = |name: &str| fs::read_to_string(format!("/proc/thread-self/net/{name}"));
    let six = read("snmp6").unwrap_or_default();
    Ok(stack_of(&read("snmp")?, &read("netstat")?, &read("sockstat")?, &six))
}

fn stack_of(snmp: &str, netstat: &str, sockstat: &str, six: &str) -> Option<StackReading> {
    let tcp = |name| pair(snmp, "Tcp:", name);
    let more = |name| pair(netstat, "TcpExt:", name);
    let udp = |four, other| Some(pair(snmp, "Udp:", four)? + keyed(six, other).unwrap_or(0));
    Some(StackReading {
        listen_overflows: more("ListenOverflows")?,
        listen_drops: more("ListenDrops")?,
        segments_sent: tcp("OutSegs")?,
        retransmits: tcp("RetransSegs")?,
        timeouts: more("TCPTimeouts")?,
        connect_failures: tcp("AttemptFails")?,
        // Packets dropped for a full buffer count as errors, too (net/ipv4/udp.c, `__udp_queue_rcv_skb`).
        udp_receive_errors: udp("InErrors", "Udp6InErrors")?,
        udp_no_port: udp("NoPorts", "Udp6NoPorts")?,
        tcp_sockets: in_use(sockstat)?,
    })
}

/// The value below this name, in the pair of lines that begin with `group`.
fn pair(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split(' ').next() == Some(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_ascii_whitespace().position(|word| word == name)?;
    values.split_ascii_whitespace().nth(place)?.parse().ok()
}

fn keyed(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| if words.next() == Some(name) { words.next()?.parse().ok() } else { None })
}

/// `TCP: inuse 5 orphan 0 ...`: of this namespace, IPv6 included.
fn in_use(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("TCP:"))?;
    let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "inuse");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SNMP: &str = "\
Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs
Tcp: 1 200 120000 -1 5 6 7 8 9 10 11 12
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 1 2 3 4 5 6
";
    const NETSTAT: &str = "\
TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPTimeouts
TcpExt: 1 21 22 23
IpExt: InNoRoutes ListenDrops
IpExt: 1 99
";
    const SOCKSTAT: &str = "sockets: used 9\nTCP: inuse 31 orphan 0 tw 0 alloc 1 mem 0\nUDP: inuse 4 mem 0\n";
    const SNMP6: &str =
        "Udp6NoPorts                     \t40\nUdp6InErrors                    \t50\nUdpLite6NoPorts \t7\n";

    #[test]
    fn counters_are_found_by_name() {
        let expected = StackReading {
            listen_overflows: 21,
            listen_drops: 22,
            segments_sent: 11,
            retransmits: 12,
            timeouts: 23,
            connect_failures: 7,
            udp_receive_errors: 53,
            udp_no_port: 42,
            tcp_sockets: 31,
        };
        assert_eq!(stack_of(SNMP, NETSTAT, SOCKSTAT, SNMP6), Some(expected));
        let without_six = StackReading { udp_receive_errors: 3, udp_no_port: 2, ..expected };
        assert_eq!(stack_of(SNMP, NETSTAT, SOCKSTAT, ""), Some(without_six));
    }

    #[test]
    fn a_kernel_that_lacks_a_counter_tells_nothing() {
        assert_eq!(stack_of(SNMP, &NETSTAT.replace("ListenOverflows", "Other"), SOCKSTAT, SNMP6), None);
        assert_eq!(stack_of("", NETSTAT, SOCKSTAT, SNMP6), None);
        assert_eq!(stack_of(SNMP, NETSTAT, "", SNMP6), None);
    }

    #[test]
    fn the_counters_of_this_kernel_are_understood() {
        assert!(stack().unwrap().is_some());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "((Tcp:|TcpExt:|Udp:|TCP:)[ a-zA-Z0-9-]{0,40}\n){0,6}") {
            let _ = stack_of(&text, &text, &text, &text);
        }
    }
}
