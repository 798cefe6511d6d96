//! Attention of many queries in f32, on every device: 256 units, 12 KiB of shared memory, no plane operations.
//!
//! A cube holds 64 rows of queries of one key head; a unit has four of them in common with fifteen others. Scores of 64
//! keys are made from slices of queries and keys in shared memory, four by four by each unit; then each unit holds some
//! columns of its rows of the result, and weights and values pass by in shared memory. What comes next is on its way into
//! registers meanwhile.

use std::cmp::min;

use cubecl::prelude::*;

use super::LOWEST;
use super::tensor::visible_range;
use crate::ops::cube::attention::cache::{CacheFormat, CacheLayout, load, slot_of};
use crate::ops::cube::packed::Quad;

/// Units of a cube: so many along its rows of queries, and as many along its keys.
const UNITS: usize = SIDE * SIDE;
const SIDE: usize = 16;
/// Rows of queries, and keys, of a unit; they lie [`SIDE`] apart.
const HELD: usize = 4;
/// Rows of queries of a cube.
const ROWS: usize = SIDE * HELD;
/// Keys of a block.
const KEYS: usize = SIDE * HELD;
/// Quads of a row that are multiplied at once.
const SLICE: usize = 4;
/// Keys whose values are in shared memory at once.
const VALUES: usize = 8;

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
        self.keys.quads().div_ceil(SIDE)
    }

    /// Quads of values that a unit stages at once.
    const fn value_loads(&self) -> usize {
        (VALUES * self.keys.quads()).div_ceil(UNITS)
    }

    /// Quads in shared memory: slices of queries and keys, or values.
    const fn stage(&self) -> usize {
        let (slices, values) = ((ROWS + KEYS) * SLICE, VALUES * self.keys.quads());
        if values > slices { values } else { slices }
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
    let mut ranges = Array::<u32>::new(comptime!(2 * HELD));
    #[unroll]
    for i in 0..HELD {
        let row = min(first_row + unit_row() + comptime!(i * SIDE), rows - 1);
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
    let mut ranges = Array::<u32>::new(comptime!(2 * HELD));
    #[unroll]
    for i in 0..HELD {
        ranges[comptime!(2 * i)] = 0u32;
        ranges[comptime!(2 * i + 1)] = slots;
    }
    attend(queries, keys, values, out, &ranges, 0u32.runtime(), slots, tokens, 0u32.runtime(), factor, shape);
}

/// The first of the unit's rows, in the cube's. Eight units side by side have the same rows and keys side by side: so a
/// plane reads few different quads at a time.
#[cube]
fn unit_row() -> usize {
    UNIT_POS as usize / 8 % SIDE
}

/// The first of the unit's keys in a block, and of its quads in a row of the result.
#[cube]
fn unit_column() -> usize {
    UNIT_POS as usize % 8 + UNIT_POS as usize / comptime!(8 * SIDE) * 8
}

/// The place of quad `quad` in a row of a slice: eight units that read or write side by side meet different banks.
#[cube]
fn swizzled(row: usize, quad: usize) -> usize {
    quad ^ ((row >> 1) & 3)
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
    let format = comptime!(shape.keys.format);
    let unit = UNIT_POS as usize;
    let rows = tokens as usize * shared_by;
    let first_row = CUBE_POS_X as usize * ROWS;
    let kv_head = CUBE_POS_Y as usize;
    let first_query = CUBE_POS_Z as usize * tokens as usize;
    let source = (CUBE_POS_Z + sequence) as usize * comptime!(shape.keys.sequence)
        + kv_head * comptime!(shape.keys.head);

    let mut stage = Shared::<[Quad]>::new_slice(comptime!(shape.stage()));
    // What the units of a row tell each other: a number of each of four rows, by every unit.
    let mut meets = Shared::<[Quad]>::new_slice(UNITS);
    let row = unit_row();
    let column = unit_column();
    let meet = column * SIDE + row;

    // What this unit stages of queries and keys: a quad of a row of each slice.
    let staged_row = unit / SLICE;
    let staged_quad = unit % SLICE;
    let staged_at = staged_row * SLICE + swizzled(staged_row, staged_quad);
    let query_row = min(first_row + staged_row, rows - 1);
    let query_start =
        ((first_query + query_row / shared_by) * heads + kv_head * shared_by + query_row % shared_by) * quads;

    let mut attended = Array::<Quad>::new(comptime!(HELD * share));
    let mut largest = Array::<f32>::new(HELD);
    let mut sums = Array::<f32>::new(HELD);
    #[unroll]
    for i in 0..comptime!(HELD * share) {
        attended[i] = Quad::new(0.0f32);
    }
    #[unroll]
    for i in 0..HELD {
        largest[i] = LOWEST.runtime();
        sums[i] = 0.0f32;
    }

    let mut start = first;
    while start < end {
        let position = min(start + staged_row as u32, end - 1);
        let key_start = source + slot_of(position, slots) * row_stride;
        let mut scores = Array::<Quad>::new(HELD);
        #[unroll]
        for i in 0..HELD {
            scores[i] = Quad::new(0.0f32);
        }
        let at = min(staged_quad, comptime!(quads - 1));
        let mut query = queries[query_start + at];
        let mut key = keys[key_start + at];
        for slice in 0..comptime!(quads.div_ceil(SLICE)) {
            let inside = slice * SLICE + staged_quad < quads;
            sync_cube(); // Nobody reads what was there any more.
            stage[staged_at] = select(inside, query, Quad::new(0.0f32));
            stage[comptime!(ROWS * SLICE) + staged_at] =
                select(inside, load::<N>(key, format), Quad::new(0.0f32));
            sync_cube();
            let at = min((slice + 1) * SLICE + staged_quad, comptime!(quads - 1));
            query = queries[query_start + at];
            key = keys[key_start + at];
            for quad in 0..SLICE {
                multiply(&stage, &mut scores, row, column, quad);
            }
        }
        let mut held = Array::<Vector<u32, N>>::new(comptime!(shape.value_loads()));
        fetch_values::<N>(values, &mut held, source, start, end, shape);

        let mut highs = Quad::empty();
        #[unroll]
        for i in 0..HELD {
            let mut high = LOWEST.runtime();
            #[unroll]
            for j in 0..HELD {
                let position = start + column as u32 + comptime!((j * SIDE) as u32);
                let seen = position >= ranges[comptime!(2 * i)]
                    && position < ranges[comptime!(2 * i + 1)]
                    && position < end;
                let score = select(seen, scores[i].extract(j) * factor, LOWEST);
                high = f32::max(high, score);
                let mut masked = scores[i];
                masked.insert(j, score);
                scores[i] = masked;
            }
            highs.insert(i, high);
        }
        meets[meet] = highs;
        sync_cube();
        let mut tops = Array::<f32>::new(HELD);
        #[unroll]
        for i in 0..HELD {
            tops[i] = largest[i];
        }
        for other in 0..SIDE {
            let highs = meets[other * SIDE + row];
            #[unroll]
            for i in 0..HELD {
                tops[i] = f32::max(tops[i], highs.extract(i));
            }
        }
        #[unroll]
        for i in 0..HELD {
            let high = tops[i];
            let shrink = f32::exp(largest[i] - high);
            largest[i] = high;
            let mut sum = sums[i] * shrink;
            let mut weights = Quad::empty();
            #[unroll]
            for j in 0..HELD {
                let score = scores[i].extract(j);
                let seen = score > comptime!(0.5 * LOWEST);
                let weight = select(seen, f32::exp(select(seen, score - high, 0.0f32)), 0.0f32);
                sum += weight;
                weights.insert(j, weight);
            }
            scores[i] = weights;
            sums[i] = sum;
            #[unroll]
            for s in 0..share {
                attended[comptime!(i * share + s)] *= Quad::new(shrink);
            }
        }

        // The keys of a turn follow each other: every unit has one of them, the first of those that are left.
        for turn in 0..HELD {
            let mut weights = Quad::empty();
            #[unroll]
            for i in 0..HELD {
                let own = scores[i];
                weights.insert(i, own.extract(0usize));
                let mut left = Quad::new(own.extract(0usize));
                #[unroll]
                for j in 1..HELD {
                    left.insert(comptime!(j - 1), own.extract(j));
                }
                scores[i] = left;
            }
            for part in 0..comptime!(SIDE / VALUES) {
                sync_cube(); // Nobody reads what was there any more.
                if part == 0 {
                    meets[meet] = weights;
                }
                store_values::<N>(&held, &mut stage, shape);
                sync_cube();
                let key = part * VALUES;
                let next = start + (turn * SIDE + key + VALUES) as u32;
                fetch_values::<N>(values, &mut held, source, next, end, shape);
                for value in 0..VALUES {
                    let weights = meets[(key + value) * SIDE + row];
                    #[unroll]
                    for s in 0..share {
                        let at = min(column + comptime!(s * SIDE), comptime!(quads - 1));
                        let value = stage[value * quads + at];
                        #[unroll]
                        for i in 0..HELD {
                            let at = comptime!(i * share + s);
                            attended[at] = fma(value, Quad::new(weights.extract(i)), attended[at]);
                        }
                    }
                }
            }
        }
        start += comptime!(KEYS as u32);
    }

    let mut own = Quad::empty();
    #[unroll]
    for i in 0..HELD {
        own.insert(i, sums[i]);
    }
    sync_cube();
    meets[meet] = own;
    sync_cube();
    #[unroll]
    for i in 0..HELD {
        let to_row = first_row + row + comptime!(i * SIDE);
        if to_row < rows {
            let mut sum = 0.0f32;
            #[unroll]
            for other in 0..SIDE {
                sum += meets[other * SIDE + row].extract(i);
            }
            let inverse = Quad::new(select(sum > 0.0f32, 1.0f32 / sum, 0.0f32));
            let query = first_query + to_row / shared_by;
            let to = (query * heads + kv_head * shared_by + to_row % shared_by) * quads;
            #[unroll]
            for s in 0..share {
                let at = column + comptime!(s * SIDE);
                if at < quads {
                    out[to + at] = attended[comptime!(i * share + s)] * inverse;
                }
            }
        }
    }
}

/// Adds the products of quad `quad` of the slices to a unit's scores, \[rows, keys\].
#[cube]
fn multiply(stage: &[Quad], scores: &mut Array<Quad>, row: usize, column: usize, quad: usize) {
    let query_at = row * SLICE + swizzled(row, quad);
    let key_at = comptime!(ROWS * SLICE) + column * SLICE + swizzled(column, quad);
    let mut keys = Array::<Quad>::new(HELD);
    #[unroll]
    for j in 0..HELD {
        keys[j] = stage[key_at + comptime!(j * SIDE * SLICE)];
    }
    // The four keys' numbers in one column are a quad, as their scores are.
    let mut columns = Array::<Quad>::new(4usize);
    #[unroll]
    for k in 0..4usize {
        let mut four = Quad::empty();
        #[unroll]
        for j in 0..HELD {
            four.insert(j, keys[j].extract(k));
        }
        columns[k] = four;
    }
    #[unroll]
    for i in 0..HELD {
        let query = stage[query_at + comptime!(i * SIDE * SLICE)];
        #[unroll]
        for k in 0..4usize {
            scores[i] = fma(Quad::new(query.extract(k)), columns[k], scores[i]);
        }
    }
}

/// Loads the unit's share of the values of the keys from `first` on into registers; keys beyond the end are the last.
#[cube]
fn fetch_values<N: Size>(
    values: &[Vector<u32, N>],
    held: &mut Array<Vector<u32, N>>,
    source: usize,
    first: u32,
    end: u32,
    #[comptime] shape: PlainShape,
) {
    let quads = comptime!(shape.keys.quads());
    #[unroll]
    for i in 0..shape.value_loads() {
        let at = UNIT_POS as usize + comptime!(i * UNITS);
        let position = min(first + (at / quads) as u32, end - 1);
        let slot = slot_of(position, comptime!(shape.keys.slots as u32));
        held[i] = values[source + slot * comptime!(shape.keys.row) + at % quads];
    }
}

/// Writes what [`fetch_values`] has loaded to shared memory.
#[cube]
fn store_values<N: Size>(held: &Array<Vector<u32, N>>, stage: &mut [Quad], #[comptime] shape: PlainShape) {
    let len = comptime!(VALUES * shape.keys.quads());
    #[unroll]
    for i in 0..shape.value_loads() {
        let at = UNIT_POS as usize + comptime!(i * UNITS);
        if comptime!((i + 1) * UNITS <= len) || at < len {
            stage[at] = load::<N>(held[i], comptime!(shape.keys.format));
        }
    }
}
