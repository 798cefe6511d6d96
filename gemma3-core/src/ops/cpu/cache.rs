//! Keys and values of one sequence.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfBitsSliceExt;
use half::{bf16, f16};

use super::cached_attention::{self, CacheElement, KeysAndValues, Queries, write_rows};
use crate::cache::{CacheDtype, CacheShape, Ring};
use crate::ops::MachineError;

/// Keys and values of one sequence, of all layers. Clones share the memory of a layer until one of them writes
/// to it. Memory that was never written to is not taken from the system.
#[derive(Debug, Clone)]
pub struct CpuCache {
    layers: Vec<Arc<Layer>>,
}

/// Keys and values of one layer.
#[derive(Clone)]
pub(super) struct Layer {
    sizes: Sizes,
    entries: Entries,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    kv_heads: usize,
    head_dim: usize,
    ring: Ring,
}

/// 16-bit floats lie here as their bits: only of integers does the system give zeros that take no memory.
#[derive(Clone)]
enum Entries {
    F32(KeysValues<f32>),
    BF16(KeysValues<u16>),
    F16(KeysValues<u16>),
}

/// Each \[kv_heads, slots, head_dim\].
#[derive(Clone)]
struct KeysValues<E> {
    keys: Vec<E>,
    values: Vec<E>,
}

const NO_LAYER: MachineError = MachineError::Bug { what: "a cache lacks a layer of the model" };

impl CpuCache {
    /// Zeros.
    pub(super) fn new(shape: &CacheShape) -> Self {
        let layers = shape.rings.iter().map(|ring| {
            let sizes = Sizes { kv_heads: shape.kv_heads, head_dim: shape.head_dim, ring: *ring };
            let len = sizes.kv_heads * ring.slots() * sizes.head_dim;
            let halves = || KeysValues { keys: vec![0; len], values: vec![0; len] };
            let entries = match shape.dtype {
                CacheDtype::F32 => Entries::F32(KeysValues { keys: vec![0.0; len], values: vec![0.0; len] }),
                CacheDtype::BF16 => Entries::BF16(halves()),
                CacheDtype::F16 => Entries::F16(halves()),
            };
            Arc::new(Layer { sizes, entries })
        });
        Self { layers: layers.collect() }
    }

    /// A layer, to be read.
    pub(super) fn layer(&self, layer: usize) -> Result<&Layer, MachineError> {
        self.layers.get(layer).map(|layer| &**layer).ok_or(NO_LAYER)
    }

    /// A layer, to be written to: a copy of its own, if it is shared.
    pub(super) fn layer_mut(&mut self, layer: usize) -> Result<&mut Layer, MachineError> {
        self.layers.get_mut(layer).map(Arc::make_mut).ok_or(NO_LAYER)
    }
}

impl Layer {
    /// Stores rows of keys and values, each \[rows, kv_heads * head_dim\], as positions from `position` on.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] where sizes don't fit each other.
    pub(super) fn write(
        &mut self,
        keys: &[f32],
        values: &[f32],
        position: usize,
    ) -> Result<(), MachineError> {
        let Sizes { kv_heads, head_dim, ring } = self.sizes;
        let width = kv_heads * head_dim;
        if keys.len() != values.len()
            || keys.len() > ring.slots() * width
            || !keys.len().is_multiple_of(width.max(1))
        {
            return Err(MachineError::Bug { what: "keys and values don't fit the cache" });
        }
        let sizes = self.sizes;
        match &mut self.entries {
            Entries::F32(kv) => {
                sizes.write(keys, &mut kv.keys, position);
                sizes.write(values, &mut kv.values, position);
            }
            Entries::BF16(kv) => {
                sizes.write::<bf16>(keys, kv.keys.reinterpret_cast_mut(), position);
                sizes.write::<bf16>(values, kv.values.reinterpret_cast_mut(), position);
            }
            Entries::F16(kv) => {
                sizes.write::<f16>(keys, kv.keys.reinterpret_cast_mut(), position);
                sizes.write::<f16>(values, kv.values.reinterpret_cast_mut(), position);
            }
        }
        Ok(())
    }

    /// Attention of the newest positions, whose keys and values are stored; `out` is as long as the queries.
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] where sizes don't fit each other, or queries see what the ring no longer holds.
    pub(super) fn attend(&self, queries: Queries<'_>, out: &mut [f32]) -> Result<(), MachineError> {
        let Sizes { kv_heads, head_dim, ring } = self.sizes;
        let width = queries.heads * head_dim;
        if width == 0 || kv_heads == 0 || !queries.heads.is_multiple_of(kv_heads) {
            return Err(MachineError::Bug { what: "heads that don't share the cache's evenly" });
        }
        if out.len() != queries.values.len() || !out.len().is_multiple_of(width) {
            return Err(MachineError::Bug { what: "rows of queries of another width than the heads" });
        }
        let end = queries.position + out.len() / width;
        if end - queries.visible.of(queries.position).start.min(end) > ring.slots() {
            return Err(MachineError::Bug { what: "queries see positions that the cache no longer holds" });
        }
        match &self.entries {
            Entries::F32(kv) => self.sizes.attend(queries, &kv.keys, &kv.values, out),
            Entries::BF16(kv) => {
                let (keys, values) = (kv.keys.reinterpret_cast(), kv.values.reinterpret_cast());
                self.sizes.attend::<bf16>(queries, keys, values, out);
            }
            Entries::F16(kv) => {
                let (keys, values) = (kv.keys.reinterpret_cast(), kv.values.reinterpret_cast());
                self.sizes.attend::<f16>(queries, keys, values, out);
            }
        }
        Ok(())
    }

    /// The keys of some positions, \[kv_heads, positions, head_dim\].
    ///
    /// # Errors
    ///
    /// [`MachineError::Bug`] where they are more than the ring holds.
    pub(super) fn keys(&self, positions: Range<usize>) -> Result<Vec<f32>, MachineError> {
        if positions.len() > self.sizes.ring.slots() {
            return Err(MachineError::Bug { what: "more positions were asked for than a layer keeps" });
        }
        Ok(match &self.entries {
            Entries::F32(kv) => self.sizes.read(&kv.keys, positions),
            Entries::BF16(kv) => self.sizes.read::<bf16>(kv.keys.reinterpret_cast(), positions),
            Entries::F16(kv) => self.sizes.read::<f16>(kv.keys.reinterpret_cast(), positions),
        })
    }
}

impl Sizes {
    fn write<E: CacheElement>(self, rows: &[f32], entries: &mut [E], position: usize) {
        write_rows(rows, entries, self.kv_heads, self.ring.slots(), self.head_dim, position);
    }

    fn attend<E: CacheElement>(self, queries: Queries<'_>, keys: &[E], values: &[E], out: &mut [f32]) {
        let Self { kv_heads, head_dim, ring } = self;
        let cache = KeysAndValues { keys, values, kv_heads, slots: ring.slots(), head_dim };
        cached_attention::attend(queries, cache, out);
    }

    fn read<E: CacheElement>(self, entries: &[E], positions: Range<usize>) -> Vec<f32> {
        let Self { kv_heads, head_dim, ring } = self;
        let mut found = Vec::with_capacity(kv_heads * positions.len() * head_dim);
        for head in 0..kv_heads {
            for run in ring.runs(positions.clone()) {
                let first = (head * ring.slots() + run.start) * head_dim;
                found.extend(entries[first..][..run.len() * head_dim].iter().map(|entry| entry.widen()));
            }
        }
        found
    }
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(dtype: CacheDtype) -> CpuCache {
        CpuCache::new(&CacheShape { kv_heads: 2, head_dim: 1, rings: vec![Ring::new(4); 2], dtype })
    }

    #[test]
    fn keys_come_back_in_the_order_of_positions() {
        for dtype in [CacheDtype::F32, CacheDtype::BF16, CacheDtype::F16] {
            let mut cache = cache(dtype);
            let rows = [3.0, -3.0, 4.0, -4.0, 5.0, -5.0];
            let layer = cache.layer_mut(1).expect("a layer");
            assert_eq!(layer.write(&rows, &rows, 3), Ok(()));
            assert_eq!(layer.keys(3..6), Ok(vec![3.0, 4.0, 5.0, -3.0, -4.0, -5.0]), "{dtype:?}");
            assert_eq!(cache.layer(0).expect("a layer").keys(0..4), Ok(vec![0.0; 8]), "{dtype:?}");
        }
    }

    #[test]
    fn a_clone_shares_layers_until_it_writes() {
        let mut first = cache(CacheDtype::F16);
        let mut second = first.clone();
        assert_eq!(second.layer_mut(0).and_then(|layer| layer.write(&[1.0, 2.0], &[3.0, 4.0], 2)), Ok(()));
        assert!(Arc::ptr_eq(&first.layers[1], &second.layers[1]));
        assert_eq!(first.layer_mut(0).and_then(|layer| layer.keys(2..3)), Ok(vec![0.0, 0.0]));
        assert_eq!(second.layer(0).and_then(|layer| layer.keys(2..3)), Ok(vec![1.0, 2.0]));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let mut cache = cache(CacheDtype::F32);
        assert!(cache.layer(2).is_err());
        let layer = cache.layer_mut(0).expect("a layer");
        assert!(layer.write(&[0.0; 10], &[0.0; 10], 0).is_err());
        assert!(layer.write(&[0.0; 3], &[0.0; 3], 0).is_err());
        assert!(layer.keys(0..5).is_err());
    }
}
