//! Keys, or values, of one layer of a sequence: \[kv_heads, slots, head_dim\], with positions in the slots of a
//! [`Ring`].

use std::ops::Range;

use burn::tensor::{DType, Tensor};

use crate::cache::Ring;

/// `rows` \[tokens, kv_heads * head_dim\] as the entries of positions `position..` in `cache`
/// \[kv_heads, slots, head_dim\], in its dtype. There must not be more rows than slots.
pub fn write(mut cache: Tensor<3>, rows: Tensor<2>, position: usize) -> Tensor<3> {
    let [kv_heads, slots, head_dim] = cache.dims();
    let [tokens, _] = rows.dims();
    let dtype = cache.dtype();
    let rows = rows.reshape([tokens, kv_heads, head_dim]).swap_dims(0, 1); // [kv_heads, tokens, head_dim]
    let rows = if dtype == DType::F32 { rows } else { rows.cast(dtype) };
    let mut written = 0;
    for run in Ring::new(slots).runs(position..position + tokens) {
        let part = rows.clone().narrow(1, written, run.len());
        written += run.len();
        cache = cache.slice_assign([0..kv_heads, run, 0..head_dim], part);
    }
    cache
}

/// The entries of consecutive positions of `cache` \[kv_heads, slots, head_dim\] in f32, in order,
/// \[kv_heads, positions, head_dim\]: a view where they lie together, a copy where they wrap around the ring's end.
pub fn entries(cache: &Tensor<3>, positions: Range<usize>) -> Tensor<3> {
    let slots = cache.dims()[1];
    let runs = Ring::new(slots).runs(positions);
    let mut parts: Vec<_> = runs
        .map(|run| cache.clone().narrow(1, run.start, run.len()))
        .map(|part| if part.dtype() == DType::F32 { part } else { part.cast(DType::F32) })
        .collect();
    if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(parts, 1) }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use burn::tensor::{Device, TensorCreationOptions};

    use super::*;
    use crate::ops::plain::testing::{assert_close, tensor};

    #[test]
    fn positions_go_around_the_ring() {
        // Positions 3, 4 and 5 in four slots of two heads of width 1.
        let rows = tensor(&[3.0, -3.0, 4.0, -4.0, 5.0, -5.0], [3, 2]);
        let cache = write(tensor(&[9.0; 8], [2, 4, 1]), rows, 3);
        assert_close(cache.clone(), [2, 4, 1], &[4.0, 5.0, 9.0, 3.0, -4.0, -5.0, 9.0, -3.0]);
        assert_close(entries(&cache, 4..6), [2, 2, 1], &[4.0, 5.0, -4.0, -5.0]);
        assert_close(entries(&cache, 3..6), [2, 3, 1], &[3.0, 4.0, 5.0, -3.0, -4.0, -5.0]);
    }

    #[test]
    fn entries_are_kept_in_the_dtype_of_the_cache() {
        let options = TensorCreationOptions::new(Device::flex()).with_dtype(DType::BF16);
        let cache = write(Tensor::zeros([1, 2, 2], options), tensor(&[1.0, 1.01, -3.0, 0.3], [2, 2]), 0);
        assert_eq!(cache.dtype(), DType::BF16);
        // bf16 has multiples of 1/128 from 1 on, and of 1/512 near 0.3.
        assert_close(entries(&cache, 0..2), [1, 2, 2], &[1.0, 1.007_812_5, -3.0, 0.300_781_25]);
    }
}
