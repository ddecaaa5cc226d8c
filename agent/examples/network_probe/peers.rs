//! The server and the client: each in its cgroup and namespace, each doing what it reads from its input.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, recvfrom, sendto, socket, sockopt},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::bed::{SERVER, SERVER_IPV6};

/// Takes 4 MiB and gives as many, again and again.
const TRANSFER: u16 = 5001;
/// Takes connections and reads until their end.
const SINK: u16 = 5002;
/// Breaks off each connection.
const RESET: u16 = 5003;
/// Nobody is there.
const NOBODY: u16 = 5004;
/// Takes datagrams.
const DATAGRAMS: u16 = 5005;
/// Takes none, and has little room.
const FULL: u16 = 5006;
/// Gives back each byte.
const ECHO: u16 = 5007;
/// Answers requests of HTTP/1 after [`THINKING`].
const HTTP: u16 = 8080;
/// The same, at many ports.
const MANY: std::ops::Range<u16> = 20_000..20_060;
const DNS: u16 = 53;

const THINKING: Duration = Duration::from_millis(50);
const RESOLVING: Duration = Duration::from_millis(30);
const TRANSFER_BYTES: usize = 4 << 20;
const DATAGRAM_BYTES: usize = 1_000;

/// What the process does whose arguments these are: role, file of the cgroup to join, file of the namespace to enter.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [role, cgroup, namespace] = arguments else { bail!("too few arguments") };
    fs::write(cgroup, "0").with_context(|| format!("cannot join {cgroup}"))?;
    let namespace = fs::File::open(namespace)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    match role.as_str() {
        "server" => serve()?,
        "outside" => echo()?,
        _ => {}
    }
    println!("ready");
    for line in std::io::stdin().lines() {
        match obey(line?.split_whitespace().collect::<Vec<_>>().as_slice()) {
            Ok(said) => println!("{said}"),
            Err(error) => println!("failed: {error:#}"),
        }
    }
    Ok(())
}

fn obey(words: &[&str]) -> Result<String> {
    match words {
        ["snmp", table, field] => return snmp(table, field),
        ["transfer"] => transfer()?,
        ["trickle", ms] => trickle(Duration::from_millis(ms.parse()?))?,
        ["udp", count] => datagrams(DATAGRAMS, count.parse()?, Duration::from_millis(1))?,
        ["flood", count] => datagrams(FULL, count.parse()?, Duration::ZERO)?,
        ["ping", count] => ping(count.parse()?)?,
        ["ping-pong", count] => ping_pong(count.parse()?)?,
        ["connect", count] => {
            for _ in 0..count.parse::<u32>()? {
                TcpStream::connect((SERVER, SINK))?;
            }
        }
        ["refused", count] => {
            for _ in 0..count.parse::<u32>()? {
                ensure!(TcpStream::connect((SERVER, NOBODY)).is_err(), "somebody is there");
            }
        }
        ["reset-by-server", count] => {
            for _ in 0..count.parse::<u32>()? {
                let mut stream = TcpStream::connect((SERVER, RESET))?;
                // Only now, for a reset may come before the connection has been told of.
                stream.write_all(&[7])?;
                ensure!(stream.read(&mut [0]).is_err(), "no reset came");
            }
        }
        ["reset-by-client", count] => {
            for _ in 0..count.parse::<u32>()? {
                let stream = TcpStream::connect((SERVER, SINK))?;
                sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
            }
        }
        ["http", status, count] => http(SERVER, status, count.parse()?)?,
        ["http6", status, count] => http(SERVER_IPV6, status, count.parse()?)?,
        ["unanswered", count] => {
            for _ in 0..count.parse::<u32>()? {
                let mut stream = TcpStream::connect((SERVER, HTTP))?;
                stream.write_all(b"GET /nothing HTTP/1.1\r\n\r\n")?;
                ensure!(stream.read(&mut [0])? == 0, "an answer came");
            }
        }
        // Each hangs up, for nobody asks for a status.
        ["ports", count] => {
            for port in MANY.start..MANY.start + count.parse::<u16>()? {
                let mut stream = TcpStream::connect((SERVER, port))?;
                stream.write_all(b"GET /nothing HTTP/1.1\r\n\r\n")?;
                ensure!(stream.read(&mut [0])? == 0, "an answer came");
            }
        }
        ["dns", kind, count] => dns(kind, count.parse()?)?,
        _ => bail!("no command {words:?}"),
    }
    Ok("done".to_owned())
}

/// A number of this namespace's `/proc/net/snmp`.
fn snmp(table: &str, field: &str) -> Result<String> {
    let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
    let prefix = format!("{table}:");
    let mut rows = text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::split_whitespace);
    let (names, values) = (rows.next().context("no such table")?, rows.next().context("no values")?);
    let found = names.zip(values).find(|(name, _)| *name == field).context("no such field")?;
    Ok(found.1.to_owned())
}

// === the client ===

fn transfer() -> Result<()> {
    let mut stream = TcpStream::connect((SERVER, TRANSFER))?;
    let mut data = vec![7; TRANSFER_BYTES];
    stream.write_all(&data)?;
    stream.read_exact(&mut data)?;
    Ok(())
}

/// A little now and then.
fn trickle(time: Duration) -> Result<()> {
    let mut stream = TcpStream::connect((SERVER, SINK))?;
    let end = Instant::now() + time;
    while Instant::now() < end {
        stream.write_all(&[7; 20_000])?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn datagrams(port: u16, count: u32, pause: Duration) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    for _ in 0..count {
        socket.send_to(&[7; DATAGRAM_BYTES], (SERVER, port))?;
        thread::sleep(pause);
    }
    Ok(())
}

/// Asks by ICMP for an echo, and waits for it.
fn ping(count: u16) -> Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(2)))?;
    let to: SocketAddr = (SERVER.parse::<Ipv4Addr>()?, 0).into();
    for number in 0..count {
        let mut packet = [0_u8; 64];
        packet[0] = 8;
        packet[6..8].copy_from_slice(&number.to_be_bytes());
        let sum = packet.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16))?;
        packet[2..4].copy_from_slice(&(!folded).to_be_bytes());
        sendto(&socket, &packet, SendFlags::empty(), &to)?;
        recvfrom(&socket, &mut [0; 128], RecvFlags::empty())?;
    }
    Ok(())
}

fn ping_pong(count: u32) -> Result<()> {
    let mut stream = TcpStream::connect((SERVER, ECHO))?;
    stream.set_nodelay(true)?;
    for _ in 0..count {
        stream.write_all(&[7])?;
        stream.read_exact(&mut [0])?;
    }
    Ok(())
}

/// Requests over one connection that want this status.
fn http(server: &str, status: &str, count: u32) -> Result<()> {
    let stream = TcpStream::connect((server, HTTP))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    for _ in 0..count {
        // In two parts: it is one request all the same.
        (&stream).write_all(format!("GET /{status} HTTP/1.1\r\n").as_bytes())?;
        thread::sleep(Duration::from_millis(2));
        (&stream).write_all(b"Host: probe\r\n\r\n")?;
        let mut first = String::new();
        lines.read_line(&mut first)?;
        ensure!(first.starts_with(&format!("HTTP/1.1 {status} ")), "{first}");
        let mut rest = String::new();
        while lines.read_line(&mut rest)? > 2 {}
    }
    Ok(())
}

/// Queries of one kind; none but the lost ones may go without an answer.
fn dns(kind: &str, count: u16) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((SERVER, DNS))?;
    socket.set_read_timeout(Some(Duration::from_millis(if kind == "lost" { 200 } else { 3_000 })))?;
    for id in 1..=count {
        let mut query = vec![0; 12];
        query[..2].copy_from_slice(&id.to_be_bytes());
        query[5] = 1;
        query.push(u8::try_from(kind.len())?);
        query.extend_from_slice(kind.as_bytes());
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        socket.send(&query)?;
        ensure!(socket.recv(&mut [0; 512]).is_ok() == (kind != "lost"), "whether an answer came");
    }
    Ok(())
}

// === the server ===

/// Begins all services.
fn serve() -> Result<()> {
    service(TRANSFER, |mut stream| {
        let mut data = vec![7; TRANSFER_BYTES];
        stream.read_exact(&mut data)?;
        stream.write_all(&data)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    })?;
    service(SINK, |mut stream| std::io::copy(&mut stream, &mut std::io::sink()).map(drop))?;
    service(RESET, |mut stream| {
        stream.read_exact(&mut [0])?;
        Ok(sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?)
    })?;
    service(HTTP, answer)?;
    for port in MANY {
        service(port, answer)?;
    }

    let taken = UdpSocket::bind(("0.0.0.0", DATAGRAMS))?;
    thread::spawn(move || while taken.recv(&mut [0; 2_000]).is_ok() {});
    let full = UdpSocket::bind(("0.0.0.0", FULL))?;
    sockopt::set_socket_recv_buffer_size(&full, 4_096)?;
    // Stays open to the end of the process.
    std::mem::forget(full);

    let names = UdpSocket::bind(("0.0.0.0", DNS))?;
    thread::spawn(move || -> std::io::Result<()> {
        let mut query = [0; 512];
        loop {
            let (length, from) = names.recv_from(&mut query)?;
            thread::sleep(RESOLVING);
            let code = match &query[13..17] {
                b"lost" => continue,
                b"none" => 3,
                b"fail" => 2,
                _ => 0,
            };
            query[2] = 0x80;
            query[3] = code;
            names.send_to(&query[..length], from)?;
        }
    });
    Ok(())
}

/// Begins the service of the one outside.
fn echo() -> Result<()> {
    service(ECHO, |mut stream| {
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read(&mut byte)? > 0 {
            stream.write_all(&byte)?;
        }
        Ok(())
    })
}

/// A thread for each connection to this port.
fn service(port: u16, each: fn(TcpStream) -> std::io::Result<()>) -> Result<()> {
    // Without IPv6, by IPv4 alone.
    let listener =
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || each(stream));
        }
    });
    Ok(())
}

/// Answers each request with the status that its path asks for; without one, hangs up.
fn answer(stream: TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    loop {
        let mut first = String::new();
        if lines.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut rest = String::new();
        while lines.read_line(&mut rest)? > 2 {}
        let Some(status) = first.split(['/', ' ']).nth(2).filter(|it| it.parse::<u16>().is_ok()) else { return Ok(()) };
        thread::sleep(THINKING);
        // Two writes: only the first is the answer's begin.
        out.write_all(format!("HTTP/1.1 {status} Whatever\r\n").as_bytes())?;
        out.write_all(b"Content-Length: 0\r\n\r\n")?;
    }
}
