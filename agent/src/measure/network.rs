//! What lies in the pods' network namespaces: who listens and how full the queues are, the devices, the stack's counters.
//!
//! **Approach.** A thread that visits one pod after the other ([`crate::kernel::netns`]): a new pod at once, and a pod whose
//! containers changed lately every [`YOUNG_EVERY`], for a server begins to listen some time after it began to run; each of the
//! others every [`QUIET_EVERY`] (spread over that time by their UIDs), for most sleep. Whoever sees that something ran in a pod, or
//! that packets came or went, asks for visits every [`EVERY`]; and whoever knows of a new listener without its port, for one at once.
//!
//! **Terms.** The *guide* of a pod is a process of it through which its namespace is reached: the sandbox's if there is one (no
//! container can move that elsewhere), remembered with the namespace's number.
//!
//! **Properties.** Pods of the node's network are left out, also where only the namespace tells (beside a kubelet). A pod whose
//! processes cannot be visited keeps its last part, with its moment. Where netlink lacks listeners, the files are read.
//!
//! **Cost.** A visit takes 155 us of wall time by netlink, whatever others have open, and 8.2 ms by the files, 9.9 ms with 8 000
//! connected sockets elsewhere on the machine (test `what_a_visit_costs`, debug build, Linux 6.18, 2 vCPUs: the file of one namespace
//! goes through the hash table of all). 100 pods that do something cost 0.16 % of a core.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use beelet_core::sample::NetworkReading;
use beelet_core::spec::PodUid;
use beelet_core::units::Micros;
use tracing::{debug, warn};

use super::Target;
use super::slow::{Ended, NetworkPart, Orders, Parts, Slow, next_due};
use crate::clock::{Clock, thread_cpu};
use crate::kernel::listeners::{self, ListenersError, Source};
use crate::kernel::netns::{Home, NetnsError, Visit};
use crate::kernel::sock_diag::SockDiagError;
use crate::kernel::{links, net_counters};

/// A pod in which something runs, or that talks, is visited this often.
const EVERY: Micros = Micros::secs(10);
/// And one that does neither.
const QUIET_EVERY: Micros = Micros::secs(60);
/// And each so often where the kernel does not tell when a socket begins or ceases to listen.
const EVERY_WITHOUT_EVENTS: Micros = Micros::secs(3);
/// Visits that were asked for are this far apart at least.
const BREATH: Micros = Micros::millis(200);
/// A pod whose containers changed lately is visited this often.
const YOUNG_EVERY: Micros = Micros::secs(1);
/// So lately.
const YOUNG: Micros = Micros::secs(20);
/// Visits that are due within this time are made together.
const ROUND: Duration = Duration::from_millis(250);

/// Whether a pod's network is worth a visit, by what the sampler sees: where nothing runs and no packet comes or goes, neither
/// listeners nor counters change.
#[derive(Debug, Default)]
pub(super) struct Stir {
    /// When something last ran, or a packet came or went.
    last: Micros,
    /// Packets at the last look; `None` if they are not known, and then there may always be some.
    packets: Option<NetworkReading>,
    /// When a visit was last asked for.
    asked: Micros,
}

impl Stir {
    /// A look at the pod.
    pub(super) fn see(&mut self, now: Micros, ran: bool, packets: Option<NetworkReading>) {
        if ran || packets.is_none() || packets != self.packets {
            (self.last, self.packets) = (now, packets);
        }
    }

    /// Whether to ask for a visit now; `visited`: when the last one was.
    pub(super) fn wants_visit(&mut self, now: Micros, visited: Micros) -> bool {
        let wants = self.last > visited && now >= visited.max(self.asked) + EVERY;
        if wants {
            self.asked = now;
        }
        wants
    }
}

/// What is known of a pod between two visits.
struct Stop {
    target: Target,
    /// A process, until it is gone.
    guide: Option<u32>,
    /// The number of the namespace.
    namespace: Option<u64>,
    /// When its containers changed.
    changed: Micros,
    due: Micros,
    visited: Micros,
    /// Shares the node's network, whatever the target says.
    home: bool,
    /// A failure is told once.
    told: bool,
}

struct Visitor<'a> {
    slow: &'a Slow,
    unified: &'a Path,
    home: Home,
    source: Source,
    stops: BTreeMap<PodUid, Stop>,
    parts: Parts<NetworkPart>,
    generation: u64,
    every: Micros,
}

/// Visits until told to stop.
pub(super) fn run(slow: &Slow, unified: &Path, listen_events: bool) -> Ended {
    let home = match Home::of_this_thread() {
        Ok(home) => home,
        Err(error) => {
            warn!(%error, "pods' networks cannot be read");
            slow.wait(Duration::MAX, false, |_| false);
            return Ended::Stopped;
        }
    };
    let mut visitor = Visitor {
        slow,
        unified,
        home,
        source: Source::Netlink,
        stops: BTreeMap::new(),
        // What a thread before this one published.
        parts: Parts::clone(&slow.network()),
        generation: 0,
        every: if listen_events { QUIET_EVERY } else { EVERY_WITHOUT_EVENTS },
    };
    let mut wait = Duration::ZERO;
    loop {
        let generation = visitor.generation;
        let orders = slow.wait(wait, true, |orders| orders.generation != generation || !orders.look.is_empty());
        if orders.stop {
            return Ended::Stopped;
        }
        visitor.obey(&orders, Clock.now().mono);
        match visitor.round() {
            Ok(next) => wait = next,
            Err(error) => {
                warn!(%error, "a thread is left behind in a pod's network and ends");
                return Ended::Stranded;
            }
        }
    }
}

impl Visitor<'_> {
    fn obey(&mut self, orders: &Orders, now: Micros) {
        if orders.generation != self.generation {
            self.generation = orders.generation;
            let mut before = std::mem::take(&mut self.stops);
            for target in orders.targets.iter().filter(|target| !target.host_network) {
                let stop = match before.remove(&target.uid) {
                    Some(stop) if stop.target == *target => stop,
                    Some(stop) => Stop { target: target.clone(), changed: now, due: now, ..stop },
                    None => Stop {
                        target: target.clone(),
                        guide: None,
                        namespace: None,
                        changed: now,
                        due: now,
                        visited: Micros::ZERO,
                        home: false,
                        told: false,
                    },
                };
                self.stops.insert(target.uid.clone(), stop);
            }
        }
        for uid in &orders.look {
            if let Some(stop) = self.stops.get_mut(uid) {
                stop.due = stop.due.min(now.max(stop.visited + BREATH));
            }
        }
    }

    /// Visits whoever is due; how long the next one can wait.
    fn round(&mut self) -> Result<Duration, NetnsError> {
        let began = thread_cpu();
        let now = Clock.now().mono;
        let due: Vec<PodUid> =
            self.stops.iter().filter(|(_, stop)| stop.due <= now).map(|(uid, _)| uid.clone()).collect();
        let before = self.parts.len();
        self.parts.retain(|uid, _| self.stops.contains_key(uid));
        let mut changed = self.parts.len() != before;
        for uid in due {
            let Some(stop) = self.stops.get_mut(&uid) else { continue };
            let now = Clock.now().mono;
            let young = now - stop.changed < YOUNG;
            stop.due = next_due(&uid, now, if young { YOUNG_EVERY } else { self.every });
            stop.visited = now;
            if stop.home {
                continue;
            }
            let seen = visit(stop, self.unified, &self.home, &mut self.source);
            let health = self.slow.health();
            health.visits.fetch_add(1, Ordering::Relaxed);
            match seen {
                Ok(Some(part)) => {
                    self.parts.insert(uid, Arc::new(part));
                    changed = true;
                    stop.told = false;
                }
                Ok(None) => {}
                Err(error) => {
                    health.visits_failed.fetch_add(1, Ordering::Relaxed);
                    if let Failure::Namespace(error @ NetnsError::Stranded { .. }) = error {
                        return Err(error);
                    }
                    if !std::mem::replace(&mut stop.told, true) {
                        warn!(pod = uid.as_str(), %error, "a pod's network cannot be read");
                    }
                }
            }
        }
        if changed {
            self.slow.publish_network(self.parts.clone());
        }
        let spent = thread_cpu().saturating_sub(began);
        self.slow.health().network_us.fetch_add(spent.0, Ordering::Relaxed);
        let next = self.stops.values().map(|stop| stop.due).min();
        let now = Clock.now().mono;
        Ok(next.map_or(Duration::from_secs(3_600), |due| Duration::from_micros((due - now).0).max(ROUND)))
    }
}

/// Why a visit came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Namespace(#[from] NetnsError),
    #[error(transparent)]
    Listeners(#[from] ListenersError),
    #[error("the network's files cannot be read: {0}")]
    Files(std::io::Error),
}

/// What is there; `None` if there is nothing to be seen (no process yet, or any more; or the node's own network).
fn visit(stop: &mut Stop, unified: &Path, home: &Home, source: &mut Source) -> Result<Option<NetworkPart>, Failure> {
    // A guide that is gone has a successor, or the pod has ended.
    for _ in 0..2 {
        let Some(pid) = stop.guide.or_else(|| process_of(&stop.target, unified)) else { return Ok(None) };
        let expected = stop.guide.and(stop.namespace);
        match home.visit(pid, expected, || look(source))? {
            Visit::Seen(seen, namespace) => {
                (stop.guide, stop.namespace) = (Some(pid), Some(namespace));
                return seen.map(Some);
            }
            Visit::Home => {
                debug!(pod = stop.target.uid.as_str(), "the pod is on the node's network");
                stop.home = true;
                return Ok(None);
            }
            Visit::Gone => stop.guide = None,
        }
    }
    Ok(None)
}

/// To be run in the namespace.
fn look(source: &mut Source) -> Result<NetworkPart, Failure> {
    // Before the listing: what opens meanwhile may not be in it.
    let at = Clock.now().mono;
    let listeners = match listeners::listening(*source) {
        Err(ListenersError::Netlink(error @ SockDiagError::Missing(_))) => {
            warn!(%error, "listening sockets are read from files, which costs more and does not tell how many may wait");
            *source = Source::Files;
            listeners::listening(*source)
        }
        other => other,
    }?;
    Ok(NetworkPart {
        at,
        listeners,
        interfaces: links::interfaces().map_err(Failure::Files)?,
        stack: net_counters::stack().map_err(Failure::Files)?,
    })
}

/// A process of the pod, the sandbox's first; `None` if there is none.
fn process_of(target: &Target, unified: &Path) -> Option<u32> {
    let pod = unified.join(&target.cgroup);
    let entries = fs::read_dir(&pod).ok()?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut below: Vec<(bool, std::path::PathBuf)> = entries
        .map(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            (target.containers.iter().any(|(id, _)| name.contains(id.as_str())), entry.path())
        })
        .collect();
    below.sort_unstable();
    below.into_iter().find_map(|(_, cgroup)| first_process(&cgroup, 3))
}

/// The first process in a cgroup or so many levels below it: on v2 a container may make cgroups of its own.
fn first_process(cgroup: &Path, levels: u32) -> Option<u32> {
    let first = fs::read_to_string(cgroup.join("cgroup.procs")).ok().and_then(|all| all.lines().next()?.parse().ok());
    // 0 is a process that this pid namespace does not see.
    first.filter(|pid| *pid != 0).or_else(|| {
        let mut below = fs::read_dir(cgroup).ok()?.flatten().filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir()));
        if levels == 0 { None } else { below.find_map(|entry| first_process(&entry.path(), levels - 1)) }
    })
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A network namespace with a pair of devices, `out` and `back`, and a process in it; `None`, with a word, without root.
    struct Net {
        name: String,
        process: Child,
    }

    fn ip(words: &str) {
        let done = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ip {words}");
    }

    impl Net {
        fn new(name: &str, script: &str) -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                eprintln!("skipped: network namespaces need root");
                return None;
            }
            let name = format!("beelet-e-{name}-{}", std::process::id());
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
            ip(&format!("-n {name} link add out type veth peer name back"));
            ip(&format!("-n {name} addr add 198.51.100.1/24 dev out"));
            ip(&format!("-n {name} link set out up"));
            ip(&format!("-n {name} link set back up"));
            ip(&format!("-n {name} neigh add 198.51.100.7 lladdr 02:00:00:00:00:07 dev out"));
            let mut process = Command::new("ip")
                .args(["netns", "exec", &name, "python3", "-c", script])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line.trim(), "ready");
            Some(Self { name, process })
        }

        /// Its process sits in a cgroup made of plain files.
        fn target(&self, unified: &Path, uid: &str) -> Target {
            let cgroup = format!("kubepods/pod{uid}");
            fs::create_dir_all(unified.join(&cgroup).join("abc")).unwrap();
            fs::write(unified.join(&cgroup).join("abc/cgroup.procs"), format!("{}\n", self.process.id())).unwrap();
            Target { uid: uid.into(), cgroup, containers: Vec::new(), host_network: false, logs: String::new() }
        }
    }

    impl Drop for Net {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
            ip(&format!("netns del {}", self.name));
        }
    }

    const LISTENS: &str = "\
import socket, sys
s = socket.socket(); s.bind(('127.0.0.1', 8080)); s.listen(4)
c = []
for n in range(3):
    k = socket.socket(); k.connect(('127.0.0.1', 8080)); c.append(k)
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(5):
    u.sendto(b'x' * 100, ('198.51.100.7', 9))
print('ready', flush=True)
sys.stdin.readline()
for n in range(6):
    k = socket.socket(); k.setblocking(False); k.connect_ex(('127.0.0.1', 8080)); c.append(k)
import time; time.sleep(0.2)
print('ready', flush=True)
sys.stdin.read()
";

    fn new_stop(target: Target) -> Stop {
        Stop {
            target,
            guide: None,
            namespace: None,
            changed: Micros::ZERO,
            due: Micros::ZERO,
            visited: Micros::ZERO,
            home: false,
            told: false,
        }
    }

    #[test]
    fn a_queue_that_overflows_is_seen_with_its_length_and_the_devices_are_as_ip_says() {
        let Some(net) = Net::new("queue", LISTENS) else { return };
        let unified = tempfile::tempdir().unwrap();
        let mut stop = new_stop(net.target(unified.path(), "u"));
        let thread = std::thread::spawn(move || {
            let home = Home::of_this_thread().unwrap();
            let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
            let mut source = Source::Netlink;
            let first = visit(&mut stop, unified.path(), &home, &mut source).unwrap().unwrap();
            assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
            let listener = first.listeners[0];
            assert_eq!((first.listeners.len(), listener.port, listener.waiting, listener.most), (1, 8080, 3, Some(4)));
            assert_eq!(first.stack.unwrap().listen_overflows, 0);
            source = Source::Files;
            let files = visit(&mut stop, unified.path(), &home, &mut source).unwrap().unwrap();
            assert_eq!((files.listeners[0].waiting, files.listeners[0].most), (3, None));

            // IPv6 on the device talks by itself, so that ours lies between two of `ip`'s.
            let by_ip = || {
                let said = Command::new("ip").args(["-n", &net.name, "-s", "-j", "link", "show", "out"]).output();
                let said: serde_json::Value = serde_json::from_slice(&said.unwrap().stdout).unwrap();
                let tx = &said[0]["stats64"]["tx"];
                (tx["bytes"].as_u64().unwrap(), tx["packets"].as_u64().unwrap())
            };
            let low = by_ip();
            let again = visit(&mut stop, unified.path(), &home, &mut source).unwrap().unwrap();
            let high = by_ip();
            let names: Vec<&str> = again.interfaces.iter().map(|device| device.name.as_str()).collect();
            assert_eq!(names.len(), 2, "{names:?}");
            let traffic = again.interfaces.iter().find(|device| device.name == "out").unwrap().traffic;
            assert!(low.1 >= 5 && low.0 >= 5 * 142, "{low:?}");
            assert!(low.0 <= traffic.tx_bytes && traffic.tx_bytes <= high.0, "{low:?} {traffic:?} {high:?}");
            assert!(low.1 <= traffic.tx_packets && traffic.tx_packets <= high.1, "{low:?} {traffic:?} {high:?}");

            let mut net = net;
            std::io::Write::write_all(net.process.stdin.as_mut().unwrap(), b"\n").unwrap();
            source = Source::Netlink;
            // The queue takes one more than it says (net/core/sock.h, `sk_acceptq_is_full`).
            let until = std::time::Instant::now() + Duration::from_secs(10);
            loop {
                let last = visit(&mut stop, unified.path(), &home, &mut source).unwrap().unwrap();
                let overflows = last.stack.unwrap().listen_overflows;
                if last.listeners[0].waiting == 5 && overflows > 0 {
                    assert!(last.stack.unwrap().listen_drops >= overflows);
                    break;
                }
                assert!(std::time::Instant::now() < until, "{last:?}");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        thread.join().unwrap();
    }

    #[test]
    fn pods_are_visited_at_once_and_forgotten_at_once_and_the_nodes_network_is_nobodys() {
        let Some(net) = Net::new("life", "print('ready', flush=True); input()") else { return };
        let unified = tempfile::tempdir().unwrap();
        let target = net.target(unified.path(), "u");
        // Beside a kubelet nobody may know that a pod is on the node's network.
        let mut on_node = Target { uid: "node".into(), cgroup: "kubepods/podnode".to_owned(), ..target.clone() };
        fs::create_dir_all(unified.path().join("kubepods/podnode/def")).unwrap();
        fs::write(unified.path().join("kubepods/podnode/def/cgroup.procs"), format!("{}\n", std::process::id()))
            .unwrap();
        on_node.logs = "any".to_owned();
        let slow = Slow::default();
        let (worker, root) = (slow.clone(), unified.path().to_owned());
        let thread = std::thread::spawn(move || run(&worker, &root, true));
        let until = |what: &str, done: &dyn Fn() -> bool| {
            let end = std::time::Instant::now() + Duration::from_secs(10);
            while !done() {
                assert!(std::time::Instant::now() < end, "{what}");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let began = std::time::Instant::now();
        slow.aim(&[target.clone(), on_node]);
        until("a new pod is visited", &|| slow.network().contains_key(&PodUid::from("u")));
        assert!(began.elapsed() < Duration::from_millis(900), "at once: {:?}", began.elapsed());
        let first = slow.network()[&PodUid::from("u")].at;
        slow.look(["u".into()]);
        until("a visit that was asked for", &|| slow.network()[&PodUid::from("u")].at > first);
        assert_eq!(slow.network().len(), 1);
        slow.aim(&[]);
        until("a pod that is gone", &|| slow.network().is_empty());
        slow.stop();
        assert_eq!(thread.join().unwrap(), Ended::Stopped);
        assert_eq!(slow.health().visits_failed.load(Ordering::Relaxed), 0);
        // Nothing of ours holds the namespace.
        let held = fs::read_link(format!("/proc/{}/ns/net", net.process.id())).unwrap();
        let fds = fs::read_dir("/proc/self/fd").unwrap().flatten();
        assert!(fds.filter_map(|fd| fs::read_link(fd.path()).ok()).all(|link| link != held));
    }

    #[test]
    fn a_pid_that_was_used_again_is_not_taken_for_the_pod() {
        let Some(net) = Net::new("again", "print('ready', flush=True); input()") else { return };
        let unified = tempfile::tempdir().unwrap();
        let mut stop = new_stop(net.target(unified.path(), "u"));
        std::thread::spawn(move || {
            let home = Home::of_this_thread().unwrap();
            // A guide that is now a process of the node's network.
            (stop.guide, stop.namespace) = (Some(std::process::id()), Some(1));
            let seen = visit(&mut stop, unified.path(), &home, &mut { Source::Netlink }).unwrap();
            assert!(seen.is_some() && !stop.home);
            assert_eq!(stop.guide, Some(net.process.id()));
        })
        .join()
        .unwrap();
    }

    /// The numbers of the module's head: `cargo test -p beelet --lib what_a_visit_costs -- --nocapture`.
    #[test]
    fn what_a_visit_costs_does_not_grow_with_the_connections_of_others() {
        let Some(net) = Net::new("cost", LISTENS) else { return };
        let unified = tempfile::tempdir().unwrap();
        let mut stop = new_stop(net.target(unified.path(), "u"));
        std::thread::spawn(move || {
            let home = Home::of_this_thread().unwrap();
            let mut median = |source: Source| {
                let mut costs: Vec<u64> = (0..101)
                    .map(|_| {
                        let began = std::time::Instant::now();
                        assert!(visit(&mut stop, unified.path(), &home, &mut { source }).unwrap().is_some());
                        u64::try_from(began.elapsed().as_micros()).unwrap()
                    })
                    .collect();
                costs.sort_unstable();
                costs[50]
            };
            let mut connections = Vec::new();
            for count in [0, 4_000] {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                for _ in 0..count {
                    connections.push(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
                    connections.push(listener.accept().unwrap().0);
                }
                let (netlink, files) = (median(Source::Netlink), median(Source::Files));
                eprintln!("{count} connections elsewhere: a visit costs {netlink} us by netlink, {files} us by files");
                // Generous: the machine is shared.
                assert!(netlink < 20_000, "{netlink} us");
            }
            drop(net);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_pod_that_sleeps_is_not_worth_a_visit() {
        let packets = |n| Some(NetworkReading { rx_packets: n, ..NetworkReading::default() });
        let mut stir = Stir::default();
        let mut visited = Micros::secs(100);
        // (second, something ran, packets so far, a visit is worth it)
        for (second, ran, count, worth) in [
            (101, false, packets(5), false),
            (105, true, packets(5), false),
            (109, false, packets(5), false),
            // It ran since the last visit.
            (110, false, packets(5), true),
            // One that was asked for is not asked for again at once, whatever became of it.
            (111, true, packets(5), false),
            (120, false, packets(5), true),
            (131, false, packets(5), false),
            (190, false, packets(5), false),
            (191, false, packets(6), true),
            (202, false, packets(6), false),
            // Packets that nobody counts may have come.
            (215, false, None, true),
            (226, false, None, true),
        ] {
            let now = Micros::secs(second);
            stir.see(now, ran, count);
            assert_eq!(stir.wants_visit(now, visited), worth, "at {second}");
            if worth && second > 110 {
                visited = now + Micros::millis(200);
            }
        }
    }

    #[test]
    fn visits_have_a_beat() {
        for uid in ["a", "b", "3f0c"] {
            let uid = PodUid::from(uid);
            let mut at = Micros::secs(1_234);
            let mut gaps = Vec::new();
            for _ in 0..4 {
                let next = next_due(&uid, at, EVERY);
                gaps.push(next - at);
                at = next;
            }
            assert!(gaps[0] >= Micros(EVERY.0 / 2) && gaps[0] <= Micros(EVERY.0 * 3 / 2), "{gaps:?}");
            assert_eq!(gaps[1..], [EVERY; 3]);
        }
    }
}
