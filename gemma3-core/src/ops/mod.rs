//! What a device must be able to do for Gemma 3, and the devices that can.
//!
//! The decoder and the image encoder are written once, over the traits [`Machine`](machine::Machine) and
//! [`ImageMachine`]. Each operation has a plain definition that is its documentation, its fallback on every device,
//! and the oracle of its tests.
//!
//! | operation | definition | CPU | GPU |
//! |---|---|---|---|
//! | `embed` | `plain::machine` | `cpu::packed` | `cube::packed` |
//! | `project` | `plain::{norm, linear}` | `cpu::{rms_norm, packed}` | `cube::{reduce, matvec, gemm}` |
//! | `attend` | `plain::{rope, cache, attention}` | `cpu::{norm_rope, cached_attention}` | `cube::attention` |
//! | `gate` | `plain::{norm, linear, gelu}` | `cpu::{rms_norm, packed}` | `cube::{reduce, matvec, gemm}` |
//! | `join` | `plain::{linear, norm}` | `cpu::{packed, rms_norm}` | `cube::{matvec, gemm, reduce}` |
//! | `logits` | `plain::{norm, linear}` | `cpu::{rms_norm, packed}` | `cube::{reduce, matvec, gemm}` |
//! | `patches`, `mean_of_squares` | `plain::patches` | `cpu::patches` | `cube::patches` |
//! | `layer_norm`, `rms_norm` | `plain::norm` | `cpu::{layer_norm, rms_norm}` | `cube::gemm` |
//! | `linear`, `queries_keys_values` | `plain::{linear, gelu}` | `cpu::{packed, bias_gelu}` | `cube::gemm` |
//! | `full_attention` | `plain::attention` | `cpu::attention` | `cube::attention` |

#[cfg(feature = "flex")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
mod error;
pub mod image;
pub mod machine;
mod pass;
pub mod pending;
pub mod plain;
mod precision;
#[cfg(all(test, feature = "flex"))]
mod tests;
pub mod vectors;
mod visibility;
mod weights;

#[cfg(feature = "flex")]
pub use cpu::{Cpu, CpuCache, CpuFeatures, CpuMatrix, CpuRows, CpuStream};
#[cfg(feature = "cube")]
#[doc(hidden)]
pub use cube::costs;
#[cfg(feature = "cube")]
pub use cube::machine::Cube;
#[cfg(feature = "cube")]
#[doc(hidden)]
pub use cube::{
    gemm::{Numbers, RegisterTile},
    trial,
};
pub use error::{MachineError, MatrixError};
pub use precision::Precision;
pub use visibility::Visibility;

use burn::tensor::Device;

use image::ImageMachine;

/// What is done with the machine of a device, whichever it is.
pub trait OnMachine {
    /// What comes of it.
    type Output;

    /// Does it.
    fn on<M: ImageMachine>(self, machine: M) -> Self::Output;
}

/// Picks the machine of a device: the one place that does. `plain` asks for the definitions, which also devices without
/// a machine of their own take.
pub fn on_machine<V: OnMachine>(device: &Device, precision: Precision, plain: bool, visitor: V) -> V::Output {
    let _ = (precision, plain); // The definitions have one precision, and may be all there is.
    #[cfg(feature = "flex")]
    if !plain && crate::device::is_flex(device) {
        return visitor.on(Cpu { precision });
    }
    #[cfg(feature = "cube")]
    if !plain && let Some(cube) = Cube::open(device, precision) {
        return visitor.on(cube);
    }
    visitor.on(plain::Plain::new(device))
}
