//! A little of everything, for tests that compare many numbers; and a disk that is asked without a cache in between.

use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A step of the mixed load.
const STEP: Duration = Duration::from_millis(100);
const PAGE: usize = 4096;

/// Numbers that look random and are the same for each seed (xorshift64*).
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % n
    }
}

/// Until the process ends: CPU, memory, files, processes, sockets, in an order that the seed gives.
pub(crate) fn mixed(seed: u64, dir: &Path) -> io::Result<()> {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let server = TcpListener::bind(("127.0.0.1", 0))?;
    let address = server.local_addr()?;
    let (udp, peer) = (UdpSocket::bind(("127.0.0.1", 0))?, UdpSocket::bind(("127.0.0.1", 0))?);
    let file = dir.join(format!("mixed-{seed}"));
    loop {
        let began = Instant::now();
        match dice.below(8) {
            0 | 1 => spin(Duration::from_micros(200 + dice.below(4_000))),
            2 => {
                let mut memory = vec![0_u8; PAGE * (1 + usize::try_from(dice.below(512)).unwrap_or(0))];
                memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
                black_box(&memory);
            }
            3 => {
                let mut out = File::create(&file)?;
                out.write_all(&vec![b'm'; 16 << 10])?;
                if dice.below(4) == 0 {
                    out.sync_all()?;
                }
            }
            4 => {
                let mut back = Vec::new();
                if let Ok(mut input) = File::open(&file) {
                    input.read_to_end(&mut back)?;
                }
            }
            5 if dice.below(4) == 0 => {
                Command::new(std::env::current_exe()?).args(["sleep", "--for", "0s"]).status()?;
            }
            6 => {
                let mut out = TcpStream::connect(address)?;
                let (mut taken, _) = server.accept()?;
                out.write_all(b"ping")?;
                let mut word = [0; 4];
                taken.read_exact(&mut word)?;
                taken.write_all(&word)?;
                out.read_exact(&mut word)?;
            }
            _ => {
                udp.send_to(b"datagram", peer.local_addr()?)?;
                peer.recv(&mut [0; 16])?;
            }
        }
        std::thread::sleep(STEP.saturating_sub(began.elapsed()));
    }
}

fn spin(time: Duration) {
    let began = Instant::now();
    let mut x = 1_u64;
    while began.elapsed() < time {
        for _ in 0..200 {
            x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

/// A page, aligned as direct IO wants it.
#[repr(align(4096))]
struct Block([u8; PAGE]);

/// Writes and reads single blocks past the page cache, as fast as the disk answers, and says how many a second it did.
pub(crate) fn disk(dir: &Path, size: u64, pause: Duration) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).map_err(io::Error::other)?;
    let path = dir.join("blocks");
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(direct).open(path)?;
    let blocks = (size / PAGE as u64).max(1);
    let mut block = Block([b'd'; PAGE]);
    let (mut dice, mut done, mut told) = (Dice(1), 0_u64, Instant::now());
    loop {
        let at = dice.below(blocks) * PAGE as u64;
        file.write_all_at(&block.0, at)?;
        file.read_exact_at(&mut block.0, at)?;
        done += 2;
        if told.elapsed() >= Duration::from_secs(1) {
            println!("{done} requests");
            (done, told) = (0, Instant::now());
        }
        std::thread::sleep(pause);
    }
}
