//! The first kernel: logits -> scores, with everything that is known of their tokens, and the largest of
//! each block. It also makes the random number and clears what the next kernels count in.

use cubecl::prelude::*;

use super::parameters::*;
use super::plan::{BINS, Sampling};
use super::random::uniform;
use super::scan::{Largest, largest, scratch_words};
use super::wide::{Wide, order};

/// Cube `[block, sequence]`; one block more makes the random number.
#[cube(launch_unchecked)]
pub(crate) fn process_kernel<N: Size>(
    logits: &[Vector<f32, N>],
    adjustments: &[Vector<u32, N>],
    biases: &[u32],
    parameters: &[u32],
    positions: &[u32],
    scores: &mut [Vector<f32, N>],
    work: &mut [u32],
    #[comptime] plan: Sampling,
) {
    let block = CUBE_POS_X as usize;
    let sequence = CUBE_POS_Y as usize;
    let own = sequence * comptime!(plan.work_of_sequence());
    if block < comptime!(plan.blocks()) {
        process_block::<N>(logits, adjustments, biases, parameters, scores, work, block, sequence, plan);
        if comptime!(plan.draws) {
            let units = comptime!(plan.groups.cube_units());
            let mut at = block * units + UNIT_POS as usize;
            while at < comptime!(3 * BINS + 1) {
                work[own + comptime!(plan.bins_at()) + at] = 0u32;
                at += comptime!(units * plan.blocks());
            }
        }
    } else if UNIT_POS == 0 {
        let at = sequence * PARAMETER_WORDS;
        let seed = Wide { low: parameters[at + SEED], high: parameters[at + comptime!(SEED + 1)] };
        let stream = Wide { low: parameters[at + SEQUENCE], high: parameters[at + comptime!(SEQUENCE + 1)] };
        let number = uniform(&seed, &stream, positions[sequence] + 1u32);
        work[own + comptime!(plan.random_at())] = number.low;
        work[own + comptime!(plan.random_at() + 1)] = number.high;
    }
}

#[cube]
fn process_block<N: Size>(
    logits: &[Vector<f32, N>],
    adjustments: &[Vector<u32, N>],
    biases: &[u32],
    parameters: &[u32],
    scores: &mut [Vector<f32, N>],
    work: &mut [u32],
    block: usize,
    sequence: usize,
    #[comptime] plan: Sampling,
) {
    let groups = comptime!(plan.groups);
    let vector = comptime!(plan.vector);
    let row_loads = comptime!(plan.vocabulary / plan.vector);
    let mut scratch = Shared::<[u32]>::new_slice(comptime!(scratch_words(groups)));
    let mut best = 0u32;
    let mut best_id = 0u32;
    let mut fault = SOUND.runtime();
    #[unroll]
    for i in 0..plan.loads() {
        let load =
            block * comptime!(plan.block / vector) + UNIT_POS as usize + comptime!(i * groups.cube_units());
        if load < row_loads {
            let at = sequence * row_loads + load;
            let values = logits[at];
            let mut processed = Vector::<f32, N>::empty();
            let mut known = Vector::<u32, N>::new(0u32);
            if comptime!(plan.adjusts) {
                known = adjustments[at];
            }
            #[unroll]
            for e in 0..vector {
                let id = (load * vector + e) as u32;
                let logit = values.extract(e);
                fault = u32::min(fault, fault_of(logit, id, 0u32));
                let mut score = logit;
                if comptime!(plan.adjusts) {
                    score = adjust(logit, id, known.extract(e), biases, parameters, sequence, plan);
                }
                if comptime!(plan.draws) {
                    score /= parameter(parameters, sequence, TEMPERATURE);
                }
                fault = u32::min(fault, fault_of(score, id, OF_OPTIONS));
                // Zeros of both signs are equal.
                let bits = u32::reinterpret(score);
                score = f32::reinterpret(select(bits == 0x8000_0000u32, 0u32, bits));
                let ordered = order(score);
                best_id = select(ordered > best, id, best_id);
                best = u32::max(ordered, best);
                processed.insert(e, score);
            }
            if comptime!(plan.draws) {
                scores[at] = processed;
            }
        }
    }
    let top = largest(&mut scratch, &Largest { order: best, id: best_id, fault }, groups);
    if UNIT_POS == 0 {
        let at = sequence * comptime!(plan.work_of_sequence()) + 3 * block;
        work[at] = top.order;
        work[at + 1] = top.id;
        work[at + 2] = top.fault;
    }
}

#[cube]
pub(crate) fn parameter(parameters: &[u32], sequence: usize, #[comptime] which: usize) -> f32 {
    f32::reinterpret(parameters[sequence * PARAMETER_WORDS + which])
}

/// Decided by bits, since a shading language may assume that there is neither NaN nor infinity.
#[cube]
fn fault_of(value: f32, id: u32, #[comptime] stage: u32) -> u32 {
    let bits = u32::reinterpret(value);
    let nan = (bits & 0x7fff_ffffu32) > 0x7f80_0000u32;
    let infinite = bits == 0x7f80_0000u32;
    let kind = select(nan, 0u32, 1u32);
    select(nan || infinite, 2u32 * id + kind + stage, SOUND)
}

/// Suppression, penalties and bias, in the host's order and with its roundings.
#[cube]
fn adjust(
    logit: f32,
    id: u32,
    known: u32,
    biases: &[u32],
    parameters: &[u32],
    sequence: usize,
    #[comptime] plan: Sampling,
) -> f32 {
    let mut score = logit;
    if known != 0u32 {
        let impossible = parameters[sequence * PARAMETER_WORDS + IMPOSSIBLE];
        if known & SUPPRESSED != 0u32 {
            score = f32::reinterpret(impossible);
        }
        if u32::reinterpret(score) != impossible {
            if known & SEEN != 0u32 {
                let penalty = parameter(parameters, sequence, REPETITION);
                let product = opaque(score * penalty, parameters, sequence);
                score = select(score < 0.0f32, product, score / penalty);
            }
            let count = known & COUNT;
            if count > 0u32 {
                score -= parameter(parameters, sequence, PRESENCE);
                let penalty = parameter(parameters, sequence, FREQUENCY) * f32::cast_from(count);
                let lowered = score - opaque(penalty, parameters, sequence);
                score = select(u32::reinterpret(score) == impossible, score, lowered);
            }
            if known & BIASED != 0u32 {
                score += bias_of(id, biases, sequence, plan);
            }
        }
    }
    score
}

/// A product that the compiler can't fuse with a sum, which would save a rounding that the host makes.
#[cube]
fn opaque(product: f32, parameters: &[u32], sequence: usize) -> f32 {
    f32::reinterpret(u32::reinterpret(product) ^ parameters[sequence * PARAMETER_WORDS + ZERO])
}

/// Bisection in the sorted list.
#[cube]
fn bias_of(id: u32, biases: &[u32], sequence: usize, #[comptime] plan: Sampling) -> f32 {
    let first = sequence * comptime!(2 * plan.biases);
    let mut at = 0usize;
    let mut half = comptime!(plan.biases as u32 / 2).runtime() as usize;
    while half > 0 {
        at = select(biases[first + 2 * (at + half)] <= id, at + half, at);
        half /= 2;
    }
    let found = biases[first + 2 * at] == id;
    select(found, f32::reinterpret(biases[first + 2 * at + 1]), 0.0f32)
}
