//! A bias and the activation in one pass.

use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use super::gelu_mul::gelu_tanh;

/// Elements below which one thread does it all: waking others would take longer.
const MIN_TASK_ELEMENTS: usize = 8 * 1024;

/// `x = gelu_tanh(x + bias)` for each row of `x`; the width is `bias.len()`.
pub(super) fn bias_gelu(x: &mut [f32], bias: &[f32]) {
    let width = bias.len();
    if width == 0 {
        return;
    }
    let arch = Arch::new();
    let task = width * MIN_TASK_ELEMENTS.div_ceil(width);
    x.par_chunks_mut(task).for_each(|rows| {
        for row in rows.chunks_exact_mut(width) {
            arch.dispatch(Row { row, bias });
        }
    });
}

struct Row<'a> {
    row: &'a mut [f32],
    bias: &'a [f32],
}

impl NullaryFnOnce for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (x, bias) in self.row.iter_mut().zip(self.bias) {
            *x = gelu_tanh(*x + bias);
        }
    }
}
