//! Which beelet made something.
//!
//! Problem: two beelets on one runtime (each with a root of its own) must not take each other's pods for orphans. Approach: a random
//! id in a file of the root, made once; everything made in the runtime carries it.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// The id of the beelet of this root, made if it is not there yet.
///
/// # Errors
/// If the file can be neither read nor made.
pub fn instance(root: &Path) -> io::Result<String> {
    let file = root.join("instance");
    match fs::read_to_string(&file) {
        Ok(id) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned();
    // There as a whole or not at all: another id tomorrow would make strangers of today's pods.
    let half = root.join(".instance");
    let mut written = fs::File::create(&half)?;
    written.write_all(id.as_bytes())?;
    written.sync_all()?;
    fs::rename(&half, &file)?;
    fs::File::open(root)?.sync_all()?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_keeps_its_id() {
        let (one, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        let id = instance(one.path()).expect("an id");
        assert_eq!((instance(one.path()).expect("the same"), id.len()), (id.clone(), 36));
        assert_ne!(instance(other.path()).expect("another"), id);
    }
}
