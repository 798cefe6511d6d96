//! Sequences take their places among those of a step, or leave them, while the others go on.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::prelude::*;

use super::parameters::{Journal, PARAMETER_WORDS};
use super::plan::{JOURNAL_HEAD, Sampling};
use super::{Buffers, SamplingOptions};
use crate::ops::cube::attention::NOBODY;

/// Units of a cube.
const UNITS: u32 = 64;
/// Words in front of those of a place's sampling: which place, its token and its position.
const HEAD: usize = 3;

/// What becomes of a place of a step.
#[derive(Debug, Clone, Copy)]
pub struct Taken<'a> {
    /// Which place.
    pub place: usize,
    /// The token that enters, and its position.
    pub token: u32,
    /// See [`Self::token`].
    pub position: u32,
    /// How the next token is chosen.
    pub options: &'a SamplingOptions,
    /// See [`Sampling::parameters`].
    pub seed: u64,
    /// See [`Sampling::parameters`].
    pub sequence: u64,
}

impl Sampling {
    /// Words of a place in the list of [`take_places`].
    const fn place_words(&self) -> usize {
        HEAD + PARAMETER_WORDS + JOURNAL_HEAD + self.journal
    }

    fn words_of(&self, taken: &Taken<'_>) -> Vec<u32> {
        let mut words = vec![taken.place as u32, taken.token, taken.position];
        words.extend(self.parameters(taken.options, taken.seed, taken.sequence));
        words.extend(Journal::cleared(self));
        words
    }
}

/// Gives places to who enters, and to nobody those that are `left`. Adjustments and biases are not written here.
pub fn take_places(
    client: &Client,
    plan: Sampling,
    buffers: Buffers<'_>,
    entering: &[Taken<'_>],
    left: &[usize],
) {
    let greedy = SamplingOptions::greedy();
    let nobody = left.iter().map(|place| Taken {
        place: *place,
        token: 0,
        position: NOBODY,
        options: &greedy,
        seed: 0,
        sequence: 0,
    });
    let places: Vec<Taken<'_>> = entering.iter().copied().chain(nobody).collect();
    if places.is_empty() {
        return;
    }
    let words: Vec<u32> = places.iter().flat_map(|taken| plan.words_of(taken)).collect();
    let list = client.create_from_slice(u32::as_bytes(&words));
    let sequences = plan.sequences;
    // SAFETY: the lengths are those of the plan; the kernel keeps to the places that there are.
    unsafe {
        take_kernel::launch_unchecked(
            client,
            CubeCount::Static(places.len() as u32, 1, 1),
            CubeDim::new_1d(UNITS),
            BufferArg::from_raw_parts(list, words.len()),
            BufferArg::from_raw_parts(buffers.tokens.clone(), sequences),
            BufferArg::from_raw_parts(buffers.positions.clone(), sequences),
            BufferArg::from_raw_parts(buffers.parameters.clone(), sequences * PARAMETER_WORDS),
            BufferArg::from_raw_parts(buffers.journal.clone(), plan.journal_words()),
            plan,
        );
    }
}

/// Cube `i` writes the `i`th place of the list.
#[cube(launch_unchecked)]
fn take_kernel(
    list: &[u32],
    tokens: &mut [u32],
    positions: &mut [u32],
    parameters: &mut [u32],
    journal: &mut [u32],
    #[comptime] plan: Sampling,
) {
    let first = CUBE_POS_X as usize * comptime!(plan.place_words());
    let place = min(list[first] as usize, comptime!(plan.sequences - 1));
    if UNIT_POS == 0 {
        tokens[place] = list[first + 1];
        positions[place] = list[first + 2];
    }
    let mut at = UNIT_POS as usize;
    while at < PARAMETER_WORDS {
        parameters[place * PARAMETER_WORDS + at] = list[first + HEAD + at];
        at += comptime!(UNITS as usize);
    }
    let journal_words = comptime!(JOURNAL_HEAD + plan.journal);
    let mut at = UNIT_POS as usize;
    while at < journal_words {
        journal[place * journal_words + at] = list[first + comptime!(HEAD + PARAMETER_WORDS) + at];
        at += comptime!(UNITS as usize);
    }
}
