//! RMS normalization, one pass to sum and one to scale, rows over the threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Elements below which one thread does it all: waking others would take longer.
const MIN_TASK_ELEMENTS: usize = 16 * 1024;

/// `out = x * rsqrt(mean(x²) + eps) * scale` for each row of `x`; the width is `scale.len()`.
pub(super) fn rms_norm(x: &[f32], scale: &[f32], out: &mut [f32], eps: f32) {
    let arch = Arch::new();
    each_row(out, x, scale.len(), |out, x| arch.dispatch(Row { x, scale, out, eps }));
}

/// `y = residual + y * rsqrt(mean(y²) + eps) * scale` for each row of `y`; the width is `scale.len()`.
pub(super) fn rms_norm_add(y: &mut [f32], scale: &[f32], residual: &[f32], eps: f32) {
    let arch = Arch::new();
    each_row(y, residual, scale.len(), |y, residual| arch.dispatch(AddedRow { y, scale, residual, eps }));
}

/// Has `make` make each row of `out` with that of `x`, over the threads.
pub(super) fn each_row(out: &mut [f32], x: &[f32], width: usize, make: impl Fn(&mut [f32], &[f32]) + Sync) {
    if width == 0 {
        return;
    }
    let task = width * MIN_TASK_ELEMENTS.div_ceil(width);
    out.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(out, x)| {
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            make(out, x);
        }
    });
}

struct Row<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    out: &'a mut [f32],
    eps: f32,
}

impl WithSimd for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let inverse_rms = inverse_rms(simd, self.x, self.eps);
        for ((out, x), scale) in self.out.iter_mut().zip(self.x).zip(self.scale) {
            *out = x * inverse_rms * scale;
        }
    }
}

struct AddedRow<'a> {
    y: &'a mut [f32],
    scale: &'a [f32],
    residual: &'a [f32],
    eps: f32,
}

impl WithSimd for AddedRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let inverse_rms = inverse_rms(simd, self.y, self.eps);
        for ((y, residual), scale) in self.y.iter_mut().zip(self.residual).zip(self.scale) {
            *y = residual + *y * inverse_rms * scale;
        }
    }
}

#[inline(always)]
fn inverse_rms<S: Simd>(simd: S, x: &[f32], eps: f32) -> f32 {
    let (head, tail) = S::as_simd_f32s(x);
    let mut sums = simd.splat_f32s(0.0);
    for v in head {
        sums = simd.mul_add_e_f32s(*v, *v, sums);
    }
    let tail: f32 = tail.iter().map(|v| v * v).sum();
    let mean_square = (simd.reduce_sum_f32s(sums) + tail) / x.len() as f32;
    1.0 / (mean_square + eps).sqrt()
}
