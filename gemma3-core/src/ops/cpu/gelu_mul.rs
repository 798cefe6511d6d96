//! The gated activation of the feed-forward layer.
//!
//! `tanh` is computed through one exponential, `0.5 (1 + tanh(z)) = 1 / (1 + exp(-2z))`.

use pulp::{Arch, NullaryFnOnce};

use super::exp::exp;

/// `out = gelu_tanh(gate) * up`, elementwise, on the calling thread.
pub(super) fn gelu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(Piece { gate, up, out });
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

/// Saturates where it has reached 0 or `x`.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let z = SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * z))
}
