//! Queries, keys and values on their way into shared memory.

use std::cmp::min;

use cubecl::prelude::*;
use half::f16;

use super::super::registers::Words;
use super::super::tensor::Operands;
use super::tile::{CooperativeShape, SIDE};
use crate::ops::cube::attention::cache::slot_of;
use crate::ops::cube::gemm::cell_of;
use crate::ops::cube::packed::{HalfPair, Quad};
use crate::ops::cube::reduce::group_max;

/// What the first `rows` rows are filled up with to 16s: zeros after `first`, the bits of an f16.
#[cube]
pub(super) fn fill_up<W: Numeric, V: Size>(
    memory: &mut [Vector<W, V>],
    #[comptime] first: u32,
    #[comptime] rows: usize,
    #[comptime] shape: CooperativeShape,
) {
    if comptime!(shape.eights() % 2 == 1) {
        let cells = comptime!(shape.tile.cells);
        let mut eight = Words::new(0u32);
        eight.insert(0usize, first.runtime());
        let mut row = UNIT_POS as usize;
        while row < rows {
            let at = row * comptime!(cells.of(shape.stride())) + comptime!(cells.of(8 * shape.eights()));
            put_eight::<W, V>(memory, at, eight, shape);
            row += comptime!(shape.units());
        }
    }
}

/// Eight halves into the cells from `at` on.
#[cube]
pub(super) fn put_eight<W: Numeric, V: Size>(
    memory: &mut [Vector<W, V>],
    at: usize,
    eight: Words,
    #[comptime] shape: CooperativeShape,
) {
    let cells = comptime!(shape.tile.cells);
    #[unroll]
    for cell in 0..comptime!(cells.of(8)) {
        memory[at + cell] = cell_of::<W, V, Const<4>>(eight, comptime!(cell * cells.words()), cells);
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
pub(super) fn stage_queries<W: Numeric, V: Size>(
    queries: &[Words],
    memory: &mut [Vector<W, V>],
    first_row: usize,
    tokens: u32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let cells = comptime!(shape.tile.cells);
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
        let to = to * comptime!(cells.of(shape.stride())) + eight * comptime!(cells.of(8));
        match comptime!(shape.operands) {
            Operands::Rows => put_eight::<W, V>(memory, to, queries[from], shape),
            Operands::Cached => {
                let mut words = Words::empty();
                #[unroll]
                for half in 0..2usize {
                    let pairs = pairs_of(halves(Quad::reinterpret(queries[2 * from + half])));
                    words.insert(comptime!(2 * half), pairs.extract(0usize));
                    words.insert(comptime!(2 * half + 1), pairs.extract(1usize));
                }
                put_eight::<W, V>(memory, to, words, shape);
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

/// Four halves as two words.
#[cube]
pub(super) fn pairs_of(halves: Vector<f16, Const<4>>) -> Vector<u32, Const<2>> {
    Vector::<u32, Const<2>>::reinterpret(halves)
}

/// Eight halves times `factor`.
#[cube]
fn scaled(eight: Words, factor: f32) -> Words {
    let factor = HalfPair::new(f16::cast_from(factor));
    let mut words = Words::empty();
    #[unroll]
    for i in 0..4usize {
        words.insert(i, u32::reinterpret(HalfPair::reinterpret(eight.extract(i)) * factor));
    }
    words
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
        // Several at once, since each is a wait for memory.
        #[unroll]
        for i in 0..8usize {
            let at = sequence * slots + min(key + comptime!(i * shape.units()), comptime!(slots - 1));
            largest[0] = f32::max(largest[0], factor_of(keys, at, shape));
            largest[1] = f32::max(largest[1], factor_of(values, at, shape));
        }
        key += comptime!(8 * shape.units());
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
pub(super) fn place<W: Numeric, V: Size>(
    fetched: &Fetched,
    memory: &mut [Vector<W, V>],
    #[comptime] row: usize,
    start: u32,
    end: u32,
    inverse: f32,
    #[comptime] shape: CooperativeShape,
) {
    let cells = comptime!(shape.tile.cells);
    let eights = comptime!(shape.eights());
    let total = comptime!(shape.tile.keys * eights);
    #[unroll]
    for i in 0..comptime!(shape.fetched()) {
        let at = UNIT_POS as usize + comptime!(i * shape.units());
        if comptime!((i + 1) * shape.units() <= total) || at < total {
            let key = at / eights;
            let present = start + (key as u32) < end;
            let mut words = fetched.eights[i];
            if comptime!(!shape.is_whole()) {
                words = select(present, words, Words::new(0u32));
            }
            if comptime!(shape.has_factors()) {
                words = scaled(words, fetched.factors[i] * inverse);
            }
            let to = (key + row) * comptime!(cells.of(shape.stride())) + at % eights * comptime!(cells.of(8));
            put_eight::<W, V>(memory, to, words, shape);
        }
    }
}
