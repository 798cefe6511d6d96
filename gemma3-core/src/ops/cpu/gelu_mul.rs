//! The gated activation of the feed-forward layer.
//!
//! `tanh` is computed through one exponential, `0.5 (1 + tanh(z)) = 1 / (1 + exp(-2z))`, with the
//! exponential as a polynomial that the compiler turns into SIMD.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Elements below which one thread does it all: waking others would take longer.
const MIN_TASK_ELEMENTS: usize = 8 * 1024;

/// `out = gelu_tanh(gate) * up`, elementwise.
pub(super) fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let arch = Arch::new();
    out.par_chunks_mut(MIN_TASK_ELEMENTS)
        .zip(gate.par_chunks(MIN_TASK_ELEMENTS))
        .zip(up.par_chunks(MIN_TASK_ELEMENTS))
        .for_each(|((out, gate), up)| arch.dispatch(Piece { gate, up, out }));
}

struct Piece<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl NullaryFnOnce for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(self.up) {
            *out = gelu_tanh(*gate) * up;
        }
    }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let z = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * z))
}

/// `e^x` to within 2 units in the last place where the result is a normal number; saturates at the
/// ends, where [`gelu_tanh`] has long reached 0 or `x`.
#[inline(always)]
fn exp(x: f32) -> f32 {
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
