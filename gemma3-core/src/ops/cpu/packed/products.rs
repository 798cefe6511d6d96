//! Products on the current thread pool: which rows of which weights a thread takes.
//!
//! Everything here is one parallel region, whatever the number of matrices: handing work to threads and waiting
//! for them costs microseconds, as much as a small matrix.

use rayon::prelude::*;

use super::activations::Activations;
use super::many_rows::OUTPUTS;
use super::matrix::{Multiply, PackedMatrix};
use super::strips::Strip;
use super::tiles::FEW_ROWS;
use crate::ops::cpu::gelu_mul;

/// Products that a task computes at least: below this, handing it to another thread costs more.
const MIN_TASK_PRODUCTS: usize = 32 * 1024;
/// Tasks for every thread, so that one that was held up doesn't hold up all.
const TASKS_PER_THREAD: usize = 16;

/// Outputs that are gated at once in a prompt: their products stay in the second-level cache.
const GATED_OUTPUTS: usize = 2 * OUTPUTS;

/// Consecutive rows of weights, and their outputs.
struct Task<'a> {
    multiply: Multiply,
    weights: &'a [u8],
    strip: Strip<'a>,
}

/// `out[r, n] = Σ_k x[r, k] W[n, k]` for each of the matrices with its `out` \[rows, out_features\], row-major.
///
/// # Panics
///
/// When the widths differ, or an `out` isn't \[rows, out_features\]: a mistake of the caller, not of its input.
pub fn multiply_each<'a>(
    x: &Activations<'_>,
    products: impl IntoIterator<Item = (&'a PackedMatrix, &'a mut [f32])>,
) {
    let products: Vec<_> = products.into_iter().collect();
    let outputs = products.iter().map(|(matrix, _)| matrix.out_features()).sum();
    let outputs_per_task = outputs_per_task(x, outputs);
    let mut tasks = Vec::new();
    for (matrix, out) in products {
        let width = matrix.out_features();
        assert_eq!(Some(out.len()), x.rows.checked_mul(width), "out is not [rows, out_features]");
        if out.is_empty() || x.in_features == 0 {
            out.fill(0.0);
            continue;
        }
        let multiply = matrix.kernel(x);
        let pieces = matrix.pieces(outputs_per_task);
        let strips = Strip::divide(out, width, outputs_per_task);
        tasks.extend(pieces.zip(strips).map(|(weights, strip)| Task { multiply, weights, strip }));
    }
    for_each(tasks, |Task { multiply, weights, strip }| multiply(x, weights, strip));
}

/// `out = gelu_tanh(x gateᵀ) * (x upᵀ)`, \[rows, out_features\], row-major. A thread has the products of a few
/// outputs at a time.
///
/// # Panics
///
/// When the matrices differ in shape, or the slices don't fit them: a mistake of the caller, not of its input.
pub fn multiply_gated(x: &Activations<'_>, gate: &PackedMatrix, up: &PackedMatrix, out: &mut [f32]) {
    let width = gate.out_features();
    assert_eq!(width, up.out_features(), "rows of the gate and of what it gates");
    assert_eq!(Some(out.len()), x.rows.checked_mul(width), "out is not [rows, out_features]");
    if out.is_empty() || x.in_features == 0 {
        out.fill(0.0); // gelu(0) * 0
        return;
    }
    let most = if x.rows <= FEW_ROWS { usize::MAX } else { GATED_OUTPUTS };
    let outputs_per_task = outputs_per_task(x, 2 * width).min(most);
    let multiply = (gate.kernel(x), up.kernel(x));
    let pieces = gate.pieces(outputs_per_task).zip(up.pieces(outputs_per_task));
    let tasks: Vec<_> = pieces.zip(Strip::divide(out, width, outputs_per_task)).collect();
    for_each(tasks, |((gate, up), mut strip)| {
        let columns = strip.columns();
        let mut products = vec![0.0; 2 * x.rows * columns];
        let (gates, ups) = products.split_at_mut(x.rows * columns);
        for (multiply, weights, out) in [(multiply.0, gate, &mut *gates), (multiply.1, up, &mut *ups)] {
            for strip in Strip::divide(out, columns, columns) {
                multiply(x, weights, strip);
            }
        }
        for (row, (gates, ups)) in gates.chunks_exact(columns).zip(ups.chunks_exact(columns)).enumerate() {
            gelu_mul::gelu_mul(gates, ups, strip.row(row));
        }
    });
}

/// Whole panels, so many that there are enough tasks for all threads and none is too small.
fn outputs_per_task(x: &Activations<'_>, outputs: usize) -> usize {
    let products = outputs.saturating_mul(x.in_features).saturating_mul(x.rows);
    let most = TASKS_PER_THREAD * rayon::current_num_threads();
    let tasks = (products / MIN_TASK_PRODUCTS).clamp(1, most);
    outputs.div_ceil(tasks).next_multiple_of(OUTPUTS)
}

fn for_each<T: Send>(mut tasks: Vec<T>, run: impl Fn(T) + Send + Sync) {
    if tasks.len() == 1 {
        tasks.drain(..).for_each(run);
    } else {
        tasks.into_par_iter().with_max_len(1).for_each(run);
    }
}
