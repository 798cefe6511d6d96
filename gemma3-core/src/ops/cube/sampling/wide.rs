//! Weights of tokens as whole numbers of 64 bits, in pairs of words.
//!
//! Sums of whole numbers don't depend on the order of their terms, so that cubes and atomics may add them up
//! as they come, and every device draws the same token of the same weights.

use cubecl::prelude::*;

/// Bits behind the point: the most probable token weighs 2^44, and 2^19 of them together less than 2^64.
const FRACTION_BITS: u32 = 44;
/// Weights below the largest logit by this (`44 ln 2`) or more vanish.
pub(crate) const VANISHING: f32 = 30.498;

/// A whole number of 64 bits.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Wide {
    pub low: u32,
    pub high: u32,
}

/// How many tokens, and what they weigh.
#[derive(CubeType, Clone, Copy)]
pub(crate) struct Sum {
    pub count: u32,
    pub low: u32,
    pub high: u32,
}

/// `exp(-distance)` for a distance from 0; 0 from [`VANISHING`] on and for NaN.
///
/// `exp(-d) = 2^-n exp(n ln 2 - d)` with the nearest n, and a polynomial for what is left: to about 1e-7,
/// where devices promise less of their own exponential.
#[cube]
pub(crate) fn weight(distance: f32) -> Wide {
    let valid = distance >= 0.0f32 && distance < VANISHING;
    let d = select(valid, distance, 0.0f32);
    let n = u32::cast_from(fma(d, core::f32::consts::LOG2_E, 0.5f32));
    let count = f32::cast_from(n);
    // ln 2 in two parts, of which the first has few enough bits for an exact product.
    let mut r = fma(count, 0.693_359_375f32, -d);
    r = fma(count, -2.121_944_4e-4f32, r);
    let mut m = fma(r, 1.984_127e-4f32, 1.388_888_9e-3f32);
    m = fma(m, r, 8.333_333e-3f32);
    m = fma(m, r, 4.166_666_7e-2f32);
    m = fma(m, r, 0.166_666_67f32);
    m = fma(m, r, 0.5f32);
    m = fma(m, r, 1.0f32);
    m = fma(m, r, 1.0f32);
    // Less than 2^25, and exact: m is at least 1/2.
    let mantissa = u32::cast_from(m * 16_777_216.0f32);
    let whole = comptime!(FRACTION_BITS - 24).runtime();
    let left = select(n < whole, whole - n, 0u32);
    let right = select(n > whole, n - whole, 0u32);
    let low = (mantissa << left) >> right;
    let high = select(left == 0u32, 0u32, mantissa >> ((32u32 - left) & 31u32));
    Wide { low: select(valid, low, 0u32), high: select(valid, high, 0u32) }
}

#[cube]
pub(crate) fn add(a: &Wide, b: &Wide) -> Wide {
    let low = a.low + b.low;
    let carry = select(low < b.low, 1u32, 0u32);
    Wide { low, high: a.high + b.high + carry }
}

/// `a - b` for `b` up to `a`.
#[cube]
pub(crate) fn subtract(a: &Wide, b: &Wide) -> Wide {
    let borrow = select(a.low < b.low, 1u32, 0u32);
    Wide { low: a.low - b.low, high: a.high - b.high - borrow }
}

#[cube]
pub(crate) fn less(a: &Wide, b: &Wide) -> bool {
    a.high < b.high || (a.high == b.high && a.low < b.low)
}

/// The upper 64 bits of a product: a number times a fraction of 2^64.
#[cube]
pub(crate) fn fraction_of(a: &Wide, fraction: &Wide) -> Wide {
    let cross = a.low * fraction.high;
    let other = a.high * fraction.low;
    let middle = u32::mul_hi(a.low, fraction.low) + cross;
    let carry = select(middle < cross, 1u32, 0u32);
    let sum = middle + other;
    let carry = carry + select(sum < other, 1u32, 0u32);
    let upper = Wide { low: a.high * fraction.high, high: u32::mul_hi(a.high, fraction.high) };
    let upper = add(&upper, &Wide { low: u32::mul_hi(a.low, fraction.high), high: 0u32 });
    let upper = add(&upper, &Wide { low: u32::mul_hi(a.high, fraction.low), high: 0u32 });
    add(&upper, &Wide { low: carry, high: 0u32 })
}

#[cube]
pub(crate) fn weight_of(sum: &Sum) -> Wide {
    Wide { low: sum.low, high: sum.high }
}

#[cube]
pub(crate) fn add_sums(a: &Sum, b: &Sum) -> Sum {
    let weight = add(&weight_of(a), &weight_of(b));
    Sum { count: a.count + b.count, low: weight.low, high: weight.high }
}

#[cube]
pub(crate) fn subtract_sums(a: &Sum, b: &Sum) -> Sum {
    let weight = subtract(&weight_of(a), &weight_of(b));
    Sum { count: a.count - b.count, low: weight.low, high: weight.high }
}

/// Adds to three words that others add to at the same time: a count and a weight, low word first. The sum of
/// the carries is the carry of the sum.
#[cube]
pub(crate) fn accumulate(words: &[Atomic<u32>], at: usize, sum: &Sum) {
    words[at].fetch_add(sum.count);
    accumulate_weight(words, at + 1, &Wide { low: sum.low, high: sum.high });
}

#[cube]
pub(crate) fn accumulate_weight(words: &[Atomic<u32>], at: usize, weight: &Wide) {
    let before = words[at].fetch_add(weight.low);
    let carry = select(before + weight.low < before, 1u32, 0u32);
    let high = weight.high + carry;
    if high > 0u32 {
        words[at + 1].fetch_add(high);
    }
}

/// Bits that order as floats do: for all but NaN, `order(a) < order(b)` if `a < b`.
#[cube]
pub(crate) fn order(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    select(bits >> 31u32 == 1u32, !bits, bits | 0x8000_0000u32)
}

/// The number with these ordered bits.
#[cube]
pub(crate) fn from_order(order: u32) -> f32 {
    f32::reinterpret(select(order >> 31u32 == 1u32, order & 0x7fff_ffffu32, !order))
}
