//! The bytes of a checkpoint's files: memory-mapped, or handed over by the application.
//!
//! The one place of this crate's loading code with `unsafe`.

use std::fmt;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::CheckpointError;

/// Bytes of a file in memory, shared without copying: cloning is cheap.
#[derive(Clone)]
pub struct CheckpointBytes(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl CheckpointBytes {
    /// Takes over anything that holds bytes, such as an asset handle of a game engine. The bytes
    /// must stay the same while the checkpoint lives, else loading ends in errors or wrong weights.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(owner))
    }

    /// Maps a regular file.
    pub(super) fn map(path: &Path) -> Result<Self, CheckpointError> {
        // Looked at before opening: opening a named pipe would wait for its writer.
        let metadata = std::fs::metadata(path).map_err(|error| CheckpointError::io(path, error))?;
        if !metadata.is_file() {
            return Err(CheckpointError::NotARegularFile { path: path.to_owned() });
        }
        if metadata.len() == 0 {
            return Err(CheckpointError::EmptyFile { file: path.display().to_string() });
        }
        let file = File::open(path).map_err(|error| CheckpointError::io(path, error))?;
        // SAFETY: the map is private to this value, read-only, and lives as long as every slice
        // into it. What Rust can't promise is that no other process shortens or rewrites the file
        // meanwhile: then reads give other bytes or end the process by a signal (SIGBUS), as for
        // every program that maps files. Bytes that change are harmless to memory safety here: the
        // offsets are checked once against the mapped length, which doesn't change, and all
        // contents are plain numbers of which every bit pattern is valid; text is copied or
        // re-validated before it becomes `str`.
        #[allow(unsafe_code, reason = "memory-mapping; the argument is above")]
        let map = unsafe { Mmap::map(&file) }.map_err(|error| CheckpointError::io(path, error))?;
        Ok(Self(Arc::new(map)))
    }

    /// What holds the bytes, to be kept by weights that are used where they lie.
    #[cfg(feature = "flex")]
    pub(crate) fn owner(&self) -> Arc<dyn AsRef<[u8]> + Send + Sync> {
        Arc::clone(&self.0)
    }

    /// All bytes.
    pub fn as_slice(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for CheckpointBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "CheckpointBytes({} bytes)", self.as_slice().len())
    }
}

impl From<Vec<u8>> for CheckpointBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_owner(bytes)
    }
}

impl From<Arc<[u8]>> for CheckpointBytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::from_owner(bytes)
    }
}

impl From<&'static [u8]> for CheckpointBytes {
    fn from(bytes: &'static [u8]) -> Self {
        Self::from_owner(bytes)
    }
}
