//! Queries, keys and values on their way into shared memory.

use std::cmp::min;

use cubecl::prelude::*;
use half::f16;

use super::super::registers::Words;
use super::super::tensor::Operands;
use super::tile::{CooperativeShape, SIDE};
use crate::ops::cube::attention::cache::slot_of;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::group_max;

/// Zeros where rows are filled up to 16s.
#[cube]
pub(super) fn clear_padding<V: Size>(memory: &mut [Vector<f16, V>], #[comptime] shape: CooperativeShape) {
    if comptime!(shape.eights() % 2 == 1) {
        let width = V::value();
        let mut row = UNIT_POS as usize;
        while row < comptime!(shape.memory_rows()) {
            let at = row * comptime!(shape.stride() / width) + comptime!(8 * shape.eights() / width);
            #[unroll]
            for part in 0..comptime!(8 / width) {
                memory[at + part] = Vector::<f16, V>::new(f16::from_int(0));
            }
            row += comptime!(shape.units());
        }
    }
}

/// Token and head of a row of queries.
#[cube]
pub(super) fn query_of(row: usize, tokens: u32, #[comptime] shape: CooperativeShape) -> (usize, usize) {
    let shared_by = comptime!(shape.shared_by());
    let token = CUBE_POS_Z as usize * tokens as usize + row / shared_by;
    (token, CUBE_POS_Y as usize * shared_by + row % shared_by)
}

/// Every plane's `sixteen`-th 16 rows of queries as halves: one after the other where keys lie afterwards, if they are
/// held in registers by then, otherwise in their places.
#[cube]
pub(super) fn stage_queries<V: Size>(
    queries: &[Words],
    memory: &mut [Vector<f16, V>],
    first_row: usize,
    tokens: u32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let width = V::value();
    let eights = comptime!(shape.eights());
    let sixteens = comptime!(shape.tile.sixteens);
    let rows = tokens as usize * comptime!(shape.shared_by());
    let mut at = UNIT_POS as usize;
    while at < comptime!(SIDE * shape.tile.planes * eights) {
        let own = at / eights;
        let eight = at % eights;
        let place = own / SIDE * comptime!(SIDE * sixteens) + comptime!(SIDE * sixteen) + own % SIDE;
        let (token, head) = query_of(min(first_row + place, rows - 1), tokens, shape);
        let from = token * comptime!(shape.query_stride()) + head * eights + eight;
        let to = if comptime!(shape.tile.holds) { own } else { place + comptime!(shape.block_rows()) };
        let to = to * comptime!(shape.stride() / width) + eight * comptime!(8 / width);
        match comptime!(shape.operands) {
            Operands::Rows => {
                let words = queries[from];
                #[unroll]
                for part in 0..comptime!(8 / width) {
                    memory[to + part] = part_of::<V>(words, part);
                }
            }
            Operands::Cached => {
                let mut fours = Array::<Vector<f16, Const<4>>>::new(2usize);
                #[unroll]
                for half in 0..2usize {
                    fours[half] = halves(Quad::reinterpret(queries[2 * from + half]));
                }
                #[unroll]
                for part in 0..comptime!(8 / width) {
                    let mut vector = Vector::<f16, V>::empty();
                    #[unroll]
                    for i in 0..width {
                        let four = fours[comptime!((part * width + i) / 4)];
                        vector.insert(i, four.extract(comptime!(i % 4)));
                    }
                    memory[to + part] = vector;
                }
            }
        }
        at += comptime!(shape.units());
    }
}

/// Four halves; what lies beyond them becomes infinite, whichever way a device rounds.
#[cube]
fn halves(quad: Quad) -> Vector<f16, Const<4>> {
    let mut bounded = quad;
    #[unroll]
    for i in 0..4usize {
        let number = quad.extract(i);
        // Not a product with what is zero for all others: a compiler may multiply the factors first.
        let infinite = number * 1e30f32 * 1e30f32;
        bounded.insert(i, select(f32::abs(number) > 65504.0f32, infinite, number));
    }
    Vector::<f16, Const<4>>::cast_from(bounded)
}

/// Vector `part` of eight halves.
#[cube]
fn part_of<V: Size>(words: Words, #[comptime] part: usize) -> Vector<f16, V> {
    let width = V::value();
    if comptime!(width == 8) {
        Vector::<f16, V>::reinterpret(words)
    } else {
        let mut pairs = Vector::<u32, Const<2>>::empty();
        pairs.insert(0usize, words.extract(comptime!(2 * part)));
        pairs.insert(1usize, words.extract(comptime!(2 * part + 1)));
        Vector::<f16, V>::reinterpret(pairs)
    }
}

/// What a row of [`RowFormat::F16`](crate::ops::cube::gemm::RowFormat::F16) is multiplied with.
#[cube]
pub(super) fn factor_of(rows: &[Words], row: usize, #[comptime] shape: CooperativeShape) -> f32 {
    let at = row * comptime!(shape.query_stride()) + comptime!(shape.width().next_multiple_of(64) / 8);
    f32::reinterpret(rows[at].extract(0usize))
}

/// The largest factors of a sequence's keys and values: those of the others are made the same.
#[cube]
pub(super) fn largest_factors(
    keys: &[Words],
    values: &[Words],
    sequence: usize,
    #[comptime] shape: CooperativeShape,
) -> (f32, f32) {
    let slots = comptime!(shape.attention.cache.slots);
    let mut largest = Array::<f32>::new(2usize);
    largest[0] = 0.0f32;
    largest[1] = 0.0f32;
    let mut key = UNIT_POS as usize;
    while key < slots {
        largest[0] = f32::max(largest[0], factor_of(keys, sequence * slots + key, shape));
        largest[1] = f32::max(largest[1], factor_of(values, sequence * slots + key, shape));
        key += comptime!(shape.units());
    }
    group_max(&mut largest, 2usize, comptime!(shape.group()));
    (largest[0], largest[1])
}

/// A unit's part of a block of keys or values, on its way.
#[derive(CubeType)]
pub(super) struct Fetched {
    eights: Array<Words>,
    factors: Array<f32>,
}

#[cube]
impl Fetched {
    pub fn new(#[comptime] shape: CooperativeShape) -> Fetched {
        Fetched {
            eights: Array::new(comptime!(shape.fetched())),
            factors: Array::new(comptime!(if shape.has_factors() { shape.fetched() } else { 1 })),
        }
    }
}

/// Loads a unit's part of the block at `start`: nothing here waits for it. Keys from `end` on are the last.
#[cube]
pub(super) fn fetch(
    from: &[Words],
    sequence: usize,
    start: u32,
    end: u32,
    fetched: &mut Fetched,
    #[comptime] shape: CooperativeShape,
) {
    let eights = comptime!(shape.eights());
    let slots = comptime!(shape.attention.cache.slots as u32);
    let total = comptime!(shape.tile.keys * eights);
    let source =
        sequence * comptime!(shape.sequence_stride()) + CUBE_POS_Y as usize * comptime!(shape.head_stride());
    let last = u32::max(end, 1u32) - 1;
    let first_slot = slot_of(start, slots);
    #[unroll]
    for i in 0..comptime!(shape.fetched()) {
        let at = min(UNIT_POS as usize + comptime!(i * shape.units()), comptime!(total - 1));
        let position = min(start + (at / eights) as u32, last);
        match comptime!(shape.operands) {
            Operands::Cached => {
                // No block is longer than the ring is.
                let slot = first_slot + (u32::max(position, start) - start) as usize;
                let slot = select(slot >= slots as usize, slot - slots as usize, slot);
                fetched.eights[i] = from[source + slot * comptime!(shape.key_stride()) + at % eights];
            }
            Operands::Rows => {
                let key = position as usize;
                fetched.eights[i] = from[source + key * comptime!(shape.key_stride()) + at % eights];
                fetched.factors[i] = factor_of(from, sequence * slots as usize + key, shape);
            }
        }
    }
}

/// What was fetched into shared memory, from a row on, as if every row had the same factor, whose inverse is given; zeros
/// from `end` on.
#[cube]
pub(super) fn place<V: Size>(
    fetched: &Fetched,
    memory: &mut [Vector<f16, V>],
    #[comptime] row: usize,
    start: u32,
    end: u32,
    inverse: f32,
    #[comptime] shape: CooperativeShape,
) {
    let width = V::value();
    let eights = comptime!(shape.eights());
    let total = comptime!(shape.tile.keys * eights);
    #[unroll]
    for i in 0..comptime!(shape.fetched()) {
        let at = UNIT_POS as usize + comptime!(i * shape.units());
        if comptime!((i + 1) * shape.units() <= total) || at < total {
            let key = at / eights;
            let present = start + (key as u32) < end;
            let words = select(present, fetched.eights[i], Words::new(0u32));
            let to = (key + row) * comptime!(shape.stride() / width) + at % eights * comptime!(8 / width);
            #[unroll]
            for part in 0..comptime!(8 / width) {
                let mut vector = part_of::<V>(words, part);
                if comptime!(shape.has_factors()) {
                    vector *= Vector::<f16, V>::new(f16::cast_from(fetched.factors[i] * inverse));
                }
                memory[to + part] = vector;
            }
        }
    }
}
