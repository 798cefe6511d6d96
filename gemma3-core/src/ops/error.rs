//! What can go wrong in an operation, and when weights become a matrix.

use crate::device::DeviceFailed;
use crate::formats::blocks::BlockError;

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The device failed, for instance for lack of memory.
    #[error(transparent)]
    Device(#[from] DeviceFailed),
    /// A state that this library rules out: not the caller's fault.
    #[error("a bug in gemma3: {what}; please report it, with the model, the device and the options used")]
    Bug {
        /// What was found that cannot be.
        what: &'static str,
    },
}

/// Why bytes do not make a matrix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// The bytes are not what format and shape ask for.
    #[error(transparent)]
    Blocks(#[from] BlockError),
    /// The bytes cannot be kept in their format.
    #[cfg(feature = "flex")]
    #[error(transparent)]
    Packed(#[from] super::cpu::packed::PackedError),
    /// The bytes cannot be kept in their format on a GPU.
    #[cfg(feature = "cube")]
    #[error(transparent)]
    PackedOnGpu(#[from] super::cube::packed::PackError),
    /// A tensor without axes.
    #[error("expected a matrix, found a tensor of shape {found:?}")]
    NotAMatrix {
        /// The tensor's shape.
        found: Vec<usize>,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceFailed),
}
