//! The block formats as kernels see them: 32 weights of the eight rows of a panel at a time.
//!
//! Whatever the format, weight `k` of row `n` is `scale[n] * q[n, k] + offset[n]`, with one or two groups
//! of scales in the 32 weights. Each format has its way from the bytes of a panel ([`super::layout`]) to
//! that form; the kernels know only the form.

use super::lanes::Lanes;

/// Weights of a row in a [`Block`].
pub(super) const BLOCK: usize = 32;

/// 32 weights of eight rows.
#[derive(Clone, Copy)]
pub(super) struct Block<L: Lanes> {
    /// The lanes are rows, and byte `i` of step `s` is weight `4 s + i`.
    pub(super) quants: [L::Ints; 8],
    /// Per group and row. Only the first, if the format has one group.
    pub(super) scales: [L::Floats; 2],
    /// Per group and row; meaningless if the format has no offset.
    pub(super) offsets: [L::Floats; 2],
}

/// A block format.
pub(super) trait Format {
    /// Blocks of 32 weights in a block of the format.
    const BLOCKS: usize = 1;
    /// Bytes of a block of the format of eight rows.
    const BYTES: usize;
    /// Bits of a quant; signed if 8, else unsigned.
    const BITS: u32;
    /// Groups of weights with their own scale in a [`Block`]: 1 or 2.
    const GROUPS: usize = 1;
    /// Whether weights have an offset.
    const OFFSET: bool = true;

    /// Block `b` of [`Format::BLOCKS`]. To be inlined with a constant `b`.
    fn block<L: Lanes>(l: L, bytes: &[u8], b: usize) -> Block<L>;
}

/// See the [formats' definitions](crate::formats::blocks).
pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// 32 weights of eight rows as products of 16-bit integers with one scale.
pub(super) struct WordBlock<L: Lanes> {
    /// The lanes are rows. Of step `s`, pair `2 s` is weights `4 s` and `4 s + 2`, the next one `4 s + 1` and
    /// `4 s + 3`.
    pub(super) pairs: [L::Ints; 16],
    /// Per row.
    pub(super) scale: L::Floats,
}

/// A format that is faster as 16-bit integers where unpacking costs little: it has no offset, and too many
/// bits for sums of many products in 16 bits.
pub(super) trait WordFormat: Format {
    /// As [`Format::block`]; the integers are at most 4096 in size.
    fn words<L: Lanes>(l: L, bytes: &[u8], b: usize) -> WordBlock<L>;
}

/// The even and the odd ones of a lane's four unsigned bytes as 16-bit integers.
#[inline(always)]
fn byte_pairs<L: Lanes>(l: L, bytes: L::Ints) -> [L::Ints; 2] {
    let low = l.splat_u32(0x00ff_00ff);
    [l.and(bytes, low), l.and(l.shift_right(bytes, 8), low)]
}

impl WordFormat for Q8_0 {
    #[inline(always)]
    fn words<L: Lanes>(l: L, bytes: &[u8], b: usize) -> WordBlock<L> {
        let block = Self::block(l, bytes, b);
        let mut pairs = [l.zero_ints(); 16];
        for (pairs, quants) in pairs.as_chunks_mut::<2>().0.iter_mut().zip(block.quants) {
            // q + 128 is unsigned.
            let shifted = byte_pairs(l, l.xor(quants, l.splat_u32(0x8080_8080)));
            for (pair, shifted) in pairs.iter_mut().zip(shifted) {
                *pair = l.add_words(shifted, l.splat_words([-128; 2]));
            }
        }
        WordBlock { pairs, scale: block.scales[0] }
    }
}

impl WordFormat for Q6K {
    #[inline(always)]
    fn words<L: Lanes>(l: L, bytes: &[u8], b: usize) -> WordBlock<L> {
        let packed = l.load_at(bytes, 1536 + 32 * (b / 2));
        let first = 2 * (b as u32 % 2);
        let scales = [byte_words(l, packed, first), byte_words(l, packed, first + 1)];
        let mut pairs = [l.zero_ints(); 16];
        for (step, (pairs, quants)) in
            pairs.as_chunks_mut::<2>().0.iter_mut().zip(Self::quants(l, bytes, b)).enumerate()
        {
            for (pair, quants) in pairs.iter_mut().zip(byte_pairs(l, quants)) {
                let centered = l.add_words(quants, l.splat_words([-32; 2]));
                *pair = l.multiply_words(centered, scales[step / 4]);
            }
        }
        WordBlock { pairs, scale: l.load_f16_at(bytes, 8 * 208) }
    }
}

/// Byte `byte` of every lane, with its sign, twice as a 16-bit integer.
#[inline(always)]
fn byte_words<L: Lanes>(l: L, bytes: L::Ints, byte: u32) -> L::Ints {
    let value = l.shift_right_signed(l.shift_left(bytes, 24 - 8 * byte), 24);
    l.or(l.and(value, l.splat_u32(0xffff)), l.shift_left(value, 16))
}

impl Format for Q8_0 {
    const BYTES: usize = 8 * 34;
    const BITS: u32 = 8;
    const OFFSET: bool = false;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], _b: usize) -> Block<L> {
        let mut quants = [l.zero_ints(); 8];
        for (step, quants) in quants.iter_mut().enumerate() {
            *quants = l.load_at(bytes, 16 + 32 * step);
        }
        let scale = l.load_f16_at(bytes, 0);
        Block { quants, scales: [scale; 2], offsets: [scale; 2] }
    }
}

impl Format for Q4_0 {
    const BYTES: usize = 8 * 18;
    const BITS: u32 = 4;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], _b: usize) -> Block<L> {
        let scale = l.load_f16_at(bytes, 0);
        let offset = l.multiply(scale, l.splat(-8.0));
        Block { quants: nibbles(l, bytes, 16), scales: [scale; 2], offsets: [offset; 2] }
    }
}

impl Format for Q4_1 {
    const BYTES: usize = 8 * 20;
    const BITS: u32 = 4;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], _b: usize) -> Block<L> {
        let (scale, offset) = (l.load_f16_at(bytes, 0), l.load_f16_at(bytes, 16));
        Block { quants: nibbles(l, bytes, 32), scales: [scale; 2], offsets: [offset; 2] }
    }
}

impl Format for Q5_0 {
    const BYTES: usize = 8 * 22;
    const BITS: u32 = 5;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], _b: usize) -> Block<L> {
        let scale = l.load_f16_at(bytes, 0);
        let offset = l.multiply(scale, l.splat(-16.0));
        let quants = with_fifth_bits(l, nibbles(l, bytes, 48), l.load_at(bytes, 16));
        Block { quants, scales: [scale; 2], offsets: [offset; 2] }
    }
}

impl Format for Q5_1 {
    const BYTES: usize = 8 * 24;
    const BITS: u32 = 5;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], _b: usize) -> Block<L> {
        let (scale, offset) = (l.load_f16_at(bytes, 0), l.load_f16_at(bytes, 16));
        let quants = with_fifth_bits(l, nibbles(l, bytes, 64), l.load_at(bytes, 32));
        Block { quants, scales: [scale; 2], offsets: [offset; 2] }
    }
}

impl Format for Q4K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 8 * 144;
    const BITS: u32 = 4;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], b: usize) -> Block<L> {
        let (scale, offset) = packed_scales(l, bytes, b);
        Block { quants: half_nibbles(l, bytes, 128, b), scales: [scale; 2], offsets: [offset; 2] }
    }
}

impl Format for Q5K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 8 * 176;
    const BITS: u32 = 5;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], b: usize) -> Block<L> {
        let (scale, offset) = packed_scales(l, bytes, b);
        let mut quants = half_nibbles(l, bytes, 384, b);
        for (step, quants) in quants.iter_mut().enumerate() {
            let fifth = bits_at(l, l.load_at(bytes, 128 + 32 * step), b, 4, 1);
            *quants = l.or(*quants, fifth);
        }
        Block { quants, scales: [scale; 2], offsets: [offset; 2] }
    }
}

impl Format for Q6K {
    const BLOCKS: usize = 8;
    const BYTES: usize = 8 * 210;
    const BITS: u32 = 6;
    const GROUPS: usize = 2;

    #[inline(always)]
    fn block<L: Lanes>(l: L, bytes: &[u8], b: usize) -> Block<L> {
        let quants = Self::quants(l, bytes, b);
        let d = l.load_f16_at(bytes, 8 * 208);
        let packed = l.load_at(bytes, 1536 + 32 * (b / 2));
        let first = 2 * (b as u32 % 2);
        let scales =
            [l.multiply(d, l.byte(packed, first, true)), l.multiply(d, l.byte(packed, first + 1, true))];
        let minus_32 = l.splat(-32.0);
        Block { quants, scales, offsets: [l.multiply(scales[0], minus_32), l.multiply(scales[1], minus_32)] }
    }
}

impl Q6K {
    #[inline(always)]
    fn quants<L: Lanes>(l: L, bytes: &[u8], b: usize) -> [L::Ints; 8] {
        let (half, quarter) = (b / 4, b % 4);
        let mut quants = [l.zero_ints(); 8];
        for (step, quants) in quants.iter_mut().enumerate() {
            let low = l.load_at(bytes, 32 * (16 * half + 8 * (quarter % 2) + step));
            let high = l.load_at(bytes, 1024 + 32 * (8 * half + step));
            *quants = l.or(bits_at(l, low, 4 * (quarter / 2), 0, 4), bits_at(l, high, 2 * quarter, 4, 2));
        }
        quants
    }
}

/// `count` bits of every byte, from bit `from` to bit `to`. The bits must not leave their byte.
#[inline(always)]
fn bits_at<L: Lanes>(l: L, bytes: L::Ints, from: usize, to: usize, count: u32) -> L::Ints {
    let moved = match from.cmp(&to) {
        std::cmp::Ordering::Less => l.shift_left(bytes, (to - from) as u32),
        std::cmp::Ordering::Equal => bytes,
        std::cmp::Ordering::Greater => l.shift_right(bytes, (from - to) as u32),
    };
    let mask = ((1_u32 << count) - 1) << to;
    l.and(moved, l.splat_u32(mask * 0x0101_0101))
}

/// The steps of a block whose first half are the low and whose second half the high halves of 16 bytes a
/// row.
#[inline(always)]
fn nibbles<L: Lanes>(l: L, bytes: &[u8], at: usize) -> [L::Ints; 8] {
    let mut quants = [l.zero_ints(); 8];
    let (low, high) = quants.split_at_mut(4);
    for (step, (low, high)) in low.iter_mut().zip(high).enumerate() {
        let both = l.load_at(bytes, at + 32 * step);
        *low = bits_at(l, both, 0, 0, 4);
        *high = bits_at(l, both, 4, 0, 4);
    }
    quants
}

/// Block `b` of a K-format: the low (even `b`) or high halves of 32 bytes a row.
#[inline(always)]
fn half_nibbles<L: Lanes>(l: L, bytes: &[u8], at: usize, b: usize) -> [L::Ints; 8] {
    let mut quants = [l.zero_ints(); 8];
    for (step, quants) in quants.iter_mut().enumerate() {
        *quants = bits_at(l, l.load_at(bytes, at + 32 * (8 * (b / 2) + step)), 4 * (b % 2), 0, 4);
    }
    quants
}

/// Adds the fifth bits: those of step `s` are bit `s` of every byte.
#[inline(always)]
fn with_fifth_bits<L: Lanes>(l: L, mut quants: [L::Ints; 8], fifth: L::Ints) -> [L::Ints; 8] {
    for (step, quants) in quants.iter_mut().enumerate() {
        *quants = l.or(*quants, bits_at(l, fifth, step, 4, 1));
    }
    quants
}

/// Scale and offset of block `b` of Q4_K and Q5_K, of the 6-bit numbers that the format's definition
/// describes.
#[inline(always)]
fn packed_scales<L: Lanes>(l: L, bytes: &[u8], b: usize) -> (L::Floats, L::Floats) {
    let (d, d_min) = (l.load_f16_at(bytes, 0), l.load_f16_at(bytes, 16));
    let (first, second) = (l.load_at(bytes, 32), l.load_at(bytes, 64));
    let byte = 8 * (b as u32 % 4);
    let (scale, minimum) = if b < 4 {
        let six_bits = l.splat_u32(63);
        (l.and(l.shift_right(first, byte), six_bits), l.and(l.shift_right(second, byte), six_bits))
    } else {
        let third = l.load_at(bytes, 96);
        (join_bits(l, third, byte, first, byte + 2), join_bits(l, third, byte + 4, second, byte + 2))
    };
    let minus_d_min = l.multiply(d_min, l.splat(-1.0));
    (l.multiply(d, l.to_floats(scale)), l.multiply(minus_d_min, l.to_floats(minimum)))
}

/// The 6-bit numbers of which `low` shifted has the low four bits and `high` shifted the bits 4 and 5.
#[inline(always)]
fn join_bits<L: Lanes>(l: L, low: L::Ints, low_shift: u32, high: L::Ints, high_shift: u32) -> L::Ints {
    let low = l.and(l.shift_right(low, low_shift), l.splat_u32(0x0f));
    l.or(low, l.and(l.shift_right(high, high_shift), l.splat_u32(0x30)))
}
