//! Adds up the parts of a product whose columns were divided, always in the same order.

use std::cmp::min;

use cubecl::prelude::*;

use super::epilogue::{Job, finished, gelu, put_pair};

/// Units of a cube.
pub(super) const UNITS: u32 = 128;

/// Unit `[pair, row]` makes two outputs of a row from `parts` \[splits, rows, layout.rows\].
#[cube(launch_unchecked)]
pub(super) fn parts_kernel<O: Size>(
    parts: &[f32],
    bias: &[f32],
    added: &[f32],
    out: &mut [Vector<u32, O>],
    rows: u32,
    added_rows: u32,
    #[comptime] job: Job,
) {
    let column = ABSOLUTE_POS_X * 2u32;
    let row = CUBE_POS_Y;
    if column < comptime!(job.written() as u32) {
        let mut first = part_sum(parts, row, column, rows, job);
        let mut second = part_sum(parts, row, column + 1u32, rows, job);
        if comptime!(job.gated) {
            let ups = column + comptime!(job.outputs() as u32);
            let quick = comptime!(job.finish.quick);
            first = gelu(first, quick) * part_sum(parts, row, ups, rows, job);
            second = gelu(second, quick) * part_sum(parts, row, ups + 1u32, rows, job);
        }
        let outputs = comptime!(job.outputs());
        let finish = comptime!(job.finish);
        first = finished(first, row, column, bias, added, added_rows, outputs, finish);
        second = finished(second, row, column + 1u32, bias, added, added_rows, outputs, finish);
        put_pair::<O>(out, row as usize, column, first, second, job);
    }
}

#[cube]
fn part_sum(parts: &[f32], row: u32, column: u32, rows: u32, #[comptime] job: Job) -> f32 {
    let width = comptime!(job.layout.rows as u32);
    let column = min(column, width - 1u32);
    let mut sum = 0.0f32;
    #[unroll]
    for part in 0..job.tile.splits {
        sum += parts[((rows * comptime!(part as u32) + row) * width + column) as usize];
    }
    sum
}
