//! Layer normalization: mean, variance around it, and scaling, each a pass over a row that stays in the
//! first-level cache.

use pulp::{Arch, Simd, WithSimd};

use super::rms_norm::each_row;

/// `out = (x - mean) * rsqrt(variance + eps) * weight + bias` for each row of `x`; the width is
/// `weight.len()`.
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32], eps: f32) {
    let arch = Arch::new();
    each_row(out, x, weight.len(), |out, x| arch.dispatch(Row { x, weight, bias, out, eps }));
}

struct Row<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    out: &'a mut [f32],
    eps: f32,
}

impl WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.x.len() as f32;
        let (head, tail) = S::as_simd_f32s(self.x);
        let mut sums = simd.splat_f32s(0.0);
        for v in head {
            sums = simd.add_f32s(sums, *v);
        }
        let mean = (simd.reduce_sum_f32s(sums) + tail.iter().sum::<f32>()) / width;
        // Not the difference of mean squares, which cancels where the mean is large.
        let means = simd.splat_f32s(mean);
        let mut squares = simd.splat_f32s(0.0);
        for v in head {
            let centred = simd.sub_f32s(*v, means);
            squares = simd.mul_add_e_f32s(centred, centred, squares);
        }
        let tail: f32 = tail.iter().map(|v| (v - mean) * (v - mean)).sum();
        let variance = (simd.reduce_sum_f32s(squares) + tail) / width;
        let inverse = 1.0 / (variance + self.eps).sqrt();
        let parameters = self.weight.iter().zip(self.bias);
        for ((out, x), (weight, bias)) in self.out.iter_mut().zip(self.x).zip(parameters) {
            *out = (x - mean) * inverse * weight + bias;
        }
    }
}
