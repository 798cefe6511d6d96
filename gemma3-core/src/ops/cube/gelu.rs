//! The activation of the feed-forward layers where no product applies it, four numbers a unit.

use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::Handle;

use super::matvec::gelu_tanh;
use super::packed::Quad;

/// Units of a cube.
const UNITS: usize = 256;

/// `gelu_tanh(gate) * up` into `out` \[rows, width\], of a fused product \[rows, 2 * width\] with the gate in the
/// first half of each row. All f32; `width` is a multiple of 4.
pub fn gelu_mul(client: &Client, gate_up: &Handle, out: &Handle, rows: usize, width: usize) {
    let quads = width / 4;
    if rows == 0 {
        return;
    }
    // SAFETY: units are below a row's quads by comparison, and the lengths are those of the rows.
    unsafe {
        gelu_mul_kernel::launch_unchecked(
            client,
            CubeCount::Static(quads.div_ceil(UNITS) as u32, rows as u32, 1),
            CubeDim::new_1d(UNITS as u32),
            BufferArg::from_raw_parts(gate_up.clone(), 2 * rows * quads),
            BufferArg::from_raw_parts(out.clone(), rows * quads),
            quads,
        );
    }
}

/// Cube `[block, row]`.
#[cube(launch_unchecked)]
fn gelu_mul_kernel(gate_up: &[Quad], out: &mut [Quad], #[comptime] quads: usize) {
    let at = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    if at < quads {
        let row = CUBE_POS_Y as usize;
        let gate = gate_up[row * comptime!(2 * quads) + at];
        let up = gate_up[row * comptime!(2 * quads) + quads + at];
        out[row * quads + at] = gelu_quad(gate) * up;
    }
}

#[cube]
fn gelu_quad(x: Quad) -> Quad {
    let mut out = Quad::empty();
    #[unroll]
    for i in 0..4usize {
        out.insert(i, gelu_tanh(x.extract(i)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::cube::testing::*;

    fn gelu(x: f64) -> f64 {
        0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
    }

    #[test]
    fn activations_follow_their_formula() {
        let Some(client) = client() else { return };
        let (rows, width) = (3, 1060);
        let mut random = Random::new(31);
        // Up to 60 in size, where the tanh is 1 to the last bit.
        let wide = |random: &mut Random, count| -> Vec<f32> {
            random.floats(count).iter().enumerate().map(|(i, x)| x * [1.0, 4.0, 60.0][i % 3]).collect()
        };
        let gate_up = wide(&mut random, 2 * rows * width);
        let out = poisoned(&client, rows * width);
        gelu_mul(&client, &upload(&client, &gate_up), &out, rows, width);
        let expected: Vec<_> = to_f64(&gate_up)
            .chunks_exact(2 * width)
            .flat_map(|row| {
                (0..width).map(|i| (gelu(row[i]) * row[width + i], row[i].abs() * row[width + i].abs()))
            })
            .collect();
        // The exponential's argument is rounded at sizes up to 4 where its result still counts.
        assert_close(&download(&client, &out), &expected, 3e-6, "gelu_mul");
    }
}
