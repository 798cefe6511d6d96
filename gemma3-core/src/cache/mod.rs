//! The KV cache of one sequence: what attention remembers of the tokens so far.
//!
//! Keys are stored after normalization and rope, so an entry never changes once written. A global
//! layer keeps every position, in as many slots as the capacity. A sliding-window layer keeps a
//! ring of `min(capacity, window + chunk)` slots ([`Ring`]). The ring is
//! larger than the window by one prefill chunk, so that a whole chunk can be written before its first
//! query is answered, and by the same margin a few tokens can be taken back ([`KvCache::truncate`]).
//!
//! This module knows which positions there are and where they lie; the memory is a machine's
//! ([`Machine::Cache`](crate::ops::machine::Machine::Cache)). All of it is allocated when the cache is made and is
//! written in place.

mod available;
mod dtype;
mod error;
mod memory;
mod table;

pub use dtype::CacheDtype;
pub use error::CacheError;
pub(crate) use memory::CacheMemory;
pub use table::{CacheShape, Ring};

use burn::tensor::Device;

use crate::config::{LayerType, TextConfig};

/// How large a cache to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// Positions (prompt and generated tokens together) that the sequence can hold. `None`: 8,192, or
    /// the model's `max_position_embeddings` if that is smaller.
    pub capacity: Option<usize>,
    /// The most tokens that are processed at once during prefill. Larger chunks use the hardware
    /// better; the sliding-window layers keep one chunk more than their window. Flex computes the same with any chunk
    /// of 34 or more, bit for bit; smaller ones are rounded otherwise.
    pub chunk: usize,
    /// In which numbers keys and values are kept. `None`: what suits the model, which is half precision (F16) on
    /// flex and GPUs unless the model is loaded with [`Precision::Exact`](crate::ops::Precision::Exact), and F32
    /// elsewhere. Where there is no model ([`CacheOptions::bytes`]) `None` means F32.
    pub dtype: Option<CacheDtype>,
}

/// Default of [`CacheOptions::capacity`], in tokens.
pub const DEFAULT_CAPACITY: usize = 8192;

impl Default for CacheOptions {
    fn default() -> Self {
        Self { capacity: None, chunk: 512, dtype: None }
    }
}

impl CacheOptions {
    /// The capacity for a model, and whether these options fit it.
    ///
    /// # Errors
    ///
    /// [`CacheError::ZeroCapacity`], [`CacheError::ZeroChunk`], or [`CacheError::BeyondTheModel`] if
    /// the capacity is larger than the model's `max_position_embeddings`.
    pub fn resolve(&self, config: &TextConfig) -> Result<usize, CacheError> {
        let longest = config.max_position_embeddings;
        let capacity = self.capacity.unwrap_or(DEFAULT_CAPACITY.min(longest));
        if capacity == 0 {
            return Err(CacheError::ZeroCapacity);
        }
        if self.chunk == 0 {
            return Err(CacheError::ZeroChunk);
        }
        if capacity > longest {
            return Err(CacheError::BeyondTheModel { capacity, longest });
        }
        Ok(capacity)
    }

    /// Bytes that the cache of one sequence occupies, exactly:
    /// `2 x kv_heads x head_dim x bytes of the dtype x (global_layers x capacity + local_layers x min(capacity, window + chunk))`.
    ///
    /// # Errors
    ///
    /// Those of [`CacheOptions::resolve`], and [`CacheError::Overflow`] if the number does not fit 64
    /// bits.
    pub fn bytes(&self, config: &TextConfig) -> Result<u64, CacheError> {
        let capacity = self.resolve(config)?;
        let bytes_per_value = self.dtype.unwrap_or_default().bytes();
        config
            .layer_types
            .iter()
            .try_fold(0_u64, |sum, kind| {
                let slots = self.slots(*kind, capacity, config) as u64;
                let layer = slots
                    .checked_mul(config.num_key_value_heads as u64)?
                    .checked_mul(config.head_dim as u64)?
                    .checked_mul(2 * bytes_per_value)?;
                sum.checked_add(layer)
            })
            .ok_or(CacheError::Overflow { capacity })
    }

    fn shape(&self, config: &TextConfig, capacity: usize) -> CacheShape {
        let ring = |kind: &LayerType| Ring::new(self.slots(*kind, capacity, config));
        CacheShape {
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rings: config.layer_types.iter().map(ring).collect(),
            dtype: self.dtype.unwrap_or_default(),
        }
    }

    fn slots(&self, kind: LayerType, capacity: usize, config: &TextConfig) -> usize {
        match kind {
            LayerType::FullAttention => capacity,
            LayerType::SlidingAttention => capacity.min(config.sliding_window.saturating_add(self.chunk)),
        }
    }
}

/// Keys and values of one sequence, for all layers.
///
/// Cloning is a fork: the copies share memory until one of them is written to; then what is written is copied,
/// once, and the other stays as it was.
#[derive(Debug, Clone)]
pub struct KvCache {
    memory: Box<dyn CacheMemory>,
    shape: CacheShape,
    device: Device,
    len: usize,
    /// One past the highest position written since the cache was empty. What truncation has taken back
    /// has still overwritten the rings.
    written: usize,
    ahead: usize,
    capacity: usize,
    chunk: usize,
    window: usize,
    bytes: u64,
}

impl KvCache {
    /// Checks the options and has a machine make the memory for one sequence.
    ///
    /// # Errors
    ///
    /// Those of [`CacheOptions::bytes`], [`CacheError::UnsupportedDtype`], [`CacheError::OutOfMemory`] if the
    /// device's memory (for CPU devices the memory that the system says is available) is smaller than the cache, and
    /// [`CacheError::BeyondBuffer`] if a GPU can't hold a layer's keys in one piece.
    pub(crate) fn new(
        config: &TextConfig,
        options: &CacheOptions,
        device: &Device,
        memory: impl FnOnce(&CacheShape) -> Box<dyn CacheMemory>,
    ) -> Result<Self, CacheError> {
        let dtype = options.dtype.unwrap_or_default();
        if !dtype.is_supported(device) {
            return Err(CacheError::UnsupportedDtype { dtype });
        }
        let capacity = options.resolve(config)?;
        let bytes = options.bytes(config)?;
        available::check(bytes, device)?;
        let shape = options.shape(config, capacity);
        available::check_layer(shape.layer_bytes(), device)?;
        Ok(Self {
            memory: memory(&shape),
            shape,
            device: device.clone(),
            len: 0,
            written: 0,
            ahead: 0,
            capacity,
            chunk: options.chunk,
            window: config.sliding_window,
            bytes,
        })
    }

    /// Tokens whose keys and values are stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that fit altogether.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens that still fit.
    pub fn remaining(&self) -> usize {
        self.capacity - self.len
    }

    /// The most tokens that one forward pass may add.
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// In which numbers keys and values are kept.
    pub fn dtype(&self) -> CacheDtype {
        self.shape.dtype
    }

    /// Bytes that the cache occupies on its device; the formula of [`CacheOptions::bytes`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets all tokens and keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
        self.written = 0;
        self.ahead = 0;
    }

    /// Forgets all but the first `len` tokens.
    ///
    /// A global layer can go back to any length. A sliding-window layer has overwritten what fell out
    /// of its ring, so when the sequence is longer than the ring it can go back only as long as the
    /// whole window before `len` is still there: at least to [`KvCache::earliest_truncation`].
    ///
    /// # Errors
    ///
    /// [`CacheError::CannotTruncate`], which names the earliest possible length; the cache is then
    /// unchanged. The caller can [`clear`](KvCache::clear) it and prefill the tokens again.
    pub fn truncate(&mut self, len: usize) -> Result<(), CacheError> {
        if len >= self.len {
            return Ok(());
        }
        if len == 0 {
            self.clear();
            return Ok(());
        }
        let earliest = self.earliest_truncation();
        if len < earliest {
            return Err(CacheError::CannotTruncate { requested: len, len: self.len, earliest });
        }
        self.len = len;
        self.ahead = 0;
        Ok(())
    }

    /// The smallest non-zero length that [`truncate`](KvCache::truncate) can still reach.
    pub fn earliest_truncation(&self) -> usize {
        let ring = self.window.saturating_add(self.chunk);
        if self.capacity <= ring || self.written <= ring {
            return 0;
        }
        // The ring holds positions written - ring .. written. The query at position n needs the
        // window - 1 positions before it.
        self.written - ring + (self.window - 1)
    }

    /// The memory, if a machine with caches of this type made it.
    pub(crate) fn memory<C: 'static>(&mut self) -> Option<&mut C> {
        // The box itself would do for `Any`, too.
        (*self.memory).as_any_mut().downcast_mut()
    }

    /// Whether this is a cache of such a model on such a device.
    pub(crate) fn check(&self, config: &TextConfig, device: &Device) -> Result<(), CacheError> {
        let (cache_layers, model_layers) = (self.shape.rings.len(), config.layer_types.len());
        if cache_layers != model_layers {
            return Err(CacheError::OtherModel { cache_layers, model_layers });
        }
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        let (found_heads, found_dim) = (self.shape.kv_heads, self.shape.head_dim);
        if (found_heads, found_dim) != (kv_heads, head_dim) || self.device != *device {
            let cache = (found_heads, found_dim, format!("{:?}", self.device));
            return Err(CacheError::OtherHeads { cache, model: (kv_heads, head_dim, format!("{device:?}")) });
        }
        let options = CacheOptions { capacity: Some(self.capacity), chunk: self.chunk, dtype: None };
        for (layer, (found, kind)) in self.shape.rings.iter().zip(&config.layer_types).enumerate() {
            let (found, expected) = (found.slots(), options.slots(*kind, self.capacity, config));
            if found != expected {
                return Err(CacheError::OtherWindow { layer, expected, found });
            }
        }
        Ok(())
    }

    /// Records that `count` more tokens have been written to every layer.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len += count;
        self.written = self.written.max(self.len);
    }

    /// Records that the last `count` tokens were not computed after all.
    pub(crate) fn take_back(&mut self, count: usize) {
        self.len = self.len.saturating_sub(count);
    }

    /// Tokens beyond the last that are written by passes whose tokens are not known yet.
    pub(crate) fn ahead(&self) -> usize {
        self.ahead
    }

    /// Records that a pass has been sent whose token may turn out to be none of the sequence.
    pub(crate) fn run_ahead(&mut self) {
        self.ahead += 1;
        self.written = self.written.max(self.len + self.ahead);
    }

    /// Records that the token of the oldest pass that ran ahead is one of the sequence.
    pub(crate) fn catch_up(&mut self) {
        self.ahead = self.ahead.saturating_sub(1);
        self.advance(1);
    }

    /// Records that the tokens of passes that ran ahead are none of the sequence. What they have written stays written.
    pub(crate) fn forget_ahead(&mut self) {
        self.ahead = 0;
    }
}

#[cfg(test)]
mod tests;
