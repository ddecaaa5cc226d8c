//! Loops that count themselves: what an observer takes away from a pod is seen in the pod.
//!
//! Each prints, second by second, how many rounds it did: `rounds N`.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a loop does in a round.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Loop {
    /// Two threads hand a byte to and fro through pipes: two context switches, nothing else
    Switches,
    /// A request and its answer over one loopback connection
    Http,
    /// A process is made, runs a program and ends
    Processes,
}

/// Runs the loop until the process ends.
pub(crate) fn run(what: Loop) -> io::Result<()> {
    let rounds = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&rounds);
    std::thread::spawn(move || {
        let (mut last, mut next) = (0, Instant::now());
        loop {
            next += Duration::from_secs(1);
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let now = counted.load(Ordering::Relaxed);
            println!("rounds {}", now - last);
            last = now;
        }
    });
    match what {
        Loop::Switches => switches(&rounds),
        Loop::Http => http(&rounds),
        Loop::Processes => loop {
            Command::new(std::env::current_exe()?).args(["sleep", "--for", "0s"]).status()?;
            rounds.fetch_add(1, Ordering::Relaxed);
        },
    }
}

fn switches(rounds: &AtomicU64) -> io::Result<()> {
    let (mut there, mut out) = io::pipe()?;
    let (mut back, mut answer) = io::pipe()?;
    std::thread::spawn(move || {
        let mut byte = [0];
        while there.read_exact(&mut byte).is_ok() && answer.write_all(&byte).is_ok() {}
    });
    let mut byte = [1];
    loop {
        out.write_all(&byte)?;
        back.read_exact(&mut byte)?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

fn http(rounds: &AtomicU64) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 8080))?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> io::Result<()> {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (mut reader, mut stream) = (BufReader::new(stream.try_clone()?), stream);
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
        }
    });
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut answer = [0; 40];
    loop {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")?;
        stream.read_exact(&mut answer)?;
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}
