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

    /// Frees so much of a cgroup's memory, as far as the kernel can; waits for it.
    ///
    /// # Errors
    /// If the kernel has no `memory.reclaim` (before 5.19, or the controller is on v1). That less could be freed is none.
    pub fn reclaim(&self, path: &str, bytes: Bytes) -> Result<(), Error> {
        check(path)?;
        let file = self.hierarchies.home("memory", path).dir.join("memory.reclaim");
        match write(&file, &bytes.get().to_string()) {
            Err(Error::Write { errno: Some(errno), .. }) if errno == rustix::io::Errno::AGAIN.raw_os_error() => Ok(()),
            other => other,
        }
    }

    /// The freezer of the unified tree is part of every cgroup there, wherever the controllers are.
    fn freeze_file(&self, path: &str) -> std::path::PathBuf {
        self.hierarchies.unified.join(path).join("cgroup.freeze")
    }
}
