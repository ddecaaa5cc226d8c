//! The rules: what a window says of one pod.
//!
//! Each function gives what it found, `Some(empty)` for "judged, and nothing found", and `None` where there is nothing to judge by.
//! The thresholds are shares of wall-clock time unless they say otherwise.

use crate::spec::PodUid;
use crate::telemetry::{Device, DiskOp, Preemptor};
use crate::units::{Micros, MilliCpu, Ppm};

use super::window::{DetailWindow, NetWindow, NodeWindow, PodWindow, share};
use super::{Cause, Finding, percent};

/// Throttled for less than this is nothing that a request notices: 5 ms of a period of 100 ms. `nr_throttled` would count such a
/// period in full.
pub const THROTTLED: Ppm = Ppm(50_000);
/// Waiting for CPUs for less than this is what any two tasks on one CPU do to each other.
pub const WAITS: Ppm = Ppm(50_000);
/// Throttling or waits must also be this part of the time that the pod's tasks were runnable: a pod of many threads waits a little
/// somewhere all the time.
pub const SLOWED: Ppm = Ppm(100_000);
/// Less idle CPU time than this is none: at 10 % of some CPUs the balancing of the scheduler leaves waits of milliseconds.
pub const NO_IDLE: Ppm = Ppm(100_000);
/// The hypervisor took this much of one CPU's time.
pub const STOLEN: Ppm = Ppm(100_000);
/// More than half: one neighbour, its own threads, the node's services.
pub const MOSTLY: Ppm = Ppm(500_000);
/// A pod that uses this part of all CPU that is used waits for itself.
pub const ALL_ITS_OWN: Ppm = Ppm(800_000);
/// Fewer preemptions than this in a window of details say nothing of who is in the way.
pub const FEW_PREEMPTIONS: u64 = 20;
/// A neighbour must use so much more than it asks for: a twentieth of a CPU is what probes and housekeeping take.
pub const OVER_REQUEST: MilliCpu = MilliCpu(50);
/// And twice as much beyond its request as the pod that waits: of two that both take more than they asked for none is the other's
/// noise.
const TIMES_OWN_EXCESS: u64 = 2;
/// And at least this part of the CPU that all other pods and the node's services use.
const SIZABLE: Ppm = Ppm(250_000);
/// Waiting for memory: TMO and oomd act from 0.1 % to 10 %; at 10 % each tenth second is lost.
pub const MEMORY_WAITS: Ppm = Ppm(100_000);
/// A limit of which this much is in use is near. Page cache fills every limit, so this alone is no sign.
pub const LIMIT_NEAR: Ppm = Ppm(900_000);
/// A node with less memory left than this is short of it.
const NODE_SHORT: Ppm = Ppm(100_000);
/// Waiting for disks: below this a cache that fills at a start or a log that is flushed would count.
pub const IO_WAITS: Ppm = Ppm(200_000);
/// The mean time of a request to a slow disk: SSDs need some 100 us, networked ones some ms, rotating ones 4 ms to 10 ms.
pub const DISK_SLOW: Micros = Micros::millis(10);
/// Fewer requests than this in a window of details have no mean, unless they took most of the time that the pod waited.
pub const FEW_REQUESTS: u64 = 5;
/// More requests than this at the same time (by Little's law) wait for each other: the depth of the queue of a plain SATA disk.
pub const DISK_SHALLOW: u64 = 32;
/// A pod whose requests take less than this part of the time that it waits is held up before they are made.
const BEFORE_THE_DISK: Ppm = Ppm(250_000);
/// Segments sent again: within a data centre below 0.1 %, over the internet 1 % to 2 %; from some 2 % on TCP's throughput breaks in.
pub const PACKETS_LOST: Ppm = Ppm(20_000);
/// Fewer segments in a window of details have no share; and so few sent again are chance.
pub const FEW_SEGMENTS: u64 = 50;
const FEW_AGAIN: u64 = 5;
/// Connections begun that failed.
pub const CONNECTS_LOST: Ppm = Ppm(200_000);
/// Fewer failures in a window of details are chance.
const FEW_FAILURES: u64 = 3;
/// What a lost segment costs at least where no later ones tell of it (`TCP_RTO_MIN`, include/net/tcp.h).
const RTO_MIN: Micros = Micros::millis(200);
/// And a lost SYN (`TCP_TIMEOUT_INIT`).
const SYN_TIMEOUT: Micros = Micros::secs(1);

/// Another pod in the same window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neighbour<'a> {
    pub(super) uid: &'a PodUid,
    pub(super) name: &'a str,
    pub(super) request: Option<MilliCpu>,
    pub(super) used: Option<MilliCpu>,
}

impl Neighbour<'_> {
    /// What it uses beyond its request.
    fn excess(&self) -> MilliCpu {
        self.used.unwrap_or_default() - self.request.unwrap_or_default()
    }
}

fn line(name: &str, value: String) -> (String, String) {
    (name.to_owned(), value)
}

fn ms(time: Micros) -> String {
    format!("{} ms", time.get() / 1_000)
}

fn of(part: Micros, span: Micros) -> String {
    format!("{} in {} ({})", ms(part), ms(span), percent(share(part, span)))
}

fn mean(part: u64, whole: u64) -> Ppm {
    share(Micros(part), Micros(whole))
}

/// Own limit, neighbour, overload.
pub(super) fn cpu(
    uid: &PodUid,
    request: Option<MilliCpu>,
    window: &PodWindow,
    detail: Option<&DetailWindow>,
    node: &NodeWindow,
    others: &[Neighbour<'_>],
) -> Option<Vec<Finding>> {
    let run = window.run?;
    let mut findings = Vec::new();
    findings.extend(own_limit(window, run));
    findings.extend(waits(uid, request, window, run, detail, node, others));
    Some(findings)
}

fn own_limit(window: &PodWindow, run: Micros) -> Option<Finding> {
    let throttled = window.throttled();
    let lost = share(throttled, window.span);
    if lost < THROTTLED || share(throttled, run + throttled) < SLOWED {
        return None;
    }
    let mut evidence = vec![
        line("throttled", of(throttled, window.span)),
        line("ran", of_cpus(run, window.span)),
        line("slowed", format!("{} of its runnable time on CPUs", percent(share(throttled, run + throttled)))),
    ];
    for t in window.throttling.iter().take(3) {
        let whose =
            if t.container.is_empty() { "the pod's quota".to_owned() } else { format!("container {}", t.container) };
        let (all, some) = t.periods;
        evidence.push(line("quota", format!("{whose}: {} throttled, {some} of {all} periods", ms(t.time))));
    }
    Some(Finding { cause: Cause::OwnCpuLimit, lost, evidence })
}

fn of_cpus(time: Micros, span: Micros) -> String {
    format!("{} in {} ({} of a CPU)", ms(time), ms(span), percent(Ppm(time.scale(1_000_000, span.get()).get())))
}

/// Time that tasks waited for CPUs, less what throttling and their own kind account for; with how that is known.
fn foreign_wait(
    uid: &PodUid,
    window: &PodWindow,
    run: Micros,
    detail: Option<&DetailWindow>,
) -> Option<(Micros, Vec<(String, String)>)> {
    let throttled = window.throttled();
    let part = share(throttled, run + throttled);
    let (waited, rest, how) = if let Some(wait) = window.wait {
        // Of all runnable time; see the module's terms.
        (wait, wait - (run + wait).scale(part.get(), 1_000_000), "by eBPF, summed over tasks")
    } else {
        let some = window.some?[0].min(window.span);
        (some, some - window.span.scale(part.get(), 1_000_000), "by cpu.pressure, some task: eBPF does not tell here")
    };
    let (own, all) = preempted_by_own(uid, detail);
    let own = if all >= FEW_PREEMPTIONS { mean(own, all) } else { Ppm(0) };
    let foreign = rest - rest.scale(own.get(), 1_000_000);
    let mut evidence = vec![line("waited", format!("{} for a CPU {how}", of_cpus(waited, window.span)))];
    if throttled > Micros::ZERO {
        evidence.push(line("throttled", format!("{}, taken away from the waits", of(throttled, window.span))));
    }
    if own > Ppm(0) {
        evidence.push(line("own", format!("{} of preemptions were by its own tasks", percent(own))));
    }
    Some((foreign, evidence))
}

fn preempted_by_own(uid: &PodUid, detail: Option<&DetailWindow>) -> (u64, u64) {
    let Some(detail) = detail else { return (0, 0) };
    let sum = |is: &dyn Fn(&Preemptor) -> bool| {
        detail.preempted.iter().filter(|(who, _)| is(who)).map(|(_, n)| *n).fold(0, u64::saturating_add)
    };
    (sum(&|who| matches!(who, Preemptor::Own) || *who == Preemptor::Pod(uid.clone())), sum(&|_| true))
}

fn waits(
    uid: &PodUid,
    request: Option<MilliCpu>,
    window: &PodWindow,
    run: Micros,
    detail: Option<&DetailWindow>,
    node: &NodeWindow,
    others: &[Neighbour<'_>],
) -> Option<Finding> {
    let (foreign, mut evidence) = foreign_wait(uid, window, run, detail)?;
    let lost = share(foreign, window.span);
    let runnable = if window.wait.is_some() { run + foreign } else { window.span };
    if lost < WAITS || share(foreign, runnable) < SLOWED {
        return None;
    }
    let used = window.cpu_in_use().unwrap_or_default();
    let busy = node.busy.unwrap_or_default();
    let stolen = node.stolen.filter(|s| *s >= STOLEN);
    if busy > MilliCpu::ZERO && mean(used.get(), busy.get()) >= ALL_ITS_OWN && stolen.is_none() {
        return None;
    }
    evidence.push(line("uses", asks(used, request)));
    if let (Some(idle), Some(busy)) = (node.idle, node.busy) {
        evidence.push(line("node", format!("{} idle, {busy} CPUs busy", percent(idle))));
    }
    let full = node.idle.is_some_and(|idle| idle < NO_IDLE);
    let own_excess = used - request.unwrap_or_default();
    let pods: MilliCpu = others.iter().filter_map(|o| o.used).sum::<MilliCpu>() + used;
    let services = busy - pods;
    let blame = blame(detail, others, uid);
    let candidate = |o: &&Neighbour<'_>| {
        let excess = o.excess();
        excess >= OVER_REQUEST && excess.get() >= own_excess.get().saturating_mul(TIMES_OWN_EXCESS)
    };
    if let Blame::Pod(who, share_of, counts) = &blame
        && let Some(o) = others.iter().filter(candidate).find(|o| o.uid == *who)
    {
        evidence.push(line("preempted", counts.clone()));
        return Some(neighbour(o, *share_of, lost, evidence));
    }
    let theirs = busy - used;
    let top = others.iter().filter(candidate).max_by_key(|o| (o.excess(), std::cmp::Reverse(o.uid)));
    if let Some(o) = top
        && full
        && !matches!(blame, Blame::System(_))
        && o.used >= Some(services)
    {
        let excess: MilliCpu = others.iter().map(Neighbour::excess).sum();
        let (of_excess, of_use) =
            (mean(o.excess().get(), excess.get()), mean(o.used.unwrap_or_default().get(), theirs.get()));
        if of_excess >= MOSTLY && of_use >= SIZABLE {
            return Some(neighbour(o, of_use, lost, evidence));
        }
    }
    if !full && stolen.is_none() {
        return None;
    }
    if let Some(stolen) = stolen {
        evidence.push(line("stolen", format!("{} of a CPU by the hypervisor", percent(stolen))));
    }
    if let Blame::System(counts) | Blame::Pod(_, _, counts) | Blame::Many(counts) = blame {
        evidence.push(line("preempted", counts));
    }
    evidence.push(line("others", format!("pods use {} CPUs, the node's services {services}", pods - used)));
    Some(Finding { cause: Cause::NodeOverload, lost, evidence })
}

fn asks(used: MilliCpu, request: Option<MilliCpu>) -> String {
    let request = request.map_or_else(|| "a request that is not known".to_owned(), |r| r.to_string());
    format!("{used} CPUs, asks for {request}")
}

fn neighbour(o: &Neighbour<'_>, share: Ppm, lost: Ppm, mut evidence: Vec<(String, String)>) -> Finding {
    let used = asks(o.used.unwrap_or_default(), o.request);
    evidence.push(line("neighbour", format!("{} uses {used}", o.name)));
    Finding { cause: Cause::NoisyNeighbour { pod: o.name.to_owned(), share }, lost, evidence }
}

/// Who took the CPU, by preemptions of others than its own.
enum Blame<'a> {
    Unknown,
    Pod(&'a PodUid, Ppm, String),
    System(String),
    Many(String),
}

fn blame<'a>(detail: Option<&'a DetailWindow>, others: &[Neighbour<'_>], uid: &PodUid) -> Blame<'a> {
    let Some(detail) = detail else { return Blame::Unknown };
    let (own, all) = preempted_by_own(uid, Some(detail));
    let foreign = all - own;
    if foreign < FEW_PREEMPTIONS {
        return Blame::Unknown;
    }
    let is_own = |who: &Preemptor| matches!(who, Preemptor::Own) || *who == Preemptor::Pod(uid.clone());
    let most = detail
        .preempted
        .iter()
        .filter(|(who, _)| !is_own(who))
        .max_by(|(a, n), (b, m)| n.cmp(m).then_with(|| b.cmp(a)));
    let Some((who, n)) = most else { return Blame::Unknown };
    let part = mean(*n, foreign);
    let name = match who {
        Preemptor::Pod(by) => others.iter().find(|o| o.uid == by).map_or_else(|| by.to_string(), |o| o.name.to_owned()),
        Preemptor::Own | Preemptor::System => "the node's services".to_owned(),
    };
    let text = format!("{foreign} times in {} by others, {n} of them by {name}", ms(detail.span));
    match who {
        _ if part < MOSTLY => Blame::Many(text),
        Preemptor::Pod(by) => Blame::Pod(by, part, text),
        Preemptor::Own | Preemptor::System => Blame::System(text),
    }
}

/// Own limit, or the node.
pub(super) fn memory(window: &PodWindow, detail: Option<&DetailWindow>, node: &NodeWindow) -> Option<Vec<Finding>> {
    let reclaim = detail.and_then(|d| Some((d.reclaim?, d.span)));
    let stalled = window.stalled(1);
    let reclaimed = reclaim.map(|((node, limit), span)| share(node + limit, span));
    // PSI says how much; reclaim alone misses waiting for pages that come back.
    let lost = stalled.or(reclaimed)?;
    if lost < MEMORY_WAITS {
        return Some(Vec::new());
    }
    let mut evidence = Vec::new();
    if stalled.is_some() {
        evidence.push(line("waited", format!("{} of the time some task waited for memory", percent(lost))));
    }
    if let Some(((for_node, for_limit), span)) = reclaim {
        evidence.push(line("reclaim_limit", of(for_limit, span)));
        evidence.push(line("reclaim_node", of(for_node, span)));
    }
    if let Some((usage, limit)) = window.memory {
        evidence.push(line("usage", format!("{} bytes of a limit of {limit}", usage.get())));
    }
    if let Some(hits) = window.limit_hits {
        evidence.push(line("limit_hits", hits.to_string()));
    }
    if let Some(left) = node.memory_left {
        evidence.push(line("node", format!("{} of its memory can be had", percent(left))));
    }
    let near = window.memory.is_some_and(|(usage, limit)| mean(usage.get(), limit.get()) >= LIMIT_NEAR);
    let own = match reclaim {
        Some(((for_node, for_limit), _)) if for_node + for_limit > Micros::ZERO => for_limit >= for_node,
        _ => near && window.limit_hits.is_none_or(|hits| hits > 0),
    };
    let short = node.memory_left.is_some_and(|left| left < NODE_SHORT)
        || node.memory_some.is_some_and(|some| some >= MEMORY_WAITS)
        || reclaim.is_some_and(|((for_node, for_limit), _)| for_node > for_limit);
    let cause = match (own, short) {
        (true, _) => Cause::OwnMemoryLimit,
        (false, true) => Cause::NodeMemory,
        // Pages that come back to a cache that was dropped by somebody: nobody's limit.
        (false, false) => return Some(Vec::new()),
    };
    Some(vec![Finding { cause, lost, evidence }])
}

/// The disk, or an IO limit before it. `others` are the other pods by name.
pub(super) fn disk(
    window: &PodWindow,
    detail: &DetailWindow,
    others: &[(&str, &DetailWindow)],
) -> Option<Vec<Finding>> {
    let waited = window.stalled(2)?;
    if waited < IO_WAITS {
        return Some(Vec::new());
    }
    let time = |d: &crate::telemetry::DiskReading| Micros(d.latency.sum_ns / 1_000);
    let stalled = detail.span.scale(waited.get(), 1_000_000);
    // A disk so slow that it answered only few: these took the time.
    let enough = |d: &crate::telemetry::DiskReading| {
        d.latency.count() >= FEW_REQUESTS || d.latency.count() > 0 && share(time(d), stalled) >= MOSTLY
    };
    let slow = detail
        .disk
        .iter()
        .filter(|d| d.op != DiskOp::Other && enough(d))
        .filter(|d| d.latency.mean().is_some_and(|mean| mean >= DISK_SLOW))
        .filter(|d| time(d).get() / detail.span.get().max(1) < DISK_SHALLOW)
        .max_by_key(|d| (d.latency.sum_ns, std::cmp::Reverse((&d.device, d.op))));
    if let Some(d) = slow {
        let op = if d.op == DiskOp::Read { "reads" } else { "writes" };
        let mut evidence = vec![
            line("waited", format!("{} of the time some task waited for a disk", percent(waited))),
            line(
                "latency",
                format!(
                    "{} {op} in {}, {} each",
                    d.latency.count(),
                    ms(detail.span),
                    ms(d.latency.mean().unwrap_or_default())
                ),
            ),
        ];
        evidence.extend(busiest(&d.device, detail, others));
        return Some(vec![Finding { cause: Cause::SlowDisk { device: name_of(&d.device) }, lost: waited, evidence }]);
    }
    // Without requests nobody can say: a file system over the network makes none.
    let requests: u64 = detail.disk.iter().map(|d| d.latency.count()).fold(0, u64::saturating_add);
    let spent: Micros = detail.disk.iter().map(time).sum();
    let quick = detail.disk.iter().all(|d| d.latency.mean().is_none_or(|mean| mean < DISK_SLOW));
    let by_all = |device: &Device| -> Micros {
        let mine = detail.disk.iter().chain(others.iter().flat_map(|(_, o)| &o.disk));
        mine.filter(|d| d.device == *device).map(time).sum()
    };
    let idle = detail.disk.iter().all(|d| share(by_all(&d.device), detail.span) < MOSTLY);
    if requests >= FEW_REQUESTS && quick && idle && share(spent, stalled) < BEFORE_THE_DISK {
        let evidence = vec![
            line("waited", format!("{} of the time some task waited for a disk", percent(waited))),
            line("requests", format!("{requests} in {}, together {}", ms(detail.span), ms(spent))),
        ];
        return Some(vec![Finding { cause: Cause::OwnIoLimit, lost: waited, evidence }]);
    }
    Some(Vec::new())
}

fn name_of(device: &Device) -> String {
    if device.name.is_empty() { format!("{}:{}", device.major, device.minor) } else { device.name.clone() }
}

/// Who else moves the most bytes there, if that is most of all.
fn busiest(device: &Device, mine: &DetailWindow, others: &[(&str, &DetailWindow)]) -> Option<(String, String)> {
    let bytes =
        |d: &DetailWindow| d.disk.iter().filter(|d| d.device == *device).map(|d| d.bytes).fold(0, u64::saturating_add);
    let all = others.iter().map(|(_, o)| bytes(o)).fold(bytes(mine), u64::saturating_add);
    let (name, most) =
        others.iter().map(|(name, o)| (*name, bytes(o))).max_by_key(|(name, n)| (*n, std::cmp::Reverse(*name)))?;
    (most > 0 && mean(most, all) >= MOSTLY)
        .then(|| line("busiest", format!("{name} moved {} of the bytes there", percent(mean(most, all)))))
}

/// The network.
pub(super) fn network(window: &NetWindow) -> Vec<Finding> {
    let lost_part = mean(window.again, window.sent.saturating_add(window.again));
    let segments = window.sent >= FEW_SEGMENTS && window.again >= FEW_AGAIN && lost_part >= PACKETS_LOST;
    // A refused connection fails, too, but at once: only with timers that ran out are packets lost.
    let timeouts = window.timeouts.unwrap_or(0);
    let (connects, failures) = window.connects.unwrap_or((0, 0));
    let unreachable = failures >= FEW_FAILURES && timeouts >= FEW_FAILURES && mean(failures, connects) >= CONNECTS_LOST;
    if !segments && !unreachable {
        return Vec::new();
    }
    let waited = if segments { RTO_MIN.scale(window.timeouts.unwrap_or(window.again), 1) } else { Micros::ZERO };
    let connecting = if unreachable { SYN_TIMEOUT.scale(failures, 1) } else { Micros::ZERO };
    let mut evidence = vec![line(
        "segments",
        format!("{} sent, {} sent again ({}) in {}", window.sent, window.again, percent(lost_part), ms(window.span)),
    )];
    if let Some(timeouts) = window.timeouts {
        evidence.push(line("timeouts", timeouts.to_string()));
    }
    if let Some((connects, failures)) = window.connects {
        evidence.push(line("connects", format!("{connects}, {failures} failed")));
    }
    // At least what was sent in vain.
    let lost = share(waited + connecting, window.span).max(if segments { lost_part } else { Ppm(0) });
    vec![Finding { cause: Cause::PacketLoss, lost, evidence }]
}
