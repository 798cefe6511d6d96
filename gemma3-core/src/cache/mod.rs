//! The KV cache of one sequence: what attention remembers of the tokens so far.
//!
//! Keys are stored after normalization and rope, so an entry never changes once written. A global
//! layer keeps every position ([`LayerCache`] with `capacity` slots). A sliding-window layer keeps a
//! ring of `min(capacity, window + chunk)` slots: position `p` lives in slot `p % slots`. The ring is
//! larger than the window by one prefill chunk, so that a whole chunk can be written before its first
//! query is answered, and by the same margin a few tokens can be taken back ([`KvCache::truncate`]).
//!
//! All memory is allocated when the cache is made and is written in place.

#[cfg(feature = "cube")]
mod device;
mod dtype;
mod error;
mod layer;
mod memory;

pub use dtype::CacheDtype;
pub use error::CacheError;
pub use layer::LayerCache;

#[cfg(feature = "cube")]
pub(crate) use device::{DeviceCache, LayerBuffers, compile_copies};
pub(crate) use layer::LayerView;

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
    /// elsewhere. Where there is no model ([`CacheOptions::bytes`], [`KvCache::new`]) `None` means F32.
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

    fn slots(&self, kind: LayerType, capacity: usize, config: &TextConfig) -> usize {
        match kind {
            LayerType::FullAttention => capacity,
            LayerType::SlidingAttention => capacity.min(config.sliding_window.saturating_add(self.chunk)),
        }
    }
}

/// Keys and values of one sequence, for all layers.
///
/// Cloning is a fork: the copies share memory until one of them is written to; then burn copies the
/// layers that are written, once, and the other stays as it was.
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Layers,
    device: Device,
    len: usize,
    /// One past the highest position written since the cache was empty. What truncation has taken back
    /// has still overwritten the rings.
    written: usize,
    capacity: usize,
    chunk: usize,
    window: usize,
    dtype: CacheDtype,
    bytes: u64,
}

/// Where keys and values lie.
#[derive(Debug, Clone)]
enum Layers {
    Tensors(Vec<LayerCache>),
    #[cfg(feature = "cube")]
    Device(DeviceCache),
}

impl KvCache {
    /// Allocates the cache for one sequence on `device`.
    ///
    /// # Errors
    ///
    /// Those of [`CacheOptions::bytes`], [`CacheError::UnsupportedDtype`], and [`CacheError::OutOfMemory`] if the device's memory (for
    /// CPU devices the memory that the system says is available) is smaller than the cache.
    pub fn new(config: &TextConfig, options: &CacheOptions, device: &Device) -> Result<Self, CacheError> {
        let dtype = options.dtype.unwrap_or_default();
        if !dtype.is_supported(device) {
            return Err(CacheError::UnsupportedDtype { dtype });
        }
        #[cfg(feature = "cube")]
        if config.head_dim.is_multiple_of(8)
            && let Some(stream) = crate::ops::cube::stream::Stream::open(device)
        {
            return Self::on_stream(config, options, device, &stream);
        }
        Self::with_layers(config, options, device, |slots| {
            let layer =
                |slots| LayerCache::new(config.num_key_value_heads, slots, config.head_dim, dtype, device);
            Layers::Tensors(slots.map(layer).collect())
        })
    }

    /// Allocates the cache in buffers that our kernels use.
    #[cfg(feature = "cube")]
    pub(crate) fn on_stream(
        config: &TextConfig,
        options: &CacheOptions,
        device: &Device,
        stream: &crate::ops::cube::stream::Stream,
    ) -> Result<Self, CacheError> {
        let dtype = options.dtype.unwrap_or_default();
        Self::with_layers(config, options, device, |slots| {
            let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
            Layers::Device(DeviceCache::new(stream, device, kv_heads, head_dim, slots, dtype))
        })
    }

    /// Checks the options and has the layers made, given the slots of each.
    fn with_layers(
        config: &TextConfig,
        options: &CacheOptions,
        device: &Device,
        layers: impl FnOnce(&mut dyn Iterator<Item = usize>) -> Layers,
    ) -> Result<Self, CacheError> {
        let capacity = options.resolve(config)?;
        let bytes = options.bytes(config)?;
        memory::check_available(bytes, device)?;
        let layers =
            layers(&mut config.layer_types.iter().map(|kind| options.slots(*kind, capacity, config)));
        Ok(Self {
            layers,
            device: device.clone(),
            len: 0,
            written: 0,
            capacity,
            chunk: options.chunk,
            window: config.sliding_window,
            dtype: options.dtype.unwrap_or_default(),
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
        self.dtype
    }

    /// Bytes that the cache occupies on its device; the formula of [`CacheOptions::bytes`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets all tokens and keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
        self.written = 0;
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

    pub(crate) fn layer(&mut self, index: usize) -> Option<LayerView<'_>> {
        match &mut self.layers {
            Layers::Tensors(layers) => layers.get_mut(index).map(LayerView::Tensors),
            #[cfg(feature = "cube")]
            Layers::Device(layers) => layers.layer(index).map(LayerView::Device),
        }
    }

    /// The layers, if they lie where our kernels use them.
    #[cfg(feature = "cube")]
    pub(crate) fn on_device(&mut self) -> Option<&mut DeviceCache> {
        match &mut self.layers {
            Layers::Device(layers) => Some(layers),
            Layers::Tensors(_) => None,
        }
    }

    /// Heads, slots, and width of a head, of each layer.
    fn sizes(&self) -> Vec<[usize; 3]> {
        match &self.layers {
            Layers::Tensors(layers) => layers.iter().map(LayerCache::sizes).collect(),
            #[cfg(feature = "cube")]
            Layers::Device(layers) => layers.sizes().collect(),
        }
    }

    /// Whether this is a cache of such a model on such a device.
    pub(crate) fn check(&self, config: &TextConfig, device: &Device) -> Result<(), CacheError> {
        let sizes = self.sizes();
        let (cache_layers, model_layers) = (sizes.len(), config.layer_types.len());
        if cache_layers != model_layers {
            return Err(CacheError::OtherModel { cache_layers, model_layers });
        }
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        for (layer, (&[heads, found, width], kind)) in sizes.iter().zip(&config.layer_types).enumerate() {
            if (heads, width) != (kv_heads, head_dim) || self.device != *device {
                let cache = (heads, width, format!("{:?}", self.device));
                return Err(CacheError::OtherHeads {
                    cache,
                    model: (kv_heads, head_dim, format!("{device:?}")),
                });
            }
            let options = CacheOptions { capacity: Some(self.capacity), chunk: self.chunk, dtype: None };
            let expected = options.slots(*kind, self.capacity, config);
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

    /// Records that `count` tokens beyond the last have been written, too: of steps that run ahead.
    #[cfg(feature = "cube")]
    pub(crate) fn note_written(&mut self, count: usize) {
        self.written = self.written.max(self.len + count);
    }
}

#[cfg(test)]
mod tests;
