//! Memory that is really there: every page is touched. And page cache, which should alarm nobody.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use rustix::pipe::fcntl_setpipe_size;

use crate::pace;

const PAGE: usize = 4096;
const CHUNK: usize = 4 << 20;

/// Memory that is held.
#[derive(Default)]
struct Hoard {
    chunks: Vec<Vec<u8>>,
    /// Touched bytes of the last chunk.
    touched: usize,
    total: u64,
}

impl Hoard {
    fn grow(&mut self, mut amount: u64) {
        self.total += amount;
        while amount > 0 {
            if self.chunks.is_empty() || self.touched == CHUNK {
                // Zeroed memory comes from the kernel untouched.
                self.chunks.push(vec![0; CHUNK]);
                self.touched = 0;
            }
            let part = usize::try_from(amount).unwrap_or(usize::MAX).min(CHUNK - self.touched);
            if let Some(chunk) = self.chunks.last_mut() {
                for byte in chunk[self.touched..self.touched + part].iter_mut().step_by(PAGE) {
                    *byte = 1;
                }
            }
            self.touched += part;
            amount -= part as u64;
        }
    }

    /// Grows to `size` at that rate, by `most` at a step.
    fn climb(&mut self, rate: u64, size: u64, most: u64) {
        // Whole pages at a step; what is less is kept for the next.
        let mut rest = 0;
        pace::at_rate(rate, |amount| {
            let due = rest + amount.min(most);
            let pages = due / PAGE as u64 * PAGE as u64;
            rest = due - pages;
            self.grow(pages.min(size.saturating_sub(self.total)));
            self.total < size
        });
    }

    /// Gives back what came last, until no more than `size` is held. It lies last in the heap, or is a mapping
    /// of its own, and so goes to the kernel.
    fn shrink(&mut self, size: u64) {
        while self.total > size && self.chunks.pop().is_some() {
            self.total -= self.touched as u64;
            self.touched = CHUNK;
        }
    }
}

/// Grows at that rate.
pub(crate) fn leak(rate: u64, limit: Option<u64>, delay: Duration) -> io::Result<()> {
    std::thread::sleep(delay);
    let mut hoard = Hoard::default();
    hoard.climb(rate, limit.unwrap_or(u64::MAX), u64::MAX);
    println!("holding {} bytes", hoard.total);
    pace::forever()
}

/// The most that a program takes at a step when it was held up: what it did not do then it does not make up for.
fn at_once(rate: u64) -> u64 {
    rate / 20
}

/// A heap that is collected when it is full: grows at that rate to `high`, falls to `low`, again and again.
pub(crate) fn sawtooth(rate: u64, low: u64, high: u64) -> io::Result<()> {
    let mut hoard = Hoard::default();
    for tooth in 1_u64.. {
        hoard.climb(rate, high, at_once(rate));
        println!("done {tooth}: {} bytes at the tip", hoard.total);
        hoard.shrink(low);
    }
    Ok(())
}

/// A heap that finds its size: an eighth of what is left to `size`, taken at that rate, each so often; then the youngest part
/// of it is given back and taken again, for ever.
pub(crate) fn plateau(rate: u64, size: u64, young: u64, every: Duration) -> io::Result<()> {
    let mut hoard = Hoard::default();
    while hoard.total < size {
        let part = ((size - hoard.total) / 8).max(CHUNK as u64);
        hoard.climb(rate, size.min(hoard.total + part), at_once(rate));
        std::thread::sleep(every);
    }
    for round in 1_u64.. {
        hoard.shrink(size.saturating_sub(young));
        hoard.climb(rate, size, at_once(rate));
        println!("done {round}: {} bytes held", hoard.total);
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// Takes that much at once and holds it.
pub(crate) fn step(size: u64, delay: Duration) -> io::Result<()> {
    std::thread::sleep(delay);
    let mut hoard = Hoard::default();
    hoard.grow(size);
    println!("holding {size} bytes");
    pace::forever()
}

/// Fills pipes, of whose memory no counter of the pod's own tells, and holds them: by 2 MiB and by 32 MiB in turn, so that no two steps
/// are alike, and nothing is foreseen.
pub(crate) fn pipes(size: u64, pause: Duration) -> io::Result<()> {
    /// `fs.pipe-max-size`; that many of them want CAP_SYS_RESOURCE or CAP_SYS_ADMIN.
    const PIPE: usize = 1 << 20;
    const STEPS: [u64; 2] = [2, 32];
    let full = vec![0x5a_u8; PIPE];
    let mut held: Vec<(PipeReader, PipeWriter)> = Vec::new();
    let mut steps = STEPS.into_iter().cycle();
    let mut left = 0;
    for _ in 0..size / PIPE as u64 {
        if left == 0 {
            std::thread::sleep(pause);
            left = steps.next().unwrap_or(1);
        }
        left -= 1;
        let (reader, mut writer) = io::pipe()?;
        fcntl_setpipe_size(&writer, PIPE)?;
        writer.write_all(&full)?;
        held.push((reader, writer));
    }
    println!("holding {} pipes", held.len());
    pace::forever()
}

/// Writes and reads files with a small buffer until `size` bytes have been written.
pub(crate) fn files(dir: &Path, size: u64, hold: bool) -> io::Result<()> {
    const FILE: u64 = 1 << 30;
    fs::create_dir_all(dir)?;
    let path = dir.join(format!("workload-{}", std::process::id()));
    let mut buffer = vec![0x5a_u8; 256 << 10];
    let mut left = size;
    while left > 0 {
        let this = left.min(FILE);
        let done = write_and_read(&path, this, &mut buffer);
        fs::remove_file(&path).ok();
        done?;
        left -= this;
        println!("wrote and read {} of {size} bytes", size - left);
    }
    if hold {
        pace::forever();
    }
    Ok(())
}

fn write_and_read(path: &Path, size: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.write_all(&buffer[..part])?;
        left -= part as u64;
    }
    let mut file = File::open(path)?;
    while file.read(buffer)? > 0 {}
    Ok(())
}
