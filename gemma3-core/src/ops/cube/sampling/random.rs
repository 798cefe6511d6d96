//! The random number of a key, as the host makes it: ChaCha with 8 rounds, keyed by the seed, of which the
//! stream is the sequence and words `2 position` and `2 position + 1` are the number.

use cubecl::prelude::*;

use super::wide::Wide;

/// 53 random bits as a fraction of 2^64.
#[cube]
pub(crate) fn uniform(seed: &Wide, sequence: &Wide, position: u32) -> Wide {
    let mut state = Array::<u32>::new(16usize);
    start(&mut state, seed, sequence, position);
    for _ in 0..4usize {
        quarter(&mut state, 0usize, 4usize, 8usize, 12usize);
        quarter(&mut state, 1usize, 5usize, 9usize, 13usize);
        quarter(&mut state, 2usize, 6usize, 10usize, 14usize);
        quarter(&mut state, 3usize, 7usize, 11usize, 15usize);
        quarter(&mut state, 0usize, 5usize, 10usize, 15usize);
        quarter(&mut state, 1usize, 6usize, 11usize, 12usize);
        quarter(&mut state, 2usize, 7usize, 8usize, 13usize);
        quarter(&mut state, 3usize, 4usize, 9usize, 14usize);
    }
    let mut first = Array::<u32>::new(16usize);
    start(&mut first, seed, sequence, position);
    let mut low = 0u32;
    let mut high = 0u32;
    #[unroll]
    for i in 0..8usize {
        // Selected rather than indexed: registers have no addresses.
        let here = position % 8u32 == comptime!(i as u32);
        low = select(here, state[comptime!(2 * i)] + first[comptime!(2 * i)], low);
        high = select(here, state[comptime!(2 * i + 1)] + first[comptime!(2 * i + 1)], high);
    }
    Wide { low: low & 0xffff_f800u32, high }
}

#[cube]
fn start(state: &mut Array<u32>, seed: &Wide, sequence: &Wide, position: u32) {
    state[0] = 0x6170_7865u32;
    state[1] = 0x3320_646eu32;
    state[2] = 0x7962_2d32u32;
    state[3] = 0x6b20_6574u32;
    state[4] = seed.low;
    state[5] = seed.high;
    #[unroll]
    for i in 6..12usize {
        state[i] = 0u32;
    }
    state[12] = position / 8u32;
    state[13] = 0u32;
    state[14] = sequence.low;
    state[15] = sequence.high;
}

#[cube]
fn quarter(
    state: &mut Array<u32>,
    #[comptime] a: usize,
    #[comptime] b: usize,
    #[comptime] c: usize,
    #[comptime] d: usize,
) {
    state[a] = state[a] + state[b];
    state[d] = rotate(state[d] ^ state[a], 16u32);
    state[c] = state[c] + state[d];
    state[b] = rotate(state[b] ^ state[c], 12u32);
    state[a] = state[a] + state[b];
    state[d] = rotate(state[d] ^ state[a], 8u32);
    state[c] = state[c] + state[d];
    state[b] = rotate(state[b] ^ state[c], 7u32);
}

#[cube]
fn rotate(word: u32, #[comptime] by: u32) -> u32 {
    (word << by) | (word >> comptime!(32 - by))
}
