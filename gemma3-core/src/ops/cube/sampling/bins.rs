//! Tokens and their weights by distance from the largest score: which bin a threshold lies in.

use cubecl::prelude::*;

use super::parameters::*;
use super::plan::{BINS, BINS_PER_LOGIT, Sampling};
use super::scan::{Largest, largest, scan, scratch_words};
use super::wide::*;
use crate::ops::cube::reduce::Groups;

/// Words in which [`search`] leaves a bin, the sum of those in front of it, and its own.
pub(crate) const FOUND: usize = 7;

/// The largest score of a sequence, from those of its blocks.
#[cube]
pub(crate) fn largest_of_blocks(
    work: &[Atomic<u32>],
    scratch: &mut [u32],
    own: usize,
    #[comptime] groups: Groups,
    #[comptime] plan: Sampling,
) -> f32 {
    let unit = UNIT_POS as usize;
    let mut order = 0u32;
    if unit < comptime!(plan.blocks()) {
        order = work[own + 3 * unit].load();
    }
    from_order(largest(scratch, &Largest { order, id: 0u32, fault: 0u32 }, groups).order)
}

/// The bin of a distance from 0 and below [`VANISHING`].
#[cube]
pub(crate) fn bin_of(distance: f32) -> u32 {
    u32::min(u32::cast_from(distance * BINS_PER_LOGIT), comptime!(BINS as u32 - 1))
}

/// Whether a token has any weight.
#[cube]
pub(crate) fn has_weight(distance: f32) -> bool {
    distance >= 0.0f32 && distance < VANISHING
}

/// The flags of a sequence. They decide over barriers, for which shading languages want to be told that all
/// units of the cube read the same.
#[cube]
pub(crate) fn uniform_flags(parameters: &[u32], sequence: usize) -> u32 {
    let mut shared = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        shared[0] = parameters[sequence * PARAMETER_WORDS + FLAGS];
    }
    workgroup_uniform_load(&shared[0])
}

/// The second kernel: counts and weighs the tokens of each bin. Cube `[block, sequence]`.
#[cube(launch_unchecked)]
pub(crate) fn bins_kernel<N: Size>(
    scores: &[Vector<f32, N>],
    parameters: &[u32],
    work: &[Atomic<u32>],
    #[comptime] plan: Sampling,
) {
    let groups = comptime!(plan.groups);
    let block = CUBE_POS_X as usize;
    let sequence = CUBE_POS_Y as usize;
    let own = sequence * comptime!(plan.work_of_sequence());
    let flags = uniform_flags(parameters, sequence);
    if flags & comptime!(HAS_TOP_K | HAS_TOP_P) != 0u32 && flags & GREEDY == 0u32 {
        let units = comptime!(groups.cube_units());
        let mut scratch = Shared::<[u32]>::new_slice(comptime!(scratch_words(groups).min(3 * units)));
        let bins = Shared::<[Atomic<u32>]>::new_slice(comptime!(3 * BINS));
        #[unroll]
        for i in 0..comptime!(3 * BINS / units) {
            bins[UNIT_POS as usize + i * units].store(0u32);
        }
        // Its barriers are also those of the zeros.
        let top = largest_of_blocks(work, &mut scratch, own, groups, plan);
        let row_loads = comptime!(plan.vocabulary / plan.vector);
        #[unroll]
        for i in 0..plan.loads() {
            let load = block * comptime!(plan.block / plan.vector)
                + UNIT_POS as usize
                + comptime!(i * groups.cube_units());
            if load < row_loads {
                let values = scores[sequence * row_loads + load];
                #[unroll]
                for e in 0..plan.vector {
                    let distance = top - values.extract(e);
                    if has_weight(distance) {
                        let w = weight(distance);
                        let at = 3 * bin_of(distance) as usize;
                        accumulate(&bins, at, &Sum { count: 1u32, low: w.low, high: w.high });
                    }
                }
            }
        }
        sync_cube();
        #[unroll]
        for i in 0..comptime!(BINS / units) {
            let bin = UNIT_POS as usize + i * units;
            let count = bins[3 * bin].load();
            if count > 0u32 {
                let low = bins[3 * bin + 1].load();
                let high = bins[3 * bin + 2].load();
                accumulate(work, own + comptime!(plan.bins_at()) + 3 * bin, &Sum { count, low, high });
            }
        }
    }
}

/// The bins that a unit holds, and the sum of those in front of them.
#[derive(CubeType)]
pub(crate) struct HeldBins {
    pub words: Array<u32>,
    pub before: Sum,
}

/// The words of the bins that a unit holds: the bins are divided among the units of a cube, in their order. For a kernel
/// to which the bins are finished; browsers refuse atomics that are only read.
#[cube]
pub(crate) fn finished_bins(work: &[u32], first: usize, #[comptime] groups: Groups) -> Array<u32> {
    let words = comptime!(3 * BINS / groups.cube_units());
    let mut held = Array::<u32>::new(words);
    #[unroll]
    for i in 0..words {
        held[i] = work[first + UNIT_POS as usize * words + i];
    }
    held
}

/// [`finished_bins`] for a kernel that also adds to words of the same buffer.
#[cube]
pub(crate) fn atomic_bins(work: &[Atomic<u32>], first: usize, #[comptime] groups: Groups) -> Array<u32> {
    let words = comptime!(3 * BINS / groups.cube_units());
    let mut held = Array::<u32>::new(words);
    #[unroll]
    for i in 0..words {
        held[i] = work[first + UNIT_POS as usize * words + i].load();
    }
    held
}

/// The bins of a unit with the sum of those in front of them. Every unit of the cube has to come here.
#[cube]
pub(crate) fn hold_bins(words: Array<u32>, scratch: &mut [u32], #[comptime] groups: Groups) -> HeldBins {
    let each = comptime!(BINS / groups.cube_units());
    let mut all = Sum { count: 0u32, low: 0u32, high: 0u32 };
    #[unroll]
    for i in 0..each {
        let low = words[comptime!(3 * i + 1)];
        let high = words[comptime!(3 * i + 2)];
        let both = add_sums(&all, &Sum { count: words[comptime!(3 * i)], low, high });
        all.count = both.count;
        all.low = both.low;
        all.high = both.high;
    }
    let up_to = scan(scratch, &all, groups);
    HeldBins { words, before: subtract_sums(&up_to, &all) }
}

/// Finds the bin with which the tokens reach a count, or a weight, above 0; `BINS`, with the sum of all in
/// front, where they don't. `found` is read after a barrier.
#[cube]
pub(crate) fn search(
    held: &HeldBins,
    found: &mut [u32],
    goal: &Sum,
    #[comptime] by_count: bool,
    #[comptime] groups: Groups,
) {
    let each = comptime!(BINS / groups.cube_units());
    let mut before = Sum { count: held.before.count, low: held.before.low, high: held.before.high };
    #[unroll]
    for i in 0..each {
        let bin = Sum {
            count: held.words[comptime!(3 * i)],
            low: held.words[comptime!(3 * i + 1)],
            high: held.words[comptime!(3 * i + 2)],
        };
        let after = add_sums(&before, &bin);
        if !reaches(&before, &goal, by_count) && reaches(&after, &goal, by_count) {
            store_found(found, (UNIT_POS as usize * each + i) as u32, &before, &bin);
        }
        before.count = after.count;
        before.low = after.low;
        before.high = after.high;
    }
    if UNIT_POS == comptime!(groups.cube_units() as u32 - 1) && !reaches(&before, &goal, by_count) {
        store_found(
            found,
            comptime!(BINS as u32).runtime(),
            &before,
            &Sum { count: 0u32, low: 0u32, high: 0u32 },
        );
    }
}

#[cube]
pub(crate) fn reaches(sum: &Sum, goal: &Sum, #[comptime] by_count: bool) -> bool {
    if comptime!(by_count) { sum.count >= goal.count } else { !less(&weight_of(sum), &weight_of(goal)) }
}

#[cube]
pub(crate) fn store_found(found: &mut [u32], index: u32, before: &Sum, own: &Sum) {
    found[0] = index;
    found[1] = before.count;
    found[2] = before.low;
    found[3] = before.high;
    found[4] = own.count;
    found[5] = own.low;
    found[6] = own.high;
}

#[cube]
pub(crate) fn found_before(found: &[u32]) -> Sum {
    Sum { count: found[1], low: found[2], high: found[3] }
}

#[cube]
pub(crate) fn found_own(found: &[u32]) -> Sum {
    Sum { count: found[4], low: found[5], high: found[6] }
}

/// The weight that the nucleus has to reach, at least that of one token, of the weight of all.
#[cube]
pub(crate) fn nucleus(parameters: &[u32], sequence: usize, all: &Sum) -> Sum {
    let at = sequence * PARAMETER_WORDS + TOP_P;
    let fraction = Wide { low: parameters[at], high: parameters[at + 1] };
    let mass = fraction_of(&weight_of(all), &fraction);
    let nothing = mass.low == 0u32 && mass.high == 0u32;
    Sum { count: 0u32, low: select(nothing, 1u32, mass.low), high: mass.high }
}
