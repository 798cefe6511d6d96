//! New keys or values into the ring, in the cache's format.

use pulp::{Arch, NullaryFnOnce};

use super::element::CacheElement;
use crate::cache::Ring;

/// Stores `rows` \[rows, kv_heads * head_dim\] in `cache` \[kv_heads, slots, head_dim\] as positions from
/// `position` on.
///
/// # Panics
///
/// When the sizes don't fit each other, or there are more rows than slots: mistakes of this crate.
pub(in crate::ops::cpu) fn write_rows<E: CacheElement>(
    rows: &[f32],
    cache: &mut [E],
    kv_heads: usize,
    slots: usize,
    head_dim: usize,
    position: usize,
) {
    let width = kv_heads * head_dim;
    if rows.is_empty() || width == 0 {
        return;
    }
    assert_eq!(rows.len() % width, 0, "whole rows");
    assert_eq!(cache.len(), slots * width, "slots for every head");
    assert!(rows.len() <= cache.len(), "a slot for every row");
    let arch = Arch::new();
    for (head, cache) in cache.chunks_exact_mut(slots * head_dim).enumerate() {
        arch.dispatch(Head { rows, cache, width, first: head * head_dim, head_dim, position });
    }
}

/// One head of all rows.
struct Head<'a, E> {
    rows: &'a [f32],
    /// \[slots, head_dim\].
    cache: &'a mut [E],
    width: usize,
    /// The head's first column in `rows`.
    first: usize,
    head_dim: usize,
    position: usize,
}

impl<E: CacheElement> NullaryFnOnce for Head<'_, E> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { rows, cache, width, first, head_dim, position } = self;
        let ring = Ring::new(cache.len() / head_dim);
        for (row, position) in rows.chunks_exact(width).zip(position..) {
            let slot = &mut cache[ring.slot(position) * head_dim..][..head_dim];
            E::round(&row[first..][..head_dim], slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn rows_go_to_their_slots_also_across_the_rings_end() {
        // Of position p and column c: 10 p + c. Two heads of three columns, four slots.
        let rows: Vec<f32> = (6..9).flat_map(|p| (0..6).map(move |c| (10 * p + c) as f32)).collect();
        let mut cache = [-1.0; 24];
        write_rows(&rows, &mut cache, 2, 4, 3, 6);
        let none = [-1.0; 3];
        let expected = [[80.0, 81.0, 82.0], none, [60.0, 61.0, 62.0], [70.0, 71.0, 72.0]];
        assert_eq!(cache[..12], *expected.as_flattened());
        let expected = [[83.0, 84.0, 85.0], none, [63.0, 64.0, 65.0], [73.0, 74.0, 75.0]];
        assert_eq!(cache[12..], *expected.as_flattened());
    }

    #[test]
    fn halves_are_rounded_to_the_nearest() {
        // The neighbourhood of every bf16, and what lies between.
        let values: Vec<f32> = (0..=u16::MAX)
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| (high, low)))
            .map(|(high, low): (u16, u32)| f32::from_bits(u32::from(high) << 16 | low))
            .collect();
        let mut rounded = vec![bf16::ZERO; values.len()];
        write_rows(&values, &mut rounded, 1, values.len(), 1, 0);
        for (found, value) in rounded.iter().zip(&values) {
            assert_eq!(found.to_bits(), bf16::from_f32(*value).to_bits(), "{value:e}");
        }
        let mut rounded = vec![f16::ZERO; values.len()];
        write_rows(&values, &mut rounded, 1, values.len(), 1, 0);
        for (found, value) in rounded.iter().zip(&values) {
            let expected = f16::from_f32(*value);
            match (value.is_nan(), expected.is_infinite()) {
                (true, _) => assert!(found.is_nan()),
                (_, true) => assert_eq!(found.to_f32(), 65504_f32.copysign(*value)),
                _ => assert_eq!(found.to_bits(), expected.to_bits(), "{value:e}"),
            }
        }
    }

    #[test]
    #[should_panic(expected = "a slot for every row")]
    fn more_rows_than_slots_are_refused() {
        write_rows(&[0.0; 6], &mut [0.0_f32; 4], 1, 2, 2, 0);
    }
}
