//! Kernels of the decoder and of the image encoder for GPUs, from packed weights: CUDA, Vulkan, WGSL.
//!
//! They take clients and handles of buffers and know no tensors. Nothing of a position reaches a launch:
//! neither its shape nor a scalar, only the contents of a buffer, so that a recorded step can be replayed.
//!
//! | module | what it knows |
//! |---|---|
//! | `packed` | weights in device memory in the format of their file; rows of them by id |
//! | `matvec` | products of up to 8 rows with them, with norms in front and gated ends; how they are divided |
//! | `gemm` | products of many rows, with norms in front and biases, activations and residuals behind |
//! | `attention` | heads into queries and the KV cache; tokens over the cache; images over themselves |
//! | `sampling` | logits into the next token |
//! | `patches` | an image into the vectors of its patches, and these into fewer |
//! | `commands` | the commands of a model, and how numbers come and go |
//! | `costs` | what a step costs beside its computations, for benches |
//! | `limits` | what a device allows at most: bytes of a buffer, work at once |
//! | `machine` | [`Cube`](machine::Cube): what of these is launched, in which order, over which buffers |
//! | `trial` | multiply-adds and products by themselves, for benches |
//! | `reduce` | sums and largest values over the units of a cube, with plane operations and without |
//!
//! The order of launches follows from `machine` and what runs over it: the decoder, or the image encoder.
#![allow(unsafe_code, reason = "launches; each says why its buffers are large enough")]

/// What the runtime that compiles to PTX calls itself.
pub(crate) const CUDA: &str = "cuda";
/// The same of the one that compiles to SPIR-V.
pub(crate) const SPIRV: &str = "wgpu<spirv>";

pub mod attention;
pub(crate) mod commands;
pub(crate) mod copy;
pub mod costs;
pub mod gelu;
pub mod gemm;
pub(crate) mod limits;
pub(crate) mod machine;
pub mod matvec;
pub mod packed;
pub mod patches;
pub mod reduce;
pub mod sampling;
#[cfg(test)]
pub(crate) mod testing;
pub mod trial;
