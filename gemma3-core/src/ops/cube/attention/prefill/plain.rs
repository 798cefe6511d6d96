//! Attention of many queries in f32, on every device: 256 units, less than 16 KiB of shared memory, no plane
//! operations.
//!
//! A cube holds 32 rows of queries of one key head. Scores of 32 keys are made from slices of queries and keys
//! in shared memory, a square of four by each unit; then each unit holds four rows of some columns of the
//! result, and values pass by in shared memory.

use std::cmp::min;

use cubecl::prelude::*;

use super::LOWEST;
use super::tensor::visible_range;
use crate::ops::cube::attention::cache::{CacheFormat, CacheLayout, load, slot_of};
use crate::ops::cube::packed::Quad;

/// Units of a cube.
const UNITS: usize = 256;
/// Rows of queries of a cube.
const ROWS: usize = 32;
/// Keys of a block.
const KEYS: usize = 32;
/// Quads of a row that are multiplied at once.
const SLICE: usize = 8;
/// Quads from one row of a slice to the next, so that they lie in different banks.
const STRIDE: usize = SLICE + 1;
/// Numbers from one row of scores to the next.
const SCORES: usize = KEYS + 1;
/// Rows of the result that a unit holds, and the units that share them.
const HELD: usize = 4;
const COLUMNS: usize = UNITS * HELD / ROWS;

/// Where keys and values lie; strides in quads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops::cube::attention) struct KeyRows {
    pub slots: usize,
    pub head_dim: usize,
    pub row: usize,
    pub head: usize,
    pub sequence: usize,
    pub format: CacheFormat,
}

impl KeyRows {
    /// In a cache.
    pub const fn of_cache(cache: &CacheLayout) -> Self {
        let row = cache.head_dim / 4;
        let head = cache.slots * row;
        let sequence = cache.kv_heads * head;
        Self { slots: cache.slots, head_dim: cache.head_dim, row, head, sequence, format: cache.format }
    }

    /// In f32 \[sequences * tokens, heads * head_dim\].
    pub const fn of_rows(tokens: usize, heads: usize, head_dim: usize) -> Self {
        let row = heads * head_dim / 4;
        let format = CacheFormat::F32;
        Self { slots: tokens, head_dim, row, head: head_dim / 4, sequence: tokens * row, format }
    }

    const fn quads(&self) -> usize {
        self.head_dim / 4
    }
}

/// The constants of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops::cube::attention) struct PlainShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub keys: KeyRows,
}

impl PlainShape {
    /// The cubes of `tokens` queries of each of some sequences.
    pub fn cubes(&self, tokens: usize, sequences: usize) -> CubeCount {
        let tiles = (tokens * self.shared_by()).div_ceil(ROWS);
        CubeCount::Static(tiles as u32, self.kv_heads as u32, sequences as u32)
    }

    /// The dimensions of a cube.
    pub fn dim(&self) -> CubeDim {
        CubeDim::new_1d(UNITS as u32)
    }

    const fn shared_by(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Quads of a row of the result that a unit holds.
    const fn share(&self) -> usize {
        self.keys.quads().div_ceil(COLUMNS)
    }

    /// Rows of values in shared memory at once: as many as fit where the slices were.
    const fn value_rows(&self) -> usize {
        let mut rows = KEYS;
        while rows > 1 && rows * self.keys.quads() > 2 * ROWS * STRIDE {
            rows /= 2;
        }
        rows
    }

    const fn stage(&self) -> usize {
        let values = self.value_rows() * self.keys.quads();
        if values > 2 * ROWS * STRIDE { values } else { 2 * ROWS * STRIDE }
    }
}

/// Cube `[tile, kv_head]`.
#[cube(launch_unchecked)]
pub(super) fn visible_kernel<N: Size>(
    queries: &[Quad],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    visible: &[u32],
    out: &mut [Quad],
    tokens: u32,
    sequence: u32,
    #[comptime] shape: PlainShape,
) {
    let slots = comptime!(shape.keys.slots as u32);
    let shared_by = comptime!(shape.shared_by());
    let rows = tokens as usize * shared_by;
    let first_row = CUBE_POS_X as usize * ROWS;
    let mut ranges = Array::<u32>::new(4usize);
    #[unroll]
    for i in 0..2usize {
        let row = min(first_row + UNIT_POS as usize / 16 * 2 + i, rows - 1);
        let (first, end) = visible_range(visible, row / shared_by, slots);
        ranges[comptime!(2 * i)] = first;
        ranges[comptime!(2 * i + 1)] = end;
    }
    // Neither end moves back from one query to the next.
    let (first, _) = visible_range(visible, first_row / shared_by, slots);
    let last_row = min(first_row + ROWS, rows) - 1;
    let (_, end) = visible_range(visible, last_row / shared_by, slots);
    let end = min(end, first + slots);
    attend(queries, keys, values, out, &ranges, first, end, tokens, sequence, 1.0f32, shape);
}

/// Cube `[tile, head, sequence]`: every query sees all keys; the queries are multiplied by `factor`.
#[cube(launch_unchecked)]
pub(in crate::ops::cube::attention) fn full_kernel<N: Size>(
    queries: &[Quad],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    out: &mut [Quad],
    tokens: u32,
    factor: f32,
    #[comptime] shape: PlainShape,
) {
    let slots = comptime!(shape.keys.slots as u32).runtime();
    let mut ranges = Array::<u32>::new(4usize);
    #[unroll]
    for i in 0..2usize {
        ranges[comptime!(2 * i)] = 0u32;
        ranges[comptime!(2 * i + 1)] = slots;
    }
    attend(queries, keys, values, out, &ranges, 0u32.runtime(), slots, tokens, 0u32.runtime(), factor, shape);
}

#[cube]
fn attend<N: Size>(
    queries: &[Quad],
    keys: &[Vector<u32, N>],
    values: &[Vector<u32, N>],
    out: &mut [Quad],
    ranges: &Array<u32>,
    first: u32,
    end: u32,
    tokens: u32,
    sequence: u32,
    factor: f32,
    #[comptime] shape: PlainShape,
) {
    let quads = comptime!(shape.keys.quads());
    let share = comptime!(shape.share());
    let shared_by = comptime!(shape.shared_by());
    let heads = comptime!(shape.heads);
    let slots = comptime!(shape.keys.slots as u32);
    let row_stride = comptime!(shape.keys.row);
    let unit = UNIT_POS as usize;
    let rows = tokens as usize * shared_by;
    let first_row = CUBE_POS_X as usize * ROWS;
    let kv_head = CUBE_POS_Y as usize;
    let first_query = CUBE_POS_Z as usize * tokens as usize;
    let source = (CUBE_POS_Z + sequence) as usize * comptime!(shape.keys.sequence)
        + kv_head * comptime!(shape.keys.head);

    let mut stage = Shared::<[Quad]>::new_slice(comptime!(shape.stage()));
    let mut scores = Shared::<[f32]>::new_slice(comptime!(ROWS * SCORES));
    let mut shrinks = Shared::<[f32]>::new_slice(ROWS);

    // What this unit stages of queries and keys: a quad of a row of each slice.
    let staged_row = unit / SLICE;
    let staged_quad = unit % SLICE;
    let query_row = min(first_row + staged_row, rows - 1);
    let query_start =
        ((first_query + query_row / shared_by) * heads + kv_head * shared_by + query_row % shared_by) * quads;
    // The four scores: rows `2 r` and the next, keys `k` and `k + 16`.
    let score_row = unit / 16 * 2;
    let score_key = unit % 16;
    // The row whose softmax it follows, with seven others, and its four keys.
    let soft_row = unit / 8;
    let soft_key = unit % 8 * 4;
    // Rows and columns of the result.
    let held_row = unit / COLUMNS * HELD;
    let column = unit % COLUMNS;

    let mut attended = Array::<Quad>::new(comptime!(HELD * share));
    #[unroll]
    for i in 0..comptime!(HELD * share) {
        attended[i] = Quad::new(0.0f32);
    }
    let mut largest = LOWEST.runtime();
    let mut sum = 0.0f32;

    let mut start = first;
    while start < end {
        let mut products = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            products[i] = 0.0f32;
        }
        let position = min(start + staged_row as u32, end - 1);
        let key_start = source + slot_of(position, slots) * row_stride;
        #[unroll]
        for slice in 0..comptime!(quads.div_ceil(SLICE)) {
            let at = staged_quad + comptime!(slice * SLICE);
            let inside = at < quads;
            let at = min(at, comptime!(quads - 1));
            let query = select(inside, queries[query_start + at], Quad::new(0.0f32));
            let key = load::<N>(keys[key_start + at], comptime!(shape.keys.format));
            sync_cube();
            stage[staged_row * STRIDE + staged_quad] = query;
            stage[comptime!(ROWS * STRIDE) + staged_row * STRIDE + staged_quad] =
                select(inside, key, Quad::new(0.0f32));
            sync_cube();
            #[unroll]
            for i in 0..comptime!(min(SLICE, quads - slice * SLICE)) {
                let q0 = stage[score_row * STRIDE + i];
                let q1 = stage[(score_row + 1) * STRIDE + i];
                let k0 = stage[comptime!(ROWS * STRIDE + i) + score_key * STRIDE];
                let k1 = stage[comptime!(ROWS * STRIDE + 16 * STRIDE + i) + score_key * STRIDE];
                products[0usize] += Vector::vector_sum(q0 * k0);
                products[1usize] += Vector::vector_sum(q0 * k1);
                products[2usize] += Vector::vector_sum(q1 * k0);
                products[3usize] += Vector::vector_sum(q1 * k1);
            }
        }
        #[unroll]
        for i in 0..4usize {
            let range = comptime!(i / 2 * 2);
            let key = score_key + comptime!(i % 2 * 16);
            let position = start + key as u32;
            let seen = position >= ranges[range] && position < ranges[comptime!(range + 1)] && position < end;
            scores[(score_row + comptime!(i / 2)) * SCORES + key] =
                select(seen, products[i] * factor, LOWEST);
        }
        sync_cube();

        let mut high = largest;
        #[unroll]
        for key in 0..KEYS {
            high = f32::max(high, scores[soft_row * SCORES + key]);
        }
        let mut weights = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4usize {
            let score = scores[soft_row * SCORES + soft_key + i];
            let seen = score > comptime!(0.5 * LOWEST);
            weights[i] = select(seen, f32::exp(select(seen, score - high, 0.0f32)), 0.0f32);
        }
        let shrink = f32::exp(largest - high);
        largest = high;
        sync_cube();
        #[unroll]
        for i in 0..4usize {
            scores[soft_row * SCORES + soft_key + i] = weights[i];
        }
        if soft_key == 0 {
            shrinks[soft_row] = shrink;
        }
        sync_cube();
        sum *= shrink;
        #[unroll]
        for key in 0..KEYS {
            sum += scores[soft_row * SCORES + key];
        }

        #[unroll]
        for r in 0..HELD {
            let shrink = Quad::new(shrinks[held_row + r]);
            #[unroll]
            for i in 0..share {
                attended[comptime!(r * share + i)] *= shrink;
            }
        }
        let value_rows = comptime!(shape.value_rows());
        for part in 0..comptime!((KEYS / value_rows) as u32) {
            let part = part as usize * value_rows;
            sync_cube();
            let mut at = unit;
            while at < comptime!(value_rows * quads) {
                let key = start + (part + at / quads) as u32;
                let slot = slot_of(min(key, end - 1), slots);
                let value =
                    load::<N>(values[source + slot * row_stride + at % quads], comptime!(shape.keys.format));
                stage[at] = value;
                at += UNITS;
            }
            sync_cube();
            for key in 0..value_rows {
                let mut weights = Array::<f32>::new(HELD);
                #[unroll]
                for r in 0..HELD {
                    weights[r] = scores[(held_row + r) * SCORES + part + key];
                }
                #[unroll]
                for i in 0..share {
                    let value =
                        stage[key * quads + min(column + comptime!(i * COLUMNS), comptime!(quads - 1))];
                    #[unroll]
                    for r in 0..HELD {
                        let at = comptime!(r * share + i);
                        attended[at] = fma(value, Quad::new(weights[r]), attended[at]);
                    }
                }
            }
        }
        start += comptime!(KEYS as u32);
    }

    sync_cube();
    if soft_key == 0 {
        shrinks[soft_row] = select(sum > 0.0f32, 1.0f32 / sum, 0.0f32);
    }
    sync_cube();
    #[unroll]
    for r in 0..HELD {
        let row = first_row + held_row + r;
        if row < rows {
            let inverse = Quad::new(shrinks[held_row + r]);
            let query = first_query + row / shared_by;
            let to = (query * heads + kv_head * shared_by + row % shared_by) * quads;
            #[unroll]
            for i in 0..share {
                let at = column + comptime!(i * COLUMNS);
                if at < quads {
                    out[to + at] = attended[comptime!(r * share + i)] * inverse;
                }
            }
        }
    }
}
