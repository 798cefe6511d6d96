//! The machine on the CPU: rows over the threads of the current rayon pool, SIMD chosen at run time by `pulp`.
//!
//! | file | what it knows |
//! |---|---|
//! | `machine` | [`Cpu`]: the decoder's operations, put together from the kernels below |
//! | `stream`, `rows` | what a pass keeps between operations |
//! | `matrix` | weights, as they come out of a checkpoint |
//! | `cache` | keys and values of a sequence |
//! | `packed` | products with weights in the format of their file |
//! | `cached_attention` | attention over a cache, and writing to it |
//! | `rms_norm`, `norm_rope`, `gelu_mul` | normalization, rotary embedding, the gated activation |
//! | `image` | the image encoder's operations, put together |
//! | `patches`, `layer_norm`, `bias_gelu`, `attention` | what only the image encoder has |
//! | `product`, `exp` | products of f32 inside of a fused operation; the exponential |
//!
//! What an operation computes is said in [`plain`](super::plain). Kernels take slices, and know nothing of passes.

mod attention;
mod bias_gelu;
mod cache;
mod cached_attention;
mod exp;
mod gelu_mul;
mod image;
mod layer_norm;
mod machine;
mod matrix;
mod norm_rope;
pub(crate) mod packed;
mod patches;
mod product;
mod rms_norm;
mod rows;
mod stream;
#[cfg(test)]
mod tests;

pub use cache::CpuCache;
pub use image::CpuFeatures;
pub use machine::Cpu;
pub use matrix::CpuMatrix;
pub use rows::CpuRows;
pub use stream::CpuStream;
