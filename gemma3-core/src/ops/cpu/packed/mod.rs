//! Weight matrices that stay in the format of their file: products with rows of f32, and single rows.
//!
//! ```text
//! let matrix = PackedMatrix::new(TensorFormat::Q4_0, [out, in], bytes)?;
//! let x = Activations::new(&x, rows, in, Precision::Fast);       // q, k and v share what is made of x
//! multiply_each(&x, [(&q, &mut q_out), (&k, &mut k_out), (&v, &mut v_out)]);
//! ```
//!
//! # The map
//!
//! | file | what it knows |
//! |---|---|
//! | `matrix` | [`PackedMatrix`]: keeps the bytes, picks the kernel |
//! | `products` | several matrices with one input in one parallel region: who takes which rows of weights |
//! | `layout` | block formats in panels of eight interleaved rows, and back |
//! | `memory` | the pages that panels lie in |
//! | `formats` | the bytes of a panel -> `scale * q + offset`, once for every format |
//! | `activations`, `tiles` | `x` in the forms that kernels read: 8 bits, 14 bits, f32, bf16 |
//! | `few_rows` | decoding, block formats: weights are unpacked in registers, and read once |
//! | `plain` | decoding, formats without blocks: read as they lie in the file |
//! | `many_rows` | prompts: pieces of weights are expanded into the first-level cache, then meet all rows |
//! | `many_bytes`, `many_words`, `many_floats` | the inner loops of that: 8 bits, 16 bits, f32 and bf16 |
//! | `strips` | the output, divided by columns (`unsafe`) |
//! | `lanes` | the vector instructions that all of this is written in, and their choice at run time |
//! | `portable`, `x86`, `neon` | those instructions (the last two `unsafe`) |
//!
//! # How exact
//!
//! [`Precision::Exact`](crate::ops::Precision) differs from the product with [dequantized](crate::formats::blocks::dequantize)
//! weights by roundings of f32 only. [`Precision::Fast`](crate::ops::Precision) rounds activations to 8 bits in blocks of 32, an
//! error of about 0.5% of the activations' deviation that is independent from one to the next; Q8_0 and
//! Q6_K round those of prompts to 14 bits, whose error is 64 times smaller.

mod activations;
mod few_rows;
mod formats;
mod lanes;
mod layout;
mod many_bytes;
mod many_floats;
mod many_rows;
mod many_words;
mod matrix;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
mod portable;
mod products;
mod strips;
#[cfg(test)]
mod tests;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
use crate::ops::Precision;
pub use activations::Activations;
pub(super) use lanes::{Kernel, Lanes, SimdLevel};
pub use matrix::{PackedError, PackedMatrix, SharedBytes};
pub use products::{multiply_each, multiply_gated};
pub(super) use tiles::FEW_ROWS;
