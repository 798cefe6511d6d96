//! SigLIP's image encoder, one concept a file, over what a machine can do
//! ([`ImageMachine`](gemma3_core::ops::image::ImageMachine)): the same text for every device.
//!
//! ```text
//! pixels ─ patch and position embedding ─┬─ layer × N ────────────────────────┬─ norm
//!                                        │  x += attention(norm(x))           │
//!                                        │  x += fc2(gelu(fc1(norm(x))))      │
//!                                        └─ f32 throughout ───────────────────┘
//! ```
//!
//! A branch is given the residual that its last product is added to. Every patch sees every other. The norms are true layer norms, and the weights are used as they are,
//! without Gemma's `1 + w`.

mod attention;
mod encoder_layer;
mod linear;
mod mlp;
mod patch_embedding;
mod tower;

pub(crate) use attention::Attention;
pub(crate) use encoder_layer::EncoderLayer;
pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use patch_embedding::PatchEmbedding;
pub(crate) use tower::Tower;
