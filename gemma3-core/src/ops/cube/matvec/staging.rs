//! The input of a product, prepared by each cube for all of its rows, in shared memory.
//!
//! The inverse of the root mean square is a factor of the whole sum: kernels multiply their results by it, so
//! that the input needs no pass of its own for it. Where a unit's share is small it is read once, before the
//! weights, and kept in registers.

use std::cmp::min;

use cubecl::prelude::*;

use super::integers::{Octet, put_octet};
use super::product::Product;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::group_sum;

/// Reads the unit's share of all rows into `held`, if units keep it. Nothing here waits.
#[cube]
pub(crate) fn hold(x: &[Quad], held: &mut Array<Quad>, #[comptime] product: Product) {
    if comptime!(product.held()) {
        let share = comptime!(product.chunk_share() * product.chunk_quads());
        #[unroll]
        for m in 0..product.batch {
            #[unroll]
            for i in 0..share {
                held[comptime!(m * share + i)] =
                    x[quad_place(i, product) + comptime!(m * product.layout.cols / 4)];
            }
        }
    }
}

/// Reads the unit's share of a scale that all rows have in common, as [`hold`].
#[cube]
pub(crate) fn hold_scale(scale: &[Quad], held: &mut Array<Quad>, #[comptime] product: Product) {
    if comptime!(product.held()) {
        #[unroll]
        for i in 0..comptime!(product.chunk_share() * product.chunk_quads()) {
            held[i] = scale[quad_place(i, product)];
        }
    }
}

/// Where quad `i` of the unit's share lies in a row; beyond the end it is the last.
#[cube]
fn quad_place(#[comptime] i: usize, #[comptime] product: Product) -> usize {
    let width = comptime!(product.chunk_quads());
    let chunk = UNIT_POS as usize + comptime!(i / width * product.tiling.groups.cube_units());
    min(chunk * width + comptime!(i % width), comptime!(product.layout.cols / 4 - 1))
}

/// Whether that quad is one of the row's.
#[cube]
fn is_inside(#[comptime] i: usize, #[comptime] product: Product) -> bool {
    let width = comptime!(product.chunk_quads());
    let chunk = UNIT_POS as usize + comptime!(i / width * product.tiling.groups.cube_units());
    chunk * width + comptime!(i % width) < comptime!(product.layout.cols / 4)
}

/// Quad `i` of the unit's share of row `m`.
#[cube]
fn share_quad(
    x: &[Quad],
    held: &Array<Quad>,
    #[comptime] i: usize,
    #[comptime] m: usize,
    #[comptime] product: Product,
) -> Quad {
    if comptime!(product.held()) {
        held[comptime!(m * product.chunk_share() * product.chunk_quads() + i)]
    } else {
        x[quad_place(i, product) + comptime!(m * product.layout.cols / 4)]
    }
}

/// Stages the input as it is.
#[cube]
pub(crate) fn stage_plain(
    x: &[Quad],
    held: &Array<Quad>,
    staged: &mut [Quad],
    octets: &mut [Octet],
    octet_scales: &mut [f32],
    #[comptime] product: Product,
) {
    let width = comptime!(product.chunk_quads());
    #[unroll]
    for m in 0..product.batch {
        #[unroll]
        for i in 0..product.chunk_share() {
            let mut values = Array::<Quad>::new(width);
            #[unroll]
            for j in 0..width {
                let i = comptime!(i * width + j);
                let value = share_quad(x, held, i, m, product);
                values[j] = select(is_inside(i, product), value, Quad::new(0.0f32));
            }
            put(&values, i, staged, octets, octet_scales, m, product);
        }
    }
    sync_cube();
}

/// Stages `x * scale`. Afterwards `inverse[m]` is `1 / sqrt(mean(x_m^2) + eps)`.
#[cube]
pub(crate) fn stage_normed(
    x: &[Quad],
    scale: &[Quad],
    held_x: &Array<Quad>,
    held_scale: &Array<Quad>,
    staged: &mut [Quad],
    octets: &mut [Octet],
    octet_scales: &mut [f32],
    inverse: &mut Array<f32>,
    eps: f32,
    #[comptime] product: Product,
) {
    let width = comptime!(product.chunk_quads());
    #[unroll]
    for m in 0..product.batch {
        let mut squares = Quad::new(0.0f32);
        #[unroll]
        for i in 0..product.chunk_share() {
            let mut values = Array::<Quad>::new(width);
            #[unroll]
            for j in 0..width {
                let i = comptime!(i * width + j);
                let x = share_quad(x, held_x, i, m, product);
                let x = select(is_inside(i, product), x, Quad::new(0.0f32));
                squares = fma(x, x, squares);
                values[j] = x * share_quad(scale, held_scale, i, 0usize, product);
            }
            put(&values, i, staged, octets, octet_scales, m, product);
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
    held_x: &Array<Quad>,
    held_branch: &Array<Quad>,
    held_branch_scale: &Array<Quad>,
    held_scale: &Array<Quad>,
    stream: &mut [Quad],
    staged: &mut [Quad],
    octets: &mut [Octet],
    octet_scales: &mut [f32],
    inverse: &mut Array<f32>,
    eps: f32,
    #[comptime] product: Product,
) {
    let width = comptime!(product.chunk_quads());
    let mut branch_inverse = Array::<f32>::new(comptime!(product.batch));
    #[unroll]
    for m in 0..product.batch {
        let mut squares = Quad::new(0.0f32);
        #[unroll]
        for i in 0..comptime!(product.chunk_share() * width) {
            let y = share_quad(branch, held_branch, i, m, product);
            let y = select(is_inside(i, product), y, Quad::new(0.0f32));
            squares = fma(y, y, squares);
        }
        branch_inverse[m] = Vector::vector_sum(squares);
    }
    invert(&mut branch_inverse, eps, product);
    #[unroll]
    for m in 0..product.batch {
        let mut squares = Quad::new(0.0f32);
        #[unroll]
        for i in 0..product.chunk_share() {
            let mut values = Array::<Quad>::new(width);
            #[unroll]
            for j in 0..width {
                let i = comptime!(i * width + j);
                let inside = is_inside(i, product);
                let normed = share_quad(branch, held_branch, i, m, product) * Quad::new(branch_inverse[m]);
                let factor = share_quad(branch_scale, held_branch_scale, i, 0usize, product);
                let h = fma(normed, factor, share_quad(x, held_x, i, m, product));
                if inside && CUBE_POS == 0 {
                    stream[quad_place(i, product) + comptime!(m * product.layout.cols / 4)] = h;
                }
                let h = select(inside, h, Quad::new(0.0f32));
                squares = fma(h, h, squares);
                values[j] = h * share_quad(scale, held_scale, i, 0usize, product);
            }
            put(&values, i, staged, octets, octet_scales, m, product);
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

/// Stores chunk `i` of the unit's share of row `m`. Quads of the same place in successive items lie side by
/// side, as units read them.
#[cube]
fn put(
    values: &Array<Quad>,
    #[comptime] i: usize,
    staged: &mut [Quad],
    octets: &mut [Octet],
    octet_scales: &mut [f32],
    #[comptime] m: usize,
    #[comptime] product: Product,
) {
    let chunk = UNIT_POS as usize + comptime!(i * product.tiling.groups.cube_units());
    if comptime!(product.integers()) {
        put_octet(values, chunk, octets, octet_scales, m, product);
    } else if chunk < comptime!(product.chunks()) {
        let quads = comptime!(product.quads());
        let items = comptime!(product.items());
        staged[(chunk % quads) * items + chunk / quads + comptime!(m * quads * items)] = values[0usize];
    }
}
