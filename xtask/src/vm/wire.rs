//! How the host and the VM's command agent talk: frames over one TCP connection per command.
//!
//! Problem: a command in the VM must give back its two output streams unmixed and its exit code, take input that ends,
//! and must not outlive a caller who went away.
//!
//! Approach: a frame is one byte of kind, four bytes of length (little endian) and that many bytes. The host sends
//! `Request` first, then input. The guest sends output as it comes and `Exit` last. A connection that ends before
//! `Exit` means that the caller is gone: the guest kills the command.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Longer frames are refused: the other side does not speak this protocol.
const MAX_FRAME: u32 = 1 << 20;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A [`Request`] as JSON, from the host.
    Request = 1,
    /// Input, from the host; an empty frame is the end of input.
    Stdin = 2,
    /// Output, from the guest.
    Stdout = 3,
    /// Error output, from the guest.
    Stderr = 4,
    /// The exit code as four bytes, from the guest; the last frame. 128 + N is death by signal N.
    Exit = 5,
    /// Why the command could not be started, as text, from the guest; the last frame.
    Refused = 6,
}

/// A command to run in the guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Request {
    /// Program and arguments.
    pub(super) argv: Vec<String>,
    /// Whether input follows.
    pub(super) stdin: bool,
}

/// Writes one frame.
pub(super) fn send(to: &mut impl Write, kind: Kind, data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).ok().filter(|n| *n <= MAX_FRAME).ok_or(io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(data.len() + 5);
    frame.push(kind as u8);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(data);
    to.write_all(&frame)
}

/// Reads one frame.
pub(super) fn receive(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let kind = match head[0] {
        1 => Kind::Request,
        2 => Kind::Stdin,
        3 => Kind::Stdout,
        4 => Kind::Stderr,
        5 => Kind::Exit,
        6 => Kind::Refused,
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if length > MAX_FRAME {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut data = vec![0; length as usize];
    from.read_exact(&mut data)?;
    Ok((kind, data))
}

/// Sends all of `from` as input, and its end.
fn send_input(to: &mut TcpStream, mut from: impl Read) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer)?;
        send(to, Kind::Stdin, &buffer[..count])?;
        if count == 0 {
            return Ok(());
        }
    }
}

/// Runs a command in the guest and returns its exit code. Gives up, and thereby kills the command, after `limit`.
pub(super) fn run(
    agent: SocketAddr,
    argv: &[String],
    stdin: Option<Box<dyn Read + Send>>,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
    limit: Duration,
) -> Result<i32> {
    let deadline = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&agent, limit.min(Duration::from_secs(5)))
        .with_context(|| format!("the VM's command agent does not answer at {agent}"))?;
    stream.set_nodelay(true)?;
    let request = Request { argv: argv.to_vec(), stdin: stdin.is_some() };
    send(&mut stream, Kind::Request, &serde_json::to_vec(&request)?)?;
    if let Some(input) = stdin {
        let mut to = stream.try_clone()?;
        // Not joined: it may wait for a terminal, and it ends when the connection does. A command that
        // ends without reading all of its input is no error.
        std::thread::spawn(move || {
            let _ = send_input(&mut to, input);
        });
    }
    let code = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("`{}` did not end within {limit:?} in the VM", argv.join(" "));
        }
        stream.set_read_timeout(Some(left))?;
        let (kind, data) = match receive(&mut stream) {
            Ok(frame) => frame,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error).context("the VM's command agent hung up"),
        };
        match kind {
            Kind::Stdout => stdout.write_all(&data)?,
            Kind::Stderr => stderr.write_all(&data)?,
            Kind::Exit => break i32::from_le_bytes(data.try_into().ok().context("malformed exit code")?),
            Kind::Refused => bail!("in the VM: {}", String::from_utf8_lossy(&data)),
            Kind::Request | Kind::Stdin => bail!("the VM's command agent sent an unexpected {kind:?}"),
        }
    };
    stdout.flush()?;
    stderr.flush()?;
    let _ = stream.shutdown(Shutdown::Both);
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back() {
        let mut wire = Vec::new();
        send(&mut wire, Kind::Stdout, b"hello").unwrap();
        send(&mut wire, Kind::Stdin, b"").unwrap();
        let mut from = wire.as_slice();
        assert_eq!(receive(&mut from).unwrap(), (Kind::Stdout, b"hello".to_vec()));
        assert_eq!(receive(&mut from).unwrap(), (Kind::Stdin, Vec::new()));
        assert!(receive(&mut from).is_err());
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(receive(&mut &b"HTTP/1.1 200"[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive(&mut &[3, 255, 255, 255, 255][..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_command_runs_through_the_agent() {
        let agent = super::super::agent::serve_in_background().unwrap();
        let try_run = |words: &[&str], stdin: Option<Box<dyn Read + Send>>, limit| {
            let argv: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let code = run(agent, &argv, stdin, &mut out, &mut err, limit);
            code.map(|code| (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap()))
        };
        let ten = Duration::from_secs(10);
        let ended = try_run(&["sh", "-c", "echo out; echo err >&2; exit 7"], None, ten).unwrap();
        assert_eq!(ended, (7, "out\n".to_owned(), "err\n".to_owned()));
        let ended = try_run(&["cat"], Some(Box::new(&b"input"[..])), ten).unwrap();
        assert_eq!(ended, (0, "input".to_owned(), String::new()));
        assert_eq!(try_run(&["sh", "-c", "kill -9 $$"], None, ten).unwrap().0, 137);
        assert!(try_run(&["/no/such/program"], None, ten).unwrap_err().to_string().contains("/no/such/program"));
        let started = Instant::now();
        assert!(try_run(&["sleep", "60"], None, Duration::from_millis(300)).is_err());
        assert!(started.elapsed() < Duration::from_secs(5));
        // A daemon that keeps the output open does not hold up the caller.
        assert_eq!(try_run(&["sh", "-c", "sleep 5 & exit 3"], None, ten).unwrap().0, 3);
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}
