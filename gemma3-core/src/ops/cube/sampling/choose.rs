//! The last kernel: finds the exact thresholds among the tokens listed, draws, and moves the step on.

use cubecl::prelude::*;

use super::bins::*;
use super::parameters::*;
use super::plan::{BINS, DIGITS, JOURNAL_HEAD, Sampling};
use super::process::parameter;
use super::scan::{Largest, largest, scan, scratch_words};
use super::wide::*;
use crate::ops::cube::attention::NOBODY;
use crate::ops::cube::reduce::Groups;

/// Cube `[1, sequence]`. What the kernels before it have left in `work` is finished, so that it reads plain words: as
/// atomics that are only read, browsers would refuse it.
#[cube(launch_unchecked)]
pub(crate) fn choose_kernel(
    scores: &[f32],
    parameters: &[u32],
    work: &[u32],
    adjustments: &mut [u32],
    positions: &mut [u32],
    tokens: &mut [u32],
    journal: &mut [u32],
    #[comptime] plan: Sampling,
) {
    let groups = comptime!(plan.choosing);
    let sequence = CUBE_POS_Y as usize;
    let own = sequence * comptime!(plan.work_of_sequence());
    let unit = UNIT_POS as usize;
    let mut scratch = Shared::<[u32]>::new_slice(comptime!(scratch_words(groups)));
    let mut best = Largest { order: 0u32, id: 0u32, fault: SOUND.runtime() };
    if unit < comptime!(plan.blocks()) {
        best.order = work[own + 3 * unit];
        best.id = work[own + 3 * unit + 1];
        best.fault = work[own + 3 * unit + 2];
    }
    let best = largest(&mut scratch, &best, groups);
    let mut token = Shared::<[u32]>::new_slice(1usize);
    if UNIT_POS == 0 {
        token[0] = best.id;
    }
    if comptime!(plan.draws) {
        let flags = uniform_flags(parameters, sequence);
        if flags & GREEDY == 0u32 {
            let top = from_order(best.order);
            draw(scores, parameters, work, &mut scratch, &mut token, top, flags, sequence, own, plan);
        }
    }
    sync_cube();
    if UNIT_POS == 0 {
        // Nothing above -infinity.
        let none = best.order <= 0x007f_ffffu32;
        let fault = u32::min(best.fault, select(none, NOTHING_LEFT, SOUND));
        advance(adjustments, positions, tokens, journal, token[0], fault, sequence, plan);
    }
}

/// The token chosen becomes the next step's input.
#[cube]
fn advance(
    adjustments: &mut [u32],
    positions: &mut [u32],
    tokens: &mut [u32],
    journal: &mut [u32],
    token: u32,
    fault: u32,
    sequence: usize,
    #[comptime] plan: Sampling,
) {
    let sound = fault == SOUND;
    let token = select(sound, u32::min(token, comptime!(plan.vocabulary as u32 - 1)), 0u32);
    tokens[sequence] = token;
    let position = positions[sequence];
    positions[sequence] = select(position == NOBODY, position, position + 1u32);
    let first = sequence * comptime!(JOURNAL_HEAD + plan.journal);
    let step = journal[first];
    let slot = (step % comptime!(plan.journal as u32)) as usize;
    journal[first] = step + 1u32;
    journal[first + 1] = u32::min(journal[first + 1], fault);
    journal[first + JOURNAL_HEAD + slot] = select(sound, token, 0xffff_ffffu32);
    if comptime!(plan.adjusts) {
        let at = sequence * comptime!(plan.vocabulary) + token as usize;
        let known = adjustments[at];
        let more = select(known & COUNT == COUNT, known, known + 1u32) | SEEN;
        adjustments[at] = select(sound, more, known);
    }
}

/// The last token that is kept, in the order of descending score and descending id: those after it are out.
#[derive(CubeType)]
struct Threshold {
    order: u32,
    id: u32,
}

#[cube]
fn kept(order: u32, id: u32, distance: f32, farthest: f32, threshold: &Threshold) -> bool {
    has_weight(distance)
        && distance <= farthest
        && (order > threshold.order || (order == threshold.order && id >= threshold.id))
}

#[cube]
fn draw(
    scores: &[f32],
    parameters: &[u32],
    work: &[u32],
    scratch: &mut [u32],
    token: &mut [u32],
    top: f32,
    flags: u32,
    sequence: usize,
    own: usize,
    #[comptime] plan: Sampling,
) {
    let groups = comptime!(plan.choosing);
    let units = comptime!(groups.cube_units());
    let unit = UNIT_POS as usize;
    let mut threshold = Threshold { order: 0u32, id: 0u32 };
    let length = u32::min(work[own + comptime!(plan.cursor_at())], comptime!(plan.vocabulary as u32));
    if flags & comptime!(HAS_TOP_K | HAS_TOP_P) != 0u32 {
        find_threshold(parameters, work, scratch, &mut threshold, top, flags, sequence, own, length, plan);
    }

    // The weight of each block: what is kept for sure, and what of the list is kept.
    let farthest = parameter(parameters, sequence, MIN_P);
    let blocks = Shared::<[Atomic<u32>]>::new_slice(comptime!(2 * plan.blocks()));
    if unit < comptime!(plan.blocks()) {
        let at = own + comptime!(plan.sums_at()) + 2 * unit;
        blocks[2 * unit].store(work[at]);
        blocks[2 * unit + 1].store(work[at + 1]);
    }
    sync_cube();
    let mut i = unit;
    while i < length as usize {
        let order = work[own + comptime!(plan.list_at()) + 2 * i];
        let id = work[own + comptime!(plan.list_at()) + 2 * i + 1];
        let distance = top - from_order(order);
        if kept(order, id, distance, farthest, &threshold) {
            let block = u32::min(id / comptime!(plan.block as u32), comptime!(plan.blocks() as u32 - 1));
            accumulate_weight(&blocks, 2 * block as usize, &weight(distance));
        }
        i += units;
    }
    sync_cube();
    let mut sum = Sum { count: 0u32, low: 0u32, high: 0u32 };
    if unit < comptime!(plan.blocks()) {
        sum.low = blocks[2 * unit].load();
        sum.high = blocks[2 * unit + 1].load();
    }
    let up_to = scan(scratch, &sum, groups);
    let mut total = Shared::<[u32]>::new_slice(2usize);
    if UNIT_POS == comptime!(units as u32 - 1) {
        total[0] = up_to.low;
        total[1] = up_to.high;
    }
    let mut chosen = Shared::<[u32]>::new_slice(FOUND);
    if UNIT_POS == 0 {
        store_found(&mut chosen, 0u32, &Sum { count: 0u32, low: 0u32, high: 0u32 }, &sum);
    }
    sync_cube();
    let at = own + comptime!(plan.random_at());
    let random = Wide { low: work[at], high: work[at + 1] };
    // The token with which the sum exceeds the target.
    let target = fraction_of(&Wide { low: total[0], high: total[1] }, &random);
    let before = subtract_sums(&up_to, &sum);
    if !less(&target, &weight_of(&before)) && less(&target, &weight_of(&up_to)) {
        store_found(&mut chosen, unit as u32, &before, &sum);
    }
    sync_cube();
    let residue = subtract(&target, &weight_of(&found_before(&chosen)));
    let block = u32::min(chosen[0], comptime!(plan.blocks() as u32 - 1)) as usize;

    let each = comptime!(plan.block / units);
    let mut weights = Array::<u32>::new(comptime!(2 * each));
    let mut sum = Sum { count: 0u32, low: 0u32, high: 0u32 };
    let first = block * comptime!(plan.block) + unit * each;
    #[unroll]
    for e in 0..each {
        weights[comptime!(2 * e)] = 0u32;
        weights[comptime!(2 * e + 1)] = 0u32;
        if first + e < comptime!(plan.vocabulary) {
            let score = scores[sequence * comptime!(plan.vocabulary) + first + e];
            let distance = top - score;
            if kept(order(score), (first + e) as u32, distance, farthest, &threshold) {
                let w = weight(distance);
                weights[comptime!(2 * e)] = w.low;
                weights[comptime!(2 * e + 1)] = w.high;
                let both = add_sums(&sum, &Sum { count: 0u32, low: w.low, high: w.high });
                sum.low = both.low;
                sum.high = both.high;
            }
        }
    }
    let up_to = scan(scratch, &sum, groups);
    let mut reached = weight_of(&subtract_sums(&up_to, &sum));
    #[unroll]
    for e in 0..each {
        let w = Wide { low: weights[comptime!(2 * e)], high: weights[comptime!(2 * e + 1)] };
        let next = add(&reached, &w);
        if !less(&residue, &reached) && less(&residue, &next) {
            token[0] = (first + e) as u32;
        }
        reached.low = next.low;
        reached.high = next.high;
    }
}

#[cube]
fn find_threshold(
    parameters: &[u32],
    work: &[u32],
    scratch: &mut [u32],
    threshold: &mut Threshold,
    top: f32,
    flags: u32,
    sequence: usize,
    own: usize,
    length: u32,
    #[comptime] plan: Sampling,
) {
    let groups = comptime!(plan.choosing);
    let mut found = Shared::<[u32]>::new_slice(FOUND);
    let digits = Shared::<[Atomic<u32>]>::new_slice(comptime!(3 * DIGITS));
    let range = Shared::<[Atomic<u32>]>::new_slice(2usize);
    let list = own + comptime!(plan.list_at());
    let bins = finished_bins(work, own + comptime!(plan.bins_at()), groups);
    let held = hold_bins(bins, scratch, groups);
    let k = select(flags & HAS_TOP_K != 0u32, parameters[sequence * PARAMETER_WORDS + TOP_K], 0xffff_ffffu32);
    let goal = Sum { count: k, low: 0u32, high: 0u32 };
    search(&held, &mut found, &goal, true, groups);
    let bin = workgroup_uniform_load(&found[0]);
    let before = found_before(&found);
    let own_bin = found_own(&found);
    // What top-k keeps weighs this.
    let mut total = Sum { count: before.count, low: before.low, high: before.high };
    if bin < comptime!(BINS as u32) {
        let rest = subtract_sums(&goal, &Sum { count: before.count, low: 0u32, high: 0u32 });
        let place = Place { top, bin, order: 0u32, goal: rest, bin_sum: own_bin };
        let descent =
            descend(work, list, length, scratch, &mut found, &digits, &range, &place, false, true, groups);
        threshold.order = descent.value;
        let all = add_sums(&total, &add_sums(&descent.before, &descent.equal));
        total.count = all.count;
        total.low = all.low;
        total.high = all.high;
    }
    if flags & HAS_TOP_P != 0u32 {
        sync_cube();
        let goal = nucleus(parameters, sequence, &total);
        search(&held, &mut found, &goal, false, groups);
        sync_cube();
        let bin = found[0];
        let rest = subtract_sums(&goal, &Sum { count: 0u32, low: found[2], high: found[3] });
        let own_bin = found_own(&found);
        let place = Place { top, bin, order: 0u32, goal: rest, bin_sum: own_bin };
        let descent =
            descend(work, list, length, scratch, &mut found, &digits, &range, &place, false, false, groups);
        threshold.order = descent.value;
        threshold.id = 0u32;
        if UNIT_POS == 0 {
            found[0] = descent.equal.count;
        }
        if workgroup_uniform_load(&found[0]) > 1u32 {
            let weight = subtract(&weight_of(&place.goal), &weight_of(&descent.before));
            let rest = Sum { count: 0u32, low: weight.low, high: weight.high };
            let place = Place { top, bin, order: descent.value, goal: rest, bin_sum: descent.equal };
            let descent = descend(
                work, list, length, scratch, &mut found, &digits, &range, &place, true, false, groups,
            );
            threshold.id = descent.value;
        }
    }
}

/// Where a descent begins: the tokens of a bin, or those of them with one score, and what they have to reach.
#[derive(CubeType)]
struct Place {
    top: f32,
    bin: u32,
    order: u32,
    goal: Sum,
    bin_sum: Sum,
}

/// The score, or the id, with which the goal is reached; the sum of those above it, and of its equals.
#[derive(CubeType)]
struct Descent {
    value: u32,
    before: Sum,
    equal: Sum,
}

/// Finds by digits, from the first in which the tokens differ, the value of the list with which tokens in
/// descending order reach a count or a weight. `by_id`: among the tokens of one score.
#[cube]
fn descend(
    work: &[u32],
    list: usize,
    length: u32,
    scratch: &mut [u32],
    found: &mut [u32],
    digits: &[Atomic<u32>],
    range: &[Atomic<u32>],
    place: &Place,
    #[comptime] by_id: bool,
    #[comptime] by_count: bool,
    #[comptime] groups: Groups,
) -> Descent {
    let units = comptime!(groups.cube_units());
    let unit = UNIT_POS as usize;
    if UNIT_POS == 0 {
        range[0].store(0xffff_ffffu32);
        range[1].store(0u32);
    }
    sync_cube();
    let mut i = unit;
    while i < length as usize {
        let order = work[list + 2 * i];
        if is_at(order, place, by_id) {
            let value = if comptime!(by_id) { work[list + 2 * i + 1] } else { order };
            range[0].fetch_min(value);
            range[1].fetch_max(value);
        }
        i += units;
    }
    let low = workgroup_uniform_load_atomic(&range[0]);
    let high = workgroup_uniform_load_atomic(&range[1]);
    let mut prefix = 0u32;
    let mut before = Sum { count: 0u32, low: 0u32, high: 0u32 };
    let mut equal = Sum { count: place.bin_sum.count, low: place.bin_sum.low, high: place.bin_sum.high };
    for pass in 0..4u32 {
        let shift = 24u32 - 8u32 * pass;
        if (low ^ high) >> shift == 0u32 {
            prefix |= low & (255u32 << shift);
        } else {
            let mut i = unit;
            while i < comptime!(3 * DIGITS) {
                digits[i].store(0u32);
                i += units;
            }
            if UNIT_POS == 0 {
                let nothing = Sum { count: 0u32, low: 0u32, high: 0u32 };
                store_found(found, 0u32, &nothing, &nothing);
            }
            sync_cube();
            let mut i = unit;
            while i < length as usize {
                let order = work[list + 2 * i];
                if is_at(order, place, by_id) {
                    let value = if comptime!(by_id) { work[list + 2 * i + 1] } else { order };
                    if ((value ^ prefix) >> shift) >> 8u32 == 0u32 {
                        let digit = ((value >> shift) & 255u32) as usize;
                        let w = weight(place.top - from_order(order));
                        accumulate(digits, 3 * digit, &Sum { count: 1u32, low: w.low, high: w.high });
                    }
                }
                i += units;
            }
            sync_cube();
            let digit = comptime!(DIGITS as u32 - 1) - u32::min(UNIT_POS, comptime!(DIGITS as u32 - 1));
            let mut sum = Sum { count: 0u32, low: 0u32, high: 0u32 };
            if unit < DIGITS {
                sum.count = digits[3 * digit as usize].load();
                sum.low = digits[3 * digit as usize + 1].load();
                sum.high = digits[3 * digit as usize + 2].load();
            }
            let after = add_sums(&before, &scan(scratch, &sum, groups));
            let in_front = subtract_sums(&after, &sum);
            if !reaches(&in_front, &place.goal, by_count) && reaches(&after, &place.goal, by_count) {
                store_found(found, digit, &in_front, &sum);
            }
            sync_cube();
            prefix |= found[0] << shift;
            before.count = found[1];
            before.low = found[2];
            before.high = found[3];
            equal.count = found[4];
            equal.low = found[5];
            equal.high = found[6];
            sync_cube();
        }
    }
    Descent { value: prefix, before, equal }
}

#[cube]
fn is_at(order: u32, place: &Place, #[comptime] by_id: bool) -> bool {
    let distance = place.top - from_order(order);
    let mut at = has_weight(distance) && bin_of(distance) == place.bin;
    if comptime!(by_id) {
        at = at && order == place.order;
    }
    at
}
