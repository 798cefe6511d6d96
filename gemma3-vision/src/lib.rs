//! The vision half of Gemma 3: pixels to soft tokens.
//!
//! So far this crate holds only its seam with the decoder: [`SoftTokens`], the vectors that stand for one
//! image, and [`place`], which puts them where a prompt has placeholders. Preprocessing and the SigLIP
//! tower will produce them; the decoder ([`gemma3_core`]) takes the result as
//! [`SegmentInput::Embeddings`](gemma3_core::model::SegmentInput::Embeddings) and knows nothing of pixels.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod soft_tokens;

pub use soft_tokens::{PlacedPrompt, SoftTokens, SoftTokensError, place};
