//! Gemma 3's decoder, one concept a file, readable beside the paper.
//!
//! [`Decoder`] is the mathematics over plain tensors. [`Model`] is what the rest of the library holds:
//! a decoder with its device and its threads, shared by clones.
//!
//! ```text
//! ids ─ embedding ─┬─ block × N ──────────────────────────────┬─ norm ─ head ─ logits
//!                  │  x += norm(attention(norm(x)))           │
//!                  │  x += norm(feed_forward(norm(x)))        │
//!                  └─ the residual stream x is f32 throughout ┘
//! ```

mod attention;
mod block;
mod decoder;
mod embedding;
mod feed_forward;
#[cfg(feature = "cube")]
pub(crate) mod gpu;
mod handle;
mod load;
mod norm;
mod rope;
mod span;
mod trace;

pub use decoder::{Decoder, Logits, Segment, SegmentInput};
pub use handle::{ForwardError, Model};
pub use load::{LoadError, LoadOptions, LoadProgress, expand_checked, load_matrix};
pub use norm::RmsNorm;
pub use rope::RotaryEmbedding;
pub use span::EmbeddedSpan;
pub use trace::{Activation, Trace, TracedTensor};
