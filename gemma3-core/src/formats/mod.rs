//! What the bytes of a weight mean: the numeric formats of files, what a block of each decodes to, and
//! quantization when weights are loaded.
//!
//! This is ground: checkpoints, which know where bytes lie, and operations, which multiply with them, stand on
//! it; it knows neither. Another format is a variant of [`TensorFormat`] and a file in [`blocks`].

pub mod blocks;
mod format;
mod quantize;

pub use format::{FormatError, TensorFormat};
pub use quantize::Quantization;

pub(crate) use quantize::quantize;
