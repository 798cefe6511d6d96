//! Changes that need no knowledge of the format.

use super::Random;

/// Numbers at which arithmetic goes wrong.
pub const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    1 << 20,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 62,
    i64::MAX as u64,
    u64::MAX,
];
/// The longest run of bytes that is copied or removed.
const MOST_BYTES: usize = 64;

/// Makes one change to `input`; `other` is where foreign bytes come from.
pub fn bytes(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    match random.below(10) {
        0 | 1 => flip_bit(random, input),
        2 => set_byte(random, input),
        3..=5 => change_number(random, input),
        6 => remove(random, input),
        7 => repeat(random, input),
        8 => input.truncate(random.below(input.len())),
        _ => splice(random, input, other),
    }
}

fn flip_bit(random: &mut Random, input: &mut [u8]) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << random.below(8);
    }
}

fn set_byte(random: &mut Random, input: &mut [u8]) {
    let at = random.below(input.len());
    if let Some(byte) = input.get_mut(at) {
        *byte = *random.choose(&[0, 1, b' ', b'"', b'0', b'9', b'{', 0x7f, 0x80, 0xfe, 0xff]);
    }
}

/// Changes an integer of 1 to 8 bytes: half of the time one that could be a length or a place, because it is
/// smaller than the input.
fn change_number(random: &mut Random, input: &mut [u8]) {
    let width = *random.choose(&[1, 2, 4, 8]);
    let is_big_endian = random.once_in(3);
    let Some(places) = input.len().checked_sub(width) else { return };
    let mut at = random.below(places + 1);
    if random.once_in(2) {
        let length = input.len() as u64;
        let is_length = |at: &usize| (1..=length).contains(&read(&input[*at..*at + width], is_big_endian));
        at = (at..=places).chain(0..at).find(is_length).unwrap_or(at);
    }
    let field = &mut input[at..at + width];
    let number = read(field, is_big_endian);
    let small = random.below(8) as u64 + 1;
    let changed = match random.below(5) {
        0 => number.wrapping_add(small),
        1 => number.wrapping_sub(small),
        2 => number.wrapping_mul(2),
        3 => random.choose(&NUMBERS).wrapping_sub(number),
        _ => *random.choose(&NUMBERS),
    };
    for (place, byte) in field.iter_mut().enumerate() {
        let shift = if is_big_endian { width - 1 - place } else { place };
        *byte = (changed >> (8 * shift)) as u8;
    }
}

fn read(field: &[u8], is_big_endian: bool) -> u64 {
    let append = |number: u64, byte: &u8| (number << 8) | u64::from(*byte);
    if is_big_endian { field.iter().fold(0, append) } else { field.iter().rev().fold(0, append) }
}

/// A run of bytes of a random place and length.
fn run(random: &mut Random, bytes: &[u8]) -> std::ops::Range<usize> {
    let start = random.below(bytes.len());
    let most = MOST_BYTES.min(bytes.len() - start);
    start..start + random.length(most)
}

fn remove(random: &mut Random, input: &mut Vec<u8>) {
    input.drain(run(random, input));
}

fn repeat(random: &mut Random, input: &mut Vec<u8>) {
    let copy = input[run(random, input)].repeat(1 + random.length(16));
    let at = random.below(input.len() + 1);
    input.splice(at..at, copy);
}

/// Puts a run of the other input into this one, or its whole end.
fn splice(random: &mut Random, input: &mut Vec<u8>, other: &[u8]) {
    if random.once_in(2) {
        input.truncate(random.below(input.len()));
        input.extend(&other[random.below(other.len())..]);
    } else {
        let copy = other[run(random, other)].to_vec();
        let at = random.below(input.len() + 1);
        let end = if random.once_in(2) { at } else { input.len().min(at + copy.len()) };
        input.splice(at..end, copy);
    }
}
