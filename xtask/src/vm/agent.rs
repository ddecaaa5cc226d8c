//! The command agent: runs in the guest, does what the host asks over the [wire](super::wire).
//!
//! It is this same program (`xtask vm guest-agent`), handed to the VM at boot, so both ends always speak the same protocol.
//!
//! A command gets a process group of its own. When the caller goes away, the group is killed. When the command ends but
//! something it started still holds its output, the agent waits a moment for what is left of it and then reports the end.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use super::wire::{self, Kind, Request};

/// How long output may still come after the command itself has ended.
const DRAIN: Duration = Duration::from_millis(300);

/// Serves until killed.
pub(super) fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    accept(&listener);
    Ok(())
}

/// For tests: serves on a free loopback port.
#[cfg(test)]
pub(super) fn serve_in_background() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || accept(&listener));
    Ok(address)
}

fn accept(listener: &TcpListener) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                std::thread::spawn(move || {
                    if let Err(error) = handle(stream) {
                        eprintln!("command agent: {error:#}");
                    }
                });
            }
            Err(error) => eprintln!("command agent: accept: {error}"),
        }
    }
}

/// The guest's end of one connection.
fn handle(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let (kind, data) = wire::receive(&mut stream)?;
    if kind != Kind::Request {
        bail!("expected a request, got {kind:?}");
    }
    let request: Request = serde_json::from_slice(&data)?;
    let Some(program) = request.argv.first() else { bail!("empty command") };
    let spawned = Command::new(program)
        .args(&request.argv[1..])
        .stdin(if request.stdin { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            wire::send(&mut stream, Kind::Refused, format!("cannot start `{program}`: {error}").as_bytes())?;
            return Ok(());
        }
    };
    let group = Pid::from_child(&child);
    let (drained, both_drained) = mpsc::channel::<()>();
    let out = Arc::new(Mutex::new(stream.try_clone()?));
    forward(child.stdout.take(), Kind::Stdout, &out, &drained);
    forward(child.stderr.take(), Kind::Stderr, &out, &drained);
    drop(drained);

    // Held by whoever may signal the group, and set once its leader has been reaped.
    let ended = Arc::new(Mutex::new(false));
    let stdin = child.stdin.take();
    let watch = (stream.try_clone()?, Arc::clone(&ended));
    std::thread::spawn(move || {
        let (mut stream, ended) = watch;
        take_input(&mut stream, stdin);
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        if !*ended {
            let _ = kill_process_group(group, Signal::KILL);
        }
    });

    let status = child.wait()?;
    *ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
    // Ends at once, by disconnection, when both outputs have ended.
    let _ = both_drained.recv_timeout(DRAIN);
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
    wire::send(&mut *out, Kind::Exit, &code.to_le_bytes())?;
    Ok(())
}

/// Sends one output of the command as it comes. The sender is only there to be dropped at the end.
fn forward(from: Option<impl Read + Send + 'static>, kind: Kind, out: &Arc<Mutex<TcpStream>>, done: &mpsc::Sender<()>) {
    let Some(mut from) = from else { return };
    let (out, done) = (Arc::clone(out), done.clone());
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            // The caller may be gone; the command must not block on a full pipe all the same.
            let _ = wire::send(&mut *out, kind, &buffer[..count]);
        }
        drop(done);
    });
}

/// Passes input on until the host hangs up.
fn take_input(stream: &mut TcpStream, mut stdin: Option<ChildStdin>) {
    use std::io::Write;
    while let Ok((kind, data)) = wire::receive(stream) {
        if kind == Kind::Stdin && data.is_empty() {
            stdin = None;
        } else if kind == Kind::Stdin
            && let Some(pipe) = &mut stdin
            && pipe.write_all(&data).is_err()
        {
            stdin = None;
        }
    }
}
