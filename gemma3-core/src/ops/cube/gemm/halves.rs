//! Activations and weights as f16, which neither fit as they are: each row of activations and each matrix has a power
//! of two that brings its largest number, or what none is larger than, near the end of f16's range. Multiplying by one is exact, and the sums of a
//! product are multiplied back.

use std::cmp::{max, min};

use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::f16;

use crate::ops::cube::SPIRV;
use crate::ops::cube::packed::{HalfPair, Quad};
use crate::ops::cube::reduce::{Groups, group_max};

/// Whether a device has f16 and takes two of them for a word, so that it converts by an instruction of its own.
pub(super) fn converts(client: &Client) -> bool {
    client.name() == SPIRV && client.properties().supports_type(ElemType::Float(FloatKind::F16))
}

/// Four floats as two words of f16, of a device that [`converts`].
#[cube]
pub(super) fn converted(quad: Quad) -> Vector<u32, Const<2>> {
    Vector::<u32, Const<2>>::reinterpret(Vector::<f16, Const<4>>::cast_from(quad))
}

/// Two floats as f16, of a device that multiplies matrices of f16.
#[cube]
pub(super) fn converted_pair(low: f32, high: f32) -> u32 {
    let mut pair = Vector::<f32, Const<2>>::empty();
    pair.insert(0usize, low);
    pair.insert(1usize, high);
    u32::reinterpret(HalfPair::cast_from(pair))
}

/// Two floats as f16, the first in the low half. Made of bits: not every device has f16, and WGSL's compilers can't take
/// a pair of them for a word.
#[cube]
pub(crate) fn f16_pair(low: f32, high: f32) -> u32 {
    half_bits(low) | (half_bits(high) << 16u32)
}

/// The bits of the nearest f16; of numbers beyond its range, infinity.
#[cube]
fn half_bits(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let magnitude = bits & 0x7fff_ffffu32;
    // The exponent's bias is 112 less.
    let normal = ((magnitude + 0x0fffu32 + ((magnitude >> 13u32) & 1u32)) >> 13u32)
        - select(magnitude >= 0x3880_0000u32, 0x1_c000u32, 0u32);
    // Added to 1/2, the last bit counts 2^-24 as that of a subnormal half does, and the addition rounds.
    let subnormal = u32::reinterpret(f32::reinterpret(magnitude) + 0.5f32) - 0x3f00_0000u32;
    let finite = select(magnitude >= 0x3880_0000u32, min(normal, 0x7c00u32), subnormal);
    let half = select(magnitude > 0x7f80_0000u32, 0x7e00u32, finite);
    half | ((bits >> 16u32) & 0x8000u32)
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
    powers(largest[0])
}

/// The same of a number that none of the row is larger than.
#[cube]
pub(super) fn powers(largest: f32) -> (f32, f32) {
    // Both powers are normal numbers, so that no device takes one for zero. What is not a number may have a sign.
    let exponent = max((u32::reinterpret(largest) >> 23u32) & 255u32, 14u32);
    (f32::reinterpret((267u32 - exponent) << 23u32), f32::reinterpret((exponent - 13u32) << 23u32))
}
