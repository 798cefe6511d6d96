//! Products in integers: the input in signed bytes with a scale for each block of 32, four of whose products
//! with weights an instruction sums up.
//!
//! Sums of an item stay below 2^22, so they are made on top of the bits of 1.5 * 2^23: those are the sum as a
//! float, but for a subtraction.

use cubecl::prelude::*;

use super::product::Product;
use crate::ops::cube::packed::{Quad, integer_factor, integer_octet, quads_of_span, scale_pair};

/// Eight numbers of the input, as signed bytes: in their order, or the even and the odd ones for weights in
/// nibbles.
pub(crate) type Octet = Vector<u32, Const<2>>;

/// 1.5 * 2^23: a float whose last bit counts as one, with room for either sign.
const MAGIC: f32 = 12_582_912.0;
const MAGIC_BITS: i32 = 0x4b40_0000;
const ONES: i32 = 0x0101_0101;
/// Chunks of eight numbers that share a scale.
const CHUNKS_OF_BLOCK: usize = 4;

/// Stores a chunk of eight numbers of row `m`, \[2\] quads, as integers, and the scale of its block. All units
/// of the cube have to come here; chunks beyond the end are not stored.
#[cube]
pub(crate) fn put_octet(
    values: &Array<Quad>,
    chunk: usize,
    octets: &mut [Octet],
    scales: &mut [f32],
    #[comptime] m: usize,
    #[comptime] product: Product,
) {
    let a = values[0usize];
    let b = values[1usize];
    let mut largest = 0.0f32;
    #[unroll]
    for i in 0..4usize {
        largest = f32::max(largest, f32::max(f32::abs(a.extract(i)), f32::abs(b.extract(i))));
    }
    let largest = largest_of_block(largest, scales, product);
    // Blocks of next to nothing become zeros.
    let inverse = select(largest > 1e-30f32, 127.0f32 / largest, 0.0f32);
    let chunks = comptime!(product.chunks());
    if chunk < chunks {
        let mut octet = Octet::empty();
        if comptime!(product.layout.weights_per_word() == 8) {
            octet.insert(
                0usize,
                bytes(a.extract(0usize), a.extract(2usize), b.extract(0usize), b.extract(2usize), inverse),
            );
            octet.insert(
                1usize,
                bytes(a.extract(1usize), a.extract(3usize), b.extract(1usize), b.extract(3usize), inverse),
            );
        } else {
            octet.insert(
                0usize,
                bytes(a.extract(0usize), a.extract(1usize), a.extract(2usize), a.extract(3usize), inverse),
            );
            octet.insert(
                1usize,
                bytes(b.extract(0usize), b.extract(1usize), b.extract(2usize), b.extract(3usize), inverse),
            );
        }
        let of_item = comptime!(product.quads() / 2);
        octets[comptime!(m * chunks) + (chunk % of_item) * comptime!(product.items()) + chunk / of_item] =
            octet;
        let place_in_block = chunk % CHUNKS_OF_BLOCK;
        if place_in_block == 0 {
            scales[comptime!(m * (chunks / CHUNKS_OF_BLOCK)) + chunk / CHUNKS_OF_BLOCK] =
                largest * comptime!(1.0 / 127.0 / integer_factor(product.layout.format));
        }
    }
}

/// The largest of the four units of a block, which lie side by side. Without plane operations they meet behind the
/// scales.
#[cube]
fn largest_of_block(largest: f32, scales: &mut [f32], #[comptime] product: Product) -> f32 {
    let groups = comptime!(product.tiling.groups);
    if comptime!(groups.plane_operations) {
        let pair = f32::max(largest, plane_shuffle_xor(largest, 1u32));
        f32::max(pair, plane_shuffle_xor(pair, 2u32))
    } else {
        let unit = UNIT_POS as usize;
        sync_cube(); // They may serve another chunk still.
        scales[comptime!(product.scales()) + unit] = largest;
        sync_cube();
        let first = comptime!(product.scales()) + unit / CHUNKS_OF_BLOCK * CHUNKS_OF_BLOCK;
        let mut highest = scales[first];
        #[unroll]
        for i in 1..CHUNKS_OF_BLOCK {
            highest = f32::max(highest, scales[first + i]);
        }
        highest
    }
}

/// Four numbers times `inverse`, in -127..=127, as bytes: the lowest of the sum with [`MAGIC`].
#[cube]
fn bytes(a: f32, b: f32, c: f32, d: f32, inverse: f32) -> u32 {
    let a = u32::reinterpret(fma(a, inverse, MAGIC)) & 0xffu32;
    let b = u32::reinterpret(fma(b, inverse, MAGIC)) & 0xffu32;
    let c = u32::reinterpret(fma(c, inverse, MAGIC)) & 0xffu32;
    let d = u32::reinterpret(fma(d, inverse, MAGIC)) & 0xffu32;
    (a | (b << 8u32)) | ((c << 16u32) | (d << 24u32))
}

/// Adds the products of one item of each row with the input to `sums`, \[rows, batch\].
#[cube]
pub(crate) fn accumulate_integers<N: Size>(
    octets: &[Octet],
    octet_scales: &[f32],
    item: usize,
    items: &Array<Vector<u32, N>>,
    sides: &Array<u32>,
    sums: &mut Array<f32>,
    #[comptime] u: usize,
    #[comptime] product: Product,
) {
    let rows = comptime!(product.tiling.rows);
    let batch = comptime!(product.batch);
    let layout = comptime!(product.layout);
    let of_item = comptime!(product.quads() / 2);
    let of_span = comptime!(quads_of_span(&layout, product.tiling.vector_words) / 2);
    let blocks = comptime!(product.chunks() / CHUNKS_OF_BLOCK);
    let block = item / comptime!(CHUNKS_OF_BLOCK / of_item);
    #[unroll]
    for span in 0..comptime!(of_item / of_span) {
        let mut dots = Array::<i32>::new(comptime!(product.results()));
        let mut totals = Array::<i32>::new(batch);
        #[unroll]
        for i in 0..product.results() {
            dots[i] = MAGIC_BITS.runtime();
        }
        #[unroll]
        for m in 0..batch {
            totals[m] = MAGIC_BITS.runtime();
        }
        #[unroll]
        for o in 0..of_span {
            let index = comptime!(span * of_span + o);
            let mut first = Array::<i32>::new(rows);
            let mut second = Array::<i32>::new(rows);
            #[unroll]
            for r in 0..rows {
                let load = comptime!(u * rows + r);
                let start = comptime!(load * product.side_words());
                let (a, b) = integer_octet::<N>(items[load], sides, item, index, start, layout);
                first[r] = i32::reinterpret(a);
                second[r] = i32::reinterpret(b);
            }
            #[unroll]
            for m in 0..batch {
                let x = octets[item + comptime!(m * product.chunks() + index * product.items())];
                let a = i32::reinterpret(x.extract(0usize));
                let b = i32::reinterpret(x.extract(1usize));
                if comptime!(product.has_minimum()) {
                    totals[m] = dp4a(b, ONES, dp4a(a, ONES, totals[m]));
                }
                #[unroll]
                for r in 0..rows {
                    let at = comptime!(r * batch + m);
                    dots[at] = dp4a(second[r], b, dp4a(first[r], a, dots[at]));
                }
            }
        }
        #[unroll]
        for r in 0..rows {
            let start = comptime!((u * rows + r) * product.side_words());
            let (scale, minimum) =
                scale_pair::<N>(sides, item, span, start, layout, comptime!(product.tiling.native_halves));
            #[unroll]
            for m in 0..batch {
                let at = comptime!(r * batch + m);
                let x_scale = octet_scales[block + comptime!(m * blocks)];
                sums[at] = fma(scale * x_scale, f32::reinterpret(dots[at]) - MAGIC, sums[at]);
                if comptime!(product.has_minimum()) {
                    sums[at] = fma(minimum * x_scale, f32::reinterpret(totals[m]) - MAGIC, sums[at]);
                }
            }
        }
    }
}
