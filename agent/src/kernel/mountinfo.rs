//! The table of mounts as text, whatever the names of mount points are made of.
//!
//! Problem: a name may have any bytes (a stick with an old label, a pod that mounts something), and one that is no UTF-8 would make all
//! mounts unreadable, and with them the hierarchies of cgroups. Approach: such bytes are replaced; nobody here looks for such a name.
//! (Who removes what pods mounted has to, and reads the bytes.)

use std::{fs, io};

/// Where the kernel shows it.
pub(crate) const FILE: &str = "/proc/self/mountinfo";

/// Reads it.
pub(crate) fn read() -> io::Result<String> {
    fs::read(FILE).map(text)
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use procfs::FromRead as _;

    use super::*;
    use crate::cgroup::Hierarchies;

    #[test]
    fn a_name_that_is_no_utf8_hides_no_other_mount() {
        let odd = b"40 25 0:31 / /mnt/\xffstick rw - vfat /dev/sdb1 rw\n".to_vec();
        let table = text([odd, b"32 25 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n".to_vec()].concat());
        assert!(Hierarchies::parse(&table).is_ok());
        let mounts = procfs::process::MountInfos::from_read(table.as_bytes()).expect("a table");
        assert_eq!(mounts.into_iter().map(|mount| mount.fs_type).collect::<Vec<_>>(), ["vfat", "cgroup2"]);
        assert!(read().is_ok_and(|table| table.contains(" / ")));
    }
}
