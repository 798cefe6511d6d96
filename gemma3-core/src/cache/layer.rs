//! Keys and values of one layer: `slots` positions, used as a ring.

use burn::tensor::{DType, Device, Tensor, TensorCreationOptions};

/// Keys and values of one layer, each \[kv_heads, slots, head_dim\] in f32.
///
/// Position `p` is stored in slot `p % slots`. A layer that keeps all positions is the case in which
/// the ring never comes around.
#[derive(Debug, Clone)]
pub struct LayerCache {
    keys: Tensor<3>,
    values: Tensor<3>,
    slots: usize,
}

impl LayerCache {
    pub(super) fn new(kv_heads: usize, slots: usize, head_dim: usize, device: &Device) -> Self {
        let options = TensorCreationOptions::new(device.clone()).with_dtype(DType::F32);
        let empty = || Tensor::zeros([kv_heads, slots, head_dim], options.clone());
        Self { keys: empty(), values: empty(), slots }
    }

    /// Stores `keys` and `values` \[kv_heads, count, head_dim\] at positions `start..start + count`.
    ///
    /// `count` must not exceed the slots. Written in place when this cache is the only owner of its
    /// memory.
    pub(crate) fn write(&mut self, start: usize, keys: Tensor<3>, values: Tensor<3>) {
        let count = keys.dims()[1];
        let mut written = 0;
        for (slot, len) in self.pieces(start, start + count) {
            self.keys.inplace(|all| assign(all, slot, keys.clone().narrow(1, written, len)));
            self.values.inplace(|all| assign(all, slot, values.clone().narrow(1, written, len)));
            written += len;
        }
    }

    /// Keys and values of positions `start..end`, each \[kv_heads, end - start, head_dim\], in order
    /// of position. A view where they lie together, a copy where they wrap around the ring's end.
    pub(crate) fn read(&self, start: usize, end: usize) -> (Tensor<3>, Tensor<3>) {
        let pieces = self.pieces(start, end);
        let gather = |all: &Tensor<3>| {
            let mut parts: Vec<_> =
                pieces.iter().map(|(slot, len)| all.clone().narrow(1, *slot, *len)).collect();
            if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(parts, 1) }
        };
        (gather(&self.keys), gather(&self.values))
    }

    /// The runs of slots `(first, length)` that hold positions `start..end`.
    fn pieces(&self, start: usize, end: usize) -> Vec<(usize, usize)> {
        let count = end - start;
        let first = start % self.slots;
        let until_wrap = count.min(self.slots - first);
        let mut pieces = vec![(first, until_wrap)];
        if until_wrap < count {
            pieces.push((0, count - until_wrap));
        }
        pieces
    }
}

fn assign(all: Tensor<3>, slot: usize, part: Tensor<3>) -> Tensor<3> {
    let [kv_heads, len, head_dim] = part.dims();
    all.slice_assign([0..kv_heads, slot..slot + len, 0..head_dim], part)
}
