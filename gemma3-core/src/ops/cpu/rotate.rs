//! Rotary embedding in one pass, tokens over the threads.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

/// Elements below which one thread does it all: waking others would take longer.
const MIN_TASK_ELEMENTS: usize = 16 * 1024;

/// Turns `x` \[tokens, heads, head_dim\] by `cos` and `sin` \[tokens, head_dim / 2\] into `out`, whose shape is
/// that of `x`.
pub(super) fn rotate(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32], heads: usize, head_dim: usize) {
    let (token, half) = (heads * head_dim, head_dim / 2);
    if token == 0 || half == 0 {
        return;
    }
    let arch = Arch::new();
    let tokens = MIN_TASK_ELEMENTS.div_ceil(token);
    out.par_chunks_mut(tokens * token)
        .zip(x.par_chunks(tokens * token))
        .zip(cos.par_chunks(tokens * half).zip(sin.par_chunks(tokens * half)))
        .for_each(|((out, x), (cos, sin))| arch.dispatch(Tokens { x, cos, sin, out, token, head_dim }));
}

struct Tokens<'a> {
    x: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    out: &'a mut [f32],
    token: usize,
    head_dim: usize,
}

impl NullaryFnOnce for Tokens<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let half = self.head_dim / 2;
        let angles = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        let tokens = self.out.chunks_exact_mut(self.token).zip(self.x.chunks_exact(self.token));
        for ((out, x), (cos, sin)) in tokens.zip(angles) {
            for (out, x) in out.chunks_exact_mut(self.head_dim).zip(x.chunks_exact(self.head_dim)) {
                let (out_first, out_second) = out.split_at_mut(half);
                let (first, second) = x.split_at(half);
                for j in 0..half {
                    out_first[j] = first[j] * cos[j] - second[j] * sin[j];
                    out_second[j] = second[j] * cos[j] + first[j] * sin[j];
                }
            }
        }
    }
}
