//! A branch joins the residual stream, and the sum is normalized for what comes next.
//!
//! Products do this themselves where a row fits their shared memory
//! ([`Input::Residual`](crate::ops::cube::matvec::Input)); this kernel is for where it doesn't.

use std::cmp::min;

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::packed::Quad;
use super::reduce::{Groups, group_sum};

/// What a residual step reads and writes; all f32.
#[derive(Debug, Clone, Copy)]
pub struct ResidualNorm<'a> {
    /// The residual stream `x`, \[batch, width\], which becomes `h = x + rms_norm(branch) * branch_scale`.
    pub stream: &'a Handle,
    /// What is added to it, \[batch, width\].
    pub branch: &'a Handle,
    /// Scale of the branch's norm, \[width\].
    pub branch_scale: &'a Handle,
    /// Scale of the norm of the sum, \[width\].
    pub scale: &'a Handle,
    /// Receives `rms_norm(h) * scale`, \[batch, width\].
    pub normed: &'a Handle,
    /// Added to the mean of the squares, in both norms.
    pub eps: f32,
}

/// Launches the step: one cube of `groups` a row. `width` is a multiple of 4.
pub fn residual_norm(client: &Client, step: ResidualNorm<'_>, batch: usize, width: usize, groups: Groups) {
    let quads = width / 4;
    // SAFETY: the lengths are those that the kernel computes its indices from.
    unsafe {
        residual_norm_kernel::launch_unchecked(
            client,
            CubeCount::Static(batch as u32, 1, 1),
            groups.dim(),
            BufferArg::from_raw_parts(step.branch.clone(), batch * quads),
            BufferArg::from_raw_parts(step.branch_scale.clone(), quads),
            BufferArg::from_raw_parts(step.scale.clone(), quads),
            BufferArg::from_raw_parts(step.stream.clone(), batch * quads),
            BufferArg::from_raw_parts(step.normed.clone(), batch * quads),
            step.eps,
            quads,
            groups.cube(),
        );
    }
}

/// Each unit keeps its share of the row in registers.
#[cube(launch_unchecked)]
fn residual_norm_kernel(
    branch: &[Quad],
    branch_scale: &[Quad],
    scale: &[Quad],
    stream: &mut [Quad],
    normed: &mut [Quad],
    eps: f32,
    #[comptime] quads: usize,
    #[comptime] groups: Groups,
) {
    let units = comptime!(groups.cube_units());
    let share = comptime!(quads.div_ceil(units));
    let row = CUBE_POS_X as usize * quads;
    let unit = UNIT_POS as usize;
    let mut values = Array::<Quad>::new(share);
    let mut squares = Quad::new(0.0f32);
    #[unroll]
    for i in 0..share {
        let at = unit + comptime!(i * units);
        let y = select(at < quads, branch[row + min(at, comptime!(quads - 1))], Quad::new(0.0f32));
        squares = fma(y, y, squares);
        values[i] = y;
    }
    let inverse = inverse_rms(squares, eps, quads, groups);
    let mut squares = Quad::new(0.0f32);
    #[unroll]
    for i in 0..share {
        let at = unit + comptime!(i * units);
        let clamped = min(at, comptime!(quads - 1));
        let h = fma(values[i] * Quad::new(inverse), branch_scale[clamped], stream[row + clamped]);
        let h = select(at < quads, h, Quad::new(0.0f32));
        squares = fma(h, h, squares);
        values[i] = h;
    }
    let inverse = inverse_rms(squares, eps, quads, groups);
    #[unroll]
    for i in 0..share {
        let at = unit + comptime!(i * units);
        if at < quads {
            stream[row + at] = values[i];
            normed[row + at] = values[i] * Quad::new(inverse) * scale[at];
        }
    }
}

#[cube]
fn inverse_rms(squares: Quad, eps: f32, #[comptime] quads: usize, #[comptime] groups: Groups) -> f32 {
    let mut sum = Array::<f32>::new(1usize);
    sum[0] = Vector::vector_sum(squares);
    group_sum(&mut sum, 1usize, groups);
    f32::inverse_sqrt(sum[0] * comptime!(0.25 / quads as f32) + eps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::matvec::Machine;
    use crate::ops::cube::testing::*;

    #[test]
    fn a_branch_joins_the_stream_and_the_sum_is_normalized() {
        let Some(client) = client() else { return };
        let groups = Machine::of(&client).groups(1);
        // Less than a quad for each unit, and more.
        for width in [64, 1220] {
            let batch = 3;
            let mut random = Random::new(6);
            let (x, branch) = (random.floats(batch * width), random.floats(batch * width));
            let (branch_scale, scale) = (random.floats(width), random.floats(width));
            let added = rms_norm(&to_f64(&branch), &branch_scale, 1e-6);
            let h: Vec<f64> = added.iter().zip(&x).map(|(added, x)| added + f64::from(*x)).collect();
            let expected = rms_norm(&h, &scale, 1e-6);
            let (stream, normed) = (upload(&client, &x), poisoned(&client, batch * width));
            let step = ResidualNorm {
                stream: &stream,
                branch: &upload(&client, &branch),
                branch_scale: &upload(&client, &branch_scale),
                scale: &upload(&client, &scale),
                normed: &normed,
                eps: 1e-6,
            };
            residual_norm(&client, step, batch, width, groups);
            // A few roundings of numbers up to 4.
            let sized = |values: Vec<f64>| values.into_iter().map(|value| (value, 4.0)).collect::<Vec<_>>();
            assert_close(&download(&client, &stream), &sized(h), 1e-6, "stream");
            assert_close(&download(&client, &normed), &sized(expected), 1e-6, "normed");
        }
    }
}
