//! A server and a client that exchange a known number of bytes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use crate::pace;

const TIMEOUT: Duration = Duration::from_secs(30);

/// Serves until the process ends, one thread per connection, one request per connection.
pub(crate) fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on {port}");
    for stream in listener.incoming() {
        let stream = stream?;
        thread::Builder::new().stack_size(512 * 1024).spawn(move || {
            if let Err(error) = answer(stream) {
                eprintln!("request failed: {error}");
            }
        })?;
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut reader = BufReader::new(stream.try_clone()?.take(16 << 10));
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let path = request.split_whitespace().nth(1).unwrap_or("");
    if path == "/" {
        return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n");
    }
    let Some(Ok(size)) = path.strip_prefix("/bytes/").map(str::parse::<u64>) else {
        return write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n")?;
    io::copy(&mut io::repeat(b'b').take(size), &mut stream)?;
    Ok(())
}

/// Fetches, says how many bytes the body had, waits, and again. A failure is said and does not end the program.
pub(crate) fn fetch(url: &str, interval: Duration, count: Option<u64>) -> io::Result<()> {
    let rest = url.strip_prefix("http://").ok_or_else(|| io::Error::other(format!("{url} is no http:// URL")))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let mut successes = 0;
    while count.is_none_or(|count| successes < count) {
        match fetch_once(host, path) {
            Ok(bytes) => {
                successes += 1;
                println!("fetched {bytes} bytes");
            }
            Err(error) => eprintln!("cannot fetch {url}: {error}"),
        }
        thread::sleep(interval);
    }
    Ok(())
}

fn fetch_once(host: &str, path: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut reader = BufReader::with_capacity(64 << 10, stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.split_whitespace().nth(1) != Some("200") {
        return Err(io::Error::other(format!("the server said {}", line.trim())));
    }
    let mut length = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let bytes = io::copy(&mut reader, &mut io::sink())?;
    if length.is_some_and(|length| length != bytes) {
        return Err(io::Error::other(format!("{bytes} bytes came instead of {length:?}")));
    }
    Ok(bytes)
}

/// Listens for a while, closes the socket, and stays.
pub(crate) fn unlisten(port: u16, after: Duration) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening on {port}");
    thread::sleep(after);
    drop(listener);
    println!("closed {port}");
    pace::forever()
}
