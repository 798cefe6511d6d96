//! The fast kernels: weights are read once, whatever the number of input rows, in loads as wide and as many
//! at a time as the shape allows, and the first of them are under way while the input is prepared.

use std::cmp::min;

use cubecl::prelude::*;

use super::integers::Octet;
use super::product::{Product, accumulate, fetch};
use super::staging::{hold, hold_scale, stage_normed, stage_plain, stage_residual};
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{group_of_cube, group_sum, unit_of_group};

/// What becomes of the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    /// They are the outputs.
    Store,
    /// The matrix is a gate over an up projection; outputs are `gelu_tanh(gate) * up`.
    Gated,
}

impl Epilogue {
    /// Rows of the matrix that make an output.
    pub const fn rows_per_output(self) -> usize {
        match self {
            Self::Store => 1,
            Self::Gated => 2,
        }
    }
}

/// `x Wᵀ`.
#[cube(launch_unchecked)]
pub(crate) fn plain_input_kernel<N: Size>(
    x: &[Quad],
    quants: &[Vector<u32, N>],
    side: &[u32],
    out: &mut [f32],
    #[comptime] product: Product,
    #[comptime] epilogue: Epilogue,
) {
    let mut held = Array::<Quad>::new(comptime!(product.held_quads()));
    if comptime!(product.tiling.staged) {
        hold(x, &mut held, product);
    }
    let mut items = Array::<Vector<u32, N>>::new(comptime!(product.loads()));
    let mut sides = Array::<u32>::new(comptime!((product.loads() * product.side_words()).max(1)));
    let mut rows = Array::<u32>::new(comptime!(product.tiling.rows));
    select_rows(&mut rows, 0usize, product, epilogue);
    fetch::<N>(quants, side, &rows, 0usize, &mut items, &mut sides, product);
    let mut factors = Array::<f32>::new(comptime!(product.batch));
    let mut staged = Shared::<[Quad]>::new_slice(comptime!(product.staged_quads()));
    let mut octets = Shared::<[Octet]>::new_slice(comptime!(product.staged_octets()));
    let mut octet_scales = Shared::<[f32]>::new_slice(comptime!(product.staged_scales()));
    #[unroll]
    for m in 0..product.batch {
        factors[m] = 1.0f32;
    }
    if comptime!(product.tiling.staged) {
        stage_plain(x, &held, &mut staged, &mut octets, &mut octet_scales, product);
        multiply::<N>(
            &staged,
            &octets,
            &octet_scales,
            &factors,
            quants,
            side,
            out,
            &mut rows,
            &mut items,
            &mut sides,
            product,
            epilogue,
        );
    } else {
        multiply::<N>(
            x,
            &octets,
            &octet_scales,
            &factors,
            quants,
            side,
            out,
            &mut rows,
            &mut items,
            &mut sides,
            product,
            epilogue,
        );
    }
}

/// `rms_norm(x) Wᵀ`.
#[cube(launch_unchecked)]
pub(crate) fn normed_input_kernel<N: Size>(
    x: &[Quad],
    scale: &[Quad],
    quants: &[Vector<u32, N>],
    side: &[u32],
    out: &mut [f32],
    eps: f32,
    #[comptime] product: Product,
    #[comptime] epilogue: Epilogue,
) {
    let mut held_x = Array::<Quad>::new(comptime!(product.held_quads()));
    let mut held_scale = Array::<Quad>::new(comptime!(product.held_quads()));
    hold(x, &mut held_x, product);
    hold_scale(scale, &mut held_scale, product);
    let mut items = Array::<Vector<u32, N>>::new(comptime!(product.loads()));
    let mut sides = Array::<u32>::new(comptime!((product.loads() * product.side_words()).max(1)));
    let mut rows = Array::<u32>::new(comptime!(product.tiling.rows));
    select_rows(&mut rows, 0usize, product, epilogue);
    fetch::<N>(quants, side, &rows, 0usize, &mut items, &mut sides, product);
    let mut factors = Array::<f32>::new(comptime!(product.batch));
    let mut staged = Shared::<[Quad]>::new_slice(comptime!(product.staged_quads()));
    let mut octets = Shared::<[Octet]>::new_slice(comptime!(product.staged_octets()));
    let mut octet_scales = Shared::<[f32]>::new_slice(comptime!(product.staged_scales()));
    stage_normed(
        x,
        scale,
        &held_x,
        &held_scale,
        &mut staged,
        &mut octets,
        &mut octet_scales,
        &mut factors,
        eps,
        product,
    );
    multiply::<N>(
        &staged,
        &octets,
        &octet_scales,
        &factors,
        quants,
        side,
        out,
        &mut rows,
        &mut items,
        &mut sides,
        product,
        epilogue,
    );
}

/// `rms_norm(h) Wᵀ` with `h = x + rms_norm(branch)`, which is written to `stream`.
#[cube(launch_unchecked)]
pub(crate) fn residual_input_kernel<N: Size>(
    x: &[Quad],
    branch: &[Quad],
    branch_scale: &[Quad],
    scale: &[Quad],
    quants: &[Vector<u32, N>],
    side: &[u32],
    stream: &mut [Quad],
    out: &mut [f32],
    eps: f32,
    #[comptime] product: Product,
    #[comptime] epilogue: Epilogue,
) {
    let mut held_x = Array::<Quad>::new(comptime!(product.held_quads()));
    let mut held_branch = Array::<Quad>::new(comptime!(product.held_quads()));
    let mut held_branch_scale = Array::<Quad>::new(comptime!(product.held_quads()));
    let mut held_scale = Array::<Quad>::new(comptime!(product.held_quads()));
    hold(branch, &mut held_branch, product);
    hold(x, &mut held_x, product);
    hold_scale(branch_scale, &mut held_branch_scale, product);
    hold_scale(scale, &mut held_scale, product);
    let mut items = Array::<Vector<u32, N>>::new(comptime!(product.loads()));
    let mut sides = Array::<u32>::new(comptime!((product.loads() * product.side_words()).max(1)));
    let mut rows = Array::<u32>::new(comptime!(product.tiling.rows));
    select_rows(&mut rows, 0usize, product, epilogue);
    fetch::<N>(quants, side, &rows, 0usize, &mut items, &mut sides, product);
    let mut factors = Array::<f32>::new(comptime!(product.batch));
    let mut staged = Shared::<[Quad]>::new_slice(comptime!(product.staged_quads()));
    let mut octets = Shared::<[Octet]>::new_slice(comptime!(product.staged_octets()));
    let mut octet_scales = Shared::<[f32]>::new_slice(comptime!(product.staged_scales()));
    stage_residual(
        x,
        branch,
        branch_scale,
        scale,
        &held_x,
        &held_branch,
        &held_branch_scale,
        &held_scale,
        stream,
        &mut staged,
        &mut octets,
        &mut octet_scales,
        &mut factors,
        eps,
        product,
    );
    multiply::<N>(
        &staged,
        &octets,
        &octet_scales,
        &factors,
        quants,
        side,
        out,
        &mut rows,
        &mut items,
        &mut sides,
        product,
        epilogue,
    );
}

/// All passes of a group. The first turn of the first pass has been fetched.
#[cube]
fn multiply<N: Size>(
    input: &[Quad],
    octets: &[Octet],
    octet_scales: &[f32],
    factors: &Array<f32>,
    quants: &[Vector<u32, N>],
    side: &[u32],
    out: &mut [f32],
    rows: &mut Array<u32>,
    items: &mut Array<Vector<u32, N>>,
    sides: &mut Array<u32>,
    #[comptime] product: Product,
    #[comptime] epilogue: Epilogue,
) {
    let passes = comptime!(product.tiling.passes);
    let turns = comptime!(product.turns());
    let groups = comptime!(product.tiling.groups);
    for pass in 0..passes {
        let mut sums = Array::<Quad>::new(comptime!(product.results()));
        let mut results = Array::<f32>::new(comptime!(product.results()));
        #[unroll]
        for i in 0..product.results() {
            sums[i] = Quad::new(0.0f32);
            results[i] = 0.0f32;
        }
        if comptime!(turns == 1) {
            accumulate::<N>(
                input,
                octets,
                octet_scales,
                0usize,
                &*items,
                &*sides,
                &mut sums,
                &mut results,
                product,
            );
        } else {
            for turn in 0..turns {
                accumulate::<N>(
                    input,
                    octets,
                    octet_scales,
                    turn,
                    &*items,
                    &*sides,
                    &mut sums,
                    &mut results,
                    product,
                );
                if turn + 1 < turns {
                    fetch::<N>(quants, side, &*rows, turn + 1, items, sides, product);
                }
            }
        }
        if comptime!(passes > 1) {
            // Before the sums are made, so that memory isn't idle meanwhile.
            select_rows(rows, min(pass + 1, comptime!(passes - 1)), product, epilogue);
            fetch::<N>(quants, side, &*rows, 0usize, items, sides, product);
        }
        if comptime!(!product.narrow()) {
            #[unroll]
            for i in 0..product.results() {
                results[i] = Vector::vector_sum(sums[i]);
            }
        }
        group_sum(&mut results, comptime!(product.results()), groups);
        if unit_of_group(groups) == 0 {
            store(&results, factors, out, pass, product, epilogue);
        }
        if comptime!(passes > 1 && groups.plane_operations && groups.planes > 1) {
            sync_cube(); // The shared memory of these sums serves the next.
        }
    }
}

/// The first output of a group's pass.
#[cube]
fn first_output(pass: usize, #[comptime] product: Product, #[comptime] epilogue: Epilogue) -> usize {
    let tiling = comptime!(product.tiling);
    let group =
        CUBE_POS_X as usize * comptime!(tiling.groups.groups) + group_of_cube(comptime!(tiling.groups));
    (group * comptime!(tiling.passes) + pass) * comptime!(tiling.rows / epilogue.rows_per_output())
}

/// The rows of the matrix that a group works on: those of its outputs' gates, then those of their up
/// projections. Beyond the end it repeats the last row, and stores nothing.
#[cube]
fn select_rows(
    rows: &mut Array<u32>,
    pass: usize,
    #[comptime] product: Product,
    #[comptime] epilogue: Epilogue,
) {
    let outputs = comptime!(product.layout.rows / epilogue.rows_per_output());
    let outputs_at_once = comptime!(product.tiling.rows / epilogue.rows_per_output());
    let first = first_output(pass, product, epilogue);
    #[unroll]
    for r in 0..product.tiling.rows {
        let output = min(first + comptime!(r % outputs_at_once), comptime!(outputs - 1));
        rows[r] = (output + comptime!(r / outputs_at_once * outputs)) as u32;
    }
}

#[cube]
fn store(
    results: &Array<f32>,
    factors: &Array<f32>,
    out: &mut [f32],
    pass: usize,
    #[comptime] product: Product,
    #[comptime] epilogue: Epilogue,
) {
    let batch = comptime!(product.batch);
    let outputs = comptime!(product.layout.rows / epilogue.rows_per_output());
    let outputs_at_once = comptime!(product.tiling.rows / epilogue.rows_per_output());
    let first = first_output(pass, product, epilogue);
    #[unroll]
    for r in 0..outputs_at_once {
        let output = first + r;
        if output < outputs {
            #[unroll]
            for m in 0..batch {
                let value = results[comptime!(r * batch + m)] * factors[m];
                if comptime!(matches!(epilogue, Epilogue::Gated)) {
                    let up = results[comptime!((r + outputs_at_once) * batch + m)] * factors[m];
                    out[output + comptime!(m * outputs)] = gelu_tanh(value) * up;
                } else {
                    out[output + comptime!(m * outputs)] = value;
                }
            }
        }
    }
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, as `x / (1 + exp(-2u))`. The exponent is bounded, since
/// shading languages don't promise infinities.
#[cube]
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    let cubic = x * fma(0.044_715f32 * x, x, 1.0f32);
    let exponent = clamp(cubic * -1.595_769_2f32, -80.0f32, 80.0f32);
    x / (1.0f32 + f32::exp(exponent))
}
