//! Ways to end badly, and to have many children.
//!
//! The kernel ignores a signal that process 1 of a namespace sends to itself and does not handle. There SIGSEGV comes from
//! glibc's `abort`, whose last resort is an illegal instruction; any other signal kills a child, and
//! the parent exits with 128 + signal as a shell does.

use std::io;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};

use crate::pace;

/// Waits, then exits with `code` or dies by `signal`.
pub(crate) fn crash(after: Duration, code: u8, signal: Option<i32>) -> io::Result<()> {
    std::thread::sleep(after);
    let Some(number) = signal else {
        eprintln!("exiting with code {code}");
        std::process::exit(i32::from(code));
    };
    let signal = Signal::from_named_raw(number).ok_or_else(|| io::Error::other(format!("{number} is no signal")))?;
    eprintln!("dying by signal {number}");
    if !getpid().is_init() {
        kill_process(getpid(), signal)?;
        pace::forever();
    }
    if signal == Signal::SEGV {
        std::process::abort();
    }
    let me = std::env::current_exe()?;
    Command::new(me).args(["crash", "--after", "0s", "--signal", &number.to_string()]).status()?;
    std::process::exit(128 + number);
}

/// Starts children that sleep until they are told to end. They end with this process's namespace.
pub(crate) fn fork(n: u32) -> io::Result<()> {
    let me = std::env::current_exe()?;
    let mut children = Vec::new();
    for i in 0..n {
        match Command::new(&me).arg("sleep").spawn() {
            Ok(child) => children.push(child),
            Err(error) => {
                eprintln!("child {i} of {n}: {error}");
                break;
            }
        }
    }
    println!("{} children", children.len());
    pace::forever()
}
