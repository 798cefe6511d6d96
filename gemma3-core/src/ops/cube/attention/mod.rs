//! Attention of a decode step, from the fused projection of queries, keys and values to the attended values.

mod cache;
mod decode;
mod heads;
mod rotation;
#[cfg(test)]
mod tests;

pub use cache::{CacheFormat, CacheLayout};
pub use decode::{DecodeAttention, DecodeBuffers, decode_attention};
pub use heads::{Heads, norm_rope_cache};
