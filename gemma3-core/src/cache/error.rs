//! What can be wrong with a request to the cache.

use super::CacheDtype;

/// A cache that cannot be made, or cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A capacity of no tokens.
    #[error("the cache capacity is 0 tokens; it must be at least 1")]
    ZeroCapacity,
    /// A prefill chunk of no tokens.
    #[error("the prefill chunk is 0 tokens; it must be at least 1")]
    ZeroChunk,
    /// More positions than the model was made for.
    #[error(
        "a cache of {capacity} tokens was asked for, but the model has {longest} positions (max_position_embeddings)"
    )]
    BeyondTheModel {
        /// Tokens asked for.
        capacity: usize,
        /// The model's `max_position_embeddings`.
        longest: usize,
    },
    /// The size in bytes does not fit 64 bits.
    #[error("the size of a cache of {capacity} tokens overflows 64 bits")]
    Overflow {
        /// Tokens asked for.
        capacity: usize,
    },
    /// The cache is larger than the memory.
    #[error(
        "the cache needs {needed_bytes} bytes, but {available_bytes} are available on the device; choose a smaller capacity"
    )]
    OutOfMemory {
        /// Bytes that the cache needs.
        needed_bytes: u64,
        /// Bytes that the device says it has.
        available_bytes: u64,
    },
    /// The keys of a layer are larger than what the device holds in one piece.
    #[error(
        "the keys of a layer take {needed_bytes} bytes, but the device allows {most_bytes} in a buffer; choose a smaller capacity"
    )]
    BeyondBuffer {
        /// Bytes that the keys of a layer take, and its values as many.
        needed_bytes: u64,
        /// The most bytes of a buffer.
        most_bytes: u64,
    },
    /// More tokens than there is room for.
    #[error("{count} tokens do not fit: {len} of {capacity} positions are taken")]
    Full {
        /// Tokens to be added.
        count: usize,
        /// Tokens already stored.
        len: usize,
        /// Tokens that fit altogether.
        capacity: usize,
    },
    /// More tokens at once than the rings were made for.
    #[error("{count} tokens at once, but the cache was made for chunks of at most {chunk}")]
    ChunkTooLong {
        /// Tokens to be added at once.
        count: usize,
        /// The cache's chunk.
        chunk: usize,
    },
    /// The sliding-window layers no longer hold the window before the requested length.
    #[error(
        "cannot go back from {len} to {requested} tokens: the sliding-window layers have overwritten what that needs; the earliest possible length is {earliest} (or 0: clear and prefill again)"
    )]
    CannotTruncate {
        /// Length asked for.
        requested: usize,
        /// Present length.
        len: usize,
        /// The smallest length, other than 0, that can be reached.
        earliest: usize,
    },
    /// A dtype that the device's attention does not read.
    #[error(
        "a cache of {dtype:?} cannot be used on this device; only flex and GPUs read other dtypes than F32"
    )]
    UnsupportedDtype {
        /// The dtype asked for.
        dtype: CacheDtype,
    },
    /// The cache was made for heads of another shape, or on another device.
    #[error(
        "the cache has {} heads of {} on {}, the model {} of {} on {}: it was made for another model",
        cache.0, cache.1, cache.2, model.0, model.1, model.2
    )]
    OtherHeads {
        /// Heads of keys, their width, and the device of the cache.
        cache: (usize, usize, String),
        /// The same of the model.
        model: (usize, usize, String),
    },
    /// The cache was made for another sliding window, or for other kinds of layers.
    #[error(
        "layer {layer} of the cache has room for {found} positions, but the model's needs {expected}: it was made for another model"
    )]
    OtherWindow {
        /// Index of the layer.
        layer: usize,
        /// Positions that the model's layer needs room for.
        expected: usize,
        /// Positions that the cache has room for.
        found: usize,
    },
    /// The cache was made for a model with another number of layers.
    #[error(
        "the cache has {cache_layers} layers and the model {model_layers}: it was made for another model"
    )]
    OtherModel {
        /// Layers of the cache.
        cache_layers: usize,
        /// Layers of the model.
        model_layers: usize,
    },
}
