//! Attention of many queries on tensor cores: halves multiplied, sums in f32.
//!
//! A cube holds a tile of queries of one key head in shared memory, planes hold 16 or 32 rows of them each, and
//! the keys pass by in blocks: copied while the block before is worked on, scored, weighted and forgotten. What
//! a row of queries has so far (its largest score, the sum of the exponentials below it, and the values
//! weighted by them) lies in registers. Query heads that share a key head are rows of the same tile. With two
//! groups of planes, each takes every other block, and at the end they put together what they found.
//!
//! The halves are those of the cache, so keys and values are as exact as the cache is: bf16 for values of any
//! size, f16 where they entered an f16 cache (and were bounded there). Queries are rounded to the same format:
//! after their norm none exceeds `sqrt(head_dim)` times the largest scale, far below f16's largest. A score
//! therefore differs from that of f32 queries by at most `2^-8` (bf16) or `2^-11` (f16) of
//! `sum |q_i k_i|`. Weights are at most 1 and rounded the same way, so a result differs by that share of
//! `sum weight |v|` for them.

use std::cmp::min;

use cubecl::prelude::*;

use super::registers::*;
use super::{LOWEST, PrefillAttention};
use crate::ops::cube::attention::cache::{CacheFormat, slot_of};
use crate::ops::cube::gemm::{RowFormat, bf16_pair};
use crate::ops::cube::packed::Quad;

/// Units of a plane.
const LANES: usize = 32;

/// How a cube divides its queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TensorTile {
    /// Rows of queries that a plane holds, in 16s: 1 or 2.
    pub sixteens: usize,
    /// Planes among which the queries of a cube are divided.
    pub planes: usize,
    /// Groups of so many planes, each of which takes its share of the keys: 1 or 2.
    pub groups: usize,
    /// Keys of a block; a multiple of 32.
    pub keys: usize,
}

/// The constants of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TensorShape {
    pub attention: PrefillAttention,
    pub tile: TensorTile,
    pub operands: Operands,
    /// What the attended values become, in rows that are full.
    pub out: RowFormat,
}

/// Where queries, keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operands {
    /// Queries f32 \[tokens, heads * head_dim\], keys and values in a cache.
    Cached,
    /// All three in rows of halves, \[sequences * tokens, heads * head_dim\].
    Rows,
}

impl TensorShape {
    /// Query heads that share a key head.
    pub const fn shared_by(&self) -> usize {
        self.attention.heads / self.attention.cache.kv_heads
    }

    /// Rows of queries of a cube.
    pub const fn rows(&self) -> usize {
        16 * self.tile.sixteens * self.tile.planes
    }

    /// 8 numbers of a head: 16 bytes.
    const fn chunks(&self) -> usize {
        self.attention.cache.head_dim / 8
    }

    /// Bytes from one row in shared memory to the next: an odd number of chunks, so that eight rows lie in
    /// different banks.
    const fn stride(&self) -> usize {
        16 * (self.chunks() | 1)
    }

    /// Chunks from one key to the next.
    const fn key_stride(&self) -> usize {
        match self.operands {
            Operands::Cached => self.chunks(),
            Operands::Rows => self.attention.cache.kv_heads * self.chunks(),
        }
    }

    const fn group_units(&self) -> usize {
        LANES * self.tile.planes
    }

    /// Where the keys of the first group begin.
    const fn keys_at(&self) -> usize {
        self.rows() * self.stride()
    }

    /// Bytes of a block of keys, or of values.
    const fn block(&self) -> usize {
        self.tile.keys * self.stride()
    }

    /// Accumulators of a unit.
    const fn accumulators(&self) -> usize {
        self.tile.sixteens * self.chunks()
    }

    /// Where groups leave their largest scores and sums at the end, after their values.
    const fn statistics_at(&self) -> usize {
        self.tile.planes * self.accumulators() * LANES * 16
    }

    /// Whether the queries' fragments stay in registers.
    const fn holds_queries(&self) -> bool {
        self.tile.sixteens * self.chunks() <= 20
    }

    const fn half(&self) -> &'static str {
        match self.attention.cache.format {
            CacheFormat::F16 => "f16",
            _ => "bf16",
        }
    }

    /// Bytes of shared memory.
    pub const fn shared_bytes(&self) -> usize {
        let blocks = self.keys_at() + self.tile.groups * 2 * self.block();
        let exchange = self.statistics_at() + self.tile.planes * self.tile.sixteens * LANES * 16;
        if self.tile.groups > 1 && exchange > blocks { exchange } else { blocks }
    }

    /// The dimensions of a cube.
    pub fn dim(&self) -> CubeDim {
        CubeDim::new_2d(LANES as u32, (self.tile.planes * self.tile.groups) as u32)
    }
}

/// The row of the tile that a unit's `half`-th row of the `sixteen`-th 16 is.
#[cube]
fn local_row(#[comptime] sixteen: usize, #[comptime] half: usize, #[comptime] tile: TensorTile) -> usize {
    let plane = UNIT_POS_Y as usize % comptime!(tile.planes);
    plane * comptime!(16 * tile.sixteens) + comptime!(16 * sixteen + 8 * half) + UNIT_POS_X as usize / 4
}

/// Cube `[tile, kv_head, sequence]`: queries with the keys that `visible` says, \[tokens, 2\].
#[cube(launch_unchecked)]
pub(super) fn visible_kernel<O: Size>(
    queries: &[Words],
    keys: &[Words],
    values: &[Words],
    visible: &[u32],
    out: &mut [Vector<u32, O>],
    tokens: u32,
    sequence: u32,
    factor: f32,
    #[comptime] shape: TensorShape,
) {
    let slots = comptime!(shape.attention.cache.slots as u32);
    let shared_by = comptime!(shape.shared_by());
    let rows = tokens as usize * shared_by;
    // The last tiles, which see most, begin first.
    let tiles = (rows + comptime!(shape.rows() - 1)) / comptime!(shape.rows());
    let first_row = (tiles - 1 - CUBE_POS_X as usize) * comptime!(shape.rows());
    let mut ranges = Array::<u32>::new(comptime!(4 * shape.tile.sixteens));
    #[unroll]
    for m in 0..comptime!(shape.tile.sixteens) {
        #[unroll]
        for h in 0..2usize {
            let query = min(first_row + local_row(m, h, shape.tile), rows - 1) / shared_by;
            let (first, end) = visible_range(visible, query, slots);
            ranges[comptime!(4 * m + 2 * h)] = first;
            ranges[comptime!(4 * m + 2 * h + 1)] = end;
        }
    }
    // Neither end moves back from one query to the next.
    let (first, all_end) = visible_range(visible, first_row / shared_by, slots);
    let last_row = min(first_row + comptime!(shape.rows()), rows) - 1;
    let (all_first, end) = visible_range(visible, last_row / shared_by, slots);
    let end = min(end, first + slots);
    attend::<O>(
        queries, keys, values, out, &ranges, first, end, all_first, all_end, first_row, tokens, sequence,
        factor, shape,
    );
}

/// Cube `[tile, head, sequence]`: every query sees all keys.
#[cube(launch_unchecked)]
pub(super) fn full_kernel<O: Size>(
    queries: &[Words],
    keys: &[Words],
    values: &[Words],
    out: &mut [Vector<u32, O>],
    tokens: u32,
    factor: f32,
    #[comptime] shape: TensorShape,
) {
    let slots = comptime!(shape.attention.cache.slots as u32);
    let mut ranges = Array::<u32>::new(comptime!(4 * shape.tile.sixteens));
    #[unroll]
    for i in 0..comptime!(2 * shape.tile.sixteens) {
        ranges[comptime!(2 * i)] = 0u32;
        ranges[comptime!(2 * i + 1)] = slots.runtime();
    }
    let first_row = CUBE_POS_X as usize * comptime!(shape.rows());
    let end = slots.runtime();
    let zero = 0u32.runtime();
    attend::<O>(
        queries, keys, values, out, &ranges, zero, end, zero, end, first_row, tokens, zero, factor, shape,
    );
}

/// The keys that a query sees. Whatever the buffer holds, they are at most as many as there are slots.
#[cube]
pub(super) fn visible_range(visible: &[u32], query: usize, #[comptime] slots: u32) -> (u32, u32) {
    let first = min(visible[2 * query], 0x4000_0000u32);
    let end = min(visible[2 * query + 1], first + slots);
    (first, select(end > first, end, first))
}

#[cube]
fn attend<O: Size>(
    queries: &[Words],
    keys: &[Words],
    values: &[Words],
    out: &mut [Vector<u32, O>],
    ranges: &Array<u32>,
    first: u32,
    end: u32,
    all_first: u32,
    all_end: u32,
    first_row: usize,
    tokens: u32,
    sequence: u32,
    factor: f32,
    #[comptime] shape: TensorShape,
) {
    let tile = comptime!(shape.tile);
    let half = comptime!(shape.half());
    let chunks = comptime!(shape.chunks());
    let stride = comptime!(shape.stride() as u32);
    let columns = comptime!(tile.keys / 8);
    let layout = comptime!(shape.attention.cache);
    let lane = UNIT_POS_X;
    let plane = UNIT_POS_Y % comptime!(tile.planes as u32);
    let group = UNIT_POS_Y / comptime!(tile.planes as u32);
    let kv_head = CUBE_POS_Y as usize;

    let mut memory = Shared::<[Words]>::new_aligned_slice(comptime!(shape.shared_bytes() / 16), 16usize);
    let base = shared_address(&mut memory);
    let keys_at = base + comptime!(shape.keys_at() as u32) + group * comptime!(2 * shape.block() as u32);
    let values_at = keys_at + comptime!(shape.block() as u32);
    let sequence = (CUBE_POS_Z + sequence) as usize;
    let source = match comptime!(shape.operands) {
        Operands::Cached => {
            (sequence * comptime!(layout.kv_heads) + kv_head) * comptime!(layout.slots * chunks)
        }
        Operands::Rows => sequence * comptime!(layout.slots * shape.key_stride()) + kv_head * chunks,
    };

    let step = comptime!((tile.groups * tile.keys) as u32);
    let mut start = first + group * comptime!(tile.keys as u32);
    copy_block(keys, source, start, end, keys_at, shape);
    stage_queries(queries, base, first_row, tokens, shape);
    sync_cube();

    // Rows of 16 for the fragments of queries, of 8 for those of keys and values.
    let query_row =
        base + (plane * comptime!(16 * tile.sixteens as u32) + lane % 16) * stride + lane / 16 * 16;
    let key_row = keys_at + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16;
    let value_row = values_at + lane % 16 * stride + lane / 16 * 16;

    let mut held = Array::<Words>::new(comptime!(if shape.holds_queries() {
        tile.sixteens * chunks.div_ceil(2)
    } else {
        1
    }));
    if comptime!(shape.holds_queries()) {
        #[unroll]
        for m in 0..comptime!(tile.sixteens) {
            #[unroll]
            for k in 0..comptime!(chunks.div_ceil(2)) {
                held[comptime!(m * chunks.div_ceil(2) + k)] =
                    load_matrices(query_row + comptime!((16 * m * shape.stride() + 32 * k) as u32));
            }
        }
    }

    let mut attended = Array::<Quad>::new(comptime!(shape.accumulators()));
    #[unroll]
    for i in 0..comptime!(shape.accumulators()) {
        attended[i] = Quad::new(0.0f32);
    }
    let mut largest = Array::<f32>::new(comptime!(2 * tile.sixteens));
    let mut sums = Array::<f32>::new(comptime!(2 * tile.sixteens));
    #[unroll]
    for i in 0..comptime!(2 * tile.sixteens) {
        largest[i] = LOWEST;
        sums[i] = 0.0f32;
    }
    // Of the exponent of 2.
    let factor = factor * comptime!(std::f32::consts::LOG2_E);

    while start < end {
        wait_for_copies();
        wait_for_group(group, shape);
        copy_block(values, source, start, end, values_at, shape);

        let mut scores = Array::<Quad>::new(comptime!(tile.sixteens * columns));
        #[unroll]
        for i in 0..comptime!(tile.sixteens * columns) {
            scores[i] = Quad::new(0.0f32);
        }
        #[unroll]
        for k in 0..comptime!(chunks / 2) {
            let mut query = Array::<Words>::new(tile.sixteens);
            #[unroll]
            for m in 0..comptime!(tile.sixteens) {
                if comptime!(shape.holds_queries()) {
                    query[m] = held[comptime!(m * chunks.div_ceil(2) + k)];
                } else {
                    query[m] =
                        load_matrices(query_row + comptime!((16 * m * shape.stride() + 32 * k) as u32));
                }
            }
            #[unroll]
            for n in 0..comptime!(columns / 2) {
                let key = load_matrices(key_row + comptime!((16 * n * shape.stride() + 32 * k) as u32));
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let at = comptime!(m * columns + 2 * n);
                    let (k0, k1) = (key.extract(0usize), key.extract(1usize));
                    scores[at] = multiply_16(query[m], k0, k1, scores[at], half);
                    let at = comptime!(m * columns + 2 * n + 1);
                    let (k0, k1) = (key.extract(2usize), key.extract(3usize));
                    scores[at] = multiply_16(query[m], k0, k1, scores[at], half);
                }
            }
        }
        if comptime!(chunks % 2 == 1) {
            // The last 8 columns: a matrix of each of four columns of scores.
            let rest_row = keys_at + lane * stride + comptime!(16 * (chunks as u32 - 1));
            #[unroll]
            for n in 0..comptime!(columns / 4) {
                let key = load_matrices(rest_row + comptime!((32 * n * shape.stride()) as u32));
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let query = if comptime!(shape.holds_queries()) {
                        held[comptime!(m * chunks.div_ceil(2) + chunks / 2)]
                    } else {
                        load_matrices(
                            query_row + comptime!((16 * m * shape.stride() + 16 * (chunks - 1)) as u32),
                        )
                    };
                    let (q0, q1) = (query.extract(0usize), query.extract(1usize));
                    #[unroll]
                    for i in 0..4usize {
                        let at = comptime!(m * columns + 4 * n + i);
                        scores[at] = multiply_8(q0, q1, key.extract(i), scores[at], half);
                    }
                }
            }
        }

        if start < all_first || start + comptime!(tile.keys as u32) > all_end {
            hide(&mut scores, ranges, start + lane % 4 * 2, tile);
        }
        soften(&mut scores, &mut largest, &mut sums, &mut attended, factor, shape);

        wait_for_copies();
        wait_for_group(group, shape);
        copy_block(keys, source, start + step, end, keys_at, shape);
        #[unroll]
        for k in 0..comptime!(columns / 2) {
            let mut weights = Array::<Words>::new(tile.sixteens);
            #[unroll]
            for m in 0..comptime!(tile.sixteens) {
                let left = scores[comptime!(m * columns + 2 * k)];
                let right = scores[comptime!(m * columns + 2 * k + 1)];
                let mut words = Words::empty();
                words.insert(0usize, halves(left.extract(0usize), left.extract(1usize), half));
                words.insert(1usize, halves(left.extract(2usize), left.extract(3usize), half));
                words.insert(2usize, halves(right.extract(0usize), right.extract(1usize), half));
                words.insert(3usize, halves(right.extract(2usize), right.extract(3usize), half));
                weights[m] = words;
            }
            let row = value_row + comptime!((16 * k * shape.stride()) as u32);
            #[unroll]
            for d in 0..comptime!(chunks / 2) {
                let value = load_transposed(row + comptime!(32 * d as u32));
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let at = comptime!(m * chunks + 2 * d);
                    let (v0, v1) = (value.extract(0usize), value.extract(1usize));
                    attended[at] = multiply_16(weights[m], v0, v1, attended[at], half);
                    let at = comptime!(m * chunks + 2 * d + 1);
                    let (v0, v1) = (value.extract(2usize), value.extract(3usize));
                    attended[at] = multiply_16(weights[m], v0, v1, attended[at], half);
                }
            }
            if comptime!(chunks % 2 == 1) {
                // Units of the upper half give rows of their own, whose matrices are not used.
                let row = values_at + (lane % 16 + comptime!(16 * k as u32)) * stride;
                let value = load_transposed(row + comptime!(16 * (chunks as u32 - 1)));
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let at = comptime!(m * chunks + chunks - 1);
                    let (v0, v1) = (value.extract(0usize), value.extract(1usize));
                    attended[at] = multiply_16(weights[m], v0, v1, attended[at], half);
                }
            }
        }
        start += step;
    }

    // Four units hold a row.
    #[unroll]
    for i in 0..comptime!(2 * tile.sixteens) {
        let sum = sums[i] + plane_shuffle_xor(sums[i], 1u32);
        sums[i] = sum + plane_shuffle_xor(sum, 2u32);
    }
    if comptime!(tile.groups > 1) {
        join_groups(base, &mut attended, &largest, &mut sums, factor, shape);
    }
    if group == 0 {
        write::<O>(out, &attended, &sums, first_row, tokens, shape);
    }
}

/// A barrier of the group.
#[cube]
fn wait_for_group(group: u32, #[comptime] shape: TensorShape) {
    if comptime!(shape.tile.groups > 1) {
        sync_group(group, comptime!(shape.group_units()));
    } else {
        sync_cube();
    }
}

/// Starts the copies of a block of keys or values; those after `end` are zeros.
#[cube]
fn copy_block(from: &[Words], source: usize, start: u32, end: u32, to: u32, #[comptime] shape: TensorShape) {
    let chunks = comptime!(shape.chunks());
    let units = comptime!(shape.group_units());
    let total = comptime!(shape.tile.keys * chunks);
    let slots = comptime!(shape.attention.cache.slots as u32);
    let unit = (UNIT_POS_Y as usize % comptime!(shape.tile.planes)) * LANES + UNIT_POS_X as usize;
    if start < end {
        #[unroll]
        for i in 0..comptime!(total.div_ceil(units)) {
            let at = unit + comptime!(i * units);
            if comptime!((i + 1) * units <= total) || at < total {
                let key = at / chunks;
                let chunk = at % chunks;
                let position = start + key as u32;
                let slot = slot_of(position, slots);
                let to = to + key as u32 * comptime!(shape.stride() as u32) + chunk as u32 * 16;
                let from_chunk = source + slot * comptime!(shape.key_stride()) + chunk;
                copy_words(from, from_chunk, to, select(position < end, 16u32, 0u32));
            }
        }
    }
}

/// The tile's queries as halves.
#[cube]
fn stage_queries(queries: &[Words], to: u32, first_row: usize, tokens: u32, #[comptime] shape: TensorShape) {
    let half = comptime!(shape.half());
    let chunks = comptime!(shape.chunks());
    let heads = comptime!(shape.attention.heads);
    let shared_by = comptime!(shape.shared_by());
    let total = comptime!(shape.rows() * chunks);
    let units = comptime!(shape.group_units() * shape.tile.groups);
    let rows = tokens as usize * shared_by;
    let mut at = UNIT_POS as usize;
    while at < total {
        let chunk = at % chunks;
        let row = min(first_row + at / chunks, rows - 1);
        let query = CUBE_POS_Z as usize * tokens as usize + row / shared_by;
        let head = CUBE_POS_Y as usize * shared_by + row % shared_by;
        let from = (query * heads + head) * chunks + chunk;
        let mut words = Words::empty();
        match comptime!(shape.operands) {
            Operands::Rows => words = queries[from],
            Operands::Cached => {
                let left = Quad::reinterpret(queries[2 * from]);
                let right = Quad::reinterpret(queries[2 * from + 1]);
                words.insert(0usize, halves(left.extract(0usize), left.extract(1usize), half));
                words.insert(1usize, halves(left.extract(2usize), left.extract(3usize), half));
                words.insert(2usize, halves(right.extract(0usize), right.extract(1usize), half));
                words.insert(3usize, halves(right.extract(2usize), right.extract(3usize), half));
            }
        }
        store_shared(to + (at / chunks) as u32 * comptime!(shape.stride() as u32) + chunk as u32 * 16, words);
        at += units;
    }
}

/// Scores of keys that a row doesn't see become the lowest. `position` is that of the unit's first column.
#[cube]
fn hide(scores: &mut Array<Quad>, ranges: &Array<u32>, position: u32, #[comptime] tile: TensorTile) {
    let columns = comptime!(tile.keys / 8);
    #[unroll]
    for m in 0..comptime!(tile.sixteens) {
        #[unroll]
        for n in 0..columns {
            let at = comptime!(m * columns + n);
            let mut quad = scores[at];
            #[unroll]
            for i in 0..4usize {
                let range = comptime!(4 * m + i / 2 * 2);
                let (first, end) = (ranges[range], ranges[comptime!(range + 1)]);
                let key = position + comptime!((8 * n + i % 2) as u32);
                let seen = key >= first && key < end;
                quad.insert(i, select(seen, quad.extract(i), LOWEST));
            }
            scores[at] = quad;
        }
    }
}

/// Scores -> their exponentials below the largest so far; what was summed below another shrinks.
#[cube]
fn soften(
    scores: &mut Array<Quad>,
    largest: &mut Array<f32>,
    sums: &mut Array<f32>,
    attended: &mut Array<Quad>,
    factor: f32,
    #[comptime] shape: TensorShape,
) {
    let columns = comptime!(shape.tile.keys / 8);
    let chunks = comptime!(shape.chunks());
    #[unroll]
    for m in 0..comptime!(shape.tile.sixteens) {
        let mut high0 = largest[comptime!(2 * m)];
        let mut high1 = largest[comptime!(2 * m + 1)];
        #[unroll]
        for n in 0..columns {
            let quad = scores[comptime!(m * columns + n)];
            high0 = f32::max(high0, f32::max(quad.extract(0usize), quad.extract(1usize)));
            high1 = f32::max(high1, f32::max(quad.extract(2usize), quad.extract(3usize)));
        }
        high0 = f32::max(high0, plane_shuffle_xor(high0, 1u32));
        high0 = f32::max(high0, plane_shuffle_xor(high0, 2u32));
        high1 = f32::max(high1, plane_shuffle_xor(high1, 1u32));
        high1 = f32::max(high1, plane_shuffle_xor(high1, 2u32));
        // A row that has seen nothing yet keeps nothing: its scores stay far below zero.
        let below0 = select(high0 > LOWEST, high0 * factor, 0.0f32);
        let below1 = select(high1 > LOWEST, high1 * factor, 0.0f32);
        let shrink0 = power_of_two(largest[comptime!(2 * m)] * factor - below0);
        let shrink1 = power_of_two(largest[comptime!(2 * m + 1)] * factor - below1);
        largest[comptime!(2 * m)] = high0;
        largest[comptime!(2 * m + 1)] = high1;
        let mut sum0 = 0.0f32;
        let mut sum1 = 0.0f32;
        #[unroll]
        for n in 0..columns {
            let at = comptime!(m * columns + n);
            let mut quad = scores[at];
            quad.insert(0usize, power_of_two(fma(quad.extract(0usize), factor, -below0)));
            quad.insert(1usize, power_of_two(fma(quad.extract(1usize), factor, -below0)));
            quad.insert(2usize, power_of_two(fma(quad.extract(2usize), factor, -below1)));
            quad.insert(3usize, power_of_two(fma(quad.extract(3usize), factor, -below1)));
            sum0 += quad.extract(0usize) + quad.extract(1usize);
            sum1 += quad.extract(2usize) + quad.extract(3usize);
            scores[at] = quad;
        }
        sums[comptime!(2 * m)] = fma(sums[comptime!(2 * m)], shrink0, sum0);
        sums[comptime!(2 * m + 1)] = fma(sums[comptime!(2 * m + 1)], shrink1, sum1);
        let mut shrink = Quad::empty();
        shrink.insert(0usize, shrink0);
        shrink.insert(1usize, shrink0);
        shrink.insert(2usize, shrink1);
        shrink.insert(3usize, shrink1);
        #[unroll]
        for d in 0..chunks {
            attended[comptime!(m * chunks + d)] *= shrink;
        }
    }
}

/// The second group's softmax joins the first's.
#[cube]
fn join_groups(
    base: u32,
    attended: &mut Array<Quad>,
    largest: &Array<f32>,
    sums: &mut Array<f32>,
    factor: f32,
    #[comptime] shape: TensorShape,
) {
    let chunks = comptime!(shape.chunks());
    let plane = UNIT_POS_Y % comptime!(shape.tile.planes as u32);
    let group = UNIT_POS_Y / comptime!(shape.tile.planes as u32);
    let own = base + (plane * comptime!((shape.accumulators() * LANES) as u32) + UNIT_POS_X) * 16;
    let statistics = base
        + comptime!(shape.statistics_at() as u32)
        + (plane * comptime!((shape.tile.sixteens * LANES) as u32) + UNIT_POS_X) * 16;
    sync_cube();
    if group == 1 {
        #[unroll]
        for i in 0..comptime!(shape.accumulators()) {
            store_shared(own + comptime!((i * LANES * 16) as u32), Words::reinterpret(attended[i]));
        }
        #[unroll]
        for m in 0..comptime!(shape.tile.sixteens) {
            let mut quad = Quad::empty();
            quad.insert(0usize, largest[comptime!(2 * m)]);
            quad.insert(1usize, largest[comptime!(2 * m + 1)]);
            quad.insert(2usize, sums[comptime!(2 * m)]);
            quad.insert(3usize, sums[comptime!(2 * m + 1)]);
            store_shared(statistics + comptime!((m * LANES * 16) as u32), Words::reinterpret(quad));
        }
    }
    sync_cube();
    if group == 0 {
        #[unroll]
        for m in 0..comptime!(shape.tile.sixteens) {
            let other = Quad::reinterpret(load_shared(statistics + comptime!((m * LANES * 16) as u32)));
            let mut here = Quad::empty();
            let mut there = Quad::empty();
            #[unroll]
            for h in 0..2usize {
                let high = f32::max(largest[comptime!(2 * m + h)], other.extract(h));
                let below = select(high > LOWEST, high * factor, 0.0f32);
                let own_share = power_of_two(largest[comptime!(2 * m + h)] * factor - below);
                let other_share = power_of_two(other.extract(h) * factor - below);
                let sum = sums[comptime!(2 * m + h)] * own_share;
                sums[comptime!(2 * m + h)] = fma(other.extract(comptime!(2 + h)), other_share, sum);
                here.insert(comptime!(2 * h), own_share);
                here.insert(comptime!(2 * h + 1), own_share);
                there.insert(comptime!(2 * h), other_share);
                there.insert(comptime!(2 * h + 1), other_share);
            }
            #[unroll]
            for d in 0..chunks {
                let at = comptime!(m * chunks + d);
                let from = own + comptime!((at * LANES * 16) as u32);
                let other = Quad::reinterpret(load_shared(from));
                attended[at] = fma(other, there, attended[at] * here);
            }
        }
    }
}

#[cube]
fn write<O: Size>(
    out: &mut [Vector<u32, O>],
    attended: &Array<Quad>,
    sums: &Array<f32>,
    first_row: usize,
    tokens: u32,
    #[comptime] shape: TensorShape,
) {
    let chunks = comptime!(shape.chunks());
    let heads = comptime!(shape.attention.heads);
    let shared_by = comptime!(shape.shared_by());
    #[unroll]
    for m in 0..comptime!(shape.tile.sixteens) {
        #[unroll]
        for h in 0..2usize {
            let row = first_row + local_row(m, h, shape.tile);
            if row < tokens as usize * shared_by {
                let sum = sums[comptime!(2 * m + h)];
                let inverse = select(sum > 0.0f32, 1.0f32 / sum, 0.0f32);
                let query = CUBE_POS_Z as usize * tokens as usize + row / shared_by;
                let head = CUBE_POS_Y as usize * shared_by + row % shared_by;
                let to = (query * heads + head) * comptime!(4 * chunks) + UNIT_POS_X as usize % 4;
                #[unroll]
                for d in 0..chunks {
                    let quad = attended[comptime!(m * chunks + d)];
                    let first = quad.extract(comptime!(2 * h)) * inverse;
                    let second = quad.extract(comptime!(2 * h + 1)) * inverse;
                    let mut pair = Vector::<u32, O>::empty();
                    if comptime!(matches!(shape.out, RowFormat::Bf16)) {
                        pair.insert(0usize, bf16_pair(first, second));
                    } else {
                        pair.insert(0usize, u32::reinterpret(first));
                        pair.insert(1usize, u32::reinterpret(second));
                    }
                    out[to + comptime!(4 * d)] = pair;
                }
            }
        }
    }
}
