//! The knobs that beelet turns by its own decision, each by its name in the core.

use beelet_core::event::Knob;
use beelet_core::units::Bytes;

use super::error::Error;
use super::knobs::{Memory, read, verify, write};
use super::layout::check;
use super::tree::Tree;

impl Tree {
    /// The value that a knob has now; of the value that is passed only its kind counts.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel has no such knob; see [`Error::is_gone`].
    pub fn read_knob(&self, path: &str, knob: Knob) -> Result<Knob, Error> {
        check(path)?;
        let memory = || self.hierarchies.home("memory", path);
        match knob {
            Knob::CpuBurst(_) => self.read_burst(path).map(Knob::CpuBurst),
            Knob::MemoryHigh(_) => Memory(&memory()).high().map(Knob::MemoryHigh),
            Knob::MemoryMax(_) => Memory(&memory()).limit().map(Knob::MemoryMax),
            Knob::Freeze(_) => Ok(Knob::Freeze(read(&self.freeze_file(path))?.trim() == "1")),
        }
    }

    /// Turns a knob, and reads it back. The kernel rounds memory down to pages.
    ///
    /// # Errors
    /// If the kernel has no such knob, refuses the value, or keeps another one.
    pub fn put_knob(&self, path: &str, knob: Knob) -> Result<(), Error> {
        check(path)?;
        let memory = || self.hierarchies.home("memory", path);
        match knob {
            Knob::CpuBurst(burst) => self.burst(path, burst).map(drop),
            Knob::MemoryHigh(high) => Memory(&memory()).set_high(high),
            Knob::MemoryMax(limit) => Memory(&memory()).set_limit_with_swap(limit),
            Knob::Freeze(frozen) => {
                let file = self.freeze_file(path);
                write(&file, if frozen { "1" } else { "0" })?;
                verify(&file, &frozen, &(read(&file)?.trim() == "1"))
            }
        }
    }

    /// Frees so much of a cgroup's page cache, as far as the kernel can; waits for it. Nothing is swapped out for it: where the kernel
    /// cannot be told so (`swappiness=0`, since 6.9) and there is swap, nothing is done.
    ///
    /// # Errors
    /// If the kernel has no `memory.reclaim` (before 5.19, or the controller is on v1), or would swap. That less could be freed is none.
    pub fn reclaim(&self, path: &str, bytes: Bytes) -> Result<(), Error> {
        check(path)?;
        let file = self.hierarchies.home("memory", path).dir.join("memory.reclaim");
        let failed = |error: &Error, with| matches!(error, Error::Write { errno: Some(n), .. } if *n == with);
        let (again, invalid) = (rustix::io::Errno::AGAIN.raw_os_error(), rustix::io::Errno::INVAL.raw_os_error());
        let written = match write(&file, &format!("{} swappiness=0", bytes.get())) {
            Err(error) if failed(&error, invalid) && has_swap() => {
                return Err(Error::Unsupported {
                    what: "reclaim without swapping",
                    file,
                    needs: "Linux 6.9, or no swap",
                });
            }
            Err(error) if failed(&error, invalid) => write(&file, &bytes.get().to_string()),
            other => other,
        };
        match written {
            Err(error) if failed(&error, again) => Ok(()),
            other => other,
        }
    }

    /// The freezer of the unified tree is part of every cgroup there, wherever the controllers are.
    fn freeze_file(&self, path: &str) -> std::path::PathBuf {
        self.hierarchies.unified.join(path).join("cgroup.freeze")
    }
}

/// Whether there is a swap device; below its heading the file has a line for each.
fn has_swap() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}
