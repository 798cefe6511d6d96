//! Sums on their way out of a plane's matrices: through shared memory, since only the device knows which unit holds
//! which number.

use std::cmp::min;

use cubecl::cmma;
use cubecl::prelude::*;

use super::super::epilogue::{Job, finished, gelu, put_pair};
use super::super::halves::powers;
use super::super::ptx::Chunk;
use super::super::rows::RowFormat;
use super::super::tile::SIDE;

/// What sums pass through: as long as units take at once, since a matrix is stored as aligned as these are.
pub(super) type FloatPair = Vector<f32, Const<2>>;

/// Pairs of columns of a matrix: each unit stores two neighbouring outputs.
const PAIRS: u32 = SIDE as u32 / 2;

/// Stores the outputs of a plane's sums, each multiplied by `factor` and by that of its row. Rows of f16 get a factor by
/// what no sum of theirs is larger than, of `row_size`, the matrix's, and the largest bias.
#[cube]
pub(super) fn store_sums<O: Size>(
    sums: &Sequence<cmma::Matrix<f32>>,
    bounce: &mut [FloatPair],
    x: &[Chunk],
    bias: &[f32],
    added: &[f32],
    out: &mut [Vector<u32, O>],
    rows: u32,
    added_rows: u32,
    factor: f32,
    row_size: f32,
    largest_bias: f32,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let (matrices_m, matrices_n) = comptime!((tile.matrices_m(), tile.matrices_n()));
    let made = comptime!(if job.gated { matrices_n / 2 } else { matrices_n });
    // Rows that the units of a plane take at once, and how often they do.
    let rows_at_once = comptime!(tile.plane_units as u32 / PAIRS);
    let turns = comptime!(SIDE / rows_at_once as usize);
    let plane = UNIT_POS / comptime!(tile.plane_units as u32);
    let lane = UNIT_POS % comptime!(tile.plane_units as u32);
    let lane_row = lane / PAIRS;
    let lane_column = lane % PAIRS * 2u32;
    let first_row = CUBE_POS_X * comptime!(tile.m as u32)
        + plane / comptime!(tile.planes_n as u32) * comptime!((SIDE * matrices_m) as u32)
        + lane_row;
    let first_column = CUBE_POS_Y * comptime!(job.cube_outputs() as u32)
        + plane % comptime!(tile.planes_n as u32) * comptime!((SIDE * made) as u32)
        + lane_column;
    let own = plane as usize * comptime!(tile.bounce_floats() / 2);
    let own_pair = own + (lane_row * comptime!(tile.bounce_stride() as u32 / 2) + lane % PAIRS) as usize;
    #[unroll]
    for i in 0..matrices_m {
        let mut factors = Array::<f32>::new(turns);
        let mut ups = Array::<f32>::new(turns);
        #[unroll]
        for turn in 0..turns {
            let row = first_row + comptime!((SIDE * i) as u32 + turn as u32 * rows_at_once);
            let chunk = min(row, rows - 1u32) as usize * comptime!(job.row_chunks())
                + comptime!(RowFormat::factor_word(job.layout.cols) / 4);
            factors[turn] = f32::reinterpret(x[chunk].extract(0usize));
            if comptime!(matches!(job.format, RowFormat::F16)) {
                // Numbers of the input are below 2^14 before they are multiplied by their factor.
                let (up, down) = powers(row_size * 16384.0f32 * factors[turn] + largest_bias);
                ups[turn] = up;
                if row < rows && first_column == 0u32 {
                    let at = row as usize * comptime!(job.row_elements())
                        + comptime!(RowFormat::factor_word(job.outputs()));
                    out[at] = Vector::<u32, O>::new(u32::reinterpret(down));
                }
            }
        }
        #[unroll]
        for j in 0..made {
            let mut values = Array::<f32>::new(comptime!(2 * turns));
            let sum = sums.index(comptime!(i * matrices_n + j));
            bounced(sum, bounce, own, own_pair, &factors, factor, &mut values, job);
            if comptime!(job.gated) {
                let mut others = Array::<f32>::new(comptime!(2 * turns));
                let sum = sums.index(comptime!(i * matrices_n + j + made));
                bounced(sum, bounce, own, own_pair, &factors, factor, &mut others, job);
                #[unroll]
                for at in 0..2 * turns {
                    values[at] = gelu(values[at], comptime!(job.finish.quick)) * others[at];
                }
            }
            #[unroll]
            for turn in 0..turns {
                let row = first_row + comptime!((SIDE * i) as u32 + turn as u32 * rows_at_once);
                if row < rows {
                    let column = first_column + comptime!((SIDE * j) as u32);
                    let outputs = comptime!(job.outputs());
                    let finish = comptime!(job.finish);
                    let first = values[comptime!(2 * turn)];
                    let second = values[comptime!(2 * turn + 1)];
                    let mut first = finished(first, row, column, bias, added, added_rows, outputs, finish);
                    let mut second =
                        finished(second, row, column + 1u32, bias, added, added_rows, outputs, finish);
                    if comptime!(matches!(job.format, RowFormat::F16)) {
                        first *= ups[turn];
                        second *= ups[turn];
                    }
                    put_pair::<O>(out, (CUBE_POS_Z * rows + row) as usize, column, first, second, job);
                }
            }
        }
    }
}

/// A unit's numbers of a matrix, two neighbouring ones of every `turn`'s row, multiplied by the factors. The plane's
/// units wait for each other, and nobody else uses their place.
#[cube]
fn bounced(
    sum: &cmma::Matrix<f32>,
    bounce: &mut [FloatPair],
    own: usize,
    own_pair: usize,
    factors: &Array<f32>,
    factor: f32,
    values: &mut Array<f32>,
    #[comptime] job: Job,
) {
    let tile = comptime!(job.tile);
    let turns = comptime!(SIDE * SIDE / 2 / tile.plane_units);
    let turn_pairs = comptime!(tile.plane_units / (SIDE / 2) * tile.bounce_stride() / 2);
    cmma::store(
        &mut bounce[own..own + comptime!(tile.bounce_floats() / 2)],
        sum,
        comptime!(tile.bounce_stride() as u32).runtime(),
        cmma::MatrixLayout::RowMajor,
    );
    sync_plane();
    #[unroll]
    for turn in 0..turns {
        let pair = bounce[own_pair + comptime!(turn * turn_pairs)];
        values[comptime!(2 * turn)] = pair.extract(0usize) * factor * factors[turn];
        values[comptime!(2 * turn + 1)] = pair.extract(1usize) * factor * factors[turn];
    }
    sync_plane();
}
