//! The calls of `bpf(2)` that aya does not have: a whole map at once, and iterators.
//!
//! **Problem.** Reading a map key by key is two system calls and some allocations per key; a node has some thousand keys and
//! is read every second.
//!
//! **Approach.** `BPF_MAP_LOOKUP_BATCH` (Linux 5.6) fills the caller's buffers. A [`MapFile`] knows from the kernel itself how
//! long keys and values are, and refuses shorter buffers; so no caller can make the kernel write behind one.
//!
//! **Terms.** A *row* is the value of one CPU, padded to 8 bytes; a value of a per-CPU map is a row for every possible CPU.
//!
//! **Properties.** The only unsafe code of this room but for one line in `watch`. Nothing is allocated.
#![expect(unsafe_code, reason = "bpf(2) takes addresses")]

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use aya::{
    maps::{MapData, MapType},
    util::nr_cpus,
};

/// Commands of `bpf(2)` (`enum bpf_cmd` in `include/uapi/linux/bpf.h`).
mod command {
    #[cfg(test)]
    pub(super) const MAP_CREATE: libc::c_int = 0;
    pub(super) const MAP_LOOKUP_ELEM: libc::c_int = 1;
    #[cfg(test)]
    pub(super) const MAP_UPDATE_ELEM: libc::c_int = 2;
    pub(super) const MAP_DELETE_ELEM: libc::c_int = 3;
    pub(super) const MAP_GET_NEXT_KEY: libc::c_int = 4;
    pub(super) const MAP_LOOKUP_BATCH: libc::c_int = 24;
    pub(super) const LINK_CREATE: libc::c_int = 28;
    pub(super) const ITER_CREATE: libc::c_int = 33;
}

/// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
const TRACE_ITER: u32 = 28;

/// `bpf_attr` of the commands on one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

/// `bpf_attr.batch`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// `bpf_attr.link_create`.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// `bpf_attr.iter_create`.
#[repr(C)]
#[derive(Default)]
struct IterCreate {
    link: u32,
    flags: u32,
}

/// Where a reading in batches goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position(u64);

/// What a batch brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    /// So many keys and values are in the buffers.
    pub(super) count: usize,
    /// Where the rest is; `None` at the end.
    pub(super) rest: Option<Position>,
}

/// A hash (of any kind) or a per-CPU array, and the lengths of its keys and values.
#[derive(Debug)]
pub(super) struct MapFile {
    data: MapData,
    key_bytes: usize,
    value_bytes: usize,
    rows: usize,
    max_entries: u32,
    is_hash: bool,
}

impl MapFile {
    /// Asks the kernel what the map is like.
    pub(super) fn new(data: MapData) -> io::Result<Self> {
        let info = data.info().map_err(io::Error::other)?;
        let kind = info.map_type().map_err(io::Error::other)?;
        let is_hash = matches!(kind, MapType::Hash | MapType::LruHash | MapType::PerCpuHash | MapType::LruPerCpuHash);
        let per_cpu = matches!(kind, MapType::PerCpuHash | MapType::LruPerCpuHash | MapType::PerCpuArray);
        if !is_hash && kind != MapType::PerCpuArray {
            return Err(io::Error::other(format!("a map of kind {kind:?} is not read so")));
        }
        let rows = if per_cpu { nr_cpus().map_err(|(_, error)| error)? } else { 1 };
        let value = info.value_size() as usize;
        let row_bytes = if per_cpu { value.next_multiple_of(8) } else { value };
        let (key_bytes, max_entries) = (info.key_size() as usize, info.max_entries());
        Ok(Self { data, key_bytes, value_bytes: row_bytes * rows, rows, max_entries, is_hash })
    }

    /// Bytes of a key.
    pub(super) const fn key_bytes(&self) -> usize {
        self.key_bytes
    }

    /// Bytes of a value, of all CPUs together.
    pub(super) const fn value_bytes(&self) -> usize {
        self.value_bytes
    }

    /// Rows of a value: possible CPUs, or 1.
    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// Entries that fit.
    pub(super) const fn max_entries(&self) -> u32 {
        self.max_entries
    }

    /// Reads as many entries as the buffers hold.
    ///
    /// # Errors
    /// `ENOSPC` if the buffers do not hold the entries of one bucket: try longer ones. `EINVAL` or the kernel's own
    /// `ENOTSUPP` (524) if this map cannot be read so.
    pub(super) fn batch(&self, from: Option<Position>, keys: &mut [u64], values: &mut [u64]) -> io::Result<Read> {
        if !self.is_hash {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let most = (size_of_val(keys) / self.key_bytes).min(size_of_val(values) / self.value_bytes);
        if most == 0 {
            // The kernel would take this for success.
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let mut to = Position(0);
        let mut attribute = Batch {
            from: from.as_ref().map_or(0, |it| (&raw const it.0).expose_provenance() as u64),
            to: (&raw mut to.0).expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: u32::try_from(most).unwrap_or(u32::MAX),
            map: self.fd()?,
            ..Batch::default()
        };
        // SAFETY: the kernel writes at most `count` keys of `key_bytes` and values of `value_bytes` (its own figures for this
        // map), for which both buffers have room; of a hash the position has 4 bytes; all live until the call returns.
        let result = unsafe { bpf(command::MAP_LOOKUP_BATCH, &mut attribute) };
        let count = attribute.count as usize;
        match result {
            Ok(_) => Ok(Read { count, rest: Some(to) }),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Read { count, rest: None }),
            Err(error) => Err(error),
        }
    }

    /// Reads the value of one key; `false` if there is none.
    ///
    /// # Errors
    /// If a buffer is too short, or the kernel refuses.
    pub(super) fn get(&self, key: &[u8], value: &mut [u64]) -> io::Result<bool> {
        self.check(key.len(), size_of_val(value))?;
        let value = value.as_mut_ptr().expose_provenance();
        // SAFETY: the key has the map's length, and there is room for a value.
        found(unsafe { self.element(command::MAP_LOOKUP_ELEM, key, value) })
    }

    /// The key after this one, or the first; `false` if there is none.
    ///
    /// # Errors
    /// If a buffer is too short, or the kernel refuses.
    pub(super) fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        self.check(key.map_or(self.key_bytes, <[u8]>::len), self.value_bytes)?;
        self.check(next.len(), self.value_bytes)?;
        let next = next.as_mut_ptr().expose_provenance();
        // SAFETY: both have the map's length of a key; no key at all asks for the first.
        found(unsafe { self.element(command::MAP_GET_NEXT_KEY, key.unwrap_or_default(), next) })
    }

    /// Removes a key; `false` if there is none.
    ///
    /// # Errors
    /// If the key is too short, or the kernel refuses.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key.len(), self.value_bytes)?;
        // SAFETY: the key has the map's length.
        found(unsafe { self.element(command::MAP_DELETE_ELEM, key, 0) })
    }

    #[cfg(test)]
    pub(super) fn put(&self, key: &[u8], value: &[u64]) -> io::Result<()> {
        self.check(key.len(), size_of_val(value))?;
        let value = value.as_ptr().expose_provenance();
        // SAFETY: key and value have the map's lengths; the kernel only reads them.
        unsafe { self.element(command::MAP_UPDATE_ELEM, key, value) }
    }

    fn fd(&self) -> io::Result<u32> {
        number(self.data.fd().as_fd())
    }

    fn check(&self, key: usize, value: usize) -> io::Result<()> {
        if key == self.key_bytes && value >= self.value_bytes {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "a buffer is not as long as the map's keys or values"))
    }

    /// # Safety
    /// `key` is empty (no key) or has the map's length; at `second` is what the command reads or writes there.
    unsafe fn element(&self, command: libc::c_int, key: &[u8], second: usize) -> io::Result<()> {
        let mut attribute = Element {
            map: self.fd()?,
            key: if key.is_empty() { 0 } else { key.as_ptr().expose_provenance() as u64 },
            value_or_next_key: second as u64,
            ..Element::default()
        };
        // SAFETY: the caller's word.
        unsafe { bpf(command, &mut attribute) }.map(drop)
    }
}

/// Attaches a loaded iterator program; what comes back is kept for [`walk`].
///
/// # Errors
/// If the kernel refuses.
pub(super) fn attach_iterator(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreate { program: number(program)?, attach_type: TRACE_ITER, ..LinkCreate::default() };
    // SAFETY: the command reads the attribute only, and gives a new file descriptor.
    unsafe { bpf(command::LINK_CREATE, &mut attribute).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Lets an iterator run once, from the first object to the last. What it writes, if anything, is not kept.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn walk(link: &OwnedFd) -> io::Result<()> {
    let mut attribute = IterCreate { link: number(link.as_fd())?, flags: 0 };
    // SAFETY: as for the link.
    let walk = unsafe { bpf(command::ITER_CREATE, &mut attribute).map(|fd| OwnedFd::from_raw_fd(fd))? };
    let mut file = File::from(walk);
    let mut nothing = [0; 64];
    loop {
        match io::Read::read(&mut file, &mut nothing) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // The kernel asks to come again after a million objects without output (`bpf_seq_read`), or after a signal.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A missing key is no error.
fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn number(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// # Safety
/// `attribute` is laid out as the kernel's `bpf_attr` of this command, and the addresses in it are valid for what the command
/// does there.
unsafe fn bpf<T>(command: libc::c_int, attribute: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's word; the kernel takes a shorter attribute as one with zeros behind.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { libc::c_int::try_from(result).map_err(io::Error::other) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// `bpf_attr` of `BPF_MAP_CREATE`.
    #[repr(C)]
    struct MapCreate {
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        max_entries: u32,
        flags: u32,
    }

    /// Makes a map; `None`, and a word on it, where this process may not.
    pub(in crate::kernel) fn make(kind: MapType, key: usize, value: usize, entries: u32) -> Option<MapFile> {
        let size = |bytes: usize| u32::try_from(bytes).unwrap();
        let mut attribute = MapCreate {
            kind: kind as u32,
            key_bytes: size(key),
            value_bytes: size(value),
            max_entries: entries,
            flags: 0,
        };
        // SAFETY: the command reads the attribute only, and gives a new file descriptor.
        let made = unsafe { bpf(command::MAP_CREATE, &mut attribute).map(|fd| OwnedFd::from_raw_fd(fd)) };
        match made {
            Ok(fd) => Some(MapFile::new(MapData::from_fd(fd).unwrap()).unwrap()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let test = std::thread::current().name().unwrap_or("a test").to_owned();
                eprintln!("SKIPPED {test}: eBPF maps may not be made here: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_map_of_many_batches_is_read_whole_and_once() {
        let Some(map) = make(MapType::Hash, 8, 8, 1_024) else { return };
        for key in 0..1_000_u64 {
            map.put(&key.to_ne_bytes(), &[key * 3]).unwrap();
        }
        let (mut keys, mut values) = ([0_u64; 100], [0_u64; 100]);
        let (mut seen, mut from, mut calls) = (std::collections::BTreeMap::new(), None, 0);
        loop {
            let read = map.batch(from, &mut keys, &mut values).unwrap();
            calls += 1;
            for (key, value) in keys[..read.count].iter().zip(&values) {
                assert_eq!(seen.insert(*key, *value), None, "key {key} twice");
            }
            from = read.rest;
            if from.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), 1_000);
        assert!(seen.iter().all(|(key, value)| *value == key * 3));
        assert!(calls >= 10, "{calls} calls");
    }

    #[test]
    fn buffers_that_are_too_short_are_refused() {
        let Some(map) = make(MapType::PerCpuHash, 16, 24, 8) else { return };
        assert_eq!(map.value_bytes(), 24 * map.rows());
        let mut value = vec![0; 3 * map.rows()];
        assert!(map.get(&[0; 8], &mut value).is_err(), "half a key");
        assert!(map.get(&[0; 16], &mut value[1..]).is_err(), "a word too few");
        assert!(map.next_key(None, &mut [0; 15]).is_err());
        assert!(!map.get(&[0; 16], &mut value).unwrap());
        assert!(!map.remove(&[0; 16]).unwrap());
        // Not even one entry fits.
        assert!(map.batch(None, &mut [0; 2], &mut value[1..]).is_err());
    }
}
