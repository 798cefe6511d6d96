//! Words of a packed matrix -> weights, on the device.
//!
//! A weight is `scale * q + minimum`. Kernels sum `q * x` first and scale the sums of a block, so what is
//! here stays apart: [`quad`] gives `q` of four weights, exactly, and [`scale_pair`] what they share. Small
//! integers become floats without a conversion instruction: the bits are laid into the mantissa of 2^23, and
//! the 2^23 is taken off by the multiply-add that also shifts them down.

use cubecl::prelude::*;
use half::f16;

use super::layout::{Layout, Scales};
use crate::formats::TensorFormat;

/// 2^23: a float whose last bit counts as one.
const MAGIC: u32 = 0x4b00_0000;
/// The low halves of the bytes of a word.
const LOW_NIBBLES: u32 = 0x0f0f_0f0f;

/// Four weights as floats.
pub(crate) type Quad = Vector<f32, Const<4>>;

/// The number in `bits` bits of `word` from bit `position` on, less `bias`. `position + bits <= 23`.
#[cube]
fn field(word: u32, #[comptime] position: usize, #[comptime] bits: usize, #[comptime] bias: usize) -> f32 {
    let mask = comptime!(((1u32 << bits) - 1) << position);
    let shifted = f32::reinterpret((word & mask) | MAGIC);
    let down = comptime!(1.0 / (1u32 << position) as f32);
    let offset = comptime!(-(((1u32 << (23 - position)) + bias as u32) as f32));
    fma(shifted, down, offset)
}

/// The four bytes of a word.
#[cube]
fn bytes(word: u32, #[comptime] bias: usize) -> Quad {
    let high = word >> 16u32;
    let mut quad = Quad::empty();
    quad.insert(0usize, field(word, 0usize, 8usize, bias));
    quad.insert(1usize, field(word, 8usize, 8usize, bias));
    quad.insert(2usize, field(high, 0usize, 8usize, bias));
    quad.insert(3usize, field(high, 8usize, 8usize, bias));
    quad
}

/// The four nibbles of the low or the high half of a word.
#[cube]
fn nibbles(word: u32, #[comptime] half: usize, #[comptime] bias: usize) -> Quad {
    let word = if comptime!(half == 0) { word } else { word >> 16u32 };
    let mut quad = Quad::empty();
    #[unroll]
    for i in 0..4usize {
        quad.insert(i, field(word, comptime!(4 * i), 4usize, bias));
    }
    quad
}

/// Weights `4 * half..4 * half + 4` of a word with four low bits each, and of their high bits, which begin at
/// the lowest bit of each byte of `high`.
#[cube]
fn with_high_bits(
    word: u32,
    high: u32,
    #[comptime] half: usize,
    #[comptime] high_bits: usize,
    #[comptime] bias: usize,
) -> Quad {
    let mask = comptime!(((1u32 << high_bits) - 1) * 0x1010_1010);
    // Weights 0, 2, 4, 6 in bytes, and 1, 3, 5, 7.
    let even = (word & LOW_NIBBLES) | ((high << 4u32) & mask);
    let odd = ((word >> 4u32) & LOW_NIBBLES) | ((high << comptime!(4 - high_bits as u32)) & mask);
    let even = if comptime!(half == 0) { even } else { even >> 16u32 };
    let odd = if comptime!(half == 0) { odd } else { odd >> 16u32 };
    let mut quad = Quad::empty();
    quad.insert(0usize, field(even, 0usize, 8usize, bias));
    quad.insert(1usize, field(odd, 0usize, 8usize, bias));
    quad.insert(2usize, field(even, 8usize, 8usize, bias));
    quad.insert(3usize, field(odd, 8usize, 8usize, bias));
    quad
}

/// The f16 in the low 16 bits of a word, exactly. Subnormal scales occur, and not every device has f16 or
/// keeps subnormal f32, so neither is used.
#[cube]
pub(crate) fn half_to_f32(bits: u32) -> f32 {
    let magnitude = (bits & 0x7fffu32) << 13u32;
    let subnormal = magnitude < 0x0080_0000u32;
    // A subnormal half is m * 2^-24 = (1 + m / 1024) * 2^-14 - 2^-14.
    let rebias = select(subnormal, 0x3880_0000u32, 0x3800_0000u32);
    let excess = select(subnormal, 6.103_515_6e-5f32, 0.0f32);
    let value = f32::reinterpret(magnitude + rebias) - excess;
    f32::reinterpret(u32::reinterpret(value) | ((bits & 0x8000u32) << 16u32))
}

/// [`half_to_f32`] in one instruction, where the device has f16 and 16-bit words.
#[cube]
pub(crate) fn half_to_f32_by(bits: u32, #[comptime] native: bool) -> f32 {
    if comptime!(native) { f32::cast_from(f16::reinterpret(u16::cast_from(bits))) } else { half_to_f32(bits) }
}

/// The 16 bits at element `index` of which `word` holds two.
#[cube]
fn half_of(word: u32, index: usize) -> u32 {
    (word >> ((index as u32 & 1u32) << 4u32)) & 0xffffu32
}

/// Words of a row's side that belong to an item of `words` words of its quants.
pub(crate) const fn side_words_of_item(layout: &Layout, words: usize) -> usize {
    let scales = match layout.scales() {
        Scales::None => 0,
        Scales::Half | Scales::HalfPair => 1,
        Scales::BytePair | Scales::SignedBytes => 2,
    };
    high_words_of_item(layout, words) + scales
}

/// High words of an item: one serves `4 / high_bits` words of quants.
const fn high_words_of_item(layout: &Layout, words: usize) -> usize {
    (words * layout.high_bits()).div_ceil(4)
}

/// Quads of an item of `words` words that share scale and minimum.
pub(crate) const fn quads_of_span(layout: &Layout, words: usize) -> usize {
    let quads = words * layout.weights_per_word() / 4;
    match layout.scales() {
        Scales::SignedBytes if quads > 4 => 4,
        _ => quads,
    }
}

/// Reads what belongs to item `item` of a row into `words`, from `start` on.
#[cube]
pub(crate) fn fetch_side<N: Size>(
    side: &[u32],
    row: usize,
    item: usize,
    words: &mut Array<u32>,
    #[comptime] start: usize,
    #[comptime] layout: Layout,
) {
    let item_words = N::value();
    let base = row * comptime!(layout.side_words());
    let first_word = item * item_words;
    let high_words = comptime!(high_words_of_item(&layout, item_words));
    if comptime!(high_words > 0) {
        let first_high = first_word / comptime!(4 / layout.high_bits());
        #[unroll]
        for i in 0..high_words {
            words[comptime!(start + i)] = side[base + first_high + i];
        }
    }
    let block = first_word / comptime!(32 / layout.weights_per_word());
    let scales = base + comptime!(layout.scales_start());
    let super_scales = base + comptime!(layout.super_scales_start());
    let at = comptime!(start + high_words);
    match comptime!(layout.scales()) {
        Scales::None => {}
        Scales::Half => {
            words[at] = side[scales + block / 2];
        }
        Scales::HalfPair => {
            words[at] = side[scales + block];
        }
        Scales::BytePair => {
            words[at] = side[scales + block / 2];
            words[comptime!(at + 1)] = side[super_scales + block / 8];
        }
        Scales::SignedBytes => {
            words[at] = side[scales + block / 2];
            words[comptime!(at + 1)] = side[super_scales + block / 16];
        }
    }
}

/// Scale and minimum of span `span` of an item whose side words begin at `start`.
#[cube]
pub(crate) fn scale_pair<N: Size>(
    words: &Array<u32>,
    item: usize,
    #[comptime] span: usize,
    #[comptime] start: usize,
    #[comptime] layout: Layout,
    #[comptime] native: bool,
) -> (f32, f32) {
    let item_words = N::value();
    let first_word = item * item_words;
    let at = comptime!(start + high_words_of_item(&layout, item_words));
    let block = first_word / comptime!(32 / layout.weights_per_word());
    match comptime!(layout.scales()) {
        Scales::None => (f32::new(1.0), f32::new(0.0)),
        Scales::Half => (half_to_f32_by(half_of(words[at], block), native), f32::new(0.0)),
        Scales::HalfPair => {
            (half_to_f32_by(words[at] & 0xffffu32, native), half_to_f32_by(words[at] >> 16u32, native))
        }
        Scales::BytePair => {
            let bytes = half_of(words[at], block);
            let pair = words[comptime!(at + 1)];
            let scale = half_to_f32_by(pair & 0xffffu32, native) * field(bytes, 0usize, 8usize, 0usize);
            let minimum = half_to_f32_by(pair >> 16u32, native) * field(bytes, 8usize, 8usize, 0usize);
            (scale, -minimum)
        }
        Scales::SignedBytes => {
            // Bytes with the sign bit turned are biased by 128.
            let bytes = half_of(words[at], block) ^ 0x8080u32;
            // An item of one or two words lies within one half of the block of four.
            let second = if comptime!(item_words == 4) {
                comptime!(span as u32).runtime()
            } else {
                (first_word as u32 >> 1u32) & 1u32
            };
            let byte = (bytes >> (second << 3u32)) & 0xffu32;
            let scale = half_to_f32_by(half_of(words[comptime!(at + 1)], block / 8), native);
            (scale * field(byte, 0usize, 8usize, 128usize), f32::new(0.0))
        }
    }
}

/// Quad `index` of an item, as stored: without scale and minimum. The item's words of its side begin at
/// `start` of `side`.
#[cube]
pub(crate) fn quad<N: Size>(
    quants: Vector<u32, N>,
    side: &Array<u32>,
    item: usize,
    #[comptime] index: usize,
    #[comptime] start: usize,
    #[comptime] layout: Layout,
    #[comptime] native: bool,
) -> Quad {
    let high_bits = comptime!(layout.high_bits());
    let bias = comptime!(bias(layout.format));
    let half = comptime!(index % 2);
    match comptime!(layout.format) {
        TensorFormat::F32 => {
            let mut quad = Quad::empty();
            #[unroll]
            for i in 0..4usize {
                quad.insert(i, f32::reinterpret(quants.extract(comptime!(4 * index + i))));
            }
            quad
        }
        TensorFormat::BF16 => {
            let mut quad = Quad::empty();
            #[unroll]
            for i in 0..2usize {
                let word = quants.extract(comptime!(2 * index + i));
                quad.insert(comptime!(2 * i), f32::reinterpret(word << 16u32));
                quad.insert(comptime!(2 * i + 1), f32::reinterpret(word & 0xffff_0000u32));
            }
            quad
        }
        TensorFormat::F16 => {
            let mut quad = Quad::empty();
            #[unroll]
            for i in 0..2usize {
                let word = quants.extract(comptime!(2 * index + i));
                quad.insert(comptime!(2 * i), half_to_f32_by(word & 0xffffu32, native));
                quad.insert(comptime!(2 * i + 1), half_to_f32_by(word >> 16u32, native));
            }
            quad
        }
        TensorFormat::Q8_0 => bytes(quants.extract(index), bias),
        TensorFormat::Q4_0 | TensorFormat::Q4_1 | TensorFormat::Q4_K => {
            nibbles(quants.extract(comptime!(index / 2)), half, bias)
        }
        TensorFormat::Q5_0 | TensorFormat::Q5_1 | TensorFormat::Q5_K | TensorFormat::Q6_K => {
            let word = comptime!(index / 2);
            let words_of_high = comptime!(4 / high_bits);
            let high = side[comptime!(start + word / words_of_high)];
            let place = (item * N::value() + word) as u32 & comptime!(words_of_high as u32 - 1);
            let shift = place * comptime!(2 * high_bits as u32);
            with_high_bits(quants.extract(word), high >> shift, half, high_bits, bias)
        }
    }
}

/// Two numbers of f16.
pub(crate) type HalfPair = Vector<f16, Const<2>>;

/// 1,024 twice in f16, whose last bit counts as one.
const HALF_MAGIC: u32 = 0x6400_6400;

/// Whether [`half_quad`] has weights of a format.
pub(crate) const fn has_half_quads(format: TensorFormat) -> bool {
    matches!(format, TensorFormat::Q4_0 | TensorFormat::Q8_0)
}

/// What [`quad`] gives, in f16, exactly: fewer instructions, two numbers each, where the device has f16. Of
/// [some formats](has_half_quads): their weights are f16 times their scales as they are, so that a product of the two is
/// rounded as one of f32 would be.
#[cube]
pub(crate) fn half_quad<N: Size>(
    quants: Vector<u32, N>,
    #[comptime] index: usize,
    #[comptime] layout: Layout,
) -> (HalfPair, HalfPair) {
    if comptime!(matches!(layout.format, TensorFormat::Q4_0)) {
        let word = quants.extract(comptime!(index / 2));
        let half = comptime!(index % 2);
        // Four nibbles twice, so that of two neighbors one lies in each half, the second of them 4 bits up.
        let twice = if comptime!(half == 0) {
            (word & 0xffffu32) | (word << 16u32)
        } else {
            (word >> 16u32) | (word & 0xffff_0000u32)
        };
        let mut factor = HalfPair::new(f16::new(1.0));
        factor.insert(1usize, f16::new(0.0625));
        let mut offset = HalfPair::new(f16::new(-1032.0));
        offset.insert(1usize, f16::new(-72.0));
        let first = HalfPair::reinterpret((twice & 0x00f0_000fu32) | HALF_MAGIC);
        let second = HalfPair::reinterpret(((twice >> 8u32) & 0x00f0_000fu32) | HALF_MAGIC);
        (fma(first, factor, offset), fma(second, factor, offset))
    } else {
        let word = quants.extract(index);
        let offset = HalfPair::new(f16::new(1152.0));
        let first = HalfPair::reinterpret(byte_pair(word) | HALF_MAGIC);
        let second = HalfPair::reinterpret(byte_pair(word >> 16u32) | HALF_MAGIC);
        (first - offset, second - offset)
    }
}

/// The two low bytes of a word, one in each half.
#[cube]
fn byte_pair(word: u32) -> u32 {
    (word & 0xffu32) | ((word << 8u32) & 0x00ff_0000u32)
}

/// The eight weights of two words of bytes, or of one word of nibbles, as two words of signed bytes: what
/// [`dp4a`] takes. Nibbles come as the even ones and the odd ones. Bytes are [`integer_factor`] times the
/// weights that [`quad`] gives.
#[cube]
pub(crate) fn integer_octet<N: Size>(
    quants: Vector<u32, N>,
    side: &Array<u32>,
    item: usize,
    #[comptime] index: usize,
    #[comptime] start: usize,
    #[comptime] layout: Layout,
) -> (u32, u32) {
    let high_bits = comptime!(layout.high_bits());
    match comptime!(layout.format) {
        TensorFormat::Q8_0 => {
            let first = quants.extract(comptime!(2 * index)) ^ 0x8080_8080u32;
            let second = quants.extract(comptime!(2 * index + 1)) ^ 0x8080_8080u32;
            (first, second)
        }
        TensorFormat::Q4_0 => {
            // A nibble less 8, in the upper half of a byte: its highest bit turned.
            let word = quants.extract(index);
            let even = ((word << 4u32) & 0xf0f0_f0f0u32) ^ 0x8080_8080u32;
            let odd = (word & 0xf0f0_f0f0u32) ^ 0x8080_8080u32;
            (even, odd)
        }
        TensorFormat::Q5_0 | TensorFormat::Q5_1 | TensorFormat::Q5_K | TensorFormat::Q6_K => {
            let words_of_high = comptime!(4 / high_bits);
            let high = side[comptime!(start + index / words_of_high)];
            let place = (item * N::value() + index) as u32 & comptime!(words_of_high as u32 - 1);
            let high = high >> (place * comptime!(2 * high_bits as u32));
            let mask = comptime!(((1u32 << high_bits) - 1) * 0x1010_1010);
            let word = quants.extract(index);
            let even = (word & LOW_NIBBLES) | ((high << 4u32) & mask);
            let odd = ((word >> 4u32) & LOW_NIBBLES) | ((high << comptime!(4 - high_bits as u32)) & mask);
            let bias = comptime!(bias(layout.format) as u32 * 0x0101_0101);
            if comptime!(bias > 0) {
                // The highest bits keep bytes from borrowing of each other.
                let even = ((even | 0x8080_8080u32) - bias) ^ 0x8080_8080u32;
                let odd = ((odd | 0x8080_8080u32) - bias) ^ 0x8080_8080u32;
                (even, odd)
            } else {
                (even, odd)
            }
        }
        _ => {
            let word = quants.extract(index);
            (word & LOW_NIBBLES, (word >> 4u32) & LOW_NIBBLES)
        }
    }
}

/// What the bytes of [`integer_octet`] are multiplied by.
pub(crate) const fn integer_factor(format: TensorFormat) -> f32 {
    match format {
        TensorFormat::Q4_0 => 16.0,
        _ => 1.0,
    }
}

/// What is stored for a weight of zero, of the formats that have no minimum.
const fn bias(format: TensorFormat) -> usize {
    match format {
        TensorFormat::Q8_0 => 128,
        TensorFormat::Q4_0 => 8,
        TensorFormat::Q5_0 => 16,
        TensorFormat::Q6_K => 32,
        _ => 0,
    }
}
