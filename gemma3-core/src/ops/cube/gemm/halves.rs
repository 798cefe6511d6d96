//! Activations and weights as f16, which neither fit as they are: each row of activations and each matrix has a power
//! of two that brings its largest number near the end of f16's range. Multiplying by one is exact, and the sums of a
//! product are multiplied back.

use std::cmp::max;

use cubecl::prelude::*;
use half::f16;

use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{Groups, group_max};

/// Two floats as f16, the first in the low half. Only where the device has f16.
#[cube]
pub(crate) fn f16_pair(low: f32, high: f32) -> u32 {
    let mut pair = Vector::<f32, Const<2>>::empty();
    pair.insert(0usize, low);
    pair.insert(1usize, high);
    u32::reinterpret(Vector::<f16, Const<2>>::cast_from(pair))
}

/// The power of two that brings the largest number of a cube's row to 2^13 or more and below 2^14, and its inverse. The
/// sum of so many products as a row has numbers, with weights below 2^15, is then far below the largest f32. Rows of
/// nothing but numbers below 2^-113 keep them smaller.
#[cube]
pub(super) fn row_power(
    values: &Array<Quad>,
    #[comptime] share: usize,
    #[comptime] groups: Groups,
) -> (f32, f32) {
    let mut largest = Array::<f32>::new(1usize);
    largest[0] = 0.0f32;
    #[unroll]
    for i in 0..share {
        #[unroll]
        for j in 0..4usize {
            largest[0] = f32::max(largest[0], f32::abs(values[i].extract(j)));
        }
    }
    group_max(&mut largest, 1usize, groups);
    // Both powers are normal numbers, so that no device takes one for zero. What is not a number may have a sign.
    let exponent = max((u32::reinterpret(largest[0]) >> 23u32) & 255u32, 14u32);
    (f32::reinterpret((267u32 - exponent) << 23u32), f32::reinterpret((exponent - 13u32) << 23u32))
}
