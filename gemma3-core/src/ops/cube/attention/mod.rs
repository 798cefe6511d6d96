//! Attention, from the fused projection of queries, keys and values to the attended values.
//!
//! | module | what it knows |
//! |---|---|
//! | `cache` | the KV cache and the numbers in it |
//! | `rotation` | sine and cosine of rotary embeddings |
//! | `heads` | a decode step's own heads: norm, rotation, their place in the cache |
//! | `decode` | one token over a part of the keys |
//! | `softmax` | a running softmax of a group of units, and of a cube |
//! | `splits` | the parts become one softmax |
//! | `prefill` | many tokens of a sequence over its cache |
//! | `full` | every position of an image over all others |

mod cache;
mod decode;
mod full;
mod heads;
mod prefill;
mod rotation;
mod softmax;
mod splits;
#[cfg(test)]
mod tests;

pub(crate) use cache::NOBODY;
pub use cache::{CacheFormat, CacheLayout};
pub use decode::{Combined, DecodeAttention, DecodeInputs, combines_at_once, decode_attention};
pub use full::{FullAttention, FullBuffers, full_attention};
pub use prefill::{
    Chunk, ChunkHeads, PrefillAttention, PrefillBuffers, PrefillPath, norm_rope_cache_chunk,
    prefill_attention, visible_ranges,
};
pub use splits::combine_splits;
