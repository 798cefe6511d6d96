//! The running softmax of a group of units, and of the groups of a cube.

use cubecl::prelude::*;

use super::decode::DecodeAttention;
use super::splits::LOWEST;
use crate::ops::cube::packed::Quad;
use crate::ops::cube::reduce::{group_of_cube, group_sum, spread_sum, unit_of_group};

/// Takes the keys of a turn, from `first` on, into the softmax: `scores`, \[keys, queries\], are still to be
/// summed over the group's units; `v` are the keys' values. Keys from `end` on don't count.
#[cube]
pub(crate) fn update(
    scores: &mut Array<f32>,
    v: &Array<Quad>,
    attended: &mut Array<Quad>,
    largest: &mut Array<f32>,
    sums: &mut Array<f32>,
    first: usize,
    end: usize,
    #[comptime] attention: DecodeAttention,
) {
    let shared_by = comptime!(attention.queries_per_key());
    let share = comptime!(attention.share());
    let at_once = comptime!(attention.keys_at_once);
    group_sum(scores, comptime!(at_once * shared_by), comptime!(attention.groups));
    #[unroll]
    for h in 0..shared_by {
        let mut highest = largest[h];
        #[unroll]
        for t in 0..at_once {
            let valid = first + t < end;
            highest = f32::max(highest, select(valid, scores[comptime!(t * shared_by + h)], LOWEST));
        }
        let shrink = f32::exp(largest[h] - highest);
        largest[h] = highest;
        sums[h] *= shrink;
        #[unroll]
        for i in 0..share {
            attended[comptime!(h * share + i)] *= Quad::new(shrink);
        }
        #[unroll]
        for t in 0..at_once {
            let valid = first + t < end;
            let score = select(valid, scores[comptime!(t * shared_by + h)] - highest, 0.0f32);
            let weight = select(valid, f32::exp(score), 0.0f32);
            sums[h] += weight;
            #[unroll]
            for i in 0..share {
                let at = comptime!(h * share + i);
                attended[at] = fma(Quad::new(weight), v[comptime!(t * share + i)], attended[at]);
            }
        }
    }
}

/// As [`update`], with each score in a few units only, so that all exponentials of a turn are one. The first
/// of `largest` and `sums` are those of the unit's own score until [`gather`].
#[cube]
pub(crate) fn update_spread(
    scores: &mut Array<f32>,
    v: &Array<Quad>,
    attended: &mut Array<Quad>,
    largest: &mut Array<f32>,
    sums: &mut Array<f32>,
    first: usize,
    end: usize,
    #[comptime] attention: DecodeAttention,
) {
    let shared_by = comptime!(attention.queries_per_key());
    let share = comptime!(attention.share());
    let at_once = comptime!(attention.keys_at_once);
    let lanes = comptime!(attention.groups.lanes);
    let units_of_score = comptime!(lanes / (at_once * shared_by));
    let own = spread_sum(scores, comptime!(at_once * shared_by), lanes);
    let key = UNIT_POS as usize % lanes / comptime!(units_of_score * shared_by);
    let valid = first + key < end;
    let own = select(valid, own, LOWEST);
    let mut highest = f32::max(own, largest[0usize]);
    #[unroll]
    for step in 0..comptime!(at_once.ilog2() as usize) {
        highest =
            f32::max(highest, plane_shuffle_xor(highest, comptime!((lanes >> (step + 1)) as u32).runtime()));
    }
    let shrink = f32::exp(largest[0usize] - highest);
    let weight = select(valid, f32::exp(own - highest), 0.0f32);
    largest[0usize] = highest;
    sums[0usize] = fma(sums[0usize], shrink, weight);
    #[unroll]
    for h in 0..shared_by {
        let shrink = plane_shuffle(shrink, comptime!((h * units_of_score) as u32).runtime());
        #[unroll]
        for i in 0..share {
            attended[comptime!(h * share + i)] *= Quad::new(shrink);
        }
        #[unroll]
        for t in 0..at_once {
            let weight =
                plane_shuffle(weight, comptime!(((t * shared_by + h) * units_of_score) as u32).runtime());
            #[unroll]
            for i in 0..share {
                let at = comptime!(h * share + i);
                attended[at] = fma(Quad::new(weight), v[comptime!(t * share + i)], attended[at]);
            }
        }
    }
}

/// Largest scores and sums of all queries in all units of a group, after turns of [`update_spread`].
#[cube]
pub(crate) fn gather(
    largest: &mut Array<f32>,
    sums: &mut Array<f32>,
    #[comptime] attention: DecodeAttention,
) {
    let shared_by = comptime!(attention.queries_per_key());
    let lanes = comptime!(attention.groups.lanes);
    let units_of_score = comptime!(lanes / (attention.keys_at_once * shared_by));
    let own_largest = largest[0usize];
    let mut own_sum = sums[0usize];
    #[unroll]
    for step in 0..comptime!(attention.keys_at_once.ilog2() as usize) {
        own_sum += plane_shuffle_xor(own_sum, comptime!((lanes >> (step + 1)) as u32).runtime());
    }
    #[unroll]
    for h in 0..shared_by {
        largest[h] = plane_shuffle(own_largest, comptime!((h * units_of_score) as u32).runtime());
        sums[h] = plane_shuffle(own_sum, comptime!((h * units_of_score) as u32).runtime());
    }
}

/// The softmaxes of a cube's groups -> the split's. A head at a time, or as many as there is shared memory for.
#[cube]
pub(crate) fn combine_groups(
    attended: &Array<Quad>,
    largest: &Array<f32>,
    sums: &Array<f32>,
    all_values: &mut [Quad],
    partial: &mut [Quad],
    #[comptime] attention: DecodeAttention,
) {
    let groups = comptime!(attention.groups);
    let share = comptime!(attention.share());
    let quads = comptime!(attention.cache.head_dim / 4);
    let unit = unit_of_group(groups);
    let group = group_of_cube(groups);
    let split = CUBE_POS_X as usize;
    let first_head = CUBE_POS_Z as usize * comptime!(attention.heads)
        + CUBE_POS_Y as usize * comptime!(attention.queries_per_key());
    let queries = comptime!(attention.queries_per_key());
    let at_once = comptime!(attention.heads_at_once);
    let mut all_largest = Shared::<[f32]>::new_slice(comptime!(groups.groups * queries));
    let mut all_sums = Shared::<[f32]>::new_slice(comptime!(groups.groups * queries));
    if unit == 0 {
        #[unroll]
        for h in 0..queries {
            all_largest[comptime!(h * groups.groups) + group] = largest[h];
        }
    }
    sync_cube();
    // Each group brings its own down to the largest of all.
    let mut highest = Array::<f32>::new(queries);
    let mut weights = Array::<f32>::new(queries);
    #[unroll]
    for h in 0..queries {
        let first = comptime!(h * groups.groups);
        highest[h] = all_largest[first];
        #[unroll]
        for g in 1..groups.groups {
            highest[h] = f32::max(highest[h], all_largest[comptime!(first + g)]);
        }
        weights[h] = f32::exp(largest[h] - highest[h]);
        if unit == 0 {
            all_sums[first + group] = weights[h] * sums[h];
        }
    }
    #[unroll]
    for turn in 0..comptime!(queries.div_ceil(at_once)) {
        let first = comptime!(turn * at_once);
        let count = comptime!(if queries - first < at_once { queries - first } else { at_once });
        #[unroll]
        for n in 0..count {
            let h = comptime!(first + n);
            #[unroll]
            for i in 0..share {
                let at = unit + comptime!(i * groups.units());
                if at < quads {
                    all_values[(comptime!(n * groups.groups) + group) * quads + at] =
                        attended[comptime!(h * share + i)] * Quad::new(weights[h]);
                }
            }
        }
        sync_cube();
        let mut place = UNIT_POS as usize;
        while place < comptime!(count * quads) {
            let n = place / quads;
            let at = place % quads;
            let mut sum = all_values[n * comptime!(groups.groups * quads) + at];
            #[unroll]
            for g in 1..groups.groups {
                sum += all_values[n * comptime!(groups.groups * quads) + comptime!(g * quads) + at];
            }
            let row = (first_head + first + n) * comptime!(attention.splits) + split;
            partial[row * comptime!(quads + 1) + at] = sum;
            place += comptime!(groups.cube_units());
        }
        if comptime!(turn + 1 < queries.div_ceil(at_once)) {
            sync_cube();
        }
    }
    #[unroll]
    for h in 0..queries {
        // A plane each, as far as there are.
        if UNIT_POS as usize == comptime!((h * groups.units()) % groups.cube_units()) {
            let mut sum = all_sums[comptime!(h * groups.groups)];
            #[unroll]
            for g in 1..groups.groups {
                sum += all_sums[comptime!(h * groups.groups + g)];
            }
            let mut statistic = Quad::new(0.0f32);
            statistic.insert(0usize, highest[h]);
            statistic.insert(1usize, sum);
            let row = (first_head + h) * comptime!(attention.splits) + split;
            partial[row * comptime!(quads + 1) + quads] = statistic;
        }
    }
}
