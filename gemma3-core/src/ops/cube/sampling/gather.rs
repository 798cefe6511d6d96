//! The third kernel: weighs the tokens of each block that are kept for sure, and lists those of whom the
//! bins don't decide.

use cubecl::prelude::*;

use super::bins::*;
use super::parameters::*;
use super::plan::{BINS, Sampling};
use super::process::parameter;
use super::scan::{scan, scratch_words};
use super::wide::*;

/// Cube `[block, sequence]`.
#[cube(launch_unchecked)]
pub(crate) fn gather_kernel<N: Size>(
    scores: &[Vector<f32, N>],
    parameters: &[u32],
    work: &[Atomic<u32>],
    #[comptime] plan: Sampling,
) {
    let groups = comptime!(plan.groups);
    let vector = comptime!(plan.vector);
    let block = CUBE_POS_X as usize;
    let sequence = CUBE_POS_Y as usize;
    let own = sequence * comptime!(plan.work_of_sequence());
    let flags = uniform_flags(parameters, sequence);
    if flags & GREEDY == 0u32 {
        let mut scratch = Shared::<[u32]>::new_slice(comptime!(scratch_words(groups)));
        let mut by_count = Shared::<[u32]>::new_slice(FOUND);
        let mut lowest = Shared::<[u32]>::new_slice(FOUND);
        let mut highest = Shared::<[u32]>::new_slice(FOUND);
        let listed = Shared::<[Atomic<u32>]>::new_slice(1usize);
        let start = Shared::<[Atomic<u32>]>::new_slice(1usize);
        if UNIT_POS == 0 {
            listed[0].store(0u32);
        }
        let top = largest_of_blocks(work, &mut scratch, own, groups, plan);
        let mut edges = Edges {
            sure: comptime!(BINS as u32).runtime(),
            last: comptime!(BINS as u32).runtime(),
            top_k: comptime!(BINS as u32).runtime(),
        };
        if flags & comptime!(HAS_TOP_K | HAS_TOP_P) != 0u32 {
            let bins = atomic_bins(work, own + comptime!(plan.bins_at()), groups);
            let held = hold_bins(bins, &mut scratch, groups);
            let k = select(
                flags & HAS_TOP_K != 0u32,
                parameters[sequence * PARAMETER_WORDS + TOP_K],
                0xffff_ffffu32,
            );
            search(&held, &mut by_count, &Sum { count: k, low: 0u32, high: 0u32 }, true, groups);
            sync_cube();
            edges.top_k = by_count[0];
            edges.sure = by_count[0];
            edges.last = by_count[0];
            if flags & HAS_TOP_P != 0u32 {
                // The threshold of top-k lies somewhere in its bin, and with it the weight of which top-p
                // is a part.
                let least = found_before(&by_count);
                let most = add_sums(&least, &found_own(&by_count));
                search(&held, &mut lowest, &nucleus(parameters, sequence, &least), false, groups);
                search(&held, &mut highest, &nucleus(parameters, sequence, &most), false, groups);
                sync_cube();
                edges.sure = lowest[0];
                edges.last = highest[0];
            }
        }
        let farthest = parameter(parameters, sequence, MIN_P);
        let row_loads = comptime!(plan.vocabulary / plan.vector);
        let elements = comptime!(plan.loads() * plan.vector);
        let mut places = Array::<u32>::new(elements);
        let mut orders = Array::<u32>::new(elements);
        let mut sum = Sum { count: 0u32, low: 0u32, high: 0u32 };
        #[unroll]
        for i in 0..plan.loads() {
            let load = block * comptime!(plan.block / vector)
                + UNIT_POS as usize
                + comptime!(i * groups.cube_units());
            #[unroll]
            for e in 0..vector {
                places[comptime!(i * vector + e)] = 0xffff_ffffu32;
                orders[comptime!(i * vector + e)] = 0u32;
            }
            if load < row_loads {
                let values = scores[sequence * row_loads + load];
                #[unroll]
                for e in 0..vector {
                    let score = values.extract(e);
                    let distance = top - score;
                    if has_weight(distance) {
                        let bin = bin_of(distance);
                        if bin < edges.sure {
                            if distance <= farthest {
                                let w = weight(distance);
                                let both = add_sums(&sum, &Sum { count: 1u32, low: w.low, high: w.high });
                                sum.count = both.count;
                                sum.low = both.low;
                                sum.high = both.high;
                            }
                        } else if bin <= edges.last || bin == edges.top_k {
                            places[comptime!(i * vector + e)] = listed[0].fetch_add(1u32);
                            orders[comptime!(i * vector + e)] = order(score);
                        }
                    }
                }
            }
        }
        let all = scan(&mut scratch, &sum, groups);
        if UNIT_POS == comptime!(groups.cube_units() as u32 - 1) {
            let at = own + comptime!(plan.sums_at()) + 2 * block;
            work[at].store(all.low);
            work[at + 1].store(all.high);
            let length = listed[0].load();
            if length > 0u32 {
                start[0].store(work[own + comptime!(plan.cursor_at())].fetch_add(length));
            }
        }
        sync_cube();
        let list = own + comptime!(plan.list_at());
        #[unroll]
        for i in 0..plan.loads() {
            #[unroll]
            for e in 0..vector {
                let place = places[comptime!(i * vector + e)];
                if place != 0xffff_ffffu32 {
                    let at = start[0].load() + place;
                    let at = u32::min(at, comptime!(plan.vocabulary as u32 - 1)) as usize;
                    let load = block * comptime!(plan.block / vector)
                        + UNIT_POS as usize
                        + comptime!(i * groups.cube_units());
                    work[list + 2 * at].store(orders[comptime!(i * vector + e)]);
                    work[list + 2 * at + 1].store((load * vector + e) as u32);
                }
            }
        }
    }
}

/// Bins below `sure` are kept; those from there to `last`, and that of top-k, are listed.
#[derive(CubeType)]
struct Edges {
    sure: u32,
    last: u32,
    top_k: u32,
}
