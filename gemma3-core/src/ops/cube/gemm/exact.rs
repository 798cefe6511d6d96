//! The exact kernel, for every device: tiles of f32 in shared memory, products in f32. The other kernels are
//! checked against it.
//!
//! Weights are decoded once for each tile of 64 rows of input. Units lie in a square of 16 by 16, and each
//! makes every sixteenth output of the tile in both directions.

use std::cmp::min;

use cubecl::prelude::*;

use super::epilogue::{Finish, finished};
use super::staging::weights_of;
use crate::ops::cube::matvec::gelu_tanh;
use crate::ops::cube::packed::{Layout, Quad, fetch_side, side_words_of_item};

/// Units along each side of a cube's square.
pub(super) const SIDE: usize = 16;
/// Quads of a tile's row.
const QUADS: usize = 8;

/// A product, as a constant of its kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ExactJob {
    /// The matrix.
    pub layout: Layout,
    /// Rows of the input that a unit works on; a cube on sixteen times as many.
    pub unit_m: usize,
    /// Rows of the matrix that a unit works on.
    pub unit_n: usize,
    /// Whether the matrix is a gate over an up projection.
    pub gated: bool,
    /// What is done to the sums before they are stored.
    pub finish: Finish,
}

impl ExactJob {
    /// Outputs of a row.
    pub const fn outputs(&self) -> usize {
        if self.gated { self.layout.rows / 2 } else { self.layout.rows }
    }

    /// Outputs of a row that a cube makes.
    pub const fn cube_outputs(&self) -> usize {
        if self.gated { SIDE * self.unit_n / 2 } else { SIDE * self.unit_n }
    }
}

/// `out[m, n] = sum_k x[m, k] W[n, k]`: cube `[i, j]` makes tile `[i, j]`.
#[cube(launch_unchecked)]
pub(super) fn exact_kernel(
    x: &[Quad],
    quants: &[Vector<u32, Const<4>>],
    side: &[u32],
    bias: &[f32],
    added: &[f32],
    out: &mut [f32],
    rows: u32,
    added_rows: u32,
    #[comptime] job: ExactJob,
) {
    let unit_m = comptime!(job.unit_m);
    let unit_n = comptime!(job.unit_n);
    let mut input = Shared::<[Quad]>::new_slice(comptime!(SIDE * unit_m * QUADS));
    let mut weights = Shared::<[Quad]>::new_slice(comptime!(SIDE * unit_n * QUADS));
    let mut sums = Array::<Quad>::new(comptime!(unit_m * unit_n));
    #[unroll]
    for i in 0..unit_m * unit_n {
        sums[i] = Quad::new(0.0f32);
    }
    let column = UNIT_POS as usize % SIDE;
    let row = UNIT_POS as usize / SIDE;
    let swizzle = comptime!(QUADS - 1);
    for depth in 0..comptime!(job.layout.cols.div_ceil(4 * QUADS)) {
        stage_input(x, &mut input, depth, rows, job);
        stage_weights(quants, side, &mut weights, depth, job);
        sync_cube();
        #[unroll]
        for q in 0..QUADS {
            let mut w = Array::<Quad>::new(unit_n);
            #[unroll]
            for j in 0..unit_n {
                w[j] = weights[(column + comptime!(j * SIDE)) * QUADS + (q ^ (column & swizzle))];
            }
            #[unroll]
            for i in 0..unit_m {
                let x = input[(row + comptime!(i * SIDE)) * QUADS + (q ^ (row & swizzle))];
                #[unroll]
                for j in 0..unit_n {
                    let at = comptime!(i * unit_n + j);
                    sums[at] = fma(x, w[j], sums[at]);
                }
            }
        }
        sync_cube();
    }
    let made = comptime!(if job.gated { unit_n / 2 } else { unit_n });
    let first_row = CUBE_POS_X as usize * comptime!(SIDE * unit_m) + row;
    let first_column = CUBE_POS_Y as usize * comptime!(job.cube_outputs()) + column;
    #[unroll]
    for i in 0..unit_m {
        let row = first_row + comptime!(i * SIDE);
        if row < rows as usize {
            #[unroll]
            for j in 0..made {
                let output = first_column + comptime!(j * SIDE);
                if output < job.outputs() {
                    let mut value = Vector::vector_sum(sums[comptime!(i * unit_n + j)]);
                    if comptime!(job.gated) {
                        let up = Vector::vector_sum(sums[comptime!(i * unit_n + j + made)]);
                        value = gelu_tanh(value) * up;
                    }
                    let outputs = comptime!(job.outputs());
                    let (m, n) = (row as u32, output as u32);
                    value = finished(value, m, n, bias, added, added_rows, outputs, comptime!(job.finish));
                    out[row * outputs + output] = value;
                }
            }
        }
    }
}

/// Quads of the input, zeros beyond the end of a row. Rows beyond the last repeat it.
#[cube]
fn stage_input(x: &[Quad], to: &mut [Quad], depth: usize, rows: u32, #[comptime] job: ExactJob) {
    let quads = comptime!(job.layout.cols / 4);
    let q = UNIT_POS as usize % QUADS;
    let at = depth * QUADS + q;
    let mut row = UNIT_POS as usize / QUADS;
    while row < comptime!(SIDE * job.unit_m) {
        let source = min(CUBE_POS_X as usize * comptime!(SIDE * job.unit_m) + row, rows as usize - 1);
        let value = x[source * quads + min(at, comptime!(quads - 1))];
        to[row * QUADS + (q ^ (row & comptime!(QUADS - 1)))] = select(at < quads, value, Quad::new(0.0f32));
        row += comptime!(SIDE * SIDE / QUADS);
    }
}

/// Weights as f32, zeros beyond the end of a row.
#[cube]
fn stage_weights(
    quants: &[Vector<u32, Const<4>>],
    side: &[u32],
    to: &mut [Quad],
    depth: usize,
    #[comptime] job: ExactJob,
) {
    let layout = comptime!(job.layout);
    let items = comptime!(layout.row_words() / 4);
    let quads = comptime!(layout.weights_per_word());
    // Items of 16 bytes in a row of the tile.
    let each = comptime!(QUADS / quads);
    let mut sides = Array::<u32>::new(comptime!(side_words_of_item(&layout, 4).max(1)));
    let mut at = UNIT_POS as usize;
    while at < comptime!(SIDE * job.unit_n * each) {
        let row = at / each;
        let item = depth * each + at % each;
        let inside = item < items;
        let item = min(item, comptime!(items - 1));
        let source = matrix_row(row, job);
        let words = quants[source * items + item];
        fetch_side::<Const<4>>(side, source, item, &mut sides, 0usize, layout);
        #[unroll]
        for q in 0..quads {
            let w = weights_of::<Const<4>>(words, &sides, item, q, 0usize, layout, false);
            let place = at % each * quads + q;
            to[row * QUADS + (place ^ (row & comptime!(QUADS - 1)))] = select(inside, w, Quad::new(0.0f32));
        }
        at += comptime!(SIDE * SIDE);
    }
}

/// The row of the matrix behind a row of the cube's tile: gates come before the up projections of the same
/// outputs. Beyond the end it is the last.
#[cube]
fn matrix_row(row: usize, #[comptime] job: ExactJob) -> usize {
    let outputs = comptime!(job.outputs());
    let each = comptime!(job.cube_outputs());
    let output = min(CUBE_POS_Y as usize * each + row % each, comptime!(outputs - 1));
    output + row / each * outputs
}
