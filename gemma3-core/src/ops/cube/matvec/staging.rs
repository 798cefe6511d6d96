//! The input of a product, prepared by each cube for all of its rows, in shared memory.
//!
//! The inverse of the root mean square is a factor of the whole sum: kernels multiply their results by it, so
//! that the input needs no second pass, and the cube waits once.

use std::cmp::min;

use cubecl::prelude::*;

use super::product::Product;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::group_sum;

/// Stages the input as it is.
#[cube]
pub(crate) fn stage_plain(x: &[Quad], staged: &mut [Quad], #[comptime] product: Product) {
    let quads = comptime!(product.layout.cols / 4);
    let staged_quads = comptime!(product.items() * product.quads());
    #[unroll]
    for m in 0..product.batch {
        let mut at = UNIT_POS as usize;
        while at < staged_quads {
            let inside = at < quads;
            let x = x[min(at, comptime!(quads - 1)) + comptime!(m * quads)];
            put(staged, at, select(inside, x, Quad::new(0.0f32)), m, product);
            at += comptime!(product.tiling.groups.cube_units());
        }
    }
    sync_cube();
}

/// Stages `x * scale`. Afterwards `inverse[m]` is `1 / sqrt(mean(x_m^2) + eps)`.
#[cube]
pub(crate) fn stage_normed(
    x: &[Quad],
    scale: &[Quad],
    staged: &mut [Quad],
    inverse: &mut Array<f32>,
    eps: f32,
    #[comptime] product: Product,
) {
    let quads = comptime!(product.layout.cols / 4);
    let staged_quads = comptime!(product.items() * product.quads());
    #[unroll]
    for m in 0..product.batch {
        let mut squares = Quad::new(0.0f32);
        let mut at = UNIT_POS as usize;
        while at < staged_quads {
            let inside = at < quads;
            let clamped = min(at, comptime!(quads - 1));
            let x = select(inside, x[clamped + comptime!(m * quads)], Quad::new(0.0f32));
            squares = fma(x, x, squares);
            put(staged, at, x * scale[clamped], m, product);
            at += comptime!(product.tiling.groups.cube_units());
        }
        inverse[m] = Vector::vector_sum(squares);
    }
    invert(inverse, eps, product);
    sync_cube();
}

/// Adds a branch to the residual stream and stages the norm of the sum: with `h = x + rms_norm(branch) *
/// branch_scale`, stages `h * scale`. Afterwards `inverse[m]` is `1 / sqrt(mean(h_m^2) + eps)`. The first
/// cube writes `h` to `stream`, which must not be `x`: other cubes may still read that.
#[cube]
pub(crate) fn stage_residual(
    x: &[Quad],
    branch: &[Quad],
    branch_scale: &[Quad],
    scale: &[Quad],
    stream: &mut [Quad],
    staged: &mut [Quad],
    inverse: &mut Array<f32>,
    eps: f32,
    #[comptime] product: Product,
) {
    let quads = comptime!(product.layout.cols / 4);
    let staged_quads = comptime!(product.items() * product.quads());
    let units = comptime!(product.tiling.groups.cube_units());
    let mut branch_inverse = Array::<f32>::new(comptime!(product.batch));
    #[unroll]
    for m in 0..product.batch {
        let mut squares = Quad::new(0.0f32);
        let mut at = UNIT_POS as usize;
        while at < quads {
            let y = branch[at + comptime!(m * quads)];
            squares = fma(y, y, squares);
            at += units;
        }
        branch_inverse[m] = Vector::vector_sum(squares);
    }
    invert(&mut branch_inverse, eps, product);
    #[unroll]
    for m in 0..product.batch {
        let mut squares = Quad::new(0.0f32);
        let mut at = UNIT_POS as usize;
        while at < staged_quads {
            let inside = at < quads;
            let clamped = min(at, comptime!(quads - 1));
            let row_at = clamped + comptime!(m * quads);
            let normed = branch[row_at] * Quad::new(branch_inverse[m]);
            let h = fma(normed, branch_scale[clamped], x[row_at]);
            if inside && CUBE_POS == 0 {
                stream[row_at] = h;
            }
            let h = select(inside, h, Quad::new(0.0f32));
            squares = fma(h, h, squares);
            put(staged, at, h * scale[clamped], m, product);
            at += units;
        }
        inverse[m] = Vector::vector_sum(squares);
    }
    invert(inverse, eps, product);
    sync_cube();
}

/// Sums of squares of parts of rows -> `1 / sqrt(mean + eps)` of the rows.
#[cube]
fn invert(squares: &mut Array<f32>, eps: f32, #[comptime] product: Product) {
    group_sum(squares, comptime!(product.batch), comptime!(product.tiling.groups.cube()));
    #[unroll]
    for m in 0..product.batch {
        let mean = squares[m] * comptime!(1.0 / product.layout.cols as f32);
        squares[m] = f32::inverse_sqrt(mean + eps);
    }
}

/// Stores quad `at` of row `m`. Quads of the same place in successive items lie side by side, as units read
/// them.
#[cube]
fn put(staged: &mut [Quad], at: usize, value: Quad, #[comptime] m: usize, #[comptime] product: Product) {
    let quads = comptime!(product.quads());
    let items = comptime!(product.items());
    staged[(at % quads) * items + at / quads + comptime!(m * quads * items)] = value;
}
