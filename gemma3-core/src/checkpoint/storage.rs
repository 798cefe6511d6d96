//! The bytes of a checkpoint's files: memory-mapped, or handed over by the application.
//!
//! The one place of this crate's loading code with `unsafe`.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::CheckpointError;

/// Bytes of a file in memory, shared without copying: cloning is cheap.
#[derive(Clone)]
pub struct CheckpointBytes(Arc<dyn Owner + Send + Sync>);

/// What holds bytes.
trait Owner: AsRef<[u8]> {
    /// Whether the bytes are those of a file, which need not stay in memory.
    #[cfg(feature = "flex")]
    fn is_mapped(&self) -> bool;

    /// Gives the memory of some bytes back to the system, where they can be had again.
    fn release(&self, range: Range<usize>);
}

/// Something of the application's.
struct Given<T>(T);

/// A mapped file.
struct Mapped(Mmap);

impl<T: AsRef<[u8]>> AsRef<[u8]> for Given<T> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl<T: AsRef<[u8]>> Owner for Given<T> {
    #[cfg(feature = "flex")]
    fn is_mapped(&self) -> bool {
        false
    }

    fn release(&self, _range: Range<usize>) {}
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Owner for Mapped {
    #[cfg(feature = "flex")]
    fn is_mapped(&self) -> bool {
        true
    }

    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the pages belong to a read-only map of a file that nobody has written to through it,
            // so that dropping them loses nothing: a later read gets them from the file again, with the
            // same bytes, as the argument of `map` has it. The range is checked against the map.
            #[allow(unsafe_code, reason = "advice on a map; the argument is above")]
            let result = unsafe { self.0.unchecked_advise_range(advice, range.start, range.len()) };
            let _ = result; // Advice that is not taken costs memory, nothing else.
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl CheckpointBytes {
    /// Takes over anything that holds bytes, such as an asset handle of a game engine. The bytes
    /// must stay the same while the checkpoint lives, else loading ends in errors or wrong weights.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Given(owner)))
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
        Ok(Self(Arc::new(Mapped(map))))
    }

    /// What holds the bytes, to be kept by weights that are used where they lie.
    #[cfg(feature = "flex")]
    pub(crate) fn owner(&self) -> Arc<dyn AsRef<[u8]> + Send + Sync> {
        let owner: Arc<dyn Owner + Send + Sync> = Arc::clone(&self.0);
        owner
    }

    /// Whether this is a mapped file.
    #[cfg(feature = "flex")]
    pub(crate) fn is_mapped(&self) -> bool {
        self.0.is_mapped()
    }

    /// Says that some of the bytes will not be read again soon: a mapped file's pages need not stay in
    /// memory. They can still be read.
    pub(crate) fn release(&self, range: Range<usize>) {
        let within = range.start.min(self.as_slice().len())..range.end.min(self.as_slice().len());
        if !within.is_empty() {
            self.0.release(within);
        }
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
