//! Attention of many queries on cooperative matrices: 16 x 16 x 16, halves multiplied, sums in f32, by a plane. What
//! Vulkan has of matrix hardware, and CUDA too.
//!
//! | module | what it knows |
//! |---|---|
//! | `tile` | how the work is divided, and what of it a device can do |
//! | `staging` | queries, keys and values on their way into shared memory |
//! | `softmax` | scores into weights |
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
//! Keys and values are the f16 of the cache, or of rows that have factors, powers of two: a block's keys and values are
//! brought to the largest factor of all. Queries of a prompt are rounded to f16: after their norm none exceeds
//! `sqrt(head_dim)` times the largest scale, far below f16's largest; one that does becomes infinite, and its row no
//! number, as they would in f32. A score differs from that of f32 queries by at most `2^-11 sum |q_i k_i|`. Weights
//! are rounded to f16 and summed up as they were rounded, so a result differs by at most `2^-10 sum weight |v|` for
//! them, as long as they are normal: those below `exp(-11)` of the reference are rounded to multiples of `2^-24`.

mod softmax;
mod staging;
mod tile;

use std::cmp::{max, min};

use cubecl::cmma::{self, Matrix, MatrixIdent, MatrixLayout};
use cubecl::prelude::*;
use half::f16;

use super::LOWEST;
use super::registers::Words;
use super::tensor::visible_range;
use crate::ops::cube::gemm::{RowFormat, loaded, quad_words};
use crate::ops::cube::packed::Quad;
use softmax::*;
use staging::*;
pub(in crate::ops::cube::attention) use tile::CooperativeShape;
pub use tile::CooperativeTile;
use tile::SIDE;

/// By how much a score may exceed its row's reference.
const MARGIN: f32 = 8.0;
/// The logarithm of a weight at the reference: weights far below it are normal halves for longer.
const LIFT: f32 = 2.0;
/// The bits of 1 in f16.
const ONE: u32 = 0x3c00;

/// Cube `[tile, kv_head]`: queries of f32 with the keys that `visible` says, \[tokens, 2\]. Shared memory is made of
/// vectors of `V` numbers.
#[cube(launch_unchecked)]
pub(super) fn visible_kernel<W: Numeric, V: Size, O: Size>(
    queries: &[Words],
    keys: &[Words],
    values: &[Words],
    visible: &[u32],
    out: &mut [Vector<u32, O>],
    tokens: u32,
    sequence: u32,
    #[comptime] shape: CooperativeShape,
) {
    let slots = comptime!(shape.attention.cache.slots as u32);
    let shared_by = comptime!(shape.shared_by());
    let rows = tokens as usize * shared_by;
    // The last tiles, which see most, begin first.
    let tiles = (rows + comptime!(shape.rows() - 1)) / comptime!(shape.rows());
    let first_row = (tiles - 1 - CUBE_POS_X as usize) * comptime!(shape.rows());
    let mut ranges = Array::<u32>::new(comptime!(2 * shape.tile.sixteens));
    let mut factors = Array::<f32>::new(shape.tile.sixteens);
    #[unroll]
    for m in 0..comptime!(shape.tile.sixteens) {
        let row = min(first_row + own_row(m, shape), rows - 1);
        let (first, end) = visible_range(visible, row / shared_by, slots);
        ranges[comptime!(2 * m)] = first;
        ranges[comptime!(2 * m + 1)] = end;
        factors[m] = 1.0f32;
    }
    // Neither end moves back from one query to the next.
    let (first, all_end) = visible_range(visible, first_row / shared_by, slots);
    let last_row = min(first_row + comptime!(shape.rows()), rows) - 1;
    let (all_first, end) = visible_range(visible, last_row / shared_by, slots);
    let end = min(end, first + slots);
    attend::<W, V, O>(
        queries,
        keys,
        values,
        out,
        &ranges,
        &factors,
        1.0f32,
        1.0f32,
        first,
        end,
        all_first,
        all_end,
        first_row,
        tokens,
        sequence as usize,
        shape,
    );
}

/// Cube `[tile, head, sequence]`: every query sees all keys; the queries are multiplied by `factor`, which is positive.
/// All are rows of f16 with their factors.
#[cube(launch_unchecked)]
pub(super) fn full_kernel<W: Numeric, V: Size, O: Size>(
    queries: &[Words],
    keys: &[Words],
    values: &[Words],
    out: &mut [Vector<u32, O>],
    tokens: u32,
    factor: f32,
    #[comptime] shape: CooperativeShape,
) {
    let end = comptime!(shape.attention.cache.slots as u32).runtime();
    let zero = 0u32.runtime();
    let rows = tokens as usize * comptime!(shape.shared_by());
    let first_row = CUBE_POS_X as usize * comptime!(shape.rows());
    let sequence = CUBE_POS_Z as usize;
    let (largest_key, largest_value) = largest_factors(keys, values, sequence, shape);
    let mut ranges = Array::<u32>::new(comptime!(2 * shape.tile.sixteens));
    let mut factors = Array::<f32>::new(shape.tile.sixteens);
    #[unroll]
    for m in 0..comptime!(shape.tile.sixteens) {
        ranges[comptime!(2 * m)] = zero;
        ranges[comptime!(2 * m + 1)] = end;
        let (token, _) = query_of(min(first_row + own_row(m, shape), rows - 1), tokens, shape);
        factors[m] = factor * largest_key * factor_of(queries, token, shape);
    }
    attend::<W, V, O>(
        queries,
        keys,
        values,
        out,
        &ranges,
        &factors,
        largest_key,
        largest_value,
        zero,
        end,
        zero,
        end,
        first_row,
        tokens,
        sequence,
        shape,
    );
}

/// The row of the cube's tile with which the plane's `sixteen`-th 16 begin.
#[cube]
fn first_of_plane(#[comptime] sixteen: usize, #[comptime] shape: CooperativeShape) -> usize {
    UNIT_POS_Y as usize * comptime!(SIDE * shape.tile.sixteens) + comptime!(SIDE * sixteen)
}

/// The row of them that the unit weights, with others.
#[cube]
fn own_row(#[comptime] sixteen: usize, #[comptime] shape: CooperativeShape) -> usize {
    first_of_plane(sixteen, shape) + UNIT_POS_X as usize % SIDE
}

/// `ranges` and `factors` are those of the unit's rows: what they see, and what their scores are multiplied with, given
/// that keys are brought to the factor `largest_key`, and values to `largest_value`.
#[cube]
fn attend<W: Numeric, V: Size, O: Size>(
    queries: &[Words],
    keys: &[Words],
    values: &[Words],
    out: &mut [Vector<u32, O>],
    ranges: &Array<u32>,
    factors: &Array<f32>,
    largest_key: f32,
    largest_value: f32,
    first: u32,
    end: u32,
    all_first: u32,
    all_end: u32,
    first_row: usize,
    tokens: u32,
    sequence: usize,
    #[comptime] shape: CooperativeShape,
) {
    let tile = comptime!(shape.tile);
    let cells = comptime!(tile.cells);
    let steps = comptime!(shape.steps());
    let columns = comptime!(shape.columns());
    let stride = comptime!(shape.stride());
    // Where values lie: after the keys, or in their place.
    let values_row = comptime!(shape.block_rows() - tile.keys);
    let plane = UNIT_POS_Y as usize;
    // Of powers of two, exact.
    let (key_inverse, value_inverse) = (1.0f32 / largest_key, 1.0f32 / largest_value);

    let mut memory = Shared::<[Vector<W, V>]>::new_aligned_slice(
        comptime!(shape.memory_rows() * cells.of(stride)),
        32usize,
    );
    let mut scores = Shared::<[Quad]>::new_aligned_slice(
        comptime!(tile.planes * SIDE * shape.score_stride() / 4),
        32usize,
    );
    let mut weights = Shared::<[Vector<W, V>]>::new_aligned_slice(
        comptime!(tile.planes * SIDE * cells.of(shape.weight_stride())),
        32usize,
    );
    let scores_at = plane * comptime!(SIDE * shape.score_stride() / 4);
    let weights_at = plane * comptime!(SIDE * cells.of(shape.weight_stride()));

    fill_up::<W, V>(&mut memory, 0u32, comptime!(shape.memory_rows()), shape);
    let mut held = Sequence::<Matrix<f16>>::new();
    #[unroll]
    for m in 0..comptime!(tile.sixteens) {
        stage_queries::<W, V>(queries, &mut memory, first_row, tokens, m, shape);
        if comptime!(tile.holds) {
            sync_cube();
            #[unroll]
            for k in 0..steps {
                held.push(load_rows::<W, V>(&memory, plane * SIDE, k, shape));
            }
            sync_cube();
        }
    }
    // Values are filled up with a one, whose column sums their weights up. Keys may be too, since queries are not.
    fill_up::<W, V>(&mut memory, comptime!(ONE), comptime!(shape.block_rows()), shape);

    let mut attended = Sequence::<Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.sixteens * steps) {
        attended.push(zeros());
    }
    let mut references = Array::<f32>::new(tile.sixteens);
    let mut sums = Array::<f32>::new(tile.sixteens);
    #[unroll]
    for m in 0..comptime!(tile.sixteens) {
        references[m] = LOWEST;
        sums[m] = 0.0f32;
    }

    let mut fetched = Fetched::new(shape);
    let mut fetched_values = Fetched::new(shape);
    let mut start = first;
    if comptime!(tile.ahead) {
        fetch(keys, sequence, start, end, &mut fetched, shape);
    }
    if comptime!(tile.together) {
        fetch(values, sequence, start, end, &mut fetched_values, shape);
    }
    while start < end {
        if comptime!(!tile.ahead) {
            fetch(keys, sequence, start, end, &mut fetched, shape);
        }
        // Nobody reads keys any more: all have come by the barrier before the last values, or the one after them.
        place::<W, V>(&fetched, &mut memory, 0usize, start, end, key_inverse, shape);
        if comptime!(tile.together) {
            place::<W, V>(&fetched_values, &mut memory, values_row, start, end, value_inverse, shape);
            let next = start + comptime!(tile.keys as u32);
            fetch(keys, sequence, next, end, &mut fetched, shape);
            fetch(values, sequence, next, end, &mut fetched_values, shape);
        } else if comptime!(tile.ahead) {
            fetch(values, sequence, start, end, &mut fetched, shape);
        }
        sync_cube();
        let mut products = Sequence::<Matrix<f32>>::new();
        #[unroll]
        for _ in 0..comptime!(tile.sixteens * columns) {
            products.push(zeros());
        }
        #[unroll]
        for k in 0..steps {
            let mut rows = Sequence::<Matrix<f16>>::new();
            if comptime!(!tile.holds) {
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let row = first_of_plane(m, shape) + comptime!(shape.block_rows());
                    rows.push(load_rows::<W, V>(&memory, row, k, shape));
                }
            }
            #[unroll]
            for n in 0..columns {
                let at = comptime!(cells.of(SIDE * n * stride + SIDE * k)).runtime();
                let (ident, layout) = comptime!((MatrixIdent::B, MatrixLayout::ColMajor));
                let key = loaded::<W, V>(&memory, at, ident, layout, comptime!(cells.stride(stride)));
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let product = products.index(comptime!(m * columns + n));
                    if comptime!(tile.holds) {
                        cmma::execute(held.index(comptime!(m * steps + k)), &key, product, product);
                    } else {
                        cmma::execute(rows.index(m), &key, product, product);
                    }
                }
            }
        }
        if comptime!(!tile.apart) {
            sync_cube();
        }
        if comptime!(!tile.ahead) {
            fetch(values, sequence, start, end, &mut fetched, shape);
        }
        if comptime!(!tile.together) {
            // Nobody reads values any more: all have come by the barrier after them.
            place::<W, V>(&fetched, &mut memory, values_row, start, end, value_inverse, shape);
        }
        if comptime!(tile.ahead && !tile.together) {
            fetch(keys, sequence, start + comptime!(tile.keys as u32), end, &mut fetched, shape);
        }

        let masked = start < all_first || start + comptime!(tile.keys as u32) > all_end;
        let mut shares = Sequence::<Matrix<f16>>::new();
        #[unroll]
        for m in 0..comptime!(tile.sixteens) {
            #[unroll]
            for n in 0..columns {
                let product = products.index(comptime!(m * columns + n));
                store(product, &mut scores, scores_at + comptime!(4 * n), shape);
            }
            sync_plane();
            let mut quads = Array::<Quad>::new(comptime!(shape.share()));
            read_scores(&scores, scores_at, &mut quads, shape);
            let (sees, sees_end) = (ranges[comptime!(2 * m)], ranges[comptime!(2 * m + 1)]);
            if masked {
                hide(&mut quads, sees, sees_end, start, LOWEST, shape);
            }
            let shrink = soften(&mut quads, &mut references, &mut sums, factors[m], m, shape);
            if masked {
                // However small the factor is.
                hide(&mut quads, sees, sees_end, start, 0.0f32, shape);
            }
            write_weights::<W, V>(&quads, &mut weights, weights_at, &mut sums, m, shape);
            if plane_any(shrink < 1.0f32) {
                rescale(&mut attended, &mut scores, scores_at, shrink, m, shape);
            }
            sync_plane();
            #[unroll]
            for n in 0..columns {
                let at = weights_at + comptime!(cells.of(SIDE * n));
                let (ident, layout) = comptime!((MatrixIdent::A, MatrixLayout::RowMajor));
                let stride = comptime!(cells.stride(shape.weight_stride()));
                shares.push(loaded::<W, V>(&weights, at, ident, layout, stride));
            }
        }
        if comptime!(!tile.together) {
            sync_cube();
        }

        #[unroll]
        for n in 0..columns {
            #[unroll]
            for d in 0..steps {
                let at = comptime!(cells.of((values_row + SIDE * n) * stride + SIDE * d)).runtime();
                let (ident, layout) = comptime!((MatrixIdent::B, MatrixLayout::RowMajor));
                let value = loaded::<W, V>(&memory, at, ident, layout, comptime!(cells.stride(stride)));
                #[unroll]
                for m in 0..comptime!(tile.sixteens) {
                    let sum = attended.index(comptime!(m * steps + d));
                    cmma::execute(shares.index(comptime!(m * columns + n)), &value, sum, sum);
                }
            }
        }
        if comptime!(!tile.apart || tile.together) {
            sync_cube();
        }
        start += comptime!(tile.keys as u32);
    }

    #[unroll]
    for m in 0..comptime!(tile.sixteens) {
        // Where nothing is visible, zeros; otherwise what the sum gives, be it a number or not.
        let sees = max(ranges[comptime!(2 * m)], first) < min(ranges[comptime!(2 * m + 1)], end);
        let sum = sum_of_row(sums[m], &attended, &mut scores, scores_at, m, shape);
        let inverse = select(sees, 1.0f32 / sum, 0.0f32);
        write::<O>(
            out,
            &attended,
            &mut scores,
            scores_at,
            inverse,
            largest_value,
            first_row,
            tokens,
            m,
            shape,
        );
    }
}

/// An accumulator.
#[cube]
fn zeros() -> Matrix<f32> {
    let ident = MatrixIdent::Accumulator;
    Matrix::<f32>::from_value(ident, SIDE, SIDE, SIDE, MatrixLayout::Undefined, 0.0f32)
}

/// The `k`-th 16 numbers of 16 rows.
#[cube]
fn load_rows<W: Numeric, V: Size>(
    memory: &[Vector<W, V>],
    row: usize,
    #[comptime] k: usize,
    #[comptime] shape: CooperativeShape,
) -> Matrix<f16> {
    let cells = comptime!(shape.tile.cells);
    let at = row * comptime!(cells.of(shape.stride())) + comptime!(cells.of(SIDE * k));
    let stride = comptime!(cells.stride(shape.stride()));
    loaded::<W, V>(memory, at, MatrixIdent::A, MatrixLayout::RowMajor, stride)
}

/// 16 rows of attended values by the inverses of their sums; `factor` is that of the values.
#[cube]
fn write<O: Size>(
    out: &mut [Vector<u32, O>],
    attended: &Sequence<Matrix<f32>>,
    scores: &mut [Quad],
    scores_at: usize,
    inverse: f32,
    factor: f32,
    first_row: usize,
    tokens: u32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let steps = comptime!(shape.steps());
    let columns = comptime!(shape.columns());
    let quads = comptime!(2 * shape.eights());
    let row_elements = comptime!(shape.out.row_elements(shape.width()));
    let rows = tokens as usize * comptime!(shape.shared_by());
    let inverse = if comptime!(matches!(shape.out, RowFormat::F16)) { inverse } else { inverse * factor };
    #[unroll]
    for part in 0..comptime!(steps.div_ceil(columns)) {
        let count = comptime!(min(columns, steps - part * columns));
        sync_plane();
        #[unroll]
        for n in 0..count {
            let from = attended.index(comptime!(sixteen * steps + part * columns + n));
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
                let (token, head) = query_of(row, tokens, shape);
                let value = scores[scores_at + own * comptime!(shape.score_stride() / 4) + quad];
                let to = token * row_elements + head * quads + column;
                out[to] = quad_words::<O>(value * Quad::new(inverse), comptime!(shape.out));
                if comptime!(matches!(shape.out, RowFormat::F16)) {
                    // After the row's last head.
                    if head == comptime!(shape.attention.heads - 1) && column == comptime!(quads - 1) {
                        out[to + 1] = Vector::<u32, O>::new(u32::reinterpret(factor));
                    }
                }
            }
        }
    }
}
