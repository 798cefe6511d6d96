//! A few vectors times a matrix whose rows are the outputs: the operation that a decode step spends
//! its time in.
//!
//! It is bound by reading the weights once. Rows of the weights are dealt to the threads in
//! contiguous pieces, and each row is read front to back with several accumulators, which is what
//! keeps several cache lines in flight per core.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Weights that a task reads at least (in elements): below this the hand-over between threads costs
/// more than the reading.
const MIN_TASK_ELEMENTS: usize = 64 * 1024;

/// `out[r, n] = Σ_k x[r, k] * weight[n, k]`.
///
/// `x` is \[rows, in\], `weight` \[out, in\], `out` \[rows, out\], row-major; `in_features` gives the
/// widths.
pub(super) fn matvec(x: &[f32], weight: &[f32], out: &mut [f32], in_features: usize) {
    if in_features == 0 || x.is_empty() {
        return;
    }
    let rows = x.len() / in_features;
    let out_features = weight.len() / in_features;
    let arch = Arch::new();
    if rows == 1 {
        let outputs_per_task = outputs_per_task(out_features, in_features);
        out.par_chunks_mut(outputs_per_task)
            .zip(weight.par_chunks(outputs_per_task * in_features))
            .for_each(|(out, weight)| arch.dispatch(RowDots { x, weight, out }));
        return;
    }
    // With several rows the output of one task is not contiguous; compute it transposed
    // ([out, rows]), where it is, and put it in place at the end: rows × out is small.
    let mut transposed = vec![0.0_f32; rows * out_features];
    let outputs_per_task = outputs_per_task(out_features, in_features);
    transposed
        .par_chunks_mut(outputs_per_task * rows)
        .zip(weight.par_chunks(outputs_per_task * in_features))
        .for_each(|(out, weight)| {
            for (out, weight) in out.chunks_mut(rows).zip(weight.chunks(in_features)) {
                // Here the rows of x play the part of the matrix: one row of weights stays in the
                // first-level cache while it meets all of them.
                arch.dispatch(RowDots { x: weight, weight: x, out });
            }
        });
    for (n, column) in transposed.chunks(rows).enumerate() {
        for (r, value) in column.iter().enumerate() {
            out[r * out_features + n] = *value;
        }
    }
}

/// How many outputs one task computes: two tasks a thread, so that a thread that was held up does not
/// hold up all, but none so small that handing it over dominates.
fn outputs_per_task(out_features: usize, in_features: usize) -> usize {
    let tasks = 2 * rayon::current_num_threads();
    out_features.div_ceil(tasks).max(MIN_TASK_ELEMENTS.div_ceil(in_features)).max(1)
}

/// The dot products of one vector with consecutive rows of a matrix.
struct RowDots<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for RowDots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (out, row) in self.out.iter_mut().zip(self.weight.chunks_exact(self.x.len())) {
            *out = dot(simd, self.x, row);
        }
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a_head, a_tail) = S::as_simd_f32s(a);
    let (b_head, b_tail) = S::as_simd_f32s(b);
    let zero = simd.splat_f32s(0.0);
    let mut sums = [zero; 4];
    let (a_blocks, a_rest) = a_head.as_chunks::<4>();
    let (b_blocks, b_rest) = b_head.as_chunks::<4>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..4 {
            sums[lane] = simd.mul_add_e_f32s(a[lane], b[lane], sums[lane]);
        }
    }
    for (a, b) in a_rest.iter().zip(b_rest) {
        sums[0] = simd.mul_add_e_f32s(*a, *b, sums[0]);
    }
    let pairs = simd.add_f32s(simd.add_f32s(sums[0], sums[1]), simd.add_f32s(sums[2], sums[3]));
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    simd.reduce_sum_f32s(pairs) + tail
}
