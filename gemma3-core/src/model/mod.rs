//! Gemma 3's decoder, one concept a file, readable beside the paper, over what a machine can do
//! ([`Machine`](crate::ops::machine::Machine)): the same text for every device.
//!
//! [`Model`] is what the rest of the library holds: a decoder with its device and its threads, shared by clones.
//!
//! ```text
//! ids ─ embedding ─┬─ block × N ──────────────────────────────┬─ norm ─ head ─ logits
//!                  │  x += norm(attention(norm(x)))           │
//!                  │  x += norm(feed_forward(norm(x)))        │
//!                  └─ the residual stream x is f32 throughout ┘
//! ```

mod block;
mod decoder;
mod details;
#[cfg(all(test, feature = "cube"))]
mod failure_tests;
mod load;
mod options;
mod rope;
mod shared;
mod tracing;

pub use crate::ops::machine::Logits;
pub use crate::ops::vectors::{EmbeddedSpan, Vectors};
pub use crate::run::{Activation, ForwardError, Trace, TracedTensor};
pub use load::{LoadError, expand_checked};
pub use options::{LoadOptions, LoadProgress};
pub use rope::RotaryEmbedding;
pub use shared::{Model, Segment, SegmentInput};
