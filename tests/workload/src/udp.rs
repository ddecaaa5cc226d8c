//! A name server that knows one name, a client that asks it, and a socket that nobody reads.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::Duration;

/// The answer's bits: it is one, and recursion was wanted and is to be had.
const ANSWER: [u8; 2] = [0x81, 0x80];
/// The same with "no such name".
const NO_SUCH_NAME: [u8; 2] = [0x81, 0x83];

/// A question for the address of `name`.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut packet = id.to_be_bytes().to_vec();
    packet.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or(63));
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]);
    packet
}

/// Answers on port 53 after `delay`: `here` is known, nothing else.
pub(crate) fn name_server(delay: Duration) -> io::Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 53))?;
    println!("answering on 53");
    let mut packet = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut packet)?;
        if length < 12 {
            continue;
        }
        sleep(delay);
        let known = packet[12..length].starts_with(b"\x04here\x00");
        packet[2..4].copy_from_slice(if known { &ANSWER } else { &NO_SUCH_NAME });
        socket.send_to(&packet[..length], from)?;
    }
}

/// Asks the name server for a name again and again.
pub(crate) fn resolve(server: SocketAddr, name: &str, interval: Duration) -> io::Result<()> {
    let mut answer = [0; 512];
    for id in 1.. {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&question(id, name), server)?;
        match socket.recv(&mut answer) {
            Ok(_) => println!("answered with code {}", answer[3] & 15),
            Err(error) => println!("no answer: {error}"),
        }
        sleep(interval);
    }
    Ok(())
}

/// Sends to a socket that nobody reads: once its buffer is full, the kernel drops what comes.
pub(crate) fn unread(interval: Duration) -> io::Result<()> {
    let deaf = UdpSocket::bind(("127.0.0.1", 0))?;
    let sender = UdpSocket::bind(("127.0.0.1", 0))?;
    sender.connect(deaf.local_addr()?)?;
    loop {
        sender.send(&[0; 8192])?;
        sleep(interval);
    }
}
