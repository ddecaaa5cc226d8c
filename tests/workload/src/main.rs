//! What the test pods run: one small static program that misbehaves on command.
//!
//! Problem: tests need pods that leak at a known rate, burn a known share of CPU, talk a known number of bytes, crash in
//! known ways. No image can be pulled, and shell scripts in busybox are not steady enough to compare with.
//!
//! Approach: std, one file per subject, steady by construction: every rate is divided into 10 ms steps measured against
//! the clock, so a late step is made up by the next. All commands end quickly at SIGTERM, with exit code 0:
//! as process 1 of a container, a program without a handler would never see it. The program is also the pause
//! container: called as `pause`, it waits for SIGTERM and reaps orphans.

mod bench;
mod crash;
mod memory;
mod mixed;
mod net;
mod pace;
mod udp;
mod units;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::units::{parse_bytes, parse_seconds};

#[derive(Debug, Parser)]
#[command(name = "workload", about = "What the test pods run")]
struct Cli {
    #[command(subcommand)]
    command: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Touch new memory at a steady rate, for ever or up to a limit
    Leak {
        #[arg(long, value_parser = parse_bytes, default_value = "100Mi")]
        rate: u64,
        /// Stop growing here, and hold
        #[arg(long, value_parser = parse_bytes)]
        limit: Option<u64>,
        /// Begin after this time
        #[arg(long, value_parser = parse_seconds, default_value = "0s")]
        delay: Duration,
    },
    /// Touch this much memory as fast as possible, and hold it
    Step {
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        #[arg(long, value_parser = parse_seconds, default_value = "0s")]
        delay: Duration,
    },
    /// Fill pipes: memory of the kernel's, little and much in turn
    Pipes {
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// Between two steps
        #[arg(long, value_parser = parse_seconds, default_value = "150ms")]
        pause: Duration,
    },
    /// Grow to `high`, fall to `low`, again and again: a heap that is collected when it is full
    Sawtooth {
        #[arg(long, value_parser = parse_bytes, default_value = "100Mi")]
        rate: u64,
        #[arg(long, value_parser = parse_bytes)]
        low: u64,
        #[arg(long, value_parser = parse_bytes)]
        high: u64,
    },
    /// Grow to `size`, ever more slowly, then free and take the youngest part, again and again: a heap that has found its size
    Plateau {
        #[arg(long, value_parser = parse_bytes, default_value = "100Mi")]
        rate: u64,
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        #[arg(long, value_parser = parse_bytes, default_value = "50Mi")]
        young: u64,
        /// Between two steps of its growth
        #[arg(long, value_parser = parse_seconds, default_value = "1s")]
        every: Duration,
    },
    /// Burn CPU: a share of cores, in duty cycles of 10 ms
    Spin {
        #[arg(long, default_value_t = 1.0)]
        cores: f64,
        /// End after this time
        #[arg(long = "for", value_parser = parse_seconds)]
        time: Option<Duration>,
    },
    /// A small HTTP server: `GET /` and `GET /bytes/N`
    Serve {
        #[arg(long, default_value_t = 8080)]
        port: u16,
    },
    /// Fetch a URL again and again
    Fetch {
        /// http://HOST:PORT/PATH; `$(NAME)` of the pod's environment is the manifest's business
        #[arg(long)]
        url: String,
        #[arg(long, value_parser = parse_seconds, default_value = "1s")]
        interval: Duration,
        /// End after this many successes, with exit code 0; without it, never
        #[arg(long)]
        count: Option<u64>,
    },
    /// Exit with a code or die by a signal
    Crash {
        #[arg(long, value_parser = parse_seconds, default_value = "1s")]
        after: Duration,
        #[arg(long, default_value_t = 1)]
        code: u8,
        #[arg(long, conflicts_with = "code")]
        signal: Option<i32>,
    },
    /// Write and read file data, this much in total, in files of at most 1 GiB that are removed
    Files {
        #[arg(long)]
        dir: PathBuf,
        #[arg(long, value_parser = parse_bytes)]
        size: u64,
        /// Stay after the work is done
        #[arg(long)]
        hold: bool,
    },
    /// Wait for SIGTERM
    Sleep {
        /// End by itself after this time, with exit code 0
        #[arg(long = "for", value_parser = parse_seconds)]
        time: Option<Duration>,
    },
    /// Listen on a port, then close it and stay
    Unlisten {
        #[arg(long, default_value_t = 8080)]
        port: u16,
        #[arg(long, value_parser = parse_seconds, default_value = "5s")]
        after: Duration,
    },
    /// Answer on UDP port 53: `here` is known, nothing else
    NameServer {
        #[arg(long, value_parser = parse_seconds, default_value = "5ms")]
        delay: Duration,
    },
    /// Ask a name server again and again
    Resolve {
        /// IP:PORT
        #[arg(long)]
        server: SocketAddr,
        #[arg(long, default_value = "here")]
        name: String,
        #[arg(long, value_parser = parse_seconds, default_value = "200ms")]
        interval: Duration,
    },
    /// Send to a UDP socket that nobody reads
    Unread {
        #[arg(long, value_parser = parse_seconds, default_value = "20ms")]
        interval: Duration,
    },
    /// Do something as fast as it goes, and say each second how often it was done
    Bench {
        #[arg(value_enum)]
        what: bench::Loop,
    },
    /// A little of everything: CPU, memory, files, processes, sockets
    Mixed {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where its file is
        #[arg(long, default_value = "/tmp")]
        dir: PathBuf,
    },
    /// Write and read blocks past the page cache
    Disk {
        #[arg(long)]
        dir: PathBuf,
        /// Of the file
        #[arg(long, value_parser = parse_bytes, default_value = "4Mi")]
        size: u64,
        /// Between two blocks
        #[arg(long, value_parser = parse_seconds, default_value = "0s")]
        pause: Duration,
    },
    /// Start so many children that sleep
    Fork {
        #[arg(short, long, default_value_t = 10)]
        n: u32,
    },
}

fn main() -> ExitCode {
    let called_as = std::env::args_os().next().map(PathBuf::from);
    if called_as.as_deref().and_then(|p| p.file_name()).is_some_and(|name| name == "pause") {
        return pause();
    }
    let cli = Cli::parse();
    if let Err(error) = end_at_sigterm() {
        eprintln!("cannot handle SIGTERM: {error}");
        return ExitCode::FAILURE;
    }
    let done = match cli.command {
        Work::Leak { rate, limit, delay } => memory::leak(rate, limit, delay),
        Work::Step { size, delay } => memory::step(size, delay),
        Work::Pipes { size, pause } => memory::pipes(size, pause),
        Work::Sawtooth { rate, low, high } => memory::sawtooth(rate, low, high),
        Work::Plateau { rate, size, young, every } => memory::plateau(rate, size, young, every),
        Work::Spin { cores, time } => pace::spin(cores, time),
        Work::Serve { port } => net::serve(port),
        Work::Fetch { url, interval, count } => net::fetch(&url, interval, count),
        Work::Crash { after, code, signal } => crash::crash(after, code, signal),
        Work::Files { dir, size, hold } => memory::files(&dir, size, hold),
        Work::Sleep { time } => sleep(time),
        Work::Unlisten { port, after } => net::unlisten(port, after),
        Work::NameServer { delay } => udp::name_server(delay),
        Work::Resolve { server, name, interval } => udp::resolve(server, &name, interval),
        Work::Unread { interval } => udp::unread(interval),
        Work::Bench { what } => bench::run(what),
        Work::Mixed { seed, dir } => mixed::mixed(seed, &dir),
        Work::Disk { dir, size, pause } => mixed::disk(&dir, size, pause),
        Work::Fork { n } => crash::fork(n),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("workload: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Ends the process with code 0 at SIGTERM or SIGINT, whatever it is doing.
fn end_at_sigterm() -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        if signals.forever().next().is_some() {
            std::process::exit(0);
        }
    })?;
    Ok(())
}

fn sleep(time: Option<Duration>) -> std::io::Result<()> {
    match time {
        Some(time) => std::thread::sleep(time),
        None => pace::forever(),
    }
    Ok(())
}

/// Process 1 of a sandbox: waits for SIGTERM, and reaps what is handed to it when the pod shares its process namespace.
fn pause() -> ExitCode {
    let Ok(mut signals) = Signals::new([SIGTERM, SIGINT, SIGCHLD]) else { return ExitCode::FAILURE };
    for signal in signals.forever() {
        if signal != SIGCHLD {
            break;
        }
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
    }
    ExitCode::SUCCESS
}
