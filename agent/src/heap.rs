//! What the heap does not need goes back to the kernel.
//!
//! **Problem.** At its start the agent reads the kernel's types, megabytes of them, and each answer to a scrape is large, too. glibc
//! keeps what was freed, once for each thread that ever allocated, so that an agent beside idle pods holds twice what it uses.
//! **Approach.** Few arenas and large pieces by mmap, always ([`tame`], before there are threads); and what is free is given back
//! after the start and from time to time ([`trim`]).
//!
//! **Properties.** Where the C library is another than glibc, both do nothing.

#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "mallopt(3) and malloc_trim(3) are functions of the C library")
)]

use std::time::Duration;

/// What is free is given back this often.
pub const EVERY: Duration = Duration::from_secs(60);
/// Two cores are enough for an agent, and so are the arenas of two threads.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// Pieces from this size on are mapped by themselves, bytes. It is glibc's own beginning (`DEFAULT_MMAP_THRESHOLD_MIN`,
/// malloc/malloc.c), which would else grow with the first large piece that is freed.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 128 << 10;

/// To be called before there are other threads.
pub fn tame() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets parameters of the allocator, by numbers; no pointers are involved. What it refuses stays as it is.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}

/// Gives free pages back. Meanwhile whoever allocates waits.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only what is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Trims, first a moment after the start, for ever; but not while something `is_urgent`.
pub async fn keep_small(is_urgent: impl Fn() -> bool) {
    const FIRST: Duration = Duration::from_secs(5);
    tokio::time::sleep(FIRST).await;
    loop {
        // Somewhere where nobody waits for it.
        if !is_urgent() && tokio::task::spawn_blocking(trim).await.is_err() {
            tracing::debug!("the heap is not trimmed any more");
            return;
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_free_below_what_is_held_goes_back() {
        let mut pieces: Vec<Box<[u8; 256]>> =
            (0..200_000).map(|n| Box::new([u8::try_from(n % 251).unwrap_or(0); 256])).collect();
        // The last piece holds the heap's end where it is.
        let last = pieces.pop();
        drop(pieces);
        let before = resident_kib();
        trim();
        let after = resident_kib();
        // Other tests of this process take and free memory, too.
        assert!(after + 20_000 < before, "{before} KiB, then {after}");
        drop(last);
    }
}
