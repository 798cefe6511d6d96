//! Files on this machine: digests, temporary names, and what is left of broken runs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::HubError;

/// Names of unfinished things begin with this, so that they can be told from models and removed.
const INCOMPLETE: &str = "incomplete-";

/// What is this old is of a run that was killed, not of one still going.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// SHA-256 of a file, in lower-case hexadecimal.
pub(super) fn sha256_of_file(path: &Path) -> Result<String, HubError> {
    let mut file = File::open(path).map_err(HubError::disk(path, "opened"))?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        let read = file.read(&mut buffer).map_err(HubError::disk(path, "read"))?;
        match buffer.get(..read) {
            Some(bytes) if read > 0 => digest.update(bytes),
            _ => return Ok(hex(digest)),
        }
    }
}

/// The digest in lower-case hexadecimal.
pub(super) fn hex(digest: Sha256) -> String {
    digest.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A path in `folder` for something unfinished, that no other process or thread uses. Being in the
/// same folder as the finished thing, it can be renamed to it in one step.
pub(super) fn incomplete_path(folder: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    // The seed of the standard library's hash maps tells apart processes of equal id, such as
    // those of containers that share a folder.
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), count);
    folder.join(format!("{INCOMPLETE}{}-{random:016x}", std::process::id()))
}

/// Removes what runs that were killed have left in `folder`. What cannot be removed stays: it does
/// no harm but for its size.
pub(super) fn remove_abandoned(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED_AFTER));
        if is_old && entry.file_name().to_string_lossy().starts_with(INCOMPLETE) {
            remove(&entry.path());
        }
    }
}

/// Removes a file or a folder with what is in it, if it is there.
pub(super) fn remove(path: &Path) {
    if fs::remove_file(path).is_err() {
        let _ = fs::remove_dir_all(path);
    }
}

/// Something unfinished: removed when dropped, unless it was renamed before.
pub(super) struct Incomplete(pub PathBuf);

impl Drop for Incomplete {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Sizes of the wheels below a folder, by name. Of those that lie there twice, as while pip copies
/// them, the larger counts.
pub(super) fn wheel_sizes(folder: &Path) -> BTreeMap<OsString, u64> {
    let mut sizes = BTreeMap::new();
    let mut add = |name, size: u64| {
        let known = sizes.entry(name).or_insert(0);
        *known = size.max(*known);
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        match entry.metadata() {
            // The metadata are the entry's own: links are not followed.
            Ok(metadata) if metadata.is_dir() => {
                wheel_sizes(&entry.path()).into_iter().for_each(|(name, size)| add(name, size));
            }
            Ok(metadata) if Path::new(&name).extension().is_some_and(|e| e == "whl") => {
                add(name, metadata.len());
            }
            // Neither, or gone since it was listed.
            _ => {}
        }
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_a_file_is_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("abc");
        fs::write(&file, "abc").unwrap();
        assert_eq!(
            sha256_of_file(&file).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn unfinished_things_have_names_of_their_own_and_vanish_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (incomplete_path(folder.path()), incomplete_path(folder.path()));
        assert_ne!(first, second);
        fs::create_dir(&first).unwrap();
        fs::write(first.join("inside"), "x").unwrap();
        fs::write(&second, "xyz").unwrap();
        drop(Incomplete(first));
        drop(Incomplete(second));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_wheel_that_lies_in_two_folders_counts_once() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("pip-unpack-x");
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join("a.whl"), "12345").unwrap();
        fs::write(inner.join("other"), "1").unwrap();
        fs::write(folder.path().join("a.whl"), "123").unwrap();
        fs::write(folder.path().join("b.whl"), "12").unwrap();
        assert_eq!(wheel_sizes(folder.path()).values().sum::<u64>(), 7);
    }

    #[test]
    fn only_old_unfinished_things_are_abandoned() {
        let folder = tempfile::tempdir().unwrap();
        let fresh = incomplete_path(folder.path());
        let old = incomplete_path(folder.path());
        let model = folder.path().join("model.gguf");
        let long_ago = std::time::SystemTime::now() - 2 * ABANDONED_AFTER;
        for (path, is_old) in [(&fresh, false), (&old, true), (&model, true)] {
            let file = File::create(path).unwrap();
            if is_old {
                file.set_modified(long_ago).unwrap();
            }
        }
        remove_abandoned(folder.path());
        assert!(fresh.exists() && model.exists() && !old.exists());
    }
}
