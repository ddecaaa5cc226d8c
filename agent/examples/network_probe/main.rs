//! Shows what beelet's eBPF programs tell of the network, and proves it against what was done and what the kernel counts.
//!
//! Makes two network namespaces joined by a pair of devices, and two cgroups; in one of each is a server, in the other a
//! client that does what it is told. Needs root, `ip`, and the object that `cargo xtask build-ebpf` makes.
//!
//!     cargo run -p beelet --example network_probe -- [OBJECT]
//!
//! Exit code 0: every check passed (those that this machine cannot run are named). 1: a check failed. 77: nothing could run.

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use beelet::kernel::{
    btf::Btf,
    cgroup::CgroupLayout,
    drop_reasons::DropReasons,
    loader::{LoadOptions, ProgramCost, Programs},
    maps::Counters,
};
use beelet_ebpf_common::{
    Counts, DnsRecord, Histogram, MOST_PORTS, NetRecord, OTHER_PORTS, PortRecord, TcpRecord, program,
};

use bed::{Bed, Outcome, Side};

mod bed;
mod peers;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let Some(("child", rest)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return match peers::run(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("network_probe: {rest:?}: {error:#}");
                ExitCode::from(99)
            }
        };
    }
    let object = arguments.first().map_or_else(|| PathBuf::from("target/bpf/beelet-ebpf"), PathBuf::from);
    run(&object).unwrap_or_else(|error| {
        eprintln!("network_probe: NOT RUN: {error:#}");
        ExitCode::from(77)
    })
}

fn run(object: &Path) -> Result<ExitCode> {
    let layout = CgroupLayout::detect()?;
    let mut bed = Bed::make(&layout)?;
    let mut programs = Programs::load(object, &LoadOptions::default(), &bed.pods);
    if !programs.report().is_loaded(program::SKB_INGRESS) {
        let reasons: Vec<_> =
            programs.report().programs.iter().map(|it| format!("{}: {}", it.name, it.reason)).collect();
        bail!("the network programs cannot be loaded: {}", reasons.join("; "));
    }
    bed.start()?;
    let counters = programs.take_counters();
    let mut seen = Seen { programs, counters, server: bed.server.cgroup, client: bed.client.cgroup };

    println!("checks");
    let mut failed = 0;
    for (name, check) in CHECKS {
        let (word, text) = match check(&mut bed, &mut seen) {
            Ok(Outcome::Passed(text)) => ("ok", text),
            Ok(Outcome::NotRun(reason)) => ("NOT RUN", reason),
            Err(error) => {
                failed += 1;
                ("FAILED", format!("{error:#}"))
            }
        };
        println!("  {name:<36} {word:<8} {text}");
    }
    println!(
        "\nprograms\n  {:<18} {:<6} {:>8} {:>7} {:>10} {:>9}",
        "name", "loaded", "verified", "insns", "events", "ns/event"
    );
    let report = seen.programs.report();
    let costs = seen.programs.costs();
    for it in &report.programs {
        let cost = costs.iter().find(|cost| cost.name == it.name);
        println!(
            "  {:<18} {:<6} {:>8} {:>7} {:>10} {:>9} {}",
            it.name,
            if it.loaded { "yes" } else { "no" },
            it.verified_insns,
            it.translated_bytes / 8,
            cost.map_or(0, |cost| cost.run_count),
            cost.and_then(ProgramCost::ns_per_event).map_or_else(|| "-".to_owned(), |ns| ns.to_string()),
            it.reason
        );
    }
    println!("  (some 60 ns of each event are the measuring itself)");
    println!("  lost: {:?}, fields that this kernel lacks: {:?}", seen.counters.lost(), report.missing_fields);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A check, by name.
type Check = (&'static str, fn(&mut Bed, &mut Seen) -> Result<Outcome>);

const CHECKS: &[Check] = &[
    ("bytes by protocol against the device", protocols),
    ("20 connects, 20 accepts, 7 refused", connections),
    ("5 resets by the server, 4 by the client", resets),
    ("segments sent again", retransmits),
    ("round-trip times", round_trips),
    ("requests at a server that takes 50 ms", requests),
    ("requests over IPv6", requests_ipv6),
    ("60 ports take no more room than 32", many_ports),
    ("names asked for, answered after 30 ms", dns),
    ("a full receive buffer drops", drops),
    ("what one packet costs", cost),
];

/// What the programs tell.
struct Seen {
    programs: Programs,
    counters: Counters,
    server: u64,
    client: u64,
}

/// All of one cgroup at one time.
#[derive(Clone, Copy)]
struct Now {
    net: NetRecord,
    tcp: TcpRecord,
    dns: DnsRecord,
}

impl Seen {
    fn of(&mut self, side: Side) -> Result<Now> {
        // The last packets of a connection may come after its user has ended.
        std::thread::sleep(Duration::from_millis(150));
        let cgroup = match side {
            Side::Server => self.server,
            Side::Client => self.client,
        };
        self.counters.refresh_fast()?;
        self.counters.refresh_slow()?;
        Ok(Now {
            net: *self.counters.net(cgroup).context("no program tells of packets")?,
            tcp: *self.counters.tcp(cgroup).context("no program tells of connections")?,
            dns: *self.counters.dns(cgroup).context("no program tells of names")?,
        })
    }

    fn port(&mut self, port: u64) -> Result<PortRecord> {
        self.of(Side::Server)?;
        let mut ports = self.counters.ports(self.server).context("no program tells of requests")?;
        Ok(ports.find(|(it, _)| *it == port).map_or_else(PortRecord::default, |(_, record)| *record))
    }

    fn drops(&mut self) -> Result<Vec<(u64, u64)>> {
        self.of(Side::Server)?;
        Ok(self.counters.drops(self.server).context("no program tells of drops")?.collect())
    }
}

/// What was counted between two readings.
fn between<R: Counts>(before: R, after: R) -> R {
    let (mut difference, words) = (after, bytemuck::cast_slice::<R, u64>(std::slice::from_ref(&before)));
    for (word, less) in bytemuck::cast_slice_mut::<R, u64>(std::slice::from_mut(&mut difference)).iter_mut().zip(words)
    {
        *word = word.wrapping_sub(*less);
    }
    difference
}

fn events(histogram: &Histogram) -> u64 {
    histogram.counts.iter().sum()
}

/// How many took this long or longer, to within a slot.
fn at_least(histogram: &Histogram, time: Duration) -> u64 {
    let slot = Histogram::slot(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    histogram.counts[slot..].iter().sum()
}

fn protocols(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    const BYTES: u64 = 4 << 20;
    const ETHERNET: u64 = 14;
    let (before, device_before) = (seen.of(Side::Client)?, bed.device(Side::Client)?);
    bed.client.tell("transfer")?;
    bed.client.tell("udp 200")?;
    bed.client.tell("ping 10")?;
    let (after, device_after) = (seen.of(Side::Client)?, bed.device(Side::Client)?);
    let net = between(before.net, after.net);
    let text = format!(
        "tcp {} B out, {} B in; udp {} B in {}; other {} out, {} in",
        net.tcp.tx_bytes,
        net.tcp.rx_bytes,
        net.udp.tx_bytes,
        net.udp.tx_packets,
        net.other.tx_packets,
        net.other.rx_packets
    );
    for bytes in [net.tcp.tx_bytes, net.tcp.rx_bytes] {
        ensure!((BYTES..BYTES + BYTES / 10).contains(&bytes), "not 4 MiB and headers: {text}");
    }
    // 20 bytes of IP and 8 of UDP.
    ensure!((net.udp.tx_packets, net.udp.tx_bytes) == (200, 200 * 1028), "{text}");
    // A raw socket hears the answers; each is 20 bytes of IP and 64 of ICMP.
    ensure!((net.other.tx_packets, net.other.tx_bytes) == (10, 840) && net.other.rx_packets == 10, "{text}");

    let total = net.total();
    for (what, ours, bytes, packets) in [
        (
            "sent",
            total.tx_bytes,
            device_after.tx_bytes - device_before.tx_bytes,
            device_after.tx_packets - device_before.tx_packets,
        ),
        (
            "received",
            total.rx_bytes,
            device_after.rx_bytes - device_before.rx_bytes,
            device_after.rx_packets - device_before.rx_packets,
        ),
    ] {
        let device = bytes - packets * ETHERNET;
        // Neighbours' talk and the like belong to no socket.
        ensure!((ours..=ours + 2_000).contains(&device), "{what} {ours} B, the device says {device} B; {text}");
    }
    Ok(Outcome::Passed(text))
}

fn connections(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    let (client, server) = (seen.of(Side::Client)?.tcp, seen.of(Side::Server)?.tcp);
    bed.client.tell("connect 20")?;
    bed.client.tell("refused 7")?;
    let client = between(client, seen.of(Side::Client)?.tcp);
    let server = between(server, seen.of(Side::Server)?.tcp);
    let text = format!(
        "{} connects, {} failures, {} in {} us on average, {} accepts, {} resets received",
        client.connects,
        client.connect_failures,
        events(&client.connect),
        client.connect.sum_ns / 1_000 / events(&client.connect).max(1),
        server.accepts,
        client.resets_received
    );
    ensure!((client.connects, client.connect_failures, events(&client.connect)) == (27, 7, 20), "{text}");
    ensure!(at_least(&client.connect, Duration::from_secs(1)) == 0, "{text}");
    ensure!((server.accepts, server.connects, client.accepts) == (20, 0, 0), "{text}");
    ensure!(client.resets_received == 7, "{text}");
    Ok(Outcome::Passed(text))
}

fn resets(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    let (client, server) = (seen.of(Side::Client)?.tcp, seen.of(Side::Server)?.tcp);
    bed.client.tell("reset-by-server 5")?;
    bed.client.tell("reset-by-client 4")?;
    let client = between(client, seen.of(Side::Client)?.tcp);
    let server = between(server, seen.of(Side::Server)?.tcp);
    let told = [client.resets_sent, client.resets_received, server.resets_sent, server.resets_received];
    ensure!(told == [4, 5, 5, 4], "client sent and received, server sent and received: {told:?}");
    Ok(Outcome::Passed(format!("{told:?}")))
}

fn retransmits(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    let (before, file_before) = (seen.of(Side::Client)?.tcp, bed.client.tell("snmp Tcp RetransSegs")?);
    bed.client.send("trickle 1500")?;
    std::thread::sleep(Duration::from_millis(300));
    // Packets go to a neighbour that is not there.
    bed.neighbour("02:00:00:00:00:99")?;
    std::thread::sleep(Duration::from_millis(500));
    bed.neighbour(bed::SERVER_MAC)?;
    bed.client.answer()?;
    let seen = between(before, seen.of(Side::Client)?.tcp).retransmits;
    let file = bed.client.tell("snmp Tcp RetransSegs")?.parse::<u64>()? - file_before.parse::<u64>()?;
    ensure!(file > 0, "nothing was lost");
    ensure!(seen == file, "eBPF {seen}, /proc/net/snmp {file}");
    Ok(Outcome::Passed(format!("eBPF {seen}, /proc/net/snmp {file}")))
}

fn round_trips(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    let before = seen.of(Side::Client)?;
    bed.client.tell("transfer")?;
    let after = seen.of(Side::Client)?;
    let (rtt, packets) = (between(before.tcp.rtt, after.tcp.rtt), after.net.tcp.rx_packets - before.net.tcp.rx_packets);
    let samples = events(&rtt);
    let text = format!("{samples} samples of {packets} packets, {} us on average", rtt.sum_ns / 1_000 / samples.max(1));
    ensure!(samples > 0 && at_least(&rtt, Duration::from_millis(500)) == 0, "{text}");
    Ok(Outcome::Passed(text))
}

fn requests(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    let before = seen.port(8080)?;
    for command in ["http 200 5", "http 404 3", "http 500 2", "unanswered 2"] {
        bed.client.tell(command)?;
    }
    let it = between(before, seen.port(8080)?);
    let text = format!(
        "{} requests, {} answers in {} us on average, by class {:?}, {} unanswered",
        it.requests,
        events(&it.latency),
        it.latency.sum_ns / 1_000 / events(&it.latency).max(1),
        it.http,
        it.unanswered
    );
    ensure!((it.requests, it.unanswered, events(&it.latency)) == (12, 2, 10), "{text}");
    ensure!(it.http == [0, 5, 0, 3, 2], "{text}");
    let in_time = at_least(&it.latency, Duration::from_millis(50)) - at_least(&it.latency, Duration::from_millis(600));
    ensure!(in_time == 10 && it.latency.sum_ns >= 10 * 50_000_000, "not all in the slots of 50 ms: {:?}", it.latency);
    Ok(Outcome::Passed(text))
}

fn requests_ipv6(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    if !bed.ipv6 {
        return Ok(Outcome::NotRun("the kernel has no IPv6".into()));
    }
    let before = seen.port(8080)?;
    bed.client.tell("http6 200 3")?;
    let it = between(before, seen.port(8080)?);
    ensure!((it.requests, events(&it.latency), it.http) == (3, 3, [0, 3, 0, 0, 0]), "{it:?}");
    Ok(Outcome::Passed(format!("{} requests", it.requests)))
}

fn many_ports(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    let all = |seen: &mut Seen| -> Result<(u64, usize)> {
        seen.of(Side::Server)?;
        let ports = seen.counters.ports(seen.server).context("no program tells of requests")?;
        Ok(ports.fold((0, 0), |(requests, n), (_, record)| (requests + record.requests, n + 1)))
    };
    let ((before, _), other) = (all(seen)?, seen.port(OTHER_PORTS)?);
    bed.client.tell("ports 60")?;
    let (after, records) = all(seen)?;
    let other = between(other, seen.port(OTHER_PORTS)?).requests;
    let text = format!("{} requests, {other} of them at other ports; {records} records", after - before);
    ensure!(after - before == 60 && other >= 60 - MOST_PORTS && records as u64 == MOST_PORTS + 1, "{text}");
    Ok(Outcome::Passed(text))
}

fn dns(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    let (client, server) = (seen.of(Side::Client)?.dns, seen.of(Side::Server)?.dns);
    for command in ["dns good 6", "dns none 2", "dns fail 1", "dns lost 1"] {
        bed.client.tell(command)?;
    }
    let it = between(client, seen.of(Side::Client)?.dns);
    let server = between(server, seen.of(Side::Server)?.dns);
    let text = format!(
        "{} queries, {} answers in {} us on average, {} no such name, {} errors",
        it.queries,
        it.answers,
        it.latency.sum_ns / 1_000 / events(&it.latency).max(1),
        it.no_such_name,
        it.errors
    );
    ensure!((it.queries, it.answers, it.no_such_name, it.errors) == (10, 9, 2, 1), "{text}");
    ensure!(events(&it.latency) == 9 && it.latency.sum_ns >= 9 * 30_000_000, "{text}");
    let in_time = at_least(&it.latency, Duration::from_millis(30)) - at_least(&it.latency, Duration::from_millis(600));
    ensure!(in_time == 9, "{:?}", it.latency);
    ensure!(server == DnsRecord::default(), "the server's side is counted: {server:?}");
    Ok(Outcome::Passed(text))
}

fn drops(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    const NAME: &str = "SOCKET_RCVBUFF";
    let btf = Btf::of_kernel()?;
    if btf.tracepoint("kfree_skb")?.len() < 4 {
        return Ok(Outcome::NotRun("this kernel's kfree_skb does not name the receiving socket (before 6.11)".into()));
    }
    let names = DropReasons::of(&btf);
    let of_reason = |drops: Vec<(u64, u64)>| -> u64 {
        drops.iter().filter(|(reason, _)| names.name(*reason) == Some(NAME)).map(|(_, count)| count).sum()
    };
    let (before, file_before) = (of_reason(seen.drops()?), bed.server.tell("snmp Udp RcvbufErrors")?);
    bed.client.tell("flood 300")?;
    let after = of_reason(seen.drops()?) - before;
    let file = bed.server.tell("snmp Udp RcvbufErrors")?.parse::<u64>()? - file_before.parse::<u64>()?;
    ensure!(file > 100, "the buffer took too much: {file} errors");
    ensure!(after == file, "eBPF {after}, /proc/net/snmp {file}");
    Ok(Outcome::Passed(format!("{NAME}: eBPF {after}, /proc/net/snmp {file}")))
}

/// Small packets over one connection to somebody outside the pods: the common path, for nobody is served.
fn cost(bed: &mut Bed, seen: &mut Seen) -> Result<Outcome> {
    const PACKETS: u64 = 20_000;
    let cost = |seen: &Seen, name| seen.programs.costs().into_iter().find(|it| it.name == name);
    let names = [program::SKB_INGRESS, program::SKB_EGRESS];
    let before = names.map(|name| cost(seen, name));
    bed.client.tell(&format!("ping-pong {PACKETS}"))?;
    let mut text = String::new();
    for (name, before) in names.into_iter().zip(before) {
        let (before, after) = (before.context("not loaded")?, cost(seen, name).context("not loaded")?);
        let (events, time) = (after.run_count - before.run_count, after.run_time.saturating_sub(before.run_time));
        if events == 0 {
            return Ok(Outcome::NotRun("the kernel keeps no statistics".into()));
        }
        ensure!((PACKETS..PACKETS + PACKETS / 10).contains(&events), "{name} ran {events} times");
        text += &format!("{name} {} ns, ", time.as_nanos() / u128::from(events));
    }
    Ok(Outcome::Passed(text + "of which some 60 are the measuring itself"))
}
