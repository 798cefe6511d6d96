//! Attention of every position over all positions, a tile of queries at a time.
//!
//! A thread takes a tile of queries through all heads: scores of the tile, exponentials, their product
//! with the values, and only then the division by the sums. So a thread holds the scores of one tile and one
//! head, and writes rows that nobody else writes. What a row finds is the same in any tile, since products are
//! ([`super::product`]); so tiles may follow the number of threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::exp::exp;
use super::product::{Operand, product, row_major};

/// Queries of a tile. More reuse a packed tile of keys more often, fewer keep the scores in the cache.
const MAX_TILE: usize = 256;
/// Below this a tile no longer pays for packing the keys.
const MIN_TILE: usize = 32;

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) sequences: usize,
    pub(super) heads: usize,
    /// Positions of a sequence.
    pub(super) tokens: usize,
    /// heads * head_dim.
    pub(super) width: usize,
}

/// `out = softmax(scale * q kᵀ) v` for each sequence and head; all row-major \[sequences * tokens, width\].
pub(super) fn attention(q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], sizes: Sizes, scale: f32) {
    let Sizes { tokens, width, .. } = sizes;
    if tokens == 0 || width == 0 {
        return;
    }
    // Four tiles a thread, so that one that was held up does not hold up all.
    let tiles = 4 * rayon::current_num_threads();
    let tile = (sizes.sequences * tokens).div_ceil(tiles).clamp(MIN_TILE, MAX_TILE).min(tokens);
    let sequence = tokens * width;
    out.par_chunks_mut(sequence).enumerate().for_each(|(index, out)| {
        let range = index * sequence..(index + 1) * sequence;
        let (q, k, v) = (&q[range.clone()], &k[range.clone()], &v[range]);
        out.par_chunks_mut(tile * width).zip(q.par_chunks(tile * width)).for_each_init(
            || Scratch { scores: vec![0.0; tile * tokens], sums: vec![0.0; tile] },
            |scratch, (out, q)| attend(q, k, v, out, sizes, scale, scratch),
        );
    });
}

struct Scratch {
    /// \[tile, tokens\].
    scores: Vec<f32>,
    /// \[tile\].
    sums: Vec<f32>,
}

/// One tile of queries of one sequence, all heads.
fn attend(q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], sizes: Sizes, scale: f32, scratch: &mut Scratch) {
    let Sizes { heads, tokens, width, .. } = sizes;
    let head_dim = width / heads;
    let rows = q.len() / width;
    let arch = Arch::new();
    let scores = &mut scratch.scores[..rows * tokens];
    for head in 0..heads {
        let first = head * head_dim;
        let of_head =
            |rows| Operand { values: &[], rows, columns: head_dim, row_stride: width, column_stride: 1 };
        let queries = Operand { values: &q[first..], ..of_head(rows) };
        let keys = Operand { values: &k[first..], ..of_head(tokens) };
        let values = Operand { values: &v[first..], ..of_head(tokens) };
        let keys_transposed = Operand {
            rows: head_dim,
            columns: tokens,
            row_stride: keys.column_stride,
            column_stride: keys.row_stride,
            ..keys
        };
        product(scores, tokens, queries, keys_transposed, scale);
        for (row, sum) in scores.chunks_exact_mut(tokens).zip(&mut scratch.sums) {
            *sum = arch.dispatch(Exponentials { row });
        }
        let weights = row_major(scores, rows, tokens);
        product(&mut out[first..], width, weights, values, 1.0);
        for (row, sum) in out.chunks_exact_mut(width).zip(&scratch.sums) {
            for value in &mut row[first..first + head_dim] {
                *value /= sum;
            }
        }
    }
}

/// `row = exp(row - max)`; returns the sum.
struct Exponentials<'a> {
    row: &'a mut [f32],
}

impl WithSimd for Exponentials<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let max = {
            let (head, tail) = S::as_simd_f32s(self.row);
            let mut maxima = simd.splat_f32s(f32::NEG_INFINITY);
            for v in head {
                maxima = simd.max_f32s(maxima, *v);
            }
            tail.iter().copied().fold(simd.reduce_max_f32s(maxima), f32::max)
        };
        for value in self.row.iter_mut() {
            *value = exp(*value - max);
        }
        let (head, tail) = S::as_simd_f32s(self.row);
        let mut sums = simd.splat_f32s(0.0);
        for v in head {
            sums = simd.add_f32s(sums, *v);
        }
        simd.reduce_sum_f32s(sums) + tail.iter().sum::<f32>()
    }
}
