//! Attention, from the fused projection of queries, keys and values to the attended values.

mod cache;
mod decode;
mod full;
mod heads;
mod prefill;
mod rotation;
#[cfg(test)]
mod tests;

pub use cache::{CacheFormat, CacheLayout};
pub use decode::{DecodeAttention, DecodeBuffers, decode_attention};
pub use full::{FullAttention, FullBuffers, full_attention};
pub use heads::{Heads, norm_rope_cache};
pub use prefill::{
    Chunk, ChunkHeads, PrefillAttention, PrefillBuffers, PrefillPath, TensorTile, norm_rope_cache_chunk,
    prefill_attention, visible_ranges,
};
