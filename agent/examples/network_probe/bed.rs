//! Two network namespaces, two cgroups, and a process in each.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use beelet::kernel::cgroup::CgroupLayout;

/// Addresses of the two devices.
pub(crate) const SERVER_MAC: &str = "02:00:00:00:77:01";
const CLIENT_MAC: &str = "02:00:00:00:77:02";
pub(crate) const SERVER: &str = "10.77.0.1";
pub(crate) const SERVER_IPV6: &str = "fd77::1";
const CLIENT: &str = "10.77.0.2";
const CLIENT_IPV6: &str = "fd77::2";
const DEVICE: &str = "eth0";

/// How a check ended that did not fail.
pub(crate) enum Outcome {
    Passed(String),
    NotRun(String),
}

#[derive(Clone, Copy)]
pub(crate) enum Side {
    Server,
    Client,
}

/// What a device has carried.
pub(crate) struct Device {
    pub(crate) rx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_packets: u64,
}

/// Everything that is made; gone at its end.
pub(crate) struct Bed {
    /// Directory of the pods' root in the unified hierarchy.
    pub(crate) pods: PathBuf,
    pub(crate) server: Peer,
    pub(crate) client: Peer,
    /// Beside the server, but in no cgroup of ours.
    outside: Peer,
    /// Whether the namespaces have IPv6.
    pub(crate) ipv6: bool,
}

/// One of the two processes, its cgroup and its namespace.
pub(crate) struct Peer {
    role: &'static str,
    directory: PathBuf,
    /// Id of its cgroup.
    pub(crate) cgroup: u64,
    namespace: String,
    process: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

/// Runs `ip`.
fn ip(line: &str) -> Result<String> {
    let output = Command::new("ip").args(line.split_whitespace()).output().context("cannot run ip")?;
    ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Bed {
    pub(crate) fn make(layout: &CgroupLayout) -> Result<Self> {
        let name = format!("beelet-ntest-{}", std::process::id());
        let pods = layout.unified().join(&name);
        let peer = |role: &'static str| -> Result<Peer> {
            let directory = pods.join(role);
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
            let cgroup = fs::metadata(&directory)?.ino();
            Ok(Peer { role, directory, cgroup, namespace: format!("{name}-{role}"), process: None })
        };
        let outside = Peer {
            role: "outside",
            directory: "/dev/null".into(),
            cgroup: 0,
            namespace: format!("{name}-server"),
            process: None,
        };
        let mut bed = Self { server: peer("server")?, client: peer("client")?, outside, pods, ipv6: false };
        bed.connect()?;
        Ok(bed)
    }

    /// Makes the namespaces and the devices.
    fn connect(&mut self) -> Result<()> {
        let (server, client) = (&self.server.namespace, &self.client.namespace);
        ip(&format!("netns add {server}"))?;
        ip(&format!("netns add {client}"))?;
        ip(&format!(
            "-n {server} link add {DEVICE} address {SERVER_MAC} type veth peer name {DEVICE} address {CLIENT_MAC} netns {client}"
        ))?;
        let mut ipv6 = true;
        for (namespace, own, own_ipv6, other, other_ipv6, mac) in [
            (server, SERVER, SERVER_IPV6, CLIENT, CLIENT_IPV6, CLIENT_MAC),
            (client, CLIENT, CLIENT_IPV6, SERVER, SERVER_IPV6, SERVER_MAC),
        ] {
            ip(&format!("-n {namespace} address add {own}/24 dev {DEVICE}"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link set {DEVICE} up"))?;
            // Nobody asks who has an address.
            ip(&format!("-n {namespace} neigh replace {other} lladdr {mac} dev {DEVICE} nud permanent"))?;
            ipv6 &= ip(&format!("-n {namespace} address add {own_ipv6}/64 dev {DEVICE} nodad")).is_ok()
                && ip(&format!("-n {namespace} neigh replace {other_ipv6} lladdr {mac} dev {DEVICE} nud permanent"))
                    .is_ok();
        }
        self.ipv6 = ipv6;
        Ok(())
    }

    /// Starts the processes.
    pub(crate) fn start(&mut self) -> Result<()> {
        self.server.start()?;
        self.outside.start()?;
        self.client.start()
    }

    /// Where the client takes the server to be.
    pub(crate) fn neighbour(&self, mac: &str) -> Result<()> {
        ip(&format!("-n {} neigh replace {SERVER} lladdr {mac} dev {DEVICE} nud permanent", self.client.namespace))
            .map(drop)
    }

    /// What the device of one side has carried.
    pub(crate) fn device(&self, side: Side) -> Result<Device> {
        let peer = match side {
            Side::Server => &self.server,
            Side::Client => &self.client,
        };
        let text = ip(&format!("-n {} -s -j link show dev {DEVICE}", peer.namespace))?;
        let all: serde_json::Value = serde_json::from_str(&text)?;
        let number = |way: &str, what: &str| {
            all[0]["stats64"][way][what].as_u64().with_context(|| format!("ip does not say {way}.{what}"))
        };
        Ok(Device {
            rx_bytes: number("rx", "bytes")?,
            rx_packets: number("rx", "packets")?,
            tx_bytes: number("tx", "bytes")?,
            tx_packets: number("tx", "packets")?,
        })
    }
}

impl Peer {
    fn start(&mut self) -> Result<()> {
        let mut child = Command::new(env::current_exe()?)
            .arg("child")
            .arg(self.role)
            .arg(if self.cgroup == 0 { self.directory.clone() } else { self.directory.join("cgroup.procs") })
            .arg(format!("/run/netns/{}", self.namespace))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a child")?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        self.process = Some((child, stdin.context("no input")?, BufReader::new(stdout.context("no output")?)));
        let said = self.answer()?;
        ensure!(said == "ready", "the {} said {said}", self.role);
        Ok(())
    }

    /// Tells the process to do something.
    pub(crate) fn send(&mut self, command: &str) -> Result<()> {
        let (_, stdin, _) = self.process.as_mut().context("not started")?;
        writeln!(stdin, "{command}").with_context(|| format!("the {} is gone", self.role))
    }

    /// Waits for what it answers.
    pub(crate) fn answer(&mut self) -> Result<String> {
        let (_, _, stdout) = self.process.as_mut().context("not started")?;
        let mut line = String::new();
        if stdout.read_line(&mut line)? == 0 {
            bail!("the {} has ended", self.role);
        }
        match line.trim().strip_prefix("failed: ") {
            Some(why) => bail!("the {}: {why}", self.role),
            None => Ok(line.trim().to_owned()),
        }
    }

    /// Both.
    pub(crate) fn tell(&mut self, command: &str) -> Result<String> {
        self.send(command)?;
        self.answer().with_context(|| command.to_owned())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for peer in [&mut self.client, &mut self.outside, &mut self.server] {
            if let Some((mut child, stdin, _)) = peer.process.take() {
                drop(stdin);
                if child.kill().and_then(|()| child.wait()).is_err() {
                    eprintln!("the {} is left over", peer.role);
                }
            }
        }
        for peer in [&self.client, &self.server] {
            if let Err(error) = ip(&format!("netns delete {}", peer.namespace)) {
                eprintln!("{error:#}");
            }
        }
        for directory in [&self.client.directory, &self.server.directory, &self.pods] {
            // A process that has just ended may still be in it.
            for attempt in 0.. {
                match fs::remove_dir(directory) {
                    Ok(()) => break,
                    Err(_) if attempt < 20 => std::thread::sleep(std::time::Duration::from_millis(50)),
                    Err(error) => {
                        eprintln!("{} is left over: {error}", directory.display());
                        break;
                    }
                }
            }
        }
    }
}
