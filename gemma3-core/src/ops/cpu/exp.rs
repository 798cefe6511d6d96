//! The exponential as a polynomial that the compiler turns into SIMD.

/// `e^x` to within 2 units in the last place where the result is a normal number; saturates at the
/// ends (`e^-87` and `e^88`), which is where its callers have long reached their limits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // e^x = 2^n e^r with n the nearest integer to x / ln 2 and |r| <= ln 2 / 2. ln 2 is split in
    // two so that n * ln2_high is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and subtracting 1.5 * 2^23 rounds an f32 of small magnitude to an integer.
    const ROUND: f32 = 12_582_912.0;
    // Not `clamp`: a NaN must stay a NaN.
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor to the 7th power: the remainder at |r| = 0.347 is 5e-9, below f32's resolution.
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // 2^n by its exponent bits; n is within -126..=127 (a NaN's bits are irrelevant: p is NaN).
    let scale = f32::from_bits(((n as i32 + 127) as u32) << 23);
    p * scale
}
