//! A row's scores into weights, and the way between a plane's matrices and its units.

use std::cmp::min;

use cubecl::cmma::{self, Matrix, MatrixLayout};
use cubecl::prelude::*;
use half::f16;

use super::super::LOWEST;
use super::super::registers::Words;
use super::staging::{pairs_of, put_eight};
use super::tile::{CooperativeShape, SIDE};
use super::{LIFT, MARGIN};
use crate::ops::cube::packed::Quad;

/// Columns of the plane's scores from a matrix.
#[cube]
pub(super) fn store(
    matrix: &Matrix<f32>,
    scores: &mut [Quad],
    at: usize,
    #[comptime] shape: CooperativeShape,
) {
    cmma::store(
        &mut scores[at..at + 1],
        matrix,
        comptime!(shape.score_stride() as u32).runtime(),
        MatrixLayout::RowMajor,
    );
}

/// The first quad of the unit's part of a row of scores.
#[cube]
fn own_scores(#[comptime] shape: CooperativeShape) -> usize {
    let lane = UNIT_POS_X as usize;
    lane % SIDE * comptime!(shape.score_stride() / 4) + lane / SIDE * comptime!(shape.share())
}

#[cube]
pub(super) fn read_scores(
    scores: &[Quad],
    scores_at: usize,
    quads: &mut Array<Quad>,
    #[comptime] shape: CooperativeShape,
) {
    let from = scores_at + own_scores(shape);
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        quads[i] = scores[from + i];
    }
}

/// Scores or weights of keys that the row doesn't see become `value`. `start` is the block's first key.
#[cube]
pub(super) fn hide(
    quads: &mut Array<Quad>,
    first: u32,
    end: u32,
    start: u32,
    value: f32,
    #[comptime] shape: CooperativeShape,
) {
    let position = start + UNIT_POS_X / comptime!(SIDE as u32) * comptime!(4 * shape.share() as u32);
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        let mut quad = quads[i];
        #[unroll]
        for j in 0..4usize {
            let key = position + comptime!((4 * i + j) as u32);
            quad.insert(j, select(key >= first && key < end, quad.extract(j), value));
        }
        quads[i] = quad;
    }
}

/// Scores, once they are multiplied by `factor`, into weights relative to the row's reference. Gives what the weights so
/// far have to be multiplied by: 1 unless the reference has moved, from where something was seen.
#[cube]
pub(super) fn soften(
    quads: &mut Array<Quad>,
    references: &mut Array<f32>,
    sums: &mut Array<f32>,
    factor: f32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) -> f32 {
    let mut high = LOWEST.runtime();
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        let quad = quads[i];
        let left = f32::max(quad.extract(0usize), quad.extract(1usize));
        let right = f32::max(quad.extract(2usize), quad.extract(3usize));
        high = f32::max(high, f32::max(left, right));
    }
    #[unroll]
    for step in 0..comptime!(shape.row_units().ilog2() as usize) {
        high = f32::max(high, plane_shuffle_xor(high, comptime!((SIDE << step) as u32).runtime()));
    }
    let before = references[sixteen];
    let moves = (high - before) * factor > MARGIN;
    let shrink = select(moves, f32::exp((before - high) * factor), 1.0f32);
    let reference = select(moves, high, before);
    references[sixteen] = reference;
    // A row that has seen nothing yet keeps nothing: its scores stay far below zero.
    let below = select(reference > LOWEST, reference * factor, 0.0f32) - LIFT;
    #[unroll]
    for i in 0..comptime!(shape.share()) {
        quads[i] = Quad::exp(fma(quads[i], Quad::new(factor), Quad::new(-below)));
    }
    let sum = sums[sixteen];
    sums[sixteen] = sum * shrink;
    // All units of a row have to agree, whatever each has summed up.
    select(before > LOWEST, shrink, 1.0f32)
}

/// Weights as halves; their sum as they were rounded.
#[cube]
pub(super) fn write_weights<W: Numeric, V: Size>(
    quads: &Array<Quad>,
    weights: &mut [Vector<W, V>],
    weights_at: usize,
    sums: &mut Array<f32>,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let cells = comptime!(shape.tile.cells);
    let lane = UNIT_POS_X as usize;
    let to = weights_at
        + lane % SIDE * comptime!(cells.of(shape.weight_stride()))
        + lane / SIDE * comptime!(cells.of(4 * shape.share()));
    let mut sum = Quad::new(0.0f32);
    #[unroll]
    for i in 0..comptime!(shape.share() / 2) {
        let mut eight = Words::empty();
        #[unroll]
        for half in 0..2usize {
            let rounded = Vector::<f16, Const<4>>::cast_from(quads[comptime!(2 * i + half)]);
            let pairs = pairs_of(rounded);
            eight.insert(comptime!(2 * half), pairs.extract(0usize));
            eight.insert(comptime!(2 * half + 1), pairs.extract(1usize));
            if comptime!(!shape.sums_in_column()) {
                sum += Quad::cast_from(rounded);
            }
        }
        put_eight::<W, V>(weights, to + comptime!(i * cells.of(8)), eight, shape);
    }
    if comptime!(!shape.sums_in_column()) {
        sums[sixteen] += Vector::vector_sum(sum);
    }
}

/// The sum of a row's weights, of which each unit that shares it has its part, unless they are a column of what is
/// attended to.
#[cube]
pub(super) fn sum_of_row(
    sum: f32,
    attended: &Sequence<Matrix<f32>>,
    scores: &mut [Quad],
    scores_at: usize,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) -> f32 {
    if comptime!(shape.sums_in_column()) {
        let steps = comptime!(shape.steps());
        sync_plane();
        store(attended.index(comptime!(sixteen * steps + steps - 1)), scores, scores_at, shape);
        sync_plane();
        // The ones are in the middle of the last 16 columns.
        let own = UNIT_POS_X as usize % SIDE * comptime!(shape.score_stride() / 4) + 2;
        scores[scores_at + own].extract(0usize)
    } else {
        sum_of_units(sum, shape)
    }
}

#[cube]
fn sum_of_units(sum: f32, #[comptime] shape: CooperativeShape) -> f32 {
    let mut total = sum;
    #[unroll]
    for step in 0..comptime!(shape.row_units().ilog2() as usize) {
        total += plane_shuffle_xor(total, comptime!((SIDE << step) as u32).runtime());
    }
    total
}

/// The rows of attended values by the factors that their units have.
#[cube]
pub(super) fn rescale(
    attended: &mut Sequence<Matrix<f32>>,
    scores: &mut [Quad],
    scores_at: usize,
    shrink: f32,
    #[comptime] sixteen: usize,
    #[comptime] shape: CooperativeShape,
) {
    let steps = comptime!(shape.steps());
    let columns = comptime!(shape.columns());
    let own = scores_at + own_scores(shape);
    #[unroll]
    for part in 0..comptime!(steps.div_ceil(columns)) {
        let count = comptime!(min(columns, steps - part * columns));
        sync_plane();
        #[unroll]
        for n in 0..count {
            let from = attended.index(comptime!(sixteen * steps + part * columns + n));
            store(from, scores, scores_at + comptime!(4 * n), shape);
        }
        sync_plane();
        #[unroll]
        for i in 0..comptime!(shape.share()) {
            let quad = scores[own + i];
            scores[own + i] = quad * Quad::new(shrink);
        }
        sync_plane();
        #[unroll]
        for n in 0..count {
            let at = scores_at + comptime!(4 * n);
            cmma::load_with_layout(
                attended.index_mut(comptime!(sixteen * steps + part * columns + n)),
                &scores[at..at + 1],
                comptime!(shape.score_stride() as u32).runtime(),
                MatrixLayout::RowMajor,
            );
        }
    }
}
