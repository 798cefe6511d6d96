//! Keys and values of one layer: `slots` positions, used as a ring.

use burn::tensor::{Device, Tensor, TensorCreationOptions};

use super::CacheDtype;
#[cfg(feature = "cube")]
use super::device::DeviceLayer;
use crate::device::DeviceFailed;
use crate::ops::{self, Visibility, portable};

/// Keys and values of one layer, each \[kv_heads, slots, head_dim\].
///
/// Position `p` is stored in slot `p % slots`. A layer that keeps all positions is the case in which
/// the ring never comes around.
#[derive(Debug, Clone)]
pub struct LayerCache {
    keys: Tensor<3>,
    values: Tensor<3>,
}

impl LayerCache {
    pub(super) fn new(
        kv_heads: usize,
        slots: usize,
        head_dim: usize,
        dtype: CacheDtype,
        device: &Device,
    ) -> Self {
        let options = TensorCreationOptions::new(device.clone()).with_dtype(dtype.of_tensors());
        let empty = || Tensor::zeros([kv_heads, slots, head_dim], options.clone());
        Self { keys: empty(), values: empty() }
    }

    /// Heads, slots, and width of a head.
    pub(super) fn sizes(&self) -> [usize; 3] {
        self.keys.dims()
    }

    /// Stores `keys` and `values` \[count, kv_heads * head_dim\] at positions `start..start + count`.
    ///
    /// `count` must not exceed the slots. Written in place when this cache is the only owner of its
    /// memory.
    pub(crate) fn write(&mut self, start: usize, keys: Tensor<2>, values: Tensor<2>) {
        self.keys.inplace(|all| ops::write_cache(all, keys, start));
        self.values.inplace(|all| ops::write_cache(all, values, start));
    }

    /// Attention of the queries `q` \[tokens, heads * head_dim\], which are scaled and whose own keys and values
    /// are already stored: \[tokens, heads * head_dim\].
    pub(crate) fn attend(&self, q: Tensor<2>, heads: usize, visibility: &Visibility) -> Tensor<2> {
        ops::cached_attention(q, &self.keys, &self.values, heads, visibility)
    }

    /// What [`attend`](Self::attend) weighs the values with: \[heads, tokens, keys\].
    pub(crate) fn probabilities(&self, q: Tensor<2>, heads: usize, visibility: &Visibility) -> Tensor<3> {
        let rows = 0..q.dims()[0];
        portable::attention_probabilities(q, &self.keys, heads, visibility, rows)
    }

    /// Keys and values of consecutive positions, each \[kv_heads, positions, head_dim\].
    #[cfg(test)]
    pub(super) fn entries(&self, positions: std::ops::Range<usize>) -> (Tensor<3>, Tensor<3>) {
        let entries = |cache| portable::entries(cache, positions.clone());
        (entries(&self.keys), entries(&self.values))
    }
}

/// A layer as a pass over plain tensors sees it, wherever it lies.
// A view lives for one call, so its size does not matter.
#[allow(clippy::large_enum_variant)]
pub(crate) enum LayerView<'a> {
    /// In tensors of burn's.
    Tensors(&'a mut LayerCache),
    /// In buffers of our kernels.
    #[cfg(feature = "cube")]
    Device(DeviceLayer),
}

impl LayerView<'_> {
    /// Stores `keys` and `values` \[count, kv_heads * head_dim\] at positions `start..start + count`.
    pub(crate) fn write(
        &mut self,
        start: usize,
        keys: Tensor<2>,
        values: Tensor<2>,
    ) -> Result<(), DeviceFailed> {
        match self {
            Self::Tensors(layer) => layer.write(start, keys, values),
            #[cfg(feature = "cube")]
            Self::Device(layer) => return layer.write(start, keys, values),
        }
        Ok(())
    }

    /// See [`LayerCache::attend`].
    pub(crate) fn attend(
        &self,
        q: Tensor<2>,
        heads: usize,
        visibility: &Visibility,
    ) -> Result<Tensor<2>, DeviceFailed> {
        match self {
            Self::Tensors(layer) => Ok(layer.attend(q, heads, visibility)),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.attend(q, heads, visibility),
        }
    }

    /// See [`LayerCache::probabilities`].
    pub(crate) fn probabilities(
        &self,
        q: Tensor<2>,
        heads: usize,
        visibility: &Visibility,
    ) -> Result<Tensor<3>, DeviceFailed> {
        match self {
            Self::Tensors(layer) => Ok(layer.probabilities(q, heads, visibility)),
            #[cfg(feature = "cube")]
            Self::Device(layer) => layer.probabilities(q, heads, visibility),
        }
    }
}
