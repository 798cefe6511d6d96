//! The kernel for cooperative matrices: f16 tiles in shared memory, one or two stages of them, f32 sums in registers
//! that only the device knows.
//!
//! The next tile, or some of the next, is fetched into registers, packed as it lies in memory, while one is multiplied, and
//! written to shared memory as f16 afterwards. All planes of a cube take the same steps, since a matrix is the affair of a whole plane.
//!
//! | module | what it knows |
//! |---|---|
//! | `cells` | what shared memory is made of |
//! | `staging` | tiles on their way into shared memory |
//! | `ahead` | several of them on their way at once |
//! | `bounce` | sums on their way out of a plane's matrices |

mod ahead;
mod bounce;
mod cells;
mod staging;

pub(in crate::ops::cube) use cells::{Cells, cell_of};

use std::cmp::min;

use cubecl::cmma;
use cubecl::prelude::*;
use half::f16;

use super::epilogue::Job;
use super::ptx::Chunk;
use super::tile::SIDE;
use ahead::multiply_ahead;
use bounce::{FloatPair, store_sums};
use staging::*;

/// `out[m, n] = sum_k x[m, k] W[n, k]`: cube `[i, j, s]` makes tile `[i, j]` of part `s` of the columns, and the parts
/// lie one after the other in `out`. `x` are rows of f16; weights are multiplied by `power` on their way into f16, and
/// `factor` is its inverse. `row_size` and `largest_bias` are of importance to rows of f16 alone.
#[cube(launch_unchecked)]
pub(super) fn cooperative_kernel<W: Numeric, V: Size, I: Size, O: Size>(
    x: &[Chunk],
    quants: &[Vector<u32, I>],
    side: &[u32],
    bias: &[f32],
    added: &[f32],
    out: &mut [Vector<u32, O>],
    rows: u32,
    added_rows: u32,
    power: f32,
    factor: f32,
    row_size: f32,
    largest_bias: f32,
    #[comptime] cells: Cells,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let tiles = comptime!(job.depth_tiles());
    let each = comptime!(tiles.div_ceil(tile.splits));
    let first = CUBE_POS_Z as usize * each;
    let count = min(each, tiles - first);
    let row_cells = comptime!(cells.of(tile.row_halves()));
    let mut input =
        Shared::<[Vector<W, V>]>::new_aligned_slice(comptime!(tile.stages * tile.m * row_cells), 32usize);
    let mut weights =
        Shared::<[Vector<W, V>]>::new_aligned_slice(comptime!(tile.stages * tile.n * row_cells), 32usize);
    let mut bounce = Shared::<[FloatPair]>::new_aligned_slice(
        comptime!(tile.plane_count() * tile.bounce_floats() / 2),
        32usize,
    );

    let mut sums = Sequence::<cmma::Matrix<f32>>::new();
    #[unroll]
    for _ in 0..comptime!(tile.matrices_m() * tile.matrices_n()) {
        sums.push(cmma::Matrix::<f32>::from_value(
            cmma::MatrixIdent::Accumulator,
            SIDE,
            SIDE,
            SIDE,
            cmma::MatrixLayout::Undefined,
            0.0f32,
        ));
    }

    let places = Places::new(rows, job);
    let mut fetched = Fetched::<I>::new(job);
    if comptime!(tile.ahead == 1) {
        fetch(x, quants, side, &places, &mut fetched, first, job);
    }
    if comptime!(tile.ahead > 1) {
        multiply_ahead::<W, V, I>(
            x,
            quants,
            side,
            &places,
            &mut input,
            &mut weights,
            &sums,
            first,
            count,
            power,
            cells,
            job,
        );
    } else if comptime!(tile.stages == 1) {
        for t in 0..count {
            put::<W, V, I>(&fetched, &mut input, &mut weights, first + t, 0usize, power, cells, job);
            sync_cube();
            if t + 1 < count {
                fetch(x, quants, side, &places, &mut fetched, first + t + 1, job);
            }
            multiply::<W, V>(&input, &weights, 0usize, &sums, cells, job);
            // Nobody reads this tile any more.
            sync_cube();
        }
    } else {
        put::<W, V, I>(&fetched, &mut input, &mut weights, first, 0usize, power, cells, job);
        let mut stage = 0u32;
        for t in 0..count {
            // All have written this tile, and none reads the one before it any more.
            sync_cube();
            let more = t + 1 < count;
            if more {
                fetch(x, quants, side, &places, &mut fetched, first + t + 1, job);
            }
            multiply::<W, V>(&input, &weights, stage as usize, &sums, cells, job);
            stage = 1u32 - stage;
            if more {
                put::<W, V, I>(
                    &fetched,
                    &mut input,
                    &mut weights,
                    first + t + 1,
                    stage as usize,
                    power,
                    cells,
                    job,
                );
            }
        }
    }
    store_sums::<O>(
        &sums,
        &mut bounce,
        x,
        bias,
        added,
        out,
        rows,
        added_rows,
        factor,
        row_size,
        largest_bias,
        job,
    );
}

/// Adds the product of the tiles of a stage to a plane's sums.
#[cube]
fn multiply<W: Numeric, V: Size>(
    input: &[Vector<W, V>],
    weights: &[Vector<W, V>],
    stage: usize,
    sums: &Sequence<cmma::Matrix<f32>>,
    #[comptime] cells: Cells,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let row = comptime!(cells.of(tile.row_halves()));
    let stride = comptime!(cells.stride(tile.row_halves()));
    let (matrices_m, matrices_n) = comptime!((tile.matrices_m(), tile.matrices_n()));
    let plane = UNIT_POS as usize / comptime!(tile.plane_units);
    let first_m = plane / comptime!(tile.planes_n) * comptime!(SIDE * matrices_m);
    let first_n = plane % comptime!(tile.planes_n) * comptime!(SIDE * matrices_n);
    let input_at = stage * comptime!(tile.m * row) + first_m * row;
    let weights_at = stage * comptime!(tile.n * row) + first_n * row;
    #[unroll]
    for step in 0..comptime!(tile.depth / SIDE) {
        let column = comptime!(cells.of(step * SIDE));
        let mut a = Sequence::<cmma::Matrix<f16>>::new();
        #[unroll]
        for i in 0..matrices_m {
            let at = input_at + comptime!(i * SIDE * row + column);
            a.push(loaded::<W, V>(input, at, cmma::MatrixIdent::A, cmma::MatrixLayout::RowMajor, stride));
        }
        #[unroll]
        for j in 0..matrices_n {
            let at = weights_at + comptime!(j * SIDE * row + column);
            let b = loaded::<W, V>(weights, at, cmma::MatrixIdent::B, cmma::MatrixLayout::ColMajor, stride);
            #[unroll]
            for i in 0..matrices_m {
                let sum = sums.index(comptime!(i * matrices_n + j));
                cmma::execute(a.index(i), &b, sum, sum);
            }
        }
    }
}

/// The matrix that begins at `at`.
#[cube]
pub(in crate::ops::cube) fn loaded<W: Numeric, V: Size>(
    from: &[Vector<W, V>],
    at: usize,
    #[comptime] ident: cmma::MatrixIdent,
    #[comptime] layout: cmma::MatrixLayout,
    #[comptime] stride: u32,
) -> cmma::Matrix<f16> {
    // SAFETY: it is loaded before it is used.
    let mut matrix = unsafe { cmma::Matrix::<f16>::uninitialized(ident, SIDE, SIDE, SIDE, layout) };
    cmma::load(&mut matrix, &from[at..at + 1], stride.runtime());
    matrix
}
