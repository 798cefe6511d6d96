//! Normalization of heads and rotary embedding in one pass, tokens over the threads.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Elements below which one thread does it all: waking others would take longer.
const MIN_TASK_ELEMENTS: usize = 16 * 1024;

/// Normalizes each head of `x` \[tokens, heads, head_dim\] (`x * rsqrt(mean(x²) + eps) * scale`, with `scale`
/// \[head_dim\]), turns it by `cos` and `sin` \[tokens, head_dim / 2\], and multiplies it by `factor`.
///
/// # Panics
///
/// When sizes don't fit each other: a mistake of this crate.
pub(super) fn norm_rope(
    x: &mut [f32],
    scale: &[f32],
    eps: f32,
    cos: &[f32],
    sin: &[f32],
    heads: usize,
    factor: f32,
) {
    let (token, half) = (heads * scale.len(), scale.len() / 2);
    if x.is_empty() || token == 0 {
        return;
    }
    assert!(scale.len().is_multiple_of(2), "pairs to turn");
    let angles = x.len() / token * half;
    assert!(x.len().is_multiple_of(token) && cos.len() == angles && sin.len() == angles, "angles of tokens");
    let arch = Arch::new();
    let tokens = MIN_TASK_ELEMENTS.div_ceil(token);
    let task = |(x, (cos, sin)): (&mut [f32], (&[f32], &[f32]))| {
        arch.dispatch(Tokens { x, scale, eps, cos, sin, token, factor });
    };
    if x.len() <= tokens * token {
        return task((x, (cos, sin)));
    }
    x.par_chunks_mut(tokens * token)
        .zip(cos.par_chunks(tokens * half).zip(sin.par_chunks(tokens * half)))
        .for_each(task);
}

struct Tokens<'a> {
    x: &'a mut [f32],
    scale: &'a [f32],
    eps: f32,
    cos: &'a [f32],
    sin: &'a [f32],
    /// Elements of a token.
    token: usize,
    factor: f32,
}

impl WithSimd for Tokens<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let half = self.scale.len() / 2;
        let angles = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        let (scale, second_scale) = self.scale.split_at(half);
        for (token, (cos, sin)) in self.x.chunks_exact_mut(self.token).zip(angles) {
            for head in token.chunks_exact_mut(2 * half) {
                let inverse_rms = 1.0 / (mean_square(simd, head) + self.eps).sqrt();
                let (first, second) = head.split_at_mut(half);
                for j in 0..half {
                    let a = first[j] * inverse_rms * scale[j];
                    let b = second[j] * inverse_rms * second_scale[j];
                    first[j] = (a * cos[j] - b * sin[j]) * self.factor;
                    second[j] = (b * cos[j] + a * sin[j]) * self.factor;
                }
            }
        }
    }
}

#[inline(always)]
fn mean_square<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (head, tail) = S::as_simd_f32s(x);
    let mut sums = simd.splat_f32s(0.0);
    for v in head {
        sums = simd.mul_add_e_f32s(*v, *v, sums);
    }
    let tail: f32 = tail.iter().map(|v| v * v).sum();
    (simd.reduce_sum_f32s(sums) + tail) / x.len() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition in f64. The result is some 1 in size, and made of few roundings of f32 besides a sum of
    /// squares, whose terms all have one sign: 1e-6 is a few units in the last place.
    fn check(tokens: usize, heads: usize, head_dim: usize) {
        let (half, factor, eps) = (head_dim / 2, 0.25, 1e-6);
        let value = |n: usize| ((n * 7919) % 1009) as f32 / 504.5 - 1.0;
        let x: Vec<f32> = (0..tokens * heads * head_dim).map(value).collect();
        let scale: Vec<f32> = (0..head_dim).map(|n| 1.0 + value(n + 5)).collect();
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (0..tokens * half).map(|n| (n as f32).sin_cos()).map(|(sin, cos)| (cos, sin)).unzip();
        let mut out = x.clone();
        norm_rope(&mut out, &scale, eps, &cos, &sin, heads, factor);

        for (n, (out, x)) in out.chunks_exact(head_dim).zip(x.chunks_exact(head_dim)).enumerate() {
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / head_dim as f64;
            let normed: Vec<f64> = x
                .iter()
                .zip(&scale)
                .map(|(x, scale)| f64::from(*x) / (mean + f64::from(eps)).sqrt() * f64::from(*scale))
                .collect();
            for j in 0..half {
                let angle = n / heads * half + j;
                let (cos, sin) = (f64::from(cos[angle]), f64::from(sin[angle]));
                let (first, second) = (normed[j], normed[j + half]);
                let expected = [first * cos - second * sin, second * cos + first * sin];
                for (found, expected) in [out[j], out[j + half]].into_iter().zip(expected) {
                    let expected = expected * f64::from(factor);
                    assert!((f64::from(found) - expected).abs() < 1e-6, "{found} for {expected}");
                }
            }
        }
    }

    #[test]
    fn heads_are_normalized_turned_and_multiplied() {
        for (tokens, heads, head_dim) in [(1, 1, 2), (1, 4, 256), (3, 2, 6), (5, 3, 64), (2, 1, 22)] {
            check(tokens, heads, head_dim);
        }
    }

    #[test]
    fn many_tokens_go_over_the_threads() {
        check(70, 4, 256);
        check(3, 65, 256);
    }

    #[test]
    fn no_tokens_are_nothing_to_do() {
        norm_rope(&mut [], &[1.0; 8], 1e-6, &[], &[], 4, 1.0);
    }
}
