//! Attention of many queries on cooperative matrices: 16 x 16 x 16, halves multiplied, sums in f32, by a plane. What
//! Vulkan has of matrix hardware, and CUDA too.
//!
//! A cube holds a tile of queries of one key head, a plane 16 or 32 rows of it, and the keys pass by in blocks through
//! shared memory: scored, weighted and forgotten. Query heads that share a key head are rows of the same tile.
//!
//! Nothing is known of where a plane's matrices have their elements, so scores go through shared memory to the units,
//! a row to each two (or four), and come back as weights. The attended values stay in matrices. They can't be
//! multiplied by a factor for each row there, which a running softmax asks for whenever a row's largest score grows;
//! so weights are relative to a reference that lags behind: it moves only if a score exceeds it by more than
//! [`MARGIN`], and then the matrices go through shared memory once. Relative to the reference a weight is at most
//! `exp(MARGIN + LIFT)`, a third of f16's largest.
//!
//! Keys and values are the f16 of the cache. Queries are rounded to f16: after their norm none exceeds
//! `sqrt(head_dim)` times the largest scale, far below f16's largest; one that does becomes infinite, and its row no
//! number, as they would in f32. A score differs from that of f32 queries by at most `2^-11 sum |q_i k_i|`. Weights
//! are rounded to f16 and summed up as they were rounded, so a result differs by at most `2^-10 sum weight |v|` for
//! them, as long as they are normal: those below `exp(-11)` of the reference are rounded to multiples of `2^-24`.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::features::Plane;
use cubecl::ir::features::MmaConfig;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use half::f16;

use super::LOWEST;
use super::plain::KeyRows;
use super::registers::Words;
use super::tensor::visible_range;
use crate::ops::cube::attention::cache::{CacheFormat, slot_of};
use crate::ops::cube::packed::Quad;

/// Four halves.
type Fours = Vector<f16, Const<4>>;

/// Rows and columns of a matrix.
const SIDE: usize = 16;
/// By how much a score may exceed its row's reference.
const MARGIN: f32 = 8.0;
/// The logarithm of a weight at the reference: weights far below it are normal halves for longer.
const LIFT: f32 = 2.0;

/// How a cube divides its queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CooperativeTile {
    /// Units of a plane: 32 or 64.
    pub plane_units: usize,
    /// Rows of queries that a plane holds, in 16s: 1 or 2.
    pub sixteens: usize,
    /// Planes of a cube.
    pub planes: usize,
    /// Keys of a block; a multiple of 16.
    pub keys: usize,
    /// Whether the queries stay in the planes' registers; in shared memory otherwise.
    pub holds: bool,
    /// Whether keys and values have shared memory of their own; otherwise they take turns, and wait for each other.
    pub apart: bool,
    /// Whether units fetch what is multiplied next while they multiply.
    pub ahead: bool,
}

/// The constants of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::ops::cube::attention) struct CooperativeShape {
    pub heads: usize,
    pub kv_heads: usize,
    /// Halves or f32, which become halves.
    pub keys: KeyRows,
    pub tile: CooperativeTile,
}

impl CooperativeTile {
    /// The fastest for a device over such keys.
    pub(in crate::ops::cube::attention) fn choose(client: &Client, keys: &KeyRows) -> Option<Self> {
        let plane_units = client.properties().hardware.plane_size_max as usize;
        let tile = |sixteens, planes, keys, apart| Self {
            plane_units,
            sixteens,
            planes,
            keys,
            holds: true,
            apart,
            ahead: true,
        };
        let long = keys.head_dim > 128;
        let tiles =
            [tile(if long { 1 } else { 2 }, 4, if long { 32 } else { 64 }, long), tile(1, 2, 32, false)];
        tiles.into_iter().find(|tile| tile.runs(client, keys))
    }

    /// Whether a device can run it over such keys.
    pub(in crate::ops::cube::attention) fn runs(&self, client: &Client, keys: &KeyRows) -> bool {
        let half = ElemType::Float(FloatKind::F16);
        let multiply = MmaConfig {
            a_type: half,
            b_type: half,
            cd_type: ElemType::Float(FloatKind::F32),
            m: SIDE as u32,
            n: SIDE as u32,
            k: SIDE as u32,
        };
        let (features, hardware) = (client.features(), &client.properties().hardware);
        let shape = CooperativeShape { heads: 1, kv_heads: 1, keys: *keys, tile: *self };
        let stages = !self.holds || SIDE * self.planes <= shape.block_rows();
        keys.format != CacheFormat::BF16
            && stages
            && features.matmul.cmma.contains(&multiply)
            && features.plane.contains(Plane::Ops)
            && features.plane.contains(Plane::Sync)
            && hardware.plane_size_min as usize == self.plane_units
            && hardware.plane_size_max as usize == self.plane_units
            && shape.units() <= hardware.max_units_per_cube as usize
            && shape.shared_bytes() <= hardware.max_shared_memory_size
    }
}

impl CooperativeShape {
    /// The cubes of `tokens` queries of each of some sequences.
    pub fn cubes(&self, tokens: usize, sequences: usize) -> CubeCount {
        let tiles = (tokens * self.shared_by()).div_ceil(self.rows());
        CubeCount::Static(tiles as u32, self.kv_heads as u32, sequences as u32)
    }

    /// The dimensions of a cube.
    pub fn dim(&self) -> CubeDim {
        CubeDim::new_2d(self.tile.plane_units as u32, self.tile.planes as u32)
    }

    /// Query heads that share a key head.
    const fn shared_by(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Rows of queries of a cube.
    const fn rows(&self) -> usize {
        SIDE * self.tile.sixteens * self.tile.planes
    }

    const fn units(&self) -> usize {
        self.tile.plane_units * self.tile.planes
    }

    /// Eights of a head's numbers.
    const fn eights(&self) -> usize {
        self.keys.head_dim / 8
    }

    /// 16s of a head's numbers, the last of them filled up with zeros.
    const fn steps(&self) -> usize {
        self.keys.head_dim.div_ceil(SIDE)
    }

    /// Halves from one row in shared memory to the next: 16 bytes more than multiples of 32, so that eight rows lie in
    /// different banks.
    const fn stride(&self) -> usize {
        SIDE * self.steps() + 8
    }

    /// Rows of keys and values in shared memory.
    const fn block_rows(&self) -> usize {
        if self.tile.apart { 2 * self.tile.keys } else { self.tile.keys }
    }

    /// Rows of queries in shared memory of their own.
    const fn query_rows(&self) -> usize {
        if self.tile.holds { 0 } else { self.rows() }
    }

    /// 16 keys each.
    const fn columns(&self) -> usize {
        self.tile.keys / SIDE
    }

    /// Numbers from one row of scores to the next.
    const fn score_stride(&self) -> usize {
        self.tile.keys + 4
    }

    /// Halves from one row of weights to the next.
    const fn weight_stride(&self) -> usize {
        self.tile.keys + 8
    }

    /// Units that share a row of scores.
    const fn row_units(&self) -> usize {
        self.tile.plane_units / SIDE
    }

    /// Quads of a row of scores that a unit has.
    const fn share(&self) -> usize {
        self.tile.keys / (4 * self.row_units())
    }

    /// 16 bytes of a block of keys or values that a unit copies.
    const fn fetched(&self) -> usize {
        (self.tile.keys * self.eights()).div_ceil(self.units()) * self.eight_words()
    }

    /// 16 bytes of eight numbers where keys and values come from.
    const fn eight_words(&self) -> usize {
        match self.keys.format {
            CacheFormat::F32 => 2,
            _ => 1,
        }
    }

    /// Bytes of shared memory.
    pub const fn shared_bytes(&self) -> usize {
        let rows = self.block_rows() + self.query_rows();
        let scores = SIDE * (4 * self.score_stride() + 2 * self.weight_stride());
        2 * rows * self.stride() + self.tile.planes * scores
    }
}

/// Cube `[tile, kv_head]`: queries with the keys that `visible` says, \[tokens, 2\].
#[cube(launch_unchecked)]
pub(super) fn visible_kernel(
    queries: &[Quad],
    keys: &[Words],
    values: &[Words],
    visible: &[u32],
    out: &mut [Quad],
    tokens: u32,
    sequence: u32,
    #[comptime] shape: CooperativeShape,
) {
    let slots = comptime!(shape.keys.slots as u32);
    let shared_by = comptime!(shape.shared_by());
    let rows = tokens as usize * shared_by;
    // The last tiles, which see most, begin first.
    let tiles = (rows + comptime!(shape.rows() - 1)) / comptime!(shape.rows());
    let first_row = (tiles - 1 - CUBE_POS_X as usize) * comptime!(shape.rows());
    let mut ranges = Array::<u32>::new(comptime!(2 * shape.tile.sixteens));
    #[unroll]
    for m in 0..comptime!(shape.tile.sixteens) {
        let row = first_row + first_of_plane(m, shape) + UNIT_POS_X as usize % SIDE;
        let (first, end) = visible_range(visible, min(row, rows - 1) / shared_by, slots);
        ranges[comptime!(2 * m)] = first;
        ranges[comptime!(2 * m + 1)] = end;
    }
    // Neither end moves back from one query to the next.
    let (first, all_end) = visible_range(visible, first_row / shared_by, slots);
    let last_row = min(first_row + comptime!(shape.rows()), rows) - 1;
    let (all_first, end) = visible_range(visible, last_row / shared_by, slots);
    let end = min(end, first + slots);
    attend(
        queries, keys, values, out, &ranges, first, end, all_first, all_end, first_row, tokens, sequence,
        1.0f32, shape,
    );
}

/// Cube `[tile, head, sequence]`: every query sees all keys; the queries are multiplied by `factor`, which is positive.
#[cube(launch_unchecked)]
pub(in crate::ops::cube::attention) fn full_kernel(
    queries: &[Quad],
    keys: &[Words],
    values: &[Words],
    out: &mut [Quad],
    tokens: u32,
    factor: f32,
    #[comptime] shape: CooperativeShape,
) {
    let end = comptime!(shape.keys.slots as u32).runtime();
    let zero = 0u32.runtime();
    let mut ranges = Array::<u32>::new(comptime!(2 * shape.tile.sixteens));
    #[unroll]
    for m in 0..comptime!(shape.tile.sixteens) {
        ranges[comptime!(2 * m)] = zero;
        ranges[comptime!(2 * m + 1)] = end;
    }
    let first_row = CUBE_POS_X as usize * comptime!(shape.rows());
    attend(queries, keys, values, out, &ranges, zero, end, zero, end, first_row, tokens, zero, factor, shape);
}

/// The row of the cube's tile with which the plane's `sixteen`-th 16 begin.
#[cube]
fn first_of_plane(#[comptime] sixteen: usize, #[comptime] shape: CooperativeShape) -> usize {
    UNIT_POS_Y as usize * comptime!(SIDE * shape.tile.sixteens) + comptime!(SIDE * sixteen)
}

#[cube]
fn attend(
    queries: &[Quad],
    keys: &[Words],
    values: &[Words],
    out: &mut [Quad],
    ranges: &Array<u32>,
    first: u32,
    end: u32,
    all_first: u32,
    all_end: u32,
    first_row: usize,
    tokens: u32,
    sequence: u32,
    factor: f32,
    #[comptime] shape: CooperativeShape,
) {
    let tile = comptime!(shape.tile);
    let steps = comptime!(shape.steps());
    let columns = comptime!(shape.columns());
    let stride = comptime!(shape.stride());
    let plane = UNIT_POS_Y as usize;

    let mut block = Shared::<[Fours]>::new_aligned_slice(comptime!(shape.block_rows() * stride / 4), 32usize);
    let mut staged = Shared::<[Fours]>::new_aligned_slice(
        comptime!(if tile.holds { 1 } else { shape.query_rows() * stride / 4 }),
        32usize,
    );
    let mut scores = Shared::<[Quad]>::new_aligned_slice(
        comptime!(tile.planes * SIDE * shape.score_stride() / 4),
        32usize,
    );
    let mut weights = Shared::<[Fours]>::new_aligned_slice(
        comptime!(tile.planes * SIDE * shape.weight_stride() / 4),
        32usize,
    );
    let scores_at = plane * comptime!(SIDE * shape.score_stride() / 4);
    let weights_at = plane * comptime!(SIDE * shape.weight_stride() / 4);

    // What fills a row's numbers up to 16s stays zero.
    clear_padding(&mut block, comptime!(shape.block_rows()), shape);
    let mut held = Sequence::<Matrix<Fours>>::new();
    if comptime!(tile.holds) {
        #[unroll]
        for m in 0..comptime!(tile.sixteens) {
            stage_queries(queries, &mut block, first_row, tokens, m, shape);
            sync_cube();
            #[unroll]
            for k in 0..steps {
                held.push(load_rows(&block, plane * comptime!(SIDE), k, stride));
            }
            sync_cube();
        }
    } else {
        clear_padding(&mut staged, comptime!(shape.query_rows()), shape);
        #[unroll]
        for m in 0..comptime!(tile.sixteens) {
            stage_queries(queries, &mut staged, first_row, tokens, m, shape);
        }
    }

    let mut attended = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _i in 0..comptime!(tile.sixteens * steps) {
        attended.push(zeros());
    }
    let mut references = Array::<f32>::new(tile.sixteens);
    let mut sums = Array::<f32>::new(tile.sixteens);
    #[unroll]
    for m in 0..comptime!(tile.sixteens) {
        references[m] = LOWEST;
        sums[m] = 0.0f32;
    }

    let source = key_source(sequence, shape);
    let mut fetched = Array::<Words>::new(comptime!(shape.fetched()));
    let mut start = first;
    if comptime!(tile.ahead) {
        fetch(keys, source, start, end, &mut fetched, shape);
    }
    while start < end {
        if comptime!(!tile.ahead) {
            fetch(keys, source, start, end, &mut fetched, shape);
        }
        place(&fetched, &mut block, 0usize, start, end, shape);
        if comptime!(tile.ahead) {
            fetch(values, source, start, end, &mut fetched, shape);
        }
        sync_cube();
        let mut products = Sequence::<Matrix<f32>>::new();
        #[unroll]
        for _i in 0..comptime!(tile.sixteens * columns) {
            products.push(zeros());
        }
        #[unroll]
        for k in 0..steps {
            let mut rows = Sequence::<Matrix<Fours>>::new();
            if comptime!(!tile.holds) {
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    rows.push(load_rows(&staged, first_of_plane(m, shape), k, stride));
                }
            }
            #[unroll]
            for n in 0..columns {
                let at = comptime!((SIDE * n * stride + SIDE * k) / 4).runtime();
                let key = load_right(&block, at, MatrixLayout::ColMajor, stride);
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let product = &products[comptime!(m * columns + n)];
                    if comptime!(tile.holds) {
                        cmma::execute(&held[comptime!(m * steps + k)], &key, product, product);
                    } else {
                        cmma::execute(&rows[m], &key, product, product);
                    }
                }
            }
        }
        if comptime!(!tile.apart) {
            sync_cube();
        }
        if comptime!(!tile.ahead) {
            fetch(values, source, start, end, &mut fetched, shape);
        }
        place(&fetched, &mut block, comptime!(shape.block_rows() - tile.keys), start, end, shape);
        if comptime!(tile.ahead) {
            fetch(keys, source, start + comptime!(tile.keys as u32), end, &mut fetched, shape);
        }

        let masked = start < all_first || start + comptime!(tile.keys as u32) > all_end;
        let mut shares = Sequence::<Matrix<Fours>>::new();
        #[unroll]
        for m in 0..comptime!(tile.sixteens) {
            #[unroll]
            for n in 0..columns {
                let at = scores_at + comptime!(4 * n);
                store(&products[comptime!(m * columns + n)], &mut scores, at, shape);
            }
            sync_plane();
            let mut quads = Array::<Quad>::new(comptime!(shape.share()));
            read_scores(&scores, scores_at, &mut quads, shape);
            if masked {
                hide(&mut quads, ranges[comptime!(2 * m)], ranges[comptime!(2 * m + 1)], start, shape);
            }
            let shrink = soften(&mut quads, &mut references, &mut sums, factor, m, shape);
            write_weights(&quads, &mut weights, weights_at, &mut sums, m, shape);
            if plane_any(shrink < 1.0f32) {
                rescale(&mut attended, &mut scores, scores_at, shrink, m, shape);
            }
            sync_plane();
            #[unroll]
            for n in 0..columns {
                let at = weights_at + comptime!(4 * n);
                let end = comptime!(tile.planes * SIDE * shape.weight_stride() / 4);
                shares.push(Matrix::<Fours>::from_slice(
                    MatrixIdent::A,
                    SIDE,
                    SIDE,
                    SIDE,
                    MatrixLayout::RowMajor,
                    &weights[at..end],
                    comptime!(shape.weight_stride() as u32),
                ));
            }
        }
        sync_cube();

        #[unroll]
        for n in 0..columns {
            #[unroll]
            for d in 0..steps {
                let row = comptime!(shape.block_rows() - tile.keys + SIDE * n);
                let at = comptime!((row * stride + SIDE * d) / 4).runtime();
                let value = load_right(&block, at, MatrixLayout::RowMajor, stride);
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let sum = &attended[comptime!(m * steps + d)];
                    cmma::execute(&shares[comptime!(m * columns + n)], &value, sum, sum);
                }
            }
        }
        if comptime!(!tile.apart) {
            sync_cube();
        }
        start += comptime!(tile.keys as u32);
    }

    #[unroll]
    for m in 0..comptime!(tile.sixteens) {
        let mut sum = sums[m];
        #[unroll]
        for step in 0..comptime!(shape.row_units().ilog2() as usize) {
            sum += plane_shuffle_xor(sum, comptime!((SIDE << step) as u32).runtime());
        }
        // Where nothing is visible, zeros; otherwise what the sum gives, be it a number or not.
        let sees = ranges[comptime!(2 * m)] < ranges[comptime!(2 * m + 1)];
        let inverse = select(sees, 1.0f32 / sum, 0.0f32);
        write(out, &attended, &mut scores, scores_at, inverse, first_row, tokens, m, shape);
    }
}

/// An accumulator.
#[cube]
fn zeros() -> Matrix<f32> {
    Matrix::<f32>::from_value(MatrixIdent::Accumulator, SIDE, SIDE, SIDE, MatrixLayout::Undefined, 0.0f32)
}

/// The `k`-th 16 numbers of 16 rows.
#[cube]
fn load_rows(memory: &[Fours], row: usize, #[comptime] k: usize, #[comptime] stride: usize) -> Matrix<Fours> {
    let at = row * comptime!(stride / 4) + comptime!(SIDE * k / 4);
    let end = memory.len();
    Matrix::<Fours>::from_slice(
        MatrixIdent::A,
        SIDE,
        SIDE,
        SIDE,
        MatrixLayout::RowMajor,
        &memory[at..end],
        comptime!(stride as u32),
    )
}

/// The right side of a product: 16 keys as columns, or 16 rows of values.
#[cube]
fn load_right(
    memory: &[Fours],
    at: usize,
    #[comptime] layout: MatrixLayout,
    #[comptime] stride: usize,
) -> Matrix<Fours> {
    let end = memory.len();
    Matrix::<Fours>::from_slice(
        MatrixIdent::B,
        SIDE,
        SIDE,
        SIDE,
        layout,
        &memory[at..end],
        comptime!(stride as u32),
    )
}

/// 16 columns of the plane's scores.
#[cube]
fn store(matrix: &Matrix<f32>, scores: &mut [Quad], at: usize, #[comptime] shape: CooperativeShape) {
    let end = scores.len();
    cmma::store(&mut scores[at..end], matrix, comptime!(shape.score_stride() as u32), MatrixLayout::RowMajor);
}

/// Zeros where rows are filled up to 16s.
#[cube]
fn clear_padding(memory: &mut [Fours], #[comptime] rows: usize, #[comptime] shape: CooperativeShape) {
    if comptime!(shape.eights() % 2 == 1) {
        let mut row = UNIT_POS as usize;
        while row < rows {
            let at = row * comptime!(shape.stride() / 4) + comptime!(2 * shape.eights());
            memory[at] = Fours::cast_from(Quad::new(0.0f32));
            memory[at + 1] = Fours::cast_from(Quad::new(0.0f32));
            row += comptime!(shape.units());
        }
    }
}

/// Every plane's `sixteen`-th 16 rows of queries as halves: one after the other where they are held in registers
/// afterwards, otherwise in their places.
#[cube]
fn stage_queries(
    queries: &[Quad],
    to: &mut [Fours],
    first_row: usize,
    tokens: u32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let quads = comptime!(2 * shape.eights());
    let shared_by = comptime!(shape.shared_by());
    let sixteens = comptime!(shape.tile.sixteens);
    let rows = tokens as usize * shared_by;
    let mut at = UNIT_POS as usize;
    while at < comptime!(SIDE * shape.tile.planes * quads) {
        let own = at / quads;
        let place = own / SIDE * comptime!(SIDE * sixteens) + comptime!(SIDE * sixteen) + own % SIDE;
        let row = min(first_row + place, rows - 1);
        let query = CUBE_POS_Z as usize * tokens as usize + row / shared_by;
        let head = CUBE_POS_Y as usize * shared_by + row % shared_by;
        let quad = queries[(query * comptime!(shape.heads) + head) * quads + at % quads];
        let to_row = if comptime!(shape.tile.holds) { own } else { place };
        to[to_row * comptime!(shape.stride() / 4) + at % quads] = halves(quad);
        at += comptime!(shape.units());
    }
}

/// Four halves; what lies beyond them becomes infinite, whichever way a device rounds.
#[cube]
fn halves(quad: Quad) -> Fours {
    let beyond = quad - clamp(quad, Quad::new(-65504.0f32), Quad::new(65504.0f32));
    Fours::cast_from(quad + beyond * Quad::new(1e30f32) * Quad::new(1e30f32))
}

/// Where the keys of the cube's head begin, in 16 bytes.
#[cube]
fn key_source(sequence: u32, #[comptime] shape: CooperativeShape) -> usize {
    let words = comptime!(shape.eight_words());
    (CUBE_POS_Z + sequence) as usize * comptime!(shape.keys.sequence / 2 * words)
        + CUBE_POS_Y as usize * comptime!(shape.keys.head / 2 * words)
}

/// The unit's part of a block of keys or values, on its way to [`place`].
#[cube]
fn fetch(
    from: &[Words],
    source: usize,
    start: u32,
    end: u32,
    fetched: &mut Array<Words>,
    #[comptime] shape: CooperativeShape,
) {
    let eights = comptime!(shape.eights());
    let words = comptime!(shape.eight_words());
    let slots = comptime!(shape.keys.slots as u32);
    let total = comptime!(shape.tile.keys * eights);
    let last = u32::max(end, 1u32) - 1;
    #[unroll]
    for i in 0..comptime!(shape.fetched() / words) {
        let at = min(UNIT_POS as usize + comptime!(i * shape.units()), comptime!(total - 1));
        let position = min(start + (at / eights) as u32, last);
        let from_row = source + slot_of(position, slots) * comptime!(shape.keys.row / 2 * words);
        #[unroll]
        for w in 0..words {
            fetched[comptime!(i * words + w)] = from[from_row + at % eights * words + w];
        }
    }
}

/// What was fetched into shared memory, from a row on; zeros from `end` on.
#[cube]
fn place(
    fetched: &Array<Words>,
    block: &mut [Fours],
    #[comptime] row: usize,
    start: u32,
    end: u32,
    #[comptime] shape: CooperativeShape,
) {
    let eights = comptime!(shape.eights());
    let words = comptime!(shape.eight_words());
    let total = comptime!(shape.tile.keys * eights);
    #[unroll]
    for i in 0..comptime!(shape.fetched() / words) {
        let at = UNIT_POS as usize + comptime!(i * shape.units());
        if comptime!((i + 1) * shape.units() <= total) || at < total {
            let key = at / eights;
            let present = start + (key as u32) < end;
            let to = (key + row) * comptime!(shape.stride() / 4) + at % eights * 2;
            if comptime!(matches!(shape.keys.format, CacheFormat::F32)) {
                #[unroll]
                for w in 0..2usize {
                    let quad = Quad::reinterpret(fetched[comptime!(2 * i + w)]);
                    block[to + w] = Fours::cast_from(select(present, quad, Quad::new(0.0f32)));
                }
            } else {
                let eight = select(present, fetched[i], Words::new(0u32));
                #[unroll]
                for w in 0..2usize {
                    let mut pairs = Vector::<u32, Const<2>>::empty();
                    pairs.insert(0usize, eight.extract(comptime!(2 * w)));
                    pairs.insert(1usize, eight.extract(comptime!(2 * w + 1)));
                    block[to + w] = Fours::reinterpret(pairs);
                }
            }
        }
    }
}

/// The first quad of the unit's part of a row of scores.
#[cube]
fn own_scores(#[comptime] shape: CooperativeShape) -> usize {
    let lane = UNIT_POS_X as usize;
    lane % SIDE * comptime!(shape.score_stride() / 4) + lane / SIDE * comptime!(shape.share())
}

#[cube]
fn read_scores(
    scores: &[Quad],
    scores_at: usize,
    quads: &mut Array<Quad>,
    #[comptime] shape: CooperativeShape,
) {
    let from = scores_at + own_scores(shape);
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        quads[i] = scores[from + i];
    }
}

/// Scores of keys that the row doesn't see become the lowest.
#[cube]
fn hide(quads: &mut Array<Quad>, first: u32, end: u32, start: u32, #[comptime] shape: CooperativeShape) {
    let position = start + UNIT_POS_X / comptime!(SIDE as u32) * comptime!(4 * shape.share() as u32);
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        let mut quad = quads[i];
        #[unroll]
        for j in 0..4usize {
            let key = position + comptime!((4 * i + j) as u32);
            quad.insert(j, select(key >= first && key < end, quad.extract(j), LOWEST));
        }
        quads[i] = quad;
    }
}

/// Scores into weights, relative to the row's reference. Gives what the weights so far have to be multiplied by: 1
/// unless the reference has moved and there are any.
#[cube]
fn soften(
    quads: &mut Array<Quad>,
    references: &mut Array<f32>,
    sums: &mut Array<f32>,
    factor: f32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) -> f32 {
    let mut high = LOWEST.runtime();
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        let quad = quads[i];
        let (left, right) = (
            f32::max(quad.extract(0usize), quad.extract(1usize)),
            f32::max(quad.extract(2usize), quad.extract(3usize)),
        );
        high = f32::max(high, f32::max(left, right));
    }
    #[unroll]
    for step in 0..comptime!(shape.row_units().ilog2() as usize) {
        high = f32::max(high, plane_shuffle_xor(high, comptime!((SIDE << step) as u32).runtime()));
    }
    let reference = references[sixteen];
    let moves = (high - reference) * factor > MARGIN;
    let shrink = select(moves, f32::exp((reference - high) * factor), 1.0f32);
    let reference = select(moves, high, reference);
    references[sixteen] = reference;
    // A row that has seen nothing yet keeps nothing: its scores stay far below zero.
    let below = select(reference > LOWEST, reference * factor, 0.0f32) - LIFT;
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        quads[i] = Quad::exp(fma(quads[i], Quad::new(factor), Quad::new(-below)));
    }
    let sum = sums[sixteen];
    sums[sixteen] = sum * shrink;
    select(sum > 0.0f32, shrink, 1.0f32)
}

/// Weights as halves; their sum as they were rounded.
#[cube]
fn write_weights(
    quads: &Array<Quad>,
    weights: &mut [Fours],
    weights_at: usize,
    sums: &mut Array<f32>,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let lane = UNIT_POS_X as usize;
    let to = weights_at
        + lane % SIDE * comptime!(shape.weight_stride() / 4)
        + lane / SIDE * comptime!(shape.share());
    let mut sum = Quad::new(0.0f32);
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        let rounded = Fours::cast_from(quads[i]);
        weights[to + i] = rounded;
        sum += Quad::cast_from(rounded);
    }
    sums[sixteen] += Vector::vector_sum(sum);
}

/// The rows of attended values by the factors of their units.
#[cube]
fn rescale(
    attended: &mut Sequence<Matrix<f32>>,
    scores: &mut [Quad],
    scores_at: usize,
    shrink: f32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let steps = comptime!(shape.steps());
    let columns = comptime!(shape.columns());
    let own = scores_at + own_scores(shape);
    #[unroll]
    for part in 0..comptime!(steps.div_ceil(columns)) {
        let count = comptime!(min(columns, steps - part * columns));
        sync_plane();
        #[unroll]
        for n in 0..count {
            let from = &attended[comptime!(sixteen * steps + part * columns + n)];
            store(from, scores, scores_at + comptime!(4 * n), shape);
        }
        sync_plane();
        #[unroll]
        for i in 0..comptime!(shape.share()) {
            let quad = scores[own + i];
            scores[own + i] = quad * Quad::new(shrink);
        }
        sync_plane();
        #[unroll]
        for n in 0..count {
            let at = scores_at + comptime!(4 * n);
            let end = scores.len();
            cmma::load_with_layout(
                &mut attended[comptime!(sixteen * steps + part * columns + n)],
                &scores[at..end],
                comptime!(shape.score_stride() as u32),
                MatrixLayout::RowMajor,
            );
        }
    }
}

/// 16 rows of attended values by the inverses of their sums.
#[cube]
fn write(
    out: &mut [Quad],
    attended: &Sequence<Matrix<f32>>,
    scores: &mut [Quad],
    scores_at: usize,
    inverse: f32,
    first_row: usize,
    tokens: u32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let steps = comptime!(shape.steps());
    let columns = comptime!(shape.columns());
    let quads = comptime!(2 * shape.eights());
    let shared_by = comptime!(shape.shared_by());
    let rows = tokens as usize * shared_by;
    #[unroll]
    for part in 0..comptime!(steps.div_ceil(columns)) {
        let count = comptime!(min(columns, steps - part * columns));
        sync_plane();
        #[unroll]
        for n in 0..count {
            let from = &attended[comptime!(sixteen * steps + part * columns + n)];
            store(from, scores, scores_at + comptime!(4 * n), shape);
        }
        sync_plane();
        #[unroll]
        for i in 0..comptime!(SIDE * 4 * count / shape.tile.plane_units) {
            let at = UNIT_POS_X as usize + comptime!(i * shape.tile.plane_units);
            let own = at / comptime!(4 * count);
            let quad = at % comptime!(4 * count);
            let inverse = plane_shuffle(inverse, own as u32);
            let row = first_row + first_of_plane(sixteen, shape) + own;
            let column = quad + comptime!(part * columns * 4);
            if row < rows && column < quads {
                let query = CUBE_POS_Z as usize * tokens as usize + row / shared_by;
                let head = CUBE_POS_Y as usize * shared_by + row % shared_by;
                let value = scores[scores_at + own * comptime!(shape.score_stride() / 4) + quad];
                out[(query * comptime!(shape.heads) + head) * quads + column] = value * Quad::new(inverse);
            }
        }
    }
}
