//! Weight matrices that stay in the format of their file.
mod activations;
mod few_rows;
mod formats;
mod lanes;
mod layout;
mod many_bytes;
mod many_floats;
mod many_rows;
mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
mod portable;
mod strips;
#[cfg(test)]
mod tests;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{Activations, Precision};
pub use lanes::SimdLevel;
pub use matrix::{PackedError, PackedMatrix, SharedBytes};
